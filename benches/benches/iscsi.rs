//! What does the initiator cost beside libiscsi? `bench iscsi`'s engine and a client on libiscsi do the
//! same I/Os to the same unit on 127.0.0.1 in turns of equal time, with as many in flight; the ratios
//! are medians over the pairs. Beside each stands the bar that the initiator is held to.
//!
//! Reads and writes of a null unit of a real tgt, whose one network thread is the ceiling of both: as
//! it is shipped, with data segments of 8 KiB, and large ones also as the typical site tunes it. Then
//! the scripted target of the initiator's tests in its plain mode, which is no ceiling. Last what
//! digests cost, and what small data segments cost our client alone.
//!
//! libiscsi's own `iscsi-perf` can neither write nor tell latencies, so its loop is rebuilt in
//! [`benches::libiscsi`]; the part `yardstick` holds that against the program. Both go through the
//! unit in order; to neither unit does order matter. CPU time is user and system of the client's
//! thread, login included. Who was saturated is said by the busiest thread: tgt does all network I/O
//! of a target in one, the scripted target all of a connection, and each client has one.
//!
//! On a machine that does other things as well tgt answers one by one, and nothing gathers: run it
//! alone, or at real-time priority (`chrt -r 1`).

#[path = "../../iscsi-initiator/tests/script/mod.rs"]
mod script;

use benches::libiscsi::{self, Finished, Job};
use benches::{children_cpu, is_chosen, is_smoke, process_cpu, rounds, show, sized, thread_cpu};
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

/// A question: I/Os of so many bytes, so many in flight, and the bars for the ratios.
struct Workload {
    name: &'static str,
    mode: Mode,
    bytes: u32,
    depth: usize,
    iops_bar: f64,
    cpu_bar: Option<f64>,
    p99_bar: Option<f64>,
}

const fn of_tgt(
    name: &'static str,
    mode: Mode,
    bytes: u32,
    depth: usize,
    cpu_bar: f64,
) -> Workload {
    Workload {
        name,
        mode,
        bytes,
        depth,
        iops_bar: 1.0,
        cpu_bar: Some(cpu_bar),
        p99_bar: Some(1.0),
    }
}

const fn of_script(name: &'static str, depth: usize, iops_bar: f64) -> Workload {
    Workload {
        name,
        mode: Mode::Read,
        bytes: 4096,
        depth,
        iops_bar,
        cpu_bar: None,
        p99_bar: None,
    }
}

const MIB: u32 = 1 << 20;

const OF_TGT: [Workload; 10] = [
    of_tgt("tgt, read 4 KiB, 1 at a time", Mode::Read, 4096, 1, 1.0),
    of_tgt("tgt, read 4 KiB, 16 at a time", Mode::Read, 4096, 16, 0.5),
    of_tgt("tgt, read 4 KiB, 64 at a time", Mode::Read, 4096, 64, 0.4),
    of_tgt("tgt, read 64 KiB, 8 at a time", Mode::Read, 65_536, 8, 0.6),
    of_tgt("tgt, read 1 MiB, 4 at a time", Mode::Read, MIB, 4, 0.6),
    of_tgt("tgt, write 4 KiB, 1 at a time", Mode::Write, 4096, 1, 1.0),
    of_tgt("tgt, write 4 KiB, 16 at a time", Mode::Write, 4096, 16, 0.5),
    of_tgt("tgt, write 4 KiB, 64 at a time", Mode::Write, 4096, 64, 0.4),
    of_tgt(
        "tgt, write 64 KiB, 8 at a time",
        Mode::Write,
        65_536,
        8,
        0.6,
    ),
    of_tgt("tgt, write 1 MiB, 4 at a time", Mode::Write, MIB, 4, 0.6),
];

/// Where the target takes bursts of 1 MiB in pieces of 256 KiB, the kernel's copies are all that is
/// left of a large transfer.
const OF_TUNED: [Workload; 4] = [
    of_tgt(
        "tuned tgt, read 64 KiB, 8 at a time",
        Mode::Read,
        65_536,
        8,
        0.6,
    ),
    of_tgt(
        "tuned tgt, read 1 MiB, 4 at a time",
        Mode::Read,
        MIB,
        4,
        0.6,
    ),
    of_tgt(
        "tuned tgt, write 64 KiB, 8 at a time",
        Mode::Write,
        65_536,
        8,
        0.6,
    ),
    of_tgt(
        "tuned tgt, write 1 MiB, 4 at a time",
        Mode::Write,
        MIB,
        4,
        0.6,
    ),
];

const OF_SCRIPT: [Workload; 2] = [
    of_script("scripted, read 4 KiB, 16 at a time", 16, 1.5),
    of_script("scripted, read 4 KiB, 64 at a time", 64, 2.0),
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
    /// The same of the target's thread.
    target_load: f64,
    p99_us: f64,
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

/// Runs a client and says what the target was at meanwhile.
fn turn(unit: &Unit<'_>, client: impl FnOnce() -> Finished) -> Turn {
    let target_cpu = || match unit.tgt {
        Some(tgt) => first_thread_cpu(tgt.pid()),
        // The scripted target's threads are all the others of this process.
        None => process_cpu(None) - thread_cpu(),
    };
    let before = target_cpu();
    let done = client();
    let load = |cpu: Duration| cpu.as_secs_f64() / done.wall.as_secs_f64();
    Turn {
        iops: done.ios as f64 / done.wall.as_secs_f64(),
        cpu_ns: done.cpu.as_nanos() as f64 / done.ios.max(1) as f64,
        client_load: load(done.cpu),
        target_load: load(target_cpu() - before),
        p99_us: done.p99.as_nanos() as f64 / 1e3,
    }
}

/// I/Os of a smoke test, bytes of the unit that are used.
const SMOKE_IOS: u64 = 32;
const SPAN_BYTES: u64 = UNIT_BYTES / 2;

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
        size_bytes: is_smoke().then(|| u64::from(bytes) * SMOKE_IOS),
        offset_bytes: 0,
        span_bytes: Some(SPAN_BYTES),
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
        Finished {
            ios: report.ios,
            cpu,
            wall: Duration::from_secs_f64(report.elapsed_s),
            p99: Duration::from_micros(report.lat_us.p99),
        }
    })
}

fn theirs(unit: &Unit<'_>, bytes: u32, depth: usize, mode: Mode) -> Turn {
    let job = Job {
        portal: unit.portal.clone(),
        target: unit.target.clone(),
        lun: unit.lun,
        is_write: mode.writes(),
        bytes,
        depth,
        span_bytes: SPAN_BYTES,
        runtime: Duration::from_secs(TURN_S),
        ios_max: sized(u64::MAX, SMOKE_IOS),
    };
    turn(unit, || libiscsi::run(&job))
}

/// libiscsi's own program. Its CPU time includes its start.
fn program(unit: &Unit<'_>, bytes: u32, depth: usize) -> Turn {
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
        let story = finished.describe();
        let output = finished.success();
        // `iops average N (M MB/s)`, rewritten in place once a second; the last one counts.
        let iops = output.rsplit("iops average ").next().and_then(|rest| {
            let number = rest.split_whitespace().next()?;
            number.parse::<u64>().ok()
        });
        let iops = iops.unwrap_or_else(|| panic!("no average: {story}"));
        Finished {
            ios: iops * TURN_S,
            cpu,
            wall: Duration::from_secs(TURN_S),
            p99: Duration::ZERO,
        }
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

/// Medians of the ratios of pairs.
struct Ratios {
    iops: f64,
    /// CPU time of one I/O.
    cpu: f64,
    p99: f64,
}

fn ratios(pairs: &[(Turn, Turn)]) -> Ratios {
    let of = |what: fn(&Turn) -> f64| median(pairs.iter().map(|(a, b)| what(b) / what(a)));
    Ratios {
        iops: of(|turn| turn.iops),
        cpu: of(|turn| turn.cpu_ns),
        p99: of(|turn| turn.p99_us),
    }
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

fn print(name: &str, turns: &[Turn]) {
    let of = |what: fn(&Turn) -> f64| median(turns.iter().map(what));
    let (client, target) = (of(|t| t.client_load), of(|t| t.target_load));
    let p99 = of(|t| t.p99_us);
    let p99_text = match p99 > 0.0 {
        true => format!(", p99 {p99:.0} us"),
        false => String::new(),
    };
    println!(
        "  {name:<12} {:>7.0} IOPS, CPU {}{p99_text}; client {:.0} %, target {:.0} %: {}",
        of(|t| t.iops),
        show(of(|t| t.cpu_ns)),
        client * 100.0,
        target * 100.0,
        verdict(client, target)
    );
}

/// A ratio beside its bar.
fn bar(what: &str, ratio: f64, bar: f64, is_met: bool) -> String {
    let sign = if is_met { "met" } else { "MISSED" };
    format!("{what} x {ratio:.2} (bar {bar:.2}, {sign})")
}

/// A ratio that must not be more than its bar, if it has one.
fn at_most(what: &str, ratio: f64, most: Option<f64>) -> String {
    match most {
        Some(most) => bar(what, ratio, most, ratio <= most),
        None => format!("{what} x {ratio:.2}"),
    }
}

fn compare(unit: &Unit<'_>, workload: &Workload) {
    let Workload {
        name, bytes, depth, ..
    } = *workload;
    if !is_chosen(name) {
        return;
    }
    let way = Way {
        mode: workload.mode,
        ..READS
    };
    let pairs = pairs(
        || theirs(unit, bytes, depth, way.mode),
        || ours(unit, bytes, depth, way),
    );
    println!("\n{name}");
    let (they, we): (Vec<Turn>, Vec<Turn>) = pairs.iter().copied().unzip();
    print("libiscsi", &they);
    print("ours", &we);
    let Ratios { iops, cpu, p99 } = ratios(&pairs);
    println!(
        "  {}, {}, {}",
        bar("IOPS", iops, workload.iops_bar, iops >= workload.iops_bar),
        at_most("CPU of one", cpu, workload.cpu_bar),
        at_most("p99", p99, workload.p99_bar)
    );
}

/// Whether the loop around libiscsi costs what the one of its own program does.
fn yardstick(unit: &Unit<'_>) {
    if !is_chosen("yardstick") {
        return;
    }
    for (name, bytes, depth) in [("4 KiB, 16", 4096, 16), ("64 KiB, 8", 65_536, 8)] {
        let pairs = pairs(
            || program(unit, bytes, depth),
            || theirs(unit, bytes, depth, Mode::Read),
        );
        println!("\nyardstick: tgt, read {name} at a time");
        let (its, ours): (Vec<Turn>, Vec<Turn>) = pairs.iter().copied().unzip();
        print("iscsi-perf", &its);
        print("libiscsi", &ours);
        let Ratios { iops, cpu, .. } = ratios(&pairs);
        println!("  IOPS x {iops:.2}, CPU of one x {cpu:.2}");
    }
}

/// Both digests beside none, of our client: throughput against the scripted target, whose CRC is
/// fast, and CPU against tgt, whose CRC is not. With several reads in flight that makes tgt answer
/// one by one, and each answer a wake-up; one at a time both ways wake once for each.
fn digests(scripted: &Unit<'_>, tgt: &Unit<'_>) {
    let with = Way {
        digest: DigestWish::Crc32c,
        ..READS
    };
    for (name, unit, bytes, depth) in [
        (
            "digests, scripted, read 64 KiB, 8 at a time",
            scripted,
            65_536,
            8,
        ),
        ("digests, tgt, read 64 KiB, 8 at a time", tgt, 65_536, 8),
        ("digests, tgt, read 4 KiB, 1 at a time", tgt, 4096, 1),
    ] {
        if !is_chosen(name) {
            continue;
        }
        let pairs = pairs(
            || ours(unit, bytes, depth, READS),
            || ours(unit, bytes, depth, with),
        );
        let (none, both): (Vec<Turn>, Vec<Turn>) = pairs.iter().copied().unzip();
        println!("\n{name}");
        print("none", &none);
        print("both", &both);
        let Ratios { iops, cpu, .. } = ratios(&pairs);
        let throughput = match unit.tgt {
            None => bar("throughput", iops, 0.85, iops >= 0.85),
            Some(_) => format!("throughput x {iops:.2}"),
        };
        let cpu = at_most("CPU of one", cpu, unit.tgt.map(|_| 1.15));
        println!("  {throughput}, {cpu}");
    }
}

/// Parameters of a target as tgt 1.0.85 has them when nobody sets any.
const AS_SHIPPED: [(&str, &str); 6] = [
    ("MaxRecvDataSegmentLength", "8192"),
    ("MaxXmitDataSegmentLength", "8192"),
    ("MaxBurstLength", "262144"),
    ("FirstBurstLength", "65536"),
    ("InitialR2T", "Yes"),
    ("ImmediateData", "Yes"),
];

/// Sets parameters of the target for the logins to come.
fn set(tgt: &Tgt, parameters: &[(&str, &str)]) {
    for (key, value) in parameters {
        let line = format!("--op update --mode target --tid 1 -n {key} -v {value}");
        run(&mut tgt.admin(&line), Duration::from_secs(10)).success();
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
        set(tgt, &[("MaxRecvDataSegmentLength", segment)]);
        ours(unit, 1 << 20, 4, write)
    };
    let pairs = pairs(|| with("262144"), || with("8192"));
    let (large, small): (Vec<Turn>, Vec<Turn>) = pairs.iter().copied().unzip();
    println!("\nwrites of 1 MiB, 4 at a time, to tgt by its data segments");
    print("256 KiB", &large);
    print("8 KiB", &small);
    println!("  CPU of one x {:.2}", ratios(&pairs).cpu);
}

fn main() {
    // Of the same package, and the one whose package `require` knows.
    require("iscsi-ls");
    let scratch = Scratch::shared();
    let tgt = Tgt::on_loopback(&scratch, "bench-iscsi", 1, UNIT_BYTES);
    let line =
        format!("--op new --mode logicalunit --tid 1 --lun {NULL_LUN} --bstype null -b /dev/null");
    run(&mut tgt.admin(&line), Duration::from_secs(10)).success();
    set(
        &tgt,
        &[
            ("HeaderDigest", "CRC32C,None"),
            ("DataDigest", "CRC32C,None"),
        ],
    );
    let null = Unit {
        portal: tgt.spec().portals[0].to_string(),
        target: tgt.spec().target.clone(),
        lun: NULL_LUN,
        tgt: Some(&tgt),
    };
    OF_TUNED
        .iter()
        .for_each(|workload| compare(&null, workload));
    set(&tgt, &AS_SHIPPED);
    yardstick(&null);
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
