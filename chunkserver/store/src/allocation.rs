//! What `raid` asks: which space is used, and whether bytes are what they should be.

use crate::alloc::{entry, Role};
use crate::directory::Kind;
use crate::layout::{Ptr, ALLOC_UNITS, UNIT_BYTES, UNIT_SECTORS};
use crate::maps::Missing;
use crate::medium::granule;
use crate::store::Store;
use blockdev::{Allocation, IoVec, LocalFuture, Sector, Verdict};
use chunk_api::crc::crc32;
use std::collections::BTreeMap;
use std::ops::Range;

impl Store {
    /// What a unit should hold: `Ok(None)` nothing, `Ok(Some)` this, `Err` it is used without a
    /// sum known. Its alloc page is present.
    fn expected(&self, unit: u64) -> Result<Option<Ptr>, ()> {
        let core = self.core.borrow();
        if unit >= core.alloc.units() {
            return Ok(None);
        }
        match core.alloc.role(unit) {
            Role::Fixed | Role::Pending => Err(()),
            Role::Tree(crc) => Ok(Some(Ptr { unit, crc })),
            Role::Plain if self.cache.borrow().is_in_flight(unit) => Err(()),
            Role::Plain => match core.alloc.refs(unit) {
                (0, _) => Ok(None),
                (_, crc) => Ok(Some(Ptr { unit, crc })),
            },
        }
    }

    /// Makes a region's alloc page present; false if it cannot be read.
    pub(crate) async fn present(&self, region: u32) -> bool {
        loop {
            let missing = self.core.borrow_mut().alloc.missing_page(region);
            if missing.is_none() {
                return true;
            }
            if self.load(vec![Missing::Alloc(region)]).await.is_err() {
                return false;
            }
        }
    }

    /// What a unit should hold whose alloc page no leg has: the maps say it, too. Nothing in such a
    /// region changes, for each change needs the page; so it is looked up once.
    async fn owned(&self, unit: u64) -> Result<Option<Ptr>, ()> {
        match self.core.borrow().alloc.role(unit) {
            Role::Tree(crc) => return Ok(Some(Ptr { unit, crc })),
            Role::Fixed | Role::Pending => return Err(()),
            Role::Plain => {}
        }
        let region = (unit / ALLOC_UNITS) as u32;
        if !self.lost_regions.borrow().contains_key(&region) {
            let owned = self.owned_in(region).await;
            self.lost_regions.borrow_mut().insert(region, owned);
        }
        let lost = self.lost_regions.borrow();
        // What no map names may still be named by one that cannot be read.
        let crc = lost.get(&region).and_then(|owned| owned.get(&unit));
        crc.map(|&crc| Some(Ptr { unit, crc })).ok_or(())
    }

    /// Units of a region that some map names, with their sums. Walks over all maps.
    async fn owned_in(&self, region: u32) -> BTreeMap<u64, u32> {
        let mut owned = BTreeMap::new();
        let slots = self.core.borrow().dir.slots();
        for number in 0..slots {
            let before = self.core.borrow().dir.get(number);
            let is_readable = before.kind != Kind::Empty && self.present_map(number).await.is_ok();
            let now = self.core.borrow().dir.get(number);
            if !is_readable || (now.kind, now.id) != (before.kind, before.id) {
                continue;
            }
            let (ptrs, pages) = self.pointers(number);
            let ptrs = ptrs.into_iter().map(|(_, ptr)| ptr).chain(pages);
            let here = ptrs.filter(|ptr| (ptr.unit / ALLOC_UNITS) as u32 == region);
            owned.extend(here.map(|ptr| (ptr.unit, ptr.crc)));
            self.sweep();
        }
        owned
    }

    async fn used_from(&self, from: Sector) -> Option<Range<Sector>> {
        let (units, regions) = {
            let core = self.core.borrow();
            (core.alloc.units(), core.alloc.regions())
        };
        let first = from.0 / UNIT_SECTORS;
        let mut found: Option<Range<u64>> = None;
        for region in (first / ALLOC_UNITS) as u32..regions {
            let start = u64::from(region) * ALLOC_UNITS;
            let range = start.max(first)..(start + ALLOC_UNITS).min(units);
            if !self.core.borrow().alloc.has_roles(region) {
                match found {
                    Some(_) => break,
                    None => continue,
                }
            }
            // A region that cannot be read counts as used.
            let known = self.present(region).await;
            for unit in range {
                let used = !known || self.expected(unit) != Ok(None);
                match (&mut found, used) {
                    (None, true) => found = Some(unit..unit + 1),
                    (Some(run), true) => run.end = unit + 1,
                    (Some(run), false) => return Some(sectors(run)),
                    (None, false) => {}
                }
            }
            // One region at a time is enough for a copying machine.
            if let Some(run) = &found {
                if run.end - run.start >= ALLOC_UNITS {
                    break;
                }
            }
        }
        found.as_ref().map(sectors)
    }

    async fn verdicts(&self, at: Sector, data: IoVec) -> Vec<Verdict> {
        let first = at.0 / UNIT_SECTORS;
        let mut out = Vec::with_capacity(data.len() / UNIT_BYTES);
        for i in 0..data.len() / UNIT_BYTES {
            let unit = first + i as u64;
            let region = (unit / ALLOC_UNITS) as u32;
            let inside = region < self.core.borrow().alloc.regions();
            let expected = match inside && !self.present(region).await {
                true => self.owned(unit).await,
                false => self.expected(unit),
            };
            out.push(match expected {
                Ok(None) => Verdict::Free,
                Err(()) => Verdict::Unknown,
                Ok(Some(ptr)) => match crc32(&granule(&data, i, &self.medium.pool)) == ptr.crc {
                    true => Verdict::Good,
                    false => Verdict::Bad,
                },
            });
        }
        out
    }

    /// References and sums of a region whose page is present, for a check.
    pub(crate) fn region_entries(&self, region: u32) -> Vec<(u64, u16, u32)> {
        let core = self.core.borrow();
        let page = core
            .alloc
            .pages
            .get(region)
            .expect("the page was loaded before");
        let start = u64::from(region) * ALLOC_UNITS;
        let entries = (0..ALLOC_UNITS).map(|i| {
            let (refs, crc) = entry(page, i as usize);
            (start + i, refs, crc)
        });
        entries.collect()
    }
}

fn sectors(units: &Range<u64>) -> Range<Sector> {
    Sector(units.start * UNIT_SECTORS)..Sector(units.end * UNIT_SECTORS)
}

impl Allocation for Store {
    fn next_used(&self, from: Sector) -> LocalFuture<Option<Range<Sector>>> {
        let me = self.rc();
        Box::pin(async move { me.used_from(from).await })
    }

    fn judge(&self, at: Sector, data: IoVec) -> LocalFuture<Vec<Verdict>> {
        let me = self.rc();
        Box::pin(async move { me.verdicts(at, data).await })
    }
}
