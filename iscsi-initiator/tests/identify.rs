//! Identification after a login and on demand, against a unit that answers as real ones may: what it
//! reports in between is not lost, a passing state is not taken for an identity, and a target that
//! wants to be left is left.

mod link;

use blockdev::path::{
    Command, Control, ControlError, LoginAs, LoginError, PathSession, Sense, SessionEvent,
};
use blockdev::{Durability, Instant, IoCtx, IoVec, Sector};
use link::{disk_that, message, world, Turn, World};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;
use zerocopy::byteorder::big_endian::U16;

const LIMIT: Duration = Duration::from_secs(5);
/// Commands of one identification of the disk in memory: INQUIRY, TEST UNIT READY, pages 00, 80 and
/// 83, READ CAPACITY, MODE SENSE.
const QUESTIONS: usize = 7;

fn scripted(script: impl Fn(&mut Turn) + 'static) -> World {
    let script = Rc::new(script);
    world(move |_, _, wire| {
        let script = script.clone();
        async move { disk_that(wire, |turn| script(turn)).await }
    })
}

/// Logs in and tells how it ended.
fn attempt(world: &World) -> Option<LoginError> {
    let open = world.port.open(LoginAs::Own, world.rt.now() + LIMIT);
    let error = world.world.block_on(async move { open.await.err() });
    world.world.run_ready();
    error
}

/// §11.9.1, event 1, while a path is identified at its login: no panic, a logout, and another try.
#[test]
fn logout_request_during_the_identification_of_a_login() {
    for at in 0..QUESTIONS - 1 {
        let world = scripted(move |turn| {
            if turn.nth == at {
                turn.message = Some(message(1));
            }
        });
        let error = attempt(&world);
        assert!(
            matches!(
                error,
                Some(LoginError::NotReady(_) | LoginError::Unreachable(_))
            ),
            "after question {at}: {error:?}"
        );
        let wires = world.wires.borrow();
        assert!(
            wires[0].logouts.get() == 1 && wires[0].is_reset.get(),
            "after question {at}"
        );
    }
}

/// The same while a path that serves is identified again.
#[test]
fn logout_request_during_an_identification_on_demand() {
    for at in 0..QUESTIONS - 1 {
        let world = scripted(move |turn| {
            if turn.nth == QUESTIONS + at {
                turn.message = Some(message(1));
            }
        });
        let open = world.port.open(LoginAs::Own, Instant::FAR);
        let rt = world.rt.clone();
        world.world.block_on(async move {
            let session = open.await.expect("login");
            let again = session.control(Control::Identify, rt.now() + LIMIT).await;
            assert!(matches!(again, Err(ControlError::Lost(_))), "{again:?}");
            let event = poll_fn(|cx| session.poll_event(cx)).await;
            assert_eq!(event, SessionEvent::LogoutRequested(Duration::ZERO));
        });
    }
}

/// §11.9.1, §7.5: a target that drops every session before it is identified is left alone as well.
#[test]
fn time2wait_of_a_drop_during_identification_is_kept() {
    let world = scripted(|turn| {
        turn.message = Some(iscsi_initiator::pdu::header::AsyncMessage {
            parameter_2: U16::new(3),
            ..message(2)
        });
    });
    assert!(attempt(&world).is_some());
    let hasty = world
        .port
        .open(LoginAs::Own, world.rt.now() + Duration::from_secs(2));
    let error = world.world.block_on(async move { hasty.await.err() });
    assert!(matches!(error, Some(LoginError::NotReady(_))), "{error:?}");
    assert_eq!(world.wires.borrow().len(), 1, "not even connected");
}

fn a_write() -> Command {
    Command::Write {
        at: Sector(0),
        data: IoVec::zeros(512),
        want: Durability::Cache,
    }
}

/// A unit attention says that the unit behind the LUN may be another one. Whoever holds back a
/// WRITE, identifies and judges by `identity` when that ends must not send it to that other unit.
#[test]
fn identity_is_known_before_the_identification_ends() {
    for ascq in [0x03, 0x0e] {
        let is_remapped = Rc::new(Cell::new(false));
        let writes = Rc::new(Cell::new(0));
        let (remapped, seen) = (is_remapped.clone(), writes.clone());
        let world = scripted(move |turn| {
            if turn.is_write() {
                seen.set(seen.get() + 1);
            }
            if turn.cdb[0] == 0x88 {
                remapped.set(true);
                turn.check(0x70, 6, 0x3f, ascq);
            } else if remapped.get() && turn.cdb[..3] == [0x12, 1, 0x83] {
                *turn.data.last_mut().expect("a designator") ^= 1;
            }
        });
        let open = world.port.open(LoginAs::Own, Instant::FAR);
        let rt = world.rt.clone();
        world.world.block_on(async move {
            let session = open.await.expect("login");
            let before = session.identity();
            let read = Command::Read {
                at: Sector(0),
                sectors: 1,
            };
            let _ = session.submit(read, IoCtx::foreground()).1.await;
            let event = poll_fn(|cx| session.poll_event(cx)).await;
            assert!(matches!(
                event,
                SessionEvent::Attention(Sense { asc: 0x3f, .. })
            ));
            session
                .control(Control::Identify, rt.now() + LIMIT)
                .await
                .expect("identified");
            // What a multipath layer does with what it holds back.
            if session.identity().wwid == before.wwid {
                let _ = session.submit(a_write(), IoCtx::foreground()).1.await;
            }
            let event = poll_fn(|cx| session.poll_event(cx)).await;
            let SessionEvent::Identity(found) = event else {
                panic!("{event:?}");
            };
            assert_eq!(found, session.identity());
            assert_ne!(found.wwid, before.wwid);
        });
        assert_eq!(
            writes.get(),
            0,
            "3f/{ascq:02x}: a WRITE went to another unit"
        );
    }
}

/// What a login meets in passing and does not answer itself: an earlier write that failed after all,
/// our reservations gone. What it has just read anew is no news.
#[test]
fn deferred_errors_and_lost_reservations_survive_the_login() {
    let met = [
        (0x71, 3, 0x0c, 0x00, true),
        (0x70, 6, 0x2a, 0x03, true),
        (0x70, 6, 0x2a, 0x04, true),
        (0x70, 6, 0x2a, 0x05, true),
        (0x70, 6, 0x29, 0x00, false),
        (0x70, 6, 0x2a, 0x01, false),
        (0x70, 6, 0x2a, 0x09, false),
        (0x70, 6, 0x3f, 0x0e, false),
    ];
    for (code, key, asc, ascq, is_news) in met {
        let world = scripted(move |turn| {
            if turn.nth == 1 {
                turn.check(code, key, asc, ascq);
            }
        });
        let open = world.port.open(LoginAs::Own, Instant::FAR);
        world.world.block_on(async move {
            let session = open.await.expect("login");
            session.abort(blockdev::PathCause::Administrative("end"));
            let event = poll_fn(|cx| session.poll_event(cx)).await;
            let told = match event {
                SessionEvent::Attention(sense) => {
                    assert_eq!(
                        (sense.deferred, sense.key, sense.asc, sense.ascq),
                        (code == 0x71, key, asc, ascq)
                    );
                    true
                }
                _ => false,
            };
            assert_eq!(told, is_news, "{key:x}/{asc:02x}/{ascq:02x}: {event:?}");
        });
    }
}

/// SAM-5 §5.3: BUSY and TASK SET FULL ask for another try; so do ABORTED COMMAND and a unit that is
/// becoming ready. None of it says anything about what the unit is.
#[test]
fn a_passing_state_is_no_identity() {
    for at in 0..QUESTIONS {
        for how in 0..5 {
            if at == 1 && how > 2 {
                continue; // TEST UNIT READY may say so of a unit that is identified all the same.
            }
            let left = Rc::new(Cell::new(0));
            let (begun, again) = (Rc::new(Cell::new(false)), left.clone());
            let started = begun.clone();
            let world = scripted(move |turn| {
                if turn.nth == at && !started.replace(true) {
                    again.set(2);
                }
                if again.get() == 0 {
                    return;
                }
                again.set(again.get() - 1);
                match how {
                    0 => (turn.status, turn.data) = (0x08, Vec::new()),
                    1 => (turn.status, turn.data) = (0x28, Vec::new()),
                    2 => (turn.status, turn.data) = (0x40, Vec::new()),
                    3 => turn.check(0x70, 2, 0x04, 0x01),
                    _ => turn.check(0x70, 0xb, 0x4b, 0),
                }
            });
            let open = world.port.open(LoginAs::Own, world.rt.now() + LIMIT);
            world.world.block_on(async move {
                let session = open.await;
                let identity = session
                    .unwrap_or_else(|e| panic!("{at} {how}: {e}"))
                    .identity();
                assert_eq!(
                    identity.wwid.as_deref(),
                    Some("35001020304050607"),
                    "{at} {how}"
                );
                assert_eq!(identity.serial, "memory", "{at} {how}");
                assert!(identity.geometry.write_cache, "{at} {how}");
            });
            assert!(begun.get() && left.get() == 0);
        }
    }
}

/// A unit that stays so is not ready; it is not misconfigured.
#[test]
fn a_unit_that_stays_busy_is_not_ready() {
    let world = scripted(|turn| {
        if turn.cdb[0] == 0x9e {
            (turn.status, turn.data) = (0x08, Vec::new());
        }
    });
    let begun = world.rt.now();
    let error = attempt(&world);
    assert!(matches!(error, Some(LoginError::NotReady(_))), "{error:?}");
    assert!(world.rt.now() - begun <= LIMIT);
}

/// §11.9.1, event 0: sense of another unit is no news of ours, whichever way its LUN is written.
#[test]
fn async_sense_of_another_unit_is_not_ours() {
    let luns = [
        ([0, 1, 0, 0, 0, 0, 0, 0], true),
        ([0x40, 1, 0, 0, 0, 0, 0, 0], true),
        ([0, 2, 0, 0, 0, 0, 0, 0], false),
        ([0; 8], false),
    ];
    for (lun, is_ours) in luns {
        let world = world(|_, _, wire| disk_that(wire, |_| {}));
        let open = world.port.open(LoginAs::Own, Instant::FAR);
        let wires = world.wires.clone();
        let events = Rc::new(RefCell::new(Vec::new()));
        let told = events.clone();
        world.world.block_on(async move {
            let session = open.await.expect("login");
            let wire = wires.borrow()[0].clone();
            let sense = [0x72, 6, 0x2a, 0x09, 0, 0, 0, 0];
            let data = [&[0, 8][..], &sense].concat();
            let pdu = iscsi_initiator::pdu::header::AsyncMessage {
                lun,
                data_len: iscsi_initiator::pdu::header::DataLen::new(data.len()),
                stat_sn: zerocopy::byteorder::big_endian::U32::new(wire.counted.get()),
                ..message(0)
            };
            let mut bytes = zerocopy::IntoBytes::as_bytes(&pdu).to_vec();
            bytes.extend(&data);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            wire.to_initiator.push(&bytes);
            wire.to_initiator.close();
            loop {
                let event = poll_fn(|cx| session.poll_event(cx)).await;
                let is_last = matches!(event, SessionEvent::Lost(_));
                told.borrow_mut().push(event);
                if is_last {
                    return;
                }
            }
        });
        assert_eq!(
            events.borrow().len(),
            1 + usize::from(is_ours),
            "{:?}",
            events.borrow()
        );
    }
}
