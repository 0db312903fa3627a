//! A leg goes out (store rule R10), and how that is decided when both are in doubt.
//!
//! Order: the witness is durable, then a record is answered in a slot of the survivor, then what
//! waited is acknowledged; flush and superblock follow. If the survivor itself fails or falls
//! silent before its record is answered while the leg that was leaving still answers, or does
//! again, the decision is reversed: witness first, events above any ever sent, the missing writes
//! sent and those that its paths failed sent again.

use super::{Array, Leg, LegState, Why, REPLACEMENT};
use blockdev::Instant;
use std::time::Duration;

impl Array {
    /// A leg failed or is late: what follows depends on what the other one is.
    pub(super) fn fail_leg(&self, leg: &Leg, why: Why, text: &str) {
        match leg.state() {
            LegState::InSync => match self.peer(leg.index).state() {
                LegState::InSync => self.begin_leaving(leg, why, text),
                LegState::Leaving if self.peer(leg.index).why.get().is_soft() => {
                    self.reverse(leg, why, text);
                }
                _ => {} // the last leg in sync never goes out
            },
            LegState::Rebuilding | LegState::Joining => {
                leg.why.set(why);
                self.report_leg(
                    event_of(why),
                    leg,
                    format!("left while being rebuilt: {text}"),
                    true,
                );
                self.put_out(leg);
            }
            LegState::Leaving => {
                let was_soft = leg.why.get().is_soft();
                if was_soft && why == Why::Unreachable {
                    leg.why.set(why);
                    self.spawn_call_back(leg, self.change_serial.get());
                    self.stir();
                } else if !why.is_soft() && why != Why::Unreachable {
                    // It cannot be called back any more.
                    leg.why.set(why);
                    self.stir();
                }
            }
            LegState::Absent | LegState::Out => {}
        }
    }

    fn begin_leaving(&self, leg: &Leg, why: Why, text: &str) {
        leg.why.set(why);
        leg.set_state(LegState::Leaving);
        let serial = self.change_serial.get() + 1;
        self.change_serial.set(serial);
        self.tell_roles();
        if why == Why::Unreachable {
            self.spawn_call_back(leg, serial);
        }
        let (me, index, text) = (self.me.clone(), leg.index, text.to_owned());
        self.rt.spawn(async move {
            if let Some(array) = me.upgrade() {
                array.change(array.leg(index), serial, text).await;
            }
        });
    }

    /// The survivor is in doubt before its record is answered: the other one stays instead.
    pub(super) fn reverse(&self, survivor: &Leg, why: Why, text: &str) {
        let back = self.peer(survivor.index);
        back.set_state(LegState::InSync);
        self.begin_leaving(survivor, why, text);
        self.send_missed(back);
        self.stir();
    }

    /// Whether the survivor of a decision not yet confirmed is silent while the other answers.
    pub(super) fn reconsider(&self) {
        let limit = self.options.late_after;
        let now = self.rt.now();
        let silent = |leg: &Leg| {
            self.oldest_pending(leg)
                .is_some_and(|at| now.since(at) >= limit)
        };
        for leg in &self.legs {
            let survivor = self.peer(leg.index);
            if leg.state() == LegState::Leaving
                && leg.why.get() == Why::Late
                && survivor.state() == LegState::InSync
                && silent(survivor)
                && !self.owes(leg, false)
            {
                self.reverse(
                    survivor,
                    Why::Late,
                    "silent before it was on record as the survivor",
                );
                return;
            }
        }
    }

    async fn change(&self, leg: &Leg, serial: u64, text: String) {
        let current = || self.change_serial.get() == serial && leg.state() == LegState::Leaving;
        let survivor = self.peer(leg.index);
        let events = self.next_events();
        let out = self.recorded_out.get() & !survivor.bit() | leg.bit();
        while !self.tell_witness(events, out, false).await {
            if !current() {
                return;
            }
        }
        loop {
            if !current() {
                return;
            }
            if self.write_record(survivor, events, out).await.is_ok() {
                break;
            }
            self.rt.sleep(Duration::from_millis(100)).await;
        }
        if !current() {
            return;
        }
        self.events.set(events);
        self.recorded_out.set(out);
        let why = leg.why.get();
        self.report_leg(event_of(why), leg, text, true);
        self.put_out(leg);
        // Acknowledgements have gone on; now make the state last without the record.
        let _turn = self.meta_turn.take().await;
        let _ = self.flush_round().await;
        if survivor.state() == LegState::InSync && self.recorded_out.get() == out {
            let _ = self.write_superblocks().await;
        }
    }

    /// The leg is out from now on; it is looked for again unless its reason forbids.
    fn put_out(&self, leg: &Leg) {
        if leg.is_required() && leg.state() != LegState::Joining {
            leg.out_since.set(self.rt.now());
        }
        leg.set_state(LegState::Out);
        self.drop_pending(leg);
        leg.window.borrow_mut().clear();
        leg.restoring.set(false);
        self.refresh_geometry();
        self.tell_roles();
        self.read_elsewhere(leg);
        if leg.index == REPLACEMENT && !leg.why.get().comes_back() {
            self.abandon_replacement();
        } else if leg.why.get().comes_back() {
            self.spawn_return(leg.index, self.stays_out_until(leg));
        }
        self.stir();
    }

    /// A leg that is late too often is left alone for a while (P5).
    fn stays_out_until(&self, leg: &Leg) -> Instant {
        let (now, penalty) = (self.rt.now(), self.options.penalty);
        if leg.why.get() != Why::Late || !leg.is_late_again(now) {
            return now;
        }
        let seconds = penalty.as_secs();
        let text = format!("late more than twice within a minute: it stays out for {seconds} s");
        self.report_leg("leg_late", leg, text, true);
        now + penalty
    }

    /// Tells who is the only one left.
    pub(super) fn tell_roles(&self) {
        for leg in self.slots() {
            let alone = leg.state() == LegState::InSync && self.is_last(leg);
            if alone && !leg.is_alone.get() {
                leg.alone_turn.set(leg.alone_turn.get() + 1);
                leg.has_given_up.set(false);
            }
            leg.is_alone.set(alone);
            if let Some(tell) = &self.options.on_alone {
                tell(leg.index, alone);
            }
        }
    }
}

fn event_of(why: Why) -> &'static str {
    match why {
        Why::Late => "leg_late",
        _ => "leg_failed",
    }
}
