//! The load generator under a virtual clock, against targets that make it hard to end.

mod link;

use iscsi_initiator::bench::{run_iscsi, BenchConfig, BenchError, Mode, Report};
use iscsi_initiator::isid::Role;
use iscsi_initiator::path::PortConfig;
use link::{disk_that, message, world, Turn, World};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use zerocopy::byteorder::big_endian::U16;

fn config(iodepth: usize) -> BenchConfig {
    BenchConfig {
        mode: Mode::Read,
        block_bytes: 4096,
        iodepth,
        runtime: Duration::from_secs(1),
        size_bytes: Some(1 << 20),
        offset_bytes: 0,
        span_bytes: None,
        seed: 1,
        trace: true,
    }
}

fn scripted(script: impl Fn(&mut Turn) + 'static) -> World {
    let script = Rc::new(script);
    world(move |_, _, wire| {
        let script = script.clone();
        async move { disk_that(wire, |turn| script(turn)).await }
    })
}

fn bench(world: &World, config: BenchConfig) -> Result<Report, BenchError> {
    let unit = PortConfig {
        portal: "10.3.1.1".parse().expect("portal"),
        source: None,
        target: "iqn.2024-12.tp2.b3:t".to_owned(),
        lun: 1,
        role: Role::Tool,
        shard: 0,
    };
    let initiator = world.initiator.clone();
    let deadline = world.rt.now() + Duration::from_secs(5);
    world
        .world
        .block_on(async move { run_iscsi(&initiator, &unit, 1, config, deadline).await })
}

/// A target that answers pings and everything else, but not one command.
#[test]
fn a_command_that_is_never_answered_ends_the_bench() {
    let has_dropped = Cell::new(false);
    let world = scripted(move |turn| {
        turn.is_dropped = turn.cdb[0] == 0x88 && !has_dropped.replace(true);
    });
    let begun = world.rt.now();
    let report = bench(&world, config(2)).expect("a report");
    assert!(report.errors == 1 && report.ios > 0, "{report:?}");
    assert!(world.rt.now() - begun < Duration::from_secs(40));
}

/// After a logout request every command comes back at once: that is an end, not one error after the
/// other until time is up.
#[test]
fn a_logout_request_ends_the_bench() {
    let world = scripted(|turn| {
        if turn.cdb[0] == 0x88 && turn.nth == 20 {
            turn.message = Some(iscsi_initiator::pdu::header::AsyncMessage {
                parameter_3: U16::new(10),
                ..message(1)
            });
        }
    });
    let config = BenchConfig {
        runtime: Duration::from_secs(5),
        size_bytes: Some(1 << 40),
        ..config(4)
    };
    let report = bench(&world, config).expect("a report");
    assert!((1..=4).contains(&report.errors), "{}", report.errors);
    assert_eq!(report.trace.len() as u64, report.ios + report.errors);
    assert_eq!(world.wires.borrow()[0].logouts.get(), 1);
}

/// A unit that refuses every read at once does not fill the memory with what was refused.
#[test]
fn errors_at_once_are_paced() {
    let world = scripted(|turn| {
        if turn.cdb[0] == 0x88 {
            turn.check(0x70, 3, 0x11, 0);
        }
    });
    let config = BenchConfig {
        size_bytes: None,
        ..config(2)
    };
    let report = bench(&world, config).expect("a report");
    assert!((1000..=2002).contains(&report.errors), "{}", report.errors);
}

/// Sizes and offsets are told apart by the unit's logical block, not by 512.
#[test]
fn a_block_size_that_the_unit_has_not_is_a_usage_error() {
    let world = scripted(|turn| {
        if turn.cdb[0] == 0x9e {
            turn.data[8..12].copy_from_slice(&4096u32.to_be_bytes());
        }
    });
    let small = BenchConfig {
        block_bytes: 512,
        ..config(1)
    };
    let odd = BenchConfig {
        offset_bytes: 512,
        ..config(1)
    };
    for config in [small, odd] {
        let error = bench(&world, config).expect_err("4096-byte blocks");
        assert!(matches!(error, BenchError::Range(_)), "{error}");
    }
    assert!(bench(&world, config(1)).is_ok());
}

/// The depth asked for is what is in flight, and what no session takes is refused.
#[test]
fn depth_is_what_was_asked_for() {
    let (deepest, open) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (most, now) = (deepest.clone(), open.clone());
    let world = scripted(move |turn| {
        if turn.cdb[0] == 0x88 {
            now.set(now.get() + 1);
            most.set(most.get().max(now.get()));
            turn.is_dropped = true;
        }
    });
    let mut asked = config(300);
    asked.size_bytes = None;
    let report = bench(&world, asked).expect("a report");
    assert_eq!((deepest.get(), report.errors), (300, 300));
    assert!(matches!(
        bench(&world, config(5000)),
        Err(BenchError::Range(_))
    ));
}
