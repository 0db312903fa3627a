//! Counters: since the start, and of the last minute, hour and day as MooseFS shows them.

use blockdev::Instant;
use chunk_api::{ChunkId, DiskStats};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};

/// Minutes kept.
const MINUTES: usize = 24 * 60;

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counted {
    Read,
    Write,
    Flush,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) healed: Cell<u64>,
    pub(crate) damaged: RefCell<BTreeSet<u64>>,
    pub(crate) last_error: Cell<Option<(ChunkId, u32)>>,
    pub(crate) open_ms: Cell<u64>,
    pub(crate) total: Cell<DiskStats>,
    minutes: RefCell<VecDeque<(u64, DiskStats)>>,
}

impl Counters {
    /// One operation of `bytes` that took from `begin` to `now`.
    pub(crate) fn count(&self, what: Counted, bytes: u64, begin: Instant, now: Instant) {
        let us = now.since(begin).as_micros() as u64;
        let mut total = self.total.get();
        add(&mut total, what, bytes, us);
        self.total.set(total);
        let minute = now.0 / 60_000_000_000;
        let mut minutes = self.minutes.borrow_mut();
        if minutes.back().is_none_or(|(m, _)| *m != minute) {
            minutes.push_back((minute, DiskStats::default()));
        }
        if minutes.len() > MINUTES {
            minutes.pop_front();
        }
        if let Some((_, stats)) = minutes.back_mut() {
            add(stats, what, bytes, us);
        }
    }

    /// The last minute, hour and day.
    pub(crate) fn periods(&self, now: Instant) -> [DiskStats; 3] {
        let minute = now.0 / 60_000_000_000;
        let minutes = self.minutes.borrow();
        [1, 60, MINUTES as u64].map(|span| {
            let recent = minutes.iter().filter(|(m, _)| m + span > minute);
            recent.fold(DiskStats::default(), |sum, (_, s)| merge(sum, s))
        })
    }
}

fn add(stats: &mut DiskStats, what: Counted, bytes: u64, us: u64) {
    let max = u32::try_from(us).unwrap_or(u32::MAX);
    match what {
        Counted::Read => {
            stats.read_bytes += bytes;
            stats.read_us += us;
            stats.read_ios = stats.read_ios.saturating_add(1);
            stats.read_us_max = stats.read_us_max.max(max);
        }
        Counted::Write => {
            stats.written_bytes += bytes;
            stats.write_us += us;
            stats.write_ios = stats.write_ios.saturating_add(1);
            stats.write_us_max = stats.write_us_max.max(max);
        }
        Counted::Flush => {
            stats.fsync_us += us;
            stats.fsync_ios = stats.fsync_ios.saturating_add(1);
            stats.fsync_us_max = stats.fsync_us_max.max(max);
        }
    }
}

fn merge(a: DiskStats, b: &DiskStats) -> DiskStats {
    DiskStats {
        read_bytes: a.read_bytes + b.read_bytes,
        written_bytes: a.written_bytes + b.written_bytes,
        read_us: a.read_us + b.read_us,
        write_us: a.write_us + b.write_us,
        fsync_us: a.fsync_us + b.fsync_us,
        read_ios: a.read_ios.saturating_add(b.read_ios),
        write_ios: a.write_ios.saturating_add(b.write_ios),
        fsync_ios: a.fsync_ios.saturating_add(b.fsync_ios),
        read_us_max: a.read_us_max.max(b.read_us_max),
        write_us_max: a.write_us_max.max(b.write_us_max),
        fsync_us_max: a.fsync_us_max.max(b.fsync_us_max),
    }
}

/// What the status page shows of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The volume's name.
    pub name: String,
    /// Why nothing is written any more; `None` while all is well.
    pub failed: Option<String>,
    /// Served, but never written: a newer release has used it.
    pub read_only: bool,
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// Bytes that count as used.
    pub used_bytes: u64,
    /// Bytes that count as free (quarantined chunks included unless held hard).
    pub free_bytes: u64,
    /// Live chunks.
    pub chunks: u64,
    /// Chunks found damaged on every leg since the start, and not whole since.
    pub damaged_chunks: u64,
    /// Granules rewritten on a leg from another one since the start.
    pub healed_blocks: u64,
    /// Chunks in the quarantine.
    pub quarantined_chunks: u64,
    /// Bytes submitted since the last flush that succeeded.
    pub unflushed_bytes: u64,
    /// Age of the oldest acknowledged change that is not durable, in milliseconds.
    pub unflushed_ms: u64,
    /// How long the last open took, in milliseconds.
    pub open_ms: u64,
    /// Bytes in the data cache.
    pub cache_bytes: u64,
    /// Operations since the start.
    pub operations: DiskStats,
}
