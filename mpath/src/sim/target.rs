//! The target's side: connections, the back end, resets, and the networks in between.

use crate::sim::client::{Client, Told};
use crate::sim::unit::Unit;
use crate::sim::{CutPoint, Flavour, Link, Verdict, World};
use blockdev::path::{Command, CommandError, CommandResult, Isid, Sense};
use blockdev::reserve::{ReserveIn, ReserveOut};
use blockdev::{Done, Instant, PathCause, Seq};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

/// Between arrival and the moment the client's process reads its socket.
const READ_DELAY: Duration = Duration::from_micros(20);
/// After a cut, TCP tries again within this.
pub(crate) const RETRANSMIT: Duration = Duration::from_millis(200);
/// Messages a socket and the network take while nothing moves.
const SOCKET_MESSAGES: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    ToTarget(u64),
    ToClient(u64),
    ClientReads(u64),
    /// The target reads what lay in the socket of this connection.
    TargetReads(u64),
    /// The target has room for the data of this connection's command.
    AsksForData(u64, u64),
    Backend(u64),
}

/// A silent cut that waits for a write.
pub(crate) struct Snare {
    pub(crate) at: CutPoint,
    pub(crate) late: Duration,
}

/// Client to target.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Login {
        initiator_name: String,
        isid: Isid,
        is_csg0: bool,
    },
    Identify {
        tag: u64,
    },
    /// Header; the data of a write follows as a message of its own.
    Command {
        tag: u64,
        command: Command,
    },
    Data {
        tag: u64,
    },
    LunReset {
        /// See [`blockdev::path::Control::LunReset`].
        ends_commands: bool,
        tag: u64,
    },
    Abort {
        tag: u64,
    },
    Ping {
        tag: u64,
        bytes: usize,
    },
    Logout,
    Rst,
}

/// Target to client.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    LoggedIn,
    Identified { tag: u64 },
    Answer { tag: u64, result: CommandResult },
    ResetDone { tag: u64 },
    Refused { tag: u64 },
    ReadyToTransfer { tag: u64 },
    Pong { tag: u64, bytes: usize },
    LoggedOut,
    Rst,
}

impl Message {
    fn is_large(&self) -> bool {
        match self {
            Message::Data { .. } => true,
            Message::Ping { bytes, .. } => *bytes >= 4096,
            _ => false,
        }
    }
}

impl Reply {
    fn is_large(&self) -> bool {
        match self {
            Reply::Answer {
                result: Ok(Done::Read(data, _)),
                ..
            } => data.len() >= 4096,
            Reply::Pong { bytes, .. } => *bytes >= 4096,
            _ => false,
        }
    }
}

pub(crate) struct Network {
    pub(crate) link: Link,
    pub(crate) extra: Duration,
}

impl Default for Network {
    fn default() -> Self {
        Network {
            link: Link::Up,
            extra: Duration::ZERO,
        }
    }
}

/// A connection with both its ends.
pub(crate) struct Conn {
    pub(crate) network: usize,
    pub(crate) client: Client,
    to_target: VecDeque<(Instant, Message)>,
    to_client: VecDeque<(Instant, Reply)>,
    inbox: VecDeque<Reply>,
    initiator: Option<(String, Isid)>,
    is_open: bool,
    is_in: bool,
    has_attention: bool,
    injected: Option<Verdict>,
    /// Headers whose data has not come.
    waiting_data: BTreeMap<u64, Command>,
    /// Arrived, but not read by the target yet.
    unread: VecDeque<Message>,
}

struct Task {
    conn: u64,
    tag: u64,
    command: Command,
    /// Ended without an answer; it still runs.
    is_mute: bool,
    /// Due while the back end hung.
    is_due: bool,
}

struct Wait {
    conn: u64,
    tag: u64,
    tasks: Vec<u64>,
}

pub(crate) struct Target {
    pub(crate) networks: Vec<Network>,
    pub(crate) conns: BTreeMap<u64, Conn>,
    pub(crate) unit: Unit,
    pub(crate) wwid: Option<Option<String>>,
    pub(crate) sectors: Option<u64>,
    pub(crate) refuses_fua: bool,
    pub(crate) greeting: Option<Verdict>,
    pub(crate) always: Option<Verdict>,
    /// Registered keys, and the holder of the reservation (Write Exclusive – Registrants Only).
    keys: BTreeMap<(String, Isid), u64>,
    holder: Option<u64>,
    /// ALUA state code of each portal; empty: none.
    pub(crate) access: Vec<u8>,
    pub(crate) refuses_barriers: bool,
    pub(crate) snare: Option<Snare>,
    pub(crate) snared_network: Option<usize>,
    pub(crate) service: Option<Duration>,
    tasks: BTreeMap<u64, Task>,
    resets: Vec<Wait>,
    logins: Vec<Wait>,
    is_hung: bool,
    down_until: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    next: u64,
    news: Vec<Told>,
}

/// CHECK CONDITION with this sense.
fn check_condition(key: u8, asc: u8, ascq: u8) -> CommandResult {
    Err(CommandError::Status {
        status: 2,
        sense: Some(Sense {
            key,
            asc,
            ascq,
            deferred: false,
            information: None,
        }),
    })
}

impl Target {
    pub(crate) fn new(networks: Vec<Network>, has_cache: bool) -> Target {
        Target {
            networks,
            conns: BTreeMap::new(),
            unit: Unit::new(has_cache),
            wwid: None,
            sectors: None,
            refuses_fua: false,
            greeting: None,
            always: None,
            keys: BTreeMap::new(),
            holder: None,
            access: Vec::new(),
            refuses_barriers: false,
            snare: None,
            snared_network: None,
            service: None,
            tasks: BTreeMap::new(),
            resets: Vec::new(),
            logins: Vec::new(),
            is_hung: false,
            down_until: Instant(0),
            events: BinaryHeap::new(),
            next: 1,
            news: Vec::new(),
        }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn tell(&mut self, told: Told) {
        self.news.push(told);
    }

    pub(crate) fn take_news(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.news)
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    pub(crate) fn backlog(&self) -> usize {
        self.tasks.len()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.conns.values().filter(|c| c.is_open && c.is_in).count()
    }

    fn at(&mut self, at: Instant, event: Event) {
        let id = self.id();
        self.events.push(Reverse((at, id, event)));
    }

    /// Runs one event that is due; `false` if none is.
    pub(crate) fn step(&mut self, now: Instant, world: &World) -> bool {
        if self.next_due().is_none_or(|at| at > now) {
            return false;
        }
        let Some(Reverse((_, _, event))) = self.events.pop() else {
            return false;
        };
        match event {
            Event::ToTarget(conn) => self.arrive_at_target(conn, now, world),
            Event::ToClient(conn) => self.arrive_at_client(conn, now),
            Event::ClientReads(conn) => self.client_reads(conn, now, world),
            Event::TargetReads(conn) => self.target_reads(conn, now, world),
            Event::AsksForData(conn, tag) => {
                self.reply(conn, Reply::ReadyToTransfer { tag }, now, world);
            }
            Event::Backend(task) => self.backend(task, now, world),
        }
        true
    }

    // ---- networks ---------------------------------------------------------------------------

    pub(crate) fn connect(&mut self, network: usize, client: Client) -> u64 {
        let id = self.id();
        let conn = Conn {
            network,
            client,
            to_target: VecDeque::new(),
            to_client: VecDeque::new(),
            inbox: VecDeque::new(),
            initiator: None,
            is_open: true,
            is_in: false,
            has_attention: false,
            injected: self.greeting,
            waiting_data: BTreeMap::new(),
            unread: VecDeque::new(),
        };
        self.conns.insert(id, conn);
        id
    }

    /// Whether the network takes new connections.
    pub(crate) fn refuses(&self, network: usize, now: Instant) -> bool {
        self.networks[network].link == Link::Loud || now < self.down_until
    }

    /// How many messages the client's socket would take now.
    pub(crate) fn room(&self, conn: u64) -> usize {
        let Some(conn) = self.conns.get(&conn) else {
            return 0;
        };
        SOCKET_MESSAGES.saturating_sub(conn.to_target.len())
    }

    pub(crate) fn send(&mut self, id: u64, message: Message, now: Instant, world: &World) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let way = world.way() + self.networks[conn.network].extra;
        let last = conn.to_target.back().map_or(Instant(0), |(at, _)| *at);
        let at = (now + way).max(last);
        conn.to_target.push_back((at, message));
        self.at(at, Event::ToTarget(id));
    }

    fn reply(&mut self, id: u64, reply: Reply, now: Instant, world: &World) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let way = world.way() + self.networks[conn.network].extra;
        let last = conn.to_client.back().map_or(Instant(0), |(at, _)| *at);
        let at = (now + way).max(last);
        conn.to_client.push_back((at, reply));
        self.at(at, Event::ToClient(id));
    }

    fn passes(&self, network: usize, is_large: bool) -> bool {
        match self.networks[network].link {
            Link::Up => true,
            Link::Silent | Link::Loud => false,
            Link::SmallOnly => !is_large,
        }
    }

    pub(crate) fn set_link(&mut self, index: usize, link: Link, now: Instant, world: &World) {
        self.networks[index].link = link;
        let conns: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| c.network == index)
            .map(|(id, _)| *id)
            .collect();
        match link {
            Link::Silent | Link::SmallOnly => {}
            Link::Up => {
                for id in conns {
                    let later =
                        now + Duration::from_nanos(world.draw(RETRANSMIT.as_nanos() as u64));
                    self.at(later, Event::ToTarget(id));
                    self.at(later, Event::ToClient(id));
                }
            }
            Link::Loud => {
                for id in conns {
                    self.close_target_side(id);
                    let cause = PathCause::Connection("connection reset by peer".into());
                    self.client_lost(id, cause);
                }
            }
        }
    }

    fn arrive_at_client(&mut self, id: u64, now: Instant) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let Some((at, reply)) = conn.to_client.front() else {
            return;
        };
        if *at > now || !self.passes(conn.network, reply.is_large()) {
            return;
        }
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let Some((_, reply)) = conn.to_client.pop_front() else {
            return;
        };
        let more = conn.to_client.front().map(|(at, _)| *at);
        conn.inbox.push_back(reply);
        self.at(now + READ_DELAY, Event::ClientReads(id));
        if let Some(at) = more {
            self.at(at.max(now), Event::ToClient(id));
        }
        self.settle(now, None);
    }

    fn client_reads(&mut self, id: u64, now: Instant, world: &World) {
        loop {
            let Some(conn) = self.conns.get_mut(&id) else {
                return;
            };
            let Some(reply) = conn.inbox.pop_front() else {
                break;
            };
            crate::sim::client::handle(self, id, reply, now, world);
        }
        crate::sim::client::pump(self, id, now, world);
    }

    pub(crate) fn client_lost(&mut self, id: u64, cause: PathCause) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.to_client.clear();
        conn.inbox.clear();
        conn.to_target.clear();
        let told = conn.client.lost(cause);
        self.news.extend(told);
        self.forget(id);
    }

    /// The client closes abruptly: what had left arrives, the rest and perhaps the RST do not.
    pub(crate) fn client_aborts(&mut self, id: u64, cause: PathCause, now: Instant, world: &World) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if !conn.client.is_open {
            return;
        }
        let kept = world.draw(conn.to_target.len() as u64 + 1) as usize;
        conn.to_target.truncate(kept);
        conn.to_client.clear();
        conn.inbox.clear();
        let told = conn.client.lost(cause);
        self.news.extend(told);
        let is_up = self.networks[self.conns[&id].network].link == Link::Up;
        if is_up || world.draw(2) == 0 {
            self.send(id, Message::Rst, now, world);
        }
        self.settle(now, None);
        self.forget(id);
    }

    /// Drops a connection that nobody holds and nothing is under way on.
    fn forget(&mut self, id: u64) {
        let is_over = self
            .conns
            .get(&id)
            .is_some_and(|c| !c.client.is_open && !c.is_open && c.to_target.is_empty());
        if is_over && !self.tasks.values().any(|t| t.conn == id) {
            self.conns.remove(&id);
        }
    }

    // ---- the target -------------------------------------------------------------------------

    fn arrive_at_target(&mut self, id: u64, now: Instant, world: &World) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let Some((at, message)) = conn.to_target.front() else {
            return;
        };
        if *at > now || !self.passes(conn.network, message.is_large()) {
            return;
        }
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let Some((_, message)) = conn.to_target.pop_front() else {
            return;
        };
        let more = conn.to_target.front().map(|(at, _)| *at);
        let is_open = conn.is_open;
        let waits = is_open && !conn.unread.is_empty();
        if waits {
            conn.unread.push_back(message.clone());
        }
        if let Some(at) = more {
            self.at(at.max(now), Event::ToTarget(id));
        }
        if now < self.down_until || waits {
            return;
        }
        if is_open {
            self.take_message(id, message, now, world);
        } else {
            self.forget(id);
        }
        crate::sim::client::pump(self, id, now, world);
    }

    /// A write on `network` is at this point: cuts the network if that is what was asked for, and
    /// yields how late the target is with it.
    pub(crate) fn snared(&mut self, network: usize, at: CutPoint) -> Option<Duration> {
        if self.snare.as_ref().is_none_or(|snare| snare.at != at) {
            return None;
        }
        self.snared_network = Some(network);
        self.networks[network].link = Link::Silent;
        self.snare.take().map(|s| s.late)
    }

    fn network_of(&self, id: u64) -> usize {
        self.conns.get(&id).map_or(usize::MAX, |c| c.network)
    }

    fn target_reads(&mut self, id: u64, now: Instant, world: &World) {
        let unread = self
            .conns
            .get_mut(&id)
            .map(|c| std::mem::take(&mut c.unread));
        for message in unread.into_iter().flatten() {
            self.take_message(id, message, now, world);
        }
    }

    fn take_message(&mut self, id: u64, message: Message, now: Instant, world: &World) {
        let network = self.network_of(id);
        match message {
            Message::Login {
                initiator_name,
                isid,
                is_csg0,
            } => {
                self.login(id, initiator_name, isid, is_csg0, now, world);
            }
            Message::Identify { tag } => self.reply(id, Reply::Identified { tag }, now, world),
            Message::Command { tag, command } => {
                if matches!(command, Command::Write { .. }) {
                    if let Some(within) = world.options.asks_within {
                        let busy = Duration::from_nanos(world.draw(within.as_nanos() as u64));
                        self.at(now + busy, Event::AsksForData(id, tag));
                    }
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.waiting_data.insert(tag, command);
                    }
                    self.snared(network, CutPoint::HalfOfData);
                } else {
                    self.begin(id, tag, command, now, world);
                }
            }
            Message::Data { tag } => {
                if let Some(late) = self.snared(network, CutPoint::AllData) {
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.unread.push_back(Message::Data { tag });
                    }
                    return self.at(now + late, Event::TargetReads(id));
                }
                let conn = self.conns.get_mut(&id);
                if let Some(command) = conn.and_then(|c| c.waiting_data.remove(&tag)) {
                    self.begin(id, tag, command, now, world);
                }
            }
            Message::LunReset { tag, .. } => self.lun_reset(id, tag, now, world),
            Message::Abort { tag } => self.reply(id, Reply::ResetDone { tag }, now, world),
            Message::Ping { tag, bytes } => {
                self.reply(id, Reply::Pong { tag, bytes }, now, world);
            }
            Message::Logout => {
                self.reply(id, Reply::LoggedOut, now, world);
                self.close_target_side(id);
            }
            Message::Rst => {
                self.close_target_side(id);
                self.settle(now, Some(world));
                self.forget(id);
            }
        }
    }

    fn close_target_side(&mut self, id: u64) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.is_open = false;
            conn.waiting_data.clear();
            conn.to_target.clear();
            conn.unread.clear();
        }
        self.resets.retain(|r| r.conn != id);
        self.logins.retain(|l| l.conn != id);
    }

    fn login(
        &mut self,
        id: u64,
        name: String,
        isid: Isid,
        is_csg0: bool,
        now: Instant,
        world: &World,
    ) {
        let flavour = world.options.flavour;
        let group_of = |c: &Conn| world.options.portal_groups[c.network];
        let Some(me) = self.conns.get(&id) else {
            return;
        };
        let group = group_of(me);
        let key = Some((name, isid));
        let reinstates = is_csg0 || flavour != Flavour::Tgt;
        let old: Vec<(u64, bool)> = self
            .conns
            .iter()
            .filter(|(other, c)| **other != id && c.initiator == key)
            .filter(|(_, c)| flavour == Flavour::Tgt || group_of(c) == group)
            .filter(|_| reinstates)
            .map(|(other, c)| (*other, c.is_open))
            .collect();
        let mut waits = Vec::new();
        for (other, was_open) in old {
            // LIO does not wait for a session that is closing already.
            let is_waited = match flavour {
                Flavour::Lio => was_open,
                Flavour::Standard => true,
                Flavour::Tgt | Flavour::Istgt => false,
            };
            if is_waited {
                let of_other = self.tasks.iter().filter(|(_, t)| t.conn == other);
                waits.extend(of_other.map(|(task, _)| *task));
            }
            self.close_target_side(other);
            if was_open {
                self.reply(other, Reply::Rst, now, world);
            }
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.initiator = key;
        }
        self.logins.push(Wait {
            conn: id,
            tag: 0,
            tasks: waits,
        });
        self.settle(now, Some(world));
    }

    fn lun_reset(&mut self, id: u64, tag: u64, now: Instant, world: &World) {
        if self.refuses_barriers {
            return self.reply(id, Reply::Refused { tag }, now, world);
        }
        let flavour = world.options.flavour;
        if flavour == Flavour::Tgt {
            // Of two resets only the later is ever answered.
            self.resets.clear();
        }
        let conns = &self.conns;
        let mut waits = Vec::new();
        for (task_id, task) in &mut self.tasks {
            let is_open = conns.get(&task.conn).is_some_and(|c| c.is_open);
            match flavour {
                Flavour::Tgt => waits.push(*task_id),
                Flavour::Lio => {
                    if is_open {
                        waits.push(*task_id);
                        task.is_mute = true;
                    }
                }
                Flavour::Istgt => {}
                Flavour::Standard => {
                    waits.push(*task_id);
                    task.is_mute = true;
                }
            }
        }
        if flavour == Flavour::Standard {
            // What still waits for its data is ended as well; the data are ignored.
            for conn in self.conns.values_mut() {
                conn.waiting_data.clear();
            }
        }
        self.resets.push(Wait {
            conn: id,
            tag,
            tasks: waits,
        });
        self.settle(now, Some(world));
    }

    /// Answers resets and logins whose waiting is over. Without a world there is nobody to answer
    /// now; the next event does.
    fn settle(&mut self, now: Instant, world: Option<&World>) {
        let Some(world) = world else {
            if !(self.resets.is_empty() && self.logins.is_empty()) {
                self.at(now, Event::Backend(0));
            }
            return;
        };
        let tasks = &self.tasks;
        let (done, left): (Vec<Wait>, Vec<Wait>) = std::mem::take(&mut self.logins)
            .into_iter()
            .partition(|w| !w.tasks.iter().any(|t| tasks.contains_key(t)));
        self.logins = left;
        for wait in done {
            if let Some(conn) = self.conns.get_mut(&wait.conn) {
                conn.is_in = true;
            }
            self.reply(wait.conn, Reply::LoggedIn, now, world);
        }
        let is_blocked = world.options.flavour == Flavour::Tgt && self.has_undrained();
        let tasks = &self.tasks;
        let (done, left): (Vec<Wait>, Vec<Wait>) = std::mem::take(&mut self.resets)
            .into_iter()
            .partition(|w| !is_blocked && !w.tasks.iter().any(|t| tasks.contains_key(t)));
        self.resets = left;
        for wait in done {
            for conn in self.conns.values_mut() {
                conn.has_attention |= conn.is_open && conn.is_in;
            }
            self.reply(wait.conn, Reply::ResetDone { tag: wait.tag }, now, world);
        }
    }

    /// A session whose network is cut and that has read data to get rid of.
    fn has_undrained(&self) -> bool {
        self.conns.values().any(|c| {
            c.is_open
                && !self.passes(c.network, false)
                && c.to_client.iter().any(|(_, r)| {
                    matches!(
                        r,
                        Reply::Answer {
                            result: Ok(Done::Read(..)),
                            ..
                        }
                    )
                })
        })
    }

    pub(crate) fn inject(&mut self, status: u8, sense: Option<(u8, u8, u8)>) {
        for conn in self.conns.values_mut().filter(|c| c.is_open) {
            conn.injected = Some((status, sense));
        }
    }

    /// What reservations make of a command: a conflict, or an answer of their own.
    fn reserve_answer(
        &mut self,
        id: u64,
        command: &Command,
        world: &World,
    ) -> Option<CommandResult> {
        let conflict = Err(CommandError::Status {
            status: 0x18,
            sense: None,
        });
        let nexus = self.conns.get(&id)?.initiator.clone()?;
        let registered = self.keys.get(&nexus).copied();
        let read = |words: &[&[u8]]| {
            let data = words.concat();
            Ok(Done::Read(world.pool.copy_now(&data), Seq(0)))
        };
        match command {
            Command::ReserveOut(ReserveOut::RegisterAndIgnore { new, .. }) => {
                self.keys.insert(nexus, *new);
                Some(Ok(Done::Written))
            }
            Command::ReserveOut(ReserveOut::Reserve { own, .. }) => {
                if registered != Some(*own) || self.holder.is_some_and(|h| h != *own) {
                    return Some(conflict);
                }
                self.holder = Some(*own);
                Some(Ok(Done::Written))
            }
            Command::ReserveOut(ReserveOut::PreemptAndAbort { own, victim, .. }) => {
                if self.refuses_barriers {
                    // As tgt: INVALID FIELD IN CDB.
                    return Some(check_condition(5, 0x24, 0));
                }
                if registered != Some(*own) {
                    return Some(conflict);
                }
                self.keys.retain(|_, key| key != victim);
                if self.holder == Some(*victim) {
                    self.holder = Some(*own);
                }
                Some(Ok(Done::Written))
            }
            Command::ReserveOut(ReserveOut::Register { own, new: 0, .. }) => {
                if registered != Some(*own) {
                    return Some(conflict);
                }
                self.keys.remove(&nexus);
                self.holder = self.holder.filter(|holder| holder != own);
                Some(Ok(Done::Written))
            }
            Command::ReserveOut(ReserveOut::Clear { own }) => {
                if registered != Some(*own) {
                    return Some(conflict);
                }
                self.keys.clear();
                self.holder = None;
                Some(Ok(Done::Written))
            }
            Command::ReserveOut(_) => Some(conflict),
            Command::ReserveIn(ReserveIn::Keys) => {
                let keys: Vec<u8> = self.keys.values().flat_map(|k| k.to_be_bytes()).collect();
                let length = (keys.len() as u32).to_be_bytes();
                Some(read(&[&[0; 4], &length, &keys]))
            }
            Command::ReserveIn(_) => match self.holder {
                Some(key) => {
                    let tail = [0, 0, 0, 0, 0, 0x05, 0, 0];
                    Some(read(&[&[0; 4], &[0, 0, 0, 16], &key.to_be_bytes(), &tail]))
                }
                None => Some(read(&[&[0; 8]])),
            },
            Command::Write { .. } | Command::WriteZeroes { .. } | Command::Unmap { .. } => {
                (self.holder.is_some() && registered.is_none()).then_some(conflict)
            }
            _ => None,
        }
    }

    /// What ALUA makes of a command: the list, or a refusal.
    fn access_answer(&self, id: u64, command: &Command, world: &World) -> Option<CommandResult> {
        if self.access.is_empty() {
            return None;
        }
        match command {
            Command::ReportTargetPortGroupsExtended => return Some(check_condition(5, 0x24, 0)),
            Command::ReportTargetPortGroups => {
                let groups = self.access.iter().zip(1u8..);
                let list: Vec<u8> = groups
                    .flat_map(|(&code, number)| {
                        [code, 0x0F, 0, number, 0, 0, 0, 1, 0, 0, 0, number]
                    })
                    .collect();
                let mut data = (list.len() as u32).to_be_bytes().to_vec();
                data.extend(list);
                let data = world.pool.copy_now(&data);
                return Some(Ok(Done::Read(data, Seq(0))));
            }
            _ => {}
        }
        match self.access.get(self.network_of(id)).map(|code| code & 0x0F) {
            Some(0x2) => Some(check_condition(2, 4, 0x0B)),
            Some(0x3) => Some(check_condition(2, 4, 0x0C)),
            Some(0xF) => Some(check_condition(2, 4, 0x0A)),
            _ => None,
        }
    }

    /// Whether this form of a command is refused.
    fn refuses_form(&self, command: &Command) -> bool {
        match command {
            Command::Write { want, .. } => self.refuses_fua && *want == blockdev::Durability::Fua,
            Command::OrderedTestUnitReady => self.refuses_barriers,
            _ => false,
        }
    }

    fn begin(&mut self, id: u64, tag: u64, command: Command, now: Instant, world: &World) {
        let is_refused = self.refuses_form(&command);
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let check = |key, asc, ascq| (2, Some((key, asc, ascq)));
        let error = if let Some(injected) = conn.injected.take().or(self.always) {
            Some(injected)
        } else if std::mem::take(&mut conn.has_attention) {
            Some(check(6, 0x29, 0))
        } else if is_refused {
            Some(check(5, 0x24, 0))
        } else {
            None
        };
        if let Some((status, sense)) = error {
            let sense = sense.map(|(key, asc, ascq)| Sense {
                key,
                asc,
                ascq,
                deferred: false,
                information: None,
            });
            let result = Err(CommandError::Status { status, sense });
            return self.reply(id, Reply::Answer { tag, result }, now, world);
        }
        if let Some(result) = self.reserve_answer(id, &command, world) {
            return self.reply(id, Reply::Answer { tag, result }, now, world);
        }
        if let Some(result) = self.access_answer(id, &command, world) {
            return self.reply(id, Reply::Answer { tag, result }, now, world);
        }
        if matches!(command, Command::TestUnitReady) {
            // Answered by the target itself, also while the back end hangs.
            let result = Ok(Done::Flushed);
            return self.reply(id, Reply::Answer { tag, result }, now, world);
        }
        let is_write = matches!(command, Command::Write { .. });
        let network = self.network_of(id);
        let stuck = is_write
            .then(|| self.snared(network, CutPoint::Executing))
            .flatten();
        let task = self.id();
        let service = world.service(self.service.unwrap_or(world.options.service));
        let service = stuck.unwrap_or(service);
        let is_due = false;
        self.tasks.insert(
            task,
            Task {
                conn: id,
                tag,
                command,
                is_mute: false,
                is_due,
            },
        );
        self.at(now + service, Event::Backend(task));
    }

    pub(crate) fn set_hung(&mut self, is_hung: bool, now: Instant, world: &World) {
        self.is_hung = is_hung;
        if is_hung {
            return;
        }
        // What was due comes in any order.
        let due: Vec<u64> = self
            .tasks
            .iter()
            .filter(|(_, t)| t.is_due)
            .map(|(id, _)| *id)
            .collect();
        for task in due {
            let later = Duration::from_nanos(world.draw(2_000_000));
            self.at(now + later, Event::Backend(task));
        }
    }

    fn backend(&mut self, id: u64, now: Instant, world: &World) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return self.settle(now, Some(world));
        };
        if self.is_hung {
            task.is_due = true;
            return;
        }
        let is_ordered = matches!(task.command, Command::OrderedTestUnitReady);
        if is_ordered && self.tasks.keys().any(|other| *other < id) {
            return self.at(now + Duration::from_micros(100), Event::Backend(id));
        }
        let Some(task) = self.tasks.remove(&id) else {
            return;
        };
        let spoiled = match &task.command {
            Command::Read { at, sectors } => self.unit.spoiled(*at, *sectors),
            _ => None,
        };
        let result = match (&task.command, spoiled) {
            (_, Some(lba)) => Err(CommandError::Status {
                status: 2,
                sense: Some(Sense {
                    key: 3,
                    asc: 0x11,
                    ascq: 0,
                    deferred: false,
                    information: Some(lba),
                }),
            }),
            (Command::Read { at, sectors }, None) => Ok(Done::Read(
                self.unit.read(&world.pool, *at, *sectors),
                Seq(0),
            )),
            (command, None) => {
                self.unit.apply(command, || true);
                Ok(Done::Written)
            }
        };
        let is_open = self.conns.get(&task.conn).is_some_and(|c| c.is_open);
        if matches!(task.command, Command::Write { .. }) {
            self.snared(self.network_of(task.conn), CutPoint::Answering);
        }
        if is_open && !task.is_mute {
            let answer = Reply::Answer {
                tag: task.tag,
                result,
            };
            self.reply(task.conn, answer, now, world);
        }
        self.settle(now, Some(world));
        self.forget(task.conn);
    }

    pub(crate) fn power_cut(
        &mut self,
        now: Instant,
        down: Duration,
        is_silent: bool,
        world: &World,
    ) {
        for (_, task) in std::mem::take(&mut self.tasks) {
            self.unit.apply(&task.command, || world.draw(2) == 0);
        }
        self.unit.lose_cache(|| world.draw(2) == 0);
        self.resets.clear();
        self.logins.clear();
        self.is_hung = false;
        self.down_until = now + down;
        let ids: Vec<u64> = self.conns.keys().copied().collect();
        for id in ids {
            self.close_target_side(id);
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.to_client.clear();
            }
            if !is_silent {
                self.reply(id, Reply::Rst, now, world);
            } else {
                self.reply(id, Reply::Rst, self.down_until, world);
            }
        }
    }
}
