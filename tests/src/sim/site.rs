//! The typical site: storage nodes with two portals each on two networks, and a chunk node whose
//! stack, the real one down to the bytes on the wire, runs on a [`Host`] that can die.

use super::net::{Cut, SimNet};
use super::target::{Manners, Target};
use super::unit::Unit;
use blockdev::path::PathPort;
use blockdev::sim::{Chance, Faults, FaultyDevice, Host, Latency, Medium, Outage, VirtualRt};
use blockdev::{Geometry, Pool};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::name::Portal;
use iscsi_initiator::path::{IscsiPort, PortConfig};
use mpath::{Config, MultipathDevice};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

/// Name of the initiator, also used on the typical site.
pub const INITIATOR: &str = "iqn.2024-12.tp2.b3:data-chunk1:chunk1-initiator";
/// Name of both targets: an IQN does not identify a node.
pub const TARGET: &str = "iqn.2024-12.tp2.b3:data-chunk1";

/// Seeds to run: `SIM_SEED` alone if given; else as many as `SIM_RUNS` says, or `many` of them, or
/// ten times as many with `SIM_LONG`.
pub fn seeds(many: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    if let Some(seed) = number("SIM_SEED") {
        return vec![seed];
    }
    let long = if std::env::var_os("SIM_LONG").is_some() {
        10
    } else {
        1
    };
    (1..=number("SIM_RUNS").unwrap_or(many * long)).collect()
}

/// Runs `test` for every seed and names the one that failed.
pub fn for_each_seed(many: u64, test: impl Fn(u64)) {
    for seed in seeds(many) {
        let run = std::panic::AssertUnwindSafe(|| test(seed));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("failed with seed {seed}; SIM_SEED={seed} replays it");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Everything that outlives the chunk node.
pub struct Site {
    /// Time and tasks.
    pub world: VirtualRt,
    /// The two networks.
    pub net: SimNet,
    /// The storage nodes.
    pub nodes: Vec<StorageNode>,
    /// For what the test draws.
    pub chance: Chance,
}

/// A storage node.
pub struct StorageNode {
    /// What it stores on.
    pub medium: Medium,
    /// Its target daemon.
    pub target: Target,
    /// One portal on each network.
    pub portals: Vec<Portal>,
    net: SimNet,
    is_off: Cell<bool>,
}

impl Site {
    /// A site of `nodes` storage nodes with units of `sectors`. What goes wrong on the media, the
    /// delays and the targets' manners are drawn from `seed`.
    pub fn new(seed: u64, nodes: usize, sectors: u64, faults: Faults) -> Site {
        let world = VirtualRt::shuffled(seed);
        let chance = Chance::new(seed);
        let net = SimNet::new(world.rt(), chance.next());
        let nodes = (0..nodes)
            .map(|index| StorageNode::new(&world, &net, &chance, index, sectors, faults))
            .collect();
        Site {
            world,
            net,
            nodes,
            chance,
        }
    }

    /// A line about what happens, shown when one seed is replayed.
    pub fn note(&self, line: impl FnOnce() -> String) {
        if std::env::var_os("SIM_SEED").is_some() {
            eprintln!("{:?} {}", self.world.now(), line());
        }
    }

    /// Heals every network.
    pub fn heal_networks(&self) {
        for node in &self.nodes {
            for portal in &node.portals {
                self.net.cut(*portal, Cut::None);
                let delay = Latency::fixed(Duration::from_micros(50));
                self.net.delay(*portal, delay);
            }
        }
    }
}

impl StorageNode {
    fn new(
        world: &VirtualRt,
        net: &SimNet,
        chance: &Chance,
        index: usize,
        sectors: u64,
        faults: Faults,
    ) -> StorageNode {
        let medium = Medium::new(sectors);
        let device = FaultyDevice::with_geometry(
            world.rt(),
            Pool::new(256 << 20),
            medium.clone(),
            Geometry {
                discard: true,
                ..Geometry::plain(sectors)
            },
            faults,
            chance.next(),
        );
        let unit = Unit::new(device, &format!("beaf{index:02}antler"));
        let target = Target::new(world.rt(), unit, Manners::draw(chance));
        let us = Duration::from_micros;
        let portals: Vec<Portal> = (1..=2)
            .map(|network| Portal {
                address: IpAddr::V4(Ipv4Addr::new(10, 3, network, 1 + index as u8)),
                port: 3260,
            })
            .collect();
        for portal in &portals {
            let delay = Latency::between(us(20), us(20 + chance.below(200)));
            net.listen(*portal, delay, target.listener());
        }
        StorageNode {
            medium,
            target,
            portals,
            net: net.clone(),
            is_off: Cell::new(false),
        }
    }

    /// Power is cut: the cache is lost as `seed` draws, nobody is told anything.
    pub fn power_off(&self, seed: u64) {
        self.is_off.set(true);
        for portal in &self.portals {
            self.net.dark(*portal, true);
        }
        self.target.power_off();
        self.target.unit().device().power_cut(seed, Outage::Errors);
    }

    /// Whether it has no power.
    pub fn is_off(&self) -> bool {
        self.is_off.get()
    }

    /// Power is back and the daemon serves.
    pub fn power_on(&self) {
        self.is_off.set(false);
        self.target.unit().device().restart();
        self.target.start();
        for portal in &self.portals {
            self.net.dark(*portal, false);
        }
    }
}

/// The chunk node: all that dies with it.
pub struct ChunkNode {
    /// Its tasks.
    pub host: Host,
    /// Its payload memory.
    pub pool: Pool,
    /// One multipath device for each storage node.
    pub devices: Vec<Rc<MultipathDevice>>,
    net: SimNet,
}

impl ChunkNode {
    /// Starts a node that logs in everywhere.
    pub fn start(site: &Site) -> ChunkNode {
        site.net.vanish(false);
        let host = Host::new(&site.world.rt());
        let pool = Pool::new(64 << 20);
        let devices = site
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| {
                let ports = node
                    .portals
                    .iter()
                    .map(|portal| port(site, &host, &pool, *portal));
                let mut config = Config::new(format!("sto{}", index + 1), INITIATOR);
                config.polling_interval = Duration::from_secs(1);
                Rc::new(MultipathDevice::new(host.rt(), config, ports.collect()))
            })
            .collect();
        ChunkNode {
            host,
            pool,
            devices,
            net: site.net.clone(),
        }
    }

    /// SIGKILL: its sockets are reset.
    pub fn kill(self) {
        self.host.kill();
    }

    /// Its power fails: nobody is told.
    pub fn power_cut(self) {
        self.net.vanish(true);
        self.kill();
    }
}

fn port(site: &Site, host: &Host, pool: &Pool, portal: Portal) -> Rc<dyn PathPort> {
    let net = Rc::new(site.net.clone());
    let initiator = Initiator::new(host.rt(), net, pool.clone(), INITIATOR);
    let config = PortConfig {
        portal,
        source: None,
        target: TARGET.to_owned(),
        lun: 1,
        role: Role::Serve,
        shard: 0,
    };
    Rc::new(IscsiPort::new(initiator, config).expect("LUN 1 has a flat form"))
}
