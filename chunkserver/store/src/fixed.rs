//! What no pointer leads to, compared between the legs: the newest superblock and the journal's live
//! frames. They carry their own checksums; which leg is wrong is told by the one that is right.

use crate::journal::replay::{find, Ask};
use crate::layout::{Page, SLOTS_PER_END, UNIT_BYTES};
use crate::store::{Life, Store, TICK};
use crate::superblock::{slot_units, Superblock};
use blockdev::{Buf, IoCtx, IoError, IoVec, LegIndex, Seq};

/// How often a superblock that is being written is waited for.
const TRIES: usize = 8;

/// Something that some leg has right and others have not.
pub(crate) struct Wrong {
    /// For people.
    pub(crate) what: String,
    pub(crate) unit: u64,
    pub(crate) good: IoVec,
    pub(crate) bad: Vec<(LegIndex, Seq)>,
    /// Superblocks written before it was read, and the newest one's epoch: past them it may be
    /// wrong no more.
    written: u64,
    epoch: u64,
}

impl Store {
    /// Compares superblock and journal on all legs in sync. Returns the units read (once, on
    /// however many legs) and what is wrong.
    pub(crate) async fn verify_fixed(&self) -> Result<(u64, Vec<Wrong>), IoError> {
        let mut wrong = Vec::new();
        let mut units = 0;
        for _ in 0..TRIES {
            let state = || (self.superblocks.get(), self.core.borrow().superblock.epoch);
            let before = state();
            wrong.clear();
            units = self.verify_superblocks(&mut wrong).await?;
            units += self.verify_journal(&mut wrong).await?;
            if !before.0 .1 && before == state() {
                break;
            }
            // What was compared has been written meanwhile.
            wrong.clear();
            self.rt.sleep(TICK).await;
        }
        Ok((units, wrong))
    }

    /// The newest superblock, which a start goes by. Older ones may have been torn by a crash, and the next
    /// ones take their places.
    async fn verify_superblocks(&self, wrong: &mut Vec<Wrong>) -> Result<u64, IoError> {
        let newest = self.core.borrow().superblock.clone();
        if !newest.clean && !self.is_open() {
            // After an unclean stop not every leg may have got it.
            return Ok(0);
        }
        let ctx = IoCtx::background();
        let is_newest = |slot: &Option<Buf>| {
            let page = slot.as_ref().and_then(|buf| Page::from_bytes(buf));
            let superblock = page.and_then(|page| Superblock::decode(&page).ok());
            superblock.is_some_and(|sb| sb.uuid == newest.uuid && sb.epoch == newest.epoch)
        };
        for (first, end) in slot_units(0, newest.units)
            .into_iter()
            .zip(["first", "last"])
        {
            let mut legs = Vec::new();
            for leg in self
                .medium
                .legs()
                .filter(|&l| self.medium.mirror.in_sync(l))
            {
                let range = first..first + SLOTS_PER_END;
                let (slots, seq) = self.medium.read_units(leg, range, ctx).await?;
                legs.push((leg, slots, seq));
            }
            for i in 0..SLOTS_PER_END as usize {
                let good = legs.iter().find(|(_, slots, _)| is_newest(&slots[i]));
                let Some(good) = good.and_then(|(_, slots, _)| slots[i].clone()) else {
                    continue;
                };
                let others = legs.iter().filter(|(_, slots, _)| !is_newest(&slots[i]));
                let bad: Vec<_> = others.map(|&(leg, _, seq)| (leg, seq)).collect();
                if !bad.is_empty() {
                    let what = format!("superblock slot {i} of the {end} {SLOTS_PER_END}");
                    wrong.push(self.wrong(what, first + i as u64, good.into(), bad));
                }
            }
        }
        Ok(2 * SLOTS_PER_END)
    }

    async fn verify_journal(&self, wrong: &mut Vec<Wrong>) -> Result<u64, IoError> {
        let superblock = self.core.borrow().superblock.clone();
        let answered = self.answered.get();
        let found = find(&self.medium, &superblock, Ask::Each).await?;
        // What is not durable may be on one leg alone after an unclean stop.
        let sure = match self.is_open() {
            true => answered,
            false => found.mark,
        };
        for uneven in found.uneven.into_iter().filter(|u| u.seq <= sure) {
            let what = format!("journal frame {} in unit {}", uneven.seq, uneven.unit);
            let good = self.medium.pool.copy_now(&uneven.bytes);
            wrong.push(self.wrong(what, uneven.unit, good, uneven.bad));
        }
        Ok(found.units)
    }

    fn is_open(&self) -> bool {
        *self.life.borrow() != Life::Closed
    }

    fn wrong(&self, what: String, unit: u64, good: IoVec, bad: Vec<(LegIndex, Seq)>) -> Wrong {
        Wrong {
            what,
            unit,
            good,
            bad,
            written: self.superblocks.get().0,
            epoch: self.core.borrow().superblock.epoch,
        }
    }

    /// Writes it to a leg that has it wrong, if it has not been given up meanwhile.
    pub(crate) async fn heal_fixed(&self, wrong: &Wrong, leg: (LegIndex, Seq)) -> bool {
        let now = self.superblocks.get();
        let units = (wrong.good.len() / UNIT_BYTES) as u64;
        let is_current = now == (wrong.written, false)
            && self.core.borrow().superblock.epoch == wrong.epoch
            && !self.medium.tainted(wrong.unit, units);
        let writes = matches!(*self.life.borrow(), Life::Running | Life::Stopping);
        is_current
            && writes
            && self
                .rewrite(&wrong.what, wrong.unit, wrong.good.clone(), leg)
                .await
    }
}
