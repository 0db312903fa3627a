//! Random operations against a naive model, with crashes at any point. `SIM_SEED=n` replays one
//! seed, `SIM_SEEDS=n` sets how many are tried.

mod sim;

use chunk_store::{CheckOptions, CheckResult, Durability, Store};
use sim::life::{crash, format_volume, seeds, Crash, Life, Mode, Seed};
use sim::model::Run;
use sim::{disks, Rng};
use std::time::Duration;

fn run(seed: u64, mode: Mode) {
    let mut rng = Rng(seed);
    let disks = disks();
    format_volume(&Life::with(mode, &disks, &mut rng));
    let mut run = Run::new(mode, &disks, rng);
    let mut rotted: Option<usize> = None;
    let mut rng = Rng(run.rng.next());
    let mut life = Life::with(mode, &disks, &mut rng);
    let mut store = life.open();
    for _ in 0..1 + rng.below(4) {
        for _ in 0..rng.below(60) {
            run.step(&life, &store);
            match rng.below(20) {
                0..10 => {}
                10..18 => life.rt.run_for(Duration::from_micros(rng.below(800))),
                18 => life.rt.run_for(Duration::from_millis(rng.below(5))),
                _ => life.rt.run_for(Duration::from_millis(1_500)),
            }
        }
        if rng.chance(15) {
            // Everything durable, and then one leg rots (always the same one).
            life.rt.run_for(Duration::from_secs(3));
            assert_eq!(run.under_way.get(), 0, "an operation never ends");
            for disk in run.disks.iter() {
                let mut disk = disk.borrow_mut();
                disk.flush_all();
            }
            let leg = *rotted.get_or_insert(rng.below(2) as usize);
            for _ in 0..1 + rng.below(30) {
                run.disks[leg].borrow_mut().rot(&mut rng, 0..0);
            }
        }
        let clean = rng.chance(15);
        if clean {
            let store = store.clone();
            life.rt.run_for(Duration::from_millis(20));
            life.rt
                .block_on(async move { store.stop().await })
                .expect("stopped");
        }
        run.no_errors();
        life.rt.kill();
        drop(store);
        run.under_way.set(0);
        let mut kinds = vec![crash(&disks, &mut rng)];
        life = Life::with(mode, &disks, &mut rng);
        while rng.chance(30) {
            let open = Store::open(
                life.mirror(),
                life.rt.rt(),
                life.pool.clone(),
                life.options(),
            );
            let handle = life.rt.spawn_handle(open);
            life.rt.run_for(Duration::from_micros(rng.below(6_000)));
            drop(handle.try_take());
            life.rt.kill();
            kinds.push(crash(&disks, &mut rng));
            life = Life::with(mode, &disks, &mut rng);
        }
        let summary = life.check(CheckOptions::default());
        assert_eq!(
            summary.result(),
            CheckResult::Clean,
            "{:#?}",
            summary.problems
        );
        life = Life::with(mode, &disks, &mut rng);
        store = life.open();
        if std::env::var("SIM_TRACE").is_ok() {
            eprintln!("crash {kinds:?} clean {clean} rotted {rotted:?}");
        }
        let lost = |leg| {
            kinds
                .iter()
                .any(|k| *k == Crash::CutAll || *k == Crash::CutOne(leg))
        };
        let all_lost = lost(0) && lost(1);
        run.verify(&life, &store, |history| match (clean, all_lost) {
            (true, _) => history.acknowledged,
            (false, true) if mode.durability == Durability::Fua => history.acknowledged,
            (false, true) => history.durable,
            (false, false) => history.acknowledged,
        });
    }
    let stopping = store.clone();
    life.rt
        .block_on(async move { stopping.stop().await })
        .expect("stopped");
    drop(store);
    if rotted.is_some() {
        let summary = life.check(CheckOptions {
            repair: true,
            data: true,
        });
        assert_ne!(
            summary.result(),
            CheckResult::Damaged,
            "{:#?}",
            summary.problems
        );
    }
    let summary = life.check(CheckOptions {
        repair: false,
        data: true,
    });
    assert_eq!(
        summary.result(),
        CheckResult::Clean,
        "{:#?}",
        summary.problems
    );
}

#[test]
fn every_crash_leaves_what_was_promised() {
    let default = if cfg!(debug_assertions) { 100 } else { 2_000 };
    for seed in seeds(default) {
        let _seed = Seed(seed);
        run(seed, Mode::default());
    }
}

#[test]
fn the_same_seed_gives_the_same_disks() {
    let image = |seed| {
        let mut rng = Rng(seed);
        let disks = disks();
        let life = Life::new(&disks, &mut rng);
        format_volume(&life);
        let store = life.open();
        let mut run = Run::new(Mode::default(), &disks, rng);
        for _ in 0..60 {
            run.step(&life, &store);
            life.rt.run_for(Duration::from_micros(200));
        }
        life.rt.run_for(Duration::from_secs(2));
        run.no_errors();
        let digest = disks[0].borrow().digest();
        digest
    };
    assert_eq!(image(5), image(5));
    assert_ne!(image(5), image(6));
}

#[test]
fn every_crash_leaves_what_was_promised_in_the_other_modes() {
    let default = if cfg!(debug_assertions) { 30 } else { 500 };
    let modes = [
        (Durability::Fua, true),
        (Durability::Fua, false),
        (Durability::Cache, true),
    ];
    for seed in seeds(default) {
        let _seed = Seed(seed);
        for (durability, fua) in modes {
            run(seed, Mode { durability, fua });
        }
    }
}
