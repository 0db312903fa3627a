//! Against a real `istgt` on loopback. Needs root and the package `istgt`.

mod support;

use blockdev::path::{Command, CommandError, Control, LoginAs, PathSession};
use blockdev::path::{LoginError, SessionEvent};
use blockdev::reserve::{self, ReserveIn, ReserveOut};
use blockdev::{alua, IoCtx, Sector};
use blockdev::{Durability, PathCause, Pool};
use iscsi_initiator::commands::{Compared, Extent};
use iscsi_initiator::discover::discover;
use iscsi_initiator::login::chap::{Algorithm, ChapConfig, Secret};
use iscsi_initiator::login::keys::DigestWish;
use iscsi_initiator::session::{Function, Outcome};
use std::future::poll_fn;
use std::time::Duration;
use support::{exercise, initiator, pattern, port, run, Istgt, LUN_BYTES, TARGET};

#[test]
fn login_transfers_digests_and_discovery() {
    let istgt = Istgt::start();
    run(|rt| async move {
        let limit = || rt.now() + Duration::from_secs(10);
        let list = discover(&initiator(&rt), istgt.portal(), limit())
            .await
            .expect("discovery");
        assert_eq!(list[0].name, TARGET);
        for wish in [DigestWish::None, DigestWish::Crc32c] {
            let mut initiator = initiator(&rt);
            initiator.offer.header_digest = wish;
            initiator.offer.data_digest = wish;
            let port = port(initiator, istgt.portal(), 0, 0);
            let session = port.open(LoginAs::Own, limit()).await.expect("login");
            let wanted = if wish == DigestWish::None {
                "none"
            } else {
                "crc32c"
            };
            assert_eq!(session.facts().data_digest, wanted);
            assert_eq!(session.identity().geometry.bytes(), LUN_BYTES);
            exercise(&session, 11).await;
            let flush = session
                .submit(Command::SynchronizeCache, IoCtx::foreground())
                .1;
            flush.await.expect("flush");
            session
                .control(Control::Ping { bytes: 4096 }, limit())
                .await
                .expect("ping");
            // check_condition_without_sense_survives: a read beyond the end.
            let beyond = Command::Read {
                at: Sector(LUN_BYTES / 512 - 8),
                sectors: 8,
            };
            session
                .submit(beyond, IoCtx::foreground())
                .1
                .await
                .expect("last sectors");
            let raw = iscsi_initiator::scsi::cdb::read_16(LUN_BYTES / 512, 8, false);
            let outcome = session.client().read_command([0; 8], raw, 4096).await;
            let iscsi_initiator::session::Outcome::Scsi(answer) = outcome else {
                panic!("{outcome:?}");
            };
            assert_eq!(answer.status, 2);
            assert!(session.is_alive());
            session.logout(limit()).await;
        }
    });
}

#[test]
fn lun_reset_is_answered() {
    let istgt = Istgt::start();
    run(|rt| async move {
        let limit = || rt.now() + Duration::from_secs(10);
        let port = port(initiator(&rt), istgt.portal(), 0, 0);
        let session = port.open(LoginAs::Own, limit()).await.expect("login");
        session
            .control(
                Control::LunReset {
                    ends_commands: true,
                },
                limit(),
            )
            .await
            .expect("LUN RESET");
        let again = session
            .submit(Command::TestUnitReady, IoCtx::foreground())
            .1
            .await;
        assert!(
            matches!(again, Ok(_) | Err(CommandError::Status { status: 2, .. })),
            "{again:?}"
        );
    });
}

/// istgt knows PREEMPT AND ABORT, READ FULL STATUS and target port groups, which tgt does not.
#[test]
fn preempt_and_abort_full_status_and_port_groups() {
    let istgt = Istgt::start();
    run(|rt| async move {
        let limit = rt.now() + Duration::from_secs(10);
        let open = |shard| {
            let port = port(initiator(&rt), istgt.portal(), 0, shard);
            async move { port.open(LoginAs::Own, limit).await.expect("login") }
        };
        let (first, second) = (open(0).await, open(1).await);
        for (session, new) in [(&first, 0xa), (&second, 0xb)] {
            let request = ReserveOut::RegisterAndIgnore {
                new,
                persist: false,
                all_ports: false,
            };
            let command = Command::ReserveOut(request);
            let done = session.submit(command, IoCtx::metadata()).1.await;
            done.expect("register");
        }
        let ask = |command| {
            let answer = first.submit(command, IoCtx::metadata()).1;
            async move { answer.await.expect("an answer").into_data().to_vec() }
        };
        let full = ask(Command::ReserveIn(ReserveIn::FullStatus)).await;
        let full = reserve::full_status(&full).expect("an answer");
        assert_eq!(full.registrants.len(), 2, "{full:?}");
        assert!(full
            .registrants
            .iter()
            .all(|one| one.initiator.starts_with(support::INITIATOR)));
        let fence = Control::PreemptAndAbort {
            own: 0xa,
            victim: 0xb,
        };
        first.control(fence, limit).await.expect("fence");
        let keys = ask(Command::ReserveIn(ReserveIn::Keys)).await;
        let keys = reserve::keys(&keys).expect("an answer");
        assert_eq!((&keys.keys[..], keys.complete), (&[0xa][..], true));

        let groups = ask(Command::ReportTargetPortGroups).await;
        let groups = alua::port_groups(&groups).expect("an answer");
        assert!(groups.complete);
        let own = first.identity().target_port_group.expect("VPD 83 names it");
        let group = groups.group(own).expect("our group");
        assert!(group.state.serves(), "{group:?}");
    });
}

/// CHAP one way and mutual: the algorithm that istgt has is picked from any offer.
#[test]
fn chap_one_way_and_mutual() {
    let auth =
        "[AuthGroup1]\n Auth \"chunk1\" \"initiator-secret\" \"sto1\" \"target-secret-12\"\n";
    let istgt = Istgt::configured(auth, |config| {
        let open = "InitiatorGroup1\n AuthMethod None";
        assert!(config.contains(open));
        config.replace(
            open,
            "InitiatorGroup1\n AuthMethod CHAP\n AuthGroup AuthGroup1",
        )
    });
    let secret = |text: &str| Secret::new(text).expect("a secret");
    run(|rt| async move {
        let attempt = |own: &str, target: Option<&str>, offer: &[Algorithm]| {
            let initiator = initiator(&rt);
            let target = target.map(|text| ("sto1".to_owned(), secret(text)));
            let chap = ChapConfig::new("chunk1", secret(own), target, offer);
            *initiator.chap.borrow_mut() = Some(chap.expect("two secrets"));
            let port = port(initiator, istgt.portal(), 0, 0);
            let limit = rt.now() + Duration::from_secs(10);
            async move { port.open(LoginAs::Own, limit).await }
        };
        for offer in [&[Algorithm::Md5][..], &Algorithm::ALL] {
            for target in [None, Some("target-secret-12")] {
                let session = attempt("initiator-secret", target, offer).await;
                let session = session.expect("login");
                exercise(&session, 13).await;
                session.logout(rt.now() + Duration::from_secs(5)).await;
            }
        }
        for (own, target) in [
            ("wrong secret", None),
            ("initiator-secret", Some("impostor")),
        ] {
            let refused = attempt(own, target, &[]).await.err();
            assert!(
                matches!(refused, Some(LoginError::Refused(_))),
                "{refused:?}"
            );
        }
    });
}

/// §6.3.5: the same name and ISID once more end the session before; istgt takes its time for it.
#[test]
fn reinstatement_ends_the_session_before() {
    let istgt = Istgt::start();
    run(|rt| async move {
        let limit = || rt.now() + Duration::from_secs(20);
        let port = port(initiator(&rt), istgt.portal(), 0, 0);
        let first = port.open(LoginAs::Own, limit()).await.expect("login");
        let second = port.open(LoginAs::Own, limit()).await.expect("again");
        let lost = rt.by(limit(), poll_fn(|cx| first.poll_event(cx))).await;
        let lost = lost.expect("EOF");
        assert!(
            matches!(lost, SessionEvent::Lost(PathCause::Connection(_))),
            "{lost:?}"
        );
        assert!(!first.is_alive() && second.is_alive());
        exercise(&second, 15).await;
    });
}

/// Every function has an answer; what one of them proves is another question.
#[test]
fn task_management_functions() {
    let istgt = Istgt::start();
    run(|rt| async move {
        let port = port(initiator(&rt), istgt.portal(), 0, 0);
        let limit = rt.now() + Duration::from_secs(10);
        let session = port.open(LoginAs::Own, limit).await.expect("login");
        let client = session.client().clone();
        for function in [
            Function::AbortTaskSet,
            Function::ClearTaskSet,
            Function::LunReset,
            Function::TargetWarmReset,
        ] {
            let outcome = client.manage(function, [0; 8], None).await;
            assert_eq!(outcome, Outcome::Tmf(0), "{function:?}");
        }
        assert!(session.is_alive());
        // This one takes the connection with it, before its answer or after.
        let outcome = client.manage(Function::TargetColdReset, [0; 8], None).await;
        assert!(
            matches!(outcome, Outcome::Tmf(0) | Outcome::Lost { .. }),
            "{outcome:?}"
        );
        let lost = rt.by(limit, poll_fn(|cx| session.poll_event(cx))).await;
        assert!(matches!(lost, Ok(SessionEvent::Lost(_))), "{lost:?}");
    });
}

/// Commands that istgt knows and tgt does not, and a few that a path does not need.
#[test]
fn compare_and_write_and_typed_commands() {
    let istgt = Istgt::start();
    run(|rt| async move {
        let port = port(initiator(&rt), istgt.portal(), 0, 0);
        let limit = rt.now() + Duration::from_secs(10);
        let session = port.open(LoginAs::Own, limit).await.expect("login");
        let unit = session.commands();
        let pool = Pool::new(1 << 20);
        let block = session.identity().geometry.logical_block_bytes;
        let at = |lba, blocks| Extent {
            lba,
            blocks,
            block_bytes: block,
        };
        let data = |seed| pattern(&pool, Sector(0), block as usize, seed);
        unit.write(at(7, 1), data(1), Durability::Fua, true)
            .await
            .expect("write");
        let (old, new) = (data(1), data(2));
        let swap = unit.compare_and_write(at(7, 1), &old, &new, Durability::Cache);
        assert_eq!(swap.await, Ok(Compared::Written));
        let swap = unit.compare_and_write(at(7, 1), &old, &new, Durability::Cache);
        assert!(matches!(swap.await, Ok(Compared::Differs { .. })));
        let got = unit
            .read(at(7, 1), Durability::Cache, true)
            .await
            .expect("read");
        assert!(got == data(2));
        unit.write_same(at(8, 16), data(4), false)
            .await
            .expect("WRITE SAME");
        let got = unit
            .read(at(23, 1), Durability::Cache, false)
            .await
            .expect("read");
        assert!(got == data(4));
        unit.synchronize_cache(0, 0).await.expect("flush");
        assert_eq!(unit.request_sense(false).await, Ok(None));
        let pages = unit.pages().await.expect("VPD 00");
        assert!(
            pages.contains(&0x83) && !pages.contains(&0xb2),
            "{pages:02x?}"
        );
        unit.serial_number().await.expect("VPD 80");
        unit.designators().await.expect("VPD 83");
        assert!(!unit.luns().await.expect("list").is_empty());
        unit.caching().await.expect("page 08");
        assert!(session.is_alive());
    });
}
