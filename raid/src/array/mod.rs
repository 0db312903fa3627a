//! The array at work: [`Array`] implements [`blockdev::Mirror`] over one or two legs.
//!
//! States of a leg: *in sync* (its content counts) → *leaving* (it failed or is late; nothing is
//! acknowledged past it until witness and leg record say so) → *out* → *rebuilding* (writes go to
//! it, its answers do not count) → *joining* (they count again; a failure still needs no record)
//! → in sync.
//! A third leg may be filled beside them to *replace* one ([`replace`]); it is rebuilding at most.
//!
//! Invariants:
//! - A write is acknowledged when every leg in sync, leaving or joining has answered it, or has
//!   been recorded out meanwhile (P1).
//! - A bit is on every leg in sync before the data it covers is sent; it is cleared only after a
//!   flush on both legs and a higher event count there, and never while a leg is out.
//! - The last leg in sync never goes out: its errors are the array's.
//! - No borrow of a table is held while submitting, joining or completing.
//!
//! The data path has no task: answers come by [`Joiner`], one timer looks at the oldest requests.
//! Everything rare (changes of state, copies, flush rounds) is a task on the same thread.

mod again;
mod change;
mod claims;
mod clock;
mod control;
mod fill;
mod flush;
mod intent;
mod leg;
mod meta;
mod read;
mod replace;
mod restore;
mod snapshot;
mod stop;
mod sync;
mod write;

pub use control::{ControlError, Fill};
pub use leg::Why;
pub(crate) use leg::{LegStart, LegState};
pub use snapshot::{ArraySnapshot, LastSync, LegSnapshot, SyncSnapshot};
pub(crate) use sync::Resume;

use crate::claim::Owner;
use crate::notify::{Notify, Turn};
use crate::uuid::Uuid;
use crate::witness::Witness;
use blockdev::path::Isid;
use blockdev::{
    Allocation, BlockDevice, Class, Completion, Event, Geometry, Instant, IoCtx, IoResult, IoVec,
    Joiner, Kind, LegIndex, Mirror, Op, Pool, Refusal, Rt, Sector, Seq, StateChange, SECTOR_BYTES,
};
use flush::Flushes;
use intent::Intent;
use leg::Leg;
use read::ReadOp;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use write::{HeldWrite, WriteOp};

/// What may be tuned.
#[derive(Clone)]
pub struct Options {
    /// Name of the volume, for events.
    pub volume: String,
    /// A write unanswered for so long makes its leg late (P5).
    pub late_after: Duration,
    /// The same for a leg that is being rebuilt, for which no acknowledgement waits.
    pub rebuild_patience: Duration,
    /// A read unanswered for so long is tried on the other leg too.
    pub hedge_after: Duration,
    /// Payload bytes kept per leg until flushed; 0 keeps none (`durability = "cache"`).
    pub window_bytes: u64,
    /// The superblock goes clean when nothing was written for so long.
    pub idle_after: Duration,
    /// A flush that the other leg has answered makes this one late after so long.
    pub flush_patience: Duration,
    /// A fence that the other leg has finished makes this one late after so long.
    pub fence_patience: Duration,
    /// A stop ends after so long, whatever stands in its way (SIGTERM ends in 5 s).
    pub stop_within: Duration,
    /// A leg that was late more than twice within a minute stays out for so long.
    pub penalty: Duration,
    /// A leg that may come back by itself is given up for a spare after so long.
    pub spare_after: Duration,
    /// How often bits are looked at for clearing.
    pub bitmap_sleep: Duration,
    /// Who claims the legs; `None`: no claim is written or asked for.
    pub owner: Option<Owner>,
    /// Told whether a leg is the only one in sync, so that its paths queue instead of failing.
    pub on_alone: Option<Rc<dyn Fn(LegIndex, bool)>>,
}

impl Options {
    /// The defaults of the promises, for a volume of this name.
    pub fn new(volume: &str) -> Options {
        Options {
            volume: volume.to_owned(),
            late_after: Duration::from_millis(200),
            rebuild_patience: Duration::from_secs(5),
            hedge_after: Duration::from_millis(100),
            window_bytes: 64 << 20,
            idle_after: Duration::from_secs(3),
            flush_patience: Duration::from_secs(5),
            fence_patience: Duration::from_millis(500),
            stop_within: Duration::from_millis(3500),
            penalty: Duration::from_secs(30),
            spare_after: Duration::from_secs(180),
            bitmap_sleep: Duration::from_secs(5),
            owner: None,
            on_alone: None,
        }
    }
}

/// What both legs' superblocks agree upon.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) array: Uuid,
    pub(crate) size: u64,
    pub(crate) chunk_bytes: u32,
}

/// Operations under way.
#[derive(Default)]
struct Tables {
    next_id: u64,
    writes: BTreeMap<u64, WriteOp>,
    reads: BTreeMap<u64, ReadOp>,
    held: VecDeque<HeldWrite>,
    locks: Vec<Range<Sector>>,
}

/// A running array. Made by [`crate::assemble`].
pub struct Array {
    me: Weak<Array>,
    rt: Rt,
    pool: Pool,
    witness: Rc<dyn Witness>,
    options: Options,
    identity: Identity,
    raid_disks: Cell<u8>,
    geometry: Cell<Geometry>,
    /// Those of the two slots, and a replacement.
    legs: [Leg; 3],
    /// Whose slot the replacement is for.
    replaces: Cell<LegIndex>,
    tables: RefCell<Tables>,
    writes_seen: write::Recent,
    intent: RefCell<Intent>,
    flushes: RefCell<Flushes>,
    /// Event count of the state on the legs, and the highest sent anywhere.
    events: Cell<u64>,
    events_sent: Cell<u64>,
    /// Whose the slots were at start, by the witness: for legs that were not there.
    holders: [u64; 2],
    /// Slots that witness and survivor's record call out.
    recorded_out: Cell<u8>,
    record_counter: Cell<u64>,
    /// Dirty on the legs and busy at the witness: data may be written.
    active: Cell<bool>,
    activating: Cell<bool>,
    witness_flushed: Cell<bool>,
    witness_events: Cell<u64>,
    /// Calls to the witness: the latest made, and the latest known to have taken effect.
    witness_turn: Cell<u64>,
    witness_told: Cell<u64>,
    meta_turn: Rc<Turn>,
    change_serial: Cell<u64>,
    last_write: Cell<Instant>,
    tick_at: Cell<Instant>,
    changed: Notify,
    news: RefCell<VecDeque<Event>>,
    news_waker: RefCell<Option<Waker>>,
    allocation: RefCell<Option<Weak<dyn Allocation>>>,
    recovered: Cell<bool>,
    sync: RefCell<sync::Progress>,
    claim_counter: Cell<u64>,
    /// ISIDs of earlier runs: claims go on naming them until those sessions are fenced, or a start that
    /// ends before its fence would forget them.
    recorded_isids: RefCell<Vec<Isid>>,
    failed: RefCell<Option<String>>,
    stopping: Cell<bool>,
    /// When it began to stop, and until when a copy that is nearly done may go on.
    stop_began: Cell<Instant>,
    copies_end: Cell<Instant>,
}

/// How an array begins, as assembly found it.
pub(crate) struct Start {
    pub(crate) identity: Identity,
    pub(crate) raid_disks: u8,
    pub(crate) events: u64,
    pub(crate) holders: [u64; 2],
    pub(crate) recorded_out: u8,
    pub(crate) record_counter: u64,
    pub(crate) claim_counter: u64,
    /// ISIDs that earlier runs claimed under the name of this one.
    pub(crate) recorded_isids: Vec<Isid>,
    pub(crate) events_cleared: u64,
    pub(crate) dirty: Vec<bool>,
    pub(crate) unclean: bool,
    pub(crate) witness_flushed: bool,
    pub(crate) legs: [leg::LegStart; 2],
    /// A replacement that was being filled, and for whose slot.
    pub(crate) replacement: Option<(LegIndex, leg::LegStart)>,
}

const EVENTS_KEPT: usize = 128;
/// What a leg that is out may still tell is not waited for longer.
const OUTSIDE_READ_MAX: Duration = Duration::from_secs(1);
/// Index of the leg that is filled to replace another.
const REPLACEMENT: LegIndex = LegIndex(2);

impl Array {
    pub(crate) fn start(
        rt: Rt,
        pool: Pool,
        witness: Rc<dyn Witness>,
        options: Options,
        start: Start,
    ) -> Rc<Array> {
        let array = Rc::new_cyclic(|me| Array {
            me: me.clone(),
            geometry: Cell::new(Geometry::plain(start.identity.size)),
            intent: RefCell::new(Intent::new(&start)),
            identity: start.identity.clone(),
            raid_disks: Cell::new(start.raid_disks),
            legs: [
                Leg::new(LegIndex(0), &start.legs[0]),
                Leg::new(LegIndex(1), &start.legs[1]),
                match &start.replacement {
                    Some((_, begin)) => Leg::new(REPLACEMENT, begin),
                    None => Leg::absent(REPLACEMENT, start.legs[0].places),
                },
            ],
            replaces: Cell::new(
                start
                    .replacement
                    .as_ref()
                    .map_or(LegIndex(0), |(of, _)| *of),
            ),
            tables: RefCell::default(),
            writes_seen: write::Recent::new(),
            flushes: RefCell::default(),
            events: Cell::new(start.events),
            events_sent: Cell::new(start.events),
            holders: start.holders,
            recorded_out: Cell::new(start.recorded_out),
            record_counter: Cell::new(start.record_counter),
            // An unclean array is dirty on its legs already, but the witness may say otherwise.
            active: Cell::new(false),
            activating: Cell::new(false),
            witness_flushed: Cell::new(start.witness_flushed),
            // Flushed at another count is as good as busy.
            witness_events: Cell::new(start.events),
            witness_turn: Cell::new(0),
            witness_told: Cell::new(0),
            meta_turn: Rc::default(),
            change_serial: Cell::new(0),
            last_write: Cell::new(rt.now()),
            tick_at: Cell::new(Instant::FAR),
            changed: Notify::default(),
            news: RefCell::default(),
            news_waker: RefCell::default(),
            allocation: RefCell::default(),
            recovered: Cell::new(false),
            sync: RefCell::default(),
            claim_counter: Cell::new(start.claim_counter),
            recorded_isids: RefCell::new(start.recorded_isids.clone()),
            failed: RefCell::default(),
            stopping: Cell::new(false),
            stop_began: Cell::new(Instant::FAR),
            copies_end: Cell::new(Instant(0)),
            rt,
            pool,
            witness,
            options,
        });
        array.refresh_geometry();
        for leg in &array.legs {
            array.watch(leg);
        }
        array.tell_roles();
        array.spawn_maintenance();
        let begins = start.legs.iter();
        let begins = begins.chain(start.replacement.iter().map(|(_, begin)| begin));
        for (leg, begin) in array.legs.iter().zip(begins) {
            leg.out_since.set(array.rt.now());
            if leg.device().is_some() && begin.state == LegState::Out {
                array.spawn_return(leg.index, array.rt.now());
            }
        }
        array
    }

    fn leg(&self, index: LegIndex) -> &Leg {
        &self.legs[usize::from(index.0)]
    }

    /// Reads a leg that is not in sync, for who can prove what it finds there.
    fn read_outside(&self, leg: LegIndex, at: Sector, sectors: u32, ctx: IoCtx) -> Completion {
        let device = self.legs.get(usize::from(leg.0)).and_then(Leg::device);
        let Some(device) = device else {
            return Completion::refused(Kind::Closed);
        };
        let at = Sector(self.leg(leg).places().data.0 + at.0);
        let ctx = IoCtx {
            deadline: ctx.deadline.min(self.rt.now() + OUTSIDE_READ_MAX),
            ..ctx
        };
        device.submit(Op::Read { at, sectors }, ctx)
    }

    /// The other slot's leg; for a replacement that of the slot it is not for.
    fn peer(&self, index: LegIndex) -> &Leg {
        let slot = if index == REPLACEMENT {
            self.replaces.get()
        } else {
            index
        };
        &self.legs[1 - usize::from(slot.0)]
    }

    /// The legs of the two slots.
    fn slots(&self) -> &[Leg] {
        &self.legs[..2]
    }

    fn weak_joiner(&self) -> Weak<dyn Joiner> {
        self.me.clone()
    }

    /// Legs that some state of `states` applies to, as a mask.
    fn mask(&self, of: impl Fn(&Leg) -> bool) -> u8 {
        self.legs
            .iter()
            .filter(|leg| of(leg))
            .fold(0, |mask, leg| mask | leg.bit())
    }

    /// Slots configured that are not in sync.
    fn out_mask(&self) -> u8 {
        let configured = (1u8 << self.raid_disks.get()) - 1;
        configured & !self.mask(Leg::is_required)
    }

    /// Whether this leg is the only one whose content counts.
    fn is_last(&self, leg: &Leg) -> bool {
        !self
            .legs
            .iter()
            .any(|other| other.index != leg.index && other.state() == LegState::InSync)
    }

    fn report(&self, event: &'static str, object: String, text: String, warn: bool) {
        let change = StateChange {
            event,
            object,
            text,
            warn,
        };
        let mut news = self.news.borrow_mut();
        if news.len() >= EVENTS_KEPT {
            news.pop_front();
        }
        news.push_back(Event::State(change));
        drop(news);
        let waker = self.news_waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn report_leg(&self, event: &'static str, leg: &Leg, text: String, warn: bool) {
        self.report(
            event,
            format!("{} {}", self.options.volume, leg.name()),
            text,
            warn,
        );
    }

    /// The array's shape: what every leg in use can do.
    fn refresh_geometry(&self) {
        let mut shape = Geometry::plain(self.identity.size);
        let in_use = self.legs.iter().filter(|leg| leg.is_required());
        let (mut cache, mut first) = (false, true);
        for device in in_use.filter_map(Leg::device) {
            let leg = device.geometry();
            if first {
                shape = Geometry {
                    sectors: self.identity.size,
                    ..leg
                };
                first = false;
            }
            shape.logical_block_bytes = shape.logical_block_bytes.max(leg.logical_block_bytes);
            shape.physical_block_bytes = shape.physical_block_bytes.max(leg.physical_block_bytes);
            shape.max_transfer_sectors = shape.max_transfer_sectors.min(leg.max_transfer_sectors);
            cache |= leg.write_cache;
            shape.fua &= leg.fua;
            shape.discard &= leg.discard;
            shape.discard_zeroes &= leg.discard_zeroes;
        }
        shape.write_cache = cache;
        self.geometry.set(shape);
    }

    /// Why nothing is accepted any more, if so.
    fn closed(&self) -> Option<Kind> {
        if self.failed.borrow().is_some() {
            Some(Kind::Refused(Refusal::NotOwner))
        } else if self.stopping.get() {
            Some(Kind::Closed)
        } else {
            None
        }
    }

    /// Something changed that may let held writes, acknowledgements or tasks go on.
    fn stir(&self) {
        self.settle_all();
        self.pump();
        self.pump_reads();
        self.changed.notify();
    }

    fn read_ctx() -> IoCtx {
        IoCtx {
            class: Class::Background,
            ..IoCtx::background()
        }
    }
}

fn sectors_of(data: &IoVec) -> u64 {
    data.len() as u64 / SECTOR_BYTES
}

/// Tokens of the array's joins: what kind of operation, which one, on which leg.
const TOKEN_READ: u64 = 1;

fn token(id: u64, leg: LegIndex, kind: u64) -> u64 {
    id << 3 | u64::from(leg.0) << 1 | kind
}

impl Joiner for Array {
    fn joined(&self, token: u64, result: IoResult) {
        let leg = LegIndex((token >> 1 & 3) as u8);
        // News first: an answer counts by what was known of the cache when it came.
        self.drain_events(leg);
        if token & TOKEN_READ == TOKEN_READ {
            self.read_answered(token >> 3, leg, result);
        } else {
            self.write_answered(token >> 3, leg, result);
        }
    }
}

impl BlockDevice for Array {
    fn geometry(&self) -> Geometry {
        self.geometry.get()
    }

    fn submit(&self, op: Op, ctx: IoCtx) -> Completion {
        if let Some(kind) = self.closed() {
            return Completion::refused(kind);
        }
        match op {
            Op::Read { at, sectors } => self.read(at, sectors, ctx, None),
            Op::Write { at, data, want } => {
                if data.len() as u64 % SECTOR_BYTES != 0 {
                    return Completion::refused(Kind::Refused(Refusal::Range));
                }
                let sectors = sectors_of(&data);
                self.write(at, sectors, write::Body::Data(data, want), ctx)
            }
            Op::Discard { at, sectors } => self.write(at, sectors, write::Body::Discard, ctx),
            Op::WriteZeroes { at, sectors } => self.write(at, sectors, write::Body::Zeroes, ctx),
            Op::Flush => self.flush(),
            Op::Fence => self.fence(),
        }
    }

    fn tainted(&self, range: Range<Sector>) -> bool {
        self.legs
            .iter()
            .filter(|leg| leg.takes_writes() || leg.state() == LegState::Leaving)
            .any(|leg| {
                let data = leg.places().data.0;
                let on_leg = Sector(range.start.0 + data)..Sector(range.end.0 + data);
                leg.device().is_some_and(|device| device.tainted(on_leg))
            })
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        match self.news.borrow_mut().pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                *self.news_waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Mirror for Array {
    fn legs(&self) -> u8 {
        self.raid_disks.get()
    }

    fn in_sync(&self, leg: LegIndex) -> bool {
        leg.0 < 2 && self.leg(leg).state() == LegState::InSync
    }

    fn leg_name(&self, leg: LegIndex) -> String {
        match leg.0 < 2 {
            true => self.leg(leg).name(),
            false => format!("leg {}", leg.0),
        }
    }

    fn read_leg(&self, leg: LegIndex, at: Sector, sectors: u32, ctx: IoCtx) -> Completion {
        match self.closed() {
            Some(kind) => Completion::refused(kind),
            None if self.in_sync(leg) => self.read(at, sectors, ctx, Some(leg)),
            None => self.read_outside(leg, at, sectors, ctx),
        }
    }

    fn rewrite(
        &self,
        leg: LegIndex,
        at: Sector,
        good: IoVec,
        since: Seq,
        ctx: IoCtx,
    ) -> Completion {
        match self.closed() {
            Some(kind) => Completion::refused(kind),
            None if !self.in_sync(leg) => Completion::refused(Kind::Closed),
            None => self.rewrite_leg(leg, at, good, since, ctx),
        }
    }

    fn predirty(&self, range: Range<Sector>, _ctx: IoCtx) -> Completion {
        match self.closed() {
            Some(kind) => Completion::refused(kind),
            None => self.set_bits(range),
        }
    }

    fn set_allocation(&self, map: Weak<dyn Allocation>) {
        *self.allocation.borrow_mut() = Some(map);
    }

    fn recovered(&self) {
        self.recovered.set(true);
        // The fence came first.
        self.recorded_isids.take();
        self.spawn_resync();
    }
}
