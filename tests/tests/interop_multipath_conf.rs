//! A site's `multipath.conf` against a real unit: what waits for the unit's own words.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use harness::antler::{Antler, Device, Spec};
use harness::clock::wait_until;
use harness::net::Net;
use harness::scratch::Scratch;
use harness::site::{one_storage_node, TARGET};
use harness::tgt::{Tgt, TgtSpec};
use serde_json::Value;

const UNIT_BYTES: u64 = 256 << 20;
/// Our address on the first storage network.
const OURS: Ipv4Addr = Ipv4Addr::new(10, 3, 1, 101);
const MINUTE: Duration = Duration::from_secs(60);

/// A chunk node with a unit of two paths.
struct Site {
    antler: Antler,
    conf: String,
    _tgt: Tgt,
    _net: Net,
    _scratch: Scratch,
}

fn site(conf: &str) -> Site {
    let scratch = Scratch::exclusive();
    let (net, portals) = one_storage_node(&scratch);
    let spec = TgtSpec::single("sto1", TARGET, &portals, UNIT_BYTES);
    let tgt = Tgt::start(&scratch, net.place("sto1"), spec);
    let file = scratch.dir().join("multipath.conf");
    fs::write(&file, conf).unwrap();
    let spec = Spec {
        master: OURS.to_string(),
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
        more: format!("\n[multipath]\nmultipath_conf = {file:?}\n"),
    };
    Site {
        antler: Antler::install(&scratch, "antler", net.place("cs"), spec),
        conf: file.display().to_string(),
        _tgt: tgt,
        _net: net,
        _scratch: scratch,
    }
}

#[test]
fn a_unit_is_named_and_set_by_what_it_says() {
    let conf = "defaults {\n user_friendly_names yes\n path_grouping_policy failover\n}\n\
                devices {\n device {\n  vendor \"^IET$\"\n  product \"VIRTUAL\"\n  path_grouping_policy multibus\n }\n}\n";
    let mut site = site(conf);
    let antler = &mut site.antler;
    antler.create_volume("vol1");
    antler.start();
    antler.wait_status("both paths in one group, with an alias", MINUTE, |status| {
        let device = &status["devices"][0];
        device["alias"] == "mpatha"
            && device["groups"].as_array().map(Vec::len) == Some(1)
            && device["groups"][0]["paths"].as_array().map(Vec::len) == Some(2)
    });
    let paths = antler.json(&["paths"]);
    let device = &paths["devices"][0];
    assert_eq!(device["name"], "sto1");
    let wwid = device["wwid"].as_str().unwrap();
    let text = antler.run(&["paths"]).success();
    assert!(
        text.starts_with(&format!("mpatha ({wwid}) sto1 IET")),
        "{text}"
    );
    let maps = antler
        .run(&["paths", "--maps", "--format", "%n %d %N"])
        .success();
    assert_eq!(maps, "name   sysfs paths\nmpatha sto1  2\n");
    let serial = device["serial"].as_str().unwrap();
    let columns = antler.run(&["paths", "--format", "%z"]).success();
    assert!(columns.contains(serial), "{columns}");
    assert_eq!(antler.run(&["paths", "--format", "%!"]).code, Some(2));
    let bindings = fs::read_to_string(antler.dir().join("data/bindings")).unwrap();
    assert!(
        bindings.ends_with(&format!("\nmpatha {wwid}\n")),
        "{bindings}"
    );
    antler.stop();
}

#[test]
fn a_blacklisted_unit_is_refused_by_the_line_that_names_it() {
    let conf = "# ours\nblacklist {\n device {\n  vendor \"^IET\"\n }\n}\n";
    let mut site = site(conf);
    let line = format!("{}:3: vendor", site.conf);
    let antler = &mut site.antler;
    let info = antler.run(&["device", "info", "sto1", "--json"]);
    assert_eq!(info.code, Some(1), "{}", info.describe());
    let info: Value = serde_json::from_str(&info.stdout).unwrap();
    assert_eq!(info["paths"][0]["state"], "misconfigured", "{info:#}");
    let said = info["paths"][0]["error"].as_str().unwrap();
    assert!(said.contains(&format!("blacklisted at {line}")), "{said}");
    let create = antler.run(&["volume", "create", "vol1"]);
    assert_ne!(create.code, Some(0));
    assert!(create.stderr.contains(&line), "{}", create.describe());
    antler.start();
    wait_until("the path to be refused", MINUTE, || {
        let status = antler.try_status();
        status.is_some_and(|status| {
            let path = &status["devices"][0]["groups"][0]["paths"][0];
            let error = path["last_error"].as_str().unwrap_or_default();
            path["state"] == "failed" && error.contains(&line)
        })
    });
    antler.stop();
}
