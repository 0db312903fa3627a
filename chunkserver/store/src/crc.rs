//! Sums of granules joined into sums of fragments without touching the bytes again.
//!
//! CRC-32 is linear: `crc(A ‖ B) = shift(crc(A), len(B)) ^ crc(B)`. The shift over a whole granule
//! is four table look-ups; the general one (for the edges of a fragment) is `crc32fast`'s.

use chunk_api::crc::combine;
use std::sync::OnceLock;

/// The shift over 4096 bytes, by each byte of the sum.
fn tables() -> &'static [[u32; 256]; 4] {
    static TABLES: OnceLock<[[u32; 256]; 4]> = OnceLock::new();
    TABLES.get_or_init(|| {
        let mut tables = [[0; 256]; 4];
        for bit in 0..32 {
            let shifted = combine(1 << bit, 0, 4096);
            let table = &mut tables[bit / 8];
            for (byte, entry) in table.iter_mut().enumerate() {
                if byte >> (bit % 8) & 1 == 1 {
                    *entry ^= shifted;
                }
            }
        }
        tables
    })
}

/// The sum of `A ‖ B` where `B` is a granule of 4096 bytes.
pub(crate) fn then_granule(a: u32, b: u32) -> u32 {
    let tables = tables();
    let [w, x, y, z] = a.to_le_bytes();
    tables[0][usize::from(w)]
        ^ tables[1][usize::from(x)]
        ^ tables[2][usize::from(y)]
        ^ tables[3][usize::from(z)]
        ^ b
}

/// A sum that grows part by part.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sum(pub(crate) u32);

impl Sum {
    /// Appends a part of `bytes` bytes whose sum is `crc`.
    pub(crate) fn push(&mut self, crc: u32, bytes: usize) {
        self.0 = match bytes {
            4096 => then_granule(self.0, crc),
            0 => self.0,
            _ => combine(self.0, crc, bytes as u64),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chunk_api::crc::crc32;

    proptest::proptest! {
        #[test]
        fn parts_sum_to_the_whole(cuts in proptest::collection::vec(0usize..3, 0..20), seed: u8) {
            let mut sum = Sum::default();
            let mut all = Vec::new();
            for (i, cut) in cuts.iter().enumerate() {
                let part = vec![seed.wrapping_add(i as u8); [4096, 1000, 0][*cut]];
                sum.push(crc32(&part), part.len());
                all.extend(part);
            }
            proptest::prop_assert_eq!(sum.0, crc32(&all));
        }
    }
}
