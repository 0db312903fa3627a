//! What an operator may do with a leg: fail, remove, add, replace; and legs that turn up late.

use super::sync::Resume;
use super::{Array, Leg, LegState, Why};
use crate::layout::Plan;
use crate::probe::{Found, Member, MemberError};
use crate::superblock::{md_time, Superblock, CLEAN, FEATURE_BITMAP, FEATURE_RECOVERY, ROLE_SPARE};
use crate::uuid::Uuid;
use blockdev::{BlockDevice, IoError, LegIndex};
use std::rc::Rc;
use thiserror::Error;

/// Why a command about a leg was refused.
#[derive(Debug, Error)]
pub enum ControlError {
    /// No leg of the volume has this name.
    #[error("no leg named {0}")]
    Unknown(String),
    /// It is the only one whose content counts.
    #[error("{0} is the last leg in sync")]
    Last(String),
    /// It must be failed first.
    #[error("{0} is in use; fail it first")]
    InUse(String),
    /// Every slot is taken by a leg in use.
    #[error("the volume has two legs; fail and remove one, or replace it")]
    Full,
    /// The device holds something.
    #[error("{device} holds {what}; --force overwrites it")]
    Occupied {
        /// Its name.
        device: String,
        /// What was found.
        what: String,
    },
    /// The device has too few sectors.
    #[error("{device} has {has} sectors, {needs} are needed")]
    TooSmall {
        /// Its name.
        device: String,
        /// What it has.
        has: u64,
        /// What the array needs.
        needs: u64,
    },
    /// The device or a leg failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The device cannot be read as a member.
    #[error(transparent)]
    Member(#[from] MemberError),
}

impl Array {
    fn named(&self, name: &str) -> Result<&Leg, ControlError> {
        let named = |leg: &&Leg| leg.name() == name && leg.index.0 < self.raid_disks.get();
        self.legs
            .iter()
            .find(named)
            .ok_or_else(|| ControlError::Unknown(name.into()))
    }

    /// Takes a leg out. `Ok` when that is on record.
    pub async fn fail(&self, name: &str) -> Result<(), ControlError> {
        let leg = self.named(name)?;
        if leg.state() == LegState::InSync && self.is_last(leg) {
            return Err(ControlError::Last(name.into()));
        }
        leg.attempts.set(leg.attempts.get() + 1);
        self.fail_leg(leg, Why::Operator, "failed by an operator");
        self.changed
            .until(|| leg.state() != LegState::Leaving)
            .await;
        leg.why.set(Why::Operator);
        Ok(())
    }

    /// Forgets a leg that is out.
    pub async fn remove(&self, name: &str) -> Result<(), ControlError> {
        let leg = self.named(name)?;
        if !matches!(leg.state(), LegState::Out | LegState::Absent) {
            return Err(ControlError::InUse(name.into()));
        }
        leg.attempts.set(leg.attempts.get() + 1);
        leg.set_device(name, None);
        leg.set_state(LegState::Absent);
        *leg.superblock.borrow_mut() = None;
        let _turn = self.meta_turn.take().await;
        Ok(self.write_superblocks().await?)
    }

    /// A leg known by name whose device has come: taken back if it is the member it was, left
    /// alone otherwise (a blank leg is never filled without a command).
    pub async fn attach(
        &self,
        index: LegIndex,
        name: &str,
        device: Rc<dyn BlockDevice>,
    ) -> Result<(), ControlError> {
        let leg = self.leg(index);
        if leg.is_required() || leg.device().is_some() {
            return Err(ControlError::InUse(name.into()));
        }
        let member = Member::read(&*device).await?;
        let slot = member.superblock.slot();
        if member.superblock.array != self.identity.array || slot.is_some_and(|s| s != index.0) {
            let what = format!("a leg of array {}", member.superblock.array);
            return Err(ControlError::Occupied {
                device: name.into(),
                what,
            });
        }
        self.adopt(leg, name, device, &member, false);
        Ok(())
    }

    fn adopt(
        &self,
        leg: &Leg,
        name: &str,
        device: Rc<dyn BlockDevice>,
        member: &Member,
        full: bool,
    ) {
        let cleared = self.events_cleared();
        let resume = match member.superblock.is_recovering() {
            _ if full || member.superblock.events < cleared => Resume::From(0),
            _ if member.superblock.slot().is_none() => Resume::From(0),
            true => Resume::From(member.superblock.recovery_offset),
            false => Resume::Bits,
        };
        self.install(leg, name, device, member.superblock.clone(), resume, full);
    }

    fn install(
        &self,
        leg: &Leg,
        name: &str,
        device: Rc<dyn BlockDevice>,
        superblock: Superblock,
        resume: Resume,
        full: bool,
    ) {
        leg.set_device(name, Some(device));
        let chunks = self.intent.borrow().chunk_count();
        if let Ok(places) = crate::layout::Places::of(&superblock, chunks) {
            leg.set_places(places);
        }
        *leg.superblock.borrow_mut() = Some(superblock);
        leg.set_state(LegState::Out);
        leg.why.set(Why::Missing);
        self.sync.borrow_mut().full = full;
        self.watch(leg);
        self.guard_sessions(leg);
        self.spawn_return(leg.index, resume);
    }

    /// Adds a device as a leg: into the slot of one that is out, or as the second leg of a volume
    /// that had one. What it holds is refused unless it is a member of this very array or
    /// `force`d. `full` copies free space too. Returns when the rebuild has begun.
    pub async fn add(
        &self,
        name: &str,
        device: Rc<dyn BlockDevice>,
        full: bool,
        force: bool,
    ) -> Result<(), ControlError> {
        let leg = match self.named(name) {
            Ok(leg) => leg,
            Err(_) => self
                .legs
                .iter()
                .find(|leg| !leg.is_required() && leg.state() != LegState::Rebuilding)
                .ok_or(ControlError::Full)?,
        };
        if leg.is_required() || leg.state() == LegState::Rebuilding {
            return Err(ControlError::InUse(leg.name()));
        }
        match crate::probe::examine(&*device).await? {
            Found::Member(member)
                if member.superblock.array == self.identity.array
                    && !force
                    && leg.index.0 < self.raid_disks.get() =>
            {
                self.adopt(leg, name, device, &member, full);
                return Ok(());
            }
            Found::Member(member) if !force => {
                let what = format!("a leg of array {}", member.superblock.array);
                return Err(ControlError::Occupied {
                    device: name.into(),
                    what,
                });
            }
            Found::Foreign(what) if !force => {
                return Err(ControlError::Occupied {
                    device: name.into(),
                    what,
                });
            }
            _ => {}
        }
        self.fill(leg, name, device, full).await
    }

    /// Puts another device, or a blank one of the same name, into the slot of a leg. A leg still
    /// in sync is failed first, so the volume has one leg until the copy is done.
    pub async fn replace(
        &self,
        old: &str,
        name: &str,
        device: Rc<dyn BlockDevice>,
        full: bool,
        force: bool,
    ) -> Result<(), ControlError> {
        let leg = self.named(old)?;
        if let (Found::Foreign(what), false) = (crate::probe::examine(&*device).await?, force) {
            return Err(ControlError::Occupied {
                device: name.into(),
                what,
            });
        }
        if leg.state() != LegState::Out && leg.state() != LegState::Absent {
            self.fail(old).await?;
        }
        leg.attempts.set(leg.attempts.get() + 1);
        self.fill(leg, name, device, full).await
    }

    async fn fill(
        &self,
        leg: &Leg,
        name: &str,
        device: Rc<dyn BlockDevice>,
        full: bool,
    ) -> Result<(), ControlError> {
        let (has, size) = (device.geometry().sectors, self.identity.size);
        let offset = Plan::for_leg(has).map_or(0, |plan| plan.data_offset);
        // The survivor's offset is taken where it fits: legs that look alike are easier to rescue.
        let like = self.peer(leg.index).places().data.0;
        let data_offset = if like + size <= has { like } else { offset };
        if data_offset == 0 || data_offset + size > has {
            let needs = size + offset;
            return Err(ControlError::TooSmall {
                device: name.into(),
                has,
                needs,
            });
        }
        let Some(model) = self.superblock_of(self.peer(leg.index)) else {
            return Err(ControlError::Last(name.into()));
        };
        let numbers = |n: &u32| *n != model.dev_number;
        let dev_number = (0..model.roles.len() as u32).find(numbers).unwrap_or(1);
        let mut roles = vec![ROLE_SPARE; model.roles.len()];
        if let Some(role) = roles.get_mut(model.dev_number as usize) {
            *role = u16::from(self.peer(leg.index).index.0);
        }
        if let Some(role) = roles.get_mut(dev_number as usize) {
            *role = u16::from(leg.index.0);
        }
        let superblock = Superblock {
            // From the first moment it says that it is not whole.
            features: FEATURE_BITMAP | FEATURE_RECOVERY,
            array: self.identity.array,
            name: self.identity.name,
            ctime: self.identity.ctime,
            size,
            raid_disks: 2,
            data_offset,
            data_size: has - data_offset,
            recovery_offset: 0,
            dev_number,
            corrected_reads: 0,
            device: Uuid::random(&self.rt),
            device_flags: 0,
            utime: md_time(self.rt.wall()),
            resync_offset: CLEAN,
            roles,
            ..model
        };
        crate::format::wipe(&*device, data_offset).await?;
        crate::format::put_superblock(&*device, &self.pool, &superblock).await?;
        self.raid_disks.set(2);
        self.install(leg, name, device, superblock, Resume::From(0), full);
        Ok(())
    }
}
