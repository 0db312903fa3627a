//! The master link with tokio sockets, on the control thread's current-thread runtime.
//!
//! Knows sockets, names and time; what to say is [`super::link`]'s and where to connect
//! [`super::finder`]'s affair. It never waits for storage: orders go out and news come in through
//! bounded channels, and while an order finds no room the socket is simply not read.
//!
//! Sockets: TCP_NODELAY; TCP_USER_TIMEOUT 3000 ms, so that a silent loss is noticed when our own
//! NOPs stay unacknowledged, while a master that merely computes is not taken for dead; a lost
//! socket is closed with SO_LINGER 0, so that the master's next packet draws RST once the network
//! is back and it forgets the half-open entry that would block our return.

use super::channel::{Facts, LinkEnds, News, Order};
use super::finder::{Ending, Finder, CONNECT_TIMEOUT};
use super::link::{Event, Link, LinkConfig};
use super::state::{Identity, NodeState};
use super::status::{MasterEvent, MasterState, MasterStatus};
use blockdev::Instant;
use chunk_api::Report;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

const USER_TIMEOUT: Duration = Duration::from_secs(3);
/// Names are resolved again this often while no master is found.
const RESOLVE_EVERY: Duration = Duration::from_secs(1);
/// Time a graceful leave may take to be written.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
const RECEIVE_BYTES: usize = 64 << 10;
/// Reports kept while there is no master; past them the channel fills and storage keeps them.
const REPORTS_KEPT_MAX: usize = 100_000;

/// How to find and address masters.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Names or addresses, each with its port.
    pub masters: Vec<(String, u16)>,
    /// Source address towards the master (`BIND_HOST`).
    pub bind: Option<IpAddr>,
    /// What the link says.
    pub link: LinkConfig,
}

enum Control {
    Reconfigure(Box<MasterConfig>),
    Leave(oneshot::Sender<()>),
}

/// The running link as other threads see it. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Handle {
    control: mpsc::Sender<Control>,
    status: watch::Receiver<MasterStatus>,
}

impl Handle {
    /// The status now. Never waits.
    pub fn status(&self) -> MasterStatus {
        self.status.borrow().clone()
    }

    /// A receiver that notices each change of status.
    pub fn watch(&self) -> watch::Receiver<MasterStatus> {
        self.status.clone()
    }

    /// Another configuration. Labels are told to the master at once; the link in use stays until it is lost, so
    /// that masters, source address, password and timeout are those of the next one.
    pub async fn reconfigure(&self, config: MasterConfig) {
        let config = Box::new(config);
        // A driver that has ended has nobody to tell.
        let _ = self.control.send(Control::Reconfigure(config)).await;
    }

    /// A graceful leave: the master puts us into maintenance instead of replicating. Returns when
    /// it is written, there was no master, or after a second; the driver has ended then.
    pub async fn leave(&self) {
        let (done, wait) = oneshot::channel();
        if self.control.send(Control::Leave(done)).await.is_ok() {
            let _ = tokio::time::timeout(LEAVE_TIMEOUT, wait).await;
        }
    }
}

/// See the module.
pub struct Driver {
    config: MasterConfig,
    ends: LinkEnds,
    control: mpsc::Receiver<Control>,
    status: watch::Sender<MasterStatus>,
    state: Box<dyn NodeState>,
    tell: Box<dyn FnMut(MasterEvent) + Send>,
    identity: Identity,
    epoch: u64,
    finder: Finder,
    clock: Clock,
    resolver: Resolver,
    reports: VecDeque<Report>,
    refused_told: bool,
}

/// Why a wait of the driver ended.
enum Next {
    Master(SocketAddr, TcpStream),
    Leave(oneshot::Sender<()>),
}

impl Driver {
    /// A driver that is not yet running. `tell` gets events, on the driver's thread.
    ///
    /// Fails if the node's identity cannot be read: registering with another one would make the
    /// master see a new server.
    pub fn new(
        config: MasterConfig,
        ends: LinkEnds,
        mut state: Box<dyn NodeState>,
        tell: Box<dyn FnMut(MasterEvent) + Send>,
    ) -> io::Result<(Driver, Handle)> {
        let identity = state.load()?;
        let Identity { csid, metaid } = identity;
        let (status, watch) = watch::channel(MasterStatus {
            csid,
            metaid,
            ..Default::default()
        });
        let (control_in, control) = mpsc::channel(16);
        let clock = Clock::default();
        let driver = Driver {
            finder: Finder::new(clock.now()),
            resolver: Resolver::new(&config.masters),
            config,
            ends,
            control,
            status,
            state,
            tell,
            identity,
            epoch: 0,
            clock,
            reports: VecDeque::new(),
            refused_told: false,
        };
        Ok((
            driver,
            Handle {
                control: control_in,
                status: watch,
            },
        ))
    }

    /// Runs until [`Handle::leave`] or until storage is gone.
    pub async fn run(mut self) {
        // BEGIN tells our space, so storage comes first.
        if self.ends.facts.wait_for(Option::is_some).await.is_err() {
            return;
        }
        loop {
            let (address, stream) = match self.find().await {
                Some(Next::Master(address, stream)) => (address, stream),
                Some(Next::Leave(done)) => {
                    let _ = done.send(());
                    return;
                }
                None => return,
            };
            self.set_status(|s| s.address = Some(address));
            let conversation = Conversation::new(&mut self, address, stream);
            let Some((ending, why)) = conversation.run().await else {
                return;
            };
            let random = self.clock.random();
            self.finder.handle_ended(self.clock.now(), ending, random);
            self.note_ending(address, ending, why);
        }
    }

    fn note_ending(&mut self, address: SocketAddr, ending: Ending, why: String) {
        let refused = ending == Ending::OtherFileSystem;
        match ending {
            Ending::Lost => {
                (self.tell)(MasterEvent::Lost {
                    address,
                    text: why.clone(),
                });
            }
            Ending::OtherFileSystem if !self.refused_told => {
                self.refused_told = true;
                (self.tell)(MasterEvent::Refused {
                    address,
                    text: why.clone(),
                });
            }
            _ => tracing::debug!(%address, why, "no registration"),
        }
        self.set_status(|s| {
            s.state = if refused {
                MasterState::Refused
            } else {
                MasterState::Connecting
            };
            s.last_error = Some(why);
        });
    }

    fn set_status(&self, change: impl FnOnce(&mut MasterStatus)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    /// Connects to a master; `None` when the node is going away.
    async fn find(&mut self) -> Option<Next> {
        let mut tries: JoinSet<(SocketAddr, io::Result<TcpStream>)> = JoinSet::new();
        loop {
            let now = self.clock.now();
            self.resolver.start_if_due(now);
            self.finder.set_addresses(&self.resolver.addresses());
            while let Some(address) = self.finder.poll_connect(now) {
                tries.spawn(connect(address, self.config.bind));
            }
            let wake = self.finder.poll_timeout().min(self.resolver.next);
            tokio::select! { biased;
                Some(done) = tries.join_next(), if !tries.is_empty() => {
                    let Ok((address, result)) = done else { continue };
                    match result {
                        Ok(stream) => {
                            self.finder.handle_connected(address);
                            return Some(Next::Master(address, stream));
                        }
                        Err(e) => {
                            let random = self.clock.random();
                            self.finder.handle_failed(self.clock.now(), address, random);
                            self.set_status(|s| {
                                if s.state != MasterState::Refused {
                                    s.last_error = Some(format!("{address}: {e}"));
                                }
                            });
                        }
                    }
                }
                () = self.resolver.resolved() => {
                    if let Some(e) = self.resolver.error.take() {
                        self.set_status(|s| s.last_error = Some(e));
                    }
                }
                news = self.ends.news.recv(), if self.reports.len() < REPORTS_KEPT_MAX => {
                    // Answers and lists of a connection that is gone have no reader.
                    if let News::Reports { reports, .. } = news? {
                        self.keep_reports(reports);
                    }
                }
                control = self.control.recv() => match control? {
                    Control::Reconfigure(config) => self.reconfigure(*config),
                    Control::Leave(done) => return Some(Next::Leave(done)),
                },
                () = self.clock.sleep_until(wake) => {}
            }
        }
    }

    fn reconfigure(&mut self, config: MasterConfig) {
        if self.config.masters != config.masters {
            self.resolver = Resolver::new(&config.masters);
        }
        self.config = config;
    }

    /// Between connections only damage is worth keeping: the next list tells the rest.
    fn keep_reports(&mut self, reports: impl IntoIterator<Item = Report>) {
        let damage = |r: &Report| matches!(r, Report::Damaged(_));
        self.reports.extend(reports.into_iter().filter(damage));
    }

    fn facts(&mut self) -> Facts {
        self.ends.facts.borrow_and_update().unwrap_or_default()
    }
}

/// What a conversation waited for.
enum Woken {
    Readable(io::Result<()>),
    Writable(io::Result<()>),
    Ordered,
    News(News),
    Facts,
    Control(Control),
    Timeout,
    StorageGone,
}

/// One connection to a master.
struct Conversation<'a> {
    driver: &'a mut Driver,
    address: SocketAddr,
    stream: TcpStream,
    link: Link,
    received: Vec<u8>,
    writing: Vec<u8>,
    written: usize,
    orders: VecDeque<Order>,
    leaving: Option<oneshot::Sender<()>>,
}

impl<'a> Conversation<'a> {
    fn new(driver: &'a mut Driver, address: SocketAddr, stream: TcpStream) -> Conversation<'a> {
        let now = driver.clock.now();
        driver.epoch += 1;
        let facts = driver.facts();
        let mut link = Link::new(now, driver.config.link.clone(), driver.identity, facts);
        link.handle_reports(driver.reports.drain(..));
        Conversation {
            driver,
            address,
            stream,
            link,
            received: Vec::with_capacity(RECEIVE_BYTES),
            writing: Vec::new(),
            written: 0,
            orders: VecDeque::new(),
            leaving: None,
        }
    }

    /// Talks until the end: how it ended, or `None` when the driver is to end too.
    async fn run(mut self) -> Option<(Ending, String)> {
        loop {
            while let Some(event) = self.link.poll_event() {
                if let Some(end) = self.handle_event(event) {
                    return self.close(end);
                }
            }
            if self.written == self.writing.len() {
                self.writing.clear();
                self.written = 0;
                let now = self.driver.clock.now();
                while let Some(frame) = self.link.poll_transmit(now) {
                    self.writing.extend_from_slice(&frame);
                }
            } else {
                self.link.handle_writing(self.driver.clock.now());
            }
            if self.writing.is_empty() {
                if let Some(done) = self.leaving.take() {
                    let _ = self.stream.shutdown().await;
                    let _ = done.send(());
                    return None;
                }
            }
            if !self.wait().await {
                return None;
            }
        }
    }

    /// Waits for one thing and hands it to the link; `false` when the node is going away.
    async fn wait(&mut self) -> bool {
        let wake = self.link.poll_timeout();
        let Driver {
            ends,
            clock,
            control,
            ..
        } = &mut *self.driver;
        let has_orders = !self.orders.is_empty();
        let woken = tokio::select! { biased;
            ready = self.stream.readable(), if !has_orders => Woken::Readable(ready),
            ready = self.stream.writable(), if self.written < self.writing.len() => {
                Woken::Writable(ready)
            }
            permit = ends.orders.reserve(), if has_orders => match permit {
                Ok(permit) => {
                    if let Some(order) = self.orders.pop_front() {
                        permit.send(order);
                    }
                    Woken::Ordered
                }
                Err(_) => Woken::StorageGone,
            },
            news = ends.news.recv() => news.map_or(Woken::StorageGone, Woken::News),
            changed = ends.facts.changed() => {
                changed.map_or(Woken::StorageGone, |()| Woken::Facts)
            }
            control = control.recv() => control.map_or(Woken::StorageGone, Woken::Control),
            () = clock.sleep_until(wake) => Woken::Timeout,
        };
        let now = self.driver.clock.now();
        match woken {
            Woken::Readable(ready) => self.read(ready),
            Woken::Writable(ready) => self.write(ready),
            Woken::Ordered => self.link.handle_paused(now),
            Woken::News(news) => self.handle_news(news),
            Woken::Facts => {
                let facts = self.driver.facts();
                self.link.handle_facts(facts);
            }
            Woken::Control(Control::Reconfigure(config)) => {
                self.link.reconfigure(config.link.clone());
                self.driver.reconfigure(*config);
            }
            Woken::Control(Control::Leave(done)) => {
                if !self.link.leave() {
                    self.link.handle_closed("stopping");
                }
                self.leaving = Some(done);
            }
            // The socket is not read while orders wait: its silence says nothing.
            Woken::Timeout if has_orders => {
                self.link.handle_paused(now);
                self.link.handle_timeout(now);
            }
            Woken::Timeout => self.link.handle_timeout(now),
            Woken::StorageGone => return false,
        }
        true
    }

    fn read(&mut self, ready: io::Result<()>) {
        let result = ready.and_then(|()| self.stream.try_read_buf(&mut self.received));
        match result {
            Ok(0) => {
                self.link.handle_closed("the master closed the connection");
                if self.leaving.is_some() {
                    self.writing.clear();
                    self.written = 0;
                }
            }
            Ok(_) => {
                let now = self.driver.clock.now();
                let taken = self.link.handle_bytes(now, &self.received);
                self.received.drain(..taken);
                self.received
                    .reserve(RECEIVE_BYTES.saturating_sub(self.received.len()));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => self.link.handle_closed(e.to_string()),
        }
    }

    fn write(&mut self, ready: io::Result<()>) {
        let rest = self.writing.get(self.written..).unwrap_or_default();
        match ready.and_then(|()| self.stream.try_write(rest)) {
            Ok(bytes) => self.written += bytes,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => self.link.handle_closed(e.to_string()),
        }
    }

    fn handle_news(&mut self, news: News) {
        let current = self.driver.epoch;
        match news {
            News::Inventory { epoch, chunks } if epoch == current => {
                self.link.handle_inventory(self.driver.clock.now(), chunks);
            }
            News::Answer { epoch, frame } if epoch == current => self.link.handle_answer(frame),
            News::Reports { epoch, reports } if epoch == current => {
                self.link.handle_reports(reports);
            }
            News::Reports { reports, .. } => {
                // Older than the list: what it says of versions may be outdated.
                let damage = |r: &Report| matches!(r, Report::Damaged(_));
                self.link.handle_reports(reports.into_iter().filter(damage));
            }
            News::RegisterAgain if self.link.registered() => {
                self.link
                    .handle_closed("reports were lost, registering again");
            }
            News::Inventory { .. } | News::Answer { .. } | News::RegisterAgain => {}
        }
    }

    fn handle_event(&mut self, event: Event) -> Option<(Ending, String)> {
        let epoch = self.driver.epoch;
        match event {
            Event::Waiting => self.driver.set_status(|s| s.state = MasterState::Waiting),
            Event::Accepted { version, metaid } => {
                self.driver.set_status(|s| s.version = Some(version));
                self.orders.push_back(Order::List { epoch, metaid });
            }
            Event::Identity(identity) => {
                self.driver.identity = identity;
                if let Err(e) = self.driver.state.store(identity) {
                    // The volumes hold the metaid too; only our server id may change by this.
                    tracing::error!(error = %e, "the node's identity could not be stored");
                }
                self.driver.set_status(|s| {
                    s.csid = identity.csid;
                    s.metaid = identity.metaid;
                });
            }
            Event::Registered => {
                let address = self.address;
                self.driver.refused_told = false;
                self.driver.set_status(|s| {
                    s.state = MasterState::Registered;
                    s.last_error = None;
                });
                let version = self.driver.status.borrow().version.unwrap_or_default();
                let Identity { csid, metaid } = self.driver.identity;
                let text = format!("master {version}, server id {csid}, metaid {metaid:016x}");
                (self.driver.tell)(MasterEvent::Connected { address, text });
            }
            Event::Command(command) => self.orders.push_back(Order::Command { epoch, command }),
            Event::Question(question) => self.orders.push_back(Order::Question { epoch, question }),
            Event::Ended(ending, why) => return Some((ending, why)),
        }
        None
    }

    /// Ends the connection for the reason given.
    fn close(self, end: (Ending, String)) -> Option<(Ending, String)> {
        let Conversation {
            driver,
            stream,
            link,
            leaving,
            ..
        } = self;
        if let Err(e) = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(error = %e, "SO_LINGER");
        }
        driver.keep_reports(link.into_unsent_reports());
        match leaving {
            Some(done) => {
                let _ = done.send(());
                None
            }
            None => Some(end),
        }
    }
}

async fn connect(to: SocketAddr, bind: Option<IpAddr>) -> (SocketAddr, io::Result<TcpStream>) {
    let connecting = async {
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        if let Some(from) = bind.filter(|from| from.is_ipv4() == to.is_ipv4()) {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        socket.set_nodelay(true)?;
        socket2::SockRef::from(&socket).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        socket.connect(to).await
    };
    let result = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "no answer within 1 s",
        )),
    };
    (to, result)
}

/// Monotonic time of this thread's runtime, and chance for spreading.
#[derive(Debug)]
struct Clock {
    base: tokio::time::Instant,
    random: u64,
}

impl Default for Clock {
    fn default() -> Clock {
        use std::hash::{BuildHasher, Hasher};
        let random = std::hash::RandomState::new().build_hasher().finish();
        Clock {
            base: tokio::time::Instant::now(),
            random,
        }
    }
}

impl Clock {
    fn now(&self) -> Instant {
        // Starts above zero: zero means "long ago" in the finder.
        Instant(1 + u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn random(&mut self) -> u64 {
        // Spreads retries; nothing more depends on it.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.random >> 33
    }

    async fn sleep_until(&self, at: Instant) {
        if at == Instant::FAR {
            std::future::pending::<()>().await;
        }
        // Rounded up, or it would spin for the part of a tick that the timer wheel drops.
        let wait = at.since(self.now());
        tokio::time::sleep(wait).await;
    }
}

/// Addresses of all names. A name that cannot be resolved keeps its last addresses.
#[derive(Debug)]
struct Resolver {
    names: Vec<(String, u16)>,
    known: Vec<Vec<SocketAddr>>,
    lookups: JoinSet<(usize, io::Result<Vec<SocketAddr>>)>,
    next: Instant,
    error: Option<String>,
}

impl Resolver {
    fn new(names: &[(String, u16)]) -> Resolver {
        let literal = |(name, port): &(String, u16)| match name.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, *port)],
            Err(_) => Vec::new(),
        };
        Resolver {
            known: names.iter().map(literal).collect(),
            names: names.to_vec(),
            lookups: JoinSet::new(),
            next: Instant(0),
            error: None,
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.known.iter().flatten().copied().collect()
    }

    /// Starts a round of lookups if one is due and the last is through (a resolver may hang).
    fn start_if_due(&mut self, now: Instant) {
        if now < self.next {
            return;
        }
        self.next = now + RESOLVE_EVERY;
        if !self.lookups.is_empty() {
            return;
        }
        let mut all_literal = true;
        for (index, (name, port)) in self.names.iter().enumerate() {
            if name.parse::<IpAddr>().is_ok() {
                continue;
            }
            all_literal = false;
            let (name, port) = (name.clone(), *port);
            self.lookups.spawn(async move {
                let found = tokio::net::lookup_host((name.as_str(), port)).await;
                let found = found.map(Iterator::collect);
                (
                    index,
                    found.map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}"))),
                )
            });
        }
        if all_literal {
            self.next = Instant::FAR;
        }
    }

    /// Ends when a lookup has ended.
    async fn resolved(&mut self) {
        match self.lookups.join_next().await {
            None => std::future::pending().await,
            Some(Ok((index, Ok(found)))) => {
                if let Some(known) = self.known.get_mut(index) {
                    *known = found;
                }
            }
            Some(Ok((_, Err(e)))) => self.error = Some(e.to_string()),
            Some(Err(e)) => self.error = Some(e.to_string()),
        }
    }
}
