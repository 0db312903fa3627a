//! Files of every shape, with what they must read back as.
//!
//! A [`Corpus`] changes files below one directory and keeps the expected bytes of each in memory;
//! [`Corpus::verify`] compares every byte and names the first that differs. Contents come from a
//! seeded generator, and every 4 KiB block carries its file and offset, so a misplaced block is
//! seen for what it is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_DIRECT;

/// Deterministic bytes: xorshift64*, started from `seed`; every 4 KiB begins with (seed, offset).
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        if bytes.len() % 4096 == 0 {
            bytes.extend_from_slice(&seed.to_le_bytes());
            bytes.extend_from_slice(&u64::to_le_bytes(bytes.len() as u64 - 8));
        }
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Files and what they must hold.
#[derive(Debug)]
pub struct Corpus {
    root: PathBuf,
    expected: BTreeMap<String, Vec<u8>>,
    seed: u64,
}

impl Corpus {
    /// An empty corpus in `root`, which is made.
    pub fn new(root: &Path, seed: u64) -> Self {
        fs::create_dir_all(root).unwrap_or_else(|e| panic!("cannot make {}: {e}", root.display()));
        Self {
            root: root.to_owned(),
            expected: BTreeMap::new(),
            seed,
        }
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Bytes that all files must hold together.
    pub fn total_bytes(&self) -> u64 {
        self.expected.values().map(|bytes| bytes.len() as u64).sum()
    }

    fn next_pattern(&mut self, len: usize) -> Vec<u8> {
        self.seed += 1;
        pattern(self.seed, len)
    }

    fn open(&self, name: &str) -> File {
        let path = self.path(name);
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
    }

    fn sync(&self, name: &str, file: &File) {
        file.sync_all()
            .unwrap_or_else(|e| panic!("fsync of {name}: {e}"));
    }

    /// A new file of `len` bytes, written in pieces of `piece` bytes.
    pub fn create(&mut self, name: &str, len: usize, piece: usize) {
        let bytes = self.next_pattern(len);
        let mut file = self.open(name);
        for part in bytes.chunks(piece.max(1)) {
            file.write_all(part)
                .unwrap_or_else(|e| panic!("write to {name}: {e}"));
        }
        self.sync(name, &file);
        self.expected.insert(name.to_owned(), bytes);
    }

    /// Overwrites `len` bytes at `at` (past the end: a hole before), in one write.
    pub fn write_at(&mut self, name: &str, at: usize, len: usize) {
        let bytes = self.next_pattern(len);
        let file = self.open(name);
        file.write_all_at(&bytes, at as u64)
            .unwrap_or_else(|e| panic!("write to {name}: {e}"));
        self.sync(name, &file);
        let expected = self.expected.entry(name.to_owned()).or_default();
        if expected.len() < at + len {
            expected.resize(at + len, 0);
        }
        expected[at..at + len].copy_from_slice(&bytes);
    }

    /// Overwrites whole pages with O_DIRECT.
    pub fn write_direct(&mut self, name: &str, page: usize, pages: usize) {
        let bytes = self.next_pattern(pages * 4096);
        let path = self.path(name);
        // O_DIRECT wants aligned memory: a page-aligned window of a larger buffer.
        let mut buffer = vec![0_u8; bytes.len() + 4096];
        let skew = buffer.as_ptr().align_offset(4096);
        let window = &mut buffer[skew..skew + bytes.len()];
        window.copy_from_slice(&bytes);
        let file = File::options()
            .write(true)
            .custom_flags(O_DIRECT)
            .open(&path);
        let file = file.unwrap_or_else(|e| panic!("O_DIRECT open of {}: {e}", path.display()));
        file.write_all_at(window, page as u64 * 4096)
            .unwrap_or_else(|e| panic!("O_DIRECT write to {name}: {e}"));
        self.sync(name, &file);
        let expected = self.expected.entry(name.to_owned()).or_default();
        let end = (page + pages) * 4096;
        if expected.len() < end {
            expected.resize(end, 0);
        }
        expected[page * 4096..end].copy_from_slice(&bytes);
    }

    /// Cuts or extends a file.
    pub fn truncate(&mut self, name: &str, len: usize) {
        let file = self.open(name);
        file.set_len(len as u64)
            .unwrap_or_else(|e| panic!("truncate of {name}: {e}"));
        self.sync(name, &file);
        self.expected
            .entry(name.to_owned())
            .or_default()
            .resize(len, 0);
    }

    /// Notes that `to` is now a copy of `from`, made by other means (a snapshot).
    pub fn copied(&mut self, from: &str, to: &str) {
        let bytes = self
            .expected
            .get(from)
            .unwrap_or_else(|| panic!("no file {from}"))
            .clone();
        self.expected.insert(to.to_owned(), bytes);
    }

    /// Notes what a file holds that was written by other means.
    pub fn written(&mut self, name: &str, bytes: Vec<u8>) {
        self.expected.insert(name.to_owned(), bytes);
    }

    /// Removes a file.
    pub fn remove(&mut self, name: &str) {
        let path = self.path(name);
        fs::remove_file(&path).unwrap_or_else(|e| panic!("cannot remove {}: {e}", path.display()));
        self.expected.remove(name);
    }

    /// Compares every byte of every file; returns how many were compared.
    pub fn verify(&self) -> u64 {
        for (name, expected) in &self.expected {
            let path = self.path(name);
            let mut actual = Vec::with_capacity(expected.len());
            File::open(&path)
                .and_then(|mut file| file.read_to_end(&mut actual))
                .unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
            if let Some(difference) = first_difference(expected, &actual) {
                panic!("{name}: {difference}");
            }
        }
        self.total_bytes()
    }

    /// Reads pieces at pseudo-random unaligned places and compares them.
    pub fn verify_random_reads(&self, name: &str, count: usize) {
        let expected = self
            .expected
            .get(name)
            .unwrap_or_else(|| panic!("no file {name}"));
        let mut file = self.open(name);
        let mut state = 0x1234_5678_9ABC_DEF1_u64;
        for _ in 0..count {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = (state % expected.len().max(1) as u64) as usize;
            let len = ((state >> 32) % 100_000) as usize;
            let want = &expected[at..expected.len().min(at + len)];
            let mut got = vec![0; want.len()];
            file.seek(SeekFrom::Start(at as u64))
                .and_then(|_| file.read_exact(&mut got))
                .unwrap_or_else(|e| panic!("read of {name} at {at}: {e}"));
            if let Some(difference) = first_difference(want, &got) {
                panic!("{name}, a read of {len} bytes at {at}: {difference}");
            }
        }
    }
}

/// Where and how two contents differ; `None` when they are equal.
pub fn first_difference(expected: &[u8], actual: &[u8]) -> Option<String> {
    if expected == actual {
        return None;
    }
    let at = expected.iter().zip(actual).position(|(e, a)| e != a);
    Some(match at {
        None => format!("{} bytes where {} belong", actual.len(), expected.len()),
        Some(at) => {
            let wrong = expected.iter().zip(actual).filter(|(e, a)| e != a).count();
            let show = |bytes: &[u8]| format!("{:02x?}", &bytes[at..bytes.len().min(at + 16)]);
            format!(
                "byte {at} (granule {}, block {}) differs, {wrong} in all; expected {}, read {}",
                at / 4096,
                at / 65536,
                show(expected),
                show(actual)
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_repeatable_and_marked() {
        let bytes = pattern(7, 10_000);
        assert_eq!(bytes.len(), 10_000);
        assert_eq!(bytes, pattern(7, 10_000));
        assert_ne!(bytes, pattern(8, 10_000));
        assert_eq!(bytes[4096..4104], 7_u64.to_le_bytes());
        assert_eq!(bytes[4104..4112], 4096_u64.to_le_bytes());
    }

    #[test]
    fn a_difference_is_located() {
        let expected = pattern(1, 9000);
        let mut actual = expected.clone();
        actual[5000] ^= 1;
        let text = first_difference(&expected, &actual).unwrap();
        assert!(
            text.starts_with("byte 5000 (granule 1, block 0) differs, 1 in all"),
            "{text}"
        );
        let text = first_difference(&expected, &expected[..100]).unwrap();
        assert_eq!(text, "100 bytes where 9000 belong");
        assert_eq!(first_difference(&expected, &expected), None);
    }
}
