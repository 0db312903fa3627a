//! The login phase as a state machine without sockets or clocks (RFC 7143 §6.3, §11.12, §13).
//!
//! States: SecurityNegotiation (0) → LoginOperationalNegotiation (1) → FullFeaturePhase (3). Every
//! login begins at stage 0, with `AuthMethod=None` if there are no credentials: tgt looks for a
//! session to reinstate only when that stage is passed, so a login that skips it would leave an
//! old session alive and able to write.
//!
//! Invariants: one ITT and one outstanding request for the whole phase; CmdSN does not move; ISID,
//! TSIH, CID and version are constant; T and C never together; a C answer of the target is met
//! by an empty request; text, rounds and redirects are bounded. Nothing negotiated takes effect
//! before [`Step::Done`].

pub mod chap;
pub mod keys;

use crate::pdu::header::{DataLen, LoginRequest, LoginResponse};
use crate::pdu::{flag, opcode};
use crate::serial::Serial;
use crate::text::{
    parse_number, parse_pairs, TextBuilder, TextCollector, TextError, TEXT_BYTES_MAX,
};
use blockdev::path::Isid;
use chap::{Algorithm, ChapClient, ChapConfig, ChapError};
use keys::{is_known, KeyError, KeyTable, Offer, Params};
use std::collections::BTreeSet;
use thiserror::Error;
use zerocopy::byteorder::big_endian::{U16, U32};

/// Data segment of a login PDU, in bytes: the default of RFC 7143 §13.12 holds until the end of
/// the phase, whatever was declared.
const LOGIN_SEGMENT_MAX: usize = 8192;
/// Most exchanges of one login; six must be possible.
const ROUNDS_MAX: u32 = 32;

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;

/// What a login needs to know.
#[derive(Clone, Debug)]
pub struct LoginConfig {
    /// InitiatorName.
    pub initiator_name: String,
    /// TargetName; `None` makes a discovery session.
    pub target_name: Option<String>,
    /// ISID: with the same one an earlier session is reinstated.
    pub isid: Isid,
    /// Credentials; `None` offers AuthMethod=None.
    pub chap: Option<ChapConfig>,
    /// Operational keys.
    pub offer: Offer,
    /// Fresh randomness for the CHAP challenge.
    pub entropy: [u64; 4],
    /// CmdSN of the first command.
    pub first_cmd_sn: u32,
}

/// What a finished login yields.
#[derive(Clone, Copy, Debug)]
pub struct LoggedIn {
    /// Negotiated parameters.
    pub params: Params,
    /// TSIH assigned by the target.
    pub tsih: u16,
    /// TargetPortalGroupTag, if the target told it.
    pub portal_group: Option<u16>,
    /// Next StatSN expected.
    pub exp_stat_sn: Serial,
    /// CmdSN of the first command: the one of the login.
    pub cmd_sn: Serial,
    /// ExpCmdSN of the final response.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN of the final response.
    pub max_cmd_sn: Serial,
}

/// Why a login failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LoginFailure {
    /// Status class 2, 3 or unknown.
    #[error("{} ({class:02x}{detail:02x})", status_text(*class, *detail))]
    Status {
        /// Status class.
        class: u8,
        /// Status detail.
        detail: u8,
        /// The CHAP algorithm answered with right before, if any.
        chap: Option<Algorithm>,
    },
    /// Status class 1: connect there.
    #[error("target moved to {address}")]
    Redirect {
        /// `host[:port]`, without a portal group tag.
        address: String,
        /// Detail 02: the config is stale.
        permanent: bool,
    },
    /// CHAP failed.
    #[error("authentication: {0}")]
    Chap(#[from] ChapError),
    /// A key was answered wrongly.
    #[error("negotiation: {0}")]
    Key(#[from] KeyError),
    /// Text is malformed or too long.
    #[error("login text: {0}")]
    Text(#[from] TextError),
    /// The target broke the rules of the phase.
    #[error("login: {0}")]
    Rule(&'static str),
}

impl LoginFailure {
    /// Whether another login may succeed later without anybody changing anything (class 3).
    pub fn is_temporary(&self) -> bool {
        matches!(self, LoginFailure::Status { class: 3, .. })
    }

    /// Whether the target refused us, rather than broke the protocol.
    pub fn is_refusal(&self) -> bool {
        match self {
            LoginFailure::Status { .. } | LoginFailure::Redirect { .. } => true,
            LoginFailure::Chap(_) => true,
            LoginFailure::Key(error) => matches!(error, KeyError::DigestRefused(_)),
            LoginFailure::Text(_) | LoginFailure::Rule(_) => false,
        }
    }
}

/// Text of a login status (RFC 7143 §11.13.5); unknown details fall back to their class.
pub fn status_text(class: u8, detail: u8) -> &'static str {
    match (class, detail) {
        (0, _) => "success",
        (1, 1) => "target moved temporarily",
        (1, 2) => "target moved permanently",
        (1, _) => "redirection",
        (2, 0) => "initiator error",
        (2, 1) => "authentication failed",
        (2, 2) => "initiator not authorized",
        (2, 3) => "target not found",
        (2, 4) => "target removed",
        (2, 5) => "unsupported version",
        (2, 6) => "too many connections",
        (2, 7) => "missing parameter",
        (2, 8) => "cannot include in session",
        (2, 9) => "session type not supported",
        (2, 0x0a) => "session does not exist",
        (2, 0x0b) => "invalid request during login",
        (2, _) => "initiator error",
        (3, 0) => "target error",
        (3, 1) => "service unavailable",
        (3, 2) => "out of resources",
        (3, _) => "target error",
        _ => "unknown login status class",
    }
}

/// What follows a response.
#[derive(Debug)]
pub enum Step {
    /// Another request is ready in [`Login::poll_transmit`].
    Continue,
    /// Full feature phase.
    Done(Box<LoggedIn>),
}

/// The login phase of one connection.
#[derive(Debug)]
pub struct Login {
    config: LoginConfig,
    stage: u8,
    /// The stage we asked to go to in the outstanding request.
    asked: Option<u8>,
    outgoing: Vec<u8>,
    outgoing_at: usize,
    /// What to ask for once `outgoing` is wholly sent.
    transit: Option<u8>,
    ready: bool,
    incoming: TextCollector,
    keys: KeyTable,
    chap: Option<ChapClient>,
    /// CHAP has nothing left to ask: the security stage may be left.
    chap_is_last: bool,
    seen: BTreeSet<String>,
    portal_group: Option<u16>,
    exp_stat_sn: Option<Serial>,
    rounds: u32,
}

/// The ITT of every login; the generation of session tags never makes it.
const LOGIN_TAG: u32 = 0x7fff_fffe;

impl Login {
    /// Begins a login: the first request is ready.
    pub fn new(config: LoginConfig) -> Login {
        let discovery = config.target_name.is_none();
        let mut text = TextBuilder::default();
        text.push("InitiatorName", &config.initiator_name);
        if let Some(target) = &config.target_name {
            text.push("TargetName", target);
        }
        text.push(
            "SessionType",
            if discovery { "Discovery" } else { "Normal" },
        );
        let mut keys = KeyTable::new(config.offer.clone(), discovery);
        let chap = config
            .chap
            .clone()
            .map(|chap| ChapClient::new(chap, config.entropy));
        let (stage, transit) = if blockdev::mutation::off("mpath.csg0-login") {
            keys.propose(&mut text);
            (OPERATIONAL, Some(FULL_FEATURE))
        } else if chap.is_some() {
            text.push("AuthMethod", "CHAP");
            (SECURITY, None)
        } else {
            text.push("AuthMethod", "None");
            (SECURITY, Some(OPERATIONAL))
        };
        Login {
            config,
            stage,
            asked: None,
            outgoing: text.into_bytes(),
            outgoing_at: 0,
            transit,
            ready: true,
            incoming: TextCollector::new(TEXT_BYTES_MAX),
            keys,
            chap,
            chap_is_last: false,
            seen: BTreeSet::new(),
            portal_group: None,
            exp_stat_sn: None,
            rounds: 0,
        }
    }

    /// The next request with its text, if one is due.
    pub fn poll_transmit(&mut self) -> Option<(LoginRequest, Vec<u8>)> {
        if !std::mem::take(&mut self.ready) {
            return None;
        }
        let rest = self.outgoing.len() - self.outgoing_at;
        let part = rest.min(LOGIN_SEGMENT_MAX);
        let text = self.outgoing[self.outgoing_at..self.outgoing_at + part].to_vec();
        self.outgoing_at += part;
        let more = part < rest;
        self.asked = if more { None } else { self.transit };
        let header = LoginRequest {
            opcode: opcode::LOGIN_REQUEST | opcode::IMMEDIATE,
            flags: LoginRequest::stage_flags(
                self.asked.is_some(),
                more,
                self.stage,
                self.asked.unwrap_or(0),
            ),
            data_len: DataLen::new(text.len()),
            isid: self.config.isid.0,
            tsih: U16::new(0),
            task_tag: U32::new(LOGIN_TAG),
            cmd_sn: U32::new(self.config.first_cmd_sn),
            exp_stat_sn: U32::new(self.exp_stat_sn.unwrap_or_default().0),
            ..LoginRequest::default()
        };
        Some((header, text))
    }

    /// Takes the answer to the outstanding request.
    pub fn handle_response(
        &mut self,
        pdu: &LoginResponse,
        data: &[u8],
    ) -> Result<Step, LoginFailure> {
        use LoginFailure::Rule;
        if self.ready {
            return Err(Rule("response without a request"));
        }
        self.rounds += 1;
        if self.rounds > ROUNDS_MAX {
            return Err(Rule("login without end"));
        }
        if pdu.task_tag.get() != LOGIN_TAG {
            return Err(Rule("foreign initiator task tag"));
        }
        if pdu.status_class != 0 {
            return Err(self.refused(pdu, data));
        }
        if pdu.version_active != 0 {
            return Err(Rule("unknown protocol version"));
        }
        if pdu.isid != self.config.isid.0 {
            return Err(Rule("foreign ISID"));
        }
        let stat_sn = Serial(pdu.stat_sn.get());
        if self.exp_stat_sn.is_some_and(|expected| expected != stat_sn) {
            return Err(Rule("StatSN gap"));
        }
        self.exp_stat_sn = Some(stat_sn.next());
        if pdu.current_stage() != self.stage {
            return Err(Rule("answer of another stage"));
        }
        let next = self.legal_transition(pdu)?;

        if self.outgoing_at < self.outgoing.len() {
            // Our text goes on: the target may only nod.
            if !data.is_empty() || next.is_some() {
                return Err(Rule("answer before our text was complete"));
            }
            self.ready = true;
            return Ok(Step::Continue);
        }
        self.incoming.push(data)?;
        if pdu.flags & flag::CONTINUE != 0 {
            self.send(TextBuilder::default(), None);
            return Ok(Step::Continue);
        }
        let text = self.incoming.take();
        let mut reply = TextBuilder::default();
        self.take_pairs(&parse_pairs(&text)?, &mut reply)?;
        match next {
            Some(FULL_FEATURE) => Ok(Step::Done(Box::new(self.finish(pdu)?))),
            Some(_) => {
                if self
                    .chap
                    .as_ref()
                    .is_some_and(|chap| !chap.is_authenticated())
                {
                    return Err(ChapError::Skipped.into());
                }
                self.stage = OPERATIONAL;
                self.keys.propose(&mut reply);
                self.send(reply, Some(FULL_FEATURE));
                Ok(Step::Continue)
            }
            None => {
                let transit = match (self.stage, &self.chap) {
                    (OPERATIONAL, _) => Some(FULL_FEATURE),
                    (_, Some(_)) if !self.chap_is_last => None,
                    _ => Some(OPERATIONAL),
                };
                self.send(reply, transit);
                Ok(Step::Continue)
            }
        }
    }

    /// Next stage if T is set: one that we asked for and that may follow.
    fn legal_transition(&self, pdu: &LoginResponse) -> Result<Option<u8>, LoginFailure> {
        use LoginFailure::Rule;
        let Some(next) = pdu.next_stage() else {
            return Ok(None);
        };
        let Some(asked) = self.asked else {
            return Err(Rule("transit that was not asked for"));
        };
        match (self.stage, next) {
            _ if next > asked => Err(Rule("transit beyond the stage asked for")),
            (SECURITY, OPERATIONAL) | (OPERATIONAL, FULL_FEATURE) => Ok(Some(next)),
            _ => Err(Rule("illegal stage transition")),
        }
    }

    fn send(&mut self, text: TextBuilder, transit: Option<u8>) {
        self.outgoing = text.into_bytes();
        self.outgoing_at = 0;
        self.transit = transit;
        self.ready = true;
    }

    fn take_pairs(
        &mut self,
        pairs: &[(&str, &str)],
        reply: &mut TextBuilder,
    ) -> Result<(), LoginFailure> {
        use LoginFailure::Rule;
        for &(key, value) in pairs {
            if key != "TargetAddress" && !self.seen.insert(key.to_owned()) {
                return Err(KeyError::Twice(format!("{key:.63}")).into());
            }
            match key {
                "TargetPortalGroupTag" => {
                    let tag = parse_number(value).and_then(|tag| u16::try_from(tag).ok());
                    self.portal_group = Some(tag.ok_or(Rule("malformed TargetPortalGroupTag"))?);
                }
                // Shown by others, never decided by.
                "TargetAlias" | "TargetAddress" | "TargetName" => {}
                "AuthMethod" if self.chap.is_none() && value != "None" => {
                    return Err(ChapError::NotOffered(format!("AuthMethod={value:.32}")).into());
                }
                "AuthMethod" => {}
                _ if key.starts_with("CHAP_") && self.stage == SECURITY && self.chap.is_some() => {}
                _ if self.stage == SECURITY && KeyTable::is_operational(key) => {
                    return Err(Rule("operational key in the security stage"));
                }
                _ => {
                    let known = self.stage == OPERATIONAL && self.keys.take(key, value, reply)?;
                    if !known && !matches!(value, "NotUnderstood" | "Irrelevant" | "Reject") {
                        let answer = if is_known(key) {
                            "Reject"
                        } else {
                            "NotUnderstood"
                        };
                        reply.push(key, answer);
                    }
                }
            }
        }
        if self.stage == SECURITY {
            if let Some(chap) = &mut self.chap {
                let step = chap.step(pairs)?;
                self.chap_is_last = step.is_last;
                for (key, value) in parse_pairs(&step.text.into_bytes())? {
                    reply.push(key, value);
                }
            }
        }
        Ok(())
    }

    fn finish(&self, pdu: &LoginResponse) -> Result<LoggedIn, LoginFailure> {
        if pdu.tsih.get() == 0 {
            return Err(LoginFailure::Rule("final response without a TSIH"));
        }
        Ok(LoggedIn {
            params: self.keys.finish()?,
            tsih: pdu.tsih.get(),
            portal_group: self.portal_group,
            exp_stat_sn: Serial(pdu.stat_sn.get()).next(),
            cmd_sn: Serial(self.config.first_cmd_sn),
            exp_cmd_sn: Serial(pdu.exp_cmd_sn.get()),
            max_cmd_sn: Serial(pdu.max_cmd_sn.get()),
        })
    }

    fn refused(&self, pdu: &LoginResponse, data: &[u8]) -> LoginFailure {
        if pdu.status_class == 1 {
            let pairs = parse_pairs(data).unwrap_or_default();
            let address = pairs.iter().find(|(key, _)| *key == "TargetAddress");
            return match address {
                Some((_, address)) => LoginFailure::Redirect {
                    address: address.split(',').next().unwrap_or(address).to_owned(),
                    permanent: pdu.status_detail == 2,
                },
                None => LoginFailure::Rule("redirect without an address"),
            };
        }
        LoginFailure::Status {
            class: pdu.status_class,
            detail: pdu.status_detail,
            chap: self.chap.as_ref().and_then(ChapClient::chosen),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> LoginConfig {
        LoginConfig {
            initiator_name: "iqn.2024-12.tp2.b3:a".into(),
            target_name: Some("iqn.2024-12.tp2.b3:t".into()),
            isid: Isid([0x80, 1, 2, 3, 4, 5]),
            chap: None,
            offer: Offer::default(),
            entropy: [9; 4],
            first_cmd_sn: 0xffff_fff0,
        }
    }

    fn answer(stage: u8, next: Option<u8>, stat_sn: u32) -> LoginResponse {
        LoginResponse {
            opcode: opcode::LOGIN_RESPONSE,
            flags: LoginRequest::stage_flags(next.is_some(), false, stage, next.unwrap_or(0)),
            isid: [0x80, 1, 2, 3, 4, 5],
            tsih: U16::new(if next == Some(3) { 7 } else { 0 }),
            task_tag: U32::new(LOGIN_TAG),
            stat_sn: U32::new(stat_sn),
            exp_cmd_sn: U32::new(0xffff_fff0),
            max_cmd_sn: U32::new(16),
            ..LoginResponse::default()
        }
    }

    fn first() -> (Login, LoginRequest, Vec<u8>) {
        let mut login = Login::new(config());
        let (header, text) = login.poll_transmit().expect("first request");
        (login, header, text)
    }

    #[test]
    fn first_login_carries_both_names() {
        let (mut login, header, text) = first();
        assert_eq!(header.opcode, 0x43);
        assert_eq!(header.flags, 0x81);
        assert_eq!(header.tsih.get(), 0);
        assert_eq!(
            text,
            b"InitiatorName=iqn.2024-12.tp2.b3:a\0TargetName=iqn.2024-12.tp2.b3:t\0\
              SessionType=Normal\0AuthMethod=None\0"
        );
        assert!(login.poll_transmit().is_none());
        let discovery = LoginConfig {
            target_name: None,
            ..config()
        };
        let (_, text) = Login::new(discovery).poll_transmit().expect("request");
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains("SessionType=Discovery\0") && !text.contains("TargetName"));
    }

    #[test]
    fn runs_through_both_stages() {
        let (mut login, first, _) = first();
        let step = login.handle_response(&answer(0, Some(1), 5), b"TargetPortalGroupTag=1\0");
        assert!(matches!(step, Ok(Step::Continue)));
        let (second, text) = login.poll_transmit().expect("operational");
        assert_eq!(second.flags, 0x87);
        assert_eq!(
            (second.cmd_sn, second.task_tag),
            (first.cmd_sn, first.task_tag)
        );
        assert_eq!(
            (second.isid, second.cid, second.exp_stat_sn.get()),
            (first.isid, first.cid, 6)
        );
        assert!(text.starts_with(b"HeaderDigest=None\0"));
        let step = login.handle_response(&answer(1, Some(3), 6), b"MaxBurstLength=65536\0");
        let Ok(Step::Done(done)) = step else {
            panic!("{step:?}")
        };
        assert_eq!(done.params.max_burst, 65_536);
        assert_eq!((done.tsih, done.portal_group), (7, Some(1)));
        assert_eq!(done.cmd_sn, Serial(0xffff_fff0));
        assert_eq!(done.exp_stat_sn, Serial(7));
    }

    #[test]
    fn t0_answer_is_followed_by_empty_t1_request() {
        let (mut login, _, _) = first();
        login
            .handle_response(&answer(0, Some(1), 0), b"")
            .expect("security");
        login.poll_transmit().expect("operational");
        let declared = b"MaxRecvDataSegmentLength=65536\0";
        login
            .handle_response(&answer(1, None, 1), declared)
            .expect("T=0");
        let (header, text) = login.poll_transmit().expect("again");
        assert_eq!((header.flags, text.len()), (0x87, 0));
        let step = login.handle_response(&answer(1, Some(3), 2), b"");
        let Ok(Step::Done(done)) = step else {
            panic!("{step:?}")
        };
        assert_eq!(done.params.max_send_data_segment, 65_536);
    }

    const PAIRS: &[u8] = b"TargetPortalGroupTag=513\0TargetAlias=x\0";

    /// The first answer is only the pairs up to `cut`; what is sent then.
    fn first_part(cut: usize) -> (Login, LoginRequest, Vec<u8>) {
        let (mut login, _, _) = first();
        let mut more = answer(0, None, 0);
        more.flags |= flag::CONTINUE;
        login.handle_response(&more, &PAIRS[..cut]).expect("more");
        let (header, sent) = login.poll_transmit().expect("a request");
        (login, header, sent)
    }

    #[test]
    fn c_bit_answered_by_empty_pdu() {
        let (_, header, sent) = first_part(7);
        assert_eq!((header.flags, sent.len()), (0, 0));
    }

    #[test]
    fn pair_split_at_every_byte() {
        for cut in 0..=PAIRS.len() {
            let (mut login, _, _) = first_part(cut);
            // Only a request with T may be answered with T.
            login
                .handle_response(&answer(0, None, 1), &PAIRS[cut..])
                .expect("rest");
            let (header, _) = login.poll_transmit().expect("transit");
            assert_eq!(header.flags, 0x81);
            login
                .handle_response(&answer(0, Some(1), 2), b"")
                .expect("transit");
            assert_eq!(login.portal_group, Some(513));
        }
    }

    #[test]
    fn login_pdu_limit_8192() {
        let long = "x".repeat(20_000);
        let mut login = Login::new(config());
        login.outgoing = format!("X-long={long}\0").into_bytes();
        let (mut sent, mut parts) = (Vec::new(), 0);
        loop {
            let (header, text) = login.poll_transmit().expect("part");
            assert!(text.len() <= 8192);
            sent.extend(text);
            let more = header.flags & flag::CONTINUE != 0;
            assert!(!(more && header.flags & flag::FINAL != 0));
            if !more {
                break;
            }
            login
                .handle_response(&answer(0, None, parts), b"")
                .expect("nod");
            parts += 1;
        }
        assert_eq!((sent.len(), parts), (20_008, 2));
    }

    fn fails(response: &LoginResponse, text: &[u8]) -> LoginFailure {
        let (mut login, _, _) = first();
        login
            .handle_response(response, text)
            .expect_err("must fail")
    }

    #[test]
    fn illegal_stage_transition_closes() {
        fails(&answer(0, Some(3), 0), b"");
        fails(&answer(0, Some(0), 0), b"");
        fails(&answer(1, Some(3), 0), b"");
        let mut foreign = answer(0, Some(1), 0);
        foreign.task_tag = U32::new(1);
        fails(&foreign, b"");
        let mut isid = answer(0, Some(1), 0);
        isid.isid[5] = 0;
        fails(&isid, b"");
        let (mut login, _, _) = first();
        login
            .handle_response(&answer(0, None, 0), b"")
            .expect("T=0");
        login.poll_transmit().expect("again");
        assert!(
            login.handle_response(&answer(0, Some(1), 7), b"").is_err(),
            "StatSN gap"
        );
    }

    fn refused(class: u8, detail: u8) -> LoginResponse {
        LoginResponse {
            status_class: class,
            status_detail: detail,
            stat_sn: U32::new(99),
            ..answer(0, None, 0)
        }
    }

    #[test]
    fn status_detail_unknown_uses_class() {
        for detail in [0x0c, 0x77, 0xff] {
            let initiator = fails(&refused(2, detail), b"");
            assert!(!initiator.is_temporary() && initiator.is_refusal());
            assert!(fails(&refused(3, detail), b"").is_temporary());
            let moved = fails(&refused(1, detail), b"TargetAddress=10.0.0.9\0");
            assert!(matches!(
                moved,
                LoginFailure::Redirect {
                    permanent: false,
                    ..
                }
            ));
        }
        let unknown = fails(&refused(9, 0), b"");
        assert!(!unknown.is_temporary() && unknown.is_refusal());
    }

    #[test]
    fn nonzero_status_closes_and_ignores_counters() {
        let failure = fails(&refused(2, 3), b"");
        assert_eq!(failure.to_string(), "target not found (0203)");
        assert!(!failure.is_temporary() && failure.is_refusal());
        let moved = fails(&refused(1, 2), b"TargetAddress=10.0.0.9:3261\0");
        let address = "10.0.0.9:3261".to_owned();
        assert_eq!(
            moved,
            LoginFailure::Redirect {
                address,
                permanent: true
            }
        );
        assert!(matches!(fails(&refused(1, 1), b""), LoginFailure::Rule(_)));
    }

    #[test]
    fn unknown_key_answered_notunderstood() {
        let (mut login, _, _) = first();
        let text = b"X-com.example.what=1\0Zebra=2\0";
        login
            .handle_response(&answer(0, None, 0), text)
            .expect("unknown keys");
        let (_, text) = login.poll_transmit().expect("answer");
        assert_eq!(
            text,
            b"X-com.example.what=NotUnderstood\0Zebra=NotUnderstood\0"
        );
    }

    /// §6.2: what RFC 7143 defines is understood; where a target has no business to send it, it is
    /// refused.
    #[test]
    fn known_key_out_of_place_answered_reject() {
        let (mut login, _, _) = first();
        let text = b"SessionType=Normal\0InitiatorAlias=a\0SendTargets=All\0";
        login
            .handle_response(&answer(0, None, 0), text)
            .expect("refused, not fatal");
        let (_, text) = login.poll_transmit().expect("answer");
        assert_eq!(
            text,
            b"SessionType=Reject\0InitiatorAlias=Reject\0SendTargets=Reject\0"
        );
    }

    #[test]
    fn duplicate_key_from_target_drops_connection() {
        let text = b"TargetPortalGroupTag=1\0TargetPortalGroupTag=1\0";
        assert!(matches!(
            fails(&answer(0, Some(1), 0), text),
            LoginFailure::Key(_)
        ));
        let (mut login, _, _) = first();
        let text = b"TargetAddress=10.0.0.1\0TargetAddress=10.0.0.2\0";
        assert!(login.handle_response(&answer(0, Some(1), 0), text).is_ok());
    }

    #[test]
    fn chap_is_not_skipped() {
        let secret = chap::Secret::new("twelve bytes").expect("secret");
        let chap = ChapConfig::new("u", secret, None, &[]).expect("chap");
        let mut login = Login::new(LoginConfig {
            chap: Some(chap),
            ..config()
        });
        let (header, text) = login.poll_transmit().expect("first");
        assert_eq!(header.flags, 0);
        assert!(text.ends_with(b"AuthMethod=CHAP\0"));
        let skipped = login.handle_response(&answer(0, None, 0), b"");
        assert_eq!(skipped.err(), Some(LoginFailure::Chap(ChapError::Skipped)));
    }

    #[test]
    fn endless_login_is_bounded() {
        let (mut login, _, _) = first();
        for round in 0.. {
            match login.handle_response(&answer(0, None, round), b"") {
                Ok(_) => assert!(login.poll_transmit().is_some()),
                Err(failure) => {
                    assert_eq!(failure, LoginFailure::Rule("login without end"));
                    assert_eq!(round, ROUNDS_MAX);
                    break;
                }
            }
        }
    }
}
