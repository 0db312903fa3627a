//! To which file system the node's volumes belong (P8).

use std::cell::Cell;
use std::rc::Rc;

use blockdev::LocalFuture;
use moosefs::master::executor::Ownership;

use crate::node::volume::VolumeLife;

/// Asks each volume before the chunk list goes to a master.
pub(crate) struct NodeOwner {
    pub(crate) volumes: Vec<Rc<VolumeLife>>,
    /// The file system of the master that has accepted us, with our number there.
    pub(crate) metaid: Rc<Cell<Option<(u64, u16)>>>,
    pub(crate) csid: Box<dyn Fn() -> u16>,
}

impl Ownership for NodeOwner {
    fn adopt_metaid(&self, metaid: u64) -> LocalFuture<Result<(), String>> {
        let (volumes, shared, csid) = (self.volumes.clone(), self.metaid.clone(), (self.csid)());
        Box::pin(async move {
            // Volumes taken in from here on are not announced one by one: the list that follows has them.
            shared.set(None);
            let mut refusals = Vec::new();
            let mut accepted = 0;
            for volume in &volumes {
                if volume.store.borrow().is_none() {
                    continue;
                }
                match volume.adopt(metaid, csid).await {
                    Ok(()) => accepted += 1,
                    Err(text) => refusals.push(format!("volume {}: {text}", volume.config.name)),
                }
            }
            if accepted == 0 && !refusals.is_empty() {
                return Err(refusals.join("; "));
            }
            for text in refusals {
                tracing::warn!("left out of the registration: {text}");
            }
            shared.set(Some((metaid, csid)));
            Ok(())
        })
    }
}
