//! Two simulated legs, a witness and the array above them, driven from a test.

use super::{Shared, SimLeg, SimWitness};
use blockdev::path::Isid;
use blockdev::sim::VirtualRt;
use blockdev::{BlockDevice, Event, IoCtx, Kind, Mirror, Op, Pool, Sector};
use raid::assemble::{assemble, AssembleError, LegInput};
use raid::claim::Owner;
use raid::format::{create, CreateOptions};
use raid::probe::Member;
use raid::superblock::Superblock;
use raid::{Array, Options, Uuid};
use std::rc::Rc;
use std::time::Duration;

pub(crate) const LEG_SECTORS: u64 = 400_000;

pub(crate) struct Bench {
    pub(crate) world: VirtualRt,
    pub(crate) pool: Pool,
    pub(crate) legs: [Rc<SimLeg>; 2],
    pub(crate) witness: Rc<SimWitness>,
}

/// A node that claims, with its sessions.
pub(crate) fn owner(node: u8, isids: &[Isid]) -> Owner {
    Owner {
        node: Uuid([node; 16]),
        initiator_name: "iqn.2024-12.tp2.b3:data-chunk1:chunk1-initiator".into(),
        isids: isids.to_vec(),
    }
}

impl Bench {
    pub(crate) fn new(seed: u64) -> Bench {
        let world = VirtualRt::new(seed);
        let pool = Pool::new(64 << 20);
        let rt = world.rt();
        let leg = |n| SimLeg::new(&rt, &pool, LEG_SECTORS, seed * 2 + n);
        let legs = [leg(0), leg(1)];
        let witness = SimWitness::new(&rt);
        let bench = Bench {
            world,
            pool,
            legs,
            witness,
        };
        let devices: Vec<Rc<dyn BlockDevice>> = bench
            .legs
            .iter()
            .map(|leg| leg.clone() as Rc<dyn BlockDevice>)
            .collect();
        let pool = bench.pool.clone();
        bench.world.block_on(async move {
            let options = CreateOptions {
                name: "vol1".into(),
                equalise: false,
            };
            create(&rt, &pool, &devices, &options, |_, _| {})
                .await
                .expect("created");
        });
        bench
    }

    /// Has an array claim its legs, from now on.
    pub(crate) fn claim(&self, array: &Rc<Array>) {
        let array = array.clone();
        let claimed = self
            .world
            .block_on(async move { array.begin_claiming().await });
        claimed.expect("claimed");
    }

    pub(crate) fn input(&self, present: [bool; 2]) -> Vec<LegInput> {
        let name = |n: usize| format!("sto{}", n + 1);
        (0..2)
            .map(|n| LegInput {
                name: name(n),
                device: present[n].then(|| self.legs[n].clone() as Rc<dyn BlockDevice>),
            })
            .collect()
    }

    /// A device that is no leg yet.
    pub(crate) fn another(&self, seed: u64) -> Rc<SimLeg> {
        SimLeg::new(&self.world.rt(), &self.pool, LEG_SECTORS, seed)
    }

    /// Opens legs and spares by name.
    pub(crate) fn open_named(
        &self,
        legs: &[(&str, Option<Rc<SimLeg>>)],
    ) -> Result<Rc<Array>, AssembleError> {
        let input = |(name, leg): &(&str, Option<Rc<SimLeg>>)| LegInput {
            name: (*name).to_owned(),
            device: leg.clone().map(|leg| leg as Rc<dyn BlockDevice>),
        };
        let input = legs.iter().map(input).collect();
        let (rt, pool) = (self.world.rt(), self.pool.clone());
        let witness = Rc::new(Shared(self.witness.clone()));
        let options = Options::new("vol1");
        let assembled = async move { assemble(rt, pool, witness, options, input, false).await };
        self.world.block_on(assembled)
    }

    pub(crate) fn open(&self, present: [bool; 2]) -> Result<Rc<Array>, AssembleError> {
        self.open_with(present, Options::new("vol1"), false)
    }

    pub(crate) fn open_with(
        &self,
        present: [bool; 2],
        options: Options,
        alone: bool,
    ) -> Result<Rc<Array>, AssembleError> {
        let (rt, pool, input) = (self.world.rt(), self.pool.clone(), self.input(present));
        let witness = Rc::new(Shared(self.witness.clone()));
        self.world
            .block_on(async move { assemble(rt, pool, witness, options, input, alone).await })
    }

    pub(crate) fn running(&self) -> Rc<Array> {
        let array = self.open([true, true]).expect("assembled");
        array.recovered();
        array
    }

    /// Running, and telling its legs which is the only one.
    pub(crate) fn running_with_roles(&self) -> Rc<Array> {
        let legs = self.legs.clone();
        let mut options = Options::new("vol1");
        options.on_alone = Some(Rc::new(move |leg: blockdev::LegIndex, alone| {
            legs[usize::from(leg.0)].set_alone(alone);
        }));
        let array = self
            .open_with([true, true], options, false)
            .expect("assembled");
        array.recovered();
        array
    }

    pub(crate) fn write(&self, array: &Rc<Array>, at: u64, fill: u8) -> Result<(), Kind> {
        let op = self.write_op(at, fill);
        let done = array.submit(op, IoCtx::foreground());
        self.world
            .block_on(async move { done.await.map(|_| ()).map_err(|e| e.kind) })
    }

    pub(crate) fn write_op(&self, at: u64, fill: u8) -> Op {
        Op::Write {
            at: Sector(at),
            data: self.pool.copy_now(&[fill; 4096]),
            want: Default::default(),
        }
    }

    pub(crate) fn read(&self, array: &Rc<Array>, at: u64) -> Result<u8, Kind> {
        let op = Op::Read {
            at: Sector(at),
            sectors: 8,
        };
        let done = array.submit(op, IoCtx::foreground());
        self.world.block_on(async move {
            done.await
                .map(|d| d.into_data().to_vec()[0])
                .map_err(|e| e.kind)
        })
    }

    pub(crate) fn flush(&self, array: &Rc<Array>) {
        let done = array.submit(Op::Flush, IoCtx::foreground());
        self.world
            .block_on(async move { done.await.expect("flushed") });
    }

    pub(crate) fn on_leg(&self, leg: usize, at: u64) -> u8 {
        self.legs[leg].peek(self.data_offset() + at)[0]
    }

    pub(crate) fn data_offset(&self) -> u64 {
        self.superblock(0)
            .or_else(|| self.superblock(1))
            .expect("a member")
            .data_offset
    }

    pub(crate) fn superblock(&self, leg: usize) -> Option<Superblock> {
        Superblock::parse(&self.legs[leg].bytes(8, 8)).ok()
    }

    pub(crate) fn member(&self, leg: usize) -> Member {
        let device = self.legs[leg].clone();
        self.world
            .block_on(async move { Member::read(&*device).await.expect("member") })
    }

    pub(crate) fn run(&self, ms: u64) {
        self.world.run_for(Duration::from_millis(ms));
    }

    pub(crate) fn crash(&self, array: Rc<Array>) {
        self.world.kill();
        drop(array);
        self.legs.iter().for_each(|leg| leg.node_died());
    }

    pub(crate) fn stop(&self, array: Rc<Array>) {
        self.world.block_on(async move { array.stop().await });
    }

    pub(crate) fn states(&self, array: &Rc<Array>) -> Vec<&'static str> {
        array.snapshot().legs.iter().map(|leg| leg.state).collect()
    }
}

pub(crate) fn events(array: &Rc<Array>) -> Vec<String> {
    let mut seen = Vec::new();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while let std::task::Poll::Ready(Event::State(change)) = array.poll_event(&mut cx) {
        seen.push(format!("{} {}", change.event, change.object));
    }
    seen
}

pub(crate) fn told(array: &Rc<Array>, event: &str) -> bool {
    events(array).iter().any(|e| e.starts_with(event))
}
