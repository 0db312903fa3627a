//! A volume of one leg: a [`Mirror`] over any device.
//!
//! Every operation goes through here and is given to the device again when that answers
//! [`Kind::Again`]. Of a device with a volatile cache the writes that no flush has covered are kept
//! (the unflushed window, store rule R11): if it loses its cache they are written again, in their
//! order, after what is under way and before anything new, and no flush counts before that. The
//! window is as large as the store lets it grow between two flushes.

use crate::directory::IdMap;
use blockdev::completion::pair;
use blockdev::{
    Allocation, BlockDevice, Completion, Done, Event, Geometry, IoCtx, IoError, IoResult, IoVec,
    Joiner, Kind, LegIndex, Mirror, Op, Promise, Rt, Sector, Seq,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

/// Writes remembered, to tell whether one overlaps a later rewrite.
const WRITES_REMEMBERED: usize = 4096;
/// News kept for the layer above; past that the oldest is dropped.
const NEWS_MAX: usize = 64;

/// An operation that is not answered.
struct Pending {
    op: Op,
    ctx: IoCtx,
    promise: Promise,
    /// Of a flush: writes up to here, and losses before it, when it was given to the device.
    covers: u64,
    losses: u64,
}

/// See the module. It has no intent bitmap, so `predirty` and `recovered` have nothing to do.
pub struct SingleLeg {
    device: Rc<dyn BlockDevice>,
    rt: Rt,
    me: Weak<SingleLeg>,
    seq: Cell<u64>,
    pending: RefCell<IdMap<Pending>>,
    /// Answered changes that no flush has covered, by the order of their answers.
    window: RefCell<BTreeMap<u64, Op>>,
    writes_under_way: Cell<usize>,
    /// The cache was lost so often.
    losses: Cell<u64>,
    restoring: Cell<bool>,
    /// Changes and flushes that wait for the restoring.
    held: RefCell<VecDeque<u64>>,
    quiet: RefCell<Option<Waker>>,
    writes: RefCell<VecDeque<(u64, Range<Sector>)>>,
    /// Writes up to here are forgotten.
    forgotten: Cell<u64>,
    news: RefCell<(VecDeque<Event>, Option<Waker>)>,
    listener: RefCell<Option<Waker>>,
}

fn is_change(op: &Op) -> bool {
    matches!(
        op,
        Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. }
    )
}

impl SingleLeg {
    /// A mirror of one leg, which is always in sync. It becomes the one reader of the device's
    /// events.
    pub fn new(device: Rc<dyn BlockDevice>, rt: Rt) -> Rc<SingleLeg> {
        let leg = Rc::new_cyclic(|me| SingleLeg {
            device,
            rt,
            me: me.clone(),
            seq: Cell::new(0),
            pending: RefCell::default(),
            window: RefCell::default(),
            writes_under_way: Cell::new(0),
            losses: Cell::new(0),
            restoring: Cell::new(false),
            held: RefCell::default(),
            quiet: RefCell::default(),
            writes: RefCell::default(),
            forgotten: Cell::new(0),
            news: RefCell::default(),
            listener: RefCell::default(),
        });
        let me = Rc::downgrade(&leg);
        leg.rt.spawn(async move {
            poll_fn(|cx| match me.upgrade() {
                Some(leg) => {
                    *leg.listener.borrow_mut() = Some(cx.waker().clone());
                    leg.listen();
                    Poll::Pending
                }
                None => Poll::Ready(()),
            })
            .await
        });
        leg
    }

    fn tick(&self) -> u64 {
        self.seq.set(self.seq.get() + 1);
        self.seq.get()
    }

    fn remember(&self, seq: u64, range: Range<Sector>) {
        let mut writes = self.writes.borrow_mut();
        writes.push_back((seq, range));
        if writes.len() > WRITES_REMEMBERED {
            if let Some((seq, _)) = writes.pop_front() {
                self.forgotten.set(seq);
            }
        }
    }

    /// Takes what the device has to say.
    fn listen(&self) {
        let listener = self.listener.borrow().clone();
        let mut cx = Context::from_waker(listener.as_ref().unwrap_or(Waker::noop()));
        while let Poll::Ready(event) = self.device.poll_event(&mut cx) {
            if event == Event::CacheLost {
                self.cache_lost();
                continue;
            }
            let waker = {
                let mut news = self.news.borrow_mut();
                if news.0.len() == NEWS_MAX {
                    news.0.pop_front();
                }
                news.0.push_back(event);
                news.1.take()
            };
            waker.into_iter().for_each(Waker::wake);
        }
    }

    fn cache_lost(&self) {
        self.losses.set(self.losses.get() + 1);
        if self.restoring.replace(true) {
            return;
        }
        let Some(me) = self.me.upgrade() else { return };
        self.rt.spawn(async move { me.restore().await });
    }

    /// Writes the window again, after what is under way.
    async fn restore(&self) {
        let mut before = u64::MAX;
        while before != self.losses.get() {
            before = self.losses.get();
            poll_fn(|cx| match self.writes_under_way.get() {
                0 => Poll::Ready(()),
                _ => {
                    *self.quiet.borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                }
            })
            .await;
            let window: Vec<Op> = self.window.borrow().values().cloned().collect();
            for op in window {
                self.rewrite_lost(op).await;
            }
            self.listen();
        }
        self.restoring.set(false);
        let held = std::mem::take(&mut *self.held.borrow_mut());
        held.into_iter().for_each(|token| self.start(token));
    }

    /// One change of the window again. An error other than busy leaves it in the window: the
    /// caller's next flush will meet the same.
    async fn rewrite_lost(&self, op: Op) {
        while let Err(IoError {
            kind: Kind::Again { after },
            ..
        }) = self.device.submit(op.clone(), IoCtx::metadata()).await
        {
            self.rt.sleep(after).await;
        }
    }

    /// Gives a pending operation to the device, or holds it back.
    fn start(&self, token: u64) {
        let (op, ctx) = {
            let mut pending = self.pending.borrow_mut();
            let Some(pending) = pending.get_mut(&token) else {
                return;
            };
            let waits = is_change(&pending.op) || matches!(pending.op, Op::Flush);
            if self.restoring.get() && waits {
                self.held.borrow_mut().push_back(token);
                return;
            }
            pending.covers = self.seq.get();
            pending.losses = self.losses.get();
            (pending.op.clone(), pending.ctx)
        };
        if is_change(&op) {
            self.writes_under_way.set(self.writes_under_way.get() + 1);
        }
        self.device.submit(op, ctx).join(self.me.clone(), token);
    }

    fn again(&self, token: u64, after: std::time::Duration) {
        let (me, rt) = (self.me.clone(), self.rt.clone());
        self.rt.spawn(async move {
            rt.sleep(after).await;
            if let Some(me) = me.upgrade() {
                me.start(token);
            }
        });
    }
}

impl Joiner for SingleLeg {
    fn joined(&self, token: u64, result: IoResult) {
        let (is_flush, change, covers, losses) = {
            let pending = self.pending.borrow();
            let pending = pending.get(&token).expect("answered once");
            let change = is_change(&pending.op).then(|| pending.op.clone());
            let is_flush = matches!(pending.op, Op::Flush);
            (is_flush, change, pending.covers, pending.losses)
        };
        if let Some(op) = change {
            self.writes_under_way.set(self.writes_under_way.get() - 1);
            if result.is_ok() && self.device.geometry().write_cache {
                let answered = self.tick();
                self.window.borrow_mut().insert(answered, op);
            }
            let quiet = self.quiet.borrow_mut().take();
            quiet.into_iter().for_each(Waker::wake);
        }
        if is_flush {
            // A loss that the device has told of before this answer counts.
            self.listen();
            if result.is_ok() && self.losses.get() != losses {
                return self.start(token);
            }
        }
        if let Err(IoError {
            kind: Kind::Again { after },
            ..
        }) = result
        {
            return self.again(token, after);
        }
        if is_flush && result.is_ok() {
            let mut window = self.window.borrow_mut();
            *window = window.split_off(&(covers + 1));
        }
        let pending = self.pending.borrow_mut().remove(&token);
        let pending = pending.expect("answered once");
        pending.promise.complete(result.map(|done| match done {
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
        let token = self.tick();
        match &op {
            Op::Write { at, data, .. } => {
                let sectors = data.len() as u64 / blockdev::SECTOR_BYTES;
                self.remember(token, at.span(sectors));
            }
            Op::Discard { at, sectors } | Op::WriteZeroes { at, sectors } => {
                self.remember(token, at.span(*sectors));
            }
            Op::Read { .. } | Op::Flush | Op::Fence => {}
        }
        let (promise, completion) = pair();
        let pending = Pending {
            op,
            ctx,
            promise,
            covers: 0,
            losses: 0,
        };
        self.pending.borrow_mut().insert(token, pending);
        self.start(token);
        completion
    }

    fn tainted(&self, range: Range<Sector>) -> bool {
        self.device.tainted(range)
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut news = self.news.borrow_mut();
        match news.0.pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                news.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
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
        let mirror = SingleLeg::new(Rc::new(device), world.rt());
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

    /// A device with a volatile cache that answers flushes as `mpath` does after a loss.
    struct Forgetful {
        durable: RefCell<[u8; 8]>,
        cached: RefCell<Vec<(u64, u8)>>,
        untold: Cell<bool>,
        waker: RefCell<Option<Waker>>,
    }

    impl Forgetful {
        fn lose_cache(&self) {
            self.cached.borrow_mut().clear();
            self.untold.set(true);
            self.waker
                .borrow_mut()
                .take()
                .into_iter()
                .for_each(Waker::wake);
        }
    }

    impl BlockDevice for Forgetful {
        fn geometry(&self) -> Geometry {
            Geometry::plain(64)
        }

        fn submit(&self, op: Op, _ctx: IoCtx) -> Completion {
            let again = Kind::Again {
                after: std::time::Duration::from_millis(1),
            };
            match op {
                Op::Write { at, data, .. } => {
                    self.cached.borrow_mut().push((at.0 / 8, data.to_vec()[0]));
                    Completion::ready(Ok(Done::Written))
                }
                Op::Flush if self.untold.get() => Completion::refused(again),
                Op::Flush => {
                    for (unit, byte) in self.cached.borrow_mut().drain(..) {
                        self.durable.borrow_mut()[unit as usize] = byte;
                    }
                    Completion::ready(Ok(Done::Flushed))
                }
                other => panic!("{other:?}"),
            }
        }

        fn tainted(&self, _range: Range<Sector>) -> bool {
            false
        }

        fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
            if self.untold.replace(false) {
                return Poll::Ready(Event::CacheLost);
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }
    }

    #[test]
    fn what_a_lost_cache_held_is_written_again_before_a_flush_counts() {
        let world = VirtualRt::new(1);
        let pool = Pool::new(1 << 20);
        let device = Rc::new(Forgetful {
            durable: RefCell::default(),
            cached: RefCell::default(),
            untold: Cell::new(false),
            waker: RefCell::default(),
        });
        let mirror = SingleLeg::new(device.clone(), world.rt());
        let ctx = IoCtx::foreground();
        let write = |unit: u64, byte: u8| {
            let op = Op::Write {
                at: Sector(unit * 8),
                data: pool.copy_now(&[byte; 4096]),
                want: Default::default(),
            };
            world.block_on(mirror.submit(op, ctx)).expect("written");
        };
        let flush = || {
            world
                .block_on(mirror.submit(Op::Flush, ctx))
                .expect("flushed")
        };
        write(0, 1);
        flush();
        write(1, 2);
        write(2, 3);
        write(1, 4);
        device.lose_cache();
        // Neither a flush nor a write waits for somebody to notice.
        write(2, 5);
        flush();
        assert_eq!(device.durable.borrow()[..3], [1, 4, 5]);
        device.lose_cache();
        world.run_ready();
        write(3, 6);
        device.lose_cache();
        flush();
        assert_eq!(device.durable.borrow()[..4], [1, 4, 5, 6]);
        assert!(mirror.window.borrow().is_empty());
    }
}
