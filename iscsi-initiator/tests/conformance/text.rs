//! Text negotiation in full feature phase.

use super::*;

/// A text request that is answered in two halves: its two PDUs, and what came of it.
fn in_two_halves() -> ([peer::Sent; 2], Outcome) {
    let mut peer = plain();
    let text = peer.session.text(b"SendTargets=All\0".to_vec());
    let first = peer.next();
    let more = TextResponse {
        lun: [8; 8],
        ..peer.text_response(first.generic().task_tag, 5)
    };
    peer.send(more, b"TargetName=iqn.a\0Targ");
    let second = peer.next();
    let last = peer.text_response(first.generic().task_tag, u32::MAX);
    peer.send(last, b"etName=iqn.b\0");
    let (tag, outcome) = peer.outcomes().pop().expect("one outcome");
    assert_eq!(Ok(tag), text);
    ([first, second], outcome)
}

/// §11.10.3, §11.10.4
#[test]
fn text_ttt_and_lun_copied() {
    let ([first, second], outcome) = in_two_halves();
    let sent = (first.header[1], &first.data[..]);
    assert_eq!(sent, (0x80, &b"SendTargets=All\0"[..]));
    assert_eq!(first.generic().transfer_tag.get(), u32::MAX);
    assert_eq!(second.generic().transfer_tag.get(), 5);
    assert_eq!((second.generic().lun, second.data.len()), ([8; 8], 0));
    let joined = b"TargetName=iqn.a\0TargetName=iqn.b\0".to_vec();
    assert_eq!(outcome, Outcome::Text(joined));
}

/// §11.10
#[test]
fn text_same_itt_and_i_bit() {
    let ([first, second], _) = in_two_halves();
    assert_eq!(second.generic().task_tag, first.generic().task_tag);
    assert_eq!(second.is_immediate(), first.is_immediate());
}

/// §11.10
#[test]
fn one_text_outstanding() {
    let mut peer = plain();
    peer.session.text(b"X=1\0".to_vec()).expect("open");
    assert_eq!(peer.session.text(Vec::new()), Err(SubmitError::Full));
    let itt = peer.next().generic().task_tag;
    let last = peer.text_response(itt, u32::MAX);
    peer.send(last, b"X=Reject\0");
    assert!(peer.session.text(Vec::new()).is_ok());
}

/// §6.2, §11.10.2: text that is longer than a segment goes on in the next PDU, both ways.
#[test]
fn c_bit_never_with_t_or_f() {
    let mut peer = plain();
    let long = vec![b'x'; 20_000];
    let mut text = b"X-test=".to_vec();
    text.extend(&long);
    text.push(0);
    let tag = peer.session.text(text.clone()).expect("open");
    let mut whole: Vec<u8> = Vec::new();
    for (round, len) in [8192, 8192, 3624].into_iter().enumerate() {
        let request = peer.next();
        assert_eq!(request.data.len(), len);
        let last = round == 2;
        let expected = if last { flag::FINAL } else { flag::CONTINUE };
        assert_eq!(request.header[1], expected);
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
    // §6.2: what RFC 7143 defines is understood, and refused where it does not belong.
    let propose = peer.text_response(itt, 4);
    peer.send(
        propose,
        b"HeaderDigest=CRC32C\0MaxBurstLength=512\0IFMarker=Yes\0SessionType=Normal\0",
    );
    let reply = peer.next();
    let wanted: &[u8] =
        b"HeaderDigest=Reject\0MaxBurstLength=Reject\0IFMarker=Reject\0SessionType=Reject\0";
    assert_eq!(reply.data, wanted);
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

/// App. C: a list of targets that takes many responses, cut anywhere, is joined.
#[test]
fn sendtargets_answer_in_many_responses() {
    let list: String = (0..2000)
        .map(|n| {
            format!(
                "TargetName=iqn.{n}\0TargetAddress=10.3.{}.{},1\0",
                n / 250,
                n % 250
            )
        })
        .collect();
    let mut peer = plain();
    let tag = peer.session.text(b"SendTargets=All\0".to_vec());
    let mut pieces = list.as_bytes().chunks(7001).peekable();
    let mut rounds = 0;
    while let Some(piece) = pieces.next() {
        let request = peer.next();
        assert_eq!(
            request.data.is_empty(),
            rounds > 0,
            "only the first one asks"
        );
        rounds += 1;
        let is_last = pieces.peek().is_none();
        let mut response = peer.text_response(
            request.generic().task_tag,
            if is_last { u32::MAX } else { 5 },
        );
        if !is_last {
            response.flags |= flag::CONTINUE;
        }
        peer.send(response, piece);
    }
    assert!(rounds > 8);
    let done = (tag.expect("open"), Outcome::Text(list.clone().into_bytes()));
    assert_eq!(peer.outcomes(), [done]);
    let asked = "10.3.1.1".parse().expect("portal");
    let targets = iscsi_initiator::discover::parse_targets(list.as_bytes(), asked);
    assert_eq!(targets.expect("a list").len(), 2000);
}
