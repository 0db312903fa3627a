//! Where the layers meet: from the configuration to devices.
//!
//! The only file that names the initiator, the path selector and the local device together:
//! portals become paths, paths a unit, a file or disk a device. What the rest of the program gets is a
//! [`Leg`], a [`BlockDevice`] with a few more abilities.

use std::rc::Rc;
use std::time::Duration;

use blockdev::driver::local::{LocalDevice, LocalOptions, OpenError};
use blockdev::path::{Isid, PathPort, UnitIdentity};
use blockdev::{BlockDevice, Pool, Rt};
pub use iscsi_initiator::establish::Credentials;
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::login::chap::{Algorithm, ChapConfig, Secret};
use iscsi_initiator::login::keys::{DigestWish, Offer};
use iscsi_initiator::name::Portal;
use iscsi_initiator::path::{IscsiPort, PortConfig};
use iscsi_initiator::tcp::TcpNet;
use mpath::MultipathDevice;

use crate::config::{
    self, ChapAlgorithm, Device, DeviceKind, Digest, Iscsi, IscsiDevice, Multipath,
};
use crate::data_path::{DataPath, PathLocks};
use crate::dying::Try;
use crate::exit::Failure;
use crate::occupancy::{CarefulPort, Lookout, Occupancy, WATCH};

/// Sessions that look whose a unit is have this number, so that they end none of another tool.
pub(crate) const LOOK_SHARD: u32 = u32::MAX;

/// A unit gets so long beyond its login timeout to be identified.
const IDENTIFICATION: Duration = Duration::from_secs(1);

/// What every object of a shard is made with.
#[derive(Clone)]
pub struct Base {
    /// Time and tasks.
    pub rt: Rt,
    /// Payload memory.
    pub pool: Pool,
}

/// How a device is opened.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// A file with a `size` is made if it does not exist.
    pub create: bool,
    /// Another leg stands beside it.
    pub in_mirror: bool,
    /// Filled with those of the configuration, and read by each login: whoever keeps a clone may replace them.
    pub credentials: Credentials,
    /// Where the paths of a unit are locked against other processes of this node.
    pub(crate) data_path: Option<Rc<DataPath>>,
    /// The volume is left alone if somebody else has it; `None`: it is taken from whoever has it.
    pub(crate) occupancy: Option<Rc<Occupancy>>,
    /// For a tool, whose sessions end none of a running `serve`.
    pub is_tool: bool,
}

/// A configured device at work.
#[derive(Clone)]
pub enum Leg {
    /// A unit by its paths.
    Unit(Rc<MultipathDevice>),
    /// A file or disk.
    Local(Rc<LocalDevice>),
}

impl Leg {
    /// Opens `device`. A unit is returned at once, while it logs in; see [`Leg::ready`].
    ///
    /// The failure says which device, why, and what to do.
    pub async fn open(base: &Base, device: &Device, how: Opening) -> Result<Leg, Failure> {
        let named = |text: String| Failure::problem(format!("device {}: {text}", device.name));
        let in_use = |text: String| {
            let failure = named(text);
            if let Some(occupancy) = &how.occupancy {
                occupancy.note(&device.name, failure.text.clone());
            }
            failure
        };
        let leg = match &device.kind {
            DeviceKind::Iscsi(unit) => {
                let ports = |role| ports(base, &device.name, unit, role);
                let isids: Vec<Isid> = ports(Role::Serve)?.iter().map(PathPort::isid).collect();
                let locks = match &how.data_path {
                    None => None,
                    Some(data_path) => match data_path.lock_paths(&isids) {
                        Ok(Try::Ours(locks)) => Some(Rc::new(locks)),
                        Ok(Try::Taken(by)) => {
                            let text = format!("in use by {by}: stop that `antler` first");
                            return Err(in_use(text));
                        }
                        Err(failure) => return Err(failure),
                    },
                };
                Leg::Unit(unit_of(base, device, unit, &how, locks, isids)?)
            }
            DeviceKind::Local(local) => {
                let options = LocalOptions {
                    create_bytes: local.size_bytes.filter(|_| how.create),
                    ..LocalOptions::new(&local.path)
                };
                match LocalDevice::open(&base.rt, &base.pool, &options).await {
                    Ok(leg) => Leg::Local(Rc::new(leg)),
                    Err(e @ OpenError::InUse { .. }) => return Err(in_use(e.to_string())),
                    Err(e) => return Err(named(e.to_string())),
                }
            }
        };
        if let Some(occupancy) = &how.occupancy {
            occupancy.clear(&device.name);
        }
        Ok(leg)
    }

    /// Opens `device` and waits until it can be used: a unit gets its login timeout and what it takes to identify
    /// it, and longer while the claim of somebody else is watched.
    pub(crate) async fn open_ready(
        base: &Base,
        device: &Device,
        how: Opening,
    ) -> Result<Leg, Failure> {
        let occupancy = how.occupancy.clone();
        let leg = Leg::open(base, device, how).await?;
        let patience = match &device.kind {
            DeviceKind::Iscsi(unit) => unit.iscsi.login_timeout + IDENTIFICATION,
            DeviceKind::Local(_) => Duration::ZERO,
        };
        let mut ready = leg.ready(&base.rt, patience).await;
        if ready.is_err() && occupancy.as_ref().is_some_and(|o| o.is_watching()) {
            ready = leg.ready(&base.rt, WATCH).await;
        }
        let Err(failure) = ready else {
            return Ok(leg);
        };
        leg.close().await;
        let in_use = occupancy.and_then(|o| o.in_use());
        Err(in_use.map_or(failure, Failure::problem))
    }

    /// Waits until `patience` is over for a first path. A unit that is not reached goes on trying.
    pub async fn ready(&self, rt: &Rt, patience: Duration) -> Result<(), Failure> {
        match self {
            Leg::Unit(unit) => match unit.opened(rt.now() + patience).await {
                Ok(()) => Ok(()),
                Err(e) => Err(Failure::unreachable(e.to_string())),
            },
            Leg::Local(_) => Ok(()),
        }
    }

    /// As the layer above sees it.
    pub fn block(&self) -> Rc<dyn BlockDevice> {
        match self {
            Leg::Unit(unit) => unit.clone(),
            Leg::Local(local) => local.clone(),
        }
    }

    /// Ends its sessions, or lets go of the file.
    pub async fn close(self) {
        match self {
            Leg::Unit(unit) => unit.close().await,
            Leg::Local(local) => {
                // Whoever holds another reference lets go of the file by dropping it.
                if let Ok(local) = Rc::try_unwrap(local) {
                    local.close().await;
                }
            }
        }
    }

    /// ISIDs under which it writes.
    pub fn isids(&self) -> Vec<Isid> {
        match self {
            Leg::Unit(unit) => unit.isids(),
            Leg::Local(_) => Vec::new(),
        }
    }
}

/// Begins to log in on every path of a unit. `isids` are those of the role `serve`, locked by `locks`.
fn unit_of(
    base: &Base,
    device: &Device,
    unit: &IscsiDevice,
    how: &Opening,
    locks: Option<Rc<PathLocks>>,
    isids: Vec<Isid>,
) -> Result<Rc<MultipathDevice>, Failure> {
    let initiator = Initiator {
        chap: how.credentials.clone(),
        ..initiator(base, &unit.iscsi)?
    };
    *how.credentials.borrow_mut() = chap(&unit.iscsi)?;
    let ports = |role, shard| ports_of(&initiator, &device.name, unit, role, shard);
    let role = if how.is_tool { Role::Tool } else { Role::Serve };
    let lookout = how.occupancy.as_ref();
    let lookout = lookout.map(|o| Lookout::new(base.rt.clone(), &device.name, o.clone(), isids));
    let careful = ports(role, 0)?
        .into_iter()
        .zip(ports(Role::Tool, LOOK_SHARD)?)
        .map(|(port, look)| {
            Rc::new(CarefulPort {
                port: Rc::new(port),
                look: lookout.clone().map(|lookout| (Rc::new(look), lookout)),
                _locks: locks.clone(),
            }) as Rc<dyn PathPort>
        })
        .collect();
    let config = multipath_config(device, unit, how.in_mirror);
    Ok(Rc::new(MultipathDevice::new(
        base.rt.clone(),
        config,
        careful,
    )))
}

/// The ports of a unit, in the order of the configuration.
pub fn ports(
    base: &Base,
    device: &str,
    unit: &IscsiDevice,
    role: Role,
) -> Result<Vec<IscsiPort>, Failure> {
    ports_of(&initiator(base, &unit.iscsi)?, device, unit, role, 0)
}

fn ports_of(
    initiator: &Initiator,
    device: &str,
    unit: &IscsiDevice,
    role: Role,
    shard: u32,
) -> Result<Vec<IscsiPort>, Failure> {
    let port = |way: &config::Portal| {
        let config = PortConfig {
            portal: portal(&way.address, device)?,
            source: way.source,
            target: unit.target.clone(),
            lun: u64::from(unit.lun),
            role,
            shard,
        };
        IscsiPort::new(initiator.clone(), config).ok_or_else(|| {
            Failure::usage(format!("device {device}: LUN {} is above 16383", unit.lun))
        })
    };
    unit.portals.iter().map(port).collect()
}

/// A portal in numbers.
pub fn portal(address: &config::HostPort, whose: &str) -> Result<Portal, Failure> {
    let numeric = address.host.parse().map_err(|_| {
        Failure::usage(format!(
            "{whose}: portal {address} must be a numeric address, for a path has to lead where the \
             configuration says"
        ))
    })?;
    Ok(Portal {
        address: numeric,
        port: address.port,
    })
}

/// An initiator with these settings.
pub fn initiator(base: &Base, iscsi: &Iscsi) -> Result<Initiator, Failure> {
    let net = Rc::new(TcpNet);
    let mut initiator = Initiator::new(
        base.rt.clone(),
        net,
        base.pool.clone(),
        &iscsi.initiator_name,
    );
    initiator.offer = Offer {
        header_digest: digest(iscsi.header_digest),
        data_digest: digest(iscsi.data_digest),
        ..Offer::default()
    };
    *initiator.chap.borrow_mut() = chap(iscsi)?;
    Ok(initiator)
}

/// What the configuration wants a login to prove itself with.
pub fn chap(iscsi: &Iscsi) -> Result<Option<ChapConfig>, Failure> {
    match &iscsi.chap {
        None => Ok(None),
        Some(own) => {
            let secret = |s: &config::Secret| {
                Secret::new(s.expose().as_bytes().to_vec())
                    .map_err(|e| Failure::usage(format!("[iscsi] {e}")))
            };
            let target = match &iscsi.target_chap {
                Some(target) => Some((target.user.clone(), secret(&target.secret)?)),
                None => None,
            };
            let algorithms: Vec<Algorithm> = iscsi
                .chap_algorithms
                .iter()
                .copied()
                .map(algorithm)
                .collect();
            let chap = ChapConfig::new(&own.user, secret(&own.secret)?, target, &algorithms)
                .map_err(|e| Failure::usage(format!("[iscsi] {e}")))?;
            Ok(Some(chap))
        }
    }
}

fn digest(wish: Digest) -> DigestWish {
    match wish {
        Digest::None => DigestWish::None,
        Digest::Crc32c => DigestWish::Crc32c,
        Digest::PreferCrc32c => DigestWish::PreferCrc32c,
        Digest::PreferNone => DigestWish::PreferNone,
    }
}

fn algorithm(of: ChapAlgorithm) -> Algorithm {
    match of {
        ChapAlgorithm::Md5 => Algorithm::Md5,
        ChapAlgorithm::Sha1 => Algorithm::Sha1,
        ChapAlgorithm::Sha256 => Algorithm::Sha256,
        ChapAlgorithm::Sha3256 => Algorithm::Sha3_256,
    }
}

/// What the configuration says of a unit's paths, in the words of `mpath`; also of what it says once the
/// unit is known.
pub fn multipath_config(device: &Device, unit: &IscsiDevice, in_mirror: bool) -> mpath::Config {
    let mut config = settings(device, &unit.iscsi, &unit.multipath, in_mirror);
    let (device, unit) = (device.clone(), unit.clone());
    let is_told = std::cell::Cell::new(false);
    config.fitting = Some(mpath::Fitting::new(move |identity| {
        let fitted = unit.rules.fit(&unit_facts(identity))?;
        if !is_told.replace(true) {
            for s in &fitted.changed {
                tracing::info!(
                    "{} = {} ({}), for that is what the unit is",
                    s.key,
                    s.value,
                    s.origin
                );
            }
        }
        Ok(settings(&device, &unit.iscsi, &fitted.multipath, in_mirror))
    }));
    config
}

/// A unit as `multipath.conf` sees it.
pub fn unit_facts(unit: &UnitIdentity) -> config::UnitFacts<'_> {
    config::UnitFacts {
        wwid: unit.wwid.as_deref(),
        vendor: &unit.vendor,
        product: &unit.product,
        revision: &unit.revision,
    }
}

fn settings(device: &Device, iscsi: &Iscsi, m: &Multipath, in_mirror: bool) -> mpath::Config {
    use config::{Checker, Failback, Fence, FenceFail, GroupingPolicy, NoPathRetry, Selector};
    let mut config = mpath::Config::new(&device.name, &iscsi.initiator_name);
    config.wwid = device.wwid.clone();
    config.grouping = match m.path_grouping_policy {
        GroupingPolicy::Failover => mpath::Grouping::Failover,
        GroupingPolicy::Multibus => mpath::Grouping::Multibus,
        GroupingPolicy::GroupBySerial => mpath::Grouping::BySerial,
        GroupingPolicy::GroupByPrio => mpath::Grouping::ByPrio,
        GroupingPolicy::GroupByNodeName => mpath::Grouping::ByNodeName,
        GroupingPolicy::GroupByTpg => mpath::Grouping::ByTpg,
    };
    config.selector = match m.path_selector {
        Selector::RoundRobin => mpath::SelectorKind::RoundRobin,
        Selector::QueueLength => mpath::SelectorKind::QueueLength,
        // One shard runs on one CPU: its affinity decides nothing.
        Selector::ServiceTime | Selector::IoAffinity => mpath::SelectorKind::ServiceTime,
        Selector::HistoricalServiceTime {
            base_weight,
            threshold_multiplier,
        } => mpath::SelectorKind::HistoricalServiceTime {
            base_weight,
            threshold_multiplier,
        },
        Selector::TailLatency => mpath::SelectorKind::TailLatency,
    };
    config.prio = m.prio.clone();
    config.detect_prio = m.detect_prio;
    config.exclusive_pref_bit = m.exclusive_pref_bit;
    config.detect_pgpolicy = m.detect_pgpolicy;
    config.detect_pgpolicy_use_tpg = m.detect_pgpolicy_use_tpg;
    config.path_checker = match m.path_checker {
        Checker::Tur => mpath::Probe::Tur,
        Checker::Directio => mpath::Probe::Directio,
        Checker::Nop => mpath::Probe::Nop,
        Checker::None => mpath::Probe::None,
    };
    config.detect_checker = m.detect_checker;
    config.checker_timeout = m.checker_timeout;
    config.san_path_err = m.san_path_err.map(|rule| mpath::SanPathErr {
        threshold: rule.threshold,
        forget_rate: rule.forget_rate,
        recovery_time: rule.recovery_time,
    });
    config.marginal_path = m.marginal_path.map(|rule| mpath::MarginalPath {
        double_failed_time: rule.double_failed_time,
        err_sample_time: rule.err_sample_time,
        err_rate_threshold: rule.err_rate_threshold,
        err_recheck_gap_time: rule.err_recheck_gap_time,
    });
    config.marginal_pathgroups = m.marginal_pathgroups;
    config.failback = match m.failback {
        Failback::Immediate => mpath::Failback::Immediate,
        Failback::Followover => mpath::Failback::Followover,
        Failback::Manual => mpath::Failback::Manual,
        Failback::After(time) => mpath::Failback::After(time),
    };
    config.no_path_retry = match m.no_path_retry {
        // The default of a mirror's leg: which it is, and whether it is the last, changes as we run.
        NoPathRetry::Fail if in_mirror => None,
        NoPathRetry::Fail => Some(mpath::NoPathRetry::Fail),
        NoPathRetry::Queue => Some(mpath::NoPathRetry::Queue),
        NoPathRetry::Times(n) => Some(mpath::NoPathRetry::Checks(n)),
    };
    config.polling_interval = m.polling_interval;
    config.max_polling_interval = m.max_polling_interval;
    config.login_timeout = iscsi.login_timeout;
    config.fence = match m.fence {
        Fence::Auto => mpath::FencePolicy::Auto,
        Fence::Reinstate => mpath::FencePolicy::Reinstate,
        Fence::Pr => mpath::FencePolicy::Pr,
        Fence::None => mpath::FencePolicy::None,
    };
    config.reservation_key = m.reservation_key;
    config.fence_timeout = m.fence_timeout;
    config.fence_fail = match m.fence_fail {
        FenceFail::FailLeg => mpath::FenceFail::FailLeg,
        FenceFail::Wait => mpath::FenceFail::Wait,
    };
    config.fence_assume = m.fence_assume;
    config
}

/// Two paths with one ISID would throw each other out: the derived ISIDs that collide among the devices that
/// are served together. (Tools use one device at a time.)
pub fn isid_collisions(config: &config::Config) -> Vec<String> {
    let mut seen: std::collections::BTreeMap<(String, Isid), String> = Default::default();
    let mut problems = Vec::new();
    let served = |device: &&Device| {
        config
            .volumes
            .iter()
            .any(|v| v.legs.contains(&device.name) || v.spares.contains(&device.name))
    };
    for device in config.devices.iter().filter(served) {
        let DeviceKind::Iscsi(unit) = &device.kind else {
            continue;
        };
        for way in &unit.portals {
            let Ok(portal) = portal(&way.address, &device.name) else {
                continue;
            };
            let isid = iscsi_initiator::isid::derive(&iscsi_initiator::isid::IsidSource {
                initiator: &unit.iscsi.initiator_name,
                target: &unit.target,
                portal,
                source: way.source,
                role: Role::Serve,
                shard: 0,
                lun: Some(u64::from(unit.lun)),
            });
            let here = format!("device {} portal {portal}", device.name);
            if let Some(there) = seen.insert((unit.target.clone(), isid), here.clone()) {
                problems.push(format!(
                    "{here} and {there} have the same ISID: give one of them another source address"
                ));
            }
        }
    }
    problems
}

/// The pool of a shard: the node's whole memory limit, for cached pages come from it as well. What is not
/// cache is taken from the system at once.
pub fn pool(config: &config::Config) -> Pool {
    let c = &config.chunkserver;
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let pool = Pool::new(bytes(c.memory_bytes));
    pool.prefault(bytes(c.memory_bytes.saturating_sub(c.cache_bytes)));
    pool
}
