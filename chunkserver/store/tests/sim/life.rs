//! One life of the process on disks that outlive it, and how it ends.

use super::{Disks, Rng, SimMirror};
use blockdev::sim::VirtualRt;
use blockdev::{Mirror, Pool};
use chunk_store::{check, format, CheckOptions, Durability, FormatParams, Options, Store};
use std::rc::Rc;

pub const MIB: u64 = 24;

/// When a write counts, and what the legs can do about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mode {
    pub durability: Durability,
    pub fua: bool,
}

impl Default for Mode {
    fn default() -> Mode {
        Mode {
            durability: Durability::Flush,
            fua: true,
        }
    }
}

/// One life of the process.
pub struct Life {
    pub rt: VirtualRt,
    pub pool: Pool,
    pub mirror: Rc<SimMirror>,
    mode: Mode,
}

impl Life {
    pub fn new(disks: &Disks, rng: &mut Rng) -> Life {
        Life::with(Mode::default(), disks, rng)
    }

    pub fn with(mode: Mode, disks: &Disks, rng: &mut Rng) -> Life {
        let rt = VirtualRt::shuffled(rng.next());
        let pool = Pool::new(64 << 20);
        let mirror = SimMirror::new(&rt, pool.clone(), disks.clone(), MIB, rng.next());
        mirror.fua.set(mode.fua);
        Life {
            rt,
            pool,
            mirror,
            mode,
        }
    }

    pub fn mirror(&self) -> Rc<dyn Mirror> {
        self.mirror.clone()
    }

    pub fn options(&self) -> Options {
        Options {
            durability: self.mode.durability,
            name: "model".into(),
            cache_bytes: 64 << 10,
            map_cache_bytes: 16 << 10,
            read_ahead_bytes: 64 << 10,
            ..Options::default()
        }
    }

    pub fn open(&self) -> Rc<Store> {
        let open = Store::open(
            self.mirror(),
            self.rt.rt(),
            self.pool.clone(),
            self.options(),
        );
        self.rt
            .block_on(open)
            .expect("a volume opens after any crash")
    }

    pub fn check(&self, options: CheckOptions) -> chunk_store::Summary {
        let run = check(self.mirror(), self.rt.rt(), self.pool.clone(), options);
        self.rt
            .block_on(run)
            .expect("a volume can be checked after any crash")
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crash {
    Kill,
    CutAll,
    CutOne(usize),
}

pub fn crash(disks: &Disks, rng: &mut Rng) -> Crash {
    let kind = match rng.below(100) {
        0..45 => Crash::Kill,
        45..80 => Crash::CutAll,
        n => Crash::CutOne((n % 2) as usize),
    };
    for (leg, disk) in disks.iter().enumerate() {
        let mut disk = disk.borrow_mut();
        disk.kill(rng);
        if kind == Crash::CutAll || kind == Crash::CutOne(leg) {
            disk.cut(rng);
        }
    }
    kind
}

pub fn format_volume(life: &Life) {
    let params = FormatParams {
        segment_units: Some(16),
        segments: Some(8),
        ..FormatParams::new("model", [3; 16], [4; 16])
    };
    let (mirror, pool) = (life.mirror(), life.pool.clone());
    life.rt
        .block_on(async move { format(mirror, &pool, &params).await })
        .expect("formatted");
}

pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(default),
    }
}

/// Prints the seed of a run that panics.
pub struct Seed(pub u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SIM_SEED={}", self.0);
        }
    }
}
