//! A simulated storage node behind [`PathPort`]: networks that are cut, targets with the habits
//! of tgt, LIO and istgt, a back end that hangs, a cache that is lost.
//!
//! Everything runs on one [`Rt`] and is drawn from its seed. What is modelled, and why:
//! - A connection is two ordered queues. A silent cut is a queue that does not move; an abortive
//!   close keeps any prefix of what was sent (it had left), drops the rest, and its RST may be
//!   lost. So each of a write's five cut points occurs: before it is sent, half of its data, all
//!   of it, in the back end, answer under way.
//! - tgt: reinstates only logins through SecurityNegotiation; that ends the old session's input
//!   at once and waits for nothing; LOGICAL UNIT RESET is answered when everything in the back
//!   end is done, and not while a session does not drain its read data; of two resets only the
//!   later is answered.
//! - LIO: a reinstating login waits for the old session's commands, but not if that session was
//!   closing already; a reset skips commands of closed connections; an ORDERED command waits for
//!   all.
//! - istgt: nothing waits for the back end.
//! - A standard target: login and reset wait for what they end, and end it without an answer.
//! - Unit: a volatile cache over a medium; a power cut keeps any subset of the cached sectors and
//!   of those being written (torn per 512 bytes).

mod client;
mod target;
mod unit;

use crate::sim::target::{Conn, Network, Target};
use blockdev::path::{Isid, PathName, PathPort};
use blockdev::rt::Timed;
use blockdev::{Geometry, Instant, Pool, Rt, Sector};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Whose habits the target has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Flavour {
    /// tgt 1.0.85.
    #[default]
    Tgt,
    /// LIO.
    Lio,
    /// istgt.
    Istgt,
    /// As SAM-5 says.
    Standard,
}

/// A storage node.
#[derive(Clone, Debug)]
pub struct SanOptions {
    /// Name in portals, WWID and serial.
    pub name: String,
    /// Habits.
    pub flavour: Flavour,
    /// Portals, each on a network of its own: their portal group tags.
    pub portal_groups: Vec<u16>,
    /// The unit's shape.
    pub geometry: Geometry,
    /// One way over a network: this, plus up to as much jitter.
    pub delay: Duration,
    /// Further delay of each message, up to this.
    pub jitter: Duration,
    /// Messages lost of a million; TCP sends them again after 200 ms, then after twice that.
    pub loss_per_million: u32,
    /// Commands of a million that take this much longer in the back end.
    pub stragglers: Option<(u32, Duration)>,
    /// A command in the back end: this, plus up to as much.
    pub service: Duration,
    /// Data of writes go only when the target asks for them (R2T), which it does within this.
    pub asks_within: Option<Duration>,
    /// The initiator's name.
    pub initiator_name: String,
}

impl Default for SanOptions {
    fn default() -> Self {
        SanOptions {
            name: "sto1".into(),
            flavour: Flavour::Tgt,
            portal_groups: vec![1, 1],
            geometry: Geometry::plain(1 << 16),
            delay: Duration::from_micros(50),
            jitter: Duration::ZERO,
            loss_per_million: 0,
            stragglers: None,
            service: Duration::from_micros(200),
            asks_within: None,
            initiator_name: "iqn.2024-12.tp2.b3:initiator".into(),
        }
    }
}

/// How a network fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It works.
    Up,
    /// Nothing passes and nobody is told.
    Silent,
    /// Connections are reset, new ones refused.
    Loud,
    /// Small messages pass, payload of more than 4 KiB does not.
    SmallOnly,
}

/// Where on its way a write meets a silent cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutPoint {
    /// In our own socket; nothing has left.
    BeforeSent,
    /// The target has the command and waits for the rest of its data.
    HalfOfData,
    /// All of it lies in the target's socket, to be read later.
    AllData,
    /// It is in the back end, and stays there.
    Executing,
    /// It is done; its answer is under way.
    Answering,
}

impl CutPoint {
    /// All of them, in the order of the way.
    pub const ALL: [CutPoint; 5] = [
        CutPoint::BeforeSent,
        CutPoint::HalfOfData,
        CutPoint::AllData,
        CutPoint::Executing,
        CutPoint::Answering,
    ];
}

/// A SCSI status, and sense key, ASC and ASCQ with it.
pub type Verdict = (u8, Option<(u8, u8, u8)>);

/// One storage node with its networks. Cloning shares it.
#[derive(Clone)]
pub struct San {
    world: Rc<World>,
}

pub(crate) struct World {
    pub(crate) rt: Rt,
    pub(crate) pool: Pool,
    pub(crate) options: SanOptions,
    pub(crate) me: Weak<World>,
    pub(crate) target: RefCell<Target>,
    armed: Cell<Instant>,
}

impl Timed for World {
    fn fire(&self, _token: u64, due: Instant) {
        if due != self.armed.get() {
            // An earlier timer has taken its place; without this look, timers would only multiply.
            return;
        }
        self.armed.set(Instant::FAR);
        self.run();
    }
}

impl World {
    /// Runs what is due, tells the clients, and arms the timer for what comes next.
    pub(crate) fn run(&self) {
        loop {
            let now = self.rt.now();
            let is_done = {
                let mut target = self.target.borrow_mut();
                !target.step(now, self)
            };
            self.deliver();
            if is_done {
                break;
            }
        }
        self.arm();
    }

    /// Hands results to clients; no borrow is held while they are told.
    pub(crate) fn deliver(&self) {
        loop {
            let news = self.target.borrow_mut().take_news();
            if news.is_empty() {
                return;
            }
            for told in news {
                told.deliver();
            }
        }
    }

    pub(crate) fn arm(&self) {
        let Some(next) = self.target.borrow().next_due() else {
            return;
        };
        // After a stall it may be overdue; a timer of the past is told as one of now.
        let next = next.max(self.rt.now());
        if next < self.armed.get() {
            self.armed.set(next);
            let owner: Weak<dyn Timed> = self.me.clone();
            self.rt.arm(next, owner, 0);
        }
    }

    /// A number below `n`.
    pub(crate) fn draw(&self, n: u64) -> u64 {
        self.rt.random() % n.max(1)
    }

    /// How long a message takes over the networks when they are up.
    pub(crate) fn way(&self) -> Duration {
        let options = &self.options;
        let mut way = self.vary(options.delay);
        if !options.jitter.is_zero() {
            way += Duration::from_nanos(self.draw(options.jitter.as_nanos() as u64));
        }
        let mut wait = target::RETRANSMIT;
        while options.loss_per_million > 0
            && self.draw(1_000_000) < u64::from(options.loss_per_million)
        {
            way += wait;
            wait *= 2;
        }
        way
    }

    /// How long a command takes in the back end.
    pub(crate) fn service(&self, base: Duration) -> Duration {
        let time = self.vary(base);
        match self.options.stragglers {
            Some((odds, more)) if self.draw(1_000_000) < u64::from(odds) => time + more,
            _ => time,
        }
    }

    /// `base`, plus up to as much.
    pub(crate) fn vary(&self, base: Duration) -> Duration {
        base + Duration::from_nanos(self.draw(base.as_nanos() as u64 + 1))
    }
}

impl San {
    /// A node with all its networks up and a unit full of zeros.
    pub fn new(rt: Rt, pool: Pool, options: SanOptions) -> San {
        let networks = options.portal_groups.iter().map(|_| Network::default());
        let target = Target::new(networks.collect(), options.geometry.write_cache);
        San {
            world: Rc::new_cyclic(|me| World {
                rt,
                pool,
                me: me.clone(),
                target: RefCell::new(target),
                armed: Cell::new(Instant::FAR),
                options,
            }),
        }
    }

    /// The path through portal `index`, with its derived ISID.
    pub fn port(&self, index: usize) -> Rc<dyn PathPort> {
        self.port_with(index, isid_of(index))
    }

    /// The path through portal `index` under another ISID.
    pub fn port_with(&self, index: usize, isid: Isid) -> Rc<dyn PathPort> {
        Rc::new(client::SimPort::new(self.world.clone(), index, isid))
    }

    /// The path of another node, `initiator_name`, through portal `index`, with an ISID of its own.
    pub fn port_of(&self, initiator_name: &str, index: usize) -> Rc<dyn PathPort> {
        let port = client::SimPort::new(self.world.clone(), index, isid_of(index));
        Rc::new(port.of(initiator_name))
    }

    /// The portal group tag of portal `index`.
    pub fn portal_group(&self, index: usize) -> u16 {
        self.world.options.portal_groups[index]
    }

    /// Name of the path through portal `index`.
    pub fn path_name(&self, index: usize) -> PathName {
        client::path_name(&self.world.options, index)
    }

    /// Changes a network.
    pub fn set_link(&self, index: usize, link: Link) {
        let now = self.world.rt.now();
        self.world
            .target
            .borrow_mut()
            .set_link(index, link, now, &self.world);
        self.world.deliver();
        self.world.arm();
    }

    /// Adds to the one-way delay of a network.
    pub fn set_delay(&self, index: usize, extra: Duration) {
        self.world.target.borrow_mut().networks[index].extra = extra;
    }

    /// The target asks the sessions of a portal for a logout within this time (async event 1 of
    /// RFC 7143 §11.9.1). The message is read at once.
    pub fn ask_logout(&self, index: usize, within: Duration) {
        let mut target = self.world.target.borrow_mut();
        let told: Vec<_> = target
            .conns
            .values_mut()
            .filter(|conn| conn.network == index)
            .flat_map(|conn| conn.client.asked_to_leave(within))
            .collect();
        told.into_iter().for_each(|told| target.tell(told));
        drop(target);
        self.world.deliver();
    }

    /// Stops or restarts the back end; sessions still answer.
    pub fn set_hung(&self, is_hung: bool) {
        let now = self.world.rt.now();
        self.world
            .target
            .borrow_mut()
            .set_hung(is_hung, now, &self.world);
        self.world.run();
    }

    /// Changes what a command takes in the back end from now on.
    pub fn set_service(&self, service: Duration) {
        self.world.target.borrow_mut().service = Some(service);
    }

    /// The next write meets a silent cut of the network it comes by. Where the target has it
    /// already, it goes on with it after `late`.
    pub fn cut_write(&self, at: CutPoint, late: Duration) {
        let mut target = self.world.target.borrow_mut();
        target.snare = Some(target::Snare { at, late });
        target.snared_network = None;
    }

    /// The network that [`San::cut_write`] has cut; `None` while it waits for its write.
    pub fn cut_network(&self) -> Option<usize> {
        self.world.target.borrow().snared_network
    }

    /// Barriers (LOGICAL UNIT RESET, ORDERED commands) are refused from now on, or no more.
    pub fn refuse_barriers(&self, refuses: bool) {
        self.world.target.borrow_mut().refuses_barriers = refuses;
    }

    /// The node loses power: connections and a part of the cache are gone; it is back after
    /// `down`. `is_silent`: nobody hears a reset before that.
    pub fn power_cut(&self, down: Duration, is_silent: bool) {
        let now = self.world.rt.now();
        self.world
            .target
            .borrow_mut()
            .power_cut(now, down, is_silent, &self.world);
        self.world.deliver();
        self.world.arm();
    }

    /// The next command on every session is answered with this CHECK CONDITION, once.
    pub fn inject_sense(&self, key: u8, asc: u8, ascq: u8) {
        self.world
            .target
            .borrow_mut()
            .inject(2, Some((key, asc, ascq)));
    }

    /// The next command on every session is answered with this status, once.
    pub fn inject_status(&self, status: u8) {
        self.world.target.borrow_mut().inject(status, None);
    }

    /// The first command of every session from now on is answered with this status and sense.
    pub fn greet(&self, status: u8, sense: Option<(u8, u8, u8)>) {
        self.world.target.borrow_mut().greeting = Some((status, sense));
    }

    /// Every command is answered with this status and sense, until that is taken back.
    pub fn answer_all(&self, answer: Option<Verdict>) {
        self.world.target.borrow_mut().always = answer;
    }

    /// Makes sectors unreadable until they are written.
    pub fn spoil(&self, at: Sector) {
        self.world.target.borrow_mut().unit.spoil(at);
    }

    /// The unit now says another WWID (or none) when it is identified.
    pub fn set_wwid(&self, wwid: Option<&str>) {
        self.world.target.borrow_mut().wwid = Some(wwid.map(str::to_string));
    }

    /// FUA is refused from now on although the unit says it can.
    pub fn refuse_fua(&self) {
        self.world.target.borrow_mut().refuses_fua = true;
    }

    /// The unit has ALUA from now on: access state code of each portal, which is a target port group
    /// of its own, number index + 1; with bit 7 the group is preferred.
    pub fn set_access(&self, codes: &[u8]) {
        self.world.target.borrow_mut().access = codes.to_vec();
    }

    /// The unit's size from now on.
    pub fn resize(&self, sectors: u64) {
        self.world.target.borrow_mut().sectors = Some(sectors);
    }

    /// What a read of 512 bytes at `at` would yield now.
    pub fn peek(&self, at: Sector) -> [u8; 512] {
        self.world.target.borrow().unit.peek(at)
    }

    /// What would be left of it after a loss of the whole cache.
    pub fn peek_media(&self, at: Sector) -> [u8; 512] {
        self.world.target.borrow().unit.peek_media(at)
    }

    /// Commands in the back end now.
    pub fn backlog(&self) -> usize {
        self.world.target.borrow().backlog()
    }

    /// Sessions the target believes to be alive.
    pub fn sessions(&self) -> usize {
        self.world.target.borrow().sessions()
    }

    /// After `VirtualRt::kill`, which drops timers: the node was not killed.
    pub fn survive_kill(&self) {
        self.world.armed.set(Instant::FAR);
        self.world.run();
    }
}

/// The ISID that the path through portal `index` derives.
fn isid_of(index: usize) -> Isid {
    let [.., high, low] = (index as u64 + 1).to_be_bytes();
    Isid([0x80, 0, 0, 0, high, low])
}

pub(crate) type ConnId = u64;

pub(crate) fn conn_of(target: &mut Target, id: ConnId) -> Option<&mut Conn> {
    target.conns.get_mut(&id)
}
