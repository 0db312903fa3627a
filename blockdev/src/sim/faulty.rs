//! A device on a [`Medium`] that takes its time, lies, hangs and loses power, all by its seed.
//!
//! It is what `raid` sees of a leg, or a store of its device. A write is *in flight* until it is
//! answered, and reaches the medium at the moment of its answer; unless something happens first:
//!
//! - its deadline passes: it is answered [`Kind::Late`] and lands later (a taint) or, if the
//!   device is fenced before, then;
//! - the device loses power: each write in flight reaches the cache or not, and of the cache any
//!   mixture survives;
//! - the node that sent it dies ([`FaultyDevice::sender_died`]): it becomes a *ghost* and lands
//!   within [`Faults::ghost`], whatever the next run writes meanwhile, unless a fence comes first.

use super::chance::{Chance, Latency, PerMillion};
use super::medium::Medium;
use crate::completion::{self, Promise};
use crate::rt::Timed;
use crate::{
    Applied, BlockDevice, Completion, Done, Durability, Event, Geometry, Instant, IoCtx, IoError,
    IoResult, IoVec, Kind, Op, PathCause, Pool, Refusal, Rt, Sector, Seq, SECTOR_BYTES,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What can go wrong, and how long things take.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Service time of a read.
    pub read: Latency,
    /// Of a write.
    pub write: Latency,
    /// Of a flush.
    pub flush: Latency,
    /// Of a fence.
    pub fence: Latency,
    /// How long the write of a dead sender may haunt.
    pub ghost: Latency,
    /// A write is answered and not stored.
    pub lost_write: PerMillion,
    /// A write is answered and stored elsewhere.
    pub misdirected_write: PerMillion,
    /// A write is answered and only some of its sectors are stored.
    pub torn_write: PerMillion,
    /// A sector of what is read turns out to be unreadable.
    pub medium_error: PerMillion,
    /// An operation is answered [`Kind::Again`].
    pub busy: PerMillion,
}

impl Faults {
    /// Nothing goes wrong: reads and writes of 100 to 300 µs, flushes of 1 to 3 ms.
    pub fn none() -> Faults {
        let us = Duration::from_micros;
        Faults {
            read: Latency::between(us(100), us(300)),
            write: Latency::between(us(100), us(300)),
            flush: Latency::between(us(1000), us(3000)),
            fence: Latency::between(us(1000), us(5000)),
            ghost: Latency::between(us(0), us(2_000_000)),
            lost_write: PerMillion(0),
            misdirected_write: PerMillion(0),
            torn_write: PerMillion(0),
            medium_error: PerMillion(0),
            busy: PerMillion(0),
        }
    }

    /// Nothing goes wrong and nothing takes time.
    pub fn instant() -> Faults {
        let none = Latency::default();
        Faults {
            read: none,
            write: none,
            flush: none,
            fence: none,
            ghost: none,
            ..Faults::none()
        }
    }
}

/// What an outage looks like from above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Every operation fails at once: all paths are down.
    Errors,
    /// Nothing is answered before its deadline.
    Silence,
}

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct FaultyDevice {
    shared: Rc<Shared>,
}

struct Shared {
    rt: Rt,
    pool: Pool,
    medium: Medium,
    geometry: Geometry,
    faults: Cell<Faults>,
    chance: Chance,
    in_flight: RefCell<BTreeMap<u64, InFlight>>,
    next: Cell<u64>,
    outage: Cell<Option<Outage>>,
    hung: Cell<bool>,
    events: RefCell<VecDeque<Event>>,
    reader: RefCell<Option<Waker>>,
    itself: Weak<Shared>,
}

struct InFlight {
    op: Op,
    /// The bytes of a write or discard, out of the pool: the medium's cache is not our memory.
    bytes: Rc<[u8]>,
    /// For a flush: what it covers.
    asked: super::medium::Moment,
    deadline: Instant,
    /// `None`: answered late, or its sender is dead.
    promise: Option<Promise>,
    /// The time at which it is done has come, but the device hangs or is silent.
    is_due: bool,
    /// Lost with the power: it waits for its deadline, and nothing of it lands.
    is_dead: bool,
}

impl InFlight {
    fn range(&self) -> Range<Sector> {
        match &self.op {
            Op::Read { at, sectors } => at.span(u64::from(*sectors)),
            Op::Write { at, data, .. } => at.span(data.len() as u64 / SECTOR_BYTES),
            Op::Discard { at, sectors } | Op::WriteZeroes { at, sectors } => at.span(*sectors),
            Op::Flush | Op::Fence => Sector(0)..Sector(0),
        }
    }

    fn changes(&self) -> bool {
        matches!(
            self.op,
            Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. }
        )
    }

    fn may_land(&self) -> bool {
        self.changes() && !self.is_dead
    }

    /// Answered or given up, and yet to come.
    fn taints(&self) -> bool {
        self.promise.is_none() && self.may_land()
    }
}

/// Tokens of timers: two for each operation.
const DEADLINE: u64 = 1;

impl FaultyDevice {
    /// A device on `medium`, as large as that. All it draws comes from `seed`.
    pub fn new(rt: Rt, pool: Pool, medium: Medium, faults: Faults, seed: u64) -> FaultyDevice {
        let geometry = Geometry::plain(medium.sectors());
        FaultyDevice::with_geometry(rt, pool, medium, geometry, faults, seed)
    }

    /// The same with a given shape.
    ///
    /// # Panics
    /// If the medium is smaller than that.
    pub fn with_geometry(
        rt: Rt,
        pool: Pool,
        medium: Medium,
        geometry: Geometry,
        faults: Faults,
        seed: u64,
    ) -> FaultyDevice {
        assert!(geometry.sectors <= medium.sectors(), "medium too small");
        let shared = Rc::new_cyclic(|itself| Shared {
            rt,
            pool,
            medium,
            geometry,
            faults: Cell::new(faults),
            chance: Chance::new(seed),
            in_flight: RefCell::default(),
            next: Cell::new(0),
            outage: Cell::new(None),
            hung: Cell::new(false),
            events: RefCell::default(),
            reader: RefCell::default(),
            itself: itself.clone(),
        });
        FaultyDevice { shared }
    }

    /// The medium.
    pub fn medium(&self) -> &Medium {
        &self.shared.medium
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.faults.set(faults);
    }

    /// Operations not done yet, those answered late included.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.borrow().len()
    }

    /// Nothing is done any more until [`FaultyDevice::unhang`]; what is due waits.
    pub fn hang(&self) {
        self.shared.hung.set(true);
    }

    /// Does what was due meanwhile, in the order in which it was asked for.
    pub fn unhang(&self) {
        self.shared.hung.set(false);
        if self.shared.outage.get() != Some(Outage::Silence) {
            self.shared.do_what_is_due();
        }
    }

    /// Cuts the device off without taking its power. With [`Outage::Errors`] what is in flight
    /// fails with an unknown outcome and may still land.
    pub fn cut_off(&self, outage: Outage) {
        self.shared.outage.set(Some(outage));
        if outage == Outage::Errors {
            self.shared.fail_in_flight();
        }
    }

    /// Ends [`FaultyDevice::cut_off`].
    pub fn reconnect(&self) {
        self.shared.outage.set(None);
        if !self.shared.hung.get() {
            self.shared.do_what_is_due();
        }
    }

    /// Takes its power: what of the writes in flight and unflushed survives is drawn from `seed`.
    pub fn power_cut(&self, seed: u64, outage: Outage) {
        let chance = Chance::new(seed);
        let in_flight = std::mem::take(&mut *self.shared.in_flight.borrow_mut());
        self.shared.outage.set(Some(outage));
        self.shared.hung.set(false);
        let mut promises = Vec::new();
        for (id, mut op) in in_flight {
            if op.may_land() && chance.coin() {
                self.shared.store(&op, None);
            }
            match (op.promise.take(), outage) {
                (Some(promise), Outage::Errors) => promises.push((promise, op)),
                (Some(promise), Outage::Silence) => {
                    op.promise = Some(promise);
                    op.is_dead = true;
                    self.shared.in_flight.borrow_mut().insert(id, op);
                }
                (None, _) => {}
            }
        }
        self.shared.medium.power_cut(chance.next());
        for (promise, op) in promises {
            promise.complete(Err(op.lost()));
        }
    }

    /// Power is back. What was in flight before is gone, and whoever is above is told that the
    /// cache was lost.
    pub fn restart(&self) {
        let dead = std::mem::take(&mut *self.shared.in_flight.borrow_mut());
        self.shared.outage.set(None);
        self.shared.tell(Event::CacheLost);
        for (_, mut op) in dead {
            if let Some(promise) = op.promise.take() {
                promise.complete(Err(op.lost()));
            }
        }
    }

    /// The node that sent what is in flight died. A new runtime's device on the same medium takes
    /// over what this returns with [`FaultyDevice::haunt`].
    pub fn sender_died(&self) -> Ghosts {
        let mut ghosts = Vec::new();
        for (_, op) in std::mem::take(&mut *self.shared.in_flight.borrow_mut()) {
            if op.may_land() && self.shared.chance.coin() {
                ghosts.push((op.op.clone(), op.bytes.clone()));
            }
        }
        Ghosts(ghosts)
    }

    /// Lets the writes of a dead sender land within [`Faults::ghost`] from now.
    pub fn haunt(&self, ghosts: Ghosts) {
        for (op, bytes) in ghosts.0 {
            let ghost = InFlight {
                op,
                bytes,
                asked: self.shared.medium.tick(),
                deadline: Instant::FAR,
                promise: None,
                is_due: false,
                is_dead: false,
            };
            let time = self.shared.faults.get().ghost.draw(&self.shared.chance);
            self.shared.begin(ghost, time);
        }
    }

    /// Puts news into the device's mouth.
    pub fn tell(&self, event: Event) {
        self.shared.tell(event);
    }
}

/// Writes of a sender that died; see [`FaultyDevice::sender_died`].
pub struct Ghosts(Vec<(Op, Rc<[u8]>)>);

impl Ghosts {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl BlockDevice for FaultyDevice {
    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    fn submit(&self, op: Op, ctx: IoCtx) -> Completion {
        self.shared.submit(op, ctx)
    }

    fn tainted(&self, range: Range<Sector>) -> bool {
        let in_flight = self.shared.in_flight.borrow();
        in_flight.values().any(|op| {
            let its = op.range();
            op.taints() && its.start < range.end && range.start < its.end
        })
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        match self.shared.events.borrow_mut().pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                *self.shared.reader.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Shared {
    fn submit(&self, op: Op, ctx: IoCtx) -> Completion {
        let faults = self.faults.get();
        let accepts = |at: Sector, sectors| self.geometry.accepts(at, sectors);
        let (is_fine, latency) = match &op {
            Op::Read { at, sectors } => (accepts(*at, u64::from(*sectors)), faults.read),
            Op::Write { at, data, .. } => {
                let sectors = data.len() as u64 / SECTOR_BYTES;
                let is_whole = data.len() as u64 % SECTOR_BYTES == 0;
                (is_whole && accepts(*at, sectors), faults.write)
            }
            Op::Discard { at, sectors } | Op::WriteZeroes { at, sectors } => {
                (accepts(*at, *sectors), faults.write)
            }
            Op::Flush => (true, faults.flush),
            Op::Fence => (true, faults.fence),
        };
        if !is_fine {
            return Completion::refused(Kind::Refused(Refusal::Range));
        }
        if matches!(op, Op::Discard { .. }) && !self.geometry.discard {
            return Completion::refused(Kind::Refused(Refusal::NotSupported));
        }
        if self.outage.get() == Some(Outage::Errors) {
            return Completion::refused(Kind::Path(PathCause::AllDown));
        }
        if self.chance.happens(faults.busy) {
            return Completion::refused(Kind::Again {
                after: Duration::from_millis(1),
            });
        }
        let (promise, completion) = completion::pair();
        let bytes = self.bytes_of(&op);
        let op = InFlight {
            op: without_data(op),
            bytes,
            asked: self.medium.tick(),
            deadline: ctx.deadline,
            promise: Some(promise),
            is_due: false,
            is_dead: false,
        };
        let time = latency.draw(&self.chance);
        self.begin(op, time);
        completion
    }

    fn begin(&self, op: InFlight, time: Duration) {
        let id = self.next.replace(self.next.get() + 1);
        let (now, deadline) = (self.rt.now(), op.deadline);
        self.in_flight.borrow_mut().insert(id, op);
        let owner: Weak<dyn Timed> = self.itself.clone();
        if deadline != Instant::FAR {
            self.rt.arm(deadline, owner.clone(), id << 1 | DEADLINE);
        }
        if time.is_zero() {
            self.due(id);
        } else {
            self.rt.arm(now + time, owner, id << 1);
        }
    }

    fn bytes_of(&self, op: &Op) -> Rc<[u8]> {
        match op {
            Op::Write { data, .. } => data.to_vec().into(),
            Op::WriteZeroes { sectors, .. } => vec![0; (sectors * SECTOR_BYTES) as usize].into(),
            Op::Discard { at, sectors } => {
                if self.geometry.discard_zeroes || self.chance.coin() {
                    vec![0; (sectors * SECTOR_BYTES) as usize].into()
                } else {
                    self.medium.peek(*at, *sectors).into()
                }
            }
            _ => Rc::from([]),
        }
    }

    /// The time has come at which an operation is done.
    fn due(&self, id: u64) {
        {
            let mut in_flight = self.in_flight.borrow_mut();
            let Some(op) = in_flight.get_mut(&id) else {
                return;
            };
            if op.is_dead {
                return;
            }
            let is_silent = self.outage.get() == Some(Outage::Silence);
            // A ghost is past the network: only a hanging disk stops it.
            if self.hung.get() || (is_silent && op.promise.is_some()) {
                op.is_due = true;
                return;
            }
        }
        self.carry_out(id);
    }

    fn do_what_is_due(&self) {
        let due: Vec<u64> = {
            let in_flight = self.in_flight.borrow();
            let due = in_flight.iter().filter(|(_, op)| op.is_due);
            due.map(|(id, _)| *id).collect()
        };
        for id in due {
            self.carry_out(id);
        }
    }

    fn carry_out(&self, id: u64) {
        let Some(mut op) = self.in_flight.borrow_mut().remove(&id) else {
            return;
        };
        if matches!(op.op, Op::Fence) {
            self.end_taints();
        }
        let promise = op.promise.take();
        let result = self.effect(&op, id);
        if let Some(promise) = promise {
            promise.complete(result);
        }
    }

    fn effect(&self, op: &InFlight, id: u64) -> IoResult {
        let faults = self.faults.get();
        match &op.op {
            Op::Read { at, sectors } => {
                let range = at.span(u64::from(*sectors));
                if *sectors > 0 && self.chance.happens(faults.medium_error) {
                    let which = self.chance.below(u64::from(*sectors));
                    self.medium.break_sector(*at + which);
                }
                match self.medium.first_bad(range) {
                    Some(first_bad) => Err(IoError::not_applied(Kind::Medium { first_bad })),
                    None => Ok(Done::Read(
                        self.medium.read(&self.pool, *at, *sectors),
                        Seq(id),
                    )),
                }
            }
            Op::Write { want, .. } => {
                self.store(op, Some(*want));
                Ok(Done::Written)
            }
            Op::Discard { .. } | Op::WriteZeroes { .. } => {
                self.store(op, Some(Durability::Cache));
                Ok(Done::Discarded)
            }
            Op::Flush => {
                self.medium.flush(op.asked);
                Ok(Done::Flushed)
            }
            Op::Fence => Ok(Done::Fenced),
        }
    }

    /// Brings a write to the medium; `answer` is what its answer promises, if it gets one.
    fn store(&self, op: &InFlight, answer: Option<Durability>) {
        let faults = self.faults.get();
        let mut at = op.range().start;
        let is_lost = self.chance.happens(faults.lost_write);
        let is_torn = self.chance.happens(faults.torn_write);
        if self.chance.happens(faults.misdirected_write) {
            let block = u64::from(self.geometry.physical_block_bytes) / SECTOR_BYTES;
            let room = self.geometry.sectors - op.bytes.len() as u64 / SECTOR_BYTES;
            at = Sector(self.chance.below(room / block + 1) * block);
        }
        let keep = || !is_lost && (!is_torn || self.chance.coin());
        let taken = self.medium.write(at, &op.bytes, keep);
        // For a flush that comes later it is in the cache like any other.
        self.medium.landed(&taken);
        if answer == Some(Durability::Fua) || !self.geometry.write_cache {
            self.medium.force(&taken);
        }
    }

    /// A fence: every write that was answered late, or whose sender is dead, lands now or never.
    fn end_taints(&self) {
        let ids: Vec<u64> = {
            let in_flight = self.in_flight.borrow();
            let tainting = in_flight.iter().filter(|(_, op)| op.taints());
            tainting.map(|(id, _)| *id).collect()
        };
        for id in ids {
            let op = self.in_flight.borrow_mut().remove(&id);
            if let Some(op) = op {
                if self.chance.coin() {
                    self.store(&op, None);
                }
            }
        }
    }

    fn fail_in_flight(&self) {
        let mut promises = Vec::new();
        {
            let mut in_flight = self.in_flight.borrow_mut();
            for op in in_flight.values_mut() {
                if let Some(promise) = op.promise.take() {
                    promises.push((promise, op.lost()));
                }
            }
            in_flight.retain(|_, op| op.may_land());
        }
        for (promise, error) in promises {
            promise.complete(Err(error));
        }
    }

    fn tell(&self, event: Event) {
        self.events.borrow_mut().push_back(event);
        let reader = self.reader.borrow_mut().take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Timed for Shared {
    fn fire(&self, token: u64, _due: Instant) {
        let id = token >> 1;
        if token & DEADLINE == 0 {
            self.due(id);
            return;
        }
        let late = {
            let mut in_flight = self.in_flight.borrow_mut();
            let Some(op) = in_flight.get_mut(&id) else {
                return;
            };
            let error = IoError {
                kind: Kind::Late,
                ..op.lost()
            };
            let promise = op.promise.take();
            if !op.may_land() {
                in_flight.remove(&id);
            }
            promise.map(|p| (p, error))
        };
        if let Some((promise, error)) = late {
            promise.complete(Err(error));
        }
    }
}

impl InFlight {
    fn lost(&self) -> IoError {
        let applied = if self.changes() {
            Applied::Unknown
        } else {
            Applied::No
        };
        IoError {
            kind: Kind::Path(PathCause::AllDown),
            applied,
        }
    }
}

/// The operation without the pages it carries: they go back to the pool.
fn without_data(op: Op) -> Op {
    match op {
        Op::Write { at, data, want } => Op::Write {
            at,
            data: IoVec::zeros(data.len()),
            want,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::VirtualRt;

    struct Bed {
        world: VirtualRt,
        pool: Pool,
        device: FaultyDevice,
    }

    fn bed(faults: Faults) -> Bed {
        let world = VirtualRt::new(1);
        let pool = Pool::new(1 << 20);
        let medium = Medium::new(4096);
        let device = FaultyDevice::new(world.rt(), pool.clone(), medium, faults, 7);
        Bed {
            world,
            pool,
            device,
        }
    }

    impl Bed {
        fn write(&self, at: u64, fill: u8, want: Durability) -> Op {
            Op::Write {
                at: Sector(at),
                data: self.pool.copy_now(&[fill; 4096]),
                want,
            }
        }

        fn run(&self, op: Op) -> IoResult {
            self.world
                .block_on(self.device.submit(op, IoCtx::foreground()))
        }

        fn fill(&self, at: u64) -> u8 {
            self.device.medium().peek(Sector(at), 1)[0]
        }

        fn by(&self, ms: u64) -> IoCtx {
            IoCtx {
                deadline: self.world.now() + Duration::from_millis(ms),
                ..IoCtx::foreground()
            }
        }
    }

    #[test]
    fn an_unflushed_write_may_go_with_the_power_and_a_forced_one_not() {
        let mut kept = 0;
        for seed in 0..50 {
            let bed = bed(Faults::none());
            bed.run(bed.write(0, 1, Durability::Fua)).expect("written");
            bed.run(bed.write(8, 2, Durability::Cache))
                .expect("written");
            bed.run(Op::Flush).expect("flushed");
            bed.run(bed.write(16, 3, Durability::Cache))
                .expect("written");
            bed.device.power_cut(seed, Outage::Errors);
            let down = bed.run(Op::Flush).expect_err("down");
            assert_eq!(down, IoError::not_applied(Kind::Path(PathCause::AllDown)));
            bed.device.restart();
            assert_eq!((bed.fill(0), bed.fill(8)), (1, 2));
            kept += u32::from(bed.fill(16) == 3);
            let event = bed.world.block_on({
                let device = bed.device.clone();
                std::future::poll_fn(move |cx| device.poll_event(cx))
            });
            assert_eq!(event, Event::CacheLost);
        }
        assert!((5..45).contains(&kept), "{kept} of 50");
    }

    #[test]
    fn a_hanging_device_is_late_and_its_write_taints_until_the_fence() {
        let bed = bed(Faults::none());
        bed.device.hang();
        let op = bed.write(0, 1, Durability::Cache);
        let late = bed.world.block_on(bed.device.submit(op, bed.by(200)));
        assert_eq!(late.expect_err("late"), IoError::unknown(Kind::Late));
        assert!(bed.device.tainted(Sector(7)..Sector(8)));
        assert!(!bed.device.tainted(Sector(8)..Sector(9)));
        bed.device.unhang();
        bed.run(Op::Fence).expect("fenced");
        assert!(!bed.device.tainted(Sector(0)..Sector(4096)));
        assert_eq!(bed.device.in_flight(), 0);
    }

    #[test]
    fn a_late_read_leaves_nothing_behind() {
        let bed = bed(Faults::none());
        bed.device.cut_off(Outage::Silence);
        let op = Op::Read {
            at: Sector(0),
            sectors: 8,
        };
        let late = bed.world.block_on(bed.device.submit(op, bed.by(60)));
        assert_eq!(late.expect_err("late"), IoError::not_applied(Kind::Late));
        assert_eq!(bed.device.in_flight(), 0);
        bed.device.reconnect();
        assert!(bed.run(Op::Flush).is_ok());
    }

    #[test]
    fn ghosts_land_after_their_sender_died_unless_fenced() {
        let bed = bed(Faults::none());
        for i in 0..32 {
            let op = bed.write(i * 8, 1, Durability::Cache);
            drop(bed.device.submit(op, IoCtx::foreground()));
        }
        let ghosts = bed.device.sender_died();
        assert!(!ghosts.is_empty() && ghosts.len() < 32);
        let many = ghosts.len();
        bed.device.haunt(ghosts);
        assert!(bed.device.tainted(Sector(0)..Sector(4096)));
        bed.world.run_for(Duration::from_secs(3));
        let landed = (0..32).filter(|i| bed.fill(i * 8) == 1).count();
        assert_eq!(landed, many);

        let op = bed.write(2048, 2, Durability::Cache);
        drop(bed.device.submit(op, IoCtx::foreground()));
        let ghosts = bed.device.sender_died();
        bed.device.haunt(ghosts);
        bed.run(Op::Fence).expect("fenced");
        let after = bed.fill(2048);
        bed.world.run_for(Duration::from_secs(3));
        assert_eq!(bed.fill(2048), after, "nothing lands after the fence");
    }

    #[test]
    fn silent_faults_are_silent() {
        let odds = PerMillion(1_000_000);
        let lost = Faults {
            lost_write: odds,
            ..Faults::none()
        };
        let lost = bed(lost);
        lost.run(lost.write(0, 1, Durability::Fua))
            .expect("it says");
        assert_eq!(lost.fill(0), 0);

        let torn = Faults {
            torn_write: odds,
            ..Faults::none()
        };
        let torn = bed(torn);
        torn.run(torn.write(0, 1, Durability::Fua))
            .expect("it says");
        let stored = (0..8).filter(|&s| torn.fill(s) == 1).count();
        assert!((1..8).contains(&stored));

        let elsewhere = Faults {
            misdirected_write: odds,
            ..Faults::none()
        };
        let elsewhere = bed(elsewhere);
        elsewhere
            .run(elsewhere.write(0, 1, Durability::Fua))
            .expect("it says");
        let found = (0..512).filter(|&b| elsewhere.fill(b * 8) == 1).count();
        assert_eq!(found, 1);
    }

    #[test]
    fn a_medium_error_names_its_sector_and_is_cured_by_writing() {
        let bed = bed(Faults::none());
        bed.device.medium().break_sector(Sector(3));
        let op = Op::Read {
            at: Sector(0),
            sectors: 8,
        };
        let error = bed.run(op.clone()).expect_err("unreadable");
        let first_bad = Sector(3);
        assert_eq!(error, IoError::not_applied(Kind::Medium { first_bad }));
        bed.run(bed.write(0, 1, Durability::Cache))
            .expect("written");
        assert!(bed.run(op).is_ok());
    }

    #[test]
    fn one_seed_is_one_history() {
        let history = |seed| {
            let bed = bed(Faults::none());
            let device = FaultyDevice::new(
                bed.world.rt(),
                bed.pool.clone(),
                Medium::new(4096),
                Faults {
                    torn_write: PerMillion(300_000),
                    ..Faults::none()
                },
                seed,
            );
            let mut seen = Vec::new();
            for i in 0..50 {
                let op = bed.write(i * 8, i as u8, Durability::Cache);
                let done = bed.world.block_on(device.submit(op, IoCtx::foreground()));
                seen.push((bed.world.now(), done.is_ok()));
            }
            device.power_cut(seed, Outage::Errors);
            (seen, device.medium().peek(Sector(0), 400))
        };
        assert_eq!(history(3), history(3));
        assert_ne!(history(3), history(4));
    }
}
