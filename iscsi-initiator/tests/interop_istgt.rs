//! Against a real `istgt` on loopback. Needs root and the package `istgt`.

mod support;

use blockdev::path::{Command, CommandError, Control, LoginAs, PathSession};
use blockdev::reserve::{self, ReserveIn, ReserveOut};
use blockdev::{alua, IoCtx, Sector};
use iscsi_initiator::discover::discover;
use iscsi_initiator::login::keys::DigestWish;
use std::time::Duration;
use support::{exercise, initiator, port, run, Istgt, LUN_BYTES, TARGET};

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
            .control(Control::LunReset, limit())
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
