//! Writing: check the wire's sum, merge the edges, take fresh units, record, submit.
//!
//! Nothing that lives is overwritten. The write holds its chunk's place only until its record is
//! appended and its data submitted; the acknowledgement is awaited outside.

use crate::alloc::{Short, Units};
use crate::core_state::Core;
use crate::crc::Sum;
use crate::directory::Slot;
use crate::journal::record::{Ptrs, Record};
use crate::journal::writer::{DataWrite, Undo};
use crate::layout::{Ptr, BLOCK_GRANULES, UNIT_BYTES};
use crate::maps::Missing;
use crate::read::{check_range, Reader};
use crate::stats::Counted;
use crate::store::Store;
use blockdev::{Buf, IoVec};
use chunk_api::crc::{crc32, ZERO_GRANULE_CRC};
use chunk_api::{ChunkError, ChunkId, ChunkVersion};
use std::cell::Cell;
use std::rc::Rc;

/// A granule as it will lie on the disk.
pub(crate) struct Granule {
    /// `None`: zeros, a hole.
    pub(crate) data: Option<Buf>,
    pub(crate) crc: u32,
}

impl Granule {
    pub(crate) fn new(data: Buf, crc: u32) -> Granule {
        let zero = crc == ZERO_GRANULE_CRC && IoVec::from(data.clone()).is_zero();
        Granule {
            data: (!zero).then_some(data),
            crc,
        }
    }
}

/// Space that an operation asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Units that it takes now.
    pub(crate) wanted: usize,
    /// Units that the next checkpoint needs more because of it, beside those of the trees.
    pub(crate) spare: u64,
    /// It gives units up, and may use what is kept from others.
    pub(crate) shrinks: bool,
}

impl Need {
    /// Of a write: its changed map page is charged by the reserve.
    pub(crate) fn grow(wanted: usize) -> Need {
        Need::with_pages(wanted, 1)
    }

    /// Of an operation that makes `pages` pages.
    pub(crate) fn with_pages(wanted: usize, pages: usize) -> Need {
        Need {
            wanted,
            spare: 6 * pages as u64,
            shrinks: false,
        }
    }

    /// Of a cut.
    pub(crate) fn shrink(wanted: usize) -> Need {
        Need {
            wanted,
            spare: 0,
            shrinks: true,
        }
    }

    pub(crate) fn is_met(self, core: &Core) -> bool {
        let kept = match self.shrinks {
            true => core.least_free(),
            false => core.reserve(),
        };
        core.alloc.free() >= kept + self.spare + self.wanted as u64
    }
}

/// What a write waits for after it was submitted.
pub(crate) struct Submitted {
    pub(crate) seq: u64,
    pub(crate) refused: Rc<Cell<bool>>,
}

/// A fragment cut into granules: the first and last may be partial.
struct Cut {
    parts: Vec<(Buf, u32)>,
    sum: u32,
}

impl Store {
    pub(crate) async fn write_piece(
        self: Rc<Self>,
        (id, version): (ChunkId, ChunkVersion),
        (block, offset): (u16, u32),
        data: IoVec,
        crc: u32,
    ) -> Result<Submitted, ChunkError> {
        self.writable()?;
        check_range(block, offset, u32::try_from(data.len()).unwrap_or(u32::MAX))?;
        let place = self.order.enter(id.0);
        place.reached().await;
        let (slot, _) = self.lookup(id, version)?;
        let cut = self.cut(&data, offset);
        if cut.sum != crc {
            return Err(ChunkError::Crc);
        }
        let first = u32::from(block) * BLOCK_GRANULES + offset / UNIT_BYTES as u32;
        let lookup = || self.lookup(id, version);
        let merged = self
            .merge(first, offset as usize % UNIT_BYTES, cut.parts, lookup)
            .await;
        let granules = match merged {
            Err(ChunkError::Crc) => {
                self.report_damage(id.0);
                return Err(ChunkError::Crc);
            }
            other => other?,
        };
        self.place(slot, first, granules).await
    }

    /// Waits for a submitted write's acknowledgement.
    pub(crate) async fn settle(
        self: Rc<Self>,
        submitted: Submitted,
        bytes: usize,
        begin: blockdev::Instant,
    ) -> Result<(), ChunkError> {
        self.acknowledged(submitted.seq).await?;
        if submitted.refused.get() {
            return Err(ChunkError::NoSpace);
        }
        self.counters
            .count(Counted::Write, bytes as u64, begin, self.rt.now());
        Ok(())
    }

    /// Cuts a fragment at granule boundaries and sums the parts.
    fn cut(&self, data: &IoVec, offset: u32) -> Cut {
        let mut parts = Vec::new();
        let mut sum = Sum::default();
        let mut at = 0;
        let mut within = offset as usize % UNIT_BYTES;
        while at < data.len() {
            let take = (UNIT_BYTES - within).min(data.len() - at);
            let part = data.slice(at..at + take);
            // A device wants whole pages; what the socket put elsewhere is copied once.
            let buf = match part.bufs() {
                [one] if one.page_offset() == within => one.clone(),
                _ => {
                    let mut buf = self.medium.pool.alloc_now(take);
                    part.copy_to(&mut buf);
                    buf.freeze()
                }
            };
            let crc = crc32(&buf);
            sum.push(crc, take);
            parts.push((buf, crc));
            at += take;
            within = 0;
        }
        Cut { parts, sum: sum.0 }
    }

    /// Completes partial granules with what the chunk holds there.
    async fn merge(
        &self,
        first: u32,
        skip: usize,
        parts: Vec<(Buf, u32)>,
        lookup: impl Fn() -> Result<(u32, Slot), ChunkError>,
    ) -> Result<Vec<Granule>, ChunkError> {
        let mut out = Vec::with_capacity(parts.len());
        for (i, (buf, crc)) in parts.into_iter().enumerate() {
            if buf.len() == UNIT_BYTES {
                out.push(Granule::new(buf, crc));
                continue;
            }
            let granule = first + i as u32;
            let old = self
                .granules(granule..granule + 1, Reader::Asks, &mut None, &lookup)
                .await?;
            let within = if i == 0 { skip } else { 0 };
            let mut page = self.medium.pool.alloc_now(UNIT_BYTES);
            page.copy_from_slice(&old[0].0);
            page[within..within + buf.len()].copy_from_slice(&buf);
            let crc = crc32(&page);
            out.push(Granule::new(page.freeze(), crc));
        }
        Ok(out)
    }

    /// Puts granules `first..` of one block of a chunk into fresh units. The chunk's place is
    /// held by the caller.
    pub(crate) async fn place(
        &self,
        slot: u32,
        first: u32,
        granules: Vec<Granule>,
    ) -> Result<Submitted, ChunkError> {
        let probe = Record::Map {
            slot,
            block: (first / BLOCK_GRANULES) as u16,
            first: (first % BLOCK_GRANULES) as u8,
            ptrs: granules.iter().map(|_| Ptr::HOLE).collect(),
        };
        let wanted = granules.iter().filter(|g| g.data.is_some()).count();
        let units = self
            .reserve_units(Need::grow(wanted), |core| core.missing(&probe))
            .await?;
        let submitted = self.submit(slot, first, granules, units);
        self.pump();
        Ok(submitted)
    }

    /// Takes units for an operation at the very moment when nothing else is missing for it: the
    /// caller appends its record before it waits for anything.
    pub(crate) async fn reserve_units(
        &self,
        need: Need,
        missing: impl Fn(&mut Core) -> Vec<Missing>,
    ) -> Result<Units, ChunkError> {
        loop {
            self.writable()?;
            self.room().await?;
            if need.wanted > 0 && self.is_starved() {
                return Err(ChunkError::NoSpace);
            }
            let missing = {
                let tainted = self.tainted();
                let mut core = self.core.borrow_mut();
                let missing = missing(&mut core);
                if missing.is_empty() {
                    let short = match need.is_met(&core) {
                        true => core.alloc.take(need.wanted, &tainted),
                        false => Err(Short::Full),
                    };
                    match short {
                        Ok(units) => return Ok(units),
                        Err(Short::Load(index)) => vec![Missing::Alloc(index)],
                        Err(Short::Full) => Vec::new(),
                    }
                } else {
                    missing
                }
            };
            if missing.is_empty() {
                self.make_space(need).await?;
            } else {
                self.load(missing).await?;
            }
        }
    }

    /// Appends the record and hands the data to the journal. Nothing is missing.
    fn submit(&self, slot: u32, first: u32, granules: Vec<Granule>, units: Units) -> Submitted {
        let refused = Rc::new(Cell::new(false));
        let mut units = units.into_iter();
        let mut ptrs = Ptrs::new();
        let mut runs: Vec<(u64, IoVec)> = Vec::new();
        let mut cache = self.cache.borrow_mut();
        for granule in granules {
            let Some(data) = granule.data else {
                ptrs.push(Ptr::HOLE);
                continue;
            };
            let unit = units.next().expect("as many units as granules with data");
            let ptr = Ptr {
                unit,
                crc: granule.crc,
            };
            cache.sent(ptr, data.clone());
            ptrs.push(ptr);
            match runs.last_mut() {
                Some((start, run)) if *start + (run.len() / UNIT_BYTES) as u64 == unit => {
                    run.push(data);
                }
                _ => runs.push((unit, data.into())),
            }
        }
        drop(cache);
        let undo: Rc<[Undo]> = {
            let core = self.core.borrow();
            let undo = (first..).zip(&ptrs).map(|(granule, &new)| Undo {
                slot,
                granule,
                old: core.maps.ptr(slot, granule),
                new,
            });
            undo.collect()
        };
        let data = runs.into_iter().map(|(unit, data)| DataWrite {
            unit,
            data,
            undo: undo.clone(),
            refused: refused.clone(),
        });
        let record = Record::Map {
            slot,
            block: (first / BLOCK_GRANULES) as u16,
            first: (first % BLOCK_GRANULES) as u8,
            ptrs,
        };
        let seq = self.append(&record, data.collect());
        Submitted { seq, refused }
    }
}
