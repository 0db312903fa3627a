//! What a leg is asked once more: requests that failed before its paths were told to queue, and
//! what it was too busy for.
//!
//! The device of a leg fails at once when all paths are down, for the other leg serves. When that
//! one is gone too, the last leg's device is told so and queues. What it answered before it knew
//! is no verdict: the same is sent again, and only the next failure is the array's. The operation
//! stays in the tables meanwhile, so nothing overtakes it.
//!
//! Until the last leg has the record that the other is out, either may turn out to be the one
//! that comes back first: the one that leaves is looked for, and called back if it answers while
//! the other does not. Nothing was acknowledged without it so far.

use super::{Array, Leg, LegState, Why};
use blockdev::{IoCtx, IoError, Kind, Op};
use std::time::Duration;

/// How often a leg that leaves is looked for while the other is silent too.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Why {
    /// What an error of a leg's device says of the leg.
    pub(super) fn of(kind: &Kind) -> Why {
        match kind {
            Kind::Medium { .. } | Kind::Refused(_) => Why::Broken,
            Kind::Late => Why::Late,
            Kind::Path(_) => Why::Unreachable,
            _ => Why::Failed,
        }
    }
}

impl Array {
    /// Whether `error`, the answer to what was sent in `turn` of the leg, is no verdict yet: the
    /// leg has been told since that it is the only one.
    pub(super) fn asks_again(&self, leg: &Leg, turn: u64, error: &IoError) -> bool {
        leg.state() == LegState::InSync
            && leg.is_alone.get()
            && leg.alone_turn.get() != turn
            && matches!(error.kind, Kind::Path(_))
    }

    /// The same for a task, after its failure was told to [`Array::fail_leg`]: first it is decided
    /// whether the leg stays, unless neither is there.
    pub(super) async fn may_ask_again(&self, leg: &Leg, turn: u64, error: &IoError) -> bool {
        let survivor = self.peer(leg.index);
        self.changed
            .until(|| leg.state() != LegState::Leaving || survivor.has_given_up.get())
            .await;
        self.asks_again(leg, turn, error)
    }

    /// Notes whether the leg queues no more, by the answer to what was sent in this turn of it.
    pub(super) fn note_answer(&self, leg: &Leg, turn: u64, error: Option<&Kind>) {
        let is_current = leg.is_alone.get() && leg.alone_turn.get() == turn;
        let given_up = is_current && matches!(error, Some(Kind::Path(_)));
        if leg.has_given_up.replace(given_up) != given_up {
            self.stir();
        }
    }

    /// Looks for a leg that leaves because its paths are down.
    pub(super) fn spawn_call_back(&self, leg: &Leg, serial: u64) {
        let (me, rt, index) = (self.me.clone(), self.rt.clone(), leg.index);
        self.rt.spawn(async move {
            loop {
                rt.sleep(LOOK_AGAIN).await;
                let Some(array) = me.upgrade() else { return };
                let leg = array.leg(index);
                if !array.may_call_back(leg, serial) {
                    return;
                }
                if array.is_silent(array.peer(index)) && array.answers(leg).await {
                    let survivor = array.peer(index);
                    if array.may_call_back(leg, serial) && array.is_silent(survivor) {
                        let text = "unreachable before it was on record as the survivor";
                        array.reverse(survivor, Why::Unreachable, text);
                        return;
                    }
                }
            }
        });
    }

    fn may_call_back(&self, leg: &Leg, serial: u64) -> bool {
        self.change_serial.get() == serial
            && leg.state() == LegState::Leaving
            && leg.why.get() == Why::Unreachable
            && self.peer(leg.index).state() == LegState::InSync
    }

    /// Whether a leg queues no more, or owes an answer for too long.
    fn is_silent(&self, leg: &Leg) -> bool {
        let limit = self.options.late_after;
        let owed = self.oldest_pending(leg);
        leg.has_given_up.get() || owed.is_some_and(|at| self.rt.now().since(at) >= limit)
    }

    /// Whether the leg serves again, and holds what it held. What it was sent before has ended
    /// then, so nothing lands after what is sent again.
    async fn answers(&self, leg: &Leg) -> bool {
        let Some(device) = leg.device() else {
            return false;
        };
        if device.submit(Op::Fence, IoCtx::metadata()).await.is_err() {
            return false;
        }
        let found = crate::probe::read_superblock(&*device).await;
        self.drain_events(leg.index);
        found.is_ok_and(|found| leg.may_hold(&found))
    }
}
