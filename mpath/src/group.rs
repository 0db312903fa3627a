//! Path groups: which paths share load, and in which order groups are used.

use crate::config::Grouping;
use crate::path::{Path, Phase};
use std::rc::Rc;

/// Priority of every path without ALUA: `prio const`.
pub(crate) const PRIO_CONST: i32 = 1;

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
}

/// Groups of `paths` in the order of the configuration; all priorities are equal, so the order
/// stays.
pub(crate) fn group(policy: Grouping, paths: &[Rc<Path>]) -> Vec<Group> {
    let mut groups: Vec<(Key, Group)> = Vec::new();
    for path in paths {
        if path.phase.get() == Phase::Removed {
            continue;
        }
        let identity = path.identity.borrow();
        let key = match policy {
            Grouping::Failover => Key::Path(path.index),
            Grouping::Multibus | Grouping::ByPrio => Key::All,
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
                    priority: PRIO_CONST,
                    order: vec![path.index],
                };
                groups.push((key, group));
            }
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}
