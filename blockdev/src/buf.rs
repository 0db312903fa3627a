//! Page-aligned payload memory: pool, unique buffers, frozen slices and scatter lists.
//!
//! A [`Pool`] hands out [`BufMut`]s: page-aligned runs of 4 KiB to 128 KiB with one owner, filled
//! once by a socket or a device. [`BufMut::freeze`] makes a [`Buf`]: shared, immutable, counted.
//! An [`IoVec`] lists slices of them; it is what operations carry. The memory returns to the pool
//! when the last slice is dropped, so whoever may still send or store the bytes keeps them alive.
//!
//! Limits: [`Pool::alloc`] waits while the pool's limit is reached, which is the back-pressure of
//! the whole node (sockets stop being read). [`Pool::alloc_now`] never waits and may exceed the
//! limit; it is for what must make progress so that pages come back (device reads on behalf of
//! admitted requests, metadata), each bounded by its own window.
//!
//! Counts are atomic, so frozen pages may cross to a helper thread (a pread/pwrite pool).

use smallvec::SmallVec;
use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io::IoSlice;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Poll, Waker};

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;
/// Largest contiguous run, in bytes; longer allocations are lists of runs.
pub const RUN_BYTES_MAX: usize = 128 << 10;

const ORDERS: usize = 6; // 4, 8, 16, 32, 64, 128 KiB
const SPAN_BYTES: usize = 1 << 20;
const _: () = assert!(PAGE_BYTES << (ORDERS - 1) == RUN_BYTES_MAX);
const _: () = assert!(SPAN_BYTES % RUN_BYTES_MAX == 0);

fn order_for(bytes: usize) -> usize {
    let pages = bytes.div_ceil(PAGE_BYTES).max(1);
    pages.next_power_of_two().trailing_zeros() as usize
}

/// Bounded source of page-aligned memory. Cloning shares it.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    limit_bytes: usize,
    state: Mutex<State>,
}

struct State {
    free: [Vec<Address>; ORDERS],
    spans: Vec<Address>,
    used_bytes: usize,
    waiting: VecDeque<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Address(NonNull<u8>);

// SAFETY: an `Address` is a number until a `Run` owns the memory behind it exclusively.
unsafe impl Send for Address {}

fn span_layout() -> Layout {
    Layout::from_size_align(SPAN_BYTES, SPAN_BYTES).expect("span layout is valid")
}

impl Pool {
    /// A pool that lets waiting allocations have `limit_bytes` in all. Memory is taken from the
    /// system span by span (1 MiB) as it is first needed.
    pub fn new(limit_bytes: usize) -> Pool {
        let state = State {
            free: Default::default(),
            spans: Vec::new(),
            used_bytes: 0,
            waiting: VecDeque::new(),
        };
        Pool {
            shared: Arc::new(Shared {
                limit_bytes,
                state: Mutex::new(state),
            }),
        }
    }

    /// Takes `bytes` (within the limit) from the system now, so that no page fault comes later.
    pub fn prefault(&self, bytes: usize) {
        let mut state = self.shared.lock();
        while state.spans.len() * SPAN_BYTES < bytes.min(self.shared.limit_bytes) {
            let base = state.grow();
            for page in 0..SPAN_BYTES / PAGE_BYTES {
                // SAFETY: inside the span just allocated, which nobody else has seen.
                unsafe { base.0.as_ptr().add(page * PAGE_BYTES).write_volatile(0) };
            }
        }
    }

    /// Its limit in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.shared.limit_bytes
    }

    /// Bytes handed out now.
    pub fn used_bytes(&self) -> usize {
        self.shared.lock().used_bytes
    }

    /// A run of at least `bytes` (1 to 128 KiB), if the limit admits it now.
    pub fn try_alloc(&self, bytes: usize) -> Option<BufMut> {
        let size = PAGE_BYTES << order_for(bytes);
        let mut state = self.shared.lock();
        // A pool smaller than one run must still serve it when idle, or nobody ever proceeds.
        if state.used_bytes + size > self.shared.limit_bytes && state.used_bytes > 0 {
            return None;
        }
        Some(self.take(&mut state, bytes))
    }

    /// A run of at least `bytes` (1 to 128 KiB); waits for the limit, first come first served.
    pub async fn alloc(&self, bytes: usize) -> BufMut {
        poll_fn(|cx| match self.try_alloc(bytes) {
            Some(buf) => Poll::Ready(buf),
            None => {
                self.shared.lock().waiting.push_back(cx.waker().clone());
                // Memory may have come back between the two locks.
                match self.try_alloc(bytes) {
                    Some(buf) => Poll::Ready(buf),
                    None => Poll::Pending,
                }
            }
        })
        .await
    }

    /// A run of at least `bytes` (1 to 128 KiB), beyond the limit if need be.
    pub fn alloc_now(&self, bytes: usize) -> BufMut {
        let mut state = self.shared.lock();
        self.take(&mut state, bytes)
    }

    /// Runs for `bytes` in all, each of at most 128 KiB, beyond the limit if need be.
    pub fn alloc_list_now(&self, bytes: usize) -> Vec<BufMut> {
        let mut list = Vec::with_capacity(bytes.div_ceil(RUN_BYTES_MAX));
        let mut left = bytes;
        while left > 0 {
            let take = left.min(RUN_BYTES_MAX);
            list.push(self.alloc_now(take));
            left -= take;
        }
        list
    }

    /// A frozen copy of `bytes` in pool pages, beyond the limit if need be.
    pub fn copy_now(&self, bytes: &[u8]) -> IoVec {
        let mut out = IoVec::new();
        for part in bytes.chunks(RUN_BYTES_MAX) {
            let mut buf = self.alloc_now(part.len());
            buf.copy_from_slice(part);
            out.push(buf.freeze());
        }
        out
    }

    fn take(&self, state: &mut State, bytes: usize) -> BufMut {
        assert!(
            (1..=RUN_BYTES_MAX).contains(&bytes),
            "a run of {bytes} bytes"
        );
        let order = order_for(bytes);
        let address = state.take(order);
        state.used_bytes += PAGE_BYTES << order;
        let home = Some(self.shared.clone());
        BufMut {
            run: Run {
                address,
                order,
                home,
            },
            start: 0,
            len: bytes,
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Pool({} of {} bytes)",
            self.used_bytes(),
            self.limit_bytes()
        )
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, order: usize) -> Address {
        if let Some(address) = self.free[order].pop() {
            return address;
        }
        if !(order..ORDERS).any(|o| !self.free[o].is_empty()) {
            self.merge();
        }
        let from = match (order..ORDERS).find(|&o| !self.free[o].is_empty()) {
            Some(from) => from,
            None => {
                self.grow();
                ORDERS - 1
            }
        };
        let address = self.free[from].pop().expect("just seen or grown");
        for smaller in (order..from).rev() {
            // SAFETY: the upper half of a free block of order `smaller + 1` that we own.
            let upper = unsafe { address.0.add(PAGE_BYTES << smaller) };
            self.free[smaller].push(Address(upper));
        }
        address
    }

    fn grow(&mut self) -> Address {
        // SAFETY: the layout has a non-zero size.
        let base = unsafe { alloc_zeroed(span_layout()) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(span_layout())
        };
        self.spans.push(Address(base));
        for run in (0..SPAN_BYTES / RUN_BYTES_MAX).rev() {
            // SAFETY: inside the span.
            self.free[ORDERS - 1].push(Address(unsafe { base.add(run * RUN_BYTES_MAX) }));
        }
        Address(base)
    }

    /// Joins free buddies. Done only when a larger block is wanted and none is free, so that the
    /// usual allocation is a pop and the usual release a push.
    fn merge(&mut self) {
        for order in 0..ORDERS - 1 {
            let size = PAGE_BYTES << order;
            let mut blocks = std::mem::take(&mut self.free[order]);
            blocks.sort_unstable();
            let mut at = 0;
            while at < blocks.len() {
                let here = blocks[at].0.as_ptr() as usize;
                let is_pair = here % (2 * size) == 0
                    && blocks
                        .get(at + 1)
                        .is_some_and(|n| n.0.as_ptr() as usize == here + size);
                self.free[if is_pair { order + 1 } else { order }].push(blocks[at]);
                at += if is_pair { 2 } else { 1 };
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for span in &self.spans {
            // SAFETY: allocated in `grow` with this layout; every run keeps its pool alive, so
            // none is left.
            unsafe { dealloc(span.0.as_ptr(), span_layout()) };
        }
    }
}

/// Owner of one block of memory.
struct Run {
    address: Address,
    order: usize,
    /// The pool it returns to; `None`: never freed (the shared zeros).
    home: Option<Arc<Shared>>,
}

// SAFETY: a run is plain memory; it is written only through the one `BufMut` that owns it and
// read through shared references afterwards.
unsafe impl Sync for Run {}

impl Run {
    fn bytes(&self) -> usize {
        PAGE_BYTES << self.order
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let waker = {
            let mut state = home.lock();
            state.free[self.order].push(self.address);
            state.used_bytes -= PAGE_BYTES << self.order;
            // Every waiter looks again: their sizes differ.
            std::mem::take(&mut state.waiting)
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

/// A buffer with one owner, to be filled and then frozen. Its first byte is page-aligned unless
/// [`BufMut::skip`] moved it.
pub struct BufMut {
    run: Run,
    start: usize,
    len: usize,
}

impl BufMut {
    /// Bytes the run could hold from its start.
    pub fn capacity(&self) -> usize {
        self.run.bytes()
    }

    /// Leaves a gap of `bytes` before the first byte, which is how an unaligned fragment comes to
    /// lie at its `offset % 4096`. The length stays.
    ///
    /// # Panics
    /// If gap and length exceed the run.
    pub fn skip(&mut self, bytes: usize) {
        assert!(
            self.start + bytes + self.len <= self.run.bytes(),
            "gap beyond the run"
        );
        self.start += bytes;
    }

    /// Cuts or extends the length to `bytes`.
    ///
    /// # Panics
    /// If it exceeds the run.
    pub fn set_len(&mut self, bytes: usize) {
        assert!(
            self.start + bytes <= self.run.bytes(),
            "length beyond the run"
        );
        self.len = bytes;
    }

    /// Freezes it: from now on shared and immutable.
    pub fn freeze(self) -> Buf {
        Buf {
            run: Arc::new(self.run),
            start: self.start as u32,
            len: self.len as u32,
        }
    }
}

impl Deref for BufMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside the run (checked by `skip`, `set_len`), initialised (spans are zeroed),
        // and this is its only owner.
        unsafe { std::slice::from_raw_parts(self.run.address.0.as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for BufMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe {
            std::slice::from_raw_parts_mut(self.run.address.0.as_ptr().add(self.start), self.len)
        }
    }
}

impl fmt::Debug for BufMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufMut({} bytes)", self.len)
    }
}

/// A frozen slice of a run: shared, immutable.
#[derive(Clone)]
pub struct Buf {
    run: Arc<Run>,
    start: u32,
    len: u32,
}

impl Buf {
    /// Up to 128 KiB of zeros, shared by all.
    pub fn zeros(bytes: usize) -> Buf {
        static ZEROS: OnceLock<Arc<Run>> = OnceLock::new();
        assert!(bytes <= RUN_BYTES_MAX, "{bytes} zeros in one buffer");
        let run = ZEROS.get_or_init(|| {
            // SAFETY: the layout has a non-zero size. Never freed: one for the process.
            let base = unsafe { alloc_zeroed(span_layout()) };
            let Some(base) = NonNull::new(base) else {
                handle_alloc_error(span_layout())
            };
            Arc::new(Run {
                address: Address(base),
                order: ORDERS - 1,
                home: None,
            })
        });
        Buf {
            run: run.clone(),
            start: 0,
            len: bytes as u32,
        }
    }

    /// A part of it, sharing the memory.
    ///
    /// # Panics
    /// If the range is outside.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Buf {
        let (start, end) = bounds(range, self.len());
        Buf {
            run: self.run.clone(),
            start: self.start + start as u32,
            len: (end - start) as u32,
        }
    }

    /// Position of the first byte in its page.
    pub fn page_offset(&self) -> usize {
        self.start as usize % PAGE_BYTES
    }

    /// Whether `next` goes on where this ends, in the same memory.
    fn precedes(&self, next: &Buf) -> bool {
        Arc::ptr_eq(&self.run, &next.run) && self.start + self.len == next.start
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside the run; frozen, so nobody writes.
        unsafe {
            std::slice::from_raw_parts(
                self.run.address.0.as_ptr().add(self.start as usize),
                self.len as usize,
            )
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes at page+{})", self.len, self.page_offset())
    }
}

fn bounds(range: impl RangeBounds<usize>, len: usize) -> (usize, usize) {
    let start = match range.start_bound() {
        Bound::Included(&at) => at,
        Bound::Excluded(&at) => at + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&at) => at + 1,
        Bound::Excluded(&at) => at,
        Bound::Unbounded => len,
    };
    assert!(
        start <= end && end <= len,
        "range {start}..{end} of {len} bytes"
    );
    (start, end)
}

/// Frozen slices, scattered in memory, contiguous on disk and on the wire.
#[derive(Clone, Default)]
pub struct IoVec {
    bufs: SmallVec<[Buf; 2]>,
    len: usize,
}

impl IoVec {
    /// An empty list.
    pub fn new() -> IoVec {
        IoVec::default()
    }

    /// `bytes` zeros, without memory of their own.
    pub fn zeros(bytes: usize) -> IoVec {
        let mut out = IoVec::new();
        let mut left = bytes;
        while left > 0 {
            let take = left.min(RUN_BYTES_MAX);
            out.push(Buf::zeros(take));
            left -= take;
        }
        out
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a slice; one that goes on where the last ends is merged with it.
    pub fn push(&mut self, buf: Buf) {
        if buf.is_empty() {
            return;
        }
        self.len += buf.len();
        match self.bufs.last_mut() {
            Some(last) if last.precedes(&buf) => last.len += buf.len,
            _ => self.bufs.push(buf),
        }
    }

    /// Appends another list.
    pub fn append(&mut self, other: &IoVec) {
        other.bufs.iter().for_each(|buf| self.push(buf.clone()));
    }

    /// The slices.
    pub fn bufs(&self) -> &[Buf] {
        &self.bufs
    }

    /// The bytes, slice by slice.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.bufs.iter().map(|buf| &buf[..])
    }

    /// The same for a vectored write.
    pub fn io_slices(&self) -> impl Iterator<Item = IoSlice<'_>> {
        self.segments().map(IoSlice::new)
    }

    /// A part of it, sharing the memory.
    ///
    /// # Panics
    /// If the range is outside.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> IoVec {
        let (start, end) = bounds(range, self.len);
        let mut out = IoVec::new();
        let mut at = 0;
        for buf in &self.bufs {
            let from = start.max(at);
            let to = end.min(at + buf.len());
            if from < to {
                out.push(buf.slice(from - at..to - at));
            }
            at += buf.len();
        }
        out
    }

    /// Copies everything into `to`, which has the same length.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy_to(&self, to: &mut [u8]) {
        assert_eq!(
            to.len(),
            self.len,
            "copy of {} bytes into {}",
            self.len,
            to.len()
        );
        let mut at = 0;
        for segment in self.segments() {
            to[at..at + segment.len()].copy_from_slice(segment);
            at += segment.len();
        }
    }

    /// A copy as a vector. For metadata and tests.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        self.copy_to(&mut out);
        out
    }

    /// Whether every slice begins on a page and all but the last are whole pages, as O_DIRECT
    /// wants it.
    pub fn is_page_aligned(&self) -> bool {
        let last = self.bufs.len().saturating_sub(1);
        self.bufs
            .iter()
            .enumerate()
            .all(|(i, buf)| buf.page_offset() == 0 && (i == last || buf.len() % PAGE_BYTES == 0))
    }

    /// Whether all bytes are zero.
    pub fn is_zero(&self) -> bool {
        self.segments().all(|segment| {
            let (head, words, tail) = {
                // SAFETY: every bit pattern is a valid u64.
                unsafe { segment.align_to::<u64>() }
            };
            head.iter().chain(tail).all(|&b| b == 0) && words.iter().all(|&w| w == 0)
        })
    }
}

impl From<Buf> for IoVec {
    fn from(buf: Buf) -> IoVec {
        let mut out = IoVec::new();
        out.push(buf);
        out
    }
}

impl FromIterator<Buf> for IoVec {
    fn from_iter<I: IntoIterator<Item = Buf>>(bufs: I) -> IoVec {
        let mut out = IoVec::new();
        bufs.into_iter().for_each(|buf| out.push(buf));
        out
    }
}

/// Equal bytes, however they are cut.
impl PartialEq for IoVec {
    fn eq(&self, other: &IoVec) -> bool {
        if self.len != other.len {
            return false;
        }
        let (mut left, mut right) = (self.segments(), other.segments());
        let (mut a, mut b): (&[u8], &[u8]) = (&[], &[]);
        let mut rest = self.len;
        while rest > 0 {
            if a.is_empty() {
                a = left.next().unwrap_or_default();
            }
            if b.is_empty() {
                b = right.next().unwrap_or_default();
            }
            let part = a.len().min(b.len());
            let ((x, a_rest), (y, b_rest)) = (a.split_at(part), b.split_at(part));
            if x != y {
                return false;
            }
            (a, b) = (a_rest, b_rest);
            rest -= part;
        }
        true
    }
}

impl fmt::Debug for IoVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoVec({} bytes in {})", self.len, self.bufs.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_are_page_aligned_and_return() {
        let pool = Pool::new(1 << 20);
        for bytes in [1, 4096, 4097, 65_536, 131_072] {
            let buf = pool.alloc_now(bytes);
            assert_eq!(buf.as_ptr() as usize % PAGE_BYTES, 0);
            assert_eq!(buf.len(), bytes);
        }
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn the_limit_holds_and_an_idle_pool_serves_anything() {
        let pool = Pool::new(64 << 10);
        let first = pool.try_alloc(128 << 10).expect("idle pool");
        assert!(pool.try_alloc(4096).is_none());
        drop(first);
        let small: Vec<_> = (0..16)
            .map(|_| pool.try_alloc(4096).expect("within"))
            .collect();
        assert!(pool.try_alloc(1).is_none());
        drop(small);
        assert!(pool.try_alloc(64 << 10).is_some(), "small runs merge again");
        assert_eq!(pool.shared.lock().spans.len(), 1);
    }

    #[test]
    fn waiters_get_memory_when_it_returns() {
        let pool = Pool::new(8192);
        let held = pool.alloc_now(8192);
        let rt = crate::sim::VirtualRt::new(1);
        let waiting = pool.clone();
        let got = rt.spawn_handle(async move { waiting.alloc(4096).await.len() });
        rt.run_ready();
        drop(held);
        assert_eq!(rt.block_on(got), 4096);
    }

    #[test]
    fn a_skipped_fragment_lies_at_its_offset() {
        let pool = Pool::new(1 << 20);
        let mut buf = pool.alloc_now(100);
        buf.skip(17);
        buf.fill(7);
        let buf = buf.freeze();
        assert_eq!((buf.page_offset(), buf.len(), buf[99]), (17, 100, 7));
    }

    #[test]
    fn neighbours_merge_into_one_slice() {
        let pool = Pool::new(1 << 20);
        let buf = pool.alloc_now(8192).freeze();
        let mut list = IoVec::from(buf.slice(..4096));
        list.push(buf.slice(4096..));
        assert_eq!(list.bufs().len(), 1);
    }

    proptest! {
        #[test]
        fn slices_of_lists_equal_slices_of_bytes(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
            a in 0usize..1000, b in 0usize..1000,
        ) {
            let pool = Pool::new(1 << 20);
            let flat = parts.concat();
            let mut list = IoVec::new();
            parts.iter().for_each(|p| list.append(&pool.copy_now(p)));
            let (a, b) = (a.min(b).min(flat.len()), a.max(b).min(flat.len()));
            prop_assert_eq!(list.slice(a..b).to_vec(), &flat[a..b]);
            prop_assert_eq!(list.is_zero(), flat.iter().all(|&x| x == 0));
        }

        #[test]
        fn no_two_live_runs_overlap(sizes in prop::collection::vec(1usize..=131_072, 1..60)) {
            let pool = Pool::new(64 << 20);
            let mut live: Vec<(usize, BufMut)> = Vec::new();
            for (i, size) in sizes.into_iter().enumerate() {
                let mut buf = pool.alloc_now(size);
                buf.fill(i as u8);
                live.push((i, buf));
                if i % 3 == 2 { live.remove(i / 3); }
            }
            for (i, buf) in &live {
                prop_assert!(buf.iter().all(|&b| b == *i as u8));
            }
        }
    }
}
