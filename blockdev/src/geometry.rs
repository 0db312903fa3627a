//! Positions and the shape of a device.

use std::fmt;
use std::ops::{Add, Range};

/// Bytes in a [`Sector`]: always 512.
pub const SECTOR_BYTES: u64 = 512;

/// A position on a device in units of 512 bytes, independent of the logical block size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sector(pub u64);

impl Sector {
    /// The sector that begins at byte `offset`, which must be a multiple of 512.
    ///
    /// # Panics
    /// If `offset` is not aligned.
    pub fn from_bytes(offset: u64) -> Sector {
        assert!(
            offset % SECTOR_BYTES == 0,
            "byte offset {offset} is not on a sector boundary"
        );
        Sector(offset / SECTOR_BYTES)
    }

    /// Its byte offset.
    pub fn bytes(self) -> u64 {
        self.0 * SECTOR_BYTES
    }

    /// The range of `sectors` sectors that begins here.
    pub fn span(self, sectors: u64) -> Range<Sector> {
        self..Sector(self.0 + sectors)
    }
}

impl Add<u64> for Sector {
    type Output = Sector;

    fn add(self, sectors: u64) -> Sector {
        Sector(self.0 + sectors)
    }
}

impl fmt::Debug for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a device is like. Changes only after [`crate::Event::Changed`] was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Smallest addressable unit in bytes (512 or 4096): alignment of every operation.
    pub logical_block_bytes: u32,
    /// Unit of efficient writes in bytes.
    pub physical_block_bytes: u32,
    /// First sector aligned to a physical block (SBC-3 LOWEST ALIGNED LOGICAL BLOCK ADDRESS).
    pub lowest_aligned: Sector,
    /// Largest transfer of one operation, in sectors; larger ones are split by the device.
    pub max_transfer_sectors: u32,
    /// Has a volatile write cache: an answered write is durable only after `Op::Flush` or FUA.
    pub write_cache: bool,
    /// FUA is honoured.
    pub fua: bool,
    /// `Op::Discard` does something.
    pub discard: bool,
    /// Discarded sectors read as zeros.
    pub discard_zeroes: bool,
}

impl Geometry {
    /// A plain device of `sectors` sectors: 512-byte blocks, 1 MiB transfers, a volatile cache.
    pub fn plain(sectors: u64) -> Geometry {
        Geometry {
            sectors,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            lowest_aligned: Sector(0),
            max_transfer_sectors: 2048,
            write_cache: true,
            fua: true,
            discard: false,
            discard_zeroes: false,
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.sectors * SECTOR_BYTES
    }

    /// Whether `sectors` sectors at `at` lie inside and on logical block boundaries.
    pub fn accepts(&self, at: Sector, sectors: u64) -> bool {
        let block = u64::from(self.logical_block_bytes) / SECTOR_BYTES;
        at.0.checked_add(sectors)
            .is_some_and(|end| end <= self.sectors)
            && at.0 % block == 0
            && sectors % block == 0
    }
}
