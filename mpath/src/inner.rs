//! The device behind its handle: its state, and the way of an operation through it.
//!
//! submit → split into requests → hold if a taint forbids → choose a path → one attempt → answer.
//! Nothing is spawned per operation: sessions hand results to [`Inner::joined`], and one sweep
//! timer (`sweep.rs`) looks after everything overdue.
//!
//! Borrow discipline: sessions and promises may call back into the device at once, so no borrow is
//! held over `session.*` or a promise. State is cut into cells so that borrows stay short.

use crate::config::{Config, Role, QUEUED_REQUESTS_MAX};
use crate::fence::Fence;
use crate::group::Group;
use crate::news::News;
use crate::path::{Path, Phase};
use crate::request::{Attempt, AttemptLog, Joint, JointEnd, Request, Sink, State, Work};
use crate::reserve::Keys;
use crate::signal::Signal;
use crate::slab::{Slab, Token};
use crate::sweep::Sweep;
use crate::taint::{Taint, TaintId, Taints};
use crate::tally::Tally;
use blockdev::path::{CommandResult, Sent, UnitIdentity};
use blockdev::{
    completion, Admission, Completion, Done, Durability, Event, Geometry, Instant, IoCtx, IoError,
    IoResult, Joiner, Kind, Op, PathCause, Promise, Refusal, Rt, Sector, Seq, SECTOR_BYTES,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Longest UNMAP or WRITE SAME sent at once, in sectors (32 MiB).
const UNMAP_SECTORS_MAX: u64 = 65536;

/// What is known about the unit's volatile cache.
#[derive(Default)]
pub(crate) struct Cache {
    /// Writes answered (not FUA), and how many of them a flush has covered.
    pub(crate) answered: Cell<u64>,
    pub(crate) flushed: Cell<u64>,
    /// `Event::CacheLost` waits to be taken: no flush may succeed before.
    pub(crate) is_loss_untold: Cell<bool>,
}

pub(crate) struct Inner {
    pub(crate) rt: Rt,
    pub(crate) me: Weak<Inner>,
    pub(crate) config: RefCell<Config>,
    pub(crate) role: Cell<Role>,
    pub(crate) paths: RefCell<Vec<Rc<Path>>>,
    pub(crate) groups: RefCell<Vec<Group>>,
    /// Index of the group that took the last command.
    pub(crate) current_group: Cell<Option<usize>>,
    /// `failback followover`: a group that was all down has a path again.
    pub(crate) follows: Cell<bool>,
    /// `failback N`: the group in use is kept until then.
    pub(crate) stays_until: Cell<Instant>,
    pub(crate) requests: RefCell<Slab<Request>>,
    pub(crate) attempts: RefCell<Slab<Attempt>>,
    pub(crate) taints: RefCell<Taints>,
    pub(crate) tainted_at: Cell<Instant>,
    pub(crate) held: RefCell<VecDeque<Token>>,
    pub(crate) queued: RefCell<VecDeque<Token>>,
    /// What the first path said the unit is; later ones must agree.
    pub(crate) unit: RefCell<Option<Rc<UnitIdentity>>>,
    pub(crate) geometry: Cell<Geometry>,
    /// The newest one told by an event, taken or not.
    pub(crate) told_geometry: Cell<Geometry>,
    pub(crate) fua_refused: Cell<bool>,
    pub(crate) zero_refused: Cell<bool>,
    pub(crate) cache: Cache,
    pub(crate) news: News,
    pub(crate) sweep: Sweep,
    pub(crate) fence: Fence,
    pub(crate) keys: Keys,
    pub(crate) gate: RefCell<Option<Weak<dyn Admission>>>,
    /// The device is refused to us for good (P11).
    pub(crate) barred: RefCell<Option<IoError>>,
    /// No path serves, since then.
    pub(crate) all_down_since: Cell<Option<Instant>>,
    /// `no_path_retry` ran out: nothing is queued until a path returns.
    pub(crate) is_queueing_over: Cell<bool>,
    pub(crate) changed: Signal,
    pub(crate) is_closed: Cell<bool>,
    pub(crate) next_epoch: Cell<u64>,
    pub(crate) next_attempt: Cell<u64>,
    pub(crate) next_seq: Cell<u64>,
    pub(crate) failovers: Cell<u64>,
    pub(crate) tally: Tally,
    pub(crate) longest_stall: Cell<Duration>,
    /// Hedges allowed on a path that is heard, in fiftieths: 2 % of the requests.
    hedge_credit: Cell<u32>,
}

/// Attempts of one request that its trace keeps.
const ATTEMPTS_LOGGED_MAX: usize = 64;

const HEDGE_COST: u32 = 50;
const HEDGE_CREDIT_MAX: u32 = 16 * HEDGE_COST;

impl Inner {
    pub(crate) fn new(rt: Rt, config: Config) -> Rc<Inner> {
        let now = rt.now();
        Rc::new_cyclic(|me| Inner {
            me: me.clone(),
            sweep: Sweep::new(),
            role: Cell::default(),
            paths: RefCell::default(),
            groups: RefCell::default(),
            current_group: Cell::new(None),
            follows: Cell::new(false),
            stays_until: Cell::new(Instant(0)),
            requests: RefCell::new(Slab::new()),
            attempts: RefCell::new(Slab::new()),
            taints: RefCell::default(),
            tainted_at: Cell::new(now),
            held: RefCell::default(),
            queued: RefCell::default(),
            unit: RefCell::default(),
            geometry: Cell::new(Geometry::plain(0)),
            told_geometry: Cell::new(Geometry::plain(0)),
            fua_refused: Cell::new(false),
            zero_refused: Cell::new(false),
            cache: Cache::default(),
            news: News::default(),
            fence: Fence::default(),
            keys: Keys::new(config.fence),
            gate: RefCell::default(),
            barred: RefCell::default(),
            all_down_since: Cell::new(Some(now)),
            is_queueing_over: Cell::new(false),
            changed: Signal::default(),
            is_closed: Cell::new(false),
            next_epoch: Cell::new(1),
            next_attempt: Cell::new(1),
            next_seq: Cell::new(1),
            failovers: Cell::new(0),
            tally: Tally::default(),
            longest_stall: Cell::new(Duration::ZERO),
            hedge_credit: Cell::new(HEDGE_CREDIT_MAX),
            config: RefCell::new(config),
            rt,
        })
    }

    pub(crate) fn path(&self, index: usize) -> Rc<Path> {
        self.paths.borrow()[index].clone()
    }

    pub(crate) fn all_paths(&self) -> Vec<Rc<Path>> {
        self.paths.borrow().clone()
    }

    pub(crate) fn name(&self) -> String {
        self.config.borrow().name.clone()
    }

    // ---- operations -------------------------------------------------------------------------

    pub(crate) fn submit(&self, op: Op, ctx: IoCtx) -> Completion {
        if self.is_closed.get() {
            return Completion::refused(Kind::Closed);
        }
        if let Some(error) = &*self.barred.borrow() {
            return Completion::ready(Err(error.clone()));
        }
        let seq = Seq(self.next_seq.get());
        self.next_seq.set(seq.0 + 1);
        let geometry = self.geometry.get();
        let refused = || Completion::refused(Kind::Refused(Refusal::Range));
        match op {
            Op::Fence => self.fence_op(ctx),
            Op::Flush => {
                if self.cache.is_loss_untold.get() {
                    let after = Duration::from_millis(1);
                    return Completion::refused(Kind::Again { after });
                }
                let (promise, completion) = completion::pair();
                self.begin(Work::Flush, false, ctx, seq, Sink::Whole(promise));
                completion
            }
            Op::Read { at, sectors } => {
                if !geometry.accepts(at, u64::from(sectors)) {
                    return refused();
                }
                let done = Done::Read(Default::default(), seq);
                let max = u64::from(geometry.max_transfer_sectors.max(1));
                self.split(u64::from(sectors), max, done, false, ctx, seq, |from, n| {
                    Work::Read {
                        at: at + from,
                        sectors: n,
                    }
                })
            }
            Op::Write { at, data, want } => {
                let sectors = data.len() as u64 / SECTOR_BYTES;
                if data.len() as u64 % SECTOR_BYTES != 0 || !geometry.accepts(at, sectors) {
                    return refused();
                }
                let wants_media = want == Durability::Fua && geometry.write_cache;
                let fua = wants_media && geometry.fua && !self.fua_refused.get();
                let max = u64::from(geometry.max_transfer_sectors.max(1));
                let flush_after = wants_media && !fua;
                self.split(
                    sectors,
                    max,
                    Done::Written,
                    flush_after,
                    ctx,
                    seq,
                    |from, n| {
                        let begin = (from * SECTOR_BYTES) as usize;
                        let bytes = n as usize * SECTOR_BYTES as usize;
                        let data = if bytes == data.len() {
                            data.clone()
                        } else {
                            data.slice(begin..begin + bytes)
                        };
                        Work::Write {
                            at: at + from,
                            data,
                            fua,
                        }
                    },
                )
            }
            Op::Discard { at, sectors } => {
                if !geometry.accepts(at, sectors) {
                    return refused();
                }
                let max = UNMAP_SECTORS_MAX;
                self.split(sectors, max, Done::Discarded, false, ctx, seq, |from, n| {
                    Work::Unmap {
                        at: at + from,
                        sectors: n,
                    }
                })
            }
            Op::WriteZeroes { at, sectors } => {
                if !geometry.accepts(at, sectors) {
                    return refused();
                }
                // No longer than a write, so that it can become one where WRITE SAME is refused.
                let max = u64::from(geometry.max_transfer_sectors.max(1));
                self.split(sectors, max, Done::Discarded, false, ctx, seq, |from, n| {
                    self.zeroes(at + from, n)
                })
            }
        }
    }

    fn zeroes(&self, at: Sector, sectors: u32) -> Work {
        if self.zero_refused.get() {
            let bytes = sectors as usize * SECTOR_BYTES as usize;
            let data = blockdev::IoVec::zeros(bytes);
            return Work::Write {
                at,
                data,
                fua: false,
            };
        }
        Work::Zero { at, sectors }
    }

    #[allow(clippy::too_many_arguments)] // One place, and all of them are the operation.
    fn split(
        &self,
        sectors: u64,
        max: u64,
        done: Done,
        flush_after: bool,
        ctx: IoCtx,
        seq: Seq,
        work: impl Fn(u64, u32) -> Work,
    ) -> Completion {
        if sectors == 0 {
            return Completion::ready(Ok(done));
        }
        let (promise, completion) = completion::pair();
        if sectors <= max {
            let sink = Sink::Whole(promise);
            self.begin(work(0, sectors as u32), flush_after, ctx, seq, sink);
            return completion;
        }
        let parts = usize::try_from(sectors.div_ceil(max)).expect("a device fits");
        let joint = Joint::new(promise, parts, done, flush_after, ctx);
        for part in 0..parts {
            let from = part as u64 * max;
            let count = (sectors - from).min(max) as u32;
            let sink = Sink::Part(joint.clone(), part);
            self.begin(work(from, count), false, ctx, seq, sink);
        }
        completion
    }

    fn begin(&self, work: Work, flush_after: bool, ctx: IoCtx, seq: Seq, sink: Sink) {
        let now = self.rt.now();
        let request = Request {
            work,
            is_flushing: false,
            flush_after,
            ctx,
            seq,
            sink,
            begun: now,
            state: State::Running,
            since: now,
            stall_mark: self.sweep.stall(),
            attempts: Default::default(),
            is_unsure: false,
            pauses: 0,
            not_ready: 0,
            repeats: 0,
            log: None,
        };
        let credit = self.hedge_credit.get();
        if credit < HEDGE_CREDIT_MAX {
            self.hedge_credit.set(credit + 1);
        }
        let id = self.requests.borrow_mut().insert(request);
        if ctx.deadline != Instant::FAR {
            self.sweep_by(ctx.deadline);
        }
        self.route(id, "first");
    }

    /// Whether the budget admits a second attempt although the path is heard.
    pub(crate) fn take_hedge_credit(&self) -> bool {
        let credit = self.hedge_credit.get();
        if credit < HEDGE_COST {
            return false;
        }
        self.hedge_credit.set(credit - HEDGE_COST);
        true
    }

    // ---- routing ----------------------------------------------------------------------------

    /// Sends the request somewhere, or holds or queues it.
    pub(crate) fn route(&self, id: Token, reason: &'static str) {
        let (avoid, must_hold) = {
            let requests = self.requests.borrow();
            let Some(request) = requests.get(id) else {
                return;
            };
            let attempts = self.attempts.borrow();
            let avoid: smallvec::SmallVec<[usize; 4]> = request
                .attempts
                .iter()
                .filter_map(|&a| attempts.get(a))
                .map(|a| a.path)
                .collect();
            (avoid, self.must_hold(request))
        };
        if must_hold {
            return self.hold(id);
        }
        match self.pick(&avoid) {
            Some(path) => self.start(id, &path, reason),
            None if avoid.is_empty() => self.enqueue(id),
            None => {}
        }
    }

    fn must_hold(&self, request: &Request) -> bool {
        if !request.is_mutating() {
            return false;
        }
        if self.fence.is_assuming.get() {
            return true;
        }
        let taints = self.taints.borrow();
        if taints.is_empty() || blockdev::mutation::off("mpath.hold") {
            return false;
        }
        let Some(content) = request.work.content() else {
            return false;
        };
        let range = request.work.range();
        let conflict = taints.conflicts(&range, &content).next().is_some();
        conflict
    }

    fn hold(&self, id: Token) {
        self.set_state(id, State::Held);
        let mut held = self.held.borrow_mut();
        if !held.contains(&id) {
            held.push_back(id);
        }
        drop(held);
        if !self.can_answer_come(id) {
            self.demand_fence();
        }
        self.sweep_by(self.rt.now() + crate::config::HOLD_BEFORE_FENCE);
    }

    /// Whether all that holds the request is on live sessions.
    fn can_answer_come(&self, id: Token) -> bool {
        let requests = self.requests.borrow();
        let Some(request) = requests.get(id) else {
            return true;
        };
        let Some(content) = request.work.content() else {
            return true;
        };
        let live: Vec<u64> = self
            .paths
            .borrow()
            .iter()
            .filter_map(|p| p.epoch())
            .collect();
        let taints = self.taints.borrow();
        let range = request.work.range();
        let can = taints
            .conflicts(&range, &content)
            .all(|epoch| live.contains(&epoch));
        can
    }

    fn set_state(&self, id: Token, state: State) {
        if let Some(request) = self.requests.borrow_mut().get_mut(id) {
            if request.state != state {
                request.state = state;
                request.since = self.rt.now();
                request.stall_mark = self.sweep.stall();
            }
            if !matches!(state, State::Running) && request.log.is_none() {
                request.log = Some(Vec::new());
            }
        }
    }

    pub(crate) fn enqueue(&self, id: Token) {
        let is_pausing = self
            .paths
            .borrow()
            .iter()
            .any(|p| matches!(p.phase.get(), Phase::Identifying));
        if !is_pausing && self.gives_up() {
            return self.answer_all_down(id);
        }
        let mut queued = self.queued.borrow_mut();
        if queued.len() >= QUEUED_REQUESTS_MAX {
            drop(queued);
            let after = Duration::from_millis(100);
            return self.answer(id, Err(self.error_of(id, Kind::Again { after })));
        }
        if !queued.contains(&id) {
            queued.push_back(id);
        }
        drop(queued);
        self.set_state(id, State::Queued);
        if let (Some(since), Some(time)) = (self.all_down_since.get(), self.queue_time()) {
            self.sweep_by(since + time);
        }
    }

    /// How long requests wait for a path, as the device's role now is; `None`: for ever.
    pub(crate) fn queue_time(&self) -> Option<Duration> {
        self.config.borrow().queue_time(self.role.get())
    }

    /// The role or the configuration may have changed how long requests wait: with no path left, the
    /// new time begins now, whatever has run out before.
    pub(crate) fn rearm_queueing(&self, before: Option<Duration>) {
        let now = self.rt.now();
        let time = self.queue_time();
        if time != before && self.all_down_since.get().is_some() {
            self.tally
                .queueing_changes(self.all_down_since.get(), now, before);
            self.all_down_since.set(Some(now));
            self.is_queueing_over.set(false);
        }
        self.sweep_by(now);
    }

    /// Whether requests fail rather than wait for a path.
    pub(crate) fn gives_up(&self) -> bool {
        let Some(since) = self.all_down_since.get() else {
            return false;
        };
        match self.queue_time() {
            None => false,
            Some(time) => self.is_queueing_over.get() || self.rt.now() >= since + time,
        }
    }

    pub(crate) fn answer_all_down(&self, id: Token) {
        let error = self.error_of(id, Kind::Path(PathCause::AllDown));
        self.answer(id, Err(error));
    }

    /// An error for the request, with what is known about its outcome.
    pub(crate) fn error_of(&self, id: Token, kind: Kind) -> IoError {
        let requests = self.requests.borrow();
        let is_unsure = requests
            .get(id)
            .is_some_and(|r| r.is_unsure || (r.work.is_mutating() && !r.attempts.is_empty()));
        if is_unsure {
            IoError::unknown(kind)
        } else {
            IoError::not_applied(kind)
        }
    }

    /// Begins an attempt on `path`.
    pub(crate) fn start(&self, id: Token, path: &Rc<Path>, reason: &'static str) {
        let Some(live) = path.live() else {
            return self.enqueue(id);
        };
        let now = self.rt.now();
        let (command, ctx, token, limit) = {
            let mut requests = self.requests.borrow_mut();
            let Some(request) = requests.get_mut(id) else {
                return;
            };
            if request.state != State::Running {
                request.state = State::Running;
                request.since = now;
            }
            let command = request.command();
            let mutation = request
                .is_mutating()
                .then(|| request.work.content().map(|c| (request.work.range(), c)))
                .flatten();
            let bytes = if request.is_flushing {
                0
            } else {
                request.work.bytes()
            };
            let is_read = matches!(request.work, Work::Read { .. });
            let seq = self.next_attempt.get();
            self.next_attempt.set(seq + 1);
            path.in_flight.set(path.in_flight.get() + 1);
            path.in_flight_bytes.set(path.in_flight_bytes.get() + bytes);
            let attempt = Attempt {
                request: Some(id),
                path: path.index,
                live: live.clone(),
                ticket: None,
                op: request.seq,
                seq,
                started: now,
                stall_mark: self.sweep.stall(),
                bytes,
                is_read,
                mutation,
                taint: None,
                reason,
                covers: self.cache.answered.get(),
                is_flush: request.is_flushing || matches!(request.work, Work::Flush),
                is_fua: matches!(request.work, Work::Write { fua: true, .. }),
            };
            if reason != "first" && request.log.is_none() {
                request.log = Some(Vec::new());
            }
            let token = self.attempts.borrow_mut().insert(attempt);
            request.attempts.push(token);
            let limit = if is_read {
                crate::config::HEDGE_READ
            } else {
                crate::config::HEDGE_WRITE
            };
            (command, request.ctx, token, limit)
        };
        if reason == "hedge" {
            path.count(|c| c.hedges += 1);
        }
        let (ticket, completion) = live.session.submit(command, ctx);
        if let Some(attempt) = self.attempts.borrow_mut().get_mut(token) {
            attempt.ticket = Some(ticket);
        }
        let me: Weak<dyn Joiner<CommandResult>> = self.me.clone();
        completion.join(me, token.0);
        self.sweep_by(now + (limit - crate::config::ASK_BEFORE_HEDGE));
    }

    // ---- answers ----------------------------------------------------------------------------

    /// Answers the request upward. What it still has under way lives on as taints.
    pub(crate) fn answer(&self, id: Token, result: IoResult) {
        let Some(mut request) = self.requests.borrow_mut().remove(id) else {
            return;
        };
        match request.state {
            State::Held => self.held.borrow_mut().retain(|&h| h != id),
            State::Queued => self.queued.borrow_mut().retain(|&q| q != id),
            State::Running | State::Backoff(_) => {}
        }
        if !request.attempts.is_empty() {
            self.orphan(&mut request);
        }
        if request.log.is_some() || result.is_err() {
            self.trace(&request, &result);
        }
        match request.sink {
            Sink::Whole(promise) => promise.complete(result),
            Sink::Part(joint, index) => match joint.part(index, result) {
                None => {}
                Some(JointEnd::Deliver(promise, result)) => promise.complete(result),
                Some(JointEnd::Flush(promise, ctx)) => self.flush_joint(promise, ctx),
            },
        }
    }

    /// The flush in place of FUA after an operation of several parts. It answers as a flush;
    /// whoever awaits the write only asks whether it is `Ok`.
    fn flush_joint(&self, promise: Promise, ctx: IoCtx) {
        let seq = Seq(self.next_seq.get());
        self.next_seq.set(seq.0 + 1);
        if self.cache.is_loss_untold.get() {
            let after = Duration::from_millis(1);
            return promise.complete(Err(IoError::not_applied(Kind::Again { after })));
        }
        self.begin(Work::Flush, false, ctx, seq, Sink::Whole(promise));
    }

    fn orphan(&self, request: &mut Request) {
        let mut withdraw = Vec::new();
        for token in std::mem::take(&mut request.attempts) {
            let mut attempts = self.attempts.borrow_mut();
            let Some(attempt) = attempts.get_mut(token) else {
                continue;
            };
            attempt.request = None;
            if let Some(log) = &mut request.log {
                log.push(AttemptLog {
                    portal: self.path(attempt.path).name.portal.clone(),
                    reason: attempt.reason,
                    start: attempt.started - request.begun,
                    end: None,
                    result: "unanswered".into(),
                });
            }
            withdraw.push((token, attempt.live.session.clone(), attempt.ticket));
        }
        for (token, session, ticket) in withdraw {
            let is_back = ticket.is_some_and(|ticket| {
                session.sent(ticket) == Sent::Not && session.withdraw(ticket)
            });
            if !is_back {
                self.taint_attempt(token);
            }
        }
    }

    /// Registers what an unanswered attempt may still do.
    fn taint_attempt(&self, token: Token) {
        let taint = {
            let attempts = self.attempts.borrow();
            let Some(attempt) = attempts.get(token) else {
                return;
            };
            if attempt.taint.is_some() {
                return;
            }
            let Some((range, content)) = attempt.mutation.clone() else {
                return;
            };
            Taint {
                range,
                content,
                epoch: attempt.live.epoch,
                op: attempt.op,
            }
        };
        let id = self.add_taint(taint);
        if let Some(attempt) = self.attempts.borrow_mut().get_mut(token) {
            attempt.taint = Some(id);
        }
    }

    pub(crate) fn add_taint(&self, taint: Taint) -> TaintId {
        let range = taint.range.clone();
        let id = self.taints.borrow_mut().add(taint);
        self.tainted_at.set(self.rt.now());
        self.sweep_by(self.rt.now() + crate::config::QUIET_BEFORE_FENCE);
        self.news.push(Event::Tainted(range));
        self.mind_fence_waiters();
        id
    }

    pub(crate) fn drop_taint(&self, id: TaintId) {
        if self.taints.borrow_mut().remove(id).is_some() {
            self.release_held();
            self.settle_fence_waiters();
        }
    }

    /// Routes again everything held; what must still wait is held again, with its old age.
    pub(crate) fn release_held(&self) {
        if self.held.borrow().is_empty() {
            return;
        }
        let held: Vec<Token> = self.held.borrow().iter().copied().collect();
        for id in held {
            let must_wait = {
                let requests = self.requests.borrow();
                requests.get(id).is_some_and(|r| self.must_hold(r))
            };
            if !must_wait {
                self.held.borrow_mut().retain(|&h| h != id);
                self.set_state(id, State::Running);
                self.route(id, "released");
            }
        }
    }

    /// Routes again everything that waited for a path.
    pub(crate) fn release_queued(&self) {
        let queued = std::mem::take(&mut *self.queued.borrow_mut());
        for id in queued {
            self.set_state(id, State::Running);
            self.route(id, "retry");
        }
    }

    fn trace(&self, request: &Request, result: &IoResult) {
        let latency = self.rt.now() - request.begun;
        if result.is_ok() && latency > self.longest_stall.get() {
            self.longest_stall.set(latency);
        }
        let range = request.work.range();
        let mut attempts = request.log.clone().unwrap_or_default();
        if let (Err(error), true) = (result, attempts.is_empty()) {
            attempts.push(AttemptLog {
                portal: "-".into(),
                reason: "none",
                start: Duration::ZERO,
                end: Some(latency),
                result: error.to_string(),
            });
        }
        self.news.trace(crate::news::Trace {
            time: self.rt.wall(),
            trace: request.ctx.trace,
            op: request.work.name(),
            offset_bytes: range.start.bytes(),
            bytes: range.end.bytes() - range.start.bytes(),
            latency,
            attempts,
        });
    }

    /// Answers every request with `kind`.
    pub(crate) fn fail_everything(&self, kind: &Kind) {
        let all: Vec<Token> = self.requests.borrow().iter().map(|(id, _)| id).collect();
        for id in all {
            let error = self.error_of(id, kind.clone());
            self.answer(id, Err(error));
        }
    }

    /// Notes a finished attempt in its request's trace.
    pub(crate) fn log_attempt(&self, attempt: &Attempt, result: Result<(), String>) {
        let Some(id) = attempt.request else { return };
        let mut requests = self.requests.borrow_mut();
        let Some(request) = requests.get_mut(id) else {
            return;
        };
        if result.is_ok() && request.log.is_none() {
            return;
        }
        let entry = AttemptLog {
            portal: self.path(attempt.path).name.portal.clone(),
            reason: attempt.reason,
            start: attempt.started - request.begun,
            end: Some(self.rt.now() - request.begun),
            result: result.err().unwrap_or_else(|| "ok".into()),
        };
        let log = request.log.get_or_insert_with(Vec::new);
        if log.len() == ATTEMPTS_LOGGED_MAX {
            // The first and the last of them tell what happened.
            log.pop();
        }
        log.push(entry);
    }
}
