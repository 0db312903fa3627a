//! Operations, their context, and the two traits between the layers.

use crate::{Completion, Geometry, Instant, IoError, IoVec, Sector};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Weak;
use std::task::{Context, Poll};

/// A boxed future of this thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// An operation on a device.
#[derive(Clone, Debug)]
pub enum Op {
    /// Reads `sectors` sectors; yields [`Done::Read`]. The device takes the pages.
    Read {
        /// First sector.
        at: Sector,
        /// How many.
        sectors: u32,
    },
    /// Writes `data` (a whole number of logical blocks) at `at`; yields [`Done::Written`].
    ///
    /// Overlapping writes in flight: the caller serialises them.
    Write {
        /// First sector.
        at: Sector,
        /// Frozen pages, scattered in memory, contiguous on disk.
        data: IoVec,
        /// What `Ok` promises.
        want: Durability,
    },
    /// SYNCHRONIZE CACHE: covers exactly the writes that yielded `Ok` before `submit`.
    Flush,
    /// UNMAP: the content becomes undefined (or zeros, see [`Geometry::discard_zeroes`]).
    Discard {
        /// First sector.
        at: Sector,
        /// How many.
        sectors: u64,
    },
    /// Makes the range read as zeros.
    WriteZeroes {
        /// First sector.
        at: Sector,
        /// How many.
        sectors: u64,
    },
    /// `Ok`: no earlier WRITE/UNMAP of this or a previous run can take effect any more.
    Fence,
}

/// What the `Ok` of a write promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// Answered by the device; durable after a later flush.
    #[default]
    Cache,
    /// On the medium (FUA, or write + flush where FUA is absent).
    Fua,
}

/// Circumstances of an operation.
#[derive(Clone, Copy, Debug)]
pub struct IoCtx {
    /// When the caller gives up: a device answers by then, with [`crate::Kind::Late`] at the
    /// latest. [`Instant::FAR`] for none.
    pub deadline: Instant,
    /// Priority and accounting.
    pub class: Class,
    /// Whether a second attempt may be sent before the first has failed.
    pub hedge: Hedge,
    /// Follows a request through the layers.
    pub trace: TraceId,
}

impl IoCtx {
    /// Foreground, no deadline, hedged, no trace.
    pub fn foreground() -> IoCtx {
        IoCtx {
            deadline: Instant::FAR,
            class: Class::Foreground,
            hedge: Hedge::Allowed,
            trace: TraceId(0),
        }
    }

    /// Metadata: as foreground, counted apart.
    pub fn metadata() -> IoCtx {
        IoCtx {
            class: Class::Metadata,
            ..IoCtx::foreground()
        }
    }

    /// Background: resync, scrub, prefetch. Not hedged.
    pub fn background() -> IoCtx {
        IoCtx {
            class: Class::Background,
            hedge: Hedge::No,
            ..IoCtx::foreground()
        }
    }
}

/// What an operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A client waits for it.
    Foreground,
    /// Superblocks, bitmaps, journal, maps.
    Metadata,
    /// Resync, scrub, prefetch.
    Background,
}

/// Whether hedging is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hedge {
    /// By the device's own rules and budget.
    Allowed,
    /// Never.
    No,
}

/// Identity of a request across layers; 0 = none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId(pub u64);

/// Order of operations within one device: a write after a read has a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

/// What a finished operation yields.
#[derive(Clone, Debug)]
pub enum Done {
    /// The bytes, and the [`Seq`] at which they were read (for [`Mirror::rewrite`]).
    Read(IoVec, Seq),
    /// A write is answered as its [`Durability`] says.
    Written,
    /// The flush succeeded.
    Flushed,
    /// Discarded, or zeroed.
    Discarded,
    /// Fenced.
    Fenced,
}

impl Done {
    /// The bytes of a read.
    ///
    /// # Panics
    /// If the operation was not a read.
    pub fn into_data(self) -> IoVec {
        match self {
            Done::Read(data, _) => data,
            other => panic!("{other:?} carries no data"),
        }
    }
}

/// News of a device for the layer above; one reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The geometry changed; takes effect now that this was taken.
    Changed(Geometry),
    /// Writes answered since the last flush may be gone (`failover-rules.md` §1.10). `raid`
    /// consumes those of its legs.
    CacheLost,
    /// A range became tainted.
    Tainted(Range<Sector>),
    /// Something an operator wants to know.
    State(StateChange),
}

/// A change of state worth an event and a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// Event name of the external interface, as `path_failed`.
    pub event: &'static str,
    /// What it is about, as `sto1 10.3.1.1:3260`.
    pub object: String,
    /// The rest of the sentence.
    pub text: String,
    /// Worth a warning.
    pub warn: bool,
}

/// Reads on a session that is not admitted yet.
pub trait ReadSectors {
    /// Reads `sectors` sectors at `at` over this very session.
    fn read(&self, at: Sector, sectors: u32) -> LocalFuture<Result<IoVec, IoError>>;
}

/// Asked on each new session before anything is written there (P11).
pub trait Admission {
    /// `Ok`: go on. `Err`: never write there; the reason is reported as the device's failure.
    fn admit(&self, session: std::rc::Rc<dyn ReadSectors>) -> LocalFuture<Result<(), IoError>>;
}

/// A device of sectors. Object-safe; one thread; names no runtime.
pub trait BlockDevice {
    /// Its shape; changes only after [`Event::Changed`] was taken.
    fn geometry(&self) -> Geometry;

    /// Begins an operation. Never blocks, never fails here: errors come by the completion.
    /// Dropping the completion detaches and does not cancel.
    fn submit(&self, op: Op, ctx: IoCtx) -> Completion;

    /// Whether an unanswered write may still land in `range`, also after a hedged write's `Ok`.
    fn tainted(&self, range: Range<Sector>) -> bool;

    /// News, for the one reader above.
    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event>;

    /// Sets who is asked on each new session. Devices without sessions ignore it.
    fn set_admission(&self, gate: Weak<dyn Admission>) {
        let _ = gate;
    }
}

/// Index of a mirror leg: 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LegIndex(pub u8);

/// What the owner of a mirror's content knows about it, for rebuild, re-add and resync.
pub trait Allocation {
    /// The first used range that ends after `from` (sectors of the mirror), or `None`. "Used" is
    /// everything that is live now or in a state that a crash now could bring back.
    fn next_used(&self, from: Sector) -> LocalFuture<Option<Range<Sector>>>;

    /// Judges bytes read at `at` (both on 4 KiB boundaries), granule by granule of 4 KiB, by the
    /// checksums kept apart from the data.
    fn judge(&self, at: Sector, data: IoVec) -> LocalFuture<Vec<Verdict>>;
}

/// What [`Allocation::judge`] says of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody's: any content will do (slot 0 wins where legs differ).
    Free,
    /// Matches its checksum.
    Good,
    /// Does not match its checksum.
    Bad,
    /// In use, but being written just now or without a checksum known here.
    Unknown,
}

/// What the store needs of `raid` beyond a block device. A one-leg volume implements it too.
pub trait Mirror: BlockDevice {
    /// Legs configured (1 or 2).
    fn legs(&self) -> u8;

    /// Whether a leg is in sync: its content counts.
    fn in_sync(&self, leg: LegIndex) -> bool;

    /// The name of a leg for people.
    fn leg_name(&self, leg: LegIndex) -> String {
        format!("leg {}", leg.0)
    }

    /// Reads one leg. One that is there but not in sync may answer, too: its bytes count only where
    /// a checksum kept elsewhere proves them. [`crate::Kind::Closed`] if it does not.
    fn read_leg(&self, leg: LegIndex, at: Sector, sectors: u32, ctx: IoCtx) -> Completion;

    /// Writes bytes known good to one leg; a no-op if a write submitted after `since` overlaps.
    fn rewrite(&self, leg: LegIndex, at: Sector, good: IoVec, since: Seq, ctx: IoCtx)
        -> Completion;

    /// `Ok`: the intent bits of `range` are on disk on every in-sync leg, so that writes there
    /// need not wait for a bitmap page.
    fn predirty(&self, range: Range<Sector>, ctx: IoCtx) -> Completion;

    /// Sets the map of used space for rebuilds.
    fn set_allocation(&self, map: Weak<dyn Allocation>);

    /// Called once by the store after its closing (store rule R4): resync of what the previous
    /// run left dirty, and the clearing of its bits, may begin. Until then neither does.
    fn recovered(&self);
}
