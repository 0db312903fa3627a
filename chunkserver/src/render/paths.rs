//! `antler paths`: the layout of `multipath -ll`, its wildcards, and traced requests.
//!
//! Three lines of multipath have no meaning here and stand for what comes nearest: H:C:T:L is
//! `device:portal:0:lun` by index in the configuration, the device node is the portal, MAJ:MIN is `-`, and the
//! sysfs name is the device's.

use std::fmt::Write as _;

use super::{clean, micros, or_dash, Table};
use crate::exit::Failure;
use crate::model::{CheckerState, Device, DeviceKind, Group, Path, PathEvents, Paths};

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
    let wwid = match &d.wwid {
        Some(w) if *w != d.name => format!(" ({})", clean(w)),
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
        "{name}{wwid} {name} {product}\nsize={} features='{}' hwhandler='{}' wp={}\n",
        d.size_bytes.map_or_else(|| "undef".to_owned(), size),
        if d.queue_if_no_path {
            "1 queue_if_no_path"
        } else {
            "0"
        },
        if d.alua { "1 alua" } else { "0" },
        if d.read_only { "ro" } else { "rw" },
        name = d.name,
    )
}

/// As multipath prints sizes: one digit after the point below ten.
fn size(bytes: u64) -> String {
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

/// Index of each path by (group, path), counted through the device: the second of H:C:T:L.
fn numbered(d: &Device) -> Vec<Vec<(usize, &Path)>> {
    let mut next = 0;
    d.groups
        .iter()
        .map(|g| {
            g.paths
                .iter()
                .map(|p| {
                    next += 1;
                    (next - 1, p)
                })
                .collect()
        })
        .collect()
}

fn groups(index: usize, d: &Device) -> String {
    let mut text = String::new();
    let numbered = numbered(d);
    let rows = |f: &dyn Fn(usize, &Path) -> String| {
        numbered
            .iter()
            .flatten()
            .map(|(n, p)| f(*n, p).chars().count())
            .max()
            .unwrap_or(0)
    };
    let hcil = rows(&|n, p| hcil(index, n, p));
    let dev = rows(&|_, p| clean(&p.portal));
    let dm = rows(&|_, p| p.state.to_string());
    let checker = rows(&|_, p| checker_word(p.checker).to_owned());
    for (g, (group, paths)) in d.groups.iter().zip(&numbered).enumerate() {
        let last_group = g + 1 == d.groups.len();
        let _ = writeln!(
            text,
            "{}-+- policy='{} 0' prio={} status={}",
            if last_group { '`' } else { '|' },
            clean(&group.policy),
            group.priority,
            group.state
        );
        for (i, (n, p)) in paths.iter().enumerate() {
            let _ = writeln!(
                text,
                "{} {}- {:<hcil$} {:<dev$} - {:<dm$} {:<checker$} running",
                if last_group { ' ' } else { '|' },
                if i + 1 == paths.len() { '`' } else { '|' },
                self::hcil(index, *n, p),
                clean(&p.portal),
                p.state,
                checker_word(p.checker),
            );
        }
    }
    text
}

fn hcil(device: usize, path: usize, p: &Path) -> String {
    format!("{device}:{path}:0:{}", p.lun)
}

/// multipath prints two of the states in two words.
fn checker_word(c: CheckerState) -> &'static str {
    match c {
        CheckerState::Pending => "i/o pending",
        CheckerState::Timeout => "i/o timeout",
        other => other.as_str(),
    }
}

/// What a wildcard shows, for one path.
struct Wildcard {
    letter: char,
    heading: &'static str,
    value: fn(&Row<'_>) -> String,
}

struct Row<'a> {
    device: &'a Device,
    device_index: usize,
    group: &'a Group,
    path_index: usize,
    path: &'a Path,
}

/// multipathd(8) `show wildcards`, the path part; what has no meaning here shows as multipathd shows it.
static WILDCARDS: &[Wildcard] = &[
    Wildcard {
        letter: 'w',
        heading: "uuid",
        value: |r| or_dash(r.device.wwid.as_deref()),
    },
    Wildcard {
        letter: 'i',
        heading: "hcil",
        value: |r| hcil(r.device_index, r.path_index, r.path),
    },
    Wildcard {
        letter: 'd',
        heading: "dev",
        value: |r| r.path.portal.clone(),
    },
    Wildcard {
        letter: 'D',
        heading: "dev_t",
        value: |_| "-".to_owned(),
    },
    Wildcard {
        letter: 't',
        heading: "dm_st",
        value: |r| r.path.state.to_string(),
    },
    Wildcard {
        letter: 'o',
        heading: "dev_st",
        value: |_| "running".to_owned(),
    },
    Wildcard {
        letter: 'T',
        heading: "chk_st",
        value: |r| checker_word(r.path.checker).to_owned(),
    },
    Wildcard {
        letter: 's',
        heading: "vend/prod/rev",
        value: |r| {
            format!(
                "{},{}",
                or_dash(r.device.vendor.as_deref()),
                or_dash(r.device.product.as_deref())
            )
        },
    },
    Wildcard {
        letter: 'c',
        heading: "checker",
        value: |_| "tur".to_owned(),
    },
    Wildcard {
        letter: 'C',
        heading: "next_check",
        value: |_| "orphan".to_owned(),
    },
    Wildcard {
        letter: 'p',
        heading: "pri",
        value: |r| r.group.priority.to_string(),
    },
    Wildcard {
        letter: 'S',
        heading: "size",
        value: |r| r.device.size_bytes.map_or_else(|| "-".to_owned(), size),
    },
    Wildcard {
        letter: 'z',
        heading: "serial",
        value: |_| "-".to_owned(),
    },
    Wildcard {
        letter: 'M',
        heading: "marginal_st",
        value: |r| {
            if r.path.marginal {
                "marginal"
            } else {
                "normal"
            }
            .to_owned()
        },
    },
    Wildcard {
        letter: 'm',
        heading: "multipath",
        value: |r| r.device.name.clone(),
    },
    Wildcard {
        letter: 'N',
        heading: "host WWNN",
        value: |_| "[undef]".to_owned(),
    },
    Wildcard {
        letter: 'n',
        heading: "target WWNN",
        value: |r| r.path.target.clone(),
    },
    Wildcard {
        letter: 'R',
        heading: "host WWPN",
        value: |_| "[undef]".to_owned(),
    },
    Wildcard {
        letter: 'r',
        heading: "target WWPN",
        value: |r| r.path.target.clone(),
    },
    Wildcard {
        letter: 'a',
        heading: "host adapter",
        value: |_| "[undef]".to_owned(),
    },
    Wildcard {
        letter: 'P',
        heading: "protocol",
        value: |_| "scsi:iscsi".to_owned(),
    },
    Wildcard {
        letter: 'I',
        heading: "init_st",
        value: |_| "ok".to_owned(),
    },
    Wildcard {
        letter: 'L',
        heading: "LUN hex",
        value: |r| format!("0x{:016x}", u64::from(r.path.lun) << 48),
    },
    Wildcard {
        letter: 'A',
        heading: "TPG",
        value: |_| "-".to_owned(),
    },
    Wildcard {
        letter: '0',
        heading: "failures",
        value: |r| r.path.failures.to_string(),
    },
    Wildcard {
        letter: 'k',
        heading: "max_sectors_kb",
        value: |_| "-".to_owned(),
    },
];

/// A format is text between wildcards.
enum Piece {
    Text(String),
    Wildcard(&'static Wildcard),
}

fn pieces(format: &str) -> Result<Vec<Piece>, Failure> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => text.push('%'),
            Some(letter) => {
                let Some(w) = WILDCARDS.iter().find(|w| w.letter == letter) else {
                    let known: Vec<String> = WILDCARDS
                        .iter()
                        .map(|w| format!("%{} {}", w.letter, w.heading))
                        .collect();
                    return Err(Failure::usage(format!(
                        "--format: %{letter} is no wildcard; there are {}",
                        known.join(", ")
                    )));
                };
                pieces.push(Piece::Text(std::mem::take(&mut text)));
                pieces.push(Piece::Wildcard(w));
            }
            None => text.push('%'),
        }
    }
    pieces.push(Piece::Text(text));
    Ok(pieces)
}

/// `--format`: a line a path after a line of headings, columns padded as multipathd pads them.
pub fn formatted(paths: &Paths, format: &str) -> Result<String, Failure> {
    let pieces = pieces(format)?;
    let mut lines: Vec<Vec<String>> = vec![pieces
        .iter()
        .filter_map(|p| match p {
            Piece::Wildcard(w) => Some(w.heading.to_owned()),
            Piece::Text(_) => None,
        })
        .collect()];
    for (device_index, device) in paths.devices.iter().enumerate() {
        for (group, numbered) in device.groups.iter().zip(numbered(device)) {
            for (path_index, path) in numbered {
                let row = Row {
                    device,
                    device_index,
                    group,
                    path_index,
                    path,
                };
                lines.push(
                    pieces
                        .iter()
                        .filter_map(|p| match p {
                            Piece::Wildcard(w) => Some(clean(&(w.value)(&row))),
                            Piece::Text(_) => None,
                        })
                        .collect(),
                );
            }
        }
    }
    let columns = lines[0].len();
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            lines
                .iter()
                .map(|l| l[c].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for cells in lines {
        let mut line = String::new();
        let mut cell = cells.iter().zip(&widths);
        for piece in &pieces {
            match piece {
                Piece::Text(t) => line.push_str(t),
                Piece::Wildcard(_) => {
                    if let Some((value, width)) = cell.next() {
                        let _ = write!(line, "{value:<width$}");
                    }
                }
            }
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    Ok(text)
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
        paths.devices[1].queue_if_no_path = true;
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
    fn wildcards() {
        assert_eq!(
            formatted(&sample(), "%m|%d|%t %T %0%%").unwrap(),
            "multipath|dev          |dm_st  chk_st failures%\n\
             sto1     |10.3.1.1:3260|active ready  0       %\n\
             sto1     |10.3.1.2:3260|active ready  0       %\n\
             sto2     |10.3.2.1:3260|active ready  0       %\n\
             sto2     |10.3.2.2:3260|failed faulty 3       %\n"
        );
        for w in WILDCARDS {
            assert!(formatted(&sample(), &format!("%{}", w.letter)).is_ok());
        }
        let e = formatted(&sample(), "%!").unwrap_err();
        assert!(e.text.contains("%d dev"), "{e}");
    }
}
