//! The result of an operation that is under way.
//!
//! A [`Promise`]/[`Completion`] pair shares one reference-counted cell of this thread. The device
//! holds the promise; dropping the completion detaches and never cancels. The result reaches the
//! layer above either as a future or, without any task, through [`Completion::join`].
//!
//! No borrow is held while completing upward: the result is moved out of the cell first, so the
//! one who is told may submit again at once.

use crate::{Applied, IoError, IoResult, Kind};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

/// What a promise that is dropped unfulfilled says.
pub trait Abandoned {
    /// The value the other side then gets.
    fn abandoned() -> Self;
}

impl Abandoned for IoResult {
    fn abandoned() -> Self {
        Err(IoError {
            kind: Kind::Closed,
            applied: Applied::Unknown,
        })
    }
}

/// Takes results without a task: see [`Completion::join`].
pub trait Joiner<T = IoResult> {
    /// `token` is the one given to `join`.
    fn joined(&self, token: u64, result: T);
}

enum State<T> {
    Pending(Option<Waker>),
    Joined(Weak<dyn Joiner<T>>, u64),
    Ready(T),
    Taken,
}

/// The device's half.
pub struct Promise<T: Abandoned = IoResult> {
    cell: Option<Rc<RefCell<State<T>>>>,
}

/// The caller's half: a future, or something to [`join`](Completion::join).
pub struct Completion<T: Abandoned = IoResult> {
    cell: Rc<RefCell<State<T>>>,
}

/// A new pair.
pub fn pair<T: Abandoned>() -> (Promise<T>, Completion<T>) {
    let cell = Rc::new(RefCell::new(State::Pending(None)));
    (
        Promise {
            cell: Some(cell.clone()),
        },
        Completion { cell },
    )
}

impl<T: Abandoned> Promise<T> {
    /// Fulfils the promise. What is told runs before this returns.
    pub fn complete(mut self, result: T) {
        self.deliver(result);
    }

    /// Whether nobody waits any more.
    pub fn is_detached(&self) -> bool {
        self.cell
            .as_ref()
            .is_none_or(|cell| Rc::strong_count(cell) == 1)
    }

    fn deliver(&mut self, result: T) {
        let Some(cell) = self.cell.take() else { return };
        let before = std::mem::replace(&mut *cell.borrow_mut(), State::Taken);
        match before {
            State::Pending(waker) => {
                *cell.borrow_mut() = State::Ready(result);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Joined(joiner, token) => {
                if let Some(joiner) = joiner.upgrade() {
                    joiner.joined(token, result);
                }
            }
            State::Ready(_) | State::Taken => unreachable!("a promise completes once"),
        }
    }
}

impl<T: Abandoned> Drop for Promise<T> {
    fn drop(&mut self) {
        if self.cell.is_some() {
            self.deliver(T::abandoned());
        }
    }
}

impl<T: Abandoned> Completion<T> {
    /// A completion that is finished already.
    pub fn ready(result: T) -> Completion<T> {
        Completion {
            cell: Rc::new(RefCell::new(State::Ready(result))),
        }
    }

    /// Hands the result to `joiner` with `token` when it comes; at once if it is there.
    pub fn join(self, joiner: Weak<dyn Joiner<T>>, token: u64) {
        let before = std::mem::replace(&mut *self.cell.borrow_mut(), State::Taken);
        match before {
            State::Ready(result) => {
                if let Some(joiner) = joiner.upgrade() {
                    joiner.joined(token, result);
                }
            }
            State::Pending(_) => *self.cell.borrow_mut() = State::Joined(joiner, token),
            State::Joined(..) | State::Taken => unreachable!("a completion is consumed once"),
        }
    }
}

impl Completion<IoResult> {
    /// Finished with an error after which nothing was applied.
    pub fn refused(kind: Kind) -> Completion {
        Completion::ready(Err(IoError::not_applied(kind)))
    }
}

impl<T: Abandoned> Future for Completion<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.cell.borrow_mut();
        match &mut *state {
            State::Pending(waker) => {
                if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            State::Ready(_) => match std::mem::replace(&mut *state, State::Taken) {
                State::Ready(result) => Poll::Ready(result),
                _ => unreachable!("just matched"),
            },
            State::Joined(..) | State::Taken => panic!("completion polled after it was consumed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Done;
    use std::cell::Cell;

    #[derive(Default)]
    struct Count(Cell<u64>);

    impl Joiner for Count {
        fn joined(&self, token: u64, result: IoResult) {
            assert!(result.is_ok());
            self.0.set(self.0.get() + token);
        }
    }

    #[test]
    fn joins_before_and_after_the_result() {
        let count: Rc<Count> = Rc::default();
        let weak: Weak<dyn Joiner> = Rc::downgrade(&(count.clone() as Rc<dyn Joiner>));
        let (promise, completion) = pair::<IoResult>();
        completion.join(weak.clone(), 3);
        promise.complete(Ok(Done::Written));
        Completion::ready(Ok(Done::Flushed)).join(weak, 4);
        assert_eq!(count.0.get(), 7);
    }

    #[test]
    fn a_dropped_promise_leaves_the_outcome_unknown() {
        let (promise, completion) = pair::<IoResult>();
        drop(promise);
        let rt = crate::sim::VirtualRt::new(1);
        let error = rt.block_on(completion).expect_err("abandoned");
        assert_eq!(error, IoError::unknown(Kind::Closed));
    }

    #[test]
    fn dropping_the_completion_detaches() {
        let (promise, completion) = pair::<IoResult>();
        assert!(!promise.is_detached());
        drop(completion);
        assert!(promise.is_detached());
        promise.complete(Ok(Done::Written));
    }
}
