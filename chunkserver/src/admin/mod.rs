//! The admin socket: how commands reach a running daemon.
//!
//! A unix socket of mode 0660. One JSON object a line asks, one JSON object a line answers:
//! `{"cmd":"leg-fail","volume":"vol1","device":"sto1"}` → `{"ok":{…}}` or `{"error":{"exit":1,"text":"…"}}`.
//! What only looks is answered from the snapshot that the data plane publishes, without asking it; what
//! changes something needs root or the service's own user, goes to the data plane and comes back within
//! [`ANSWER_DEADLINE`].

pub mod client;
mod door;
pub mod server;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::report::{Quarantine, QuarantineDone, Scrub};

/// The data plane answers a command within this, or the command ends with status 3.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// A request line is never longer.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Everything; answered by [`crate::model::Status`].
    Status {},
    /// Answered by [`crate::model::Paths`].
    Paths {},
    /// Answered by [`crate::model::PathEvents`].
    PathEvents {},
    /// Answered by [`crate::model::Arrays`].
    Arrays {},
    /// Takes a path out of use.
    PathFail(PathName),
    /// Takes it into use again.
    PathReinstate(PathName),
    /// Takes a leg out.
    LegFail(LegName),
    /// Forgets a leg that is out.
    LegRemove(LegName),
    /// Takes a leg in.
    LegAdd(LegFill),
    /// Fills a blank or foreign device and makes it a leg.
    LegReplace(LegFill),
    /// Serves from this leg alone.
    LegRun(LegName),
    /// Begins to read everything.
    ScrubStart(VolumeName),
    /// Ends it.
    ScrubStop(VolumeName),
    /// Answered by [`Scrub`].
    ScrubStatus(VolumeName),
    /// Answered by [`Quarantine`].
    QuarantineList {},
    /// Answered by [`QuarantineDone`].
    QuarantineRestore(Ids),
    /// Answered by [`QuarantineDone`].
    QuarantinePurge(Ids),
}

/// A path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathName {
    /// Its device.
    pub device: String,
    /// `address:port`
    pub portal: String,
}

/// A leg.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LegName {
    /// Its volume.
    pub volume: String,
    /// Its device.
    pub device: String,
}

/// A leg, and how to fill it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LegFill {
    /// Its volume.
    pub volume: String,
    /// Its device.
    pub device: String,
    /// Copy free space as well.
    #[serde(default)]
    pub full: bool,
    /// Also if it holds something, or a history of its own.
    #[serde(default)]
    pub force: bool,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeName {
    /// Its name.
    pub volume: String,
}

/// Chunks in the quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// `ID` or `ID:VERSION`, hex; empty with `all`.
    #[serde(default)]
    pub ids: Vec<String>,
    /// All of them.
    #[serde(default)]
    pub all: bool,
}

impl Request {
    /// Whether it changes something and so needs root or the service's user.
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Request::Status {}
                | Request::Paths {}
                | Request::PathEvents {}
                | Request::Arrays {}
                | Request::ScrubStatus(_)
                | Request::QuarantineList {}
        )
    }
}

/// What the data plane answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// Of scrub commands.
    Scrub(Scrub),
    /// Of `quarantine list`.
    Quarantine(Quarantine),
    /// Of `quarantine restore` and `purge`.
    QuarantineDone(QuarantineDone),
    /// Of all others: what was done.
    Done {
        /// A sentence.
        text: String,
    },
}

impl Answer {
    /// What was done, as a sentence.
    pub fn done(text: impl Into<String>) -> Answer {
        Answer::Done { text: text.into() }
    }
}

/// A reply line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The object asked for.
    Ok(serde_json::Value),
    /// Why not.
    Error(Failure),
}

/// Reads a request line. The failure is of usage: an unknown command, a missing field, no JSON.
pub fn parse_request(line: &[u8]) -> Result<Request, Failure> {
    serde_json::from_slice(line).map_err(|e| Failure::usage(format!("malformed request: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_back() {
        for (request, json) in [
            (Request::Status {}, r#"{"cmd":"status"}"#),
            (
                Request::LegFail(LegName {
                    volume: "v".into(),
                    device: "d".into(),
                }),
                r#"{"cmd":"leg-fail","volume":"v","device":"d"}"#,
            ),
            (
                Request::QuarantinePurge(Ids {
                    ids: vec![],
                    all: true,
                }),
                r#"{"cmd":"quarantine-purge","ids":[],"all":true}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), json);
            assert_eq!(parse_request(json.as_bytes()), Ok(request));
        }
        for bad in [
            "",
            "{}",
            "status",
            r#"{"cmd":"reboot"}"#,
            r#"{"cmd":"leg-fail","volume":"v"}"#,
            "[1]",
        ] {
            assert_eq!(
                parse_request(bad.as_bytes()).unwrap_err().exit,
                crate::exit::ExitStatus::Usage
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(
            line in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
            text in "\\{\"cmd\":\"[a-z-]{0,12}\"(,\"(volume|device|ids|all)\":(1|\"a\"|\\[\\]|true|null)){0,3}\\}?",
        ) {
            let _ = (parse_request(&line), parse_request(text.as_bytes()));
        }
    }
}
