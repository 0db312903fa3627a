//! The store of one volume: state, and what keeps it going.
//!
//! Everything that changes lies in one `RefCell<Core>`, borrowed for one step at a time and never
//! over an await nor while something is submitted. Operations (`read`, `write`, `ops`) prepare
//! (load pages, read edges), then change the state and append to the journal in one step; `pump`
//! submits what the journal has to write; answers come back through [`Joiner`].

use crate::alloc::Role;
use crate::cache::DataCache;
use crate::core_state::Core;
use crate::gate::Gate;
use crate::journal::record::Record;
use crate::journal::writer::{DataWrite, Io};
use crate::layout::{sector, Ptr, UNIT_BYTES};
use crate::maps::Missing;
use crate::medium::{Fetched, Medium};
use crate::news::{Fullness, News, Newsroom};
use crate::options::{Durability, Options};
use crate::order::Order;
use crate::replica::Replicas;
use crate::stale::StaleWatch;
use crate::stats::{Counted, Counters, Stats};
use crate::streams::Streams;
use blockdev::{
    Buf, Instant, IoCtx, IoError, IoResult, IoVec, Joiner, Kind, LegIndex, Op, Rt, Seq, StateChange,
};
use chunk_api::{ChunkError, ChunkId, Report, ReportQueue};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Bytes submitted without a flush before one is begun on our own account.
const UNFLUSHED_BYTES_MAX: u64 = 64 << 20;
/// How often background work is looked at, and the longest that anything stays unflushed.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Changed map pages before a checkpoint is begun.
const DIRTY_MAP_PAGES_MAX: usize = 8192;
/// Quarantined chunks purged by age in one tick.
const PURGES_PER_TICK: usize = 64;

/// Whether the store still accepts changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Being opened, or a read-only view.
    Closed,
    Running,
    /// Served, but never written: it has features that this release does not know.
    ReadOnly,
    Stopping,
    Failed(String),
}

/// Chunks on a mirrored volume. See the crate.
pub struct Store {
    pub(crate) me: Weak<Store>,
    pub(crate) medium: Medium,
    pub(crate) rt: Rt,
    pub(crate) options: Options,
    pub(crate) core: RefCell<Core>,
    pub(crate) cache: RefCell<DataCache>,
    pub(crate) life: RefCell<Life>,
    pub(crate) order: Order,
    pub(crate) replicas: RefCell<Replicas>,
    pub(crate) streams: RefCell<Streams>,
    /// Frames answered.
    pub(crate) answered: Gate,
    /// Frames durable.
    pub(crate) durable: Gate,
    /// Checkpoints done since the start.
    pub(crate) checkpoints: Gate,
    pub(crate) checkpoints_begun: Cell<u64>,
    /// Pages of the checkpoint under way that are not written yet.
    pub(crate) unwritten: RefCell<BTreeSet<u64>>,
    /// Superblocks written since the start, and whether one is just now.
    pub(crate) superblocks: Cell<(u64, bool)>,
    pub(crate) checkpoints_wanted: Cell<u64>,
    pub(crate) reports: Rc<ReportQueue>,
    pub(crate) counters: Counters,
    /// The last frame that was sent, or whose data were, without FUA to a volatile cache: it and
    /// those before are durable after a flush alone.
    cached: Cell<u64>,
    /// The device has a volatile cache and refuses to flush it.
    flush_refused: Cell<bool>,
    /// Writes of the journal and of the checkpoint that a device refused for want of space, and
    /// that are to be sent again.
    pub(crate) starved: Cell<u32>,
    flush_wanted: Cell<u64>,
    flushing: Cell<bool>,
    /// When the oldest answered change that is not durable was answered.
    unflushed_since: Cell<Option<Instant>>,
    pumping: Cell<bool>,
    /// What lay where a refused write's granules were to go, and the last frame that may still
    /// name these.
    pub(crate) undone: RefCell<BTreeMap<Ptr, (Ptr, u64)>>,
    /// Operations that hold on to loaded pages.
    pub(crate) holding: Cell<u32>,
    news: Newsroom,
    pub(crate) stale: RefCell<StaleWatch>,
    fullness: Cell<Fullness>,
    /// Damaged chunks are being looked at again; and once more after that.
    pub(crate) looking: Cell<(bool, bool)>,
    /// Legs in sync when they were last looked at, one bit each.
    pub(crate) legs_in_sync: Cell<u8>,
    /// Sums by unit of regions whose alloc page no leg has, as the maps have them.
    pub(crate) lost_regions: RefCell<BTreeMap<u32, BTreeMap<u64, u32>>>,
    /// Metadata was met that no leg has right.
    pub(crate) met_damage: Cell<bool>,
}

/// Keeps loaded pages in memory while it lives.
pub(crate) struct Hold<'a>(&'a Store);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.holding.set(self.0.holding.get() - 1);
    }
}

impl Store {
    pub(crate) fn assemble(medium: Medium, rt: Rt, options: Options, core: Core) -> Rc<Store> {
        Rc::new_cyclic(|me| Store {
            me: me.clone(),
            cache: RefCell::new(DataCache::new(options.cache_bytes, medium.pool.clone())),
            medium,
            rt,
            news: Newsroom::new(options.name.clone()),
            stale: RefCell::new(StaleWatch::new(core.superblock.highest_id)),
            options,
            core: RefCell::new(core),
            life: RefCell::new(Life::Closed),
            order: Order::default(),
            replicas: RefCell::default(),
            streams: RefCell::default(),
            answered: Gate::default(),
            durable: Gate::default(),
            checkpoints: Gate::default(),
            checkpoints_begun: Cell::new(0),
            unwritten: RefCell::default(),
            superblocks: Cell::default(),
            checkpoints_wanted: Cell::new(0),
            reports: Rc::default(),
            counters: Counters::default(),
            cached: Cell::new(0),
            flush_refused: Cell::new(false),
            starved: Cell::new(0),
            flush_wanted: Cell::new(0),
            flushing: Cell::new(false),
            unflushed_since: Cell::new(None),
            pumping: Cell::new(false),
            undone: RefCell::default(),
            holding: Cell::new(0),
            fullness: Cell::default(),
            looking: Cell::default(),
            legs_in_sync: Cell::default(),
            lost_regions: RefCell::default(),
            met_damage: Cell::default(),
        })
    }

    pub(crate) fn rc(&self) -> Rc<Store> {
        self.me.upgrade().expect("a method of a store that lives")
    }

    /// Loaded pages stay while the guard lives: for operations that need more of them at once than
    /// the caches are sure to keep. Others look again and load again.
    pub(crate) fn hold(&self) -> Hold<'_> {
        self.holding.set(self.holding.get() + 1);
        Hold(self)
    }

    /// Runs an operation up to its first wait now, so that its place in the order is fixed, and
    /// to its end whether or not somebody waits for it.
    pub(crate) fn begin<T: 'static>(
        &self,
        operation: impl Future<Output = T> + 'static,
    ) -> Pin<Box<dyn Future<Output = T>>> {
        let mut operation = Box::pin(operation);
        let mut cx = Context::from_waker(Waker::noop());
        match operation.as_mut().poll(&mut cx) {
            Poll::Ready(result) => Box::pin(std::future::ready(result)),
            Poll::Pending => {
                let slot = Rc::new(Outcome {
                    value: RefCell::new(None),
                    waker: RefCell::new(None),
                });
                let filled = slot.clone();
                self.rt.spawn(async move {
                    let value = operation.await;
                    *filled.value.borrow_mut() = Some(value);
                    let waker = filled.waker.borrow_mut().take();
                    waker.into_iter().for_each(Waker::wake);
                });
                Box::pin(std::future::poll_fn(move |cx| {
                    match slot.value.borrow_mut().take() {
                        Some(value) => Poll::Ready(value),
                        None => {
                            *slot.waker.borrow_mut() = Some(cx.waker().clone());
                            Poll::Pending
                        }
                    }
                }))
            }
        }
    }

    /// Whether changes are accepted.
    pub(crate) fn writable(&self) -> Result<(), ChunkError> {
        match &*self.life.borrow() {
            Life::Running => Ok(()),
            Life::Closed => Err(ChunkError::NotDone("volume is not open for writing")),
            Life::ReadOnly => Err(ChunkError::NotDone("volume is read-only")),
            Life::Stopping => Err(ChunkError::NotDone("volume is stopping")),
            Life::Failed(reason) => Err(ChunkError::Io(reason.clone())),
        }
    }

    /// Nothing is accepted any more: what was acknowledged is on the disk, what is not never will
    /// be acknowledged. Reads go on.
    pub(crate) fn fail(&self, reason: &str) {
        {
            let mut life = self.life.borrow_mut();
            if matches!(*life, Life::Failed(_)) {
                return;
            }
            *life = Life::Failed(reason.into());
        }
        tracing::error!(volume = %self.options.name, reason, "volume failed: no more writes");
        self.answered.fail(reason);
        self.durable.fail(reason);
        self.checkpoints.fail(reason);
        self.reports.push(Report::ErrorOccurred);
    }

    pub(crate) fn tainted(&self) -> impl Fn(u64, u64) -> bool + '_ {
        |unit, units| self.medium.tainted(unit, units)
    }

    /// Reads what is missing.
    pub(crate) async fn load(&self, missing: Vec<Missing>) -> Result<(), ChunkError> {
        let ptrs: Vec<Ptr> = {
            let core = self.core.borrow();
            let ptr = |m: &Missing| match *m {
                Missing::Root { ptr, .. } | Missing::Map { ptr, .. } => ptr,
                Missing::Alloc(index) => core.alloc.tree.leaf(index).ptr,
            };
            missing.iter().map(ptr).collect()
        };
        let fetched = self.medium.fetch(&ptrs, IoCtx::metadata()).await;
        for ((what, ptr), fetched) in missing.into_iter().zip(ptrs).zip(fetched) {
            let page = fetched
                .good
                .as_ref()
                .and_then(|buf| crate::layout::Page::from_bytes(buf));
            let taken = page.is_some_and(|page| {
                let mut core = self.core.borrow_mut();
                let Core {
                    dir, alloc, maps, ..
                } = &mut *core;
                match what {
                    // It may have been rewritten, even emptied, by a checkpoint meanwhile.
                    Missing::Alloc(index) if alloc.tree.leaf(index).ptr != ptr => true,
                    Missing::Alloc(index) => alloc.take_page(index, page),
                    _ => maps.take(dir, what, page),
                }
            });
            if !taken && self.is_still_missing(what, ptr) {
                self.met_damage.set(true);
                return Err(ChunkError::Io(format!(
                    "metadata in unit {} is damaged",
                    ptr.unit
                )));
            }
            if taken && !fetched.bad.is_empty() {
                self.rc().heal_later(ptr, fetched);
            }
        }
        let crowded = {
            let core = self.core.borrow();
            core.alloc.pages.is_crowded() || core.maps.pages.is_crowded()
        };
        if crowded {
            self.sweep();
        }
        Ok(())
    }

    fn is_still_missing(&self, what: Missing, ptr: Ptr) -> bool {
        let mut core = self.core.borrow_mut();
        let Core {
            dir, alloc, maps, ..
        } = &mut *core;
        match what {
            Missing::Root { slot, .. } => maps.need_root(dir, slot) == Some(what),
            Missing::Map { slot, page, .. } => maps.need(dir, slot, page) == Some(what),
            Missing::Alloc(index) => {
                alloc.missing_page(index).is_some() && alloc.tree.leaf(index).ptr == ptr
            }
        }
    }

    /// Appends and applies a record as soon as nothing is missing and the journal has room, if
    /// `still` holds at that moment. Returns its frame.
    pub(crate) async fn commit(
        &self,
        record: &Record,
        still: impl Fn(&Core) -> Result<(), ChunkError>,
    ) -> Result<u64, ChunkError> {
        let _hold = self.hold();
        loop {
            self.writable()?;
            self.room().await?;
            still(&self.core.borrow())?;
            let missing = self.core.borrow_mut().missing(record);
            if missing.is_empty() {
                break;
            }
            self.load(missing).await?;
        }
        let seq = self.append(record, Vec::new());
        self.pump();
        Ok(seq)
    }

    /// Appends and applies a record for which nothing is missing.
    pub(crate) fn append(&self, record: &Record, data: Vec<DataWrite>) -> u64 {
        let mut core = self.core.borrow_mut();
        let seq = core.journal.append(record, data);
        core.apply(record, seq);
        let contradiction = core.alloc.take_contradiction();
        drop(core);
        if let Some(unit) = contradiction {
            // Before the record is sent: what lies on the disk stays as it is.
            self.fail(&format!(
                "maps and counts disagree about unit {unit}: run `antler volume check --repair`"
            ));
        }
        seq
    }

    /// Ends at once while the journal has room, else when a checkpoint has made some.
    pub(crate) async fn room(&self) -> Result<(), ChunkError> {
        while !self.core.borrow().journal.has_room() {
            if self.is_starved() {
                return Err(ChunkError::NoSpace);
            }
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Submits what the journal has to write.
    pub(crate) fn pump(&self) {
        if self.pumping.replace(true) {
            return;
        }
        let me: Weak<dyn Joiner> = self.me.clone();
        while !matches!(*self.life.borrow(), Life::Failed(_)) {
            let next = {
                let tainted = self.tainted();
                self.core
                    .borrow_mut()
                    .journal
                    .poll_transmit(&self.medium.pool, &tainted)
            };
            let Some(transmit) = next else { break };
            let want = match self.writes_through() {
                true => blockdev::Durability::Fua,
                false => blockdev::Durability::Cache,
            };
            if want == blockdev::Durability::Cache && !self.needs_no_flush() {
                self.cached.set(self.cached.get().max(transmit.seq));
            }
            let op = Op::Write {
                at: sector(transmit.unit),
                data: transmit.data,
                want,
            };
            let done = self.medium.mirror.submit(op, IoCtx::foreground());
            done.join(me.clone(), transmit.token);
        }
        self.pumping.set(false);
        self.look_after();
    }

    fn writes_through(&self) -> bool {
        self.options.durability == Durability::Fua && self.medium.mirror.geometry().fua
    }

    /// Whether what is answered is durable without a flush, or as durable as it can be.
    fn needs_no_flush(&self) -> bool {
        !self.medium.mirror.geometry().write_cache || self.flush_refused.get()
    }

    /// Makes durable what is answered. A device that cannot is served in the mode `cache` alone,
    /// where nobody was promised more.
    pub(crate) async fn flush(&self) -> Result<(), ChunkError> {
        if self.needs_no_flush() {
            return Ok(());
        }
        let flush = self.medium.mirror.submit(Op::Flush, IoCtx::metadata());
        match flush.await {
            Ok(_) => Ok(()),
            Err(error) if self.lives_without(&error) => Ok(()),
            Err(error) => Err(ChunkError::Io(error.to_string())),
        }
    }

    /// Whether an error of a flush is one that this mode lives with.
    pub(crate) fn lives_without(&self, error: &IoError) -> bool {
        let refused = error.kind == Kind::Refused(blockdev::Refusal::NotSupported)
            && self.options.durability == Durability::Cache;
        if refused && !self.flush_refused.replace(true) {
            tracing::warn!(
                volume = %self.options.name,
                "a unit refuses to flush its cache: a power cut there can lose any recent change"
            );
        }
        refused
    }

    /// Begins background work that has become due.
    fn look_after(&self) {
        let (unflushed, due) = {
            let core = self.core.borrow();
            let full = core.journal.live_segments() * 2 > core.journal.segments();
            let dirty = core.maps.pages.dirty_len() > DIRTY_MAP_PAGES_MAX;
            (core.journal.unflushed_bytes(), full || dirty)
        };
        if unflushed > UNFLUSHED_BYTES_MAX {
            self.kick_flush(self.answered.get());
        }
        // Intent bits go ahead of the writes, so that none waits for a bitmap page.
        let regions = self.core.borrow_mut().alloc.take_fresh_regions();
        for (unit, units) in regions {
            let range = sector(unit)..sector(unit + units);
            drop(self.medium.mirror.predirty(range, IoCtx::metadata()));
        }
        let running = matches!(*self.life.borrow(), Life::Running);
        if due && running && self.checkpoints_begun.get() == self.checkpoints.get() {
            self.want_checkpoint(self.checkpoints.get() + 1);
        }
    }

    pub(crate) fn on_answered(&self) {
        let answered = self.core.borrow().journal.answered();
        self.undone
            .borrow_mut()
            .retain(|_, (_, seq)| *seq > answered);
        if self.unflushed_since.get().is_none() {
            self.unflushed_since.set(Some(self.rt.now()));
        }
        if self.cached.get() <= self.durable.get() {
            self.on_durable(answered);
        }
        self.answered.raise(answered);
    }

    /// Frames up to `seq` are durable.
    pub(crate) fn on_durable(&self, seq: u64) {
        {
            let tainted = self.tainted();
            let mut core = self.core.borrow_mut();
            core.journal.set_mark(seq);
            core.alloc.release_durable(seq, &tainted);
        }
        self.durable.raise(seq);
        if seq >= self.core.borrow().journal.answered() {
            self.unflushed_since.set(None);
        }
    }

    /// Ends when frame `seq` is durable.
    pub(crate) async fn durable(&self, seq: u64) -> Result<(), ChunkError> {
        self.answered.wait(seq).await?;
        self.kick_flush(seq);
        self.durable.wait(seq).await
    }

    /// Ends when frame `seq` counts for a client that wrote it.
    pub(crate) async fn acknowledged(&self, seq: u64) -> Result<(), ChunkError> {
        match self.options.durability {
            Durability::Fua => self.durable(seq).await,
            Durability::Flush | Durability::Cache => self.answered.wait(seq).await,
        }
    }

    /// Sees to it that `seq`, which is answered, becomes durable: one flush for all who ask.
    pub(crate) fn kick_flush(&self, seq: u64) {
        if seq <= self.durable.get() {
            return;
        }
        self.flush_wanted.set(self.flush_wanted.get().max(seq));
        if self.flushing.replace(true) {
            return;
        }
        let me = self.rc();
        self.rt.spawn(async move {
            while me.flush_wanted.get() > me.durable.get() {
                let target = me.answered.get();
                let begin = me.rt.now();
                me.core.borrow_mut().journal.take_unflushed();
                match me.flush().await {
                    Ok(()) => me.on_durable(target),
                    Err(error) => {
                        me.fail(&format!("flush failed: {error}"));
                        break;
                    }
                }
                me.counters.count(Counted::Flush, 0, begin, me.rt.now());
            }
            me.flushing.set(false);
        });
    }

    /// Heals in the background what a read found.
    pub(crate) fn heal_later(self: Rc<Self>, ptr: Ptr, fetched: Fetched) {
        if *self.life.borrow() == Life::Closed {
            return self.medium.note_wrong(ptr, fetched);
        }
        let Some(good) = fetched.good else { return };
        let me = self.clone();
        self.rt.spawn(async move {
            me.heal(ptr, good, fetched.bad).await;
        });
    }

    /// Writes the right bytes to the legs that have others, if the unit still is what it was.
    /// Returns how many legs were healed.
    pub(crate) async fn heal(&self, ptr: Ptr, good: Buf, bad: Vec<(LegIndex, Seq)>) -> usize {
        if !matches!(*self.life.borrow(), Life::Running | Life::Stopping) {
            return 0;
        }
        let mut healed = 0;
        for (leg, since) in bad {
            if !self.is_settled(ptr).await {
                return healed;
            }
            let what = self.core.borrow().name_of(ptr.unit);
            let data = good.clone().into();
            healed += usize::from(self.rewrite(&what, ptr.unit, data, (leg, since)).await);
        }
        healed
    }

    /// Writes right bytes to one leg, counts and tells. The caller has made sure that they belong
    /// there.
    pub(crate) async fn rewrite(
        &self,
        what: &str,
        unit: u64,
        good: IoVec,
        (leg, since): (LegIndex, Seq),
    ) -> bool {
        let ctx = IoCtx::background();
        let mirror = &self.medium.mirror;
        let rewritten = mirror.rewrite(leg, sector(unit), good, since, ctx);
        if rewritten.await.is_err() {
            return false;
        }
        self.counters.healed.set(self.counters.healed.get() + 1);
        let text = format!(
            "{what} rewritten on {} with the right bytes",
            mirror.leg_name(leg)
        );
        self.tell(News::BlockHealed, text);
        true
    }

    /// Whether a unit is what the pointer says, and has been written: what else lies there is wrong.
    pub(crate) async fn is_settled(&self, ptr: Ptr) -> bool {
        // Of a page of the trees no alloc page tells.
        if self.core.borrow().alloc.role(ptr.unit) != Role::Tree(ptr.crc) {
            let missing = self.core.borrow_mut().missing_units(vec![ptr.unit]);
            if !missing.is_empty() && Box::pin(self.load(missing)).await.is_err() {
                return false;
            }
        }
        !self.is_being_written(ptr.unit) && self.core.borrow_mut().holds(ptr)
    }

    /// Whether what belongs in a unit may not be there yet.
    pub(crate) fn is_being_written(&self, unit: u64) -> bool {
        self.cache.borrow().is_in_flight(unit) || self.unwritten.borrow().contains(&unit)
    }

    /// A chunk is damaged on every leg.
    pub(crate) fn report_damage(&self, id: u64) {
        let seconds = (self.rt.wall().0 / 1_000_000) as u32;
        self.counters.last_error.set(Some((ChunkId(id), seconds)));
        self.stale.borrow_mut().on_failed(id);
        if self.counters.damaged.borrow_mut().insert(id) {
            let text = format!("chunk {} is damaged on every leg", ChunkId(id));
            self.tell(News::ChunkDamaged, text);
        }
        self.reports.push(Report::Damaged(ChunkId(id)));
        self.reports.push(Report::ErrorOccurred);
    }

    /// Background work, once a second.
    pub(crate) fn start_background(&self) {
        let me = self.me.clone();
        let rt = self.rt.clone();
        self.rt.spawn(async move {
            loop {
                rt.sleep(TICK).await;
                let Some(me) = me.upgrade() else { return };
                if !matches!(*me.life.borrow(), Life::Running) {
                    return;
                }
                me.tick().await;
            }
        });
    }

    /// Drops clean pages of metadata beyond their bound, unless an operation needs many at once.
    pub(crate) fn sweep(&self) {
        if self.holding.get() == 0 {
            let mut core = self.core.borrow_mut();
            core.alloc.sweep();
            core.maps.pages.sweep(|_| false);
        }
    }

    async fn tick(&self) {
        if self.answered.get() > self.durable.get() {
            self.kick_flush(self.answered.get());
        }
        let mark = {
            let mut core = self.core.borrow_mut();
            let due = core.journal.is_mark_due() && core.journal.has_room();
            if due {
                core.journal.append_mark();
            }
            due
        };
        if mark {
            self.pump();
        }
        self.sweep();
        let now = (self.rt.wall().0 / 1_000_000) as u32;
        if let Err(error) = self.purge_expired(now, PURGES_PER_TICK).await {
            tracing::warn!(volume = %self.options.name, %error, "purge of old deletions failed");
        }
        self.watch_space();
        self.watch_legs();
    }

    /// Counters and figures for the status page.
    pub fn stats(&self) -> Stats {
        let space = self.figures();
        let core = self.core.borrow();
        let failed = match &*self.life.borrow() {
            Life::Failed(reason) => Some(reason.clone()),
            _ => None,
        };
        let unflushed = match self.unflushed_since.get() {
            Some(since) => self.rt.now().since(since),
            None => Duration::ZERO,
        };
        Stats {
            name: self.options.name.clone(),
            failed,
            read_only: *self.life.borrow() == Life::ReadOnly,
            size_bytes: space.total,
            used_bytes: space.used,
            free_bytes: space.total - space.used,
            chunks: core.dir.live().chunks,
            damaged_chunks: self.counters.damaged.borrow().len() as u64,
            healed_blocks: self.counters.healed.get(),
            quarantined_chunks: core.dir.held().chunks + core.dir.held_hard().chunks,
            unflushed_bytes: match self.unflushed_since.get() {
                Some(_) => core.journal.unflushed_bytes(),
                None => 0,
            },
            unflushed_ms: unflushed.as_millis() as u64,
            open_ms: self.counters.open_ms.get(),
            cache_bytes: self.cache.borrow().bytes(),
            operations: self.counters.total.get(),
        }
    }

    /// Size and use in bytes, as the master is told.
    pub(crate) fn figures(&self) -> Figures {
        let core = self.core.borrow();
        let unit = UNIT_BYTES as u64;
        let total = core.alloc.units();
        let soft = core.dir.held().granules;
        // What is shared counts for each owner; what is pending or in maps counts, too.
        let owners = core.dir.live().granules
            + core.dir.held_hard().granules
            + core.alloc.overhead()
            + core.reserve();
        let taken = total.saturating_sub(core.alloc.free() + core.alloc.pending() + soft);
        let used = match *self.life.borrow() {
            // Nothing more goes there.
            Life::ReadOnly => total,
            _ => owners.max(taken + core.reserve()).min(total),
        };
        Figures {
            total: total * unit,
            used: used * unit,
        }
    }

    /// Tells when space runs low.
    fn watch_space(&self) {
        let figures = self.figures();
        let free = figures.total - figures.used;
        let before = self.fullness.get();
        let now = before.next(free, figures.total);
        self.fullness.set(now);
        if now > before {
            let percent = free as f64 * 100.0 / figures.total.max(1) as f64;
            self.tell(
                News::SpaceLow,
                format!("{percent:.1} % is free ({free} bytes)"),
            );
        }
    }

    /// Tells the operator, now or together with what follows soon.
    pub(crate) fn tell(&self, kind: News, text: String) {
        let Some(due) = self.news.tell(kind, self.rt.now(), text) else {
            return;
        };
        let (me, rt) = (self.me.clone(), self.rt.clone());
        self.rt.spawn(async move {
            rt.sleep_until(due).await;
            if let Some(me) = me.upgrade() {
                me.news.tell_rest(kind, rt.now());
            }
        });
    }

    /// What an operator wants to know, for one reader: events named as in the external interface.
    /// Of each kind one at once and then one a second at most (deletions: one a minute), which
    /// tells of all that came meanwhile. A reader is woken, too, when the store is dropped.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<StateChange> {
        self.news.poll(cx)
    }
}

/// What [`Store::figures`] says, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) total: u64,
    pub(crate) used: u64,
}

struct Outcome<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

impl Joiner for Store {
    fn joined(&self, token: u64, result: IoResult) {
        let io = self.core.borrow_mut().journal.take_io(token);
        let advanced = match (io, result) {
            (Io::Frame(seq, ..), Ok(_)) => self.core.borrow_mut().journal.handle_done(seq),
            (
                Io::Frame(seq, unit, data),
                Err(IoError {
                    kind: Kind::NoSpace,
                    ..
                }),
            ) => return self.resend_later(seq, unit, data),
            (Io::Frame(..), Err(error)) => {
                return self.fail(&format!("journal write failed: {error}"))
            }
            (Io::Data(seq, write), Ok(_)) => {
                self.data_arrived(&write, true);
                self.core.borrow_mut().journal.handle_done(seq)
            }
            (
                Io::Data(seq, write),
                Err(IoError {
                    kind: Kind::NoSpace,
                    ..
                }),
            ) => {
                self.data_arrived(&write, false);
                self.tell(
                    News::SpaceLow,
                    "a unit below refuses writes for want of space".into(),
                );
                let undo = self.rc().undo(seq, write);
                self.rt.spawn(undo);
                return;
            }
            (Io::Data(..), Err(error)) => return self.fail(&format!("data write failed: {error}")),
        };
        if advanced {
            self.on_answered();
        }
        self.pump();
    }
}

impl Store {
    fn data_arrived(&self, write: &DataWrite, arrived: bool) {
        /// Larger writes are a stream that is rarely read at once.
        const KEEP_BYTES_MAX: usize = 16 << 10;
        let keep = arrived && write.data.len() <= KEEP_BYTES_MAX;
        let units = (write.data.len() / UNIT_BYTES) as u64;
        let mut cache = self.cache.borrow_mut();
        for unit in write.unit..write.unit + units {
            cache.arrived(unit, keep);
        }
    }
}
