//! Metadata pages in memory: clean ones bounded, dirty ones until the next checkpoint.
//!
//! Pages are shared by reference. A checkpoint takes references to the dirty ones at one instant;
//! a change after that copies the page first (`Rc::make_mut`), so nobody waits for it.

use crate::layout::Page;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

struct Entry {
    page: Rc<Page>,
    used: bool,
}

/// See the module. Keys are ordered, so that everything that walks over it is deterministic.
pub(crate) struct PageCache<K> {
    pages: BTreeMap<K, Entry>,
    dirty: BTreeSet<K>,
    /// Keys in the order of their coming, for the second-chance sweep.
    queue: VecDeque<K>,
    clean_max: usize,
}

impl<K: Copy + Ord> PageCache<K> {
    /// Keeps at most `clean_max` clean pages after a sweep.
    pub(crate) fn new(clean_max: usize) -> PageCache<K> {
        PageCache {
            pages: BTreeMap::new(),
            dirty: BTreeSet::new(),
            queue: VecDeque::new(),
            clean_max,
        }
    }

    pub(crate) fn contains(&self, key: K) -> bool {
        self.pages.contains_key(&key)
    }

    pub(crate) fn get(&self, key: K) -> Option<&Page> {
        self.pages.get(&key).map(|entry| &*entry.page)
    }

    /// The same, and the page survives the next sweep.
    pub(crate) fn touch(&mut self, key: K) -> Option<&Page> {
        let entry = self.pages.get_mut(&key)?;
        entry.used = true;
        Some(&entry.page)
    }

    /// The page, to be changed: it is dirty from now on.
    ///
    /// # Panics
    /// If it is not here: the caller has loaded it.
    pub(crate) fn change(&mut self, key: K) -> &mut Page {
        self.dirty.insert(key);
        let entry = self
            .pages
            .get_mut(&key)
            .expect("the page was loaded before");
        entry.used = true;
        Rc::make_mut(&mut entry.page)
    }

    pub(crate) fn insert(&mut self, key: K, page: Page) {
        let entry = Entry {
            page: Rc::new(page),
            used: true,
        };
        if self.pages.insert(key, entry).is_none() {
            self.queue.push_back(key);
        }
    }

    pub(crate) fn remove(&mut self, key: K) {
        self.pages.remove(&key);
        self.dirty.remove(&key);
    }

    pub(crate) fn dirty(&self) -> impl Iterator<Item = K> + '_ {
        self.dirty.iter().copied()
    }

    pub(crate) fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// A dirty page for the checkpoint; it is clean from now on.
    pub(crate) fn take_dirty(&mut self, key: K) -> Option<Rc<Page>> {
        self.dirty.remove(&key);
        self.pages.get(&key).map(|entry| entry.page.clone())
    }

    /// Whether so many clean pages are here that a sweep should not wait. The margin is more than
    /// one write needs at once.
    pub(crate) fn is_crowded(&self) -> bool {
        self.pages.len() - self.dirty.len() > 2 * self.clean_max + 64
    }

    /// Drops clean pages beyond the bound, those not used since the last sweep first, except
    /// where `keep` says so.
    pub(crate) fn sweep(&mut self, keep: impl Fn(K) -> bool) {
        let mut turns = self.queue.len() * 2;
        while self.pages.len() - self.dirty.len() > self.clean_max && turns > 0 {
            turns -= 1;
            let Some(key) = self.queue.pop_front() else {
                break;
            };
            let Some(entry) = self.pages.get_mut(&key) else {
                continue;
            };
            if entry.used || self.dirty.contains(&key) || keep(key) {
                entry.used = false;
                self.queue.push_back(key);
            } else {
                self.pages.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::UNIT_BYTES;

    #[test]
    fn dirty_pages_stay_and_shared_ones_are_copied() {
        let mut cache = PageCache::new(1);
        for key in 0..4u32 {
            cache.insert(key, Page([key as u8; UNIT_BYTES]));
        }
        cache.change(2).0[0] = 9;
        cache.sweep(|_| false);
        assert!(cache.contains(2));
        assert_eq!((0..4).filter(|&k| cache.contains(k)).count(), 2);
        let taken = cache.take_dirty(2).expect("dirty");
        cache.change(2).0[0] = 10;
        assert_eq!((taken.0[0], cache.get(2).map(|p| p.0[0])), (9, Some(10)));
    }
}
