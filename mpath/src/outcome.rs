//! What becomes of an attempt when its command is answered or lost.

use crate::classify::{classify, Verdict};
use crate::config::{Role, SelectorKind};
use crate::inner::Inner;
use crate::path::{Checker, Path, Phase};
use crate::request::{Attempt, Request, Sink, State, Work};
use crate::slab::Token;
use crate::taint::Taint;
use blockdev::path::{CommandError, CommandResult};
use blockdev::{
    Applied, Done, Event, IoError, Joiner, Kind, PathCause, Refusal, Sector, SECTOR_BYTES,
};
use std::rc::Rc;
use std::time::Duration;

/// Unit attentions and aborts in a row that are believed to be news and not a fault.
const REPEATS_MAX: u32 = 8;
/// Pauses (100 ms each) for a unit that becomes ready before another path is tried.
const NOT_READY_PAUSES_MAX: u32 = 20;
/// TASK ABORTED (SAM-5 §5.3.1).
const TASK_ABORTED: u8 = 0x40;

fn is_abort(error: &CommandError) -> bool {
    matches!(error, CommandError::Status { status, .. } if *status == TASK_ABORTED)
}

/// Pauses (50 ms each, the first ones shorter) for a busy unit before the caller is told.
const BUSY_PAUSES_MAX: u32 = 600;

impl Joiner<CommandResult> for Inner {
    fn joined(&self, token: u64, result: CommandResult) {
        let Some(attempt) = self.attempts.borrow_mut().remove(Token(token)) else {
            return;
        };
        let path = self.path(attempt.path);
        path.in_flight.set(path.in_flight.get() - 1);
        path.in_flight_bytes
            .set(path.in_flight_bytes.get() - attempt.bytes);
        if let Some(id) = attempt.request {
            if let Some(request) = self.requests.borrow_mut().get_mut(id) {
                request.attempts.retain(|a| a.0 != token);
            }
        }
        match result {
            Ok(done) => self.succeeded(&attempt, &path, done),
            Err(error) => self.failed(&attempt, &path, &error),
        }
        self.settle_fence_waiters();
    }
}

impl Inner {
    fn succeeded(&self, attempt: &Attempt, path: &Rc<Path>, done: Done) {
        path.last_ok.set(self.rt.now());
        path.suspect.set(false);
        if !attempt.is_flush && self.sweep.stall() == attempt.stall_mark {
            path.pace
                .note(attempt.bytes, self.rt.now() - attempt.started);
            self.mind_pace(path);
        }
        if let SelectorKind::HistoricalServiceTime { base_weight, .. } =
            self.config.borrow().selector
        {
            let mut history = path.history.get();
            history.note(attempt.started, self.rt.now(), base_weight);
            path.history.set(history);
        }
        path.count(|c| {
            if attempt.is_read {
                c.read_ios += 1;
                c.read_bytes += attempt.bytes;
            } else if attempt.mutation.is_some() {
                c.write_ios += 1;
                c.write_bytes += attempt.bytes;
            }
        });
        if attempt.is_flush {
            let flushed = self.cache.flushed.get().max(attempt.covers);
            self.cache.flushed.set(flushed);
        } else if attempt.mutation.is_some() && !attempt.is_fua {
            self.cache.answered.set(self.cache.answered.get() + 1);
        }
        self.log_attempt(attempt, Ok(()));
        if let Some(id) = attempt.request {
            self.complete(id, attempt, done);
        }
        if let Some(taint) = attempt.taint {
            self.drop_taint(taint);
        }
    }

    /// The request has its answer, or now needs its flush.
    fn complete(&self, id: Token, attempt: &Attempt, done: Done) {
        let done = {
            let mut requests = self.requests.borrow_mut();
            let Some(request) = requests.get_mut(id) else {
                return;
            };
            if !request.flush_after {
                Some(request.done(done))
            } else if !attempt.is_flush {
                request.is_flushing = true;
                None
            } else if request.is_flushing {
                Some(request.done(done))
            } else {
                // The cache was lost meanwhile: this flush covered nothing, the write is due again.
                None
            }
        };
        match done {
            Some(done) => self.answer(id, Ok(done)),
            None => self.route(id, "flush"),
        }
    }

    fn failed(&self, attempt: &Attempt, path: &Rc<Path>, error: &CommandError) {
        let verdict = classify(error);
        self.log_attempt(attempt, Err(error.to_string()));
        match &verdict {
            Verdict::Lost { cause, applied } => {
                return self.lost(attempt, path, cause, *applied);
            }
            Verdict::Withdrawn => self.mind_draining(path, &attempt.live),
            Verdict::Again if is_abort(error) && self.is_own_reset(attempt.live.epoch) => {
                return self.ended_by_reset(attempt);
            }
            // Any status is an answer: the unit is done with the command.
            _ => path.last_ok.set(self.rt.now()),
        }
        if let Some(taint) = attempt.taint {
            self.drop_taint(taint);
        }
        match attempt.request {
            Some(id) => self.decide(id, attempt, path, verdict),
            None => self.path_verdict(attempt, path, &verdict),
        }
    }

    fn lost(&self, attempt: &Attempt, path: &Rc<Path>, cause: &PathCause, applied: Applied) {
        if applied == Applied::Unknown {
            path.add_stale(attempt.live.epoch);
            if attempt.taint.is_none() {
                self.taint_of(attempt);
            }
        } else if let Some(taint) = attempt.taint {
            self.drop_taint(taint);
        }
        self.path_lost(path, attempt.live.epoch, cause);
        if let Some(id) = attempt.request {
            self.again_if_idle(id, "retry");
        }
    }

    /// A reset of our own has ended the command: it is sent again, and nobody is blamed.
    fn ended_by_reset(&self, attempt: &Attempt) {
        if let Some(taint) = attempt.taint {
            self.drop_taint(taint);
        }
        if let Some(id) = attempt.request {
            self.again_if_idle(id, "again");
        }
    }

    /// Registers what an attempt may still do that will get no answer.
    fn taint_of(&self, attempt: &Attempt) {
        let Some((range, content)) = attempt.mutation.clone() else {
            return;
        };
        self.add_taint(Taint {
            range,
            content,
            epoch: attempt.live.epoch,
            op: attempt.op,
        });
        if let Some(id) = attempt.request {
            if let Some(request) = self.requests.borrow_mut().get_mut(id) {
                request.is_unsure = true;
            }
        }
    }

    /// Routes the request if none of its attempts is left.
    fn again_if_idle(&self, id: Token, reason: &'static str) {
        let is_idle = {
            let requests = self.requests.borrow();
            requests.get(id).is_some_and(|r| r.attempts.is_empty())
        };
        if is_idle {
            self.route(id, reason);
        }
    }

    /// What a verdict says about the path alone.
    fn path_verdict(&self, attempt: &Attempt, path: &Rc<Path>, verdict: &Verdict) {
        match verdict {
            Verdict::OtherPath(cause) if self.access_denied(path, cause) => {}
            Verdict::OtherPath(cause) => self.path_lost(path, attempt.live.epoch, cause),
            Verdict::Transition => {
                self.access_denied(path, &PathCause::Unit(0x02, 0x04, 0x0A));
            }
            Verdict::Recheck | Verdict::Capacity => self.pause_to_identify(path),
            Verdict::EarlierWriteFailed => self.raise_cache_lost(),
            _ => {}
        }
    }

    fn decide(&self, id: Token, attempt: &Attempt, path: &Rc<Path>, verdict: Verdict) {
        self.path_verdict(attempt, path, &verdict);
        match verdict {
            Verdict::Lost { .. } => unreachable!("handled before"),
            Verdict::Withdrawn | Verdict::OtherPath(_) => self.again_if_idle(id, "retry"),
            Verdict::Recheck | Verdict::Capacity | Verdict::EarlierWriteFailed => {
                self.again_if_idle(id, "again");
            }
            Verdict::Again => {
                if self.bump(id, |r| &mut r.repeats) <= REPEATS_MAX {
                    self.again_here(id, path);
                } else {
                    let cause = PathCause::Protocol("attentions without end".into());
                    self.path_lost(path, attempt.live.epoch, &cause);
                    self.again_if_idle(id, "retry");
                }
            }
            Verdict::OnceThenOtherPath(_) if self.is_beyond_unit(id, attempt) => {
                self.answer(id, Err(self.error_of(id, Kind::Refused(Refusal::Range))));
            }
            Verdict::OnceThenOtherPath(cause) => {
                if self.bump(id, |r| &mut r.repeats) <= 1 {
                    self.again_here(id, path);
                } else {
                    self.path_lost(path, attempt.live.epoch, &cause);
                    self.again_if_idle(id, "retry");
                }
            }
            Verdict::OnceThenMedium(lba) => {
                if self.bump(id, |r| &mut r.repeats) <= 1 {
                    self.again_here(id, path);
                } else {
                    self.medium(id, lba);
                }
            }
            Verdict::Busy => {
                let pauses = self.bump(id, |r| &mut r.pauses);
                if pauses > BUSY_PAUSES_MAX {
                    let after = Duration::from_millis(50);
                    let error = self.error_of(id, Kind::Again { after });
                    return self.answer(id, Err(error));
                }
                let ms = 1u64 << pauses.min(6);
                self.pause(id, Duration::from_millis(ms.min(50)));
            }
            // Its group does not serve now; another may.
            Verdict::Transition if self.pick(&[path.index]).is_some() => {
                self.again_if_idle(id, "retry");
            }
            Verdict::NotReady | Verdict::Transition => {
                if self.bump(id, |r| &mut r.not_ready) > NOT_READY_PAUSES_MAX {
                    if let Some(request) = self.requests.borrow_mut().get_mut(id) {
                        // The next path has its own time.
                        request.not_ready = 0;
                    }
                    let cause = PathCause::Unit(2, 4, 1);
                    self.path_lost(path, attempt.live.epoch, &cause);
                }
                self.pause(id, Duration::from_millis(100));
            }
            Verdict::Medium(lba) => self.medium(id, lba),
            Verdict::NoSpace => self.answer(id, Err(self.error_of(id, Kind::NoSpace))),
            Verdict::Refused(refusal) => self.refused(id, attempt, refusal),
        }
    }

    /// The session refuses what its unit is too small for (it has shrunk); no path will do it.
    fn is_beyond_unit(&self, id: Token, attempt: &Attempt) -> bool {
        let requests = self.requests.borrow();
        let Some(request) = requests.get(id) else {
            return false;
        };
        let range = request.work.range();
        let sectors = range.end.0 - range.start.0;
        let geometry = attempt.live.session.identity().geometry;
        !geometry.accepts(range.start, sectors)
    }

    fn bump(&self, id: Token, field: impl Fn(&mut Request) -> &mut u32) -> u32 {
        let mut requests = self.requests.borrow_mut();
        let Some(request) = requests.get_mut(id) else {
            return u32::MAX;
        };
        let counter = field(request);
        *counter += 1;
        *counter
    }

    fn again_here(&self, id: Token, path: &Rc<Path>) {
        if path.is_serving() {
            self.start(id, path, "again");
        } else {
            self.again_if_idle(id, "again");
        }
    }

    fn pause(&self, id: Token, time: Duration) {
        let at = self.rt.now() + time;
        if let Some(request) = self.requests.borrow_mut().get_mut(id) {
            if request.attempts.is_empty() {
                request.state = State::Backoff(at);
                request.since = self.rt.now();
            }
        }
        self.sweep_by(at);
    }

    fn medium(&self, id: Token, lba: Option<u64>) {
        let first_bad = {
            let requests = self.requests.borrow();
            let Some(request) = requests.get(id) else {
                return;
            };
            let range = request.work.range();
            let block = u64::from(self.geometry.get().logical_block_bytes) / SECTOR_BYTES;
            // What a unit says about another range is not believed.
            lba.and_then(|lba| lba.checked_mul(block))
                .map(Sector)
                .filter(|s| range.contains(s))
                .unwrap_or(range.start)
        };
        self.answer(id, Err(self.error_of(id, Kind::Medium { first_bad })));
    }

    /// The unit will not; but without FUA, or without WRITE SAME, it may.
    fn refused(&self, id: Token, attempt: &Attempt, refusal: Refusal) {
        let may_be_form = matches!(
            refusal,
            Refusal::NotSupported | Refusal::Unit(5, 0x20 | 0x24 | 0x26, _)
        );
        let retry = may_be_form && {
            let mut requests = self.requests.borrow_mut();
            let Some(request) = requests.get_mut(id) else {
                return;
            };
            match &mut request.work {
                Work::Write { fua, .. } if *fua && attempt.is_fua => {
                    *fua = false;
                    self.fua_refused.set(true);
                    match &request.sink {
                        Sink::Whole(_) => request.flush_after = true,
                        Sink::Part(joint, _) => joint.need_flush(),
                    }
                    true
                }
                Work::Zero { at, sectors } => {
                    let data = blockdev::IoVec::zeros(*sectors as usize * SECTOR_BYTES as usize);
                    let at = *at;
                    self.zero_refused.set(true);
                    request.work = Work::Write {
                        at,
                        data,
                        fua: false,
                    };
                    true
                }
                _ => false,
            }
        };
        if retry {
            // The layer above flushes by itself from now on, if FUA was what was refused.
            self.merge_geometry();
            return self.again_if_idle(id, "again");
        }
        self.answer(id, Err(self.error_of(id, Kind::Refused(refusal))));
    }

    // ---- paths and the cache ----------------------------------------------------------------

    /// The session of `epoch` is of no use any more: closes it and moves its commands elsewhere.
    pub(crate) fn path_lost(&self, path: &Rc<Path>, epoch: u64, cause: &PathCause) {
        let Some(live) = path.detach(epoch) else {
            return;
        };
        let now = self.rt.now();
        let was_serving = matches!(path.phase.get(), Phase::Serving | Phase::Identifying);
        if !matches!(path.phase.get(), Phase::Down | Phase::Removed) {
            path.phase.set(Phase::Connecting);
        }
        // A silent path that a fence closes before its time is up has failed all the same.
        let was_suspect = path.suspect.replace(false);
        path.checker.set(Checker::Faulty);
        path.note_error(cause.to_string());
        let is_ours = matches!(cause, PathCause::Administrative(_)) && !was_suspect;
        if was_serving {
            if !is_ours {
                path.note_failure(now);
                self.note_flaky(path);
                self.delay_failback();
            }
            let object = path.object(&self.name());
            self.news
                .state("path_failed", object, cause.to_string(), !is_ours);
            self.regroup();
            self.mind_ways();
        }
        // Its commands end with `Lost` in here and find this path gone already.
        if live.session.is_alive() {
            live.session.abort(cause.clone());
        }
        path.signal.notify();
        self.changed.notify();
        if !self.taints.borrow().is_empty() {
            self.sweep_by(now + crate::config::QUIET_BEFORE_FENCE);
        }
    }

    /// Looks whether requests have any way: they queue from when there is none until there is one.
    pub(crate) fn mind_ways(&self) {
        let now = self.rt.now();
        if self.paths.borrow().iter().any(|p| p.is_a_way()) {
            let down_since = self.all_down_since.take();
            self.tally.path_serves(down_since, now, self.queue_time());
            self.is_queueing_over.set(false);
            return;
        }
        if self.all_down_since.get().is_some() {
            return;
        }
        self.all_down_since.set(Some(now));
        let time = self.queue_time();
        let text = match time {
            None => "no path left, requests wait".to_string(),
            Some(time) if time.is_zero() && self.role.get() == Role::MirrorLeg => {
                "no path left; the mirror's other leg serves".to_string()
            }
            Some(time) if time.is_zero() => "no path left, requests fail".to_string(),
            Some(time) => format!("no path left, requests wait for {time:?}"),
        };
        self.news.state("device_queueing", self.name(), text, true);
        if let Some(time) = time {
            self.sweep_by(now + time);
        }
    }

    pub(crate) fn pause_to_identify(&self, path: &Rc<Path>) {
        if path.phase.get() == Phase::Serving {
            path.phase.set(Phase::Identifying);
            path.signal.notify();
        }
    }

    /// Writes answered since the last flush may be gone: says so, and lets no flush that was asked
    /// for before succeed.
    pub(crate) fn raise_cache_lost(&self) {
        self.cache.is_loss_untold.set(true);
        self.cache.flushed.set(self.cache.answered.get());
        self.news.push(Event::CacheLost);
        let text = "writes answered since the last flush may be lost".to_string();
        self.news.state("cache_lost", self.name(), text, true);
        let flushes: Vec<(Token, bool)> = {
            let requests = self.requests.borrow();
            let doubtful = requests
                .iter()
                .filter(|(_, r)| r.is_flushing || matches!(r.work, Work::Flush));
            doubtful.map(|(id, r)| (id, r.is_flushing)).collect()
        };
        for (id, is_write) in flushes {
            if is_write {
                // The write itself is in doubt: it is sent again before its flush.
                if let Some(request) = self.requests.borrow_mut().get_mut(id) {
                    request.is_flushing = false;
                }
            } else {
                let after = Duration::from_millis(1);
                self.answer(id, Err(IoError::not_applied(Kind::Again { after })));
            }
        }
    }
}
