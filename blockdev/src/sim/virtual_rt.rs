//! A runtime whose clock moves only when nothing is left to do.
//!
//! Tasks run on this thread, by default in the order in which they were woken; with
//! [`VirtualRt::shuffled`] the next one is drawn by the seed, which explores schedules. When no
//! task is ready the clock jumps to the next timer.

use crate::rt::{Runtime, Timed, Wall};
use crate::{Instant, LocalFuture, Rt};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct VirtualRt {
    world: Rc<World>,
}

struct World {
    now: Cell<Instant>,
    random: Cell<u64>,
    shuffle: bool,
    tasks: RefCell<BTreeMap<u64, Task>>,
    next_task: Cell<u64>,
    ready: Arc<Mutex<Vec<u64>>>,
    timers: RefCell<BinaryHeap<Reverse<(Instant, u64)>>>,
    armed: RefCell<BTreeMap<u64, Armed>>,
    next_timer: Cell<u64>,
    /// 2026-01-01 00:00:00 UTC plus virtual time.
    wall_base_us: u64,
}

/// Whom to tell, and the token to tell.
type Armed = (Weak<dyn Timed>, u64);

struct Task {
    future: LocalFuture<()>,
    waker: Waker,
}

struct Ready {
    task: u64,
    queue: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        let mut queue = self.queue.lock().expect("ready queue");
        if !queue.contains(&self.task) {
            queue.push(self.task);
        }
    }
}

impl VirtualRt {
    /// A world at time zero; `seed` feeds [`Runtime::random`].
    pub fn new(seed: u64) -> VirtualRt {
        Self::with(seed, false)
    }

    /// The same, and the order of ready tasks is drawn from the seed.
    pub fn shuffled(seed: u64) -> VirtualRt {
        Self::with(seed, true)
    }

    fn with(seed: u64, shuffle: bool) -> VirtualRt {
        let world = World {
            now: Cell::new(Instant(1)),
            random: Cell::new(seed ^ 0x9E37_79B9_7F4A_7C15),
            shuffle,
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            ready: Arc::default(),
            timers: RefCell::default(),
            armed: RefCell::default(),
            next_timer: Cell::new(0),
            wall_base_us: 1_767_225_600_000_000,
        };
        VirtualRt {
            world: Rc::new(world),
        }
    }

    /// The handle that layers take.
    pub fn rt(&self) -> Rt {
        Rt::new(self.world.clone())
    }

    /// Virtual time now.
    pub fn now(&self) -> Instant {
        self.world.now.get()
    }

    /// Runs a task; its output is kept for whoever awaits the handle.
    pub fn spawn_handle<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Handle<T> {
        let slot: Rc<Slot<T>> = Rc::new(Slot {
            value: RefCell::default(),
            waker: RefCell::default(),
        });
        let filled = slot.clone();
        self.world.spawn(Box::pin(async move {
            let value = future.await;
            *filled.value.borrow_mut() = Some(value);
            if let Some(waker) = filled.waker.borrow_mut().take() {
                waker.wake();
            }
        }));
        Handle { slot }
    }

    /// Runs until `future` is done, moving the clock as needed.
    ///
    /// # Panics
    /// If nothing is left that could ever wake it.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let handle = self.spawn_handle(future);
        loop {
            self.run_ready();
            if let Some(value) = handle.slot.value.borrow_mut().take() {
                return value;
            }
            assert!(
                self.advance(Instant::FAR),
                "deadlock: no task is ready and no timer is armed"
            );
        }
    }

    /// Runs every ready task until none is; the clock stands still.
    pub fn run_ready(&self) {
        while let Some(id) = self.world.pick() {
            let Some(mut task) = self.world.tasks.borrow_mut().remove(&id) else {
                continue;
            };
            let waker = task.waker.clone();
            if task
                .future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
            {
                self.world.tasks.borrow_mut().insert(id, task);
            }
        }
    }

    /// Runs everything that happens within `time`.
    pub fn run_for(&self, time: Duration) {
        let end = self.now() + time;
        self.run_ready();
        while self.advance(end) {
            self.run_ready();
        }
        self.world.now.set(end);
    }

    /// Moves the clock without running anything: a stall of this process.
    pub fn stall(&self, time: Duration) {
        self.world.now.set(self.now() + time);
    }

    /// Drops every task and timer at once, as a killed process does.
    pub fn kill(&self) {
        loop {
            // Dropping a task may wake or spawn others; go on until nothing is left.
            let tasks = std::mem::take(&mut *self.world.tasks.borrow_mut());
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
        self.world.ready.lock().expect("ready queue").clear();
        self.world.timers.borrow_mut().clear();
        self.world.armed.borrow_mut().clear();
    }

    /// Tasks alive.
    pub fn tasks(&self) -> usize {
        self.world.tasks.borrow().len()
    }

    /// Jumps to the next timer, if it is due by `until`, and fires it.
    fn advance(&self, until: Instant) -> bool {
        let world = &self.world;
        let Some(Reverse((at, id))) = world.timers.borrow().peek().copied() else {
            return false;
        };
        if at > until {
            return false;
        }
        world.timers.borrow_mut().pop();
        world.now.set(world.now.get().max(at));
        let armed = world.armed.borrow_mut().remove(&id);
        if let Some((owner, token)) = armed {
            if let Some(owner) = owner.upgrade() {
                owner.fire(token, at);
            }
        }
        true
    }
}

impl World {
    fn pick(&self) -> Option<u64> {
        let mut queue = self.ready.lock().expect("ready queue");
        if queue.is_empty() {
            return None;
        }
        let at = if self.shuffle {
            (self.random() % queue.len() as u64) as usize
        } else {
            0
        };
        Some(queue.remove(at))
    }
}

impl Runtime for World {
    fn now(&self) -> Instant {
        self.now.get()
    }

    fn wall(&self) -> Wall {
        Wall(self.wall_base_us + self.now.get().0 / 1000)
    }

    fn arm(&self, at: Instant, owner: Weak<dyn Timed>, token: u64) {
        let id = self.next_timer.replace(self.next_timer.get() + 1);
        self.armed.borrow_mut().insert(id, (owner, token));
        self.timers
            .borrow_mut()
            .push(Reverse((at.max(self.now.get()), id)));
    }

    fn spawn(&self, future: LocalFuture<()>) {
        let id = self.next_task.replace(self.next_task.get() + 1);
        let waker = Waker::from(Arc::new(Ready {
            task: id,
            queue: self.ready.clone(),
        }));
        self.tasks.borrow_mut().insert(
            id,
            Task {
                future,
                waker: waker.clone(),
            },
        );
        waker.wake();
    }

    /// SplitMix64.
    fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.random.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

struct Slot<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

/// The output of a spawned task; dropping it detaches.
pub struct Handle<T> {
    slot: Rc<Slot<T>>,
}

impl<T> Handle<T> {
    /// The output, if the task is done and nobody took it yet.
    pub fn try_take(&self) -> Option<T> {
        self.slot.value.borrow_mut().take()
    }
}

impl<T> Future for Handle<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match self.slot.value.borrow_mut().take() {
            Some(value) => Poll::Ready(value),
            None => {
                *self.slot.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_moves_only_between_events() {
        let world = VirtualRt::new(1);
        let rt = world.rt();
        let took = world.block_on(async move {
            let begin = rt.now();
            rt.sleep(Duration::from_secs(3600)).await;
            rt.now() - begin
        });
        assert_eq!(took, Duration::from_secs(3600));
    }

    #[test]
    fn a_ready_result_wins_over_a_passed_deadline() {
        let world = VirtualRt::new(1);
        let rt = world.rt();
        let late = Instant(0);
        assert_eq!(
            world.block_on(async move { rt.by(late, async { 5 }).await }),
            Ok(5)
        );
    }

    #[test]
    fn a_stall_shows_as_lateness() {
        let world = VirtualRt::new(1);
        let rt = world.rt();
        let sleeper = world.spawn_handle(async move { rt.sleep(Duration::from_millis(5)).await });
        world.run_ready();
        world.stall(Duration::from_millis(50));
        assert!(world.block_on(sleeper).is_own_stall());
    }
}
