//! Copies between legs: re-add by bitmap and rebuild. Whether a leg is what it was when it went out
//! is judged in [`returned`]; the resync of legs in doubt is in [`resync`].
//!
//! Every unit is copied under a region lock, after the writes under way in it. With a map of used
//! space only that is copied, and each granule is judged by its checksum first: a bad source is
//! healed from a good target instead of spreading (R12), and in a resync the good side wins; slot
//! 0 wins in free space alone (R13). A leg that returns is fenced before anything is sent to it.
//! While foreground requests run, units are small and every second is left to them.

mod resync;
mod returned;

use super::replace::Turn;
use super::snapshot::{LastSync, SyncSnapshot};
use super::{Array, Leg, LegState, Why, REPLACEMENT};
use crate::several::Several;
use blockdev::{
    mutation, Allocation, Done, Instant, IoCtx, IoError, IoVec, Kind, LegIndex, Op, Sector,
    Verdict, SECTOR_BYTES,
};
use returned::Returned;
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// How much of a leg must be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// What lies under set bits.
    Bits,
    /// All from this sector on, and what lies under set bits below it.
    From(u64),
}

impl Resume {
    /// From where on everything is to be copied, if anything is.
    pub(crate) fn from(self) -> Option<u64> {
        match self {
            Resume::Bits => None,
            Resume::From(from) => Some(from),
        }
    }
}

/// What runs, and what ran last.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) now: Option<SyncSnapshot>,
    /// The filling of a replacement, which waits while anything else is copied.
    pub(super) replace: Option<SyncSnapshot>,
    pub(super) last: Option<LastSync>,
    /// Bytes that all copies have written to each leg, by its name.
    pub(super) copied: BTreeMap<String, u64>,
    pub(super) full: bool,
    resyncing: bool,
}

impl Progress {
    fn of(&mut self, leg: LegIndex) -> &mut Option<SyncSnapshot> {
        if leg == REPLACEMENT {
            &mut self.replace
        } else {
            &mut self.now
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.now.is_some() || self.replace.is_some()
    }
}

const UNIT_SECTORS: u64 = 2048;
const UNIT_SECTORS_BUSY: u64 = 256;
/// Units in flight while nobody else wants the legs.
const UNITS_AT_ONCE: usize = 8;
/// Unused space up to this length between two used ranges is copied with them.
const GAP_SECTORS: u64 = 64;
const GRANULE_SECTORS: u64 = 8;
const GRANULE_BYTES: usize = 4096;
/// A rebuild notes how far it is after so many copied sectors: what a leg that was away meanwhile is
/// sent once more at most.
const CHECKPOINT_SECTORS: u64 = 1 << 17;
const RETRY: Duration = Duration::from_millis(250);

enum Attempt {
    Done,
    Retry,
    GiveUp(String),
}

impl Array {
    /// Looks for a leg that is out, from `at` on, until it is back.
    pub(super) fn spawn_return(&self, index: LegIndex, at: Instant) {
        let leg = self.leg(index);
        let attempt = leg.attempts.get() + 1;
        leg.attempts.set(attempt);
        let (me, rt) = (self.me.clone(), self.rt.clone());
        self.rt.spawn(async move {
            let mut at = at;
            loop {
                rt.sleep_until(at).await;
                let Some(array) = me.upgrade() else { return };
                let leg = array.leg(index);
                let wanted = leg.attempts.get() == attempt && leg.state() == LegState::Out;
                if !wanted || array.closed().is_some() {
                    return;
                }
                match array.take_back(leg, attempt).await {
                    Attempt::Done => return,
                    Attempt::Retry => at = rt.now() + RETRY,
                    Attempt::GiveUp(_) if leg.attempts.get() != attempt => return,
                    Attempt::GiveUp(text) => {
                        leg.why.set(Why::Broken);
                        array.report_leg("leg_failed", leg, text, true);
                        return;
                    }
                }
            }
        });
    }

    async fn take_back(&self, leg: &Leg, attempt: u64) -> Attempt {
        let Some(device) = leg.device() else {
            return Attempt::Retry;
        };
        if leg.index == REPLACEMENT {
            match self.turn_of_replacement(leg) {
                Turn::Go => {}
                Turn::Wait => return Attempt::Retry,
                Turn::Promoted => return Attempt::Done,
            }
        }
        if !mutation::off("raid.readd-fenced") {
            let fenced = device.submit(Op::Fence, IoCtx::metadata()).await;
            if fenced.is_err() {
                return Attempt::Retry;
            }
        }
        let returned = self.look_at(leg, &*device).await;
        let survivor = self.peer(leg.index);
        let is_current = leg.state() == LegState::Out && leg.attempts.get() == attempt;
        match returned {
            _ if !is_current => return Attempt::Retry,
            Returned::Silent => return Attempt::Retry,
            Returned::Strange(text) => return Attempt::GiveUp(text),
            Returned::AsKnown(found) => self.goes_on(leg, &found),
            Returned::Changed(found, text) => {
                self.report_leg("leg_failed", leg, text, true);
                leg.was_read(&found);
                leg.rebuilt_durably.set(Some(0));
            }
        }
        // The store chooses what counts before anything is copied (R4).
        let still_out = is_current && self.recovered.get() && !self.stopping.get();
        if !still_out || survivor.state() != LegState::InSync {
            return Attempt::Retry;
        }
        if leg.filling.replace(true) {
            return Attempt::Retry; // the attempt before has a copy under way
        }
        let rebuilt = self.rebuild(leg, survivor).await;
        leg.filling.set(false);
        match rebuilt {
            Ok(()) => Attempt::Done,
            Err(error) => {
                if matches!(leg.state(), LegState::Rebuilding | LegState::Joining) {
                    // The leg itself did nothing wrong: the source failed.
                    self.fail_leg(leg, Why::Failed, &format!("not rebuilt: {error}"));
                }
                // Whoever put it out has begun to look for it again.
                Attempt::Done
            }
        }
    }

    async fn rebuild(&self, leg: &Leg, survivor: &Leg) -> Result<(), IoError> {
        let began = self.rt.now();
        let from = leg.rebuilt_durably.get();
        let by_bitmap = from.is_none();
        let kind = match leg.index {
            REPLACEMENT => "replace",
            _ => "recovery",
        };
        let name = leg.name();
        leg.window.borrow_mut().clear();
        leg.restoring.set(false);
        leg.set_state(LegState::Rebuilding);
        leg.awaited.set(false);
        leg.rebuilt_to.set(from);
        if from.is_some() {
            self.note_rebuild(survivor).await?;
        }
        self.write_pages(true).await;
        let todo = self.to_copy(from);
        let total = todo
            .iter()
            .map(|range| range.end.0 - range.start.0)
            .sum::<u64>();
        self.begin_progress(kind, leg, total);
        let result = self.copy_all(leg, survivor, todo).await;
        if result.is_err() && self.stopping.get() && leg.is_on_record_rebuilding() {
            let _ = self.note_progress(leg).await;
        }
        let copied = self.end_progress(leg);
        if result.is_ok() {
            match kind {
                "replace" => self.take_over(leg).await?,
                _ => self.join_in(leg, survivor).await?,
            }
        }
        let last = LastSync {
            kind,
            leg: name,
            bitmap: by_bitmap,
            copied_bytes: copied,
            elapsed: self.rt.now().since(began),
            done: result.is_ok(),
        };
        let last_name = last.leg.clone();
        self.sync.borrow_mut().last = Some(last);
        if result.is_ok() {
            self.sync.borrow_mut().full = false;
            let text = format!("in sync again, {copied} bytes copied");
            let object = format!("{} {}", self.options.volume, last_name);
            self.report("sync_done", object.clone(), text.clone(), false);
            self.report("leg_readded", object, text, false);
        }
        result
    }

    /// Puts on record that the leg is being rebuilt, so that it goes on after a restart and is
    /// never taken for whole.
    async fn note_rebuild(&self, survivor: &Leg) -> Result<(), IoError> {
        let _turn = self.meta_turn.take().await;
        if self.leg(REPLACEMENT).state() == LegState::Rebuilding && self.out_mask() == 0 {
            // No state of a slot changes: the superblocks name one more device.
            return self.write_superblocks().await;
        }
        let events = self.next_events();
        let out = self.out_mask();
        while !self.tell_witness(events, out, false).await {}
        self.write_record(survivor, events, out).await?;
        self.events.set(events);
        self.recorded_out.set(out);
        self.write_superblocks().await
    }

    /// What lies under set bits, and everything from there on.
    fn to_copy(&self, from: Option<u64>) -> Vec<Range<Sector>> {
        let from = from.unwrap_or(u64::MAX);
        let intent = self.intent.borrow();
        (0..intent.chunk_count())
            .filter(|&n| intent.is_set(n) || intent.range_of(n).end.0 > from)
            .map(|n| intent.range_of(n))
            .collect()
    }

    async fn copy_all(
        &self,
        leg: &Leg,
        survivor: &Leg,
        todo: Vec<Range<Sector>>,
    ) -> Result<(), IoError> {
        let mut since_note = 0;
        for chunk in todo {
            since_note += self.copy_chunk(leg, survivor, &chunk).await?;
            self.advance(leg, chunk.end.0 - chunk.start.0);
            let rebuilt_to = leg.rebuilt_to.get().map(|to| to.max(chunk.end.0));
            let is_next = leg.rebuilt_to.get().is_some_and(|to| chunk.start.0 <= to);
            if is_next {
                leg.rebuilt_to.set(rebuilt_to);
            }
            if is_next && since_note >= CHECKPOINT_SECTORS {
                since_note = 0;
                self.note_progress(leg).await?;
            }
        }
        if leg.state() == LegState::Rebuilding {
            Ok(())
        } else {
            Err(IoError::not_applied(Kind::Closed))
        }
    }

    /// Makes what was copied durable and says so on the leg.
    async fn note_progress(&self, leg: &Leg) -> Result<(), IoError> {
        self.flush_rebuilding(leg).await;
        let _turn = self.meta_turn.take().await;
        if leg.is_on_record_rebuilding() {
            self.write_superblock(leg).await?;
        }
        Ok(())
    }

    fn map(&self) -> Option<Rc<dyn Allocation>> {
        self.allocation.borrow().as_ref()?.upgrade()
    }

    /// Copies what must be of one chunk; returns how many sectors that were.
    async fn copy_chunk(
        &self,
        leg: &Leg,
        survivor: &Leg,
        chunk: &Range<Sector>,
    ) -> Result<u64, IoError> {
        let mut units = Several::new();
        let (mut at, mut copied) = (chunk.start, 0);
        let mut room = Ok(());
        while room.is_ok() {
            let Some(unit) = self.next_unit(at, chunk).await else {
                break;
            };
            at = unit.end;
            let sectors = unit.end.0 - unit.start.0;
            copied += sectors;
            units.push(self.paced(async move {
                self.give_way(leg).await?;
                self.copy_unit(leg, survivor, unit).await?;
                self.count_copied(leg, sectors * SECTOR_BYTES);
                Ok(())
            }));
            room = units.below(self.units_at_once()).await;
        }
        // A copy under way must not outlive its lock.
        let rest = units.finish().await;
        room.and(rest).map(|()| copied)
    }

    /// One unit: not when the array stops, and as long idle as at work while others wait.
    async fn paced(&self, unit: impl Future<Output = Result<(), IoError>>) -> Result<(), IoError> {
        self.may_copy()?;
        let busy = self.is_busy();
        let began = self.rt.now();
        unit.await?;
        if busy {
            self.rt.sleep(self.rt.now().since(began)).await;
        }
        Ok(())
    }

    fn units_at_once(&self) -> usize {
        match self.is_busy() {
            true => 1,
            false => UNITS_AT_ONCE,
        }
    }

    fn unit_sectors(&self) -> u64 {
        match self.is_busy() {
            true => UNIT_SECTORS_BUSY,
            false => UNIT_SECTORS,
        }
    }

    /// The first unit of `within` from `at` on that must be copied. Small gaps are copied too: an
    /// answer costs more than their bytes.
    async fn next_unit(&self, at: Sector, within: &Range<Sector>) -> Option<Range<Sector>> {
        let limit = self.unit_sectors();
        let mut unit = self.next_used(at, within).await?;
        while unit.end.0 - unit.start.0 < limit {
            match self.next_used(unit.end, within).await {
                Some(more) if more.start.0 - unit.end.0 <= GAP_SECTORS => unit.end = more.end,
                _ => break,
            }
        }
        unit.end = unit.end.min(Sector(unit.start.0 + limit));
        Some(unit)
    }

    /// The first part of `within` from `at` on that must be copied.
    async fn next_used(&self, at: Sector, within: &Range<Sector>) -> Option<Range<Sector>> {
        if at >= within.end {
            return None;
        }
        let all = at..within.end;
        let map = match self.map() {
            Some(map) if !self.sync.borrow().full => map,
            _ => return Some(all),
        };
        let used = map.next_used(at).await?;
        let start = used.start.max(at).0 / GRANULE_SECTORS * GRANULE_SECTORS;
        let end = used
            .end
            .0
            .next_multiple_of(GRANULE_SECTORS)
            .min(within.end.0);
        let start = start.max(at.0);
        (start < end).then_some(Sector(start)..Sector(end))
    }

    fn is_busy(&self) -> bool {
        let recent = Duration::from_millis(100);
        let written = self.rt.now().since(self.last_write.get()) < recent;
        written || !self.tables.borrow().reads.is_empty()
    }

    async fn copy_unit(
        &self,
        leg: &Leg,
        survivor: &Leg,
        range: Range<Sector>,
    ) -> Result<(), IoError> {
        let _lock = self.lock(range.clone()).await;
        if survivor.state() != LegState::InSync {
            return Err(IoError::not_applied(Kind::Closed));
        }
        self.end_taints(survivor, &range).await?;
        let source = match self.read_absolute(survivor, &range).await {
            Ok(data) => data,
            Err(error) if matches!(error.kind, Kind::Medium { .. }) => {
                return self.copy_granules(leg, survivor, range).await;
            }
            Err(error) => return Err(error),
        };
        let verdicts = self.judge(range.start, &source).await;
        if verdicts.contains(&Verdict::Bad) {
            return self.copy_granules(leg, survivor, range).await;
        }
        self.put(leg, range, source).await
    }

    /// Granule by granule, under the caller's lock: something in the source is bad. Where the
    /// target is good it stays, and heals the source.
    async fn copy_granules(
        &self,
        leg: &Leg,
        survivor: &Leg,
        range: Range<Sector>,
    ) -> Result<(), IoError> {
        for start in (range.start.0..range.end.0).step_by(GRANULE_SECTORS as usize) {
            let part = Sector(start)..Sector((start + GRANULE_SECTORS).min(range.end.0));
            let source = match self.read_absolute(survivor, &part).await {
                Ok(data) => Some(data),
                Err(error) if matches!(error.kind, Kind::Medium { .. }) => None,
                Err(error) => return Err(error),
            };
            let source_is_bad = match &source {
                Some(data) => self.judge(part.start, data).await.contains(&Verdict::Bad),
                None => true,
            };
            if source_is_bad {
                if let Ok(target) = self.read_absolute(leg, &part).await {
                    if self.judge(part.start, &target).await == [Verdict::Good] {
                        self.put_in_sync(survivor, part, target).await?;
                        survivor.count(|c| c.healed_blocks += 1);
                        continue;
                    }
                }
            }
            if let Some(data) = source {
                self.put(leg, part, data).await?;
            }
        }
        Ok(())
    }

    /// Writes to the leg that is being filled. It may have gone out since the copy began.
    async fn put(&self, leg: &Leg, range: Range<Sector>, data: IoVec) -> Result<(), IoError> {
        self.changed
            .until(|| !leg.restoring.get() && self.has_room_for_copy(data.len() as u64))
            .await;
        if leg.state() != LegState::Rebuilding {
            return Err(IoError::not_applied(Kind::Closed));
        }
        self.write_leg(leg.index, range, data, Array::read_ctx())
            .await
            .map(|_| ())
    }

    async fn put_in_sync(
        &self,
        leg: &Leg,
        range: Range<Sector>,
        data: IoVec,
    ) -> Result<(), IoError> {
        self.ready_for(leg, &range, data.len() as u64).await?;
        self.write_leg(leg.index, range, data, Array::read_ctx())
            .await
            .map(|_| ())
    }

    /// A write that was given up may still land where it is read: it is ended first, or what is
    /// equal now would differ later.
    async fn end_taints(&self, leg: &Leg, range: &Range<Sector>) -> Result<(), IoError> {
        let Some(device) = leg.device() else {
            return Err(IoError::not_applied(Kind::Closed));
        };
        let data = leg.places().data.0;
        let on_leg = Sector(data + range.start.0)..Sector(data + range.end.0);
        if device.tainted(on_leg) {
            device.submit(Op::Fence, IoCtx::metadata()).await?;
        }
        Ok(())
    }

    async fn read_absolute(&self, leg: &Leg, range: &Range<Sector>) -> Result<IoVec, IoError> {
        loop {
            // What its cache lost is not there again yet.
            self.changed
                .until(|| !leg.is_required() || !leg.restoring.get())
                .await;
            let Some(device) = leg.device() else {
                return Err(IoError::not_applied(Kind::Closed));
            };
            let losses = leg.losses.get();
            let op = Op::Read {
                at: Sector(leg.places().data.0 + range.start.0),
                sectors: (range.end.0 - range.start.0) as u32,
            };
            let read = device.submit(op, Array::read_ctx()).await;
            self.drain_events(leg.index);
            if let Err(IoError {
                kind: Kind::Again { after },
                ..
            }) = read
            {
                self.rt.sleep(after).await;
                continue;
            }
            if leg.losses.get() == losses || !leg.is_required() {
                return read.map(Done::into_data);
            }
        }
    }

    /// What the store says of these bytes; nothing without a map or off its granules.
    async fn judge(&self, at: Sector, data: &IoVec) -> Vec<Verdict> {
        let aligned = at.0 % GRANULE_SECTORS == 0 && data.len() % GRANULE_BYTES == 0;
        match self.map() {
            Some(map) if aligned => map.judge(at, data.clone()).await,
            _ => Vec::new(),
        }
    }

    /// The leg has everything: from now on its answers count, and both superblocks say so.
    pub(super) async fn join_in(&self, leg: &Leg, survivor: &Leg) -> Result<(), IoError> {
        // From here on it is judged like a leg in sync.
        self.changed
            .until(|| leg.state() != LegState::Rebuilding || !self.is_behind(leg))
            .await;
        leg.set_state(LegState::Joining);
        self.stir();
        self.changed
            .until(|| leg.state() != LegState::Joining || !self.owes(leg, true))
            .await;
        self.flush_round().await?;
        // Page writes that nobody waited for may have overtaken each other there.
        self.write_pages(true).await;
        let turn = self.meta_turn.take().await;
        if leg.state() != LegState::Joining || survivor.state() != LegState::InSync {
            return Err(IoError::not_applied(Kind::Closed));
        }
        leg.set_state(LegState::InSync);
        leg.rebuilt_to.set(None);
        leg.rebuilt_durably.set(None);
        self.refresh_geometry();
        self.tell_roles();
        let events = self.next_events();
        self.events.set(events);
        self.write_pages(false).await;
        self.write_bitmap_events(events).await;
        self.write_superblock(survivor).await?;
        self.write_superblock(leg).await?;
        let holds = || leg.state() == LegState::InSync && self.events_sent.get() == events;
        let out = self.recorded_out.get() & !leg.bit();
        while holds() {
            if self.tell_witness(events, out, false).await && holds() {
                self.recorded_out.set(out);
                break;
            }
        }
        drop(turn);
        self.stir();
        Ok(())
    }

    fn begin_progress(&self, kind: &'static str, leg: &Leg, sectors: u64) {
        self.report_leg(
            "sync_started",
            leg,
            format!("{kind} of {} bytes", sectors * 512),
            false,
        );
        *self.sync.borrow_mut().of(leg.index) = Some(SyncSnapshot {
            kind,
            leg: leg.name(),
            done_bytes: 0,
            total_bytes: sectors * SECTOR_BYTES,
            copied_bytes: 0,
            since: self.rt.now(),
        });
    }

    fn advance(&self, leg: &Leg, sectors: u64) {
        if let Some(now) = self.sync.borrow_mut().of(leg.index) {
            now.done_bytes += sectors * SECTOR_BYTES;
        }
    }

    fn count_copied(&self, leg: &Leg, bytes: u64) {
        let mut sync = self.sync.borrow_mut();
        let Some(now) = sync.of(leg.index) else {
            return;
        };
        now.copied_bytes += bytes;
        let name = now.leg.clone();
        *sync.copied.entry(name).or_default() += bytes;
    }

    fn end_progress(&self, leg: &Leg) -> u64 {
        self.changed.notify();
        let ended = self.sync.borrow_mut().of(leg.index).take();
        ended.map_or(0, |now| now.copied_bytes)
    }
}
