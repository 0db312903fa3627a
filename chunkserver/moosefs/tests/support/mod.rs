//! A network in memory under a virtual clock: servers with chunks in memory, pipes between them.
//! In [`node`]: a whole node with real sockets, on threads of its own.
#![allow(dead_code)] // each test file uses its part

pub(crate) mod node;

use blockdev::sim::VirtualRt;
use blockdev::{IoVec, LocalFuture, Pool, Rt};
use chunk_api::{ChunkId, ChunkVersion, Chunks};
use moosefs::client::Client;
use moosefs::mem::MemChunks;
use moosefs::replicate::Replicator;
use moosefs::serve::{Connector, ServeConfig, Server};
use moosefs::wire::Transport;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use tokio::io::DuplexStream;

pub(crate) const ID: ChunkId = ChunkId(0x11);
pub(crate) const VERSION: ChunkVersion = ChunkVersion(1);

/// How an address answers a connection.
pub(crate) enum Host {
    Serves(Rc<Server>),
    /// Never answers.
    Silent,
    /// Hands the other end of the pipe to the test.
    Scripted(Rc<RefCell<Vec<DuplexStream>>>),
}

#[derive(Default)]
pub(crate) struct Net {
    hosts: RefCell<BTreeMap<SocketAddrV4, Host>>,
}

pub(crate) const PIPE_BYTES: usize = 128 << 10;

impl Connector for Net {
    fn connect(&self, to: SocketAddrV4) -> LocalFuture<io::Result<Box<dyn Transport>>> {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        match self.hosts.borrow().get(&to) {
            Some(Host::Serves(server)) => server.accept(far, "peer".into()),
            Some(Host::Scripted(ends)) => ends.borrow_mut().push(far),
            Some(Host::Silent) => return Box::pin(std::future::pending()),
            None => {
                let refused = io::ErrorKind::ConnectionRefused;
                return Box::pin(std::future::ready(Err(refused.into())));
            }
        }
        Box::pin(std::future::ready(Ok(Box::new(near) as Box<dyn Transport>)))
    }
}

pub(crate) struct Node {
    pub(crate) address: SocketAddrV4,
    pub(crate) chunks: Rc<MemChunks>,
    pub(crate) server: Rc<Server>,
    pub(crate) pool: Pool,
}

pub(crate) struct World {
    pub(crate) virtual_rt: VirtualRt,
    pub(crate) rt: Rt,
    pub(crate) net: Rc<Net>,
}

pub(crate) fn address(n: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), 9422)
}

impl World {
    pub(crate) fn new() -> World {
        let virtual_rt = VirtualRt::new(7);
        World {
            rt: virtual_rt.rt(),
            virtual_rt,
            net: Rc::default(),
        }
    }

    /// A server that holds chunk [`ID`], empty.
    pub(crate) fn node(&self, n: u8) -> Node {
        self.node_with_pool(n, 64 << 20)
    }

    pub(crate) fn node_with_pool(&self, n: u8, pool_bytes: usize) -> Node {
        let pool = Pool::new(pool_bytes);
        let chunks = MemChunks::new(self.rt.clone(), Pool::new(64 << 20), 1 << 30);
        self.run(chunks.create(ID, VERSION)).unwrap();
        let server = Server::new(
            chunks.clone(),
            self.rt.clone(),
            pool.clone(),
            self.net.clone(),
            ServeConfig::default(),
        );
        self.set_host(n, Host::Serves(server.clone()));
        Node {
            address: address(n),
            chunks,
            server,
            pool,
        }
    }

    pub(crate) fn set_host(&self, n: u8, host: Host) {
        self.net.hosts.borrow_mut().insert(address(n), host);
    }

    pub(crate) fn run<T: 'static>(
        &self,
        future: impl std::future::Future<Output = T> + 'static,
    ) -> T {
        let handle = self.virtual_rt.spawn_handle(future);
        self.virtual_rt.block_on(handle)
    }

    pub(crate) fn client(&self, node: &Node) -> Client<DuplexStream> {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        node.server.accept(far, "client".into());
        Client::new(near, Pool::new(256 << 20))
    }

    pub(crate) fn replicator(&self, node: &Node) -> Rc<Replicator> {
        let (chunks, pool) = (node.chunks.clone(), node.pool.clone());
        Replicator::new(chunks, self.rt.clone(), pool, self.net.clone())
    }
}

pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(crate) fn vec_of(bytes: &[u8]) -> IoVec {
    Pool::new(1 << 20).copy_now(bytes)
}
