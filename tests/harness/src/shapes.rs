//! Files of every shape that a MooseFS client makes, written through a mount.
//!
//! Sizes sit around what the protocol counts in: 4 KiB granules, 64 KiB blocks, 64 MiB chunks.

use std::time::Duration;

use crate::command::must;
use crate::files::Corpus;
use crate::mfs::Mount;

/// One chunk.
const CHUNK: usize = 64 << 20;
/// One block.
const BLOCK: usize = 65_536;
/// Where the corpus lies in the mount.
pub const FOLDER: &str = "shapes";

/// Writes the files into `shapes/` of the mount; about 190 MiB on the servers with goal 1.
pub fn write_every_shape(mount: &Mount) -> Corpus {
    let mut corpus = Corpus::new(&mount.path().join(FOLDER), 1_000);
    sizes(&mut corpus);
    overwritten(&mut corpus);
    sparse_and_truncated(&mut corpus);
    snapshots(mount, &mut corpus);
    direct_and_mapped(mount, &mut corpus);
    corpus
}

fn sizes(corpus: &mut Corpus) {
    for len in [
        0,
        1,
        511,
        4095,
        4096,
        4097,
        BLOCK - 1,
        BLOCK,
        BLOCK + 1,
        1_000_003,
    ] {
        corpus.create(&format!("size-{len}"), len, 1 << 20);
    }
    for n in 0..40 {
        corpus.create(&format!("small-{n}"), 100 + n * 731, 4096);
    }
    corpus.create("pieces", 3_000_000, 777);
    corpus.create("two-chunks", CHUNK + 5 * BLOCK + 17, 1 << 20);
    corpus.create("removed", 2_000_000, 1 << 20);
    corpus.remove("removed");
}

fn overwritten(corpus: &mut Corpus) {
    // Inside a granule, over a granule's, a block's and a chunk's edge, whole blocks, everything.
    for (at, len) in [
        (10, 1),
        (4_090, 12),
        (BLOCK - 3, 7),
        (2 * BLOCK, BLOCK),
        (3 * BLOCK - 100, 2 * BLOCK + 200),
        (CHUNK - 1, 2),
        (CHUNK - 300_000, 600_000),
        (9_999_999, 1_234_567),
    ] {
        corpus.write_at("two-chunks", at, len);
    }
    for at in (0..200_000).step_by(6_007) {
        corpus.write_at("size-1000003", at, 6);
    }
    corpus.create("rewritten", 5 * BLOCK, BLOCK);
    corpus.write_at("rewritten", 0, 5 * BLOCK);
}

fn sparse_and_truncated(corpus: &mut Corpus) {
    corpus.write_at("sparse", 10_000_000, 12_345);
    corpus.write_at("sparse", 5, 5);
    corpus.write_at("sparse-chunk", CHUNK + 70_000, 4_096);
    corpus.create("cut", 3 * BLOCK + 500, BLOCK);
    corpus.truncate("cut", BLOCK + 1_000);
    // What lay behind the cut must not come back.
    corpus.truncate("cut", 4 * BLOCK);
    corpus.create("cut-to-nothing", 300_000, BLOCK);
    corpus.truncate("cut-to-nothing", 0);
    corpus.write_at("cut-to-nothing", 100_000, 50);
    corpus.truncate("only-extended", 777_777);
}

fn snapshots(mount: &Mount, corpus: &mut Corpus) {
    let snapshot = |corpus: &mut Corpus, from: &str, to: &str| {
        mount.snapshot(&format!("{FOLDER}/{from}"), &format!("{FOLDER}/{to}"));
        corpus.copied(from, to);
    };
    corpus.create("original", 40 * BLOCK, 1 << 20);
    for name in ["snap-kept", "snap-written", "snap-cut", "snap-of-written"] {
        snapshot(corpus, "original", name);
    }
    corpus.write_at("snap-written", 1_000_001, 100); // duplicate, then a write
    corpus.truncate("snap-cut", 7 * BLOCK + 9); // duptrunc
    corpus.write_at("original", 2_000_000, BLOCK); // the other side of the share
    corpus.write_at("snap-of-written", 0, 40 * BLOCK);
    snapshot(corpus, "snap-written", "snap-of-snap");
    corpus.remove("snap-of-written");
}

fn direct_and_mapped(mount: &Mount, corpus: &mut Corpus) {
    corpus.create("direct", 40 * 4096, 40 * 4096);
    corpus.write_direct("direct", 3, 20);
    corpus.write_direct("direct", 39, 4);
    // A mapped write needs `unsafe`; fio does it for us, with a pattern that is known.
    let len = 2 << 20;
    must(mount.command("fio").args([
        "--name=mapped",
        "--ioengine=mmap",
        "--rw=randwrite",
        "--bs=4k",
        &format!("--size={len}"),
        &format!("--filename={FOLDER}/mapped"),
        "--buffer_pattern=0xa1b2c3d4e5",
        "--fallocate=none",
        "--end_fsync=1",
    ]));
    // The pattern begins anew in each 4 KiB buffer.
    let granule: Vec<u8> = [0xa1, 0xb2, 0xc3, 0xd4, 0xe5]
        .into_iter()
        .cycle()
        .take(4096)
        .collect();
    corpus.written("mapped", granule.repeat(len / 4096));
}

/// Waits until every chunk of `name`, a file or a folder of files, has copies on exactly the servers `addresses`, with equal,
/// known checksums. The master looks at each chunk once a minute, and its second look may decide.
pub fn wait_equal_copies(mount: &Mount, name: &str, addresses: &[std::net::Ipv4Addr]) {
    let mut last = Vec::new();
    let held = crate::clock::try_wait(Duration::from_secs(180), || {
        last = mount.copies(name);
        let equal = last.iter().all(|chunk| {
            let first = chunk
                .copies
                .first()
                .map(|(_, digest)| digest.as_str())
                .unwrap_or_default();
            !first.is_empty()
                && chunk.copies.len() == addresses.len()
                && chunk.copies.iter().all(|(_, digest)| digest == first)
                && addresses.iter().all(|a| {
                    chunk
                        .copies
                        .iter()
                        .any(|(at, _)| *at == format!("{a}:9422"))
                })
        });
        (equal && !last.is_empty()).then_some(())
    });
    assert!(
        held.is_some(),
        "{name} has no equal copies on {addresses:?}: {last:#?}"
    );
}
