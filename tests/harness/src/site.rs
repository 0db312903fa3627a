//! The typical site: a master with its client, a chunk node, a stock chunk node, two storage nodes.
//!
//! ```text
//!              mfs 10.194.0.1 (master, mount)
//!               │             │
//!   cs 10.194.0.11 ───── stock 10.194.0.12
//!    │  10.3.1.101, 10.3.2.101: one address on each storage network
//!    ├─ sto1n1 ─ 10.3.1.1 ┐ sto1
//!    ├─ sto1n2 ─ 10.3.2.1 ┘
//!    ├─ sto2n1 ─ 10.3.1.2 ┐ sto2
//!    └─ sto2n2 ─ 10.3.2.2 ┘
//! ```
//! Every line is a link with a routing namespace of its own and can be cut alone ([`Net::cut`]).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::antler::{Antler, Device, Spec};
use crate::mfs::{Master, Mount, StockChunkserver};
use crate::net::Net;
use crate::scratch::Scratch;
use crate::tgt::{Tgt, TgtSpec};

/// Target name of both storage nodes: an IQN does not identify a node, as at the usual site.
pub const TARGET: &str = "iqn.2024-12.tp2.b3:data-chunk1";
/// The usual site's unit: 1022 MiB.
pub const UNIT_BYTES: u64 = 1022 << 20;
/// Size of the local device of a site without a SAN.
pub const LOCAL_BYTES: u64 = 2 << 30;
/// Where the master and its client live.
pub const MASTER: Ipv4Addr = Ipv4Addr::new(10, 194, 0, 1);
/// Our chunk node.
pub const CHUNK_NODE: Ipv4Addr = Ipv4Addr::new(10, 194, 0, 11);
/// The stock chunk node.
pub const STOCK_NODE: Ipv4Addr = Ipv4Addr::new(10, 194, 0, 12);

/// Where the volume lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Mirrored over two storage nodes with two portals each.
    San,
    /// One file on the chunk node.
    Local,
}

/// A site. The order of the fields is the order of its end: client, servers, storage, network.
#[derive(Debug)]
pub struct Site {
    /// The mount; made by [`Site::mount`].
    pub mount: Option<Mount>,
    /// Our chunkserver.
    pub antler: Antler,
    /// Stock chunkserver; started by [`Site::add_stock`].
    pub stock: Option<StockChunkserver>,
    /// The master.
    pub master: Master,
    /// Storage nodes: two with a SAN, else none.
    pub storage: Vec<Tgt>,
    /// The network.
    pub net: Net,
    /// The state directory.
    pub scratch: Scratch,
    auth_code: Option<String>,
}

/// The address of storage node `node` (1, 2) on storage network `network` (1, 2).
pub fn portal(node: u8, network: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 3, network, node), 3260)
}

/// A chunk node `cs` and one storage node `sto1` on both storage networks, without MooseFS: the
/// links `san0` and `san1`, and the storage node's portal on each.
pub fn one_storage_node(scratch: &Scratch) -> (Net, Vec<SocketAddrV4>) {
    let mut net = Net::new(scratch);
    net.add_node("cs");
    net.add_node("sto1");
    let portals = vec![portal(1, 1), portal(1, 2)];
    for (n, portal) in portals.iter().enumerate() {
        let ours = Ipv4Addr::new(10, 3, n as u8 + 1, 101);
        net.add_link(&format!("san{n}"), ("cs", ours), ("sto1", *portal.ip()));
    }
    (net, portals)
}

/// The link between the chunk node and storage node `node` on network `network`.
pub fn san_link(node: u8, network: u8) -> String {
    format!("sto{node}n{network}")
}

/// A chunk node `cs` and the two storage nodes on both storage networks, without MooseFS.
pub fn san_network(scratch: &Scratch) -> Net {
    let mut net = Net::new(scratch);
    net.add_node("cs");
    add_san(&mut net);
    net
}

/// Adds the storage nodes and their links to the chunk node.
fn add_san(net: &mut Net) {
    for node in 1..=2 {
        let name = format!("sto{node}");
        net.add_node(&name);
        for network in 1..=2 {
            let chunk_node = Ipv4Addr::new(10, 3, network, 101);
            let end = (name.as_str(), *portal(node, network).ip());
            net.add_link(&san_link(node, network), ("cs", chunk_node), end);
        }
    }
}

/// Builds the network of the site, with or without its SAN.
pub fn network(scratch: &Scratch, storage: Storage) -> Net {
    let mut net = Net::new(scratch);
    for node in ["mfs", "cs", "stock"] {
        net.add_node(node);
    }
    net.add_link("mfs-cs", ("mfs", MASTER), ("cs", CHUNK_NODE));
    net.add_link("mfs-stock", ("mfs", MASTER), ("stock", STOCK_NODE));
    net.add_link("cs-stock", ("cs", CHUNK_NODE), ("stock", STOCK_NODE));
    if storage == Storage::San {
        add_san(&mut net);
    }
    net
}

/// Starts the two storage nodes.
pub fn storage_nodes(scratch: &Scratch, net: &Net) -> Vec<Tgt> {
    (1..=2)
        .map(|node| {
            let name = format!("sto{node}");
            let portals = [portal(node, 1), portal(node, 2)];
            let spec = TgtSpec::single(&name, TARGET, &portals, UNIT_BYTES);
            Tgt::start(scratch, net.place(&name), spec)
        })
        .collect()
}

impl Site {
    /// Everything up to, but without, `volume create` and `serve`: network, storage, master, and an
    /// installed antler with volume `vol1`. `auth_code`: the master's AUTH_CODE, known to antler.
    pub fn prepare(storage: Storage, auth_code: Option<&str>) -> Self {
        let scratch = Scratch::exclusive();
        let net = network(&scratch, storage);
        let master = Master::start(&scratch, "master", net.place("mfs"), MASTER, auth_code);
        let (nodes, devices, legs) = match storage {
            Storage::San => {
                let nodes = storage_nodes(&scratch, &net);
                let device = |node: u8| Device::Iscsi {
                    name: format!("sto{node}"),
                    portals: vec![portal(node, 1).to_string(), portal(node, 2).to_string()],
                    target: TARGET.to_owned(),
                    lun: 1,
                };
                (
                    nodes,
                    vec![device(1), device(2)],
                    vec!["sto1".to_owned(), "sto2".to_owned()],
                )
            }
            Storage::Local => {
                let path = scratch.dir().join("disk1.img");
                let disk = Device::Local {
                    name: "disk1".into(),
                    path,
                    size_bytes: LOCAL_BYTES,
                };
                (Vec::new(), vec![disk], vec!["disk1".to_owned()])
            }
        };
        let spec = Spec {
            master: MASTER.to_string(),
            listen: CHUNK_NODE,
            labels: "A".to_owned(),
            auth_code: auth_code.map(str::to_owned),
            devices,
            volumes: vec![("vol1".to_owned(), legs)],
            more: String::new(),
        };
        let antler = Antler::install(&scratch, "antler", net.place("cs"), spec);
        Self {
            mount: None,
            antler,
            stock: None,
            master,
            storage: nodes,
            net,
            scratch,
            auth_code: auth_code.map(str::to_owned),
        }
    }

    /// A site that serves, with its mount.
    pub fn start(storage: Storage, auth_code: Option<&str>) -> Self {
        let mut site = Self::prepare(storage, auth_code);
        site.antler.create_volume("vol1");
        site.antler.serve();
        site.master.wait_chunkservers(1, Duration::from_secs(10));
        site.mount();
        site
    }

    /// Mounts the file system at the master's node.
    pub fn mount(&mut self) -> &mut Mount {
        let place = self.net.place("mfs");
        // The end of an earlier mount unmounts the place that the new one takes.
        self.mount = None;
        self.mount
            .insert(Mount::start(&self.scratch, "client", place, &self.master))
    }

    /// The mount; panics before [`Site::mount`].
    pub fn mounted(&mut self) -> &mut Mount {
        self.mount
            .as_mut()
            .unwrap_or_else(|| panic!("the site is not mounted"))
    }

    /// Starts the stock chunkserver and waits for it at the master, which then has `count`.
    pub fn add_stock(&mut self, count: usize) -> &mut StockChunkserver {
        let place = self.net.place("stock");
        let auth = self.auth_code.as_deref();
        let server = StockChunkserver::start(
            &self.scratch,
            "stock",
            place,
            STOCK_NODE,
            &self.master,
            "B",
            auth,
        );
        self.master
            .wait_chunkservers(count, Duration::from_secs(30));
        self.stock.insert(server)
    }
}
