//! Which legs count at start: a pure function of what legs and witness say.
//!
//! Freshness first: the higher event count, one behind being as fresh; then the fresher leg's
//! word about who is out. A leg that is out gives nothing, whatever it claims of itself. Legs
//! that each call the other out have diverged: refused, with both histories, unless the witness
//! decided later than either. One leg alone serves only if its own word or the witness calls the
//! other out, or the witness says that everything was flushed at its event count; otherwise the
//! other leg may hold acknowledged writes that this one lacks.
//!
//! Source: md(4) for events and roles; store rules R2 and R14.

use crate::probe::Member;
use crate::superblock::wall_of;
use crate::witness::WitnessRecord;
use blockdev::mutation;
use blockdev::rt::Wall;
use thiserror::Error;

/// What one leg says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Event count of its freshest word.
    pub events: u64,
    /// Event count of its superblock alone: what it can be re-added by.
    pub superblock_events: u64,
    /// Slots it calls out, as a mask.
    pub out: u8,
    /// It is only rebuilt up to this sector.
    pub rebuilt_to: Option<u64>,
    /// Bits are complete for legs at least this new.
    pub events_cleared: u64,
    /// Cleared bits may be believed.
    pub bits_count: bool,
    /// It was stopped cleanly.
    pub clean: bool,
    /// Last update of its superblock.
    pub utime: Wall,
}

impl View {
    /// Of a member.
    pub fn of(member: &Member) -> View {
        let (events, out) = member.verdict();
        let sb = &member.superblock;
        View {
            events,
            superblock_events: sb.events,
            out,
            rebuilt_to: sb.is_recovering().then(|| {
                // By the bitmap alone nothing is promised about the rest.
                let by_offset = sb.features & crate::superblock::FEATURE_RECOVERY_BITMAP == 0;
                if by_offset {
                    sb.recovery_offset
                } else {
                    0
                }
            }),
            events_cleared: member.bitmap.events_cleared,
            bits_count: member.bitmap.is_trustworthy(),
            clean: sb.is_clean(),
            utime: wall_of(sb.utime),
        }
    }
}

/// What becomes of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its content counts.
    InSync,
    /// It missed something; set bits tell all that may differ.
    Stale,
    /// It missed more than the bits tell, from the beginning.
    TooOld,
    /// It is rebuilt up to this sector; below it, set bits tell the rest.
    Partly(u64),
    /// Not there.
    Absent,
}

/// How to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// By slot.
    pub roles: [Role; 2],
    /// A slot is out, and no leg's own word says so yet: witness and record before anything is
    /// acknowledged.
    pub must_record: bool,
    /// Set bits may hide differences between legs in sync.
    pub unclean: bool,
    /// Highest event count anywhere.
    pub events: u64,
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Run so.
    Run(Choice),
    /// Not with these legs alone.
    Wait(Lack),
    /// Each leg went on without the other; both histories.
    Diverged(String),
}

/// What is lacking for the legs there are to begin. Names and ways out are added by whoever knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Lack {
    /// Any leg at all.
    #[error("no leg is there")]
    AnyLeg,
    /// A leg that is whole.
    #[error("the only leg here is partly rebuilt")]
    WholeLeg,
    /// The other leg.
    #[error("one leg is missing and {0}")]
    OtherLeg(Doubt),
}

/// Why one leg does not begin without the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Doubt {
    /// The witness calls the leg out that is here.
    #[error("the witness says that this one is out")]
    CalledOut,
    /// The witness is ahead of the leg.
    #[error("the witness knows a later state")]
    WitnessIsLater,
    /// The witness is behind the leg.
    #[error("the witness knows another state")]
    WitnessDiffers,
    /// The run before did not end with everything on both legs.
    #[error("it may hold acknowledged writes that this one lacks")]
    Unflushed,
    /// Nothing tells.
    #[error("there is no witness")]
    NoWitness,
}

/// Decides for an array of two slots.
pub fn decide(views: [Option<View>; 2], witness: Option<WitnessRecord>, alone: bool) -> Decision {
    match views {
        [Some(a), Some(b)] => decide_pair([a, b], witness, alone),
        [Some(a), None] => decide_lone(0, a, witness, alone),
        [None, Some(b)] => decide_lone(1, b, witness, alone),
        [None, None] => Decision::Wait(Lack::AnyLeg),
    }
}

/// Decides for an array of one slot.
pub fn decide_single(view: View) -> Decision {
    Decision::Run(Choice {
        roles: [Role::InSync, Role::Absent],
        must_record: false,
        unclean: !view.clean,
        events: view.events,
    })
}

fn names(view: &View, slot: usize) -> bool {
    view.out >> slot & 1 == 1
}

fn decide_pair(views: [View; 2], witness: Option<WitnessRecord>, alone: bool) -> Decision {
    let [a, b] = views;
    let events = a.events.max(b.events);
    let all_told = witness;
    let witness = witness.filter(|w| w.out == 1 || w.out == 2);
    let run = |fresh: usize, must_record: bool| {
        let (source, other) = (views[fresh], views[1 - fresh]);
        let mut roles = [Role::InSync; 2];
        roles[1 - fresh] = match other.rebuilt_to {
            Some(to) if covers(&source, &other) => Role::Partly(to),
            Some(_) => Role::TooOld,
            None if covers(&source, &other) => Role::Stale,
            None => Role::TooOld,
        };
        if mutation::off("raid.stale-leg") {
            roles = [Role::InSync; 2];
        }
        Decision::Run(Choice {
            roles,
            must_record,
            unclean: !source.clean,
            events: events.max(witness.map_or(0, |w| w.events)),
        })
    };
    if mutation::off("raid.freshness") && a.events != b.events {
        return run(0, true);
    }
    match (a.rebuilt_to, b.rebuilt_to) {
        // A leg that is not whole says nothing about whether the other one is.
        (None, Some(_)) if names(&a, 1) => return run(0, false),
        (Some(_), None) if names(&b, 0) => return run(1, false),
        (None, Some(_)) | (Some(_), None) => {
            let whole = usize::from(a.rebuilt_to.is_some());
            return match decide_lone(whole, views[whole], all_told, alone) {
                Decision::Run(choice) => run(whole, choice.must_record),
                other => other,
            };
        }
        (Some(_), Some(_)) => return Decision::Diverged(histories(&views)),
        (None, None) => {}
    }
    // The witness is written before any leg: it may know of a decision no leg tells.
    if let Some(w) = witness.filter(|w| w.events > events) {
        let fresh = if w.out == 1 { 1 } else { 0 };
        // It must not have been left behind before.
        let behind = views[1 - fresh].events > views[fresh].events + 1;
        if behind && !names(&views[1 - fresh], fresh) {
            return Decision::Diverged(histories(&views));
        }
        return run(fresh, true);
    }
    match (names(&a, 1), names(&b, 0)) {
        (false, false) if a.events.abs_diff(b.events) <= 1 => Decision::Run(Choice {
            roles: [Role::InSync; 2],
            must_record: false,
            unclean: !(a.clean && b.clean),
            events,
        }),
        (false, false) => run(usize::from(b.events > a.events), true),
        (true, false) if a.events > b.events => run(0, false),
        (false, true) if b.events > a.events => run(1, false),
        // Each calls the other out, or an older leg contradicts a newer: only a witness that is
        // as new as the newest word can tell.
        _ => match witness.filter(|w| w.events == events) {
            Some(w) => run(if w.out == 1 { 1 } else { 0 }, true),
            None => Decision::Diverged(histories(&views)),
        },
    }
}

fn covers(source: &View, other: &View) -> bool {
    source.bits_count && other.superblock_events >= source.events_cleared
}

fn histories(views: &[View; 2]) -> String {
    let one = |slot: usize| {
        let v = &views[slot];
        let (seconds, claim) = (v.utime.0 / 1_000_000, names(v, 1 - slot));
        let says = if v.rebuilt_to.is_some() {
            "is only partly rebuilt"
        } else if claim {
            "calls the other out"
        } else {
            "calls both in sync"
        };
        format!(
            "slot {slot}: events {}, updated {seconds} s after 1970, {says}",
            v.events
        )
    };
    format!("the legs have diverged ({}; {})", one(0), one(1))
}

fn decide_lone(slot: usize, view: View, witness: Option<WitnessRecord>, alone: bool) -> Decision {
    let other = 1 - slot;
    let mut roles = [Role::Absent; 2];
    roles[slot] = Role::InSync;
    let events = view.events.max(witness.map_or(0, |w| w.events));
    let run = |must_record| {
        Decision::Run(Choice {
            roles,
            must_record,
            unclean: !view.clean,
            events,
        })
    };
    if view.rebuilt_to.is_some() {
        return Decision::Wait(Lack::WholeLeg);
    }
    if alone || mutation::off("raid.lone-start") {
        return run(!names(&view, other));
    }
    let wait = |doubt| Decision::Wait(Lack::OtherLeg(doubt));
    match witness {
        Some(w) if w.events > view.events && w.out >> slot & 1 == 1 => wait(Doubt::CalledOut),
        Some(w) if w.events > view.events && w.out != 1 << other => wait(Doubt::WitnessIsLater),
        Some(w) if w.events >= view.events && w.out == 1 << other => run(!names(&view, other)),
        _ if names(&view, other) => run(false),
        Some(w) if w.flushed && w.events == view.events && w.out == 0 => run(true),
        Some(w) if w.events != view.events => wait(Doubt::WitnessDiffers),
        Some(_) => wait(Doubt::Unflushed),
        None => wait(Doubt::NoWitness),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uuid::Uuid;

    fn view(events: u64, out: u8) -> View {
        View {
            events,
            superblock_events: events,
            out,
            rebuilt_to: None,
            events_cleared: 0,
            bits_count: true,
            clean: true,
            utime: Wall(0),
        }
    }

    fn witness(events: u64, out: u8, flushed: bool) -> Option<WitnessRecord> {
        Some(WitnessRecord {
            array: Uuid([0; 16]),
            events,
            out,
            flushed,
            devices: [0; 2],
        })
    }

    fn roles(decision: Decision) -> [Role; 2] {
        match decision {
            Decision::Run(choice) => choice.roles,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn equal_or_one_behind_is_fresh() {
        for (a, b) in [(5, 5), (5, 6), (6, 5)] {
            let decided = decide([Some(view(a, 0)), Some(view(b, 0))], None, false);
            assert_eq!(roles(decided), [Role::InSync; 2]);
        }
    }

    #[test]
    fn raid_freshness_the_higher_events_decide() {
        let decided = decide([Some(view(4, 0)), Some(view(6, 1))], None, false);
        assert_eq!(roles(decided), [Role::Stale, Role::InSync]);
        let decided = decide([Some(view(4, 0)), Some(view(9, 0))], None, false);
        assert_eq!(roles(decided), [Role::Stale, Role::InSync]);
    }

    #[test]
    fn a_leg_older_than_the_cleared_bits_is_rebuilt() {
        let mut fresh = view(10, 1);
        fresh.events_cleared = 6;
        let decided = decide([Some(view(5, 0)), Some(fresh)], None, false);
        assert_eq!(roles(decided), [Role::TooOld, Role::InSync]);
    }

    #[test]
    fn a_partly_rebuilt_leg_goes_on_with_its_rebuild() {
        let mut part = view(10, 0);
        part.rebuilt_to = Some(4096);
        let decided = decide([Some(view(10, 2)), Some(part)], None, false);
        assert_eq!(roles(decided), [Role::InSync, Role::Partly(4096)]);
        assert!(matches!(
            decide([None, Some(part)], None, true),
            Decision::Wait(_)
        ));
    }

    #[test]
    fn a_partly_rebuilt_leg_is_no_witness_for_the_other() {
        let mut part = view(10, 0);
        part.rebuilt_to = Some(4096);
        let decided = decide(
            [Some(view(10, 0)), Some(part)],
            witness(12, 1, false),
            false,
        );
        assert!(matches!(decided, Decision::Wait(_)), "{decided:?}");
        let decided = decide(
            [Some(view(10, 0)), Some(part)],
            witness(10, 2, false),
            false,
        );
        assert_eq!(roles(decided), [Role::InSync, Role::Partly(4096)]);
    }

    #[test]
    fn diverged_legs_are_refused_with_both_histories() {
        let decided = decide([Some(view(8, 2)), Some(view(10, 1))], None, false);
        let Decision::Diverged(text) = decided else {
            panic!("{decided:?}")
        };
        assert!(
            text.contains("events 8") && text.contains("events 10"),
            "{text}"
        );
        let equal = decide([Some(view(8, 2)), Some(view(8, 0))], None, false);
        assert!(matches!(equal, Decision::Diverged(_)));
    }

    #[test]
    fn the_witness_decides_a_change_of_mind() {
        let views = [Some(view(8, 2)), Some(view(6, 1))];
        let decided = decide(views, witness(8, 2, false), false);
        assert_eq!(roles(decided), [Role::InSync, Role::Stale]);
        let unwritten = [Some(view(4, 0)), Some(view(6, 1))];
        let decided = decide(unwritten, witness(8, 2, false), false);
        assert_eq!(roles(decided), [Role::InSync, Role::Stale]);
    }

    #[test]
    fn a_leg_left_behind_is_not_made_the_fresh_one_by_the_witness() {
        let behind = [Some(view(6, 0)), Some(view(2, 0))];
        let decided = decide(behind, witness(8, 1, false), false);
        assert!(matches!(decided, Decision::Diverged(_)), "{decided:?}");
    }

    #[test]
    fn raid_lone_start_needs_a_word_about_the_other() {
        let waits = |view, witness| {
            matches!(
                decide([Some(view), None], witness, false),
                Decision::Wait(_)
            )
        };
        assert!(waits(view(6, 0), None));
        assert!(waits(view(6, 0), witness(6, 0, false)), "busy");
        assert!(waits(view(6, 0), witness(4, 0, true)), "older");
        assert!(waits(view(6, 0), witness(8, 1, false)), "names this one");
        assert!(waits(view(6, 2), witness(8, 1, false)), "a change of mind");
        assert!(
            waits(view(6, 2), witness(8, 0, false)),
            "both were in sync later"
        );
        assert!(!waits(view(6, 2), None), "its own word");
        assert!(
            !waits(view(6, 0), witness(8, 2, false)),
            "the witness' word"
        );
        assert!(!waits(view(6, 0), witness(6, 0, true)), "flushed");
        let told = decide([Some(view(6, 0)), None], None, true);
        assert_eq!(roles(told), [Role::InSync, Role::Absent]);
    }
}
