//! What storage tells the master unasked, and the queue it waits in.

use crate::{ChunkId, ChunkVersion};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

/// One piece of news for the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// `CSTOMA_CHUNK_DAMAGED` (102): damaged on every leg.
    Damaged(ChunkId),
    /// `CSTOMA_CHUNK_LOST` (105): gone from here.
    Lost(ChunkId),
    /// `CSTOMA_CHUNK_NEW` (107): appeared, or was restored from the quarantine.
    New {
        /// The chunk.
        id: ChunkId,
        /// Its version.
        version: ChunkVersion,
        /// On a volume marked for removal.
        removing: bool,
    },
    /// `CSTOMA_ERROR_OCCURRED` (106): a device error worth counting.
    ErrorOccurred,
}

/// Reports in order, read by one reader.
///
/// At most [`ReportQueue::MAX`] wait; past that [`ReportQueue::overflowed`] tells the reader to
/// register again from the inventory, which says the same.
#[derive(Default)]
pub struct ReportQueue {
    queue: RefCell<VecDeque<Report>>,
    waker: RefCell<Option<Waker>>,
    overflowed: Cell<bool>,
}

impl ReportQueue {
    /// Reports kept at most.
    pub const MAX: usize = 1_000_000;

    /// Queues one report and wakes the reader.
    pub fn push(&self, report: Report) {
        if self.queue.borrow().len() >= Self::MAX {
            self.overflowed.set(true);
        } else {
            self.queue.borrow_mut().push_back(report);
        }
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The next report; pending registers the reader's waker.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Report> {
        if let Some(report) = self.queue.borrow_mut().pop_front() {
            return Poll::Ready(report);
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether reports were dropped since the last call; clears the mark.
    pub fn overflowed(&self) -> bool {
        self.overflowed.replace(false)
    }
}
