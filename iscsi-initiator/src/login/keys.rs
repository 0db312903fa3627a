//! Operational keys: what we offer, what the target may answer, what results (RFC 7143 §13).
//!
//! A table holds one negotiation. A key is unset, proposed by us, or done; each is negotiated
//! at most once. Every answer is checked against the key's result function, and nothing takes
//! effect before the end of the login: a negotiation that breaks changes nothing.

use crate::text::{parse_number, TextBuilder};
use thiserror::Error;

/// Whether a digest is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DigestWish {
    /// Never.
    #[default]
    None,
    /// Always: a login without it fails.
    Crc32c,
    /// If the target can.
    PreferCrc32c,
    /// Only if the target insists.
    PreferNone,
}

impl DigestWish {
    /// By its name in the config: `none`, `crc32c`, `prefer-crc32c`, `prefer-none`.
    pub fn from_name(name: &str) -> Option<DigestWish> {
        match name {
            "none" => Some(DigestWish::None),
            "crc32c" => Some(DigestWish::Crc32c),
            "prefer-crc32c" => Some(DigestWish::PreferCrc32c),
            "prefer-none" => Some(DigestWish::PreferNone),
            _ => None,
        }
    }

    fn list(self) -> &'static str {
        match self {
            DigestWish::None => "None",
            DigestWish::Crc32c => "CRC32C",
            DigestWish::PreferCrc32c => "CRC32C,None",
            DigestWish::PreferNone => "None,CRC32C",
        }
    }
}

/// What we propose. The defaults suit a multipath initiator with page-aligned buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Header digest.
    pub header_digest: DigestWish,
    /// Data digest.
    pub data_digest: DigestWish,
    /// InitialR2T: `false` asks for unsolicited data.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// Largest data segment we take, in bytes (512–16777215).
    pub max_recv_data_segment: u32,
    /// MaxBurstLength, in bytes (512–16777215).
    pub max_burst: u32,
    /// FirstBurstLength, in bytes (512–16777215).
    pub first_burst: u32,
    /// MaxOutstandingR2T (1–65535).
    pub max_outstanding_r2t: u32,
    /// DataPDUInOrder; `false` accepts Data-In in any order within a sequence.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder; `false` accepts sequences in any order.
    pub data_sequence_in_order: bool,
    /// TaskReporting=FastAbort: after a task management function of many tasks no more data are
    /// sent for them. It buys nothing for an initiator that resets a unit only to fence.
    pub fast_abort: bool,
}

impl Default for Offer {
    fn default() -> Offer {
        Offer {
            header_digest: DigestWish::None,
            data_digest: DigestWish::None,
            initial_r2t: false,
            immediate_data: true,
            max_recv_data_segment: 262_144,
            max_burst: 16_776_192,
            first_burst: 262_144,
            max_outstanding_r2t: 8,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            fast_abort: false,
        }
    }
}

/// What holds after login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Every PDU has a header digest.
    pub header_digest: bool,
    /// Every data segment has a digest.
    pub data_digest: bool,
    /// No unsolicited Data-Out.
    pub initial_r2t: bool,
    /// Immediate data are allowed.
    pub immediate_data: bool,
    /// Largest data segment the target takes, in bytes.
    pub max_send_data_segment: u32,
    /// Largest data segment we take, in bytes.
    pub max_recv_data_segment: u32,
    /// Largest sequence, in bytes.
    pub max_burst: u32,
    /// Largest unsolicited amount of one command, in bytes.
    pub first_burst: u32,
    /// R2Ts of one task at a time.
    pub max_outstanding_r2t: u32,
    /// Data PDUs of a sequence come in order.
    pub data_pdu_in_order: bool,
    /// Sequences come in order.
    pub data_sequence_in_order: bool,
    /// TaskReporting is FastAbort.
    pub fast_abort: bool,
    /// DefaultTime2Wait, in seconds.
    pub time2wait: u32,
    /// DefaultTime2Retain, in seconds.
    pub time2retain: u32,
}

impl Default for Params {
    /// The defaults of RFC 7143 §13.
    fn default() -> Params {
        Params {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            max_send_data_segment: 8192,
            max_recv_data_segment: 8192,
            max_burst: 262_144,
            first_burst: 65_536,
            max_outstanding_r2t: 1,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            fast_abort: false,
            time2wait: 2,
            time2retain: 20,
        }
    }
}

/// A negotiation that broke.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// A key came twice.
    #[error("{0} negotiated twice")]
    Twice(String),
    /// An answer that the result function does not allow, or outside the range.
    #[error("{key}={value} is no legal answer")]
    Illegal {
        /// The key.
        key: &'static str,
        /// The answer, cut.
        value: String,
    },
    /// A digest that was demanded is not granted.
    #[error("target does not grant {0}=CRC32C, which is demanded")]
    DigestRefused(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// First of the proposer's list that the responder supports.
    Digest,
    /// List of task reporting modes.
    Reporting,
    /// Smaller number.
    Min,
    /// Larger number.
    Max,
    /// Yes only if both say so.
    And,
    /// Yes if one says so.
    Or,
    /// Each side declares its own.
    Declared,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    HeaderDigest,
    DataDigest,
    MaxConnections,
    InitialR2T,
    ImmediateData,
    MaxRecvDataSegmentLength,
    MaxBurstLength,
    FirstBurstLength,
    DefaultTime2Wait,
    DefaultTime2Retain,
    MaxOutstandingR2T,
    DataPDUInOrder,
    DataSequenceInOrder,
    ErrorRecoveryLevel,
    TaskReporting,
    ProtocolLevel,
}

struct Spec {
    key: Key,
    name: &'static str,
    rule: Rule,
    range: std::ops::RangeInclusive<u64>,
    in_discovery: bool,
}

const fn spec(key: Key, name: &'static str, rule: Rule, low: u64, high: u64, disc: bool) -> Spec {
    Spec {
        key,
        name,
        rule,
        range: low..=high,
        in_discovery: disc,
    }
}

const SEGMENT_MAX: u64 = 16_777_215;
/// RFC 7143 §13, in the order in which we send them.
const SPECS: [Spec; 16] = [
    spec(Key::HeaderDigest, "HeaderDigest", Rule::Digest, 0, 0, true),
    spec(Key::DataDigest, "DataDigest", Rule::Digest, 0, 0, true),
    spec(
        Key::MaxConnections,
        "MaxConnections",
        Rule::Min,
        1,
        65_535,
        false,
    ),
    spec(Key::InitialR2T, "InitialR2T", Rule::Or, 0, 1, false),
    spec(Key::ImmediateData, "ImmediateData", Rule::And, 0, 1, false),
    spec(
        Key::MaxRecvDataSegmentLength,
        "MaxRecvDataSegmentLength",
        Rule::Declared,
        512,
        SEGMENT_MAX,
        true,
    ),
    spec(
        Key::MaxBurstLength,
        "MaxBurstLength",
        Rule::Min,
        512,
        SEGMENT_MAX,
        false,
    ),
    spec(
        Key::FirstBurstLength,
        "FirstBurstLength",
        Rule::Min,
        512,
        SEGMENT_MAX,
        false,
    ),
    spec(
        Key::DefaultTime2Wait,
        "DefaultTime2Wait",
        Rule::Max,
        0,
        3600,
        true,
    ),
    spec(
        Key::DefaultTime2Retain,
        "DefaultTime2Retain",
        Rule::Min,
        0,
        3600,
        true,
    ),
    spec(
        Key::MaxOutstandingR2T,
        "MaxOutstandingR2T",
        Rule::Min,
        1,
        65_535,
        false,
    ),
    spec(Key::DataPDUInOrder, "DataPDUInOrder", Rule::Or, 0, 1, false),
    spec(
        Key::DataSequenceInOrder,
        "DataSequenceInOrder",
        Rule::Or,
        0,
        1,
        false,
    ),
    spec(
        Key::ErrorRecoveryLevel,
        "ErrorRecoveryLevel",
        Rule::Min,
        0,
        2,
        true,
    ),
    spec(
        Key::TaskReporting,
        "TaskReporting",
        Rule::Reporting,
        0,
        0,
        false,
    ),
    spec(
        Key::ProtocolLevel,
        "iSCSIProtocolLevel",
        Rule::Min,
        0,
        31,
        false,
    ),
];

/// Keys that RFC 3720 had and RFC 7143 took away (§13.25), with the answer due.
const MARKERS: [(&str, &str); 4] = [
    ("IFMarker", "No"),
    ("OFMarker", "No"),
    ("IFMarkInt", "Reject"),
    ("OFMarkInt", "Reject"),
];

/// Keys of RFC 7143 §13 that are not negotiated in the operational stage.
const OTHERS: [&str; 11] = [
    "AuthMethod",
    "SendTargets",
    "TargetName",
    "InitiatorName",
    "TargetAlias",
    "InitiatorAlias",
    "TargetAddress",
    "TargetPortalGroupTag",
    "SessionType",
    "X#NodeArchitecture",
    "iSCSIProtocolLevel",
];

/// Whether RFC 7143 defines `key`: NotUnderstood, the answer to a key that one does not know, would be
/// a protocol error (§6.2); what does not belong where it came is rejected.
pub(crate) fn is_known(key: &str) -> bool {
    KeyTable::is_operational(key) || OTHERS.contains(&key) || key.starts_with("CHAP_")
}

/// What TaskReporting proposes; RFC 7143 §13.23 wants the last two in every offer.
const REPORTING: &str = "ResponseFence,RFC3720";
const REPORTING_FAST: &str = "FastAbort,ResponseFence,RFC3720";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Unset,
    Proposed,
    Done,
}

/// One negotiation of operational keys.
#[derive(Debug)]
pub(super) struct KeyTable {
    offer: Offer,
    discovery: bool,
    states: [State; SPECS.len()],
    markers: [State; MARKERS.len()],
    params: Params,
}

impl KeyTable {
    pub(super) fn new(offer: Offer, discovery: bool) -> KeyTable {
        KeyTable {
            offer,
            discovery,
            states: [State::Unset; SPECS.len()],
            markers: [State::Unset; MARKERS.len()],
            params: Params::default(),
        }
    }

    /// Whether `key` belongs to the operational stage.
    pub(super) fn is_operational(key: &str) -> bool {
        SPECS.iter().any(|spec| spec.name == key) || MARKERS.iter().any(|(name, _)| *name == key)
    }

    /// Appends every key that is still unset: our whole offer in one request.
    pub(super) fn propose(&mut self, text: &mut TextBuilder) {
        for (spec, state) in SPECS.iter().zip(&mut self.states) {
            // The level stays at 1 (RFC 7143), which is what no proposal means.
            if *state == State::Unset
                && spec.key != Key::ProtocolLevel
                && (spec.in_discovery || !self.discovery)
            {
                text.push(spec.name, &self.offer.value(spec.key));
                *state = State::Proposed;
            }
        }
    }

    /// Takes a pair from the target: an answer, or a proposal of its own, to which the answer is
    /// appended to `reply`. `false` if the key is not one of ours.
    pub(super) fn take(
        &mut self,
        key: &str,
        value: &str,
        reply: &mut TextBuilder,
    ) -> Result<bool, KeyError> {
        if let Some(at) = MARKERS.iter().position(|(name, _)| *name == key) {
            if self.markers[at] == State::Done {
                return Err(KeyError::Twice(key.to_owned()));
            }
            self.markers[at] = State::Done;
            reply.push(key, MARKERS[at].1);
            return Ok(true);
        }
        let Some(at) = SPECS.iter().position(|spec| spec.name == key) else {
            return Ok(false);
        };
        let spec = &SPECS[at];
        let declared = spec.rule == Rule::Declared;
        match self.states[at] {
            State::Done => return Err(KeyError::Twice(key.to_owned())),
            State::Proposed => self.answer(spec, value)?,
            State::Unset => {
                let ours = self.respond(spec, value)?;
                if !declared {
                    reply.push(spec.name, &ours);
                }
            }
        }
        self.states[at] = State::Done;
        Ok(true)
    }

    /// What was negotiated. Keys we proposed and the target never answered stay at the safer of
    /// what we offered and the default.
    pub(super) fn finish(&self) -> Result<Params, KeyError> {
        let mut params = self.params;
        let done = |key: Key| {
            SPECS
                .iter()
                .zip(&self.states)
                .any(|(s, state)| s.key == key && *state == State::Done)
        };
        for (key, wish, granted) in [
            (
                "HeaderDigest",
                self.offer.header_digest,
                params.header_digest,
            ),
            ("DataDigest", self.offer.data_digest, params.data_digest),
        ] {
            if wish == DigestWish::Crc32c && !granted {
                return Err(KeyError::DigestRefused(key));
            }
        }
        if !done(Key::ImmediateData) {
            params.immediate_data = false;
        }
        if !done(Key::MaxBurstLength) {
            params.max_burst = params.max_burst.min(self.offer.max_burst);
        }
        if !done(Key::FirstBurstLength) {
            params.first_burst = params.first_burst.min(self.offer.first_burst);
        }
        // RFC 7143 §13.14; a target that answers otherwise gets the smaller.
        params.first_burst = params.first_burst.min(params.max_burst);
        params.max_recv_data_segment = self.offer.max_recv_data_segment;
        Ok(params)
    }

    /// The target answers our proposal.
    fn answer(&mut self, spec: &Spec, value: &str) -> Result<(), KeyError> {
        let illegal = || KeyError::Illegal {
            key: spec.name,
            value: format!("{value:.32}"),
        };
        match value {
            // The value stays at its default; `finish` knows whether that will do.
            "Reject" | "Irrelevant" => return Ok(()),
            // tgt and istgt answer so to the newer keys; for the others it is a protocol error.
            "NotUnderstood" if spec.rule == Rule::Reporting => return Ok(()),
            "NotUnderstood" => return Err(illegal()),
            _ => {}
        }
        let ours = self.offer.value(spec.key);
        let ours_number = parse_number(&ours).unwrap_or(0);
        match spec.rule {
            Rule::Digest => {
                if !ours.split(',').any(|offered| offered == value) {
                    // tgt answers None to a lone CRC32C.
                    let demanded = ours == "CRC32C" && value == "None";
                    return Err(if demanded {
                        KeyError::DigestRefused(spec.name)
                    } else {
                        illegal()
                    });
                }
                self.store(spec.key, u64::from(value == "CRC32C"));
            }
            Rule::Reporting => {
                if !value
                    .split(',')
                    .all(|mode| ours.split(',').any(|m| m == mode))
                {
                    return Err(illegal());
                }
                self.store(spec.key, u64::from(value == "FastAbort"));
            }
            Rule::Min | Rule::Max | Rule::Declared => {
                let number = parse_number(value).ok_or_else(illegal)?;
                let legal = match spec.rule {
                    Rule::Min => number <= ours_number,
                    Rule::Max => number >= ours_number,
                    _ => true,
                };
                if !spec.range.contains(&number) || !legal {
                    return Err(illegal());
                }
                self.store(spec.key, number);
            }
            Rule::And | Rule::Or => {
                let theirs = boolean(value).ok_or_else(illegal)?;
                let decided = ours == if spec.rule == Rule::And { "No" } else { "Yes" };
                if decided && boolean(&ours) != Some(theirs) {
                    return Err(illegal());
                }
                self.store(spec.key, u64::from(theirs));
            }
        }
        Ok(())
    }

    /// The target proposes before we did: stores the result and returns our answer.
    fn respond(&mut self, spec: &Spec, value: &str) -> Result<String, KeyError> {
        let illegal = || KeyError::Illegal {
            key: spec.name,
            value: format!("{value:.32}"),
        };
        let ours = self.offer.value(spec.key);
        match spec.rule {
            Rule::Digest => {
                let pick = value
                    .split(',')
                    .find(|theirs| ours.split(',').any(|o| o == *theirs));
                let Some(pick) = pick else {
                    return Ok("Reject".to_owned());
                };
                self.store(spec.key, u64::from(pick == "CRC32C"));
                Ok(pick.to_owned())
            }
            Rule::Reporting => Ok("RFC3720".to_owned()),
            Rule::Min | Rule::Max | Rule::Declared => {
                let number = parse_number(value).filter(|n| spec.range.contains(n));
                let number = number.ok_or_else(illegal)?;
                let ours = parse_number(&ours).unwrap_or(0);
                let result = match spec.rule {
                    Rule::Min => number.min(ours),
                    Rule::Max => number.max(ours),
                    _ => number,
                };
                self.store(spec.key, result);
                Ok(result.to_string())
            }
            Rule::And | Rule::Or => {
                let theirs = boolean(value).ok_or_else(illegal)?;
                let mine = ours == "Yes";
                let result = if spec.rule == Rule::And {
                    theirs && mine
                } else {
                    theirs || mine
                };
                self.store(spec.key, u64::from(result));
                Ok(yes_no(result).to_owned())
            }
        }
    }

    fn store(&mut self, key: Key, value: u64) {
        // Ranges were checked; every one fits 32 bits.
        let number = value as u32;
        let params = &mut self.params;
        match key {
            Key::HeaderDigest => params.header_digest = value == 1,
            Key::DataDigest => params.data_digest = value == 1,
            Key::InitialR2T => params.initial_r2t = value == 1,
            Key::ImmediateData => params.immediate_data = value == 1,
            Key::MaxRecvDataSegmentLength => params.max_send_data_segment = number,
            Key::MaxBurstLength => params.max_burst = number,
            Key::FirstBurstLength => params.first_burst = number,
            Key::DefaultTime2Wait => params.time2wait = number,
            Key::DefaultTime2Retain => params.time2retain = number,
            Key::MaxOutstandingR2T => params.max_outstanding_r2t = number,
            Key::DataPDUInOrder => params.data_pdu_in_order = value == 1,
            Key::DataSequenceInOrder => params.data_sequence_in_order = value == 1,
            Key::TaskReporting => params.fast_abort = value == 1,
            // Our offers leave one legal result: one connection, level 0.
            Key::MaxConnections | Key::ErrorRecoveryLevel | Key::ProtocolLevel => {}
        }
    }
}

impl Offer {
    fn value(&self, key: Key) -> String {
        match key {
            Key::HeaderDigest => self.header_digest.list().to_owned(),
            Key::DataDigest => self.data_digest.list().to_owned(),
            Key::MaxConnections | Key::ProtocolLevel => "1".to_owned(),
            Key::InitialR2T => yes_no(self.initial_r2t).to_owned(),
            Key::ImmediateData => yes_no(self.immediate_data).to_owned(),
            Key::MaxRecvDataSegmentLength => self.max_recv_data_segment.to_string(),
            Key::MaxBurstLength => self.max_burst.to_string(),
            Key::FirstBurstLength => self.first_burst.min(self.max_burst).to_string(),
            Key::DefaultTime2Wait | Key::DefaultTime2Retain | Key::ErrorRecoveryLevel => {
                "0".to_owned()
            }
            Key::MaxOutstandingR2T => self.max_outstanding_r2t.to_string(),
            Key::DataPDUInOrder => yes_no(self.data_pdu_in_order).to_owned(),
            Key::DataSequenceInOrder => yes_no(self.data_sequence_in_order).to_owned(),
            Key::TaskReporting if self.fast_abort => REPORTING_FAST.to_owned(),
            Key::TaskReporting => REPORTING.to_owned(),
        }
    }
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

fn yes_no(value: bool) -> &'static str {
    if value {
        "Yes"
    } else {
        "No"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(offer: Offer, answers: &[(&str, &str)]) -> Result<Params, KeyError> {
        let mut table = KeyTable::new(offer, false);
        table.propose(&mut TextBuilder::default());
        for (key, value) in answers {
            assert!(
                table.take(key, value, &mut TextBuilder::default())?,
                "{key}"
            );
        }
        table.finish()
    }

    fn one(key: &str, value: &str) -> Result<Params, KeyError> {
        negotiate(Offer::default(), &[(key, value)])
    }

    #[test]
    fn numeric_answer_outside_result_function_fails() {
        for (key, good, bad) in [
            ("MaxConnections", "1", "2"),
            ("MaxBurstLength", "512", "16776193"),
            ("FirstBurstLength", "262144", "262145"),
            ("DefaultTime2Wait", "3600", "3601"),
            ("DefaultTime2Retain", "0", "1"),
            ("MaxOutstandingR2T", "8", "9"),
            ("ErrorRecoveryLevel", "0", "1"),
            ("MaxRecvDataSegmentLength", "512", "511"),
            ("MaxRecvDataSegmentLength", "16777215", "16777216"),
            ("MaxBurstLength", "0x200", "many"),
        ] {
            assert!(one(key, good).is_ok(), "{key}={good}");
            assert!(
                matches!(one(key, bad), Err(KeyError::Illegal { .. })),
                "{key}={bad}"
            );
        }
    }

    #[test]
    fn bool_answer_optional_cases() {
        let params = one("InitialR2T", "No").expect("legal");
        assert!(!params.initial_r2t && !params.immediate_data);
        let decided = Offer {
            immediate_data: false,
            initial_r2t: true,
            ..Offer::default()
        };
        let params = negotiate(decided.clone(), &[]).expect("decided by the proposal");
        assert!(params.initial_r2t && !params.immediate_data);
        assert!(negotiate(decided.clone(), &[("ImmediateData", "Yes")]).is_err());
        assert!(negotiate(decided, &[("InitialR2T", "No")]).is_err());
    }

    #[test]
    fn list_answer_not_offered_is_protocol_error() {
        let demand = Offer {
            header_digest: DigestWish::Crc32c,
            ..Offer::default()
        };
        let refused = Err(KeyError::DigestRefused("HeaderDigest"));
        assert_eq!(
            negotiate(demand.clone(), &[("HeaderDigest", "None")]),
            refused
        );
        assert_eq!(
            negotiate(demand.clone(), &[("HeaderDigest", "Reject")]),
            refused
        );
        assert_eq!(negotiate(demand.clone(), &[]), refused);
        assert!(
            negotiate(demand, &[("HeaderDigest", "CRC32C")])
                .expect("legal")
                .header_digest
        );
        assert!(matches!(
            one("DataDigest", "CRC32C"),
            Err(KeyError::Illegal { .. })
        ));
    }

    #[test]
    fn duplicate_key_from_target_drops_connection() {
        let twice = [("MaxBurstLength", "512"), ("MaxBurstLength", "512")];
        assert_eq!(
            negotiate(Offer::default(), &twice),
            Err(KeyError::Twice("MaxBurstLength".into()))
        );
    }

    #[test]
    fn irrelevant_firstburst_handled() {
        let answers = [
            ("InitialR2T", "Yes"),
            ("ImmediateData", "No"),
            ("FirstBurstLength", "Irrelevant"),
        ];
        let params = negotiate(Offer::default(), &answers).expect("legal");
        assert_eq!(params.first_burst, 65_536);
    }

    #[test]
    fn reject_keeps_default() {
        let defaults = Params::default();
        let rejected = |key| one(key, "Reject").expect("legal");
        let bursts = rejected("MaxBurstLength");
        assert_eq!(bursts.max_burst, defaults.max_burst);
        let bursts = rejected("FirstBurstLength");
        assert_eq!(bursts.first_burst, defaults.first_burst);
        assert!(rejected("InitialR2T").initial_r2t);
        let r2ts = rejected("MaxOutstandingR2T");
        assert_eq!(r2ts.max_outstanding_r2t, defaults.max_outstanding_r2t);
        assert!(!rejected("HeaderDigest").header_digest);
    }

    #[test]
    fn firstburst_not_above_maxburst() {
        let params = one("MaxBurstLength", "1024").expect("legal");
        assert_eq!((params.first_burst, params.max_burst), (1024, 1024));
    }

    #[test]
    fn newer_keys_may_be_unknown_others_not() {
        assert!(one("TaskReporting", "NotUnderstood").is_ok());
        assert!(one("TaskReporting", "FastAbort").is_err());
        assert!(one("MaxBurstLength", "NotUnderstood").is_err());
    }

    #[test]
    fn markers_and_proposals_of_the_target_are_answered() {
        let mut table = KeyTable::new(Offer::default(), false);
        let mut reply = TextBuilder::default();
        for (key, value) in [
            ("IFMarker", "Yes"),
            ("OFMarkInt", "2048"),
            ("MaxBurstLength", "8192"),
            ("DefaultTime2Wait", "2"),
            ("HeaderDigest", "CRC32C,None"),
            ("ImmediateData", "No"),
            ("MaxRecvDataSegmentLength", "65536"),
            ("iSCSIProtocolLevel", "2"),
        ] {
            assert_eq!(table.take(key, value, &mut reply), Ok(true), "{key}");
        }
        assert_eq!(table.take("X-com.example", "1", &mut reply), Ok(false));
        assert_eq!(
            reply.into_bytes(),
            b"IFMarker=No\0OFMarkInt=Reject\0MaxBurstLength=8192\0DefaultTime2Wait=2\0\
              HeaderDigest=None\0ImmediateData=No\0iSCSIProtocolLevel=1\0"
        );
        let mut offer = TextBuilder::default();
        table.propose(&mut offer);
        let offer = String::from_utf8(offer.into_bytes()).expect("text");
        assert!(!offer.contains("MaxBurstLength=") && offer.contains("FirstBurstLength="));
        assert_eq!(table.finish().expect("legal").max_send_data_segment, 65_536);
    }

    #[test]
    fn reserved_values_never_proposed() {
        for discovery in [false, true] {
            let mut text = TextBuilder::default();
            KeyTable::new(Offer::default(), discovery).propose(&mut text);
            let text = String::from_utf8(text.into_bytes()).expect("text");
            for reserved in ["NotUnderstood", "Irrelevant", "Reject"] {
                assert!(!text.contains(reserved), "{text}");
            }
        }
    }

    #[test]
    fn taskreporting_offer_holds_rfc3720_and_responsefence() {
        let mut text = TextBuilder::default();
        KeyTable::new(Offer::default(), false).propose(&mut text);
        let text = String::from_utf8(text.into_bytes()).expect("text");
        assert!(text.contains("TaskReporting=ResponseFence,RFC3720\0"));
        let mut text = TextBuilder::default();
        KeyTable::new(Offer::default(), true).propose(&mut text);
        let text = String::from_utf8(text.into_bytes()).expect("text");
        assert!(!text.contains("TaskReporting") && text.contains("ErrorRecoveryLevel=0\0"));
    }
}
