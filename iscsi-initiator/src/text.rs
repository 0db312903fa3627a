//! Text keys: `key=value` pairs as login and text PDUs carry them (RFC 7143 §6.1).
//!
//! Outgoing pairs are built into one byte string, each ended by a NUL. Incoming segments are
//! joined until the one without the C bit and only then split, because a pair may be cut anywhere.
//! Numbers, hex and base64 are decoded here; what a key means is decided by [`crate::login`].

use std::fmt::Write;
use thiserror::Error;

/// Most bytes of keys one negotiation sequence may have: room for long authentication items.
pub const TEXT_BYTES_MAX: usize = 64 << 10;
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 63;

/// Text that breaks the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TextError {
    /// More than the bound.
    #[error("more than {0} bytes of text keys")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("text keys that are not UTF-8")]
    NotUtf8,
    /// A pair without `=`, or with a malformed key.
    #[error("malformed text key")]
    Malformed,
}

/// Pairs under construction.
#[derive(Clone, Debug, Default)]
pub struct TextBuilder {
    bytes: Vec<u8>,
}

impl TextBuilder {
    /// Appends `key=value` and its NUL.
    pub fn push(&mut self, key: &str, value: &str) {
        debug_assert!(is_key(key) && !value.contains('\0'));
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Segments being joined.
#[derive(Clone, Debug)]
pub struct TextCollector {
    bytes: Vec<u8>,
    limit_bytes: usize,
}

impl TextCollector {
    /// Takes up to `limit_bytes` in all.
    pub fn new(limit_bytes: usize) -> TextCollector {
        TextCollector {
            bytes: Vec::new(),
            limit_bytes,
        }
    }

    /// Appends the data segment of one PDU.
    pub fn push(&mut self, segment: &[u8]) -> Result<(), TextError> {
        if self.bytes.len() + segment.len() > self.limit_bytes {
            return Err(TextError::TooLong(self.limit_bytes));
        }
        self.bytes.extend_from_slice(segment);
        Ok(())
    }

    /// What was joined; leaves it empty for the next sequence.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// Whether `key` is a well-formed key: a letter, then letters, digits and `.-+@_#`.
///
/// The grammar wants a capital letter and no `#`; the registered keys `iSCSIProtocolLevel` and
/// `X#NodeArchitecture` do not obey it.
pub fn is_key(key: &str) -> bool {
    let bytes = key.as_bytes();
    let tail = |b: &u8| b.is_ascii_alphanumeric() || b".-+@_#".contains(b);
    bytes.len() <= KEY_BYTES_MAX
        && bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.iter().all(tail)
}

/// Splits joined text into pairs, in order.
///
/// The last NUL may be missing and empty pairs are skipped: some targets pad with NULs and count
/// them, and neither can be mistaken for anything else.
pub fn parse_pairs(text: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
    let text = std::str::from_utf8(text).map_err(|_| TextError::NotUtf8)?;
    text.split('\0')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or(TextError::Malformed)?;
            if is_key(key) {
                Ok((key, value))
            } else {
                Err(TextError::Malformed)
            }
        })
        .collect()
}

/// A number: decimal, or hex after `0x`.
pub fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u64::from_str_radix(hex, 16).ok()
        }
        Some(_) => None,
        None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        None => None,
    }
}

/// A binary item: hex after `0x` (length ⌈digits/2⌉) or base64 after `0b`, of at most `max` bytes.
pub fn parse_binary(text: &str, max: usize) -> Option<Vec<u8>> {
    let (prefix, digits) = text.split_at_checked(2)?;
    if digits.len() > 2 * max.max(2) {
        return None;
    }
    let bytes = match prefix {
        "0x" | "0X" => parse_hex(digits.as_bytes()),
        "0b" | "0B" => parse_base64(digits.as_bytes()),
        _ => None,
    }?;
    (bytes.len() <= max).then_some(bytes)
}

fn parse_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    let (odd, pairs) = digits.split_at(digits.len() % 2);
    let mut out = Vec::with_capacity(digits.len().div_ceil(2));
    for &digit in odd {
        out.push(value(digit)?);
    }
    for pair in pairs.chunks_exact(2) {
        out.push(value(pair[0])? << 4 | value(pair[1])?);
    }
    (!out.is_empty()).then_some(out)
}

fn parse_base64(digits: &[u8]) -> Option<Vec<u8>> {
    let unpadded = digits
        .strip_suffix(b"==")
        .or_else(|| digits.strip_suffix(b"="))
        .unwrap_or(digits);
    if digits.len() % 4 != 0 || unpadded.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(unpadded.len() * 3 / 4);
    for group in unpadded.chunks(4) {
        let mut word = 0u32;
        for &digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            word = word << 6 | u32::from(value);
        }
        word <<= 6 * (4 - group.len());
        let [_, a, b, c] = word.to_be_bytes();
        match group.len() {
            4 => out.extend_from_slice(&[a, b, c]),
            3 => out.extend_from_slice(&[a, b]),
            2 => out.push(a),
            _ => return None,
        }
    }
    Some(out)
}

/// `bytes` as a hex item, `0x…`.
pub fn hex_item(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 + 2 * bytes.len());
    out.push_str("0x");
    for byte in bytes {
        write!(out, "{byte:02x}").expect("writing to a string does not fail");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_pair_nul_terminated() {
        let mut text = TextBuilder::default();
        text.push("InitiatorName", "iqn.a");
        text.push("SessionType", "Normal");
        assert_eq!(
            text.into_bytes(),
            b"InitiatorName=iqn.a\0SessionType=Normal\0"
        );
    }

    #[test]
    fn pairs_and_what_is_not_one() {
        assert_eq!(
            parse_pairs(b"A=1\0B=\0\0C=x=y"),
            Ok(vec![("A", "1"), ("B", ""), ("C", "x=y")])
        );
        assert_eq!(parse_pairs(b"nokey"), Err(TextError::Malformed));
        assert_eq!(parse_pairs(b"1st=1\0"), Err(TextError::Malformed));
        assert_eq!(parse_pairs(b"=1\0"), Err(TextError::Malformed));
        assert_eq!(parse_pairs(b"A=\xff\0"), Err(TextError::NotUtf8));
        assert!(is_key("X#NodeArchitecture") && !is_key(&"K".repeat(64)));
    }

    #[test]
    fn numbers_and_binary_items() {
        assert_eq!(parse_number("262144"), Some(262_144));
        assert_eq!(parse_number("0x2000"), Some(8192));
        for bad in ["", "0x", "-1", "1 ", "0xg", "+1", "99999999999999999999"] {
            assert_eq!(parse_number(bad), None, "{bad}");
        }
        assert_eq!(parse_binary("0x1ff", 4), Some(vec![1, 0xff]));
        assert_eq!(parse_binary("0bAQID", 4), Some(vec![1, 2, 3]));
        assert_eq!(parse_binary("0bAQI=", 4), Some(vec![1, 2]));
        assert_eq!(parse_binary("0bAQ==", 4), Some(vec![1]));
        for bad in ["", "0", "0x", "0b", "0bA", "0bA===", "0bA$==", "0xzz", "12"] {
            assert_eq!(parse_binary(bad, 4), None, "{bad}");
        }
        assert_eq!(parse_binary("0x0102030405", 4), None);
        assert_eq!(hex_item(&[0, 0xab]), "0x00ab");
    }

    #[test]
    fn refuses_unbounded_keys() {
        let mut text = TextCollector::new(10);
        assert_eq!(text.push(b"123456"), Ok(()));
        assert_eq!(text.push(b"12345"), Err(TextError::TooLong(10)));
        assert_eq!(text.take(), b"123456");
    }

    proptest! {
        #[test]
        fn hex_items_round_trip(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            prop_assert_eq!(parse_binary(&hex_item(&bytes), 200), Some(bytes));
        }

        #[test]
        fn anything_parses_or_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_pairs(&bytes);
        }
    }
}
