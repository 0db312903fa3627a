//! What does a buffer cost? Taken from the pool, frozen, shared with two legs and given back,
//! beside the allocator.

use benches::Bench;
use blockdev::{IoVec, Pool};
use std::hint::black_box;

fn main() {
    let pool = Pool::new(64 << 20);
    pool.prefault(pool.limit_bytes());
    for bytes in [4096, 64 << 10, 128 << 10] {
        let kib = bytes >> 10;
        println!("\n{kib} KiB:");
        Bench::new("one buffer, taken and given back")
            .candidate("pool", 20_000, |n| {
                for _ in 0..n {
                    black_box(pool.alloc_now(bytes));
                }
            })
            .candidate("pool, within its limit", 20_000, |n| {
                for _ in 0..n {
                    black_box(pool.try_alloc(bytes));
                }
            })
            .candidate("pool, frozen, in a list, shared twice", 20_000, |n| {
                for _ in 0..n {
                    let data = IoVec::from(pool.alloc_now(bytes).freeze());
                    black_box((data.clone(), data));
                }
            })
            .candidate("Vec, not zeroed", 20_000, |n| {
                for _ in 0..n {
                    black_box(Vec::<u8>::with_capacity(black_box(bytes)));
                }
            })
            .candidate("Vec, zeroed", 2_000, |n| {
                for _ in 0..n {
                    black_box(vec![0u8; black_box(bytes)]);
                }
            })
            .run();
    }
    let run = pool.alloc_now(128 << 10).freeze();
    Bench::new("slicing 4 KiB out of a list of 1 MiB")
        .candidate("IoVec::slice", 20_000, |n| {
            let all: IoVec = (0..8).map(|_| run.clone()).collect();
            for i in 0..n {
                let at = (i % 256) as usize * 4096;
                black_box(all.slice(at..at + 4096));
            }
        })
        .run();
}
