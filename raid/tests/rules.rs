//! Each rule of the mirror, by name, on two simulated legs in virtual time.

mod common;

use blockdev::{BlockDevice, Done, IoCtx, Kind, LegIndex, LocalFuture, Mirror, Op, Sector};
use common::bench::{owner, told, Bench};
use common::Shared;
use raid::assemble::{assemble, AssembleError};
use raid::format::{create, CreateOptions};
use raid::{Array, ArraySnapshot, Options};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

#[test]
fn what_is_written_is_on_both_legs_and_read_back() {
    let bench = Bench::new(1);
    let array = bench.running();
    bench.write(&array, 80, 7).expect("written");
    assert_eq!((bench.on_leg(0, 80), bench.on_leg(1, 80)), (7, 7));
    assert_eq!(bench.read(&array, 80), Ok(7));
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
}

#[test]
fn raid_bit_before_data() {
    let bench = Bench::new(2);
    let array = bench.running();
    let data = bench.data_offset();
    // The array is dirty already when a write comes to a chunk whose bit is not set.
    bench.write(&array, 80, 1).expect("written");
    assert_eq!(array.snapshot().bitmap_dirty, 2, "its own, the next ahead");
    bench
        .legs
        .iter()
        .for_each(|leg| leg.log.borrow_mut().clear());
    let far = 2 * 131_072 + 80;
    bench.write(&array, far, 2).expect("written");
    for leg in &bench.legs {
        let log = leg.log.borrow();
        let bit = log.iter().position(|l| l == "write 16 8");
        let bit = bit.unwrap_or_else(|| panic!("no page of the bitmap: {log:?}"));
        let sent = log
            .iter()
            .position(|l| *l == format!("sent {}", data + far));
        assert!(Some(bit) < sent, "before its bit was answered: {log:?}");
    }
    assert_eq!(array.snapshot().bitmap_dirty, 4);
    bench.run(30_000);
    assert_eq!(array.snapshot().bitmap_dirty, 0, "lazily cleared");
}

#[test]
fn the_superblock_goes_clean_within_five_seconds_and_at_stop() {
    let bench = Bench::new(3);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    let dirty = |n| !bench.superblock(n).expect("superblock").is_clean();
    assert!(dirty(0) && dirty(1));
    bench.run(5000);
    assert!(!dirty(0) && !dirty(1), "clean within 5 s");
    let last = bench.witness.last.borrow().expect("told");
    assert!(last.flushed);
    bench.write(&array, 8, 2).expect("written");
    assert!(dirty(0) && dirty(1));
    assert!(
        !bench.witness.last.borrow().expect("told").flushed,
        "busy before the answer"
    );
    bench.stop(array);
    assert!(!dirty(0) && !dirty(1), "clean at stop");
    assert!(bench.witness.last.borrow().expect("told").flushed);
    let events = [0, 1].map(|n| bench.superblock(n).expect("superblock").events);
    assert_eq!(events[0], events[1]);
}

#[test]
fn raid_ack_all_legs() {
    let bench = Bench::new(32);
    let array = bench.running();
    bench.write(&array, 80, 1).expect("written");
    for slow in 0..2 {
        bench.legs[slow].latency_us.set(100_000);
        bench.write(&array, 80, 2 + slow as u8).expect("written");
        for leg in 0..2 {
            assert_eq!(
                bench.on_leg(leg, 80),
                2 + slow as u8,
                "acknowledged without leg {leg}"
            );
        }
        bench.legs[slow].latency_us.set(1000);
    }
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
}

#[test]
fn raid_witness_and_record_come_before_the_acknowledgement() {
    let bench = Bench::new(4);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.legs[1].hang();
    let begin = bench.world.now();
    bench
        .write(&array, 8, 2)
        .expect("acknowledged by the survivor");
    let stall = bench.world.now().since(begin);
    assert!(stall <= Duration::from_millis(300), "{stall:?}");
    assert!(stall >= Duration::from_millis(200), "{stall:?}");
    let last = bench.witness.last.borrow().expect("told");
    assert_eq!((last.out, last.flushed), (2, false), "raid.witness");
    let member = bench.member(0);
    assert_eq!(member.record.as_ref().expect("record").out, 2);
    assert_eq!(member.verdict().1, 2);
    bench.run(1000);
    let sb = bench.superblock(0).expect("superblock");
    assert_eq!(
        (sb.events, sb.missing_slots()),
        (3, 2),
        "superblock follows, events by 2"
    );
    assert_eq!(bench.states(&array), ["in-sync", "late"]);
    assert!(told(&array, "leg_late vol1 sto2"));
}

#[test]
fn both_late_is_a_wait() {
    let bench = Bench::new(5);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.legs.iter().for_each(|leg| leg.hang());
    let done = array.submit(bench.write_op(8, 2), IoCtx::foreground());
    let answer = bench.world.spawn_handle(done);
    bench.run(3000);
    assert!(answer.try_take().is_none());
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    bench.legs.iter().for_each(|leg| leg.unhang());
    bench.world.block_on(answer).expect("written after all");
}

#[test]
fn raid_readd_fenced_a_late_leg_is_readded_by_bitmap_after_a_fence() {
    let bench = Bench::new(6);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.run(30_000);
    bench.legs[1].hang();
    bench.write(&array, 8, 2).expect("degraded");
    bench.write(&array, 8, 3).expect("degraded");
    bench.run(1000);
    let fences = bench.legs[1].fences.get();
    bench.legs[1].unhang();
    bench.run(10_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert!(bench.legs[1].fences.get() > fences, "raid.readd-fenced");
    assert_eq!(bench.on_leg(1, 8), 3);
    let last = array.snapshot().last_sync.expect("a re-add");
    assert!(last.bitmap && last.done && last.copied_bytes > 0);
    // Nothing is lost between two looks: the count outlives the copy.
    assert_eq!(array.snapshot().copied_bytes["sto2"], last.copied_bytes);
    assert!(told(&array, "leg_readded vol1 sto2"));
    bench.run(10_000);
    let events = [0, 1].map(|n| bench.superblock(n).expect("superblock").events);
    assert_eq!(events[0], events[1]);
    assert_eq!(bench.witness.last.borrow().expect("told").out, 0);
}

#[test]
fn more_than_twice_a_minute_late_stays_out_for_half_a_minute() {
    let bench = Bench::new(7);
    let array = bench.running();
    for round in 0..3 {
        bench.legs[1].hang();
        bench.write(&array, 8, round).expect("degraded");
        bench.legs[1].unhang();
        bench.run(5000);
        let want = if round < 2 { "in-sync" } else { "late" };
        assert_eq!(bench.states(&array), ["in-sync", want], "round {round}");
    }
    bench.run(30_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
}

#[test]
fn a_decision_is_reversed_when_the_survivor_dies_first() {
    let bench = Bench::new(8);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.witness.delay_ms.set(100);
    bench.legs[1].hang();
    let done = array.submit(bench.write_op(8, 2), IoCtx::foreground());
    let answer = bench.world.spawn_handle(done);
    bench.run(250); // leg 1 is leaving, the witness is not durable yet
    assert!(answer.try_take().is_none());
    bench.legs[1].unhang();
    bench.legs[0].go_down();
    let other = array.submit(bench.write_op(80_000, 5), IoCtx::foreground());
    let other = bench.world.spawn_handle(other);
    bench.run(5000);
    bench
        .world
        .block_on(answer)
        .expect("acknowledged by the other one");
    bench.world.block_on(other).expect("written");
    assert_eq!(bench.on_leg(1, 8), 2);
    let last = bench.witness.last.borrow().expect("told");
    assert_eq!(last.out, 1, "the first decision is overruled");
    assert_eq!(bench.member(1).verdict(), (last.events, 1));
}

#[test]
fn the_last_leg_reports_its_errors() {
    let bench = Bench::new(9);
    let array = bench.running();
    bench.legs[1].go_down();
    bench.write(&array, 8, 1).expect("degraded");
    bench.legs[0].go_down();
    assert!(bench.write(&array, 8, 2).is_err());
    assert_eq!(bench.states(&array)[0], "in-sync", "never the last leg");
    bench.legs[0].down.set(false);
    bench.write(&array, 8, 3).expect("back");
}

#[test]
fn one_full_leg_goes_out_and_two_are_an_answer() {
    let bench = Bench::new(10);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.legs.iter().for_each(|leg| leg.full.set(true));
    assert_eq!(bench.write(&array, 8, 2), Err(Kind::NoSpace));
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    bench.legs[0].full.set(false);
    bench.write(&array, 8, 3).expect("on the other");
    assert_eq!(bench.states(&array), ["in-sync", "late"]);
}

#[test]
fn a_silent_read_is_tried_on_the_other_leg_after_100_ms() {
    let bench = Bench::new(11);
    let array = bench.running();
    bench.write(&array, 8, 4).expect("written");
    for leg in 0..2 {
        bench.legs[leg].hang();
        let begin = bench.world.now();
        assert_eq!(bench.read(&array, 8), Ok(4));
        assert_eq!(bench.read(&array, 8), Ok(4));
        let stall = bench.world.now().since(begin);
        assert!(stall <= Duration::from_millis(2 * 130), "{stall:?}");
        bench.legs[leg].unhang();
        bench.run(3000);
    }
    assert_eq!(
        bench.states(&array),
        ["in-sync", "in-sync"],
        "reads put no leg out"
    );
}

#[test]
fn a_medium_error_is_healed_from_the_other_leg() {
    let bench = Bench::new(12);
    let array = bench.running();
    bench.write(&array, 8, 4).expect("written");
    let at = bench.data_offset() + 8;
    bench
        .legs
        .iter()
        .take(1)
        .for_each(|leg| leg.bad.borrow_mut().push(at + 3));
    for _ in 0..4 {
        assert_eq!(bench.read(&array, 8), Ok(4));
    }
    bench.run(1000);
    assert!(bench.legs[0].bad.borrow().is_empty(), "rewritten");
    assert_eq!(array.snapshot().legs[0].healed_blocks, 1);
    let op = Op::Read {
        at: Sector(8),
        sectors: 8,
    };
    bench
        .legs
        .iter()
        .for_each(|leg| leg.bad.borrow_mut().push(at));
    let done = array.submit(op, IoCtx::foreground());
    let error = bench.world.block_on(done).expect_err("bad on both");
    assert_eq!(
        error.kind,
        Kind::Medium {
            first_bad: Sector(8)
        }
    );
}

#[test]
fn rewrite_does_nothing_after_a_newer_write() {
    let bench = Bench::new(13);
    let array = bench.running();
    bench.write(&array, 8, 4).expect("written");
    let op = Op::Read {
        at: Sector(8),
        sectors: 8,
    };
    let read = bench
        .world
        .block_on(array.submit(op, IoCtx::foreground()))
        .expect("read");
    let blockdev::Done::Read(old, seq) = read else {
        panic!("{read:?}")
    };
    let rewrite =
        |old: blockdev::IoVec| array.rewrite(LegIndex(1), Sector(8), old, seq, IoCtx::background());
    bench.legs[1].poke(bench.data_offset() + 8, &[9; 512]);
    bench.world.block_on(rewrite(old.clone())).expect("healed");
    assert_eq!(bench.on_leg(1, 8), 4);
    bench.write(&array, 8, 5).expect("newer");
    bench.world.block_on(rewrite(old)).expect("nothing to do");
    assert_eq!(bench.on_leg(1, 8), 5);
}

#[test]
fn raid_cache_lost_the_window_is_written_again() {
    let bench = Bench::new(14);
    let array = bench.running();
    for at in 0..16 {
        bench.write(&array, at * 8, 1).expect("written");
    }
    bench.flush(&array);
    for at in 0..16 {
        bench.write(&array, at * 8, 2).expect("written");
    }
    bench.legs[1].power_cycle(true);
    bench.run(1000);
    for at in 0..16 {
        assert_eq!(bench.on_leg(1, at * 8), 2, "granule {at}");
    }
    assert!(told(&array, "cache_lost vol1 sto2"));
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
}

#[test]
fn cache_lost_without_a_window_is_a_re_add() {
    let bench = Bench::new(15);
    let options = Options {
        window_bytes: 0,
        ..Options::new("vol1")
    };
    let array = bench
        .open_with([true, true], options, false)
        .expect("assembled");
    array.recovered();
    for at in 0..16 {
        bench.write(&array, at * 8, 2).expect("written");
    }
    bench.legs[1].power_cycle(true);
    bench.run(5000);
    for at in 0..16 {
        assert_eq!(bench.on_leg(1, at * 8), 2, "granule {at}");
    }
    assert!(told(&array, "leg_readded"));
}

#[test]
fn a_full_window_pushes_back_until_it_is_flushed() {
    let bench = Bench::new(16);
    let options = Options {
        window_bytes: 64 << 10,
        ..Options::new("vol1")
    };
    let array = bench
        .open_with([true, true], options, false)
        .expect("assembled");
    array.recovered();
    for at in 0..200 {
        bench.write(&array, at * 8, 2).expect("written");
        assert!(array.snapshot().unflushed_bytes <= 64 << 10);
    }
}

#[test]
fn raid_flush_before_clear() {
    let bench = Bench::new(17);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench
        .legs
        .iter()
        .for_each(|leg| leg.log.borrow_mut().clear());
    for _ in 0..60 {
        bench.run(500);
        bench
            .write(&array, 140_000, 1)
            .expect("keeps the array active");
    }
    for leg in &bench.legs {
        let log = leg.log.borrow();
        let clear = log
            .iter()
            .rposition(|l| l == "write 16 8")
            .expect("page written");
        assert!(log[..clear].iter().any(|l| l == "flush"), "{log:?}");
    }
}

#[test]
fn bits_stay_while_a_leg_is_out() {
    let bench = Bench::new(18);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.legs[1].go_down();
    bench.write(&array, 8, 2).expect("degraded");
    bench.run(60_000);
    assert!(array.snapshot().bitmap_dirty > 0);
    assert!(bench.member(0).is_dirty(0));
}

#[test]
fn raid_freshness_and_stale_leg_after_a_restart() {
    let bench = Bench::new(19);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.legs[0].go_down();
    bench.write(&array, 8, 2).expect("degraded");
    bench.flush(&array);
    bench.crash(array);
    bench.legs[0].down.set(false);
    let array = bench.running();
    assert_eq!(bench.read(&array, 8), Ok(2), "raid.freshness");
    bench.run(10_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!(bench.on_leg(0, 8), 2, "raid.stale-leg");
}

#[test]
fn raid_lone_start() {
    let bench = Bench::new(20);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.crash(array);
    let waits = bench.open([true, false]);
    assert!(matches!(waits, Err(AssembleError::Waiting(_))), "busy");
    let array = bench.running();
    bench.write(&array, 8, 2).expect("written");
    bench.stop(array);
    let array = bench.open([false, true]).expect("flushed");
    array.recovered();
    bench.write(&array, 8, 3).expect("alone");
    let last = bench.witness.last.borrow().expect("told");
    assert_eq!(last.out, 1, "on record before the first answer");
    bench.crash(array);
    let waits = bench.open([true, false]);
    assert!(
        matches!(waits, Err(AssembleError::Waiting(_))),
        "the witness names it"
    );
    let array = bench
        .open_with([true, false], Options::new("vol1"), true)
        .expect("told to");
    assert_eq!(bench.read(&array, 8), Ok(2));
}

#[test]
fn diverged_legs_are_refused() {
    let bench = Bench::new(21);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.stop(array);
    for (n, present) in [[true, false], [false, true]].into_iter().enumerate() {
        let array = bench
            .open_with(present, Options::new("vol1"), true)
            .expect("told to");
        array.recovered();
        bench.write(&array, 8, 2 + n as u8).expect("alone");
        bench.stop(array);
        *bench.witness.last.borrow_mut() = None;
    }
    match bench.open([true, true]) {
        Err(AssembleError::Diverged(text)) => assert!(text.contains("events"), "{text}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn a_leg_absent_at_start_is_attached_later() {
    let bench = Bench::new(22);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.stop(array);
    let array = bench.open([true, false]).expect("flushed");
    array.recovered();
    bench.write(&array, 8, 2).expect("alone");
    assert_eq!(bench.states(&array), ["in-sync", "missing"]);
    let (again, device) = (array.clone(), bench.legs[1].clone());
    bench
        .world
        .block_on(async move { again.attach(LegIndex(1), "sto2", device).await })
        .expect("a member");
    bench.run(5000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!(bench.on_leg(1, 8), 2);
}

#[test]
fn a_blank_leg_is_filled_only_by_command() {
    let bench = Bench::new(23);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.write(&array, 200_000, 1).expect("written");
    bench.legs[1].go_down();
    bench.write(&array, 8, 2).expect("degraded");
    bench.legs[1].blank();
    bench.legs[1].down.set(false);
    bench.run(20_000);
    assert_eq!(bench.states(&array), ["in-sync", "faulty"]);
    let (again, device) = (array.clone(), bench.legs[1].clone());
    bench
        .world
        .block_on(async move { again.add("sto2", device, false, false).await })
        .expect("added");
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!((bench.on_leg(1, 8), bench.on_leg(1, 200_000)), (2, 1));
    assert_eq!(
        bench.superblock(1).expect("member").array,
        bench.superblock(0).expect("m").array
    );
}

#[test]
fn a_rebuild_goes_on_after_a_restart() {
    let bench = Bench::new(24);
    let array = bench.running();
    for chunk in 0..3 {
        bench
            .write(&array, chunk * 131_072 + 8, 6)
            .expect("written");
    }
    bench.legs[1].go_down();
    bench.write(&array, 8, 7).expect("degraded");
    bench.legs[1].blank();
    bench.legs[1].down.set(false);
    bench.legs.iter().for_each(|leg| leg.latency_us.set(40_000));
    let (again, device) = (array.clone(), bench.legs[1].clone());
    bench
        .world
        .block_on(async move { again.replace("sto2", "sto2", device, true, false).await })
        .expect("begun");
    bench.run(1500);
    assert_eq!(bench.states(&array), ["in-sync", "rebuilding"]);
    assert!(bench.superblock(1).expect("superblock").is_recovering());
    bench.crash(array);
    bench.legs.iter().for_each(|leg| leg.latency_us.set(1000));
    let waits = bench.open([false, true]);
    assert!(
        matches!(waits, Err(AssembleError::Waiting(_))),
        "half a leg serves nobody"
    );
    let array = bench.running();
    assert_eq!(bench.states(&array), ["in-sync", "missing"]);
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!((bench.on_leg(1, 8), bench.on_leg(1, 262_152)), (7, 6));
    assert!(!bench.superblock(1).expect("superblock").is_recovering());
}

#[test]
fn a_rebuild_outlives_slow_answers_of_its_leg() {
    let bench = Bench::new(33);
    let array = bench.running();
    for chunk in 0..3 {
        bench
            .write(&array, chunk * 131_072 + 8, 6)
            .expect("written");
    }
    bench.legs[1].go_down();
    bench.write(&array, 8, 7).expect("degraded");
    bench.run(1000);
    bench.legs[1].down.set(false);
    bench.legs[1].latency_us.set(300_000);
    let began = bench.world.now();
    while bench.states(&array)[1] != "rebuilding" {
        bench.run(100);
        assert!(bench.world.now().since(began) < Duration::from_secs(60));
    }
    for n in 0..10 {
        let began = bench.world.now();
        // Far from where the copy is.
        bench.write(&array, 300_000 + n * 8, 8).expect("written");
        let took = bench.world.now().since(began);
        assert!(
            took < Duration::from_millis(50),
            "the leg being rebuilt held a write back: {took:?}"
        );
        assert_eq!(
            bench.states(&array)[1],
            "rebuilding",
            "thrown out for being slow"
        );
    }
    bench.legs[1].latency_us.set(1000);
    bench.run(10_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!((bench.on_leg(1, 8), bench.on_leg(1, 300_000)), (7, 8));
}

#[test]
fn foreground_writes_stay_quick_during_a_rebuild() {
    let bench = Bench::new(31);
    let array = bench.running();
    let p99 = |from: u64| {
        let mut times: Vec<Duration> = (0..300u64)
            .map(|n| {
                let begin = bench.world.now();
                let at = (from + n).wrapping_mul(0x9E37_79B9) % 40_000 * 8;
                bench.write(&array, at, 1).expect("written");
                bench.run(1);
                bench.world.now().since(begin) - Duration::from_millis(1)
            })
            .collect();
        times.sort_unstable();
        times[296]
    };
    p99(0); // every bit is set from here on
    let idle = p99(300);
    bench.legs[1].go_down();
    bench.write(&array, 8, 2).expect("degraded");
    bench.legs[1].blank();
    bench.legs[1].down.set(false);
    let (again, device) = (array.clone(), bench.legs[1].clone());
    bench
        .world
        .block_on(async move { again.add("sto2", device, true, false).await })
        .expect("added");
    bench.run(100);
    let busy = p99(600);
    assert_eq!(bench.states(&array), ["in-sync", "rebuilding"]);
    assert!(
        busy <= idle * 2,
        "idle {idle:?}, during the rebuild {busy:?}"
    );
}

#[test]
fn a_leg_can_be_added_to_a_volume_of_one() {
    let bench = Bench::new(25);
    bench.legs.iter().for_each(|leg| leg.blank());
    let (rt, pool) = (bench.world.rt(), bench.pool.clone());
    let one: Vec<Rc<dyn BlockDevice>> = vec![bench.legs[0].clone()];
    bench.world.block_on(async move {
        let options = CreateOptions {
            name: "vol1".into(),
            equalise: true,
        };
        create(&rt, &pool, &one, &options, |_, _| {})
            .await
            .expect("created");
    });
    let (rt, pool) = (bench.world.rt(), bench.pool.clone());
    let witness = Rc::new(Shared(bench.witness.clone()));
    let input = bench.input([true, false])[..1].to_vec();
    let array = bench
        .world
        .block_on(
            async move { assemble(rt, pool, witness, Options::new("vol1"), input, false).await },
        )
        .expect("one leg");
    array.recovered();
    bench.write(&array, 8, 3).expect("written");
    bench.run(20_000);
    assert_eq!(array.snapshot().state, "clean");
    let (again, device) = (array.clone(), bench.legs[1].clone());
    bench
        .world
        .block_on(async move { again.add("sto2", device, false, false).await })
        .expect("added");
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!(bench.on_leg(1, 8), 3);
    bench.stop(array);
    let array = bench.running();
    assert_eq!(array.legs(), 2);
}

#[test]
fn operators_fail_and_remove_but_never_the_last() {
    let bench = Bench::new(26);
    let array = bench.running();
    let act = |what: fn(Rc<Array>) -> LocalFuture<Result<(), raid::ControlError>>| {
        bench.world.block_on(what(array.clone()))
    };
    act(|a| Box::pin(async move { a.fail("sto1").await })).expect("failed");
    assert_eq!(bench.states(&array), ["faulty", "in-sync"]);
    assert!(act(|a| Box::pin(async move { a.fail("sto2").await })).is_err());
    bench.write(&array, 8, 2).expect("degraded");
    bench.run(60_000);
    assert_eq!(
        bench.states(&array),
        ["faulty", "in-sync"],
        "stays out until told"
    );
    act(|a| Box::pin(async move { a.remove("sto1").await })).expect("removed");
    assert_eq!(bench.states(&array), ["missing", "in-sync"]);
    assert_eq!(bench.superblock(1).expect("superblock").missing_slots(), 1);
}

/// The store may prove by its checksums what nobody else has.
#[test]
fn a_leg_that_is_out_can_be_read_by_who_asks_for_it() {
    let bench = Bench::new(31);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    let failing = array.clone();
    let failed = async move { failing.fail("sto1").await };
    bench.world.block_on(failed).expect("failed");
    bench.write(&array, 8, 2).expect("degraded");
    let first = |leg| {
        let read = array.read_leg(LegIndex(leg), Sector(8), 8, IoCtx::background());
        match bench.world.block_on(read) {
            Ok(Done::Read(data, _)) => data.to_vec()[0],
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((first(0), first(1)), (1, 2));
    assert!(!array.in_sync(LegIndex(0)));
}

#[test]
fn an_unclean_stop_is_resynced_after_the_store_has_chosen() {
    let bench = Bench::new(27);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.crash(array);
    let at = bench.data_offset() + 8;
    bench.legs[1].poke(at, &[9; 512]);
    let array = bench.open([true, true]).expect("assembled");
    bench.run(30_000);
    assert_eq!(bench.on_leg(1, 8), 9, "not before the store has chosen");
    assert!(array.snapshot().bitmap_dirty > 0, "nor are bits cleared");
    struct Judge(RefCell<Vec<u64>>);
    impl blockdev::Allocation for Judge {
        fn next_used(&self, from: Sector) -> LocalFuture<Option<std::ops::Range<Sector>>> {
            Box::pin(async move { Some(from..Sector(from.0 + 8)) })
        }
        fn judge(&self, at: Sector, data: blockdev::IoVec) -> LocalFuture<Vec<blockdev::Verdict>> {
            self.0.borrow_mut().push(at.0);
            let good = data.to_vec()[0] == 9;
            let verdict = if good {
                blockdev::Verdict::Good
            } else {
                blockdev::Verdict::Bad
            };
            Box::pin(async move { vec![verdict; data.len() / 4096] })
        }
    }
    let judge: Rc<dyn blockdev::Allocation> = Rc::new(Judge(RefCell::default()));
    array.set_allocation(Rc::downgrade(&judge));
    array.recovered();
    bench.run(30_000);
    assert_eq!(bench.on_leg(0, 8), 9, "the good side wins, not slot 0");
    assert_eq!(array.snapshot().state, "clean");
    assert_eq!(array.snapshot().bitmap_dirty, 0);
}

#[test]
fn our_own_stall_blames_no_leg() {
    let bench = Bench::new(28);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.legs[1].latency_us.set(150_000);
    let done = array.submit(bench.write_op(8, 2), IoCtx::foreground());
    let answer = bench.world.spawn_handle(done);
    bench.run(10);
    bench.world.stall(Duration::from_millis(400));
    bench.world.block_on(answer).expect("written");
    bench.run(500);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
}

#[test]
fn a_foreign_claim_is_honoured_and_ends_a_running_array() {
    use raid::claim::{write_claim, Claim};
    let bench = Bench::new(29);
    let options = |n| Options {
        owner: Some(owner(n, &[])),
        ..Options::new("vol1")
    };
    let array = bench
        .open_with([true, true], options(1), false)
        .expect("unclaimed");
    array.recovered();
    bench.claim(&array);
    bench.write(&array, 8, 1).expect("written");
    let refused = bench.open_with([true, true], options(2), false);
    assert!(matches!(refused, Err(AssembleError::Claimed { .. })));
    bench.run(7000);
    let (device, places) = (bench.legs[1].clone(), bench.member(1).places);
    let newest = bench.member(1).claim.expect("claimed");
    assert!(newest.counter >= 4, "refreshed every 2 s");
    let pool = bench.pool.clone();
    bench.world.block_on(async move {
        let claim = Claim {
            owner: owner(2, &[]),
            counter: newest.counter + 10,
            ..newest
        };
        write_claim(&*device, &pool, &places, &claim)
            .await
            .expect("taken");
    });
    bench.run(3000);
    assert!(told(&array, "claim_lost vol1"));
    assert_eq!(array.snapshot().state, "failed");
    assert!(bench.write(&array, 8, 2).is_err());
}

/// A start may end before its fence: until then the sessions of earlier runs stay in the claim (rule 7).
#[test]
fn a_claim_names_earlier_sessions_until_they_are_fenced() {
    let isid = |n: u8| blockdev::path::Isid([0x80, 0, 0, 0, 0, n]);
    let bench = Bench::new(32);
    let open = |isids: &[_]| {
        let options = Options {
            owner: Some(owner(1, isids)),
            ..Options::new("vol1")
        };
        let array = bench.open_with([true, true], options, false);
        let array = array.expect("ours");
        bench.claim(&array);
        array
    };
    let claimed = || bench.member(1).claim.expect("claimed").owner.isids;
    open(&[isid(1), isid(2)]);
    // Path 2 is gone from the configuration, and this start ends before its fence.
    drop(open(&[isid(1)]));
    assert_eq!(claimed(), [isid(1), isid(2)]);
    let array = open(&[isid(1), isid(3)]);
    assert_eq!(claimed(), [isid(1), isid(2), isid(3)]);
    array.recovered();
    bench.run(5000);
    assert_eq!(claimed(), [isid(1), isid(3)], "fenced");
}

#[test]
fn a_snapshot_shows_what_arrays_shows() {
    let bench = Bench::new(30);
    let array = bench.running();
    let ArraySnapshot {
        volume,
        size_bytes,
        data_offset_bytes,
        bitmap_chunk_bytes,
        bitmap_chunks,
        ..
    } = array.snapshot();
    assert_eq!(volume, "vol1");
    assert_eq!(data_offset_bytes, bench.data_offset() * 512);
    assert_eq!(size_bytes, bench.superblock(0).expect("sb").size * 512);
    assert_eq!(bitmap_chunk_bytes, 64 << 20);
    assert_eq!(bitmap_chunks, size_bytes.div_ceil(64 << 20));
}
