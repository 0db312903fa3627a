//! What `[multipath]` says reaches the paths.

use chunkserver::assemble::multipath_config;
use chunkserver::config::{DeviceKind, Environment};
use std::time::Duration;

/// What `[multipath]` with these lines becomes.
fn applied(lines: &str) -> mpath::Config {
    let text = format!(
        "[chunkserver]\nmaster_host = \"m\"\n[iscsi]\ninitiator_name = \"iqn.2024-12.example.test:i\"\n\
         [multipath]\n{lines}\n\
         [[device]]\nname = \"sto1\"\nportals = [\"10.3.1.1\"]\n\
         target = \"iqn.2024-12.example.test:t\"\nlun = 1\n\
         [[volume]]\nname = \"vol1\"\nmirror = [\"sto1\"]\n"
    );
    let path = std::path::Path::new("/etc/antler/antler.toml");
    let loaded = chunkserver::config::parse("antler.toml", &text, path, &Environment::here());
    assert!(loaded.errors.is_empty(), "{:?}", loaded.errors);
    let config = loaded.config.expect("it is whole");
    let device = &config.devices[0];
    let DeviceKind::Iscsi(unit) = &device.kind else {
        panic!("it has portals");
    };
    multipath_config(device, unit, false)
}

#[test]
fn defaults_are_those_of_mpath() {
    let usual = mpath::Config::new("sto1", "iqn.2024-12.example.test:i");
    let found = applied("");
    assert_eq!(
        found,
        mpath::Config {
            no_path_retry: found.no_path_retry,
            fitting: found.fitting.clone(),
            ..usual
        }
    );
}

#[test]
fn options_reach_the_paths() {
    let seconds = Duration::from_secs;
    let found = applied(
        "prio = \"weightedpath\"\nprio_args = 'devname ^10\\.3 5'\ndetect_prio = \"no\"\n\
         detect_pgpolicy = \"yes\"\ndetect_pgpolicy_use_tpg = \"yes\"\n\
         path_checker = \"directio\"\ndetect_checker = \"no\"\nchecker_timeout = 7\n\
         san_path_err_threshold = 2\nsan_path_err_forget_rate = 3\n\
         san_path_err_recovery_time = 60\nmarginal_pathgroups = \"on\"\n\
         marginal_path_double_failed_time = 30\nmarginal_path_err_sample_time = 120\n\
         marginal_path_err_rate_threshold = 10\nmarginal_path_err_recheck_gap_time = 300",
    );
    let usual = mpath::Config::new("sto1", "iqn.2024-12.example.test:i");
    let expected = mpath::Config {
        prio: mpath::Prio::parse("weightedpath", r"devname ^10\.3 5").unwrap(),
        detect_prio: false,
        detect_pgpolicy: true,
        detect_pgpolicy_use_tpg: true,
        path_checker: mpath::Probe::Directio,
        detect_checker: false,
        checker_timeout: seconds(7),
        san_path_err: Some(mpath::SanPathErr {
            threshold: 2,
            forget_rate: 3,
            recovery_time: seconds(60),
        }),
        marginal_path: Some(mpath::MarginalPath {
            double_failed_time: seconds(30),
            err_sample_time: seconds(120),
            err_rate_threshold: 10,
            err_recheck_gap_time: seconds(300),
        }),
        marginal_pathgroups: true,
        no_path_retry: found.no_path_retry,
        fitting: found.fitting.clone(),
        ..usual
    };
    assert_eq!(found, expected);
    assert_eq!(
        applied("path_checker = \"nop\"").path_checker,
        mpath::Probe::Nop
    );
    let latency = applied("prio = \"path_latency\"\nprio_args = \"io_num=20 base_num=10\"");
    let expected = mpath::Prio::parse("path_latency", "io_num=20 base_num=10");
    assert_eq!(Ok(latency.prio), expected);
}
