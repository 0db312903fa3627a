//! Several volumes behind one [`Chunks`]: which volume holds a chunk, and which takes a new one.
//!
//! A chunk lives on one volume. Should an id turn up on two (a volume that came back from
//! another node), the higher version is the one that is served and registered. A new chunk goes
//! to the active volume with the largest free share; a duplicate stays beside its source, with
//! which it shares its granules.
//!
//! Volumes come and go while the node serves: [`Volumes::put`] tells the master of the chunks that
//! appeared.

use blockdev::{IoVec, Rt};
use chunk_api::{
    ChunkEntry, ChunkError, ChunkId, ChunkVersion, Chunks, Disk, ReadPiece, ReplicaToken, Reply,
    Report, ReportQueue, Space,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;

/// What a volume in service takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Everything.
    Active,
    /// Marked for removal (`*` of mfshdd.cfg): no new chunks, copies reported as leaving.
    Removing,
}

/// A volume in service.
pub struct Volume {
    name: String,
    chunks: Rc<dyn Chunks>,
    service: Cell<Service>,
}

/// Replicas under construction: our token → the volume's.
type Replicas = BTreeMap<u64, (Rc<Volume>, ReplicaToken)>;

/// All volumes in service. See the module.
pub struct Volumes {
    rt: Rt,
    list: RefCell<Vec<Rc<Volume>>>,
    replicas: Rc<RefCell<Replicas>>,
    next_replica: Cell<u64>,
    reports: Rc<ReportQueue>,
}

impl Volumes {
    /// None yet.
    pub fn new(rt: Rt) -> Rc<Volumes> {
        Rc::new(Volumes {
            rt,
            list: RefCell::default(),
            replicas: Rc::default(),
            next_replica: Cell::new(1),
            reports: Rc::default(),
        })
    }

    /// Takes a volume into service. With `announce` its chunks are reported as new; without, the
    /// registration that follows lists them.
    pub fn put(
        self: &Rc<Self>,
        name: &str,
        chunks: Rc<dyn Chunks>,
        service: Service,
        announce: bool,
    ) {
        let volume = Rc::new(Volume {
            name: name.to_owned(),
            chunks,
            service: Cell::new(service),
        });
        self.list.borrow_mut().push(volume.clone());
        if announce {
            for entry in volume.chunks.inventory() {
                self.reports.push(Report::New {
                    id: entry.id,
                    version: entry.version,
                    removing: volume.is_removing(),
                });
            }
        }
        let (from, to) = (volume.chunks.reports(), self.reports.clone());
        let alive = Rc::downgrade(&volume);
        self.rt.spawn(async move {
            loop {
                let report = poll_fn(|cx| from.poll_next(cx)).await;
                let Some(volume) = alive.upgrade() else {
                    break;
                };
                to.push(volume.marked(report));
            }
        });
    }

    /// Takes a volume out of service without a word to the master: it was never told of it.
    pub fn hide(&self, name: &str) {
        self.list.borrow_mut().retain(|volume| volume.name != name);
    }

    /// Takes a volume out of service that the master knows: its chunks are reported lost.
    pub fn withdraw(&self, name: &str) {
        let gone = self.list.borrow().iter().find(|v| v.name == name).cloned();
        let Some(gone) = gone else { return };
        self.hide(name);
        self.replicas
            .borrow_mut()
            .retain(|_, (volume, _)| !Rc::ptr_eq(volume, &gone));
        for entry in gone.chunks.inventory() {
            if self.holder(entry.id).is_none() {
                self.reports.push(Report::Lost(entry.id));
            }
        }
    }

    /// Changes what a volume takes; `false` if it is not in service. The chunks are reported
    /// again, for the mark travels with their version.
    pub fn set_service(&self, name: &str, service: Service) -> bool {
        let Some(volume) = self.list.borrow().iter().find(|v| v.name == name).cloned() else {
            return false;
        };
        if volume.service.replace(service) != service {
            for entry in volume.chunks.inventory() {
                self.reports.push(Report::Lost(entry.id));
                self.reports.push(Report::New {
                    id: entry.id,
                    version: entry.version,
                    removing: volume.is_removing(),
                });
            }
        }
        true
    }

    /// Whether any volume is in service.
    pub fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// The volume that holds `id`, in its highest version.
    fn holder(&self, id: ChunkId) -> Option<Rc<dyn Chunks>> {
        let list = self.list.borrow();
        let mut held: Option<(ChunkVersion, &Rc<Volume>)> = None;
        for volume in list.iter() {
            if let Some(version) = volume.chunks.held(id) {
                if held.is_none_or(|(best, _)| version > best) {
                    held = Some((version, volume));
                }
            }
        }
        held.map(|(_, volume)| volume.chunks.clone())
    }

    /// The active volume with the largest free share.
    fn roomiest(&self) -> Result<Rc<Volume>, ChunkError> {
        let list = self.list.borrow();
        let active = list.iter().filter(|v| v.service.get() == Service::Active);
        let free_share = |volume: &Rc<Volume>| {
            let space = volume.chunks.space();
            let free = space.total_bytes.saturating_sub(space.used_bytes);
            (u128::from(free) << 32)
                .checked_div(u128::from(space.total_bytes))
                .unwrap_or(0)
        };
        // `max_by_key` takes the last of equals; the first in the configuration is meant.
        active
            .rev()
            .max_by_key(|v| free_share(v))
            .cloned()
            .ok_or(ChunkError::NoSpace)
    }

    fn on_holder<T: 'static>(
        &self,
        id: ChunkId,
        operate: impl FnOnce(&dyn Chunks) -> Reply<T>,
    ) -> Reply<T> {
        match self.holder(id) {
            Some(chunks) => operate(&*chunks),
            None => failed(ChunkError::NoChunk),
        }
    }

    fn replica(&self, token: ReplicaToken) -> Option<(Rc<Volume>, ReplicaToken)> {
        self.replicas.borrow().get(&token.0).cloned()
    }
}

fn failed<T: 'static>(error: ChunkError) -> Reply<T> {
    Box::pin(std::future::ready(Err(error)))
}

impl Volume {
    fn is_removing(&self) -> bool {
        self.service.get() == Service::Removing
    }

    /// A report of its chunks, as the master shall hear it: a volume knows nothing of its mark.
    fn marked(&self, report: Report) -> Report {
        match report {
            Report::New { id, version, .. } => Report::New {
                id,
                version,
                removing: self.is_removing(),
            },
            other => other,
        }
    }
}

impl Chunks for Volumes {
    fn create(&self, id: ChunkId, version: ChunkVersion) -> Reply<()> {
        // The holder refuses it, and notes what such an order says of the master.
        if let Some(chunks) = self.holder(id) {
            return chunks.create(id, version);
        }
        match self.roomiest() {
            Ok(volume) => volume.chunks.create(id, version),
            Err(error) => failed(error),
        }
    }

    fn delete(&self, id: ChunkId, version: ChunkVersion) -> Reply<()> {
        self.on_holder(id, |chunks| chunks.delete(id, version))
    }

    fn set_version(&self, id: ChunkId, new: ChunkVersion, old: ChunkVersion) -> Reply<()> {
        self.on_holder(id, |chunks| chunks.set_version(id, new, old))
    }

    fn truncate(
        &self,
        id: ChunkId,
        length: u32,
        new: ChunkVersion,
        old: ChunkVersion,
    ) -> Reply<()> {
        self.on_holder(id, |chunks| chunks.truncate(id, length, new, old))
    }

    fn duplicate(
        &self,
        new_id: ChunkId,
        new_version: ChunkVersion,
        old_id: ChunkId,
        old_version: ChunkVersion,
        length: Option<u32>,
    ) -> Reply<()> {
        if self.holder(new_id).is_some() {
            return failed(ChunkError::Exists);
        }
        self.on_holder(old_id, |chunks| {
            chunks.duplicate(new_id, new_version, old_id, old_version, length)
        })
    }

    fn open(&self, id: ChunkId, version: ChunkVersion) -> Result<u16, ChunkError> {
        self.holder(id)
            .ok_or(ChunkError::NoChunk)?
            .open(id, version)
    }

    fn read(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        block: u16,
        offset: u32,
        size: u32,
    ) -> Reply<ReadPiece> {
        self.on_holder(id, |chunks| chunks.read(id, version, block, offset, size))
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
        self.on_holder(id, |chunks| {
            chunks.write(id, version, block, offset, data, crc)
        })
    }

    fn finish(&self, id: ChunkId) -> Reply<()> {
        self.on_holder(id, |chunks| chunks.finish(id))
    }

    fn checksum_table(&self, id: ChunkId, version: ChunkVersion) -> Reply<Vec<u32>> {
        self.on_holder(id, |chunks| chunks.checksum_table(id, version))
    }

    fn replica_begin(&self, id: ChunkId, version: ChunkVersion) -> Reply<ReplicaToken> {
        if self.holder(id).is_some() {
            return failed(ChunkError::Exists);
        }
        let volume = match self.roomiest() {
            Ok(volume) => volume,
            Err(error) => return failed(error),
        };
        let token = ReplicaToken(self.next_replica.replace(self.next_replica.get() + 1));
        let begun = volume.chunks.replica_begin(id, version);
        let replicas = self.replicas.clone();
        Box::pin(async move {
            let inner = begun.await?;
            replicas.borrow_mut().insert(token.0, (volume, inner));
            Ok(token)
        })
    }

    fn replica_write(&self, token: ReplicaToken, block: u16, data: IoVec, crc: u32) -> Reply<()> {
        match self.replica(token) {
            Some((volume, inner)) => volume.chunks.replica_write(inner, block, data, crc),
            None => failed(ChunkError::NoChunk),
        }
    }

    fn replica_commit(&self, token: ReplicaToken, blocks: u16) -> Reply<()> {
        match self.replicas.borrow_mut().remove(&token.0) {
            Some((volume, inner)) => volume.chunks.replica_commit(inner, blocks),
            None => failed(ChunkError::NoChunk),
        }
    }

    fn replica_abort(&self, token: ReplicaToken) {
        if let Some((volume, inner)) = self.replicas.borrow_mut().remove(&token.0) {
            volume.chunks.replica_abort(inner);
        }
    }

    fn inventory(&self) -> Vec<ChunkEntry> {
        let mut all: Vec<ChunkEntry> = Vec::new();
        for volume in self.list.borrow().iter() {
            let removing = volume.is_removing();
            all.extend(
                volume
                    .chunks
                    .inventory()
                    .into_iter()
                    .map(|e| ChunkEntry { removing, ..e }),
            );
        }
        // Highest version first within an id; the others are not told to the master.
        all.sort_unstable_by_key(|e| (e.id, std::cmp::Reverse(e.version)));
        all.dedup_by_key(|e| e.id);
        all
    }

    fn space(&self) -> Space {
        let mut sum = Space::default();
        for volume in self.list.borrow().iter() {
            let space = volume.chunks.space();
            let (used, total, chunks) = if volume.is_removing() {
                let s = &mut sum;
                (
                    &mut s.removing_used_bytes,
                    &mut s.removing_total_bytes,
                    &mut s.removing_chunks,
                )
            } else {
                (&mut sum.used_bytes, &mut sum.total_bytes, &mut sum.chunks)
            };
            *used += space.used_bytes;
            *total += space.total_bytes;
            *chunks = chunks.saturating_add(space.chunks);
        }
        sum
    }

    fn disks(&self) -> Vec<Disk> {
        let list = self.list.borrow();
        list.iter()
            .flat_map(|volume| {
                volume.chunks.disks().into_iter().map(|disk| Disk {
                    path: volume.name.clone(),
                    removing: volume.is_removing(),
                    ..disk
                })
            })
            .collect()
    }

    fn reports(&self) -> Rc<ReportQueue> {
        self.reports.clone()
    }
}

#[cfg(test)]
mod tests {
    use blockdev::sim::VirtualRt;
    use blockdev::Pool;
    use moosefs::mem::MemChunks;

    use super::*;

    #[test]
    fn a_marked_volume_is_marked_in_all_that_the_master_hears() {
        let world = VirtualRt::new(1);
        let rt = world.rt();
        let chunks = MemChunks::new(rt.clone(), Pool::new(1 << 20), 1 << 30);
        let volumes = Volumes::new(rt.clone());
        volumes.put("vol1", chunks.clone(), Service::Active, true);
        let (id, version) = (ChunkId(7), ChunkVersion(1));
        world.block_on(volumes.create(id, version)).unwrap();
        let before = volumes.space();
        assert!(volumes.set_service("vol1", Service::Removing));
        assert!(!volumes.set_service("vol2", Service::Removing));

        let after = volumes.space();
        assert_eq!((after.total_bytes, after.chunks), (0, 0));
        assert_eq!(after.removing_total_bytes, before.total_bytes);
        assert_eq!(after.removing_used_bytes, before.used_bytes);
        assert_eq!(after.removing_chunks, 1);
        assert!(volumes.inventory()[0].removing && volumes.disks()[0].removing);
        // The one that was there, and one that the volume itself tells of (out of the quarantine).
        let told = || {
            let reports = volumes.reports();
            world.block_on(async move { poll_fn(|cx| reports.poll_next(cx)).await })
        };
        let marked = |id| Report::New {
            id,
            version,
            removing: true,
        };
        assert_eq!((told(), told()), (Report::Lost(id), marked(id)));
        chunks.reports().push(Report::New {
            id: ChunkId(8),
            version,
            removing: false,
        });
        assert_eq!(told(), marked(ChunkId(8)));
    }
}
