//! Replacing a leg in sync: never one leg short, never half a leg taken for a whole one.

mod common;

use blockdev::{Allocation, BlockDevice, IoVec, LocalFuture, Mirror, Sector, Verdict};
use common::bench::Bench;
use common::SimLeg;
use raid::assemble::AssembleError;
use raid::superblock::{Superblock, FEATURE_REPLACEMENT};
use raid::{Array, ControlError, Fill};
use std::ops::Range;
use std::rc::Rc;

const SPREAD: u64 = 3900;

/// Sectors of the granules that are used.
fn used() -> Vec<u64> {
    let mut used: Vec<u64> = (0..100).map(|n| n * SPREAD).chain([8, 16, 800]).collect();
    used.sort_unstable();
    used
}

struct Map;

impl Allocation for Map {
    fn next_used(&self, from: Sector) -> LocalFuture<Option<Range<Sector>>> {
        let granule = used().into_iter().map(|at| Sector(at)..Sector(at + 8));
        let found = granule.into_iter().find(|granule| granule.end > from);
        Box::pin(async move { found })
    }

    fn judge(&self, _at: Sector, data: IoVec) -> LocalFuture<Vec<Verdict>> {
        Box::pin(async move { vec![Verdict::Unknown; data.len() / 4096] })
    }
}

struct Trio {
    bench: Bench,
    third: Rc<SimLeg>,
    map: Rc<dyn Allocation>,
}

impl Trio {
    fn new(seed: u64) -> (Trio, Rc<Array>) {
        let bench = Bench::new(seed);
        let third = bench.another(seed * 7 + 1);
        let array = bench.running();
        let map: Rc<dyn Allocation> = Rc::new(Map);
        array.set_allocation(Rc::downgrade(&map));
        let trio = Trio { bench, third, map };
        for at in 0..100 {
            trio.bench.write(&array, at * SPREAD, 5).expect("written");
        }
        (trio, array)
    }

    fn replace(&self, array: &Rc<Array>) -> Result<(), ControlError> {
        let (array, device) = (array.clone(), self.third.clone());
        let replacing = async move { array.replace("sto2", "sto3", device, false, false).await };
        self.bench.world.block_on(replacing).map(|_| ())
    }

    fn slow(&self, us: u64) {
        self.bench
            .legs
            .iter()
            .for_each(|leg| leg.latency_us.set(us));
        self.third.latency_us.set(us);
    }

    fn reopen(&self, present: [bool; 3]) -> Result<Rc<Array>, AssembleError> {
        let legs = [&self.bench.legs[0], &self.bench.legs[1], &self.third];
        let names = ["sto1", "sto2", "sto3"];
        let input = [0, 1, 2].map(|n: usize| (names[n], present[n].then(|| legs[n].clone())));
        let array = self.bench.open_named(&input)?;
        array.set_allocation(Rc::downgrade(&self.map));
        array.recovered();
        Ok(array)
    }

    fn crash(&self, array: Rc<Array>) {
        self.bench.crash(array);
        self.third.node_died();
    }

    fn superblock(&self) -> Superblock {
        Superblock::parse(&self.third.bytes(8, 8)).expect("a member")
    }

    fn assert_third_is_equal(&self) {
        let data = self.bench.data_offset();
        for at in used() {
            let [a, b] = [&self.bench.legs[0], &self.third].map(|leg| leg.peek(data + at));
            assert!(a == b, "the legs differ at sector {at}: {} {}", a[0], b[0]);
        }
    }

    fn until_filled(&self, array: &Rc<Array>) {
        for _ in 0..2000 {
            if self.bench.states(array) == ["in-sync", "in-sync"] {
                return;
            }
            self.bench.run(100);
        }
        panic!("never filled: {:?}", array.snapshot());
    }
}

#[test]
fn the_old_leg_stays_in_sync_until_the_new_one_holds_everything() {
    let (trio, array) = Trio::new(1);
    trio.replace(&array).expect("begun");
    trio.bench.run(30);
    let snapshot = array.snapshot();
    assert_eq!(
        trio.bench.states(&array),
        ["in-sync", "in-sync", "replacement"]
    );
    assert_eq!(
        (snapshot.legs[2].slot, snapshot.legs[2].device.as_str()),
        (1, "sto3")
    );
    assert_eq!(snapshot.sync.expect("a copy").kind, "replace");
    let sb = trio.superblock();
    assert!(sb.is_replacement() && sb.is_recovering());
    assert_eq!(sb.slot(), Some(1));
    let (again, another) = (array.clone(), trio.bench.another(2));
    let second = async move { again.replace("sto2", "sto4", another, false, false).await };
    let second = trio.bench.world.block_on(second);
    assert!(matches!(second, Err(ControlError::InUse(_))), "one a time");
    let mut n = 0;
    while trio.bench.states(&array).len() == 3 {
        assert_eq!(trio.bench.states(&array)[..2], ["in-sync", "in-sync"]);
        n += 1;
        trio.bench.write(&array, 16, n as u8).expect("goes on");
    }
    trio.until_filled(&array);
    let snapshot = array.snapshot();
    let names: Vec<&str> = snapshot
        .legs
        .iter()
        .map(|leg| leg.device.as_str())
        .collect();
    assert_eq!(names, ["sto1", "sto3"]);
    assert_eq!(snapshot.last_sync.expect("ended").kind, "replace");
    trio.assert_third_is_equal();
    trio.bench.run(10_000);
    let sb = trio.superblock();
    assert_eq!(sb.features & FEATURE_REPLACEMENT, 0);
    assert_eq!(
        (sb.slot(), sb.is_recovering(), sb.is_clean()),
        (Some(1), false, true)
    );
    let old = trio.bench.superblock(1).expect("still told what it was");
    assert_eq!(old.slot(), None, "nobody's leg any more");
    trio.bench.legs[0].go_down();
    assert_eq!(trio.bench.read(&array, 16), Ok(n as u8));
}

#[test]
fn a_replacement_goes_on_after_a_stop_and_begins_again_after_a_crash() {
    for crash in [false, true] {
        let (trio, array) = Trio::new(2);
        trio.slow(100_000);
        trio.replace(&array).expect("begun");
        while array
            .snapshot()
            .sync
            .is_none_or(|sync| sync.done_bytes == 0)
        {
            trio.bench.run(100);
        }
        match crash {
            true => {
                trio.third.power_cycle(false);
                trio.crash(array);
            }
            false => trio.bench.stop(array),
        }
        let sb = trio.superblock();
        assert!(sb.is_replacement() && sb.is_recovering());
        assert_eq!(sb.recovery_offset > 0, !crash);
        trio.slow(1000);
        let array = trio.reopen([true; 3]).expect("assembled");
        assert_eq!(
            trio.bench.states(&array),
            ["in-sync", "in-sync", "replacement"]
        );
        trio.bench.write(&array, 8, 9).expect("written");
        trio.until_filled(&array);
        trio.assert_third_is_equal();
        assert_eq!(array.legs(), 2);
    }
}

#[test]
fn half_a_replacement_is_never_in_sync() {
    let (trio, array) = Trio::new(3);
    trio.slow(100_000);
    trio.replace(&array).expect("begun");
    trio.bench.run(1000);
    trio.crash(array);
    trio.slow(1000);
    let alone = trio.reopen([false, false, true]);
    assert!(matches!(alone, Err(AssembleError::Nothing(_))));
    let lone = trio.reopen([true, false, true]);
    assert!(
        matches!(lone, Err(AssembleError::Waiting(_))),
        "it says nothing about the leg it was to replace"
    );
    let array = trio.reopen([true, true, false]).expect("as before");
    trio.bench.write(&array, 8, 9).expect("written");
    trio.bench.stop(array);
    let array = trio.reopen([true, true, true]).expect("the third is back");
    trio.until_filled(&array);
    trio.assert_third_is_equal();
}

#[test]
fn the_old_leg_may_be_lost_meanwhile() {
    let (trio, array) = Trio::new(4);
    trio.slow(100_000);
    trio.replace(&array).expect("begun");
    trio.bench.run(1000);
    let failing = array.clone();
    let failed = async move { failing.fail("sto2").await };
    trio.bench.world.block_on(failed).expect("failed");
    trio.slow(1000);
    trio.bench.write(&array, 8, 9).expect("degraded");
    trio.until_filled(&array);
    trio.assert_third_is_equal();
}

#[test]
fn legs_may_be_away_while_one_is_replaced() {
    for away in 0..3 {
        let (trio, array) = Trio::new(5 + away as u64);
        trio.slow(100_000);
        trio.replace(&array).expect("begun");
        trio.bench.run(1000);
        let leg = [&trio.bench.legs[0], &trio.bench.legs[1], &trio.third][away].clone();
        leg.go_down();
        trio.bench.write(&array, 8, 8).expect("degraded");
        trio.bench.run(1000);
        trio.bench.write(&array, 16, 9).expect("degraded");
        trio.slow(1000);
        leg.down.set(false);
        trio.until_filled(&array);
        trio.assert_third_is_equal();
        let names: Vec<String> = array
            .snapshot()
            .legs
            .into_iter()
            .map(|l| l.device)
            .collect();
        assert_eq!(names, ["sto1", "sto3"]);
    }
}

#[test]
fn a_crash_at_any_moment_of_the_change_loses_nothing() {
    let begin = {
        let (trio, array) = Trio::new(9);
        trio.replace(&array).expect("begun");
        let from = trio.bench.world.now();
        trio.until_filled(&array);
        (trio.bench.world.now() - from).as_millis() as u64
    };
    // One crash point for each leg that may be lost; `SIM_LONG` tries every one.
    let step = match std::env::var_os("SIM_LONG") {
        Some(_) => 1,
        None => 9,
    };
    for back in (0..40).step_by(step) {
        let (trio, array) = Trio::new(9);
        trio.replace(&array).expect("begun");
        trio.bench.run((begin + 50).saturating_sub(5 * back));
        trio.bench.write(&array, 800, 7).expect("written");
        trio.crash(array);
        let lost = back % 4;
        let present = [lost != 1, lost != 2, lost != 3];
        let array = match trio.reopen(present) {
            Ok(array) => array,
            Err(AssembleError::Waiting(_) | AssembleError::Nothing(_)) => {
                trio.reopen([true; 3]).expect("all are here")
            }
            Err(error) => panic!("{back}: {error}"),
        };
        for at in (0..100).map(|n| n * SPREAD) {
            assert_eq!(trio.bench.read(&array, at), Ok(5), "{back}: sector {at}");
        }
        assert_eq!(trio.bench.read(&array, 800), Ok(7), "{back}");
        trio.bench.write(&array, 800, 8).expect("written");
        trio.bench.stop(array);
        let array = trio.reopen([true; 3]);
        let array = array.unwrap_or_else(|error| panic!("{back}: {error}"));
        assert_eq!(trio.bench.read(&array, 800), Ok(8), "{back}");
        trio.until_filled(&array);
    }
}

#[test]
fn what_may_not_replace_is_refused() {
    let (trio, array) = Trio::new(10);
    let try_with = |device: Rc<SimLeg>, force: bool| {
        let array = array.clone();
        let tried = async move { array.replace("sto2", "x", device, false, force).await };
        trio.bench.world.block_on(tried)
    };
    let own = trio.bench.legs[1].clone();
    assert!(matches!(try_with(own, false), Err(ControlError::InUse(_))));
    let peer = trio.bench.legs[0].clone();
    assert!(matches!(try_with(peer, true), Err(ControlError::InUse(_))));
    let other = Bench::new(77);
    let foreign = other.legs[0].clone();
    let device = trio.bench.another(3);
    for sector in 0..64 {
        device.poke(sector, &foreign.peek(sector));
    }
    let text = try_with(device.clone(), false)
        .expect_err("another array's")
        .to_string();
    assert!(text.contains("holds"), "{text}");
    let tiny = SimLeg::new(&trio.bench.world.rt(), &trio.bench.pool, 40_000, 1);
    assert!(matches!(
        try_with(tiny, false),
        Err(ControlError::TooSmall { .. })
    ));
    trio.bench.legs[0].go_down();
    trio.bench.write(&array, 8, 1).expect("degraded");
    assert!(matches!(try_with(device, true), Err(ControlError::Last(_))));
    assert_eq!(trio.bench.states(&array)[1], "in-sync");
    assert!(trio.third.geometry().sectors > 0);
}

#[test]
fn a_spare_is_taken_for_a_leg_that_failed_and_not_for_one_that_is_late() {
    let (trio, array) = Trio::new(11);
    assert_eq!(array.wants_spare(), None);
    trio.bench.legs[1].hang();
    trio.bench.write(&array, 8, 1).expect("degraded");
    trio.bench.run(100_000);
    assert_eq!(array.wants_spare(), None, "it may come back");
    trio.bench.legs[1].unhang();
    trio.bench.run(40_000);
    assert_eq!(trio.bench.states(&array), ["in-sync", "in-sync"]);
    trio.bench.legs[1].go_down();
    trio.bench.write(&array, 8, 2).expect("degraded");
    trio.bench.run(170_000);
    assert_eq!(array.wants_spare(), None, "counted from when it went out");
    trio.bench.run(20_000);
    assert_eq!(array.wants_spare().as_deref(), Some("sto2"));
    trio.replace(&array).expect("filled in its place");
    assert_eq!(array.wants_spare(), None);
    trio.until_filled(&array);
    trio.assert_third_is_equal();
}

#[test]
fn a_spare_is_taken_at_once_for_a_leg_that_will_not_come_back() {
    for by_operator in [true, false] {
        let (trio, array) = Trio::new(12);
        if by_operator {
            let failing = array.clone();
            let failed = async move { failing.fail("sto2").await };
            trio.bench.world.block_on(failed).expect("failed");
        } else {
            trio.bench.legs[1].go_down();
            trio.bench.write(&array, 8, 2).expect("degraded");
            trio.bench.legs[1].blank();
            trio.bench.legs[1].down.set(false);
            trio.bench.run(1000); // another device came back in its place
        }
        assert_eq!(array.wants_spare().as_deref(), Some("sto2"));
        trio.replace(&array).expect("filled in its place");
        trio.until_filled(&array);
        trio.assert_third_is_equal();
    }
}

/// The slot of a leg that was given to another device is not free, and there is no third one.
#[test]
fn a_leg_is_not_added_beside_two() {
    let (trio, array) = Trio::new(31);
    trio.slow(20_000);
    let failing = array.clone();
    let failed = trio
        .bench
        .world
        .block_on(async move { failing.fail("sto2").await });
    failed.expect("failed");
    trio.replace(&array).expect("filled in its slot");
    while trio.bench.states(&array)[1] != "rebuilding" {
        trio.bench.run(1);
    }
    for force in [false, true] {
        let (again, device) = (array.clone(), trio.bench.legs[1].clone());
        let adding = async move { again.add("sto2", device, false, force).await };
        let added = trio.bench.world.block_on(adding);
        assert!(matches!(added, Err(ControlError::Full)), "{added:?}");
    }
    trio.bench.run(60_000);
    assert_eq!(trio.bench.states(&array), ["in-sync", "in-sync"]);
}

fn begin(bench: &Bench, array: &Rc<Array>, full: bool) -> Result<Fill, ControlError> {
    let (array, device) = (array.clone(), bench.legs[1].clone());
    let replacing = async move { array.replace("sto2", "sto2", device, full, false).await };
    bench.world.block_on(replacing)
}

fn fail(bench: &Bench, array: &Rc<Array>) {
    let failing = array.clone();
    let failed = async move { failing.fail("sto2").await };
    bench.world.block_on(failed).expect("failed");
}

#[test]
fn a_fill_that_runs_is_not_begun_again() {
    let (trio, array) = Trio::new(32);
    let bench = &trio.bench;
    trio.slow(20_000);
    fail(bench, &array);
    assert_eq!(begin(bench, &array, false).expect("begun"), Fill::Begun);
    bench.run(700);
    let device = bench.superblock(1).expect("a member").device;
    for _ in 0..5 {
        assert_eq!(begin(bench, &array, false).expect("runs"), Fill::UnderWay);
        let (again, own) = (array.clone(), bench.legs[1].clone());
        let adding = async move { again.add("sto2", own, false, false).await };
        let added = bench.world.block_on(adding).expect("runs");
        assert_eq!(added, Fill::UnderWay);
    }
    assert_eq!(bench.states(&array)[1], "rebuilding");
    assert_eq!(bench.superblock(1).expect("a member").device, device);
    // More is asked for than is being copied.
    assert_eq!(begin(bench, &array, true).expect("begun"), Fill::Begun);
    trio.until_filled(&array);
    // One beside the leg that it replaces.
    trio.replace(&array).expect("begun");
    bench.run(100);
    let (again, third) = (array.clone(), trio.third.clone());
    let adding = async move { again.add("sto3", third, false, false).await };
    let added = bench.world.block_on(adding).expect("runs");
    assert_eq!(added, Fill::UnderWay);
}

#[test]
fn commands_are_no_lateness_and_end_its_penalty() {
    let (trio, array) = Trio::new(33);
    let bench = &trio.bench;
    let is_soon_filled = || {
        bench.run(15_000);
        bench.states(&array) == ["in-sync", "in-sync"]
    };
    for round in 0..5 {
        fail(bench, &array);
        begin(bench, &array, false).expect("begun");
        bench.run(500);
        assert_ne!(bench.states(&array)[1], "missing", "round {round}");
    }
    assert!(is_soon_filled());
    for round in 0..3 {
        bench.legs[1].hang();
        bench.write(&array, 8, round).expect("degraded");
        bench.legs[1].unhang();
        bench.run(5000);
    }
    assert_eq!(bench.states(&array)[1], "late", "it waits");
    begin(bench, &array, false).expect("begun");
    assert!(is_soon_filled(), "{:?}", bench.states(&array));
}
