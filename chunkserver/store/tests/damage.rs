//! What is damaged on every leg in sync: found on a leg that is out, judged by the maps, looked at again when a
//! leg comes back.

mod sim;

use blockdev::sim::VirtualRt;
use blockdev::{Allocation, Done, IoCtx, LegIndex, Mirror, Pool, Sector, StateChange, Verdict};
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkError, ChunkId, ChunkVersion, Chunks, Report};
use chunk_store::{
    check, format, CheckOptions, CheckResult, FormatParams, OpenError, Options, Store,
};
use sim::{disks, Disks, Rng, SimMirror};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const V1: ChunkVersion = ChunkVersion(1);
const ID: ChunkId = ChunkId(1);
/// Blocks of 64 KiB, each full of its own byte: several regions of units.
const BLOCKS: u16 = 100;
const TREES: [&[u8; 4]; 4] = [b"AALC", b"ADIR", b"AIDX", b"AMAP"];

struct Volume {
    world: VirtualRt,
    pool: Pool,
    disks: Disks,
    mirror: Rc<SimMirror>,
}

fn byte(block: u16) -> u8 {
    block as u8 + 1
}

/// A volume with a chunk, stopped.
fn volume() -> Volume {
    let world = VirtualRt::new(1);
    let (pool, disks) = (Pool::new(64 << 20), disks());
    let mirror = SimMirror::new(&world, pool.clone(), disks.clone(), 64, Rng(1).next());
    let params = FormatParams::new("vol1", [1; 16], [2; 16]);
    let (m, p) = (mirror.clone(), pool.clone());
    world
        .block_on(async move { format(m, &p, &params).await })
        .expect("formatted");
    let v = Volume {
        world,
        pool,
        disks,
        mirror,
    };
    let store = v.open().expect("opened");
    v.world.block_on(store.create(ID, V1)).expect("created");
    for block in 0..BLOCKS {
        let data = v.pool.copy_now(&vec![byte(block); 65_536]);
        let crc = crc32_iovec(&data);
        let write = store.write(ID, V1, block, 0, data, crc);
        v.world.block_on(write).expect("written");
    }
    v.stop(store);
    v
}

impl Volume {
    fn open(&self) -> Result<Rc<Store>, OpenError> {
        let options = Options {
            map_cache_bytes: 16 << 10,
            ..Options::default()
        };
        let (mirror, rt) = (self.mirror.clone(), self.world.rt());
        let open = Store::open(mirror, rt, self.pool.clone(), options);
        self.world.block_on(open)
    }

    fn stop(&self, store: Rc<Store>) {
        let stopped = self.world.block_on(async move { store.stop().await });
        stopped.expect("stopped");
        self.world.kill();
    }

    fn rot(&self, leg: usize, magics: &[&[u8; 4]]) {
        let hit = self.disks[leg].borrow_mut().rot_pages(magics);
        assert!(hit > 0, "there is something to damage");
    }

    fn read(&self, store: &Rc<Store>, block: u16) -> Result<Vec<u8>, ChunkError> {
        let piece = self.world.block_on(store.read(ID, V1, block, 0, 65_536))?;
        Ok(piece.data.to_vec())
    }

    fn assert_whole(&self, store: &Rc<Store>) {
        for block in 0..BLOCKS {
            assert_eq!(self.read(store, block), Ok(vec![byte(block); 65_536]));
        }
    }

    fn scrub(&self, store: &Rc<Store>) {
        for region in 0..store.scrub_regions() {
            let store = store.clone();
            self.world
                .block_on(async move { store.scrub_region(region).await });
        }
    }
}

fn events(store: &Store) -> Vec<StateChange> {
    let mut cx = Context::from_waker(Waker::noop());
    std::iter::from_fn(|| match store.poll_event(&mut cx) {
        Poll::Ready(change) => Some(change),
        Poll::Pending => None,
    })
    .collect()
}

fn reports(store: &Store) -> Vec<Report> {
    let mut cx = Context::from_waker(Waker::noop());
    let reports = store.reports();
    std::iter::from_fn(|| match reports.poll_next(&mut cx) {
        Poll::Ready(report) => Some(report),
        Poll::Pending => None,
    })
    .collect()
}

/// Leg 1 was out and is the only one with whole metadata and data: both are taken from there, and the leg in
/// sync is healed, so that it can do without.
#[test]
fn a_leg_that_is_out_gives_what_its_checksum_proves() {
    let v = volume();
    v.mirror.out.set(Some(1));
    v.rot(0, &TREES);
    v.rot(0, &[&[byte(7); 4]]);
    let store = v.open().expect("opened with the other leg's pages");
    v.world.run_for(Duration::from_secs(2));
    assert_eq!(v.read(&store, 7), Ok(vec![byte(7); 65_536]));
    v.scrub(&store);
    v.world.run_for(Duration::from_secs(2));
    let healed = events(&store);
    let healed = healed
        .iter()
        .filter(|change| change.event == "block_healed");
    let texts: Vec<&str> = healed.map(|change| change.text.as_str()).collect();
    assert!(texts.iter().any(|t| t.contains("leg 0")), "{texts:?}");
    v.stop(store);
    v.mirror.away.set(true);
    let store = v.open().expect("opened from leg 0 alone");
    v.assert_whole(&store);
    assert_eq!(store.stats().damaged_chunks, 0);
}

/// A copy from a leg must not lay rotten bytes over good ones because no allocation page tells them apart.
#[test]
fn granules_without_an_allocation_page_are_judged_by_the_maps() {
    let v = volume();
    let store = v.open().expect("opened");
    (0..2).for_each(|leg| v.rot(leg, &[b"AALC"]));
    let mut judged = 0;
    for unit in 192..(64 << 8) - 64 {
        let at = Sector(unit * 8);
        let read = v.mirror.read_leg(LegIndex(0), at, 8, IoCtx::background());
        let Ok(Done::Read(data, _)) = v.world.block_on(read) else {
            panic!("unit {unit} cannot be read");
        };
        let bytes = data.to_vec();
        let is_payload = bytes[0] > 0 && bytes.iter().all(|&b| b == bytes[0]);
        if !is_payload {
            continue;
        }
        judged += 1;
        let good = v.world.block_on(store.judge(at, data));
        assert_eq!(good, [Verdict::Good], "unit {unit}");
        let rotten = v.pool.copy_now(&[0xEE; 4096]);
        let bad = v.world.block_on(store.judge(at, rotten));
        assert_eq!(bad, [Verdict::Bad], "unit {unit}");
    }
    assert_eq!(judged, u64::from(BLOCKS) * 16);
}

/// A check that cannot help does not send people in a circle.
#[test]
fn metadata_lost_on_every_leg_names_the_ways_out() {
    let v = volume();
    (0..2).for_each(|leg| v.rot(leg, &[b"AALC"]));
    let run = |repair| {
        let options = CheckOptions { repair, data: true };
        let run = check(v.mirror.clone(), v.world.rt(), v.pool.clone(), options);
        let found = v.world.block_on(run);
        v.world.kill();
        found
    };
    for text in [
        v.open()
            .map(|_| ())
            .expect_err("no place to write")
            .to_string(),
        run(true).expect_err("nothing to repair with").to_string(),
    ] {
        assert!(text.contains("antler volume export"), "{text}");
        assert!(text.contains("--alone"), "{text}");
        assert!(!text.contains("volume check"), "{text}");
    }
    let found = run(false).expect("it can be read");
    assert_eq!(found.result(), CheckResult::Damaged);
    let named = |p: &chunk_store::Problem| p.text.contains("allocation page");
    assert!(found.problems.iter().any(named), "{found:?}");
}

/// A chunk found damaged while the good leg was away is whole when that leg is back, and the master hears of it.
#[test]
fn a_chunk_is_announced_as_whole_when_its_good_leg_is_back() {
    let v = volume();
    let store = v.open().expect("opened");
    v.mirror.out.set(Some(1));
    v.mirror.away.set(true);
    v.rot(0, &[&[byte(7); 4]]);
    assert_eq!(v.read(&store, 7), Err(ChunkError::Crc));
    v.world.run_for(Duration::from_secs(5));
    assert_eq!(store.stats().damaged_chunks, 1);
    assert!(reports(&store).contains(&Report::Damaged(ID)));
    v.mirror.away.set(false);
    v.mirror.out.set(None);
    v.world.run_for(Duration::from_secs(5));
    assert_eq!(store.stats().damaged_chunks, 0);
    let whole = Report::New {
        id: ID,
        version: V1,
        removing: false,
    };
    assert_eq!(reports(&store), [whole]);
    assert_eq!(v.read(&store, 7), Ok(vec![byte(7); 65_536]));
}

/// A second look is no absolution.
#[test]
fn what_is_still_damaged_stays_so() {
    let v = volume();
    let store = v.open().expect("opened");
    (0..2).for_each(|leg| v.rot(leg, &[&[byte(7); 4]]));
    assert_eq!(v.read(&store, 7), Err(ChunkError::Crc));
    reports(&store);
    store.look_again();
    v.world.run_for(Duration::from_secs(5));
    assert_eq!(store.stats().damaged_chunks, 1);
    assert_eq!(reports(&store), []);
}
