//! Bytes of a disk never cause a panic or a hang (P10): volumes whose superblocks lie with a right
//! checksum, and volumes with garbage anywhere, are opened, checked, read or refused.

mod sim;

use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
use blockdev::{Geometry, Mirror, Pool};
use chunk_api::crc::{crc32, crc32_iovec};
use chunk_api::{ChunkId, ChunkVersion, Chunks};
use chunk_store::{check, format, info, CheckOptions, FormatParams, Options, SingleLeg, Store};
use sim::life::{seeds, Seed};
use sim::Rng;
use std::rc::Rc;
use std::time::Duration;

const BYTES: u64 = 16 << 20;
const UNIT: u64 = 4096;

/// A volume in use, stopped or killed.
fn volume(rng: &mut Rng) -> MemDevice {
    let world = VirtualRt::new(rng.next());
    let pool = Pool::new(32 << 20);
    let geometry = Geometry::plain(BYTES / 512);
    let device = MemDevice::new(world.rt(), pool.clone(), geometry, MemTiming::default());
    let mirror: Rc<dyn Mirror> = SingleLeg::new(Rc::new(device.clone()), world.rt());
    let params = FormatParams {
        segment_units: Some(16),
        segments: Some(8),
        ..FormatParams::new("vol1", [1; 16], [2; 16])
    };
    let (m, p) = (mirror.clone(), pool.clone());
    world
        .block_on(async move { format(m, &p, &params).await })
        .expect("formatted");
    let open = Store::open(mirror, world.rt(), pool.clone(), Options::default());
    let store = world.block_on(open).expect("opened");
    for id in 1..=5u64 {
        let created = store.create(ChunkId(id), ChunkVersion(1));
        world.block_on(created).expect("created");
        for _ in 0..1 + rng.below(8) {
            let block = [0, 1, 40, 600][rng.below(4) as usize];
            let data = pool.copy_now(&vec![id as u8; 1 + rng.below(9_000) as usize]);
            let crc = crc32_iovec(&data);
            let write = store.write(ChunkId(id), ChunkVersion(1), block, 0, data, crc);
            world.block_on(write).expect("written");
        }
    }
    let copied = store.duplicate(
        ChunkId(9),
        ChunkVersion(1),
        ChunkId(1),
        ChunkVersion(1),
        None,
    );
    world.block_on(copied).expect("copied");
    let deleted = store.delete(ChunkId(2), ChunkVersion(1));
    world.block_on(deleted).expect("deleted");
    if rng.chance(60) {
        world
            .block_on(async move { store.stop().await })
            .expect("stopped");
    }
    world.kill();
    device
}

/// Everything that anybody does with a volume; whatever comes of it.
fn use_it(device: &MemDevice, rng: &mut Rng) {
    // The image outlives the world it was made in.
    let world = VirtualRt::new(rng.next());
    let pool = Pool::new(64 << 20);
    let geometry = Geometry::plain(BYTES / 512);
    let copy = MemDevice::new(world.rt(), pool.clone(), geometry, MemTiming::default());
    let mut image = vec![0; BYTES as usize];
    device.peek(0, &mut image);
    copy.poke(0, &image);
    let mirror: Rc<dyn Mirror> = SingleLeg::new(Rc::new(copy), world.rt());
    let _ = world.block_on(info(mirror.clone(), pool.clone()));
    for repair in [false, rng.chance(30)] {
        let options = CheckOptions { repair, data: true };
        let _ = world.block_on(check(mirror.clone(), world.rt(), pool.clone(), options));
    }
    let open = Store::open(mirror, world.rt(), pool.clone(), Options::default());
    let Ok(store) = world.block_on(open) else {
        return;
    };
    for id in 1..=9 {
        let (id, any) = (ChunkId(id), ChunkVersion(0));
        let _ = world.block_on(store.read(id, any, 0, 0, 65_536));
        let data = pool.copy_now(&[7; 5_000]);
        let crc = crc32_iovec(&data);
        let _ = world.block_on(store.write(id, any, 1, 100, data, crc));
        let _ = world.block_on(store.truncate(id, 70_000, ChunkVersion(3), any));
        let copy = ChunkId(id.0 + 100);
        let _ = world.block_on(store.duplicate(copy, ChunkVersion(1), id, any, None));
        let _ = world.block_on(store.delete(id, any));
        let purging = store.clone();
        let _ = world.block_on(async move { purging.purge(id, any).await });
    }
    world.run_for(Duration::from_secs(3));
    let _ = world.block_on(async move { store.stop().await });
}

#[test]
fn superblocks_that_lie_are_judged() {
    for seed in seeds(if cfg!(debug_assertions) { 60 } else { 2_000 }) {
        let _seed = Seed(seed);
        let mut rng = Rng(seed);
        let device = volume(&mut rng);
        let at = 8 + rng.below(700) as usize;
        let mut bytes = rng.next().to_le_bytes();
        if rng.chance(50) {
            bytes = (rng.below(20_000)).to_le_bytes();
        }
        let len = [1, 2, 4, 8][rng.below(4) as usize];
        let units = BYTES / UNIT;
        for unit in (0..64).chain(units - 64..units) {
            let mut page = vec![0; UNIT as usize];
            device.peek(unit * UNIT, &mut page);
            if page[..8] == *chunk_store::MAGIC {
                page[at..at + len].copy_from_slice(&bytes[..len]);
                let crc = crc32(&page[..4092]);
                page[4092..].copy_from_slice(&crc.to_le_bytes());
                device.poke(unit * UNIT, &page);
            }
        }
        use_it(&device, &mut rng);
    }
}

/// Metadata that lie with a right checksum: a page is changed, and each page that points to it, up
/// to the superblock, gets its new sum.
#[test]
fn pages_that_lie_are_judged() {
    for seed in seeds(if cfg!(debug_assertions) { 80 } else { 3_000 }) {
        let _seed = Seed(seed);
        let mut rng = Rng(seed ^ 0xBAD);
        let device = volume(&mut rng);
        let mut image = vec![0; BYTES as usize];
        device.peek(0, &mut image);
        let unit_of = |image: &[u8], unit: usize| image[unit << 12..(unit + 1) << 12].to_vec();
        let pages: Vec<usize> = (0..image.len() >> 12)
            .filter(|&unit| {
                let magic = &image[unit << 12..(unit << 12) + 4];
                [b"ADIR", b"AROT", b"AMAP", b"AALC", b"AIDX"]
                    .iter()
                    .any(|m| magic == *m)
            })
            .collect();
        // Killed before its first checkpoint.
        if pages.is_empty() {
            continue;
        }
        let victim = pages[rng.below(pages.len() as u64) as usize];
        let old = crc32(&unit_of(&image, victim));
        let at = (victim << 12) + 64 + rng.below(4_020) as usize;
        for byte in &mut image[at..at + 1 + rng.below(8) as usize] {
            *byte = match rng.below(3) {
                0 => 0,
                1 => byte.wrapping_add(1),
                _ => rng.next() as u8,
            };
        }
        let mut stale = vec![(victim, old)];
        while let Some((unit, old)) = stale.pop() {
            let new = crc32(&unit_of(&image, unit));
            let mut named = [0; 9];
            named[..5].copy_from_slice(&(unit as u64).to_le_bytes()[..5]);
            named[5..].copy_from_slice(&old.to_le_bytes());
            for &page in pages.iter().filter(|&&page| page != unit) {
                let before = crc32(&unit_of(&image, page));
                let range = page << 12..(page + 1) << 12;
                let hit = image[range.clone()].windows(9).position(|w| w == named);
                if let Some(hit) = hit {
                    let at = range.start + hit + 5;
                    image[at..at + 4].copy_from_slice(&new.to_le_bytes());
                    stale.push((page, before));
                }
            }
            for slot in (0..64).chain((image.len() >> 12) - 64..image.len() >> 12) {
                let page = &mut image[slot << 12..(slot + 1) << 12];
                for root in [208, 232] {
                    let mut wide = [0; 12];
                    wide[..8].copy_from_slice(&(unit as u64).to_le_bytes());
                    wide[8..].copy_from_slice(&old.to_le_bytes());
                    if page[root..root + 12] == wide {
                        page[root + 8..root + 12].copy_from_slice(&new.to_le_bytes());
                        let crc = crc32(&page[..4092]);
                        page[4092..].copy_from_slice(&crc.to_le_bytes());
                    }
                }
            }
        }
        device.poke(0, &image);
        use_it(&device, &mut rng);
    }
}
