//! What does the initiator cost beside libiscsi's? `bench iscsi`'s engine and `iscsi-perf` read the
//! same unit on 127.0.0.1 in turns of equal time, with as many reads in flight; the ratios are
//! medians over the pairs. Beside each stands the bar that the initiator is held to.
//!
//! First a null unit of a real tgt, whose one network thread is the ceiling of both. Then the
//! scripted target of the initiator's tests in its plain mode, which is not. Last what digests cost,
//! and what large writes cost where the target takes but 8 KiB at a time.
//!
//! `iscsi-perf` can neither write nor read blocks of one size at random (with `-r` it draws the size
//! as well), so both read in order; to neither unit does order matter. It tells no latencies either:
//! ours are printed alone. CPU time is user and system of the client alone; `iscsi-perf`'s includes
//! its start and login, ours the login. Who was saturated is said by the busiest thread: tgt does
//! all network I/O of a target in one, and each client has one.
//!
//! On a machine that does other things as well tgt answers one by one, and nothing gathers: run it
//! alone, or at real-time priority (`chrt -r 1`).

#[path = "../../iscsi-initiator/tests/script/mod.rs"]
mod script;

use benches::{children_cpu, is_chosen, is_smoke, rounds, show, sized, thread_cpu};
use blockdev::driver::run_shard;
use blockdev::Pool;
use harness::command::{require, run};
use harness::scratch::Scratch;
use harness::tgt::Tgt;
use iscsi_initiator::bench::{run_iscsi, BenchConfig, Mode};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::login::keys::DigestWish;
use iscsi_initiator::path::PortConfig;
use iscsi_initiator::tcp::TcpNet;
use script::{Settings, Target};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

const UNIT_BYTES: u64 = 128 << 20;
const LOGICAL_BLOCK_BYTES: u32 = 512;
/// A turn in seconds; `iscsi-perf` knows no less than one.
const TURN_S: u64 = 1;
const PAIRS: usize = 5;
/// A thread that is busy for this part of the time is what limits the rate.
const SATURATED: f64 = 0.9;
/// LUN of tgt's null unit, beside the harness's disk.
const NULL_LUN: u32 = 2;

/// A question: reads of so many bytes, so many in flight, and the bars for the ratios.
struct Workload {
    name: &'static str,
    bytes: u32,
    depth: usize,
    iops_bar: f64,
    cpu_bar: Option<f64>,
}

const fn workload(
    name: &'static str,
    bytes: u32,
    depth: usize,
    iops_bar: f64,
    cpu_bar: Option<f64>,
) -> Workload {
    Workload {
        name,
        bytes,
        depth,
        iops_bar,
        cpu_bar,
    }
}

const OF_TGT: [Workload; 5] = [
    workload("tgt, 4 KiB, 1 at a time", 4096, 1, 1.0, Some(1.0)),
    workload("tgt, 4 KiB, 16 at a time", 4096, 16, 1.0, Some(0.5)),
    workload("tgt, 4 KiB, 64 at a time", 4096, 64, 1.0, Some(0.4)),
    workload("tgt, 64 KiB, 8 at a time", 65_536, 8, 1.0, Some(0.6)),
    workload("tgt, 1 MiB, 4 at a time", 1 << 20, 4, 1.0, Some(0.6)),
];

const OF_SCRIPT: [Workload; 2] = [
    workload("scripted, 4 KiB, 16 at a time", 4096, 16, 1.5, None),
    workload("scripted, 4 KiB, 64 at a time", 4096, 64, 2.0, None),
];

/// A unit that both clients can reach.
#[derive(Clone)]
struct Unit<'a> {
    portal: String,
    target: String,
    lun: u32,
    tgt: Option<&'a Tgt>,
}

/// One turn of one client.
#[derive(Clone, Copy)]
struct Turn {
    iops: f64,
    cpu_ns: f64,
    /// CPU time of the client beside time.
    client_load: f64,
    /// The same of tgtd's network thread.
    target_load: f64,
    p99_us: u64,
}

/// How our client goes about it.
#[derive(Clone, Copy)]
struct Way {
    mode: Mode,
    digest: DigestWish,
}

const READS: Way = Way {
    mode: Mode::Read,
    digest: DigestWish::None,
};

/// CPU time of a process' first thread, from `/proc/PID/task/PID/schedstat`.
fn first_thread_cpu(pid: u32) -> Duration {
    let path = format!("/proc/{pid}/task/{pid}/schedstat");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let ns = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(ns.unwrap_or_else(|| panic!("{path}: {text:?}")))
}

/// Runs a client, which tells its I/Os, its CPU time, how long it was at it, and its p99.
fn turn(unit: &Unit<'_>, client: impl FnOnce() -> (f64, Duration, Duration, u64)) -> Turn {
    let target_cpu = || {
        unit.tgt
            .map_or(Duration::ZERO, |tgt| first_thread_cpu(tgt.pid()))
    };
    let before = target_cpu();
    let (ios, cpu, wall, p99_us) = client();
    let load = |cpu: Duration| cpu.as_secs_f64() / wall.as_secs_f64();
    Turn {
        iops: ios / wall.as_secs_f64(),
        cpu_ns: cpu.as_nanos() as f64 / ios.max(1.0),
        client_load: load(cpu),
        target_load: load(target_cpu() - before),
        p99_us,
    }
}

fn ours(unit: &Unit<'_>, bytes: u32, depth: usize, way: Way) -> Turn {
    let port = PortConfig {
        portal: unit.portal.parse().expect("a portal"),
        source: None,
        target: unit.target.clone(),
        lun: unit.lun.into(),
        role: Role::Tool,
        shard: 0,
    };
    let config = BenchConfig {
        mode: way.mode,
        block_bytes: bytes,
        iodepth: depth,
        runtime: Duration::from_secs(TURN_S),
        size_bytes: is_smoke().then(|| u64::from(bytes) * 32),
        offset_bytes: 0,
        span_bytes: Some(UNIT_BYTES / 2),
        seed: 1,
        trace: false,
    };
    turn(unit, || {
        let before = thread_cpu();
        let report = run_shard(|rt| async move {
            let (net, name) = (Rc::new(TcpNet), "iqn.2024-12.example.test:bench");
            let mut initiator = Initiator::new(rt.clone(), net, Pool::new(64 << 20), name);
            initiator.offer.header_digest = way.digest;
            initiator.offer.data_digest = way.digest;
            let deadline = rt.now() + Duration::from_secs(5);
            run_iscsi(&initiator, &port, 1, config, deadline).await
        });
        let cpu = thread_cpu() - before;
        let report = report.expect("a shard").expect("a session");
        assert_eq!(report.errors, 0, "{:?}", report.first_error);
        let wall = Duration::from_secs_f64(report.elapsed_s);
        (report.ios as f64, cpu, wall, report.lat_us.p99)
    })
}

fn theirs(unit: &Unit<'_>, bytes: u32, depth: usize) -> Turn {
    let Unit {
        portal,
        target,
        lun,
        ..
    } = unit;
    let blocks = bytes / LOGICAL_BLOCK_BYTES;
    let mut command = Command::new(require("iscsi-perf"));
    command
        .args(["-m", &depth.to_string(), "-b", &blocks.to_string()])
        .args(["-t", &TURN_S.to_string()])
        .arg(format!("iscsi://{portal}/{target}/{lun}"));
    turn(unit, || {
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
        (iops * wall.as_secs_f64(), cpu, wall, 0)
    })
}

fn median(of: impl Iterator<Item = f64>) -> f64 {
    benches::Measured::of(of.collect()).median_ns
}

/// Pairs of turns, one side after the other; the first pair warms up.
fn pairs(mut one: impl FnMut() -> Turn, mut other: impl FnMut() -> Turn) -> Vec<(Turn, Turn)> {
    let warm_up = sized(1, 0);
    let all = (0..rounds(PAIRS) + warm_up).map(|_| (one(), other()));
    all.skip(warm_up).collect()
}

/// Medians of the ratios of pairs: I/Os a second, and CPU time of one.
fn ratios(pairs: &[(Turn, Turn)]) -> (f64, f64) {
    (
        median(pairs.iter().map(|(base, turn)| turn.iops / base.iops)),
        median(pairs.iter().map(|(base, turn)| turn.cpu_ns / base.cpu_ns)),
    )
}

/// What limited the rate of these turns.
fn verdict(client: f64, target: f64) -> &'static str {
    match (client >= SATURATED, target >= SATURATED) {
        (true, true) => "both saturated",
        (false, true) => "target saturated",
        (true, false) => "client saturated",
        (false, false) => "neither saturated",
    }
}

fn print(name: &str, turns: &[Turn], has_tgt: bool) {
    let of = |what: fn(&Turn) -> f64| median(turns.iter().map(what));
    let (client, target) = (of(|t| t.client_load), of(|t| t.target_load));
    let target_text = match has_tgt {
        true => format!(", tgtd's network thread {:.0} %", target * 100.0),
        false => String::new(),
    };
    let p99 = of(|t| t.p99_us as f64);
    let p99_text = if p99 > 0.0 {
        format!(", p99 {p99:.0} us")
    } else {
        String::new()
    };
    println!(
        "  {name:<14} {:>7.0} IOPS, CPU {}{p99_text}; client {:.0} %{target_text}: {}",
        of(|t| t.iops),
        show(of(|t| t.cpu_ns)),
        client * 100.0,
        verdict(client, target)
    );
}

/// A ratio beside its bar.
fn bar(what: &str, ratio: f64, bar: f64, is_met: bool) -> String {
    let sign = if is_met { "met" } else { "MISSED" };
    format!("{what} x {ratio:.2} (bar {bar:.2}, {sign})")
}

fn compare(unit: &Unit<'_>, workload: &Workload) {
    let Workload {
        name,
        bytes,
        depth,
        iops_bar,
        cpu_bar,
    } = *workload;
    if !is_chosen(name) {
        return;
    }
    let pairs = pairs(
        || theirs(unit, bytes, depth),
        || ours(unit, bytes, depth, READS),
    );
    println!("\nreads of {name}");
    let (they, we): (Vec<Turn>, Vec<Turn>) = pairs.iter().copied().unzip();
    print("iscsi-perf", &they, unit.tgt.is_some());
    print("ours", &we, unit.tgt.is_some());
    let (iops, cpu) = ratios(&pairs);
    let cpu = match cpu_bar {
        Some(most) => bar("CPU of one", cpu, most, cpu <= most),
        None => format!("CPU of one x {cpu:.2}"),
    };
    println!("  {}, {cpu}", bar("IOPS", iops, iops_bar, iops >= iops_bar));
}

/// Both digests beside none, of our client: throughput against the scripted target, whose CRC is
/// fast, and CPU against tgt, whose CRC is not.
fn digests(scripted: &Unit<'_>, tgt: &Unit<'_>) {
    let with = Way {
        digest: DigestWish::Crc32c,
        ..READS
    };
    for (name, unit) in [("digests, scripted", scripted), ("digests, tgt", tgt)] {
        if !is_chosen(name) {
            continue;
        }
        let pairs = pairs(
            || ours(unit, 65_536, 8, READS),
            || ours(unit, 65_536, 8, with),
        );
        let (none, both): (Vec<Turn>, Vec<Turn>) = pairs.iter().copied().unzip();
        println!("\nreads of 64 KiB, 8 at a time; {name}");
        print("none", &none, unit.tgt.is_some());
        print("both", &both, unit.tgt.is_some());
        let (iops, cpu) = ratios(&pairs);
        match unit.tgt {
            None => println!("  {}", bar("throughput", iops, 0.85, iops >= 0.85)),
            Some(_) => println!("  {}", bar("CPU of one", cpu, 1.15, cpu <= 1.15)),
        }
    }
}

/// A write of 1 MiB where the target takes 8 KiB at a time, beside 256 KiB.
fn small_segments(tgt: &Tgt, unit: &Unit<'_>) {
    if !is_chosen("segments") {
        return;
    }
    let write = Way {
        mode: Mode::Write,
        ..READS
    };
    let with = |segment: &str| {
        let key =
            format!("--op update --mode target --tid 1 -n MaxRecvDataSegmentLength -v {segment}");
        run(&mut tgt.admin(&key), Duration::from_secs(10)).success();
        ours(unit, 1 << 20, 4, write)
    };
    let pairs = pairs(|| with("262144"), || with("8192"));
    let (large, small): (Vec<Turn>, Vec<Turn>) = pairs.iter().copied().unzip();
    println!("\nwrites of 1 MiB, 4 at a time, to tgt by its data segments");
    print("256 KiB", &large, true);
    print("8 KiB", &small, true);
    println!("  CPU of one x {:.2}", ratios(&pairs).1);
}

fn main() {
    // Of the same package, and the one whose package `require` knows.
    require("iscsi-ls");
    let scratch = Scratch::shared();
    let tgt = Tgt::on_loopback(&scratch, "bench-iscsi", 1, UNIT_BYTES);
    for line in [
        format!("--op new --mode logicalunit --tid 1 --lun {NULL_LUN} --bstype null -b /dev/null"),
        "--op update --mode target --tid 1 -n HeaderDigest -v CRC32C,None".to_owned(),
        "--op update --mode target --tid 1 -n DataDigest -v CRC32C,None".to_owned(),
    ] {
        run(&mut tgt.admin(&line), Duration::from_secs(10)).success();
    }
    let null = Unit {
        portal: tgt.spec().portals[0].to_string(),
        target: tgt.spec().target.clone(),
        lun: NULL_LUN,
        tgt: Some(&tgt),
    };
    OF_TGT.iter().for_each(|workload| compare(&null, workload));
    let target = Target::start(Settings {
        disk_bytes: UNIT_BYTES as usize,
        write_cache: false,
        max_recv_data_segment: 262_144,
        ..Settings::default()
    });
    let scripted = Unit {
        portal: target.address.to_string(),
        target: "iqn.2024-12.example:t".to_owned(),
        lun: 1,
        tgt: None,
    };
    OF_SCRIPT
        .iter()
        .for_each(|workload| compare(&scripted, workload));
    digests(&scripted, &null);
    small_segments(&tgt, &null);
}
