//! What a volume is, and whose: the offline view and the ownership by metaid.

use crate::medium::Medium;
use crate::open::{newest_superblock, OpenError};
use crate::store::{Life, Store};
use blockdev::{Mirror, Pool};
use chunk_api::ChunkError;
use std::rc::Rc;
use thiserror::Error;

/// The metaid of a volume that the next master may have, whatever chunks it holds.
pub const ANY_METAID: u64 = u64::MAX;

/// The superblock's view of a volume that is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Format version.
    pub format_version: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes of live chunks at the last checkpoint.
    pub used_bytes: u64,
    /// Live chunks at the last checkpoint.
    pub chunks: u64,
    /// Stopped cleanly: the two figures above are exact.
    pub clean: bool,
    /// The master's id; 0: none yet.
    pub metaid: u64,
    /// The chunkserver id that the master gave.
    pub csid: u16,
    /// Highest chunk id ever ordered.
    pub largest_chunk_id: u64,
    /// Counts superblocks.
    pub epoch: u64,
    /// Counts starts.
    pub run: u64,
    /// When the superblock was written, Unix µs.
    pub written_us: u64,
}

/// Reads what a volume is, without writing.
pub async fn info(mirror: Rc<dyn Mirror>, pool: Pool) -> Result<VolumeInfo, OpenError> {
    let sb = newest_superblock(&Medium::new(mirror, pool)).await?;
    let unit = crate::layout::UNIT_BYTES as u64;
    Ok(VolumeInfo {
        format_version: crate::superblock::FORMAT_VERSION,
        size_bytes: sb.units * unit,
        used_bytes: sb.owned.saturating_mul(unit),
        chunks: sb.chunks,
        clean: sb.clean,
        metaid: sb.metaid,
        csid: sb.csid,
        largest_chunk_id: sb.highest_id,
        epoch: sb.epoch,
        run: sb.run,
        written_us: sb.written_us,
        name: sb.name,
        uuid: sb.uuid,
    })
}

/// Why a volume does not take a metaid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AdoptError {
    /// It belongs to another MooseFS instance.
    #[error("volume {name} belongs to the MooseFS instance with metaid {held:016X}, not {asked:016X}: `antler volume claim {name} --metaid {asked:016X}` would hand it over")]
    Foreign {
        /// The volume.
        name: String,
        /// Its metaid.
        held: u64,
        /// The master's.
        asked: u64,
    },
    /// It holds chunks of nobody knows whom.
    #[error("volume {name} holds {chunks} chunks but no metaid: `antler volume claim {name} --metaid {asked:016X}` if they belong to this master")]
    Unclaimed {
        /// The volume.
        name: String,
        /// Its chunks.
        chunks: u64,
        /// The master's.
        asked: u64,
    },
    /// The superblock could not be written.
    #[error(transparent)]
    Io(#[from] ChunkError),
}

impl Store {
    /// The master's id that the volume belongs to; 0: none yet.
    pub fn metaid(&self) -> u64 {
        self.core.borrow().superblock.metaid
    }

    /// The chunkserver id kept on the volume; 0: none.
    pub fn csid(&self) -> u16 {
        self.core.borrow().superblock.csid
    }

    /// A master with `metaid` wants to use the volume under `csid` (0: not known yet). An empty
    /// volume without owner takes it, durably; its own master's is confirmed, and a new `csid`
    /// kept. A foreign volume, or one that holds chunks and has no owner, stays as it is.
    pub async fn adopt_metaid(&self, metaid: u64, csid: u16) -> Result<(), AdoptError> {
        {
            let core = self.core.borrow();
            let sb = &core.superblock;
            let name = self.options.name.clone();
            let keeps = csid == 0 || sb.csid == csid || *self.life.borrow() == Life::ReadOnly;
            if sb.metaid == metaid && keeps {
                self.note_registration(core.dir.live().chunks);
                return Ok(());
            }
            if ![0, ANY_METAID, metaid].contains(&sb.metaid) {
                return Err(AdoptError::Foreign {
                    name,
                    held: sb.metaid,
                    asked: metaid,
                });
            }
            let chunks = core.dir.live().chunks;
            if sb.metaid == 0 && chunks > 0 {
                return Err(AdoptError::Unclaimed {
                    name,
                    chunks,
                    asked: metaid,
                });
            }
        }
        self.claim(metaid, csid).await?;
        self.note_registration(self.core.borrow().dir.live().chunks);
        Ok(())
    }

    /// What is ordered from now on is a master's that was told of `chunks` chunks.
    fn note_registration(&self, chunks: u64) {
        let wall_s = (self.rt.wall().0 / 1_000_000) as u32;
        let now = self.rt.now();
        self.stale.borrow_mut().on_registered(now, wall_s, chunks);
    }

    /// Sets the owner whatever it was, durably: the operator's `volume claim`. 0 gives the volume
    /// up, [`ANY_METAID`] to the next master that asks.
    pub async fn claim(&self, metaid: u64, csid: u16) -> Result<(), ChunkError> {
        self.writable()?;
        {
            let sb = &mut self.core.borrow_mut().superblock;
            if sb.metaid != metaid {
                // Ids of one file system say nothing about those of another.
                sb.highest_id = 0;
                self.stale.borrow_mut().on_new_owner();
            }
            sb.metaid = metaid;
            sb.csid = if csid == 0 { sb.csid } else { csid };
        }
        self.checkpoint().await
    }
}
