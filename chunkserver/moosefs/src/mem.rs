//! Chunks in memory: for tests, examples and benches of the protocol alone.
//!
//! Blocks are whole 64 KiB vectors; never-written ones take no memory. [`MemChunks::set_delay`]
//! makes every operation slow and [`MemChunks::damage`] breaks a block, so that keep-alives and
//! damage can be shown.

use blockdev::{IoVec, Pool, Rt};
use chunk_api::crc::{crc32, crc32_iovec, ZERO_BLOCK_CRC};
use chunk_api::{
    ChunkEntry, ChunkError, ChunkId, ChunkVersion, Chunks, Disk, ReadPiece, ReplicaToken, Reply,
    Report, ReportQueue, Space, BLOCKS_PER_CHUNK, BLOCK_BYTES,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

type Block = Box<[u8]>;

#[derive(Clone, Default)]
struct Chunk {
    version: u32,
    count: u16,
    blocks: BTreeMap<u16, Block>,
    damaged: Option<u16>,
}

/// See the module.
pub struct MemChunks {
    pool: Pool,
    rt: Rt,
    chunks: RefCell<BTreeMap<ChunkId, Chunk>>,
    replicas: RefCell<BTreeMap<ReplicaToken, (ChunkId, Chunk)>>,
    next_replica: Cell<u64>,
    reports: Rc<ReportQueue>,
    delay: Cell<Duration>,
    total_bytes: u64,
    finished: Cell<u64>,
}

impl MemChunks {
    /// Room for `total_bytes`, which is only told, never enforced.
    pub fn new(rt: Rt, pool: Pool, total_bytes: u64) -> Rc<MemChunks> {
        Rc::new(MemChunks {
            pool,
            rt,
            chunks: RefCell::default(),
            replicas: RefCell::default(),
            next_replica: Cell::new(1),
            reports: Rc::default(),
            delay: Cell::default(),
            total_bytes,
            finished: Cell::new(0),
        })
    }

    /// Every operation answers this much later from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.delay.set(delay);
    }

    /// Reads of this block fail from now on.
    pub fn damage(&self, id: ChunkId, block: u16) {
        if let Some(chunk) = self.chunks.borrow_mut().get_mut(&id) {
            chunk.damaged = Some(block);
        }
    }

    /// Calls of [`Chunks::finish`] so far.
    pub fn finished(&self) -> u64 {
        self.finished.get()
    }

    fn reply<T: 'static>(&self, result: Result<T, ChunkError>) -> Reply<T> {
        let delay = self.delay.get();
        if delay.is_zero() {
            return Box::pin(std::future::ready(result));
        }
        let sleep = self.rt.sleep(delay);
        Box::pin(async move {
            sleep.await;
            result
        })
    }

    /// Runs `change` on a chunk of a fitting version.
    fn with<T>(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        change: impl FnOnce(&mut Chunk) -> Result<T, ChunkError>,
    ) -> Result<T, ChunkError> {
        let mut chunks = self.chunks.borrow_mut();
        let chunk = chunks.get_mut(&id).ok_or(ChunkError::NoChunk)?;
        let held = ChunkVersion(chunk.version);
        if !version.accepts(held) {
            return Err(ChunkError::WrongVersion { held });
        }
        change(chunk)
    }
}

impl Chunk {
    fn truncate(&mut self, length: u32) {
        self.count = length.div_ceil(BLOCK_BYTES) as u16;
        self.blocks.retain(|&block, _| block < self.count);
        let (last, keep) = (
            (length / BLOCK_BYTES) as u16,
            (length % BLOCK_BYTES) as usize,
        );
        if let Some(block) = self.blocks.get_mut(&last) {
            block[keep..].fill(0);
        }
    }

    fn write(&mut self, block: u16, offset: u32, data: &IoVec) {
        let zeros = || vec![0; BLOCK_BYTES as usize].into_boxed_slice();
        let bytes = self.blocks.entry(block).or_insert_with(zeros);
        data.copy_to(&mut bytes[offset as usize..offset as usize + data.len()]);
        self.count = self.count.max(block + 1);
    }
}

impl Chunks for MemChunks {
    fn create(&self, id: ChunkId, version: ChunkVersion) -> Reply<()> {
        let mut chunks = self.chunks.borrow_mut();
        let result = match chunks.contains_key(&id) {
            true => Err(ChunkError::Exists),
            false => {
                chunks.insert(
                    id,
                    Chunk {
                        version: version.0,
                        ..Chunk::default()
                    },
                );
                Ok(())
            }
        };
        self.reply(result)
    }

    fn delete(&self, id: ChunkId, version: ChunkVersion) -> Reply<()> {
        let held = self.with(id, version, |_| Ok(()));
        self.reply(held.map(|()| {
            self.chunks.borrow_mut().remove(&id);
        }))
    }

    fn set_version(&self, id: ChunkId, new: ChunkVersion, old: ChunkVersion) -> Reply<()> {
        self.reply(self.with(id, old, |chunk| {
            chunk.version = new.0;
            Ok(())
        }))
    }

    fn truncate(
        &self,
        id: ChunkId,
        length: u32,
        new: ChunkVersion,
        old: ChunkVersion,
    ) -> Reply<()> {
        self.reply(self.with(id, old, |chunk| {
            chunk.version = new.0;
            chunk.truncate(length);
            Ok(())
        }))
    }

    fn duplicate(
        &self,
        new_id: ChunkId,
        new_version: ChunkVersion,
        old_id: ChunkId,
        old_version: ChunkVersion,
        length: Option<u32>,
    ) -> Reply<()> {
        let copy = self.with(old_id, old_version, |chunk| Ok(chunk.clone()));
        let exists = self.chunks.borrow().contains_key(&new_id);
        let result = copy.and_then(|mut copy| {
            if exists {
                return Err(ChunkError::Exists);
            }
            copy.version = new_version.0;
            if let Some(length) = length {
                copy.truncate(length);
            }
            self.chunks.borrow_mut().insert(new_id, copy);
            Ok(())
        });
        self.reply(result)
    }

    fn open(&self, id: ChunkId, version: ChunkVersion) -> Result<u16, ChunkError> {
        self.with(id, version, |chunk| Ok(chunk.count))
    }

    fn read(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        block: u16,
        offset: u32,
        size: u32,
    ) -> Reply<ReadPiece> {
        let result = self.with(id, version, |chunk| {
            if chunk.damaged == Some(block) {
                self.reports.push(Report::Damaged(id));
                return Err(ChunkError::Crc);
            }
            Ok(match chunk.blocks.get(&block) {
                None => {
                    let data = IoVec::zeros(size as usize);
                    ReadPiece {
                        crc: chunk_api::crc::zeros(size),
                        data,
                    }
                }
                Some(bytes) => {
                    let bytes = &bytes[offset as usize..(offset + size) as usize];
                    ReadPiece {
                        data: self.pool.copy_now(bytes),
                        crc: crc32(bytes),
                    }
                }
            })
        });
        self.reply(result)
    }

    fn write(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        block: u16,
        offset: u32,
        data: IoVec,
        crc: u32,
    ) -> Reply<()> {
        let result = self.with(id, version, |chunk| {
            if crc32_iovec(&data) != crc {
                return Err(ChunkError::Crc);
            }
            chunk.write(block, offset, &data);
            Ok(())
        });
        self.reply(result)
    }

    fn finish(&self, _id: ChunkId) -> Reply<()> {
        self.finished.set(self.finished.get() + 1);
        self.reply(Ok(()))
    }

    fn checksum_table(&self, id: ChunkId, version: ChunkVersion) -> Reply<Vec<u32>> {
        self.reply(self.with(id, version, |chunk| {
            let sum = |block| {
                chunk
                    .blocks
                    .get(&block)
                    .map_or(ZERO_BLOCK_CRC, |b| crc32(b))
            };
            Ok((0..BLOCKS_PER_CHUNK).map(sum).collect())
        }))
    }

    fn replica_begin(&self, id: ChunkId, version: ChunkVersion) -> Reply<ReplicaToken> {
        if self.chunks.borrow().contains_key(&id) {
            return self.reply(Err(ChunkError::Exists));
        }
        let token = ReplicaToken(self.next_replica.get());
        self.next_replica.set(token.0 + 1);
        let chunk = Chunk {
            version: version.0,
            ..Chunk::default()
        };
        self.replicas.borrow_mut().insert(token, (id, chunk));
        self.reply(Ok(token))
    }

    fn replica_write(&self, token: ReplicaToken, block: u16, data: IoVec, _crc: u32) -> Reply<()> {
        let mut replicas = self.replicas.borrow_mut();
        let (_, chunk) = replicas.get_mut(&token).expect("a replica that was begun");
        if !data.is_zero() {
            chunk.write(block, 0, &data);
        }
        self.reply(Ok(()))
    }

    fn replica_commit(&self, token: ReplicaToken, blocks: u16) -> Reply<()> {
        let replica = self.replicas.borrow_mut().remove(&token);
        let (id, mut chunk) = replica.expect("a replica that was begun");
        chunk.count = blocks;
        let mut chunks = self.chunks.borrow_mut();
        let result = match chunks.contains_key(&id) {
            true => Err(ChunkError::Exists),
            false => {
                chunks.insert(id, chunk);
                Ok(())
            }
        };
        self.reply(result)
    }

    fn replica_abort(&self, token: ReplicaToken) {
        self.replicas.borrow_mut().remove(&token);
    }

    fn inventory(&self) -> Vec<ChunkEntry> {
        let chunks = self.chunks.borrow();
        let entry = |(&id, chunk): (&ChunkId, &Chunk)| ChunkEntry {
            id,
            version: ChunkVersion(chunk.version),
            removing: false,
        };
        chunks.iter().map(entry).collect()
    }

    fn space(&self) -> Space {
        let chunks = self.chunks.borrow();
        let blocks: usize = chunks.values().map(|chunk| chunk.blocks.len()).sum();
        Space {
            used_bytes: blocks as u64 * u64::from(BLOCK_BYTES),
            total_bytes: self.total_bytes,
            chunks: chunks.len() as u32,
            ..Space::default()
        }
    }

    fn disks(&self) -> Vec<Disk> {
        let Space {
            used_bytes,
            total_bytes,
            chunks,
            ..
        } = self.space();
        vec![Disk {
            path: "memory".into(),
            used_bytes,
            total_bytes,
            chunks,
            ..Disk::default()
        }]
    }

    fn reports(&self) -> Rc<ReportQueue> {
        self.reports.clone()
    }
}
