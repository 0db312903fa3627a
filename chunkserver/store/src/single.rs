//! A volume of one leg: a [`Mirror`] over any device.

use crate::directory::IdMap;
use blockdev::completion::pair;
use blockdev::{
    Allocation, BlockDevice, Completion, Done, Event, Geometry, IoCtx, IoResult, IoVec, Joiner,
    Kind, LegIndex, Mirror, Op, Promise, Sector, Seq,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

/// Writes remembered, to tell whether one overlaps a later rewrite.
const WRITES_REMEMBERED: usize = 4096;

/// See the module. It has no intent bitmap, so `predirty` and `recovered` have nothing to do.
pub struct SingleLeg {
    device: Rc<dyn BlockDevice>,
    me: Weak<SingleLeg>,
    seq: Cell<u64>,
    /// Reads on their way: the device's order of events is replaced by ours.
    reads: RefCell<IdMap<Promise>>,
    writes: RefCell<VecDeque<(u64, Range<Sector>)>>,
    /// Writes up to here are forgotten.
    forgotten: Cell<u64>,
}

impl SingleLeg {
    /// A mirror of one leg, which is always in sync.
    pub fn new(device: Rc<dyn BlockDevice>) -> Rc<SingleLeg> {
        Rc::new_cyclic(|me| SingleLeg {
            device,
            me: me.clone(),
            seq: Cell::new(0),
            reads: RefCell::default(),
            writes: RefCell::default(),
            forgotten: Cell::new(0),
        })
    }

    fn tick(&self) -> u64 {
        self.seq.set(self.seq.get() + 1);
        self.seq.get()
    }

    fn remember(&self, range: Range<Sector>) {
        let seq = self.tick();
        let mut writes = self.writes.borrow_mut();
        writes.push_back((seq, range));
        if writes.len() > WRITES_REMEMBERED {
            if let Some((seq, _)) = writes.pop_front() {
                self.forgotten.set(seq);
            }
        }
    }
}

impl Joiner for SingleLeg {
    fn joined(&self, token: u64, result: IoResult) {
        let read = self.reads.borrow_mut().remove(&token);
        let promise = read.expect("a read is answered once");
        promise.complete(result.map(|done| match done {
            Done::Read(data, _) => Done::Read(data, Seq(token)),
            other => other,
        }));
    }
}

impl BlockDevice for SingleLeg {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, op: Op, ctx: IoCtx) -> Completion {
        match &op {
            Op::Read { .. } => {
                let seq = self.tick();
                let (promise, completion) = pair();
                self.reads.borrow_mut().insert(seq, promise);
                self.device.submit(op, ctx).join(self.me.clone(), seq);
                return completion;
            }
            Op::Write { at, data, .. } => {
                self.remember(at.span(data.len() as u64 / blockdev::SECTOR_BYTES));
            }
            Op::Discard { at, sectors } | Op::WriteZeroes { at, sectors } => {
                self.remember(at.span(*sectors));
            }
            Op::Flush | Op::Fence => {}
        }
        self.device.submit(op, ctx)
    }

    fn tainted(&self, range: Range<Sector>) -> bool {
        self.device.tainted(range)
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        self.device.poll_event(cx)
    }
}

impl Mirror for SingleLeg {
    fn legs(&self) -> u8 {
        1
    }

    fn in_sync(&self, leg: LegIndex) -> bool {
        leg.0 == 0
    }

    fn read_leg(&self, leg: LegIndex, at: Sector, sectors: u32, ctx: IoCtx) -> Completion {
        if leg.0 != 0 {
            return Completion::refused(Kind::Closed);
        }
        self.submit(Op::Read { at, sectors }, ctx)
    }

    fn rewrite(
        &self,
        leg: LegIndex,
        at: Sector,
        good: IoVec,
        since: Seq,
        ctx: IoCtx,
    ) -> Completion {
        if leg.0 != 0 {
            return Completion::refused(Kind::Closed);
        }
        let range = at.span(good.len() as u64 / blockdev::SECTOR_BYTES);
        let overlaps = |(seq, w): &(u64, Range<Sector>)| {
            *seq > since.0 && w.start < range.end && range.start < w.end
        };
        if since.0 < self.forgotten.get() || self.writes.borrow().iter().any(overlaps) {
            return Completion::ready(Ok(Done::Written));
        }
        let want = blockdev::Durability::Cache;
        self.submit(
            Op::Write {
                at,
                data: good,
                want,
            },
            ctx,
        )
    }

    fn predirty(&self, _range: Range<Sector>, _ctx: IoCtx) -> Completion {
        Completion::ready(Ok(Done::Written))
    }

    fn set_allocation(&self, _map: Weak<dyn Allocation>) {}

    fn recovered(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
    use blockdev::Pool;

    #[test]
    fn a_rewrite_never_undoes_a_later_write() {
        let world = VirtualRt::new(1);
        let pool = Pool::new(1 << 20);
        let device = MemDevice::new(
            world.rt(),
            pool.clone(),
            Geometry::plain(64),
            MemTiming::default(),
        );
        let mirror = SingleLeg::new(Rc::new(device));
        let ctx = IoCtx::foreground();
        let read = |mirror: &SingleLeg| {
            let op = mirror.read_leg(LegIndex(0), Sector(0), 8, ctx);
            match world.block_on(op) {
                Ok(Done::Read(data, seq)) => (data.to_vec()[0], seq),
                other => panic!("{other:?}"),
            }
        };
        let (_, before) = read(&mirror);
        let write = |byte| Op::Write {
            at: Sector(0),
            data: pool.copy_now(&[byte; 4096]),
            want: Default::default(),
        };
        world
            .block_on(mirror.submit(write(2), ctx))
            .expect("written");
        let old = pool.copy_now(&[1; 4096]);
        let heal = mirror.rewrite(LegIndex(0), Sector(0), old.clone(), before, ctx);
        world.block_on(heal).expect("skipped");
        let (byte, after) = read(&mirror);
        assert_eq!(byte, 2);
        world
            .block_on(mirror.rewrite(LegIndex(0), Sector(0), old, after, ctx))
            .expect("done");
        assert_eq!(read(&mirror).0, 1);
    }
}
