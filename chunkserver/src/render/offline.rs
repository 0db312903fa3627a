//! Text of the commands that work without the daemon, and of scrub and quarantine.

use std::fmt::Write as _;

use super::{bytes, clean, micros, or_dash, Table};
use crate::model::DeviceKind;
use crate::report::*;

fn yes_no(value: Option<bool>) -> String {
    or_dash(value.map(|v| if v { "yes" } else { "no" }))
}

/// `antler discover`: a line each, as iscsiadm prints them.
pub fn discovery(d: &Discovery) -> String {
    let mut text = String::new();
    for target in &d.targets {
        for portal in &target.portals {
            let _ = writeln!(
                text,
                "{},{} {}",
                clean(&portal.address),
                portal.tpgt,
                clean(&target.name)
            );
        }
    }
    text
}

/// `antler device info`
pub fn device(d: &DeviceInfo) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<15} {}", clean(&value));
    };
    line("device", d.name.clone());
    line("kind", d.kind.to_string());
    line("wwid", or_dash(d.wwid.as_deref()));
    line(
        "product",
        [&d.vendor, &d.product, &d.revision]
            .into_iter()
            .flatten()
            .cloned()
            .collect::<Vec<_>>()
            .join(" "),
    );
    line("serial", or_dash(d.serial.as_deref()));
    line(
        "size",
        d.size_bytes
            .map_or_else(|| "-".to_owned(), |n| format!("{} ({n} bytes)", bytes(n))),
    );
    line(
        "blocks",
        format!(
            "{} logical, {} physical",
            or_dash(d.block_bytes),
            or_dash(d.physical_block_bytes)
        ),
    );
    line("write cache", yes_no(d.write_cache));
    line("fua", yes_no(d.fua));
    line("unmap", yes_no(d.unmap));
    if d.kind == DeviceKind::Iscsi {
        line("alua", or_dash(d.alua.as_deref()));
        line("fence", or_dash(d.fence));
        let mut table = Table::new(&[
            "PORTAL",
            "STATE",
            "TPGT",
            "ISID",
            "LOGIN",
            "HEADER DIGEST",
            "DATA DIGEST",
            "TARGET",
            "LUN",
            "ERROR",
        ])
        .right(&[2, 4]);
        for p in &d.paths {
            table.row([
                match &p.redirected_to {
                    None => p.portal.clone(),
                    Some(to) => format!("{} -> {to}", p.portal),
                },
                p.state.as_str().to_owned(),
                or_dash(p.tpgt),
                p.isid.clone(),
                p.login_ms
                    .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
                or_dash(p.header_digest.as_deref()),
                or_dash(p.data_digest.as_deref()),
                p.target.clone(),
                p.lun.to_string(),
                or_dash(p.error.as_deref()),
            ]);
        }
        let _ = write!(text, "\n{}", table.text());
    }
    text
}

/// `antler volume list`
pub fn volume_list(list: &VolumeList) -> String {
    let mut table = Table::new(&[
        "VOLUME", "SIZE", "USED", "FREE", "CHUNKS", "CLEAN", "LEGS", "UUID",
    ])
    .right(&[1, 2, 3, 4]);
    for v in &list.volumes {
        let legs: Vec<String> = v
            .legs
            .iter()
            .map(|l| format!("{} {}", l.device, l.state))
            .collect();
        table.row([
            v.name.clone(),
            or_dash(v.size_bytes.map(bytes)),
            or_dash(v.used_bytes.map(bytes)),
            or_dash(v.free_bytes.map(bytes)),
            or_dash(v.chunks),
            yes_no(v.clean),
            legs.join(", "),
            or_dash(v.uuid.as_deref()),
        ]);
    }
    let mut text = table.text();
    for v in &list.volumes {
        if let Some(error) = &v.error {
            let _ = writeln!(text, "{}: {}", v.name, clean(error));
        }
    }
    text
}

/// `antler volume info`
pub fn volume_info(v: &VolumeInfo) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<17} {}", clean(&value));
    };
    line("volume", v.name.clone());
    line("uuid", or_dash(v.uuid.as_deref()));
    line("size", or_dash(v.size_bytes.map(bytes)));
    line("used", or_dash(v.used_bytes.map(bytes)));
    line("free", or_dash(v.free_bytes.map(bytes)));
    line("chunks", or_dash(v.chunks));
    line("stopped cleanly", yes_no(v.clean));
    if let Some(d) = &v.details {
        line("format version", d.format_version.to_string());
        line("data offset", format!("{} bytes", d.data_offset_bytes));
        line("largest chunk id", or_dash(d.largest_chunk_id.as_deref()));
        line("metaid", or_dash(d.metaid.as_deref()));
        line("claimed by", or_dash(d.claimed_by.as_deref()));
    }
    if let Some(error) = &v.error {
        line("error", error.clone());
    }
    let mut table = Table::new(&["LEG", "SLOT", "STATE", "EVENTS"]).right(&[1, 3]);
    for l in &v.legs {
        table.row([
            l.device.clone(),
            or_dash(l.slot),
            l.state.to_string(),
            or_dash(l.events),
        ]);
    }
    let _ = write!(text, "\n{}", table.text());
    text
}

/// `antler volume create`
pub fn volume_created(v: &VolumeCreated) -> String {
    let legs = if v.synced {
        "its legs read equal"
    } else {
        "its legs have not been made equal"
    };
    format!(
        "volume {} of {} created, {legs}; array {}\n",
        v.name,
        bytes(v.size_bytes),
        v.uuid
    )
}

/// `antler volume check`
pub fn volume_check(c: &VolumeCheck) -> String {
    let mut table = Table::new(&[
        "KIND", "CHUNK", "VERSION", "BLOCK", "LEG", "REPAIRED", "WHAT",
    ]);
    for p in &c.problems {
        table.row([
            p.kind.clone(),
            or_dash(p.chunk.as_deref()),
            or_dash(p.version),
            or_dash(p.block),
            or_dash(p.leg.as_deref()),
            yes_no(Some(p.repaired)),
            p.text.clone(),
        ]);
    }
    let mut text = if c.problems.is_empty() {
        String::new()
    } else {
        table.text()
    };
    let verdict = match c.result {
        CheckResult::Clean => "clean",
        CheckResult::Repaired => "repaired",
        CheckResult::Damaged => "damaged",
    };
    let data = match c.data {
        true => format!("{} blocks of data checked", c.blocks_checked),
        false => "metadata only (--data reads the blocks, too)".to_owned(),
    };
    let _ = writeln!(
        text,
        "volume {}: {verdict}; {} chunks, {data}, {} problems",
        c.name,
        c.chunks,
        c.problems.len()
    );
    text
}

/// `antler scrub VOLUME status`
pub fn scrub(s: &Scrub) -> String {
    let state = match s.state {
        ScrubState::Running => format!(
            "running, {:.1}% done, {}/s",
            s.percent,
            bytes(s.bytes_per_s)
        ),
        ScrubState::Idle => "idle".to_owned(),
    };
    format!(
        "scrub of {}: {state}\nstarted {}, finished {}\n{} checked, {} checksum errors, {} blocks healed, {} blocks damaged on every leg\n",
        s.volume,
        or_dash(s.started.as_deref()),
        or_dash(s.finished.as_deref()),
        bytes(s.checked_bytes),
        s.errors,
        s.healed_blocks,
        s.damaged_blocks
    )
}

/// `antler quarantine list`
pub fn quarantine(q: &Quarantine) -> String {
    if q.chunks.is_empty() {
        return "the quarantine is empty\n".to_owned();
    }
    let mut table = Table::new(&[
        "CHUNK:VERSION",
        "VOLUME",
        "DELETED",
        "BYTES",
        "HOLD",
        "PURGED AFTER",
    ])
    .right(&[3]);
    for c in &q.chunks {
        table.row([
            format!("{}:{}", c.chunk, c.version),
            c.volume.clone(),
            c.deleted.clone(),
            c.bytes.to_string(),
            match c.hold {
                Hold::Time => "time".to_owned(),
                Hold::Hard => "hard".to_owned(),
            },
            c.purge_after
                .clone()
                .unwrap_or_else(|| "command only".to_owned()),
        ]);
    }
    table.text()
}

/// `antler bench …`
pub fn bench(b: &BenchReport) -> String {
    let l = &b.lat_us;
    let mut text = format!(
        "{} {}: {} B blocks, depth {}, {} session(s), {:.2} s\n\
         {} I/Os, {:.0} a second, {}/s; {} errors, {} wrong\n\
         latency: min {}, mean {:.1} µs, half {}, 90% {}, 99% {}, 99.9% {}, max {}\n\
         CPU: {:.2} s user, {:.2} s system\n",
        b.bench,
        b.rw,
        b.bs_bytes,
        b.iodepth,
        b.sessions,
        b.elapsed_s,
        b.ios,
        b.iops,
        bytes(b.bytes_per_s),
        b.errors,
        b.verify_errors,
        micros(l.min),
        l.mean,
        micros(l.p50),
        micros(l.p90),
        micros(l.p99),
        micros(l.p99_9),
        micros(l.max),
        b.cpu_s.user,
        b.cpu_s.system
    );
    if let (Some(header), Some(data)) = (&b.header_digest, &b.data_digest) {
        let _ = writeln!(text, "digests: header {header}, data {data}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LegState;

    #[test]
    fn discovery_as_iscsiadm_prints_it() {
        let d = Discovery {
            portal: "10.3.1.1:3260".to_owned(),
            targets: vec![DiscoveredTarget {
                name: "iqn.2024-12.a:b".to_owned(),
                portals: vec![
                    DiscoveredPortal {
                        address: "10.3.1.1:3260".to_owned(),
                        tpgt: 1,
                    },
                    DiscoveredPortal {
                        address: "[fd00::1]:3260".to_owned(),
                        tpgt: 2,
                    },
                ],
            }],
        };
        assert_eq!(
            discovery(&d),
            "10.3.1.1:3260,1 iqn.2024-12.a:b\n[fd00::1]:3260,2 iqn.2024-12.a:b\n"
        );
    }

    #[test]
    fn a_device_and_its_paths() {
        let path = |portal: &str, state, error: Option<&str>| ProbedPath {
            portal: portal.to_owned(),
            redirected_to: None,
            target: "iqn.2024-12.a:b".to_owned(),
            lun: 1,
            state,
            error: error.map(str::to_owned),
            tpgt: Some(1),
            isid: "0x80a1b2c3d4e5".to_owned(),
            login_ms: error.is_none().then_some(2.1),
            header_digest: error.is_none().then(|| "none".to_owned()),
            data_digest: error.is_none().then(|| "none".to_owned()),
        };
        let info = DeviceInfo {
            name: "sto1".to_owned(),
            kind: DeviceKind::Iscsi,
            wwid: Some("36001".to_owned()),
            vendor: Some("IET".to_owned()),
            product: Some("VIRTUAL-DISK".to_owned()),
            revision: Some("0001".to_owned()),
            serial: None,
            size_bytes: Some(1 << 30),
            block_bytes: Some(512),
            physical_block_bytes: Some(4096),
            write_cache: Some(true),
            fua: Some(true),
            unmap: Some(false),
            alua: Some("none".to_owned()),
            fence: Some(crate::model::FenceGrade::Proven),
            paths: vec![
                path("10.3.1.1:3260", ProbeState::Ready, None),
                path(
                    "10.3.1.2:3260",
                    ProbeState::Unreachable,
                    Some("no answer within 5 s"),
                ),
            ],
        };
        let mut moved = info.clone();
        moved.paths[0].redirected_to = Some("10.3.1.9:3260".to_owned());
        let text = device(&moved);
        assert!(
            text.contains("10.3.1.1:3260 -> 10.3.1.9:3260  ready"),
            "{text}"
        );
        let text = device(&info);
        for line in [
            "product         IET VIRTUAL-DISK 0001",
            "size            1.0 GiB (1073741824 bytes)",
            "blocks          512 logical, 4096 physical",
            "serial          -",
            "PORTAL         STATE        TPGT  ISID             LOGIN  HEADER DIGEST  DATA DIGEST  TARGET           LUN  ERROR",
            "10.3.1.1:3260  ready           1  0x80a1b2c3d4e5  2.1 ms  none           none         iqn.2024-12.a:b  1    -",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(text.contains("no answer within 5 s"));
    }

    #[test]
    fn findings_and_figures() {
        let mut check = VolumeCheck {
            data: true,
            name: "vol1".to_owned(),
            result: CheckResult::Repaired,
            chunks: 12,
            blocks_checked: 3,
            problems: vec![VolumeProblem {
                kind: "checksum".to_owned(),
                chunk: Some("0000000000000001".to_owned()),
                version: Some(1),
                block: Some(3),
                leg: Some("sto1".to_owned()),
                repaired: true,
                text: "granule 5 differs".to_owned(),
            }],
        };
        assert_eq!(
            volume_check(&check).lines().last(),
            Some("volume vol1: repaired; 12 chunks, 3 blocks of data checked, 1 problems")
        );
        check.data = false;
        assert!(volume_check(&check).contains("12 chunks, metadata only"));
        let held = Quarantine {
            chunks: vec![QuarantinedChunk {
                volume: "vol1".to_owned(),
                chunk: "0000000000000001".to_owned(),
                version: 1,
                deleted: "2026-01-01T00:00:00.000Z".to_owned(),
                hold: Hold::Hard,
                bytes: 65_536,
                purge_after: None,
            }],
        };
        let text = quarantine(&held);
        assert!(
            text.contains("0000000000000001:1") && text.contains("command only"),
            "{text}"
        );
        let text = bench(&BenchReport {
            bench: "iscsi".to_owned(),
            rw: "randread".to_owned(),
            bs_bytes: 4096,
            iodepth: 16,
            sessions: 1,
            elapsed_s: 10.002,
            ios: 123_456,
            bytes: 505_675_776,
            errors: 0,
            verify_errors: 0,
            iops: 12_343.1,
            bytes_per_s: 50_557_337,
            lat_us: LatencyUs {
                p50: 75,
                max: 1200,
                ..LatencyUs::default()
            },
            cpu_s: CpuSeconds {
                user: 1.2,
                system: 2.3,
            },
            header_digest: Some("none".to_owned()),
            data_digest: Some("crc32c".to_owned()),
        });
        assert!(
            text.contains("123456 I/Os, 12343 a second, 48 MiB/s; 0 errors, 0 wrong"),
            "{text}"
        );
        assert!(
            text.contains("half 75 µs") && text.contains("data crc32c"),
            "{text}"
        );
    }

    #[test]
    fn volume_info_is_volume_list_and_three_fields() {
        let mut v = VolumeInfo {
            name: "vol1".to_owned(),
            uuid: None,
            size_bytes: Some(1 << 30),
            used_bytes: Some(0),
            free_bytes: Some(1 << 30),
            chunks: Some(0),
            clean: Some(true),
            legs: vec![OfflineLeg {
                device: "sto1".to_owned(),
                slot: Some(0),
                events: Some(42),
                state: LegState::InSync,
            }],
            error: None,
            details: None,
        };
        let listed = serde_json::to_value(&v).unwrap();
        assert!(listed.get("format_version").is_none());
        v.details = Some(VolumeDetails {
            format_version: 1,
            data_offset_bytes: 2 << 20,
            largest_chunk_id: Some("000000000000000C".to_owned()),
            metaid: None,
            claimed_by: None,
        });
        let shown = serde_json::to_value(&v).unwrap();
        assert_eq!(shown["format_version"], 1);
        assert_eq!(shown["legs"][0]["state"], "in-sync");
        assert!(volume_info(&v).contains("largest chunk id  000000000000000C"));
        assert!(volume_list(&VolumeList { volumes: vec![v] }).contains("sto1 in-sync"));
    }
}
