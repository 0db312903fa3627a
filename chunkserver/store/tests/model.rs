//! Random operations against a naive model, with crashes at any point.
//!
//! Each chunk has a history of states in the order of the calls; a crash must leave it in one of
//! them: not before the last one acknowledged (process killed, or one leg lost its cache), nor the
//! last one durable (both legs lost theirs). What recovery shows once stays. `SIM_SEED=n` replays
//! one seed, `SIM_SEEDS=n` sets how many are tried.

mod sim;

use blockdev::sim::VirtualRt;
use blockdev::{IoVec, Mirror, Pool};
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkError, ChunkId, ChunkVersion, Chunks};
use chunk_store::{check, format, CheckOptions, CheckResult, FormatParams, Options, Store};
use sim::{disks, Disks, Rng, SimMirror};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const MIB: u64 = 24;
const IDS: u64 = 6;
/// Blocks that are written: the first, its neighbour, both sides of a map page's end, far away.
const BLOCKS: [u16; 5] = [0, 1, 27, 28, 600];
const GRANULE: usize = 4096;

type Content = BTreeMap<u32, Rc<Vec<u8>>>;

#[derive(Clone, PartialEq, Eq)]
struct Chunk {
    version: u32,
    blocks: u16,
    granules: Content,
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sums: Vec<String> = self
            .granules
            .iter()
            .map(|(g, b)| format!("{g}:{:08x}", chunk_api::crc::crc32(b)))
            .collect();
        write!(
            f,
            "v{} {} blocks [{}]",
            self.version,
            self.blocks,
            sums.join(" ")
        )
    }
}

type State = Option<Chunk>;

struct History {
    states: Vec<State>,
    acknowledged: usize,
    durable: usize,
}

impl History {
    fn of(state: State) -> History {
        History {
            states: vec![state],
            acknowledged: 0,
            durable: 0,
        }
    }

    fn last(&self) -> &State {
        self.states.last().expect("a history has a state")
    }
}

type Model = Rc<RefCell<BTreeMap<u64, History>>>;

fn write_into(chunk: &mut Chunk, at: usize, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let offset = at + done;
        let (granule, within) = ((offset / GRANULE) as u32, offset % GRANULE);
        let take = (GRANULE - within).min(bytes.len() - done);
        let old = chunk
            .granules
            .get(&granule)
            .map_or_else(|| vec![0; GRANULE], |g| g.to_vec());
        let mut new = old;
        new[within..within + take].copy_from_slice(&bytes[done..done + take]);
        set(chunk, granule, new);
        done += take;
    }
    chunk.blocks = chunk.blocks.max((at / 65_536) as u16 + 1);
}

fn set(chunk: &mut Chunk, granule: u32, bytes: Vec<u8>) {
    match bytes.iter().all(|&b| b == 0) {
        true => chunk.granules.remove(&granule),
        false => chunk.granules.insert(granule, Rc::new(bytes)),
    };
}

fn cut_to(chunk: &mut Chunk, length: u32) {
    let keep = length as usize % GRANULE;
    let edge = length / GRANULE as u32;
    chunk
        .granules
        .retain(|&g, _| g < edge || (g == edge && keep > 0));
    if let Some(old) = chunk.granules.get(&edge).map(|g| g.to_vec()) {
        let mut new = old;
        new[keep..].fill(0);
        set(chunk, edge, new);
    }
    chunk.blocks = length.div_ceil(65_536) as u16;
}

/// One life of the process.
struct Life {
    rt: VirtualRt,
    pool: Pool,
    mirror: Rc<SimMirror>,
}

impl Life {
    fn new(disks: &Disks, rng: &mut Rng) -> Life {
        let rt = VirtualRt::shuffled(rng.next());
        let pool = Pool::new(64 << 20);
        let mirror = SimMirror::new(&rt, pool.clone(), disks.clone(), MIB, rng.next());
        Life { rt, pool, mirror }
    }

    fn mirror(&self) -> Rc<dyn Mirror> {
        self.mirror.clone()
    }

    fn options() -> Options {
        Options {
            name: "model".into(),
            cache_bytes: 64 << 10,
            map_cache_bytes: 16 << 10,
            read_ahead_bytes: 64 << 10,
            ..Options::default()
        }
    }

    fn open(&self) -> Rc<Store> {
        let open = Store::open(
            self.mirror(),
            self.rt.rt(),
            self.pool.clone(),
            Self::options(),
        );
        self.rt
            .block_on(open)
            .expect("a volume opens after any crash")
    }

    fn check(&self, options: CheckOptions) -> chunk_store::Summary {
        let run = check(self.mirror(), self.rt.rt(), self.pool.clone(), options);
        self.rt
            .block_on(run)
            .expect("a volume can be checked after any crash")
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Crash {
    Kill,
    CutAll,
    CutOne(usize),
}

fn crash(disks: &Disks, rng: &mut Rng) -> Crash {
    let kind = match rng.below(100) {
        0..45 => Crash::Kill,
        45..80 => Crash::CutAll,
        n => Crash::CutOne((n % 2) as usize),
    };
    for (leg, disk) in disks.iter().enumerate() {
        let mut disk = disk.borrow_mut();
        disk.kill(rng);
        if kind == Crash::CutAll || kind == Crash::CutOne(leg) {
            disk.cut(rng);
        }
    }
    kind
}

/// An operation under way: what its success means.
struct Mark {
    model: Model,
    ids: Vec<(u64, usize)>,
    durable: bool,
}

impl Mark {
    fn done(self) {
        let mut model = self.model.borrow_mut();
        for (id, index) in self.ids {
            let history = model.get_mut(&id).expect("pushed before");
            history.acknowledged = history.acknowledged.max(index);
            if self.durable {
                history.durable = history.durable.max(index);
            }
        }
    }
}

struct Run {
    rng: Rng,
    disks: Disks,
    model: Model,
    errors: Rc<RefCell<Vec<String>>>,
    under_way: Rc<Cell<usize>>,
}

impl Run {
    fn push(&self, id: u64, state: State) -> (u64, usize) {
        let mut model = self.model.borrow_mut();
        let history = model.entry(id).or_insert_with(|| History::of(None));
        history.states.push(state);
        (id, history.states.len() - 1)
    }

    fn current(&self, id: u64) -> State {
        self.model.borrow().get(&id).and_then(|h| h.last().clone())
    }

    fn watch(
        &self,
        life: &Life,
        reply: chunk_api::Reply<()>,
        expected: Result<(), ChunkError>,
        mark: Option<Mark>,
        what: String,
    ) {
        let (errors, under_way) = (self.errors.clone(), self.under_way.clone());
        under_way.set(under_way.get() + 1);
        life.rt.rt().spawn(async move {
            let got = reply.await;
            under_way.set(under_way.get() - 1);
            if got != expected {
                errors
                    .borrow_mut()
                    .push(format!("{what}: {got:?} instead of {expected:?}"));
            } else if let (Ok(()), Some(mark)) = (got, mark) {
                mark.done();
            }
        });
    }

    fn mark(&self, ids: Vec<(u64, usize)>, durable: bool) -> Option<Mark> {
        Some(Mark {
            model: self.model.clone(),
            ids,
            durable,
        })
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        if self.rng.chance(10) {
            return vec![0; len];
        }
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend(self.rng.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }

    fn step(&mut self, life: &Life, store: &Rc<Store>) {
        let id = 1 + self.rng.below(IDS);
        let state = self.current(id);
        let version = state.as_ref().map(|c| c.version);
        let absent = || Err::<(), _>(ChunkError::NoChunk);
        let new_version = ChunkVersion(1 + self.rng.below(1 << 20) as u32);
        match self.rng.below(100) {
            0..12 => {
                let reply = store.create(ChunkId(id), new_version);
                match state {
                    Some(_) => {
                        let exists = Err(ChunkError::Exists);
                        self.watch(life, reply, exists, None, format!("create {id}"));
                    }
                    None => {
                        let chunk = Chunk {
                            version: new_version.0,
                            blocks: 0,
                            granules: Content::new(),
                        };
                        let at = self.push(id, Some(chunk));
                        let mark = self.mark(vec![at], false);
                        self.watch(life, reply, Ok(()), mark, format!("create {id}"));
                    }
                }
            }
            12..60 => self.write(life, store, id, state),
            60..66 => {
                let reply = store.set_version(ChunkId(id), new_version, ChunkVersion(0));
                let Some(mut chunk) = state else {
                    return self.watch(life, reply, absent(), None, format!("version {id}"));
                };
                chunk.version = new_version.0;
                let at = self.push(id, Some(chunk));
                let mark = self.mark(vec![at], true);
                self.watch(life, reply, Ok(()), mark, format!("version {id}"));
            }
            66..74 => {
                let block = BLOCKS[self.rng.below(5) as usize];
                let length = u32::from(block) * 65_536 + self.rng.below(20_000) as u32;
                let old = ChunkVersion(version.unwrap_or(0));
                let reply = store.truncate(ChunkId(id), length, new_version, old);
                let Some(mut chunk) = state else {
                    return self.watch(life, reply, absent(), None, format!("truncate {id}"));
                };
                cut_to(&mut chunk, length);
                chunk.version = new_version.0;
                let at = self.push(id, Some(chunk));
                let mark = self.mark(vec![at], true);
                self.watch(life, reply, Ok(()), mark, format!("truncate {id} {length}"));
            }
            74..80 => {
                let other = 1 + self.rng.below(IDS);
                let length = self.rng.chance(40).then(|| self.rng.below(1 << 17) as u32);
                let reply = store.duplicate(
                    ChunkId(other),
                    new_version,
                    ChunkId(id),
                    ChunkVersion(0),
                    length,
                );
                let what = format!("duplicate {id} as {other} cut {length:?}");
                if self.current(other).is_some() {
                    return self.watch(life, reply, Err(ChunkError::Exists), None, what);
                }
                let Some(mut chunk) = state else {
                    return self.watch(life, reply, absent(), None, what);
                };
                chunk.version = new_version.0;
                if let Some(length) = length {
                    cut_to(&mut chunk, length);
                }
                let at = self.push(other, Some(chunk));
                let mark = self.mark(vec![at], true);
                self.watch(life, reply, Ok(()), mark, what);
            }
            80..84 => {
                let reply = store.delete(ChunkId(id), ChunkVersion(0));
                if state.is_none() {
                    return self.watch(life, reply, absent(), None, format!("delete {id}"));
                }
                let at = self.push(id, None);
                let mark = self.mark(vec![at], true);
                self.watch(life, reply, Ok(()), mark, format!("delete {id}"));
            }
            84..89 => {
                let ids = self
                    .model
                    .borrow()
                    .iter()
                    .map(|(&id, h)| (id, h.acknowledged))
                    .collect();
                let reply = store.finish(ChunkId(id));
                let mark = self.mark(ids, true);
                self.watch(life, reply, Ok(()), mark, "finish".into());
            }
            _ => self.read(life, store, id),
        }
    }

    fn write(&mut self, life: &Life, store: &Rc<Store>, id: u64, state: State) {
        let block = BLOCKS[self.rng.below(5) as usize];
        let (offset, len) = match self.rng.below(10) {
            0 => (0, 65_536),
            1..4 => (
                4096 * self.rng.below(5) as usize,
                4096 * (1 + self.rng.below(3) as usize),
            ),
            _ => (
                self.rng.below(18_000) as usize,
                1 + self.rng.below(9_000) as usize,
            ),
        };
        let bytes = self.bytes(len);
        let data = life.pool.copy_now(&bytes);
        let crc = crc32_iovec(&data);
        let version = ChunkVersion(state.as_ref().map_or(0, |c| c.version));
        let reply = store.write(ChunkId(id), version, block, offset as u32, data, crc);
        let what = format!("write {id} block {block} at {offset} of {len}");
        let Some(mut chunk) = state else {
            return self.watch(life, reply, Err(ChunkError::NoChunk), None, what);
        };
        write_into(&mut chunk, usize::from(block) * 65_536 + offset, &bytes);
        let at = self.push(id, Some(chunk));
        let mark = self.mark(vec![at], false);
        self.watch(life, reply, Ok(()), mark, what);
    }

    fn read(&mut self, life: &Life, store: &Rc<Store>, id: u64) {
        let block = BLOCKS[self.rng.below(5) as usize];
        let offset = self.rng.below(20_000) as usize;
        let size = 1 + self.rng.below(16_000) as usize;
        let from = self
            .model
            .borrow()
            .get(&id)
            .map_or(0, |h| h.states.len() - 1);
        let reply = store.read(
            ChunkId(id),
            ChunkVersion(0),
            block,
            offset as u32,
            size as u32,
        );
        let (model, errors) = (self.model.clone(), self.errors.clone());
        let under_way = self.under_way.clone();
        under_way.set(under_way.get() + 1);
        life.rt.rt().spawn(async move {
            let got = reply.await;
            under_way.set(under_way.get() - 1);
            let model = model.borrow();
            let states = match model.get(&id) {
                Some(history) => &history.states[from..],
                None => &[None][..],
            };
            let at = usize::from(block) * 65_536 + offset;
            let fits = |state: &State| match (&got, state) {
                (Err(ChunkError::NoChunk), None) => true,
                (Ok(piece), Some(chunk)) => {
                    piece.crc == crc32_iovec(&piece.data)
                        && piece.data.to_vec() == bytes_of(chunk, at, size)
                }
                _ => false,
            };
            if !states.iter().any(fits) {
                let got = got.map(|piece| piece.data.len());
                errors
                    .borrow_mut()
                    .push(format!("read {id} block {block} at {offset}: {got:?}"));
            }
        });
    }

    /// Compares the store with the model and forgets what did not survive.
    fn verify(&mut self, life: &Life, store: &Rc<Store>, floor: impl Fn(&History) -> usize) {
        let versions: BTreeMap<u64, u32> = store
            .inventory()
            .into_iter()
            .map(|entry| (entry.id.0, entry.version.0))
            .collect();
        for id in 1..=IDS {
            let actual = versions.get(&id).map(|&version| {
                let blocks = store
                    .open(ChunkId(id), ChunkVersion(version))
                    .expect("listed");
                let mut chunk = Chunk {
                    version,
                    blocks,
                    granules: Content::new(),
                };
                for block in BLOCKS {
                    let read = store.read(ChunkId(id), ChunkVersion(0), block, 0, 65_536);
                    let piece = life.rt.block_on(read).expect("what is mapped can be read");
                    assert_eq!(piece.crc, crc32_iovec(&piece.data));
                    for (i, bytes) in piece.data.to_vec().chunks(GRANULE).enumerate() {
                        set(&mut chunk, u32::from(block) * 16 + i as u32, bytes.to_vec());
                    }
                }
                chunk
            });
            let mut model = self.model.borrow_mut();
            let history = model.entry(id).or_insert_with(|| History::of(None));
            let from = floor(history);
            assert!(
                history.states[from..].contains(&actual),
                "chunk {id} is {actual:?}, not one of {:#?} (acknowledged {}, durable {})",
                &history.states[from..],
                history.acknowledged,
                history.durable,
            );
            *history = History::of(actual);
        }
    }

    fn no_errors(&self) {
        let errors = self.errors.borrow();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}

fn bytes_of(chunk: &Chunk, at: usize, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size);
    for offset in at..at + size {
        let granule = chunk.granules.get(&((offset / GRANULE) as u32));
        out.push(granule.map_or(0, |g| g[offset % GRANULE]));
    }
    out
}

fn format_volume(life: &Life) {
    let params = FormatParams {
        segment_units: Some(16),
        segments: Some(8),
        ..FormatParams::new("model", [3; 16], [4; 16])
    };
    let (mirror, pool) = (life.mirror(), life.pool.clone());
    life.rt
        .block_on(async move { format(mirror, &pool, &params).await })
        .expect("formatted");
}

fn run(seed: u64) {
    let mut rng = Rng(seed);
    let disks = disks();
    format_volume(&Life::new(&disks, &mut rng));
    let mut run = Run {
        rng,
        disks: disks.clone(),
        model: Model::default(),
        errors: Rc::default(),
        under_way: Rc::default(),
    };
    let mut rotted: Option<usize> = None;
    let mut rng = Rng(run.rng.next());
    let mut life = Life::new(&disks, &mut rng);
    let mut store = life.open();
    for _ in 0..1 + rng.below(4) {
        for _ in 0..rng.below(60) {
            run.step(&life, &store);
            match rng.below(20) {
                0..10 => {}
                10..18 => life.rt.run_for(Duration::from_micros(rng.below(800))),
                18 => life.rt.run_for(Duration::from_millis(rng.below(5))),
                _ => life.rt.run_for(Duration::from_millis(1_500)),
            }
        }
        if rng.chance(15) {
            // Everything durable, and then one leg rots (always the same one).
            life.rt.run_for(Duration::from_secs(3));
            assert_eq!(run.under_way.get(), 0, "an operation never ends");
            for disk in run.disks.iter() {
                let mut disk = disk.borrow_mut();
                disk.flush_all();
            }
            let leg = *rotted.get_or_insert(rng.below(2) as usize);
            for _ in 0..1 + rng.below(30) {
                run.disks[leg].borrow_mut().rot(&mut rng, 0..0);
            }
        }
        let clean = rng.chance(15);
        if clean {
            let store = store.clone();
            life.rt.run_for(Duration::from_millis(20));
            life.rt
                .block_on(async move { store.stop().await })
                .expect("stopped");
        }
        run.no_errors();
        life.rt.kill();
        drop(store);
        run.under_way.set(0);
        let mut kinds = vec![crash(&disks, &mut rng)];
        life = Life::new(&disks, &mut rng);
        while rng.chance(30) {
            let open = Store::open(
                life.mirror(),
                life.rt.rt(),
                life.pool.clone(),
                Life::options(),
            );
            let handle = life.rt.spawn_handle(open);
            life.rt.run_for(Duration::from_micros(rng.below(6_000)));
            drop(handle.try_take());
            life.rt.kill();
            kinds.push(crash(&disks, &mut rng));
            life = Life::new(&disks, &mut rng);
        }
        let summary = life.check(CheckOptions::default());
        assert_eq!(
            summary.result(),
            CheckResult::Clean,
            "{:#?}",
            summary.problems
        );
        life = Life::new(&disks, &mut rng);
        store = life.open();
        if std::env::var("SIM_TRACE").is_ok() {
            eprintln!("crash {kinds:?} clean {clean} rotted {rotted:?}");
        }
        let lost = |leg| {
            kinds
                .iter()
                .any(|k| *k == Crash::CutAll || *k == Crash::CutOne(leg))
        };
        let all_lost = lost(0) && lost(1);
        run.verify(&life, &store, |history| match (clean, all_lost) {
            (true, _) => history.acknowledged,
            (false, true) => history.durable,
            (false, false) => history.acknowledged,
        });
    }
    let stopping = store.clone();
    life.rt
        .block_on(async move { stopping.stop().await })
        .expect("stopped");
    drop(store);
    if rotted.is_some() {
        let summary = life.check(CheckOptions {
            repair: true,
            data: true,
        });
        assert_ne!(
            summary.result(),
            CheckResult::Damaged,
            "{:#?}",
            summary.problems
        );
    }
    let summary = life.check(CheckOptions {
        repair: false,
        data: true,
    });
    assert_eq!(
        summary.result(),
        CheckResult::Clean,
        "{:#?}",
        summary.problems
    );
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(default),
    }
}

/// Prints the seed of a run that panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SIM_SEED={}", self.0);
        }
    }
}

#[test]
fn every_crash_leaves_what_was_promised() {
    let default = if cfg!(debug_assertions) { 100 } else { 2_000 };
    for seed in seeds(default) {
        let _seed = Seed(seed);
        run(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_disks() {
    let image = |seed| {
        let mut rng = Rng(seed);
        let disks = disks();
        let life = Life::new(&disks, &mut rng);
        format_volume(&life);
        let store = life.open();
        let mut run = Run {
            rng,
            disks: disks.clone(),
            model: Model::default(),
            errors: Rc::default(),
            under_way: Rc::default(),
        };
        for _ in 0..60 {
            run.step(&life, &store);
            life.rt.run_for(Duration::from_micros(200));
        }
        life.rt.run_for(Duration::from_secs(2));
        run.no_errors();
        let digest = disks[0].borrow().digest();
        digest
    };
    assert_eq!(image(5), image(5));
    assert_ne!(image(5), image(6));
}

#[test]
fn a_thin_unit_out_of_space_changes_nothing() {
    for seed in seeds(40) {
        let _seed = Seed(seed);
        let mut rng = Rng(seed ^ 0xABCD);
        let disks = disks();
        let mut life = Life::new(&disks, &mut rng);
        format_volume(&life);
        let mut store = life.open();
        let id = ChunkId(1);
        life.rt
            .block_on(store.create(id, ChunkVersion(1)))
            .expect("created");
        let write = |life: &Life, store: &Store, at: u32, byte: u8, len: usize| {
            let data: IoVec = life.pool.copy_now(&vec![byte; len]);
            let crc = crc32_iovec(&data);
            store.write(id, ChunkVersion(1), 0, at, data, crc)
        };
        life.rt
            .block_on(write(&life, &store, 0, 7, 65_536))
            .expect("written");
        life.mirror.no_space.set(true);
        let refused: Vec<_> = (0..8)
            .map(|_| {
                let (at, len) = (rng.below(40_000) as u32, 1 + rng.below(20_000) as usize);
                life.rt.spawn_handle(write(&life, &store, at, 9, len))
            })
            .collect();
        for reply in refused {
            assert_eq!(life.rt.block_on(reply), Err(ChunkError::NoSpace));
        }
        life.mirror.no_space.set(false);
        let read = |life: &Life, store: &Store| {
            let read = store.read(id, ChunkVersion(1), 0, 0, 65_536);
            life.rt.block_on(read).expect("read").data.to_vec()
        };
        assert_eq!(read(&life, &store), [7; 65_536]);
        life.rt
            .block_on(write(&life, &store, 4_096, 8, 4_096))
            .expect("space again");
        if rng.chance(50) {
            life.rt.kill();
            for disk in disks.iter() {
                disk.borrow_mut().kill(&mut rng);
            }
        } else {
            let stopping = store.clone();
            life.rt
                .block_on(async move { stopping.stop().await })
                .expect("stopped");
        }
        drop(store);
        life = Life::new(&disks, &mut rng);
        store = life.open();
        let mut expected = vec![7; 65_536];
        expected[4_096..8_192].fill(8);
        assert_eq!(read(&life, &store), expected);
        drop(store);
        life.rt.kill();
        life = Life::new(&disks, &mut rng);
        let summary = life.check(CheckOptions {
            repair: false,
            data: true,
        });
        assert_eq!(
            summary.result(),
            CheckResult::Clean,
            "{:#?}",
            summary.problems
        );
    }
}

/// Units that were given up, written again and given up again within one journal: replay must not
/// take the first giving up, which is durable, for the second, which is not. If it does, the next
/// checkpoint's trees get units that are freed once more under them.
#[test]
fn reuse_within_the_journal_frees_nothing_early() {
    for seed in seeds(40) {
        let _seed = Seed(seed);
        let mut rng = Rng(seed ^ 0x5EED);
        let disks = disks();
        let mut life = Life::new(&disks, &mut rng);
        format_volume(&life);
        let mut store = life.open();
        let (id, version) = (ChunkId(1), ChunkVersion(1));
        life.rt
            .block_on(store.create(id, version))
            .expect("created");
        let write = |life: &Life, store: &Store, byte: u8| {
            let data: IoVec = life.pool.copy_now(&vec![byte; 65_536]);
            let crc = crc32_iovec(&data);
            let write = store.write(id, version, 0, 0, data, crc);
            life.rt.block_on(write).expect("written");
        };
        let durable = 10 + rng.below(10) as u8;
        let last = durable + 1 + rng.below(6) as u8;
        for byte in 1..=last {
            write(&life, &store, byte);
            if byte <= durable {
                life.rt.block_on(store.finish(id)).expect("durable");
            }
        }
        drop(store);
        life.rt.kill();
        for disk in disks.iter() {
            disk.borrow_mut().kill(&mut rng);
        }
        life = Life::new(&disks, &mut rng);
        store = life.open();
        // Checkpoints replace the trees that the closing wrote.
        for byte in last + 1..last + 4 {
            write(&life, &store, byte);
            let stopping = store.clone();
            life.rt
                .block_on(async move { stopping.stop().await })
                .expect("stopped");
            drop(store);
            life.rt.kill();
            life = Life::new(&disks, &mut rng);
            store = life.open();
            let read = store.read(id, version, 0, 0, 65_536);
            let read = life.rt.block_on(read).expect("read").data.to_vec();
            assert_eq!(read, [byte; 65_536]);
        }
        drop(store);
        life.rt.kill();
        life = Life::new(&disks, &mut rng);
        let summary = life.check(CheckOptions {
            repair: false,
            data: true,
        });
        assert_eq!(
            summary.result(),
            CheckResult::Clean,
            "{:#?}",
            summary.problems
        );
    }
}
