//! What the benches share: a clock, medians, and a table with ratios.
//!
//! A bench answers one question (its file's first line). It measures its candidates in turns, so
//! that a noisy neighbour hits all of them, and prints the median and the spread (the quartiles) of
//! each beside its ratio to the first. Absolute figures belong to the machine; the ratios are what
//! a decision rests on.
//!
//! `BENCH_ROUNDS` sets the number of turns (default 25).

use std::hint::black_box;
use std::time::Duration;

/// Turns that warm caches and are not counted.
const WARM_UP: usize = 2;

/// Real time. Benches are the one place that may look at it.
#[allow(clippy::disallowed_methods, reason = "a bench measures real time")]
pub fn clock() -> std::time::Instant {
    std::time::Instant::now()
}

/// CPU time of this thread, user and system.
pub fn thread_cpu() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "CLOCK_THREAD_CPUTIME_ID exists");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A candidate: does the operation `n` times.
type Work<'a> = Box<dyn FnMut(u64) + 'a>;

/// A question and the candidates for its answer.
pub struct Bench<'a> {
    question: &'static str,
    candidates: Vec<(String, u64, Work<'a>)>,
}

/// Measured time of one operation, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Half of the turns were faster.
    pub median_ns: f64,
    /// A quarter was faster.
    pub low_ns: f64,
    /// A quarter was slower.
    pub high_ns: f64,
}

impl<'a> Bench<'a> {
    /// A bench without candidates yet.
    pub fn new(question: &'static str) -> Bench<'a> {
        Bench {
            question,
            candidates: Vec::new(),
        }
    }

    /// Adds a candidate; `work(n)` does the operation n times, and is asked for `count` at a turn.
    pub fn candidate(
        mut self,
        name: impl Into<String>,
        count: u64,
        work: impl FnMut(u64) + 'a,
    ) -> Bench<'a> {
        self.candidates.push((name.into(), count, Box::new(work)));
        self
    }

    /// Measures and prints.
    pub fn run(mut self) -> Vec<Measured> {
        let rounds = rounds();
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); self.candidates.len()];
        for round in 0..rounds + WARM_UP {
            for ((_, count, work), times) in self.candidates.iter_mut().zip(&mut times) {
                let begin = clock();
                work(black_box(*count));
                let took = begin.elapsed();
                if round >= WARM_UP {
                    times.push(took.as_nanos() as f64 / *count as f64);
                }
            }
        }
        let measured: Vec<Measured> = times.into_iter().map(Measured::of).collect();
        println!("\n{}", self.question);
        for ((name, _, _), m) in self.candidates.iter().zip(&measured) {
            let ratio = measured.first().map_or(1.0, |f| m.median_ns / f.median_ns);
            println!(
                "  {name:<44} {:>11}  ({} .. {})  x {ratio:.2}",
                show(m.median_ns),
                show(m.low_ns),
                show(m.high_ns)
            );
        }
        measured
    }
}

fn rounds() -> usize {
    let given = std::env::var("BENCH_ROUNDS").ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(25).max(1)
}

impl Measured {
    /// Of the times of all turns.
    pub fn of(mut times: Vec<f64>) -> Measured {
        times.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let index = (times.len().saturating_sub(1)) as f64 * part;
            times.get(index.round() as usize).copied().unwrap_or(0.0)
        };
        Measured {
            median_ns: at(0.5),
            low_ns: at(0.25),
            high_ns: at(0.75),
        }
    }
}

/// A time with a unit that suits it.
pub fn show(ns: f64) -> String {
    match ns {
        _ if ns < 1e3 => format!("{ns:.1} ns"),
        _ if ns < 1e6 => format!("{:.2} us", ns / 1e3),
        _ => format!("{:.2} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_quartiles_are_taken() {
        let m = Measured::of(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!((m.low_ns, m.median_ns, m.high_ns), (2.0, 3.0, 4.0));
        assert_eq!(show(1500.0), "1.50 us");
    }
}
