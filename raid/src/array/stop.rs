//! The end of an array, within a bound.
//!
//! Writes under way end, everything is flushed, bits are cleared where that is allowed, the
//! superblocks say *clean* and the witness *flushed*. A leg that is silent at that hour is put
//! out as at any other, only sooner; whatever still stands in the way after
//! [`super::Options::stop_within`] is left behind: then the superblocks say *dirty* and the
//! witness *busy*, which is the truth, and the next start looks at both legs.

use super::{Array, Leg, LegState};
use blockdev::{Instant, IoError, Kind};
use std::time::Duration;

/// At a stop a flush or a fence that the other leg has answered makes a leg late after so long.
const PATIENCE: Duration = Duration::from_millis(700);
/// A copy that ends within this time of a stop is waited for, so that both legs end equal.
const COPY_GRACE: Duration = Duration::from_millis(1500);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Array {
    /// Ends the array: no new operation is taken, those under way end, everything is flushed,
    /// superblocks are clean (unless the legs are not equalised yet). Copies stop where they are
    /// unless they are nearly done. Bits stay set while a leg is out. Returns within
    /// [`super::Options::stop_within`], whatever legs and witness do.
    pub async fn stop(&self) {
        let now = self.rt.now();
        self.stop_began.set(self.stop_began.get().min(now));
        self.stopping.set(true);
        let eta = self.sync.borrow().now.as_ref().map(|sync| sync.eta_s(now));
        let nearly_done = matches!(eta, Some(Some(left)) if left <= COPY_GRACE.as_secs_f64());
        if nearly_done {
            self.copies_end.set(now + COPY_GRACE);
        }
        self.changed.notify();
        let limit = now + self.options.stop_within;
        if self.rt.by(limit, self.come_to_rest()).await.is_err() {
            tracing::warn!(
                volume = %self.options.volume,
                "not stopped cleanly in time: the next start looks at both legs"
            );
        }
    }

    async fn come_to_rest(&self) {
        loop {
            self.changed
                .until(|| self.failed.borrow().is_some() || self.is_quiet())
                .await;
            if self.failed.borrow().is_some() || !self.recovered.get() {
                return; // not ours to write any more, or nothing was written yet
            }
            self.clear_bits(true).await;
            let settled = self.go_clean().await;
            let unable = matches!(&settled, Err(error) if matches!(error.kind, Kind::Refused(_)));
            if self.is_at_rest() || unable {
                return;
            }
            self.rt.sleep(LOOK_AGAIN).await;
        }
    }

    /// Nothing is written, copied or decided.
    fn is_quiet(&self) -> bool {
        let moving = |leg: &Leg| matches!(leg.state(), LegState::Leaving | LegState::Joining);
        !self.is_writing() && !self.sync.borrow().is_running() && !self.legs.iter().any(moving)
    }

    /// Nothing moves, and legs and witness say all there is to say.
    fn is_at_rest(&self) -> bool {
        self.is_quiet() && !self.has_news()
    }

    /// A superblock or the witness says something else than clean and flushed at this event count.
    pub(super) fn has_news(&self) -> bool {
        let clean = !self.intent.borrow().is_doubtful();
        let is_told = |leg: &Leg| {
            let superblock = leg.superblock.borrow();
            superblock
                .as_ref()
                .is_some_and(|sb| sb.events == self.events.get() && sb.is_clean() == clean)
        };
        let in_sync = |leg: &&Leg| leg.state() == LegState::InSync;
        self.active.get()
            || !self.witness_flushed.get()
            || self.witness_events.get() != self.events.get()
            || !self.legs.iter().filter(in_sync).all(is_told)
    }

    /// How long a leg may be silent, seen from `since`: less once the array ends.
    pub(super) fn patience_ends(&self, since: Instant, patience: Duration) -> Instant {
        let at_stop = match self.stop_began.get() {
            Instant::FAR => Instant::FAR,
            began => began.max(since) + PATIENCE,
        };
        (since + patience).min(at_stop)
    }

    /// Copies go on unless the array is no longer ours or ends before they would.
    pub(super) fn may_copy(&self) -> Result<(), IoError> {
        match self.closed() {
            Some(Kind::Closed) if self.rt.now() < self.copies_end.get() => Ok(()),
            Some(kind) => Err(IoError::not_applied(kind)),
            None => Ok(()),
        }
    }
}
