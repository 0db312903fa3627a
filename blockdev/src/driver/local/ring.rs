//! Pieces through io_uring.
//!
//! What is started during one turn of the event loop goes to the kernel in one system call: a task
//! of the shard collects it. The same task is woken by epoll through the ring's own descriptor.
//!
//! Memory: while anything is queued or under way, the ring holds a reference to itself, so that
//! neither the device's drop nor the end of the runtime frees pages that the kernel may write to.
//! It goes with the last answer; a ring whose runtime ended first is leaked on purpose.

use super::threads::Threads;
use super::work::{write_flags, Piece, Token, Work};
use super::Owner;
use crate::Rt;
use io_uring::{cqueue, opcode, squeue, types, IoUring};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

/// Requests in the kernel at a time; more wait in line. The completion queue is twice as long, so
/// it cannot overflow.
const IN_KERNEL_MAX: u32 = 256;

pub(super) struct Ring {
    watch: AsyncFd<Watched>,
    ring: RefCell<IoUring>,
    file: Arc<File>,
    slots: RefCell<Slots>,
    waiting: RefCell<VecDeque<(Token, Piece)>>,
    /// Set while anything is waiting or in the kernel.
    itself: RefCell<Option<Rc<Ring>>>,
    waker: RefCell<Option<Waker>>,
    owner: Weak<dyn Owner>,
    /// For what this kernel's io_uring cannot do.
    threads: Threads,
    in_reap: Cell<bool>,
}

/// The ring's descriptor; closed by the `IoUring` beside it, which is dropped after.
struct Watched(RawFd);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

#[derive(Default)]
struct Slots {
    pieces: Vec<Option<InKernel>>,
    free: Vec<usize>,
    used: usize,
}

struct InKernel {
    token: Token,
    piece: Piece,
    /// Read by the kernel at submission; boxed, for the slot may move before that.
    vectors: Box<[libc::iovec]>,
}

impl Ring {
    /// A ring for `file`, whose task runs on `rt`.
    ///
    /// # Errors
    /// If the kernel or a policy refuses one.
    pub(super) fn start(rt: &Rt, file: Arc<File>, owner: Weak<dyn Owner>) -> io::Result<Rc<Ring>> {
        // One thread owns the ring, and completions need not interrupt it: it enters the kernel
        // soon anyway. Kernels before 6.0 do not know these flags.
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(IN_KERNEL_MAX)
            .or_else(|e| match e.raw_os_error() {
                Some(libc::EINVAL) => IoUring::new(IN_KERNEL_MAX),
                _ => Err(e),
            })?;
        let watched = Watched(ring.as_raw_fd());
        // SAFETY: `Ring` drops `watch` before `ring`, which owns the descriptor.
        let watch = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE)? };
        let threads = Threads::start(rt, file.clone(), owner.clone())?;
        let ring = Rc::new(Ring {
            watch,
            ring: RefCell::new(ring),
            file,
            slots: RefCell::default(),
            waiting: RefCell::default(),
            itself: RefCell::default(),
            waker: RefCell::default(),
            owner,
            threads,
            in_reap: Cell::new(false),
        });
        let weak = Rc::downgrade(&ring);
        rt.spawn(poll_fn(move |cx| match weak.upgrade() {
            Some(ring) => ring.turn(cx),
            None => Poll::Ready(()),
        }));
        Ok(ring)
    }

    /// Queues a piece; it is sent when the shard's task runs next.
    pub(super) fn begin(self: &Rc<Self>, token: Token, piece: Piece) {
        if matches!(piece.work, Work::BlockDiscard(_)) {
            self.threads.begin(token, piece);
            return;
        }
        self.waiting.borrow_mut().push_back((token, piece));
        self.itself.borrow_mut().get_or_insert_with(|| self.clone());
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Takes what the kernel has answered so far.
    pub(super) fn reap(&self) {
        self.threads.reap();
        // Those who are told may ask again; the outer call goes on with what came meanwhile.
        if self.in_reap.replace(true) {
            return;
        }
        loop {
            let mut answers: smallvec::SmallVec<[(u64, i32); 16]> = smallvec::SmallVec::new();
            answers.extend(
                self.ring
                    .borrow_mut()
                    .completion()
                    .map(|entry: cqueue::Entry| (entry.user_data(), entry.result())),
            );
            if answers.is_empty() {
                break;
            }
            for (slot, result) in answers {
                self.answered(slot as usize, result);
            }
        }
        self.in_reap.set(false);
        if self.slots.borrow().used == 0 && self.waiting.borrow().is_empty() {
            // The device, or the caller's reference, keeps the ring while this returns.
            self.itself.borrow_mut().take();
        }
    }

    fn answered(&self, slot: usize, result: i32) {
        let InKernel {
            token, mut piece, ..
        } = self.slots.borrow_mut().take(slot);
        let result = if result < 0 {
            Err(io::Error::from_raw_os_error(-result))
        } else {
            piece.advance(result as usize)
        };
        match result {
            Ok(true) => self.tell(token, piece, Ok(())),
            // The rest of a short transfer, or what a signal interrupted, goes first.
            Ok(false) => self.waiting.borrow_mut().push_front((token, piece)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                self.waiting.borrow_mut().push_front((token, piece));
            }
            Err(e) => self.tell(token, piece, Err(e)),
        }
    }

    fn tell(&self, token: Token, piece: Piece, result: io::Result<()>) {
        if let Some(owner) = self.owner.upgrade() {
            owner.finished(token, piece, result);
        }
    }

    fn turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.watch.poll_read_ready(cx) {
                // Answers that come after this are a new edge.
                Poll::Ready(Ok(mut ready)) => ready.clear_ready(),
                // The reactor is going down.
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        drop(waker);
        // Some requests are answered while they are submitted; whoever is told may ask for more.
        loop {
            self.reap();
            let sent = self.send();
            if sent == 0 {
                break;
            }
        }
        if self.is_stuck() {
            // The kernel was short of memory: again in the next turn of the loop.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Whether requests wait although nothing is in the kernel that would bring this task back.
    fn is_stuck(&self) -> bool {
        let has_room = self.slots.borrow().used < IN_KERNEL_MAX as usize;
        (has_room && !self.waiting.borrow().is_empty())
            || !self.ring.borrow_mut().submission().is_empty()
    }

    /// Gives the kernel what is waiting, as far as it may have it; the number of requests taken.
    fn send(&self) -> usize {
        let mut ring = self.ring.borrow_mut();
        let mut slots = self.slots.borrow_mut();
        let mut waiting = self.waiting.borrow_mut();
        {
            let mut queue = ring.submission();
            while !queue.is_full() && slots.used < IN_KERNEL_MAX as usize {
                let Some((token, piece)) = waiting.pop_front() else {
                    break;
                };
                let entry = slots.put(token, piece, types::Fd(self.file.as_raw_fd()));
                // SAFETY: the piece and its vectors stay in their slot until the answer came,
                // and the ring keeps itself and the file until then.
                unsafe { queue.push(&entry) }.expect("the queue was not full");
            }
            if queue.is_empty() {
                return 0;
            }
        }
        match ring.submit() {
            Ok(sent) => sent,
            Err(e) => match e.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => 0,
                _ => panic!("the kernel refuses a ring that it has set up: {e}"),
            },
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        assert!(
            self.slots.borrow().used == 0,
            "a ring is dropped under the kernel's hands"
        );
        // Its task sees that it is gone and ends.
        if let Some(waker) = self.waker.get_mut().take() {
            waker.wake();
        }
    }
}

impl Slots {
    fn put(&mut self, token: Token, mut piece: Piece, fd: types::Fd) -> squeue::Entry {
        let slot = self.free.pop().unwrap_or(self.pieces.len());
        let vectors = piece.vectors();
        let (position, mode) = (piece.position(), piece.mode());
        let one = (vectors.len() == 1).then(|| vectors[0]);
        let vectors: Box<[libc::iovec]> = match one {
            Some(_) => Box::default(),
            None => vectors.into_boxed_slice(),
        };
        let count = vectors.len() as u32;
        let entry = match (&piece.work, one) {
            (Work::Read(_), Some(v)) => opcode::Read::new(fd, v.iov_base.cast(), v.iov_len as u32)
                .offset(position)
                .build(),
            (Work::Read(_), None) => opcode::Readv::new(fd, vectors.as_ptr(), count)
                .offset(position)
                .build(),
            (Work::Write { fua, .. }, Some(v)) => {
                opcode::Write::new(fd, v.iov_base.cast(), v.iov_len as u32)
                    .offset(position)
                    .rw_flags(write_flags(*fua))
                    .build()
            }
            (Work::Write { fua, .. }, None) => opcode::Writev::new(fd, vectors.as_ptr(), count)
                .offset(position)
                .rw_flags(write_flags(*fua))
                .build(),
            (Work::Sync, _) => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            (Work::PunchHole(bytes) | Work::ZeroRange(bytes), _) => {
                opcode::Fallocate::new(fd, *bytes)
                    .offset(position)
                    .mode(mode)
                    .build()
            }
            (Work::BlockDiscard(_), _) => unreachable!("goes to the threads"),
        };
        let here = Some(InKernel {
            token,
            piece,
            vectors,
        });
        if slot == self.pieces.len() {
            self.pieces.push(here);
        } else {
            self.pieces[slot] = here;
        }
        self.used += 1;
        entry.user_data(slot as u64)
    }

    fn take(&mut self, slot: usize) -> InKernel {
        let taken = self.pieces[slot]
            .take()
            .expect("each request is answered once");
        debug_assert!(taken.vectors.len() != 1, "one vector goes without a list");
        self.free.push(slot);
        self.used -= 1;
        taken
    }
}
