//! Every decoder, and the session as a whole, under random and mutated input: no panic, no hang,
//! every task ends once. A million executions a parser.

mod peer;

use blockdev::{alua, reserve};
use iscsi_initiator::discover::parse_targets;
use iscsi_initiator::login::chap::{ChapConfig, Secret};
use iscsi_initiator::login::keys::{DigestWish, Offer};
use iscsi_initiator::name::{check_name, Portal};
use iscsi_initiator::pdu::{split_sense, Response};
use iscsi_initiator::scsi::{sense, unit};
use iscsi_initiator::session::{Event, Function};
use iscsi_initiator::text;
use peer::{config, Peer, LUN};
use std::collections::BTreeMap;
use zerocopy::byteorder::big_endian::U32;
use zerocopy::IntoBytes;

const RUNS: u64 = 1_000_000;
const SESSIONS: u64 = 2_000;

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
    let mut good = [0u8; 48];
    good[0] = 0x25;
    good[1] = 0x81;
    fuzz(1, &good, |input| {
        if let Some(header) = input.first_chunk() {
            if let Ok(pdu) = Response::parse(header) {
                assert!(pdu.generic().data_len.get() < 1 << 24);
            }
        }
    });
}

#[test]
fn fuzz_every_parser_text_pairs_and_values() {
    fuzz(
        2,
        b"TargetAddress=10.0.0.1:3260,1\0CHAP_C=0x0102\0MaxBurstLength=262144\0",
        |input| {
            if let Ok(pairs) = text::parse_pairs(input) {
                for (_, value) in pairs {
                    let _ = text::parse_number(value);
                    assert!(text::parse_binary(value, 16).is_none_or(|bytes| bytes.len() <= 16));
                    let _ = (check_name(value), value.parse::<Portal>());
                }
            }
        },
    );
    fuzz(3, b"0bQUJDREVGR0g=", |input| {
        if let Ok(value) = std::str::from_utf8(input) {
            let _ = (text::parse_binary(value, 1024), text::parse_number(value));
        }
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

/// Random bytes and mutated responses during the login, without and with CHAP.
#[test]
fn logins() {
    let mut dice = Dice(11);
    for turn in 0..2 * SESSIONS {
        let mut config = config(Offer::default());
        let has_chap = turn % 2 == 1;
        if has_chap {
            let secret = |text: &str| Secret::new(text).expect("a secret");
            let target = ("t".to_owned(), secret("the target's secret"));
            let chap = ChapConfig::new("u", secret("our own secret"), Some(target), &[]);
            config.login.chap = Some(chap.expect("two secrets"));
        }
        let mut peer = Peer::new(config);
        for round in 0..5 {
            peer.pump();
            let (stage, next) = match (has_chap, round) {
                (true, 0..=1) | (false, 0) => (0, 1),
                (true, 2) => (0, 1),
                _ => (1, 3),
            };
            let mut response = peer.login_response(stage, next);
            if has_chap && round < 2 {
                response.flags = 0;
            }
            let keys: &[u8] = match (has_chap, round) {
                (false, 0) => b"TargetPortalGroupTag=1\0AuthMethod=None\0",
                (true, 0) => b"TargetPortalGroupTag=1\0AuthMethod=CHAP\0",
                (true, 1) => b"CHAP_A=5\0CHAP_I=7\0CHAP_C=0x0102030405060708\0",
                (true, 2) => b"CHAP_N=t\0CHAP_R=0b0123456789abcdef012345\0",
                _ => b"HeaderDigest=None\0MaxBurstLength=4096\0InitialR2T=Yes\0",
            };
            let mut wire = peer.encode(response.as_bytes(), keys);
            for _ in 0..dice.below(3) {
                let at = dice.below(wire.len());
                wire[at] = dice.next() as u8;
            }
            peer.session.handle_bytes(peer.now, &wire);
            if peer.session.is_closed() {
                break;
            }
        }
        peer.session.transmit();
    }
}

/// Sequences of well-formed and damaged PDUs to a session with work in flight. Whatever happens,
/// each task ends exactly once and nothing hangs.
#[test]
fn sessions() {
    for seed in 0..SESSIONS {
        let mut dice = Dice(seed);
        let (offer, keys) = negotiated(seed);
        let mut peer = Peer::logged_in(offer, keys);
        let mut open: BTreeMap<_, u32> = BTreeMap::new();
        let mut tags: Vec<U32> = Vec::new();
        for _ in 0..40 {
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
