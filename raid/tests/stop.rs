//! The end of an array is bounded, whatever stands in its way, and leaves both legs equal.

mod common;

use blockdev::{BlockDevice, IoCtx, Op};
use common::bench::Bench;
use raid::Array;
use std::rc::Rc;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(4);

/// Stops and tells how long that took.
fn stop(bench: &Bench, array: Rc<Array>) -> Duration {
    let begin = bench.world.now();
    bench.stop(array);
    bench.world.now().since(begin)
}

fn assert_equal_and_clean(bench: &Bench) {
    let [a, b] = [0, 1].map(|leg| bench.superblock(leg).expect("a member"));
    assert_eq!(a.events, b.events);
    assert_eq!(a.roles, b.roles);
    assert!(a.is_clean() && b.is_clean());
    let told = bench.witness.last.borrow().expect("told");
    assert_eq!((told.events, told.out, told.flushed), (a.events, 0, true));
}

/// What a survivor and the witness must say after the other leg was lost.
fn assert_marked(bench: &Bench, survivor: usize) {
    let out = 1 << (1 - survivor);
    let sb = bench.superblock(survivor).expect("a member");
    assert!(sb.is_clean());
    assert_eq!(sb.missing_slots(), out);
    let told = bench.witness.last.borrow().expect("told");
    assert_eq!(
        (told.events, told.out, told.flushed),
        (sb.events, out, true)
    );
}

#[test]
fn both_legs_settle_within_five_seconds_of_the_last_write_and_at_stop() {
    for seed in 0..20 {
        let bench = Bench::new(seed);
        let array = bench.running();
        bench.write(&array, 8, 1).expect("written");
        if seed % 2 == 0 {
            // Out and back again: events have moved.
            bench.legs[1].hang();
            bench.write(&array, 8, 2).expect("degraded");
            bench.legs[1].unhang();
            bench.run(3000);
            assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
        }
        bench.write(&array, 16, 3).expect("written");
        bench.run(5000);
        assert_equal_and_clean(&bench);
        bench.write(&array, 24, 4).expect("written");
        let took = stop(&bench, array);
        assert!(took <= Duration::from_secs(1), "{took:?}");
        assert_equal_and_clean(&bench);
    }
}

#[test]
fn a_silent_leg_is_put_out_and_the_survivor_left_clean() {
    for (seed, written) in [(1, false), (2, true)] {
        let bench = Bench::new(seed);
        let array = bench.running();
        bench.write(&array, 8, 1).expect("written");
        bench.legs[1].hang();
        if written {
            let op = bench.write_op(8, 2);
            drop(array.submit(op, IoCtx::foreground()));
        }
        let took = stop(&bench, array);
        assert!(took <= BOUND, "{took:?}");
        assert_marked(&bench, 0);
    }
}

#[test]
fn a_flush_begun_before_the_stop_does_not_stretch_it() {
    let bench = Bench::new(3);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.legs[0].stick(|op| matches!(op, Op::Flush));
    bench.run(3600); // the idle array is being flushed
    let took = stop(&bench, array);
    assert!(took <= BOUND, "{took:?}");
    assert_marked(&bench, 1);
}

#[test]
fn a_held_superblock_ends_in_time() {
    let bench = Bench::new(4);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.legs[1].stick(|op| matches!(op, Op::Write { at, .. } if at.0 == 8));
    let took = stop(&bench, array);
    assert!(took <= BOUND, "{took:?}");
    assert_marked(&bench, 0);
}

#[test]
fn a_fence_that_never_ends_does_not_hold_the_stop() {
    let bench = Bench::new(5);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.legs[1].stick(|op| matches!(op, Op::Fence));
    bench.legs[1].go_down();
    bench.write(&array, 8, 2).expect("degraded");
    bench.legs[1].down.set(false);
    bench.run(2000);
    let took = stop(&bench, array);
    assert!(took <= BOUND, "{took:?}");
    assert_marked(&bench, 0);
}

#[test]
fn two_silent_legs_or_a_silent_witness_end_in_time_and_stay_dirty() {
    for silent in 0..2 {
        let bench = Bench::new(6 + silent);
        let array = bench.running();
        bench.write(&array, 8, 1).expect("written");
        match silent {
            0 => bench.legs.iter().for_each(|leg| leg.hang()),
            _ => bench.witness.delay_ms.set(60_000),
        }
        let took = stop(&bench, array);
        assert!(took <= BOUND, "{took:?}");
        let told = *bench.witness.last.borrow();
        let flushed = told.is_some_and(|told| told.flushed);
        assert!(!flushed, "nothing is called flushed that may not be");
    }
}

#[test]
fn both_flushes_silent_is_a_wait() {
    let bench = Bench::new(8);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench
        .legs
        .iter()
        .for_each(|leg| leg.stick(|op| matches!(op, Op::Flush)));
    let answer = bench
        .world
        .spawn_handle(array.submit(Op::Flush, IoCtx::foreground()));
    bench.run(20_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    bench.legs.iter().for_each(|leg| leg.stick(|_| false));
    bench.world.block_on(answer).expect("flushed after all");
}

#[test]
fn a_stop_waits_for_a_re_add_that_is_nearly_done() {
    let bench = Bench::new(9);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.run(30_000); // no bits
    bench.legs[1].go_down();
    bench.write(&array, 8, 2).expect("degraded");
    bench.legs.iter().for_each(|leg| leg.latency_us.set(4000));
    bench.legs[1].down.set(false);
    while array
        .snapshot()
        .sync
        .is_none_or(|sync| sync.done_bytes == 0)
    {
        bench.run(5);
    }
    let took = stop(&bench, array);
    assert!(took <= BOUND, "{took:?}");
    assert_equal_and_clean(&bench);
    assert_eq!(bench.on_leg(1, 8), 2);
}
