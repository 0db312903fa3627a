//! What each PDU of a target means: checks against the state of the session, then effects.
//!
//! `route` runs when a header is complete and decides where the data segment goes (so it holds
//! every check that memory safety rests on); `take_pdu` runs when the whole PDU is there and its
//! digests are right. Both return a [`Breach`] for whatever RFC 7143 calls a protocol error; at
//! ErrorRecoveryLevel 0 that ends the session.

use super::receive::Sink;
use super::task::{Kind, Stage, Tag};
use super::transmit::{ping_pattern, Burst, Urgent};
use super::{Answer, Breach, Event, Outcome, Phase, Session, ACKNOWLEDGE_WITHIN};
use crate::login::Step;
use crate::pdu::header::{
    AsyncMessage, DataIn, LoginResponse, LogoutResponse, NopIn, NopOut, R2t, Reject, ScsiResponse,
    TmfResponse,
};
use crate::pdu::{flag, opcode, split_sense, Response, BHS_BYTES, RESERVED_TAG};
use crate::scsi::cdb;
use crate::scsi::sense::{self, key};
use crate::scsi::status;
use crate::serial::Serial;
use blockdev::path::Sense;
use blockdev::{Instant, IoVec};
use std::time::Duration;
use zerocopy::FromBytes;

/// A logout that the target asked for leaves so long before its time is over.
const LOGOUT_MARGIN: Duration = Duration::from_millis(500);
/// Most answers to pings and async messages that wait for the socket.
const ANSWERS_WAITING_MAX: usize = 1024;
const NO_LUN: [u8; 8] = [0; 8];
/// "Too many immediate commands": the one reject after which a session goes on.
const REJECT_IMMEDIATE: u8 = 0x06;

impl Session {
    /// Where the data segment of `pdu` goes.
    pub(super) fn route(&mut self, pdu: &Response) -> Result<Sink, Breach> {
        let is_login = matches!(pdu, Response::Login(_));
        if matches!(self.phase, Phase::Login(_)) != is_login {
            return Err(Breach::Rule("PDU that does not belong into this phase"));
        }
        if pdu.generic().data_len.get() > self.params.max_recv_data_segment as usize {
            return Err(Breach::Rule(
                "data segment longer than MaxRecvDataSegmentLength",
            ));
        }
        match pdu {
            Response::DataIn(pdu) => self.route_data_in(pdu),
            _ => Ok(Sink::Control),
        }
    }

    fn route_data_in(&mut self, pdu: &DataIn) -> Result<Sink, Breach> {
        let tag = Tag(pdu.task_tag.get());
        let in_order = self.params.data_pdu_in_order && self.params.data_sequence_in_order;
        let Some(task) = self.tasks.get_mut(tag) else {
            if self.tasks.is_retired(tag) {
                return Ok(Sink::Discard);
            }
            return Err(Breach::Rule("Data-In for an unknown task"));
        };
        if !task.is_scsi() || !task.command_sent || !task.write.is_empty() {
            return Err(Breach::Rule("Data-In for a task that reads nothing"));
        }
        if pdu.data_sn.get() != task.data_sn {
            return Err(Breach::Rule("DataSN gap"));
        }
        let from = pdu.buffer_offset.get();
        let len = pdu.data_len.get() as u32;
        let to = from.checked_add(len).filter(|&to| to <= task.expected);
        let to = to.ok_or(Breach::Rule("Data-In beyond the expected length"))?;
        if in_order && from != task.received {
            return Err(Breach::Rule("Data-In out of order"));
        }
        if !in_order && len > 0 && !task.note_range(from, to) {
            return Err(Breach::Rule("Data-In that overlaps, or in too many pieces"));
        }
        task.data_sn = task.data_sn.wrapping_add(1);
        task.received += len;
        // What is left of it is told by the receiver from here on.
        self.due_bytes -= len as usize;
        Ok(Sink::Task(tag, from as usize))
    }

    /// Takes a complete PDU; `control` is its data segment, if it went there.
    pub(super) fn take_pdu(
        &mut self,
        now: Instant,
        pdu: &Response,
        sink: Sink,
        control: &[u8],
    ) -> Result<(), Breach> {
        if let Response::Login(pdu) = pdu {
            return self.take_login(pdu, control);
        }
        let generic = pdu.generic();
        self.move_window(
            Serial(generic.exp_sn.get()),
            Serial(generic.max_cmd_sn.get()),
        );
        let counts = match pdu {
            Response::R2t(_) => false,
            Response::DataIn(pdu) => pdu.flags & flag::STATUS != 0,
            Response::NopIn(pdu) => pdu.task_tag.get() != RESERVED_TAG,
            _ => true,
        };
        if counts {
            self.count_status(now, Serial(generic.sn.get()))?;
        }
        match pdu {
            Response::Login(_) => Ok(()),
            Response::DataIn(pdu) => self.take_data_in(pdu, sink),
            Response::Scsi(pdu) => self.take_scsi(pdu, control),
            Response::R2t(pdu) => self.take_r2t(pdu),
            Response::NopIn(pdu) => self.take_nop(now, pdu, control),
            Response::Tmf(pdu) => self.take_tmf(pdu),
            Response::Text(pdu) => self.take_text(pdu, control),
            Response::Logout(pdu) => self.take_logout(pdu),
            Response::Async(pdu) => self.take_async(now, pdu, control),
            Response::Reject(pdu) => self.take_reject(now, pdu, control),
        }
    }

    /// RFC 7143 §4.2.2.1: nonsense is ignored, otherwise both only move forward.
    fn move_window(&mut self, exp: Serial, max: Serial) {
        if max.is_before(exp.previous()) {
            return;
        }
        if self.exp_cmd_sn.is_before(exp) {
            self.exp_cmd_sn = exp;
        }
        if self.max_cmd_sn.is_before(max) {
            self.max_cmd_sn = max;
        }
    }

    fn count_status(&mut self, now: Instant, got: Serial) -> Result<(), Breach> {
        if got != self.exp_stat_sn {
            return Err(Breach::StatSn {
                expected: self.exp_stat_sn.0,
                got: got.0,
            });
        }
        self.exp_stat_sn = got.next();
        if self.acknowledge_at.is_none() && !self.is_discovery {
            self.acknowledge_at = Some(now + ACKNOWLEDGE_WITHIN);
        }
        Ok(())
    }

    fn take_login(&mut self, pdu: &LoginResponse, text: &[u8]) -> Result<(), Breach> {
        let Phase::Login(login) = &mut self.phase else {
            return Err(Breach::Rule("login response after the login"));
        };
        match login.handle_response(pdu, text).map_err(Breach::Login)? {
            Step::Continue => {}
            Step::Done(done) => {
                self.params = done.params;
                self.rx.header_digest = done.params.header_digest;
                self.rx.data_digest = done.params.data_digest;
                self.cmd_sn = done.cmd_sn;
                self.exp_cmd_sn = done.cmd_sn;
                self.max_cmd_sn = done.cmd_sn.previous();
                self.move_window(done.exp_cmd_sn, done.max_cmd_sn);
                self.exp_stat_sn = done.exp_stat_sn;
                self.phase = Phase::Open;
                self.events.push_back(Event::LoggedIn(done));
            }
        }
        Ok(())
    }

    /// The task of a final answer. `None`: it was retired, the answer is to be ignored.
    pub(super) fn answered(&self, tag: Tag) -> Result<Option<Tag>, Breach> {
        match self.tasks.get(tag) {
            Some(task) if task.command_sent => Ok(Some(tag)),
            Some(_) => Err(Breach::Rule("answer to a request that was not sent")),
            None if self.tasks.is_retired(tag) => Ok(None),
            None => Err(Breach::Rule("answer to an unknown task")),
        }
    }

    fn take_data_in(&mut self, pdu: &DataIn, sink: Sink) -> Result<(), Breach> {
        let Sink::Task(tag, _) = sink else {
            return Ok(());
        };
        if pdu.flags & flag::STATUS == 0 {
            return Ok(());
        }
        if !matches!(
            pdu.status,
            status::GOOD | status::CONDITION_MET | 0x10 | 0x14
        ) {
            return Err(Breach::Rule(
                "Data-In with a status that needs a SCSI Response",
            ));
        }
        self.finish_scsi(tag, pdu.status, pdu.flags, pdu.residual.get(), None);
        Ok(())
    }

    fn take_scsi(&mut self, pdu: &ScsiResponse, data: &[u8]) -> Result<(), Breach> {
        let Some(tag) = self.answered(Tag(pdu.task_tag.get()))? else {
            return Ok(());
        };
        let task = self.tasks.get(tag).expect("just seen");
        if !task.is_scsi() {
            return Err(Breach::Rule(
                "SCSI Response to a request that is no command",
            ));
        }
        if pdu.response != 0 {
            self.end(tag, Outcome::Bad("target failure instead of a SCSI status"));
            return Ok(());
        }
        // Some targets leave ExpDataSN at 0; the count of bytes then tells of lost PDUs.
        let told = pdu.exp_data_sn.get();
        if task.write.is_empty() && told != 0 && told != task.data_sn {
            return Err(Breach::Rule(
                "ExpDataSN does not match the Data-In received",
            ));
        }
        let sense = match pdu.status {
            status::CHECK_CONDITION => sense::parse(split_sense(data).0),
            _ => None,
        };
        self.finish_scsi(tag, pdu.status, pdu.flags, pdu.residual.get(), sense);
        Ok(())
    }

    fn finish_scsi(
        &mut self,
        tag: Tag,
        status: u8,
        flags: u8,
        residual: u32,
        sense: Option<Sense>,
    ) {
        let lun = self.tasks.get(tag).expect("the caller has seen it").lun;
        if let Some(sense) = sense {
            self.note_sense(lun, sense);
        }
        self.depth.note(status, self.in_flight);
        let task = self.tasks.get_mut(tag).expect("the caller has seen it");
        let underflow = if flags & flag::UNDERFLOW != 0 {
            residual
        } else {
            0
        };
        let good = matches!(status, status::GOOD | status::CONDITION_MET);
        let mut data = IoVec::new();
        // The unit's blocks are of another size than we believe: their place is another, too.
        if good && flags & flag::OVERFLOW != 0 && residual > 0 && cdb::moves_blocks(&task.cdb) {
            return self.end(tag, Outcome::Bad("more bytes than were asked for"));
        }
        if good && underflow > task.expected {
            return self.end(tag, Outcome::Bad("residual larger than the transfer"));
        }
        if good && task.write.is_empty() && task.expected > 0 {
            let has_holes = !task.ranges.is_empty() && task.ranges != [(0, task.received)];
            if task.received != task.expected - underflow || has_holes {
                return self.end(tag, Outcome::Bad("fewer bytes than the status claims"));
            }
            data = std::mem::take(&mut task.read).freeze(task.received as usize);
        }
        let took_blocks = good && !task.write.is_empty() && !cdb::takes_parameters(&task.cdb);
        if took_blocks && underflow > 0 {
            return self.end(tag, Outcome::Bad("write transferred in part"));
        }
        if took_blocks && task.fetched < task.expected {
            let lie = "GOOD for a write whose data were not all asked for";
            return self.end(tag, Outcome::Bad(lie));
        }
        if took_blocks && (task.unasked_left > 0 || self.tx.has_data(tag)) {
            let lie = "GOOD for a write whose data had not all left";
            return self.end(tag, Outcome::Bad(lie));
        }
        self.end(
            tag,
            Outcome::Scsi(Answer {
                status,
                sense,
                data,
                underflow,
            }),
        );
    }

    /// Unit attentions and deferred errors are news beyond the command that carried them.
    fn note_sense(&mut self, lun: [u8; 8], sense: Sense) {
        if sense.key == key::UNIT_ATTENTION || sense.deferred {
            self.events.push_back(Event::Attention { lun, sense });
        }
    }

    fn take_r2t(&mut self, pdu: &R2t) -> Result<(), Breach> {
        let Some(tag) = self.answered(Tag(pdu.task_tag.get()))? else {
            return Ok(());
        };
        let task = self.tasks.get_mut(tag).expect("just seen");
        let (offset, len) = (pdu.buffer_offset.get(), pdu.desired_len.get());
        if !task.is_scsi() || task.write.is_empty() {
            return Err(Breach::Rule("R2T for a task that writes nothing"));
        }
        if task.is_aborting {
            return Ok(());
        }
        if pdu.lun != task.lun {
            return Err(Breach::Rule("R2T with another LUN"));
        }
        if Serial(pdu.r2t_sn.get()).is_before(Serial(task.r2t_sn)) {
            return Ok(()); // A duplicate (RFC 7143 §7.9).
        }
        if pdu.r2t_sn.get() != task.r2t_sn {
            return Err(Breach::Rule("R2TSN gap"));
        }
        if len == 0 || len > self.params.max_burst {
            return Err(Breach::Rule("R2T of no length, or above MaxBurstLength"));
        }
        if offset
            .checked_add(len)
            .is_none_or(|end| end > task.expected)
        {
            return Err(Breach::Rule("R2T beyond the expected length"));
        }
        if task.r2ts_open >= self.params.max_outstanding_r2t {
            return Err(Breach::Rule("more R2Ts than MaxOutstandingR2T"));
        }
        if self.params.data_sequence_in_order && offset != task.fetched {
            return Err(Breach::Rule(
                "R2T that does not go on where the last data ended",
            ));
        }
        if !self.params.data_sequence_in_order && !task.note_range(offset, offset + len) {
            return Err(Breach::Rule("R2T that overlaps, or in too many pieces"));
        }
        task.r2t_sn = task.r2t_sn.wrapping_add(1);
        task.r2ts_open += 1;
        task.fetched = task.fetched.saturating_add(len);
        self.tx.bursts.push_back(Burst {
            tag,
            transfer_tag: Some(pdu.transfer_tag.get()),
            lun: pdu.lun,
            offset,
            left: len,
            data_sn: 0,
        });
        Ok(())
    }

    fn take_nop(&mut self, now: Instant, pdu: &NopIn, data: &[u8]) -> Result<(), Breach> {
        if pdu.task_tag.get() == RESERVED_TAG {
            if pdu.transfer_tag.get() != RESERVED_TAG {
                let (transfer_tag, lun) = (pdu.transfer_tag.get(), pdu.lun);
                return self.answer_soon(Urgent::Pong { transfer_tag, lun });
            }
            return Ok(());
        }
        let Some(tag) = self.answered(Tag(pdu.task_tag.get()))? else {
            return Ok(());
        };
        let Some(Kind::Ping { bytes }) = self.tasks.get(tag).map(|task| &task.kind) else {
            return Err(Breach::Rule("NOP-In for a task that is no ping"));
        };
        let wanted = (*bytes).min(self.params.max_recv_data_segment as usize);
        let same = data == ping_pattern(wanted);
        self.end_ping(now, tag, Outcome::Pong(same));
        Ok(())
    }

    /// Ends the ping that is outstanding; the next one that waits goes out.
    fn end_ping(&mut self, now: Instant, tag: Tag, outcome: Outcome) {
        self.ping = None;
        self.end(tag, outcome);
        if let Some(next) = self.pings_waiting.pop_front() {
            self.start_ping(now, next);
        }
    }

    fn take_tmf(&mut self, pdu: &TmfResponse) -> Result<(), Breach> {
        let Some(tag) = self.answered(Tag(pdu.task_tag.get()))? else {
            return Ok(());
        };
        let task = self.tasks.get(tag).expect("just seen");
        let Kind::Tmf {
            function,
            referenced,
            ..
        } = task.kind
        else {
            return Err(Breach::Rule("task management response to another request"));
        };
        let is_alive = |of: Option<Tag>| of.is_some_and(|tag| self.tasks.get(tag).is_some());
        match (pdu.response, function) {
            // Executed, and answered before this: on one connection that answer came first.
            (1, 1) if is_alive(referenced) => {
                return Err(Breach::Rule(
                    "ABORT TASK finds no task, but no answer of it came",
                ));
            }
            (0, 1) => {
                if let Some(referenced) = referenced {
                    self.conclude(referenced, aborted());
                }
            }
            (0, _) => self
                .affected(tag)
                .into_iter()
                .for_each(|tag| self.conclude(tag, aborted())),
            (_, 2..) => self.refused(tag)?,
            _ => {}
        }
        self.end(tag, Outcome::Tmf(pdu.response));
        Ok(())
    }

    /// The commands that a task management function of many tasks ends: those before it.
    pub(super) fn affected(&self, tmf: Tag) -> Vec<Tag> {
        let Some(task) = self.tasks.get(tmf) else {
            return Vec::new();
        };
        let Kind::Tmf {
            function,
            spares: false,
            ..
        } = task.kind
        else {
            return Vec::new();
        };
        let (cmd_sn, lun, every_lun) = (task.cmd_sn, task.lun, function >= 6);
        self.tasks
            .iter()
            .filter(|task| {
                task.is_scsi()
                    && task.stage == Stage::Staged
                    && task.cmd_sn.is_before(cmd_sn)
                    && (every_lun || task.lun == lun)
            })
            .map(|task| task.tag)
            .collect()
    }

    /// A function that is not carried out. In a FastAbort session the data of its tasks were given
    /// up when it was sent, so they can neither go on nor end.
    fn refused(&self, tmf: Tag) -> Result<(), Breach> {
        if self.affected(tmf).into_iter().any(|tag| self.is_stuck(tag)) {
            return Err(Breach::Rule(
                "function refused whose tasks were given up (FastAbort)",
            ));
        }
        Ok(())
    }

    fn is_stuck(&self, tag: Tag) -> bool {
        self.tasks
            .get(tag)
            .is_some_and(|task| task.is_aborting && !task.write.is_empty())
    }

    /// Async event 5 of a FastAbort session: the target ends every task of a unit that it has. Data
    /// stop first, then it is acknowledged (RFC 7143 §11.9.1). A command that is still on its way
    /// will be executed.
    fn take_termination(&mut self, lun: [u8; 8]) -> Result<(), Breach> {
        let of_lun: Vec<Tag> = self
            .tasks
            .iter()
            .filter(|task| task.is_scsi() && task.command_sent && task.lun == lun)
            .map(|task| task.tag)
            .collect();
        of_lun
            .into_iter()
            .for_each(|tag| self.conclude(tag, aborted()));
        self.answer_soon(Urgent::Acknowledge { lun })
    }

    /// Queues an answer that nobody here has asked for. A target that has more and more of them
    /// waiting does not read what it demands.
    fn answer_soon(&mut self, answer: Urgent) -> Result<(), Breach> {
        if self.tx.urgent.len() >= ANSWERS_WAITING_MAX + self.tasks.len() {
            return Err(Breach::Rule("more to be answered than the target takes"));
        }
        self.tx.urgent.push_back(answer);
        Ok(())
    }

    fn take_logout(&mut self, pdu: &LogoutResponse) -> Result<(), Breach> {
        let Some(tag) = self.answered(Tag(pdu.task_tag.get()))? else {
            return Ok(());
        };
        if !matches!(
            self.tasks.get(tag).map(|task| &task.kind),
            Some(Kind::Logout)
        ) {
            return Err(Breach::Rule("logout response to another request"));
        }
        self.end(tag, Outcome::LoggedOut(pdu.response));
        self.close(blockdev::PathCause::Administrative("logged out"));
        Ok(())
    }

    fn take_async(&mut self, now: Instant, pdu: &AsyncMessage, data: &[u8]) -> Result<(), Breach> {
        match pdu.event {
            0 => {
                if let Some(sense) = sense::parse(split_sense(data).0) {
                    let lun = pdu.lun;
                    self.events.push_back(Event::Attention { lun, sense });
                }
            }
            1 => {
                let within = Duration::from_secs(u64::from(pdu.parameter_3.get()));
                self.events.push_back(Event::LogoutRequested(within));
                self.prepare_logout(now + within.saturating_sub(LOGOUT_MARGIN));
            }
            2 | 3 => {
                let wait = Duration::from_secs(u64::from(pdu.parameter_2.get()));
                self.time2wait = Some(wait);
                return Err(Breach::Dropped(pdu.event));
            }
            4 => {
                // A negotiation is wanted; we have nothing to renegotiate, so it is an empty one.
                if !self.text_outstanding && self.is_open() && !self.is_discovery {
                    let _ = self.text(Vec::new());
                }
            }
            5 if self.params.fast_abort => self.take_termination(pdu.lun)?,
            5 => return Err(Breach::Rule("FastAbort, which was not negotiated")),
            event => tracing::info!(event, vendor = pdu.vendor_code, "unknown async message"),
        }
        Ok(())
    }

    fn take_reject(&mut self, now: Instant, pdu: &Reject, data: &[u8]) -> Result<(), Breach> {
        let rejected = data.first_chunk::<BHS_BYTES>();
        let rejected = rejected.and_then(|header| NopOut::read_from_bytes(header).ok());
        let Some(rejected) = rejected.filter(|_| pdu.reason == REJECT_IMMEDIATE) else {
            return Err(Breach::Rejected(pdu.reason));
        };
        let tag = Tag(rejected.task_tag.get());
        if tag.0 == RESERVED_TAG && rejected.opcode & 0x3f == opcode::NOP_OUT {
            return self.answer_again(&rejected);
        }
        match self.tasks.get(tag).filter(|task| task.command_sent) {
            Some(task) if matches!(task.kind, Kind::Ping { .. }) => {
                self.end_ping(now, tag, Outcome::Rejected(pdu.reason));
            }
            Some(task) if matches!(task.kind, Kind::Tmf { function: 2.., .. }) => {
                self.refused(tag)?;
                self.end(tag, Outcome::Rejected(pdu.reason));
            }
            Some(task) if matches!(task.kind, Kind::Tmf { .. }) => {
                self.end(tag, Outcome::Rejected(pdu.reason));
            }
            _ => return Err(Breach::Rejected(pdu.reason)),
        }
        Ok(())
    }

    /// A NOP-Out that was no ping of ours came at a bad time: it is sent again. What only carried
    /// ExpStatSN need not be, for the reject itself is to be acknowledged.
    fn answer_again(&mut self, nop: &NopOut) -> Result<(), Breach> {
        let (transfer_tag, lun) = (nop.transfer_tag.get(), nop.lun);
        match (transfer_tag, lun) {
            (RESERVED_TAG, NO_LUN) => Ok(()),
            (RESERVED_TAG, _) => self.answer_soon(Urgent::Acknowledge { lun }),
            _ => self.answer_soon(Urgent::Pong { transfer_tag, lun }),
        }
    }
}

fn aborted() -> Outcome {
    Outcome::Scsi(Answer {
        status: status::TASK_ABORTED,
        sense: None,
        data: IoVec::new(),
        underflow: 0,
    })
}
