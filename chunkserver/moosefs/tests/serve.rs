//! The data port over pipes in memory, under a virtual clock.
#![allow(clippy::unwrap_used)] // helpers of tests, too

mod support;

use blockdev::Pool;
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkId, ChunkVersion, Chunks, CHUNK_BYTES};
use moosefs::client::{Client, ClientError};
use moosefs::proto::client::{Read, ReadRequest, Write, WriteStatus};
use moosefs::proto::info::Which;
use moosefs::proto::{frame, kind, status};
use std::cell::RefCell;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::time::Duration;
use support::{address, bytes, vec_of, Host, Node, World, ID, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn request(offset: u32, size: u32) -> ReadRequest {
    ReadRequest {
        id: ID,
        version: VERSION,
        offset,
        size,
    }
}

fn status_of<T: std::fmt::Debug>(result: Result<T, ClientError>) -> u8 {
    match result {
        Err(ClientError::Status(status)) => status,
        other => panic!("{other:?}"),
    }
}

/// Writes through a chain and reads back at each server.
fn through_chain(length: u8) {
    let world = World::new();
    let nodes: Vec<Node> = (1..=length).map(|n| world.node(n)).collect();
    let chain: Vec<SocketAddrV4> = nodes.iter().skip(1).map(|node| node.address).collect();
    let mut client = world.client(&nodes[0]);
    let written = world.run(async move {
        let mut model = vec![0u8; 3 << 16];
        for round in 0..3u64 {
            let mut session = client.open_write(ID, VERSION, chain.clone()).await.unwrap();
            // Pipelined: whole blocks and unaligned fragments, answered in order.
            let pieces = [(0, 0, 65_536), (1, 100, 6), (1, 4095, 8193), (2, 65_535, 1)];
            for (i, (block, offset, size)) in pieces.into_iter().enumerate() {
                let data = bytes(round * 10 + i as u64, size);
                let at = (usize::from(block) << 16) + usize::from(offset);
                model[at..at + size].copy_from_slice(&data);
                let data = vec_of(&data);
                client.queue_write(&mut session, block, offset, &data, crc32_iovec(&data));
            }
            for expected in 1..=4 {
                assert_eq!(client.next_status(&mut session).await.unwrap(), expected);
            }
            client.finish(session).await.unwrap();
        }
        // The connection is idle again.
        let back = client.read(request(0, 3 << 16)).await.unwrap();
        assert_eq!(back.to_vec(), model);
        model
    });
    for node in &nodes {
        assert_eq!(node.chunks.finished(), 3);
        let mut client = world.client(node);
        let expected = written.clone();
        world.run(async move {
            let back = client.read(request(1, (3 << 16) - 1)).await.unwrap();
            assert_eq!(back.to_vec(), expected[1..]);
        });
        assert_eq!(node.server.stats().write_ios.get(), 12);
    }
}

#[test]
fn chains_of_one_to_four() {
    (1..=4).for_each(through_chain);
}

#[test]
fn reads_of_every_shape() {
    let world = World::new();
    let node = world.node(1);
    let mut client = world.client(&node);
    world.run(async move {
        let mut session = client.open_write(ID, VERSION, vec![]).await.unwrap();
        let data = bytes(1, 65_536);
        client
            .write(&mut session, 5, 0, &vec_of(&data))
            .await
            .unwrap();
        client.finish(session).await.unwrap();
        assert_eq!(client.read(request(0, 0)).await.unwrap().len(), 0);
        let whole = client.read(request(0, CHUNK_BYTES)).await.unwrap();
        assert_eq!(whole.slice(5 << 16..6 << 16).to_vec(), data);
        assert!(whole.slice(..5 << 16).is_zero() && whole.slice(6 << 16..).is_zero());
        let part = client.read(request((5 << 16) + 77, 1)).await.unwrap();
        assert_eq!(part.to_vec(), data[77..78]);
        // The old form, without the protocol byte.
        let old = Read {
            nops: false,
            request: request(5 << 16, 65_536),
        };
        assert_eq!(client.read_as(old).await.unwrap().to_vec(), data);
        let any = ReadRequest {
            version: ChunkVersion(0),
            ..request(0, 1)
        };
        assert!(client.read(any).await.is_ok());
        for (bad, expected) in [
            (request(0, CHUNK_BYTES + 1), status::WRONG_SIZE),
            (request(1, CHUNK_BYTES), status::WRONG_OFFSET),
            (request(u32::MAX, 1), status::WRONG_OFFSET),
            (
                ReadRequest {
                    id: ChunkId(99),
                    ..request(0, 1)
                },
                status::NO_CHUNK,
            ),
            (
                ReadRequest {
                    version: ChunkVersion(2),
                    ..request(0, 1)
                },
                status::WRONG_VERSION,
            ),
        ] {
            // Each leaves the connection usable.
            assert_eq!(status_of(client.read(bad).await), expected);
        }
    });
    assert_eq!(node.server.stats().errors.get(), 5);
}

#[test]
fn a_damaged_block_is_told_after_the_good_data() {
    let world = World::new();
    let node = world.node(1);
    node.chunks.damage(ID, 3);
    let mut client = world.client(&node);
    world.run(async move {
        assert_eq!(
            status_of(client.read(request(0, 1 << 20)).await),
            status::CRC
        );
        assert!(client.read(request(0, 3 << 16)).await.is_ok());
    });
}

#[test]
fn nops_keep_clients_while_storage_is_slow() {
    let world = World::new();
    let nodes = [world.node(1), world.node(2)];
    nodes[1].chunks.set_delay(Duration::from_secs(20));
    let mut client = world.client(&nodes[0]);
    let chain = vec![nodes[1].address];
    world.run(async move {
        let mut session = client.open_write(ID, VERSION, chain).await.unwrap();
        client
            .write(&mut session, 0, 0, &vec_of(b"slow"))
            .await
            .unwrap();
        assert!(
            (19..=40).contains(&client.nops()),
            "{} NOPs in 20 s",
            client.nops()
        );
        client.finish(session).await.unwrap();
    });
    let mut client = world.client(&nodes[1]);
    world.run(async move {
        assert_eq!(client.read(request(0, 4)).await.unwrap().to_vec(), b"slow");
        assert!(
            (19..=40).contains(&client.nops()),
            "{} NOPs in 20 s",
            client.nops()
        );
        // Without the protocol byte nobody wants NOPs.
        let before = client.nops();
        client
            .read_as(Read {
                nops: false,
                request: request(0, 4),
            })
            .await
            .unwrap();
        assert_eq!(client.nops(), before);
    });
}

#[test]
fn an_idle_connection_is_kept_by_nops_and_closed_after_five_seconds() {
    let world = World::new();
    let node = world.node(1);
    let mut client = world.client(&node);
    let rt = world.rt.clone();
    world.run(async move {
        let begun = rt.now();
        assert!(matches!(client.next().await, Err(ClientError::Closed)));
        let lived = rt.now() - begun;
        assert!(
            lived >= Duration::from_secs(5) && lived < Duration::from_secs(6),
            "{lived:?}"
        );
        assert!(client.nops() >= 2);
    });
    assert_eq!(node.server.stats().connections.get(), 0);
}

#[test]
fn a_chain_that_cannot_be_built_stores_nothing() {
    for silent in [false, true] {
        let world = World::new();
        let node = world.node(1);
        if silent {
            world.set_host(2, Host::Silent);
        }
        let mut client = world.client(&node);
        let rt = world.rt.clone();
        world.run(async move {
            let begun = rt.now();
            let opened = client.open_write(ID, VERSION, vec![address(2)]).await;
            assert_eq!(status_of(opened), status::CANT_CONNECT);
            let took = rt.now() - begun;
            let bounds = if silent { 15..17 } else { 0..1 };
            assert!(bounds.contains(&took.as_secs()), "{took:?}");
            assert!(!silent || client.nops() >= 14, "kept by NOPs meanwhile");
        });
        assert_eq!(node.chunks.open(ID, VERSION), Ok(0));
    }
}

#[test]
fn a_next_server_that_dies_is_told() {
    let world = World::new();
    let node = world.node(1);
    let ends = Rc::new(RefCell::new(Vec::new()));
    world.set_host(2, Host::Scripted(ends.clone()));
    let mut client = world.client(&node);
    let rt = world.rt.clone();
    world.rt.spawn(async move {
        while ends.borrow().is_empty() {
            rt.sleep(Duration::from_millis(1)).await;
        }
        let mut below = ends.borrow_mut().pop().unwrap();
        let mut got = vec![0; 8 + 13];
        below.read_exact(&mut got).await.unwrap();
        assert_eq!(Write::parse(&got[8..]).unwrap().chain, []);
        let opened = WriteStatus {
            id: ID,
            write_id: 0,
            status: 0,
        };
        below
            .write_all(&frame::encode_one(kind::WRITE_STATUS, &opened))
            .await
            .unwrap();
        let mut data = vec![0; 8 + 24 + 4];
        below.read_exact(&mut data).await.unwrap();
        assert_eq!(&data[32..], b"data");
        drop(below);
    });
    world.run(async move {
        let mut session = client
            .open_write(ID, VERSION, vec![address(2)])
            .await
            .unwrap();
        let lost = client.write(&mut session, 0, 0, &vec_of(b"data")).await;
        assert_eq!(status_of(lost), status::DISCONNECTED);
        assert!(matches!(client.next().await, Err(ClientError::Closed)));
    });
}

#[test]
fn a_next_server_that_falls_silent_is_given_up_after_five_seconds() {
    let world = World::new();
    let node = world.node(1);
    let ends = Rc::new(RefCell::new(Vec::new()));
    world.set_host(2, Host::Scripted(ends.clone()));
    let mut client = world.client(&node);
    let rt = world.rt.clone();
    world.run(async move {
        let begun = rt.now();
        let opened = client.open_write(ID, VERSION, vec![address(2)]).await;
        assert_eq!(status_of(opened), status::DISCONNECTED);
        let took = rt.now() - begun;
        assert!(
            took >= Duration::from_secs(5) && took < Duration::from_secs(6),
            "{took:?}"
        );
        assert!(client.nops() >= 4);
        drop(ends);
    });
}

#[test]
fn answers_below_out_of_order_come_up_in_order() {
    let world = World::new();
    let node = world.node(1);
    let ends = Rc::new(RefCell::new(Vec::new()));
    world.set_host(2, Host::Scripted(ends.clone()));
    let mut client = world.client(&node);
    let rt = world.rt.clone();
    world.rt.spawn(async move {
        while ends.borrow().is_empty() {
            rt.sleep(Duration::from_millis(1)).await;
        }
        let mut below = ends.borrow_mut().pop().unwrap();
        let mut got = vec![0; 8 + 13 + 3 * (8 + 24 + 1)];
        below.read_exact(&mut got[..21]).await.unwrap();
        let answer = |write_id| {
            let answer = WriteStatus {
                id: ID,
                write_id,
                status: 0,
            };
            frame::encode_one(kind::WRITE_STATUS, &answer)
        };
        below.write_all(&answer(0)).await.unwrap();
        below.read_exact(&mut got[21..]).await.unwrap();
        for write_id in [3, 1, 2] {
            below.write_all(&answer(write_id)).await.unwrap();
            rt.sleep(Duration::from_millis(50)).await;
        }
        let _ = below.read(&mut got).await;
    });
    world.run(async move {
        let mut session = client
            .open_write(ID, VERSION, vec![address(2)])
            .await
            .unwrap();
        let data = vec_of(b"x");
        for block in 0..3 {
            client.queue_write(&mut session, block, 0, &data, crc32_iovec(&data));
        }
        for expected in 1..=3 {
            assert_eq!(client.next_status(&mut session).await.unwrap(), expected);
        }
    });
}

#[test]
fn a_wrong_sum_is_refused_with_its_write_id_and_nothing_is_stored() {
    let world = World::new();
    let nodes = [world.node(1), world.node(2)];
    for chain in [vec![], vec![nodes[1].address]] {
        let mut client = world.client(&nodes[0]);
        world.run(async move {
            let mut session = client.open_write(ID, VERSION, chain).await.unwrap();
            client.queue_write(&mut session, 0, 0, &vec_of(b"abc"), 1);
            let frame = client.next().await.unwrap();
            assert_eq!(
                (frame.kind, &frame.head[8..]),
                (kind::WRITE_STATUS, &[0, 0, 0, 1, 29][..])
            );
        });
    }
    assert_eq!(nodes[0].chunks.open(ID, VERSION), Ok(0));
}

#[test]
fn wrong_places_end_the_session_with_their_status() {
    let world = World::new();
    let node = world.node(1);
    let cases: [(u16, u16, usize, u8); 3] = [
        (1024, 0, 10, status::WRONG_BLOCK),
        (0, 65_535, 2, status::WRONG_OFFSET),
        (0, 0, 65_537, status::WRONG_SIZE),
    ];
    for (block, offset, size, expected) in cases {
        let mut client = world.client(&node);
        world.run(async move {
            let mut session = client.open_write(ID, VERSION, vec![]).await.unwrap();
            let data = vec_of(&vec![0; size]);
            client.queue_write(&mut session, block, offset, &data, 0);
            assert_eq!(status_of(client.next_status(&mut session).await), expected);
        });
    }
    let mut client = world.client(&node);
    world.run(async move {
        let opened = client.open_write(ChunkId(5), VERSION, vec![]).await;
        assert_eq!(status_of(opened), status::NO_CHUNK);
    });
    let mut client = world.client(&node);
    world.run(async move {
        let opened = client.open_write(ID, ChunkVersion(9), vec![]).await;
        assert_eq!(status_of(opened), status::WRONG_VERSION);
    });
}

#[test]
fn garbage_closes_the_connection_and_no_other() {
    let world = World::new();
    let node = world.node(1);
    let mut garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xFF; 64],
        frame::encode(kind::READ, |out| out.extend([0; 19])),
        frame::encode(kind::WRITE, |out| out.extend([2; 13])),
        frame::encode(kind::WRITE_DATA, |out| out.extend([0; 24])),
        frame::encode(kind::NOP, |out| out.push(1)),
        frame::encode(4711, |_| {}),
    ];
    // A data packet whose length and size differ.
    let mut lying = frame::encode(kind::WRITE_DATA, |out| out.extend([0; 34]));
    lying[8 + 16..8 + 20].copy_from_slice(&9u32.to_be_bytes());
    garbage.push(lying);
    let expected = garbage.len() as u64;
    for bytes in garbage {
        let mut client = world.client(&node);
        world.run(async move {
            client.queue_raw(&bytes);
            let end = client.next().await;
            assert!(
                matches!(end, Err(ClientError::Closed | ClientError::Wire(_))),
                "{end:?}"
            );
        });
    }
    assert_eq!(node.server.stats().malformed.get(), expected);
    let mut client = world.client(&node);
    world.run(async move { client.read(request(0, 10)).await.unwrap() });
}

#[test]
fn a_stream_cut_at_every_byte_is_harmless_and_split_at_every_byte_is_whole() {
    let world = World::new();
    let node = world.node(1);
    let data = bytes(3, 5000);
    let mut stream = Write {
        nops: true,
        id: ID,
        version: VERSION,
        chain: vec![],
    }
    .encode();
    let head = moosefs::proto::client::WriteDataHead {
        id: ID,
        write_id: 1,
        block: 0,
        offset: 4090,
        size: 5000,
        crc: crc32_iovec(&vec_of(&data)),
    };
    stream.extend(moosefs::proto::client::write_data_prefix(&head));
    stream.extend(&data);
    for at in (0..stream.len()).step_by(if cfg!(debug_assertions) { 37 } else { 1 }) {
        let (first, second) = (stream[..at].to_vec(), stream[at..].to_vec());
        let server = node.server.clone();
        let rt = world.rt.clone();
        world.run(async move {
            let (mut near, far) = tokio::io::duplex(64 << 10);
            server.accept(far, "split".into());
            near.write_all(&first).await.unwrap();
            rt.sleep(Duration::from_millis(1)).await;
            near.write_all(&second).await.unwrap();
            let mut answers = [0; 2 * 21];
            near.read_exact(&mut answers).await.unwrap();
            assert_eq!(answers[20], 0);
            assert_eq!(answers[41], 0);
            // Cut: only the first part, then the end.
            let (mut near, far) = tokio::io::duplex(64 << 10);
            server.accept(far, "cut".into());
            near.write_all(&first).await.unwrap();
            drop(near);
        });
    }
    let mut client = world.client(&node);
    world.run(async move {
        assert_eq!(
            client.read(request(4090, 5000)).await.unwrap().to_vec(),
            data
        );
    });
    assert_eq!(node.pool.used_bytes(), 0, "every page came back");
}

#[test]
fn a_slow_reader_holds_a_bounded_amount() {
    let world = World::new();
    let node = world.node(1);
    let mut writer = world.client(&node);
    world.run(async move {
        let mut session = writer.open_write(ID, VERSION, vec![]).await.unwrap();
        let data = vec_of(&bytes(1, 65_536));
        for block in 0..64 {
            writer.write(&mut session, block, 0, &data).await.unwrap();
        }
        writer.finish(session).await.unwrap();
    });
    let (near, far) = tokio::io::duplex(4096);
    node.server.accept(far, "slow".into());
    let rt = world.rt.clone();
    world.run(async move {
        let mut near = near;
        let read = Read {
            nops: true,
            request: request(0, 64 << 16),
        };
        near.write_all(&read.encode()).await.unwrap();
        rt.sleep(Duration::from_secs(1)).await;
        // Nothing was taken: it is closed after five seconds.
        rt.sleep(Duration::from_secs(6)).await;
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() <= 4096, "{} bytes", rest.len());
    });
    assert_eq!(node.server.stats().connections.get(), 0);
}

#[test]
fn an_empty_pool_is_back_pressure_and_not_an_error() {
    let world = World::new();
    // Room for two blocks while many clients write.
    let node = world.node_with_pool(1, 128 << 10);
    node.chunks.set_delay(Duration::from_millis(5));
    let clients: Vec<_> = (0..8).map(|_| world.client(&node)).collect();
    for (n, mut client) in clients.into_iter().enumerate() {
        world.rt.spawn(async move {
            let mut session = client.open_write(ID, VERSION, vec![]).await.unwrap();
            let data = vec_of(&bytes(n as u64, 65_536));
            for i in 0..16 {
                let block = (n * 16 + i) as u16;
                client.queue_write(&mut session, block, 0, &data, crc32_iovec(&data));
            }
            for expected in 1..=16 {
                assert_eq!(client.next_status(&mut session).await.unwrap(), expected);
            }
            client.finish(session).await.unwrap();
        });
    }
    let rt = world.rt.clone();
    world.run(async move { rt.sleep(Duration::from_secs(4)).await });
    assert_eq!(node.server.stats().write_ios.get(), 8 * 16);
}

#[test]
fn information_packets() {
    let world = World::new();
    let node = world.node(1);
    let mut client = world.client(&node);
    world.run(async move {
        let which = Which {
            id: ID,
            version: VERSION,
        };
        let ask = |kind| frame::encode_one(kind, &which);
        let got = client
            .ask(&ask(kind::GET_CHUNK_BLOCKS), kind::CHUNK_BLOCKS)
            .await
            .unwrap();
        assert_eq!(got.len(), 15);
        let table = ask(kind::GET_CHUNK_CHECKSUM_TAB);
        let got = client.ask(&table, kind::CHUNK_CHECKSUM_TAB).await.unwrap();
        assert_eq!(got.len(), 12 + 4096);
        assert!(got[12..]
            .chunks(4)
            .all(|word| word == [0xD7, 0x97, 0x8E, 0xEB]));
        let got = client
            .ask(&ask(kind::GET_CHUNK_CHECKSUM), kind::CHUNK_CHECKSUM)
            .await
            .unwrap();
        assert_eq!(got.len(), 16);
        let info = frame::encode(kind::GET_CHUNK_INFO, |out| {
            out.extend(&ask(0)[8..]);
            out.push(13);
        });
        let got = client.ask(&info, kind::CHUNK_INFO).await.unwrap();
        assert!(got.len() > 12 + 2 + 4096 + 4);
        let absent = Which {
            id: ChunkId(99),
            version: VERSION,
        };
        let absent = frame::encode_one(kind::GET_CHUNK_CHECKSUM_TAB, &absent);
        let got = client.ask(&absent, kind::CHUNK_CHECKSUM_TAB).await.unwrap();
        assert_eq!(got[12..], [13]);
        let empty = |kind| frame::encode(kind, |_| {});
        let got = client
            .ask(&empty(kind::GET_HDD_LIST), kind::HDD_LIST)
            .await
            .unwrap();
        assert_eq!(got.len(), 2 + 226 + "memory".len());
        let got = client
            .ask(&empty(kind::GET_MODULE_INFO), kind::MODULE_INFO)
            .await
            .unwrap();
        assert_eq!(got.len(), 21);
        let got = client
            .ask(&empty(kind::GET_VERSION), kind::VERSION)
            .await
            .unwrap();
        assert_eq!(&got[4..], b"4.26.0");
        let got = client
            .ask(&empty(kind::GET_MONOTONIC_DATA), kind::MONOTONIC_DATA)
            .await
            .unwrap();
        assert_eq!(got.len(), 2 + 2 + 2 + 98 + "memory".len());
        let chart = frame::encode_one(kind::GET_CHART, &1u32);
        assert_eq!(client.ask(&chart, kind::CHART).await.unwrap(), []);
        let config = frame::encode(kind::GET_CONFIG, |out| out.extend(b"\0\0\0\x05\x02AB"));
        let got = client.ask(&config, kind::CONFIG_VALUE).await.unwrap();
        assert_eq!(got, [0, 0, 0, 5, 0]);
    });
}

#[test]
fn a_replica_is_fetched_block_by_block() {
    let world = World::new();
    let (source, target) = (world.node(1), world.node(2));
    world.run(target.chunks.delete(ID, VERSION)).unwrap();
    let mut client = world.client(&source);
    let data = bytes(9, 65_536);
    let expected = data.clone();
    world.run(async move {
        let mut session = client.open_write(ID, VERSION, vec![]).await.unwrap();
        for block in [0, 7, 30] {
            client
                .write(&mut session, block, 0, &vec_of(&data))
                .await
                .unwrap();
        }
        client.finish(session).await.unwrap();
    });
    let replicator = world.replicator(&target);
    assert_eq!(
        world.run(replicator.replicate(ID, VERSION, source.address)),
        Ok(())
    );
    assert_eq!(target.chunks.open(ID, VERSION), Ok(31));
    let mut client = world.client(&target);
    world.run(async move {
        let got = client.read(request(0, 31 << 16)).await.unwrap();
        assert_eq!(got.slice(30 << 16..).to_vec(), expected);
        assert!(got.slice(1 << 16..7 << 16).is_zero());
    });
    // Held already.
    let again = replicator.replicate(ID, VERSION, source.address);
    assert_eq!(world.run(again), Err(status::EXISTS));
    // Absent, another version, unreachable, damaged at the source.
    let other = ChunkId(77);
    let cases = [
        (
            replicator.replicate(other, VERSION, source.address),
            status::NO_CHUNK,
        ),
        (
            replicator.replicate(other, VERSION, address(200)),
            status::CANT_CONNECT,
        ),
    ];
    for (replica, expected) in cases {
        assert_eq!(world.run(replica), Err(expected));
    }
    source.chunks.damage(ID, 7);
    world.run(target.chunks.delete(ID, VERSION)).unwrap();
    let damaged = replicator.replicate(ID, VERSION, source.address);
    assert_eq!(world.run(damaged), Err(status::CRC));
    assert_eq!(target.chunks.inventory(), []);
}

#[test]
fn a_silent_source_times_out() {
    let world = World::new();
    let target = world.node(1);
    let ends = Rc::new(RefCell::new(Vec::new()));
    world.set_host(2, Host::Scripted(ends.clone()));
    let replica = world
        .replicator(&target)
        .replicate(ChunkId(5), VERSION, address(2));
    let rt = world.rt.clone();
    let begun = rt.now();
    assert_eq!(world.run(replica), Err(status::TIMED_OUT));
    assert_eq!((rt.now() - begun).as_secs(), 10);
}

#[test]
fn connections_to_the_next_server_are_reused_while_fresh() {
    let world = World::new();
    let nodes = [world.node(1), world.node(2)];
    let next = nodes[1].address;
    let rt = world.rt.clone();
    let (first, second) = (nodes[0].server.clone(), nodes[1].server.clone());
    world.run(async move {
        for pause_s in [0, 1, 10] {
            rt.sleep(Duration::from_secs(pause_s)).await;
            let (near, far) = tokio::io::duplex(64 << 10);
            first.accept(far, "client".into());
            let mut client = Client::new(near, Pool::new(1 << 20));
            let mut session = client.open_write(ID, VERSION, vec![next]).await.unwrap();
            client
                .write(&mut session, 0, 0, &vec_of(b"again"))
                .await
                .unwrap();
            client.finish(session).await.unwrap();
            rt.sleep(Duration::from_millis(1)).await;
            assert_eq!(second.stats().connections.get(), 1);
        }
    });
}
