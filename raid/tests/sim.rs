//! A seeded world in virtual time: two legs with volatile caches, a node that dies, an oracle.
//!
//! The writer keeps one write per granule under way, each with a higher version. The oracle
//! knows what was acknowledged and what a flush has covered. After each crash a store is played:
//! fence, choose the highest version of each granule on the legs in sync, write it to both, flush,
//! `recovered`. `SIM_SEED` replays one seed, `SIM_RUNS` says how many are tried.
//!
//! Faults: a leg hangs (what it was sent arrives at odd times later, unless fenced), is down,
//! loses power; an older image of a leg is put back while it is out; both legs go down at one instant and come back within the time that the last one
//! queues; the node dies with or without a leg; a leg is absent at start. What may *not* happen:
//! both legs down for good, loss of the witness.

mod common;

use blockdev::sim::{Handle, VirtualRt};
use blockdev::{
    Allocation, BlockDevice, Completion, Done, IoCtx, IoResult, IoVec, LegIndex, LocalFuture,
    Mirror, Op, Pool, Sector, Verdict,
};
use common::{Rng, Sectors, Shared, SimLeg, SimWitness};
use raid::assemble::{assemble, AssembleError, LegInput};
use raid::format::{create, CreateOptions};
use raid::superblock::Superblock;
use raid::{Array, Options};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

const GRANULES: usize = 12;
const LEG_SECTORS: u64 = 400_000;
const CHUNK_SECTORS: u64 = 131_072;

fn place(granule: usize) -> u64 {
    (granule as u64 % 3) * CHUNK_SECTORS + (granule as u64 / 3) * 24 + 8
}

fn content(granule: usize, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    for sector in bytes.chunks_mut(512) {
        sector[..8].copy_from_slice(&(granule as u64).to_le_bytes());
        sector[8..16].copy_from_slice(&version.to_le_bytes());
    }
    bytes
}

fn version_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[8..16].try_into().expect("a granule"))
}

#[derive(Default)]
struct Oracle {
    next: [Cell<u64>; GRANULES],
    acked: [Cell<u64>; GRANULES],
    flushed: [Cell<u64>; GRANULES],
    busy: [Cell<bool>; GRANULES],
    /// A write failed upward: nobody knows which version is there.
    unsure: [Cell<bool>; GRANULES],
}

struct Store(Rc<Oracle>);

impl Allocation for Store {
    fn next_used(&self, from: Sector) -> LocalFuture<Option<Range<Sector>>> {
        let mut places: Vec<u64> = (0..GRANULES).map(place).collect();
        places.sort_unstable();
        let used = places
            .into_iter()
            .map(|at| Sector(at)..Sector(at + 8))
            .find(|r| r.end > from);
        Box::pin(async move { used })
    }

    fn judge(&self, at: Sector, data: IoVec) -> LocalFuture<Vec<Verdict>> {
        let bytes = data.to_vec();
        let oracle = &self.0;
        let judge = |n: usize| {
            let here = at.0 + n as u64 * 8;
            let Some(granule) = (0..GRANULES).find(|&g| place(g) == here) else {
                return Verdict::Free;
            };
            if oracle.busy[granule].get() || oracle.unsure[granule].get() {
                return Verdict::Unknown;
            }
            let is_last = version_of(&bytes[n * 4096..]) == oracle.acked[granule].get();
            if is_last {
                Verdict::Good
            } else {
                Verdict::Bad
            }
        };
        let verdicts = (0..bytes.len() / 4096).map(judge).collect();
        Box::pin(async move { verdicts })
    }
}

/// Since when a leg may still be writing its lost cache again.
#[derive(Default)]
struct Restoring([Cell<bool>; 2]);

impl Restoring {
    fn get(&self, leg: usize) -> bool {
        self.0[leg].get()
    }

    fn begin(&self, leg: usize) {
        self.0[leg].set(true);
    }
}

struct World {
    rt: VirtualRt,
    pool: Pool,
    rng: Rng,
    legs: [Rc<SimLeg>; 2],
    witness: Rc<SimWitness>,
    oracle: Rc<Oracle>,
    store: Rc<dyn Allocation>,
    array: RefCell<Option<Rc<Array>>>,
    writes: RefCell<Vec<(usize, u64, Handle<IoResult>)>>,
    flushes: RefCell<Vec<([u64; GRANULES], Handle<IoResult>)>>,
    /// Reads under way while a leg is hung or down: granule, version acknowledged before.
    reads: RefCell<Vec<(usize, u64, Handle<IoResult>)>>,
    restoring: Restoring,
    /// Of each leg, made at some time.
    images: [RefCell<Option<Sectors>>; 2],
    /// Out at the crash, and behind: may not count after it.
    behind: [Cell<bool>; 2],
    trace: RefCell<Vec<String>>,
}

impl World {
    fn new(seed: u64) -> World {
        let rt = VirtualRt::shuffled(seed);
        let pool = Pool::new(64 << 20);
        let leg = |n| SimLeg::new(&rt.rt(), &pool, LEG_SECTORS, seed * 2 + n);
        let legs = [leg(0), leg(1)];
        let oracle: Rc<Oracle> = Rc::default();
        let world = World {
            rng: Rng::new(seed ^ 0x5EED),
            witness: SimWitness::new(&rt.rt()),
            store: Rc::new(Store(oracle.clone())),
            rt,
            pool,
            legs,
            oracle,
            array: RefCell::default(),
            writes: RefCell::default(),
            flushes: RefCell::default(),
            reads: RefCell::default(),
            restoring: Restoring::default(),
            images: Default::default(),
            behind: Default::default(),
            trace: RefCell::default(),
        };
        let devices: Vec<Rc<dyn BlockDevice>> = world
            .legs
            .iter()
            .map(|leg| leg.clone() as Rc<dyn BlockDevice>)
            .collect();
        let (rt, pool) = (world.rt.rt(), world.pool.clone());
        world.rt.block_on(async move {
            let options = CreateOptions {
                name: "vol1".into(),
                equalise: false,
            };
            create(&rt, &pool, &devices, &options, |_, _| {})
                .await
                .expect("created");
        });
        world.start([true, true]);
        world
    }

    fn note(&self, text: String) {
        self.trace
            .borrow_mut()
            .push(format!("{:?} {text}", self.rt.now()));
    }

    fn array(&self) -> Rc<Array> {
        self.array.borrow().clone().expect("running")
    }

    fn read_leg(&self, array: &Rc<Array>, leg: u8, granule: usize) -> Option<u64> {
        let at = Sector(place(granule));
        let read = array.read_leg(LegIndex(leg), at, 8, IoCtx::foreground());
        let read = self.rt.block_on(read).ok()?;
        Some(version_of(&read.into_data().to_vec()))
    }

    /// Starts the node and plays the store's recovery. Without one leg it may have to wait: then
    /// the other one comes too.
    fn start(&self, present: [bool; 2]) {
        let input: Vec<LegInput> = (0..2)
            .map(|n| LegInput {
                name: format!("sto{}", n + 1),
                device: present[n].then(|| self.legs[n].clone() as Rc<dyn BlockDevice>),
            })
            .collect();
        let (rt, pool) = (self.rt.rt(), self.pool.clone());
        let witness = Rc::new(Shared(self.witness.clone()));
        let mut options = Options::new("vol1");
        let legs = self.legs.clone();
        options.on_alone = Some(Rc::new(move |leg: LegIndex, alone| {
            legs[usize::from(leg.0)].set_alone(alone);
        }));
        let assembled = self
            .rt
            .block_on(async move { assemble(rt, pool, witness, options, input, false).await });
        let array = match assembled {
            Ok(array) => array,
            Err(AssembleError::Waiting(why)) if present != [true, true] => {
                self.note(format!("waits: {why}"));
                return self.start([true, true]);
            }
            Err(error) => self.fail(&format!("does not assemble: {error}")),
        };
        self.note(format!("started with {present:?}: {:?}", states(&array)));
        for (leg, state) in states(&array).into_iter().enumerate() {
            if self.behind[leg].take() && state == "in-sync" {
                self.fail(&format!("leg {leg} was out and lacks writes, and counts"));
            }
        }
        array.set_allocation(Rc::downgrade(&self.store));
        self.rt
            .block_on(array.submit(Op::Fence, IoCtx::metadata()))
            .unwrap_or_else(|error| self.fail(&format!("no fence: {error}")));
        for granule in 0..GRANULES {
            let seen: Vec<u64> = (0..2)
                .filter_map(|leg| self.read_leg(&array, leg, granule))
                .collect();
            let best = seen.iter().copied().max().unwrap_or(0);
            let acked = self.oracle.acked[granule].get();
            if best < acked {
                self.fail(&format!(
                    "granule {granule}: version {acked} was promised, recovery found {seen:?}"
                ));
            }
            let op = Op::Write {
                at: Sector(place(granule)),
                data: self.pool.copy_now(&content(granule, best)),
                want: Default::default(),
            };
            let differs = seen.iter().any(|&version| version != best);
            if differs {
                let written = self.rt.block_on(array.submit(op, IoCtx::metadata()));
                written.unwrap_or_else(|error| self.fail(&format!("recovery: {error}")));
            }
            self.oracle.acked[granule].set(best);
            self.oracle.next[granule].set(self.oracle.next[granule].get().max(best));
            self.oracle.busy[granule].set(false);
            self.oracle.unsure[granule].set(false);
        }
        let flushed = self.rt.block_on(array.submit(Op::Flush, IoCtx::metadata()));
        flushed.unwrap_or_else(|error| self.fail(&format!("recovery: {error}")));
        for granule in 0..GRANULES {
            self.oracle.flushed[granule].set(self.oracle.acked[granule].get());
        }
        array.recovered();
        for (leg, here) in present.into_iter().enumerate() {
            if !here && array.snapshot().legs[leg].state == "missing" {
                let (again, device) = (array.clone(), self.legs[leg].clone());
                let index = LegIndex(leg as u8);
                let name = format!("sto{}", leg + 1);
                let attached = self
                    .rt
                    .block_on(async move { again.attach(index, &name, device).await });
                attached.unwrap_or_else(|error| self.fail(&format!("attach: {error}")));
            }
        }
        *self.array.borrow_mut() = Some(array);
    }

    fn fail(&self, text: &str) -> ! {
        for line in self.trace.borrow().iter().rev().take(60).rev() {
            eprintln!("{line}");
        }
        panic!("{text}");
    }

    fn write(&self, granule: usize) {
        if self.oracle.busy[granule].replace(true) {
            return;
        }
        let version = self.oracle.next[granule].get() + 1;
        self.oracle.next[granule].set(version);
        let op = Op::Write {
            at: Sector(place(granule)),
            data: self.pool.copy_now(&content(granule, version)),
            want: Default::default(),
        };
        let handle = self
            .rt
            .spawn_handle(self.array().submit(op, IoCtx::foreground()));
        self.writes.borrow_mut().push((granule, version, handle));
    }

    fn flush(&self) {
        self.collect();
        let covers = std::array::from_fn(|g| self.oracle.acked[g].get());
        let handle = self
            .rt
            .spawn_handle(self.array().submit(Op::Flush, IoCtx::foreground()));
        self.flushes.borrow_mut().push((covers, handle));
    }

    fn read(&self, granule: usize) {
        if self.legs.iter().any(|leg| leg.hung.get() || leg.down.get()) {
            return self.read_later(granule); // it may wait for long, or fail
        }
        self.collect();
        let acked = self.oracle.acked[granule].get();
        match self.rt.block_on(self.ask(granule)) {
            Ok(done) => self.check_read(granule, acked, done),
            Err(error) => self.fail(&format!("read: {error}")),
        }
    }

    fn ask(&self, granule: usize) -> Completion {
        let op = Op::Read {
            at: Sector(place(granule)),
            sectors: 8,
        };
        self.array().submit(op, IoCtx::foreground())
    }

    /// Reads without waiting for the answer.
    fn read_later(&self, granule: usize) {
        self.collect();
        let acked = self.oracle.acked[granule].get();
        let read = self.rt.spawn_handle(self.ask(granule));
        self.reads.borrow_mut().push((granule, acked, read));
    }

    fn check_read(&self, granule: usize, acked: u64, done: Done) {
        let version = version_of(&done.into_data().to_vec());
        if version < acked {
            self.fail(&format!(
                "granule {granule}: read {version}, {acked} acknowledged"
            ));
        }
    }

    /// Takes the answers that have come.
    fn collect(&self) {
        self.writes
            .borrow_mut()
            .retain(|(granule, version, handle)| match handle.try_take() {
                None => true,
                Some(result) => {
                    self.oracle.busy[*granule].set(false);
                    match result {
                        Ok(_) => self.oracle.acked[*granule].set(*version),
                        Err(error) => {
                            self.note(format!("a write of granule {granule} fails: {error}"));
                            self.oracle.unsure[*granule].set(true);
                        }
                    }
                    false
                }
            });
        self.flushes
            .borrow_mut()
            .retain(|(covers, handle)| match handle.try_take() {
                None => true,
                Some(Ok(_)) => {
                    for (granule, version) in covers.iter().enumerate() {
                        let flushed = &self.oracle.flushed[granule];
                        flushed.set(flushed.get().max(*version));
                    }
                    false
                }
                Some(Err(_)) => false,
            });
        let answered: Vec<_> = {
            let mut reads = self.reads.borrow_mut();
            let mut answered = Vec::new();
            reads.retain(|(granule, acked, handle)| match handle.try_take() {
                None => true,
                Some(result) => {
                    answered.extend(result.map(|done| (*granule, *acked, done)));
                    false
                }
            });
            answered
        };
        for (granule, acked, done) in answered {
            self.check_read(granule, acked, done);
        }
    }

    /// Every leg in sync alone holds what was acknowledged.
    fn inspect(&self) {
        self.collect();
        let array = self.array();
        let snapshot = array.snapshot();
        let data = snapshot.data_offset_bytes / 512;
        for (leg, shown) in snapshot.legs.iter().enumerate() {
            self.restoring.0[leg].set(shown.restoring);
        }
        for (leg, state) in states(&array).into_iter().enumerate() {
            if state != "in-sync" || self.legs[leg].hung.get() || self.restoring.get(leg) {
                continue;
            }
            for granule in 0..GRANULES {
                let bytes = self.legs[leg].peek(data + place(granule));
                let acked = self.oracle.acked[granule].get();
                if version_of(&bytes) < acked && !self.oracle.unsure[granule].get() {
                    let found = version_of(&bytes);
                    self.fail(&format!("granule {granule}: leg {leg} is in sync with version {found}, {acked} acknowledged"));
                }
            }
        }
    }

    fn crash(&self) {
        self.collect();
        let array = self.array.borrow_mut().take().expect("running");
        let in_sync: Vec<bool> = states(&array).iter().map(|s| *s == "in-sync").collect();
        let moving: Vec<bool> = states(&array).iter().map(|s| *s == "rebuilding").collect();
        self.rt.kill();
        drop(array);
        self.writes.borrow_mut().clear();
        self.flushes.borrow_mut().clear();
        self.reads.borrow_mut().clear();
        let cut = self.rng.below(4);
        for (n, leg) in self.legs.iter().enumerate() {
            leg.node_died();
            leg.hung.set(false);
            leg.down.set(false);
            if cut >> n & 1 == 1 {
                leg.power_cycle(false);
            }
        }
        let told = *self.witness.last.borrow();
        let is_out = |leg: usize| told.is_some_and(|told| told.out >> leg & 1 == 1);
        // What a leg in sync that kept its power holds is still promised, unless it had just lost
        // its cache, or is not on record as back: then two failed at once.
        let keeps = |n: usize| in_sync[n] && cut >> n & 1 == 0 && !self.restoring.get(n);
        let kept = (0..2).any(|n| keeps(n) && !is_out(n));
        if !kept {
            for granule in 0..GRANULES {
                self.oracle.acked[granule].set(self.oracle.flushed[granule].get());
            }
        }
        let data = array_data(&self.legs);
        for leg in 0..2 {
            let version = |g: usize| version_of(&self.legs[leg].peek(data + place(g)));
            let lacks = |g: usize| version(g) < self.oracle.acked[g].get();
            // Leaving and joining are no word yet: then the store chooses by what it finds.
            let is_behind =
                !in_sync[leg] && is_out(leg) && !moving[leg] && !self.restoring.get(leg);
            self.behind[leg].set(is_behind && (0..GRANULES).any(lacks));
        }
        let present = match self.rng.below(4) {
            0 => [true, false],
            1 => [false, true],
            _ => [true, true],
        };
        self.note(format!(
            "crash, in sync {in_sync:?}, power cut {cut:02b}, then {present:?}"
        ));
        self.start(present);
    }

    /// Waits for the write of a granule, if it is answered soon.
    fn settle(&self, granule: usize) {
        for _ in 0..3000 {
            self.collect();
            if !self.oracle.busy[granule].get() {
                return;
            }
            self.rt.run_for(Duration::from_micros(100));
        }
    }

    /// One chunk is left alone until its bit is cleared, while another keeps the array active.
    /// Then a leg is lost, with or without its cache, and comes back; or the node dies at the
    /// first answer to a write into the quiet chunk.
    fn leave_a_chunk_alone(&self, leg: usize) {
        if self.legs.iter().any(|leg| leg.hung.get() || leg.down.get()) {
            return;
        }
        self.note(format!("a quiet chunk, then leg {leg} is lost"));
        let (quiet, other) = (2, 0);
        if self.rng.chance(50) {
            self.make_image(leg);
        }
        self.write(quiet);
        for _ in 0..8 {
            self.rt.run_for(Duration::from_millis(1700));
            self.write(other);
            self.settle(other);
        }
        self.settle(quiet);
        self.legs[leg].go_down();
        // The last one that counts would lose what nobody has then.
        let other_counts = states(&self.array())[1 - leg] == "in-sync";
        if self.rng.chance(50) && other_counts {
            self.legs[leg].power_cycle(false);
        }
        self.write(other);
        self.settle(other);
        self.perhaps_put_back(leg);
        if self.rng.chance(60) {
            self.write(quiet);
            self.settle(quiet);
            self.crash();
        } else {
            self.legs[leg].come_back();
            self.rt.run_for(Duration::from_secs(3));
        }
    }

    fn make_image(&self, leg: usize) {
        self.note(format!("an image of leg {leg} is made"));
        *self.images[leg].borrow_mut() = Some(self.legs[leg].image());
    }

    /// A leg that is down and on record as out may come back with older bytes; the other serves.
    fn perhaps_put_back(&self, leg: usize) {
        let other = &self.legs[1 - leg];
        if !self.rng.chance(50) || other.hung.get() || other.down.get() {
            return;
        }
        self.rt.run_for(Duration::from_millis(300));
        self.collect();
        let is_told = self
            .witness
            .last
            .borrow()
            .is_some_and(|told| told.out == 1 << leg);
        let counts: Vec<bool> = states(&self.array())
            .iter()
            .map(|s| *s == "in-sync")
            .collect();
        let is_out = is_told && !counts[leg] && counts[1 - leg] && !self.restoring.get(1 - leg);
        if let Some(image) = self.images[leg].take().filter(|_| is_out) {
            self.note(format!("leg {leg} holds an older image"));
            self.legs[leg].put_back(image);
        }
    }

    /// Both legs lose all paths at one instant, and perhaps their caches, and come back one after
    /// the other before the last one queues no more: nothing fails.
    fn lose_both(&self, first: usize) {
        if self.legs.iter().any(|leg| leg.hung.get() || leg.down.get()) {
            return;
        }
        self.note(format!("both legs are down, {first} first"));
        let some = |world: &World| {
            for _ in 0..world.rng.below(6) {
                world.write(world.rng.below(GRANULES as u64) as usize);
                world.read_later(world.rng.below(GRANULES as u64) as usize);
            }
            if world.rng.chance(30) {
                world.flush();
            }
        };
        some(self);
        self.rt.run_for(Duration::from_micros(self.rng.below(1500)));
        for leg in [first, 1 - first] {
            self.legs[leg].go_down();
            if self.rng.chance(30) {
                self.rt.run_for(Duration::from_micros(self.rng.below(3000)));
            }
        }
        some(self);
        self.rt
            .run_for(Duration::from_millis(self.rng.below(20_000)));
        some(self);
        let back = self.rng.below(2) as usize;
        for leg in [back, 1 - back] {
            if self.rng.chance(50) {
                self.restoring.begin(leg);
                self.legs[leg].power_cycle(true);
            }
            self.note(format!("leg {leg} is back"));
            self.legs[leg].come_back();
            let apart = match self.rng.below(3) {
                0 => 0,
                1 => self.rng.below(300),
                _ => self.rng.below(20_000),
            };
            self.rt.run_for(Duration::from_millis(apart));
        }
    }

    fn step(&self) {
        let leg = self.rng.below(2) as usize;
        match self.rng.below(100) {
            0 => self.leave_a_chunk_alone(leg),
            1..=54 => self.write(self.rng.below(GRANULES as u64) as usize),
            55..=59 => self.flush(),
            60..=69 => self.read(self.rng.below(GRANULES as u64) as usize),
            70..=73 if !self.legs[leg].down.get() => {
                if self.legs[leg].hung.get() {
                    self.note(format!("leg {leg} answers again"));
                    self.legs[leg].unhang();
                } else {
                    self.note(format!("leg {leg} hangs"));
                    self.legs[leg].hang();
                }
            }
            74..=75 if !self.legs[leg].hung.get() && !self.legs[1 - leg].down.get() => {
                if self.legs[leg].down.get() {
                    self.perhaps_put_back(leg);
                    self.note(format!("leg {leg} is back"));
                    self.legs[leg].come_back();
                } else {
                    self.note(format!("leg {leg} is down"));
                    self.legs[leg].go_down();
                }
            }
            76..=77 if !self.legs[leg].hung.get() && !self.legs[leg].down.get() => {
                self.note(format!("leg {leg} loses its cache"));
                self.restoring.begin(leg);
                self.legs[leg].power_cycle(true);
            }
            78 => self.crash(),
            79 => self.lose_both(leg),
            80 if !self.legs[leg].hung.get() => self.make_image(leg),
            81 => {
                self.rt.run_for(Duration::from_secs(self.rng.below(12)));
            }
            _ => self.rt.run_for(Duration::from_millis(self.rng.below(120))),
        }
        self.rt.run_ready();
        self.inspect();
    }

    fn heal(&self) {
        for leg in &self.legs {
            leg.come_back();
            if leg.hung.get() {
                leg.unhang();
            }
        }
        self.rt.run_for(Duration::from_secs(120));
        self.collect();
        let array = self.array();
        let states = states(&array);
        if states != ["in-sync", "in-sync"] {
            let shown = array.snapshot();
            self.fail(&format!("not in sync after healing: {shown:#?}"));
        }
        if !self.writes.borrow().is_empty() {
            self.fail("a write was never answered");
        }
        if !self.reads.borrow().is_empty() || !self.flushes.borrow().is_empty() {
            self.fail("a read or a flush was never answered");
        }
        for granule in 0..GRANULES {
            let seen = [0, 1].map(|leg| self.read_leg(&array, leg, granule));
            let acked = self.oracle.acked[granule].get();
            if seen[0] != seen[1] || seen[0] < Some(acked) {
                self.fail(&format!(
                    "granule {granule}: legs hold {seen:?}, {acked} acknowledged"
                ));
            }
        }
        if array.snapshot().bitmap_dirty > 0 {
            self.fail("bits are left after two idle minutes");
        }
    }
}

/// Where the array's data begin on both legs.
fn array_data(legs: &[Rc<SimLeg>; 2]) -> u64 {
    let superblock = Superblock::parse(&legs[0].bytes(8, 8)).expect("a member");
    superblock.data_offset
}

fn states(array: &Rc<Array>) -> Vec<&'static str> {
    array.snapshot().legs.iter().map(|leg| leg.state).collect()
}

fn run(seed: u64, steps: u32) -> Vec<String> {
    let world = World::new(seed);
    for _ in 0..steps {
        world.step();
    }
    world.heal();
    world.trace.take()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_acknowledged_write_is_lost() {
    let is_long = std::env::var_os("SIM_LONG").is_some();
    let runs = if is_long { 100_000 } else { 2000 };
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("SIM_RUNS").unwrap_or(runs),
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed, 120));
        assert!(outcome.is_ok(), "SIM_SEED={seed} replays this");
    }
}

#[test]
fn a_seed_replays_exactly() {
    assert_eq!(run(5, 150), run(5, 150));
}
