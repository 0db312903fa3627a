//! Between the control plane and the data plane.
//!
//! The control thread (admin socket, HTTP, signals) never waits for disk I/O and never touches the objects of
//! a shard: the shard *publishes* a [`Snapshot`] (every [`PUBLISH_INTERVAL`], and at each change of state that
//! a person would wait for), and commands go to it through a bounded channel as [`Call`]s that it answers in
//! its own time. [`Plane`] is the control side, [`ShardPort`] the shard's. Neither side blocks the other: a
//! shard that hangs leaves a snapshot that grows old, which `status` shows, and commands that end with
//! status 3.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::admin::{Answer, Request, ANSWER_DEADLINE};
use crate::clock::Clock;
use crate::config::{Config, Fate, Reload};
use crate::events::{EventKind, EventLog};
use crate::exit::Failure;
use crate::histogram::Histogram;
use crate::model::{
    Arrays, Clients, Latency, NodeState, PathEvent, PathEvents, Paths, Rates, Status,
};

/// How often a shard publishes when nothing happens.
pub const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);
/// Commands that wait for the data plane; beyond it they are refused.
const CALLS_MAX: usize = 64;
/// Rates and latencies are taken over about this long.
const WINDOW: Duration = Duration::from_secs(10);
/// And compared with the state of the last of these steps.
const WINDOW_STEP: Duration = Duration::from_secs(1);
/// A snapshot older than this is said to be old.
const STALE_AFTER: Duration = Duration::from_secs(5);

/// Counters that only metrics and latencies show.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Client latencies by operation: `read`, `write`.
    pub client_latency: BTreeMap<&'static str, Histogram>,
    /// Device latencies by device and operation: `read`, `write`, `flush`.
    pub device_latency: BTreeMap<(String, &'static str), Histogram>,
    /// Bytes copied by syncs since the start, by volume and device.
    pub sync_copied_bytes: BTreeMap<(String, String), u64>,
}

/// What a shard publishes. `status.events`, `rates`, `latencies` and `uptime_s` are filled in when it is read.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Everything but the above.
    pub status: Status,
    /// Requests that took more than one path, oldest first.
    pub path_events: Vec<PathEvent>,
    /// Counters for metrics.
    pub metrics: Metrics,
}

/// What the data plane is asked to do.
#[derive(Debug)]
pub enum Command {
    /// A changing request, or one that needs to look at more than the snapshot.
    Admin(Request),
    /// Take over what can be changed while serving.
    Reload(Box<Config>),
    /// Finish what runs, flush, leave the master, and end.
    Stop,
}

/// A command with the way back. Dropping it answers "was not done".
#[derive(Debug)]
pub struct Call {
    /// What to do.
    pub command: Command,
    reply: oneshot::Sender<Result<Answer, Failure>>,
}

impl Call {
    /// Answers. Nobody may be waiting any longer; that is no error.
    pub fn answer(self, result: Result<Answer, Failure>) {
        let _ = self.reply.send(result);
    }
}

/// What the snapshots were some seconds ago.
#[derive(Debug, Clone)]
struct Past {
    at: Duration,
    clients: Clients,
    metrics: Metrics,
}

#[derive(Debug)]
struct Board {
    snapshot: Arc<Snapshot>,
    published: Duration,
    past: VecDeque<Past>,
}

/// The shared cell.
#[derive(Debug)]
struct Shared {
    board: Mutex<Board>,
    events: EventLog,
    clock: Clock,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        // Nothing that runs under the lock leaves it half done.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The control side.
#[derive(Debug)]
pub struct Plane {
    shared: Arc<Shared>,
    calls: mpsc::Sender<Call>,
}

/// The shard's side. One for each node: a shard that serves others' objects as well publishes for all.
#[derive(Debug)]
pub struct ShardPort {
    shared: Arc<Shared>,
    calls: mpsc::Receiver<Call>,
}

/// Both sides. `first` is shown until the shard publishes.
pub fn channel(first: Status, events: EventLog, clock: Clock) -> (Arc<Plane>, ShardPort) {
    let (sender, calls) = mpsc::channel(CALLS_MAX);
    let snapshot = Snapshot {
        status: first,
        path_events: Vec::new(),
        metrics: Metrics::default(),
    };
    let board = Board {
        snapshot: Arc::new(snapshot),
        published: clock.elapsed(),
        past: VecDeque::new(),
    };
    let shared = Arc::new(Shared {
        board: Mutex::new(board),
        events,
        clock,
    });
    (
        Arc::new(Plane {
            shared: shared.clone(),
            calls: sender,
        }),
        ShardPort { shared, calls },
    )
}

impl ShardPort {
    /// Replaces the snapshot. Takes a lock for the time of a pointer's exchange.
    pub fn publish(&self, snapshot: Snapshot) {
        let now = self.shared.clock.elapsed();
        let snapshot = Arc::new(snapshot);
        let mut board = self.shared.board();
        if board
            .past
            .back()
            .is_none_or(|p| now.saturating_sub(p.at) >= WINDOW_STEP)
        {
            while board
                .past
                .front()
                .is_some_and(|p| now.saturating_sub(p.at) > WINDOW)
            {
                board.past.pop_front();
            }
            board.past.push_back(Past {
                at: now,
                clients: snapshot.status.clients.clone(),
                metrics: snapshot.metrics.clone(),
            });
        }
        board.snapshot = snapshot;
        board.published = now;
    }

    /// The next command; `None` once the control plane is gone. Cancel-safe.
    pub async fn next_call(&mut self) -> Option<Call> {
        self.calls.recv().await
    }

    /// Where to record events.
    pub fn events(&self) -> &EventLog {
        &self.shared.events
    }
}

impl Plane {
    /// The snapshot as published.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.board().snapshot.clone()
    }

    /// Where to record events.
    pub fn events(&self) -> &EventLog {
        &self.shared.events
    }

    /// Everything on one page.
    pub fn status(&self) -> Status {
        let now = self.shared.clock.elapsed();
        let (snapshot, published, past) = {
            let board = self.shared.board();
            (
                board.snapshot.clone(),
                board.published,
                board.past.front().cloned(),
            )
        };
        let mut status = snapshot.status.clone();
        status.uptime_s = (now.as_secs_f64() * 1000.0).round() / 1000.0;
        status.events = self.shared.events.recent();
        if let Some(past) = past {
            let window = published.saturating_sub(past.at);
            (status.rates, status.latencies) = lately(&snapshot, &past, window);
        }
        let age = now.saturating_sub(published);
        if age > STALE_AFTER && status.state != NodeState::Starting {
            status.note = Some(format!(
                "the data plane has said nothing for {} s: what stands here is old",
                age.as_secs()
            ));
        }
        status
    }

    /// Devices with their paths.
    pub fn paths(&self) -> Paths {
        Paths {
            devices: self.snapshot().status.devices.clone(),
        }
    }

    /// Requests that took more than one path.
    pub fn path_events(&self) -> PathEvents {
        PathEvents {
            events: self.snapshot().path_events.clone(),
        }
    }

    /// Arrays.
    pub fn arrays(&self) -> Arrays {
        Arrays {
            arrays: self.snapshot().status.arrays.clone(),
        }
    }

    /// Has a request done by the data plane. Status 3 if it does not answer in time.
    pub async fn command(&self, request: Request) -> Result<Answer, Failure> {
        let late = || {
            Failure::unreachable(format!(
                "the data plane did not answer within {} s; the command may still take effect",
                ANSWER_DEADLINE.as_secs()
            ))
        };
        let answer = self.send(Command::Admin(request))?;
        match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
            Err(_) => Err(late()),
            Ok(Err(_)) => Err(Failure::problem(
                "the data plane is stopping: the command was not done",
            )),
            Ok(Ok(result)) => result,
        }
    }

    /// Sends a command and does not wait. Refused when too many wait already or the data plane is gone.
    pub fn send(
        &self,
        command: Command,
    ) -> Result<oneshot::Receiver<Result<Answer, Failure>>, Failure> {
        let (reply, answer) = oneshot::channel();
        match self.calls.try_send(Call { command, reply }) {
            Ok(()) => Ok(answer),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Failure::unreachable(
                "too many commands wait for the data plane",
            )),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Err(Failure::unreachable("the data plane has ended"))
            }
        }
    }

    /// Hands what `new` changes to the data plane, says what needs a restart, and returns the configuration that is
    /// in effect from then on.
    pub fn reload(&self, old: &Config, new: Config) -> Result<Config, Failure> {
        let file = new.path.display().to_string();
        let reload = Reload::plan(old, new);
        // The answer is of no use here: what goes wrong with a device or volume is an event of its own.
        drop(self.send(Command::Reload(Box::new(reload.config.clone())))?);
        for key in reload.keys(Fate::AtRestart) {
            tracing::warn!("needs restart: {key}");
        }
        self.events()
            .record(EventKind::ConfigReloaded, &file, reload.summary());
        Ok(reload.config)
    }
}

/// Rates and latencies since `past`.
fn lately(snapshot: &Snapshot, past: &Past, window: Duration) -> (Rates, Vec<Latency>) {
    let seconds = window.as_secs_f64();
    if seconds <= 0.0 {
        return (Rates::default(), Vec::new());
    }
    let (now, then) = (&snapshot.status.clients, &past.clients);
    let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
    let rates = Rates {
        window_s: (seconds * 1000.0).round() / 1000.0,
        read_iops: rate(now.read_ios, then.read_ios),
        write_iops: rate(now.write_ios, then.write_ios),
        read_bytes_per_s: rate(now.read_bytes, then.read_bytes) as u64,
        write_bytes_per_s: rate(now.write_bytes, then.write_bytes) as u64,
    };
    let mut latencies = Vec::new();
    let mut add = |object: &str, op: &str, now: &Histogram, then: Option<&Histogram>| {
        let recent = then.map_or(*now, |t| now.since(t));
        if let (Some(p50_us), Some(p99_us)) = (recent.quantile_us(0.5), recent.quantile_us(0.99)) {
            latencies.push(Latency {
                object: object.to_owned(),
                op: op.to_owned(),
                ios: recent.count(),
                p50_us,
                p99_us,
            });
        }
    };
    for (op, now) in &snapshot.metrics.client_latency {
        add("clients", op, now, past.metrics.client_latency.get(op));
    }
    for (key, now) in &snapshot.metrics.device_latency {
        add(&key.0, key.1, now, past.metrics.device_latency.get(key));
    }
    (rates, latencies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn rates_and_latencies_are_of_the_last_seconds() {
        let ms = Arc::new(AtomicU64::new(0));
        let shown = ms.clone();
        let clock = Clock::by(move || {
            (
                Timestamp(0),
                Duration::from_millis(shown.load(Ordering::Relaxed)),
            )
        });
        let first = Status::starting("0.1.0", 1, "*:9422", "m:9420");
        let (plane, port) = channel(first.clone(), EventLog::new(clock.clone()), clock);
        assert_eq!(plane.status().rates, Rates::default());
        let mut snapshot = Snapshot {
            status: first,
            path_events: vec![],
            metrics: Metrics::default(),
        };
        for second in 0..30u64 {
            ms.store(second * 1000, Ordering::Relaxed);
            snapshot.status.clients.read_ios = second * 100;
            let read = snapshot.metrics.client_latency.entry("read").or_default();
            read.record(Duration::from_micros(if second < 10 {
                100_000
            } else {
                100
            }));
            port.publish(snapshot.clone());
        }
        let status = plane.status();
        assert_eq!(status.rates.read_iops, 100.0);
        assert!((9.0..=11.0).contains(&status.rates.window_s));
        assert_eq!(status.latencies.len(), 1);
        assert_eq!(
            (status.latencies[0].p50_us, status.latencies[0].p99_us),
            (128, 128)
        );
        assert_eq!((status.uptime_s, &status.note), (29.0, &None));
        ms.store(60_000, Ordering::Relaxed);
        assert_eq!(plane.status().note, None, "it is still starting");
        snapshot.status.state = NodeState::Serving;
        port.publish(snapshot);
        ms.store(66_000, Ordering::Relaxed);
        assert!(plane
            .status()
            .note
            .is_some_and(|n| n.contains("nothing for 6 s")));
    }

    #[test]
    fn commands_reach_the_shard_and_come_back() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(async {
            let clock = Clock::system();
            let first = Status::starting("0.1.0", 1, "*:9422", "m:9420");
            let (plane, mut port) = channel(first, EventLog::new(clock.clone()), clock);
            let ask = || {
                let plane = plane.clone();
                tokio::spawn(async move { plane.command(Request::QuarantineList {}).await })
            };
            let asked = ask();
            port.next_call()
                .await
                .unwrap()
                .answer(Ok(Answer::done("x")));
            assert_eq!(asked.await.unwrap(), Ok(Answer::done("x")));
            // Dropped: not done.
            let asked = ask();
            drop(port.next_call().await);
            assert_eq!(
                asked.await.unwrap().unwrap_err().exit,
                crate::exit::ExitStatus::Problem
            );
            // Silent: status 3 after the deadline (virtual time).
            let asked = ask();
            let held = port.next_call().await;
            assert_eq!(
                asked.await.unwrap().unwrap_err().exit,
                crate::exit::ExitStatus::Unreachable
            );
            drop((held, port));
            let gone = plane.command(Request::QuarantineList {}).await;
            assert_eq!(gone.unwrap_err().exit, crate::exit::ExitStatus::Unreachable);
        });
    }
}
