//! Time, tasks and chance as arguments.
//!
//! [`Rt`] is what a layer is given: a clock, timers, a place to spawn tasks of this thread and a
//! source of random numbers. Production uses a driver on tokio, tests and the simulation
//! [`crate::sim::VirtualRt`]. Monotonic time decides everything; wall-clock time is only shown and
//! stored for people.

use crate::LocalFuture;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::ops::{Add, Sub};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Monotonic time in nanoseconds since some beginning of this run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// Later than any time: no deadline.
    pub const FAR: Instant = Instant(u64::MAX);

    /// Time since `earlier`, zero if that is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, by: Duration) -> Instant {
        Instant(
            self.0
                .saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}s", self.0 as f64 / 1e9)
    }
}

/// Wall-clock time, microseconds since 1970-01-01 UTC. Shown and stored, never decided by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Wall(pub u64);

/// How late a timer fired. More than [`Lateness::OWN_STALL`] proves that this process stalled, so
/// no deadline of a peer may be judged by it (P5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Lateness(pub Duration);

impl Lateness {
    /// Above this our own event loop was late, not the peer.
    pub const OWN_STALL: Duration = Duration::from_millis(10);

    /// Whether the timer proves our own stall.
    pub fn is_own_stall(self) -> bool {
        self.0 > Self::OWN_STALL
    }
}

/// Told when a timer fires.
pub trait Timed {
    /// `due` is when it should have fired; `token` is the one given to `arm`.
    fn fire(&self, token: u64, due: Instant);
}

/// What a driver provides.
pub trait Runtime {
    /// Now.
    fn now(&self) -> Instant;
    /// Wall-clock time.
    fn wall(&self) -> Wall;
    /// Fires `owner` once at or after `at`; nothing if it is gone by then.
    fn arm(&self, at: Instant, owner: Weak<dyn Timed>, token: u64);
    /// Runs a task on this thread.
    fn spawn(&self, task: LocalFuture<()>);
    /// A random number (seeded in a simulation, from the system otherwise).
    fn random(&self) -> u64;
}

/// A shared handle of a [`Runtime`].
#[derive(Clone)]
pub struct Rt(Rc<dyn Runtime>);

impl Rt {
    /// Wraps a driver.
    pub fn new(runtime: Rc<dyn Runtime>) -> Rt {
        Rt(runtime)
    }

    /// Now.
    pub fn now(&self) -> Instant {
        self.0.now()
    }

    /// Wall-clock time.
    pub fn wall(&self) -> Wall {
        self.0.wall()
    }

    /// See [`Runtime::arm`].
    pub fn arm(&self, at: Instant, owner: Weak<dyn Timed>, token: u64) {
        self.0.arm(at, owner, token);
    }

    /// Runs a task on this thread.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.spawn(Box::pin(task));
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        self.0.random()
    }

    /// Ends at `at`, and tells how late that was noticed.
    pub fn sleep_until(&self, at: Instant) -> Sleep {
        Sleep {
            rt: self.clone(),
            at,
            cell: None,
        }
    }

    /// Ends after `time`.
    pub fn sleep(&self, time: Duration) -> Sleep {
        self.sleep_until(self.now() + time)
    }

    /// `future`'s output, or `Err` if `at` comes first. What is ready at once wins over a time
    /// that has passed: results are looked at before a deadline is judged (P5).
    pub async fn by<F: Future>(&self, at: Instant, future: F) -> Result<F::Output, Lateness> {
        let mut future = std::pin::pin!(future);
        let mut sleep = self.sleep_until(at);
        std::future::poll_fn(move |cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            Pin::new(&mut sleep).poll(cx).map(Err)
        })
        .await
    }
}

impl fmt::Debug for Rt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rt({:?})", self.now())
    }
}

/// The future of [`Rt::sleep_until`].
pub struct Sleep {
    rt: Rt,
    at: Instant,
    cell: Option<Rc<SleepCell>>,
}

#[derive(Default)]
struct SleepCell {
    waker: RefCell<Option<Waker>>,
}

impl Timed for SleepCell {
    fn fire(&self, _token: u64, _due: Instant) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for Sleep {
    type Output = Lateness;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Lateness> {
        let now = self.rt.now();
        if now >= self.at {
            return Poll::Ready(Lateness(now.since(self.at)));
        }
        if self.at == Instant::FAR {
            return Poll::Pending;
        }
        if let Some(cell) = &self.cell {
            *cell.waker.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let cell: Rc<SleepCell> = Rc::default();
        *cell.waker.borrow_mut() = Some(cx.waker().clone());
        let owner: Rc<dyn Timed> = cell.clone();
        self.rt.arm(self.at, Rc::downgrade(&owner), 0);
        self.cell = Some(cell);
        Poll::Pending
    }
}

/// Lets the tasks run that were woken before. Other than tokio's `yield_now` it does not look at the event queue
/// in between, which is a system call.
pub async fn pass_turn() {
    let mut is_second = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut is_second, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
