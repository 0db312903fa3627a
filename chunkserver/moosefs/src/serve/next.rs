//! Connections to other servers: the next of a chain, with the stock retry scheme and reuse.

use crate::wire::{Transport, Wire};
use blockdev::{Instant, LocalFuture, Pool, Rt};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// Times a try to connect is given; ten tries in all, as the stock server.
const TRIES_MS: [u64; 10] = [200, 300, 400, 600, 800, 1200, 1600, 2400, 3200, 4800];
/// Pause after a try that failed at once, so that ten refusals are not one.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// An idle connection older than this is not reused: the other side closes after 5 s.
const IDLE_MAX: Duration = Duration::from_secs(3);
/// Idle connections kept to one server.
const IDLE_PER_SERVER_MAX: usize = 32;

/// A connection to another server, whatever carries it.
pub(crate) type Stream = Box<dyn Transport>;

/// Makes connections.
pub trait Connector {
    /// Connects to a server's data port.
    fn connect(&self, to: SocketAddrV4) -> LocalFuture<io::Result<Box<dyn Transport>>>;
}

struct Idle {
    since: Instant,
    wire: Wire<Stream>,
}

pub(crate) struct NextPool {
    rt: Rt,
    pool: Pool,
    connector: Rc<dyn Connector>,
    idle: Rc<RefCell<BTreeMap<SocketAddrV4, Vec<Idle>>>>,
}

impl NextPool {
    pub(crate) fn new(rt: Rt, pool: Pool, connector: Rc<dyn Connector>) -> NextPool {
        NextPool {
            rt,
            pool,
            connector,
            idle: Rc::default(),
        }
    }

    /// A connection that is idle or new. Owned by the caller, and independent of the pool.
    pub(crate) fn open(&self, to: SocketAddrV4) -> LocalFuture<io::Result<Wire<Stream>>> {
        let (rt, pool, connector) = (self.rt.clone(), self.pool.clone(), self.connector.clone());
        let idle = self.idle.clone();
        Box::pin(async move {
            while let Some(mut wire) = take(&idle, to, rt.now()) {
                if is_alive(&mut wire).await {
                    return Ok(wire);
                }
            }
            connect(&rt, &*connector, to)
                .await
                .map(|stream| Wire::new(stream, pool))
        })
    }

    /// Keeps a connection on which a session has ended well.
    pub(crate) fn put(&self, to: SocketAddrV4, wire: Wire<Stream>) {
        let now = self.rt.now();
        let mut idle = self.idle.borrow_mut();
        let of_server = idle.entry(to).or_default();
        of_server.retain(|idle| now - idle.since < IDLE_MAX);
        if of_server.len() < IDLE_PER_SERVER_MAX {
            of_server.push(Idle { since: now, wire });
        }
        drop(idle);
        let (rt, idle) = (self.rt.clone(), self.idle.clone());
        self.rt.spawn(async move {
            rt.sleep(IDLE_MAX).await;
            let now = rt.now();
            idle.borrow_mut().retain(|_, of_server| {
                of_server.retain(|idle| now - idle.since < IDLE_MAX);
                !of_server.is_empty()
            });
        });
    }
}

fn take(
    idle: &RefCell<BTreeMap<SocketAddrV4, Vec<Idle>>>,
    to: SocketAddrV4,
    now: Instant,
) -> Option<Wire<Stream>> {
    let mut idle = idle.borrow_mut();
    let of_server = idle.get_mut(&to)?;
    of_server.retain(|idle| now - idle.since < IDLE_MAX);
    of_server.pop().map(|idle| idle.wire)
}

/// Whether nothing but NOPs came on an idle connection.
async fn is_alive(wire: &mut Wire<Stream>) -> bool {
    poll_fn(|cx| loop {
        match wire.poll_frame(cx) {
            Poll::Ready(Ok(Some(frame)))
                if super::connection::ignorable(&frame).is_ok_and(|n| n) => {}
            Poll::Ready(_) => return Poll::Ready(false),
            Poll::Pending => return Poll::Ready(true),
        }
    })
    .await
}

/// Connects with the stock scheme of tries.
pub(crate) async fn connect(
    rt: &Rt,
    connector: &dyn Connector,
    to: SocketAddrV4,
) -> io::Result<Stream> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for try_ms in TRIES_MS {
        let until = rt.now() + Duration::from_millis(try_ms);
        match rt.by(until, connector.connect(to)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(e)) => {
                last = e;
                rt.sleep(REFUSED_PAUSE).await;
            }
            Err(_late) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}
