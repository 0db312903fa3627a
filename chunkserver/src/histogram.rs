//! Latency histograms for metrics: fixed buckets, no allocation, no lock.
//!
//! Lives on the shard and is copied into each published snapshot. Buckets are powers of two from 16 µs to
//! 16.8 s, so that recording is one `leading_zeros`; a metric of other bounds cannot be asked for later.

use std::time::Duration;

/// Number of finite buckets.
pub const BUCKETS: usize = 21;
/// Upper bound of the first bucket, µs.
const FIRST_BOUND_US: u64 = 16;

/// Counts of latencies by bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Histogram {
    /// Not cumulative; the last counts what is beyond the last bound.
    counts: [u64; BUCKETS + 1],
    sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: [0; BUCKETS + 1],
            sum_us: 0,
        }
    }
}

impl Histogram {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        // Bound i is 16·2^i µs, inclusive as Prometheus' `le` is.
        let index = match us.saturating_sub(1) / FIRST_BOUND_US {
            0 => 0,
            n => (u64::BITS - n.leading_zeros()) as usize,
        };
        self.counts[index.min(BUCKETS)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Adds the counts of another, for sums over shards.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// What was counted since `earlier`, a former state of the same histogram.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut delta = *self;
        for (now, then) in delta.counts.iter_mut().zip(earlier.counts) {
            *now = now.saturating_sub(then);
        }
        delta.sum_us = delta.sum_us.saturating_sub(earlier.sum_us);
        delta
    }

    /// The bound, µs, that so much (0 to 1) of the latencies do not exceed; `None` if nothing was counted.
    /// Beyond the last bound, twice that bound.
    pub fn quantile_us(&self, part: f64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let want = ((count as f64 * part).ceil() as u64).clamp(1, count);
        let mut total = 0;
        let index = self.counts.iter().position(|c| {
            total += c;
            total >= want
        });
        index.map(|i| FIRST_BOUND_US << i)
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of all, seconds.
    pub fn sum_s(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// (upper bound in seconds, cumulative count) of each finite bucket.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut total = 0;
        (0..BUCKETS).map(move |i| {
            total += self.counts[i];
            ((FIRST_BOUND_US << i) as f64 / 1e6, total)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_are_inclusive() {
        for (us, bucket) in [
            (0, 0),
            (16, 0),
            (17, 1),
            (32, 1),
            (33, 2),
            (16 << 20, 20),
            ((16 << 20) + 1, 21),
        ] {
            let mut h = Histogram::default();
            h.record(Duration::from_micros(us));
            assert_eq!(
                h.counts.iter().position(|c| *c == 1),
                Some(bucket),
                "{us} µs"
            );
        }
    }

    #[test]
    fn quantiles_round_up_to_a_bound() {
        let mut h = Histogram::default();
        assert_eq!(h.quantile_us(0.5), None);
        let before = h;
        for us in [10, 20, 100, 100, 5000] {
            h.record(Duration::from_micros(us));
        }
        assert_eq!(h.since(&before), h);
        assert_eq!(h.since(&h).count(), 0);
        assert_eq!(
            (h.quantile_us(0.5), h.quantile_us(0.99)),
            (Some(128), Some(8192))
        );
    }

    proptest! {
        #[test]
        fn counts_each_once_below_its_bound(all in proptest::collection::vec(0u64..40_000_000, 0..50)) {
            let mut h = Histogram::default();
            for us in &all {
                h.record(Duration::from_micros(*us));
            }
            prop_assert_eq!(h.count(), all.len() as u64);
            for (bound, count) in h.buckets() {
                let naive = all.iter().filter(|us| **us as f64 / 1e6 <= bound).count() as u64;
                prop_assert_eq!(count, naive);
            }
        }
    }
}
