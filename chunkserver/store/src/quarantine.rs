//! Deleted chunks are held back (P8): listed, restorable, purged by age, by command, or oldest
//! first when space is needed.

use crate::core_state::Core;
use crate::directory::{FLAG_ANY_VERSION, FLAG_HARD};
use crate::journal::record::Record;
use crate::layout::UNIT_BYTES;
use crate::news::News;
use crate::store::Store;
use crate::write::Need;
use chunk_api::{ChunkError, ChunkId, ChunkVersion, Report};

/// A deleted chunk that is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The chunk.
    pub id: ChunkId,
    /// Its version.
    pub version: ChunkVersion,
    /// When it was deleted, Unix seconds.
    pub deleted_s: u32,
    /// When it is purged at the latest, Unix seconds; `None`: only by command.
    pub purge_after_s: Option<u64>,
    /// The order named any version.
    pub any_version: bool,
    /// Bytes of data it holds on to (shared ones included).
    pub bytes: u64,
}

impl Store {
    /// What is held back, oldest deletion first.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        let core = self.core.borrow();
        let age = self.options.purge_after.as_secs();
        let entry = |(_, number): (u32, u32)| {
            let slot = core.dir.get(number);
            Quarantined {
                id: ChunkId(slot.id),
                version: ChunkVersion(slot.version),
                deleted_s: slot.deleted_at,
                purge_after_s: (slot.flags & FLAG_HARD == 0)
                    .then_some(u64::from(slot.deleted_at) + age),
                any_version: slot.flags & FLAG_ANY_VERSION != 0,
                bytes: u64::from(slot.granules) * UNIT_BYTES as u64,
            }
        };
        core.dir.quarantine().map(entry).collect()
    }

    /// The newest deletion of a chunk, in that version unless it is 0.
    fn find_quarantined(&self, id: ChunkId, version: ChunkVersion) -> Result<u32, ChunkError> {
        let core = self.core.borrow();
        let mut newest_first = core.dir.quarantine().rev();
        let found = newest_first.find(|&(_, number)| {
            let slot = core.dir.get(number);
            slot.id == id.0 && version.accepts(ChunkVersion(slot.version))
        });
        found.map(|(_, number)| number).ok_or(ChunkError::NoChunk)
    }

    /// Puts the newest deletion of a chunk back, durably, and reports it as new.
    /// [`ChunkError::Exists`] if the id is held, [`ChunkError::NoChunk`] if nothing is held back.
    pub async fn restore(&self, id: ChunkId, version: ChunkVersion) -> Result<(), ChunkError> {
        let place = self.order.enter(id.0);
        place.reached().await;
        let slot = self.find_quarantined(id, version)?;
        let still = |core: &Core| match core.dir.find(id.0) {
            Some(_) => Err(ChunkError::Exists),
            None => crate::ops::is_quarantined(core.dir.get(slot).kind),
        };
        let seq = self.commit(&Record::Restore { slot }, still).await?;
        let version = ChunkVersion(self.core.borrow().dir.get(slot).version);
        self.end_suspicion();
        drop(place);
        self.durable(seq).await?;
        self.reports.push(Report::New {
            id,
            version,
            removing: false,
        });
        Ok(())
    }

    /// Gives the newest deletion of a chunk up for good, durably.
    pub async fn purge(&self, id: ChunkId, version: ChunkVersion) -> Result<(), ChunkError> {
        let slot = self.find_quarantined(id, version)?;
        let seq = self.purge_slot(slot).await?;
        self.end_suspicion();
        self.durable(seq).await
    }

    /// Evidence of a stale master: what it deletes, and has deleted since it accepted us, is held
    /// until an operator purges or restores all of it.
    pub(crate) fn suspect(&self, evidence: String) {
        let first = self.stale.borrow_mut().suspect();
        let text = match first {
            true => format!("{evidence}; what it deletes is held until `quarantine purge`"),
            false => evidence,
        };
        self.tell(News::StaleMaster, text);
        if first {
            let me = self.rc();
            self.rt.spawn(async move {
                if let Err(error) = me.harden().await {
                    tracing::warn!(volume = %me.options.name, %error, "earlier deletes are not held");
                }
            });
        }
    }

    /// Holds hard what was deleted since the registration.
    async fn harden(&self) -> Result<(), ChunkError> {
        let Some(since) = self.stale.borrow().since_s() else {
            return Ok(());
        };
        let held: Vec<(u32, u32)> = {
            let core = self.core.borrow();
            core.dir
                .quarantine()
                .filter(|(at, _)| *at >= since)
                .collect()
        };
        for (at, slot) in held {
            let was = self.core.borrow().dir.get(slot);
            if was.flags & FLAG_HARD != 0 {
                continue;
            }
            let flags = was.flags | FLAG_HARD;
            let still = |core: &Core| self.still_held(core, slot, (was.id, at));
            match self
                .commit(&Record::Quarantine { slot, at, flags }, still)
                .await
            {
                Ok(_) | Err(ChunkError::NoChunk) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// An operator has decided: if nothing is held hard any more, deletes are usual again.
    fn end_suspicion(&self) {
        if self.core.borrow().dir.held_hard().chunks == 0 {
            self.stale.borrow_mut().settle();
        }
    }

    async fn purge_slot(&self, slot: u32) -> Result<u64, ChunkError> {
        let was = self.core.borrow().dir.get(slot);
        let still = |core: &Core| self.still_held(core, slot, (was.id, was.deleted_at));
        self.commit(&Record::Purge { slot }, still).await
    }

    /// Whether a slot still is the deletion that it was.
    fn still_held(&self, core: &Core, slot: u32, was: (u64, u32)) -> Result<(), ChunkError> {
        let now = core.dir.get(slot);
        match (now.id, now.deleted_at) == was {
            true => crate::ops::is_quarantined(now.kind),
            false => Err(ChunkError::NoChunk),
        }
    }

    /// Purges what was deleted long enough ago, `most` chunks at once.
    pub(crate) async fn purge_expired(&self, now_s: u32, most: usize) -> Result<(), ChunkError> {
        let age = u32::try_from(self.options.purge_after.as_secs()).unwrap_or(u32::MAX);
        for _ in 0..most {
            let oldest = self.oldest_soft();
            let Some((deleted, slot)) = oldest else { break };
            if deleted.saturating_add(age) > now_s {
                break;
            }
            self.purge_slot(slot).await?;
        }
        Ok(())
    }

    /// The oldest deletion that may be purged without a command.
    fn oldest_soft(&self) -> Option<(u32, u32)> {
        let core = self.core.borrow();
        let mut all = core.dir.quarantine();
        all.find(|&(_, number)| core.dir.get(number).flags & FLAG_HARD == 0)
    }

    /// Makes units free for an operation: oldest deletions go first, and what was given up is
    /// made durable. [`ChunkError::NoSpace`] if there is nothing left to give.
    pub(crate) async fn make_space(&self, need: Need) -> Result<(), ChunkError> {
        let enough = |core: &Core| need.is_met(core);
        let mut last = 0;
        loop {
            let (has_enough, pending) = {
                let core = self.core.borrow();
                (enough(&core), core.alloc.pending())
            };
            if has_enough {
                return Ok(());
            }
            if pending <= need.wanted as u64 {
                if let Some((_, slot)) = self.oldest_soft() {
                    match self.purge_slot(slot).await {
                        Ok(seq) => last = seq,
                        Err(ChunkError::NoChunk) => {}
                        Err(error) => return Err(error),
                    }
                    continue;
                }
            }
            // Durable records free data; a checkpoint frees pages, and shrinks the reserve.
            let before = self.core.borrow().alloc.free();
            let last = last.max(self.core.borrow().journal.last_seq());
            self.durable(last).await?;
            if enough(&self.core.borrow()) {
                return Ok(());
            }
            self.checkpoint().await?;
            let core = self.core.borrow();
            if enough(&core) {
                return Ok(());
            }
            // Another checkpoint gives back what it holds now.
            let waits = self.checkpoints_begun.get() != self.checkpoints.get();
            let stuck = !waits && core.alloc.free() <= before && core.dir.held().chunks == 0;
            if stuck {
                return Err(ChunkError::NoSpace);
            }
        }
    }
}
