//! A device whose latencies are recorded.
//!
//! Sits between a leg's device and the array. No task: results pass through a table of what is
//! under way.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use blockdev::completion::pair;
use blockdev::{
    Admission, BlockDevice, Completion, Event, Geometry, Instant, IoCtx, IoResult, Joiner, Op,
    Promise, Rt, Sector,
};

use crate::histogram::Histogram;

/// Operations that have a histogram, as the metrics name them.
const OPERATIONS: [&str; 3] = ["read", "write", "flush"];

struct Running {
    promise: Promise,
    begun: Instant,
    operation: usize,
}

/// See the module.
pub struct Metered {
    me: Weak<Metered>,
    rt: Rt,
    inner: Rc<dyn BlockDevice>,
    running: RefCell<BTreeMap<u64, Running>>,
    next: Cell<u64>,
    histograms: RefCell<[Histogram; 3]>,
}

impl Metered {
    /// Records what `inner` takes.
    pub fn new(rt: Rt, inner: Rc<dyn BlockDevice>) -> Rc<Metered> {
        Rc::new_cyclic(|me| Metered {
            me: me.clone(),
            rt,
            inner,
            running: RefCell::default(),
            next: Cell::new(0),
            histograms: RefCell::default(),
        })
    }

    /// Latencies since the start, by operation.
    pub fn histograms(&self) -> impl Iterator<Item = (&'static str, Histogram)> {
        OPERATIONS.into_iter().zip(*self.histograms.borrow())
    }
}

impl Joiner for Metered {
    fn joined(&self, token: u64, result: IoResult) {
        let Some(running) = self.running.borrow_mut().remove(&token) else {
            return;
        };
        let took = self.rt.now() - running.begun;
        self.histograms.borrow_mut()[running.operation].record(took);
        running.promise.complete(result);
    }
}

impl BlockDevice for Metered {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn submit(&self, op: Op, ctx: IoCtx) -> Completion {
        let operation = match op {
            Op::Read { .. } => 0,
            Op::Write { .. } => 1,
            Op::Flush => 2,
            Op::Discard { .. } | Op::WriteZeroes { .. } | Op::Fence => {
                return self.inner.submit(op, ctx)
            }
        };
        let (promise, completion) = pair();
        let token = self.next.replace(self.next.get().wrapping_add(1));
        let running = Running {
            promise,
            begun: self.rt.now(),
            operation,
        };
        self.running.borrow_mut().insert(token, running);
        self.inner.submit(op, ctx).join(self.me.clone(), token);
        completion
    }

    fn tainted(&self, range: Range<Sector>) -> bool {
        self.inner.tainted(range)
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        self.inner.poll_event(cx)
    }

    fn set_admission(&self, gate: Weak<dyn Admission>) {
        self.inner.set_admission(gate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
    use blockdev::Pool;
    use std::time::Duration;

    #[test]
    fn each_operation_is_recorded_with_its_time() {
        let world = VirtualRt::new(1);
        let timing = MemTiming {
            read: Duration::from_millis(3),
            ..MemTiming::default()
        };
        let (rt, pool) = (world.rt(), Pool::new(1 << 20));
        let memory = MemDevice::new(rt.clone(), pool, Geometry::plain(64), timing);
        let device = Metered::new(rt, Rc::new(memory));
        let read = Op::Read {
            at: Sector(0),
            sectors: 8,
        };
        world
            .block_on(device.submit(read, IoCtx::foreground()))
            .unwrap();
        world
            .block_on(device.submit(Op::Flush, IoCtx::foreground()))
            .unwrap();
        let counts: Vec<_> = device.histograms().map(|(op, h)| (op, h.count())).collect();
        assert_eq!(counts, [("read", 1), ("write", 0), ("flush", 1)]);
        let (_, reads) = device.histograms().next().unwrap();
        assert!(reads.quantile_us(0.5).unwrap() >= 3000);
        assert!(device.running.borrow().is_empty());
    }
}
