//! How a command ends: its exit status, and the message that goes with a failure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Exit status of `antler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum ExitStatus {
    /// 0: done.
    Done,
    /// 1: a problem was found, the operation failed, authentication was refused, target or LUN unknown, or
    /// the peer broke the protocol. Also: damage was found and repaired.
    Problem,
    /// 2: bad usage or configuration.
    Usage,
    /// 3: a peer could not be reached or did not answer within its deadline.
    Unreachable,
    /// 4: damage is left.
    DamageLeft,
}

impl From<ExitStatus> for u8 {
    fn from(status: ExitStatus) -> u8 {
        match status {
            ExitStatus::Done => 0,
            ExitStatus::Problem => 1,
            ExitStatus::Usage => 2,
            ExitStatus::Unreachable => 3,
            ExitStatus::DamageLeft => 4,
        }
    }
}

impl TryFrom<u8> for ExitStatus {
    type Error = String;

    fn try_from(code: u8) -> Result<ExitStatus, String> {
        [
            ExitStatus::Done,
            ExitStatus::Problem,
            ExitStatus::Usage,
            ExitStatus::Unreachable,
            ExitStatus::DamageLeft,
        ]
        .into_iter()
        .find(|s| u8::from(*s) == code)
        .ok_or_else(|| format!("{code} is no exit status"))
    }
}

/// Why a command failed. The text names the thing and the way out; it has no full stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// How the command ends.
    pub exit: ExitStatus,
    /// A sentence, or one a line.
    pub text: String,
}

impl Failure {
    /// The operation failed, or a problem was found.
    pub fn problem(text: impl Into<String>) -> Failure {
        Failure {
            exit: ExitStatus::Problem,
            text: text.into(),
        }
    }

    /// Bad usage or configuration.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure {
            exit: ExitStatus::Usage,
            text: text.into(),
        }
    }

    /// A peer could not be reached or did not answer in time.
    pub fn unreachable(text: impl Into<String>) -> Failure {
        Failure {
            exit: ExitStatus::Unreachable,
            text: text.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}
