//! Data of a write: immediate, unsolicited, and asked for.

use super::*;

/// A write of `len` bytes and what is sent of it unasked, at most 16 KiB, in segments of 8 KiB.
fn unasked(len: usize) -> (Peer, Vec<peer::Sent>) {
    let keys = b"InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=16384\0";
    let mut peer = Peer::logged_in(Offer::default(), keys);
    let tag = peer.write(&bytes(len));
    let sent = peer.all();
    let now = peer.now;
    assert_eq!(peer.session.progress(tag), Some(Progress::Wholly(now)));
    (peer, sent)
}

const UNASKED_LENS: [usize; 5] = [4096, 8192, 12_288, 16_384, 65_536];

/// §4.2.5.2
#[test]
fn unsolicited_total_exact() {
    for len in UNASKED_LENS {
        let (_, sent) = unasked(len);
        let data: Vec<u8> = sent.iter().flat_map(|pdu| pdu.data.clone()).collect();
        assert_eq!(data, bytes(len)[..len.min(16_384)]);
        let mut offset = sent[0].data.len();
        for (sn, pdu) in sent[1..].iter().enumerate() {
            let out: DataOut = pdu.as_();
            assert_eq!(out.data_sn.get(), sn as u32);
            assert_eq!(out.buffer_offset.get() as usize, offset);
            offset += pdu.data.len();
        }
    }
}

/// §11.3.1, §11.3.4
#[test]
fn f_bit_rules_of_command() {
    for len in UNASKED_LENS {
        let (_, sent) = unasked(len);
        let command: ScsiCommand = sent[0].as_();
        assert_eq!(command.flags & flag::FINAL != 0, sent.len() == 1);
        assert_eq!(command.flags & flag::WRITE, flag::WRITE);
        for (at, pdu) in sent.iter().enumerate().skip(1) {
            let out: DataOut = pdu.as_();
            assert_eq!(out.flags & flag::FINAL != 0, at + 1 == sent.len());
        }
    }
}

/// §10.6
#[test]
fn writes_never_immediate() {
    for len in UNASKED_LENS {
        assert!(!unasked(len).1[0].is_immediate());
    }
}

/// §11.7.1, §13.12: immediate, unsolicited and solicited data alike.
#[test]
fn data_pdu_never_above_peer_mrdsl() {
    let (mut peer, mut sent) = unasked(65_536);
    let tag = sent[0].generic().task_tag;
    let r2t = peer.r2t(tag, 0, 16_384, 49_152);
    peer.send(r2t, b"");
    sent.extend(peer.all());
    assert_eq!(sent.len(), 8);
    assert!(sent.iter().all(|pdu| pdu.data.len() == 8192));
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
    assert_eq!(sent.len(), 6);
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
    let response = peer.scsi_response(tag);
    peer.send(response, b"");
    assert!(good(&peer.outcomes()[0].1).is_empty());
}

/// §4.2.5.2, §4.2.5.3
#[test]
fn r2t_out_of_bounds_drops_session() {
    type Case = (&'static str, fn(&mut R2t));
    let cases: [Case; 5] = [
        ("expected length", |r2t| r2t.buffer_offset = U32::new(4096)),
        ("expected length", |r2t| {
            r2t.buffer_offset = U32::new(u32::MAX)
        }),
        ("no length", |r2t| r2t.desired_len = U32::new(0)),
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

/// §11.8, §4.2.5.3: an R2T names the LUN of its command, all eight bytes of it.
#[test]
fn r2t_wrong_lun_is_protocol_error() {
    for byte in 0..8 {
        let mut peer = plain();
        peer.write(&bytes(4096));
        let tag = peer.next().generic().task_tag;
        let mut r2t = peer.r2t(tag, 0, 0, 4096);
        r2t.lun[byte] ^= 4;
        peer.send(r2t, b"");
        peer.broke_with("another LUN");
    }
}

/// §4.2.5.1: data of a command go by the connection of the command, which is that of the R2T. Two
/// sessions to one target have tasks of the same tags, and nothing of one goes by the other.
#[test]
fn data_out_same_connection_as_command() {
    let (mut first, mut second) = (plain(), plain());
    first.write(&[1; 4096]);
    second.write(&[2; 4096]);
    let tags = [&mut first, &mut second].map(|peer| peer.next().generic().task_tag);
    assert_eq!(tags[0], tags[1]);
    let r2t = first.r2t(tags[0], 0, 0, 4096);
    first.send(r2t, b"");
    assert!(second.all().is_empty());
    let sent = first.all();
    assert_eq!((sent.len(), &sent[0].data[..]), (1, &[1; 4096][..]));
    // What the first has under way is asked for on the second, which has not: nothing goes there.
    first.write(&[3; 4096]);
    let other = first.next().generic().task_tag;
    assert_ne!(other, tags[1]);
    let r2t = second.r2t(other, 0, 0, 4096);
    second.send(r2t, b"");
    second.broke_with("unknown task");
    assert!(first.all().is_empty() && first.session.is_open());
}

/// §11.8: the R2Ts of a task are served in the order in which they came, whatever they ask for.
#[test]
fn r2ts_of_a_task_in_order() {
    let keys = b"InitialR2T=Yes\0ImmediateData=No\0MaxOutstandingR2T=4\0MaxBurstLength=16384\0";
    let mut peer = Peer::logged_in(Offer::default(), keys);
    peer.write(&bytes(65_536));
    let tag = peer.next().generic().task_tag;
    for sn in 0..4 {
        let r2t = peer.r2t(tag, sn, sn * 16_384, 16_384);
        peer.send(r2t, b"");
    }
    let offsets: Vec<u32> = peer
        .all()
        .iter()
        .map(|pdu| pdu.as_::<DataOut>().buffer_offset.get())
        .collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5, 6, 7].map(|n| n * 8192));
}

/// §7.9
#[test]
fn duplicate_r2tsn_discarded() {
    let keys = b"InitialR2T=Yes\0ImmediateData=No\0MaxOutstandingR2T=2\0";
    let mut peer = Peer::logged_in(Offer::default(), keys);
    peer.write(&bytes(8192));
    let tag = peer.next().generic().task_tag;
    for sn in 0..2 {
        let r2t = peer.r2t(tag, sn, sn * 4096, 4096);
        peer.send(r2t, b"");
        assert_eq!(peer.all().len(), 1);
        for again in 0..=sn {
            let duplicate = peer.r2t(tag, again, again * 4096, 4096);
            peer.send(duplicate, b"");
            assert!(peer.all().is_empty());
        }
    }
    let response = peer.scsi_response(tag);
    peer.send(response, b"");
    assert!(good(&peer.outcomes()[0].1).is_empty());
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

/// §4.2.5.2: GOOD is true only when all the data have left: here they wait for the socket, at first
/// what goes unasked, then what was asked for.
#[test]
fn good_status_before_the_data_left() {
    for keys in [
        &b"InitialR2T=No\0ImmediateData=No\0FirstBurstLength=65536\0"[..],
        b"InitialR2T=Yes\0ImmediateData=No\0",
    ] {
        for is_early in [true, false] {
            let mut peer = Peer::logged_in(Offer::default(), keys);
            peer.write(&bytes(4096));
            // The socket takes the command alone.
            let offered = peer.session.transmit().len();
            let header = peer.session.transmit()[0].to_vec();
            assert!(offered >= 1 && header.len() == 48);
            let tag = U32::new(u32::from_be_bytes([
                header[16], header[17], header[18], header[19],
            ]));
            peer.session.transmitted(peer.now, 48);
            if keys.starts_with(b"InitialR2T=Yes") {
                let r2t = peer.r2t(tag, 0, 0, 4096);
                peer.send(r2t, b"");
                peer.session.transmit();
            }
            if !is_early {
                peer.all();
            }
            let response = peer.scsi_response(tag);
            peer.send(response, b"");
            let outcome = peer.outcomes().pop().expect("one outcome").1;
            assert_eq!(matches!(outcome, Outcome::Bad(_)), is_early, "{outcome:?}");
        }
    }
}

/// §13.19: with DataSequenceInOrder=Yes each R2T goes on where the one before ended; without it they
/// must not overlap.
#[test]
fn r2ts_ask_for_every_byte_once() {
    for (offset, what) in [(0, "R2T"), (1024, "R2T"), (512, "")] {
        let mut peer = plain();
        peer.write(&bytes(2048));
        let tag = peer.next().generic().task_tag;
        let r2t = peer.r2t(tag, 0, 0, 512);
        peer.send(r2t, b"");
        peer.all();
        let r2t = peer.r2t(tag, 1, offset, 512);
        peer.send(r2t, b"");
        match what {
            "" => assert!(peer.session.is_open()),
            _ => peer.broke_with(what),
        }
    }
    let offer = Offer {
        data_sequence_in_order: false,
        ..Offer::default()
    };
    for (offset, is_legal) in [(1536, true), (256, false), (0, false)] {
        let keys =
            b"InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=512\0DataSequenceInOrder=No\0";
        let mut peer = Peer::logged_in(offer.clone(), keys);
        peer.write(&bytes(2048));
        let tag = peer.next().generic().task_tag;
        let r2t = peer.r2t(tag, 0, offset, 512);
        peer.send(r2t, b"");
        assert_eq!(peer.session.is_open(), is_legal, "{offset}");
    }
}

/// The system takes 1024 slices of a vectored write: more of one PDU go out in several.
#[test]
fn a_write_of_many_fragments_goes_out_in_pieces() {
    let mut peer = Peer::logged_in(
        Offer::default(),
        b"InitialR2T=Yes\0ImmediateData=Yes\0MaxRecvDataSegmentLength=16777215\0\
          FirstBurstLength=262144\0",
    );
    let part = peer.pool.copy_now(&bytes(128));
    let mut data = blockdev::IoVec::new();
    for _ in 0..1500 {
        part.bufs().iter().cloned().for_each(|buf| data.push(buf));
    }
    let command = Command {
        lun: LUN,
        cdb: iscsi_initiator::scsi::cdb::write_16(0, 375, false),
        transfer: Transfer::Write(data),
        attribute: Attribute::Simple,
    };
    peer.session.submit(command).expect("open");
    assert!(peer.session.transmit().len() <= 1024);
    let sent = peer.all();
    assert_eq!((sent.len(), sent[0].data.len()), (1, 1500 * 128));
    assert_eq!(sent[0].data[..128], bytes(128));
}

/// §11.7.5: none but the last Data-Out of a sequence is padded, also to a target whose
/// MaxRecvDataSegmentLength is no multiple of four.
#[test]
fn data_segments_are_whole_words() {
    for segment in [513, 1022, 1023] {
        let keys = format!(
            "InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=4096\0MaxRecvDataSegmentLength={segment}\0"
        );
        let mut peer = Peer::logged_in(Offer::default(), keys.as_bytes());
        let tag = peer.write(&bytes(8192));
        let sent = peer.all();
        let itt = sent[0].generic().task_tag;
        let (last, others) = sent.split_last().expect("data");
        assert!(
            others.iter().all(|pdu| pdu.data.len() % 4 == 0),
            "{segment}"
        );
        let total: usize = sent.iter().map(|pdu| pdu.data.len()).sum();
        assert_eq!((total, last.header[1] & 0x80), (4096, 0x80));
        assert!(matches!(
            peer.session.progress(tag),
            Some(Progress::Wholly(_))
        ));
        let r2t = peer.r2t(itt, 0, 4096, 4096);
        peer.send(r2t, b"");
        let sent = peer.all();
        let (_, others) = sent.split_last().expect("data");
        assert!(
            others.iter().all(|pdu| pdu.data.len() % 4 == 0),
            "{segment}"
        );
    }
}
