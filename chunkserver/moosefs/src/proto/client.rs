//! Reading and writing on the data port (9422).
//!
//! READ and WRITE carry an optional first byte, the protocol byte 1: a peer that sends it accepts
//! NOPs while it waits. It is told by the length: 21 against 20 bytes, odd against even.

use super::field::{exactly, packet, Cursor, Field, Malformed, Short};
use super::{encode, frame, kind};
use chunk_api::{ChunkId, ChunkVersion};
use std::net::SocketAddrV4;

packet! {
    /// What `CLTOCS_READ` (200) asks for; version 0 = any.
    ReadRequest = 20 {
        /// The chunk.
        id: ChunkId,
        /// Its version.
        version: ChunkVersion,
        /// First byte inside the chunk.
        offset: u32,
        /// Bytes.
        size: u32,
    }
}

packet! {
    /// `CSTOCL_READ_STATUS` (201): ends a read.
    ReadStatus = 9 {
        /// The chunk.
        id: ChunkId,
        /// See [`super::status`].
        status: u8,
    }
}

packet! {
    /// Head of `CSTOCL_READ_DATA` (202); the bytes follow. Never crosses a 64 KiB block.
    ReadDataHead = 20 {
        /// The chunk.
        id: ChunkId,
        /// Block, 0 to 1023.
        block: u16,
        /// First byte inside the block.
        offset: u16,
        /// Bytes that follow.
        size: u32,
        /// CRC-32 over exactly these bytes.
        crc: u32,
    }
}

packet! {
    /// `CSTOCL_WRITE_STATUS` (211); write id 0 is the session itself.
    WriteStatus = 13 {
        /// The chunk.
        id: ChunkId,
        /// The write it answers.
        write_id: u32,
        /// See [`super::status`].
        status: u8,
    }
}

packet! {
    /// Head of `CLTOCS_WRITE_DATA` (212); the bytes follow.
    WriteDataHead = 24 {
        /// The chunk.
        id: ChunkId,
        /// Counted from 1 in each session.
        write_id: u32,
        /// Block, 0 to 1023.
        block: u16,
        /// First byte inside the block.
        offset: u16,
        /// Bytes that follow.
        size: u32,
        /// CRC-32 over exactly these bytes.
        crc: u32,
    }
}

packet! {
    /// `CLTOCS_WRITE_FINISH` (213): no answer, the connection is idle again.
    WriteFinish = 12 {
        /// The chunk.
        id: ChunkId,
        /// Its version.
        version: ChunkVersion,
    }
}

/// `CLTOCS_READ` (200).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Whether the peer sent the protocol byte and so accepts NOPs.
    pub nops: bool,
    /// What it asks for.
    pub request: ReadRequest,
}

impl Read {
    /// Parses 20 or 21 bytes.
    pub fn parse(payload: &[u8]) -> Result<Read, Malformed> {
        let (nops, rest) = protocol_byte(kind::READ, payload, payload.len() == 21)?;
        Ok(Read {
            nops,
            request: exactly(kind::READ, rest)?,
        })
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        encode(kind::READ, |out| {
            out.extend_from_slice(if self.nops { &[1] } else { &[] });
            self.request.put(out);
        })
    }
}

/// `CLTOCS_WRITE` (210): opens a chunk for a chain of writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Whether the peer sent the protocol byte and so accepts NOPs.
    pub nops: bool,
    /// The chunk.
    pub id: ChunkId,
    /// Its version.
    pub version: ChunkVersion,
    /// The rest of the chain, next server first.
    pub chain: Vec<SocketAddrV4>,
}

impl Write {
    /// Parses `12 + 6n` or `13 + 6n` bytes.
    pub fn parse(payload: &[u8]) -> Result<Write, Malformed> {
        let (nops, rest) = protocol_byte(kind::WRITE, payload, payload.len() % 2 == 1)?;
        let bad = |Short| Malformed {
            kind: kind::WRITE,
            len: payload.len(),
            what: "wrong length",
        };
        let mut cursor = Cursor::new(rest);
        let (id, version) = (cursor.get().map_err(bad)?, cursor.get().map_err(bad)?);
        let mut chain = Vec::with_capacity(cursor.rest().len() / SocketAddrV4::LEN);
        while !cursor.rest().is_empty() {
            chain.push(cursor.get().map_err(bad)?);
        }
        Ok(Write {
            nops,
            id,
            version,
            chain,
        })
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        encode(kind::WRITE, |out| {
            out.extend_from_slice(if self.nops { &[1] } else { &[] });
            self.id.put(out);
            self.version.put(out);
            self.chain.iter().for_each(|hop| hop.put(out));
        })
    }
}

fn protocol_byte(kind: u32, payload: &[u8], present: bool) -> Result<(bool, &[u8]), Malformed> {
    match payload {
        [1, rest @ ..] if present => Ok((true, rest)),
        _ if present => Err(Malformed {
            kind,
            len: payload.len(),
            what: "unknown protocol byte",
        }),
        _ => Ok((false, payload)),
    }
}

/// Frame header and head of a READ_DATA packet, to be followed by `head.size` bytes.
pub fn read_data_prefix(head: &ReadDataHead) -> Vec<u8> {
    prefix(kind::READ_DATA, head, head.size)
}

/// Frame header and head of a WRITE_DATA packet, to be followed by `head.size` bytes.
pub fn write_data_prefix(head: &WriteDataHead) -> Vec<u8> {
    prefix(kind::WRITE_DATA, head, head.size)
}

fn prefix<H: Field>(kind: u32, head: &H, size: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(frame::HEADER_BYTES + H::LEN);
    let len = H::LEN as u32 + size;
    out.extend_from_slice(&frame::Header { kind, len }.encode());
    head.put(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn payload(frame: &[u8]) -> &[u8] {
        &frame[8..]
    }

    #[test]
    fn a_read_with_and_without_the_protocol_byte() {
        let golden = [
            0, 0, 0, 200, 0, 0, 0, 21, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 16,
            0,
        ];
        let (id, version) = (ChunkId(5), ChunkVersion(1));
        let request = ReadRequest {
            id,
            version,
            offset: 65_536,
            size: 4096,
        };
        let read = Read {
            nops: true,
            request,
        };
        assert_eq!(read.encode(), golden);
        assert_eq!(Read::parse(&golden[8..]).unwrap(), read);
        assert_eq!(
            Read::parse(&golden[9..]).unwrap(),
            Read {
                nops: false,
                ..read
            }
        );
        assert!(Read::parse(&golden[10..]).is_err());
        let mut other = golden;
        other[8] = 2;
        assert_eq!(
            Read::parse(&other[8..]).unwrap_err().what,
            "unknown protocol byte"
        );
    }

    #[test]
    fn prefixes_have_the_lengths_of_the_reference() {
        let (id, crc) = (ChunkId(1), 3);
        let head = ReadDataHead {
            id,
            block: 0,
            offset: 0,
            size: 65_536,
            crc,
        };
        assert_eq!(read_data_prefix(&head).len(), 28);
        assert_eq!(read_data_prefix(&head)[4..8], 65_556u32.to_be_bytes());
        let head = WriteDataHead {
            id,
            write_id: 1,
            block: 0,
            offset: 0,
            size: 65_536,
            crc,
        };
        assert_eq!(write_data_prefix(&head)[4..8], 65_560u32.to_be_bytes());
    }

    proptest! {
        #[test]
        fn writes_round_trip(nops: bool, id: u64, version: u32, hops: Vec<(u32, u16)>) {
            let chain = hops.iter().map(|&(ip, port)| SocketAddrV4::new(ip.into(), port)).collect();
            let write = Write { nops, id: ChunkId(id), version: ChunkVersion(version), chain };
            prop_assert_eq!(Write::parse(payload(&write.encode())).unwrap(), write);
        }

        #[test]
        fn only_exact_lengths_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = (Read::parse(&bytes), Write::parse(&bytes));
            let parsed = exactly::<WriteDataHead>(kind::WRITE_DATA, &bytes);
            prop_assert_eq!(parsed.is_ok(), bytes.len() == 24);
            let parsed = exactly::<WriteStatus>(kind::WRITE_STATUS, &bytes);
            prop_assert_eq!(parsed.is_ok(), bytes.len() == 13);
        }
    }
}
