//! Path selectors, as dm-multipath's: which path of a group takes the next command.
//!
//! All keep the group's paths in an order of their own; the chosen one moves to the tail, so that
//! ties rotate.

use crate::config::SelectorKind;
use blockdev::Instant;
use std::time::Duration;

/// Load of a path as a selector sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Commands in flight.
    pub commands: u32,
    /// Bytes in flight.
    pub bytes: u64,
    /// What nearly all small commands stay below.
    pub tail: Duration,
    /// `historical-service-time`: the moving average.
    pub history: Duration,
    /// `historical-service-time`: time since the last completion.
    pub idle: Duration,
}

/// Plain arithmetic: a path is chosen for every command.
fn ns(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// The moving average of `historical-service-time`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Average service time.
    pub average: Duration,
    /// When a command last completed.
    pub last_end: Instant,
}

/// Weights count in 1024ths.
const WEIGHT_ONE: u64 = 1024;
/// A bucket of service times is 2^24 ns (16.8 ms) wide; the last one is open.
const BUCKET_BITS: u32 = 24;
const BUCKETS: u64 = 64;

impl History {
    /// A command that was sent at `start` has completed. Its service time counts from the last
    /// completion before, if that was later: what it waited behind others is not its own. The longer
    /// it took, the less is left of the past: weight = base^(bucket + 1).
    pub fn note(&mut self, start: Instant, end: Instant, base_weight: u32) {
        let time = (end - start.max(self.last_end)).as_nanos() as u64;
        self.last_end = self.last_end.max(end);
        let bucket = (time >> BUCKET_BITS).min(BUCKETS - 1);
        let mut weight = WEIGHT_ONE;
        for _ in 0..=bucket {
            weight = weight * u64::from(base_weight) / WEIGHT_ONE;
        }
        let past = self.average.as_nanos() as u64;
        let average = (past * weight + time * (WEIGHT_ONE - weight)) / WEIGHT_ONE;
        self.average = Duration::from_nanos(average);
    }
}

/// Chooses from `order` (indices of paths) one for which `load` yields `Some`, and moves it to the
/// tail.
///
/// - round-robin: the head.
/// - queue-length: fewest commands in flight; an idle one ends the search.
/// - service-time with equal relative throughput: fewest bytes in flight.
/// - historical-service-time: dm's; see [`History`] and `is_better_by_history`.
/// - tail-latency: where the command is most surely back soonest: latency that nearly all stay
///   below, times the commands in flight and this one.
pub fn choose(
    kind: SelectorKind,
    order: &mut [usize],
    load: impl Fn(usize) -> Option<Load>,
) -> Option<usize> {
    let at = match kind {
        SelectorKind::RoundRobin => order.iter().position(|&path| load(path).is_some()),
        SelectorKind::QueueLength => least(order, |path| Some(u64::from(load(path)?.commands))),
        SelectorKind::ServiceTime => least(order, |path| Some(load(path)?.bytes)),
        SelectorKind::TailLatency => least(order, |path| {
            let load = load(path)?;
            Some(ns(load.tail) * (u64::from(load.commands) + 1))
        }),
        SelectorKind::HistoricalServiceTime {
            threshold_multiplier,
            ..
        } => best_by_history(order, load, threshold_multiplier),
    }?;
    let path = order[at];
    order.copy_within(at + 1.., at);
    order[order.len() - 1] = path;
    Some(path)
}

/// Where the first of the least costs stands. Nothing is cheaper than what costs nothing.
fn least(order: &[usize], cost: impl Fn(usize) -> Option<u64>) -> Option<usize> {
    let mut best = None;
    let mut least = u64::MAX;
    for (at, &path) in order.iter().enumerate() {
        let Some(cost) = cost(path) else { continue };
        if best.is_none() || cost < least {
            (best, least) = (Some(at), cost);
        }
        if cost == 0 {
            break;
        }
    }
    best
}

/// What `historical-service-time` compares, in nanoseconds.
#[derive(Clone, Copy)]
struct Past {
    commands: u32,
    average: u64,
    idle: u64,
}

impl Past {
    fn of(load: &Load) -> Past {
        Past {
            commands: load.commands,
            average: ns(load.history),
            idle: ns(load.idle),
        }
    }

    /// Nothing came back for so long that the average may be out of date.
    fn is_stale(&self, paths: u64) -> bool {
        self.idle > self.average * paths
    }

    fn cost(&self) -> u64 {
        self.average * (u64::from(self.commands) + 1)
    }
}

fn best_by_history(
    order: &[usize],
    load: impl Fn(usize) -> Option<Load>,
    multiplier: u32,
) -> Option<usize> {
    let paths = order.iter().filter(|&&path| load(path).is_some()).count() as u64;
    let mut best: Option<(usize, Past)> = None;
    for (at, &path) in order.iter().enumerate() {
        let Some(load) = load(path) else { continue };
        let past = Past::of(&load);
        if best.is_none_or(|(_, best)| is_better_by_history(&past, &best, paths, multiplier)) {
            best = Some((at, past));
        }
    }
    best.map(|(at, _)| at)
}

fn is_better_by_history(new: &Past, old: &Past, paths: u64, multiplier: u32) -> bool {
    let (low, high) = if new.average < old.average {
        (new, old)
    } else {
        (old, new)
    };
    let is_shorter = new.commands < old.commands;
    if high.average * WEIGHT_ONE <= low.average * u64::from(multiplier) {
        return is_shorter;
    }
    // An idle path whose average is out of date gets one command to renew it.
    let needs_probe = |past: &Past| past.commands == 0 && past.is_stale(paths);
    match (needs_probe(new), needs_probe(old)) {
        (true, true) => return new.idle > old.idle,
        (true, false) => return true,
        (false, true) => return false,
        (false, false) => {}
    }
    let wins = new.cost() < old.cost();
    let winner = if wins { new } else { old };
    if winner.is_stale(paths) {
        return is_shorter;
    }
    wins
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(commands: u32, bytes: u64) -> Option<Load> {
        Some(Load {
            commands,
            bytes,
            ..Load::default()
        })
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

    #[test]
    fn a_slow_sample_replaces_more_of_the_past() {
        let ms = |ms| Instant(0) + Duration::from_millis(ms);
        let mut history = History::default();
        history.note(ms(0), ms(1), 972);
        // 52/1024 of 1 ms.
        assert_eq!(history.average, Duration::from_nanos(50_781));
        let before = History {
            average: Duration::from_millis(1),
            last_end: ms(1000),
        };
        let (mut quick, mut slow) = (before, before);
        quick.note(ms(1000), ms(1002), 972);
        slow.note(ms(1000), ms(2000), 972);
        assert!(quick.average < Duration::from_micros(1100));
        assert!(slow.average > Duration::from_millis(900));
        // What it waited behind another is not its own.
        let mut queued = before;
        queued.note(ms(0), ms(1002), 972);
        assert_eq!(queued, quick);
    }

    #[test]
    fn history_prefers_the_quick_and_probes_the_stale() {
        let kind = SelectorKind::HistoricalServiceTime {
            base_weight: 972,
            threshold_multiplier: 0,
        };
        let us = Duration::from_micros;
        let load = |history, commands, idle| Load {
            history: us(history),
            commands,
            idle: us(idle),
            ..Load::default()
        };
        let best = |loads: [Load; 2]| choose(kind, &mut [0, 1], |path| Some(loads[path]));
        assert_eq!(best([load(100, 1, 10), load(500, 0, 10)]), Some(0));
        assert_eq!(best([load(100, 9, 10), load(500, 0, 10)]), Some(1));
        // Idle, and nothing came back for longer than both averages together: one command.
        assert_eq!(best([load(100, 1, 10), load(500, 0, 2000)]), Some(1));
        assert_eq!(best([load(100, 1, 10), load(500, 1, 2000)]), Some(0));
        // The winner's average is out of date: by commands in flight.
        assert_eq!(best([load(100, 2, 300), load(500, 1, 10)]), Some(1));
        // Near enough: by commands in flight.
        let kind = SelectorKind::HistoricalServiceTime {
            base_weight: 972,
            threshold_multiplier: 2048,
        };
        let loads = [load(100, 3, 10), load(190, 2, 10)];
        assert_eq!(choose(kind, &mut [0, 1], |p| Some(loads[p])), Some(1));
    }

    #[test]
    fn tail_latency_counts_what_is_before() {
        let load = |tail, commands| Load {
            tail: Duration::from_micros(tail),
            commands,
            ..Load::default()
        };
        let best = |loads: [Load; 2]| {
            choose(SelectorKind::TailLatency, &mut [0, 1], |path| {
                Some(loads[path])
            })
        };
        assert_eq!(best([load(900, 0), load(400, 1)]), Some(1));
        assert_eq!(best([load(900, 0), load(400, 2)]), Some(0));
    }

    proptest! {
        #[test]
        fn chooses_the_least_usable_one_and_keeps_the_set(
            loads in proptest::collection::vec(proptest::option::of((0u32..5, 0u64..5)), 1..9),
            kind in prop_oneof![
                Just(SelectorKind::RoundRobin),
                Just(SelectorKind::QueueLength),
                Just(SelectorKind::ServiceTime),
                Just(SelectorKind::TailLatency),
                Just(SelectorKind::HistoricalServiceTime { base_weight: 972, threshold_multiplier: 0 })
            ],
        ) {
            let mut order: Vec<usize> = (0..loads.len()).collect();
            let of = |path: usize| loads[path].and_then(|(commands, bytes)| load(commands, bytes));
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
                        _ => {}
                    }
                }
            }
            order.sort_unstable();
            prop_assert_eq!(order, (0..loads.len()).collect::<Vec<_>>());
        }
    }
}
