//! Frames and segment headers as they lie on the disk.
//!
//! Both carry the run, their own unit and a checksum seeded with the volume's secret (store rule
//! R1): a stale frame, one of another place, and file data that looks like one do not count.

use super::record::Record;
use crate::layout::{Page, Reader, HEADER_BYTES, UNIT_BYTES};
use crc32fast::Hasher;

/// Units of the largest frame.
pub(crate) const FRAME_UNITS_MAX: usize = 16;

/// What identifies a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) secret: [u8; 16],
    pub(crate) run: u64,
}

/// First unit of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Position in the chain of this run and the ones before.
    pub(crate) index: u64,
    pub(crate) unit: u64,
    /// First frame of this segment.
    pub(crate) first_seq: u64,
    /// The segment that follows.
    pub(crate) next: u64,
}

/// A frame that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) seq: u64,
    pub(crate) units: u32,
    pub(crate) mark: u64,
    pub(crate) records: Vec<Record>,
}

fn seeded(secret: &[u8; 16], bytes: &[u8], crc_at: usize) -> Option<u32> {
    let mut hasher = Hasher::new();
    hasher.update(secret);
    hasher.update(bytes.get(..crc_at)?);
    hasher.update(&[0; 4]);
    hasher.update(bytes.get(crc_at + 4..)?);
    Some(hasher.finalize())
}

impl SegmentHeader {
    pub(crate) fn encode(&self, identity: Identity) -> Page {
        let mut page = Page([0; UNIT_BYTES]);
        page.put(0, *b"ASEG");
        page.put(8, identity.run.to_le_bytes());
        page.put(16, self.index.to_le_bytes());
        page.put(24, self.unit.to_le_bytes());
        page.put(32, self.first_seq.to_le_bytes());
        page.put(40, self.next.to_le_bytes());
        let crc = seeded(&identity.secret, &page.0, 48).expect("a page is long enough");
        page.put(48, crc.to_le_bytes());
        page
    }

    /// The header at `unit`, if these bytes are one of this journal.
    pub(crate) fn decode(bytes: &[u8], unit: u64, identity: Identity) -> Option<SegmentHeader> {
        let bytes = bytes.get(..UNIT_BYTES)?;
        let mut r = Reader(bytes);
        if r.take()? != *b"ASEG" || r.u32()? != 0 || r.u64()? != identity.run {
            return None;
        }
        let (index, own, first_seq, next) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        if own != unit || r.u32()? != seeded(&identity.secret, bytes, 48)? {
            return None;
        }
        Some(SegmentHeader {
            index,
            unit,
            first_seq,
            next,
        })
    }
}

/// Units of a frame with `bytes` bytes of records.
pub(crate) fn frame_units(bytes: usize) -> usize {
    (HEADER_BYTES + bytes).div_ceil(UNIT_BYTES)
}

/// Fills `out`, which is zeroed and `frame_units(records.len())` units long.
pub(crate) fn encode(
    out: &mut [u8],
    identity: Identity,
    unit: u64,
    (seq, mark): (u64, u64),
    (count, records): (u16, &[u8]),
) {
    let units = (out.len() / UNIT_BYTES) as u16;
    let mut head = Vec::with_capacity(HEADER_BYTES);
    head.extend(b"AFRM");
    head.extend(units.to_le_bytes());
    head.extend(count.to_le_bytes());
    for field in [identity.run, seq, unit, mark] {
        head.extend(field.to_le_bytes());
    }
    head.extend((records.len() as u32).to_le_bytes());
    out[..head.len()].copy_from_slice(&head);
    out[HEADER_BYTES..HEADER_BYTES + records.len()].copy_from_slice(records);
    let crc = seeded(&identity.secret, out, 44).expect("a frame is long enough");
    out[44..48].copy_from_slice(&crc.to_le_bytes());
}

/// The frame at `unit`, if `bytes` begin with one of this journal.
pub(crate) fn decode(bytes: &[u8], unit: u64, identity: Identity) -> Option<Frame> {
    let mut r = Reader(bytes);
    if r.take()? != *b"AFRM" {
        return None;
    }
    let (units, count) = (r.u16()?, r.u16()?);
    let (run, seq, own, mark) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
    let (len, crc) = (r.u32()?, r.u32()?);
    if run != identity.run || own != unit || !(1..=FRAME_UNITS_MAX).contains(&usize::from(units)) {
        return None;
    }
    let whole = bytes.get(..usize::from(units) * UNIT_BYTES)?;
    if seeded(&identity.secret, whole, 44)? != crc {
        return None;
    }
    let end = HEADER_BYTES.checked_add(len as usize)?;
    let mut r = Reader(whole.get(HEADER_BYTES..end)?);
    let records = (0..count)
        .map(|_| Record::decode(&mut r))
        .collect::<Option<Vec<_>>>()?;
    Some(Frame {
        seq,
        units: units.into(),
        mark,
        records,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Identity = Identity {
        secret: [7; 16],
        run: 5,
    };

    fn sample() -> Vec<u8> {
        let mut records = Vec::new();
        Record::Purge { slot: 3 }.encode(&mut records);
        let mut out = vec![0; frame_units(records.len()) * UNIT_BYTES];
        encode(&mut out, ID, 99, (12, 11), (1, &records));
        out
    }

    #[test]
    fn a_frame_counts_only_at_its_place_in_its_run() {
        let frame = decode(&sample(), 99, ID).expect("valid");
        assert_eq!((frame.seq, frame.mark, frame.units), (12, 11, 1));
        assert_eq!(frame.records, [Record::Purge { slot: 3 }]);
        assert_eq!(decode(&sample(), 98, ID), None);
        assert_eq!(decode(&sample(), 99, Identity { run: 6, ..ID }), None);
        assert_eq!(
            decode(
                &sample(),
                99,
                Identity {
                    secret: [8; 16],
                    ..ID
                }
            ),
            None
        );
    }

    #[test]
    fn segment_headers_round_trip() {
        let header = SegmentHeader {
            index: 4,
            unit: 64,
            first_seq: 9,
            next: 80,
        };
        let page = header.encode(ID);
        assert_eq!(SegmentHeader::decode(&page.0, 64, ID), Some(header));
        assert_eq!(SegmentHeader::decode(&page.0, 65, ID), None);
    }

    proptest::proptest! {
        #[test]
        fn a_changed_byte_is_noticed(at in 0usize..4096, xor in 1u8..) {
            let mut bytes = sample();
            bytes[at] ^= xor;
            proptest::prop_assert_eq!(decode(&bytes, 99, ID), None);
        }

        #[test]
        fn any_bytes_are_judged_without_panic(mut bytes: Vec<u8>, len in 0usize..9000) {
            bytes.resize(len, 0);
            let _ = decode(&bytes, 99, ID);
            let _ = SegmentHeader::decode(&bytes, 99, ID);
        }
    }
}
