//! A network of bytes in memory: connections with delays, windows, resets and silence.
//!
//! Each connection is two queues of segments. A segment arrives after its portal's delay, in order.
//! What a fault means for the bytes under way is the part that makes ghosts:
//!
//! - [`Cut::Silent`]: nothing moves and nobody is told. When the cut is healed, what had left its
//!   host is delivered (TCP sends it again), also on a connection that was given up meanwhile.
//! - [`Cut::Loud`]: every connection is reset, new ones are refused.
//! - A link that is dropped (SIGKILL, or an abortive close) sends a reset: of what was not yet
//!   delivered, any prefix may have left already; the rest never does. Under a silent cut the reset
//!   is lost.
//! - [`SimNet::vanish`]: the host loses power. As dropped, but no reset is ever sent.

use blockdev::rt::Timed;
use blockdev::sim::{Chance, Latency};
use blockdev::{Instant, LocalFuture, Rt};
use iscsi_initiator::name::Portal;
use iscsi_initiator::net::{Link, Net};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Bytes under way in one direction before a writer has to wait: socket buffers and the network.
const WINDOW_BYTES: usize = 256 << 10;
/// A lost SYN is sent again after this.
const SYN_RETRY: Duration = Duration::from_secs(1);
/// Longest time until TCP sends again what a cut held up.
const RETRANSMIT_MAX: Duration = Duration::from_millis(800);

/// What is wrong with the way to a portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    None,
    /// Packets vanish.
    Silent,
    /// Resets and refusals.
    Loud,
}

/// Takes connections of a portal.
pub trait Listener {
    /// A new connection.
    fn accept(&self, link: ServerLink);
}

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct SimNet {
    inner: Rc<Inner>,
}

struct Inner {
    rt: Rt,
    chance: Chance,
    portals: RefCell<BTreeMap<Portal, Way>>,
    connections: RefCell<Vec<Weak<Connection>>>,
    client_is_gone: Cell<bool>,
}

struct Way {
    cut: Cut,
    delay: Latency,
    /// `None`: nothing listens (the host answers with a reset), unless it is dark.
    listener: Option<Weak<dyn Listener>>,
    /// The host behind it has no power: silence.
    is_dark: bool,
}

impl SimNet {
    /// A network without portals.
    pub fn new(rt: Rt, seed: u64) -> SimNet {
        let inner = Inner {
            rt,
            chance: Chance::new(seed),
            portals: RefCell::default(),
            connections: RefCell::default(),
            client_is_gone: Cell::new(false),
        };
        SimNet {
            inner: Rc::new(inner),
        }
    }

    /// Puts a portal on the network.
    pub fn listen(&self, portal: Portal, delay: Latency, listener: Weak<dyn Listener>) {
        let way = Way {
            cut: Cut::None,
            delay,
            listener: Some(listener),
            is_dark: false,
        };
        self.inner.portals.borrow_mut().insert(portal, way);
    }

    /// Cuts or heals the way to a portal.
    pub fn cut(&self, portal: Portal, cut: Cut) {
        self.change(portal, |way| way.cut = cut);
        if cut == Cut::Loud {
            for connection in self.inner.to(portal) {
                connection.reset_both();
            }
        }
    }

    /// Changes the delay to a portal.
    pub fn delay(&self, portal: Portal, delay: Latency) {
        self.change(portal, |way| way.delay = delay);
    }

    /// The host of a portal loses power, or gets it back (then nothing knows old connections any
    /// more, and they are reset).
    pub fn dark(&self, portal: Portal, is_dark: bool) {
        self.change(portal, |way| way.is_dark = is_dark);
        for connection in self.inner.to(portal) {
            if !is_dark {
                connection.reset_both();
            }
        }
    }

    /// The clients' host loses power when this is `true`: links dropped from now on send no reset.
    pub fn vanish(&self, is_gone: bool) {
        self.inner.client_is_gone.set(is_gone);
    }

    fn change(&self, portal: Portal, change: impl FnOnce(&mut Way)) {
        let mut portals = self.inner.portals.borrow_mut();
        let way = portals.get_mut(&portal).expect("a portal of this network");
        change(way);
        let moves = way.cut != Cut::Silent && !way.is_dark;
        drop(portals);
        for connection in self.inner.to(portal) {
            connection.freeze(!moves);
        }
    }
}

impl Inner {
    fn to(&self, portal: Portal) -> Vec<Rc<Connection>> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|c| c.strong_count() > 0);
        connections
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|c| c.portal == portal)
            .collect()
    }

    /// What a SYN meets: a connection, a refusal, or silence.
    fn try_connect(self: &Rc<Self>, portal: Portal) -> Option<io::Result<Box<dyn Link>>> {
        let listener = {
            let portals = self.portals.borrow();
            match portals.get(&portal) {
                Some(way) if way.cut == Cut::Silent || way.is_dark => return None,
                Some(way) if way.cut == Cut::None => way.listener.as_ref().and_then(Weak::upgrade),
                _ => None,
            }
        };
        let Some(listener) = listener else {
            return Some(Err(io::ErrorKind::ConnectionRefused.into()));
        };
        let connection = Rc::new_cyclic(|itself| Connection {
            net: self.clone(),
            portal,
            up: Pipe::default(),
            down: Pipe::default(),
            is_frozen: Cell::new(false),
            client_is_gone: Cell::new(false),
            itself: itself.clone(),
        });
        self.connections
            .borrow_mut()
            .push(Rc::downgrade(&connection));
        listener.accept(ServerLink {
            connection: connection.clone(),
        });
        Some(Ok(Box::new(ClientLink { connection })))
    }
}

impl Net for SimNet {
    fn connect(&self, to: Portal, _from: Option<IpAddr>) -> LocalFuture<io::Result<Box<dyn Link>>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            loop {
                let delay = inner.portals.borrow().get(&to).map(|way| way.delay);
                let delay = delay.unwrap_or_default().draw(&inner.chance);
                inner.rt.sleep(delay).await;
                if let Some(result) = inner.try_connect(to) {
                    return result;
                }
                inner.rt.sleep(SYN_RETRY).await;
            }
        })
    }
}

/// One connection.
struct Connection {
    net: Rc<Inner>,
    portal: Portal,
    /// From the client to the server.
    up: Pipe,
    down: Pipe,
    is_frozen: Cell<bool>,
    client_is_gone: Cell<bool>,
    itself: Weak<Connection>,
}

#[derive(Default)]
struct Pipe {
    state: RefCell<PipeState>,
}

#[derive(Default)]
struct PipeState {
    segments: VecDeque<Segment>,
    bytes: usize,
    /// After the last segment the reader sees this.
    end: Option<End>,
    /// When the last segment arrives: later ones do not overtake it.
    last: Instant,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct Segment {
    arrives: Instant,
    bytes: Vec<u8>,
    taken: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

impl PipeState {
    fn wake(&mut self) {
        let wakers = [self.reader.take(), self.writer.take()];
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Keeps the first `keep` bytes of what is under way.
    fn truncate(&mut self, mut keep: usize) {
        for segment in &mut self.segments {
            let left = segment.bytes.len() - segment.taken;
            let here = left.min(keep);
            segment.bytes.truncate(segment.taken + here);
            keep -= here;
        }
        self.segments.retain(|s| s.taken < s.bytes.len());
        self.bytes = self.segments.iter().map(|s| s.bytes.len() - s.taken).sum();
    }
}

/// Tokens of a connection's timers.
const UP: u64 = 0;
const DOWN: u64 = 1;

impl Timed for Connection {
    fn fire(&self, token: u64, _due: Instant) {
        let pipe = if token == UP { &self.up } else { &self.down };
        let reader = pipe.state.borrow_mut().reader.take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Connection {
    fn freeze(&self, is_frozen: bool) {
        if self.is_frozen.replace(is_frozen) == is_frozen || is_frozen {
            return;
        }
        // Healed: TCP sends again what was held up, after its back-off.
        for pipe in [&self.up, &self.down] {
            let again = self.net.rt.now()
                + Latency::between(Duration::ZERO, RETRANSMIT_MAX).draw(&self.net.chance);
            let mut state = pipe.state.borrow_mut();
            for segment in &mut state.segments {
                segment.arrives = segment.arrives.max(again);
            }
            state.last = state.last.max(again);
            state.wake();
        }
        if self.client_is_gone.get() {
            // What is sent again meets a host that does not know the connection.
            let mut up = self.up.state.borrow_mut();
            up.end.get_or_insert(End::Reset);
            up.wake();
        }
    }

    fn reset_both(&self) {
        for pipe in [&self.up, &self.down] {
            let mut state = pipe.state.borrow_mut();
            state.truncate(0);
            state.end = Some(End::Reset);
            state.wake();
        }
    }

    fn read(
        &self,
        which: u64,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let pipe = if which == UP { &self.up } else { &self.down };
        let mut state = pipe.state.borrow_mut();
        let now = self.net.rt.now();
        let mut done = 0;
        if !self.is_frozen.get() {
            for buf in bufs.iter_mut() {
                let mut at = 0;
                while at < buf.len() {
                    let Some(segment) = state.segments.front_mut().filter(|s| s.arrives <= now)
                    else {
                        break;
                    };
                    let rest = &segment.bytes[segment.taken..];
                    let take = rest.len().min(buf.len() - at);
                    buf[at..at + take].copy_from_slice(&rest[..take]);
                    segment.taken += take;
                    at += take;
                    if segment.taken == segment.bytes.len() {
                        state.segments.pop_front();
                    }
                }
                done += at;
            }
        }
        if done > 0 {
            state.bytes -= done;
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(done));
        }
        match (state.segments.front(), state.end) {
            (None, Some(End::Closed)) if !self.is_frozen.get() => return Poll::Ready(Ok(0)),
            (None, Some(End::Reset)) => {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            (Some(segment), _) if !self.is_frozen.get() => {
                let owner: Weak<dyn Timed> = self.itself.clone();
                self.net.rt.arm(segment.arrives, owner, which);
            }
            _ => {}
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes as many bytes as the window has room for; 0: none.
    fn push(&self, which: u64, bufs: &[IoSlice<'_>], window: usize) -> usize {
        let pipe = if which == UP { &self.up } else { &self.down };
        let mut state = pipe.state.borrow_mut();
        let room = window.saturating_sub(state.bytes);
        let bytes: Vec<u8> = bufs
            .iter()
            .flat_map(|b| b.iter().copied())
            .take(room)
            .collect();
        if bytes.is_empty() {
            return 0;
        }
        let delay = self
            .net
            .portals
            .borrow()
            .get(&self.portal)
            .map(|way| way.delay);
        let delay = delay.unwrap_or_default().draw(&self.net.chance);
        let arrives = (self.net.rt.now() + delay).max(state.last);
        state.last = arrives;
        let len = bytes.len();
        state.bytes += len;
        state.segments.push_back(Segment {
            arrives,
            bytes,
            taken: 0,
        });
        if !self.is_frozen.get() && state.reader.is_some() {
            let owner: Weak<dyn Timed> = self.itself.clone();
            self.net.rt.arm(arrives, owner, which);
        }
        len
    }

    fn is_reset(&self, which: u64) -> bool {
        let pipe = if which == UP { &self.up } else { &self.down };
        pipe.state.borrow().end == Some(End::Reset)
    }
}

struct ClientLink {
    connection: Rc<Connection>,
}

impl Link for ClientLink {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.connection.read(DOWN, cx, bufs)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.connection.is_reset(DOWN) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        match self.connection.push(UP, bufs, WINDOW_BYTES) {
            0 => {
                self.connection.up.state.borrow_mut().writer = Some(cx.waker().clone());
                Poll::Pending
            }
            taken => Poll::Ready(Ok(taken)),
        }
    }
}

impl Drop for ClientLink {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.client_is_gone.set(true);
        let mut up = connection.up.state.borrow_mut();
        if up.end.is_some() {
            return;
        }
        // Often all of it had left; else it may be cut anywhere.
        let chance = &connection.net.chance;
        let left = match chance.coin() {
            true => up.bytes,
            false => chance.below(up.bytes as u64 + 1) as usize,
        };
        up.truncate(left);
        let is_silent = connection.is_frozen.get() || connection.net.client_is_gone.get();
        if !is_silent {
            up.end = Some(End::Reset);
        }
        up.wake();
    }
}

/// The target's end of a connection. Cloning shares it.
#[derive(Clone)]
pub struct ServerLink {
    connection: Rc<Connection>,
}

impl ServerLink {
    /// The portal it came by.
    pub fn portal(&self) -> Portal {
        self.connection.portal
    }

    /// Reads exactly as many bytes; `false`: the connection ended first.
    pub async fn read(&self, to: &mut [u8]) -> bool {
        let mut done = 0;
        while done < to.len() {
            let got = std::future::poll_fn(|cx| {
                let mut bufs = [IoSliceMut::new(&mut to[done..])];
                self.connection.read(UP, cx, &mut bufs)
            });
            match got.await {
                Ok(0) | Err(_) => return false,
                Ok(bytes) => done += bytes,
            }
        }
        true
    }

    /// Sends bytes; a target's socket buffer has no limit here.
    pub fn write(&self, bytes: &[u8]) {
        let connection = &self.connection;
        if connection.client_is_gone.get() || connection.down.state.borrow().end.is_some() {
            if !connection.is_frozen.get() && !connection.net.client_is_gone.get() {
                // The answer of a host that does not know the connection.
                let mut up = connection.up.state.borrow_mut();
                up.end.get_or_insert(End::Reset);
                up.wake();
            }
            return;
        }
        connection.push(DOWN, &[IoSlice::new(bytes)], usize::MAX);
    }

    /// The process that had it was killed: both ends are reset.
    pub fn reset(&self) {
        self.connection.reset_both();
    }

    /// Closes: what was written is delivered, what comes is thrown away.
    pub fn close(&self) {
        let mut down = self.connection.down.state.borrow_mut();
        down.end.get_or_insert(End::Closed);
        down.wake();
        drop(down);
        let mut up = self.connection.up.state.borrow_mut();
        up.truncate(0);
        up.end = Some(End::Reset);
        up.wake();
    }
}
