//! What a logical unit says of itself: INQUIRY, VPD pages, capacity, mode pages, LUN list.
//!
//! Sources: SPC-4 (INQUIRY, VPD 00/80/83, MODE SENSE, REPORT LUNS), SBC-3 (VPD B0/B1/B2, READ
//! CAPACITY, caching page). The choice of the designator that becomes the WWID is the one of
//! multipath-tools, so that our WWIDs are theirs.

use super::field;
use std::fmt::Write;

/// Standard INQUIRY data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// Peripheral qualifier: 0 = present, 3 = no unit here.
    pub qualifier: u8,
    /// Peripheral device type: 00 disk, 0c storage array controller.
    pub device_type: u8,
    /// TPGS: 0 none, 1 implicit, 2 explicit, 3 both.
    pub tpgs: u8,
    /// T10 vendor identification, trimmed.
    pub vendor: String,
    /// Product identification, trimmed.
    pub product: String,
    /// Product revision, trimmed.
    pub revision: String,
}

/// Parses standard INQUIRY data of at least 36 bytes.
pub fn inquiry(data: &[u8]) -> Option<Inquiry> {
    let head = data.first_chunk::<36>()?;
    Some(Inquiry {
        qualifier: head[0] >> 5,
        device_type: head[0] & 0x1f,
        tpgs: head[5] >> 4 & 3,
        vendor: ascii(&head[8..16]),
        product: ascii(&head[16..32]),
        revision: ascii(&head[32..36]),
    })
}

/// Printable text, trimmed; anything else becomes `?`, so that logs and tables stay whole.
fn ascii(bytes: &[u8]) -> String {
    let text: String = bytes
        .iter()
        .filter(|&&byte| byte != 0)
        .map(|&byte| {
            if (0x20..0x7f).contains(&byte) {
                char::from(byte)
            } else {
                '?'
            }
        })
        .collect();
    text.trim().to_owned()
}

/// Name of a peripheral device type, for messages.
pub fn device_type_name(device_type: u8) -> &'static str {
    match device_type {
        0x00 => "disk",
        0x01 => "tape",
        0x05 => "CD-ROM",
        0x08 => "medium changer",
        0x0c => "storage array controller",
        0x0d => "enclosure",
        0x0e => "simplified disk",
        0x14 => "zoned disk",
        0x1f => "no unit",
        _ => "unknown type",
    }
}

/// The payload of a VPD page, if it is page `page`: byte 1 page, 2–3 length, clamped.
pub fn vpd(page: u8, data: &[u8]) -> Option<&[u8]> {
    if data.get(1) != Some(&page) {
        return None;
    }
    let len = usize::from(field::u16(data, 2)?);
    let rest = data.get(4..)?;
    Some(&rest[..len.min(rest.len())])
}

/// Pages listed in VPD 00. Only these may be asked for.
pub fn supported_pages(data: &[u8]) -> Vec<u8> {
    vpd(0x00, data).unwrap_or_default().to_vec()
}

/// VPD 80: unit serial number, trimmed.
pub fn serial_number(data: &[u8]) -> Option<String> {
    vpd(0x80, data).map(ascii)
}

/// What VPD 83 tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Designators {
    /// The best designator of the unit, as multipath writes it: type digit and hex or text.
    pub wwid: Option<String>,
    /// Target port group of the port that answered.
    pub target_port_group: Option<u16>,
    /// Relative target port identifier of the port that answered.
    pub relative_port: Option<u16>,
}

/// Parses VPD 83. Designators of wrong length are skipped; the first of equals stays.
pub fn designators(data: &[u8]) -> Designators {
    let mut found = Designators::default();
    let mut best = 0;
    let mut rest = vpd(0x83, data).unwrap_or_default();
    while let [codes, kinds, _, len, ..] = *rest {
        let whole = 4 + usize::from(len);
        let Some(id) = rest.get(4..whole) else { break };
        rest = &rest[whole..];
        let (code_set, association, kind) = (codes & 0x0f, kinds >> 4 & 3, kinds & 0x0f);
        match (association, kind) {
            (0, _) => {
                let (rank, text) = rank_designator(code_set, kind, id);
                if rank > best {
                    best = rank;
                    found.wwid = Some(text);
                }
            }
            (1, 4) if id.len() == 4 => found.relative_port = field::u16(id, 2),
            (1, 5) if id.len() == 4 => found.target_port_group = field::u16(id, 2),
            _ => {}
        }
    }
    found
}

/// Rank (0 = unusable) and text of a designator of the unit.
fn rank_designator(code_set: u8, kind: u8, id: &[u8]) -> (u8, String) {
    let hex = |digit: char| {
        let mut text = String::from(digit);
        for byte in id {
            write!(text, "{byte:02x}").expect("writing to a string does not fail");
        }
        text
    };
    let binary = code_set == 1;
    match kind {
        3 if binary => {
            let rank = match (id.first().map(|first| first >> 4), id.len()) {
                (Some(6), 16) => 8,
                (Some(5), 8) => 7,
                (Some(2), 8) => 6,
                (Some(3), 8) => 1,
                _ => return (0, String::new()),
            };
            (rank, hex('3'))
        }
        2 if binary && matches!(id.len(), 8 | 12 | 16) => (4, hex('2')),
        8 if code_set == 3 || code_set == 2 => {
            let name = ascii(id);
            let known = ["eui.", "naa.", "iqn."]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if !known || name.contains('?') {
                return (0, String::new());
            }
            (3, format!("8{name}"))
        }
        1 if id.len() > 8 => {
            let text = ascii(id).split_whitespace().collect::<Vec<_>>().join("_");
            (2, format!("1{text}"))
        }
        _ => (0, String::new()),
    }
}

/// VPD B0: block limits; 0 = not reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockLimits {
    /// Most blocks of one COMPARE AND WRITE.
    pub compare_and_write_blocks: u8,
    /// Most blocks of one transfer.
    pub max_transfer_blocks: u32,
    /// Best transfer, in blocks.
    pub optimal_transfer_blocks: u32,
    /// Most blocks of one UNMAP.
    pub max_unmap_blocks: u32,
    /// Most ranges of one UNMAP.
    pub max_unmap_ranges: u32,
    /// Best UNMAP granularity, in blocks.
    pub unmap_granularity_blocks: u32,
    /// Most blocks of one WRITE SAME.
    pub max_write_same_blocks: u64,
}

/// Parses VPD B0; short pages have fewer fields.
pub fn block_limits(data: &[u8]) -> Option<BlockLimits> {
    vpd(0xb0, data)?;
    let long = |at| field::u32(data, at).unwrap_or(0);
    Some(BlockLimits {
        compare_and_write_blocks: data.get(5).copied().unwrap_or(0),
        max_transfer_blocks: long(8),
        optimal_transfer_blocks: long(12),
        max_unmap_blocks: long(20),
        max_unmap_ranges: long(24),
        unmap_granularity_blocks: long(28),
        max_write_same_blocks: field::u64(data, 36).unwrap_or(0),
    })
}

/// VPD B1: medium rotation rate; 1 = solid state, 0 = not reported.
pub fn rotation_rate(data: &[u8]) -> Option<u16> {
    vpd(0xb1, data)?;
    field::u16(data, 4)
}

/// VPD B2: logical block provisioning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Provisioning {
    /// UNMAP works.
    pub unmap: bool,
    /// WRITE SAME(16) with UNMAP works.
    pub write_same_unmap: bool,
    /// Unmapped blocks read as zeros.
    pub reads_zeroes: bool,
    /// 1 fully provisioned, 2 thin, 0 unknown.
    pub provisioning: u8,
}

/// Parses VPD B2: 5 LBPU 80, LBPWS 40, LBPRZ 1c; 6 type.
pub fn provisioning(data: &[u8]) -> Option<Provisioning> {
    vpd(0xb2, data)?;
    let flags = *data.get(5)?;
    Some(Provisioning {
        unmap: flags & 0x80 != 0,
        write_same_unmap: flags & 0x40 != 0,
        reads_zeroes: flags & 0x1c != 0,
        provisioning: data.get(6).map_or(0, |byte| byte & 7),
    })
}

/// READ CAPACITY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Blocks of the unit.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// Logical blocks of a physical block, as an exponent of two.
    pub physical_exponent: u8,
    /// First logical block that begins a physical one.
    pub lowest_aligned: u16,
    /// LBPME: thin provisioning is on.
    pub provisioned: bool,
    /// LBPRZ: unmapped blocks read as zeros.
    pub reads_zeroes: bool,
    /// Protection information is on: every block carries 8 more bytes that we do not send.
    pub protected: bool,
}

/// Parses READ CAPACITY(16) data. A capacity that overflows yields `None`.
pub fn capacity_16(data: &[u8]) -> Option<Capacity> {
    let flags = field::u16(data, 14)?;
    let blocks = field::u64(data, 0)?.checked_add(1)?;
    let block_bytes = field::u32(data, 8)?;
    blocks.checked_mul(u64::from(block_bytes))?;
    Some(Capacity {
        blocks,
        block_bytes,
        physical_exponent: data.get(13)? & 0x0f,
        lowest_aligned: flags & 0x3fff,
        provisioned: flags & 0x8000 != 0,
        reads_zeroes: flags & 0x4000 != 0,
        protected: data.get(12)? & 1 != 0,
    })
}

/// Parses READ CAPACITY(10) data; `None` also for a unit too large for it.
pub fn capacity_10(data: &[u8]) -> Option<Capacity> {
    let last = field::u32(data, 0).filter(|&last| last != u32::MAX)?;
    Some(Capacity {
        blocks: u64::from(last) + 1,
        block_bytes: field::u32(data, 4)?,
        physical_exponent: 0,
        lowest_aligned: 0,
        provisioned: false,
        reads_zeroes: false,
        protected: false,
    })
}

/// What MODE SENSE of the caching page tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caching {
    /// WP: the unit is write-protected.
    pub write_protected: bool,
    /// DPOFUA: FUA is honoured.
    pub fua: bool,
    /// WCE: volatile write cache on. `None` if the page is not there.
    pub write_cache: Option<bool>,
}

/// Parses MODE SENSE(6) data: header 4 bytes, block descriptors, pages.
pub fn caching_6(data: &[u8]) -> Option<Caching> {
    let flags = *data.get(2)?;
    let pages = 4 + usize::from(*data.get(3)?);
    Some(caching(flags, data.get(pages..).unwrap_or_default()))
}

/// Parses MODE SENSE(10) data: header 8 bytes, block descriptors, pages.
pub fn caching_10(data: &[u8]) -> Option<Caching> {
    let flags = *data.get(3)?;
    let pages = 8 + usize::from(field::u16(data, 6)?);
    Some(caching(flags, data.get(pages..).unwrap_or_default()))
}

fn caching(flags: u8, mut pages: &[u8]) -> Caching {
    let mut write_cache = None;
    while let [code, len, ..] = *pages {
        if code & 0x3f == 0x08 {
            write_cache = pages.get(2).map(|byte| byte & 0x04 != 0);
            break;
        }
        pages = pages.get(2 + usize::from(len)..).unwrap_or_default();
    }
    Caching {
        write_protected: flags & 0x80 != 0,
        fua: flags & 0x10 != 0,
        write_cache,
    }
}

/// Entries of REPORT LUNS, at most as many as arrived.
pub fn lun_list(data: &[u8]) -> Vec<[u8; 8]> {
    let len = field::u32(data, 0).unwrap_or(0) as usize;
    let entries = data.get(8..).unwrap_or_default();
    let entries = &entries[..len.min(entries.len())];
    entries
        .chunks_exact(8)
        .filter_map(|entry| entry.try_into().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(code: u8, payload: &[u8]) -> Vec<u8> {
        let mut data = vec![0, code, 0, payload.len() as u8];
        data.extend_from_slice(payload);
        data
    }

    #[test]
    fn standard_inquiry() {
        let mut data = b"\x00\x00\x05\x12\x1f\x10\x00\x02IET     VIRTUAL-DISK    0001".to_vec();
        let inquiry_data = inquiry(&data).expect("36 bytes");
        assert_eq!(inquiry_data.vendor, "IET");
        assert_eq!(inquiry_data.product, "VIRTUAL-DISK");
        assert_eq!((inquiry_data.device_type, inquiry_data.tpgs), (0, 1));
        data[0] = 0x7f;
        assert_eq!(
            inquiry(&data).map(|i| (i.qualifier, i.device_type)),
            Some((3, 0x1f))
        );
        assert_eq!(inquiry(&data[..35]), None);
    }

    #[test]
    fn best_designator_wins() {
        let naa6 = [0x60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let mut ids = vec![0x02, 0x01, 0, 11];
        ids.extend(b"IET  000100");
        ids.extend([0x01, 0x03, 0, 16]);
        ids.extend(naa6);
        ids.extend([0x01, 0x15, 0, 4, 0, 0, 0, 9]);
        ids.extend([0x01, 0x14, 0, 4, 0, 0, 0, 3]);
        let found = designators(&page(0x83, &ids));
        assert_eq!(
            found.wwid.as_deref(),
            Some("3600102030405060708090a0b0c0d0e0f")
        );
        assert_eq!(
            (found.target_port_group, found.relative_port),
            (Some(9), Some(3))
        );
        let only_t10 = designators(&page(0x83, &ids[..15]));
        assert_eq!(only_t10.wwid.as_deref(), Some("1IET_000100"));
        let wrong_len = designators(&page(0x83, &[1, 3, 0, 4, 0x60, 1, 2, 3]));
        assert_eq!(wrong_len, Designators::default());
        let name = b"\x03\x08\x00\x14naa.52004567ba64678d";
        let found = designators(&page(0x83, name));
        assert_eq!(found.wwid.as_deref(), Some("8naa.52004567ba64678d"));
    }

    #[test]
    fn pages_of_a_disk() {
        assert_eq!(supported_pages(&page(0, &[0, 0x80, 0x83])), [0, 0x80, 0x83]);
        assert_eq!(
            serial_number(&page(0x80, b"  beaf11 ")).as_deref(),
            Some("beaf11")
        );
        assert_eq!(serial_number(&page(0x83, b"beaf11")), None);
        let mut b0 = page(0xb0, &[0; 60]);
        b0[8..12].copy_from_slice(&2048u32.to_be_bytes());
        assert_eq!(
            block_limits(&b0).map(|limits| limits.max_transfer_blocks),
            Some(2048)
        );
        assert_eq!(rotation_rate(&page(0xb1, &[0, 1])), Some(1));
        let b2 = provisioning(&page(0xb2, &[0, 0xc4, 2, 0])).expect("B2");
        assert!(b2.unmap && b2.write_same_unmap && b2.reads_zeroes && b2.provisioning == 2);
    }

    #[test]
    fn capacity_both_forms() {
        let mut data = [0u8; 32];
        data[7] = 0xff;
        data[10] = 2;
        data[13] = 3;
        data[14] = 0xc0;
        let capacity = capacity_16(&data).expect("32 bytes");
        assert_eq!((capacity.blocks, capacity.block_bytes), (256, 512));
        assert_eq!(capacity.physical_exponent, 3);
        assert!(capacity.provisioned && capacity.reads_zeroes && !capacity.protected);
        data[..8].fill(0xff);
        assert_eq!(capacity_16(&data), None);
        assert_eq!(
            capacity_10(&[0, 0, 0, 1, 0, 0, 2, 0]).map(|c| c.blocks),
            Some(2)
        );
        assert_eq!(capacity_10(&[0xff; 8]), None);
    }

    #[test]
    fn caching_pages() {
        let six = [0, 0, 0x10, 0, 0x08, 0x12, 0x04, 0];
        let caching = caching_6(&six).expect("header");
        assert_eq!((caching.fua, caching.write_cache), (true, Some(true)));
        let ten = [
            0, 0, 0, 0x80, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0x0a, 1, 0, 0x88, 1, 0,
        ];
        let caching = caching_10(&ten).expect("header");
        assert!(caching.write_protected && !caching.fua);
        assert_eq!(caching.write_cache, Some(false));
        assert_eq!(caching_6(&[0, 0, 0, 200]).and_then(|c| c.write_cache), None);
    }

    #[test]
    fn lun_lists_are_clamped() {
        let mut data = vec![0, 0, 0, 16, 0, 0, 0, 0];
        data.extend([0; 8]);
        data.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(lun_list(&data).len(), 2);
        data[0] = 0xff;
        assert_eq!(lun_list(&data).len(), 2);
        assert!(lun_list(&data[..10]).is_empty());
    }

    proptest! {
        #[test]
        fn anything_parses_or_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = (inquiry(&bytes), designators(&bytes), block_limits(&bytes), caching_6(&bytes));
            let _ = (provisioning(&bytes), capacity_16(&bytes), capacity_10(&bytes));
            let _ = (caching_10(&bytes), lun_list(&bytes), serial_number(&bytes));
        }
    }
}
