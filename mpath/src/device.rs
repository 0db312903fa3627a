//! The device as the layer above and operators hold it.

use crate::config::{Config, Role};
use crate::inner::Inner;
use crate::keeper::keep;
use crate::news::Trace;
use crate::path::{Path, Phase};
use crate::snapshot::Snapshot;
use blockdev::path::{Isid, PathPort, UnitIdentity};
use blockdev::{
    Admission, BlockDevice, Completion, Event, Geometry, Instant, IoCtx, Kind, Op, PathCause, Rt,
    Sector,
};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use thiserror::Error;

/// How long [`MultipathDevice::close`] and a removed path let commands end before they are cut.
const LEAVE: Duration = Duration::from_secs(1);

/// Why a device could not be opened in time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("device {name}: no path is up ({})", .paths.join("; "))]
pub struct OpenError {
    /// The device.
    pub name: String,
    /// `portal: what went wrong`, one per path.
    pub paths: Vec<String>,
}

/// Why an operator's request about a path failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("device {device} has no path {portal:?}; its paths are {known}")]
pub struct NoSuchPath {
    /// The device.
    pub device: String,
    /// What was asked for.
    pub portal: String,
    /// What there is.
    pub known: String,
}

/// N paths to one logical unit, seen as one device. See the crate's documentation.
///
/// Dropping it closes every session abruptly; [`MultipathDevice::close`] logs out.
pub struct MultipathDevice {
    inner: Rc<Inner>,
}

impl MultipathDevice {
    /// Begins to log in on all `ports` at once. Operations are accepted once the first path is
    /// up: await [`MultipathDevice::opened`].
    pub fn new(rt: Rt, config: Config, ports: Vec<Rc<dyn PathPort>>) -> MultipathDevice {
        let inner = Inner::new(rt, config);
        let device = MultipathDevice { inner };
        for port in ports {
            device.add_path(port);
        }
        device
    }

    /// `Ok` once a path serves, so that the geometry is known.
    ///
    /// # Errors
    /// At `deadline`, or before it when every path is misconfigured or refused: what each path
    /// says. The device goes on trying; ask again.
    pub async fn opened(&self, deadline: Instant) -> Result<(), OpenError> {
        let inner = &self.inner;
        loop {
            let seen = inner.changed.seen();
            let paths = inner.all_paths();
            if paths.iter().any(|p| p.is_serving()) {
                return Ok(());
            }
            let is_hopeless =
                !paths.is_empty() && paths.iter().all(|p| p.phase.get() == Phase::Misconfigured);
            let is_over = inner
                .rt
                .by(deadline, async {
                    if !is_hopeless {
                        inner.changed.since(seen).await;
                    }
                })
                .await
                .is_err();
            if is_hopeless || is_over {
                return Err(self.open_error());
            }
        }
    }

    fn open_error(&self) -> OpenError {
        let describe = |p: &Rc<Path>| {
            let error = p.last_error.borrow();
            let text = error.as_deref().unwrap_or("no answer yet");
            format!("{}: {text}", p.name.portal)
        };
        OpenError {
            name: self.inner.name(),
            paths: self.inner.all_paths().iter().map(describe).collect(),
        }
    }

    /// Name of the device.
    pub fn name(&self) -> String {
        self.inner.name()
    }

    /// Tells whether another leg is in sync, which decides between waiting and failing fast.
    /// With no path left, requests that a leg alone may keep waiting do so for the whole of
    /// `no_path_retry` from now on.
    pub fn set_role(&self, role: Role) {
        let before = self.inner.queue_time();
        if self.inner.role.replace(role) != role {
            self.inner.rearm_queueing(before);
        }
    }

    /// The role last set.
    pub fn role(&self) -> Role {
        self.inner.role.get()
    }

    /// The ISIDs (with the initiator names they were used under) that a claim of an earlier run
    /// or owner records. The next `Op::Fence` ends what is left of them, of this device's derived
    /// ISIDs, and of every tainted session; it is `Ok` only after that. Without this call the
    /// first `Op::Fence` covers the derived ISIDs alone.
    pub fn startup_fence(&self, recorded: Vec<(String, Isid)>) {
        self.inner.set_earlier(recorded);
    }

    /// Tells the portal group tag of a path that was not reached in this run yet (from discovery
    /// or a claim). Where reinstatement is bound to a portal group, the ISIDs of a path of unknown
    /// group can be fenced through its own portal only.
    ///
    /// # Errors
    /// If there is no such path.
    pub fn set_portal_group(&self, portal: &str, tag: u16) -> Result<(), NoSuchPath> {
        self.find(portal)?.told_group.set(Some(tag));
        Ok(())
    }

    /// Own ISIDs of all paths, to be recorded in a claim.
    pub fn isids(&self) -> Vec<Isid> {
        self.inner.all_paths().iter().map(|p| p.isid).collect()
    }

    /// State for tables and JSON.
    pub fn snapshot(&self) -> Snapshot {
        self.inner.snapshot()
    }

    /// The last requests that did not go straight through, oldest first.
    pub fn traces(&self) -> Vec<Trace> {
        self.inner.news.traces()
    }

    /// What the unit said of itself when it was first reached.
    pub fn identity(&self) -> Option<Rc<UnitIdentity>> {
        self.inner.unit.borrow().clone()
    }

    /// The settings in use.
    pub fn config(&self) -> Config {
        self.inner.config.borrow().clone()
    }

    /// Changes timings and policies; paths stay as they are. Settings that refuse the unit take effect
    /// at the next login of each path.
    pub fn reconfigure(&self, config: Config) {
        let before = self.inner.queue_time();
        *self.inner.config.borrow_mut() = config;
        self.inner.rearm_queueing(before);
        if let Some(unit) = self.identity() {
            if let Err(why) = self.inner.fit(&unit) {
                tracing::warn!("device {}: {why}", self.name());
            }
        }
        self.inner.regroup();
        self.inner.sweep_by(self.inner.rt.now());
    }

    /// Adds a path and begins to log in on it.
    pub fn add_path(&self, port: Rc<dyn PathPort>) {
        let index = self.inner.paths.borrow().len();
        let path = Path::new(index, port);
        self.inner.paths.borrow_mut().push(path.clone());
        self.inner.regroup();
        let rt = self.inner.rt.clone();
        let task = keep(Rc::downgrade(&self.inner), path, rt.clone());
        rt.spawn(task);
    }

    /// Takes a path away for good: its commands end, then it logs out.
    ///
    /// # Errors
    /// If there is no such path.
    pub fn remove_path(&self, portal: &str) -> Result<(), NoSuchPath> {
        let path = self.find(portal)?;
        self.take_down(&path, Phase::Removed, "removed");
        self.inner.regroup();
        Ok(())
    }

    /// Takes a path down until [`MultipathDevice::reinstate_path`]: its commands end (or move
    /// after 1 s), then it logs out.
    ///
    /// # Errors
    /// If there is no such path.
    pub fn fail_path(&self, portal: &str) -> Result<(), NoSuchPath> {
        let path = self.find(portal)?;
        self.take_down(&path, Phase::Down, "failed by the operator");
        Ok(())
    }

    fn take_down(&self, path: &Rc<Path>, phase: Phase, why: &'static str) {
        self.inner.leave(path, self.inner.rt.now() + LEAVE, why);
        path.phase.set(phase);
        path.note_error(why);
        path.signal.notify();
        self.inner.changed.notify();
    }

    /// Tells that nothing gets through to a portal any more, by the word of this host's own network
    /// (no carrier, no address, no route): its session is ended and its commands move at once.
    ///
    /// # Errors
    /// If there is no such path.
    pub fn link_down(&self, portal: &str, why: &str) -> Result<(), NoSuchPath> {
        let path = self.find(portal)?;
        if let Some(epoch) = path.epoch() {
            let cause = PathCause::Connection(format!("link down: {why}"));
            self.inner.path_lost(&path, epoch, &cause);
        }
        Ok(())
    }

    /// Tells that the way to a portal is back, by the word of this host's own network: a path without
    /// a session logs in at once. A login that began before is begun anew, for its packets went nowhere.
    ///
    /// # Errors
    /// If there is no such path.
    pub fn link_up(&self, portal: &str) -> Result<(), NoSuchPath> {
        let path = self.find(portal)?;
        if path.phase.get() == Phase::Connecting {
            path.is_way_back.set(true);
            path.signal.notify();
        }
        Ok(())
    }

    /// Lets a path log in again at once, whatever held it back, and forgives its failures.
    ///
    /// # Errors
    /// If there is no such path.
    pub fn reinstate_path(&self, portal: &str) -> Result<(), NoSuchPath> {
        let path = self.find(portal)?;
        path.forgive();
        if matches!(path.phase.get(), Phase::Down | Phase::Misconfigured) {
            path.phase.set(Phase::Connecting);
        }
        path.signal.notify();
        Ok(())
    }

    fn find(&self, portal: &str) -> Result<Rc<Path>, NoSuchPath> {
        let paths = self.inner.all_paths();
        let present = || paths.iter().filter(|p| p.phase.get() != Phase::Removed);
        let found = present().find(|p| p.name.portal == portal);
        // `10.0.0.1` means `10.0.0.1:3260` if nothing else fits.
        let short = format!("{portal}:");
        let found = found.or_else(|| present().find(|p| p.name.portal.starts_with(&short)));
        found.cloned().ok_or_else(|| NoSuchPath {
            device: self.name(),
            portal: portal.into(),
            known: present()
                .map(|p| p.name.portal.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// Logs out on every path and answers everything left with [`Kind::Closed`].
    pub async fn close(&self) {
        let inner = &self.inner;
        let deadline = inner.rt.now() + LEAVE;
        let _ = inner.rt.by(deadline, inner.clear_keys()).await;
        inner.is_closed.set(true);
        let mut byes = Vec::new();
        for path in inner.all_paths() {
            if let Some(live) = path.live() {
                byes.push(live.session.logout(deadline));
            }
            path.signal.notify();
        }
        for bye in byes {
            bye.await;
        }
        self.shut();
    }

    fn shut(&self) {
        let inner = &self.inner;
        inner.is_closed.set(true);
        inner.fail_everything(&Kind::Closed);
        inner.close_fence();
        for path in inner.all_paths() {
            if let Some(live) = path.epoch().and_then(|epoch| path.detach(epoch)) {
                path.phase.set(Phase::Removed);
                if live.session.is_alive() {
                    live.session.abort(PathCause::Administrative("closed"));
                }
            }
            path.signal.notify();
        }
        inner.changed.notify();
    }
}

impl Drop for MultipathDevice {
    fn drop(&mut self) {
        self.shut();
    }
}

impl BlockDevice for MultipathDevice {
    fn geometry(&self) -> Geometry {
        self.inner.geometry.get()
    }

    fn submit(&self, op: Op, ctx: IoCtx) -> Completion {
        self.inner.submit(op, ctx)
    }

    fn tainted(&self, range: Range<Sector>) -> bool {
        self.inner.taints.borrow().touches(&range)
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        let event = self.inner.news.poll(cx);
        match &event {
            Poll::Ready(Event::Changed(geometry)) => self.inner.geometry.set(*geometry),
            Poll::Ready(Event::CacheLost) => self.inner.cache.is_loss_untold.set(false),
            _ => {}
        }
        event
    }

    fn set_admission(&self, gate: Weak<dyn Admission>) {
        RefCell::replace(&self.inner.gate, Some(gate));
    }
}
