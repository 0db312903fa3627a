//! "Something changed": wakes every task of this thread that waits for it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// Counts notifications; a waiter names the count it has seen, so none is missed.
#[derive(Default)]
pub(crate) struct Signal {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    pub(crate) fn seen(&self) -> u64 {
        self.count.get()
    }

    pub(crate) fn notify(&self) {
        self.count.set(self.count.get() + 1);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Ready once there was a notification after `seen`.
    pub(crate) fn poll_since(&self, seen: u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.count.get() != seen {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(crate) async fn since(&self, seen: u64) {
        poll_fn(|cx| self.poll_since(seen, cx)).await;
    }
}
