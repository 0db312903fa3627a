//! Every decoder, and the session as a whole, under random and mutated input: no panic, no hang,
//! every task ends once. A million executions a parser; of the state machines as many as `FUZZ_RUNS` says,
//! which the step `fuzz` of test.sh sets to a million as well. What counts is what reaches the code under test.

mod link;
mod peer;

use blockdev::path::{Control, LoginAs, PathSession};
use blockdev::{alua, reserve, Pool};
use iscsi_initiator::discover::parse_targets;
use iscsi_initiator::login::chap::{ChapConfig, Secret};
use iscsi_initiator::login::keys::{DigestWish, Offer};
use iscsi_initiator::login::{Login, Step};
use iscsi_initiator::name::{check_name, Portal};
use iscsi_initiator::pdu::header::{LoginRequest, LoginResponse};
use iscsi_initiator::pdu::{opcode, split_sense, Response};
use iscsi_initiator::scsi::{sense, unit};
use iscsi_initiator::session::{Event, Function};
use iscsi_initiator::text;
use peer::{config, Peer, LUN};
use std::collections::BTreeMap;
use std::time::Duration;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// Executions of a parser.
const RUNS: u64 = 1_000_000;

/// Executions of what is a state machine: `FUZZ_RUNS`, or fewer for a quick look.
fn runs() -> u64 {
    let asked = std::env::var("FUZZ_RUNS").ok();
    asked.and_then(|runs| runs.parse().ok()).unwrap_or(100_000)
}

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_be_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Random bytes, or `good` with some of them changed, or cut.
    fn input<'a>(&mut self, good: &[u8], space: &'a mut [u8; 256]) -> &'a [u8] {
        let len = match self.below(3) {
            0 => {
                let len = self.below(space.len() + 1);
                self.fill(&mut space[..len]);
                len
            }
            kind => {
                let len = good.len().min(space.len());
                space[..len].copy_from_slice(&good[..len]);
                for _ in 0..self.below(6) {
                    if len > 0 {
                        space[self.below(len)] = self.next() as u8;
                    }
                }
                if kind == 1 {
                    len
                } else {
                    self.below(len + 1)
                }
            }
        };
        &space[..len]
    }
}

fn fuzz(seed: u64, good: &[u8], parse: impl Fn(&[u8])) {
    let mut dice = Dice(seed);
    let mut space = [0; 256];
    for _ in 0..RUNS {
        parse(dice.input(good, &mut space));
    }
}

#[test]
fn fuzz_every_parser_headers() {
    const OPCODES: [u8; 10] = [0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3f];
    let mut dice = Dice(1);
    let mut good = 0;
    for run in 0..RUNS {
        let mut header = [0; 48];
        if run % 2 == 0 {
            dice.fill(&mut header);
        }
        if run % 8 < 7 {
            header[0] = OPCODES[dice.below(OPCODES.len())];
            header[1] |= 0x80;
            header[4] = 0;
        }
        for _ in 0..dice.below(4) {
            header[dice.below(48)] = dice.next() as u8;
        }
        if let Ok(pdu) = Response::parse(&header) {
            good += 1;
            assert!(pdu.generic().data_len.get() < 1 << 24);
        }
    }
    assert!(good > RUNS / 8, "only {good} were well-formed");
}

/// As [`fuzz`], with text: every input reaches the parser.
fn fuzz_text(seed: u64, good: &str, parse: impl Fn(&str)) {
    let mut dice = Dice(seed);
    let mut space = [0; 256];
    for _ in 0..RUNS {
        let len = dice.input(good.as_bytes(), &mut space).len();
        space[..len].iter_mut().for_each(|byte| *byte &= 0x7f);
        parse(std::str::from_utf8(&space[..len]).expect("ASCII"));
    }
}

#[test]
fn fuzz_every_parser_text_pairs_and_values() {
    fuzz(
        2,
        b"TargetAddress=10.0.0.1:3260,1\0CHAP_C=0x0102\0MaxBurstLength=262144\0",
        |input| {
            if let Ok(pairs) = text::parse_pairs(input) {
                assert!(pairs.len() <= input.len());
            }
        },
    );
    for (seed, good) in [(3, "0bQUJDREVGR0g="), (14, "0x0102030405060708")] {
        fuzz_text(seed, good, |value| {
            let _ = text::parse_number(value);
            assert!(text::parse_binary(value, 16).is_none_or(|bytes| bytes.len() <= 16));
            assert!(text::parse_binary(value, 1024).is_none_or(|bytes| bytes.len() <= 256));
        });
    }
    fuzz_text(15, "iqn.2024-12.tp2.b3:data-chunk1", |value| {
        let _ = check_name(value);
    });
    fuzz_text(16, "[fd00::1]:3260", |value| {
        let _ = value.parse::<Portal>();
    });
}

#[test]
fn fuzz_every_parser_target_lists() {
    let asked = "10.0.0.1".parse().expect("portal");
    fuzz(
        4,
        b"TargetName=iqn.a\0TargetAddress=[fd00::1]:3260,1\0TargetName=iqn.b\0",
        |input| {
            let _ = parse_targets(input, asked);
        },
    );
}

#[test]
fn fuzz_every_parser_sense_data() {
    fuzz(
        5,
        &[
            0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2,
        ],
        |input| {
            let (first, rest) = split_sense(input);
            assert!(first.len() + rest.len() <= input.len());
            let _ = (sense::parse(first), sense::parse(input));
        },
    );
}

#[test]
fn fuzz_every_parser_inquiry_and_vpd() {
    let mut good = vec![0, 0x83, 0, 60, 1, 3, 0, 16, 0x60];
    good.resize(64, 7);
    fuzz(6, &good, |input| {
        let _ = (
            unit::inquiry(input),
            unit::designators(input),
            unit::supported_pages(input),
        );
        let _ = (unit::serial_number(input), unit::rotation_rate(input));
    });
    let mut limits = vec![0, 0xb0, 0, 60];
    limits.resize(64, 1);
    fuzz(7, &limits, |input| {
        let _ = (unit::block_limits(input), unit::provisioning(input));
    });
}

#[test]
fn fuzz_every_parser_capacity_mode_and_luns() {
    fuzz(
        8,
        &[0, 0, 0, 0, 0, 1, 0xff, 0xff, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0],
        |input| {
            if let Some(capacity) = unit::capacity_16(input) {
                assert!(capacity
                    .blocks
                    .checked_mul(u64::from(capacity.block_bytes))
                    .is_some());
            }
            let _ = unit::capacity_10(input);
        },
    );
    fuzz(9, &[20, 0, 0x10, 0, 8, 18, 4, 0, 0, 0], |input| {
        let _ = (unit::caching_6(input), unit::caching_10(input));
    });
    fuzz(
        10,
        &[0, 0, 0, 16, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        |input| {
            assert!(unit::lun_list(input).len() <= input.len() / 8);
        },
    );
}

#[test]
fn fuzz_every_parser_reservations_and_port_groups() {
    let mut status = vec![0, 0, 0, 1, 0, 0, 0, 56, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0];
    status.extend([1, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 32, 5, 0, 0, 28]);
    status.extend(b"iqn.2024-12.a:b,i,0x8000\0\0\0\0");
    fuzz(12, &status, |input| {
        if let Some(status) = reserve::full_status(input) {
            assert!(status.registrants.len() <= input.len() / 24);
        }
        if let Some(keys) = reserve::keys(input) {
            assert!(keys.keys.len() <= input.len() / 8);
        }
        let _ = (reserve::reservation(input), reserve::capabilities(input));
    });
    let groups = [
        0, 0, 0, 16, 0x10, 60, 0, 0, 0x80, 0x0f, 0, 1, 0, 2, 0, 1, 0, 0, 0, 1,
    ];
    fuzz(13, &groups, |input| {
        if let Some(groups) = alua::port_groups(input) {
            assert!(groups.groups.len() <= input.len() / 8);
        }
    });
}

/// Keys and values that a login or a text negotiation may meet, right and wrong.
const KEYS: [&str; 24] = [
    "HeaderDigest",
    "DataDigest",
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxRecvDataSegmentLength",
    "MaxBurstLength",
    "FirstBurstLength",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "ErrorRecoveryLevel",
    "TaskReporting",
    "iSCSIProtocolLevel",
    "IFMarker",
    "OFMarkInt",
    "TargetPortalGroupTag",
    "TargetAddress",
    "SessionType",
    "CHAP_A",
    "AuthMethod",
    "X-com.example.what",
];
const VALUES: [&str; 16] = [
    "None",
    "CRC32C",
    "CRC32C,None",
    "Yes",
    "No",
    "0",
    "1",
    "512",
    "65536",
    "16777215",
    "0x1000",
    "99999999999999999999",
    "Reject",
    "NotUnderstood",
    "RFC3720",
    "FastAbort,ResponseFence",
];

fn push_pairs(dice: &mut Dice, text: &mut Vec<u8>) {
    for _ in 0..dice.below(8) {
        let (key, value) = (
            KEYS[dice.below(KEYS.len())],
            VALUES[dice.below(VALUES.len())],
        );
        text.extend(format!("{key}={value}\0").as_bytes());
    }
}

fn damage(dice: &mut Dice, bytes: &mut [u8]) {
    if !bytes.is_empty() && dice.below(4) == 0 {
        for _ in 0..1 + dice.below(3) {
            let at = dice.below(bytes.len());
            bytes[at] = dice.next() as u8;
        }
    }
}

/// Right, nearly right and wrong responses, until so many were taken in by a login in the stage that
/// `chap` leads to: KeyTable without it, ChapClient with it.
fn fuzz_login(seed: u64, has_chap: bool) {
    let mut dice = Dice(seed);
    let mut taken = 0;
    let mut ended_well = 0;
    while taken < runs() {
        let mut config = config(Offer::default()).login;
        if has_chap {
            let secret = |text: &str| Secret::new(text).expect("a secret");
            let target = ("t".to_owned(), secret("the target's secret"));
            let chap = ChapConfig::new("u", secret("our own secret"), Some(target), &[]);
            config.chap = Some(chap.expect("two secrets"));
        }
        config.entropy.fill_with(|| dice.next());
        let mut login = Login::new(config);
        for round in 0..5 {
            if login.poll_transmit().is_none() {
                break;
            }
            let (stage, next, mut text) = match (has_chap, round) {
                (false, 0) => (0, 1, b"TargetPortalGroupTag=1\0AuthMethod=None\0".to_vec()),
                (true, 0) => (0, 1, b"TargetPortalGroupTag=1\0AuthMethod=CHAP\0".to_vec()),
                (true, 1) => {
                    let algorithm = [5, 6, 7, 8, 5][dice.below(5)];
                    let mut challenge = vec![0; 1 + dice.below(40)];
                    dice.fill(&mut challenge);
                    let challenge: String =
                        challenge.iter().map(|byte| format!("{byte:02x}")).collect();
                    let text = format!(
                        "CHAP_A={algorithm}\0CHAP_I={}\0CHAP_C=0x{challenge}\0",
                        dice.below(300)
                    );
                    (0, 1, text.into_bytes())
                }
                (true, 2) => (
                    0,
                    1,
                    b"CHAP_N=t\0CHAP_R=0b0123456789abcdef012345==\0".to_vec(),
                ),
                _ => (1, 3, b"HeaderDigest=None\0MaxBurstLength=4096\0".to_vec()),
            };
            if dice.below(2) == 0 {
                push_pairs(&mut dice, &mut text);
            }
            damage(&mut dice, &mut text);
            let is_middle = has_chap && round < 2;
            let mut response = LoginResponse {
                opcode: opcode::LOGIN_RESPONSE,
                flags: LoginRequest::stage_flags(!is_middle, false, stage, next),
                isid: [0x80, 1, 2, 3, 4, 5],
                tsih: U16::new(u16::from(next == 3)),
                task_tag: U32::new(0x7fff_fffe),
                stat_sn: U32::new(100 + round),
                exp_cmd_sn: U32::new(peer::FIRST_CMD_SN),
                max_cmd_sn: U32::new(peer::FIRST_CMD_SN),
                ..LoginResponse::default()
            };
            if is_middle {
                response.flags = 0;
            }
            let mut bytes: [u8; 48] = response.as_bytes().try_into().expect("48 bytes");
            if dice.below(16) == 0 {
                bytes[dice.below(48)] = dice.next() as u8;
            }
            let response = LoginResponse::read_from_bytes(&bytes).expect("48 bytes");
            let result = login.handle_response(&response, &text);
            taken += u64::from(has_chap == (stage == 0) || round > 2);
            match result {
                Ok(Step::Continue) => {}
                Ok(Step::Done(_)) => {
                    ended_well += 1;
                    break;
                }
                Err(_) => break,
            }
        }
    }
    assert!(
        has_chap || ended_well > runs() / 100,
        "{ended_well} logins got through"
    );
}

#[test]
fn fuzz_login_keys() {
    fuzz_login(11, false);
}

#[test]
fn fuzz_login_chap() {
    fuzz_login(12, true);
}

/// The whole initiator, identification included, against a disk whose answers are changed at random:
/// a login ends by its deadline, whatever comes.
#[test]
fn fuzz_identification() {
    for seed in 0..runs() / 100 {
        let world = link::world(move |_, _, wire| async move {
            let mut dice = Dice(seed);
            link::disk_that(wire, |turn| spoil(&mut dice, turn)).await;
        });
        let deadline = world.rt.now() + Duration::from_secs(5);
        let open = world.port.open(LoginAs::Own, deadline);
        let rt = world.rt.clone();
        world.world.block_on(async move {
            let Ok(session) = open.await else { return };
            let deadline = rt.now() + Duration::from_secs(5);
            let _ = session.control(Control::Identify, deadline).await;
            assert!(rt.now() <= deadline);
            session.logout(rt.now() + Duration::from_secs(1)).await;
        });
        assert!(
            world.rt.now() <= deadline + Duration::from_secs(7),
            "seed {seed}"
        );
    }
}

fn spoil(dice: &mut Dice, turn: &mut link::Turn) {
    match dice.below(24) {
        0 => {
            let (code, key) = (0x70 + dice.below(4) as u8, dice.below(16) as u8);
            turn.check(code, key, dice.next() as u8, dice.below(16) as u8);
        }
        1 => {
            turn.status = [0x02, 0x04, 0x08, 0x18, 0x28, 0x30, 0x40][dice.below(7)];
            turn.data.clear();
        }
        2 => turn.is_dropped = dice.below(4) == 0,
        3 => turn.message = Some(link::message(dice.below(7) as u8)),
        4 | 5 if !turn.data.is_empty() => {
            let at = dice.below(turn.data.len());
            turn.data[at] = dice.next() as u8;
        }
        6 => turn.data.truncate(dice.below(turn.data.len() + 1)),
        _ => {}
    }
}

/// Sequences of well-formed and damaged PDUs to a session with work in flight. Whatever happens,
/// each task ends exactly once and nothing hangs.
#[test]
fn sessions() {
    let pool = Pool::new(64 << 20);
    let mut seed = 0;
    let mut answers = 0;
    while answers < runs() {
        seed += 1;
        let mut dice = Dice(seed);
        let (offer, keys) = negotiated(seed);
        let mut peer = Peer::with_pool(config(offer), pool.clone()).after_login(keys);
        let mut open: BTreeMap<_, u32> = BTreeMap::new();
        let mut tags: Vec<U32> = Vec::new();
        for _ in 0..40 {
            if peer.session.is_closed() {
                break;
            }
            match dice.below(16) {
                0..=2 if peer.session.is_open() => {
                    open.insert(peer.read(512 << dice.below(6)), 0);
                }
                3 | 4 if peer.session.is_open() => {
                    open.insert(peer.write(&vec![7; 512 << dice.below(6)]), 0);
                }
                5 if peer.session.is_open() => {
                    let reset = peer.session.manage(Function::LunReset, LUN, None);
                    open.insert(reset.expect("open"), 0);
                }
                6 if peer.session.is_open() => {
                    open.insert(
                        peer.session.ping(peer.now, dice.below(100)).expect("open"),
                        0,
                    );
                }
                7 => {
                    if let Some(tag) = open.keys().nth(dice.below(open.len().max(1))).copied() {
                        peer.session.withdraw(tag);
                    }
                }
                8 => {
                    peer.pump();
                    let due = peer.session.poll_timeout().filter(|_| dice.below(3) == 0);
                    if let Some(due) = due {
                        peer.now = peer.now.max(due);
                        peer.session.handle_timeout(due);
                    }
                }
                9 if peer.session.is_open() && dice.below(3) == 0 => {
                    if let Ok(tag) = peer.session.text(vec![b'x'; dice.below(20_000)]) {
                        open.insert(tag, 0);
                    }
                }
                10 if dice.below(12) == 0 => {
                    if let Ok(tag) = peer.session.logout() {
                        open.insert(tag, 0);
                    }
                }
                _ => {
                    tags.extend(peer.all().iter().map(|pdu| pdu.generic().task_tag));
                    answers += u64::from(!peer.session.is_closed());
                    let wire = response(&mut peer, &mut dice, &tags);
                    let cut = dice.below(wire.len() + 1);
                    peer.session.handle_bytes(peer.now, &wire[..cut]);
                    peer.session.handle_bytes(peer.now, &wire[cut..]);
                }
            }
            settle(&mut peer, &mut open);
        }
        peer.session.receive_space();
        peer.session.received(peer.now, 0);
        settle(&mut peer, &mut open);
        assert!(peer.session.is_closed());
        assert!(
            open.values().all(|&ended| ended == 1),
            "seed {seed}: {open:?}"
        );
        assert_eq!(peer.session.in_flight(), 0);
        assert_eq!(
            (peer.session.due_bytes(), peer.session.in_flight_bytes()),
            (0, 0)
        );
    }
}

/// Keys of every kind in turn: digests, data in any order, FastAbort.
fn negotiated(seed: u64) -> (Offer, &'static [u8]) {
    let offer = Offer::default();
    match seed % 4 {
        0 => (
            offer,
            b"InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=8192\0MaxOutstandingR2T=4\0",
        ),
        1 => (
            Offer {
                header_digest: DigestWish::Crc32c,
                data_digest: DigestWish::Crc32c,
                ..offer
            },
            b"HeaderDigest=CRC32C\0DataDigest=CRC32C\0InitialR2T=Yes\0",
        ),
        2 => (
            Offer {
                data_pdu_in_order: false,
                data_sequence_in_order: false,
                ..offer
            },
            b"DataPDUInOrder=No\0DataSequenceInOrder=No\0ImmediateData=No\0",
        ),
        _ => (
            Offer {
                fast_abort: true,
                ..offer
            },
            b"TaskReporting=FastAbort\0InitialR2T=No\0MaxRecvDataSegmentLength=512\0",
        ),
    }
}

fn settle(peer: &mut Peer, open: &mut BTreeMap<iscsi_initiator::session::task::Tag, u32>) {
    for event in peer.events() {
        if let Event::Done(tag, _) = event {
            // Text of an async request was not ours.
            if let Some(ended) = open.get_mut(&tag) {
                *ended += 1;
            }
        }
    }
}

/// A response that is right, nearly right, or wrong.
fn response(peer: &mut Peer, dice: &mut Dice, tags: &[U32]) -> Vec<u8> {
    let tag = match tags.len() {
        0 => U32::new(dice.next() as u32),
        len => tags[len - 1 - dice.below(len.min(6))],
    };
    let mut data = vec![0; 512 << dice.below(6)];
    dice.fill(&mut data);
    let offset = 512 * dice.below(4) as u32 * (dice.below(4) == 0) as u32;
    let data_sn = (dice.below(8) == 0) as u32;
    let mut wire = match dice.below(10) {
        0 => {
            let pdu = peer.last_data_in(tag, data_sn, offset);
            peer.encode(pdu.as_bytes(), &data)
        }
        1 => {
            let pdu = peer.data_in(tag, data_sn, offset);
            peer.encode(pdu.as_bytes(), &data)
        }
        2 => {
            let pdu = peer.r2t(tag, data_sn, offset, data.len() as u32);
            peer.encode(pdu.as_bytes(), b"")
        }
        3 | 4 => {
            let pdu = peer.scsi_response(tag);
            peer.encode(pdu.as_bytes(), b"")
        }
        5 => {
            let pdu = peer.tmf_response(tag, 0);
            peer.encode(pdu.as_bytes(), b"")
        }
        6 => {
            let pdu = peer.nop_in(u32::MAX, dice.next() as u32);
            peer.encode(pdu.as_bytes(), b"")
        }
        7 => {
            let pdu = peer.async_message(dice.below(7) as u8);
            peer.encode(pdu.as_bytes(), &data[..18])
        }
        8 => {
            let ttt = if dice.below(2) == 0 { u32::MAX } else { 5 };
            let pdu = peer.text_response(tag, ttt);
            peer.encode(pdu.as_bytes(), b"MaxRecvDataSegmentLength=4096\0")
        }
        _ => {
            let pdu = peer.reject(6);
            peer.encode(pdu.as_bytes(), &data[..48])
        }
    };
    if dice.below(3) == 0 {
        for _ in 0..dice.below(4) {
            let at = dice.below(wire.len().min(60));
            wire[at] = dice.next() as u8;
        }
    }
    wire
}
