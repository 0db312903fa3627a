//! Against a real `tgtd` on loopback, beside the data path: what is negotiated, task management, and
//! commands that no path needs. Needs root and the package `tgt`.

mod support;

use blockdev::path::{Command, CommandError, Control, ControlError, LoginAs, PathSession, Sent};
use blockdev::{Durability, IoCtx, Pool, Sector};
use iscsi_initiator::commands::Extent;
use iscsi_initiator::login::keys::Offer;
use iscsi_initiator::name::Portal;
use iscsi_initiator::session::{Function, Outcome};
use std::time::Duration;
use support::{exercise, initiator, login, pattern, port, run, Tgt};

const LUN: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];

/// §13: level 0 and one connection are what is left of a target that could do more; bursts are the
/// smaller, the pause the longer of both wishes.
#[test]
fn negotiates_down_to_level_0_and_one_connection() {
    let tgt = Tgt::start();
    for (key, value) in [
        ("ErrorRecoveryLevel", "2"),
        ("MaxConnections", "4"),
        ("DefaultTime2Wait", "10"),
        ("DefaultTime2Retain", "60"),
        ("MaxBurstLength", "16384"),
        ("FirstBurstLength", "8192"),
        ("InitialR2T", "No"),
        ("MaxOutstandingR2T", "4"),
    ] {
        tgt.set(key, value);
    }
    run(|rt| async move {
        let session = login(&initiator(&rt), tgt.portal()).await.expect("login");
        let params = session.client().with_session(|session| *session.params());
        assert_eq!((params.max_burst, params.first_burst), (16_384, 8192));
        assert_eq!((params.time2wait, params.time2retain), (10, 0));
        assert_eq!(params.max_outstanding_r2t, 4);
        assert!(!params.initial_r2t && params.immediate_data);
        exercise(&session, 21).await;
        // Our own wishes are heard as well.
        let mut initiator = initiator(&rt);
        initiator.offer = Offer {
            max_recv_data_segment: 512,
            max_burst: 4096,
            first_burst: 512,
            initial_r2t: true,
            ..Offer::default()
        };
        let port = port(initiator, tgt.portal(), 1, 1);
        let session = port.open(LoginAs::Own, rt.now() + Duration::from_secs(5));
        let session = session.await.expect("login");
        let params = session.client().with_session(|session| *session.params());
        assert_eq!((params.max_burst, params.first_burst), (4096, 512));
        exercise(&session, 22).await;
    });
}

/// §11.5, §11.6: what tgt can do is done, what it cannot is refused, and neither costs the session.
#[test]
fn task_management_functions() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let session = login(&initiator(&rt), tgt.portal()).await.expect("login");
        let client = session.client().clone();
        for (function, lun, answer) in [
            (Function::AbortTaskSet, LUN, 0),
            (Function::LunReset, LUN, 0),
            (Function::ClearTaskSet, LUN, 5),
            (Function::TargetWarmReset, [0; 8], 5),
            (Function::TargetColdReset, [0; 8], 5),
        ] {
            let outcome = client.manage(function, lun, None).await;
            assert_eq!(outcome, Outcome::Tmf(answer), "{function:?}");
        }
        let unit = session.commands();
        assert!(
            unit.test_unit_ready().await.is_err(),
            "the reset's attention"
        );
        unit.test_unit_ready().await.expect("ready");
        exercise(&session, 24).await;
        assert!(session.is_alive());
    });
}

/// §11.5.1: ABORT TASK names a READ that is on its way. tgt may have answered it before, which it then
/// says; either way the READ ends once, and the session goes on.
#[test]
fn abort_task_of_a_read_under_way() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let session = login(&initiator(&rt), tgt.portal()).await.expect("login");
        let limit = || rt.now() + Duration::from_secs(5);
        let read = || {
            let command = Command::Read {
                at: Sector(0),
                sectors: 2048,
            };
            session.submit(command, IoCtx::foreground())
        };
        for _ in 0..16 {
            let (ticket, done) = read();
            let (_, other) = read();
            while session.sent(ticket) == Sent::Not {
                rt.sleep(Duration::from_micros(10)).await;
            }
            let aborted = session.control(Control::AbortTask(ticket), limit()).await;
            assert!(
                matches!(aborted, Ok(()) | Err(ControlError::Refused(_))),
                "{aborted:?}"
            );
            match done.await {
                Ok(data) => assert_eq!(data.into_data().len(), 1 << 20),
                Err(CommandError::Status { status: 0x40, .. }) => {}
                Err(error) => panic!("{error}"),
            }
            other.await.expect("another task is not touched");
        }
        exercise(&session, 25).await;
        assert!(session.is_alive());
    });
}

/// §11.13.5, status class 1: tgt sends the login to another portal, where the session is then.
#[test]
fn a_redirect_is_followed_and_shown() {
    for reason in ["Temporary", "Permanent"] {
        let (from, to) = (Tgt::start(), Tgt::start());
        // Another address: tgt takes a redirect to its own, whatever the port, for none.
        let wanted = Portal {
            address: "127.0.0.2".parse().expect("address"),
            ..to.portal()
        };
        let listen = format!("portal={wanted}");
        to.admin(&["--op", "new", "--mode", "portal", "--param", &listen]);
        from.set("RedirectAddress", &wanted.address.to_string());
        from.set("RedirectPort", &wanted.port.to_string());
        from.set("RedirectReason", reason);
        run(|rt| async move {
            let session = login(&initiator(&rt), from.portal()).await.expect("login");
            assert_eq!(session.portal(), wanted, "{reason}");
            exercise(&session, 26).await;
            drop(to);
        });
    }
}

/// Commands that no path needs, and those that tgt does not know: refused with sense that came with
/// the status (autosense), by which they are told apart.
#[test]
fn typed_commands_and_autosense_used() {
    let tgt = Tgt::start();
    run(|rt| async move {
        let session = login(&initiator(&rt), tgt.portal()).await.expect("login");
        let unit = session.commands();
        assert_eq!(unit.request_sense(false).await, Ok(None));
        let inquiry = unit.inquiry().await.expect("inquiry");
        assert_eq!((&*inquiry.vendor, inquiry.device_type), ("IET", 0));
        let pages = unit.pages().await.expect("VPD 00");
        assert!([0x00, 0x80, 0x83, 0xb0]
            .iter()
            .all(|page| pages.contains(page)));
        assert_eq!(unit.serial_number().await.as_deref(), Ok("sto1"));
        assert!(unit.designators().await.expect("VPD 83").wwid.is_some());
        unit.block_limits().await.expect("VPD B0");
        assert_eq!(
            unit.caching().await.expect("page 08").write_cache,
            Some(true)
        );
        assert_eq!(
            unit.luns().await.expect("list").len(),
            2,
            "with the controller"
        );
        let capacity = unit.capacity().await.expect("capacity");
        assert_eq!(capacity.blocks * 512, support::LUN_BYTES);

        let pool = Pool::new(1 << 20);
        let at = |lba, blocks| Extent {
            lba,
            blocks,
            block_bytes: 512,
        };
        for (seed, short) in [(1, true), (2, false)] {
            for want in [Durability::Cache, Durability::Fua] {
                let data = pattern(&pool, Sector(40), 8192, seed);
                unit.write(at(40, 16), data.clone(), want, short)
                    .await
                    .expect("write");
                let got = unit.read(at(40, 16), want, short).await.expect("read");
                assert!(got == data);
            }
        }
        let block = pattern(&pool, Sector(0), 512, 3);
        unit.write_same(at(40, 8), block.clone(), false)
            .await
            .expect("WRITE SAME");
        let got = unit
            .read(at(47, 1), Durability::Cache, false)
            .await
            .expect("read");
        assert!(got == block);
        unit.synchronize_cache(40, 16).await.expect("a range");

        let swap = unit.compare_and_write(at(40, 1), &block, &block, Durability::Cache);
        for refused in [swap.await.map(drop), unit.port_groups().await.map(drop)] {
            let Err(CommandError::Status {
                status: 2,
                sense: Some(sense),
            }) = refused
            else {
                panic!("{refused:?}");
            };
            assert_eq!(sense.key, 5, "ILLEGAL REQUEST");
        }
        assert!(session.is_alive());
    });
}
