//! What is sent, and in which order.
//!
//! PDUs are built only when the socket can take them and stay in a short queue until every byte
//! of them is taken; until its first byte is, a command can be taken back. Order: immediate
//! requests first, then new commands and Data-Out bursts in turn. Bursts are served first come
//! first served, so unsolicited data leave in the order of their commands and the R2Ts of a task
//! in the order received.

use super::task::{Kind, Stage, Tag};
use super::{receive, Phase, Session};
use crate::digest::{digest, Crc};
use crate::login::keys::Params;
use crate::pdu::header::{DataLen, DataOut, LogoutRequest, NopOut, ScsiCommand, TmfRequest};
use crate::pdu::{flag, opcode, padding, BHS_BYTES, DIGEST_BYTES, RESERVED_TAG};
use crate::serial::Serial;
use blockdev::{Instant, IoVec};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::IoSlice;
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

/// PDUs are built ahead up to this many bytes: one R2T burst of 256 KiB in 8 KiB pieces fits one
/// vectored write, and little is committed that could still be withdrawn.
const OUT_BYTES: usize = 288 << 10;
/// Slices of one vectored write …
const SLICES_MAX: usize = 512;
/// … unless a single PDU has more; the system takes at most so many (IOV_MAX).
const SYSTEM_SLICES_MAX: usize = 1024;
/// Where CmdSN lies in every request that has one.
const CMD_SN_AT: usize = 24;
/// Where TotalAHSLength lies.
const AHS_WORDS_AT: usize = 4;
/// AHS type of a CDB's bytes from 16 on (RFC 7143 §11.2.2.3).
const AHS_EXTENDED_CDB: u8 = 1;

/// An immediate request that waits to be built.
#[derive(Debug)]
pub(super) enum Urgent {
    /// TMF, ping or logout of this task.
    Task(Tag),
    /// Answer to a ping of the target.
    Pong { transfer_tag: u32, lun: [u8; 8] },
    /// A NOP-Out that only carries ExpStatSN; with the LUN of async event 5, or 0.
    Acknowledge { lun: [u8; 8] },
}

/// A sequence of Data-Out PDUs to be sent.
#[derive(Debug)]
pub(super) struct Burst {
    pub(super) tag: Tag,
    /// `None`: unsolicited.
    pub(super) transfer_tag: Option<u32>,
    pub(super) lun: [u8; 8],
    pub(super) offset: u32,
    pub(super) left: u32,
    pub(super) data_sn: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Nobody,
    Command(Tag),
    Unsolicited(Tag),
    Solicited(Tag),
}

/// A PDU on its way.
#[derive(Debug)]
struct Out {
    head: [u8; BHS_BYTES + DIGEST_BYTES],
    head_len: usize,
    /// Additional header segments, between the two parts of `head`: with them the digest, if any,
    /// goes into their tail.
    ahs: Box<[u8]>,
    data: IoVec,
    tail: [u8; 3 + DIGEST_BYTES],
    tail_len: usize,
    sent: usize,
    owner: Owner,
}

impl Out {
    fn len(&self) -> usize {
        self.head_len + self.ahs.len() + self.data.len() + self.tail_len
    }

    fn new(header: &[u8], data: IoVec, params: &Params, owner: Owner) -> Out {
        let mut out = Out {
            head: [0; BHS_BYTES + DIGEST_BYTES],
            head_len: BHS_BYTES,
            ahs: Box::default(),
            data,
            tail: [0; 3 + DIGEST_BYTES],
            tail_len: 0,
            sent: 0,
            owner,
        };
        out.head[..BHS_BYTES].copy_from_slice(header);
        if params.header_digest {
            out.head_len += DIGEST_BYTES;
            out.sum_header();
        }
        if !out.data.is_empty() {
            out.tail_len = padding(out.data.len());
            if params.data_digest {
                let mut crc = Crc::default();
                out.data.segments().for_each(|segment| crc.update(segment));
                crc.update(&out.tail[..out.tail_len]);
                out.tail[out.tail_len..out.tail_len + DIGEST_BYTES].copy_from_slice(&crc.digest());
                out.tail_len += DIGEST_BYTES;
            }
        }
        out
    }

    /// Puts an additional header segment behind the header, and the digest behind both.
    fn with_ahs(mut self, ahs: Vec<u8>) -> Out {
        let mut ahs = ahs;
        if self.head_len > BHS_BYTES {
            self.head_len = BHS_BYTES;
            ahs.extend([0; DIGEST_BYTES]);
            self.ahs = ahs.into();
            self.sum_header();
        } else {
            self.ahs = ahs.into();
        }
        self
    }

    fn sum_header(&mut self) {
        if self.ahs.is_empty() {
            let sum = digest(&self.head[..BHS_BYTES]);
            self.head[BHS_BYTES..].copy_from_slice(&sum);
            return;
        }
        let end = self.ahs.len() - DIGEST_BYTES;
        let mut crc = Crc::default();
        crc.update(&self.head[..BHS_BYTES]);
        crc.update(&self.ahs[..end]);
        self.ahs[end..].copy_from_slice(&crc.digest());
    }

    /// Gives back one CmdSN, because an earlier command was withdrawn.
    fn renumber(&mut self) {
        if self.head[0] & 0x3f == opcode::DATA_OUT {
            return;
        }
        let at = CMD_SN_AT..CMD_SN_AT + 4;
        let cmd_sn = U32::read_from_bytes(&self.head[at.clone()]).expect("four bytes");
        let before = U32::new(Serial(cmd_sn.get()).previous().0);
        self.head[at].copy_from_slice(before.as_bytes());
        let ahs_bytes = 4 * usize::from(self.head[AHS_WORDS_AT]);
        if self.head_len > BHS_BYTES || self.ahs.len() > ahs_bytes {
            self.sum_header();
        }
    }

    fn slices<'a>(&'a self, slices: &mut SmallVec<[IoSlice<'a>; 64]>) {
        let mut skip = self.sent;
        let parts = std::iter::once(&self.head[..self.head_len])
            .chain(std::iter::once(&self.ahs[..]))
            .chain(self.data.segments())
            .chain(std::iter::once(&self.tail[..self.tail_len]));
        for part in parts {
            if skip < part.len() {
                slices.push(IoSlice::new(&part[skip..]));
            }
            skip = skip.saturating_sub(part.len());
        }
    }
}

/// Queues of the sending side.
#[derive(Debug, Default)]
pub(super) struct Transmitter {
    pub(super) urgent: VecDeque<Urgent>,
    /// Non-immediate requests that have no CmdSN yet.
    pub(super) queue: VecDeque<Tag>,
    pub(super) bursts: VecDeque<Burst>,
    out: VecDeque<Out>,
    out_bytes: usize,
    burst_is_next: bool,
}

impl Transmitter {
    /// Whether data of a write are still to be sent.
    pub(super) fn has_data(&self, tag: Tag) -> bool {
        let owned = |out: &Out| matches!(out.owner, Owner::Solicited(t) | Owner::Unsolicited(t) if t == tag);
        self.bursts.iter().any(|burst| burst.tag == tag) || self.out.iter().any(owned)
    }

    /// A write ended: nothing more is sent for it, but a PDU that has begun is finished.
    pub(super) fn forget(&mut self, tag: Tag) {
        self.bursts.retain(|burst| burst.tag != tag);
        let data = |out: &Out| {
            out.sent == 0
                && matches!(out.owner, Owner::Solicited(t) | Owner::Unsolicited(t) if t == tag)
        };
        if self.out.iter().any(data) {
            self.out.retain(|out| !data(out));
            self.out_bytes = self.out.iter().map(|out| out.len() - out.sent).sum();
        }
    }
}

impl Session {
    /// What to send now, for one vectored write; empty if nothing is due. The slices stay the
    /// same until [`Session::transmitted`] is told how much was taken.
    pub fn transmit(&mut self) -> SmallVec<[IoSlice<'_>; 64]> {
        self.build();
        let mut slices = SmallVec::new();
        for out in &self.tx.out {
            if slices.len() + out.data.bufs().len() + 3 > SLICES_MAX && !slices.is_empty() {
                break;
            }
            out.slices(&mut slices);
        }
        slices.truncate(SYSTEM_SLICES_MAX);
        slices
    }

    /// The socket took `bytes` of what was offered last.
    pub fn transmitted(&mut self, now: Instant, bytes: usize) {
        let mut left = bytes;
        self.tx.out_bytes -= bytes;
        while left > 0 {
            let out = self
                .tx
                .out
                .front_mut()
                .expect("no more was sent than offered");
            let part = left.min(out.len() - out.sent);
            out.sent += part;
            left -= part;
            let whole = out.sent == out.len();
            let owner = out.owner;
            if whole {
                self.tx.out.pop_front();
            }
            let (Owner::Command(tag) | Owner::Unsolicited(tag)) = owner else {
                continue;
            };
            let Some(task) = self.tasks.get_mut(tag) else {
                continue;
            };
            task.partly = true;
            if whole {
                task.command_sent |= matches!(owner, Owner::Command(_));
                task.unasked_left -= 1;
                if task.unasked_left == 0 {
                    task.wholly_since = Some(now);
                }
            }
        }
    }

    /// Takes a built command of which no byte was sent back out of the queue: whatever was built
    /// after it moves up by one CmdSN.
    pub(super) fn unstage(&mut self, tag: Tag) {
        let tx = &mut self.tx;
        let at = tx
            .out
            .iter()
            .position(|out| out.owner == Owner::Command(tag));
        let at = at.expect("a staged command without a sent byte is in the queue");
        tx.out.remove(at);
        for out in tx.out.range_mut(at..) {
            debug_assert!(out.sent == 0);
            out.renumber();
            if let Owner::Command(later) = out.owner {
                if let Some(task) = self.tasks.get_mut(later) {
                    task.cmd_sn = task.cmd_sn.previous();
                }
            }
        }
        self.cmd_sn = self.cmd_sn.previous();
        self.tx.out_bytes = self.tx.out.iter().map(|out| out.len() - out.sent).sum();
    }

    fn build(&mut self) {
        while self.tx.out_bytes < OUT_BYTES {
            let built = match &mut self.phase {
                Phase::Closed => false,
                Phase::Login(login) => match login.poll_transmit() {
                    Some((header, text)) => {
                        let data = self.pool.copy_now(&text);
                        self.push(header.as_bytes(), data, Owner::Nobody);
                        true
                    }
                    None => false,
                },
                Phase::Open | Phase::Draining(_) => self.build_next(),
                Phase::LoggingOut(_) => self.build_logout(),
            };
            if !built {
                return;
            }
        }
    }

    /// The logout is the last request of a connection: whatever else waits is never sent.
    fn build_logout(&mut self) -> bool {
        while let Some(urgent) = self.tx.urgent.pop_front() {
            let task = match urgent {
                Urgent::Task(tag) => self.tasks.get(tag),
                _ => None,
            };
            if task.is_some_and(|task| matches!(task.kind, Kind::Logout)) {
                self.build_urgent(urgent);
                return true;
            }
        }
        false
    }

    fn build_next(&mut self) -> bool {
        if let Some(urgent) = self.tx.urgent.pop_front() {
            self.build_urgent(urgent);
            return true;
        }
        let window = self.cmd_sn.is_at_most(self.max_cmd_sn);
        let ours = self.in_flight < self.depth.now;
        let command = window && ours && !self.tx.queue.is_empty();
        let burst = !self.tx.bursts.is_empty();
        match (command, burst) {
            (false, false) => return false,
            (true, true) => self.tx.burst_is_next ^= true,
            (_, burst) => self.tx.burst_is_next = burst,
        }
        if self.tx.burst_is_next {
            self.build_data_out();
        } else {
            let tag = self.tx.queue.pop_front().expect("just seen");
            self.build_queued(tag);
        }
        true
    }

    fn push(&mut self, header: &[u8], data: IoVec, owner: Owner) {
        let params = match self.phase {
            Phase::Login(_) => Params::default(),
            _ => self.params,
        };
        self.push_out(Out::new(header, data, &params, owner));
    }

    fn push_out(&mut self, out: Out) {
        self.tx.out_bytes += out.len();
        self.tx.out.push_back(out);
        self.acknowledge_at = None;
    }

    fn build_urgent(&mut self, urgent: Urgent) {
        let (cmd_sn, exp_stat_sn) = (U32::new(self.cmd_sn.0), U32::new(self.exp_stat_sn.0));
        let nop = |nop: NopOut| NopOut {
            cmd_sn,
            exp_stat_sn,
            ..nop
        };
        match urgent {
            Urgent::Pong { transfer_tag, lun } => {
                let header = nop(NopOut::new(RESERVED_TAG, transfer_tag, lun, 0));
                self.push(header.as_bytes(), IoVec::new(), Owner::Nobody);
            }
            Urgent::Acknowledge { lun } => {
                let header = nop(NopOut::new(RESERVED_TAG, RESERVED_TAG, lun, 0));
                self.push(header.as_bytes(), IoVec::new(), Owner::Nobody);
            }
            Urgent::Task(tag) => {
                let Some(task) = self.tasks.get_mut(tag) else {
                    return;
                };
                task.stage = Stage::Staged;
                task.unasked_left = 1;
                task.cmd_sn = self.cmd_sn;
                match task.kind {
                    Kind::Ping { bytes } => {
                        let header = nop(NopOut::new(tag.0, RESERVED_TAG, [0; 8], bytes));
                        let data = self.pool.copy_now(&ping_pattern(bytes));
                        self.push(header.as_bytes(), data, Owner::Command(tag));
                    }
                    Kind::Tmf {
                        function,
                        referenced,
                        ..
                    } => {
                        let lun = task.lun;
                        let mut header = TmfRequest::new(function, lun, tag.0);
                        header.cmd_sn = cmd_sn;
                        header.exp_stat_sn = exp_stat_sn;
                        if let Some(referenced) = referenced {
                            header.referenced_tag = U32::new(referenced.0);
                            let of = self.tasks.get(referenced).map_or(self.cmd_sn, |t| t.cmd_sn);
                            header.ref_cmd_sn = U32::new(of.0);
                        }
                        self.push(header.as_bytes(), IoVec::new(), Owner::Command(tag));
                        if self.params.fast_abort && function != 1 {
                            self.stop_data(tag);
                        }
                    }
                    Kind::Logout => {
                        let header = LogoutRequest {
                            opcode: opcode::LOGOUT_REQUEST | opcode::IMMEDIATE,
                            flags: flag::FINAL,
                            task_tag: U32::new(tag.0),
                            cmd_sn,
                            exp_stat_sn,
                            ..LogoutRequest::default()
                        };
                        self.push(header.as_bytes(), IoVec::new(), Owner::Command(tag));
                    }
                    Kind::Scsi | Kind::Text(_) => unreachable!("never immediate"),
                }
            }
        }
    }

    /// FastAbort (RFC 7143 §4.2.3.4): nothing more is sent for what the function `tmf` ends.
    fn stop_data(&mut self, tmf: Tag) {
        for tag in self.affected(tmf) {
            let task = self.tasks.get_mut(tag).expect("just listed");
            task.is_aborting = true;
            if !task.write.is_empty() {
                self.tx.forget(tag);
            }
        }
    }

    /// Builds a non-immediate request and gives it its CmdSN.
    fn build_queued(&mut self, tag: Tag) {
        let task = self.tasks.get_mut(tag).expect("a queued task is alive");
        task.stage = Stage::Staged;
        task.cmd_sn = self.cmd_sn;
        task.unasked_left = 1;
        let (cmd_sn, exp_stat_sn) = (U32::new(self.cmd_sn.0), U32::new(self.exp_stat_sn.0));
        self.cmd_sn = self.cmd_sn.next();
        if let Kind::Text(negotiation) = &mut task.kind {
            let (mut header, text) = negotiation.request(self.params.max_send_data_segment);
            header.task_tag = U32::new(tag.0);
            header.cmd_sn = cmd_sn;
            header.exp_stat_sn = exp_stat_sn;
            let data = self.pool.copy_now(&text);
            return self.push(header.as_bytes(), data, Owner::Command(tag));
        }
        let params = &self.params;
        let is_write = !task.write.is_empty();
        let (immediate, unsolicited) = match is_write {
            true => unasked_data(params, task.expected),
            false => (0, 0),
        };
        let reads = task.expected > 0 && !is_write;
        let ahs = extended_cdb(&task.cdb_rest);
        let header = ScsiCommand {
            opcode: opcode::SCSI_COMMAND,
            flags: if unsolicited == 0 { flag::FINAL } else { 0 }
                | if reads { flag::READ } else { 0 }
                | if is_write { flag::WRITE } else { 0 }
                | task.attribute,
            ahs_words: (ahs.len() / 4) as u8,
            data_len: DataLen::new(immediate as usize),
            lun: task.lun,
            task_tag: U32::new(tag.0),
            expected_len: U32::new(task.expected),
            cmd_sn,
            exp_stat_sn,
            cdb: task.cdb,
            ..ScsiCommand::default()
        };
        let data = task.write.slice(..immediate as usize);
        task.fetched = immediate + unsolicited;
        if task.fetched > 0 && !params.data_sequence_in_order {
            task.ranges.push((0, task.fetched));
        }
        if unsolicited > 0 {
            task.unasked_left += unsolicited.div_ceil(segment(params.max_send_data_segment));
            self.tx.bursts.push_back(Burst {
                tag,
                transfer_tag: None,
                lun: [0; 8],
                offset: immediate,
                left: unsolicited,
                data_sn: 0,
            });
        }
        self.in_flight += 1;
        self.in_flight_bytes += u64::from(task.expected);
        self.due_bytes += task.due_bytes();
        if reads && task.expected >= receive::LARGE_READ_BYTES {
            self.large_reads += 1;
        }
        let mut out = Out::new(header.as_bytes(), data, &self.params, Owner::Command(tag));
        if !ahs.is_empty() {
            out = out.with_ahs(ahs);
        }
        self.push_out(out);
    }

    /// Builds the next Data-Out of the burst in front.
    fn build_data_out(&mut self) {
        let burst = self.tx.bursts.front_mut().expect("just seen");
        let task = self
            .tasks
            .get_mut(burst.tag)
            .expect("a burst's task is alive");
        let len = burst.left.min(segment(self.params.max_send_data_segment));
        let from = burst.offset as usize;
        let data = task.write.slice(from..from + len as usize);
        let is_last = len == burst.left;
        let header = DataOut {
            opcode: opcode::DATA_OUT,
            flags: if is_last { flag::FINAL } else { 0 },
            data_len: DataLen::new(len as usize),
            lun: burst.lun,
            task_tag: U32::new(burst.tag.0),
            transfer_tag: U32::new(burst.transfer_tag.unwrap_or(RESERVED_TAG)),
            exp_stat_sn: U32::new(self.exp_stat_sn.0),
            data_sn: U32::new(burst.data_sn),
            buffer_offset: U32::new(burst.offset),
            ..DataOut::default()
        };
        burst.offset += len;
        burst.left -= len;
        burst.data_sn += 1;
        let owner = match burst.transfer_tag {
            None => Owner::Unsolicited(burst.tag),
            Some(_) => Owner::Solicited(burst.tag),
        };
        if is_last {
            if burst.transfer_tag.is_some() {
                task.r2ts_open -= 1;
            }
            self.tx.bursts.pop_front();
        }
        self.push(header.as_bytes(), data, owner);
    }
}

/// The AHS of a long CDB, none for others: 0–1 length of what follows byte 2 (a reserved byte and the CDB's rest),
/// 2 type, 3 reserved, then the rest and padding.
fn extended_cdb(rest: &[u8]) -> Vec<u8> {
    if rest.is_empty() {
        return Vec::new();
    }
    let mut ahs = vec![0; 4];
    ahs[..2].copy_from_slice(&(rest.len() as u16 + 1).to_be_bytes());
    ahs[2] = AHS_EXTENDED_CDB;
    ahs.extend_from_slice(rest);
    ahs.resize(ahs.len().next_multiple_of(4), 0);
    ahs
}

/// Bytes of a data segment where the target takes `max`: whole words, so that none but the last of a
/// sequence is padded (RFC 7143 §11.7, a SHOULD).
pub(super) fn segment(max: u32) -> u32 {
    max & !3
}

/// Immediate and unsolicited bytes of a write of `expected` bytes (RFC 7143 §4.2.5.2): if any
/// Data-Out goes unasked, both together are exactly min(FirstBurstLength, expected).
fn unasked_data(params: &Params, expected: u32) -> (u32, u32) {
    let first = params.first_burst.min(expected);
    let immediate = match params.immediate_data {
        true => first.min(segment(params.max_send_data_segment)),
        false => 0,
    };
    let unsolicited = if params.initial_r2t {
        0
    } else {
        first - immediate
    };
    (immediate, unsolicited)
}

/// The data of a ping, so that none need be kept for the comparison.
pub(super) fn ping_pattern(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at.wrapping_mul(31) ^ at >> 8) as u8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of RFC 7143 §13.11 with sizes around every limit.
    #[test]
    fn four_combinations_of_r2t_and_immediate() {
        let unasked = |initial_r2t, immediate_data, expected| {
            let params = Params {
                initial_r2t,
                immediate_data,
                first_burst: 65_536,
                max_send_data_segment: 8192,
                ..Params::default()
            };
            unasked_data(&params, expected)
        };
        assert_eq!(unasked(true, true, 100_000), (8192, 0));
        assert_eq!(unasked(true, true, 512), (512, 0));
        assert_eq!(unasked(true, false, 100_000), (0, 0));
        assert_eq!(unasked(false, true, 100_000), (8192, 57_344));
        assert_eq!(unasked(false, true, 8192), (8192, 0));
        assert_eq!(unasked(false, true, 8704), (8192, 512));
        assert_eq!(unasked(false, false, 100_000), (0, 65_536));
        assert_eq!(unasked(false, false, 512), (0, 512));
    }
}
