//! Each operation on a healthy volume, and what a clean restart shows.

use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
use blockdev::{Geometry, IoVec, Mirror, Pool};
use chunk_api::crc::{crc32, crc32_iovec};
use chunk_api::{ChunkError, ChunkId, ChunkVersion, Chunks, Report};
use chunk_store::{
    check, format, CheckOptions, CheckResult, FormatParams, OpenError, Options, SingleLeg, Store,
};
use std::rc::Rc;

const V1: ChunkVersion = ChunkVersion(1);
const V2: ChunkVersion = ChunkVersion(2);

struct World {
    rt: VirtualRt,
    pool: Pool,
    mirror: Rc<dyn Mirror>,
    device: MemDevice,
}

impl World {
    fn new(mib: u64) -> World {
        let rt = VirtualRt::new(1);
        let pool = Pool::new(256 << 20);
        let geometry = Geometry::plain(mib << 11);
        let device = MemDevice::new(rt.rt(), pool.clone(), geometry, MemTiming::default());
        let mirror = SingleLeg::new(Rc::new(device.clone()), rt.rt());
        let world = World {
            rt,
            pool,
            mirror,
            device,
        };
        let params = FormatParams::new("vol1", [1; 16], [2; 16]);
        let (mirror, pool) = (world.mirror.clone(), world.pool.clone());
        world
            .rt
            .block_on(async move { format(mirror, &pool, &params).await })
            .expect("formatted");
        world
    }

    fn open(&self) -> Rc<Store> {
        self.try_open().expect("opened")
    }

    fn try_open(&self) -> Result<Rc<Store>, OpenError> {
        let options = Options {
            name: "vol1".into(),
            ..Options::default()
        };
        let open = Store::open(
            self.mirror.clone(),
            self.rt.rt(),
            self.pool.clone(),
            options,
        );
        self.rt.block_on(open)
    }

    fn stop(&self, store: Rc<Store>) {
        self.rt
            .block_on(async move { store.stop().await })
            .expect("stopped");
    }

    fn write(&self, store: &Store, id: u64, v: ChunkVersion, block: u16, offset: u32, data: &[u8]) {
        let data = self.pool.copy_now(data);
        let crc = crc32_iovec(&data);
        let write = store.write(ChunkId(id), v, block, offset, data, crc);
        self.rt.block_on(write).expect("written");
    }

    fn read(&self, store: &Store, id: u64, block: u16, offset: u32, size: u32) -> Vec<u8> {
        let read = store.read(ChunkId(id), ChunkVersion(0), block, offset, size);
        let piece = self.rt.block_on(read).expect("read");
        assert_eq!(piece.crc, crc32_iovec(&piece.data));
        assert_eq!(piece.data.len(), size as usize);
        piece.data.to_vec()
    }

    fn check(&self, data: bool) {
        let options = CheckOptions {
            repair: false,
            data,
        };
        let run = check(
            self.mirror.clone(),
            self.rt.rt(),
            self.pool.clone(),
            options,
        );
        let summary = self.rt.block_on(run).expect("checked");
        assert_eq!(
            summary.result(),
            CheckResult::Clean,
            "{:?}",
            summary.problems
        );
    }
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) ^ (i >> 8) as u8)
        .collect()
}

#[test]
fn writes_at_any_offset_read_back_after_a_restart() {
    let w = World::new(64);
    let store = w.open();
    w.rt.block_on(store.create(ChunkId(7), V1))
        .expect("created");
    let mut image = vec![0; 3 << 16];
    let steps = [
        (0, 0, 65_536),
        (0, 100, 5_000),
        (1, 4_095, 2),
        (2, 61_440, 4_096),
        (0, 8_192, 4_096),
    ];
    for (i, (block, offset, len)) in steps.into_iter().enumerate() {
        let data = pattern(i as u8 + 1, len);
        w.write(&store, 7, V1, block, offset as u32, &data);
        let at = usize::from(block) * 65_536 + offset;
        image[at..at + len].copy_from_slice(&data);
    }
    let verify = |store: &Store| {
        for block in 0..3u16 {
            let at = usize::from(block) << 16;
            assert_eq!(w.read(store, 7, block, 0, 65_536), image[at..at + 65_536]);
            assert_eq!(
                w.read(store, 7, block, 4_000, 500),
                image[at + 4_000..at + 4_500]
            );
        }
        assert_eq!(w.read(store, 7, 900, 5, 77), [0; 77]);
        assert_eq!(store.open(ChunkId(7), V1), Ok(3));
        let table =
            w.rt.block_on(store.checksum_table(ChunkId(7), V1))
                .expect("sums");
        assert_eq!(table[1], crc32(&image[65_536..131_072]));
        assert_eq!(table[500], chunk_api::crc::ZERO_BLOCK_CRC);
    };
    verify(&store);
    w.stop(store);
    w.check(true);
    let store = w.open();
    verify(&store);
    // And without a clean stop.
    w.write(&store, 7, V1, 700, 0, &pattern(9, 10));
    w.rt.kill();
    drop(store);
    let store = w.open();
    verify_len(&store);
    assert_eq!(w.read(&store, 7, 700, 0, 10), pattern(9, 10));
    w.check(true);

    fn verify_len(store: &Store) {
        assert_eq!(store.open(ChunkId(7), V1), Ok(701));
    }
}

#[test]
fn duplicates_are_independent_and_truncation_zeroes_the_tail() {
    let w = World::new(64);
    let store = w.open();
    w.rt.block_on(store.create(ChunkId(1), V1))
        .expect("created");
    w.write(&store, 1, V1, 0, 0, &pattern(1, 65_536));
    w.write(&store, 1, V1, 40, 0, &pattern(2, 65_536));
    let used = store.stats().used_bytes;
    w.rt.block_on(store.duplicate(ChunkId(2), V2, ChunkId(1), V1, None))
        .expect("duplicated");
    assert!(
        store.stats().used_bytes >= used + (128 << 10),
        "owners are charged"
    );
    w.rt.block_on(store.duplicate(ChunkId(3), V1, ChunkId(1), V1, Some(5_000)))
        .expect("cut copy");
    w.write(&store, 1, V1, 0, 10, b"changed");
    assert_eq!(w.read(&store, 2, 0, 0, 65_536), pattern(1, 65_536));
    assert_eq!(w.read(&store, 2, 40, 0, 65_536), pattern(2, 65_536));
    let mut cut = pattern(1, 65_536);
    cut[5_000..].fill(0);
    assert_eq!(w.read(&store, 3, 0, 0, 65_536), cut);
    assert_eq!(store.open(ChunkId(3), V1), Ok(1));
    w.rt.block_on(store.truncate(ChunkId(2), 40 * 65_536 + 4_096, V1, V2))
        .expect("truncated");
    assert_eq!(store.open(ChunkId(2), V1), Ok(41));
    let mut tail = pattern(2, 65_536);
    tail[4_096..].fill(0);
    assert_eq!(w.read(&store, 2, 40, 0, 65_536), tail);
    assert_eq!(w.read(&store, 1, 40, 0, 65_536), pattern(2, 65_536));
    w.rt.block_on(store.truncate(ChunkId(2), 0, V2, V1))
        .expect("truncated");
    assert_eq!(store.open(ChunkId(2), V2), Ok(0));
    let again =
        w.rt.block_on(store.duplicate(ChunkId(2), V2, ChunkId(1), V1, None));
    assert_eq!(again, Err(ChunkError::Exists));
    w.stop(store);
    w.check(true);
    let store = w.open();
    assert_eq!(w.read(&store, 3, 0, 0, 65_536), cut);
    assert_eq!(&w.read(&store, 1, 0, 10, 7), b"changed");
}

#[test]
fn a_deleted_chunk_is_held_back_and_can_return() {
    let w = World::new(64);
    let store = w.open();
    let id = ChunkId(5);
    w.rt.block_on(store.create(id, V1)).expect("created");
    w.write(&store, 5, V1, 0, 0, &pattern(1, 9_000));
    assert_eq!(
        w.rt.block_on(store.delete(id, V2)),
        Err(ChunkError::WrongVersion { held: V1 })
    );
    w.rt.block_on(store.delete(id, ChunkVersion(0)))
        .expect("deleted");
    assert_eq!(store.open(id, V1), Err(ChunkError::NoChunk));
    assert_eq!(
        w.rt.block_on(store.delete(id, V1)),
        Err(ChunkError::NoChunk)
    );
    // The id may be used again meanwhile.
    w.rt.block_on(store.create(id, V2)).expect("created anew");
    let held = store.quarantined();
    assert_eq!((held.len(), held[0].id, held[0].any_version), (1, id, true));
    w.stop(store);
    let store = w.open();
    let restore = |store: &Rc<Store>| {
        let store = store.clone();
        w.rt.block_on(async move { store.restore(id, ChunkVersion(0)).await })
    };
    assert_eq!(restore(&store), Err(ChunkError::Exists));
    w.rt.block_on(store.delete(id, V2)).expect("deleted");
    let s = store.clone();
    w.rt.block_on(async move { s.purge(id, V2).await })
        .expect("purged");
    assert_eq!(restore(&store), Ok(()));
    assert_eq!(w.read(&store, 5, 0, 0, 9_000), pattern(1, 9_000));
    let reports = store.reports();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert_eq!(
        reports.poll_next(&mut cx),
        std::task::Poll::Ready(Report::New {
            id,
            version: V1,
            removing: false
        })
    );
    w.stop(store);
    w.check(true);
}

#[test]
fn old_deletions_are_purged_by_age_and_by_need() {
    let w = World::new(24);
    let store = w.open();
    for id in 1..=4u64 {
        w.rt.block_on(store.create(ChunkId(id), V1))
            .expect("created");
        for block in 0..30 {
            w.write(&store, id, V1, block, 0, &pattern(id as u8, 65_536));
        }
        w.rt.block_on(store.delete(ChunkId(id), V1))
            .expect("deleted");
    }
    let held = store.quarantined();
    assert!(
        !held.is_empty() && held.iter().any(|q| q.id == ChunkId(4)),
        "{held:?}"
    );
    // Live data takes the place of what was deleted, oldest first, down to the last unit.
    w.rt.block_on(store.create(ChunkId(9), V1))
        .expect("created");
    let mut stored = 0u16;
    loop {
        let data = w.pool.copy_now(&pattern(9, 65_536));
        let crc = crc32_iovec(&data);
        let write = store.write(ChunkId(9), V1, stored, 0, data, crc);
        match w.rt.block_on(write) {
            Ok(()) => stored += 1,
            Err(error) => {
                assert_eq!(error, ChunkError::NoSpace);
                break;
            }
        }
    }
    assert!(stored > 150, "{stored}");
    assert!(store.quarantined().is_empty());
    assert_eq!(w.read(&store, 9, stored - 1, 0, 65_536), pattern(9, 65_536));
    w.rt.block_on(store.delete(ChunkId(9), V1))
        .expect("a delete always succeeds");
    w.rt.stall(std::time::Duration::from_secs(9 * 86_400));
    w.rt.run_for(std::time::Duration::from_secs(3));
    assert!(store.quarantined().is_empty());
    w.stop(store);
    w.check(true);
}

#[test]
fn a_replica_appears_when_it_is_committed() {
    let w = World::new(64);
    let store = w.open();
    let id = ChunkId(5);
    let token = w.rt.block_on(store.replica_begin(id, V2)).expect("begun");
    let data = w.pool.copy_now(&pattern(3, 65_536));
    let crc = crc32_iovec(&data);
    w.rt.block_on(store.replica_write(token, 1, data.clone(), crc))
        .expect("written");
    let wrong = store.replica_write(token, 1, data, crc ^ 1);
    assert_eq!(w.rt.block_on(wrong), Err(ChunkError::Crc));
    assert_eq!(store.open(id, V2), Err(ChunkError::NoChunk));
    w.rt.block_on(store.replica_commit(token, 2))
        .expect("committed");
    assert_eq!(store.open(id, V2), Ok(2));
    assert_eq!(w.read(&store, 5, 0, 0, 65_536), vec![0; 65_536]);
    assert_eq!(w.read(&store, 5, 1, 0, 65_536), pattern(3, 65_536));
    let taken = w.rt.block_on(store.replica_begin(id, V2));
    assert_eq!(taken, Err(ChunkError::Exists));
    // One that is given up, and one that a crash interrupts, leave nothing behind.
    let other =
        w.rt.block_on(store.replica_begin(ChunkId(6), V1))
            .expect("begun");
    let zeros = IoVec::zeros(65_536);
    w.rt.block_on(store.replica_write(other, 0, zeros, chunk_api::crc::ZERO_BLOCK_CRC))
        .expect("holes");
    store.replica_abort(other);
    let third =
        w.rt.block_on(store.replica_begin(ChunkId(7), V1))
            .expect("begun");
    let data = w.pool.copy_now(&pattern(4, 65_536));
    let crc = crc32_iovec(&data);
    w.rt.block_on(store.replica_write(third, 3, data, crc))
        .expect("written");
    w.rt.kill();
    drop(store);
    let store = w.open();
    assert_eq!(store.inventory().len(), 1);
    w.stop(store);
    w.check(true);
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let w = World::new(64);
    let store = w.open();
    let id = ChunkId(1);
    w.rt.block_on(store.create(id, V1)).expect("created");
    assert_eq!(w.rt.block_on(store.create(id, V2)), Err(ChunkError::Exists));
    let data = w.pool.copy_now(&[1; 100]);
    let crc = crc32_iovec(&data);
    let status = |block, offset, data: &IoVec, crc| {
        let write = store.write(id, V1, block, offset, data.clone(), crc);
        w.rt.block_on(write).map_err(|error| error.status())
    };
    assert_eq!(status(1024, 0, &data, crc), Err(23));
    assert_eq!(status(0, 65_500, &data, crc), Err(25));
    assert_eq!(status(0, 0, &IoVec::new(), 0), Err(24));
    assert_eq!(status(0, 0, &data, crc ^ 1), Err(29));
    assert_eq!(store.open(id, V1), Ok(0));
    let read = store.read(id, V2, 0, 0, 1);
    assert_eq!(w.rt.block_on(read).map_err(|e| e.status()).err(), Some(19));
    let longer = store.truncate(id, (64 << 20) + 1, V2, V1);
    assert_eq!(w.rt.block_on(longer).map_err(|e| e.status()), Err(24));
}

#[test]
fn a_volume_knows_its_master() {
    let w = World::new(64);
    let store = w.open();
    let adopt = |store: &Rc<Store>, metaid, csid| {
        let store = store.clone();
        w.rt.block_on(async move { store.adopt_metaid(metaid, csid).await })
    };
    adopt(&store, 77, 0).expect("an empty volume takes any");
    adopt(&store, 77, 3).expect("its own");
    assert!(adopt(&store, 78, 3).is_err());
    w.stop(store);
    let store = w.open();
    assert_eq!((store.metaid(), store.csid()), (77, 3));
    w.rt.block_on(store.create(ChunkId(1), V1))
        .expect("created");
    let s = store.clone();
    w.rt.block_on(async move { s.claim(0, 0).await })
        .expect("given up");
    let error = adopt(&store, 77, 3).expect_err("holds chunks");
    assert!(
        error
            .to_string()
            .contains("volume claim vol1 --metaid 000000000000004D"),
        "{error}"
    );
}

#[test]
fn rot_on_the_only_leg_is_noticed_and_reported() {
    let w = World::new(64);
    let store = w.open();
    let id = ChunkId(1);
    w.rt.block_on(store.create(id, V1)).expect("created");
    w.write(&store, 1, V1, 0, 0, &pattern(1, 65_536));
    w.stop(store);
    let needle = &pattern(1, 65_536)[4_096..4_196];
    let mut page = vec![0; 4_096];
    let hit = (0..64 << 8).map(|unit| unit * 4_096).find(|&at| {
        w.device.peek(at, &mut page);
        &page[..100] == needle
    });
    w.device
        .poke(hit.expect("stored as it was sent"), &[0xFF; 3]);
    let store = w.open();
    let read = store.read(id, V1, 0, 0, 65_536);
    assert_eq!(w.rt.block_on(read).map(|_| ()), Err(ChunkError::Crc));
    assert_eq!(
        w.read(&store, 1, 0, 8_192, 4_096),
        pattern(1, 65_536)[8_192..12_288]
    );
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let report = store.reports().poll_next(&mut cx);
    assert_eq!(report, std::task::Poll::Ready(Report::Damaged(id)));
    w.stop(store);
    let options = CheckOptions {
        repair: false,
        data: true,
    };
    let run = check(w.mirror.clone(), w.rt.rt(), w.pool.clone(), options);
    let summary = w.rt.block_on(run).expect("checked");
    assert_eq!(summary.result(), CheckResult::Damaged);
    assert_eq!(summary.problems[0].chunk, Some((id, V1)));
    assert_eq!(summary.problems[0].block, Some(0));
}

#[test]
fn the_store_tells_which_space_is_used_and_whether_it_is_right() {
    use blockdev::{Allocation, Done, IoCtx, Op, Sector, Verdict};
    let w = World::new(64);
    let store = w.open();
    w.rt.block_on(store.create(ChunkId(1), V1))
        .expect("created");
    w.write(&store, 1, V1, 0, 0, &pattern(1, 65_536));
    w.stop(store);
    let store = w.open();
    let mut from = Sector(0);
    let mut used = 0;
    let mut verdicts = [0; 4];
    while let Some(range) = w.rt.block_on(store.next_used(from)) {
        assert!(range.end > from && range.start < range.end);
        let sectors = (range.end.0 - range.start.0) as u32;
        used += sectors / 8;
        let op = Op::Read {
            at: range.start,
            sectors,
        };
        let read = w.rt.block_on(w.mirror.submit(op, IoCtx::background()));
        let Ok(Done::Read(data, _)) = read else {
            panic!("{read:?}")
        };
        for verdict in w.rt.block_on(store.judge(range.start, data)) {
            verdicts[verdict as usize] += 1;
        }
        from = range.end;
    }
    // 8 segments of 256 units, 128 superblock slots; 16 granules, a map page, 2 or more tree pages.
    let fixed = 8 * 256 + 128;
    assert_eq!(verdicts[Verdict::Unknown as usize], fixed);
    assert_eq!(
        verdicts[Verdict::Bad as usize] + verdicts[Verdict::Free as usize],
        0
    );
    assert!(verdicts[Verdict::Good as usize] >= 19, "{verdicts:?}");
    assert!(used >= fixed + 19);
    let free =
        w.rt.block_on(store.judge(Sector(40 << 11), IoVec::zeros(8_192)));
    assert_eq!(free, [Verdict::Free, Verdict::Free]);
}

fn events(store: &Store) -> Vec<(&'static str, String)> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let next = || match store.poll_event(&mut cx) {
        std::task::Poll::Ready(change) => Some((change.event, change.text)),
        std::task::Poll::Pending => None,
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn operators_are_told_of_deletes_damage_and_low_space() {
    let w = World::new(24);
    let store = w.open();
    w.rt.block_on(store.create(ChunkId(1), V1))
        .expect("created");
    w.write(&store, 1, V1, 0, 0, &pattern(1, 65_536));
    w.rt.block_on(store.delete(ChunkId(1), V1))
        .expect("deleted");
    let told = events(&store);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "chunks_quarantined");
    assert!(told[0].1.contains("0000000000000001"), "{told:?}");
    w.rt.block_on(store.create(ChunkId(2), V1))
        .expect("created");
    let mut block = 0;
    while store.stats().free_bytes > store.stats().size_bytes / 25 {
        w.write(&store, 2, V1, block, 0, &pattern(2, 65_536));
        block += 1;
    }
    w.rt.run_for(std::time::Duration::from_secs(2));
    let told = events(&store);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "space_low");
    w.rt.run_for(std::time::Duration::from_secs(20));
    assert!(events(&store).is_empty(), "a level is told once");
}

/// Evidence of a stale master holds its deletes, those before the evidence too, until an operator
/// has dealt with each (P8).
#[test]
fn deletes_of_a_stale_master_are_held_hard() {
    let w = World::new(64);
    let store = w.open();
    let adopt = |store: &Rc<Store>| {
        let store = store.clone();
        w.rt.block_on(async move { store.adopt_metaid(7, 1).await })
            .expect("adopted");
    };
    adopt(&store);
    for id in [10, 20, 30, 40] {
        w.rt.block_on(store.create(ChunkId(id), V2))
            .expect("created");
        w.write(&store, id, V2, 0, 0, &pattern(1, 9_000));
    }
    w.rt.block_on(store.delete(ChunkId(40), V2))
        .expect("deleted");
    assert_eq!(events(&store).len(), 1);
    w.stop(store);
    // The next registration, on a later day; its ids go back.
    w.rt.stall(std::time::Duration::from_secs(3600));
    let store = w.open();
    adopt(&store);
    w.rt.block_on(store.delete(ChunkId(10), V2))
        .expect("deleted");
    let soft = |store: &Store| {
        let held = store.quarantined().into_iter();
        held.filter(|q| q.purge_after_s.is_some())
            .map(|q| q.id.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(soft(&store), [40, 10]);
    let again = w.rt.block_on(store.create(ChunkId(20), V1));
    assert_eq!(again, Err(ChunkError::Exists));
    w.rt.run_for(std::time::Duration::from_millis(500));
    assert_eq!(soft(&store), [40], "held since the registration");
    let told = events(&store);
    assert!(
        told.iter()
            .any(|(kind, text)| *kind == "stale_master_suspected"
                && text.contains("0000000000000014")),
        "{told:?}"
    );
    w.rt.block_on(store.delete(ChunkId(20), V2))
        .expect("deleted");
    assert_eq!(soft(&store), [40]);
    // A restart forgets the suspicion, not what is held.
    w.stop(store);
    let store = w.open();
    assert_eq!(soft(&store), [40]);
    w.rt.stall(std::time::Duration::from_secs(10 * 86_400));
    w.rt.run_for(std::time::Duration::from_secs(3));
    assert_eq!(store.quarantined().len(), 2, "age purges the others");
    for id in [10, 20] {
        let s = store.clone();
        w.rt.block_on(async move { s.purge(ChunkId(id), V2).await })
            .expect("purged");
    }
    // An older version asked for long after the registration.
    adopt(&store);
    w.rt.run_for(std::time::Duration::from_secs(61));
    assert!(store.open(ChunkId(30), V1).is_err());
    w.rt.block_on(store.delete(ChunkId(30), V2))
        .expect("deleted");
    assert!(soft(&store).is_empty());
    assert_eq!(store.quarantined().len(), 1);
    w.stop(store);
    w.check(true);
}

/// A volume that a newer release has marked: what it holds is served, nothing is written.
#[test]
fn unknown_read_only_features_open_the_volume_read_only() {
    let w = World::new(64);
    let store = w.open();
    w.rt.block_on(store.create(ChunkId(1), V1))
        .expect("created");
    w.write(&store, 1, V1, 0, 0, &pattern(1, 9_000));
    w.stop(store);
    let store = w.open();
    // Only in the journal.
    w.write(&store, 1, V1, 1, 0, &pattern(2, 5_000));
    w.rt.kill();
    drop(store);
    let mut image = vec![0; 64 << 20];
    let end = (64 << 20) - (64 << 12);
    for slot in (0..64)
        .map(|i| i << 12)
        .chain((0..64).map(|i| end + (i << 12)))
    {
        let mut page = vec![0; 4096];
        w.device.peek(slot as u64, &mut page);
        if page[..8] == *chunk_store::MAGIC {
            page[24] |= 0x20;
            let crc = crc32(&page[..4092]);
            page[4092..].copy_from_slice(&crc.to_le_bytes());
            w.device.poke(slot as u64, &page);
        }
    }
    w.device.peek(0, &mut image);
    let store = w.open();
    let stats = store.stats();
    assert!(stats.read_only && stats.failed.is_none() && stats.free_bytes == 0);
    assert_eq!(w.read(&store, 1, 0, 0, 9_000), pattern(1, 9_000));
    assert_eq!(w.read(&store, 1, 1, 0, 5_000), pattern(2, 5_000));
    assert_eq!(store.inventory().len(), 1);
    let deleted = w.rt.block_on(store.delete(ChunkId(1), V1));
    assert_eq!(deleted.map_err(|e| e.status()), Err(16));
    let created = w.rt.block_on(store.create(ChunkId(2), V1));
    assert_eq!(created.map_err(|e| e.status()), Err(16));
    w.rt.run_for(std::time::Duration::from_secs(5));
    w.stop(store);
    let mut after = vec![0; 64 << 20];
    w.device.peek(0, &mut after);
    assert!(image == after, "not a byte was written");
}
