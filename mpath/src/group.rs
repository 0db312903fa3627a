//! Path groups: which paths share load, in which order groups are used, and when a better one is
//! returned to.

use crate::config::{Config, Failback, Grouping, SelectorKind};
use crate::inner::Inner;
use crate::path::{Path, Phase, Standing};
use crate::prio::{priority, PRIO_CONST};
use crate::selector::choose;
use blockdev::Rt;
use std::cmp::Reverse;
use std::rc::Rc;

pub(crate) struct Group {
    /// Integer mean of the priorities of its paths.
    pub(crate) priority: i32,
    /// Indices of its paths, in the selector's order.
    pub(crate) order: Vec<usize>,
}

/// What puts two paths into one group.
#[derive(PartialEq)]
enum Key {
    Path(usize),
    All,
    Text(String),
    Tpg(Option<u16>),
    Prio(i32),
}

impl Key {
    fn of(policy: Grouping, config: &Config, path: &Path) -> Key {
        let identity = path.identity.borrow();
        match policy {
            Grouping::Failover => Key::Path(path.index),
            Grouping::Multibus => Key::All,
            Grouping::ByPrio => Key::Prio(priority(config, path)),
            Grouping::ByNodeName => Key::Text(path.name.target.clone()),
            Grouping::BySerial => {
                let serial = identity.as_ref().map(|i| i.serial.clone());
                Key::Text(serial.unwrap_or_default())
            }
            Grouping::ByTpg => Key::Tpg(identity.as_ref().and_then(|i| i.target_port_group)),
        }
    }
}

/// Groups of `paths`, best first; with `marginal_pathgroups`, marginal paths behind the others.
fn group(policy: Grouping, config: &Config, paths: &[Rc<Path>], rt: &Rt) -> Vec<Group> {
    let mut groups: Vec<((bool, Key), Group)> = Vec::new();
    for path in paths {
        if path.phase.get() == Phase::Removed {
            continue;
        }
        let is_marginal = config.marginal_pathgroups && path.flakiness.is_marginal(rt.now());
        let key = (is_marginal, Key::of(policy, config, path));
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, group)) => group.order.push(path.index),
            None => {
                let group = Group {
                    priority: 0,
                    order: vec![path.index],
                };
                groups.push((key, group));
            }
        }
    }
    for (_, group) in &mut groups {
        group.priority = mean_priority(config, &group.order, paths);
    }
    // Stable: equal ones stay in the order of the configuration.
    groups.sort_by_key(|((is_marginal, _), group)| {
        let (up, order) = (enabled(&group.order, paths), &group.order);
        // A group without a path takes nothing, so it keeps its place.
        let up = if up == 0 { order.len() } else { up };
        (*is_marginal, Reverse(group.priority), Reverse(up))
    });
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Whether the same paths are in the same groups, in whatever order the selector has them.
fn is_same_layout(a: &[Group], b: &[Group]) -> bool {
    let layout = |groups: &[Group]| -> Vec<Vec<usize>> {
        let sorted = groups.iter().map(|group| {
            let mut order = group.order.clone();
            order.sort_unstable();
            order
        });
        sorted.collect()
    };
    layout(a) == layout(b)
}

/// How many of them are up.
fn enabled(order: &[usize], paths: &[Rc<Path>]) -> usize {
    order.iter().filter(|&&i| paths[i].is_serving()).count()
}

/// Integer mean of the priorities of the paths that are up; of all, if none is.
fn mean_priority(config: &Config, order: &[usize], paths: &[Rc<Path>]) -> i32 {
    let of = |only_up: bool| {
        let mut prios = order
            .iter()
            .map(|&index| &paths[index])
            .filter(|path| !only_up || path.is_serving())
            .map(|path| priority(config, path))
            .peekable();
        prios.peek()?;
        let (sum, count) = prios.fold((0, 0), |(sum, count), prio| (sum + prio, count + 1));
        Some(sum / count)
    };
    of(true).or_else(|| of(false)).unwrap_or(PRIO_CONST)
}

impl Inner {
    pub(crate) fn regroup(&self) {
        let mut groups = {
            let config = self.config.borrow();
            let policy = self.policy(&config);
            group(policy, &config, &self.paths.borrow(), &self.rt)
        };
        // A rotation goes on where it was.
        let mut ranks = vec![usize::MAX; self.paths.borrow().len()];
        let before = self.groups.borrow();
        for (rank, &index) in before.iter().flat_map(|g| &g.order).enumerate() {
            ranks[index] = rank;
        }
        drop(before);
        for group in &mut groups {
            group.order.sort_by_key(|&index| ranks[index]);
        }
        // The group in use stays the one in use, wherever its paths are now: `failback` decides
        // about leaving it, not a login.
        let was_best = self.current_group.get() == Some(0);
        let in_use = self.current_group.get().and_then(|at| {
            let before = self.groups.borrow();
            let path = *before.get(at)?.order.first()?;
            groups.iter().position(|g| g.order.contains(&path))
        });
        let before = self.groups.replace(groups);
        if !is_same_layout(&before, &self.groups.borrow()) {
            self.tally.loads.set(self.tally.loads.get() + 1);
        }
        self.current_group.set(in_use);
        if was_best && in_use.is_some_and(|at| at > 0) {
            self.delay_failback();
        }
    }

    /// A path serves again: `round-robin` takes it next.
    pub(crate) fn join_selector(&self, path: &Path) {
        if self.config.borrow().selector != SelectorKind::RoundRobin {
            return;
        }
        let mut groups = self.groups.borrow_mut();
        let group = groups.iter_mut().find(|g| g.order.contains(&path.index));
        if let Some(group) = group {
            group.order.sort_by_key(|&i| i != path.index);
        }
    }

    /// `path_grouping_policy`, unless ALUA is found and allowed to replace it.
    fn policy(&self, config: &Config) -> Grouping {
        if !config.detect_pgpolicy {
            return config.grouping;
        }
        let paths = self.paths.borrow();
        let mut known = paths
            .iter()
            .filter(|p| p.phase.get() != Phase::Removed)
            .filter_map(|p| p.identity.borrow().clone())
            .peekable();
        if known.peek().is_none() || !known.all(|identity| self.uses_alua(&identity)) {
            return config.grouping;
        }
        if config.detect_pgpolicy_use_tpg {
            Grouping::ByTpg
        } else {
            Grouping::ByPrio
        }
    }

    /// `failback N`: its time begins now.
    pub(crate) fn delay_failback(&self) {
        if let Failback::After(time) = self.config.borrow().failback {
            self.stays_until.set(self.rt.now() + time);
        }
    }

    /// Whether the group in use is kept although a better one may be there.
    fn keeps_group(&self) -> bool {
        match self.config.borrow().failback {
            Failback::Manual => true,
            Failback::Followover => !self.follows.get(),
            Failback::After(_) => self.rt.now() < self.stays_until.get(),
            Failback::Immediate => false,
        }
    }

    /// The path for the next command, or `None` if no usable one is left.
    pub(crate) fn pick(&self, avoid: &[usize]) -> Option<Rc<Path>> {
        let paths = self.paths.borrow();
        let now = self.rt.now();
        if let Some(only) = self.fence.only.get() {
            // A barrier may be carried where no I/O may go (a standby group).
            if !avoid.contains(&only) && paths[only].standing(now) != Standing::Unusable {
                return Some(paths[only].clone());
            }
        }
        let mut groups = self.groups.borrow_mut();
        let kind = self.config.borrow().selector;
        let current = self.current_group.get().filter(|_| self.keeps_group());
        for want in Standing::USABLE {
            let first = current.into_iter();
            let rest = (0..groups.len()).filter(|&g| Some(g) != current);
            for at in first.chain(rest) {
                let order = &mut groups[at].order;
                let chosen = choose(kind, order, |index| {
                    let path = &paths[index];
                    if avoid.contains(&index) || path.standing(now) != want {
                        return None;
                    }
                    Some(path.load(now))
                });
                if let Some(index) = chosen {
                    if avoid.is_empty() {
                        let before = self.current_group.replace(Some(at));
                        if before.is_some_and(|b| b != at) {
                            self.follows.set(false);
                            self.failovers.set(self.failovers.get() + 1);
                        }
                    }
                    return Some(paths[index].clone());
                }
            }
        }
        None
    }
}
