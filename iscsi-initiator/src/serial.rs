//! Serial number arithmetic for CmdSN, StatSN, DataSN and R2TSN (RFC 7143 §4.2.2, RFC 1982).
//!
//! `a < b` holds iff `(b - a) mod 2^32` lies in `1..2^31`. Two numbers exactly 2^31 apart are
//! unordered; no window of ours or of a target is ever that wide.

/// A 32-bit serial number that wraps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Serial(pub u32);

impl Serial {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Serial {
        self.plus(1)
    }

    /// The number before this one.
    #[must_use]
    pub fn previous(self) -> Serial {
        Serial(self.0.wrapping_sub(1))
    }

    /// This number advanced by `count`.
    #[must_use]
    pub fn plus(self, count: u32) -> Serial {
        Serial(self.0.wrapping_add(count))
    }

    /// Whether this comes before `other`.
    pub fn is_before(self, other: Serial) -> bool {
        matches!(other.0.wrapping_sub(self.0), 1..=0x7fff_ffff)
    }

    /// Whether this comes before `other` or equals it.
    pub fn is_at_most(self, other: Serial) -> bool {
        self == other || self.is_before(other)
    }

    /// How many numbers lie from this one up to, but without, `other`.
    pub fn until(self, other: Serial) -> u32 {
        other.0.wrapping_sub(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_survives_the_wrap() {
        assert!(Serial(0xffff_ffff).is_before(Serial(0)));
        assert!(Serial(0xffff_fff0).is_before(Serial(16)));
        assert!(!Serial(16).is_before(Serial(0xffff_fff0)));
        assert!(!Serial(5).is_before(Serial(5)));
        assert!(Serial(5).is_at_most(Serial(5)));
        assert_eq!(Serial(0).previous(), Serial(0xffff_ffff));
    }

    proptest! {
        #[test]
        fn is_a_strict_order_within_half_the_range(a: u32, step in 1u32..0x8000_0000) {
            let (a, b) = (Serial(a), Serial(a).plus(step));
            prop_assert!(a.is_before(b));
            prop_assert!(!b.is_before(a));
            prop_assert_eq!(a.until(b), step);
        }
    }
}
