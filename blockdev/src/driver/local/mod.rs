//! A local file or block device as a [`BlockDevice`].
//!
//! Requests go around the page cache (O_DIRECT) through io_uring, or through threads where it is
//! denied (sysctl, seccomp, memory lock); through the page cache where O_DIRECT is refused. Both
//! fall-backs are said once. Writes whose memory is not aligned as the device wants it are copied
//! once; all others, and all reads, are not copied.
//!
//! Durability: a write with [`Durability::Fua`] carries `RWF_DSYNC` (which the kernel turns into
//! FUA, or into a write and a flush), [`Op::Flush`] is fdatasync(2). [`Op::Discard`] makes a hole,
//! or is `BLKDISCARD`.
//!
//! A request that is not done at its deadline is answered [`Kind::Late`]; the kernel cannot take
//! it back, so a write among them leaves a taint until it is done, and [`Op::Fence`] waits for
//! that. Requests of an earlier run cannot be under way: see [`OpenError::InUse`], which their
//! claim would have caused.

mod open;
mod ring;
mod threads;
mod work;

pub use open::{LocalOptions, OpenError, Via};

#[cfg(test)]
mod tests;

use crate::completion::{self, Promise};
use crate::rt::{Lateness, Timed};
use crate::{
    BlockDevice, Buf, Completion, Done, Durability, Event, Geometry, Instant, IoCtx, IoError,
    IoResult, IoVec, Kind, Op, Pool, Refusal, Rt, Sector, Seq, SECTOR_BYTES,
};
use ring::Ring;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Once};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use threads::Threads;
use work::{Piece, Token, Work};

/// Slices in one request at most, `UIO_MAXIOV`.
const SLICES_MAX: usize = 1024;
/// Longest range of one fallocate or discard request, in bytes: beyond it the kernel would be
/// busy for long with something that cannot be interrupted.
const HOLE_BYTES_MAX: u64 = 1 << 30;

/// How long a claim is waited for. The kernel's own threads may hold a file a moment longer than
/// the process that was killed, or that closed it: io_uring's workers let go of a request only
/// after they have answered it.
const CLAIM_PATIENCE: Duration = Duration::from_millis(250);
const CLAIM_RETRY: Duration = Duration::from_millis(5);
/// How long the search for who has it may take.
const HOLDER_PATIENCE: Duration = Duration::from_secs(1);

/// Told when a piece is done.
trait Owner {
    fn finished(&self, token: Token, piece: Piece, result: io::Result<()>);
}

#[derive(Clone)]
enum Engine {
    Ring(Rc<Ring>),
    Threads(Rc<Threads>),
}

impl Engine {
    fn begin(&self, token: Token, piece: Piece) {
        match self {
            Engine::Ring(ring) => ring.begin(token, piece),
            Engine::Threads(threads) => threads.begin(token, piece),
        }
    }

    /// Takes what has been answered so far.
    fn reap(&self) {
        match self {
            Engine::Ring(ring) => ring.reap(),
            Engine::Threads(threads) => threads.reap(),
        }
    }
}

/// See the module.
pub struct LocalDevice {
    shared: Rc<Shared>,
}

struct Shared {
    rt: Rt,
    pool: Pool,
    /// `None` once closed.
    engine: RefCell<Option<Engine>>,
    file: RefCell<Option<Arc<File>>>,
    is_block: bool,
    align: usize,
    geometry: Cell<Geometry>,
    resized: Cell<Option<Geometry>>,
    reader: RefCell<Option<Waker>>,
    operations: RefCell<BTreeMap<u64, Operation>>,
    next: Cell<u64>,
    /// Fences among them.
    fences: Cell<usize>,
    /// fallocate does not work here: zeros are written.
    writes_zeroes: Cell<bool>,
    closing: RefCell<Option<Promise<Closed>>>,
    itself: Weak<Shared>,
}

struct Closed;

impl completion::Abandoned for Closed {
    fn abandoned() -> Closed {
        Closed
    }
}

/// An operation that is not over: unanswered, or answered late with requests in the kernel.
struct Operation {
    /// `None` once answered.
    promise: Option<Promise>,
    kind: OperationKind,
    /// What it writes or discards.
    range: Range<Sector>,
    left: u32,
    /// The first failed piece, and how.
    failed: Option<(u32, IoError)>,
}

enum OperationKind {
    /// The bytes of each piece.
    Read(Vec<Vec<Buf>>),
    Write,
    Flush,
    Discard,
    /// Made to read as zeros by fallocate; if that does not work, by writing.
    Zero,
    Fence,
}

impl OperationKind {
    fn changes(&self) -> bool {
        matches!(
            self,
            OperationKind::Write | OperationKind::Discard | OperationKind::Zero
        )
    }
}

impl LocalDevice {
    /// Opens and claims the device, for a shard that runs on tokio (see
    /// [`crate::driver::run_shard`]). Reads take their pages from `pool`.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::InUse`] only when the claim was not to be had for 250 ms.
    pub async fn open(
        rt: &Rt,
        pool: &Pool,
        options: &LocalOptions,
    ) -> Result<LocalDevice, OpenError> {
        let patience = rt.now() + CLAIM_PATIENCE;
        let opened = loop {
            match open::open(options) {
                Err(OpenError::InUse { .. }) if rt.now() < patience => {
                    rt.sleep(CLAIM_RETRY).await;
                }
                Err(OpenError::InUse { path, .. }) => {
                    let holder = holder_within(rt, path.clone()).await;
                    return Err(OpenError::InUse { path, holder });
                }
                other => break other?,
            }
        };
        let file = Arc::new(opened.file);
        let system = |what| {
            move |source| OpenError::System {
                path: options.path.clone(),
                what,
                source,
            }
        };
        let shared = Rc::new_cyclic(|itself| Shared {
            rt: rt.clone(),
            pool: pool.clone(),
            engine: RefCell::default(),
            file: RefCell::new(Some(file.clone())),
            is_block: opened.is_block,
            align: opened.align,
            geometry: Cell::new(opened.geometry),
            resized: Cell::new(None),
            reader: RefCell::default(),
            operations: RefCell::default(),
            next: Cell::new(0),
            fences: Cell::new(0),
            writes_zeroes: Cell::new(false),
            closing: RefCell::default(),
            itself: itself.clone(),
        });
        let owner: Rc<dyn Owner> = shared.clone();
        let owner = Rc::downgrade(&owner);
        let ring = match options.via {
            Via::Auto => ring_or_warning(rt, &file, &owner),
            Via::Threads => None,
        };
        let engine = match ring {
            Some(ring) => Engine::Ring(ring),
            None => {
                let threads = Threads::start(rt, file, owner);
                Engine::Threads(Rc::new(threads.map_err(system("make an eventfd"))?))
            }
        };
        *shared.engine.borrow_mut() = Some(engine);
        Ok(LocalDevice { shared })
    }

    /// Looks whether the size changed; if so, [`Event::Changed`] follows.
    ///
    /// # Errors
    /// The system's, if it does not tell the size.
    pub fn rescan(&self) -> io::Result<()> {
        let shared = &self.shared;
        let Some(file) = shared.file.borrow().clone() else {
            return Ok(());
        };
        let bytes = open::current_bytes(&file, shared.is_block)?;
        let before = shared.geometry.get();
        let block = u64::from(before.logical_block_bytes);
        let sectors = bytes / block * (block / SECTOR_BYTES);
        if sectors != before.sectors {
            shared.resized.set(Some(Geometry { sectors, ..before }));
            if let Some(waker) = shared.reader.borrow_mut().take() {
                waker.wake();
            }
        }
        Ok(())
    }

    /// Refuses new operations, waits for those under way (however long the disk takes), and gives
    /// up the claim.
    pub async fn close(self) {
        self.shared.file.borrow_mut().take();
        let is_idle = self.shared.operations.borrow().is_empty();
        if !is_idle {
            let (promise, closed) = completion::pair();
            *self.shared.closing.borrow_mut() = Some(promise);
            closed.await;
        }
        let engine = self.shared.engine.borrow_mut().take();
        drop(engine);
    }
}

/// Asks who holds `path`, on a thread of its own and not for long: an error message is not worth
/// a shard that stands still.
async fn holder_within(rt: &Rt, path: PathBuf) -> Option<String> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let asking = std::thread::Builder::new()
        .name("holder".into())
        .spawn(move || tell.send(open::holder(&path)));
    asking.ok()?;
    let told = rt.by(rt.now() + HOLDER_PATIENCE, told).await;
    told.ok()?.ok()?
}

fn ring_or_warning(rt: &Rt, file: &Arc<File>, owner: &Weak<dyn Owner>) -> Option<Rc<Ring>> {
    static WARNED: Once = Once::new();
    match Ring::start(rt, file.clone(), owner.clone()) {
        Ok(ring) => Some(ring),
        Err(error) => {
            WARNED.call_once(|| {
                tracing::warn!(
                    %error,
                    "io_uring is denied (see kernel.io_uring_disabled, seccomp, RLIMIT_MEMLOCK); \
                     disk requests go through threads"
                );
            });
            None
        }
    }
}

impl BlockDevice for LocalDevice {
    fn geometry(&self) -> Geometry {
        self.shared.geometry.get()
    }

    fn submit(&self, op: Op, ctx: IoCtx) -> Completion {
        self.shared.submit(op, ctx)
    }

    fn tainted(&self, range: Range<Sector>) -> bool {
        let operations = self.shared.operations.borrow();
        operations.values().any(|operation| {
            operation.promise.is_none()
                && operation.kind.changes()
                && operation.range.start < range.end
                && range.start < operation.range.end
        })
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(geometry) = self.shared.resized.take() {
            self.shared.geometry.set(geometry);
            return Poll::Ready(Event::Changed(geometry));
        }
        *self.shared.reader.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Shared {
    fn submit(&self, op: Op, ctx: IoCtx) -> Completion {
        if self.file.borrow().is_none() {
            return Completion::refused(Kind::Closed);
        }
        let (kind, range, pieces) = match self.plan(op) {
            Ok(plan) => plan,
            Err(refusal) => return Completion::refused(Kind::Refused(refusal)),
        };
        let id = self.next.replace(self.next.get() + 1);
        if pieces.is_empty() && !matches!(kind, OperationKind::Fence) {
            return Completion::ready(Ok(kind.done(id)));
        }
        let (promise, completion) = completion::pair();
        let operation = Operation {
            promise: Some(promise),
            kind,
            range,
            left: pieces.len() as u32,
            failed: None,
        };
        if matches!(operation.kind, OperationKind::Fence) {
            self.fences.set(self.fences.get() + 1);
        }
        self.operations.borrow_mut().insert(id, operation);
        if ctx.deadline != Instant::FAR {
            self.watch(id, ctx.deadline);
        }
        for (piece, index) in pieces.into_iter().zip(0..) {
            let token = Token {
                operation: id,
                piece: index,
            };
            self.begin(token, piece);
        }
        self.settle_fences();
        completion
    }

    fn begin(&self, token: Token, piece: Piece) {
        let engine = self.engine.borrow();
        let engine = engine
            .as_ref()
            .expect("an engine goes when nothing is under way");
        engine.begin(token, piece);
    }

    fn watch(&self, operation: u64, deadline: Instant) {
        let owner: Weak<dyn Timed> = self.itself.clone();
        self.rt.arm(deadline, owner, operation);
    }

    /// Cuts an operation into requests.
    fn plan(&self, op: Op) -> Result<(OperationKind, Range<Sector>, Vec<Piece>), Refusal> {
        let geometry = self.geometry.get();
        let check = |at: Sector, sectors: u64| {
            let inside = geometry.accepts(at, sectors);
            inside.then(|| at.span(sectors)).ok_or(Refusal::Range)
        };
        let longest = geometry.max_transfer_sectors as usize * SECTOR_BYTES as usize;
        let none = Sector(0)..Sector(0);
        Ok(match op {
            Op::Read { at, sectors } => {
                check(at, u64::from(sectors))?;
                let bytes = sectors as usize * SECTOR_BYTES as usize;
                let pieces = cut(at, bytes, longest, |range| {
                    Work::Read(self.pool.alloc_list_now(range.len()))
                });
                let parts = vec![Vec::new(); pieces.len()];
                (OperationKind::Read(parts), none, pieces)
            }
            Op::Write { at, data, want } => {
                if data.len() % SECTOR_BYTES as usize != 0 {
                    return Err(Refusal::Range);
                }
                let range = check(at, data.len() as u64 / SECTOR_BYTES)?;
                let pieces = self.cut_write(at, &data, want, longest);
                (OperationKind::Write, range, pieces)
            }
            Op::Flush => {
                let piece = Piece {
                    offset: 0,
                    done: 0,
                    work: Work::Sync,
                };
                (OperationKind::Flush, none, vec![piece])
            }
            Op::Discard { at, sectors } => {
                let range = check(at, sectors)?;
                if !geometry.discard {
                    return Err(Refusal::NotSupported);
                }
                let hole = if self.is_block {
                    Work::BlockDiscard
                } else {
                    Work::PunchHole
                };
                let pieces = cut_holes(at, sectors, hole);
                (OperationKind::Discard, range, pieces)
            }
            Op::WriteZeroes { at, sectors } => {
                let range = check(at, sectors)?;
                if self.writes_zeroes.get() {
                    let zeros = IoVec::zeros((sectors * SECTOR_BYTES) as usize);
                    let pieces = self.cut_write(at, &zeros, Durability::Cache, longest);
                    (OperationKind::Zero, range, pieces)
                } else {
                    let hole = if self.is_block {
                        Work::ZeroRange
                    } else {
                        Work::PunchHole
                    };
                    (OperationKind::Zero, range, cut_holes(at, sectors, hole))
                }
            }
            Op::Fence => (OperationKind::Fence, none, Vec::new()),
        })
    }

    fn cut_write(&self, at: Sector, data: &IoVec, want: Durability, longest: usize) -> Vec<Piece> {
        let fua = want == Durability::Fua;
        cut(at, data.len(), longest, |range| {
            let mut part = data.slice(range);
            if !self.suits(&part) {
                part = self.pool.copy_now(&part.to_vec());
            }
            Work::Write { data: part, fua }
        })
    }

    /// Whether the device takes memory that lies like this.
    fn suits(&self, data: &IoVec) -> bool {
        data.bufs().len() <= SLICES_MAX
            && data
                .bufs()
                .iter()
                .all(|b| b.page_offset() % self.align == 0 && b.len() % self.align == 0)
    }

    /// Answers every fence before which no write is under way any more.
    fn settle_fences(&self) {
        while self.fences.get() > 0 {
            let promise = {
                let mut operations = self.operations.borrow_mut();
                let oldest = operations
                    .iter()
                    .find(|(_, operation)| {
                        operation.kind.changes() || matches!(operation.kind, OperationKind::Fence)
                    })
                    .map(|(id, operation)| (*id, operation.kind.changes()));
                match oldest {
                    Some((id, false)) => {
                        self.fences.set(self.fences.get() - 1);
                        operations.remove(&id).and_then(|o| o.promise)
                    }
                    _ => return,
                }
            };
            if let Some(promise) = promise {
                promise.complete(Ok(Done::Fenced));
            }
        }
    }

    fn tell_if_idle(&self) {
        if self.operations.borrow().is_empty() {
            let closing = self.closing.borrow_mut().take();
            if let Some(closing) = closing {
                closing.complete(Closed);
            }
        }
    }

    /// Falls back to writing zeros when fallocate does not work here.
    fn write_zeroes_instead(&self, token: Token, piece: &Piece) {
        if !self.writes_zeroes.replace(true) {
            tracing::info!("fallocate is not supported here; zeros are written");
        }
        let bytes = match piece.work {
            Work::PunchHole(bytes) | Work::ZeroRange(bytes) => bytes,
            _ => unreachable!("only fallocate asks for this"),
        };
        let longest = self.geometry.get().max_transfer_sectors as usize * SECTOR_BYTES as usize;
        let zeros = IoVec::zeros(bytes as usize);
        let at = Sector::from_bytes(piece.offset);
        let pieces = self.cut_write(at, &zeros, Durability::Cache, longest);
        if let Some(operation) = self.operations.borrow_mut().get_mut(&token.operation) {
            // In place of the one that failed.
            operation.left += pieces.len() as u32 - 1;
        }
        for piece in pieces {
            self.begin(token, piece);
        }
    }
}

impl Owner for Shared {
    fn finished(&self, token: Token, piece: Piece, result: io::Result<()>) {
        let error = result.err().map(|e| piece.error(&e));
        let fallocates = matches!(piece.work, Work::PunchHole(_) | Work::ZeroRange(_));
        let (promise, result) = {
            let mut operations = self.operations.borrow_mut();
            let Some(operation) = operations.get_mut(&token.operation) else {
                unreachable!("an operation ends with its last piece");
            };
            if fallocates
                && matches!(operation.kind, OperationKind::Zero)
                && error
                    .as_ref()
                    .is_some_and(|e| e.kind == Kind::Refused(Refusal::NotSupported))
            {
                drop(operations);
                self.write_zeroes_instead(token, &piece);
                return;
            }
            operation.take(token, piece, error);
            if operation.left > 0 {
                return;
            }
            let operation = operations.remove(&token.operation).expect("just seen");
            operation.end(token.operation)
        };
        if let Some(promise) = promise {
            promise.complete(result);
        }
        self.settle_fences();
        self.tell_if_idle();
    }
}

impl Timed for Shared {
    /// The deadline of an operation.
    fn fire(&self, operation: u64, due: Instant) {
        if !self.operations.borrow().contains_key(&operation) {
            return;
        }
        let lateness = Lateness(self.rt.now() - due);
        // What has been answered is taken before anything is judged.
        let engine = self.engine.borrow().clone();
        if let Some(engine) = engine {
            engine.reap();
        }
        if lateness.is_own_stall() {
            self.watch(operation, self.rt.now() + lateness.0);
            return;
        }
        let late = {
            let mut operations = self.operations.borrow_mut();
            let Some(late) = operations.get_mut(&operation) else {
                return;
            };
            let applied = if late.kind.changes() {
                IoError::unknown(Kind::Late)
            } else {
                IoError::not_applied(Kind::Late)
            };
            let promise = late.promise.take();
            if matches!(late.kind, OperationKind::Fence) {
                operations.remove(&operation);
                self.fences.set(self.fences.get() - 1);
            }
            promise.map(|p| (p, applied))
        };
        if let Some((promise, error)) = late {
            promise.complete(Err(error));
        }
        self.tell_if_idle();
    }
}

impl Operation {
    fn take(&mut self, token: Token, piece: Piece, error: Option<IoError>) {
        self.left -= 1;
        if let Some(error) = error {
            // The first in the order of positions is told, whatever came first in time; but once
            // anything may have been applied, that stays so.
            let applied = match &self.failed {
                Some((_, before)) if before.applied == crate::Applied::Unknown => before.applied,
                _ => error.applied,
            };
            if self.failed.as_ref().is_none_or(|(i, _)| token.piece < *i) {
                self.failed = Some((token.piece, IoError { applied, ..error }));
            }
        } else if let (OperationKind::Read(parts), Work::Read(bufs)) = (&mut self.kind, piece.work)
        {
            parts[token.piece as usize] = bufs.into_iter().map(|b| b.freeze()).collect();
        }
    }

    fn end(self, id: u64) -> (Option<Promise>, IoResult) {
        let result = match self.failed {
            Some((_, error)) => Err(error),
            None => Ok(self.kind.done(id)),
        };
        (self.promise, result)
    }
}

impl OperationKind {
    fn done(self, id: u64) -> Done {
        match self {
            OperationKind::Read(parts) => {
                Done::Read(parts.into_iter().flatten().collect(), Seq(id))
            }
            OperationKind::Write => Done::Written,
            OperationKind::Flush => Done::Flushed,
            OperationKind::Discard | OperationKind::Zero => Done::Discarded,
            OperationKind::Fence => Done::Fenced,
        }
    }
}

/// Pieces of at most `longest` bytes.
fn cut(
    at: Sector,
    bytes: usize,
    longest: usize,
    mut work: impl FnMut(Range<usize>) -> Work,
) -> Vec<Piece> {
    (0..bytes)
        .step_by(longest)
        .map(|from| Piece {
            offset: at.bytes() + from as u64,
            done: 0,
            work: work(from..bytes.min(from + longest)),
        })
        .collect()
}

fn cut_holes(at: Sector, sectors: u64, hole: impl Fn(u64) -> Work) -> Vec<Piece> {
    let (begin, end) = (at.bytes(), at.bytes() + sectors * SECTOR_BYTES);
    let mut pieces = Vec::new();
    let mut offset = begin;
    while offset < end {
        let bytes = (end - offset).min(HOLE_BYTES_MAX);
        pieces.push(Piece {
            offset,
            done: 0,
            work: hole(bytes),
        });
        offset += bytes;
    }
    pieces
}
