//! Why an operation failed, cut by what the caller can do about it.

use crate::Sector;
use std::time::Duration;
use thiserror::Error;

/// Result of an operation.
pub type IoResult = Result<crate::Done, IoError>;

/// An operation's failure: what kind, and whether a write may have taken effect.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind}{}", if *applied == Applied::Unknown { " (outcome unknown)" } else { "" })]
pub struct IoError {
    /// What went wrong.
    pub kind: Kind,
    /// Whether the bytes may be, or may yet come, on the medium.
    pub applied: Applied,
}

/// Whether a failed write may have been, or may yet be, applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It has not been and never will be applied.
    No,
    /// It may be on the medium, or arrive there later: its range is tainted until
    /// `Op::Fence` is `Ok`.
    Unknown,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Kind {
    /// The way to the unit failed; another path may do.
    #[error("path failed: {0}")]
    Path(PathCause),
    /// No answer in time from a device that is not known to be dead (P5): another leg may do.
    #[error("no answer in time")]
    Late,
    /// Unreadable sectors; the first of them.
    #[error("medium error at sector {first_bad}")]
    Medium {
        /// First unreadable sector, device-relative.
        first_bad: Sector,
    },
    /// The unit is out of space (thin provisioning, 07/27/07).
    #[error("out of space")]
    NoSpace,
    /// Busy: the same again, not before `after`.
    #[error("busy, retry after {} ms", after.as_millis())]
    Again {
        /// Shortest wait.
        after: Duration,
    },
    /// The device will not do it.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The geometry or identity changed; read it again.
    #[error("device changed")]
    Changed,
    /// The device is closed, failed or was taken away.
    #[error("device closed")]
    Closed,
}

/// What ended a path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PathCause {
    /// Connection refused, reset or ended by the peer, or no route: loud.
    #[error("connection lost: {0}")]
    Connection(String),
    /// Nothing was heard for too long: silent.
    #[error("no answer for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The peer broke the protocol or a digest.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The unit answered that it cannot be reached this way (sense given as key/asc/ascq).
    #[error("unit not accessible here ({0:02x}/{1:02x}/{2:02x})")]
    Unit(u8, u8, u8),
    /// An operator, or a fence, took it down.
    #[error("taken down: {0}")]
    Administrative(&'static str),
    /// No path is left.
    #[error("all paths down")]
    AllDown,
}

/// Why a device refuses an operation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Outside the device or not aligned: our own bug.
    #[error("range outside the device or not aligned")]
    Range,
    /// Not supported by the unit.
    #[error("not supported")]
    NotSupported,
    /// Write protected (07/27).
    #[error("write protected")]
    ReadOnly,
    /// Reserved by another initiator (RESERVATION CONFLICT).
    #[error("reserved by another initiator")]
    Reserved,
    /// Another node owns the device (P11).
    #[error("owned by another node")]
    NotOwner,
    /// The unit answered with an error that no retry cures (sense as key/asc/ascq).
    #[error("unit error {0:02x}/{1:02x}/{2:02x}")]
    Unit(u8, u8, u8),
    /// No fence is possible now; the text says why.
    #[error("no fence: {0}")]
    NoFence(String),
}

/// What a caller above does with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Resend the same bytes on another path; taint the range if `Applied::Unknown`.
    OtherPath,
    /// Go on with the other leg.
    OtherLeg,
    /// Read the other leg and rewrite this one.
    OtherLegThenRewrite,
    /// The same again, later.
    SamePath,
    /// Tell the caller above.
    Report,
    /// Read geometry and identity again.
    Reread,
    /// Take the leg out.
    FailLeg,
}

impl IoError {
    /// An error after which nothing was or will be applied.
    pub fn not_applied(kind: Kind) -> IoError {
        IoError {
            kind,
            applied: Applied::No,
        }
    }

    /// An error that leaves the outcome open.
    pub fn unknown(kind: Kind) -> IoError {
        IoError {
            kind,
            applied: Applied::Unknown,
        }
    }

    /// The one place where `mpath` and `raid` learn what to do next.
    pub fn recovery(&self) -> Recovery {
        match self.kind {
            Kind::Path(_) => Recovery::OtherPath,
            Kind::Late => Recovery::OtherLeg,
            Kind::Medium { .. } => Recovery::OtherLegThenRewrite,
            Kind::Again { .. } => Recovery::SamePath,
            Kind::NoSpace => Recovery::Report,
            Kind::Changed => Recovery::Reread,
            Kind::Refused(_) | Kind::Closed => Recovery::FailLeg,
        }
    }
}
