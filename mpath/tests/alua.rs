//! ALUA: groups by priority, standby paths, transitions, in virtual time.

mod common;

use blockdev::sim::VirtualRt;
use blockdev::{BlockDevice, Instant, Pool};
use common::{config, ms, options, Rig};
use mpath::sim::{Flavour, Link, San};
use mpath::{Config, DeviceState, GroupState, Grouping, MultipathDevice, Role};
use std::rc::Rc;
use std::time::Duration;

const OPTIMIZED: u8 = 0;
const NON_OPTIMIZED: u8 = 1;
const STANDBY: u8 = 2;
const TRANSITIONING: u8 = 0xF;

fn rig(codes: &[u8]) -> Rig {
    let world = VirtualRt::new(7);
    let pool = Pool::new(16 << 20);
    let options = mpath::sim::SanOptions {
        portal_groups: vec![1; codes.len()],
        ..options(Flavour::Standard)
    };
    let san = San::new(world.rt(), pool.clone(), options);
    san.set_access(codes);
    let config = Config {
        grouping: Grouping::ByPrio,
        ..config()
    };
    let ports = (0..codes.len()).map(|n| san.port(n)).collect();
    let device = Rc::new(MultipathDevice::new(world.rt(), config, ports));
    let opened = device.clone();
    world
        .block_on(async move { opened.opened(Instant::FAR).await })
        .expect("a path is up");
    world.run_for(ms(50));
    Rig {
        world,
        pool,
        san,
        device,
    }
}

fn priorities(rig: &Rig) -> Vec<(i32, usize)> {
    let groups = rig.device.snapshot().groups;
    groups.iter().map(|g| (g.priority, g.paths.len())).collect()
}

fn active_portal(rig: &Rig) -> String {
    let groups = rig.device.snapshot().groups;
    let active = groups.iter().find(|g| g.state == GroupState::Active);
    active.expect("in use").paths[0].name.portal.clone()
}

#[test]
fn groups_are_made_and_ordered_by_priority() {
    let rig = rig(&[NON_OPTIMIZED, OPTIMIZED, NON_OPTIMIZED, OPTIMIZED]);
    assert_eq!(priorities(&rig), [(50, 2), (10, 2)]);
    rig.world.block_on(rig.write(8, 1)).unwrap();
    assert_eq!(active_portal(&rig), "10.4.1.1:3260");
}

#[test]
fn the_preferred_bit_adds_80_except_to_an_optimized_group() {
    let rig = rig(&[0x80 | OPTIMIZED, 0x80 | NON_OPTIMIZED]);
    assert_eq!(priorities(&rig), [(90, 1), (50, 1)]);
}

/// The unit moves: the refusal alone is enough to go elsewhere, and no path fails for it.
#[test]
fn a_path_gone_standby_is_left_at_once_and_fails_nothing() {
    let rig = rig(&[OPTIMIZED, NON_OPTIMIZED]);
    rig.world.block_on(rig.write(8, 1)).unwrap();
    rig.san.set_access(&[STANDBY, OPTIMIZED]);
    let (result, time) = rig.time(rig.write(8, 2));
    assert!(result.is_ok() && time <= ms(20), "{result:?} {time:?}");
    assert_eq!(active_portal(&rig), "10.4.1.1:3260");
    rig.run(ms(100));
    let groups = rig.device.snapshot().groups;
    for path in groups.iter().flat_map(|g| &g.paths) {
        assert_eq!(path.counters.failures, 0, "{:?}", path.last_error);
    }
    // And back, when the checker sees it.
    rig.san.set_access(&[OPTIMIZED, NON_OPTIMIZED]);
    rig.run(Duration::from_secs(25));
    rig.world.block_on(rig.write(8, 3)).unwrap();
    assert_eq!(active_portal(&rig), "10.3.1.1:3260");
}

#[test]
fn an_attention_has_the_list_read_again() {
    let rig = rig(&[OPTIMIZED, NON_OPTIMIZED]);
    rig.san.set_access(&[NON_OPTIMIZED, OPTIMIZED]);
    rig.san.inject_sense(6, 0x2A, 6);
    rig.world.block_on(rig.write(8, 1)).unwrap();
    rig.run(ms(10));
    rig.world.block_on(rig.write(8, 2)).unwrap();
    assert_eq!(active_portal(&rig), "10.4.1.1:3260");
}

/// Everything is in transition: requests wait, the list is read every 2 s.
#[test]
fn a_transition_is_waited_for() {
    let rig = rig(&[OPTIMIZED, OPTIMIZED]);
    rig.san.set_access(&[TRANSITIONING, TRANSITIONING]);
    let write = rig.world.spawn_handle(rig.write(8, 1));
    rig.run(Duration::from_secs(5));
    assert!(write.try_take().is_none());
    rig.san.set_access(&[STANDBY, OPTIMIZED]);
    rig.run(ms(2500));
    assert!(write.try_take().is_some_and(|w| w.is_ok()));
    let groups = rig.device.snapshot().groups;
    let failures = groups.iter().flat_map(|g| &g.paths);
    assert_eq!(failures.map(|p| p.counters.failures).sum::<u64>(), 0);
}

#[test]
fn a_standby_group_is_no_way_out() {
    let rig = rig(&[OPTIMIZED, STANDBY]);
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(10));
    let write = rig.world.spawn_handle(rig.write(8, 1));
    rig.run(Duration::from_secs(3));
    assert!(write.try_take().is_none(), "it waits");
    // The unit fails over.
    rig.san.set_access(&[STANDBY, OPTIMIZED]);
    rig.run(Duration::from_secs(25));
    assert!(write.try_take().is_some_and(|w| w.is_ok()));
    let _ = rig.device.geometry();
}

/// No group serves: requests wait as long as with no path at all, and a mirror's leg not at all.
#[test]
fn standby_groups_alone_are_no_way() {
    let rig = rig(&[OPTIMIZED, STANDBY]);
    rig.san.set_link(0, Link::Loud);
    rig.run(ms(10));
    assert_eq!(rig.device.snapshot().state, DeviceState::Queueing);
    assert!(rig.news().contains(&"device_queueing"));
    let write = rig.world.spawn_handle(rig.write(8, 1));
    rig.run(Duration::from_secs(60));
    assert!(write.try_take().is_none());
    rig.run(Duration::from_secs(2));
    assert!(write.try_take().is_some_and(|w| w.is_err()));
    rig.device.set_role(Role::MirrorLeg);
    let (result, time) = rig.time(rig.write(8, 2));
    assert!(result.is_err() && time <= ms(20), "{result:?} {time:?}");
    // The unit moves; the checker sees it.
    rig.san.set_access(&[STANDBY, OPTIMIZED]);
    rig.run(Duration::from_secs(25));
    assert_eq!(rig.device.snapshot().state, DeviceState::Degraded);
    assert!(rig.world.block_on(rig.write(8, 3)).is_ok());
}

/// A transition that does not end counts as standby after its time, and stays so.
#[test]
fn a_transition_without_end_is_standby_after_its_time() {
    let rig = rig(&[OPTIMIZED, OPTIMIZED]);
    rig.san.set_access(&[TRANSITIONING, TRANSITIONING]);
    let write = rig.world.spawn_handle(rig.write(8, 1));
    rig.run(Duration::from_secs(59));
    assert_eq!(rig.device.snapshot().state, DeviceState::Ready);
    rig.run(Duration::from_secs(5));
    for _ in 0..6 {
        assert_eq!(rig.device.snapshot().state, DeviceState::Queueing);
        rig.run(Duration::from_secs(10));
    }
    assert!(write.try_take().is_some_and(|w| w.is_err()));
}

/// A fence takes a path whose group serves: all commands go there while it runs.
#[test]
fn a_fence_does_not_send_commands_to_a_standby_group() {
    let rig = rig(&[STANDBY, OPTIMIZED, OPTIMIZED]);
    rig.san.set_link(1, Link::Silent);
    rig.world.block_on(rig.write(8, 1)).unwrap();
    rig.san.set_hung(true);
    let over = rig.world.spawn_handle(rig.write(8, 2));
    rig.run(ms(400));
    let other = rig.world.spawn_handle(rig.write(80, 3));
    rig.run(ms(400));
    rig.san.set_hung(false);
    rig.run(Duration::from_secs(2));
    assert!(over.try_take().is_some_and(|w| w.is_ok()));
    assert!(other.try_take().is_some_and(|w| w.is_ok()));
    for trace in rig.device.traces() {
        let bounced = trace
            .attempts
            .iter()
            .filter(|a| a.portal == "10.3.1.1:3260");
        assert_eq!(bounced.count(), 0, "{trace:?}");
    }
}
