//! The initiator's side: [`PathPort`] and [`PathSession`] over a simulated connection.

use crate::sim::target::{Message, Reply, Target};
use crate::sim::{conn_of, ConnId, CutPoint, Flavour, SanOptions, World};
use blockdev::completion::{self, Abandoned};
use blockdev::path::{
    Command, CommandError, CommandResult, Control, ControlError, Isid, LoginAs, LoginError,
    PathName, PathPort, PathSession, Sent, SessionEvent, SessionFacts, SessionLoad, Ticket,
    UnitIdentity,
};
use blockdev::{
    Applied, Completion, Geometry, Instant, IoCtx, IoError, IoVec, Kind, LocalFuture, PathCause,
    Promise, ReadSectors, Sector,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// An answer to something that is not a command.
pub(crate) struct Answer(Result<(), ControlError>);

impl Abandoned for Answer {
    fn abandoned() -> Self {
        let cause = PathCause::Administrative("session dropped");
        Answer(Err(ControlError::Lost(cause)))
    }
}

/// Something to be told when no borrow is held.
pub(crate) enum Told {
    Command(Promise<CommandResult>, CommandResult),
    Control(Promise<Answer>, Result<(), ControlError>),
    Wake(Waker),
}

impl Told {
    pub(crate) fn deliver(self) {
        match self {
            Told::Command(promise, result) => promise.complete(result),
            Told::Control(promise, result) => promise.complete(Answer(result)),
            Told::Wake(waker) => waker.wake(),
        }
    }
}

/// SAM-5 §5.3.1.
const TASK_ABORTED: u8 = 0x40;

struct Pending {
    promise: Promise<CommandResult>,
    sent: Sent,
    bytes: u64,
}

/// The client's end of a connection.
#[derive(Default)]
pub(crate) struct Client {
    pub(crate) is_open: bool,
    /// The target wants a logout: nothing new is taken.
    is_leaving: bool,
    commands: BTreeMap<u64, Pending>,
    controls: BTreeMap<u64, Promise<Answer>>,
    /// Messages that the socket has not taken; the tag of the command each belongs to.
    unsent: VecDeque<(Option<u64>, Message)>,
    /// LOGICAL UNIT RESETs under way, and the commands that had begun to leave before each: those
    /// end with its answer (RFC 7143 §11.6), whatever the target does with them.
    resets: BTreeMap<u64, Vec<u64>>,
    events: VecDeque<SessionEvent>,
    waker: Option<Waker>,
    last_heard: Instant,
    cause: Option<PathCause>,
}

impl Client {
    /// The target wants a logout within this time.
    pub(crate) fn asked_to_leave(&mut self, within: Duration) -> Vec<Told> {
        if !self.is_open {
            return Vec::new();
        }
        self.is_leaving = true;
        self.events.push_back(SessionEvent::LogoutRequested(within));
        self.waker.take().map(Told::Wake).into_iter().collect()
    }

    /// A reset is answered: what began to leave before it is over.
    fn concluded(&mut self, reset: u64) -> Vec<Told> {
        let mut told = Vec::new();
        for tag in self.resets.remove(&reset).unwrap_or_default() {
            let Some(pending) = self.commands.remove(&tag) else {
                continue;
            };
            self.unsent.retain(|(of, _)| *of != Some(tag));
            let aborted = CommandError::Status {
                status: TASK_ABORTED,
                sense: None,
            };
            told.push(Told::Command(pending.promise, Err(aborted)));
        }
        told
    }

    /// The connection is over: everything pending ends.
    pub(crate) fn lost(&mut self, cause: PathCause) -> Vec<Told> {
        if !self.is_open {
            return Vec::new();
        }
        self.is_open = false;
        self.cause = Some(cause.clone());
        self.unsent.clear();
        let mut told = Vec::new();
        for (_, pending) in std::mem::take(&mut self.commands) {
            let applied = match pending.sent {
                Sent::Not | Sent::Partly => Applied::No,
                Sent::Wholly(_) | Sent::Answered => Applied::Unknown,
            };
            let cause = cause.clone();
            told.push(Told::Command(
                pending.promise,
                Err(CommandError::Lost { cause, applied }),
            ));
        }
        for (_, promise) in std::mem::take(&mut self.controls) {
            told.push(Told::Control(
                promise,
                Err(ControlError::Lost(cause.clone())),
            ));
        }
        self.events.push_back(SessionEvent::Lost(cause));
        told.extend(self.waker.take().map(Told::Wake));
        told
    }
}

/// Moves what the socket takes.
pub(crate) fn pump(target: &mut Target, id: ConnId, now: Instant, world: &World) {
    while target.room(id) > 0 {
        let Some(conn) = conn_of(target, id) else {
            return;
        };
        let client = &mut conn.client;
        let Some((tag, message)) = client.unsent.pop_front() else {
            return;
        };
        if let Message::LunReset {
            tag,
            ends_commands: true,
        } = message
        {
            let begun = client.commands.iter().filter(|(_, c)| c.sent != Sent::Not);
            let begun = begun.map(|(tag, _)| *tag).collect();
            client.resets.insert(tag, begun);
        }
        if let Some(tag) = tag {
            let is_last = !client.unsent.iter().any(|(t, _)| *t == Some(tag));
            if let Some(pending) = client.commands.get_mut(&tag) {
                pending.sent = if is_last {
                    Sent::Wholly(now)
                } else {
                    Sent::Partly
                };
            }
        }
        target.send(id, message, now, world);
    }
}

/// What the client does with a reply it has read.
pub(crate) fn handle(target: &mut Target, id: ConnId, reply: Reply, now: Instant, world: &World) {
    let Some(conn) = conn_of(target, id) else {
        return;
    };
    let client = &mut conn.client;
    if !client.is_open {
        return;
    }
    client.last_heard = now;
    let told = match reply {
        Reply::LoggedIn => {
            let waits = client.controls.keys().next().copied();
            let tag = waits.unwrap_or(0);
            client.unsent.push_back((None, Message::Identify { tag }));
            None
        }
        Reply::ResetDone { tag } => {
            let mut told = client.concluded(tag);
            let waiting = client.controls.remove(&tag);
            told.extend(waiting.map(|promise| Told::Control(promise, Ok(()))));
            told.into_iter().for_each(|told| target.tell(told));
            None
        }
        Reply::Identified { tag } | Reply::Pong { tag, .. } => client
            .controls
            .remove(&tag)
            .map(|promise| Told::Control(promise, Ok(()))),
        Reply::ReadyToTransfer { tag } => {
            if client.commands.contains_key(&tag) {
                client.unsent.push_back((Some(tag), Message::Data { tag }));
            }
            None
        }
        Reply::Refused { tag } => {
            let refusal = ControlError::Refused("function rejected".into());
            let waiting = client.controls.remove(&tag);
            waiting.map(|promise| Told::Control(promise, Err(refusal)))
        }
        Reply::Answer { tag, result } => {
            if let Err(CommandError::Status {
                sense: Some(sense), ..
            }) = &result
            {
                if sense.key == 6 {
                    client.events.push_back(SessionEvent::Attention(*sense));
                    let waker = client.waker.take();
                    if let Some(waker) = waker {
                        target.tell(Told::Wake(waker));
                    }
                }
            }
            let Some(conn) = conn_of(target, id) else {
                return;
            };
            conn.client
                .commands
                .remove(&tag)
                .map(|pending| Told::Command(pending.promise, result))
        }
        Reply::LoggedOut => {
            let cause = PathCause::Administrative("logged out");
            return target.client_lost(id, cause);
        }
        Reply::Rst => {
            let cause = PathCause::Connection("connection reset by peer".into());
            return target.client_lost(id, cause);
        }
    };
    if let Some(told) = told {
        target.tell(told);
    }
    pump(target, id, now, world);
}

pub(crate) fn path_name(options: &SanOptions, index: usize) -> PathName {
    PathName {
        portal: format!("10.{}.{}.1:3260", index % 250 + 3, index / 250 + 1),
        source: None,
        target: format!("iqn.2024-12.tp2.b3:{}", options.name),
        lun: 1,
    }
}

/// A path through one portal.
pub(crate) struct SimPort {
    world: Rc<World>,
    index: usize,
    isid: Isid,
    initiator_name: String,
}

impl SimPort {
    pub(crate) fn new(world: Rc<World>, index: usize, isid: Isid) -> SimPort {
        let initiator_name = world.options.initiator_name.clone();
        SimPort {
            world,
            index,
            isid,
            initiator_name,
        }
    }

    /// The same port of another node.
    pub(crate) fn of(self, initiator_name: &str) -> SimPort {
        SimPort {
            initiator_name: initiator_name.into(),
            ..self
        }
    }
}

/// Aborts the connection unless the login came through.
struct LoginGuard {
    world: Rc<World>,
    conn: ConnId,
    is_in: bool,
}

impl Drop for LoginGuard {
    fn drop(&mut self) {
        if !self.is_in {
            abort(
                &self.world,
                self.conn,
                PathCause::Administrative("login given up"),
            );
        }
    }
}

fn abort(world: &World, conn: ConnId, cause: PathCause) {
    let now = world.rt.now();
    world
        .target
        .borrow_mut()
        .client_aborts(conn, cause, now, world);
    world.deliver();
    world.arm();
}

impl PathPort for SimPort {
    fn name(&self) -> PathName {
        path_name(&self.world.options, self.index)
    }

    fn isid(&self) -> Isid {
        self.isid
    }

    fn login(
        &self,
        who: LoginAs,
        deadline: Instant,
    ) -> LocalFuture<Result<Rc<dyn PathSession>, LoginError>> {
        let world = self.world.clone();
        let index = self.index;
        let (initiator_name, isid) = match who {
            LoginAs::Own if blockdev::mutation::off("iscsi.fixed-isid") => {
                let random = world.rt.random().to_be_bytes();
                let isid = [0x80, random[1], random[2], random[3], random[4], random[5]];
                (self.initiator_name.clone(), Isid(isid))
            }
            LoginAs::Own => (self.initiator_name.clone(), self.isid),
            LoginAs::Recorded {
                initiator_name,
                isid,
            } => (initiator_name, isid),
        };
        Box::pin(async move {
            let begun = world.rt.now();
            if world.target.borrow().refuses(index, begun) {
                world.rt.sleep(world.options.delay * 2).await;
                return Err(LoginError::Unreachable("connection refused".into()));
            }
            let (promise, answer) = completion::pair::<Answer>();
            let conn = {
                let mut target = world.target.borrow_mut();
                let tag = target.id();
                let client = Client {
                    is_open: true,
                    last_heard: begun,
                    controls: BTreeMap::from([(tag, promise)]),
                    ..Client::default()
                };
                let conn = target.connect(index, client);
                let message = Message::Login {
                    initiator_name,
                    isid,
                    is_csg0: !blockdev::mutation::off("mpath.csg0-login"),
                };
                target.send(conn, message, begun, &world);
                conn
            };
            world.arm();
            let mut guard = LoginGuard {
                world: world.clone(),
                conn,
                is_in: false,
            };
            match world.rt.by(deadline, answer).await {
                Err(_) => Err(LoginError::Unreachable("no answer in time".into())),
                Ok(Answer(Err(error))) => Err(LoginError::Unreachable(error.to_string())),
                Ok(Answer(Ok(()))) => {
                    guard.is_in = true;
                    let now = world.rt.now();
                    let session: Rc<dyn PathSession> = Rc::new(SimSession {
                        facts: SessionFacts {
                            isid,
                            since: now,
                            login_time: now - begun,
                            header_digest: "none",
                            data_digest: "none",
                        },
                        identity: Rc::new(RefCell::new(identify(&world, index))),
                        world: world.clone(),
                        index,
                        conn,
                    });
                    Ok(session)
                }
            }
        })
    }
}

struct SimSession {
    world: Rc<World>,
    index: usize,
    conn: ConnId,
    facts: SessionFacts,
    /// As it was found last: at the login, or when the unit was identified again.
    identity: Rc<RefCell<Rc<UnitIdentity>>>,
}

/// What the unit says of itself now through portal `index`.
fn identify(world: &World, index: usize) -> Rc<UnitIdentity> {
    let options = &world.options;
    let target = world.target.borrow();
    let (vendor, product) = match options.flavour {
        Flavour::Tgt => ("IET", "VIRTUAL-DISK"),
        Flavour::Lio => ("LIO-ORG", "disk"),
        Flavour::Istgt => ("FreeBSD", "iSCSI DISK"),
        Flavour::Standard => ("ACME", "ARRAY"),
    };
    let wwid = match &target.wwid {
        Some(changed) => changed.clone(),
        None => Some(format!("3600{}", options.name)),
    };
    Rc::new(UnitIdentity {
        wwid,
        vendor: vendor.into(),
        product: product.into(),
        revision: "0001".into(),
        serial: options.name.clone(),
        geometry: Geometry {
            sectors: target.sectors.unwrap_or(options.geometry.sectors),
            ..options.geometry
        },
        tpgs: u8::from(!target.access.is_empty()),
        target_port_group: (!target.access.is_empty()).then_some(index as u16 + 1),
        portal_group: options.portal_groups[index],
        read_only: false,
    })
}

impl SimSession {
    fn with<T>(&self, look: impl FnOnce(&mut Client) -> T) -> Option<T> {
        let mut target = self.world.target.borrow_mut();
        conn_of(&mut target, self.conn).map(|c| look(&mut c.client))
    }

    fn put(&self, message: Message) {
        let now = self.world.rt.now();
        let mut target = self.world.target.borrow_mut();
        let Some(conn) = conn_of(&mut target, self.conn) else {
            return;
        };
        if matches!(message, Message::LunReset { .. }) {
            // Immediate delivery: it overtakes commands, and data that were asked for.
            conn.client.unsent.push_front((None, message));
        } else {
            conn.client.unsent.push_back((None, message));
        }
        pump(&mut target, self.conn, now, &self.world);
        drop(target);
        self.world.arm();
    }
}

/// Begins a command on a connection.
fn submit_on(world: &World, id: ConnId, command: Command) -> (Ticket, Completion<CommandResult>) {
    let (promise, completion) = completion::pair();
    let now = world.rt.now();
    let mut target = world.target.borrow_mut();
    let tag = target.id();
    let conn = conn_of(&mut target, id);
    let Some(client) = conn.map(|c| &mut c.client).filter(|c| c.is_open) else {
        drop(target);
        let cause = PathCause::Connection("session is closed".into());
        let applied = Applied::No;
        promise.complete(Err(CommandError::Lost { cause, applied }));
        return (Ticket(tag), completion);
    };
    if client.is_leaving {
        drop(target);
        promise.complete(Err(CommandError::Withdrawn));
        return (Ticket(tag), completion);
    }
    let bytes = match &command {
        Command::Read { sectors, .. } => u64::from(*sectors) * 512,
        Command::Write { data, .. } => data.len() as u64,
        _ => 0,
    };
    let pending = Pending {
        promise,
        sent: Sent::Not,
        bytes,
    };
    client.commands.insert(tag, pending);
    let is_write = matches!(command, Command::Write { .. });
    if is_write {
        let network = target.conns.get(&id).map_or(usize::MAX, |c| c.network);
        target.snared(network, CutPoint::BeforeSent);
    }
    let Some(client) = conn_of(&mut target, id).map(|c| &mut c.client) else {
        unreachable!("looked up above");
    };
    let messages = &mut client.unsent;
    messages.push_back((Some(tag), Message::Command { tag, command }));
    if is_write && world.options.asks_within.is_none() {
        messages.push_back((Some(tag), Message::Data { tag }));
    }
    pump(&mut target, id, now, world);
    drop(target);
    world.arm();
    (Ticket(tag), completion)
}

impl ReadSectors for SimSession {
    fn read(&self, at: Sector, sectors: u32) -> LocalFuture<Result<IoVec, IoError>> {
        let command = Command::Read { at, sectors };
        let world = self.world.clone();
        let conn = self.conn;
        Box::pin(async move {
            match submit_on(&world, conn, command).1.await {
                Ok(done) => Ok(done.into_data()),
                Err(error) => {
                    let cause = PathCause::Protocol(error.to_string());
                    Err(IoError::not_applied(Kind::Path(cause)))
                }
            }
        })
    }
}

impl PathSession for SimSession {
    fn identity(&self) -> Rc<UnitIdentity> {
        self.identity.borrow().clone()
    }

    fn facts(&self) -> SessionFacts {
        self.facts.clone()
    }

    fn submit(&self, command: Command, _ctx: IoCtx) -> (Ticket, Completion<CommandResult>) {
        let range = match &command {
            Command::Read { at, sectors } => Some((*at, u64::from(*sectors))),
            Command::Write { at, data, .. } => Some((*at, data.len() as u64 / 512)),
            _ => None,
        };
        let geometry = self.identity.borrow().geometry;
        if range.is_some_and(|(at, sectors)| !geometry.accepts(at, sectors)) {
            let error = CommandError::BadAnswer("range outside the unit");
            return (Ticket(0), Completion::ready(Err(error)));
        }
        submit_on(&self.world, self.conn, command)
    }

    fn sent(&self, ticket: Ticket) -> Sent {
        self.with(|c| c.commands.get(&ticket.0).map(|p| p.sent))
            .flatten()
            .unwrap_or(Sent::Answered)
    }

    fn withdraw(&self, ticket: Ticket) -> bool {
        let taken = self.with(|client| {
            if client.commands.get(&ticket.0)?.sent != Sent::Not {
                return None;
            }
            client.unsent.retain(|(tag, _)| *tag != Some(ticket.0));
            client.commands.remove(&ticket.0)
        });
        match taken.flatten() {
            Some(pending) => {
                pending.promise.complete(Err(CommandError::Withdrawn));
                true
            }
            None => false,
        }
    }

    fn control(
        &self,
        request: Control,
        deadline: Instant,
    ) -> LocalFuture<Result<(), ControlError>> {
        let (promise, answer) = completion::pair::<Answer>();
        let tag = self.world.target.borrow_mut().id();
        let is_open = self.with(|c| {
            if c.is_open {
                c.controls.insert(tag, promise);
            }
            c.is_open
        });
        let is_identify = request == Control::Identify;
        if is_open == Some(true) {
            let message = match request {
                Control::LunReset { ends_commands } => Message::LunReset { tag, ends_commands },
                Control::AbortTask(_) | Control::PreemptAndAbort { .. } => Message::Abort { tag },
                Control::Ping { bytes } => Message::Ping { tag, bytes },
                Control::Identify => Message::Identify { tag },
            };
            self.put(message);
        }
        let world = self.world.clone();
        let (conn, index, identity) = (self.conn, self.index, self.identity.clone());
        Box::pin(async move {
            let result = match world.rt.by(deadline, answer).await {
                Ok(Answer(result)) => result,
                Err(_) => Err(ControlError::Late),
            };
            if is_identify && result.is_ok() {
                let found = identify(&world, index);
                if identity.replace(found.clone()) != found {
                    let mut target = world.target.borrow_mut();
                    let client = conn_of(&mut target, conn).map(|c| &mut c.client);
                    let waker = client.and_then(|client| {
                        client.events.push_back(SessionEvent::Identity(found));
                        client.waker.take()
                    });
                    drop(target);
                    waker.into_iter().for_each(Waker::wake);
                }
            }
            result
        })
    }

    fn load(&self) -> SessionLoad {
        self.with(|c| SessionLoad {
            in_flight: c.commands.len() as u32,
            in_flight_bytes: c.commands.values().map(|p| p.bytes).sum(),
            room: 64,
            last_heard: c.last_heard,
        })
        .unwrap_or_default()
    }

    fn is_alive(&self) -> bool {
        self.with(|c| c.is_open).unwrap_or(false)
    }

    fn takes_commands(&self) -> bool {
        self.with(|c| c.is_open && !c.is_leaving).unwrap_or(false)
    }

    fn abort(&self, why: PathCause) {
        abort(&self.world, self.conn, why);
    }

    fn logout(&self, deadline: Instant) -> LocalFuture<()> {
        let world = self.world.clone();
        let conn = self.conn;
        Box::pin(async move {
            let is_idle = |world: &World| {
                let mut target = world.target.borrow_mut();
                conn_of(&mut target, conn).is_none_or(|c| c.client.commands.is_empty())
            };
            while !is_idle(&world) && world.rt.now() < deadline {
                world.rt.sleep(Duration::from_millis(1)).await;
            }
            {
                let now = world.rt.now();
                let mut target = world.target.borrow_mut();
                if let Some(c) = conn_of(&mut target, conn) {
                    c.client.unsent.push_back((None, Message::Logout));
                }
                pump(&mut target, conn, now, &world);
            }
            world.arm();
            let is_open = |world: &World| {
                let mut target = world.target.borrow_mut();
                conn_of(&mut target, conn).is_some_and(|c| c.client.is_open)
            };
            while is_open(&world) && world.rt.now() < deadline {
                world.rt.sleep(Duration::from_millis(1)).await;
            }
            abort(&world, conn, PathCause::Administrative("logged out"));
        })
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<SessionEvent> {
        let mut target = self.world.target.borrow_mut();
        let Some(conn) = conn_of(&mut target, self.conn) else {
            let cause = PathCause::Connection("session is closed".into());
            return Poll::Ready(SessionEvent::Lost(cause));
        };
        match conn.client.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                conn.client.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for SimSession {
    fn drop(&mut self) {
        abort(
            &self.world,
            self.conn,
            PathCause::Administrative("process gone"),
        );
    }
}
