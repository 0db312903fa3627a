//! Data of a read, the status after them, residuals and sense.

use super::*;

/// §11.7
#[test]
fn status_in_data_in_accepted() {
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
    let [Event::Attention {
        sense: attention, ..
    }, Event::Done(done, Outcome::Scsi(answer))] = &events[..]
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
fn datasn_gap_detected() {
    for data_sn in [1, 2, u32::MAX] {
        let mut peer = plain();
        peer.read(1024);
        let tag = peer.next().generic().task_tag;
        let pdu = peer.data_in(tag, data_sn, 0);
        peer.send(pdu, &bytes(512));
        peer.broke_with("DataSN");
    }
}

/// §7.9, §11.4.8
#[test]
fn expdatasn_mismatch_detected() {
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
}

/// §11.7.5, §13.18
#[test]
fn data_in_out_of_order_detected() {
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
fn residual_under_over() {
    let short = read_with_residual(flag::UNDERFLOW, 512, 512);
    assert_eq!(good(&short).len(), 512);
    let none_over = read_with_residual(flag::OVERFLOW, 0, 1024);
    assert_eq!(good(&none_over).len(), 1024);
    for (flags, residual, len) in [
        (flag::OVERFLOW, 512, 1024),
        (flag::OVERFLOW, 28_672, 1024),
        (0, 0, 512),
        (flag::UNDERFLOW, 512, 1024),
        (flag::UNDERFLOW, 9999, 0),
        (0, 0, 0),
    ] {
        let outcome = read_with_residual(flags, residual, len);
        assert!(matches!(outcome, Outcome::Bad(_)), "{outcome:?}");
    }
}

/// §11.4.5.1, SBC-3 §4.7: a unit with more bytes in a block than we believe says so by O; the blocks
/// are of another place then. Parameter data may well be longer than what was asked for.
#[test]
fn residual_overflow_of_blocks_is_no_success() {
    let mut peer = plain();
    peer.write(&bytes(512));
    let tag = peer.next().generic().task_tag;
    let r2t = peer.r2t(tag, 0, 0, 512);
    peer.send(r2t, b"");
    peer.all();
    let over = |response| ScsiResponse {
        flags: flag::FINAL | flag::OVERFLOW,
        residual: U32::new(3584),
        ..response
    };
    let response = over(peer.scsi_response(tag));
    peer.send(response, b"");
    let outcome = peer.outcomes().pop().expect("one outcome").1;
    assert!(matches!(outcome, Outcome::Bad(_)), "{outcome:?}");
    let inquiry = Command {
        lun: LUN,
        cdb: iscsi_initiator::scsi::cdb::inquiry(None, 96),
        transfer: Transfer::Read(96),
        attribute: Attribute::Simple,
    };
    peer.session.submit(inquiry).expect("open");
    let tag = peer.next().generic().task_tag;
    let data = peer.data_in(tag, 0, 0);
    peer.send(data, &bytes(96));
    let response = over(peer.scsi_response(tag));
    peer.send(response, b"");
    assert_eq!(good(&peer.outcomes()[0].1).len(), 96);
}

/// §11.4.5.1 with data in any order: bytes that never came are not handed up, whatever the sum says.
#[test]
fn a_hole_is_not_an_underflow() {
    let offer = Offer {
        data_pdu_in_order: false,
        data_sequence_in_order: false,
        ..Offer::default()
    };
    for from in [0, 512] {
        let mut peer = Peer::logged_in(
            offer.clone(),
            b"DataPDUInOrder=No\0DataSequenceInOrder=No\0",
        );
        peer.read(1024);
        let tag = peer.next().generic().task_tag;
        let data = peer.data_in(tag, 0, from);
        peer.send(data, &bytes(512));
        let response = ScsiResponse {
            flags: flag::FINAL | flag::UNDERFLOW,
            residual: U32::new(512),
            ..peer.scsi_response(tag)
        };
        peer.send(response, b"");
        let outcome = peer.outcomes().pop().expect("one outcome").1;
        assert_eq!(matches!(outcome, Outcome::Bad(_)), from > 0, "{outcome:?}");
    }
}

/// §11.4.5.1: the count means nothing without O or U, in either PDU that can carry it.
#[test]
fn residual_ignored_without_flag() {
    for residual in [1, 77, 1024, 4096, u32::MAX] {
        assert_eq!(good(&read_with_residual(0, residual, 1024)).len(), 1024);
        let mut peer = plain();
        peer.read(1024);
        let tag = peer.next().generic().task_tag;
        let pdu = DataIn {
            residual: U32::new(residual),
            ..peer.last_data_in(tag, 0, 0)
        };
        peer.send(pdu, &bytes(1024));
        assert_eq!(good(&peer.outcomes()[0].1).len(), 1024);
    }
}

/// A read of 1024 bytes that gets `len` of them, and then GOOD with this residual.
fn read_with_residual(flags: u8, residual: u32, len: usize) -> Outcome {
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
}

/// §10.2: sense comes with the status, and nobody asks for it again.
#[test]
fn autosense_used() {
    for (sense, key, asc) in [
        (&[0x72, 5, 0x24, 0, 0, 0, 0, 0][..], 5, 0x24),
        (
            &[0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0],
            3,
            0x11,
        ),
    ] {
        let mut peer = plain();
        peer.read(512);
        let tag = peer.next().generic().task_tag;
        let response = ScsiResponse {
            status: 2,
            ..peer.scsi_response(tag)
        };
        let data = [&(sense.len() as u16).to_be_bytes()[..], sense].concat();
        peer.send(response, &data);
        let outcomes = peer.outcomes();
        let (_, Outcome::Scsi(answer)) = &outcomes[0] else {
            panic!("{outcomes:?}");
        };
        let found = answer.sense.expect("it came");
        assert_eq!((found.key, found.asc), (key, asc));
        assert!(peer.all().is_empty(), "no REQUEST SENSE");
    }
}

/// §11.4.3: target failure and vendor codes are no SCSI status, whatever stands in its place.
#[test]
fn nonzero_response_ignores_status() {
    for response in [1, 0x80, 0xff] {
        let mut peer = plain();
        peer.read(512);
        let tag = peer.next().generic().task_tag;
        let response = ScsiResponse {
            response,
            status: 0x28,
            ..peer.scsi_response(tag)
        };
        peer.send(response, b"");
        let outcome = peer.outcomes().pop().expect("one outcome").1;
        assert!(matches!(outcome, Outcome::Bad(_)), "{outcome:?}");
        assert!(peer.session.is_open());
    }
}

/// §7.7 calls it a format error; istgt does it, so it is an answer without a reason.
#[test]
fn check_condition_without_sense_survives() {
    for data in [&b""[..], &[0], &[0, 0], &[0, 9, 0x72], &[0, 4, 1, 2, 3, 4]] {
        let mut peer = plain();
        peer.read(512);
        let tag = peer.next().generic().task_tag;
        let response = ScsiResponse {
            status: 2,
            ..peer.scsi_response(tag)
        };
        peer.send(response, data);
        let Outcome::Scsi(answer) = peer.outcomes().remove(0).1 else {
            panic!("no answer")
        };
        assert_eq!((answer.status, answer.data.len()), (2, 0));
        assert!(peer.session.is_open());
    }
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
    assert!(peer.all().is_empty());
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
