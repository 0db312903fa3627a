//! Single rules of the store, each in the situation that it is there for.

mod sim;

use blockdev::IoVec;
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkError, ChunkId, ChunkVersion, Chunks};
use chunk_store::{CheckOptions, CheckResult, Store};
use sim::life::{format_volume, seeds, Life, Seed};
use sim::{disks, Rng};

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
