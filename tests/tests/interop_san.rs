//! The typical site: a mirror of two units on two storage nodes, two paths each, under a real
//! master and mount; paths and nodes fail while an application writes.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use std::time::Duration;

use harness::clock::wait_until;
use harness::files::Corpus;
use harness::load::Load;
use harness::md::{examine, Superblock};
use harness::shapes;
use harness::site::{portal, san_link, Site, Storage, TARGET, UNIT_BYTES};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_mirrored_san_under_moosefs() {
    let mut site = Site::start(Storage::San, None);
    commands_know_the_site(&site);
    let corpus = shapes::write_every_shape(site.mounted());
    site.mounted().remount();
    corpus.verify();

    let path = site.mounted().path().join("load");
    let load = Load::start(&path, 77);
    load.progress(5, MINUTE);
    a_path_is_cut_silently(&mut site, &load);
    a_path_is_pulled(&mut site, &load);
    a_storage_node_is_killed_and_returns(&mut site, &load);
    a_storage_node_freezes_and_thaws(&mut site, &load);
    both_storage_nodes_are_killed_and_return(&mut site, &load);
    the_server_is_killed(&mut site, &load);
    let acknowledged = load.finish();

    superblocks_settle(&site);
    site.mounted().remount();
    corpus.verify();
    acknowledged.verify();
    site.mounted().unmount();
    site.antler.stop();
    assert_eq!(
        legs_clean(&site),
        Some(()),
        "after SIGTERM both legs are clean and equal"
    );
    each_leg_alone_holds_everything(&mut site, &corpus);
}

/// What `discover`, `device info`, `paths`, `arrays` print before anything fails.
fn commands_know_the_site(site: &Site) {
    // tgt names the portal that was asked, and no other.
    for network in [1, 2] {
        let asked = portal(1, network).to_string();
        let found = site.antler.json(&["discover", &asked]);
        let target = &found["targets"][0];
        assert_eq!(target["name"], TARGET);
        assert_eq!(target["portals"][0]["address"], asked, "{found:#}");
    }

    let info = site.antler.json(&["device", "info", "sto1"]);
    assert_eq!(info["kind"], "iscsi");
    assert_eq!(info["vendor"], "IET");
    assert_eq!(info["size_bytes"], UNIT_BYTES);
    let paths = info["paths"].as_array().unwrap();
    assert_eq!(paths.len(), 2);
    assert!(
        paths.iter().all(|path| path["state"] == "ready"),
        "{info:#}"
    );
    let other = site.antler.json(&["device", "info", "sto2"]);
    assert_ne!(info["wwid"], other["wwid"]);

    let devices = site.antler.json(&["paths"]);
    assert_eq!(path_states(&devices), ["active"; 4], "{devices:#}");
    let arrays = site.antler.json(&["arrays"]);
    assert_eq!(
        leg_states(&arrays["arrays"][0]),
        ["in-sync", "in-sync"],
        "{arrays:#}"
    );
    let unknown = site.antler.run(&["device", "info", "no-such-device"]);
    assert!(
        matches!(unknown.code, Some(1 | 2)),
        "{}",
        unknown.describe()
    );
    assert!(
        unknown.stderr.contains("no-such-device"),
        "{}",
        unknown.describe()
    );
}

fn path_states(devices: &Value) -> Vec<String> {
    let all = devices["devices"].as_array().into_iter().flatten();
    let groups = all.flat_map(|device| device["groups"].as_array().into_iter().flatten());
    let paths = groups.flat_map(|group| group["paths"].as_array().into_iter().flatten());
    paths
        .map(|path| path["state"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn leg_states(array: &Value) -> Vec<String> {
    let legs = array["legs"].as_array().into_iter().flatten();
    legs.map(|leg| leg["state"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// The network (1, 2) of the path that carries sto1's I/O now.
fn network_in_use(site: &Site) -> u8 {
    let devices = site.antler.json(&["paths"]);
    let sto1 = devices["devices"]
        .as_array()
        .unwrap()
        .iter()
        .find(|d| d["name"] == "sto1")
        .unwrap();
    let group = sto1["groups"]
        .as_array()
        .unwrap()
        .iter()
        .find(|g| g["state"] == "active")
        .unwrap();
    let in_use = group["paths"][0]["portal"].as_str().unwrap();
    (1..=2)
        .find(|n| portal(1, *n).to_string() == in_use)
        .unwrap()
}

fn wait_paths(site: &Site, failed: usize) {
    wait_until(&format!("{failed} failed paths"), MINUTE, || {
        let states = path_states(&site.antler.json(&["paths"]));
        states.len() == 4 && states.iter().filter(|state| *state == "failed").count() == failed
    });
}

fn wait_mirror_whole(site: &Site) {
    wait_until("both legs to be in sync", 3 * MINUTE, || {
        let arrays = site.antler.json(&["arrays"]);
        let array = &arrays["arrays"][0];
        leg_states(array) == ["in-sync", "in-sync"] && array["sync"].is_null()
    });
}

fn a_path_is_cut_silently(site: &mut Site, load: &Load) {
    let link = san_link(1, network_in_use(site));
    site.net.cut(&link);
    load.progress(10, MINUTE);
    wait_paths(site, 1);
    site.antler.wait_event("path_failed", MINUTE);
    load.progress(5, MINUTE);
    site.net.restore(&link);
    wait_paths(site, 0);
    site.antler.wait_event("path_reinstated", MINUTE);
    wait_mirror_whole(site);
    println!(
        "silent cut: the longest round took {} ms",
        load.longest_stall_ms()
    );
}

fn a_path_is_pulled(site: &mut Site, load: &Load) {
    let link = san_link(1, network_in_use(site));
    site.net.unplug(&link);
    load.progress(10, MINUTE);
    wait_paths(site, 1);
    site.net.plug(&link);
    wait_paths(site, 0);
    wait_mirror_whole(site);
}

fn a_storage_node_is_killed_and_returns(site: &mut Site, load: &Load) {
    site.storage[1].kill();
    let array = site.antler.wait_array("vol1", "degraded", MINUTE);
    assert_eq!(leg_states(&array)[0], "in-sync", "{array:#}");
    load.progress(10, MINUTE);
    site.storage[1].restart();
    wait_mirror_whole(site);
    site.antler.wait_event("leg_readded", MINUTE);
    load.progress(5, MINUTE);
    println!(
        "node killed: the longest round took {} ms",
        load.longest_stall_ms()
    );
}

fn a_storage_node_freezes_and_thaws(site: &mut Site, load: &Load) {
    site.storage[0].freeze();
    let array = site.antler.wait_array("vol1", "degraded", MINUTE);
    assert_eq!(leg_states(&array)[1], "in-sync", "{array:#}");
    load.progress(10, MINUTE);
    site.storage[0].thaw();
    wait_mirror_whole(site);
    load.progress(5, MINUTE);
}

/// Both at one instant; then whichever comes back first serves, while the other is still away.
fn both_storage_nodes_are_killed_and_return(site: &mut Site, load: &Load) {
    for (first, second) in [(0, 1), (1, 0)] {
        for node in 0..2 {
            site.storage[node].kill();
        }
        std::thread::sleep(Duration::from_secs(4));
        site.storage[first].restart();
        load.progress(5, 2 * MINUTE);
        site.storage[second].restart();
        wait_mirror_whole(site);
        load.progress(5, 2 * MINUTE);
        let status = site.antler.status();
        assert_eq!(status["volumes"][0]["state"], "active", "{status:#}");
    }
    println!(
        "both nodes killed: the longest round took {} ms",
        load.longest_stall_ms()
    );
}

fn the_server_is_killed(site: &mut Site, load: &Load) {
    site.antler.kill();
    site.antler.serve();
    load.progress(5, 2 * MINUTE);
    // Killed again, now with one storage node away: what counts as current must survive us.
    site.storage[1].kill();
    site.antler.wait_array("vol1", "degraded", MINUTE);
    load.progress(5, MINUTE);
    site.antler.kill();
    site.antler.serve();
    load.progress(5, 2 * MINUTE);
    site.storage[1].restart();
    wait_mirror_whole(site);
    load.progress(5, MINUTE);
}

fn superblocks(site: &Site) -> [Superblock; 2] {
    [0, 1].map(|leg| examine(&site.storage[leg].backing_file(1)))
}

/// Both legs' superblocks are what mdadm calls clean, whole and equally old.
fn legs_clean(site: &Site) -> Option<()> {
    let [first, second] = superblocks(site);
    let same = first == second;
    let good = first.state == "clean" && first.array_state == "AA" && first.checksum_correct;
    (same && good && first.level == "raid1").then_some(())
}

fn superblocks_settle(site: &Site) {
    // A kill leaves regions in doubt, which are compared in the background.
    wait_mirror_whole(site);
    let settled = harness::clock::try_wait(Duration::from_secs(20), || legs_clean(site));
    assert!(
        settled.is_some(),
        "superblocks do not settle: {:#?}",
        superblocks(site)
    );
}

/// Cleanly stopped, each leg serves without the other and reads the same bytes.
fn each_leg_alone_holds_everything(site: &mut Site, corpus: &Corpus) {
    for (gone, left) in [(0, 1), (1, 0)] {
        site.storage[gone].kill();
        site.antler.serve();
        let array = site.antler.wait_array("vol1", "degraded", MINUTE);
        assert_eq!(leg_states(&array)[left], "in-sync", "{array:#}");
        site.master.wait_chunkservers(1, MINUTE);
        site.mount();
        corpus.verify();
        site.mounted().unmount();
        site.storage[gone].restart();
        wait_mirror_whole(site);
        site.antler.stop();
        assert_eq!(legs_clean(site), Some(()), "{:#?}", superblocks(site));
    }
}
