//! How late does a timer of 100 µs fire, and what does a deadline cost that never does?

use benches::{sized, Bench, Measured};
use blockdev::driver::run_shard;
use blockdev::rt::Timed;
use blockdev::Instant;
use std::rc::{Rc, Weak};
use std::time::Duration;

struct Nobody;

impl Timed for Nobody {
    fn fire(&self, _token: u64, _due: Instant) {}
}

const WAIT: Duration = Duration::from_micros(100);
const SLEEPS: usize = 500;
const SLEEPS_SMOKE: usize = 10;

fn main() {
    let sleeps = sized(SLEEPS, SLEEPS_SMOKE);
    let (ours, theirs, yields) = run_shard(|rt| async move {
        let mut ours = Vec::new();
        for _ in 0..sleeps {
            ours.push(rt.sleep(WAIT).await.0.as_nanos() as f64);
        }
        let mut theirs = Vec::new();
        for _ in 0..sleeps {
            let due = rt.now() + WAIT;
            tokio::time::sleep(WAIT).await;
            theirs.push(rt.now().since(due).as_nanos() as f64);
        }
        // What is left when nothing waits: the event loop itself.
        let mut yields = Vec::new();
        for _ in 0..sleeps {
            let begin = rt.now();
            tokio::task::yield_now().await;
            yields.push(rt.now().since(begin).as_nanos() as f64);
        }
        (ours, theirs, yields)
    })
    .expect("a shard");
    println!("\nlateness of a timer of 100 us");
    for (name, times) in [
        ("the shard's heap behind a timerfd", ours),
        ("tokio::time::sleep", theirs),
        ("one turn of the event loop, for comparison", yields),
    ] {
        let m = Measured::of(times);
        let show = benches::show;
        println!(
            "  {name:<44} {:>11}  ({} .. {})",
            show(m.median_ns),
            show(m.low_ns),
            show(m.high_ns)
        );
    }

    run_shard(|rt| async move {
        let far = rt.now() + Duration::from_secs(60);
        Bench::new("a deadline of a minute that is never reached")
            .candidate("armed; its owner goes at once", 20_000, |n| {
                for _ in 0..n {
                    let owner: Rc<dyn Timed> = Rc::new(Nobody);
                    let owner: Weak<dyn Timed> = Rc::downgrade(&owner);
                    rt.arm(far, owner, 0);
                }
            })
            .candidate("the clock is read", 20_000, |n| {
                for _ in 0..n {
                    std::hint::black_box(rt.now());
                }
            })
            .run();
    })
    .expect("a shard");
}
