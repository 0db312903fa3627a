//! What a hostile neighbour can write into the journal.
#![allow(clippy::unwrap_used)] // helpers of tests, too

mod support;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::World;
use tokio::io::AsyncWriteExt;

/// Where log lines go.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<u8>>>);

impl Write for Journal {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Journal {
    /// The lines since the last time.
    fn lines(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn garbage_is_one_line_a_second_and_address() {
    let journal = Journal::default();
    let writer = journal.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let world = World::new();
    let node = world.node(1);
    let garbage = |address: &str, connections: u16| {
        for port in 0..connections {
            let (mut near, far) = tokio::io::duplex(1 << 10);
            node.server.accept(far, format!("{address}:{port}"));
            world.run(async move { near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap() });
        }
        let rt = world.rt.clone();
        world.run(async move { rt.sleep(Duration::from_millis(1)).await });
    };
    garbage("10.0.0.7", 300);
    garbage("10.0.0.8", 1);
    let lines = journal.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("10.0.0.7:0") && lines[1].contains("10.0.0.8:0"));
    assert!(!lines[1].contains("more like this"), "{}", lines[1]);
    let rt = world.rt.clone();
    world.run(async move { rt.sleep(Duration::from_secs(1)).await });
    garbage("10.0.0.7", 1);
    let lines = journal.lines();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].contains("(299 more like this in between)"),
        "{}",
        lines[0]
    );
}
