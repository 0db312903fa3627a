//! Everything that is overdue: hedges, silence, deadlines, holds, queues, pauses.
//!
//! One timer serves all requests. It fires at the earliest time at which something may be due,
//! then lets sockets be read ([`SETTLE`]) before anything is judged. A timer that fires late
//! proves that this process stalled: every clock that was running then is set back by the
//! lateness (P5), so our own stall is never taken for a path's.

use crate::config::{
    FenceFail, Role, ASK_BEFORE_HEDGE, HEDGE_READ, HEDGE_WRITE, HOLD_BEFORE_FENCE,
    QUIET_BEFORE_FENCE, SILENT_MAX,
};
use crate::inner::Inner;
use crate::path::Checker;
use crate::request::{Attempt, Request, State};
use crate::slab::Token;
use blockdev::path::{Control, Sent};
use blockdev::rt::Timed;
use blockdev::{Hedge, Instant, IoError, Kind, Lateness, PathCause, Refusal, Rt};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Between the timer and the judgement: what has arrived is read first.
const SETTLE: Duration = Duration::from_millis(1);
/// The same after a stall of our own, when more is waiting to be read.
const SETTLE_AFTER_STALL: Duration = Duration::from_millis(10);
/// How often an overdue attempt is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A question unanswered this long is taken for a cut, not for load: the hedge needs no budget.
const HEARD_WITHIN: Duration = Duration::from_millis(30);

const TOKEN_DUE: u64 = 0;
const TOKEN_JUDGE: u64 = 1;

pub(crate) struct Sweep {
    armed: Cell<Instant>,
    is_settling: Cell<bool>,
    /// Sum of our own latenesses; clocks note it when they start.
    stall: Cell<Duration>,
    stall_counted: Cell<Instant>,
}

impl Sweep {
    pub(crate) fn new() -> Sweep {
        Sweep {
            armed: Cell::new(Instant::FAR),
            is_settling: Cell::new(false),
            stall: Cell::new(Duration::ZERO),
            stall_counted: Cell::new(Instant(0)),
        }
    }

    /// The stall clock: how late this process has been in all.
    pub(crate) fn stall(&self) -> Duration {
        self.stall.get()
    }
}

/// What the sweep decided; carried out when no borrow is held.
enum Act {
    Late(Token),
    NoFence(Token),
    Route(Token),
    Hedge { request: Token, is_silent: bool },
    Withdraw(Token),
    Ask(usize),
    Suspect(usize),
    Silent(usize, Duration),
    Fence,
}

impl Timed for Inner {
    fn fire(&self, token: u64, due: Instant) {
        let now = self.rt.now();
        let judges_stall = !blockdev::mutation::off("mpath.own-lateness");
        let lateness = Lateness(now.since(due.max(self.sweep.stall_counted.get())));
        let is_stall = judges_stall && lateness.is_own_stall();
        if is_stall {
            self.sweep.stall.set(self.sweep.stall.get() + lateness.0);
            self.sweep.stall_counted.set(now);
        }
        if token == TOKEN_DUE {
            if due != self.sweep.armed.get() {
                // An earlier timer has taken its place; without this look, timers would only
                // multiply, for each one that fires arms the next.
                return;
            }
            self.sweep.armed.set(Instant::FAR);
        }
        if !judges_stall || (token == TOKEN_JUDGE && !is_stall) {
            self.sweep.is_settling.set(false);
            return self.judge(now);
        }
        if self.sweep.is_settling.replace(true) && token == TOKEN_DUE {
            return;
        }
        let settle = if is_stall { SETTLE_AFTER_STALL } else { SETTLE };
        self.arm(now + settle, TOKEN_JUDGE);
    }
}

impl Inner {
    fn arm(&self, at: Instant, token: u64) {
        let owner: Weak<dyn Timed> = self.me.clone();
        self.rt.arm(at, owner, token);
    }

    /// Sees to it that the sweep runs at `at` at the latest.
    pub(crate) fn sweep_by(&self, at: Instant) {
        // A timer of the past is told as one of now, and would not be known again.
        let at = at.max(self.rt.now());
        if at < self.sweep.armed.get() {
            self.sweep.armed.set(at);
            self.arm(at, TOKEN_DUE);
        }
    }

    /// Whether the layer above prefers a failure to waiting for a fence.
    pub(crate) fn fails_without_fence(&self) -> bool {
        self.role.get() == Role::MirrorLeg && self.config.borrow().fence_fail == FenceFail::FailLeg
    }

    fn judge(&self, now: Instant) {
        let mut acts = Vec::new();
        let mut next = Instant::FAR;
        self.judge_requests(now, &mut acts, &mut next);
        self.judge_paths(now, &mut acts, &mut next);
        self.judge_fence(now, &mut acts, &mut next);
        for act in acts {
            self.carry_out(act);
        }
        if self.gives_up() {
            if !self.is_queueing_over.replace(true) {
                self.tally.gives_up(self.queue_time());
                if !self.queued.borrow().is_empty() {
                    let text = "no_path_retry is over, requests fail".to_string();
                    self.news.state("device_queueing", self.name(), text, true);
                }
            }
            let queued: Vec<Token> = self.queued.borrow().iter().copied().collect();
            for id in queued {
                self.answer_all_down(id);
            }
        } else if let (Some(since), Some(time), false) = (
            self.all_down_since.get(),
            self.queue_time(),
            self.queued.borrow().is_empty(),
        ) {
            next = next.min(since + time);
        }
        if next != Instant::FAR {
            self.sweep_by(next.max(now + SETTLE));
        }
    }

    fn judge_requests(&self, now: Instant, acts: &mut Vec<Act>, next: &mut Instant) {
        let stall = self.sweep.stall();
        let fence_timeout = self.config.borrow().fence_timeout;
        let requests = self.requests.borrow();
        for (id, request) in requests.iter() {
            let lag = stall.saturating_sub(request.stall_mark);
            if request.ctx.deadline != Instant::FAR {
                let deadline = request.ctx.deadline + lag;
                if deadline <= now {
                    acts.push(Act::Late(id));
                    continue;
                }
                *next = (*next).min(deadline);
            }
            match request.state {
                State::Queued => {}
                State::Backoff(at) if at <= now => acts.push(Act::Route(id)),
                State::Backoff(at) => *next = (*next).min(at),
                State::Held => {
                    let since = request.since + lag;
                    if now < since + HOLD_BEFORE_FENCE {
                        *next = (*next).min(since + HOLD_BEFORE_FENCE);
                        continue;
                    }
                    acts.push(Act::Fence);
                    if self.fails_without_fence() {
                        let until = since + HOLD_BEFORE_FENCE + fence_timeout;
                        if until <= now {
                            acts.push(Act::NoFence(id));
                        } else {
                            *next = (*next).min(until);
                        }
                    }
                }
                State::Running => self.judge_running(id, request, now, acts, next),
            }
        }
    }

    /// A request whose youngest attempt is overdue moves, or gets another attempt.
    fn judge_running(
        &self,
        id: Token,
        request: &Request,
        now: Instant,
        acts: &mut Vec<Act>,
        next: &mut Instant,
    ) {
        let attempts = self.attempts.borrow();
        let Some((token, youngest)) = request
            .attempts
            .iter()
            .filter_map(|&a| attempts.get(a).map(|attempt| (a, attempt)))
            .max_by_key(|(_, attempt)| attempt.seq)
        else {
            return;
        };
        let limit = if youngest.is_read {
            HEDGE_READ
        } else {
            HEDGE_WRITE
        };
        let start = self.clock(youngest);
        let heard = youngest.live.session.load().last_heard;
        if now < start + limit {
            let ask = start + (limit - ASK_BEFORE_HEDGE);
            if now >= ask {
                *next = (*next).min(start + limit);
                if heard <= youngest.started {
                    acts.push(Act::Ask(youngest.path));
                }
            } else {
                *next = (*next).min(ask);
            }
            return;
        }
        *next = (*next).min(now + LOOK_AGAIN);
        let asked = self.paths.borrow()[youngest.path].asked.get();
        let is_unheard = asked.0 != 0 && heard < asked && now - asked >= HEARD_WITHIN;
        let is_silent = heard <= youngest.started || is_unheard;
        if is_silent {
            acts.push(Act::Suspect(youngest.path));
        } else if now - heard >= LOOK_AGAIN {
            // A slow unit's target goes on answering; a cut one stops.
            acts.push(Act::Ask(youngest.path));
        }
        let ticket = youngest.ticket;
        let is_unsent = ticket.is_some_and(|t| youngest.live.session.sent(t) == Sent::Not);
        if is_unsent {
            acts.push(Act::Withdraw(token));
        } else if request.ctx.hedge == Hedge::Allowed || is_silent {
            acts.push(Act::Hedge {
                request: id,
                is_silent,
            });
        }
    }

    /// When the attempt's clock started, set forward by our own stalls since.
    fn clock(&self, attempt: &Attempt) -> Instant {
        attempt.started + self.sweep.stall().saturating_sub(attempt.stall_mark)
    }

    /// Paths on which something is unanswered and nothing at all is heard.
    fn judge_paths(&self, now: Instant, acts: &mut Vec<Act>, next: &mut Instant) {
        let mut oldest: BTreeMap<usize, Instant> = BTreeMap::new();
        {
            let attempts = self.attempts.borrow();
            for (_, attempt) in attempts.iter() {
                let heard = attempt.live.session.load().last_heard;
                let lag = self.sweep.stall().saturating_sub(attempt.stall_mark);
                let since = heard.max(attempt.started) + lag;
                let entry = oldest.entry(attempt.path).or_insert(since);
                *entry = (*entry).min(since);
            }
        }
        for path in self.paths.borrow().iter() {
            let Some(&since) = oldest.get(&path.index) else {
                path.suspect.set(false);
                continue;
            };
            if path.suspect.get() && now - since < HEARD_WITHIN {
                // It speaks again: what is overdue is the unit's doing.
                path.suspect.set(false);
                path.checker.set(Checker::Ready);
            }
            if now >= since + SILENT_MAX {
                acts.push(Act::Silent(path.index, now - since));
            } else {
                *next = (*next).min(since + SILENT_MAX);
            }
        }
    }

    fn judge_fence(&self, now: Instant, acts: &mut Vec<Act>, next: &mut Instant) {
        if self.fails_without_fence() {
            if let Some(until) = self.fence_waiters_late(now) {
                *next = (*next).min(until);
            }
        }
        if let Some(until) = self.fence_waiters_past_deadline(now) {
            *next = (*next).min(until);
        }
        if self.taints.borrow().is_empty() || self.fence.is_running.get() {
            return;
        }
        let live: Vec<u64> = self
            .paths
            .borrow()
            .iter()
            .filter_map(|p| p.epoch())
            .collect();
        let is_any_lost = self
            .taints
            .borrow()
            .iter()
            .any(|(_, t)| !live.contains(&t.epoch));
        let quiet = self.tainted_at.get() + QUIET_BEFORE_FENCE;
        if quiet > now {
            *next = (*next).min(quiet);
        } else if is_any_lost {
            self.fence.is_quiet_due.set(true);
            acts.push(Act::Fence);
        }
    }

    fn carry_out(&self, act: Act) {
        match act {
            Act::Late(id) => {
                let error = self.error_of(id, Kind::Late);
                self.answer(id, Err(error));
            }
            Act::NoFence(id) => {
                let why = self.fence.why();
                let kind = Kind::Refused(Refusal::NoFence(why));
                let error = IoError {
                    kind: kind.clone(),
                    ..self.error_of(id, kind)
                };
                self.answer(id, Err(error));
            }
            Act::Route(id) => {
                if let Some(request) = self.requests.borrow_mut().get_mut(id) {
                    request.state = State::Running;
                }
                self.route(id, "again");
            }
            Act::Withdraw(token) => self.withdraw(token),
            Act::Hedge { request, is_silent } => self.hedge(request, is_silent),
            Act::Ask(index) => self.ask(index),
            Act::Suspect(index) => self.suspect(index),
            Act::Silent(index, time) => {
                let path = self.path(index);
                if let Some(epoch) = path.epoch() {
                    self.path_lost(&path, epoch, &PathCause::Silent(time));
                }
            }
            Act::Fence => self.demand_fence(),
        }
    }

    fn hedge(&self, id: Token, is_silent: bool) {
        let avoid: Vec<usize> = {
            let requests = self.requests.borrow();
            let Some(request) = requests.get(id) else {
                return;
            };
            let attempts = self.attempts.borrow();
            request
                .attempts
                .iter()
                .filter_map(|&a| attempts.get(a))
                .map(|a| a.path)
                .collect()
        };
        let Some(path) = self.pick(&avoid) else {
            return;
        };
        if path.suspect.get() || !(is_silent || self.take_hedge_credit()) {
            return;
        }
        // A hedge carries the same bytes, so only a taint of somebody else's could forbid it, and
        // then the first attempt would have been held too.
        self.start(id, &path, "hedge");
    }

    /// Takes back what is still unsent, if it could go elsewhere: no taint.
    fn withdraw(&self, token: Token) {
        let found = {
            let attempts = self.attempts.borrow();
            attempts
                .get(token)
                .map(|a| (a.path, a.live.session.clone(), a.ticket))
        };
        let Some((index, session, Some(ticket))) = found else {
            return;
        };
        let other = self.pick(&[index]);
        if other.is_some_and(|p| !p.suspect.get()) {
            // While the request is routed again, this path must not be chosen.
            self.suspect(index);
            session.withdraw(ticket);
        }
    }

    /// Marks a path as doubtful: used only for want of a better one until it is heard.
    fn suspect(&self, index: usize) {
        let path = self.path(index);
        if path.is_serving() && !path.suspect.replace(true) {
            path.checker.set(Checker::Shaky);
            self.ask(index);
        }
    }

    /// Asks the target for a sign of life, once per [`SILENT_MAX`].
    pub(crate) fn ask(&self, index: usize) {
        let path = self.path(index);
        let now = self.rt.now();
        if path.asked.get().0 != 0 && now < path.asked.get() + SILENT_MAX {
            return;
        }
        let Some(live) = path.live() else { return };
        path.asked.set(now);
        let answer = live
            .session
            .control(Control::Ping { bytes: 0 }, now + SILENT_MAX);
        let device = self.me.clone();
        self.rt.spawn(async move {
            // The answer counts as something heard; its absence is judged by the sweep.
            if answer.await.is_ok() && alive(&device).is_some() {
                path.asked.set(Instant(0));
            }
        });
    }
}

/// `future` until `deadline`, or `None`; our own stall extends it once by its length.
pub(crate) async fn within<F: std::future::Future>(
    rt: &Rt,
    deadline: Instant,
    future: F,
) -> Option<F::Output> {
    let mut future = Box::pin(future);
    match rt.by(deadline, &mut future).await {
        Ok(output) => Some(output),
        Err(late) if late.is_own_stall() && !blockdev::mutation::off("mpath.own-lateness") => {
            rt.by(rt.now() + late.0, future).await.ok()
        }
        Err(_) => None,
    }
}

/// A reference that keeps nothing alive across an await.
pub(crate) fn alive(inner: &Weak<Inner>) -> Option<Rc<Inner>> {
    inner.upgrade().filter(|i| !i.is_closed.get())
}
