//! Simulated legs with a volatile cache, ghosts and hangs, and a witness in memory.

// Each test binary uses a part of it.
#![allow(dead_code)]

pub(crate) mod bench;

use blockdev::rt::Rt;
use blockdev::{
    completion, BlockDevice, Completion, Done, Durability, Event, Geometry, Instant, IoCtx,
    IoError, IoVec, Kind, LocalFuture, Op, PathCause, Pool, Promise, Refusal, Sector, Seq,
};
use raid::witness::{Witness, WitnessError, WitnessRecord};
use raid::Uuid;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// SplitMix64.
pub(crate) struct Rng(Cell<u64>);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        // Mixed, or the stream of a seed would be its neighbour's, one step on.
        Rng(Cell::new(Rng::mix(seed ^ 0x6A09_E667_F3BC_C908)))
    }

    fn mix(mut z: u64) -> u64 {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0.set(state);
        Rng::mix(state)
    }

    pub(crate) fn below(&self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How long requests to a leg that is the only one wait for its paths (`no_path_retry`).
const QUEUED_FOR: Duration = Duration::from_secs(60);

pub(crate) type Sectors = BTreeMap<u64, [u8; 512]>;

/// A leg that can lose power, hang, be gone, and deliver late what it was sent before.
pub(crate) struct SimLeg {
    me: std::rc::Weak<SimLeg>,
    rt: Rt,
    pool: Pool,
    rng: Rng,
    geometry: Geometry,
    current: RefCell<Sectors>,
    durable: RefCell<Sectors>,
    unflushed: RefCell<Vec<(u64, [u8; 512])>>,
    queue: RefCell<BTreeMap<u64, (Op, Promise)>>,
    /// Sent before the hang, still to come.
    stalled: RefCell<Vec<u64>>,
    next: Cell<u64>,
    pub(crate) hung: Cell<bool>,
    pub(crate) down: Cell<bool>,
    /// Told to be the only one: what it is asked while it is down waits for it to come back.
    alone: Cell<bool>,
    waiting: RefCell<Vec<(Op, Promise)>>,
    queues_until: Cell<Instant>,
    /// The next request is answered that the leg is busy for so long.
    pub(crate) busy_for: Cell<Option<Duration>>,
    pub(crate) latency_us: Cell<u64>,
    pub(crate) bad: RefCell<Vec<u64>>,
    pub(crate) full: Cell<bool>,
    /// A write that begins here is refused for want of space.
    pub(crate) full_at: Cell<u64>,
    /// Where a write of an earlier time may still land, until fenced.
    pub(crate) taints: RefCell<Vec<Range<Sector>>>,
    /// Operations that are taken and never answered while this says so.
    stuck: Cell<fn(&Op) -> bool>,
    events: RefCell<VecDeque<Event>>,
    waker: RefCell<Option<Waker>>,
    pub(crate) log: RefCell<Vec<String>>,
    pub(crate) reads: Cell<u64>,
    pub(crate) fences: Cell<u64>,
}

impl SimLeg {
    pub(crate) fn new(rt: &Rt, pool: &Pool, sectors: u64, seed: u64) -> Rc<SimLeg> {
        Rc::new_cyclic(|me| SimLeg {
            me: me.clone(),
            rt: rt.clone(),
            pool: pool.clone(),
            rng: Rng::new(seed),
            geometry: Geometry::plain(sectors),
            current: RefCell::default(),
            durable: RefCell::default(),
            unflushed: RefCell::default(),
            queue: RefCell::default(),
            stalled: RefCell::default(),
            next: Cell::new(0),
            hung: Cell::new(false),
            down: Cell::new(false),
            alone: Cell::new(false),
            waiting: RefCell::default(),
            queues_until: Cell::new(Instant(0)),
            busy_for: Cell::new(None),
            latency_us: Cell::new(1000),
            bad: RefCell::default(),
            full: Cell::new(false),
            full_at: Cell::new(u64::MAX),
            taints: RefCell::default(),
            stuck: Cell::new(|_| false),
            events: RefCell::default(),
            waker: RefCell::default(),
            log: RefCell::default(),
            reads: Cell::new(0),
            fences: Cell::new(0),
        })
    }

    pub(crate) fn peek(&self, sector: u64) -> [u8; 512] {
        self.current
            .borrow()
            .get(&sector)
            .copied()
            .unwrap_or([0; 512])
    }

    pub(crate) fn poke(&self, sector: u64, bytes: &[u8; 512]) {
        self.current.borrow_mut().insert(sector, *bytes);
        self.durable.borrow_mut().insert(sector, *bytes);
    }

    pub(crate) fn bytes(&self, sector: u64, sectors: u64) -> Vec<u8> {
        (sector..sector + sectors)
            .flat_map(|s| self.peek(s))
            .collect()
    }

    pub(crate) fn blank(&self) {
        self.current.borrow_mut().clear();
        self.durable.borrow_mut().clear();
        self.unflushed.borrow_mut().clear();
    }

    /// All that a copy of it made now would hold.
    pub(crate) fn image(&self) -> Sectors {
        self.current.borrow().clone()
    }

    /// Holds what it held when the image was made. All sessions ended for it, and a living initiator
    /// hears of that.
    pub(crate) fn put_back(&self, image: Sectors) {
        self.unflushed.borrow_mut().clear();
        *self.durable.borrow_mut() = image.clone();
        *self.current.borrow_mut() = image;
        self.end_queue(|_| false);
        self.tell(Event::CacheLost);
    }

    fn tell(&self, event: Event) {
        self.events.borrow_mut().push_back(event);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Power goes and comes: of what was not flushed any granules survive. What was under way is
    /// gone. A living initiator hears of it.
    pub(crate) fn power_cycle(&self, tell: bool) {
        self.lose_cache();
        self.end_queue(|_| false);
        if tell {
            self.tell(Event::CacheLost);
        }
    }

    fn lose_cache(&self) {
        let unflushed = std::mem::take(&mut *self.unflushed.borrow_mut());
        let mut durable = self.durable.borrow_mut();
        let mut fate: BTreeMap<(usize, u64), bool> = BTreeMap::new();
        let mut last = (0, u64::MAX);
        for (n, (sector, bytes)) in unflushed.into_iter().enumerate() {
            // 4 KiB of one write share their fate.
            if sector / 8 != last.1 || sector % 8 == 0 {
                last = (n, sector / 8);
            }
            if *fate.entry(last).or_insert_with(|| self.rng.chance(40)) {
                durable.insert(sector, bytes);
            }
        }
        *self.current.borrow_mut() = durable.clone();
    }

    /// The node died: what was under way arrives or does not.
    pub(crate) fn node_died(&self) {
        self.end_queue(|leg| leg.rng.chance(50));
        self.waiting.borrow_mut().clear();
        self.events.borrow_mut().clear();
        *self.waker.borrow_mut() = None;
    }

    fn end_queue(&self, arrives: impl Fn(&SimLeg) -> bool) {
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        self.stalled.borrow_mut().clear();
        for (_, (op, promise)) in queue {
            if arrives(self) {
                let _ = self.apply(&op);
            }
            promise.complete(Err(IoError::unknown(Kind::Path(PathCause::AllDown))));
        }
    }

    pub(crate) fn go_down(&self) {
        self.down.set(true);
        let until = self.rt.now() + QUEUED_FOR;
        self.queues_until.set(until);
        if self.alone.get() {
            let queue = std::mem::take(&mut *self.queue.borrow_mut());
            self.stalled.borrow_mut().clear();
            self.waiting.borrow_mut().extend(queue.into_values());
        }
        self.end_queue(|leg| leg.rng.chance(50));
        let (me, rt) = (self.me.clone(), self.rt.clone());
        self.rt.spawn(async move {
            rt.sleep_until(until).await;
            if let Some(leg) = me.upgrade() {
                if leg.down.get() && leg.queues_until.get() == until {
                    leg.end_waiting();
                }
            }
        });
    }

    /// Its paths are there again.
    pub(crate) fn come_back(&self) {
        self.down.set(false);
        for (op, promise) in std::mem::take(&mut *self.waiting.borrow_mut()) {
            self.begin(op, promise);
        }
    }

    /// The role as the array tells it.
    pub(crate) fn set_alone(&self, alone: bool) {
        self.alone.set(alone);
        let me = self.me.clone();
        self.rt.spawn(async move {
            if let Some(leg) = me.upgrade().filter(|leg| !leg.alone.get()) {
                leg.end_waiting();
            }
        });
    }

    fn end_waiting(&self) {
        for (_, promise) in std::mem::take(&mut *self.waiting.borrow_mut()) {
            promise.complete(Err(IoError::not_applied(Kind::Path(PathCause::AllDown))));
        }
    }

    fn begin(&self, op: Op, promise: Promise) {
        let id = self.next.get() + 1;
        self.next.set(id);
        self.queue.borrow_mut().insert(id, (op, promise));
        let latency = self.latency_us.get() / 2 + self.rng.below(self.latency_us.get());
        self.finish_after(id, Duration::from_micros(latency));
    }

    /// What `stuck` names is not answered from now on, until another one is set.
    pub(crate) fn stick(&self, stuck: fn(&Op) -> bool) {
        self.stuck.set(stuck);
        let stalled = std::mem::take(&mut *self.stalled.borrow_mut());
        for id in stalled {
            self.finish_after(id, Duration::ZERO);
        }
    }

    pub(crate) fn hang(&self) {
        self.hung.set(true);
    }

    /// What was sent during the hang arrives now, each at a time of its own.
    pub(crate) fn unhang(&self) {
        self.hung.set(false);
        for id in std::mem::take(&mut *self.stalled.borrow_mut()) {
            self.finish_after(id, Duration::from_millis(self.rng.below(2500)));
        }
    }

    fn finish_after(&self, id: u64, after: Duration) {
        let me = self.me.clone();
        let rt = self.rt.clone();
        self.rt.spawn(async move {
            rt.sleep(after).await;
            if let Some(leg) = me.upgrade() {
                leg.finish(id);
            }
        });
    }

    fn finish(&self, id: u64) {
        let is_stuck = |(op, _): &(Op, Promise)| self.stuck.get()(op);
        if self.hung.get() || self.queue.borrow().get(&id).is_some_and(is_stuck) {
            self.stalled.borrow_mut().push(id);
            return;
        }
        let entry = self.queue.borrow_mut().remove(&id);
        let Some((op, promise)) = entry else { return };
        if matches!(op, Op::Fence) {
            self.fences.set(self.fences.get() + 1);
            self.taints.borrow_mut().clear();
            // Whatever is still to come of earlier writes comes now or never.
            let earlier: Vec<u64> = self
                .queue
                .borrow()
                .keys()
                .copied()
                .filter(|&k| k < id)
                .collect();
            for id in earlier {
                let is_write = matches!(self.queue.borrow()[&id].0, Op::Write { .. });
                if is_write {
                    let (op, promise) = self.queue.borrow_mut().remove(&id).expect("listed");
                    if self.rng.chance(50) {
                        let _ = self.apply(&op);
                    }
                    promise.complete(Err(IoError::unknown(Kind::Late)));
                }
            }
        }
        promise.complete(self.apply(&op));
    }

    /// Zeros where nothing was ever written.
    fn is_blank(&self, at: u64, bytes: &[u8]) -> bool {
        let end = at + bytes.len() as u64 / 512;
        let is_bad = self.bad.borrow().iter().any(|bad| (at..end).contains(bad));
        let is_empty = || self.current.borrow().range(at..end).next().is_none();
        !is_bad && is_empty() && bytes.chunks(512).all(|sector| *sector == [0; 512])
    }

    fn apply(&self, op: &Op) -> Result<Done, IoError> {
        match op {
            Op::Read { at, sectors } => {
                self.reads.set(self.reads.get() + 1);
                let range = at.0..at.0 + u64::from(*sectors);
                if let Some(&bad) = self.bad.borrow().iter().find(|s| range.contains(s)) {
                    let first_bad = Sector(bad);
                    return Err(IoError::not_applied(Kind::Medium { first_bad }));
                }
                let has_content = self.current.borrow().range(range.clone()).next().is_some();
                let data = if has_content {
                    self.pool.copy_now(&self.bytes(at.0, u64::from(*sectors)))
                } else {
                    IoVec::zeros(*sectors as usize * 512)
                };
                Ok(Done::Read(data, Seq(0)))
            }
            Op::Write { at, data, want } => {
                if self.full.get() || self.full_at.get() == at.0 {
                    return Err(IoError::not_applied(Kind::NoSpace));
                }
                self.log
                    .borrow_mut()
                    .push(format!("write {} {}", at.0, data.len() / 512));
                let bytes = data.to_vec();
                if self.is_blank(at.0, &bytes) {
                    return Ok(Done::Written); // most of a rebuild: there is nothing to change
                }
                for (n, sector) in bytes.chunks(512).enumerate() {
                    let sector: [u8; 512] = sector.try_into().expect("whole sectors");
                    let at = at.0 + n as u64;
                    self.bad.borrow_mut().retain(|&bad| bad != at);
                    if sector == [0; 512] && !self.current.borrow().contains_key(&at) {
                        continue;
                    }
                    self.current.borrow_mut().insert(at, sector);
                    if *want == Durability::Fua {
                        self.unflushed.borrow_mut().retain(|(s, _)| *s != at);
                        self.durable.borrow_mut().insert(at, sector);
                    } else {
                        self.unflushed.borrow_mut().push((at, sector));
                    }
                }
                Ok(Done::Written)
            }
            Op::Flush => {
                self.log.borrow_mut().push("flush".into());
                let unflushed = std::mem::take(&mut *self.unflushed.borrow_mut());
                self.durable.borrow_mut().extend(unflushed);
                Ok(Done::Flushed)
            }
            Op::Discard { .. } => Ok(Done::Discarded),
            Op::WriteZeroes { at, sectors } => {
                for at in at.0..at.0 + sectors {
                    self.current.borrow_mut().insert(at, [0; 512]);
                    self.unflushed.borrow_mut().push((at, [0; 512]));
                }
                Ok(Done::Discarded)
            }
            Op::Fence => Ok(Done::Fenced),
        }
    }
}

impl BlockDevice for SimLeg {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&self, op: Op, _ctx: IoCtx) -> Completion {
        if let Op::Write { at, data, .. } = &op {
            if !self.geometry.accepts(*at, data.len() as u64 / 512) {
                return Completion::refused(Kind::Refused(Refusal::Range));
            }
            self.log.borrow_mut().push(format!("sent {}", at.0));
        }
        if let Some(after) = self.busy_for.get().filter(|_| !matches!(op, Op::Fence)) {
            self.busy_for.set(None);
            return Completion::refused(Kind::Again { after });
        }
        if self.down.get() && self.alone.get() && self.rt.now() < self.queues_until.get() {
            let (promise, completion) = completion::pair();
            self.waiting.borrow_mut().push((op, promise));
            return completion;
        }
        if self.down.get() {
            return Completion::refused(Kind::Path(PathCause::AllDown));
        }
        if matches!(op, Op::Fence) && self.hung.get() {
            return Completion::refused(Kind::Refused(Refusal::NoFence("hung".into())));
        }
        let (promise, completion) = completion::pair();
        self.begin(op, promise);
        completion
    }

    fn tainted(&self, range: Range<Sector>) -> bool {
        let taints = self.taints.borrow();
        taints
            .iter()
            .any(|t| t.start < range.end && range.start < t.end)
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        match self.events.borrow_mut().pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Remembers across crashes; a record takes up to 20 ms to last.
pub(crate) struct SimWitness {
    pub(crate) rt: Rt,
    pub(crate) last: RefCell<Option<WitnessRecord>>,
    pub(crate) log: RefCell<Vec<WitnessRecord>>,
    pub(crate) delay_ms: Cell<u64>,
}

impl SimWitness {
    pub(crate) fn new(rt: &Rt) -> Rc<SimWitness> {
        Rc::new(SimWitness {
            rt: rt.clone(),
            last: RefCell::default(),
            log: RefCell::default(),
            delay_ms: Cell::new(10),
        })
    }
}

/// The witness as arrays take it.
#[derive(Clone)]
pub(crate) struct Shared(pub(crate) Rc<SimWitness>);

impl Witness for Shared {
    fn record(&self, record: WitnessRecord) -> LocalFuture<Result<(), WitnessError>> {
        let witness = self.0.clone();
        Box::pin(async move {
            let delay = Duration::from_millis(witness.delay_ms.get());
            witness.rt.sleep(delay).await;
            *witness.last.borrow_mut() = Some(record);
            witness.log.borrow_mut().push(record);
            Ok(())
        })
    }

    fn read(&self, array: Uuid) -> LocalFuture<Result<Option<WitnessRecord>, WitnessError>> {
        let found = *self.0.last.borrow();
        Box::pin(async move { Ok(found.filter(|r| r.array == array)) })
    }
}
