//! Text in full feature phase (RFC 7143 §11.10, §6.2): SendTargets, and what may still change.
//!
//! A negotiation is one task: requests with the same tag, each answering the transfer tag of the
//! response before it, until the target says that it is final. Text longer than the target's data
//! segment goes out in pieces with the C bit; an answer in pieces is joined. What the target
//! declares takes effect only when the negotiation is over (§7.12): of the keys that live beyond
//! the login that is MaxRecvDataSegmentLength alone. A proposal is answered for as long as the
//! target listens: Reject if its key belongs to the login, NotUnderstood if we do not know it.

use super::task::{Stage, Tag};
use super::transmit::{segment, Burst};
use super::{Breach, Outcome, Session};
use crate::login::keys::is_known;
use crate::pdu::header::{DataLen, TextRequest, TextResponse};
use crate::pdu::{flag, opcode, RESERVED_TAG};
use crate::text::{parse_number, parse_pairs, TextBuilder};
use zerocopy::byteorder::big_endian::U32;

/// Most bytes of a joined text answer: thousands of targets.
const TEXT_ANSWER_BYTES_MAX: usize = 1 << 20;
/// Most requests of one negotiation; an answer of the greatest length in segments of 512 bytes.
const ROUNDS_MAX: u32 = 2048;

/// One negotiation, the `Kind` of its task.
#[derive(Debug)]
pub(super) struct Negotiation {
    /// Text that has not been sent.
    unsent: Vec<u8>,
    /// The request under way said that more follows.
    continues: bool,
    /// All that the target said.
    answer: Vec<u8>,
    /// From here on the target's text has not been looked at.
    seen: usize,
    transfer_tag: u32,
    lun: [u8; 8],
    rounds: u32,
    /// MaxRecvDataSegmentLength that the target declared.
    max_send_data_segment: Option<u32>,
}

impl Negotiation {
    pub(super) fn new(text: Vec<u8>) -> Negotiation {
        Negotiation {
            unsent: text,
            continues: false,
            answer: Vec::new(),
            seen: 0,
            transfer_tag: RESERVED_TAG,
            lun: [0; 8],
            rounds: 0,
            max_send_data_segment: None,
        }
    }

    /// The next request and its data, at most `segment` bytes.
    pub(super) fn request(&mut self, segment: u32) -> (TextRequest, Vec<u8>) {
        let rest = self
            .unsent
            .split_off(self.unsent.len().min(segment as usize));
        let text = std::mem::replace(&mut self.unsent, rest);
        self.continues = !self.unsent.is_empty();
        let header = TextRequest {
            opcode: opcode::TEXT_REQUEST,
            flags: if self.continues {
                flag::CONTINUE
            } else {
                flag::FINAL
            },
            data_len: DataLen::new(text.len()),
            lun: self.lun,
            transfer_tag: U32::new(self.transfer_tag),
            ..TextRequest::default()
        };
        (header, text)
    }

    /// Takes one response in; `true` if it was the last.
    fn take(&mut self, pdu: &TextResponse, data: &[u8]) -> Result<bool, Breach> {
        self.rounds += 1;
        if self.answer.len() + data.len() > TEXT_ANSWER_BYTES_MAX || self.rounds > ROUNDS_MAX {
            return Err(Breach::Rule("text answer without end"));
        }
        let (is_final, goes_on) = (
            pdu.flags & flag::FINAL != 0,
            pdu.flags & flag::CONTINUE != 0,
        );
        if self.continues && (is_final || !data.is_empty()) {
            return Err(Breach::Rule("text response before the request was whole"));
        }
        if !is_final && pdu.transfer_tag.get() == RESERVED_TAG {
            return Err(Breach::Rule(
                "text response that goes on without a target transfer tag",
            ));
        }
        self.answer.extend_from_slice(data);
        if !goes_on && !self.continues {
            self.look(is_final)?;
        }
        self.transfer_tag = pdu.transfer_tag.get();
        self.lun = pdu.lun;
        Ok(is_final)
    }

    /// Reads the pairs that have become whole. A response without the C bit may still end inside a
    /// pair: some targets cut a long list so.
    fn look(&mut self, is_final: bool) -> Result<(), Breach> {
        let fresh = &self.answer[self.seen..];
        let whole = match is_final {
            true => fresh.len(),
            false => fresh
                .iter()
                .rposition(|&byte| byte == 0)
                .map_or(0, |at| at + 1),
        };
        let mut reply = TextBuilder::default();
        for (key, value) in parse_pairs(&fresh[..whole])? {
            match key {
                "TargetName" | "TargetAddress" | "TargetAlias" => {}
                "MaxRecvDataSegmentLength" => {
                    let len = parse_number(value)
                        .and_then(|len| u32::try_from(len).ok())
                        .filter(|len| (512..=0x00ff_ffff).contains(len));
                    let len = len.ok_or(Breach::Rule("MaxRecvDataSegmentLength out of range"))?;
                    if self.max_send_data_segment.replace(len).is_some() {
                        return Err(Breach::Rule("MaxRecvDataSegmentLength declared twice"));
                    }
                }
                _ if matches!(value, "NotUnderstood" | "Irrelevant" | "Reject") => {}
                _ if is_known(key) => reply.push(key, "Reject"),
                _ => reply.push(key, "NotUnderstood"),
            }
        }
        self.seen += whole;
        // A final response ends it: who proposes in it wants no answer.
        if !is_final {
            self.unsent.extend(reply.into_bytes());
        }
        Ok(())
    }
}

impl Session {
    pub(super) fn take_text(&mut self, pdu: &TextResponse, data: &[u8]) -> Result<(), Breach> {
        let Some(tag) = self.answered(Tag(pdu.task_tag.get()))? else {
            return Ok(());
        };
        let task = self.tasks.get_mut(tag).expect("just seen");
        let super::Kind::Text(negotiation) = &mut task.kind else {
            return Err(Breach::Rule("text response to another request"));
        };
        if !negotiation.take(pdu, data)? {
            task.stage = Stage::Queued;
            task.command_sent = false;
            self.tx.queue.push_front(tag);
            return Ok(());
        }
        let answer = std::mem::take(&mut negotiation.answer);
        if let Some(len) = negotiation.max_send_data_segment {
            self.resize_segments(len);
        }
        self.end(tag, Outcome::Text(answer));
        Ok(())
    }

    /// The target takes other data segments from now on: unsolicited data that wait to be built
    /// will be another number of PDUs.
    fn resize_segments(&mut self, len: u32) {
        let before = std::mem::replace(&mut self.params.max_send_data_segment, len);
        let unsolicited = |burst: &&Burst| burst.transfer_tag.is_none();
        for burst in self.tx.bursts.iter().filter(unsolicited) {
            let task = self
                .tasks
                .get_mut(burst.tag)
                .expect("a burst's task is alive");
            task.unasked_left -= burst.left.div_ceil(segment(before));
            task.unasked_left += burst.left.div_ceil(segment(len));
        }
    }
}
