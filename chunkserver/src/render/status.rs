//! `antler status`: everything on one page.

use std::fmt::Write as _;

use super::{bytes, clean, micros, or_dash, span, Table};
use crate::model::{DeviceKind, MasterState, Status, VolumeState};

/// Events shown on the page.
const EVENTS_SHOWN: usize = 12;

/// The page.
pub fn page(s: &Status) -> String {
    let mut text = format!(
        "antler {}  {}  pid {}  up {}  serving chunks on {}\n",
        s.version,
        s.state,
        s.pid,
        span(s.uptime_s),
        s.listen
    );
    if let Some(note) = &s.note {
        let _ = writeln!(text, "{}", clean(note));
    }
    master(&mut text, s);
    volumes(&mut text, s);
    arrays(&mut text, s);
    devices(&mut text, s);
    clients(&mut text, s);
    events(&mut text, s);
    text
}

fn master(text: &mut String, s: &Status) {
    let m = &s.master;
    let _ = write!(text, "master  {}", m.state);
    let _ = match m.state {
        MasterState::Registered => write!(text, " at {}", clean(&m.address)),
        _ => write!(text, "  {}", clean(&m.address)),
    };
    for (label, value) in [
        ("version ", m.version.clone()),
        ("csid ", m.csid.map(|c| c.to_string())),
        ("metaid ", m.metaid.clone()),
        ("", m.last_error.clone()),
    ] {
        if let Some(value) = value {
            let _ = write!(text, "  {label}{}", clean(&value));
        }
    }
    text.push('\n');
}

fn volumes(text: &mut String, s: &Status) {
    if s.volumes.is_empty() {
        text.push_str("\nno volumes\n");
        return;
    }
    let mut table = Table::new(&[
        "VOLUME",
        "STATE",
        "SIZE",
        "USED",
        "FREE",
        "USE%",
        "CHUNKS",
        "DAMAGED",
        "HEALED",
        "QUARANTINE",
        "DURABILITY",
        "UNFLUSHED",
    ])
    .right(&[2, 3, 4, 5, 6, 7, 8, 9]);
    for v in &s.volumes {
        let percent = match v.size_bytes {
            0 => "-".to_owned(),
            size => format!("{:.0}%", v.used_bytes as f64 * 100.0 / size as f64),
        };
        let unflushed = match v.unflushed_bytes {
            0 => "-".to_owned(),
            n => format!("{}, {} ms", bytes(n), v.unflushed_ms),
        };
        table.row([
            v.name.clone(),
            v.state.to_string(),
            bytes(v.size_bytes),
            bytes(v.used_bytes),
            bytes(v.free_bytes),
            percent,
            v.chunks.to_string(),
            v.damaged_chunks.to_string(),
            v.healed_blocks.to_string(),
            v.quarantined_chunks.to_string(),
            v.durability.clone(),
            unflushed,
        ]);
    }
    let _ = write!(text, "\n{}", table.text());
    for v in &s.volumes {
        if let Some(note) = &v.note {
            let urgent = if matches!(v.state, VolumeState::Failed) {
                "!"
            } else {
                ""
            };
            let _ = writeln!(text, "{urgent}{}: {}", v.name, clean(note));
        }
    }
}

fn arrays(text: &mut String, s: &Status) {
    if s.arrays.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        "ARRAY", "STATE", "LEG", "STATE", "EVENTS", "READ", "WRITTEN", "ERRORS", "HEALED",
    ])
    .right(&[4, 5, 6, 7, 8]);
    for a in &s.arrays {
        for (i, l) in a.legs.iter().enumerate() {
            let first = i == 0;
            table.row([
                if first {
                    a.volume.clone()
                } else {
                    String::new()
                },
                if first {
                    a.state.to_string()
                } else {
                    String::new()
                },
                l.device.clone(),
                l.state.to_string(),
                or_dash(l.events),
                bytes(l.read_bytes),
                bytes(l.write_bytes),
                l.read_errors.to_string(),
                l.healed_blocks.to_string(),
            ]);
        }
    }
    let _ = write!(text, "\n{}", table.text());
    for a in &s.arrays {
        if let Some(sync) = &a.sync {
            let left = sync
                .eta_s
                .map_or(String::new(), |e| format!(", {} left", span(e as f64)));
            let _ = writeln!(
                text,
                "{}: {} of {} {:.1}%, {}/s{left}",
                a.volume,
                sync.kind,
                sync.leg,
                sync.percent,
                bytes(sync.bytes_per_s)
            );
        }
        if let Some(note) = &a.note {
            let _ = writeln!(text, "{}: {}", a.volume, clean(note));
        }
    }
}

fn devices(text: &mut String, s: &Status) {
    if s.devices.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        "DEVICE",
        "STATE",
        "FENCE",
        "PATH",
        "GROUP",
        "STATE",
        "CHECK",
        "IN FLIGHT",
        "FAILURES",
        "READ",
        "WRITTEN",
        "LAST ERROR",
    ])
    .right(&[7, 8, 9, 10]);
    for d in &s.devices {
        let head = [d.name.clone(), d.state.to_string(), or_dash(d.fence)];
        let paths: Vec<_> = d
            .groups
            .iter()
            .flat_map(|g| g.paths.iter().map(move |p| (g, p)))
            .collect();
        if paths.is_empty() {
            let place = if d.kind == DeviceKind::Local {
                "local"
            } else {
                "no paths"
            };
            table.row(head.into_iter().chain([place.to_owned()]));
            continue;
        }
        for (i, (g, p)) in paths.into_iter().enumerate() {
            let head = if i == 0 {
                head.clone()
            } else {
                Default::default()
            };
            table.row(head.into_iter().chain([
                p.portal.clone(),
                g.state.to_string(),
                p.state.to_string(),
                p.checker.to_string(),
                p.in_flight.to_string(),
                p.failures.to_string(),
                bytes(p.read_bytes),
                bytes(p.write_bytes),
                or_dash(p.last_error.as_deref()),
            ]));
        }
    }
    let _ = write!(text, "\n{}", table.text());
    for d in s
        .devices
        .iter()
        .filter(|d| d.held_writes > 0 || d.tainted_ranges > 0)
    {
        let _ = writeln!(
            text,
            "{}: {} extents with an unanswered write, {} writes wait for one",
            d.name, d.tainted_ranges, d.held_writes
        );
    }
}

fn clients(text: &mut String, s: &Status) {
    let (c, r) = (&s.clients, &s.rates);
    let mut table = Table::new(&[
        "CLIENTS", "IO/S", "BYTES/S", "MEDIAN", "99%", "IN ALL", "BYTES",
    ])
    .right(&[1, 2, 3, 4, 5, 6]);
    let latency = |object: &str, op: &str| {
        s.latencies
            .iter()
            .find(|l| l.object == object && l.op == op)
    };
    for (op, iops, per_s, ios, total) in [
        (
            "read",
            r.read_iops,
            r.read_bytes_per_s,
            c.read_ios,
            c.read_bytes,
        ),
        (
            "write",
            r.write_iops,
            r.write_bytes_per_s,
            c.write_ios,
            c.write_bytes,
        ),
    ] {
        let l = latency("clients", op);
        table.row([
            op.to_owned(),
            format!("{iops:.0}"),
            bytes(per_s),
            l.map_or_else(|| "-".to_owned(), |l| format!("≤ {}", micros(l.p50_us))),
            l.map_or_else(|| "-".to_owned(), |l| format!("≤ {}", micros(l.p99_us))),
            ios.to_string(),
            bytes(total),
        ]);
    }
    for l in s.latencies.iter().filter(|l| l.object != "clients") {
        let per_s = if r.window_s > 0.0 {
            l.ios as f64 / r.window_s
        } else {
            0.0
        };
        table.row([
            format!("{} {}", l.object, l.op),
            format!("{per_s:.0}"),
            "-".to_owned(),
            format!("≤ {}", micros(l.p50_us)),
            format!("≤ {}", micros(l.p99_us)),
        ]);
    }
    let _ = write!(text, "\n{}", table.text());
    let _ = writeln!(text, "{} connections", c.connections);
}

fn events(text: &mut String, s: &Status) {
    if s.events.is_empty() {
        return;
    }
    let mut table = Table::new(&["EVENTS (UTC)", "", "", "", ""]);
    for e in &s.events[s.events.len().saturating_sub(EVENTS_SHOWN)..] {
        table.row([
            e.time.clone(),
            format!("{:?}", e.level).to_lowercase(),
            e.event.name().to_owned(),
            e.object.clone(),
            e.text.clone(),
        ]);
    }
    let _ = write!(text, "\n{}", table.text());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_on_the_page() {
        let (status, _) = crate::samples::busy();
        let text = page(&status);
        for line in [
            "antler 0.1.0  serving  pid 4711  up 3 h 12 min  serving chunks on 10.194.0.1:9422",
            "master  registered at 10.194.0.1:9420  version 3.0.117  csid 3  metaid 5f3e0a1b2c3d4e5f",
            "VOLUME  STATE      SIZE     USED     FREE  USE%  CHUNKS  DAMAGED  HEALED  QUARANTINE  DURABILITY  UNFLUSHED",
            "vol1    active  1.0 GiB  256 MiB  768 MiB   25%      12        0       1           2  flush       64 KiB, 40 ms",
            "ARRAY  STATE     LEG   STATE       EVENTS    READ  WRITTEN  ERRORS  HEALED",
            "                 sto2  rebuilding      41  40 KiB   80 KiB       0       0",
            "vol1: recovery of sto2 12.5%, 100 MiB/s, 9 s left",
            "3 connections",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(
            text.contains("path_failed") && text.contains("no answer for 60 ms"),
            "{text}"
        );
    }

    #[test]
    fn an_empty_node_has_a_page_too() {
        let text = page(&Status::starting("0.1.0", 1, "*:9422", "mfsmaster:9420"));
        assert!(text.contains("no volumes"), "{text}");
    }
}
