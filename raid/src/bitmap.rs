//! The internal write-intent bitmap: its header and its bits as they lie on a leg.
//!
//! Bit *n* (byte *n* / 8, least significant first, after a header of 256 bytes) covers the
//! array's bytes [*n* × chunk, (*n* + 1) × chunk). A set bit says that the legs may differ there.
//! It is on every in-sync leg before the data it covers, and goes back to 0 lazily, only after
//! a flush on both legs and never while a leg is out. Each leg carries a full copy. Bits past the
//! last chunk mean nothing.
//!
//! `events_cleared` is the event count up to which bits have been cleared: a leg at least as new
//! differs only under set bits.

use crate::bytes::{Fields, Page};
use crate::layout::{bitmap_sectors, BITMAP_HEADER_BYTES, SLOT_BYTES, SLOT_SECTORS};
use crate::uuid::Uuid;
use thiserror::Error;

const MAGIC: u32 = 0x6d74_6962;
const VERSION: u32 = 4;
/// Bits are old: the whole bitmap counts as set.
const STATE_STALE: u32 = 2;
const STATE_WRITE_ERROR: u32 = 4;
/// Seconds between looks for bits to clear, as mdadm writes it.
pub const DAEMON_SLEEP_S: u32 = 5;
/// Largest bitmap read, in bytes; mdadm never makes one above 128 KiB.
pub const BITMAP_BYTES_MAX: u64 = 8 << 20;

/// Why a bitmap cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BitmapError {
    /// There is none.
    #[error("no bitmap where the superblock says")]
    Absent,
    /// Clustered, or of the host-endian kind.
    #[error("bitmap version {0}, only 4 is known")]
    Version(u32),
    /// It belongs to another array.
    #[error("bitmap of array {0}")]
    Foreign(Uuid),
    /// A chunk that is no power of two of at least 4 KiB, or more bits than are read.
    #[error("bitmap chunk of {0} bytes")]
    Chunk(u64),
}

/// The header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapHeader {
    /// Identity of the array.
    pub array: Uuid,
    /// Event count, as the superblock's.
    pub events: u64,
    /// A leg with fewer events must not be re-added by these bits.
    pub events_cleared: u64,
    /// Sectors covered.
    pub sync_size: u64,
    /// Bytes under one bit, a power of two.
    pub chunk_bytes: u32,
    /// State bits of md; not 0: trust no cleared bit.
    pub state: u32,
}

impl BitmapHeader {
    /// Reads the first page of a bitmap of `array`, of `size` sectors.
    pub fn parse(page: &[u8], array: Uuid, size: u64) -> Result<BitmapHeader, BitmapError> {
        let fields = Fields(page);
        if page.len() < 256 || fields.u32(0) != MAGIC {
            return Err(BitmapError::Absent);
        }
        if fields.u32(4) != VERSION {
            return Err(BitmapError::Version(fields.u32(4)));
        }
        let header = BitmapHeader {
            array: Uuid(fields.array(8)),
            events: fields.u64(24),
            events_cleared: fields.u64(32),
            sync_size: fields.u64(40),
            state: fields.u32(48),
            chunk_bytes: fields.u32(52),
        };
        if header.array != array {
            return Err(BitmapError::Foreign(header.array));
        }
        let chunk = u64::from(header.chunk_bytes);
        let usable =
            chunk.is_power_of_two() && chunk >= 4096 && size / (chunk / 512) / 8 < BITMAP_BYTES_MAX;
        if !usable {
            return Err(BitmapError::Chunk(chunk));
        }
        Ok(header)
    }

    fn put(&self, page: &mut Page) {
        page.put(0, &MAGIC.to_le_bytes())
            .put(4, &VERSION.to_le_bytes())
            .put(8, &self.array.0)
            .put(24, &self.events.to_le_bytes())
            .put(32, &self.events_cleared.to_le_bytes())
            .put(40, &self.sync_size.to_le_bytes())
            .put(48, &self.state.to_le_bytes())
            .put(52, &self.chunk_bytes.to_le_bytes())
            .put(56, &DAEMON_SLEEP_S.to_le_bytes());
    }

    /// Chunks (= bits) of an array of `size` sectors.
    pub fn chunks(&self, size: u64) -> u64 {
        size.div_ceil(u64::from(self.chunk_bytes) / 512)
    }

    /// Whether cleared bits may be believed.
    pub fn is_trustworthy(&self) -> bool {
        self.state & (STATE_STALE | STATE_WRITE_ERROR) == 0
    }
}

/// Pages (4 KiB) of a bitmap of `bits` bits.
pub fn pages(bits: u64) -> usize {
    (bitmap_sectors(bits) / SLOT_SECTORS) as usize
}

/// The bits that lie in page `page` of a bitmap of `bits` bits.
pub fn bits_of_page(page: usize, bits: u64) -> std::ops::Range<u64> {
    let per_page = SLOT_BYTES as u64 * 8;
    let header = BITMAP_HEADER_BYTES * 8;
    let first = (page as u64 * per_page).saturating_sub(header);
    let end = ((page as u64 + 1) * per_page - header).min(bits);
    first.min(end)..end
}

/// The page in which `bit` lies.
pub fn page_of_bit(bit: u64) -> usize {
    ((BITMAP_HEADER_BYTES * 8 + bit) / (SLOT_BYTES as u64 * 8)) as usize
}

/// One page as it goes to disk.
pub fn encode_page(
    header: &BitmapHeader,
    page: usize,
    bits: u64,
    is_set: impl Fn(u64) -> bool,
) -> Box<[u8; SLOT_BYTES]> {
    let mut out = Page::new();
    if page == 0 {
        header.put(&mut out);
    }
    let base = page as u64 * SLOT_BYTES as u64 * 8;
    for bit in bits_of_page(page, bits).filter(|&bit| is_set(bit)) {
        let at = BITMAP_HEADER_BYTES * 8 + bit - base;
        out.0[(at / 8) as usize] |= 1 << (at % 8);
    }
    out.0
}

/// The bits in the bytes of a whole bitmap; missing bytes count as set.
pub fn decode(bytes: &[u8], bits: u64) -> Vec<bool> {
    (0..bits)
        .map(|bit| {
            let at = BITMAP_HEADER_BYTES + bit / 8;
            bytes
                .get(at as usize)
                .is_none_or(|byte| byte >> (bit % 8) & 1 == 1)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> BitmapHeader {
        BitmapHeader {
            array: Uuid(*b"ABCDEFGHIJKLMNOP"),
            events: 7,
            events_cleared: 5,
            sync_size: 653_312,
            chunk_bytes: 1 << 20,
            state: 0,
        }
    }

    #[test]
    fn the_header_is_read_back() {
        let page = encode_page(&header(), 0, 319, |_| false);
        let read = BitmapHeader::parse(&page[..], header().array, 653_312);
        assert_eq!(read, Ok(header()));
        assert_eq!(header().chunks(653_312), 319);
    }

    #[test]
    fn a_chunk_of_odd_size_is_refused() {
        let mut page = encode_page(&header(), 0, 319, |_| false);
        page[52..56].copy_from_slice(&3000u32.to_le_bytes());
        let read = BitmapHeader::parse(&page[..], header().array, 653_312);
        assert_eq!(read, Err(BitmapError::Chunk(3000)));
    }

    proptest! {
        #[test]
        fn bits_survive_their_pages(bits in 1u64..100_000, seed in any::<u64>()) {
            let set = |bit: u64| (bit ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 63 == 1;
            let bytes: Vec<u8> = (0..pages(bits))
                .flat_map(|page| encode_page(&header(), page, bits, set).to_vec())
                .collect();
            let read = decode(&bytes, bits);
            for bit in 0..bits {
                prop_assert_eq!(read[bit as usize], set(bit));
                prop_assert!(bits_of_page(page_of_bit(bit), bits).contains(&bit));
            }
        }
    }
}
