//! Targets that mean harm, against a session without sockets: nothing panics, nothing is kept beyond
//! what was negotiated, every task ends once, and every wait has an end.

mod peer;

use blockdev::{Applied, PathCause};
use iscsi_initiator::login::chap::{Algorithm, ChapConfig, Secret};
use iscsi_initiator::login::keys::Offer;
use iscsi_initiator::pdu::header::*;
use iscsi_initiator::pdu::{flag, opcode};
use iscsi_initiator::session::task::Tag;
use iscsi_initiator::session::{Event, Function, Outcome, SubmitError};
use peer::{config, Peer, FIRST_CMD_SN, LUN};
use std::collections::BTreeMap;
use std::time::Duration;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::IntoBytes;

fn plain() -> Peer {
    Peer::logged_in(Offer::default(), b"InitialR2T=Yes\0ImmediateData=No\0")
}

fn ask_logout(peer: &mut Peer, seconds: u16) {
    let message = AsyncMessage {
        parameter_3: U16::new(seconds),
        ..peer.async_message(1)
    };
    peer.send(message, b"");
}

/// Lets time pass, and whatever is due with it; what the target does meanwhile is `noise`.
fn pass(peer: &mut Peer, time: Duration, mut noise: impl FnMut(&mut Peer)) {
    let end = peer.now + time;
    while peer.now < end && !peer.session.is_closed() {
        let due = peer.session.poll_timeout().unwrap_or(end);
        peer.now = due.max(peer.now).min(end);
        peer.session.handle_timeout(peer.now);
        peer.all();
        noise(peer);
        peer.now = peer.now + Duration::from_millis(50);
    }
}

/// Neither silence nor chatter in place of the answer keeps a session that logs out.
#[test]
fn logout_that_is_never_answered_has_an_end() {
    for asked in [true, false] {
        for chatty in [true, false] {
            let mut peer = plain();
            let stuck = peer.read(512);
            let itt = peer.next().generic().task_tag;
            if asked {
                ask_logout(&mut peer, 2);
            } else {
                let done = peer.last_data_in(itt, 0, 0);
                peer.send(done, &[0; 512]);
                peer.session.logout().expect("open");
            }
            peer.events();
            pass(&mut peer, Duration::from_secs(60), |peer| {
                if chatty {
                    let noise = peer.nop_in(u32::MAX, 7);
                    peer.send(noise, b"");
                }
            });
            assert!(peer.session.is_closed(), "asked {asked}, chatty {chatty}");
            let outcomes = peer.outcomes();
            let is_lost = |outcome: &Outcome| {
                matches!(
                    outcome,
                    Outcome::Lost {
                        applied: Applied::Unknown,
                        ..
                    }
                )
            };
            if asked {
                assert!(outcomes
                    .iter()
                    .any(|(tag, outcome)| *tag == stuck && is_lost(outcome)));
            }
        }
    }
}

fn test_unit_ready() -> iscsi_initiator::session::ScsiCommand {
    iscsi_initiator::session::ScsiCommand {
        lun: LUN,
        cdb: [0; 16],
        transfer: iscsi_initiator::session::Transfer::None,
        attribute: Default::default(),
    }
}

/// A session that drains still notices that its target is gone.
#[test]
fn silence_while_draining_ends_the_session() {
    let mut peer = plain();
    let stuck = peer.read(512);
    peer.all();
    let logout = peer.session.logout().expect("open");
    assert_eq!(
        peer.session.submit(test_unit_ready()),
        Err(SubmitError::Leaving)
    );
    pass(&mut peer, Duration::from_secs(60), |_| {});
    assert!(peer.session.is_closed());
    let events = peer.events();
    assert!(
        matches!(events.last(), Some(Event::Closed(PathCause::Silent(_)))),
        "{events:?}"
    );
    let ended = |tag| {
        events
            .iter()
            .filter(|e| matches!(e, Event::Done(t, _) if *t == tag))
            .count()
    };
    assert_eq!((ended(stuck), ended(logout)), (1, 1));
}

/// §11.9.1: the logout that the session sends by itself is the caller's when he asks for one.
#[test]
fn own_logout_is_taken_over() {
    let mut peer = plain();
    ask_logout(&mut peer, 0);
    let now = peer.now;
    peer.session.handle_timeout(now);
    let request = peer.next();
    assert_eq!(request.opcode(), opcode::LOGOUT_REQUEST);
    let tag = peer.session.logout().expect("it is under way");
    assert_eq!(
        peer.session.logout(),
        Err(SubmitError::Leaving),
        "one caller"
    );
    let response = LogoutResponse {
        opcode: opcode::LOGOUT_RESPONSE,
        flags: flag::FINAL,
        task_tag: request.generic().task_tag,
        stat_sn: peer.count(),
        ..Default::default()
    };
    peer.send(response, b"");
    assert_eq!(peer.outcomes(), [(tag, Outcome::LoggedOut(0))]);
}

/// §11.9.1, event 1: what is in flight ends by its answers, then the logout leaves, before its time.
#[test]
fn async_logout_request_drains_first() {
    let mut peer = plain();
    let (read, write) = (peer.read(512), peer.write(&[7; 4096]));
    let tags: Vec<U32> = peer
        .all()
        .iter()
        .map(|pdu| pdu.generic().task_tag)
        .collect();
    ask_logout(&mut peer, 3);
    assert!(matches!(peer.events()[..], [Event::LogoutRequested(_)]));
    let logout = peer.session.logout().expect("open");
    let done = peer.last_data_in(tags[0], 0, 0);
    peer.send(done, &[1; 512]);
    // Data that are still asked for go out: the write can end.
    let r2t = peer.r2t(tags[1], 0, 0, 4096);
    peer.send(r2t, b"");
    let sent = peer.all();
    assert_eq!((sent.len(), sent[0].data.len()), (1, 4096));
    let done = peer.scsi_response(tags[1]);
    peer.send(done, b"");
    let ended: Vec<Tag> = peer.outcomes().into_iter().map(|(tag, _)| tag).collect();
    assert_eq!(ended, [read, write]);
    let request = peer.next();
    assert_eq!(request.opcode(), opcode::LOGOUT_REQUEST);
    let response = LogoutResponse {
        opcode: opcode::LOGOUT_RESPONSE,
        flags: flag::FINAL,
        task_tag: request.generic().task_tag,
        stat_sn: peer.count(),
        ..Default::default()
    };
    peer.send(response, b"");
    assert_eq!(peer.outcomes(), [(logout, Outcome::LoggedOut(0))]);
    assert!(peer.session.is_closed());
}

/// §11.9.1, event 4: a pending negotiation serves as the one that is wanted, and a session about to
/// log out needs none.
#[test]
fn async_negotiation_request_starts_no_second_text() {
    let mut peer = plain();
    peer.session.text(b"X=1\0".to_vec()).expect("open");
    let request = peer.async_message(4);
    peer.send(request, b"");
    assert_eq!(peer.all().len(), 1, "one_text_outstanding");
    let mut peer = plain();
    ask_logout(&mut peer, 9);
    let request = peer.async_message(4);
    peer.send(request, b"");
    assert!(peer.all().is_empty());
    assert!(!peer.session.is_closed());
}

/// A target that demands answers and reads none of them.
#[test]
fn pings_without_end_end_the_session() {
    let mut peer = plain();
    for _ in 0..100_000 {
        let ping = peer.nop_in(u32::MAX, 9);
        peer.send(ping, b"");
        if peer.session.is_closed() {
            break;
        }
    }
    peer.broke_with("more to be answered");
    // One that reads them may ping for ever.
    let mut peer = plain();
    for _ in 0..100_000 {
        let ping = peer.nop_in(u32::MAX, 9);
        peer.send(ping, b"");
        assert_eq!(peer.all().len(), 1);
    }
}

/// GOOD for a write of which the target cannot have all data is no success.
#[test]
fn good_status_of_a_write_that_was_not_fetched() {
    let keys = [
        &b"InitialR2T=Yes\0ImmediateData=No\0"[..],
        b"InitialR2T=Yes\0ImmediateData=Yes\0FirstBurstLength=1024\0",
        b"InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=1024\0",
    ];
    for keys in keys {
        for fetched in [false, true] {
            let mut peer = Peer::logged_in(Offer::default(), keys);
            peer.write(&[7; 4096]);
            let sent = peer.all();
            let unasked: usize = sent.iter().map(|pdu| pdu.data.len()).sum();
            let itt = sent[0].generic().task_tag;
            if fetched {
                let left = 4096 - unasked as u32;
                let r2t = peer.r2t(itt, 0, unasked as u32, left);
                peer.send(r2t, b"");
                peer.all();
            }
            let good = peer.scsi_response(itt);
            peer.send(good, b"");
            let outcome = peer.outcomes().pop().expect("one outcome").1;
            assert_eq!(matches!(outcome, Outcome::Scsi(_)), fetched, "{outcome:?}");
            // An error may come at any time.
            let mut peer = Peer::logged_in(Offer::default(), keys);
            peer.write(&[7; 4096]);
            let itt = peer.all()[0].generic().task_tag;
            let error = ScsiResponse {
                status: 0x18,
                ..peer.scsi_response(itt)
            };
            peer.send(error, b"");
            assert!(matches!(peer.outcomes()[0].1, Outcome::Scsi(_)));
        }
    }
}

/// Data in any order, one byte in two: what is remembered of them is bounded.
#[test]
fn data_in_endless_pieces_ends_the_session() {
    let offer = Offer {
        data_pdu_in_order: false,
        data_sequence_in_order: false,
        ..Offer::default()
    };
    let mut peer = Peer::logged_in(offer, b"DataPDUInOrder=No\0DataSequenceInOrder=No\0");
    peer.read(1 << 20);
    let tag = peer.next().generic().task_tag;
    for sn in 0..1 << 19 {
        let pdu = peer.data_in(tag, sn, 2 * sn);
        peer.send(pdu, &[1]);
        if peer.session.is_closed() {
            break;
        }
    }
    peer.broke_with("too many pieces");
}

/// Text answers that are large rather than many.
#[test]
fn huge_text_answer_ends_the_session() {
    let mut peer = plain();
    peer.session
        .text(b"SendTargets=All\0".to_vec())
        .expect("open");
    let mut taken = 0;
    while !peer.session.is_closed() {
        let request = peer.all().pop().expect("asks on");
        peer.open_window(request.generic().sn.get().wrapping_add(1), 8);
        let more = peer.text_response(request.generic().task_tag, 1);
        let text = "TargetName=iqn.a\0".repeat(15_000);
        peer.send(more, text.as_bytes());
        taken += text.len();
        assert!(taken <= 2 << 20, "more than a million bytes kept");
    }
    peer.broke_with("without end");
}

/// §4.2.2.1: whatever the target says of the window, nothing leaves outside of it, and it never
/// shrinks below what was allowed before.
#[test]
fn window_tricks() {
    let next = FIRST_CMD_SN.wrapping_add(64);
    for (exp, max, allowed) in [
        (next, next.wrapping_sub(1), 0),
        (next, next.wrapping_sub(2), 0),
        (next, next.wrapping_add(0x7fff_0000), 200),
        // Further than serial numbers reach: it lies behind.
        (next, next.wrapping_add(0x8000_0000), 0),
        (next.wrapping_sub(64), next.wrapping_add(9), 10),
        (next.wrapping_add(5), next.wrapping_add(4), 5),
        (0, u32::MAX, 0),
        (u32::MAX, 0, 0),
    ] {
        let mut peer = plain();
        for _ in 0..264 {
            peer.read(512);
        }
        let first = peer.all();
        assert_eq!(first.len(), 64);
        (peer.exp_cmd_sn, peer.max_cmd_sn) = (exp, max);
        let inform = peer.nop_in(u32::MAX, u32::MAX);
        peer.send(inform, b"");
        let more = peer.all();
        let limit = 256 - 64;
        assert_eq!(more.len(), allowed.min(limit), "{exp:#x} {max:#x}");
        peer.session.room();
        // Back to where it was: neither taken back nor given twice.
        (peer.exp_cmd_sn, peer.max_cmd_sn) = (FIRST_CMD_SN, FIRST_CMD_SN);
        let inform = peer.nop_in(u32::MAX, u32::MAX);
        peer.send(inform, b"");
        assert!(peer.all().is_empty(), "counters_never_go_back");
        assert!(!peer.session.is_closed());
    }
}

/// Two final answers to one task: the second is for nobody.
#[test]
fn second_answer_to_a_task_ends_the_session() {
    for status in [0, 2, 8] {
        let mut peer = plain();
        peer.session.submit(test_unit_ready()).expect("open");
        let tag = peer.next().generic().task_tag;
        for turn in 0..2 {
            let response = ScsiResponse {
                status,
                ..peer.scsi_response(tag)
            };
            peer.send(response, b"");
            assert_eq!(peer.outcomes().len(), usize::from(turn == 0));
        }
        assert!(peer.session.is_closed());
    }
}

type Build = fn(&mut Peer, &[U32]) -> Vec<u8>;

/// A right answer of each type, to a read, a write, a function, a ping and a text in flight.
const ANSWERS: [Build; 10] = [
    |peer, tags| {
        let pdu = peer.last_data_in(tags[0], 0, 0);
        peer.encode(pdu.as_bytes(), &[7; 1024])
    },
    |peer, tags| {
        let pdu = peer.data_in(tags[0], 0, 0);
        peer.encode(pdu.as_bytes(), &[7; 512])
    },
    |peer, tags| {
        let pdu = peer.r2t(tags[1], 0, 0, 1024);
        peer.encode(pdu.as_bytes(), b"")
    },
    |peer, tags| {
        let pdu = ScsiResponse {
            status: 2,
            ..peer.scsi_response(tags[1])
        };
        peer.encode(pdu.as_bytes(), &[0, 8, 0x72, 6, 0x29, 0, 0, 0, 0, 0])
    },
    |peer, tags| {
        let pdu = peer.tmf_response(tags[2], 0);
        peer.encode(pdu.as_bytes(), b"")
    },
    |peer, tags| {
        let pdu = peer.nop_in(tags[3].get(), u32::MAX);
        peer.encode(pdu.as_bytes(), b"ping")
    },
    |peer, tags| {
        let pdu = peer.text_response(tags[4], u32::MAX);
        peer.encode(pdu.as_bytes(), b"MaxRecvDataSegmentLength=4096\0")
    },
    |peer, _| {
        let pdu = peer.async_message(1);
        peer.encode(pdu.as_bytes(), b"")
    },
    |peer, tags| {
        let pdu = peer.reject(6);
        let mut header = [0; 48];
        header[16..20].copy_from_slice(tags[2].as_bytes());
        peer.encode(pdu.as_bytes(), &header)
    },
    |peer, _| {
        let pdu = peer.nop_in(u32::MAX, 5);
        peer.encode(pdu.as_bytes(), b"")
    },
];

/// Each bit of each answer's header wrong once.
#[test]
fn every_field_of_every_answer_wrong() {
    for (kind, build) in ANSWERS.iter().enumerate() {
        for bit in 0..48 * 8 {
            let mut peer = plain();
            let mut open: BTreeMap<Tag, u32> = BTreeMap::new();
            let mut tags = Vec::new();
            for what in 0..5 {
                let tag = match what {
                    0 => peer.read(1024),
                    1 => peer.write(&[3; 1024]),
                    2 => peer
                        .session
                        .manage(Function::LunReset, LUN, None)
                        .expect("open"),
                    3 => peer.session.ping(peer.now, 4).expect("open"),
                    _ => peer.session.text(b"X=1\0".to_vec()).expect("open"),
                };
                open.insert(tag, 0);
                tags.push(peer.next().generic().task_tag);
            }
            let mut wire = build(&mut peer, &tags);
            wire[bit / 8] ^= 0x80 >> (bit % 8);
            // Lengths may now promise more than comes; then nothing more does.
            peer.session.handle_bytes(peer.now, &wire);
            peer.session.handle_bytes(peer.now, &[0; 200]);
            peer.pump();
            peer.session
                .handle_timeout(peer.now + Duration::from_secs(3600));
            if !peer.session.is_closed() {
                peer.session.receive_space();
                peer.session.received(peer.now, 0);
            }
            for (tag, _) in peer.outcomes() {
                if let Some(ended) = open.get_mut(&tag) {
                    *ended += 1;
                }
            }
            assert!(
                open.values().all(|&ended| ended == 1),
                "answer {kind}, bit {bit}: {open:?}"
            );
        }
    }
}

fn with_chap() -> Peer {
    let mut config = config(Offer::default());
    let secret = Secret::new("our own secret").expect("a secret");
    let chap = ChapConfig::new("u", secret, None, &[Algorithm::Md5]);
    config.login.chap = Some(chap.expect("one secret"));
    Peer::new(config)
}

/// The target closes in each state of a session: one end, told once, and no task forgotten.
#[test]
fn target_closes_in_each_state() {
    type State = (&'static str, fn() -> Peer);
    let states: [State; 11] = [
        ("before the first byte", || {
            Peer::new(config(Offer::default()))
        }),
        ("login request sent", || {
            let mut peer = Peer::new(config(Offer::default()));
            peer.all();
            peer
        }),
        ("operational stage", || {
            let mut peer = Peer::new(config(Offer::default()));
            peer.next();
            let response = peer.login_response(0, 1);
            peer.send(response, b"");
            peer.all();
            peer
        }),
        ("CHAP under way", || {
            let mut peer = with_chap();
            peer.next();
            let response = LoginResponse {
                flags: 0,
                ..peer.login_response(0, 1)
            };
            peer.send(response, b"AuthMethod=CHAP\0");
            peer.all();
            peer
        }),
        ("idle", plain),
        ("commands unsent", || {
            let mut peer = plain();
            peer.read(512);
            peer
        }),
        ("data under way", || {
            let mut peer = plain();
            peer.read(4096);
            let tag = peer.next().generic().task_tag;
            let pdu = peer.data_in(tag, 0, 0);
            let wire = peer.encode(pdu.as_bytes(), &[1; 4096]);
            peer.session.handle_bytes(peer.now, &wire[..3000]);
            peer
        }),
        ("burst half sent", || {
            let mut peer = plain();
            peer.write(&[7; 65_536]);
            let tag = peer.next().generic().task_tag;
            let r2t = peer.r2t(tag, 0, 0, 65_536);
            peer.send(r2t, b"");
            peer.session.transmit();
            let now = peer.now;
            peer.session.transmitted(now, 10_000);
            peer
        }),
        ("text under way", || {
            let mut peer = plain();
            peer.session.text(b"X=1\0".to_vec()).expect("open");
            let itt = peer.next().generic().task_tag;
            let more = peer.text_response(itt, 4);
            peer.send(more, b"X=Rej");
            peer
        }),
        ("draining", || {
            let mut peer = plain();
            peer.read(512);
            peer.all();
            peer.session.logout().expect("open");
            peer
        }),
        ("logout sent", || {
            let mut peer = plain();
            peer.session.logout().expect("open");
            peer.all();
            peer
        }),
    ];
    for (name, state) in states {
        let mut peer = state();
        let is_in = peer.session.is_open();
        peer.session.receive_space();
        peer.session.received(peer.now, 0);
        peer.session.received(peer.now, 0);
        assert!(peer.session.is_closed(), "{name}");
        let events = peer.events();
        let closed = |event: &&Event| matches!(event, Event::Closed(PathCause::Connection(_)));
        assert_eq!(
            events.iter().filter(closed).count(),
            1,
            "{name}: {events:?}"
        );
        assert!(matches!(events.last(), Some(Event::Closed(_))), "{name}");
        assert_eq!(
            peer.session.submit(test_unit_ready()),
            Err(SubmitError::NotOpen),
            "{name}"
        );
        assert!(peer.session.transmit().is_empty() && peer.session.poll_timeout().is_none());
        assert!(!is_in || peer.session.in_flight() == 0);
    }
}
