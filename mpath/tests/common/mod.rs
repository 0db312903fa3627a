//! A device with two paths to a simulated storage node, in virtual time.
#![allow(dead_code, unreachable_pub)] // Each test file is a crate and uses its part.

use blockdev::sim::VirtualRt;
use blockdev::{
    BlockDevice, Completion, Durability, Event, Hedge, Instant, IoCtx, IoError, Op, Pool, Sector,
};
use mpath::sim::{Flavour, San, SanOptions};
use mpath::{Config, MultipathDevice};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub struct Rig {
    pub world: VirtualRt,
    pub pool: Pool,
    pub san: San,
    pub device: Rc<MultipathDevice>,
}

pub fn options(flavour: Flavour) -> SanOptions {
    SanOptions {
        flavour,
        ..SanOptions::default()
    }
}

pub fn config() -> Config {
    Config::new("sto1", "iqn.2024-12.tp2.b3:initiator")
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with(options(Flavour::Tgt), config())
    }

    pub fn with(options: SanOptions, config: Config) -> Rig {
        Rig::seeded(7, options, config)
    }

    pub fn seeded(seed: u64, options: SanOptions, config: Config) -> Rig {
        let world = VirtualRt::new(seed);
        let pool = Pool::new(16 << 20);
        let ports = options.portal_groups.len();
        let san = San::new(world.rt(), pool.clone(), options);
        let ports = (0..ports).map(|n| san.port(n)).collect();
        let device = Rc::new(MultipathDevice::new(world.rt(), config, ports));
        let rig = Rig {
            world,
            pool,
            san,
            device,
        };
        let device = rig.device.clone();
        rig.world
            .block_on(async move { device.opened(Instant::FAR).await })
            .expect("a path is up");
        rig.run(ms(20));
        rig.events();
        rig
    }

    pub fn run(&self, time: Duration) {
        self.world.run_for(time);
    }

    pub fn write(&self, at: u64, fill: u8) -> Completion {
        self.write_with(at, &[fill; 4096], Durability::Cache, IoCtx::foreground())
    }

    pub fn write_with(&self, at: u64, data: &[u8], want: Durability, ctx: IoCtx) -> Completion {
        let op = Op::Write {
            at: Sector(at),
            data: self.pool.copy_now(data),
            want,
        };
        self.device.submit(op, ctx)
    }

    pub fn read(&self, at: u64) -> Completion {
        let op = Op::Read {
            at: Sector(at),
            sectors: 8,
        };
        self.device.submit(op, IoCtx::foreground())
    }

    pub fn flush(&self) -> Completion {
        self.device.submit(Op::Flush, IoCtx::foreground())
    }

    pub fn fence(&self) -> Completion {
        self.device.submit(Op::Fence, IoCtx::metadata())
    }

    /// The result, and how long it took from now.
    pub fn time(&self, op: Completion) -> (Result<blockdev::Done, IoError>, Duration) {
        let begun = self.world.now();
        let result = self.world.block_on(op);
        (result, self.world.now() - begun)
    }

    /// Takes all events that wait.
    pub fn events(&self) -> Vec<Event> {
        let device = self.device.clone();
        self.world.block_on(poll_fn(move |cx| {
            let mut events = Vec::new();
            while let Poll::Ready(event) = device.poll_event(cx) {
                events.push(event);
            }
            Poll::Ready(events)
        }))
    }

    /// Names of the state changes that wait.
    pub fn news(&self) -> Vec<&'static str> {
        let names = self.events().into_iter().filter_map(|e| match e {
            Event::State(change) => Some(change.event),
            _ => None,
        });
        names.collect()
    }

    pub fn content(&self, at: u64) -> u8 {
        self.san.peek(Sector(at))[0]
    }
}

pub fn by(deadline: Instant) -> IoCtx {
    IoCtx {
        deadline,
        ..IoCtx::foreground()
    }
}

pub fn unhedged() -> IoCtx {
    IoCtx {
        hedge: Hedge::No,
        ..IoCtx::foreground()
    }
}
