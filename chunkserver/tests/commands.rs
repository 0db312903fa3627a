//! The binary itself: `antler check`, exit statuses, and what stands on which stream.

#![allow(clippy::unwrap_used)] // a panic is how a test fails, in its helpers too

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Site {
    dir: PathBuf,
}

impl Site {
    fn new(name: &str, config: &str) -> Site {
        let dir =
            std::env::temp_dir().join(format!("antler-commands-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("antler.toml"), config).unwrap();
        Site { dir }
    }

    fn config(&self) -> PathBuf {
        self.dir.join("antler.toml")
    }

    /// Runs `antler -c CONFIG ARGS…` in the site's directory.
    fn antler(&self, args: &[&str]) -> Output {
        antler(
            Path::new(&self.dir),
            &[&["-c", "antler.toml"], args].concat(),
        )
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn antler(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_antler"))
        .args(args)
        .current_dir(dir)
        .env_remove("CREDENTIALS_DIRECTORY")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

const GOOD: &str = "[chunkserver]\nmaster_host = \"10.0.0.1\"\nworkers_max = 3\n\
    [admin]\nsocket = \"no-such.sock\"\n\
    [[device]]\nname = \"disk1\"\npath = \"disk1.img\"\nsize = \"1GiB\"\n\
    [[volume]]\nname = \"vol1\"\nmirror = \"disk1\"\n";

#[test]
fn check_prints_every_value_with_its_origin() {
    let site = Site::new("check", GOOD);
    let out = site.antler(&["check"]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let lines: Vec<&str> = text(&out.stdout).lines().collect();
    let shown = |key: &str, value: &str, origin: &str| {
        lines.iter().any(|l| {
            l.split_once("   # ")
                .is_some_and(|(kv, o)| kv.trim_end() == format!("{key} = {value}") && o == origin)
        })
    };
    assert!(
        shown("chunkserver.master_port", "9420", "default"),
        "{lines:#?}"
    );
    assert!(
        shown("chunkserver.master_host", "\"10.0.0.1\"", "antler.toml:2"),
        "{lines:#?}"
    );
    assert!(
        shown("device.disk1.size", "\"1GiB\"", "antler.toml:9"),
        "{lines:#?}"
    );
    assert!(text(&out.stderr).contains("antler.toml:3: warning: workers_max has no effect here"));

    let out = site.antler(&["check", "--json"]);
    assert_eq!(out.status.code(), Some(0));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["ok"], true);
    let port =
        serde_json::json!({"key": "chunkserver.master_port", "value": 9420, "origin": "default"});
    assert!(json["settings"].as_array().unwrap().contains(&port));
    assert_eq!(json["warnings"][0]["key"], "chunkserver.workers_max");
    assert_eq!(json["warnings"][0]["origin"], "antler.toml:3");
}

#[test]
fn check_names_the_line_and_the_nearest_key() {
    let site = Site::new("typo", "[chunkserver]\n\nmastr_host = \"m\"\nlabels = 3\n");
    for args in [&["check"][..], &["serve"], &["status"], &["volume", "list"]] {
        let out = site.antler(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(out.stdout.is_empty());
        let errors: Vec<&str> = text(&out.stderr).lines().collect();
        assert_eq!(
            errors,
            [
                "antler.toml:3: unknown key \"mastr_host\" in [chunkserver]; did you mean \"master_host\"?",
                "antler.toml:4: chunkserver.labels: expected a string, found a number",
            ],
            "{args:?}"
        );
    }
    let out = site.antler(&["check", "--json"]);
    assert_eq!(out.status.code(), Some(2));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(json["errors"][0]["origin"], "antler.toml:3");
}

#[test]
fn a_missing_or_truncated_file_is_bad_usage() {
    let site = Site::new("missing", "[chunkserver]\nmaster_host = \"mfsma");
    let out = antler(&site.dir, &["-c", "gone.toml", "check"]);
    assert_eq!(out.status.code(), Some(2));
    assert_eq!(text(&out.stderr), "gone.toml: no such file\n");
    let out = site.antler(&["check"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).starts_with("antler.toml:2: "), "{out:?}");
}

/// The one object on standard output.
fn one_object(out: &Output) -> serde_json::Value {
    let json: serde_json::Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    assert!(json.is_object(), "{json}");
    json
}

#[test]
fn a_failure_is_the_one_object_of_json() {
    let site = Site::new("failure", &mirror(&["disk1"], &["disk1"]));
    for (args, code, word) in [
        (&["volume", "info", "vol9"][..], 2, "vol9"),
        (&["volume", "check", "vol1"], 1, "vol1"),
        (&["device", "info", "sto9"], 2, "sto9"),
        (&["device", "info", "disk1"], 1, "disk1.img"),
        (&["status"], 3, "no-such.sock"),
        (&["status", "--watch"], 3, "no-such.sock"),
        (&["paths"], 3, "no-such.sock"),
        (&["arrays"], 3, "no-such.sock"),
        (&["leg", "fail", "vol1", "disk1"], 3, "no-such.sock"),
        (&["scrub", "vol1", "status"], 3, "no-such.sock"),
        (&["quarantine", "list"], 3, "no-such.sock"),
        (&["discover", "127.0.0.1:1"], 3, "127.0.0.1:1"),
        (
            &["discover", "127.0.0.1:1", "127.0.0.2:1"],
            3,
            "127.0.0.2:1",
        ),
        (
            &["bench", "device", "disk1", "--rw", "write"],
            2,
            "--destructive",
        ),
        (&["fly"], 2, "fly"),
    ] {
        let out = site.antler(&[args, &["--json"]].concat());
        assert_eq!(out.status.code(), Some(code), "{args:?}: {out:?}");
        let json = one_object(&out);
        assert_eq!(json["error"]["exit"], code, "{args:?}");
        let said = json["error"]["text"].as_str().unwrap();
        assert!(said.contains(word), "{args:?}: {said}");
        let first = said.lines().next().unwrap();
        assert!(text(&out.stderr).contains(first), "{args:?}: {out:?}");
        // Without --json standard output stays empty.
        assert!(site.antler(args).stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn a_unit_without_a_path_is_told_by_its_paths() {
    let unit = "[chunkserver]\nmaster_host = \"10.0.0.1\"\n\
        [[device]]\nname = \"sto1\"\nportals = [\"127.0.0.1:1\", \"127.0.0.2:1\"]\n\
        target = \"iqn.2024-12.test:unit\"\nlun = 1\n";
    let site = Site::new("pathless", unit);
    let out = site.antler(&["device", "info", "sto1", "--json"]);
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    let json = one_object(&out);
    assert_eq!(json["name"], "sto1");
    assert!(json["size_bytes"].is_null());
    let paths = json["paths"].as_array().unwrap();
    assert_eq!(paths.len(), 2);
    for path in paths {
        assert_eq!(path["state"], "unreachable");
        assert!(
            path["error"].as_str().unwrap().contains("refused"),
            "{path}"
        );
    }
}

/// A volume of `legs` among `devices`, each a file of its name; `data_path` is the site's own.
fn mirror(devices: &[&str], legs: &[&str]) -> String {
    let mut text = "[chunkserver]\nmaster_host = \"10.0.0.1\"\ndata_path = \"data\"\n\
        [admin]\nsocket = \"no-such.sock\"\n"
        .to_owned();
    for name in devices {
        text +=
            &format!("[[device]]\nname = \"{name}\"\npath = \"{name}.img\"\nsize = \"64MiB\"\n");
    }
    text + &format!("[[volume]]\nname = \"vol1\"\nmirror = {legs:?}\n")
}

#[test]
fn create_makes_the_file_of_a_spare_and_leaves_it_blank() {
    let config = mirror(&["d1", "d2", "d3"], &["d1", "d2"]) + "spares = [\"d3\"]\n";
    let site = Site::new("spare", &config);
    let out = site.antler(&["volume", "create", "vol1", "--no-mirror-sync"]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let spare = std::fs::read(site.dir.join("d3.img")).unwrap();
    assert_eq!(spare.len(), 64 << 20);
    assert!(spare.iter().all(|&byte| byte == 0));
}

#[test]
fn offline_commands_name_what_a_device_holds_and_the_way_out() {
    use std::os::unix::fs::FileExt;
    let devices = ["d1", "d2", "d3"];
    let site = Site::new("holds", &mirror(&devices, &["d3"]));
    let legs = |legs: &[&str]| {
        std::fs::write(site.config(), mirror(&devices, legs)).unwrap();
    };
    let done = |args: &[&str]| {
        let out = site.antler(args);
        assert_eq!(out.status.code(), Some(0), "{args:?}: {out:?}");
    };
    let refused = |args: &[&str], parts: &[&str]| {
        let out = site.antler(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {out:?}");
        let said = [text(&out.stdout), text(&out.stderr)].concat();
        for part in parts {
            assert!(said.contains(part), "{args:?}: no {part:?} in {said}");
        }
    };
    let paint = |name: &str, at: u64, bytes: &[u8]| {
        let file = std::fs::File::create(site.dir.join(format!("{name}.img"))).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(bytes, at).unwrap();
    };
    std::fs::create_dir(site.dir.join("out")).unwrap();

    // Another array's leg, beside ours.
    done(&["volume", "create", "vol1", "--no-mirror-sync"]);
    legs(&["d1", "d2"]);
    done(&["volume", "create", "vol1", "--no-mirror-sync"]);
    legs(&["d1", "d3"]);
    let parts = [
        "d1 is a leg of md array ",
        "d3 is a leg of md array ",
        "vol1)",
        "correct the device's portals, target, lun or path",
    ];
    for args in [
        &["volume", "info", "vol1"][..],
        &["volume", "check", "vol1"],
        &["volume", "check", "vol1", "--repair"],
        &["volume", "export", "vol1", "out"],
        &["volume", "grow", "vol1"],
    ] {
        refused(args, &parts);
    }

    // One leg holds something else: the volume is there, and the leg is named.
    legs(&["d1", "d2"]);
    paint("d2", 0, b"XFSB");
    refused(
        &["volume", "info", "vol1"],
        &[
            "leg d2 holds an XFS file system",
            "`antler leg replace vol1 d2 --force`",
        ],
    );

    // No witness tells whether d1 alone has everything.
    std::fs::remove_dir_all(site.dir.join("data")).unwrap();
    for args in [
        &["volume", "info", "vol1"][..],
        &["volume", "check", "vol1"],
    ] {
        refused(
            args,
            &[
                "leg d2 is missing (holds an XFS file system) and there is no witness",
                "`antler leg run vol1 d1 --alone`",
            ],
        );
    }

    // No leg at all.
    paint("d1", 512 + 24, b"LVM2 001");
    for args in [
        &["volume", "info", "vol1"][..],
        &["volume", "check", "vol1"],
        &["volume", "claim", "vol1", "--take"],
    ] {
        refused(
            args,
            &[
                "d1 holds an LVM physical volume; d2 holds an XFS file system",
                "`antler volume create vol1 --force`",
            ],
        );
    }
    paint("d1", 0, b"");
    paint("d2", 0, b"");
    refused(
        &["volume", "check", "vol1"],
        &["d1 is blank; d2 is blank: `antler volume create vol1`"],
    );
}

#[test]
fn usage_and_version() {
    let site = Site::new("usage", GOOD);
    for (args, code) in [
        (&["--version"][..], 0),
        (&["--help"], 0),
        (&["bench", "chunk", "--help"], 0),
        (&[], 2),
        (&["fly"], 2),
        (&["volume", "info", "vol9"], 2),
        (&["device", "info", "sto9"], 2),
        (&["bench", "device", "disk1", "--rw", "write"], 2),
    ] {
        let out = site.antler(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {out:?}");
    }
    let out = antler(&site.dir, &["--version"]);
    assert_eq!(
        text(&out.stdout),
        concat!("antler ", env!("CARGO_PKG_VERSION"), "\n")
    );
    let out = site.antler(&["volume", "info", "vol9"]);
    assert!(text(&out.stderr).contains("there are: vol1"), "{out:?}");
}

#[test]
fn without_a_daemon_the_socket_is_named() {
    let site = Site::new("nobody", GOOD);
    for args in [
        &["status"][..],
        &["paths", "--json"],
        &["arrays"],
        &["leg", "fail", "vol1", "disk1"],
        &["path", "reinstate", "disk1", "10.0.0.1"],
        &["scrub", "vol1", "status"],
        &["quarantine", "list"],
    ] {
        let out = site.antler(args);
        assert_eq!(out.status.code(), Some(3), "{args:?}: {out:?}");
        assert!(text(&out.stderr).contains("no-such.sock"), "{out:?}");
        let said = text(&out.stdout);
        match args.contains(&"--json") {
            true => assert!(said.contains(r#""exit":3"#), "{said}"),
            false => assert_eq!(said, ""),
        }
    }
    assert!(site.config().exists());
}

/// A free port of 127.0.0.1; taken by nobody else as long as nobody asks for it by number.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A running `antler serve`, killed if the test ends early.
struct Served<'a> {
    site: &'a Site,
    child: std::process::Child,
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served<'_> {
    fn start(site: &Site) -> Served<'_> {
        let child = Command::new(env!("CARGO_BIN_EXE_antler"))
            .args(["-c", "antler.toml", "serve"])
            .current_dir(&site.dir)
            .env("NOTIFY_SOCKET", site.dir.join("notify"))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Served { site, child }
    }

    /// Polls until the command says what is wanted; a test that waits for ever is stopped by its runner.
    fn until(&self, args: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        let mut last = None;
        for _ in 0..600 {
            let out = self.site.antler(args);
            if out.status.code() == Some(0) && wanted(text(&out.stdout)) {
                return text(&out.stdout).to_owned();
            }
            last = Some(out);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{args:?} never said it: {last:?}");
    }

    /// The same of `status --json`.
    fn until_status(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let parsed = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        parsed(&self.until(&["status", "--json"], |json| wanted(&parsed(json))))
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Has another configuration read, and returns what is said of it.
    fn reload(&self, config: &str) -> String {
        let told = |status: &serde_json::Value| -> Vec<String> {
            let events = status["events"].as_array().unwrap().iter();
            events
                .filter(|event| event["event"] == "config_reloaded")
                .map(|event| event["text"].as_str().unwrap().to_owned())
                .collect()
        };
        let before = told(&self.until_status(|_| true)).len();
        std::fs::write(self.site.config(), config).unwrap();
        self.signal(nix::sys::signal::Signal::SIGHUP);
        told(&self.until_status(|status| told(status).len() > before)).remove(before)
    }

    /// SIGTERM; the exit status.
    fn stop(mut self) -> Option<i32> {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.child.wait().unwrap().code()
    }
}

/// A node of its own, without a device, that finds no master.
fn small_node() -> String {
    format!(
        "[chunkserver]\nmaster_host = \"127.0.0.1:{}\"\ncsserv_listen_host = \"127.0.0.1\"\n\
         csserv_listen_port = {}\ndata_path = \"data\"\ncache_size = \"1MiB\"\nmemory_limit = \"64MiB\"\n\
         nice_level = 0\ndisable_oom_killer = 0\n\
         [admin]\nsocket = \"admin.sock\"\nhttp = \"127.0.0.1:{}\"\n",
        free_port(),
        free_port(),
        free_port()
    )
}

#[test]
fn serve_answers_reloads_and_stops() {
    let config = small_node();
    let site = Site::new("serve", &config);
    let manager = std::os::unix::net::UnixDatagram::bind(site.dir.join("notify")).unwrap();
    let served = Served::start(&site);
    let status = served.until_status(|_| true);
    assert_eq!(status["pid"], served.child.id());
    served.until(&["status"], |page| page.starts_with("antler "));
    let said = served.reload(&config.replace("[admin]", "labels = \"B\"\n[admin]"));
    assert_eq!(said, "changed: chunkserver.labels");
    assert_eq!(served.stop(), Some(0));
    assert!(!site.dir.join("admin.sock").exists());
    let mut told = Vec::new();
    let mut buffer = [0; 256];
    manager.set_nonblocking(true).unwrap();
    while let Ok(n) = manager.recv(&mut buffer) {
        told.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
    }
    assert!(told.iter().any(|t| t == "STOPPING=1"), "{told:?}");
}

/// A volume of one local file.
fn volume_of(volume: &str, device: &str) -> String {
    format!(
        "[[device]]\nname = \"{device}\"\npath = \"{device}.img\"\nsize = \"64MiB\"\n\
         [[volume]]\nname = \"{volume}\"\nmirror = \"{device}\"\n"
    )
}

#[test]
fn a_reload_takes_in_volumes_and_names_what_waits() {
    let (vol1, vol2, vol3) = (
        volume_of("vol1", "d1"),
        volume_of("vol2", "d2"),
        volume_of("vol3", "d3"),
    );
    let node = small_node();
    let one = format!("{node}{vol1}");
    let three = format!("{one}{vol2}{vol3}");
    let site = Site::new("reload", &three);
    for volume in ["vol1", "vol2"] {
        let made = site.antler(&["volume", "create", volume]);
        assert_eq!(made.status.code(), Some(0), "{made:?}");
    }
    std::fs::write(site.config(), &one).unwrap();
    let served = Served::start(&site);
    let states = |status: &serde_json::Value| -> Vec<(String, String)> {
        let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let volumes = status["volumes"].as_array().unwrap().iter();
        volumes
            .map(|v| (word(&v["name"]), word(&v["state"])))
            .collect()
    };
    let are = |status: &serde_json::Value, wanted: &[(&str, &str)]| {
        let wanted = wanted.iter().map(|(n, s)| (n.to_string(), s.to_string()));
        states(status) == wanted.collect::<Vec<_>>()
    };
    served.until_status(|status| are(status, &[("vol1", "active")]));

    // One that is there, and one whose device is not.
    let said = served.reload(&three);
    assert_eq!(
        said,
        "added: device.d2, device.d3, volume.vol2, volume.vol3"
    );
    let all = [("vol1", "active"), ("vol2", "active"), ("vol3", "absent")];
    let status = served.until_status(|status| are(status, &all));
    let note = status["volumes"][2]["note"].as_str().unwrap();
    assert!(note.contains("d3"), "{note}");
    let devices = status["devices"].as_array().unwrap().iter();
    let names: Vec<&str> = devices.map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["d1", "d2", "d3"]);
    served.until(&["arrays"], |page| page.contains("vol2"));

    // A mark is live, and a volume goes only at a restart: it is served on.
    let removing = one.replace("name = \"vol1\"", "name = \"vol1\"\nstate = \"removing\"");
    let said = served.reload(&removing);
    assert_eq!(
        said,
        "changed: volume.vol1.state; \
         needs restart: device.d2, device.d3, volume.vol2, volume.vol3"
    );
    let all = [("vol1", "removing"), ("vol2", "active"), ("vol3", "absent")];
    served.until_status(|status| are(status, &all));
    assert_eq!(served.reload(&three), "changed: volume.vol1.state");

    assert_eq!(served.stop(), Some(0));
    let info = site.antler(&["volume", "check", "vol2"]);
    assert_eq!(info.status.code(), Some(0), "{info:?}");
}

/// Another process has a file of the volume: told as that, and nothing is said of another data_path.
#[test]
fn a_volume_that_somebody_has_open_is_refused_by_his_pid() {
    let site = Site::new("in-use", &mirror(&["d1", "d2"], &["d1", "d2"]));
    let out = site.antler(&["volume", "create", "vol1"]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let file = std::fs::File::open(site.dir.join("d1.img")).unwrap();
    file.try_lock().unwrap();
    let pid = format!("in use by pid {}", std::process::id());
    for args in [
        &["volume", "info", "vol1"][..],
        &["volume", "check", "vol1"],
        &["volume", "check", "vol1", "--repair"],
        &["volume", "create", "vol1", "--force"],
        &["volume", "grow", "vol1"],
        &["volume", "claim", "vol1", "--metaid", "any"],
    ] {
        let out = site.antler(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {out:?}");
        let said = [text(&out.stdout), text(&out.stderr)].concat();
        assert!(said.contains(&pid), "{args:?}: {said}");
        assert!(!said.contains("data_path"), "{args:?}: {said}");
    }
    drop(file);
    let out = site.antler(&["volume", "info", "vol1"]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let said = text(&out.stdout);
    assert!(said.contains("this node ("), "{said}");
    assert!(!said.contains("running"), "{said}");
}

#[test]
fn a_volume_whose_unit_is_not_reached_names_each_portal_and_cause() {
    let unit = "[chunkserver]\nmaster_host = \"10.0.0.1\"\ndata_path = \"data\"\n\
        [iscsi]\nlogin_timeout = \"200ms\"\n\
        [[device]]\nname = \"sto1\"\nportals = [\"127.0.0.1:1\", \"127.0.0.2:1\"]\n\
        target = \"iqn.2024-12.test:unit\"\nlun = 1\n\
        [[volume]]\nname = \"vol1\"\nmirror = \"sto1\"\n";
    let site = Site::new("unreached", unit);
    for args in [&["volume", "info", "vol1"][..], &["volume", "list"]] {
        let out = site.antler(args);
        let said = [text(&out.stdout), text(&out.stderr)].concat();
        for part in ["sto1", "127.0.0.1:1: ", "127.0.0.2:1: ", "refused"] {
            assert!(said.contains(part), "{args:?}: no {part:?} in {said}");
        }
    }
}

/// Served by the other leg, and said aloud: in the log's events, the page of the volume and that of its array.
#[test]
fn a_device_that_is_no_leg_of_its_volume_is_named_while_the_other_serves() {
    let devices = "[[device]]\nname = \"d1\"\npath = \"d1.img\"\nsize = \"64MiB\"\n\
        [[device]]\nname = \"d2\"\npath = \"d2.img\"\nsize = \"64MiB\"\n\
        [[volume]]\nname = \"vol1\"\nmirror = [\"d1\", \"d2\"]\n";
    let site = Site::new("no-leg", &(small_node() + devices));
    let made = site.antler(&["volume", "create", "vol1"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let leg = site.dir.join("d2.img");
    let whole = std::fs::read(&leg).unwrap();
    let cases: [(&str, Vec<u8>, &[&str]); 4] = [
        ("cut", whole[..20 << 20].to_vec(), &["sectors"]),
        (
            "blank",
            vec![0; 64 << 20],
            &["is blank", "`antler leg replace vol1 d2`"],
        ),
        (
            "twin",
            std::fs::read(site.dir.join("d1.img")).unwrap(),
            &["is a leg of", "--force"],
        ),
        ("noise", vec![0xa5; 64 << 20], &["leg replace"]),
    ];
    for (case, content, wanted) in cases {
        std::fs::write(&leg, content).unwrap();
        let served = Served::start(&site);
        let status = served.until_status(|status| {
            let volume = &status["volumes"][0];
            volume["state"] == "active" && !volume["note"].is_null()
        });
        let event = status["events"].as_array().unwrap().iter();
        let event = event
            .filter(|e| e["event"] == "leg_failed")
            .collect::<Vec<_>>();
        assert_eq!(event.len(), 1, "{case}: {status:#}");
        assert_eq!(event[0]["object"], "vol1 d2", "{case}");
        let text = event[0]["text"].as_str().unwrap();
        for part in [&["leg d2 "], wanted].concat() {
            assert!(text.contains(part), "{case}: no {part:?} in {text}");
        }
        assert_eq!(status["volumes"][0]["note"], text, "{case}");
        assert_eq!(status["arrays"][0]["note"], text, "{case}");
        assert_eq!(served.stop(), Some(0));
    }
}
