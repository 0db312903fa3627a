//! Granules in memory: those on their way to the disk, and verified ones worth keeping.
//!
//! A cached granule counts only for a pointer with the same unit *and* sum. It lies in a page of
//! its own: a slice of the run it was read or received in would keep up to 128 KiB for 4.
//! The policy is S3-FIFO, so one pass over much data does not push out what is used often.

use crate::directory::{IdHasher, IdMap};
use crate::layout::{Ptr, UNIT_BYTES};
use blockdev::{Buf, Pool};
use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::UnitWeighter;
use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::task::Waker;

type Kept = Cache<u64, (u32, Buf), UnitWeighter, BuildHasherDefault<IdHasher>>;

/// The part of the cache, as a divisor, that holds what was read ahead. A cache that withstands scans
/// gives new granules a few hundredths of itself until they are asked for again: what several
/// readers have been read ahead would be gone before they ask for it once.
const AHEAD_PART: usize = 8;

/// See the module.
pub(crate) struct DataCache {
    kept: Kept,
    in_flight: IdMap<(u32, Buf)>,
    /// Read ahead, not yet asked for.
    ahead: IdMap<(u32, Buf)>,
    /// Units read ahead in the order of their coming; some were taken since.
    ahead_order: VecDeque<u64>,
    ahead_max: usize,
    /// Units being read just now, and who waits for them.
    fetching: BTreeMap<u64, Vec<Waker>>,
    pool: Pool,
}

impl DataCache {
    /// Keeps at most `bytes` of granules.
    pub(crate) fn new(bytes: usize, pool: Pool) -> DataCache {
        let ahead_max = bytes / UNIT_BYTES / AHEAD_PART;
        let granules = (bytes / UNIT_BYTES - ahead_max).max(16);
        DataCache {
            kept: Cache::with(
                granules,
                granules as u64,
                UnitWeighter,
                BuildHasherDefault::default(),
                DefaultLifecycle::default(),
            ),
            in_flight: IdMap::default(),
            ahead: IdMap::default(),
            ahead_order: VecDeque::new(),
            ahead_max,
            fetching: BTreeMap::new(),
            pool,
        }
    }

    /// The granule, if it is in memory.
    pub(crate) fn get(&self, ptr: Ptr) -> Option<Buf> {
        let hit = |entry: &(u32, Buf)| (entry.0 == ptr.crc).then(|| entry.1.clone());
        if let Some(entry) = self.in_flight.get(&ptr.unit) {
            return hit(entry);
        }
        self.kept.get(&ptr.unit).and_then(hit)
    }

    /// Keeps a verified granule until it is asked for, as a slice of what was read.
    pub(crate) fn keep_ahead(&mut self, ptr: Ptr, data: &Buf) {
        while self.ahead_order.len() >= self.ahead_max.max(1) {
            let Some(oldest) = self.ahead_order.pop_front() else {
                break;
            };
            self.ahead.remove(&oldest);
        }
        self.ahead_order.push_back(ptr.unit);
        self.ahead.insert(ptr.unit, (ptr.crc, data.clone()));
    }

    /// The granule, if it was read ahead; it is kept as one that was asked for.
    pub(crate) fn take_ahead(&mut self, ptr: Ptr) -> Option<Buf> {
        let (crc, data) = self.ahead.remove(&ptr.unit)?;
        if crc != ptr.crc {
            return None;
        }
        self.keep(ptr, &data);
        Some(data)
    }

    /// Whether the granule was read ahead and waits to be asked for.
    pub(crate) fn is_ahead(&self, ptr: Ptr) -> bool {
        let entry = self.ahead.get(&ptr.unit);
        entry.is_some_and(|(crc, _)| *crc == ptr.crc)
    }

    /// Keeps a verified granule.
    pub(crate) fn keep(&mut self, ptr: Ptr, data: &Buf) {
        let mut page = self.pool.alloc_now(UNIT_BYTES);
        page.copy_from_slice(data);
        self.kept.insert(ptr.unit, (ptr.crc, page.freeze()));
    }

    /// A granule is on its way to the disk.
    pub(crate) fn sent(&mut self, ptr: Ptr, data: Buf) {
        self.kept.remove(&ptr.unit);
        self.ahead.remove(&ptr.unit);
        self.in_flight.insert(ptr.unit, (ptr.crc, data));
    }

    /// It arrived, or never will; with `keep` it stays in memory.
    pub(crate) fn arrived(&mut self, unit: u64, keep: bool) {
        if let Some((crc, data)) = self.in_flight.remove(&unit) {
            if keep {
                self.keep(Ptr { unit, crc }, &data);
            }
        }
    }

    /// Whether the unit is on its way.
    pub(crate) fn is_in_flight(&self, unit: u64) -> bool {
        self.in_flight.contains_key(&unit)
    }

    /// Bytes kept now.
    pub(crate) fn bytes(&self) -> u64 {
        (self.kept.weight() + self.ahead.len() as u64) * UNIT_BYTES as u64
    }

    pub(crate) fn begin_fetch(&mut self, unit: u64) {
        self.fetching.entry(unit).or_default();
    }

    pub(crate) fn is_fetching(&self, unit: u64) -> bool {
        self.fetching.contains_key(&unit)
    }

    /// Wakes `waker` when the unit has been read.
    pub(crate) fn await_fetch(&mut self, unit: u64, waker: &Waker) -> bool {
        match self.fetching.get_mut(&unit) {
            Some(list) => {
                list.push(waker.clone());
                true
            }
            None => false,
        }
    }

    /// The reading ended, well or not; returns who waited.
    pub(crate) fn end_fetch(&mut self, unit: u64) -> Vec<Waker> {
        self.fetching.remove(&unit).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_ahead_is_not_pushed_out_by_a_scan() {
        let pool = Pool::new(8 << 20);
        let mut cache = DataCache::new(1 << 20, pool);
        let page = Buf::zeros(4096);
        for unit in 1..=32 {
            cache.keep_ahead(Ptr { unit, crc: 1 }, &page);
        }
        for unit in 1000..3000 {
            cache.keep(Ptr { unit, crc: 1 }, &page);
        }
        for unit in 1..=32 {
            assert!(cache.take_ahead(Ptr { unit, crc: 1 }).is_some());
            assert!(
                cache.get(Ptr { unit, crc: 1 }).is_some(),
                "kept from now on"
            );
        }
        cache.keep_ahead(Ptr { unit: 7, crc: 1 }, &page);
        assert!(cache.take_ahead(Ptr { unit: 7, crc: 2 }).is_none());
        for unit in 0..5000 {
            cache.keep_ahead(Ptr { unit, crc: 1 }, &page);
        }
        assert!(cache.ahead.len() <= 32 && cache.ahead_order.len() <= 32);
    }

    #[test]
    fn a_granule_counts_only_with_its_sum_and_pins_one_page() {
        let pool = Pool::new(1 << 20);
        let mut cache = DataCache::new(1 << 16, pool.clone());
        let run = pool.alloc_now(128 << 10).freeze();
        cache.keep(Ptr { unit: 5, crc: 1 }, &run.slice(..4096));
        drop(run);
        assert_eq!(pool.used_bytes(), 4096);
        assert!(cache.get(Ptr { unit: 5, crc: 2 }).is_none());
        assert!(cache.get(Ptr { unit: 5, crc: 1 }).is_some());
        for unit in 10..500 {
            cache.keep(Ptr { unit, crc: 1 }, &Buf::zeros(4096));
        }
        assert!(pool.used_bytes() <= 1 << 16);
    }
}
