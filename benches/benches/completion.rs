//! What does the answer of an operation cost on its way up: a future, or a joiner without a task,
//! beside tokio's channel of one?

use benches::Bench;
use blockdev::completion::{self, Joiner};
use blockdev::{Done, IoResult};
use std::cell::Cell;
use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};

#[derive(Default)]
struct Count(Cell<u64>);

impl Joiner for Count {
    fn joined(&self, token: u64, result: IoResult) {
        black_box(result.is_ok());
        self.0.set(self.0.get() + token);
    }
}

fn main() {
    let count: Rc<Count> = Rc::default();
    let owner: Rc<dyn Joiner> = count.clone();
    let owner: Weak<dyn Joiner> = Rc::downgrade(&owner);
    let mut cx = Context::from_waker(Waker::noop());
    let mut other = Context::from_waker(Waker::noop());
    Bench::new("one answer")
        .candidate("polled, answered, polled again", 100_000, |n| {
            for _ in 0..n {
                let (promise, completion) = completion::pair::<IoResult>();
                let mut completion = pin!(completion);
                assert!(completion.as_mut().poll(&mut cx).is_pending());
                promise.complete(Ok(Done::Written));
                assert!(completion.as_mut().poll(&mut cx).is_ready());
            }
        })
        .candidate("joined, answered", 100_000, |n| {
            for _ in 0..n {
                let (promise, completion) = completion::pair::<IoResult>();
                completion.join(owner.clone(), 1);
                promise.complete(Ok(Done::Written));
            }
        })
        .candidate("tokio::sync::oneshot, polled twice", 100_000, |n| {
            for _ in 0..n {
                let (sender, receiver) = tokio::sync::oneshot::channel::<IoResult>();
                let mut receiver = pin!(receiver);
                assert!(receiver.as_mut().poll(&mut other).is_pending());
                let _ = sender.send(Ok(Done::Written));
                assert!(receiver.as_mut().poll(&mut other).is_ready());
            }
        })
        .run();
}
