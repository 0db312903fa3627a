//! Wall-clock time for people: RFC 3339 UTC with milliseconds.
//!
//! The control plane stamps events and files with it; no decision is made by it (decisions are made by
//! monotonic time). [`Clock`] is passed in, so that tests choose the time.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// From whole seconds, as MooseFS and md store times.
    pub fn from_secs(seconds: u64) -> Timestamp {
        Timestamp(seconds.saturating_mul(1000))
    }
}

impl fmt::Display for Timestamp {
    /// `2026-01-01T00:00:00.123Z`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ms) = (self.0 / 1000, self.0 % 1000);
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Days to civil date over eras of 400 years, the year beginning in March.
        let z = days + 719_468;
        let (era, day_of_era) = (z / 146_097, z % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 {
            shifted + 3
        } else {
            shifted - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z",
            rest / 3600,
            rest / 60 % 60,
            rest % 60
        )
    }
}

/// A source of wall-clock and monotonic time, shared by threads.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> (Timestamp, Duration) + Send + Sync>);

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Clock {
        let start = monotonic();
        Clock(Arc::new(move || {
            (wall(), monotonic().saturating_duration_since(start))
        }))
    }

    /// A clock that says what the function says: wall time, and time since an arbitrary start.
    pub fn by(now: impl Fn() -> (Timestamp, Duration) + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(now))
    }

    /// Wall-clock time, for people.
    pub fn wall(&self) -> Timestamp {
        (self.0)().0
    }

    /// Time since the clock was made; never goes back.
    pub fn elapsed(&self) -> Duration {
        (self.0)().1
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.wall())
    }
}

/// The one place of the control plane that asks the machine.
#[allow(clippy::disallowed_methods)]
fn wall() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[allow(clippy::disallowed_methods)]
fn monotonic() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (1_767_225_599_999, "2025-12-31T23:59:59.999Z"),
            (1_767_225_600_000, "2026-01-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp(ms).to_string(), text);
        }
        let _ = Timestamp(u64::MAX).to_string();
    }
}
