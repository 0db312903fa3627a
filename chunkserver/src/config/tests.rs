use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

const TYPICAL: &str = r#"
[chunkserver]
master_host = ["mfsmaster", "10.1.0.2:9430"]
labels = "b, A"
cache_size = "512MiB"

[iscsi]
initiator_name = "iqn.2024-12.tp2.b3:data-chunk1:chunk1-initiator"

[multipath]
no_path_retry = 5
recheck_wwid = "no"

[[device]]
name = "sto1"
portals = ["10.3.1.1", "10.3.1.2:3261", { address = "[fd00::1]:3260", source = "fd00::101" }]
target = "iqn.2024-12.tp2.b3:data-chunk1"
lun = 1
header_digest = "crc32c"
polling_interval = 2

[[device]]
name = "disk1"
path = "disk1.img"
size = "10GiB"

[[volume]]
name = "vol1"
mirror = ["sto1", "disk1"]
"#;

fn environment() -> Environment {
    Environment {
        memory_bytes: 16 << 30,
        host_name: "chunk1".to_owned(),
        credentials: None,
    }
}

pub(super) fn judge(text: &str) -> Loaded {
    // A directory that does not exist: no test depends on a file of the machine it runs on.
    let path = Path::new("/nonexistent-antler/antler.toml");
    parse("antler.toml", text, path, &environment())
}

/// The errors as `antler check` prints them.
fn errors(text: &str) -> Vec<String> {
    judge(text).errors.iter().map(ToString::to_string).collect()
}

fn warnings(text: &str) -> Vec<String> {
    judge(text)
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn config(text: &str) -> Config {
    let loaded = judge(text);
    assert!(loaded.errors.is_empty(), "{:#?}", loaded.errors);
    loaded.config.unwrap()
}

#[test]
fn the_typical_site() {
    let c = config(TYPICAL);
    assert_eq!(
        c.chunkserver
            .master_hosts
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["mfsmaster:9420", "10.1.0.2:9430"]
    );
    assert_eq!(c.chunkserver.labels, ['A', 'B']);
    assert_eq!(c.chunkserver.cache_bytes, 512 << 20);
    assert_eq!(c.chunkserver.memory_bytes, 768 << 20);
    let DeviceKind::Iscsi(sto1) = &c.device("sto1").unwrap().kind else {
        panic!()
    };
    assert_eq!(sto1.portals.len(), 3);
    assert_eq!(sto1.portals[0].address.to_string(), "10.3.1.1:3260");
    assert_eq!(sto1.portals[2].source.unwrap().to_string(), "fd00::101");
    assert_eq!(
        (sto1.lun, sto1.iscsi.header_digest, c.iscsi.header_digest),
        (1, Digest::Crc32c, Digest::None)
    );
    assert_eq!(sto1.multipath.polling_interval, Duration::from_secs(2));
    assert_eq!(sto1.multipath.no_path_retry, NoPathRetry::Times(5));
    assert!(!sto1.multipath.recheck_wwid);
    let DeviceKind::Local(disk1) = &c.device("disk1").unwrap().kind else {
        panic!()
    };
    assert_eq!(disk1.size_bytes, Some(10 << 30));
    assert_eq!(disk1.path, PathBuf::from("/nonexistent-antler/disk1.img"));
    assert_eq!(c.volumes[0].legs, ["sto1", "disk1"]);
}

#[test]
fn defaults() {
    let c = config("");
    let shown = |key: &str| {
        c.settings
            .iter()
            .find(|s| s.key == key)
            .map(|s| s.value.to_string())
    };
    assert_eq!(
        shown("chunkserver.master_host").as_deref(),
        Some("\"mfsmaster\"")
    );
    assert_eq!(c.chunkserver.cache_bytes, 4 << 30);
    assert_eq!(c.chunkserver.memory_bytes, (4 << 30) + (256 << 20));
    assert_eq!(c.chunkserver.durability, Durability::Flush);
    assert_eq!(c.chunkserver.listen_port, 9422);
    assert_eq!(c.admin.http.unwrap().to_string(), "127.0.0.1:9424");
    assert_eq!(
        c.iscsi.initiator_name,
        "iqn.2024-12.invalid.example:antler:chunk1"
    );
    assert_eq!(c.iscsi.chap_algorithms.len(), 4);
    assert_eq!(c.multipath.failback, Failback::Immediate);
    assert_eq!(c.multipath.path_selector, Selector::ServiceTime);
    assert_eq!(c.multipath.max_polling_interval, Duration::from_secs(20));
    assert_eq!(c.multipath.fence_timeout, Duration::from_millis(500));
    assert!(c.multipath.recheck_wwid && !c.multipath.detect_pgpolicy);
    assert_eq!(c.warnings.len(), 1, "{:?}", c.warnings);
}

#[test]
fn a_single_leg_queues_and_a_mirrors_leg_does_not() {
    let device = |n: u8| {
        format!(
            "[[device]]\nname = \"d{n}\"\nportals = \"10.0.0.{n}\"\ntarget = \"iqn.2024-12.a:b\"\n"
        )
    };
    let mpath = |c: &Config| match &c.devices[0].kind {
        DeviceKind::Iscsi(d) => d.multipath.no_path_retry,
        DeviceKind::Local(_) => panic!(),
    };
    let single = format!("{}[[volume]]\nname = \"v\"\nmirror = \"d1\"\n", device(1));
    assert_eq!(mpath(&config(&single)), NoPathRetry::Times(12));
    let pair = format!(
        "{}{}[[volume]]\nname = \"v\"\nmirror = [\"d1\", \"d2\"]\n",
        device(1),
        device(2)
    );
    assert_eq!(mpath(&config(&pair)), NoPathRetry::Fail);
    let old = format!("[multipath]\nfeatures = \"1 queue_if_no_path\"\n{pair}");
    assert_eq!(mpath(&config(&old)), NoPathRetry::Queue);
    assert_eq!(
        NoPathRetry::Times(12).queue_for(Duration::from_secs(5)),
        Some(Duration::from_secs(61))
    );
}

#[test]
fn every_error_names_its_line_and_the_way_out() {
    const DEVICE: &str =
        "[[device]]\nname = \"a\"\nportals = \"10.0.0.1\"\ntarget = \"iqn.2024-12.a:b\"\n";
    let with = |rest: &str| format!("{DEVICE}{rest}");
    for (text, want) in [
        (
            "[chunkserver]\nmastr_host = \"m\"\n".to_owned(),
            r#"antler.toml:2: unknown key "mastr_host" in [chunkserver]; did you mean "master_host"?"#,
        ),
        (
            "[chunkserver]\nheader_digest = \"none\"\n".to_owned(),
            r#"antler.toml:2: unknown key "header_digest" in [chunkserver]; it belongs in [iscsi]"#,
        ),
        ("[chunksever]\n".to_owned(), "antler.toml:1: unknown section [chunksever]; did you mean [chunkserver]?"),
        ("labels = \"A\"\n".to_owned(), "antler.toml:1: unknown key \"labels\" outside any section; it belongs in [chunkserver]"),
        ("[device]\nname = \"a\"\n".to_owned(), "antler.toml:1: device is a list: write [[device]]"),
        (
            "[chunkserver]\nmaster_port = 94200\n".to_owned(),
            "antler.toml:2: chunkserver.master_port: 94200 is outside 1..65535",
        ),
        (
            "[chunkserver]\ndurability = \"sync\"\n".to_owned(),
            r#"antler.toml:2: chunkserver.durability: expected "flush", "fua" or "cache", found "sync""#,
        ),
        (
            "[chunkserver]\nlabels = \"A,BC\"\n".to_owned(),
            r#"antler.toml:2: chunkserver.labels: "BC" is no label: labels are letters from A to Z"#,
        ),
        (
            "[chunkserver]\nauth_code = \"tiger\"\n".to_owned(),
            "antler.toml:2: chunkserver.auth_code: a secret has no place in this file: put it in a file of mode 0600 and name that with \"auth_code_file\"",
        ),
        (
            "[chunkserver]\nauth_code_file = \"gone\"\n".to_owned(),
            "antler.toml:2: auth_code_file: /nonexistent-antler/gone: no such file",
        ),
        (
            "[chunkserver]\nmfs_config = \"gone.cfg\"\n".to_owned(),
            "antler.toml:2: mfs_config: gone.cfg: no such file",
        ),
        (
            "[chunkserver]\ncache_size = \"2GiB\"\nmemory_limit = \"1GiB\"\n".to_owned(),
            "antler.toml:3: memory_limit: 1GiB leaves no room beside cache_size 2GiB: at least 32MiB more is needed",
        ),
        ("[chunkserver]\nmaster_host = []\n".to_owned(), "antler.toml:2: master_host: the list is empty"),
        ("[iscsi]\nchap_user = \"u\"\n".to_owned(), "antler.toml:2: chap_user needs chap_secret_file"),
        (
            "[multipath]\nmarginal_path_err_sample_time = 120\n".to_owned(),
            "antler.toml:2: marginal_path_err_sample_time works only with marginal_path_double_failed_time, _err_sample_time, _err_rate_threshold and _err_recheck_gap_time all set",
        ),
        (
            "[multipath]\npath_selector = \"fastest\"\n".to_owned(),
            "antler.toml:2: multipath.path_selector: \"fastest\" is no path selector; there are round-robin, queue-length, service-time, historical-service-time, io-affinity, tail-latency",
        ),
        (
            "[multipath]\npolling_interval = 30\nmax_polling_interval = 10\n".to_owned(),
            "antler.toml:3: max_polling_interval: 10s is less than polling_interval 30s",
        ),
        (with("[[device]]\n"), "antler.toml:5: a [[device]] needs a name"),
        (with(DEVICE), "antler.toml:6: a device named \"a\" exists already"),
        (
            with("[[device]]\nname = \"b\"\n"),
            "antler.toml:6: device \"b\" has neither portals and target, nor a path",
        ),
        (
            with("[[device]]\nname = \"b\"\npath = \"/x\"\ntarget = \"iqn.2024-12.a:b\"\n"),
            "antler.toml:7: device \"b\" has both path and portals or target: it is one or the other",
        ),
        (
            with("[[device]]\nname = \"b\"\nportals = [\"10.0.0.1\", \"10.0.0.1:3260\"]\ntarget = \"iqn.2024-12.a:b\"\n"),
            "antler.toml:7: device \"b\" lists portal 10.0.0.1:3260 twice",
        ),
        (
            with("[[device]]\nname = \"b\"\nportals = [\"10.0.0\"]\ntarget = \"iqn.2024-12.a:b\"\n"),
            "antler.toml:7: portals: \"10.0.0\" is no host or host:port (IPv6: [ADDRESS]:PORT)",
        ),
        (
            with("[[device]]\nname = \"b\"\nportals = [\"10.0.0.2\"]\ntarget = \"disk\"\n"),
            "antler.toml:8: device.b.target: \"disk\" is no iSCSI name (iqn.YYYY-MM.DOMAIN:NAME, eui.… or naa.…)",
        ),
        (
            with("[[device]]\nname = \"b\"\nportals = []\ntarget = \"iqn.2024-12.a:b\"\n"),
            "antler.toml:7: device \"b\" has no portals",
        ),
        (
            with("[[device]]\nname = \"b\"\nportals = [5, true]\ntarget = \"iqn.2024-12.a:b\"\n"),
            "antler.toml:7: device.b.portals: \
             entry 1: expected \"ADDRESS:PORT\" or { address, source }, found a number; \
             entry 2: expected \"ADDRESS:PORT\" or { address, source }, found a boolean",
        ),
        (
            with("[[device]]\nname = \"b\"\npath = 5\n"),
            "antler.toml:7: device.b.path: expected a string, found a number",
        ),
        (
            with("[[volume]]\nname = \"v\"\nmirror = [\"a\", \"sto9\"]\n"),
            "antler.toml:7: volume \"v\": there is no [[device]] named \"sto9\"",
        ),
        (
            with("[[volume]]\nname = \"v\"\nmirror = [\"a\", \"a\"]\n"),
            "antler.toml:7: volume \"v\" names device \"a\" twice",
        ),
        (
            with("[[volume]]\nname = \"v\"\nmirror = \"a\"\n[[volume]]\nname = \"w\"\nmirror = \"a\"\n"),
            "antler.toml:10: device \"a\" is used by volume \"v\" already",
        ),
        (
            with("[[volume]]\nname = \"v\"\n"),
            "antler.toml:6: volume \"v\": mirror names one or two devices, not 0",
        ),
        ("[[volume]]\nname = \"../v\"\nmirror = \"a\"\n".to_owned(), "antler.toml:2: volume.../v.name: \"../v\" is no name: 1 to 64 of A-Z a-z 0-9 . _ -, not beginning with . or -"),
        (
            "[[device]]\nname = \"x\"\npath = \"/d\"\n[[device]]\nname = \"y\"\npath = \"/d\"\n".to_owned(),
            "antler.toml:6: devices \"x\" and \"y\" are one: /d",
        ),
    ] {
        let got = errors(&text);
        assert!(got.iter().any(|g| g == want), "for\n{text}\nwanted {want}\ngot    {got:#?}");
    }
}

#[test]
fn a_wrong_value_is_not_called_missing_as_well() {
    let unit = |portals: &str, target: &str| {
        format!("[[device]]\nname = \"b\"\nportals = {portals}\ntarget = {target}\n")
    };
    for text in [
        unit("\"10.0.0.1\"", "\"disk\""),
        unit("[]", "\"iqn.2024-12.a:b\""),
        unit("[true]", "\"iqn.2024-12.a:b\""),
        unit("\"10.0.0\"", "\"iqn.2024-12.a:b\""),
        "[[device]]\nname = \"b\"\npath = 5\n".to_owned(),
        "[[device]]\nname = \"b\"\npath = \"/x\"\n[[volume]]\nname = \"v\"\nmirror = 5\n"
            .to_owned(),
    ] {
        let got = errors(&text);
        assert_eq!(got.len(), 1, "for\n{text}\ngot {got:#?}");
    }
}

#[test]
fn all_errors_are_reported_in_the_order_of_the_file() {
    let got = judge(
        "[chunkserver]\nlabls = \"A\"\nmaster_port = 0\n[admin]\nhttp = \"x\"\n[iscsi]\nlun = 1\n",
    );
    let lines: Vec<String> = got.errors.iter().map(|e| e.origin.to_string()).collect();
    assert_eq!(
        lines,
        [
            "antler.toml:2",
            "antler.toml:3",
            "antler.toml:5",
            "antler.toml:7"
        ]
    );
    assert!(got.config.is_none());
}

#[test]
fn truncated_and_broken_files() {
    for cut in (0..TYPICAL.len()).filter(|i| TYPICAL.is_char_boundary(*i)) {
        let _ = judge(&TYPICAL[..cut]); // anything but a panic
    }
    let got = errors("[chunkserver]\nmaster_host = \"mfsma");
    assert!(
        got.iter().any(|e| e.starts_with("antler.toml:2: ")),
        "{got:?}"
    );
    let got = load(Path::new("/nonexistent-antler/antler.toml"), &environment());
    assert_eq!(
        got.errors[0].to_string(),
        "/nonexistent-antler/antler.toml: no such file"
    );
    let got = load(Path::new("/"), &environment());
    assert_eq!(got.errors.len(), 1);
    let path = scratch("latin1.toml", b"[chunkserver]\nlabels = \"\xe9\"\n", 0o600);
    let got = load(&path, &environment());
    assert!(
        got.errors[0].text.contains("line 2 is not UTF-8"),
        "{:?}",
        got.errors
    );
}

/// Every option of mfschunkserver.cfg(5) 3.0.117 and of its example file either works or is named.
#[test]
fn stock_options_without_effect_are_named() {
    const WITHOUT_EFFECT: [&str; 26] = [
        "working_user",
        "working_group",
        "syslog_ident",
        "limit_glibc_malloc_arenas",
        "allow_starting_with_invalid_disks",
        "hdd_conf_filename",
        "hdd_test_freq",
        "hdd_test_speed",
        "hdd_min_test_interval",
        "hdd_fadvise_min_time",
        "hdd_leave_space_default",
        "hdd_rebalance_utilization",
        "hdd_high_speed_rebalance_limit",
        "hdd_error_tolerance_count",
        "hdd_error_tolerance_period",
        "hdd_fsync_before_close",
        "hdd_sparsify_on_write",
        "hdd_rr_chunk_count",
        "hdd_keep_duplicates_hours",
        "workers_max",
        "workers_max_idle",
        "master_control_port",
        "master_reconnection_delay",
        "chunks_per_register_packet",
        "csserv_timeout",
        "replication_timeout",
    ];
    for name in WITHOUT_EFFECT {
        let loaded = judge(&format!("[chunkserver]\n{name} = 2\n"));
        let key = format!("chunkserver.{name}");
        let named = loaded.warnings.iter().any(|w| {
            w.key == key && w.origin.to_string() == "antler.toml:2" && w.text.contains("no effect")
        });
        assert!(named, "{name}: {:?}", loaded.warnings);
    }
    // These work: nothing is said of them.
    for line in [
        "labels = \"A\"",
        "nice_level = -5",
        "lock_memory = 1",
        "disable_oom_killer = 0",
        "file_umask = \"022\"",
        "master_timeout = 20",
        "bind_host = \"10.0.0.2\"",
        "csserv_listen_port = 9522",
    ] {
        let loaded = judge(&format!("[chunkserver]\n{line}\n"));
        assert!(loaded.errors.is_empty(), "{line}: {:?}", loaded.errors);
        let name = line.split(' ').next().unwrap();
        let about = loaded.warnings.iter().find(|w| w.key.ends_with(name));
        assert_eq!(about.map(|w| &w.text), None, "{line}");
    }
    let several = judge("[chunkserver]\nworkers = 4\n");
    assert!(several
        .warnings
        .iter()
        .any(|w| w.text.contains("one shard")));
}

#[test]
fn warnings_name_what_is_allowed_but_hardly_meant() {
    for (text, want) in [
        (
            "[chunkserver]\nmaster_host = \"127.0.0.1\"\n",
            "antler.toml:2: master_host is a loopback address: a stock mfsmaster refuses chunkservers that connect from 127.0.0.0/8",
        ),
        (
            "[chunkserver]\nworkers_max = 100\n",
            "antler.toml:2: workers_max has no effect here: there are no worker threads: requests are served on one event loop a shard",
        ),
        (
            "[multipath]\nwwids_file = \"/etc/multipath/wwids\"\n",
            "antler.toml:2: wwids_file is deprecated and has no effect; use wwid in [[device]]",
        ),
        (
            "[admin]\nhttp = \"0.0.0.0:9424\"\n",
            "antler.toml:2: http: 0.0.0.0:9424 can be reached from other hosts, and nothing asks for a password",
        ),
        ("", "volume: there is no [[volume]]: nothing will be served"),
        ("[[device]]\nname = \"x\"\npath = \"/d\"\n", "antler.toml:2: device \"x\" is used by no volume"),
    ] {
        let got = warnings(text);
        assert!(got.iter().any(|w| w == want), "wanted {want}\ngot {got:#?}");
        assert!(judge(text).errors.is_empty());
    }
}

#[test]
fn duplicate_wwids_need_leave() {
    let device = |n: u8, rest: &str| {
        format!(
            "[[device]]\nname = \"d{n}\"\nportals = \"10.0.0.{n}\"\ntarget = \"iqn.2024-12.a:b\"\nwwid = \"36001\"\n{rest}"
        )
    };
    let got = errors(&(device(1, "") + &device(2, "")));
    assert!(got[0].contains("scsi_id and scsi_sn"), "{got:?}");
    let allow = "allow_duplicate_wwid = true\n";
    assert_eq!(errors(&(device(1, allow) + &device(2, ""))).len(), 1);
    assert_eq!(
        errors(&(device(1, allow) + &device(2, allow))),
        Vec::<String>::new()
    );
}

#[test]
fn a_volume_has_no_more_paths_than_its_claim_holds() {
    let device = |n: usize, portals: usize| {
        let portals: Vec<String> = (0..portals)
            .map(|p| format!("\"10.{n}.{}.{}\"", p / 250, p % 250))
            .collect();
        format!(
            "[[device]]\nname = \"d{n}\"\nportals = [{}]\ntarget = \"iqn.2024-12.a:b\"\n",
            portals.join(", ")
        )
    };
    let volume = "[[volume]]\nname = \"v\"\nmirror = [\"d1\", \"d2\"]\n";
    let most = raid::claim::ISIDS_MAX;
    let of = |one, two| errors(&(device(1, one) + &device(2, two) + volume));
    assert_eq!(of(most - 300, 300), Vec::<String>::new());
    let got = of(most - 300, 301);
    assert!(got[0].contains("has 633 paths"), "{got:?}");
}

/// A file whose name ends in `name`, until the path is dropped.
pub(super) fn scratch(name: &str, bytes: &[u8], mode: u32) -> tempfile::TempPath {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::Builder::new().suffix(name).tempfile().unwrap();
    let path = file.into_temp_path();
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn moosefs_own_file() {
    let cfg = b"MASTER_HOST = mfs.example\nMASTER_PORT = 9500\nLABELS = C\nDATA_PATH = /var/lib/mfs\nAUTH_CODE = tiger\nWORKERS_MAX = 9\nNO_SUCH = 1\n";
    let path = scratch("mfschunkserver.cfg", cfg, 0o600);
    let text = format!(
        "[chunkserver]\nmfs_config = \"{}\"\nlabels = \"D\"\n",
        path.display()
    );
    let c = config(&text);
    assert_eq!(
        c.chunkserver.master_hosts[0].to_string(),
        "mfs.example:9500"
    );
    assert_eq!(c.chunkserver.labels, ['D']);
    assert_eq!(c.chunkserver.data_path, PathBuf::from("/var/lib/antler"));
    assert_eq!(c.chunkserver.auth_code.as_ref().unwrap().expose(), "tiger");
    let port = c
        .settings
        .iter()
        .find(|s| s.key == "chunkserver.master_port")
        .unwrap();
    assert_eq!(port.origin.to_string(), format!("{}:2", path.display()));
    let warned: Vec<&str> = c.warnings.iter().map(|w| w.key.as_str()).collect();
    for key in [
        "chunkserver.data_path",
        "chunkserver.workers_max",
        "chunkserver.no_such",
    ] {
        assert!(warned.contains(&key), "{warned:?}");
    }

    let open = scratch("open.cfg", b"AUTH_CODE = tiger\n", 0o644);
    let c = config(&format!(
        "[chunkserver]\nmfs_config = \"{}\"\n",
        open.display()
    ));
    assert_eq!(c.chunkserver.auth_code, None);
    assert!(c
        .warnings
        .iter()
        .any(|w| w.text.starts_with("AUTH_CODE is not taken")));

    let bad = scratch("bad.cfg", b"\nMASTER_PORT = many\n", 0o600);
    let got = errors(&format!(
        "[chunkserver]\nmfs_config = \"{}\"\n",
        bad.display()
    ));
    assert_eq!(got.len(), 1);
    assert!(
        got[0].starts_with(&format!("{}:2: ", bad.display())),
        "{got:?}"
    );
}

#[test]
fn secrets_are_never_shown() {
    let secret = scratch("chap", b"correct horse battery\n", 0o600);
    let text = format!(
        "[iscsi]\nchap_user = \"u\"\nchap_secret_file = \"{}\"\n",
        secret.display()
    );
    let loaded = judge(&text);
    let shown = format!(
        "{:?} {} {}",
        loaded,
        loaded.settings_text(),
        serde_json::to_string(&loaded.report()).unwrap()
    );
    assert!(!shown.contains("battery"));
    assert_eq!(
        loaded.config.unwrap().iscsi.chap.unwrap().secret.expose(),
        "correct horse battery"
    );

    let open = scratch("chap-open", b"correct horse battery\n", 0o640);
    let got = errors(&format!(
        "[iscsi]\nchap_user = \"u\"\nchap_secret_file = \"{}\"\n",
        open.display()
    ));
    assert!(got[0].contains("chmod 600"), "{got:?}");
}

#[test]
fn check_shows_every_value_and_its_origin() {
    let loaded = judge(TYPICAL);
    let text = loaded.settings_text();
    let line = |key: &str| {
        let line = text
            .lines()
            .find(|l| l.starts_with(&format!("{key} = ")))
            .unwrap_or_else(|| panic!("{key}\n{text}"));
        let (value, origin) = line.rsplit_once("   # ").unwrap();
        (value.trim_end().to_owned(), origin.to_owned())
    };
    let is = |key: &str, value: &str, origin: &str| {
        assert_eq!(line(key), (format!("{key} = {value}"), origin.to_owned()));
    };
    is("chunkserver.master_port", "9420", "default");
    is(
        "chunkserver.master_host",
        "[\"mfsmaster\", \"10.1.0.2:9430\"]",
        "antler.toml:3",
    );
    is("chunkserver.memory_limit", "\"768MiB\"", "default");
    is("multipath.recheck_wwid", "\"no\"", "antler.toml:12");
    is("device.sto1.header_digest", "\"crc32c\"", "antler.toml:19");
    is("device.sto1.no_path_retry", "5", "antler.toml:11");
    is("multipath.failback", "\"immediate\"", "default");
    is("volume.vol1.state", "\"active\"", "default");
    let json = serde_json::to_value(loaded.report()).unwrap();
    assert_eq!(json["ok"], true);
    let port = json["settings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["key"] == "chunkserver.master_port")
        .unwrap();
    assert_eq!(
        *port,
        serde_json::json!({"key": "chunkserver.master_port", "value": 9420, "origin": "default"})
    );
    assert!(json["warnings"].is_array());
    let keys: Vec<&str> = loaded.settings.iter().map(|s| s.key.as_str()).collect();
    let mut once = keys.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), keys.len(), "a key is shown once");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
    #[test]
    fn no_text_makes_it_panic(
        section in "(\\[chunkserver\\]|\\[multipath\\]|\\[\\[device\\]\\]|\\[\\[volume\\]\\]|\\[iscsi\\]|)",
        lines in proptest::collection::vec(
            "(name|portals|target|mirror|path|size|lun|cache_size|workers|labels|path_selector|failback|x) = (1|-1|1\\.5|true|\"a\"|\"\"|\"auto\"|\\[\\]|\\[\"a\", 1\\]|\\{ address = \"::1\" \\}|\"9223372036854775808TiB\"|1979-05-27)",
            0..8,
        ),
        garbage in "\\PC{0,20}",
    ) {
        let _ = judge(&format!("{section}\n{}\n{garbage}", lines.join("\n")));
    }
}
