//! What a store should hold: each chunk's history, and random operations on both.
//!
//! Each chunk has a history of states in the order of the calls; a crash must leave it in one of
//! them: not before the last one acknowledged (process killed, or one leg lost its cache), nor the
//! last one durable (both legs lost theirs). What recovery shows once stays.

use super::life::{Life, Mode};
use super::{Disks, Rng};
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkError, ChunkId, ChunkVersion, Chunks};
use chunk_store::{Durability, Store};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

pub const IDS: u64 = 6;
/// Blocks that are written: the first, its neighbour, both sides of a map page's end, far away.
pub const BLOCKS: [u16; 5] = [0, 1, 27, 28, 600];
pub const GRANULE: usize = 4096;

pub type Content = BTreeMap<u32, Rc<Vec<u8>>>;

#[derive(Clone, PartialEq, Eq)]
pub struct Chunk {
    pub version: u32,
    pub blocks: u16,
    pub granules: Content,
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

pub type State = Option<Chunk>;

pub struct History {
    pub states: Vec<State>,
    pub acknowledged: usize,
    pub durable: usize,
}

impl History {
    pub fn of(state: State) -> History {
        History {
            states: vec![state],
            acknowledged: 0,
            durable: 0,
        }
    }

    pub fn last(&self) -> &State {
        self.states.last().expect("a history has a state")
    }
}

pub type Model = Rc<RefCell<BTreeMap<u64, History>>>;

pub fn write_into(chunk: &mut Chunk, at: usize, bytes: &[u8]) {
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

pub fn set(chunk: &mut Chunk, granule: u32, bytes: Vec<u8>) {
    match bytes.iter().all(|&b| b == 0) {
        true => chunk.granules.remove(&granule),
        false => chunk.granules.insert(granule, Rc::new(bytes)),
    };
}

pub fn cut_to(chunk: &mut Chunk, length: u32) {
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
/// An operation under way: what its success means.
pub struct Mark {
    model: Model,
    ids: Vec<(u64, usize)>,
    durable: bool,
}

impl Mark {
    pub fn done(self) {
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

pub struct Run {
    pub rng: Rng,
    pub disks: Disks,
    pub model: Model,
    pub errors: Rc<RefCell<Vec<String>>>,
    pub under_way: Rc<Cell<usize>>,
    pub mode: Mode,
}

impl Run {
    pub fn new(mode: Mode, disks: &Disks, rng: Rng) -> Run {
        Run {
            rng,
            disks: disks.clone(),
            model: Model::default(),
            errors: Rc::default(),
            under_way: Rc::default(),
            mode,
        }
    }

    pub fn push(&self, id: u64, state: State) -> (u64, usize) {
        let mut model = self.model.borrow_mut();
        let history = model.entry(id).or_insert_with(|| History::of(None));
        history.states.push(state);
        (id, history.states.len() - 1)
    }

    pub fn current(&self, id: u64) -> State {
        self.model.borrow().get(&id).and_then(|h| h.last().clone())
    }

    pub fn watch(
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

    pub fn mark(&self, ids: Vec<(u64, usize)>, durable: bool) -> Option<Mark> {
        Some(Mark {
            model: self.model.clone(),
            ids,
            durable,
        })
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
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

    pub fn step(&mut self, life: &Life, store: &Rc<Store>) {
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
                let mark = self.mark(ids, self.mode.durability != Durability::Cache);
                self.watch(life, reply, Ok(()), mark, "finish".into());
            }
            _ => self.read(life, store, id),
        }
    }

    pub fn write(&mut self, life: &Life, store: &Rc<Store>, id: u64, state: State) {
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

    pub fn read(&mut self, life: &Life, store: &Rc<Store>, id: u64) {
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
    pub fn verify(&mut self, life: &Life, store: &Rc<Store>, floor: impl Fn(&History) -> usize) {
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

    pub fn no_errors(&self) {
        let errors = self.errors.borrow();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}

pub fn bytes_of(chunk: &Chunk, at: usize, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size);
    for offset in at..at + size {
        let granule = chunk.granules.get(&((offset / GRANULE) as u32));
        out.push(granule.map_or(0, |g| g[offset % GRANULE]));
    }
    out
}
