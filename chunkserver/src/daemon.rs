//! The control thread of `antler serve`: admin socket, HTTP, signals, and news to the service manager.
//!
//! [`Daemon::start`] binds what must be bound (so that a taken port is an error at the start, not a log line
//! later) and runs the rest on a thread of its own. SIGTERM and SIGINT ask the data plane to stop and give it
//! [`STOP_DEADLINE`]; SIGHUP reads the configuration again. READY is sent when the node is registered, or
//! [`READY_DEADLINE`] after the start, so that a service does not fail for want of a master.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::oneshot;

use crate::admin::server::AdminSocket;
use crate::clock::Clock;
use crate::config::{self, Config, Environment};
use crate::control::{channel, Command, Plane, ShardPort};
use crate::events::EventLog;
use crate::exit::Failure;
use crate::http::HttpServer;
use crate::model::{MasterState, Status};
use crate::system::Notifier;

/// The data plane ends within this after SIGTERM; the rest is replayed at the next start.
pub const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// READY is sent no later.
pub const READY_DEADLINE: Duration = Duration::from_secs(10);
/// How often the snapshot is looked at for news.
const NEWS_INTERVAL: Duration = Duration::from_millis(100);

/// The running control thread.
#[derive(Debug)]
pub struct Daemon {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    plane: Arc<Plane>,
    http: Option<std::net::SocketAddr>,
}

impl Daemon {
    /// Binds the admin socket and HTTP and starts the thread. The second value is for the data plane.
    pub fn start(config: &Config) -> Result<(Daemon, ShardPort), Failure> {
        let clock = Clock::system();
        let events = EventLog::new(clock.clone());
        let c = &config.chunkserver;
        let listen = format!(
            "{}:{}",
            c.listen_host.as_deref().unwrap_or("*"),
            c.listen_port
        );
        let master = c
            .master_hosts
            .first()
            .map_or_else(String::new, ToString::to_string);
        let first = Status::starting(
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            &listen,
            &master,
        );
        let (plane, port) = channel(first, events, clock);
        let admin = AdminSocket::bind(&config.admin.socket)?;
        let environment = Environment::here();
        let server = match config.admin.http {
            Some(address) => Some(HttpServer::bind(address, &environment.host_name)?),
            None => None,
        };
        let http = server.as_ref().and_then(|s| s.address().ok());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::problem(format!("control thread: {e}")))?;
        let (stop, stopped) = oneshot::channel();
        let context = Context {
            plane: plane.clone(),
            config: config.clone(),
            environment,
        };
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || runtime.block_on(run(context, admin, server, stopped)))
            .map_err(|e| Failure::problem(format!("control thread: {e}")))?;
        Ok((
            Daemon {
                stop: Some(stop),
                thread: Some(thread),
                plane,
                http,
            },
            port,
        ))
    }

    /// The control side, for those who look at the node from the same process.
    pub fn plane(&self) -> &Arc<Plane> {
        &self.plane
    }

    /// Where HTTP is served.
    pub fn http(&self) -> Option<std::net::SocketAddr> {
        self.http
    }
}

impl Drop for Daemon {
    /// Ends the thread and removes the admin socket.
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has said by its panic hook why it ended early.
            let _ = thread.join();
        }
    }
}

struct Context {
    plane: Arc<Plane>,
    config: Config,
    environment: Environment,
}

async fn run(
    context: Context,
    mut admin: AdminSocket,
    http: Option<HttpServer>,
    stopped: oneshot::Receiver<()>,
) {
    let plane = context.plane.clone();
    if let Some(server) = http {
        tokio::spawn(server.serve(plane.clone()));
    }
    let notifier = Arc::new(Notifier::from_environment());
    tokio::spawn(news(plane.clone(), notifier.clone()));
    tokio::select! { biased;
        _ = stopped => {}
        () = signals(context, notifier) => {}
        () = admin.serve(plane) => {}
    }
}

/// Tells the service manager when the node is ready, and then how it stands.
async fn news(plane: Arc<Plane>, notifier: Arc<Notifier>) {
    let mut waited = Duration::ZERO;
    loop {
        let registered = plane.snapshot().status.master.state == MasterState::Registered;
        if registered || waited >= READY_DEADLINE {
            break;
        }
        tokio::time::sleep(NEWS_INTERVAL).await;
        waited += NEWS_INTERVAL;
    }
    let mut told = None;
    loop {
        let state = plane.snapshot().status.master.state;
        if told != Some(state) {
            let status = match state {
                MasterState::Registered => "registered",
                MasterState::Refused => "refused by master",
                MasterState::Connecting | MasterState::Waiting => "waiting for master",
            };
            let ready = if told.is_none() { "READY=1\n" } else { "" };
            notifier.tell(&format!("{ready}STATUS={status}"));
            told = Some(state);
        }
        tokio::time::sleep(NEWS_INTERVAL).await;
    }
}

/// Handles signals for ever; ends the process when the data plane does not stop in time.
async fn signals(mut context: Context, notifier: Arc<Notifier>) {
    let signals = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    );
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) = signals else {
        tracing::error!("signals cannot be handled");
        return std::future::pending().await;
    };
    loop {
        let stop = tokio::select! { biased;
            _ = term.recv() => true,
            _ = int.recv() => true,
            _ = hup.recv() => false,
        };
        if stop {
            break;
        }
        notifier.tell("STATUS=reading the configuration again");
        reload(&mut context);
    }
    notifier.tell("STOPPING=1");
    tracing::info!("stopping");
    if let Err(e) = context.plane.send(Command::Stop) {
        tracing::debug!("stop: {e}"); // it is ending already
    }
    tokio::select! { biased;
        () = tokio::time::sleep(STOP_DEADLINE) => {}
        // A person who asks twice does not want to wait.
        _ = int.recv() => {}
    }
    tracing::warn!(
        "not finished after {} s; the next start replays the rest",
        STOP_DEADLINE.as_secs()
    );
    let _ = std::fs::remove_file(&context.config.admin.socket);
    std::process::exit(0);
}

/// Reads the file again; with an error in it everything stays as it is.
fn reload(context: &mut Context) {
    let path: PathBuf = context.config.path.clone();
    let loaded = config::load(&path, &context.environment);
    for problem in &loaded.errors {
        tracing::error!("{problem}");
    }
    for problem in &loaded.warnings {
        tracing::warn!("{problem}");
    }
    let Some(new) = loaded.config else {
        tracing::error!(
            "{}: not taken over; the former configuration stays",
            path.display()
        );
        return;
    };
    match context.plane.reload(&context.config, new) {
        Ok(in_effect) => context.config = in_effect,
        Err(e) => tracing::error!("reload: {e}"),
    }
}
