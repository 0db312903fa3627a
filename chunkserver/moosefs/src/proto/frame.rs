//! Framing: header, bounds of each link, encoding.

use super::field::{Cursor, Field, Malformed};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;
/// Longest payload on the data port, in bytes, both ways.
pub const DATA_PORT_PAYLOAD_MAX: u32 = 100_000;
/// Longest payload a master sends to a server, in bytes.
pub const FROM_MASTER_PAYLOAD_MAX: u32 = 10_000;
/// Longest payload a server sends to a master, in bytes.
pub const TO_MASTER_PAYLOAD_MAX: u32 = 500_000_000;

/// `type u32, length u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Type of the packet, see [`super::kind`].
    pub kind: u32,
    /// Bytes of payload.
    pub len: u32,
}

impl Header {
    /// Parses a header and refuses a payload above `payload_max` bytes.
    pub fn parse(bytes: [u8; HEADER_BYTES], payload_max: u32) -> Result<Header, Malformed> {
        let value = u64::from_be_bytes(bytes);
        let header = Header {
            kind: (value >> 32) as u32,
            len: value as u32,
        };
        if header.len > payload_max {
            let what = "longer than this link allows";
            return Err(Malformed {
                kind: header.kind,
                len: header.len as usize,
                what,
            });
        }
        Ok(header)
    }

    /// The header's bytes.
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        (u64::from(self.kind) << 32 | u64::from(self.len)).to_be_bytes()
    }
}

/// A whole frame whose payload `fill` appends.
pub fn encode(kind: u32, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    fill(&mut out);
    let len = u32::try_from(out.len() - HEADER_BYTES).expect("a frame of ours is below 4 GiB");
    out[..HEADER_BYTES].copy_from_slice(&Header { kind, len }.encode());
    out
}

/// A whole frame with one value as its payload.
pub fn encode_one(kind: u32, value: &impl Field) -> Vec<u8> {
    encode(kind, |out| value.put(out))
}

/// A whole frame at the front of some bytes: header, payload, and how many bytes both take.
pub type Split<'a> = (Header, &'a [u8], usize);

/// The first frame in `bytes`, if it is there wholly. Used on links with small packets (the
/// master's).
pub fn split(bytes: &[u8], payload_max: u32) -> Result<Option<Split<'_>>, Malformed> {
    let mut cursor = Cursor::new(bytes);
    let Ok(head) = cursor.array::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = Header::parse(head, payload_max)?;
    let Ok(payload) = cursor.bytes(header.len as usize) else {
        return Ok(None);
    };
    Ok(Some((header, payload, HEADER_BYTES + payload.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_type_length_payload() {
        let frame = encode(0x0102_0304, |out| 0xABu8.put(out));
        assert_eq!(frame, [1, 2, 3, 4, 0, 0, 0, 1, 0xAB]);
        let (header, payload, used) = split(&frame, 10).unwrap().unwrap();
        assert_eq!(
            (header.kind, payload, used),
            (0x0102_0304, &[0xABu8][..], 9)
        );
        for cut in 0..frame.len() {
            assert!(split(&frame[..cut], 10).unwrap().is_none());
        }
    }

    #[test]
    fn the_bound_is_inclusive() {
        let header = Header { kind: 7, len: 100 };
        assert!(Header::parse(header.encode(), 100).is_ok());
        assert!(Header::parse(header.encode(), 99).is_err());
    }
}
