//! The order of operations on one chunk: first called, first served.
//!
//! An operation takes its [`Place`] in the queue of its chunk (or of two, for a duplicate) when it
//! is called, and holds it until its change is made in memory and its writes are submitted, not
//! until they are answered. So what is called later sees what was called earlier, writes to one
//! chunk overlap on the wire, and two unaligned writes to one granule never lose one another.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

type Queues = HashMap<u64, VecDeque<(u64, Option<Waker>)>>;

/// All queues.
#[derive(Clone, Default)]
pub(crate) struct Order {
    queues: Rc<RefCell<(u64, Queues)>>,
}

/// A place in the queue of one or two chunks; leaving it lets the next one go on.
pub(crate) struct Place {
    order: Order,
    ticket: u64,
    ids: [Option<u64>; 2],
}

impl Order {
    /// Whether somebody holds or waits for the chunk.
    pub(crate) fn is_busy(&self, id: u64) -> bool {
        self.queues.borrow().1.contains_key(&id)
    }

    /// Queues up for one chunk.
    pub(crate) fn enter(&self, id: u64) -> Place {
        self.enter_all([Some(id), None])
    }

    /// Queues up for two chunks at once, so that nobody can stand between.
    pub(crate) fn enter_both(&self, a: u64, b: u64) -> Place {
        self.enter_all([Some(a), (a != b).then_some(b)])
    }

    fn enter_all(&self, ids: [Option<u64>; 2]) -> Place {
        let mut queues = self.queues.borrow_mut();
        queues.0 += 1;
        let ticket = queues.0;
        for id in ids.into_iter().flatten() {
            queues.1.entry(id).or_default().push_back((ticket, None));
        }
        Place {
            order: self.clone(),
            ticket,
            ids,
        }
    }
}

impl Place {
    /// Ends when the place is at the front everywhere.
    pub(crate) async fn reached(&self) {
        poll_fn(|cx| {
            let mut queues = self.order.queues.borrow_mut();
            for id in self.ids.into_iter().flatten() {
                let queue = queues
                    .1
                    .get_mut(&id)
                    .expect("a place is queued until dropped");
                if queue
                    .front()
                    .is_some_and(|(ticket, _)| *ticket == self.ticket)
                {
                    continue;
                }
                if let Some((_, waker)) = queue.iter_mut().find(|(t, _)| *t == self.ticket) {
                    *waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut wake = Vec::new();
        {
            let mut queues = self.order.queues.borrow_mut();
            for id in self.ids.into_iter().flatten() {
                let Some(queue) = queues.1.get_mut(&id) else {
                    continue;
                };
                queue.retain(|(ticket, _)| *ticket != self.ticket);
                match queue.front_mut() {
                    Some((_, waker)) => wake.extend(waker.take()),
                    None => {
                        queues.1.remove(&id);
                    }
                }
            }
        }
        wake.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::sim::VirtualRt;

    #[test]
    fn first_called_first_served() {
        let world = VirtualRt::new(1);
        let order = Order::default();
        let log: Rc<RefCell<Vec<u32>>> = Rc::default();
        let first = order.enter_both(1, 2);
        for (n, id) in [(1, 2), (2, 1), (3, 2)] {
            let (place, log) = (order.enter(id), log.clone());
            world.rt().spawn(async move {
                place.reached().await;
                log.borrow_mut().push(n);
            });
        }
        world.run_ready();
        assert!(log.borrow().is_empty());
        drop(first);
        world.run_ready();
        let log = log.borrow();
        assert_eq!(log.len(), 3);
        assert!(log.iter().position(|&n| n == 1) < log.iter().position(|&n| n == 3));
        assert!(!order.is_busy(1) && !order.is_busy(2));
    }
}
