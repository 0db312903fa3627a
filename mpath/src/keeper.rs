//! One task per path: logs in, proves that the path may serve, watches it, and begins again.
//!
//! A new session serves only after
//! - its WWID and block size are those of the device (a mismatching path is `Misconfigured` and
//!   asked again slowly),
//! - after a failure: 4 KiB of ping data and an 8 KiB read came back, so that a network that drops
//!   large frames does not pass,
//! - the owner's gate admitted it (P11),
//! - the unit is known to have kept its cache since its last session, or `CacheLost` was raised
//!   (rule 10: only a session older than the gap vouches, by answering a command sent after the
//!   new login; otherwise the others are closed first).

use crate::access::TRANSITION_POLL;
use crate::checker::check;
use crate::classify::{classify, Verdict};
use crate::config::{PROBATION_ASK, PROBATION_SILENCE, SILENT_MAX};
use crate::inner::Inner;
use crate::path::{Checker, Live, Path, Phase};
use crate::sweep::{alive, within};
use blockdev::path::{
    Command, CommandError, Control, ControlError, LoginAs, LoginError, PathSession, SessionEvent,
    UnitIdentity,
};
use blockdev::rt::Sleep;
use blockdev::{
    Admission, Event, Geometry, Instant, IoCtx, IoError, IoVec, Kind, LocalFuture, PathCause,
    ReadSectors, Refusal, Rt,
};
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

/// First pause between logins; doubles up to the second value.
const LOGIN_PAUSE: Duration = Duration::from_millis(100);
const LOGIN_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Pause after a refusal that only an operator can cure.
const MISCONFIGURED_PAUSE: Duration = Duration::from_secs(30);
/// Size of the ping of an earned return, in bytes, and of its read, in sectors.
const RETURN_PING_BYTES: usize = 4096;
const RETURN_READ_SECTORS: u64 = 16;
/// How long the answer to a logout may take that leaves at the last moment.
const LOGOUT_ANSWER: Duration = Duration::from_millis(500);
/// Attentions in a row that are believed to be news and not a fault.
const ATTENTIONS_MAX: u32 = 8;
/// Why a path leaves that is told to.
const TARGET_WANTS: &str = "the target asked for a logout";

/// Why a session does not serve.
pub(crate) enum Unfit {
    /// Not the device, or not ours: only an operator can help.
    Misconfigured(String),
    /// Lost or unanswered meanwhile.
    Lost(PathCause),
}

/// What wakes the watch over a session.
enum Wake {
    News(SessionEvent),
    Signal,
    CheckDue,
    Checked(bool),
}

/// The task of `path`; ends when the device or the path is gone.
pub(crate) async fn keep(device: Weak<Inner>, path: Rc<Path>, rt: Rt) {
    let mut pause = LOGIN_PAUSE;
    loop {
        let Some(inner) = alive(&device) else { return };
        let seen = path.signal.seen();
        match path.phase.get() {
            Phase::Removed => return,
            Phase::Down => {
                drop(inner);
                path.signal.since(seen).await;
                continue;
            }
            _ if path.reserved.get() => {
                drop(inner);
                path.signal.since(seen).await;
                continue;
            }
            _ => {}
        }
        if path.is_way_back.take() {
            pause = LOGIN_PAUSE;
        }
        let result = log_in(&inner, &path, &rt).await;
        let wait = match result {
            None => continue,
            Some(Ok(session)) => match inner.take_up(&path, session).await {
                Ok(live) => {
                    pause = LOGIN_PAUSE;
                    inner.measure(&path, &live);
                    drop(inner);
                    watch(&device, &path, &live, &rt).await;
                    continue;
                }
                Err(Unfit::Misconfigured(text)) => {
                    path.note_error(text);
                    path.set_misconfigured();
                    MISCONFIGURED_PAUSE
                }
                Err(Unfit::Lost(cause)) => {
                    path.note_error(cause.to_string());
                    pause
                }
            },
            Some(Err(error)) => {
                path.note_error(error.to_string());
                match error {
                    LoginError::Misconfigured(_) | LoginError::Refused(_) => {
                        path.set_misconfigured();
                        path.checker.set(Checker::Disconnected);
                        MISCONFIGURED_PAUSE
                    }
                    LoginError::Unreachable(_)
                    | LoginError::NotReady(_)
                    | LoginError::Protocol(_) => {
                        path.checker.set(Checker::Faulty);
                        pause
                    }
                }
            }
        };
        inner.changed.notify();
        drop(inner);
        pause = (pause * 2).min(LOGIN_PAUSE_MAX);
        let seen = path.signal.seen();
        let jitter = Duration::from_nanos(rt.random() % (wait.as_nanos() as u64 / 8).max(1));
        sleep_or_signal(&rt, &path, seen, wait + jitter).await;
        if path.phase.get() == Phase::Misconfigured {
            path.phase.set(Phase::Connecting);
        }
    }
}

/// One login; `None` if it was called off (fence, operator, a way that is back, end).
async fn log_in(
    inner: &Rc<Inner>,
    path: &Rc<Path>,
    rt: &Rt,
) -> Option<Result<Rc<dyn PathSession>, LoginError>> {
    path.phase.set(Phase::Connecting);
    path.logging_in.set(true);
    let deadline = rt.now() + inner.config.borrow().login_timeout;
    let login = path.port.login(LoginAs::Own, deadline);
    let is_off = || {
        path.reserved.get()
            || path.is_way_back.get()
            || inner.is_closed.get()
            || matches!(path.phase.get(), Phase::Down | Phase::Removed)
    };
    let result = path.unless(is_off, login).await;
    path.logging_in.set(false);
    inner.changed.notify();
    result
}

async fn sleep_or_signal(rt: &Rt, path: &Path, seen: u64, time: Duration) {
    let mut sleep = rt.sleep(time);
    poll_fn(|cx| {
        if path.signal.poll_since(seen, cx).is_ready() {
            return Poll::Ready(());
        }
        Pin::new(&mut sleep).poll(cx).map(|_| ())
    })
    .await;
}

/// Watches a serving session until it is gone.
async fn watch(device: &Weak<Inner>, path: &Rc<Path>, live: &Live, rt: &Rt) {
    // Asked for each time: a reload changes them under a session that lives on.
    let intervals = |inner: &Inner| {
        let config = inner.config.borrow();
        (config.polling_interval, config.max_polling_interval)
    };
    let Some(mut interval) = alive(device).map(|inner| intervals(&inner).0) else {
        return;
    };
    let check_after = |time: Duration| {
        path.check_due.set((rt.now() + time, time));
        rt.sleep(time)
    };
    let mut sleep: Sleep = check_after(interval);
    let mut checking: Option<LocalFuture<bool>> = None;
    let mut seen = path.signal.seen();
    loop {
        if path.epoch() != Some(live.epoch) {
            return;
        }
        if path.access.is_transitioning() && checking.is_none() {
            sleep = check_after(TRANSITION_POLL.min(interval));
        }
        let Some(inner) = alive(device) else { return };
        if path.phase.get() == Phase::Identifying {
            if let Err(unfit) = inner.identify_again(path, live).await {
                return inner.unfit(path, live, &unfit);
            }
        }
        if path.wants_access.take() {
            inner.look_at_access(path, live).await;
        }
        drop(inner);
        let wake = poll_fn(|cx| {
            if let Poll::Ready(event) = live.session.poll_event(cx) {
                return Poll::Ready(Wake::News(event));
            }
            if path.signal.poll_since(seen, cx).is_ready() {
                return Poll::Ready(Wake::Signal);
            }
            match &mut checking {
                Some(check) => check.as_mut().poll(cx).map(Wake::Checked),
                None => Pin::new(&mut sleep).poll(cx).map(|_| Wake::CheckDue),
            }
        })
        .await;
        seen = path.signal.seen();
        let Some(inner) = alive(device) else { return };
        match wake {
            Wake::Signal => {}
            Wake::News(event) => inner.session_news(path, live, event),
            Wake::CheckDue => {
                let check = check(device.clone(), path.clone(), live.clone(), interval);
                checking = Some(Box::pin(check));
            }
            Wake::Checked(is_good) => {
                checking = None;
                if is_good {
                    inner.note_good_check(path);
                }
                inner.look_at_access(path, live).await;
                inner.measure(path, live);
                let (first, max) = intervals(&inner);
                interval = if is_good {
                    (interval * 2).min(max)
                } else {
                    first
                };
                sleep = check_after(interval);
            }
        }
    }
}

impl Inner {
    /// A fresh session becomes the path's, and serves if it may.
    async fn take_up(
        self: &Rc<Self>,
        path: &Rc<Path>,
        session: Rc<dyn PathSession>,
    ) -> Result<Live, Unfit> {
        let epoch = self.next_epoch.get();
        self.next_epoch.set(epoch + 1);
        let live = Live { session, epoch };
        path.phase.set(Phase::Proving);
        path.attach(live.clone());
        self.changed.notify();
        match self.prove(path, &live).await {
            Ok(()) => {
                self.begin_service(path);
                Ok(live)
            }
            Err(unfit) => {
                self.unfit(path, &live, &unfit);
                Err(unfit)
            }
        }
    }

    /// Closes a session that may not serve.
    fn unfit(&self, path: &Rc<Path>, live: &Live, unfit: &Unfit) {
        let cause = match unfit {
            Unfit::Misconfigured(text) => {
                if path.last_error.borrow().as_ref() != Some(text) {
                    let object = path.object(&self.name());
                    self.news.state("path_failed", object, text.clone(), true);
                }
                PathCause::Administrative("not the configured unit")
            }
            Unfit::Lost(cause) => cause.clone(),
        };
        self.path_lost(path, live.epoch, &cause);
        if let Unfit::Misconfigured(text) = unfit {
            path.note_error(text.clone());
        }
    }

    async fn prove(&self, path: &Rc<Path>, live: &Live) -> Result<(), Unfit> {
        let identity = live.session.identity();
        self.verify(path, &identity)?;
        let deadline = self.rt.now() + self.config.borrow().login_timeout;
        if path.has_failed() {
            self.earn_return(live, &identity, deadline).await?;
        }
        self.register_key(path, live).await?;
        let gate = self.gate.borrow().as_ref().and_then(Weak::upgrade);
        if let Some(gate) = gate {
            self.admit(live, gate).await?;
        }
        self.vouch(path, live, &identity).await?;
        self.look_at_access(path, live).await;
        // An operator may have taken it down meanwhile.
        let is_wanted = path.phase.get() == Phase::Proving;
        if is_wanted && path.epoch() == Some(live.epoch) && live.session.is_alive() {
            Ok(())
        } else {
            let cause = PathCause::Connection("lost before it could serve".into());
            Err(Unfit::Lost(cause))
        }
    }

    /// Whether this is the device's unit; the first path of all says which that is.
    fn verify(&self, path: &Rc<Path>, identity: &Rc<UnitIdentity>) -> Result<(), Unfit> {
        let unit = self.unit.borrow().clone();
        let configured = self.config.borrow().wwid.clone();
        let expected = configured.or_else(|| unit.as_ref().and_then(|u| u.wwid.clone()));
        let show = |w: &Option<String>| w.clone().unwrap_or_else(|| "none".into());
        if expected.is_some() && identity.wwid != expected {
            return Err(Unfit::Misconfigured(format!(
                "WWID is {}, not {}",
                show(&identity.wwid),
                show(&expected)
            )));
        }
        if let Some(unit) = &unit {
            if unit.wwid.is_none() && (identity.wwid.is_some() || identity.serial != unit.serial) {
                return Err(Unfit::Misconfigured(format!(
                    "another unit: serial {:?}, not {:?}",
                    identity.serial, unit.serial
                )));
            }
            let block = identity.geometry.logical_block_bytes;
            if block != unit.geometry.logical_block_bytes {
                return Err(Unfit::Misconfigured(format!(
                    "logical blocks of {block} bytes, not {}",
                    unit.geometry.logical_block_bytes
                )));
            }
        }
        self.fit(identity).map_err(Unfit::Misconfigured)?;
        if unit.is_none() {
            *self.unit.borrow_mut() = Some(identity.clone());
            self.geometry.set(identity.geometry);
        }
        *path.identity.borrow_mut() = Some(identity.clone());
        self.regroup();
        self.merge_geometry();
        Ok(())
    }

    /// What all paths agree on; a change is told, and takes effect when it is taken.
    pub(crate) fn merge_geometry(&self) {
        let merged = self
            .all_paths()
            .iter()
            .filter(|p| p.live().is_some())
            .filter_map(|p| p.identity.borrow().as_ref().map(|i| i.geometry))
            .reduce(|a, b| Geometry {
                sectors: a.sectors.min(b.sectors),
                max_transfer_sectors: a.max_transfer_sectors.min(b.max_transfer_sectors),
                write_cache: a.write_cache || b.write_cache,
                fua: a.fua && b.fua,
                discard: a.discard && b.discard,
                discard_zeroes: a.discard_zeroes && b.discard_zeroes,
                ..a
            });
        let Some(mut merged) = merged else { return };
        merged.fua &= !self.fua_refused.get();
        if self.told_geometry.replace(merged) != merged {
            let is_first = self.all_paths().iter().all(|p| !p.is_serving());
            if is_first && self.geometry.get().sectors == merged.sectors {
                // Nobody has relied on it yet.
                self.geometry.set(merged);
            } else {
                self.news.push(Event::Changed(merged));
            }
        }
    }

    async fn earn_return(
        &self,
        live: &Live,
        identity: &UnitIdentity,
        deadline: Instant,
    ) -> Result<(), Unfit> {
        let ping = Control::Ping {
            bytes: RETURN_PING_BYTES,
        };
        if let Err(error) = live.session.control(ping, deadline).await {
            let text = format!("4 KiB of ping data did not come back: {error}");
            return Err(Unfit::Lost(PathCause::Connection(text)));
        }
        let sectors = identity.geometry.sectors.min(RETURN_READ_SECTORS) as u32;
        let read = read_patiently(&live.session, blockdev::Sector(0), sectors);
        let lost = |text: String| Err(Unfit::Lost(PathCause::Connection(text)));
        match within(&self.rt, deadline, read).await {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => match classify(&error) {
                Verdict::Lost { .. } | Verdict::Withdrawn | Verdict::OnceThenOtherPath(_) => {
                    lost(format!("reading 8 KiB: {error}"))
                }
                // What its port group does not admit now is asked for next.
                Verdict::OtherPath(PathCause::Unit(0x02, 0x04, 0x0A..=0x0C)) => Ok(()),
                Verdict::OtherPath(cause) => lost(format!("reading 8 KiB: {cause}")),
                // The unit's own verdict (unreadable, busy, not ready) says that the way is good.
                _ => Ok(()),
            },
            None => lost("8 KiB did not come back".to_string()),
        }
    }

    async fn admit(&self, live: &Live, gate: Rc<dyn Admission>) -> Result<(), Unfit> {
        let session: Rc<dyn ReadSectors> = Rc::new(OneSession(live.session.clone()));
        match gate.admit(session).await {
            Ok(()) => Ok(()),
            Err(error) => {
                if matches!(error.kind, Kind::Refused(Refusal::NotOwner)) {
                    self.bar(&error);
                    return Err(Unfit::Misconfigured(error.to_string()));
                }
                let text = format!("not admitted: {error}");
                Err(Unfit::Lost(PathCause::Connection(text)))
            }
        }
    }

    /// Another node owns the unit: nothing is ever written here again.
    fn bar(&self, error: &IoError) {
        if self.barred.borrow().is_some() {
            return;
        }
        *self.barred.borrow_mut() = Some(error.clone());
        let text = error.to_string();
        self.news.state("claim_lost", self.name(), text, true);
        self.fail_everything(&error.kind);
    }

    /// Rule 10.
    async fn vouch(
        &self,
        path: &Rc<Path>,
        live: &Live,
        identity: &UnitIdentity,
    ) -> Result<(), Unfit> {
        let has_cache = identity.geometry.write_cache || self.geometry.get().write_cache;
        if !has_cache || self.cache.answered.get() == self.cache.flushed.get() {
            return Ok(());
        }
        // Every serving session was itself vouched for, or began after a loss was raised, so any
        // of them that still answers proves that the unit never went away.
        let older: Vec<(Rc<Path>, Live)> = self
            .all_paths()
            .into_iter()
            .filter(|p| p.index != path.index)
            .filter(|p| matches!(p.phase.get(), Phase::Serving | Phase::Identifying))
            .filter_map(|p| p.live().map(|l| (p, l)))
            .collect();
        let asked: Vec<_> = older
            .iter()
            .map(|(_, l)| {
                l.session
                    .submit(Command::TestUnitReady, IoCtx::metadata())
                    .1
            })
            .collect();
        let deadline = self.rt.now() + crate::config::VOUCH;
        let mut has_survivor = false;
        for answer in asked {
            let answer = within(&self.rt, deadline, answer).await;
            // Any status is an answer of the unit; a lost session is not.
            has_survivor |= matches!(answer, Some(Ok(_) | Err(CommandError::Status { .. })));
        }
        if has_survivor || path.epoch() != Some(live.epoch) {
            return Ok(());
        }
        for (other, session) in older {
            let cause = PathCause::Administrative("the unit may have lost its cache");
            self.path_lost(&other, session.epoch, &cause);
        }
        self.raise_cache_lost();
        Ok(())
    }

    /// Whether it alone serves of the best group that has a path.
    fn is_first_of_best_group(&self, path: &Rc<Path>) -> bool {
        let (groups, paths) = (self.groups.borrow(), self.paths.borrow());
        let serves = |i: &&usize| paths[**i].is_serving();
        let best = groups.iter().find(|g| g.order.iter().any(|i| serves(&i)));
        best.is_some_and(|g| g.order.iter().filter(serves).eq([&path.index]))
    }

    fn begin_service(&self, path: &Rc<Path>) {
        let now = self.rt.now();
        path.phase.set(Phase::Serving);
        self.regroup();
        self.join_selector(path);
        if self.is_first_of_best_group(path) {
            self.follows.set(true);
        }
        path.last_ok.set(now);
        path.checker.set(Checker::Ready);
        if path.returns_from_failure(now) {
            self.note_return(path);
            self.delay_failback();
            self.watch_probation(path);
        }
        if path.counters.get().logins > 1 || path.has_failed() {
            let object = path.object(&self.name());
            self.news
                .state("path_reinstated", object, "logged in again".into(), false);
        }
        self.mind_ways();
        self.changed.notify();
        self.release_queued();
    }

    /// Asks a path on probation for signs of life: it takes no I/O, so that a cut that comes and goes
    /// would not be noticed, and the path taken for sound in between.
    fn watch_probation(&self, path: &Rc<Path>) {
        let Some(live) = path.live() else { return };
        let (device, path, rt) = (self.me.clone(), path.clone(), self.rt.clone());
        self.rt.spawn(async move {
            loop {
                rt.sleep(PROBATION_ASK).await;
                let Some(inner) = alive(&device) else { return };
                let begun = rt.now();
                if path.epoch() != Some(live.epoch) || !path.is_on_probation(begun) {
                    return;
                }
                let stall = inner.sweep.stall();
                drop(inner);
                let ping = Control::Ping { bytes: 0 };
                let answer = live.session.control(ping, begun + SILENT_MAX).await;
                let Some(inner) = alive(&device) else { return };
                if path.epoch() != Some(live.epoch) {
                    return;
                }
                let waited = rt.now() - begun;
                let waited = waited.saturating_sub(inner.sweep.stall() - stall);
                if waited >= PROBATION_SILENCE || answer == Err(ControlError::Late) {
                    path.prolong_probation(rt.now());
                }
            }
        });
    }

    fn session_news(&self, path: &Rc<Path>, live: &Live, event: SessionEvent) {
        match event {
            SessionEvent::Lost(cause) => self.path_lost(path, live.epoch, &cause),
            SessionEvent::Attention(sense) => {
                if sense.deferred {
                    self.raise_cache_lost();
                } else if matches!((sense.asc, sense.ascq), (0x2A, 0x06 | 0x07)) {
                    path.wants_access.set(true);
                    path.signal.notify();
                } else if matches!((sense.asc, sense.ascq), (0x3F, 0x03 | 0x0E) | (0x2A, 0x09)) {
                    self.pause_to_identify(path);
                }
            }
            SessionEvent::Identity(identity) => {
                if let Err(unfit) = self.verify(path, &identity) {
                    self.unfit(path, live, &unfit);
                }
            }
            SessionEvent::LogoutRequested(within) => {
                let deadline = self.rt.now() + within + LOGOUT_ANSWER;
                self.leave(path, deadline, TARGET_WANTS);
            }
        }
    }

    /// A session gave a command back. If it drains, the path takes no more from now on: what was
    /// sent on it is still answered, and the news that say by when it must log out are on their way.
    pub(crate) fn mind_draining(&self, path: &Rc<Path>, live: &Live) {
        let is_current = path.epoch() == Some(live.epoch);
        if is_current && live.session.is_alive() && !live.session.takes_commands() {
            self.retire(path, TARGET_WANTS);
        }
    }

    /// Takes the path out of service; its session lives on.
    fn retire(&self, path: &Rc<Path>, why: &'static str) {
        if matches!(path.phase.get(), Phase::Serving | Phase::Identifying) {
            path.phase.set(Phase::Proving);
            path.note_error(why);
            let object = path.object(&self.name());
            self.news.state("path_failed", object, why.into(), false);
            self.mind_ways();
        }
    }

    /// Takes the path out of service, lets its commands end, logs out, and logs in again.
    pub(crate) fn leave(&self, path: &Rc<Path>, deadline: Instant, why: &'static str) {
        let Some(live) = path.live() else { return };
        self.retire(path, why);
        let me = self.me.clone();
        let path = path.clone();
        self.rt.spawn(async move {
            live.session.logout(deadline).await;
            if let Some(inner) = me.upgrade() {
                inner.path_lost(&path, live.epoch, &PathCause::Administrative(why));
            }
        });
    }

    async fn identify_again(&self, path: &Rc<Path>, live: &Live) -> Result<(), Unfit> {
        let deadline = self.rt.now() + self.config.borrow().login_timeout;
        if let Err(error) = live.session.control(Control::Identify, deadline).await {
            let text = format!("could not be identified again: {error}");
            return Err(Unfit::Lost(PathCause::Connection(text)));
        }
        self.verify(path, &live.session.identity())?;
        if path.epoch() == Some(live.epoch) && path.phase.get() == Phase::Identifying {
            path.phase.set(Phase::Serving);
            self.release_queued();
        }
        Ok(())
    }
}

/// Reads; what only tells that something happened before (unit attentions, TASK ABORTED by a fence's
/// reset) is asked again.
async fn read_patiently(
    session: &Rc<dyn PathSession>,
    at: blockdev::Sector,
    sectors: u32,
) -> Result<IoVec, CommandError> {
    let mut attentions = 0;
    loop {
        let command = Command::Read { at, sectors };
        match session.submit(command, IoCtx::metadata()).1.await {
            Ok(done) => return Ok(done.into_data()),
            Err(error) => match classify(&error) {
                Verdict::Again | Verdict::Recheck | Verdict::Capacity
                    if attentions < ATTENTIONS_MAX =>
                {
                    attentions += 1;
                }
                _ => return Err(error),
            },
        }
    }
}

/// A session seen only as something to read.
struct OneSession(Rc<dyn PathSession>);

impl ReadSectors for OneSession {
    fn read(
        &self,
        at: blockdev::Sector,
        sectors: u32,
    ) -> blockdev::LocalFuture<Result<IoVec, IoError>> {
        let session = self.0.clone();
        Box::pin(async move {
            let read = read_patiently(&session, at, sectors).await;
            read.map_err(|error| {
                let kind = match classify(&error) {
                    Verdict::Medium(_) | Verdict::OnceThenMedium(_) => {
                        Kind::Medium { first_bad: at }
                    }
                    _ => Kind::Path(PathCause::Protocol(error.to_string())),
                };
                IoError::not_applied(kind)
            })
        })
    }
}
