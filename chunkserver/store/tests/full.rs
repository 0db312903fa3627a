//! A volume filled to the last unit by fragmented writes, copies and overwrites goes on: clients get
//! "no space", what the master orders is done, restarts work, and deletes make room again.

mod sim;

use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkError, ChunkId, ChunkVersion, Chunks};
use chunk_store::{CheckOptions, CheckResult, Store};
use sim::life::{crash, format_volume, seeds, Crash, Life, Seed};
use sim::{disks, Disks, Rng};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const ANY: ChunkVersion = ChunkVersion(0);

/// What each granule of each chunk holds: one byte throughout.
type Content = BTreeMap<u64, BTreeMap<u32, u8>>;

struct Volume {
    rng: Rng,
    disks: Disks,
    life: Life,
    store: Rc<Store>,
    content: Content,
    next_id: u64,
    byte: u8,
}

impl Volume {
    fn new(seed: u64) -> Volume {
        let mut rng = Rng(seed);
        let disks = disks();
        let life = Life::new(&disks, &mut rng);
        format_volume(&life);
        let store = life.open();
        Volume {
            rng,
            disks,
            life,
            store,
            content: Content::new(),
            next_id: 1,
            byte: 0,
        }
    }

    fn done<T: 'static>(
        &self,
        reply: impl std::future::Future<Output = Result<T, ChunkError>> + 'static,
    ) -> Result<T, ChunkError> {
        let result = self.life.rt.block_on(reply);
        assert_eq!(self.store.stats().failed, None, "the volume goes on");
        result
    }

    fn create(&mut self) -> Result<(), ChunkError> {
        let id = self.next_id;
        self.next_id += 1;
        self.done(self.store.create(ChunkId(id), ChunkVersion(1)))?;
        self.content.insert(id, BTreeMap::new());
        Ok(())
    }

    fn any_id(&mut self) -> u64 {
        let at = self.rng.below(self.content.len() as u64) as usize;
        *self.content.keys().nth(at).expect("there are chunks")
    }

    /// Writes a granule somewhere; with `over` where something lies.
    fn write(&mut self, over: bool) -> Result<(), ChunkError> {
        let id = self.any_id();
        let held = &self.content[&id];
        let granule = match over && !held.is_empty() {
            true => {
                let at = self.rng.below(held.len() as u64) as usize;
                *held.keys().nth(at).expect("inside")
            }
            false => self.rng.below(1024 * 16) as u32,
        };
        self.put(id, granule, 1)
    }

    /// Writes granules of one block, all of one byte.
    fn put(&mut self, id: u64, first: u32, granules: u32) -> Result<(), ChunkError> {
        self.byte = self.byte.wrapping_add(1).max(1);
        let bytes = vec![self.byte; granules as usize * 4096];
        let data = self.life.pool.copy_now(&bytes);
        let crc = crc32_iovec(&data);
        let (block, offset) = ((first / 16) as u16, first % 16 * 4096);
        let write = self.store.write(ChunkId(id), ANY, block, offset, data, crc);
        self.done(write)?;
        let held = self.content.get_mut(&id).expect("known");
        held.extend((first..first + granules).map(|granule| (granule, self.byte)));
        Ok(())
    }

    /// So many chunks, asked for together.
    fn create_many(&mut self, count: u64) {
        let ids = self.next_id..self.next_id + count;
        self.next_id += count;
        let asked: Vec<_> = ids
            .clone()
            .map(|id| self.store.create(ChunkId(id), ChunkVersion(1)))
            .collect();
        for created in asked {
            self.done(created).expect("room");
        }
        self.content.extend(ids.map(|id| (id, BTreeMap::new())));
    }

    /// Fills the volume to the last unit with data of one chunk.
    fn fill(&mut self, id: u64) {
        for granules in [16, 1] {
            let mut next = self.content[&id].len() as u32;
            while self.put(id, next, granules).is_ok() {
                next += granules;
            }
        }
    }

    fn duplicate(&mut self) -> Result<(), ChunkError> {
        let (old, new) = (self.any_id(), self.next_id);
        self.next_id += 1;
        let copy = self
            .store
            .duplicate(ChunkId(new), ChunkVersion(1), ChunkId(old), ANY, None);
        self.done(copy)?;
        let held = self.content[&old].clone();
        self.content.insert(new, held);
        Ok(())
    }

    fn truncate(&mut self) -> Result<(), ChunkError> {
        let id = self.any_id();
        let granule = self.rng.below(1024 * 16) as u32;
        let cut = self
            .store
            .truncate(ChunkId(id), granule * 4096, ChunkVersion(2), ANY);
        self.done(cut)?;
        let held = self.content.get_mut(&id).expect("known");
        held.retain(|&g, _| g < granule);
        Ok(())
    }

    fn delete(&mut self) {
        let id = self.any_id();
        self.done(self.store.delete(ChunkId(id), ANY))
            .expect("a delete always succeeds");
        self.content.remove(&id);
    }

    /// Until `most` tries in a row are refused for want of space.
    fn until_full(&mut self, most: u32, step: impl Fn(&mut Volume) -> Result<(), ChunkError>) {
        let mut refused = 0;
        while refused < most {
            match step(self) {
                Ok(()) => refused = 0,
                Err(error) => {
                    assert_eq!(error.status(), 21, "{error}");
                    refused += 1;
                }
            }
        }
    }

    /// So many tries, each of which may be refused for want of space. Returns how many were.
    fn try_often(
        &mut self,
        tries: u32,
        step: impl Fn(&mut Volume) -> Result<(), ChunkError>,
    ) -> u32 {
        let mut refused = 0;
        for _ in 0..tries {
            if let Err(error) = step(self) {
                assert_eq!(error.status(), 21, "{error}");
                refused += 1;
            }
        }
        refused
    }

    fn restart(&mut self) {
        match self.rng.below(3) {
            0 => {
                let store = self.store.clone();
                self.done(async move { store.stop().await })
                    .expect("a full volume stops");
                self.life.rt.kill();
            }
            _ => {
                // What is acknowledged is durable, so that any crash must leave it.
                self.done(self.store.finish(ChunkId(1))).expect("durable");
                self.life
                    .rt
                    .run_for(Duration::from_micros(self.rng.below(900)));
                self.life.rt.kill();
                let kind = crash(&self.disks, &mut self.rng);
                assert!(matches!(
                    kind,
                    Crash::Kill | Crash::CutAll | Crash::CutOne(_)
                ));
            }
        }
        self.life = Life::new(&self.disks, &mut self.rng);
        self.store = self.life.open();
        assert_eq!(self.store.inventory().len(), self.content.len());
    }

    fn verify(&mut self) {
        for (&id, held) in &self.content {
            for (&granule, &byte) in held {
                let (block, offset) = ((granule / 16) as u16, granule % 16 * 4096);
                let read = self.store.read(ChunkId(id), ANY, block, offset, 4096);
                let piece = self.life.rt.block_on(read).expect("read");
                assert_eq!(piece.data.to_vec(), [byte; 4096], "{id} granule {granule}");
            }
        }
    }
}

#[test]
fn a_volume_full_to_the_last_unit_goes_on() {
    for seed in seeds(if cfg!(debug_assertions) { 4 } else { 30 }) {
        let _seed = Seed(seed);
        let mut v = Volume::new(seed);
        for _ in 0..5 {
            v.create().expect("room");
        }
        v.until_full(10, |v| v.write(false));
        v.restart();
        v.verify();
        v.until_full(3, Volume::duplicate);
        v.try_often(60, |v| v.write(v.byte % 3 > 0));
        // The directory grows too; its pages are charged.
        v.until_full(3, Volume::create);
        v.restart();
        for _ in 0..30 {
            v.try_often(10, |v| v.write(true));
            let id = v.any_id();
            let changed = v.store.set_version(ChunkId(id), ChunkVersion(3), ANY);
            v.done(changed).expect("a version can always be changed");
            match v.rng.below(4) {
                // It may need a unit for its edge's map page, which a full volume may lack.
                0 => drop(v.truncate()),
                1 => v.restart(),
                _ => {}
            }
        }
        v.verify();
        while v.store.stats().free_bytes < 1 << 20 {
            v.delete();
        }
        v.restart();
        v.create().expect("what was deleted makes room");
        for _ in 0..50 {
            v.write(false).expect("what was deleted makes room");
        }
        v.restart();
        v.verify();
        let store = v.store.clone();
        v.done(async move { store.stop().await }).expect("stopped");
        v.life = Life::new(&v.disks, &mut v.rng);
        let summary = v.life.check(CheckOptions {
            repair: false,
            data: true,
        });
        let problems = &summary.problems;
        assert_eq!(summary.result(), CheckResult::Clean, "{problems:#?}");
    }
}

/// What the reserve keeps for the trees. Here they are larger than all else that is kept, and the master's orders
/// change every page of the directory while writers get no unit any more: each order is obeyed, and the checkpoint,
/// or the closing of the next start, finds room for all of these pages.
#[test]
fn every_page_of_the_trees_may_change_in_a_full_volume() {
    const PAGES: u64 = 260;
    const SLOTS_A_PAGE: u64 = 63;
    for seed in seeds(if cfg!(debug_assertions) { 2 } else { 10 }) {
        let _seed = Seed(seed);
        let mut v = Volume::new(seed);
        v.create_many(PAGES * SLOTS_A_PAGE);
        v.restart();
        v.fill(1);
        let mut asked: Vec<chunk_api::Reply<()>> = Vec::new();
        for page in 0..PAGES {
            // Chunk 1 holds the data.
            let id = page * SLOTS_A_PAGE + 2 + v.rng.below(SLOTS_A_PAGE - 2);
            asked.push(match page % 3 {
                0 => {
                    v.content.remove(&id);
                    v.store.delete(ChunkId(id), ANY)
                }
                1 => v.store.truncate(ChunkId(id), 0, ChunkVersion(2), ANY),
                _ => v.store.set_version(ChunkId(id), ChunkVersion(2), ANY),
            });
        }
        for order in asked {
            v.done(order)
                .expect("an order that takes no space is obeyed");
        }
        v.restart();
        v.verify();
        v.fill(1);
        let id = v.content.keys().nth(1).copied().expect("there are chunks");
        let (deleted, cut) = (
            v.store.delete(ChunkId(id), ANY),
            v.store.truncate(ChunkId(1), 0, ChunkVersion(2), ANY),
        );
        v.done(deleted).expect("deleted");
        v.done(cut).expect("cut");
        v.content.remove(&id);
        v.content.insert(1, BTreeMap::new());
        v.restart();
        for granule in 0..50 {
            v.put(1, granule, 1).expect("what was cut makes room");
        }
        v.verify();
    }
}
