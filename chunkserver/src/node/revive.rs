//! A volume that failed while it was served is taken down as a whole and begun again.
//!
//! A store that met an error it cannot work around takes nothing more: every unit was away for longer
//! than requests are queued, say. What it holds is what a crash would have left, and it is brought back
//! the same way: its chunks are reported lost, sessions are ended, and the ordinary start follows (new
//! sessions, fence, replay). Nothing of the old store or array can be written after that, for their
//! devices are closed. A volume that another node took over stays down.
//!
//! One that fails again and again is tried less and less often.

use std::time::Duration;

use blockdev::Instant;

use super::volume::{VolumeLife, LOOK_AGAIN};
use crate::model::VolumeState;

/// The second failure within this time is waited out, longer each time.
const CALM: Duration = Duration::from_secs(60);
/// First wait; doubled up to [`CALM`].
const WAIT: Duration = Duration::from_secs(2);

/// How often a volume has failed lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    last: Option<Instant>,
    wait: Duration,
}

impl Failures {
    /// It failed now: how long to leave it alone.
    pub(super) fn again(&mut self, now: Instant) -> Duration {
        let is_calm = self.last.is_none_or(|last| now.since(last) > CALM);
        self.wait = match is_calm {
            true => Duration::ZERO,
            false => (self.wait * 2).clamp(WAIT, CALM),
        };
        self.last = Some(now + self.wait);
        self.wait
    }
}

impl VolumeLife {
    /// Takes the volume down if its store has failed, so that it is begun again.
    pub(super) async fn revive(&self) {
        let failed = self.store.borrow().as_ref().and_then(|s| s.stats().failed);
        let Some(reason) = failed else { return };
        let is_out_of_hand = self.array_snapshot().is_some_and(|a| a.failure.is_some());
        if is_out_of_hand || self.is_stopping() {
            return;
        }
        self.withdraw();
        self.wait_because(VolumeState::Failed, format!("{reason}; it is begun again"));
        self.scrub.stop();
        drop(self.store.borrow_mut().take());
        self.end_array_and_sessions().await;
        let wait = self.failed_now();
        self.base.rt.sleep(wait).await;
    }

    /// Leaves a volume alone whose store does not open, longer each time: each try resets its units. What an
    /// operator says of it, or legs that come or go, are worth a try at once.
    pub(super) async fn put_off(&self) {
        let rt = &self.base.rt;
        let until = rt.now() + self.failed_now();
        let legs = self.ready_legs().await;
        let is_as_before = async || {
            self.word.borrow().is_none() && self.ready_legs().await == legs && !self.is_stopping()
        };
        while rt.now() < until && is_as_before().await {
            rt.sleep(LOOK_AGAIN).await;
            self.begin_opening();
        }
    }

    fn failed_now(&self) -> Duration {
        let mut failures = self.failures.get();
        let wait = failures.again(self.base.rt.now());
        self.failures.set(failures);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_often_waits_longer() {
        let at = |s: u64| Instant(0) + Duration::from_secs(s);
        let mut failures = Failures::default();
        assert_eq!(failures.again(at(100)), Duration::ZERO);
        assert_eq!(failures.again(at(101)), Duration::from_secs(2));
        assert_eq!(failures.again(at(104)), Duration::from_secs(4));
        for _ in 0..8 {
            let now = failures.last.expect("failed") + Duration::from_secs(1);
            failures.again(now);
        }
        assert_eq!(failures.wait, CALM);
        let calm = failures.last.expect("failed") + CALM + Duration::from_secs(1);
        assert_eq!(failures.again(calm), Duration::ZERO);
    }
}
