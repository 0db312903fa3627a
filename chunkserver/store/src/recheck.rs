//! Chunks that were found damaged, looked at again when there is hope: a leg has come back, or a
//! scrub has healed what it could. The master hears of those that are whole.

use crate::layout::{Ptr, UNIT_BYTES};
use crate::store::{Life, Store};
use blockdev::IoCtx;
use chunk_api::{ChunkId, ChunkVersion, Report};

/// Bytes under way while a chunk is looked at again.
const READ_BYTES: usize = 1 << 20;
/// A chunk that is written to meanwhile is read anew so often.
const TRIES: usize = 3;

impl Store {
    /// Reads the chunks that were reported damaged, one after the other in the background. Whole
    /// ones are damaged no more, and are announced. One walk at a time; a call during one makes
    /// another follow.
    pub fn look_again(&self) {
        if self.looking.get().0 {
            return self.looking.set((true, true));
        }
        if self.counters.damaged.borrow().is_empty() {
            return;
        }
        self.looking.set((true, false));
        let me = self.rc();
        self.rt.spawn(async move {
            loop {
                let ids: Vec<u64> = me.counters.damaged.borrow().iter().copied().collect();
                for id in ids {
                    if *me.life.borrow() != Life::Running {
                        return;
                    }
                    me.look_again_at(id).await;
                }
                let again = me.looking.get().1;
                me.looking.set((again, false));
                if !again {
                    return;
                }
            }
        });
    }

    async fn look_again_at(&self, id: u64) {
        for _ in 0..TRIES {
            let Some(before) = self.places_of(id).await else {
                break;
            };
            let is_whole = self.is_whole(&before).await;
            if self.places_of(id).await.as_ref() != Some(&before) {
                continue;
            }
            if is_whole {
                self.announce_whole(id);
            }
            return;
        }
    }

    /// Everything that a chunk points to; `None`: it is gone, or its map cannot be read.
    async fn places_of(&self, id: u64) -> Option<Vec<Ptr>> {
        let number = self.core.borrow().dir.slot_of(id)?;
        let is_readable = self.present_map(number).await.is_ok();
        if !is_readable || self.core.borrow().dir.slot_of(id) != Some(number) {
            return None;
        }
        let (ptrs, pages) = self.pointers(number);
        let ptrs = ptrs.into_iter().map(|(_, ptr)| ptr).chain(pages);
        let ptrs = ptrs.filter(|ptr| !self.is_being_written(ptr.unit));
        Some(ptrs.collect())
    }

    async fn is_whole(&self, ptrs: &[Ptr]) -> bool {
        for part in ptrs.chunks(READ_BYTES / UNIT_BYTES) {
            let fetched = self.medium.fetch(part, IoCtx::background()).await;
            for (ptr, fetched) in part.iter().zip(fetched) {
                if fetched.good.is_none() {
                    return false;
                }
                if !fetched.bad.is_empty() {
                    self.rc().heal_later(*ptr, fetched);
                }
            }
        }
        true
    }

    fn announce_whole(&self, id: u64) {
        let found = self.core.borrow().dir.find(id);
        let was_damaged = self.counters.damaged.borrow_mut().remove(&id);
        let (Some((_, slot)), true) = (found, was_damaged) else {
            return;
        };
        tracing::info!(volume = %self.options.name, chunk = %ChunkId(id), "chunk is whole again");
        self.reports.push(Report::New {
            id: ChunkId(id),
            version: ChunkVersion(slot.version),
            removing: false,
        });
    }

    /// Legs that have become in sync since the last call give hope.
    pub(crate) fn watch_legs(&self) {
        let mirror = &self.medium.mirror;
        let in_sync = self.medium.legs().filter(|&leg| mirror.in_sync(leg));
        let now = in_sync.fold(0u8, |mask, leg| mask | 1 << leg.0);
        let before = self.legs_in_sync.replace(now);
        if now & !before != 0 {
            self.look_again();
        }
    }
}
