//! Sense data in fixed (70, 71) and descriptor (72, 73) format (SPC-4 §4.5).
//!
//! Bits 6–0 of byte 0 decide; lengths are untrusted and clamped to what arrived. Sense that is
//! shorter than its code yields the key with ASC/ASCQ 00/00.

use super::field;
use blockdev::path::Sense;

/// Sense keys (SPC-4 table 43).
pub mod key {
    /// NO SENSE.
    pub const NO_SENSE: u8 = 0x0;
    /// RECOVERED ERROR.
    pub const RECOVERED: u8 = 0x1;
    /// NOT READY.
    pub const NOT_READY: u8 = 0x2;
    /// MEDIUM ERROR.
    pub const MEDIUM: u8 = 0x3;
    /// ILLEGAL REQUEST.
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    /// UNIT ATTENTION.
    pub const UNIT_ATTENTION: u8 = 0x6;
    /// ABORTED COMMAND.
    pub const ABORTED: u8 = 0xb;
    /// MISCOMPARE.
    pub const MISCOMPARE: u8 = 0xe;
    /// COMPLETED.
    pub const COMPLETED: u8 = 0xf;
}

/// Parses sense data; `None` if there is none or its format is unknown.
pub fn parse(bytes: &[u8]) -> Option<Sense> {
    let code = *bytes.first()? & 0x7f;
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    match code {
        0x70 | 0x71 => {
            let valid = byte(0) & 0x80 != 0;
            Some(Sense {
                key: byte(2) & 0x0f,
                asc: byte(12),
                ascq: byte(13),
                deferred: code == 0x71,
                information: field::u32(bytes, 3).filter(|_| valid).map(u64::from),
            })
        }
        0x72 | 0x73 => Some(Sense {
            key: byte(1) & 0x0f,
            asc: byte(2),
            ascq: byte(3),
            deferred: code == 0x73,
            information: descriptors(bytes),
        }),
        _ => None,
    }
}

/// The INFORMATION descriptor (type 00): 0 type, 1 length, 2 bit 7 VALID, 4–11 information.
fn descriptors(bytes: &[u8]) -> Option<u64> {
    let end = 8 + usize::from(*bytes.get(7)?);
    let mut rest = bytes.get(8..end.min(bytes.len()))?;
    while let [kind, len, ..] = *rest {
        let whole = 2 + usize::from(len);
        if kind == 0x00 {
            let valid = rest.get(2).is_some_and(|flags| flags & 0x80 != 0);
            return field::u64(rest, 4).filter(|_| valid && whole >= 12);
        }
        rest = rest.get(whole..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fixed() {
        let mut bytes = [0u8; 18];
        bytes[0] = 0xf0;
        bytes[2] = 0x23;
        bytes[3..7].copy_from_slice(&[0, 0, 1, 2]);
        bytes[7] = 10;
        bytes[12] = 0x11;
        let sense = parse(&bytes).expect("sense");
        assert_eq!((sense.key, sense.asc, sense.ascq), (3, 0x11, 0));
        assert_eq!((sense.information, sense.deferred), (Some(0x102), false));
        bytes[0] = 0x71;
        let sense = parse(&bytes).expect("sense");
        assert_eq!((sense.information, sense.deferred), (None, true));
        assert_eq!(
            parse(&bytes[..3]).map(|sense| (sense.key, sense.asc)),
            Some((3, 0))
        );
    }

    #[test]
    fn descriptor() {
        let mut bytes = vec![0x72, 0x06, 0x29, 0x01, 0, 0, 0, 16];
        bytes.extend([0x02, 2, 0, 0]);
        bytes.extend([0x00, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let sense = parse(&bytes).expect("sense");
        assert_eq!((sense.key, sense.asc, sense.ascq), (6, 0x29, 1));
        assert_eq!(sense.information, Some(256));
        bytes[0] = 0x73;
        assert!(parse(&bytes).expect("sense").deferred);
    }

    #[test]
    fn unknown_formats() {
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[0x7f, 0, 0]), None);
        assert_eq!(parse(&[0x00; 18]), None);
    }

    proptest! {
        #[test]
        fn anything_parses_or_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }
    }
}
