//! Rules of `failover-rules.md` §1, one named test per counterexample that fits one unit.

mod common;

use blockdev::path::Isid;
use blockdev::sim::VirtualRt;
use blockdev::{
    Admission, BlockDevice, Durability, Event, Instant, IoCtx, IoError, Kind, LocalFuture, Op,
    Pool, ReadSectors, Refusal, Sector,
};
use common::{by, config, ms, options, unhedged, Rig};
use mpath::sim::{Flavour, Link, San, SanOptions};
use mpath::{Config, DeviceState, FenceGrade, FencePolicy, MultipathDevice, Role};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// A write whose answer is lost upward while the back end still has it.
fn leave_in_back_end(rig: &Rig, at: u64, fill: u8) {
    rig.san.set_hung(true);
    let ctx = by(rig.world.now() + ms(50));
    let write = rig.write_with(at, &[fill; 4096], Durability::Cache, ctx);
    let error = rig.world.block_on(write).expect_err("no answer");
    assert_eq!(error, IoError::unknown(Kind::Late));
}

/// Rule 1: a path failure alone starts no fence.
#[test]
fn rule_1_a_path_failure_starts_no_fence() {
    let rig = Rig::new();
    let write = rig.write(8, 3);
    rig.san.set_link(0, Link::Loud);
    rig.world.block_on(write).unwrap();
    rig.run(ms(1000));
    let news = rig.news();
    assert!(news.contains(&"path_failed") && !news.contains(&"fence_started"));
}

/// Rule 2: on tgt a session that does not drain its read data blocks LUN RESET of all others; a
/// foreign path's reads must be closed as well as its writes.
#[test]
fn rule_2_undrained_reads_of_a_cut_session_do_not_block_the_fence() {
    let rig = Rig::new();
    let reads: Vec<_> = (0..4)
        .map(|n| rig.world.spawn_handle(rig.read(8 * n)))
        .collect();
    let write = rig.world.spawn_handle(rig.write(80, 3));
    // The answers are on their way when the network goes.
    rig.run(Duration::from_micros(250));
    rig.san.set_link(0, Link::Silent);
    rig.run(ms(200));
    assert!(reads
        .iter()
        .all(|r| r.try_take().is_some_and(|r| r.is_ok())));
    assert!(write.try_take().is_some_and(|w| w.is_ok()));
    let (result, time) = rig.time(rig.write(80, 4));
    assert!(result.is_ok() && time <= ms(250), "{result:?} {time:?}");
    let (result, time) = rig.time(rig.fence());
    assert!(result.is_ok() && time <= ms(250), "{result:?} {time:?}");
}

/// Rule 3: tgt answers only the later of two resets. Whoever wants a fence while one is under way
/// waits for it, and none is sent beside it.
#[test]
fn rule_3_one_reset_at_a_time() {
    let rig = Rig::new();
    leave_in_back_end(&rig, 8, 3);
    let held = rig.world.spawn_handle(rig.write(8, 4));
    let fences: Vec<_> = (0..8)
        .map(|n| {
            rig.run(Duration::from_micros(n * 150));
            rig.world.spawn_handle(rig.fence())
        })
        .collect();
    rig.san.set_hung(false);
    // A reset that nobody answers is repeated after seconds.
    rig.run(ms(500));
    assert!(held.try_take().is_some_and(|w| w.is_ok()));
    for fence in fences {
        assert!(fence.try_take().is_some_and(|f| f.is_ok()));
    }
    assert_eq!(rig.content(8), 4);
}

/// Rule 4, tgt: writes in the back end complete before the reset is answered.
#[test]
fn rule_4_the_fence_waits_for_the_back_end() {
    let rig = Rig::new();
    leave_in_back_end(&rig, 8, 3);
    let fence = rig.world.spawn_handle(rig.fence());
    rig.run(ms(2000));
    assert!(
        fence.try_take().is_none(),
        "nothing is proven while it hangs"
    );
    rig.san.set_hung(false);
    rig.world.block_on(fence).unwrap();
    assert_eq!(rig.san.backlog(), 0);
    assert_eq!(rig.device.snapshot().tainted_ranges, 0);
    assert_eq!(rig.device.snapshot().fence, FenceGrade::Proven);
}

/// A mirror's leg is told within `fence_timeout`; the fence goes on and serves the next one.
#[test]
fn a_mirror_leg_that_cannot_be_fenced_fails_within_500_ms() {
    let rig = Rig::new();
    rig.device.set_role(Role::MirrorLeg);
    leave_in_back_end(&rig, 8, 3);
    let held = rig.world.spawn_handle(rig.write(8, 4));
    let (result, time) = rig.time(rig.fence());
    let error = result.unwrap_err();
    assert!(
        matches!(error.kind, Kind::Refused(Refusal::NoFence(_))),
        "{error}"
    );
    assert!(time >= ms(500) && time <= ms(560), "{time:?}");
    rig.run(ms(60));
    let error = held.try_take().expect("told too").unwrap_err();
    assert!(
        matches!(error.kind, Kind::Refused(Refusal::NoFence(_))),
        "{error}"
    );
    rig.san.set_hung(false);
    rig.run(ms(100));
    let (result, time) = rig.time(rig.fence());
    assert!(result.is_ok() && time <= ms(20), "{result:?} {time:?}");
}

/// Rule 4, LIO: the reset skips commands of closed connections, so the barrier is ORDERED.
#[test]
fn rule_4_lio_is_fenced_by_an_ordered_command() {
    let rig = Rig::with(options(Flavour::Lio), config());
    rig.san.set_hung(true);
    let first = rig.world.spawn_handle(rig.write(8, 3));
    rig.run(ms(10));
    // The target sees the connection end; the write stays in its back end.
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(10));
    rig.san.set_link(0, Link::Up);
    let fence = rig.world.spawn_handle(rig.fence());
    rig.run(ms(3000));
    assert!(
        fence.try_take().is_none(),
        "nothing is proven while it hangs"
    );
    rig.san.set_hung(false);
    rig.world.block_on(fence).unwrap();
    assert!(first.try_take().is_some_and(|r| r.is_ok()));
    assert_eq!(rig.device.snapshot().tainted_ranges, 0);
    assert_eq!(rig.device.snapshot().fence, FenceGrade::Assumed);
}

/// A target that ends commands without an answer: they are sent again, and no path is blamed.
#[test]
fn commands_ended_by_our_own_reset_are_sent_again() {
    let rig = Rig::with(options(Flavour::Standard), config());
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    let over = rig.world.spawn_handle(rig.write(8, 4));
    let other: Vec<_> = (2..12)
        .map(|n| rig.world.spawn_handle(rig.write(8 * n, 5)))
        .collect();
    rig.run(ms(400));
    assert!(over.try_take().is_some_and(|r| r.is_ok()));
    assert!(other
        .iter()
        .all(|o| o.try_take().is_some_and(|r| r.is_ok())));
    let snapshot = rig.device.snapshot();
    assert_eq!(snapshot.groups[1].paths[0].counters.failures, 0);
}

/// Rules 2 and 4: the answer of a reset says nothing about a command whose data its own session has
/// yet to send. Such a session is closed and logged in again before the barrier, as any other.
#[test]
fn rule_4_a_reset_does_not_conclude_what_its_own_session_still_sends() {
    for flavour in [Flavour::Tgt, Flavour::Lio, Flavour::Standard] {
        let options = SanOptions {
            portal_groups: vec![1],
            asks_within: Some(ms(1500)),
            ..options(flavour)
        };
        let rig = Rig::with(options, config());
        for round in 0..20 {
            let ctx = by(rig.world.now() + ms(150));
            let late = rig.write_with(8, &[3; 4096], Durability::Cache, ctx);
            if rig.world.block_on(late).is_ok() {
                continue;
            }
            rig.world.block_on(rig.write(8, 4)).unwrap();
            rig.run(Duration::from_secs(2));
            assert_eq!(rig.content(8), 4, "{flavour:?}, round {round}");
        }
        assert!(rig.device.snapshot().fences > 0);
    }
}

/// Rule 4, tgt: the reset's answer ends its own session's commands for the initiator, but not one
/// whose data were still on their way: that one begins after it.
#[test]
fn rule_4_a_write_that_our_own_reset_ended_is_not_answered() {
    for seed in 1..=40 {
        let options = SanOptions {
            asks_within: Some(Duration::from_micros(400)),
            stragglers: Some((400_000, ms(60))),
            ..options(Flavour::Tgt)
        };
        let rig = Rig::seeded(seed, options, config());
        for round in 0..10 {
            let first = rig.world.spawn_handle(rig.write(8, 3));
            rig.run(Duration::from_micros(40 * round));
            let fence = rig.world.spawn_handle(rig.fence());
            rig.world.block_on(first).unwrap();
            rig.world.block_on(rig.write(8, 4)).unwrap();
            rig.run(ms(300));
            assert_eq!(rig.content(8), 4, "seed {seed}, round {round}");
            assert!(fence.try_take().is_some_and(|f| f.is_ok()));
        }
        // What no answer can come for is fenced although its session lives.
        rig.run(Duration::from_secs(6));
        assert_eq!(rig.device.snapshot().tainted_ranges, 0);
    }
}

/// Rule 4, elsewhere: what had not left when the reset did is not ended by it, and not forgotten.
#[test]
fn rule_4_a_reset_does_not_end_what_it_overtakes_in_our_own_queue() {
    let options = SanOptions {
        portal_groups: vec![1],
        ..options(Flavour::Standard)
    };
    let rig = Rig::with(options, config());
    // More than the socket takes; what leaves after the reset is slow.
    let writes: Vec<_> = (0..40)
        .map(|n| rig.world.spawn_handle(rig.write(8 * n, 3)))
        .collect();
    let fence = rig.world.spawn_handle(rig.fence());
    rig.run(Duration::from_micros(120));
    rig.san.set_service(ms(200));
    rig.run(Duration::from_micros(400));
    rig.san.set_service(Duration::from_micros(200));
    for (n, first) in (0..).zip(writes) {
        rig.world.block_on(first).unwrap();
        rig.world.block_on(rig.write(8 * n, 4)).unwrap();
    }
    rig.run(ms(500));
    assert!(fence.try_take().is_some_and(|f| f.is_ok()));
    for n in 0..40 {
        assert_eq!(rig.content(8 * n), 4, "write {n}");
    }
}

/// A slow unit: a fence that waits for a write ends it with one reset at most, and then lets it end.
#[test]
fn a_fence_does_not_reset_a_slow_unit_again_and_again() {
    let rig = Rig::with(options(Flavour::Standard), config());
    rig.san.set_service(ms(150));
    let write = rig.write_with(8, &[3; 4096], Durability::Cache, unhedged());
    let write = rig.world.spawn_handle(write);
    rig.run(ms(10));
    let fence = rig.world.spawn_handle(rig.fence());
    rig.run(Duration::from_secs(5));
    assert!(write.try_take().is_some_and(|w| w.is_ok()));
    assert!(fence.try_take().is_some_and(|f| f.is_ok()));
    assert_eq!(rig.device.snapshot().fences, 1);
}

/// Rule 5: a fence login is bound to the session it is made beside. When that is lost, another path
/// fences, by the ORDERED barrier; nothing stays reserved for a login without an end.
#[test]
fn rule_5_a_fence_login_ends_with_the_session_it_is_made_beside() {
    let rig = Rig::with(options(Flavour::Lio), config());
    rig.san.set_hung(true);
    let first = rig.world.spawn_handle(rig.write(8, 3));
    rig.run(ms(10));
    rig.san.set_link(0, Link::Silent);
    let fence = rig.world.spawn_handle(rig.fence());
    // The login through path 1 waits for the back end, and path 1 goes too.
    rig.run(ms(1000));
    rig.san.set_link(1, Link::Silent);
    rig.run(ms(1000));
    rig.san.set_link(0, Link::Up);
    rig.san.set_hung(false);
    rig.run(Duration::from_secs(40));
    assert!(fence.try_take().is_some_and(|f| f.is_ok()));
    assert!(first.try_take().is_some_and(|w| w.is_ok()));
    assert_eq!(rig.device.snapshot().tainted_ranges, 0);
}

/// Rule 5: a fence login by the path's own portal is bounded by `login_timeout`, and begun anew when
/// the way is back: in a cut it would never end, and say nothing.
#[test]
fn rule_5_a_fence_login_by_its_own_portal_does_not_hang_in_a_cut() {
    let options = SanOptions {
        portal_groups: vec![1, 2],
        ..options(Flavour::Lio)
    };
    let rig = Rig::with(options, config());
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    let held = rig.world.spawn_handle(rig.write(8, 4));
    rig.run(ms(6000));
    assert!(held.try_take().is_none());
    assert!(rig.news().contains(&"fence_failed"));
    rig.san.set_link(0, Link::Up);
    rig.device.link_up("10.3.1.1:3260").unwrap();
    rig.run(ms(1500));
    assert!(held.try_take().is_some_and(|w| w.is_ok()));
}

/// Rule 6: recovery and fence never log in under one ISID at once, and a fence does not wait for
/// a recovery that hangs in a dead network.
#[test]
fn rule_6_the_fence_takes_the_isid_from_a_recovery_that_hangs() {
    let rig = Rig::new();
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.run(ms(1500));
    // Path 0 is failed and its login hangs in the cut now.
    let (result, time) = rig.time(rig.write(8, 4));
    assert!(result.is_ok() && time <= ms(250), "{result:?} {time:?}");
    rig.san.set_link(0, Link::Up);
    rig.run(Duration::from_secs(12));
    assert_eq!(rig.content(8), 4);
    assert_eq!(
        rig.device.snapshot().groups[0].paths[0].checker.as_str(),
        "ready"
    );
}

/// Another portal group reinstates nothing (but on tgt, which looks at the whole target).
#[test]
fn reinstatement_through_another_portal_group_is_not_believed() {
    let two_groups = |flavour| SanOptions {
        portal_groups: vec![1, 2],
        ..options(flavour)
    };
    let rig = Rig::with(two_groups(Flavour::Standard), config());
    rig.device.set_role(Role::MirrorLeg);
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    let error = rig.world.block_on(rig.write(8, 4)).unwrap_err();
    assert!(
        matches!(error.kind, Kind::Refused(Refusal::NoFence(_))),
        "{error}"
    );
    rig.san.set_link(0, Link::Up);
    rig.run(Duration::from_secs(8));
    assert!(rig.world.block_on(rig.write(8, 5)).is_ok());
    rig.run(Duration::from_secs(1));
    assert_eq!(rig.content(8), 5);

    let rig = Rig::with(two_groups(Flavour::Tgt), config());
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    let (result, time) = rig.time(rig.write(8, 4));
    assert!(result.is_ok() && time <= ms(250), "{result:?} {time:?}");
}

/// Rule 7: the first fence of a run ends what the previous run left, under derived and recorded
/// ISIDs, also of paths that are unreachable now.
#[test]
fn rule_7_start_up_fences_the_previous_run() {
    let world = VirtualRt::new(3);
    let pool = Pool::new(16 << 20);
    let san = San::new(world.rt(), pool.clone(), SanOptions::default());
    let old_isid = Isid([0x80, 9, 9, 9, 9, 9]);
    let open = |ports: Vec<Rc<dyn blockdev::path::PathPort>>| {
        let device = Rc::new(MultipathDevice::new(world.rt(), config(), ports));
        let opened = device.clone();
        let opened = world.block_on(async move { opened.opened(Instant::FAR).await });
        opened.expect("a path is up");
        device
    };
    let write = |device: &MultipathDevice, fill: u8| {
        let op = Op::Write {
            at: Sector(8),
            data: pool.copy_now(&[fill; 4096]),
            want: Durability::Cache,
        };
        device.submit(op, IoCtx::foreground())
    };
    // The previous run used an ISID that is no longer configured, and died with a write in a
    // network that has gone silent.
    let first = open(vec![san.port_with(0, old_isid)]);
    san.set_link(0, Link::Silent);
    drop(write(&first, 3));
    world.run_for(ms(1));
    world.kill();
    drop(first);
    san.survive_kill();

    let second = open(vec![san.port(0), san.port(1)]);
    second.startup_fence(vec![(config().initiator_name, old_isid)]);
    // A second try of a start, whose own claim is the newest by now.
    second.startup_fence(Vec::new());
    let fence = second.submit(Op::Fence, IoCtx::metadata());
    world.block_on(fence).expect("fenced");
    world.block_on(write(&second, 4)).expect("written");
    san.set_link(0, Link::Up);
    world.run_for(Duration::from_secs(2));
    assert_eq!(san.peek(Sector(8))[0], 4);
}

/// Found by tests/sim_ghost.rs: after a crash the group of an unreachable portal is not known, and
/// a login under its ISID in another group succeeds and ends nothing.
#[test]
fn rule_7_a_portal_of_unknown_group_is_fenced_through_itself() {
    let world = VirtualRt::new(3);
    let pool = Pool::new(16 << 20);
    let options = SanOptions {
        portal_groups: vec![1, 2],
        ..options(Flavour::Lio)
    };
    let san = San::new(world.rt(), pool, options);
    san.set_link(0, Link::Silent);
    let ports = vec![san.port(0), san.port(1)];
    let device = Rc::new(MultipathDevice::new(world.rt(), config(), ports));
    let fence = || device.submit(Op::Fence, IoCtx::metadata());
    world.run_for(ms(100));
    let first = world.spawn_handle(fence());
    world.run_for(Duration::from_secs(20));
    assert!(first.try_take().is_none());
    san.set_link(0, Link::Up);
    world.block_on(first).expect("fenced");
}

/// Rule 8: grade `none` is released as assumed after `fence_assume` without a write.
#[test]
fn rule_8_grade_none_is_assumed_after_60_s_without_a_write() {
    let rig = Rig::with(options(Flavour::Istgt), config());
    leave_in_back_end(&rig, 8, 3);
    let held = rig.world.spawn_handle(rig.write(8, 4));
    rig.run(ms(1000));
    let other = rig.world.spawn_handle(rig.write(800, 5));
    rig.run(Duration::from_secs(57));
    assert!(held.try_take().is_none() && other.try_take().is_none());
    rig.san.set_hung(false);
    rig.run(Duration::from_secs(4));
    assert!(held.try_take().is_some_and(|r| r.is_ok()));
    assert!(other.try_take().is_some_and(|r| r.is_ok()));
    assert!(rig.news().contains(&"fence_assumed"));
    assert_eq!(rig.device.snapshot().fence, FenceGrade::None);
}

fn by_key() -> Config {
    Config {
        fence: FencePolicy::Pr,
        ..config()
    }
}

/// Two portal groups, and the cut one cannot be reached: reinstatement proves nothing there, a
/// preempted key does. What the network held meets a conflict.
#[test]
fn pr_fences_across_portal_groups() {
    for flavour in [Flavour::Standard, Flavour::Lio] {
        let options = SanOptions {
            portal_groups: vec![1, 2],
            ..options(flavour)
        };
        let rig = Rig::with(options, by_key());
        rig.san.set_link(0, Link::Silent);
        let first: Vec<_> = (0..3).map(|_| rig.write(8, 3)).collect();
        for write in first {
            rig.world.block_on(write).unwrap();
        }
        let (result, time) = rig.time(rig.write(8, 4));
        assert!(
            result.is_ok() && time <= ms(250),
            "{flavour:?} {result:?} {time:?}"
        );
        rig.san.set_link(0, Link::Up);
        rig.run(Duration::from_secs(10));
        assert_eq!(rig.content(8), 4, "{flavour:?}");
        assert_eq!(rig.device.snapshot().state, DeviceState::Ready);
        assert!(rig.world.block_on(rig.write(8, 5)).is_ok());
    }
}

/// The keys of a run that died are unknown to the next one, and taken away all the same.
#[test]
fn pr_start_up_takes_away_every_other_key() {
    let world = VirtualRt::new(3);
    let pool = Pool::new(16 << 20);
    let options = SanOptions {
        portal_groups: vec![1, 2],
        ..options(Flavour::Standard)
    };
    let san = San::new(world.rt(), pool.clone(), options);
    let open = |ports: Vec<Rc<dyn blockdev::path::PathPort>>| {
        let device = Rc::new(MultipathDevice::new(world.rt(), by_key(), ports));
        let opened = device.clone();
        let opened = world.block_on(async move { opened.opened(Instant::FAR).await });
        opened.expect("a path is up");
        device
    };
    let write = |device: &MultipathDevice, fill: u8| {
        let op = Op::Write {
            at: Sector(8),
            data: pool.copy_now(&[fill; 4096]),
            want: Durability::Cache,
        };
        device.submit(op, IoCtx::foreground())
    };
    let first = open(vec![san.port_with(0, Isid([0x80, 9, 9, 9, 9, 9]))]);
    san.set_link(0, Link::Silent);
    drop([(); 3].map(|()| write(&first, 3)));
    world.run_for(ms(1));
    world.kill();
    drop(first);
    san.survive_kill();
    let second = open(vec![san.port(1)]);
    let fence = second.submit(Op::Fence, IoCtx::metadata());
    world.block_on(fence).expect("fenced");
    world.block_on(write(&second, 4)).expect("written");
    san.set_link(0, Link::Up);
    world.run_for(Duration::from_secs(2));
    assert_eq!(san.peek(Sector(8))[0], 4);
}

/// A unit without PREEMPT AND ABORT (tgt has none), or with a wrong one (istgt), is refused before
/// anything is reserved on it.
#[test]
fn pr_is_refused_at_the_login_where_it_cannot_work() {
    is_refused(Flavour::Tgt, "the unit has no PREEMPT AND ABORT (5/24/00)");
    is_refused(Flavour::Istgt, "takes away other keys than the one named");
}

fn is_refused(flavour: Flavour, why: &str) {
    let world = VirtualRt::new(3);
    let pool = Pool::new(16 << 20);
    let san = San::new(world.rt(), pool.clone(), options(flavour));
    san.refuse_barriers(true);
    let open = |config| {
        let device = Rc::new(MultipathDevice::new(world.rt(), config, vec![san.port(0)]));
        let opened = device.clone();
        (
            device,
            world.block_on(async move { opened.opened(Instant::FAR).await }),
        )
    };
    let (device, refused) = open(by_key());
    let error = refused.expect_err("refused").to_string();
    assert!(error.contains(why), "{error}");
    drop(device);
    let (device, opened) = open(config());
    opened.expect("a path is up");
    let op = Op::Write {
        at: Sector(8),
        data: pool.copy_now(&[1; 4096]),
        want: Durability::Cache,
    };
    let written = world.block_on(device.submit(op, IoCtx::foreground()));
    written.expect("nothing is reserved");
}

/// After an orderly end whoever uses no keys may write; after another one nobody may.
#[test]
fn pr_leaves_a_reservation_only_where_something_is_unanswered() {
    for is_orderly in [true, false] {
        let rig = Rig::with(options(Flavour::Standard), by_key());
        rig.world.block_on(rig.write(8, 1)).unwrap();
        if !is_orderly {
            rig.san.set_link(0, Link::Silent);
            rig.world.block_on(rig.write(8, 2)).unwrap();
        }
        let device = rig.device.clone();
        rig.world.block_on(async move { device.close().await });
        // Another session than those whose keys may be left.
        let ports = vec![rig.san.port_with(1, Isid([0x80, 9, 9, 9, 9, 9]))];
        let next = MultipathDevice::new(rig.world.rt(), config(), ports);
        let next = Rc::new(next);
        let opened = next.clone();
        let opened = rig
            .world
            .block_on(async move { opened.opened(Instant::FAR).await });
        opened.expect("a path is up");
        let op = Op::Write {
            at: Sector(8),
            data: rig.pool.copy_now(&[3; 4096]),
            want: Durability::Cache,
        };
        let written = rig.world.block_on(next.submit(op, IoCtx::foreground()));
        assert_eq!(written.is_ok(), is_orderly, "{written:?}");
    }
}

/// A reload cannot change what is registered: keys are used, and are those, until the device closes.
#[test]
fn pr_stays_as_it_was_when_the_device_was_opened() {
    let options = SanOptions {
        portal_groups: vec![1, 2],
        ..options(Flavour::Standard)
    };
    let rig = Rig::with(options, by_key());
    rig.device.reconfigure(Config {
        reservation_key: Some(0x77),
        ..config()
    });
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    let (result, time) = rig.time(rig.write(8, 4));
    assert!(result.is_ok() && time <= ms(250), "{result:?} {time:?}");
    rig.san.set_link(0, Link::Up);
    rig.run(Duration::from_secs(10));
    assert_eq!(rig.content(8), 4);
    assert_eq!(rig.device.snapshot().state, DeviceState::Ready);
}

/// A fence that the unit refuses when it is needed is none, and says so.
#[test]
fn pr_refused_is_no_fence() {
    let rig = Rig::with(options(Flavour::Standard), by_key());
    rig.device.set_role(Role::MirrorLeg);
    rig.san.refuse_barriers(true);
    rig.san.set_link(0, Link::Silent);
    rig.world.block_on(rig.write(8, 3)).unwrap();
    let error = rig.world.block_on(rig.write(8, 4)).unwrap_err();
    assert!(error.to_string().contains("PREEMPT AND ABORT"), "{error}");
}

fn has_cache_lost(rig: &Rig) -> bool {
    rig.events().contains(&Event::CacheLost)
}

/// Rule 10: a session that survived the gap vouches for the cache.
#[test]
fn rule_10_a_survivor_vouches() {
    let rig = Rig::new();
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(50));
    rig.san.set_link(0, Link::Up);
    rig.run(ms(3000));
    assert_eq!(rig.device.snapshot().groups[0].paths[0].counters.logins, 2);
    assert!(!has_cache_lost(&rig));
}

/// Rule 10: sessions made after the gap never vouch for each other.
#[test]
fn rule_10_sessions_made_after_the_gap_do_not_vouch() {
    let rig = Rig::new();
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.san.power_cut(ms(300), false);
    rig.run(ms(5000));
    let events = rig.events();
    let losses = events.iter().filter(|e| **e == Event::CacheLost).count();
    assert_eq!(losses, 1, "raised once, and not explained away");
}

/// Rule 10: a survivor must have answered after the new login. Here it cannot: its connection is
/// dead, and nobody was told.
#[test]
fn rule_10_a_survivor_must_have_answered_since() {
    let rig = Rig::new();
    rig.world.block_on(rig.write(8, 3)).unwrap();
    // The unit restarts; path 1's reset is lost in a cut, path 0 hears it.
    rig.san.set_link(1, Link::Silent);
    rig.san.power_cut(ms(10), false);
    rig.run(ms(2000));
    assert!(has_cache_lost(&rig));
    assert!(rig.device.snapshot().groups[0].paths[0].is_active);
}

/// Rule 10: when a loss is raised the sessions that could not vouch are closed already, and what they
/// had not answered is sent again: an answer of the old unit that still lies in the network counts
/// for nothing.
#[test]
fn rule_10_the_others_are_closed_before_a_loss_is_raised() {
    let rig = Rig::new();
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.san.set_link(0, Link::Silent);
    let write = rig.write_with(16, &[4; 4096], Durability::Cache, unhedged());
    let write = rig.world.spawn_handle(write);
    rig.run(ms(5));
    rig.san.power_cut(ms(10), false);
    let mut waited = 0;
    while !has_cache_lost(&rig) {
        rig.run(ms(1));
        waited += 1;
        assert!(waited < 5000, "the loss is raised");
    }
    let groups = rig.device.snapshot().groups;
    let mut paths = groups.iter().flat_map(|group| &group.paths);
    let old = paths.find(|path| path.index == 0).unwrap();
    assert!(!old.is_active, "{:?}", old.last_error);
    rig.san.set_link(0, Link::Up);
    rig.run(ms(3000));
    assert!(write.try_take().is_some_and(|w| w.is_ok()));
    assert_eq!(rig.content(16), 4);
}

/// After a loss no flush that was asked for before may say that all is on the medium.
#[test]
fn rule_10_no_flush_succeeds_over_a_lost_cache() {
    let rig = Rig::new();
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.san.power_cut(ms(300), false);
    rig.run(ms(1));
    let flush = rig.world.spawn_handle(rig.flush());
    rig.run(ms(5000));
    let error = flush.try_take().expect("answered").unwrap_err();
    assert!(matches!(error.kind, Kind::Again { .. }), "{error}");
    let error = rig.world.block_on(rig.flush()).unwrap_err();
    assert!(
        matches!(error.kind, Kind::Again { .. }),
        "not before the event is taken"
    );
    assert!(has_cache_lost(&rig));
    rig.world.block_on(rig.flush()).unwrap();
}

/// Nothing was unflushed: nothing can be lost.
#[test]
fn rule_10_after_a_flush_no_loss_is_raised() {
    let rig = Rig::new();
    rig.world.block_on(rig.write(8, 3)).unwrap();
    rig.world.block_on(rig.flush()).unwrap();
    rig.san.power_cut(ms(300), false);
    rig.run(ms(5000));
    assert!(!has_cache_lost(&rig));
    assert_eq!(rig.content(8), 3);
}

struct Gate {
    asked: Cell<u32>,
    verdict: Cell<bool>,
}

impl Admission for Gate {
    fn admit(&self, session: Rc<dyn ReadSectors>) -> LocalFuture<Result<(), IoError>> {
        self.asked.set(self.asked.get() + 1);
        let is_ours = self.verdict.get();
        Box::pin(async move {
            session.read(Sector(0), 8).await?;
            if is_ours {
                return Ok(());
            }
            Err(IoError::not_applied(Kind::Refused(Refusal::NotOwner)))
        })
    }
}

/// P11: the claim is read on every new session before its first write.
#[test]
fn the_gate_is_asked_on_every_new_session_and_its_no_is_final() {
    let rig = Rig::new();
    let gate = Rc::new(Gate {
        asked: Cell::new(0),
        verdict: Cell::new(true),
    });
    let weak: Rc<dyn Admission> = gate.clone();
    rig.device.set_admission(Rc::downgrade(&weak));
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(10));
    rig.san.set_link(0, Link::Up);
    rig.run(ms(3000));
    assert_eq!(gate.asked.get(), 1);
    gate.verdict.set(false);
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(10));
    rig.san.set_link(0, Link::Up);
    rig.run(ms(3000));
    let error = rig.world.block_on(rig.write(8, 9)).unwrap_err();
    assert_eq!(error.kind, Kind::Refused(Refusal::NotOwner));
    assert!(rig.news().contains(&"claim_lost"));
    assert_eq!(rig.content(8), 0);
}
