//! Blocks that know what they must contain: (seed, block, generation) in every 16 bytes.
//!
//! One I/O a block at a time, so that what a read must find is never in doubt. A write that failed
//! leaves its block unknown: it is left out from then on.

use super::Dice;
use blockdev::IoVec;

/// Blocks tracked at most, 8 bytes each.
const BLOCKS_MAX: u64 = 1 << 24;
/// Tries at random to find a block that is not busy, before the next one in order is looked for.
const TRIES_MAX: u32 = 64;

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// What is on the device; 0 = never written.
    generation: u32,
    is_busy: bool,
    is_unknown: bool,
}

pub(super) struct Blocks {
    seed: u64,
    blocks: Vec<Block>,
}

impl Blocks {
    pub(super) fn new(seed: u64, blocks: u64) -> Blocks {
        let blocks = vec![Block::default(); blocks.min(BLOCKS_MAX) as usize];
        Blocks { seed, blocks }
    }

    pub(super) fn len(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// A free block near `wanted`, and whether it is to be read: only what was written can be.
    pub(super) fn take(&mut self, wanted: u64, is_read: bool) -> Option<(u64, bool)> {
        let mut dice = Dice::new(wanted);
        let mut at = wanted;
        for _ in 0..TRIES_MAX {
            let block = &mut self.blocks[at as usize];
            if !block.is_busy && !block.is_unknown {
                block.is_busy = true;
                return Some((at, is_read && block.generation > 0));
            }
            at = dice.below(self.blocks.len() as u64);
        }
        let len = self.blocks.len();
        let mut rest = (0..len).map(|step| (wanted as usize + step) % len);
        let at = rest.find(|&at| !self.blocks[at].is_busy && !self.blocks[at].is_unknown)?;
        let block = &mut self.blocks[at];
        block.is_busy = true;
        Some((at as u64, is_read && block.generation > 0))
    }

    /// What the next write of `block` puts there.
    pub(super) fn content(&self, block: u64, bytes: usize) -> Vec<u8> {
        self.expected(block, self.blocks[block as usize].generation + 1, bytes)
    }

    fn expected(&self, block: u64, generation: u32, bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes);
        for at in 0..bytes as u64 / 16 {
            out.extend_from_slice(&(self.seed ^ at << 32 ^ u64::from(generation)).to_be_bytes());
            out.extend_from_slice(&block.to_be_bytes());
        }
        out.resize(bytes, 0);
        out
    }

    /// An I/O succeeded; `read` are the bytes of a read. `false` if they are wrong.
    pub(super) fn done(&mut self, block: u64, bytes: usize, read: Option<&IoVec>) -> bool {
        let entry = &mut self.blocks[block as usize];
        entry.is_busy = false;
        match read {
            None => {
                entry.generation += 1;
                true
            }
            Some(read) => {
                let generation = entry.generation;
                let expected = self.expected(block, generation, bytes);
                read.len() == bytes && read.segments().flatten().eq(expected.iter())
            }
        }
    }

    /// An I/O failed.
    pub(super) fn failed(&mut self, block: u64, was_write: bool) {
        let entry = &mut self.blocks[block as usize];
        entry.is_busy = false;
        entry.is_unknown |= was_write;
    }

    /// The first block from `from` on that was written, taken for reading.
    pub(super) fn next_written(&mut self, from: u64) -> Option<u64> {
        let rest = self.blocks.iter_mut().enumerate().skip(from as usize);
        for (at, block) in rest {
            if block.generation > 0 && !block.is_unknown && !block.is_busy {
                block.is_busy = true;
                return Some(at as u64);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::Pool;

    #[test]
    fn wrong_generation_block_and_seed_are_noticed() {
        let pool = Pool::new(1 << 20);
        let mut blocks = Blocks::new(7, 4);
        assert_eq!(
            blocks.take(2, true),
            Some((2, false)),
            "nothing to read yet"
        );
        let first = pool.copy_now(&blocks.content(2, 4096));
        assert!(blocks.done(2, 4096, None));
        assert_eq!(blocks.next_written(0), Some(2));
        assert_eq!(blocks.next_written(0), None, "busy");
        assert!(blocks.done(2, 4096, Some(&first)));
        assert_eq!(blocks.take(2, false), Some((2, false)));
        assert!(blocks.done(2, 4096, None));
        assert!(!blocks.done(2, 4096, Some(&first)), "an older generation");
        let other = pool.copy_now(&Blocks::new(8, 4).content(2, 4096));
        assert!(!blocks.done(2, 4096, Some(&other)), "another seed");
        blocks.failed(2, true);
        assert_eq!(blocks.next_written(0), None, "unknown");
    }

    #[test]
    fn the_last_free_block_is_found() {
        let mut blocks = Blocks::new(7, 1000);
        let taken: Vec<u64> = std::iter::from_fn(|| Some(blocks.take(5, false)?.0)).collect();
        assert_eq!(taken.len(), 1000);
        blocks.failed(777, false);
        assert_eq!(blocks.take(5, false), Some((777, false)));
        assert_eq!(blocks.take(5, false), None, "all are busy");
    }
}
