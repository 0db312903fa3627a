//! Who uses which unit: references and sums by position, and the handing out of free units.
//!
//! An alloc page covers 672 units; it is read when first needed, and never-used regions have no
//! page at all. A unit is free when nothing refers to it, it is no tree page, lies in no fixed
//! place, and no record or checkpoint that gave it up is still short of durable (store rule R7).
//! Units are handed out from *ready* regions, whose free ones are known bit by bit; tainted ones
//! are passed over.

use crate::directory::IdMap;
use crate::layout::{Page, Ptr, ALLOC_UNITS, HEADER_BYTES};
use crate::page_cache::PageCache;
use crate::tree::{Leaf, Tree, TreeId};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};

const WORDS: usize = (ALLOC_UNITS as usize).div_ceil(64);
/// Regions fuller than this are used only when no emptier one is left.
const CROWDED: u16 = (ALLOC_UNITS / 8 * 7) as u16;

/// Fresh units, ascending within a region.
pub(crate) type Units = SmallVec<[u64; 16]>;

/// Why units cannot be had just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// This alloc page must be read first.
    Load(u32),
    /// There are not so many.
    Full,
}

/// A region whose free units are known.
struct Region {
    index: u32,
    bits: [u64; WORDS],
    left: usize,
}

impl Region {
    fn has(&self, at: usize) -> bool {
        self.bits[at / 64] >> (at % 64) & 1 == 1
    }

    fn set(&mut self, at: usize, free: bool) {
        let mask = 1 << (at % 64);
        if self.has(at) == free {
            return;
        }
        self.bits[at / 64] ^= mask;
        if free {
            self.left += 1;
        } else {
            self.left -= 1;
        }
    }

    /// First run of `n` free units, or else the first run there is.
    fn run(&self, n: usize) -> Option<(usize, usize)> {
        let mut first = None;
        let mut at = 0;
        while at < ALLOC_UNITS as usize {
            if self.bits[at / 64] >> (at % 64) == 0 {
                at = (at / 64 + 1) * 64;
                continue;
            }
            if !self.has(at) {
                at += 1;
                continue;
            }
            let mut len = 1;
            while len < n && at + len < ALLOC_UNITS as usize && self.has(at + len) {
                len += 1;
            }
            if len == n {
                return Some((at, n));
            }
            first = first.or(Some((at, len)));
            at += len;
        }
        first
    }
}

/// See the module.
pub(crate) struct Allocator {
    units: u64,
    pub(crate) tree: Tree,
    pub(crate) pages: PageCache<u32>,
    used: Vec<u16>,
    /// Tree pages with their sums.
    system: BTreeMap<u64, u32>,
    /// Superblock slots and journal segments: first unit, end.
    fixed: BTreeMap<u64, u64>,
    /// Units without references that are not free yet, with the frame that gave each up last.
    busy: IdMap<u64>,
    /// Given up by a record: (its frame, unit); free when that is durable. An entry is stale once
    /// the unit was mapped again, even if a later frame gave it up anew: replay runs through reuse
    /// that was safe when it happened, and a refused write's undoing maps what had been given up.
    waiting: VecDeque<(u64, u64)>,
    /// Given up by a checkpoint or purge: (frame, unit); free when a checkpoint at or behind the
    /// frame is durable.
    replaced: VecDeque<(u64, u64)>,
    ready: VecDeque<Region>,
    /// Regions that became ready since [`Allocator::take_fresh_regions`].
    fresh_regions: Vec<u32>,
    cursor: u32,
    free: u64,
    /// A unit that was to be counted against what the pages say.
    contradiction: Option<u64>,
}

/// Tells whether an unanswered write may still land in `n` units from `unit`.
pub(crate) type Tainted<'a> = &'a dyn Fn(u64, u64) -> bool;

impl Allocator {
    pub(crate) fn new(
        units: u64,
        fixed: BTreeMap<u64, u64>,
        tree: Tree,
        pages: usize,
    ) -> Allocator {
        let regions = units.div_ceil(ALLOC_UNITS) as usize;
        let mut tree = tree;
        tree.resize(regions);
        let used = tree.leaf_entries().iter().map(|e| e.aux).collect();
        let system = tree.pages().map(|ptr| (ptr.unit, ptr.crc)).collect();
        Allocator {
            units,
            tree,
            pages: PageCache::new(pages),
            used,
            system,
            fixed,
            busy: IdMap::default(),
            waiting: VecDeque::new(),
            replaced: VecDeque::new(),
            ready: VecDeque::new(),
            fresh_regions: Vec::new(),
            cursor: 0,
            free: 0,
            contradiction: None,
        }
    }

    pub(crate) fn units(&self) -> u64 {
        self.units
    }

    pub(crate) fn regions(&self) -> u32 {
        self.used.len() as u32
    }

    /// Units free to be handed out.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// Units given up but not free yet.
    pub(crate) fn pending(&self) -> u64 {
        self.busy.len() as u64
    }

    /// Units of trees and in fixed places.
    pub(crate) fn overhead(&self) -> u64 {
        self.system.len() as u64 + self.fixed.iter().map(|(a, b)| b - a).sum::<u64>()
    }

    /// Counts the free units anew; after loading and replay.
    pub(crate) fn recount(&mut self) {
        let used: u64 = self.used.iter().map(|&u| u64::from(u)).sum();
        let taken = used + self.overhead() + self.busy.len() as u64;
        self.free = self.units.saturating_sub(taken);
        self.ready.clear();
    }

    /// The alloc page that must be read before `unit` can be touched, if any.
    pub(crate) fn missing(&mut self, unit: u64) -> Option<u32> {
        self.missing_page((unit / ALLOC_UNITS) as u32)
    }

    pub(crate) fn missing_page(&mut self, index: u32) -> Option<u32> {
        if self.pages.touch(index).is_some() {
            return None;
        }
        if !self.tree.leaf(index).ptr.is_hole() {
            return Some(index);
        }
        self.pages
            .insert(index, Page::new(TreeId::Alloc.leaf_header(index)));
        None
    }

    /// Takes a page in that was read from where the tree says it is; false if it is none.
    pub(crate) fn take_page(&mut self, index: u32, page: Page) -> bool {
        let used = (0..ALLOC_UNITS as usize)
            .filter(|&i| entry(&page, i).0 > 0)
            .count();
        if !page.is(TreeId::Alloc.leaf_header(index))
            || used != usize::from(self.tree.leaf(index).aux)
        {
            return false;
        }
        if !self.pages.contains(index) {
            self.pages.insert(index, page);
        }
        true
    }

    /// References to `unit` and its sum.
    ///
    /// # Panics
    /// If its page is not here.
    pub(crate) fn refs(&self, unit: u64) -> (u16, u32) {
        let page = self.pages.get((unit / ALLOC_UNITS) as u32);
        entry(
            page.expect("the alloc page was loaded before"),
            (unit % ALLOC_UNITS) as usize,
        )
    }

    /// A unit of which maps and counts said different things since the last call: shared under two
    /// sums, given up twice, no place for data. Such a count was left as it was; nothing more may be
    /// written, for units that are in use may seem free.
    pub(crate) fn take_contradiction(&mut self) -> Option<u64> {
        self.contradiction.take()
    }

    /// One more reference to a unit, which holds what `ptr` says.
    pub(crate) fn incr(&mut self, ptr: Ptr) {
        let (refs, crc) = self.refs(ptr.unit);
        if (refs > 0 && crc != ptr.crc)
            || refs == u16::MAX
            || ptr.unit >= self.units
            || !matches!(self.role(ptr.unit), Role::Plain | Role::Pending)
        {
            self.contradiction = Some(ptr.unit);
            return;
        }
        if refs == 0 {
            self.busy.remove(&ptr.unit);
            self.used[(ptr.unit / ALLOC_UNITS) as usize] += 1;
            self.clear_ready(ptr.unit);
        }
        self.set(ptr.unit, refs + 1, ptr.crc);
    }

    /// One reference less, by the frame `seq`. A unit that nobody refers to any more is free when
    /// that frame is durable, or, with `page`, when a checkpoint at or behind it is.
    pub(crate) fn decr(&mut self, unit: u64, seq: u64, page: bool) {
        let (refs, crc) = self.refs(unit);
        if refs == 0 || unit >= self.units {
            self.contradiction = Some(unit);
            return;
        }
        self.set(unit, refs - 1, if refs == 1 { 0 } else { crc });
        if refs > 1 {
            return;
        }
        self.used[(unit / ALLOC_UNITS) as usize] -= 1;
        if blockdev::mutation::off("store.early-reuse") && !page {
            self.free += 1;
            self.make_ready(unit);
            return;
        }
        self.busy.insert(unit, seq);
        match page {
            true => self.replaced.push_back((seq, unit)),
            false => self.waiting.push_back((seq, unit)),
        }
    }

    /// Sets references and sum outright: only for repair.
    pub(crate) fn set(&mut self, unit: u64, refs: u16, crc: u32) {
        let page = self.pages.change((unit / ALLOC_UNITS) as u32);
        let at = HEADER_BYTES + (unit % ALLOC_UNITS) as usize * 6;
        page.put(at, refs.to_le_bytes());
        page.put(at + 2, crc.to_le_bytes());
    }

    /// Counts the used units of a page anew: only for repair.
    pub(crate) fn recount_page(&mut self, index: u32) {
        let page = self.pages.get(index).expect("the page was loaded before");
        let used = (0..ALLOC_UNITS as usize)
            .filter(|&i| entry(page, i).0 > 0)
            .count();
        self.used[index as usize] = used as u16;
    }

    /// Everything that frames up to `seq` gave up is free: they are durable.
    pub(crate) fn release_durable(&mut self, seq: u64, tainted: Tainted<'_>) {
        while let Some(&(by, unit)) = self.waiting.front().filter(|(by, _)| *by <= seq) {
            self.waiting.pop_front();
            if self.end_wait(unit, by) {
                self.release(unit, tainted);
            }
        }
    }

    /// Everything that frames and checkpoints up to `seq` replaced is free: the checkpoint at
    /// `seq` is durable.
    pub(crate) fn release_checkpointed(&mut self, seq: u64, tainted: Tainted<'_>) {
        while let Some(&(by, unit)) = self.replaced.front().filter(|(by, _)| *by <= seq) {
            self.replaced.pop_front();
            if self.end_wait(unit, by) || self.system.remove(&unit).is_some() {
                self.release(unit, tainted);
            }
        }
    }

    /// Ends the wait of a unit that the frame `by` gave up; false if that entry is stale.
    fn end_wait(&mut self, unit: u64, by: u64) -> bool {
        let is_its = self.busy.get(&unit) == Some(&by);
        if is_its {
            self.busy.remove(&unit);
        }
        is_its
    }

    fn release(&mut self, unit: u64, tainted: Tainted<'_>) {
        self.free += 1;
        if !tainted(unit, 1) {
            self.make_ready(unit);
        }
    }

    fn make_ready(&mut self, unit: u64) {
        let index = (unit / ALLOC_UNITS) as u32;
        if let Some(region) = self.ready.iter_mut().find(|r| r.index == index) {
            region.set((unit % ALLOC_UNITS) as usize, true);
        }
    }

    fn clear_ready(&mut self, unit: u64) {
        let index = (unit / ALLOC_UNITS) as u32;
        if let Some(region) = self.ready.iter_mut().find(|r| r.index == index) {
            region.set((unit % ALLOC_UNITS) as usize, false);
        }
    }

    /// Whether `pages` pages of the trees, which are known, lie each in a place of its own.
    pub(crate) fn is_laid_out(&self, pages: usize) -> bool {
        let mut behind = 0;
        let apart = self.fixed.iter().all(|(&first, &end)| {
            let apart = first >= behind;
            behind = end;
            apart
        });
        let on_fixed =
            |(&first, &end): (&u64, &u64)| self.system.range(first..end).next().is_some();
        apart && self.system.len() == pages && !self.fixed.iter().any(on_fixed)
    }

    /// Tree pages that lie in a region.
    pub(crate) fn system_in(&self, index: u32) -> Vec<Ptr> {
        let first = u64::from(index) * ALLOC_UNITS;
        let pages = self.system.range(first..first + ALLOC_UNITS);
        pages.map(|(&unit, &crc)| Ptr { unit, crc }).collect()
    }

    /// A taken unit becomes a tree page.
    pub(crate) fn add_system(&mut self, ptr: Ptr) {
        self.system.insert(ptr.unit, ptr.crc);
    }

    /// A tree page is replaced by the checkpoint at `seq`.
    pub(crate) fn replace_system(&mut self, unit: u64, seq: u64) {
        assert!(
            self.system.contains_key(&unit),
            "unit {unit} is no tree page"
        );
        self.replaced.push_back((seq, unit));
    }

    /// Makes sure that `n` units can be taken at once.
    pub(crate) fn prepare(&mut self, n: u64, tainted: Tainted<'_>) -> Result<(), Short> {
        if self.free < n {
            return Err(Short::Full);
        }
        let mut left: u64 = self.ready.iter().map(|r| r.left as u64).sum();
        while left < n {
            left += self.activate(tainted)? as u64;
        }
        Ok(())
    }

    /// Takes `n` units, in a row if the region at hand has such a run.
    pub(crate) fn take(&mut self, n: usize, tainted: Tainted<'_>) -> Result<Units, Short> {
        loop {
            self.prepare(n as u64, tainted)?;
            let mut out = Units::new();
            while out.len() < n {
                let Some(region) = self.ready.front_mut() else {
                    break;
                };
                let Some((at, len)) = region.run(n - out.len()) else {
                    self.ready.pop_front();
                    continue;
                };
                let first = u64::from(region.index) * ALLOC_UNITS + at as u64;
                let clean = !tainted(first, len as u64);
                for i in 0..len {
                    region.set(at + i, false);
                    // A tainted unit stays free, but is not offered until the region is next
                    // looked at.
                    if clean || !tainted(first + i as u64, 1) {
                        out.push(first + i as u64);
                    }
                }
            }
            if out.len() == n {
                self.free -= n as u64;
                return Ok(out);
            }
            out.into_iter().for_each(|unit| self.make_ready(unit));
        }
    }

    /// Regions that will be written soon, as units: first and number.
    pub(crate) fn take_fresh_regions(&mut self) -> Vec<(u64, u64)> {
        let regions = std::mem::take(&mut self.fresh_regions).into_iter();
        let units = |index: u32| {
            let first = u64::from(index) * ALLOC_UNITS;
            (first, ALLOC_UNITS.min(self.units - first))
        };
        regions.map(units).collect()
    }

    /// A taken unit is not needed after all.
    pub(crate) fn give_back(&mut self, unit: u64) {
        self.free += 1;
        self.make_ready(unit);
    }

    /// Looks for the next region with free units and returns how many.
    fn activate(&mut self, tainted: Tainted<'_>) -> Result<usize, Short> {
        let regions = self.regions();
        for crowded in [false, true] {
            for step in 0..regions {
                let index = (self.cursor + step) % regions;
                let used = self.used[index as usize];
                if (used > CROWDED) != crowded
                    || u64::from(used) == ALLOC_UNITS
                    || self.ready.iter().any(|r| r.index == index)
                {
                    continue;
                }
                if let Some(index) = self.missing_page(index) {
                    self.cursor = index;
                    return Err(Short::Load(index));
                }
                let region = self.survey(index, tainted);
                if region.left > 0 {
                    self.cursor = (index + 1) % regions;
                    let left = region.left;
                    self.ready.push_back(region);
                    self.fresh_regions.push(index);
                    return Ok(left);
                }
            }
        }
        Err(Short::Full)
    }

    fn survey(&self, index: u32, tainted: Tainted<'_>) -> Region {
        let page = self.pages.get(index).expect("the page was loaded before");
        let first = u64::from(index) * ALLOC_UNITS;
        let end = (first + ALLOC_UNITS).min(self.units);
        let mut region = Region {
            index,
            bits: [0; WORDS],
            left: 0,
        };
        let suspect = tainted(first, end - first);
        for unit in first..end {
            let free = entry(page, (unit - first) as usize).0 == 0
                && !self.busy.contains_key(&unit)
                && !(suspect && tainted(unit, 1));
            region.set((unit - first) as usize, free);
        }
        for (&unit, _) in self.system.range(first..end) {
            region.set((unit - first) as usize, false);
        }
        for (&from, &to) in self.fixed.range(..end) {
            for unit in from.max(first)..to.min(end).max(from.max(first)) {
                region.set((unit - first) as usize, false);
            }
        }
        region
    }

    /// Drops clean pages beyond the bound.
    pub(crate) fn sweep(&mut self) {
        let pinned: Vec<u32> = self.ready.iter().map(|r| r.index).collect();
        self.pages.sweep(|index| pinned.contains(&index));
    }

    /// Changed pages for a checkpoint.
    pub(crate) fn take_dirty(&mut self) -> Vec<Leaf> {
        let dirty: Vec<u32> = self.pages.dirty().collect();
        let mut out = Vec::with_capacity(dirty.len());
        for index in dirty {
            let aux = self.used[index as usize];
            let page = self.pages.take_dirty(index).filter(|_| aux > 0);
            out.push(Leaf { index, page, aux });
        }
        out
    }

    /// What `unit` is, apart from references.
    pub(crate) fn role(&self, unit: u64) -> Role {
        let fixed = self.fixed.range(..=unit).next_back();
        if fixed.is_some_and(|(_, &end)| unit < end) {
            return Role::Fixed;
        }
        match self.system.get(&unit) {
            Some(&crc) => Role::Tree(crc),
            None if self.busy.contains_key(&unit) => Role::Pending,
            None => Role::Plain,
        }
    }

    /// Whether a region has anything in it, references apart.
    pub(crate) fn has_roles(&self, index: u32) -> bool {
        let first = u64::from(index) * ALLOC_UNITS;
        let range = first..first + ALLOC_UNITS;
        self.used[index as usize] > 0
            || self.system.range(range.clone()).next().is_some()
            || self
                .fixed
                .iter()
                .any(|(&a, &b)| a < range.end && b > range.start)
            || (!self.busy.is_empty() && range.clone().any(|u| self.busy.contains_key(&u)))
    }
}

/// What [`Allocator::role`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Superblock slot or journal segment.
    Fixed,
    /// A tree page with this sum.
    Tree(u32),
    /// Given up, not free yet.
    Pending,
    /// Its references tell.
    Plain,
}

/// References and sum of unit `at` of an alloc page.
pub(crate) fn entry(page: &Page, at: usize) -> (u16, u32) {
    let at = HEADER_BYTES + at * 6;
    (
        u16::from_le_bytes(page.get(at)),
        u32::from_le_bytes(page.get(at + 2)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn fresh(units: u64) -> Allocator {
        let fixed = BTreeMap::from([(0, 64), (units - 64, units)]);
        let mut alloc = Allocator::new(units, fixed, Tree::new(TreeId::Alloc, 0), 64);
        alloc.recount();
        alloc
    }

    #[test]
    fn a_freed_unit_waits_for_its_record() {
        let clean = |_: u64, _: u64| false;
        let mut alloc = fresh(300);
        let all = alloc.take(172, &clean).expect("room");
        for &unit in &all {
            assert_eq!(alloc.missing(unit), None);
            alloc.incr(Ptr { unit, crc: 1 });
        }
        assert_eq!(alloc.take(1, &clean), Err(Short::Full));
        alloc.decr(all[5], 7, false);
        alloc.decr(all[6], 8, true);
        alloc.release_durable(6, &clean);
        assert_eq!(alloc.take(1, &clean), Err(Short::Full));
        alloc.release_durable(9, &clean);
        assert_eq!(alloc.take(1, &clean).map(|u| u.to_vec()), Ok(vec![all[5]]));
        alloc.release_checkpointed(8, &clean);
        assert_eq!(alloc.free(), 1);
    }

    #[test]
    fn a_unit_given_up_twice_waits_for_the_second_record() {
        let clean = |_: u64, _: u64| false;
        let mut alloc = fresh(300);
        let all = alloc.take(172, &clean).expect("room");
        for &unit in &all {
            assert_eq!(alloc.missing(unit), None);
            alloc.incr(Ptr { unit, crc: 1 });
        }
        // As replay sees it: the release between the two is not in the journal.
        let unit = all[5];
        alloc.decr(unit, 7, false);
        alloc.incr(Ptr { unit, crc: 2 });
        alloc.decr(unit, 9, false);
        alloc.release_durable(8, &clean);
        assert_eq!(alloc.take(1, &clean), Err(Short::Full));
        alloc.decr(all[6], 10, true);
        alloc.release_checkpointed(10, &clean);
        assert_eq!(alloc.take(1, &clean).map(|u| u.to_vec()), Ok(vec![all[6]]));
        alloc.release_durable(9, &clean);
        assert_eq!(alloc.take(1, &clean).map(|u| u.to_vec()), Ok(vec![unit]));
        alloc.add_system(Ptr { unit, crc: 3 });
        alloc.release_durable(10, &clean);
        assert_eq!(alloc.role(unit), Role::Tree(3));
        assert_eq!(alloc.free(), 0);
    }

    #[test]
    fn counts_that_contradict_maps_are_told_and_left() {
        let mut alloc = fresh(1400);
        for unit in [100, 700, 1 << 39] {
            assert_eq!(alloc.missing(unit), None);
        }
        let ptr = |unit, crc| Ptr { unit, crc };
        alloc.incr(ptr(100, 1));
        assert_eq!(alloc.take_contradiction(), None);
        alloc.incr(ptr(100, 2));
        assert_eq!(alloc.take_contradiction(), Some(100));
        alloc.decr(700, 5, false);
        assert_eq!(alloc.take_contradiction(), Some(700));
        alloc.incr(ptr(1 << 39, 1));
        assert_eq!(alloc.take_contradiction(), Some(1 << 39));
        alloc.incr(ptr(3, 1));
        assert_eq!(alloc.take_contradiction(), Some(3), "a superblock slot");
        assert_eq!(alloc.refs(100), (1, 1));
    }

    #[test]
    fn tainted_units_are_passed_over() {
        let taint = |unit: u64, n: u64| (70..90).any(|t| (unit..unit + n).contains(&t));
        let mut alloc = fresh(300);
        let units = alloc.take(16, &taint).expect("room");
        assert!(units.iter().all(|u| !(70..90).contains(u)), "{units:?}");
    }

    proptest::proptest! {
        #[test]
        fn units_have_one_owner(steps in proptest::collection::vec((0u8..3, 1usize..40), 1..200)) {
            let clean = |_: u64, _: u64| false;
            let mut alloc = fresh(1500);
            let mut held: Vec<u64> = Vec::new();
            for (seq, (kind, n)) in steps.into_iter().enumerate() {
                let seq = seq as u64;
                match kind {
                    0 => if let Ok(units) = alloc.take(n, &clean) {
                        for unit in units {
                            assert_eq!(alloc.missing(unit), None);
                            alloc.incr(Ptr { unit, crc: 1 });
                            held.push(unit);
                        }
                    },
                    1 => for unit in held.drain(..n.min(held.len())) {
                        alloc.decr(unit, seq, seq % 2 == 0);
                    },
                    _ => {
                        alloc.release_durable(seq, &clean);
                        alloc.release_checkpointed(seq, &clean);
                    }
                }
                let unique: BTreeSet<u64> = held.iter().copied().collect();
                assert_eq!(unique.len(), held.len());
                let counted = alloc.free();
                let ready_before = alloc.ready.len();
                alloc.recount();
                assert_eq!(counted, alloc.free(), "{ready_before}");
            }
        }
    }
}
