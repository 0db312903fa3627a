//! Pings, asynchronous messages and rejects.

use super::*;

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

/// §11.18: a NOP-In without tags tells of the window and asks for nothing.
#[test]
fn informing_nopin_not_answered() {
    let mut peer = plain();
    let nop = peer.nop_in(u32::MAX, u32::MAX);
    peer.send(nop, b"");
    assert!(peer.all().is_empty());
}

/// §11.9.1, event 0: sense that belongs to no command.
#[test]
fn async_scsi_event_is_news() {
    let mut peer = plain();
    let sense = AsyncMessage {
        lun: LUN,
        ..peer.async_message(0)
    };
    peer.send(sense, &[0, 8, 0x72, 6, 0x2a, 9, 0, 0, 0, 0]);
    assert!(matches!(peer.events()[..], [Event::Attention { sense, .. }] if sense.asc == 0x2a));
}

/// §11.9.1, event 1
#[test]
fn no_new_commands_after_it() {
    let mut peer = plain();
    let request = AsyncMessage {
        parameter_3: U16::new(7),
        ..peer.async_message(1)
    };
    peer.send(request, b"");
    let events = peer.events();
    assert!(matches!(events[..], [Event::LogoutRequested(within)] if within.as_secs() == 7));
    let command = Command {
        lun: LUN,
        cdb: [0; 16],
        transfer: Transfer::None,
        attribute: Attribute::Simple,
    };
    assert_eq!(peer.session.submit(command), Err(SubmitError::Leaving));
}

/// §11.9.1, event 4
#[test]
fn async_negotiation_request_answered() {
    let mut peer = plain();
    let negotiate = peer.async_message(4);
    peer.send(negotiate, b"");
    assert_eq!(peer.next().opcode(), opcode::TEXT_REQUEST);
}

/// §11.9.1, event 5 without FastAbort; codes that nobody has assigned, and those of vendors.
#[test]
fn async_events_out_of_place() {
    let mut peer = plain();
    let abort = peer.async_message(5);
    peer.send(abort, b"");
    peer.broke_with("FastAbort");
    for event in [6, 100, 247, 248, 255] {
        let mut peer = plain();
        let message = peer.async_message(event);
        peer.send(message, b"");
        assert!(peer.session.is_open() && peer.events().is_empty());
    }
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
    // 06 for a command would leave a hole in CmdSN.
    for reason in [2, 3, 4, 5, 6, 7, 8, 9, 0x0a, 0x0c] {
        let mut peer = plain();
        peer.read(512);
        let header = peer.next().header;
        let reject = peer.reject(reason);
        peer.send(reject, &header);
        peer.broke_with("rejected");
    }
}

/// §11.17.1: 06 of a NOP-Out that is no ping of ours. An answer goes out again, a mere
/// acknowledgement need not; the session goes on.
#[test]
fn reject_06_of_an_answer_repeats_it() {
    let mut peer = plain();
    let ping = NopIn {
        lun: LUN,
        ..peer.nop_in(u32::MAX, 42)
    };
    peer.send(ping, b"");
    let answer = peer.next();
    let reject = peer.reject(6);
    peer.send(reject, &answer.header);
    let again = peer.next();
    assert_eq!(again.generic().transfer_tag.get(), 42);
    assert_eq!(
        (again.generic().task_tag.get(), again.generic().lun),
        (u32::MAX, LUN)
    );
    assert_eq!(
        again.generic().exp_sn.get(),
        peer.stat_sn,
        "the reject is acknowledged"
    );

    peer.now = peer.session.poll_timeout().expect("an acknowledgement");
    let message = peer.async_message(200);
    peer.send(message, b"");
    let due = peer.session.poll_timeout().expect("an acknowledgement");
    peer.session.handle_timeout(due);
    let acknowledgement = peer.next();
    assert_eq!(acknowledgement.generic().transfer_tag.get(), u32::MAX);
    let reject = peer.reject(6);
    peer.send(reject, &acknowledgement.header);
    assert!(peer.session.is_open() && peer.all().is_empty());
}

/// §11.17.1: 06 of a ping; the next one that waits takes its place.
#[test]
fn reject_06_of_a_ping_lets_the_next_go() {
    let mut peer = plain();
    let first = peer.session.ping(peer.now, 0).expect("open");
    let second = peer.session.ping(peer.now, 0).expect("open");
    let header = peer.next().header;
    assert!(peer.all().is_empty(), "one at a time");
    let reject = peer.reject(6);
    peer.send(reject, &header);
    assert_eq!(peer.outcomes(), [(first, Outcome::Rejected(6))]);
    let itt = peer.next().generic().task_tag;
    let pong = peer.nop_in(itt.get(), u32::MAX);
    peer.send(pong, b"");
    assert_eq!(peer.outcomes(), [(second, Outcome::Pong(true))]);
}

/// §11.17.1: a negotiation that the target takes for failed.
#[test]
fn reject_0b_closes() {
    let mut peer = plain();
    peer.session.text(b"X=1\0".to_vec()).expect("open");
    let header = peer.next().header;
    let reject = peer.reject(0x0b);
    peer.send(reject, &header);
    peer.broke_with("rejected");
}
