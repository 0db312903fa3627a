//! Options of multipath.conf(5) that decide which path is used: groups, priorities, checkers,
//! failback and flaky paths, in virtual time.

mod common;

use blockdev::Event;
use common::{config, ms, options, Rig};
use mpath::sim::{Flavour, Link, SanOptions};
use mpath::{
    Checker, Config, Failback, GroupState, Grouping, MarginalPath, NoPathRetry, Outages,
    PathSnapshot, Prio, Probe, Role, SanPathErr, SelectorKind,
};
use std::time::Duration;

const FIRST: &str = "10.3.1.1:3260";
const SECOND: &str = "10.4.1.1:3260";

fn s(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// A unit with as many portals.
fn portals(count: usize) -> SanOptions {
    SanOptions {
        portal_groups: vec![1; count],
        ..options(Flavour::Tgt)
    }
}

/// Priority and portals of each group, best first.
fn groups(rig: &Rig) -> Vec<(i32, Vec<String>)> {
    let groups = rig.device.snapshot().groups.into_iter();
    let portals = |paths: Vec<PathSnapshot>| paths.into_iter().map(|p| p.name.portal).collect();
    groups.map(|g| (g.priority, portals(g.paths))).collect()
}

fn path(rig: &Rig, portal: &str) -> PathSnapshot {
    let groups = rig.device.snapshot().groups;
    let mut paths = groups.into_iter().flat_map(|g| g.paths);
    paths
        .find(|p| p.name.portal == portal)
        .expect("it is there")
}

/// First portal of the group that a write goes to now.
fn used(rig: &Rig) -> String {
    rig.world.block_on(rig.write(8, 1)).expect("a write");
    let groups = rig.device.snapshot().groups;
    let active = groups.iter().find(|g| g.state == GroupState::Active);
    active.expect("in use").paths[0].name.portal.clone()
}

/// Fails the path under a write and lets it come back.
fn bounce(rig: &Rig, index: usize) {
    rig.san.set_link(index, Link::Loud);
    rig.world.block_on(rig.write(8, 1)).expect("a write");
    rig.run(ms(300));
    rig.san.set_link(index, Link::Up);
    rig.run(s(3));
}

// ---- priorities and groups ------------------------------------------------------------------

#[test]
fn weightedpath_orders_groups_by_portal() {
    let prio = Prio::parse("weightedpath", r"devname ^10\.4\. 50 ^10\.[35]\. 10").unwrap();
    let rig = Rig::with(
        portals(4),
        Config {
            grouping: Grouping::ByPrio,
            prio,
            ..config()
        },
    );
    let name = |n| format!("10.{n}.1.1:3260");
    assert_eq!(
        groups(&rig),
        [
            (50, vec![name(4)]),
            (10, vec![name(3), name(5)]),
            (0, vec![name(6)])
        ]
    );
    assert_eq!(used(&rig), SECOND);
    rig.san.set_link(1, Link::Loud);
    rig.run(ms(50));
    assert_eq!(used(&rig), FIRST);
}

/// A group is as good as its paths that are up, from the moment on that one comes or goes; of equal
/// ones that with more of them goes first.
#[test]
fn the_order_of_groups_follows_the_paths_that_are_up() {
    let prio = Prio::parse(
        "weightedpath",
        r"devname ^10\.3\. 90 ^10\.[45]\. 20 ^10\.6\. 50",
    )
    .unwrap();
    let rig = Rig::with(
        portals(4),
        Config {
            grouping: Grouping::Multibus,
            prio,
            ..config()
        },
    );
    assert_eq!(groups(&rig)[0].0, (90 + 20 + 20 + 50) / 4);
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(50));
    assert_eq!(groups(&rig)[0].0, (20 + 20 + 50) / 3);
    rig.san.set_link(0, Link::Up);
    rig.run(s(3));
    assert_eq!(groups(&rig)[0].0, (90 + 20 + 20 + 50) / 4);
}

/// `round-robin`: a path that comes back is next, and a login of one path resets no rotation.
#[test]
fn a_reinstated_path_is_next_in_round_robin() {
    let rig = Rig::with(
        portals(3),
        Config {
            grouping: Grouping::Multibus,
            selector: SelectorKind::RoundRobin,
            ..config()
        },
    );
    rig.device.fail_path(FIRST).unwrap();
    rig.run(s(2));
    let next = |rig: &Rig| {
        let before: Vec<u64> = (0..3).map(|n| writes(rig, n)).collect();
        rig.world.block_on(rig.write(8, 1)).expect("a write");
        (0..3).find(|&n| writes(rig, n) > before[n]).expect("one")
    };
    let first = next(&rig);
    rig.device.reinstate_path(FIRST).unwrap();
    rig.run(ms(100));
    assert_eq!(next(&rig), 0);
    assert_eq!(next(&rig), 3 - first, "the rotation goes on");
    assert_eq!(next(&rig), first);
    assert_eq!(next(&rig), 0);
}

fn writes(rig: &Rig, index: usize) -> u64 {
    let name = rig.san.path_name(index).portal;
    path(rig, &name).counters.write_ios
}

#[test]
fn weightedpath_knows_serial_and_target() {
    for args in ["serial ^sto 7", "wwn tp2.b3:sto1$ 7"] {
        let prio = Prio::parse("weightedpath", args).unwrap();
        let rig = Rig::with(portals(2), Config { prio, ..config() });
        assert!(groups(&rig).iter().all(|g| g.0 == 7), "{args}");
    }
}

/// One path is ten times as long as the other.
#[test]
fn path_latency_prefers_the_shorter_way_and_follows_it() {
    let prio = Prio::parse("path_latency", "io_num=20 base_num=2").unwrap();
    let rig = Rig::with(
        portals(2),
        Config {
            grouping: Grouping::ByPrio,
            prio,
            polling_interval: s(1),
            max_polling_interval: s(1),
            ..config()
        },
    );
    rig.run(s(1));
    rig.san.set_delay(0, ms(2));
    rig.run(s(5));
    let order = groups(&rig);
    assert_eq!(order[0].1, [SECOND]);
    assert!(order[0].0 >= order[1].0 + 2, "{order:?}");
    assert_eq!(used(&rig), SECOND);
    rig.san.set_delay(0, Duration::ZERO);
    rig.san.set_delay(1, ms(2));
    rig.run(s(5));
    assert_eq!(used(&rig), FIRST);
    assert_eq!(path(&rig, FIRST).counters.failures, 0);
}

#[test]
fn alua_goes_before_other_prioritizers_where_it_is_detected() {
    for (detect_prio, expected) in [(true, vec![50, 10]), (false, vec![7, 7])] {
        let config = Config {
            prio: Prio::parse("weightedpath", "wwn . 7").unwrap(),
            detect_prio,
            ..config()
        };
        let rig = with_access(&[0, 1], config);
        let found: Vec<i32> = groups(&rig).iter().map(|g| g.0).collect();
        assert_eq!(found, expected);
    }
}

/// A rig whose unit has port groups with these states.
fn with_access(codes: &[u8], config: Config) -> Rig {
    let rig = Rig::with(
        SanOptions {
            portal_groups: vec![1; codes.len()],
            ..options(Flavour::Standard)
        },
        config,
    );
    rig.san.set_access(codes);
    for index in 0..codes.len() {
        // It is found out at a login.
        let portal = format!("10.{}.1.1", index + 3);
        rig.device.fail_path(&portal).expect("a path");
        rig.run(ms(50));
        rig.device.reinstate_path(&portal).expect("a path");
        rig.run(ms(50));
    }
    rig
}

#[test]
fn exclusive_pref_bit_gives_a_preferred_path_a_group_of_its_own() {
    let codes = [0, 0x80];
    let by_prio = Config {
        grouping: Grouping::ByPrio,
        ..config()
    };
    assert_eq!(groups(&with_access(&codes, by_prio.clone())).len(), 1);
    let exclusive = Config {
        exclusive_pref_bit: true,
        ..by_prio
    };
    let rig = with_access(&codes, exclusive);
    assert_eq!(
        groups(&rig),
        [(130, vec![SECOND.into()]), (50, vec![FIRST.into()])]
    );
}

#[test]
fn detect_pgpolicy_groups_by_priority_or_port_group_where_there_is_alua() {
    let detect = Config {
        detect_pgpolicy: true,
        ..config()
    };
    let codes = [0, 1, 0];
    let sizes = |rig: &Rig| groups(rig).iter().map(|g| g.1.len()).collect::<Vec<_>>();
    assert_eq!(sizes(&with_access(&codes, config())), [1, 1, 1]);
    assert_eq!(sizes(&with_access(&codes, detect.clone())), [2, 1]);
    let by_tpg = Config {
        detect_pgpolicy_use_tpg: true,
        grouping: Grouping::Multibus,
        ..detect.clone()
    };
    // Each portal of the simulated unit is a port group.
    assert_eq!(sizes(&with_access(&codes, by_tpg)), [1, 1, 1]);
    // Without ALUA, what is configured counts.
    let multibus = Config {
        grouping: Grouping::Multibus,
        ..detect
    };
    assert_eq!(sizes(&Rig::with(portals(3), multibus)), [3]);
}

#[test]
fn serial_and_node_name_group_what_they_share() {
    for grouping in [Grouping::BySerial, Grouping::ByNodeName] {
        let rig = Rig::with(
            portals(3),
            Config {
                grouping,
                ..config()
            },
        );
        assert_eq!(groups(&rig).len(), 1, "{grouping:?}");
        // It shares the load and survives a loss.
        rig.san.set_link(0, Link::Loud);
        rig.run(ms(50));
        rig.world.block_on(rig.write(8, 1)).unwrap();
        assert_eq!(rig.device.snapshot().failovers, 0);
    }
}

// ---- failback -------------------------------------------------------------------------------

#[test]
fn failback_after_n_seconds_counts_from_the_last_path_that_came_up() {
    let rig = Rig::with(
        portals(3),
        Config {
            failback: Failback::After(s(30)),
            ..config()
        },
    );
    assert_eq!(used(&rig), FIRST, "nothing is waited for at the start");
    bounce(&rig, 0);
    assert_eq!(used(&rig), SECOND);
    rig.run(s(20));
    assert_eq!(used(&rig), SECOND);
    bounce(&rig, 2);
    rig.run(s(20));
    assert_eq!(used(&rig), SECOND, "another path came up: counted anew");
    rig.run(s(10));
    assert_eq!(used(&rig), FIRST);
    // A group that cannot serve is left at once all the same.
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(20));
    assert_eq!(used(&rig), SECOND);
}

// ---- checkers -------------------------------------------------------------------------------

fn checked_by(path_checker: Probe) -> Rig {
    Rig::with(
        options(Flavour::Tgt),
        Config {
            path_checker,
            polling_interval: s(1),
            max_polling_interval: s(1),
            checker_timeout: s(10),
            ..config()
        },
    )
}

/// A hung back end: TEST UNIT READY and pings are answered, reads are not.
#[test]
fn directio_sees_a_hung_back_end_and_fails_no_path_for_it() {
    for (probe, expected) in [
        (Probe::Tur, Checker::Ready),
        (Probe::Nop, Checker::Ready),
        (Probe::None, Checker::Ready),
        (Probe::Directio, Checker::Pending),
    ] {
        let rig = checked_by(probe);
        rig.run(s(3));
        rig.san.set_hung(true);
        rig.run(s(5));
        assert_eq!(path(&rig, FIRST).checker, expected, "{probe:?}");
        rig.run(s(10));
        let found = path(&rig, FIRST);
        assert_eq!(found.counters.failures, 0, "{probe:?}");
        assert!(found.is_active);
        if probe == Probe::Directio {
            assert!(
                matches!(found.checker, Checker::Timeout | Checker::Pending),
                "{:?}",
                found.checker
            );
        }
        rig.san.set_hung(false);
        rig.run(s(3));
        assert_eq!(path(&rig, FIRST).checker, Checker::Ready, "{probe:?}");
    }
}

#[test]
fn an_idle_cut_is_found_by_every_checker_but_none() {
    for (probe, is_found) in [
        (Probe::Tur, true),
        (Probe::Directio, true),
        (Probe::Nop, true),
        (Probe::None, false),
    ] {
        let rig = checked_by(probe);
        rig.run(s(3));
        rig.san.set_link(0, Link::Silent);
        rig.run(s(3));
        assert_eq!(!path(&rig, FIRST).is_active, is_found, "{probe:?}");
    }
}

/// A unit that is not there any more answers pings: only what asks the unit finds out.
#[test]
fn nop_asks_the_target_and_not_the_unit() {
    for (probe, is_found) in [
        (Probe::Nop, false),
        (Probe::Tur, true),
        (Probe::Directio, true),
    ] {
        let rig = checked_by(probe);
        rig.run(s(3));
        rig.san.inject_sense(5, 0x25, 0);
        rig.run(s(2));
        let failures = path(&rig, FIRST).counters.failures;
        assert_eq!(failures > 0, is_found, "{probe:?}");
    }
}

#[test]
fn a_path_tells_its_checker_and_when_it_is_checked_again() {
    let rig = checked_by(Probe::Nop);
    rig.run(ms(3300));
    let found = path(&rig, FIRST);
    assert_eq!(found.probe, Probe::Nop);
    let (left, interval) = found.next_check.expect("it serves");
    assert_eq!(interval, s(1));
    assert!(left > Duration::ZERO && left < interval, "{left:?}");
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(200));
    assert_eq!(path(&rig, FIRST).next_check, None);

    let detected = with_access(
        &[0],
        Config {
            path_checker: Probe::Nop,
            ..config()
        },
    );
    assert_eq!(path(&detected, FIRST).probe, Probe::Tur);
}

// ---- flaky paths ----------------------------------------------------------------------------

#[test]
fn san_path_err_keeps_a_path_back_that_returns_too_often() {
    for marginal_pathgroups in [false, true] {
        let rig = Rig::with(
            portals(2),
            Config {
                san_path_err: Some(SanPathErr {
                    threshold: 2,
                    forget_rate: 1000,
                    recovery_time: s(600),
                }),
                marginal_pathgroups,
                ..config()
            },
        );
        for _ in 0..2 {
            bounce(&rig, 0);
            rig.run(s(70));
            assert_eq!(used(&rig), FIRST);
        }
        bounce(&rig, 0);
        rig.run(s(500));
        assert_eq!(used(&rig), SECOND);
        let kept = path(&rig, FIRST);
        let word = if marginal_pathgroups {
            Checker::Ready
        } else {
            Checker::Delayed
        };
        assert_eq!((kept.checker, kept.is_marginal), (word, true));
        // It still serves when nothing else does.
        rig.san.set_link(1, Link::Loud);
        rig.run(ms(20));
        assert_eq!(used(&rig), FIRST);
        rig.san.set_link(1, Link::Up);
        rig.run(s(110));
        assert_eq!(used(&rig), FIRST, "its time is over");
        assert!(!path(&rig, FIRST).is_marginal);
    }
}

#[test]
fn marginal_paths_are_in_groups_of_their_own_behind_the_others() {
    let rig = Rig::with(
        portals(2),
        Config {
            grouping: Grouping::Multibus,
            san_path_err: Some(SanPathErr {
                threshold: 1,
                forget_rate: 1000,
                recovery_time: s(60),
            }),
            marginal_pathgroups: true,
            ..config()
        },
    );
    bounce(&rig, 0);
    assert_eq!(groups(&rig).len(), 1);
    bounce(&rig, 0);
    assert_eq!(
        groups(&rig),
        [(1, vec![SECOND.into()]), (1, vec![FIRST.into()])]
    );
    rig.run(s(61));
    assert_eq!(groups(&rig).len(), 1);
}

fn marginal() -> Config {
    Config {
        marginal_path: Some(MarginalPath {
            double_failed_time: s(60),
            err_sample_time: s(120),
            err_rate_threshold: 10,
            err_recheck_gap_time: s(300),
        }),
        ..config()
    }
}

fn said(rig: &Rig, event: &str) -> Vec<String> {
    let texts = rig.events().into_iter().filter_map(|e| match e {
        Event::State(change) if change.event == event => Some(change.text),
        _ => None,
    });
    texts.collect()
}

#[test]
fn a_path_that_fails_twice_is_sampled_and_taken_back_when_it_is_good() {
    let rig = Rig::with(portals(2), marginal());
    bounce(&rig, 0);
    assert!(said(&rig, "path_marginal").is_empty());
    bounce(&rig, 0);
    assert_eq!(said(&rig, "path_marginal"), ["failed twice within 60s"]);
    rig.run(s(100));
    assert_eq!(path(&rig, FIRST).checker, Checker::Delayed);
    assert_eq!(used(&rig), SECOND);
    rig.run(s(30));
    let steady = said(&rig, "path_steady");
    assert!(
        steady.len() == 1 && steady[0].starts_with("0 of 1"),
        "{steady:?}"
    );
    assert_eq!(used(&rig), FIRST);
}

#[test]
fn a_sample_with_errors_keeps_the_path_back_until_the_next_one() {
    let rig = Rig::with(portals(2), marginal());
    bounce(&rig, 0);
    bounce(&rig, 0);
    // Ten seconds without a session are far more than 10 of a thousand.
    rig.run(s(30));
    rig.san.set_link(0, Link::Loud);
    rig.run(s(10));
    rig.san.set_link(0, Link::Up);
    rig.run(s(240));
    assert!(said(&rig, "path_steady").is_empty());
    assert!(path(&rig, FIRST).is_marginal);
    rig.run(s(300));
    assert_eq!(said(&rig, "path_steady").len(), 1);
    // An operator's word ends it at once.
    bounce(&rig, 0);
    bounce(&rig, 0);
    assert!(path(&rig, FIRST).is_marginal);
    rig.device.reinstate_path(FIRST).unwrap();
    assert!(!path(&rig, FIRST).is_marginal);
    rig.run(s(300));
    assert!(said(&rig, "path_steady").is_empty());
}

// ---- without a path -------------------------------------------------------------------------

#[test]
fn outages_are_counted_as_dm_multipath_counts_them() {
    let config = Config {
        no_path_retry: Some(NoPathRetry::Checks(1)),
        ..config()
    };
    let rig = Rig::with(portals(1), config);
    let layouts = rig.device.snapshot().layouts;
    assert_eq!(rig.device.snapshot().outages, Outages::default());
    // 5 s of polling and one second may be waited for; three are.
    let cut = |time| {
        rig.san.set_link(0, Link::Loud);
        rig.run(time);
        let during = rig.device.snapshot();
        rig.san.set_link(0, Link::Up);
        rig.run(s(10));
        during
    };
    let during = cut(s(3));
    let left = during.queueing_left.unwrap();
    assert!(left <= s(3) && left > ms(2500), "{left:?}");
    let outages = rig.device.snapshot().outages;
    assert_eq!((outages.failures, outages.timeouts), (0, 0));
    assert!(
        outages.queueing >= s(2) && outages.queueing <= s(6),
        "{outages:?}"
    );
    // Of twenty seconds it waits for six, and fails what comes then.
    assert_eq!(cut(s(20)).queueing_left, None);
    let after = rig.device.snapshot().outages;
    assert_eq!((after.failures, after.timeouts), (1, 1));
    assert_eq!(after.queueing - outages.queueing, s(6));
    assert_eq!(rig.device.snapshot().layouts, layouts);
    // A mirror's leg waits for nothing.
    rig.device.set_role(Role::MirrorLeg);
    let mut config = rig.device.config();
    config.no_path_retry = None;
    rig.device.reconfigure(config);
    cut(s(3));
    let last = rig.device.snapshot().outages;
    assert_eq!((last.failures, last.timeouts), (2, 1));
    assert_eq!(last.queueing, after.queueing);
    // Another path is another layout.
    rig.device.remove_path(FIRST).unwrap();
    assert_eq!(rig.device.snapshot().layouts, layouts + 1);
}
