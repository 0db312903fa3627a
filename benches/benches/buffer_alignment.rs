//! Does it matter where in a page a buffer begins? Payload is received at a page's first byte
//! because of this; `Vec`s of 128 KiB and more begin at page + 16.
//!
//! And does the pool still give pages? The last line is a verdict, and the bench fails, also as a
//! smoke test, when some buffer of the pool does not begin at a page's first byte. It looks at
//! addresses: what buffers say of themselves holds only as long as the pool's memory is aligned.

use benches::Bench;
use blockdev::buf::RUN_BYTES_MAX;
use blockdev::{BufMut, Pool, PAGE_BYTES};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;

const BYTES: usize = 64 << 10;
/// Buffers held at once while their places are looked at, of each size: more than the pool's limit.
const HELD: usize = 200;

fn buffer(pool: &Pool, gap: usize) -> BufMut {
    let mut buf = pool.alloc_now(RUN_BYTES_MAX);
    buf.set_len(BYTES);
    buf.skip(gap);
    buf.fill(1);
    buf
}

/// Where in a page memory begins.
fn page_offset(memory: &[u8]) -> usize {
    memory.as_ptr() as usize % PAGE_BYTES
}

/// The pool's buffers that do not begin at a page, as `(bytes, place in the page)`.
fn misplaced(pool: &Pool) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut look = |bytes: usize, memory: &[u8]| {
        let offset = page_offset(memory);
        if offset != 0 {
            found.push((bytes, offset));
        }
    };
    for bytes in [1, 512, PAGE_BYTES, 3 * PAGE_BYTES, BYTES, RUN_BYTES_MAX] {
        let held: Vec<BufMut> = (0..HELD).map(|_| pool.alloc_now(bytes)).collect();
        held.iter().for_each(|buf| look(bytes, buf));
        // Half of them come back, so that the next sizes are cut from used memory.
        for buf in held.into_iter().step_by(2) {
            look(bytes, &buf.freeze());
        }
    }
    let copied = pool.copy_now(&[7; (1 << 20) + 1]);
    copied.segments().for_each(|s| look(copied.len(), s));
    found
}

fn main() -> ExitCode {
    let pool = Pool::new(16 << 20);
    let from = buffer(&pool, 0);

    let mut copy = Bench::new("memcpy of 64 KiB from a page start, by where it is put");
    for gap in [0, 16, 64, 2048] {
        let (from, mut to) = (&from, buffer(&pool, gap));
        copy = copy.candidate(format!("to page + {gap}"), 2000, move |n| {
            for _ in 0..n {
                to.copy_from_slice(black_box(from));
                black_box(&to);
            }
        });
    }
    copy.run();

    let mut receive =
        Bench::new("64 KiB through loopback TCP (send + receive), by where it is put");
    for gap in [0, 16, 64, 2048] {
        let (mut near, mut far) = connection();
        let (from, mut to) = (&from, buffer(&pool, gap));
        receive = receive.candidate(format!("received at page + {gap}"), 200, move |n| {
            for _ in 0..n {
                near.write_all(from).expect("sent");
                far.read_exact(&mut to).expect("received");
            }
        });
    }
    let measured = receive.run();

    let vec = vec![0u8; RUN_BYTES_MAX];
    println!(
        "\n  a Vec of 128 KiB begins at page + {}",
        page_offset(&vec)
    );
    if let [at_page, at_16, ..] = measured[..] {
        let ratio = at_16.median_ns / at_page.median_ns;
        println!("  received at page + 16: x {ratio:.2} of what it takes at a page's start");
    }
    let misplaced = misplaced(&pool);
    match misplaced.first() {
        None => println!("  VERDICT: every buffer of the pool begins at a page"),
        Some((bytes, offset)) => {
            println!(
                "  VERDICT: FAILED, {} buffers of the pool do not begin at a page; one of {bytes} \
                 bytes begins at page + {offset}",
                misplaced.len()
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Two ends of a connection whose buffers take a whole payload, so that one thread can do both.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
    let (far, _) = listener.accept().expect("accepts");
    near.set_nodelay(true).expect("a TCP socket");
    for socket in [&near, &far] {
        let socket = socket2::SockRef::from(socket);
        socket.set_send_buffer_size(1 << 20).expect("a size");
        socket.set_recv_buffer_size(1 << 20).expect("a size");
    }
    (near, far)
}
