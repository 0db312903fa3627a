//! Regions that are kept still: for a copy, and for rewriting what one leg has lost.

use super::overlap;
use crate::array::{sectors_of, Array, Leg, LegState};
use blockdev::{
    completion, Completion, Done, IoCtx, IoError, IoResult, IoVec, Kind, LegIndex, Refusal, Sector,
    Seq,
};
use std::ops::Range;

impl Array {
    /// Keeps foreground writes out of `range` until the guard is dropped; those under way end
    /// first.
    pub(in crate::array) async fn lock(&self, range: Range<Sector>) -> RegionLock<'_> {
        let free = || {
            !self
                .tables
                .borrow()
                .locks
                .iter()
                .any(|lock| overlap(lock, &range))
        };
        self.changed.until(free).await;
        self.tables.borrow_mut().locks.push(range.clone());
        let lock = RegionLock {
            array: self,
            range: range.clone(),
        };
        self.changed.until(|| !self.writing_in(&range)).await;
        lock
    }

    /// See [`blockdev::Mirror::rewrite`].
    pub(in crate::array) fn rewrite_leg(
        &self,
        leg: LegIndex,
        at: Sector,
        good: IoVec,
        since: Seq,
        ctx: IoCtx,
    ) -> Completion {
        let sectors = sectors_of(&good);
        if !self.geometry.get().accepts(at, sectors) {
            return Completion::refused(Kind::Refused(Refusal::Range));
        }
        let (promise, completion) = completion::pair();
        let me = self.me.clone();
        self.rt.spawn(async move {
            let Some(array) = me.upgrade() else { return };
            let result = array.heal(leg, at.span(sectors), good, since, ctx).await;
            promise.complete(result);
        });
        completion
    }

    /// Waits until a write to `range` of a leg in sync may be sent at once: a bit that was set may
    /// be cleared again while the window has no room.
    pub(in crate::array) async fn ready_for(
        &self,
        leg: &Leg,
        range: &Range<Sector>,
        bytes: u64,
    ) -> Result<(), IoError> {
        loop {
            self.set_bits(range.clone()).await?;
            self.changed
                .until(|| !leg.restoring.get() && self.has_room(bytes))
                .await;
            if leg.state() != LegState::InSync {
                return Err(IoError::not_applied(Kind::Closed));
            }
            if self.has_bits(range) {
                return Ok(());
            }
        }
    }

    async fn heal(
        &self,
        leg: LegIndex,
        range: Range<Sector>,
        good: IoVec,
        since: Seq,
        ctx: IoCtx,
    ) -> IoResult {
        let _lock = self.lock(range.clone()).await;
        if self.writes_seen.written_since(&range, since) {
            return Ok(Done::Written);
        }
        self.ready_for(self.leg(leg), &range, good.len() as u64)
            .await?;
        let blocks = (good.len() as u64).div_ceil(4096);
        let result = self.write_leg(leg, range, good, ctx).await;
        if result.is_ok() {
            self.leg(leg).count(|c| c.healed_blocks += blocks);
        }
        result
    }
}

/// See [`Array::lock`].
pub(in crate::array) struct RegionLock<'a> {
    array: &'a Array,
    range: Range<Sector>,
}

impl Drop for RegionLock<'_> {
    fn drop(&mut self) {
        let mut tables = self.array.tables.borrow_mut();
        if let Some(at) = tables.locks.iter().position(|lock| *lock == self.range) {
            tables.locks.swap_remove(at);
        }
        drop(tables);
        self.array.pump();
        self.array.changed.notify();
    }
}
