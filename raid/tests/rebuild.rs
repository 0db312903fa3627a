//! What a leg must not lack after it was away, lost its cache, or was rebuilt.

mod common;

use blockdev::{
    Allocation, BlockDevice, IoCtx, IoVec, Kind, LegIndex, LocalFuture, Mirror, Op, Sector, Verdict,
};
use common::bench::{events, owner, told, Bench};
use common::Sectors;
use raid::{Array, ControlError, Options};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

const CHUNK_SECTORS: u64 = 131_072;

/// Leg 1 is gone for good and a blank one is filled in its place.
fn refill(bench: &Bench, array: &Rc<Array>) {
    bench.legs[1].go_down();
    bench.write(array, 8, 1).expect("degraded");
    bench.legs[1].blank();
    bench.legs[1].down.set(false);
    let (again, device) = (array.clone(), bench.legs[1].clone());
    bench
        .world
        .block_on(async move { again.replace("sto2", "sto2", device, true, false).await })
        .expect("begun");
}

fn until_copied(bench: &Bench, array: &Rc<Array>, bytes: u64) {
    let copied = || array.snapshot().sync.map_or(0, |sync| sync.done_bytes);
    while copied() < bytes {
        bench.run(20);
    }
}

fn assert_equal(bench: &Bench, from: u64, sectors: u64) {
    let data = bench.data_offset();
    for at in (from..from + sectors).step_by(8) {
        let [a, b] = [0, 1].map(|leg: usize| bench.legs[leg].bytes(data + at, 8));
        assert!(a == b, "the legs differ at sector {at}");
    }
}

#[test]
fn a_superblock_never_claims_more_than_was_flushed() {
    let bench = Bench::new(1);
    let array = bench.running();
    for at in 0..100 {
        bench.write(&array, at * 800, 5).expect("written");
    }
    bench.flush(&array);
    refill(&bench, &array);
    until_copied(&bench, &array, 2 * CHUNK_SECTORS * 512);
    bench.run(4000); // the idle array writes its superblocks
    bench.write(&array, 16, 2).expect("and again");
    bench.legs[1].power_cycle(false);
    bench.crash(array);
    let array = bench.running();
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_equal(&bench, 0, CHUNK_SECTORS);
}

#[test]
fn a_rebuild_begins_again_where_a_flush_ended_when_the_leg_lost_its_cache() {
    let bench = Bench::new(2);
    let array = bench.running();
    for at in 0..100 {
        bench.write(&array, at * 800, 5).expect("written");
    }
    refill(&bench, &array);
    until_copied(&bench, &array, 2 * CHUNK_SECTORS * 512);
    bench.legs[1].power_cycle(true);
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_equal(&bench, 0, CHUNK_SECTORS);
}

#[test]
fn a_rebuilt_leg_that_is_full_does_not_miss_a_write() {
    let bench = Bench::new(3);
    let array = bench.running();
    refill(&bench, &array);
    until_copied(&bench, &array, 2 * CHUNK_SECTORS * 512);
    bench.legs[1].full_at.set(bench.data_offset() + 80);
    bench.write(&array, 80, 7).expect("on the survivor");
    bench.legs[1].full_at.set(u64::MAX);
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!(bench.on_leg(1, 80), 7);
}

#[test]
fn overlapping_writes_do_not_overtake_each_other_on_a_leg_being_rebuilt() {
    let bench = Bench::new(11);
    let array = bench.running();
    refill(&bench, &array);
    until_copied(&bench, &array, 2 * CHUNK_SECTORS * 512);
    bench.legs[1].latency_us.set(100_000);
    for round in 0..20 {
        bench.write(&array, 80 + round * 8, 6).expect("written");
        bench
            .write(&array, 80 + round * 8, 7)
            .expect("written over");
    }
    bench.legs[1].latency_us.set(1000);
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_equal(&bench, 80, 160);
}

#[test]
fn a_leg_called_back_is_whole_although_it_lost_its_cache_while_leaving() {
    let bench = Bench::new(4);
    let array = bench.running_with_roles();
    for at in 0..16 {
        bench.write(&array, at * 8, 3).expect("written");
    }
    bench.witness.delay_ms.set(200);
    bench.legs[1].hang();
    let done = array.submit(bench.write_op(800, 2), IoCtx::foreground());
    let answer = bench.world.spawn_handle(done);
    bench.run(250); // leg 1 is leaving, the witness is not durable yet
    bench.legs[1].unhang();
    bench.legs[1].power_cycle(true);
    bench.legs[0].go_down();
    let other = array.submit(bench.write_op(80_000, 5), IoCtx::foreground());
    let other = bench.world.spawn_handle(other);
    bench.run(3000);
    if bench.states(&array)[1] == "in-sync" {
        bench
            .world
            .block_on(answer)
            .expect("by the one called back");
        bench.world.block_on(other).expect("written");
        for at in 0..16 {
            assert_eq!(bench.on_leg(1, at * 8), 3, "granule {at}");
        }
    }
}

#[test]
fn the_last_leg_acknowledges_nothing_before_its_lost_cache_is_there_again() {
    let bench = Bench::new(5);
    let array = bench.running();
    bench.legs[1].go_down();
    for at in 0..16 {
        bench.write(&array, at * 8, 3).expect("degraded");
    }
    bench.legs[0].power_cycle(true);
    bench.legs[0].go_down();
    bench.run(1000);
    let done = array.submit(bench.write_op(800, 4), IoCtx::foreground());
    let answer = bench.world.spawn_handle(done);
    bench.run(1000);
    assert!(answer.try_take().is_none(), "not over a lost cache");
    bench.legs[0].down.set(false);
    bench.world.block_on(answer).expect("once it is whole");
    for at in 0..16 {
        assert_eq!(bench.on_leg(0, at * 8), 3, "granule {at}");
    }
}

#[test]
fn a_leg_that_went_on_alone_is_not_taken_for_a_stale_one() {
    let bench = Bench::new(6);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.stop(array);
    let alone = |present| {
        let array = bench.open_with(present, Options::new("vol1"), true);
        let array = array.expect("told to");
        array.recovered();
        array
    };
    let array = alone([false, true]);
    bench.write(&array, 2 * CHUNK_SECTORS, 3).expect("alone");
    bench.stop(array);
    *bench.witness.last.borrow_mut() = None;
    let array = alone([true, false]);
    let attached = attach(&bench, &array);
    assert!(
        matches!(attached, Err(ControlError::Diverged { .. })),
        "newer than what serves: {attached:?}"
    );
    bench.write(&array, 8, 2).expect("alone");
    attach(&bench, &array).expect("the witness has decided");
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_equal(&bench, 2 * CHUNK_SECTORS, 8);
}

fn attach(bench: &Bench, array: &Rc<Array>) -> Result<(), ControlError> {
    let (array, device) = (array.clone(), bench.legs[1].clone());
    bench
        .world
        .block_on(async move { array.attach(LegIndex(1), "sto2", device).await })
}

#[test]
fn a_degraded_array_goes_clean_after_an_unclean_stop() {
    let bench = Bench::new(7);
    let array = bench.running();
    bench.legs[1].go_down();
    bench.write(&array, 8, 1).expect("degraded");
    bench.crash(array);
    let array = bench.running();
    bench.write(&array, 8, 2).expect("degraded");
    bench.run(5000);
    assert!(bench.superblock(0).expect("member").is_clean());
    let told = bench.witness.last.borrow().expect("told");
    assert_eq!((told.out, told.flushed), (2, true));
    bench.legs[1].down.set(false);
    attach(&bench, &array).expect("a member");
    bench.run(20_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!(bench.on_leg(1, 8), 2);
}

#[test]
fn a_resync_ends_what_may_still_land_before_it_compares() {
    let bench = Bench::new(8);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.crash(array);
    let array = bench.open([true, true]).expect("assembled");
    let at = bench.data_offset();
    bench.legs[0]
        .taints
        .borrow_mut()
        .push(Sector(at)..Sector(at + 8));
    array.recovered();
    bench.run(30_000);
    assert!(bench.legs[0].taints.borrow().is_empty(), "fenced");
}

/// Everything is used; a granule is good when its first byte is 9.
struct Nines;

impl Allocation for Nines {
    fn next_used(&self, from: Sector) -> LocalFuture<Option<Range<Sector>>> {
        Box::pin(async move { Some(from..Sector(from.0 + 2048)) })
    }

    fn judge(&self, _at: Sector, data: IoVec) -> LocalFuture<Vec<Verdict>> {
        let bytes = data.to_vec();
        let judge = |granule: &[u8]| match granule[0] {
            0 => Verdict::Free,
            9 => Verdict::Good,
            _ => Verdict::Bad,
        };
        let verdicts = bytes.chunks(4096).map(judge).collect();
        Box::pin(async move { verdicts })
    }
}

#[test]
fn a_bad_source_is_healed_from_a_good_target_where_no_bit_is_set() {
    let bench = Bench::new(9);
    let array = bench.running();
    let map: Rc<dyn Allocation> = Rc::new(Nines);
    array.set_allocation(Rc::downgrade(&map));
    let at = 2 * CHUNK_SECTORS + 16;
    bench.write(&array, at, 9).expect("written");
    bench.run(30_000); // no bits
    bench.legs[0].poke(bench.data_offset() + at, &[6; 512]);
    let act = |what: fn(Rc<Array>) -> LocalFuture<Result<(), ControlError>>| {
        bench.world.block_on(what(array.clone())).expect("done");
    };
    act(|a| Box::pin(async move { a.fail("sto2").await }));
    let (again, device) = (array.clone(), bench.legs[1].clone());
    bench
        .world
        .block_on(async move { again.add("sto2", device, true, false).await })
        .expect("all of it is copied");
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!((bench.on_leg(0, at), bench.on_leg(1, at)), (9, 9));
}

#[test]
fn an_interrupted_fill_is_a_leg_to_be_filled_after_a_restart() {
    let bench = Bench::new(10);
    let array = bench.running();
    bench.write(&array, 8, 4).expect("written");
    bench.legs[1].stick(|op| matches!(op, Op::Fence));
    bench.legs[1].go_down();
    bench.write(&array, 8, 5).expect("degraded");
    bench.legs[1].blank();
    bench.legs[1].down.set(false);
    bench.legs[1].stick(|_| false);
    let (again, device) = (array.clone(), bench.legs[1].clone());
    bench
        .world
        .block_on(async move { again.replace("sto2", "sto2", device, false, false).await })
        .expect("begun");
    bench.crash(array); // before the first page of the rebuild
    let array = bench.running();
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!(bench.on_leg(1, 8), 5);
    assert!(bench.world.now().since(blockdev::Instant(0)) < Duration::from_secs(120));
}

/// The leg being rebuilt has what the last one in sync failed to write, where it was copied before.
#[test]
fn a_write_that_failed_during_a_rebuild_leaves_the_legs_equal() {
    let bench = Bench::new(7);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.legs[1].go_down();
    bench.write(&array, 8, 2).expect("written by one");
    bench.legs[0].latency_us.set(20_000);
    bench.legs[1].come_back();
    while bench.on_leg(1, 8) != 2 {
        bench.run(1);
    }
    assert_eq!(bench.states(&array), ["in-sync", "rebuilding"]);
    bench.legs[0].stick(|op| matches!(op, Op::Write { .. }));
    let write = array.submit(bench.write_op(8, 3), IoCtx::foreground());
    let write = bench.world.spawn_handle(write);
    while bench.on_leg(1, 8) != 3 {
        bench.run(1);
    }
    bench.legs[0].power_cycle(true);
    bench.legs[0].stick(|_| false);
    bench.run(1);
    assert!(write.try_take().expect("answered").is_err());
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!(bench.on_leg(0, 8), bench.on_leg(1, 8));
}

/// A write that fails in a part that a resync has passed is looked at by another one.
#[test]
fn a_doubt_raised_during_a_resync_outlives_it() {
    let bench = Bench::new(8);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.crash(array);
    let array = bench.running();
    bench.legs.iter().for_each(|leg| leg.latency_us.set(20_000));
    while !told(&array, "sync_started") {
        bench.run(1);
    }
    bench.run(50);
    let place = bench.data_offset() + 8;
    bench.legs.iter().for_each(|leg| leg.full_at.set(place));
    assert_eq!(bench.write(&array, 8, 2), Err(Kind::NoSpace));
    bench.legs.iter().for_each(|leg| leg.full_at.set(u64::MAX));
    assert!(!told(&array, "sync_done"), "it should still be under way");
    bench.run(20_000);
    let again = events(&array);
    let started = again.iter().filter(|e| e.starts_with("sync_started"));
    assert_eq!(started.count(), 1, "{again:?}");
    assert_eq!(array.snapshot().state, "clean");
}

/// Leg 1 is away while the other one is written, so that it is on record as out, and comes back
/// holding `image` if one is given.
fn away(bench: &Bench, array: &Rc<Array>, image: Option<Sectors>) {
    bench.legs[1].go_down();
    bench.write(array, 8, 9).expect("degraded");
    bench.run(500);
    if let Some(image) = image {
        bench.legs[1].put_back(image);
    }
    bench.legs[1].come_back();
    bench.run(60_000);
    assert_eq!(bench.states(array), ["in-sync", "in-sync"]);
    assert_eq!(array.snapshot().bitmap_dirty, 0);
}

/// Of leg 1 after a first write in the second chunk, which is overwritten then, and whose bit is
/// cleared.
fn outdated_image(bench: &Bench, array: &Rc<Array>) -> Sectors {
    bench.write(array, QUIET, 1).expect("written");
    bench.run(20_000);
    assert_eq!(array.snapshot().bitmap_dirty, 0);
    let image = bench.legs[1].image();
    bench.write(array, QUIET, 2).expect("written over");
    bench.run(20_000);
    assert_eq!(array.snapshot().bitmap_dirty, 0);
    image
}

const QUIET: u64 = 2 * CHUNK_SECTORS + 8;

#[test]
fn a_leg_that_comes_back_with_older_bytes_is_filled_from_the_start() {
    for cycles in 0..2 {
        let bench = Bench::new(12);
        let array = bench.running();
        let image = outdated_image(&bench, &array);
        for _ in 0..cycles {
            away(&bench, &array, None);
            assert!(array.snapshot().last_sync.expect("a re-add").bitmap);
        }
        events(&array);
        away(&bench, &array, Some(image));
        assert_eq!(bench.on_leg(1, QUIET), 2, "after {cycles} re-adds");
        assert!(!array.snapshot().last_sync.expect("a rebuild").bitmap);
        assert!(told(&array, "leg_failed vol1 sto2"));
    }
}

#[test]
fn an_image_put_back_while_nothing_is_written_is_noticed() {
    let bench = Bench::new(13);
    let array = bench.running();
    let image = outdated_image(&bench, &array);
    bench.legs[1].put_back(image);
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!(bench.on_leg(1, QUIET), 2);
}

#[test]
fn an_image_older_than_the_last_claim_is_noticed_while_its_bits_are_set() {
    let bench = Bench::new(14);
    let options = Options {
        owner: Some(owner(1, &[])),
        bitmap_sleep: Duration::from_secs(3600),
        ..Options::new("vol1")
    };
    let opened = bench.open_with([true, true], options, false);
    let array = opened.expect("unclaimed");
    array.recovered();
    bench.claim(&array);
    bench.write(&array, QUIET, 1).expect("written");
    bench.run(1000);
    let image = bench.legs[1].image();
    bench.write(&array, QUIET, 2).expect("written over");
    bench.flush(&array);
    bench.run(2500);
    bench.write(&array, QUIET + 8, 2).expect("keeps it dirty");
    bench.legs[1].put_back(image);
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!(bench.on_leg(1, QUIET), 2);
}

#[test]
fn an_image_put_back_between_two_runs_is_no_leg_in_sync() {
    for is_crash in [false, true] {
        let bench = Bench::new(15);
        let array = bench.running();
        let image = outdated_image(&bench, &array);
        if is_crash {
            bench.crash(array);
        } else {
            bench.stop(array);
        }
        bench.legs[1].put_back(image);
        let array = bench.running();
        bench.run(60_000);
        assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
        assert_eq!(bench.on_leg(1, QUIET), 2, "crash: {is_crash}");
        assert!(!array.snapshot().last_sync.expect("a rebuild").bitmap);
    }
}

/// A hundred granules of each chunk are used.
struct Sparse;

impl Allocation for Sparse {
    fn next_used(&self, from: Sector) -> LocalFuture<Option<Range<Sector>>> {
        let at = from.0 / CHUNK_SECTORS * CHUNK_SECTORS;
        let used = (0..200).map(|n| at + n / 100 * CHUNK_SECTORS + n % 100 * 800);
        let used = used.map(|at| Sector(at)..Sector(at + 8));
        let next = used.into_iter().find(|granule| granule.end > from);
        Box::pin(async move { next })
    }

    fn judge(&self, _at: Sector, data: IoVec) -> LocalFuture<Vec<Verdict>> {
        Box::pin(async move { vec![Verdict::Unknown; data.len() / 4096] })
    }
}

#[test]
fn a_rebuild_goes_on_where_the_leg_says_that_it_is() {
    let bench = Bench::new(16);
    let options = Options {
        window_bytes: 1 << 16,
        idle_after: Duration::from_secs(3600), // no superblock is written for that
        ..Options::new("vol1")
    };
    let opened = bench.open_with([true, true], options, false);
    let array = opened.expect("assembled");
    let map: Rc<dyn Allocation> = Rc::new(Sparse);
    array.set_allocation(Rc::downgrade(&map));
    array.recovered();
    for n in 0..300 {
        let at = n / 100 * CHUNK_SECTORS + n % 100 * 800;
        bench.write(&array, at, 5).expect("written");
    }
    bench.run(20_000); // no bit is left
    bench.legs[1].blank();
    let (failing, again) = (array.clone(), array.clone());
    let device = bench.legs[1].clone();
    let refilling = async move {
        failing.fail("sto2").await?;
        again.replace("sto2", "sto2", device, false, false).await
    };
    bench.world.block_on(refilling).expect("begun");
    while array.snapshot().sync.is_none() {
        bench.run(1);
    }
    let sb = bench.superblock(1).expect("a member");
    let image = bench.legs[1].image();
    while array.snapshot().sync.expect("runs").done_bytes < 2 * CHUNK_SECTORS * 512 {
        bench.run(1);
    }
    assert_eq!(bench.superblock(1), Some(sb), "nothing noted meanwhile");
    bench.legs[1].go_down();
    bench.write(&array, 8, 9).expect("degraded");
    bench.run(500);
    bench.legs[1].put_back(image);
    bench.legs[1].come_back();
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    for n in 0..300 {
        assert_equal(&bench, n / 100 * CHUNK_SECTORS + n % 100 * 800, 8);
    }
}

#[test]
fn a_leg_that_another_host_has_written_is_left_alone() {
    let bench = Bench::new(17);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    bench.run(20_000);
    bench.legs[1].go_down();
    bench.write(&array, 8, 2).expect("degraded");
    bench.run(500);
    // Assembled alone elsewhere: it calls the other one faulty, one event on.
    let mut sb = bench.superblock(1).expect("a member");
    sb.events += 1;
    sb.roles[0] = raid::superblock::ROLE_FAULTY;
    for (n, sector) in sb.encode().chunks(512).enumerate() {
        bench.legs[1].poke(8 + n as u64, sector.try_into().expect("a sector"));
    }
    bench.legs[1].come_back();
    bench.run(60_000);
    assert_eq!(bench.states(&array), ["in-sync", "faulty"]);
    assert_eq!(bench.on_leg(1, 8), 1, "nothing is written there");
}
