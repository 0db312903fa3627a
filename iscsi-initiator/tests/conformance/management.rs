//! Task management functions and what their answers prove.

use super::*;

/// A read that is sent, and the ABORT TASK after it: tags, and both PDUs.
fn aborted_read(peer: &mut Peer) -> ([Tag; 2], peer::Sent, TmfRequest) {
    let read = peer.read(512);
    let command = peer.next();
    let abort = peer
        .session
        .manage(Function::AbortTask, LUN, Some(read))
        .expect("open");
    let request = peer.next().as_();
    ([read, abort], command, request)
}

/// §11.5.1, §11.5.5: the tag and the CmdSN of the task.
#[test]
fn abort_task_refcmdsn() {
    let mut peer = plain();
    for _ in 0..3 {
        let ([read, abort], command, request) = aborted_read(&mut peer);
        assert_eq!(request.flags, 0x81);
        assert_eq!(request.referenced_tag, command.generic().task_tag);
        assert_eq!(request.ref_cmd_sn, command.generic().sn);
        let response = peer.tmf_response(request.task_tag, 0);
        peer.send(response, b"");
        let outcomes = peer.outcomes();
        assert_eq!((outcomes[0].0, status_of(&outcomes[0].1)), (read, 0x40));
        assert_eq!(outcomes[1], (abort, Outcome::Tmf(0)));
    }
}

/// §11.6.1: "task does not exist" of one whose status never came: something is lost.
#[test]
fn abort_task_of_a_lost_answer_drops_the_session() {
    let mut peer = plain();
    let (_, _, request) = aborted_read(&mut peer);
    let response = peer.tmf_response(request.task_tag, 1);
    peer.send(response, b"");
    peer.broke_with("ABORT TASK");
}

/// §4.2.3.3: data and status of a task that was concluded go nowhere.
#[test]
fn late_responses_discarded() {
    let mut peer = plain();
    let (_, command, request) = aborted_read(&mut peer);
    let response = peer.tmf_response(request.task_tag, 0);
    peer.send(response, b"");
    peer.events();
    let tag = command.generic().task_tag;
    let late = peer.data_in(tag, 0, 0);
    peer.send(late, &bytes(512));
    let late = peer.last_data_in(tag, 1, 0);
    peer.send(late, &bytes(512));
    let late = peer.r2t(tag, 0, 0, 512);
    peer.send(late, b"");
    assert!(peer.session.is_open() && peer.outcomes().is_empty() && peer.all().is_empty());
}

/// The same when the slot of the task is in use again: istgt answers every function at once and the
/// commands whenever its disk is done.
#[test]
fn late_responses_discarded_after_new_commands() {
    let mut peer = plain();
    let (_, command, request) = aborted_read(&mut peer);
    let response = peer.tmf_response(request.task_tag, 0);
    peer.send(response, b"");
    peer.events();
    let new: Vec<Tag> = (0..4).map(|_| peer.read(512)).collect();
    peer.all();
    let tag = command.generic().task_tag;
    let late = peer.data_in(tag, 0, 0);
    peer.send(late, &bytes(512));
    let late = peer.scsi_response(tag);
    peer.send(late, b"");
    assert!(peer.session.is_open() && peer.outcomes().is_empty());
    assert!(new.iter().all(|&tag| peer.session.progress(tag).is_some()));
}

/// §11.5.1: ABORT TASK refers to a task that was sent. Of one that was not, the answer ends it all
/// the same, and nothing of it is left behind.
#[test]
fn abort_task_of_a_queued_command_leaves_nothing_behind() {
    let mut peer = Peer::new(config(Offer::default()));
    peer.max_cmd_sn = FIRST_CMD_SN.wrapping_sub(1);
    peer.log_in(b"InitialR2T=Yes\0ImmediateData=No\0");
    peer.events();
    let read = peer.read(512);
    assert!(peer.all().is_empty(), "the window is closed");
    let abort = peer.session.manage(Function::AbortTask, LUN, Some(read));
    let request: TmfRequest = peer.next().as_();
    peer.open_window(FIRST_CMD_SN, 8);
    let answer = peer.tmf_response(request.task_tag, 0);
    peer.send(answer, b"");
    let ended: Vec<Tag> = peer.outcomes().into_iter().map(|(tag, _)| tag).collect();
    assert_eq!(ended, [read, abort.expect("open")]);
    assert!(peer.all().is_empty());
}

/// A session that is full of commands is still watched, and can still be cleared.
#[test]
fn a_full_session_has_room_for_a_ping_and_a_reset() {
    let mut peer = plain();
    let command = Command {
        lun: LUN,
        cdb: [0; 16],
        transfer: Transfer::None,
        attribute: Attribute::Simple,
    };
    let mut taken = 0;
    while peer.session.submit(command.clone()).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, iscsi_initiator::session::COMMANDS_MAX);
    while peer.session.ping(peer.now, 0).is_ok() {}
    let due = peer.session.poll_timeout().expect("a timer");
    assert!(due > peer.now);
    for _ in 0..3 {
        let Some(due) = peer.session.poll_timeout() else {
            break;
        };
        peer.now = peer.now.max(due);
        peer.session.handle_timeout(peer.now);
        assert!(
            peer.session
                .poll_timeout()
                .is_none_or(|next| next > peer.now),
            "no busy loop"
        );
    }
    assert!(peer.session.is_closed(), "silence is noticed");
    // Nobody pings: the session does.
    let mut peer = plain();
    while peer.session.submit(command.clone()).is_ok() {}
    while peer.session.manage(Function::LunReset, LUN, None).is_ok() {}
    peer.now = peer.session.poll_timeout().expect("a timer");
    peer.session.handle_timeout(peer.now);
    assert!(peer
        .session
        .poll_timeout()
        .is_some_and(|next| next > peer.now));
    assert!(peer.session.logout().is_ok());
}

/// §11.5.4
#[test]
fn tmf_referenced_tag_ffffffff_otherwise() {
    use Function::*;
    for function in [
        AbortTaskSet,
        ClearTaskSet,
        LunReset,
        TargetWarmReset,
        TargetColdReset,
    ] {
        let mut peer = plain();
        peer.session.manage(function, LUN, None).expect("open");
        let request: TmfRequest = peer.next().as_();
        assert_eq!(request.flags, 0x80 | function as u8);
        assert_eq!(request.referenced_tag.get(), u32::MAX);
        assert_eq!(
            (request.ref_cmd_sn.get(), request.exp_data_sn.get()),
            (0, 0)
        );
    }
}

/// §4.2.3.3: R2Ts are answered until the function is.
#[test]
fn tmf_keeps_answering_r2t() {
    let mut peer = plain();
    peer.write(&bytes(8192));
    let itt = peer.next().generic().task_tag;
    let reset = peer.session.manage(Function::LunReset, LUN, None);
    reset.expect("open");
    peer.next();
    for sn in 0..2 {
        let r2t = peer.r2t(itt, sn, sn * 4096, 4096);
        peer.send(r2t, b"");
        assert_eq!(peer.next().data.len(), 4096);
    }
}

/// §4.2.3.3: with the answer everything that was sent before the function is over.
#[test]
fn tmf_response_concludes_all_affected() {
    let mut peer = plain();
    let (write, read) = (peer.write(&bytes(4096)), peer.read(512));
    peer.all();
    let reset = peer.session.manage(Function::LunReset, LUN, None);
    let request: TmfRequest = peer.next().as_();
    let after = peer.read(512);
    peer.next();
    let response = peer.tmf_response(request.task_tag, 0);
    peer.send(response, b"");
    let ended: Vec<_> = peer.outcomes().into_iter().map(|(tag, _)| tag).collect();
    assert_eq!(ended, [write, read, reset.expect("open")]);
    assert!(peer.session.progress(after).is_some(), "it goes on");
}

/// What tgt does instead: the reset ends nothing, and a write that waits for data begins when they
/// come. Told so, the session keeps it, and knows its answer.
#[test]
fn a_sparing_reset_ends_no_command() {
    let mut peer = plain();
    let write = peer.write(&bytes(8192));
    let itt = peer.next().generic().task_tag;
    let reset = peer.session.reset_sparing(LUN).expect("open");
    let request: TmfRequest = peer.next().as_();
    let response = peer.tmf_response(request.task_tag, 0);
    peer.send(response, b"");
    assert_eq!(peer.outcomes(), [(reset, Outcome::Tmf(0))]);
    let r2t = peer.r2t(itt, 0, 0, 8192);
    peer.send(r2t, b"");
    peer.all();
    let response = peer.scsi_response(itt);
    peer.send(response, b"");
    let ended: Vec<_> = peer.outcomes().into_iter().map(|(tag, _)| tag).collect();
    assert_eq!(ended, [write]);
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

/// 7144 §6.3: 9 to 12 need a protocol level that is not negotiated.
#[test]
fn new_tmfs_only_with_level_2() {
    assert!(FUNCTIONS.iter().all(|&function| (function as u8) < 9));
}

/// §7.1, §11.16: 8 is TASK REASSIGN; a SNACK has no opcode here, and lost data end the session.
#[test]
fn no_snack_no_reassign_at_erl0() {
    assert!(FUNCTIONS.iter().all(|&function| function as u8 != 8));
    let mut peer = plain();
    peer.read(1024);
    let tag = peer.next().generic().task_tag;
    let pdu = peer.data_in(tag, 1, 512);
    let wire = peer.encode(pdu.as_bytes(), &bytes(512));
    peer.session.handle_bytes(peer.now, &wire);
    assert!(peer.all().is_empty() && peer.session.is_closed());
}

const FUNCTIONS: [Function; 6] = [
    Function::AbortTask,
    Function::AbortTaskSet,
    Function::ClearTaskSet,
    Function::LunReset,
    Function::TargetWarmReset,
    Function::TargetColdReset,
];

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
    assert_eq!((outcomes[0].0, status_of(&outcomes[0].1)), (write, 0x40));
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

/// §11.17.1: a function that was never looked at ends its tasks no more than one that was refused.
#[test]
fn tmf_fastabort_rejected_as_refused() {
    let mut peer = fast_abort();
    peer.write(&bytes(8192));
    peer.next();
    let reset = peer.session.manage(Function::LunReset, LUN, None);
    reset.expect("open");
    let header = peer.next().header;
    let reject = peer.reject(6);
    peer.send(reject, &header);
    peer.broke_with("FastAbort");
}

/// §11.9.1, event 5, for a command that waits for the socket: the target has never seen it, will
/// execute it, and its answer is awaited.
#[test]
fn async_task_termination_spares_what_was_not_sent() {
    let mut peer = fast_abort();
    let write = peer.write(&bytes(512));
    peer.session.transmit();
    let message = AsyncMessage {
        lun: LUN,
        ..peer.async_message(5)
    };
    peer.send(message, b"");
    assert!(peer.outcomes().is_empty());
    let sent = peer.all();
    assert_eq!(sent[0].opcode(), opcode::SCSI_COMMAND);
    let itt = sent[0].generic().task_tag;
    let r2t = peer.r2t(itt, 0, 0, 512);
    peer.send(r2t, b"");
    assert_eq!(peer.next().data.len(), 512);
    let response = peer.scsi_response(itt);
    peer.send(response, b"");
    let outcomes = peer.outcomes();
    assert_eq!((outcomes[0].0, status_of(&outcomes[0].1)), (write, 0));
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
    let late = peer.scsi_response(itt);
    peer.send(late, b"");
    assert!(peer.session.is_open() && peer.outcomes().is_empty());
}
