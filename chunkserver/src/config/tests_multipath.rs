//! `multipath_conf = FILE`: sections, precedence, origins, and what a unit's own words decide.

use std::time::Duration;

use super::tests::{judge, scratch};
use super::*;

/// A configuration of the units `a` (of that WWID) and `b` (of unknown WWID) beside a `multipath.conf`.
fn with_conf(name: &str, conf: &str, more: &str) -> Loaded {
    let path = scratch(name, conf.as_bytes(), 0o644);
    judge(&format!(
        "[multipath]\nmultipath_conf = \"{}\"\n{more}\
         [[device]]\nname = \"a\"\nportals = \"10.0.0.1\"\ntarget = \"iqn.2024-12.a:b\"\nwwid = \"36001\"\n\
         [[device]]\nname = \"b\"\nportals = \"10.0.0.2\"\ntarget = \"iqn.2024-12.a:b\"\n\
         [[volume]]\nname = \"v\"\nmirror = [\"a\", \"b\"]\n",
        path.display()
    ))
}

fn unit<'a>(loaded: &'a Loaded, name: &str) -> &'a IscsiDevice {
    let config = loaded.config.as_ref();
    let config = config.unwrap_or_else(|| panic!("{:#?}", loaded.errors));
    match &config.device(name).unwrap().kind {
        DeviceKind::Iscsi(unit) => unit,
        DeviceKind::Local(_) => panic!(),
    }
}

fn facts<'a>(wwid: &'a str, vendor: &'a str, product: &'a str) -> UnitFacts<'a> {
    UnitFacts {
        wwid: Some(wwid),
        vendor,
        product,
        revision: "0001",
    }
}

/// `VALUE FILE-LESS-LINE` of a setting.
fn shown(loaded: &Loaded, key: &str) -> Option<(String, usize)> {
    let setting = loaded.settings.iter().find(|s| s.key == key)?;
    let line = match &setting.origin {
        Origin::Line { line, .. } => *line,
        _ => 0,
    };
    Some((setting.value.to_string(), line))
}

const SITE: &str = r#"defaults {
    polling_interval 10
    no_path_retry 100
    path_selector "queue-length 0"
    failback manual
    failback 7
}
devices {
    device {
        vendor "^IET$"
        product "VIRTUAL.*"
        no_path_retry 5
        path_selector "round-robin 0"
        failback immediate
    }
    device {
        vendor "IET"
        product ".*"
        failback followover
    }
}
overrides {
    path_selector "service-time 0"
    protocol {
        type "scsi:iscsi"
        fast_io_fail_tmo 7
    }
}
multipaths {
    multipath {
        wwid 36001
        alias red
        path_selector "tail-latency 0"
    }
}
"#;

#[test]
fn precedence_of_multipath_conf() {
    let loaded = with_conf("precedence.conf", SITE, "polling_interval = 3\n");
    let (a, b) = (unit(&loaded, "a"), unit(&loaded, "b"));
    // What is known from the file: multipaths > overrides > defaults, and the main file above all.
    assert_eq!(a.multipath.polling_interval, Duration::from_secs(3));
    assert_eq!(a.multipath.path_selector, Selector::TailLatency);
    assert_eq!(b.multipath.path_selector, Selector::ServiceTime);
    assert_eq!(b.multipath.no_path_retry, NoPathRetry::Times(100));
    // The later of two equal lines counts.
    assert_eq!(
        b.multipath.failback,
        Failback::After(Duration::from_secs(7))
    );
    // And what is known once the unit answers: a later device section wins over an earlier one.
    let fitted = b.rules.fit(&facts("36002", "IET", "VIRTUAL-DISK")).unwrap();
    assert_eq!(fitted.multipath.path_selector, Selector::ServiceTime);
    assert_eq!(fitted.multipath.no_path_retry, NoPathRetry::Times(5));
    assert_eq!(fitted.multipath.failback, Failback::Followover);
    assert_eq!(fitted.alias, None);
    let changed: Vec<String> = fitted
        .changed
        .iter()
        .map(|s| {
            format!(
                "{} {} {}",
                s.key,
                s.value,
                s.origin.to_string().contains(".conf:")
            )
        })
        .collect();
    assert_eq!(
        changed,
        [
            "device.b.failback \"followover\" true",
            "device.b.no_path_retry 5 true"
        ]
    );
    let other = b.rules.fit(&facts("36001", "LIO", "VIRTUAL-DISK")).unwrap();
    assert_eq!(other.multipath.path_selector, Selector::TailLatency);
    assert_eq!(other.multipath.no_path_retry, NoPathRetry::Times(100));
    assert_eq!(other.alias.as_deref(), Some("red"));
}

#[test]
fn check_shows_where_every_line_of_multipath_conf_went() {
    let loaded = with_conf("origins.conf", SITE, "");
    for (key, value, line) in [
        ("multipath.polling_interval", "\"10s\"", 2),
        ("multipath.path_selector", "\"service-time 0\"", 23),
        ("multipath.failback", "\"7s\"", 6),
        ("multipath.devices.1.vendor", "\"^IET$\"", 10),
        ("multipath.devices.1.no_path_retry", "5", 12),
        ("multipath.devices.2.failback", "\"followover\"", 19),
        ("multipath.multipaths.1.wwid", "\"36001\"", 31),
        ("device.a.alias", "\"red\"", 32),
        ("device.a.path_selector", "\"tail-latency 0\"", 33),
        ("device.b.no_path_retry", "100", 3),
    ] {
        assert_eq!(shown(&loaded, key), Some((value.to_owned(), line)), "{key}");
    }
    assert_eq!(shown(&loaded, "device.b.path_selector"), None);
    let idle = loaded.warnings.iter().map(ToString::to_string);
    let idle: Vec<String> = idle.filter(|w| w.contains("fast_io_fail_tmo")).collect();
    assert_eq!(idle.len(), 1, "{idle:?}");
    assert!(
        idle[0].contains("origins.conf:26: fast_io_fail_tmo has no effect here"),
        "{idle:?}"
    );
}

#[test]
fn what_multipath_conf_says_in_vain() {
    let conf = "defaults {\n features \"1 queue_if_no_path\"\n no_path_retry 100\n polling_intervl 5\n \
                prio emc\n path_checker rdac\n reservation_key 0xabc\n getuid_callout x\n}\n\
                multipaths {\n multipath {\n  alias lost\n }\n multipath {\n  wwid 36001\n  polling_interval 5\n }\n}\n\
                blacklist {\n devnode \"^sd\"\n wwdi x\n}\n";
    let loaded = with_conf("vain.conf", conf, "");
    assert!(loaded.errors.is_empty(), "{:?}", loaded.errors);
    let got: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    for want in [
        "vain.conf:2: features \"1 queue_if_no_path\" is deprecated and loses to no_path_retry 100 (",
        "vain.conf:4: unknown option \"polling_intervl\" is ignored; did you mean \"polling_interval\"?",
        "vain.conf:5: prio emc acts as const",
        "vain.conf:6: path_checker rdac acts as tur: tur, directio, readsector0, nop, none are known here",
        "vain.conf:7: reservation_key has no effect with fence \"auto\"",
        "vain.conf:8: getuid_callout is deprecated and has no effect",
        "vain.conf:11: a multipath section without a wwid applies to nothing",
        "vain.conf:16: polling_interval has no effect within multipath:",
        "vain.conf:20: devnode in blacklist has no effect here",
        "vain.conf:21: unknown option \"wwdi\" in blacklist is ignored; did you mean \"wwid\"?",
    ] {
        let found = got.iter().filter(|w| w.contains(want)).count();
        assert_eq!(found, 1, "wanted {want}\ngot {got:#?}");
    }
}

/// `reservation_key file` is valid there (mpathpersist's store) and means nothing here.
#[test]
fn the_key_store_of_multipathd_is_not_asked() {
    let conf = "defaults {\n reservation_key file\n}\n";
    let loaded = with_conf("store.conf", conf, "");
    assert!(loaded.errors.is_empty(), "{:?}", loaded.errors);
    let got: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    let want = "store.conf:2: reservation_key file acts as unset";
    assert!(got.iter().any(|w| w.contains(want)), "{got:?}");
}

/// Each option where multipath.conf(5) lists it, and nowhere else.
#[test]
fn options_in_sections_that_do_not_take_them() {
    let conf = "devices {\n device {\n  vendor x\n  checker_timeout 5\n  marginal_pathgroups on\n  \
                hardware_handler 0\n  path_checker tur\n }\n}\n\
                multipaths {\n multipath {\n  wwid 36001\n  path_checker tur\n  fast_io_fail_tmo 5\n  \
                prio const\n }\n}\n\
                overrides {\n hardware_handler 0\n verbosity 3\n path_checker tur\n}\n";
    let loaded = with_conf("scopes.conf", conf, "");
    assert!(loaded.errors.is_empty(), "{:?}", loaded.errors);
    let got = loaded.warnings.iter().map(ToString::to_string);
    let got: Vec<String> = got.filter(|w| w.contains("does not take it")).collect();
    let want = [
        "scopes.conf:4: checker_timeout has no effect within device:",
        "scopes.conf:5: marginal_pathgroups has no effect within device:",
        "scopes.conf:13: path_checker has no effect within multipath:",
        "scopes.conf:14: fast_io_fail_tmo has no effect within multipath:",
        "scopes.conf:19: hardware_handler has no effect within overrides:",
        "scopes.conf:20: verbosity has no effect within overrides:",
    ];
    assert_eq!(got.len(), want.len(), "{got:#?}");
    for (got, want) in got.iter().zip(want) {
        assert!(got.contains(want), "wanted {want}\ngot {got}");
    }
}

/// What only a unit that fits will meet is judged when the file is read.
#[test]
fn sections_that_wait_for_a_unit_are_judged_at_once() {
    let device = |lines: &str| format!("devices {{\n device {{\n  vendor x\n{lines} }}\n}}\n");
    for (lines, want) in [
        (
            "  prio weightedpath\n  prio_args \"serial ( 1\"\n",
            "waits.conf:5: prio_args: weightedpath: \"(\"",
        ),
        (
            "  path_selector \"round-robin x\"\n",
            "waits.conf:4: path_selector:",
        ),
        (
            "  san_path_err_threshold 3\n",
            "waits.conf:4: san_path_err_threshold works only",
        ),
    ] {
        let got = with_conf("waits.conf", &device(lines), "").errors;
        let got: Vec<String> = got.iter().map(ToString::to_string).collect();
        assert!(
            got.len() == 1 && got[0].contains(want),
            "wanted {want}\ngot {got:#?}"
        );
    }
    let named = "multipaths {\n multipath {\n  wwid 36009\n  prio path_latency\n  prio_args io_num=5\n }\n}\n";
    let got = with_conf("waits.conf", named, "").errors;
    assert!(
        got.len() == 1 && got[0].to_string().contains("waits.conf:5: prio_args"),
        "{got:?}"
    );
    // What stands above or beneath it counts too.
    let whole = device("  prio weightedpath\n");
    let fits = with_conf("waits.conf", &whole, "prio_args = \"devname . 1\"\n");
    assert!(fits.errors.is_empty(), "{:?}", fits.errors);
    // And what acts otherwise than it says.
    let loaded = with_conf(
        "waits.conf",
        &device("  prio emc\n  path_checker rdac\n"),
        "",
    );
    let got: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    for want in [
        "waits.conf:4: prio emc acts as const",
        "waits.conf:5: path_checker rdac acts as tur",
    ] {
        assert_eq!(
            got.iter().filter(|w| w.contains(want)).count(),
            1,
            "{got:#?}"
        );
    }
}

#[test]
fn errors_of_multipath_conf_name_its_lines() {
    let conf =
        "defaults {\n no_path_retry sometimes\n}\ndevices {\n device {\n  vendor \"(\"\n }\n}\n\
                multipaths {\n multipath {\n  wwid 36001\n  alias \"a b\"\n }\n}\nblaklist {\n}\n";
    let loaded = with_conf("errors.conf", conf, "");
    let got: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
    for want in [
        "errors.conf:2: multipath.no_path_retry: expected",
        "errors.conf:6: vendor \"(\": a ( is not closed",
        "errors.conf:12: alias: \"a b\" is no name",
        "errors.conf:15: unknown section \"blaklist\"; did you mean \"blacklist\"?",
    ] {
        assert!(
            got.iter().any(|e| e.contains(want)),
            "wanted {want}\ngot {got:#?}"
        );
    }
}

#[test]
fn blacklists_and_their_exceptions() {
    let conf = "blacklist {\n wwid .*\n device {\n  vendor \"^IBM\"\n  product \"S/390\"\n }\n}\n\
                blacklist_exceptions {\n wwid \"^3600[12]\"\n}\n\
                devices {\n device {\n  vendor \"^EMC\"\n  product_blacklist \"LUNZ\"\n }\n}\n";
    let loaded = with_conf("blacklist.conf", conf, "");
    let b = &unit(&loaded, "b").rules;
    assert!(b.fit(&facts("36001", "IET", "VIRTUAL-DISK")).is_ok());
    for (wwid, vendor, product, line) in [
        ("36003", "IET", "VIRTUAL-DISK", 2),
        ("36001", "IBM", "S/390 DASD", 3),
        ("36001", "EMC", "LUNZ", 14),
    ] {
        let why = b.fit(&facts(wwid, vendor, product)).unwrap_err();
        assert!(why.contains(&format!("blacklist.conf:{line}")), "{why}");
    }
    assert!(b.fit(&facts("36001", "IBM", "2145")).is_ok());
    // What is known before a login is said by `check`.
    let listed = with_conf("listed.conf", "blacklist {\n wwid \"!^36002\"\n}\n", "");
    let got: Vec<String> = listed.warnings.iter().map(ToString::to_string).collect();
    let want = "device \"a\" will be refused: blacklisted at ";
    assert!(
        got.iter()
            .any(|w| w.contains(want) && w.contains("listed.conf:2")),
        "{got:#?}"
    );
    let protocol = with_conf("protocol.conf", "blacklist {\n protocol \"^scsi\"\n}\n", "");
    assert!(unit(&protocol, "b").rules.fit(&facts("1", "", "")).is_err());
}

#[test]
fn arguments_of_a_prioritizer_are_judged_by_it() {
    let of = |lines: &str| with_conf("prio.conf", &format!("defaults {{\n{lines}}}\n"), "");
    for (lines, want) in [
        (
            " prio weightedpath\n prio_args \"hbtl 1:.:.:. 2\"\n",
            "prio.conf:3: prio_args: weightedpath: a portal has no host:bus:target:lun",
        ),
        (
            " prio weightedpath\n",
            "prio.conf:2: prio: weightedpath wants \"devname|serial|wwn REGEX PRIO\"",
        ),
        (
            " prio path_latency\n prio_args io_num=5\n",
            "prio.conf:3: prio_args: path_latency: io_num is 20 to 200, not 5",
        ),
    ] {
        let got = of(lines).errors;
        let got: Vec<String> = got.iter().map(ToString::to_string).collect();
        assert!(
            got.iter().any(|e| e.contains(want)),
            "wanted {want}\ngot {got:#?}"
        );
    }
    for (lines, want) in [
        (" prio alua\n prio_args exclusive_pref_bit\n", 0),
        (" prio const\n prio_args \"io_num=20\"\n", 1),
    ] {
        let loaded = of(lines);
        assert!(loaded.errors.is_empty(), "{:?}", loaded.errors);
        let said = loaded.warnings.iter().map(ToString::to_string);
        let said = said.filter(|w| w.contains("prio.conf:3: prio_args"));
        assert_eq!(said.count(), want, "{lines}");
    }
}
