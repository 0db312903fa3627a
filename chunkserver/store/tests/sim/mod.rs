//! A mirror of two legs with volatile caches under virtual time, whose disks outlive the process.
//!
//! A leg answers a write when it is in its cache. A power cut leaves of what was not flushed any
//! subset, torn at 512 bytes; a killed process leaves its unanswered writes applied, not applied,
//! or torn. Both legs are in sync unless a test takes one out.
#![allow(dead_code, unreachable_pub)]

pub mod life;
pub mod model;

use blockdev::completion::pair;
use blockdev::sim::VirtualRt;
use blockdev::{
    Allocation, BlockDevice, Completion, Done, Durability, Event, Geometry, IoCtx, IoError, IoVec,
    Kind, LegIndex, Mirror, Op, Pool, Refusal, Rt, Sector, Seq,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

const SECTOR: usize = 512;

/// SplitMix64.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Cached {
    seq: u64,
    at: u64,
    data: Vec<u8>,
}

/// What one leg stores.
#[derive(Default)]
pub struct Disk {
    durable: BTreeMap<u64, [u8; SECTOR]>,
    /// Answered, not flushed, in order.
    cached: Vec<Cached>,
    /// Submitted, not applied.
    pending: BTreeMap<u64, (u64, Vec<u8>)>,
    /// Highest order of an answered write: the next process counts on from here.
    last: u64,
}

impl Disk {
    fn read(&self, at: u64, sectors: usize) -> Vec<u8> {
        let mut out = vec![0; sectors * SECTOR];
        for (&sector, bytes) in self.durable.range(at..at + sectors as u64) {
            let from = (sector - at) as usize * SECTOR;
            out[from..from + SECTOR].copy_from_slice(bytes);
        }
        for write in &self.cached {
            let len = (write.data.len() / SECTOR) as u64;
            for i in 0..len {
                let sector = write.at + i;
                if (at..at + sectors as u64).contains(&sector) {
                    let from = (sector - at) as usize * SECTOR;
                    let i = i as usize * SECTOR;
                    out[from..from + SECTOR].copy_from_slice(&write.data[i..i + SECTOR]);
                }
            }
        }
        out
    }

    fn apply(&mut self, token: u64, seq: u64, through: bool) {
        if let Some((at, data)) = self.pending.remove(&token) {
            self.last = seq;
            let range = at..at + (data.len() / SECTOR) as u64;
            self.cached.push(Cached { seq, at, data });
            if through {
                self.write_through(range);
            }
        }
    }

    /// What is cached of these sectors reaches the medium, alone.
    fn write_through(&mut self, range: Range<u64>) {
        for write in std::mem::take(&mut self.cached) {
            for (i, bytes) in write.data.chunks_exact(SECTOR).enumerate() {
                let (seq, at) = (write.seq, write.at + i as u64);
                if range.contains(&at) {
                    self.durable.insert(at, bytes.try_into().expect("a sector"));
                } else {
                    let data = bytes.to_vec();
                    self.cached.push(Cached { seq, at, data });
                }
            }
        }
    }

    /// Everything answered up to `seq` reaches the medium.
    fn flush(&mut self, seq: u64) {
        let (done, rest) = std::mem::take(&mut self.cached)
            .into_iter()
            .partition(|w| w.seq <= seq);
        self.cached = rest;
        let done: Vec<Cached> = done;
        for write in done {
            for (i, bytes) in write.data.chunks_exact(SECTOR).enumerate() {
                self.durable
                    .insert(write.at + i as u64, bytes.try_into().expect("a sector"));
            }
        }
    }

    /// The process dies: what it had under way arrives, or not, or in part.
    pub fn kill(&mut self, rng: &mut Rng) {
        let mode = rng.below(3);
        for (at, data) in std::mem::take(&mut self.pending).into_values() {
            let keep = match mode {
                0 => 0,
                1 => 100,
                _ => [0, 0, 50, 100, 100][rng.below(5) as usize],
            };
            for (i, bytes) in data.chunks_exact(SECTOR).enumerate() {
                if rng.below(100) < keep {
                    self.cached.push(Cached {
                        seq: self.last,
                        at: at + i as u64,
                        data: bytes.to_vec(),
                    });
                }
            }
        }
    }

    /// Power is lost: of what was not flushed any subset survives.
    pub fn cut(&mut self, rng: &mut Rng) {
        let mode = rng.below(4);
        for write in std::mem::take(&mut self.cached) {
            let keep = match mode {
                0 => 0,
                1 => 100,
                2 => 100 * rng.below(2),
                _ => [0, 0, 50, 100][rng.below(4) as usize],
            };
            for (i, bytes) in write.data.chunks_exact(SECTOR).enumerate() {
                if rng.below(100) < keep {
                    self.durable
                        .insert(write.at + i as u64, bytes.try_into().expect("a sector"));
                }
            }
        }
    }

    /// Everything answered reaches the medium.
    pub fn flush_all(&mut self) {
        self.flush(u64::MAX);
    }

    /// Stands for the content.
    pub fn digest(&self) -> u32 {
        let mut all = Vec::new();
        for (sector, bytes) in &self.durable {
            all.extend(sector.to_le_bytes());
            all.extend(bytes);
        }
        for write in &self.cached {
            all.extend(write.at.to_le_bytes());
            all.extend(&write.data);
        }
        chunk_api::crc::crc32(&all)
    }

    /// Damages every unit that begins with one of `magics`; returns how many there are.
    pub fn rot_pages(&mut self, magics: &[&[u8; 4]]) -> usize {
        self.flush_all();
        let mut hit = 0;
        for (sector, bytes) in &mut self.durable {
            if sector % 8 == 0 && magics.iter().any(|magic| bytes[..4] == magic[..]) {
                bytes[128..160].fill(0xEE);
                hit += 1;
            }
        }
        hit
    }

    /// Damages a sector that holds something; returns which.
    pub fn rot(&mut self, rng: &mut Rng, except: Range<u64>) -> Option<u64> {
        let candidates: Vec<u64> = self
            .durable
            .keys()
            .copied()
            .filter(|s| !except.contains(s))
            .collect();
        let sector = *candidates.get(rng.below(candidates.len().max(1) as u64) as usize)?;
        self.durable.get_mut(&sector)?[rng.below(512) as usize] ^= 1 << rng.below(8);
        Some(sector)
    }
}

/// Disks that outlive the process.
pub type Disks = Rc<[RefCell<Disk>; 2]>;

pub fn disks() -> Disks {
    Rc::new([RefCell::default(), RefCell::default()])
}

/// See the module.
pub struct SimMirror {
    rt: Rt,
    pool: Pool,
    disks: Disks,
    sectors: u64,
    rng: RefCell<Rng>,
    seq: Rc<Cell<u64>>,
    /// Writes from here on fail with `NoSpace`, if not to the journal or a superblock.
    pub no_space: Cell<bool>,
    /// The same for the journal alone.
    pub no_journal_space: Cell<bool>,
    /// FUA is honoured.
    pub fua: Cell<bool>,
    /// Flushes are refused, as by a unit without SYNCHRONIZE CACHE.
    pub refuse_flush: Cell<bool>,
    pub flushes: Cell<u64>,
    pub taints: RefCell<BTreeSet<u64>>,
    pub writes: Cell<u64>,
    pub read_bytes: Cell<u64>,
    pub write_bytes: Cell<u64>,
    pub max_delay_us: Cell<u64>,
    /// Reads of single legs: which one, and where.
    pub leg_reads: RefCell<Vec<(u8, Range<u64>)>>,
    /// Sectors under way in reads, and the most there were at a time.
    pub reading: Rc<Cell<(u64, u64)>>,
    /// The leg that is out: it gets no writes.
    pub out: Cell<Option<u8>>,
    /// It cannot be read either.
    pub away: Cell<bool>,
    /// Sectors that leg 1 cannot read.
    pub unreadable: RefCell<BTreeSet<u64>>,
    log: RefCell<BTreeMap<u64, Range<u64>>>,
}

impl SimMirror {
    pub fn new(world: &VirtualRt, pool: Pool, disks: Disks, mib: u64, seed: u64) -> Rc<SimMirror> {
        Rc::new(SimMirror {
            rt: world.rt(),
            pool,
            sectors: mib << 11,
            rng: RefCell::new(Rng(seed)),
            seq: Rc::new(Cell::new(
                1 + disks.iter().map(|d| d.borrow().last).max().unwrap_or(0),
            )),
            disks,
            no_space: Cell::new(false),
            no_journal_space: Cell::new(false),
            fua: Cell::new(true),
            refuse_flush: Cell::new(false),
            flushes: Cell::new(0),
            taints: RefCell::default(),
            writes: Cell::new(0),
            read_bytes: Cell::new(0),
            write_bytes: Cell::new(0),
            max_delay_us: Cell::new(300),
            leg_reads: RefCell::default(),
            reading: Rc::default(),
            out: Cell::default(),
            away: Cell::default(),
            unreadable: RefCell::default(),
            log: RefCell::default(),
        })
    }

    fn delay(&self) -> Duration {
        let most = self.max_delay_us.get();
        Duration::from_micros(1 + self.rng.borrow_mut().below(most))
    }

    fn tick(seq: &Cell<u64>) -> u64 {
        seq.set(seq.get() + 1);
        seq.get()
    }

    fn read_at(&self, leg: usize, at: Sector, sectors: u32) -> Completion {
        let (promise, completion) = pair();
        let (disks, pool, seq) = (self.disks.clone(), self.pool.clone(), Self::tick(&self.seq));
        let (rt, delay) = (self.rt.clone(), self.delay());
        self.read_bytes
            .set(self.read_bytes.get() + u64::from(sectors) * 512);
        let reading = self.reading.clone();
        let count = u64::from(sectors);
        let (now, most) = reading.get();
        reading.set((now + count, most.max(now + count)));
        self.rt.spawn(async move {
            rt.sleep(delay).await;
            reading.set((reading.get().0 - count, reading.get().1));
            let data = disks[leg].borrow().read(at.0, sectors as usize);
            promise.complete(Ok(Done::Read(pool.copy_now(&data), Seq(seq))));
        });
        completion
    }

    fn write_legs(&self, legs: &[usize], at: Sector, data: &IoVec, want: Durability) -> Completion {
        let (promise, completion) = pair();
        let token = Self::tick(&self.seq);
        self.writes.set(self.writes.get() + 1);
        self.write_bytes
            .set(self.write_bytes.get() + data.len() as u64);
        self.log
            .borrow_mut()
            .insert(token, at.0..at.0 + data.len() as u64 / 512);
        // The journal of the tests' layout lies in units 64 to 191.
        let data_area = at.0 >= 192 * 8 && at.0 + 64 * 8 < self.sectors;
        let journal = (64 * 8..192 * 8).contains(&at.0);
        if (self.no_space.get() && data_area) || (self.no_journal_space.get() && journal) {
            let (rt, delay) = (self.rt.clone(), self.delay());
            self.rt.spawn(async move {
                rt.sleep(delay).await;
                promise.complete(Err(IoError::not_applied(Kind::NoSpace)));
            });
            return completion;
        }
        let mut delays: Vec<(Duration, usize)> = legs.iter().map(|&l| (self.delay(), l)).collect();
        delays.sort_unstable();
        for &leg in legs {
            self.disks[leg]
                .borrow_mut()
                .pending
                .insert(token, (at.0, data.to_vec()));
        }
        let (disks, rt, seq) = (self.disks.clone(), self.rt.clone(), self.seq.clone());
        let begin = self.rt.now();
        let through = want == Durability::Fua;
        assert!(
            !through || self.fua.get(),
            "FUA asked of legs that do not have it"
        );
        self.rt.spawn(async move {
            for (delay, leg) in delays {
                rt.sleep_until(begin + delay).await;
                let now = Self::tick(&seq);
                disks[leg].borrow_mut().apply(token, now, through);
            }
            promise.complete(Ok(Done::Written));
        });
        completion
    }
}

impl BlockDevice for SimMirror {
    fn geometry(&self) -> Geometry {
        Geometry {
            fua: self.fua.get(),
            ..Geometry::plain(self.sectors)
        }
    }

    fn submit(&self, op: Op, _ctx: IoCtx) -> Completion {
        match op {
            Op::Read { at, sectors } => {
                let leg = self.rng.borrow_mut().below(2) as usize;
                let leg = self.out.get().map_or(leg, |out| 1 - usize::from(out));
                self.read_at(leg, at, sectors)
            }
            Op::Write { at, data, want } => match self.out.get() {
                Some(out) => self.write_legs(&[1 - usize::from(out)], at, &data, want),
                None => self.write_legs(&[0, 1], at, &data, want),
            },
            Op::Flush if self.refuse_flush.get() => {
                Completion::refused(Kind::Refused(Refusal::NotSupported))
            }
            Op::Flush => {
                self.flushes.set(self.flushes.get() + 1);
                let (promise, completion) = pair();
                let (disks, rt, delay) = (self.disks.clone(), self.rt.clone(), self.delay());
                let seq = self.seq.get();
                self.rt.spawn(async move {
                    rt.sleep(delay).await;
                    disks[0].borrow_mut().flush(seq);
                    rt.sleep(delay).await;
                    disks[1].borrow_mut().flush(seq);
                    promise.complete(Ok(Done::Flushed));
                });
                completion
            }
            Op::Discard { .. } | Op::WriteZeroes { .. } => Completion::ready(Ok(Done::Discarded)),
            Op::Fence => Completion::ready(Ok(Done::Fenced)),
        }
    }

    fn tainted(&self, range: Range<Sector>) -> bool {
        self.taints
            .borrow()
            .range(range.start.0..range.end.0)
            .next()
            .is_some()
    }

    fn poll_event(&self, _cx: &mut Context<'_>) -> Poll<Event> {
        Poll::Pending
    }
}

impl Mirror for SimMirror {
    fn legs(&self) -> u8 {
        2
    }

    fn in_sync(&self, leg: LegIndex) -> bool {
        self.out.get() != Some(leg.0)
    }

    fn read_leg(&self, leg: LegIndex, at: Sector, sectors: u32, _ctx: IoCtx) -> Completion {
        if self.away.get() && !self.in_sync(leg) {
            return Completion::refused(Kind::Closed);
        }
        let range = at.0..at.0 + u64::from(sectors);
        self.leg_reads.borrow_mut().push((leg.0, range.clone()));
        let first_bad = self.unreadable.borrow().range(range).next().copied();
        match first_bad.filter(|_| leg.0 == 1) {
            Some(bad) => Completion::refused(Kind::Medium {
                first_bad: Sector(bad),
            }),
            None => self.read_at(leg.0.into(), at, sectors),
        }
    }

    fn rewrite(&self, leg: LegIndex, at: Sector, good: IoVec, since: Seq, _: IoCtx) -> Completion {
        let range = at.0..at.0 + good.len() as u64 / 512;
        let later = self
            .log
            .borrow()
            .range(since.0..)
            .any(|(_, w)| w.start < range.end && range.start < w.end);
        if later {
            return Completion::ready(Ok(Done::Written));
        }
        self.write_legs(&[leg.0.into()], at, &good, Durability::Cache)
    }

    fn predirty(&self, _range: Range<Sector>, _ctx: IoCtx) -> Completion {
        Completion::ready(Ok(Done::Written))
    }

    fn set_allocation(&self, _map: Weak<dyn Allocation>) {}

    fn recovered(&self) {}
}
