//! What a reload takes over is used: here by the next login at a target that knows a new secret.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use harness::antler::{Antler, Spec};
use harness::net::Net;
use harness::scratch::Scratch;
use harness::tgt::{Tgt, TgtSpec};

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
