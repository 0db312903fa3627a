//! Ghost writes, corner by corner: {five points of a write's way at which its path is cut} ×
//! {overlap of the newer write} × {what becomes of the fence} × {who writes next}, with timings,
//! habits of targets and networks drawn from the seed. A world is one unit, two or three paths and
//! multipath alone, so that a run takes well under a millisecond and hundreds of thousands fit
//! into minutes; `sim_path` does the same down to the bytes on the wire, `sim_stack` with a mirror.
//!
//! Oracle: no sector ever holds less than the newest version acknowledged there, and everything is
//! answered once all is healed. A run in twenty has no fault but our own stalls: then no path may
//! be blamed for anything.
//!
//! `SIM_SEED` replays a run, `SIM_RUNS` says how many; `SIM_LONG` makes ten times as many.

use blockdev::sim::{Chance, Handle, Host, VirtualRt};
use blockdev::{
    Admission, BlockDevice, Completion, Durability, Instant, IoCtx, IoError, IoResult, Kind,
    LocalFuture, Op, Pool, ReadSectors, Refusal, Sector,
};
use mpath::sim::{CutPoint, Flavour, Link, San, SanOptions};
use mpath::{Config, MultipathDevice};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tests::sim::site::for_each_seed;

/// Sectors that versions are kept for.
const SECTORS: u64 = 12;
/// The write that meets the cut: sectors 2 to 5.
const VICTIM: (u64, u64) = (2, 4);
/// Where the owner's name is.
const CLAIM: Sector = Sector(64);
/// Everything heals after this at the latest, and all must be answered so much later.
const HEALED: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(120);
/// Runs of CI: every corner more than 500 times.
const RUNS: u64 = if cfg!(debug_assertions) {
    2_000
} else {
    110_000
};
/// Every so many runs one is about our own stalls.
const STALLS_EVERY: u64 = 20;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overlap {
    Full,
    Partial,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FenceFate {
    Works,
    Refused,
    NoLivePortal,
    BackEndHung,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    TheSame,
    OurRestart,
    AnotherNode,
}

#[derive(Clone, Copy, Debug)]
struct Corner {
    at: CutPoint,
    overlap: Overlap,
    fence: FenceFate,
    next: Next,
}

impl Corner {
    /// Neighbouring seeds lie in different corners.
    fn of(seed: u64) -> Corner {
        let overlaps = [Overlap::Full, Overlap::Partial, Overlap::None];
        let fences = [
            FenceFate::Works,
            FenceFate::Refused,
            FenceFate::NoLivePortal,
            FenceFate::BackEndHung,
        ];
        let nexts = [Next::TheSame, Next::OurRestart, Next::AnotherNode];
        let mut left = seed;
        let mut take = |n: usize| {
            let index = left % n as u64;
            left /= n as u64;
            index as usize
        };
        Corner {
            at: CutPoint::ALL[take(5)],
            overlap: overlaps[take(3)],
            fence: fences[take(4)],
            next: nexts[take(3)],
        }
    }
}

/// A node: its tasks die with it.
struct Node {
    host: Host,
    device: Rc<MultipathDevice>,
    /// Kept alive for the device, which only knows it weakly.
    gate: Rc<dyn Admission>,
}

impl Node {
    /// From now on the claim is read on every new session.
    fn guard(&self) {
        self.device.set_admission(Rc::downgrade(&self.gate));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Its tasks and what they stand on hold each other: a million runs would fill the memory.
        self.host.kill();
    }
}

/// The claim says whose the unit is; read on every new session of a node.
struct Gate {
    owner: u64,
}

impl Admission for Gate {
    fn admit(&self, session: Rc<dyn ReadSectors>) -> LocalFuture<Result<(), IoError>> {
        let owner = self.owner;
        Box::pin(async move {
            let found = version(&session.read(CLAIM, 1).await?.to_vec());
            if found == owner {
                return Ok(());
            }
            Err(IoError::not_applied(Kind::Refused(Refusal::NotOwner)))
        })
    }
}

struct World {
    world: VirtualRt,
    chance: Chance,
    pool: Pool,
    san: San,
    paths: usize,
    acknowledged: Rc<[Cell<u64>; SECTORS as usize]>,
    corner: Corner,
    /// The network that the victim met its cut in.
    cut: Cell<usize>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.world.kill();
    }
}

fn stamp(sectors: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; (sectors * 512) as usize];
    for sector in bytes.chunks_exact_mut(512) {
        sector[..8].copy_from_slice(&version.to_be_bytes());
    }
    bytes
}

fn version(sector: &[u8]) -> u64 {
    u64::from_be_bytes(*sector.first_chunk().expect("a sector"))
}

impl World {
    /// `is_prompt`: the target keeps nobody waiting.
    fn new(seed: u64, pool: &Pool, is_prompt: bool) -> World {
        let chance = Chance::new(seed);
        let world = VirtualRt::shuffled(seed);
        let flavour = match chance.below(10) {
            0 | 1 => Flavour::Lio,
            2 => Flavour::Standard,
            _ => Flavour::Tgt,
        };
        let portal_groups = match chance.below(4) {
            0 => vec![1, 2],
            1 => vec![1, 1, 1],
            _ => vec![1, 1],
        };
        let paths = portal_groups.len();
        let options = SanOptions {
            flavour,
            portal_groups,
            asks_within: match chance.below(6) {
                0 => Some(ms(1)),
                1 if !is_prompt => Some(ms(400)),
                _ => None,
            },
            ..SanOptions::default()
        };
        World {
            san: San::new(world.rt(), pool.clone(), options),
            world,
            chance,
            pool: pool.clone(),
            paths,
            acknowledged: Rc::default(),
            // Stalls take their turns from all corners alike.
            corner: Corner::of(seed - seed / STALLS_EVERY),
            cut: Cell::new(0),
        }
    }

    /// Starts node `number`; its paths have ISIDs of their own.
    fn node(&self, number: u64) -> Node {
        let host = Host::new(&self.world.rt());
        let config = Config {
            login_timeout: ms(1000),
            ..Config::new("sto1", initiator(number))
        };
        let ports = (0..self.paths).map(|n| self.san.port_of(&initiator(number), n));
        let device = Rc::new(MultipathDevice::new(host.rt(), config, ports.collect()));
        for path in 0..self.paths {
            // Discovery tells the portal groups of portals that cannot be reached.
            let (name, tag) = (self.san.path_name(path), self.san.portal_group(path));
            device.set_portal_group(&name.portal, tag).expect("a path");
        }
        let gate: Rc<dyn Admission> = Rc::new(Gate { owner: number });
        Node { host, device, gate }
    }

    fn open(&self, node: &Node) {
        let opened = node.device.clone();
        let opened = self
            .world
            .spawn_handle(async move { opened.opened(Instant::FAR).await });
        self.until("a path to be up", || {
            opened.try_take().map(|r| r.expect("opened"))
        });
    }

    /// Runs until there is something.
    fn until<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let end = self.world.now() + PATIENCE;
        let mut step = Duration::from_micros(500);
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(
                self.world.now() < end,
                "waited in vain for {what}; {:?}",
                self.corner
            );
            self.world.run_for(step);
            step = (step * 2).min(ms(20));
        }
    }

    fn write(&self, node: &Node, (at, sectors): (u64, u64), new: u64, deadline: Instant) -> Answer {
        let op = Op::Write {
            at: Sector(at),
            data: self.pool.copy_now(&stamp(sectors, new)),
            want: Durability::Cache,
        };
        let ctx = IoCtx {
            deadline,
            ..IoCtx::foreground()
        };
        self.acknowledging(node.device.submit(op, ctx), at..at + sectors, new)
    }

    fn acknowledging(&self, write: Completion, at: std::ops::Range<u64>, new: u64) -> Answer {
        let acknowledged = self.acknowledged.clone();
        self.world.spawn_handle(async move {
            let result = write.await;
            if result.is_ok() {
                for sector in at {
                    let cell = &acknowledged[sector as usize];
                    cell.set(cell.get().max(new));
                }
            }
            result
        })
    }

    /// Every sector holds what was acknowledged last, or something newer.
    fn check(&self, node: &Node, when: &str) {
        for sector in 0..SECTORS {
            let found = version(&self.san.peek(Sector(sector)));
            let floor = self.acknowledged[sector as usize].get();
            assert!(
                found >= floor,
                "{when}: sector {sector} holds version {found}, acknowledged {floor}; {:?}\n{:#?}",
                self.corner,
                node.device.traces()
            );
        }
    }

    fn pause(&self, most: u64) {
        let time = Duration::from_micros(self.chance.below(most * 1000 + 1));
        self.world.run_for(time);
    }

    /// Networks but the cut one.
    fn uncut(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.paths).filter(|path| *path != self.cut.get())
    }

    /// Ends the cut.
    fn mend(&self) {
        self.san.set_link(self.cut.get(), Link::Up);
    }

    /// What keeps the fence from being done at once.
    fn hinder(&self) {
        match self.corner.fence {
            FenceFate::Works => {}
            FenceFate::Refused => self.san.refuse_barriers(true),
            FenceFate::NoLivePortal => {
                for path in self.uncut() {
                    let link = if self.chance.coin() {
                        Link::Silent
                    } else {
                        Link::Loud
                    };
                    self.san.set_link(path, link);
                }
            }
            FenceFate::BackEndHung => self.san.set_hung(true),
        }
    }

    fn help(&self) {
        self.san.refuse_barriers(false);
        self.san.set_hung(false);
        for path in self.uncut() {
            self.san.set_link(path, Link::Up);
        }
    }
}

type Answer = Handle<IoResult>;

fn initiator(number: u64) -> String {
    format!("iqn.2024-12.tp2.b3:node{number}")
}

/// The write that meets the cut, and what the fence meets.
fn be_cut(world: &World, node: &Node) -> Vec<Answer> {
    let late = ms(1 + world.chance.below(3000));
    world.san.cut_write(world.corner.at, late);
    // Without a fence a write may wait for ever.
    let may_starve = world.corner.fence != FenceFate::Works;
    let deadline = if may_starve || world.chance.below(3) == 0 {
        world.world.now() + ms(80 + world.chance.below(200))
    } else {
        Instant::FAR
    };
    let is_hindered_first = world.chance.coin();
    // The same bytes again behind the first: a reset leaves a unit attention to old sessions, which
    // refuses the first command that comes late, but not the second.
    let victims = (0..3).map(|_| world.write(node, VICTIM, 2, deadline));
    let victims: Vec<Answer> = victims.collect();
    let cut = world.until("the cut", || world.san.cut_network());
    world.cut.set(cut);
    if is_hindered_first {
        world.hinder();
        world.pause(300);
    } else {
        world.pause(300);
        world.hinder();
    }
    victims
}

/// Who writes next is ready, as far as the faults let it be.
fn successor(world: &World, old: Node) -> (Node, Option<Node>) {
    let number = match world.corner.next {
        Next::TheSame => return (old, None),
        Next::OurRestart => 1,
        Next::AnotherNode => 2,
    };
    let isids = old.device.isids();
    let recorded = isids.into_iter().map(|isid| (initiator(1), isid)).collect();
    let lives_on = number == 2 && world.chance.coin();
    let old = if lives_on {
        Some(old)
    } else {
        old.host.kill();
        world.pause(50);
        None
    };
    let node = world.node(number);
    node.device.startup_fence(recorded);
    (node, old)
}

/// The claim and the fence of a start; faults are ended on the way.
fn take_charge(world: &World, node: &Node, number: u64) {
    let op = Op::Write {
        at: CLAIM,
        data: world.pool.copy_now(&stamp(1, number)),
        want: Durability::Cache,
    };
    let (device, rt) = (node.device.clone(), node.host.rt());
    let done = world.world.spawn_handle(async move {
        let _ = device.opened(Instant::FAR).await;
        if number > 1 {
            device.submit(op, IoCtx::metadata()).await.expect("claim");
        }
        loop {
            let fence = device.submit(Op::Fence, IoCtx::metadata()).await;
            if fence.is_ok() {
                return;
            }
            rt.sleep(ms(100)).await;
        }
    });
    let begun = world.world.now();
    let heal_at = begun + ms(world.chance.below(HEALED.as_millis() as u64));
    let reopen_at = begun + ms(world.chance.below(2 * HEALED.as_millis() as u64));
    let (mut is_helped, mut is_open) = (false, false);
    world.until("the start-up fence", || {
        let now = world.world.now();
        if !is_helped && now >= heal_at {
            world.help();
            is_helped = true;
        }
        if !is_open && now >= reopen_at {
            world.mend();
            is_open = true;
        }
        done.try_take()
    });
    node.guard();
}

fn play(seed: u64, pool: &Pool) {
    let world = World::new(seed, pool, false);
    let node = world.node(1);
    begin(&world, &node);
    let first = world.write(&node, (0, SECTORS), 1, Instant::FAR);
    world
        .until("the first write", || first.try_take())
        .expect("written");

    // The cut is to meet the next write, not one that was given up before.
    world.until("nothing to be under way", || {
        (node.device.snapshot().tainted_ranges == 0).then_some(())
    });

    let victims = be_cut(&world, &node);
    let (node, old) = successor(&world, node);
    match world.corner.next {
        Next::TheSame => {}
        Next::OurRestart => take_charge(&world, &node, 1),
        Next::AnotherNode => take_charge(&world, &node, 2),
    }
    let place = match world.corner.overlap {
        Overlap::Full => VICTIM,
        Overlap::Partial => (VICTIM.0 + 2, VICTIM.1),
        Overlap::None => (VICTIM.0 + VICTIM.1, 4),
    };
    if world.corner.next == Next::TheSame {
        // Writes of one caller that overlap follow each other.
        for victim in &victims {
            let _ = world.until("the first answers", || victim.try_take());
        }
    }
    let newer = world.write(&node, place, 3, Instant::FAR);
    if world.chance.coin() {
        world.pause(100);
        world.check(&node, "before anything healed");
    }
    world.pause(HEALED.as_millis() as u64 / 2);
    if world.chance.coin() {
        world.mend();
        world.pause(1000);
    }
    world.help();
    // With the path still cut: where it is the only way into its portal group, no fence can be.
    world.pause(HEALED.as_millis() as u64);
    world.check(&node, "before the path is back");
    world.mend();
    let newer = world.until("the newer write", || newer.try_take());
    assert!(newer.is_ok(), "{newer:?} {:?}", world.corner);
    world.world.run_for(HEALED);
    finish(&world, &node, old);
}

/// All is healed: nothing is left that waits or may still land.
fn finish(world: &World, node: &Node, old: Option<Node>) {
    let last = world.write(node, (0, SECTORS), 9, Instant::FAR);
    let last = world.until("the last write", || last.try_take());
    assert!(last.is_ok(), "{last:?} {:?}", world.corner);
    drop(old);
    world.world.run_for(ms(500));
    world.check(node, "at the end");
}

/// The first start of all: the claim, and a fence that has nothing to find.
fn begin(world: &World, node: &Node) {
    world.open(node);
    let op = Op::Write {
        at: CLAIM,
        data: world.pool.copy_now(&stamp(1, 1)),
        want: Durability::Cache,
    };
    let claim = node.device.submit(op, IoCtx::metadata());
    world.world.block_on(claim).expect("claim");
    let fence = node.device.submit(Op::Fence, IoCtx::metadata());
    world.world.block_on(fence).expect("the first fence");
    node.guard();
}

/// Our own stalls, and nothing else: no path is blamed, no second attempt is made.
fn stall(seed: u64, pool: &Pool) {
    let world = World::new(seed, pool, true);
    let node = world.node(1);
    begin(&world, &node);
    world.world.run_for(ms(50));
    for turn in 0..6 {
        let write = world.write(&node, (turn, 4), turn, Instant::FAR);
        world.world.run_ready();
        world.pause(1);
        world.world.stall(ms(11 + world.chance.below(3000)));
        world
            .until("the write", || write.try_take())
            .expect("written");
        world.pause(100);
    }
    let snapshot = node.device.snapshot();
    for path in snapshot.groups.iter().flat_map(|group| &group.paths) {
        assert_eq!(path.counters.failures, 0, "{:?}", path.last_error);
        assert_eq!(path.counters.hedges, 0, "no second attempt");
    }
}

#[test]
fn no_ghost_write_in_any_corner() {
    let pool = Pool::new(64 << 20);
    for_each_seed(RUNS, |seed| {
        if seed % STALLS_EVERY == 0 {
            stall(seed, &pool);
        } else {
            play(seed, &pool);
        }
    });
}
