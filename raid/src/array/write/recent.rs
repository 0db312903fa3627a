//! Which granules were written when: whether what was read is still what is there.

use blockdev::{Sector, Seq};
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// The latest write to each granule, folded into a table: never says "no" wrongly.
pub(in crate::array) struct Recent {
    table: RefCell<Vec<u64>>,
    seq: Cell<u64>,
}

const RECENT_GRANULES: u64 = 1 << 15;
const GRANULE_SECTORS: u64 = 8;

impl Recent {
    pub(in crate::array) fn new() -> Recent {
        Recent {
            table: RefCell::new(vec![0; RECENT_GRANULES as usize]),
            seq: Cell::new(1),
        }
    }

    fn slots(range: &Range<Sector>) -> impl Iterator<Item = usize> {
        let first = range.start.0 / GRANULE_SECTORS;
        let end = range
            .end
            .0
            .div_ceil(GRANULE_SECTORS)
            .min(first + RECENT_GRANULES);
        (first..end).map(|granule| (granule % RECENT_GRANULES) as usize)
    }

    pub(super) fn note(&self, range: &Range<Sector>) {
        let seq = self.seq.get() + 1;
        self.seq.set(seq);
        let mut table = self.table.borrow_mut();
        Recent::slots(range).for_each(|slot| table[slot] = seq);
    }

    /// The sequence of the last write submitted.
    pub(in crate::array) fn now(&self) -> u64 {
        self.seq.get()
    }

    pub(super) fn written_since(&self, range: &Range<Sector>, since: Seq) -> bool {
        let table = self.table.borrow();
        Recent::slots(range).any(|slot| table[slot] > since.0)
    }
}
