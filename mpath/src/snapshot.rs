//! What operators see: the state of a device, its groups and its paths at one moment.

use crate::config::Probe;
use crate::grade::FenceGrade;
use crate::inner::Inner;
use crate::path::{Checker, Path, PathCounters, Phase, Standing};
use crate::prio::priority;
use crate::tally::Outages;
use blockdev::path::{Isid, PathName, SessionFacts, UnitIdentity};
use std::rc::Rc;
use std::time::Duration;

/// `device.state` of `antler paths --json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Every path serves.
    Ready,
    /// Some path serves.
    Degraded,
    /// None serves; requests wait.
    Queueing,
    /// None serves; requests fail, or the unit is another node's.
    Failed,
}

impl DeviceState {
    /// The word in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            DeviceState::Ready => "ready",
            DeviceState::Degraded => "degraded",
            DeviceState::Queueing => "queueing",
            DeviceState::Failed => "failed",
        }
    }
}

/// `group.state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// Takes the I/O.
    Active,
    /// Could.
    Enabled,
    /// Has no usable path.
    Disabled,
}

impl GroupState {
    /// The word in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            GroupState::Active => "active",
            GroupState::Enabled => "enabled",
            GroupState::Disabled => "disabled",
        }
    }
}

/// How a path came to be as it is, for `antler device info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathReach {
    /// Logged in and verified.
    Ready,
    /// Does not answer.
    Unreachable,
    /// Logged in to something else, or refused.
    Misconfigured,
    /// Taken down by an operator.
    Down,
}

/// One path.
#[derive(Clone, Debug)]
pub struct PathSnapshot {
    /// Its place among the paths of the device, in the order of the configuration.
    pub index: usize,
    /// Its priority.
    pub priority: i32,
    /// Portal, target, LUN, source.
    pub name: PathName,
    /// Its ISID.
    pub isid: Isid,
    /// `active` in tables: takes I/O. Otherwise `failed`.
    pub is_active: bool,
    /// Reachability.
    pub reach: PathReach,
    /// Last checker result.
    pub checker: Checker,
    /// `path_checker`, or what ALUA makes of it.
    pub probe: Probe,
    /// While it serves: how long until its next check, and how long that is after the last one.
    pub next_check: Option<(Duration, Duration)>,
    /// On probation or kept back after failures, doubtful, or slow.
    pub is_marginal: bool,
    /// Commands in flight.
    pub in_flight: u32,
    /// Counters.
    pub counters: PathCounters,
    /// What last went wrong.
    pub last_error: Option<String>,
    /// What the unit said on this path, if it was ever reached.
    pub identity: Option<Rc<UnitIdentity>>,
    /// The session, if there is one.
    pub session: Option<SessionFacts>,
}

/// One path group.
#[derive(Clone, Debug)]
pub struct GroupSnapshot {
    /// State.
    pub state: GroupState,
    /// Mean priority of its usable paths.
    pub priority: i32,
    /// Selector, as `service-time`.
    pub policy: &'static str,
    /// Its arguments, as dm-multipath has them: how many, and each.
    pub policy_args: String,
    /// Its paths, in the order of the configuration.
    pub paths: Vec<PathSnapshot>,
}

/// A device.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// What the unit said when it was first reached.
    pub unit: Option<Rc<UnitIdentity>>,
    /// Size now in use, in bytes; 0 if never reached.
    pub size_bytes: u64,
    /// State.
    pub state: DeviceState,
    /// How far the target can prove that old writes are dead.
    pub fence: FenceGrade,
    /// Groups, best first.
    pub groups: Vec<GroupSnapshot>,
    /// Unanswered writes that may still land.
    pub tainted_ranges: usize,
    /// Writes that wait for them.
    pub held_writes: usize,
    /// Requests that wait for a path.
    pub queued: usize,
    /// Switches of the active group.
    pub failovers: u64,
    /// Layouts of the groups, the first included.
    pub layouts: u64,
    /// What befell it for want of a path.
    pub outages: Outages,
    /// No path is left, and requests fail in so long if none comes back.
    pub queueing_left: Option<Duration>,
    /// Fences completed.
    pub fences: u64,
    /// Longest time from arrival to a good answer of a request that did not go straight through.
    pub longest_stall: Duration,
}

impl Inner {
    pub(crate) fn snapshot(&self) -> Snapshot {
        let paths = self.all_paths();
        let present: Vec<&Rc<Path>> = paths
            .iter()
            .filter(|p| p.phase.get() != Phase::Removed)
            .collect();
        let serving = present.iter().filter(|p| p.is_serving()).count();
        let has_way = present.iter().any(|p| p.is_a_way());
        let state = if self.barred.borrow().is_some() {
            DeviceState::Failed
        } else if serving == present.len() && has_way {
            DeviceState::Ready
        } else if serving > 0 && has_way {
            DeviceState::Degraded
        } else if self.gives_up() {
            DeviceState::Failed
        } else {
            DeviceState::Queueing
        };
        let (now, queue_time) = (self.rt.now(), self.queue_time());
        let down_since = self.all_down_since.get();
        Snapshot {
            name: self.name(),
            unit: self.unit.borrow().clone(),
            size_bytes: self.geometry.get().bytes(),
            state,
            fence: self.grade(),
            groups: self.group_snapshots(&paths),
            tainted_ranges: self.taints.borrow().len(),
            held_writes: self.held.borrow().len(),
            queued: self.queued.borrow().len(),
            failovers: self.failovers.get(),
            layouts: self.tally.loads.get(),
            outages: self.tally.outages(down_since, now, queue_time),
            queueing_left: match (state, down_since, queue_time) {
                (DeviceState::Queueing, Some(since), Some(time)) => Some((since + time).since(now)),
                _ => None,
            },
            fences: self.fence.rounds.get(),
            longest_stall: self.longest_stall.get(),
        }
    }

    fn group_snapshots(&self, paths: &[Rc<Path>]) -> Vec<GroupSnapshot> {
        let selector = self.config.borrow().selector;
        let current = self.current_group.get();
        let groups = self.groups.borrow();
        groups
            .iter()
            .enumerate()
            .map(|(at, group)| {
                let mut order = group.order.clone();
                order.sort_unstable();
                let usable = order.iter().filter(|&&i| paths[i].is_serving()).count();
                let state = match (usable, current == Some(at)) {
                    (0, _) => GroupState::Disabled,
                    (_, true) => GroupState::Active,
                    (_, false) => GroupState::Enabled,
                };
                GroupSnapshot {
                    state,
                    priority: if usable > 0 { group.priority } else { 0 },
                    policy: selector.name(),
                    policy_args: selector.args(),
                    paths: order
                        .iter()
                        .map(|&i| self.path_snapshot(&paths[i]))
                        .collect(),
                }
            })
            .collect()
    }

    fn path_snapshot(&self, path: &Path) -> PathSnapshot {
        let standing = path.standing(self.rt.now());
        let is_active = path.is_serving();
        let is_marginal = is_active && standing != Standing::Good;
        // A marginal path in a group of its own is as good as that group may be.
        let is_delayed = match standing {
            Standing::Probation => true,
            Standing::Marginal => !self.config.borrow().marginal_pathgroups,
            _ => false,
        };
        let checker = match path.checker.get() {
            Checker::Ready if is_delayed => Checker::Delayed,
            other => other,
        };
        PathSnapshot {
            index: path.index,
            priority: priority(&self.config.borrow(), path),
            name: path.name.clone(),
            isid: path.isid,
            is_active,
            reach: match path.phase.get() {
                Phase::Serving | Phase::Identifying | Phase::Proving => PathReach::Ready,
                Phase::Misconfigured => PathReach::Misconfigured,
                Phase::Down | Phase::Removed => PathReach::Down,
                Phase::Connecting => PathReach::Unreachable,
            },
            checker,
            probe: self.probe(path),
            next_check: is_active.then(|| {
                let (due, interval) = path.check_due.get();
                (due.since(self.rt.now()), interval)
            }),
            is_marginal,
            in_flight: path.in_flight.get(),
            counters: path.counters.get(),
            last_error: path.last_error.borrow().clone(),
            identity: path.identity.borrow().clone(),
            session: path.live().map(|l| l.session.facts()),
        }
    }
}
