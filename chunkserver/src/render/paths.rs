//! `antler paths`: the layout of `multipath -ll`, and traced requests.
//!
//! Three lines of multipath have no meaning here and stand for what comes nearest: H:C:T:L is
//! `device:portal:0:lun` by index in the configuration, the device node is the portal, MAJ:MIN is `-`, and the
//! sysfs name is the device's.

use std::fmt::Write as _;

use super::{clean, micros, Table};
use crate::model::{CheckerState, Device, DeviceKind, Path, PathEvents, Paths};

/// The `multipath -ll` layout.
pub fn tree(paths: &Paths) -> String {
    let mut text = String::new();
    for (index, device) in paths.devices.iter().enumerate() {
        text.push_str(&head(device));
        match device.kind {
            DeviceKind::Iscsi => text.push_str(&groups(index, device)),
            DeviceKind::Local => {
                let _ = writeln!(text, "`- local {}", device.state);
            }
        }
    }
    text
}

fn head(d: &Device) -> String {
    let alias = shown_name(d);
    let wwid = match &d.wwid {
        Some(w) if w != alias => format!(" ({})", clean(w)),
        _ => String::new(),
    };
    let product = match (&d.vendor, &d.product) {
        (None, None) => "-".to_owned(),
        (vendor, product) => clean(&format!(
            "{},{}",
            vendor.as_deref().unwrap_or_default(),
            product.as_deref().unwrap_or_default()
        )),
    };
    format!(
        "{}{wwid} {} {product}\nsize={} features='{}' hwhandler='{}' wp={}\n",
        clean(alias),
        d.name,
        d.size_bytes.map_or_else(|| "undef".to_owned(), size),
        features(d),
        hwhandler(d),
        write_protection(d),
    )
}

/// The alias, or the name in the configuration.
pub(super) fn shown_name(d: &Device) -> &str {
    d.alias.as_deref().unwrap_or(&d.name)
}

/// Whether requests would wait for a path, or do: as multipath shows it, also with all paths up.
pub(super) fn features(d: &Device) -> &'static str {
    match d.queueing.as_deref() {
        None | Some("off" | "-") => "0",
        Some(_) => "1 queue_if_no_path",
    }
}

pub(super) fn hwhandler(d: &Device) -> &'static str {
    match d.alua {
        true => "1 alua",
        false => "0",
    }
}

pub(super) fn write_protection(d: &Device) -> &'static str {
    match d.read_only {
        true => "ro",
        false => "rw",
    }
}

/// As multipath prints sizes: one digit after the point below ten.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64 / 1024.0;
    let mut units = "KMGTP".chars();
    let mut unit = units.next().unwrap_or('K');
    while value >= 1024.0 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = next;
    }
    if value < 10.0 {
        format!("{value:.1}{unit}")
    } else {
        format!("{value:.0}{unit}")
    }
}

fn groups(index: usize, d: &Device) -> String {
    let mut text = String::new();
    let rows = |f: &dyn Fn(&Path) -> String| {
        let paths = d.groups.iter().flat_map(|group| &group.paths);
        let widths = paths.map(|path| f(path).chars().count());
        widths.max().unwrap_or(0)
    };
    let hcil = rows(&|p| hcil(index, p));
    let dev = rows(&|p| clean(&p.portal));
    let dm = rows(&|p| p.state.to_string());
    let checker = rows(&|p| checker_word(p.checker).to_owned());
    for (g, group) in d.groups.iter().enumerate() {
        let last_group = g + 1 == d.groups.len();
        let _ = writeln!(
            text,
            "{}-+- policy='{} {}' prio={} status={}",
            if last_group { '`' } else { '|' },
            clean(&group.policy),
            clean(&group.policy_args),
            group.priority,
            group.state
        );
        for (i, p) in group.paths.iter().enumerate() {
            let _ = writeln!(
                text,
                "{} {}- {:<hcil$} {:<dev$} - {:<dm$} {:<checker$} running",
                if last_group { ' ' } else { '|' },
                if i + 1 == group.paths.len() { '`' } else { '|' },
                self::hcil(index, p),
                clean(&p.portal),
                p.state,
                checker_word(p.checker),
            );
        }
    }
    text
}

pub(super) fn hcil(device: usize, p: &Path) -> String {
    format!("{device}:{}:0:{}", p.index, p.lun)
}

/// multipath prints two of the states in two words.
pub(super) fn checker_word(c: CheckerState) -> &'static str {
    match c {
        CheckerState::Pending => "i/o pending",
        CheckerState::Timeout => "i/o timeout",
        other => other.as_str(),
    }
}

/// `--events`: a line a request, and a line a try beneath it.
pub fn events(events: &PathEvents) -> String {
    if events.events.is_empty() {
        return "no request has needed a second path\n".to_owned();
    }
    let mut text = String::new();
    for e in &events.events {
        let _ = writeln!(
            text,
            "{} {} {} {} of {} bytes at {}",
            e.time,
            clean(&e.device),
            clean(&e.trace),
            e.op,
            e.bytes,
            e.offset_bytes
        );
        let mut table = Table::new(&[]).right(&[2, 4]).indent(2);
        for a in &e.attempts {
            table.row([
                a.reason.clone(),
                a.portal.clone(),
                micros(a.start_us),
                "to".to_owned(),
                a.end_us.map_or_else(|| "…".to_owned(), micros),
                a.result
                    .clone()
                    .unwrap_or_else(|| "not answered".to_owned()),
            ]);
        }
        text.push_str(&table.text());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Paths {
        Paths {
            devices: crate::samples::busy().0.devices,
        }
    }

    #[test]
    fn as_multipath_prints_it() {
        let mut paths = sample();
        paths.devices[0].queueing = Some("off".to_owned());
        paths.devices[1].queueing = Some("57 sec".to_owned());
        assert_eq!(
            tree(&paths),
            "sto1 (36001405d363af4e9a69472cbd4711629) sto1 IET,VIRTUAL-DISK\n\
             size=1.0G features='0' hwhandler='0' wp=rw\n\
             |-+- policy='service-time 0' prio=1 status=active\n\
             | `- 0:0:0:1 10.3.1.1:3260 - active ready running\n\
             `-+- policy='service-time 0' prio=1 status=enabled\n  \
               `- 0:1:0:1 10.3.1.2:3260 - active ready running\n\
             sto2 (36001405d363af4e9a69472cbd4711630) sto2 IET,VIRTUAL-DISK\n\
             size=1.0G features='1 queue_if_no_path' hwhandler='0' wp=rw\n\
             |-+- policy='service-time 0' prio=1 status=active\n\
             | `- 1:0:0:1 10.3.2.1:3260 - active ready  running\n\
             `-+- policy='service-time 0' prio=0 status=enabled\n  \
               `- 1:1:0:1 10.3.2.2:3260 - failed faulty running\n"
        );
        assert_eq!(
            (size(1_071_644_672), size(512), size(10 << 40)),
            ("1022M".into(), "0.5K".into(), "10T".into())
        );
    }

    /// A path keeps its number and its priority whatever becomes of its group.
    #[test]
    fn groups_in_another_order() {
        let mut paths = sample();
        paths.devices.truncate(1);
        paths.devices[0].groups.reverse();
        let group = &mut paths.devices[0].groups[0];
        group.policy = "historical-service-time".to_owned();
        group.policy_args = "2 972 1000".to_owned();
        let text = tree(&paths);
        let rest: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            rest,
            [
                "|-+- policy='historical-service-time 2 972 1000' prio=1 status=enabled",
                "| `- 0:1:0:1 10.3.1.2:3260 - active ready running",
                "`-+- policy='service-time 0' prio=1 status=active",
                "  `- 0:0:0:1 10.3.1.1:3260 - active ready running",
            ]
        );
    }

    #[test]
    fn two_paths_in_one_group() {
        let mut paths = sample();
        paths.devices.truncate(1);
        let second = paths.devices[0].groups.pop().unwrap();
        paths.devices[0].groups[0].paths.extend(second.paths);
        let text = tree(&paths);
        let last: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            last,
            [
                "`-+- policy='service-time 0' prio=1 status=active",
                "  |- 0:0:0:1 10.3.1.1:3260 - active ready running",
                "  `- 0:1:0:1 10.3.1.2:3260 - active ready running",
            ]
        );
    }

    #[test]
    fn an_alias_stands_first_and_the_name_where_sysfs_has_its_own() {
        let mut paths = sample();
        paths.devices[0].alias = Some("mpatha".to_owned());
        let text = tree(&paths);
        let head = "mpatha (36001405d363af4e9a69472cbd4711629) sto1 IET,VIRTUAL-DISK\n";
        assert!(text.starts_with(head), "{text}");
    }
}
