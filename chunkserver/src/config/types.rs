//! The configuration as the program uses it: every value typed, ranged and cross-checked.
//!
//! Built only by the loader; a `Config` in hand is valid. Units are in the types (`Duration`) or names
//! (`_bytes`).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address::HostPort;
use super::origin::{Problem, Setting};
use super::secrets::Secret;
use super::unit_rules::UnitRules;

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from, as given.
    pub path: PathBuf,
    /// `[chunkserver]`
    pub chunkserver: Chunkserver,
    /// `[admin]`
    pub admin: Admin,
    /// `[iscsi]`: what devices use unless they say otherwise.
    pub iscsi: Iscsi,
    /// `[multipath]`: what devices use unless they say otherwise.
    pub multipath: Multipath,
    /// `[[device]]`, in the order of the file; names are unique.
    pub devices: Vec<Device>,
    /// `[[volume]]`, in the order of the file; names are unique and their devices exist.
    pub volumes: Vec<Volume>,
    /// Every effective value with its origin.
    pub settings: Vec<Setting>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// The device of that name.
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|d| d.name == name)
    }

    /// Where the aliases of user_friendly_names are kept.
    pub fn bindings_file(&self, multipath: &Multipath) -> PathBuf {
        match &multipath.bindings_file {
            Some(file) => self.path.parent().unwrap_or(Path::new(".")).join(file),
            None => self.chunkserver.data_path.join("bindings"),
        }
    }

    /// The volume of that name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|v| v.name == name)
    }
}

/// When a write is on stable storage (DESIGN P1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// SYNCHRONIZE CACHE, group-committed.
    Flush,
    /// On media before each acknowledgement.
    Fua,
    /// As the stock server.
    Cache,
}

/// `[chunkserver]`
#[derive(Debug, Clone, PartialEq)]
pub struct Chunkserver {
    /// Masters to try, in this order; never empty.
    pub master_hosts: Vec<HostPort>,
    /// Silence after which the master is given up; `None`: as the master says.
    pub master_timeout: Option<Duration>,
    /// Address to serve chunks on; `None`: all.
    pub listen_host: Option<String>,
    /// Port to serve chunks on.
    pub listen_port: u16,
    /// Source address towards the master; `None`: any.
    pub bind_host: Option<String>,
    /// Directory of the lock, node id, csid and witness.
    pub data_path: PathBuf,
    /// MooseFS labels, upper case, sorted, each once.
    pub labels: Vec<char>,
    /// AUTH_CODE.
    pub auth_code: Option<Secret>,
    /// When acknowledged means on media.
    pub durability: Durability,
    /// Read cache, resolved from "auto".
    pub cache_bytes: u64,
    /// Pool, caches, windows and queues together, resolved from "auto".
    pub memory_bytes: u64,
    /// Shards, resolved from "auto".
    pub workers: usize,
    /// NICE_LEVEL.
    pub nice_level: i32,
    /// LOCK_MEMORY: mlockall.
    pub lock_memory: bool,
    /// DISABLE_OOM_KILLER.
    pub disable_oom_killer: bool,
    /// FILE_UMASK.
    pub file_umask: u32,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The admin socket.
    pub socket: PathBuf,
    /// Where to serve HTTP; `None`: nowhere.
    pub http: Option<std::net::SocketAddr>,
}

/// Whether to ask for a digest (RFC 7143 §13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digest {
    /// Offer `None` only.
    None,
    /// Offer `CRC32C` only.
    Crc32c,
    /// Offer `CRC32C,None`.
    PreferCrc32c,
    /// Offer `None,CRC32C`.
    PreferNone,
}

/// CHAP_A values (RFC 1994, RFC 7143 §12.1.4, IANA).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChapAlgorithm {
    /// 5
    Md5,
    /// 6
    Sha1,
    /// 7
    Sha256,
    /// 8
    Sha3256,
}

/// A CHAP identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChapUser {
    /// CHAP_N.
    pub user: String,
    /// The shared secret.
    pub secret: Secret,
}

/// `[iscsi]`
#[derive(Debug, Clone, PartialEq)]
pub struct Iscsi {
    /// InitiatorName.
    pub initiator_name: String,
    /// HeaderDigest.
    pub header_digest: Digest,
    /// DataDigest.
    pub data_digest: Digest,
    /// How we prove who we are; `None`: AuthMethod=None alone.
    pub chap: Option<ChapUser>,
    /// How the target proves itself (mutual CHAP); only with `chap`.
    pub target_chap: Option<ChapUser>,
    /// In the order offered; never empty.
    pub chap_algorithms: Vec<ChapAlgorithm>,
    /// One deadline for connect, login and identification of a path.
    pub login_timeout: Duration,
}

/// `path_grouping_policy`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupingPolicy {
    /// One path a group.
    Failover,
    /// All in one.
    Multibus,
    /// By the unit's serial number.
    GroupBySerial,
    /// By priority.
    GroupByPrio,
    /// By target name.
    GroupByNodeName,
    /// By ALUA target port group.
    GroupByTpg,
}

/// `path_selector`
#[derive(Debug, Clone, PartialEq)]
pub enum Selector {
    /// In turn.
    RoundRobin,
    /// Fewest requests in flight.
    QueueLength,
    /// Fewest bytes in flight.
    ServiceTime,
    /// By the measured time of service.
    HistoricalServiceTime {
        /// Weight of the past, of 1024.
        base_weight: u32,
        /// Larger EMAs up to this factor count as equal; 0: never.
        threshold_multiplier: u32,
    },
    /// By CPU.
    IoAffinity,
    /// Least latency, counted with its spread and with what is in flight.
    TailLatency,
}

/// `path_checker`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checker {
    /// TEST UNIT READY.
    Tur,
    /// Reads the first block.
    Directio,
    /// Pings the target.
    Nop,
    /// Paths are judged by real I/O alone.
    None,
}

/// `failback`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failback {
    /// Never by itself.
    Manual,
    /// At once.
    Immediate,
    /// When the first path of the best group comes up.
    Followover,
    /// After so long without a change.
    After(Duration),
}

/// `no_path_retry`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPathRetry {
    /// Errors at once.
    Fail,
    /// Queues for ever.
    Queue,
    /// Queues for so many polling intervals and 1 s.
    Times(u32),
}

impl NoPathRetry {
    /// How long requests wait once the last path is gone; `None`: for ever.
    pub fn queue_for(self, polling_interval: Duration) -> Option<Duration> {
        match self {
            NoPathRetry::Fail => Some(Duration::ZERO),
            NoPathRetry::Queue => None,
            // dm-multipath's timer: N checks, and one second for the last to come in.
            NoPathRetry::Times(n) => {
                Some(polling_interval.saturating_mul(n) + Duration::from_secs(1))
            }
        }
    }
}

/// `fence`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// As the target's grade says: reinstatement, and the barrier that it honours.
    Auto,
    /// Session reinstatement and LOGICAL UNIT RESET only.
    Reinstate,
    /// Persistent reservations only.
    Pr,
    /// By nothing: after `fence_assume` without a write old ones are taken for dead.
    None,
}

/// `fence_fail`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceFail {
    /// The leg is out until fenced.
    FailLeg,
    /// Requests wait.
    Wait,
}

/// `marginal_path_*`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarginalPath {
    /// Two failures within this make a path suspect.
    pub double_failed_time: Duration,
    /// It is then probed for this long.
    pub err_sample_time: Duration,
    /// And taken back at or below so many errors of 1000.
    pub err_rate_threshold: u32,
    /// Otherwise probed again after this.
    pub err_recheck_gap_time: Duration,
}

/// `san_path_err_*`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SanPathErr {
    /// More failures than this delay the path.
    pub threshold: u32,
    /// So many good checks forgive one failure.
    pub forget_rate: u32,
    /// How long the path is delayed.
    pub recovery_time: Duration,
}

/// `[multipath]`, for one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Multipath {
    /// Units without an alias are given one: `alias_prefix` and letters.
    pub user_friendly_names: bool,
    /// What such aliases begin with.
    pub alias_prefix: String,
    /// Where they are kept; `None`: in `data_path`.
    pub bindings_file: Option<String>,
    /// Shortest time between checks of a path.
    pub polling_interval: Duration,
    /// Longest, resolved from "auto".
    pub max_polling_interval: Duration,
    /// How a path of the current group is chosen.
    pub path_selector: Selector,
    /// How groups are made.
    pub path_grouping_policy: GroupingPolicy,
    /// Whether ALUA overrides the grouping policy.
    pub detect_pgpolicy: bool,
    /// Whether it then groups by target port group.
    pub detect_pgpolicy_use_tpg: bool,
    /// Priority of a path, with its arguments.
    pub prio: mpath::Prio,
    /// Whether the preferred bit lifts an optimized group (ALUA).
    pub exclusive_pref_bit: bool,
    /// Whether ALUA overrides `prio`.
    pub detect_prio: bool,
    /// Whether ALUA overrides `path_checker`.
    pub detect_checker: bool,
    /// How a path is checked.
    pub path_checker: Checker,
    /// When a check is given up.
    pub checker_timeout: Duration,
    /// When to return to a better group.
    pub failback: Failback,
    /// What to do without paths.
    pub no_path_retry: NoPathRetry,
    /// Persistent reservation key; `None`: derived.
    pub reservation_key: Option<u64>,
    /// Flaky paths, by transitions.
    pub san_path_err: Option<SanPathErr>,
    /// Flaky paths, by error rate.
    pub marginal_path: Option<MarginalPath>,
    /// Marginal paths get groups of their own.
    pub marginal_pathgroups: bool,
    /// Read the WWID again when a path returns.
    pub recheck_wwid: bool,
    /// How ghost writes are fenced off.
    pub fence: Fence,
    /// How long a fence may take before `fence_fail`.
    pub fence_timeout: Duration,
    /// What then.
    pub fence_fail: FenceFail,
    /// When a target of grade `none` is assumed clean.
    pub fence_assume: Duration,
}

/// One way to a logical unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portal {
    /// Where the target listens.
    pub address: HostPort,
    /// Local address to connect from; `None`: any.
    pub source: Option<IpAddr>,
}

/// `[[device]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Unique.
    pub name: String,
    /// What and where it is.
    pub kind: DeviceKind,
    /// Refuse any other unit.
    pub wwid: Option<String>,
    /// A second device may have the same WWID.
    pub allow_duplicate_wwid: bool,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq)]
pub enum DeviceKind {
    /// A logical unit by all its paths.
    Iscsi(Box<IscsiDevice>),
    /// A local disk or file.
    Local(LocalDevice),
}

/// An iSCSI logical unit.
#[derive(Debug, Clone, PartialEq)]
pub struct IscsiDevice {
    /// Never empty, no two alike.
    pub portals: Vec<Portal>,
    /// TargetName.
    pub target: String,
    /// Logical unit number.
    pub lun: u16,
    /// How to log in.
    pub iscsi: Iscsi,
    /// How its paths are used, as far as that is known before the unit is.
    pub multipath: Multipath,
    /// How they are used once it is.
    pub rules: UnitRules,
}

/// A local disk or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalDevice {
    /// Its path; a relative one is relative to the configuration file.
    pub path: PathBuf,
    /// For `volume create` of a file that does not exist.
    pub size_bytes: Option<u64>,
}

/// What the master is told of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// Takes new chunks.
    Active,
    /// MooseFS' `*`: to be emptied.
    Removing,
}

/// `[[volume]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Unique; MooseFS shows it as the disk's path.
    pub name: String,
    /// One or two names of devices.
    pub legs: Vec<String>,
    /// Names of devices that may replace a leg.
    pub spares: Vec<String>,
    /// Whether it is to be emptied.
    pub state: VolumeState,
}
