//! The one timer of the data path: it looks at the oldest request of each leg.
//!
//! It is armed for the earliest moment at which a request could be too old, and finds nothing to
//! do nearly always, for requests end long before. If it fires late, our own event loop stood
//! still, and every request is excused for that time.

use super::{Array, Leg, LegState, Why};
use blockdev::rt::Timed;
use blockdev::{Instant, Lateness};
use std::rc::Weak;
use std::time::Duration;

/// How soon to look again at a leg that is silent or being restored while nothing can be
/// decided about it.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Array {
    /// Sees to it that the timer fires at `at` or before.
    pub(super) fn arm_tick(&self, at: Instant) {
        if at >= self.tick_at.get() {
            return;
        }
        self.tick_at.set(at);
        let me: Weak<dyn Timed> = self.me.clone();
        self.rt.arm(at, me, at.0);
    }

    fn look(&self) {
        let now = self.rt.now();
        let mut next = Instant::FAR;
        for leg in &self.legs {
            let Some(since) = self.oldest_pending(leg) else {
                continue;
            };
            let due = since + self.patience_with(leg);
            if due > now {
                next = next.min(due);
            } else {
                self.judge_late(leg, since);
                next = next.min(now + LOOK_AGAIN);
            }
        }
        self.reconsider();
        next = next.min(self.hedge_reads(now));
        if next != Instant::FAR {
            self.arm_tick(next);
        }
    }

    /// How long a write may be unanswered. No acknowledgement waits for a leg that is being rebuilt
    /// (unless to write over what it owes), and throwing it out begins the rebuild anew.
    fn patience_with(&self, leg: &Leg) -> Duration {
        match leg.state() {
            LegState::Rebuilding if !self.is_awaited(leg) => self.options.rebuild_patience,
            _ => self.options.late_after,
        }
    }

    /// Whether `leg` owes a write for so long that it would soon be late.
    pub(super) fn is_behind(&self, leg: &Leg) -> bool {
        let limit = self.options.late_after / 2;
        self.oldest_pending(leg)
            .is_some_and(|since| self.rt.now().since(since) > limit)
    }

    /// A write that `leg` owes since `since` is too old.
    fn judge_late(&self, leg: &Leg, since: Instant) {
        let text = "a write was not answered in time";
        match leg.state() {
            LegState::Rebuilding | LegState::Joining => self.fail_leg(leg, Why::Late, text),
            LegState::InSync => {
                let peer = self.peer(leg.index);
                let older = self.oldest_pending(peer).is_some_and(|at| at <= since);
                if peer.state() == LegState::InSync && !older {
                    self.fail_leg(leg, Why::Late, text);
                }
            }
            _ => {}
        }
    }
}

impl Timed for Array {
    fn fire(&self, token: u64, due: Instant) {
        if self.tick_at.get().0 != token {
            return; // an earlier one was armed since, and has looked
        }
        self.tick_at.set(Instant::FAR);
        let late = Lateness(self.rt.now().since(due));
        if late.is_own_stall() {
            self.excuse_writes(late.0);
            self.excuse_reads(late.0);
        }
        self.look();
    }
}
