//! What dm-multipath counts of a map: how often its groups were laid out anew, how long requests
//! waited for want of a path, and how often they were failed for it (`show maps format`, `%x` and
//! `%2` to `%4`).

use blockdev::Instant;
use std::cell::Cell;
use std::time::Duration;

/// Counters of a device since it was opened. What is before its first path is no outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outages {
    /// Times that no path was left and requests were failed, at once or after waiting.
    pub failures: u64,
    /// Time in which requests waited for a path, or would have.
    pub queueing: Duration,
    /// Times that `no_path_retry` ran out.
    pub timeouts: u64,
}

#[derive(Default)]
pub(crate) struct Tally {
    has_served: Cell<bool>,
    outages: Cell<Outages>,
    /// Layouts of the groups, the first included.
    pub(crate) loads: Cell<u64>,
}

/// How long requests waited of an outage that began at `since` and lasts.
fn waited(since: Instant, now: Instant, queue_time: Option<Duration>) -> Duration {
    let lasts = now.since(since);
    queue_time.map_or(lasts, |time| time.min(lasts))
}

impl Tally {
    /// Counters now; `down_since`: no path serves since then.
    pub(crate) fn outages(
        &self,
        down_since: Option<Instant>,
        now: Instant,
        queue_time: Option<Duration>,
    ) -> Outages {
        let mut outages = self.outages.get();
        if let (true, Some(since)) = (self.has_served.get(), down_since) {
            outages.queueing += waited(since, now, queue_time);
        }
        outages
    }

    /// A path serves; none did since `down_since`.
    pub(crate) fn path_serves(
        &self,
        down_since: Option<Instant>,
        now: Instant,
        queue_time: Option<Duration>,
    ) {
        self.outages.set(self.outages(down_since, now, queue_time));
        self.has_served.set(true);
    }

    /// No path serves since `down_since`, and from now on requests wait for another time.
    pub(crate) fn queueing_changes(
        &self,
        down_since: Option<Instant>,
        now: Instant,
        before: Option<Duration>,
    ) {
        self.outages.set(self.outages(down_since, now, before));
    }

    /// From now on requests fail for want of a path.
    pub(crate) fn gives_up(&self, queue_time: Option<Duration>) {
        if !self.has_served.get() {
            return;
        }
        let mut outages = self.outages.get();
        outages.failures += 1;
        if queue_time.is_some_and(|time| !time.is_zero()) {
            outages.timeouts += 1;
        }
        self.outages.set(outages);
    }
}
