//! What a leg is that has come back.
//!
//! Bits tell what a leg lacks that still holds all it acknowledged. So its superblock is read first,
//! after the fence, and compared with what the leg was given: it must read as the last one that it
//! answered, or as one sent since. A leg that shows less (an older image was put back, a snapshot
//! restored, answered writes lost) or anything else is filled from the start, whatever bits say.
//! What another host has written in the meantime is left alone, for an operator to choose.
//!
//! A superblock alone does not tell how fresh the data are: that is why the event count rises before
//! bits are cleared ([`super::super::intent`]).

use crate::array::{Array, Leg};
use crate::claim::Claim;
use crate::layout::{CLAIM_SLOTS, SLOT_SECTORS, SUPER_SECTOR};
use crate::probe::{newest_record, read_superblock, MemberError};
use crate::superblock::{wall_of, Superblock};
use blockdev::{BlockDevice, IoCtx, IoError, Kind, Op, Sector};

/// What was found on a leg that is out.
pub(super) enum Returned {
    /// It does not answer yet.
    Silent,
    /// It holds what it held.
    AsKnown(Superblock),
    /// It is the same leg and does not; why.
    Changed(Superblock, String),
    /// It is not for us to write; why.
    Strange(String),
}

impl Array {
    /// Call it after the fence: nothing sent earlier may land behind what is read here.
    pub(super) async fn look_at(&self, leg: &Leg, device: &dyn BlockDevice) -> Returned {
        let found = match read_superblock(device).await {
            Ok(found) => found,
            Err(MemberError::Io(_)) => return Returned::Silent,
            Err(other) => {
                return Returned::Strange(format!("{other}; `antler leg replace` fills it"));
            }
        };
        let known = leg.known();
        let is_other = known.as_ref().is_some_and(|sb| sb.device != found.device);
        if found.array != self.identity.array || is_other {
            return Returned::Strange("another device came back in its place".into());
        }
        let record = newest_record(device, &leg.places(), found.array, found.device).await;
        let recorded = match record {
            Ok(record) => record.map_or(0, |record| record.events),
            // A slot that cannot be read is written again in its turn.
            Err(error) if matches!(error.kind, Kind::Medium { .. }) => 0,
            Err(_) => return Returned::Silent,
        };
        let by_another = || {
            let text = "it was written by another host meanwhile; `antler leg replace` fills it";
            Returned::Strange(text.into())
        };
        if found.events.max(recorded) > self.events_sent.get() {
            return by_another();
        }
        let is_covered = found.events >= self.events_cleared();
        if leg.may_hold(&found) && (is_covered || leg.rebuilt_durably.get().is_some()) {
            return Returned::AsKnown(found);
        }
        let age = |sb: &Superblock| (sb.events, wall_of(sb.utime).0);
        let is_older = known.as_ref().is_some_and(|sb| age(&found) < age(sb));
        let survivor = self.peer(leg.index).index.0;
        if !is_older && found.missing_slots() >> survivor & 1 == 1 {
            return by_another();
        }
        let had = known.map_or(0, |sb| sb.events);
        let what = match is_older {
            true => "older bytes than it had acknowledged",
            false => "a superblock that it was not given",
        };
        let text = format!(
            "came back with {what} (events {}, it had {had}): bits do not tell what it lacks, \
             and it is filled from the start",
            found.events
        );
        Returned::Changed(found, text)
    }

    /// The leg holds what it held. What of a rebuild no superblock tells may have been lost with an
    /// image that shows the same one.
    pub(super) fn goes_on(&self, leg: &Leg, found: &Superblock) {
        leg.was_read(found);
        let noted = match found.is_recovering() {
            true => found.recovery_offset,
            false => 0,
        };
        let rebuilt = leg.rebuilt_durably.get();
        leg.rebuilt_durably.set(rebuilt.map(|to| to.min(noted)));
    }

    /// Whether a leg whose sessions had all ended still holds what it held: by its superblock, and by
    /// its claim, which is refreshed more often. `None` when it is out before that is known.
    pub(in crate::array) async fn is_unchanged(&self, leg: &Leg) -> Option<Result<bool, IoError>> {
        let (known, claimed) = (leg.told(), leg.claimed.get());
        let page = match self
            .read_page(leg, Sector(SUPER_SECTOR), SLOT_SECTORS)
            .await?
        {
            Ok(page) => page,
            Err(error) if matches!(error.kind, Kind::Medium { .. }) => return Some(Ok(false)),
            Err(error) => return Some(Err(error)),
        };
        let is_known = Superblock::parse(&page)
            .is_ok_and(|found| known.contains(&found) || leg.may_hold(&found));
        if !is_known || claimed == 0 {
            return Some(Ok(is_known));
        }
        let claims = leg.places().claims;
        let slots = self.read_page(leg, claims, CLAIM_SLOTS * SLOT_SECTORS);
        Some(match slots.await? {
            Ok(slots) => Ok(Claim::newest(&slots).is_some_and(|claim| claim.counter >= claimed)),
            // The next claim is written there, and the superblock is as it was.
            Err(error) if matches!(error.kind, Kind::Medium { .. }) => Ok(true),
            Err(error) => Err(error),
        })
    }

    async fn read_page(
        &self,
        leg: &Leg,
        at: Sector,
        sectors: u64,
    ) -> Option<Result<Vec<u8>, IoError>> {
        loop {
            let op = Op::Read {
                at,
                sectors: sectors as u32,
            };
            let read = leg.device()?.submit(op, IoCtx::metadata());
            match self.patiently(leg, read, self.options.late_after).await? {
                Err(IoError {
                    kind: Kind::Again { after },
                    ..
                }) => {
                    self.rt.sleep(after).await;
                }
                read => return Some(read.map(|done| done.into_data().to_vec())),
            }
        }
    }
}
