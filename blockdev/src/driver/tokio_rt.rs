//! [`Runtime`] on a tokio current-thread runtime: one shard, one thread.
//!
//! Tokio's own timers are as coarse as a millisecond, and `SO_RCVLOWAT` needs a guard of 100 µs;
//! so all timers of a shard share one heap behind one `timerfd`, which epoll reports with the
//! precision of the kernel's high-resolution timers. The descriptor is set only when the earliest
//! time moves forward; it is never read, because every expiry is a new edge for epoll.
//!
//! A timer whose owner is gone is dropped without being fired. Such timers are the rule (deadlines
//! of requests that were answered in time), so the heap is swept whenever it has doubled since the
//! last sweep: its size stays within twice the timers that are alive.
//!
//! A timer that is late has waited for other tasks of this thread, and what the peers sent
//! meanwhile lies in the sockets. The heap therefore lets the event loop read them once more
//! before it fires (P5: sockets are read before any deadline is judged); how late a timer was is
//! told by [`crate::rt::Sleep`] and by the `due` of [`Timed::fire`].

use crate::rt::{pass_turn, Runtime, Timed, Wall};
use crate::{Instant, LocalFuture, Rt};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::task::LocalSet;

/// A batch of timers later than this lets the event loop look at the sockets first.
const LATE_ENOUGH_TO_READ_SOCKETS: Duration = Duration::from_millis(1);
/// The heap is not swept below this many timers.
const SWEEP_MIN: usize = 1024;
/// Random numbers taken from the system at a time.
const RANDOM_BATCH: usize = 32;

/// Runs `main` to its end on a new current-thread runtime, with the [`Rt`] that drives it. What
/// is still running then is dropped before this returns.
///
/// # Errors
/// If the system refuses an epoll instance or a timer descriptor.
pub fn run_shard<F, T>(main: F) -> io::Result<T::Output>
where
    F: FnOnce(Rt) -> T,
    T: Future,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = Rc::new(LocalSet::new());
    let output = {
        let _inside = runtime.enter();
        let shard = TokioRt::start(&tasks)?;
        let rt = Rt::new(shard);
        tasks.block_on(&runtime, async move { main(rt).await })
    };
    // Tasks may hold tokio descriptors, which must go while their reactor is there.
    let _inside = runtime.enter();
    drop(tasks);
    Ok(output)
}

/// The clock, timers, tasks and chance of one shard. See the module.
pub struct TokioRt {
    timers: Rc<Timers>,
    tasks: Weak<LocalSet>,
    random: RefCell<Vec<u64>>,
}

impl TokioRt {
    /// Starts the timers of a shard on `tasks`. To be called inside the tokio runtime that will
    /// run them; [`run_shard`] does both.
    ///
    /// # Errors
    /// If the system refuses a timer descriptor.
    pub fn start(tasks: &Rc<LocalSet>) -> io::Result<Rc<TokioRt>> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let alarm = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        // SAFETY: the descriptor is owned by what is registered and never replaced.
        let alarm = unsafe { AsyncFd::register_with_interest(Alarm(alarm), Interest::READABLE)? };
        let timers = Rc::new(Timers {
            heap: RefCell::default(),
            next: Cell::new(0),
            set_for: Cell::new(Instant::FAR),
            sweep_at: Cell::new(SWEEP_MIN),
            alarm,
        });
        tasks.spawn_local(timers.clone().run());
        Ok(Rc::new(TokioRt {
            timers,
            tasks: Rc::downgrade(tasks),
            random: RefCell::default(),
        }))
    }
}

impl Runtime for TokioRt {
    fn now(&self) -> Instant {
        now()
    }

    fn wall(&self) -> Wall {
        let time = nix::time::ClockId::CLOCK_REALTIME
            .now()
            .expect("CLOCK_REALTIME exists");
        Wall(u64::try_from(Duration::from(time).as_micros()).unwrap_or(0))
    }

    fn arm(&self, at: Instant, owner: Weak<dyn Timed>, token: u64) {
        self.timers.arm(at, owner, token);
    }

    fn spawn(&self, task: LocalFuture<()>) {
        // While the shard is being dropped nothing can be started any more.
        if let Some(tasks) = self.tasks.upgrade() {
            tasks.spawn_local(task);
        }
    }

    fn random(&self) -> u64 {
        let mut batch = self.random.borrow_mut();
        if batch.is_empty() {
            *batch = random_batch();
        }
        batch.pop().expect("just filled")
    }
}

/// The kernel's monotonic clock, which `timerfd` counts by.
fn now() -> Instant {
    let time = nix::time::ClockId::CLOCK_MONOTONIC
        .now()
        .expect("CLOCK_MONOTONIC exists");
    Instant(u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX))
}

fn random_batch() -> Vec<u64> {
    let mut words = vec![0u64; RANDOM_BATCH];
    let bytes = std::mem::size_of_val(&words[..]);
    // SAFETY: `words` is `bytes` bytes long, and any bit pattern is a u64.
    let got = unsafe { libc::getrandom(words.as_mut_ptr().cast(), bytes, 0) };
    // Up to 256 bytes come whole and without a signal in between, getrandom(2).
    assert_eq!(got, bytes as isize, "the system has no random numbers");
    words
}

struct Alarm(TimerFd);

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

struct Timers {
    heap: RefCell<BinaryHeap<Entry>>,
    next: Cell<u64>,
    /// What the descriptor is set for; [`Instant::FAR`]: not set.
    set_for: Cell<Instant>,
    sweep_at: Cell<usize>,
    alarm: AsyncFd<Alarm>,
}

struct Entry {
    at: Instant,
    /// Timers of one time fire in the order in which they were armed.
    order: u64,
    owner: Weak<dyn Timed>,
    token: u64,
}

impl Ord for Entry {
    /// The earliest is the greatest: [`BinaryHeap`] yields the greatest first.
    fn cmp(&self, other: &Entry) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.order == other.order
    }
}

impl Eq for Entry {}

impl Timers {
    fn arm(&self, at: Instant, owner: Weak<dyn Timed>, token: u64) {
        if at == Instant::FAR {
            return;
        }
        let order = self.next.replace(self.next.get() + 1);
        {
            let mut heap = self.heap.borrow_mut();
            heap.push(Entry {
                at,
                order,
                owner,
                token,
            });
            if heap.len() >= self.sweep_at.get() {
                heap.retain(|entry| entry.owner.strong_count() > 0);
                self.sweep_at.set((2 * heap.len()).max(SWEEP_MIN));
            }
        }
        self.set_alarm(at);
    }

    /// Sets the descriptor if `at` is earlier than what it is set for.
    fn set_alarm(&self, at: Instant) {
        if at >= self.set_for.get() {
            return;
        }
        self.set_for.set(at);
        // A time of zero would disarm it; one that has passed fires at once.
        let time = TimeSpec::from_duration(Duration::from_nanos(at.0.max(1)));
        self.alarm
            .get_ref()
            .0
            .set(
                Expiration::OneShot(time),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            )
            .expect("an absolute time is valid for a timerfd");
    }

    async fn run(self: Rc<Self>) {
        loop {
            match self.alarm.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                // The reactor is going down, and the shard with it.
                Err(_) => return,
            }
            self.set_for.set(Instant::FAR);
            let first = self.heap.borrow().peek().map(|entry| entry.at);
            if first.is_some_and(|at| now().since(at) > LATE_ENOUGH_TO_READ_SOCKETS) {
                tokio::task::yield_now().await;
            }
            self.fire_due();
            // Whoever was woken runs first and often arms a timer that is earlier than all others:
            // the descriptor is then set once and not twice.
            pass_turn().await;
            let next = self.heap.borrow().peek().map(|entry| entry.at);
            if let Some(at) = next {
                self.set_alarm(at);
            }
        }
    }

    fn fire_due(&self) {
        let now = now();
        // What is armed by those that fire belongs to the next round, even when it is due.
        let armed = self.next.get();
        loop {
            let entry = {
                let mut heap = self.heap.borrow_mut();
                match heap.peek() {
                    Some(entry) if entry.at <= now && entry.order < armed => heap.pop(),
                    _ => None,
                }
            };
            let Some(entry) = entry else { return };
            if let Some(owner) = entry.owner.upgrade() {
                owner.fire(entry.token, entry.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[derive(Default)]
    struct Log(RefCell<Vec<u64>>);

    impl Timed for Log {
        fn fire(&self, token: u64, due: Instant) {
            assert!(now() >= due, "fired before its time");
            self.0.borrow_mut().push(token);
        }
    }

    fn weak(log: &Rc<Log>) -> Weak<dyn Timed> {
        let owner: Rc<dyn Timed> = log.clone();
        Rc::downgrade(&owner)
    }

    /// A busy machine may be late with any of them: looks are counted, not timed.
    async fn until_fired(rt: &Rt, log: &Log, count: usize) {
        for _ in 0..10_000 {
            if log.0.borrow().len() >= count {
                return;
            }
            rt.sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn timers_fire_in_order_and_not_early() {
        let log: Rc<Log> = Rc::default();
        let seen = log.clone();
        run_shard(|rt| async move {
            let begin = rt.now();
            for (token, us) in [(3, 900), (1, 200), (2, 500), (0, 0)] {
                rt.arm(begin + Duration::from_micros(us), weak(&log), token);
            }
            rt.sleep(Duration::from_micros(1500)).await;
            assert!(rt.now() - begin >= Duration::from_micros(1500));
            until_fired(&rt, &log, 4).await;
        })
        .expect("shard");
        assert_eq!(*seen.0.borrow(), [0, 1, 2, 3]);
    }

    #[test]
    fn an_earlier_timer_moves_the_alarm() {
        run_shard(|rt| async move {
            let log: Rc<Log> = Rc::default();
            rt.arm(rt.now() + Duration::from_secs(3600), weak(&log), 1);
            rt.sleep(Duration::from_millis(1)).await;
            rt.arm(rt.now() + Duration::from_micros(100), weak(&log), 2);
            until_fired(&rt, &log, 1).await;
            assert_eq!(*log.0.borrow(), [2]);
        })
        .expect("shard");
    }

    #[test]
    fn a_timer_whose_owner_is_gone_is_swept() {
        run_shard(|rt| async move {
            let tasks = Rc::new(LocalSet::new());
            let other = TokioRt::start(&tasks).expect("timers");
            let kept: Rc<Log> = Rc::default();
            let far = rt.now() + Duration::from_secs(3600);
            other.arm(far, weak(&kept), 1);
            for _ in 0..10 * SWEEP_MIN {
                other.arm(far, weak(&Rc::default()), 2);
            }
            assert!(other.timers.heap.borrow().len() <= SWEEP_MIN);
        })
        .expect("shard");
    }

    #[test]
    fn tasks_run_and_are_dropped_with_the_shard() {
        struct Told(Rc<Cell<u32>>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let dropped: Rc<Cell<u32>> = Rc::default();
        let ran: Rc<Cell<bool>> = Rc::default();
        let (told, ran_inside) = (Told(dropped.clone()), ran.clone());
        run_shard(|rt| async move {
            let inner = rt.clone();
            rt.spawn(async move { ran_inside.set(true) });
            rt.spawn(async move {
                let _told = told;
                inner.sleep(Duration::from_secs(3600)).await;
            });
            rt.sleep(Duration::from_millis(1)).await;
        })
        .expect("shard");
        assert!(ran.get());
        assert_eq!(dropped.get(), 1);
    }

    #[test]
    fn random_numbers_differ() {
        let seen =
            run_shard(|rt| async move { (0..100).map(|_| rt.random()).collect::<BTreeSet<u64>>() })
                .expect("shard");
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn wall_time_is_of_this_century() {
        let wall = run_shard(|rt| async move { rt.wall() }).expect("shard");
        assert!(wall > Wall(1_700_000_000_000_000));
    }
}
