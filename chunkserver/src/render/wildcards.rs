//! `antler paths --format`: the wildcards of `multipathd show paths format` and `show maps format`.
//!
//! multipathd(8) `show wildcards` has the letters and headings. What has no meaning here shows as multipathd
//! shows what it does not know.

use std::fmt::Write as _;

use super::paths::{checker_word, features, hcil, hwhandler, shown_name, size, write_protection};
use super::{clean, or_dash};
use crate::exit::Failure;
use crate::model::{Device, NextCheck, Path, Paths};

/// What multipathd prints of what it does not know.
const UNDEF: &str = "[undef]";

/// A letter and what it shows.
struct Wildcard<F: 'static> {
    letter: char,
    heading: &'static str,
    value: F,
}

/// One path.
struct Row<'a> {
    device: &'a Device,
    device_index: usize,
    path: &'a Path,
}

type OfPath = fn(&Row<'_>) -> String;
type OfMap = fn(&Device) -> String;

const fn path(letter: char, heading: &'static str, value: OfPath) -> Wildcard<OfPath> {
    Wildcard {
        letter,
        heading,
        value,
    }
}

const fn map(letter: char, heading: &'static str, value: OfMap) -> Wildcard<OfMap> {
    Wildcard {
        letter,
        heading,
        value,
    }
}

static PATHS: &[Wildcard<OfPath>] = &[
    path('w', "uuid", |r| or_dash(r.device.wwid.as_deref())),
    path('i', "hcil", |r| hcil(r.device_index, r.path)),
    path('d', "dev", |r| r.path.portal.clone()),
    path('D', "dev_t", |_| "-".to_owned()),
    path('t', "dm_st", |r| r.path.state.to_string()),
    path('o', "dev_st", |_| "running".to_owned()),
    path('T', "chk_st", |r| checker_word(r.path.checker).to_owned()),
    path('s', "vend/prod/rev", |r| product(r.device)),
    path('c', "checker", |r| or_dash(r.path.path_checker.as_deref())),
    path('C', "next_check", |r| {
        r.path.next_check.map_or_else(|| "-".to_owned(), progress)
    }),
    path('p', "pri", |r| r.path.priority.to_string()),
    path('S', "size", |r| device_size(r.device)),
    path('z', "serial", |r| or_dash(r.device.serial.as_deref())),
    path('M', "marginal_st", |r| {
        let word = if r.path.marginal {
            "marginal"
        } else {
            "normal"
        };
        word.to_owned()
    }),
    path('m', "multipath", |r| shown_name(r.device).to_owned()),
    path('N', "host WWNN", |_| UNDEF.to_owned()),
    path('n', "target WWNN", |r| r.path.target.clone()),
    path('R', "host WWPN", |_| UNDEF.to_owned()),
    path('r', "target WWPN", |r| r.path.target.clone()),
    // Of an iSCSI session multipathd takes the portal's address for the adapter.
    path('a', "host adapter", |r| {
        let host = r.path.portal.rsplit_once(':').map(|(host, _)| host);
        host.unwrap_or(UNDEF).to_owned()
    }),
    path('G', "foreign", |_| "--".to_owned()),
    path('g', "vpd page data", |_| UNDEF.to_owned()),
    path('0', "failures", |r| r.path.failures.to_string()),
    path('P', "protocol", |_| "scsi:iscsi".to_owned()),
    path('I', "init_st", |_| "ok".to_owned()),
    path('L', "LUN hex", |r| {
        format!("0x{:016x}", u64::from(r.path.lun) << 48)
    }),
    path('A', "TPG", |r| {
        let group = r.path.target_port_group;
        group.map_or_else(|| "-".to_owned(), |group| group.to_string())
    }),
    path('k', "max_sectors_kb", |r| number(r.device.max_sectors_kb)),
];

static MAPS: &[Wildcard<OfMap>] = &[
    map('n', "name", |d| shown_name(d).to_owned()),
    map('w', "uuid", |d| or_dash(d.wwid.as_deref())),
    map('d', "sysfs", |d| d.name.clone()),
    map('F', "failback", |d| or_dash(d.failback.as_deref())),
    map('Q', "queueing", |d| or_dash(d.queueing.as_deref())),
    map('N', "paths", |d| all_paths(d).count().to_string()),
    map('r', "write_prot", |d| write_protection(d).to_owned()),
    map('t', "dm-st", |_| "active".to_owned()),
    map('S', "size", device_size),
    map('f', "features", |d| features(d).to_owned()),
    map('x', "failures", |d| d.map_failures.to_string()),
    map('h', "hwhandler", |d| hwhandler(d).to_owned()),
    map('A', "action", |_| String::new()),
    map('0', "path_faults", |d| {
        all_paths(d).map(|p| p.failures).sum::<u64>().to_string()
    }),
    map('1', "switch_grp", |d| d.failovers.to_string()),
    map('2', "map_loads", |d| d.map_loads.to_string()),
    // Seconds, as multipathd's ticks.
    map('3', "total_q_time", |d| (d.queueing_ms / 1000).to_string()),
    map('4', "q_timeouts", |d| d.queueing_timeouts.to_string()),
    map('s', "vend/prod/rev", product),
    map('v', "vend", |d| or_dash(d.vendor.as_deref())),
    map('p', "prod", |d| or_dash(d.product.as_deref())),
    map('e', "rev", |d| or_dash(d.revision.as_deref())),
    map('G', "foreign", |_| "--".to_owned()),
    map('g', "vpd page data", |_| UNDEF.to_owned()),
    map('k', "max_sectors_kb", |d| number(d.max_sectors_kb)),
];

fn all_paths(d: &Device) -> impl Iterator<Item = &Path> {
    d.groups.iter().flat_map(|g| &g.paths)
}

fn product(d: &Device) -> String {
    let (vendor, product) = (d.vendor.as_deref(), d.product.as_deref());
    format!("{},{}", or_dash(vendor), or_dash(product))
}

fn device_size(d: &Device) -> String {
    d.size_bytes.map_or_else(|| "-".to_owned(), size)
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A format is text between wildcards.
enum Piece<F: 'static> {
    Text(String),
    Wildcard(&'static Wildcard<F>),
}

fn pieces<F>(format: &str, known: &'static [Wildcard<F>]) -> Result<Vec<Piece<F>>, Failure> {
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
                let Some(w) = known.iter().find(|w| w.letter == letter) else {
                    let known = known.iter().map(|w| format!("%{} {}", w.letter, w.heading));
                    return Err(Failure::usage(format!(
                        "--format: %{letter} is no wildcard; there are {}",
                        known.collect::<Vec<_>>().join(", ")
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

/// A line of headings and a line a row, columns padded as multipathd pads them.
fn table<F>(pieces: &[Piece<F>], cells: impl Iterator<Item = Vec<String>>) -> String {
    let headings = pieces.iter().filter_map(|p| match p {
        Piece::Wildcard(w) => Some(w.heading.to_owned()),
        Piece::Text(_) => None,
    });
    let mut lines: Vec<Vec<String>> = vec![headings.collect()];
    lines.extend(cells);
    let widths: Vec<usize> = (0..lines[0].len())
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
        for piece in pieces {
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
    text
}

/// What is left of the time between two checks, in seconds, behind multipathd's bar of it.
fn progress(next: NextCheck) -> String {
    let (left, total) = (next.in_ms.div_ceil(1000), next.interval_ms.div_ceil(1000));
    let left = left.min(total);
    let bar = usize::try_from(10 * left / total.max(1)).unwrap_or(0);
    format!("{:.<10} {left}/{total}", "X".repeat(bar))
}

/// The cells of a row.
fn cells<F>(pieces: &[Piece<F>], value: impl Fn(&F) -> String) -> Vec<String> {
    let wildcards = pieces.iter().filter_map(|p| match p {
        Piece::Wildcard(w) => Some(clean(&value(&w.value))),
        Piece::Text(_) => None,
    });
    wildcards.collect()
}

/// Whether a format names wildcards that there are, of maps or of paths.
pub fn judge(format: &str, of_maps: bool) -> Result<(), Failure> {
    match of_maps {
        true => pieces(format, MAPS).map(drop),
        false => pieces(format, PATHS).map(drop),
    }
}

/// A line a path.
pub fn paths(paths: &Paths, format: &str) -> Result<String, Failure> {
    let pieces = pieces(format, PATHS)?;
    let mut rows = Vec::new();
    for (device_index, device) in paths.devices.iter().enumerate() {
        for path in device.groups.iter().flat_map(|group| &group.paths) {
            let row = Row {
                device,
                device_index,
                path,
            };
            rows.push(cells(&pieces, |value| value(&row)));
        }
    }
    Ok(table(&pieces, rows.into_iter()))
}

/// A line a device.
pub fn maps(paths: &Paths, format: &str) -> Result<String, Failure> {
    let pieces = pieces(format, MAPS)?;
    let rows = paths.devices.iter();
    let rows = rows.map(|device| cells(&pieces, |value| value(device)));
    Ok(table(&pieces, rows))
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
    fn of_paths() {
        assert_eq!(
            paths(&sample(), "%m|%d|%t %T %0%%").unwrap(),
            "multipath|dev          |dm_st  chk_st failures%\n\
             sto1     |10.3.1.1:3260|active ready  0       %\n\
             sto1     |10.3.1.2:3260|active ready  0       %\n\
             sto2     |10.3.2.1:3260|active ready  0       %\n\
             sto2     |10.3.2.2:3260|failed faulty 3       %\n"
        );
        let mut sample = sample();
        sample.devices.truncate(1);
        sample.devices[0].alias = Some("mpatha".to_owned());
        sample.devices[0].groups.truncate(1);
        sample.devices[0].groups[0].paths[0].target_port_group = Some(7);
        assert_eq!(
            paths(&sample, "%m %z %A %k %a %P").unwrap(),
            "multipath serial TPG max_sectors_kb host adapter protocol\n\
             mpatha    beaf11 7   1024           10.3.1.1     scsi:iscsi\n"
        );
    }

    #[test]
    fn of_checks() {
        assert_eq!(
            paths(&sample(), "%t %c %C").unwrap(),
            "dm_st  checker next_check\n\
             active tur     XXXXX..... 10/20\n\
             active tur     XXXXX..... 10/20\n\
             active tur     XXXXX..... 10/20\n\
             failed tur     -\n"
        );
    }

    #[test]
    fn of_maps() {
        assert_eq!(
            maps(&sample(), "%n %d %N %F %Q %r %e %0").unwrap(),
            "name sysfs paths failback  queueing write_prot rev  path_faults\n\
             sto1 sto1  2     immediate 12 chk   rw         0001 0\n\
             sto2 sto2  2     immediate 12 chk   rw         0001 3\n"
        );
    }

    #[test]
    fn counters_of_maps() {
        assert_eq!(
            maps(&sample(), "%n %1 %x %2 %3 %4").unwrap(),
            "name switch_grp failures map_loads total_q_time q_timeouts\n\
             sto1 2          1        4         61           1\n\
             sto2 2          1        4         61           1\n"
        );
    }

    #[test]
    fn every_letter_is_there_once_and_others_name_them() {
        let letters = |list: Vec<char>| {
            let mut sorted = list.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), list.len());
            list
        };
        for letter in letters(PATHS.iter().map(|w| w.letter).collect()) {
            assert!(paths(&sample(), &format!("%{letter}")).is_ok());
        }
        for letter in letters(MAPS.iter().map(|w| w.letter).collect()) {
            assert!(maps(&sample(), &format!("%{letter}")).is_ok());
        }
        let e = paths(&sample(), "%!").unwrap_err();
        assert!(
            e.text.contains("%! is no wildcard") && e.text.contains("%d dev"),
            "{e}"
        );
        assert!(judge("%T", false).is_ok() && judge("%T", true).is_err());
        let e = maps(&sample(), "%T").unwrap_err();
        assert!(e.text.contains("%Q queueing"), "{e}");
    }
}
