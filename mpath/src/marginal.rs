//! Flaky paths: those that fail again and again are kept back although they are up.
//!
//! `san_path_err_*` counts returns, `marginal_path_*` tries a path that failed twice in a short time
//! with reads of its own. A path that is kept back ranks behind all others but suspect ones, and so
//! still serves when nothing else does; with `marginal_pathgroups` it is in a group of its own as
//! well. Both come on top of the probation that every failed path has.

use crate::config::{MarginalPath, SanPathErr};
use crate::inner::Inner;
use crate::path::{Path, Phase};
use crate::sweep::{alive, within};
use blockdev::path::Command;
use blockdev::{Instant, IoCtx, Rt, Sector};
use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Between the reads of a sample.
const SAMPLE_PAUSE: Duration = Duration::from_millis(100);
/// A sample's read that takes longer has failed.
const SAMPLE_READ_MAX: Duration = crate::config::SILENT_MAX;
const SAMPLE_SECTORS: u32 = 8;
/// How often a path without a session is looked at before its sample begins.
const LOOK_FOR_SESSION: Duration = Duration::from_secs(1);

/// What a path has on its account.
#[derive(Default)]
pub(crate) struct Flakiness {
    /// Returns that are not forgiven.
    returns: Cell<u32>,
    good_checks: Cell<u32>,
    /// Kept back for its returns until then.
    delayed_until: Cell<Instant>,
    failed_at: Cell<Option<Instant>>,
    /// Kept back until a sample is good.
    is_sampled: Cell<bool>,
    /// Counts what an operator forgave, so that an old sample decides nothing.
    era: Cell<u32>,
}

impl Flakiness {
    pub(crate) fn is_marginal(&self, now: Instant) -> bool {
        self.is_sampled.get() || now < self.delayed_until.get()
    }

    /// It is up again after a failure; whether it has come back too often.
    fn note_return(&self, now: Instant, rule: &SanPathErr) -> bool {
        self.good_checks.set(0);
        self.returns.set(self.returns.get() + 1);
        let is_too_much = self.returns.get() > rule.threshold;
        if is_too_much {
            self.returns.set(0);
            self.delayed_until.set(now + rule.recovery_time);
        }
        is_too_much
    }

    fn note_good_check(&self, rule: &SanPathErr) {
        if self.returns.get() == 0 {
            return;
        }
        self.good_checks.set(self.good_checks.get() + 1);
        if self.good_checks.get() >= rule.forget_rate {
            self.good_checks.set(0);
            self.returns.set(self.returns.get() - 1);
        }
    }

    /// It failed; whether that calls for a sample.
    fn note_failure(&self, now: Instant, rule: &MarginalPath) -> bool {
        let before = self.failed_at.replace(Some(now));
        let is_double = before.is_some_and(|at| now - at <= rule.double_failed_time);
        is_double && !self.is_sampled.replace(true)
    }

    pub(crate) fn forgive(&self) {
        self.returns.set(0);
        self.delayed_until.set(Instant(0));
        self.failed_at.set(None);
        self.is_sampled.set(false);
        self.era.set(self.era.get() + 1);
    }
}

impl Inner {
    /// The path failed.
    pub(crate) fn note_flaky(&self, path: &Rc<Path>) {
        let Some(rule) = self.config.borrow().marginal_path else {
            return;
        };
        if path.flakiness.note_failure(self.rt.now(), &rule) {
            let text = format!("failed twice within {:?}", rule.double_failed_time);
            self.tell_marginal(path, true, text);
            let task = sample(self.me.clone(), path.clone(), self.rt.clone());
            self.rt.spawn(task);
        }
    }

    /// The path serves again after a failure.
    pub(crate) fn note_return(&self, path: &Rc<Path>) {
        let Some(rule) = self.config.borrow().san_path_err else {
            return;
        };
        if !path.flakiness.note_return(self.rt.now(), &rule) {
            return;
        }
        let text = format!(
            "came back more than {} times, kept back for {:?}",
            rule.threshold, rule.recovery_time
        );
        self.tell_marginal(path, true, text);
        let (device, path, rt) = (self.me.clone(), path.clone(), self.rt.clone());
        let era = path.flakiness.era.get();
        self.rt.spawn(async move {
            rt.sleep(rule.recovery_time).await;
            if let Some(inner) = alive(&device) {
                let is_over = !path.flakiness.is_marginal(rt.now());
                if is_over && path.flakiness.era.get() == era {
                    inner.tell_marginal(&path, false, "kept back for long enough".into());
                }
            }
        });
    }

    /// A check of the path was good.
    pub(crate) fn note_good_check(&self, path: &Path) {
        if let Some(rule) = &self.config.borrow().san_path_err {
            path.flakiness.note_good_check(rule);
        }
    }

    fn tell_marginal(&self, path: &Path, is_marginal: bool, text: String) {
        let event = if is_marginal {
            "path_marginal"
        } else {
            "path_steady"
        };
        let object = path.object(&self.name());
        self.news.state(event, object, text, is_marginal);
        self.regroup();
        self.changed.notify();
    }
}

/// Tries `path` until it is good enough, or nobody asks any more.
async fn sample(device: Weak<Inner>, path: Rc<Path>, rt: Rt) {
    let era = path.flakiness.era.get();
    loop {
        let Some(rule) = rule_of(&device, &path, era) else {
            return;
        };
        if path.phase.get() != Phase::Serving {
            rt.sleep(LOOK_FOR_SESSION).await;
            continue;
        }
        let (mut reads, mut errors) = (0u64, 0u64);
        let end = rt.now() + rule.err_sample_time;
        while rt.now() < end {
            let next = rt.now() + SAMPLE_PAUSE;
            reads += 1;
            errors += u64::from(!is_read_good(&path, &rt).await);
            rt.sleep(next.since(rt.now())).await;
            if rule_of(&device, &path, era).is_none() {
                return;
            }
        }
        let Some(inner) = alive(&device) else { return };
        let rate = errors * 1000 / reads.max(1);
        if rate <= u64::from(rule.err_rate_threshold) {
            path.flakiness.is_sampled.set(false);
            let text = format!("{errors} of {reads} reads failed");
            return inner.tell_marginal(&path, false, text);
        }
        drop(inner);
        rt.sleep(rule.err_recheck_gap_time).await;
    }
}

/// The rule under which `path` is still sampled. One that was taken away gives it free.
fn rule_of(device: &Weak<Inner>, path: &Rc<Path>, era: u32) -> Option<MarginalPath> {
    let inner = alive(device)?;
    if path.flakiness.era.get() != era || path.phase.get() == Phase::Removed {
        return None;
    }
    let rule = inner.config.borrow().marginal_path;
    if rule.is_none() {
        path.flakiness.is_sampled.set(false);
        inner.tell_marginal(path, false, "marginal_path_* is not set any more".into());
    }
    rule
}

/// Whether a read on the path is answered well and in time; not, without a session.
async fn is_read_good(path: &Path, rt: &Rt) -> bool {
    let Some(live) = path.live() else {
        return false;
    };
    let read = Command::Read {
        at: Sector(0),
        sectors: SAMPLE_SECTORS,
    };
    let answer = live.session.submit(read, IoCtx::metadata()).1;
    matches!(
        within(rt, rt.now() + SAMPLE_READ_MAX, answer).await,
        Some(Ok(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn returns_beyond_the_threshold_delay_and_good_checks_forgive() {
        let rule = SanPathErr {
            threshold: 2,
            forget_rate: 3,
            recovery_time: s(60),
        };
        let path = Flakiness::default();
        let now = Instant(0) + s(1);
        assert!(!path.note_return(now, &rule));
        assert!(!path.note_return(now, &rule));
        for _ in 0..2 {
            path.note_good_check(&rule);
        }
        assert_eq!(path.returns.get(), 2);
        path.note_good_check(&rule);
        assert_eq!(path.returns.get(), 1);
        assert!(!path.note_return(now, &rule));
        assert!(!path.is_marginal(now));
        assert!(path.note_return(now, &rule));
        assert!(path.is_marginal(now + s(59)) && !path.is_marginal(now + s(60)));
        assert_eq!(path.returns.get(), 0);
        assert!(!path.note_return(now + s(61), &rule), "counted anew");
    }

    #[test]
    fn two_failures_close_together_call_for_one_sample() {
        let rule = MarginalPath {
            double_failed_time: s(60),
            err_sample_time: s(120),
            err_rate_threshold: 10,
            err_recheck_gap_time: s(300),
        };
        let path = Flakiness::default();
        let at = |n| Instant(0) + s(n);
        assert!(!path.note_failure(at(1), &rule));
        assert!(!path.note_failure(at(62), &rule));
        assert!(path.note_failure(at(122), &rule));
        assert!(!path.note_failure(at(123), &rule), "one is under way");
        assert!(path.is_marginal(at(100_000)));
        path.forgive();
        assert!(!path.is_marginal(at(124)) && !path.note_failure(at(125), &rule));
    }
}
