//! Both legs lose their paths at one instant: what is asked waits for the first that comes back.

mod common;

use blockdev::sim::Handle;
use blockdev::{BlockDevice, IoCtx, IoResult, Kind, Op, Sector};
use common::bench::Bench;
use raid::Array;
use std::rc::Rc;
use std::time::Duration;

/// What goes on when the legs go down.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// Nothing is under way; the next requests find both legs gone.
    Before,
    /// Requests are under way to both.
    Amid,
    /// The array was idle: superblocks and bitmap come first.
    Waking,
    /// One leg answers everything before it goes.
    OneAhead(usize),
    /// One leg has just begun to leave.
    Leaving(usize),
}

struct Outage {
    bench: Bench,
    array: Rc<Array>,
    asked: Vec<(u64, Handle<IoResult>)>,
}

const MOMENTS: [Moment; 7] = [
    Moment::Before,
    Moment::Amid,
    Moment::Waking,
    Moment::OneAhead(0),
    Moment::OneAhead(1),
    Moment::Leaving(0),
    Moment::Leaving(1),
];
/// Where nothing was written before, in a chunk whose bit is not set.
const NEW: u64 = 131_072 + 800;

impl Outage {
    fn new(seed: u64, moment: Moment) -> Outage {
        let bench = Bench::new(seed);
        let array = bench.running_with_roles();
        bench.write(&array, 0, 1).expect("written");
        bench.write(&array, 8, 1).expect("written");
        if moment == Moment::Waking {
            bench.run(20_000);
        }
        let mut outage = Outage {
            bench,
            array,
            asked: Vec::new(),
        };
        match moment {
            Moment::Before | Moment::Waking => outage.down([0, 1]),
            Moment::Amid => {
                outage.ask();
                outage.down([0, 1]);
            }
            Moment::OneAhead(first) => {
                outage.bench.legs[1 - first].latency_us.set(20_000);
                outage.ask();
                outage.bench.run(4);
                outage.bench.legs[1 - first].latency_us.set(1000);
                outage.down([first, 1 - first]);
            }
            Moment::Leaving(first) => {
                outage.bench.legs[first].go_down();
                outage.ask();
                outage.bench.run(5);
                outage.down([first, 1 - first]);
            }
        }
        outage.ask();
        outage
    }

    fn down(&self, order: [usize; 2]) {
        order.iter().for_each(|&leg| self.bench.legs[leg].go_down());
    }

    /// Writes, a read and a flush.
    fn ask(&mut self) {
        let more = self.asked.len() as u64 * 8;
        for at in [16 + more, NEW + more] {
            self.spawn(at, self.bench.write_op(at, 7));
        }
        let (at, sectors) = (Sector(8), 8);
        self.spawn(8, Op::Read { at, sectors });
        self.spawn(0, Op::Flush);
    }

    fn spawn(&mut self, at: u64, op: Op) {
        let asked = self.array.submit(op, IoCtx::foreground());
        let asked = self.bench.world.spawn_handle(asked);
        self.asked.push((at, asked));
    }

    /// Everything is answered well, and what was acknowledged is on both legs in the end.
    fn assert_kept(&self, text: &str) {
        for (at, asked) in &self.asked {
            match asked.try_take() {
                Some(Ok(_)) => {}
                other => panic!("{text}: {at}: {other:?}, {:?}", self.array.snapshot()),
            }
        }
        self.bench.legs.iter().for_each(|leg| leg.come_back());
        self.bench.run(60_000);
        self.assert_equal(text);
        for (at, _) in self.asked.iter().filter(|(at, _)| *at >= 16) {
            assert_eq!(self.bench.on_leg(0, *at), 7, "{text}: {at}");
        }
    }

    fn assert_equal(&self, text: &str) {
        let states = self.bench.states(&self.array);
        assert_eq!(states, ["in-sync", "in-sync"], "{text}");
        for (at, _) in self.asked.iter().chain(&[]) {
            let [a, b] = [0, 1].map(|leg| self.bench.on_leg(leg, *at));
            assert_eq!(a, b, "{text}: {at}");
        }
    }
}

#[test]
fn nothing_fails_when_legs_come_back_in_time() {
    for (seed, moment) in (1..).zip(MOMENTS) {
        for back in [&[0, 1][..], &[0], &[1]] {
            let outage = Outage::new(seed, moment);
            let text = format!("{moment:?}, back {back:?}");
            outage.bench.run(4000);
            back.iter()
                .for_each(|&leg| outage.bench.legs[leg].come_back());
            outage.bench.run(5000);
            outage.assert_kept(&text);
        }
    }
}

#[test]
fn errors_go_up_when_no_leg_comes_back_in_time() {
    for (seed, moment) in (1..).zip(MOMENTS) {
        for first in [0, 1] {
            let outage = Outage::new(seed, moment);
            let text = format!("{moment:?}, {first} first");
            outage.bench.run(70_000);
            let answers = outage
                .asked
                .iter()
                .map(|(at, asked)| (*at, asked.try_take()));
            let answers: Vec<_> = answers.collect();
            assert!(
                answers.iter().all(|(_, a)| a.is_some()),
                "{text}: {answers:?}"
            );
            let failed = |a: &Option<IoResult>| matches!(a, Some(Err(error)) if matches!(error.kind, Kind::Path(_)));
            assert!(
                answers.iter().any(|(_, a)| failed(a)),
                "{text}: {answers:?}"
            );
            outage.bench.legs[first].come_back();
            outage.bench.run(5000);
            outage.bench.write(&outage.array, 4000, 9).expect("goes on");
            for (at, answer) in &answers {
                let is_acked = *at >= 16 && matches!(answer, Some(Ok(_)));
                if is_acked {
                    assert_eq!(outage.bench.read(&outage.array, *at), Ok(7), "{text}: {at}");
                }
            }
            outage.bench.legs[1 - first].come_back();
            outage.bench.run(60_000);
            outage.assert_equal(&text);
        }
    }
}

#[test]
fn a_busy_leg_is_asked_again_and_stays() {
    let bench = Bench::new(3);
    let array = bench.running();
    bench.write(&array, 8, 1).expect("written");
    for leg in &bench.legs {
        leg.busy_for.set(Some(Duration::from_millis(20)));
    }
    bench.write(&array, 8, 2).expect("written after a while");
    for leg in &bench.legs {
        leg.busy_for.set(Some(Duration::from_millis(20)));
    }
    assert_eq!(bench.read(&array, 8), Ok(2));
    bench.legs[0].busy_for.set(Some(Duration::from_millis(20)));
    bench.legs[1].busy_for.set(None);
    bench.flush(&array);
    assert_eq!(bench.states(&array), ["in-sync", "in-sync"]);
    assert_eq!([bench.on_leg(0, 8), bench.on_leg(1, 8)], [2, 2]);
}

#[test]
fn a_read_that_one_leg_failed_waits_for_the_other_to_be_restored() {
    let bench = Bench::new(5);
    let array = bench.running_with_roles();
    bench.write(&array, 8, 3).expect("written");
    bench.legs[1].latency_us.set(50_000);
    bench.legs[1].power_cycle(true);
    bench.run(1);
    let (at, sectors) = (Sector(8), 8);
    let read = array.submit(Op::Read { at, sectors }, IoCtx::foreground());
    let read = bench.world.spawn_handle(read);
    bench.legs[0].go_down();
    bench.run(20);
    assert!(read.try_take().is_none(), "before the leg is whole");
    bench.run(2000);
    let answer = read.try_take().expect("answered").expect("read");
    assert_eq!(answer.into_data().to_vec()[0], 3);
}
