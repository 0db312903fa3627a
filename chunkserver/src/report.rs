//! Results of the commands that work without the daemon: the objects of their `--json`.
//!
//! The same rules as for [`crate::model`]: names are fixed, units are in the names, unknown is `null`.

use serde::{Deserialize, Serialize};

use crate::model::{DeviceKind, FenceGrade, LegState};

/// One object of `antler discover --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Discovery {
    /// The portal asked.
    pub portal: String,
    /// What it named.
    pub targets: Vec<DiscoveredTarget>,
}

/// A target found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiscoveredTarget {
    /// TargetName.
    pub name: String,
    /// Where it listens.
    pub portals: Vec<DiscoveredPortal>,
}

/// Where a target listens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiscoveredPortal {
    /// `address:port`
    pub address: String,
    /// Target portal group tag.
    pub tpgt: u16,
}

/// `device info`: how a path answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeState {
    /// Logged in, and the unit is the one expected.
    Ready,
    /// No answer in time.
    Unreachable,
    /// The target refused the login.
    Refused,
    /// Another unit, or none, or no disk.
    Misconfigured,
}

impl ProbeState {
    /// The word in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeState::Ready => "ready",
            ProbeState::Unreachable => "unreachable",
            ProbeState::Refused => "refused",
            ProbeState::Misconfigured => "misconfigured",
        }
    }
}

/// `device info`: one path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbedPath {
    /// `address:port`
    pub portal: String,
    /// Where the target sent the login to instead: for good, if the configuration is stale.
    #[serde(default)]
    pub redirected_to: Option<String>,
    /// TargetName.
    pub target: String,
    /// Logical unit number.
    pub lun: u16,
    /// How it answered.
    pub state: ProbeState,
    /// What went wrong.
    pub error: Option<String>,
    /// Target portal group tag.
    pub tpgt: Option<u16>,
    /// `0x` and 12 hex digits.
    pub isid: String,
    /// Connect and login.
    pub login_ms: Option<f64>,
    /// As negotiated: `none` or `crc32c`.
    pub header_digest: Option<String>,
    /// As negotiated.
    pub data_digest: Option<String>,
}

/// The object of `antler device info --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its name in the configuration.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Its WWID.
    pub wwid: Option<String>,
    /// T10 vendor.
    pub vendor: Option<String>,
    /// Product.
    pub product: Option<String>,
    /// Revision.
    pub revision: Option<String>,
    /// Unit serial number.
    pub serial: Option<String>,
    /// Size.
    pub size_bytes: Option<u64>,
    /// Logical block.
    pub block_bytes: Option<u32>,
    /// Physical block.
    pub physical_block_bytes: Option<u32>,
    /// A volatile write cache is on.
    pub write_cache: Option<bool>,
    /// FUA is supported.
    pub fua: Option<bool>,
    /// UNMAP is supported.
    pub unmap: Option<bool>,
    /// `none`, `implicit`, `explicit`, `both`
    pub alua: Option<String>,
    /// How well old writes can be fenced off.
    pub fence: Option<FenceGrade>,
    /// Every path; empty for local devices.
    pub paths: Vec<ProbedPath>,
}

/// A leg as its superblock tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfflineLeg {
    /// Its device.
    pub device: String,
    /// Its number in the array.
    pub slot: Option<u32>,
    /// Its event count.
    pub events: Option<u64>,
    /// Whether it is current.
    pub state: LegState,
}

/// A volume as its legs tell: an element of `volume list --json`, and with the last three fields
/// `volume info --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// The array's UUID.
    pub uuid: Option<String>,
    /// Usable size.
    pub size_bytes: Option<u64>,
    /// Used.
    pub used_bytes: Option<u64>,
    /// Free.
    pub free_bytes: Option<u64>,
    /// Chunks.
    pub chunks: Option<u64>,
    /// Stopped cleanly.
    pub clean: Option<bool>,
    /// Its legs.
    pub legs: Vec<OfflineLeg>,
    /// What cannot be told, and why.
    #[serde(default)]
    pub error: Option<String>,
    /// Of the chunk store.
    #[serde(flatten)]
    pub details: Option<VolumeDetails>,
}

/// What `volume info` tells beside `volume list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeDetails {
    /// Version of the chunk store's format.
    pub format_version: u32,
    /// Where data begins on each leg.
    pub data_offset_bytes: u64,
    /// The highest id of a chunk, hex.
    pub largest_chunk_id: Option<String>,
    /// The MooseFS instance that it belongs to: 16 hex digits, or `any`; `None`: none yet.
    #[serde(default)]
    pub metaid: Option<String>,
    /// The node that claims it, and how long ago it last did, in words.
    #[serde(default)]
    pub claimed_by: Option<String>,
}

/// The object of `antler volume list --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeList {
    /// In the order of the configuration.
    pub volumes: Vec<VolumeInfo>,
}

/// The object of `antler volume create --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeCreated {
    /// Its name.
    pub name: String,
    /// The array's UUID.
    pub uuid: String,
    /// Usable size.
    pub size_bytes: u64,
    /// Whether both legs were made equal.
    pub synced: bool,
}

/// `volume check`: how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    /// Nothing found.
    Clean,
    /// All found was repaired.
    Repaired,
    /// Damage is left.
    Damaged,
}

/// `volume check`: one finding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeProblem {
    /// `checksum`, `reference`, `superblock`, …
    pub kind: String,
    /// 16 hex digits; `None` if it concerns no chunk.
    pub chunk: Option<String>,
    /// Its version.
    pub version: Option<u32>,
    /// 64 KiB block of the chunk.
    pub block: Option<u32>,
    /// The leg's device.
    pub leg: Option<String>,
    /// Whether it was repaired.
    pub repaired: bool,
    /// A sentence.
    pub text: String,
}

/// The object of `antler volume check --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeCheck {
    /// The volume.
    pub name: String,
    /// How it ended.
    pub result: CheckResult,
    /// Chunks looked at.
    pub chunks: u64,
    /// Blocks whose data was read.
    pub blocks_checked: u64,
    /// Whether data was read at all.
    pub data: bool,
    /// What was found.
    pub problems: Vec<VolumeProblem>,
}

/// The object of `antler volume import --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Imported {
    /// Chunks taken in.
    pub imported: u64,
    /// Chunks that exist in this or a newer version.
    pub skipped: u64,
    /// Files that are no good chunk.
    pub damaged: u64,
}

/// The object of `antler volume export --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exported {
    /// Chunks written.
    pub exported: u64,
    /// Files that exist.
    pub skipped: u64,
    /// Chunks damaged on every leg.
    pub damaged: u64,
}

/// What `volume claim`, `grow` and `upgrade` did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeChanged {
    /// The volume.
    pub name: String,
    /// A sentence.
    pub text: String,
}

/// `scrub … status`: whether it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubState {
    /// It runs.
    Running,
    /// It does not.
    Idle,
}

/// The object of `antler scrub VOLUME status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scrub {
    /// The volume.
    pub volume: String,
    /// Whether it runs.
    pub state: ScrubState,
    /// RFC 3339 UTC; `None`: never.
    pub started: Option<String>,
    /// RFC 3339 UTC; `None`: not yet.
    pub finished: Option<String>,
    /// 0 to 100.
    pub percent: f64,
    /// Read and compared.
    pub checked_bytes: u64,
    /// Now.
    pub bytes_per_s: u64,
    /// Checksums that did not match.
    pub errors: u64,
    /// Blocks rewritten from the good leg.
    pub healed_blocks: u64,
    /// Blocks damaged on every leg.
    pub damaged_blocks: u64,
}

/// Why a deleted chunk is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// For a while, as long as space allows.
    Time,
    /// Until purged by command: the master that asked may be an old one.
    Hard,
}

/// A deleted chunk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuarantinedChunk {
    /// Where.
    pub volume: String,
    /// 16 hex digits.
    pub chunk: String,
    /// Its version.
    pub version: u32,
    /// RFC 3339 UTC.
    pub deleted: String,
    /// Why it is held.
    pub hold: Hold,
    /// What it occupies.
    pub bytes: u64,
    /// RFC 3339 UTC; `None` if held hard.
    pub purge_after: Option<String>,
}

/// The object of `antler quarantine list --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Newest deletion first.
    pub chunks: Vec<QuarantinedChunk>,
}

/// What `quarantine restore` or `purge` did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuarantineDone {
    /// Chunks restored or purged.
    pub done: u64,
    /// Ids that exist, or are not there.
    pub skipped: Vec<String>,
}

/// Latencies of a bench, µs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyUs {
    /// Least.
    pub min: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90 of 100 are not above.
    pub p90: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p99_9: u64,
    /// Most.
    pub max: u64,
}

impl From<blockdev::latency::Latencies> for LatencyUs {
    fn from(l: blockdev::latency::Latencies) -> LatencyUs {
        LatencyUs {
            min: l.min,
            mean: l.mean,
            p50: l.p50,
            p90: l.p90,
            p99: l.p99,
            p99_9: l.p99_9,
            max: l.max,
        }
    }
}

/// CPU seconds of this process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuSeconds {
    /// In user mode.
    pub user: f64,
    /// In the kernel.
    pub system: f64,
}

/// The object of `antler bench … --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// `iscsi`, `device`, `chunk`
    pub bench: String,
    /// The mode.
    pub rw: String,
    /// Bytes an I/O.
    pub bs_bytes: u64,
    /// I/Os in flight.
    pub iodepth: u32,
    /// Connections.
    pub sessions: u32,
    /// How long it ran.
    pub elapsed_s: f64,
    /// I/Os done.
    pub ios: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// Blocks that read back wrong.
    pub verify_errors: u64,
    /// I/Os a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_s: u64,
    /// Latencies.
    pub lat_us: LatencyUs,
    /// CPU used.
    pub cpu_s: CpuSeconds,
    /// As negotiated; `None` without iSCSI.
    pub header_digest: Option<String>,
    /// As negotiated; `None` without iSCSI.
    pub data_digest: Option<String>,
}
