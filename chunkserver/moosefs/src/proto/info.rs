//! Information packets (250 to 601), which any peer may ask for between requests.

use super::field::{exactly, packet, put_name, Cursor, Field, Malformed, Short};
use super::{encode, frame::encode_one, kind, Version};
use chunk_api::{ChunkId, ChunkVersion, Disk, DiskStats};
use std::net::SocketAddrV4;

packet! {
    /// What 250, 300 and 302 ask about.
    Which = 12 {
        /// The chunk.
        id: ChunkId,
        /// Its version, 0 = any.
        version: ChunkVersion,
    }
}

packet! {
    /// `ANTOCS_GET_CHUNK_INFO` (304).
    InfoRequest = 13 {
        /// The chunk.
        id: ChunkId,
        /// Its version, 0 = any.
        version: ChunkVersion,
        /// 1 blocks, 2 checksum, 4 table, 8 path.
        mask: u8,
    }
}

packet! {
    /// `CSTOAN_CHUNK_BLOCKS` (251).
    Blocks = 15 {
        /// The chunk.
        id: ChunkId,
        /// Its version.
        version: ChunkVersion,
        /// Blocks, 0 to 1024.
        blocks: u16,
        /// See [`super::status`].
        status: u8,
    }
}

/// A question of any peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// 10, with a message id to repeat if there was one.
    Version(Option<u32>),
    /// 80: an option's value.
    Config {
        /// To be repeated.
        message_id: u32,
        /// Its name as in mfschunkserver.cfg.
        option: String,
    },
    /// 250.
    Blocks(Which),
    /// 300.
    Checksum(Which),
    /// 302.
    ChecksumTable(Which),
    /// 304.
    Info(InfoRequest),
    /// 306, for one disk or all (empty).
    ClearErrors(String),
    /// 502.
    MonotonicData,
    /// 504.
    Chart,
    /// 506.
    ChartData,
    /// 530.
    ModuleInfo,
    /// 600.
    HddList,
}

impl Question {
    /// The question in a packet; `None` if the type is no question.
    pub fn parse(kind: u32, payload: &[u8]) -> Result<Option<Question>, Malformed> {
        let len = payload.len();
        let wrong = Malformed {
            kind,
            len,
            what: "wrong length",
        };
        let short = |Short| wrong;
        let question = match kind {
            kind::GET_VERSION if len == 0 => Question::Version(None),
            kind::GET_VERSION => Question::Version(Some(exactly(kind, payload)?)),
            kind::GET_CONFIG => {
                let mut cursor = Cursor::new(payload);
                let message_id = cursor.get().map_err(short)?;
                let option = cursor.name().map_err(short)?;
                cursor.end().map_err(short)?;
                Question::Config { message_id, option }
            }
            kind::GET_CHUNK_BLOCKS => Question::Blocks(exactly(kind, payload)?),
            kind::GET_CHUNK_CHECKSUM => Question::Checksum(exactly(kind, payload)?),
            kind::GET_CHUNK_CHECKSUM_TAB => Question::ChecksumTable(exactly(kind, payload)?),
            kind::GET_CHUNK_INFO => Question::Info(exactly(kind, payload)?),
            kind::CLEAR_ERRORS => {
                let mut cursor = Cursor::new(payload);
                let bytes = cursor.get::<u32>().map_err(short)?;
                let path = cursor.bytes(bytes as usize).map_err(short)?;
                cursor.end().map_err(short)?;
                Question::ClearErrors(String::from_utf8_lossy(path).into_owned())
            }
            kind::GET_MONOTONIC_DATA if len == 0 => Question::MonotonicData,
            kind::GET_CHART if matches!(len, 4 | 8) => Question::Chart,
            kind::GET_CHART_DATA if matches!(len, 4 | 8 | 9) => Question::ChartData,
            kind::GET_MODULE_INFO if len == 0 => Question::ModuleInfo,
            kind::GET_HDD_LIST if len == 0 => Question::HddList,
            kind::GET_MONOTONIC_DATA
            | kind::GET_CHART
            | kind::GET_CHART_DATA
            | kind::GET_MODULE_INFO
            | kind::GET_HDD_LIST => return Err(wrong),
            _ => return Ok(None),
        };
        Ok(Some(question))
    }
}

/// `ANTOAN_VERSION` (11).
pub fn version(message_id: Option<u32>, version: Version, text: &str) -> Vec<u8> {
    encode(kind::VERSION, |out| {
        message_id.iter().for_each(|id| id.put(out));
        version.0.put(out);
        out.extend_from_slice(text.as_bytes());
    })
}

/// `ANTOAN_CONFIG_VALUE` (81).
pub fn config_value(message_id: u32, value: &str) -> Vec<u8> {
    encode(kind::CONFIG_VALUE, |out| {
        message_id.put(out);
        put_name(value, out);
    })
}

/// `CSTOAN_CHUNK_BLOCKS` (251): always 15 bytes.
pub fn blocks(which: Which, blocks: Result<u16, u8>) -> Vec<u8> {
    let Which { id, version } = which;
    let status = blocks.err().unwrap_or(super::status::OK);
    let blocks = blocks.unwrap_or(0);
    encode_one(
        kind::CHUNK_BLOCKS,
        &Blocks {
            id,
            version,
            blocks,
            status,
        },
    )
}

/// The sum of sums of 301 and 305: start 1; per word multiply by 426265243, then xor.
pub fn checksum_of(table: &[u32]) -> u32 {
    table
        .iter()
        .fold(1, |sum: u32, word| sum.wrapping_mul(426_265_243) ^ word)
}

/// `CSTOAN_CHUNK_CHECKSUM` (301).
pub fn checksum(which: Which, table: Result<&[u32], u8>) -> Vec<u8> {
    encode(kind::CHUNK_CHECKSUM, |out| {
        which.put(out);
        match table {
            Ok(table) => checksum_of(table).put(out),
            Err(status) => status.put(out),
        }
    })
}

/// `CSTOAN_CHUNK_CHECKSUM_TAB` (303).
pub fn checksum_table(which: Which, table: Result<&[u32], u8>) -> Vec<u8> {
    encode(kind::CHUNK_CHECKSUM_TAB, |out| {
        which.put(out);
        match table {
            Ok(table) => table.iter().for_each(|word| word.put(out)),
            Err(status) => status.put(out),
        }
    })
}

/// What 305 may tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Blocks, 0 to 1024.
    pub blocks: u16,
    /// The 1024 sums.
    pub table: Vec<u32>,
    /// Where it lies.
    pub path: String,
}

/// `CSTOAN_CHUNK_INFO` (305).
pub fn chunk_info(request: InfoRequest, info: Result<&ChunkInfo, u8>) -> Vec<u8> {
    encode(kind::CHUNK_INFO, |out| {
        request.id.put(out);
        request.version.put(out);
        let info = match info {
            Ok(info) => info,
            Err(status) => return status.put(out),
        };
        if request.mask & 1 != 0 {
            info.blocks.put(out);
        }
        if request.mask & 2 != 0 {
            checksum_of(&info.table).put(out);
        }
        if request.mask & 4 != 0 {
            info.table.iter().for_each(|word| word.put(out));
        }
        if request.mask & 8 != 0 {
            (info.path.len() as u32).put(out);
            out.extend_from_slice(info.path.as_bytes());
        }
    })
}

/// `CSTOAN_CLEAR_ERRORS` (307).
pub fn errors_cleared(disks: u8) -> Vec<u8> {
    encode_one(kind::CLEAR_ERRORS_ANSWER, &disks)
}

/// `ANTOAN_MODULE_INFO` (531): module type 2 is a chunkserver.
pub fn module_info(version: Version, csid: u16, metaid: u64, master: SocketAddrV4) -> Vec<u8> {
    encode(kind::MODULE_INFO, |out| {
        2u8.put(out);
        version.0.put(out);
        csid.put(out);
        metaid.put(out);
        master.put(out);
    })
}

/// `CSTOAN_CHART` (505) without a picture.
pub fn empty_chart() -> Vec<u8> {
    encode(kind::CHART, |_| {})
}

/// `CSTOAN_CHART_DATA` (507) without entries; `time_s` is Unix time.
pub fn empty_chart_data(time_s: u32) -> Vec<u8> {
    encode(kind::CHART_DATA, |out| {
        time_s.put(out);
        0u32.put(out);
    })
}

/// `CSTOCL_HDD_LIST` (601).
pub fn hdd_list(disks: &[Disk]) -> Vec<u8> {
    encode(kind::HDD_LIST, |out| {
        disks
            .iter()
            .for_each(|disk| put_disk(disk, &disk.stats, out))
    })
}

/// `ANTOAN_MONOTONIC_DATA` (503): no counters of its own, and each disk with one stats block.
pub fn monotonic_data(disks: &[Disk]) -> Vec<u8> {
    encode(kind::MONOTONIC_DATA, |out| {
        0u16.put(out);
        (disks.len().min(0xFFFF) as u16).put(out);
        disks
            .iter()
            .take(0xFFFF)
            .for_each(|disk| put_disk(disk, &disk.stats[..1], out));
    })
}

fn put_disk(disk: &Disk, stats: &[DiskStats], out: &mut Vec<u8>) {
    let begin = out.len();
    0u16.put(out);
    put_name(&disk.path, out);
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    let flags = flag(disk.removing, 1) | flag(disk.damaged, 2) | flag(disk.scanning, 4);
    flags.put(out);
    let (chunk, time_s) = disk
        .last_error
        .map_or((0, 0), |(id, time_s)| (id.0, time_s));
    chunk.put(out);
    time_s.put(out);
    disk.used_bytes.put(out);
    (if disk.scanning { 0 } else { disk.total_bytes }).put(out);
    disk.chunks.put(out);
    for s in stats {
        let sums = [
            s.read_bytes,
            s.written_bytes,
            s.read_us,
            s.write_us,
            s.fsync_us,
        ];
        sums.iter().for_each(|sum| sum.put(out));
        let counts = [s.read_ios, s.write_ios, s.fsync_ios];
        counts.iter().for_each(|count| count.put(out));
        let worst = [s.read_us_max, s.write_us_max, s.fsync_us_max];
        worst.iter().for_each(|us| us.put(out));
    }
    let len = (out.len() - begin - 2) as u16;
    out[begin..begin + 2].copy_from_slice(&len.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use chunk_api::crc::ZERO_BLOCK_CRC;
    use proptest::prelude::*;

    #[test]
    fn a_disk_entry_is_226_bytes_and_its_path() {
        let disk = Disk {
            path: "vol1".into(),
            removing: true,
            ..Disk::default()
        };
        let frame = hdd_list(&[disk]);
        assert_eq!(frame.len(), 8 + 2 + 226 + 4);
        assert_eq!(frame[8..10], 230u16.to_be_bytes());
        assert_eq!(&frame[10..16], b"\x04vol1\x01");
    }

    #[test]
    fn blocks_are_always_15_bytes() {
        let which = Which {
            id: ChunkId(7),
            version: ChunkVersion(2),
        };
        assert_eq!(
            blocks(which, Ok(3))[8..],
            [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 3, 0]
        );
        assert_eq!(
            blocks(which, Err(13))[8..],
            [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 13]
        );
    }

    #[test]
    fn the_checksum_of_an_empty_chunk() {
        let table = vec![ZERO_BLOCK_CRC; 1024];
        let mut sum = 1u32;
        for _ in 0..1024 {
            sum = sum.wrapping_mul(426_265_243) ^ ZERO_BLOCK_CRC;
        }
        assert_eq!(checksum_of(&table), sum);
    }

    #[test]
    fn questions_of_wrong_length_are_malformed_and_others_are_no_questions() {
        assert!(Question::parse(kind::GET_HDD_LIST, &[1]).is_err());
        assert_eq!(Question::parse(kind::READ, &[]), Ok(None));
        assert_eq!(
            Question::parse(kind::GET_VERSION, &[]),
            Ok(Some(Question::Version(None)))
        );
        let config = Question::Config {
            message_id: 5,
            option: "AB".into(),
        };
        assert_eq!(
            Question::parse(kind::GET_CONFIG, b"\0\0\0\x05\x02AB"),
            Ok(Some(config))
        );
        assert!(Question::parse(kind::GET_CONFIG, b"\0\0\0\x05\x03AB").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(kind in 0u32..700, bytes: Vec<u8>) {
            let _ = Question::parse(kind, &bytes);
        }
    }
}
