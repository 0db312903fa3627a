//! Path groups: which paths share load, and in which order groups are used.

use crate::access::PRIO_CONST;
use crate::config::Grouping;
use crate::path::{Path, Phase};
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

/// Groups of `paths`, best first.
pub(crate) fn group(policy: Grouping, paths: &[Rc<Path>]) -> Vec<Group> {
    let mut groups: Vec<(Key, Group)> = Vec::new();
    for path in paths {
        if path.phase.get() == Phase::Removed {
            continue;
        }
        let identity = path.identity.borrow();
        let key = match policy {
            Grouping::Failover => Key::Path(path.index),
            Grouping::Multibus => Key::All,
            Grouping::ByPrio => Key::Prio(path.access.priority()),
            Grouping::ByNodeName => Key::Text(path.name.target.clone()),
            Grouping::BySerial => Key::Text(
                identity
                    .as_ref()
                    .map_or(String::new(), |i| i.serial.clone()),
            ),
            Grouping::ByTpg => Key::Tpg(identity.as_ref().and_then(|i| i.target_port_group)),
        };
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
    let mut groups: Vec<Group> = groups.into_iter().map(|(_, group)| group).collect();
    for group in &mut groups {
        group.priority = mean_priority(&group.order, paths);
    }
    // Stable: equal ones stay in the order of the configuration.
    groups.sort_by_key(|group| std::cmp::Reverse(group.priority));
    groups
}

/// Integer mean of the priorities of the paths that are up; of all, if none is.
fn mean_priority(order: &[usize], paths: &[Rc<Path>]) -> i32 {
    let of = |only_up: bool| {
        let mut prios = order
            .iter()
            .map(|&index| &paths[index])
            .filter(|path| !only_up || path.is_serving())
            .map(|path| path.access.priority())
            .peekable();
        prios.peek()?;
        let (sum, count) = prios.fold((0, 0), |(sum, count), prio| (sum + prio, count + 1));
        Some(sum / count)
    };
    of(true).or_else(|| of(false)).unwrap_or(PRIO_CONST)
}
