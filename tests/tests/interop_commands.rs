//! The commands against targets on 127.0.0.1: what they print, what they refuse, and how they exit.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use harness::antler::{Antler, Device, Spec};
use harness::command::{must, run, Finished};
use harness::istgt::Istgt;
use harness::net::Place;
use harness::scratch::Scratch;
use harness::tgt::{free_ports, Tgt, TgtSpec};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

const UNIT_BYTES: u64 = 256 << 20;

fn device(name: &str, tgt: &Tgt) -> Device {
    Device::Iscsi {
        name: name.to_owned(),
        portals: tgt.spec().portals.iter().map(ToString::to_string).collect(),
        target: tgt.spec().target.clone(),
        lun: 1,
    }
}

fn spec(devices: Vec<Device>, volumes: &[(&str, &[&str])]) -> Spec {
    let volumes = volumes
        .iter()
        .map(|(name, legs)| {
            (
                (*name).to_owned(),
                legs.iter().map(|l| (*l).to_owned()).collect(),
            )
        })
        .collect();
    Spec {
        master: "127.0.0.1".into(),
        listen: Ipv4Addr::LOCALHOST,
        labels: String::new(),
        auth_code: None,
        devices,
        volumes,
        more: String::new(),
    }
}

/// Both outputs, for messages that must name something.
fn words(finished: &Finished) -> String {
    format!("{}{}", finished.stdout, finished.stderr)
}

#[track_caller]
fn assert_names(finished: &Finished, code: i32, names: &[&str]) {
    assert_eq!(finished.code, Some(code), "{}", finished.describe());
    for name in names {
        assert!(
            words(finished).contains(name),
            "no {name:?} in: {}",
            finished.describe()
        );
    }
}

#[test]
fn volumes_on_two_targets_from_creation_to_check() {
    let scratch = Scratch::shared();
    let first = Tgt::on_loopback(&scratch, "one", 2, UNIT_BYTES);
    let second = Tgt::on_loopback(&scratch, "two", 2, UNIT_BYTES);
    let devices = vec![device("sto1", &first), device("sto2", &second)];
    let spec = spec(devices, &[("vol1", &["sto1", "sto2"])]);
    let antler = Antler::install(&scratch, "antler", Place::host(), spec);

    let check = antler.json(&["check"]);
    assert_eq!(check["ok"], true, "{check:#}");

    // A file system on one leg is not overwritten unasked.
    must(
        std::process::Command::new("/sbin/mke2fs")
            .args(["-q", "-F", "-L", "precious"])
            .arg(first.backing_file(1)),
    );
    let refused = antler.run(&["volume", "create", "vol1"]);
    assert_names(&refused, 1, &["sto1", "ext", "--force"]);
    run(
        &mut antler.command(&["volume", "create", "vol1", "--force"]),
        Duration::from_secs(120),
    )
    .success();

    let again = antler.run(&["volume", "create", "vol1"]);
    assert_names(&again, 1, &["vol1"]);
    let list = antler.json(&["volume", "list"]);
    let volume = &list["volumes"][0];
    assert_eq!(volume["name"], "vol1");
    assert_eq!(volume["chunks"], 0);
    assert_eq!(volume["clean"], true);
    assert_eq!(volume["legs"].as_array().map(Vec::len), Some(2), "{list:#}");
    let info = antler.json(&["volume", "info", "vol1"]);
    assert_eq!(info["name"], "vol1");
    assert!(info["format_version"].is_number(), "{info:#}");
    let check = antler.json(&["volume", "check", "vol1"]);
    assert_eq!(check["result"], "clean", "{check:#}");

    // mdadm accepts both legs as one array.
    let legs = [&first, &second].map(|tgt| harness::md::examine(&tgt.backing_file(1)));
    assert_eq!(legs[0], legs[1]);
    assert_eq!(legs[0].array_state, "AA");
}

#[test]
fn discover_and_device_info() {
    let scratch = Scratch::shared();
    let mut tgt = Tgt::on_loopback(&scratch, "one", 2, UNIT_BYTES);
    let spec = spec(vec![device("sto1", &tgt)], &[]);
    let mut antler = Antler::install(&scratch, "antler", Place::host(), spec);
    let portal = tgt.spec().portals[0].to_string();

    let found = antler.json(&["discover", &portal]);
    assert_eq!(found["portal"], portal);
    assert_eq!(found["targets"][0]["name"], tgt.spec().target);
    let text = antler.run(&["discover", &portal]).success();
    assert!(
        text.contains(&format!("{portal},1 {}", tgt.spec().target)),
        "{text}"
    );
    let nobody = format!("127.0.0.1:{}", free_ports(1)[0]);
    assert_names(&antler.run(&["discover", &nobody]), 3, &[&nobody]);

    let info = antler.json(&["device", "info", "sto1"]);
    assert_eq!(info["size_bytes"], UNIT_BYTES);
    assert_eq!(info["serial"], "one-1");
    assert_eq!(info["block_bytes"], 512);
    let wwid = info["wwid"].as_str().unwrap().to_owned();
    assert!(!wwid.is_empty());
    for path in info["paths"].as_array().unwrap() {
        assert_eq!(path["state"], "ready");
        assert!(path["login_ms"].is_number(), "{info:#}");
    }

    // Another unit than the one named is refused, with both names.
    antler.reconfigure(|spec| {
        spec.more = "\n[[device]]\nname = \"other\"\n".to_owned()
            + &format!(
                "portals = [\"{portal}\"]\ntarget = \"{}\"\n",
                tgt.spec().target
            )
            + "lun = 1\nwwid = \"36001405d363af4e9a69472cbd4711629\"\n";
    });
    let refused = antler.run(&["device", "info", "other"]);
    assert_eq!(
        refused.code.map(|code| code != 0),
        Some(true),
        "{}",
        refused.describe()
    );
    assert!(words(&refused).contains(&wwid), "{}", refused.describe());

    // tgt's LUN 0 is its controller: refused, with the disks there are.
    antler.reconfigure(|spec| {
        spec.more.clear();
        spec.devices.iter_mut().for_each(|device| {
            if let Device::Iscsi { lun, .. } = device {
                *lun = 0;
            }
        });
    });
    let refused = antler.run(&["device", "info", "sto1"]);
    assert_eq!(
        refused.code.map(|code| code != 0),
        Some(true),
        "{}",
        refused.describe()
    );

    tgt.kill();
    assert_eq!(antler.run(&["device", "info", "sto1"]).code, Some(3));
}

#[test]
fn two_units_with_one_identity_are_refused() {
    let scratch = Scratch::shared();
    let start = |name: &str| {
        let portal = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_ports(1)[0]);
        let mut spec = TgtSpec::single(name, "iqn.2024-12.example.test:x", &[portal], UNIT_BYTES);
        spec.units[0].serial = "same".into();
        Tgt::start(&scratch, Place::host(), spec)
    };
    let (first, second) = (start("one"), start("two"));
    let devices = vec![device("sto1", &first), device("sto2", &second)];
    let spec = spec(devices, &[("vol1", &["sto1", "sto2"])]);
    let antler = Antler::install(&scratch, "antler", Place::host(), spec);
    let refused = antler.run(&["volume", "create", "vol1"]);
    assert_names(&refused, 1, &["sto1", "sto2", "scsi_id"]);
}

#[test]
fn istgt_is_a_target_too() {
    let scratch = Scratch::shared();
    let portal = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_ports(1)[0]);
    let istgt = Istgt::start(&scratch, Place::host(), "disk1", &[portal], UNIT_BYTES);
    let device = Device::Iscsi {
        name: "disk1".into(),
        portals: vec![portal.to_string()],
        target: istgt.target(),
        lun: 0,
    };
    let spec = spec(vec![device], &[]);
    let antler = Antler::install(&scratch, "antler", Place::host(), spec);
    let info = antler.json(&["device", "info", "disk1"]);
    assert_eq!(info["vendor"], "ANTLER");
    assert_eq!(info["size_bytes"], UNIT_BYTES);
    verify_bench(&antler, portal, &istgt.target(), 0);
}

#[test]
fn bench_iscsi_verifies_what_it_wrote() {
    let scratch = Scratch::shared();
    let tgt = Tgt::on_loopback(&scratch, "one", 1, UNIT_BYTES);
    let antler = Antler::install(&scratch, "antler", Place::host(), spec(Vec::new(), &[]));
    let target = tgt.spec().target.clone();
    let portal = tgt.spec().portals[0];
    let unasked = antler.run(&[
        "bench",
        "iscsi",
        "--portal",
        &portal.to_string(),
        "--target",
        &target,
        "--lun",
        "1",
        "--rw",
        "randwrite",
        "--bs",
        "4k",
        "--runtime",
        "1",
    ]);
    assert_names(&unasked, 2, &["--destructive"]);
    verify_bench(&antler, portal, &target, 1);
}

fn verify_bench(antler: &Antler, portal: SocketAddrV4, target: &str, lun: u32) {
    let result: Value = antler.json(&[
        "bench",
        "iscsi",
        "--portal",
        &portal.to_string(),
        "--target",
        target,
        "--lun",
        &lun.to_string(),
        "--rw",
        "verify",
        "--bs",
        "16k",
        "--iodepth",
        "8",
        "--runtime",
        "2",
        "--span",
        "32MiB",
        "--seed",
        "1",
        "--destructive",
    ]);
    assert_eq!(result["errors"], 0, "{result:#}");
    assert_eq!(result["verify_errors"], 0, "{result:#}");
    assert!(result["ios"].as_u64().unwrap() > 0, "{result:#}");
}

#[test]
fn bad_configs_are_refused_with_their_line() {
    let scratch = Scratch::shared();
    let antler = Antler::install(&scratch, "antler", Place::host(), spec(Vec::new(), &[]));
    assert!(antler.run(&["check"]).code == Some(0));
    let config = antler.config().to_owned();
    let good = std::fs::read_to_string(&config).unwrap();

    std::fs::write(&config, good.replace("master_host", "mastr_host")).unwrap();
    let file_and_line = format!("{}:2: unknown key \"mastr_host\"", config.display());
    let refused = antler.run(&["check"]);
    assert_names(
        &refused,
        2,
        &[&file_and_line, "[chunkserver]", "master_host"],
    );

    let cut = good.find("data_path").unwrap() + 15;
    std::fs::write(&config, &good[..cut]).unwrap();
    assert_names(&antler.run(&["check"]), 2, &[&config.display().to_string()]);
    assert_names(&antler.run(&["serve"]), 2, &[&config.display().to_string()]);

    std::fs::remove_file(&config).unwrap();
    assert_names(&antler.run(&["check"]), 2, &[&config.display().to_string()]);
    assert_eq!(antler.run(&["no-such-command"]).code, Some(2));
    let mut version = std::process::Command::new(harness::antler::binary());
    let version = run(version.arg("--version"), Duration::from_secs(5)).success();
    assert!(version.starts_with("antler "), "{version}");
}

#[test]
fn commands_that_need_the_daemon_name_its_socket() {
    let scratch = Scratch::shared();
    let antler = Antler::install(&scratch, "antler", Place::host(), spec(Vec::new(), &[]));
    for command in ["status", "paths", "arrays"] {
        assert_names(&antler.run(&[command]), 3, &["admin.sock"]);
    }
}
