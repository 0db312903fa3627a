//! Why an operation on a chunk failed, by the MooseFS status that the other side will see.

use crate::ChunkVersion;
use thiserror::Error;

/// An error of [`crate::Chunks`]; [`ChunkError::status`] is the MooseFS status code.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChunkError {
    /// Not held (13). On a delete the master counts it as success.
    #[error("no such chunk")]
    NoChunk,
    /// Held in another version (19).
    #[error("wrong version: this copy has {held}")]
    WrongVersion {
        /// The version held.
        held: ChunkVersion,
    },
    /// The id is held already (20).
    #[error("chunk exists")]
    Exists,
    /// No room, on this node or on a thin unit behind it (21). Nothing was changed.
    #[error("no space")]
    NoSpace,
    /// The device failed (22). For a write the content is one of old and new, granule by granule.
    #[error("I/O error: {0}")]
    Io(String),
    /// The wire's checksum was wrong, or the stored bytes are damaged on every leg (29).
    #[error("checksum error")]
    Crc,
    /// A block number, offset or size outside a chunk (23, 24, 25): nothing was changed.
    #[error("out of range (status {0})")]
    Range(u8),
    /// Not begun, nothing changed (16): the volume is stopping or read-only.
    #[error("not done: {0}")]
    NotDone(&'static str),
}

impl ChunkError {
    /// The status byte of the MooseFS protocol.
    pub fn status(&self) -> u8 {
        match self {
            ChunkError::NoChunk => 13,
            ChunkError::NotDone(_) => 16,
            ChunkError::WrongVersion { .. } => 19,
            ChunkError::Exists => 20,
            ChunkError::NoSpace => 21,
            ChunkError::Io(_) => 22,
            ChunkError::Range(status) => *status,
            ChunkError::Crc => 29,
        }
    }
}
