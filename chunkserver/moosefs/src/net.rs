//! Sockets of the data port: the listener, outgoing connections, and a small runtime for tools.
//!
//! The only file of the data side that knows tokio's sockets. Runs on a current-thread runtime
//! inside a `LocalSet`.

use crate::serve::{Connector, Server};
use crate::wire::Transport;
use blockdev::rt::{Runtime, Timed, Wall};
use blockdev::{Instant, LocalFuture, Rt};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Unsent bytes the kernel may hold per connection before it stops saying "writable": enough to
/// keep the wire busy, little enough that answers do not queue behind each other.
const UNSENT_BYTES: u32 = 512 << 10;
/// Pause after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: u32 = 1024;

/// Opens the data port. Port 0 takes a free one.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    // A restarted server takes its port although old connections linger.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG as i32)?;
    TcpListener::from_std(socket.into())
}

/// Accepts connections for ever (drop the future to stop).
pub async fn accept(listener: TcpListener, server: Rc<Server>, rt: Rt) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tune(&stream);
                server.accept(stream, peer.to_string());
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                rt.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn tune(stream: &TcpStream) {
    // Without these the connection still works: nothing to do about a failure.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES);
}

/// Connects by TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect(&self, to: SocketAddrV4) -> LocalFuture<io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(to).await?;
            tune(&stream);
            Ok(Box::new(stream) as Box<dyn Transport>)
        })
    }
}

/// Whom a timer fires, and with which token.
type Armed = (Weak<dyn Timed>, u64);

/// [`Rt`] on tokio's `LocalSet`, for tools, tests and load generators. One task serves all timers.
pub struct TokioRuntime {
    base: tokio::time::Instant,
    random: Cell<u64>,
    timers: RefCell<BinaryHeap<Reverse<(Instant, u64)>>>,
    armed: RefCell<BTreeMap<u64, Armed>>,
    next: Cell<u64>,
    earlier: Notify,
}

impl TokioRuntime {
    /// Must be called inside a `LocalSet`, whose tasks it shares.
    pub fn start() -> Rt {
        use std::hash::{BuildHasher, Hasher};
        let runtime = Rc::new(TokioRuntime {
            base: tokio::time::Instant::now(),
            random: Cell::new(std::hash::RandomState::new().build_hasher().finish() | 1),
            timers: RefCell::default(),
            armed: RefCell::default(),
            next: Cell::new(0),
            earlier: Notify::new(),
        });
        tokio::task::spawn_local(serve_timers(Rc::downgrade(&runtime)));
        Rt::new(runtime)
    }

    fn fire_due(&self) {
        let now = self.now();
        loop {
            let due = match self.timers.borrow().peek() {
                Some(&Reverse((at, key))) if at <= now => (at, key),
                _ => return,
            };
            self.timers.borrow_mut().pop();
            let armed = self.armed.borrow_mut().remove(&due.1);
            if let Some((owner, token)) = armed {
                if let Some(owner) = owner.upgrade() {
                    owner.fire(token, due.0);
                }
            }
        }
    }
}

async fn serve_timers(runtime: Weak<TokioRuntime>) {
    loop {
        let Some(rt) = runtime.upgrade() else { return };
        rt.fire_due();
        let next = rt.timers.borrow().peek().map(|Reverse((at, _))| *at);
        let wait = next.map_or(Duration::from_secs(3600), |at| at.since(rt.now()));
        tokio::select! { biased;
            () = rt.earlier.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Runtime for TokioRuntime {
    fn now(&self) -> Instant {
        Instant(1 + u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    #[allow(clippy::disallowed_methods)] // this is where wall-clock time enters
    fn wall(&self) -> Wall {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Wall(since.map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        }))
    }

    fn arm(&self, at: Instant, owner: Weak<dyn Timed>, token: u64) {
        let key = self.next.get();
        self.next.set(key + 1);
        let is_first = self
            .timers
            .borrow()
            .peek()
            .is_none_or(|Reverse((first, _))| at < *first);
        self.timers.borrow_mut().push(Reverse((at, key)));
        self.armed.borrow_mut().insert(key, (owner, token));
        if is_first {
            self.earlier.notify_one();
        }
    }

    fn spawn(&self, task: LocalFuture<()>) {
        tokio::task::spawn_local(task);
    }

    fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x
    }
}
