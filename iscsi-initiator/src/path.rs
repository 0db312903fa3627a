//! One path to one logical unit, as `mpath` drives it: [`IscsiPort`] logs in, [`IscsiSession`] is
//! what it yields.
//!
//! A login is connect + login + identification under one deadline, also against a peer that
//! trickles. A session never repeats a command: each ends once, with the unit's answer or with
//! what is known about whether it was applied.

use crate::client::{Client, ConnectError, Map, News};
use crate::commands::{failed, reserve_in, reserve_out, UnitCommands, PORT_GROUPS_LEN};
use crate::establish::{Destination, Initiator};
use crate::identify::{identify, IdentifyError};
use crate::isid::Role;
use crate::login::LoginFailure;
use crate::name::Portal;
use crate::scsi::{cdb, decode_lun, encode_lun, status};
use crate::session::task::Tag;
use crate::session::{Attribute, Function, Outcome, Progress, ScsiCommand, Transfer};
use blockdev::path::{
    Command, CommandError, CommandResult, Control, ControlError, Isid, LoginAs, LoginError,
    PathName, PathPort, PathSession, Sense, Sent, SessionEvent, SessionFacts, SessionLoad, Ticket,
    UnitIdentity,
};
use blockdev::reserve::{ReserveKind, ReserveOut};
use blockdev::{
    Completion, Done, Durability, Geometry, Instant, IoCtx, IoError, IoVec, Kind, LocalFuture,
    PathCause, ReadSectors, Rt, Sector, Seq, SECTOR_BYTES,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{ready, Context, Poll, Waker};

const LEAVING: &str = "the target asks for a logout";

/// Where a path leads.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Portal.
    pub portal: Portal,
    /// Local address to connect from.
    pub source: Option<IpAddr>,
    /// Target name.
    pub target: String,
    /// Logical unit number, 0–16383.
    pub lun: u64,
    /// Whose sessions these are.
    pub role: Role,
    /// Shard, or number of a parallel session of a tool.
    pub shard: u32,
}

/// A path that can log in.
pub struct IscsiPort {
    initiator: Initiator,
    config: PortConfig,
    isid: Isid,
    lun: [u8; 8],
    /// The target asked for no login before (Time2Wait of an async message).
    not_before: Rc<Cell<Instant>>,
}

impl IscsiPort {
    /// A port; `None` if the LUN has no flat form (16384 and above).
    pub fn new(initiator: Initiator, config: PortConfig) -> Option<IscsiPort> {
        let lun = encode_lun(config.lun)?;
        let PortConfig {
            portal,
            source,
            role,
            shard,
            ..
        } = config;
        let isid = initiator.isid(
            &config.target,
            portal,
            source,
            role,
            shard,
            Some(config.lun),
        );
        Some(IscsiPort {
            initiator,
            config,
            isid,
            lun,
            not_before: Rc::default(),
        })
    }

    /// As [`PathPort::login`], with the type of this crate.
    ///
    /// # Errors
    /// By what to do about it: [`LoginError`].
    pub fn open(
        &self,
        who: LoginAs,
        deadline: Instant,
    ) -> LocalFuture<Result<Rc<IscsiSession>, LoginError>> {
        let mut initiator = self.initiator.clone();
        let mut isid = self.isid;
        let not_before = self.not_before.clone();
        let is_own = who == LoginAs::Own;
        if let LoginAs::Recorded {
            initiator_name,
            isid: recorded,
        } = who
        {
            initiator.name = initiator_name;
            isid = recorded;
        }
        let to = Destination {
            portal: self.config.portal,
            source: self.config.source,
            target: Some(self.config.target.clone()),
            isid,
        };
        let lun = self.lun;
        Box::pin(async move {
            let begun = initiator.rt.now();
            if is_own && begun < not_before.get() {
                let wait = not_before.get() - begun;
                if not_before.get() >= deadline {
                    let text = format!("target asked to wait {wait:?} more before the next login");
                    return Err(LoginError::NotReady(text));
                }
                initiator.rt.sleep(wait).await;
            }
            let session = initiator.establish(&to, deadline).await?;
            // From the first PDU on: a target may drop a session before it is identified.
            session.client.keep_wait(not_before);
            let portal_group = session.login.portal_group.unwrap_or(0);
            let identity = initiator.rt.by(
                deadline,
                identify(&session.client, lun, portal_group, deadline),
            );
            let identity = match identity.await {
                Ok(Ok(identity)) => identity,
                Ok(Err(IdentifyError::Lost(cause))) => return Err(ConnectError::Lost(cause).into()),
                Ok(Err(IdentifyError::Unusable(text))) => {
                    return Err(LoginError::Misconfigured(text));
                }
                Ok(Err(IdentifyError::NotReady(text))) => return Err(LoginError::NotReady(text)),
                Ok(Err(error @ IdentifyError::Leaving)) => {
                    session.client.logout(deadline).await;
                    return Err(LoginError::NotReady(error.to_string()));
                }
                Err(_) => {
                    return Err(LoginError::Unreachable(
                        "no identification in time".to_owned(),
                    ));
                }
            };
            // The unit attentions that follow every login are no news.
            session.client.forget_answered_attentions();
            let digest = |on: bool| if on { "crc32c" } else { "none" };
            let now = initiator.rt.now();
            let facts = SessionFacts {
                isid,
                since: now,
                login_time: now - begun,
                header_digest: digest(session.login.params.header_digest),
                data_digest: digest(session.login.params.data_digest),
            };
            Ok(Rc::new(IscsiSession {
                rt: initiator.rt,
                client: session.client,
                portal: session.portal,
                lun,
                facts,
                identity: Rc::new(RefCell::new(Rc::new(identity))),
                news: Rc::default(),
            }))
        })
    }
}

impl PathPort for IscsiPort {
    fn name(&self) -> PathName {
        PathName {
            portal: self.config.portal.to_string(),
            source: self.config.source.map(|source| source.to_string()),
            target: self.config.target.clone(),
            lun: self.config.lun,
        }
    }

    fn isid(&self) -> Isid {
        self.isid
    }

    fn login(
        &self,
        who: LoginAs,
        deadline: Instant,
    ) -> LocalFuture<Result<Rc<dyn PathSession>, LoginError>> {
        let open = self.open(who, deadline);
        Box::pin(async move { open.await.map(|session| session as Rc<dyn PathSession>) })
    }
}

/// By what to do about it; the same for paths, tools and discovery.
impl From<ConnectError> for LoginError {
    fn from(error: ConnectError) -> LoginError {
        match error {
            ConnectError::Connect(text) => LoginError::Unreachable(text),
            ConnectError::Lost(PathCause::Protocol(text)) => LoginError::Protocol(text),
            ConnectError::Lost(cause) => LoginError::Unreachable(cause.to_string()),
            ConnectError::Login(failure) => {
                let text = failure.to_string();
                match failure {
                    _ if failure.is_temporary() => LoginError::NotReady(text),
                    _ if failure.is_refusal() => LoginError::Refused(text),
                    LoginFailure::Redirect { .. } | LoginFailure::Status { .. } => {
                        LoginError::Refused(text)
                    }
                    _ => LoginError::Protocol(text),
                }
            }
        }
    }
}

/// A session to one unit.
pub struct IscsiSession {
    rt: Rt,
    client: Client,
    portal: Portal,
    lun: [u8; 8],
    facts: SessionFacts,
    /// As it was found last; shared with an identification under way.
    identity: Rc<RefCell<Rc<UnitIdentity>>>,
    news: Rc<RefCell<OwnNews>>,
}

/// News that do not come from the session itself.
#[derive(Default)]
struct OwnNews {
    queue: VecDeque<SessionEvent>,
    reader: Option<Waker>,
}

impl IscsiSession {
    /// The session below, for tools.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where it is really connected to: another portal than that of the port if the target redirected
    /// the login.
    pub fn portal(&self) -> Portal {
        self.portal
    }

    /// The unit's commands with typed answers, for what no path needs.
    pub fn commands(&self) -> UnitCommands {
        UnitCommands::new(self.client.clone(), self.lun)
    }

    fn geometry(&self) -> Geometry {
        self.identity.borrow().geometry
    }

    fn scsi(&self, cdb: cdb::Cdb, transfer: Transfer) -> ScsiCommand {
        ScsiCommand {
            lun: self.lun,
            cdb,
            transfer,
            attribute: Attribute::Simple,
        }
    }

    /// The command as the unit knows it, in its logical blocks, and how to read its answer.
    fn translate(&self, command: Command) -> Option<(ScsiCommand, Map)> {
        let geometry = self.geometry();
        let block_sectors = u64::from(geometry.logical_block_bytes) / SECTOR_BYTES;
        let in_blocks = |at: Sector, sectors: u64| {
            let blocks = u32::try_from(sectors / block_sectors).ok()?;
            (blocks > 0 && geometry.accepts(at, sectors)).then(|| (at.0 / block_sectors, blocks))
        };
        Some(match command {
            Command::Read { at, sectors } => {
                let (lba, blocks) = in_blocks(at, u64::from(sectors))?;
                let len = u32::try_from(u64::from(sectors) * SECTOR_BYTES).ok()?;
                (
                    self.scsi(cdb::read_16(lba, blocks, false), Transfer::Read(len)),
                    read_result,
                )
            }
            Command::Write { at, data, want } => {
                if data.len() as u64 % SECTOR_BYTES != 0 {
                    return None;
                }
                let (lba, blocks) = in_blocks(at, data.len() as u64 / SECTOR_BYTES)?;
                let cdb = cdb::write_16(lba, blocks, want == Durability::Fua);
                (self.scsi(cdb, Transfer::Write(data)), write_result)
            }
            Command::SynchronizeCache => (
                self.scsi(cdb::synchronize_cache_16(0, 0), Transfer::None),
                flush_result,
            ),
            Command::Unmap { at, sectors } => {
                let (lba, blocks) = in_blocks(at, u64::from(sectors))?;
                let list = cdb::unmap_list(&[(lba, blocks)])?;
                let cdb = cdb::unmap(list.len() as u16);
                let data = self
                    .client
                    .with_session(|session| session.pool().copy_now(&list));
                (self.scsi(cdb, Transfer::Write(data)), discard_result)
            }
            Command::WriteZeroes { at, sectors } => {
                let (lba, blocks) = in_blocks(at, u64::from(sectors))?;
                let data = IoVec::zeros(geometry.logical_block_bytes as usize);
                let cdb = cdb::write_same_16(lba, blocks, false);
                (self.scsi(cdb, Transfer::Write(data)), discard_result)
            }
            Command::TestUnitReady => (
                self.scsi(cdb::test_unit_ready(), Transfer::None),
                flush_result,
            ),
            Command::OrderedTestUnitReady => {
                let command = self.scsi(cdb::test_unit_ready(), Transfer::None);
                (
                    ScsiCommand {
                        attribute: Attribute::Ordered,
                        ..command
                    },
                    flush_result,
                )
            }
            Command::ReportTargetPortGroups => self.ask_port_groups(false),
            Command::ReportTargetPortGroupsExtended => self.ask_port_groups(true),
            Command::ReserveIn(ask) => {
                let (cdb, len) = reserve_in(ask);
                (self.scsi(cdb, Transfer::Read(len)), parameter_result)
            }
            Command::ReserveOut(request) => (self.reserve_out(&request)?, write_result),
        })
    }

    fn ask_port_groups(&self, extended: bool) -> (ScsiCommand, Map) {
        let cdb = cdb::report_target_port_groups(PORT_GROUPS_LEN, extended);
        (
            self.scsi(cdb, Transfer::Read(PORT_GROUPS_LEN)),
            parameter_result,
        )
    }

    fn reserve_out(&self, request: &ReserveOut) -> Option<ScsiCommand> {
        let (cdb, transfer) = reserve_out(&self.client, request).ok()?;
        Some(self.scsi(cdb, transfer))
    }

    fn tell(news: &RefCell<OwnNews>, event: SessionEvent) {
        let reader = {
            let mut news = news.borrow_mut();
            news.queue.push_back(event);
            news.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

fn is_good(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Scsi(answer)
        if matches!(answer.status, status::GOOD | status::CONDITION_MET))
}

fn result(outcome: Outcome, done: Done) -> CommandResult {
    if is_good(&outcome) {
        Ok(done)
    } else {
        Err(failed(outcome))
    }
}

fn read_result(outcome: Outcome) -> CommandResult {
    match outcome {
        Outcome::Scsi(answer) if answer.status == status::GOOD && answer.underflow > 0 => {
            Err(CommandError::BadAnswer("short transfer on GOOD"))
        }
        other => parameter_result(other),
    }
}

/// Parameter data may be shorter than was asked for.
fn parameter_result(outcome: Outcome) -> CommandResult {
    match outcome {
        Outcome::Scsi(answer) if answer.status == status::GOOD => {
            Ok(Done::Read(answer.data, Seq(0)))
        }
        other => Err(failed(other)),
    }
}

fn write_result(outcome: Outcome) -> CommandResult {
    result(outcome, Done::Written)
}

fn flush_result(outcome: Outcome) -> CommandResult {
    result(outcome, Done::Flushed)
}

fn discard_result(outcome: Outcome) -> CommandResult {
    result(outcome, Done::Discarded)
}

impl ReadSectors for IscsiSession {
    fn read(&self, at: Sector, sectors: u32) -> LocalFuture<Result<IoVec, IoError>> {
        let (_, completion) = self.submit(Command::Read { at, sectors }, IoCtx::metadata());
        Box::pin(async move {
            let done = completion.await.map_err(|error| match error {
                CommandError::Lost { cause, .. } => IoError::not_applied(Kind::Path(cause)),
                other => IoError::not_applied(Kind::Path(PathCause::Protocol(other.to_string()))),
            });
            done.map(Done::into_data)
        })
    }
}

impl PathSession for IscsiSession {
    fn identity(&self) -> Rc<UnitIdentity> {
        self.identity.borrow().clone()
    }

    fn facts(&self) -> SessionFacts {
        self.facts.clone()
    }

    fn submit(&self, command: Command, _ctx: IoCtx) -> (Ticket, Completion<CommandResult>) {
        let Some((command, map)) = self.translate(command) else {
            // Our own layers check ranges; a unit that shrank would say 05/21 to the same.
            let error =
                CommandError::BadAnswer("range outside the unit, not aligned, or no such form");
            return (Ticket(0), Completion::ready(Err(error)));
        };
        let (tag, completion) = self.client.command_mapped(command, map);
        (Ticket(tag.map_or(0, |tag| u64::from(tag.0))), completion)
    }

    fn sent(&self, ticket: Ticket) -> Sent {
        match self.client.progress(tag_of(ticket)) {
            Some(Progress::Unsent) => Sent::Not,
            Some(Progress::Partly) => Sent::Partly,
            Some(Progress::Wholly(since)) => Sent::Wholly(since),
            None => Sent::Answered,
        }
    }

    fn withdraw(&self, ticket: Ticket) -> bool {
        self.client.withdraw(tag_of(ticket))
    }

    fn control(
        &self,
        request: Control,
        deadline: Instant,
    ) -> LocalFuture<Result<(), ControlError>> {
        let rt = self.rt.clone();
        let client = self.client.clone();
        let lun = self.lun;
        let identity = self.identity.clone();
        let news = self.news.clone();
        // Sent before the future is polled, so that the order of requests is the order of calls.
        let sent: LocalFuture<Result<(), ControlError>> = match request {
            Control::LunReset { ends_commands } => {
                let outcome = match ends_commands {
                    true => client.manage(Function::LunReset, lun, None),
                    false => client.reset_sparing(lun),
                };
                Box::pin(async move { managed(outcome.await) })
            }
            Control::AbortTask(ticket) => match client.progress(tag_of(ticket)) {
                None => return Box::pin(async { Ok(()) }),
                Some(Progress::Unsent) if client.withdraw(tag_of(ticket)) => {
                    return Box::pin(async { Ok(()) });
                }
                Some(_) => {
                    let outcome = client.manage(Function::AbortTask, lun, Some(tag_of(ticket)));
                    Box::pin(async move { managed(outcome.await) })
                }
            },
            Control::Ping { bytes } => {
                let outcome = client.ping(bytes);
                Box::pin(async move {
                    match outcome.await {
                        Outcome::Pong(true) => Ok(()),
                        Outcome::Pong(false) => {
                            Err(ControlError::Refused("ping came back changed".to_owned()))
                        }
                        other => managed(other),
                    }
                })
            }
            Control::PreemptAndAbort { own, victim } => {
                let request = ReserveOut::PreemptAndAbort {
                    own,
                    victim,
                    kind: ReserveKind::WriteExclusiveRegistrants,
                };
                let command = self.reserve_out(&request).expect("has a fixed form");
                let outcome = client.command(command);
                Box::pin(async move { managed(outcome.await) })
            }
            Control::Identify => {
                let client = client.clone();
                Box::pin(async move {
                    let portal_group = identity.borrow().portal_group;
                    let found = identify(&client, lun, portal_group, deadline).await;
                    let found = found.map_err(|error| match error {
                        IdentifyError::Lost(cause) => ControlError::Lost(cause),
                        IdentifyError::Leaving => {
                            ControlError::Lost(PathCause::Administrative(LEAVING))
                        }
                        IdentifyError::NotReady(text) | IdentifyError::Unusable(text) => {
                            ControlError::Refused(text)
                        }
                    })?;
                    let found = Rc::new(found);
                    // Known before this ends: what was held back goes by it.
                    let before = identity.replace(found.clone());
                    if found != before {
                        IscsiSession::tell(&news, SessionEvent::Identity(found));
                    }
                    Ok(())
                })
            }
        };
        Box::pin(async move {
            // The handle keeps the session alive for as long as the answer is awaited.
            let _alive = client;
            rt.by(deadline, sent)
                .await
                .unwrap_or(Err(ControlError::Late))
        })
    }

    fn load(&self) -> SessionLoad {
        self.client.with_session(|session| SessionLoad {
            in_flight: (session.in_flight() + session.queued()) as u32,
            in_flight_bytes: session.in_flight_bytes(),
            room: session.room() as u32,
            last_heard: session.last_heard(),
        })
    }

    fn is_alive(&self) -> bool {
        self.client.is_alive()
    }

    fn takes_commands(&self) -> bool {
        self.client.is_open()
    }

    fn abort(&self, why: PathCause) {
        self.client.abort(why);
    }

    fn logout(&self, deadline: Instant) -> LocalFuture<()> {
        let client = self.client.clone();
        Box::pin(async move { client.logout(deadline).await })
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<SessionEvent> {
        {
            let mut news = self.news.borrow_mut();
            if let Some(event) = news.queue.pop_front() {
                return Poll::Ready(event);
            }
            news.reader = Some(cx.waker().clone());
        }
        loop {
            return Poll::Ready(match ready!(self.client.poll_news(cx)) {
                News::Attention { lun, .. } if !is_same_lun(lun, self.lun) => continue,
                News::Attention { sense, .. } => SessionEvent::Attention(sense),
                News::LogoutRequested(within) => SessionEvent::LogoutRequested(within),
                News::Closed(cause) => SessionEvent::Lost(cause),
            });
        }
    }
}

/// Whether both name one unit: an async message may use another form of address.
fn is_same_lun(one: [u8; 8], other: [u8; 8]) -> bool {
    one == other || decode_lun(one).is_some_and(|number| decode_lun(other) == Some(number))
}

fn tag_of(ticket: Ticket) -> Tag {
    Tag(ticket.0 as u32)
}

/// The answer to a management function, or to a command used as one.
fn managed(outcome: Outcome) -> Result<(), ControlError> {
    match outcome {
        Outcome::Tmf(0) => Ok(()),
        Outcome::Tmf(code) => Err(ControlError::Refused(format!(
            "task management response {code:#04x}"
        ))),
        Outcome::Rejected(reason) => Err(ControlError::Refused(format!("reject {reason:#04x}"))),
        Outcome::Lost { cause, .. } => Err(ControlError::Lost(cause)),
        other if is_good(&other) => Ok(()),
        other => Err(ControlError::Refused(match failed(other) {
            CommandError::Status {
                status,
                sense: Some(Sense { key, asc, ascq, .. }),
            } => format!("scsi status {status:#04x}, sense {key:x}/{asc:02x}/{ascq:02x}"),
            error => error.to_string(),
        })),
    }
}
