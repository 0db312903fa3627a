//! A few futures driven by one task, without a task for each.

use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::task::Poll;

/// Runs what was pushed while [`Several::next`] or [`Several::finish`] is awaited.
pub(crate) struct Several<'a, T> {
    running: Vec<Pin<Box<dyn Future<Output = T> + 'a>>>,
}

impl<'a, T> Several<'a, T> {
    pub(crate) fn new() -> Several<'a, T> {
        Several {
            running: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn push(&mut self, future: impl Future<Output = T> + 'a) {
        self.running.push(Box::pin(future));
    }

    /// What ends first, the older of two; `None` when nothing runs.
    pub(crate) async fn next(&mut self) -> Option<T> {
        poll_fn(|cx| {
            if self.running.is_empty() {
                return Poll::Ready(None);
            }
            for at in 0..self.running.len() {
                if let Poll::Ready(value) = self.running[at].as_mut().poll(cx) {
                    drop(self.running.remove(at));
                    return Poll::Ready(Some(value));
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl<E> Several<'_, Result<(), E>> {
    /// Waits until fewer than `limit` run.
    pub(crate) async fn below(&mut self, limit: usize) -> Result<(), E> {
        while self.len() >= limit {
            self.next().await.unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// Waits for all, also behind an error; the first error.
    pub(crate) async fn finish(mut self) -> Result<(), E> {
        let mut all = Ok(());
        while let Some(one) = self.next().await {
            all = all.and(one);
        }
        all
    }
}
