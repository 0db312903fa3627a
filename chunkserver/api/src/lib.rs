//! What a chunk is, and what the protocol side asks of whoever stores chunks.
//!
//! The MooseFS protocol (`moosefs`) and the store (`chunk-store`) know each other only through
//! this crate: names ([`ChunkId`], [`ChunkVersion`]), sizes, errors by MooseFS status code, CRC-32
//! arithmetic and the object-safe trait [`Chunks`]. A node serves several volumes behind one
//! `Chunks`; a test serves a map in memory.
//!
//! Sizes: a chunk is 64 MiB = 1024 blocks of 64 KiB; a block is 16 granules of 4 KiB, the unit of
//! our checksums. "Block" alone always means the MooseFS 64 KiB block here.
//!
//! Everything in this crate lives on one shard thread; futures are neither `Send` nor bound to a
//! runtime.

pub mod crc;
mod error;
mod report;

pub use error::ChunkError;
pub use report::{Report, ReportQueue};

use blockdev::IoVec;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// Bytes in a MooseFS block.
pub const BLOCK_BYTES: u32 = 65_536;
/// Blocks in a chunk.
pub const BLOCKS_PER_CHUNK: u16 = 1024;
/// Bytes in a chunk.
pub const CHUNK_BYTES: u32 = 64 << 20;
/// Bytes in a granule, the unit that has a checksum of its own.
pub const GRANULE_BYTES: u32 = 4096;
/// Granules in a block.
pub const GRANULES_PER_BLOCK: u16 = 16;

/// A chunk's 64-bit id. In MooseFS 4 the top byte is an erasure-code part; stored opaquely.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub u64);

/// A chunk's 32-bit version. In a master's command, 0 means "any version".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkVersion(pub u32);

impl ChunkVersion {
    /// Whether a copy of version `held` satisfies a request for `self` (0 = any).
    pub fn accepts(self, held: ChunkVersion) -> bool {
        self.0 == 0 || self == held
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ChunkVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.0)
    }
}

/// The future of every operation on chunks: local to the shard, owned, droppable.
///
/// Dropping it detaches: an operation that was begun is finished all the same.
pub type Reply<T> = Pin<Box<dyn Future<Output = Result<T, ChunkError>>>>;

/// Bytes of one block, with their CRC-32 as `CSTOCL_READ_DATA` carries it.
#[derive(Clone, Debug)]
pub struct ReadPiece {
    /// The bytes; never-written ones are zeros.
    pub data: IoVec,
    /// CRC-32 (IEEE) over exactly `data`.
    pub crc: u32,
}

/// Space and number of chunks, as registration and `CSTOMA_SPACE` report them. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Used bytes of the volumes in use (blocks shared by snapshots count once per owner).
    pub used_bytes: u64,
    /// Total bytes of the volumes in use.
    pub total_bytes: u64,
    /// Chunks there.
    pub chunks: u32,
    /// The same three of volumes marked for removal (`td_*`).
    pub removing_used_bytes: u64,
    /// See `removing_used_bytes`.
    pub removing_total_bytes: u64,
    /// See `removing_used_bytes`.
    pub removing_chunks: u32,
}

/// One entry of a registration list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// The chunk.
    pub id: ChunkId,
    /// Its version.
    pub version: ChunkVersion,
    /// On a volume marked for removal (bit 31 of the version on the wire).
    pub removing: bool,
}

/// Counters of one period for `CSTOAN_HDD_LIST`; times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DiskStats {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub read_us: u64,
    pub write_us: u64,
    pub fsync_us: u64,
    pub read_ios: u32,
    pub write_ios: u32,
    pub fsync_ios: u32,
    pub read_us_max: u32,
    pub write_us_max: u32,
    pub fsync_us_max: u32,
}

/// A volume as `mfscli -SHD` shows it: one disk whose path is the volume's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// The volume's name.
    pub path: String,
    /// Marked for removal.
    pub removing: bool,
    /// Damaged: not served.
    pub damaged: bool,
    /// Still opening.
    pub scanning: bool,
    /// The chunk and Unix time (seconds) of the last error, if any.
    pub last_error: Option<(ChunkId, u32)>,
    /// Bytes used.
    pub used_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Chunks held.
    pub chunks: u32,
    /// Last minute, hour, day.
    pub stats: [DiskStats; 3],
}

/// A replica under construction, invisible until [`Chunks::replica_commit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaToken(pub u64);

/// Storage of chunks, as the protocol needs it.
///
/// Order: operations on one chunk take effect in the order of the calls (each call fixes its place
/// before it returns), those on different chunks in any order. Version 0 in `version`/`old` means
/// any. Errors are [`ChunkError`]; after `Err` nothing of the operation is visible unless said.
pub trait Chunks {
    /// `MATOCS_CREATE`: an empty chunk. [`ChunkError::Exists`] if the id is held.
    fn create(&self, id: ChunkId, version: ChunkVersion) -> Reply<()>;

    /// `MATOCS_DELETE`: a rename into the quarantine, durable before `Ok`.
    /// [`ChunkError::NoChunk`] if absent, [`ChunkError::WrongVersion`] if the version differs.
    fn delete(&self, id: ChunkId, version: ChunkVersion) -> Reply<()>;

    /// `MATOCS_SET_VERSION`: durable before `Ok`.
    fn set_version(&self, id: ChunkId, new: ChunkVersion, old: ChunkVersion) -> Reply<()>;

    /// `MATOCS_TRUNCATE` to `length` bytes (≤ 64 MiB) with a change of version: durable before
    /// `Ok`. Extension reads as zeros; the tail of the last block is zeroed.
    fn truncate(&self, id: ChunkId, length: u32, new: ChunkVersion, old: ChunkVersion)
        -> Reply<()>;

    /// `MATOCS_DUPLICATE`, and with `length` `MATOCS_DUPTRUNC`: an independent copy under a new
    /// id. [`ChunkError::Exists`] if `new_id` is held.
    fn duplicate(
        &self,
        new_id: ChunkId,
        new_version: ChunkVersion,
        old_id: ChunkId,
        old_version: ChunkVersion,
        length: Option<u32>,
    ) -> Reply<()>;

    /// Whether the chunk is held in that version; the answer to opening a read or a write chain
    /// (13, 19 or 21/22 otherwise). Blocks (highest written block + 1) on success.
    fn open(&self, id: ChunkId, version: ChunkVersion) -> Result<u16, ChunkError>;

    /// The version held of a chunk, if it is held.
    fn held(&self, id: ChunkId) -> Option<ChunkVersion> {
        // A version nobody has: the refusal names the one that is held.
        const NONE: ChunkVersion = ChunkVersion(u32::MAX);
        match self.open(id, NONE) {
            Ok(_) => Some(NONE),
            Err(ChunkError::WrongVersion { held }) => Some(held),
            Err(_) => None,
        }
    }

    /// Reads `size` bytes at `offset` of block `block` (`offset + size` ≤ 64 KiB, `size` ≥ 1).
    ///
    /// Every byte has been checked against its granule's checksum. A block damaged on every leg:
    /// [`ChunkError::Crc`], and a [`Report::Damaged`] has been queued.
    fn read(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        block: u16,
        offset: u32,
        size: u32,
    ) -> Reply<ReadPiece>;

    /// Writes `data` (1 byte to 64 KiB, inside one block) at `offset` of block `block`.
    ///
    /// `crc` is the wire's sum over `data`: [`ChunkError::Crc`], with nothing stored, if it does
    /// not match. `Ok`: answered by every in-sync leg (P1). To be copy-free, the first byte of
    /// `data` lies at `offset % 4096` of its page; other placements are copied once.
    fn write(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        block: u16,
        offset: u32,
        data: IoVec,
        crc: u32,
    ) -> Reply<()>;

    /// `CLTOCS_WRITE_FINISH`: with durability `flush` or `fua`, what was acknowledged before the
    /// call is durable at `Ok`.
    fn finish(&self, id: ChunkId) -> Reply<()>;

    /// CRC-32 of each of the 1024 blocks; `0xD7978EEB` for absent ones (`ANTOCS_GET_CHECKSUM_TAB`).
    fn checksum_table(&self, id: ChunkId, version: ChunkVersion) -> Reply<Vec<u32>>;

    /// Begins a replica of a chunk that is not held ([`ChunkError::Exists`] otherwise).
    fn replica_begin(&self, id: ChunkId, version: ChunkVersion) -> Reply<ReplicaToken>;

    /// Adds one whole block (64 KiB) to a replica; all-zero granules are stored as holes.
    fn replica_write(&self, token: ReplicaToken, block: u16, data: IoVec, crc: u32) -> Reply<()>;

    /// Makes the replica the chunk, durably, with `blocks` blocks.
    fn replica_commit(&self, token: ReplicaToken, blocks: u16) -> Reply<()>;

    /// Gives up a replica; its space is free again.
    fn replica_abort(&self, token: ReplicaToken);

    /// Everything to register, in ascending order of ids. Reads the index, never the data.
    fn inventory(&self) -> Vec<ChunkEntry>;

    /// Space now.
    fn space(&self) -> Space;

    /// Volumes as disks.
    fn disks(&self) -> Vec<Disk>;

    /// What the master must be told unasked: damage, loss, new chunks.
    fn reports(&self) -> Rc<ReportQueue>;
}
