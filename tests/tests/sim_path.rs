//! One unit on two paths: multipath over real iSCSI sessions, under faults of networks, of the
//! target daemon, of the back end and of the node itself. No acknowledged write is ever lost to a
//! ghost, and once everything is healed everything works again.
//!
//! Blocks are written by one task each, overwritten again and again, so that a ghost of an older
//! generation has every chance. What the fault model leaves alone: the storage node's power (a
//! single unit with a volatile cache loses what was not flushed, by its nature; the mirror's
//! simulation covers that).

use blockdev::sim::{Faults, Latency};
use blockdev::{BlockDevice, Durability, IoCtx, Op, Sector};
use mpath::MultipathDevice;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tests::sim::blocks::{Blocks, BLOCK_SECTORS};
use tests::sim::net::Cut;
use tests::sim::site::{for_each_seed, ChunkNode, Site};

const BLOCKS: usize = 12;
const WRITERS: usize = 4;

/// Writes blocks for ever, each writer its own.
fn start_writers(node: &ChunkNode, blocks: &Rc<Blocks>, paused: &Rc<Cell<bool>>) {
    for writer in 0..WRITERS {
        let (rt, pool) = (node.host.rt(), node.pool.clone());
        let (device, blocks) = (node.devices[0].clone(), blocks.clone());
        let paused = paused.clone();
        node.host.rt().spawn(async move {
            let mut turn = writer;
            loop {
                let block = turn % BLOCKS;
                turn += WRITERS;
                if paused.get() {
                    rt.sleep(Duration::from_millis(100)).await;
                    continue;
                }
                write_block(&device, &pool, &blocks, block, &rt).await;
            }
        });
    }
}

/// Writes the next generation of a block until it is acknowledged.
async fn write_block(
    device: &MultipathDevice,
    pool: &blockdev::Pool,
    blocks: &Blocks,
    block: usize,
    rt: &blockdev::Rt,
) {
    let (generation, data) = blocks.next(pool, block);
    loop {
        let op = Op::Write {
            at: blocks.place(block),
            data: data.clone(),
            want: Durability::Cache,
        };
        match device.submit(op, IoCtx::foreground()).await {
            Ok(_) => return blocks.acknowledged(block, generation),
            Err(_) => rt.sleep(Duration::from_millis(20)).await,
        };
    }
}

fn check_all(site: &Site, node: &ChunkNode, blocks: &Blocks, when: &str) {
    for block in 0..blocks.len() {
        let op = Op::Read {
            at: blocks.place(block),
            sectors: BLOCK_SECTORS,
        };
        let read = node.devices[0].submit(op, IoCtx::foreground());
        let data = site.world.block_on(read).expect("read").into_data();
        blocks.check(block, &data.to_vec(), false, when);
    }
}

/// One fault, drawn; networks are healed by later draws or at the end.
fn misfortune(site: &Site) {
    let storage = &site.nodes[0];
    let chance = &site.chance;
    let portal = storage.portals[chance.below(2) as usize];
    let device = storage.target.unit().device();
    match chance.below(12) {
        0 | 1 => site.net.cut(portal, Cut::Silent),
        2 => site.net.cut(portal, Cut::Loud),
        3..=6 => storage
            .portals
            .iter()
            .for_each(|p| site.net.cut(*p, Cut::None)),
        7 => device.hang(),
        8 => device.unhang(),
        9 => {
            storage.target.kill();
            storage.target.start();
        }
        10 => site.net.delay(
            portal,
            Latency::between(Duration::from_micros(20), Duration::from_millis(30)),
        ),
        _ => site
            .net
            .delay(portal, Latency::fixed(Duration::from_micros(50))),
    }
}

fn faults() -> Faults {
    let us = Duration::from_micros;
    Faults {
        write: Latency {
            tail_odds: blockdev::sim::PerMillion(20_000),
            tail: Duration::from_millis(150),
            ..Latency::between(us(100), us(3000))
        },
        ..Faults::none()
    }
}

/// What happened, for comparing runs.
fn run(seed: u64) -> (u64, Vec<u8>) {
    let site = Site::new(seed, 1, 1 << 14, faults());
    let blocks = Rc::new(Blocks::new(BLOCKS, Sector(64)));
    let mut node = ChunkNode::start(&site);
    let paused: Rc<Cell<bool>> = Rc::default();
    for life in 0..3 {
        open(&site, &node);
        fence(&site, &node, life);
        check_all(&site, &node, &blocks, "after the start-up fence");
        start_writers(&node, &blocks, &paused);
        for _ in 0..site.chance.below(8) {
            misfortune(&site);
            let wait = Duration::from_micros(site.chance.below(700_000));
            site.world.run_for(wait);
        }
        if life < 2 {
            // The next life starts on a site that may still be ill, except that a path is there.
            if site.chance.coin() {
                node.kill();
            } else {
                node.power_cut();
            }
            site.world
                .run_for(Duration::from_micros(site.chance.below(50_000)));
            site.nodes[0].target.unit().device().unhang();
            if site.chance.coin() {
                site.heal_networks();
            } else {
                site.net.cut(site.nodes[0].portals[0], Cut::None);
            }
            node = ChunkNode::start(&site);
        }
    }
    site.heal_networks();
    site.nodes[0].target.unit().device().unhang();
    paused.set(true);
    site.world.run_for(Duration::from_secs(30));
    check_all(&site, &node, &blocks, "after everything was healed");
    fence(&site, &node, 3);
    check_all(&site, &node, &blocks, "at the end");
    let content = site.nodes[0]
        .medium
        .peek(blocks.place(0), 8 * BLOCKS as u64);
    (site.world.now().0, content)
}

fn open(site: &Site, node: &ChunkNode) {
    let device = node.devices[0].clone();
    let deadline = site.world.now() + Duration::from_secs(60);
    site.world
        .block_on(async move { device.opened(deadline).await })
        .expect("a path is there");
}

/// The start-up fence: only then may the previous life be taken for over.
fn fence(site: &Site, node: &ChunkNode, life: u32) {
    for _ in 0..40 {
        let fenced = node.devices[0].submit(Op::Fence, IoCtx::metadata());
        if site.world.block_on(fenced).is_ok() {
            return;
        }
        site.world.run_for(Duration::from_millis(500));
    }
    panic!("no fence in life {life}");
}

#[test]
fn no_ghost_and_no_loss_on_two_paths() {
    for_each_seed(100, |seed| {
        run(seed);
    });
}

#[test]
fn one_seed_is_one_history() {
    assert_eq!(run(7), run(7));
}

/// The case that fences exist for: a node dies while a write of it sits behind a silent cut; its
/// successor knows nothing of that write, fences, writes on, and then the cut is healed.
#[test]
fn no_write_of_a_dead_node_lands_after_the_fence() {
    for_each_seed(150, |seed| {
        let site = Site::new(seed, 1, 1 << 14, faults());
        let blocks = Rc::new(Blocks::new(BLOCKS, Sector(64)));
        let paused: Rc<Cell<bool>> = Rc::default();
        let node = ChunkNode::start(&site);
        open(&site, &node);
        fence(&site, &node, 0);
        start_writers(&node, &blocks, &paused);
        site.world
            .run_for(Duration::from_micros(5_000 + site.chance.below(20_000)));
        let portal = site.nodes[0].portals[site.chance.below(2) as usize];
        site.net.cut(portal, Cut::Silent);
        site.world
            .run_for(Duration::from_micros(site.chance.below(90_000)));
        if site.chance.coin() {
            node.kill();
        } else {
            node.power_cut();
        }

        let node = ChunkNode::start(&site);
        open(&site, &node);
        fence(&site, &node, 1);
        check_all(&site, &node, &blocks, "after the start-up fence");
        start_writers(&node, &blocks, &paused);
        site.world.run_for(Duration::from_millis(20));
        site.heal_networks();
        paused.set(true);
        site.world.run_for(Duration::from_secs(3));
        check_all(&site, &node, &blocks, "after the cut was healed");
    });
}
