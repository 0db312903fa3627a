//! `antler discover` and `antler device info`: looking at targets without touching a running node.
//!
//! Every session uses the role `tool`, so its ISID is another than a running `serve`'s and ends none of its
//! sessions. All portals are asked at once, under one deadline.

use std::future::Future;
use std::io::{IsTerminal, Write};
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
use tokio::task::{spawn_local, JoinHandle};

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
    F: Future<Output = Result<T, Failure>>,
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
        let all = async {
            let mut answers = Vec::new();
            for one in asking {
                answers.push(
                    one.await
                        .unwrap_or_else(|e| Err(Failure::problem(e.to_string()))),
                );
            }
            answers
        };
        Ok(awaited(&base.rt, "asking for targets", all).await)
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
                DiscoverError::Connect(error) => login_failure(&error.into(), text),
                DiscoverError::Lost(cause) => {
                    login_failure(&ConnectError::Lost(cause).into(), text)
                }
                DiscoverError::Malformed(_) => Failure::problem(text),
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

/// How a tool ends whose login failed: the same for all of them.
pub(crate) fn login_failure(error: &LoginError, text: String) -> Failure {
    match error {
        LoginError::Unreachable(_) | LoginError::NotReady(_) => Failure::unreachable(text),
        LoginError::Refused(_) | LoginError::Misconfigured(_) | LoginError::Protocol(_) => {
            Failure::problem(text)
        }
    }
}

/// Awaits `work`. A person at a terminal sees on standard error what it is and for how long it has
/// been going on, unless it ends within a second; a pipe sees nothing.
pub(crate) async fn awaited<T>(rt: &Rt, what: &str, work: impl Future<Output = T>) -> T {
    let mut stderr = std::io::stderr();
    match stderr.is_terminal() {
        true => awaited_on(rt, &mut stderr, what, work).await,
        false => work.await,
    }
}

async fn awaited_on<T>(
    rt: &Rt,
    out: &mut impl Write,
    what: &str,
    work: impl Future<Output = T>,
) -> T {
    let begun = rt.now();
    let mut work = std::pin::pin!(work);
    let mut is_shown = false;
    loop {
        let look_at = rt.now() + Duration::from_secs(1);
        if let Ok(done) = rt.by(look_at, work.as_mut()).await {
            if is_shown {
                let _ = write!(out, "\r\x1b[K");
            }
            return done;
        }
        is_shown = true;
        let _ = write!(out, "\r{what}: {} s", (rt.now() - begun).as_secs());
        let _ = out.flush();
    }
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
            let path = probed(&port, unit.lun);
            let login = async move { port.open(LoginAs::Own, deadline).await };
            (path, spawn_local(login))
        })
        .collect();
    let mut info = blank(name, model::DeviceKind::Iscsi);
    let mut sessions = Vec::new();
    for (mut path, login) in logins {
        match awaited(&base.rt, "logging in", ended(login)).await {
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

/// How a login ended. No path is left out, not even if its task was lost.
async fn ended<T>(login: JoinHandle<Result<T, LoginError>>) -> Result<T, LoginError> {
    match login.await {
        Ok(result) => result,
        Err(error) => Err(LoginError::Unreachable(format!(
            "login was not carried through: {error}"
        ))),
    }
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
        redirected_to: None,
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
    let portal = session.portal().to_string();
    path.redirected_to = (portal != path.portal).then_some(portal);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::ExitStatus;
    use blockdev::sim::VirtualRt;
    use std::net::TcpListener;

    /// A login that was lost is a path that failed, not a path that is not there.
    #[test]
    fn a_lost_login_is_an_error_of_its_path() {
        let found = on_shard(|_| async {
            let login =
                spawn_local(async { std::future::pending::<Result<(), LoginError>>().await });
            login.abort();
            Ok(ended(login).await)
        });
        let Ok(Err(error)) = found else {
            panic!("{found:?}");
        };
        let (state, text) = verdict(error);
        assert_eq!(state, ProbeState::Unreachable);
        assert!(text.contains("not carried through"), "{text}");
    }

    #[test]
    fn progress_is_shown_by_the_second_and_wiped() {
        let world = VirtualRt::new(1);
        let rt = world.rt();
        let shown = world.block_on(async move {
            let mut out = Vec::new();
            awaited_on(&rt, &mut out, "fast", rt.sleep(Duration::from_millis(900))).await;
            assert!(out.is_empty());
            awaited_on(&rt, &mut out, "slow", rt.sleep(Duration::from_millis(2500))).await;
            String::from_utf8(out).expect("text")
        });
        assert_eq!(shown, "\rslow: 1 s\rslow: 2 s\r\x1b[K");
    }

    /// 3 where nobody answers to the end, 1 where the answer breaks the protocol.
    #[test]
    fn discovery_tells_a_peer_that_hangs_up_from_one_that_talks_nonsense() {
        for (answer, exit) in [
            (&b""[..], ExitStatus::Unreachable),
            (&[0xff; 48], ExitStatus::Problem),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
            let port = listener.local_addr().expect("bound").port();
            let peer = std::thread::spawn(move || {
                use std::io::Read;
                let (mut stream, _) = listener.accept().expect("a connection");
                let _ = stream.read(&mut [0; 48]);
                let _ = stream.write_all(answer);
            });
            let iscsi = iscsi_of_no_file();
            let portal = HostPort {
                host: "127.0.0.1".to_owned(),
                port,
            };
            let found = discover(&[portal], &iscsi);
            peer.join().expect("peer");
            let failure = found[0].as_ref().expect_err("no target");
            assert_eq!(failure.exit, exit, "{failure}");
        }
    }

    fn iscsi_of_no_file() -> Iscsi {
        let environment = crate::config::Environment::here();
        let loaded =
            crate::config::parse("defaults", "", std::path::Path::new("none"), &environment);
        loaded.config.expect("defaults are right").iscsi
    }

    /// The same failure ends every tool in the same way.
    #[test]
    fn one_mapping_for_all_tools() {
        let text = String::new;
        for (error, exit) in [
            (LoginError::Unreachable(text()), ExitStatus::Unreachable),
            (LoginError::NotReady(text()), ExitStatus::Unreachable),
            (LoginError::Refused(text()), ExitStatus::Problem),
            (LoginError::Misconfigured(text()), ExitStatus::Problem),
            (LoginError::Protocol(text()), ExitStatus::Problem),
        ] {
            assert_eq!(login_failure(&error, text()).exit, exit, "{error:?}");
        }
    }
}
