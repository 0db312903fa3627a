//! The commands against targets on 127.0.0.1: what they print, what they refuse, and how they exit.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use harness::antler::{Antler, Device, Spec};
use harness::clock::wait_for;
use harness::command::{must, run, Finished};
use harness::files::Corpus;
use harness::istgt::Istgt;
use harness::mfs::StockChunkserver;
use harness::net::{Net, Place};
use harness::scratch::Scratch;
use harness::site::{Site, Storage, CHUNK_NODE, STOCK_NODE};
use harness::tgt::{free_ports, Tgt, TgtSpec};
use serde_json::Value;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
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
    assert_names(&again, 1, &["holds this volume already", "--force"]);
    assert!(!words(&again).contains("running"), "{}", again.describe());
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
    assert_eq!(check["blocks_checked"], 0, "{check:#}");
    let text = antler.run(&["volume", "check", "vol1"]).success();
    assert!(text.contains("metadata only"), "{text}");

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
    for key in ["write_cache", "fua", "unmap"] {
        assert!(info[key].is_boolean(), "{key}: {info:#}");
    }
    assert_eq!(info["alua"], "none", "{info:#}");
    let grades = ["proven", "declared", "none"];
    assert!(
        grades.contains(&info["fence"].as_str().unwrap()),
        "{info:#}"
    );
    let paths = info["paths"].as_array().unwrap();
    assert_eq!(paths.len(), 2, "{info:#}");
    for (path, portal) in paths.iter().zip(&tgt.spec().portals) {
        assert_eq!(path["state"], "ready");
        assert!(path["login_ms"].is_number(), "{info:#}");
        assert_eq!(path["portal"], portal.to_string());
        assert_eq!(path["target"], tgt.spec().target);
        assert_eq!((&path["lun"], &path["tpgt"]), (&1.into(), &1.into()));
        for key in ["error", "redirected_to"] {
            assert!(
                path[key].is_null() && path.get(key).is_some(),
                "{key}: {info:#}"
            );
        }
        for key in ["header_digest", "data_digest"] {
            assert_eq!(path[key], "none", "{info:#}");
        }
        let isid = path["isid"].as_str().unwrap();
        assert!(isid.len() == 14 && isid.starts_with("0x80"), "{isid}");
    }

    // Some paths ready, not all.
    antler.reconfigure(|spec| {
        if let Device::Iscsi { portals, .. } = &mut spec.devices[0] {
            portals[1].clone_from(&nobody);
        }
    });
    let some = antler.run(&["device", "info", "sto1", "--json"]);
    assert_eq!(some.code, Some(1), "{}", some.describe());
    let some: Value = serde_json::from_str(&some.stdout).unwrap();
    assert_eq!(some["paths"][0]["state"], "ready", "{some:#}");
    assert_eq!(some["paths"][1]["state"], "unreachable", "{some:#}");
    assert!(some["paths"][1]["error"].is_string(), "{some:#}");

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

    // tgt's LUN 0 is its controller, and it has no LUN 7: refused, with the disks there are.
    for other in [0, 7] {
        antler.reconfigure(|spec| {
            spec.more.clear();
            spec.devices.iter_mut().for_each(|device| {
                if let Device::Iscsi { lun, .. } = device {
                    *lun = other;
                }
            });
        });
        let refused = antler.run(&["device", "info", "sto1"]);
        assert_names(&refused, 1, &["disks: 1"]);
        let twice = words(&refused).contains("misconfigured: misconfigured");
        assert!(!twice, "{}", refused.describe());
    }

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

const SECONDS_30: Duration = Duration::from_secs(30);

/// Two local files as a mirror, in a namespace of their own.
struct LocalPair {
    antler: Antler,
    legs: [PathBuf; 2],
    place: Place,
    _net: Net,
    _scratch: Scratch,
}

impl LocalPair {
    fn create(size_bytes: u64) -> LocalPair {
        let scratch = Scratch::shared();
        let mut net = Net::new(&scratch);
        net.add_node("cs");
        let legs = ["d1", "d2"].map(|name| scratch.dir().join(name));
        let local = |n: usize| Device::Local {
            name: format!("d{}", n + 1),
            path: legs[n].clone(),
            size_bytes,
        };
        let spec = spec(vec![local(0), local(1)], &[("vol1", &["d1", "d2"])]);
        let place = net.place("cs");
        let antler = Antler::install(&scratch, "antler", place.clone(), spec);
        antler.create_volume("vol1");
        LocalPair {
            antler,
            legs,
            place,
            _net: net,
            _scratch: scratch,
        }
    }

    /// A bench plays the master, writes each block once, marked with `seed`, and deletes its chunks: they are brought back
    /// from the quarantine.
    fn write_chunks(&mut self, seed: u64) {
        self.antler.start();
        let seed = seed.to_string();
        let bench = self.antler.json(&[
            "bench",
            "chunk",
            "--master",
            "127.0.0.1:9420",
            "--chunks",
            "2",
            "--rw",
            "write",
            "--bs",
            "64k",
            "--size",
            "4MiB",
            "--span",
            "4MiB",
            "--seed",
            &seed,
        ]);
        assert_eq!(bench["errors"], 0, "{bench:#}");
        assert_eq!(bench["verify_errors"], 0, "{bench:#}");
        let list = self.antler.json(&["quarantine", "list"]);
        assert_eq!(list["chunks"].as_array().map(Vec::len), Some(2), "{list:#}");
        self.antler
            .run(&["quarantine", "restore", "--all"])
            .success();
        let status = self.antler.status();
        assert_eq!(status["volumes"][0]["chunks"], 2, "{status:#}");
    }

    /// Where granules that carry `seed` lie on a leg.
    fn granules(&self, leg: usize, seed: u64) -> Vec<u64> {
        let bytes = std::fs::read(&self.legs[leg]).unwrap();
        let pages = bytes.chunks(4096).enumerate();
        let found = pages.filter(|(_, page)| page.starts_with(&seed.to_be_bytes()));
        found.map(|(n, _)| n as u64 * 4096).collect()
    }

    fn spoil(&self, leg: usize, at: &[u64]) {
        let file = File::options().write(true).open(&self.legs[leg]).unwrap();
        for offset in at {
            file.write_all_at(b"spoilt", offset + 100).unwrap();
        }
    }

    /// Fills most of the volume once.
    fn write_more(&mut self) {
        self.antler.start();
        let bench = self.antler.json(&[
            "bench",
            "chunk",
            "--master",
            "127.0.0.1:9420",
            "--chunks",
            "4",
            "--rw",
            "write",
            "--bs",
            "64k",
            "--size",
            "72MiB",
            "--runtime",
            "20",
        ]);
        assert_eq!(bench["errors"], 0, "{bench:#}");
        self.antler.stop();
    }

    fn scrub(&self) -> Value {
        let started = self.antler.json(&["scrub", "vol1", "start"]);
        assert_eq!(started["volume"], "vol1", "{started:#}");
        wait_for("the scrub to end", SECONDS_30, || {
            let status = self.antler.json(&["scrub", "vol1", "status"]);
            (status["state"] == "idle").then_some(status)
        })
    }
}

#[test]
fn scrub_heals_one_leg_and_reports_what_is_damaged_on_both() {
    const SEED: u64 = 0x5343_5255_4221_2121;
    let mut pair = LocalPair::create(256 << 20);
    let idle = {
        pair.write_chunks(SEED);
        pair.antler.json(&["scrub", "vol1", "status"])
    };
    assert_eq!(
        (&idle["state"], &idle["started"]),
        (&"idle".into(), &Value::Null)
    );
    let clean = pair.scrub();
    assert_eq!(clean["errors"], 0, "{clean:#}");
    assert_eq!(clean["percent"], 100.0, "{clean:#}");
    assert!(
        clean["checked_bytes"].as_u64().unwrap() >= 1 << 20,
        "{clean:#}"
    );
    metrics_are_clean(&pair);

    // Behind the back of a stopped volume; start and replay do not read data.
    pair.antler.stop();
    let granules = pair.granules(0, SEED);
    assert!(granules.len() > 100, "{} granules found", granules.len());
    pair.spoil(0, &granules[10..15]);
    pair.antler.start();
    pair.antler
        .wait_status("vol1 to be open", SECONDS_30, |status| {
            status["volumes"][0]["chunks"] == 2
        });
    let healed = pair.scrub();
    assert_eq!(healed["errors"], 5, "{healed:#}");
    assert_eq!(healed["healed_blocks"], 5, "{healed:#}");
    assert_eq!(healed["damaged_blocks"], 0, "{healed:#}");
    let again = pair.scrub();
    assert_eq!(again["errors"], 0, "{again:#}");
    pair.antler.stop();
    let check = pair.antler.json(&["volume", "check", "vol1", "--data"]);
    assert_eq!(check["result"], "clean", "{check:#}");

    let other = pair.granules(1, SEED);
    assert_eq!(
        other,
        pair.granules(0, SEED),
        "both legs have it where it was"
    );
    pair.spoil(0, &other[20..21]);
    pair.spoil(1, &other[20..21]);
    pair.antler.start();
    pair.antler
        .wait_status("vol1 to be open", SECONDS_30, |status| {
            status["volumes"][0]["chunks"] == 2
        });
    let damaged = pair.scrub();
    assert_eq!(damaged["damaged_blocks"], 1, "{damaged:#}");
    assert_eq!(damaged["healed_blocks"], 0, "{damaged:#}");
    pair.antler.wait_event("chunk_damaged", SECONDS_30);
    pair.antler
        .wait_status("a damaged chunk", SECONDS_30, |status| {
            status["volumes"][0]["damaged_chunks"] == 1
        });
    pair.antler.stop();
    assert_eq!(
        pair.antler.run(&["volume", "check", "vol1", "--data"]).code,
        Some(4)
    );
    // What is damaged everywhere is not handed out as if it were good.
    let out = pair.antler.dir().join("out");
    let exported = pair.antler.run(&[
        "volume",
        "export",
        "vol1",
        &out.display().to_string(),
        "--json",
    ]);
    assert_eq!(exported.code, Some(1), "{}", exported.describe());
    assert!(
        exported
            .stdout
            .contains("\"exported\":1,\"skipped\":0,\"damaged\":1"),
        "{}",
        exported.stdout
    );
}

fn metrics_are_clean(pair: &LocalPair) {
    let line = "curl -sf http://127.0.0.1:9424/metrics | promtool check metrics";
    let mut check = pair.place.command("sh");
    let checked = run(check.args(["-c", line]), SECONDS_30);
    assert_eq!(checked.code, Some(0), "{}", checked.describe());
    assert_eq!(words(&checked).trim(), "", "{}", checked.describe());
}

/// Every chunk file below a directory.
fn chunk_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(chunk_files(&entry.path()));
        } else if entry.path().extension().is_some_and(|e| e == "mfs") {
            found.push(entry.path());
        }
    }
    found
}

/// Stock MooseFS fills its disk, Antler takes the chunks in and serves them; then the other way round.
#[test]
fn chunks_come_from_stock_moosefs_and_go_back() {
    let mut site = Site::prepare(Storage::Local, None);
    site.antler.create_volume("vol1");
    site.add_stock(1);
    site.mount();
    let mut corpus = Corpus::new(&site.mounted().path().join("moved"), 7);
    for (name, len) in [
        ("small", 5_000),
        ("block", 65_536),
        ("odd", 1_000_003),
        ("large", 70 << 20),
    ] {
        corpus.create(name, len, 1 << 20);
    }
    corpus.write_at("sparse", 3_000_000, 10_000);
    corpus.create("cut", 500_000, 1 << 20);
    corpus.truncate("cut", 123_457);
    site.mounted().snapshot("moved/odd", "moved/copy");
    corpus.copied("odd", "copy");
    let disk = site.scratch.dir().join("stock/disk");
    let dir = disk.display().to_string();

    // A directory that is being served is left alone.
    let refused = site.antler.run(&["volume", "import", "vol1", &dir]);
    assert_names(&refused, 1, &["in use by pid", &dir]);
    site.stock.as_mut().unwrap().stop();
    let files = chunk_files(&disk).len();
    let imported = site.antler.json(&["volume", "import", "vol1", &dir]);
    assert_eq!(imported["imported"], files, "{imported:#}");
    assert_eq!(
        (&imported["skipped"], &imported["damaged"]),
        (&0.into(), &0.into())
    );
    let again = site.antler.json(&["volume", "import", "vol1", &dir]);
    assert_eq!(
        (&again["imported"], &again["skipped"]),
        (&0.into(), &files.into())
    );

    // The same file system takes them as they are, and what is overwritten gets newer versions.
    site.antler.serve();
    site.mounted().remount();
    corpus.verify();
    corpus.write_at("odd", 70_000, 200_000);
    corpus.write_at("large", 66 << 20, 100_000);
    corpus.create("new", 300_000, 65_536);
    corpus.verify();
    site.antler.stop();

    let out = site.scratch.sub("out");
    let out = out.display().to_string();
    let exported = site.antler.json(&["volume", "export", "vol1", &out]);
    let files = exported["exported"].as_u64().unwrap();
    assert!(files > 6, "{exported:#}");
    assert_eq!(
        (&exported["skipped"], &exported["damaged"]),
        (&0.into(), &0.into())
    );
    for file in chunk_files(Path::new(&out)) {
        let text = must(
            std::process::Command::new("mfschunktool")
                .arg("-x")
                .arg(&file),
        );
        assert!(text.contains(": OK"), "{text}");
    }
    let again = site.antler.json(&["volume", "export", "vol1", &out]);
    assert_eq!(
        (&again["exported"], &again["skipped"]),
        (&0.into(), &files.into())
    );

    // A stock chunkserver serves what was exported, and its disk had only older versions before.
    for file in chunk_files(&disk) {
        std::fs::remove_file(file).unwrap();
    }
    let one = site.antler.json(&["volume", "list"])["volumes"][0]["chunks"].clone();
    let exported = site.antler.json(&["volume", "export", "vol1", &dir]);
    assert_eq!(exported["exported"], one, "{exported:#}");
    restart(&mut site);
    site.mounted().remount();
    corpus.verify();
    corpus.write_at("small", 100, 4_000);
    corpus.write_at("large", 10, 100);
    site.stock.as_mut().unwrap().stop();

    // Newer versions replace, the others are skipped; a file that is damaged replaces nothing.
    let newest = chunk_files(&disk)
        .into_iter()
        .max_by_key(|f| f.metadata().unwrap().modified().unwrap());
    let newest = newest.unwrap();
    let good = std::fs::read(&newest).unwrap();
    File::options()
        .write(true)
        .open(&newest)
        .unwrap()
        .write_all_at(b"rot", 8192 + 10)
        .unwrap();
    let partly = site
        .antler
        .run(&["volume", "import", "vol1", &dir, "--json"]);
    assert_eq!(partly.code, Some(1), "{}", partly.describe());
    assert!(
        partly.stdout.contains("\"damaged\":1"),
        "{}",
        partly.describe()
    );
    std::fs::write(&newest, good).unwrap();
    let rest = site.antler.json(&["volume", "import", "vol1", &dir]);
    assert_eq!(
        (&rest["imported"], &rest["damaged"]),
        (&1.into(), &0.into()),
        "{rest:#}"
    );
    let check = site.antler.json(&["volume", "check", "vol1", "--data"]);
    assert_eq!(check["result"], "clean", "{check:#}");
    site.antler.serve();
    site.mounted().remount();
    corpus.verify();
    site.antler.stop();

    // Chunks of another file system stay out.
    std::fs::write(disk.join(".metaid"), 0x1234_u64.to_be_bytes()).unwrap();
    let foreign = site.antler.run(&["volume", "import", "vol1", &dir]);
    assert_names(&foreign, 1, &["vol1", "0000000000001234"]);
    let foreign = site.antler.run(&["volume", "export", "vol1", &dir]);
    assert_names(&foreign, 1, &["vol1", "0000000000001234"]);
}

fn restart(site: &mut Site) {
    let stock: &mut StockChunkserver = site.stock.as_mut().unwrap();
    stock.restart();
    assert_eq!(
        (stock.address(), site.antler.spec().listen),
        (STOCK_NODE, CHUNK_NODE)
    );
    site.master.wait_chunkservers(1, SECONDS_30);
}

/// A volume without a metaid that holds chunks stays out of the registration until somebody says whose they are.
#[test]
fn chunks_of_nobody_are_left_out_until_claimed() {
    let mut site = Site::prepare(Storage::Local, None);
    site.antler.create_volume("vol1");
    site.add_stock(1);
    site.mount();
    let mut corpus = Corpus::new(&site.mounted().path().join("moved"), 7);
    corpus.create("file", 1_000_003, 1 << 20);
    // A stock server writes the checksums of its files when it closes them.
    site.stock.as_mut().unwrap().stop();
    let disk = site.scratch.dir().join("stock/disk");
    std::fs::remove_file(disk.join(".metaid")).unwrap();
    let dir = disk.display().to_string();
    let imported = site.antler.run(&["volume", "import", "vol1", &dir]);
    assert_names(&imported, 0, &["volume claim vol1 --metaid"]);

    site.antler.start();
    site.antler
        .wait_status("vol1 to be left out", SECONDS_30, |status| {
            let volume = &status["volumes"][0];
            let note = volume["note"].as_str().unwrap_or_default();
            volume["state"] == "waiting" && note.contains("antler volume claim vol1 --metaid")
        });
    let held = site
        .antler
        .run(&["volume", "claim", "vol1", "--metaid", "any"]);
    assert_names(&held, 1, &["vol1", &format!("pid {}", site.antler.pid())]);
    site.antler.stop();
    site.antler
        .run(&["volume", "claim", "vol1", "--metaid", "any"])
        .success();
    site.antler.serve();
    site.mounted().remount();
    corpus.verify();
    let status = site.antler.status();
    assert_eq!(status["volumes"][0]["state"], "active", "{status:#}");
}

/// Failures of each device's only path.
fn path_failures(antler: &Antler) -> Vec<u64> {
    let paths = antler.json(&["paths"]);
    let devices = paths["devices"].as_array().unwrap();
    devices
        .iter()
        .map(|device| {
            device["groups"][0]["paths"][0]["failures"]
                .as_u64()
                .unwrap()
        })
        .collect()
}

/// Two nodes, one after the other, on the same two units.
#[test]
fn a_volume_is_taken_over_from_a_running_node() {
    let scratch = Scratch::shared();
    let mut net = Net::new(&scratch);
    for node in ["a", "b", "sto"] {
        net.add_node(node);
    }
    let address = |network, host| Ipv4Addr::new(10, 3, network, host);
    net.add_link("a-sto", ("a", address(1, 101)), ("sto", address(1, 1)));
    net.add_link("b-sto", ("b", address(2, 101)), ("sto", address(2, 1)));
    let target = "iqn.2024-12.example.test:shared";
    let start = |name: &str, port: u16| {
        let portals = [1, 2].map(|network| SocketAddrV4::new(address(network, 1), port));
        Tgt::start(
            &scratch,
            net.place("sto"),
            TgtSpec::single(name, target, &portals, UNIT_BYTES),
        )
    };
    let (mut first, second) = (start("one", 3260), start("two", 3261));
    let install = |name: &str, node: &str, network: usize| {
        let devices = [("sto1", &first), ("sto2", &second)].map(|(device, tgt)| Device::Iscsi {
            name: device.to_owned(),
            portals: vec![tgt.spec().portals[network].to_string()],
            target: target.to_owned(),
            lun: 1,
        });
        let spec = spec(devices.to_vec(), &[("vol1", &["sto1", "sto2"])]);
        Antler::install(&scratch, name, net.place(node), spec)
    };
    let (mut a, mut b) = (install("a", "a", 0), install("b", "b", 1));
    a.create_volume("vol1");
    a.start();
    a.wait_status("vol1 at its first node", SECONDS_30, |s| {
        s["volumes"][0]["state"] == "active"
    });

    // The other node leaves it alone, whatever is asked of it.
    b.start();
    b.wait_status("vol1 to be refused", SECONDS_30, |s| {
        let note = s["volumes"][0]["note"].as_str().unwrap_or_default();
        note.contains("claimed by node") && note.contains("antler volume claim")
    });
    b.stop();
    let node_a = std::fs::read_to_string(a.dir().join("data/node")).unwrap();
    let node_a = node_a.trim();
    let repair = b.run(&["volume", "check", "vol1", "--repair"]);
    assert_names(&repair, 1, &["in use", node_a, "--take"]);
    let create = b.run(&["volume", "create", "vol1", "--force"]);
    assert_names(&create, 1, &["in use", node_a]);

    // Nor does one with the same initiator name and the same portals end any of its sessions: their ISIDs are equal.
    let twin = install("twin", "a", 0);
    for command in ["info", "check"] {
        let refused = twin.run(&["volume", command, "vol1"]);
        assert_names(&refused, 1, &["in use", node_a, "refreshed"]);
    }
    assert_eq!(path_failures(&a), [0, 0]);

    let taken = b.run(&["volume", "claim", "vol1", "--take"]);
    assert_names(
        &taken,
        0,
        &["sto1", "sto2", node_a, "s ago", "less than 6 s"],
    );
    a.wait_event("claim_lost", SECONDS_30);
    a.wait_status("vol1 to be lost", SECONDS_30, |s| {
        s["volumes"][0]["state"] == "failed"
    });
    b.start();
    b.wait_status("vol1 whole at its second node", SECONDS_30, |s| {
        let legs = s["arrays"][0]["legs"].as_array();
        let is_whole = legs.is_some_and(|legs| legs.iter().all(|l| l["state"] == "in-sync"));
        s["volumes"][0]["state"] == "active" && is_whole
    });
    b.stop();
    a.stop();

    // A leg that is in sync must be reached, or it is a guess that needs a word.
    first.kill();
    let refused = a.run(&["volume", "claim", "vol1", "--take"]);
    assert_names(&refused, 1, &["sto1", "--force"]);
    let forced = a.run(&["volume", "claim", "vol1", "--take", "--force"]);
    assert_names(&forced, 0, &["sto2", "taken over"]);
}

/// What is open is left alone, also by a command that reaches it over other portals; the rest is free.
#[test]
fn a_volume_is_made_while_another_one_is_served() {
    let scratch = Scratch::shared();
    let mut net = Net::new(&scratch);
    net.add_node("cs");
    let start = |name: &str, ports: &[u16]| {
        let portals = ports.iter();
        let portals = portals.map(|&port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        let target = format!("iqn.2024-12.example.test:{name}");
        let unit = TgtSpec::single(name, &target, &portals.collect::<Vec<_>>(), UNIT_BYTES);
        Tgt::start(&scratch, net.place("cs"), unit)
    };
    let (first, second) = (start("one", &[3260, 3261]), start("two", &[3262]));
    let over = |portals: std::ops::Range<usize>| {
        let Device::Iscsi {
            name, target, lun, ..
        } = device("sto1", &first)
        else {
            unreachable!("a target is reached by iSCSI");
        };
        let portals = first.spec().portals[portals].iter();
        Device::Iscsi {
            name,
            portals: portals.map(ToString::to_string).collect(),
            target,
            lun,
        }
    };
    let spec = spec(vec![over(0..1)], &[("vol1", &["sto1"])]);
    let mut antler = Antler::install(&scratch, "antler", net.place("cs"), spec);
    antler.create_volume("vol1");
    antler.start();
    antler.wait_status("vol1 to be open", SECONDS_30, |s| {
        s["volumes"][0]["state"] == "active"
    });
    let pid = format!("in use by pid {}", antler.pid());
    let open = ["info", "check", "grow", "upgrade"].map(|c| vec!["volume", c, "vol1"]);
    let write = ["bench", "device", "sto1", "--rw", "write", "--size", "1M"];
    let write = [&write[..], &["--destructive"]].concat();
    let unit = first.spec();
    let raw = format!(
        "bench iscsi --portal {} --target {} --lun 1 --rw randwrite --size 1M --destructive",
        unit.portals[1], unit.target
    );
    let raw: Vec<&str> = raw.split(' ').collect();
    assert_names(
        &antler.run(&raw),
        1,
        &["in use", "claimed by node", "LUN 1"],
    );
    for args in open.iter().chain([&write]) {
        assert_names(&antler.run(args), 1, &["sto1", &pid]);
    }

    // The same unit by its other portal: there is no session that a login could end, and no lock that it meets.
    antler.reconfigure(|spec| spec.devices = vec![over(1..2)]);
    let node = std::fs::read_to_string(antler.dir().join("data/node")).unwrap();
    for args in [open[0].clone(), write] {
        assert_names(&antler.run(&args), 1, &["in use", "sto1", node.trim()]);
    }

    antler.reconfigure(|spec| {
        spec.devices = vec![over(0..1), device("sto2", &second)];
        spec.volumes
            .push(("vol2".to_owned(), vec!["sto2".to_owned()]));
    });
    antler.create_volume("vol2");
    let list = antler.json(&["volume", "list"]);
    let error = list["volumes"][0]["error"].as_str().unwrap_or_default();
    assert!(error.contains(&pid), "{list:#}");
    assert_eq!(list["volumes"][1]["clean"], true, "{list:#}");
    assert_eq!(path_failures(&antler), [0]);
    antler.reload();
    antler.wait_status("vol2 to be open, too", SECONDS_30, |s| {
        s["volumes"][1]["state"] == "active"
    });
    assert_names(&antler.run(&["volume", "info", "vol2"]), 1, &["sto2", &pid]);
    antler.stop();
}

#[test]
fn a_volume_takes_in_what_its_legs_gained() {
    const SEED: u64 = 0x4752_4f57_2121_2121;
    let mut pair = LocalPair::create(64 << 20);
    pair.write_chunks(SEED);
    let busy = pair.antler.run(&["volume", "grow", "vol1"]);
    assert_names(&busy, 1, &["in use", &format!("pid {}", pair.antler.pid())]);
    pair.antler.stop();
    let none = pair.antler.run(&["volume", "grow", "vol1"]);
    assert_names(&none, 0, &["nothing to gain"]);
    let before = pair.antler.json(&["volume", "info", "vol1"])["size_bytes"]
        .as_u64()
        .unwrap();

    let lengthen = |leg: usize, bytes: u64| {
        File::options()
            .write(true)
            .open(&pair.legs[leg])
            .unwrap()
            .set_len(bytes)
            .unwrap();
    };
    lengthen(0, 96 << 20);
    assert_names(
        &pair.antler.run(&["volume", "grow", "vol1"]),
        0,
        &["nothing to gain"],
    );
    lengthen(1, 128 << 20);
    // Something that looks like a newer volume lies where the last superblocks will be.
    let stale = std::fs::read(&pair.legs[0]).unwrap()[1 << 20..(1 << 20) + 4096].to_vec();
    let file = File::options().write(true).open(&pair.legs[1]).unwrap();
    file.write_all_at(&stale, (96 << 20) - 4096).unwrap();
    assert_names(&pair.antler.run(&["volume", "grow", "vol1"]), 0, &["grown"]);
    let info = pair.antler.json(&["volume", "info", "vol1"]);
    assert_eq!(
        info["size_bytes"].as_u64().unwrap(),
        before + (32 << 20),
        "{info:#}"
    );
    assert_eq!(info["chunks"], 2, "{info:#}");
    let check = pair.antler.json(&["volume", "check", "vol1", "--data"]);
    assert_eq!(check["result"], "clean", "{check:#}");
    let legs = [0, 1].map(|leg| harness::md::examine(&pair.legs[leg]));
    assert_eq!(legs[0], legs[1]);
    assert_eq!(
        (legs[0].array_state.as_str(), legs[0].checksum_correct),
        ("AA", true)
    );
    let (first, second) = (
        std::fs::read(&pair.legs[0]).unwrap(),
        std::fs::read(&pair.legs[1]).unwrap(),
    );
    let data = 1 << 20..96 << 20;
    assert!(
        first[data.clone()] == second[data],
        "the gained space is equal, too"
    );

    // The new space is used, and one leg alone has it all.
    pair.write_more();
    std::fs::remove_file(&pair.legs[0]).unwrap();
    let check = pair.antler.json(&["volume", "check", "vol1", "--data"]);
    assert_eq!(check["result"], "clean", "{check:#}");
}

#[test]
fn there_is_one_format() {
    let pair = LocalPair::create(64 << 20);
    let upgraded = pair.antler.run(&["volume", "upgrade", "vol1"]);
    assert_names(&upgraded, 0, &["format version 1", "nothing to do"]);
    let json = pair.antler.json(&["volume", "upgrade", "vol1"]);
    assert_eq!(json["name"], "vol1", "{json:#}");
}

#[test]
fn a_spare_takes_the_place_of_a_leg_that_stays_out() {
    const SEED: u64 = 0x5350_4152_4521_2121;
    let mut pair = LocalPair::create(64 << 20);
    let third = pair.legs[0].with_file_name("d3");
    File::create(&third).unwrap().set_len(80 << 20).unwrap();
    pair.antler.reconfigure(|spec| {
        let device = format!(
            "[[device]]\nname = \"d3\"\npath = \"{}\"\n",
            third.display()
        );
        spec.more = format!("spares = [\"d3\"]\n\n{device}");
    });
    pair.write_chunks(SEED);
    // None yet while the node starts.
    let leg = |arrays: &Value, name: &str| {
        let legs = arrays["arrays"][0]["legs"].as_array();
        let mut legs = legs.into_iter().flatten();
        legs.find(|leg| leg["device"] == name)
            .cloned()
            .unwrap_or(Value::Null)
    };
    let arrays = pair.antler.json(&["arrays"]);
    assert_eq!(leg(&arrays, "d3")["state"], "spare", "{arrays:#}");
    pair.antler.run(&["leg", "fail", "vol1", "d2"]).success();
    wait_for("the spare to be in sync", Duration::from_secs(90), || {
        let arrays = pair.antler.json(&["arrays"]);
        (leg(&arrays, "d3")["state"] == "in-sync").then_some(())
    });
    pair.antler.stop();

    // It is a leg from now on, also for a new start and for the commands.
    pair.antler.start();
    let both = |status: &Value| {
        ["d1", "d3"]
            .iter()
            .all(|name| leg(status, name)["state"] == "in-sync")
    };
    pair.antler
        .wait_status("both legs after a restart", SECONDS_30, both);
    pair.antler.stop();
    std::fs::remove_file(&pair.legs[1]).unwrap();
    let check = pair.antler.json(&["volume", "check", "vol1", "--data"]);
    assert_eq!(check["result"], "clean", "{check:#}");
    let expected = pair.granules(0, SEED).len();
    pair.legs[1] = third;
    assert_eq!(pair.granules(1, SEED).len(), expected);
    assert!(expected > 100, "{expected} granules found");
}

/// Starts `serve` and returns the array of `vol1` once it is known why it does not run.
fn array_that_waits(pair: &mut LocalPair) -> (Value, String) {
    pair.antler.start();
    let antler = &pair.antler;
    wait_for("a reason", SECONDS_30, || {
        antler.try_status()?;
        let array = antler.json(&["arrays"])["arrays"][0].clone();
        let note = array["note"].as_str()?.to_owned();
        Some((array, note))
    })
}

#[test]
fn a_volume_that_waits_names_the_leg_that_is_missing_and_why() {
    let mut pair = LocalPair::create(256 << 20);
    // A superblock that was torn, and no witness to say whether the other leg has everything.
    let leg = File::options().write(true).open(&pair.legs[1]).unwrap();
    leg.write_all_at(&[0xa5; 64], 4096 + 100).unwrap();
    for file in std::fs::read_dir(pair.antler.dir().join("data")).unwrap() {
        let path = file.unwrap().path();
        if path.to_string_lossy().contains("/witness-") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let (array, note) = array_that_waits(&mut pair);
    let legs = array["legs"].as_array().unwrap();
    let states: Vec<&str> = legs.iter().filter_map(|l| l["state"].as_str()).collect();
    assert_eq!(states, ["in-sync", "missing"], "{array:#}");
    for part in ["d2", "superblock", "`antler leg run vol1 d1 --alone`"] {
        assert!(note.contains(part), "no {part:?} in {note:?}");
    }
    pair.antler.stop();
}

#[test]
fn a_foreign_device_is_named_with_the_way_out() {
    let mut pair = LocalPair::create(64 << 20);
    for leg in &pair.legs {
        File::create(leg).unwrap().set_len(64 << 20).unwrap();
        let mut format = std::process::Command::new("/sbin/mke2fs");
        must(format.args(["-q", "-F"]).arg(leg));
    }
    let (_, note) = array_that_waits(&mut pair);
    for part in [
        "d1 holds an ext2/3/4 file system",
        "`antler volume create vol1 --force`",
    ] {
        assert!(note.contains(part), "no {part:?} in {note:?}");
    }
    pair.antler.stop();
}
