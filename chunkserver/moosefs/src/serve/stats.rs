//! Counters of the data port.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// What was done for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A whole READ.
    Read,
    /// One WRITE_DATA, from its arrival to its acknowledgement.
    Write,
}

/// Is told each operation as it ends, for histograms. On the hot path: must be cheap.
pub trait Meter {
    /// `bytes` of payload took `latency`.
    fn record(&self, operation: Operation, bytes: u64, latency: Duration);
}

/// Counters since start, and connections now.
#[derive(Default)]
#[allow(missing_docs)]
pub struct ServeStats {
    pub connections: Cell<u32>,
    pub turned_away: Cell<u64>,
    pub read_ios: Cell<u64>,
    pub write_ios: Cell<u64>,
    pub read_bytes: Cell<u64>,
    pub write_bytes: Cell<u64>,
    /// Requests answered with an error status.
    pub errors: Cell<u64>,
    /// Connections closed because the peer broke the protocol.
    pub malformed: Cell<u64>,
    meter: RefCell<Option<Rc<dyn Meter>>>,
}

impl ServeStats {
    /// Attaches a meter, replacing any other.
    pub fn set_meter(&self, meter: Rc<dyn Meter>) {
        *self.meter.borrow_mut() = Some(meter);
    }

    pub(crate) fn done(&self, operation: Operation, bytes: u64, latency: Duration) {
        let (ios, sum) = match operation {
            Operation::Read => (&self.read_ios, &self.read_bytes),
            Operation::Write => (&self.write_ios, &self.write_bytes),
        };
        ios.set(ios.get() + 1);
        sum.set(sum.get() + bytes);
        if let Some(meter) = &*self.meter.borrow() {
            meter.record(operation, bytes, latency);
        }
    }

    pub(crate) fn failed(&self) {
        self.errors.set(self.errors.get() + 1);
    }
}
