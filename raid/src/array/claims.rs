//! The array's side of the claim: refreshed on every leg, asked for on every new session.

use super::{Array, Leg};
use crate::claim::{read_claim, write_claim, Claim, ClaimGate, SharedGate, ISIDS_MAX, REFRESH};
use blockdev::{Admission, IoError, Kind, Refusal};
use std::rc::Rc;

impl Array {
    /// Writes the claim to every leg that can be reached, and refreshes it from now on. Call it
    /// after assembly has found no foreign claim, before anything else is written. `Ok` when at
    /// least one leg has it.
    ///
    /// # Panics
    /// If the options name no owner.
    pub async fn begin_claiming(&self) -> Result<(), IoError> {
        assert!(
            self.options.owner.is_some(),
            "an array without owner claims nothing"
        );
        for leg in &self.legs {
            self.guard_sessions(leg);
        }
        let result = self.refresh_claims().await;
        let (me, rt) = (self.me.clone(), self.rt.clone());
        self.rt.spawn(async move {
            loop {
                rt.sleep(REFRESH).await;
                let Some(array) = me.upgrade() else { return };
                if array.closed().is_some() {
                    return;
                }
                // A leg that cannot be reached is noticed by what is written there.
                let _ = array.refresh_claims().await;
            }
        });
        result
    }

    /// Has the leg's device ask on each new session whether the claim is still ours.
    pub(super) fn guard_sessions(&self, leg: &Leg) {
        let (Some(owner), Some(device)) = (&self.options.owner, leg.device()) else {
            return;
        };
        let (me, index) = (self.me.clone(), leg.index);
        let gate = ClaimGate::new(owner.node, leg.places(), move |node| {
            if let Some(array) = me.upgrade() {
                array.lose(&format!(
                    "{} is claimed by node {node}",
                    array.leg(index).name()
                ));
            }
        });
        let gate: Rc<dyn Admission> = Rc::new(SharedGate(Rc::new(gate)));
        device.set_admission(Rc::downgrade(&gate));
        *leg.gate.borrow_mut() = Some(gate);
    }

    async fn refresh_claims(&self) -> Result<(), IoError> {
        let Some(mut owner) = self.options.owner.clone() else {
            return Ok(());
        };
        owner.isids.extend(self.recorded_isids.borrow().iter());
        owner.isids.sort_unstable();
        owner.isids.dedup();
        if owner.isids.len() > ISIDS_MAX {
            return Err(IoError::not_applied(Kind::NoSpace));
        }
        let counter = self.claim_counter.get() + 1;
        self.claim_counter.set(counter);
        let claim = Claim {
            array: self.identity.array,
            owner,
            counter,
            time: self.rt.wall(),
        };
        let first = self.claim_leg(&self.legs[0], &claim);
        let second = self.claim_leg(&self.legs[1], &claim);
        let (first, second) = crate::notify::both(first, second).await;
        self.claim_leg(&self.legs[2], &claim).await;
        if self.failed.borrow().is_some() {
            return Err(IoError::not_applied(Kind::Refused(Refusal::NotOwner)));
        }
        if first || second {
            Ok(())
        } else {
            Err(IoError::not_applied(Kind::Closed))
        }
    }

    async fn claim_leg(&self, leg: &Leg, claim: &Claim) -> bool {
        let Some(device) = leg.device().filter(|_| leg.superblock.borrow().is_some()) else {
            return false;
        };
        let places = leg.places();
        match read_claim(&*device, &places).await {
            Ok(Some(found)) if found.owner.node != claim.owner.node => {
                let text = format!("{} is claimed by node {}", leg.name(), found.owner.node);
                self.lose(&text);
                false
            }
            Ok(_) => {
                let tenure = leg.tenure.get();
                let written = write_claim(&*device, &self.pool, &places, claim).await;
                if written.is_ok() && leg.tenure.get() == tenure {
                    leg.claimed.set(claim.counter);
                }
                written.is_ok()
            }
            Err(_) => false,
        }
    }

    /// Another node owns a leg: this array ends for good.
    fn lose(&self, text: &str) {
        if self.failed.borrow().is_some() {
            return;
        }
        *self.failed.borrow_mut() = Some(text.to_owned());
        self.report(
            "claim_lost",
            self.options.volume.clone(),
            text.to_owned(),
            true,
        );
        self.stir();
    }
}
