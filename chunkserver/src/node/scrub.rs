//! The scrub of one volume: every granule in use is read on every leg, and what differs from its checksum is
//! healed from the leg that has it right.
//!
//! At most one runs a volume. It is background work of the shard: one region (672 granules) at a time, never
//! faster than [`SCRUB_BYTES_PER_S`], so that clients and copies of the mirror keep the larger part of the
//! legs. Granules that no leg has right are reported to the master within [`REPORT_INTERVAL`], since the walk
//! that finds their owners visits every map of the volume and is not worth repeating for each one.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use blockdev::rt::Wall;
use blockdev::{Instant, Rt};
use chunk_store::Store;

use crate::exit::Failure;
use crate::node::survey::time;
use crate::report::{Scrub, ScrubState};

/// Bytes of the volume a second, each read once a leg: about what one gigabit link carries.
const SCRUB_BYTES_PER_S: u64 = 100 << 20;
/// Damage is reported at least so often while it is being found.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// A region without anything in it costs no I/O: after so many the others get their turn all the same.
const EMPTY_REGIONS_IN_A_ROW: u32 = 64;

/// How far the last scrub came.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    started: Option<Wall>,
    finished: Option<Wall>,
    begun: Instant,
    done_regions: u32,
    regions: u32,
    checked_bytes: u64,
    errors: u64,
    healed_blocks: u64,
    damaged_blocks: u64,
}

/// See the module.
pub(crate) struct Scrubber {
    rt: Rt,
    volume: String,
    /// Number of the one that runs; 0: none does.
    running: Cell<u64>,
    begun: Cell<u64>,
    progress: RefCell<Progress>,
}

impl Scrubber {
    /// For the volume of this name. Nothing runs yet.
    pub(crate) fn new(rt: Rt, volume: &str) -> Rc<Scrubber> {
        Rc::new(Scrubber {
            rt,
            volume: volume.to_owned(),
            running: Cell::new(0),
            begun: Cell::new(0),
            progress: RefCell::default(),
        })
    }

    /// Begins to read everything; refused while one runs.
    pub(crate) fn start(self: &Rc<Self>, store: &Rc<Store>) -> Result<Scrub, Failure> {
        if self.is_running() {
            return Err(Failure::problem(format!(
                "volume {}: a scrub is running; `antler scrub {} stop` ends it",
                self.volume, self.volume
            )));
        }
        let number = self.begun.get() + 1;
        self.begun.set(number);
        self.running.set(number);
        *self.progress.borrow_mut() = Progress {
            started: Some(self.rt.wall()),
            begun: self.rt.now(),
            regions: store.scrub_regions(),
            ..Progress::default()
        };
        tracing::info!("volume {}: scrub begins", self.volume);
        let (me, store) = (self.clone(), Rc::downgrade(store));
        self.rt.spawn(async move { me.run(number, store).await });
        Ok(self.status())
    }

    /// Ends the one that runs, if one does. What it found stays to be seen.
    pub(crate) fn stop(&self) -> Scrub {
        if self.running.replace(0) != 0 {
            tracing::info!("volume {}: scrub stopped", self.volume);
        }
        self.status()
    }

    /// How far it is, or how far the last one came.
    pub(crate) fn status(&self) -> Scrub {
        let p = *self.progress.borrow();
        let running = self.is_running();
        let percent = match (p.finished, p.regions) {
            (Some(_), _) => 100.0,
            (None, 0) => 0.0,
            (None, all) => f64::from(p.done_regions) * 100.0 / f64::from(all),
        };
        let seconds = self.rt.now().since(p.begun).as_secs_f64();
        let rate = match running && seconds > 0.0 {
            true => (p.checked_bytes as f64 / seconds) as u64,
            false => 0,
        };
        Scrub {
            volume: self.volume.clone(),
            state: match running {
                true => ScrubState::Running,
                false => ScrubState::Idle,
            },
            started: p.started.map(time),
            finished: p.finished.map(time),
            percent: (percent * 100.0).round() / 100.0,
            checked_bytes: p.checked_bytes,
            bytes_per_s: rate,
            errors: p.errors,
            healed_blocks: p.healed_blocks,
            damaged_blocks: p.damaged_blocks,
        }
    }

    fn is_running(&self) -> bool {
        self.running.get() != 0
    }

    async fn run(&self, number: u64, store: Weak<Store>) {
        let regions = self.progress.borrow().regions;
        let mut damaged = Vec::new();
        let mut reported = self.rt.now();
        let mut empty = 0;
        for region in 0..regions {
            // The store is not kept alive by its scrub: a volume that stops ends it.
            let Some(store) = store.upgrade().filter(|_| self.running.get() == number) else {
                return;
            };
            let step = store.scrub_region(region).await;
            if self.running.get() != number {
                return;
            }
            {
                let mut p = self.progress.borrow_mut();
                p.done_regions = region + 1;
                p.checked_bytes += step.checked_bytes;
                p.errors += step.errors;
                p.healed_blocks += step.healed;
                p.damaged_blocks += step.damaged.len() as u64;
            }
            damaged.extend(step.damaged);
            let now = self.rt.now();
            let is_due = now.since(reported) >= REPORT_INTERVAL || region + 1 == regions;
            if is_due && !damaged.is_empty() {
                store.report_damaged_units(&damaged).await;
                damaged.clear();
                reported = now;
            }
            if region + 1 == regions {
                store.look_again();
            }
            drop(store);
            empty = if step.checked_bytes > 0 { 0 } else { empty + 1 };
            self.keep_pace(empty).await;
        }
        if self.running.get() == number {
            self.running.set(0);
            self.finish();
        }
    }

    /// Waits until what was read is no more than the rate allows.
    async fn keep_pace(&self, empty_regions: u32) {
        let p = *self.progress.borrow();
        let micros = u128::from(p.checked_bytes) * 1_000_000 / u128::from(SCRUB_BYTES_PER_S);
        let earned = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let due = p.begun + earned;
        if due > self.rt.now() {
            self.rt.sleep_until(due).await;
        } else if empty_regions % EMPTY_REGIONS_IN_A_ROW == EMPTY_REGIONS_IN_A_ROW - 1 {
            self.rt.sleep(Duration::from_micros(100)).await;
        }
    }

    fn finish(&self) {
        let mut p = self.progress.borrow_mut();
        p.finished = Some(self.rt.wall());
        let text = format!(
            "volume {}: scrub done: {} bytes checked, {} errors, {} blocks healed, {} damaged on every leg",
            self.volume, p.checked_bytes, p.errors, p.healed_blocks, p.damaged_blocks
        );
        match p.errors {
            0 => tracing::info!("{text}"),
            _ => tracing::warn!("{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
    use blockdev::{Geometry, IoVec, Pool};
    use chunk_api::crc::crc32;
    use chunk_api::{ChunkId, ChunkVersion, Chunks, BLOCK_BYTES};
    use chunk_store::{FormatParams, Options, SingleLeg};

    /// A volume of one leg with some data on it.
    async fn volume(rt: &Rt, pool: &Pool, blocks: u16) -> (MemDevice, Rc<Store>) {
        let geometry = Geometry::plain(128 << 11);
        let device = MemDevice::new(rt.clone(), pool.clone(), geometry, MemTiming::default());
        let mirror = SingleLeg::new(Rc::new(device.clone()), rt.clone());
        let params = FormatParams::new("v".to_owned(), [1; 16], [2; 16]);
        chunk_store::format(mirror.clone(), pool, &params)
            .await
            .unwrap();
        let options = Options {
            name: "v".to_owned(),
            ..Options::default()
        };
        let store = Store::open(mirror, rt.clone(), pool.clone(), options)
            .await
            .unwrap();
        let (id, version) = (ChunkId(1), ChunkVersion(1));
        store.create(id, version).await.unwrap();
        for block in 0..blocks {
            let bytes = vec![block as u8 + 1; BLOCK_BYTES as usize];
            let data: IoVec = pool.copy_now(&bytes);
            store
                .write(id, version, block, 0, data, crc32(&bytes))
                .await
                .unwrap();
        }
        store.finish(id).await.unwrap();
        (device, store)
    }

    #[test]
    fn it_reads_what_is_used_at_its_rate_and_says_how_far_it_is() {
        let world = VirtualRt::new(1);
        let (rt, pool) = (world.rt(), Pool::new(64 << 20));
        world.block_on(async move {
            let (_, store) = volume(&rt, &pool, 160).await;
            let scrub = Scrubber::new(rt.clone(), "v");
            assert_eq!(
                (scrub.status().started, scrub.status().percent),
                (None, 0.0)
            );
            let begun = rt.now();
            assert_eq!(scrub.start(&store).unwrap().state, ScrubState::Running);
            assert!(scrub
                .start(&store)
                .unwrap_err()
                .text
                .contains("antler scrub v stop"));
            while scrub.is_running() {
                rt.sleep(Duration::from_millis(1)).await;
            }
            let status = scrub.status();
            assert!(status.finished.is_some());
            assert!(
                status.checked_bytes >= 160 * u64::from(BLOCK_BYTES),
                "{status:?}"
            );
            assert_eq!(
                (status.percent, status.errors, status.damaged_blocks),
                (100.0, 0, 0)
            );
            let least = status.checked_bytes as f64 / SCRUB_BYTES_PER_S as f64;
            assert!(
                rt.now().since(begun).as_secs_f64() >= least,
                "faster than its rate"
            );
        });
    }

    #[test]
    fn a_stopped_one_stays_where_it_is_and_another_begins_anew() {
        let world = VirtualRt::new(1);
        let (rt, pool) = (world.rt(), Pool::new(64 << 20));
        world.block_on(async move {
            let (_, store) = volume(&rt, &pool, 160).await;
            let scrub = Scrubber::new(rt.clone(), "v");
            scrub.start(&store).unwrap();
            rt.sleep(Duration::from_millis(30)).await;
            let stopped = scrub.stop();
            assert_eq!(stopped.state, ScrubState::Idle);
            assert_eq!(stopped.finished, None);
            assert!(
                stopped.percent > 0.0 && stopped.percent < 100.0,
                "{stopped:?}"
            );
            rt.sleep(Duration::from_secs(1)).await;
            assert_eq!(scrub.status().checked_bytes, stopped.checked_bytes);
            scrub.start(&store).unwrap();
            rt.sleep(Duration::from_secs(2)).await;
            assert_eq!(scrub.status().percent, 100.0);
            assert_eq!(scrub.status().state, ScrubState::Idle);
        });
    }

    #[test]
    fn a_volume_that_stops_ends_its_scrub() {
        let world = VirtualRt::new(1);
        let (rt, pool) = (world.rt(), Pool::new(64 << 20));
        world.block_on(async move {
            let (_, store) = volume(&rt, &pool, 160).await;
            let scrub = Scrubber::new(rt.clone(), "v");
            scrub.start(&store).unwrap();
            rt.sleep(Duration::from_millis(20)).await;
            scrub.stop();
            store.stop().await.unwrap();
            drop(store);
            rt.sleep(Duration::from_secs(1)).await;
            assert!(scrub.status().finished.is_none());
        });
    }

    #[test]
    fn damage_on_every_leg_is_counted_and_reported() {
        let world = VirtualRt::new(1);
        let (rt, pool) = (world.rt(), Pool::new(64 << 20));
        world.block_on(async move {
            let (device, store) = volume(&rt, &pool, 4).await;
            let mut all = vec![0; 128 << 20];
            device.peek(0, &mut all);
            // Block 2 is full of threes: nothing else is.
            let at = all
                .chunks(4096)
                .position(|g| g.iter().all(|&b| b == 3))
                .unwrap();
            device.poke(at as u64 * 4096 + 77, &[0xEE]);
            let scrub = Scrubber::new(rt.clone(), "v");
            scrub.start(&store).unwrap();
            rt.sleep(Duration::from_secs(5)).await;
            let status = scrub.status();
            assert_eq!(
                (status.errors, status.healed_blocks, status.damaged_blocks),
                (1, 0, 1)
            );
            let reports = store.reports();
            let mut told = Vec::new();
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            while let std::task::Poll::Ready(report) = reports.poll_next(&mut cx) {
                told.push(report);
            }
            assert!(
                told.contains(&chunk_api::Report::Damaged(ChunkId(1))),
                "{told:?}"
            );
        });
    }
}
