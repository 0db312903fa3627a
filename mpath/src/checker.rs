//! The checker: what an idle path is asked, and what follows from the answer.
//!
//! A path that real I/O has come back on since the last check is not asked at all. What differs between
//! checkers is the question (see [`Probe`]); while it is unanswered the target is asked for a sign of
//! life beside it, so that a unit that is slow, or hangs, fails no path.

use crate::config::Probe;
use crate::inner::Inner;
use crate::path::{Checker, Live, Path};
use crate::sweep::{alive, within};
use blockdev::path::{Command, CommandError, Control, ControlError};
use blockdev::{Applied, Instant, IoCtx, LocalFuture, PathCause, Sector};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// A check is unanswered for this long: the target is asked for a sign of life, which it has as long
/// again to give. Both together are the longest silence.
const LOOK: Duration = Duration::from_millis(400);
const _: () = assert!(LOOK.as_millis() * 2 == crate::config::SILENT_MAX.as_millis());
/// Sectors that `directio` reads.
const READ_SECTORS: u32 = 8;

/// A check that is due on a path whose last one was `interval` ago; whether it was good.
pub(crate) async fn check(
    device: Weak<Inner>,
    path: Rc<Path>,
    live: Live,
    interval: Duration,
) -> bool {
    let Some(inner) = alive(&device) else {
        return false;
    };
    let (rt, begun) = (inner.rt.clone(), inner.rt.now());
    let probe = inner.probe(&path);
    if probe == Probe::None || begun - path.last_ok.get() < interval {
        path.checker.set(Checker::Ready);
        return true;
    }
    let until = begun + inner.config.borrow().checker_timeout;
    let mut answer = question(&live, probe, until);
    drop(inner);
    let mut asked: Option<Instant> = None;
    let answer = loop {
        let look = (rt.now() + LOOK).min(until);
        if let Some(answer) = within(&rt, look, &mut answer).await {
            break answer;
        }
        let Some(inner) = alive(&device) else {
            return false;
        };
        if path.epoch() != Some(live.epoch) {
            return false;
        }
        let heard = live.session.load().last_heard;
        if asked.is_some_and(|asked| heard <= asked) {
            let cause = PathCause::Silent(rt.now() - heard);
            inner.path_lost(&path, live.epoch, &cause);
            path.checker.set(Checker::Timeout);
            return false;
        }
        if rt.now() >= until {
            path.checker.set(Checker::Timeout);
            return false;
        }
        if asked.is_some() {
            // The session lives, the unit is slow: not the path's fault.
            path.checker.set(Checker::Pending);
        }
        asked = Some(rt.now());
        inner.ask(path.index);
    };
    let Some(inner) = alive(&device) else {
        return false;
    };
    match answer {
        Ok(()) => {
            path.checker.set(Checker::Ready);
            true
        }
        Err(error) => inner.check_failed(&path, &live, &error),
    }
}

/// Asks the session what the checker asks.
fn question(live: &Live, probe: Probe, until: Instant) -> LocalFuture<Result<(), CommandError>> {
    let command = match probe {
        Probe::Nop | Probe::None => {
            let ping = live.session.control(Control::Ping { bytes: 0 }, until);
            return Box::pin(async move {
                match ping.await {
                    // A refusal is an answer.
                    Ok(()) | Err(ControlError::Refused(_)) => Ok(()),
                    Err(ControlError::Lost(cause)) => Err(CommandError::Lost {
                        cause,
                        applied: Applied::No,
                    }),
                    // Whoever waits for it has a deadline of its own.
                    Err(ControlError::Late) => std::future::pending().await,
                }
            });
        }
        Probe::Tur => Command::TestUnitReady,
        Probe::Directio => Command::Read {
            at: Sector(0),
            sectors: READ_SECTORS,
        },
    };
    let answer = live.session.submit(command, IoCtx::metadata()).1;
    Box::pin(async move { answer.await.map(drop) })
}

impl Inner {
    /// `path_checker`, unless ALUA is found and allowed to replace it.
    pub(crate) fn probe(&self, path: &Path) -> Probe {
        let config = self.config.borrow();
        let identity = path.identity.borrow();
        let is_detected =
            config.detect_checker && identity.as_ref().is_some_and(|i| self.uses_alua(i));
        if is_detected {
            Probe::Tur
        } else {
            config.path_checker
        }
    }

    fn check_failed(&self, path: &Rc<Path>, live: &Live, error: &CommandError) -> bool {
        use crate::classify::{classify, Verdict};
        match classify(error) {
            Verdict::OtherPath(cause) if self.access_denied(path, &cause) => true,
            Verdict::Lost { cause, .. } | Verdict::OtherPath(cause) => {
                self.path_lost(path, live.epoch, &cause);
                if matches!(cause, PathCause::Unit(2, ..)) {
                    path.checker.set(Checker::Ghost);
                }
                false
            }
            Verdict::Recheck | Verdict::Capacity => {
                self.pause_to_identify(path);
                true
            }
            // An attention answers as well as GOOD does.
            _ => {
                path.checker.set(Checker::Ready);
                true
            }
        }
    }
}
