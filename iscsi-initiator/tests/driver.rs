//! The driver on a network in memory, under a virtual clock: deadlines against peers that trickle,
//! stay silent or log in for ever; redirects; what leaves in one write; what a drop resets.

mod link;

use blockdev::path::{
    Command, CommandError, LoginAs, LoginError, PathPort, PathSession, Sent, SessionEvent,
};
use blockdev::{Instant, IoCtx, PathCause, Sector};
use iscsi_initiator::establish::Destination;
use iscsi_initiator::pdu::header::{AsyncMessage, LoginResponse};
use iscsi_initiator::pdu::padding;
use link::{disk, login_response, message, request, world, Wire, World};
use std::future::poll_fn;
use std::time::Duration;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::IntoBytes;

const LIMIT: Duration = Duration::from_secs(5);

/// Logs in and tells how it ended, and when.
fn attempt(world: &World) -> (Option<LoginError>, Duration) {
    let begun = world.rt.now();
    let open = world.port.open(LoginAs::Own, begun + LIMIT);
    let error = world.world.block_on(async move { open.await.err() });
    world.world.run_ready();
    (error, world.world.now() - begun)
}

fn ends_at_the_deadline(world: &World) {
    let (error, took) = attempt(world);
    assert!(
        matches!(error, Some(LoginError::Unreachable(_))),
        "{error:?}"
    );
    assert_eq!(took, LIMIT);
    assert!(
        world.wires.borrow().iter().all(|wire| wire.is_reset.get()),
        "connection reset"
    );
}

#[test]
fn silent_peer_is_given_up_at_the_deadline() {
    ends_at_the_deadline(&world(|_, _, wire| async move {
        while request(&wire).await.is_some() {}
    }));
}

#[test]
fn trickling_peer_is_given_up_at_the_deadline() {
    ends_at_the_deadline(&world(|rt, _, wire| async move {
        let (header, _) = request(&wire).await.expect("login");
        for byte in login_response(&header, 0).as_bytes().iter().cycle() {
            wire.to_initiator.push(&[*byte]);
            rt.sleep(Duration::from_millis(150)).await;
            if wire.is_reset.get() {
                return;
            }
        }
    }));
}

#[test]
fn identification_shares_the_deadline() {
    ends_at_the_deadline(&world(|_, _, wire| async move {
        for stat_sn in 0..2 {
            let (header, _) = request(&wire).await.expect("login");
            wire.to_initiator
                .push(login_response(&header, stat_sn).as_bytes());
        }
        while request(&wire).await.is_some() {}
    }));
}

#[test]
fn login_without_end_is_a_protocol_error() {
    let world = world(|_, _, wire| async move {
        let mut stat_sn = 0;
        while let Some((header, _)) = request(&wire).await {
            let again = LoginResponse {
                flags: 0,
                ..login_response(&header, stat_sn)
            };
            wire.to_initiator.push(again.as_bytes());
            stat_sn += 1;
        }
    });
    let (error, _) = attempt(&world);
    assert!(matches!(error, Some(LoginError::Protocol(_))), "{error:?}");
}

#[test]
fn end_of_stream_during_login() {
    let world = world(|_, _, wire| async move { wire.to_initiator.close() });
    let (error, took) = attempt(&world);
    assert!(
        matches!(error, Some(LoginError::Unreachable(_))),
        "{error:?}"
    );
    assert_eq!(took, Duration::ZERO);
}

fn redirecting(class_from: &'static str, to: &'static str) -> World {
    world(move |_, portal, wire| async move {
        if portal.to_string() != class_from {
            return disk(wire).await;
        }
        let (header, _) = request(&wire).await.expect("login");
        let address = format!("TargetAddress={to}\0");
        let response = LoginResponse {
            status_class: 1,
            status_detail: 2,
            data_len: iscsi_initiator::pdu::header::DataLen::new(address.len()),
            ..login_response(&header, 0)
        };
        wire.to_initiator.push(response.as_bytes());
        wire.to_initiator.push(address.as_bytes());
        wire.to_initiator.push(&vec![0; padding(address.len())]);
    })
}

#[test]
fn redirect_without_auth_accepted() {
    let world = redirecting("10.3.1.1:3260", "10.3.1.9:13260");
    let to = Destination {
        portal: "10.3.1.1".parse().expect("portal"),
        source: None,
        target: Some("iqn.2024-12.tp2.b3:t".to_owned()),
        isid: world.port.isid(),
    };
    let initiator = world.initiator.clone();
    let portal = world.world.block_on(async move {
        initiator
            .establish(&to, Instant::FAR)
            .await
            .expect("session")
            .portal
    });
    assert_eq!(portal.to_string(), "10.3.1.9:13260");
}

/// A path shows where it was led, for the configuration may be stale.
#[test]
fn redirect_is_shown_by_the_session() {
    let world = redirecting("10.3.1.1:3260", "10.3.1.9:13260");
    let open = world.port.open(LoginAs::Own, Instant::FAR);
    let portal = world
        .world
        .block_on(async move { open.await.expect("login").portal() });
    assert_eq!(portal.to_string(), "10.3.1.9:13260");
}

#[test]
fn redirect_loop_bounded() {
    let world = redirecting("10.3.1.1:3260", "10.3.1.1:3260");
    let (error, _) = attempt(&world);
    assert!(matches!(error, Some(LoginError::Refused(_))), "{error:?}");
    assert_eq!(world.wires.borrow().len(), 4);
}

#[test]
fn commands_of_one_turn_leave_in_one_write() {
    let world = world(|_, _, wire| disk(wire));
    let open = world.port.open(LoginAs::Own, Instant::FAR);
    let wires = world.wires.clone();
    world.world.block_on(async move {
        let session = open.await.expect("login");
        assert_eq!(session.identity().vendor, "ANTLER");
        let before = wires.borrow()[0].writes.borrow().len();
        let reads: Vec<_> = (0..16)
            .map(|i| {
                let read = Command::Read {
                    at: Sector(i * 8),
                    sectors: 8,
                };
                session.submit(read, IoCtx::foreground())
            })
            .collect();
        assert_eq!(session.sent(reads[0].0), Sent::Not);
        for (ticket, done) in reads {
            let data = done.await.expect("read").into_data();
            assert!(data.len() == 4096 && data.segments().flatten().all(|&byte| byte == 0x5a));
            assert_eq!(session.sent(ticket), Sent::Answered);
        }
        assert_eq!(wires.borrow()[0].writes.borrow()[before..], [16 * 48]);
        assert!(!wires.borrow()[0].is_reset.get());
        session.abort(PathCause::Administrative("test"));
        assert!(
            wires.borrow()[0].is_reset.get(),
            "reset before abort returns"
        );
        let lost = poll_fn(|cx| session.poll_event(cx)).await;
        assert_eq!(lost, SessionEvent::Lost(PathCause::Administrative("test")));
    });
}

/// One command at a time is written by who submits it, and each answer costs one turn: one read
/// that brings it, one that finds no more. Commands that come together still leave together.
#[test]
fn commands_that_come_singly_leave_at_once() {
    let world = world(|_, _, wire| disk(wire));
    let open = world.port.open(LoginAs::Own, Instant::FAR);
    let wires = world.wires.clone();
    world.world.block_on(async move {
        let session = open.await.expect("login");
        let wire = wires.borrow()[0].clone();
        let submit = || {
            let read = Command::Read {
                at: Sector(0),
                sectors: 8,
            };
            session.submit(read, IoCtx::foreground())
        };
        submit().1.await.expect("read");
        wire.writes.take();
        let polls = wire.polls.get();
        for _ in 0..10 {
            let (ticket, done) = submit();
            assert_eq!(wire.writes.take(), [48], "written before `submit` returns");
            assert!(matches!(session.sent(ticket), Sent::Wholly(_)));
            done.await.expect("read");
        }
        assert_eq!(wire.polls.get() - polls, 2 * 10);
        for writes in [vec![48, 48], vec![96]] {
            let pair = [submit(), submit()];
            for (_, done) in pair {
                done.await.expect("read");
            }
            assert_eq!(wire.writes.take(), writes);
        }
        submit().1.await.expect("read");
        submit();
        assert_eq!(wire.writes.take(), [48, 48], "singly again");
    });
}

#[test]
fn dropping_the_session_resets_the_connection() {
    let world = world(|_, _, wire| disk(wire));
    let open = world.port.login(LoginAs::Own, Instant::FAR);
    world
        .world
        .block_on(async move { drop(open.await.expect("login")) });
    assert!(world.wires.borrow()[0].is_reset.get());
}

/// On an idle connection to [`disk`], which counts it from then on.
fn async_message(wire: &Wire) -> AsyncMessage {
    AsyncMessage {
        stat_sn: U32::new(wire.counted.get()),
        ..message(0)
    }
}

/// §11.9.1, event 1: from the moment it is read commands are given back unsent, and the logout goes
/// through, whether somebody above asks for it or, at the last moment, nobody does.
#[test]
fn no_new_commands_after_a_logout_request() {
    for (seconds, is_asked) in [(0, true), (3, true), (0, false), (3, false)] {
        let world = world(|_, _, wire| disk(wire));
        let open = world.port.open(LoginAs::Own, Instant::FAR);
        let (rt, wires) = (world.rt.clone(), world.wires.clone());
        world.world.block_on(async move {
            let session = open.await.expect("login");
            let wire = wires.borrow()[0].clone();
            let message = AsyncMessage {
                event: 1,
                parameter_3: U16::new(seconds),
                ..async_message(&wire)
            };
            wire.to_initiator.push(message.as_bytes());
            let within = Duration::from_secs(seconds.into());
            let wanted = poll_fn(|cx| session.poll_event(cx)).await;
            assert_eq!(wanted, SessionEvent::LogoutRequested(within));
            assert!(session.is_alive() && !session.takes_commands());
            let (_, late) = session.submit(Command::TestUnitReady, IoCtx::foreground());
            assert_eq!(late.await.map(drop), Err(CommandError::Withdrawn));
            let asked_at = rt.now();
            if is_asked {
                session.logout(asked_at + LIMIT).await;
                assert_eq!(rt.now(), asked_at, "nothing was to be drained");
            } else {
                let lost = poll_fn(|cx| session.poll_event(cx)).await;
                assert!(matches!(lost, SessionEvent::Lost(_)), "{lost:?}");
                assert!(rt.now() <= asked_at + within);
            }
            assert!(!session.is_alive());
            assert_eq!(wire.logouts.get(), 1);
        });
    }
}

/// §11.9.1, §7.5: a target that dropped us is left alone for the time it asked for, also when
/// nobody took the news before the session was given up.
#[test]
fn async_drop_waits_time2wait() {
    for takes_news in [true, false] {
        drop_waits(takes_news);
    }
}

fn drop_waits(takes_news: bool) {
    const WAIT: Duration = Duration::from_secs(3);
    const SERVED: Duration = Duration::from_secs(1);
    let world = world(|rt, _, wire| async move {
        let dropped = wire.clone();
        rt.clone().spawn(Box::pin(async move {
            rt.sleep(SERVED).await;
            let message = AsyncMessage {
                event: 3,
                parameter_2: U16::new(WAIT.as_secs() as u16),
                ..async_message(&dropped)
            };
            dropped.to_initiator.push(message.as_bytes());
        }));
        disk(wire).await;
    });
    let rt = world.rt.clone();
    let first = world.port.open(LoginAs::Own, Instant::FAR);
    let port = world.port;
    world.world.block_on(async move {
        let session = first.await.expect("login");
        let dropped_at = rt.now() + SERVED;
        if takes_news {
            let lost = poll_fn(|cx| session.poll_event(cx)).await;
            assert!(
                matches!(lost, SessionEvent::Lost(PathCause::Connection(_))),
                "{lost:?}"
            );
        } else {
            rt.sleep(SERVED + Duration::from_millis(500)).await;
            assert!(!session.is_alive());
            drop(session);
        }
        let asked_at = rt.now();
        let hasty = port
            .open(LoginAs::Own, dropped_at + Duration::from_secs(1))
            .await;
        assert!(matches!(hasty.err(), Some(LoginError::NotReady(_))));
        assert_eq!(rt.now(), asked_at, "refused at once, not at the deadline");
        let again = port
            .open(LoginAs::Own, dropped_at + Duration::from_secs(30))
            .await;
        assert!(again.is_ok());
        assert_eq!(rt.now(), dropped_at + WAIT);
    });
}
