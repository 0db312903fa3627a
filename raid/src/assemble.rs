//! From devices to a running array: read the members, ask the witness, decide, begin.
//!
//! Nothing is written here; claims ([`Array::begin_claiming`]) and the fence (`Op::Fence`, asked
//! for by the store) come before the first write. A device that is blank, foreign or cannot be
//! read counts as a missing leg, and is never filled without a command.

use crate::array::{Array, Identity, LegStart, LegState, Options, Resume, Start};
use crate::claim::{Claim, Owner};
use crate::decide::{decide, decide_single, Choice, Decision, Lack, Role, View};
use crate::probe::{Member, MemberError};
use crate::superblock::SuperblockError;
use crate::witness::{Witness, WitnessError, WitnessRecord};
use blockdev::{BlockDevice, IoError, LegIndex, Pool, Rt};
use std::rc::Rc;
use thiserror::Error;

/// Devices of one volume: two legs and its spares.
pub const LEGS_MAX: usize = 16;

/// A configured leg, or a spare.
#[derive(Clone)]
pub struct LegInput {
    /// Name of its device.
    pub name: String,
    /// The device, if it is there.
    pub device: Option<Rc<dyn BlockDevice>>,
}

/// Why an array does not run.
#[derive(Debug, Error)]
pub enum AssembleError {
    /// Not one or two legs configured.
    #[error("a volume has one or two legs and at most {LEGS_MAX} devices, not {0}")]
    Legs(usize),
    /// No leg is a member; the text says what each is.
    #[error("no leg of the volume was found: {0}")]
    Nothing(String),
    /// A leg cannot be used and would have to be.
    #[error("{device}: {error}")]
    Member {
        /// Name of its device.
        device: String,
        /// Why not.
        error: MemberError,
    },
    /// The legs belong to two arrays.
    #[error("{0} and {1} are legs of different arrays")]
    Mixed(String, String),
    /// Another leg, or a word of an operator, is needed.
    #[error(transparent)]
    Waiting(Lack),
    /// Each leg went on without the other; both histories.
    #[error("{0}")]
    Diverged(String),
    /// Another node owns it.
    #[error("{device} is claimed by node {} ({})", claim.owner.node, claim.owner.initiator_name)]
    Claimed {
        /// Name of the device.
        device: String,
        /// Whose it is, and when the owner last said so.
        claim: Box<Claim>,
    },
    /// The witness cannot be read.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// A device failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// What was found of an array, before anything runs.
#[derive(Debug)]
pub struct Survey {
    /// By slot: name of the device and what it says.
    pub members: [Option<(String, Member)>; 2],
    /// A device that was being filled to replace the leg of a slot.
    pub replacement: Option<(String, Member)>,
    /// Configured legs that are no members, and why.
    pub others: Vec<(String, String)>,
    /// What the witness knows.
    pub witness: Option<WitnessRecord>,
    /// How the array would begin.
    pub decision: Decision,
    /// Slots of the array, 1 or 2.
    pub raid_disks: u8,
}

/// Looks at the legs of a volume: the one or two configured, then its spares, among which a leg
/// may be that replaced another. Writes nothing; also the offline view of `volume info`.
pub async fn survey(
    legs: &[LegInput],
    witness: &dyn Witness,
    alone: bool,
) -> Result<Survey, AssembleError> {
    if !(1..=LEGS_MAX).contains(&legs.len()) {
        return Err(AssembleError::Legs(legs.len()));
    }
    let mut found: Vec<(String, Member)> = Vec::new();
    let mut others = Vec::new();
    let mut unusable = None;
    for (n, leg) in legs.iter().enumerate() {
        let Some(device) = &leg.device else {
            others.push((leg.name.clone(), "is not there".to_owned()));
            continue;
        };
        match Member::read(&**device).await {
            Ok(member) => found.push((leg.name.clone(), member)),
            Err(error) => {
                others.push((leg.name.clone(), format!("is no member: {error}")));
                let blank = MemberError::Superblock(SuperblockError::Absent);
                if n < 2 && error != blank && !matches!(error, MemberError::Io(_)) {
                    let device = leg.name.clone();
                    unusable = Some(AssembleError::Member { device, error });
                }
            }
        }
    }
    if let Some((first, a)) = found.first().cloned() {
        let array = a.superblock.array;
        let is_leg = |name: &str| legs.iter().take(2).any(|leg| leg.name == name);
        let mut strangers = found.iter().filter(|(_, m)| m.superblock.array != array);
        if let Some((second, _)) = strangers.find(|(name, _)| is_leg(name)) {
            return Err(AssembleError::Mixed(first, second.clone()));
        }
        found.retain(|(name, member)| {
            let ours = member.superblock.array == array;
            if !ours {
                let text = format!("is a leg of {}", member.superblock.array_in_words());
                others.push((name.clone(), text));
            }
            ours
        });
    }
    // A spare alone starts nothing: nobody said that it is this volume's.
    let is_configured =
        |(name, _): &(String, Member)| legs.iter().take(2).any(|leg| leg.name == *name);
    if !found.iter().any(is_configured) {
        found.clear();
    }
    let is_replacement = |(_, member): &(String, Member)| member.superblock.is_replacement();
    let replacement = found.iter().position(is_replacement);
    let replacement = replacement.map(|at| found.swap_remove(at));
    let Some((_, newest)) = found.iter().max_by_key(|(_, member)| member.verdict().0) else {
        let texts: Vec<String> = others.iter().map(|(n, why)| format!("{n} {why}")).collect();
        return Err(unusable.unwrap_or_else(|| AssembleError::Nothing(texts.join("; "))));
    };
    let raid_disks = newest.superblock.raid_disks as u8;
    // A leg that was the only one configured owes nothing to a second one being filled.
    let whole = |(_, member): &&(String, Member)| !member.superblock.is_recovering();
    let was_single = found
        .iter()
        .filter(whole)
        .all(|(_, m)| m.superblock.raid_disks == 1);
    let alone = alone || was_single;
    let record = witness.read(newest.superblock.array).await?;
    let mut members = [None, None];
    found.sort_by_key(|(_, member)| std::cmp::Reverse(member.verdict().0));
    for (name, member) in found {
        if record.is_some_and(|witness| was_replaced(&witness, &member)) {
            others.push((name, "was replaced; `antler leg add` takes it in".into()));
            continue;
        }
        match member
            .superblock
            .slot()
            .and_then(|slot| members.get_mut(usize::from(slot)))
        {
            Some(place @ None) => *place = Some((name, member)),
            _ => others.push((name, "has no slot in the array".to_owned())),
        }
    }
    let view = |slot: usize| members[slot].as_ref().map(|(_, member)| View::of(member));
    let decision = match (raid_disks, view(0)) {
        (1, Some(only)) => decide_single(only),
        _ => decide([view(0), view(1)], record, alone),
    };
    Ok(Survey {
        members,
        replacement,
        others,
        witness: record,
        decision,
        raid_disks,
    })
}

/// Whether the witness, as new as this member, knows its slot as another device's.
pub(crate) fn was_replaced(witness: &WitnessRecord, member: &Member) -> bool {
    let slot = member.superblock.slot().map(usize::from);
    let holder = slot.and_then(|slot| witness.devices.get(slot));
    let is_other = holder.is_some_and(|&h| h != 0 && h != member.superblock.device.short());
    // A leg that is not whole decides nothing, and the witness hears of it when it is.
    let is_whole = !member.superblock.is_recovering();
    is_other && is_whole && witness.events >= member.verdict().0
}

/// Reads, decides, and begins. `alone`: an operator said that one leg may serve without the
/// other. The array takes no write before the store has sent its first one, and copies nothing
/// before [`blockdev::Mirror::recovered`].
pub async fn assemble(
    rt: Rt,
    pool: Pool,
    witness: Rc<dyn Witness>,
    options: Options,
    legs: Vec<LegInput>,
    alone: bool,
) -> Result<Rc<Array>, AssembleError> {
    let survey = survey(&legs, &*witness, alone).await?;
    if let Some(owner) = &options.owner {
        for (device, member) in survey.members.iter().flatten() {
            if let Some(claim) = member.claim.as_ref().filter(|c| c.owner.node != owner.node) {
                return Err(AssembleError::Claimed {
                    device: device.clone(),
                    claim: Box::new(claim.clone()),
                });
            }
        }
    }
    let choice = match survey.decision.clone() {
        Decision::Run(choice) => choice,
        Decision::Wait(lack) => return Err(AssembleError::Waiting(lack)),
        Decision::Diverged(text) => return Err(AssembleError::Diverged(text)),
    };
    let start = begin(survey, choice, &legs, options.owner.as_ref());
    Ok(Array::start(rt, pool, witness, options, start))
}

fn begin(survey: Survey, choice: Choice, legs: &[LegInput], owner: Option<&Owner>) -> Start {
    let in_sync = |slot: usize| choice.roles[slot] == Role::InSync;
    let source = if in_sync(0) { 0 } else { 1 };
    let Some((_, model)) = &survey.members[source] else {
        unreachable!("a leg that was decided upon was read");
    };
    let out = (0..survey.raid_disks)
        .filter(|&slot| !in_sync(usize::from(slot)))
        .fold(0, |mask, slot| mask | 1 << slot);
    let keep_bits = choice.unclean || out != 0 || survey.replacement.is_some();
    let chunks = model.bits.len() as u64;
    let trusted: Vec<&Member> = (0..2)
        .filter(|&slot| in_sync(slot))
        .filter_map(|slot| survey.members[slot].as_ref().map(|(_, member)| member))
        .collect();
    // A leg that takes part again may have been the survivor of a decision that was overruled:
    // what it wrote then lies under bits of its own.
    let returning = |slot: &usize| matches!(choice.roles[*slot], Role::Stale | Role::Partly(_));
    let returning = (0..2).filter(returning);
    let returning = returning.filter_map(|slot| survey.members[slot].as_ref().map(|(_, m)| m));
    let telling: Vec<&Member> = trusted.iter().copied().chain(returning).collect();
    let dirty = (0..chunks)
        .map(|n| keep_bits && telling.iter().any(|member| member.is_dirty(n)))
        .collect();
    let sb = &model.superblock;
    let identity = Identity {
        array: sb.array,
        size: sb.size,
        chunk_bytes: model.bitmap.chunk_bytes,
    };
    let all = || survey.members.iter().flatten().map(|(_, member)| member);
    let records = all().filter_map(|m| m.record.as_ref()).map(|r| r.counter);
    let claims = || all().filter_map(|m| m.claim.as_ref());
    let has_our_name = |claim: &&Claim| {
        owner.is_some_and(|owner| owner.initiator_name == claim.owner.initiator_name)
    };
    let recorded = claims().filter(has_our_name);
    let recorded_isids = recorded.flat_map(|c| c.owner.isids.clone()).collect();
    let claim_counter = claims().map(|c| c.counter).max().unwrap_or(0);
    let flushed = survey
        .witness
        .is_some_and(|w| w.flushed && w.events == choice.events);
    // Bits are complete for legs at least as new as what every leg in sync says.
    let cleared = trusted.iter().map(|m| m.bitmap.events_cleared).max();
    let mut nameless = legs.iter().filter(|leg| {
        !survey
            .members
            .iter()
            .flatten()
            .any(|(name, _)| *name == leg.name)
    });
    let device_of = |name: &str| {
        let leg = legs.iter().find(|leg| leg.name == name);
        leg.and_then(|leg| leg.device.clone())
    };
    let cleared = cleared.unwrap_or(0);
    let mut replacement = survey.replacement.as_ref().and_then(|(name, member)| {
        let sb = &member.superblock;
        // Bits stay set while one is filled: from there on they tell what it missed.
        let goes_on = sb.is_recovering() && sb.events >= cleared;
        let begin = LegStart {
            name: name.clone(),
            device: device_of(name),
            state: LegState::Out,
            superblock: Some(sb.clone()),
            places: member.places,
            resume: Resume::From(if goes_on { sb.recovery_offset } else { 0 }),
        };
        Some((LegIndex(sb.slot()?), begin))
    });
    let mut leg_start = |slot: usize| match &survey.members[slot] {
        Some((name, member)) => LegStart {
            name: name.clone(),
            device: device_of(name),
            state: if in_sync(slot) {
                LegState::InSync
            } else {
                LegState::Out
            },
            superblock: Some(member.superblock.clone()),
            places: member.places,
            resume: match choice.roles[slot] {
                Role::TooOld => Resume::From(0),
                Role::Partly(to) => Resume::From(to),
                Role::InSync | Role::Stale | Role::Absent => Resume::Bits,
            },
        },
        None => match replacement.take_if(|(of, _)| usize::from(of.0) == slot) {
            // The leg that it was to replace is gone: it is filled in its place.
            Some((_, begin)) => begin,
            None => LegStart {
                name: nameless
                    .next()
                    .map_or_else(String::new, |leg| leg.name.clone()),
                device: None,
                state: LegState::Absent,
                superblock: None,
                places: model.places,
                resume: Resume::Bits,
            },
        },
    };
    let slots = [leg_start(0), leg_start(1)];
    Start {
        legs: slots,
        replacement,
        identity,
        raid_disks: survey.raid_disks,
        events: choice.events,
        holders: survey.witness.map_or([0; 2], |witness| witness.devices),
        recorded_out: if choice.must_record { 0 } else { out },
        record_counter: records.max().unwrap_or(0),
        claim_counter,
        recorded_isids,
        events_cleared: cleared,
        dirty,
        unclean: choice.unclean,
        witness_flushed: flushed,
    }
}
