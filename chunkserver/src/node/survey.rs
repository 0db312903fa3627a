//! From the layers' own snapshots to what the program says about itself.
//!
//! Pure translation: no object of a layer is changed here.

use blockdev::rt::Wall;
use raid::decide::{Decision, Role};

use crate::clock::Timestamp;
use crate::model;

/// A unit by its paths, for `antler paths`.
pub(crate) fn unit(unit: &mpath::MultipathDevice, alias: Option<String>) -> model::Device {
    let snapshot = &unit.snapshot();
    let config = unit.config();
    let identity = snapshot.unit.as_deref();
    let state = match snapshot.state {
        mpath::DeviceState::Ready => model::DeviceState::Ready,
        mpath::DeviceState::Degraded => model::DeviceState::Degraded,
        mpath::DeviceState::Queueing => model::DeviceState::Queueing,
        mpath::DeviceState::Failed => model::DeviceState::Failed,
    };
    model::Device {
        name: snapshot.name.clone(),
        kind: model::DeviceKind::Iscsi,
        wwid: identity.and_then(|u| u.wwid.clone()),
        size_bytes: identity.map(|_| snapshot.size_bytes),
        vendor: identity.map(|u| u.vendor.clone()),
        product: identity.map(|u| u.product.clone()),
        state,
        fence: identity.map(|_| fence_grade(snapshot.fence)),
        groups: snapshot.groups.iter().map(group).collect(),
        tainted_ranges: snapshot.tainted_ranges as u64,
        held_writes: snapshot.held_writes as u64,
        failovers: snapshot.failovers,
        longest_stall_ms: millis(snapshot.longest_stall),
        alua: identity.is_some_and(|u| u.tpgs != 0),
        queue_if_no_path: snapshot.state == mpath::DeviceState::Queueing,
        read_only: identity.is_some_and(|u| u.read_only),
        alias,
        revision: identity.map(|u| u.revision.clone()),
        serial: identity.map(|u| u.serial.clone()),
        max_sectors_kb: identity.map(|u| u64::from(u.geometry.max_transfer_sectors) / 2),
        failback: Some(failback(config.failback)),
        queueing: Some(queueing(&config, unit.role(), snapshot)),
        map_failures: snapshot.outages.failures,
        map_loads: snapshot.layouts,
        queueing_ms: millis(snapshot.outages.queueing),
        queueing_timeouts: snapshot.outages.timeouts,
    }
}

/// As multipathd's %F.
fn failback(failback: mpath::Failback) -> String {
    match failback {
        mpath::Failback::Immediate => "immediate".to_owned(),
        mpath::Failback::Manual => "manual".to_owned(),
        mpath::Failback::Followover => "followover".to_owned(),
        mpath::Failback::After(time) => time.as_secs().to_string(),
    }
}

/// As multipathd's %Q: `off`, `on`, `N chk` as long as the waiting has not begun, then `N sec` that are left.
fn queueing(config: &mpath::Config, role: mpath::Role, snapshot: &mpath::Snapshot) -> String {
    if let Some(left) = snapshot.queueing_left {
        return format!("{} sec", left.as_millis().div_ceil(1000));
    }
    match (snapshot.state, config.queue_time(role)) {
        (_, None) => "on".to_owned(),
        (mpath::DeviceState::Failed, Some(_)) => "off".to_owned(),
        (_, Some(time)) if time.is_zero() => "off".to_owned(),
        // N polling intervals and one second.
        (_, Some(time)) => {
            let interval = config.polling_interval.as_millis().max(1);
            format!("{} chk", time.as_millis().saturating_sub(1000) / interval)
        }
    }
}

/// A local file or disk, for `antler paths`.
pub(crate) fn local(name: &str, geometry: Option<blockdev::Geometry>) -> model::Device {
    model::Device {
        name: name.to_owned(),
        kind: model::DeviceKind::Local,
        wwid: None,
        size_bytes: geometry.map(|g| g.bytes()),
        vendor: None,
        product: None,
        state: match geometry {
            Some(_) => model::DeviceState::Ready,
            None => model::DeviceState::Failed,
        },
        fence: None,
        groups: Vec::new(),
        tainted_ranges: 0,
        held_writes: 0,
        failovers: 0,
        longest_stall_ms: 0,
        alua: false,
        queue_if_no_path: false,
        read_only: false,
        alias: None,
        revision: None,
        serial: None,
        max_sectors_kb: None,
        failback: None,
        queueing: None,
        map_failures: 0,
        map_loads: 0,
        queueing_ms: 0,
        queueing_timeouts: 0,
    }
}

pub(crate) fn fence_grade(grade: mpath::FenceGrade) -> model::FenceGrade {
    match grade {
        mpath::FenceGrade::Proven => model::FenceGrade::Proven,
        mpath::FenceGrade::Assumed => model::FenceGrade::Assumed,
        mpath::FenceGrade::None => model::FenceGrade::None,
    }
}

fn group(group: &mpath::GroupSnapshot) -> model::Group {
    model::Group {
        state: match group.state {
            mpath::GroupState::Active => model::GroupState::Active,
            mpath::GroupState::Enabled => model::GroupState::Enabled,
            mpath::GroupState::Disabled => model::GroupState::Disabled,
        },
        priority: group.priority,
        policy: group.policy.to_owned(),
        policy_args: group.policy_args.clone(),
        paths: group.paths.iter().map(path).collect(),
    }
}

fn path(path: &mpath::PathSnapshot) -> model::Path {
    use mpath::Checker;
    let checker = match path.checker {
        Checker::Undef => model::CheckerState::Undef,
        Checker::Ready => model::CheckerState::Ready,
        Checker::Faulty => model::CheckerState::Faulty,
        Checker::Shaky => model::CheckerState::Shaky,
        Checker::Ghost => model::CheckerState::Ghost,
        Checker::Pending => model::CheckerState::Pending,
        Checker::Timeout => model::CheckerState::Timeout,
        Checker::Delayed => model::CheckerState::Delayed,
        Checker::Disconnected => model::CheckerState::Disconnected,
    };
    let counters = &path.counters;
    let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    model::Path {
        index: path.index,
        priority: path.priority,
        portal: path.name.portal.clone(),
        target: path.name.target.clone(),
        // The configuration admits no larger one.
        lun: u16::try_from(path.name.lun).unwrap_or(u16::MAX),
        state: if path.is_active {
            model::PathState::Active
        } else {
            model::PathState::Failed
        },
        checker,
        marginal: path.is_marginal,
        path_checker: Some(path.probe.name().to_owned()),
        next_check: path.next_check.map(|(left, interval)| model::NextCheck {
            in_ms: millis(left),
            interval_ms: millis(interval),
        }),
        target_port_group: path.identity.as_ref().and_then(|u| u.target_port_group),
        in_flight: path.in_flight,
        failures: counters.failures,
        last_error: path.last_error.clone(),
        read_ios: counters.read_ios,
        write_ios: counters.write_ios,
        read_bytes: counters.read_bytes,
        write_bytes: counters.write_bytes,
    }
}

/// A request that did not go straight through, for `antler paths --events`.
pub(crate) fn trace(device: &str, trace: &mpath::Trace) -> model::PathEvent {
    let micros = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let attempts = trace.attempts.iter().map(|attempt| model::Attempt {
        portal: attempt.portal.clone(),
        reason: attempt.reason.to_owned(),
        start_us: micros(attempt.start),
        end_us: attempt.end.map(micros),
        result: attempt.end.map(|_| attempt.result.clone()),
    });
    model::PathEvent {
        time: time(trace.time),
        device: device.to_owned(),
        trace: format!("{:016x}", trace.trace.0),
        op: trace.op.to_owned(),
        offset_bytes: trace.offset_bytes,
        bytes: trace.bytes,
        attempts: attempts.collect(),
    }
}

/// A running array, for `antler arrays`.
pub(crate) fn array(snapshot: &raid::ArraySnapshot, note: Option<String>) -> model::Array {
    let state = match snapshot.state {
        "clean" => model::ArrayState::Clean,
        "active" => model::ArrayState::Active,
        "degraded" => model::ArrayState::Degraded,
        _ => model::ArrayState::Failed,
    };
    model::Array {
        volume: snapshot.volume.clone(),
        uuid: Some(snapshot.uuid.to_string()),
        level: "raid1".to_owned(),
        size_bytes: snapshot.size_bytes,
        data_offset_bytes: snapshot.data_offset_bytes,
        state,
        events: snapshot.events,
        bitmap: Some(model::Bitmap {
            chunk_bytes: snapshot.bitmap_chunk_bytes,
            chunks: snapshot.bitmap_chunks,
            dirty: snapshot.bitmap_dirty,
        }),
        legs: snapshot.legs.iter().map(leg).collect(),
        sync: snapshot
            .sync
            .as_ref()
            .map(|sync| sync_model(sync, snapshot.now)),
        last_sync: snapshot.last_sync.as_ref().map(|sync| model::LastSync {
            kind: sync_kind(sync.kind),
            leg: sync.leg.clone(),
            bitmap: sync.bitmap,
            copied_bytes: sync.copied_bytes,
            elapsed_s: (sync.elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
            result: if sync.done { "done" } else { "stopped" }.to_owned(),
        }),
        note: snapshot.failure.clone().or(note),
    }
}

/// An array that does not run. `seen` is what was found of its legs, if anything was.
pub(crate) fn no_array(
    volume: &str,
    legs: &[String],
    seen: Vec<model::Leg>,
    note: Option<String>,
) -> model::Array {
    let leg = |(slot, device): (usize, &String)| {
        let known = seen.iter().find(|leg| leg.device == *device);
        let missing = || idle_leg(device, Some(slot as u32), model::LegState::Missing);
        known.cloned().unwrap_or_else(missing)
    };
    model::Array {
        volume: volume.to_owned(),
        uuid: None,
        level: "raid1".to_owned(),
        size_bytes: 0,
        data_offset_bytes: 0,
        state: model::ArrayState::Failed,
        events: seen.iter().filter_map(|leg| leg.events).max().unwrap_or(0),
        bitmap: None,
        legs: legs.iter().enumerate().map(leg).collect(),
        sync: None,
        last_sync: None,
        note,
    }
}

/// A leg that no array uses.
pub(crate) fn idle_leg(device: &str, slot: Option<u32>, state: model::LegState) -> model::Leg {
    model::Leg {
        device: device.to_owned(),
        slot,
        state,
        events: None,
        write_mostly: false,
        failfast: false,
        read_bytes: 0,
        write_bytes: 0,
        read_errors: 0,
        healed_blocks: 0,
        utime: None,
    }
}

/// What each leg says of its own history, for the one who has to choose between them.
pub(crate) fn histories(found: &raid::assemble::Survey) -> Vec<model::Leg> {
    // Before a choice between two histories neither is the array's.
    let state = |slot: usize, member: &raid::probe::Member| match &found.decision {
        Decision::Diverged(_) => model::LegState::Faulty,
        Decision::Run(choice) if choice.roles[slot] != Role::InSync => model::LegState::Faulty,
        _ if member.superblock.is_recovering() => model::LegState::Faulty,
        Decision::Run(_) | Decision::Wait(_) => model::LegState::InSync,
    };
    let members = found.members.iter().enumerate();
    let told = members.filter_map(|(slot, member)| {
        let (device, member) = member.as_ref()?;
        // md keeps seconds in the low 40 bits.
        let seconds = member.superblock.utime & 0xff_ffff_ffff;
        Some(model::Leg {
            events: Some(member.verdict().0),
            utime: Some(Timestamp::from_secs(seconds).to_string()),
            ..idle_leg(device, Some(slot as u32), state(slot, member))
        })
    });
    told.collect()
}

fn leg(leg: &raid::LegSnapshot) -> model::Leg {
    model::Leg {
        device: leg.device.clone(),
        slot: Some(u32::from(leg.slot)),
        state: leg_state(leg.state),
        events: leg.events,
        write_mostly: leg.write_mostly,
        failfast: leg.failfast,
        read_bytes: leg.read_bytes,
        write_bytes: leg.write_bytes,
        read_errors: leg.read_errors,
        healed_blocks: leg.healed_blocks,
        utime: None,
    }
}

pub(crate) fn leg_state(word: &str) -> model::LegState {
    match word {
        "in-sync" => model::LegState::InSync,
        "rebuilding" => model::LegState::Rebuilding,
        "late" => model::LegState::Late,
        "missing" => model::LegState::Missing,
        "replacement" => model::LegState::Replacement,
        _ => model::LegState::Faulty,
    }
}

fn sync_kind(word: &str) -> model::SyncKind {
    match word {
        "resync" => model::SyncKind::Resync,
        "replace" => model::SyncKind::Replace,
        _ => model::SyncKind::Recovery,
    }
}

fn sync_model(sync: &raid::SyncSnapshot, now: blockdev::Instant) -> model::Sync {
    model::Sync {
        kind: sync_kind(sync.kind),
        leg: sync.leg.clone(),
        percent: (sync.percent() * 100.0).round() / 100.0,
        done_bytes: sync.done_bytes,
        total_bytes: sync.total_bytes,
        copied_bytes: sync.copied_bytes,
        bytes_per_s: sync.bytes_per_s(now) as u64,
        eta_s: sync.eta_s(now).map(|s| s.ceil() as u64),
    }
}

pub(crate) fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// RFC 3339 UTC.
pub(crate) fn time(wall: Wall) -> String {
    Timestamp(wall.0 / 1000).to_string()
}
