//! Reads that are checked against their sums, from whichever leg has the right bytes.

use crate::layout::{sector, Page, Ptr, UNIT_BYTES, UNIT_SECTORS};
use blockdev::rt::pass_turn;
use blockdev::{
    Buf, Completion, Done, IoCtx, IoError, IoResult, IoVec, Kind, LegIndex, Mirror, Op, Pool,
    Sector, Seq,
};
use chunk_api::crc::crc32;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

/// Units of one read at most.
pub(crate) const READ_UNITS_MAX: usize = 256;
/// Units asked for at once when many are wanted.
const WINDOW_UNITS: usize = 4096;
/// Reads under way on each leg while every leg is verified.
const VERIFY_READS_IN_FLIGHT: usize = 8;
/// Units under way on each leg meanwhile: 2 MiB, so that what a client asks for does not queue behind more.
const VERIFY_UNITS_IN_FLIGHT: usize = 2 * READ_UNITS_MAX;

/// Units kept to be healed after a start at most: a scrub finds the others.
const WRONG_MAX: usize = 1024;

/// A granule that was asked for.
#[derive(Default)]
pub(crate) struct Fetched {
    /// The bytes that match the pointer; `None`: no leg has them.
    pub(crate) good: Option<Buf>,
    /// Legs with other bytes or none, and when they were read.
    pub(crate) bad: Vec<(LegIndex, Seq)>,
    /// A leg did not answer (a medium error is an answer): the bytes may exist all the same.
    pub(crate) unreadable: bool,
}

/// One read, asked of several legs.
type LegReads = Vec<(LegIndex, Completion)>;

/// The mirror, read by pointers.
#[derive(Clone)]
pub(crate) struct Medium {
    pub(crate) mirror: Rc<dyn Mirror>,
    pub(crate) pool: Pool,
    /// What a start has found wrong on a leg.
    pub(crate) wrong: Rc<RefCell<Vec<(Ptr, Fetched)>>>,
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

/// Neighbours together, in pieces that one read takes.
fn runs(ptrs: &[Ptr]) -> impl Iterator<Item = &[Ptr]> {
    ptrs.chunk_by(|a, b| b.unit == a.unit + 1)
        .flat_map(|run| run.chunks(READ_UNITS_MAX))
}

/// Where a run begins, and its sectors.
fn extent(run: &[Ptr]) -> (Sector, u32) {
    (sector(run[0].unit), run.len() as u32 * UNIT_SECTORS as u32)
}

impl Medium {
    pub(crate) fn new(mirror: Rc<dyn Mirror>, pool: Pool) -> Medium {
        Medium {
            mirror,
            pool,
            wrong: Rc::default(),
        }
    }

    fn matches(&self, data: &[u8], ptr: Ptr) -> bool {
        blockdev::mutation::off("store.checksum") || crc32(data) == ptr.crc
    }

    /// Reads what the pointers name, in their order; neighbours together.
    pub(crate) async fn fetch(&self, ptrs: &[Ptr], ctx: IoCtx) -> Vec<Fetched> {
        let mut out = Vec::with_capacity(ptrs.len());
        for window in ptrs.chunks(WINDOW_UNITS) {
            let mut reads = Vec::new();
            for run in runs(window) {
                let (at, sectors) = extent(run);
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
        let mut out = Fetched::default();
        for leg in self.legs() {
            if let Some(read) = self.read_leg(leg, &[ptr], ctx) {
                self.judge(leg, ptr, read.await, &mut out);
            }
        }
        self.ask_outside(ptr, ctx, &mut out).await;
        out
    }

    /// Where no leg in sync has the bytes, one that is there but out may have them: the sum proves
    /// them, wherever they lie.
    async fn ask_outside(&self, ptr: Ptr, ctx: IoCtx, out: &mut Fetched) {
        for leg in self.legs().filter(|&leg| !self.mirror.in_sync(leg)) {
            if out.good.is_some() {
                return;
            }
            let (at, sectors) = extent(&[ptr]);
            let answer = self.mirror.read_leg(leg, at, sectors, ctx).await;
            if let Ok(Done::Read(data, _)) = answer {
                let whole = data.len() == UNIT_BYTES;
                let buf = whole.then(|| granule(&data, 0, &self.pool));
                out.good = buf.filter(|buf| self.matches(buf, ptr));
            }
        }
    }

    /// Reads what the pointers name on every leg, neighbours together, all legs beside each other and past the
    /// caches. Returns the granules that some leg has wrong.
    pub(crate) async fn verify_each_leg(&self, ptrs: &[Ptr], ctx: IoCtx) -> Vec<(Ptr, Fetched)> {
        let mut wrong = Vec::new();
        let mut waiting = runs(ptrs).peekable();
        let mut under_way: VecDeque<(&[Ptr], LegReads)> = VecDeque::new();
        let mut units = 0;
        loop {
            while let Some(run) = waiting.next_if(|run| {
                under_way.len() < VERIFY_READS_IN_FLIGHT
                    && units + run.len() <= VERIFY_UNITS_IN_FLIGHT
            }) {
                let reads = self.legs();
                let reads = reads.filter_map(|leg| Some((leg, self.read_leg(leg, run, ctx)?)));
                units += run.len();
                under_way.push_back((run, reads.collect()));
            }
            let Some((run, reads)) = under_way.pop_front() else {
                return wrong;
            };
            units -= run.len();
            self.verify_run(run, reads, ctx, &mut wrong).await;
        }
    }

    async fn verify_run(
        &self,
        run: &[Ptr],
        reads: LegReads,
        ctx: IoCtx,
        wrong: &mut Vec<(Ptr, Fetched)>,
    ) {
        let mut found: Vec<Fetched> = run.iter().map(|_| Fetched::default()).collect();
        for (leg, read) in reads {
            match read.await {
                Ok(Done::Read(data, seq)) if data.len() == run.len() * UNIT_BYTES => {
                    for (i, (&ptr, out)) in run.iter().zip(&mut found).enumerate() {
                        let part = data.slice(i * UNIT_BYTES..(i + 1) * UNIT_BYTES);
                        self.judge(leg, ptr, Ok(Done::Read(part, seq)), out);
                    }
                }
                // Which of them it was is told by each alone.
                _ if run.len() > 1 => {
                    for (&ptr, out) in run.iter().zip(&mut found) {
                        if let Some(read) = self.read_leg(leg, &[ptr], ctx) {
                            self.judge(leg, ptr, read.await, out);
                        }
                    }
                }
                alone => self.judge(leg, run[0], alone, &mut found[0]),
            }
            // Sums of a MiB take a while: whoever was woken meanwhile goes first.
            pass_turn().await;
        }
        for (&ptr, mut out) in run.iter().zip(found) {
            if !out.bad.is_empty() {
                self.ask_outside(ptr, ctx, &mut out).await;
                wrong.push((ptr, out));
            }
        }
    }

    /// Adjacent units as one leg has them, `None` for those that its medium does not give, and when
    /// they were read.
    pub(crate) async fn read_units(
        &self,
        leg: LegIndex,
        units: Range<u64>,
        ctx: IoCtx,
    ) -> Result<(Vec<Option<Buf>>, Seq), IoError> {
        let count = (units.end - units.start) as usize;
        let read = |from: u64, count: usize| {
            let sectors = count as u32 * UNIT_SECTORS as u32;
            self.mirror.read_leg(leg, sector(from), sectors, ctx)
        };
        match read(units.start, count).await {
            Ok(Done::Read(data, seq)) if data.len() == count * UNIT_BYTES => {
                let units = (0..count).map(|i| Some(granule(&data, i, &self.pool)));
                return Ok((units.collect(), seq));
            }
            Err(IoError {
                kind: Kind::Medium { .. },
                ..
            })
            | Ok(_) => {}
            Err(error) => return Err(error),
        }
        let mut found = Vec::with_capacity(count);
        let mut since: Option<Seq> = None;
        for unit in units {
            found.push(match read(unit, 1).await {
                Ok(Done::Read(data, seq)) if data.len() == UNIT_BYTES => {
                    since = Some(since.unwrap_or(seq));
                    Some(granule(&data, 0, &self.pool))
                }
                _ => None,
            });
        }
        Ok((found, since.unwrap_or(Seq(0))))
    }

    pub(crate) fn legs(&self) -> impl Iterator<Item = LegIndex> {
        (0..self.mirror.legs()).map(LegIndex)
    }

    /// Asks a leg for adjacent units; `None`: its content does not count.
    fn read_leg(&self, leg: LegIndex, run: &[Ptr], ctx: IoCtx) -> Option<Completion> {
        let (at, sectors) = extent(run);
        let counts = self.mirror.in_sync(leg);
        counts.then(|| self.mirror.read_leg(leg, at, sectors, ctx))
    }

    /// Enters what a leg answered for one unit.
    fn judge(&self, leg: LegIndex, ptr: Ptr, answer: IoResult, out: &mut Fetched) {
        match answer {
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

    /// Reads pages; `Err` names the first pointer that no leg can satisfy.
    pub(crate) async fn fetch_pages(&self, ptrs: &[Ptr], ctx: IoCtx) -> Result<Vec<Page>, Ptr> {
        let fetched = self.fetch(ptrs, ctx).await;
        let mut pages = Vec::with_capacity(ptrs.len());
        for (&ptr, fetched) in ptrs.iter().zip(fetched) {
            let page = fetched.good.as_ref().and_then(|buf| Page::from_bytes(buf));
            pages.push(page.ok_or(ptr)?);
            self.note_wrong(ptr, fetched);
        }
        Ok(pages)
    }

    /// To be healed once the volume may be written.
    pub(crate) fn note_wrong(&self, ptr: Ptr, fetched: Fetched) {
        let mut wrong = self.wrong.borrow_mut();
        if !fetched.bad.is_empty() && wrong.len() < WRONG_MAX {
            wrong.push((ptr, fetched));
        }
    }

    /// Whether an unanswered write may land in `units` units from `unit`.
    pub(crate) fn tainted(&self, unit: u64, units: u64) -> bool {
        self.mirror.tainted(sector(unit)..sector(unit + units))
    }
}
