//! Who this node is on the legs of a volume, and what it does to whoever was there before (P11).

use std::borrow::Borrow;

use blockdev::rt::Wall;
use raid::claim::{Claim, Owner, ALIVE};
use raid::Uuid;

use crate::assemble::Leg;
use crate::config::{Config, DeviceKind, Volume};

/// The iSCSI name that claims on a volume record: that of its first unit, empty if all its legs are local. Legs
/// may use several names, but ISIDs are derived from their own each.
pub(crate) fn initiator_name(config: &Config, volume: &Volume) -> String {
    let devices = volume.legs.iter().filter_map(|name| config.device(name));
    let mut names = devices.filter_map(|device| match &device.kind {
        DeviceKind::Iscsi(unit) => Some(unit.iscsi.initiator_name.clone()),
        DeviceKind::Local(_) => None,
    });
    names.next().unwrap_or_default()
}

/// What the claims of this node say: its UUID, its iSCSI name, and the ISIDs of every session that may write.
pub(crate) fn owner(
    node: Uuid,
    initiator_name: &str,
    legs: impl IntoIterator<Item = impl Borrow<Leg>>,
) -> Owner {
    Owner {
        node,
        initiator_name: initiator_name.to_owned(),
        isids: legs
            .into_iter()
            .flat_map(|leg| leg.borrow().isids())
            .collect(),
    }
}

/// Has the next fence of `leg` end what is left of the sessions that its claim records, with our own.
pub(crate) fn fence_recorded(leg: &Leg, claim: &Claim) {
    let Leg::Unit(unit) = leg else { return };
    let name = &claim.owner.initiator_name;
    let recorded = claim.owner.isids.iter();
    unit.startup_fence(recorded.map(|isid| (name.clone(), *isid)).collect());
}

/// A claim in words: whose, how old, and whether its owner seems to be alive.
pub(crate) fn in_words(claim: &Claim, now: Wall) -> String {
    let alive = match is_alive(claim, now) {
        true => ": it seems to be running",
        false => "",
    };
    format!("{}, {}{alive}", whose(claim), age(claim, now))
}

/// Whose a claim is, in words.
pub(crate) fn whose(claim: &Claim) -> String {
    let owner = &claim.owner;
    match owner.initiator_name.as_str() {
        "" => format!("node {}", owner.node),
        name => format!("node {} ({name})", owner.node),
    }
}

/// When a claim was written, in words.
pub(crate) fn age(claim: &Claim, now: Wall) -> String {
    format!("{:.1} s ago", age_us(claim, now) as f64 / 1e6)
}

/// Whether the claim advanced so lately that its owner must be taken for alive. Clocks of two nodes may differ:
/// a claim from the future is one of a living owner.
pub(crate) fn is_alive(claim: &Claim, now: Wall) -> bool {
    age_us(claim, now) < ALIVE.as_micros() as u64
}

fn age_us(claim: &Claim, now: Wall) -> u64 {
    now.0.saturating_sub(claim.time.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_says_whose_it_is_and_how_old() {
        let claim = |seconds: u64| Claim {
            array: Uuid([1; 16]),
            owner: Owner {
                node: Uuid([2; 16]),
                initiator_name: "iqn.2024-12.example:n".to_owned(),
                isids: Vec::new(),
            },
            counter: 1,
            time: Wall(seconds * 1_000_000),
        };
        let now = Wall(100_500_000);
        assert!(in_words(&claim(98), now).ends_with("2.5 s ago: it seems to be running"));
        assert!(in_words(&claim(50), now).ends_with("(iqn.2024-12.example:n), 50.5 s ago"));
        assert!(is_alive(&claim(200), now), "its clock is ahead");
    }
}
