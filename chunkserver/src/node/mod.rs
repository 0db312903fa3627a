//! `antler serve`: the shard's side of a running node.
//!
//! [`serve`] runs on the calling thread until it is told to stop. Everything that touches a chunk lives here:
//! volumes with their arrays and devices (`volume`), the data port, and the executor of the master's commands.
//! The master link itself has a thread of its own, and the admin socket and HTTP are the control thread's: both
//! see the node through channels and the snapshot that is published here.

mod commands;
mod lives;
pub mod metered;
mod naming;
mod owner;
mod revive;
mod scrub;
mod shown;
mod slot;
mod spares;
pub(crate) mod survey;
pub(crate) mod volume;
mod word;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use blockdev::driver::run_shard;
use blockdev::Rt;
use moosefs::master::{
    Driver, FileState, Handle, MasterConfig, MasterEvent, MasterExecutor, MasterState,
};
use moosefs::proto::master::label_mask;
use moosefs::replicate::Replicator;
use moosefs::serve::{Meter, Operation, ServeConfig, Server};
use raid::witness::FileWitness;
use raid::Uuid;
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use crate::admin::Answer;
use crate::assemble::{self, Base};
use crate::config::{Config, Volume};
use crate::control::{Call, Command, Metrics, ShardPort, Snapshot, PUBLISH_INTERVAL};
use crate::data_path::DataPath;
use crate::dying;
use crate::events::{EventKind, EventLog};
use crate::exit::Failure;
use crate::histogram::Histogram;
use crate::model::{self, NodeState, Status};
use crate::netlink;
use crate::volumes::Volumes;
use lives::Lives;
use owner::NodeOwner;
use volume::{Shared, VolumeLife};

/// Registration waits so long for volumes that are still being opened, so that their chunks are in the list
/// rather than in a flood of news after it.
const OPEN_PATIENCE: Duration = Duration::from_secs(3);
/// Running chains get so long to end once the node stops.
const CHAIN_PATIENCE: Duration = Duration::from_millis(1500);

/// Commands that are done and wait for the snapshot that shows it.
const OBEYED_MAX: usize = 16;

/// A command that is done, with its answer.
type Obeyed = (Call, Result<Answer, Failure>);

/// See [`crate::ops::Ops::serve`].
pub fn serve(config: &Config, port: ShardPort) -> Result<(), Failure> {
    run_shard(|rt| run(rt, config.clone(), port))
        .map_err(|e| Failure::problem(format!("event loop: {e}")))?
}

/// A node at work.
struct Node {
    config: RefCell<Config>,
    volumes: Lives,
    shared: Shared,
    server: Rc<Server>,
    latency: Rc<ClientLatency>,
    master: Handle,
    listen: String,
    state: Cell<NodeState>,
}

async fn run(rt: Rt, config: Config, mut port: ShardPort) -> Result<(), Failure> {
    let data_path = DataPath::lock_patiently(&config.chunkserver.data_path, Uuid::random(&rt))?;
    let data_path = Rc::new(data_path);
    let witness = FileWitness::new(data_path.directory()).map_err(|e| {
        Failure::problem(format!(
            "data_path {}: {e}",
            data_path.directory().display()
        ))
    })?;
    let pool = assemble::pool(&config);
    let base = Base {
        rt: rt.clone(),
        pool,
    };
    let listener = listen(&config)?;
    let listen = listener
        .local_addr()
        .map_or_else(|_| String::new(), |address| address.to_string());
    let routed = Volumes::new(rt.clone());
    let metaid = Rc::new(Cell::new(None));
    let shared = Shared {
        base: base.clone(),
        data_path: data_path.clone(),
        witness: Rc::new(witness),
        events: port.events().clone(),
        volumes: routed.clone(),
        metaid: metaid.clone(),
    };
    let volumes = Lives::default();
    volumes.begin(&shared, &config);
    let (link_ends, storage_ends) = moosefs::master::channel::pair();
    let (driver, master) = master_driver(
        &config,
        &listen,
        &data_path,
        link_ends,
        port.events().clone(),
    )?;
    let connector = Rc::new(moosefs::net::TcpConnector);
    let serve_config = ServeConfig {
        options: options_told(&config),
        master: Some(master.clone()),
        ..ServeConfig::default()
    };
    let server = Server::new(
        routed.clone(),
        rt.clone(),
        base.pool.clone(),
        connector.clone(),
        serve_config,
    );
    let latency = Rc::new(ClientLatency::default());
    server.stats().set_meter(latency.clone());
    let node = Rc::new(Node {
        config: RefCell::new(config),
        volumes: volumes.clone(),
        shared,
        server: server.clone(),
        latency,
        master: master.clone(),
        listen,
        state: Cell::new(NodeState::Starting),
    });
    let watched = Rc::downgrade(&node);
    spawn_local(netlink::watch(rt.clone(), move || {
        watched.upgrade().map_or_else(Vec::new, |node| node.units())
    }));
    let accepting = spawn_local(moosefs::net::accept(listener, server, rt.clone()));
    port.publish(node.snapshot());
    wait_until_open(&rt, &node, &mut port).await;
    let csid = master.clone();
    let owner = Rc::new(NodeOwner {
        volumes,
        metaid,
        csid: Box::new(move || csid.status().csid),
    });
    let replicator = Replicator::new(routed.clone(), rt.clone(), base.pool.clone(), connector);
    let executor = MasterExecutor::new(routed, owner, replicator, rt.clone(), storage_ends);
    spawn_local(executor.run());
    let link = std::thread::Builder::new()
        .name("master".to_owned())
        .spawn(move || run_link(driver))
        .map_err(|e| Failure::problem(format!("master thread: {e}")))?;
    node.state.set(NodeState::Serving);
    let (obeyed, mut answers) = mpsc::channel::<Obeyed>(OBEYED_MAX);
    let mut obeyed_last: Option<Obeyed> = None;
    loop {
        naming::look(&node.config.borrow(), &node.volumes.slots());
        port.publish(node.snapshot());
        // Answered only now: whoever looks after his command was answered sees what it changed.
        if let Some((call, answer)) = obeyed_last.take() {
            call.answer(answer);
        }
        let call = tokio::select! { biased;
            Some(done) = answers.recv() => {
                obeyed_last = Some(done);
                continue;
            }
            call = port.next_call() => call,
            _ = rt.sleep(PUBLISH_INTERVAL) => continue,
        };
        let Some(call) = call else { break };
        match &call.command {
            Command::Stop => break,
            Command::Reload(new) => {
                node.reload((**new).clone()).await;
                call.answer(Ok(Answer::done("configuration taken over")));
            }
            Command::Admin(request) => {
                let (node, request, obeyed) = (node.clone(), request.clone(), obeyed.clone());
                spawn_local(async move {
                    let answer = node.obey(&request).await;
                    // A node that has stopped answers nobody.
                    let _ = obeyed.send((call, answer)).await;
                });
            }
        }
    }
    node.state.set(NodeState::Stopping);
    port.publish(node.snapshot());
    accepting.abort();
    node.stop(&rt).await;
    let _ = link.join();
    drop(data_path);
    Ok(())
}

/// Returns when every volume is open or has said why it is not, or after [`OPEN_PATIENCE`].
async fn wait_until_open(rt: &Rt, node: &Rc<Node>, port: &mut ShardPort) {
    let until = rt.now() + OPEN_PATIENCE;
    let are_settled = || {
        node.volumes
            .all()
            .iter()
            .all(|v| v.store.borrow().is_some())
    };
    while rt.now() < until && !are_settled() {
        rt.sleep(Duration::from_millis(5)).await;
        port.publish(node.snapshot());
    }
}

fn listen(config: &Config) -> Result<tokio::net::TcpListener, Failure> {
    let c = &config.chunkserver;
    let host = match c.listen_host.as_deref() {
        None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Some(host) => resolve(host).ok_or_else(|| {
            Failure::usage(format!(
                "csserv_listen_host: {host:?} is no IPv4 address of this machine"
            ))
        })?,
    };
    let address = SocketAddr::new(host, c.listen_port);
    dying::listen("data port", address, "csserv_listen_port", || {
        moosefs::net::listen(address)
    })
}

fn resolve(host: &str) -> Option<IpAddr> {
    use std::net::ToSocketAddrs;
    if let Ok(address) = host.parse() {
        return Some(address);
    }
    (host, 0)
        .to_socket_addrs()
        .ok()?
        .map(|a| a.ip())
        .find(IpAddr::is_ipv4)
}

fn master_config(config: &Config, listen: &str) -> Result<MasterConfig, Failure> {
    use moosefs::master::link::LinkConfig;
    let c = &config.chunkserver;
    let listening: SocketAddr = listen
        .parse()
        .map_err(|_| Failure::problem(format!("listen address {listen}")))?;
    let ip = match listening.ip() {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let link = LinkConfig {
        claim: moosefs::proto::CLAIMED_VERSION,
        listen: SocketAddrV4::new(ip, listening.port()),
        timeout_s: c
            .master_timeout
            .map_or(0, |t| u16::try_from(t.as_secs()).unwrap_or(u16::MAX)),
        labels: labels(&c.labels),
        auth_code: c
            .auth_code
            .as_ref()
            .map(|code| code.expose().as_bytes().to_vec()),
        options: options_told(config),
    };
    Ok(MasterConfig {
        masters: masters(config),
        bind: c.bind_host.as_deref().and_then(resolve),
        link,
    })
}

fn master_driver(
    config: &Config,
    listen: &str,
    data_path: &DataPath,
    ends: moosefs::master::channel::LinkEnds,
    events: EventLog,
) -> Result<(Driver, Handle), Failure> {
    let config = master_config(config, listen)?;
    let tell = move |event: MasterEvent| match event {
        MasterEvent::Connected { address, text } => {
            events.record(EventKind::MasterConnected, &address.to_string(), text);
        }
        MasterEvent::Lost { address, text } | MasterEvent::Refused { address, text } => {
            events.record(EventKind::MasterLost, &address.to_string(), text);
        }
    };
    let state = FileState::new(data_path.directory());
    Driver::new(config, ends, Box::new(state), Box::new(tell)).map_err(|e| {
        Failure::problem(format!(
            "data_path {}: {e}",
            data_path.directory().display()
        ))
    })
}

fn masters(config: &Config) -> Vec<(String, u16)> {
    config
        .chunkserver
        .master_hosts
        .iter()
        .map(|m| (m.host.clone(), m.port))
        .collect()
}

fn labels(letters: &[char]) -> u32 {
    label_mask(&letters.iter().collect::<String>())
}

/// What `GET_CONFIG` tells.
fn options_told(config: &Config) -> BTreeMap<String, String> {
    let c = &config.chunkserver;
    let labels: String = c.labels.iter().collect();
    let mut told = BTreeMap::from([
        ("LABELS".to_owned(), labels),
        ("CSSERV_LISTEN_PORT".to_owned(), c.listen_port.to_string()),
        ("DATA_PATH".to_owned(), c.data_path.display().to_string()),
    ]);
    if c.auth_code.is_some() {
        told.insert("AUTH_CODE".to_owned(), "[DEFINED]".to_owned());
    }
    told
}

/// The master's thread.
fn run_link(driver: Driver) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(driver.run()),
        Err(error) => tracing::error!(%error, "master thread"),
    }
}

/// Client latencies since the start.
#[derive(Default)]
struct ClientLatency {
    read: RefCell<Histogram>,
    write: RefCell<Histogram>,
}

impl Meter for ClientLatency {
    fn record(&self, operation: Operation, _bytes: u64, latency: Duration) {
        let histogram = match operation {
            Operation::Read => &self.read,
            Operation::Write => &self.write,
        };
        histogram.borrow_mut().record(latency);
    }
}

impl Node {
    /// The node as it is now.
    fn snapshot(&self) -> Snapshot {
        let mut metrics = Metrics::default();
        metrics
            .client_latency
            .insert("read", *self.latency.read.borrow());
        metrics
            .client_latency
            .insert("write", *self.latency.write.borrow());
        let volumes = self.volumes.all();
        let arrays: Vec<_> = volumes.iter().map(|v| v.array_snapshot()).collect();
        for (volume, array) in volumes.iter().zip(&arrays) {
            volume.measure(array.as_ref(), &mut metrics);
        }
        let mut path_events: Vec<_> = volumes
            .iter()
            .flat_map(|volume| volume.path_events())
            .collect();
        path_events.sort_by(|a, b| a.time.cmp(&b.time));
        Snapshot {
            status: self.status(&volumes, &arrays),
            path_events,
            metrics,
        }
    }

    fn status(&self, lives: &[Rc<VolumeLife>], arrays: &[Option<raid::ArraySnapshot>]) -> Status {
        let volumes = || lives.iter().zip(arrays);
        let first = self.config.borrow();
        let configured = first
            .chunkserver
            .master_hosts
            .first()
            .map_or_else(String::new, ToString::to_string);
        let stats = self.server.stats();
        Status {
            state: self.state.get(),
            master: master_model(&self.master, configured),
            volumes: volumes()
                .map(|(volume, array)| volume.volume_model(array.as_ref()))
                .collect(),
            arrays: volumes()
                .map(|(volume, array)| volume.array_model(array.as_ref()))
                .collect(),
            devices: lives.iter().flat_map(|v| v.device_models()).collect(),
            clients: model::Clients {
                connections: u64::from(stats.connections.get()),
                read_ios: stats.read_ios.get(),
                write_ios: stats.write_ios.get(),
                read_bytes: stats.read_bytes.get(),
                write_bytes: stats.write_bytes.get(),
            },
            ..Status::starting(
                env!("CARGO_PKG_VERSION"),
                std::process::id(),
                &self.listen,
                "",
            )
        }
    }

    /// The units of all volumes, as far as they are there.
    fn units(&self) -> Vec<Rc<mpath::MultipathDevice>> {
        let slots = self.volumes.slots();
        slots.iter().filter_map(|slot| slot.unit()).collect()
    }

    async fn reload(&self, new: Config) {
        // A name of bind_host is looked up, which may take its time.
        let (config, listen) = (new.clone(), self.listen.clone());
        let looked_up = tokio::task::spawn_blocking(move || master_config(&config, &listen)).await;
        match looked_up.unwrap_or_else(|e| Err(Failure::problem(e.to_string()))) {
            Ok(config) => self.master.reconfigure(config).await,
            Err(failure) => tracing::error!("masters: {failure}"),
        }
        for volume in self.volumes.all() {
            if let Some(changed) = new.volume(&volume.config.name) {
                volume.set_mark(changed.state);
            }
        }
        for slot in self.volumes.slots() {
            let name = &slot.device.name;
            let in_mirror = |v: &Volume| v.legs.len() > 1 && v.legs.contains(name);
            if let Some(device) = new.device(name) {
                slot.reconfigure(device, new.volumes.iter().any(in_mirror));
            }
        }
        self.volumes.begin(&self.shared, &new);
        *self.config.borrow_mut() = new;
    }

    /// No new requests; chains end; volumes are flushed and left clean; the master is told.
    async fn stop(&self, rt: &Rt) {
        self.server.stop();
        let until = rt.now() + CHAIN_PATIENCE;
        while rt.now() < until && self.server.stats().connections.get() > 0 {
            rt.sleep(Duration::from_millis(5)).await;
        }
        self.master.leave().await;
        for volume in self.volumes.all() {
            volume.stop().await;
        }
    }
}

fn master_model(master: &Handle, configured: String) -> model::Master {
    let status = master.status();
    model::Master {
        state: match status.state {
            MasterState::Connecting => model::MasterState::Connecting,
            MasterState::Waiting => model::MasterState::Waiting,
            MasterState::Registered => model::MasterState::Registered,
            MasterState::Refused => model::MasterState::Refused,
        },
        address: status
            .address
            .map_or(configured, |address| address.to_string()),
        version: status.version.map(|version| version.to_string()),
        csid: Some(status.csid).filter(|&csid| csid != 0),
        metaid: Some(status.metaid)
            .filter(|&id| id != 0)
            .map(|id| format!("{id:016x}")),
        last_error: status.last_error,
    }
}
