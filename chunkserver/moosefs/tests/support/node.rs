//! A whole node with chunks in memory and real sockets: control thread and shard thread, as in
//! production; optionally inside a network namespace.

use blockdev::driver::run_shard;
use blockdev::Pool;
use chunk_api::{Chunks, Report};
use moosefs::master::executor::{Ownership, Unowned};
use moosefs::master::link::LinkConfig;
use moosefs::master::state::MemoryState;
use moosefs::master::{
    channel, Driver, Handle, Identity, MasterConfig, MasterEvent, MasterExecutor, MasterState,
};
use moosefs::mem::MemChunks;
use moosefs::net::{accept, listen, TcpConnector};
use moosefs::proto::CLAIMED_VERSION;
use moosefs::replicate::Replicator;
use moosefs::serve::{ServeConfig, Server};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;

pub(crate) struct Setup {
    pub(crate) masters: Vec<SocketAddr>,
    pub(crate) listen: SocketAddrV4,
    pub(crate) auth_code: Option<String>,
    pub(crate) identity: Identity,
    pub(crate) namespace: Option<String>,
    /// Chunks held at start, by id, version 1.
    pub(crate) held: u64,
}

impl Setup {
    pub(crate) fn new(masters: &[SocketAddr], listen: SocketAddrV4) -> Setup {
        Setup {
            masters: masters.to_vec(),
            listen,
            auth_code: None,
            identity: Identity::default(),
            namespace: None,
            held: 0,
        }
    }
}

/// What a test asks of the shard.
pub(crate) type Job = Box<dyn FnOnce(&Rc<MemChunks>) + Send>;

pub(crate) struct Node {
    pub(crate) handle: Handle,
    pub(crate) config: MasterConfig,
    pub(crate) listen: SocketAddrV4,
    pub(crate) events: Arc<Mutex<Vec<MasterEvent>>>,
    jobs: Option<mpsc::UnboundedSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    control_stop: Option<mpsc::Sender<()>>,
}

fn enter(namespace: &Option<String>) {
    if let Some(name) = namespace {
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

impl Node {
    pub(crate) fn start(setup: Setup) -> Node {
        let masters = setup
            .masters
            .iter()
            .map(|m| (m.ip().to_string(), m.port()))
            .collect();
        let (listening, address) = std::sync::mpsc::channel();
        let (link_ends, storage_ends) = channel::pair();
        let (jobs, mut jobs_in) = mpsc::unbounded_channel::<Job>();
        let events = Arc::new(Mutex::new(Vec::new()));
        let namespace = setup.namespace.clone();
        let shard = std::thread::spawn(move || {
            enter(&namespace);
            run_shard(|rt| async move {
                let pool = Pool::new(64 << 20);
                let chunks = MemChunks::new(rt.clone(), pool.clone(), 4 << 30);
                for id in 1..=setup.held {
                    let made = chunks.create(chunk_api::ChunkId(id), chunk_api::ChunkVersion(1));
                    made.await.unwrap();
                }
                let connector = Rc::new(TcpConnector);
                let (c, p) = (chunks.clone(), pool.clone());
                let replicator = Replicator::new(c, rt.clone(), p, connector.clone());
                let owner: Rc<dyn Ownership> = Rc::new(Unowned);
                let c = chunks.clone();
                let executor = MasterExecutor::new(c, owner, replicator, rt.clone(), storage_ends);
                let executor = tokio::task::spawn_local(executor.run());
                let config = ServeConfig::default();
                let server = Server::new(chunks.clone(), rt.clone(), pool, connector, config);
                let listener = listen(setup.listen.into()).unwrap();
                listening.send(listener.local_addr().unwrap()).unwrap();
                tokio::task::spawn_local(accept(listener, server, rt));
                while let Some(job) = jobs_in.recv().await {
                    job(&chunks);
                }
                executor.abort();
            })
            .unwrap();
        });
        let SocketAddr::V4(listen) = address.recv().unwrap() else {
            panic!("listens by IPv6")
        };
        let link = LinkConfig {
            claim: CLAIMED_VERSION,
            listen,
            timeout_s: 0,
            labels: 1,
            auth_code: setup.auth_code.map(String::into_bytes),
            options: BTreeMap::new(),
        };
        let config = MasterConfig {
            masters,
            bind: None,
            link,
        };
        let begun_with = config.clone();
        let told = events.clone();
        let tell = Box::new(move |event| told.lock().unwrap().push(event));
        let state = Box::new(MemoryState(setup.identity));
        let (driver, handle) = Driver::new(config, link_ends, state, tell).unwrap();
        let (control_stop, mut stop) = mpsc::channel(1);
        let namespace = setup.namespace;
        let control = std::thread::spawn(move || {
            enter(&namespace);
            runtime().block_on(async move {
                tokio::select! { biased;
                    _ = stop.recv() => {}
                    () = driver.run() => {}
                }
            });
        });
        Node {
            handle,
            config: begun_with,
            listen,
            events,
            jobs: Some(jobs),
            threads: vec![control, shard],
            control_stop: Some(control_stop),
        }
    }

    pub(crate) fn on_shard(&self, job: impl FnOnce(&Rc<MemChunks>) + Send + 'static) {
        assert!(self.jobs.as_ref().unwrap().send(Box::new(job)).is_ok());
    }

    pub(crate) fn report(&self, report: Report) {
        self.on_shard(move |chunks| chunks.reports().push(report));
    }

    /// Waits, at most half a minute, until the link is in this state.
    pub(crate) async fn until(&self, state: MasterState) {
        let mut watch = self.handle.watch();
        let wait = async { watch.wait_for(|status| status.state == state).await.is_ok() };
        let reached = tokio::time::timeout(Duration::from_secs(30), wait).await;
        assert!(
            reached == Ok(true),
            "not {state} within 30 s: {:?}",
            self.handle.status()
        );
    }

    /// Ends without a word, as by SIGKILL.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.jobs = None;
        self.control_stop = None;
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "a thread of the node panicked"
            );
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}
