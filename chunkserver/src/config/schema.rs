//! Every key of the configuration file: its section, what it may hold, its default, and whether it does
//! anything here.
//!
//! The one place where a key is declared. Names, values and meaning are those of mfschunkserver.cfg(5)
//! (3.0.117 and 4.59) and multipath.conf(5) (0.14), in lower case; the defaults are theirs except where a
//! comment gives the reason. An option that means nothing to a chunkserver without threads, a kernel device
//! mapper or a syslog is accepted, so that a file can be carried over, and named by `antler check`.

use super::value::Kind;

/// What setting the key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Takes effect at once on SIGHUP.
    Live,
    /// Takes effect at the next start.
    Start,
    /// Accepted, does nothing; why.
    Nothing(&'static str),
    /// Accepted for old files, does nothing; what to use.
    Deprecated(&'static str),
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its name in its section.
    pub(crate) name: &'static str,
    /// What it may hold.
    pub(crate) kind: Kind,
    /// The default, as an unquoted word. `@…` is computed when the file is read.
    pub(crate) default: &'static str,
    /// What it does.
    pub(crate) effect: Effect,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, effect: Effect) -> Key {
    Key {
        name,
        kind,
        default,
        effect,
    }
}

/// A key that multipath.conf or mfschunkserver.cfg has and that means nothing here.
const fn noop(name: &'static str, default: &'static str, why: &'static str) -> Key {
    // Whatever such an option holds is accepted: refusing a value nobody uses would help nobody.
    Key {
        name,
        kind: Kind::Any,
        default,
        effect: Nothing(why),
    }
}

const fn old(name: &'static str, instead: &'static str) -> Key {
    Key {
        name,
        kind: Kind::Any,
        default: "",
        effect: Deprecated(instead),
    }
}

use Effect::{Deprecated, Live, Nothing, Start};
use Kind::{Flag, Int, Many, Seconds, Size, Span, Syntax, Text, Word, WordOr, YesNo, ZeroOne};

const DAY_MS: u64 = 86_400_000;
const YEAR_MS: u64 = 365 * DAY_MS;
/// Below this, one full chunk's maps and a few requests do not fit (DESIGN: pool and windows).
const CACHE_BYTES_MIN: u64 = 1 << 20;
/// Pool, unflushed windows and queues need this beside any cache.
const MEMORY_BYTES_MIN: u64 = 64 << 20;

const THREADS: &str = "there are no worker threads: requests are served on one event loop a shard";
const NO_SYSLOG: &str = "events go to standard error; ANTLER_LOG filters them";
const NO_HDD: &str = "volumes take the place of mfshdd.cfg";
const NO_TEST: &str =
    "nothing is tested unasked: `antler scrub VOLUME start` reads a volume on every leg and heals";
const NO_MAP: &str = "there is no kernel map";

/// `[chunkserver]`
pub(crate) static CHUNKSERVER: &[Key] = &[
    key("mfs_config", Text, "", Start),
    key(
        "master_host",
        Many(&Syntax(syntax::host)),
        "mfsmaster",
        Live,
    ),
    key("master_port", Int(1, 65535), "9420", Live),
    // 0: as the master says.
    key("master_timeout", Int(0, 65535), "0", Live),
    key(
        "csserv_listen_host",
        Syntax(syntax::listen_host),
        "*",
        Start,
    ),
    key("csserv_listen_port", Int(1, 65535), "9422", Start),
    key("bind_host", Syntax(syntax::listen_host), "*", Live),
    key("data_path", Text, "/var/lib/antler", Start),
    key("labels", Syntax(syntax::labels), "", Live),
    key("auth_code", Kind::Secret("auth_code_file"), "", Live),
    key("auth_code_file", Text, "/etc/antler/auth", Live),
    key(
        "durability",
        Word(&["flush", "fua", "cache"]),
        "flush",
        Start,
    ),
    key(
        "cache_size",
        WordOr(&["auto"], &Size(CACHE_BYTES_MIN)),
        "auto",
        Start,
    ),
    key(
        "memory_limit",
        WordOr(&["auto"], &Size(MEMORY_BYTES_MIN)),
        "auto",
        Start,
    ),
    key("workers", WordOr(&["auto"], &Int(1, 64)), "auto", Start),
    noop(
        "chunks_per_register_packet",
        "10000",
        "registration is paced by what the connection takes",
    ),
    noop("hdd_test_speed", "1.0", NO_TEST),
    noop("hdd_min_test_interval", "86400", NO_TEST),
    noop(
        "hdd_leave_space_default",
        "256MiB",
        "a volume is all Antler's, and keeps what it needs itself",
    ),
    key("nice_level", Int(-20, 19), "-19", Start),
    key("lock_memory", ZeroOne, "0", Start),
    key("disable_oom_killer", ZeroOne, "1", Start),
    key("file_umask", Syntax(syntax::umask), "027", Start),
    noop(
        "working_user",
        "mfs",
        "the service manager chooses the user (User= of the unit)",
    ),
    noop(
        "working_group",
        "",
        "the service manager chooses the group (Group= of the unit)",
    ),
    noop("syslog_ident", "mfschunkserver", NO_SYSLOG),
    noop("syslog_min_level", "INFO", NO_SYSLOG),
    noop("syslog_elevate_to", "NOTICE", NO_SYSLOG),
    noop(
        "limit_glibc_malloc_arenas",
        "4",
        "one thread a shard allocates",
    ),
    noop(
        "allow_starting_with_invalid_disks",
        "0",
        "one bad volume never stops the others",
    ),
    noop("can_use_mmap", "0", "chunks are not mapped"),
    noop("hdd_conf_filename", "", NO_HDD),
    noop(
        "hdd_fadvise_min_time",
        "86400",
        "the page cache is bypassed",
    ),
    noop(
        "hdd_rebalance_utilization",
        "20",
        "space is not moved between volumes",
    ),
    noop(
        "hdd_high_speed_rebalance_limit",
        "0",
        "space is not moved between volumes",
    ),
    noop(
        "hdd_error_tolerance_count",
        "2",
        "an error is healed from the other leg, block by block",
    ),
    noop(
        "hdd_error_tolerance_period",
        "600",
        "an error is healed from the other leg, block by block",
    ),
    noop(
        "hdd_fsync_before_close",
        "0",
        "durability says when data is flushed",
    ),
    noop(
        "hdd_sparsify_on_write",
        "1",
        "zeros around a block's content are never stored",
    ),
    noop(
        "hdd_rr_chunk_count",
        "10000",
        "new chunks go where space is",
    ),
    noop(
        "hdd_keep_duplicates_hours",
        "168",
        "a chunk exists once; deleted ones go to the quarantine",
    ),
    noop("workers_max", "250", THREADS),
    noop("workers_max_idle", "40", THREADS),
    noop("workers_hload_himark", "", THREADS),
    noop("workers_hload_lomark", "", THREADS),
    noop(
        "master_reconnection_delay",
        "5",
        "reconnection starts at once and backs off by itself",
    ),
    noop(
        "master_control_port",
        "9419",
        "chunkservers use master_port alone",
    ),
    old("hdd_test_freq", "`antler scrub VOLUME start`"),
    old("csserv_timeout", "nothing: idle connections are kept"),
    old(
        "replication_timeout",
        "nothing: replication has its own deadlines",
    ),
];

/// `[admin]`
pub(crate) static ADMIN: &[Key] = &[
    key("socket", Text, "/run/antler/admin.sock", Start),
    key("http", Syntax(syntax::http), "127.0.0.1:9424", Start),
];

const DIGESTS: &[&str] = &["none", "crc32c", "prefer-crc32c", "prefer-none"];

/// `[iscsi]`; each may be repeated in a `[[device]]`.
pub(crate) static ISCSI: &[Key] = &[
    key(
        "initiator_name",
        Syntax(syntax::iscsi_name),
        "@initiator_name",
        Start,
    ),
    key("header_digest", Word(DIGESTS), "none", Start),
    key("data_digest", Word(DIGESTS), "none", Start),
    key("chap_user", Text, "", Live),
    key("chap_secret", Kind::Secret("chap_secret_file"), "", Live),
    key("chap_secret_file", Text, "", Live),
    key("target_chap_user", Text, "", Live),
    key(
        "target_chap_secret",
        Kind::Secret("target_chap_secret_file"),
        "",
        Live,
    ),
    key("target_chap_secret_file", Text, "", Live),
    key(
        "chap_algorithms",
        Many(&Word(&["sha3-256", "sha256", "sha1", "md5"])),
        "@chap_algorithms",
        Start,
    ),
    key("login_timeout", Span(100, 600_000), "5s", Live),
];

/// Of multipath.conf(5), so that a file with sections for other hardware can be read.
const PRIORITIZERS: &[&str] = &[
    "const",
    "alua",
    "sysfs",
    "path_latency",
    "weightedpath",
    "random",
    "emc",
    "ontap",
    "rdac",
    "hp_sw",
    "hds",
    "ana",
    "datacore",
    "iet",
];
const CHECKERS: &[&str] = &[
    "tur",
    "directio",
    "readsector0",
    "nop",
    "none",
    "emc_clariion",
    "hp_sw",
    "rdac",
    "cciss_tur",
];

/// multipath.conf: "no" or seconds.
const SECONDS_OR_NO: Kind = WordOr(&["no"], &Seconds(1_000, YEAR_MS));
const COUNT_OR_NO: Kind = WordOr(&["no"], &Int(1, 1_000_000));

/// `[multipath]`; each may be repeated in a `[[device]]`.
pub(crate) static MULTIPATH: &[Key] = &[
    key("multipath_conf", Text, "", Start),
    key("polling_interval", Seconds(100, 3_600_000), "5s", Live),
    // multipath.conf(5): four times polling_interval.
    key(
        "max_polling_interval",
        WordOr(&["auto"], &Seconds(100, DAY_MS)),
        "auto",
        Live,
    ),
    key(
        "path_selector",
        Syntax(syntax::selector),
        "service-time 0",
        Live,
    ),
    key(
        "path_grouping_policy",
        Word(&[
            "failover",
            "multibus",
            "group_by_serial",
            "group_by_prio",
            "group_by_node_name",
            "group_by_tpg",
        ]),
        "failover",
        Live,
    ),
    // What the file says about grouping is what happens; multipath.conf's yes would override it.
    key("detect_pgpolicy", YesNo, "no", Live),
    key("detect_pgpolicy_use_tpg", YesNo, "no", Live),
    key("prio", Word(PRIORITIZERS), "const", Live),
    key("prio_args", Text, "", Live),
    key("detect_prio", YesNo, "yes", Live),
    key("detect_checker", YesNo, "yes", Live),
    key("path_checker", Word(CHECKERS), "tur", Live),
    // The SCSI device timeout.
    key("checker_timeout", Seconds(100, DAY_MS), "30s", Live),
    // A path that is back has been proven by real I/O; there is no reason to stay away from it.
    key(
        "failback",
        WordOr(
            &["manual", "immediate", "followover"],
            &Seconds(1_000, DAY_MS),
        ),
        "immediate",
        Live,
    ),
    // 12 on a single leg; a mirror's leg fails at once, for the other one serves.
    key(
        "no_path_retry",
        WordOr(&["fail", "queue", "auto"], &Int(0, 1_000_000)),
        "auto",
        Live,
    ),
    key("features", Text, "0", Live),
    key(
        "fast_io_fail_tmo",
        WordOr(&["off"], &Seconds(1_000, DAY_MS)),
        "5s",
        Nothing("commands of a lost session move to another path at once"),
    ),
    key(
        "rr_min_io_rq",
        Int(1, 1_000_000),
        "1",
        Nothing("a path is chosen for each request"),
    ),
    key("reservation_key", Text, "unset", Start),
    key("san_path_err_threshold", COUNT_OR_NO, "no", Live),
    key("san_path_err_forget_rate", COUNT_OR_NO, "no", Live),
    key("san_path_err_recovery_time", SECONDS_OR_NO, "no", Live),
    key(
        "marginal_path_double_failed_time",
        SECONDS_OR_NO,
        "no",
        Live,
    ),
    key(
        "marginal_path_err_sample_time",
        WordOr(&["no"], &Seconds(120_000, DAY_MS)),
        "no",
        Live,
    ),
    key(
        "marginal_path_err_rate_threshold",
        WordOr(&["no"], &Int(0, 1000)),
        "no",
        Live,
    ),
    key(
        "marginal_path_err_recheck_gap_time",
        SECONDS_OR_NO,
        "no",
        Live,
    ),
    key(
        "marginal_pathgroups",
        Word(&["off", "no", "on", "yes", "fpin"]),
        "off",
        Live,
    ),
    // A path that answers for another unit would write to it.
    key("recheck_wwid", YesNo, "yes", Live),
    key("user_friendly_names", YesNo, "no", Live),
    key("alias_prefix", Syntax(syntax::name), "mpath", Live),
    // Empty: in data_path.
    key("bindings_file", Text, "", Live),
    key(
        "fence",
        Word(&["auto", "reinstate", "pr", "none"]),
        "auto",
        Live,
    ),
    key("fence_timeout", Span(10, 60_000), "500ms", Live),
    key("fence_fail", Word(&["fail-leg", "wait"]), "fail-leg", Live),
    key("fence_assume", Span(1_000, DAY_MS), "60s", Live),
    noop("rr_weight", "uniform", "selectors weigh by bytes in flight"),
    noop("rr_min_io", "1000", "a path is chosen for each request"),
    noop("dev_loss_tmo", "", "ignored for iSCSI, as multipathd does"),
    noop("eh_deadline", "", "deadlines are per command"),
    noop("max_retries", "", "a command is retried on another path"),
    noop(
        "queue_without_daemon",
        "no",
        "paths and daemon are one process",
    ),
    noop("flush_on_last_del", "unused", NO_MAP),
    noop(
        "find_multipaths",
        "strict",
        "devices are listed in [[device]]",
    ),
    noop(
        "find_multipaths_timeout",
        "-10",
        "devices are listed in [[device]]",
    ),
    noop("all_tg_pt", "no", "each path registers its own key"),
    noop("ghost_delay", "no", NO_MAP),
    noop("deferred_remove", "no", NO_MAP),
    noop("max_fds", "max", "the limit is raised at start"),
    noop(
        "log_checker_err",
        "always",
        "each change of state is one line",
    ),
    noop("verbosity", "2", "ANTLER_LOG filters the log"),
    noop("reassign_maps", "no", NO_MAP),
    noop("force_sync", "no", "checkers never block"),
    noop("retrigger_tries", "3", NO_MAP),
    noop("retrigger_delay", "10", NO_MAP),
    noop("missing_uev_wait_timeout", "30", NO_MAP),
    noop("auto_resize", "never", "antler volume grow"),
    noop("purge_disconnected", "no", "paths are listed in [[device]]"),
    noop("skip_kpartx", "no", "there are no partitions"),
    noop("partition_delimiter", "", "there are no partitions"),
    noop("strict_timing", "no", "checks are on time"),
    noop("hardware_handler", "0", "ALUA is found by itself"),
    noop(
        "uid_attribute",
        "",
        "the WWID is read from the unit (VPD 83h)",
    ),
    noop("uid_attrs", "", "the WWID is read from the unit (VPD 83h)"),
    noop("uev_wait_timeout", "", NO_MAP),
    noop(
        "uxsock_timeout",
        "4000",
        "the admin socket has its own deadline",
    ),
    noop("remove_retries", "0", NO_MAP),
    noop(
        "max_sectors_kb",
        "",
        "transfer sizes come from the unit (VPD B0h)",
    ),
    noop("unpriv_sgio", "no", NO_MAP),
    noop("enable_foreign", "NONE", NO_MAP),
    noop(
        "retain_attached_hw_handler",
        "yes",
        "ALUA is found by itself",
    ),
    old("getuid_callout", "nothing: the WWID is read from the unit"),
    old("pg_timeout", "nothing"),
    old("multipath_dir", "nothing: there are no plug-ins"),
    old("wwids_file", "wwid in [[device]]"),
    old("prkeys_file", "reservation_key"),
    old("config_dir", "one file"),
    old("disable_changed_wwids", "recheck_wwid"),
    old("delay_watch_checks", "marginal_path_double_failed_time"),
    old("delay_wait_checks", "marginal_path_err_recheck_gap_time"),
];

/// `[[device]]`, beside the keys of [`ISCSI`] and [`MULTIPATH`].
pub(crate) static DEVICE: &[Key] = &[
    key("name", Syntax(syntax::name), "", Start),
    key("portals", Many(&Kind::Portal), "", Start),
    key("target", Syntax(syntax::iscsi_name), "", Start),
    key("lun", Int(0, 16383), "0", Start),
    key("wwid", Syntax(syntax::wwid), "", Start),
    key("allow_duplicate_wwid", Flag, "false", Start),
    key("path", Text, "", Start),
    key("size", Size(1 << 20), "", Start),
];

/// `[[volume]]`
pub(crate) static VOLUME: &[Key] = &[
    key("name", Syntax(syntax::name), "", Start),
    key("mirror", Many(&Text), "", Start),
    key("spares", Many(&Text), "", Start),
    key("state", Word(&["active", "removing"]), "active", Live),
];

/// Sections that are tables, by name.
pub(crate) static SECTIONS: &[(&str, &[Key])] = &[
    ("chunkserver", CHUNKSERVER),
    ("admin", ADMIN),
    ("iscsi", ISCSI),
    ("multipath", MULTIPATH),
];

/// Sections that may be repeated.
pub(crate) static LISTS: &[&str] = &["device", "volume"];

/// The key of that name.
pub(crate) fn find(keys: &'static [Key], name: &str) -> Option<&'static Key> {
    keys.iter().find(|k| k.name == name)
}

/// Syntax of single values; each error ends the sentence "VALUE: …".
pub(crate) mod syntax {
    use std::net::{IpAddr, SocketAddr};

    use crate::config::address::HostPort;
    use crate::config::value::clip;

    /// `host`, `host:port`, `[v6]:port`.
    pub(crate) fn host(s: &str) -> Result<(), String> {
        HostPort::parse(s, 1).map(drop)
    }

    /// `*` or an address of this host.
    pub(crate) fn listen_host(s: &str) -> Result<(), String> {
        if s == "*" || s.parse::<IpAddr>().is_ok() {
            return Ok(());
        }
        HostPort::parse_host(s).map(drop)
    }

    /// An address and port to listen on, or nothing.
    pub(crate) fn http(s: &str) -> Result<(), String> {
        if s.is_empty() || s.parse::<SocketAddr>().is_ok() {
            return Ok(());
        }
        Err(format!(
            "{:?} is no address with a port (\"127.0.0.1:9424\"); \"\" turns HTTP off",
            clip(s)
        ))
    }

    /// MooseFS labels: letters, alone or separated by `,`, `;` or blanks.
    pub(crate) fn labels(s: &str) -> Result<(), String> {
        for part in s.split([',', ';', ' ', '\t']).filter(|p| !p.is_empty()) {
            let mut letters = part.chars();
            match (letters.next(), letters.next()) {
                (Some(c), None) if c.is_ascii_alphabetic() => {}
                _ => {
                    return Err(format!(
                        "{:?} is no label: labels are letters from A to Z",
                        clip(part)
                    ))
                }
            }
        }
        Ok(())
    }

    /// RFC 7143 §4.2.7: `iqn.`, `eui.` or `naa.`, at most 223 bytes.
    pub(crate) fn iscsi_name(s: &str) -> Result<(), String> {
        let hex = |t: &str, lengths: &[usize]| {
            lengths.contains(&t.len()) && t.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let good = s.len() <= 223
            && if let Some(rest) = s.strip_prefix("iqn.") {
                rest.len() > 8
                    && rest.bytes().take(4).all(|b| b.is_ascii_digit())
                    && rest.as_bytes().get(4) == Some(&b'-')
                    && s.chars().all(|c| !c.is_whitespace() && !c.is_control())
            } else if let Some(rest) = s.strip_prefix("eui.") {
                hex(rest, &[16])
            } else if let Some(rest) = s.strip_prefix("naa.") {
                hex(rest, &[16, 32])
            } else {
                false
            };
        if good {
            return Ok(());
        }
        Err(format!(
            "{:?} is no iSCSI name (iqn.YYYY-MM.DOMAIN:NAME, eui.… or naa.…)",
            clip(s)
        ))
    }

    /// A name of a device or volume: it appears in messages, metrics, JSON and, as a disk's path, in MooseFS.
    pub(crate) fn name(s: &str) -> Result<(), String> {
        let good = (1..=64).contains(&s.len())
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && !s.starts_with(['.', '-']);
        if good {
            return Ok(());
        }
        Err(format!(
            "{:?} is no name: 1 to 64 of A-Z a-z 0-9 . _ -, not beginning with . or -",
            clip(s)
        ))
    }

    /// A WWID as multipath prints it.
    pub(crate) fn wwid(s: &str) -> Result<(), String> {
        if s.len() <= 255 && s.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(());
        }
        Err(format!(
            "{:?} is no WWID (a type digit and hex digits, such as 36001405…)",
            clip(s)
        ))
    }

    /// Octal.
    pub(crate) fn umask(s: &str) -> Result<(), String> {
        match u32::from_str_radix(s, 8) {
            Ok(m) if m <= 0o777 => Ok(()),
            _ => Err(format!("{:?} is no octal mask from 000 to 777", clip(s))),
        }
    }

    /// `service-time 0`, `round-robin 0`, …; the arguments are the selector's.
    pub(crate) fn selector(s: &str) -> Result<(), String> {
        const KNOWN: [&str; 6] = [
            "round-robin",
            "queue-length",
            "service-time",
            "historical-service-time",
            "io-affinity",
            "tail-latency",
        ];
        match s.split_whitespace().next() {
            Some(first) if KNOWN.contains(&first) => Ok(()),
            _ => Err(format!(
                "{:?} is no path selector; there are {}",
                clip(s),
                KNOWN.join(", ")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::Raw;

    #[test]
    fn defaults_are_values_of_their_kind() {
        for (section, keys) in SECTIONS {
            for k in *keys {
                if k.default.starts_with('@') || matches!(k.kind, Kind::Secret(_)) {
                    continue;
                }
                let read = k.kind.read(&Raw::Word(k.default.to_owned()));
                assert!(read.is_ok(), "{section}.{}: {read:?}", k.name);
            }
        }
    }

    #[test]
    fn a_name_is_declared_once() {
        let device: Vec<&Key> = DEVICE.iter().chain(ISCSI).chain(MULTIPATH).collect();
        for keys in [CHUNKSERVER.iter().collect(), ADMIN.iter().collect(), device] {
            let mut names: Vec<&str> = keys.iter().map(|k: &&Key| k.name).collect();
            names.sort_unstable();
            let before = names.len();
            names.dedup();
            assert_eq!(names.len(), before);
        }
    }

    #[test]
    fn iscsi_names() {
        for good in [
            "iqn.2024-12.tp2.b3:data-chunk1",
            "eui.02004567A425678D",
            "naa.52004567BA64678D",
        ] {
            assert_eq!(syntax::iscsi_name(good), Ok(()));
        }
        for bad in [
            "",
            "iqn.",
            "iqn.24-12.x",
            "iqn.2024-12.a b",
            "eui.12",
            "disk",
        ] {
            assert!(syntax::iscsi_name(bad).is_err(), "{bad}");
        }
    }
}
