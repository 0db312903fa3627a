//! A load on a thread of its own, and what is seen of it while something is broken.

use super::storage::{Plan, Storage};
use benches::rounds;
use blockdev::driver::run_shard;
use blockdev::{BlockDevice, Durability, IoCtx, Op, Pool, Rt, Sector};
use harness::clock::{pause, try_wait};
use harness::net::Place;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DEPTH: u64 = 16;
const BLOCK_SECTORS: u32 = 8;
/// Blocks of a worker that does not overwrite at once.
const BLOCKS: u64 = 500;
const FAULTS: usize = 30;
/// A stall is over long before this; the fault lasts as long.
const FAULT: Duration = Duration::from_millis(1200);
const PATIENCE: Duration = Duration::from_secs(120);

/// What the workers do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing.
    Idle,
    /// Reads.
    Reads,
    /// Writes, each block again only after all others.
    Writes,
    /// Each worker writes one block again and again: what is unanswered is overwritten.
    Overwrites,
}

const MODES: [Mode; 4] = [Mode::Idle, Mode::Reads, Mode::Writes, Mode::Overwrites];

/// What the shard and the thread that breaks things share.
#[derive(Default)]
struct Shared {
    mode: AtomicU64,
    longest_ns: AtomicU64,
    ios: AtomicU64,
    hedges: AtomicU64,
    failovers: AtomicU64,
    is_whole: AtomicBool,
    in_use: Mutex<Vec<usize>>,
    story: Mutex<String>,
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

/// Opens the storage and works until told to stop.
async fn serve(rt: Rt, plan: Plan, shared: Arc<Shared>) {
    let pool = Pool::new(128 << 20);
    let storage = Storage::open(&rt, &pool, &plan).await;
    for worker in 0..DEPTH {
        let (device, pool) = (storage.device(), pool.clone());
        rt.spawn(work(rt.clone(), device, pool, worker, shared.clone()));
    }
    while !shared.stop.load(Ordering::Acquire) {
        *shared.in_use.lock().expect("not poisoned") = storage.in_use();
        shared.hedges.store(storage.hedges(), Ordering::Release);
        shared
            .failovers
            .store(storage.failovers(), Ordering::Release);
        shared.is_whole.store(storage.is_whole(), Ordering::Release);
        *shared.story.lock().expect("not poisoned") = storage.story();
        rt.sleep(Duration::from_millis(20)).await;
    }
    storage.close().await;
}

async fn work(rt: Rt, device: Rc<dyn BlockDevice>, pool: Pool, worker: u64, shared: Arc<Shared>) {
    let mut turn = 0;
    while !shared.stop.load(Ordering::Acquire) {
        let (blocks, is_read) = match shared.mode() {
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

/// A running load.
pub(crate) struct Bed {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bed {
    /// Opens the storage of `plan` in `place`, and waits until it is whole.
    pub(crate) fn start(place: Place, plan: Plan) -> Bed {
        let shared = Arc::<Shared>::default();
        let own = shared.clone();
        let thread = std::thread::spawn(move || {
            place.enter(|| run_shard(|rt| serve(rt, plan, own)).expect("a shard"));
        });
        let bed = Bed {
            shared,
            thread: Some(thread),
        };
        bed.wait_whole();
        bed
    }

    fn wait_whole(&self) {
        let is_whole = try_wait(PATIENCE, || {
            let thread = self.thread.as_ref().expect("runs until dropped");
            assert!(!thread.is_finished(), "the load met an error");
            self.shared.is_whole.load(Ordering::Acquire).then_some(())
        });
        let is_whole = is_whole.is_some();
        let story = self.shared.story.lock().expect("not poisoned");
        assert!(is_whole, "not whole again after {PATIENCE:?}:\n{story}");
    }

    /// The path in use of a unit.
    pub(crate) fn in_use(&self, node: usize) -> usize {
        self.shared.in_use.lock().expect("not poisoned")[node]
    }

    /// Stalls of so many faults, ascending: `strike` breaks something for the round of that number,
    /// `mend` undoes it.
    pub(crate) fn row(
        &self,
        mode: Mode,
        mut strike: impl FnMut(usize),
        mut mend: impl FnMut(usize),
    ) -> Vec<Duration> {
        let mut stalls = Vec::new();
        for round in 0..rounds(FAULTS) {
            self.shared.set(mode);
            // The first write after a quiet time waits for what nobody broke.
            pause(Duration::from_millis(500));
            self.shared.take_longest();
            strike(round);
            pause(FAULT);
            stalls.push(self.shared.take_longest());
            mend(round);
            // A load that never pauses has the units for itself, and a rebuild hardly any of them.
            self.shared.set(Mode::Idle);
            pause(Duration::from_millis(50));
            self.wait_whole();
        }
        stalls.sort_unstable();
        stalls
    }

    /// Hedged attempts beside I/Os in `time` of a healthy load.
    pub(crate) fn hedges_of(&self, mode: Mode, time: Duration) -> (u64, u64) {
        let counts = || {
            let hedges = self.shared.hedges.load(Ordering::Acquire);
            (hedges, self.shared.ios.load(Ordering::Acquire))
        };
        self.shared.set(mode);
        let (hedges, ios) = counts();
        pause(time);
        self.shared.set(Mode::Idle);
        let (hedges_now, ios_now) = counts();
        (hedges_now - hedges, ios_now - ios)
    }

    /// Changes of the group in use while `flap` works.
    pub(crate) fn switches_during(&self, mode: Mode, flap: impl FnOnce()) -> u64 {
        self.shared.set(mode);
        let before = self.shared.failovers.load(Ordering::Acquire);
        flap();
        let switches = self.shared.failovers.load(Ordering::Acquire) - before;
        self.shared.set(Mode::Idle);
        self.wait_whole();
        switches
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
