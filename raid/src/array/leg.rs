//! One leg: its device, state, window and counters.

use super::Array;
use crate::layout::Places;
use crate::superblock::{Superblock, FLAG_WRITE_MOSTLY};
use crate::window::Window;
use blockdev::{BlockDevice, Event, Instant, LegIndex};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// See [`super`] for the transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LegState {
    /// Never seen, or removed.
    Absent,
    InSync,
    Leaving,
    Out,
    Rebuilding,
    Joining,
}

/// Why a leg is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It did not answer in time.
    Late,
    /// It failed; it comes back by itself when it can.
    Failed,
    /// All its paths are down: until it is on record as out it may be called back.
    Unreachable,
    /// It refused, or could not store, a write: it stays out until told.
    Broken,
    /// It lost its cache and there is no window to restore it from.
    CacheLost,
    /// An operator said so.
    Operator,
    /// It was not there at start.
    Missing,
}

impl Why {
    /// Whether the leg may still answer what it was sent, and lacks nothing else.
    pub(crate) fn is_soft(self) -> bool {
        matches!(self, Why::Late)
    }

    /// Whether it is taken back without being told.
    pub(crate) fn comes_back(self) -> bool {
        !matches!(self, Why::Broken | Why::Operator)
    }
}

/// How a leg begins.
pub(crate) struct LegStart {
    pub(crate) name: String,
    pub(crate) device: Option<Rc<dyn BlockDevice>>,
    pub(crate) state: LegState,
    pub(crate) superblock: Option<Superblock>,
    pub(crate) places: Places,
    pub(crate) resume: super::sync::Resume,
}

/// Counters of a leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LegCounters {
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
    pub(crate) read_errors: u64,
    pub(crate) healed_blocks: u64,
}

pub(crate) struct Leg {
    pub(crate) index: LegIndex,
    name: RefCell<String>,
    device: RefCell<Option<Rc<dyn BlockDevice>>>,
    state: Cell<LegState>,
    pub(crate) why: Cell<Why>,
    /// Its own superblock: identity, flags and places; events and roles are the array's.
    pub(crate) superblock: RefCell<Option<Superblock>>,
    /// Counter of the last claim that it answered; 0: none.
    pub(crate) claimed: Cell<u64>,
    /// What its superblock may read as: the last one it is known to hold, then those sent since.
    told: RefCell<Vec<Superblock>>,
    places: Cell<Places>,
    pub(crate) window: RefCell<Window>,
    /// Payload bytes sent and not answered, which will enter the window.
    pub(crate) reserved_bytes: Cell<u64>,
    /// Its window is being written again after a loss of its cache.
    pub(crate) restoring: Cell<bool>,
    /// Since when its content does not count.
    pub(crate) out_since: Cell<Instant>,
    /// It is being rebuilt, and all writes wait for it.
    pub(crate) awaited: Cell<bool>,
    /// Told to be the only one in sync, so that its paths queue; and how often that began.
    pub(crate) is_alone: Cell<bool>,
    pub(crate) alone_turn: Cell<u64>,
    /// Its last answer was that its paths are down, though it was told to be the only one.
    pub(crate) has_given_up: Cell<bool>,
    /// Flushes and fences that it owes.
    pub(crate) waits: Cell<u32>,
    /// Losses of its cache so far.
    pub(crate) losses: Cell<u64>,
    pub(crate) reads_in_flight: Cell<u32>,
    pub(crate) next_read: Cell<u64>,
    pub(crate) counters: Cell<LegCounters>,
    /// When it went out because it was late.
    times_late: RefCell<VecDeque<Instant>>,
    event_waker: RefCell<Option<Waker>>,
    /// Counts its device's comings and goings, so that old tasks notice.
    pub(crate) tenure: Cell<u64>,
    /// A copy to it is under way, perhaps one that has not noticed that the leg is out.
    pub(crate) filling: Cell<bool>,
    /// Counts attempts to take it back, so that an old one notices.
    pub(crate) attempts: Cell<u64>,
    pub(crate) gate: RefCell<Option<Rc<dyn blockdev::Admission>>>,
    /// Copied up to here; `None` unless it is a recovery.
    pub(crate) rebuilt_to: Cell<Option<u64>>,
    /// The part of it that a flush has covered: what its superblock may say, and where the copy
    /// goes on after the leg was away.
    pub(crate) rebuilt_durably: Cell<Option<u64>>,
}

impl Leg {
    pub(crate) fn new(index: LegIndex, start: &LegStart) -> Leg {
        Leg {
            index,
            name: RefCell::new(start.name.clone()),
            device: RefCell::new(start.device.clone()),
            state: Cell::new(start.state),
            why: Cell::new(Why::Missing),
            superblock: RefCell::new(start.superblock.clone()),
            claimed: Cell::new(0),
            told: RefCell::new(start.superblock.iter().cloned().collect()),
            places: Cell::new(start.places),
            window: RefCell::default(),
            reserved_bytes: Cell::new(0),
            restoring: Cell::new(false),
            out_since: Cell::new(Instant(0)),
            awaited: Cell::new(false),
            is_alone: Cell::new(false),
            alone_turn: Cell::new(0),
            has_given_up: Cell::new(false),
            waits: Cell::new(0),
            losses: Cell::new(0),
            reads_in_flight: Cell::new(0),
            next_read: Cell::new(0),
            counters: Cell::default(),
            times_late: RefCell::default(),
            event_waker: RefCell::default(),
            tenure: Cell::new(0),
            filling: Cell::new(false),
            attempts: Cell::new(0),
            gate: RefCell::default(),
            rebuilt_to: Cell::new(None),
            rebuilt_durably: Cell::new(start.resume.from()),
        }
    }

    /// None.
    pub(crate) fn absent(index: LegIndex, places: Places) -> Leg {
        let start = LegStart {
            name: String::new(),
            device: None,
            state: LegState::Absent,
            superblock: None,
            places,
            resume: super::sync::Resume::Bits,
        };
        Leg::new(index, &start)
    }

    /// Takes over device, place and what is known of them from `other`, which is absent then.
    /// Nothing may be under way on either.
    pub(crate) fn take_from(&self, other: &Leg) {
        self.set_device(&other.name(), other.device());
        self.set_places(other.places());
        *self.superblock.borrow_mut() = other.superblock.borrow_mut().take();
        *self.told.borrow_mut() = std::mem::take(&mut *other.told.borrow_mut());
        *self.window.borrow_mut() = std::mem::take(&mut *other.window.borrow_mut());
        self.reserved_bytes.set(other.reserved_bytes.replace(0));
        self.losses.set(other.losses.get());
        self.restoring.set(false);
        self.counters
            .set(other.counters.replace(LegCounters::default()));
        self.rebuilt_to.set(other.rebuilt_to.take());
        self.rebuilt_durably.set(other.rebuilt_durably.take());
        other.forget();
    }

    /// It is absent from now on.
    pub(crate) fn forget(&self) {
        self.attempts.set(self.attempts.get() + 1);
        self.awaited.set(false);
        self.set_device("", None);
        self.set_state(LegState::Absent);
        self.set_superblock(None);
        self.window.borrow_mut().clear();
        self.rebuilt_to.set(None);
        self.rebuilt_durably.set(None);
    }

    pub(crate) fn name(&self) -> String {
        self.name.borrow().clone()
    }

    pub(crate) fn device(&self) -> Option<Rc<dyn BlockDevice>> {
        self.device.borrow().clone()
    }

    pub(crate) fn set_device(&self, name: &str, device: Option<Rc<dyn BlockDevice>>) {
        *self.name.borrow_mut() = name.to_owned();
        *self.device.borrow_mut() = device;
        self.claimed.set(0);
        self.tenure.set(self.tenure.get() + 1);
    }

    pub(crate) fn places(&self) -> Places {
        self.places.get()
    }

    pub(crate) fn set_places(&self, places: Places) {
        self.places.set(places);
    }

    /// It holds this one now, or is no member.
    pub(crate) fn set_superblock(&self, superblock: Option<Superblock>) {
        *self.told.borrow_mut() = superblock.iter().cloned().collect();
        *self.superblock.borrow_mut() = superblock;
    }

    /// This one is sent to it; nobody knows whether it arrives.
    pub(crate) fn is_sent(&self, superblock: &Superblock) {
        if !self.may_hold(superblock) {
            self.told.borrow_mut().push(superblock.clone());
        }
    }

    /// This one was read there, and nothing sent before can replace it any more.
    pub(crate) fn was_read(&self, superblock: &Superblock) {
        *self.told.borrow_mut() = vec![superblock.clone()];
    }

    /// Whether it can be the leg that we know, with all that it acknowledged.
    pub(crate) fn may_hold(&self, superblock: &Superblock) -> bool {
        self.told.borrow().contains(superblock)
    }

    /// All that its superblock may read as.
    pub(crate) fn told(&self) -> Vec<Superblock> {
        self.told.borrow().clone()
    }

    /// The last one that it is known to hold.
    pub(crate) fn known(&self) -> Option<Superblock> {
        self.told.borrow().first().cloned()
    }

    pub(crate) fn state(&self) -> LegState {
        self.state.get()
    }

    pub(crate) fn set_state(&self, state: LegState) {
        self.state.set(state);
    }

    pub(crate) fn bit(&self) -> u8 {
        1 << self.index.0
    }

    /// Nothing is acknowledged without its answer.
    pub(crate) fn is_required(&self) -> bool {
        matches!(
            self.state(),
            LegState::InSync | LegState::Leaving | LegState::Joining
        )
    }

    /// New writes are sent to it.
    pub(crate) fn takes_writes(&self) -> bool {
        matches!(
            self.state(),
            LegState::InSync | LegState::Rebuilding | LegState::Joining
        )
    }

    /// Its superblock says that it is being rebuilt.
    pub(crate) fn is_on_record_rebuilding(&self) -> bool {
        matches!(self.state(), LegState::Rebuilding | LegState::Joining)
            && self.rebuilt_to.get().is_some()
    }

    /// It is read only if there is no other.
    pub(crate) fn is_write_mostly(&self) -> bool {
        let sb = self.superblock.borrow();
        sb.as_ref()
            .is_some_and(|sb| sb.device_flags & FLAG_WRITE_MOSTLY != 0)
    }

    /// In sync, but what its cache lost is not there again yet.
    pub(crate) fn is_being_restored(&self) -> bool {
        self.state() == LegState::InSync && self.restoring.get()
    }

    /// Whether its answered writes need a flush.
    pub(crate) fn has_cache(&self) -> bool {
        self.device()
            .is_some_and(|device| device.geometry().write_cache)
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut LegCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Notes that it was late, and tells whether that is more often than twice within a minute.
    pub(crate) fn is_late_again(&self, now: Instant) -> bool {
        let minute = std::time::Duration::from_secs(60);
        let mut times_late = self.times_late.borrow_mut();
        times_late.push_back(now);
        while times_late.front().is_some_and(|&at| now.since(at) > minute) {
            times_late.pop_front();
        }
        times_late.len() > 2
    }

    /// Whoever takes it back by a command does not ask how often it was late.
    pub(crate) fn forgive(&self) {
        self.times_late.borrow_mut().clear();
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        match self.device() {
            Some(device) => device.poll_event(cx),
            None => Poll::Pending,
        }
    }
}

impl Array {
    /// Reads the leg's news from now on.
    pub(crate) fn watch(&self, leg: &Leg) {
        if leg.device().is_none() {
            return;
        }
        let (me, index, tenure) = (self.me.clone(), leg.index, leg.tenure.get());
        self.rt.spawn(async move {
            loop {
                let news = poll_fn(|cx| {
                    let Some(array) = me.upgrade() else {
                        return Poll::Ready(None);
                    };
                    let leg = array.leg(index);
                    if leg.tenure.get() != tenure {
                        return Poll::Ready(None);
                    }
                    *leg.event_waker.borrow_mut() = Some(cx.waker().clone());
                    leg.poll_event(cx).map(Some)
                });
                let Some(event) = news.await else { return };
                let Some(array) = me.upgrade() else { return };
                array.leg_event(index, event);
            }
        });
    }

    /// Takes the leg's news at once, ahead of the task that reads them.
    pub(crate) fn drain_events(&self, index: LegIndex) {
        let leg = self.leg(index);
        let Some(waker) = leg.event_waker.borrow().clone() else {
            return;
        };
        let mut cx = Context::from_waker(&waker);
        while let Poll::Ready(event) = leg.poll_event(&mut cx) {
            self.leg_event(index, event);
        }
    }

    fn leg_event(&self, index: LegIndex, event: Event) {
        let leg = self.leg(index);
        match event {
            Event::CacheLost => self.cache_lost(leg),
            Event::State(change) => {
                self.report(change.event, change.object, change.text, change.warn);
            }
            Event::Changed(geometry) => {
                let data = leg.places().data.0;
                if geometry.sectors < data + self.identity.size {
                    let text = format!("shrank to {} sectors", geometry.sectors);
                    self.report_leg("leg_failed", leg, text, true);
                    self.fail_leg(leg, Why::Broken, "it shrank");
                }
                self.refresh_geometry();
            }
            Event::Tainted(_) => {}
        }
    }
}
