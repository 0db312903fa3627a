//! When a write is answered upward, and how.

use super::{Outcome, Rule, WriteOp};
use crate::array::{Array, Leg, LegState, Why};
use blockdev::{mutation, IoError, IoResult, Kind, LegIndex, PathCause};

impl Array {
    /// Acknowledges a write if it is due, and forgets it when no leg owes an answer.
    pub(super) fn settle(&self, id: u64) {
        let (verdict, promise, range, over, lonely) = {
            let mut tables = self.tables.borrow_mut();
            let Some(op) = tables.writes.get_mut(&id) else {
                return;
            };
            let verdict = self.verdict(op);
            let promise = verdict.as_ref().and_then(|_| op.promise.take());
            let over = op.promise.is_none() && !op.is_pending();
            let lonely = verdict
                .is_none()
                .then(|| self.lacks_space_alone(op))
                .flatten();
            let range = op.range.clone();
            if over {
                tables.writes.remove(&id);
            }
            (verdict, promise, range, over, lonely)
        };
        if let Some(leg) = lonely {
            self.fail_leg(
                self.leg(leg),
                Why::Late,
                "out of space while the other leg has some",
            );
        }
        if let Some(range) = &range {
            let mut intent = self.intent.borrow_mut();
            if over {
                intent.end(range);
            }
            if matches!(verdict, Some(Err(_))) {
                // It may be on one leg and not on the other.
                intent.doubt(range);
            }
        }
        if let (Some(result), Some(promise)) = (verdict, promise) {
            promise.complete(result);
        }
        if over {
            self.pump();
            self.changed.notify();
        }
    }

    /// `Some` when the write is to be answered upward.
    fn verdict(&self, op: &WriteOp) -> Option<IoResult> {
        if op.promise.is_none() {
            return Some(Ok(op.body.done()));
        }
        let (mut good, mut waits) = (false, false);
        let (mut error, mut failed, mut space) = (None, 0, 0);
        for leg in &self.legs {
            let counts = op.rule == Rule::Direct || leg.is_required();
            match &op.outcomes[usize::from(leg.index.0)] {
                Outcome::None | Outcome::Dropped => {}
                Outcome::Ok if op.rule == Rule::Mirrored && counts && leg.restoring.get() => {
                    waits = true;
                }
                Outcome::Ok => good |= counts,
                Outcome::Missed => waits |= counts && leg.why.get().is_soft(),
                Outcome::Pending(_) => waits |= counts,
                Outcome::Failed(e, _) if counts => {
                    failed += 1;
                    space += u32::from(e.kind == Kind::NoSpace);
                    error = Some(e.clone());
                }
                Outcome::Failed(e, _) => error = error.or(Some(e.clone())),
            }
        }
        let mirrored = op.rule == Rule::Mirrored;
        if mirrored && good && mutation::off("raid.ack-all-legs") {
            return Some(Ok(op.body.done()));
        }
        if waits {
            return None;
        }
        let hard = self.legs.iter().any(|leg| {
            mirrored
                && leg.state() == LegState::Leaving
                && (!matches!(op.outcomes[usize::from(leg.index.0)], Outcome::Ok)
                    || leg.why.get() == Why::CacheLost)
        });
        // Nobody is there to have the record, so the leg without this write may yet stay.
        let undecided = mirrored
            && self.legs.iter().any(|leg| {
                leg.state() == LegState::Leaving
                    && !leg.why.get().is_soft()
                    && !matches!(op.outcomes[usize::from(leg.index.0)], Outcome::Ok)
                    && self.peer(leg.index).has_given_up.get()
            });
        let fatal = mirrored
            && self.legs.iter().any(|leg| {
                let outcome = &op.outcomes[usize::from(leg.index.0)];
                let failed = matches!(outcome, Outcome::Failed(..));
                let peer = self.peer(leg.index);
                let may_yet_stay = peer.state() == LegState::Leaving && peer.why.get().is_soft();
                let alone = !may_yet_stay && self.is_last(leg);
                failed && leg.state() == LegState::InSync && alone
            });
        match (good && !fatal && !undecided, failed) {
            // A required leg failed and the other has it: not before the record.
            (true, 0) if !hard => Some(Ok(op.body.done())),
            (true, _) => None,
            (false, n) if n > 0 && space == n && mirrored => {
                Some(Err(error.unwrap_or_else(|| IoError::unknown(Kind::NoSpace))))
            }
            (false, _) if undecided => {
                let all_down = Kind::Path(PathCause::AllDown);
                Some(Err(error.unwrap_or_else(|| IoError::unknown(all_down))))
            }
            (false, _) => Some(Err(error.unwrap_or_else(|| IoError::unknown(Kind::Closed)))),
        }
    }

    /// The leg that alone is out of space, once every other has answered.
    fn lacks_space_alone(&self, op: &WriteOp) -> Option<LegIndex> {
        let space = |leg: &&Leg| {
            let outcome = &op.outcomes[usize::from(leg.index.0)];
            matches!(outcome, Outcome::Failed(e, _) if e.kind == Kind::NoSpace)
        };
        let others_ok = |leg: &Leg| {
            let other = self.peer(leg.index);
            matches!(op.outcomes[usize::from(other.index.0)], Outcome::Ok) && other.is_required()
        };
        self.legs
            .iter()
            .find(|leg| space(leg) && others_ok(leg))
            .map(|leg| leg.index)
    }

    /// Looks again at every write: a leg's state changed.
    pub(in crate::array) fn settle_all(&self) {
        let ids: Vec<u64> = self.tables.borrow().writes.keys().copied().collect();
        ids.into_iter().for_each(|id| self.settle(id));
    }
}
