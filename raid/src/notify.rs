//! Waiting for a condition on this thread.

use std::cell::{Cell, RefCell};
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Wakes everybody who waits for something to change.
#[derive(Default)]
pub(crate) struct Notify {
    waiting: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Something changed: every waiter looks again.
    pub(crate) fn notify(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Ends when `condition` holds; looked at now and after each [`Notify::notify`].
    pub(crate) async fn until(&self, mut condition: impl FnMut() -> bool) {
        poll_fn(|cx| {
            if condition() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// One at a time, first to look first served.
#[derive(Default)]
pub(crate) struct Turn {
    taken: Cell<bool>,
    freed: Notify,
}

/// Gives the turn back when dropped.
pub(crate) struct TurnGuard(Rc<Turn>);

impl Turn {
    pub(crate) async fn take(self: &Rc<Turn>) -> TurnGuard {
        self.freed.until(|| !self.taken.get()).await;
        self.taken.set(true);
        TurnGuard(self.clone())
    }
}

impl Drop for TurnGuard {
    fn drop(&mut self) {
        self.0.taken.set(false);
        self.0.freed.notify();
    }
}

/// Both results, the two running side by side.
pub(crate) async fn both<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut first, mut second) = (None, None);
    poll_fn(move |cx| {
        if first.is_none() {
            if let Poll::Ready(value) = a.as_mut().poll(cx) {
                first = Some(value);
            }
        }
        if second.is_none() {
            if let Poll::Ready(value) = b.as_mut().poll(cx) {
                second = Some(value);
            }
        }
        match (first.take(), second.take()) {
            (Some(x), Some(y)) => Poll::Ready((x, y)),
            (x, y) => {
                (first, second) = (x, y);
                Poll::Pending
            }
        }
    })
    .await
}

/// `Some` with the first one's result, `None` if the second ended before.
pub(crate) async fn unless<A: Future>(a: A, stop: impl Future<Output = ()>) -> Option<A::Output> {
    let (mut a, mut stop) = (pin!(a), pin!(stop));
    poll_fn(move |cx| {
        if let Poll::Ready(value) = a.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        stop.as_mut().poll(cx).map(|()| None)
    })
    .await
}
