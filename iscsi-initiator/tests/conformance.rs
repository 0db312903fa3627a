//! What RFC 7143 demands of an initiator in full feature phase, one test a rule, against a
//! scripted target. Section numbers are the RFC's. Login rules are tested beside the login.

mod peer;

use blockdev::{Applied, PathCause};
use iscsi_initiator::login::keys::{DigestWish, Offer};
use iscsi_initiator::pdu::header::*;
use iscsi_initiator::pdu::{flag, opcode};
use iscsi_initiator::session::{Event, Function, Outcome, Progress, SubmitError};
use peer::{config, Peer, FIRST_CMD_SN, LUN};
use std::time::Duration;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::IntoBytes;

fn plain() -> Peer {
    Peer::logged_in(Offer::default(), b"InitialR2T=Yes\0ImmediateData=No\0")
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn good(outcome: &Outcome) -> Vec<u8> {
    match outcome {
        Outcome::Scsi(answer) if answer.status == 0 => answer.data.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// §4.2.2.1, §11.12.8
#[test]
fn cmdsn_plus_one_per_nonimmediate_and_immediate_does_not_advance() {
    let mut peer = plain();
    peer.read(512);
    peer.session
        .manage(Function::LunReset, LUN, None)
        .expect("open");
    peer.read(512);
    let sent = peer.all();
    assert!(sent[0].is_immediate() && sent[0].opcode() == opcode::TMF_REQUEST);
    let cmd_sns: Vec<u32> = sent.iter().map(|pdu| pdu.generic().sn.get()).collect();
    assert_eq!(
        cmd_sns,
        [FIRST_CMD_SN, FIRST_CMD_SN, FIRST_CMD_SN.wrapping_add(1)]
    );
    assert!(sent.iter().all(|pdu| pdu.generic().exp_sn.get() == 102));
}

/// §4.2.2.1
#[test]
fn window_respected_across_wrap() {
    let mut peer = plain();
    for _ in 0..100 {
        peer.read(512);
    }
    let first = peer.all();
    assert_eq!(first.len(), 64);
    assert_eq!(first[63].generic().sn.get(), FIRST_CMD_SN.wrapping_add(63));
    assert_eq!((peer.session.room(), peer.session.queued()), (0, 36));
    // maxcmdsn_below_expcmdsn_minus_1_ignored, counters_never_go_back
    let exp = FIRST_CMD_SN.wrapping_add(64);
    for (exp, max) in [
        (exp, exp.wrapping_sub(2)),
        (FIRST_CMD_SN, FIRST_CMD_SN.wrapping_add(9)),
    ] {
        (peer.exp_cmd_sn, peer.max_cmd_sn) = (exp, max);
        let nop = peer.nop_in(u32::MAX, u32::MAX);
        peer.send(nop, b"");
        assert!(peer.all().is_empty());
    }
    peer.open_window(exp, 10);
    let nop = peer.nop_in(u32::MAX, u32::MAX);
    peer.send(nop, b"");
    let more = peer.all();
    assert_eq!(more.len(), 10, "informing_nopin_not_answered");
    assert_eq!(more[0].generic().sn.get(), exp);
}

/// §4.2.2.2, §11.9, §11.17.3, §11.19.2
#[test]
fn statsn_gap_drops_session_and_what_counts() {
    let mut peer = plain();
    let inform = peer.nop_in(u32::MAX, u32::MAX);
    peer.send(inform, b"");
    let message = peer.async_message(200);
    peer.send(message, b"");
    let tag = U32::new({
        peer.read(512);
        peer.next().generic().task_tag.get()
    });
    let pdu = peer.last_data_in(tag, 0, 0);
    peer.send(pdu, &bytes(512));
    assert_eq!(
        peer.outcomes().len(),
        1,
        "the async message counted, the NOP-In did not"
    );
    peer.stat_sn += 1;
    let message = peer.async_message(200);
    peer.send(message, b"");
    peer.broke_with("StatSN");
}

/// §4.2.2.2
#[test]
fn statsn_ack_within_bound_when_idle() {
    let mut peer = plain();
    let message = peer.async_message(200);
    peer.send(message, b"");
    let due = peer
        .session
        .poll_timeout()
        .expect("an acknowledgement is due");
    assert!(due <= peer.now + Duration::from_secs(1));
    peer.now = due;
    peer.session.handle_timeout(due);
    let ack = peer.next();
    // ack_nopout_is_immediate_with_ffffffff
    assert_eq!((ack.opcode(), ack.is_immediate()), (opcode::NOP_OUT, true));
    assert_eq!(ack.generic().task_tag.get(), u32::MAX);
    assert_eq!(ack.generic().transfer_tag.get(), u32::MAX);
    assert_eq!(ack.generic().exp_sn.get(), peer.stat_sn);
}

/// §11.2.1.8
#[test]
fn late_pdu_of_old_task_not_taken_for_new() {
    let mut peer = plain();
    peer.read(512);
    let old = peer.next().generic().task_tag;
    let pdu = peer.last_data_in(old, 0, 0);
    peer.send(pdu, &bytes(512));
    peer.read(512);
    let new = peer.next().generic().task_tag;
    assert_ne!(old, new);
    let pdu = peer.last_data_in(old, 0, 0);
    peer.send(pdu, &bytes(512));
    peer.broke_with("unknown task");
}

/// §11
#[test]
fn reserved_bits_sent_zero() {
    let mut peer = Peer::logged_in(
        Offer::default(),
        b"InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=65536\0FirstBurstLength=16384\0",
    );
    peer.read(512);
    peer.write(&bytes(32_768));
    peer.session.ping(peer.now, 5).expect("open");
    peer.session
        .manage(Function::LunReset, LUN, None)
        .expect("open");
    peer.session.text(b"X=1\0".to_vec()).expect("open");
    for pdu in peer.all() {
        assert_eq!(pdu.header[2..5], [0, 0, 0], "{pdu:?}");
        match pdu.opcode() {
            opcode::SCSI_COMMAND => assert_eq!(pdu.header[1] & 0x18, 0),
            opcode::DATA_OUT => {
                assert_eq!(pdu.header[8..16], [0; 8], "LUN of unsolicited data");
                assert_eq!(pdu.header[20..24], [0xff; 4]);
                assert_eq!(pdu.header[24..28], [0; 4]);
                assert_eq!(
                    (&pdu.header[32..36], &pdu.header[44..48]),
                    (&[0; 4][..], &[0; 4][..])
                );
                assert_eq!(pdu.header[1] & 0x7f, 0);
            }
            opcode::TMF_REQUEST => {
                assert_eq!(pdu.header[1], 0x85);
                assert_eq!(
                    pdu.header[20..24],
                    [0xff; 4],
                    "tmf_referenced_tag_ffffffff_otherwise"
                );
                assert_eq!(pdu.header[32..48], [0; 16]);
            }
            opcode::NOP_OUT | opcode::TEXT_REQUEST => {
                assert_eq!(pdu.header[1], 0x80);
                assert_eq!(pdu.header[32..48], [0; 16]);
            }
            other => panic!("initiator_sends_only_initiator_opcodes: {other:#x}"),
        }
    }
}

/// §4.2.5.2, §11.3.4, §11.7
#[test]
fn unsolicited_total_exact_and_f_bit_rules_of_command() {
    for (len, first) in [
        (4096, 16_384),
        (8192, 16_384),
        (12_288, 16_384),
        (65_536, 16_384),
    ] {
        let mut peer = Peer::logged_in(
            Offer::default(),
            b"InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=16384\0",
        );
        let data = bytes(len);
        let tag = peer.write(&data);
        let sent = peer.all();
        let command: ScsiCommand = sent[0].as_();
        let total: usize = sent.iter().map(|pdu| pdu.data.len()).sum();
        assert_eq!(total, len.min(first));
        assert_eq!(command.flags & flag::FINAL != 0, sent.len() == 1);
        assert_eq!(command.flags & flag::WRITE, flag::WRITE);
        assert!(!sent[0].is_immediate(), "writes_never_immediate");
        let mut offset = sent[0].data.len();
        for (sn, pdu) in sent[1..].iter().enumerate() {
            let out: DataOut = pdu.as_();
            assert_eq!(out.data_sn.get(), sn as u32);
            assert_eq!(out.buffer_offset.get() as usize, offset);
            assert!(pdu.data.len() <= 8192, "data_pdu_never_above_peer_mrdsl");
            assert_eq!(pdu.data, data[offset..offset + pdu.data.len()]);
            offset += pdu.data.len();
            assert_eq!(out.flags & flag::FINAL != 0, offset == total);
        }
        assert_eq!(peer.session.progress(tag), Some(Progress::Wholly(peer.now)));
    }
}

/// §4.2.5.2: the unsolicited data of one command before those of the next.
#[test]
fn unsolicited_data_order_follows_commands() {
    let mut peer = Peer::logged_in(
        Offer::default(),
        b"InitialR2T=No\0ImmediateData=No\0FirstBurstLength=32768\0",
    );
    for _ in 0..3 {
        peer.write(&bytes(32_768));
    }
    let tags: Vec<u32> = peer
        .all()
        .iter()
        .filter(|pdu| pdu.opcode() == opcode::DATA_OUT)
        .map(|pdu| pdu.generic().task_tag.get())
        .collect();
    assert_eq!(tags.len(), 12);
    assert!(tags
        .chunks(4)
        .all(|four| four.iter().all(|tag| tag == &four[0])));
}

/// §11.8, §4.2.2.4
#[test]
fn r2t_honoured_exactly() {
    let mut peer = Peer::logged_in(
        Offer::default(),
        b"InitialR2T=Yes\0ImmediateData=No\0MaxOutstandingR2T=2\0MaxBurstLength=20480\0",
    );
    let data = bytes(40_960);
    peer.write(&data);
    let tag = peer.next().generic().task_tag;
    for (sn, offset) in [(0, 0), (1, 20_480)] {
        let r2t = peer.r2t(tag, sn, offset, 20_480);
        peer.send(r2t, b"");
    }
    let sent = peer.all();
    assert_eq!(sent.len(), 6, "r2ts_of_a_task_in_order");
    for (half, burst) in sent.chunks(3).enumerate() {
        let mut offset = half * 20_480;
        for (sn, pdu) in burst.iter().enumerate() {
            let out: DataOut = pdu.as_();
            assert_eq!(out.data_sn.get(), sn as u32, "DataSN restarts");
            assert_eq!(out.transfer_tag.get(), 0x7700 + half as u32);
            assert_eq!((out.lun, out.task_tag), (LUN, tag));
            assert_eq!(out.buffer_offset.get() as usize, offset);
            assert_eq!(pdu.data, data[offset..offset + pdu.data.len()]);
            assert_eq!(out.flags & flag::FINAL != 0, sn == 2);
            offset += pdu.data.len();
        }
        assert_eq!(offset, (half + 1) * 20_480);
    }
    // duplicate_r2tsn_discarded, §7.9
    let duplicate = peer.r2t(tag, 1, 20_480, 20_480);
    peer.send(duplicate, b"");
    assert!(peer.all().is_empty());
    let response = peer.scsi_response(tag);
    peer.send(response, b"");
    assert!(good(&peer.outcomes()[0].1).is_empty());
}

/// §4.2.5.2, §4.2.5.3
#[test]
fn r2t_out_of_bounds_drops_session() {
    type Case = (&'static str, fn(&mut R2t));
    let cases: [Case; 6] = [
        ("expected length", |r2t| r2t.buffer_offset = U32::new(4096)),
        ("expected length", |r2t| {
            r2t.buffer_offset = U32::new(u32::MAX)
        }),
        ("no length", |r2t| r2t.desired_len = U32::new(0)),
        ("LUN", |r2t| r2t.lun[1] = 9),
        ("R2TSN", |r2t| r2t.r2t_sn = U32::new(1)),
        ("unknown", |r2t| r2t.task_tag = U32::new(0x1234)),
    ];
    for (what, change) in cases {
        let mut peer = plain();
        peer.write(&bytes(4096));
        let tag = peer.next().generic().task_tag;
        let mut r2t = peer.r2t(tag, 0, 0, 4096);
        change(&mut r2t);
        peer.send(r2t, b"");
        peer.broke_with(what);
    }
    let mut peer = plain();
    peer.read(4096);
    let tag = peer.next().generic().task_tag;
    let r2t = peer.r2t(tag, 0, 0, 4096);
    peer.send(r2t, b"");
    peer.broke_with("writes nothing");
}

/// §13.17
#[test]
fn more_r2ts_than_negotiated_drop_the_session() {
    let mut peer = Peer::logged_in(
        Offer::default(),
        b"InitialR2T=Yes\0ImmediateData=No\0MaxOutstandingR2T=1\0",
    );
    peer.write(&bytes(8192));
    let tag = peer.next().generic().task_tag;
    for sn in 0..2 {
        let r2t = peer.r2t(tag, sn, sn * 4096, 4096);
        peer.send(r2t, b"");
    }
    peer.broke_with("MaxOutstandingR2T");
}

/// §11.7
#[test]
fn status_in_data_in_accepted_and_data_come_in_pieces() {
    let mut peer = plain();
    let data = bytes(200_000 / 512 * 512);
    let len = data.len() as u32;
    peer.read(len);
    let tag = peer.next().generic().task_tag;
    let parts: Vec<&[u8]> = data.chunks(30_000).collect();
    let mut offset = 0;
    for (sn, part) in parts.iter().enumerate() {
        let pdu = match sn + 1 == parts.len() {
            true => peer.last_data_in(tag, sn as u32, offset),
            false => peer.data_in(tag, sn as u32, offset),
        };
        peer.send(pdu, part);
        offset += part.len() as u32;
        // zero_length_data_in_accepted is below; nothing is told before the status.
        assert_eq!(peer.session.in_flight() == 0, sn + 1 == parts.len());
    }
    assert!(good(&peer.outcomes()[0].1) == data);
}

/// §11.7: tgt sends a Data-In full of stale memory before a CHECK CONDITION.
#[test]
fn data_before_check_condition_never_delivered() {
    let mut peer = plain();
    let tag = peer.read(512);
    let itt = peer.next().generic().task_tag;
    let pdu = peer.data_in(itt, 0, 0);
    peer.send(pdu, &bytes(512));
    let mut sense = vec![
        0, 18, 0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0,
    ];
    sense.truncate(20);
    let response = ScsiResponse {
        status: 2,
        ..peer.scsi_response(itt)
    };
    peer.send(response, &sense);
    let events = peer.events();
    let [Event::Attention(attention), Event::Done(done, Outcome::Scsi(answer))] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((done, answer.status), (&tag, 2));
    assert!(answer.data.is_empty());
    assert_eq!(answer.sense, Some(*attention));
    assert_eq!((attention.key, attention.asc), (6, 0x29));
}

/// P10, §11.7.6: not one byte outside the buffer.
#[test]
fn data_in_beyond_edtl_never_written() {
    for (offset, len) in [
        (0, 1024),
        (512, 512),
        (1, 512),
        (u32::MAX, 512),
        (0xffff_fe00, 512),
    ] {
        let mut peer = plain();
        peer.read(512);
        let tag = peer.next().generic().task_tag;
        let pdu = peer.data_in(tag, 0, offset);
        peer.send(pdu, &bytes(len));
        peer.broke_with("beyond the expected length");
    }
}

/// §7.9
#[test]
fn datasn_gap_detected_and_expdatasn_mismatch_detected() {
    let mut peer = plain();
    peer.read(1024);
    let tag = peer.next().generic().task_tag;
    let pdu = peer.data_in(tag, 1, 0);
    peer.send(pdu, &bytes(512));
    peer.broke_with("DataSN");
    let mut peer = plain();
    peer.read(512);
    let tag = peer.next().generic().task_tag;
    let pdu = peer.data_in(tag, 0, 0);
    peer.send(pdu, &bytes(512));
    let response = ScsiResponse {
        exp_data_sn: U32::new(2),
        ..peer.scsi_response(tag)
    };
    peer.send(response, b"");
    peer.broke_with("ExpDataSN");
    let mut peer = plain();
    peer.read(1024);
    let tag = peer.next().generic().task_tag;
    let pdu = peer.data_in(tag, 0, 512);
    peer.send(pdu, &bytes(512));
    peer.broke_with("order");
}

/// §11.7.7
#[test]
fn zero_length_data_in_accepted() {
    let mut peer = plain();
    peer.read(512);
    let tag = peer.next().generic().task_tag;
    let empty = peer.data_in(tag, 0, 0);
    peer.send(empty, b"");
    let pdu = peer.last_data_in(tag, 1, 0);
    peer.send(pdu, &bytes(512));
    assert_eq!(good(&peer.outcomes()[0].1), bytes(512));
}

/// §11.4.1, §11.4.5
#[test]
fn residual_under_over_and_ignored_without_flag() {
    let answer = |flags: u8, residual: u32, len: usize| {
        let mut peer = plain();
        peer.read(1024);
        let tag = peer.next().generic().task_tag;
        if len > 0 {
            let pdu = peer.data_in(tag, 0, 0);
            peer.send(pdu, &bytes(len));
        }
        let response = ScsiResponse {
            flags: flag::FINAL | flags,
            residual: U32::new(residual),
            ..peer.scsi_response(tag)
        };
        peer.send(response, b"");
        peer.outcomes().pop().expect("one outcome").1
    };
    assert_eq!(good(&answer(flag::UNDERFLOW, 512, 512)).len(), 512);
    assert_eq!(good(&answer(flag::OVERFLOW, 512, 1024)).len(), 1024);
    assert_eq!(good(&answer(0, 77, 1024)).len(), 1024);
    for (flags, residual, len) in [
        (0, 0, 512),
        (flag::UNDERFLOW, 512, 1024),
        (flag::UNDERFLOW, 9999, 0),
        (0, 0, 0),
    ] {
        assert!(matches!(answer(flags, residual, len), Outcome::Bad(_)));
    }
}

/// §11.4.3, and CHECK CONDITION without sense (istgt).
#[test]
fn nonzero_response_ignores_status_and_missing_sense_survives() {
    let mut peer = plain();
    peer.read(512);
    let tag = peer.next().generic().task_tag;
    let response = ScsiResponse {
        response: 1,
        ..peer.scsi_response(tag)
    };
    peer.send(response, b"");
    assert!(matches!(peer.outcomes()[0].1, Outcome::Bad(_)));
    peer.read(512);
    let tag = peer.next().generic().task_tag;
    let response = ScsiResponse {
        status: 2,
        ..peer.scsi_response(tag)
    };
    peer.send(response, b"");
    let Outcome::Scsi(answer) = &peer.outcomes()[0].1 else {
        panic!("no answer")
    };
    assert_eq!((answer.status, answer.sense), (2, None));
    assert!(peer.session.is_open());
}

/// §11.18: TTT and all eight bytes of the LUN are copied.
#[test]
fn target_ping_answered_with_ttt_and_lun() {
    let mut peer = plain();
    let ping = NopIn {
        lun: [1, 2, 3, 4, 5, 6, 7, 8],
        ..peer.nop_in(u32::MAX, 42)
    };
    peer.send(ping, b"");
    let answer = peer.next();
    assert_eq!(
        (answer.opcode(), answer.is_immediate()),
        (opcode::NOP_OUT, true)
    );
    assert_eq!(answer.generic().task_tag.get(), u32::MAX);
    assert_eq!(answer.generic().transfer_tag.get(), 42);
    assert_eq!(answer.generic().lun, [1, 2, 3, 4, 5, 6, 7, 8]);
}

/// §11.18.3
#[test]
fn ping_echo_verified() {
    let mut peer = plain();
    let tag = peer.session.ping(peer.now, 100).expect("open");
    peer.session.ping(peer.now, 0).expect("open");
    let ping = peer.next();
    assert!(peer.all().is_empty(), "one ping outstanding at a time");
    let echo = peer.nop_in(ping.generic().task_tag.get(), u32::MAX);
    peer.send(echo, &ping.data);
    assert_eq!(peer.outcomes(), [(tag, Outcome::Pong(true))]);
    let ping = peer.next();
    let echo = peer.nop_in(ping.generic().task_tag.get(), u32::MAX);
    peer.send(echo, b"what");
    assert!(matches!(peer.outcomes()[0].1, Outcome::Pong(false)));
}

/// §7.11: silence is noticed, and our own stall is not held against the target.
#[test]
fn silent_target_ends_the_session() {
    let mut peer = plain();
    peer.read(512);
    peer.all();
    peer.now = peer.session.poll_timeout().expect("keepalive");
    peer.session.handle_timeout(peer.now);
    assert_eq!(peer.next().opcode(), opcode::NOP_OUT);
    let due = peer.session.poll_timeout().expect("answer due");
    peer.session.excuse(Duration::from_millis(300));
    peer.session.handle_timeout(due);
    assert!(peer.session.is_open());
    peer.session
        .handle_timeout(due + Duration::from_millis(300));
    let events = peer.events();
    let lost = |event: &Event| {
        matches!(
            event,
            Event::Done(
                _,
                Outcome::Lost {
                    applied: Applied::Unknown,
                    ..
                }
            )
        )
    };
    assert!(events.iter().any(lost), "{events:?}");
    assert!(matches!(
        events.last(),
        Some(Event::Closed(PathCause::Silent(_)))
    ));
}

/// §11.5.1, §11.5.5, §4.2.3.3
#[test]
fn abort_task_refcmdsn_and_its_answers() {
    let mut peer = plain();
    let read = peer.read(512);
    let command = peer.next();
    let abort = peer
        .session
        .manage(Function::AbortTask, LUN, Some(read))
        .expect("open");
    let request: TmfRequest = peer.next().as_();
    assert_eq!(request.flags, 0x81);
    assert_eq!(request.referenced_tag, command.generic().task_tag);
    assert_eq!(request.ref_cmd_sn, command.generic().sn);
    let response = peer.tmf_response(request.task_tag, 0);
    peer.send(response, b"");
    let outcomes = peer.outcomes();
    let (first, Outcome::Scsi(answer)) = &outcomes[0] else {
        panic!("{outcomes:?}")
    };
    assert_eq!((first, answer.status), (&read, 0x40));
    assert_eq!(outcomes[1], (abort, Outcome::Tmf(0)));
    // late_responses_discarded: data and status of the aborted task go nowhere.
    let late = peer.last_data_in(command.generic().task_tag, 0, 0);
    peer.send(late, &bytes(512));
    assert!(peer.session.is_open() && peer.outcomes().is_empty());
    // "Task does not exist", but its status never came: something is lost.
    let read = peer.read(512);
    peer.next();
    peer.session
        .manage(Function::AbortTask, LUN, Some(read))
        .expect("open");
    let request: TmfRequest = peer.next().as_();
    let response = peer.tmf_response(request.task_tag, 1);
    peer.send(response, b"");
    peer.broke_with("ABORT TASK");
}

/// §4.2.3.3: R2Ts are answered until the reset is; then everything before it is over.
#[test]
fn tmf_keeps_answering_r2t_and_response_concludes_all_affected() {
    let mut peer = plain();
    let write = peer.write(&bytes(4096));
    let itt = peer.next().generic().task_tag;
    let reset = peer
        .session
        .manage(Function::LunReset, LUN, None)
        .expect("open");
    let request: TmfRequest = peer.next().as_();
    let after = peer.read(512);
    peer.next();
    let r2t = peer.r2t(itt, 0, 0, 4096);
    peer.send(r2t, b"");
    assert_eq!(peer.next().data, bytes(4096));
    let response = peer.tmf_response(request.task_tag, 0);
    peer.send(response, b"");
    let ended: Vec<_> = peer.outcomes().into_iter().map(|(tag, _)| tag).collect();
    assert_eq!(
        ended,
        [write, reset],
        "what was sent after the reset goes on"
    );
    assert!(peer.session.progress(after).is_some());
}

/// §11.6.1
#[test]
fn tmf_refusals_end_nothing_else() {
    for response in [2, 3, 4, 5, 6, 255] {
        let mut peer = plain();
        let read = peer.read(512);
        peer.next();
        let reset = peer
            .session
            .manage(Function::LunReset, LUN, None)
            .expect("open");
        let request: TmfRequest = peer.next().as_();
        let answer = peer.tmf_response(request.task_tag, response);
        peer.send(answer, b"");
        assert_eq!(peer.outcomes(), [(reset, Outcome::Tmf(response))]);
        assert!(peer.session.progress(read).is_some());
    }
}

/// §11.9.1
#[test]
fn async_messages() {
    let mut peer = plain();
    let request = AsyncMessage {
        parameter_3: U16::new(7),
        ..peer.async_message(1)
    };
    peer.send(request, b"");
    let events = peer.events();
    assert!(matches!(events[..], [Event::LogoutRequested(within)] if within.as_secs() == 7));
    let command = iscsi_initiator::session::ScsiCommand {
        lun: LUN,
        cdb: [0; 16],
        transfer: iscsi_initiator::session::Transfer::None,
        attribute: Default::default(),
    };
    assert_eq!(
        peer.session.submit(command),
        Err(SubmitError::Leaving),
        "no_new_commands_after_it"
    );
    let mut peer = plain();
    let negotiate = peer.async_message(4);
    peer.send(negotiate, b"");
    assert_eq!(
        peer.next().opcode(),
        opcode::TEXT_REQUEST,
        "async_negotiation_request_answered"
    );
    for event in [2, 3] {
        let mut peer = plain();
        let dropped = peer.async_message(event);
        peer.send(dropped, b"");
        peer.broke_with("drops the connection");
    }
    let mut peer = plain();
    let abort = peer.async_message(5);
    peer.send(abort, b"");
    peer.broke_with("FastAbort");
    let mut peer = plain();
    let sense = AsyncMessage {
        lun: LUN,
        ..peer.async_message(0)
    };
    peer.send(sense, &[0, 8, 0x72, 6, 0x2a, 9, 0, 0, 0, 0]);
    assert!(matches!(peer.events()[..], [Event::Attention(sense)] if sense.asc == 0x2a));
}

/// §7.3, §11.17.1
#[test]
fn reject_of_command_leaves_no_hole() {
    let mut peer = plain();
    peer.read(512);
    let command = peer.next();
    let reject = peer.reject(4);
    peer.send(reject, &command.header);
    peer.broke_with("rejected");
    // Too many immediate commands: only that request failed.
    let mut peer = plain();
    let tag = peer
        .session
        .manage(Function::LunReset, LUN, None)
        .expect("open");
    let request = peer.next();
    let reject = peer.reject(6);
    peer.send(reject, &request.header);
    assert_eq!(peer.outcomes(), [(tag, Outcome::Rejected(6))]);
    assert!(peer.session.is_open());
    let reject = peer.reject(6);
    peer.send(reject, b"short");
    peer.broke_with("rejected");
}

/// §11.10
#[test]
fn text_ttt_and_lun_copied_and_one_outstanding() {
    let mut peer = plain();
    let tag = peer
        .session
        .text(b"SendTargets=All\0".to_vec())
        .expect("open");
    assert_eq!(peer.session.text(Vec::new()), Err(SubmitError::Full));
    let first = peer.next();
    assert_eq!(
        (first.header[1], &first.data[..]),
        (0x80, &b"SendTargets=All\0"[..])
    );
    let more = TextResponse {
        opcode: opcode::TEXT_RESPONSE,
        lun: [8; 8],
        task_tag: first.generic().task_tag,
        transfer_tag: U32::new(5),
        stat_sn: peer.count(),
        exp_cmd_sn: U32::new(peer.exp_cmd_sn),
        max_cmd_sn: U32::new(peer.max_cmd_sn),
        ..Default::default()
    };
    peer.send(more, b"TargetName=iqn.a\0Targ");
    let second = peer.next();
    assert_eq!(second.generic().task_tag, first.generic().task_tag);
    assert_eq!(second.generic().transfer_tag.get(), 5);
    assert_eq!((second.generic().lun, second.data.len()), ([8; 8], 0));
    assert_eq!(second.is_immediate(), first.is_immediate());
    let last = TextResponse {
        flags: flag::FINAL,
        transfer_tag: U32::new(u32::MAX),
        stat_sn: peer.count(),
        ..more
    };
    peer.send(last, b"etName=iqn.b\0");
    let joined = b"TargetName=iqn.a\0TargetName=iqn.b\0".to_vec();
    assert_eq!(peer.outcomes(), [(tag, Outcome::Text(joined))]);
}

/// §11.14
#[test]
fn nothing_sent_after_logout() {
    let mut peer = plain();
    peer.read(512);
    let itt = peer.next().generic().task_tag;
    let tag = peer.session.logout().expect("open");
    assert!(peer.all().is_empty(), "drains first");
    let pdu = peer.last_data_in(itt, 0, 0);
    peer.send(pdu, &bytes(512));
    assert_eq!(peer.outcomes().len(), 1);
    let request = peer.next();
    assert_eq!(
        (request.opcode(), request.header[1]),
        (opcode::LOGOUT_REQUEST, 0x80)
    );
    assert!(peer.session.ping(peer.now, 0).is_err());
    let response = LogoutResponse {
        opcode: opcode::LOGOUT_RESPONSE,
        flags: flag::FINAL,
        task_tag: request.generic().task_tag,
        stat_sn: peer.count(),
        ..Default::default()
    };
    peer.send(response, b"");
    let events = peer.events();
    assert!(matches!(&events[0], Event::Done(done, Outcome::LoggedOut(0)) if *done == tag));
    assert!(matches!(events[1], Event::Closed(_)) && peer.session.is_closed());
}

/// §13.1, §11.2.3, §7.8. The peer checks every digest the session sends.
#[test]
fn digests_on_every_full_feature_pdu() {
    let digests = || {
        let offer = Offer {
            header_digest: DigestWish::Crc32c,
            data_digest: DigestWish::PreferCrc32c,
            ..Offer::default()
        };
        let keys = b"HeaderDigest=CRC32C\0DataDigest=CRC32C\0InitialR2T=No\0ImmediateData=Yes\0\
                     FirstBurstLength=16384\0";
        Peer::logged_in(offer, keys)
    };
    let mut peer = digests();
    peer.write(&bytes(16_384));
    peer.session.ping(peer.now, 7).expect("open");
    assert_eq!(peer.all().len(), 3);
    peer.read(8192);
    let tag = peer.next().generic().task_tag;
    let pdu = peer.last_data_in(tag, 0, 0);
    peer.send(pdu, &bytes(8192));
    assert_eq!(good(&peer.outcomes()[0].1), bytes(8192));

    let corrupt = |at: fn(usize) -> usize, what: &str| {
        let mut peer = digests();
        let tag = peer.read(8192);
        let itt = peer.next().generic().task_tag;
        let pdu = peer.last_data_in(itt, 0, 0);
        let mut wire = peer.encode(pdu.as_bytes(), &bytes(8192));
        let at = at(wire.len());
        wire[at] ^= 0x10;
        peer.session.handle_bytes(peer.now, &wire);
        let events = peer.events();
        assert!(matches!(&events[0], Event::Done(done, Outcome::Lost { .. }) if *done == tag));
        let Some(Event::Closed(cause)) = events.last() else {
            panic!("{events:?}")
        };
        assert!(cause.to_string().contains(what), "{cause}");
    };
    corrupt(|_| 40, "header digest");
    corrupt(|_| 49, "header digest");
    corrupt(|len| len - 1, "data digest");
    corrupt(|_| 1000, "data digest");
}

/// Any segmentation of the stream, digests alone in a segment too.
#[test]
fn stream_split_at_every_byte() {
    let offer = Offer {
        header_digest: DigestWish::Crc32c,
        data_digest: DigestWish::Crc32c,
        ..Offer::default()
    };
    let mut peer = Peer::logged_in(offer, b"HeaderDigest=CRC32C\0DataDigest=CRC32C\0");
    let data = bytes(5632);
    let build = |peer: &mut Peer| {
        peer.read(5632);
        let tag = peer.next().generic().task_tag;
        let cmd_sn = peer.exp_cmd_sn.wrapping_add(1);
        peer.open_window(cmd_sn, 64);
        let mut wire = Vec::new();
        let first = peer.data_in(tag, 0, 0);
        wire.extend(peer.encode(first.as_bytes(), &data[..2563]));
        let ping = peer.nop_in(u32::MAX, 3);
        wire.extend(peer.encode(ping.as_bytes(), b""));
        let last = peer.last_data_in(tag, 1, 2563);
        wire.extend(peer.encode(last.as_bytes(), &data[2563..]));
        wire
    };
    let len = build(&mut peer).len();
    // That first one is never answered; it stays in flight beside the others.
    peer.stat_sn -= 1;
    for cut in 0..=len {
        let wire = build(&mut peer);
        peer.session.handle_bytes(peer.now, &wire[..cut]);
        peer.session.handle_bytes(peer.now, &wire[cut..]);
        assert!(good(&peer.outcomes()[0].1) == data, "cut at {cut}");
        assert_eq!(peer.next().generic().transfer_tag.get(), 3);
    }
    for byte in build(&mut peer) {
        peer.session.handle_bytes(peer.now, &[byte]);
    }
    assert!(good(&peer.outcomes()[0].1) == data);
}

/// P10: after each byte of a stream the connection may end; every task ends once.
#[test]
fn kill_at_every_byte() {
    let build = || {
        let mut peer = plain();
        peer.read(512);
        peer.write(&bytes(1024));
        let tags: Vec<U32> = peer
            .all()
            .iter()
            .map(|pdu| pdu.generic().task_tag)
            .collect();
        let mut wire = Vec::new();
        let data = peer.last_data_in(tags[0], 0, 0);
        wire.extend(peer.encode(data.as_bytes(), &bytes(512)));
        let r2t = peer.r2t(tags[1], 0, 0, 1024);
        wire.extend(peer.encode(r2t.as_bytes(), b""));
        let response = peer.scsi_response(tags[1]);
        wire.extend(peer.encode(response.as_bytes(), b""));
        (peer, wire)
    };
    let (_, wire) = build();
    for cut in 0..=wire.len() {
        let (mut peer, wire) = build();
        peer.session.handle_bytes(peer.now, &wire[..cut]);
        peer.session.receive_space();
        peer.session.received(peer.now, 0);
        assert_eq!(peer.outcomes().len(), 2, "cut at {cut}");
        assert!(peer.session.is_closed());
    }
}

/// A command of which no byte was sent can be taken back; later ones close the gap in CmdSN.
#[test]
fn withdrawn_command_leaves_no_hole() {
    let mut peer = plain();
    let tags: Vec<_> = (0..4).map(|_| peer.read(512)).collect();
    let offered: usize = peer
        .session
        .transmit()
        .iter()
        .map(|slice| slice.len())
        .sum();
    assert_eq!(offered, 4 * 48);
    // One command and a half are in the socket.
    peer.session.transmitted(peer.now, 72);
    assert!(matches!(
        peer.session.progress(tags[0]),
        Some(Progress::Wholly(_))
    ));
    assert_eq!(peer.session.progress(tags[1]), Some(Progress::Partly));
    assert!(!peer.session.withdraw(tags[0]) && !peer.session.withdraw(tags[1]));
    assert!(peer.session.withdraw(tags[2]));
    let slices: Vec<u8> = peer
        .session
        .transmit()
        .iter()
        .flat_map(|s| s.to_vec())
        .collect();
    assert_eq!(slices.len(), 24 + 48);
    let cmd_sn = u32::from_be_bytes(slices[24 + 24..24 + 28].try_into().expect("four bytes"));
    assert_eq!(cmd_sn, FIRST_CMD_SN.wrapping_add(2));
    peer.session.close(PathCause::Silent(Duration::ZERO));
    let applied: Vec<_> = peer
        .outcomes()
        .into_iter()
        .map(|(tag, outcome)| match outcome {
            Outcome::Withdrawn => (tag, None),
            Outcome::Lost { applied, .. } => (tag, Some(applied)),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        applied,
        [
            (tags[2], None),
            (tags[0], Some(Applied::Unknown)),
            (tags[1], Some(Applied::No)),
            (tags[3], Some(Applied::No)),
        ]
    );
}

/// §4.2.4, §7.7: a PDU that does not belong into its phase.
#[test]
fn non_login_pdu_in_login_closes_and_login_pdu_later() {
    let mut peer = Peer::new(config(Offer::default()));
    peer.next();
    let nop = peer.nop_in(u32::MAX, 1);
    peer.send(nop, b"");
    peer.broke_with("phase");
    let mut peer = plain();
    let login = peer.login_response(1, 3);
    peer.send(login, b"");
    peer.broke_with("phase");
    // Nothing is told of an answer to a command that is not sent.
    let mut peer = plain();
    peer.read(512);
    let response = peer.scsi_response(U32::new(0x1000));
    peer.send(response, b"");
    peer.broke_with("");
}

/// P10: no data segment above what we declared is taken in.
#[test]
fn data_segment_above_our_limit_closes() {
    let mut peer = plain();
    peer.read(1 << 20);
    let tag = peer.next().generic().task_tag;
    let pdu = peer.data_in(tag, 0, 0);
    peer.send(pdu, &bytes(262_145));
    peer.broke_with("MaxRecvDataSegmentLength");
}

/// §13.18, §13.19: where the target may reorder, data come in any order but never twice.
#[test]
fn data_in_any_order_when_negotiated() {
    let unordered = || {
        let offer = Offer {
            data_pdu_in_order: false,
            data_sequence_in_order: false,
            ..Offer::default()
        };
        Peer::logged_in(offer, b"DataPDUInOrder=No\0DataSequenceInOrder=No\0")
    };
    let data = bytes(2048);
    let mut peer = unordered();
    peer.read(2048);
    let tag = peer.next().generic().task_tag;
    for (sn, at) in [(0, 1024), (1, 0), (2, 1536), (3, 512)] {
        let pdu = match sn {
            3 => peer.last_data_in(tag, sn, at as u32),
            _ => peer.data_in(tag, sn, at as u32),
        };
        peer.send(pdu, &data[at..at + 512]);
    }
    assert_eq!(good(&peer.outcomes()[0].1), data);
    let mut peer = unordered();
    peer.read(2048);
    let tag = peer.next().generic().task_tag;
    for (sn, at) in [(0, 1024), (1, 768)] {
        let pdu = peer.data_in(tag, sn, at);
        peer.send(pdu, &bytes(512));
    }
    peer.broke_with("overlaps");
}
