//! Paths of a unit in service that come and go at a reload.
//!
//! A path whose portal is gone from the configuration leaves at once. Its ISID stays locked and in the claim as
//! long as the unit is open, for its session may have left writes behind that only a fence under that ISID ends;
//! so the same path comes back without more ado.
//!
//! A path that is new may write nothing before the claim on its unit names it (P11): its ISID is locked against
//! other processes of this node, the array claims for it, and only then there is a path. As long as that cannot be
//! done the path is held back, which is said once, and tried again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use blockdev::path::PathName;
use mpath::MultipathDevice;

use super::slot::LegSlot;
use super::volume::VolumeLife;
use crate::assemble;
use crate::config::{DeviceKind, IscsiDevice};

/// What could not be done is tried again after so long.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// What is to become of a unit's paths.
#[derive(Default)]
pub(super) struct DuePaths {
    /// Some are to be added.
    are_due: Cell<bool>,
    /// That is being done.
    adding: Cell<bool>,
    /// Reloads so far: what was begun before one is not finished after it.
    reloads: Cell<u64>,
    /// Why they are held back, as it was last said.
    held_back: RefCell<Option<String>>,
}

impl LegSlot {
    /// Removes the paths that `wanted` has not, takes back those that were removed before, and notes whether
    /// others are to be added.
    pub(super) fn follow_portals(&self, unit: &MultipathDevice, wanted: &IscsiDevice) {
        let device = &self.device.name;
        self.paths.reloads.set(self.paths.reloads.get() + 1);
        let wanted = match assemble::path_names(device, wanted) {
            Ok(names) => names,
            Err(failure) => {
                tracing::error!("{failure}");
                return;
            }
        };
        for name in wanted.iter().filter(|name| unit.bring_back(name)) {
            tracing::info!("device {device}: path {} is back", in_words(name));
        }
        for name in unit.retain_paths(|name| wanted.contains(name)) {
            tracing::info!("device {device}: path {} is removed", in_words(&name));
        }
        let present = unit.paths();
        let are_due = wanted.iter().any(|name| !present.contains(name));
        self.paths.are_due.set(are_due);
        *self.paths.held_back.borrow_mut() = None;
    }
}

impl VolumeLife {
    /// Begins to add the paths that are due, each unit's in a task of its own: a leg that does not answer delays
    /// no other (P7).
    pub(super) fn begin_adding_paths(self: &Rc<Self>) {
        for slot in &self.legs {
            if !slot.paths.are_due.get() || slot.paths.adding.replace(true) {
                continue;
            }
            let (me, slot) = (self.clone(), slot.clone());
            self.base.rt.spawn(async move {
                if let Err(why) = me.add_paths(&slot).await {
                    let said = slot.paths.held_back.replace(Some(why.clone()));
                    if said.as_ref() != Some(&why) {
                        let (volume, device) = (&me.config.name, &slot.device.name);
                        tracing::warn!(
                            "volume {volume}: new paths of {device} are held back: {why}"
                        );
                    }
                    me.base.rt.sleep(TRY_AGAIN).await;
                }
                slot.paths.adding.set(false);
            });
        }
    }

    /// Adds what is due to a unit; what has changed meanwhile leaves it due.
    async fn add_paths(&self, slot: &LegSlot) -> Result<(), String> {
        let reload = slot.paths.reloads.get();
        let device = slot.current.borrow().clone();
        let (Some(unit), DeviceKind::Iscsi(wanted)) = (slot.unit(), &device.kind) else {
            // It is opened anew with all of them.
            slot.paths.are_due.set(false);
            return Ok(());
        };
        let how = assemble::Opening {
            credentials: slot.credentials.clone(),
            ..self.opening()
        };
        let ports = assemble::further_ports(&self.base, &device, wanted, &how, &unit)
            .map_err(|failure| failure.text)?;
        let array = self.array.borrow().clone();
        if let Some(array) = &array {
            let isids: Vec<_> = ports.iter().map(|port| port.isid()).collect();
            let claimed = array.claim_sessions(&device.name, &isids).await;
            claimed.map_err(|error| error.to_string())?;
        } else if self.is_beginning.get() {
            // The array that comes claims for the paths that were there when it began.
            return Ok(());
        }
        // From here on nothing waits, so that what holds now holds when the paths are there.
        let is_same_array = match (&array, &*self.array.borrow()) {
            (Some(before), Some(now)) => Rc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        let is_same_unit = slot.unit().is_some_and(|now| Rc::ptr_eq(&unit, &now));
        if !is_same_array || !is_same_unit || slot.paths.reloads.get() != reload {
            return Ok(());
        }
        for port in ports {
            let name = in_words(&port.name());
            tracing::info!("device {}: path {name} is added", device.name);
            unit.add_path(port);
        }
        slot.paths.are_due.set(false);
        *slot.paths.held_back.borrow_mut() = None;
        Ok(())
    }
}

/// Portal, and local address if it is configured.
fn in_words(name: &PathName) -> String {
    match &name.source {
        None => name.portal.clone(),
        Some(source) => format!("{} from {source}", name.portal),
    }
}
