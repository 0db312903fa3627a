//! The typed `[multipath]` of one device.
//!
//! Options that belong together are judged together: the four `marginal_path_*` and the three
//! `san_path_err_*` work only as a set (multipath.conf(5)), `features "1 queue_if_no_path"` is the old way to
//! say `no_path_retry queue` and loses to it.

use std::time::Duration;

use super::origin::Problem;
use super::section::Section;
use super::types::*;
use super::value::{clip, show_span, Value};

/// `no_path_retry` of a single leg; a mirror's leg fails at once.
const SINGLE_LEG_RETRIES: u32 = 12;

/// Other vendors' checkers act as `tur`.
const OWN_CHECKERS: [&str; 5] = ["tur", "directio", "readsector0", "nop", "none"];

/// Builds it from a section that has every key, and resolves its "auto". `single`: the device is the only
/// leg of its volume.
pub(crate) fn multipath(
    s: &mut Section,
    single: bool,
    errors: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Multipath {
    let polling_interval = s.always_span("polling_interval");
    let max_polling_interval = match s.span("max_polling_interval") {
        Some(max) if max < polling_interval => {
            let text = format!(
                "max_polling_interval: {} is less than polling_interval {}",
                show_span(max),
                show_span(polling_interval)
            );
            errors.push(s.problem("max_polling_interval", text));
            polling_interval
        }
        Some(max) => max,
        None => polling_interval.saturating_mul(4),
    };
    s.resolve("max_polling_interval", Value::Span(max_polling_interval));
    let s = &*s;
    in_vain(s, warnings);
    Multipath {
        user_friendly_names: s.flag("user_friendly_names"),
        alias_prefix: s.text("alias_prefix").to_owned(),
        bindings_file: s.some_text("bindings_file"),
        polling_interval,
        max_polling_interval,
        path_selector: selector(s, errors),
        path_grouping_policy: match s.text("path_grouping_policy") {
            "multibus" => GroupingPolicy::Multibus,
            "group_by_serial" => GroupingPolicy::GroupBySerial,
            "group_by_prio" => GroupingPolicy::GroupByPrio,
            "group_by_node_name" => GroupingPolicy::GroupByNodeName,
            "group_by_tpg" => GroupingPolicy::GroupByTpg,
            _ => GroupingPolicy::Failover,
        },
        detect_pgpolicy: s.flag("detect_pgpolicy"),
        detect_pgpolicy_use_tpg: s.flag("detect_pgpolicy_use_tpg"),
        prio: prio(s, errors),
        exclusive_pref_bit: has_exclusive_pref_bit(s),
        detect_prio: s.flag("detect_prio"),
        detect_checker: s.flag("detect_checker"),
        path_checker: match s.text("path_checker") {
            "directio" | "readsector0" => Checker::Directio,
            "nop" => Checker::Nop,
            "none" => Checker::None,
            _ => Checker::Tur,
        },
        checker_timeout: s.always_span("checker_timeout"),
        failback: match (s.span("failback"), s.get("failback")) {
            (Some(after), _) => Failback::After(after),
            (None, Some(Value::Text(w))) if w == "manual" => Failback::Manual,
            (None, Some(Value::Text(w))) if w == "followover" => Failback::Followover,
            _ => Failback::Immediate,
        },
        no_path_retry: no_path_retry(s, single),
        reservation_key: reservation_key(s, errors),
        san_path_err: san_path_err(s, errors),
        marginal_path: marginal_path(s, errors),
        marginal_pathgroups: matches!(s.text("marginal_pathgroups"), "on" | "yes"),
        recheck_wwid: s.flag("recheck_wwid"),
        fence: match s.text("fence") {
            "reinstate" => Fence::Reinstate,
            "pr" => Fence::Pr,
            "none" => Fence::None,
            _ => Fence::Auto,
        },
        fence_timeout: s.always_span("fence_timeout"),
        fence_fail: match s.text("fence_fail") {
            "wait" => FenceFail::Wait,
            _ => FenceFail::FailLeg,
        },
        fence_assume: s.always_span("fence_assume"),
    }
}

/// Names what is set and, with these values, does nothing or not what it says.
fn in_vain(s: &Section, warnings: &mut Vec<Problem>) {
    let mut warn = |key: &str, text: String| warnings.push(s.problem(key, text));
    let features = s.text("features");
    if features.contains("queue_if_no_path") {
        let text = match s.get("no_path_retry") {
            Some(retry) if s.is_set("no_path_retry") => format!(
                "features {features:?} is deprecated and loses to no_path_retry {retry} ({}): remove it",
                s.origin("no_path_retry")
            ),
            _ => format!("features {features:?} is deprecated: write no_path_retry queue"),
        };
        warn("features", text);
    } else if s.is_set("features") && features != "0" {
        let text = format!("features {features:?} has no effect here: there is no kernel map");
        warn("features", text);
    }
    if s.is_set("recheck_wwid") && !s.flag("recheck_wwid") {
        let text = "recheck_wwid no has no effect here: the WWID is read at every login";
        warn("recheck_wwid", text.to_owned());
    }
    if s.text("path_selector").starts_with("io-affinity") {
        let text = "path_selector io-affinity acts as service-time: one CPU serves all paths";
        warn("path_selector", text.to_owned());
    }
    let prio = s.text("prio");
    let is_alua = ["alua", "sysfs"].contains(&prio);
    if s.is_set("prio") && prio != "const" && !is_alua && !takes_args(prio) {
        let text = format!(
            "prio {prio} acts as const: const, alua, sysfs, weightedpath and path_latency are known here"
        );
        warn("prio", text);
    }
    // Where ALUA is detected it counts, whatever the prioritizer.
    if !s.text("prio_args").is_empty() && !takes_args(prio) && !has_exclusive_pref_bit(s) {
        let text = format!(
            "prio_args {:?} has no effect with prio {prio}",
            clip(s.text("prio_args"))
        );
        warn("prio_args", text);
    }
    let checker = s.text("path_checker");
    if s.is_set("path_checker") && !OWN_CHECKERS.contains(&checker) {
        let text = format!(
            "path_checker {checker} acts as tur: {} are known here",
            OWN_CHECKERS.join(", ")
        );
        warn("path_checker", text);
    }
    if s.text("marginal_pathgroups") == "fpin" {
        let text =
            "marginal_pathgroups fpin acts as off: only Fibre Channel sends such notifications";
        warn("marginal_pathgroups", text.to_owned());
    }
    let fence = s.text("fence");
    if s.text("reservation_key").starts_with("file") {
        let text = "reservation_key file acts as unset: each path's key comes from its ISID";
        warn("reservation_key", text.to_owned());
    } else if s.is_set("reservation_key") && fence != "pr" {
        let text =
            format!("reservation_key has no effect with fence {fence:?}: only \"pr\" uses keys");
        warn("reservation_key", text);
    }
}

/// Whether a prioritizer has arguments of its own.
fn takes_args(prio: &str) -> bool {
    ["weightedpath", "path_latency"].contains(&prio)
}

fn has_exclusive_pref_bit(s: &Section) -> bool {
    let mut words = s.text("prio_args").split_whitespace();
    words.any(|word| word == "exclusive_pref_bit")
}

fn prio(s: &Section, errors: &mut Vec<Problem>) -> mpath::Prio {
    match s.text("prio") {
        "alua" | "sysfs" => mpath::Prio::Alua,
        name if takes_args(name) => {
            mpath::Prio::parse(name, s.text("prio_args")).unwrap_or_else(|text| {
                let missing = !s.is_set("prio_args");
                let key = if missing { "prio" } else { "prio_args" };
                errors.push(s.problem(key, format!("{key}: {text}")));
                mpath::Prio::Const
            })
        }
        _ => mpath::Prio::Const,
    }
}

fn no_path_retry(s: &Section, single: bool) -> NoPathRetry {
    let auto = if single {
        NoPathRetry::Times(SINGLE_LEG_RETRIES)
    } else {
        NoPathRetry::Fail
    };
    match s.get("no_path_retry") {
        Some(Value::Int(0)) => NoPathRetry::Fail,
        Some(Value::Int(n)) => u32::try_from(*n).map_or(NoPathRetry::Queue, NoPathRetry::Times),
        Some(Value::Text(w)) if w == "queue" => NoPathRetry::Queue,
        Some(Value::Text(w)) if w == "fail" => NoPathRetry::Fail,
        _ if s.text("features").contains("queue_if_no_path") => NoPathRetry::Queue,
        _ => auto,
    }
}

fn selector(s: &Section, errors: &mut Vec<Problem>) -> Selector {
    let mut words = s.text("path_selector").split_whitespace();
    let name = words.next().unwrap_or_default();
    // "NAME COUNT ARG…", as in a dm table.
    let args: Vec<&str> = words.collect();
    let counted = match args.first().map(|n| n.parse::<usize>()) {
        None => true,
        Some(Ok(n)) => n == args.len() - 1,
        Some(Err(_)) => false,
    };
    let mut refuse = |text: String| errors.push(s.problem("path_selector", text));
    if !counted {
        refuse(format!(
            "path_selector: {name} wants the number of its arguments and then the arguments"
        ));
        return Selector::ServiceTime;
    }
    let values = args.get(1..).unwrap_or_default();
    match name {
        "round-robin" => Selector::RoundRobin,
        "queue-length" => Selector::QueueLength,
        "io-affinity" => Selector::IoAffinity,
        "tail-latency" => Selector::TailLatency,
        "historical-service-time" => {
            // dm-historical-service-time: base_weight 0..1024, threshold_multiplier ≤ 1024.
            let mut arg = |i: usize, default: u32| match values.get(i).map(|v| v.parse::<u32>()) {
                None => default,
                Some(Ok(n)) if n <= 1024 => n,
                Some(_) => {
                    refuse(format!(
                        "path_selector: argument {} of {name} is 0 to 1024",
                        i + 1
                    ));
                    default
                }
            };
            Selector::HistoricalServiceTime {
                base_weight: arg(0, mpath::SelectorKind::BASE_WEIGHT),
                threshold_multiplier: arg(1, 0),
            }
        }
        _ => Selector::ServiceTime,
    }
}

fn reservation_key(s: &Section, errors: &mut Vec<Problem>) -> Option<u64> {
    let text = s.text("reservation_key");
    // The suffix asks for persistence through power loss, which a fence has no use for.
    let digits = text.strip_suffix(":aptpl").unwrap_or(text);
    match digits {
        // The key store of multipathd: `in_vain` says that there is none here.
        "" | "unset" | "file" => return None,
        hex => match u64::from_str_radix(hex.strip_prefix("0x").unwrap_or(hex), 16) {
            Ok(key) if key != 0 => return Some(key),
            _ => {}
        },
    }
    let text = "reservation_key: expected up to 16 hex digits, not all 0".to_owned();
    errors.push(s.problem("reservation_key", text));
    None
}

fn san_path_err(s: &Section, errors: &mut Vec<Problem>) -> Option<SanPathErr> {
    let threshold = s.some_num("san_path_err_threshold");
    let forget_rate = s.some_num("san_path_err_forget_rate");
    let recovery_time = s.span("san_path_err_recovery_time");
    match (threshold, forget_rate, recovery_time) {
        (Some(threshold), Some(forget_rate), Some(recovery_time)) => Some(SanPathErr {
            threshold,
            forget_rate,
            recovery_time,
        }),
        (None, None, None) => None,
        _ => {
            let key = [
                "san_path_err_threshold",
                "san_path_err_forget_rate",
                "san_path_err_recovery_time",
            ]
            .into_iter()
            .find(|k| s.is_set(k))
            .unwrap_or("san_path_err_threshold");
            let text = format!("{key} works only with san_path_err_threshold, _forget_rate and _recovery_time all set");
            errors.push(s.problem(key, text));
            None
        }
    }
}

fn marginal_path(s: &Section, errors: &mut Vec<Problem>) -> Option<MarginalPath> {
    let double: Option<Duration> = s.span("marginal_path_double_failed_time");
    let sample = s.span("marginal_path_err_sample_time");
    let rate = s.some_num("marginal_path_err_rate_threshold");
    let gap = s.span("marginal_path_err_recheck_gap_time");
    match (double, sample, rate, gap) {
        (
            Some(double_failed_time),
            Some(err_sample_time),
            Some(err_rate_threshold),
            Some(err_recheck_gap_time),
        ) => Some(MarginalPath {
            double_failed_time,
            err_sample_time,
            err_rate_threshold,
            err_recheck_gap_time,
        }),
        (None, None, None, None) => None,
        _ => {
            let key = [
                "marginal_path_double_failed_time",
                "marginal_path_err_sample_time",
                "marginal_path_err_rate_threshold",
                "marginal_path_err_recheck_gap_time",
            ]
            .into_iter()
            .find(|k| s.is_set(k))
            .unwrap_or("marginal_path_double_failed_time");
            let text = format!(
                "{key} works only with marginal_path_double_failed_time, _err_sample_time, _err_rate_threshold and \
                 _err_recheck_gap_time all set"
            );
            errors.push(s.problem(key, text));
            None
        }
    }
}
