//! Where everything lies on a leg.
//!
//! A leg is a member of an md array with metadata 1.2 (`mdadm --examine` reads it), plus two areas
//! of our own in the gap that md leaves between its metadata and the data ("headroom"):
//!
//! | bytes of the leg | what |
//! |---|---|
//! | 4096 | md superblock, 4 KiB ([`crate::superblock`]) |
//! | 4096 + `bitmap_offset` × 512 (8192) | write-intent bitmap ([`crate::bitmap`]) |
//! | 4096 + `bblog_offset` × 512 | md's bad block log, 4 KiB, always empty |
//! | `data_offset` × 512 − 294 912 | 8 claim slots of 4 KiB ([`crate::claim`]) |
//! | `data_offset` × 512 − 262 144 | 64 leg-record slots of 4 KiB ([`crate::record`]) |
//! | `data_offset` × 512 | the array's byte 0 |
//!
//! The slots are counted back from the data, because a bitmap that md moves or enlarges grows
//! from the front. With less headroom than 288 KiB there are fewer record slots; below 256 KiB a
//! member is refused. Slots belong to the leg, not to the array: they have no bitmap bit, and
//! writing one changes no md event count.
//!
//! [`Plan::for_leg`] chooses the same numbers as mdadm 4.2 for a whole device with an internal
//! bitmap (compared with a table of pairs that mdadm made, 64 MiB to 15 TiB).

use crate::superblock::Superblock;
use blockdev::Sector;
use std::ops::Range;

/// Sectors in a slot, a bitmap page and the superblock's reservation.
pub const SLOT_SECTORS: u64 = 8;
/// Bytes in a slot.
pub const SLOT_BYTES: usize = 4096;
/// Sector of the superblock.
pub const SUPER_SECTOR: u64 = 8;
/// Claim slots on a leg.
pub const CLAIM_SLOTS: u64 = 8;
/// Record slots on a leg, at most.
pub const RECORD_SLOTS_MAX: u64 = 64;
/// Least headroom, in sectors: 256 KiB.
pub const HEADROOM_SECTORS_MIN: u64 = 512;
/// Smallest leg, in sectors: 16 MiB.
pub const LEG_SECTORS_MIN: u64 = 32_768;
/// Bitmap chunk mdadm prefers, in bytes.
pub const BITMAP_CHUNK_BYTES: u64 = 64 << 20;
/// Bytes of the bitmap before its first bit.
pub const BITMAP_HEADER_BYTES: u64 = 256;

const MEBIBYTE: u64 = 2048;
const BBLOG_SECTORS: u64 = 8;

/// Numbers of a new leg, in sectors unless named otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the data begin.
    pub data_offset: u64,
    /// Sectors from there to the end of the leg.
    pub data_size: u64,
    /// Bytes under one bit of the bitmap.
    pub bitmap_chunk_bytes: u64,
    /// Bad block log, counted from the superblock.
    pub bblog_offset: u64,
}

impl Plan {
    /// What mdadm 4.2 chooses for a leg of `sectors`; `None` below [`LEG_SECTORS_MIN`].
    pub fn for_leg(sectors: u64) -> Option<Plan> {
        if sectors < LEG_SECTORS_MIN {
            return None;
        }
        let bitmap_room = bitmap_room(sectors);
        let mut headroom = 128 * MEBIBYTE;
        while headroom << 10 > sectors {
            headroom >>= 1;
        }
        let data_offset = (24 + bitmap_room + headroom).next_multiple_of(MEBIBYTE);
        let data_size = sectors - data_offset;
        let bits_max = (bitmap_room * 512 - BITMAP_HEADER_BYTES) * 8;
        let mut bitmap_chunk_bytes = BITMAP_CHUNK_BYTES;
        while (data_size * 512).div_ceil(bitmap_chunk_bytes) > bits_max {
            bitmap_chunk_bytes *= 2;
        }
        let bitmap = bitmap_sectors((data_size * 512).div_ceil(bitmap_chunk_bytes));
        Some(Plan {
            data_offset,
            data_size,
            bitmap_chunk_bytes,
            bblog_offset: 8 + bitmap,
        })
    }

    /// Sectors of the bad block log.
    pub fn bblog_sectors(&self) -> u64 {
        BBLOG_SECTORS
    }
}

fn bitmap_room(sectors: u64) -> u64 {
    const GIBIBYTE: u64 = 1024 * MEBIBYTE;
    if sectors - 128 >= 200 * GIBIBYTE {
        256
    } else if sectors - 8 > 8 * GIBIBYTE {
        128
    } else {
        8
    }
}

/// Sectors of a bitmap of `bits` bits, in whole pages.
pub fn bitmap_sectors(bits: u64) -> u64 {
    (BITMAP_HEADER_BYTES + bits.div_ceil(8)).div_ceil(SLOT_BYTES as u64) * SLOT_SECTORS
}

/// Places on one leg, taken from its superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// First sector of the bitmap.
    pub bitmap: Sector,
    /// First sector of the data.
    pub data: Sector,
    /// First claim slot.
    pub claims: Sector,
    /// First record slot.
    pub records: Sector,
    /// How many record slots there are, 56 to 64.
    pub record_slots: u64,
}

/// Why a member has no room for our slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// md metadata 1.2 without an internal bitmap.
    #[error("no internal bitmap; add one with `mdadm --grow --bitmap=internal /dev/mdX`")]
    Bitmap,
    /// Too little room between metadata and data.
    #[error(
        "only {0} KiB between metadata and data, 256 are needed; \
         make the pair again with `mdadm --create --data-offset=1M`"
    )]
    Headroom(u64),
    /// Offsets that contradict each other.
    #[error("metadata areas overlap or leave the device")]
    Overlap,
}

impl Places {
    /// From a superblock; `bitmap_bits` is what the array's size and bitmap chunk call for.
    pub fn of(sb: &Superblock, bitmap_bits: u64) -> Result<Places, NoPlace> {
        if sb.features & crate::superblock::FEATURE_BITMAP == 0 || sb.bitmap_offset == 0 {
            return Err(NoPlace::Bitmap);
        }
        let at = |offset: i32| i64::from(offset).checked_add(SUPER_SECTOR as i64);
        let bitmap = at(sb.bitmap_offset)
            .and_then(|s| u64::try_from(s).ok())
            .filter(|&s| s >= SUPER_SECTOR + SLOT_SECTORS && s % SLOT_SECTORS == 0)
            .ok_or(NoPlace::Overlap)?;
        let bits = bitmap_bits.min(u64::MAX / 16);
        let mut end = bitmap
            .checked_add(bitmap_sectors(bits))
            .ok_or(NoPlace::Overlap)?;
        if sb.bblog_offset != 0 {
            let log = at(sb.bblog_offset)
                .and_then(|s| u64::try_from(s).ok())
                .ok_or(NoPlace::Overlap)?;
            end = end.max(log.saturating_add(u64::from(sb.bblog_size)));
        }
        if sb.data_offset % SLOT_SECTORS != 0 {
            return Err(NoPlace::Overlap);
        }
        let room = sb
            .data_offset
            .saturating_sub(end.next_multiple_of(SLOT_SECTORS));
        if room < HEADROOM_SECTORS_MIN {
            return Err(NoPlace::Headroom(room / 2));
        }
        let record_slots = (room / SLOT_SECTORS - CLAIM_SLOTS).min(RECORD_SLOTS_MAX);
        let records = sb.data_offset - record_slots * SLOT_SECTORS;
        Ok(Places {
            bitmap: Sector(bitmap),
            data: Sector(sb.data_offset),
            claims: Sector(records - CLAIM_SLOTS * SLOT_SECTORS),
            records: Sector(records),
            record_slots,
        })
    }

    /// Sectors of claim slot `n` (taken modulo their number).
    pub fn claim_slot(&self, n: u64) -> Range<Sector> {
        Sector(self.claims.0 + n % CLAIM_SLOTS * SLOT_SECTORS).span(SLOT_SECTORS)
    }

    /// Sectors of record slot `n` (taken modulo their number).
    pub fn record_slot(&self, n: u64) -> Range<Sector> {
        Sector(self.records.0 + n % self.record_slots * SLOT_SECTORS).span(SLOT_SECTORS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_mdadm_chooses() {
        const MIB: u64 = 2048;
        let table = [
            (64 * MIB, 2048, 129_024, 16),
            (100 * MIB, 2048, 202_752, 16),
            (1024 * MIB, 4096, 2_093_056, 16),
            (10 * 1024 * MIB, 18_432, 20_953_088, 16),
            (100 * 1024 * MIB, 133_120, 209_582_080, 16),
            (1024 * 1024 * MIB, 264_192, 2_147_219_456, 16),
            (4 * 1024 * 1024 * MIB, 264_192, 8_589_670_400, 32),
            (15 * 1024 * 1024 * MIB, 264_192, 32_211_990_528, 72),
        ];
        for (leg, data_offset, data_size, bblog_offset) in table {
            let plan = Plan::for_leg(leg).expect("large enough");
            let want = Plan {
                data_offset,
                data_size,
                bitmap_chunk_bytes: 64 << 20,
                bblog_offset,
            };
            assert_eq!(plan, want, "leg of {leg} sectors");
        }
    }

    #[test]
    fn every_plan_has_room_for_the_slots() {
        for sectors in [LEG_SECTORS_MIN, 40_000, 1 << 22, 1 << 31, 1 << 36, 1 << 40] {
            let plan = Plan::for_leg(sectors).expect("large enough");
            let metadata_end = 8 + plan.bblog_offset + plan.bblog_sectors();
            assert!(plan.data_offset - metadata_end >= (64 + 8) * SLOT_SECTORS);
        }
    }
}
