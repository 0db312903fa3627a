//! The control thread as its users meet it: admin socket and HTTP, with a data plane made of one thread that
//! answers by rote.

#![allow(clippy::unwrap_used)] // a panic is how a test fails, in its helpers too

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chunkserver::admin::client::Client;
use chunkserver::admin::server::CONNECTIONS_MAX as CONNECTIONS;
use chunkserver::admin::{Answer, Ids, LegName, Request, VolumeName};
use chunkserver::config::{self, Environment};
use chunkserver::control::{Command, Metrics, ShardPort, Snapshot};
use chunkserver::daemon::Daemon;
use chunkserver::events::EventKind;
use chunkserver::exit::{ExitStatus, Failure};
use chunkserver::http::CONNECTIONS_MAX;
use chunkserver::model::{Arrays, MasterState, NodeState, Status, Volume, VolumeState};

/// A daemon with a data plane that says yes.
struct Node {
    dir: PathBuf,
    daemon: Option<Daemon>,
    shard: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    fn start(name: &str) -> Node {
        let dir = std::env::temp_dir().join(format!("antler-daemon-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let text = "[admin]\nsocket = \"run/admin.sock\"\nhttp = \"127.0.0.1:0\"\n";
        let loaded = config::parse(
            "antler.toml",
            text,
            &dir.join("antler.toml"),
            &Environment::here(),
        );
        let config = loaded.config.expect("a valid configuration");
        let (daemon, port) = Daemon::start(&config).unwrap();
        let shard = std::thread::spawn(move || answer_by_rote(port));
        Node {
            dir,
            daemon: Some(daemon),
            shard: Some(shard),
        }
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("run/admin.sock")
    }

    fn http(&self) -> SocketAddr {
        self.daemon().http().unwrap()
    }

    /// Waits for what the shard publishes to be seen.
    fn until(&self, seen: impl Fn(&Status) -> bool) -> Status {
        for _ in 0..2000 {
            let status = self.daemon().plane().status();
            if seen(&status) {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("never seen: {:?}", self.daemon().plane().status());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(daemon) = &self.daemon {
            drop(daemon.plane().send(Command::Stop));
        }
        if let Some(shard) = self.shard.take() {
            let _ = shard.join();
        }
        drop(self.daemon.take());
        assert!(!self.socket().exists(), "the socket is removed at the end");
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn answer_by_rote(mut port: ShardPort) {
    let mut status = Status::starting("0.1.0", std::process::id(), "127.0.0.1:9422", "m:9420");
    let publish = |port: &ShardPort, status: &Status| {
        port.publish(Snapshot {
            status: status.clone(),
            path_events: Vec::new(),
            metrics: Metrics::default(),
        });
    };
    publish(&port, &status);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        while let Some(call) = port.next_call().await {
            match &call.command {
                Command::Stop => break,
                Command::Reload(_) => {}
                Command::Admin(Request::LegFail(leg)) if leg.device == "sto1" => {
                    port.events()
                        .record(EventKind::LegFailed, "vol1 sto1", "by command");
                    call.answer(Ok(Answer::done("leg sto1 of vol1 is out")));
                }
                Command::Admin(Request::ScrubStart(VolumeName { volume })) if volume == "vol1" => {
                    status.state = NodeState::Serving;
                    status.master.state = MasterState::Registered;
                    status.volumes = vec![volume_named("vol1")];
                    publish(&port, &status);
                    call.answer(Ok(Answer::done("started")));
                }
                Command::Admin(_) => call.answer(Err(Failure::problem("no such thing"))),
            }
        }
    });
}

fn volume_named(name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        state: VolumeState::Active,
        size_bytes: 1 << 30,
        used_bytes: 0,
        free_bytes: 1 << 30,
        chunks: 0,
        damaged_chunks: 0,
        healed_blocks: 0,
        quarantined_chunks: 0,
        durability: "flush".to_owned(),
        unflushed_bytes: 0,
        unflushed_ms: 0,
        open_ms: Some(1),
        note: None,
    }
}

fn leg_fail(device: &str) -> Request {
    Request::LegFail(LegName {
        volume: "vol1".to_owned(),
        device: device.to_owned(),
    })
}

#[test]
fn commands_go_there_and_back() {
    let node = Node::start("round-trip");
    let mode = std::fs::metadata(node.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut client = Client::connect(&node.socket()).unwrap();
    let answer: Answer = client.ask(&leg_fail("sto1")).unwrap();
    assert_eq!(answer, Answer::done("leg sto1 of vol1 is out"));
    // The same connection serves again; the failure is the data plane's own.
    let failure = client.ask::<Answer>(&leg_fail("sto9")).unwrap_err();
    assert_eq!(failure, Failure::problem("no such thing"));
    let status: Status = client.ask(&Request::Status {}).unwrap();
    let last = status.events.last().unwrap();
    assert_eq!(
        (last.event, last.object.as_str()),
        (EventKind::LegFailed, "vol1 sto1")
    );
    let arrays: Arrays = client.ask(&Request::Arrays {}).unwrap();
    assert!(arrays.arrays.is_empty());
}

#[test]
fn garbage_is_answered_and_ends_nothing() {
    let node = Node::start("garbage");
    for line in [
        &b"hello\n"[..],
        b"{\"cmd\":\"reboot\"}\n",
        b"\xff\xfe\n",
        b"\n",
        b"[]\n",
    ] {
        let mut stream = UnixStream::connect(node.socket()).unwrap();
        stream.write_all(line).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let reply: serde_json::Value = serde_json::from_str(&reply).unwrap();
        assert_eq!(reply["error"]["exit"], 2, "{reply}");
    }
    let mut stream = UnixStream::connect(node.socket()).unwrap();
    // The server may hang up before it has read everything.
    let _ = stream.write_all(&vec![b'x'; 1 << 20]);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    assert!(Client::connect(&node.socket())
        .unwrap()
        .ask::<Status>(&Request::Status {})
        .is_ok());
}

#[test]
fn silent_connections_keep_nobody_out() {
    let node = Node::start("idle");
    let connect = || UnixStream::connect(node.socket()).unwrap();
    let mut silent: Vec<UnixStream> = (0..10 * CONNECTIONS).map(|_| connect()).collect();
    let status: Status = Client::connect(&node.socket())
        .unwrap()
        .ask(&Request::Status {})
        .unwrap();
    assert_eq!(status.pid, std::process::id());
    // The oldest were sent away for it, by an end of stream and nothing else.
    let mut nothing = Vec::new();
    silent[0].read_to_end(&mut nothing).unwrap();
    assert_eq!(nothing, b"");
}

#[test]
fn watching_ends_with_its_reader_and_is_plain_text_in_a_pipe() {
    let node = Node::start("watch");
    let config = node.dir.join("antler.toml");
    std::fs::write(&config, "[admin]\nsocket = \"run/admin.sock\"\n").unwrap();
    let mut watching = std::process::Command::new(env!("CARGO_BIN_EXE_antler"))
        .arg("-c")
        .arg(&config)
        .args(["status", "--watch"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 64];
    let mut out = watching.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    assert!(
        !first.contains(&0x1b),
        "{}",
        String::from_utf8_lossy(&first)
    );
    drop(out);
    assert_eq!(watching.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_daemon_does_not_take_the_socket() {
    let node = Node::start("second");
    let text = format!(
        "[admin]\nsocket = \"{}\"\nhttp = \"\"\n",
        node.socket().display()
    );
    let loaded = config::parse(
        "antler.toml",
        &text,
        &node.dir.join("x.toml"),
        &Environment::here(),
    );
    let failure = Daemon::start(&loaded.config.unwrap()).unwrap_err();
    assert!(failure.text.contains("another `antler serve`"), "{failure}");
    assert!(Client::connect(&node.socket()).is_ok());
}

/// In the child, the socket to use; see the next test.
const SOCKET_VARIABLE: &str = "ANTLER_TEST_SOCKET";

/// Others may look, if they can open the socket, but not change. The test runs itself as user `nobody`.
#[test]
fn another_user_may_look_and_not_change() {
    if let Some(socket) = std::env::var_os(SOCKET_VARIABLE) {
        let mut client = Client::connect(Path::new(&socket)).unwrap();
        client.ask::<Status>(&Request::Status {}).unwrap();
        for request in [
            leg_fail("sto1"),
            Request::QuarantinePurge(Ids {
                ids: vec![],
                all: true,
            }),
            Request::ScrubStart(VolumeName {
                volume: "vol1".to_owned(),
            }),
        ] {
            let failure = client.ask::<Answer>(&request).unwrap_err();
            assert_eq!(failure.exit, ExitStatus::Problem);
            assert!(
                failure.text.contains("may look but not change"),
                "{failure}"
            );
        }
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: another user cannot be played");
        return;
    }
    let node = Node::start("credentials");
    for (path, mode) in [
        (node.dir.clone(), 0o755),
        (node.dir.join("run"), 0o755),
        (node.socket(), 0o666),
    ] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    // The magic link needs no permission on the directories above the binary.
    let out = std::process::Command::new("/proc/self/exe")
        .args([
            "--exact",
            "another_user_may_look_and_not_change",
            "--nocapture",
        ])
        .env(SOCKET_VARIABLE, node.socket())
        .current_dir("/")
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("1 passed"), "{out:?}");
    assert!(node.daemon().plane().status().events.is_empty());
}

/// Sends bytes, returns everything that comes back until the peer closes.
fn talk(to: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

fn get(to: SocketAddr, path: &str) -> String {
    talk(
        to,
        &format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"),
    )
}

#[test]
fn http_pages() {
    let node = Node::start("pages");
    let to = node.http();
    assert!(get(to, "/healthz").starts_with("HTTP/1.1 503 "));
    assert!(get(to, "/nothing").starts_with("HTTP/1.1 404 "));
    let mut client = Client::connect(&node.socket()).unwrap();
    let scrub = Request::ScrubStart(VolumeName {
        volume: "vol1".to_owned(),
    });
    client.ask::<Answer>(&scrub).unwrap();
    node.until(|s| s.state == NodeState::Serving);
    assert!(get(to, "/healthz").starts_with("HTTP/1.1 200 "));
    let page = get(to, "/");
    assert!(
        page.contains("text/html") && page.contains("content-security-policy"),
        "{page}"
    );
    let metrics = get(to, "/metrics");
    assert!(
        metrics.contains("\nantler_master_connected 1\n"),
        "{metrics}"
    );
    let api = get(to, "/api/status");
    let (_, body) = api.split_once("\r\n\r\n").unwrap();
    let status: Status = serde_json::from_str(body).unwrap();
    assert_eq!(status.volumes[0].name, "vol1");
    let json: serde_json::Value = serde_json::from_str(body).unwrap();
    for key in [
        "version", "pid", "uptime_s", "state", "master", "listen", "volumes", "arrays", "devices",
        "clients", "events",
    ] {
        assert!(json.get(key).is_some(), "{key}");
    }
}

#[test]
fn http_refusals() {
    let node = Node::start("refusals");
    let to = node.http();
    for (request, status) in [
        (
            format!("POST / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"),
            "405",
        ),
        (
            format!("HEAD / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"),
            "405",
        ),
        (
            format!("DELETE /api/status HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"),
            "405",
        ),
        (
            "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".to_owned(),
            "403",
        ),
        (
            "GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            "403",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: {to}\r\nHost: {to}\r\nConnection: close\r\n\r\n"),
            "403",
        ),
        (
            format!("GET http://evil.example/ HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"),
            "403",
        ),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), "400"),
        ("complete nonsense\r\n\r\n".to_owned(), "400"),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: {to}\r\nX: {}\r\n\r\n",
                "x".repeat(100_000)
            ),
            "431",
        ),
    ] {
        let reply = talk(to, &request);
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status} ")),
            "{status} for {request:.80?}: {reply}"
        );
    }
    assert!(get(to, "/").starts_with("HTTP/1.1 200 "));
}

#[test]
fn the_33rd_connection_is_turned_away() {
    let node = Node::start("many");
    let to = node.http();
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(to).unwrap();
        // Answered, and so counted; it stays open.
        stream
            .write_all(format!("GET /nothing HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes())
            .unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 404");
        open.push(stream);
    }
    assert!(talk(to, "").starts_with("HTTP/1.1 503 "));
    drop(open);
    let served = (0..2000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        get(to, "/").starts_with("HTTP/1.1 200 ")
    });
    assert!(served, "places are free again");
}
