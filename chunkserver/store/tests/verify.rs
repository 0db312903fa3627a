//! Reading all data on every leg, by a scrub and by a check: in large requests, no more than a bound under way.

mod sim;

use blockdev::sim::VirtualRt;
use blockdev::Pool;
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkId, ChunkVersion, Chunks};
use chunk_store::{check, format, CheckOptions, CheckResult, FormatParams, Options, Store};
use sim::{disks, Disks, Rng, SimMirror};
use std::rc::Rc;

const V1: ChunkVersion = ChunkVersion(1);
/// Blocks of 64 KiB, written in order.
const BLOCKS: u16 = 160;
const GRANULE_SECTORS: u64 = 8;
const MIB_SECTORS: u64 = 2048;

/// How each kind of page begins: allocation, directory and index pages, maps, segments, frames,
/// superblocks.
const PAGES: [&[u8; 4]; 7] = [
    b"AALC", b"ADIR", b"AIDX", b"AMAP", b"ASEG", b"AFRM", b"ANTL",
];

struct Volume {
    world: VirtualRt,
    disks: Disks,
    pool: Pool,
    mirror: Rc<SimMirror>,
    store: Rc<Store>,
}

fn volume() -> Volume {
    let world = VirtualRt::new(1);
    let pool = Pool::new(64 << 20);
    let disks = disks();
    let mirror = SimMirror::new(&world, pool.clone(), disks.clone(), 64, Rng(1).next());
    let params = FormatParams::new("vol1", [1; 16], [2; 16]);
    let (m, p) = (mirror.clone(), pool.clone());
    world
        .block_on(async move { format(m, &p, &params).await })
        .expect("formatted");
    let open = Store::open(mirror.clone(), world.rt(), pool.clone(), Options::default());
    let store = world.block_on(open).expect("opened");
    world
        .block_on(store.create(ChunkId(1), V1))
        .expect("created");
    for block in 0..BLOCKS {
        let data = pool.copy_now(&vec![block as u8 + 1; 65_536]);
        let crc = crc32_iovec(&data);
        let write = store.write(ChunkId(1), V1, block, 0, data, crc);
        world.block_on(write).expect("written");
    }
    world.block_on(store.finish(ChunkId(1))).expect("durable");
    mirror.leg_reads.take();
    mirror.reading.take();
    Volume {
        world,
        disks,
        pool,
        mirror,
        store,
    }
}

impl Volume {
    /// Stopped cleanly and opened again.
    fn restart(&self) -> Volume {
        let stopping = self.store.clone();
        let stopped = self.world.block_on(async move { stopping.stop().await });
        stopped.expect("stopped");
        let (mirror, pool) = (self.mirror.clone(), self.pool.clone());
        let open = Store::open(
            mirror.clone(),
            self.world.rt(),
            pool.clone(),
            Options::default(),
        );
        Volume {
            world: self.world.clone(),
            disks: self.disks.clone(),
            store: self.world.block_on(open).expect("opened again"),
            mirror,
            pool,
        }
    }

    /// Granules checked, errors, healed, damaged.
    fn scrub(&self) -> (u64, u64, u64, usize) {
        let mut sum = (0, 0, 0, 0);
        for region in 0..self.store.scrub_regions() {
            let store = self.store.clone();
            let step = self
                .world
                .block_on(async move { store.scrub_region(region).await });
            sum.0 += step.checked_bytes / 4096;
            sum.1 += step.errors;
            sum.2 += step.healed;
            sum.3 += step.damaged.len();
        }
        sum
    }

    /// Every granule is read once on each leg, by requests of up to 1 MiB, several of both legs at a time.
    fn assert_read_in_large_pieces(&self, granules: u64) {
        let reads = self.mirror.leg_reads.take();
        for leg in 0..2 {
            let sizes: Vec<u64> = reads
                .iter()
                .filter(|(of, _)| *of == leg)
                .map(|(_, range)| range.end - range.start)
                .collect();
            assert_eq!(sizes.iter().sum::<u64>(), granules * GRANULE_SECTORS);
            let (requests, most) = (sizes.len() as u64, sizes.iter().max().copied());
            assert!(requests <= granules / 64, "{requests} for {granules}");
            assert_eq!(most, Some(MIB_SECTORS), "the largest request");
        }
        let (now, most) = self.mirror.reading.take();
        assert_eq!(now, 0);
        assert!(most > 2 * MIB_SECTORS, "one after the other: {most}");
        assert!(most <= 4 * MIB_SECTORS, "clients wait behind {most}");
    }
}

#[test]
fn a_scrub_reads_neighbours_together() {
    let v = volume();
    let (granules, errors, healed, damaged) = v.scrub();
    assert!(granules >= u64::from(BLOCKS) * 16);
    assert_eq!((errors, healed, damaged), (0, 0, 0));
    v.assert_read_in_large_pieces(granules);
}

#[test]
fn a_check_with_data_reads_neighbours_together() {
    let v = volume();
    let stopping = v.store.clone();
    v.world
        .block_on(async move { stopping.stop().await })
        .expect("stopped");
    v.world.kill();
    v.mirror.leg_reads.take();
    let options = CheckOptions {
        repair: false,
        data: true,
    };
    let run = check(v.mirror.clone(), v.world.rt(), v.pool.clone(), options);
    let opening = v.mirror.leg_reads.borrow().len();
    let summary = v.world.block_on(run).expect("checked");
    assert_eq!(summary.result(), CheckResult::Clean);
    let requests = v.mirror.leg_reads.borrow().len() - opening;
    assert!(
        requests as u64 <= summary.blocks_checked / 16,
        "{requests} for {}",
        summary.blocks_checked
    );
}

/// A request over many granules fails for one of them: that one alone is wrong, and healed.
#[test]
fn a_medium_error_costs_its_own_granule() {
    let v = volume();
    v.scrub();
    let reads = v.mirror.leg_reads.take();
    let (_, large) = reads
        .iter()
        .find(|(leg, range)| *leg == 1 && range.end - range.start == MIB_SECTORS)
        .expect("there is a large request");
    v.mirror
        .unreadable
        .borrow_mut()
        .insert(large.start + 5 * GRANULE_SECTORS + 3);
    let (_, errors, healed, damaged) = v.scrub();
    assert_eq!((errors, healed, damaged), (1, 1, 0));
}

/// Every page of metadata that a start needs is read on each leg: one leg alone is enough afterwards.
#[test]
fn a_scrub_heals_metadata_of_a_leg() {
    let v = volume();
    let reopened = v.restart();
    let data = v.pool.copy_now(&[9; 4096]);
    let crc = crc32_iovec(&data);
    let write = reopened.store.write(ChunkId(1), V1, 0, 0, data, crc);
    v.world.block_on(write).expect("written");
    v.world
        .block_on(reopened.store.finish(ChunkId(1)))
        .expect("durable");
    assert_eq!(reopened.scrub().1, 0, "nothing is wrong yet");
    assert!(v.disks[1].borrow_mut().rot_pages(&PAGES) > 10);
    let (_, errors, healed, damaged) = reopened.scrub();
    assert!(errors > 6, "{errors}");
    assert_eq!((healed, damaged), (errors, 0));
    assert_eq!(reopened.scrub().1, 0, "all of it is right now");
    v.world.kill();
    v.disks[0].borrow_mut().rot_pages(&PAGES);
    let open = Store::open(
        v.mirror.clone(),
        v.world.rt(),
        v.pool.clone(),
        Options::default(),
    );
    let store = v.world.block_on(open).expect("opened from one leg");
    for (block, byte) in [(0, 9), (BLOCKS - 1, BLOCKS as u8)] {
        let read = store.read(ChunkId(1), V1, block, 0, 4096);
        let piece = v.world.block_on(read).expect("read");
        assert_eq!(piece.data.to_vec(), [byte; 4096]);
    }
}

/// The offline check reads them, too, and says which they are.
#[test]
fn a_check_with_data_names_damaged_metadata() {
    let v = volume();
    let stopping = v.store.clone();
    v.world
        .block_on(async move { stopping.stop().await })
        .expect("stopped");
    v.world.kill();
    v.disks[1].borrow_mut().rot_pages(&PAGES);
    let run = |repair| {
        let options = CheckOptions { repair, data: true };
        let run = check(v.mirror.clone(), v.world.rt(), v.pool.clone(), options);
        let summary = v.world.block_on(run).expect("checked");
        v.world.kill();
        summary
    };
    let found = run(false);
    assert_eq!(found.result(), CheckResult::Damaged);
    for name in [
        "allocation page",
        "directory page",
        "index page",
        "superblock",
    ] {
        let told = |p: &chunk_store::Problem| p.text.contains(name) && p.text.ends_with("leg 1");
        assert!(found.problems.iter().any(told), "{name}: {found:?}");
    }
    assert!(found.problems.iter().all(|p| p.leg.is_some()));
    assert_eq!(run(true).result(), CheckResult::Repaired);
    assert_eq!(run(false).result(), CheckResult::Clean);
}
