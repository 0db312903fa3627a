//! A node in the middle of its work, for tests of everything that shows one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::control::Metrics;
use crate::events::{Event, EventKind, Level};
use crate::model::*;

fn path(portal: &str, state: PathState, checker: CheckerState) -> Path {
    Path {
        index: 0,
        priority: 1,
        portal: portal.to_owned(),
        target: "iqn.2024-12.tp2.b3:data-chunk1".to_owned(),
        lun: 1,
        state,
        checker,
        marginal: false,
        path_checker: Some("tur".to_owned()),
        next_check: (state == PathState::Active).then_some(NextCheck {
            in_ms: 9_500,
            interval_ms: 20_000,
        }),
        target_port_group: None,
        in_flight: 3,
        failures: if state == PathState::Failed { 3 } else { 0 },
        last_error: (state == PathState::Failed).then(|| "no answer for 60 ms".to_owned()),
        read_ios: 10,
        write_ios: 20,
        read_bytes: 40_960,
        write_bytes: 81_920,
    }
}

fn group(state: GroupState, priority: i32, path: Path) -> Group {
    Group {
        state,
        priority,
        policy: "service-time".to_owned(),
        policy_args: "0".to_owned(),
        paths: vec![path],
    }
}

fn device(name: &str, wwid: &str, state: DeviceState, mut groups: Vec<Group>) -> Device {
    let paths = groups.iter_mut().flat_map(|group| &mut group.paths);
    for (index, path) in paths.enumerate() {
        path.index = index;
    }
    Device {
        name: name.to_owned(),
        kind: DeviceKind::Iscsi,
        wwid: Some(wwid.to_owned()),
        size_bytes: Some(1 << 30),
        vendor: Some("IET".to_owned()),
        product: Some("VIRTUAL-DISK".to_owned()),
        state,
        fence: Some(FenceGrade::Proven),
        groups,
        tainted_ranges: 0,
        held_writes: 0,
        failovers: 2,
        longest_stall_ms: 140,
        alua: false,
        queue_if_no_path: false,
        read_only: false,
        alias: None,
        revision: Some("0001".to_owned()),
        serial: Some("beaf11".to_owned()),
        max_sectors_kb: Some(1024),
        failback: Some("immediate".to_owned()),
        queueing: Some("12 chk".to_owned()),
        map_failures: 1,
        map_loads: 4,
        queueing_ms: 61_400,
        queueing_timeouts: 1,
    }
}

fn leg(device: &str, slot: u32, state: LegState, healed: u64) -> Leg {
    Leg {
        device: device.to_owned(),
        slot: Some(slot),
        state,
        events: Some(42 - u64::from(slot)),
        write_mostly: false,
        failfast: false,
        read_bytes: 40_960,
        write_bytes: 81_920,
        read_errors: 0,
        healed_blocks: healed,
        utime: Some("2026-01-01T00:00:00.000Z".to_owned()),
    }
}

/// One volume on two nodes, one of which lost a path and is being rebuilt.
pub(crate) fn busy() -> (Status, Metrics) {
    let mut status = Status::starting("0.1.0", 4711, "10.194.0.1:9422", "10.194.0.1:9420");
    status.state = NodeState::Serving;
    status.uptime_s = 11_525.4;
    status.master = Master {
        state: MasterState::Registered,
        address: "10.194.0.1:9420".to_owned(),
        version: Some("3.0.117".to_owned()),
        csid: Some(3),
        metaid: Some("5f3e0a1b2c3d4e5f".to_owned()),
        last_error: None,
    };
    status.volumes = vec![Volume {
        name: "vol1".to_owned(),
        state: VolumeState::Active,
        size_bytes: 1 << 30,
        used_bytes: 256 << 20,
        free_bytes: 768 << 20,
        chunks: 12,
        damaged_chunks: 0,
        healed_blocks: 1,
        quarantined_chunks: 2,
        durability: "flush".to_owned(),
        unflushed_bytes: 65_536,
        unflushed_ms: 40,
        open_ms: Some(12),
        note: None,
    }];
    status.arrays = vec![Array {
        volume: "vol1".to_owned(),
        uuid: Some("0badc0de:01234567:89abcdef:deadbeef".to_owned()),
        level: "raid1".to_owned(),
        size_bytes: 1 << 30,
        data_offset_bytes: 2 << 20,
        state: ArrayState::Degraded,
        events: 42,
        bitmap: Some(Bitmap {
            chunk_bytes: 64 << 20,
            chunks: 16,
            dirty: 3,
        }),
        legs: vec![
            leg("sto1", 0, LegState::InSync, 1),
            leg("sto2", 1, LegState::Rebuilding, 0),
        ],
        sync: Some(Sync {
            kind: SyncKind::Recovery,
            leg: "sto2".to_owned(),
            percent: 12.5,
            done_bytes: 128 << 20,
            total_bytes: 1 << 30,
            copied_bytes: 1 << 20,
            bytes_per_s: 100 << 20,
            eta_s: Some(9),
        }),
        last_sync: Some(LastSync {
            kind: SyncKind::Recovery,
            leg: "sto2".to_owned(),
            bitmap: true,
            copied_bytes: 1 << 20,
            elapsed_s: 0.8,
            result: "done".to_owned(),
        }),
        note: None,
    }];
    let ready = |portal: &str| path(portal, PathState::Active, CheckerState::Ready);
    status.devices = vec![
        device(
            "sto1",
            "36001405d363af4e9a69472cbd4711629",
            DeviceState::Ready,
            vec![
                group(GroupState::Active, 1, ready("10.3.1.1:3260")),
                group(GroupState::Enabled, 1, ready("10.3.1.2:3260")),
            ],
        ),
        device(
            "sto2",
            "36001405d363af4e9a69472cbd4711630",
            DeviceState::Degraded,
            vec![
                group(GroupState::Active, 1, ready("10.3.2.1:3260")),
                group(
                    GroupState::Enabled,
                    0,
                    path("10.3.2.2:3260", PathState::Failed, CheckerState::Faulty),
                ),
            ],
        ),
    ];
    status.clients = Clients {
        connections: 3,
        read_ios: 1000,
        write_ios: 1000,
        read_bytes: 65_536_000,
        write_bytes: 65_536_000,
    };
    status.rates = Rates {
        window_s: 10.0,
        read_iops: 812.5,
        write_iops: 97.0,
        read_bytes_per_s: 53_248_000,
        write_bytes_per_s: 6_356_992,
    };
    status.latencies = vec![Latency {
        object: "clients".to_owned(),
        op: "read".to_owned(),
        ios: 8125,
        p50_us: 128,
        p99_us: 1024,
    }];
    status.events = vec![
        event(
            "00:00:00.123Z",
            Level::Info,
            EventKind::MasterConnected,
            "10.194.0.1:9420",
            "csid 3",
        ),
        event(
            "00:00:07.500Z",
            Level::Warn,
            EventKind::PathFailed,
            "sto2 10.3.2.2:3260",
            "no answer for 60 ms",
        ),
        event(
            "00:00:07.700Z",
            Level::Error,
            EventKind::LegFailed,
            "vol1 sto2",
            "<b>no path</b> left & out",
        ),
    ];
    let mut metrics = Metrics::default();
    let read = metrics.client_latency.entry("read").or_default();
    for us in [20, 90, 4000] {
        read.record(Duration::from_micros(us));
    }
    metrics
        .device_latency
        .entry(("sto1".to_owned(), "write"))
        .or_default()
        .record(Duration::from_micros(300));
    metrics.sync_copied_bytes = BTreeMap::from([(("vol1".to_owned(), "sto2".to_owned()), 1 << 20)]);
    (status, metrics)
}

fn event(time: &str, level: Level, event: EventKind, object: &str, text: &str) -> Event {
    Event {
        time: format!("2026-01-01T{time}"),
        level,
        event,
        object: object.to_owned(),
        text: text.to_owned(),
    }
}
