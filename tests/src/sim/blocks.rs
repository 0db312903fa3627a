//! The oracle for a block device: blocks of 4 KiB that carry their place and a generation.
//!
//! Each block has one writer, so its generations rise. What a block may read as is an interval:
//! never older than the last acknowledged generation (or, after a storage node lost its cache, the
//! last flushed one), never newer than the last sent, and, once seen, never older again.

use blockdev::{IoVec, Pool, Sector};
use std::cell::RefCell;
use std::fmt::Write;
use std::ops::Range;

/// Sectors of a block.
pub const BLOCK_SECTORS: u32 = 8;
const BLOCK_BYTES: usize = 4096;

/// What is known of all blocks.
pub struct Blocks {
    blocks: RefCell<Vec<Block>>,
    base: Sector,
}

#[derive(Clone, Copy, Default)]
struct Block {
    sent: u64,
    acknowledged: u64,
    flushed: u64,
    /// What may still be read although it is older, because a cache was lost.
    floor: u64,
}

/// What was acknowledged at some moment: a flush that is asked for then covers it.
pub struct Snapshot(Vec<u64>);

impl Blocks {
    /// `many` blocks from `base` on, all zeros.
    pub fn new(many: usize, base: Sector) -> Blocks {
        Blocks {
            blocks: RefCell::new(vec![Block::default(); many]),
            base,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.blocks.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a block lies.
    pub fn place(&self, block: usize) -> Sector {
        self.base + block as u64 * u64::from(BLOCK_SECTORS)
    }

    /// The next generation of a block, to be sent now.
    pub fn next(&self, pool: &Pool, block: usize) -> (u64, IoVec) {
        let generation = {
            let mut blocks = self.blocks.borrow_mut();
            blocks[block].sent += 1;
            blocks[block].sent
        };
        (generation, pool.copy_now(&content(block, generation)))
    }

    /// A write was acknowledged.
    pub fn acknowledged(&self, block: usize, generation: u64) {
        let mut blocks = self.blocks.borrow_mut();
        let block = &mut blocks[block];
        block.acknowledged = block.acknowledged.max(generation);
        block.floor = block.floor.max(generation);
    }

    /// To be kept until a flush of these blocks that is asked for now succeeds.
    pub fn before_flush_of(&self, range: Range<usize>) -> Snapshot {
        let blocks = self.blocks.borrow();
        let covered = blocks.iter().enumerate().map(|(index, block)| {
            if range.contains(&index) {
                block.acknowledged
            } else {
                0
            }
        });
        Snapshot(covered.collect())
    }

    /// The flush succeeded.
    pub fn flushed(&self, covered: &Snapshot) {
        let mut blocks = self.blocks.borrow_mut();
        for (block, generation) in blocks.iter_mut().zip(&covered.0) {
            block.flushed = block.flushed.max(*generation);
        }
    }

    /// The only copy's cache was lost: what was not flushed may be gone.
    pub fn cache_lost(&self) {
        for block in self.blocks.borrow_mut().iter_mut() {
            block.floor = block.flushed;
            block.acknowledged = block.flushed;
        }
    }

    /// Judges what a block read as. With `may_be_torn` sectors may differ in their generation.
    ///
    /// # Panics
    /// If it is older than it may be, newer than what was ever sent, or somebody else's.
    pub fn check(&self, block: usize, bytes: &[u8], may_be_torn: bool, when: &str) {
        let known = self.blocks.borrow()[block];
        let seen: Vec<u64> = bytes
            .chunks(512)
            .enumerate()
            .map(|(sector, bytes)| generation_of(block, sector, bytes, when))
            .collect();
        let (oldest, newest) = (
            seen.iter().min().copied().unwrap_or(0),
            seen.iter().max().copied().unwrap_or(0),
        );
        assert!(
            may_be_torn || oldest == newest,
            "{when}: block {block} is a mixture: {seen:?}"
        );
        assert!(
            oldest >= known.floor,
            "{when}: block {block} went back to {oldest}; acknowledged {}, flushed {}, sent {}",
            known.acknowledged,
            known.flushed,
            known.sent
        );
        assert!(
            newest <= known.sent,
            "{when}: block {block} reads {newest}, sent {}",
            known.sent
        );
        if oldest == newest {
            let mut blocks = self.blocks.borrow_mut();
            blocks[block].floor = oldest;
        }
    }
}

/// Each sector begins with its block and generation in text and is filled with bytes of both.
fn content(block: usize, generation: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    for sector in 0..BLOCK_BYTES / 512 {
        let mut head = String::new();
        let _ = write!(head, "{block:08x}{sector:08x}{generation:016x}");
        out.extend_from_slice(head.as_bytes());
        out.resize((sector + 1) * 512, fill(block, generation));
    }
    out
}

fn fill(block: usize, generation: u64) -> u8 {
    (block as u8).wrapping_mul(31) ^ (generation as u8).wrapping_mul(7)
}

fn generation_of(block: usize, sector: usize, bytes: &[u8], when: &str) -> u64 {
    if bytes.iter().all(|&b| b == 0) {
        return 0;
    }
    let head = String::from_utf8_lossy(&bytes[..32]).into_owned();
    let place = format!("{block:08x}{sector:08x}");
    assert!(
        head.starts_with(&place),
        "{when}: block {block} sector {sector} holds {head:?}"
    );
    let generation = u64::from_str_radix(&head[16..], 16)
        .unwrap_or_else(|_| panic!("{when}: block {block} holds {head:?}"));
    let fill = fill(block, generation);
    assert!(
        bytes[32..].iter().all(|&b| b == fill),
        "{when}: block {block} generation {generation} is torn inside sector {sector}"
    );
    generation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_content_is_noticed() {
        let blocks = Blocks::new(2, Sector(0));
        let pool = Pool::new(1 << 20);
        let (first, old) = blocks.next(&pool, 1);
        blocks.check(1, &[0; 4096], false, "before");
        blocks.acknowledged(1, first);
        blocks.check(1, &old.to_vec(), false, "after");
        let (second, new) = blocks.next(&pool, 1);
        blocks.check(1, &old.to_vec(), false, "sent, not acknowledged");
        blocks.acknowledged(1, second);
        blocks.check(1, &new.to_vec(), false, "acknowledged");
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            blocks.check(1, &old.to_vec(), false, "went back");
        }));
        assert!(caught.is_err());
    }
}
