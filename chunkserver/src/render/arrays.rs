//! `antler arrays`: the layout of `mdadm --detail`.

use std::fmt::Write as _;

use super::{bytes, clean, or_dash, span, Table};
use crate::model::{Array, Arrays, Leg, LegState};

/// Every array, as mdadm shows one.
pub fn detail(arrays: &Arrays) -> String {
    if arrays.arrays.is_empty() {
        return "no volumes are configured\n".to_owned();
    }
    arrays.arrays.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn one(a: &Array) -> String {
    let mut text = format!("{}:\n", a.volume);
    let count = |f: &dyn Fn(LegState) -> bool| a.legs.iter().filter(|l| f(l.state)).count();
    let raid_devices = a.legs.iter().filter(|l| l.slot.is_some()).count();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:>18} : {}", clean(&value));
    };
    line("Version", "1.2".to_owned());
    line("Raid Level", a.level.clone());
    line("Array Size", size(a.size_bytes));
    line(
        "Data Offset",
        format!("{} sectors", a.data_offset_bytes / 512),
    );
    line("Raid Devices", raid_devices.to_string());
    // As mdadm counts: a device that is not there is failed where a slot misses it, and nothing otherwise.
    let absent = |l: &&Leg| l.state == LegState::Missing && l.slot.is_none();
    let total = a.legs.len() - a.legs.iter().filter(absent).count();
    let is_failed = |l: &&Leg| match l.state {
        LegState::Faulty => true,
        LegState::Missing => l.slot.is_some(),
        _ => false,
    };
    let failed = a.legs.iter().filter(is_failed).count();
    line("Total Devices", total.to_string());
    line("State", state(a));
    line(
        "Active Devices",
        count(&|s| s == LegState::InSync).to_string(),
    );
    line("Working Devices", (total - failed).to_string());
    line("Failed Devices", failed.to_string());
    line(
        "Spare Devices",
        count(&|s| s == LegState::Spare).to_string(),
    );
    match &a.bitmap {
        Some(b) => {
            line("Consistency Policy", "bitmap".to_owned());
            line(
                "Intent Bitmap",
                format!(
                    "{} of {} bits dirty, {} a bit",
                    b.dirty,
                    b.chunks,
                    bytes(b.chunk_bytes)
                ),
            );
        }
        None => line("Consistency Policy", "resync".to_owned()),
    }
    if let Some(s) = &a.sync {
        let label = match s.kind {
            crate::model::SyncKind::Resync => "Resync Status",
            crate::model::SyncKind::Recovery => "Rebuild Status",
            crate::model::SyncKind::Check => "Check Status",
            crate::model::SyncKind::Replace => "Replace Status",
        };
        let left = s
            .eta_s
            .map_or(String::new(), |eta| format!(", {} left", span(eta as f64)));
        line(
            label,
            format!(
                "{:.1}% complete: {}, {} of {}, {} copied, {}/s{left}",
                s.percent,
                s.leg,
                bytes(s.done_bytes),
                bytes(s.total_bytes),
                bytes(s.copied_bytes),
                bytes(s.bytes_per_s)
            ),
        );
    }
    if let Some(s) = &a.last_sync {
        line(
            "Last Sync",
            format!(
                "{} of {} {}: {} copied in {:.1} s, {}",
                s.kind,
                s.leg,
                if s.bitmap { "by bitmap" } else { "in full" },
                bytes(s.copied_bytes),
                s.elapsed_s,
                s.result
            ),
        );
    }
    line("UUID", or_dash(a.uuid.as_deref()));
    line("Events", a.events.to_string());
    if let Some(note) = &a.note {
        line("Note", note.clone());
    }
    text.push('\n');
    let mut table = Table::new(&[
        "Number", "Device", "State", "Events", "Updated", "Read", "Written", "Errors", "Healed",
    ])
    .right(&[3, 5, 6, 7, 8])
    .indent(4);
    for l in &a.legs {
        let mut state = l.state.to_string();
        if l.write_mostly {
            state.push_str(" writemostly");
        }
        if l.failfast {
            state.push_str(" failfast");
        }
        table.row([
            or_dash(l.slot),
            l.device.clone(),
            state,
            or_dash(l.events),
            or_dash(l.utime.as_deref()),
            bytes(l.read_bytes),
            bytes(l.write_bytes),
            l.read_errors.to_string(),
            l.healed_blocks.to_string(),
        ]);
    }
    text.push_str(&table.text());
    text
}

/// `degraded, recovering`
fn state(a: &Array) -> String {
    match &a.sync {
        None => a.state.to_string(),
        Some(s) => {
            let doing = match s.kind {
                crate::model::SyncKind::Resync => "resyncing",
                crate::model::SyncKind::Recovery => "recovering",
                crate::model::SyncKind::Check => "checking",
                crate::model::SyncKind::Replace => "replacing",
            };
            format!("{}, {doing}", a.state)
        }
    }
}

/// As mdadm: KiB, and both units beside it.
fn size(n: u64) -> String {
    let both = |n: u64| {
        if n < 1 << 30 {
            format!(
                "{:.2} MiB {:.2} MB",
                n as f64 / (1u64 << 20) as f64,
                n as f64 / 1e6
            )
        } else {
            format!(
                "{:.2} GiB {:.2} GB",
                n as f64 / (1u64 << 30) as f64,
                n as f64 / 1e9
            )
        }
    };
    format!("{} ({})", n / 1024, both(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_spare_is_no_failed_device() {
        let mut array = crate::samples::busy().0.arrays.remove(0);
        let counted = |array: &Array, line: &str| one(array).contains(line);
        let total = array.legs.len();
        let mut spare = array.legs[0].clone();
        (spare.slot, spare.state) = (None, LegState::Missing);
        array.legs.push(spare);
        assert!(counted(&array, &format!("Total Devices : {total}\n")));
        assert!(counted(&array, &format!("Working Devices : {total}\n")));
        assert!(counted(&array, "Failed Devices : 0\n"));
        array.legs[1].state = LegState::Missing;
        assert!(counted(&array, "Failed Devices : 1\n"));
    }

    #[test]
    fn as_mdadm_prints_it() {
        let arrays = Arrays {
            arrays: crate::samples::busy().0.arrays,
        };
        let text = detail(&arrays);
        for line in [
            "vol1:",
            "           Version : 1.2",
            "        Array Size : 1048576 (1.00 GiB 1.07 GB)",
            "             State : degraded, recovering",
            "    Active Devices : 1",
            "    Rebuild Status : 12.5% complete: sto2, 128 MiB of 1.0 GiB, 1.0 MiB copied, 100 MiB/s, 9 s left",
            "     Intent Bitmap : 3 of 16 bits dirty, 64 MiB a bit",
            "         Last Sync : recovery of sto2 by bitmap: 1.0 MiB copied in 0.8 s, done",
            "              UUID : 0badc0de:01234567:89abcdef:deadbeef",
            "    Number  Device  State       Events  Updated                     Read  Written  Errors  Healed",
            "    0       sto1    in-sync         42  2026-01-01T00:00:00.000Z  40 KiB   80 KiB       0       1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
