//! A link that is lost aloud and comes back: the cable is pulled at its far end, under load, in a
//! namespace.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use std::process::Stdio;
use std::time::Duration;

use harness::antler::{Antler, Device, Spec};
use harness::clock::{pause, wait_until};
use harness::scratch::Scratch;
use harness::site::{one_storage_node, TARGET};
use harness::tgt::{Tgt, TgtSpec};
use serde_json::Value;
use std::net::Ipv4Addr;

const UNIT_BYTES: u64 = 256 << 20;
const MINUTE: Duration = Duration::from_secs(60);
/// Our address on the first storage network, where the bench plays the master; what is local needs no
/// carrier.
const OURS: Ipv4Addr = Ipv4Addr::new(10, 3, 1, 101);
const MASTER_PORT: u16 = 9420;
/// How long the kernel may gather the changes of links before it tells of them.
const LINKWATCH: Duration = Duration::from_millis(1500);

fn states(antler: &Antler) -> Vec<(String, String)> {
    let devices = antler.json(&["paths"]);
    let groups = devices["devices"][0]["groups"].as_array().unwrap().clone();
    let paths = groups.iter().flat_map(|g| g["paths"].as_array().unwrap());
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let path = |p: &Value| (text(&p["portal"]), text(&p["state"]));
    let mut states: Vec<_> = paths.map(path).collect();
    states.sort();
    states
}

fn wait_active(antler: &Antler, active: usize) {
    wait_until(&format!("{active} active paths"), MINUTE, || {
        let states = states(antler);
        states.len() == 2 && states.iter().filter(|(_, s)| s == "active").count() == active
    });
}

fn client_ios(antler: &Antler) -> u64 {
    let clients = &antler.status()["clients"];
    clients["read_ios"].as_u64().unwrap() + clients["write_ios"].as_u64().unwrap()
}

fn wait_progress(antler: &Antler) {
    let before = client_ios(antler);
    wait_until("the load to go on", MINUTE, || {
        client_ios(antler) > before + 200
    });
}

/// The causes of the failures of a path, oldest first.
fn causes(antler: &Antler, portal: &str) -> Vec<String> {
    let status = antler.status();
    let events = status["events"].as_array().unwrap().clone();
    let of_path = |e: &&Value| {
        e["event"] == "path_failed" && e["object"].as_str().unwrap_or_default().ends_with(portal)
    };
    let text = |e: &Value| e["text"].as_str().unwrap_or_default().to_owned();
    events.iter().filter(of_path).map(text).collect()
}

#[test]
fn a_pulled_cable_fails_its_path_by_the_word_of_the_kernel() {
    let scratch = Scratch::exclusive();
    let (net, portals) = one_storage_node(&scratch);
    let spec = TgtSpec::single("sto1", TARGET, &portals, UNIT_BYTES);
    let _tgt = Tgt::start(&scratch, net.place("sto1"), spec);
    let spec = Spec {
        master: format!("{OURS}:{MASTER_PORT}"),
        listen: OURS,
        labels: String::new(),
        auth_code: None,
        devices: vec![Device::Iscsi {
            name: "sto1".to_owned(),
            portals: portals.iter().map(ToString::to_string).collect(),
            target: TARGET.to_owned(),
            lun: 1,
        }],
        volumes: vec![("vol1".to_owned(), vec!["sto1".to_owned()])],
        more: String::new(),
    };
    let mut antler = Antler::install(&scratch, "antler", net.place("cs"), spec);
    antler.create_volume("vol1");
    antler.start();
    let master = format!("{OURS}:{MASTER_PORT}");
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
        "30",
        "--json",
    ];
    let mut load = antler.command(&bench);
    let load = load
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    antler.wait_registered(MINUTE);
    wait_active(&antler, 2);
    wait_progress(&antler);
    for (n, portal) in portals.iter().enumerate() {
        let link = format!("san{n}");
        // The kernel tells of a link's changes once a second at most, and of a first one at once.
        pause(LINKWATCH);
        net.unplug(&link);
        wait_active(&antler, 1);
        wait_progress(&antler);
        let causes = causes(&antler, &portal.to_string());
        let said = format!("link down: {link} has no carrier");
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert!(causes[0].ends_with(&said), "{causes:?}");
        net.plug(&link);
        wait_active(&antler, 2);
        let said = format!("sto1 {portal}: its link is back");
        assert!(antler.log().contains(&said), "{}", antler.log_tail());
        wait_progress(&antler);
    }
    let done = load.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["errors"], 0, "{report:#}");
    antler.stop();
}
