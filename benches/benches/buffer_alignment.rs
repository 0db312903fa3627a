//! Does it matter where in a page a buffer begins? Payload is received at a page's first byte
//! because of this; `Vec`s of 128 KiB and more begin at page + 16.

use benches::Bench;
use blockdev::buf::RUN_BYTES_MAX;
use blockdev::{BufMut, Pool};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

const BYTES: usize = 64 << 10;

fn buffer(pool: &Pool, gap: usize) -> BufMut {
    let mut buf = pool.alloc_now(RUN_BYTES_MAX);
    buf.set_len(BYTES);
    buf.skip(gap);
    buf.fill(1);
    buf
}

fn main() {
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
    receive.run();
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
