//! A scripted target without sockets: it sees every byte a session sends and answers with any.

// Each test binary uses a part of it.
#![allow(dead_code)]

use blockdev::path::Isid;
use blockdev::{Instant, Pool};
use iscsi_initiator::digest::digest;
use iscsi_initiator::login::keys::Offer;
use iscsi_initiator::login::LoginConfig;
use iscsi_initiator::pdu::header::*;
use iscsi_initiator::pdu::{flag, opcode, padding};
use iscsi_initiator::session::task::Tag;
use iscsi_initiator::session::{
    Attribute, Event, Outcome, ScsiCommand, Session, SessionConfig, Transfer,
};
use std::collections::VecDeque;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub(crate) const LUN: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];
pub(crate) const FIRST_CMD_SN: u32 = 0xffff_fff0;
const ISID: [u8; 6] = [0x80, 1, 2, 3, 4, 5];

/// A PDU that the session sent.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) header: [u8; 48],
    pub(crate) ahs: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Sent {
    pub(crate) fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    pub(crate) fn is_immediate(&self) -> bool {
        self.header[0] & opcode::IMMEDIATE != 0
    }

    /// The header as one of the structures.
    pub(crate) fn as_<T: FromBytes + KnownLayout + Immutable>(&self) -> T {
        T::read_from_bytes(&self.header).expect("48 bytes")
    }

    pub(crate) fn generic(&self) -> Generic {
        self.as_()
    }
}

pub(crate) struct Peer {
    pub(crate) session: Session,
    pub(crate) now: Instant,
    pub(crate) pool: Pool,
    pub(crate) stat_sn: u32,
    pub(crate) exp_cmd_sn: u32,
    pub(crate) max_cmd_sn: u32,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    wire: Vec<u8>,
    sent: VecDeque<Sent>,
}

pub(crate) fn config(offer: Offer) -> SessionConfig {
    let login = LoginConfig {
        initiator_name: "iqn.2024-12.tp2.b3:a".into(),
        target_name: Some("iqn.2024-12.tp2.b3:t".into()),
        isid: Isid(ISID),
        chap: None,
        offer,
        entropy: [1, 2, 3, 4],
        first_cmd_sn: FIRST_CMD_SN,
    };
    SessionConfig::new(login)
}

impl Peer {
    /// Before the first byte.
    pub(crate) fn new(config: SessionConfig) -> Peer {
        Peer::with_pool(config, Pool::new(64 << 20))
    }

    /// The same with memory that many share, one after the other.
    pub(crate) fn with_pool(config: SessionConfig, pool: Pool) -> Peer {
        let now = Instant(1_000_000_000);
        Peer {
            session: Session::new(config, pool.clone(), now),
            now,
            pool,
            stat_sn: 100,
            exp_cmd_sn: FIRST_CMD_SN,
            max_cmd_sn: FIRST_CMD_SN.wrapping_add(63),
            header_digest: false,
            data_digest: false,
            wire: Vec::new(),
            sent: VecDeque::new(),
        }
    }

    /// After a login in which the target answered `keys` to the operational offer.
    pub(crate) fn logged_in(offer: Offer, keys: &[u8]) -> Peer {
        Peer::new(config(offer)).after_login(keys)
    }

    /// The same session after that login.
    pub(crate) fn after_login(mut self, keys: &[u8]) -> Peer {
        self.log_in(keys);
        let events = self.events();
        assert!(matches!(events[..], [Event::LoggedIn(_)]), "{events:?}");
        self
    }

    pub(crate) fn log_in(&mut self, keys: &[u8]) {
        assert_eq!(self.next().opcode(), opcode::LOGIN_REQUEST);
        let response = self.login_response(0, 1);
        self.send(response, b"TargetPortalGroupTag=1\0");
        let offer = self.next();
        assert_eq!(offer.opcode(), opcode::LOGIN_REQUEST);
        let text = String::from_utf8_lossy(keys).into_owned();
        let response = self.login_response(1, 3);
        self.send(response, keys);
        self.header_digest = text.contains("HeaderDigest=CRC32C");
        self.data_digest = text.contains("DataDigest=CRC32C");
    }

    pub(crate) fn login_response(&mut self, stage: u8, next: u8) -> LoginResponse {
        LoginResponse {
            opcode: opcode::LOGIN_RESPONSE,
            flags: LoginRequest::stage_flags(true, false, stage, next),
            isid: ISID,
            tsih: U16::new(if next == 3 { 9 } else { 0 }),
            task_tag: U32::new(0x7fff_fffe),
            stat_sn: self.count(),
            exp_cmd_sn: U32::new(self.exp_cmd_sn),
            max_cmd_sn: U32::new(self.max_cmd_sn),
            ..Default::default()
        }
    }

    /// StatSN of a response that counts.
    pub(crate) fn count(&mut self) -> U32 {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.wrapping_add(1);
        U32::new(stat_sn)
    }

    /// Everything the session wants to send now, as PDUs.
    pub(crate) fn pump(&mut self) {
        loop {
            let bytes: Vec<u8> = self
                .session
                .transmit()
                .iter()
                .flat_map(|slice| slice.to_vec())
                .collect();
            if bytes.is_empty() {
                break;
            }
            self.session.transmitted(self.now, bytes.len());
            self.wire.extend(bytes);
        }
        while let Some(header) = self.wire.first_chunk::<48>().copied() {
            let generic: Generic = FromBytes::read_from_bytes(&header).expect("48 bytes");
            let head = 48 + 4 * usize::from(generic.ahs_words);
            let len = generic.data_len.get();
            let is_login = header[0] & 0x3f == opcode::LOGIN_REQUEST;
            let header_digest = if self.header_digest && !is_login {
                4
            } else {
                0
            };
            let data_digest = if self.data_digest && !is_login && len > 0 {
                4
            } else {
                0
            };
            let data_at = head + header_digest;
            let pad_at = data_at + len;
            let digest_at = pad_at + padding(len);
            let end = digest_at + data_digest;
            assert!(self.wire.len() >= end, "half a PDU was sent");
            if header_digest > 0 {
                assert_eq!(digest(&self.wire[..head]), self.wire[head..head + 4]);
            }
            if data_digest > 0 {
                assert_eq!(
                    digest(&self.wire[data_at..digest_at]),
                    self.wire[digest_at..end]
                );
            }
            assert!(
                self.wire[pad_at..digest_at].iter().all(|&byte| byte == 0),
                "padding"
            );
            let ahs = self.wire[48..head].to_vec();
            let data = self.wire[data_at..pad_at].to_vec();
            self.wire.drain(..end);
            self.sent.push_back(Sent { header, ahs, data });
        }
        assert!(self.wire.is_empty());
    }

    /// The next PDU sent.
    pub(crate) fn next(&mut self) -> Sent {
        self.pump();
        self.sent.pop_front().expect("a PDU")
    }

    /// All PDUs sent.
    pub(crate) fn all(&mut self) -> Vec<Sent> {
        self.pump();
        self.sent.drain(..).collect()
    }

    /// Bytes of a PDU on the wire, digests included.
    pub(crate) fn encode(&self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut header: [u8; 48] = header.try_into().expect("48 bytes");
        header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut out = header.to_vec();
        if self.header_digest {
            out.extend(digest(&header));
        }
        if !data.is_empty() {
            let at = out.len();
            out.extend(data);
            out.resize(out.len() + padding(data.len()), 0);
            if self.data_digest {
                out.extend(digest(&out[at..]));
            }
        }
        out
    }

    pub(crate) fn send(&mut self, header: impl IntoBytes + Immutable, data: &[u8]) {
        let bytes = self.encode(header.as_bytes(), data);
        self.session.handle_bytes(self.now, &bytes);
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    /// Outcomes of tasks, other events apart.
    pub(crate) fn outcomes(&mut self) -> Vec<(Tag, Outcome)> {
        let done = |event| match event {
            Event::Done(tag, outcome) => Some((tag, outcome)),
            _ => None,
        };
        self.events().into_iter().filter_map(done).collect()
    }

    /// Whether the session ended with a protocol error that says `what`.
    pub(crate) fn broke_with(&mut self, what: &str) {
        let events = self.events();
        let Some(Event::Closed(cause)) = events.last() else {
            panic!("{events:?}")
        };
        assert!(cause.to_string().contains(what), "{cause}");
        assert!(self.session.is_closed() && self.all().is_empty());
    }

    pub(crate) fn read(&mut self, bytes: u32) -> Tag {
        let command = ScsiCommand {
            lun: LUN,
            cdb: iscsi_initiator::scsi::cdb::read_16(0, bytes / 512, false),
            transfer: Transfer::Read(bytes),
            attribute: Attribute::Simple,
        };
        self.session.submit(command).expect("open")
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Tag {
        let command = ScsiCommand {
            lun: LUN,
            cdb: iscsi_initiator::scsi::cdb::write_16(0, data.len() as u32 / 512, false),
            transfer: Transfer::Write(self.pool.copy_now(data)),
            attribute: Attribute::Simple,
        };
        self.session.submit(command).expect("open")
    }

    /// Acknowledges everything and opens the window by `more`.
    pub(crate) fn open_window(&mut self, exp: u32, more: u32) {
        self.exp_cmd_sn = exp;
        self.max_cmd_sn = exp.wrapping_add(more).wrapping_sub(1);
    }

    pub(crate) fn scsi_response(&mut self, task_tag: U32) -> ScsiResponse {
        ScsiResponse {
            opcode: opcode::SCSI_RESPONSE,
            flags: flag::FINAL,
            task_tag,
            stat_sn: self.count(),
            exp_cmd_sn: U32::new(self.exp_cmd_sn),
            max_cmd_sn: U32::new(self.max_cmd_sn),
            ..Default::default()
        }
    }

    pub(crate) fn data_in(&mut self, task_tag: U32, data_sn: u32, offset: u32) -> DataIn {
        DataIn {
            opcode: opcode::DATA_IN,
            task_tag,
            transfer_tag: U32::new(u32::MAX),
            exp_cmd_sn: U32::new(self.exp_cmd_sn),
            max_cmd_sn: U32::new(self.max_cmd_sn),
            data_sn: U32::new(data_sn),
            buffer_offset: U32::new(offset),
            ..Default::default()
        }
    }

    /// The same with GOOD status.
    pub(crate) fn last_data_in(&mut self, task_tag: U32, data_sn: u32, offset: u32) -> DataIn {
        let flags = flag::FINAL | flag::STATUS;
        let stat_sn = self.count();
        DataIn {
            flags,
            stat_sn,
            ..self.data_in(task_tag, data_sn, offset)
        }
    }

    pub(crate) fn r2t(&mut self, task_tag: U32, r2t_sn: u32, offset: u32, len: u32) -> R2t {
        R2t {
            opcode: opcode::R2T,
            flags: flag::FINAL,
            lun: LUN,
            task_tag,
            transfer_tag: U32::new(0x7700 + r2t_sn),
            stat_sn: U32::new(self.stat_sn),
            exp_cmd_sn: U32::new(self.exp_cmd_sn),
            max_cmd_sn: U32::new(self.max_cmd_sn),
            r2t_sn: U32::new(r2t_sn),
            buffer_offset: U32::new(offset),
            desired_len: U32::new(len),
            ..Default::default()
        }
    }

    pub(crate) fn nop_in(&mut self, task_tag: u32, transfer_tag: u32) -> NopIn {
        NopIn {
            opcode: opcode::NOP_IN,
            flags: flag::FINAL,
            task_tag: U32::new(task_tag),
            transfer_tag: U32::new(transfer_tag),
            stat_sn: if task_tag == u32::MAX {
                U32::new(self.stat_sn)
            } else {
                self.count()
            },
            exp_cmd_sn: U32::new(self.exp_cmd_sn),
            max_cmd_sn: U32::new(self.max_cmd_sn),
            ..Default::default()
        }
    }

    pub(crate) fn tmf_response(&mut self, task_tag: U32, response: u8) -> TmfResponse {
        TmfResponse {
            opcode: opcode::TMF_RESPONSE,
            flags: flag::FINAL,
            response,
            task_tag,
            stat_sn: self.count(),
            exp_cmd_sn: U32::new(self.exp_cmd_sn),
            max_cmd_sn: U32::new(self.max_cmd_sn),
            ..Default::default()
        }
    }

    pub(crate) fn text_response(&mut self, task_tag: U32, transfer_tag: u32) -> TextResponse {
        let is_final = transfer_tag == u32::MAX;
        TextResponse {
            opcode: opcode::TEXT_RESPONSE,
            flags: if is_final { flag::FINAL } else { 0 },
            task_tag,
            transfer_tag: U32::new(transfer_tag),
            stat_sn: self.count(),
            exp_cmd_sn: U32::new(self.exp_cmd_sn),
            max_cmd_sn: U32::new(self.max_cmd_sn),
            ..Default::default()
        }
    }

    pub(crate) fn async_message(&mut self, event: u8) -> AsyncMessage {
        AsyncMessage {
            opcode: opcode::ASYNC_MESSAGE,
            flags: flag::FINAL,
            task_tag: U32::new(u32::MAX),
            stat_sn: self.count(),
            exp_cmd_sn: U32::new(self.exp_cmd_sn),
            max_cmd_sn: U32::new(self.max_cmd_sn),
            event,
            ..Default::default()
        }
    }

    pub(crate) fn reject(&mut self, reason: u8) -> Reject {
        Reject {
            opcode: opcode::REJECT,
            flags: flag::FINAL,
            reason,
            task_tag: U32::new(u32::MAX),
            stat_sn: self.count(),
            exp_cmd_sn: U32::new(self.exp_cmd_sn),
            max_cmd_sn: U32::new(self.max_cmd_sn),
            ..Default::default()
        }
    }
}
