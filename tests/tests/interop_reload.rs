//! What a reload takes over is used: by the next login at a target that knows a new secret, and as paths of a unit
//! in service that come and go.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use harness::antler::{Antler, Device, Spec};
use harness::clock::wait_until;
use harness::net::Net;
use harness::scratch::Scratch;
use harness::site::one_storage_node;
use harness::tgt::{Tgt, TgtSpec};
use serde_json::Value;

const UNIT_BYTES: u64 = 256 << 20;
const MINUTE: Duration = Duration::from_secs(60);
const TARGET: &str = "iqn.2024-12.example.test:secret";
const USER: &str = "chunk1";
const FIRST: &str = "correct-horse-one";
const SECOND: &str = "battery-staple-two";

fn write_secret(file: &Path, secret: &str) {
    fs::write(file, secret).unwrap();
    // Secrets that others can read are refused.
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn path_is(antler: &mut Antler, what: &str, state: &str, error: &str) {
    antler.wait_status(what, MINUTE, |status| {
        let path = &status["devices"][0]["groups"][0]["paths"][0];
        let last_error = path["last_error"].as_str().unwrap_or_default();
        path["state"] == state && last_error.contains(error)
    });
}

#[test]
fn a_new_secret_is_used_by_the_next_login() {
    let scratch = Scratch::shared();
    let mut net = Net::new(&scratch);
    net.add_node("cs");
    let portal = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 3260);
    let mut unit = TgtSpec::single("sto1", TARGET, &[portal], UNIT_BYTES);
    unit.chap = Some((USER.to_owned(), FIRST.to_owned()));
    let mut tgt = Tgt::start(&scratch, net.place("cs"), unit);
    let secret = scratch.sub("antler").join("secret");
    write_secret(&secret, FIRST);
    let spec = Spec {
        master: "127.0.0.1".into(),
        listen: Ipv4Addr::LOCALHOST,
        labels: String::new(),
        auth_code: None,
        devices: Vec::new(),
        volumes: Vec::new(),
        more: format!(
            "\n[[device]]\nname = \"sto1\"\nportals = [\"{portal}\"]\ntarget = \"{TARGET}\"\nlun = 1\n\
             chap_user = \"{USER}\"\nchap_secret_file = \"{}\"\n\
             \n[[volume]]\nname = \"vol1\"\nmirror = \"sto1\"\n",
            secret.display()
        ),
    };
    let mut antler = Antler::install(&scratch, "antler", net.place("cs"), spec);
    antler.create_volume("vol1");
    antler.start();
    path_is(&mut antler, "the first secret", "active", "");

    tgt.restart_with_chap(USER, SECOND);
    path_is(
        &mut antler,
        "the first secret to be refused",
        "failed",
        "authentication",
    );
    write_secret(&secret, SECOND);
    antler.reload();
    path_is(&mut antler, "the second secret", "active", "");
    antler.wait_event("config_reloaded", MINUTE);
    let log = antler.log();
    assert!(!log.contains(FIRST) && !log.contains(SECOND), "{log}");
    antler.stop();
}

/// Our address on the second storage network, where the bench plays the master; what is local is never cut.
const OURS: Ipv4Addr = Ipv4Addr::new(10, 3, 2, 101);
const MASTER_PORT: u16 = 9420;

/// Portals and states of the unit's paths.
fn paths(antler: &Antler) -> Vec<(String, String)> {
    let devices = antler.json(&["paths"]);
    let groups = devices["devices"][0]["groups"].as_array().unwrap().clone();
    let paths = groups.iter().flat_map(|g| g["paths"].as_array().unwrap());
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut paths: Vec<_> = paths
        .map(|p| (text(&p["portal"]), text(&p["state"])))
        .collect();
    paths.sort();
    paths
}

fn wait_paths(antler: &Antler, expected: &[(SocketAddrV4, &str)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(portal, state)| (portal.to_string(), (*state).to_owned()))
        .collect();
    wait_until(&format!("the paths {expected:?}"), MINUTE, || {
        paths(antler) == expected
    });
}

/// Waits until the load has got on by so many requests.
fn wait_progress(antler: &Antler) {
    let ios = || {
        let clients = &antler.status()["clients"];
        clients["read_ios"].as_u64().unwrap() + clients["write_ios"].as_u64().unwrap()
    };
    let before = ios();
    wait_until("the load to go on", MINUTE, || ios() > before + 200);
}

fn reload_with(antler: &mut Antler, portals: &[SocketAddrV4]) {
    let wanted = portals.iter().map(ToString::to_string).collect();
    antler.reconfigure(|spec| match &mut spec.devices[0] {
        Device::Iscsi { portals, .. } => *portals = wanted,
        Device::Local { .. } => unreachable!("a unit"),
    });
    antler.reload();
}

#[test]
fn paths_come_and_go_under_load() {
    let scratch = Scratch::exclusive();
    let (net, portals) = one_storage_node(&scratch);
    let [first, second] = [portals[0], portals[1]];
    let unit = TgtSpec::single("sto1", TARGET, &portals, UNIT_BYTES);
    let tgt = Tgt::start(&scratch, net.place("sto1"), unit);
    let master = format!("{OURS}:{MASTER_PORT}");
    let spec = Spec {
        master: master.clone(),
        listen: OURS,
        labels: String::new(),
        auth_code: None,
        devices: vec![Device::Iscsi {
            name: "sto1".to_owned(),
            portals: vec![first.to_string()],
            target: TARGET.to_owned(),
            lun: 1,
        }],
        volumes: vec![("vol1".to_owned(), vec!["sto1".to_owned()])],
        more: String::new(),
    };
    let mut antler = Antler::install(&scratch, "antler", net.place("cs"), spec);
    antler.create_volume("vol1");
    antler.start();
    let bench = [
        "bench",
        "chunk",
        "--master",
        &master,
        "--chunks",
        "4",
        "--rw",
        "randrw",
        "--bs",
        "4k",
        "--iodepth",
        "16",
        "--runtime",
        "20",
        "--json",
    ];
    let mut load = antler.command(&bench);
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let load = load.unwrap();
    antler.wait_registered(MINUTE);
    wait_paths(&antler, &[(first, "active")]);
    wait_progress(&antler);

    reload_with(&mut antler, &[first, second]);
    wait_paths(&antler, &[(first, "active"), (second, "active")]);
    tgt.wait_sessions(2, MINUTE);
    // The path that was there before fails, and the new one carries what it carried.
    net.cut("san0");
    wait_paths(&antler, &[(first, "failed"), (second, "active")]);
    wait_progress(&antler);
    net.restore("san0");
    wait_paths(&antler, &[(first, "active"), (second, "active")]);

    reload_with(&mut antler, &[second]);
    wait_paths(&antler, &[(second, "active")]);
    tgt.wait_sessions(1, MINUTE);
    wait_progress(&antler);
    // It is the same path that comes back, under its own ISID.
    reload_with(&mut antler, &[second, first]);
    wait_paths(&antler, &[(first, "active"), (second, "active")]);
    tgt.wait_sessions(2, MINUTE);
    wait_progress(&antler);
    reload_with(&mut antler, &[second, first]);
    wait_until("a reload that changes nothing", MINUTE, || {
        let status = antler.status();
        let mut events = status["events"].as_array().unwrap().iter();
        events.any(|e| e["event"] == "config_reloaded" && e["text"] == "nothing changed")
    });

    let done = load.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["errors"], 0, "{report:#}");
    antler.stop();
    antler.run(&["volume", "check", "vol1", "--data"]).success();
}
