//! When a write counts (P1): each durability mode, with and without what it needs of the legs.

mod sim;

use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkError, ChunkId, ChunkVersion, Chunks};
use chunk_store::{Durability, OpenError, Store};
use sim::life::{format_volume, seeds, Life, Mode, Seed};
use sim::{disks, Disks, Rng};
use std::rc::Rc;
use std::time::Duration;

const V1: ChunkVersion = ChunkVersion(1);
const V2: ChunkVersion = ChunkVersion(2);

fn mode(durability: Durability, fua: bool) -> Mode {
    Mode { durability, fua }
}

fn begin(mode: Mode, disks: &Disks, rng: &mut Rng) -> (Life, Rc<Store>) {
    let life = Life::with(mode, disks, rng);
    format_volume(&life);
    let store = life.open();
    (life, store)
}

fn write(life: &Life, store: &Store, id: u64, block: u16, byte: u8) -> chunk_api::Reply<()> {
    let data = life.pool.copy_now(&[byte; 4096]);
    let crc = crc32_iovec(&data);
    store.write(ChunkId(id), ChunkVersion(0), block, 0, data, crc)
}

fn first_byte(life: &Life, store: &Store, id: u64, block: u16) -> u8 {
    let read = store.read(ChunkId(id), ChunkVersion(0), block, 0, 1);
    life.rt.block_on(read).expect("read").data.to_vec()[0]
}

/// Everything stops, and both legs lose their caches.
fn cut_all(life: Life, store: Rc<Store>, disks: &Disks, rng: &mut Rng) {
    drop(store);
    life.rt.kill();
    for disk in disks.iter() {
        let mut disk = disk.borrow_mut();
        disk.kill(rng);
        disk.cut(rng);
    }
}

#[test]
fn with_fua_every_acknowledged_write_survives_the_loss_of_all_caches() {
    for seed in seeds(60) {
        let _seed = Seed(seed);
        for fua in [true, false] {
            let mode = mode(Durability::Fua, fua);
            let (mut rng, disks) = (Rng(seed), disks());
            let (life, store) = begin(mode, &disks, &mut rng);
            life.rt
                .block_on(store.create(ChunkId(1), V1))
                .expect("created");
            let flushes = life.mirror.flushes.get();
            let replies: Vec<_> = (0..40u16)
                .map(|block| life.rt.spawn_handle(write(&life, &store, 1, block, 7)))
                .collect();
            life.rt.run_for(Duration::from_micros(rng.below(4_000)));
            let acknowledged: Vec<u16> = (0..40u16)
                .zip(&replies)
                .filter_map(|(block, reply)| reply.try_take().map(|result| (block, result)))
                .map(|(block, result)| {
                    result.expect("written");
                    block
                })
                .collect();
            let flushes = life.mirror.flushes.get() - flushes;
            match fua {
                true => assert_eq!(flushes, 0, "no flush where FUA does"),
                false => assert!(flushes <= 12, "one flush a group: {flushes}"),
            }
            cut_all(life, store, &disks, &mut rng);
            let life = Life::with(mode, &disks, &mut rng);
            let store = life.open();
            for block in acknowledged {
                assert_eq!(first_byte(&life, &store, 1, block), 7, "block {block}");
            }
        }
    }
}

/// FUA that comes or goes while writes are under way: those sent without it need a flush.
#[test]
fn writes_sent_without_fua_are_flushed_when_it_appears() {
    for seed in seeds(60) {
        let _seed = Seed(seed);
        let mode = mode(Durability::Fua, false);
        let (mut rng, disks) = (Rng(seed), disks());
        let (life, store) = begin(mode, &disks, &mut rng);
        life.rt
            .block_on(store.create(ChunkId(1), V1))
            .expect("created");
        let reply = life.rt.spawn_handle(write(&life, &store, 1, 0, 7));
        life.mirror.fua.set(true);
        let second = life.rt.spawn_handle(write(&life, &store, 1, 1, 8));
        let mut acknowledged = (None, None);
        while acknowledged.1.is_none() {
            life.rt.run_for(Duration::from_micros(10));
            acknowledged.0 = acknowledged.0.or(reply.try_take());
            acknowledged.1 = second.try_take();
        }
        cut_all(life, store, &disks, &mut rng);
        let life = Life::with(mode, &disks, &mut rng);
        let store = life.open();
        assert_eq!(acknowledged.0, Some(Ok(())), "in order");
        assert_eq!(first_byte(&life, &store, 1, 0), 7);
        assert_eq!(first_byte(&life, &store, 1, 1), 8);
    }
}

#[test]
fn a_flush_bounds_what_power_can_take() {
    let mode = mode(Durability::Flush, true);
    for seed in seeds(20) {
        let _seed = Seed(seed);
        let (mut rng, disks) = (Rng(seed), disks());
        let (life, store) = begin(mode, &disks, &mut rng);
        life.rt
            .block_on(store.create(ChunkId(1), V1))
            .expect("created");
        life.rt
            .block_on(write(&life, &store, 1, 0, 1))
            .expect("written");
        assert!(
            store.stats().unflushed_bytes > 0,
            "shown while it is at risk"
        );
        life.rt.run_for(Duration::from_millis(1_050));
        assert_eq!(
            (store.stats().unflushed_bytes, store.stats().unflushed_ms),
            (0, 0)
        );
        life.rt
            .block_on(write(&life, &store, 1, 1, 2))
            .expect("written");
        life.rt
            .block_on(store.finish(ChunkId(1)))
            .expect("finished");
        life.rt
            .block_on(write(&life, &store, 1, 2, 3))
            .expect("written");
        cut_all(life, store, &disks, &mut rng);
        let life = Life::with(mode, &disks, &mut rng);
        let store = life.open();
        assert_eq!(first_byte(&life, &store, 1, 0), 1, "older than a second");
        assert_eq!(first_byte(&life, &store, 1, 1), 2, "finished");
        assert!([0, 3].contains(&first_byte(&life, &store, 1, 2)));
    }
}

#[test]
fn what_the_master_relies_on_is_durable_in_every_mode() {
    let modes = [
        mode(Durability::Flush, true),
        mode(Durability::Cache, true),
        mode(Durability::Fua, true),
        mode(Durability::Fua, false),
    ];
    for seed in seeds(25) {
        let _seed = Seed(seed);
        for mode in modes {
            let (mut rng, disks) = (Rng(seed), disks());
            let (mut life, mut store) = begin(mode, &disks, &mut rng);
            for id in 1..=4 {
                life.rt
                    .block_on(store.create(ChunkId(id), V1))
                    .expect("created");
                life.rt
                    .block_on(write(&life, &store, id, 0, 9))
                    .expect("written");
            }
            life.rt.run_for(Duration::from_millis(1_500));
            let cut = |life: Life, store: Rc<Store>, rng: &mut Rng| {
                cut_all(life, store, &disks, rng);
                let life = Life::with(mode, &disks, rng);
                let store = life.open();
                (life, store)
            };
            let changed = store.set_version(ChunkId(1), V2, V1);
            life.rt.block_on(changed).expect("changed");
            (life, store) = cut(life, store, &mut rng);
            assert_eq!(store.open(ChunkId(1), V2), Ok(1), "{mode:?}");
            let cut_off = store.truncate(ChunkId(2), 100, V2, V1);
            life.rt.block_on(cut_off).expect("truncated");
            (life, store) = cut(life, store, &mut rng);
            assert_eq!(store.open(ChunkId(2), V2), Ok(1), "{mode:?}");
            life.rt
                .block_on(store.delete(ChunkId(3), V1))
                .expect("deleted");
            (life, store) = cut(life, store, &mut rng);
            assert_eq!(
                store.open(ChunkId(3), V1),
                Err(ChunkError::NoChunk),
                "{mode:?}"
            );
            let token = life
                .rt
                .block_on(store.replica_begin(ChunkId(5), V1))
                .expect("begun");
            let data = life.pool.copy_now(&[5; 65_536]);
            let crc = crc32_iovec(&data);
            let added = store.replica_write(token, 0, data, crc);
            life.rt.block_on(added).expect("written");
            life.rt
                .block_on(store.replica_commit(token, 1))
                .expect("committed");
            (life, store) = cut(life, store, &mut rng);
            assert_eq!(first_byte(&life, &store, 5, 0), 5, "{mode:?}");
        }
    }
}

/// A unit whose cache cannot be flushed is served only as the stock server would.
#[test]
fn a_unit_that_refuses_flushes_needs_the_cache_mode() {
    let (mut rng, disks) = (Rng(1), disks());
    let (life, store) = begin(mode(Durability::Flush, true), &disks, &mut rng);
    life.rt
        .block_on(async move { store.stop().await })
        .expect("stopped");
    for durability in [Durability::Flush, Durability::Fua, Durability::Cache] {
        let life = Life::with(mode(durability, true), &disks, &mut rng);
        life.mirror.refuse_flush.set(true);
        let open = Store::open(
            life.mirror(),
            life.rt.rt(),
            life.pool.clone(),
            life.options(),
        );
        let opened = life.rt.block_on(open);
        if durability != Durability::Cache {
            let error = opened.map(|_| ()).expect_err("refused");
            assert_eq!(error, OpenError::NoFlush);
            assert!(error.to_string().contains("durability = \"cache\""));
            continue;
        }
        let store = opened.expect("opened");
        life.rt
            .block_on(store.create(ChunkId(1), V1))
            .expect("created");
        life.rt
            .block_on(write(&life, &store, 1, 0, 9))
            .expect("written");
        let changed = store.set_version(ChunkId(1), V2, V1);
        life.rt
            .block_on(changed)
            .expect("changed as far as the unit can");
        life.rt
            .block_on(store.finish(ChunkId(1)))
            .expect("finished");
        life.rt.run_for(Duration::from_secs(3));
        assert_eq!(store.stats().failed, None);
        life.rt
            .block_on(async move { store.stop().await })
            .expect("stopped");
    }
}
