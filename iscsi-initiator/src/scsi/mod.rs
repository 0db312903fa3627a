//! SCSI as far as an initiator needs it: commands, sense and the pages that describe a unit.
//!
//! [`cdb`] encodes, [`sense`] and [`mod@unit`] decode. Everything decoded comes from the network:
//! lengths are clamped to what arrived, and a page that is too short yields `None`, not a guess.
//! Sources: SPC-4, SBC-3; the byte tables are repeated beside the code.

pub mod cdb;
pub mod sense;
pub mod unit;

/// SCSI status codes (SAM-5 §5.3).
pub mod status {
    /// GOOD.
    pub const GOOD: u8 = 0x00;
    /// CHECK CONDITION.
    pub const CHECK_CONDITION: u8 = 0x02;
    /// CONDITION MET.
    pub const CONDITION_MET: u8 = 0x04;
    /// BUSY.
    pub const BUSY: u8 = 0x08;
    /// RESERVATION CONFLICT.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    /// TASK SET FULL.
    pub const TASK_SET_FULL: u8 = 0x28;
    /// ACA ACTIVE.
    pub const ACA_ACTIVE: u8 = 0x30;
    /// TASK ABORTED.
    pub const TASK_ABORTED: u8 = 0x40;
}

/// A logical unit number in the 8-byte form of SAM-5 §4.7: peripheral addressing below 256, flat
/// addressing up to 16383.
///
/// Larger numbers are extended forms that only REPORT LUNS can tell; `None`.
pub fn encode_lun(lun: u64) -> Option<[u8; 8]> {
    let [.., high, low] = lun.to_be_bytes();
    match lun {
        0..=255 => Some([0, low, 0, 0, 0, 0, 0, 0]),
        256..=16383 => Some([0x40 | high, low, 0, 0, 0, 0, 0, 0]),
        _ => None,
    }
}

/// The number of an 8-byte LUN, if it has one of the two forms of [`encode_lun`].
pub fn decode_lun(lun: [u8; 8]) -> Option<u64> {
    let [a, b, rest @ ..] = lun;
    if rest != [0; 6] {
        return None;
    }
    match a >> 6 {
        0 if a == 0 => Some(u64::from(b)),
        1 => Some(u64::from(a & 0x3f) << 8 | u64::from(b)),
        _ => None,
    }
}

/// Big-endian fields at a byte offset; `None` beyond the end.
pub(crate) mod field {
    pub(crate) fn u16(bytes: &[u8], at: usize) -> Option<u16> {
        bytes
            .get(at..)?
            .first_chunk()
            .map(|chunk| u16::from_be_bytes(*chunk))
    }

    pub(crate) fn u32(bytes: &[u8], at: usize) -> Option<u32> {
        bytes
            .get(at..)?
            .first_chunk()
            .map(|chunk| u32::from_be_bytes(*chunk))
    }

    pub(crate) fn u64(bytes: &[u8], at: usize) -> Option<u64> {
        bytes
            .get(at..)?
            .first_chunk()
            .map(|chunk| u64::from_be_bytes(*chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luns_both_ways() {
        assert_eq!(encode_lun(1), Some([0, 1, 0, 0, 0, 0, 0, 0]));
        assert_eq!(encode_lun(300), Some([0x41, 44, 0, 0, 0, 0, 0, 0]));
        assert_eq!(encode_lun(16384), None);
        for lun in [0, 1, 255, 256, 16383] {
            assert_eq!(encode_lun(lun).and_then(decode_lun), Some(lun));
        }
        assert_eq!(decode_lun([0xc0, 1, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode_lun([0, 1, 0, 1, 0, 0, 0, 0]), None);
    }
}
