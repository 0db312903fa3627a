//! Reads that are checked against their sums, from whichever leg has the right bytes.

use crate::layout::{sector, Page, Ptr, UNIT_BYTES, UNIT_SECTORS};
use blockdev::{Buf, Done, IoCtx, IoError, IoVec, Kind, LegIndex, Mirror, Op, Pool, Seq};
use chunk_api::crc::crc32;
use std::rc::Rc;

/// Units of one read at most.
const READ_UNITS_MAX: usize = 256;
/// Units asked for at once when many are wanted.
const WINDOW_UNITS: usize = 4096;

/// A granule that was asked for.
pub(crate) struct Fetched {
    /// The bytes that match the pointer; `None`: no leg has them.
    pub(crate) good: Option<Buf>,
    /// Legs with other bytes or none, and when they were read.
    pub(crate) bad: Vec<(LegIndex, Seq)>,
    /// A leg did not answer (a medium error is an answer): the bytes may exist all the same.
    pub(crate) unreadable: bool,
}

/// The mirror, read by pointers.
#[derive(Clone)]
pub(crate) struct Medium {
    pub(crate) mirror: Rc<dyn Mirror>,
    pub(crate) pool: Pool,
}

/// Unit `index` of `data` as one slice of one page.
pub(crate) fn granule(data: &IoVec, index: usize, pool: &Pool) -> Buf {
    let part = data.slice(index * UNIT_BYTES..(index + 1) * UNIT_BYTES);
    match part.bufs() {
        [one] => one.clone(),
        _ => {
            let mut buf = pool.alloc_now(UNIT_BYTES);
            part.copy_to(&mut buf);
            buf.freeze()
        }
    }
}

impl Medium {
    fn matches(&self, data: &[u8], ptr: Ptr) -> bool {
        blockdev::mutation::off("store.checksum") || crc32(data) == ptr.crc
    }

    /// Reads what the pointers name, in their order; neighbours together.
    pub(crate) async fn fetch(&self, ptrs: &[Ptr], ctx: IoCtx) -> Vec<Fetched> {
        let mut out = Vec::with_capacity(ptrs.len());
        for window in ptrs.chunks(WINDOW_UNITS) {
            let mut reads = Vec::new();
            let follows = |a: &Ptr, b: &Ptr| b.unit == a.unit + 1;
            for run in window
                .chunk_by(follows)
                .flat_map(|run| run.chunks(READ_UNITS_MAX))
            {
                let at = sector(run[0].unit);
                let sectors = run.len() as u32 * UNIT_SECTORS as u32;
                reads.push((run, self.mirror.submit(Op::Read { at, sectors }, ctx)));
            }
            for (run, read) in reads {
                let data = match read.await {
                    Ok(Done::Read(data, _)) if data.len() == run.len() * UNIT_BYTES => Some(data),
                    _ => None,
                };
                for (i, &ptr) in run.iter().enumerate() {
                    let buf = data.as_ref().map(|data| granule(data, i, &self.pool));
                    match buf.filter(|buf| self.matches(buf, ptr)) {
                        Some(buf) => out.push(Fetched {
                            good: Some(buf),
                            bad: Vec::new(),
                            unreadable: false,
                        }),
                        None => out.push(self.fetch_each_leg(ptr, ctx).await),
                    }
                }
            }
        }
        out
    }

    /// Looks for the bytes on every leg.
    pub(crate) async fn fetch_each_leg(&self, ptr: Ptr, ctx: IoCtx) -> Fetched {
        let mut out = Fetched {
            good: None,
            bad: Vec::new(),
            unreadable: false,
        };
        for leg in (0..self.mirror.legs()).map(LegIndex) {
            if !self.mirror.in_sync(leg) {
                continue;
            }
            let sectors = UNIT_SECTORS as u32;
            match self
                .mirror
                .read_leg(leg, sector(ptr.unit), sectors, ctx)
                .await
            {
                Ok(Done::Read(data, seq)) if data.len() == UNIT_BYTES => {
                    let buf = granule(&data, 0, &self.pool);
                    match self.matches(&buf, ptr) {
                        true => out.good = Some(buf),
                        false => out.bad.push((leg, seq)),
                    }
                }
                Err(IoError {
                    kind: Kind::Medium { .. },
                    ..
                }) => out.bad.push((leg, Seq(0))),
                _ => {
                    out.unreadable = true;
                    out.bad.push((leg, Seq(0)));
                }
            }
        }
        out
    }

    /// Reads pages; `Err` names the first pointer that no leg can satisfy.
    pub(crate) async fn fetch_pages(&self, ptrs: &[Ptr], ctx: IoCtx) -> Result<Vec<Page>, Ptr> {
        let fetched = self.fetch(ptrs, ctx).await;
        let pages = ptrs.iter().zip(fetched).map(|(&ptr, fetched)| {
            fetched
                .good
                .and_then(|buf| Page::from_bytes(&buf))
                .ok_or(ptr)
        });
        pages.collect()
    }

    /// Whether an unanswered write may land in `units` units from `unit`.
    pub(crate) fn tainted(&self, unit: u64, units: u64) -> bool {
        self.mirror.tainted(sector(unit)..sector(unit + units))
    }
}
