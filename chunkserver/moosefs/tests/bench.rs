//! The load generator against servers that are none, under a virtual clock.
#![allow(clippy::unwrap_used)] // helpers of tests, too

mod support;

use blockdev::{LocalFuture, Pool, Rt};
use moosefs::bench::{self, BenchConfig, BenchError, BenchResult, Mode};
use moosefs::proto::master::NOP;
use moosefs::serve::Connector;
use moosefs::wire::Transport;
use std::cell::Cell;
use std::io;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::time::Duration;
use support::{address, World, ID, VERSION};
use tokio::io::AsyncWriteExt;

/// Takes every connection, says what it is told to at once and then every second, and never hangs up.
struct Odd {
    rt: Rt,
    first: &'static [u8],
    then: &'static [u8],
    connections: Cell<u32>,
}

impl Connector for Odd {
    fn connect(&self, _: SocketAddrV4) -> LocalFuture<io::Result<Box<dyn Transport>>> {
        self.connections.set(self.connections.get() + 1);
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (rt, first, then) = (self.rt.clone(), self.first, self.then);
        self.rt.spawn(async move {
            let mut say = first;
            while far.write_all(say).await.is_ok() {
                rt.sleep(Duration::from_secs(1)).await;
                say = then;
            }
        });
        Box::pin(std::future::ready(Ok(Box::new(near) as Box<dyn Transport>)))
    }
}

/// What a run of 20 s comes to, after how long, and over how many connections.
fn run(
    mode: Mode,
    first: &'static [u8],
    then: &'static [u8],
) -> (Result<BenchResult, BenchError>, Duration, u32) {
    let world = World::new();
    let rt = world.rt.clone();
    let odd = Rc::new(Odd {
        rt: rt.clone(),
        first,
        then,
        connections: Cell::new(0),
    });
    let config = BenchConfig {
        server: address(1),
        chunks: vec![(ID, VERSION)],
        mode,
        block_bytes: 4096,
        iodepth: 2,
        sessions: 1,
        runtime: Some(Duration::from_secs(20)),
        size_bytes: None,
        offset_bytes: 0,
        span_bytes: None,
        seed: 1,
    };
    let began = rt.now();
    let result = world.run(bench::run(
        config,
        rt.clone(),
        Pool::new(16 << 20),
        odd.clone(),
        None,
    ));
    (result, rt.now().since(began), odd.connections.get())
}

#[test]
fn a_server_that_says_nothing_ends_it_after_5_s() {
    for mode in [Mode::Read, Mode::Write, Mode::Verify] {
        let (result, took, _) = run(mode, b"", b"");
        let error = result.unwrap_err();
        assert!(matches!(error, BenchError::Silent { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            "10.0.0.1:9422: no answer within 5 s",
            "{mode}"
        );
        assert_eq!(took, bench::ANSWER, "{mode}");
    }
}

#[test]
fn a_server_that_only_keeps_the_connection_alive_ends_it_after_a_minute() {
    let (result, took, _) = run(Mode::Read, &NOP, &NOP);
    let error = result.unwrap_err().to_string();
    assert_eq!(error, "10.0.0.1:9422: no answer within 60 s");
    assert_eq!(took, Duration::from_secs(60));
}

#[test]
fn garbage_ends_it_at_once() {
    for mode in [Mode::Read, Mode::Write] {
        let (result, took, connections) = run(mode, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"");
        let error = result.unwrap_err();
        assert!(matches!(error, BenchError::Broken { .. }), "{error:?}");
        assert!(error
            .to_string()
            .starts_with("10.0.0.1:9422: not a chunkserver"));
        assert_eq!((took, connections), (Duration::ZERO, 2), "{mode}");
    }
}
