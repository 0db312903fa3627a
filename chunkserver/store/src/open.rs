//! Opening a volume: scan, replay, fence, closing (ARCHITECTURE.md §7.4, R1–R4).
//!
//! Scan and replay only read and do not wait for the fence of the previous run's sessions.
//! Closing brings every in-sync leg to the state that was found, and begins a new run; before its
//! superblock is durable nothing is served, registered or freed.

use crate::alloc::Allocator;
use crate::core_state::Core;
use crate::directory::Directory;
use crate::journal::frame::Identity;
use crate::journal::record::Record;
use crate::journal::replay::{find, Ask, Found};
use crate::journal::writer::Journal;
use crate::layout::{
    sector, Page, Ptr, ALLOC_UNITS, DIR_SLOTS, SLOTS_PER_END, UNIT_BYTES, UNIT_SECTORS,
};
use crate::maps::{Maps, Missing};
use crate::medium::{granule, Medium};
use crate::options::Options;
use crate::store::{Life, Store};
use crate::superblock::{slot_units, BadSuperblock, Superblock};
use crate::tree::{Tree, TreeId};
use blockdev::{Allocation, Done, IoCtx, IoError, Kind, LegIndex, Mirror, Op, Pool, Refusal, Rt};
use chunk_api::ChunkError;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use thiserror::Error;

/// Directory pages that a superblock may claim: 1 G chunks. What is resident of them is taken before
/// they are read.
const DIRECTORY_LEAVES_MAX: u64 = 1 << 24;
/// Granules verified or rewritten at once after a crash.
const RECOVERY_BATCH: usize = 1024;

/// Why a volume cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// There is no store on it, or one of a newer release.
    #[error("{0}")]
    Superblock(#[from] BadSuperblock),
    /// The volume is smaller than when it was formatted: nothing is touched.
    #[error("volume has shrunk from {was_bytes} to {is_bytes} bytes")]
    Shrunk {
        /// Size in the superblock.
        was_bytes: u64,
        /// Size now.
        is_bytes: u64,
    },
    /// Feature bits that allow reading only, and writing was asked for.
    #[error("feature bits {0:#x} are unknown: this release may only read the volume")]
    ReadOnly(u64),
    /// A device did not answer: try again.
    #[error("cannot read the volume: {0}")]
    Io(String),
    /// Metadata is damaged on every leg.
    #[error("metadata is damaged on every leg ({0}), which no check repairs: a leg that was not asked may be whole: `antler leg run VOLUME DEVICE --alone`; else let MooseFS replicate the chunks to a volume created anew")]
    Damaged(String),
    /// The same, met after replay: what can be read can be saved.
    #[error("closing the previous run failed: {0} on every leg, which no check repairs: `antler volume export VOLUME DIR` saves the chunks that can be read; a leg that was not asked may be whole: `antler leg run VOLUME DEVICE --alone`")]
    DamagedAtClosing(String),
    /// A frame that was durable is gone from every leg.
    #[error("journal frame {0} is lost on every leg: run `antler volume check --repair` to go on without it and what follows it")]
    JournalLost(u64),
    /// Earlier sessions cannot be fenced.
    #[error("earlier sessions cannot be fenced: {0}")]
    Fence(String),
    /// A volatile cache that cannot be flushed.
    #[error("a unit has a volatile write cache and refuses to flush it: set durability = \"cache\" (a power cut there can then lose any recent change) or disable its cache")]
    NoFlush,
    /// The closing after a crash failed.
    #[error("closing the previous run failed: {0}")]
    Closing(String),
}

impl From<IoError> for OpenError {
    fn from(error: IoError) -> OpenError {
        OpenError::Io(error.to_string())
    }
}

/// What replay leaves for the closing.
pub(crate) struct Recovered {
    /// Frames that were taken end here.
    pub(crate) last_seq: u64,
    /// Data newer than the mark: to be written to every leg.
    pub(crate) fresh: Vec<Ptr>,
    chain: Vec<u64>,
    index: u64,
    /// A durable frame was lost, and that was accepted.
    pub(crate) lost: Option<u64>,
}

/// The newest valid superblock of the in-sync legs.
pub(crate) async fn newest_superblock(medium: &Medium) -> Result<Superblock, OpenError> {
    let units = medium.mirror.geometry().sectors / UNIT_SECTORS;
    let mut newest: Option<Superblock> = None;
    let mut worst = BadSuperblock::Invalid;
    let mut unread: Option<IoError> = None;
    if units < 2 * SLOTS_PER_END {
        return Err(BadSuperblock::Invalid.into());
    }
    for leg in (0..medium.mirror.legs())
        .map(LegIndex)
        .filter(|&l| medium.mirror.in_sync(l))
    {
        for first in slot_units(0, units) {
            let sectors = (SLOTS_PER_END * UNIT_SECTORS) as u32;
            let read = medium
                .mirror
                .read_leg(leg, sector(first), sectors, IoCtx::metadata())
                .await;
            let data = match read {
                Ok(Done::Read(data, _))
                    if data.len() as u64 == SLOTS_PER_END * UNIT_BYTES as u64 =>
                {
                    data
                }
                Ok(_) => continue,
                Err(error) => {
                    unread = Some(error);
                    continue;
                }
            };
            for i in 0..SLOTS_PER_END as usize {
                let Some(page) = Page::from_bytes(&granule(&data, i, &medium.pool)) else {
                    continue;
                };
                match Superblock::decode(&page) {
                    Ok(sb) if newest.as_ref().is_none_or(|n| sb.epoch > n.epoch) => {
                        newest = Some(sb)
                    }
                    Ok(_) | Err(BadSuperblock::Invalid) => {}
                    Err(bad) => worst = bad,
                }
            }
        }
    }
    match (newest, unread, worst) {
        // A slot of a newer format or with unknown features is this volume's, too.
        (_, _, bad @ (BadSuperblock::Version(_) | BadSuperblock::Incompat(_))) => Err(bad.into()),
        (Some(newest), _, _) if newest.units > units => Err(OpenError::Shrunk {
            was_bytes: newest.units * UNIT_BYTES as u64,
            is_bytes: units * UNIT_BYTES as u64,
        }),
        (Some(newest), _, _) => Ok(newest),
        (None, Some(error), _) => Err(error.into()),
        (None, None, bad) => Err(bad.into()),
    }
}

async fn load_tree(medium: &Medium, id: TreeId, sb: &Superblock) -> Result<Tree, OpenError> {
    let damaged = |what: &str| OpenError::Damaged(format!("{what} of the {id:?} tree"));
    let (root, most) = match id {
        TreeId::Directory => (sb.directory, sb.units.min(DIRECTORY_LEAVES_MAX)),
        TreeId::Alloc => (sb.alloc, sb.units.div_ceil(ALLOC_UNITS)),
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut tree = Tree::from_root(id, root, most).ok_or_else(|| damaged("size"))?;
    for level in (1..tree.height()).rev() {
        let (indexes, ptrs): (Vec<u32>, Vec<Ptr>) = tree.wanted(level).into_iter().unzip();
        let pages = medium.fetch_pages(&ptrs, IoCtx::metadata()).await;
        let pages = pages.map_err(|ptr| damaged(&format!("index page in unit {}", ptr.unit)))?;
        for (index, page) in indexes.into_iter().zip(pages) {
            if !tree.take_index(level, index, &page, sb.units) {
                return Err(damaged("an index page"));
            }
        }
    }
    Ok(tree)
}

/// The state at the superblock's checkpoint.
async fn load_base(medium: &Medium, sb: &Superblock, options: &Options) -> Result<Core, OpenError> {
    let dir_tree = load_tree(medium, TreeId::Directory, sb).await?;
    let alloc_tree = load_tree(medium, TreeId::Alloc, sb).await?;
    let mut dir = Directory::new();
    let slots = dir_tree.leaves() as u64 * u64::from(DIR_SLOTS);
    dir.reserve(usize::try_from(sb.chunks.min(slots)).unwrap_or(0));
    let ptrs: Vec<Ptr> = dir_tree
        .leaf_entries()
        .iter()
        .map(|entry| entry.ptr)
        .collect();
    for window in ptrs.chunks(4096) {
        let pages = medium.fetch_pages(window, IoCtx::metadata()).await;
        let bad = |ptr: Ptr| OpenError::Damaged(format!("directory page in unit {}", ptr.unit));
        for page in pages.map_err(bad)? {
            if !dir.load(page) {
                return Err(OpenError::Damaged(
                    "a directory page is another page".into(),
                ));
            }
        }
    }
    let mut fixed = BTreeMap::new();
    for first in slot_units(0, sb.units) {
        fixed.insert(first, first + SLOTS_PER_END);
    }
    for &first in &sb.segments {
        fixed.insert(first, first + u64::from(sb.segment_units));
    }
    // Until the dir tree's pages are known to the allocator they count as free.
    let pages = options.map_cache_bytes / UNIT_BYTES;
    let mut alloc = Allocator::new(sb.units, fixed, alloc_tree, pages);
    let pages_of_trees = alloc.tree.pages().count() + dir_tree.pages().count();
    dir_tree.pages().for_each(|ptr| alloc.add_system(ptr));
    if !alloc.is_laid_out(pages_of_trees) {
        return Err(OpenError::Damaged(
            "pages of the trees lie upon one another or upon the journal".into(),
        ));
    }
    alloc.recount();
    let identity = Identity {
        secret: sb.secret,
        run: sb.run,
    };
    let next = sb
        .segments
        .iter()
        .copied()
        .find(|&s| s != sb.journal_unit)
        .unwrap_or_default();
    let place = (sb.journal_unit, next, sb.journal_index);
    let journal = Journal::new(
        identity,
        &sb.segments,
        sb.segment_units,
        place,
        sb.journal_seq,
        &[],
    );
    Ok(Core {
        superblock: sb.clone(),
        dir,
        dir_tree,
        alloc,
        maps: Maps::new(pages),
        journal,
    })
}

impl Store {
    /// Reads a volume as it is after replay, without writing anything. `accept_loss`: go on
    /// without a durable frame that is lost.
    pub(crate) async fn load_volume(
        mirror: Rc<dyn Mirror>,
        rt: Rt,
        pool: Pool,
        options: Options,
        accept_loss: bool,
    ) -> Result<(Rc<Store>, Recovered), OpenError> {
        let medium = Medium::new(mirror, pool);
        let sb = newest_superblock(&medium).await?;
        let core = load_base(&medium, &sb, &options).await?;
        let store = Store::assemble(medium, rt, options, core);
        let found = find(&store.medium, &sb, Ask::Any).await?;
        if let (Some(lost), false) = (found.lost, accept_loss) {
            return Err(OpenError::JournalLost(lost));
        }
        let mut limit = u64::MAX;
        let mut verified = BTreeSet::new();
        loop {
            let last_seq = store.replay(&found, limit).await?;
            match store.verify_fresh(&found, last_seq, &mut verified).await? {
                (fresh, None) => {
                    {
                        let mut core = store.core.borrow_mut();
                        // Without the mark a crash now could still end before these frames.
                        core.alloc.release_durable(found.mark, &|_, _| false);
                        core.alloc.recount();
                    }
                    let Found {
                        chain, index, lost, ..
                    } = found;
                    return Ok((
                        store,
                        Recovered {
                            last_seq,
                            fresh,
                            chain,
                            index,
                            lost,
                        },
                    ));
                }
                (_, Some(failed)) => {
                    tracing::info!(
                        frame = failed,
                        "data of an unacknowledged frame did not arrive"
                    );
                    limit = failed - 1;
                    let base = load_base(&store.medium, &sb, &store.options).await?;
                    *store.core.borrow_mut() = base;
                }
            }
        }
    }

    /// Applies frames up to `limit`; returns the last one applied.
    async fn replay(&self, found: &Found, limit: u64) -> Result<u64, OpenError> {
        let _hold = self.hold();
        let mut last = self.core.borrow().superblock.checkpoint_seq;
        for frame in found.frames.iter().filter(|frame| frame.seq <= limit) {
            for record in &frame.records {
                self.replay_record(record, frame.seq).await?;
            }
            last = frame.seq;
        }
        Ok(last)
    }

    async fn replay_record(&self, record: &Record, seq: u64) -> Result<(), OpenError> {
        let sane = self.core.borrow().is_sane(record);
        if !sane {
            return Err(OpenError::Damaged(format!(
                "journal frame {seq} contradicts the directory"
            )));
        }
        loop {
            let missing: Vec<Missing> = self.core.borrow_mut().missing(record);
            if missing.is_empty() {
                break;
            }
            let loaded = self.load(missing).await;
            loaded.map_err(|error| OpenError::Damaged(error.to_string()))?;
        }
        let mut core = self.core.borrow_mut();
        core.apply(record, seq);
        match core.alloc.take_contradiction() {
            Some(unit) => Err(OpenError::Damaged(format!(
                "maps and counts disagree about unit {unit} in journal frame {seq}"
            ))),
            None => Ok(()),
        }
    }

    /// Looks whether data newer than the mark, and mapped now, has arrived on some leg. Returns
    /// it, or the first frame whose data has not.
    async fn verify_fresh(
        &self,
        found: &Found,
        last_seq: u64,
        verified: &mut BTreeSet<Ptr>,
    ) -> Result<(Vec<Ptr>, Option<u64>), OpenError> {
        let mut fresh: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
        for frame in found
            .frames
            .iter()
            .filter(|f| f.seq > found.mark && f.seq <= last_seq)
        {
            for ptr in frame.records.iter().flat_map(Record::fresh) {
                fresh.insert(ptr.unit, (ptr.crc, frame.seq));
            }
        }
        let _hold = self.hold();
        let units: Vec<u64> = fresh.keys().copied().collect();
        let missing = self.core.borrow_mut().missing_units(units);
        let loaded = self.load(missing).await;
        loaded.map_err(|error| OpenError::Damaged(error.to_string()))?;
        let mapped: Vec<(Ptr, u64)> = {
            let core = self.core.borrow();
            let ptrs = fresh
                .into_iter()
                .map(|(unit, (crc, seq))| (Ptr { unit, crc }, seq));
            let live = |ptr: &Ptr| {
                let (refs, crc) = core.alloc.refs(ptr.unit);
                refs > 0 && crc == ptr.crc
            };
            ptrs.filter(|(ptr, _)| live(ptr)).collect()
        };
        let mut failed: Option<u64> = None;
        for batch in mapped.chunks(RECOVERY_BATCH) {
            let new: Vec<(Ptr, u64)> = batch
                .iter()
                .copied()
                .filter(|(ptr, _)| !verified.contains(ptr))
                .collect();
            let ptrs: Vec<Ptr> = new.iter().map(|(ptr, _)| *ptr).collect();
            let fetched = self.medium.fetch(&ptrs, IoCtx::metadata()).await;
            for ((ptr, seq), fetched) in new.into_iter().zip(fetched) {
                if fetched.good.is_some() {
                    verified.insert(ptr);
                } else if fetched.unreadable {
                    return Err(OpenError::Io(format!("unit {} cannot be read", ptr.unit)));
                } else {
                    failed = Some(failed.map_or(seq, |first| first.min(seq)));
                }
            }
        }
        Ok((mapped.into_iter().map(|(ptr, _)| ptr).collect(), failed))
    }

    /// Opens a volume: replays what the last run left, fences its sessions, brings every leg to
    /// the state found, begins a new run. `Ok`: ready to serve; every acknowledged change is there,
    /// and durable. A volume with features that forbid this release to write is replayed in memory
    /// alone, and every change is refused.
    pub async fn open(
        mirror: Rc<dyn Mirror>,
        rt: Rt,
        pool: Pool,
        options: Options,
    ) -> Result<Rc<Store>, OpenError> {
        let tried = Self::open_with(
            mirror.clone(),
            rt.clone(),
            pool.clone(),
            options.clone(),
            false,
        );
        match tried.await {
            Err(OpenError::ReadOnly(bits)) => {
                tracing::warn!(
                    volume = %options.name,
                    "feature bits {bits:#x} are unknown: this release serves the volume read-only"
                );
                let (store, _) = Self::load_volume(mirror, rt, pool, options, false).await?;
                *store.life.borrow_mut() = Life::ReadOnly;
                Ok(store)
            }
            other => other,
        }
    }

    pub(crate) async fn open_with(
        mirror: Rc<dyn Mirror>,
        rt: Rt,
        pool: Pool,
        options: Options,
        accept_loss: bool,
    ) -> Result<Rc<Store>, OpenError> {
        let begin = rt.now();
        let (store, recovered) =
            Self::load_volume(mirror.clone(), rt.clone(), pool, options, accept_loss).await?;
        let ro = store.core.borrow().superblock.unknown_ro_compat();
        if ro != 0 {
            return Err(OpenError::ReadOnly(ro));
        }
        let fence = mirror.submit(Op::Fence, IoCtx::metadata()).await;
        fence.map_err(|error| OpenError::Fence(error.to_string()))?;
        // Where the previous run ended cleanly this is the first flush; better now than later.
        match mirror.submit(Op::Flush, IoCtx::metadata()).await {
            Err(error) if !store.lives_without(&error) => {
                return Err(match error.kind {
                    Kind::Refused(Refusal::NotSupported) => OpenError::NoFlush,
                    _ => error.into(),
                })
            }
            _ => {}
        }
        let closed = store.close_previous_run(recovered).await;
        closed.map_err(|error| match store.met_damage.get() {
            true => OpenError::DamagedAtClosing(error.to_string()),
            false => OpenError::Closing(error.to_string()),
        })?;
        *store.life.borrow_mut() = Life::Running;
        let map: Rc<dyn Allocation> = store.clone();
        let map: Weak<dyn Allocation> = Rc::downgrade(&map);
        mirror.set_allocation(map);
        mirror.recovered();
        store.start_background();
        for (ptr, fetched) in store.medium.wrong.take() {
            store.clone().heal_later(ptr, fetched);
        }
        store
            .counters
            .open_ms
            .set(rt.now().since(begin).as_millis() as u64);
        Ok(store)
    }

    /// Store rule R4.
    async fn close_previous_run(&self, recovered: Recovered) -> Result<(), ChunkError> {
        for batch in recovered.fresh.chunks(RECOVERY_BATCH) {
            let fetched = self.medium.fetch(batch, IoCtx::metadata()).await;
            let mut writes = Vec::new();
            for (ptr, fetched) in batch.iter().zip(fetched) {
                let lost = || ChunkError::Io(format!("unit {} cannot be read any more", ptr.unit));
                let data = fetched.good.ok_or_else(lost)?.into();
                let op = Op::Write {
                    at: sector(ptr.unit),
                    data,
                    want: Default::default(),
                };
                writes.push(self.medium.mirror.submit(op, IoCtx::metadata()));
            }
            for write in writes {
                write
                    .await
                    .map_err(|error| ChunkError::Io(error.to_string()))?;
            }
        }
        let last = recovered.last_seq;
        let replicas: Vec<u32> = self.core.borrow().dir.replicas().collect();
        for slot in replicas {
            let _hold = self.hold();
            let record = Record::Purge { slot };
            loop {
                let missing = self.core.borrow_mut().missing(&record);
                if missing.is_empty() {
                    break;
                }
                self.load(missing).await?;
            }
            let mut core = self.core.borrow_mut();
            core.apply(&record, last);
            if let Some(unit) = core.alloc.take_contradiction() {
                return Err(ChunkError::Io(format!(
                    "maps and counts disagree about unit {unit}"
                )));
            }
        }
        {
            let mut core = self.core.borrow_mut();
            core.superblock.run += 1;
            let sb = &core.superblock;
            let identity = Identity {
                secret: sb.secret,
                run: sb.run,
            };
            let units = u64::from(sb.segment_units);
            let usable = |s: &u64| !recovered.chain.contains(s) && !self.medium.tainted(*s, units);
            let mut usable = sb.segments.iter().copied().filter(usable);
            let (Some(here), Some(next)) = (usable.next(), usable.next()) else {
                return Err(ChunkError::Io("no journal segment is free".into()));
            };
            let place = (here, next, recovered.index + 1);
            let journal = Journal::new(
                identity,
                &sb.segments,
                sb.segment_units,
                place,
                last + 1,
                &recovered.chain,
            );
            core.journal = journal;
        }
        self.answered.raise(last);
        self.run_checkpoint(true, |_| {}).await?;
        self.durable.raise(last);
        Ok(())
    }

    /// Stops: no more changes, everything durable, a checkpoint, the volume marked as cleanly
    /// stopped. After an error the next open replays, as after a crash.
    pub async fn stop(&self) -> Result<(), ChunkError> {
        self.stop_with(|_| {}).await
    }

    pub(crate) async fn stop_with(
        &self,
        change: impl Fn(&mut Superblock),
    ) -> Result<(), ChunkError> {
        if *self.life.borrow() == Life::ReadOnly {
            *self.life.borrow_mut() = Life::Closed;
            return Ok(());
        }
        self.writable()?;
        *self.life.borrow_mut() = Life::Stopping;
        let last = self.core.borrow().journal.last_seq();
        self.durable(last).await?;
        self.checkpoints.wait(self.checkpoints_wanted.get()).await?;
        self.run_checkpoint(false, |sb| {
            sb.clean = true;
            change(sb);
        })
        .await?;
        *self.life.borrow_mut() = Life::Closed;
        Ok(())
    }

    /// Slots of the directory, for figures about memory.
    pub fn directory_slots(&self) -> u64 {
        let core = self.core.borrow();
        (core.dir.page_count() as u64) * u64::from(DIR_SLOTS)
    }
}
