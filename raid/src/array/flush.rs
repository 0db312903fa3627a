//! Flushes and fences of the whole array.
//!
//! One round of flushes runs at a time; whoever asks meanwhile shares the next one. A round ends
//! when every required leg has flushed or has been recorded out. A flush during which the leg
//! lost its cache does not count.

use super::clock::LOOK_AGAIN;
use super::{Array, Leg, LegState, Why};
use crate::notify::{both, unless};
use blockdev::{
    completion, Completion, Done, IoCtx, IoError, IoResult, Kind, Op, Promise, Refusal,
};
use std::time::Duration;

#[derive(Default)]
pub(super) struct Flushes {
    waiting: Vec<Promise>,
    running: bool,
    for_room: bool,
}

impl Array {
    /// Covers exactly the writes answered before.
    pub(super) fn flush(&self) -> Completion {
        let (promise, completion) = completion::pair();
        let starts = {
            let mut flushes = self.flushes.borrow_mut();
            flushes.waiting.push(promise);
            !std::mem::replace(&mut flushes.running, true)
        };
        if starts {
            let me = self.me.clone();
            self.rt.spawn(async move {
                if let Some(array) = me.upgrade() {
                    array.flush_rounds().await;
                }
            });
        }
        completion
    }

    pub(super) async fn flush_round(&self) -> Result<(), IoError> {
        self.flush().await.map(|_| ())
    }

    async fn flush_rounds(&self) {
        loop {
            let sharing = {
                let mut flushes = self.flushes.borrow_mut();
                if flushes.waiting.is_empty() {
                    flushes.running = false;
                    return;
                }
                std::mem::take(&mut flushes.waiting)
            };
            let legs = both(self.flush_leg(&self.legs[0]), self.flush_leg(&self.legs[1])).await;
            let result = combine(legs.0, legs.1, Done::Flushed);
            for promise in sharing {
                promise.complete(result.clone());
            }
        }
    }

    /// Makes room in the windows.
    pub(super) fn flush_for_room(&self) {
        if std::mem::replace(&mut self.flushes.borrow_mut().for_room, true) {
            return;
        }
        let me = self.me.clone();
        self.rt.spawn(async move {
            let Some(array) = me.upgrade() else { return };
            let failed = array.flush_round().await.err();
            for leg in array
                .legs
                .iter()
                .filter(|leg| leg.state() == LegState::Rebuilding)
            {
                array.flush_rebuilding(leg).await;
            }
            array.flushes.borrow_mut().for_room = false;
            match failed {
                // Without a flush the window never gets room.
                Some(error) => array.fail_held(&error),
                None => array.stir(),
            }
        });
    }

    /// Flushes a leg whose answers do not count yet.
    pub(super) async fn flush_rebuilding(&self, leg: &Leg) {
        let (tenure, losses) = (leg.tenure.get(), leg.losses.get());
        let copied = leg.rebuilt_to.get();
        if let Some(device) = leg.device().filter(|_| leg.has_cache()) {
            let mark = leg.window.borrow_mut().begin_flush();
            let answer = device.submit(Op::Flush, IoCtx::metadata()).await;
            self.drain_events(leg.index);
            match answer {
                _ if leg.losses.get() != losses => return, // it covered nothing: the leg has left
                Ok(_) => leg.window.borrow_mut().flushed(mark),
                // Whoever needs the room asks again.
                Err(IoError {
                    kind: Kind::Again { after },
                    ..
                }) => {
                    self.rt.sleep(after).await;
                    return;
                }
                Err(error) => {
                    self.fail_leg(leg, Why::Failed, &format!("flush: {error}"));
                    return;
                }
            }
        }
        let is_same = leg.tenure.get() == tenure && leg.state() == LegState::Rebuilding;
        if is_same && leg.rebuilt_to.get() >= copied {
            leg.rebuilt_durably.set(copied);
        }
    }

    /// `None` when the leg is not required, or no more.
    async fn flush_leg(&self, leg: &Leg) -> Option<Result<(), IoError>> {
        loop {
            self.changed
                .until(|| !leg.is_required() || !leg.restoring.get())
                .await;
            let device = leg.device().filter(|_| leg.is_required())?;
            if !leg.has_cache() {
                return Some(Ok(()));
            }
            let (losses, turn) = (leg.losses.get(), leg.alone_turn.get());
            let mark = leg.window.borrow_mut().begin_flush();
            let answer = device.submit(Op::Flush, IoCtx::metadata());
            let answer = self
                .patiently(leg, answer, self.options.flush_patience)
                .await;
            self.drain_events(leg.index);
            match answer? {
                Ok(_) if leg.losses.get() != losses => {}
                Ok(_) => {
                    leg.window.borrow_mut().flushed(mark);
                    return Some(Ok(()));
                }
                // After a cache loss, say: what it lost is written again first.
                Err(IoError {
                    kind: Kind::Again { after },
                    ..
                }) => {
                    self.rt.sleep(after).await;
                }
                Err(error) => {
                    let unable = error.kind == Kind::Refused(Refusal::NotSupported);
                    if !unable {
                        self.fail_leg(leg, why_of(&error), &format!("flush: {error}"));
                    }
                    if !self.may_ask_again(leg, turn, &error).await {
                        return leg.is_required().then_some(Err(error));
                    }
                }
            }
        }
    }

    /// The answer, or `None` when the leg is out before it came. Beyond `patience` the leg is
    /// late, unless the other one owes an answer of this kind as well: both late is a wait.
    pub(super) async fn patiently(
        &self,
        leg: &Leg,
        answer: Completion,
        patience: Duration,
    ) -> Option<IoResult> {
        let mut answer = Box::pin(answer);
        let mut since = self.rt.now();
        let _waits = Waits::begin(leg);
        loop {
            let limit = self.patience_ends(since, patience);
            let shorter = || self.patience_ends(since, patience) < limit;
            let gone = self.changed.until(|| !leg.is_required() || shorter());
            match unless(self.rt.by(limit, answer.as_mut()), gone).await {
                Some(Ok(result)) => return Some(result),
                Some(Err(late)) if late.is_own_stall() => since = since + late.0,
                Some(Err(_)) => break,
                None if leg.is_required() => {} // the array has begun to stop
                None => return None,
            }
        }
        loop {
            self.blame_for_silence(leg);
            let again = self.rt.now() + LOOK_AGAIN;
            let gone = self.changed.until(|| !leg.is_required());
            if let Ok(result) = unless(self.rt.by(again, answer.as_mut()), gone).await? {
                return Some(result);
            }
        }
    }

    fn blame_for_silence(&self, leg: &Leg) {
        let peer = self.peer(leg.index);
        let peer_serves = peer.state() == LegState::InSync && peer.waits.get() == 0;
        if peer_serves || leg.state() == LegState::Joining {
            self.fail_leg(leg, Why::Late, "no answer in time");
        }
    }

    /// See [`Op::Fence`]. A leg that cannot be fenced is out if the other may serve.
    pub(super) fn fence(&self) -> Completion {
        let (promise, completion) = completion::pair();
        let me = self.me.clone();
        self.rt.spawn(async move {
            let Some(array) = me.upgrade() else { return };
            let legs = both(
                array.fence_leg(&array.legs[0]),
                array.fence_leg(&array.legs[1]),
            )
            .await;
            promise.complete(combine(legs.0, legs.1, Done::Fenced));
        });
        completion
    }

    async fn fence_leg(&self, leg: &Leg) -> Option<Result<(), IoError>> {
        loop {
            let device = leg.device().filter(|_| leg.is_required())?;
            let turn = leg.alone_turn.get();
            let answer = device.submit(Op::Fence, IoCtx::metadata());
            let patience = self.options.fence_patience;
            match self.patiently(leg, answer, patience).await? {
                Ok(_) => return Some(Ok(())),
                Err(IoError {
                    kind: Kind::Again { after },
                    ..
                }) => {
                    self.rt.sleep(after).await;
                }
                Err(error) => {
                    self.fail_leg(leg, why_of(&error), &format!("no fence: {error}"));
                    if !self.may_ask_again(leg, turn, &error).await {
                        return leg.is_required().then_some(Err(error));
                    }
                }
            }
        }
    }
}

/// A flush or a fence that fails is no reason to give a leg up for good, whatever it says.
pub(super) fn why_of(error: &IoError) -> Why {
    match error.kind {
        Kind::Path(_) => Why::Unreachable,
        _ => Why::Failed,
    }
}

/// A flush or a fence that a leg owes.
struct Waits<'a>(&'a Leg);

impl<'a> Waits<'a> {
    fn begin(leg: &'a Leg) -> Waits<'a> {
        leg.waits.set(leg.waits.get() + 1);
        Waits(leg)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waits.set(self.0.waits.get() - 1);
    }
}

fn combine(a: Option<Result<(), IoError>>, b: Option<Result<(), IoError>>, done: Done) -> IoResult {
    match (a, b) {
        (Some(Err(error)), _) | (_, Some(Err(error))) => Err(error),
        (None, None) => Err(IoError::unknown(Kind::Closed)),
        _ => Ok(done),
    }
}
