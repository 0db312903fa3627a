//! A device that writes down what passes through it, for assertions about order.
//!
//! Each operation has two entries: when it was asked for and when it was answered. Data are kept as
//! digests, so that a log of hours stays small and two runs can be compared by [`Log::digest`].

use crate::completion::{self, Joiner, Promise};
use crate::{
    Applied, BlockDevice, Class, Completion, Durability, Event, Geometry, Instant, IoCtx, IoResult,
    IoVec, Kind, Op, Rt, Sector, SECTOR_BYTES,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

/// FNV-1a of 64 bits: enough to tell contents and histories apart in tests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u64);

impl Digest {
    /// Of nothing.
    pub const EMPTY: Digest = Digest(0xCBF2_9CE4_8422_2325);

    /// Of what was digested before and `bytes`.
    pub fn and(self, bytes: &[u8]) -> Digest {
        Digest(bytes.iter().fold(self.0, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        }))
    }

    /// Of a list of slices.
    pub fn of(data: &IoVec) -> Digest {
        data.segments().fold(Digest::EMPTY, Digest::and)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What an operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A read.
    Read,
    /// A write of what has this digest.
    Write(Digest, Durability),
    /// A flush.
    Flush,
    /// A discard.
    Discard,
    /// Zeros.
    WriteZeroes,
    /// A fence.
    Fence,
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Which device wrote it.
    pub device: &'static str,
    /// The operation: the same for question and answer, in the order of questions.
    pub id: u64,
    /// When.
    pub time: Instant,
    /// What.
    pub what: What,
    /// Where (empty for flushes and fences).
    pub range: (Sector, Sector),
    /// What for.
    pub class: Class,
    /// `None`: asked for. `Some`: answered, `Ok` or how it failed.
    pub answer: Option<Result<(), (Kind, Applied)>>,
}

/// The log of one or several devices, in the order in which things happened.
#[derive(Clone, Default)]
pub struct Log {
    entries: Rc<RefCell<Vec<Entry>>>,
    next: Rc<Cell<u64>>,
}

impl Log {
    /// All lines.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.borrow().clone()
    }

    /// Forgets all lines.
    pub fn clear(&self) {
        self.entries.borrow_mut().clear();
    }

    /// Index of the first line at or after `from` that `wanted` accepts.
    pub fn find(&self, from: usize, wanted: impl Fn(&Entry) -> bool) -> Option<usize> {
        let entries = self.entries.borrow();
        let found = entries.iter().skip(from).position(wanted)?;
        Some(from + found)
    }

    /// Digest of everything: equal for equal histories.
    pub fn digest(&self) -> Digest {
        self.entries
            .borrow()
            .iter()
            .fold(Digest::EMPTY, |digest, entry| {
                digest.and(format!("{entry:?}").as_bytes())
            })
    }
}

impl Entry {
    /// Whether it is an answer `Ok`.
    pub fn is_ok(&self) -> bool {
        self.answer == Some(Ok(()))
    }

    /// Whether it is a question.
    pub fn is_asked(&self) -> bool {
        self.answer.is_none()
    }

    /// Whether it touches `range`.
    pub fn touches(&self, range: Range<Sector>) -> bool {
        self.range.0 < range.end && range.start < self.range.1
    }
}

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct RecordingDevice {
    shared: Rc<Shared>,
}

struct Shared {
    name: &'static str,
    rt: Rt,
    inner: Rc<dyn BlockDevice>,
    log: Log,
    open: RefCell<BTreeMap<u64, (Promise, Entry)>>,
    itself: Weak<Shared>,
}

impl RecordingDevice {
    /// Passes everything to `inner` and writes it into `log` under `name`.
    pub fn new(
        name: &'static str,
        rt: Rt,
        inner: Rc<dyn BlockDevice>,
        log: Log,
    ) -> RecordingDevice {
        let shared = Rc::new_cyclic(|itself| Shared {
            name,
            rt,
            inner,
            log,
            open: RefCell::default(),
            itself: itself.clone(),
        });
        RecordingDevice { shared }
    }
}

impl BlockDevice for RecordingDevice {
    fn geometry(&self) -> Geometry {
        self.shared.inner.geometry()
    }

    fn submit(&self, op: Op, ctx: IoCtx) -> Completion {
        let shared = &self.shared;
        let id = shared.log.next.replace(shared.log.next.get() + 1);
        let (what, at, sectors) = match &op {
            Op::Read { at, sectors } => (What::Read, *at, u64::from(*sectors)),
            Op::Write { at, data, want } => {
                let what = What::Write(Digest::of(data), *want);
                (what, *at, data.len() as u64 / SECTOR_BYTES)
            }
            Op::Flush => (What::Flush, Sector(0), 0),
            Op::Discard { at, sectors } => (What::Discard, *at, *sectors),
            Op::WriteZeroes { at, sectors } => (What::WriteZeroes, *at, *sectors),
            Op::Fence => (What::Fence, Sector(0), 0),
        };
        let entry = Entry {
            device: shared.name,
            id,
            time: shared.rt.now(),
            what,
            range: (at, Sector(at.0.saturating_add(sectors))),
            class: ctx.class,
            answer: None,
        };
        shared.log.entries.borrow_mut().push(entry.clone());
        let (promise, completion) = completion::pair();
        shared.open.borrow_mut().insert(id, (promise, entry));
        let joiner: Weak<dyn Joiner> = shared.itself.clone();
        shared.inner.submit(op, ctx).join(joiner, id);
        completion
    }

    fn tainted(&self, range: Range<Sector>) -> bool {
        self.shared.inner.tainted(range)
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        self.shared.inner.poll_event(cx)
    }

    fn set_admission(&self, gate: Weak<dyn crate::Admission>) {
        self.shared.inner.set_admission(gate);
    }
}

impl Joiner for Shared {
    fn joined(&self, token: u64, result: IoResult) {
        let Some((promise, mut entry)) = self.open.borrow_mut().remove(&token) else {
            unreachable!("an operation is answered once");
        };
        entry.time = self.rt.now();
        entry.answer = Some(match &result {
            Ok(_) => Ok(()),
            Err(e) => Err((e.kind.clone(), e.applied)),
        });
        self.log.entries.borrow_mut().push(entry);
        promise.complete(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Faults, FaultyDevice, Medium, VirtualRt};
    use crate::Pool;

    #[test]
    fn the_order_of_questions_and_answers_is_kept() {
        let run = || {
            let world = VirtualRt::new(1);
            let pool = Pool::new(1 << 20);
            let medium = Medium::new(4096);
            let inner = FaultyDevice::new(world.rt(), pool.clone(), medium, Faults::none(), 1);
            let log = Log::default();
            let device = RecordingDevice::new("a", world.rt(), Rc::new(inner), log.clone());
            let data = pool.copy_now(&[1; 4096]);
            let op = Op::Write {
                at: Sector(8),
                data: data.clone(),
                want: Durability::Cache,
            };
            let write = device.submit(op, IoCtx::metadata());
            let flush = device.submit(Op::Flush, IoCtx::foreground());
            world.block_on(write).expect("written");
            world.block_on(flush).expect("flushed");
            (log, data)
        };
        let (log, data) = run();
        let write = What::Write(Digest::of(&data), Durability::Cache);
        let asked = log.find(0, |e| e.what == write && e.is_asked());
        let answered = log.find(0, |e| e.what == write && e.is_ok());
        let flush = log.find(0, |e| e.what == What::Flush && e.is_asked());
        assert_eq!((asked, flush, answered), (Some(0), Some(1), Some(2)));
        let entry = &log.entries()[2];
        assert!(entry.touches(Sector(15)..Sector(16)) && entry.class == Class::Metadata);
        assert!(!entry.touches(Sector(16)..Sector(17)));
        assert_eq!(log.digest(), run().0.digest());
        log.clear();
        assert_ne!(log.digest(), run().0.digest());
    }
}
