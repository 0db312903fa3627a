//! Little-endian fields of 4 KiB pages, read and written at fixed offsets without panics.
//!
//! All of md's metadata and our own slots are little-endian. Reading outside the page yields
//! zeros, which every format here treats as "not set".

use crate::layout::SLOT_BYTES;

/// Reads fields of a page.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        if let Some(bytes) = self.0.get(at..at + N) {
            out.copy_from_slice(bytes);
        }
        out
    }

    pub(crate) fn u8(&self, at: usize) -> u8 {
        self.array::<1>(at)[0]
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(crate) fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.array(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

/// A page being filled.
pub(crate) struct Page(pub(crate) Box<[u8; SLOT_BYTES]>);

impl Page {
    pub(crate) fn new() -> Page {
        Page(Box::new([0; SLOT_BYTES]))
    }

    /// Puts bytes at an offset that is a constant of the format, so it lies inside.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Page {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Ends the page with the CRC-32 of all before it.
    pub(crate) fn seal(&mut self) -> &mut Page {
        let crc = crc32fast::hash(&self.0[..SLOT_BYTES - 4]);
        self.put(SLOT_BYTES - 4, &crc.to_le_bytes())
    }
}

/// Whether a page of ours ends with its CRC-32.
pub(crate) fn is_sealed(page: &[u8]) -> bool {
    page.len() == SLOT_BYTES
        && page
            .split_at_checked(SLOT_BYTES - 4)
            .is_some_and(|(body, crc)| crc32fast::hash(body).to_le_bytes() == *crc)
}
