//! Single rules of the store, each in the situation that it is there for.

mod sim;

use blockdev::IoVec;
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkError, ChunkId, ChunkVersion, Chunks};
use chunk_store::{CheckOptions, CheckResult, Store};
use sim::life::{format_volume, seeds, Life, Seed};
use sim::{disks, Disks, Rng};
use std::rc::Rc;
use std::time::Duration;

const ID: ChunkId = ChunkId(1);
const V1: ChunkVersion = ChunkVersion(1);

/// A fresh volume with one chunk.
fn begin(disks: &Disks, rng: &mut Rng) -> (Life, Rc<Store>) {
    let life = Life::new(disks, rng);
    format_volume(&life);
    let store = life.open();
    life.rt.block_on(store.create(ID, V1)).expect("created");
    (life, store)
}

/// Writes a granule at the head of a block.
fn put(life: &Life, store: &Store, block: u16, byte: u8) -> chunk_api::Reply<()> {
    let data = life.pool.copy_now(&[byte; 4096]);
    let crc = crc32_iovec(&data);
    store.write(ID, ChunkVersion(0), block, 0, data, crc)
}

/// The first granule of a block, which holds one byte throughout.
fn get(life: &Life, store: &Store, block: u16) -> Result<u8, ChunkError> {
    let read = life.rt.block_on(store.read(ID, V1, block, 0, 4096))?;
    let bytes = read.data.to_vec();
    assert!(bytes.iter().all(|&b| b == bytes[0]), "a mixture");
    Ok(bytes[0])
}

/// The process dies, and the legs named lose their caches.
fn end(life: Life, store: Rc<Store>, disks: &Disks, cut: &[usize], rng: &mut Rng) {
    drop(store);
    life.rt.kill();
    for (leg, disk) in disks.iter().enumerate() {
        let mut disk = disk.borrow_mut();
        disk.kill(rng);
        if cut.contains(&leg) {
            disk.cut(rng);
        }
    }
}

fn assert_clean(disks: &Disks, rng: &mut Rng) {
    let life = Life::new(disks, rng);
    let summary = life.check(CheckOptions {
        repair: false,
        data: true,
    });
    let problems = &summary.problems;
    assert_eq!(summary.result(), CheckResult::Clean, "{problems:#?}");
}

/// R9: a superblock names pages that are durable, so that losing all caches at any instant of a
/// checkpoint leaves a volume that opens and has what was durable before.
#[test]
fn a_checkpoint_names_only_what_is_durable() {
    for seed in seeds(150) {
        let _seed = Seed(seed);
        let (mut rng, disks) = (Rng(seed), disks());
        let (life, store) = begin(&disks, &mut rng);
        for block in 0..40 {
            life.rt
                .block_on(put(&life, &store, block, block as u8 + 1))
                .expect("written");
        }
        life.rt.block_on(store.finish(ID)).expect("durable");
        let stopping = store.clone();
        let stopped = life.rt.spawn_handle(async move { stopping.stop().await });
        life.rt.run_for(Duration::from_micros(rng.below(2_500)));
        drop(stopped);
        end(life, store, &disks, &[0, 1], &mut rng);
        let life = Life::new(&disks, &mut rng);
        let store = life.open();
        for block in 0..40 {
            assert_eq!(get(&life, &store, block), Ok(block as u8 + 1));
        }
        end(life, store, &disks, &[], &mut rng);
        assert_clean(&disks, &mut rng);
    }
}

/// R7: what an overwrite gave up is not written to before the overwrite is durable.
#[test]
fn a_unit_waits_for_the_record_that_gave_it_up() {
    for seed in seeds(150) {
        let _seed = Seed(seed);
        let (mut rng, disks) = (Rng(seed), disks());
        let (life, store) = begin(&disks, &mut rng);
        for block in 0..8 {
            life.rt
                .block_on(put(&life, &store, block, 1))
                .expect("written");
        }
        life.rt.block_on(store.finish(ID)).expect("durable");
        for block in 0..8 {
            life.rt
                .block_on(put(&life, &store, block, 2))
                .expect("written");
        }
        let rest: Vec<_> = (8..16)
            .map(|block| life.rt.spawn_handle(put(&life, &store, block, 3)))
            .collect();
        life.rt.run_for(Duration::from_micros(rng.below(1_500)));
        drop(rest);
        end(life, store, &disks, &[0, 1], &mut rng);
        let life = Life::new(&disks, &mut rng);
        let store = life.open();
        for block in 0..8 {
            let byte = get(&life, &store, block);
            assert!(matches!(byte, Ok(1 | 2)), "block {block}: {byte:?}");
        }
    }
}

/// R2: frames that one leg lost are taken from the other.
#[test]
fn what_one_leg_lost_is_replayed_from_the_other() {
    for seed in seeds(60) {
        let _seed = Seed(seed);
        let (mut rng, disks) = (Rng(seed), disks());
        let (life, store) = begin(&disks, &mut rng);
        for block in 0..10 {
            life.rt
                .block_on(put(&life, &store, block, 7))
                .expect("written");
        }
        end(life, store, &disks, &[seed as usize % 2], &mut rng);
        let life = Life::new(&disks, &mut rng);
        let store = life.open();
        for block in 0..10 {
            assert_eq!(get(&life, &store, block), Ok(7));
        }
    }
}

/// A thin unit that has no space for a checkpoint or the journal: clients are refused, nothing is
/// lost, and all goes on by itself once there is space.
#[test]
fn a_thin_unit_without_space_for_the_store_itself_is_waited_for() {
    for seed in seeds(15) {
        let _seed = Seed(seed);
        let (mut rng, disks) = (Rng(seed), disks());
        let (life, store) = begin(&disks, &mut rng);
        life.rt.block_on(put(&life, &store, 0, 1)).expect("written");
        life.mirror.no_space.set(true);
        // Versions fill the journal until a checkpoint is due, and then until there is no room.
        let mut version = 1;
        let mut change = |store: &Store| {
            version += 1;
            life.rt
                .block_on(store.set_version(ID, ChunkVersion(version), ChunkVersion(0)))
        };
        let refused = (0..200).find_map(|_| change(&store).err());
        assert_eq!(refused, Some(ChunkError::NoSpace));
        let write = life.rt.block_on(put(&life, &store, 1, 2));
        assert_eq!(write, Err(ChunkError::NoSpace));
        assert_eq!(store.stats().failed, None);
        life.mirror.no_space.set(false);
        life.rt.run_for(Duration::from_secs(3));
        change(&store).expect("space again");
        life.mirror.no_journal_space.set(true);
        let data = life.pool.copy_now(&[3; 4096]);
        let crc = crc32_iovec(&data);
        let waits = life
            .rt
            .spawn_handle(store.write(ID, ChunkVersion(0), 2, 0, data, crc));
        life.rt.run_for(Duration::from_secs(2));
        assert_eq!(waits.try_take(), None, "no frame, no answer");
        life.mirror.no_journal_space.set(false);
        life.rt.run_for(Duration::from_secs(2));
        assert_eq!(waits.try_take(), Some(Ok(())));
        let any = |block| {
            let read = store.read(ID, ChunkVersion(0), block, 0, 1);
            life.rt.block_on(read).expect("read").data.to_vec()[0]
        };
        assert_eq!((any(0), any(1), any(2)), (1, 0, 3));
        assert_eq!(store.stats().failed, None);
        end(life, store, &disks, &[], &mut rng);
        assert_clean(&disks, &mut rng);
    }
}

#[test]
fn a_thin_unit_out_of_space_changes_nothing() {
    for seed in seeds(40) {
        let _seed = Seed(seed);
        let mut rng = Rng(seed ^ 0xABCD);
        let disks = disks();
        let mut life = Life::new(&disks, &mut rng);
        format_volume(&life);
        let mut store = life.open();
        let id = ChunkId(1);
        life.rt
            .block_on(store.create(id, ChunkVersion(1)))
            .expect("created");
        let write = |life: &Life, store: &Store, at: u32, byte: u8, len: usize| {
            let data: IoVec = life.pool.copy_now(&vec![byte; len]);
            let crc = crc32_iovec(&data);
            store.write(id, ChunkVersion(1), 0, at, data, crc)
        };
        life.rt
            .block_on(write(&life, &store, 0, 7, 65_536))
            .expect("written");
        life.mirror.no_space.set(true);
        let refused: Vec<_> = (0..8)
            .map(|_| {
                let (at, len) = (rng.below(40_000) as u32, 1 + rng.below(20_000) as usize);
                life.rt.spawn_handle(write(&life, &store, at, 9, len))
            })
            .collect();
        for reply in refused {
            assert_eq!(life.rt.block_on(reply), Err(ChunkError::NoSpace));
        }
        life.mirror.no_space.set(false);
        let read = |life: &Life, store: &Store| {
            let read = store.read(id, ChunkVersion(1), 0, 0, 65_536);
            life.rt.block_on(read).expect("read").data.to_vec()
        };
        assert_eq!(read(&life, &store), [7; 65_536]);
        life.rt
            .block_on(write(&life, &store, 4_096, 8, 4_096))
            .expect("space again");
        if rng.chance(50) {
            life.rt.kill();
            for disk in disks.iter() {
                disk.borrow_mut().kill(&mut rng);
            }
        } else {
            let stopping = store.clone();
            life.rt
                .block_on(async move { stopping.stop().await })
                .expect("stopped");
        }
        drop(store);
        life = Life::new(&disks, &mut rng);
        store = life.open();
        let mut expected = vec![7; 65_536];
        expected[4_096..8_192].fill(8);
        assert_eq!(read(&life, &store), expected);
        drop(store);
        life.rt.kill();
        life = Life::new(&disks, &mut rng);
        let summary = life.check(CheckOptions {
            repair: false,
            data: true,
        });
        assert_eq!(
            summary.result(),
            CheckResult::Clean,
            "{:#?}",
            summary.problems
        );
    }
}

/// Units that were given up, written again and given up again within one journal: replay must not
/// take the first giving up, which is durable, for the second, which is not. If it does, the next
/// checkpoint's trees get units that are freed once more under them.
#[test]
fn reuse_within_the_journal_frees_nothing_early() {
    for seed in seeds(40) {
        let _seed = Seed(seed);
        let mut rng = Rng(seed ^ 0x5EED);
        let disks = disks();
        let mut life = Life::new(&disks, &mut rng);
        format_volume(&life);
        let mut store = life.open();
        let (id, version) = (ChunkId(1), ChunkVersion(1));
        life.rt
            .block_on(store.create(id, version))
            .expect("created");
        let write = |life: &Life, store: &Store, byte: u8| {
            let data: IoVec = life.pool.copy_now(&vec![byte; 65_536]);
            let crc = crc32_iovec(&data);
            let write = store.write(id, version, 0, 0, data, crc);
            life.rt.block_on(write).expect("written");
        };
        let durable = 10 + rng.below(10) as u8;
        let last = durable + 1 + rng.below(6) as u8;
        for byte in 1..=last {
            write(&life, &store, byte);
            if byte <= durable {
                life.rt.block_on(store.finish(id)).expect("durable");
            }
        }
        drop(store);
        life.rt.kill();
        for disk in disks.iter() {
            disk.borrow_mut().kill(&mut rng);
        }
        life = Life::new(&disks, &mut rng);
        store = life.open();
        // Checkpoints replace the trees that the closing wrote.
        for byte in last + 1..last + 4 {
            write(&life, &store, byte);
            let stopping = store.clone();
            life.rt
                .block_on(async move { stopping.stop().await })
                .expect("stopped");
            drop(store);
            life.rt.kill();
            life = Life::new(&disks, &mut rng);
            store = life.open();
            let read = store.read(id, version, 0, 0, 65_536);
            let read = life.rt.block_on(read).expect("read").data.to_vec();
            assert_eq!(read, [byte; 65_536]);
        }
        drop(store);
        life.rt.kill();
        life = Life::new(&disks, &mut rng);
        let summary = life.check(CheckOptions {
            repair: false,
            data: true,
        });
        assert_eq!(
            summary.result(),
            CheckResult::Clean,
            "{:#?}",
            summary.problems
        );
    }
}
