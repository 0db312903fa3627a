//! Command descriptor blocks, and the parameter data that some of them send.
//!
//! Each function names its command; lengths are allocation or transfer lengths in bytes or blocks
//! as the standard has them. The control byte is 0 everywhere: NACA = 0, so ACA never arises.

use blockdev::reserve::{ReserveIn, ReserveOut};

/// A CDB of up to 16 bytes, zero-padded as the header carries it.
pub type Cdb = [u8; 16];

/// Bits of byte 1 of READ and WRITE.
const FUA: u8 = 0x08;

fn with_lba(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[1] = flags;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

fn with_lba_10(opcode: u8, flags: u8, lba: u32, blocks: u16) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[1] = flags;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// TEST UNIT READY.
pub fn test_unit_ready() -> Cdb {
    [0; 16]
}

/// REQUEST SENSE, in fixed or descriptor format.
pub fn request_sense(len: u8, descriptor: bool) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x03;
    cdb[1] = u8::from(descriptor);
    cdb[4] = len;
    cdb
}

/// INQUIRY: the standard data, or a vital product data page.
pub fn inquiry(page: Option<u8>, len: u16) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x12;
    if let Some(page) = page {
        cdb[1] = 0x01;
        cdb[2] = page;
    }
    cdb[3..5].copy_from_slice(&len.to_be_bytes());
    cdb
}

/// MODE SENSE(6) of current values, without block descriptors.
pub fn mode_sense_6(page: u8, len: u8) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x1a;
    cdb[1] = 0x08;
    cdb[2] = page & 0x3f;
    cdb[4] = len;
    cdb
}

/// MODE SENSE(10) of current values, without block descriptors.
pub fn mode_sense_10(page: u8, len: u16) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x5a;
    cdb[1] = 0x08;
    cdb[2] = page & 0x3f;
    cdb[7..9].copy_from_slice(&len.to_be_bytes());
    cdb
}

/// READ CAPACITY(10).
pub fn read_capacity_10() -> Cdb {
    with_lba_10(0x25, 0, 0, 0)
}

/// READ CAPACITY(16).
pub fn read_capacity_16(len: u32) -> Cdb {
    with_lba(0x9e, 0x10, 0, len)
}

/// READ(10).
pub fn read_10(lba: u32, blocks: u16, fua: bool) -> Cdb {
    with_lba_10(0x28, if fua { FUA } else { 0 }, lba, blocks)
}

/// READ(16).
pub fn read_16(lba: u64, blocks: u32, fua: bool) -> Cdb {
    with_lba(0x88, if fua { FUA } else { 0 }, lba, blocks)
}

/// WRITE(10).
pub fn write_10(lba: u32, blocks: u16, fua: bool) -> Cdb {
    with_lba_10(0x2a, if fua { FUA } else { 0 }, lba, blocks)
}

/// WRITE(16).
pub fn write_16(lba: u64, blocks: u32, fua: bool) -> Cdb {
    with_lba(0x8a, if fua { FUA } else { 0 }, lba, blocks)
}

/// SYNCHRONIZE CACHE(10) of the whole unit.
pub fn synchronize_cache_10() -> Cdb {
    with_lba_10(0x35, 0, 0, 0)
}

/// SYNCHRONIZE CACHE(16); 0 and 0 mean the whole unit.
pub fn synchronize_cache_16(lba: u64, blocks: u32) -> Cdb {
    with_lba(0x91, 0, lba, blocks)
}

/// WRITE SAME(16) with one block of data; `unmap` lets the unit deallocate instead.
pub fn write_same_16(lba: u64, blocks: u32, unmap: bool) -> Cdb {
    with_lba(0x93, if unmap { 0x08 } else { 0 }, lba, blocks)
}

/// COMPARE AND WRITE; the data are `2 × blocks` blocks: what must be there, then what to write.
pub fn compare_and_write(lba: u64, blocks: u8, fua: bool) -> Cdb {
    with_lba(0x89, if fua { FUA } else { 0 }, lba, u32::from(blocks))
}

/// Whether the data that go out are a parameter list, of which the unit may leave a part unread
/// (UNMAP, MODE SELECT, PERSISTENT RESERVE OUT); all other data are blocks.
pub(crate) fn takes_parameters(cdb: &Cdb) -> bool {
    matches!(cdb[0], 0x15 | 0x42 | 0x55 | 0x5f)
}

/// Whether the data are logical blocks, so that unit and initiator must agree about how many bytes
/// they are: READ, WRITE, COMPARE AND WRITE, WRITE SAME.
pub(crate) fn moves_blocks(cdb: &Cdb) -> bool {
    matches!(
        cdb[0],
        0x08 | 0x28 | 0xa8 | 0x88 | 0x0a | 0x2a | 0xaa | 0x8a | 0x2e | 0x8e | 0x89 | 0x41 | 0x93
    )
}

/// Most ranges of one UNMAP that the length of its parameter list can tell.
pub const UNMAP_RANGES_MAX: usize = 4095;

/// UNMAP; see [`unmap_list`].
pub fn unmap(parameter_len: u16) -> Cdb {
    with_lba_10(0x42, 0, 0, parameter_len)
}

/// Parameter list of an UNMAP of ranges (first block, blocks); `None` if there are too many.
pub fn unmap_list(ranges: &[(u64, u32)]) -> Option<Vec<u8>> {
    if ranges.len() > UNMAP_RANGES_MAX {
        return None;
    }
    let descriptors_len = 16 * ranges.len() as u16;
    let mut list = vec![0; 8];
    list[0..2].copy_from_slice(&(descriptors_len + 6).to_be_bytes());
    list[2..4].copy_from_slice(&descriptors_len.to_be_bytes());
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    Some(list)
}

/// REPORT LUNS of all addressable units.
pub fn report_luns(len: u32) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0xa0;
    cdb[6..10].copy_from_slice(&len.to_be_bytes());
    cdb
}

/// REPORT TARGET PORT GROUPS; `extended` asks for the header that tells the transition time.
pub fn report_target_port_groups(len: u32, extended: bool) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0xa3;
    cdb[1] = if extended { 0x2a } else { 0x0a };
    cdb[6..10].copy_from_slice(&len.to_be_bytes());
    cdb
}

/// PERSISTENT RESERVE IN.
pub fn persistent_reserve_in(ask: ReserveIn, len: u16) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x5e;
    cdb[1] = ask as u8;
    cdb[7..9].copy_from_slice(&len.to_be_bytes());
    cdb
}

/// PERSISTENT RESERVE OUT; the data are [`ReserveOut::parameters`].
pub fn persistent_reserve_out(request: &ReserveOut, parameter_len: u32) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x5f;
    cdb[1] = request.action();
    cdb[2] = request.scope_and_type();
    cdb[5..9].copy_from_slice(&parameter_len.to_be_bytes());
    cdb
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::reserve::ReserveKind;

    /// Byte strings written out from SBC-3 and SPC-4.
    #[test]
    fn golden() {
        let lba = 0x0102_0304_0506_0708;
        assert_eq!(
            read_16(lba, 8, false),
            [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 8, 0, 0]
        );
        assert_eq!(write_16(lba, 8, true)[..2], [0x8a, 0x08]);
        assert_eq!(
            read_10(0x0102_0304, 0x0506, false)[..10],
            [0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0]
        );
        assert_eq!(
            write_10(1, 2, false)[..10],
            [0x2a, 0, 0, 0, 0, 1, 0, 0, 2, 0]
        );
        assert_eq!(inquiry(Some(0x83), 255)[..6], [0x12, 1, 0x83, 0, 255, 0]);
        assert_eq!(inquiry(None, 36)[..6], [0x12, 0, 0, 0, 36, 0]);
        assert_eq!(mode_sense_6(8, 64)[..6], [0x1a, 8, 8, 0, 64, 0]);
        assert_eq!(
            mode_sense_10(8, 64)[..10],
            [0x5a, 8, 8, 0, 0, 0, 0, 0, 64, 0]
        );
        assert_eq!(read_capacity_16(32)[..2], [0x9e, 0x10]);
        assert_eq!(read_capacity_16(32)[10..14], [0, 0, 0, 32]);
        assert_eq!(synchronize_cache_16(0, 0)[0], 0x91);
        assert_eq!(write_same_16(1, 2, true)[..2], [0x93, 0x08]);
        assert_eq!(unmap(24)[..10], [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        let list = unmap_list(&[(1, 2), (3, 4)]).expect("few");
        assert_eq!(list[..8], [0, 38, 0, 32, 0, 0, 0, 0]);
        assert_eq!(list[24..36], [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4]);
        assert!(unmap_list(&[(0, 1); UNMAP_RANGES_MAX]).is_some());
        assert_eq!(unmap_list(&[(0, 1); UNMAP_RANGES_MAX + 1]), None);
        assert_eq!(compare_and_write(1, 3, false)[13], 3);
        assert_eq!(report_luns(16)[6..10], [0, 0, 0, 16]);
        assert_eq!(report_target_port_groups(16, false)[..2], [0xa3, 0x0a]);
        assert_eq!(report_target_port_groups(16, true)[..2], [0xa3, 0x2a]);
        let preempt = ReserveOut::PreemptAndAbort {
            own: 1,
            victim: 2,
            kind: ReserveKind::WriteExclusiveRegistrants,
        };
        let out = persistent_reserve_out(&preempt, 24);
        assert_eq!(out[..9], [0x5f, 5, 5, 0, 0, 0, 0, 0, 24]);
        let status = persistent_reserve_in(ReserveIn::FullStatus, 8);
        assert_eq!(status[..9], [0x5e, 3, 0, 0, 0, 0, 0, 0, 8]);
        assert_eq!(request_sense(18, true)[..5], [3, 1, 0, 0, 18]);
        assert_eq!(read_16(lba, 8, true)[1], 0x08);
        assert_eq!(read_10(1, 8, true)[1], 0x08);
        assert_eq!(read_capacity_10()[0], 0x25);
        assert_eq!(synchronize_cache_10()[0], 0x35);
        assert_eq!(test_unit_ready(), [0; 16]);
    }
}
