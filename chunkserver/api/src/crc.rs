//! CRC-32 (IEEE 802.3, reflected polynomial 0xEDB88320): the sum MooseFS uses on the wire and on
//! disk, and the arithmetic that lets partial sums be combined instead of recomputed.

use crate::BLOCK_BYTES;
use blockdev::IoVec;
use crc32fast::Hasher;

/// CRC-32 of a block of 65,536 zeros, the sum of a block that was never written.
pub const ZERO_BLOCK_CRC: u32 = 0xD797_8EEB;
/// CRC-32 of a granule of 4096 zeros.
pub const ZERO_GRANULE_CRC: u32 = 0xC71C_0011;

/// CRC-32 of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// CRC-32 over all segments of `data`.
pub fn crc32_iovec(data: &IoVec) -> u32 {
    let mut hasher = Hasher::new();
    for segment in data.segments() {
        hasher.update(segment);
    }
    hasher.finalize()
}

/// CRC-32 of `A ‖ B` from the CRC-32 of `A`, that of `B`, and the length of `B` in bytes.
pub fn combine(a: u32, b: u32, b_bytes: u64) -> u32 {
    let mut left = Hasher::new_with_initial(a);
    left.combine(&Hasher::new_with_initial_len(b, b_bytes));
    left.finalize()
}

/// CRC-32 of `bytes` zeros.
pub fn zeros(bytes: u32) -> u32 {
    match bytes {
        BLOCK_BYTES => ZERO_BLOCK_CRC,
        4096 => ZERO_GRANULE_CRC,
        _ => {
            const ZEROS: [u8; 4096] = [0; 4096];
            let mut hasher = Hasher::new();
            let mut left = bytes as usize;
            while left > 0 {
                let take = left.min(ZEROS.len());
                hasher.update(&ZEROS[..take]);
                left -= take;
            }
            hasher.finalize()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_what_they_say() {
        assert_eq!(crc32(&vec![0; 65_536]), ZERO_BLOCK_CRC);
        assert_eq!(crc32(&[0; 4096]), ZERO_GRANULE_CRC);
        assert_eq!(zeros(1000), crc32(&[0; 1000]));
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    proptest::proptest! {
        #[test]
        fn combining_equals_recomputing(a: Vec<u8>, b: Vec<u8>) {
            let whole = [a.clone(), b.clone()].concat();
            proptest::prop_assert_eq!(combine(crc32(&a), crc32(&b), b.len() as u64), crc32(&whole));
        }
    }
}
