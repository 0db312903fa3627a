//! To which file system the node's volumes belong (P8).

use std::cell::Cell;
use std::rc::Rc;

use blockdev::LocalFuture;
use moosefs::master::executor::Ownership;

use crate::node::lives::Lives;

/// Asks each volume before the chunk list goes to a master.
pub(crate) struct NodeOwner {
    pub(crate) volumes: Lives,
    /// The file system of the master that has accepted us, with our number there.
    pub(crate) metaid: Rc<Cell<Option<(u64, u16)>>>,
    pub(crate) csid: Box<dyn Fn() -> u16>,
}

impl Ownership for NodeOwner {
    fn adopt_metaid(&self, metaid: u64) -> LocalFuture<Result<(), String>> {
        let (volumes, shared, csid) = (self.volumes.all(), self.metaid.clone(), (self.csid)());
        Box::pin(async move {
            // Volumes taken in from here on are not announced one by one: the list that follows has them.
            shared.set(None);
            let (mut accepted, mut refused) = (0, Vec::new());
            for volume in &volumes {
                if volume.store.borrow().is_none() {
                    continue;
                }
                match volume.adopt(metaid, csid).await {
                    Ok(()) => accepted += 1,
                    Err(refusal) => refused.push((volume, refusal)),
                }
            }
            // If nothing here is this master's it is told nothing, and whoever reads goes on reading. Beside
            // volumes that are its own the others must go, for ids of two file systems say nothing about each
            // other.
            let foreign = refused.iter().filter(|(_, refusal)| refusal.is_foreign);
            let foreign: Vec<&str> = foreign.map(|(_, refusal)| refusal.text.as_str()).collect();
            if accepted == 0 && !foreign.is_empty() {
                return Err(foreign.join("; "));
            }
            for (volume, _) in &refused {
                volume.leave_out();
            }
            shared.set(Some((metaid, csid)));
            Ok(())
        })
    }
}
