//! What the device tells the layer above and operators: events, and traces of requests that did
//! not go straight through.

use crate::request::AttemptLog;
use blockdev::rt::Wall;
use blockdev::{Event, StateChange, TraceId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// State changes and taints kept for a reader that does not come; the oldest goes first.
const EVENTS_MAX: usize = 4096;
/// Traces kept.
const TRACES_MAX: usize = 256;

/// A request that needed more than one attempt, was held, queued or answered with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// When it was answered.
    pub time: Wall,
    /// Identity across layers; 0 = none.
    pub trace: TraceId,
    /// `read`, `write`, `flush`, `discard`, `write_zeroes`.
    pub op: &'static str,
    /// First byte.
    pub offset_bytes: u64,
    /// Bytes.
    pub bytes: u64,
    /// From its arrival to its answer.
    pub latency: Duration,
    /// What was tried, in the order of the answers.
    pub attempts: Vec<AttemptLog>,
}

#[derive(Default)]
pub(crate) struct News {
    events: RefCell<VecDeque<Event>>,
    waker: RefCell<Option<Waker>>,
    traces: RefCell<VecDeque<Trace>>,
}

impl News {
    pub(crate) fn push(&self, event: Event) {
        let mut events = self.events.borrow_mut();
        if events.len() >= EVENTS_MAX {
            // Geometry and cache loss are never dropped: their number is bounded by what happens.
            let oldest = events
                .iter()
                .position(|e| matches!(e, Event::State(_) | Event::Tainted(_)));
            if let Some(at) = oldest {
                events.remove(at);
            }
        }
        events.push_back(event);
        drop(events);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn state(&self, event: &'static str, object: String, text: String, warn: bool) {
        tracing::debug!(event, object, text);
        self.push(Event::State(StateChange {
            event,
            object,
            text,
            warn,
        }));
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(event) = self.events.borrow_mut().pop_front() {
            return Poll::Ready(event);
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn trace(&self, trace: Trace) {
        let mut traces = self.traces.borrow_mut();
        if traces.len() >= TRACES_MAX {
            traces.pop_front();
        }
        traces.push_back(trace);
    }

    pub(crate) fn traces(&self) -> Vec<Trace> {
        self.traces.borrow().iter().cloned().collect()
    }
}
