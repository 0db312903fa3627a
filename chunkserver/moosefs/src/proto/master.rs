//! The link between server and master (9420).
//!
//! Both directions are here, parse and encode: our side speaks one, the player of a minimal master
//! ([`crate::player`]) and the tests the other.

use super::field::{exactly, packet, Cursor, Field, Malformed, Short};
use super::info::{self, Question};
use super::{encode, frame::encode_one, kind, Version};
use chunk_api::{ChunkEntry, ChunkId, ChunkVersion, Space};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Bit 31 of a reported version: the copy is on a volume marked for removal.
pub const REMOVING_BIT: u32 = 1 << 31;
/// Ids in one report packet, as the stock server.
pub const REPORT_IDS_MAX: usize = 25_000;
/// Chunks in one registration list (3.x sends 10,000, 4.x accepts up to that).
pub const REGISTER_CHUNKS_MAX: usize = 10_000;

packet! {
    /// Space and number of chunks: part of BEGIN, and `CSTOMA_SPACE` (101).
    SpaceFields = 40 {
        /// Bytes used on volumes in use.
        used_bytes: u64,
        /// Bytes in all of volumes in use.
        total_bytes: u64,
        /// Chunks there.
        chunks: u32,
        /// The same three of volumes marked for removal.
        removing_used_bytes: u64,
        /// See `removing_used_bytes`.
        removing_total_bytes: u64,
        /// See `removing_used_bytes`.
        removing_chunks: u32,
    }
}

impl From<Space> for SpaceFields {
    fn from(space: Space) -> SpaceFields {
        SpaceFields {
            used_bytes: space.used_bytes,
            total_bytes: space.total_bytes,
            chunks: space.chunks,
            removing_used_bytes: space.removing_used_bytes,
            removing_total_bytes: space.removing_total_bytes,
            removing_chunks: space.removing_chunks,
        }
    }
}

packet! {
    /// BEGIN without its register version and digest.
    BeginFields = 54 {
        /// The server's version.
        version: u32,
        /// Address for clients; 0.0.0.0 = the connection's source.
        address: SocketAddrV4,
        /// Seconds of silence; 0 = the master decides.
        timeout_s: u16,
        /// Server id, 0 on first contact.
        csid: u16,
        /// Space.
        space: SpaceFields,
    }
}

/// `CSTOMA_REGISTER` (100), by its register version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Register {
    /// 60: who we are; with the digest only after a challenge.
    Begin(Option<[u8; 16]>, BeginFields),
    /// 61: a part of the chunk list; answered by an ACK.
    Chunks(Vec<ChunkEntry>),
    /// 62: the list is complete.
    End,
    /// 63: a graceful leave; the master replicates nothing for a while.
    Leave,
}

impl Register {
    /// Parses one; used by the playing master.
    pub fn parse(payload: &[u8]) -> Result<Register, Malformed> {
        let wrong = |what| Malformed {
            kind: kind::REGISTER,
            len: payload.len(),
            what,
        };
        match payload {
            [60, rest @ ..] if payload.len() == 55 => {
                Ok(Register::Begin(None, exactly(kind::REGISTER, rest)?))
            }
            [60, rest @ ..] if payload.len() == 71 => {
                let mut cursor = Cursor::new(rest);
                let digest = cursor.array().map_err(|Short| wrong("wrong length"))?;
                Ok(Register::Begin(
                    Some(digest),
                    exactly(kind::REGISTER, cursor.rest())?,
                ))
            }
            [61, rest @ ..] => Ok(Register::Chunks(parse_entries(kind::REGISTER, rest)?)),
            [62] => Ok(Register::End),
            [63] => Ok(Register::Leave),
            _ => Err(wrong("unknown register version or wrong length")),
        }
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Register::Begin(digest, fields) => encode(kind::REGISTER, |out| {
                out.push(60);
                out.extend(digest.iter().flatten());
                fields.put(out);
            }),
            Register::Chunks(entries) => encode_chunks(entries),
            Register::End => encode_one(kind::REGISTER, &62u8),
            Register::Leave => encode_one(kind::REGISTER, &63u8),
        }
    }
}

/// A part of the chunk list as a whole frame.
pub fn encode_chunks(entries: &[ChunkEntry]) -> Vec<u8> {
    encode(kind::REGISTER, |out| {
        out.reserve(1 + entries.len() * 12);
        out.push(61);
        put_entries(entries, out);
    })
}

fn put_entries(entries: &[ChunkEntry], out: &mut Vec<u8>) {
    for entry in entries {
        entry.id.put(out);
        let bit = if entry.removing { REMOVING_BIT } else { 0 };
        (entry.version.0 & !REMOVING_BIT | bit).put(out);
    }
}

fn parse_entries(kind: u32, bytes: &[u8]) -> Result<Vec<ChunkEntry>, Malformed> {
    let short = |Short| Malformed {
        kind,
        len: bytes.len(),
        what: "wrong length",
    };
    let mut cursor = Cursor::new(bytes);
    let mut entries = Vec::with_capacity(bytes.len() / 12);
    while !cursor.rest().is_empty() {
        let id = cursor.get().map_err(short)?;
        let version: u32 = cursor.get().map_err(short)?;
        let removing = version & REMOVING_BIT != 0;
        entries.push(ChunkEntry {
            id,
            version: ChunkVersion(version & !REMOVING_BIT),
            removing,
        });
    }
    Ok(entries)
}

/// `MATOCS_MASTER_ACK` (104).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// Type 0: accepted (or the last part of the list was taken). Fields by length: 1, 5, 9 or 17.
    Accepted {
        /// The master's version.
        version: Option<Version>,
        /// Seconds of silence after which either side is dead.
        timeout_s: Option<u16>,
        /// Our id.
        csid: Option<u16>,
        /// Identity of the file system.
        metaid: Option<u64>,
    },
    /// Type 1: this one does not lead; `0.0.0.0` = the leader is not known.
    Redirect(Ipv4Addr),
    /// Type 2: hold the line, an ACK of type 0 will come.
    Wait {
        /// The master's version.
        version: Version,
        /// Seconds of silence after which the line is dead.
        timeout_s: u16,
        /// Identity of the file system.
        metaid: Option<u64>,
    },
    /// Type 3: register again with the digest of these 32 bytes and AUTH_CODE.
    Challenge([u8; 32]),
}

impl Ack {
    /// The answer to a part of the list.
    pub const PART_TAKEN: Ack = Ack::Accepted {
        version: None,
        timeout_s: None,
        csid: None,
        metaid: None,
    };

    /// Parses one.
    pub fn parse(payload: &[u8]) -> Result<Ack, Malformed> {
        let wrong = Malformed {
            kind: kind::MASTER_ACK,
            len: payload.len(),
            what: "unknown form of ACK",
        };
        let mut cursor = Cursor::new(payload);
        let mut parse = || -> Result<Option<Ack>, Short> {
            let form: u8 = cursor.get()?;
            let ack = match (form, payload.len()) {
                (0, 1) => Ack::PART_TAKEN,
                (0, len @ (5 | 9 | 17)) => {
                    let version = Some(Version(cursor.get()?));
                    let (mut timeout_s, mut csid, mut metaid) = (None, None, None);
                    if len > 5 {
                        timeout_s = Some(cursor.get()?);
                        csid = Some(cursor.get()?);
                    }
                    if len > 9 {
                        metaid = Some(cursor.get()?);
                    }
                    Ack::Accepted {
                        version,
                        timeout_s,
                        csid,
                        metaid,
                    }
                }
                (1, 5) => Ack::Redirect(cursor.get()?),
                (2, len @ (7 | 15)) => Ack::Wait {
                    version: Version(cursor.get()?),
                    timeout_s: cursor.get()?,
                    metaid: if len == 15 { Some(cursor.get()?) } else { None },
                },
                (3, 33) => Ack::Challenge(cursor.array()?),
                _ => return Ok(None),
            };
            Ok(Some(ack))
        };
        parse().ok().flatten().ok_or(wrong)
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        encode(kind::MASTER_ACK, |out| match self {
            Ack::Accepted {
                version,
                timeout_s,
                csid,
                metaid,
            } => {
                out.push(0);
                version.iter().for_each(|v| v.0.put(out));
                timeout_s.iter().for_each(|v| v.put(out));
                csid.iter().for_each(|v| v.put(out));
                metaid.iter().for_each(|v| v.put(out));
            }
            Ack::Redirect(leader) => {
                out.push(1);
                leader.put(out);
            }
            Ack::Wait {
                version,
                timeout_s,
                metaid,
            } => {
                out.push(2);
                version.0.put(out);
                timeout_s.put(out);
                metaid.iter().for_each(|v| v.put(out));
            }
            Ack::Challenge(bytes) => {
                out.push(3);
                out.extend_from_slice(bytes);
            }
        })
    }
}

/// What the master orders. Version 0 of an existing copy means "any".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Command {
    /// 110.
    Create { id: ChunkId, version: ChunkVersion },
    /// 120.
    Delete { id: ChunkId, version: ChunkVersion },
    /// 130, and with a length in bytes 170.
    Duplicate {
        new_id: ChunkId,
        new_version: ChunkVersion,
        old_id: ChunkId,
        old_version: ChunkVersion,
        length: Option<u32>,
    },
    /// 140.
    SetVersion {
        id: ChunkId,
        new: ChunkVersion,
        old: ChunkVersion,
    },
    /// 150: fetch a copy from another server.
    Replicate {
        id: ChunkId,
        version: ChunkVersion,
        source: SocketAddrV4,
    },
    /// 160, length in bytes.
    Truncate {
        id: ChunkId,
        length: u32,
        new: ChunkVersion,
        old: ChunkVersion,
    },
    /// 150 with several sources, 154, 156, 158, 180: erasure coding, not done here (answer 16).
    ErasureCode {
        kind: u32,
        id: ChunkId,
        version: ChunkVersion,
    },
    /// 152: the general operation, never sent by the open-source masters (answer 16).
    ChunkOp { fields: [u8; 32] },
}

impl Command {
    /// The command in a packet; `None` if the type is none.
    pub fn parse(kind: u32, payload: &[u8]) -> Result<Option<Command>, Malformed> {
        let wrong = Malformed {
            kind,
            len: payload.len(),
            what: "wrong length",
        };
        let mut cursor = Cursor::new(payload);
        let command = Self::parse_fields(kind, payload.len(), &mut cursor);
        match command {
            Ok(None) => Ok(None),
            Ok(Some(command)) if cursor.rest().is_empty() => Ok(Some(command)),
            _ => Err(wrong),
        }
    }

    fn parse_fields(kind: u32, len: usize, c: &mut Cursor<'_>) -> Result<Option<Self>, Short> {
        let command = match kind {
            kind::CREATE => Command::Create {
                id: c.get()?,
                version: c.get()?,
            },
            kind::DELETE => Command::Delete {
                id: c.get()?,
                version: c.get()?,
            },
            kind::DUPLICATE | kind::DUPTRUNC => Command::Duplicate {
                new_id: c.get()?,
                new_version: c.get()?,
                old_id: c.get()?,
                old_version: c.get()?,
                length: if kind == kind::DUPTRUNC {
                    Some(c.get()?)
                } else {
                    None
                },
            },
            kind::SET_VERSION => Command::SetVersion {
                id: c.get()?,
                new: c.get()?,
                old: c.get()?,
            },
            kind::REPLICATE if len == 18 => Command::Replicate {
                id: c.get()?,
                version: c.get()?,
                source: c.get()?,
            },
            kind::TRUNCATE => Command::Truncate {
                id: c.get()?,
                length: c.get()?,
                new: c.get()?,
                old: c.get()?,
            },
            kind::REPLICATE
            | kind::REPLICATE_SPLIT
            | kind::REPLICATE_RECOVER
            | kind::REPLICATE_JOIN
            | kind::LOCALSPLIT => {
                let command = Command::ErasureCode {
                    kind,
                    id: c.get()?,
                    version: c.get()?,
                };
                let rest = c.rest().len();
                let fits = match kind {
                    // Four masks and a list of 18-byte sources.
                    kind::REPLICATE => rest >= 16 && (rest - 16) % 18 == 0,
                    kind::REPLICATE_SPLIT => rest == 16,
                    // Four words of a matrix, a count, and a list of 14-byte sources.
                    kind::REPLICATE_RECOVER => rest >= 17 && (rest - 17) % 14 == 0,
                    kind::REPLICATE_JOIN => rest >= 1 && (rest - 1) % 14 == 0,
                    _ => matches!(rest, 4 | 5),
                };
                if !fits {
                    return Err(Short);
                }
                c.bytes(rest)?;
                command
            }
            kind::CHUNKOP => Command::ChunkOp { fields: c.array()? },
            _ => return Ok(None),
        };
        Ok(Some(command))
    }

    /// Type of the packet; its answer has the next one.
    pub fn kind(&self) -> u32 {
        match self {
            Command::Create { .. } => kind::CREATE,
            Command::Delete { .. } => kind::DELETE,
            Command::Duplicate { length: None, .. } => kind::DUPLICATE,
            Command::Duplicate { .. } => kind::DUPTRUNC,
            Command::SetVersion { .. } => kind::SET_VERSION,
            Command::Replicate { .. } => kind::REPLICATE,
            Command::Truncate { .. } => kind::TRUNCATE,
            Command::ErasureCode { kind, .. } => *kind,
            Command::ChunkOp { .. } => kind::CHUNKOP,
        }
    }

    /// The chunk it makes or changes.
    pub fn id(&self) -> ChunkId {
        match *self {
            Command::Create { id, .. }
            | Command::Delete { id, .. }
            | Command::SetVersion { id, .. }
            | Command::Replicate { id, .. }
            | Command::Truncate { id, .. }
            | Command::ErasureCode { id, .. } => id,
            Command::Duplicate { new_id, .. } => new_id,
            Command::ChunkOp { fields } => {
                ChunkId(fields.first_chunk().map_or(0, |id| u64::from_be_bytes(*id)))
            }
        }
    }

    /// The whole frame; used by the playing master.
    pub fn encode(&self) -> Vec<u8> {
        encode(self.kind(), |out| match *self {
            Command::Create { id, version } | Command::Delete { id, version } => {
                id.put(out);
                version.put(out);
            }
            Command::Duplicate {
                new_id,
                new_version,
                old_id,
                old_version,
                length,
            } => {
                new_id.put(out);
                new_version.put(out);
                old_id.put(out);
                old_version.put(out);
                length.iter().for_each(|length| length.put(out));
            }
            Command::SetVersion { id, new, old } => {
                id.put(out);
                new.put(out);
                old.put(out);
            }
            Command::Replicate {
                id,
                version,
                source,
            } => {
                id.put(out);
                version.put(out);
                source.put(out);
            }
            Command::Truncate {
                id,
                length,
                new,
                old,
            } => {
                id.put(out);
                length.put(out);
                new.put(out);
                old.put(out);
            }
            Command::ErasureCode { kind, id, version } => {
                id.put(out);
                version.put(out);
                let rest = match kind {
                    kind::REPLICATE | kind::REPLICATE_SPLIT => 16,
                    kind::REPLICATE_RECOVER => 17,
                    kind::REPLICATE_JOIN => 1,
                    _ => 4,
                };
                out.resize(out.len() + rest, 0);
            }
            Command::ChunkOp { fields } => out.extend_from_slice(&fields),
        })
    }

    /// The answer as a whole frame.
    pub fn answer(&self, status: u8) -> Vec<u8> {
        encode(self.kind() + 1, |out| {
            match *self {
                Command::ChunkOp { fields } => out.extend_from_slice(&fields),
                Command::Replicate { id, version, .. }
                | Command::ErasureCode { id, version, .. } => {
                    id.put(out);
                    version.put(out);
                }
                _ => self.id().put(out),
            }
            out.push(status);
        })
    }
}

/// Everything a master sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromMaster {
    /// Keep-alive, and types to ignore.
    Nop,
    /// 104.
    Ack(Ack),
    /// 5: seconds of silence, floor 10.
    ForceTimeout(u16),
    /// 99: a client waits for this chunk; may be ignored.
    RegisterFirst(ChunkId),
    /// 97: state of a chunk; "busy: do not answer".
    ChunkStatus(ChunkId),
    /// An order.
    Command(Command),
    /// 10, 80, 250, 300, 302.
    Question(Question),
    /// A type not known here.
    Unknown(u32),
}

impl FromMaster {
    /// Parses one packet.
    pub fn parse(kind: u32, payload: &[u8]) -> Result<FromMaster, Malformed> {
        if let Some(command) = Command::parse(kind, payload)? {
            return Ok(FromMaster::Command(command));
        }
        Ok(match kind {
            kind::NOP if payload.is_empty() => FromMaster::Nop,
            kind::NOP => {
                return Err(Malformed {
                    kind,
                    len: payload.len(),
                    what: "a NOP is empty",
                })
            }
            kind::UNKNOWN_COMMAND | kind::BAD_COMMAND_SIZE => FromMaster::Nop,
            kind::MASTER_ACK => FromMaster::Ack(Ack::parse(payload)?),
            kind::FORCE_TIMEOUT => FromMaster::ForceTimeout(exactly(kind, payload)?),
            kind::REGISTER_FIRST => FromMaster::RegisterFirst(exactly(kind, payload)?),
            kind::CHUNK_STATUS => FromMaster::ChunkStatus(exactly(kind, payload)?),
            _ => match Question::parse(kind, payload)? {
                Some(question) => FromMaster::Question(question),
                None => FromMaster::Unknown(kind),
            },
        })
    }
}

/// `ANTOAN_NOP` as a whole frame.
pub const NOP: [u8; 8] = [0; 8];

/// `CSTOMA_LABELS` (109): bit 0 = A … bit 25 = Z.
pub fn labels(mask: u32) -> Vec<u8> {
    encode_one(kind::LABELS, &mask)
}

/// The mask of labels as written in a config: letters separated by anything else, case ignored.
pub fn label_mask(text: &str) -> u32 {
    let letters = text.bytes().filter(u8::is_ascii_alphabetic);
    letters.fold(0, |mask, letter| {
        mask | 1 << (letter.to_ascii_uppercase() - b'A')
    })
}

/// `CSTOMA_SPACE` (101).
pub fn space(space: Space) -> Vec<u8> {
    encode_one(kind::SPACE, &SpaceFields::from(space))
}

/// `CSTOMA_CURRENT_LOAD` (103): `overload` is 1 for no, 2 for yes; `transferring` only where both
/// sides are at [`super::VERSION_TRANSFERRING`].
pub fn load(load: u32, overload: u8, transferring: Option<u8>) -> Vec<u8> {
    encode(kind::CURRENT_LOAD, |out| {
        load.put(out);
        overload.put(out);
        transferring.iter().for_each(|bits| bits.put(out));
    })
}

/// A report of ids: `CHUNK_DAMAGED` (102), `CHUNK_LOST` (105), `CHUNK_DOESNT_EXIST` (96).
pub fn ids(kind: u32, ids: &[ChunkId]) -> Vec<u8> {
    assert!(ids.len() <= REPORT_IDS_MAX, "a report of {} ids", ids.len());
    encode(kind, |out| ids.iter().for_each(|id| id.put(out)))
}

/// `CSTOMA_CHUNK_NEW` (107).
pub fn new_chunks(entries: &[ChunkEntry]) -> Vec<u8> {
    assert!(
        entries.len() <= REPORT_IDS_MAX,
        "a report of {} ids",
        entries.len()
    );
    encode(kind::CHUNK_NEW, |out| put_entries(entries, out))
}

/// `CSTOMA_ERROR_OCCURRED` (106).
pub fn error_occurred() -> Vec<u8> {
    encode(kind::ERROR_OCCURRED, |_| {})
}

/// What a server sends, as the playing master reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToMaster {
    /// Keep-alive.
    Nop,
    /// 100.
    Register(Register),
    /// 109.
    Labels(u32),
    /// 101.
    Space(SpaceFields),
    /// 103: load, overload, transferring.
    Load(u32, Option<u8>, Option<u8>),
    /// 96, 102, 105: the type and the ids.
    Ids(u32, Vec<ChunkId>),
    /// 107.
    New(Vec<ChunkEntry>),
    /// 106.
    ErrorOccurred,
    /// The answer to a command: its type less one, the id and the status.
    Answer {
        /// Type of the command.
        command: u32,
        /// The chunk it named.
        id: ChunkId,
        /// See [`super::status`].
        status: u8,
    },
    /// 251 and other information, undecoded.
    Information(u32),
}

impl ToMaster {
    /// Parses one packet.
    pub fn parse(kind: u32, payload: &[u8]) -> Result<ToMaster, Malformed> {
        let len = payload.len();
        let wrong = Malformed {
            kind,
            len,
            what: "wrong length",
        };
        Ok(match kind {
            kind::NOP if len == 0 => ToMaster::Nop,
            kind::REGISTER => ToMaster::Register(Register::parse(payload)?),
            kind::LABELS => ToMaster::Labels(exactly(kind, payload)?),
            kind::SPACE => ToMaster::Space(exactly(kind, payload)?),
            kind::CURRENT_LOAD => {
                let mut cursor = Cursor::new(payload);
                let load = cursor.get().map_err(|Short| wrong)?;
                let (overload, transferring) = (cursor.get().ok(), cursor.get().ok());
                cursor.end().map_err(|Short| wrong)?;
                ToMaster::Load(load, overload, transferring)
            }
            kind::CHUNK_DOESNT_EXIST | kind::CHUNK_DAMAGED | kind::CHUNK_LOST => {
                if len % 8 != 0 {
                    return Err(wrong);
                }
                let mut cursor = Cursor::new(payload);
                ToMaster::Ids(kind, std::iter::from_fn(|| cursor.get().ok()).collect())
            }
            kind::CHUNK_NEW => ToMaster::New(parse_entries(kind, payload)?),
            kind::ERROR_OCCURRED if len == 0 => ToMaster::ErrorOccurred,
            111..=181 if kind % 2 == 1 => {
                let expected = match kind {
                    151 | 155 | 157 | 159 | 181 => 13,
                    153 => 33,
                    _ => 9,
                };
                match (payload.first_chunk(), payload.last()) {
                    (Some(id), Some(&status)) if len == expected => {
                        let id = ChunkId(u64::from_be_bytes(*id));
                        ToMaster::Answer {
                            command: kind - 1,
                            id,
                            status,
                        }
                    }
                    _ => return Err(wrong),
                }
            }
            kind::VERSION | kind::CONFIG_VALUE | kind::CHUNK_STATUS_ANSWER => {
                ToMaster::Information(kind)
            }
            kind::CHUNK_BLOCKS => {
                exactly::<info::Blocks>(kind, payload)?;
                ToMaster::Information(kind)
            }
            kind::CHUNK_CHECKSUM | kind::CHUNK_CHECKSUM_TAB => ToMaster::Information(kind),
            _ => {
                return Err(Malformed {
                    kind,
                    len,
                    what: "unknown type",
                })
            }
        })
    }
}

/// The digest that answers a challenge: MD5 of its first half, AUTH_CODE, its second half.
pub fn auth_digest(challenge: &[u8; 32], auth_code: &[u8]) -> [u8; 16] {
    use md5::{Digest, Md5};
    let (first, second) = challenge.split_at(16);
    Md5::new()
        .chain_update(first)
        .chain_update(auth_code)
        .chain_update(second)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn begin_is_55_or_71_bytes() {
        let fields = BeginFields {
            version: super::super::CLAIMED_VERSION.0,
            address: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 9422),
            timeout_s: 0,
            csid: 3,
            space: SpaceFields::from(Space {
                used_bytes: 1,
                total_bytes: 2,
                ..Space::default()
            }),
        };
        let plain = Register::Begin(None, fields);
        let golden = [
            0, 0, 0, 100, 0, 0, 0, 55, 60, 0, 4, 26, 0, 0, 0, 0, 0, 0x24, 0xCE, 0, 0, 0, 3, 0, 0,
            0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2,
        ];
        assert_eq!(plain.encode()[..golden.len()], golden);
        for register in [plain, Register::Begin(Some([9; 16]), fields)] {
            let frame = register.encode();
            assert!(matches!(frame.len() - 8, 55 | 71));
            assert_eq!(Register::parse(&frame[8..]).unwrap(), register);
        }
    }

    #[test]
    fn the_ack_of_a_3_0_117_master() {
        let golden = [0, 0, 3, 0, 0xEA, 0, 10, 0, 1, 0x5F, 0, 0, 0, 0, 0, 0, 7];
        let ack = Ack::parse(&golden).unwrap();
        assert_eq!(
            ack,
            Ack::Accepted {
                version: Some(Version::new(3, 0, 117)),
                timeout_s: Some(10),
                csid: Some(1),
                metaid: Some(0x5F00_0000_0000_0007),
            }
        );
        assert_eq!(ack.encode()[8..], golden);
        assert_eq!(Ack::parse(&[0]).unwrap(), Ack::PART_TAKEN);
        for len in [0, 2, 4, 6, 16, 18] {
            assert!(Ack::parse(&vec![0; len]).is_err(), "{len}");
        }
    }

    #[test]
    fn orders_have_the_fields_in_the_masters_order() {
        let bytes: Vec<u8> = [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 16, 0, 0, 0, 0, 3, 0, 0, 0, 2].into();
        let (new, old) = (ChunkVersion(3), ChunkVersion(2));
        let truncate = Command::Truncate {
            id: ChunkId(9),
            length: 4096,
            new,
            old,
        };
        assert_eq!(
            Command::parse(kind::TRUNCATE, &bytes).unwrap(),
            Some(truncate)
        );
        assert_eq!(truncate.encode()[8..], bytes);
        assert_eq!(truncate.answer(0)[..8], [0, 0, 0, 161, 0, 0, 0, 9]);
    }

    #[test]
    fn the_digest_is_md5_around_the_password() {
        // md5 of 16 bytes 'a', "secret", 16 bytes 'b', by coreutils.
        let mut challenge = [b'a'; 32];
        challenge[16..].fill(b'b');
        let digest = auth_digest(&challenge, b"secret");
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "b363895674ad0a3dab5e3e7c085d6221");
    }

    #[test]
    fn labels_are_bits() {
        assert_eq!(label_mask(""), 0);
        assert_eq!(label_mask("A, z;c"), 1 | 1 << 25 | 1 << 2);
    }

    fn command() -> impl Strategy<Value = Command> {
        let ids = (
            any::<u64>().prop_map(ChunkId),
            any::<u64>().prop_map(ChunkId),
        );
        let versions = (
            any::<u32>().prop_map(ChunkVersion),
            any::<u32>().prop_map(ChunkVersion),
        );
        let erasure = prop::sample::select(vec![154u32, 156, 158, 180]);
        (0..8u8, ids, versions, any::<u32>(), any::<u16>(), erasure).prop_map(
            |(which, (id, old_id), (version, old), word, port, kind)| match which {
                0 => Command::Create { id, version },
                1 => Command::Delete { id, version },
                2 | 3 => Command::Duplicate {
                    new_id: id,
                    new_version: version,
                    old_id,
                    old_version: old,
                    length: (which == 3).then_some(word),
                },
                4 => Command::SetVersion {
                    id,
                    new: version,
                    old,
                },
                5 => {
                    let source = SocketAddrV4::new(word.into(), port);
                    Command::Replicate {
                        id,
                        version,
                        source,
                    }
                }
                6 => Command::Truncate {
                    id,
                    length: word,
                    new: version,
                    old,
                },
                _ => Command::ErasureCode { kind, id, version },
            },
        )
    }

    proptest! {
        #[test]
        fn commands_and_answers_round_trip(command in command(), status: u8) {
            let frame = command.encode();
            let parsed = FromMaster::parse(command.kind(), &frame[8..]).unwrap();
            prop_assert_eq!(parsed, FromMaster::Command(command));
            let answer = command.answer(status);
            let parsed = ToMaster::parse(command.kind() + 1, &answer[8..]).unwrap();
            let id = command.id();
            prop_assert_eq!(parsed, ToMaster::Answer { command: command.kind(), id, status });
        }

        #[test]
        fn no_bytes_make_a_parser_panic(kind in 0u32..700, bytes: Vec<u8>) {
            let _ = (FromMaster::parse(kind, &bytes), ToMaster::parse(kind, &bytes));
        }

        #[test]
        fn a_command_cut_short_is_malformed(command in command(), cut in 1usize..40) {
            let frame = command.encode();
            let payload = &frame[8..];
            let kept = payload.len().saturating_sub(cut);
            if let Ok(parsed) = Command::parse(command.kind(), &payload[..kept]) {
                // Only lists and LOCALSPLIT have more than one length.
                let erasure = matches!(parsed, Some(Command::ErasureCode { .. }));
                prop_assert!(erasure);
            }
        }

        #[test]
        fn lists_round_trip(list: Vec<(u64, u32, bool)>) {
            let entries: Vec<ChunkEntry> = list
                .into_iter()
                .map(|(id, version, removing)| ChunkEntry {
                    id: ChunkId(id),
                    version: ChunkVersion(version & !REMOVING_BIT),
                    removing,
                })
                .collect();
            let frame = encode_chunks(&entries);
            prop_assert_eq!(Register::parse(&frame[8..]).unwrap(), Register::Chunks(entries));
        }
    }
}
