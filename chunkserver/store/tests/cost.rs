//! What operations cost the device, and what a million chunks cost at the start.

mod sim;

use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
use blockdev::{Geometry, Mirror, Pool};
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkId, ChunkVersion, Chunks};
use chunk_store::{format, FormatParams, Options, SingleLeg, Store};
use sim::{disks, Rng, SimMirror};
use std::rc::Rc;

const V1: ChunkVersion = ChunkVersion(1);

fn format_and_open(world: &VirtualRt, mirror: Rc<dyn Mirror>, pool: &Pool) -> Rc<Store> {
    let params = FormatParams::new("vol1", [1; 16], [2; 16]);
    let (m, p) = (mirror.clone(), pool.clone());
    world
        .block_on(async move { format(m, &p, &params).await })
        .expect("formatted");
    open(world, mirror, pool)
}

fn open(world: &VirtualRt, mirror: Rc<dyn Mirror>, pool: &Pool) -> Rc<Store> {
    let open = Store::open(mirror, world.rt(), pool.clone(), Options::default());
    world.block_on(open).expect("opened")
}

#[test]
fn small_operations_cost_small_ones() {
    let world = VirtualRt::new(1);
    let pool = Pool::new(64 << 20);
    let disks = disks();
    let mirror = SimMirror::new(&world, pool.clone(), disks.clone(), 64, Rng(1).next());
    let store = format_and_open(&world, mirror.clone(), &pool);
    world
        .block_on(store.create(ChunkId(1), V1))
        .expect("created");
    let write = |store: &Store, block: u16, offset: u32, len: usize| {
        let data = pool.copy_now(&vec![block as u8 + 1; len]);
        let crc = crc32_iovec(&data);
        world
            .block_on(store.write(ChunkId(1), V1, block, offset, data, crc))
            .expect("written");
    };
    for block in 0..40 {
        write(&store, block, 0, 65_536);
    }
    let stopping = store.clone();
    world
        .block_on(async move { stopping.stop().await })
        .expect("stopped");
    drop(store);
    let store = open(&world, mirror.clone(), &pool);
    let read = |block: u16, offset: u32, size: u32| {
        let before = mirror.read_bytes.get();
        let read = store.read(ChunkId(1), V1, block, offset, size);
        world.block_on(read).expect("read");
        mirror.read_bytes.get() - before
    };
    assert_eq!(
        read(3, 8_192, 4_096),
        4_096 + 4_096,
        "a granule and its map page"
    );
    assert_eq!(read(5, 12_288, 4_096), 4_096, "a granule");
    assert_eq!(read(5, 12_288, 4_096), 0, "from memory");
    assert_eq!(read(30, 0, 100), 4_096 + 4_096, "the second map page");
    let (reads, writes) = (mirror.read_bytes.get(), mirror.write_bytes.get());
    write(&store, 4, 4_096, 4_096);
    let written = mirror.write_bytes.get() - writes;
    assert_eq!(
        written,
        3 * 4_096,
        "data, frame, and the new segment's header"
    );
    let read = mirror.read_bytes.get() - reads;
    assert!(read <= 2 * 4_096, "nothing but alloc pages: {read}");
    let (reads, writes) = (mirror.read_bytes.get(), mirror.write_bytes.get());
    write(&store, 4, 8_192, 4_096);
    assert_eq!(
        mirror.write_bytes.get() - writes,
        2 * 4_096,
        "data and frame"
    );
    assert_eq!(mirror.read_bytes.get() - reads, 0);
    // Two adjacent requests: the next MiB comes by itself.
    let read = |block: u16| {
        let read = store.read(ChunkId(1), V1, block, 0, 65_536);
        world.block_on(read).expect("read");
        world.run_for(std::time::Duration::from_millis(20));
    };
    read(10);
    read(11);
    let before = mirror.read_bytes.get();
    read(12);
    read(13);
    assert_eq!(mirror.read_bytes.get(), before, "it was read ahead");
}

/// What was read ahead is read once: readers in sequence, more of them than the cache's part for
/// new granules would hold, read each byte from the device a single time.
#[test]
fn sequential_readers_read_each_byte_once() {
    const READERS: u64 = 6;
    const BLOCKS: u16 = 48;
    const AHEAD: u64 = 256 << 10;
    let world = VirtualRt::new(1);
    let pool = Pool::new(128 << 20);
    let mirror = SimMirror::new(&world, pool.clone(), disks(), 64, Rng(1).next());
    let store = format_and_open(&world, mirror.clone(), &pool);
    for id in 1..=READERS {
        world
            .block_on(store.create(ChunkId(id), V1))
            .expect("created");
        for block in 0..BLOCKS {
            let data = pool.copy_now(&vec![(id + u64::from(block)) as u8; 65_536]);
            let crc = crc32_iovec(&data);
            world
                .block_on(store.write(ChunkId(id), V1, block, 0, data, crc))
                .expect("written");
        }
    }
    let stopping = store.clone();
    world
        .block_on(async move { stopping.stop().await })
        .expect("stopped");
    drop(store);
    world.kill();
    let open = Store::open(
        mirror.clone(),
        world.rt(),
        pool.clone(),
        Options {
            // What is ahead of each fits into its part; all data do not fit into the rest.
            read_ahead_bytes: AHEAD as u32,
            cache_bytes: 8 * (READERS * AHEAD) as usize,
            ..Options::default()
        },
    );
    let store = world.block_on(open).expect("opened");
    let before = mirror.read_bytes.get();
    let (first, most) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    for block in 0..BLOCKS {
        for id in 1..=READERS {
            let read = store.read(ChunkId(id), V1, block, 0, 65_536);
            let piece = world.block_on(read).expect("read");
            assert_eq!(piece.data.to_vec()[0], (id + u64::from(block)) as u8);
        }
        if block == 2 {
            first.set(mirror.read_bytes.get() - before);
        }
        most.set(mirror.read_bytes.get() - before);
    }
    let data = READERS * u64::from(BLOCKS) * 65_536;
    let maps = READERS * 3 * 4096 + 64 * 4096;
    assert!(
        most.get() <= data + maps,
        "{} bytes read of {data}",
        most.get()
    );
    assert!(
        first.get() >= READERS * AHEAD,
        "so much is under way once two requests are adjacent: {}",
        first.get()
    );
}

/// CPU of a block read in sequence, and of one of 16 asked for together, on a device without any.
#[test]
#[ignore = "a measurement: run with --release -- --ignored --nocapture sequential"]
fn sequential_reads_by_size() {
    let world = VirtualRt::new(1);
    let pool = Pool::new(512 << 20);
    let geometry = Geometry::plain(512 << 11);
    let device = MemDevice::new(world.rt(), pool.clone(), geometry, MemTiming::default());
    let mirror: Rc<dyn Mirror> = SingleLeg::new(Rc::new(device), world.rt());
    let store = format_and_open(&world, mirror.clone(), &pool);
    world
        .block_on(store.create(ChunkId(1), V1))
        .expect("created");
    for block in 0..1024u16 {
        let data = pool.copy_now(&vec![block as u8 | 1; 65_536]);
        let crc = crc32_iovec(&data);
        world
            .block_on(store.write(ChunkId(1), V1, block, 0, data, crc))
            .expect("written");
    }
    let stopping = store.clone();
    world
        .block_on(async move { stopping.stop().await })
        .expect("stopped");
    drop(store);
    world.kill();
    for (name, at_once) in [
        ("64 KiB", 1u16),
        ("1 MiB", 16),
        ("64 KiB", 1),
        ("1 MiB", 16),
    ] {
        let options = Options {
            cache_bytes: 8 << 20,
            ..Options::default()
        };
        let open = Store::open(mirror.clone(), world.rt(), pool.clone(), options);
        let store = world.block_on(open).expect("opened");
        let begin = libc_time();
        for _ in 0..20 {
            for first in (0..1024).step_by(at_once.into()) {
                let pieces: Vec<_> = (first..first + at_once)
                    .map(|block| store.read(ChunkId(1), V1, block, 0, 65_536))
                    .collect();
                for piece in pieces {
                    world.block_on(piece).expect("read");
                }
            }
        }
        let end = libc_time();
        let ms = end.0 + end.1 - begin.0 - begin.1;
        println!(
            "{name}: {:.1} us a block",
            ms as f64 * 1e3 / (20.0 * 1024.0)
        );
        let stopping = store.clone();
        world
            .block_on(async move { stopping.stop().await })
            .expect("stopped");
    }
}

/// User and system time of this process in milliseconds, from the system's account.
fn libc_time() -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc is mounted");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let ticks = |i: usize| fields[i].parse::<u64>().expect("a number") * 10;
    (ticks(11), ticks(12))
}

#[test]
#[ignore = "scale: a million chunks take a while to make; run with --release -- --ignored"]
fn a_million_chunks_open_at_once() {
    const CHUNKS: u64 = 1_000_000;
    let world = VirtualRt::new(1);
    let pool = Pool::new(512 << 20);
    let geometry = Geometry::plain(8 << 21);
    let device = MemDevice::new(world.rt(), pool.clone(), geometry, MemTiming::default());
    let mirror: Rc<dyn Mirror> = SingleLeg::new(Rc::new(device), world.rt());
    let store = format_and_open(&world, mirror.clone(), &pool);
    for id in 1..=CHUNKS {
        world
            .block_on(store.create(ChunkId(id * 7), V1))
            .expect("created");
    }
    let stopping = store.clone();
    world
        .block_on(async move { stopping.stop().await })
        .expect("stopped");
    drop(store);
    world.kill();
    let cpu = || {
        let mut time = libc_time();
        time.0 += time.1;
        time.0
    };
    let before = cpu();
    let store = open(&world, mirror, &pool);
    println!("opened in {} ms of CPU", cpu() - before);
    let inventory = store.inventory();
    println!("with inventory {} ms of CPU", cpu() - before);
    assert_eq!(inventory.len() as u64, CHUNKS);
    assert!(inventory.windows(2).all(|w| w[0].id < w[1].id));
}
