//! What `antler arrays` shows.

use super::{Array, Leg, LegState, Why, REPLACEMENT};
use crate::uuid::Uuid;
use blockdev::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// One array; field by field what the JSON of `antler arrays` holds.
#[derive(Clone, Debug)]
pub struct ArraySnapshot {
    /// Name of the volume.
    pub volume: String,
    /// Identity.
    pub uuid: Uuid,
    /// Bytes of the array.
    pub size_bytes: u64,
    /// Where data begin on the legs.
    pub data_offset_bytes: u64,
    /// `clean`, `active`, `degraded` or `failed`.
    pub state: &'static str,
    /// Event count.
    pub events: u64,
    /// Bytes under one bit.
    pub bitmap_chunk_bytes: u64,
    /// Bits.
    pub bitmap_chunks: u64,
    /// Bits set.
    pub bitmap_dirty: u64,
    /// By slot.
    pub legs: Vec<LegSnapshot>,
    /// The copy that runs.
    pub sync: Option<SyncSnapshot>,
    /// The one that ran last.
    pub last_sync: Option<LastSync>,
    /// Bytes that all copies since the array was started have written to each leg, by its name.
    pub copied_bytes: BTreeMap<String, u64>,
    /// Why it failed, if so.
    pub failure: Option<String>,
    /// When this was taken, for rates.
    pub now: Instant,
    /// Payload bytes that no flush has covered yet, of the leg with the most.
    pub unflushed_bytes: u64,
}

/// One leg.
#[derive(Clone, Debug)]
pub struct LegSnapshot {
    /// Name of the device.
    pub device: String,
    /// Slot.
    pub slot: u8,
    /// `in-sync`, `rebuilding`, `late`, `faulty`, `missing`, `replacement` (a third leg, of the
    /// slot that it is filled for).
    pub state: &'static str,
    /// Event count of its superblock; `None` if it has none.
    pub events: Option<u64>,
    /// Read only if there is no other.
    pub write_mostly: bool,
    /// md's failfast flag.
    pub failfast: bool,
    /// Bytes read for the array.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Granules rewritten from the other leg.
    pub healed_blocks: u64,
    /// Its cache was lost and is being written again.
    pub restoring: bool,
}

/// A copy that runs.
#[derive(Clone, Debug)]
pub struct SyncSnapshot {
    /// `resync`, `recovery` or `replace`.
    pub kind: &'static str,
    /// Leg that is written.
    pub leg: String,
    /// Looked at.
    pub done_bytes: u64,
    /// To look at.
    pub total_bytes: u64,
    /// Written.
    pub copied_bytes: u64,
    /// When it began.
    pub since: Instant,
}

impl SyncSnapshot {
    /// Percent looked at, 0 to 100.
    pub fn percent(&self) -> f64 {
        if self.total_bytes == 0 {
            return 100.0;
        }
        self.done_bytes as f64 * 100.0 / self.total_bytes as f64
    }

    /// Bytes looked at in a second.
    pub fn bytes_per_s(&self, now: Instant) -> f64 {
        self.done_bytes as f64 / now.since(self.since).as_secs_f64().max(1e-3)
    }

    /// Seconds left at that rate; `None` before there is one.
    pub fn eta_s(&self, now: Instant) -> Option<f64> {
        let rate = self.bytes_per_s(now);
        let left = self.total_bytes.saturating_sub(self.done_bytes) as f64;
        (rate > 0.0).then(|| left / rate)
    }
}

/// A copy that ended.
#[derive(Clone, Debug)]
pub struct LastSync {
    /// `resync`, `recovery` or `replace`.
    pub kind: &'static str,
    /// Leg that was written.
    pub leg: String,
    /// Only what lay under set bits.
    pub bitmap: bool,
    /// Written.
    pub copied_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// It came to its end.
    pub done: bool,
}

impl Array {
    /// Everything `antler arrays` shows, now.
    pub fn snapshot(&self) -> ArraySnapshot {
        let intent = self.intent.borrow();
        let sync = self.sync.borrow();
        let configured = usize::from(self.raid_disks.get());
        let replacement = Some(self.leg(REPLACEMENT));
        let replacement = replacement.filter(|leg| leg.state() != LegState::Absent);
        let unflushed = self
            .legs
            .iter()
            .map(|leg| leg.window.borrow().bytes())
            .max();
        ArraySnapshot {
            volume: self.options.volume.clone(),
            uuid: self.identity.array,
            size_bytes: self.identity.size * 512,
            data_offset_bytes: self.legs[0].places().data.bytes(),
            state: self.state_name(),
            events: self.events.get(),
            bitmap_chunk_bytes: intent.chunk_bytes(),
            bitmap_chunks: intent.chunk_count(),
            bitmap_dirty: intent.set_chunks().len() as u64,
            legs: self.legs[..configured]
                .iter()
                .chain(replacement)
                .map(|leg| self.leg_snapshot(leg))
                .collect(),
            sync: sync.now.clone().or(sync.replace.clone()),
            last_sync: sync.last.clone(),
            copied_bytes: sync.copied.clone(),
            failure: self.failed.borrow().clone(),
            now: self.rt.now(),
            unflushed_bytes: unflushed.unwrap_or(0),
        }
    }

    fn state_name(&self) -> &'static str {
        if self.failed.borrow().is_some() {
            "failed"
        } else if self.out_mask() != 0 {
            "degraded"
        } else if self.active.get() || self.intent.borrow().is_doubtful() {
            "active"
        } else {
            "clean"
        }
    }

    fn leg_snapshot(&self, leg: &Leg) -> LegSnapshot {
        let counters = leg.counters.get();
        let superblock = leg.superblock.borrow();
        let flags = superblock.as_ref().map_or(0, |sb| sb.device_flags);
        let state = match leg.state() {
            _ if leg.index == REPLACEMENT => "replacement",
            LegState::InSync => "in-sync",
            LegState::Rebuilding | LegState::Joining => "rebuilding",
            LegState::Absent => "missing",
            LegState::Leaving | LegState::Out => match leg.why.get() {
                Why::Late | Why::CacheLost => "late",
                Why::Missing => "missing",
                Why::Failed | Why::Unreachable | Why::Broken | Why::Operator => "faulty",
            },
        };
        LegSnapshot {
            device: leg.name(),
            slot: match leg.index {
                REPLACEMENT => self.replaces.get().0,
                slot => slot.0,
            },
            state,
            events: superblock.as_ref().map(|sb| sb.events),
            write_mostly: flags & crate::superblock::FLAG_WRITE_MOSTLY != 0,
            failfast: flags & crate::superblock::FLAG_FAILFAST != 0,
            read_bytes: counters.read_bytes,
            write_bytes: counters.write_bytes,
            read_errors: counters.read_errors,
            healed_blocks: counters.healed_blocks,
            restoring: leg.restoring.get(),
        }
    }
}
