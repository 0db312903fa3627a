//! Multipath over real tgt: a path that is cut silently under load, and writes that a network, a
//! socket or a back end delivers long after they were given up.
//!
//! Each ghost is shown twice. With the fence the newer bytes stay. Without what makes it one (the
//! barrier, the same ISIDs, the recorded ISIDs) the very same course of events leaves the older
//! bytes on the unit, so the rig does what it claims.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use blockdev::driver::run_shard;
use blockdev::path::{Isid, PathPort};
use blockdev::{
    BlockDevice, Durability, Instant, IoCtx, IoError, IoResult, Kind, Op, Pool, Rt, Sector,
};
use harness::clock::{pause, wait_until};
use harness::holding_proxy::HoldingProxy;
use harness::scratch::Scratch;
use harness::site::one_storage_node;
use harness::slow_backend::SlowBackend;
use harness::tgt::{free_ports, Tgt, TgtSpec};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::path::{IscsiPort, PortConfig};
use iscsi_initiator::tcp::TcpNet;
use mpath::{Config, DeviceState, FencePolicy, MultipathDevice};

const TARGET: &str = "iqn.2024-12.example.test:paths";
const INITIATOR: &str = "iqn.2024-12.example.test:node1";
const OTHER_NODE: &str = "iqn.2024-12.example.test:node2";
const UNIT_BYTES: u64 = 64 << 20;
/// The block that every ghost is about.
const PLACE: Sector = Sector(800);
const BLOCK_SECTORS: u32 = 8;
/// Bytes of a WRITE of one block on the wire, header included.
const WRITE_BYTES: u64 = 4096 + 48;
/// A write that waited in the back end lands this much after the gate is opened.
const LATE: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What of the fence there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Care {
    /// All of it.
    All,
    /// Reinstatement, but no barrier after it.
    NoBarrier,
    /// The newer write comes under ISIDs of which nobody has told the fence.
    OtherIsids,
}

/// Opens a device of `initiator` over these portals.
fn device(
    rt: &Rt,
    pool: &Pool,
    initiator: &str,
    portals: &[SocketAddrV4],
    care: Care,
) -> Rc<MultipathDevice> {
    let ports = portals.iter().map(|portal| {
        let net = Rc::new(TcpNet);
        let own = Initiator::new(rt.clone(), net, pool.clone(), initiator);
        let config = PortConfig {
            portal: portal.to_string().parse().unwrap(),
            source: None,
            target: TARGET.to_owned(),
            lun: 1,
            role: Role::Serve,
            // The shard is part of the ISID.
            shard: u32::from(care == Care::OtherIsids),
        };
        Rc::new(IscsiPort::new(own, config).unwrap()) as Rc<dyn PathPort>
    });
    let config = Config {
        polling_interval: Duration::from_secs(1),
        fence: match care {
            Care::NoBarrier => FencePolicy::None,
            Care::All | Care::OtherIsids => FencePolicy::Auto,
        },
        // With `fence = "none"` no wait at all, so that nothing stands in for the barrier.
        fence_assume: ms(1),
        ..Config::new("sto1", initiator)
    };
    Rc::new(MultipathDevice::new(rt.clone(), config, ports.collect()))
}

async fn opened(rt: &Rt, device: &MultipathDevice, paths: usize) {
    let deadline = rt.now() + MINUTE;
    device.opened(deadline).await.unwrap();
    while active_paths(device) < paths {
        assert!(rt.now() < deadline, "{:?}", device.snapshot());
        rt.sleep(ms(10)).await;
    }
}

fn active_paths(device: &MultipathDevice) -> usize {
    let groups = device.snapshot().groups;
    let paths = groups.iter().flat_map(|g| &g.paths);
    paths.filter(|p| p.is_active).count()
}

// ---- ghosts -----------------------------------------------------------------------------------

/// One storage node with two portals on loopback, the first behind a network that holds.
struct Haunted {
    proxy: HoldingProxy,
    backend: SlowBackend,
    tgt: RefCell<Tgt>,
    direct: SocketAddrV4,
    _scratch: Scratch,
}

impl Haunted {
    fn new() -> Haunted {
        let scratch = Scratch::shared();
        let backend = SlowBackend::build(&scratch, LATE);
        let ports = free_ports(2);
        let portals = [0, 1].map(|n| SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports[n]));
        let spec = TgtSpec {
            environment: backend.environment(),
            ..TgtSpec::single("sto1", TARGET, &portals, UNIT_BYTES)
        };
        let tgt = Tgt::start(&scratch, harness::net::Place::host(), spec);
        Haunted {
            proxy: HoldingProxy::start(portals[0]),
            backend,
            tgt: RefCell::new(tgt),
            direct: portals[1],
            _scratch: scratch,
        }
    }

    fn portals(&self) -> [SocketAddrV4; 2] {
        [self.proxy.address(), self.direct]
    }
}

/// A node that writes blocks of one number each.
struct Node {
    rt: Rt,
    pool: Pool,
    device: Rc<MultipathDevice>,
}

impl Node {
    async fn start(rt: &Rt, name: &str, portals: &[SocketAddrV4], care: Care) -> Node {
        let pool = Pool::new(64 << 20);
        let device = device(rt, &pool, name, portals, care);
        opened(rt, &device, 1).await;
        Node {
            rt: rt.clone(),
            pool,
            device,
        }
    }

    fn write(&self, fill: u8, deadline: Instant) -> blockdev::Completion {
        let op = Op::Write {
            at: PLACE,
            data: self.pool.copy_now(&[fill; 4096]),
            want: Durability::Cache,
        };
        let ctx = IoCtx {
            deadline,
            ..IoCtx::foreground()
        };
        self.device.submit(op, ctx)
    }

    /// A write that is given up unanswered.
    async fn write_in_vain(&self, fill: u8) {
        let error = self.write(fill, self.rt.now() + ms(400)).await.unwrap_err();
        assert_eq!(error, IoError::unknown(Kind::Late));
    }

    async fn read(&self) -> u8 {
        let op = Op::Read {
            at: PLACE,
            sectors: BLOCK_SECTORS,
        };
        let data = self.device.submit(op, IoCtx::foreground()).await.unwrap();
        let bytes = data.into_data().to_vec();
        assert!(bytes.iter().all(|b| *b == bytes[0]), "a torn block");
        bytes[0]
    }

    async fn fence(&self) -> IoResult {
        self.device.submit(Op::Fence, IoCtx::metadata()).await
    }
}

async fn until(rt: &Rt, what: &str, holds: impl Fn() -> bool) {
    let deadline = rt.now() + MINUTE;
    while !holds() {
        assert!(rt.now() < deadline, "waited in vain for {what}");
        rt.sleep(ms(2)).await;
    }
}

/// Plays a course of events against a fresh tgt and yields what the block holds at the end.
fn play<F>(care: Care, course: impl FnOnce(Rt, Rc<Haunted>, Care) -> F) -> u8
where
    F: std::future::Future<Output = u8>,
{
    let haunted = Rc::new(Haunted::new());
    run_shard(|rt| course(rt, haunted, care)).unwrap()
}

/// The network keeps all of write 2, delivers it after write 3, which went by the other path.
async fn held_by_the_network(rt: Rt, haunted: Rc<Haunted>, care: Care) -> u8 {
    let node = Node::start(&rt, INITIATOR, &haunted.portals(), care).await;
    opened(&rt, &node.device, 2).await;
    node.write(1, Instant::FAR).await.unwrap();
    haunted.proxy.hold();
    node.write(2, Instant::FAR).await.unwrap();
    assert!(haunted.proxy.held_bytes() >= WRITE_BYTES);
    if care == Care::OtherIsids {
        let stranger = Node::start(&rt, OTHER_NODE, &haunted.portals()[1..], care).await;
        stranger.write(3, Instant::FAR).await.unwrap();
    } else {
        node.write(3, Instant::FAR).await.unwrap();
    }
    the_network_heals(&rt, &haunted).await;
    node.read().await
}

/// All that the network held arrives, and whatever it does is done.
async fn the_network_heals(rt: &Rt, haunted: &Haunted) {
    haunted.proxy.deliver();
    until(rt, "the held bytes to be delivered", || {
        haunted.proxy.held_bytes() == 0
    })
    .await;
    rt.sleep(ms(300)).await;
    haunted.proxy.reopen();
}

/// The back end has write 2 and hangs; the path is cut; the back end goes on, but write 2 comes
/// last unless the barrier waits for it.
async fn held_by_the_back_end(rt: Rt, haunted: Rc<Haunted>, care: Care) -> u8 {
    let node = Node::start(&rt, INITIATOR, &haunted.portals(), care).await;
    opened(&rt, &node.device, 2).await;
    node.write(1, Instant::FAR).await.unwrap();
    haunted.backend.hold();
    let in_vain = node.write_in_vain(2);
    let cut = async {
        until(&rt, "the back end to have the write", || {
            haunted.backend.entered() > 0
        })
        .await;
        haunted.proxy.hold();
    };
    futures_join(in_vain, cut).await;
    // From here on new writes land at once, and those that waited after `LATE`.
    haunted.backend.release();
    node.write(3, Instant::FAR).await.unwrap();
    until(&rt, "the held writes to land", || {
        haunted.backend.left() == haunted.backend.entered()
    })
    .await;
    the_network_heals(&rt, &haunted).await;
    node.read().await
}

/// A node dies with write 2 in the network; its successor knows nothing of it, fences, writes 3.
async fn left_by_a_dead_node(rt: Rt, haunted: Rc<Haunted>, care: Care) -> u8 {
    let node = Node::start(&rt, INITIATOR, &haunted.portals(), Care::All).await;
    opened(&rt, &node.device, 2).await;
    node.write(1, Instant::FAR).await.unwrap();
    haunted.proxy.hold();
    // Twice: the reset of the start-up fence leaves a unit attention for the old session, which
    // refuses the first command that arrives on it.
    drop([(); 2].map(|()| node.write(2, Instant::FAR)));
    until(&rt, "the network to hold the writes", || {
        haunted.proxy.held_bytes() >= 2 * WRITE_BYTES
    })
    .await;
    drop(node);
    let successor = Node::start(&rt, INITIATOR, &haunted.portals(), care).await;
    successor.fence().await.unwrap();
    successor.write(3, Instant::FAR).await.unwrap();
    the_network_heals(&rt, &haunted).await;
    successor.read().await
}

/// Another node takes over, by the recorded ISIDs, while the first one lives behind its cut.
async fn taken_over(rt: Rt, haunted: Rc<Haunted>, care: Care) -> u8 {
    let old = Node::start(&rt, INITIATOR, &haunted.portals()[..1], Care::All).await;
    old.write(1, Instant::FAR).await.unwrap();
    haunted.proxy.hold();
    let stuck = old.write(2, Instant::FAR);
    until(&rt, "the network to hold the write", || {
        haunted.proxy.held_bytes() >= WRITE_BYTES
    })
    .await;
    let recorded: Vec<(String, Isid)> = old
        .device
        .isids()
        .into_iter()
        .map(|isid| (INITIATOR.to_owned(), isid))
        .collect();
    let new = Node::start(&rt, OTHER_NODE, &haunted.portals()[1..], care).await;
    if care != Care::OtherIsids {
        new.device.startup_fence(recorded);
    }
    new.fence().await.unwrap();
    new.write(3, Instant::FAR).await.unwrap();
    the_network_heals(&rt, &haunted).await;
    // The old owner's gate would refuse it from here on; this one has none, so it ends now.
    drop((stuck, old));
    new.read().await
}

#[test]
fn a_write_held_by_the_network_never_lands_after_the_fence() {
    assert_eq!(play(Care::All, held_by_the_network), 3);
    assert_eq!(play(Care::OtherIsids, held_by_the_network), 2, "control");
}

#[test]
fn a_write_held_by_the_back_end_never_lands_after_the_fence() {
    assert_eq!(play(Care::All, held_by_the_back_end), 3);
    assert_eq!(play(Care::NoBarrier, held_by_the_back_end), 2, "control");
}

#[test]
fn a_write_of_a_dead_node_never_lands_after_the_start_up_fence() {
    assert_eq!(play(Care::All, left_by_a_dead_node), 3);
    assert_eq!(play(Care::OtherIsids, left_by_a_dead_node), 2, "control");
}

#[test]
fn a_write_of_the_old_owner_never_lands_after_a_take_over() {
    assert_eq!(play(Care::All, taken_over), 3);
    assert_eq!(play(Care::OtherIsids, taken_over), 2, "control");
}

/// tgtd is stopped with write 2 in its socket: every path is silent, nothing can be proven, the
/// newer write waits until the daemon runs again, and is the last.
#[test]
fn a_write_in_the_socket_of_a_stopped_target_stays_the_older_one() {
    let last = play(Care::All, |rt, haunted, care| async move {
        let node = Node::start(&rt, INITIATOR, &haunted.portals(), care).await;
        opened(&rt, &node.device, 2).await;
        node.write(1, Instant::FAR).await.unwrap();
        haunted.tgt.borrow_mut().freeze();
        node.write_in_vain(2).await;
        let newer = Rc::new(Cell::new(false));
        let write = node.write(3, Instant::FAR);
        let is_done = newer.clone();
        rt.spawn(async move {
            write.await.unwrap();
            is_done.set(true);
        });
        rt.sleep(Duration::from_secs(3)).await;
        assert!(
            !newer.get(),
            "nothing is proven while the target is stopped"
        );
        haunted.tgt.borrow_mut().thaw();
        until(&rt, "the newer write", || newer.get()).await;
        rt.sleep(ms(500)).await;
        node.read().await
    });
    assert_eq!(last, 3);
}

/// Both to their ends.
async fn futures_join(
    a: impl std::future::Future<Output = ()>,
    b: impl std::future::Future<Output = ()>,
) {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    let (mut a_done, mut b_done) = (false, false);
    std::future::poll_fn(|cx| {
        a_done = a_done || a.as_mut().poll(cx).is_ready();
        b_done = b_done || b.as_mut().poll(cx).is_ready();
        if a_done && b_done {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

// ---- a path under load ------------------------------------------------------------------------

const WORKERS: u64 = 16;
/// Blocks of one worker; it writes and reads back its own alone.
const BLOCKS_OF_A_WORKER: u64 = 8;

/// What the shard tells the test, which runs on another thread because it calls `ip`.
#[derive(Default)]
struct Told {
    ios: AtomicU64,
    /// Index of the network of the path in use.
    in_use: AtomicU64,
    active_paths: AtomicU64,
    failures: AtomicU64,
    stop: AtomicBool,
}

fn block(worker: u64, index: u64) -> Sector {
    Sector((worker * BLOCKS_OF_A_WORKER + index) * u64::from(BLOCK_SECTORS))
}

fn content(worker: u64, index: u64, generation: u64) -> Vec<u8> {
    let words = [worker, index, generation];
    let bytes = words.iter().flat_map(|w| w.to_be_bytes());
    bytes.cycle().take(4096).collect()
}

async fn work(node: Rc<Node>, worker: u64, told: Arc<Told>) {
    let mut generation = 0;
    while !told.stop.load(Ordering::Acquire) {
        generation += 1;
        let index = generation % BLOCKS_OF_A_WORKER;
        let at = block(worker, index);
        let bytes = content(worker, index, generation);
        let op = Op::Write {
            at,
            data: node.pool.copy_now(&bytes),
            want: Durability::Cache,
        };
        node.device.submit(op, IoCtx::foreground()).await.unwrap();
        let op = Op::Read {
            at,
            sectors: BLOCK_SECTORS,
        };
        let read = node.device.submit(op, IoCtx::foreground()).await.unwrap();
        assert!(read.into_data().to_vec() == bytes, "worker {worker}");
        told.ios.fetch_add(2, Ordering::AcqRel);
    }
}

async fn serve_load(rt: Rt, portals: Vec<SocketAddrV4>, told: Arc<Told>) {
    let node = Rc::new(Node::start(&rt, INITIATOR, &portals, Care::All).await);
    opened(&rt, &node.device, portals.len()).await;
    let left = Rc::new(Cell::new(WORKERS));
    for worker in 0..WORKERS {
        let (node, told, left) = (node.clone(), told.clone(), left.clone());
        rt.spawn(async move {
            work(node, worker, told).await;
            left.set(left.get() - 1);
        });
    }
    while left.get() > 0 {
        let snapshot = node.device.snapshot();
        let active = snapshot
            .groups
            .iter()
            .position(|g| g.state == mpath::GroupState::Active);
        let paths = || snapshot.groups.iter().flat_map(|g| &g.paths);
        let failures = paths().map(|p| p.counters.failures).sum();
        told.in_use
            .store(active.map_or(u64::MAX, |g| g as u64), Ordering::Release);
        told.active_paths
            .store(active_paths(&node.device) as u64, Ordering::Release);
        told.failures.store(failures, Ordering::Release);
        rt.sleep(ms(20)).await;
    }
    assert_eq!(node.device.snapshot().state, DeviceState::Ready);
    node.device
        .submit(Op::Flush, IoCtx::foreground())
        .await
        .unwrap();
    node.device.close().await;
}

/// Silent cuts of the path in use, in turns, under 4 KiB at depth 16: the load goes on, the path is
/// failed, and reinstated after the cut.
#[test]
fn silent_cuts_of_the_path_in_use_under_load() {
    let scratch = Scratch::exclusive();
    let (net, portals) = one_storage_node(&scratch);
    let spec = TgtSpec::single("sto1", TARGET, &portals, UNIT_BYTES);
    let _tgt = Tgt::start(&scratch, net.place("sto1"), spec);
    let told = Arc::<Told>::default();
    let shard = {
        let (place, told) = (net.place("cs"), told.clone());
        std::thread::spawn(move || {
            place.enter(|| run_shard(|rt| serve_load(rt, portals, told)).unwrap());
        })
    };
    let look = |of: &AtomicU64| of.load(Ordering::Acquire);
    let progress = |more: u64| {
        let before = look(&told.ios);
        wait_until("the load to go on", MINUTE, || {
            assert!(!shard.is_finished(), "the load met an error");
            look(&told.ios) >= before + more
        });
    };
    progress(1000);
    for _ in 0..3 {
        wait_until("a path in use", MINUTE, || look(&told.in_use) < 2);
        let link = format!("san{}", look(&told.in_use));
        let failures = look(&told.failures);
        net.cut(&link);
        progress(1000);
        wait_until("the path to be failed", MINUTE, || {
            look(&told.failures) == failures + 1 && look(&told.active_paths) == 1
        });
        progress(1000);
        net.restore(&link);
        wait_until("the path to be reinstated", MINUTE, || {
            look(&told.active_paths) == 2
        });
        progress(1000);
        pause(ms(100));
    }
    told.stop.store(true, Ordering::Release);
    shard.join().unwrap();
}
