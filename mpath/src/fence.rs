//! The fence: proof that no earlier write can take effect any more (`failover-rules.md` §1).
//!
//! One task per device, started on demand: by a held write, by `Op::Fence`, or after 5 s of quiet
//! with taints left. A round is
//!
//! 1. choose a live session F without a tainted write of its own (its barrier may overtake a
//!    command that still waits for its data; if every session has one, one is closed and logged in
//!    again); new commands go there alone;
//! 2. close every other session that has unanswered commands, reads too (rule 2);
//! 3. log in again under the ISID of every closed one (through SecurityNegotiation, by F's portal
//!    if that reaches the same portal group): nothing of them arrives after this;
//! 4. the barrier on F: LOGICAL UNIT RESET, or what the target's grade says. One task management
//!    function at a time (rule 3);
//! 5. drop the taints of sessions that were closed before the barrier was sent.
//!
//! A reset's answer ends F's own commands that began to leave before it; the session does that, for
//! it alone knows which. Where the target ends nothing (tgt) the session is told to spare them: what
//! still waits for data, which the reset has overtaken, begins when they come, and is answered then.
//!
//! The first round of a run also logs in under every ISID of the previous one (rule 7).
//! A round goes on as long as it must; `fence_timeout` only decides when those who wait for it
//! are told that there is none. Nothing is released by time, except for targets of grade `none`
//! (rule 8).

use crate::config::{FENCE_DRAIN, QUIET_BEFORE_FENCE};
use crate::grade::{fencing, Barrier, FenceGrade, Fencing};
use crate::inner::Inner;
use crate::path::{Live, Path, Phase};
use crate::sweep::within;
use crate::taint::TaintId;
use blockdev::path::{
    Command, CommandError, Control, ControlError, Isid, LoginAs, LoginError, PathSession,
};
use blockdev::{
    completion, Completion, Done, Instant, IoCtx, IoError, Kind, PathCause, Promise, Refusal, Seq,
};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// A barrier unanswered for this long is given up with its session and repeated on a new one.
const BARRIER_REPEAT: Duration = Duration::from_secs(30);
/// How long a closed session of the fence's own may take to come back before another is closed.
const RELOGIN: Duration = Duration::from_millis(300);
/// Between rounds that failed: doubles up to the second value.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Attentions an ordered TEST UNIT READY may meet before it counts.
const ATTENTIONS_MAX: u32 = 8;

struct Waiter {
    promise: Promise,
    /// Taints and attempts of mutating operations before this one must be gone.
    limit: Seq,
    since: Instant,
    deadline: Instant,
    /// The stall clock then: our own stalls extend both.
    stall_mark: Duration,
    /// A barrier was answered since: only an unanswered write of a dead session needs another. The
    /// rest is waited for, or each barrier would end what a slow unit is still working on.
    is_served: bool,
}

#[derive(Default)]
pub(crate) struct Fence {
    pub(crate) is_running: Cell<bool>,
    /// While a round runs, commands go to this path alone.
    pub(crate) only: Cell<Option<usize>>,
    /// Grade `none`: no new write until `fence_assume` is over.
    pub(crate) is_assuming: Cell<bool>,
    pub(crate) is_quiet_due: Cell<bool>,
    /// A LOGICAL UNIT RESET that ends commands is out on the session of this epoch.
    resetting: Cell<Option<u64>>,
    /// ISIDs of an earlier run that this run has not fenced yet.
    earlier: RefCell<Vec<(String, Isid)>>,
    is_earlier_done: Cell<bool>,
    waiters: RefCell<Vec<Waiter>>,
    failure: RefCell<Option<String>>,
    pub(crate) rounds: Cell<u64>,
}

impl Fence {
    /// Why there is no fence now.
    pub(crate) fn why(&self) -> String {
        self.failure
            .borrow()
            .clone()
            .unwrap_or_else(|| "the target has not answered yet".into())
    }
}

/// Whether the path's session can carry a barrier.
fn can_fence(path: &Rc<Path>) -> bool {
    matches!(
        path.phase.get(),
        Phase::Serving | Phase::Proving | Phase::Identifying
    )
}

impl Inner {
    /// The ISIDs an earlier run recorded; they are fenced with the derived ones by the first
    /// `Op::Fence`, as are those that were told before and are not fenced yet.
    pub(crate) fn set_earlier(&self, recorded: Vec<(String, Isid)>) {
        let mut earlier = self.fence.earlier.borrow_mut();
        earlier.extend(recorded);
        earlier.sort_unstable();
        earlier.dedup();
        self.fence.is_earlier_done.set(false);
    }

    /// How the unit is fenced, once it is known.
    pub(crate) fn fencing(&self) -> Option<Fencing> {
        let unit = self.unit.borrow();
        let unit = unit.as_ref()?;
        Some(fencing(self.fence_policy(), unit))
    }

    pub(crate) fn fence_op(&self, ctx: IoCtx) -> Completion {
        if blockdev::mutation::off("mpath.fence") {
            self.drop_taints_of(|_| true);
            return Completion::ready(Ok(Done::Fenced));
        }
        let limit = Seq(self.next_seq.get());
        if self.fence.is_earlier_done.get() && self.is_settled(limit) {
            return Completion::ready(Ok(Done::Fenced));
        }
        let (promise, completion) = completion::pair();
        self.fence.waiters.borrow_mut().push(Waiter {
            promise,
            limit,
            since: self.rt.now(),
            deadline: ctx.deadline,
            stall_mark: self.sweep.stall(),
            is_served: false,
        });
        if ctx.deadline != Instant::FAR {
            self.sweep_by(ctx.deadline);
        }
        self.sweep_by(self.rt.now() + self.config.borrow().fence_timeout);
        self.demand_fence();
        completion
    }

    /// Whether nothing of an operation before `limit` is unanswered.
    fn is_settled(&self, limit: Seq) -> bool {
        !self.taints.borrow().any_before(limit)
            && !self
                .attempts
                .borrow()
                .iter()
                .any(|(_, a)| a.mutation.is_some() && a.op < limit)
    }

    /// Starts the fence unless it runs.
    pub(crate) fn demand_fence(&self) {
        if blockdev::mutation::off("mpath.fence") {
            return self.drop_taints_of(|_| true);
        }
        if self.is_closed.get() || self.fence.is_running.replace(true) {
            return;
        }
        let Some(me) = self.me.upgrade() else { return };
        self.rt.spawn(async move { me.run_fence().await });
    }

    fn is_fence_needed(&self) -> bool {
        !self.is_closed.get()
            && (self.do_waiters_need_a_barrier()
                || !self.held.borrow().is_empty()
                || self.fence.is_quiet_due.get())
    }

    fn do_waiters_need_a_barrier(&self) -> bool {
        let taints = self.taints.borrow();
        let waiters = self.fence.waiters.borrow();
        waiters
            .iter()
            .any(|w| !w.is_served || taints.any_before(w.limit))
    }

    /// A write has become unanswerable: whoever waits for its end needs a barrier after all.
    pub(crate) fn mind_fence_waiters(&self) {
        if self.do_waiters_need_a_barrier() {
            self.demand_fence();
        }
    }

    async fn run_fence(self: Rc<Self>) {
        let mut pause = RETRY_FIRST;
        let mut is_told = false;
        while self.is_fence_needed() {
            let object = self.name();
            if !is_told {
                let count = self.taints.borrow().len();
                let text = format!("{count} unanswered writes");
                self.news
                    .state("fence_started", object.clone(), text, false);
            }
            let limit = Seq(self.next_seq.get());
            match self.round().await {
                Ok(what) => {
                    for waiter in self.fence.waiters.borrow_mut().iter_mut() {
                        waiter.is_served |= waiter.limit <= limit;
                    }
                    self.fence.rounds.set(self.fence.rounds.get() + 1);
                    self.fence.is_quiet_due.set(false);
                    *self.fence.failure.borrow_mut() = None;
                    self.news.state("fence_done", object, what, false);
                    is_told = false;
                    self.settle_fence_waiters();
                    self.release_held();
                    if self.is_fence_needed() {
                        self.rt.sleep(pause).await;
                        pause = (pause * 2).min(RETRY_MAX);
                    }
                }
                Err(why) => {
                    if self.fence.failure.borrow().as_ref() != Some(&why) {
                        self.news.state("fence_failed", object, why.clone(), true);
                    }
                    *self.fence.failure.borrow_mut() = Some(why);
                    is_told = true;
                    self.rt.sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
        self.fence.is_running.set(false);
        if !self.taints.borrow().is_empty() {
            // Nobody asks any more; what is left is due after its quiet.
            self.sweep_by(self.tainted_at.get() + QUIET_BEFORE_FENCE);
        }
    }

    async fn round(self: &Rc<Self>) -> Result<String, String> {
        let (path, live) = self.clean_fence_path().await?;
        self.fence.only.set(Some(path.index));
        let result = self.round_on(&path, &live).await;
        self.fence.only.set(None);
        self.fence.is_assuming.set(false);
        result
    }

    /// A live session without taints of its own.
    async fn clean_fence_path(&self) -> Result<(Rc<Path>, Live), String> {
        loop {
            let (path, live) = self.fence_path().await?;
            let is_clean = !self.is_tainted(live.epoch);
            if is_clean || blockdev::mutation::off("mpath.relogin-before-barrier") {
                return Ok((path, live));
            }
            let cause = PathCause::Administrative("closed by a fence");
            self.path_lost(&path, live.epoch, &cause);
            // The others stay meanwhile: they know whether the unit kept its cache.
            let deadline = self.rt.now() + RELOGIN;
            while !self.has_clean_session() {
                let seen = self.changed.seen();
                if self
                    .rt
                    .by(deadline, self.changed.since(seen))
                    .await
                    .is_err()
                {
                    break;
                }
            }
        }
    }

    fn is_tainted(&self, epoch: u64) -> bool {
        self.taints.borrow().iter().any(|(_, t)| t.epoch == epoch)
    }

    fn has_clean_session(&self) -> bool {
        let paths = self.all_paths();
        let mut live = paths.iter().filter(|p| can_fence(p));
        live.any(|p| p.epoch().is_some_and(|epoch| !self.is_tainted(epoch)))
    }

    /// A live session to send the barrier on; waits until there is one.
    async fn fence_path(&self) -> Result<(Rc<Path>, Live), String> {
        loop {
            let seen = self.changed.seen();
            let best = self
                .all_paths()
                .into_iter()
                .filter(can_fence)
                .filter_map(|p| p.live().map(|live| (p, live)))
                .filter(|(_, live)| live.session.is_alive())
                .min_by_key(|(p, live)| {
                    let has_taint = self.is_tainted(live.epoch);
                    // Commands go there alone meanwhile: it should be one that takes them.
                    let refuses = !p.access.serves();
                    (
                        p.suspect.get(),
                        refuses,
                        has_taint,
                        !p.is_serving(),
                        p.index,
                    )
                });
            if let Some(found) = best {
                return Ok(found);
            }
            if self.is_closed.get() {
                return Err("the device is closed".into());
            }
            *self.fence.failure.borrow_mut() = Some("no path is up".into());
            self.changed.since(seen).await;
        }
    }

    async fn round_on(self: &Rc<Self>, on: &Rc<Path>, live: &Live) -> Result<String, String> {
        let fencing = self.fencing().ok_or("the unit is not known yet")?;
        let relogin = !blockdev::mutation::off("mpath.relogin-before-barrier");
        self.close_unanswered(on).await;
        if relogin && self.fences_by_key() {
            let is_first = !self.fence.is_earlier_done.get();
            self.preempt(on, live, is_first).await?;
        } else if relogin {
            for path in self.all_paths() {
                if !path.stale.borrow().is_empty() {
                    self.reinstate(&path, on, live, fencing).await?;
                }
            }
            if !self.fence.is_earlier_done.get() {
                self.reinstate_earlier(on, live, fencing).await?;
            }
        }
        // Only sessions that are closed and reinstated by now are proven dead by the barrier.
        let open: Vec<u64> = self
            .all_paths()
            .iter()
            .flat_map(|p| {
                let stale = p.stale.borrow().clone();
                let stale = if relogin { stale } else { Vec::new() };
                p.epoch().into_iter().chain(stale)
            })
            .collect();
        let next_epoch = self.next_epoch.get();
        let what = match fencing.barrier {
            Barrier::LunReset => self.lun_reset(on, live, fencing.ends_commands).await?,
            Barrier::OrderedTestUnitReady => self.ordered_barrier(on, live).await?,
            Barrier::Time => self.assume().await?,
        };
        self.drop_taints_of(|epoch| epoch < next_epoch && !open.contains(&epoch));
        self.fence.earlier.take();
        self.fence.is_earlier_done.set(true);
        Ok(format!("{what}, grade {}", fencing.grade.as_str()))
    }

    /// Rule 2: closes every other session with unanswered commands, after a moment to drain for
    /// those that only have healthy work under way.
    async fn close_unanswered(&self, on: &Rc<Path>) {
        let others: Vec<Rc<Path>> = self
            .all_paths()
            .into_iter()
            .filter(|p| p.index != on.index && p.live().is_some())
            .collect();
        let until = self.rt.now() + FENCE_DRAIN;
        loop {
            let mut is_draining = false;
            for path in &others {
                let Some(live) = path.live() else { continue };
                let is_tainted = self.is_tainted(live.epoch);
                let is_idle = !self
                    .attempts
                    .borrow()
                    .iter()
                    .any(|(_, a)| a.live.epoch == live.epoch);
                if is_idle && !is_tainted {
                    continue;
                }
                if is_tainted || path.suspect.get() || self.rt.now() >= until {
                    let cause = PathCause::Administrative("closed by a fence");
                    self.path_lost(path, live.epoch, &cause);
                } else {
                    is_draining = true;
                }
            }
            if !is_draining {
                return;
            }
            self.rt.sleep(Duration::from_millis(2)).await;
        }
    }

    /// Logs in under the ISID of a path whose sessions ended with unanswered commands.
    async fn reinstate(
        &self,
        path: &Rc<Path>,
        on: &Rc<Path>,
        live: &Live,
        fencing: Fencing,
    ) -> Result<(), String> {
        if path.live().is_some() {
            return Ok(());
        }
        // One owner per ISID: the path's own recovery gives way (rule 6).
        path.reserved.set(true);
        path.signal.notify();
        while path.logging_in.get() {
            let seen = self.changed.seen();
            self.changed.since(seen).await;
        }
        let result = if path.live().is_some() {
            Ok(())
        } else {
            self.reinstate_as(path, on, live, fencing).await
        };
        path.reserved.set(false);
        path.signal.notify();
        result
    }

    async fn reinstate_as(
        &self,
        path: &Rc<Path>,
        on: &Rc<Path>,
        live: &Live,
        fencing: Fencing,
    ) -> Result<(), String> {
        let is_reached_here = path.name.target == on.name.target
            && (fencing.any_portal || self.is_same_group(path, live));
        let login = if is_reached_here {
            let who = LoginAs::Recorded {
                initiator_name: self.config.borrow().initiator_name.clone(),
                isid: path.isid,
            };
            self.fence_login(on, who, fencing).await
        } else {
            path.is_way_back.set(false);
            let deadline = self.rt.now() + self.config.borrow().login_timeout;
            let login = path.port.login(LoginAs::Own, deadline);
            path.unless(|| path.is_way_back.get(), login)
                .await
                .unwrap_or_else(|| Err(LoginError::Unreachable("the way is back".into())))
        };
        match login {
            Ok(session) => {
                path.reinstated();
                let at = self.rt.now() + Duration::from_secs(1);
                let bye = session.logout(at);
                self.rt.spawn(async move {
                    bye.await;
                    drop(session);
                });
                Ok(())
            }
            Err(error) => Err(format!(
                "no login under the ISID of {}: {error}",
                path.name.portal
            )),
        }
    }

    /// Logs in through the portal of a live path, as somebody whose commands must end. On LIO the
    /// answer waits for the back end, and the login has no deadline of its own (rule 5). It ends with
    /// the session of `by`: the same network carries both, and nobody else would tell that it is gone.
    async fn fence_login(
        &self,
        by: &Rc<Path>,
        who: LoginAs,
        fencing: Fencing,
    ) -> Result<Rc<dyn PathSession>, LoginError> {
        let deadline = if fencing.barrier == Barrier::OrderedTestUnitReady {
            Instant::FAR
        } else {
            self.rt.now() + self.config.borrow().login_timeout
        };
        let epoch = by.epoch();
        let login = by.port.login(who, deadline);
        by.unless(|| by.epoch() != epoch, login)
            .await
            .unwrap_or_else(|| {
                let text = format!("{} was lost meanwhile", by.name.portal);
                Err(LoginError::Unreachable(text))
            })
    }

    /// An unknown group is another group: a login in the wrong one ends nothing, and succeeds.
    fn is_same_group(&self, path: &Path, live: &Live) -> bool {
        path.portal_group() == Some(live.session.identity().portal_group)
    }

    /// One live path per portal group in which an earlier session may have been.
    fn path_of_each_group(&self, on: &Rc<Path>, fencing: Fencing) -> Result<Vec<Rc<Path>>, String> {
        if fencing.any_portal {
            return Ok(vec![on.clone()]);
        }
        let mut ways: Vec<(Option<u16>, Rc<Path>)> = Vec::new();
        for path in self.all_paths() {
            if path.phase.get() == Phase::Removed {
                continue;
            }
            let group = path.portal_group();
            if group.is_none() {
                let portal = &path.name.portal;
                return Err(format!("the portal group of {portal} is not known"));
            }
            match ways.iter_mut().find(|(g, _)| *g == group) {
                Some((_, way)) if way.live().is_none() => *way = path,
                Some(_) => {}
                None => ways.push((group, path)),
            }
        }
        match ways.iter().find(|(_, way)| way.live().is_none()) {
            Some((_, way)) => Err(format!(
                "no path is up in the portal group of {}",
                way.name.portal
            )),
            None => Ok(ways.into_iter().map(|(_, way)| way).collect()),
        }
    }

    /// Rule 7: the derived ISIDs of all paths and those recorded by the previous run or owner.
    async fn reinstate_earlier(
        &self,
        on: &Rc<Path>,
        live: &Live,
        fencing: Fencing,
    ) -> Result<(), String> {
        for path in self.all_paths() {
            if !path.has_logged_in.get() {
                self.reinstate(&path, on, live, fencing).await?;
            }
        }
        let recorded = self.fence.earlier.borrow().clone();
        let own = self.config.borrow().initiator_name.clone();
        for (initiator_name, isid) in recorded {
            let is_derived =
                initiator_name == own && self.paths.borrow().iter().any(|p| p.isid == isid);
            if is_derived {
                continue;
            }
            for way in self.path_of_each_group(on, fencing)? {
                let who = LoginAs::Recorded {
                    initiator_name: initiator_name.clone(),
                    isid,
                };
                match self.fence_login(&way, who, fencing).await {
                    Ok(session) => session.abort(PathCause::Administrative("fence")),
                    Err(error) => return Err(format!("no login under a recorded ISID: {error}")),
                }
            }
        }
        Ok(())
    }

    async fn lun_reset(
        &self,
        on: &Rc<Path>,
        live: &Live,
        ends_commands: bool,
    ) -> Result<String, String> {
        let deadline = self.rt.now() + BARRIER_REPEAT;
        let reset = Control::LunReset { ends_commands };
        self.fence
            .resetting
            .set(Some(live.epoch).filter(|_| ends_commands));
        let answer = live.session.control(reset, deadline).await;
        self.fence.resetting.set(None);
        match answer {
            Ok(()) => Ok("LOGICAL UNIT RESET answered".into()),
            Err(ControlError::Late) => {
                // The reset is still out; only the end of its session makes room for another.
                let cause = PathCause::Administrative("LOGICAL UNIT RESET not answered");
                self.path_lost(on, live.epoch, &cause);
                Err("LOGICAL UNIT RESET not answered".into())
            }
            Err(error) => Err(format!("LOGICAL UNIT RESET: {error}")),
        }
    }

    async fn ordered_barrier(&self, on: &Rc<Path>, live: &Live) -> Result<String, String> {
        let mut attentions = 0;
        loop {
            let deadline = self.rt.now() + BARRIER_REPEAT;
            let ctx = IoCtx::metadata();
            let (_, answer) = live.session.submit(Command::OrderedTestUnitReady, ctx);
            match within(&self.rt, deadline, answer).await {
                Some(Ok(_)) => return Ok("ordered TEST UNIT READY answered".into()),
                Some(Err(CommandError::Status { .. })) if attentions < ATTENTIONS_MAX => {
                    attentions += 1;
                }
                Some(Err(error)) => return Err(format!("ordered TEST UNIT READY: {error}")),
                None => {
                    let cause = PathCause::Administrative("ordered barrier not answered");
                    self.path_lost(on, live.epoch, &cause);
                    return Err("ordered TEST UNIT READY not answered".into());
                }
            }
        }
    }

    /// Whether a command of the session of `epoch` that ends now as TASK ABORTED was ended by a reset
    /// of our own. The session ends what began to leave before the reset when that is answered
    /// (RFC 7143 §4.2.3.3).
    pub(crate) fn is_own_reset(&self, epoch: u64) -> bool {
        self.fence.resetting.get() == Some(epoch)
    }

    /// Grade `none`: nothing proves anything, so no new write for `fence_assume`.
    async fn assume(&self) -> Result<String, String> {
        let time = self.config.borrow().fence_assume;
        *self.fence.failure.borrow_mut() =
            Some(format!("the target proves nothing; assumed after {time:?}"));
        self.fence.is_assuming.set(true);
        self.rt.sleep(time).await;
        self.fence.is_assuming.set(false);
        let text = format!("no proof from this target; assumed after {time:?} without a write");
        self.news.state("fence_assumed", self.name(), text, true);
        Ok("assumed".into())
    }

    fn drop_taints_of(&self, is_dead: impl Fn(u64) -> bool) {
        let dead: Vec<TaintId> = {
            let taints = self.taints.borrow();
            let dead = taints.iter().filter(|(_, t)| is_dead(t.epoch));
            dead.map(|(id, _)| id).collect()
        };
        for id in dead {
            self.taints.borrow_mut().remove(id);
        }
        self.release_held();
    }

    /// Answers those whose taints are gone.
    pub(crate) fn settle_fence_waiters(&self) {
        if !self.fence.is_earlier_done.get() || self.fence.waiters.borrow().is_empty() {
            return;
        }
        let waiters = std::mem::take(&mut *self.fence.waiters.borrow_mut());
        let (done, left): (Vec<Waiter>, Vec<Waiter>) =
            waiters.into_iter().partition(|w| self.is_settled(w.limit));
        self.fence.waiters.borrow_mut().extend(left);
        for waiter in done {
            waiter.promise.complete(Ok(Done::Fenced));
        }
    }

    /// Tells waiters that there is no fence within `fence_timeout`; yields when the next is due.
    pub(crate) fn fence_waiters_late(&self, now: Instant) -> Option<Instant> {
        let timeout = self.config.borrow().fence_timeout;
        let why = self.fence.why();
        let kind = Kind::Refused(Refusal::NoFence(why));
        self.fail_waiters(now, kind, |w| w.since + timeout)
    }

    /// The same for those whose own deadline passes.
    pub(crate) fn fence_waiters_past_deadline(&self, now: Instant) -> Option<Instant> {
        self.fail_waiters(now, Kind::Late, |w| w.deadline)
    }

    fn fail_waiters(
        &self,
        now: Instant,
        kind: Kind,
        until: impl Fn(&Waiter) -> Instant,
    ) -> Option<Instant> {
        if self.fence.waiters.borrow().is_empty() {
            return None;
        }
        let stall = self.sweep.stall();
        let until = |w: &Waiter| until(w) + stall.saturating_sub(w.stall_mark);
        let waiters = std::mem::take(&mut *self.fence.waiters.borrow_mut());
        let (late, left): (Vec<Waiter>, Vec<Waiter>) =
            waiters.into_iter().partition(|w| until(w) <= now);
        let next = left.iter().map(until).min();
        self.fence.waiters.borrow_mut().extend(left);
        for waiter in late {
            let error = IoError::unknown(kind.clone());
            waiter.promise.complete(Err(error));
        }
        next
    }

    /// Answers everyone with `Closed` when the device goes away.
    pub(crate) fn close_fence(&self) {
        let waiters = std::mem::take(&mut *self.fence.waiters.borrow_mut());
        for waiter in waiters {
            let error = IoError::unknown(Kind::Closed);
            waiter.promise.complete(Err(error));
        }
    }

    /// The grade shown to operators.
    pub(crate) fn grade(&self) -> FenceGrade {
        self.fencing().map_or(FenceGrade::None, |f| f.grade)
    }
}
