//! Reading: look up, take from memory or from the disk, check, join the sums.
//!
//! A unit is not pinned while it is read: if it was given up and used anew meanwhile, its bytes
//! do not match the pointer's sum any more, and the look-up is repeated. Only when the pointer has
//! not changed and no leg has matching bytes is the chunk damaged.

use crate::crc::Sum;
use crate::directory::Slot;
use crate::layout::{Ptr, BLOCK_GRANULES, UNIT_BYTES};
use crate::maps::{locate, Missing};
use crate::stats::Counted;
use crate::store::Store;
use blockdev::{Buf, IoCtx, IoVec};
use chunk_api::crc::{crc32, ZERO_GRANULE_CRC};
use chunk_api::{ChunkError, ChunkId, ChunkVersion, ReadPiece, BLOCKS_PER_CHUNK, BLOCK_BYTES};
use std::future::{poll_fn, Future};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

/// Look-ups of one read at most: each repetition means that a write came between.
const LOOKUPS_MAX: usize = 64;

/// Block number past the chunk (`ERROR_BNUMTOOBIG`).
pub(crate) const BLOCK_OUT_OF_RANGE: ChunkError = ChunkError::Range(23);
/// Size beyond the block (`ERROR_WRONGSIZE`).
pub(crate) const WRONG_SIZE: ChunkError = ChunkError::Range(24);
/// Offset beyond the block (`ERROR_WRONGOFFSET`).
pub(crate) const WRONG_OFFSET: ChunkError = ChunkError::Range(25);

/// Checks that a range lies inside one block of a chunk.
pub(crate) fn check_range(block: u16, offset: u32, size: u32) -> Result<(), ChunkError> {
    if block >= BLOCKS_PER_CHUNK {
        return Err(BLOCK_OUT_OF_RANGE);
    }
    if size == 0 || size > BLOCK_BYTES {
        return Err(WRONG_SIZE);
    }
    if offset >= BLOCK_BYTES || offset + size > BLOCK_BYTES {
        return Err(WRONG_OFFSET);
    }
    Ok(())
}

/// Who wants granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// They were asked for.
    Asks,
    /// They are likely to be asked for next; their bytes are of no interest yet.
    IsAhead,
}

/// Units being read, forgotten when this is dropped.
struct Fetching<'a> {
    store: &'a Store,
    units: Vec<u64>,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let mut wakers = Vec::new();
        {
            let mut cache = self.store.cache.borrow_mut();
            self.units
                .iter()
                .for_each(|&unit| wakers.extend(cache.end_fetch(unit)));
        }
        wakers.into_iter().for_each(std::task::Waker::wake);
    }
}

impl Store {
    /// The live chunk, in the version asked for (0: any).
    pub(crate) fn lookup(
        &self,
        id: ChunkId,
        version: ChunkVersion,
    ) -> Result<(u32, Slot), ChunkError> {
        let found = self.core.borrow().dir.find(id.0);
        let (number, slot) = found.ok_or(ChunkError::NoChunk)?;
        let held = ChunkVersion(slot.version);
        if version.accepts(held) {
            return Ok((number, slot));
        }
        let versions = (version.0, held.0);
        let now = self.rt.now();
        let evidence = self
            .stale
            .borrow_mut()
            .on_other_version(id.0, versions, now);
        evidence.into_iter().for_each(|text| self.suspect(text));
        Err(ChunkError::WrongVersion { held })
    }

    pub(crate) async fn read_piece(
        self: Rc<Self>,
        id: ChunkId,
        version: ChunkVersion,
        (block, offset, size): (u16, u32, u32),
    ) -> Result<ReadPiece, ChunkError> {
        check_range(block, offset, size)?;
        let begin = self.rt.now();
        // What was called before must be seen; if nothing is under way there is no need to queue.
        let place = self.order.is_busy(id.0).then(|| self.order.enter(id.0));
        if let Some(place) = &place {
            place.reached().await;
        }
        let unit = UNIT_BYTES as u32;
        let base = u32::from(block) * BLOCK_GRANULES;
        let granules = base + offset / unit..base + (offset + size).div_ceil(unit);
        let mut place = place;
        let bytes = (
            u64::from(block) * u64::from(BLOCK_BYTES) + u64::from(offset),
            size.into(),
        );
        let mut ahead = Some(bytes);
        let bufs = {
            let lookup = || self.lookup(id, version);
            let mut read = pin!(self.granules(granules, Reader::Asks, &mut place, lookup));
            // What is read ahead is submitted behind what was asked for.
            poll_fn(|cx| {
                let bufs = read.as_mut().poll(cx);
                if let Some(bytes) = ahead.take() {
                    self.read_ahead(id, bytes);
                }
                bufs
            })
            .await
        };
        let bufs = match bufs {
            Err(ChunkError::Crc) => {
                self.report_damage(id.0);
                return Err(ChunkError::Crc);
            }
            other => other?,
        };
        let piece = assemble(&bufs, offset % unit, size);
        self.counters
            .count(Counted::Read, size.into(), begin, self.rt.now());
        Ok(piece)
    }

    /// Granules of a chunk with their sums; holes are zeros. `place` is given up once the first
    /// look-up is done.
    pub(crate) async fn granules(
        &self,
        granules: Range<u32>,
        reader: Reader,
        place: &mut Option<crate::order::Place>,
        lookup: impl Fn() -> Result<(u32, Slot), ChunkError>,
    ) -> Result<Vec<(Buf, u32)>, ChunkError> {
        let mut last: Option<Vec<Ptr>> = None;
        for _ in 0..LOOKUPS_MAX {
            let (slot, ptrs) = self.resolve(granules.clone(), &lookup).await?;
            place.take();
            if last.as_ref() == Some(&ptrs) {
                // The same pointers, and no leg has what they name.
                return Err(ChunkError::Crc);
            }
            match self.gather(slot, granules.start, &ptrs, reader).await? {
                Some(bufs) => return Ok(bufs),
                None => last = Some(ptrs),
            }
        }
        Err(ChunkError::Io(
            "overwritten again and again while it was read".into(),
        ))
    }

    /// Slot and pointers of granules, loading what is needed to tell.
    async fn resolve(
        &self,
        granules: Range<u32>,
        lookup: &impl Fn() -> Result<(u32, Slot), ChunkError>,
    ) -> Result<(u32, Vec<Ptr>), ChunkError> {
        loop {
            let (slot, _) = lookup()?;
            let missing: Vec<Missing> = {
                let mut core = self.core.borrow_mut();
                let crate::core_state::Core { dir, maps, .. } = &mut *core;
                let first = locate(granules.start).0;
                let last = locate(granules.end - 1).0;
                let missing: Vec<_> = (first..=last)
                    .filter_map(|p| maps.need(dir, slot, p))
                    .collect();
                if missing.is_empty() {
                    return Ok((slot, granules.map(|g| maps.ptr(slot, g)).collect()));
                }
                missing
            };
            self.load(missing[..1].to_vec()).await?;
        }
    }

    /// The bytes that the pointers name; `None`: some could not be had.
    async fn gather(
        &self,
        slot: u32,
        first: u32,
        ptrs: &[Ptr],
        reader: Reader,
    ) -> Result<Option<Vec<(Buf, u32)>>, ChunkError> {
        let mut bufs: Vec<Option<(Buf, u32)>> = vec![None; ptrs.len()];
        let (wanted, _fetching) = loop {
            let wanted = self.fill_from_memory(ptrs, reader, &mut bufs);
            if wanted.is_empty() {
                return Ok(Some(bufs.into_iter().flatten().collect()));
            }
            let busy = {
                let cache = self.cache.borrow();
                wanted
                    .iter()
                    .map(|&i| ptrs[i].unit)
                    .find(|&unit| cache.is_fetching(unit))
            };
            match busy {
                Some(unit) => self.fetched(unit).await,
                None => {
                    let units: Vec<u64> = wanted.iter().map(|&i| ptrs[i].unit).collect();
                    let mut cache = self.cache.borrow_mut();
                    units.iter().for_each(|&unit| cache.begin_fetch(unit));
                    break (wanted, Fetching { store: self, units });
                }
            }
        };
        let asked: Vec<Ptr> = wanted.iter().map(|&i| ptrs[i]).collect();
        let fetched = self.medium.fetch(&asked, IoCtx::foreground()).await;
        for (i, fetched) in wanted.into_iter().zip(fetched) {
            let Some(good) = fetched.good.clone() else {
                if fetched.unreadable {
                    let changed = self.still(slot, first + i as u32, ptrs[i]) == Some(false);
                    if !changed {
                        return Err(ChunkError::Io("no leg can be read".into()));
                    }
                }
                return Ok(None);
            };
            if self.still(slot, first + i as u32, ptrs[i]) == Some(true) {
                let mut cache = self.cache.borrow_mut();
                match reader {
                    Reader::Asks => cache.keep(ptrs[i], &good),
                    Reader::IsAhead => cache.keep_ahead(ptrs[i], &good),
                }
            }
            if !fetched.bad.is_empty() {
                self.rc().heal_later(ptrs[i], fetched);
            }
            bufs[i] = Some((good, ptrs[i].crc));
        }
        Ok(Some(bufs.into_iter().flatten().collect()))
    }

    /// Fills in what needs no reading; returns the places of the rest.
    fn fill_from_memory(
        &self,
        ptrs: &[Ptr],
        reader: Reader,
        bufs: &mut [Option<(Buf, u32)>],
    ) -> Vec<usize> {
        let mut cache = self.cache.borrow_mut();
        let mut wanted = Vec::new();
        for (i, (&ptr, buf)) in ptrs.iter().zip(bufs).enumerate() {
            if buf.is_some() {
                continue;
            }
            *buf = match ptr.is_hole() {
                true => Some((Buf::zeros(UNIT_BYTES), ZERO_GRANULE_CRC)),
                // It waits for whoever asks; that it is there is all that matters here.
                false if reader == Reader::IsAhead && cache.is_ahead(ptr) => {
                    Some((Buf::zeros(UNIT_BYTES), ptr.crc))
                }
                false => cache
                    .get(ptr)
                    .or_else(|| cache.take_ahead(ptr))
                    .map(|buf| (buf, ptr.crc)),
            };
            if buf.is_none() {
                wanted.push(i);
            }
        }
        wanted
    }

    /// Whether a granule still lies there; `None`: its map page is not in memory.
    fn still(&self, slot: u32, granule: u32, ptr: Ptr) -> Option<bool> {
        let core = self.core.borrow();
        let (page, at) = locate(granule);
        core.maps
            .pages
            .get((slot, page))
            .map(|map| map.ptr(at) == ptr)
    }

    /// Ends when nobody reads `unit` any more.
    async fn fetched(&self, unit: u64) {
        poll_fn(
            |cx| match self.cache.borrow_mut().await_fetch(unit, cx.waker()) {
                true => Poll::Pending,
                false => Poll::Ready(()),
            },
        )
        .await
    }

    /// Reads ahead for a sequential reader.
    fn read_ahead(&self, id: ChunkId, bytes: (u64, u64)) {
        let span = u64::from(self.options.read_ahead_bytes);
        let range = self.streams.borrow_mut().on_read(id.0, bytes, span);
        let Some(range) = range else { return };
        let Ok((_, slot)) = self.lookup(id, ChunkVersion(0)) else {
            return;
        };
        let unit = UNIT_BYTES as u64;
        let end = (range.end / unit).min(u64::from(slot.blocks) * u64::from(BLOCK_GRANULES));
        let granules = (range.start / unit) as u32..end as u32;
        if granules.is_empty() {
            return;
        }
        let me = self.rc();
        let fetch = async move {
            let lookup = || me.lookup(id, ChunkVersion(0));
            // Whatever goes wrong here the reader will meet himself.
            let _ = me
                .granules(granules, Reader::IsAhead, &mut None, lookup)
                .await;
        };
        // Its reads are submitted now, so that the reader finds them under way.
        drop(self.begin(fetch));
    }

    /// CRC-32 of each block, from the granules' sums alone.
    pub(crate) async fn block_sums(
        self: Rc<Self>,
        id: ChunkId,
        version: ChunkVersion,
    ) -> Result<Vec<u32>, ChunkError> {
        let place = self.order.is_busy(id.0).then(|| self.order.enter(id.0));
        if let Some(place) = &place {
            place.reached().await;
        }
        let mut sums = Vec::with_capacity(BLOCKS_PER_CHUNK.into());
        for block in 0..u32::from(BLOCKS_PER_CHUNK) {
            let (_, slot) = self.lookup(id, version)?;
            if block >= slot.blocks.into() {
                sums.push(chunk_api::crc::ZERO_BLOCK_CRC);
                continue;
            }
            let granules = block * BLOCK_GRANULES..(block + 1) * BLOCK_GRANULES;
            let (_, ptrs) = self.resolve(granules, &|| self.lookup(id, version)).await?;
            let mut sum = Sum::default();
            for ptr in ptrs {
                sum.push(
                    if ptr.is_hole() {
                        ZERO_GRANULE_CRC
                    } else {
                        ptr.crc
                    },
                    UNIT_BYTES,
                );
            }
            sums.push(sum.0);
        }
        Ok(sums)
    }
}

/// Cuts `size` bytes from `skip` bytes into the first granule on, with their sum.
fn assemble(bufs: &[(Buf, u32)], skip: u32, size: u32) -> ReadPiece {
    let mut data = IoVec::new();
    let mut sum = Sum::default();
    let mut from = skip as usize;
    let mut left = size as usize;
    for (buf, crc) in bufs {
        let take = left.min(UNIT_BYTES - from);
        let part = match take {
            UNIT_BYTES => buf.clone(),
            _ => buf.slice(from..from + take),
        };
        sum.push(
            if take == UNIT_BYTES {
                *crc
            } else {
                crc32(&part)
            },
            take,
        );
        data.push(part);
        left -= take;
        from = 0;
    }
    ReadPiece { data, crc: sum.0 }
}
