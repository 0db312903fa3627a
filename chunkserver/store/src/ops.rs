//! [`Chunks`] on a store: every operation that is neither a plain read nor a plain write.

use crate::core_state::{edge_of, Core};
use crate::directory::{Kind, FLAG_ANY_VERSION, FLAG_HARD};
use crate::journal::record::Record;
use crate::journal::writer::{DataWrite, Undo};
use crate::layout::{Ptr, BLOCK_GRANULES, UNIT_BYTES};
use crate::news::News;
use crate::options::Durability;
use crate::read::Reader;
use crate::stale::Deletion;
use crate::store::{Life, Store};
use crate::write::{Granule, Need, Submitted};
use blockdev::IoVec;
use chunk_api::crc::crc32;
use chunk_api::{
    ChunkEntry, ChunkError, ChunkId, ChunkVersion, Chunks, Disk, ReadPiece, ReplicaToken, Reply,
    ReportQueue, Space, CHUNK_BYTES,
};
use std::cell::Cell;
use std::rc::Rc;

impl Store {
    async fn create_chunk(
        self: Rc<Self>,
        id: ChunkId,
        version: ChunkVersion,
    ) -> Result<u64, ChunkError> {
        self.allotted(id);
        let place = self.order.enter(id.0);
        place.reached().await;
        self.append_create(id, version, false)
            .await
            .map(|(_, seq)| seq)
    }

    /// Appends the creation of a chunk or replica; its slot and frame.
    pub(crate) async fn append_create(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        replica: bool,
    ) -> Result<(u32, u64), ChunkError> {
        // Nothing is taken now; the directory may grow by a page.
        self.reserve_units(Need::with_pages(0, 1), |_| Vec::new())
            .await?;
        let slot = {
            let core = self.core.borrow();
            if core.dir.find(id.0).is_some() {
                return Err(ChunkError::Exists);
            }
            core.dir.vacant()
        };
        let record = Record::Create {
            slot,
            id: id.0,
            version: version.0,
            replica,
        };
        let seq = self.append(&record, Vec::new());
        self.pump();
        Ok((slot, seq))
    }

    /// The master ordered a new chunk of this id.
    fn allotted(&self, id: ChunkId) {
        let evidence = self.stale.borrow_mut().on_allotted(id.0);
        evidence.into_iter().for_each(|text| self.suspect(text));
    }

    /// Remembers that an operation failed for a reason that lies here: the master gives such a
    /// copy up.
    pub(crate) fn note_failure(&self, id: ChunkId, error: &ChunkError) {
        let ours = matches!(
            error,
            ChunkError::Io(_) | ChunkError::NoSpace | ChunkError::Crc | ChunkError::NotDone(_)
        );
        if ours {
            self.stale.borrow_mut().on_failed(id.0);
        }
    }

    /// The flags of a delete, and what it says of the master.
    fn judge_delete(&self, id: ChunkId, version: ChunkVersion) -> u8 {
        /// Share of the volume that single chunks may hold hard.
        const ALONE_PART: u64 = 10;
        let may_hold = {
            let core = self.core.borrow();
            core.dir.held_hard().granules < core.alloc.units() / ALONE_PART
        };
        let now = self.rt.now();
        let deletion = self
            .stale
            .borrow_mut()
            .on_delete(id.0, version.0, now, may_hold);
        let hard = match deletion {
            Deletion::Usual => 0,
            Deletion::Hard => FLAG_HARD,
            Deletion::HardAlone(text) => {
                self.tell(News::StaleMaster, text);
                FLAG_HARD
            }
            Deletion::Evidence(text) => {
                self.suspect(text);
                FLAG_HARD
            }
        };
        hard | if version.0 == 0 { FLAG_ANY_VERSION } else { 0 }
    }

    /// An operation whose failure is remembered.
    async fn noting(
        self: Rc<Self>,
        id: ChunkId,
        operation: impl std::future::Future<Output = Result<(), ChunkError>>,
    ) -> Result<(), ChunkError> {
        let result = operation.await;
        if let Err(error) = &result {
            self.note_failure(id, error);
        }
        result
    }

    /// Waits until a change that the master relies on is durable.
    async fn settled(&self, seq: u64) -> Result<(), ChunkError> {
        if blockdev::mutation::off("store.version-flush") {
            return self.answered.wait(seq).await;
        }
        self.durable(seq).await
    }

    async fn delete_chunk(
        self: Rc<Self>,
        id: ChunkId,
        version: ChunkVersion,
    ) -> Result<(), ChunkError> {
        let place = self.order.enter(id.0);
        place.reached().await;
        let (slot, _) = self.lookup(id, version)?;
        let record = if blockdev::mutation::off("store.quarantine") {
            Record::Purge { slot }
        } else {
            let at = (self.rt.wall().0 / 1_000_000) as u32;
            let flags = self.judge_delete(id, version);
            Record::Quarantine { slot, at, flags }
        };
        let seq = self.commit(&record, |_| Ok(())).await?;
        self.counters.damaged.borrow_mut().remove(&id.0);
        self.tell(News::ChunksQuarantined, format!("chunk {id} deleted"));
        drop(place);
        self.settled(seq).await
    }

    async fn change_version(
        self: Rc<Self>,
        id: ChunkId,
        new: ChunkVersion,
        old: ChunkVersion,
    ) -> Result<(), ChunkError> {
        self.stale.borrow_mut().on_changed(id.0);
        let place = self.order.enter(id.0);
        place.reached().await;
        let (slot, _) = self.lookup(id, old)?;
        let record = Record::SetVersion {
            slot,
            version: new.0,
        };
        let seq = self.commit(&record, |_| Ok(())).await?;
        drop(place);
        self.settled(seq).await
    }

    /// The granule that `length` cuts through, zeroed behind it; `None` if nothing is to be
    /// rewritten.
    async fn edge(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        length: u32,
    ) -> Result<Option<(u32, Granule)>, ChunkError> {
        let (_, slot) = self.lookup(id, version)?;
        let inside = |g: &u32| *g < u32::from(slot.blocks) * BLOCK_GRANULES;
        let Some(granule) = edge_of(length).filter(inside) else {
            return Ok(None);
        };
        let lookup = || self.lookup(id, version);
        let old = self
            .granules(granule..granule + 1, Reader::Asks, &mut None, lookup)
            .await;
        let old = match old {
            Err(ChunkError::Crc) => {
                self.report_damage(id.0);
                return Err(ChunkError::Crc);
            }
            other => other?,
        };
        let mut page = self.medium.pool.alloc_now(UNIT_BYTES);
        let keep = length as usize % UNIT_BYTES;
        page[..keep].copy_from_slice(&old[0].0[..keep]);
        page[keep..].fill(0);
        let crc = crc32(&page);
        Ok(Some((granule, Granule::new(page.freeze(), crc))))
    }

    /// Appends a record with an edge granule of `source`. `record` gets the edge's pointer; `owner`
    /// tells the slot that the record changes, and is asked last: while this waits another
    /// creation may take a vacant one.
    async fn append_with_edge(
        &self,
        edge: Option<(u32, Granule)>,
        source: u32,
        owner: impl Fn() -> u32,
        need: Need,
        record: impl Fn(u32, Ptr) -> Record,
    ) -> Result<Submitted, ChunkError> {
        let _hold = self.hold();
        let data = edge.and_then(|(granule, g)| g.data.map(|data| (granule, g.crc, data)));
        let missing = |core: &mut Core| {
            let probe = record(0, Ptr::HOLE);
            let missing = core.missing(&probe);
            let page = data
                .as_ref()
                .map(|(granule, ..)| crate::maps::locate(*granule).0);
            match page {
                Some(page) if missing.is_empty() => {
                    let Core { dir, maps, .. } = core;
                    maps.need(dir, source, page).into_iter().collect()
                }
                _ => missing,
            }
        };
        let wanted = usize::from(data.is_some());
        let units = self.reserve_units(Need { wanted, ..need }, missing).await?;
        let refused = Rc::new(Cell::new(false));
        let slot = owner();
        let mut writes = Vec::new();
        let mut ptr = Ptr::HOLE;
        if let (Some((granule, crc, data)), Some(&unit)) = (&data, units.first()) {
            ptr = Ptr { unit, crc: *crc };
            self.cache.borrow_mut().sent(ptr, data.clone());
            let old = self.core.borrow().maps.ptr(source, *granule);
            writes.push(DataWrite {
                unit,
                data: IoVec::from(data.clone()),
                undo: Rc::new([Undo {
                    slot,
                    granule: *granule,
                    old,
                    new: ptr,
                }]),
                refused: refused.clone(),
            });
        }
        let seq = self.append(&record(slot, ptr), writes);
        self.pump();
        Ok(Submitted { seq, refused })
    }

    async fn finish_change(&self, submitted: Submitted) -> Result<(), ChunkError> {
        self.settled(submitted.seq).await?;
        match submitted.refused.get() {
            true => Err(ChunkError::NoSpace),
            false => Ok(()),
        }
    }

    async fn truncate_chunk(
        self: Rc<Self>,
        id: ChunkId,
        length: u32,
        new: ChunkVersion,
        old: ChunkVersion,
    ) -> Result<(), ChunkError> {
        if length > CHUNK_BYTES {
            return Err(crate::read::WRONG_SIZE);
        }
        self.stale.borrow_mut().on_changed(id.0);
        let place = self.order.enter(id.0);
        place.reached().await;
        let (slot, _) = self.lookup(id, old)?;
        let edge = self.edge(id, old, length).await?;
        let record = |_, edge| Record::Truncate {
            slot,
            version: new.0,
            length,
            edge,
        };
        let submitted = self
            .append_with_edge(edge, slot, || slot, Need::shrink(0), record)
            .await?;
        drop(place);
        self.finish_change(submitted).await
    }

    async fn duplicate_chunk(
        self: Rc<Self>,
        new: (ChunkId, ChunkVersion),
        old: (ChunkId, ChunkVersion),
        length: Option<u32>,
    ) -> Result<(), ChunkError> {
        if length.is_some_and(|l| l > CHUNK_BYTES) {
            return Err(crate::read::WRONG_SIZE);
        }
        self.allotted(new.0);
        let place = self.order.enter_both(new.0 .0, old.0 .0);
        place.reached().await;
        if self.core.borrow().dir.find(new.0 .0).is_some() {
            return Err(ChunkError::Exists);
        }
        let (source, slot) = self.lookup(old.0, old.1)?;
        self.writable()?;
        // A copy of data that the device then refuses could not be taken back.
        let last = self.core.borrow().journal.last_seq();
        self.answered.wait(last).await?;
        let figures = self.figures();
        if figures.used + u64::from(slot.granules) * UNIT_BYTES as u64 > figures.total {
            return Err(ChunkError::NoSpace);
        }
        let edge = match length {
            Some(length) => self.edge(old.0, old.1, length).await?,
            None => None,
        };
        let _hold = self.hold();
        loop {
            let missing = self.core.borrow_mut().missing_map(source, 0);
            if missing.is_empty() {
                break;
            }
            self.load(missing).await?;
        }
        if !self.core.borrow().can_share(source) {
            return Err(ChunkError::NoSpace);
        }
        let record = |slot, edge| Record::Duplicate {
            new: slot,
            old: source,
            id: new.0 .0,
            version: new.1 .0,
            length,
            edge,
        };
        let vacant = || self.core.borrow().dir.vacant();
        let pages = {
            let core = self.core.borrow();
            core.maps.present(&core.dir, source).len()
        };
        let need = Need::with_pages(0, pages + 1);
        let submitted = self
            .append_with_edge(edge, source, vacant, need, record)
            .await?;
        drop(place);
        self.finish_change(submitted).await
    }

    /// Number of chunk ids ever ordered: the highest one.
    pub fn largest_chunk_id(&self) -> u64 {
        self.core.borrow().superblock.highest_id
    }
}

impl Chunks for Store {
    fn create(&self, id: ChunkId, version: ChunkVersion) -> Reply<()> {
        let me = self.rc();
        self.begin(async move {
            let seq = me.clone().create_chunk(id, version).await?;
            me.acknowledged(seq).await
        })
    }

    fn delete(&self, id: ChunkId, version: ChunkVersion) -> Reply<()> {
        self.begin(self.rc().delete_chunk(id, version))
    }

    fn set_version(&self, id: ChunkId, new: ChunkVersion, old: ChunkVersion) -> Reply<()> {
        self.begin(self.rc().noting(id, self.rc().change_version(id, new, old)))
    }

    fn truncate(
        &self,
        id: ChunkId,
        length: u32,
        new: ChunkVersion,
        old: ChunkVersion,
    ) -> Reply<()> {
        self.begin(
            self.rc()
                .noting(id, self.rc().truncate_chunk(id, length, new, old)),
        )
    }

    fn duplicate(
        &self,
        new_id: ChunkId,
        new_version: ChunkVersion,
        old_id: ChunkId,
        old_version: ChunkVersion,
        length: Option<u32>,
    ) -> Reply<()> {
        let (new, old) = ((new_id, new_version), (old_id, old_version));
        self.begin(self.rc().duplicate_chunk(new, old, length))
    }

    fn open(&self, id: ChunkId, version: ChunkVersion) -> Result<u16, ChunkError> {
        self.lookup(id, version).map(|(_, slot)| slot.blocks)
    }

    fn read(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        block: u16,
        offset: u32,
        size: u32,
    ) -> Reply<ReadPiece> {
        let mut read = Box::pin(self.rc().read_piece(id, version, (block, offset, size)));
        // Fix its place among the operations on the chunk; nobody minds if it is dropped later.
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::future::Future::poll(read.as_mut(), &mut cx) {
            std::task::Poll::Ready(result) => Box::pin(std::future::ready(result)),
            std::task::Poll::Pending => read,
        }
    }

    fn write(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        block: u16,
        offset: u32,
        data: IoVec,
        crc: u32,
    ) -> Reply<()> {
        let (begin, bytes) = (self.rt.now(), data.len());
        let me = self.rc();
        let write = me
            .clone()
            .write_piece((id, version), (block, offset), data, crc);
        let submitted = self.begin(write);
        let settled = {
            let me = me.clone();
            async move { me.settle(submitted.await?, bytes, begin).await }
        };
        Box::pin(me.noting(id, settled))
    }

    fn finish(&self, _id: ChunkId) -> Reply<()> {
        let me = self.rc();
        let acknowledged = self.answered.get();
        self.begin(async move {
            match me.options.durability {
                Durability::Cache => Ok(()),
                Durability::Flush | Durability::Fua => me.durable(acknowledged).await,
            }
        })
    }

    fn checksum_table(&self, id: ChunkId, version: ChunkVersion) -> Reply<Vec<u32>> {
        self.begin(self.rc().block_sums(id, version))
    }

    fn replica_begin(&self, id: ChunkId, version: ChunkVersion) -> Reply<ReplicaToken> {
        self.begin(self.rc().begin_replica(id, version))
    }

    fn replica_write(&self, token: ReplicaToken, block: u16, data: IoVec, crc: u32) -> Reply<()> {
        let (begin, bytes) = (self.rt.now(), data.len());
        let me = self.rc();
        let submitted = self.begin(me.clone().write_replica(token, block, data, crc));
        Box::pin(async move { me.settle(submitted.await?, bytes, begin).await })
    }

    fn replica_commit(&self, token: ReplicaToken, blocks: u16) -> Reply<()> {
        self.begin(self.rc().commit_replica(token, blocks))
    }

    fn replica_abort(&self, token: ReplicaToken) {
        let me = self.rc();
        self.rt.spawn(async move { me.abort_replica(token).await });
    }

    fn inventory(&self) -> Vec<ChunkEntry> {
        let core = self.core.borrow();
        let entry = |(id, slot): (u64, u32)| ChunkEntry {
            id: ChunkId(id),
            version: ChunkVersion(core.dir.get(slot).version),
            removing: false,
        };
        core.dir.live_ids().into_iter().map(entry).collect()
    }

    fn space(&self) -> Space {
        let figures = self.figures();
        let chunks = self.core.borrow().dir.live().chunks.min(u32::MAX.into()) as u32;
        Space {
            used_bytes: figures.used,
            total_bytes: figures.total,
            chunks,
            ..Space::default()
        }
    }

    fn disks(&self) -> Vec<Disk> {
        let figures = self.figures();
        vec![Disk {
            path: self.options.name.clone(),
            removing: false,
            damaged: matches!(*self.life.borrow(), Life::Failed(_)),
            scanning: false,
            last_error: self.counters.last_error.get(),
            used_bytes: figures.used,
            total_bytes: figures.total,
            chunks: self.core.borrow().dir.live().chunks as u32,
            stats: self.counters.periods(self.rt.now()),
        }]
    }

    fn reports(&self) -> Rc<ReportQueue> {
        self.reports.clone()
    }
}

/// Whether a slot still is the quarantined chunk it was.
pub(crate) fn is_quarantined(kind: Kind) -> Result<(), ChunkError> {
    match kind {
        Kind::Quarantined => Ok(()),
        _ => Err(ChunkError::NoChunk),
    }
}
