//! A device in memory: sparse, with a volatile cache model left to `FaultyDevice`.
//!
//! Every write is durable at once; latencies are virtual. For tests of layers and for benches
//! without a medium.

use crate::buf::{Pool, PAGE_BYTES};
use crate::{
    completion, BlockDevice, Completion, Done, Event, Geometry, IoCtx, IoError, IoResult, IoVec,
    Kind, Op, Refusal, Rt, Sector, Seq, SECTOR_BYTES,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// How long operations take. Zero: they finish inside `submit`.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemTiming {
    /// A read.
    pub read: Duration,
    /// A write.
    pub write: Duration,
    /// A flush.
    pub flush: Duration,
}

/// See the module. Cloning shares the content.
#[derive(Clone)]
pub struct MemDevice {
    shared: Rc<Shared>,
}

struct Shared {
    geometry: Geometry,
    pages: RefCell<BTreeMap<u64, Box<[u8]>>>,
    pool: Pool,
    timing: MemTiming,
    rt: Rt,
    seq: Cell<u64>,
}

impl MemDevice {
    /// A device of `geometry`, full of zeros.
    pub fn new(rt: Rt, pool: Pool, geometry: Geometry, timing: MemTiming) -> MemDevice {
        let shared = Shared {
            geometry,
            pages: RefCell::default(),
            pool,
            timing,
            rt,
            seq: Cell::new(0),
        };
        MemDevice {
            shared: Rc::new(shared),
        }
    }

    /// Copies bytes out, at any offset.
    pub fn peek(&self, offset: u64, to: &mut [u8]) {
        self.shared
            .walk(offset, to.len(), |page, within, range| match page {
                Some(page) => to[range].copy_from_slice(&page[within]),
                None => to[range].fill(0),
            });
    }

    /// Changes bytes behind everybody's back: bit rot.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        self.shared.store(offset, bytes);
    }
}

impl Shared {
    fn walk(
        &self,
        offset: u64,
        bytes: usize,
        mut visit: impl FnMut(Option<&[u8]>, Range<usize>, Range<usize>),
    ) {
        let pages = self.pages.borrow();
        let mut done = 0;
        while done < bytes {
            let at = offset + done as u64;
            let within = (at % PAGE_BYTES as u64) as usize;
            let take = (PAGE_BYTES - within).min(bytes - done);
            let page = pages.get(&(at / PAGE_BYTES as u64)).map(|p| &p[..]);
            visit(page, within..within + take, done..done + take);
            done += take;
        }
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        let mut pages = self.pages.borrow_mut();
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % PAGE_BYTES as u64) as usize;
            let take = (PAGE_BYTES - within).min(bytes.len() - done);
            let page = pages
                .entry(at / PAGE_BYTES as u64)
                .or_insert_with(|| vec![0; PAGE_BYTES].into_boxed_slice());
            page[within..within + take].copy_from_slice(&bytes[done..done + take]);
            done += take;
        }
    }

    fn read(&self, at: Sector, sectors: u32) -> IoVec {
        let bytes = sectors as usize * SECTOR_BYTES as usize;
        let mut out = IoVec::new();
        let mut offset = at.bytes();
        for mut buf in self.pool.alloc_list_now(bytes) {
            let len = buf.len();
            self.walk(offset, len, |page, within, range| match page {
                Some(page) => buf[range].copy_from_slice(&page[within]),
                None => buf[range].fill(0),
            });
            offset += len as u64;
            out.push(buf.freeze());
        }
        out
    }

    fn apply(&self, op: &Op) -> IoResult {
        let seq = self.seq.replace(self.seq.get() + 1);
        let refuse = || Err(IoError::not_applied(Kind::Refused(Refusal::Range)));
        match op {
            Op::Read { at, sectors } => {
                if !self.geometry.accepts(*at, u64::from(*sectors)) {
                    return refuse();
                }
                Ok(Done::Read(self.read(*at, *sectors), Seq(seq)))
            }
            Op::Write { at, data, .. } => {
                if data.len() as u64 % SECTOR_BYTES != 0
                    || !self.geometry.accepts(*at, data.len() as u64 / SECTOR_BYTES)
                {
                    return refuse();
                }
                let mut offset = at.bytes();
                for segment in data.segments() {
                    self.store(offset, segment);
                    offset += segment.len() as u64;
                }
                Ok(Done::Written)
            }
            Op::Flush => Ok(Done::Flushed),
            Op::Discard { at, sectors } | Op::WriteZeroes { at, sectors } => {
                if !self.geometry.accepts(*at, *sectors) {
                    return refuse();
                }
                let zeros = IoVec::zeros((*sectors * SECTOR_BYTES) as usize);
                let mut offset = at.bytes();
                for segment in zeros.segments() {
                    self.store(offset, segment);
                    offset += segment.len() as u64;
                }
                Ok(Done::Discarded)
            }
            Op::Fence => Ok(Done::Fenced),
        }
    }
}

impl BlockDevice for MemDevice {
    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    fn submit(&self, op: Op, _ctx: IoCtx) -> Completion {
        let timing = &self.shared.timing;
        let time = match op {
            Op::Read { .. } => timing.read,
            Op::Flush => timing.flush,
            Op::Fence => Duration::ZERO,
            Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. } => timing.write,
        };
        if time.is_zero() {
            return Completion::ready(self.shared.apply(&op));
        }
        let (promise, completion) = completion::pair();
        let shared = self.shared.clone();
        self.shared.rt.spawn(async move {
            shared.rt.sleep(time).await;
            promise.complete(shared.apply(&op));
        });
        completion
    }

    fn tainted(&self, _range: Range<Sector>) -> bool {
        false
    }

    fn poll_event(&self, _cx: &mut Context<'_>) -> Poll<Event> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::VirtualRt;

    #[test]
    fn reads_what_was_written() {
        let world = VirtualRt::new(1);
        let pool = Pool::new(1 << 20);
        let timing = MemTiming {
            write: Duration::from_millis(1),
            ..MemTiming::default()
        };
        let device = MemDevice::new(world.rt(), pool.clone(), Geometry::plain(4096), timing);
        let data = pool.copy_now(&[5; 8192]);
        let op = Op::Write {
            at: Sector(3),
            data: data.clone(),
            want: Default::default(),
        };
        world
            .block_on(device.submit(op, IoCtx::foreground()))
            .expect("written");
        let op = Op::Read {
            at: Sector(3),
            sectors: 16,
        };
        let read = world
            .block_on(device.submit(op, IoCtx::foreground()))
            .expect("read");
        assert_eq!(read.into_data(), data);
    }

    #[test]
    fn refuses_what_lies_outside() {
        let world = VirtualRt::new(1);
        let device = MemDevice::new(
            world.rt(),
            Pool::new(1 << 20),
            Geometry::plain(8),
            MemTiming::default(),
        );
        let op = Op::Read {
            at: Sector(4),
            sectors: 8,
        };
        let error = world
            .block_on(device.submit(op, IoCtx::foreground()))
            .expect_err("outside");
        assert_eq!(error.kind, Kind::Refused(Refusal::Range));
    }
}
