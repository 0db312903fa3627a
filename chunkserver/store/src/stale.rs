//! Evidence that the master is an old one, brought back with metadata that later orders had
//! outrun (P8, `master-ha.md` §4).
//!
//! The metaid is the same, so nothing but its orders gives it away: (a) it allots a chunk id that
//! had been allotted before; (b) it sends clients for an older version than the one held; (d) it
//! deletes much right after a registration. Each of these makes every delete of that registration
//! held until an operator purges it. (c) A delete of any version, of a copy that never failed,
//! is what a stale master does to a newer copy, but also what the right one does to a copy that
//! missed writes while the node was away: that copy alone is held hard.
//!
//! Time and counts are arguments; nothing is judged before a master is registered.

use blockdev::Instant;
use std::collections::BTreeSet;
use std::time::Duration;

/// (d) counts deletes for so long after a registration.
const DELETES_WATCHED: Duration = Duration::from_secs(600);
/// (d) needs so many at least, and 1 % of all chunks.
const DELETES_MIN: u64 = 100;
/// (b) needs so much time after a registration: clients remember locations for a while.
const VERSIONS_SETTLED: Duration = Duration::from_secs(60);
/// Chunks remembered as changed, or as failed. Past that the rule in question says nothing.
const REMEMBERED_MAX: usize = 65_536;

/// Chunk ids, at most [`REMEMBERED_MAX`]; past that it claims to hold each.
#[derive(Default)]
struct Remembered {
    ids: BTreeSet<u64>,
    full: bool,
}

impl Remembered {
    fn insert(&mut self, id: u64) {
        self.full |= self.ids.len() >= REMEMBERED_MAX;
        if !self.full {
            self.ids.insert(id);
        }
    }

    fn contains(&self, id: u64) -> bool {
        self.full || self.ids.contains(&id)
    }
}

struct Registration {
    at: Instant,
    wall_s: u32,
    chunks: u64,
    deletes: u64,
    /// Chunks whose version this registration's master ordered.
    changed: Remembered,
}

/// See the module.
#[derive(Default)]
pub(crate) struct StaleWatch {
    registration: Option<Registration>,
    /// The highest id ever ordered by CREATE or DUPLICATE.
    highest: u64,
    /// Chunks of which an operation failed here, so that the master gives this copy up.
    failed: Remembered,
    suspected: bool,
}

/// What is to become of a deleted chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    Usual,
    /// Held until purged by command.
    Hard,
    /// The same for this chunk alone: why.
    HardAlone(String),
    /// This delete is evidence.
    Evidence(String),
}

impl StaleWatch {
    pub(crate) fn new(highest: u64) -> StaleWatch {
        StaleWatch {
            highest,
            ..StaleWatch::default()
        }
    }

    /// A master has accepted us, at `wall_s` Unix seconds; we hold `chunks` chunks.
    pub(crate) fn on_registered(&mut self, at: Instant, wall_s: u32, chunks: u64) {
        self.registration = Some(Registration {
            at,
            wall_s,
            chunks,
            deletes: 0,
            changed: Remembered::default(),
        });
    }

    /// The volume belongs to another file system from now on: its ids begin anew.
    pub(crate) fn on_new_owner(&mut self) {
        *self = StaleWatch::default();
    }

    /// The master ordered a new chunk. In MooseFS 4 the top byte tells parts of one chunk apart:
    /// such ids come in no order.
    pub(crate) fn on_allotted(&mut self, id: u64) -> Option<String> {
        if id >> 56 != 0 {
            return None;
        }
        let highest = self.highest;
        self.highest = highest.max(id);
        let registration = self.registration.as_mut()?;
        registration.changed.insert(id);
        (id <= highest).then(|| {
            format!("it allots chunk {id:016X} although {highest:016X} had been allotted before")
        })
    }

    /// The registered master ordered a version of the chunk.
    pub(crate) fn on_changed(&mut self, id: u64) {
        if let Some(registration) = &mut self.registration {
            registration.changed.insert(id);
        }
    }

    /// An operation on the chunk failed here.
    pub(crate) fn on_failed(&mut self, id: u64) {
        self.failed.insert(id);
    }

    /// Somebody asked for a version that is not the one held.
    pub(crate) fn on_other_version(
        &mut self,
        id: u64,
        (asked, held): (u32, u32),
        now: Instant,
    ) -> Option<String> {
        let registration = self.registration.as_mut()?;
        let settled = now.since(registration.at) >= VERSIONS_SETTLED;
        if asked >= held || !settled || registration.changed.contains(id) {
            return None;
        }
        // Once a chunk is enough.
        registration.changed.insert(id);
        Some(format!(
            "chunk {id:016X} is asked for in version {asked}, and held in version {held}"
        ))
    }

    /// A delete of `version` (0: any) is ordered. `may_hold`: a single chunk may be held hard.
    pub(crate) fn on_delete(
        &mut self,
        id: u64,
        version: u32,
        now: Instant,
        may_hold: bool,
    ) -> Deletion {
        let Some(registration) = &mut self.registration else {
            return Deletion::Usual;
        };
        if self.suspected {
            return Deletion::Hard;
        }
        if version == 0 {
            return match may_hold && !self.failed.contains(id) {
                true => Deletion::HardAlone(format!(
                    "chunk {id:016X} is deleted in any version, though nothing of it failed here \
                     (expected if it was changed while this node was away)"
                )),
                false => Deletion::Usual,
            };
        }
        if now.since(registration.at) >= DELETES_WATCHED {
            return Deletion::Usual;
        }
        registration.deletes += 1;
        match registration.deletes > DELETES_MIN.max(registration.chunks / 100) {
            true => Deletion::Evidence(format!(
                "{} of {} chunks were deleted right after the registration",
                registration.deletes, registration.chunks
            )),
            false => Deletion::Usual,
        }
    }

    /// Every delete is held hard from now on; false if that was so already.
    pub(crate) fn suspect(&mut self) -> bool {
        !std::mem::replace(&mut self.suspected, true)
    }

    /// An operator has dealt with everything that was held.
    pub(crate) fn settle(&mut self) {
        self.suspected = false;
    }

    /// Since when deletes count as the suspect's, Unix seconds.
    pub(crate) fn since_s(&self) -> Option<u32> {
        self.registration.as_ref().map(|r| r.wall_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Instant {
        Instant(s * 1_000_000_000)
    }

    fn registered(chunks: u64) -> StaleWatch {
        let mut watch = StaleWatch::new(1000);
        watch.on_registered(at(0), 0, chunks);
        watch
    }

    #[test]
    fn an_id_allotted_twice_is_evidence() {
        let mut watch = StaleWatch::new(1000);
        assert_eq!(watch.on_allotted(900), None, "no master yet");
        watch.on_registered(at(0), 0, 0);
        assert_eq!(watch.on_allotted(1001), None);
        assert!(watch.on_allotted(1001).is_some());
        assert!(watch.on_allotted(17).is_some());
        assert_eq!(watch.on_allotted((1 << 56) + 5), None, "a part of a chunk");
        watch.on_new_owner();
        watch.on_registered(at(0), 0, 0);
        assert_eq!(watch.on_allotted(1), None);
    }

    #[test]
    fn a_lower_version_is_evidence_unless_this_master_changed_it() {
        let mut watch = registered(10);
        assert_eq!(watch.on_other_version(1, (3, 4), at(59)), None, "too soon");
        assert_eq!(
            watch.on_other_version(1, (5, 4), at(61)),
            None,
            "a newer one"
        );
        watch.on_changed(2);
        assert_eq!(watch.on_other_version(2, (3, 4), at(61)), None);
        assert!(watch.on_other_version(1, (3, 4), at(61)).is_some());
        assert_eq!(watch.on_other_version(1, (3, 4), at(62)), None, "told");
    }

    #[test]
    fn an_unexplained_delete_of_any_version_holds_that_chunk() {
        let mut watch = registered(10);
        watch.on_failed(5);
        assert_eq!(watch.on_delete(5, 0, at(1), true), Deletion::Usual);
        assert!(matches!(
            watch.on_delete(6, 0, at(1), true),
            Deletion::HardAlone(_)
        ));
        assert_eq!(
            watch.on_delete(7, 0, at(1), false),
            Deletion::Usual,
            "budget"
        );
        assert_eq!(watch.on_delete(8, 3, at(1), true), Deletion::Usual);
        assert!(!watch.suspected);
    }

    #[test]
    fn many_deletes_right_after_a_registration_are_evidence() {
        let mut watch = registered(20_000);
        for id in 0..200 {
            assert_eq!(watch.on_delete(id, 1, at(100), true), Deletion::Usual);
        }
        assert!(matches!(
            watch.on_delete(200, 1, at(100), true),
            Deletion::Evidence(_)
        ));
        assert!(watch.suspect());
        assert_eq!(watch.on_delete(201, 1, at(100), true), Deletion::Hard);
        watch.settle();
        assert_eq!(watch.on_delete(202, 1, at(700), true), Deletion::Usual);
    }

    #[test]
    fn what_it_remembers_is_bounded() {
        let mut watch = registered(10);
        for id in 0..2 * REMEMBERED_MAX as u64 {
            watch.on_failed(id);
        }
        assert_eq!(watch.failed.ids.len(), REMEMBERED_MAX);
        assert_eq!(watch.on_delete(1 << 40, 0, at(1), true), Deletion::Usual);
    }
}
