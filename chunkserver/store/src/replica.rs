//! Replicas under construction: chunks in slots of their own, invisible until they are committed.

use crate::directory::Kind;
use crate::journal::record::Record;
use crate::layout::{BLOCK_GRANULES, UNIT_BYTES};
use crate::medium::granule;
use crate::store::Store;
use crate::write::{Granule, Submitted};
use blockdev::IoVec;
use chunk_api::crc::crc32;
use chunk_api::{ChunkError, ChunkId, ChunkVersion, ReplicaToken, BLOCKS_PER_CHUNK, BLOCK_BYTES};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Replicas under construction at most; the protocol side has its own, lower bound.
const REPLICAS_MAX: usize = 4096;

/// Replicas by token.
#[derive(Default)]
pub(crate) struct Replicas {
    next: u64,
    open: BTreeMap<ReplicaToken, (u32, u64)>,
}

impl Store {
    fn replica(&self, token: ReplicaToken) -> Result<(u32, u64), ChunkError> {
        self.replicas
            .borrow()
            .open
            .get(&token)
            .copied()
            .ok_or(ChunkError::NoChunk)
    }

    pub(crate) async fn begin_replica(
        self: Rc<Self>,
        id: ChunkId,
        version: ChunkVersion,
    ) -> Result<ReplicaToken, ChunkError> {
        if self.replicas.borrow().open.len() >= REPLICAS_MAX {
            return Err(ChunkError::NotDone("too many replications"));
        }
        let place = self.order.enter(id.0);
        place.reached().await;
        let (slot, _) = self.append_create(id, version, true).await?;
        let mut replicas = self.replicas.borrow_mut();
        replicas.next += 1;
        let token = ReplicaToken(replicas.next);
        replicas.open.insert(token, (slot, id.0));
        Ok(token)
    }

    pub(crate) async fn write_replica(
        self: Rc<Self>,
        token: ReplicaToken,
        block: u16,
        data: IoVec,
        crc: u32,
    ) -> Result<Submitted, ChunkError> {
        self.writable()?;
        if block >= BLOCKS_PER_CHUNK {
            return Err(crate::read::BLOCK_OUT_OF_RANGE);
        }
        if data.len() != BLOCK_BYTES as usize {
            return Err(crate::read::WRONG_SIZE);
        }
        let (_, id) = self.replica(token)?;
        let place = self.order.enter(id);
        place.reached().await;
        let (slot, _) = self.replica(token)?;
        let data = match data.is_page_aligned() {
            true => data,
            false => self.medium.pool.copy_now(&data.to_vec()),
        };
        let mut sum = crate::crc::Sum::default();
        let mut granules = Vec::with_capacity(BLOCK_GRANULES as usize);
        for i in 0..BLOCK_GRANULES as usize {
            let part = granule(&data, i, &self.medium.pool);
            let crc = crc32(&part);
            sum.push(crc, UNIT_BYTES);
            granules.push(Granule::new(part, crc));
        }
        if sum.0 != crc {
            return Err(ChunkError::Crc);
        }
        self.place(slot, u32::from(block) * BLOCK_GRANULES, granules)
            .await
    }

    pub(crate) async fn commit_replica(
        self: Rc<Self>,
        token: ReplicaToken,
        blocks: u16,
    ) -> Result<(), ChunkError> {
        if blocks > BLOCKS_PER_CHUNK {
            return Err(crate::read::BLOCK_OUT_OF_RANGE);
        }
        let (_, id) = self.replica(token)?;
        let place = self.order.enter(id);
        place.reached().await;
        let (slot, _) = self.replica(token)?;
        if self.core.borrow().dir.find(id).is_some() {
            drop(place);
            self.abort_replica(token).await;
            return Err(ChunkError::Exists);
        }
        let seq = self
            .commit(&Record::ReplicaCommit { slot, blocks }, |_| Ok(()))
            .await?;
        self.replicas.borrow_mut().open.remove(&token);
        self.stale.borrow_mut().on_changed(id);
        drop(place);
        self.durable(seq).await
    }

    pub(crate) async fn abort_replica(self: Rc<Self>, token: ReplicaToken) {
        let Ok((_, id)) = self.replica(token) else {
            return;
        };
        let place = self.order.enter(id);
        place.reached().await;
        let Some((slot, _)) = self.replicas.borrow_mut().open.remove(&token) else {
            return;
        };
        let still = |core: &crate::core_state::Core| match core.dir.get(slot).kind {
            Kind::Replica => Ok(()),
            _ => Err(ChunkError::NoChunk),
        };
        if let Err(error) = self.commit(&Record::Purge { slot }, still).await {
            // The next start gives it up, as every replica that was not committed.
            tracing::debug!(%error, chunk = %ChunkId(id), "replica not given up now");
        }
    }
}
