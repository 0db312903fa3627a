//! What an operator may do with a leg: fail, remove, add; and legs that turn up late. Replacing
//! is in [`super::replace`].

use super::sync::Resume;
use super::{Array, Leg, LegState, Why};
use crate::assemble::was_replaced;
use crate::decide::{decide, Decision, Role, View};
use crate::probe::{Found, Member, MemberError};
use crate::superblock::Superblock;
use crate::uuid::Uuid;
use crate::witness::WitnessError;
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
    /// It went on without this array, or was replaced.
    #[error("{device}: {why}")]
    Diverged {
        /// Its name.
        device: String,
        /// What its metadata say.
        why: String,
    },
    /// Another node owns it.
    #[error("{device} is claimed by node {node}")]
    Claimed {
        /// Its name.
        device: String,
        /// The owner.
        node: Uuid,
    },
    /// The witness cannot be read.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// The device or a leg failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The device cannot be read as a member.
    #[error(transparent)]
    Member(#[from] MemberError),
}

/// What a command to fill a leg has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// It begins now.
    Begun,
    /// The device was being filled already, and that goes on.
    UnderWay,
}

impl Array {
    pub(super) fn named(&self, name: &str) -> Result<&Leg, ControlError> {
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
        leg.set_superblock(None);
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
            let what = format!("a leg of {}", member.superblock.array_in_words());
            return Err(ControlError::Occupied {
                device: name.into(),
                what,
            });
        }
        self.adopt(leg, name, device, &member, false).await
    }

    async fn adopt(
        &self,
        leg: &Leg,
        name: &str,
        device: Rc<dyn BlockDevice>,
        member: &Member,
        full: bool,
    ) -> Result<(), ControlError> {
        let resume = self.missed_by(leg, name, member).await?;
        let resume = if full || member.superblock.slot().is_none() {
            Resume::From(0)
        } else {
            resume
        };
        if leg.is_required() || leg.state() == LegState::Rebuilding {
            return Err(ControlError::InUse(name.into()));
        }
        // What it wrote without us lies under bits of its own.
        self.intent.borrow_mut().adopt(|n| member.is_dirty(n));
        self.install(leg, name, device, member.superblock.clone(), resume, full);
        Ok(())
    }

    /// What a member of this array lacks; refused if it has something that this array lacks, or
    /// another owner.
    async fn missed_by(
        &self,
        leg: &Leg,
        name: &str,
        member: &Member,
    ) -> Result<Resume, ControlError> {
        if let (Some(owner), Some(claim)) = (&self.options.owner, &member.claim) {
            if claim.owner.node != owner.node {
                return Err(ControlError::Claimed {
                    device: name.into(),
                    node: claim.owner.node,
                });
            }
        }
        let witness = self.witness.read(self.identity.array).await?;
        let refuse = |why: &str| {
            Err(ControlError::Diverged {
                device: name.into(),
                why: why.into(),
            })
        };
        if witness.is_some_and(|witness| was_replaced(&witness, member)) {
            return refuse("its slot was given to another device");
        }
        let events = self.events.get();
        let own = View {
            events,
            superblock_events: events,
            out: self.recorded_out.get(),
            rebuilt_to: None,
            events_cleared: self.events_cleared(),
            bits_count: true,
            clean: true,
            utime: self.rt.wall(),
        };
        let slot = usize::from(leg.index.0);
        let mut views = [Some(own); 2];
        views[slot] = Some(View::of(member));
        match decide(views, witness, false) {
            Decision::Run(choice) if choice.roles[1 - slot] == Role::InSync => {
                Ok(match choice.roles[slot] {
                    Role::TooOld => Resume::From(0),
                    Role::Partly(to) => Resume::From(to),
                    Role::InSync | Role::Stale | Role::Absent => Resume::Bits,
                })
            }
            Decision::Run(_) => refuse("it is newer than the leg that serves"),
            Decision::Wait(lack) => refuse(&lack.to_string()),
            Decision::Diverged(why) => refuse(&why),
        }
    }

    pub(super) fn install(
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
        leg.set_superblock(Some(superblock));
        leg.rebuilt_to.set(None);
        leg.rebuilt_durably.set(resume.from());
        leg.forgive();
        leg.set_state(LegState::Out);
        leg.why.set(Why::Missing);
        leg.out_since.set(self.rt.now());
        self.sync.borrow_mut().full = full;
        self.watch(leg);
        self.guard_sessions(leg);
        self.spawn_return(leg.index, self.rt.now());
    }

    /// Adds a device as a leg: into the slot of one that is out, or as the second leg of a volume
    /// that had one. What it holds is refused unless it is a member of this very array or
    /// `force`d. `full` copies free space too. Returns when the rebuild has begun; one that runs
    /// already is not begun again.
    pub async fn add(
        &self,
        name: &str,
        device: Rc<dyn BlockDevice>,
        full: bool,
        force: bool,
    ) -> Result<Fill, ControlError> {
        if self.is_being_filled(name, &device, full) {
            return Ok(Fill::UnderWay);
        }
        let leg = match self.named(name) {
            Ok(leg) => leg,
            Err(_) => self
                .slots()
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
                self.adopt(leg, name, device, &member, full).await?;
                return Ok(Fill::Begun);
            }
            Found::Member(member) if !force => {
                let what = format!("a leg of {}", member.superblock.array_in_words());
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
        self.fill(leg, name, device, full).await?;
        Ok(Fill::Begun)
    }

    /// Whether a copy to this very device runs that brings it all that is asked for.
    pub(super) fn is_being_filled(
        &self,
        name: &str,
        device: &Rc<dyn BlockDevice>,
        full: bool,
    ) -> bool {
        let is_filled = |leg: &Leg| {
            matches!(leg.state(), LegState::Rebuilding | LegState::Joining)
                && leg.name() == name
                && leg.device().is_some_and(|own| is_same(&own, device))
        };
        (!full || self.sync.borrow().full) && self.legs.iter().any(is_filled)
    }
}

pub(super) fn is_same(a: &Rc<dyn BlockDevice>, b: &Rc<dyn BlockDevice>) -> bool {
    std::ptr::addr_eq(Rc::as_ptr(a), Rc::as_ptr(b))
}
