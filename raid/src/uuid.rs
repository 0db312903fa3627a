//! 128-bit identities of arrays, legs and nodes.

use std::fmt;

/// Sixteen bytes, printed as mdadm prints them: four groups in disk order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// From two random numbers, marked as version 4.
    pub fn random(rt: &blockdev::Rt) -> Uuid {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&rt.random().to_le_bytes());
        bytes[8..].copy_from_slice(&rt.random().to_le_bytes());
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }

    /// Its first eight bytes as a number: enough to tell devices of one array apart.
    pub fn short(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(first)
    }

    /// Parses 32 hexadecimal digits, with or without `:` and `-` between them.
    pub fn parse(text: &str) -> Option<Uuid> {
        let mut bytes = [0; 16];
        let mut digits = 0;
        for c in text.chars().filter(|c| !matches!(c, ':' | '-')) {
            let value = c.to_digit(16)? as u8;
            let byte = bytes.get_mut(digits / 2)?;
            *byte = *byte << 4 | value;
            digits += 1;
        }
        (digits == 32).then_some(Uuid(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if i > 0 && i % 4 == 0 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_mdadm_does() {
        let uuid = Uuid(*b"0123456789abcdef");
        assert_eq!(uuid.to_string(), "30313233:34353637:38396162:63646566");
        assert_eq!(Uuid::parse(&uuid.to_string()), Some(uuid));
        assert_eq!(Uuid::parse("12"), None);
        assert_eq!(Uuid::parse(&"0".repeat(33)), None);
    }
}
