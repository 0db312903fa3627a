//! How long does I/O stand still when a path goes? The rows of P5 for one unit on a real tgt with two
//! paths, defaults, 4 KiB at depth 16, in real time: the longest stall of each cut, its median over
//! all cuts and the worst of them, beside the promise.
//!
//! A silent cut is a pair of blackhole routes in a namespace between initiator and portal; a loud one
//! ends the connections and refuses new ones. The machine's own lateness is in the figures: run it on
//! an idle one. The kernel's stack (open-iscsi under dm-multipath) stood still for 15.4 s as usually
//! configured and for 3.1 s at its best, measured elsewhere on the same kind of cut.
//!
//! Needs root for the namespaces. `BENCH_ROUNDS` sets the number of cuts of a row (default 30).

use benches::rounds;
use blockdev::driver::run_shard;
use blockdev::path::PathPort;
use blockdev::{BlockDevice, Durability, IoCtx, Op, Pool, Rt, Sector};
use harness::clock::{pause, wait_until};
use harness::holding_proxy::HoldingProxy;
use harness::net::Place;
use harness::scratch::Scratch;
use harness::site::one_storage_node;
use harness::tgt::{free_ports, Tgt, TgtSpec};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::path::{IscsiPort, PortConfig};
use iscsi_initiator::tcp::TcpNet;
use mpath::{Config, GroupState, MultipathDevice};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

const TARGET: &str = "iqn.2024-12.example.test:failover";
const INITIATOR: &str = "iqn.2024-12.example.test:bench";
const UNIT_BYTES: u64 = 64 << 20;
const DEPTH: u64 = 16;
const BLOCK_SECTORS: u32 = 8;
/// Blocks of a worker that does not overwrite at once.
const BLOCKS: u64 = 500;
const CUTS: usize = 30;
/// A stall is over long before this; the cut lasts as long.
const CUT: Duration = Duration::from_millis(1200);
const MINUTE: Duration = Duration::from_secs(60);

/// What the workers do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Idle,
    Reads,
    Writes,
    /// Each worker writes one block again and again: what is unanswered is overwritten.
    Overwrites,
}

const MODES: [Mode; 4] = [Mode::Idle, Mode::Reads, Mode::Writes, Mode::Overwrites];

/// What the shard and the thread that cuts share.
#[derive(Default)]
struct Shared {
    mode: AtomicU64,
    longest_ns: AtomicU64,
    ios: AtomicU64,
    in_use: AtomicU64,
    active: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn mode(&self) -> Mode {
        MODES[self.mode.load(Ordering::Acquire) as usize]
    }

    fn set(&self, mode: Mode) {
        let index = MODES.iter().position(|m| *m == mode).expect("a mode");
        self.mode.store(index as u64, Ordering::Release);
    }

    /// The longest latency since the last call.
    fn take_longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns.swap(0, Ordering::AcqRel))
    }
}

/// Opens the device and works until told to stop.
async fn serve(rt: Rt, portals: Vec<SocketAddrV4>, shared: Arc<Shared>) {
    let pool = Pool::new(64 << 20);
    let ports = portals.iter().map(|portal| {
        let own = Initiator::new(rt.clone(), Rc::new(TcpNet), pool.clone(), INITIATOR);
        let config = PortConfig {
            portal: portal.to_string().parse().expect("a portal"),
            source: None,
            target: TARGET.to_owned(),
            lun: 1,
            role: Role::Tool,
            shard: 0,
        };
        Rc::new(IscsiPort::new(own, config).expect("LUN 1 has a flat form")) as Rc<dyn PathPort>
    });
    let config = Config::new("sto1", INITIATOR);
    let device = Rc::new(MultipathDevice::new(rt.clone(), config, ports.collect()));
    let deadline = rt.now() + MINUTE;
    device.opened(deadline).await.expect("a path is up");
    for worker in 0..DEPTH {
        let task = work(
            rt.clone(),
            device.clone(),
            pool.clone(),
            worker,
            shared.clone(),
        );
        rt.spawn(task);
    }
    while !shared.stop.load(Ordering::Acquire) {
        let groups = device.snapshot().groups;
        let in_use = groups.iter().position(|g| g.state == GroupState::Active);
        let paths = groups.iter().flat_map(|g| &g.paths);
        let active = paths.filter(|p| p.is_active).count();
        shared
            .in_use
            .store(in_use.map_or(u64::MAX, |g| g as u64), Ordering::Release);
        shared.active.store(active as u64, Ordering::Release);
        rt.sleep(Duration::from_millis(20)).await;
    }
    device.close().await;
}

async fn work(rt: Rt, device: Rc<MultipathDevice>, pool: Pool, worker: u64, shared: Arc<Shared>) {
    let mut turn = 0;
    while !shared.stop.load(Ordering::Acquire) {
        let mode = shared.mode();
        let (blocks, is_read) = match mode {
            Mode::Idle => {
                rt.sleep(Duration::from_millis(10)).await;
                continue;
            }
            Mode::Reads => (BLOCKS, true),
            Mode::Writes => (BLOCKS, false),
            Mode::Overwrites => (1, false),
        };
        turn += 1;
        let block = worker * BLOCKS + turn % blocks;
        let at = Sector(block * u64::from(BLOCK_SECTORS));
        let op = if is_read {
            Op::Read {
                at,
                sectors: BLOCK_SECTORS,
            }
        } else {
            Op::Write {
                at,
                data: pool.copy_now(&[turn as u8; 4096]),
                want: Durability::Cache,
            }
        };
        let begun = rt.now();
        let done = device.submit(op, IoCtx::foreground()).await;
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        assert!(done.is_ok(), "{done:?}");
        let latency = rt.now() - begun;
        shared
            .longest_ns
            .fetch_max(latency.as_nanos() as u64, Ordering::AcqRel);
        shared.ios.fetch_add(1, Ordering::AcqRel);
    }
}

/// A running load and how its paths are cut.
struct Bed {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bed {
    fn start(place: Place, portals: Vec<SocketAddrV4>) -> Bed {
        let shared = Arc::<Shared>::default();
        let own = shared.clone();
        let thread = std::thread::spawn(move || {
            place.enter(|| run_shard(|rt| serve(rt, portals, own)).expect("a shard"));
        });
        let bed = Bed {
            shared,
            thread: Some(thread),
        };
        bed.wait_paths(2);
        bed
    }

    fn wait_paths(&self, count: u64) {
        wait_until("paths", MINUTE, || {
            let thread = self.thread.as_ref().expect("runs until dropped");
            assert!(!thread.is_finished(), "the load met an error");
            self.shared.active.load(Ordering::Acquire) == count
        });
    }

    /// Stalls of so many cuts of the path in use.
    fn row(&self, mode: Mode, cut: impl Fn(usize), mend: impl Fn(usize)) -> Vec<Duration> {
        let cuts = rounds(CUTS);
        let mut stalls = Vec::new();
        self.shared.set(mode);
        for _ in 0..cuts {
            pause(Duration::from_millis(300));
            let path = self.shared.in_use.load(Ordering::Acquire) as usize;
            self.shared.take_longest();
            cut(path);
            pause(CUT);
            stalls.push(self.shared.take_longest());
            mend(path);
            self.wait_paths(2);
        }
        self.shared.set(Mode::Idle);
        stalls.sort_unstable();
        stalls
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn print(name: &str, promise_ms: u64, stalls: &[Duration]) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let median = stalls[stalls.len() / 2];
    let worst = stalls[stalls.len() - 1];
    let promise = if promise_ms == 0 {
        String::new()
    } else {
        format!("{promise_ms}")
    };
    println!(
        "{name:<34} {:>5} {:>10.1} {:>10.1} {promise:>9}",
        stalls.len(),
        ms(median),
        ms(worst)
    );
}

fn silent() {
    let scratch = Scratch::exclusive();
    let (net, portals) = one_storage_node(&scratch);
    let spec = TgtSpec::single("sto1", TARGET, &portals, UNIT_BYTES);
    let _tgt = Tgt::start(&scratch, net.place("sto1"), spec);
    let bed = Bed::start(net.place("cs"), portals);
    let rows = [
        ("no cut, writes", Mode::Writes, 0),
        ("silent cut, reads", Mode::Reads, 150),
        ("silent cut, writes", Mode::Writes, 250),
        ("silent cut, overwrites", Mode::Overwrites, 250),
    ];
    for (name, mode, promise_ms) in rows {
        let is_cut = promise_ms > 0;
        let link = |path: usize| format!("san{path}");
        let stalls = bed.row(
            mode,
            |path| {
                if is_cut {
                    net.cut(&link(path));
                }
            },
            |path| net.restore(&link(path)),
        );
        print(name, promise_ms, &stalls);
    }
}

fn loud() {
    let scratch = Scratch::shared();
    let ports = free_ports(2);
    let portals = [0, 1].map(|n| SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports[n]));
    let spec = TgtSpec::single("sto1", TARGET, &portals, UNIT_BYTES);
    let _tgt = Tgt::start(&scratch, Place::host(), spec);
    let proxies = portals.map(HoldingProxy::start);
    let ways = proxies.iter().map(HoldingProxy::address).collect();
    let bed = Bed::start(Place::host(), ways);
    for (name, mode) in [("loud, reads", Mode::Reads), ("loud, writes", Mode::Writes)] {
        let stalls = bed.row(
            mode,
            |path| proxies[path].fail(),
            |path| proxies[path].reopen(),
        );
        print(name, 20, &stalls);
    }
}

fn main() {
    println!(
        "{:<34} {:>5} {:>10} {:>10} {:>9}",
        "longest stall of a cut, ms", "cuts", "median", "worst", "promise"
    );
    loud();
    silent();
}
