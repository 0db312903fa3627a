//! A machine inside a simulated world: its tasks and timers can die while the world goes on.

use crate::rt::{Runtime, Timed, Wall};
use crate::{Instant, LocalFuture, Rt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::Poll;

/// Runs tasks on a world's runtime and can drop them all at once, as SIGKILL or a power cut does.
/// What lives on other hosts, a storage node or the network, is not touched. Cloning shares it.
#[derive(Clone)]
pub struct Host {
    inner: Rc<Inner>,
}

struct Inner {
    world: Rt,
    tasks: RefCell<BTreeMap<u64, Rc<Slot>>>,
    next: Cell<u64>,
    is_dead: Cell<bool>,
    itself: Weak<Inner>,
}

/// Empty while the task runs, and when it was killed.
type Slot = RefCell<Option<LocalFuture<()>>>;

impl Host {
    /// A host in the world of `world`.
    pub fn new(world: &Rt) -> Host {
        Host {
            inner: Rc::new_cyclic(|itself| Inner {
                world: world.clone(),
                tasks: RefCell::default(),
                next: Cell::new(0),
                is_dead: Cell::new(false),
                itself: itself.clone(),
            }),
        }
    }

    /// The handle for what runs here.
    pub fn rt(&self) -> Rt {
        Rt::new(self.inner.clone())
    }

    /// Drops every task, and starts none any more. Not to be called by a task of this host.
    pub fn kill(&self) {
        self.inner.is_dead.set(true);
        loop {
            // Dropping a task may wake or end others; go on until nothing is left.
            let tasks = std::mem::take(&mut *self.inner.tasks.borrow_mut());
            if tasks.is_empty() {
                return;
            }
            for slot in tasks.into_values() {
                let task = slot.borrow_mut().take();
                drop(task);
            }
        }
    }

    /// Whether [`Host::kill`] was called.
    pub fn is_dead(&self) -> bool {
        self.inner.is_dead.get()
    }
}

impl Runtime for Inner {
    fn now(&self) -> Instant {
        self.world.now()
    }

    fn wall(&self) -> Wall {
        self.world.wall()
    }

    fn arm(&self, at: Instant, owner: Weak<dyn Timed>, token: u64) {
        self.world.arm(at, owner, token);
    }

    fn spawn(&self, task: LocalFuture<()>) {
        if self.is_dead.get() {
            return;
        }
        let id = self.next.replace(self.next.get() + 1);
        let slot: Rc<Slot> = Rc::new(RefCell::new(Some(task)));
        self.tasks.borrow_mut().insert(id, slot.clone());
        let host = self.itself.clone();
        self.world.spawn(poll_fn(move |cx| {
            let Some(mut task) = slot.borrow_mut().take() else {
                return Poll::Ready(());
            };
            if task.as_mut().poll(cx).is_pending() {
                *slot.borrow_mut() = Some(task);
                return Poll::Pending;
            }
            if let Some(host) = host.upgrade() {
                host.tasks.borrow_mut().remove(&id);
            }
            Poll::Ready(())
        }));
    }

    fn random(&self) -> u64 {
        self.world.random()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::VirtualRt;
    use std::time::Duration;

    #[test]
    fn a_killed_host_leaves_the_world_alone() {
        let world = VirtualRt::new(1);
        let host = Host::new(&world.rt());
        let count = |rt: Rt| {
            let counted: Rc<Cell<u32>> = Rc::default();
            let (inside, at) = (counted.clone(), rt.clone());
            rt.spawn(async move {
                loop {
                    at.sleep(Duration::from_secs(1)).await;
                    inside.set(inside.get() + 1);
                }
            });
            counted
        };
        let (here, there) = (count(host.rt()), count(world.rt()));
        world.run_for(Duration::from_millis(2500));
        host.kill();
        assert!(host.is_dead());
        host.rt()
            .spawn(async { panic!("a dead host starts nothing") });
        world.run_for(Duration::from_secs(3));
        assert_eq!((here.get(), there.get()), (2, 5));
    }
}
