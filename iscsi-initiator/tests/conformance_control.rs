//! What RFC 7143 demands of an initiator in full feature phase beside the data path: numbers,
//! digests, text, task management, async messages, rejects and the end of a session. One test a
//! rule or table, named by its section, against a scripted target.

mod peer;

use blockdev::{Applied, PathCause};
use iscsi_initiator::login::keys::{DigestWish, Offer};
use iscsi_initiator::pdu::header::*;
use iscsi_initiator::pdu::{flag, opcode};
use iscsi_initiator::session::{
    Attribute, Event, Function, Outcome, Progress, ScsiCommand as Command, Transfer,
};
use peer::{config, Peer, FIRST_CMD_SN, LUN};
use std::time::Duration;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::IntoBytes;

fn plain() -> Peer {
    Peer::logged_in(Offer::default(), b"InitialR2T=Yes\0ImmediateData=No\0")
}

fn digests() -> Peer {
    let offer = Offer {
        header_digest: DigestWish::Crc32c,
        data_digest: DigestWish::Crc32c,
        ..Offer::default()
    };
    let keys = b"HeaderDigest=CRC32C\0DataDigest=CRC32C\0InitialR2T=No\0ImmediateData=Yes\0\
          FirstBurstLength=16384\0";
    Peer::logged_in(offer, keys)
}

fn fast_abort() -> Peer {
    let offer = Offer {
        fast_abort: true,
        ..Offer::default()
    };
    Peer::logged_in(
        offer,
        b"TaskReporting=FastAbort\0InitialR2T=Yes\0ImmediateData=No\0MaxBurstLength=1048576\0",
    )
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn status_of(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Scsi(answer) => answer.status,
        other => panic!("{other:?}"),
    }
}

/// §4.2.2.1: in the order of CmdSN, with and without data, across the wrap.
#[test]
fn requests_leave_in_cmdsn_order() {
    let mut peer = Peer::logged_in(
        Offer::default(),
        b"InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=32768\0",
    );
    for turn in 0..20 {
        if turn % 3 == 0 {
            peer.write(&bytes(32_768));
        } else {
            peer.read(512);
        }
        if turn % 5 == 0 {
            peer.session.ping(peer.now, 0).expect("open");
        }
    }
    let sent = peer.all();
    let numbered = sent
        .iter()
        .filter(|pdu| pdu.opcode() != opcode::DATA_OUT && !pdu.is_immediate());
    for (at, pdu) in numbered.enumerate() {
        let expected = FIRST_CMD_SN.wrapping_add(at as u32);
        assert_eq!(pdu.generic().sn.get(), expected);
    }
}

/// §4.2.2.2, §11.9, §11.17.3, §11.19.2: what advances StatSN shows in the next ExpStatSN.
#[test]
fn statsn_acknowledged_by_what_counts() {
    let exp_stat_sn = |peer: &mut Peer| {
        peer.session.ping(peer.now, 0).expect("open");
        let ping = peer.next().generic();
        let echo = peer.nop_in(ping.task_tag.get(), u32::MAX);
        peer.send(echo, b"");
        peer.events();
        ping.exp_sn.get()
    };
    let mut peer = plain();
    let first = exp_stat_sn(&mut peer);
    assert_eq!(exp_stat_sn(&mut peer), first + 1, "a NOP-In that answers");
    let inform = peer.nop_in(u32::MAX, u32::MAX);
    peer.send(inform, b"");
    assert_eq!(
        exp_stat_sn(&mut peer),
        first + 2,
        "unsolicited_nopin_does_not"
    );
    let message = peer.async_message(255);
    peer.send(message, b"");
    assert_eq!(
        exp_stat_sn(&mut peer),
        first + 4,
        "async_and_reject_advance_statsn"
    );
    peer.session
        .manage(Function::LunReset, LUN, None)
        .expect("open");
    let header = peer.next().header;
    let reject = peer.reject(6);
    peer.send(reject, &header);
    assert_eq!(exp_stat_sn(&mut peer), first + 6);
    peer.read(512);
    let tag = peer.next().generic().task_tag;
    let pdu = peer.data_in(tag, 0, 0);
    peer.send(pdu, b"");
    assert_eq!(exp_stat_sn(&mut peer), first + 7, "Data-In without S");
    let pdu = peer.last_data_in(tag, 1, 0);
    peer.send(pdu, &bytes(512));
    assert_eq!(exp_stat_sn(&mut peer), first + 9, "Data-In with S");
}

/// §13.1: no PDU of the login has a digest, every one after it has; §11.2.3: none without data.
#[test]
fn digest_on_every_full_feature_pdu_and_on_no_login_pdu() {
    // The peer reads login requests without and all others with digests, and checks each.
    let mut peer = digests();
    peer.session.ping(peer.now, 0).expect("open");
    peer.read(512);
    let lens: Vec<usize> = peer
        .session
        .transmit()
        .iter()
        .map(|slice| slice.len())
        .collect();
    assert_eq!(lens, [52, 52], "zero_length_data_has_no_digest");
    let sent = peer.all();
    assert!(sent.iter().all(|pdu| pdu.data.is_empty()));
    // A response without data and with a digest of none is complete.
    let tag = sent[1].generic().task_tag;
    let response = ScsiResponse {
        status: 8,
        ..peer.scsi_response(tag)
    };
    let wire = peer.encode(response.as_bytes(), b"");
    assert_eq!(wire.len(), 52);
    peer.session.handle_bytes(peer.now, &wire);
    assert_eq!(status_of(&peer.outcomes()[0].1), 8);
}

/// §7.8: a header digest error takes the stream's framing with it, a data digest error the PDU;
/// at ErrorRecoveryLevel 0 both end the connection, and no byte reaches the caller.
#[test]
fn digest_errors_close_and_deliver_nothing() {
    type Build = fn(&mut Peer, U32) -> Vec<u8>;
    let cases: [(&str, &str, usize, Build); 4] = [
        (
            "header_digest_error_closes_connection",
            "header",
            9,
            |p, t| {
                let pdu = p.last_data_in(t, 0, 0);
                p.encode(pdu.as_bytes(), &bytes(8192))
            },
        ),
        (
            "data_digest_error_discards_pdu_and_fails_task",
            "data",
            5000,
            |p, t| {
                let pdu = p.last_data_in(t, 0, 0);
                p.encode(pdu.as_bytes(), &bytes(8192))
            },
        ),
        ("response_data_digest_error_closes", "data", 60, |p, t| {
            let pdu = ScsiResponse {
                status: 2,
                ..p.scsi_response(t)
            };
            p.encode(pdu.as_bytes(), &[0, 8, 0x72, 6, 0x29, 0, 0, 0, 0, 0])
        }),
        ("async message", "data", 58, |p, _| {
            let pdu = p.async_message(0);
            p.encode(pdu.as_bytes(), &[0, 8, 0x72, 6, 0x29, 0, 0, 0, 0, 0])
        }),
    ];
    for (name, what, at, build) in cases {
        let mut peer = digests();
        let read = peer.read(8192);
        let tag = peer.next().generic().task_tag;
        let mut wire = build(&mut peer, tag);
        wire[at] ^= 1;
        peer.session.handle_bytes(peer.now, &wire);
        let events = peer.events();
        let [Event::Done(done, Outcome::Lost { applied, .. }), Event::Closed(cause)] = &events[..]
        else {
            panic!("{name}: {events:?}");
        };
        assert_eq!((done, *applied), (&read, Applied::Unknown), "{name}");
        assert!(cause.to_string().contains(what), "{name}: {cause}");
    }
}

/// §11.2.2.3, §11.3.5, §11.2.3
#[test]
fn ahs_extended_cdb_only_above_16_and_digest_covers_ahs_and_padding() {
    let command = || Command {
        lun: LUN,
        cdb: [0x7f; 16],
        transfer: Transfer::Write(blockdev::IoVec::zeros(512)),
        attribute: Attribute::Simple,
    };
    for (rest_len, words) in [(0, 0), (1, 2), (4, 2), (5, 3), (16, 5), (244, 62)] {
        // The peer checks the header digest over BHS and AHS, and the data after both.
        for mut peer in [digests(), plain()] {
            let rest = bytes(rest_len);
            peer.session.submit_long(command(), &rest).expect("open");
            let sent = peer.next();
            let header: ScsiCommand = sent.as_();
            assert_eq!(usize::from(header.ahs_words), words);
            assert_eq!(sent.ahs.len(), words * 4);
            if words > 0 {
                let len = (rest_len as u16 + 1).to_be_bytes();
                assert_eq!(sent.ahs[..4], [len[0], len[1], 1, 0]);
                assert_eq!(sent.ahs[4..4 + rest_len], rest);
                assert!(sent.ahs[4 + rest_len..].iter().all(|&byte| byte == 0));
            }
            assert_eq!(header.cdb, [0x7f; 16]);
        }
    }
    // A withdrawn command before it renumbers it, digest and all.
    let mut peer = digests();
    let tag = peer.read(512);
    peer.session
        .submit_long(command(), &[1, 2, 3])
        .expect("open");
    peer.session.transmit();
    assert!(peer.session.withdraw(tag));
    assert_eq!(peer.next().generic().sn.get(), FIRST_CMD_SN);
}

/// §13.12 (MaxBurstLength): what R2Ts ask for is bounded, and so is what answers one.
#[test]
fn sequence_never_above_maxburst() {
    let negotiated = || {
        Peer::logged_in(
            Offer::default(),
            b"InitialR2T=Yes\0ImmediateData=No\0MaxBurstLength=8192\0",
        )
    };
    let mut peer = negotiated();
    peer.write(&bytes(16_384));
    let tag = peer.next().generic().task_tag;
    let r2t = peer.r2t(tag, 0, 0, 8192);
    peer.send(r2t, b"");
    let sent: usize = peer.all().iter().map(|pdu| pdu.data.len()).sum();
    assert_eq!(sent, 8192);
    let mut peer = negotiated();
    peer.write(&bytes(16_384));
    let tag = peer.next().generic().task_tag;
    let r2t = peer.r2t(tag, 0, 0, 8193);
    peer.send(r2t, b"");
    peer.broke_with("MaxBurstLength");
}

/// §11.7.2: at level 0 the A bit asks for nothing.
#[test]
fn a_bit_ignored_at_erl0() {
    let mut peer = plain();
    peer.read(1024);
    let tag = peer.next().generic().task_tag;
    let first = DataIn {
        flags: flag::FINAL | 0x40,
        transfer_tag: U32::new(77),
        lun: LUN,
        ..peer.data_in(tag, 0, 0)
    };
    peer.send(first, &bytes(512));
    assert!(peer.all().is_empty(), "no_snack_no_reassign_at_erl0");
    let last = peer.last_data_in(tag, 1, 512);
    peer.send(last, &bytes(512));
    assert_eq!(status_of(&peer.outcomes()[0].1), 0);
}

/// §11.4.1: O and U together are a protocol error.
#[test]
fn both_o_and_u_is_error() {
    let mut peer = plain();
    peer.read(512);
    let tag = peer.next().generic().task_tag;
    let response = ScsiResponse {
        flags: flag::FINAL | flag::OVERFLOW | flag::UNDERFLOW,
        ..peer.scsi_response(tag)
    };
    peer.send(response, b"");
    peer.broke_with("overflow and underflow");
}

/// §7.1, §11.16, 7144 §6.3: nothing of a level or a protocol version that was not negotiated.
#[test]
fn new_tmfs_only_with_level_2_and_no_reassign() {
    let all = [
        Function::AbortTask,
        Function::AbortTaskSet,
        Function::ClearTaskSet,
        Function::LunReset,
        Function::TargetWarmReset,
        Function::TargetColdReset,
    ];
    // 8 is TASK REASSIGN, 9 to 12 are of RFC 7144.
    assert!(all.iter().all(|&function| (function as u8) < 8));
}

/// §4.2.3.3, §11.6.1: what each answer to a function proves about the commands before it.
#[test]
fn tmf_answers_map_to_proofs() {
    let ended = |function: Function, response: u8| {
        let mut peer = plain();
        let (first, other) = (peer.read(512), {
            let command = Command {
                lun: [0, 2, 0, 0, 0, 0, 0, 0],
                cdb: [0; 16],
                transfer: Transfer::None,
                attribute: Attribute::Simple,
            };
            peer.session.submit(command).expect("open")
        });
        peer.all();
        let referenced = (function == Function::AbortTask).then_some(first);
        let lun = if function as u8 >= 6 { [0; 8] } else { LUN };
        let tmf = peer.session.manage(function, lun, referenced);
        let request: TmfRequest = peer.next().as_();
        let after = peer.read(512);
        peer.all();
        let answer = peer.tmf_response(request.task_tag, response);
        peer.send(answer, b"");
        let tags: Vec<_> = peer.outcomes().into_iter().map(|(tag, _)| tag).collect();
        assert!(tags.contains(&tmf.expect("open")) || peer.session.is_closed());
        (
            tags.contains(&first),
            tags.contains(&other),
            tags.contains(&after),
            peer.session.is_open(),
        )
    };
    use Function::*;
    for (function, response, expected) in [
        (AbortTask, 0, (true, false, false, true)),
        (AbortTask, 5, (false, false, false, true)),
        (AbortTask, 255, (false, false, false, true)),
        // Answered before, says the target; but nothing came: the session is not to be trusted.
        (AbortTask, 1, (true, true, true, false)),
        (AbortTaskSet, 0, (true, false, false, true)),
        (ClearTaskSet, 0, (true, false, false, true)),
        (LunReset, 0, (true, false, false, true)),
        (LunReset, 2, (false, false, false, true)),
        (TargetWarmReset, 0, (true, true, false, true)),
        (TargetColdReset, 0, (true, true, false, true)),
        (TargetWarmReset, 6, (false, false, false, true)),
    ] {
        assert_eq!(
            ended(function, response),
            expected,
            "{function:?} {response}"
        );
    }
}

/// §4.2.3.4, §11.9.1: with FastAbort no data follow the function; a refusal leaves tasks that can
/// neither go on nor end.
#[test]
fn tmf_fastabort_stops_data_out() {
    let mut peer = fast_abort();
    let write = peer.write(&bytes(8192));
    let itt = peer.next().generic().task_tag;
    let reset = peer.session.manage(Function::LunReset, LUN, None);
    let request: TmfRequest = peer.next().as_();
    let r2t = peer.r2t(itt, 0, 0, 8192);
    peer.send(r2t, b"");
    assert!(peer.all().is_empty(), "no Data-Out after the function");
    let answer = peer.tmf_response(request.task_tag, 0);
    peer.send(answer, b"");
    let outcomes = peer.outcomes();
    assert_eq!(
        (outcomes[0].0, status_of(&outcomes[0].1)),
        (write, 0x40),
        "tmf_response_concludes_all_affected"
    );
    assert_eq!(outcomes[1], (reset.expect("open"), Outcome::Tmf(0)));

    // A burst that waits behind a full socket is given up too.
    let mut peer = fast_abort();
    peer.write(&bytes(1 << 20));
    let itt = peer.next().generic().task_tag;
    let r2t = peer.r2t(itt, 0, 0, 1 << 20);
    peer.send(r2t, b"");
    peer.session.transmit();
    peer.session
        .manage(Function::LunReset, LUN, None)
        .expect("open");
    let sent = peer.all();
    let tmf = sent
        .iter()
        .position(|pdu| pdu.opcode() == opcode::TMF_REQUEST);
    assert_eq!(tmf.expect("the function") + 1, sent.len());
    let answer = peer.tmf_response(sent[sent.len() - 1].generic().task_tag, 5);
    peer.send(answer, b"");
    peer.broke_with("FastAbort");
}

/// §11.9.1, event 5
#[test]
fn async_task_termination_acknowledged_in_order() {
    let mut peer = fast_abort();
    let write = peer.write(&bytes(8192));
    let itt = peer.next().generic().task_tag;
    let other = Command {
        lun: [0, 2, 0, 0, 0, 0, 0, 0],
        cdb: [0; 16],
        transfer: Transfer::None,
        attribute: Attribute::Simple,
    };
    let other = peer.session.submit(other).expect("open");
    peer.all();
    let r2t = peer.r2t(itt, 0, 0, 8192);
    peer.send(r2t, b"");
    let message = AsyncMessage {
        lun: LUN,
        ..peer.async_message(5)
    };
    peer.send(message, b"");
    let sent = peer.all();
    assert_eq!(sent.len(), 1, "Data-Out stop before: {sent:?}");
    let ack = sent[0].generic();
    assert_eq!((sent[0].opcode(), ack.lun), (opcode::NOP_OUT, LUN));
    assert_eq!(ack.task_tag.get(), u32::MAX);
    assert_eq!(ack.exp_sn.get(), peer.stat_sn);
    let outcomes = peer.outcomes();
    assert_eq!(outcomes.len(), 1);
    assert_eq!((outcomes[0].0, status_of(&outcomes[0].1)), (write, 0x40));
    assert!(peer.session.progress(other).is_some());
    // late_responses_discarded
    let late = peer.scsi_response(itt);
    peer.send(late, b"");
    assert!(peer.session.is_open() && peer.outcomes().is_empty());
}

/// §11.9.1, event 1: a logout within Parameter3, after what can be finished.
#[test]
fn async_logout_request_honoured_in_time() {
    let request = |peer: &mut Peer, seconds: u16| {
        let message = AsyncMessage {
            parameter_3: U16::new(seconds),
            ..peer.async_message(1)
        };
        peer.send(message, b"");
    };
    // Nobody above reacts: the session logs out by itself, in time.
    let mut peer = plain();
    let stuck = peer.read(512);
    peer.all();
    let begun = peer.now;
    request(&mut peer, 7);
    assert!(peer.all().is_empty());
    let due = peer.session.poll_timeout().expect("a logout is due");
    assert!(due > begun && due < begun + Duration::from_secs(7));
    // Keepalives and acknowledgements may come first.
    while peer.now < begun + Duration::from_secs(7) {
        peer.now = peer.session.poll_timeout().expect("a logout is due");
        peer.session.handle_timeout(peer.now);
        let sent = peer.all();
        if let Some(logout) = sent
            .iter()
            .find(|pdu| pdu.opcode() == opcode::LOGOUT_REQUEST)
        {
            assert_eq!(logout.header[1], 0x80, "reason 0");
            break;
        }
    }
    assert!(peer.now < begun + Duration::from_secs(7));
    let r2t = peer.nop_in(u32::MAX, 9);
    peer.send(r2t, b"");
    assert!(peer.all().is_empty(), "nothing_sent_after_logout");
    assert!(peer.session.progress(stuck).is_some());
    peer.session.receive_space();
    peer.session.received(peer.now, 0);
    let lost = peer.outcomes();
    assert!(lost.iter().any(|(tag, outcome)| *tag == stuck
        && matches!(
            outcome,
            Outcome::Lost {
                applied: Applied::Unknown,
                ..
            }
        )));

    // At once, where no time is given.
    let mut peer = plain();
    request(&mut peer, 0);
    let now = peer.now;
    peer.session.handle_timeout(now);
    assert_eq!(peer.next().opcode(), opcode::LOGOUT_REQUEST);

    // What waited for the window goes back unsent.
    let mut peer = plain();
    let tags: Vec<_> = (0..70).map(|_| peer.read(512)).collect();
    peer.all();
    request(&mut peer, 7);
    let withdrawn = peer.outcomes();
    assert_eq!(withdrawn.len(), 6);
    assert!(withdrawn
        .iter()
        .all(|(tag, outcome)| tags[64..].contains(tag) && *outcome == Outcome::Withdrawn));
}

/// §11.9.1: events 2 and 3 end it, and tell when the next login may come (Time2Wait).
#[test]
fn async_drop_tells_time2wait() {
    for event in [2, 3] {
        let mut peer = plain();
        let read = peer.read(512);
        peer.all();
        let message = AsyncMessage {
            parameter_1: U16::new(0),
            parameter_2: U16::new(11),
            parameter_3: U16::new(20),
            ..peer.async_message(event)
        };
        peer.send(message, b"");
        assert_eq!(peer.session.time2wait(), Some(Duration::from_secs(11)));
        let events = peer.events();
        assert!(
            matches!(&events[..], [Event::Done(tag, Outcome::Lost { .. }), Event::Closed(PathCause::Connection(_))] if *tag == read),
            "{events:?}"
        );
    }
}

/// §11.17.1: what each reason of a Reject leads to.
#[test]
fn reject_reasons() {
    for reason in [2, 3, 4, 5, 7, 8, 9, 0x0a, 0x0b, 0x0c] {
        let mut peer = plain();
        peer.read(512);
        let header = peer.next().header;
        let reject = peer.reject(reason);
        peer.send(reject, &header);
        // 0b, a failed negotiation, is one of them: reject_0b_closes.
        peer.broke_with("rejected");
    }
    // 06 for a command would leave a hole in CmdSN.
    let mut peer = plain();
    peer.read(512);
    let header = peer.next().header;
    let reject = peer.reject(6);
    peer.send(reject, &header);
    peer.broke_with("rejected");
}

/// §11.10: one at a time, the same tag and I bit, TTT and LUN copied, C both ways.
#[test]
fn text_in_pieces_both_ways() {
    let mut peer = plain();
    let long = vec![b'x'; 20_000];
    let mut text = b"X-test=".to_vec();
    text.extend(&long);
    text.push(0);
    let tag = peer.session.text(text.clone()).expect("open");
    assert!(
        peer.session.text(Vec::new()).is_err(),
        "one_text_outstanding"
    );
    let mut whole: Vec<u8> = Vec::new();
    for (round, len) in [8192, 8192, 3624].into_iter().enumerate() {
        let request = peer.next();
        assert!(!request.is_immediate(), "text_same_itt_and_i_bit");
        assert_eq!(request.data.len(), len);
        let last = round == 2;
        let expected = if last { flag::FINAL } else { flag::CONTINUE };
        assert_eq!(request.header[1], expected, "c_bit_never_with_t_or_f");
        whole.extend(&request.data);
        if round > 0 {
            assert_eq!(request.generic().transfer_tag.get(), 5);
            assert_eq!(request.generic().lun, [9; 8]);
        }
        if !last {
            let nod = TextResponse {
                lun: [9; 8],
                ..peer.text_response(request.generic().task_tag, 5)
            };
            peer.send(nod, b"");
        } else {
            let more = TextResponse {
                flags: flag::CONTINUE,
                lun: [9; 8],
                ..peer.text_response(request.generic().task_tag, 5)
            };
            peer.send(more, b"X-te");
        }
    }
    assert!(whole == text);
    let empty = peer.next();
    assert_eq!((empty.header[1], empty.data.len()), (flag::FINAL, 0));
    let last = peer.text_response(empty.generic().task_tag, u32::MAX);
    peer.send(last, b"st=Reject\0");
    assert_eq!(
        peer.outcomes(),
        [(tag, Outcome::Text(b"X-test=Reject\0".to_vec()))]
    );
}

/// §6.2, §7.12, §13.12: a declaration takes effect when the negotiation is over, an unknown
/// proposal is answered, a broken negotiation changes nothing.
#[test]
fn parameters_take_effect_only_after_negotiation() {
    let mut peer = plain();
    let message = peer.async_message(4);
    peer.send(message, b"");
    let request = peer.next();
    assert_eq!(
        (request.opcode(), request.data.len()),
        (opcode::TEXT_REQUEST, 0)
    );
    let itt = request.generic().task_tag;
    let propose = peer.text_response(itt, 3);
    peer.send(
        propose,
        b"MaxRecvDataSegmentLength=1024\0X-new=1\0TargetAlias=t\0",
    );
    let reply = peer.next();
    assert_eq!(reply.data, b"X-new=NotUnderstood\0");
    assert_eq!(peer.session.params().max_send_data_segment, 8192);
    let last = peer.text_response(itt, u32::MAX);
    peer.send(last, b"");
    assert_eq!(peer.session.params().max_send_data_segment, 1024);
    peer.events();
    peer.write(&bytes(4096));
    let itt = peer.next().generic().task_tag;
    let r2t = peer.r2t(itt, 0, 0, 4096);
    peer.send(r2t, b"");
    let sent = peer.all();
    assert_eq!(sent.len(), 4);
    assert!(sent.iter().all(|pdu| pdu.data.len() == 1024));

    for bad in [
        &b"MaxRecvDataSegmentLength=511\0"[..],
        b"MaxRecvDataSegmentLength=16777216\0",
        b"MaxRecvDataSegmentLength=1024\0MaxRecvDataSegmentLength=1024\0",
        b"no pair\0",
        b"\xff=1\0",
    ] {
        let mut peer = plain();
        peer.session.text(Vec::new()).expect("open");
        let itt = peer.next().generic().task_tag;
        let answer = peer.text_response(itt, u32::MAX);
        peer.send(answer, bad);
        assert_eq!(peer.session.params().max_send_data_segment, 8192);
        peer.broke_with("");
    }
}

/// DESIGN.md §2: a burst leaves as one vectored write also where the target takes 8 KiB at a time.
#[test]
fn burst_of_small_segments_is_one_vectored_write() {
    let mut peer = plain();
    peer.write(&bytes(262_144));
    let tag = peer.next().generic().task_tag;
    let r2t = peer.r2t(tag, 0, 0, 262_144);
    peer.send(r2t, b"");
    let slices = peer.session.transmit();
    let offered: usize = slices.iter().map(|slice| slice.len()).sum();
    assert_eq!(offered, 32 * (48 + 8192));
    // The system takes at most 1024 at a time.
    assert!(slices.len() <= 1024, "{}", slices.len());
    drop(slices);
    assert_eq!(peer.all().len(), 32);
}

/// §13.12: smaller segments while unsolicited data wait are counted anew.
#[test]
fn new_segment_length_recounts_unsolicited_data() {
    let offer = Offer {
        first_burst: 1 << 20,
        ..Offer::default()
    };
    let mut peer = Peer::logged_in(
        offer,
        b"InitialR2T=No\0ImmediateData=No\0FirstBurstLength=1048576\0MaxBurstLength=1048576\0\
          MaxRecvDataSegmentLength=65536\0",
    );
    peer.session.text(Vec::new()).expect("open");
    let itt = peer.next().generic().task_tag;
    let write = peer.write(&bytes(1 << 20));
    // Some of the burst is built and partly sent.
    let offered: usize = peer.session.transmit().iter().map(|s| s.len()).sum();
    assert!(offered < 1 << 20);
    let answer = peer.text_response(itt, u32::MAX);
    peer.send(answer, b"MaxRecvDataSegmentLength=8192\0");
    let data: Vec<usize> = peer.all().iter().map(|pdu| pdu.data.len()).collect();
    assert_eq!(data.iter().sum::<usize>(), 1 << 20);
    assert_eq!(data.last(), Some(&8192));
    let now = peer.now;
    assert_eq!(peer.session.progress(write), Some(Progress::Wholly(now)));
}

/// §11.10.4
#[test]
fn text_answers_against_the_rules() {
    type Case = (&'static str, fn(&mut TextResponse));
    let cases: [Case; 2] = [
        ("F and C", |pdu| pdu.flags = flag::FINAL | flag::CONTINUE),
        ("transfer tag", |pdu| {
            pdu.flags = 0;
            pdu.transfer_tag = U32::new(u32::MAX);
        }),
    ];
    for (what, change) in cases {
        let mut peer = plain();
        peer.session.text(Vec::new()).expect("open");
        let itt = peer.next().generic().task_tag;
        let mut answer = peer.text_response(itt, 1);
        change(&mut answer);
        peer.send(answer, b"");
        peer.broke_with(what);
    }
    // Final, though our request was not.
    let mut peer = plain();
    peer.session.text(vec![b'a'; 10_000]).expect("open");
    let itt = peer.next().generic().task_tag;
    let answer = peer.text_response(itt, u32::MAX);
    peer.send(answer, b"");
    peer.broke_with("before the request was whole");
    // Without end.
    let mut peer = plain();
    peer.session.text(Vec::new()).expect("open");
    for _ in 0..3000 {
        let Some(request) = peer.all().pop() else {
            break;
        };
        peer.open_window(request.generic().sn.get().wrapping_add(1), 8);
        let answer = peer.text_response(request.generic().task_tag, 1);
        peer.send(answer, b"");
    }
    assert!(peer.session.is_closed());
}

/// SAM-5 §5.3.1: fewer at a time for a unit that says it has too many, and more again later.
#[test]
fn task_set_full_and_busy_back_off() {
    for (status, left) in [(0x28, 15), (0x08, 8)] {
        let mut peer = plain();
        for _ in 0..16 {
            peer.read(512);
        }
        let sent = peer.all();
        let first = sent[0].generic().task_tag;
        let full = ScsiResponse {
            status,
            ..peer.scsi_response(first)
        };
        peer.send(full, b"");
        assert_eq!(status_of(&peer.outcomes()[0].1), status);
        for _ in 0..32 {
            peer.read(512);
        }
        assert!(
            peer.all().is_empty(),
            "{} in flight",
            peer.session.in_flight()
        );
        assert_eq!(peer.session.room(), 0);
        let mut open: std::collections::VecDeque<U32> =
            sent[1..].iter().map(|pdu| pdu.generic().task_tag).collect();
        // Nothing more before it has come down to `left`, then one more after each good round.
        let (mut answered, mut most) = (0, 0);
        while let Some(tag) = open.pop_front() {
            let done = peer.last_data_in(tag, 0, 0);
            peer.send(done, &bytes(512));
            answered += 1;
            let more = peer.all();
            assert_eq!(more.is_empty(), answered <= 15 - left || open.is_empty());
            open.extend(more.iter().map(|pdu| pdu.generic().task_tag));
            most = most.max(peer.session.in_flight());
            if peer.session.queued() == 0 {
                break;
            }
        }
        assert!(most > left, "{most} at a time again");
    }
}

/// §4.2.7.1, §13.21: a discovery session names no target, and only asks and logs out.
#[test]
fn discovery_needs_no_target_name() {
    let mut config = config(Offer::default());
    config.login.target_name = None;
    let mut peer = Peer::new(config);
    let first = peer.next();
    let text = String::from_utf8_lossy(&first.data).into_owned();
    assert!(text.contains("SessionType=Discovery\0") && !text.contains("TargetName="));
    let response = peer.login_response(0, 1);
    peer.send(response, b"");
    let offer = peer.next();
    let text = String::from_utf8_lossy(&offer.data).into_owned();
    for irrelevant in [
        "InitialR2T",
        "MaxBurstLength",
        "MaxConnections",
        "TaskReporting",
    ] {
        assert!(!text.contains(irrelevant), "{text}");
    }
    let response = peer.login_response(1, 3);
    peer.send(response, b"");
    peer.session
        .text(b"SendTargets=All\0".to_vec())
        .expect("open");
    let sent = peer.all();
    assert!(
        sent.iter().all(|pdu| pdu.opcode() == opcode::TEXT_REQUEST),
        "discovery_session_requests_limited"
    );
}

/// §11.12: names, ISID, TSIH, CID, versions and CmdSN are one for the whole login, and the first
/// command has that CmdSN; the TSIH is the target's and told in the final response.
#[test]
fn isid_tsih_cid_version_constant_in_login() {
    let mut peer = Peer::new(config(Offer::default()));
    let mut requests = vec![peer.next()];
    for (stage, next) in [(0, 1), (1, 3)] {
        let response = peer.login_response(stage, next);
        peer.send(response, b"");
        requests.extend(peer.all());
    }
    assert_eq!(requests.len(), 2);
    for request in &requests {
        let login: LoginRequest = request.as_();
        assert_eq!(login.opcode, 0x43, "immediate");
        assert_eq!(login.isid, [0x80, 1, 2, 3, 4, 5]);
        assert_eq!(login.tsih.get(), 0, "tsih_zero_for_new_session");
        assert_eq!(request.header[20..24], [0; 4], "CID");
        assert_eq!(request.header[2..4], [0; 2], "versions");
        assert_eq!(login.cmd_sn.get(), FIRST_CMD_SN);
        assert_eq!(request.header[16..20], requests[0].header[16..20], "ITT");
    }
    let events = peer.events();
    let [Event::LoggedIn(login)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(login.tsih, 9, "tsih_taken_from_final_response");
    peer.read(512);
    assert_eq!(
        peer.next().generic().sn.get(),
        FIRST_CMD_SN,
        "login_cmdsn_constant_and_first_command_same"
    );
}

/// §11.13.5, §6.3.3: the login is over when both sides say T with NSG 3, not before.
#[test]
fn final_response_needs_t_and_nsg3_in_both() {
    let mut peer = Peer::new(config(Offer::default()));
    peer.next();
    let response = peer.login_response(0, 1);
    peer.send(response, b"");
    peer.next();
    let not_yet = LoginResponse {
        flags: LoginRequest::stage_flags(false, false, 1, 0),
        ..peer.login_response(1, 3)
    };
    peer.send(not_yet, b"");
    assert!(peer.events().is_empty() && !peer.session.is_open());
    let again = peer.next();
    assert_eq!((again.header[1], again.data.len()), (0x87, 0));
    let response = peer.login_response(1, 3);
    peer.send(response, b"");
    assert!(matches!(peer.events()[..], [Event::LoggedIn(_)]));
}

/// §7.12: a negotiation that fails closes the connection and yields no session.
#[test]
fn negotiation_failure_closes() {
    for keys in [
        &b"MaxBurstLength=1\0"[..],
        b"InitialR2T=Maybe\0",
        b"MaxOutstandingR2T=9\0",
        b"HeaderDigest=CRC32C\0",
        b"MaxRecvDataSegmentLength=100\0",
        b"ErrorRecoveryLevel=1\0",
        b"no pair",
    ] {
        let mut peer = Peer::new(config(Offer::default()));
        peer.next();
        let response = peer.login_response(0, 1);
        peer.send(response, b"");
        peer.next();
        let response = peer.login_response(1, 3);
        peer.send(response, keys);
        let events = peer.events();
        assert!(
            matches!(events[..], [Event::LoginFailed(_), Event::Closed(_)]),
            "{events:?}"
        );
        assert!(peer.session.is_closed() && peer.all().is_empty());
    }
}

/// §6.1: 8192 bytes of keys in one sequence are fine, whatever is in them.
#[test]
fn accepts_8192_bytes_of_keys() {
    let mut keys = Vec::new();
    for n in 0..40 {
        keys.extend(format!("X-{n:03}={}\0", "v".repeat(190)).into_bytes());
    }
    keys.truncate(8192);
    let mut peer = Peer::new(config(Offer::default()));
    peer.next();
    let response = peer.login_response(0, 1);
    peer.send(response, b"");
    peer.next();
    let not_yet = LoginResponse {
        flags: LoginRequest::stage_flags(false, false, 1, 0),
        ..peer.login_response(1, 3)
    };
    assert!(keys.len() > 7000);
    peer.send(not_yet, &keys);
    let reply = String::from_utf8_lossy(&peer.next().data).into_owned();
    assert_eq!(reply.matches("=NotUnderstood\0").count(), 40);
    let response = peer.login_response(1, 3);
    peer.send(response, b"");
    assert!(matches!(peer.events()[..], [Event::LoggedIn(_)]));
}

/// §13.25
#[test]
fn marker_keys_answered_reject_or_no() {
    let mut peer = Peer::new(config(Offer::default()));
    peer.next();
    let response = peer.login_response(0, 1);
    peer.send(response, b"");
    peer.next();
    let not_yet = LoginResponse {
        flags: LoginRequest::stage_flags(false, false, 1, 0),
        ..peer.login_response(1, 3)
    };
    peer.send(
        not_yet,
        b"IFMarker=No\0OFMarker=Yes\0IFMarkInt=2048\0OFMarkInt=1~2\0",
    );
    let reply = peer.next().data;
    assert_eq!(
        reply,
        b"IFMarker=No\0OFMarker=No\0IFMarkInt=Reject\0OFMarkInt=Reject\0"
    );
}

/// §7.15, §6.3.5.1: each task of a session that ends has its one outcome before the end is told.
#[test]
fn all_tasks_terminated_before_new_session() {
    let mut peer = plain();
    let mut tags = vec![peer.read(512), peer.write(&bytes(4096))];
    tags.push(peer.session.ping(peer.now, 3).expect("open"));
    tags.push(peer.session.ping(peer.now, 3).expect("open"));
    tags.push(peer.session.text(Vec::new()).expect("open"));
    let reset = peer.session.manage(Function::LunReset, LUN, None);
    tags.push(reset.expect("open"));
    peer.session.close(PathCause::Administrative("test"));
    peer.session.close(PathCause::Administrative("again"));
    let events = peer.events();
    assert!(
        matches!(events.last(), Some(Event::Closed(_))),
        "i_t_nexus_loss_reported_up"
    );
    let mut ended: Vec<_> = events[..events.len() - 1]
        .iter()
        .map(|event| match event {
            Event::Done(tag, Outcome::Lost { .. }) => *tag,
            other => panic!("{other:?}"),
        })
        .collect();
    ended.sort_unstable();
    tags.sort_unstable();
    assert_eq!(ended, tags);
}
