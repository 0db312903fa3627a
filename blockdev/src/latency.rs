//! Latencies of load generators: every value is counted, in buckets of about 1.6 % (64 to an octave).

use std::time::Duration;

/// A summary in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latencies {
    /// Smallest.
    pub min: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p99_9: u64,
    /// Largest.
    pub max: u64,
}

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;

/// Counts of latencies, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: u64,
    min: u64,
    max: u64,
}

fn bucket_of(value: u64) -> usize {
    if value < SUB {
        return value as usize;
    }
    let shift = value.ilog2() - SUB_BITS;
    ((u64::from(shift) + 1) * SUB + ((value >> shift) - SUB)) as usize
}

/// The largest value of a bucket.
fn top_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket;
    }
    let shift = bucket / SUB - 1;
    ((bucket % SUB + SUB + 1) << shift) - 1
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let value = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = bucket_of(value);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.min = if self.count == 0 {
            value
        } else {
            self.min.min(value)
        };
        self.max = self.max.max(value);
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// The value below or at which `share` of all lie.
    fn percentile(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && count > 0 {
                return top_of(bucket).clamp(self.min, self.max);
            }
        }
        self.max
    }

    /// What was counted; all zero if nothing was.
    pub fn summary(&self) -> Latencies {
        if self.count == 0 {
            return Latencies::default();
        }
        Latencies {
            min: self.min,
            mean: (self.sum as f64 / self.count as f64 * 10.0).round() / 10.0,
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
            max: self.max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_everything_in_order() {
        let mut last = 0;
        for value in (0..200_000).chain([u64::MAX / 2]) {
            let bucket = bucket_of(value);
            assert!(bucket >= last);
            assert!(top_of(bucket) >= value);
            assert!(top_of(bucket) as f64 <= value as f64 * 1.04 + 1.0);
            last = bucket;
        }
    }

    #[test]
    fn percentiles() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|us| histogram.record(Duration::from_micros(us)));
        let summary = histogram.summary();
        assert_eq!((summary.min, summary.max, summary.mean), (1, 1000, 500.5));
        for (got, wanted) in [(summary.p50, 500), (summary.p99, 990), (summary.p99_9, 999)] {
            assert!(
                got >= wanted && got as f64 <= wanted as f64 * 1.02,
                "{got} for {wanted}"
            );
        }
        assert_eq!(Histogram::default().summary(), Latencies::default());
    }
}
