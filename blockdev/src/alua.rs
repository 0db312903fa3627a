//! Asymmetric logical unit access (SPC-4 §5.15, §6.37): what REPORT TARGET PORT GROUPS says.
//!
//! Both formats are understood, with and without the extended header. The data come from the
//! network: lengths are clamped to what arrived, and a descriptor that is cut ends the list.

use std::time::Duration;

/// Access state of a target port group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessState {
    /// Active/optimized.
    Optimized,
    /// Active/non-optimized: works, and may be slower.
    NonOptimized,
    /// Standby: only commands that describe the unit.
    Standby,
    /// Unavailable.
    Unavailable,
    /// Depends on the block.
    LbaDependent,
    /// Offline.
    Offline,
    /// On its way to another state.
    Transitioning,
    /// A code that SPC-4 does not have.
    Reserved(u8),
}

impl AccessState {
    /// The state of a code; bits 7–4 are no part of it.
    pub fn from_code(code: u8) -> AccessState {
        match code & 0x0f {
            0x0 => AccessState::Optimized,
            0x1 => AccessState::NonOptimized,
            0x2 => AccessState::Standby,
            0x3 => AccessState::Unavailable,
            0x4 => AccessState::LbaDependent,
            0xe => AccessState::Offline,
            0xf => AccessState::Transitioning,
            other => AccessState::Reserved(other),
        }
    }

    /// Whether READ and WRITE are served.
    pub fn serves(self) -> bool {
        matches!(
            self,
            AccessState::Optimized | AccessState::NonOptimized | AccessState::LbaDependent
        )
    }
}

/// One target port group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGroup {
    /// Its number: designator type 5 of VPD 83 says to which a path belongs.
    pub group: u16,
    /// State.
    pub state: AccessState,
    /// PREF: the group is preferred.
    pub preferred: bool,
    /// Why the state is what it is: 0 unknown, 1 by SET TARGET PORT GROUPS, 2 by the unit.
    pub status: u8,
    /// Relative target port identifiers.
    pub ports: Vec<u16>,
}

/// Answer to REPORT TARGET PORT GROUPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGroups {
    /// Longest implicit transition; `None` without the extended header, or where the unit does
    /// not say.
    pub transition: Option<Duration>,
    /// The groups, in the order of the unit.
    pub groups: Vec<PortGroup>,
    /// Whether the list is whole.
    pub complete: bool,
}

impl PortGroups {
    /// The group of this number.
    pub fn group(&self, number: u16) -> Option<&PortGroup> {
        self.groups.iter().find(|group| group.group == number)
    }
}

/// Decodes REPORT TARGET PORT GROUPS: 0–3 length; with the extended header byte 4 bits 6–4 are 1
/// and byte 5 holds seconds; then descriptors of 8 bytes and 4 for each port.
pub fn port_groups(data: &[u8]) -> Option<PortGroups> {
    let len = u32::from_be_bytes(*data.first_chunk()?) as usize;
    let rest = data.get(4..)?;
    let mut complete = rest.len() >= len;
    let mut rest = &rest[..len.min(rest.len())];
    let mut transition = None;
    // Byte 0 of a descriptor has PREF in bit 7 and the state in bits 3–0; bits 6–4 are reserved.
    if let [format, seconds, _, _, ..] = *rest {
        if format & 0x70 == 0x10 {
            transition = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
            rest = &rest[4..];
        }
    }
    let mut groups = Vec::new();
    while !rest.is_empty() {
        let Some((group, later)) = port_group(rest) else {
            complete = false;
            break;
        };
        groups.push(group);
        rest = later;
    }
    Some(PortGroups {
        transition,
        groups,
        complete,
    })
}

/// 0 PREF and state, 2–3 group, 5 status, 7 ports; of each port bytes 2–3 are its identifier.
fn port_group(bytes: &[u8]) -> Option<(PortGroup, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    let (ports, later) = rest.split_at_checked(4 * usize::from(head[7]))?;
    let group = PortGroup {
        group: u16::from_be_bytes([head[2], head[3]]),
        state: AccessState::from_code(head[0]),
        preferred: head[0] & 0x80 != 0,
        status: head[5],
        ports: ports
            .chunks_exact(4)
            .map(|port| u16::from_be_bytes([port[2], port[3]]))
            .collect(),
    };
    Some((group, later))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TWO_GROUPS: [u8; 28] = [
        0x80, 0x0f, 0, 1, 0, 2, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, // group 1, two ports
        0x02, 0x0f, 0, 7, 0, 1, 0, 1, 0, 0, 0, 3, // group 7
    ];

    fn answer(header: &[u8]) -> Vec<u8> {
        let len = (header.len() + TWO_GROUPS.len()) as u32;
        [&len.to_be_bytes(), header, &TWO_GROUPS].concat()
    }

    #[test]
    fn both_formats_say_the_same() {
        let plain = port_groups(&answer(&[])).expect("header");
        let extended = port_groups(&answer(&[0x10, 90, 0, 0])).expect("header");
        assert_eq!(plain.groups, extended.groups);
        assert_eq!(plain.transition, None);
        assert_eq!(extended.transition, Some(Duration::from_secs(90)));
        assert!(plain.complete && extended.complete);
        let first = plain.group(1).expect("group 1");
        assert_eq!(
            (first.state, first.preferred),
            (AccessState::Optimized, true)
        );
        assert_eq!(first.ports, [1, 2]);
        let second = plain.group(7).expect("group 7");
        assert_eq!((second.state, second.status), (AccessState::Standby, 1));
        assert!(first.state.serves() && !second.state.serves());
    }

    #[test]
    fn cut_lists_say_so() {
        let data = answer(&[]);
        let cut = port_groups(&data[..data.len() - 1]).expect("header");
        assert_eq!((cut.groups.len(), cut.complete), (1, false));
        assert_eq!(port_groups(&data[..3]), None);
        let empty = port_groups(&[0; 4]).expect("header");
        assert!(empty.groups.is_empty() && empty.complete);
    }

    #[test]
    fn every_code_has_a_state() {
        let serving: Vec<u8> = (0..16)
            .filter(|&code| AccessState::from_code(code).serves())
            .collect();
        assert_eq!(serving, [0, 1, 4]);
        assert_eq!(AccessState::from_code(0xfe), AccessState::Offline);
        assert_eq!(AccessState::from_code(0x85), AccessState::Reserved(5));
    }

    proptest! {
        #[test]
        fn anything_decodes_or_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = port_groups(&bytes);
        }
    }
}
