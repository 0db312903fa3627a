//! Who is connected to the admin socket: a full house makes room for whoever comes.
//!
//! A connection that asks nothing costs a place. When all are taken, the one that has been idle longest gives up
//! its own; one whose request is being answered never does.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// See the module.
pub(super) struct Door {
    places: Arc<Semaphore>,
    room: Mutex<Room>,
}

#[derive(Default)]
struct Room {
    turn: u64,
    /// By when they became idle.
    idle: BTreeMap<u64, Arc<Notify>>,
    /// Nobody was idle when a place was needed: the next to become idle leaves.
    wanted: bool,
}

impl Room {
    fn make(&mut self) {
        match self.idle.pop_first() {
            Some((_, leave)) => leave.notify_one(),
            None => self.wanted = true,
        }
    }
}

impl Door {
    pub(super) fn new(places: usize) -> Arc<Door> {
        Arc::new(Door {
            places: Arc::new(Semaphore::new(places)),
            room: Mutex::default(),
        })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place; one caller at a time.
    pub(super) async fn enter(&self) -> OwnedSemaphorePermit {
        let places = self.places.clone();
        if let Ok(place) = places.clone().try_acquire_owned() {
            return place;
        }
        self.room().make();
        let place = places.acquire_owned().await;
        self.room().wanted = false;
        place.expect("the semaphore is never closed")
    }

    /// Does what an idle connection does; `None` if its place is needed meanwhile.
    pub(super) async fn idle<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let leave = Arc::new(Notify::new());
        let turn = {
            let mut room = self.room();
            if std::mem::take(&mut room.wanted) {
                return None;
            }
            room.turn += 1;
            let turn = room.turn;
            room.idle.insert(turn, leave.clone());
            turn
        };
        let done = tokio::select! { biased;
            done = wait => Some(done),
            () = leave.notified() => None,
        };
        let mut room = self.room();
        if room.idle.remove(&turn).is_none() && done.is_some() {
            // Told to go, but its request was already here: somebody else must.
            room.make();
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn now<F: Future>(future: F) -> F::Output {
        match poll(pin!(future)) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("it has to wait"),
        }
    }

    #[test]
    fn the_one_idle_longest_makes_room() {
        let door = Door::new(2);
        let (first, second) = (now(door.enter()), now(door.enter()));
        let mut older = pin!(door.idle(pending::<()>()));
        let mut newer = pin!(door.idle(pending::<()>()));
        assert!(poll(older.as_mut()).is_pending() && poll(newer.as_mut()).is_pending());
        let mut third = pin!(door.enter());
        assert!(poll(third.as_mut()).is_pending());
        assert!(poll(newer.as_mut()).is_pending());
        assert_eq!(poll(older), Poll::Ready(None));
        drop(first);
        assert!(poll(third).is_ready());
        assert!(poll(newer).is_pending());
        drop(second);
    }

    #[test]
    fn who_is_being_answered_leaves_only_afterwards() {
        let door = Door::new(1);
        let place = now(door.enter());
        assert_eq!(now(door.idle(ready(1))), Some(1));
        // Its request is being answered.
        let mut next = pin!(door.enter());
        assert!(poll(next.as_mut()).is_pending());
        assert_eq!(now(door.idle(pending::<()>())), None);
        drop(place);
        assert!(poll(next).is_ready());
        assert_eq!(now(door.idle(ready(2))), Some(2), "nobody is waiting now");
    }

    #[test]
    fn a_request_that_is_already_here_is_answered_and_another_leaves() {
        let door = Door::new(2);
        let _places = (now(door.enter()), now(door.enter()));
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let mut older = pin!(door.idle(told));
        let mut newer = pin!(door.idle(pending::<()>()));
        assert!(poll(older.as_mut()).is_pending() && poll(newer.as_mut()).is_pending());
        let mut third = pin!(door.enter());
        assert!(poll(third.as_mut()).is_pending());
        tell.send(()).unwrap();
        assert_eq!(poll(older), Poll::Ready(Some(Ok(()))));
        assert_eq!(poll(newer), Poll::Ready(None));
    }
}
