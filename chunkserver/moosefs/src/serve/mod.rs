//! The data port (9422): reads, chains of writes, information, on the shard's thread.
//!
//! One task per connection, generic over the transport: the listener in [`crate::net`] hands it
//! TCP streams, tests hand it pipes under a virtual clock. A connection is idle, reading
//! (`read`), or in a session of writes (`write` drives the state machine `chain`); then it is
//! idle again. Garbage closes it with one log line.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections; per connection 512 KiB of reads
//! on their way from disk to socket and 2 MiB of unanswered writes. Pages
//! come from the pool, and an empty pool makes the sockets wait.

mod chain;
mod connection;
pub mod info;
mod next;
mod read;
mod stats;
mod write;

pub use next::Connector;
pub use stats::{Meter, Operation, ServeStats};

use crate::master::Handle;
use crate::proto::{Version, CLAIMED_VERSION};
use crate::repeats::{LeftOut, Repeats};
use crate::wire::Transport;
use blockdev::{Instant, Pool, Rt};
use chunk_api::Chunks;
use next::NextPool;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Connections served at a time; more are closed at once, with one log line a second and address at most.
pub const CONNECTIONS_MAX: u32 = 8192;

/// What the data port tells about the node and where its parts are.
pub struct ServeConfig {
    /// The version told.
    pub claim: Version,
    /// Options of mfschunkserver.cfg by their upper-case names, for `GET_CONFIG`.
    pub options: BTreeMap<String, String>,
    /// The master link, for `MODULE_INFO`.
    pub master: Option<Handle>,
}

impl Default for ServeConfig {
    fn default() -> ServeConfig {
        ServeConfig {
            claim: CLAIMED_VERSION,
            options: BTreeMap::new(),
            master: None,
        }
    }
}

/// See the module. Shared by its connections.
pub struct Server {
    chunks: Rc<dyn Chunks>,
    rt: Rt,
    pool: Pool,
    config: ServeConfig,
    next: NextPool,
    stats: Rc<ServeStats>,
    stopping: Cell<bool>,
    began: Instant,
    /// What was logged of whom, by address: a hostile neighbour must not fill the journal.
    logged: RefCell<Repeats<(Complaint, String)>>,
}

/// What is logged of a peer, or of the chunk that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Complaint {
    /// It broke the protocol.
    Malformed,
    /// It came when all connections were taken.
    Full,
    /// A chain could not be continued to it.
    Unreachable,
    /// What it wrote could not be finished.
    Unfinished,
}

impl Server {
    /// Serves `chunks`; payload goes through pages of `pool`, chains go on through `connector`.
    pub fn new(
        chunks: Rc<dyn Chunks>,
        rt: Rt,
        pool: Pool,
        connector: Rc<dyn Connector>,
        config: ServeConfig,
    ) -> Rc<Server> {
        Rc::new(Server {
            next: NextPool::new(rt.clone(), pool.clone(), connector),
            chunks,
            began: rt.now(),
            rt,
            pool,
            config,
            stats: Rc::default(),
            stopping: Cell::new(false),
            logged: RefCell::default(),
        })
    }

    /// Counters, and the place to attach a [`Meter`].
    pub fn stats(&self) -> Rc<ServeStats> {
        self.stats.clone()
    }

    /// Serves one connection in a task of its own; `peer` names it in log lines.
    pub fn accept(self: &Rc<Server>, io: impl Transport + 'static, peer: String) {
        if self.stopping.get() {
            return;
        }
        if self.stats.connections.get() >= CONNECTIONS_MAX {
            return self.turn_away(&peer);
        }
        self.stats.connections.set(self.stats.connections.get() + 1);
        let server = self.clone();
        self.rt.spawn(async move {
            connection::run(&server, io, &peer).await;
            server
                .stats
                .connections
                .set(server.stats.connections.get() - 1);
        });
    }

    fn turn_away(&self, peer: &str) {
        self.stats.turned_away.set(self.stats.turned_away.get() + 1);
        if let Some(more) = self.may_log(Complaint::Full, peer) {
            let turned_away = self.stats.turned_away.get();
            tracing::warn!(
                peer,
                turned_away,
                "connection closed: {CONNECTIONS_MAX} are open{more}"
            );
        }
    }

    /// Whether a complaint about a peer (`ADDRESS:PORT`) may be logged. Its port changes with every connection.
    fn may_log(&self, what: Complaint, peer: &str) -> Option<LeftOut> {
        let address = peer.rsplit_once(':').map_or(peer, |(address, _)| address);
        let now = self.rt.now().since(self.began);
        self.logged
            .borrow_mut()
            .may_log(&(what, address.to_owned()), now)
    }

    /// No new connection and no new request from now on; running ones go on. Connections close
    /// as they become idle; [`ServeStats::connections`] tells how many are left.
    pub fn stop(&self) {
        self.stopping.set(true);
    }
}
