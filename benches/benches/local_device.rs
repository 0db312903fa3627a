//! What does a local device cost beside bare pread and pwrite on the same file? 4 KiB at random
//! places, one at a time and 16 at a time, through io_uring and through threads.
//!
//! The file lies in `BENCH_DIR` (default: the system's folder for temporary files).

use benches::{sized, Bench};
use blockdev::driver::local::{LocalDevice, LocalOptions, Via};
use blockdev::driver::run_shard;
use blockdev::sim::Chance;
use blockdev::{BlockDevice, Completion, IoCtx, IoVec, Op, Pool, Rt, Sector};
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FILE_BYTES: u64 = 256 << 20;
const FILE_BYTES_SMOKE: u64 = 4 << 20;
const BLOCK: u64 = 4096;
const COUNT: u64 = 1000;

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn file_bytes() -> u64 {
    sized(FILE_BYTES, FILE_BYTES_SMOKE)
}

fn place(chance: &Chance) -> u64 {
    chance.below(file_bytes() / BLOCK) * BLOCK
}

/// Fills the file, so that no read meets a hole.
async fn fill(device: &LocalDevice, data: &IoVec) {
    for at in (0..file_bytes()).step_by(data.len()) {
        let op = Op::Write {
            at: Sector::from_bytes(at),
            data: data.clone(),
            want: Default::default(),
        };
        let written = device.submit(op, IoCtx::foreground()).await;
        written.expect("written");
    }
    let flushed = device.submit(Op::Flush, IoCtx::foreground()).await;
    flushed.expect("flushed");
}

async fn many(device: &LocalDevice, chance: &Chance, data: Option<&IoVec>, depth: usize, n: u64) {
    let mut waiting: VecDeque<Completion> = VecDeque::new();
    for _ in 0..n {
        if waiting.len() == depth {
            if let Some(first) = waiting.pop_front() {
                first.await.expect("done");
            }
        }
        let at = Sector::from_bytes(place(chance));
        let op = match data {
            Some(data) => Op::Write {
                at,
                data: data.clone(),
                want: Default::default(),
            },
            None => Op::Read { at, sectors: 8 },
        };
        waiting.push_back(device.submit(op, IoCtx::foreground()));
    }
    for completion in waiting {
        completion.await.expect("done");
    }
}

/// One candidate is a shard of its own, on the same thread.
fn through(path: &Path, via: Via, writes: bool, depth: usize) -> impl FnMut(u64) {
    let options = LocalOptions {
        via,
        ..LocalOptions::new(path)
    };
    move |n| {
        let options = &options;
        run_shard(|rt: Rt| async move {
            let pool = Pool::new(16 << 20);
            let device = LocalDevice::open(&rt, &pool, options).await.expect("opens");
            let data = writes.then(|| pool.copy_now(&[7; BLOCK as usize]));
            many(&device, &Chance::new(n), data.as_ref(), depth, n).await;
            device.close().await;
        })
        .expect("a shard");
    }
}

/// Bare system calls, one at a time.
fn bare(path: &Path, writes: bool) -> impl FnMut(u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("opens");
    let pool = Pool::new(1 << 20);
    let mut page = pool.alloc_now(BLOCK as usize);
    move |n| {
        let chance = Chance::new(n);
        for _ in 0..n {
            let (fd, at) = (file.as_raw_fd(), place(&chance) as i64);
            let memory = page.as_mut_ptr().cast();
            // SAFETY: the page is exclusively owned and as long as the block.
            let got = unsafe {
                if writes {
                    libc::pwrite(fd, memory, BLOCK as usize, at)
                } else {
                    libc::pread(fd, memory, BLOCK as usize, at)
                }
            };
            assert_eq!(got, BLOCK as isize, "{}", std::io::Error::last_os_error());
        }
    }
}

fn main() {
    let folder = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let name = format!("antler-bench-{}", std::process::id());
    let scratch = Scratch(folder.join(name));
    let path = scratch.0.as_path();
    run_shard(|rt| async move {
        let pool = Pool::new(16 << 20);
        let options = LocalOptions {
            create_bytes: Some(file_bytes()),
            ..LocalOptions::new(path)
        };
        let device = LocalDevice::open(&rt, &pool, &options)
            .await
            .expect("opens");
        fill(&device, &pool.copy_now(&[1; 1 << 20])).await;
        device.close().await;
    })
    .expect("a shard");
    for (writes, question) in [
        (false, "a random read of 4 KiB"),
        (true, "a random write of 4 KiB"),
    ] {
        let bare_name = if writes { "bare pwrite" } else { "bare pread" };
        Bench::new(question)
            .candidate(bare_name, COUNT, bare(path, writes))
            .candidate(
                "io_uring, 1 at a time",
                COUNT,
                through(path, Via::Auto, writes, 1),
            )
            .candidate(
                "threads, 1 at a time",
                COUNT,
                through(path, Via::Threads, writes, 1),
            )
            .candidate(
                "io_uring, 16 at a time",
                COUNT,
                through(path, Via::Auto, writes, 16),
            )
            .candidate(
                "threads, 16 at a time",
                COUNT,
                through(path, Via::Threads, writes, 16),
            )
            .run();
    }
}
