//! What does the chunk store cost beside the bare device below it? 4 KiB at random places, 64 KiB
//! and 1 MiB in order, read and written, in memory, on a local file, and on a unit of a real tgt on
//! 127.0.0.1 through multipath and iSCSI.
//!
//! Store and bare device each have a device of their own of one kind, and take turns of equal time.
//! Every I/O of 1 MiB is one operation of the bare device and 16 of the store, which is asked for
//! blocks. Sums over the data that is written are made beforehand, as the client makes them.
//!
//! `cargo bench -p benches --bench chunk_store -- memory` (or `file`, `tgt`) asks for one kind. The
//! file and tgt's units lie in the system's folder for temporary files.

use benches::{clock, is_chosen, process_cpu, rounds, show, sized, Measured};
use blockdev::driver::local::{LocalDevice, LocalOptions};
use blockdev::driver::run_shard;
use blockdev::path::PathPort;
use blockdev::sim::{MemDevice, MemTiming};
use blockdev::{BlockDevice, Geometry, IoCtx, IoVec, Op, Pool, Rt, Sector, SECTOR_BYTES};
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkId, ChunkVersion, Chunks, BLOCK_BYTES, CHUNK_BYTES};
use chunk_store::{format, FormatParams, Options, SingleLeg, Store};
use harness::net::Place;
use harness::scratch::Scratch;
use harness::tgt::{free_ports, Tgt, TgtSpec, Unit};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::name::Portal;
use iscsi_initiator::path::{IscsiPort, PortConfig};
use iscsi_initiator::tcp::TcpNet;
use mpath::MultipathDevice;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

const DEVICE_BYTES: u64 = 512 << 20;
/// The part that is read and written.
const REGION_BYTES: u64 = 2 * CHUNK_BYTES as u64;
const REGION_BYTES_SMOKE: u64 = 4 << 20;
/// Small beside the region, so that at most a sixteenth of the random reads are hits.
const CACHE_BYTES: usize = 8 << 20;
const TURN: Duration = Duration::from_millis(80);
const ROUNDS: usize = 5;
/// I/Os of a turn in a smoke test.
const SMOKE_IOS: u64 = 4;
const FILL_BYTES: u32 = 1 << 20;
/// I/Os of one worker before other tasks get their turn, for memory makes nobody wait.
const IOS_PER_POLL: u32 = 16;
const INITIATOR: &str = "iqn.2024-12.example.test:bench";
const VERSION: ChunkVersion = ChunkVersion(1);

/// A pattern of I/O.
struct Workload {
    name: &'static str,
    bytes: u32,
    depth: usize,
    random: bool,
}

const WORKLOADS: [Workload; 3] = [
    Workload {
        name: "4 KiB at random, 16 at a time",
        bytes: 4096,
        depth: 16,
        random: true,
    },
    Workload {
        name: "64 KiB in order, 8 at a time",
        bytes: BLOCK_BYTES,
        depth: 8,
        random: false,
    },
    Workload {
        name: "1 MiB in order, 2 at a time",
        bytes: FILL_BYTES,
        depth: 2,
        random: false,
    },
];

/// Data to be written, by length, with the sum of each piece of at most a block.
type Payloads = BTreeMap<u32, Vec<(IoVec, u32)>>;

fn region_bytes() -> u64 {
    sized(REGION_BYTES, REGION_BYTES_SMOKE)
}

fn payloads(pool: &Pool) -> Payloads {
    let payload = |bytes: u32| {
        let pattern = |i: u32| (i.wrapping_mul(0x9E37_79B1) >> 24) as u8;
        let all: Vec<u8> = (0..bytes).map(pattern).collect();
        let pieces = all.chunks(BLOCK_BYTES as usize).map(|piece| {
            let data = pool.copy_now(piece);
            let crc = crc32_iovec(&data);
            (data, crc)
        });
        pieces.collect()
    };
    WORKLOADS
        .iter()
        .map(|w| (w.bytes, payload(w.bytes)))
        .collect()
}

/// What takes I/O.
trait Subject: 'static {
    /// Reads `bytes` bytes at byte `at`.
    fn read(&self, at: u64, bytes: u32) -> impl Future<Output = ()>;

    /// Writes the pieces at byte `at`.
    fn write(&self, at: u64, pieces: &[(IoVec, u32)]) -> impl Future<Output = ()>;
}

/// The bare device.
struct Bare(Rc<dyn BlockDevice>);

impl Subject for Bare {
    async fn read(&self, at: u64, bytes: u32) {
        let op = Op::Read {
            at: Sector::from_bytes(at),
            sectors: bytes / SECTOR_BYTES as u32,
        };
        let done = self.0.submit(op, IoCtx::foreground()).await;
        let data = done.expect("read").into_data();
        assert_eq!(data.len(), bytes as usize);
        // Positions in memory, not what the list says of itself: see `buffer_alignment`.
        let first = data.segments().next().map_or(0, |s| s.as_ptr() as usize);
        assert_eq!(
            first % blockdev::PAGE_BYTES,
            0,
            "payload off a page's start"
        );
    }

    async fn write(&self, at: u64, pieces: &[(IoVec, u32)]) {
        let mut data = IoVec::new();
        for (piece, _) in pieces {
            data.append(piece);
        }
        let op = Op::Write {
            at: Sector::from_bytes(at),
            data,
            want: Default::default(),
        };
        let done = self.0.submit(op, IoCtx::foreground()).await;
        done.expect("written");
    }
}

/// The store on such a device.
struct Stored(Rc<Store>);

/// Chunk, block and offset of a byte of the region.
fn place(at: u64) -> (ChunkId, u16, u32) {
    let (chunk, within) = (at / u64::from(CHUNK_BYTES), at as u32 % CHUNK_BYTES);
    let block = (within / BLOCK_BYTES) as u16;
    (ChunkId(chunk + 1), block, within % BLOCK_BYTES)
}

impl Subject for Stored {
    async fn read(&self, at: u64, bytes: u32) {
        let read = |from: u64| {
            let (id, block, offset) = place(from);
            let size = bytes.min(BLOCK_BYTES - offset);
            self.0.read(id, VERSION, block, offset, size)
        };
        let step = BLOCK_BYTES as usize;
        let pieces: Vec<_> = (at..at + u64::from(bytes))
            .step_by(step)
            .map(read)
            .collect();
        for piece in pieces {
            piece.await.expect("read");
        }
    }

    async fn write(&self, at: u64, pieces: &[(IoVec, u32)]) {
        let mut at = at;
        let write = |(data, crc): &(IoVec, u32)| {
            let (id, block, offset) = place(at);
            at += data.len() as u64;
            self.0.write(id, VERSION, block, offset, data.clone(), *crc)
        };
        let pieces: Vec<_> = pieces.iter().map(write).collect();
        for piece in pieces {
            piece.await.expect("written");
        }
    }
}

/// One workload on one subject.
struct Run<S> {
    subject: Rc<S>,
    payload: Vec<(IoVec, u32)>,
    next: Cell<u64>,
    ios: Cell<u64>,
}

/// What the turns of one candidate cost, each an entry.
#[derive(Default)]
struct Costs {
    wall_ns: Vec<f64>,
    cpu_ns: Vec<f64>,
    /// CPU time of the target beside time.
    target_load: Vec<f64>,
}

impl<S: Subject> Run<S> {
    fn new(subject: &Rc<S>, payloads: &Payloads, workload: &Workload) -> Rc<Run<S>> {
        Rc::new(Run {
            subject: subject.clone(),
            payload: payloads[&workload.bytes].clone(),
            next: Cell::new(0),
            ios: Cell::new(0),
        })
    }

    /// The byte of the next I/O. At random means: far from the last one, and every place once before
    /// one comes again.
    fn place(&self, workload: &Workload) -> u64 {
        let places = region_bytes() / u64::from(workload.bytes);
        let next = self.next.replace(self.next.get() + 1);
        let step = if workload.random { 7919 } else { 1 };
        next.wrapping_mul(step) % places * u64::from(workload.bytes)
    }

    async fn work(&self, rt: &Rt, workload: &Workload, writes: bool, stop_at: blockdev::Instant) {
        let is_over = || match benches::is_smoke() {
            true => self.ios.get() >= SMOKE_IOS,
            false => rt.now() >= stop_at,
        };
        let mut since_yield = 0;
        while !is_over() {
            let at = self.place(workload);
            match writes {
                true => self.subject.write(at, &self.payload).await,
                false => self.subject.read(at, workload.bytes).await,
            }
            self.ios.set(self.ios.get() + 1);
            since_yield += 1;
            if since_yield % IOS_PER_POLL == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn turn(
        self: &Rc<Self>,
        rt: &Rt,
        workload: &'static Workload,
        writes: bool,
        target: Option<u32>,
        costs: &mut Costs,
    ) {
        self.ios.set(0);
        let target_cpu = || target.map_or(Duration::ZERO, |pid| process_cpu(Some(pid)));
        let (begin, cpu, theirs) = (clock(), process_cpu(None), target_cpu());
        let stop_at = rt.now() + TURN;
        let workers: Vec<_> = (0..workload.depth)
            .map(|_| {
                let (run, rt) = (self.clone(), rt.clone());
                let work = async move { run.work(&rt, workload, writes, stop_at).await };
                tokio::task::spawn_local(work)
            })
            .collect();
        for worker in workers {
            worker.await.expect("a worker that does not panic");
        }
        let wall = begin.elapsed();
        let (cpu, theirs) = (process_cpu(None) - cpu, target_cpu() - theirs);
        let ios = self.ios.get() as f64;
        costs.wall_ns.push(wall.as_nanos() as f64 / ios);
        costs.cpu_ns.push(cpu.as_nanos() as f64 / ios);
        costs
            .target_load
            .push(theirs.as_secs_f64() / wall.as_secs_f64());
    }
}

fn print(name: &str, bytes: u32, costs: Costs, bare: Option<(f64, f64)>) -> (f64, f64) {
    let wall = Measured::of(costs.wall_ns);
    let cpu = Measured::of(costs.cpu_ns);
    let target = Measured::of(costs.target_load);
    let (bare_wall, bare_cpu) = bare.unwrap_or((wall.median_ns, cpu.median_ns));
    let mb_s = f64::from(bytes) * 1e3 / wall.median_ns;
    print!(
        "  {name:<6} {:>10} ({} .. {})  x {:.2}   {mb_s:>6.0} MB/s   CPU {:>10} ({} .. {})",
        show(wall.median_ns),
        show(wall.low_ns),
        show(wall.high_ns),
        wall.median_ns / bare_wall,
        show(cpu.median_ns),
        show(cpu.low_ns),
        show(cpu.high_ns),
    );
    if bare.is_some() {
        print!("  its own {:+.2} us", (cpu.median_ns - bare_cpu) / 1e3);
    }
    // Of all CPUs; one thread of the target does all its network I/O.
    if target.median_ns > 0.0 {
        print!("   tgtd {:.0} % of a CPU", target.median_ns * 100.0);
    }
    println!();
    (wall.median_ns, cpu.median_ns)
}

/// Fills the region, so that no read meets a hole.
async fn fill<S: Subject>(subject: &S, payloads: &Payloads) {
    for at in (0..region_bytes()).step_by(FILL_BYTES as usize) {
        subject.write(at, &payloads[&FILL_BYTES]).await;
    }
}

async fn store_on(rt: &Rt, pool: &Pool, device: Rc<dyn BlockDevice>) -> Rc<Store> {
    let mirror = SingleLeg::new(device, rt.clone());
    let params = FormatParams::new("bench", [1; 16], [2; 16]);
    let formatted = format(mirror.clone(), pool, &params).await;
    formatted.expect("formatted");
    let options = Options {
        cache_bytes: CACHE_BYTES,
        ..Options::default()
    };
    let store = Store::open(mirror, rt.clone(), pool.clone(), options).await;
    let store = store.expect("opened");
    for chunk in 0..REGION_BYTES / u64::from(CHUNK_BYTES) {
        let created = store.create(ChunkId(chunk + 1), VERSION).await;
        created.expect("created");
    }
    store
}

/// Measures on two devices of one kind; `target` is the process behind them.
async fn compare(
    kind: &str,
    rt: &Rt,
    pool: &Pool,
    [below, beside]: [Rc<dyn BlockDevice>; 2],
    target: Option<u32>,
) {
    let payloads = payloads(pool);
    let bare = Rc::new(Bare(beside));
    let stored = Rc::new(Stored(store_on(rt, pool, below).await));
    fill(&*bare, &payloads).await;
    fill(&*stored, &payloads).await;
    for workload in &WORKLOADS {
        for writes in [false, true] {
            let on_bare = Run::new(&bare, &payloads, workload);
            let on_store = Run::new(&stored, &payloads, workload);
            let (mut bare_costs, mut store_costs) = (Costs::default(), Costs::default());
            // The first turn warms up.
            for round in 0..=rounds(ROUNDS) {
                if round == 1 {
                    (bare_costs, store_costs) = (Costs::default(), Costs::default());
                }
                on_bare
                    .turn(rt, workload, writes, target, &mut bare_costs)
                    .await;
                on_store
                    .turn(rt, workload, writes, target, &mut store_costs)
                    .await;
            }
            let action = if writes { "write" } else { "read" };
            println!(
                "\n{kind}: {action} {}, time and CPU time of one",
                workload.name
            );
            let base = print("bare", workload.bytes, bare_costs, None);
            print("store", workload.bytes, store_costs, Some(base));
        }
    }
    stored.0.stop().await.expect("stopped");
}

/// Payload memory of a run.
fn pool() -> Pool {
    let pool = Pool::new(256 << 20);
    pool.prefault(sized(64 << 20, 0));
    pool
}

fn on_memory() {
    run_shard(|rt| async move {
        let pool = pool();
        let device = || -> Rc<dyn BlockDevice> {
            let geometry = Geometry::plain(DEVICE_BYTES / SECTOR_BYTES);
            let timing = MemTiming::default();
            Rc::new(MemDevice::new(rt.clone(), pool.clone(), geometry, timing))
        };
        compare("memory", &rt, &pool, [device(), device()], None).await;
    })
    .expect("a shard");
}

fn on_file(scratch: &Scratch) {
    run_shard(|rt| async move {
        let pool = pool();
        let mut devices = Vec::new();
        for name in ["store.img", "bare.img"] {
            let options = LocalOptions {
                create_bytes: Some(DEVICE_BYTES),
                ..LocalOptions::new(scratch.dir().join(name))
            };
            let device = LocalDevice::open(&rt, &pool, &options).await;
            devices.push(Rc::new(device.expect("opened")));
        }
        let [below, beside] = [devices[0].clone(), devices[1].clone()];
        compare("file", &rt, &pool, [below, beside], None).await;
    })
    .expect("a shard");
}

fn on_tgt(scratch: &Scratch) {
    let port = free_ports(1)[0];
    let portal = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let target = "iqn.2024-12.example.test:bench-store";
    let mut spec = TgtSpec::single("bench-store", target, &[portal], DEVICE_BYTES);
    spec.units.push(Unit {
        lun: 2,
        serial: "bench-store-2".to_owned(),
        ..spec.units[0].clone()
    });
    let tgt = Tgt::start(scratch, Place::host(), spec);
    run_shard(|rt| async move {
        let pool = pool();
        let net = Rc::new(TcpNet);
        let initiator = Initiator::new(rt.clone(), net, pool.clone(), INITIATOR);
        let unit = |lun: u64| {
            let path = PortConfig {
                portal: Portal {
                    address: (*portal.ip()).into(),
                    port: portal.port(),
                },
                source: None,
                target: target.to_owned(),
                lun,
                role: Role::Serve,
                shard: 0,
            };
            let path = IscsiPort::new(initiator.clone(), path).expect("a small LUN");
            let paths: Vec<Rc<dyn PathPort>> = vec![Rc::new(path)];
            let config = mpath::Config::new(format!("lun{lun}"), INITIATOR);
            Rc::new(MultipathDevice::new(rt.clone(), config, paths))
        };
        let (below, beside) = (unit(1), unit(2));
        for device in [&below, &beside] {
            let deadline = rt.now() + Duration::from_secs(10);
            device.opened(deadline).await.expect("logged in");
        }
        let devices: [Rc<dyn BlockDevice>; 2] = [below.clone(), beside.clone()];
        compare("tgt", &rt, &pool, devices, Some(tgt.pid())).await;
        below.close().await;
        beside.close().await;
    })
    .expect("a shard");
}

fn main() {
    if is_chosen("memory") {
        on_memory();
    }
    if is_chosen("file") {
        on_file(&Scratch::shared());
    }
    if is_chosen("tgt") {
        on_tgt(&Scratch::shared());
    }
}
