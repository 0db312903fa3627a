//! Spares: devices that take the place of a leg that stays away.
//!
//! A leg that is late or whose storage node restarts comes back by itself and is brought up to date by its bits,
//! which costs far less than filling another device. So a spare is taken only for a leg that the array has done
//! without for [`PATIENCE`], and only if the device is blank: one that holds anything needs a command.

use std::rc::Rc;
use std::time::Duration;

use mpath::Role;
use raid::ArraySnapshot;

use super::slot::LegSlot;
use super::volume::VolumeLife;
use crate::model;

/// A leg is given up for a spare after so long.
const PATIENCE: Duration = Duration::from_secs(30);

impl VolumeLife {
    /// Tells legs their role, looks how long they have been out, and lets a spare take the place of one that stays
    /// away.
    pub(super) async fn look_after_legs(&self) {
        let Some(array) = self.array.borrow().clone() else {
            return;
        };
        let snapshot = array.snapshot();
        self.tell_roles(&snapshot);
        let now = self.base.rt.now();
        let mut lost = None;
        for slot in self.legs.iter() {
            if !is_out(&snapshot, slot) {
                slot.out_since.set(None);
                continue;
            }
            let since = slot.out_since.get().unwrap_or(now);
            slot.out_since.set(Some(since));
            if now.since(since) >= PATIENCE {
                lost.get_or_insert(slot.device.name.clone());
            }
        }
        let Some(lost) = lost.filter(|_| snapshot.sync.is_none()) else {
            return;
        };
        let Some(spare) = self.ready_spare(&snapshot).await else {
            return;
        };
        let Some(device) = spare.block() else { return };
        let name = &spare.device.name;
        match array.replace(&lost, name, device, false, false).await {
            Ok(_) => {
                tracing::warn!(
                    "volume {}: spare {name} takes the place of leg {lost}, which has been out for {} s",
                    self.config.name,
                    PATIENCE.as_secs()
                );
                spare.attached.set(true);
            }
            Err(error) => spare.note_problem(&self.config.name, format!("spare {name}: {error}")),
        }
    }

    /// A leg that came after the array began is told, too, whether it is the only one in sync: then its paths queue
    /// instead of failing.
    fn tell_roles(&self, snapshot: &ArraySnapshot) {
        let in_sync = |leg: &&raid::LegSnapshot| leg.state == "in-sync";
        let count = snapshot.legs.iter().filter(in_sync).count();
        for leg in snapshot.legs.iter().filter(in_sync) {
            let mut slots = self.legs.iter();
            let slot = slots.find(|slot| slot.device.name == leg.device);
            if let Some(unit) = slot.and_then(|slot| slot.unit()) {
                unit.set_role(match count {
                    1 => Role::Alone,
                    _ => Role::MirrorLeg,
                });
            }
        }
    }

    async fn ready_spare(&self, snapshot: &ArraySnapshot) -> Option<Rc<LegSlot>> {
        for slot in self.legs.iter().filter(|slot| slot.is_spare) {
            let is_used = snapshot.legs.iter().any(|l| l.device == slot.device.name);
            if !is_used && slot.is_ready(&self.base.rt).await {
                return Some(slot.clone());
            }
        }
        None
    }

    /// Spares that are idle, for `antler arrays`.
    pub(super) fn spare_models(&self, used: &[model::Leg]) -> Vec<model::Leg> {
        let idle = |slot: &&Rc<LegSlot>| {
            slot.is_spare && !used.iter().any(|leg| leg.device == slot.device.name)
        };
        let spares = self.legs.iter().filter(idle);
        let state = |slot: &LegSlot| match slot.leg().is_some() {
            true => model::LegState::Spare,
            false => model::LegState::Missing,
        };
        spares
            .map(|slot| super::survey::idle_leg(&slot.device.name, None, state(slot)))
            .collect()
    }
}

/// Whether the array has this leg, and does without it. One that is late comes back by itself.
fn is_out(snapshot: &ArraySnapshot, slot: &LegSlot) -> bool {
    let mut legs = snapshot.legs.iter();
    let leg = legs.find(|leg| leg.device == slot.device.name);
    leg.is_some_and(|leg| ["faulty", "missing"].contains(&leg.state))
}
