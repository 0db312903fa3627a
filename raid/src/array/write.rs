//! Writes: held until they may go, sent to every leg that takes them with the same frozen pages,
//! acknowledged when every required leg has answered or has been recorded out.

mod recent;
mod region;
mod verdict;

pub(super) use recent::Recent;

use super::{token, Array, Leg, LegState, Why};
use crate::window::Content;
use blockdev::{
    completion, mutation, Completion, Done, Durability, Instant, IoCtx, IoError, IoResult, IoVec,
    Kind, LegIndex, Op, Promise, Refusal, Sector,
};
use std::ops::Range;
use std::time::Duration;

/// What is written.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Data(IoVec, Durability),
    Zeroes,
    Discard,
}

impl Body {
    /// Payload bytes that a window will keep.
    fn window_bytes(&self) -> u64 {
        match self {
            Body::Data(data, Durability::Cache) => data.len() as u64,
            _ => 0,
        }
    }

    fn op(&self, at: Sector, sectors: u64) -> Op {
        match self {
            Body::Data(data, want) => Op::Write {
                at,
                data: data.clone(),
                want: *want,
            },
            Body::Zeroes => Op::WriteZeroes { at, sectors },
            Body::Discard => Op::Discard { at, sectors },
        }
    }

    fn done(&self) -> Done {
        match self {
            Body::Data(..) => Done::Written,
            Body::Zeroes | Body::Discard => Done::Discarded,
        }
    }
}

/// A write that may not go yet.
pub(super) struct HeldWrite {
    at: Sector,
    sectors: u64,
    body: Body,
    ctx: IoCtx,
    promise: Promise,
}

impl HeldWrite {
    fn range(&self) -> Range<Sector> {
        self.at.span(self.sectors)
    }

    pub(super) fn fail(self, error: IoError) {
        self.promise.complete(Err(error));
    }
}

/// What has become of a write on one leg.
#[derive(Clone, Debug)]
enum Outcome {
    /// Not addressed to it.
    None,
    /// Not sent because it is leaving; sent if the decision is reversed.
    Missed,
    Pending(Sent),
    Ok,
    /// Sent in this turn of the leg ([`Leg::alone_turn`]).
    Failed(IoError, u64),
    /// The leg went out before it answered.
    Dropped,
}

/// When a write was sent, and in which turn of the leg.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    turn: u64,
}

/// Who must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Every required leg (P1).
    Mirrored,
    /// The legs it was addressed to, whatever they are.
    Direct,
}

/// A write that was sent.
pub(super) struct WriteOp {
    /// Range of the array; `None` for metadata.
    range: Option<Range<Sector>>,
    /// Absolute place on each leg.
    places: [Sector; 3],
    sectors: u64,
    body: Body,
    ctx: IoCtx,
    rule: Rule,
    /// Of a rebuild: the leg's content does not count yet.
    is_copy: bool,
    outcomes: [Outcome; 3],
    promise: Option<Promise>,
}

impl WriteOp {
    fn is_pending(&self) -> bool {
        self.outcomes
            .iter()
            .any(|o| matches!(o, Outcome::Pending(_)))
    }

    pub(super) fn is_acknowledged(&self) -> bool {
        self.promise.is_none()
    }

    fn is_owed_by(&self, leg: LegIndex) -> bool {
        matches!(self.outcomes[usize::from(leg.0)], Outcome::Pending(_))
    }

    fn outcome(&mut self, leg: LegIndex) -> &mut Outcome {
        &mut self.outcomes[usize::from(leg.0)]
    }

    /// What is sent to a leg: the operation, its bytes in the window, and for whom.
    fn parts(&self, leg: LegIndex) -> (Op, u64, IoCtx) {
        let at = self.places[usize::from(leg.0)];
        let op = self.body.op(at, self.sectors);
        (op, self.body.window_bytes(), self.ctx)
    }

    fn overlaps(&self, range: &Range<Sector>) -> bool {
        self.range.as_ref().is_some_and(|own| overlap(own, range))
    }
}

pub(super) fn overlap(a: &Range<Sector>, b: &Range<Sector>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Array {
    /// A foreground write of `sectors` at `at` of the array.
    pub(super) fn write(&self, at: Sector, sectors: u64, body: Body, ctx: IoCtx) -> Completion {
        if !self.geometry.get().accepts(at, sectors) || sectors == 0 {
            return Completion::refused(Kind::Refused(Refusal::Range));
        }
        let (promise, completion) = completion::pair();
        let write = HeldWrite {
            at,
            sectors,
            body,
            ctx,
            promise,
        };
        self.writes_seen.note(&write.range());
        self.last_write.set(self.rt.now());
        if self.may_go(&write) {
            self.dispatch(write);
        } else {
            self.tables.borrow_mut().held.push_back(write);
            self.arm_tick(self.rt.now() + self.options.late_after);
        }
        completion
    }

    /// Whether a write may be sent now; starts what it waits for.
    fn may_go(&self, write: &HeldWrite) -> bool {
        let range = write.range();
        let locked = self
            .tables
            .borrow()
            .locks
            .iter()
            .any(|lock| overlap(lock, &range));
        let is_active = self.is_active();
        let has_bits = self.has_bits(&range) || mutation::off("raid.bit-before-data");
        let has_room = self.has_room(write.body.window_bytes());
        let restoring = self
            .legs
            .iter()
            .any(|leg| leg.is_required() && leg.restoring.get());
        !locked && is_active && has_bits && has_room && !restoring && !self.is_owed(&range)
    }

    /// Whether a leg being rebuilt still owes a write in `range` that was acknowledged without it:
    /// two overlapping ones under way might land in either order.
    fn is_owed(&self, range: &Range<Sector>) -> bool {
        let is_rebuilding =
            |leg: &Leg| matches!(leg.state(), LegState::Rebuilding | LegState::Joining);
        let owed = |op: &WriteOp| op.is_acknowledged() && op.is_pending() && op.overlaps(range);
        self.legs.iter().any(is_rebuilding) && self.tables.borrow().writes.values().any(owed)
    }

    /// Whether a foreground write waits for what a leg being rebuilt owes.
    pub(super) fn is_awaited(&self, leg: &Leg) -> bool {
        let at = usize::from(leg.index.0);
        let tables = self.tables.borrow();
        let owed = |op: &&WriteOp| matches!(op.outcomes[at], Outcome::Pending(_));
        let waits_for = |op: &WriteOp| tables.held.iter().any(|write| op.overlaps(&write.range()));
        leg.awaited.get() || tables.writes.values().filter(owed).any(waits_for)
    }

    /// Whether every leg's window takes `bytes` more; a flush is begun where not.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.has_room_below(self.options.window_bytes, bytes)
    }

    /// The same for a copy, which leaves most of the window to the foreground; what it flushes at
    /// once stays small, so that a unit that answers nothing during a flush is silent briefly.
    pub(super) fn has_room_for_copy(&self, bytes: u64) -> bool {
        self.has_room_below(self.options.window_bytes / 4, bytes)
    }

    fn has_room_below(&self, limit: u64, bytes: u64) -> bool {
        let full = |leg: &Leg| {
            let used = leg.window.borrow().bytes() + leg.reserved_bytes.get();
            used > 0 && used + bytes > limit && leg.takes_writes() && leg.has_cache()
        };
        if limit == 0 || !self.legs.iter().any(full) {
            return true;
        }
        self.flush_for_room();
        false
    }

    /// Lets every held write go that may.
    pub(super) fn pump(&self) {
        if self.tables.borrow().held.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.tables.borrow_mut().held);
        let mut still = Vec::new();
        for write in waiting {
            match self.closed() {
                Some(kind) if self.failed.borrow().is_some() => {
                    write.fail(IoError::not_applied(kind));
                }
                _ if self.may_go(&write) => self.dispatch(write),
                _ => still.push(write),
            }
        }
        let mut tables = self.tables.borrow_mut();
        for write in still.into_iter().rev() {
            tables.held.push_front(write);
        }
    }

    /// Ends every held write with an error: nothing can let them go.
    pub(super) fn fail_held(&self, error: &IoError) {
        let held = std::mem::take(&mut self.tables.borrow_mut().held);
        held.into_iter().for_each(|write| write.fail(error.clone()));
    }

    fn dispatch(&self, write: HeldWrite) {
        let range = write.range();
        let place = |leg: &Leg| Sector(leg.places().data.0 + range.start.0);
        self.intent.borrow_mut().begin(&range);
        let op = WriteOp {
            places: self.legs.each_ref().map(place),
            range: Some(range),
            sectors: write.sectors,
            body: write.body,
            ctx: write.ctx,
            rule: Rule::Mirrored,
            is_copy: false,
            outcomes: [const { Outcome::None }; 3],
            promise: Some(write.promise),
        };
        let targets = self.mask(Leg::takes_writes);
        self.send(op, targets);
    }

    /// Writes metadata at an absolute place of one leg.
    pub(super) fn write_direct(
        &self,
        leg: LegIndex,
        at: Sector,
        data: IoVec,
        want: Durability,
    ) -> Completion {
        let range = at.span(super::sectors_of(&data));
        self.write_absolute(leg, range, Body::Data(data, want), IoCtx::metadata())
    }

    /// Writes an absolute range of one leg, which is not looked at as part of the array.
    pub(super) fn write_absolute(
        &self,
        leg: LegIndex,
        range: Range<Sector>,
        body: Body,
        ctx: IoCtx,
    ) -> Completion {
        self.write_sized(leg, range, None, body, ctx)
    }

    /// Writes `range` of the array to one leg.
    pub(super) fn write_leg(
        &self,
        leg: LegIndex,
        range: Range<Sector>,
        data: IoVec,
        ctx: IoCtx,
    ) -> Completion {
        let data_at = self.leg(leg).places().data.0;
        let on_leg = Sector(data_at + range.start.0)..Sector(data_at + range.end.0);
        let body = Body::Data(data, Durability::Cache);
        self.write_sized(leg, on_leg, Some(range), body, ctx)
    }

    fn write_sized(
        &self,
        leg: LegIndex,
        on_leg: Range<Sector>,
        range: Option<Range<Sector>>,
        body: Body,
        ctx: IoCtx,
    ) -> Completion {
        let (promise, completion) = completion::pair();
        let is_copy = !self.leg(leg).is_required();
        if let Some(range) = &range {
            let mut intent = self.intent.borrow_mut();
            if is_copy {
                intent.begin_copy(range);
            } else {
                intent.begin(range);
            }
        }
        let op = WriteOp {
            range,
            places: [on_leg.start; 3],
            sectors: on_leg.end.0 - on_leg.start.0,
            body,
            ctx,
            rule: Rule::Direct,
            is_copy,
            outcomes: [const { Outcome::None }; 3],
            promise: Some(promise),
        };
        self.send(op, self.leg(leg).bit());
        completion
    }

    /// Writes the same metadata to every leg that takes writes.
    pub(super) fn write_everywhere(&self, places: [Sector; 3], data: IoVec) -> Completion {
        let (promise, completion) = completion::pair();
        let op = WriteOp {
            range: None,
            places,
            sectors: super::sectors_of(&data),
            body: Body::Data(data, Durability::Fua),
            ctx: IoCtx::metadata(),
            rule: Rule::Mirrored,
            is_copy: false,
            outcomes: [const { Outcome::None }; 3],
            promise: Some(promise),
        };
        self.send(op, self.mask(Leg::takes_writes));
        completion
    }

    fn send(&self, mut op: WriteOp, targets: u8) {
        let now = self.rt.now();
        for leg in &self.legs {
            if targets & leg.bit() != 0 {
                *op.outcome(leg.index) = self.sent_now(leg);
            } else if op.rule == Rule::Mirrored && leg.state() == LegState::Leaving {
                *op.outcome(leg.index) = Outcome::Missed;
            }
        }
        let (body, places, sectors, ctx) = (op.body.clone(), op.places, op.sectors, op.ctx);
        let id = {
            let mut tables = self.tables.borrow_mut();
            tables.next_id += 1;
            let id = tables.next_id;
            tables.writes.insert(id, op);
            id
        };
        for leg in self.legs.iter().filter(|leg| targets & leg.bit() != 0) {
            let at = places[usize::from(leg.index.0)];
            self.submit_to(leg, id, body.op(at, sectors), body.window_bytes(), ctx);
        }
        self.arm_tick(now + self.options.late_after);
        if targets == 0 {
            self.settle(id);
        }
    }

    fn sent_now(&self, leg: &Leg) -> Outcome {
        Outcome::Pending(Sent {
            at: self.rt.now(),
            turn: leg.alone_turn.get(),
        })
    }

    fn submit_to(&self, leg: &Leg, id: u64, op: Op, bytes: u64, ctx: IoCtx) {
        leg.reserved_bytes.set(leg.reserved_bytes.get() + bytes);
        let completion = match leg.device() {
            Some(device) => device.submit(op, ctx),
            None => Completion::refused(Kind::Closed),
        };
        completion.join(self.weak_joiner(), token(id, leg.index, 0));
    }

    pub(super) fn write_answered(&self, id: u64, index: LegIndex, result: IoResult) {
        let leg = self.leg(index);
        let (failed, turn) = {
            let mut tables = self.tables.borrow_mut();
            let Some(op) = tables.writes.get_mut(&id) else {
                return;
            };
            let Outcome::Pending(sent) = *op.outcome(index) else {
                return; // the leg went out meanwhile: its answer says nothing any more
            };
            let bytes = op.body.window_bytes();
            leg.reserved_bytes
                .set(leg.reserved_bytes.get().saturating_sub(bytes));
            let failed = match result {
                Ok(_) => {
                    *op.outcome(index) = Outcome::Ok;
                    let op = &*op;
                    leg.count(|c| c.write_bytes += op.sectors * blockdev::SECTOR_BYTES);
                    self.keep(leg, op);
                    None
                }
                Err(error) => {
                    let kind = error.kind.clone();
                    if !matches!(kind, Kind::Again { .. }) {
                        *op.outcome(index) = Outcome::Failed(error, sent.turn);
                    }
                    Some(kind)
                }
            };
            (failed, sent.turn)
        };
        self.note_answer(leg, turn, failed.as_ref());
        match failed {
            None => {}
            Some(Kind::Again { after }) => return self.write_later(id, index, after),
            // Both legs full is no reason to lose one. A leg that is rebuilt must not miss it.
            Some(Kind::NoSpace) if leg.is_required() => {}
            Some(kind) => {
                self.fail_leg(leg, Why::of(&kind), &kind.to_string());
                self.write_again(id, leg);
            }
        }
        self.settle(id);
        if leg.restoring.get() || leg.state() != LegState::InSync {
            // Somebody may wait for this very answer, though the write itself is not over.
            self.changed.notify();
        }
    }

    /// Sends a write once more that the leg failed before it was told to be the only one.
    fn write_again(&self, id: u64, leg: &Leg) {
        let is_due = match self.tables.borrow_mut().writes.get_mut(&id) {
            Some(op) => match op.outcome(leg.index) {
                Outcome::Failed(error, turn) => self.asks_again(leg, *turn, error),
                _ => false,
            },
            None => false,
        };
        if is_due {
            self.send_again(leg, vec![id]);
        }
    }

    /// The leg was too busy for a write: it gets it again, and owes it since the first time.
    fn write_later(&self, id: u64, index: LegIndex, after: Duration) {
        let (me, rt) = (self.me.clone(), self.rt.clone());
        self.rt.spawn(async move {
            rt.sleep(after).await;
            let Some(array) = me.upgrade() else { return };
            let leg = array.leg(index);
            let parts = match array.tables.borrow_mut().writes.get_mut(&id) {
                Some(op) if op.is_owed_by(index) => op.parts(index),
                _ => return, // the leg went out meanwhile
            };
            array.submit_to(leg, id, parts.0, parts.1, parts.2);
        });
    }

    /// Sends these writes to the leg, which may have failed them.
    fn send_again(&self, leg: &Leg, ids: Vec<u64>) {
        for id in ids {
            let parts = match self.tables.borrow_mut().writes.get_mut(&id) {
                Some(op) => {
                    *op.outcome(leg.index) = self.sent_now(leg);
                    op.parts(leg.index)
                }
                None => continue,
            };
            self.submit_to(leg, id, parts.0, parts.1, parts.2);
        }
        self.arm_tick(self.rt.now() + self.options.late_after);
    }

    /// Puts an answered write into the leg's window (R11).
    fn keep(&self, leg: &Leg, op: &WriteOp) {
        if self.options.window_bytes == 0 || !leg.has_cache() {
            return;
        }
        let at = op.places[usize::from(leg.index.0)];
        let range = at.span(op.sectors);
        let mut window = leg.window.borrow_mut();
        match &op.body {
            Body::Data(data, Durability::Cache) => {
                window.insert(range, Content::Data(data.clone()))
            }
            Body::Zeroes => window.insert(range, Content::Zeros),
            Body::Data(_, Durability::Fua) | Body::Discard => window.remove(range),
        }
    }

    /// The leg is out: what it owes is owed no more.
    pub(super) fn drop_pending(&self, leg: &Leg) {
        for op in self.tables.borrow_mut().writes.values_mut() {
            let outcome = op.outcome(leg.index);
            if matches!(outcome, Outcome::Pending(_) | Outcome::Missed) {
                *outcome = Outcome::Dropped;
            }
        }
        leg.reserved_bytes.set(0);
    }

    /// The decision to leave was reversed: the leg gets what it missed, and what its paths failed.
    pub(super) fn send_missed(&self, leg: &Leg) {
        let lacks = |op: &WriteOp| match &op.outcomes[usize::from(leg.index.0)] {
            Outcome::Missed => true,
            Outcome::Failed(error, turn) => self.asks_again(leg, *turn, error),
            _ => false,
        };
        let missed = {
            let tables = self.tables.borrow();
            let lacking = tables.writes.iter().filter(|(_, op)| lacks(op));
            lacking.map(|(&id, _)| id).collect()
        };
        self.send_again(leg, missed);
    }

    /// When the oldest write that `leg` owes was sent.
    pub(super) fn oldest_pending(&self, leg: &Leg) -> Option<Instant> {
        let tables = self.tables.borrow();
        tables
            .writes
            .values()
            .filter_map(|op| match op.outcomes[usize::from(leg.index.0)] {
                Outcome::Pending(sent) => Some(sent.at),
                _ => None,
            })
            .min()
    }

    /// Our own event loop stood still for `by`: nobody is blamed for it.
    pub(super) fn excuse_writes(&self, by: Duration) {
        for op in self.tables.borrow_mut().writes.values_mut() {
            for outcome in &mut op.outcomes {
                if let Outcome::Pending(sent) = outcome {
                    sent.at = sent.at + by;
                }
            }
        }
    }

    /// Whether a write of the array is under way in `range`, on any leg.
    pub(super) fn writing_in(&self, range: &Range<Sector>) -> bool {
        self.tables
            .borrow()
            .writes
            .values()
            .any(|op| op.overlaps(range))
    }

    /// Whether `leg` owes answers: to anything, or only to what was acknowledged without it.
    pub(super) fn owes(&self, leg: &Leg, acknowledged_only: bool) -> bool {
        let at = usize::from(leg.index.0);
        self.tables.borrow().writes.values().any(|op| {
            matches!(op.outcomes[at], Outcome::Pending(_))
                && (!acknowledged_only || op.is_acknowledged())
        })
    }

    /// Whether anything at all is written or waits to be, copies to a leg that is rebuilt apart:
    /// they change nothing that counts.
    pub(super) fn is_writing(&self) -> bool {
        let tables = self.tables.borrow();
        let counts = |op: &WriteOp| op.range.is_some() && !op.is_copy;
        !tables.held.is_empty() || tables.writes.values().any(counts)
    }
}
