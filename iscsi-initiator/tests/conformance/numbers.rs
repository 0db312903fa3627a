//! CmdSN, StatSN, tags, and how many commands are sent at a time.

use super::*;

/// A read, a function that overtakes it, and another read.
fn three_requests() -> Vec<peer::Sent> {
    let mut peer = plain();
    peer.read(512);
    peer.session
        .manage(Function::LunReset, LUN, None)
        .expect("open");
    peer.read(512);
    let sent = peer.all();
    assert!(sent.iter().all(|pdu| pdu.generic().exp_sn.get() == 102));
    sent
}

/// §4.2.2.1
#[test]
fn cmdsn_plus_one_per_nonimmediate() {
    let sent = three_requests();
    let numbered = sent.iter().filter(|pdu| !pdu.is_immediate());
    let cmd_sns: Vec<u32> = numbered.map(|pdu| pdu.generic().sn.get()).collect();
    assert_eq!(cmd_sns, [FIRST_CMD_SN, FIRST_CMD_SN.wrapping_add(1)]);
}

/// §4.2.2.1: an immediate request carries the current CmdSN and leaves it to the next one.
#[test]
fn immediate_does_not_advance() {
    let sent = three_requests();
    assert!(sent[0].is_immediate() && sent[0].opcode() == opcode::TMF_REQUEST);
    assert_eq!(sent[0].generic().sn, sent[1].generic().sn);
}

/// A session that has used up its window of 64, and what was sent.
fn used_up() -> (Peer, Vec<peer::Sent>) {
    let mut peer = plain();
    for _ in 0..100 {
        peer.read(512);
    }
    let sent = peer.all();
    assert_eq!(sent.len(), 64);
    assert_eq!((peer.session.room(), peer.session.queued()), (0, 36));
    (peer, sent)
}

/// Tells the session of a window; what it sends then.
fn inform(peer: &mut Peer, exp: u32, max: u32) -> Vec<peer::Sent> {
    (peer.exp_cmd_sn, peer.max_cmd_sn) = (exp, max);
    let nop = peer.nop_in(u32::MAX, u32::MAX);
    peer.send(nop, b"");
    peer.all()
}

/// §4.2.2.1
#[test]
fn window_respected_across_wrap() {
    let (mut peer, first) = used_up();
    let exp = FIRST_CMD_SN.wrapping_add(64);
    assert_eq!(first[63].generic().sn.get(), exp.wrapping_sub(1));
    let more = inform(&mut peer, exp, exp.wrapping_add(9));
    assert_eq!(more.len(), 10);
    assert_eq!(more[0].generic().sn.get(), exp);
}

/// §4.2.2.1
#[test]
fn maxcmdsn_below_expcmdsn_minus_1_ignored() {
    let (mut peer, _) = used_up();
    let exp = FIRST_CMD_SN.wrapping_add(70);
    assert!(inform(&mut peer, exp, exp.wrapping_sub(2)).is_empty());
    // One more is a closed window, and no nonsense.
    assert_eq!(inform(&mut peer, exp, exp.wrapping_sub(1)).len(), 6);
}

/// §4.2.2.1
#[test]
fn counters_never_go_back() {
    let (mut peer, _) = used_up();
    let exp = FIRST_CMD_SN.wrapping_add(64);
    assert!(inform(&mut peer, FIRST_CMD_SN, FIRST_CMD_SN.wrapping_add(9)).is_empty());
    assert_eq!(inform(&mut peer, exp, exp.wrapping_add(3)).len(), 4);
    assert!(inform(&mut peer, exp, exp).is_empty());
    assert_eq!(inform(&mut peer, exp, exp.wrapping_add(4)).len(), 1);
}

/// §4.2.2.2: at level 0 a number that is missing is a PDU that is lost.
#[test]
fn statsn_gap_drops_session() {
    for step in [1, u32::MAX, 0x8000_0000] {
        let mut peer = plain();
        let message = peer.async_message(200);
        peer.send(message, b"");
        peer.stat_sn = peer.stat_sn.wrapping_add(step);
        let message = peer.async_message(200);
        peer.send(message, b"");
        peer.broke_with("StatSN");
    }
}

/// An idle session that owes an acknowledgement, and the NOP-Out that carries it.
fn idle_acknowledgement() -> (Peer, peer::Sent) {
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
    (peer, ack)
}

/// §4.2.2.2
#[test]
fn statsn_ack_within_bound_when_idle() {
    let (mut peer, ack) = idle_acknowledgement();
    assert_eq!(ack.generic().exp_sn.get(), peer.stat_sn);
    assert!(peer.all().is_empty());
}

/// §11.18
#[test]
fn ack_nopout_is_immediate_with_ffffffff() {
    let (_, ack) = idle_acknowledgement();
    assert_eq!((ack.opcode(), ack.is_immediate()), (opcode::NOP_OUT, true));
    assert_eq!(ack.generic().task_tag.get(), u32::MAX);
    assert_eq!(ack.generic().transfer_tag.get(), u32::MAX);
    assert_eq!((ack.generic().lun, ack.data.len()), ([0; 8], 0));
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

/// ExpStatSN as the next request shows it, before that request is answered.
fn exp_stat_sn(peer: &mut Peer) -> u32 {
    peer.session.ping(peer.now, 0).expect("open");
    let ping = peer.next().generic();
    let echo = peer.nop_in(ping.task_tag.get(), u32::MAX);
    peer.send(echo, b"");
    peer.events();
    ping.exp_sn.get()
}

/// §4.2.2.2: every answer that has a StatSN of its own shows in the next ExpStatSN.
#[test]
fn statsn_acknowledged() {
    let mut peer = plain();
    let first = exp_stat_sn(&mut peer);
    assert_eq!(exp_stat_sn(&mut peer), first + 1, "a NOP-In that answers");
    peer.read(512);
    let tag = peer.next().generic().task_tag;
    let pdu = peer.data_in(tag, 0, 0);
    peer.send(pdu, b"");
    assert_eq!(exp_stat_sn(&mut peer), first + 2, "Data-In without S");
    let pdu = peer.last_data_in(tag, 1, 0);
    peer.send(pdu, &bytes(512));
    assert_eq!(exp_stat_sn(&mut peer), first + 4, "Data-In with S");
}

/// §11.19.2: a NOP-In that answers nothing shows the next StatSN and takes none.
#[test]
fn unsolicited_nopin_does_not() {
    let mut peer = plain();
    let first = exp_stat_sn(&mut peer);
    for transfer_tag in [u32::MAX, 9] {
        let nop = peer.nop_in(u32::MAX, transfer_tag);
        peer.send(nop, b"");
        peer.all();
    }
    assert_eq!(
        exp_stat_sn(&mut peer),
        first + 1,
        "the answer to the first ping"
    );
}

/// §11.9, §11.17.3
#[test]
fn async_and_reject_advance_statsn() {
    let mut peer = plain();
    let first = exp_stat_sn(&mut peer);
    let message = peer.async_message(255);
    peer.send(message, b"");
    assert_eq!(exp_stat_sn(&mut peer), first + 2);
    peer.session
        .manage(Function::LunReset, LUN, None)
        .expect("open");
    let header = peer.next().header;
    let reject = peer.reject(6);
    peer.send(reject, &header);
    assert_eq!(exp_stat_sn(&mut peer), first + 4);
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
