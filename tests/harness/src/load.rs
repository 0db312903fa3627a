//! A writer that runs while a test breaks things, and knows what was acknowledged.
//!
//! Each round writes pieces of unaligned lengths at random places of one file, fsyncs, and reads one
//! piece back. The mount outlives every fault the tests make, so nothing may be lost: at the end the
//! file must hold exactly what was written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{unshare, CloneFlags};

use crate::clock::{monotonic_ms, wait_until};
use crate::files::{first_difference, pattern};

/// Bytes of the file that is written.
const FILE_BYTES: usize = 24 << 20;
/// Longest single write; unaligned lengths below it are drawn.
const WRITE_BYTES_MAX: usize = 150_000;

/// A running writer.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    longest_stall_ms: Arc<AtomicU64>,
    thread: Option<JoinHandle<Acknowledged>>,
}

/// What the writer's file must hold.
#[derive(Debug)]
pub struct Acknowledged {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Rounds (some writes and an fsync) that ended.
    pub rounds: u64,
}

impl Load {
    /// Starts writing `path`, from `seed`.
    pub fn start(path: &Path, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let longest = Arc::new(AtomicU64::new(0));
        let shared = (stop.clone(), rounds.clone(), longest.clone());
        let path = path.to_owned();
        let thread =
            std::thread::spawn(move || write(&path, seed, &shared.0, &shared.1, &shared.2));
        Self {
            stop,
            rounds,
            longest_stall_ms: longest,
            thread: Some(thread),
        }
    }

    /// Waits until `more` further rounds were acknowledged; panics when that takes over `limit`, or
    /// when the writer met an error.
    pub fn progress(&self, more: u64, limit: Duration) {
        let until = self.rounds.load(Ordering::Acquire) + more;
        wait_until("the load to go on", limit, || {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!ended, "the load met an error; its message is above");
            self.rounds.load(Ordering::Acquire) >= until
        });
    }

    /// The longest round so far, for messages.
    pub fn longest_stall_ms(&self) -> u64 {
        self.longest_stall_ms.load(Ordering::Acquire)
    }

    /// Ends the writer after its round.
    pub fn finish(mut self) -> Acknowledged {
        self.stop.store(true, Ordering::Release);
        let thread = self
            .thread
            .take()
            .unwrap_or_else(|| panic!("the load was finished twice"));
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Not joined: while a test panics the writer may be stuck in a mount that is going away.
        self.stop.store(true, Ordering::Release);
    }
}

impl Acknowledged {
    /// Compares every byte of the file.
    pub fn verify(&self) -> u64 {
        let actual = std::fs::read(&self.path)
            .unwrap_or_else(|e| panic!("cannot read {}: {e}", self.path.display()));
        if let Some(difference) = first_difference(&self.bytes, &actual) {
            panic!(
                "{} after {} rounds: {difference}",
                self.path.display(),
                self.rounds
            );
        }
        self.bytes.len() as u64
    }
}

fn write(
    path: &Path,
    seed: u64,
    stop: &AtomicBool,
    rounds: &AtomicU64,
    longest: &AtomicU64,
) -> Acknowledged {
    // A table of descriptors of the writer's own. Otherwise every process that the test starts has a
    // copy of the file until its exec closes it; that close flushes through the mount, waits for the
    // chunkserver that is away, and the test waits for the exec.
    unshare(CloneFlags::CLONE_FILES).unwrap_or_else(|e| panic!("load: unshare: {e}"));
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    let file = file.unwrap_or_else(|e| panic!("load: cannot open {}: {e}", path.display()));
    let mut expected = pattern(seed, FILE_BYTES);
    let fail = |what: &str, e: std::io::Error| -> ! { panic!("load: {what}: {e}") };
    file.write_all_at(&expected, 0)
        .unwrap_or_else(|e| fail("first write", e));
    file.sync_all().unwrap_or_else(|e| fail("first fsync", e));
    let mut state = seed | 1;
    let mut draw = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    while !stop.load(Ordering::Acquire) {
        let began = monotonic_ms();
        for _ in 0..4 {
            let len = 1 + draw(WRITE_BYTES_MAX);
            let at = draw(FILE_BYTES - len);
            let bytes = pattern(seed.wrapping_add(draw(usize::MAX) as u64), len);
            file.write_all_at(&bytes, at as u64)
                .unwrap_or_else(|e| fail("write", e));
            expected[at..at + len].copy_from_slice(&bytes);
        }
        file.sync_all().unwrap_or_else(|e| fail("fsync", e));
        let len = 1 + draw(WRITE_BYTES_MAX);
        let at = draw(FILE_BYTES - len);
        let mut got = vec![0; len];
        file.read_exact_at(&mut got, at as u64)
            .unwrap_or_else(|e| fail("read", e));
        if let Some(difference) = first_difference(&expected[at..at + len], &got) {
            panic!("load: a read of {len} bytes at {at}: {difference}");
        }
        longest.fetch_max(monotonic_ms() - began, Ordering::AcqRel);
        rounds.fetch_add(1, Ordering::AcqRel);
    }
    Acknowledged {
        path: path.to_owned(),
        bytes: expected,
        rounds: rounds.load(Ordering::Acquire),
    }
}
