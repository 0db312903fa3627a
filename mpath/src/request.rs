//! A request: one command's worth of an operation, from its arrival to its answer.
//!
//! An operation larger than the unit's longest transfer becomes several requests that share a
//! [`Joint`]. A request has one or more *attempts*: commands with the same bytes on different
//! sessions. The first good answer is the request's; attempts that are then still unanswered live
//! on without it, as taints if they write.

use crate::path::Live;
use crate::slab::Token;
use crate::taint::{Content, TaintId};
use blockdev::path::{Command, Ticket};
use blockdev::{
    Applied, Done, Durability, Instant, IoCtx, IoError, IoResult, IoVec, Promise, Sector, Seq,
    SECTOR_BYTES,
};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) enum Work {
    Read { at: Sector, sectors: u32 },
    Write { at: Sector, data: IoVec, fua: bool },
    Zero { at: Sector, sectors: u32 },
    Unmap { at: Sector, sectors: u32 },
    Flush,
}

impl Work {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Work::Read { .. } => "read",
            Work::Write { .. } => "write",
            Work::Zero { .. } => "write_zeroes",
            Work::Unmap { .. } => "discard",
            Work::Flush => "flush",
        }
    }

    pub(crate) fn range(&self) -> Range<Sector> {
        match self {
            Work::Read { at, sectors }
            | Work::Zero { at, sectors }
            | Work::Unmap { at, sectors } => at.span(u64::from(*sectors)),
            Work::Write { at, data, .. } => at.span(data.len() as u64 / SECTOR_BYTES),
            Work::Flush => Sector(0)..Sector(0),
        }
    }

    /// Bytes on the wire.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Work::Read { sectors, .. } => u64::from(*sectors) * SECTOR_BYTES,
            Work::Write { data, .. } => data.len() as u64,
            Work::Zero { .. } | Work::Unmap { .. } | Work::Flush => 0,
        }
    }

    /// What it would put into its range; `None` if it changes nothing.
    pub(crate) fn content(&self) -> Option<Content> {
        match self {
            Work::Write { data, .. } => Some(Content::Data(data.clone())),
            Work::Zero { .. } => Some(Content::Zeroes),
            Work::Unmap { .. } => Some(Content::Undefined),
            Work::Read { .. } | Work::Flush => None,
        }
    }

    pub(crate) fn is_mutating(&self) -> bool {
        !matches!(self, Work::Read { .. } | Work::Flush)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Has an attempt under way.
    Running,
    /// Waits for a taint to go.
    Held,
    /// Waits for a path.
    Queued,
    /// Is routed again then.
    Backoff(Instant),
}

/// Who gets the answer.
pub(crate) enum Sink {
    Whole(Promise),
    Part(Rc<Joint>, usize),
}

pub(crate) struct Request {
    pub(crate) work: Work,
    /// The write is answered; its SYNCHRONIZE CACHE (in place of FUA) is due.
    pub(crate) is_flushing: bool,
    /// The write needs that flush.
    pub(crate) flush_after: bool,
    pub(crate) ctx: IoCtx,
    pub(crate) seq: Seq,
    pub(crate) sink: Sink,
    pub(crate) begun: Instant,
    pub(crate) state: State,
    /// When it came into its state, and the device's stall clock then.
    pub(crate) since: Instant,
    pub(crate) stall_mark: Duration,
    pub(crate) attempts: SmallVec<[Token; 2]>,
    /// A lost attempt may have been applied.
    pub(crate) is_unsure: bool,
    /// Retries for a busy unit, for one that becomes ready, and for a doubtful answer.
    pub(crate) pauses: u32,
    pub(crate) not_ready: u32,
    pub(crate) repeats: u32,
    /// It had to wait for more than its one answer.
    pub(crate) log: Option<Vec<AttemptLog>>,
}

impl Request {
    /// The command to send now.
    pub(crate) fn command(&self) -> Command {
        if self.is_flushing {
            return Command::SynchronizeCache;
        }
        match &self.work {
            Work::Read { at, sectors } => Command::Read {
                at: *at,
                sectors: *sectors,
            },
            Work::Write { at, data, fua } => Command::Write {
                at: *at,
                data: data.clone(),
                want: if *fua {
                    Durability::Fua
                } else {
                    Durability::Cache
                },
            },
            Work::Zero { at, sectors } => Command::WriteZeroes {
                at: *at,
                sectors: *sectors,
            },
            Work::Unmap { at, sectors } => Command::Unmap {
                at: *at,
                sectors: *sectors,
            },
            Work::Flush => Command::SynchronizeCache,
        }
    }

    /// Whether the command to send now changes the unit's content.
    pub(crate) fn is_mutating(&self) -> bool {
        !self.is_flushing && self.work.is_mutating()
    }

    pub(crate) fn done(&self, data: Done) -> Done {
        match (&self.work, data) {
            (Work::Read { .. }, Done::Read(data, _)) => Done::Read(data, self.seq),
            (Work::Read { .. }, other) => other,
            (Work::Write { .. }, _) => Done::Written,
            (Work::Zero { .. } | Work::Unmap { .. }, _) => Done::Discarded,
            (Work::Flush, _) => Done::Flushed,
        }
    }
}

pub(crate) struct Attempt {
    /// `None` once the request was answered without it.
    pub(crate) request: Option<Token>,
    pub(crate) path: usize,
    pub(crate) live: Live,
    pub(crate) ticket: Option<Ticket>,
    /// The operation it belongs to.
    pub(crate) op: Seq,
    /// Ascending over all attempts of the device.
    pub(crate) seq: u64,
    pub(crate) started: Instant,
    pub(crate) stall_mark: Duration,
    pub(crate) bytes: u64,
    pub(crate) is_read: bool,
    /// What it would do to the content, and where.
    pub(crate) mutation: Option<(Range<Sector>, Content)>,
    pub(crate) taint: Option<TaintId>,
    pub(crate) reason: &'static str,
    /// Flush: writes answered when it was sent.
    pub(crate) covers: u64,
    pub(crate) is_flush: bool,
    pub(crate) is_fua: bool,
}

/// One attempt in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptLog {
    /// The path's portal.
    pub portal: String,
    /// Why it was sent: first, hedge, retry, again.
    pub reason: &'static str,
    /// When it began, after the request did.
    pub start: Duration,
    /// When it was answered; `None`: not by the time of the request's answer.
    pub end: Option<Duration>,
    /// `ok`, or what went wrong.
    pub result: String,
}

/// An operation of several requests.
pub(crate) struct Joint {
    state: RefCell<JointState>,
}

struct JointState {
    promise: Option<Promise>,
    left: usize,
    error: Option<IoError>,
    reads: Vec<IoVec>,
    done: Done,
    flush_after: bool,
    ctx: IoCtx,
}

/// What an operation still needs when its last part is answered.
pub(crate) enum JointEnd {
    Deliver(Promise, IoResult),
    Flush(Promise, IoCtx),
}

impl Joint {
    pub(crate) fn new(
        promise: Promise,
        parts: usize,
        done: Done,
        flush_after: bool,
        ctx: IoCtx,
    ) -> Rc<Joint> {
        Rc::new(Joint {
            state: RefCell::new(JointState {
                promise: Some(promise),
                left: parts,
                error: None,
                reads: vec![IoVec::new(); parts],
                done,
                flush_after,
                ctx,
            }),
        })
    }

    /// A part turned out to need a flush in place of FUA.
    pub(crate) fn need_flush(&self) {
        self.state.borrow_mut().flush_after = true;
    }

    /// Takes the answer of part `index`. The first error wins; an unknown outcome of any part
    /// makes the whole unknown.
    pub(crate) fn part(&self, index: usize, result: IoResult) -> Option<JointEnd> {
        let mut state = self.state.borrow_mut();
        match result {
            Ok(Done::Read(data, _)) => state.reads[index] = data,
            Ok(_) => {}
            Err(error) => match &mut state.error {
                Some(first) => {
                    if error.applied == Applied::Unknown {
                        first.applied = Applied::Unknown;
                    }
                }
                None => state.error = Some(error),
            },
        }
        state.left -= 1;
        if state.left > 0 {
            return None;
        }
        let promise = state.promise.take()?;
        if let Some(error) = state.error.take() {
            return Some(JointEnd::Deliver(promise, Err(error)));
        }
        if state.flush_after {
            return Some(JointEnd::Flush(promise, state.ctx));
        }
        let done = match state.done.clone() {
            Done::Read(_, seq) => {
                let mut all = IoVec::new();
                for part in &state.reads {
                    all.append(part);
                }
                Done::Read(all, seq)
            }
            other => other,
        };
        Some(JointEnd::Deliver(promise, Ok(done)))
    }
}
