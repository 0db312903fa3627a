//! The master link over real sockets on 127.0.0.1, against a played master.
#![allow(clippy::unwrap_used)] // helpers of tests, too

mod support;

use blockdev::driver::run_shard;
use blockdev::Rt;
use chunk_api::{ChunkId, ChunkVersion, Report};
use moosefs::bench::{self, BenchConfig, Mode};
use moosefs::master::{Identity, MasterState};
use moosefs::net::TcpConnector;
use moosefs::player::{Player, Registered, Script};
use moosefs::proto::master::{Ack, Command, Register, ToMaster};
use moosefs::proto::{kind, status, Version};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;
use support::node::{Node, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const ANY_PORT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

fn test(body: impl Future<Output = ()>) {
    test_with(|_| body);
}

fn test_with<F: Future<Output = ()>>(body: impl FnOnce(Rt) -> F) {
    let limit = Duration::from_secs(60);
    let ended = run_shard(|rt| tokio::time::timeout(limit, body(rt)));
    ended.unwrap().expect("the test hangs");
}

async fn player(script: Script) -> (Player, SocketAddr) {
    let player = Player::listen(ANY_PORT.into(), script).await.unwrap();
    let address = player.address().unwrap();
    (player, address)
}

async fn registered(player: &Player, node: &Node) -> Registered {
    let (server, ()) = tokio::join!(player.accept(), node.until(MasterState::Registered));
    server.unwrap()
}

fn id(n: u64) -> ChunkId {
    ChunkId(n)
}

const V: fn(u32) -> ChunkVersion = ChunkVersion;

#[test]
fn registration_orders_reports_and_leave() {
    test(async {
        let (player, address) = player(Script::default()).await;
        let node = Node::start(Setup {
            held: 25_000,
            ..Setup::new(&[address], ANY_PORT)
        });
        let mut server = registered(&player, &node).await;
        assert_eq!(server.chunks().len(), 25_000);
        assert_eq!(server.claimed(), moosefs::proto::CLAIMED_VERSION);
        assert_eq!(server.data_port(), node.listen);
        let told = node.handle.status();
        assert_eq!((told.csid, told.metaid), (1, Script::default().metaid));
        assert_eq!(told.version, Some(Version::new(3, 0, 117)));

        let new = id(30_000);
        let orders = [
            (
                Command::Create {
                    id: new,
                    version: V(1),
                },
                status::OK,
            ),
            (
                Command::Create {
                    id: new,
                    version: V(1),
                },
                status::EXISTS,
            ),
            (
                Command::SetVersion {
                    id: new,
                    new: V(2),
                    old: V(1),
                },
                status::OK,
            ),
            (
                Command::SetVersion {
                    id: new,
                    new: V(3),
                    old: V(1),
                },
                status::WRONG_VERSION,
            ),
            (
                Command::Truncate {
                    id: new,
                    length: 70_000,
                    new: V(3),
                    old: V(2),
                },
                status::OK,
            ),
            (
                Command::Truncate {
                    id: new,
                    length: u32::MAX,
                    new: V(4),
                    old: V(3),
                },
                24,
            ),
            (
                Command::Duplicate {
                    new_id: id(30_001),
                    new_version: V(1),
                    old_id: new,
                    old_version: V(3),
                    length: Some(10),
                },
                status::OK,
            ),
            (
                Command::Delete {
                    id: new,
                    version: V(1),
                },
                status::WRONG_VERSION,
            ),
            (
                Command::Delete {
                    id: new,
                    version: V(0),
                },
                status::OK,
            ),
            (
                Command::Delete {
                    id: new,
                    version: V(0),
                },
                status::NO_CHUNK,
            ),
            (
                Command::ErasureCode {
                    kind: 156,
                    id: new,
                    version: V(1),
                },
                status::NOT_DONE,
            ),
            (
                Command::Replicate {
                    id: new,
                    version: V(1),
                    source: node.listen,
                },
                status::NO_CHUNK,
            ),
        ];
        for (order, expected) in orders {
            assert_eq!(server.order(order).await.unwrap(), expected, "{order:?}");
        }
        node.report(Report::Damaged(id(7)));
        loop {
            match server.next_news().await.unwrap() {
                ToMaster::Ids(kind::CHUNK_DAMAGED, ids) => break assert_eq!(ids, [id(7)]),
                ToMaster::Load(..) | ToMaster::Space(_) | ToMaster::Labels(1) => {}
                other => panic!("{other:?}"),
            }
        }
        let mut config = node.config.clone();
        config.link.labels = 6;
        node.handle.reconfigure(config).await;
        while server.labels() != 6 {
            let packet = server.receive().await.unwrap();
            if let ToMaster::Labels(mask) = packet {
                assert_eq!(mask, 6);
                break;
            }
        }
        let leaving = async {
            loop {
                match server.next_news().await.unwrap() {
                    ToMaster::Register(Register::Leave) => break,
                    _ => continue,
                }
            }
        };
        tokio::join!(leaving, node.handle.leave());
    });
}

#[test]
fn more_orders_than_fit_are_back_pressure() {
    test(async {
        let (player, address) = player(Script::default()).await;
        let node = Node::start(Setup::new(&[address], ANY_PORT));
        let mut server = registered(&player, &node).await;
        node.on_shard(|chunks| chunks.set_delay(Duration::from_millis(20)));
        const ORDERS: u64 = 3000;
        for n in 1..=ORDERS {
            let order = Command::Create {
                id: id(n),
                version: V(1),
            };
            server.send(&order.encode()).await.unwrap();
        }
        let mut done = 0;
        while done < ORDERS {
            if let ToMaster::Answer { status, .. } = server.next_news().await.unwrap() {
                assert_eq!(status, status::OK);
                done += 1;
            }
        }
    });
}

#[test]
fn a_password_is_asked_and_given() {
    test(async {
        let script = Script {
            auth_code: Some(b"secret".to_vec()),
            ..Script::default()
        };
        let (player, address) = player(script).await;
        let mut setup = Setup::new(&[address], ANY_PORT);
        setup.auth_code = Some("secret".into());
        let node = Node::start(setup);
        let _server = registered(&player, &node).await;
    });
}

#[test]
fn a_lost_master_is_found_again_and_answers_of_before_are_dropped() {
    test(async {
        let (player, address) = player(Script::default()).await;
        let node = Node::start(Setup {
            held: 3,
            ..Setup::new(&[address], ANY_PORT)
        });
        let mut server = registered(&player, &node).await;
        node.on_shard(|chunks| chunks.set_delay(Duration::from_millis(300)));
        let order = Command::SetVersion {
            id: id(1),
            new: V(2),
            old: V(1),
        };
        server.send(&order.encode()).await.unwrap();
        // Until the order has reached storage.
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(server);
        let mut server = player.accept().await.unwrap();
        // The list waited for the order to be carried out.
        assert_eq!(server.chunks()[0].version, V(2));
        assert_eq!(
            server
                .order(Command::Delete {
                    id: id(9),
                    version: V(0)
                })
                .await
                .unwrap(),
            13
        );
        node.until(MasterState::Registered).await;
        let events = node.events.lock().unwrap().clone();
        let names: Vec<_> = events.iter().map(|event| event.name()).collect();
        assert_eq!(
            names,
            ["master_connected", "master_lost", "master_connected"]
        );
    });
}

#[test]
fn another_file_system_is_refused_and_the_right_one_found() {
    test(async {
        let (wrong, wrong_address) = player(Script {
            metaid: 2,
            ..Script::default()
        })
        .await;
        let mut setup = Setup::new(&[wrong_address], ANY_PORT);
        setup.identity = Identity { csid: 5, metaid: 1 };
        setup.held = 10;
        let node = Node::start(setup);
        tokio::select! {
            end = wrong.accept() => panic!("registered with a stranger: {end:?}"),
            () = node.until(MasterState::Refused) => {}
        }
        let told = node.handle.status();
        assert_eq!((told.csid, told.metaid), (5, 1));
        assert!(told.last_error.unwrap().contains("metaid"));
        let (right, address) = player(Script {
            metaid: 1,
            ..Script::default()
        })
        .await;
        let mut config = node.config.clone();
        config.masters = vec![(address.ip().to_string(), address.port())];
        node.handle.reconfigure(config).await;
        let server = registered(&right, &node).await;
        assert_eq!(server.chunks().len(), 10);
    });
}

/// Answers each BEGIN with one ACK and then holds the connection.
async fn answer_begin(listener: TcpListener, ack: Ack) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut begin = [0; 63];
        stream.read_exact(&mut begin).await.unwrap();
        stream.write_all(&ack.encode()).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
}

#[test]
fn a_redirect_is_followed_and_a_wait_is_waited_for() {
    test(async {
        let leader = Ipv4Addr::new(127, 0, 0, 2);
        let (player, address) = loop {
            let address = SocketAddr::from((leader, 0));
            let player = Player::listen(address, Script::default()).await.unwrap();
            let address = player.address().unwrap();
            let follower = SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
            // The leader's port, at another address.
            if let Ok(listener) = TcpListener::bind(follower).await {
                tokio::task::spawn_local(answer_begin(listener, Ack::Redirect(leader)));
                break (player, follower);
            }
        };
        let node = Node::start(Setup::new(&[address], ANY_PORT));
        let _server = registered(&player, &node).await;
        assert_eq!(node.handle.status().address.unwrap().ip(), leader);

        let listener = TcpListener::bind(SocketAddr::from(ANY_PORT)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let version = Version::new(3, 0, 117);
        let wait = Ack::Wait {
            version,
            timeout_s: 10,
            metaid: None,
        };
        tokio::task::spawn_local(answer_begin(listener, wait));
        drop(node);
        let node = Node::start(Setup::new(&[address], ANY_PORT));
        node.until(MasterState::Waiting).await;
    });
}

#[test]
fn dead_addresses_do_not_hide_the_live_one() {
    test(async {
        let (player, address) = player(Script::default()).await;
        let dead = |n| SocketAddr::from(([127, 0, 0, n], address.port()));
        let node = Node::start(Setup::new(&[dead(9), dead(8), address], ANY_PORT));
        let _server = registered(&player, &node).await;
    });
}

#[test]
fn the_load_generator_in_every_mode() {
    test_with(|rt| async move {
        let (player, address) = player(Script::default()).await;
        let node = Node::start(Setup {
            held: 2,
            ..Setup::new(&[address], ANY_PORT)
        });
        let mut server = registered(&player, &node).await;
        let chunks = bench::create_chunks(&mut server, 2).await.unwrap();
        assert_eq!(chunks[0].0, id(3));
        let connector = Rc::new(TcpConnector);
        let modes = [
            Mode::Write,
            Mode::Read,
            Mode::RandWrite,
            Mode::RandRead,
            Mode::RandRw,
            Mode::Verify,
        ];
        for mode in modes {
            for block_bytes in [4096, 256 << 10] {
                let config = BenchConfig {
                    server: server.data_port(),
                    chunks: chunks.clone(),
                    mode,
                    block_bytes,
                    iodepth: 4,
                    sessions: 1,
                    runtime: None,
                    size_bytes: Some(u64::from(block_bytes) * 64),
                    offset_bytes: 1 << 20,
                    span_bytes: Some(16 << 20),
                    seed: 7,
                };
                let pool = blockdev::Pool::new(64 << 20);
                let traced = Rc::new(std::cell::Cell::new(0u64));
                let count = traced.clone();
                let trace = Box::new(move |_| count.set(count.get() + 1));
                let result = bench::run(config, rt.clone(), pool, connector.clone(), Some(trace));
                let result = result.await.unwrap();
                assert!(result.ios >= 64 && result.errors == 0, "{result:?}");
                assert_eq!((result.verify_errors, traced.get()), (0, result.ios));
                assert!(result.lat_us.max > 0 && result.lat_us.max >= result.lat_us.p99);
            }
        }
        for (chunk, version) in chunks {
            server.delete(chunk, version).await.unwrap();
        }
    });
}
