//! Laying out an empty volume.

use crate::layout::{sector, Page, SLOTS_PER_END, UNITS_MAX, UNIT_BYTES, UNIT_SECTORS};
use crate::options::FormatParams;
use crate::superblock::{
    slot_units, Superblock, TreeRoot, SEGMENTS_MAX, SEGMENTS_MIN, SEGMENT_UNITS_MAX,
    SEGMENT_UNITS_MIN,
};
use blockdev::{Durability, IoCtx, IoError, IoVec, Mirror, Op, Pool};
use std::rc::Rc;
use thiserror::Error;

/// Units from which on segments are 4 MiB.
const LARGE_UNITS: u64 = (16 << 30) / UNIT_BYTES as u64;
/// Units from which on there are 16 segments.
const MEDIUM_UNITS: u64 = (1 << 30) / UNIT_BYTES as u64;
/// Units left for data at least.
const DATA_UNITS_MIN: u64 = 256;

/// Why a volume cannot be formatted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    /// Too small (or larger than 4 PiB); the least number of bytes for these parameters.
    #[error("volume of {size_bytes} bytes cannot hold a store: at least {least_bytes} are needed (at most 4 PiB)")]
    Size {
        /// What it has.
        size_bytes: u64,
        /// What it needs.
        least_bytes: u64,
    },
    /// Parameters out of range.
    #[error("{0}")]
    Params(&'static str),
    /// The device failed; the volume is not usable.
    #[error("format failed: {0}")]
    Io(#[from] IoError),
}

/// Lays out an empty volume. Whatever was there is gone: both ends are overwritten, the journal's
/// secret is new. `Ok`: durable on every in-sync leg.
pub async fn format(
    mirror: Rc<dyn Mirror>,
    pool: &Pool,
    params: &FormatParams,
) -> Result<(), FormatError> {
    let units = mirror.geometry().sectors / UNIT_SECTORS;
    let segment_units =
        params
            .segment_units
            .unwrap_or(if units < LARGE_UNITS { 256 } else { 1024 });
    let count = params
        .segments
        .unwrap_or(if units < MEDIUM_UNITS { 8 } else { 16 });
    if params.name.len() > 64 || params.name.is_empty() {
        return Err(FormatError::Params("a volume's name has 1 to 64 bytes"));
    }
    if !(SEGMENTS_MIN..=SEGMENTS_MAX).contains(&(count as usize))
        || !(SEGMENT_UNITS_MIN..=SEGMENT_UNITS_MAX).contains(&segment_units)
    {
        return Err(FormatError::Params(
            "8 to 64 journal segments of 8 to 65536 units",
        ));
    }
    let journal = u64::from(count) * u64::from(segment_units);
    let least = 2 * SLOTS_PER_END + journal + DATA_UNITS_MIN;
    if units < least || units >= UNITS_MAX {
        return Err(FormatError::Size {
            size_bytes: units * UNIT_BYTES as u64,
            least_bytes: least * UNIT_BYTES as u64,
        });
    }
    let segments: Vec<u64> = (0..u64::from(count))
        .map(|i| SLOTS_PER_END + i * u64::from(segment_units))
        .collect();
    let superblock = Superblock {
        compat: 0,
        ro_compat: 0,
        uuid: params.uuid,
        secret: params.secret,
        name: params.name.clone(),
        units,
        epoch: 1,
        run: 0,
        metaid: 0,
        csid: 0,
        zone: 0,
        zones: 1,
        clean: true,
        checkpoint_seq: 0,
        journal_unit: segments[0],
        journal_seq: 1,
        journal_index: 0,
        directory: TreeRoot::default(),
        alloc: TreeRoot::default(),
        highest_id: 0,
        chunks: 0,
        owned: 0,
        written_us: 0,
        segment_units,
        segments,
    };
    let zeros = IoVec::zeros(SLOTS_PER_END as usize * UNIT_BYTES);
    for first in slot_units(0, units) {
        write(&mirror, first, zeros.clone()).await?;
    }
    mirror.submit(Op::Flush, IoCtx::metadata()).await?;
    for unit in slot_units(superblock.epoch, units) {
        let page: Page = superblock.encode(superblock.epoch as u32);
        write(&mirror, unit, pool.copy_now(&page.0)).await?;
    }
    mirror.submit(Op::Flush, IoCtx::metadata()).await?;
    Ok(())
}

async fn write(mirror: &Rc<dyn Mirror>, unit: u64, data: IoVec) -> Result<(), IoError> {
    let op = Op::Write {
        at: sector(unit),
        data,
        want: Durability::Cache,
    };
    mirror.submit(op, IoCtx::metadata()).await.map(|_| ())
}
