//! Aliases of units: by `multipaths` of multipath.conf, or by `user_friendly_names` from the bindings file.
//!
//! An alias is for the eye. It is looked up once the unit has said its WWID, on a thread of its own, for a
//! slow disk must not delay requests; until then, and where that fails, the device goes by its name.

use std::rc::Rc;

use crate::assemble;
use crate::bindings;
use crate::config::{Config, DeviceKind};
use crate::node::slot::LegSlot;

/// Begins to look for the alias of every unit that has none yet.
pub(crate) fn look(config: &Config, slots: &[Rc<LegSlot>]) {
    for slot in slots {
        let Some(unit) = slot.unit().and_then(|unit| unit.identity()) else {
            continue;
        };
        let Some(wwid) = unit.wwid.as_deref() else {
            continue;
        };
        if slot.alias.borrow().0 == wwid {
            continue;
        }
        *slot.alias.borrow_mut() = (wwid.to_owned(), None);
        let device = config.device(&slot.device.name);
        let Some(DeviceKind::Iscsi(device)) = device.map(|d| &d.kind) else {
            continue;
        };
        // A unit that is refused has no name.
        let Ok(fitted) = device.rules.fit(&assemble::unit_facts(&unit)) else {
            continue;
        };
        if fitted.alias.is_some() {
            slot.alias.borrow_mut().1 = fitted.alias;
        } else if fitted.multipath.user_friendly_names {
            let taken = device.rules.aliases().map(str::to_owned).collect();
            let file = config.bindings_file(&fitted.multipath);
            let prefix = fitted.multipath.alias_prefix;
            tokio::task::spawn_local(bind(slot.clone(), file, prefix, wwid.to_owned(), taken));
        }
    }
}

async fn bind(
    slot: Rc<LegSlot>,
    file: std::path::PathBuf,
    prefix: String,
    wwid: String,
    taken: Vec<String>,
) {
    let (path, asked) = (file.clone(), wwid.clone());
    let found =
        tokio::task::spawn_blocking(move || bindings::bind(&path, &prefix, &asked, &taken)).await;
    let name = &slot.device.name;
    match found {
        Ok(Ok(alias)) => {
            let mut current = slot.alias.borrow_mut();
            if current.0 == wwid {
                current.1 = Some(alias);
            }
        }
        Ok(Err(e)) => {
            tracing::warn!(
                "device {name}: no alias: bindings_file {}: {e}",
                file.display()
            );
        }
        Err(e) => tracing::warn!("device {name}: no alias: {e}"),
    }
}
