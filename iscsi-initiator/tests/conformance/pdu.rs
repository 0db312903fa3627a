//! PDUs as such: their form, their digests, and the stream that they come in.

use super::*;

/// Every type of request that a session in full feature phase sends.
fn every_request() -> Vec<peer::Sent> {
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
    let ping = peer.nop_in(u32::MAX, 9);
    peer.send(ping, b"");
    let mut sent = peer.all();
    let mut idle = plain();
    idle.session.logout().expect("open");
    sent.extend(idle.all());
    sent
}

/// §11.2.1.2
#[test]
fn initiator_sends_only_initiator_opcodes() {
    let mut seen: Vec<u8> = every_request().iter().map(peer::Sent::opcode).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 4, 5, 6]);
}

/// §11
#[test]
fn reserved_bits_sent_zero() {
    for pdu in every_request() {
        assert_eq!(pdu.header[2..5], [0, 0, 0], "{pdu:?}");
        assert_eq!(pdu.header[0] & 0x80, 0);
        match pdu.opcode() {
            opcode::SCSI_COMMAND => assert_eq!(pdu.header[1] & 0x18, 0),
            opcode::DATA_OUT => {
                assert_eq!(pdu.header[8..16], [0; 8], "LUN of unsolicited data");
                assert_eq!(pdu.header[20..24], [0xff; 4]);
                assert_eq!(pdu.header[24..28], [0; 4]);
                assert_eq!(pdu.header[32..36], [0; 4]);
                assert_eq!(pdu.header[44..48], [0; 4]);
                assert_eq!(pdu.header[1] & 0x7f, 0);
            }
            opcode::TMF_REQUEST => {
                assert_eq!(pdu.header[1], 0x85);
                assert_eq!(pdu.header[32..48], [0; 16]);
            }
            opcode::LOGOUT_REQUEST => {
                assert_eq!(pdu.header[8..16], [0; 8]);
                assert_eq!(pdu.header[22..24], [0; 2]);
                assert_eq!(pdu.header[32..48], [0; 16]);
            }
            _ => {
                assert_eq!(pdu.header[1], 0x80);
                assert_eq!(pdu.header[32..48], [0; 16]);
            }
        }
    }
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

/// P10: after each byte of a stream, with digests and without, the connection may end; every task ends
/// once, as executed, or as lost with what is known of it.
#[test]
fn kill_at_every_byte() {
    for start in [plain, digests] {
        let build = || {
            let mut peer = start();
            peer.read(512);
            peer.write(&bytes(1024));
            let tags: Vec<U32> = peer
                .all()
                .iter()
                .filter(|pdu| pdu.opcode() == opcode::SCSI_COMMAND)
                .map(|pdu| pdu.generic().task_tag)
                .collect();
            let mut wire = Vec::new();
            let data = peer.last_data_in(tags[0], 0, 0);
            wire.extend(peer.encode(data.as_bytes(), &bytes(512)));
            let read_ends = wire.len();
            let response = ScsiResponse {
                status: 0x18,
                ..peer.scsi_response(tags[1])
            };
            wire.extend(peer.encode(response.as_bytes(), b""));
            // Nobody asks what there is to be sent any more: this one never leaves.
            peer.session.submit(unsent()).expect("open");
            (peer, wire, read_ends)
        };
        let (_, wire, read_ends) = build();
        for cut in 0..=wire.len() {
            let (mut peer, wire, _) = build();
            peer.session.handle_bytes(peer.now, &wire[..cut]);
            peer.session.receive_space();
            peer.session.received(peer.now, 0);
            assert!(peer.session.is_closed());
            let lost: Vec<Option<Applied>> = peer
                .outcomes()
                .into_iter()
                .map(|(_, outcome)| match outcome {
                    Outcome::Lost { applied, .. } => Some(applied),
                    _ => None,
                })
                .collect();
            let unknown = |is_over: bool| (!is_over).then_some(Applied::Unknown);
            let wanted = [
                unknown(cut >= read_ends),
                unknown(cut == wire.len()),
                Some(Applied::No),
            ];
            assert_eq!(lost, wanted, "cut at {cut}");
        }
    }
}

fn unsent() -> Command {
    Command {
        lun: LUN,
        cdb: [0; 16],
        transfer: Transfer::None,
        attribute: Attribute::Simple,
    }
}

/// The same in the login: no byte of it opens a session before the last one.
#[test]
fn kill_at_every_byte_of_the_login() {
    let wire = |peer: &mut Peer| {
        let first = peer.login_response(0, 1);
        let first = peer.encode(first.as_bytes(), b"TargetPortalGroupTag=1\0");
        let last = peer.login_response(1, 3);
        (first, peer.encode(last.as_bytes(), b"InitialR2T=Yes\0"))
    };
    let (first, last) = wire(&mut Peer::new(config(Offer::default())));
    let len = first.len() + last.len();
    for cut in 0..=len {
        let mut peer = Peer::new(config(Offer::default()));
        peer.next();
        wire(&mut peer);
        peer.session
            .handle_bytes(peer.now, &first[..cut.min(first.len())]);
        peer.all();
        peer.session
            .handle_bytes(peer.now, &last[..cut.saturating_sub(first.len())]);
        peer.session.receive_space();
        peer.session.received(peer.now, 0);
        let events = peer.events();
        let is_open = matches!(events[0], Event::LoggedIn(_));
        assert_eq!(is_open, cut == len, "cut at {cut}: {events:?}");
        assert!(matches!(events.last(), Some(Event::Closed(_))));
    }
}

/// §11.1: reserved bits and bytes of whatever a target sends change nothing.
#[test]
fn reserved_bits_received_change_nothing() {
    let run = |noise: u8| {
        let mut peer = plain();
        let mut ended = Vec::new();
        let mut say = |peer: &mut Peer, header: &[u8], reserved: &[usize], data: &[u8]| {
            let mut header = header.to_vec();
            header[0] |= noise & 0x80;
            reserved.iter().for_each(|&at| header[at] |= noise);
            let wire = peer.encode(&header, data);
            peer.session.handle_bytes(peer.now, &wire);
            ended.extend(peer.outcomes());
            let sent = peer.all();
            let kept = |pdu: &peer::Sent| (pdu.header, pdu.data.clone());
            sent.iter().map(kept).collect::<Vec<_>>()
        };
        let mut sent = Vec::new();
        peer.read(512);
        let tag = peer.next().generic().task_tag;
        let data = peer.last_data_in(tag, 0, 0);
        sent.push(say(&mut peer, data.as_bytes(), &[2], &bytes(512)));
        peer.write(&bytes(512));
        let tag = peer.next().generic().task_tag;
        let r2t = peer.r2t(tag, 0, 0, 512);
        sent.push(say(&mut peer, r2t.as_bytes(), &[2, 3], b""));
        let response = peer.scsi_response(tag);
        sent.push(say(&mut peer, response.as_bytes(), &[8, 12, 15], b""));
        let ping = peer.nop_in(u32::MAX, 7);
        sent.push(say(&mut peer, ping.as_bytes(), &[2, 3, 36, 40, 47], b""));
        peer.session
            .manage(Function::LunReset, LUN, None)
            .expect("open");
        let tag = peer.next().generic().task_tag;
        let tmf = peer.tmf_response(tag, 0);
        sent.push(say(&mut peer, tmf.as_bytes(), &[3, 8, 20, 36, 47], b""));
        peer.session.text(b"X-a=1\0".to_vec()).expect("open");
        let tag = peer.next().generic().task_tag;
        let text = peer.text_response(tag, u32::MAX);
        sent.push(say(
            &mut peer,
            text.as_bytes(),
            &[2, 3, 36, 47],
            b"X-a=NotUnderstood\0",
        ));
        let message = peer.async_message(200);
        sent.push(say(&mut peer, message.as_bytes(), &[2, 3, 20, 44, 47], b""));
        let open = peer.session.is_open();
        assert!(open, "{noise:#04x}");
        (ended, sent)
    };
    let clean = run(0);
    for noise in [0xff, 0x80, 0x01, 0x55] {
        assert_eq!(run(noise), clean, "{noise:#04x}");
    }
}

/// §4.2.4
#[test]
fn non_login_pdu_in_login_closes() {
    let mut peer = Peer::new(config(Offer::default()));
    peer.next();
    let nop = peer.nop_in(u32::MAX, 1);
    peer.send(nop, b"");
    peer.broke_with("phase");
}

/// §7.7
#[test]
fn login_pdu_after_the_login_closes() {
    let mut peer = plain();
    let login = peer.login_response(1, 3);
    peer.send(login, b"");
    peer.broke_with("phase");
}

/// §7.7: nothing is told of an answer to a command that is not sent.
#[test]
fn answer_before_the_command_closes() {
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

/// §13.1: no PDU of the login has a digest, every one after it has. The peer reads login requests
/// without and all others with digests, and checks each.
#[test]
fn digest_on_every_full_feature_pdu_and_on_no_login_pdu() {
    let mut peer = digests();
    peer.write(&bytes(16_384));
    peer.session.ping(peer.now, 7).expect("open");
    assert_eq!(peer.all().len(), 3);
    peer.read(8192);
    let tag = peer.next().generic().task_tag;
    let pdu = peer.last_data_in(tag, 0, 0);
    peer.send(pdu, &bytes(8192));
    assert_eq!(good(&peer.outcomes()[0].1), bytes(8192));
}

/// §11.2.3, both ways.
#[test]
fn zero_length_data_has_no_digest() {
    let mut peer = digests();
    peer.session.ping(peer.now, 0).expect("open");
    peer.read(512);
    let lens: Vec<usize> = peer
        .session
        .transmit()
        .iter()
        .map(|slice| slice.len())
        .collect();
    assert_eq!(lens, [52, 52]);
    let tag = peer.all()[1].generic().task_tag;
    let response = ScsiResponse {
        status: 8,
        ..peer.scsi_response(tag)
    };
    let wire = peer.encode(response.as_bytes(), b"");
    assert_eq!(wire.len(), 52);
    peer.session.handle_bytes(peer.now, &wire);
    assert_eq!(status_of(&peer.outcomes()[0].1), 8);
}

/// One bit of a PDU is wrong, which is the answer to a read of 8 KiB or comes beside it: the session
/// ends, and no byte reaches the caller.
fn breaks_at(at: usize, what: &str, build: impl Fn(&mut Peer, U32) -> Vec<u8>) {
    let mut peer = digests();
    let read = peer.read(8192);
    let tag = peer.next().generic().task_tag;
    let mut wire = build(&mut peer, tag);
    wire[at] ^= 1;
    peer.session.handle_bytes(peer.now, &wire);
    let events = peer.events();
    let [Event::Done(done, Outcome::Lost { applied, .. }), Event::Closed(cause)] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((done, *applied), (&read, Applied::Unknown));
    assert!(cause.to_string().contains(what), "{cause}");
}

fn whole_answer(peer: &mut Peer, tag: U32) -> Vec<u8> {
    let pdu = peer.last_data_in(tag, 0, 0);
    peer.encode(pdu.as_bytes(), &bytes(8192))
}

const SENSE: [u8; 10] = [0, 8, 0x72, 6, 0x29, 0, 0, 0, 0, 0];

/// §7.8: the length is not to be trusted, and with it all that follows.
#[test]
fn header_digest_error_closes_connection() {
    for at in [0, 7, 16, 47, 48, 51] {
        breaks_at(at, "header digest", whole_answer);
    }
}

/// §7.8: at level 0 the task cannot be saved but by a new session.
#[test]
fn data_digest_error_discards_pdu_and_fails_task() {
    for at in [52, 1000, 52 + 8191, 52 + 8192, 52 + 8195] {
        breaks_at(at, "data digest", whole_answer);
    }
}

/// §7.8: nobody knows what a response or a message said.
#[test]
fn response_data_digest_error_closes() {
    breaks_at(60, "data digest", |peer, tag| {
        let pdu = ScsiResponse {
            status: 2,
            ..peer.scsi_response(tag)
        };
        peer.encode(pdu.as_bytes(), &SENSE)
    });
    breaks_at(58, "data digest", |peer, _| {
        let pdu = peer.async_message(0);
        peer.encode(pdu.as_bytes(), &SENSE)
    });
}

/// A write of one block whose CDB has so many bytes beyond 16.
fn long_command(peer: &mut Peer, rest: &[u8]) {
    let command = Command {
        lun: LUN,
        cdb: [0x7f; 16],
        transfer: Transfer::Write(blockdev::IoVec::zeros(512)),
        attribute: Attribute::Simple,
    };
    peer.session.submit_long(command, rest).expect("open");
}

/// Bytes beyond 16, and the words of their AHS.
const LONG_CDBS: [(usize, usize); 6] = [(0, 0), (1, 2), (4, 2), (5, 3), (16, 5), (244, 62)];

/// §11.2.2.3, §11.3.5
#[test]
fn ahs_extended_cdb_only_above_16() {
    for (rest_len, words) in LONG_CDBS {
        let mut peer = plain();
        let rest = bytes(rest_len);
        long_command(&mut peer, &rest);
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

/// §11.2.3. The peer checks the header digest over BHS and AHS, the data digest over data and
/// padding.
#[test]
fn digest_covers_ahs_and_padding() {
    for (rest_len, _) in LONG_CDBS {
        let mut peer = digests();
        long_command(&mut peer, &bytes(rest_len));
        assert_eq!(peer.all().len(), 1);
    }
    for len in 1..9 {
        let mut peer = digests();
        peer.session.ping(peer.now, len).expect("open");
        assert_eq!(peer.next().data.len(), len);
    }
    // A withdrawn command before it renumbers it, digest and all.
    let mut peer = digests();
    let tag = peer.read(512);
    long_command(&mut peer, &[1, 2, 3]);
    peer.session.transmit();
    assert!(peer.session.withdraw(tag));
    assert_eq!(peer.next().generic().sn.get(), FIRST_CMD_SN);
}
