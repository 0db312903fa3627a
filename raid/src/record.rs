//! The leg record: which leg is out, said by the survivor in rotating slots.
//!
//! A change of a leg's state is acknowledged upward only after the witness and one of these are
//! answered. A slot is used, and not the superblock, because a fixed place may be held by an
//! unanswered write of a failed path; a rotating slot is chosen where nothing is in the way. The
//! md superblock follows with the same event count; until it does, the record speaks for it, and
//! says which pages of the bitmap count as all set.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `ANTLLEG1` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | flags: bit 0 every page of the bitmap counts as set |
//! | 16 | 16 | array UUID |
//! | 32 | 16 | device UUID of the leg that carries it |
//! | 48 | 8 | counter: the highest on a leg is the newest |
//! | 56 | 8 | events |
//! | 64 | 1 | mask of slots that are out |
//! | 65 | 1 | mask of slots being rebuilt (out as well) |
//! | 72 | 8 | written, µs since 1970 |
//! | 128 | 2048 | bit *n*: page *n* of the bitmap counts as all set |
//! | 4092 | 4 | CRC-32 of all before |

use crate::bytes::{is_sealed, Fields, Page};
use crate::layout::SLOT_BYTES;
use crate::uuid::Uuid;
use blockdev::rt::Wall;

const MAGIC: &[u8; 8] = b"ANTLLEG1";
const VERSION: u32 = 1;
const PAGES_AT: usize = 128;
const PAGES_BYTES: usize = 2048;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegRecord {
    /// Identity of the array.
    pub array: Uuid,
    /// Identity of the leg that carries it.
    pub device: Uuid,
    /// The highest is the newest.
    pub counter: u64,
    /// Event count of the state it describes.
    pub events: u64,
    /// Slots that are out, as a mask.
    pub out: u8,
    /// Slots being rebuilt, as a mask; they are out as well.
    pub rebuilding: u8,
    /// When it was written.
    pub time: Wall,
    /// Pages of the bitmap that count as all set.
    pub dirty_pages: Vec<usize>,
    /// Every page counts as set.
    pub all_dirty: bool,
}

impl LegRecord {
    /// The 4 KiB of its slot. Pages beyond the table make every page count as set.
    pub fn encode(&self) -> Box<[u8; SLOT_BYTES]> {
        let mut page = Page::new();
        let fits = self.dirty_pages.iter().all(|&n| n < PAGES_BYTES * 8);
        let flags = u32::from(self.all_dirty || !fits);
        page.put(0, MAGIC)
            .put(8, &VERSION.to_le_bytes())
            .put(12, &flags.to_le_bytes())
            .put(16, &self.array.0)
            .put(32, &self.device.0)
            .put(48, &self.counter.to_le_bytes())
            .put(56, &self.events.to_le_bytes())
            .put(64, &[self.out, self.rebuilding])
            .put(72, &self.time.0.to_le_bytes());
        for &n in self.dirty_pages.iter().filter(|&&n| n < PAGES_BYTES * 8) {
            page.0[PAGES_AT + n / 8] |= 1 << (n % 8);
        }
        page.seal();
        page.0
    }

    /// Reads a slot; `None` if it holds no whole record.
    pub fn parse(page: &[u8]) -> Option<LegRecord> {
        let fields = Fields(page);
        if !is_sealed(page) || fields.array::<8>(0) != *MAGIC || fields.u32(8) != VERSION {
            return None;
        }
        let is_dirty = |n: &usize| fields.u8(PAGES_AT + n / 8) >> (n % 8) & 1 == 1;
        Some(LegRecord {
            array: Uuid(fields.array(16)),
            device: Uuid(fields.array(32)),
            counter: fields.u64(48),
            events: fields.u64(56),
            out: fields.u8(64),
            rebuilding: fields.u8(65),
            time: Wall(fields.u64(72)),
            dirty_pages: (0..PAGES_BYTES * 8).filter(is_dirty).collect(),
            all_dirty: fields.u32(12) & 1 == 1,
        })
    }

    /// The newest record of `array` and `device` among the slots of a leg.
    pub fn newest(slots: &[u8], array: Uuid, device: Uuid) -> Option<LegRecord> {
        slots
            .chunks(SLOT_BYTES)
            .filter_map(LegRecord::parse)
            .filter(|record| record.array == array && record.device == device)
            .max_by_key(|record| record.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(counter: u64) -> LegRecord {
        LegRecord {
            array: Uuid([1; 16]),
            device: Uuid([2; 16]),
            counter,
            events: 44,
            out: 2,
            rebuilding: 0,
            time: Wall(1_767_225_600_000_000),
            dirty_pages: vec![0, 31],
            all_dirty: false,
        }
    }

    #[test]
    fn the_newest_whole_record_of_this_leg_counts() {
        let mut slots = Vec::new();
        for counter in [7, 9, 8] {
            slots.extend_from_slice(&sample(counter).encode()[..]);
        }
        slots[SLOT_BYTES + 100] ^= 1; // the newest is torn
        let newest = LegRecord::newest(&slots, Uuid([1; 16]), Uuid([2; 16]));
        assert_eq!(newest, Some(sample(8)));
        assert_eq!(
            LegRecord::newest(&slots, Uuid([1; 16]), Uuid([3; 16])),
            None
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(page in prop::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert_eq!(LegRecord::parse(&page), None);
        }
    }
}
