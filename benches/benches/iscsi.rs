//! What does the initiator cost beside libiscsi's? `bench iscsi`'s engine and `iscsi-perf` read the
//! same unit of a real tgt on 127.0.0.1 in turns of equal time, with as many reads in flight.
//!
//! `iscsi-perf` can neither write nor read blocks of one size at random (with `-r` it draws the size
//! as well), so both read in order; tgt has the unit in the page cache, where order is no matter.
//! CPU time is user and system of the client alone. `iscsi-perf`'s includes its start and login,
//! ours the login. Who was saturated is said by the busiest thread: tgt does all network I/O of a
//! target in one, and each client has one.

use benches::{children_cpu, is_chosen, is_smoke, process_cpu, rounds, show, sized, Measured};
use blockdev::driver::run_shard;
use blockdev::Pool;
use harness::command::{require, run};
use harness::scratch::Scratch;
use harness::tgt::Tgt;
use iscsi_initiator::bench::{run_iscsi, BenchConfig, Mode};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::path::PortConfig;
use iscsi_initiator::tcp::TcpNet;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

const UNIT_BYTES: u64 = 128 << 20;
const LOGICAL_BLOCK_BYTES: u32 = 512;
/// A turn in seconds; `iscsi-perf` knows no less than one.
const TURN_S: u64 = 1;
const PAIRS: usize = 4;
/// A thread that is busy for this part of the time is what limits the rate.
const SATURATED: f64 = 0.9;

/// What is asked of both: block bytes and reads in flight.
const WORKLOADS: [(&str, u32, usize); 2] = [
    ("4 KiB, 16 at a time", 4096, 16),
    ("64 KiB, 8 at a time", 65_536, 8),
];

/// One turn of one client.
struct Turn {
    iops: f64,
    cpu_ns: f64,
    /// CPU time of the client beside time.
    client_load: f64,
    /// CPU time of tgtd's network thread beside time, and of all of tgtd.
    target_load: (f64, f64),
}

/// CPU time of a process' first thread, from `/proc/PID/task/PID/schedstat`.
fn first_thread_cpu(pid: u32) -> Duration {
    let path = format!("/proc/{pid}/task/{pid}/schedstat");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let ns = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(ns.unwrap_or_else(|| panic!("{path}: {text:?}")))
}

/// Runs a client, which tells its I/Os, its CPU time and how long it was at it.
fn turn(tgt: &Tgt, client: impl FnOnce() -> (f64, Duration, Duration)) -> Turn {
    let target_cpu = || (first_thread_cpu(tgt.pid()), process_cpu(Some(tgt.pid())));
    let before = target_cpu();
    let (ios, cpu, wall) = client();
    let after = target_cpu();
    let load = |cpu: Duration| cpu.as_secs_f64() / wall.as_secs_f64();
    Turn {
        iops: ios / wall.as_secs_f64(),
        cpu_ns: cpu.as_nanos() as f64 / ios,
        client_load: load(cpu),
        target_load: (load(after.0 - before.0), load(after.1 - before.1)),
    }
}

fn ours(tgt: &Tgt, bytes: u32, depth: usize) -> Turn {
    let unit = PortConfig {
        portal: tgt.spec().portals[0].to_string().parse().expect("a portal"),
        source: None,
        target: tgt.spec().target.clone(),
        lun: 1,
        role: Role::Tool,
        shard: 0,
    };
    let config = BenchConfig {
        mode: Mode::Read,
        block_bytes: bytes,
        iodepth: depth,
        runtime: Duration::from_secs(TURN_S),
        size_bytes: is_smoke().then(|| u64::from(bytes) * 32),
        offset_bytes: 0,
        span_bytes: None,
        seed: 1,
        trace: false,
    };
    turn(tgt, || {
        let report = run_shard(|rt| async move {
            let (net, name) = (Rc::new(TcpNet), "iqn.2024-12.example.test:bench");
            let initiator = Initiator::new(rt.clone(), net, Pool::new(64 << 20), name);
            let deadline = rt.now() + Duration::from_secs(5);
            run_iscsi(&initiator, &unit, 1, config, deadline).await
        });
        let report = report.expect("a shard").expect("a session");
        assert_eq!(report.errors, 0, "{:?}", report.first_error);
        let cpu = report.cpu_s.user + report.cpu_s.system;
        (
            report.ios as f64,
            Duration::from_secs_f64(cpu),
            Duration::from_secs_f64(report.elapsed_s),
        )
    })
}

fn theirs(tgt: &Tgt, bytes: u32, depth: usize) -> Turn {
    let (portal, target) = (tgt.spec().portals[0], &tgt.spec().target);
    let blocks = bytes / LOGICAL_BLOCK_BYTES;
    let mut command = Command::new(require("iscsi-perf"));
    command
        .args(["-m", &depth.to_string(), "-b", &blocks.to_string()])
        .args(["-t", &TURN_S.to_string()])
        .arg(format!("iscsi://{portal}/{target}/1"));
    turn(tgt, || {
        let before = children_cpu();
        let finished = run(&mut command, Duration::from_secs(TURN_S + 10));
        let cpu = children_cpu() - before;
        let wall = Duration::from_secs(TURN_S);
        let story = finished.describe();
        let output = finished.success();
        // `iops average N (M MB/s)`, rewritten in place once a second; the last one counts.
        let iops = output.rsplit("iops average ").next().and_then(|rest| {
            let number = rest.split_whitespace().next()?;
            number.parse::<f64>().ok()
        });
        let iops = iops.unwrap_or_else(|| panic!("no average: {story}"));
        (iops * wall.as_secs_f64(), cpu, wall)
    })
}

fn median(turns: &[Turn], of: impl Fn(&Turn) -> f64) -> Measured {
    Measured::of(turns.iter().map(of).collect())
}

/// What limited the rate of these turns.
fn verdict(client: f64, target: f64) -> &'static str {
    match (client >= SATURATED, target >= SATURATED) {
        (true, true) => "both saturated",
        (false, true) => "tgtd saturated",
        (true, false) => "client saturated",
        (false, false) => "neither saturated: the machine was, or they waited for each other",
    }
}

fn print(name: &str, turns: &[Turn], base: Option<(f64, f64)>) -> (f64, f64) {
    let (iops, cpu) = (median(turns, |t| t.iops), median(turns, |t| t.cpu_ns));
    let (base_iops, base_cpu) = base.unwrap_or((iops.median_ns, cpu.median_ns));
    let client = median(turns, |t| t.client_load).median_ns;
    let network = median(turns, |t| t.target_load.0).median_ns;
    let target = median(turns, |t| t.target_load.1).median_ns;
    println!(
        "  {name:<12} {:>7.0} IOPS ({:.0} .. {:.0})  x {:.2}   CPU {} ({} .. {})  x {:.2}",
        iops.median_ns,
        iops.low_ns,
        iops.high_ns,
        iops.median_ns / base_iops,
        show(cpu.median_ns),
        show(cpu.low_ns),
        show(cpu.high_ns),
        cpu.median_ns / base_cpu,
    );
    println!(
        "  {:<12} client {:.0} %, tgtd's network thread {:.0} %, all of tgtd {:.0} % of a CPU: {}",
        "",
        client * 100.0,
        network * 100.0,
        target * 100.0,
        verdict(client, network)
    );
    (iops.median_ns, cpu.median_ns)
}

fn main() {
    // Of the same package, and the one whose package `require` knows.
    require("iscsi-ls");
    let scratch = Scratch::shared();
    let tgt = Tgt::on_loopback(&scratch, "bench-iscsi", 1, UNIT_BYTES);
    for (name, bytes, depth) in WORKLOADS {
        if !is_chosen(name) {
            continue;
        }
        let (mut we, mut they) = (Vec::new(), Vec::new());
        // The first pair warms up.
        for pair in 0..=rounds(PAIRS) {
            if pair == sized(1, 0) {
                (we, they) = (Vec::new(), Vec::new());
            }
            they.push(theirs(&tgt, bytes, depth));
            we.push(ours(&tgt, bytes, depth));
            if is_smoke() {
                break;
            }
        }
        println!("\nreads in order of {name}, from one unit; CPU time of one");
        let base = print("iscsi-perf", &they, None);
        print("ours", &we, Some(base));
    }
}
