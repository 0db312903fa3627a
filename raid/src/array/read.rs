//! Reads: from one leg, balanced; from the other one on an error or after a silence.
//!
//! A leg that reads sequentially keeps doing so; otherwise the one with fewer requests in flight
//! is taken. A medium error is healed from the other leg.

use super::clock::LOOK_AGAIN;
use super::{token, Array, Leg, LegState, Why, TOKEN_READ};
use blockdev::{
    completion, Completion, Done, Hedge, Instant, IoCtx, IoError, IoResult, Kind, LegIndex, Op,
    Promise, Refusal, Sector, Seq, SECTOR_BYTES,
};
use std::time::Duration;

#[derive(Clone, Debug)]
enum Attempt {
    None,
    /// Since when; how often the leg had lost its cache by then, and in which turn of it.
    Pending(Instant, u64, u64),
    /// Sent in this turn of the leg ([`Leg::alone_turn`]).
    Failed(IoError, u64),
}

pub(super) struct ReadOp {
    at: Sector,
    sectors: u32,
    ctx: IoCtx,
    only: Option<LegIndex>,
    attempts: [Attempt; 3],
    seq: Seq,
    promise: Option<Promise>,
}

impl ReadOp {
    /// Whether some leg owes it an answer.
    fn is_asking(&self) -> bool {
        let mut attempts = self.attempts.iter();
        attempts.any(|attempt| matches!(attempt, Attempt::Pending(..)))
    }
}

impl Array {
    pub(super) fn read(
        &self,
        at: Sector,
        sectors: u32,
        ctx: IoCtx,
        only: Option<LegIndex>,
    ) -> Completion {
        if !self.geometry.get().accepts(at, u64::from(sectors)) || sectors == 0 {
            return Completion::refused(Kind::Refused(Refusal::Range));
        }
        let (promise, completion) = completion::pair();
        let op = ReadOp {
            at,
            sectors,
            ctx,
            only,
            attempts: [const { Attempt::None }; 3],
            seq: self.seq_for(at, sectors),
            promise: Some(promise),
        };
        let id = {
            let mut tables = self.tables.borrow_mut();
            tables.next_id += 1;
            let id = tables.next_id;
            tables.reads.insert(id, op);
            id
        };
        self.read_on(id);
        completion
    }

    /// Asks the best leg that a read has not tried, unless one is being asked. If that leg is being
    /// restored, the read waits; if there is none, it fails.
    fn read_on(&self, id: u64) {
        let (at, tried, only) = match self.tables.borrow().reads.get(&id) {
            Some(read) if !read.is_asking() => (read.at, self.tried(read), read.only),
            _ => return,
        };
        let usable =
            |leg: &&Leg| tried & leg.bit() == 0 && only.is_none_or(|only| only == leg.index);
        match self.choose(at, tried, only) {
            Some(leg) => self.read_from(id, leg),
            None if self.legs.iter().filter(usable).any(Leg::is_being_restored) => {}
            None => self.give_up(id),
        }
    }

    /// Sends what waited for a leg to be restored.
    pub(super) fn pump_reads(&self) {
        let waiting: Vec<u64> = {
            let tables = self.tables.borrow();
            let reads = tables.reads.iter().filter(|(_, read)| !read.is_asking());
            reads.map(|(&id, _)| id).collect()
        };
        waiting.into_iter().for_each(|id| self.read_on(id));
    }

    /// Before a write that is under way now, if one overlaps: its bytes may or may not be read.
    fn seq_for(&self, at: Sector, sectors: u32) -> Seq {
        let range = at.span(u64::from(sectors));
        let now = self.writes_seen.now();
        Seq(if self.writing_in(&range) { 0 } else { now })
    }

    /// The best leg to read from, not one of `tried`.
    fn choose(&self, at: Sector, tried: u8, only: Option<LegIndex>) -> Option<&Leg> {
        let usable = |leg: &&Leg| {
            leg.state() == LegState::InSync
                && !leg.restoring.get()
                && tried & leg.bit() == 0
                && only.is_none_or(|only| only == leg.index)
        };
        let rank = |leg: &&Leg| {
            let sequential = leg.next_read.get() == at.0;
            let busy = leg.reads_in_flight.get();
            (
                leg.is_write_mostly(),
                if sequential { 0 } else { busy + 1 },
                busy,
            )
        };
        self.legs.iter().filter(usable).min_by_key(rank)
    }

    fn read_from(&self, id: u64, leg: &Leg) {
        let now = self.rt.now();
        let (op, ctx) = {
            let mut tables = self.tables.borrow_mut();
            let Some(read) = tables.reads.get_mut(&id) else {
                return;
            };
            read.attempts[usize::from(leg.index.0)] =
                Attempt::Pending(now, leg.losses.get(), leg.alone_turn.get());
            leg.next_read.set(read.at.0 + u64::from(read.sectors));
            let at = Sector(leg.places().data.0 + read.at.0);
            let sectors = read.sectors;
            (Op::Read { at, sectors }, read.ctx)
        };
        leg.reads_in_flight.set(leg.reads_in_flight.get() + 1);
        let completion = match leg.device() {
            Some(device) => device.submit(op, ctx),
            None => Completion::refused(Kind::Closed),
        };
        completion.join(self.weak_joiner(), token(id, leg.index, TOKEN_READ));
        self.arm_tick(now + self.options.hedge_after);
    }

    pub(super) fn read_answered(&self, id: u64, index: LegIndex, result: IoResult) {
        let leg = self.leg(index);
        leg.reads_in_flight
            .set(leg.reads_in_flight.get().saturating_sub(1));
        if result.is_ok() {
            self.note_answer(leg, leg.alone_turn.get(), None);
        }
        match result {
            Ok(_) if self.lost_meanwhile(id, leg) => self.read_on(id),
            Ok(done) => self.read_done(id, leg, done),
            Err(error) => self.read_failed(id, leg, error),
        }
    }

    /// The leg lost its cache while it read: what it gave may be old. The attempt is forgotten.
    fn lost_meanwhile(&self, id: u64, leg: &Leg) -> bool {
        let mut tables = self.tables.borrow_mut();
        let Some(read) = tables.reads.get_mut(&id) else {
            return false;
        };
        let attempt = &mut read.attempts[usize::from(leg.index.0)];
        let lost = matches!(attempt, Attempt::Pending(_, losses, _) if *losses != leg.losses.get());
        if lost {
            *attempt = Attempt::None;
        }
        lost
    }

    fn read_done(&self, id: u64, leg: &Leg, done: Done) {
        let Some(mut read) = self.tables.borrow_mut().reads.remove(&id) else {
            return; // the other leg was faster
        };
        if let Done::Read(data, _) = done {
            leg.count(|c| c.read_bytes += u64::from(read.sectors) * SECTOR_BYTES);
            let other = self.peer(leg.index);
            let bad = &read.attempts[usize::from(other.index.0)];
            let is_medium =
                matches!(bad, Attempt::Failed(e, _) if matches!(e.kind, Kind::Medium { .. }));
            if is_medium && other.state() == LegState::InSync {
                let ctx = IoCtx::background();
                // Its outcome is the leg's business: a failure takes it out.
                drop(self.rewrite_leg(other.index, read.at, data.clone(), read.seq, ctx));
                let text = format!(
                    "sectors {} to {} rewritten after a medium error",
                    read.at,
                    read.at.0 + u64::from(read.sectors)
                );
                self.report_leg("block_healed", other, text, false);
            }
            if let Some(promise) = read.promise.take() {
                promise.complete(Ok(Done::Read(data, read.seq)));
            }
        }
    }

    fn read_failed(&self, id: u64, leg: &Leg, error: IoError) {
        leg.count(|c| c.read_errors += 1);
        match error.kind {
            Kind::Path(_) | Kind::Closed => {
                self.fail_leg(leg, Why::of(&error.kind), &error.to_string());
            }
            Kind::Again { after } => return self.read_later(id, leg, after),
            _ => {}
        }
        let kind = error.kind.clone();
        let turn = {
            let mut tables = self.tables.borrow_mut();
            let Some(read) = tables.reads.get_mut(&id) else {
                return;
            };
            let attempt = &mut read.attempts[usize::from(leg.index.0)];
            let turn = match attempt {
                Attempt::Pending(.., turn) => *turn,
                _ => leg.alone_turn.get(),
            };
            *attempt = Attempt::Failed(error, turn);
            turn
        };
        self.note_answer(leg, turn, Some(&kind));
        self.read_on(id);
    }

    /// The legs that need not be asked, or not again.
    fn tried(&self, read: &ReadOp) -> u8 {
        self.mask(|leg| match &read.attempts[usize::from(leg.index.0)] {
            Attempt::None => false,
            Attempt::Pending(..) => true,
            Attempt::Failed(error, turn) => !self.asks_again(leg, *turn, error),
        })
    }

    /// The leg was too busy for a read: the other one is asked, or this one again.
    fn read_later(&self, id: u64, leg: &Leg, after: Duration) {
        let (me, rt, index) = (self.me.clone(), self.rt.clone(), leg.index);
        self.rt.spawn(async move {
            rt.sleep(after).await;
            let Some(array) = me.upgrade() else { return };
            if let Some(read) = array.tables.borrow_mut().reads.get_mut(&id) {
                read.attempts[usize::from(index.0)] = Attempt::None;
            }
            array.read_on(id);
        });
    }

    /// No leg has it: the most telling error goes up.
    fn give_up(&self, id: u64) {
        let Some(mut read) = self.tables.borrow_mut().reads.remove(&id) else {
            return;
        };
        let errors = || {
            read.attempts.iter().filter_map(|a| match a {
                Attempt::Failed(error, _) => Some(error.clone()),
                _ => None,
            })
        };
        let medium = errors().find(|e| matches!(e.kind, Kind::Medium { .. }));
        let error = medium
            .or_else(|| errors().next())
            .unwrap_or_else(|| IoError::not_applied(Kind::Closed));
        let error = match error.kind {
            // The device counts its own sectors, our caller the array's.
            Kind::Medium { .. } => IoError {
                kind: Kind::Medium { first_bad: read.at },
                ..error
            },
            _ => error,
        };
        if let Some(promise) = read.promise.take() {
            promise.complete(Err(error));
        }
    }

    /// Tries the other leg for every read that is silent for too long; tells when to look again.
    pub(super) fn hedge_reads(&self, now: Instant) -> Instant {
        let mut next = Instant::FAR;
        let mut silent = Vec::new();
        for (&id, read) in &self.tables.borrow().reads {
            let alone = read.only.is_some() || read.ctx.hedge == Hedge::No;
            for attempt in &read.attempts {
                let Attempt::Pending(since, ..) = attempt else {
                    continue;
                };
                let due = *since + self.options.hedge_after;
                if !alone && due <= now {
                    silent.push((id, read.at, self.tried(read)));
                } else if !alone {
                    next = next.min(due);
                }
            }
        }
        for (id, at, tried) in silent {
            match self.choose(at, tried, None) {
                Some(other) => self.read_from(id, other),
                None if self.legs.iter().any(Leg::is_being_restored) => {
                    next = next.min(now + LOOK_AGAIN);
                }
                None => {}
            }
        }
        next
    }

    /// Reads that wait for a leg which is out are tried on the other.
    pub(super) fn read_elsewhere(&self, leg: &Leg) {
        let waiting: Vec<_> = {
            let tables = self.tables.borrow();
            let here = |read: &ReadOp| {
                matches!(
                    read.attempts[usize::from(leg.index.0)],
                    Attempt::Pending(..)
                ) && read.only.is_none()
            };
            let reads = tables.reads.iter().filter(|(_, read)| here(read));
            reads
                .map(|(&id, read)| (id, read.at, self.tried(read)))
                .collect()
        };
        for (id, at, tried) in waiting {
            if let Some(other) = self.choose(at, tried, None) {
                self.read_from(id, other);
            }
        }
    }

    pub(super) fn excuse_reads(&self, by: Duration) {
        for read in self.tables.borrow_mut().reads.values_mut() {
            for attempt in &mut read.attempts {
                if let Attempt::Pending(since, ..) = attempt {
                    *since = *since + by;
                }
            }
        }
    }
}
