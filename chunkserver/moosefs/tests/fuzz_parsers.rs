//! Every parser of bytes from the network against random and mutated packets: no panic, no
//! unbounded allocation. A million executions each in release, fewer in debug.
#![allow(clippy::unwrap_used)] // helpers of tests, too

use blockdev::Instant;
use moosefs::master::channel::Facts;
use moosefs::master::finder::Ending;
use moosefs::master::link::{Event, Link, LinkConfig};
use moosefs::master::Identity;
use moosefs::proto::client::{
    Read, ReadDataHead, ReadStatus, Write, WriteDataHead, WriteFinish, WriteStatus,
};
use moosefs::proto::field::exactly;
use moosefs::proto::frame::{self, Header};
use moosefs::proto::info::Question;
use moosefs::proto::master::{Ack, Command, FromMaster, Register, ToMaster};
use moosefs::proto::{Version, CLAIMED_VERSION};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

const RUNS: u32 = if cfg!(debug_assertions) {
    30_000
} else {
    1_000_000
};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }

    /// Mostly packets near what parsers expect: right lengths, few high bytes.
    fn payload(&mut self, out: &mut Vec<u8>) {
        const LENGTHS: [usize; 20] = [
            0, 1, 5, 7, 8, 9, 12, 13, 15, 16, 17, 18, 20, 21, 24, 28, 33, 40, 55, 71,
        ];
        let len = match self.below(3) {
            0 => self.below(120),
            _ => LENGTHS[self.below(LENGTHS.len())],
        };
        out.clear();
        let dense = self.below(2) == 0;
        for _ in 0..len {
            let byte = self.next() >> 24;
            out.push(if dense || byte & 3 == 0 {
                (byte >> 8) as u8
            } else {
                (byte >> 8) as u8 & 3
            });
        }
        if self.below(2) == 0 {
            if let Some(first) = out.first_mut() {
                *first = [0, 1, 2, 3, 60, 61, 62, 63][(self.next() >> 40) as usize & 7];
            }
        }
    }

    fn kind(&mut self) -> u32 {
        match self.below(4) {
            0 => self.next() as u32,
            1 => 96 + self.below(15) as u32,
            2 => 100 + 10 * self.below(12) as u32,
            _ => self.below(610) as u32,
        }
    }
}

fn fuzz(seed: u64, mut parse: impl FnMut(u32, &[u8])) {
    let mut random = Random(seed);
    let mut payload = Vec::new();
    for _ in 0..RUNS {
        let kind = random.kind();
        random.payload(&mut payload);
        parse(kind, &payload);
    }
}

#[test]
fn packets_of_a_master() {
    let mut parsed = 0u32;
    fuzz(1, |kind, bytes| {
        parsed += u32::from(FromMaster::parse(kind, bytes).is_ok())
    });
    assert!(parsed > RUNS / 100);
    fuzz(2, |_, bytes| {
        let _ = Ack::parse(bytes);
    });
    fuzz(3, |kind, bytes| {
        let _ = Command::parse(kind, bytes);
    });
}

#[test]
fn packets_to_a_master() {
    fuzz(4, |kind, bytes| {
        let _ = ToMaster::parse(kind, bytes);
    });
    fuzz(5, |_, bytes| {
        let _ = Register::parse(bytes);
    });
}

#[test]
fn packets_of_the_data_port() {
    fuzz(6, |_, bytes| {
        let _ = Read::parse(bytes);
    });
    fuzz(7, |_, bytes| {
        let _ = Write::parse(bytes);
    });
    fuzz(8, |kind, bytes| {
        let _ = Question::parse(kind, bytes);
    });
    fuzz(9, |kind, bytes| {
        let _ = exactly::<ReadDataHead>(kind, bytes);
        let _ = exactly::<ReadStatus>(kind, bytes);
        let _ = exactly::<WriteDataHead>(kind, bytes);
        let _ = exactly::<WriteStatus>(kind, bytes);
        let _ = exactly::<WriteFinish>(kind, bytes);
    });
}

#[test]
fn frames() {
    fuzz(10, |kind, bytes| {
        let _ = frame::split(bytes, 10_000);
        let header = Header {
            kind,
            len: bytes.len() as u32,
        };
        assert_eq!(Header::parse(header.encode(), 200), Ok(header));
    });
}

/// Sequences of packets at a link in whatever phase they bring it to.
#[test]
fn conversations_of_a_link() {
    let config = LinkConfig {
        claim: CLAIMED_VERSION,
        listen: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 9422),
        timeout_s: 0,
        labels: 0,
        auth_code: Some(b"secret".to_vec()),
        options: BTreeMap::new(),
    };
    let accepted = Ack::Accepted {
        version: Some(Version::new(3, 0, 117)),
        timeout_s: Some(10),
        csid: Some(1),
        metaid: Some(5),
    };
    let new = || {
        Link::new(
            Instant(1),
            config.clone(),
            Identity::default(),
            Facts::default(),
        )
    };
    let mut link = new();
    let (mut now, mut ended) = (1u64, 0u32);
    let mut random = Random(11);
    fuzz(12, |kind, bytes| {
        now += random.next() % 1_000_000_000;
        match random.below(8) {
            0 => _ = link.handle_bytes(Instant(now), &accepted.encode()),
            1 => _ = link.handle_bytes(Instant(now), &Ack::PART_TAKEN.encode()),
            2 => link.handle_inventory(Instant(now), Ok(Vec::new())),
            3 => link.handle_timeout(Instant(now)),
            _ => {
                let frame = frame::encode(kind, |out| out.extend_from_slice(bytes));
                link.handle_bytes(Instant(now), &frame);
            }
        }
        while link.poll_transmit(Instant(now)).is_some() {}
        while let Some(event) = link.poll_event() {
            if let Event::Ended(ending, _) = event {
                ended += u32::from(ending != Ending::OtherFileSystem);
                link = new();
            }
        }
    });
    assert!(ended > 0);
}
