//! On the shard's thread: carries the master's orders out.
//!
//! Commands on one chunk take effect in the master's order, because each call into
//! [`Chunks`] fixes its place before it returns; their answers go back as they come. At most
//! [`COMMANDS_IN_FLIGHT_MAX`] run at a time; beyond them orders wait in the channel and then in
//! the master's socket.
//!
//! A list is made only when no command of an earlier connection is still running (replications
//! apart, which make chunks that nobody has seen): a version told while its change is under way
//! would be outdated, and an outdated copy is deleted.

use super::channel::{Facts, News, Order, StorageEnds};
use crate::proto::info::Question;
use crate::proto::master::Command;
use crate::proto::status;
use crate::replicate::Replicator;
use crate::serve::info;
use blockdev::{LocalFuture, Rt};
use chunk_api::{ChunkEntry, ChunkError, Chunks, Report, ReportQueue};
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{mpsc, Semaphore};

/// Commands carried out at a time.
pub const COMMANDS_IN_FLIGHT_MAX: u32 = 256;
/// Replications at a time (the master's own limit is far lower).
pub const REPLICATIONS_MAX: u32 = 32;
const FACTS_EVERY: Duration = Duration::from_secs(1);
const REPORTS_PER_BATCH: usize = 25_000;

/// Storage belongs to one file system.
pub trait Ownership {
    /// A master of file system `metaid` has accepted us. Volumes that hold no chunk and no metaid
    /// take it, durably before `Ok`; a volume that holds chunks of another file system, or chunks
    /// and no metaid, is left out of the inventory. `Err` (for people) if no chunk of ours may be
    /// told to this master at all.
    fn adopt_metaid(&self, metaid: u64) -> LocalFuture<Result<(), String>>;
}

/// Storage that belongs to whoever asks: for tests and load generators.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unowned;

impl Ownership for Unowned {
    fn adopt_metaid(&self, _metaid: u64) -> LocalFuture<Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// See the module.
pub struct MasterExecutor {
    chunks: Rc<dyn Chunks>,
    owner: Rc<dyn Ownership>,
    replicator: Rc<Replicator>,
    rt: Rt,
    ends: StorageEnds,
}

struct Shared {
    chunks: Rc<dyn Chunks>,
    news: mpsc::Sender<News>,
    epoch: Cell<u64>,
    commands: Arc<Semaphore>,
    replications: Arc<Semaphore>,
}

impl MasterExecutor {
    /// Runs nothing yet.
    pub fn new(
        chunks: Rc<dyn Chunks>,
        owner: Rc<dyn Ownership>,
        replicator: Rc<Replicator>,
        rt: Rt,
        ends: StorageEnds,
    ) -> MasterExecutor {
        MasterExecutor {
            chunks,
            owner,
            replicator,
            rt,
            ends,
        }
    }

    /// Runs until the link is gone. One task: the list and the reports share their waker.
    pub async fn run(self) {
        let MasterExecutor {
            chunks,
            owner,
            replicator,
            rt,
            ends,
        } = self;
        let StorageEnds {
            mut orders,
            news,
            facts,
        } = ends;
        let shared = Rc::new(Shared {
            chunks: chunks.clone(),
            news,
            epoch: Cell::new(0),
            commands: Arc::new(Semaphore::new(COMMANDS_IN_FLIGHT_MAX as usize)),
            replications: Arc::new(Semaphore::new(REPLICATIONS_MAX as usize)),
        });
        let publish = async {
            loop {
                let busy = COMMANDS_IN_FLIGHT_MAX as usize - shared.commands.available_permits();
                let now = Facts {
                    space: chunks.space(),
                    load: busy as u32,
                };
                facts.send_if_modified(|told| told.replace(now) != Some(now));
                rt.sleep(FACTS_EVERY).await;
            }
        };
        let carry_out = async {
            while let Some(order) = orders.recv().await {
                match order {
                    Order::List { epoch, metaid } => shared.list(epoch, metaid, &*owner).await,
                    Order::Command { epoch, command } => {
                        shared.command(epoch, command, &replicator, &rt).await;
                    }
                    Order::Question { epoch, question } => {
                        shared.question(epoch, question, &rt).await;
                    }
                }
            }
        };
        tokio::select! { biased;
            () = carry_out => {}
            () = shared.tell_reports() => {}
            () = publish => {}
        }
    }
}

impl Shared {
    async fn list(&self, epoch: u64, metaid: u64, owner: &dyn Ownership) {
        let all = self.commands.acquire_many(COMMANDS_IN_FLIGHT_MAX).await;
        let all = all.expect("the semaphore is never closed");
        let chunks = match owner.adopt_metaid(metaid).await {
            Ok(()) => Ok(self.inventory(epoch).await),
            Err(why) => Err(why),
        };
        drop(all);
        // A link that is gone needs no list.
        let _ = self.news.send(News::Inventory { epoch, chunks }).await;
    }

    /// The list, and with it a new epoch: what was reported before and is not yet told is in it,
    /// except damage.
    async fn inventory(&self, epoch: u64) -> Vec<ChunkEntry> {
        let queue = self.chunks.reports();
        let mut damage = Vec::new();
        poll_fn(|cx| {
            while let Poll::Ready(report) = queue.poll_next(cx) {
                if matches!(report, Report::Damaged(_)) {
                    damage.push(report);
                }
            }
            Poll::Ready(())
        })
        .await;
        queue.overflowed();
        damage.into_iter().for_each(|report| queue.push(report));
        self.epoch.set(epoch);
        self.chunks.inventory()
    }

    async fn tell_reports(&self) {
        let queue: Rc<ReportQueue> = self.chunks.reports();
        loop {
            let mut reports = Vec::new();
            poll_fn(|cx| loop {
                match queue.poll_next(cx) {
                    Poll::Ready(report) => reports.push(report),
                    Poll::Pending if reports.is_empty() => return Poll::Pending,
                    Poll::Pending => return Poll::Ready(()),
                }
                if reports.len() == REPORTS_PER_BATCH {
                    return Poll::Ready(());
                }
            })
            .await;
            let batch = News::Reports {
                epoch: self.epoch.get(),
                reports,
            };
            if self.news.send(batch).await.is_err() {
                return;
            }
            if queue.overflowed() && self.news.send(News::RegisterAgain).await.is_err() {
                return;
            }
        }
    }

    async fn command(
        self: &Rc<Self>,
        epoch: u64,
        command: Command,
        replicator: &Rc<Replicator>,
        rt: &Rt,
    ) {
        let gate = match command {
            Command::Replicate { .. } => &self.replications,
            _ => &self.commands,
        };
        let permit = gate
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        // Begun here, in the master's order; waited for in a task of its own.
        let running = self.begin(command, replicator);
        let shared = self.clone();
        rt.spawn(async move {
            let status = running.await.err().unwrap_or(status::OK);
            drop(permit);
            if status != status::OK {
                tracing::debug!(?command, status, "order failed");
            }
            if let (Command::Replicate { id, version, .. }, status::OK) = (command, status) {
                if shared.epoch.get() != epoch {
                    // The list of the present connection may have been made without it.
                    let removing = false;
                    shared.chunks.reports().push(Report::New {
                        id,
                        version,
                        removing,
                    });
                }
            }
            let _ = shared
                .news
                .send(News::Answer {
                    epoch,
                    frame: command.answer(status),
                })
                .await;
        });
    }

    fn begin(&self, command: Command, replicator: &Replicator) -> LocalFuture<Result<(), u8>> {
        let chunks = &self.chunks;
        let reply = match command {
            Command::Create { id, version } => chunks.create(id, version),
            Command::Delete { id, version } => chunks.delete(id, version),
            Command::Duplicate {
                new_id,
                new_version,
                old_id,
                old_version,
                length,
            } => chunks.duplicate(new_id, new_version, old_id, old_version, length),
            Command::SetVersion { id, new, old } => chunks.set_version(id, new, old),
            Command::Truncate { length, .. } if length > chunk_api::CHUNK_BYTES => {
                return Box::pin(std::future::ready(Err(status::WRONG_SIZE)));
            }
            Command::Truncate {
                id,
                length,
                new,
                old,
            } => chunks.truncate(id, length, new, old),
            Command::Replicate {
                id,
                version,
                source,
            } => {
                return replicator.replicate(id, version, source);
            }
            Command::ErasureCode { .. } | Command::ChunkOp { .. } => {
                return Box::pin(std::future::ready(Err(status::NOT_DONE)));
            }
        };
        Box::pin(async move { reply.await.map_err(|e: ChunkError| e.status()) })
    }

    async fn question(self: &Rc<Self>, epoch: u64, question: Question, rt: &Rt) {
        let permit = self.commands.clone().acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let shared = self.clone();
        rt.spawn(async move {
            let frame = info::about_chunk(&*shared.chunks, &question).await;
            drop(permit);
            if let Some(frame) = frame {
                let _ = shared.news.send(News::Answer { epoch, frame }).await;
            }
        });
    }
}
