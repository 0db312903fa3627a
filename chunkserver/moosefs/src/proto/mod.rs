//! Every packet of the MooseFS chunkserver protocol as typed structs: parse and encode.
//!
//! A frame is `type u32, length u32` (of the payload alone) and the payload, all integers
//! big-endian. [`master`] holds the link to the master (9420), [`client`] reads and writes on the
//! data port (9422), [`info`] the information packets any peer may ask for. Parsers take exact
//! lengths, never panic, and allocate no more than the frame's own bound ([`frame`]).
//!
//! Facts: MooseFS 3.0.117 and 4.59.2, both exercised on the wire; names of packet types are those
//! of MooseFS without the direction prefix (`CLTOCS_READ` is [`kind::READ`]).

pub mod client;
pub mod field;
pub mod frame;
pub mod info;
pub mod kind;
pub mod master;
pub mod status;

pub use field::{Cursor, Field, Malformed};
pub use frame::{encode, Header, HEADER_BYTES};

use std::fmt;

/// A MooseFS version number: `major << 16 | minor << 8 | patch * 2` (the patch is doubled since
/// major version 2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(pub u32);

impl Version {
    /// `major.minor.patch`, major > 1.
    pub const fn new(major: u16, minor: u8, patch: u8) -> Version {
        Version(((major as u32) << 16) | ((minor as u32) << 8) | (patch as u32 * 2))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = (self.0 >> 16, self.0 >> 8 & 0xFF, self.0 & 0xFF);
        let patch = if major > 1 { patch / 2 } else { patch };
        write!(f, "{major}.{minor}.{patch}")
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The version this server claims. One claim serves masters of 3.x and 4.x: 4.x refuses servers
/// below 4.26.0 once erasure-coded classes exist, and from 4.32 on further duties come with it
/// (a six-byte load each second, `CHUNK_STATUS`).
pub const CLAIMED_VERSION: Version = Version::new(4, 26, 0);

/// First version of master and server that speaks `CHUNK_STATUS`, `CHUNK_DOESNT_EXIST` and a load
/// of six bytes.
pub const VERSION_TRANSFERRING: Version = Version::new(4, 32, 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_seen_on_the_wire() {
        assert_eq!(Version::new(3, 0, 117).0, 0x0003_00EA);
        assert_eq!(Version::new(4, 59, 2), Version(0x0004_3B04));
        assert_eq!(Version(0x0003_00EA).to_string(), "3.0.117");
        assert!(
            CLAIMED_VERSION >= Version::new(4, 26, 0) && CLAIMED_VERSION < VERSION_TRANSFERRING
        );
    }
}
