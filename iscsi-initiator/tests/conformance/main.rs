//! What RFC 7143 demands of an initiator, one test a rule or table, named by its section, against a
//! scripted target without sockets. What needs no session is tested beside its code.

mod login;
mod management;
mod numbers;
mod pdu;
mod reads;
mod text;
mod unasked;
mod writes;

#[path = "../peer/mod.rs"]
mod peer;

use blockdev::{Applied, PathCause};
use iscsi_initiator::login::keys::{DigestWish, Offer};
use iscsi_initiator::pdu::header::*;
use iscsi_initiator::pdu::{flag, opcode};
use iscsi_initiator::session::task::Tag;
use iscsi_initiator::session::{
    Attribute, Event, Function, Outcome, Progress, ScsiCommand as Command, SubmitError, Transfer,
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

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn good(outcome: &Outcome) -> Vec<u8> {
    match outcome {
        Outcome::Scsi(answer) if answer.status == 0 => answer.data.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn status_of(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Scsi(answer) => answer.status,
        other => panic!("{other:?}"),
    }
}
