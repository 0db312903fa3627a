//! A unit that is away for longer than requests are queued: its volume fails, and is begun again.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::antler::{Antler, Device, Spec};
use harness::clock::wait_until;
use harness::command::run;
use harness::net::Place;
use harness::scratch::Scratch;
use harness::tgt::{free_ports, Tgt};
use serde_json::Value;

const UNIT_BYTES: u64 = 256 << 20;
const MINUTE: Duration = Duration::from_secs(60);

fn bench(antler: &Antler, master: &str, seconds: &str) -> Command {
    antler.command(&[
        "bench",
        "chunk",
        "--master",
        master,
        "--chunks",
        "4",
        "--rw",
        "randrw",
        "--bs",
        "4k",
        "--iodepth",
        "8",
        "--runtime",
        seconds,
        "--json",
    ])
}

fn is_active(antler: &Antler) -> bool {
    let status = antler.try_status();
    status.is_some_and(|status| status["volumes"][0]["state"] == "active")
}

#[test]
fn a_volume_whose_unit_was_away_for_too_long_is_begun_again() {
    let scratch = Scratch::exclusive();
    let mut tgt = Tgt::on_loopback(&scratch, "sto1", 2, UNIT_BYTES);
    let master = format!("127.0.0.1:{}", free_ports(1)[0]);
    let spec = Spec {
        master: master.clone(),
        listen: Ipv4Addr::LOCALHOST,
        labels: String::new(),
        auth_code: None,
        devices: vec![Device::Iscsi {
            name: "sto1".to_owned(),
            portals: tgt.spec().portals.iter().map(ToString::to_string).collect(),
            target: tgt.spec().target.clone(),
            lun: 1,
        }],
        volumes: vec![("vol1".to_owned(), vec!["sto1".to_owned()])],
        more: "[multipath]\nno_path_retry = \"fail\"\n".to_owned(),
    };
    let mut antler = Antler::install(&scratch, "antler", Place::host(), spec);
    antler.create_volume("vol1");
    antler.start();

    let mut load = bench(&antler, &master, "6");
    let load = load.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut load = load.unwrap();
    wait_until("the load to begin", MINUTE, || {
        let status = antler.try_status();
        status.is_some_and(|status| status["clients"]["write_ios"].as_u64() > Some(100))
    });
    tgt.kill();
    wait_until("the volume to fail", MINUTE, || !is_active(&antler));
    tgt.restart();
    wait_until("the volume to be back", MINUTE, || is_active(&antler));
    load.wait().unwrap(); // it met errors, as it should

    let done = run(&mut bench(&antler, &master, "3"), MINUTE).success();
    let report: Value = serde_json::from_str(&done).unwrap();
    assert_eq!(report["errors"], 0, "{report:#}");
    assert!(report["ios"].as_u64() > Some(100), "{report:#}");
    antler.stop();
    antler.run(&["volume", "check", "vol1", "--data"]).success();
}
