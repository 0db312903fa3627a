//! Another device for the slot of a leg, without being one leg short meanwhile.
//!
//! A leg in sync stays so while its replacement is filled beside it: a third leg that takes every
//! write, and counts for nothing. Its superblock carries md's replacement bit and how far it is.
//! The copy waits while anything else is copied. Bits stay set until it is over, so that the
//! replacement may be away for a while, and a restart goes on where a flush ended.
//!
//! At the end no write is under way for a moment, and all three hold the same: the old leg goes
//! out as by an operator's word (witness, then record), and the new one joins in its slot as any
//! leg that returns. So a crash at any point finds two legs of which md's own rules name the
//! fresh one. If the old leg is lost before, the replacement goes on in its slot as a rebuild.

use super::control::{is_same, Fill};
use super::sync::Resume;
use super::{Array, ControlError, Leg, LegState, Why, REPLACEMENT};
use crate::layout::{SLOT_BYTES, SUPER_SECTOR};
use crate::probe::Found;
use crate::superblock::{FEATURE_REPLACEMENT, ROLE_SPARE};
use blockdev::{BlockDevice, Durability, IoCtx, IoError, IoVec, Kind, Op, Sector};
use std::rc::Rc;

/// What a replacement may do now.
pub(super) enum Turn {
    Go,
    Wait,
    /// It has the slot for itself.
    Promoted,
}

impl Array {
    /// Puts another device, or a blank one of the same name, into the slot of a leg. While the
    /// leg is in sync it stays so until the new device holds everything; a leg that is out is
    /// filled directly. Refused if the device holds anything unless `force`d, if it is a leg in
    /// use, and if the leg is the only one in sync (add one instead). `full` copies free space
    /// too. Returns when the copy has begun; one from the start that runs already is not begun again.
    pub async fn replace(
        &self,
        old: &str,
        name: &str,
        device: Rc<dyn BlockDevice>,
        full: bool,
        force: bool,
    ) -> Result<Fill, ControlError> {
        if self.is_being_filled(name, &device, full) && !self.goes_by_bits(name) {
            return Ok(Fill::UnderWay);
        }
        let leg = self.named(old)?;
        if leg.index == REPLACEMENT {
            return Err(ControlError::InUse(old.into()));
        }
        let (is_blank, is_own) = self.judge_successor(leg, name, &device, force).await?;
        let same = leg.device().is_some_and(|own| is_same(&own, &device));
        match leg.state() {
            LegState::Out | LegState::Absent => {}
            LegState::InSync if !same && !is_own => {
                self.begin_replacement(leg, name, device, full).await?;
                return Ok(Fill::Begun);
            }
            LegState::InSync if !is_blank && !force => {
                return Err(ControlError::InUse(old.into()));
            }
            _ => self.fail(old).await?,
        }
        leg.attempts.set(leg.attempts.get() + 1);
        self.fill(leg, name, device, full).await?;
        Ok(Fill::Begun)
    }

    /// Whether a leg is copied only what lies under set bits.
    fn goes_by_bits(&self, name: &str) -> bool {
        let mut legs = self.legs.iter();
        legs.any(|leg| leg.name() == name && leg.rebuilt_durably.get().is_none())
    }

    /// The leg whose slot a spare should be given now, if any: hand the spare to
    /// [`Array::replace`] under this name, unforced, so that only a blank one is taken.
    ///
    /// A leg that failed for good (it refused a write, came back as another device, or an
    /// operator failed it) is given up at once, as md does. One that is silent, unreachable or
    /// was not there at start may come back by itself, and then lacks little: it is given up
    /// after [`super::Options::spare_after`] without having been in sync.
    pub fn wants_spare(&self) -> Option<String> {
        let is_idle = self.leg(REPLACEMENT).state() == LegState::Absent;
        if !is_idle || !self.recovered.get() || self.closed().is_some() {
            return None;
        }
        let configured = usize::from(self.raid_disks.get());
        let patience = self.options.spare_after;
        let is_given_up = |leg: &&Leg| {
            let is_gone = matches!(leg.state(), LegState::Out | LegState::Absent);
            let long = self.rt.now().since(leg.out_since.get()) >= patience;
            let serves = self.peer(leg.index).state() == LegState::InSync;
            is_gone && serves && (long || !leg.why.get().comes_back())
        };
        let leg = self.legs[..configured].iter().find(is_given_up)?;
        Some(leg.name())
    }

    /// Whether the device is blank, and whether it is the leg itself.
    async fn judge_successor(
        &self,
        leg: &Leg,
        name: &str,
        device: &Rc<dyn BlockDevice>,
        force: bool,
    ) -> Result<(bool, bool), ControlError> {
        let occupied = |what| ControlError::Occupied {
            device: name.into(),
            what,
        };
        let is_of = |leg: &Leg, uuid| {
            let superblock = leg.superblock.borrow();
            superblock.as_ref().is_some_and(|sb| sb.device == uuid)
        };
        match crate::probe::examine(&**device).await? {
            Found::Nothing => Ok((true, false)),
            Found::Foreign(what) if !force => Err(occupied(what)),
            Found::Foreign(_) => Ok((false, false)),
            Found::Member(member) => {
                let (array, uuid) = (member.superblock.array, member.superblock.device);
                let others = self.legs.iter().filter(|other| other.index != leg.index);
                if others.into_iter().any(|other| is_of(other, uuid)) {
                    return Err(ControlError::InUse(name.into()));
                }
                if array != self.identity.array && !force {
                    let what = format!("a leg of {}", member.superblock.array_in_words());
                    return Err(occupied(what));
                }
                Ok((false, is_of(leg, uuid)))
            }
        }
    }

    async fn begin_replacement(
        &self,
        leg: &Leg,
        name: &str,
        device: Rc<dyn BlockDevice>,
        full: bool,
    ) -> Result<(), ControlError> {
        let replacement = self.leg(REPLACEMENT);
        if replacement.state() != LegState::Absent {
            return Err(ControlError::InUse(replacement.name()));
        }
        if self.is_last(leg) {
            return Err(ControlError::Last(leg.name()));
        }
        // Taken before the first wait: only one at a time.
        self.replaces.set(leg.index);
        replacement.why.set(Why::Missing);
        replacement.set_state(LegState::Out);
        match self.prepare(leg, name, &device, FEATURE_REPLACEMENT).await {
            Ok(superblock) => {
                let resume = Resume::From(0);
                self.install(replacement, name, device, superblock, resume, full);
                Ok(())
            }
            Err(error) => {
                replacement.forget();
                Err(error)
            }
        }
    }

    /// Whether the replacement may be filled: only while both slots have a leg in sync. If the
    /// old leg will not come back, it goes on in its place.
    pub(super) fn turn_of_replacement(&self, replacement: &Leg) -> Turn {
        let old = self.leg(self.replaces.get());
        let is_gone = match old.state() {
            LegState::Absent => true,
            LegState::Out => !old.why.get().comes_back(),
            _ => false,
        };
        if is_gone {
            self.promote(replacement, old);
            return Turn::Promoted;
        }
        let in_sync = |leg: &Leg| leg.state() == LegState::InSync;
        match self.slots().iter().all(in_sync) && !self.sync.borrow().is_running() {
            true => Turn::Go,
            false => Turn::Wait,
        }
    }

    fn promote(&self, replacement: &Leg, old: &Leg) {
        self.move_in(replacement, old);
        old.why.set(Why::Missing);
        self.spawn_return(old.index, self.rt.now());
    }

    /// The replacement becomes the leg of the slot, out as yet.
    fn move_in(&self, replacement: &Leg, old: &Leg) {
        self.drop_pending(replacement);
        old.take_from(replacement);
        old.attempts.set(old.attempts.get() + 1);
        old.set_state(LegState::Out);
        old.out_since.set(self.rt.now());
        self.watch(old);
        self.guard_sessions(old);
        self.changed.notify();
    }

    /// A replacement waits while a leg of a slot is away or being copied; an error if the old one
    /// is gone. Other legs go on.
    pub(super) async fn give_way(&self, replacement: &Leg) -> Result<(), IoError> {
        if replacement.index != REPLACEMENT {
            return Ok(());
        }
        let old = self.leg(self.replaces.get());
        let is_gone = || {
            matches!(old.state(), LegState::Out | LegState::Absent) && !old.why.get().comes_back()
        };
        let in_sync = |leg: &Leg| leg.state() == LegState::InSync;
        let free = || self.slots().iter().all(in_sync) && self.sync.borrow().now.is_none();
        self.changed
            .until(|| {
                let is_filled = replacement.state() == LegState::Rebuilding;
                free() || is_gone() || !is_filled || self.may_copy().is_err()
            })
            .await;
        match is_gone() {
            true => Err(IoError::not_applied(Kind::Closed)),
            false => self.may_copy(),
        }
    }

    /// Everything is copied: the old leg leaves, the new one joins in its slot.
    pub(super) async fn take_over(&self, replacement: &Leg) -> Result<(), IoError> {
        let old = self.leg(self.replaces.get());
        let peer = self.peer(replacement.index);
        let whole = Sector(0)..Sector(self.identity.size);
        let is_filled = || replacement.state() == LegState::Rebuilding;
        self.changed
            .until(|| !is_filled() || !self.is_behind(replacement))
            .await;
        // From here on everybody waits for it.
        replacement.awaited.set(true);
        let _lock = self.lock(whole).await;
        self.flush_rebuilding(replacement).await;
        let closed = || Err(IoError::not_applied(Kind::Closed));
        let is_whole = || {
            let copied = replacement.rebuilt_to.get();
            replacement.state() == LegState::Rebuilding
                && copied.is_some()
                && replacement.rebuilt_durably.get() == copied
        };
        let in_sync = |leg: &Leg| leg.state() == LegState::InSync;
        if !is_whole() || !self.slots().iter().all(in_sync) {
            return closed();
        }
        self.fail_leg(old, Why::Operator, "replaced");
        self.changed
            .until(|| old.state() != LegState::Leaving)
            .await;
        if old.state() != LegState::Out || !is_whole() || !in_sync(peer) {
            return closed();
        }
        let retired = (old.device(), self.superblock_of(old));
        self.move_in(replacement, old);
        old.set_state(LegState::Rebuilding);
        self.stir();
        let joined = async {
            self.write_pages(true).await;
            self.join_in(old, peer).await
        };
        if let Err(error) = joined.await {
            self.fail_leg(old, Why::Failed, &format!("did not join: {error}"));
            return Err(error);
        }
        if let (Some(device), Some(superblock)) = retired {
            self.retire(device, superblock);
        }
        Ok(())
    }

    /// Tells the old device that it is nobody's leg any more, if it still listens.
    fn retire(&self, device: Rc<dyn BlockDevice>, mut superblock: crate::superblock::Superblock) {
        if let Some(role) = superblock.roles.get_mut(superblock.dev_number as usize) {
            *role = ROLE_SPARE;
        }
        let data = self.pool.copy_now(&superblock.encode()[..]);
        self.put_away(device, data);
    }

    /// The replacement is given up; its device is no member any more.
    pub(super) fn abandon_replacement(&self) {
        let replacement = self.leg(REPLACEMENT);
        let device = replacement.device();
        self.drop_pending(replacement);
        replacement.forget();
        if let Some(device) = device {
            self.put_away(device, IoVec::zeros(SLOT_BYTES));
        }
        let me = self.me.clone();
        self.rt.spawn(async move {
            let Some(array) = me.upgrade() else { return };
            let _turn = array.meta_turn.take().await;
            // What they say of a device that is gone misleads nobody.
            let _ = array.write_superblocks().await;
        });
        self.stir();
    }

    /// Writes the last superblock of a device that is left behind. Nothing depends on it.
    fn put_away(&self, device: Rc<dyn BlockDevice>, data: IoVec) {
        let op = Op::Write {
            at: Sector(SUPER_SECTOR),
            data,
            want: Durability::Fua,
        };
        let written = device.submit(op, IoCtx::metadata());
        self.rt.spawn(async move {
            let _ = written.await;
            drop(device);
        });
    }
}
