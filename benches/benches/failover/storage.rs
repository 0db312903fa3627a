//! What a row runs on: one unit with two paths, or a mirror of two, opened on a shard.

use blockdev::path::PathPort;
use blockdev::{BlockDevice, LegIndex, Mirror, Pool, Rt};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::path::{IscsiPort, PortConfig};
use iscsi_initiator::tcp::TcpNet;
use mpath::{Config, GroupState, MultipathDevice};
use raid::assemble::{assemble, LegInput};
use raid::format::CreateOptions;
use raid::witness::FileWitness;
use raid::Array;
use std::fmt::Write as _;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Target name of every node: an IQN does not identify one.
pub(crate) const TARGET: &str = "iqn.2024-12.example.test:failover";
const INITIATOR: &str = "iqn.2024-12.example.test:bench";
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the units are.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Two portals of each storage node; two nodes make a mirror.
    pub(crate) nodes: Vec<[SocketAddrV4; 2]>,
    /// Where the witness of a mirror is kept.
    pub(crate) data_path: PathBuf,
}

/// An open unit or mirror.
pub(crate) struct Storage {
    devices: Vec<Rc<MultipathDevice>>,
    array: Option<Rc<Array>>,
}

impl Storage {
    /// Logs in everywhere; two units become a new mirror.
    pub(crate) async fn open(rt: &Rt, pool: &Pool, plan: &Plan) -> Storage {
        let nodes = plan.nodes.iter().enumerate();
        let devices: Vec<_> = nodes.map(|(n, node)| unit(rt, pool, n, node)).collect();
        for device in &devices {
            let opened = device.opened(rt.now() + PATIENCE).await;
            opened.expect("a path is up");
        }
        let array = match devices.len() {
            1 => None,
            _ => Some(mirror(rt, pool, &devices, plan).await),
        };
        Storage { devices, array }
    }

    /// What I/O is sent to.
    pub(crate) fn device(&self) -> Rc<dyn BlockDevice> {
        match &self.array {
            Some(array) => array.clone(),
            None => self.devices[0].clone(),
        }
    }

    /// Whether every path takes I/O and every leg is in sync.
    pub(crate) fn is_whole(&self) -> bool {
        let paths = |device: &Rc<MultipathDevice>| {
            let groups = device.snapshot().groups;
            let active = groups.iter().flat_map(|g| &g.paths);
            active.filter(|path| path.is_active).count() == 2
        };
        let in_sync = |array: &Rc<Array>| (0..2).all(|leg| array.in_sync(LegIndex(leg)));
        self.devices.iter().all(paths) && self.array.as_ref().is_none_or(in_sync)
    }

    /// What keeps it from being whole, for people.
    pub(crate) fn story(&self) -> String {
        let mut story = String::new();
        for device in &self.devices {
            let snapshot = device.snapshot();
            let paths = snapshot.groups.iter().flat_map(|group| &group.paths);
            for path in paths {
                let _ = writeln!(
                    story,
                    "{} {:?} {:?} {:?}",
                    snapshot.name, path.reach, path.checker, path.last_error
                );
            }
        }
        if let Some(array) = &self.array {
            let snapshot = array.snapshot();
            let _ = writeln!(story, "{:?}\n{:?}", snapshot.legs, snapshot.sync);
        }
        story
    }

    /// The path in use of each unit.
    pub(crate) fn in_use(&self) -> Vec<usize> {
        let active = |device: &Rc<MultipathDevice>| {
            let groups = device.snapshot().groups;
            groups.iter().position(|g| g.state == GroupState::Active)
        };
        let devices = self.devices.iter();
        devices.map(|device| active(device).unwrap_or(0)).collect()
    }

    /// Hedged attempts so far.
    pub(crate) fn hedges(&self) -> u64 {
        let groups = self.devices.iter().flat_map(|d| d.snapshot().groups);
        let paths = groups.flat_map(|group| group.paths);
        paths.map(|path| path.counters.hedges).sum()
    }

    /// Changes of the group in use so far.
    pub(crate) fn failovers(&self) -> u64 {
        let devices = self.devices.iter();
        devices.map(|device| device.snapshot().failovers).sum()
    }

    /// Flushes and logs out.
    pub(crate) async fn close(&self) {
        if let Some(array) = &self.array {
            array.stop().await;
        }
        for device in &self.devices {
            device.close().await;
        }
    }
}

fn unit(rt: &Rt, pool: &Pool, index: usize, portals: &[SocketAddrV4; 2]) -> Rc<MultipathDevice> {
    let ports = portals.iter().map(|portal| {
        let own = Initiator::new(rt.clone(), Rc::new(TcpNet), pool.clone(), INITIATOR);
        let config = PortConfig {
            portal: portal.to_string().parse().expect("a portal"),
            source: None,
            target: TARGET.to_owned(),
            lun: 1,
            role: Role::Tool,
            shard: 0,
        };
        Rc::new(IscsiPort::new(own, config).expect("LUN 1 has a flat form")) as Rc<dyn PathPort>
    });
    let config = Config::new(format!("sto{}", index + 1), INITIATOR);
    Rc::new(MultipathDevice::new(rt.clone(), config, ports.collect()))
}

async fn mirror(rt: &Rt, pool: &Pool, devices: &[Rc<MultipathDevice>], plan: &Plan) -> Rc<Array> {
    let legs: Vec<Rc<dyn BlockDevice>> = devices.iter().map(|d| d.clone() as _).collect();
    let create = CreateOptions {
        name: "bench".to_owned(),
        equalise: false,
    };
    raid::format::create(rt, pool, &legs, &create, |_, _| {})
        .await
        .expect("a mirror");
    let witness = Rc::new(FileWitness::new(&plan.data_path).expect("a witness"));
    let mut options = raid::Options::new("bench");
    // Thirty faults of a leg in a row would keep it out for 30 s each.
    options.penalty = Duration::from_secs(1);
    let roles = devices.to_vec();
    options.on_alone = Some(Rc::new(move |leg, is_alone| {
        roles[usize::from(leg.0)].set_role(match is_alone {
            true => mpath::Role::Alone,
            false => mpath::Role::MirrorLeg,
        });
    }));
    let legs = devices.iter().zip(legs).map(|(device, leg)| LegInput {
        name: device.name(),
        device: Some(leg),
    });
    let array = assemble(
        rt.clone(),
        pool.clone(),
        witness,
        options,
        legs.collect(),
        false,
    )
    .await;
    let array = array.expect("both legs");
    array.recovered();
    for device in devices {
        device.set_role(mpath::Role::MirrorLeg);
    }
    array
}
