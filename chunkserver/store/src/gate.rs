//! Waiting for a number to be reached: frames answered, frames durable, checkpoints done.

use chunk_api::ChunkError;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// A number that only grows, those who wait for it, and the reason why it never will grow again.
#[derive(Default)]
pub(crate) struct Gate {
    value: Cell<u64>,
    failed: RefCell<Option<String>>,
    waiters: RefCell<BTreeMap<u64, Vec<Waker>>>,
}

impl Gate {
    pub(crate) fn get(&self) -> u64 {
        self.value.get()
    }

    /// Raises the number and wakes whom it concerns.
    pub(crate) fn raise(&self, value: u64) {
        if value <= self.value.get() {
            return;
        }
        self.value.set(value);
        let later = self.waiters.borrow_mut().split_off(&(value + 1));
        let reached = std::mem::replace(&mut *self.waiters.borrow_mut(), later);
        reached.into_values().flatten().for_each(Waker::wake);
    }

    /// Everybody gets `reason`, now and later.
    pub(crate) fn fail(&self, reason: &str) {
        self.failed
            .borrow_mut()
            .get_or_insert_with(|| reason.into());
        let all = std::mem::take(&mut *self.waiters.borrow_mut());
        all.into_values().flatten().for_each(Waker::wake);
    }

    /// Ends when the number is at least `target`.
    pub(crate) async fn wait(&self, target: u64) -> Result<(), ChunkError> {
        poll_fn(|cx| {
            if self.value.get() >= target {
                return Poll::Ready(Ok(()));
            }
            if let Some(reason) = &*self.failed.borrow() {
                return Poll::Ready(Err(ChunkError::Io(reason.clone())));
            }
            let mut waiters = self.waiters.borrow_mut();
            let list = waiters.entry(target).or_default();
            if !list.iter().any(|w| w.will_wake(cx.waker())) {
                list.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
