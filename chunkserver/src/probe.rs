//! `antler discover` and `antler device info`: looking at targets without touching a running node.
//!
//! Every session uses the role `tool`, so its ISID is another than a running `serve`'s and ends none of its
//! sessions. All portals are asked at once, under one deadline.

use std::rc::Rc;
use std::time::Duration;

use blockdev::driver::local::{LocalDevice, LocalOptions};
use blockdev::driver::run_shard;
use blockdev::path::{LoginAs, LoginError, PathSession};
use blockdev::{BlockDevice, Instant, Pool, Rt};
use iscsi_initiator::client::ConnectError;
use iscsi_initiator::discover::{discover as send_targets, DiscoverError};
use iscsi_initiator::isid::{self, Role};
use iscsi_initiator::path::{IscsiPort, IscsiSession};
use tokio::task::spawn_local;

use crate::assemble::{self, Base};
use crate::config::{Config, DeviceKind, HostPort, Iscsi, IscsiDevice, UnitRules};
use crate::exit::Failure;
use crate::model;
use crate::names;
use crate::report::{
    DeviceInfo, DiscoveredPortal, DiscoveredTarget, Discovery, ProbeState, ProbedPath,
};

/// Memory of one look.
const POOL_BYTES: usize = 16 << 20;
/// How long sessions may take to log out once everything is known.
const LEAVE: Duration = Duration::from_millis(500);

fn base(rt: Rt) -> Base {
    Base {
        rt,
        pool: Pool::new(POOL_BYTES),
    }
}

/// Runs a tool's work on a runtime of its own.
pub(crate) fn on_shard<T, F>(main: impl FnOnce(Rt) -> F) -> Result<T, Failure>
where
    F: std::future::Future<Output = Result<T, Failure>>,
{
    run_shard(main).map_err(|e| Failure::problem(format!("event loop: {e}")))?
}

/// See [`crate::ops::Ops::discover`].
pub fn discover(portals: &[HostPort], iscsi: &Iscsi) -> Vec<Result<Discovery, Failure>> {
    let asked = on_shard(|rt| async move {
        let base = base(rt);
        let deadline = base.rt.now() + iscsi.login_timeout;
        let asking: Vec<_> = portals
            .iter()
            .map(|portal| {
                let (base, iscsi, portal) = (base.clone(), iscsi.clone(), portal.clone());
                spawn_local(async move { ask(&base, &iscsi, &portal, deadline).await })
            })
            .collect();
        let mut answers = Vec::new();
        for one in asking {
            answers.push(
                one.await
                    .unwrap_or_else(|e| Err(Failure::problem(e.to_string()))),
            );
        }
        Ok(answers)
    });
    asked.unwrap_or_else(|failure| portals.iter().map(|_| Err(failure.clone())).collect())
}

async fn ask(
    base: &Base,
    iscsi: &Iscsi,
    portal: &HostPort,
    deadline: Instant,
) -> Result<Discovery, Failure> {
    let initiator = assemble::initiator(base, iscsi)?;
    let numeric = assemble::portal(portal, "discover")?;
    let targets = send_targets(&initiator, numeric, deadline)
        .await
        .map_err(|e| {
            let text = format!("{numeric}: {e}");
            match e {
                DiscoverError::Connect(ConnectError::Connect(_)) | DiscoverError::Lost(_) => {
                    Failure::unreachable(text)
                }
                _ => Failure::problem(text),
            }
        })?;
    let targets = targets.into_iter().map(|target| DiscoveredTarget {
        name: target.name,
        portals: target
            .portals
            .into_iter()
            .map(|p| DiscoveredPortal {
                address: p.address,
                tpgt: p.portal_group,
            })
            .collect(),
    });
    Ok(Discovery {
        portal: numeric.to_string(),
        targets: targets.collect(),
    })
}

/// See [`crate::ops::Ops::device_info`].
pub fn device_info(config: &Config, name: &str) -> Result<DeviceInfo, Failure> {
    let device = names::device(config, name)?;
    match &device.kind {
        DeviceKind::Iscsi(unit) => {
            on_shard(|rt| unit_info(base(rt), name, unit, device.wwid.as_deref()))
        }
        DeviceKind::Local(local) => on_shard(|rt| async move {
            let base = base(rt);
            let options = LocalOptions {
                read_only: true,
                ..LocalOptions::new(&local.path)
            };
            let opened = LocalDevice::open(&base.rt, &base.pool, &options)
                .await
                .map_err(|e| Failure::problem(format!("device {name}: {e}")))?;
            let geometry = opened.geometry();
            opened.close().await;
            Ok(DeviceInfo {
                size_bytes: Some(geometry.bytes()),
                block_bytes: Some(geometry.logical_block_bytes),
                physical_block_bytes: Some(geometry.physical_block_bytes),
                write_cache: Some(geometry.write_cache),
                fua: Some(geometry.fua),
                unmap: Some(geometry.discard),
                ..blank(name, model::DeviceKind::Local)
            })
        }),
    }
}

fn blank(name: &str, kind: model::DeviceKind) -> DeviceInfo {
    DeviceInfo {
        name: name.to_owned(),
        kind,
        wwid: None,
        vendor: None,
        product: None,
        revision: None,
        serial: None,
        size_bytes: None,
        block_bytes: None,
        physical_block_bytes: None,
        write_cache: None,
        fua: None,
        unmap: None,
        alua: None,
        fence: None,
        paths: Vec::new(),
    }
}

async fn unit_info(
    base: Base,
    name: &str,
    unit: &IscsiDevice,
    wwid: Option<&str>,
) -> Result<DeviceInfo, Failure> {
    let deadline = base.rt.now() + unit.iscsi.login_timeout;
    let ports = assemble::ports(&base, name, unit, Role::Tool)?;
    let logins: Vec<_> = ports
        .into_iter()
        .map(|port| {
            spawn_local(async move {
                let login = port.open(LoginAs::Own, deadline).await;
                (port, login)
            })
        })
        .collect();
    let mut info = blank(name, model::DeviceKind::Iscsi);
    let mut sessions = Vec::new();
    for login in logins {
        let Ok((port, login)) = login.await else {
            continue;
        };
        let mut path = probed(&port, unit.lun);
        match login {
            Ok(session) => {
                accept(&mut info, &mut path, &session, wwid, &unit.rules);
                sessions.push(session);
            }
            Err(error) => {
                let (state, text) = verdict(error);
                path.state = state;
                path.error = Some(text);
            }
        }
        info.paths.push(path);
    }
    let leave = base.rt.now() + LEAVE;
    for session in sessions {
        session.logout(leave).await;
    }
    Ok(info)
}

/// What a failed login makes of a path, and why; the state is not said twice.
fn verdict(error: LoginError) -> (ProbeState, String) {
    match error {
        LoginError::Unreachable(text) => (ProbeState::Unreachable, text),
        LoginError::Misconfigured(text) => (ProbeState::Misconfigured, text),
        LoginError::NotReady(_) => (ProbeState::Unreachable, error.to_string()),
        LoginError::Refused(_) | LoginError::Protocol(_) => {
            (ProbeState::Refused, error.to_string())
        }
    }
}

fn probed(port: &IscsiPort, lun: u16) -> ProbedPath {
    use blockdev::path::PathPort;
    let name = port.name();
    ProbedPath {
        portal: name.portal,
        target: name.target,
        lun,
        state: ProbeState::Ready,
        error: None,
        tpgt: None,
        isid: isid::text(port.isid()),
        login_ms: None,
        header_digest: None,
        data_digest: None,
    }
}

/// Takes in what a path that answers says; the first one describes the unit.
fn accept(
    info: &mut DeviceInfo,
    path: &mut ProbedPath,
    session: &Rc<IscsiSession>,
    wanted: Option<&str>,
    rules: &UnitRules,
) {
    let (unit, facts) = (session.identity(), session.facts());
    path.tpgt = Some(unit.portal_group);
    path.login_ms = Some((facts.login_time.as_secs_f64() * 1e5).round() / 100.0);
    path.header_digest = Some(facts.header_digest.to_owned());
    path.data_digest = Some(facts.data_digest.to_owned());
    let expected = wanted.map(str::to_owned).or_else(|| info.wwid.clone());
    if expected.is_some() && expected != unit.wwid {
        path.state = ProbeState::Misconfigured;
        path.error = Some(format!(
            "WWID {} where {} is expected: this portal leads to another unit",
            unit.wwid.as_deref().unwrap_or("(none)"),
            expected.as_deref().unwrap_or("(none)")
        ));
        return;
    }
    if let Err(why) = rules.fit(&assemble::unit_facts(&unit)) {
        path.state = ProbeState::Misconfigured;
        path.error = Some(why);
    }
    if info.vendor.is_some() {
        return;
    }
    let geometry = &unit.geometry;
    info.wwid.clone_from(&unit.wwid);
    info.vendor = Some(unit.vendor.clone());
    info.product = Some(unit.product.clone());
    info.revision = Some(unit.revision.clone());
    info.serial = Some(unit.serial.clone());
    info.size_bytes = Some(geometry.bytes());
    info.block_bytes = Some(geometry.logical_block_bytes);
    info.physical_block_bytes = Some(geometry.physical_block_bytes);
    info.write_cache = Some(geometry.write_cache);
    info.fua = Some(geometry.fua);
    info.unmap = Some(geometry.discard);
    let alua = ["none", "implicit", "explicit", "both"];
    info.alua = alua
        .get(usize::from(unit.tpgs))
        .map(|&word| word.to_owned());
    info.fence = Some(crate::node::survey::fence_grade(mpath::FenceGrade::of(
        &unit,
    )));
}
