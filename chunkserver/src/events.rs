//! What happened: the ring of recent events, and one log line for each.
//!
//! An event is a change of state that an operator would want to know of. It goes to the ring (the newest
//! [`EVENTS_KEPT`], shown by `antler status`, the status page and JSON) and to the log. An object that flaps
//! is logged at most once a second per kind, with the number of lines left out; the ring keeps each. Shared by
//! threads; recording takes a short lock and never waits for I/O but the log line's.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moosefs::repeats::{LeftOut, Repeats};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;

/// How many events are kept.
pub const EVENTS_KEPT: usize = 256;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As wanted.
    Info,
    /// Redundancy or speed is reduced.
    Warn,
    /// Data or service is in danger.
    Error,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $name:literal $level:ident,)+) => {
        /// The kinds of events, named as in JSON.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum EventKind { $($(#[$doc])* $kind,)+ }

        impl EventKind {
            /// Every kind.
            pub const ALL: &'static [EventKind] = &[$(EventKind::$kind,)+];

            /// The name in JSON and in the log.
            pub fn name(self) -> &'static str {
                match self { $(EventKind::$kind => $name,)+ }
            }

            /// How much it matters.
            pub fn level(self) -> Level {
                match self { $(EventKind::$kind => Level::$level,)+ }
            }
        }
    };
}

kinds! {
    /// A path of a device failed.
    PathFailed "path_failed" Warn,
    /// A path is used again.
    PathReinstated "path_reinstated" Info,
    /// A device has no path and queues.
    DeviceQueueing "device_queueing" Error,
    /// A leg was too slow and is left behind.
    LegLate "leg_late" Warn,
    /// A leg is out.
    LegFailed "leg_failed" Error,
    /// A leg is back in the mirror.
    LegReadded "leg_readded" Info,
    /// A resync, recovery, check or replacement began.
    SyncStarted "sync_started" Info,
    /// It ended.
    SyncDone "sync_done" Info,
    /// Old writes of a path are being fenced off.
    FenceStarted "fence_started" Info,
    /// They can no longer take effect.
    FenceDone "fence_done" Info,
    /// They could not be fenced off in time.
    FenceFailed "fence_failed" Error,
    /// They are assumed gone, without proof.
    FenceAssumed "fence_assumed" Error,
    /// A unit may have lost its write cache.
    CacheLost "cache_lost" Error,
    /// Another node claims the volume.
    ClaimLost "claim_lost" Error,
    /// The master may be an old one.
    StaleMasterSuspected "stale_master_suspected" Error,
    /// Space is running out.
    SpaceLow "space_low" Warn,
    /// Registered with the master.
    MasterConnected "master_connected" Info,
    /// The master is gone.
    MasterLost "master_lost" Warn,
    /// A chunk is damaged on every leg.
    ChunkDamaged "chunk_damaged" Error,
    /// A block was rewritten from the good leg.
    BlockHealed "block_healed" Warn,
    /// Deleted chunks were put aside.
    ChunksQuarantined "chunks_quarantined" Info,
    /// The configuration was read again.
    ConfigReloaded "config_reloaded" Info,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339 UTC.
    pub time: String,
    /// How much it matters.
    pub level: Level,
    /// What kind.
    pub event: EventKind,
    /// What it happened to: `sto1 10.3.1.1:13260`, `vol1`.
    pub object: String,
    /// A sentence.
    pub text: String,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Event>,
    logged: Repeats<(EventKind, String)>,
    counts: BTreeMap<EventKind, u64>,
}

/// The ring, shared by threads.
#[derive(Debug, Clone)]
pub struct EventLog {
    ring: Arc<Mutex<Ring>>,
    clock: Clock,
}

impl EventLog {
    /// An empty ring.
    pub fn new(clock: Clock) -> EventLog {
        EventLog {
            ring: Arc::default(),
            clock,
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // A panic elsewhere must not keep the last events from being shown.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an event, at the level of its kind.
    pub fn record(&self, kind: EventKind, object: &str, text: impl Into<String>) {
        self.record_at(kind.level(), kind, object, text);
    }

    /// Records an event at another level than its kind's (a sync that ended in an error).
    pub fn record_at(&self, level: Level, kind: EventKind, object: &str, text: impl Into<String>) {
        let text = text.into();
        let (now, time) = (self.clock.elapsed(), self.clock.wall().to_string());
        let logged = {
            let mut ring = self.ring();
            *ring.counts.entry(kind).or_default() += 1;
            if ring.events.len() == EVENTS_KEPT {
                ring.events.pop_front();
            }
            let event = Event {
                time,
                level,
                event: kind,
                object: object.to_owned(),
                text: text.clone(),
            };
            ring.events.push_back(event);
            ring.logged.may_log(&(kind, object.to_owned()), now)
        };
        if let Some(more) = logged {
            log(level, kind, object, &text, more);
        }
    }

    /// The events kept, oldest first.
    pub fn recent(&self) -> Vec<Event> {
        self.ring().events.iter().cloned().collect()
    }

    /// How many of each kind were recorded since the start.
    pub fn counts(&self) -> BTreeMap<EventKind, u64> {
        self.ring().counts.clone()
    }
}

fn log(level: Level, kind: EventKind, object: &str, text: &str, more: LeftOut) {
    let event = kind.name();
    match level {
        Level::Info => tracing::info!(target: "antler", event, object, "{text}{more}"),
        Level::Warn => tracing::warn!(target: "antler", event, object, "{text}{more}"),
        Level::Error => tracing::error!(target: "antler", event, object, "{text}{more}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    fn at(ms: &Arc<AtomicU64>) -> EventLog {
        let ms = ms.clone();
        EventLog::new(Clock::by(move || {
            let now = ms.load(Ordering::Relaxed);
            (
                Timestamp(1_767_225_600_000 + now),
                Duration::from_millis(now),
            )
        }))
    }

    #[test]
    fn the_page_for_operators_has_a_row_for_each() {
        let page = include_str!("../../docs/multipath-operation.md");
        let rows: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        for kind in EventKind::ALL {
            let name = format!("`{}`", kind.name());
            let has_it = |row: &&&str| row.split(" | ").next().unwrap_or_default().contains(&name);
            assert_eq!(rows.iter().filter(has_it).count(), 1, "{name}");
        }
    }

    #[test]
    fn keeps_the_newest_and_names_them_as_documented() {
        let log = at(&Arc::default());
        for i in 0..EVENTS_KEPT + 5 {
            log.record(EventKind::PathFailed, "sto1 10.3.1.1:3260", format!("{i}"));
        }
        let kept = log.recent();
        assert_eq!(kept.len(), EVENTS_KEPT);
        assert_eq!(
            (kept[0].text.as_str(), kept[EVENTS_KEPT - 1].text.as_str()),
            ("5", "260")
        );
        assert_eq!(
            serde_json::to_string(&kept[0]).unwrap(),
            r#"{"time":"2026-01-01T00:00:00.000Z","level":"warn","event":"path_failed","object":"sto1 10.3.1.1:3260","text":"5"}"#
        );
        for kind in EventKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        assert_eq!(log.counts()[&EventKind::PathFailed], 261);
    }
}
