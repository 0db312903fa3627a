//! Reading all data on every leg, by a scrub and by a check: in large requests, no more than a bound under way.

mod sim;

use blockdev::sim::VirtualRt;
use blockdev::Pool;
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkId, ChunkVersion, Chunks};
use chunk_store::{check, format, CheckOptions, CheckResult, FormatParams, Options, Store};
use sim::{disks, Rng, SimMirror};
use std::rc::Rc;

const V1: ChunkVersion = ChunkVersion(1);
/// Blocks of 64 KiB, written in order.
const BLOCKS: u16 = 160;
const GRANULE_SECTORS: u64 = 8;
const MIB_SECTORS: u64 = 2048;

struct Volume {
    world: VirtualRt,
    pool: Pool,
    mirror: Rc<SimMirror>,
    store: Rc<Store>,
}

fn volume() -> Volume {
    let world = VirtualRt::new(1);
    let pool = Pool::new(64 << 20);
    let mirror = SimMirror::new(&world, pool.clone(), disks(), 64, Rng(1).next());
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
        pool,
        mirror,
        store,
    }
}

impl Volume {
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
