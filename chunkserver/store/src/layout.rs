//! Units, pointers and pages: what everything on the disk is made of.
//!
//! A *unit* is 4 KiB of the volume, numbered from 0. A [`Ptr`] names a unit and holds the CRC-32 of
//! its content; unit 0 never holds data, so a pointer to it means "hole: zeros". A [`Page`] is a
//! unit of metadata with a header of 64 bytes, verified by the pointer to it and by what it says of
//! itself. All integers are little-endian.

use blockdev::Sector;
use chunk_api::crc::crc32;

/// Bytes in a unit.
pub(crate) const UNIT_BYTES: usize = 4096;
/// Sectors in a unit.
pub(crate) const UNIT_SECTORS: u64 = 8;
/// Superblock slots at each end of the volume.
pub(crate) const SLOTS_PER_END: u64 = 64;
/// Bytes of a page's header.
pub(crate) const HEADER_BYTES: usize = 64;
/// Bytes of a pointer on the disk: unit 5, CRC 4.
pub(crate) const PTR_BYTES: usize = 9;
/// Largest unit number + 1.
pub(crate) const UNITS_MAX: u64 = 1 << 40;

/// Granules (units) in a MooseFS block.
pub(crate) const BLOCK_GRANULES: u32 = 16;
/// Blocks that one map page covers.
pub(crate) const MAP_BLOCKS: u32 = 28;
/// Pointers in a map page.
pub(crate) const MAP_PTRS: u32 = MAP_BLOCKS * BLOCK_GRANULES;
/// Map pages of a chunk.
pub(crate) const ROOT_PTRS: u32 = 37;
/// Map pages that fit into a slot without a root page.
pub(crate) const INLINE_PAGES: u32 = 4;
/// Granules that fit into a slot without a map page.
pub(crate) const INLINE_GRANULES: u32 = 4;
/// Entries of an alloc page.
pub(crate) const ALLOC_UNITS: u64 = 672;
/// Slots of a directory page.
pub(crate) const DIR_SLOTS: u32 = 63;
/// Entries of an index page.
pub(crate) const INDEX_ENTRIES: usize = 366;

const _: () = assert!(HEADER_BYTES + MAP_PTRS as usize * PTR_BYTES == UNIT_BYTES);
const _: () = assert!(ROOT_PTRS * MAP_BLOCKS >= chunk_api::BLOCKS_PER_CHUNK as u32);
const _: () = assert!(HEADER_BYTES + ALLOC_UNITS as usize * 6 == UNIT_BYTES);
const _: () = assert!(HEADER_BYTES + DIR_SLOTS as usize * 64 == UNIT_BYTES);
const _: () = assert!(HEADER_BYTES + INDEX_ENTRIES * 11 <= UNIT_BYTES);

/// First sector of a unit.
pub(crate) fn sector(unit: u64) -> Sector {
    Sector(unit * UNIT_SECTORS)
}

/// A unit and the CRC-32 of its content. Unit 0: nothing, zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Ptr {
    pub(crate) unit: u64,
    pub(crate) crc: u32,
}

impl Ptr {
    pub(crate) const HOLE: Ptr = Ptr { unit: 0, crc: 0 };

    pub(crate) fn is_hole(self) -> bool {
        self.unit == 0
    }

    pub(crate) fn encode(self) -> [u8; PTR_BYTES] {
        assert!(self.unit < UNITS_MAX, "unit {} has no pointer", self.unit);
        let mut out = [0; PTR_BYTES];
        out[..5].copy_from_slice(&self.unit.to_le_bytes()[..5]);
        out[5..].copy_from_slice(&self.crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: [u8; PTR_BYTES]) -> Ptr {
        let [a, b, c, d, e, crc @ ..] = bytes;
        Ptr {
            unit: u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]),
            crc: u32::from_le_bytes(crc),
        }
    }
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Magic {
    Root,
    Map,
    Alloc,
    Directory,
    Index,
}

impl Magic {
    fn bytes(self) -> [u8; 4] {
        *match self {
            Magic::Root => b"AROT",
            Magic::Map => b"AMAP",
            Magic::Alloc => b"AALC",
            Magic::Directory => b"ADIR",
            Magic::Index => b"AIDX",
        }
    }
}

/// A page's header: what it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) magic: Magic,
    /// Position among its like.
    pub(crate) index: u32,
    /// Chunk id, or number of the tree.
    pub(crate) owner: u64,
    /// Directory slot, or level in the tree.
    pub(crate) place: u32,
}

/// One unit of metadata in memory.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Page(pub(crate) [u8; UNIT_BYTES]);

impl Page {
    pub(crate) fn new(header: Header) -> Page {
        let mut page = Page([0; UNIT_BYTES]);
        page.set_header(header);
        page
    }

    pub(crate) fn set_header(&mut self, header: Header) {
        self.0[..4].copy_from_slice(&header.magic.bytes());
        self.put(4, header.index.to_le_bytes());
        self.put(8, header.owner.to_le_bytes());
        self.put(16, header.place.to_le_bytes());
    }

    /// Whether the page is the one that `header` describes.
    pub(crate) fn is(&self, header: Header) -> bool {
        self.0[..HEADER_BYTES] == Page::new(header).0[..HEADER_BYTES]
    }

    pub(crate) fn crc(&self) -> u32 {
        crc32(&self.0)
    }

    /// `N` bytes at `at`, which lies inside by construction of the caller.
    pub(crate) fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.0[at..at + N]);
        out
    }

    pub(crate) fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    /// Pointer `index` of a root or map page.
    pub(crate) fn ptr(&self, index: u32) -> Ptr {
        assert!(index < MAP_PTRS, "pointer {index} of a page");
        Ptr::decode(self.get(HEADER_BYTES + index as usize * PTR_BYTES))
    }

    pub(crate) fn set_ptr(&mut self, index: u32, ptr: Ptr) {
        assert!(index < MAP_PTRS, "pointer {index} of a page");
        self.put(HEADER_BYTES + index as usize * PTR_BYTES, ptr.encode());
    }

    /// Pointers of a root or map page that are no holes, with their places.
    pub(crate) fn ptrs(&self) -> impl Iterator<Item = (u32, Ptr)> + '_ {
        (0..MAP_PTRS)
            .map(|i| (i, self.ptr(i)))
            .filter(|(_, ptr)| !ptr.is_hole())
    }

    /// A page from the bytes of a unit.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Page> {
        bytes.try_into().ok().map(Page)
    }
}

/// Reads little-endian integers off a slice of untrusted bytes.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl Reader<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn ptr(&mut self) -> Option<Ptr> {
        self.take().map(Ptr::decode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn pointers_round_trip(unit in 0..UNITS_MAX, crc: u32) {
            let ptr = Ptr { unit, crc };
            proptest::prop_assert_eq!(Ptr::decode(ptr.encode()), ptr);
        }
    }

    #[test]
    fn a_page_knows_itself() {
        let header = Header {
            magic: Magic::Map,
            index: 3,
            owner: 7,
            place: 9,
        };
        let mut page = Page::new(header);
        page.set_ptr(447, Ptr { unit: 5, crc: 6 });
        assert!(page.is(header));
        assert!(!page.is(Header { owner: 8, ..header }));
        assert_eq!(
            page.ptrs().collect::<Vec<_>>(),
            [(447, Ptr { unit: 5, crc: 6 })]
        );
    }
}
