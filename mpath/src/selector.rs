//! Path selectors, as dm-multipath's: which path of a group takes the next command.
//!
//! All keep the group's paths in an order of their own; the chosen one moves to the tail, so that
//! ties rotate.

use crate::config::SelectorKind;

/// Load of a path as a selector sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Commands in flight.
    pub commands: u32,
    /// Bytes in flight.
    pub bytes: u64,
}

/// Chooses from `order` (indices of paths) one for which `load` yields `Some`, and moves it to the
/// tail.
///
/// - round-robin: the head.
/// - queue-length: fewest commands in flight; an idle one ends the search.
/// - service-time with equal relative throughput: fewest bytes in flight.
pub fn choose(
    kind: SelectorKind,
    order: &mut [usize],
    load: impl Fn(usize) -> Option<Load>,
) -> Option<usize> {
    let mut best: Option<(usize, u64)> = None;
    for (at, &path) in order.iter().enumerate() {
        let Some(load) = load(path) else { continue };
        let cost = match kind {
            SelectorKind::RoundRobin => 0,
            SelectorKind::QueueLength => u64::from(load.commands),
            SelectorKind::ServiceTime => load.bytes,
        };
        if best.is_none_or(|(_, least)| cost < least) {
            best = Some((at, cost));
        }
        if cost == 0 {
            break;
        }
    }
    let (at, _) = best?;
    let path = order[at];
    order[at..].rotate_left(1);
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(commands: u32, bytes: u64) -> Option<Load> {
        Some(Load { commands, bytes })
    }

    #[test]
    fn round_robin_takes_turns() {
        let mut order = vec![0, 1, 2];
        let mut taken = Vec::new();
        for _ in 0..6 {
            taken.extend(choose(SelectorKind::RoundRobin, &mut order, |_| load(9, 9)));
        }
        assert_eq!(taken, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn queue_length_and_service_time_look_at_different_loads() {
        let of = |path: usize| {
            if path == 0 {
                load(1, 1 << 20)
            } else {
                load(2, 4096)
            }
        };
        assert_eq!(choose(SelectorKind::QueueLength, &mut [0, 1], of), Some(0));
        assert_eq!(choose(SelectorKind::ServiceTime, &mut [0, 1], of), Some(1));
    }

    proptest! {
        #[test]
        fn chooses_the_least_usable_one_and_keeps_the_set(
            loads in proptest::collection::vec(proptest::option::of((0u32..5, 0u64..5)), 1..9),
            kind in prop_oneof![
                Just(SelectorKind::RoundRobin),
                Just(SelectorKind::QueueLength),
                Just(SelectorKind::ServiceTime)
            ],
        ) {
            let mut order: Vec<usize> = (0..loads.len()).collect();
            let of = |path: usize| loads[path].map(|(commands, bytes)| Load { commands, bytes });
            let chosen = choose(kind, &mut order, of);
            let usable = loads.iter().flatten();
            match chosen {
                None => prop_assert_eq!(usable.count(), 0),
                Some(path) => {
                    let mine = of(path).expect("usable");
                    prop_assert_eq!(*order.last().unwrap(), path);
                    match kind {
                        SelectorKind::QueueLength => {
                            prop_assert!(usable.map(|l| l.0).all(|c| c >= mine.commands));
                        }
                        SelectorKind::ServiceTime => {
                            prop_assert!(usable.map(|l| l.1).all(|b| b >= mine.bytes));
                        }
                        SelectorKind::RoundRobin => {}
                    }
                }
            }
            order.sort_unstable();
            prop_assert_eq!(order, (0..loads.len()).collect::<Vec<_>>());
        }
    }
}
