//! What `raid` asks: which space is used, and whether bytes are what they should be.

use crate::alloc::{entry, Role};
use crate::layout::{Ptr, ALLOC_UNITS, UNIT_BYTES, UNIT_SECTORS};
use crate::maps::Missing;
use crate::medium::granule;
use crate::store::Store;
use blockdev::{Allocation, IoVec, LocalFuture, Sector, Verdict};
use chunk_api::crc::crc32;
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
            if inside && !self.present(region).await {
                out.push(Verdict::Unknown);
                continue;
            }
            out.push(match self.expected(unit) {
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
