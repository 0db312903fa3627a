//! Slow paths: told from slow units, put aside, and taken back when they are as fast as the rest.
//!
//! No checker and no error count looks at latency, and a path that is slower by less than a hedge's
//! limit would carry all I/O for ever. So each path keeps a moving average of its small commands.
//! When that is high, *twins* are sent: the same small read on this path and on the best other one,
//! at the same moment. A unit that is slow is slow on both, and nothing happens; only a path whose
//! median is far behind its twin's is put aside ([`crate::path::Standing::Slow`]). Twins go on, less
//! often, until it has caught up; every time it is put aside it stays so for longer.

use crate::inner::Inner;
use crate::path::{Path, Standing};
use crate::sweep::{alive, within};
use blockdev::path::Command;
use blockdev::{Instant, IoCtx, Rt, Sector};
use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Commands of more bytes than this say more about their size than about their way.
const SMALL_BYTES: u64 = 64 << 10;
/// An average below this is not looked into.
const WORTH_A_LOOK: Duration = Duration::from_millis(5);
/// Twins of one comparison, and the pause between them.
const TWINS: usize = 5;
const TWIN_PAUSE: Duration = Duration::from_millis(100);
/// A twin that takes longer counts as this long.
const TWIN_MAX: Duration = Duration::from_millis(500);
/// Sectors a twin reads.
const TWIN_SECTORS: u32 = 8;
/// Slow: more than twice the other's median, and this much more.
const SLOW_BEYOND: Duration = Duration::from_millis(2);
/// After a comparison that found nothing: doubles up to the second value.
const CALM_FIRST: Duration = Duration::from_secs(1);
const CALM_MAX: Duration = Duration::from_secs(16);
/// Between comparisons of a path that was put aside.
const ASIDE_PAUSE: Duration = Duration::from_secs(1);
/// How long it is put aside at least; doubles up to the second value if it happens again within the
/// third.
const ASIDE_FIRST: Duration = Duration::from_millis(2500);
const ASIDE_MAX: Duration = Duration::from_secs(80);
const ASIDE_MEMORY: Duration = Duration::from_secs(60);

/// What a path knows of its own latency.
#[derive(Default)]
pub(crate) struct Pace {
    /// Average of small commands, and of their distance from it.
    mean: Cell<Duration>,
    deviation: Cell<Duration>,
    /// Put aside.
    pub(crate) is_slow: Cell<bool>,
    is_compared: Cell<bool>,
    look_at: Cell<Instant>,
    calm: Cell<Duration>,
    aside: Cell<Duration>,
    aside_at: Cell<Option<Instant>>,
}

impl Pace {
    /// An answer came after `time`.
    pub(crate) fn note(&self, bytes: u64, time: Duration) {
        if bytes > SMALL_BYTES {
            return;
        }
        let mean = self.mean.get();
        if mean.is_zero() {
            self.mean.set(time);
            return self.deviation.set(time / 2);
        }
        self.mean.set(mean - mean / 8 + time / 8);
        let deviation = self.deviation.get();
        self.deviation
            .set(deviation - deviation / 4 + time.abs_diff(mean) / 4);
    }

    /// Average latency of small commands; zero if there was none yet.
    pub(crate) fn mean(&self) -> Duration {
        self.mean.get()
    }

    /// What nearly all small commands stay below, as TCP estimates its timeout (RFC 6298).
    pub(crate) fn tail(&self) -> Duration {
        self.mean.get() + self.deviation.get() * 4
    }

    /// A new session starts without a past; what was put aside stays so until it has caught up.
    pub(crate) fn forget(&self) {
        self.mean.set(Duration::ZERO);
        self.deviation.set(Duration::ZERO);
    }

    /// An operator's reinstatement forgives.
    pub(crate) fn forgive(&self) {
        self.forget();
        self.is_slow.set(false);
        self.aside_at.set(None);
    }

    fn is_suspicious(&self, now: Instant) -> bool {
        self.mean.get() > WORTH_A_LOOK && !self.is_compared.get() && now >= self.look_at.get()
    }

    fn is_calm(&self, now: Instant) {
        let calm = self.calm.get();
        let calm = if calm.is_zero() {
            CALM_FIRST
        } else {
            (calm * 2).min(CALM_MAX)
        };
        self.calm.set(calm);
        self.look_at.set(now + calm);
    }

    fn put_aside(&self, now: Instant) {
        let is_again = self
            .aside_at
            .get()
            .is_some_and(|before| now - before < self.aside.get() + ASIDE_MEMORY);
        let aside = if is_again {
            (self.aside.get() * 2).min(ASIDE_MAX)
        } else {
            ASIDE_FIRST
        };
        self.aside.set(aside);
        self.aside_at.set(Some(now));
        self.is_slow.set(true);
        self.calm.set(Duration::ZERO);
    }

    /// Whether it has been aside for as long as it must.
    fn may_return(&self, now: Instant) -> bool {
        self.aside_at
            .get()
            .is_none_or(|since| now >= since + self.aside.get())
    }
}

impl Inner {
    /// Looks into a path that seems slow.
    pub(crate) fn mind_pace(&self, path: &Rc<Path>) {
        if !path.pace.is_suspicious(self.rt.now()) || self.twin_of(path).is_none() {
            return;
        }
        path.pace.is_compared.set(true);
        let task = compare(self.me.clone(), path.clone(), self.rt.clone());
        self.rt.spawn(task);
    }

    /// The path to compare with: the fastest that is good.
    fn twin_of(&self, path: &Rc<Path>) -> Option<Rc<Path>> {
        let (paths, now) = (self.paths.borrow(), self.rt.now());
        let good = paths
            .iter()
            .filter(|p| p.index != path.index && p.standing(now) == Standing::Good);
        good.min_by_key(|p| (p.pace.mean(), p.index)).cloned()
    }

    fn tell_pace(&self, path: &Path, is_slow: bool, text: String) {
        let event = if is_slow { "path_slow" } else { "path_fast" };
        let object = path.object(&self.name());
        self.news.state(event, object, text, is_slow);
        self.changed.notify();
    }
}

/// Compares `path` with others until it is known not to be slower, or not to be there.
async fn compare(device: Weak<Inner>, path: Rc<Path>, rt: Rt) {
    loop {
        let Some((own, other)) = twins(&device, &path, &rt).await else {
            break;
        };
        let Some(inner) = alive(&device) else { return };
        let now = rt.now();
        let is_behind = own > other * 2 + SLOW_BEYOND;
        let has_caught_up = own <= other + other / 2 + SLOW_BEYOND / 2;
        let text = format!("{own:.1?} where another path takes {other:.1?}");
        match path.pace.is_slow.get() {
            false if is_behind => {
                path.pace.put_aside(now);
                inner.tell_pace(&path, true, text);
            }
            false => {
                path.pace.is_calm(now);
                break;
            }
            true if has_caught_up && path.pace.may_return(now) => {
                path.pace.is_slow.set(false);
                path.pace.forget();
                inner.tell_pace(&path, false, text);
                break;
            }
            true => {}
        }
        drop(inner);
        rt.sleep(ASIDE_PAUSE).await;
    }
    path.pace.is_compared.set(false);
}

/// Medians of the same reads on `path` and on the best other one; `None` when either is missing.
async fn twins(device: &Weak<Inner>, path: &Rc<Path>, rt: &Rt) -> Option<(Duration, Duration)> {
    let mut times: [Vec<Duration>; 2] = Default::default();
    for _ in 0..TWINS {
        let sessions = {
            let inner = alive(device)?;
            let other = inner.twin_of(path)?;
            [path.live()?.session, other.live()?.session]
        };
        let sent = rt.now();
        let deadline = sent + TWIN_MAX;
        let read = Command::Read {
            at: Sector(0),
            sectors: TWIN_SECTORS,
        };
        let answers = sessions.map(|session| session.submit(read.clone(), IoCtx::metadata()).1);
        let ends: [Rc<Cell<Option<Instant>>>; 2] = Default::default();
        for (answer, end) in answers.into_iter().zip(&ends) {
            let (end, clock) = (end.clone(), rt.clone());
            let watch = async move {
                // Any answer tells how long the way is.
                if within(&clock, deadline, answer).await.is_some() {
                    end.set(Some(clock.now()));
                }
            };
            rt.spawn(watch);
        }
        while rt.now() < deadline && ends.iter().any(|end| end.get().is_none()) {
            rt.sleep(Duration::from_millis(5)).await;
        }
        for (time, end) in times.iter_mut().zip(&ends) {
            time.push(end.get().map_or(TWIN_MAX, |end| end - sent));
        }
        rt.sleep(TWIN_PAUSE).await;
    }
    let [own, other] = times.map(|mut times| {
        times.sort_unstable();
        times[TWINS / 2]
    });
    Some((own, other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_average_follows_and_large_commands_do_not_count() {
        let pace = Pace::default();
        for _ in 0..50 {
            pace.note(4096, ms(1));
        }
        pace.note(1 << 20, ms(900));
        assert!(pace.mean() <= ms(1) && pace.tail() <= ms(2));
        assert!(!pace.is_suspicious(Instant(0)));
        for _ in 0..20 {
            pace.note(4096, ms(21));
        }
        assert!(pace.mean() > ms(15), "{:?}", pace.mean());
        assert!(pace.is_suspicious(Instant(0)));
        pace.is_calm(Instant(0));
        assert!(!pace.is_suspicious(Instant(0) + ms(999)));
        assert!(pace.is_suspicious(Instant(0) + ms(1000)));
    }

    #[test]
    fn who_is_put_aside_again_stays_for_longer() {
        let pace = Pace::default();
        let mut now = Instant(0) + ms(1);
        for aside in [2500, 5000, 10_000, 20_000, 40_000, 80_000, 80_000] {
            pace.put_aside(now);
            assert!(!pace.may_return(now + ms(aside - 1)));
            now = now + ms(aside);
            assert!(pace.may_return(now));
            pace.is_slow.set(false);
            now = now + ms(1000);
        }
        pace.put_aside(now + Duration::from_secs(600));
        assert_eq!(pace.aside.get(), ASIDE_FIRST);
    }
}
