//! Pieces through blocking system calls on a few threads: where io_uring is denied, and for what
//! it cannot do.
//!
//! Pieces own their memory and every one under way holds the file, so a device that is dropped leaves
//! threads that finish what was begun and then end.

use super::work::{Piece, Token};
use super::Owner;
use crate::Rt;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

/// Threads of one device at most: as many requests are in the kernel at a time.
const THREADS_MAX: usize = 16;

pub(super) struct Threads {
    shared: Arc<Shared>,
    finisher: Rc<Finisher>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// Rung when `finished` ceases to be empty; never read, each ring is an edge for epoll.
    bell: EventFd,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Token, Piece)>,
    finished: Vec<(Token, Piece, io::Result<()>)>,
    threads: usize,
    idle: usize,
    /// Given up, and with it the claim, once closed and idle.
    file: Option<Arc<File>>,
    closed: bool,
}

struct Finisher {
    shared: Arc<Shared>,
    watch: AsyncFd<Bell>,
    owner: Weak<dyn Owner>,
    waker: RefCell<Option<Waker>>,
}

struct Bell(Arc<Shared>);

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.bell.as_fd().as_raw_fd()
    }
}

impl Threads {
    /// Threads for `file`, made when they are needed; results are told by a task on `rt`.
    ///
    /// # Errors
    /// If the system refuses an event descriptor.
    pub(super) fn start(rt: &Rt, file: Arc<File>, owner: Weak<dyn Owner>) -> io::Result<Threads> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                file: Some(file),
                ..State::default()
            }),
            work: Condvar::new(),
            bell: EventFd::from_value_and_flags(0, flags)?,
        });
        let bell = Bell(shared.clone());
        // SAFETY: the descriptor belongs to `shared`, which the registered value holds.
        let watch = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE)? };
        let finisher = Rc::new(Finisher {
            shared: shared.clone(),
            watch,
            owner,
            waker: RefCell::default(),
        });
        let weak = Rc::downgrade(&finisher);
        rt.spawn(poll_fn(move |cx| {
            let Some(finisher) = weak.upgrade() else {
                return Poll::Ready(());
            };
            loop {
                match finisher.watch.poll_read_ready(cx) {
                    Poll::Ready(Ok(mut ready)) => ready.clear_ready(),
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            *finisher.waker.borrow_mut() = Some(cx.waker().clone());
            finisher.reap();
            Poll::Pending
        }));
        Ok(Threads { shared, finisher })
    }

    /// Hands a piece to a thread.
    pub(super) fn begin(&self, token: Token, piece: Piece) {
        let mut state = self.shared.lock();
        state.waiting.push_back((token, piece));
        if state.idle < state.waiting.len() && state.threads < THREADS_MAX {
            let shared = self.shared.clone();
            let name = format!("disk-{}", state.threads);
            match std::thread::Builder::new()
                .name(name)
                .spawn(move || shared.serve())
            {
                Ok(_) => state.threads += 1,
                Err(e) if state.threads == 0 => panic!("no thread for disk requests: {e}"),
                // Those that are there do it, only later.
                Err(_) => {}
            }
        }
        drop(state);
        self.shared.work.notify_one();
    }

    /// Tells what is finished so far.
    pub(super) fn reap(&self) {
        self.finisher.reap();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        if state.waiting.is_empty() {
            state.file = None;
        }
        drop(state);
        self.shared.work.notify_all();
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        // The task that watches the bell sees that this is gone and ends.
        if let Some(waker) = self.waker.get_mut().take() {
            waker.wake();
        }
    }
}

impl Finisher {
    fn reap(&self) {
        let finished = std::mem::take(&mut self.shared.lock().finished);
        let owner = self.owner.upgrade();
        for (token, piece, result) in finished {
            if let Some(owner) = &owner {
                owner.finished(token, piece, result);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Fails only when the counter is about to overflow, and then the bell has long been rung.
        let _ = self.bell.write(1);
    }

    /// What a thread does until the device is closed and nothing is left.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            let file = state.file.clone();
            if let (Some((token, mut piece)), Some(file)) = (state.waiting.pop_front(), file) {
                drop(state);
                let result = piece.perform(file.as_fd());
                drop(file);
                state = self.lock();
                state.finished.push((token, piece, result));
                if state.finished.len() == 1 {
                    self.ring();
                }
            } else if state.closed {
                state.file = None;
                state.threads -= 1;
                return;
            } else {
                state.idle += 1;
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}
