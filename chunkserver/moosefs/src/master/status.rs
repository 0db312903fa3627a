//! What the rest of the node sees of the master link.

use crate::proto::Version;
use std::fmt;
use std::net::SocketAddr;

/// Where the link stands; the words are those of `antler status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MasterState {
    /// No master has accepted us yet, or the one that had is lost.
    #[default]
    Connecting,
    /// A master said: hold the line.
    Waiting,
    /// Accepted, and the chunk list is told.
    Registered,
    /// The master found belongs to another file system; our chunks are kept from it.
    Refused,
}

impl fmt::Display for MasterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MasterState::Connecting => "connecting",
            MasterState::Waiting => "waiting",
            MasterState::Registered => "registered",
            MasterState::Refused => "refused",
        })
    }
}

/// A snapshot of the link.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MasterStatus {
    /// Where it stands.
    pub state: MasterState,
    /// The master spoken to, or last spoken to.
    pub address: Option<SocketAddr>,
    /// Its version.
    pub version: Option<Version>,
    /// Our server id; 0 = none yet.
    pub csid: u16,
    /// The file system we belong to; 0 = none yet.
    pub metaid: u64,
    /// Why the link is not up, or why it was last lost.
    pub last_error: Option<String>,
}

/// A change worth a log line and an entry in the list of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterEvent {
    /// `master_connected`: registered.
    Connected {
        /// Which one.
        address: SocketAddr,
        /// For people.
        text: String,
    },
    /// `master_lost`: a registered link ended.
    Lost {
        /// Which one.
        address: SocketAddr,
        /// Why.
        text: String,
    },
    /// A master of another file system (or a volume that will not be told to it) was turned away.
    /// Said once until the next `Connected`.
    Refused {
        /// Which one.
        address: SocketAddr,
        /// Why.
        text: String,
    },
}

impl MasterEvent {
    /// Its name among the node's events.
    pub fn name(&self) -> &'static str {
        match self {
            MasterEvent::Connected { .. } => "master_connected",
            MasterEvent::Lost { .. } => "master_lost",
            MasterEvent::Refused { .. } => "master_refused",
        }
    }
}
