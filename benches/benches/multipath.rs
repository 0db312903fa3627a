//! What do the selectors cost, and a look at very many paths? Each selector chooses among 8 paths of
//! one group (bar: 100 ns); a device of 1,000 paths, half of them dead, is described as `antler paths`
//! needs it (bar: 50 ms for all of it).

use benches::Bench;
use blockdev::sim::VirtualRt;
use blockdev::{Instant, Pool};
use mpath::sim::{Link, San, SanOptions};
use mpath::{choose, Config, Load, MultipathDevice, SelectorKind};
use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

const PATHS: usize = 8;
const MANY: usize = 1000;

fn selectors() {
    let kinds = [
        SelectorKind::ServiceTime,
        SelectorKind::RoundRobin,
        SelectorKind::QueueLength,
        SelectorKind::HistoricalServiceTime {
            base_weight: 972,
            threshold_multiplier: 0,
        },
        SelectorKind::TailLatency,
    ];
    let loads: Vec<Load> = (1..=PATHS as u32)
        .map(|n| Load {
            commands: n,
            bytes: u64::from(n) * 4096,
            tail: Duration::from_micros(u64::from(300 - n)),
            history: Duration::from_micros(u64::from(100 + n)),
            idle: Duration::from_micros(u64::from(n)),
        })
        .collect();
    let mut bench = Bench::new("choosing among 8 paths (bar: 100 ns)");
    for kind in kinds {
        let mut order: Vec<usize> = (0..PATHS).collect();
        let loads = loads.clone();
        bench = bench.candidate(kind.name(), 1_000_000, move |count| {
            for _ in 0..count {
                black_box(choose(kind, black_box(&mut order), |path| {
                    Some(loads[path])
                }));
            }
        });
    }
    bench.run();
}

fn description() {
    let world = VirtualRt::new(1);
    let options = SanOptions {
        portal_groups: vec![1; MANY],
        ..SanOptions::default()
    };
    let san = San::new(world.rt(), Pool::new(16 << 20), options);
    let ports = (0..MANY).map(|n| san.port(n)).collect();
    let config = Config::new("sto1", "iqn.2024-12.example.test:bench");
    let device = Rc::new(MultipathDevice::new(world.rt(), config, ports));
    let opened = device.clone();
    let opened = world.block_on(async move { opened.opened(Instant::FAR).await });
    opened.expect("paths are up");
    world.run_for(Duration::from_millis(500));
    for path in 0..MANY / 2 {
        san.set_link(path, Link::Loud);
    }
    world.run_for(Duration::from_millis(500));
    Bench::new("describing 1,000 paths, 500 of them dead (bar: 50 ms)")
        .candidate("snapshot", 200, move |count| {
            for _ in 0..count {
                black_box(device.snapshot());
            }
        })
        .run();
}

fn main() {
    selectors();
    description();
}
