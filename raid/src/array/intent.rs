//! Write intent: which bits are set where, who waits for them, when they are cleared.
//!
//! A chunk's bit is *on disk* when it is set on every leg in sync. Writes set the bit of the next
//! chunk ahead, so a sequential writer never waits. Bits are cleared lazily: not touched for a
//! whole period, then a flush on both legs, then the event count rises, then the page is written.

use super::{Array, Leg, LegState, Start, REPLACEMENT};
use crate::bitmap::{self, BitmapHeader};
use crate::layout::SLOT_SECTORS;
use blockdev::{completion, mutation, Completion, Done, IoError, Promise, Sector};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const ON_DISK: u8 = 1;
const WANTED: u8 = 2;
const TOUCHED: u8 = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    flags: u8,
    in_flight: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct PageState {
    writing: bool,
    dirty: bool,
}

pub(super) struct Intent {
    chunk_sectors: u64,
    chunks: Vec<Chunk>,
    pages: Vec<PageState>,
    header: BitmapHeader,
    /// Chunks in which legs in sync may differ, to be equalised, and which doubt it was that said so.
    doubtful: BTreeMap<u64, u64>,
    doubts: u64,
    waiting: Vec<(Range<u64>, Promise)>,
}

impl Intent {
    pub(super) fn new(start: &Start) -> Intent {
        let size = start.identity.size;
        let header = BitmapHeader {
            array: start.identity.array,
            events: 0,
            events_cleared: start.events_cleared,
            sync_size: size,
            chunk_bytes: start.identity.chunk_bytes,
            state: 0,
        };
        let count = header.chunks(size);
        let mut chunks = vec![Chunk::default(); count as usize];
        let mut pages = vec![PageState::default(); bitmap::pages(count)];
        let mut doubtful = BTreeMap::new();
        for (n, chunk) in chunks.iter_mut().enumerate() {
            if start.dirty.get(n).copied().unwrap_or(true) {
                // On disk somewhere, but perhaps not on every leg: written again before the next
                // superblock.
                chunk.flags = WANTED;
                pages[bitmap::page_of_bit(n as u64)].dirty = true;
                if start.unclean {
                    doubtful.insert(n as u64, 0);
                }
            }
        }
        Intent {
            chunk_sectors: u64::from(header.chunk_bytes) / 512,
            chunks,
            pages,
            header,
            doubtful,
            doubts: 0,
            waiting: Vec::new(),
        }
    }

    /// Sets what `is_dirty` names; on disk with the next page.
    pub(super) fn adopt(&mut self, is_dirty: impl Fn(u64) -> bool) {
        let dirty: Vec<u64> = (0..self.chunk_count()).filter(|&n| is_dirty(n)).collect();
        dirty.into_iter().for_each(|n| {
            self.want(n..n + 1);
        });
    }

    fn covering(&self, range: &Range<Sector>) -> Range<u64> {
        let end = range
            .end
            .0
            .div_ceil(self.chunk_sectors)
            .min(self.chunks.len() as u64);
        range.start.0 / self.chunk_sectors..end
    }

    fn of(&mut self, chunks: Range<u64>) -> &mut [Chunk] {
        &mut self.chunks[chunks.start as usize..chunks.end as usize]
    }

    fn is_on_disk(&self, chunks: &Range<u64>) -> bool {
        self.chunks[chunks.start as usize..chunks.end as usize]
            .iter()
            .all(|chunk| chunk.flags & ON_DISK != 0)
    }

    /// Marks what is missing; yields the pages that must be written for it.
    fn want(&mut self, chunks: Range<u64>) -> BTreeSet<usize> {
        let mut pages = BTreeSet::new();
        for n in chunks {
            let chunk = &mut self.chunks[n as usize];
            if chunk.flags & ON_DISK == 0 {
                let page = bitmap::page_of_bit(n);
                chunk.flags |= WANTED;
                self.pages[page].dirty = true;
                pages.insert(page);
            }
        }
        pages
    }

    /// A write is sent to legs in sync: its bits come first.
    pub(super) fn begin(&mut self, range: &Range<Sector>) {
        let chunks = self.covering(range);
        assert!(
            self.is_on_disk(&chunks) || mutation::off("raid.bit-before-data"),
            "data ran ahead of the bitmap"
        );
        self.begin_copy(range);
    }

    /// A write is sent to a leg whose content does not count yet: it needs no bit.
    pub(super) fn begin_copy(&mut self, range: &Range<Sector>) {
        let chunks = self.covering(range);
        for chunk in self.of(chunks) {
            chunk.in_flight += 1;
            chunk.flags |= TOUCHED;
        }
    }

    /// It has ended on every leg.
    pub(super) fn end(&mut self, range: &Range<Sector>) {
        let chunks = self.covering(range);
        for chunk in self.of(chunks) {
            assert!(chunk.in_flight > 0, "a write ended twice");
            chunk.in_flight -= 1;
        }
    }

    /// The legs may differ in `range`.
    pub(super) fn doubt(&mut self, range: &Range<Sector>) {
        self.doubts += 1;
        let doubt = self.doubts;
        let chunks = self.covering(range);
        self.doubtful.extend(chunks.map(|chunk| (chunk, doubt)));
    }

    pub(super) fn is_doubtful(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// Chunks, each with its latest doubt.
    pub(super) fn doubtful(&self) -> Vec<(u64, u64)> {
        self.doubtful
            .iter()
            .map(|(&n, &doubt)| (n, doubt))
            .collect()
    }

    /// Nothing is left to differ from.
    pub(super) fn trust_all(&mut self) {
        for chunk in std::mem::take(&mut self.doubtful).into_keys() {
            // It was set before the doubt; that must not end with it.
            let flags = &mut self.chunks[chunk as usize].flags;
            if *flags & (ON_DISK | WANTED) == 0 {
                *flags |= WANTED;
                self.pages[bitmap::page_of_bit(chunk)].dirty = true;
            }
        }
    }

    /// The legs were equal since this doubt, unless another one was raised meanwhile.
    pub(super) fn trust(&mut self, chunk: u64, doubt: u64) {
        if self.doubtful.get(&chunk) == Some(&doubt) {
            self.doubtful.remove(&chunk);
        }
    }

    /// Every chunk whose bit is or will be set.
    pub(super) fn set_chunks(&self) -> Vec<u64> {
        (0..self.chunks.len() as u64)
            .filter(|&n| self.is_set(n))
            .collect()
    }

    pub(super) fn is_set(&self, chunk: u64) -> bool {
        self.chunks[chunk as usize].flags & (ON_DISK | WANTED) != 0
            || self.doubtful.contains_key(&chunk)
    }

    pub(super) fn range_of(&self, chunk: u64) -> Range<Sector> {
        let end = ((chunk + 1) * self.chunk_sectors).min(self.header.sync_size);
        Sector(chunk * self.chunk_sectors)..Sector(end)
    }

    pub(super) fn chunk_bytes(&self) -> u64 {
        self.chunk_sectors * 512
    }

    pub(super) fn chunk_count(&self) -> u64 {
        self.chunks.len() as u64
    }

    /// Pages whose bits on the survivor lag behind: a record calls them all set.
    pub(super) fn lagging_pages(&self) -> Vec<usize> {
        let lags = |(n, page): (usize, &PageState)| (page.dirty || page.writing).then_some(n);
        self.pages.iter().enumerate().filter_map(lags).collect()
    }

    fn encode(&self, page: usize) -> Box<[u8; 4096]> {
        let bits = self.chunk_count();
        bitmap::encode_page(&self.header, page, bits, |n| self.is_set(n))
    }

    /// Chunks that nobody touched since the last look; all are untouched from now.
    fn quiet(&mut self) -> Vec<u64> {
        let doubtful = &self.doubtful;
        let mut quiet = Vec::new();
        for (n, chunk) in self.chunks.iter_mut().enumerate() {
            let set = chunk.flags & ON_DISK != 0 && chunk.flags & WANTED == 0;
            let idle = chunk.in_flight == 0 && chunk.flags & TOUCHED == 0;
            if set && idle && !doubtful.contains_key(&(n as u64)) {
                quiet.push(n as u64);
            }
            chunk.flags &= !TOUCHED;
        }
        quiet
    }

    /// Clears what is still untouched; yields the pages to write.
    fn clear(&mut self, quiet: &[u64]) -> BTreeSet<usize> {
        let mut pages = BTreeSet::new();
        for &n in quiet {
            let chunk = &mut self.chunks[n as usize];
            let idle = chunk.in_flight == 0 && chunk.flags & (TOUCHED | WANTED) == 0;
            if idle && !self.doubtful.contains_key(&n) {
                chunk.flags &= !ON_DISK;
                let page = bitmap::page_of_bit(n);
                self.pages[page].dirty = true;
                pages.insert(page);
            }
        }
        pages
    }
}

impl Array {
    /// Whether every bit of `range` is on disk; begins to set what is missing, and the next
    /// chunk's ahead.
    pub(super) fn has_bits(&self, range: &Range<Sector>) -> bool {
        let (pages, ready) = {
            let mut intent = self.intent.borrow_mut();
            let chunks = intent.covering(range);
            let ready = intent.is_on_disk(&chunks);
            let ahead = chunks.start..(chunks.end + 1).min(intent.chunk_count());
            if ready && intent.is_on_disk(&ahead) {
                // The neighbour stays set while we are near.
                let next = ahead.end - 1;
                intent.chunks[next as usize].flags |= TOUCHED;
                return true;
            }
            (intent.want(ahead), ready)
        };
        pages.into_iter().for_each(|page| self.write_page(page));
        ready
    }

    /// See [`blockdev::Mirror::predirty`].
    pub(super) fn set_bits(&self, range: Range<Sector>) -> Completion {
        if range.start >= range.end || self.has_bits(&range) {
            return Completion::ready(Ok(Done::Written));
        }
        let (promise, completion) = completion::pair();
        let mut intent = self.intent.borrow_mut();
        let chunks = intent.covering(&range);
        intent.waiting.push((chunks, promise));
        completion
    }

    /// Writes a page of the bitmap, again while it changes; one writer a page.
    pub(super) fn write_page(&self, page: usize) {
        {
            let mut intent = self.intent.borrow_mut();
            intent.pages[page].dirty = true;
            if std::mem::replace(&mut intent.pages[page].writing, true) {
                return;
            }
        }
        let me = self.me.clone();
        self.rt.spawn(async move {
            if let Some(array) = me.upgrade() {
                array.page_writer(page).await;
            }
        });
    }

    async fn page_writer(&self, page: usize) {
        loop {
            let (bytes, wanted) = {
                let mut intent = self.intent.borrow_mut();
                if !std::mem::take(&mut intent.pages[page].dirty) {
                    intent.pages[page].writing = false;
                    break;
                }
                let bits = bitmap::bits_of_page(page, intent.chunk_count());
                let wanted: Vec<u64> = bits
                    .filter(|&n| intent.chunks[n as usize].flags & WANTED != 0)
                    .collect();
                (intent.encode(page), wanted)
            };
            let place = |leg: &Leg| Sector(leg.places().bitmap.0 + page as u64 * SLOT_SECTORS);
            let places = self.legs.each_ref().map(place);
            let data = self.pool.copy_now(&bytes[..]);
            match self.write_everywhere(places, data).await {
                Ok(_) => {
                    let mut intent = self.intent.borrow_mut();
                    for n in wanted {
                        let chunk = &mut intent.chunks[n as usize];
                        chunk.flags = chunk.flags & !WANTED | ON_DISK;
                    }
                }
                Err(error) => {
                    let mut intent = self.intent.borrow_mut();
                    intent.pages[page].dirty = true;
                    intent.pages[page].writing = false;
                    drop(intent);
                    self.bits_failed(&error);
                    break;
                }
            }
            self.bits_arrived();
        }
        self.changed.notify();
    }

    fn bits_arrived(&self) {
        let ready: Vec<Promise> = {
            let mut intent = self.intent.borrow_mut();
            let waiting = std::mem::take(&mut intent.waiting);
            let (ready, still): (Vec<_>, Vec<_>) = waiting
                .into_iter()
                .partition(|(chunks, _)| intent.is_on_disk(chunks));
            intent.waiting = still;
            ready.into_iter().map(|(_, promise)| promise).collect()
        };
        ready
            .into_iter()
            .for_each(|promise| promise.complete(Ok(Done::Written)));
        self.pump();
    }

    fn bits_failed(&self, error: &IoError) {
        let waiting = std::mem::take(&mut self.intent.borrow_mut().waiting);
        for (_, promise) in waiting {
            promise.complete(Err(error.clone()));
        }
        self.fail_held(error);
    }

    /// Writes every page that lags, or all of them, and waits for it.
    pub(super) async fn write_pages(&self, all: bool) {
        let count = self.intent.borrow().pages.len();
        for page in 0..count {
            if all || self.intent.borrow().pages[page].dirty {
                self.write_page(page);
            }
        }
        self.changed
            .until(|| !self.intent.borrow().pages.iter().any(|page| page.writing))
            .await;
    }

    /// Puts the event count into the bitmap's header and writes its page.
    pub(super) async fn write_bitmap_events(&self, events: u64) {
        {
            let mut intent = self.intent.borrow_mut();
            if intent.header.events == events {
                return;
            }
            intent.header.events = events;
        }
        self.write_page(0);
        self.changed
            .until(|| !self.intent.borrow().pages[0].writing)
            .await;
    }

    /// Legs with fewer events cannot be re-added by the bits.
    pub(super) fn events_cleared(&self) -> u64 {
        self.intent.borrow().header.events_cleared
    }

    /// Whether bits may be cleared at all: every leg configured is in sync and the store has
    /// chosen what counts.
    pub(super) fn may_clear(&self) -> bool {
        let configured = usize::from(self.raid_disks.get());
        self.legs[..configured]
            .iter()
            .all(|leg| leg.state() == LegState::InSync)
            && self.recorded_out.get() == 0
            // Its bits tell a replacement what it missed while it was away.
            && self.leg(REPLACEMENT).state() == LegState::Absent
            && self.recovered.get()
    }

    /// Both legs show from now on that they hold what bits are about to forget: an image of a leg
    /// from before shows fewer events than `events_cleared`, and is not re-added by bits. One step
    /// at a time, each on both legs before the next: after a crash in between they are one apart,
    /// which is as fresh. `false`: bits must stay.
    async fn raise_events(&self) -> bool {
        let _turn = self.meta_turn.take().await;
        let serial = self.change_serial.get();
        let now = self.events.get();
        let is_told = |leg: &Leg| leg.superblock.borrow().as_ref().map(|sb| sb.events) == Some(now);
        let in_sync = |leg: &&Leg| leg.state() == LegState::InSync;
        let begin = match self.slots().iter().filter(in_sync).all(is_told) {
            true => now + 1,
            false => now, // one may lag behind since a crash, or since a round that failed
        };
        // A change that begins meanwhile goes beyond all of them.
        self.events_sent.set(self.events_sent.get().max(now + 2));
        for events in begin..=now + 2 {
            if !self.may_clear() || self.change_serial.get() != serial {
                return false;
            }
            self.events.set(events);
            if self.write_superblocks().await.is_err() {
                return false;
            }
        }
        self.may_clear() && self.change_serial.get() == serial
    }

    /// One round of clearing. At a stop what is idle is cleared at once.
    pub(super) async fn clear_bits(&self, at_stop: bool) {
        if !self.may_clear() {
            return;
        }
        // Bits found at start come onto every leg before they are counted as there.
        self.write_pages(false).await;
        let quiet = {
            let mut intent = self.intent.borrow_mut();
            if at_stop {
                intent.quiet();
            }
            intent.quiet()
        };
        if quiet.is_empty() {
            return;
        }
        if !mutation::off("raid.flush-before-clear") && self.flush_round().await.is_err() {
            return;
        }
        if !self.raise_events().await {
            return;
        }
        let pages = {
            let mut intent = self.intent.borrow_mut();
            intent.header.events_cleared = self.events.get();
            intent.clear(&quiet)
        };
        pages.iter().for_each(|&page| self.write_page(page));
        if !pages.is_empty() {
            self.write_page(0);
        }
        self.changed
            .until(|| !self.intent.borrow().pages.iter().any(|page| page.writing))
            .await;
    }
}
