//! What the benches share: a clock, medians, and a table with ratios.
//!
//! A bench answers one question (its file's first line). It measures its candidates in turns, so
//! that a noisy neighbour hits all of them, and prints the median and the spread (the quartiles) of
//! each beside its ratio to the first. Absolute figures belong to the machine; the ratios are what
//! a decision rests on.
//!
//! `BENCH_ROUNDS` sets the number of turns (default 25, or what the bench says). Without cargo's
//! `--bench`, as `cargo test --benches` starts it, a bench is a smoke test: everything is done a few
//! times, and the figures mean nothing.

pub mod libiscsi;

use std::hint::black_box;
use std::time::Duration;

/// Turns that warm caches and are not counted.
const WARM_UP: usize = 2;
/// Operations of a turn in a smoke test.
const SMOKE_COUNT: u64 = 20;

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

/// CPU time of a process, all its threads, user and system; `None` is this one. Zero when there is
/// no such process.
pub fn process_cpu(pid: Option<u32>) -> Duration {
    let pid = pid.map_or(0, |pid| pid as libc::pid_t);
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one clock id.
    let missing = unsafe { libc::clock_getcpuclockid(pid, &mut clock) } != 0;
    // SAFETY: the kernel writes one timespec.
    if missing || unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Duration::ZERO;
    }
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of all children that have ended and were waited for, user and system.
pub fn children_cpu() -> Duration {
    // SAFETY: a struct of integers, for which zeros are fine.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one rusage.
    let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    assert_eq!(result, 0, "RUSAGE_CHILDREN exists");
    let part = |t: libc::timeval| {
        Duration::new(t.tv_sec as u64, 0) + Duration::from_micros(t.tv_usec as u64)
    };
    part(usage.ru_utime) + part(usage.ru_stime)
}

/// Whether this is a smoke test: see the module.
pub fn is_smoke() -> bool {
    !std::env::args().any(|arg| arg == "--bench")
}

/// `full`, or `smoke` in a smoke test.
pub fn sized<T>(full: T, smoke: T) -> T {
    if is_smoke() {
        smoke
    } else {
        full
    }
}

/// Turns to be counted: `BENCH_ROUNDS`, or `default`; one in a smoke test.
pub fn rounds(default: usize) -> usize {
    let given = std::env::var("BENCH_ROUNDS").ok();
    let rounds = given.and_then(|n| n.parse().ok()).unwrap_or(default).max(1);
    sized(rounds, 1)
}

/// What was asked for on the command line (`cargo bench --bench NAME -- WORD...`): candidates whose
/// name holds one of the words; all if there are none.
pub fn is_chosen(name: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
    match words.next() {
        None => true,
        Some(first) => std::iter::once(first)
            .chain(words)
            .any(|w| name.contains(&w)),
    }
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
        let (rounds, warm_up) = (rounds(25), sized(WARM_UP, 0));
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); self.candidates.len()];
        for round in 0..rounds + warm_up {
            for ((_, count, work), times) in self.candidates.iter_mut().zip(&mut times) {
                let count = sized(*count, SMOKE_COUNT.min(*count));
                let begin = clock();
                work(black_box(count));
                let took = begin.elapsed();
                if round >= warm_up {
                    times.push(took.as_nanos() as f64 / count as f64);
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

impl Measured {
    /// Of the times of all turns.
    pub fn of(mut times: Vec<f64>) -> Measured {
        times.sort_by(f64::total_cmp);
        Measured {
            median_ns: quantile(&times, 0.5),
            low_ns: quantile(&times, 0.25),
            high_ns: quantile(&times, 0.75),
        }
    }
}

/// The value below or at which `part` of all lie; 0 if there is none.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let index = sorted.len().saturating_sub(1) as f64 * part;
    sorted.get(index.round() as usize).copied().unwrap_or(0.0)
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
