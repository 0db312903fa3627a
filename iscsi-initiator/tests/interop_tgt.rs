//! Against a real `tgtd` on loopback. Needs root and the package `tgt`.

mod support;

use blockdev::path::{
    Command, CommandError, CommandResult, Control, ControlError, LoginAs, LoginError, PathSession,
};
use blockdev::path::{PathPort, SessionEvent};
use blockdev::reserve::{self, ReserveIn, ReserveKind, ReserveOut};
use blockdev::{Applied, Durability, IoCtx, IoVec, PathCause, Pool, ReadSectors, Rt, Sector};
use iscsi_initiator::discover::discover;
use iscsi_initiator::login::chap::{Algorithm, ChapConfig, Secret};
use iscsi_initiator::login::keys::DigestWish;
use iscsi_initiator::path::IscsiSession;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;
use support::{exercise, initiator, login, pattern, port, run, Tgt, LUN_BYTES, TARGET};

async fn write(session: &IscsiSession, at: Sector, data: IoVec, want: Durability) {
    let command = Command::Write { at, data, want };
    session
        .submit(command, IoCtx::foreground())
        .1
        .await
        .expect("write");
}

#[test]
fn identifies_the_disk() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let session = login(&initiator(&rt), tgt.portal()).await.expect("login");
        let identity = session.identity();
        assert_eq!(
            identity.wwid.as_deref(),
            Some("36001405d363af4e9a69472cbd4711629")
        );
        assert_eq!(
            (&*identity.vendor, &*identity.product),
            ("IET", "VIRTUAL-DISK")
        );
        assert_eq!(identity.serial, "sto1");
        assert_eq!(identity.portal_group, 1);
        assert!(!identity.read_only);
        let geometry = identity.geometry;
        assert_eq!(geometry.bytes(), LUN_BYTES);
        assert_eq!(
            (geometry.logical_block_bytes, geometry.physical_block_bytes),
            (512, 4096)
        );
        assert!(geometry.write_cache && geometry.fua);
        assert_eq!(geometry.max_transfer_sectors, 2048);
        assert_eq!(session.facts().header_digest, "none");
        let deadline = rt.now() + Duration::from_secs(5);
        session.logout(deadline).await;
        assert!(!session.is_alive());
    });
}

#[test]
fn refuses_the_controller_and_lists_the_disks() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let deadline = rt.now() + Duration::from_secs(5);
        let controller = port(initiator(&rt), tgt.portal(), 0, 0);
        let error = controller
            .open(LoginAs::Own, deadline)
            .await
            .err()
            .expect("no disk");
        let text = "LUN 0 is a storage array controller; disks: 1".to_owned();
        assert_eq!(error, LoginError::Misconfigured(text));
        let absent = port(initiator(&rt), tgt.portal(), 9, 0);
        let error = absent
            .open(LoginAs::Own, deadline)
            .await
            .err()
            .expect("no disk");
        assert!(matches!(error, LoginError::Misconfigured(_)), "{error}");
    });
}

#[test]
fn four_combinations_of_r2t_and_immediate() {
    let tgt = Tgt::start();
    let mut seed = 0;
    for segment in ["8192", "262144"] {
        for (initial_r2t, immediate) in [("Yes", "Yes"), ("Yes", "No"), ("No", "Yes"), ("No", "No")]
        {
            tgt.set("MaxRecvDataSegmentLength", segment);
            tgt.set("InitialR2T", initial_r2t);
            tgt.set("ImmediateData", immediate);
            tgt.set(
                "MaxOutstandingR2T",
                if segment == "8192" { "1" } else { "8" },
            );
            seed += 1;
            let portal = tgt.portal();
            run(|rt| async move {
                let session = login(&initiator(&rt), portal).await.expect("login");
                let params = session.client().with_session(|session| *session.params());
                assert_eq!(params.initial_r2t, initial_r2t == "Yes");
                assert_eq!(params.immediate_data, immediate == "Yes");
                assert_eq!(params.max_send_data_segment.to_string(), segment);
                exercise(&session, seed).await;
            });
        }
    }
}

#[test]
fn flush_fua_and_checks() {
    let tgt = Tgt::start();
    let disk = tgt.disk();
    run(|rt| async move {
        let session = login(&initiator(&rt), tgt.portal()).await.expect("login");
        let pool = Pool::new(1 << 20);
        let data = pattern(&pool, Sector(64), 4096, 7);
        write(&session, Sector(64), data.clone(), Durability::Fua).await;
        for command in [
            Command::SynchronizeCache,
            Command::TestUnitReady,
            Command::OrderedTestUnitReady,
        ] {
            session
                .submit(command, IoCtx::foreground())
                .1
                .await
                .expect("GOOD");
        }
        let on_disk = std::fs::read(disk).expect("disk file");
        assert_eq!(on_disk[64 * 512..][..4096], data.to_vec());
        let again = session.read(Sector(64), 8).await.expect("read");
        assert!(again == data);
        let zero = Command::WriteZeroes {
            at: Sector(64),
            sectors: 8,
        };
        session
            .submit(zero, IoCtx::foreground())
            .1
            .await
            .expect("WRITE SAME");
        assert!(session.read(Sector(64), 8).await.expect("read").is_zero());
        // Not offered by the unit: an error of the unit, not of the path.
        let unmap = Command::Unmap {
            at: Sector(64),
            sectors: 8,
        };
        let refused = session.submit(unmap, IoCtx::foreground()).1.await;
        assert!(
            matches!(refused, Err(CommandError::Status { status: 2, .. })),
            "{refused:?}"
        );
        let beyond = Command::Read {
            at: Sector(LUN_BYTES / 512),
            sectors: 8,
        };
        assert!(session.submit(beyond, IoCtx::foreground()).1.await.is_err());
        assert!(session.is_alive());
    });
}

#[test]
fn ping_and_lun_reset_are_answered() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let session = login(&initiator(&rt), tgt.portal()).await.expect("login");
        let deadline = || rt.now() + Duration::from_secs(5);
        for bytes in [0, 1, 512, 4096] {
            session
                .control(Control::Ping { bytes }, deadline())
                .await
                .expect("ping");
        }
        session
            .control(
                Control::LunReset {
                    ends_commands: false,
                },
                deadline(),
            )
            .await
            .expect("LUN RESET");
        // The reset leaves a unit attention, which is told as news too.
        let attention = session
            .submit(Command::TestUnitReady, IoCtx::foreground())
            .1
            .await;
        let Err(CommandError::Status {
            sense: Some(sense), ..
        }) = attention
        else {
            panic!("{attention:?}");
        };
        assert_eq!((sense.key, sense.asc), (6, 0x29));
        let news = poll_fn(|cx| session.poll_event(cx)).await;
        assert_eq!(news, SessionEvent::Attention(sense));
        session
            .control(Control::Identify, deadline())
            .await
            .expect("identify");
        exercise(&session, 3).await;
    });
}

/// The fence: a second login with the same ISID ends the first session, and at once.
#[test]
fn reinstatement_login_passes_security_stage() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let first = login(&initiator(&rt), tgt.portal()).await.expect("login");
        let second = login(&initiator(&rt), tgt.portal())
            .await
            .expect("login again");
        assert_eq!(
            first.facts().isid,
            second.facts().isid,
            "same_isid_on_reconnect"
        );
        let limit = rt.now() + Duration::from_secs(5);
        let lost = rt
            .by(limit, poll_fn(|cx| first.poll_event(cx)))
            .await
            .expect("EOF");
        assert!(
            matches!(lost, SessionEvent::Lost(PathCause::Connection(_))),
            "{lost:?}"
        );
        assert!(!first.is_alive() && second.is_alive());
        // Another ISID is another session.
        let other = port(initiator(&rt), tgt.portal(), 1, 1);
        let other = other
            .open(LoginAs::Own, limit)
            .await
            .expect("parallel session");
        second
            .submit(Command::TestUnitReady, IoCtx::foreground())
            .1
            .await
            .expect("alive");
        // A recorded ISID fences like our own.
        let who = LoginAs::Recorded {
            initiator_name: support::INITIATOR.to_owned(),
            isid: second.facts().isid,
        };
        let fence = port(initiator(&rt), tgt.portal(), 1, 2);
        fence.login(who, limit).await.expect("fence");
        let lost = rt
            .by(limit, poll_fn(|cx| second.poll_event(cx)))
            .await
            .expect("EOF");
        assert!(matches!(lost, SessionEvent::Lost(_)));
        assert!(other.is_alive());
    });
}

#[test]
fn target_ping_answered() {
    let tgt = Tgt::start();
    tgt.set("nop_interval", "1");
    tgt.set("nop_count", "2");
    run(|rt| async move {
        let session = login(&initiator(&rt), tgt.portal()).await.expect("login");
        // Two unanswered pings and a third tick would end the session.
        rt.sleep(Duration::from_millis(4500)).await;
        assert!(session.is_alive());
        exercise(&session, 4).await;
    });
}

#[test]
fn idle_session_is_kept_alive_and_acknowledged() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let mut initiator = initiator(&rt);
        initiator.ping_interval = Some(Duration::from_millis(200));
        initiator.ping_timeout = Duration::from_millis(500);
        let session = login(&initiator, tgt.portal()).await.expect("login");
        rt.sleep(Duration::from_millis(2500)).await;
        assert!(session.is_alive());
        exercise(&session, 5).await;
    });
}

#[test]
fn discovery_lists_the_target() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let deadline = rt.now() + Duration::from_secs(5);
        let list = discover(&initiator(&rt), tgt.portal(), deadline)
            .await
            .expect("discovery");
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].name, TARGET);
        assert_eq!(list[0].portals[0].address, tgt.portal().to_string());
        assert_eq!(list[0].portals[0].portal_group, 1);
    });
}

fn secret(text: &str) -> Secret {
    Secret::new(text).expect("secret")
}

#[test]
fn chap_one_way_and_mutual() {
    let tgt = Tgt::start();
    tgt.account("chunk1", "initiator-secret", &[]);
    tgt.account("sto1", "target-secret-12", &["--outgoing"]);
    run(|rt| async move {
        let attempt = |password: &str, target: Option<&str>, algorithms: &[Algorithm]| {
            let initiator = initiator(&rt);
            let target = target.map(|text| ("sto1".to_owned(), secret(text)));
            let chap = ChapConfig::new("chunk1", secret(password), target, algorithms);
            *initiator.chap.borrow_mut() = Some(chap.expect("config"));
            let portal = tgt.portal();
            async move {
                login(&initiator, portal)
                    .await
                    .map(|session| session.is_alive())
            }
        };
        let md5 = [Algorithm::Md5];
        assert_eq!(attempt("initiator-secret", None, &md5).await, Ok(true));
        assert_eq!(
            attempt("initiator-secret", Some("target-secret-12"), &md5).await,
            Ok(true)
        );
        let wrong = attempt("wrong", None, &md5).await;
        assert!(matches!(wrong, Err(LoginError::Refused(_))), "{wrong:?}");
        let impostor = attempt("initiator-secret", Some("another-secret"), &md5).await;
        assert!(
            matches!(impostor, Err(LoginError::Refused(_))),
            "{impostor:?}"
        );
        let none = login(&initiator(&rt), tgt.portal())
            .await
            .map(|session| session.is_alive());
        assert!(matches!(none, Err(LoginError::Refused(_))), "{none:?}");
    });
}

/// tgt takes the number of SHA-256 for SHA-1: with any offer that holds it, the login comes about
/// by a second attempt without it, one way and mutual.
#[test]
fn chap_tgt_seven_is_sha1_fallback() {
    use Algorithm::{Sha1, Sha256, Sha3_256};
    let tgt = Tgt::start();
    tgt.account("chunk1", "initiator-secret", &[]);
    tgt.account("sto1", "target-secret-12", &["--outgoing"]);
    run(|rt| async move {
        for offer in [&Algorithm::ALL[..], &[Sha256], &[Sha3_256, Sha1], &[]] {
            for target in [None, Some(("sto1".to_owned(), secret("target-secret-12")))] {
                let initiator = initiator(&rt);
                let chap = ChapConfig::new("chunk1", secret("initiator-secret"), target, offer);
                *initiator.chap.borrow_mut() = Some(chap.expect("two secrets"));
                let session = login(&initiator, tgt.portal()).await;
                let session = session.expect("login");
                exercise(&session, 8).await;
            }
        }
    });
}

#[test]
fn digests() {
    let tgt = Tgt::start();
    let portal = tgt.portal();
    let with = |rt: &Rt, wish| {
        let mut initiator = initiator(rt);
        initiator.offer.header_digest = wish;
        initiator.offer.data_digest = wish;
        initiator
    };
    run(|rt| async move {
        // list_answer_not_offered_is_protocol_error: tgt answers None to CRC32C alone.
        let refused = login(&with(&rt, DigestWish::Crc32c), portal).await.err();
        let Some(LoginError::Refused(text)) = refused else {
            panic!("{refused:?}")
        };
        assert!(text.contains("HeaderDigest"), "{text}");
    });
    tgt.set("HeaderDigest", "None,CRC32C");
    tgt.set("DataDigest", "None,CRC32C");
    run(|rt| async move {
        let session = login(&with(&rt, DigestWish::Crc32c), portal)
            .await
            .expect("login");
        assert_eq!(session.facts().header_digest, "crc32c");
        assert_eq!(session.facts().data_digest, "crc32c");
        exercise(&session, 6).await;
        let deadline = rt.now() + Duration::from_secs(5);
        session
            .control(Control::Ping { bytes: 4095 }, deadline)
            .await
            .expect("ping");
        session.logout(deadline).await;
    });
}

#[test]
fn unknown_target_is_refused_and_dead_portal_unreachable() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let deadline = rt.now() + Duration::from_secs(5);
        let config = iscsi_initiator::path::PortConfig {
            portal: tgt.portal(),
            source: None,
            target: "iqn.2024-12.tp2.b3:nothing".to_owned(),
            lun: 1,
            role: iscsi_initiator::isid::Role::Tool,
            shard: 0,
        };
        let unknown = iscsi_initiator::path::IscsiPort::new(initiator(&rt), config);
        let error = unknown
            .expect("port")
            .open(LoginAs::Own, deadline)
            .await
            .err();
        assert!(
            matches!(&error, Some(LoginError::Refused(text)) if text.contains("0203")),
            "{error:?}"
        );
        let dead = format!("127.0.0.1:{}", support::free_port())
            .parse()
            .expect("portal");
        let error = login(&initiator(&rt), dead).await.err();
        assert!(
            matches!(error, Some(LoginError::Unreachable(_))),
            "{error:?}"
        );
    });
}

#[test]
fn abort_ends_every_command_with_one_outcome() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let session = login(&initiator(&rt), tgt.portal()).await.expect("login");
        let pool = Pool::new(8 << 20);
        let pending: Vec<_> = (0..32u64)
            .map(|i| {
                let at = Sector(i * 64);
                let data = pattern(&pool, at, 32_768, i);
                let write = Command::Write {
                    at,
                    data,
                    want: Durability::Cache,
                };
                session.submit(write, IoCtx::foreground())
            })
            .collect();
        // Nothing ran since: not one byte is in the socket, and each can be taken back.
        assert!(session.withdraw(pending[3].0));
        session.abort(PathCause::Administrative("test"));
        for (i, (_, completion)) in pending.into_iter().enumerate() {
            let error = completion.await.expect_err("aborted");
            match (i, error) {
                (3, CommandError::Withdrawn) => {}
                (_, CommandError::Lost { applied, .. }) => assert_eq!(applied, Applied::No),
                (_, error) => panic!("{error:?}"),
            }
        }
        assert!(!session.is_alive());
        let (_, late) = session.submit(Command::TestUnitReady, IoCtx::foreground());
        assert!(matches!(
            late.await,
            Err(CommandError::Lost {
                applied: Applied::No,
                ..
            })
        ));
    });
}

#[test]
fn bench_modes_and_verify() {
    use iscsi_initiator::bench::{run_iscsi, BenchConfig, Mode};
    let tgt = Tgt::start();
    run(|rt| async move {
        let unit = iscsi_initiator::path::PortConfig {
            portal: tgt.portal(),
            source: None,
            target: TARGET.to_owned(),
            lun: 1,
            role: iscsi_initiator::isid::Role::Tool,
            shard: 0,
        };
        for mode in ["read", "write", "randread", "randwrite", "randrw", "verify"] {
            let config = BenchConfig {
                mode: Mode::from_name(mode).expect("mode"),
                block_bytes: 4096,
                iodepth: 16,
                runtime: Duration::from_secs(10),
                size_bytes: Some(2 << 20),
                offset_bytes: 1 << 20,
                span_bytes: Some(4 << 20),
                seed: 42,
                trace: true,
            };
            let deadline = rt.now() + Duration::from_secs(5);
            let report = run_iscsi(&initiator(&rt), &unit, 2, config, deadline)
                .await
                .expect("bench");
            assert_eq!((report.errors, report.verify_errors), (0, 0), "{mode}");
            assert!(
                report.ios >= 512 && report.trace.len() as u64 == report.ios,
                "{mode}"
            );
            assert!(report.lat_us.min > 0 && report.lat_us.p50 <= report.lat_us.max);
            assert_eq!(
                (report.bench, report.rw, report.sessions),
                ("iscsi", mode, 2)
            );
        }
    });
}

/// Two I_T nexuses: registrations, a reservation that keeps a stranger from writing, and the fence
/// by key that throws a registrant out.
#[test]
fn reservations_fence_by_key() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let limit = rt.now() + Duration::from_secs(10);
        let open = |shard| {
            let port = port(initiator(&rt), tgt.portal(), 1, shard);
            async move { port.open(LoginAs::Own, limit).await.expect("login") }
        };
        let (first, second) = (open(0).await, open(1).await);
        let pool = Pool::new(1 << 20);
        let put = |session: &Rc<IscsiSession>| {
            let command = Command::Write {
                at: Sector(0),
                data: pattern(&pool, Sector(0), 4096, 1),
                want: Durability::Cache,
            };
            session.submit(command, IoCtx::foreground()).1
        };
        let kind = ReserveKind::WriteExclusiveRegistrants;
        let register = |new| ReserveOut::RegisterAndIgnore {
            new,
            persist: false,
            all_ports: false,
        };
        reserve(&first, register(0xa)).await.expect("register");
        reserve(&first, ReserveOut::Reserve { own: 0xa, kind })
            .await
            .expect("reserve");
        let answer = ask(&first, ReserveIn::Reservation).await;
        let reservation = reserve::reservation(&answer).expect("an answer");
        let holder = reservation.holder.expect("a holder");
        assert_eq!((holder.key, holder.kind), (0xa, Some(kind)));

        // Who is not registered may not write; who is, may.
        let conflict = Err(CommandError::Status {
            status: 0x18,
            sense: None,
        });
        assert_eq!(put(&second).await.map(|_| ()), conflict);
        let first_key = ReserveOut::Register {
            own: 0,
            new: 0xb,
            persist: false,
            all_ports: false,
        };
        reserve(&second, first_key).await.expect("register");
        put(&second).await.expect("a registrant writes");
        let keys = reserve::keys(&ask(&second, ReserveIn::Keys).await).expect("an answer");
        assert!(keys.complete);
        assert_eq!(keys.keys.len(), 2);
        assert!(keys.keys.contains(&0xa) && keys.keys.contains(&0xb));
        let capabilities = ask(&second, ReserveIn::Capabilities).await;
        assert!(reserve::capabilities(&capabilities).is_some());

        let fence = Control::PreemptAndAbort {
            own: 0xa,
            victim: 0xb,
        };
        // tgt 1.0.85 has no PREEMPT AND ABORT: the refusal proves nothing and changes nothing.
        let refused = first.control(fence, limit).await;
        let text = "scsi status 0x02, sense 5/24/00".to_owned();
        assert_eq!(refused, Err(ControlError::Refused(text)));
        put(&second).await.expect("still registered");
        let preempt = ReserveOut::Preempt {
            own: 0xa,
            victim: 0xb,
            kind,
        };
        reserve(&first, preempt).await.expect("preempt");
        let keys = reserve::keys(&ask(&first, ReserveIn::Keys).await).expect("an answer");
        assert_eq!(keys.keys, [0xa]);
        // What is left of the victim: at most a unit attention, then conflicts.
        let mut refused = put(&second).await.map(|_| ());
        if matches!(refused, Err(CommandError::Status { status: 2, .. })) {
            refused = put(&second).await.map(|_| ());
        }
        assert_eq!(refused, conflict);
        let wrong = ReserveOut::Preempt {
            own: 0xbad,
            victim: 0xa,
            kind,
        };
        assert!(reserve(&second, wrong).await.is_err());
        reserve(&first, ReserveOut::Clear { own: 0xa })
            .await
            .expect("clear");
        let keys = reserve::keys(&ask(&first, ReserveIn::Keys).await).expect("an answer");
        assert!(keys.keys.is_empty() && keys.complete);
    });
}

async fn reserve(session: &IscsiSession, request: ReserveOut) -> CommandResult {
    let command = Command::ReserveOut(request);
    session.submit(command, IoCtx::metadata()).1.await
}

async fn ask(session: &IscsiSession, question: ReserveIn) -> Vec<u8> {
    let command = Command::ReserveIn(question);
    let answer = session.submit(command, IoCtx::metadata()).1.await;
    answer.expect("PERSISTENT RESERVE IN").into_data().to_vec()
}
