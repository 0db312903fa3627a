//! Bounded waiting for real daemons.
//!
//! The only place of the workspace's tests that reads the real clock: daemons run in real time, so
//! their tests must wait in real time. No test asserts how long something took; a limit here only
//! turns a hang into a failure that says what was waited for.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(25);

/// A moment after which waiting is given up.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline `limit` from now.
    #[allow(clippy::disallowed_methods)] // Real daemons live in real time; see the module's header.
    pub fn after(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// Whether it is over.
    #[allow(clippy::disallowed_methods)] // As above.
    pub fn passed(&self) -> bool {
        Instant::now() >= self.0
    }
}

/// Milliseconds of the machine's monotonic clock, for figures that are printed, never asserted.
#[allow(clippy::disallowed_methods)] // As above.
pub fn monotonic_ms() -> u64 {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Sleeps; for pauses between two looks at something.
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Calls `look` until it yields a value, at most for `limit`.
pub fn try_wait<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Deadline::after(limit);
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if deadline.passed() {
            return None;
        }
        pause(POLL);
    }
}

/// As [`try_wait`]; panics with `what` when the limit passes.
pub fn wait_for<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    match try_wait(limit, look) {
        Some(found) => found,
        None => panic!("waited {} s in vain for: {what}", limit.as_secs()),
    }
}

/// Waits until `holds` is true; panics with `what` when the limit passes.
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, limit, || holds().then_some(()));
}
