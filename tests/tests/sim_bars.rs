//! The mirror's column of P5 in virtual time: two storage nodes with two paths each, defaults, 4 KiB
//! at depth 16 on the mirror, over real sessions, at p100 over many faults of each kind. The column
//! of a single leg is in `mpath/tests/bars.rs`.

use blockdev::sim::{Faults, Latency};
use blockdev::{BlockDevice, Completion, Durability, IoCtx, LegIndex, Mirror, Op, Pool, Sector};
use mpath::GroupState;
use raid::Array;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tests::sim::mirror::{self, WitnessDisk};
use tests::sim::net::Cut;
use tests::sim::site::{ChunkNode, Site};

const SECTORS: u64 = 128 << 11;
const DEPTH: u64 = 16;
/// Blocks of one worker.
const BLOCKS: u64 = 64;
const FAULTS: u64 = 32;
const BLOCK_SECTORS: u32 = 8;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The units are healthy: no request takes them longer.
const SERVICE_MAX: Duration = ms(8);
/// The slowest fsync of `data_path` for which P5 promises anything.
const FSYNC_MAX: Duration = ms(250);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Reads,
    /// Every block is written again only after all others.
    Writes,
    /// One block a worker: what is unanswered is overwritten.
    Overwrites,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    LoudPath,
    SilentPath,
    HungBackend,
    LostNode,
    FrozenNode,
}

/// A chunk node with its mirror, and sixteen workers with one operation each under way.
struct Bed {
    site: Site,
    node: ChunkNode,
    array: Rc<Array>,
    stop: Rc<Cell<bool>>,
    is_paused: Rc<Cell<bool>>,
    latencies: Rc<RefCell<Vec<Duration>>>,
}

fn operation(array: &Array, pool: &Pool, kind: Kind, block: u64, turn: u64) -> Completion {
    let at = Sector(block * u64::from(BLOCK_SECTORS));
    let op = match kind {
        Kind::Reads => Op::Read {
            at,
            sectors: BLOCK_SECTORS,
        },
        Kind::Writes | Kind::Overwrites => Op::Write {
            at,
            data: pool.copy_now(&[turn as u8; 4096]),
            want: Durability::Cache,
        },
    };
    array.submit(op, IoCtx::foreground())
}

impl Bed {
    fn start(seed: u64, kind: Kind) -> Bed {
        let service = Latency::between(ms(1), SERVICE_MAX);
        let faults = Faults {
            read: service,
            write: service,
            flush: service,
            ..Faults::none()
        };
        let site = Site::new(seed, 2, SECTORS, faults);
        let node = ChunkNode::start(&site);
        let witness = WitnessDisk::new(FSYNC_MAX);
        let (array, node) = site.world.block_on(async move {
            let array = mirror::create(&node, &witness).await;
            array.recovered();
            (array, node)
        });
        let bed = Bed {
            site,
            node,
            array,
            stop: Rc::default(),
            is_paused: Rc::default(),
            latencies: Rc::default(),
        };
        for worker in 0..DEPTH {
            bed.work(worker, kind);
        }
        bed.run(Duration::from_secs(2));
        bed
    }

    fn work(&self, worker: u64, kind: Kind) {
        let (rt, pool, array) = (
            self.node.host.rt(),
            self.node.pool.clone(),
            self.array.clone(),
        );
        let (stop, is_paused) = (self.stop.clone(), self.is_paused.clone());
        let latencies = self.latencies.clone();
        let blocks = if kind == Kind::Overwrites { 1 } else { BLOCKS };
        self.node.host.rt().spawn(async move {
            let mut turn = 0;
            while !stop.get() {
                if is_paused.get() {
                    rt.sleep(ms(250)).await;
                    continue;
                }
                turn += 1;
                let block = worker * BLOCKS + turn % blocks;
                let begun = rt.now();
                let done = operation(&array, &pool, kind, block, turn).await;
                assert!(done.is_ok(), "{done:?}");
                latencies.borrow_mut().push(rt.now() - begun);
            }
        });
    }

    fn run(&self, time: Duration) {
        self.site.world.run_for(time);
    }

    /// The longest latency since the last call.
    fn take_longest(&self) -> Duration {
        let latencies = std::mem::take(&mut *self.latencies.borrow_mut());
        latencies.into_iter().max().expect("the load goes on")
    }

    fn strike(&self, fault: Fault, victim: usize) {
        let storage = &self.site.nodes[victim];
        let groups = self.node.devices[victim].snapshot().groups;
        let in_use = groups.iter().position(|g| g.state == GroupState::Active);
        let portal = storage.portals[in_use.expect("a group is in use")];
        match fault {
            Fault::LoudPath => self.site.net.cut(portal, Cut::Loud),
            Fault::SilentPath => self.site.net.cut(portal, Cut::Silent),
            Fault::HungBackend => storage.target.unit().device().hang(),
            Fault::LostNode => storage.power_off(self.site.chance.next()),
            Fault::FrozenNode => {
                for portal in &storage.portals {
                    self.site.net.cut(*portal, Cut::Silent);
                }
            }
        }
    }

    /// Undoes it, and waits until nothing is left of it.
    fn mend(&self, victim: usize) {
        let storage = &self.site.nodes[victim];
        self.site.heal_networks();
        storage.target.unit().device().unhang();
        if storage.is_off() {
            storage.power_on();
        }
        // Far enough apart that nothing counts as flapping, and no leg as late too often.
        self.run(Duration::from_secs(70));
        for leg in 0..2 {
            assert!(
                self.array.in_sync(LegIndex(leg)),
                "leg {leg} is in sync again"
            );
        }
    }
}

/// The longest stall of all.
fn worst(fault: Fault, kind: Kind) -> Duration {
    let bed = Bed::start(1, kind);
    let mut worst = Duration::ZERO;
    for round in 0..FAULTS {
        let victim = (round % 2) as usize;
        bed.take_longest();
        bed.run(Duration::from_micros(round * 317));
        bed.strike(fault, victim);
        bed.run(ms(700));
        worst = worst.max(bed.take_longest());
        bed.is_paused.set(true);
        bed.mend(victim);
        bed.is_paused.set(false);
        // The first write after a quiet time waits for the witness, which is no fault's doing.
        bed.run(ms(700));
    }
    bed.stop.set(true);
    println!("{fault:?}, {kind:?}: {worst:?}");
    worst
}

fn assert_bar(fault: Fault, kind: Kind, bar: Duration) {
    let worst = worst(fault, kind);
    assert!(worst <= bar, "{fault:?}, {kind:?}: {worst:?}");
}

#[test]
fn p5_mirror_a_loud_failure_stalls_20_ms_beyond_the_requests_age() {
    for kind in [Kind::Reads, Kind::Writes] {
        assert_bar(Fault::LoudPath, kind, SERVICE_MAX + ms(20));
    }
}

#[test]
fn p5_mirror_a_silent_cut_stalls_reads_150_and_writes_250_ms() {
    assert_bar(Fault::SilentPath, Kind::Reads, ms(150));
    assert_bar(Fault::SilentPath, Kind::Writes, ms(250));
}

#[test]
fn p5_mirror_a_write_over_an_unanswered_one_waits_250_ms() {
    assert_bar(Fault::SilentPath, Kind::Overwrites, ms(250));
}

#[test]
fn p5_mirror_a_hung_backend_stalls_reads_150_and_writes_500_ms() {
    assert_bar(Fault::HungBackend, Kind::Reads, ms(150));
    assert_bar(Fault::HungBackend, Kind::Writes, ms(500));
}

#[test]
fn p5_mirror_a_lost_or_frozen_node_stalls_500_ms() {
    for fault in [Fault::LostNode, Fault::FrozenNode] {
        for kind in [Kind::Reads, Kind::Writes, Kind::Overwrites] {
            assert_bar(fault, kind, ms(500));
        }
    }
}
