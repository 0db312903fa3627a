//! The whole initiator on real sockets against a target that does what a script says.

mod script;

use blockdev::driver::run_shard;
use blockdev::path::{Command, CommandError, Control, ControlError, LoginAs, LoginError};
use blockdev::path::{PathSession, Sent, SessionEvent};
use blockdev::reserve::{ReserveKind, ReserveOut};
use blockdev::{Applied, Durability, IoCtx, IoVec, PathCause, Pool, ReadSectors, Rt, Sector};
use iscsi_initiator::commands::{Compared, Extent};
use iscsi_initiator::discover::discover;
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::login::keys::DigestWish;
use iscsi_initiator::name::Portal;
use iscsi_initiator::path::{IscsiPort, IscsiSession, PortConfig};
use iscsi_initiator::session::Outcome;
use iscsi_initiator::tcp::TcpNet;
use script::disk::PowerCut;
use script::wire::Pdu;
use script::{Counts, End, Settings, Target};
use std::cell::Cell;
use std::future::{poll_fn, Future};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Far more than anything here takes: only a hang reaches it.
const LIMIT: Duration = Duration::from_secs(20);

const DATA_IN: u8 = 0x25;
const R2T: u8 = 0x31;

fn portal(address: SocketAddr) -> Portal {
    address.to_string().parse().expect("portal")
}

fn initiator(rt: &Rt) -> Initiator {
    let name = "iqn.2024-12.example:i";
    Initiator::new(rt.clone(), Rc::new(TcpNet), Pool::new(64 << 20), name)
}

fn port(initiator: Initiator, address: SocketAddr) -> IscsiPort {
    let config = PortConfig {
        portal: portal(address),
        source: None,
        target: "iqn.2024-12.example:t".to_owned(),
        lun: 1,
        role: Role::Serve,
        shard: 0,
    };
    IscsiPort::new(initiator, config).expect("flat LUN")
}

async fn login(rt: &Rt, address: SocketAddr) -> Rc<IscsiSession> {
    let port = port(initiator(rt), address);
    let session = port.open(LoginAs::Own, rt.now() + LIMIT).await;
    session.expect("login")
}

/// Runs a test that must not hang.
fn run<F, T>(main: F)
where
    F: FnOnce(Rt) -> T + 'static,
    T: Future<Output = ()> + 'static,
{
    run_shard(|rt| async move {
        let limit = rt.now() + LIMIT;
        let within = rt.clone();
        let done = within.by(limit, main(rt)).await;
        assert!(done.is_ok(), "hangs");
    })
    .expect("runtime");
}

fn bytes(len: usize, seed: usize) -> IoVec {
    let bytes: Vec<u8> = (0..len)
        .map(|at| (at * 7 + at / 251 + seed * 13) as u8)
        .collect();
    Pool::new(len.max(4096)).copy_now(&bytes)
}

async fn write(session: &IscsiSession, at: u64, data: IoVec, want: Durability) {
    let command = Command::Write {
        at: Sector(at),
        data,
        want,
    };
    let done = session.submit(command, IoCtx::foreground()).1.await;
    done.expect("write");
}

fn read(at: u64, sectors: u32) -> Command {
    Command::Read {
        at: Sector(at),
        sectors,
    }
}

/// Writes and reads around every limit, all at once.
async fn exercise(session: &IscsiSession, seed: usize) {
    let sizes = [
        512,
        4096,
        8192,
        8704,
        65_536,
        66_048,
        262_144,
        262_656,
        1 << 20,
    ];
    let mut at = 8;
    let mut written = Vec::new();
    let mut pending = Vec::new();
    for size in sizes {
        let data = bytes(size, seed);
        let command = Command::Write {
            at: Sector(at),
            data: data.clone(),
            want: Durability::Cache,
        };
        pending.push(session.submit(command, IoCtx::foreground()).1);
        written.push((at, data));
        at += size as u64 / 512 + 1;
    }
    for done in pending {
        done.await.expect("write");
    }
    let reads: Vec<_> = written
        .iter()
        .map(|(at, data)| {
            let command = read(*at, (data.len() / 512) as u32);
            session.submit(command, IoCtx::foreground()).1
        })
        .collect();
    for (done, (at, data)) in reads.into_iter().zip(&written) {
        let got = done.await.expect("read").into_data();
        assert!(got == *data, "{} bytes at {at} differ", data.len());
    }
}

/// §13.10, §13.11, §13.14, §13.1: each combination, and the target checks every PDU it gets.
#[test]
fn every_combination_of_data_keys_and_digests() {
    for case in 0..16 {
        let settings = Settings {
            initial_r2t: case & 1 != 0,
            immediate_data: case & 2 != 0,
            max_recv_data_segment: if case & 4 != 0 { 8192 } else { 262_144 },
            first_burst: 16_384,
            max_burst: 65_536,
            ..Settings::default()
        };
        let target = Target::start(settings);
        let address = target.address;
        run(move |rt| async move {
            let mut initiator = initiator(&rt);
            if case & 8 != 0 {
                initiator.offer.header_digest = DigestWish::Crc32c;
                initiator.offer.data_digest = DigestWish::Crc32c;
            }
            let port = port(initiator, address);
            let session = port.open(LoginAs::Own, rt.now() + LIMIT).await;
            let session = session.expect("login");
            exercise(&session, case).await;
            session.logout(rt.now() + LIMIT).await;
        });
    }
}

/// The stream in pieces of any length, digests alone in a segment too.
#[test]
fn stream_in_pieces_of_any_length() {
    for piece in [1, 2, 3, 47, 48, 49, 51, 52, 53, 1000] {
        let target = Target::start(Settings::default());
        let address = target.address;
        target.script(move |_, reply| reply.piece = piece);
        run(move |rt| async move {
            let mut initiator = initiator(&rt);
            initiator.offer.header_digest = DigestWish::Crc32c;
            initiator.offer.data_digest = DigestWish::Crc32c;
            let port = port(initiator, address);
            let session = port.open(LoginAs::Own, rt.now() + LIMIT).await;
            let session = session.expect("login");
            let data = bytes(8704, piece);
            write(&session, 8, data.clone(), Durability::Cache).await;
            let got = session.read(Sector(8), 17).await.expect("read");
            assert!(got == data);
        });
    }
}

/// Answers to tasks in another order than they were asked, also with their data interleaved.
#[test]
fn answers_in_any_order() {
    let target = Target::start(Settings::default());
    let address = target.address;
    let mut held = Vec::new();
    target.script(move |request, reply| {
        if request.opcode() != 1 || request.cdb()[0] != 0x88 {
            return;
        }
        held.append(&mut reply.pdus);
        if held.len() == 8 {
            held.rotate_left(3);
            held.reverse();
            reply.pdus.append(&mut held);
        }
    });
    run(move |rt| async move {
        let session = login(&rt, address).await;
        for at in 0..8 {
            write(&session, at * 8, bytes(4096, at as usize), Durability::Fua).await;
        }
        let reads: Vec<_> = (0..8)
            .map(|at| session.submit(read(at * 8, 8), IoCtx::foreground()).1)
            .collect();
        for (at, done) in reads.into_iter().enumerate() {
            let got = done.await.expect("read").into_data();
            assert!(got == bytes(4096, at));
        }
    });
}

/// The connection ends after any number of bytes of an answer: each command has one outcome, and
/// a write that was sent is not called unapplied.
#[test]
fn cut_anywhere_ends_each_command_once() {
    for (cut, end) in [
        (0, End::Reset),
        (1, End::Close),
        (48, End::Close),
        (700, End::Reset),
    ] {
        let target = Target::start(Settings::default());
        let address = target.address;
        run(move |rt| async move {
            let session = login(&rt, address).await;
            target.script(move |request, reply| {
                if request.opcode() == 1 && request.cdb()[0] == 0x88 {
                    (reply.cut, reply.end) = (Some(cut), end);
                }
            });
            let put = Command::Write {
                at: Sector(64),
                data: bytes(512, 1),
                want: Durability::Cache,
            };
            let commands = [put, read(0, 8), read(8, 8)];
            let pending: Vec<_> = commands
                .into_iter()
                .map(|command| session.submit(command, IoCtx::foreground()).1)
                .collect();
            let mut lost = 0;
            for done in pending {
                match done.await {
                    Ok(_) => {}
                    Err(CommandError::Lost { applied, .. }) => {
                        assert_eq!(applied, Applied::Unknown);
                        lost += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert!(lost >= 2, "{lost}");
            let news = poll_fn(|cx| session.poll_event(cx)).await;
            assert!(
                matches!(news, SessionEvent::Lost(PathCause::Connection(_))),
                "i_t_nexus_loss_reported_up: {news:?}"
            );
            assert!(!session.is_alive());
            drop(target);
        });
    }
}

/// §7.8 on a real stream: one bit of any part.
#[test]
fn damage_is_noticed_with_digests() {
    for at in [0, 7, 16, 40, 48, 51, 52, 900, 52 + 4096, 52 + 4096 + 3] {
        let target = Target::start(Settings::default());
        let address = target.address;
        run(move |rt| async move {
            let mut initiator = initiator(&rt);
            initiator.offer.header_digest = DigestWish::Crc32c;
            initiator.offer.data_digest = DigestWish::Crc32c;
            let port = port(initiator, address);
            let session = port.open(LoginAs::Own, rt.now() + LIMIT).await;
            let session = session.expect("login");
            target.script(move |_, reply| {
                if reply.pdus.iter().any(|(pdu, _)| pdu.opcode() == DATA_IN) {
                    reply.damage.push((at, 0x04));
                }
            });
            let done = session.submit(read(0, 8), IoCtx::foreground()).1.await;
            let Err(CommandError::Lost { cause, .. }) = done else {
                panic!("byte {at}: {done:?}");
            };
            assert!(cause.to_string().contains("digest"), "{cause}");
            drop(target);
        });
    }
}

/// §7.11: a command without an answer is never just forgotten: who waits aborts it, and if that is
/// not answered either, the session ends and says so.
#[test]
fn timeout_aborts_or_logs_out() {
    let target = Target::start(Settings::default());
    let address = target.address;
    run(move |rt| async move {
        let session = login(&rt, address).await;
        target.script(|request, reply| {
            if matches!(request.opcode(), 1 | 2) {
                reply.pdus.clear();
            }
        });
        let (ticket, done) = session.submit(read(0, 8), IoCtx::foreground());
        // Sent, and then silence.
        rt.sleep(Duration::from_millis(20)).await;
        let limit = rt.now() + Duration::from_millis(100);
        let abort = session.control(Control::AbortTask(ticket), limit).await;
        assert_eq!(abort, Err(ControlError::Late));
        session.abort(PathCause::Administrative("no answer"));
        let lost = done.await;
        assert!(matches!(lost, Err(CommandError::Lost { .. })), "{lost:?}");
        drop(target);
    });
}

/// §6.3.5, §7.15: the same ISID again, the old connection closed first, every task of it ended.
#[test]
fn failed_before_reinstatement() {
    let target = Target::start(Settings::default());
    let address = target.address;
    run(move |rt| async move {
        let port = port(initiator(&rt), address);
        let first = port.open(LoginAs::Own, rt.now() + LIMIT).await;
        let first = first.expect("login");
        target.script(|request, reply| {
            if request.opcode() == 1 && request.cdb()[0] == 0x88 {
                reply.pdus.clear();
            }
        });
        let (_, stuck) = first.submit(read(0, 8), IoCtx::foreground());
        rt.sleep(Duration::from_millis(20)).await;
        first.abort(PathCause::Administrative("failed"));
        assert!(stuck.await.is_err());
        target.unscript();
        let second = port.open(LoginAs::Own, rt.now() + LIMIT).await;
        let second = second.expect("login again");
        assert_eq!(target.connections(), 1);
        drop(second);
        drop(target);
    });
}

/// §7.15, §4.4.3: the ISID of a path is its own, whatever became of the session before.
#[test]
fn same_isid_on_reconnect() {
    let target = Target::start(Settings::default());
    let address = target.address;
    run(move |rt| async move {
        let mut seen = Vec::new();
        for turn in 0..4 {
            // A new port as well as the same: nothing is remembered.
            let session = login(&rt, address).await;
            seen.push(session.facts().isid);
            match turn % 2 {
                0 => session.logout(rt.now() + LIMIT).await,
                _ => session.abort(PathCause::Administrative("test")),
            }
        }
        assert!(seen.iter().all(|isid| *isid == seen[0] && isid.0 != [0; 6]));
        drop(target);
    });
}

/// §9.2: names, method and keys are those of the first login.
#[test]
fn auth_same_on_every_login_of_a_session() {
    let target = Target::start(Settings::default());
    let address = target.address;
    run(move |rt| async move {
        let port = port(initiator(&rt), address);
        for _ in 0..3 {
            let session = port.open(LoginAs::Own, rt.now() + LIMIT).await;
            session
                .expect("login")
                .abort(PathCause::Administrative("test"));
        }
        let logins = target.logins();
        assert_eq!(logins.len(), 3);
        assert!(logins.iter().all(|text| *text == logins[0]));
        drop(target);
    });
}

/// §11.14: the target closes after its answer, and so do we.
#[test]
fn logout_closes_tcp() {
    let target = Target::start(Settings::default());
    let address = target.address;
    run(move |rt| async move {
        let session = login(&rt, address).await;
        assert_eq!(target.connections(), 1);
        session.logout(rt.now() + LIMIT).await;
        assert!(!session.is_alive());
        for _ in 0..200 {
            if target.connections() == 0 {
                break;
            }
            rt.sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(target.connections(), 0);
        drop(target);
    });
}

/// §11.13.5: also after the target has authenticated us it may send us elsewhere.
#[test]
fn redirect_after_auth_accepted() {
    let moved = Target::start(Settings::default());
    let address = moved.address;
    for (stage, detail) in [(0, 1), (0, 2), (1, 1), (1, 2)] {
        let first = Target::start(Settings::default());
        let from = first.address;
        first.script(move |request, reply| {
            // CSG of the request: the first is of security negotiation, the second is not.
            if request.opcode() == 3 && request.header[1] >> 2 & 3 == stage {
                let (pdu, _) = &mut reply.pdus[0];
                pdu.header[1] = 0;
                (pdu.header[36], pdu.header[37]) = (1, detail);
                pdu.data = format!("TargetAddress={address}\0").into_bytes();
                reply.end = End::Close;
            }
        });
        let before = moved.logins().len();
        run(move |rt| async move {
            let session = login(&rt, from).await;
            session.logout(rt.now() + LIMIT).await;
        });
        assert_eq!(moved.logins().len(), before + 1);
    }
}

/// §13.21, §12: a discovery session asks and leaves.
#[test]
fn discovery_on_a_real_socket() {
    let target = Target::start(Settings::default());
    let address = target.address;
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let noted = seen.clone();
    target.script(move |request, _| noted.lock().expect("not poisoned").push(request.opcode()));
    run(move |rt| async move {
        let list = discover(&initiator(&rt), portal(address), rt.now() + LIMIT).await;
        let list = list.expect("discovery");
        assert_eq!(list[0].name, "iqn.2024-12.example:t");
    });
    let seen = seen.lock().expect("not poisoned");
    assert!(
        seen.iter().all(|opcode| matches!(opcode, 3 | 4 | 6)),
        "discovery_session_requests_limited: {seen:?}"
    );
}

/// Every command that no path needs, with the unit's typed answers.
#[test]
fn typed_commands() {
    let target = Target::start(Settings::default());
    let address = target.address;
    run(move |rt| async move {
        let session = login(&rt, address).await;
        let unit = session.commands();
        unit.test_unit_ready().await.expect("ready");
        assert_eq!(unit.request_sense(false).await, Ok(None));
        assert_eq!(unit.request_sense(true).await, Ok(None));
        assert_eq!(unit.inquiry().await.expect("inquiry").vendor, "ANTLER");
        let pages = unit.pages().await.expect("VPD 00");
        assert_eq!(pages, [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
        assert_eq!(unit.serial_number().await.as_deref(), Ok("scripted"));
        let designators = unit.designators().await.expect("VPD 83");
        assert_eq!(designators.target_port_group, Some(1));
        let limits = unit.block_limits().await.expect("VPD B0");
        assert_eq!(limits.compare_and_write_blocks, 255);
        assert_eq!(unit.rotation_rate().await, Ok(1));
        assert!(unit.provisioning().await.expect("VPD B2").unmap);
        assert_eq!(unit.luns().await.expect("list").len(), 1);
        let caching = unit.caching().await.expect("page 08");
        assert_eq!(caching.write_cache, Some(true));
        let capacity = unit.capacity().await.expect("capacity");
        assert_eq!(capacity.block_bytes, 512);
        let groups = unit
            .port_groups()
            .await
            .expect("without the extended header");
        assert!(groups.group(1).expect("group 1").state.serves());

        let at = |lba, blocks| Extent {
            lba,
            blocks,
            block_bytes: 512,
        };
        let (old, new) = (bytes(2048, 1), bytes(2048, 2));
        for short in [false, true] {
            for want in [Durability::Cache, Durability::Fua] {
                let done = unit.write(at(4, 4), old.clone(), want, short).await;
                done.expect("write");
                let got = unit.read(at(4, 4), want, short).await.expect("read");
                assert!(got == old);
            }
        }
        let swap = unit.compare_and_write(at(4, 4), &old, &new, Durability::Fua);
        assert_eq!(swap.await, Ok(Compared::Written));
        let swap = unit.compare_and_write(at(4, 4), &old, &new, Durability::Fua);
        assert_eq!(swap.await, Ok(Compared::Differs { at: Some(0) }));
        let empty = IoVec::new();
        let none = unit.compare_and_write(at(4, 0), &empty, &empty, Durability::Fua);
        assert!(none.await.is_err(), "a form that istgt never answers");
        let same = unit.write_same(at(8, 16), bytes(512, 3), false);
        same.await.expect("WRITE SAME");
        let got = unit.read(at(23, 1), Durability::Cache, false).await;
        assert!(got.expect("read") == bytes(512, 3));
        unit.unmap(&[(8, 4), (20, 4)]).await.expect("UNMAP");
        let got = unit.read(at(20, 4), Durability::Cache, false).await;
        assert!(got.expect("read").is_zero());
        unit.synchronize_cache(0, 0).await.expect("flush");

        let register = ReserveOut::RegisterAndIgnore {
            new: 7,
            persist: false,
            all_ports: false,
        };
        unit.reserve(&register).await.expect("register");
        let kind = ReserveKind::WriteExclusiveRegistrants;
        let reserve = ReserveOut::Reserve { own: 7, kind };
        unit.reserve(&reserve).await.expect("reserve");
        assert_eq!(unit.reserve_keys().await.expect("keys").keys, [7]);
        let holder = unit.reservation().await.expect("reservation").holder;
        assert_eq!(holder.map(|holder| holder.key), Some(7));
        let capabilities = unit.reserve_capabilities().await.expect("capabilities");
        assert_eq!(capabilities.supports(kind), Some(true));
        let refused = unit.reserve_status().await;
        assert!(matches!(
            refused,
            Err(CommandError::Status { status: 2, .. })
        ));
        let stranger = unit.reserve(&ReserveOut::Clear { own: 8 }).await;
        assert!(matches!(
            stranger,
            Err(CommandError::Status { status: 0x18, .. })
        ));
        let preempt = ReserveOut::PreemptAndAbort {
            own: 7,
            victim: 7,
            kind,
        };
        unit.reserve(&preempt).await.expect("preempt");
        drop(target);
    });
}

/// What a power cut takes: nothing that was flushed or written with FUA, anything else in any
/// order, and a write may be torn at a block.
#[test]
fn power_cuts_take_only_what_was_not_flushed() {
    for how in [
        PowerCut::Drop,
        PowerCut::Reorder(3),
        PowerCut::Tear(5),
        PowerCut::Tear(8),
    ] {
        let target = Target::start(Settings::default());
        let address = target.address;
        run(move |rt| async move {
            let session = login(&rt, address).await;
            write(&session, 0, bytes(4096, 1), Durability::Cache).await;
            let flush = session.submit(Command::SynchronizeCache, IoCtx::foreground());
            flush.1.await.expect("flush");
            write(&session, 8, bytes(4096, 2), Durability::Fua).await;
            for at in 2..6 {
                write(&session, at * 8, bytes(4096, 9), Durability::Cache).await;
            }
            assert_eq!(target.disk().unflushed_blocks(), 32);
            target.power_cut(how);
            let lost = poll_fn(|cx| session.poll_event(cx)).await;
            assert!(matches!(lost, SessionEvent::Lost(_)));
            let session = login(&rt, address).await;
            for (at, seed) in [(0, 1), (8, 2)] {
                let got = session.read(Sector(at), 8).await.expect("read");
                assert!(got == bytes(4096, seed), "{how:?}: durable data are gone");
            }
            let new = bytes(4096, 9).to_vec();
            let mut kept = 0;
            for at in 2..6 {
                let got = session
                    .read(Sector(at * 8), 8)
                    .await
                    .expect("read")
                    .to_vec();
                for (block, wanted) in got.chunks(512).zip(new.chunks(512)) {
                    assert!(block == wanted || block.iter().all(|&byte| byte == 0));
                    kept += usize::from(block == wanted);
                }
            }
            assert!(kept < 32, "{how:?}");
            assert_eq!(kept == 0, how == PowerCut::Drop);
            drop(target);
        });
    }
}

/// While many bytes are due answers gather below a receive mark; one that is far shorter, with the
/// others hanging, still comes up by the bound of the wait. And so does the next.
#[test]
fn short_answer_below_the_mark_comes_up() {
    let target = Target::start(Settings::default());
    let address = target.address;
    run(move |rt| async move {
        // A keepalive would bring it up too, seconds later.
        let mut initiator = initiator(&rt);
        initiator.ping_interval = None;
        let port = port(initiator, address);
        let session = port.open(LoginAs::Own, rt.now() + LIMIT).await;
        let session = session.expect("login");
        for _ in 0..10 {
            target.script({
                let mut held = Vec::new();
                move |request, reply| {
                    if request.opcode() != 1 || request.cdb()[0] != 0x88 {
                        return;
                    }
                    if request.cdb()[9] == 3 {
                        let mut busy = Pdu::new(0x21, 0x80);
                        busy.header[3] = 0x18;
                        busy.set_u32(16, request.tag());
                        reply.pdus = vec![(busy, Counts::Yes)];
                    } else if request.cdb()[9] != 4 {
                        held.append(&mut reply.pdus);
                    } else {
                        reply.pdus.append(&mut held);
                    }
                }
            });
            let pending: Vec<_> = (8..24)
                .map(|at| session.submit(read(at, 8), IoCtx::foreground()).1)
                .collect();
            let short = session.submit(read(3, 8), IoCtx::foreground()).1;
            let refused = short.await;
            assert!(matches!(
                refused,
                Err(CommandError::Status { status: 0x18, .. })
            ));
            // This one releases what hangs.
            let last = session.submit(read(4, 8), IoCtx::foreground()).1;
            last.await.expect("read");
            for done in pending {
                done.await.expect("read");
            }
        }
        drop(target);
    });
}

/// Known traps of targets, each played by the script.
mod traps {
    use super::*;

    /// tgt sends a Data-In full of stale memory before a CHECK CONDITION; istgt a CHECK CONDITION
    /// without sense. Neither yields data, neither ends the session.
    #[test]
    fn data_before_check_condition_never_delivered() {
        for with_sense in [true, false] {
            let target = Target::start(Settings::default());
            let address = target.address;
            run(move |rt| async move {
                let session = login(&rt, address).await;
                target.script(move |request, reply| {
                    if request.opcode() != 1 || request.cdb()[0] != 0x88 {
                        return;
                    }
                    let (data, counts) = &mut reply.pdus[0];
                    (data.header[1], *counts) = (0x80, Counts::No);
                    let mut response = Pdu::new(0x21, 0x80);
                    response.header[3] = 2;
                    response.set_u32(16, request.tag());
                    response.set_u32(36, 1);
                    if with_sense {
                        response.data = vec![0, 8, 0x72, 6, 0x29, 0, 0, 0, 0, 0];
                    }
                    reply.pdus.push((response, Counts::Yes));
                });
                let done = session.submit(read(0, 8), IoCtx::foreground()).1.await;
                let Err(CommandError::Status { status: 2, sense }) = done else {
                    panic!("{done:?}");
                };
                assert_eq!(sense.map(|sense| sense.asc), with_sense.then_some(0x29));
                assert!(session.is_alive());
                drop(target);
            });
        }
    }

    /// tgt answers None to a digest that is demanded.
    #[test]
    fn demanded_digest_that_is_refused_fails_the_login() {
        let settings = Settings {
            digests: false,
            ..Settings::default()
        };
        let target = Target::start(settings);
        let address = target.address;
        run(move |rt| async move {
            let mut initiator = initiator(&rt);
            initiator.offer.data_digest = DigestWish::Crc32c;
            let port = port(initiator.clone(), address);
            let refused = port.open(LoginAs::Own, rt.now() + LIMIT).await.err();
            let Some(LoginError::Refused(text)) = refused else {
                panic!("{refused:?}");
            };
            assert!(text.contains("DataDigest"), "{text}");
            initiator.offer.data_digest = DigestWish::PreferCrc32c;
            let port = super::port(initiator, address);
            let session = port.open(LoginAs::Own, rt.now() + LIMIT).await;
            let session = session.expect("a wish is no demand");
            assert_eq!(session.facts().data_digest, "none");
        });
        drop(target);
    }

    /// A window that closes to nothing while commands wait, and opens by a NOP-In alone.
    #[test]
    fn window_closed_to_zero_and_opened_by_a_nop() {
        let target = Target::start(Settings::default());
        let address = target.address;
        run(move |rt| async move {
            let session = login(&rt, address).await;
            // 128 were allowed at the login; use that up, with nothing opened again.
            target.set_window(0);
            let mut reads = Vec::new();
            while session.load().room > 0 {
                let done = session.submit(read(0, 8), IoCtx::foreground()).1;
                reads.push(done);
            }
            let waiting: Vec<_> = (0..12)
                .map(|at| session.submit(read(at * 8, 8), IoCtx::foreground()))
                .collect();
            for done in reads {
                done.await.expect("read");
            }
            assert_eq!(session.load().in_flight, 12);
            for (ticket, _) in &waiting {
                assert_eq!(session.sent(*ticket), Sent::Not);
            }
            let ping = session.control(Control::Ping { bytes: 64 }, rt.now() + LIMIT);
            ping.await.expect("immediate requests pass a closed window");
            target.set_window(4);
            let mut inform = Pdu::new(0x20, 0x80);
            inform.set_u32(16, u32::MAX);
            inform.set_u32(20, u32::MAX);
            target.inject(&inform, Counts::Shows);
            for (_, done) in waiting {
                done.await.expect("read");
            }
            drop(target);
        });
    }

    /// A target that pings with all eight bytes of a LUN, informs, and sends vendor messages.
    #[test]
    fn unasked_pdus_between_answers() {
        let target = Target::start(Settings::default());
        let address = target.address;
        let pongs = Arc::new(AtomicU32::new(0));
        let counted = pongs.clone();
        run(move |rt| async move {
            let session = login(&rt, address).await;
            target.script(move |request, _| {
                if request.opcode() == 0 && request.u32(20) != u32::MAX {
                    assert_eq!(request.u32(20), 0x77);
                    assert_eq!(request.header[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
            for _ in 0..4 {
                let mut ping = Pdu::new(0x20, 0x80);
                ping.header[8..16].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
                ping.set_u32(16, u32::MAX);
                ping.set_u32(20, 0x77);
                target.inject(&ping, Counts::Shows);
                let mut message = Pdu::new(0x32, 0x80);
                message.set_u32(16, u32::MAX);
                message.header[36] = 250;
                target.inject(&message, Counts::Yes);
                exercise(&session, 5).await;
            }
            drop(target);
        });
        assert_eq!(pongs.load(Ordering::Relaxed), 4);
    }

    /// Residuals that contradict the data, a read that ends short on GOOD, a write in part.
    #[test]
    fn good_status_that_lies_is_no_success() {
        let lies: [fn(&mut Pdu); 3] = [
            |pdu| pdu.data.truncate(1024),
            |pdu| {
                pdu.header[1] |= 0x02;
                pdu.set_u32(44, 512);
            },
            |pdu| {
                pdu.header[1] |= 0x02;
                pdu.set_u32(44, 1 << 30);
            },
        ];
        for lie in lies {
            let target = Target::start(Settings::default());
            let address = target.address;
            run(move |rt| async move {
                let session = login(&rt, address).await;
                target.script(move |request, reply| {
                    if request.opcode() == 1 && request.cdb()[0] == 0x88 {
                        lie(&mut reply.pdus[0].0);
                    }
                });
                let done = session.submit(read(0, 8), IoCtx::foreground()).1.await;
                assert!(done.is_err(), "{done:?}");
                drop(target);
            });
        }
    }

    /// tgt counts what it did not read of UNMAP's parameter list as a residual.
    #[test]
    fn a_parameter_list_may_be_read_in_part() {
        let target = Target::start(Settings::default());
        let address = target.address;
        run(move |rt| async move {
            let session = login(&rt, address).await;
            target.script(move |request, reply| {
                if request.opcode() == 1 && request.cdb()[0] == 0x42 {
                    let answer = &mut reply.pdus[0].0;
                    answer.header[1] |= 0x02;
                    answer.header[3] = 0;
                    answer.data.clear();
                    answer.set_u32(44, 8);
                }
            });
            let (at, sectors) = (Sector(0), 8);
            let unmap = Command::Unmap { at, sectors };
            let done = session.submit(unmap, IoCtx::foreground()).1.await;
            assert!(done.is_ok(), "{done:?}");
            drop(target);
        });
    }

    /// A target that asks for data it must not ask for.
    #[test]
    fn r2t_against_the_rules_ends_the_session() {
        let lies: [fn(&mut Pdu); 5] = [
            |pdu| pdu.set_u32(40, 1 << 20),
            |pdu| pdu.set_u32(44, 0),
            |pdu| pdu.set_u32(44, u32::MAX),
            |pdu| pdu.header[9] = 7,
            |pdu| pdu.set_u32(16, 0x1234),
        ];
        for lie in lies {
            let target = Target::start(Settings {
                immediate_data: false,
                ..Settings::default()
            });
            let address = target.address;
            run(move |rt| async move {
                let session = login(&rt, address).await;
                target.script(move |_, reply| {
                    for (pdu, _) in &mut reply.pdus {
                        if pdu.opcode() == R2T {
                            lie(pdu);
                        }
                    }
                });
                let put = Command::Write {
                    at: Sector(0),
                    data: bytes(65_536, 1),
                    want: Durability::Cache,
                };
                let done = session.submit(put, IoCtx::foreground()).1.await;
                assert!(
                    matches!(
                        done,
                        Err(CommandError::Lost {
                            cause: PathCause::Protocol(_),
                            applied: Applied::Unknown
                        })
                    ),
                    "{done:?}"
                );
                drop(target);
            });
        }
    }

    /// TASK SET FULL and BUSY come up as they are; the next command works.
    #[test]
    fn task_set_full_is_an_answer() {
        let target = Target::start(Settings::default());
        let address = target.address;
        run(move |rt| async move {
            let session = login(&rt, address).await;
            let seen = Cell::new(0u32);
            target.script({
                let mut turn = 0;
                move |request, reply| {
                    if request.opcode() == 1 && request.cdb()[0] == 0x88 {
                        turn += 1;
                        if turn % 5 == 0 {
                            let mut full = Pdu::new(0x21, 0x80);
                            full.header[3] = 0x28;
                            full.set_u32(16, request.tag());
                            reply.pdus = vec![(full, Counts::Yes)];
                        }
                    }
                }
            });
            let reads: Vec<_> = (0..50)
                .map(|at| session.submit(read(at * 8, 8), IoCtx::foreground()).1)
                .collect();
            for done in reads {
                match done.await {
                    Ok(_) => {}
                    Err(CommandError::Status { status: 0x28, .. }) => seen.set(seen.get() + 1),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(seen.get(), 10);
            drop(target);
        });
    }

    /// A CDB of more than 16 bytes leaves with its additional header, and an unknown command is an
    /// answer like any other.
    #[test]
    fn long_cdb_reaches_the_target() {
        let target = Target::start(Settings::default());
        let address = target.address;
        run(move |rt| async move {
            let session = login(&rt, address).await;
            let words = Arc::new(AtomicU32::new(0));
            let noted = words.clone();
            target.script(move |request, _| {
                if request.opcode() == 1 && request.cdb()[0] == 0x7f {
                    noted.store(request.header[4].into(), Ordering::Relaxed);
                }
            });
            let command = iscsi_initiator::session::ScsiCommand {
                lun: [0, 1, 0, 0, 0, 0, 0, 0],
                cdb: [0x7f; 16],
                transfer: iscsi_initiator::session::Transfer::None,
                attribute: Default::default(),
            };
            let outcome = session.client().command_long(command, &[1; 16]).await;
            let Outcome::Scsi(answer) = outcome else {
                panic!("{outcome:?}");
            };
            assert_eq!(answer.status, 2);
            assert_eq!(words.load(Ordering::Relaxed), 5);
            drop(target);
        });
    }
}
