//! One path: its port, its session if it has one, and what is known about its health.
//!
//! States: `Connecting` (no session, logging in again with back-off) → `Proving` (logged in:
//! WWID, pings, admission, cache) → `Serving` → back to `Connecting` when the session is lost.
//! `Identifying` is `Serving` with its I/O paused after a unit attention that says "another unit
//! may answer here now". `Misconfigured` and `Down` (operator) take no I/O until that is cured.
//!
//! A path whose session ended with unanswered commands keeps that session's epoch in `stale`
//! until its ISID has logged in again: only then is nothing of the old session still on its way.

use crate::access::Access;
use crate::marginal::Flakiness;
use crate::pace::Pace;
use crate::selector::{History, Load};
use crate::signal::Signal;
use blockdev::path::{Isid, PathName, PathPort, PathSession, UnitIdentity};
use blockdev::{Instant, LocalFuture};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Connecting,
    Proving,
    Serving,
    Identifying,
    Misconfigured,
    Down,
    Removed,
}

/// A session in use.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) session: Rc<dyn PathSession>,
    /// Counts the device's sessions; a later one has a higher epoch.
    pub(crate) epoch: u64,
}

/// How a path ranks for the next command; lower is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    Good,
    /// Answers far later than another path does.
    Slow,
    /// Failed recently: used only for want of a better one.
    Probation,
    /// Failed too often (`san_path_err_*`, `marginal_path_*`).
    Marginal,
    /// Something on it is overdue and nothing was heard since.
    Suspect,
    Unusable,
}

impl Standing {
    /// Those that take I/O, best first.
    pub(crate) const USABLE: [Standing; 5] = [
        Standing::Good,
        Standing::Slow,
        Standing::Probation,
        Standing::Marginal,
        Standing::Suspect,
    ];
}

/// The last checker result, in multipath's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checker {
    /// Not checked yet.
    #[default]
    Undef,
    /// In order.
    Ready,
    /// No session, or the unit refuses.
    Faulty,
    /// Overdue commands.
    Shaky,
    /// Reached, but standby.
    Ghost,
    /// A check is under way for long.
    Pending,
    /// A check was not answered.
    Timeout,
    /// Up again, on probation or kept back.
    Delayed,
    /// The unit is not there.
    Disconnected,
}

impl Checker {
    /// The word in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Checker::Undef => "undef",
            Checker::Ready => "ready",
            Checker::Faulty => "faulty",
            Checker::Shaky => "shaky",
            Checker::Ghost => "ghost",
            Checker::Pending => "pending",
            Checker::Timeout => "timeout",
            Checker::Delayed => "delayed",
            Checker::Disconnected => "disconnected",
        }
    }
}

/// I/O counters of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCounters {
    /// Reads answered.
    pub read_ios: u64,
    /// Writes answered.
    pub write_ios: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Times it failed.
    pub failures: u64,
    /// Times it logged in.
    pub logins: u64,
    /// Second attempts sent on it because another path was overdue.
    pub hedges: u64,
}

pub(crate) struct Path {
    pub(crate) index: usize,
    pub(crate) port: Rc<dyn PathPort>,
    pub(crate) name: PathName,
    pub(crate) isid: Isid,
    pub(crate) phase: Cell<Phase>,
    live: RefCell<Option<Live>>,
    pub(crate) identity: RefCell<Option<Rc<UnitIdentity>>>,
    /// Portal group tag told from outside (discovery, a claim).
    pub(crate) told_group: Cell<Option<u16>>,
    pub(crate) suspect: Cell<bool>,
    /// When the target was last asked for a sign of life.
    pub(crate) asked: Cell<Instant>,
    pub(crate) probation_until: Cell<Instant>,
    probation: Cell<Duration>,
    failed_at: Cell<Option<Instant>>,
    /// It failed since it last began to serve: a closure of our own is no failure.
    has_failed_since: Cell<bool>,
    pub(crate) in_flight: Cell<u32>,
    pub(crate) in_flight_bytes: Cell<u64>,
    /// Epochs that ended with unanswered commands and whose ISID has not logged in since.
    pub(crate) stale: RefCell<Vec<u64>>,
    /// The fence uses this path's ISID: its own recovery must not log in.
    pub(crate) reserved: Cell<bool>,
    pub(crate) logging_in: Cell<bool>,
    /// Its ISID has logged in during this run (so nothing of an earlier run is left on it).
    pub(crate) has_logged_in: Cell<bool>,
    pub(crate) checker: Cell<Checker>,
    /// While it serves: when its next check is due, and how long after the last one that is.
    pub(crate) check_due: Cell<(Instant, Duration)>,
    pub(crate) counters: Cell<PathCounters>,
    pub(crate) last_error: RefCell<Option<String>>,
    pub(crate) last_ok: Cell<Instant>,
    pub(crate) pace: Pace,
    pub(crate) flakiness: Flakiness,
    pub(crate) access: Access,
    /// Its port group's state is to be read again.
    pub(crate) wants_access: Cell<bool>,
    /// `path_latency`: what reads on it took on average, and whether that is being measured.
    pub(crate) latency: Cell<Option<Duration>>,
    pub(crate) is_measured: Cell<bool>,
    pub(crate) history: Cell<History>,
    pub(crate) signal: Signal,
    /// A login under way may hang in the network that was; another one will not.
    pub(crate) is_way_back: Cell<bool>,
}

impl Path {
    pub(crate) fn new(index: usize, port: Rc<dyn PathPort>) -> Rc<Path> {
        Rc::new(Path {
            index,
            name: port.name(),
            isid: port.isid(),
            port,
            phase: Cell::new(Phase::Connecting),
            live: RefCell::default(),
            identity: RefCell::default(),
            told_group: Cell::new(None),
            suspect: Cell::new(false),
            asked: Cell::new(Instant(0)),
            probation_until: Cell::new(Instant(0)),
            probation: Cell::new(Duration::ZERO),
            failed_at: Cell::new(None),
            has_failed_since: Cell::new(false),
            in_flight: Cell::new(0),
            in_flight_bytes: Cell::new(0),
            stale: RefCell::default(),
            reserved: Cell::new(false),
            logging_in: Cell::new(false),
            has_logged_in: Cell::new(false),
            checker: Cell::default(),
            check_due: Cell::new((Instant(0), Duration::ZERO)),
            counters: Cell::default(),
            last_error: RefCell::default(),
            last_ok: Cell::new(Instant(0)),
            pace: Pace::default(),
            flakiness: Flakiness::default(),
            access: Access::default(),
            wants_access: Cell::new(false),
            latency: Cell::new(None),
            is_measured: Cell::new(false),
            history: Cell::default(),
            signal: Signal::default(),
            is_way_back: Cell::new(false),
        })
    }

    pub(crate) fn live(&self) -> Option<Live> {
        self.live.borrow().clone()
    }

    /// Its portal group, as seen at a login of this run or told.
    pub(crate) fn portal_group(&self) -> Option<u16> {
        let seen = self.identity.borrow().as_ref().map(|i| i.portal_group);
        seen.or(self.told_group.get())
    }

    pub(crate) fn epoch(&self) -> Option<u64> {
        self.live.borrow().as_ref().map(|l| l.epoch)
    }

    /// A new session: its login ended whatever the old one had on its way.
    pub(crate) fn attach(&self, live: Live) {
        let before = self.live.borrow_mut().replace(live);
        assert!(before.is_none(), "one session a path");
        self.reinstated();
        self.suspect.set(false);
        self.pace.forget();
        self.count(|c| c.logins += 1);
    }

    /// Its ISID has logged in: what its older sessions left unanswered ends with the next barrier.
    pub(crate) fn reinstated(&self) {
        self.stale.borrow_mut().clear();
        self.has_logged_in.set(true);
    }

    /// Takes the session away if it is still that of `epoch`.
    pub(crate) fn detach(&self, epoch: u64) -> Option<Live> {
        let mut live = self.live.borrow_mut();
        if live.as_ref()?.epoch != epoch {
            return None;
        }
        live.take()
    }

    pub(crate) fn add_stale(&self, epoch: u64) {
        let mut stale = self.stale.borrow_mut();
        if !stale.contains(&epoch) {
            stale.push(epoch);
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed_at.get().is_some()
    }

    /// Notes a failure; the probation after the next login follows from its neighbours in time.
    pub(crate) fn note_failure(&self, now: Instant) {
        use crate::config::{FLAP_WINDOW, PROBATION, PROBATION_MAX};
        let is_flap = self
            .failed_at
            .get()
            .is_some_and(|before| now - before < FLAP_WINDOW);
        let next = if is_flap {
            (self.probation.get() * 2).min(PROBATION_MAX)
        } else {
            PROBATION
        };
        self.probation.set(next);
        self.failed_at.set(Some(now));
        self.has_failed_since.set(true);
        self.count(|c| c.failures += 1);
    }

    /// It serves again. If it had failed, that is true, and the probation this earned begins.
    pub(crate) fn returns_from_failure(&self, now: Instant) -> bool {
        let has_failed = self.has_failed_since.replace(false);
        if has_failed {
            self.probation_until.set(now + self.probation.get());
        }
        has_failed
    }

    pub(crate) fn is_on_probation(&self, now: Instant) -> bool {
        self.is_serving() && now < self.probation_until.get()
    }

    /// It was silent on its probation: that begins anew, and is longer.
    pub(crate) fn prolong_probation(&self, now: Instant) {
        let next = self.probation.get() * 2;
        self.probation.set(next.min(crate::config::PROBATION_MAX));
        self.failed_at.set(Some(now));
        self.probation_until.set(now + self.probation.get());
    }

    /// Whether requests have a way there: not in a group that is standby or unavailable. What is in
    /// transition or identified again is waited for.
    pub(crate) fn is_a_way(&self) -> bool {
        match self.phase.get() {
            Phase::Serving => self.access.serves() || self.access.is_transitioning(),
            Phase::Identifying => true,
            _ => false,
        }
    }

    /// An operator's reinstatement forgives everything.
    pub(crate) fn forgive(&self) {
        self.failed_at.set(None);
        self.has_failed_since.set(false);
        self.probation.set(Duration::ZERO);
        self.probation_until.set(Instant(0));
        self.suspect.set(false);
        self.pace.forgive();
        self.flakiness.forgive();
    }

    pub(crate) fn standing(&self, now: Instant) -> Standing {
        if self.phase.get() != Phase::Serving || !self.access.serves() {
            return Standing::Unusable;
        }
        if self.suspect.get() {
            return Standing::Suspect;
        }
        if self.flakiness.is_marginal(now) {
            return Standing::Marginal;
        }
        let until = self.probation_until.get();
        if until.0 != 0 {
            if now < until {
                return Standing::Probation;
            }
            self.probation_until.set(Instant(0));
        }
        if self.pace.is_slow.get() {
            return Standing::Slow;
        }
        Standing::Good
    }

    /// What a selector judges it by.
    pub(crate) fn load(&self, now: Instant) -> Load {
        let history = self.history.get();
        Load {
            commands: self.in_flight.get(),
            bytes: self.in_flight_bytes.get(),
            tail: self.pace.tail(),
            history: history.average,
            idle: now - history.last_end,
        }
    }

    /// `future`, unless `is_off` comes to hold; the path's signal tells when to look again.
    pub(crate) async fn unless<T>(
        &self,
        is_off: impl Fn() -> bool,
        mut future: LocalFuture<T>,
    ) -> Option<T> {
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            if is_off() {
                return Poll::Ready(None);
            }
            let seen = self.signal.seen();
            self.signal.poll_since(seen, cx).map(|()| None)
        })
        .await
    }

    /// Only an operator can help; what an operator has decided stands.
    pub(crate) fn set_misconfigured(&self) {
        if !matches!(self.phase.get(), Phase::Down | Phase::Removed) {
            self.phase.set(Phase::Misconfigured);
        }
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.phase.get() == Phase::Serving
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut PathCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    pub(crate) fn note_error(&self, text: impl Into<String>) {
        *self.last_error.borrow_mut() = Some(text.into());
    }

    /// `device portal`, the object of its events.
    pub(crate) fn object(&self, device: &str) -> String {
        format!("{device} {}", self.name.portal)
    }
}
