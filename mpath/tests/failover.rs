//! Stalls of P5 for one leg with two paths, in virtual time, and the ways a path comes and goes.

mod common;

use blockdev::{
    Applied, BlockDevice, Done, Durability, Event, IoCtx, Kind, Op, PathCause, Refusal, Sector,
};
use common::{by, config, ms, options, unhedged, Rig};
use mpath::sim::{Flavour, Link};
use mpath::{Config, DeviceState, Failback, GroupState, Role};
use std::time::Duration;

#[test]
fn healthy_io_goes_straight_through() {
    let rig = Rig::new();
    let (result, time) = rig.time(rig.write(8, 3));
    assert!(matches!(result, Ok(Done::Written)));
    assert!(time < ms(2), "{time:?}");
    let (result, _) = rig.time(rig.read(8));
    assert_eq!(result.unwrap().into_data().to_vec(), vec![3; 4096]);
    let snapshot = rig.device.snapshot();
    assert_eq!(snapshot.state, DeviceState::Ready);
    assert_eq!(snapshot.groups[0].state, GroupState::Active);
    assert_eq!(snapshot.groups[1].state, GroupState::Enabled);
    assert_eq!(snapshot.groups[0].paths[0].counters.write_ios, 1);
    assert_eq!((snapshot.tainted_ranges, snapshot.failovers), (0, 0));
    assert!(rig.device.traces().is_empty());
}

#[test]
fn an_operation_longer_than_a_transfer_is_split_and_joined() {
    let rig = Rig::new();
    let data: Vec<u8> = (0..5 << 20).map(|n: u32| (n >> 9) as u8).collect();
    let write = rig.write_with(8, &data, Durability::Fua, IoCtx::foreground());
    rig.world.block_on(write).unwrap();
    let op = Op::Read {
        at: Sector(8),
        sectors: (data.len() / 512) as u32,
    };
    let read = rig.device.submit(op, IoCtx::foreground());
    let read = rig.world.block_on(read).unwrap();
    assert!(read.into_data().to_vec() == data);
}

#[test]
fn loud_path_failure_costs_at_most_20_ms() {
    for loses in [0, 1] {
        let rig = Rig::new();
        let write = rig.write(8, 3);
        let read = rig.read(64);
        rig.san.set_link(loses, Link::Loud);
        let (result, time) = rig.time(write);
        assert!(result.is_ok() && time <= ms(20), "{result:?} {time:?}");
        let (result, time) = rig.time(read);
        assert!(result.is_ok() && time <= ms(20), "{result:?} {time:?}");
        let (result, time) = rig.time(rig.write(80, 4));
        assert!(result.is_ok() && time <= ms(20), "{result:?} {time:?}");
    }
}

#[test]
fn silent_cut_read_150_write_250() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Silent);
    let read = rig.read(64);
    let write = rig.write(8, 3);
    let begun = rig.world.now();
    let (result, time) = rig.time(read);
    assert!(result.is_ok() && time <= ms(150), "{result:?} {time:?}");
    let result = rig.world.block_on(write);
    let time = rig.world.now() - begun;
    assert!(result.is_ok() && time <= ms(250), "{result:?} {time:?}");
    // From now on the doubtful path is avoided, and failed when nothing is heard for 800 ms.
    let (result, time) = rig.time(rig.read(64));
    assert!(result.is_ok() && time <= ms(20), "{result:?} {time:?}");
    rig.run(ms(900));
    assert!(rig.news().contains(&"path_failed"));
    let snapshot = rig.device.snapshot();
    assert_eq!(snapshot.state, DeviceState::Degraded);
    assert_eq!(snapshot.groups[0].state, GroupState::Disabled);
    assert_eq!(snapshot.tainted_ranges, 1);
    let trace = rig.device.traces().pop().expect("a trace");
    assert!(trace.attempts.iter().any(|a| a.reason == "hedge"));
}

#[test]
fn a_write_that_overwrites_an_unanswered_one_waits_for_the_fence_within_250_ms() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    assert!(rig.device.tainted(Sector(8).span(8)));
    assert!(!rig.device.tainted(Sector(16).span(8)));
    let (result, time) = rig.time(rig.write(16, 9));
    assert!(result.is_ok() && time <= ms(20), "nothing else waits");
    let (result, time) = rig.time(rig.write(8, 4));
    assert!(result.is_ok() && time <= ms(250), "{result:?} {time:?}");
    assert!(!rig.device.tainted(Sector(8).span(8)));
    rig.san.set_link(0, Link::Up);
    rig.run(ms(2000));
    assert_eq!(rig.content(8), 4);
    let news = rig.news();
    assert!(news.contains(&"fence_started") && news.contains(&"fence_done"));
}

/// A fence closes a silent path before its 800 ms are over: it must earn its return all the same.
#[test]
fn a_silent_path_closed_by_a_fence_counts_as_failed() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.world.block_on(rig.write(8, 4)).unwrap();
    assert_eq!(rig.device.snapshot().fences, 1);
    let snapshot = rig.device.snapshot();
    assert_eq!(snapshot.groups[0].paths[0].counters.failures, 1);
    rig.san.set_link(0, Link::SmallOnly);
    rig.run(Duration::from_secs(10));
    assert!(!rig.device.snapshot().groups[0].paths[0].is_active);
}

#[test]
fn equal_bytes_over_a_taint_are_not_held() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    let (result, time) = rig.time(rig.write(8, 3));
    assert!(result.is_ok() && time <= ms(20), "{result:?} {time:?}");
}

#[test]
fn a_late_answer_clears_the_taint_without_a_fence() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    assert_eq!(rig.device.snapshot().tainted_ranges, 1);
    rig.san.set_link(0, Link::Up);
    rig.run(ms(250));
    let snapshot = rig.device.snapshot();
    assert_eq!((snapshot.tainted_ranges, snapshot.fences), (0, 0));
    assert_eq!(snapshot.state, DeviceState::Ready);
}

#[test]
fn taints_nobody_needs_are_fenced_after_5_s_of_quiet() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.run(ms(4000));
    assert_eq!(rig.device.snapshot().tainted_ranges, 1);
    rig.run(ms(2500));
    let snapshot = rig.device.snapshot();
    assert_eq!((snapshot.tainted_ranges, snapshot.fences), (0, 1));
}

#[test]
fn a_hung_back_end_holds_the_overwrite_and_fails_no_path() {
    let rig = Rig::new();
    rig.san.set_hung(true);
    let write = rig.write_with(
        8,
        &[3; 4096],
        Durability::Cache,
        by(rig.world.now() + ms(200)),
    );
    let error = rig.world.block_on(write).unwrap_err();
    assert_eq!(error, blockdev::IoError::unknown(Kind::Late));
    assert!(rig.device.tainted(Sector(8).span(8)));
    let second = rig.world.spawn_handle(rig.write(8, 4));
    rig.run(ms(3000));
    assert!(second.try_take().is_none(), "held while it hangs");
    assert_eq!(rig.device.snapshot().held_writes, 1);
    rig.san.set_hung(false);
    let result = rig.world.block_on(second);
    assert!(result.is_ok(), "{result:?}");
    rig.run(ms(1000));
    assert_eq!(rig.content(8), 4);
}

#[test]
fn a_slow_unit_fails_no_path_and_hedges_within_the_budget() {
    let rig = Rig::new();
    rig.san.set_service(ms(300));
    for n in 0..50 {
        rig.world.block_on(rig.write(8 * n, 1)).unwrap();
        rig.world.block_on(rig.read(8 * n)).unwrap();
    }
    let snapshot = rig.device.snapshot();
    let paths = snapshot.groups.iter().flat_map(|g| &g.paths);
    assert!(paths.clone().all(|p| p.counters.failures == 0));
    assert!(paths.map(|p| p.counters.hedges).sum::<u64>() <= 20);
    assert!(!rig.news().contains(&"path_failed"));
}

#[test]
fn healthy_load_is_not_hedged() {
    let rig = Rig::new();
    rig.san.set_service(ms(5));
    for n in 0..500 {
        rig.world
            .block_on(rig.write(8 * (n % 50), n as u8))
            .unwrap();
    }
    let snapshot = rig.device.snapshot();
    let hedges: u64 = snapshot
        .groups
        .iter()
        .flat_map(|g| &g.paths)
        .map(|p| p.counters.hedges)
        .sum();
    assert_eq!(hedges, 0);
}

/// P5, last sentence: without it a stall of our own fails healthy paths.
#[test]
fn own_lateness_is_not_judged_as_a_paths() {
    let rig = Rig::new();
    for n in 0..20 {
        let read = rig.world.spawn_handle(rig.read(64));
        let write = rig.world.spawn_handle(rig.write(8, n));
        rig.world.run_ready();
        rig.world.stall(ms(1500));
        rig.run(ms(30));
        assert!(read.try_take().is_some_and(|r| r.is_ok()));
        assert!(write.try_take().is_some_and(|r| r.is_ok()));
    }
    let snapshot = rig.device.snapshot();
    for path in snapshot.groups.iter().flat_map(|g| &g.paths) {
        assert_eq!(path.counters.failures, 0, "{:?}", path.last_error);
        assert_eq!(path.counters.hedges, 0);
    }
}

#[test]
fn what_is_unsent_moves_without_a_taint() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Silent);
    // More than the socket takes: the later ones never leave.
    let writes: Vec<_> = (0..40)
        .map(|n| rig.world.spawn_handle(rig.write(8 * n, 5)))
        .collect();
    rig.run(ms(200));
    assert!(writes
        .iter()
        .all(|w| w.try_take().is_some_and(|r| r.is_ok())));
    let tainted = rig.device.snapshot().tainted_ranges;
    assert!((1..=12).contains(&tainted), "{tainted} of 40");
}

#[test]
fn a_held_write_that_gives_up_was_never_applied() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.san.set_link(1, Link::Silent);
    let late = rig.write_with(
        8,
        &[4; 4096],
        Durability::Cache,
        by(rig.world.now() + ms(200)),
    );
    let error = rig.world.block_on(late).unwrap_err();
    assert_eq!((error.kind, error.applied), (Kind::Late, Applied::No));
}

/// A deadline that has passed already is told, and everything else is looked after as before.
#[test]
fn a_deadline_of_the_past_does_not_stop_the_clock() {
    let rig = Rig::new();
    rig.san.set_hung(true);
    let deadline = rig.world.now();
    rig.run(ms(5));
    let late = rig.write_with(8, &[3; 4096], Durability::Cache, by(deadline));
    let late = rig.world.spawn_handle(late);
    rig.run(ms(10));
    let error = late.try_take().expect("told").unwrap_err();
    assert_eq!(error.kind, Kind::Late);
    rig.san.set_hung(false);
    rig.san.set_link(0, Link::Silent);
    let (result, time) = rig.time(rig.read(64));
    assert!(result.is_ok() && time <= ms(150), "{result:?} {time:?}");
}

#[test]
fn all_paths_gone_queues_alone_and_fails_as_a_mirror_leg() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Loud);
    rig.san.set_link(1, Link::Loud);
    rig.run(ms(1));
    let waiting = rig.world.spawn_handle(rig.write(8, 3));
    rig.run(ms(3000));
    assert!(waiting.try_take().is_none());
    assert_eq!(rig.device.snapshot().queued, 1);
    assert_eq!(rig.device.snapshot().state, DeviceState::Queueing);
    assert!(rig.news().contains(&"device_queueing"));
    rig.san.set_link(1, Link::Up);
    let result = rig.world.block_on(waiting);
    assert!(result.is_ok(), "{result:?}");

    rig.device.set_role(Role::MirrorLeg);
    rig.san.set_link(1, Link::Loud);
    let (result, time) = rig.time(rig.write(8, 4));
    let error = result.unwrap_err();
    assert_eq!(error.kind, Kind::Path(PathCause::AllDown));
    assert!(time <= ms(20), "{time:?}");
    assert_eq!(rig.device.snapshot().state, DeviceState::Failed);
}

#[test]
fn no_path_retry_runs_out_after_61_seconds() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Loud);
    rig.san.set_link(1, Link::Loud);
    rig.run(ms(1));
    let (result, time) = rig.time(rig.read(8));
    assert_eq!(result.unwrap_err().kind, Kind::Path(PathCause::AllDown));
    assert!((60..=62).contains(&time.as_secs()), "{time:?}");
    let (result, time) = rig.time(rig.read(8));
    assert!(result.is_err() && time <= ms(20));
}

/// Both legs of a mirror lose their paths at once: whichever is left alone waits for its own.
#[test]
fn a_mirror_leg_that_becomes_the_last_one_waits_although_it_had_given_up() {
    let rig = Rig::new();
    rig.device.set_role(Role::MirrorLeg);
    rig.san.set_link(0, Link::Silent);
    rig.san.set_link(1, Link::Silent);
    let lost = rig.world.spawn_handle(rig.write(8, 3));
    rig.run(ms(2000));
    let error = lost.try_take().expect("told").unwrap_err();
    assert_eq!(error.kind, Kind::Path(PathCause::AllDown));
    rig.device.set_role(Role::Alone);
    let write = rig.world.spawn_handle(rig.write(80, 4));
    rig.run(Duration::from_secs(55));
    assert!(write.try_take().is_none(), "61 s from now on");
    assert_eq!(rig.device.snapshot().state, DeviceState::Queueing);
    rig.san.set_link(1, Link::Up);
    rig.run(ms(3000));
    assert!(write.try_take().is_some_and(|w| w.is_ok()));
}

/// A reload while no path is left: the new `no_path_retry` counts from now on.
#[test]
fn a_new_no_path_retry_counts_for_an_outage_that_lasts() {
    use mpath::NoPathRetry;
    let with = |retry| Config {
        no_path_retry: Some(retry),
        ..config()
    };
    let rig = Rig::with(options(Flavour::Tgt), with(NoPathRetry::Fail));
    rig.san.set_link(0, Link::Loud);
    rig.san.set_link(1, Link::Loud);
    rig.run(ms(10));
    assert!(rig.world.block_on(rig.read(8)).is_err());
    rig.device.reconfigure(with(NoPathRetry::Queue));
    let read = rig.world.spawn_handle(rig.read(8));
    rig.run(Duration::from_secs(100));
    assert!(read.try_take().is_none());
    rig.device.reconfigure(with(NoPathRetry::Checks(2)));
    rig.run(ms(10_500));
    assert!(read.try_take().is_none());
    rig.run(ms(600));
    let error = read.try_take().expect("told").unwrap_err();
    assert_eq!(error.kind, Kind::Path(PathCause::AllDown));
}

#[test]
fn a_path_returns_by_itself_and_takes_over_after_its_probation() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Loud);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.san.set_link(0, Link::Up);
    rig.run(ms(2200));
    assert!(rig.news().contains(&"path_reinstated"));
    rig.world.block_on(rig.write(8, 4)).unwrap();
    assert_eq!(rig.device.snapshot().groups[1].state, GroupState::Active);
    rig.run(ms(3000));
    rig.world.block_on(rig.write(8, 5)).unwrap();
    assert_eq!(rig.device.snapshot().groups[0].state, GroupState::Active);
    assert_eq!(rig.device.snapshot().failovers, 2);
}

/// `failback followover`: back when the whole group had been down, not for one path of it.
#[test]
fn followover_returns_only_to_a_group_that_was_all_down() {
    for policy in [Failback::Manual, Failback::Followover] {
        let config = Config {
            failback: policy,
            ..config()
        };
        let rig = Rig::with(options(Flavour::Tgt), config);
        rig.san.set_link(0, Link::Loud);
        rig.world.block_on(rig.write(8, 3)).unwrap();
        rig.san.set_link(0, Link::Up);
        rig.run(Duration::from_secs(10));
        rig.world.block_on(rig.write(8, 4)).unwrap();
        let back = rig.device.snapshot().groups[0].state == GroupState::Active;
        assert_eq!(back, policy == Failback::Followover);
    }
}

#[test]
fn flapping_1_s_switches_at_most_twice_a_minute() {
    let rig = Rig::new();
    let mut switches = Vec::new();
    for _ in 0..4 {
        let before = rig.device.snapshot().failovers;
        for _ in 0..30 {
            rig.san.set_link(0, Link::Loud);
            for _ in 0..10 {
                rig.world.block_on(rig.write(8, 4)).unwrap();
                rig.run(ms(100));
            }
            rig.san.set_link(0, Link::Up);
            for _ in 0..10 {
                rig.world.block_on(rig.write(8, 4)).unwrap();
                rig.run(ms(100));
            }
        }
        switches.push(rig.device.snapshot().failovers - before);
    }
    assert!(switches.iter().all(|&s| s <= 2), "{switches:?}");
}

/// The same with silent cuts, under load at depth 16.
#[test]
fn silent_flapping_under_load_switches_at_most_twice_a_minute() {
    let rig = Rig::new();
    rig.san.set_service(ms(20));
    for writer in 0..16u64 {
        let (device, pool) = (rig.device.clone(), rig.pool.clone());
        rig.world.rt().spawn(async move {
            for fill in (0..=255u8).cycle() {
                let op = Op::Write {
                    at: Sector(8 * writer),
                    data: pool.copy_now(&[fill; 4096]),
                    want: Durability::Cache,
                };
                let _ = device.submit(op, IoCtx::foreground()).await;
            }
        });
    }
    let mut switches = Vec::new();
    for _ in 0..2 {
        let before = rig.device.snapshot().failovers;
        for _ in 0..30 {
            rig.san.set_link(0, Link::Silent);
            rig.run(ms(1000));
            rig.san.set_link(0, Link::Up);
            rig.run(ms(1000));
        }
        switches.push(rig.device.snapshot().failovers - before);
    }
    assert!(switches.iter().all(|&s| s <= 2), "{switches:?}");
}

#[test]
fn a_network_that_drops_large_frames_does_not_get_its_path_back() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(10));
    rig.san.set_link(0, Link::SmallOnly);
    rig.run(Duration::from_secs(20));
    let snapshot = rig.device.snapshot();
    assert!(!snapshot.groups[0].paths[0].is_active);
    rig.san.set_link(0, Link::Up);
    rig.run(Duration::from_secs(10));
    assert!(rig.device.snapshot().groups[0].paths[0].is_active);
}

/// The unit's own verdict about what an earned return reads says that the way is good.
#[test]
fn a_path_returns_although_the_unit_cannot_read_its_first_sectors() {
    for what in ["medium", "attention", "busy"] {
        let rig = Rig::new();
        rig.san.set_link(0, Link::Loud);
        rig.run(ms(10));
        rig.san.set_link(0, Link::Up);
        match what {
            "medium" => rig.san.spoil(Sector(3)),
            // For every login anew.
            "attention" => rig.san.greet(0x02, Some((6, 0x29, 0))),
            _ => rig.san.greet(0x08, None),
        }
        rig.run(ms(5000));
        let snapshot = rig.device.snapshot();
        let path = &snapshot.groups[0].paths[0];
        assert!(path.is_active, "{what}: {:?}", path.last_error);
    }
}

/// Both paths are told at once that their unit has changed: nothing may go to the new one, by
/// whichever path, before it is known that it is another.
#[test]
fn a_unit_remapped_under_all_paths_is_written_by_none() {
    let rig = Rig::new();
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.san.set_wwid(Some("3600other"));
    rig.san.inject_sense(6, 0x3F, 0x0E);
    let write = rig.world.spawn_handle(rig.write(8, 9));
    rig.run(Duration::from_secs(5));
    assert!(write.try_take().is_none());
    assert_eq!(rig.content(8), 3);
}

/// Our own range error fails no path: the unit has shrunk, and the layer above is yet to be told.
#[test]
fn a_range_beyond_a_shrunk_unit_is_refused_and_fails_no_path() {
    let rig = Rig::new();
    rig.san.resize(1 << 15);
    rig.san.inject_sense(6, 0x2A, 9);
    rig.run(Duration::from_secs(41));
    let error = rig.world.block_on(rig.read(1 << 15)).unwrap_err();
    assert_eq!(error.kind, Kind::Refused(Refusal::Range));
    let snapshot = rig.device.snapshot();
    assert_eq!(snapshot.state, DeviceState::Ready);
    for path in snapshot.groups.iter().flat_map(|g| &g.paths) {
        assert_eq!(path.counters.failures, 0);
    }
}

/// A unit that is busy, then becomes ready: waiting for the one takes nothing from the other, and no
/// path is failed for it.
#[test]
fn a_busy_unit_that_becomes_ready_fails_no_path() {
    let rig = Rig::new();
    rig.san.answer_all(Some((0x08, None)));
    let write = rig.world.spawn_handle(rig.write(8, 3));
    rig.run(ms(1500));
    rig.san.answer_all(Some((0x02, Some((2, 4, 1)))));
    rig.run(ms(1000));
    assert!(write.try_take().is_none());
    rig.san.answer_all(None);
    rig.run(ms(200));
    assert!(write.try_take().is_some_and(|w| w.is_ok()));
    let snapshot = rig.device.snapshot();
    for path in snapshot.groups.iter().flat_map(|g| &g.paths) {
        assert_eq!(path.counters.failures, 0);
    }
}

/// A path that failed once, long ago, and that a fence closes is back in service at once.
#[test]
fn a_path_closed_by_a_fence_is_on_no_probation_for_an_old_failure() {
    let rig = Rig::new();
    rig.san.set_link(1, Link::Loud);
    rig.run(ms(10));
    rig.san.set_link(1, Link::Up);
    rig.run(Duration::from_secs(300));
    // Both sessions have something unanswered: the fence closes one of them or both.
    rig.san.set_hung(true);
    let write = rig.write_with(
        8,
        &[3; 4096],
        Durability::Cache,
        by(rig.world.now() + ms(300)),
    );
    rig.world.block_on(write).unwrap_err();
    rig.san.set_hung(false);
    rig.world.block_on(rig.fence()).unwrap();
    rig.run(ms(1000));
    assert_eq!(rig.device.snapshot().state, DeviceState::Ready);
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(10));
    let snapshot = rig.device.snapshot();
    let path = &snapshot.groups[1].paths[0];
    assert_eq!(path.checker.as_str(), "ready");
}

#[test]
fn what_an_operator_takes_away_while_it_is_being_proven_stays_away() {
    for us in (0..2000).step_by(50) {
        let rig = Rig::new();
        rig.san.set_link(0, Link::Loud);
        rig.run(ms(10));
        rig.san.set_link(0, Link::Up);
        rig.device.link_up("10.3.1.1:3260").unwrap();
        rig.run(Duration::from_micros(us));
        rig.device.fail_path("10.3.1.1:3260").unwrap();
        rig.run(ms(3000));
        let snapshot = rig.device.snapshot();
        assert!(!snapshot.groups[0].paths[0].is_active, "after {us} us");
    }
}

#[test]
fn an_idle_silent_cut_is_found_by_the_checker() {
    let rig = Rig::new();
    rig.san.set_link(1, Link::Silent);
    rig.run(Duration::from_secs(21));
    assert!(!rig.device.snapshot().groups[1].paths[0].is_active);
    assert!(rig.device.snapshot().groups[0].paths[0].is_active);
}

#[test]
fn a_new_polling_interval_counts_for_sessions_that_live() {
    let rig = Rig::new();
    rig.run(Duration::from_secs(60));
    rig.device.reconfigure(Config {
        polling_interval: Duration::from_secs(1),
        max_polling_interval: Duration::from_secs(1),
        ..config()
    });
    // The check that is due comes at its old time, all later ones at the new.
    rig.run(Duration::from_secs(21));
    rig.san.set_link(1, Link::Silent);
    rig.run(ms(2500));
    assert!(!rig.device.snapshot().groups[1].paths[0].is_active);
}

#[test]
fn no_false_failure_with_jitter() {
    let rig = Rig::with(
        mpath::sim::SanOptions {
            delay: ms(50),
            ..options(Flavour::Tgt)
        },
        config(),
    );
    for n in 0..2000u64 {
        rig.world.block_on(rig.write(8 * (n % 100), 1)).unwrap();
        rig.run(ms(n % 977));
    }
    for path in rig.device.snapshot().groups.iter().flat_map(|g| &g.paths) {
        assert_eq!(path.counters.failures, 0, "{:?}", path.last_error);
    }
}

#[test]
fn another_wwid_is_refused_without_a_hot_loop() {
    let rig = Rig::new();
    rig.san.set_wwid(Some("3600other"));
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(10));
    rig.san.set_link(0, Link::Up);
    rig.run(Duration::from_secs(29));
    let snapshot = rig.device.snapshot();
    let path = &snapshot.groups[0].paths[0];
    assert_eq!(path.reach, mpath::PathReach::Misconfigured);
    let text = path.last_error.clone().unwrap_or_default();
    assert!(
        text.contains("3600other") && text.contains("3600sto1"),
        "{text}"
    );
    assert!(path.counters.logins <= 3, "{}", path.counters.logins);
    rig.san.set_wwid(Some("3600sto1"));
    rig.device.reinstate_path("10.3.1.1:3260").unwrap();
    rig.run(ms(100));
    assert!(rig.device.snapshot().groups[0].paths[0].is_active);
}

#[test]
fn a_configured_wwid_counts_on_the_first_login_too() {
    let config = Config {
        wwid: Some("3600wanted".into()),
        ..config()
    };
    let world = blockdev::sim::VirtualRt::new(1);
    let san = mpath::sim::San::new(world.rt(), blockdev::Pool::new(1 << 20), Default::default());
    let device = mpath::MultipathDevice::new(world.rt(), config, vec![san.port(0), san.port(1)]);
    let error = world
        .block_on(async move { device.opened(blockdev::Instant::FAR).await })
        .unwrap_err();
    assert!(error.to_string().contains("3600wanted"), "{error}");
    assert_eq!(error.paths.len(), 2);
}

#[test]
fn inquiry_changed_pauses_the_path_and_looks_again() {
    let rig = Rig::new();
    rig.san.inject_sense(6, 0x3F, 0x0E);
    let (result, time) = rig.time(rig.write(8, 3));
    assert!(result.is_ok() && time <= ms(20), "{result:?} {time:?}");
    assert_eq!(rig.device.snapshot().state, DeviceState::Ready);
    // Now it is another unit: nothing may be written there.
    rig.san.set_wwid(Some("3600other"));
    rig.san.inject_sense(6, 0x3F, 0x03);
    let write = rig.world.spawn_handle(rig.write(8, 9));
    rig.run(ms(500));
    assert!(write.try_take().is_none());
    assert_eq!(rig.content(8), 3);
}

#[test]
fn a_grown_unit_is_told_and_used_after_the_event_was_taken() {
    let rig = Rig::new();
    rig.san.resize(1 << 17);
    rig.san.inject_sense(6, 0x2A, 9);
    rig.world.block_on(rig.read(8)).unwrap();
    rig.world.block_on(rig.read(8)).unwrap();
    rig.run(ms(100));
    assert_eq!(rig.device.geometry().sectors, 1 << 16);
    rig.san.inject_sense(6, 0x2A, 9);
    rig.run(Duration::from_secs(21));
    assert!(rig.events().iter().any(|e| matches!(e, Event::Changed(_))));
    assert_eq!(rig.device.geometry().sectors, 1 << 17);
}

#[test]
fn the_units_own_verdict_goes_upward_and_fails_no_path() {
    let rig = Rig::new();
    rig.san.spoil(Sector(13));
    let error = rig.world.block_on(rig.read(8)).unwrap_err();
    let first_bad = Sector(13);
    assert_eq!(error.kind, Kind::Medium { first_bad });
    rig.san.inject_sense(7, 0x27, 7);
    let error = rig.world.block_on(rig.write(8, 1)).unwrap_err();
    assert_eq!(error.kind, Kind::NoSpace);
    rig.san.inject_status(0x18);
    let error = rig.world.block_on(rig.write(8, 1)).unwrap_err();
    // The other session's injection is still there.
    assert_eq!(error.kind, Kind::Refused(Refusal::Reserved));
    rig.san.inject_status(0x28);
    let (result, time) = rig.time(rig.write(8, 1));
    assert!(result.is_ok() && time <= ms(20), "{result:?} {time:?}");
    assert_eq!(rig.device.snapshot().state, DeviceState::Ready);
}

#[test]
fn refused_fua_becomes_write_and_flush_and_is_remembered() {
    let rig = Rig::new();
    assert!(rig.device.geometry().fua);
    rig.san.refuse_fua();
    for fill in [3, 4] {
        let ctx = IoCtx::foreground();
        let write = rig.write_with(8, &[fill; 4096], Durability::Fua, ctx);
        assert!(matches!(rig.world.block_on(write), Ok(Done::Written)));
        assert_eq!(rig.san.peek_media(Sector(8))[0], fill);
    }
    // The layer above is told once, and flushes by itself from then on.
    let told = |e: &Event| matches!(e, Event::Changed(g) if !g.fua && g.write_cache);
    assert_eq!(rig.events().iter().filter(|e| told(e)).count(), 1);
    assert!(!rig.device.geometry().fua);
    // Several parts at once share one flush.
    let long = vec![9; 3 << 20];
    let write = rig.write_with(0, &long, Durability::Fua, IoCtx::foreground());
    assert!(rig.world.block_on(write).is_ok());
    assert_eq!(rig.san.peek_media(Sector(6000))[0], 9);
}

#[test]
fn operators_take_paths_down_and_up() {
    let rig = Rig::new();
    rig.device.fail_path("10.3.1.1:3260").unwrap();
    rig.run(ms(100));
    assert_eq!(rig.device.snapshot().groups[0].state, GroupState::Disabled);
    rig.run(Duration::from_secs(60));
    assert_eq!(rig.device.snapshot().groups[0].state, GroupState::Disabled);
    assert!(rig.world.block_on(rig.write(8, 2)).is_ok());
    rig.device.reinstate_path("10.3.1.1").unwrap();
    rig.run(ms(100));
    assert!(rig.device.snapshot().groups[0].paths[0].is_active);
    let error = rig.device.fail_path("10.9.9.9").unwrap_err();
    assert!(error.to_string().contains("10.3.1.1:3260, 10.4.1.1:3260"));
    rig.device.remove_path("10.4.1.1:3260").unwrap();
    rig.run(ms(100));
    assert_eq!(rig.device.snapshot().groups.len(), 1);
    rig.device.add_path(rig.san.port(1));
    rig.run(ms(100));
    assert_eq!(rig.device.snapshot().groups.len(), 2);
    assert_eq!(rig.device.snapshot().state, DeviceState::Ready);
}

#[test]
fn unhedged_io_still_leaves_a_silent_path() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Silent);
    let op = Op::Read {
        at: Sector(8),
        sectors: 8,
    };
    let (result, time) = rig.time(rig.device.submit(op, unhedged()));
    assert!(result.is_ok() && time <= ms(150), "{result:?} {time:?}");
}

#[test]
fn close_logs_out_and_ends_everything() {
    let rig = Rig::new();
    rig.san.set_hung(true);
    let stuck = rig.world.spawn_handle(rig.write(8, 1));
    rig.run(ms(10));
    let device = rig.device.clone();
    rig.world.block_on(async move { device.close().await });
    let error = rig.world.block_on(stuck).unwrap_err();
    assert_eq!(error.kind, Kind::Closed);
    rig.run(ms(100));
    assert_eq!(rig.san.sessions(), 0);
    let after = rig.world.block_on(rig.read(8)).unwrap_err();
    assert_eq!(after.kind, Kind::Closed);
}

/// RFC 7143 §11.9.1: a target that wants a logout gets no new commands from the moment the message
/// is read, what it has is still answered, and only then the session logs out.
#[test]
fn a_logout_that_the_target_wants_drains_the_path_first() {
    let rig = Rig::new();
    rig.san.set_service(ms(40));
    let before: Vec<_> = (0..4)
        .map(|n| {
            rig.world
                .spawn_handle(rig.write_with(8 * n, &[3; 4096], Durability::Cache, unhedged()))
        })
        .collect();
    rig.run(ms(10));
    assert_eq!(rig.san.backlog(), 4);
    // The session knows of it before its path does: the write that comes right then is given back.
    rig.san.ask_logout(0, ms(3000));
    let after = rig.world.spawn_handle(rig.write(80, 4));
    assert_eq!(rig.san.sessions(), 2, "not aborted");
    rig.run(ms(400));
    for write in before {
        let done = write.try_take().expect("answered");
        assert!(matches!(done, Ok(Done::Written)), "{done:?}");
    }
    assert!(after.try_take().is_some_and(|done| done.is_ok()));
    let snapshot = rig.device.snapshot();
    let counters: Vec<_> = snapshot
        .groups
        .iter()
        .flat_map(|group| &group.paths)
        .map(|path| (path.counters.write_ios, path.counters.failures))
        .collect();
    assert_eq!(counters, [(4, 0), (1, 0)]);
    assert_eq!((snapshot.tainted_ranges, snapshot.failovers), (0, 1));
    let news = rig.news();
    assert!(!news.contains(&"fence_started"), "{news:?}");
    // It logs in again at once.
    rig.run(ms(1000));
    let snapshot = rig.device.snapshot();
    assert_eq!(snapshot.state, DeviceState::Ready);
    assert_eq!(snapshot.groups[0].paths[0].counters.logins, 2);
}

/// The same with nothing else to go to: requests wait for the new session.
#[test]
fn a_logout_of_the_last_path_makes_requests_wait_for_its_return() {
    let options = mpath::sim::SanOptions {
        portal_groups: vec![1],
        ..options(Flavour::Tgt)
    };
    let rig = Rig::with(options, config());
    rig.san.ask_logout(0, ms(1000));
    let (result, time) = rig.time(rig.write(8, 4));
    assert!(result.is_ok() && time <= ms(100), "{result:?} {time:?}");
    assert_eq!(rig.device.snapshot().tainted_ranges, 0);
}
