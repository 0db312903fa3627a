//! `antler bench iscsi` against tgt: every mode and option of INTERFACE.md §4, what it prints, and how
//! it exits.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use harness::antler::{Antler, Spec};
use harness::command::Finished;
use harness::istgt::Istgt;
use harness::net::Place;
use harness::scratch::Scratch;
use harness::tgt::{free_ports, Tgt};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddrV4};

const UNIT_BYTES: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

struct Bench {
    antler: Antler,
    portal: String,
    target: String,
    scratch: Scratch,
    _tgt: Tgt,
}

impl Bench {
    fn new() -> Bench {
        let scratch = Scratch::shared();
        let tgt = Tgt::on_loopback(&scratch, "one", 1, UNIT_BYTES);
        let spec = Spec {
            master: "127.0.0.1".into(),
            listen: Ipv4Addr::LOCALHOST,
            labels: String::new(),
            auth_code: None,
            devices: Vec::new(),
            volumes: Vec::new(),
            more: String::new(),
        };
        Bench {
            antler: Antler::install(&scratch, "antler", Place::host(), spec),
            portal: tgt.spec().portals[0].to_string(),
            target: tgt.spec().target.clone(),
            scratch,
            _tgt: tgt,
        }
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec!["bench", "iscsi", "--portal", &self.portal];
        arguments.extend(["--target", &self.target, "--lun", "1"]);
        arguments.extend(more);
        arguments
    }

    fn json(&self, more: &[&str]) -> Value {
        self.antler.json(&self.arguments(more))
    }

    fn run(&self, more: &[&str]) -> Finished {
        self.antler.run(&self.arguments(more))
    }
}

/// Every key, of the type that INTERFACE.md shows, and nothing lost.
fn assert_report(report: &Value, rw: &str) {
    for (key, wanted) in [("bench", "iscsi"), ("rw", rw)] {
        assert_eq!(report[key], wanted, "{report:#}");
    }
    for key in [
        "bs_bytes",
        "iodepth",
        "sessions",
        "ios",
        "bytes",
        "errors",
        "verify_errors",
    ] {
        assert!(report[key].is_u64(), "{key}: {report:#}");
    }
    for key in ["elapsed_s", "iops", "bytes_per_s"] {
        assert!(
            report[key].as_f64().is_some_and(|value| value > 0.0),
            "{key}: {report:#}"
        );
    }
    let latency = |key: &str| {
        report["lat_us"][key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key}: {report:#}"))
    };
    let order = ["min", "p50", "p90", "p99", "p99_9", "max"].map(latency);
    assert!(order.is_sorted(), "{report:#}");
    assert!(latency("mean") >= latency("min") && latency("mean") <= latency("max"));
    for key in ["user", "system"] {
        assert!(report["cpu_s"][key].is_f64(), "{key}: {report:#}");
    }
    assert_eq!(
        (&report["errors"], &report["verify_errors"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn every_mode_reports_what_it_did_and_stays_in_its_region() {
    let bench = Bench::new();
    for rw in ["read", "write", "randread", "randwrite", "randrw", "verify"] {
        let trace = bench.scratch.dir().join(format!("{rw}.trace"));
        let trace = trace.to_str().unwrap();
        let report = bench.json(&[
            "--rw",
            rw,
            "--bs",
            "8k",
            "--iodepth",
            "4",
            "--sessions",
            "2",
            "--size",
            "1MiB",
            "--offset",
            "1MiB",
            "--span",
            "2MiB",
            "--seed",
            "7",
            "--trace",
            trace,
            "--destructive",
        ]);
        assert_report(&report, rw);
        assert_eq!(report["bs_bytes"], 8192);
        assert_eq!(
            (&report["iodepth"], &report["sessions"]),
            (&4.into(), &2.into())
        );
        let ios = report["ios"].as_u64().unwrap();
        assert_eq!(report["bytes"], ios * 8192);
        // Verify reads back what it wrote beyond what was asked for.
        assert!(ios == 128 || rw == "verify" && ios > 128, "{report:#}");
        let lines = std::fs::read_to_string(trace).unwrap();
        assert_eq!(lines.lines().count() as u64, ios);
        let mut directions = [false; 2];
        for line in lines.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [start, latency, direction, offset, bytes, "ok"] = fields[..] else {
                panic!("{line}");
            };
            assert!(
                start.parse::<u64>().is_ok() && latency.parse::<u64>().is_ok(),
                "{line}"
            );
            let offset: u64 = offset.parse().unwrap();
            assert!(
                (MIB..3 * MIB).contains(&offset) && offset % 8192 == 0,
                "{line}"
            );
            assert_eq!(bytes, "8192");
            directions[["r", "w"].iter().position(|&d| d == direction).unwrap()] = true;
        }
        let expected = match rw {
            "read" | "randread" => [true, false],
            "write" | "randwrite" => [false, true],
            _ => [true, true],
        };
        assert_eq!(directions, expected, "{rw}");
    }
}

#[test]
fn digests_are_negotiated_and_shown() {
    let bench = Bench::new();
    let load = ["--rw", "randread", "--size", "256KiB"];
    let report = bench.json(&load);
    assert_report(&report, "randread");
    assert_eq!(
        (&report["header_digest"], &report["data_digest"]),
        (&"none".into(), &"none".into())
    );
    // tgt grants none as it is shipped: what is demanded ends the login, what is preferred does not.
    let refused = bench.run(&[&load[..], &["--header-digest", "crc32c"]].concat());
    assert_eq!(refused.code, Some(1), "{}", refused.describe());
    let preferred = bench.json(&[&load[..], &["--header-digest", "prefer-crc32c"]].concat());
    assert_eq!(preferred["header_digest"], "none");

    let portal = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_ports(1)[0]);
    let istgt = Istgt::start(
        &bench.scratch,
        Place::host(),
        "disk1",
        &[portal],
        UNIT_BYTES,
    );
    let (portal, target) = (portal.to_string(), istgt.target());
    let mut arguments = vec!["bench", "iscsi", "--portal", &portal, "--target", &target];
    arguments.extend(["--header-digest", "crc32c", "--data-digest", "crc32c"]);
    arguments.extend(load);
    let report = bench.antler.json(&arguments);
    assert_report(&report, "randread");
    assert_eq!(
        (&report["header_digest"], &report["data_digest"]),
        (&"crc32c".into(), &"crc32c".into())
    );
    let text = bench.run(&load).success();
    assert!(text.contains("randread"), "{text}");
}

#[test]
fn exit_codes_tell_usage_refusal_and_absence_apart() {
    let bench = Bench::new();
    let nobody = format!("127.0.0.1:{}", free_ports(1)[0]);
    let base = ["bench", "iscsi", "--size", "4k", "--portal"];
    let at = |more: &[&str]| bench.antler.run(&[&base[..], more].concat());
    let code = |finished: Finished, wanted: i32| {
        assert_eq!(finished.code, Some(wanted), "{}", finished.describe());
    };
    code(at(&[&nobody, "--target", &bench.target]), 3);
    code(
        at(&[&bench.portal, "--target", "iqn.2024-12.example:none"]),
        1,
    );
    code(
        at(&[&bench.portal, "--target", &bench.target, "--lun", "7"]),
        1,
    );
    code(at(&[&bench.portal, "--target", "no name"]), 2);
    code(bench.run(&["--bs", "100", "--size", "4k"]), 2);
    code(bench.run(&["--offset", "1GiB", "--size", "4k"]), 2);
    code(bench.run(&["--iodepth", "5000", "--size", "4k"]), 2);
    code(bench.run(&["--rw", "randwrite", "--size", "4k"]), 2);
    code(
        bench.run(&["--initiator-name", "IQN.UPPER", "--size", "4k"]),
        2,
    );
    code(bench.run(&["--chap-user", "u", "--size", "4k"]), 2);
}
