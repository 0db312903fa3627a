//! One session of one connection as a state machine without sockets or clocks (RFC 7143).
//!
//! The bytes of a connection go in through [`Session::receive_space`] and [`Session::received`]
//! (payload lands in its page-aligned place, without a copy of large ones), bytes to be sent come
//! out of [`Session::transmit`] and are confirmed by [`Session::transmitted`], time is an argument
//! of [`Session::handle_timeout`], and news are taken with [`Session::poll_event`].
//!
//! States: login → full feature phase → closed. There is one connection and ErrorRecoveryLevel 0:
//! whatever breaks the protocol closes the session, and the caller logs in again with the same
//! ISID.
//!
//! Invariants:
//! - every task ends exactly once, with an answer, withdrawn, or [`Outcome::Lost`], which tells
//!   whether the command can have been executed;
//! - non-immediate requests leave in CmdSN order and inside the window; writes are never immediate;
//! - data of a READ reach the caller only after a GOOD status, never before a CHECK CONDITION;
//! - no byte from the target is written outside the buffer of the task it names.
//!
//! [`task`] holds the task table, `receive` the stream decoder, `answer` what each PDU of a target
//! means, `depth` how many commands a unit takes, `negotiate` text in full feature phase, `transmit`
//! what is sent and in which order.

mod answer;
mod depth;
mod negotiate;
mod receive;
pub mod task;
mod transmit;

use crate::login::keys::Params;
use crate::login::{LoggedIn, Login, LoginConfig, LoginFailure};
use crate::scsi::cdb::Cdb;
use crate::serial::Serial;
use blockdev::path::Sense;
use blockdev::{Applied, Instant, IoVec, PathCause, Pool};
use depth::Depth;
use negotiate::Negotiation;
use receive::Receiver;
use std::collections::VecDeque;
use std::time::Duration;
use task::{Kind, ReadBuffer, Stage, Tag, Task, TaskTable, TASKS_MAX};
use thiserror::Error;
use transmit::Transmitter;

/// Responses acknowledged late at most by this, when nothing else is sent.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(1);
/// Slots that only the session itself takes: its ping and its logout.
const OWN_TASKS: usize = 2;
/// Most SCSI commands of a session, queued ones included: so many task slots remain for pings, text
/// and task management that a full session is still watched and can be cleared.
pub const COMMANDS_MAX: usize = TASKS_MAX - 16;
/// Commands of a session in flight at a time, unless it is told otherwise.
pub const TASKS_IN_FLIGHT_MAX: usize = 256;
/// Most bytes of ping data.
pub const PING_BYTES_MAX: usize = 4096;

/// Bytes of a CDB beyond the 16 of the header: SPC-4 §4.2.3 ends variable-length CDBs at 260.
pub const CDB_REST_BYTES_MAX: usize = 260 - 16;

/// Limits and timers of a session.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Login parameters.
    pub login: LoginConfig,
    /// Most commands sent and unanswered at a time; the rest waits inside.
    pub tasks_in_flight_max: usize,
    /// A ping goes out when nothing was heard for this long; `None` = never.
    pub ping_interval: Option<Duration>,
    /// A ping unanswered for this long ends the session.
    pub ping_timeout: Duration,
}

impl SessionConfig {
    /// Defaults: 256 commands in flight, a ping after 5 s of silence that may take 5 s.
    pub fn new(login: LoginConfig) -> SessionConfig {
        SessionConfig {
            login,
            tasks_in_flight_max: TASKS_IN_FLIGHT_MAX,
            ping_interval: Some(Duration::from_secs(5)),
            ping_timeout: Duration::from_secs(5),
        }
    }
}

/// A SCSI command to be sent.
#[derive(Clone, Debug)]
pub struct ScsiCommand {
    /// LUN, 8-byte form.
    pub lun: [u8; 8],
    /// CDB.
    pub cdb: Cdb,
    /// Data that go with it, or are expected.
    pub transfer: Transfer,
    /// Task attribute.
    pub attribute: Attribute,
}

/// Data of a command.
#[derive(Clone, Debug)]
pub enum Transfer {
    /// None.
    None,
    /// So many bytes are expected. For INQUIRY and the like: the allocation length.
    Read(u32),
    /// These are sent.
    Write(IoVec),
}

/// Task attributes (RFC 7143 §11.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Attribute {
    /// SIMPLE.
    #[default]
    Simple = 1,
    /// ORDERED: after everything before, before everything after.
    Ordered = 2,
    /// HEAD OF QUEUE.
    HeadOfQueue = 3,
}

/// Task management functions (RFC 7143 §11.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Function {
    /// ABORT TASK.
    AbortTask = 1,
    /// ABORT TASK SET.
    AbortTaskSet = 2,
    /// CLEAR TASK SET.
    ClearTaskSet = 4,
    /// LOGICAL UNIT RESET.
    LunReset = 5,
    /// TARGET WARM RESET.
    TargetWarmReset = 6,
    /// TARGET COLD RESET.
    TargetColdReset = 7,
}

/// The unit's answer to a command.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// SCSI status.
    pub status: u8,
    /// Sense, if any came and was understood.
    pub sense: Option<Sense>,
    /// Data of a read that ended GOOD (may be shorter than asked, by the residual).
    pub data: IoVec,
    /// Bytes of the expected length that were not transferred.
    pub underflow: u32,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A SCSI status came.
    Scsi(Answer),
    /// The answer contradicts itself: nothing of it may be used.
    Bad(&'static str),
    /// A task management response code (0 complete, 1 no task, 5 unsupported …).
    Tmf(u8),
    /// The ping came back; `false`: with other bytes.
    Pong(bool),
    /// The joined text of a text negotiation.
    Text(Vec<u8>),
    /// A logout response code.
    LoggedOut(u8),
    /// Rejected with this reason.
    Rejected(u8),
    /// Taken back before it was sent, by the caller or by a session that is about to log out.
    Withdrawn,
    /// The session ended first.
    Lost {
        /// Why.
        cause: PathCause,
        /// `No`: the command PDU was never wholly in the socket, so it was never executed.
        applied: Applied,
    },
}

/// News of a session.
#[derive(Debug)]
pub enum Event {
    /// The login is complete; commands may be submitted.
    LoggedIn(Box<LoggedIn>),
    /// The login failed; the session is closed.
    LoginFailed(LoginFailure),
    /// A task ended.
    Done(Tag, Outcome),
    /// A unit attention or deferred error, or sense of an async message.
    Attention {
        /// The unit it came from.
        lun: [u8; 8],
        /// What it says.
        sense: Sense,
    },
    /// The target wants a logout within this time.
    LogoutRequested(Duration),
    /// The session is closed: the last event. The connection is to be reset.
    Closed(PathCause),
}

/// How far a task has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No byte is in the socket.
    Unsent,
    /// Some bytes are.
    Partly,
    /// All that goes without being asked for is in the socket.
    Wholly(Instant),
}

/// A request that cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// Not logged in, or closed.
    #[error("session takes no commands")]
    NotOpen,
    /// About to log out: what is outstanding still ends, nothing new is taken.
    #[error("session is about to log out")]
    Leaving,
    /// All task slots are taken.
    #[error("too many tasks")]
    Full,
    /// A discovery session takes text and a logout.
    #[error("not in a discovery session")]
    Discovery,
}

/// What made a session close, before it is told to the caller.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Breach {
    #[error("{0}")]
    Format(#[from] crate::pdu::FormatError),
    #[error("{0}")]
    Rule(&'static str),
    #[error("header digest mismatch")]
    HeaderDigest,
    #[error("data digest mismatch")]
    DataDigest,
    #[error("StatSN {got:#x} where {expected:#x} was due")]
    StatSn { expected: u32, got: u32 },
    #[error("rejected, reason {0:#04x}")]
    Rejected(u8),
    #[error("target drops the connection (async event {0})")]
    Dropped(u8),
    #[error("text negotiation: {0}")]
    Text(#[from] crate::text::TextError),
    #[error("{0}")]
    Login(LoginFailure),
}

#[derive(Debug)]
enum Phase {
    Login(Box<Login>),
    Open,
    /// A logout was asked for; it is sent when no task is left.
    Draining(Tag),
    LoggingOut(Leave),
    Closed,
}

/// A logout that is sent, or will be with the next bytes.
#[derive(Debug, Clone, Copy)]
struct Leave {
    tag: Tag,
    /// Nobody has asked for it: the session leaves because the target wants it.
    is_own: bool,
    /// It must be answered by then; set by the first timeout after its start.
    due: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct PingState {
    tag: Tag,
    due: Instant,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    pool: Pool,
    phase: Phase,
    params: Params,
    tasks: TaskTable,
    rx: Receiver,
    tx: Transmitter,
    cmd_sn: Serial,
    exp_cmd_sn: Serial,
    max_cmd_sn: Serial,
    exp_stat_sn: Serial,
    acknowledge_at: Option<Instant>,
    /// SCSI commands staged and unanswered.
    in_flight: usize,
    in_flight_bytes: u64,
    /// Bytes that the answers to them will have, if all goes well, without what came and without
    /// the PDU being received.
    due_bytes: usize,
    /// Reads in flight whose data should not pass through the stage.
    large_reads: usize,
    ping: Option<PingState>,
    /// Pings that wait for the one outstanding.
    pings_waiting: VecDeque<Tag>,
    text_outstanding: bool,
    /// The target wants a logout, by then.
    logout_by: Option<Instant>,
    /// SendTargets and logout only (RFC 7143 §13.21).
    is_discovery: bool,
    /// Most commands in flight that the unit has shown to take.
    depth: Depth,
    /// The target ended the connection and asked for this pause before the next login.
    time2wait: Option<Duration>,
    last_heard: Instant,
    events: VecDeque<Event>,
}

impl Session {
    /// A session whose first login request is ready to be sent.
    pub fn new(mut config: SessionConfig, pool: Pool, now: Instant) -> Session {
        let is_discovery = config.login.target_name.is_none();
        if is_discovery {
            config.ping_interval = None;
        }
        let login = Login::new(config.login.clone());
        let first = Serial(config.login.first_cmd_sn);
        let depth = Depth::new(config.tasks_in_flight_max);
        Session {
            config,
            pool,
            phase: Phase::Login(Box::new(login)),
            params: Params::default(),
            tasks: TaskTable::default(),
            rx: Receiver::new(),
            tx: Transmitter::default(),
            cmd_sn: first,
            exp_cmd_sn: first,
            max_cmd_sn: first.previous(),
            exp_stat_sn: Serial(0),
            acknowledge_at: None,
            in_flight: 0,
            in_flight_bytes: 0,
            due_bytes: 0,
            large_reads: 0,
            ping: None,
            pings_waiting: VecDeque::new(),
            text_outstanding: false,
            logout_by: None,
            is_discovery,
            depth,
            time2wait: None,
            last_heard: now,
            events: VecDeque::new(),
        }
    }

    /// Takes a command in. It is sent when window and limits allow; an [`Event::Done`] follows.
    pub fn submit(&mut self, command: ScsiCommand) -> Result<Tag, SubmitError> {
        self.submit_long(command, &[])
    }

    /// The same for a CDB of more than 16 bytes, whose bytes from 16 on are `cdb_rest` (RFC 7143
    /// §11.2.2.3). At most [`CDB_REST_BYTES_MAX`] of them.
    pub fn submit_long(
        &mut self,
        command: ScsiCommand,
        cdb_rest: &[u8],
    ) -> Result<Tag, SubmitError> {
        assert!(cdb_rest.len() <= CDB_REST_BYTES_MAX, "no CDB is so long");
        if !self.is_open() {
            return Err(match self.phase {
                Phase::Login(_) | Phase::Closed => SubmitError::NotOpen,
                _ => SubmitError::Leaving,
            });
        }
        if self.is_discovery {
            return Err(SubmitError::Discovery);
        }
        if self.tasks.len() >= COMMANDS_MAX {
            return Err(SubmitError::Full);
        }
        let mut task = Box::new(Task::new(Kind::Scsi, command.lun));
        task.cdb = command.cdb;
        task.cdb_rest = cdb_rest.into();
        task.attribute = command.attribute as u8;
        match command.transfer {
            Transfer::None => {}
            Transfer::Read(len) => {
                task.expected = len;
                task.read = ReadBuffer::new(&self.pool, len as usize);
            }
            Transfer::Write(data) => {
                let len = u32::try_from(data.len()).expect("a command carries less than 4 GiB");
                task.expected = len;
                task.write = data;
            }
        }
        let tag = self.tasks.insert(task).ok_or(SubmitError::Full)?;
        self.tx.queue.push_back(tag);
        Ok(tag)
    }

    /// Sends a task management function, immediately. `referenced` is the task of ABORT TASK,
    /// which must have been sent.
    pub fn manage(
        &mut self,
        function: Function,
        lun: [u8; 8],
        referenced: Option<Tag>,
    ) -> Result<Tag, SubmitError> {
        assert_eq!(function == Function::AbortTask, referenced.is_some());
        self.manage_as(
            lun,
            Kind::Tmf {
                function: function as u8,
                referenced,
                spares: false,
            },
        )
    }

    /// LOGICAL UNIT RESET of a target that is known to end no command by it (tgt): its answer ends
    /// none here either. What still waits for data then goes on, and is answered when it is done.
    pub fn reset_sparing(&mut self, lun: [u8; 8]) -> Result<Tag, SubmitError> {
        self.manage_as(
            lun,
            Kind::Tmf {
                function: Function::LunReset as u8,
                referenced: None,
                spares: true,
            },
        )
    }

    fn manage_as(&mut self, lun: [u8; 8], kind: Kind) -> Result<Tag, SubmitError> {
        self.takes_immediate()?;
        let tag = self
            .tasks
            .insert(Box::new(Task::new(kind, lun)))
            .ok_or(SubmitError::Full)?;
        self.tx.urgent.push_back(transmit::Urgent::Task(tag));
        Ok(tag)
    }

    /// Pings the target with `bytes` (at most [`PING_BYTES_MAX`]) of data. One ping is outstanding
    /// at a time; others wait.
    pub fn ping(&mut self, now: Instant, bytes: usize) -> Result<Tag, SubmitError> {
        self.takes_immediate()?;
        let bytes = bytes
            .min(PING_BYTES_MAX)
            .min(self.params.max_send_data_segment as usize);
        let task = Box::new(Task::new(Kind::Ping { bytes }, [0; 8]));
        let tag = self.tasks.insert(task).ok_or(SubmitError::Full)?;
        if self.ping.is_some() {
            self.pings_waiting.push_back(tag);
        } else {
            self.start_ping(now, tag);
        }
        Ok(tag)
    }

    fn takes_immediate(&self) -> Result<(), SubmitError> {
        if !matches!(self.phase, Phase::Open | Phase::Draining(_)) {
            return Err(SubmitError::NotOpen);
        }
        if self.is_discovery {
            return Err(SubmitError::Discovery);
        }
        if self.tasks.len() >= TASKS_MAX - OWN_TASKS {
            return Err(SubmitError::Full);
        }
        Ok(())
    }

    /// Sends a text request and joins the answers. One is outstanding at a time.
    pub fn text(&mut self, text: Vec<u8>) -> Result<Tag, SubmitError> {
        if !matches!(self.phase, Phase::Open) {
            return Err(SubmitError::NotOpen);
        }
        if self.text_outstanding || self.tasks.len() >= TASKS_MAX - OWN_TASKS {
            return Err(SubmitError::Full);
        }
        let kind = Kind::Text(Box::new(Negotiation::new(text)));
        let tag = self
            .tasks
            .insert(Box::new(Task::new(kind, [0; 8])))
            .ok_or(SubmitError::Full)?;
        self.text_outstanding = true;
        self.tx.queue.push_back(tag);
        Ok(tag)
    }

    /// Begins a logout: nothing new is taken, and the request is sent when no task is left. One
    /// that the session began by itself, for the target wanted it, is taken over.
    pub fn logout(&mut self) -> Result<Tag, SubmitError> {
        if let Phase::LoggingOut(leave) = &mut self.phase {
            let is_own = std::mem::take(&mut leave.is_own);
            return is_own.then_some(leave.tag).ok_or(SubmitError::Leaving);
        }
        if !matches!(self.phase, Phase::Open) {
            return Err(SubmitError::NotOpen);
        }
        let task = Box::new(Task::new(Kind::Logout, [0; 8]));
        let tag = self.tasks.insert(task).expect("a slot is kept for it");
        self.phase = Phase::Draining(tag);
        self.logout_if_drained();
        Ok(tag)
    }

    /// Takes a command back of which no byte is in the socket; it ends as [`Outcome::Withdrawn`].
    pub fn withdraw(&mut self, tag: Tag) -> bool {
        let Some(task) = self.tasks.get(tag) else {
            return false;
        };
        if !task.is_scsi() || task.partly {
            return false;
        }
        if task.stage == Stage::Staged {
            self.unstage(tag);
        }
        self.end(tag, Outcome::Withdrawn);
        true
    }

    /// How far a task has come; `None` once it ended.
    pub fn progress(&self, tag: Tag) -> Option<Progress> {
        let task = self.tasks.get(tag)?;
        Some(match task.wholly_since {
            Some(since) => Progress::Wholly(since),
            None if task.partly => Progress::Partly,
            None => Progress::Unsent,
        })
    }

    /// Closes the session: every task ends as [`Outcome::Lost`], then [`Event::Closed`] follows.
    /// The caller resets the connection. Does nothing once closed.
    pub fn close(&mut self, cause: PathCause) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        self.phase = Phase::Closed;
        self.tx = Transmitter::default();
        let mut tags: Vec<Tag> = self.tasks.iter().map(|task| task.tag).collect();
        tags.sort_unstable_by_key(|tag| tag.slot());
        for tag in tags {
            let sent = self.tasks.get(tag).is_some_and(|task| task.command_sent);
            let applied = if sent { Applied::Unknown } else { Applied::No };
            self.end(
                tag,
                Outcome::Lost {
                    cause: cause.clone(),
                    applied,
                },
            );
        }
        self.rx.stop();
        self.ping = None;
        self.acknowledge_at = None;
        self.events.push_back(Event::Closed(cause));
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Session::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let mut due = Instant::FAR;
        let mut by = |at: Option<Instant>| due = due.min(at.unwrap_or(Instant::FAR));
        match self.ping {
            Some(ping) => by(Some(ping.due)),
            None if matches!(self.phase, Phase::Open | Phase::Draining(_)) => {
                by(self
                    .config
                    .ping_interval
                    .map(|interval| self.last_heard + interval));
            }
            None => {}
        }
        by(self.acknowledge_at);
        match &self.phase {
            Phase::Open | Phase::Draining(_) => by(self.logout_by),
            Phase::LoggingOut(leave) => by(Some(leave.due.unwrap_or(self.last_heard))),
            Phase::Login(_) | Phase::Closed => {}
        }
        (due != Instant::FAR).then_some(due)
    }

    /// Acts on what is due at `now`. Whatever was received must have been taken in before.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(ping) = self.ping.filter(|ping| ping.due <= now) {
            debug_assert!(self.tasks.get(ping.tag).is_some());
            return self.close(PathCause::Silent(now - self.last_heard));
        }
        let interval = self
            .config
            .ping_interval
            .filter(|_| matches!(self.phase, Phase::Open | Phase::Draining(_)));
        if self.ping.is_none() && interval.is_some_and(|i| self.last_heard + i <= now) {
            let task = Box::new(Task::new(Kind::Ping { bytes: 0 }, [0; 8]));
            let tag = self.tasks.insert(task);
            self.start_ping(now, tag.expect("a slot is kept for it"));
        }
        if self.acknowledge_at.is_some_and(|at| at <= now) {
            self.acknowledge_at = None;
            // What waits already will carry ExpStatSN as well.
            if self.tx.urgent.is_empty() {
                let lun = [0; 8];
                self.tx
                    .urgent
                    .push_back(transmit::Urgent::Acknowledge { lun });
            }
        }
        if self.logout_by.is_some_and(|at| at <= now) {
            self.logout_undrained();
        }
        if let Phase::LoggingOut(leave) = &mut self.phase {
            let due = *leave.due.get_or_insert(now + self.config.ping_timeout);
            if due <= now {
                self.close(PathCause::Silent(now - self.last_heard));
            }
        }
    }

    /// Forgives the target `lateness`: a timer of ours fired so much too late (our own stall).
    pub fn excuse(&mut self, lateness: Duration) {
        if let Some(ping) = &mut self.ping {
            ping.due = ping.due + lateness;
        }
        if let Phase::LoggingOut(Leave { due: Some(due), .. }) = &mut self.phase {
            *due = *due + lateness;
        }
        self.last_heard = self.last_heard + lateness;
    }

    /// Whether commands are taken.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open) && self.logout_by.is_none()
    }

    /// Whether nothing can happen any more.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Negotiated parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Payload memory.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// SCSI commands staged or sent and not answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Bytes those carry, both ways.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Bytes of the answers to those that are still to come, if all goes well.
    pub fn due_bytes(&self) -> usize {
        self.due_bytes + self.rx.data_left()
    }

    /// Bytes that must come before the PDU being received is whole; 0 between PDUs.
    pub fn rest_of_pdu(&self) -> usize {
        self.rx.rest()
    }

    /// Commands that wait inside.
    pub fn queued(&self) -> usize {
        self.tx.queue.len()
    }

    /// Commands that window and limits would take now.
    pub fn room(&self) -> usize {
        let window = match self.cmd_sn.is_at_most(self.max_cmd_sn) {
            true => self.cmd_sn.until(self.max_cmd_sn) as usize + 1,
            false => 0,
        };
        let ours = self.depth.now.saturating_sub(self.in_flight);
        window.min(ours).saturating_sub(self.tx.queue.len())
    }

    /// When the last byte was received.
    pub fn last_heard(&self) -> Instant {
        self.last_heard
    }

    fn start_ping(&mut self, now: Instant, tag: Tag) {
        self.ping = Some(PingState {
            tag,
            due: now + self.config.ping_timeout,
        });
        self.tx.urgent.push_back(transmit::Urgent::Task(tag));
    }

    fn logout_if_drained(&mut self) {
        if let Phase::Draining(tag) = self.phase {
            if self.tasks.len() == 1 {
                self.leave(tag, false);
            }
        }
    }

    fn leave(&mut self, tag: Tag, is_own: bool) {
        let due = None;
        self.phase = Phase::LoggingOut(Leave { tag, is_own, due });
        self.tx.urgent.push_back(transmit::Urgent::Task(tag));
    }

    /// The target waits no longer: its logout is sent although tasks are left, which it will end.
    fn logout_undrained(&mut self) {
        let is_own = matches!(self.phase, Phase::Open);
        let tag = match self.phase {
            Phase::Draining(tag) => Some(tag),
            Phase::Open => self.tasks.insert(Box::new(Task::new(Kind::Logout, [0; 8]))),
            _ => return,
        };
        self.leave(tag.expect("a slot is kept for it"), is_own);
    }

    /// The target wants a logout by `by`: nothing new is sent, and what waits goes back.
    fn prepare_logout(&mut self, by: Instant) {
        self.logout_by = Some(self.logout_by.map_or(by, |earlier| earlier.min(by)));
        for tag in std::mem::take(&mut self.tx.queue) {
            if self.tasks.get(tag).is_some_and(Task::is_scsi) {
                self.end(tag, Outcome::Withdrawn);
            } else {
                self.tx.queue.push_back(tag);
            }
        }
    }

    /// How long the target asked to wait before the next login, if it ended the connection by an
    /// async message (RFC 7143 §11.9.1, Time2Wait).
    pub fn time2wait(&self) -> Option<Duration> {
        self.time2wait
    }

    /// Ends a task: exactly one outcome for each.
    fn end(&mut self, tag: Tag, outcome: Outcome) {
        if let Some(task) = self.tasks.remove(tag) {
            self.ended(*task, outcome);
        }
    }

    /// Ends a task that a task management function concluded; later PDUs of it are discarded.
    fn conclude(&mut self, tag: Tag, outcome: Outcome) {
        if let Some(task) = self.tasks.retire(tag) {
            self.ended(*task, outcome);
        }
    }

    fn ended(&mut self, task: Task, outcome: Outcome) {
        if task.is_scsi() && task.stage == Stage::Staged {
            self.in_flight -= 1;
            self.in_flight_bytes -= u64::from(task.expected);
            self.due_bytes -= task.due_bytes();
            if task.expected >= receive::LARGE_READ_BYTES && task.write.is_empty() {
                self.large_reads -= 1;
            }
        }
        // A task of text waits in the queue again between its requests.
        if task.stage == Stage::Queued {
            self.tx.queue.retain(|queued| *queued != task.tag);
        }
        if !task.write.is_empty() {
            self.tx.forget(task.tag);
        }
        self.rx.forget(task.tag);
        if matches!(task.kind, Kind::Text(_)) {
            self.text_outstanding = false;
        }
        self.events.push_back(Event::Done(task.tag, outcome));
        self.logout_if_drained();
    }

    /// The session broke: closes it with what is wrong.
    fn breach(&mut self, breach: Breach) {
        if let Breach::Login(failure) = breach {
            let cause = PathCause::Protocol(failure.to_string());
            self.events.push_back(Event::LoginFailed(failure));
            self.close(cause);
            return;
        }
        let text = breach.to_string();
        self.close(match breach {
            Breach::Dropped(_) => PathCause::Connection(text),
            _ => PathCause::Protocol(text),
        });
    }
}
