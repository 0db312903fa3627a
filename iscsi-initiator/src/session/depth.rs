//! How many commands a unit takes at a time.

use crate::scsi::status;

/// Back-off of a unit that says TASK SET FULL or BUSY: fewer commands at a time, and one more
/// after each full round of good ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Depth {
    pub(super) now: usize,
    max: usize,
    good: usize,
}

impl Depth {
    pub(super) fn new(max: usize) -> Depth {
        Depth {
            now: max,
            max,
            good: 0,
        }
    }

    /// `in_flight` counts the command that was answered.
    pub(super) fn note(&mut self, status: u8, in_flight: usize) {
        match status {
            status::TASK_SET_FULL => {
                self.now = self.now.min(in_flight.saturating_sub(1)).max(1);
                self.good = 0;
            }
            status::BUSY => {
                self.now = self.now.min(in_flight / 2).max(1);
                self.good = 0;
            }
            status::GOOD if self.now < self.max => {
                self.good += 1;
                if self.good >= self.now {
                    self.now += 1;
                    self.good = 0;
                }
            }
            _ => {}
        }
    }
}
