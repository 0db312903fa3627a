//! Header and data digests: CRC-32C as it stands on the wire (RFC 7143 §13.1, appendix A.4).
//!
//! The usual reflected form: polynomial 0x82F63B78, initial value and final xor all ones, stored
//! little-endian in the digest word. A data digest covers the padding too.

/// A running CRC-32C over pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crc(u32);

impl Crc {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    /// The digest word.
    pub fn digest(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }
}

/// The digest word of one piece.
pub fn digest(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::default();
    crc.update(bytes);
    crc.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7143 appendix A.4, and the common check value.
    #[test]
    fn crc32c_vectors() {
        assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(digest(&up), [0x4e, 0x79, 0xdd, 0x46]);
        let down: Vec<u8> = (0..32).rev().collect();
        assert_eq!(digest(&down), [0x5c, 0xdb, 0x3f, 0x11]);
        let mut read = [0u8; 48];
        read[0] = 0x01;
        read[1] = 0xc0;
        read[16] = 0x14;
        read[22] = 0x04;
        read[27] = 0x14;
        read[31] = 0x18;
        read[32] = 0x28;
        read[40] = 0x02;
        assert_eq!(digest(&read), [0x56, 0x3a, 0x96, 0xd9]);
        assert_eq!(u32::from_le_bytes(digest(b"123456789")), 0xe306_9283);
    }

    #[test]
    fn pieces_sum_to_the_whole() {
        let mut crc = Crc::default();
        crc.update(b"1234");
        crc.update(b"");
        crc.update(b"56789");
        assert_eq!(crc.digest(), digest(b"123456789"));
    }
}
