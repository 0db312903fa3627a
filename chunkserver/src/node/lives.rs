//! The volumes of a node. A reload adds to them while others walk over them.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::task::spawn_local;

use super::slot::LegSlot;
use super::volume::{Shared, VolumeLife};
use crate::config::Config;

/// In the order of the configuration. Cloning shares them.
#[derive(Clone, Default)]
pub(crate) struct Lives(Rc<RefCell<Vec<Rc<VolumeLife>>>>);

impl Lives {
    /// As they are now.
    pub(crate) fn all(&self) -> Vec<Rc<VolumeLife>> {
        self.0.borrow().clone()
    }

    pub(crate) fn named(&self, name: &str) -> Option<Rc<VolumeLife>> {
        let volumes = self.0.borrow();
        volumes.iter().find(|v| v.config.name == name).cloned()
    }

    /// Legs and spares of all volumes.
    pub(crate) fn slots(&self) -> Vec<Rc<LegSlot>> {
        let volumes = self.0.borrow();
        volumes.iter().flat_map(|v| v.legs.clone()).collect()
    }

    /// Begins every volume of the configuration that is not there yet.
    pub(crate) fn begin(&self, shared: &Shared, config: &Config) {
        for volume in &config.volumes {
            if self.named(&volume.name).is_some() {
                continue;
            }
            let life = VolumeLife::new(shared, config, volume);
            self.0.borrow_mut().push(life.clone());
            spawn_local(life.run());
        }
    }
}
