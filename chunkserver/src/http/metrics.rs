//! `/metrics`: Prometheus text format 0.0.4, written by hand from the snapshot.
//!
//! Declares every metric with its name, unit and meaning, in one place. Names follow Prometheus' own rules
//! (`promtool check metrics`): base units, counters end in `_total`. A hand-written encoder of forty lines
//! stands here instead of a registry, because the values live in the snapshot already.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::control::Metrics;
use crate::events::EventKind;
use crate::histogram::Histogram;
use crate::model::{LegState, MasterState, PathState, Status, VolumeState};

/// Labels of one sample.
type Labels<'a> = &'a [(&'a str, &'a str)];

/// Writes families of samples.
struct Encoder {
    text: String,
    name: &'static str,
}

impl Encoder {
    /// Begins a metric.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: Labels<'_>, value: impl std::fmt::Display) {
        self.line("", labels, None, value);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: Labels<'_>,
        bound: Option<&str>,
        value: impl std::fmt::Display,
    ) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        let all = labels.iter().copied().chain(bound.map(|b| ("le", b)));
        for (i, (label, value)) in all.enumerate() {
            let _ = write!(self.text, "{}{label}=\"", if i == 0 { '{' } else { ',' });
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() || bound.is_some() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    fn histogram(&mut self, labels: Labels<'_>, h: &Histogram) {
        for (bound, count) in h.buckets() {
            self.line("_bucket", labels, Some(&bound.to_string()), count);
        }
        self.line("_bucket", labels, Some("+Inf"), h.count());
        self.line("_sum", labels, None, h.sum_s());
        self.line("_count", labels, None, h.count());
    }
}

/// The whole text.
pub fn render(status: &Status, metrics: &Metrics, events: &BTreeMap<EventKind, u64>) -> String {
    let mut e = Encoder {
        text: String::with_capacity(16 << 10),
        name: "",
    };
    node(&mut e, status);
    volumes(&mut e, status);
    arrays(&mut e, status, metrics);
    devices(&mut e, status, metrics);
    clients(&mut e, status, metrics);
    e.family("antler_events_total", "counter", "Events since the start.");
    for kind in EventKind::ALL {
        e.sample(
            &[("event", kind.name())],
            events.get(kind).copied().unwrap_or(0),
        );
    }
    e.text
}

fn node(e: &mut Encoder, s: &Status) {
    e.family(
        "antler_build_info",
        "gauge",
        "Always 1; the version is a label.",
    );
    e.sample(&[("version", &s.version)], 1);
    e.family("antler_uptime_seconds", "gauge", "Time since the start.");
    e.sample(&[], s.uptime_s);
    e.family(
        "antler_master_connected",
        "gauge",
        "1 while registered with a master.",
    );
    e.sample(&[], u8::from(s.master.state == MasterState::Registered));
}

fn volumes(e: &mut Encoder, s: &Status) {
    let each = |e: &mut Encoder, value: &dyn Fn(&crate::model::Volume) -> u64| {
        for v in &s.volumes {
            e.sample(&[("volume", &v.name)], value(v));
        }
    };
    e.family(
        "antler_volume_serving",
        "gauge",
        "1 while the volume is served.",
    );
    each(e, &|v| {
        u64::from(matches!(
            v.state,
            VolumeState::Active | VolumeState::Removing | VolumeState::ReadOnly
        ))
    });
    e.family("antler_chunks", "gauge", "Chunks held.");
    each(e, &|v| v.chunks);
    e.family(
        "antler_damaged_chunks",
        "gauge",
        "Chunks damaged on every leg.",
    );
    each(e, &|v| v.damaged_chunks);
    e.family(
        "antler_quarantined_chunks",
        "gauge",
        "Deleted chunks held back.",
    );
    each(e, &|v| v.quarantined_chunks);
    e.family(
        "antler_volume_bytes",
        "gauge",
        "Size, used and free space of the volume.",
    );
    for v in &s.volumes {
        for (kind, bytes) in [
            ("size", v.size_bytes),
            ("used", v.used_bytes),
            ("free", v.free_bytes),
        ] {
            e.sample(&[("volume", &v.name), ("kind", kind)], bytes);
        }
    }
    e.family(
        "antler_unflushed_bytes",
        "gauge",
        "Acknowledged and not yet flushed.",
    );
    each(e, &|v| v.unflushed_bytes);
    e.family(
        "antler_unflushed_age_seconds",
        "gauge",
        "Age of the oldest byte not yet flushed.",
    );
    for v in &s.volumes {
        e.sample(&[("volume", &v.name)], v.unflushed_ms as f64 / 1e3);
    }
}

fn arrays(e: &mut Encoder, s: &Status, m: &Metrics) {
    let each = |e: &mut Encoder, value: &dyn Fn(&crate::model::Leg) -> u64| {
        for a in &s.arrays {
            for l in &a.legs {
                e.sample(&[("volume", &a.volume), ("device", &l.device)], value(l));
            }
        }
    };
    e.family(
        "antler_leg_in_sync",
        "gauge",
        "1 while the leg holds every acknowledged write.",
    );
    each(e, &|l| u64::from(l.state == LegState::InSync));
    e.family(
        "antler_leg_read_errors_total",
        "counter",
        "Reads of the leg that failed.",
    );
    each(e, &|l| l.read_errors);
    e.family(
        "antler_healed_blocks_total",
        "counter",
        "Blocks rewritten from the other leg.",
    );
    each(e, &|l| l.healed_blocks);
    e.family(
        "antler_sync_copied_bytes_total",
        "counter",
        "Bytes copied to the leg by syncs.",
    );
    // A leg that was never synced shows 0, so that a rate exists from the first sync on.
    let mut copied: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for a in &s.arrays {
        for l in &a.legs {
            copied.insert((&a.volume, &l.device), 0);
        }
    }
    for ((volume, device), bytes) in &m.sync_copied_bytes {
        copied.insert((volume, device), *bytes);
    }
    for ((volume, device), bytes) in copied {
        e.sample(&[("volume", volume), ("device", device)], bytes);
    }
    e.family(
        "antler_sync_progress_ratio",
        "gauge",
        "Done part of the sync that runs.",
    );
    for a in &s.arrays {
        if let Some(sync) = &a.sync {
            let labels = [
                ("volume", a.volume.as_str()),
                ("device", &sync.leg),
                ("kind", sync.kind.as_str()),
            ];
            e.sample(&labels, sync.percent / 100.0);
        }
    }
    e.family(
        "antler_bitmap_dirty_chunks",
        "gauge",
        "Bits set in the write-intent bitmap.",
    );
    for a in &s.arrays {
        if let Some(b) = &a.bitmap {
            e.sample(&[("volume", &a.volume)], b.dirty);
        }
    }
}

fn devices(e: &mut Encoder, s: &Status, m: &Metrics) {
    let paths = |e: &mut Encoder, value: &dyn Fn(&crate::model::Path) -> u64| {
        for d in &s.devices {
            for p in d.groups.iter().flat_map(|g| &g.paths) {
                e.sample(&[("device", &d.name), ("portal", &p.portal)], value(p));
            }
        }
    };
    e.family(
        "antler_path_up",
        "gauge",
        "1 while the path takes requests.",
    );
    paths(e, &|p| u64::from(p.state == PathState::Active));
    e.family(
        "antler_path_failures_total",
        "counter",
        "Failures of the path.",
    );
    paths(e, &|p| p.failures);
    e.family(
        "antler_path_in_flight",
        "gauge",
        "Commands sent and not answered.",
    );
    paths(e, &|p| u64::from(p.in_flight));
    e.family(
        "antler_path_read_bytes_total",
        "counter",
        "Bytes read through the path.",
    );
    paths(e, &|p| p.read_bytes);
    e.family(
        "antler_path_written_bytes_total",
        "counter",
        "Bytes written through the path.",
    );
    paths(e, &|p| p.write_bytes);
    let each = |e: &mut Encoder, value: &dyn Fn(&crate::model::Device) -> u64| {
        for d in &s.devices {
            e.sample(&[("device", &d.name)], value(d));
        }
    };
    e.family(
        "antler_device_failovers_total",
        "counter",
        "Changes of path with requests in flight.",
    );
    each(e, &|d| d.failovers);
    e.family(
        "antler_device_tainted_ranges",
        "gauge",
        "Extents with an unanswered write.",
    );
    each(e, &|d| d.tainted_ranges);
    e.family(
        "antler_device_held_writes",
        "gauge",
        "Writes that wait for an unanswered one.",
    );
    each(e, &|d| d.held_writes);
    e.family(
        "antler_device_latency_seconds",
        "histogram",
        "Time from request to answer, by device.",
    );
    for ((device, op), h) in &m.device_latency {
        e.histogram(&[("device", device), ("op", op)], h);
    }
}

fn clients(e: &mut Encoder, s: &Status, m: &Metrics) {
    let c = &s.clients;
    e.family(
        "antler_client_connections",
        "gauge",
        "Connections of clients.",
    );
    e.sample(&[], c.connections);
    e.family(
        "antler_client_ios_total",
        "counter",
        "Requests of clients done.",
    );
    e.sample(&[("op", "read")], c.read_ios);
    e.sample(&[("op", "write")], c.write_ios);
    e.family(
        "antler_client_bytes_total",
        "counter",
        "Bytes read and written by clients.",
    );
    e.sample(&[("op", "read")], c.read_bytes);
    e.sample(&[("op", "write")], c.write_bytes);
    e.family(
        "antler_client_latency_seconds",
        "histogram",
        "Time from a client's request to our answer.",
    );
    let none = Histogram::default();
    for op in ["read", "write"] {
        if !m.client_latency.contains_key(op) {
            e.histogram(&[("op", op)], &none);
        }
    }
    for (op, h) in &m.client_latency {
        e.histogram(&[("op", op)], h);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn every_documented_metric_is_there() {
        let (status, metrics) = crate::samples::busy();
        let text = render(&status, &metrics, &BTreeMap::new());
        for line in [
            "antler_build_info{version=\"0.1.0\"} 1",
            "antler_master_connected 1",
            "antler_chunks{volume=\"vol1\"} 12",
            "antler_volume_bytes{volume=\"vol1\",kind=\"used\"} 268435456",
            "antler_path_up{device=\"sto1\",portal=\"10.3.1.1:3260\"} 1",
            "antler_path_up{device=\"sto2\",portal=\"10.3.2.2:3260\"} 0",
            "antler_path_failures_total{device=\"sto2\",portal=\"10.3.2.2:3260\"} 3",
            "antler_leg_in_sync{volume=\"vol1\",device=\"sto2\"} 0",
            "antler_sync_copied_bytes_total{volume=\"vol1\",device=\"sto2\"} 1048576",
            "antler_healed_blocks_total{volume=\"vol1\",device=\"sto1\"} 1",
            "antler_client_ios_total{op=\"read\"} 1000",
            "antler_client_bytes_total{op=\"write\"} 65536000",
            "antler_client_latency_seconds_count{op=\"read\"} 3",
            "antler_client_latency_seconds_bucket{op=\"read\",le=\"+Inf\"} 3",
            "antler_client_latency_seconds_bucket{op=\"read\",le=\"0.000016\"} 0",
            "antler_device_latency_seconds_count{device=\"sto1\",op=\"write\"} 1",
            "antler_unflushed_bytes{volume=\"vol1\"} 65536",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut e = Encoder {
            text: String::new(),
            name: "m",
        };
        e.sample(&[("a", "x\"\\\ny")], 1);
        assert_eq!(e.text, "m{a=\"x\\\"\\\\\\ny\"} 1\n");
    }

    #[test]
    fn promtool_has_nothing_to_say() {
        let (status, metrics) = crate::samples::busy();
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool is missing: apt-get install -y prometheus");
        let text = render(&status, &metrics, &BTreeMap::new());
        promtool
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let out = promtool.wait_with_output().unwrap();
        let said = [out.stdout, out.stderr].concat();
        assert!(
            out.status.success() && said.is_empty(),
            "{}",
            String::from_utf8_lossy(&said)
        );
    }
}
