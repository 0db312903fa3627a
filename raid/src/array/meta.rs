//! What the legs and the witness say of the array: superblocks, leg records, dirty and clean.
//!
//! Before the first write after an idle time the superblocks say *dirty* and the witness says
//! *busy*; a few seconds after the last one both legs are flushed, the superblocks say *clean*
//! and the witness *flushed*. Event counts do not change by that: a change of a leg's state raises
//! them, and the clearing of bits, by 2.

use super::{Array, Leg, LegState, REPLACEMENT};
use crate::layout::SUPER_SECTOR;
use crate::notify::both;
use crate::record::LegRecord;
use crate::superblock::{
    md_time, Superblock, CLEAN, FEATURE_BITMAP, FEATURE_RECOVERY, FEATURE_REPLACEMENT, ROLE_FAULTY,
    ROLE_SPARE,
};
use crate::witness::WitnessRecord;
use blockdev::{mutation, Durability, IoError, Kind, Sector};
use std::time::Duration;

impl Array {
    /// Whether data may be written; makes it so if not.
    pub(super) fn is_active(&self) -> bool {
        if self.active.get() && !self.activating.get() {
            return true;
        }
        if !self.activating.replace(true) {
            let me = self.me.clone();
            self.rt.spawn(async move {
                let Some(array) = me.upgrade() else { return };
                let result = array.activate().await;
                array.activating.set(false);
                match result {
                    Ok(()) => array.stir(),
                    Err(error) => array.fail_held(&error),
                }
            });
        }
        false
    }

    async fn activate(&self) -> Result<(), IoError> {
        let _turn = self.meta_turn.take().await;
        if self.active.get() {
            return Ok(());
        }
        // A leg that is out without anybody having said so: first of all, say it.
        while self.out_mask() & !self.recorded_out.get() != 0 {
            let out = self.out_mask();
            let events = self.next_events();
            if !self.tell_witness(events, out, false).await {
                continue;
            }
            let Some(survivor) = self.legs.iter().find(|leg| leg.state() == LegState::InSync)
            else {
                return Err(IoError::not_applied(Kind::Closed));
            };
            self.write_record(survivor, events, out).await?;
            self.events.set(events);
            self.recorded_out.set(out);
        }
        let busy = async {
            let say_busy = || self.tell_witness(self.events.get(), self.recorded_out.get(), false);
            while self.witness_flushed.get() && !say_busy().await {}
        };
        self.active.set(true);
        let (written, ()) = both(self.write_superblocks(), busy).await;
        self.active.set(written.is_ok());
        written
    }

    /// An event count above any ever sent to a leg or the witness.
    pub(super) fn next_events(&self) -> u64 {
        let events = self.events_sent.get() + 2;
        self.events_sent.set(events);
        events
    }

    /// Makes the witness say it, however long that takes: what follows depends on it. `false`:
    /// something later was told instead, and what follows must not go on by this.
    pub(super) async fn tell_witness(&self, events: u64, out: u8, flushed: bool) -> bool {
        if mutation::off("raid.witness") {
            return true;
        }
        let record = WitnessRecord {
            array: self.identity.array,
            events,
            out,
            flushed,
            devices: [0, 1].map(|slot: usize| {
                let superblock = self.legs[slot].superblock.borrow();
                let unseen = self.holders[slot];
                superblock.as_ref().map_or(unseen, |sb| sb.device.short())
            }),
        };
        let turn = self.witness_turn.get() + 1;
        self.witness_turn.set(turn);
        while let Err(error) = self.witness.record(record).await {
            tracing::warn!(volume = %self.options.volume, %error, "the witness cannot be written");
            self.rt.sleep(Duration::from_secs(1)).await;
            if self.witness_turn.get() != turn {
                return false;
            }
        }
        // Answers may come out of order, records take effect in order.
        if self.witness_told.get() < turn {
            self.witness_told.set(turn);
            self.witness_flushed.set(flushed);
            self.witness_events.set(events);
        }
        true
    }

    /// Writes a leg record to the next slot of `leg` that nothing unanswered may still hit.
    pub(super) async fn write_record(
        &self,
        leg: &Leg,
        events: u64,
        out: u8,
    ) -> Result<(), IoError> {
        let (Some(device), Some(identity)) = (leg.device(), leg.superblock.borrow().clone()) else {
            return Err(IoError::not_applied(Kind::Closed));
        };
        let mut counter = self.record_counter.get() + 1;
        let places = leg.places();
        for _ in 0..places.record_slots {
            if !device.tainted(places.record_slot(counter)) {
                break;
            }
            counter += 1;
        }
        self.record_counter.set(counter);
        let record = LegRecord {
            array: self.identity.array,
            device: identity.device,
            counter,
            events,
            out,
            rebuilding: self.mask(|leg| leg.index.0 < 2 && leg.rebuilt_to.get().is_some()),
            time: self.rt.wall(),
            dirty_pages: self.intent.borrow().lagging_pages(),
            all_dirty: false,
        };
        let data = self.pool.copy_now(&record.encode()[..]);
        let at = places.record_slot(counter).start;
        self.write_direct(leg.index, at, data, Durability::Fua)
            .await
            .map(|_| ())
    }

    /// The superblock of `leg` as the array is now; `None` if it is not a member.
    pub(super) fn superblock_of(&self, leg: &Leg) -> Option<Superblock> {
        let mut sb = leg.superblock.borrow().clone()?;
        let dirty = self.active.get() || self.intent.borrow().is_doubtful();
        let others: Vec<u32> = self
            .legs
            .iter()
            .filter_map(|leg| leg.superblock.borrow().as_ref().map(|sb| sb.dev_number))
            .collect();
        for (number, role) in sb.roles.iter_mut().enumerate() {
            if *role != ROLE_SPARE && !others.contains(&(number as u32)) {
                *role = ROLE_SPARE;
            }
        }
        for other in &self.legs {
            let Some(number) = other.superblock.borrow().as_ref().map(|sb| sb.dev_number) else {
                continue;
            };
            let is_member = other.is_required() || other.is_on_record_rebuilding();
            let role = match (is_member, other.index.0 < self.raid_disks.get()) {
                _ if other.index == REPLACEMENT => u16::from(self.replaces.get().0),
                (true, true) => u16::from(other.index.0),
                (false, true) => ROLE_FAULTY,
                (_, false) => ROLE_SPARE,
            };
            if let Some(entry) = sb.roles.get_mut(number as usize) {
                *entry = role;
            }
        }
        sb.raid_disks = u32::from(self.raid_disks.get());
        sb.features = FEATURE_BITMAP;
        if leg.index == REPLACEMENT {
            sb.features |= FEATURE_REPLACEMENT;
        }
        sb.recovery_offset = 0;
        if let Some(to) = leg.rebuilt_durably.get() {
            sb.features |= FEATURE_RECOVERY;
            sb.recovery_offset = to;
        }
        sb.events = self.events.get();
        sb.utime = md_time(self.rt.wall());
        sb.resync_offset = if dirty { 0 } else { CLEAN };
        sb.corrected_reads = leg.counters.get().healed_blocks as u32;
        Some(sb)
    }

    /// Writes the bitmap's lagging pages and then the superblocks of all legs that are in sync
    /// or on record as being rebuilt. `Ok` when every leg still in sync has its own.
    pub(super) async fn write_superblocks(&self) -> Result<(), IoError> {
        self.write_pages(false).await;
        self.write_bitmap_events(self.events.get()).await;
        let (first, second) = both(
            self.write_superblock(&self.legs[0]),
            self.write_superblock(&self.legs[1]),
        )
        .await;
        // Its failure is nobody else's: it leaves, or is looked at again.
        let _ = self.write_superblock(&self.legs[2]).await;
        first.and(second)
    }

    pub(super) async fn write_superblock(&self, leg: &Leg) -> Result<(), IoError> {
        let on_record = leg.state() == LegState::InSync || leg.is_on_record_rebuilding();
        if !on_record || leg.device().is_none() {
            return Ok(());
        }
        loop {
            let Some(sb) = self.superblock_of(leg) else {
                return Ok(());
            };
            let data = self.pool.copy_now(&sb.encode()[..]);
            leg.is_sent(&sb);
            let (at, turn) = (Sector(SUPER_SECTOR), leg.alone_turn.get());
            let written = self
                .write_direct(leg.index, at, data, Durability::Fua)
                .await;
            let Err(error) = written else {
                leg.set_superblock(Some(sb));
                return Ok(());
            };
            // The failure takes the leg out, unless it is the last or is called back.
            if self.may_ask_again(leg, turn, &error).await {
                continue;
            }
            if leg.state() == LegState::InSync {
                return Err(error);
            }
            return Ok(());
        }
    }

    /// Looks after idle times and bits for as long as the array lives.
    pub(super) fn spawn_maintenance(&self) {
        let (me, rt) = (self.me.clone(), self.rt.clone());
        self.rt.spawn(async move {
            let period = Duration::from_millis(500);
            let mut bits_due = rt.now() + period;
            loop {
                rt.sleep(period).await;
                let Some(array) = me.upgrade() else { return };
                if array.stopping.get() {
                    return;
                }
                if rt.now() >= bits_due {
                    bits_due = rt.now() + array.options.bitmap_sleep;
                    array.clear_bits(false).await;
                }
                let idle = rt.now().since(array.last_write.get()) >= array.options.idle_after;
                if idle && array.is_settled() {
                    // A failure takes a leg out, or is seen by the next write.
                    let _ = array.go_clean().await;
                }
                if array.recovered.get() && array.intent.borrow().is_doubtful() {
                    array.spawn_resync();
                }
            }
        });
    }

    fn is_settled(&self) -> bool {
        self.has_news()
            && !self.activating.get()
            && !self.is_writing()
            && (self.stopping.get() || !self.intent.borrow().is_doubtful())
            && self.recovered.get()
            && !self
                .legs
                .iter()
                .any(|leg| matches!(leg.state(), LegState::Leaving | LegState::Joining))
    }

    /// Flushes, says clean and flushed. Gives up when a write comes before the superblocks, or
    /// a leg begins to leave: what is then to be said is for the one who decided that.
    pub(super) async fn go_clean(&self) -> Result<(), IoError> {
        let seen = self.last_write.get();
        self.flush_round().await?;
        let _turn = self.meta_turn.take().await;
        let unsaid = self.out_mask() & !self.recorded_out.get() != 0;
        if seen != self.last_write.get() || !self.is_settled() || unsaid {
            return Ok(());
        }
        let serial = self.change_serial.get();
        self.active.set(false);
        self.write_superblocks().await?;
        let in_sync = |leg: &&Leg| leg.state() == LegState::InSync;
        let empty = self
            .legs
            .iter()
            .filter(in_sync)
            .all(|leg| leg.window.borrow().is_empty());
        if empty && !self.active.get() && serial == self.change_serial.get() {
            self.tell_witness(self.events.get(), self.recorded_out.get(), true)
                .await;
        }
        Ok(())
    }
}
