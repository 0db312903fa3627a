//! Settings of one multipath device, named as in multipath.conf(5).
//!
//! Defaults are those of multipath.conf(5) except where Antler's documentation says otherwise:
//! failback is immediate, the WWID is checked on every login, and `no_path_retry` depends on the
//! device's [`Role`]. Times that bound a stall (hedging, silence) are constants with their reason,
//! not settings: the promises of P5 rest on them.

use crate::inner::Inner;
use crate::prio::Prio;
use blockdev::path::UnitIdentity;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// A read unanswered for this long gets a second attempt on another path (P5).
pub const HEDGE_READ: Duration = Duration::from_millis(60);
/// A write, flush or discard unanswered for this long gets a second attempt (P5).
pub const HEDGE_WRITE: Duration = Duration::from_millis(100);
/// This long before a hedge the target is asked for a sign of life, so that a slow unit (which
/// answers pings) is told from a cut.
pub(crate) const ASK_BEFORE_HEDGE: Duration = Duration::from_millis(30);
/// A path with unanswered commands on which nothing at all was heard for this long is failed.
pub const SILENT_MAX: Duration = Duration::from_millis(800);
/// A write held this long by an unanswered one on a live session calls for the fence.
pub const HOLD_BEFORE_FENCE: Duration = Duration::from_millis(50);
/// Taints that nobody needs are fenced after this much quiet.
pub const QUIET_BEFORE_FENCE: Duration = Duration::from_secs(5);
/// How long a fence lets healthy sessions drain before it closes them.
pub(crate) const FENCE_DRAIN: Duration = Duration::from_millis(20);
/// How long an older session has to vouch that the unit kept its cache.
pub(crate) const VOUCH: Duration = Duration::from_millis(300);
/// Requests kept while no path is up; more are answered [`blockdev::Kind::Again`].
pub const QUEUED_REQUESTS_MAX: usize = 4096;
/// A path that failed is used only for want of a better one until it held this long; doubled for
/// every further failure within a minute.
pub const PROBATION: Duration = Duration::from_millis(2500);
/// Longest probation.
pub(crate) const PROBATION_MAX: Duration = Duration::from_secs(40);
/// A path on probation is asked this often for a sign of life; nobody else uses it.
pub(crate) const PROBATION_ASK: Duration = Duration::from_millis(250);
/// A sign of life that takes this long prolongs a probation: the path has been cut again.
pub(crate) const PROBATION_SILENCE: Duration = Duration::from_millis(400);
/// Failures further apart than this are not flapping.
pub(crate) const FLAP_WINDOW: Duration = Duration::from_secs(60);

/// `path_grouping_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Grouping {
    /// One path a group, in the order of the configuration.
    #[default]
    Failover,
    /// All paths in one group.
    Multibus,
    /// By the unit's serial number.
    BySerial,
    /// By priority.
    ByPrio,
    /// By ALUA target port group.
    ByTpg,
    /// By target name.
    ByNodeName,
}

/// `path_selector`, within a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SelectorKind {
    /// `service-time 0`: fewest bytes in flight.
    #[default]
    ServiceTime,
    /// `round-robin 0`.
    RoundRobin,
    /// `queue-length 0`: fewest commands in flight.
    QueueLength,
    /// `historical-service-time 2 BASE_WEIGHT THRESHOLD_MULTIPLIER`, both in 1024ths.
    HistoricalServiceTime {
        /// What is left of the past after a quick command.
        base_weight: u32,
        /// Averages that differ by no more are equal.
        threshold_multiplier: u32,
    },
    /// `tail-latency 0`: least latency, counted with its spread and what is in flight.
    TailLatency,
}

impl SelectorKind {
    /// Default of `base_weight` of `historical-service-time`, in 1024ths.
    pub const BASE_WEIGHT: u32 = 972;

    /// Name as in `multipath -ll`.
    pub fn name(self) -> &'static str {
        match self {
            SelectorKind::ServiceTime => "service-time",
            SelectorKind::RoundRobin => "round-robin",
            SelectorKind::QueueLength => "queue-length",
            SelectorKind::HistoricalServiceTime { .. } => "historical-service-time",
            SelectorKind::TailLatency => "tail-latency",
        }
    }

    /// Its arguments as in `multipath -ll`: how many, and each; `0` where they are the defaults.
    pub fn args(self) -> String {
        match self {
            SelectorKind::HistoricalServiceTime {
                base_weight,
                threshold_multiplier,
            } if (base_weight, threshold_multiplier) != (Self::BASE_WEIGHT, 0) => {
                format!("2 {base_weight} {threshold_multiplier}")
            }
            _ => "0".to_owned(),
        }
    }
}

/// `path_checker`: what an idle path is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Probe {
    /// TEST UNIT READY: whether the unit says that it can be reached this way.
    #[default]
    Tur,
    /// The first sectors are read: whether its back end answers, too. `readsector0` is the same.
    Directio,
    /// NOP-Out: whether the target answers; the unit is not asked.
    Nop,
    /// Nothing: only real I/O tells.
    None,
}

impl Probe {
    /// Name as in multipath.conf.
    pub fn name(self) -> &'static str {
        match self {
            Probe::Tur => "tur",
            Probe::Directio => "directio",
            Probe::Nop => "nop",
            Probe::None => "none",
        }
    }
}

/// `san_path_err_*`: a path that failed and came back too often is kept back for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SanPathErr {
    /// More returns than this.
    pub threshold: u32,
    /// So many good checks in a row forgive one return.
    pub forget_rate: u32,
    /// How long it is kept back.
    pub recovery_time: Duration,
}

/// `marginal_path_*`: a path that fails twice in a short time is tried with reads of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarginalPath {
    /// Two failures within this.
    pub double_failed_time: Duration,
    /// How long it is then tried, ten times a second.
    pub err_sample_time: Duration,
    /// At most so many errors in a thousand reads: it is taken back.
    pub err_rate_threshold: u32,
    /// Otherwise it is tried again after this.
    pub err_recheck_gap_time: Duration,
}

/// `failback`: when to return to a better group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Failback {
    /// As soon as it has a path beyond its probation.
    #[default]
    Immediate,
    /// Only when the current group has no usable path.
    Manual,
    /// As soon as its first path comes up after all of them had failed; a path that returns to a
    /// group that still has one moves nothing.
    Followover,
    /// When it has been better for this long; a path that fails or comes back begins the time anew.
    After(Duration),
}

/// `no_path_retry`: what happens to requests when the last path is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPathRetry {
    /// They fail at once.
    Fail,
    /// They wait for ever.
    Queue,
    /// They wait this many polling intervals plus one second.
    Checks(u32),
}

/// What the device is to the layer above; `raid` tells and may change it at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Role {
    /// The only (or last in-sync) leg: waits rather than fails.
    #[default]
    Alone,
    /// A leg whose mirror has another one in sync: fails fast.
    MirrorLeg,
}

/// `fence`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FencePolicy {
    /// As the target's grade says.
    #[default]
    Auto,
    /// Reinstatement and LOGICAL UNIT RESET, whatever the target.
    Reinstate,
    /// Persistent reservations: PREEMPT AND ABORT of a closed session's key, then the barrier.
    /// Works across portal groups and targets; a unit that refuses it cannot be fenced.
    Pr,
    /// As for a target of grade `none`.
    None,
}

/// `fence_fail`: what becomes of a leg that cannot be fenced within `fence_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FenceFail {
    /// Held writes and `Op::Fence` fail with `Refused(NoFence)` if the mirror has another leg.
    #[default]
    FailLeg,
    /// They wait.
    Wait,
}

/// Suits a device's settings to its unit once that has said what it is, or refuses it.
#[derive(Clone)]
pub struct Fitting(Rc<Fit>);

type Fit = dyn Fn(&UnitIdentity) -> Result<Config, String>;

impl Fitting {
    /// `fit` yields the settings for a unit, or why it may not be used. It is asked at every login.
    pub fn new(fit: impl Fn(&UnitIdentity) -> Result<Config, String> + 'static) -> Fitting {
        Fitting(Rc::new(fit))
    }
}

impl fmt::Debug for Fitting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fitting")
    }
}

impl PartialEq for Fitting {
    fn eq(&self, other: &Fitting) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Fitting {}

impl Inner {
    /// Takes over the settings that suit the unit; the error says why it may not be used.
    pub(crate) fn fit(&self, unit: &UnitIdentity) -> Result<(), String> {
        let fitting = self.config.borrow().fitting.clone();
        let Some(fitting) = fitting else {
            return Ok(());
        };
        let config = (fitting.0)(unit)?;
        *self.config.borrow_mut() = Config {
            fitting: Some(fitting),
            ..config
        };
        Ok(())
    }
}

/// Settings of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the device, for people.
    pub name: String,
    /// Our own initiator name, under which fences reinstate our sessions.
    pub initiator_name: String,
    /// `wwid`: any other unit is refused. `None`: the first path's counts.
    pub wwid: Option<String>,
    /// `path_grouping_policy`.
    pub grouping: Grouping,
    /// `path_selector`.
    pub selector: SelectorKind,
    /// `prio`.
    pub prio: Prio,
    /// `detect_prio`: ALUA where the unit has it, whatever `prio` says.
    pub detect_prio: bool,
    /// `prio_args exclusive_pref_bit`: the preferred bit lifts an optimized group, too.
    pub exclusive_pref_bit: bool,
    /// `detect_pgpolicy`: groups by priority where the unit has ALUA, whatever
    /// `path_grouping_policy` says.
    pub detect_pgpolicy: bool,
    /// `detect_pgpolicy_use_tpg`: by target port group then.
    pub detect_pgpolicy_use_tpg: bool,
    /// `path_checker`.
    pub path_checker: Probe,
    /// `detect_checker`: `tur` where the unit has ALUA, whatever `path_checker` says.
    pub detect_checker: bool,
    /// `checker_timeout`: an unanswered check is given up after this. As long as the session is heard
    /// that is the unit's doing and fails no path.
    pub checker_timeout: Duration,
    /// `san_path_err_*`.
    pub san_path_err: Option<SanPathErr>,
    /// `marginal_path_*`.
    pub marginal_path: Option<MarginalPath>,
    /// `marginal_pathgroups`: paths kept back by either are in groups of their own, behind the
    /// others.
    pub marginal_pathgroups: bool,
    /// `failback`.
    pub failback: Failback,
    /// `no_path_retry`; `None`: 12 checks alone, fail at once as a mirror's leg.
    pub no_path_retry: Option<NoPathRetry>,
    /// `polling_interval`: first interval between checks; doubles up to
    /// `max_polling_interval`.
    pub polling_interval: Duration,
    /// `max_polling_interval`.
    pub max_polling_interval: Duration,
    /// One deadline for connect, login and identification of a path.
    pub login_timeout: Duration,
    /// `fence`.
    pub fence: FencePolicy,
    /// `reservation_key`: the key of the first path, the next ones follow it; for `fence = pr`.
    pub reservation_key: Option<u64>,
    /// `fence_timeout`: how long held writes and `Op::Fence` of a mirror's leg wait for a fence.
    pub fence_timeout: Duration,
    /// `fence_fail`.
    pub fence_fail: FenceFail,
    /// `fence_assume`: for targets of grade `none`.
    pub fence_assume: Duration,
    /// What depends on the unit itself.
    pub fitting: Option<Fitting>,
}

impl Config {
    /// Defaults for the device `name` of the initiator `initiator_name`.
    pub fn new(name: impl Into<String>, initiator_name: impl Into<String>) -> Config {
        Config {
            name: name.into(),
            initiator_name: initiator_name.into(),
            wwid: None,
            grouping: Grouping::default(),
            selector: SelectorKind::default(),
            prio: Prio::default(),
            detect_prio: true,
            exclusive_pref_bit: false,
            detect_pgpolicy: false,
            detect_pgpolicy_use_tpg: false,
            path_checker: Probe::default(),
            detect_checker: true,
            checker_timeout: Duration::from_secs(30),
            san_path_err: None,
            marginal_path: None,
            marginal_pathgroups: false,
            failback: Failback::default(),
            no_path_retry: None,
            polling_interval: Duration::from_secs(5),
            max_polling_interval: Duration::from_secs(20),
            login_timeout: Duration::from_secs(5),
            fence: FencePolicy::default(),
            reservation_key: None,
            fence_timeout: Duration::from_millis(500),
            fence_fail: FenceFail::default(),
            fence_assume: Duration::from_secs(60),
            fitting: None,
        }
    }

    /// How long requests wait once no path is left; `None`: for ever.
    pub fn queue_time(&self, role: Role) -> Option<Duration> {
        let default = match role {
            Role::Alone => NoPathRetry::Checks(12),
            Role::MirrorLeg => NoPathRetry::Fail,
        };
        match self.no_path_retry.unwrap_or(default) {
            NoPathRetry::Fail => Some(Duration::ZERO),
            NoPathRetry::Queue => None,
            NoPathRetry::Checks(n) => Some(self.polling_interval * n + Duration::from_secs(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_leg_queues_61_seconds_and_a_mirror_leg_not_at_all() {
        let config = Config::new("sto1", "iqn.2024-12.tp2.b3:i");
        assert_eq!(
            config.queue_time(Role::Alone),
            Some(Duration::from_secs(61))
        );
        assert_eq!(config.queue_time(Role::MirrorLeg), Some(Duration::ZERO));
        let queue = Config {
            no_path_retry: Some(NoPathRetry::Queue),
            ..config
        };
        assert_eq!(queue.queue_time(Role::MirrorLeg), None);
    }
}
