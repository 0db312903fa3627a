//! The whole stack, from the chunk store down to the bytes of iSCSI, on two storage nodes: paths
//! that are cut, a storage node that hangs, is killed or loses power, a chunk node that is killed
//! or loses power, also together, and everything losing power at once.
//!
//! The fault model leaves one leg alone in each life (the other is the *victim*), so that whatever
//! was acknowledged must be there after it; only when everything loses power at once may that go
//! back to what was finished (flushed). Each life begins with both legs in sync, which is the claim
//! that the mirror heals by itself.

use blockdev::sim::{Faults, Latency};
use blockdev::{IoVec, Sector};
use chunk_api::{ChunkId, ChunkVersion, Chunks};
use chunk_store::Store;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tests::sim::blocks::Blocks;
use tests::sim::mirror::WitnessDisk;
use tests::sim::net::Cut;
use tests::sim::site::{for_each_seed, Site};
use tests::sim::stack::Stack;

const SECTORS: u64 = 128 << 11;
const CHUNKS: u64 = 3;
/// Granules of 4 KiB that are written in each chunk, in two of its blocks.
const GRANULES: usize = 8;
const VERSION: ChunkVersion = ChunkVersion(1);

fn place(granule: usize) -> (ChunkId, u16, u32) {
    let chunk = granule / GRANULES;
    let within = granule % GRANULES;
    let (block, at) = (within % 2, within / 2);
    (ChunkId(chunk as u64 + 1), block as u16, at as u32 * 4096)
}

fn crc(data: &IoVec) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    data.segments().for_each(|part| hasher.update(part));
    hasher.finalize()
}

fn start_writers(stack: &Stack, blocks: &Rc<Blocks>, over: &Rc<Cell<bool>>) {
    for chunk in 0..CHUNKS as usize {
        let (rt, pool) = (stack.node.host.rt(), stack.node.pool.clone());
        let (store, blocks, over) = (stack.store.clone(), blocks.clone(), over.clone());
        stack.node.host.rt().spawn(async move {
            while !over.get() {
                let granule = chunk * GRANULES + (rt.random() % GRANULES as u64) as usize;
                let (id, block, offset) = place(granule);
                let (generation, data) = blocks.next(&pool, granule);
                let sum = crc(&data);
                let written = store.write(id, VERSION, block, offset, data, sum).await;
                if written.is_err() {
                    return;
                }
                blocks.acknowledged(granule, generation);
                if rt.random() % 8 == 0 {
                    let covered = blocks.before_flush_of(chunk * GRANULES..(chunk + 1) * GRANULES);
                    if store.finish(id).await.is_ok() {
                        blocks.flushed(&covered);
                    }
                }
                rt.sleep(Duration::from_micros(rt.random() % 3000)).await;
            }
        });
    }
}

async fn check_all(store: &Store, blocks: &Blocks, when: &'static str) {
    for granule in 0..blocks.len() {
        let (id, block, offset) = place(granule);
        let piece = store.read(id, VERSION, block, offset, 4096).await;
        let piece = piece.unwrap_or_else(|e| panic!("{when}: granule {granule}: {e:?}"));
        assert_eq!(piece.crc, crc(&piece.data), "{when}: sum of {granule}");
        blocks.check(granule, &piece.data.to_vec(), false, when);
    }
}

fn check(site: &Site, stack: &Stack, blocks: &Rc<Blocks>, when: &'static str) {
    let (store, blocks) = (stack.store.clone(), blocks.clone());
    site.world
        .block_on(async move { check_all(&store, &blocks, when).await });
}

/// Waits until the mirror has healed itself.
fn until_whole(site: &Site, stack: &Stack) {
    for _ in 0..240 {
        if stack.is_whole() {
            return;
        }
        site.world.run_for(Duration::from_millis(500));
    }
    panic!("the mirror is not whole two minutes after everything was healed");
}

/// Something happens to one leg.
fn misfortune(site: &Site, victim: usize) {
    let (chance, storage) = (&site.chance, &site.nodes[victim]);
    let portal = storage.portals[chance.below(2) as usize];
    let what = chance.below(10);
    site.note(|| format!("misfortune {what} of sto{} by {portal:?}", victim + 1));
    match what {
        0 | 1 => site.net.cut(portal, Cut::Silent),
        2 => site.net.cut(portal, Cut::Loud),
        3 | 4 => site.heal_networks(),
        5 => storage.target.unit().device().hang(),
        6 => storage.target.unit().device().unhang(),
        7 => {
            storage.target.kill();
            storage.target.start();
        }
        8 => {
            storage.power_off(chance.next());
            site.world
                .run_for(Duration::from_millis(chance.below(3000)));
            storage.power_on();
        }
        _ => site.net.delay(
            portal,
            Latency::between(Duration::from_micros(20), Duration::from_millis(20)),
        ),
    }
}

/// How a life ends.
fn end(site: &Site, stack: Stack, blocks: &Blocks, victim: usize) {
    let chance = &site.chance;
    let how = chance.below(5);
    site.note(|| format!("the node ends in way {how}"));
    match how {
        0 => stack.node.kill(),
        1 => stack.node.power_cut(),
        2 => {
            stack.node.power_cut();
            site.nodes[victim].power_off(chance.next());
        }
        3 => {
            stack.node.power_cut();
            for node in &site.nodes {
                node.power_off(chance.next());
            }
            blocks.cache_lost();
        }
        _ => {
            site.heal_networks();
            site.nodes[victim].target.unit().device().unhang();
            site.world.run_for(Duration::from_secs(2));
            stack.stop(site);
        }
    }
    site.world
        .run_for(Duration::from_millis(chance.below(2000)));
    heal(site);
}

fn heal(site: &Site) {
    site.heal_networks();
    for node in &site.nodes {
        node.target.unit().device().unhang();
        if node.is_off() {
            node.power_on();
        }
    }
}

fn run(seed: u64) -> u64 {
    let site = Site::new(seed, 2, SECTORS, Faults::none());
    let witness = WitnessDisk::default();
    Stack::format(&site, &witness);
    let blocks = Rc::new(Blocks::new(CHUNKS as usize * GRANULES, Sector(0)));
    for life in 0..4 {
        site.note(|| format!("life {life}"));
        let stack = Stack::start(&site, &witness);
        if life == 0 {
            let store = stack.store.clone();
            site.world.block_on(async move {
                for chunk in 1..=CHUNKS {
                    let made = store.create(ChunkId(chunk), VERSION).await;
                    made.expect("a new chunk");
                    store.finish(ChunkId(chunk)).await.expect("durable");
                }
            });
        }
        site.note(|| format!("started: {:?}", stack.legs()));
        check(&site, &stack, &blocks, "after the start");
        until_whole(&site, &stack);
        check(&site, &stack, &blocks, "with both legs");
        let over: Rc<Cell<bool>> = Rc::default();
        start_writers(&stack, &blocks, &over);
        let victim = site.chance.below(2) as usize;
        for _ in 0..site.chance.below(6) {
            misfortune(&site, victim);
            let wait = Duration::from_micros(site.chance.below(900_000));
            site.world.run_for(wait);
        }
        over.set(true);
        end(&site, stack, &blocks, victim);
    }
    let stack = Stack::start(&site, &witness);
    until_whole(&site, &stack);
    check(&site, &stack, &blocks, "at the end");
    stack.stop(&site);
    site.world.now().0
}

#[test]
fn what_was_acknowledged_survives() {
    for_each_seed(24, |seed| {
        run(seed);
    });
}

#[test]
fn one_seed_is_one_history() {
    assert_eq!(run(5), run(5));
}
