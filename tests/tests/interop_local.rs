//! A volume on a local file under a real mfsmaster and mfsmount (no SAN): what MooseFS users rely
//! upon. One site serves all checks in turn, because starting sites is what costs time.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use harness::clock::wait_until;
use harness::files::{pattern, Corpus};
use harness::load::Load;
use harness::mfs::Master;
use harness::shapes;
use harness::site::{Site, Storage, CHUNK_NODE, MASTER};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_local_volume_serves_moosefs() {
    let mut site = Site::start(Storage::Local, Some("a secret of the site"));
    let corpus = shapes::write_every_shape(site.mounted());
    remount_and_verify(&mut site, &corpus);
    corpus.verify_random_reads("two-chunks", 100);

    monitoring_shows_the_volume(&mut site);
    garbage_closes_only_its_connection(&mut site);
    remount_and_verify(&mut site, &corpus);

    restarts_under_load_lose_nothing(&mut site);
    remount_and_verify(&mut site, &corpus);

    a_foreign_master_is_refused(&mut site);
    remount_and_verify(&mut site, &corpus);

    site.antler.stop();
    let check = site.antler.json(&["volume", "check", "vol1", "--data"]);
    assert_eq!(check["result"], "clean", "{check:#}");
    assert!(check["chunks"].as_u64().unwrap() > 0, "{check:#}");
}

fn remount_and_verify(site: &mut Site, corpus: &Corpus) {
    site.mounted().remount();
    corpus.verify();
}

/// `mfscli -SCS -SHD` and `mfsfileinfo -c` ask the chunkserver itself.
fn monitoring_shows_the_volume(site: &mut Site) {
    let servers = site.master.chunkservers();
    assert_eq!(servers.len(), 1, "{servers:?}");
    assert!(
        servers[0].contains(&format!("|{CHUNK_NODE}|9422|")),
        "{servers:?}"
    );
    let disks = site.master.cli(&["-SHD"]);
    assert!(
        disks.contains(&format!("{CHUNK_NODE}:9422:vol1")),
        "{disks}"
    );
    let copies = site.mounted().copies("shapes/two-chunks");
    assert_eq!(copies.len(), 2, "{copies:?}");
    for chunk in &copies {
        assert_eq!(chunk.copies.len(), 1, "{copies:?}");
        assert_eq!(chunk.copies[0].0, format!("{CHUNK_NODE}:9422"));
        assert!(
            !chunk.copies[0].1.is_empty(),
            "no checksum digest: {copies:?}"
        );
    }
    let status = site.antler.status();
    assert_eq!(status["state"], "serving");
    assert_eq!(status["master"]["state"], "registered");
    assert_eq!(status["volumes"][0]["name"], "vol1");
    assert_eq!(status["volumes"][0]["damaged_chunks"], 0);
    assert!(
        status["clients"]["write_bytes"].as_u64().unwrap() > 0,
        "{status:#}"
    );
}

fn garbage_closes_only_its_connection(site: &mut Site) {
    let mut random = pattern(99, 100_000);
    random[0] = 0xff; // no known packet type
    let frame = |kind: u32, len: u32, payload: &[u8]| {
        [&kind.to_be_bytes()[..], &len.to_be_bytes()[..], payload].concat()
    };
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("random bytes", random),
        (
            "a text protocol",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        ),
        ("a frame of 4 GiB", frame(200, u32::MAX, &[])),
        ("CLTOCS_READ of a wrong length", frame(200, 7, &[0; 7])),
        (
            "CLTOCS_WRITE with half an address",
            frame(210, 15, &[1; 15]),
        ),
        (
            "CLTOCS_WRITE_DATA outside of a write",
            frame(212, 24, &[0; 24]),
        ),
        ("a master's command", frame(110, 12, &[0; 12])),
    ];
    let before = site.antler.status()["clients"]["connections"].clone();
    for (what, bytes) in attacks {
        let closed = site.net.place("mfs").enter(|| {
            let limit = Duration::from_secs(10);
            let mut socket = TcpStream::connect_timeout(&(CHUNK_NODE, 9422).into(), limit).unwrap();
            socket.set_read_timeout(Some(limit)).unwrap();
            // The server may close before it has taken everything.
            let _ = socket.write_all(&bytes);
            let mut answer = Vec::new();
            match socket.read_to_end(&mut answer) {
                Ok(_) => true,
                Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
            }
        });
        assert!(closed, "{what}: the connection stays open");
        site.antler.assert_running();
    }
    site.antler
        .wait_status("the connections to be gone", MINUTE, |status| {
            status["clients"]["connections"].as_u64() <= before.as_u64()
        });
    assert!(
        !site.antler.log().contains("panicked"),
        "{}",
        site.antler.log_tail()
    );
}

fn restarts_under_load_lose_nothing(site: &mut Site) {
    let path = site.mounted().path().join("load");
    let load = Load::start(&path, 7);
    load.progress(5, MINUTE);
    site.antler.stop();
    site.antler.serve();
    load.progress(5, 2 * MINUTE);
    for _ in 0..2 {
        site.antler.kill();
        site.antler.serve();
        load.progress(5, 2 * MINUTE);
    }
    let acknowledged = load.finish();
    site.mounted().remount();
    acknowledged.verify();
}

/// A master with another metaid must not get our chunks deleted: state `refused`, and everything is
/// there when the right one returns.
fn a_foreign_master_is_refused(site: &mut Site) {
    site.mounted().unmount();
    site.master.stop();
    {
        let place = site.net.place("mfs");
        let auth = Some("a secret of the site");
        let mut foreign = Master::start(&site.scratch, "foreign-master", place, MASTER, auth);
        site.antler
            .wait_status("the foreign master to be refused", MINUTE, |status| {
                status["master"]["state"] == "refused"
            });
        let status = site.antler.status();
        assert!(
            status["volumes"][0]["chunks"].as_u64().unwrap() > 0,
            "{status:#}"
        );
        assert!(status["master"]["last_error"].is_string(), "{status:#}");
        foreign.kill();
    }
    site.master.restart();
    site.antler.wait_registered(MINUTE);
    site.mount();
}

#[test]
fn a_wrong_auth_code_is_never_registered_and_a_right_one_is() {
    let mut site = Site::prepare(Storage::Local, Some("right"));
    site.antler.create_volume("vol1");
    site.antler
        .reconfigure(|spec| spec.auth_code = Some("wrong".into()));
    site.antler.start();
    wait_until("the refusal to show", MINUTE, || {
        let status = site.antler.try_status().unwrap_or_default();
        status["master"]["last_error"].is_string() && status["master"]["state"] != "registered"
    });
    assert_eq!(site.master.chunkservers().len(), 0);
    site.antler.stop();
    site.antler
        .reconfigure(|spec| spec.auth_code = Some("right".into()));
    site.antler.serve();
    site.master.wait_chunkservers(1, MINUTE);

    // The same address and port again, right after a kill: the master may still hold the old
    // connection and refuses a second one until its timeout.
    site.antler.kill();
    site.antler.serve();
    site.master.wait_chunkservers(1, MINUTE);

    // The master dies and returns; registration follows by itself.
    site.master.kill();
    site.antler.wait_event("master_lost", MINUTE);
    site.master.restart();
    site.antler.wait_registered(MINUTE);
}
