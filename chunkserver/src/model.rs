//! What the program says about itself: the objects of `--json`, `/api/status` and the admin socket.
//!
//! The interface between the layers (which fill these in) and everything that shows them. Field names and
//! states are fixed; fields may be added, never renamed. Units are in the names, times are RFC 3339 UTC,
//! what is unknown is `None` and prints as `null`, lists are present even when empty.

use serde::{Deserialize, Serialize};

use crate::events::Event;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// The word in JSON and in tables.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// `status.state`
    NodeState {
        /// Reading indexes, not registered yet.
        Starting = "starting",
        /// At work.
        Serving = "serving",
        /// Finishing.
        Stopping = "stopping",
    }
}
words! {
    /// `status.master.state`
    MasterState {
        /// Registered.
        Registered = "registered",
        /// A connection is being made.
        Connecting = "connecting",
        /// Nobody answers; tried again.
        Waiting = "waiting",
        /// The master is not ours, or refuses us.
        Refused = "refused",
    }
}
words! {
    /// `status.volumes[].state`
    VolumeState {
        /// Takes new chunks.
        Active = "active",
        /// To be emptied.
        Removing = "removing",
        /// Reads only.
        ReadOnly = "read-only",
        /// Waits for its legs.
        Waiting = "waiting",
        /// Not served.
        Failed = "failed",
        /// No leg is there.
        Absent = "absent",
    }
}
words! {
    /// `devices[].kind`
    DeviceKind {
        /// A logical unit by its paths.
        Iscsi = "iscsi",
        /// A local disk or file.
        Local = "local",
    }
}
words! {
    /// `devices[].state`
    DeviceState {
        /// Every path is up.
        Ready = "ready",
        /// Some are.
        Degraded = "degraded",
        /// None is; requests wait.
        Queueing = "queueing",
        /// None is; requests fail.
        Failed = "failed",
    }
}
words! {
    /// How well old writes can be fenced off at a target.
    FenceGrade {
        /// Tested with this product.
        Proven = "proven",
        /// The standard asks for it.
        Assumed = "assumed",
        /// It cannot be done.
        None = "none",
    }
}
words! {
    /// `groups[].state`
    GroupState {
        /// In use.
        Active = "active",
        /// May be used.
        Enabled = "enabled",
        /// Must not be used.
        Disabled = "disabled",
    }
}
words! {
    /// `paths[].state`
    PathState {
        /// Takes requests.
        Active = "active",
        /// Takes none.
        Failed = "failed",
    }
}
words! {
    /// `paths[].checker`
    CheckerState {
        /// Answers.
        Ready = "ready",
        /// Does not.
        Faulty = "faulty",
        /// Answers and fails by turns.
        Shaky = "shaky",
        /// Standby.
        Ghost = "ghost",
        /// A check is running.
        Pending = "pending",
        /// A check took too long.
        Timeout = "timeout",
        /// Held back as marginal.
        Delayed = "delayed",
        /// The unit is gone.
        Disconnected = "disconnected",
        /// Not known yet.
        Undef = "undef",
    }
}
words! {
    /// `arrays[].state`
    ArrayState {
        /// Both legs are equal.
        Clean = "clean",
        /// Writes are under way.
        Active = "active",
        /// A leg is missing.
        Degraded = "degraded",
        /// Not usable.
        Failed = "failed",
    }
}
words! {
    /// `arrays[].legs[].state`
    LegState {
        /// Holds every acknowledged write.
        InSync = "in-sync",
        /// Being filled.
        Rebuilding = "rebuilding",
        /// Left behind for slowness; comes back by itself.
        Late = "late",
        /// Out.
        Faulty = "faulty",
        /// Not there.
        Missing = "missing",
        /// Waits to replace another.
        Spare = "spare",
        /// Being filled to replace another.
        Replacement = "replacement",
    }
}
words! {
    /// `sync.kind`
    SyncKind {
        /// After an unclean stop.
        Resync = "resync",
        /// A leg is filled.
        Recovery = "recovery",
        /// Legs are compared.
        Check = "check",
        /// A leg is replaced.
        Replace = "replace",
    }
}

/// When a path is checked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextCheck {
    /// From now.
    pub in_ms: u64,
    /// From its last check.
    pub interval_ms: u64,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// Its place among the paths of its device, in the order of the configuration.
    #[serde(default)]
    pub index: usize,
    /// Its own priority; that of its group is the mean of those that are up.
    #[serde(default)]
    pub priority: i32,
    /// `address:port`
    pub portal: String,
    /// TargetName.
    pub target: String,
    /// Logical unit number.
    pub lun: u16,
    /// Whether it takes requests.
    pub state: PathState,
    /// What the checker says.
    pub checker: CheckerState,
    /// Held in a group of last resort.
    pub marginal: bool,
    /// `path_checker`, as it is in use.
    #[serde(default)]
    pub path_checker: Option<String>,
    /// When it is checked again, while it serves.
    #[serde(default)]
    pub next_check: Option<NextCheck>,
    /// ALUA target port group, if the unit names one.
    #[serde(default)]
    pub target_port_group: Option<u16>,
    /// Commands sent and not answered.
    pub in_flight: u32,
    /// Failures since the start.
    pub failures: u64,
    /// The last one.
    pub last_error: Option<String>,
    /// Reads done.
    pub read_ios: u64,
    /// Writes done.
    pub write_ios: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
}

/// A path group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Whether it is in use.
    pub state: GroupState,
    /// Mean priority of its paths.
    pub priority: i32,
    /// Its selector, as multipath names it: `service-time`.
    pub policy: String,
    /// Arguments of the selector, as multipath prints them: how many, and each. `0`: none but the defaults.
    #[serde(default = "no_arguments")]
    pub policy_args: String,
    /// Its paths.
    pub paths: Vec<Path>,
}

fn no_arguments() -> String {
    "0".to_owned()
}

/// A device as `antler paths` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its name in the configuration.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Its WWID, once it has answered.
    pub wwid: Option<String>,
    /// Its size, once it has answered.
    pub size_bytes: Option<u64>,
    /// T10 vendor.
    pub vendor: Option<String>,
    /// Product.
    pub product: Option<String>,
    /// Whether it can be used.
    pub state: DeviceState,
    /// How well old writes can be fenced off; `None` for local devices.
    pub fence: Option<FenceGrade>,
    /// Path groups; empty for local devices.
    pub groups: Vec<Group>,
    /// Extents with an unanswered write.
    pub tainted_ranges: u64,
    /// Writes that wait for one of them.
    pub held_writes: u64,
    /// Changes of path with requests in flight.
    pub failovers: u64,
    /// The longest a request waited for another path.
    pub longest_stall_ms: u64,
    /// Times that requests were failed for want of a path.
    #[serde(default)]
    pub map_failures: u64,
    /// Layouts of its groups.
    #[serde(default)]
    pub map_loads: u64,
    /// How long requests waited for a path, all in all.
    #[serde(default)]
    pub queueing_ms: u64,
    /// Times that `no_path_retry` ran out.
    #[serde(default)]
    pub queueing_timeouts: u64,
    /// hwhandler of `multipath -ll`: ALUA was found.
    #[serde(default)]
    pub alua: bool,
    /// Requests are queued without a path.
    #[serde(default)]
    pub queue_if_no_path: bool,
    /// Writes are refused by the unit.
    #[serde(default)]
    pub read_only: bool,
    /// Its alias by multipath.conf or user_friendly_names.
    #[serde(default)]
    pub alias: Option<String>,
    /// Product revision.
    #[serde(default)]
    pub revision: Option<String>,
    /// Unit serial number (VPD 80h).
    #[serde(default)]
    pub serial: Option<String>,
    /// The longest transfer, KiB.
    #[serde(default)]
    pub max_sectors_kb: Option<u64>,
    /// `manual`, `immediate`, `followover`, or seconds; `None` for local devices.
    #[serde(default)]
    pub failback: Option<String>,
    /// What becomes of requests without a path, as multipathd says it: `off`, `on`, `12 chk`.
    #[serde(default)]
    pub queueing: Option<String>,
}

/// The object of `antler paths --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paths {
    /// In the order of the configuration.
    pub devices: Vec<Device>,
}

/// One try of a traced request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The path tried.
    pub portal: String,
    /// Why: `first`, `hedge`, `retry`.
    pub reason: String,
    /// Since the request came.
    pub start_us: u64,
    /// `None` while it runs.
    pub end_us: Option<u64>,
    /// `ok`, or what went wrong; `None` while it runs.
    pub result: Option<String>,
}

/// A request that took more than one path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathEvent {
    /// RFC 3339 UTC.
    pub time: String,
    /// Which device.
    pub device: String,
    /// Its trace id, as in the log.
    pub trace: String,
    /// `read`, `write`, `flush`, …
    pub op: String,
    /// Where.
    pub offset_bytes: u64,
    /// How much.
    pub bytes: u64,
    /// Each try, in order.
    pub attempts: Vec<Attempt>,
}

/// The object of `antler paths --events --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathEvents {
    /// Oldest first.
    pub events: Vec<PathEvent>,
}

/// The write-intent bitmap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bitmap {
    /// Bytes a bit stands for.
    pub chunk_bytes: u64,
    /// Bits.
    pub chunks: u64,
    /// Bits set.
    pub dirty: u64,
}

/// A leg of an array.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leg {
    /// Its device.
    pub device: String,
    /// Its number in the array; `None` for a spare.
    pub slot: Option<u32>,
    /// Whether it is current.
    pub state: LegState,
    /// Its event count; `None` if it is missing.
    pub events: Option<u64>,
    /// Reads go elsewhere.
    pub write_mostly: bool,
    /// Errors are not retried.
    pub failfast: bool,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Blocks rewritten from the other leg.
    pub healed_blocks: u64,
    /// Superblock update time, RFC 3339 UTC.
    #[serde(default)]
    pub utime: Option<String>,
}

/// A running sync.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sync {
    /// What kind.
    pub kind: SyncKind,
    /// The leg written to.
    pub leg: String,
    /// 0 to 100.
    pub percent: f64,
    /// Examined.
    pub done_bytes: u64,
    /// To examine.
    pub total_bytes: u64,
    /// Copied: what is equal or unused is not.
    pub copied_bytes: u64,
    /// Now.
    pub bytes_per_s: u64,
    /// Until done, at this rate.
    pub eta_s: Option<u64>,
}

/// The last sync that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastSync {
    /// What kind.
    pub kind: SyncKind,
    /// The leg written to.
    pub leg: String,
    /// By bitmap, not in full.
    pub bitmap: bool,
    /// Copied.
    pub copied_bytes: u64,
    /// How long it took.
    pub elapsed_s: f64,
    /// `done`, `stopped`, or what went wrong.
    pub result: String,
}

/// An array as `antler arrays` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Array {
    /// Its volume.
    pub volume: String,
    /// md's UUID: four groups of eight hex digits.
    pub uuid: Option<String>,
    /// `raid1`
    pub level: String,
    /// Usable size.
    pub size_bytes: u64,
    /// Where data begins on each leg.
    pub data_offset_bytes: u64,
    /// Whether it is whole.
    pub state: ArrayState,
    /// Highest event count.
    pub events: u64,
    /// `None` without one.
    pub bitmap: Option<Bitmap>,
    /// Its legs.
    pub legs: Vec<Leg>,
    /// What runs.
    pub sync: Option<Sync>,
    /// What ran last.
    pub last_sync: Option<LastSync>,
    /// Why it is not served, or what to know of it (histories of diverged legs, and the cure).
    #[serde(default)]
    pub note: Option<String>,
}

/// The object of `antler arrays --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arrays {
    /// In the order of the configuration.
    pub arrays: Vec<Array>,
}

/// The link to the master.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Master {
    /// How it stands.
    pub state: MasterState,
    /// The one we talk to, or try.
    pub address: String,
    /// Its version.
    pub version: Option<String>,
    /// Our number with it.
    pub csid: Option<u16>,
    /// The file system's id, hex.
    pub metaid: Option<String>,
    /// Why it is not registered.
    pub last_error: Option<String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Whether it is served.
    pub state: VolumeState,
    /// Usable size.
    pub size_bytes: u64,
    /// As MooseFS counts it.
    pub used_bytes: u64,
    /// The rest.
    pub free_bytes: u64,
    /// Chunks it holds.
    pub chunks: u64,
    /// Chunks damaged on every leg.
    pub damaged_chunks: u64,
    /// Blocks rewritten from the good leg.
    pub healed_blocks: u64,
    /// Deleted chunks held back.
    pub quarantined_chunks: u64,
    /// `flush`, `fua`, `cache`
    pub durability: String,
    /// Acknowledged, not flushed.
    pub unflushed_bytes: u64,
    /// Age of the oldest of them.
    pub unflushed_ms: u64,
    /// How long opening took.
    pub open_ms: Option<u64>,
    /// Why it is not served, and what to do.
    #[serde(default)]
    pub note: Option<String>,
}

/// Client traffic since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Clients {
    /// Open now.
    pub connections: u64,
    /// Reads done.
    pub read_ios: u64,
    /// Writes done.
    pub write_ios: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
}

/// Rates over the last seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// How many seconds they are taken over.
    pub window_s: f64,
    /// Client reads a second.
    pub read_iops: f64,
    /// Client writes a second.
    pub write_iops: f64,
    /// Bytes read by clients a second.
    pub read_bytes_per_s: u64,
    /// Bytes written by clients a second.
    pub write_bytes_per_s: u64,
}

/// Latencies over the same seconds, rounded up to the bounds of the histogram's buckets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// `clients`, or a device.
    pub object: String,
    /// `read`, `write`, …
    pub op: String,
    /// How many.
    pub ios: u64,
    /// Half are not above.
    pub p50_us: u64,
    /// 99 of 100 are not above.
    pub p99_us: u64,
}

/// The object of `antler status --json` and `/api/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of this program.
    pub version: String,
    /// Of the process.
    pub pid: u32,
    /// Since the start.
    pub uptime_s: f64,
    /// What it is doing.
    pub state: NodeState,
    /// The link to the master.
    pub master: Master,
    /// Where chunks are served.
    pub listen: String,
    /// In the order of the configuration.
    pub volumes: Vec<Volume>,
    /// In the order of the configuration.
    pub arrays: Vec<Array>,
    /// In the order of the configuration.
    pub devices: Vec<Device>,
    /// Client traffic.
    pub clients: Clients,
    /// Client traffic, lately.
    #[serde(default)]
    pub rates: Rates,
    /// Latencies, lately; what was not used is left out.
    #[serde(default)]
    pub latencies: Vec<Latency>,
    /// Newest last.
    pub events: Vec<Event>,
    /// What is wrong with the node as a whole.
    #[serde(default)]
    pub note: Option<String>,
}

impl Status {
    /// What is known before the first snapshot: the process and that it starts.
    pub fn starting(version: &str, pid: u32, listen: &str, master: &str) -> Status {
        Status {
            version: version.to_owned(),
            pid,
            uptime_s: 0.0,
            state: NodeState::Starting,
            master: Master {
                state: MasterState::Connecting,
                address: master.to_owned(),
                version: None,
                csid: None,
                metaid: None,
                last_error: None,
            },
            listen: listen.to_owned(),
            volumes: Vec::new(),
            arrays: Vec::new(),
            devices: Vec::new(),
            clients: Clients::default(),
            rates: Rates::default(),
            latencies: Vec::new(),
            events: Vec::new(),
            note: None,
        }
    }

    /// Registered and at least one volume is served (`/healthz`).
    pub fn is_healthy(&self) -> bool {
        self.state == NodeState::Serving
            && self.master.state == MasterState::Registered
            && self.volumes.iter().any(|v| {
                matches!(
                    v.state,
                    VolumeState::Active | VolumeState::Removing | VolumeState::ReadOnly
                )
            })
    }
}
