//! Against real files, once through io_uring and once through threads.

use super::*;
use crate::driver::run_shard;
use std::future::Future;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// A file that is gone at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        Scratch::inside(std::env::temp_dir(), name)
    }

    fn inside(folder: PathBuf, name: &str) -> Scratch {
        let path = folder.join(format!("antler-local-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Scratch(path)
    }

    fn options(&self, via: Via) -> LocalOptions {
        LocalOptions {
            create_bytes: Some(16 * MIB),
            via,
            ..LocalOptions::new(&self.0)
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

struct Bed {
    rt: Rt,
    pool: Pool,
    device: LocalDevice,
}

impl Bed {
    async fn run(&self, op: Op) -> IoResult {
        self.device.submit(op, IoCtx::foreground()).await
    }

    async fn write(&self, at: u64, data: IoVec) {
        let op = Op::Write {
            at: Sector(at),
            data,
            want: Durability::Cache,
        };
        self.run(op).await.expect("written");
    }

    async fn read(&self, at: u64, sectors: u32) -> Vec<u8> {
        let op = Op::Read {
            at: Sector(at),
            sectors,
        };
        self.run(op).await.expect("read").into_data().to_vec()
    }
}

fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| (i / 512) as u8 ^ seed ^ (i % 251) as u8)
        .collect()
}

fn both<F: Future<Output = ()>>(name: &str, test: impl Fn(Bed) -> F) {
    for via in [Via::Auto, Via::Threads] {
        let scratch = Scratch::new(&format!("{name}-{via:?}"));
        with(&scratch.options(via), &test);
    }
}

fn with<F: Future<Output = ()>>(options: &LocalOptions, test: impl Fn(Bed) -> F) {
    run_shard(|rt| async move {
        let pool = Pool::new(64 << 20);
        let device = LocalDevice::open(&rt, &pool, options).await.expect("opens");
        test(Bed { rt, pool, device }).await;
    })
    .expect("shard");
}

#[test]
fn reads_what_was_written() {
    both("roundtrip", |bed| async move {
        let large = pattern(1, 3 * MIB as usize + 4096);
        bed.write(8, bed.pool.copy_now(&large)).await;
        let small = pattern(2, 512);
        bed.write(3, bed.pool.copy_now(&small)).await;
        let fua = Op::Write {
            at: Sector(20_000),
            data: bed.pool.copy_now(&small),
            want: Durability::Fua,
        };
        assert!(matches!(bed.run(fua).await, Ok(Done::Written)));
        assert!(matches!(bed.run(Op::Flush).await, Ok(Done::Flushed)));
        assert_eq!(bed.read(8, (large.len() / 512) as u32).await, large);
        assert_eq!(bed.read(3, 1).await, small);
        assert_eq!(bed.read(20_000, 1).await, small);
        assert_eq!(bed.read(30_000, 8).await, vec![0; 4096]);
        assert!(bed.read(0, 0).await.is_empty());
        bed.device.close().await;
    });
}

#[test]
fn memory_that_is_not_aligned_is_copied_once() {
    both("unaligned", |bed| async move {
        let bytes = pattern(3, 8192);
        let mut buf = bed.pool.alloc_now(8192);
        buf.copy_from_slice(&bytes);
        let buf = buf.freeze();
        // Cut at odd places, and shifted within the page.
        let mut odd = bed.pool.alloc_now(100);
        odd.copy_from_slice(&bytes[..100]);
        let data: IoVec = [odd.freeze(), buf.slice(100..4097), buf.slice(4097..)]
            .into_iter()
            .collect();
        assert_eq!(data.len(), 8192);
        bed.write(16, data).await;
        assert_eq!(bed.read(16, 16).await, bytes);

        let slices: IoVec = (0..2048)
            .map(|i| bed.pool.copy_now(&bytes[i * 4..i * 4 + 4]).bufs()[0].clone())
            .collect();
        bed.write(64, slices).await;
        assert_eq!(bed.read(64, 16).await, bytes);
    });
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros() {
    both("holes", |bed| async move {
        bed.write(0, bed.pool.copy_now(&[9; 65_536])).await;
        let (at, sectors) = (Sector(8), 16);
        assert!(bed.run(Op::Discard { at, sectors }).await.is_ok());
        let (at, sectors) = (Sector(40), 3);
        assert!(bed.run(Op::WriteZeroes { at, sectors }).await.is_ok());
        // As on a file system without fallocate.
        bed.device.shared.writes_zeroes.set(true);
        let (at, sectors) = (Sector(60), 4);
        assert!(bed.run(Op::WriteZeroes { at, sectors }).await.is_ok());
        let seen = bed.read(0, 128).await;
        for (sector, bytes) in seen.chunks(512).enumerate() {
            let is_hole = [8..24, 40..43, 60..64].iter().any(|r| r.contains(&sector));
            let want = if is_hole { 0 } else { 9 };
            assert!(bytes.iter().all(|&b| b == want), "sector {sector}");
        }
    });
}

#[test]
fn fallocate_that_is_refused_becomes_a_write() {
    both("refused", |bed| async move {
        bed.write(0, bed.pool.copy_now(&[9; 8192])).await;
        let shared = &bed.device.shared;
        let (promise, completion) = completion::pair();
        let operation = Operation {
            promise: Some(promise),
            kind: OperationKind::Zero,
            range: Sector(0).span(8),
            left: 1,
            failed: None,
        };
        let token = Token {
            operation: 1000,
            piece: 0,
        };
        shared.operations.borrow_mut().insert(1000, operation);
        let piece = Piece {
            offset: 0,
            done: 0,
            work: Work::PunchHole(4096),
        };
        let refused = Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        shared.finished(token, piece, refused);
        assert!(completion.await.is_ok());
        assert_eq!(bed.read(0, 9).await, [vec![0; 4096], vec![9; 512]].concat());
    });
}

#[test]
fn what_lies_outside_is_refused() {
    both("outside", |bed| async move {
        let end = bed.device.geometry().sectors;
        let refused = Err(Kind::Refused(Refusal::Range));
        let kind = |r: IoResult| r.map(drop).map_err(|e| e.kind);
        let (at, sectors) = (Sector(end - 1), 2);
        assert_eq!(kind(bed.run(Op::Read { at, sectors }).await), refused);
        let sectors = u64::MAX;
        assert_eq!(kind(bed.run(Op::Discard { at, sectors }).await), refused);
        let op = Op::Write {
            at: Sector(0),
            data: bed.pool.copy_now(&[0; 100]),
            want: Durability::Cache,
        };
        assert_eq!(kind(bed.run(op).await), refused);
    });
}

#[test]
fn many_at_once_all_land() {
    both("many", |bed| async move {
        let writes: Vec<Completion> = (0..2000u64)
            .map(|i| {
                let op = Op::Write {
                    at: Sector(i * 8),
                    data: bed.pool.copy_now(&[i as u8; 4096]),
                    want: Durability::Cache,
                };
                bed.device.submit(op, IoCtx::foreground())
            })
            .collect();
        for write in writes {
            write.await.expect("written");
        }
        for i in 0..2000u64 {
            assert!(bed.read(i * 8, 8).await.iter().all(|&b| b == i as u8));
        }
    });
}

#[test]
fn a_claimed_file_names_its_holder() {
    both("claimed", |bed| async move {
        let shared = bed.device.shared.clone();
        let path = format!("/proc/self/fd/{}", {
            use std::os::fd::AsRawFd;
            shared.file.borrow().as_ref().expect("open").as_raw_fd()
        });
        let options = LocalOptions::new(std::fs::canonicalize(path).expect("a path"));
        let again = LocalDevice::open(&bed.rt, &bed.pool, &options).await;
        let text = again.err().expect("in use").to_string();
        let want = format!("in use by pid {}", std::process::id());
        assert!(text.ends_with(&want), "{text}");

        let reader = LocalOptions {
            read_only: true,
            ..options.clone()
        };
        let reader = LocalDevice::open(&bed.rt, &bed.pool, &reader)
            .await
            .expect("to read only");
        let op = Op::Write {
            at: Sector(0),
            data: bed.pool.copy_now(&[0; 512]),
            want: Durability::Cache,
        };
        let error = reader
            .submit(op, IoCtx::foreground())
            .await
            .expect_err("read only");
        assert_eq!(
            error,
            IoError::not_applied(Kind::Refused(Refusal::ReadOnly))
        );

        bed.device.close().await;
        let again = LocalDevice::open(&bed.rt, &bed.pool, &options)
            .await
            .expect("free again");
        again.close().await;
    });
}

#[test]
fn what_cannot_be_a_disk_is_refused() {
    run_shard(|rt| async move {
        let pool = Pool::new(MIB as usize);
        let open =
            async |options: &LocalOptions| LocalDevice::open(&rt, &pool, options).await.err();
        let scratch = Scratch::new("refused");
        let missing = open(&LocalOptions::new(&scratch.0)).await;
        assert!(matches!(missing, Some(OpenError::Missing(_))));
        let folder = open(&LocalOptions::new(std::env::temp_dir())).await;
        assert!(matches!(folder, Some(OpenError::NotADisk(_))));
        let small = LocalOptions {
            create_bytes: Some(512),
            ..LocalOptions::new(&scratch.0)
        };
        assert!(matches!(
            open(&small).await,
            Some(OpenError::TooSmall { bytes: 512, .. })
        ));
    })
    .expect("shard");
}

#[test]
fn a_created_file_is_sparse_and_keeps_its_size() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new("sparse");
    let mut options = scratch.options(Via::Auto);
    options.create_bytes = Some(1 << 34);
    with(&options, |bed| async move {
        assert_eq!(bed.device.geometry().bytes(), 1 << 34);
        bed.write(1 << 24, bed.pool.copy_now(&[1; 4096])).await;
        bed.device.close().await;
    });
    let about = std::fs::metadata(&scratch.0).expect("exists");
    assert!(about.blocks() * 512 < MIB);
    options.create_bytes = Some(1 << 20);
    with(&options, |bed| async move {
        assert_eq!(bed.device.geometry().bytes(), 1 << 34);
        bed.device.close().await;
    });
}

#[test]
fn dropping_everything_does_not_take_writes_back() {
    for via in [Via::Auto, Via::Threads] {
        let scratch = Scratch::new(&format!("dropped-{via:?}"));
        let options = &scratch.options(via);
        with(options, |bed| async move {
            let data = bed.pool.copy_now(&pattern(4, 4 * MIB as usize));
            let op = Op::Write {
                at: Sector(0),
                data,
                want: Durability::Cache,
            };
            drop(bed.device.submit(op, IoCtx::foreground()));
            let Bed { rt, pool, device } = bed;
            drop(device);
            // The claim goes with the last request; whoever gets it sees all of them done.
            let device = loop {
                match LocalDevice::open(&rt, &pool, options).await {
                    Ok(device) => break device,
                    Err(OpenError::InUse { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            };
            let bed = Bed { rt, pool, device };
            assert_eq!(bed.read(0, 8192).await, pattern(4, 4 * MIB as usize));
            bed.device.close().await;
        });
    }
}

#[test]
fn closing_waits_for_what_is_under_way() {
    both("closing", |bed| async move {
        let completions: Vec<Completion> = (0..64)
            .map(|i| {
                let op = Op::Write {
                    at: Sector(i * 8),
                    data: bed.pool.copy_now(&[7; 4096]),
                    want: Durability::Fua,
                };
                bed.device.submit(op, IoCtx::foreground())
            })
            .collect();
        bed.device.close().await;
        for completion in completions {
            let answered = bed.rt.by(Instant(0), completion).await;
            assert!(matches!(answered, Ok(Ok(Done::Written))), "answered by now");
        }
    });
}

#[test]
fn a_late_write_leaves_a_taint_that_a_fence_ends() {
    both("late", |bed| async move {
        let ctx = IoCtx {
            deadline: bed.rt.now(),
            ..IoCtx::foreground()
        };
        for i in 0..16 {
            let op = Op::Write {
                at: Sector(i * 2048),
                data: bed.pool.copy_now(&pattern(i as u8, MIB as usize)),
                want: Durability::Fua,
            };
            match bed.device.submit(op, ctx).await {
                Ok(Done::Written) => {}
                Err(e) => assert_eq!(e, IoError::unknown(Kind::Late)),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(bed.run(Op::Fence).await, Ok(Done::Fenced)));
        assert!(!bed.device.tainted(Sector(0)..Sector(32_768)));
        for i in 0..16 {
            assert_eq!(
                bed.read(i * 2048, 2048).await,
                pattern(i as u8, MIB as usize)
            );
        }
    });
}

#[test]
fn a_file_that_changes_its_size_is_noticed() {
    both("resized", |bed| async move {
        let file = bed.device.shared.file.borrow().clone().expect("open");
        file.set_len(8 * MIB).expect("shrinks");
        let op = Op::Read {
            at: Sector(20_000),
            sectors: 8,
        };
        let error = bed.run(op).await.expect_err("beyond the end");
        assert_eq!(error, IoError::not_applied(Kind::Changed));
        bed.device.rescan().expect("tells");
        let event = std::future::poll_fn(|cx| bed.device.poll_event(cx)).await;
        let sectors = 8 * MIB / 512;
        assert!(matches!(event, Event::Changed(g) if g.sectors == sectors));
        assert_eq!(bed.device.geometry().sectors, sectors);
    });
}

#[test]
fn a_memory_file_system_serves_too() {
    let scratch = Scratch::inside(PathBuf::from("/dev/shm"), "tmpfs");
    with(&scratch.options(Via::Auto), |bed| async move {
        bed.write(1, bed.pool.copy_now(&pattern(5, 9 * 512))).await;
        assert_eq!(bed.read(1, 9).await, pattern(5, 9 * 512));
        assert!(bed.run(Op::Flush).await.is_ok());
        bed.device.close().await;
    });
}

/// A loop device on a file, gone at the end of the test.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Scratch, block_bytes: &str) -> Loop {
        std::fs::File::create(&file.0)
            .and_then(|f| f.set_len(16 * MIB))
            .expect("a file");
        let arguments = ["--find", "--show", "--sector-size", block_bytes];
        let made = std::process::Command::new("losetup")
            .args(arguments)
            .arg(&file.0)
            .output()
            .expect("losetup runs (apt-get install -y mount)");
        let said = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        assert!(
            made.status.success() && !said.is_empty(),
            "losetup (needs root): {}",
            String::from_utf8_lossy(&made.stderr)
        );
        Loop(PathBuf::from(said))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_block_device_tells_its_shape_and_is_claimed() {
    for (via, block_bytes) in [(Via::Auto, 512), (Via::Threads, 4096)] {
        let scratch = Scratch::new(&format!("loop-{block_bytes}"));
        let disk = Loop::new(&scratch, &block_bytes.to_string());
        let options = &LocalOptions {
            via,
            ..LocalOptions::new(&disk.0)
        };
        with(options, |bed| async move {
            let geometry = bed.device.geometry();
            assert_eq!(geometry.bytes(), 16 * MIB);
            assert_eq!(geometry.logical_block_bytes, block_bytes);
            assert!(geometry.discard);

            let again = LocalDevice::open(&bed.rt, &bed.pool, options).await.err();
            let text = again.expect("in use").to_string();
            let want = format!("in use by pid {}", std::process::id());
            assert!(text.ends_with(&want), "{text}");

            let bytes = pattern(6, 65_536);
            bed.write(8, bed.pool.copy_now(&bytes)).await;
            assert!(bed.run(Op::Flush).await.is_ok());
            let (at, sectors) = (Sector(16), 8);
            assert!(bed.run(Op::WriteZeroes { at, sectors }).await.is_ok());
            let (at, sectors) = (Sector(64), 8);
            assert!(bed.run(Op::Discard { at, sectors }).await.is_ok());
            let seen = bed.read(8, 64).await;
            assert_eq!(seen[..4096], bytes[..4096]);
            assert!(seen[4096..8192].iter().all(|&b| b == 0));
            assert_eq!(seen[8192..28_672], bytes[8192..28_672]);

            let op = Op::Read {
                at: Sector(1),
                sectors: 1,
            };
            assert_eq!(bed.run(op).await.is_ok(), block_bytes == 512);
            bed.device.close().await;
            let again = LocalDevice::open(&bed.rt, &bed.pool, options)
                .await
                .expect("free again");
            again.close().await;
        });
    }
}
