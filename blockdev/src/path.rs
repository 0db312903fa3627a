//! One way to one logical unit, as `mpath` drives it and an initiator provides it.
//!
//! A [`PathPort`] is configured once (portal, target, LUN, initiator name, derived ISID) and can
//! log in again and again; each success is a new [`PathSession`]. A session never repeats a
//! command and never hides a loss: every command ends exactly once, with an answer of the unit or
//! with what is known about whether it was applied. Retries, taints, holds and fences are the
//! business of `mpath`.
//!
//! Vocabulary: *sent* = the last byte of the command (and of all data that needs no R2T) was
//! taken by the socket; until then it can be withdrawn and leaves no taint.

use crate::completion::{Abandoned, Completion};
use crate::reserve::{ReserveIn, ReserveOut};
use crate::{Applied, Done, Geometry, Instant, IoCtx, IoVec, LocalFuture, PathCause, ReadSectors};
use crate::{Durability, Sector};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use thiserror::Error;

/// What names a path to people: the column `portal` of every table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathName {
    /// `address:port` of the portal, `[v6]:port` in brackets.
    pub portal: String,
    /// Local address to connect from, if configured.
    pub source: Option<String>,
    /// iSCSI name of the target.
    pub target: String,
    /// Logical unit number.
    pub lun: u64,
}

/// Initiator Session ID, RFC 7143 §11.12.5.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Isid(pub [u8; 6]);

/// Whose session a login makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginAs {
    /// The port's own name and ISID. Reinstates: an earlier session of the same ISID is ended.
    Own,
    /// A recorded ISID, to fence a previous run or owner by reinstatement. The session made is of
    /// no other use and may be logged out at once.
    Recorded {
        /// Initiator name under which the ISID was used.
        initiator_name: String,
        /// The ISID.
        isid: Isid,
    },
}

/// Why a login failed, by what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LoginError {
    /// Nothing answered, or not within the deadline: try again.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The target said no (status class·detail in the text): slow retries, alarm.
    #[error("login refused: {0}")]
    Refused(String),
    /// The target asks to wait (03xx): try again with back-off.
    #[error("target not ready: {0}")]
    NotReady(String),
    /// Logged in, but this is not what was configured (no such LUN, not a disk, unusable).
    #[error("misconfigured: {0}")]
    Misconfigured(String),
    /// The peer broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
}

/// What the unit says of itself, gathered during the login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitIdentity {
    /// VPD 83 designator as `multipath` writes it (`3600…`); `None` if the unit has none.
    pub wwid: Option<String>,
    /// T10 vendor identification, trimmed.
    pub vendor: String,
    /// Product identification, trimmed.
    pub product: String,
    /// Product revision, trimmed.
    pub revision: String,
    /// VPD 80 serial number, trimmed.
    pub serial: String,
    /// Shape; `write_cache`, `fua`, `discard` from the mode page, DPOFUA and VPD B2.
    pub geometry: Geometry,
    /// Standard INQUIRY TPGS: 0 none, 1 implicit, 2 explicit, 3 both.
    pub tpgs: u8,
    /// Target port group of this path (VPD 83 designator type 5).
    pub target_port_group: Option<u16>,
    /// iSCSI target portal group tag from the login.
    pub portal_group: u16,
    /// The unit is write-protected (mode sense WP).
    pub read_only: bool,
}

/// Facts of one login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// ISID used.
    pub isid: Isid,
    /// When the login was complete.
    pub since: Instant,
    /// How long connect + login + identification took.
    pub login_time: Duration,
    /// Negotiated header digest: `none` or `crc32c`.
    pub header_digest: &'static str,
    /// Negotiated data digest: `none` or `crc32c`.
    pub data_digest: &'static str,
}

/// SCSI sense, of whatever format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// About an earlier command (71h, 73h).
    pub deferred: bool,
    /// The INFORMATION field, if valid: for a medium error the LBA in logical blocks.
    pub information: Option<u64>,
}

/// A command to the unit.
#[derive(Clone, Debug)]
pub enum Command {
    /// READ(16).
    Read {
        /// First sector.
        at: Sector,
        /// Sectors, at most the geometry's `max_transfer_sectors`.
        sectors: u32,
    },
    /// WRITE(16).
    Write {
        /// First sector.
        at: Sector,
        /// The bytes, at most `max_transfer_sectors`.
        data: IoVec,
        /// `Fua` sets the FUA bit.
        want: Durability,
    },
    /// SYNCHRONIZE CACHE(16) of the whole unit.
    SynchronizeCache,
    /// UNMAP of one range.
    Unmap {
        /// First sector.
        at: Sector,
        /// Sectors.
        sectors: u32,
    },
    /// WRITE SAME(16) with zeros.
    WriteZeroes {
        /// First sector.
        at: Sector,
        /// Sectors.
        sectors: u32,
    },
    /// TEST UNIT READY.
    TestUnitReady,
    /// TEST UNIT READY with the ORDERED attribute: a barrier on some targets.
    OrderedTestUnitReady,
    /// REPORT TARGET PORT GROUPS; yields the raw parameter data as `Done::Read`, for
    /// [`crate::alua::port_groups`].
    ReportTargetPortGroups,
    /// The same with the extended header, which some units refuse with ILLEGAL REQUEST.
    ReportTargetPortGroupsExtended,
    /// PERSISTENT RESERVE IN; yields the raw parameter data as `Done::Read`, for the decoders of
    /// [`crate::reserve`].
    ReserveIn(ReserveIn),
    /// PERSISTENT RESERVE OUT; yields `Done::Written`. A conflict is status 18h.
    ReserveOut(ReserveOut),
}

/// How a command failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// The session ended before an answer.
    #[error("session lost: {cause}")]
    Lost {
        /// Why it ended.
        cause: PathCause,
        /// `No` if the command was not wholly sent (and so was never executed).
        applied: Applied,
    },
    /// The unit answered with a status other than GOOD.
    #[error("scsi status {status:#04x}")]
    Status {
        /// SCSI status byte (02 CHECK CONDITION, 08 BUSY, 18, 28, 40 …).
        status: u8,
        /// Sense, if it came with any.
        sense: Option<Sense>,
    },
    /// The answer was incomplete or contradicted itself (short transfer on GOOD, response ≠ 0).
    #[error("bad answer: {0}")]
    BadAnswer(&'static str),
    /// Taken back before it was sent: by [`PathSession::withdraw`], or by a session that drains.
    #[error("withdrawn")]
    Withdrawn,
}

/// Result of a command.
pub type CommandResult = Result<Done, CommandError>;

impl Abandoned for CommandResult {
    fn abandoned() -> Self {
        let cause = PathCause::Administrative("initiator dropped the command");
        Err(CommandError::Lost {
            cause,
            applied: Applied::Unknown,
        })
    }
}

/// Names a command of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How far a command has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// No byte of it is in the socket: it can be withdrawn.
    Not,
    /// Some bytes are: the connection must be broken to take it back (a command that is not
    /// whole is never executed).
    Partly,
    /// All that goes without being asked for is in the socket, since then.
    Wholly(Instant),
    /// Answered.
    Answered,
}

/// Task management and session-level requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// LOGICAL UNIT RESET. `Ok` = function complete.
    LunReset {
        /// Whether its answer ends, as TASK ABORTED, every command that began to leave before it
        /// (RFC 7143 §4.2.3.3). `false` where the target is known to end none: each of them goes on
        /// until it has an answer of its own.
        ends_commands: bool,
    },
    /// ABORT TASK of one command. `Ok` = function complete.
    AbortTask(Ticket),
    /// NOP-Out with `bytes` of ping data, echoed and compared.
    Ping {
        /// 0 to 4096.
        bytes: usize,
    },
    /// Identify again (INQUIRY, VPD 83, READ CAPACITY): after 3F/03, 3F/0E, 2A/09.
    Identify,
    /// PERSISTENT RESERVE OUT, PREEMPT AND ABORT of `victim` under `own` key.
    PreemptAndAbort {
        /// Our registered key.
        own: u64,
        /// The key to throw out.
        victim: u64,
    },
}

/// Why a control request failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ControlError {
    /// The session ended first: nothing is proven.
    #[error("session lost: {0}")]
    Lost(PathCause),
    /// The target answered with this response code or says that it cannot: nothing is proven.
    #[error("target refused ({0})")]
    Refused(String),
    /// Not before its deadline: nothing is proven.
    #[error("no answer in time")]
    Late,
}

/// News of a session; one reader (`mpath`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// It ended; all its commands have been answered with `Lost` before this is seen.
    Lost(PathCause),
    /// A unit attention or deferred error was seen (29, 2A, 3F, 2F …).
    Attention(Sense),
    /// The target wants a logout within this time (async event 1): move I/O away, then log out.
    LogoutRequested(Duration),
    /// The identity changed (after [`Control::Identify`] or a new READ CAPACITY).
    Identity(Rc<UnitIdentity>),
}

/// Load and liveness of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionLoad {
    /// Commands not answered yet.
    pub in_flight: u32,
    /// Bytes they carry, both ways.
    pub in_flight_bytes: u64,
    /// Commands the window and our own limits would take now.
    pub room: u32,
    /// When the last byte was received from the target.
    pub last_heard: Instant,
}

/// A way to a unit that can log in.
pub trait PathPort {
    /// Its name.
    fn name(&self) -> PathName;

    /// Its own ISID.
    fn isid(&self) -> Isid;

    /// Connects, logs in through SecurityNegotiation and identifies the unit, all by `deadline`.
    /// At most one login of a port is under way at a time. The old session of this port must have
    /// been aborted before (RFC 7143 §6.3.5).
    fn login(
        &self,
        who: LoginAs,
        deadline: Instant,
    ) -> LocalFuture<Result<Rc<dyn PathSession>, LoginError>>;
}

/// A session of one path to one unit.
pub trait PathSession: ReadSectors {
    /// What the unit is.
    fn identity(&self) -> Rc<UnitIdentity>;

    /// Facts of the login.
    fn facts(&self) -> SessionFacts;

    /// Begins a command. Commands are queued inside when the window is closed. The deadline in
    /// `ctx` is not enforced here: `mpath` decides what lateness means.
    fn submit(&self, command: Command, ctx: IoCtx) -> (Ticket, Completion<CommandResult>);

    /// How far a command has come.
    fn sent(&self, ticket: Ticket) -> Sent;

    /// Takes a command back that is [`Sent::Not`]; it ends with `Withdrawn`. `false` if too late.
    fn withdraw(&self, ticket: Ticket) -> bool;

    /// A task management function, ping or identification. `Err(Late)` at `deadline`.
    fn control(&self, request: Control, deadline: Instant)
        -> LocalFuture<Result<(), ControlError>>;

    /// Load now.
    fn load(&self) -> SessionLoad;

    /// Whether it is alive. It may be draining: see [`PathSession::takes_commands`].
    fn is_alive(&self) -> bool;

    /// Whether it takes new commands. A session that is alive and does not drains before a logout:
    /// commands that came too late end as `Withdrawn`, those that were sent are still answered.
    fn takes_commands(&self) -> bool;

    /// Abortive close (RST, nothing buffered is sent any more). All commands end with `Lost`
    /// before this returns.
    fn abort(&self, why: PathCause);

    /// Drains, logs out and closes, by `deadline`; abortive then.
    fn logout(&self, deadline: Instant) -> LocalFuture<()>;

    /// News for the one reader above.
    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<SessionEvent>;
}
