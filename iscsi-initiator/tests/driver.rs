//! The driver on a network in memory, under a virtual clock: deadlines against peers that trickle,
//! stay silent or log in for ever; redirects; what leaves in one write; what a drop resets.

use blockdev::path::{
    Command, CommandError, LoginAs, LoginError, PathPort, PathSession, Sent, SessionEvent,
};
use blockdev::sim::VirtualRt;
use blockdev::{Instant, IoCtx, LocalFuture, PathCause, Pool, Rt, Sector};
use iscsi_initiator::establish::{Destination, Initiator};
use iscsi_initiator::isid::Role;
use iscsi_initiator::name::Portal;
use iscsi_initiator::net::{Link, Net};
use iscsi_initiator::path::{IscsiPort, PortConfig};
use iscsi_initiator::pdu::header::{
    AsyncMessage, DataIn, Generic, LoginRequest, LoginResponse, LogoutResponse, ScsiResponse,
};
use iscsi_initiator::pdu::{flag, opcode, padding};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    waker: RefCell<Option<Waker>>,
    is_closed: Cell<bool>,
}

impl Pipe {
    fn push(&self, bytes: &[u8]) {
        self.bytes.borrow_mut().extend(bytes);
        self.wake();
    }

    fn close(&self) {
        self.is_closed.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn poll_take(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<usize> {
        let mut bytes = self.bytes.borrow_mut();
        if bytes.is_empty() && !self.is_closed.get() {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let len = bytes.len().min(into.len());
        for (to, byte) in into.iter_mut().zip(bytes.drain(..len)) {
            *to = byte;
        }
        Poll::Ready(len)
    }

    /// Exactly `len` bytes; `None` at the end.
    async fn take(&self, len: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; len];
        let mut have = 0;
        while have < len {
            let got = poll_fn(|cx| self.poll_take(cx, &mut out[have..])).await;
            if got == 0 {
                return None;
            }
            have += got;
        }
        Some(out)
    }
}

/// A connection seen from the target, and what the link did.
#[derive(Default)]
struct Wire {
    to_target: Pipe,
    to_initiator: Pipe,
    writes: RefCell<Vec<usize>>,
    /// How often the link was asked for bytes.
    polls: Cell<usize>,
    is_reset: Cell<bool>,
    /// StatSN of the next response.
    counted: Cell<u32>,
    /// Logout requests seen.
    logouts: Cell<u32>,
}

struct MemLink(Rc<Wire>);

impl Link for MemLink {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.polls.set(self.0.polls.get() + 1);
        self.0.to_initiator.poll_take(cx, &mut bufs[0]).map(Ok)
    }

    fn poll_write(&mut self, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
        self.0.to_target.push(&bytes);
        self.0.writes.borrow_mut().push(bytes.len());
        Poll::Ready(Ok(bytes.len()))
    }
}

impl Drop for MemLink {
    fn drop(&mut self) {
        self.0.is_reset.set(true);
        self.0.to_target.close();
    }
}

type Serve = Rc<dyn Fn(Portal, Rc<Wire>) -> LocalFuture<()>>;

/// Connects everything to one scripted target.
struct MemNet {
    rt: Rt,
    serve: Serve,
    wires: Rc<RefCell<Vec<Rc<Wire>>>>,
}

impl Net for MemNet {
    fn connect(&self, to: Portal, _: Option<IpAddr>) -> LocalFuture<io::Result<Box<dyn Link>>> {
        let wire: Rc<Wire> = Rc::default();
        self.wires.borrow_mut().push(wire.clone());
        self.rt.spawn((self.serve)(to, wire.clone()));
        Box::pin(async move { Ok(Box::new(MemLink(wire)) as Box<dyn Link>) })
    }
}

struct World {
    world: VirtualRt,
    rt: Rt,
    port: IscsiPort,
    initiator: Initiator,
    wires: Rc<RefCell<Vec<Rc<Wire>>>>,
}

fn world<F>(serve: impl Fn(Rt, Portal, Rc<Wire>) -> F + 'static) -> World
where
    F: std::future::Future<Output = ()> + 'static,
{
    let world = VirtualRt::new(7);
    let rt = world.rt();
    let wires: Rc<RefCell<Vec<Rc<Wire>>>> = Rc::default();
    let for_target = rt.clone();
    let serve: Serve = Rc::new(move |to, wire| Box::pin(serve(for_target.clone(), to, wire)));
    let net = MemNet {
        rt: rt.clone(),
        serve,
        wires: wires.clone(),
    };
    let name = "iqn.2024-12.tp2.b3:a";
    let initiator = Initiator::new(rt.clone(), Rc::new(net), Pool::new(16 << 20), name);
    let config = PortConfig {
        portal: "10.3.1.1".parse().expect("portal"),
        source: None,
        target: "iqn.2024-12.tp2.b3:t".to_owned(),
        lun: 1,
        role: Role::Serve,
        shard: 0,
    };
    let port = IscsiPort::new(initiator.clone(), config).expect("flat LUN");
    World {
        world,
        rt,
        port,
        initiator,
        wires,
    }
}

/// A request: its header and data.
async fn request(wire: &Wire) -> Option<(Generic, Vec<u8>)> {
    let header = wire.to_target.take(48).await?;
    let header = Generic::read_from_bytes(&header).expect("48 bytes");
    let len = header.data_len.get();
    let mut data = wire.to_target.take(len + padding(len)).await?;
    data.truncate(len);
    Some((header, data))
}

fn login_response(request: &Generic, stat_sn: u32) -> LoginResponse {
    let login: LoginRequest = LoginRequest::read_from_bytes(request.as_bytes()).expect("48 bytes");
    let is_final = login.flags & 3 == 3;
    LoginResponse {
        opcode: opcode::LOGIN_RESPONSE,
        flags: login.flags,
        isid: login.isid,
        tsih: U16::new(is_final as u16),
        task_tag: login.task_tag,
        stat_sn: U32::new(stat_sn),
        exp_cmd_sn: login.cmd_sn,
        max_cmd_sn: U32::new(login.cmd_sn.get().wrapping_add(63)),
        ..Default::default()
    }
}

/// A target with a disk of 1 MiB at any LUN that answers everything at once.
async fn disk(wire: Rc<Wire>) {
    let mut stat_sn = 0;
    loop {
        wire.counted.set(stat_sn);
        let Some((header, _)) = request(&wire).await else {
            break;
        };
        if header.opcode & 0x3f == opcode::LOGIN_REQUEST {
            wire.to_initiator
                .push(login_response(&header, stat_sn).as_bytes());
            stat_sn += 1;
            continue;
        }
        if header.opcode & 0x3f == opcode::NOP_OUT && header.task_tag.get() == u32::MAX {
            continue; // An acknowledgement.
        }
        if header.opcode & 0x3f == opcode::LOGOUT_REQUEST {
            let response = LogoutResponse {
                opcode: opcode::LOGOUT_RESPONSE,
                flags: flag::FINAL,
                task_tag: header.task_tag,
                stat_sn: U32::new(stat_sn),
                ..Default::default()
            };
            wire.logouts.set(wire.logouts.get() + 1);
            wire.to_initiator.push(response.as_bytes());
            break;
        }
        let cdb = [header.max_cmd_sn.as_bytes(), &header.tail].concat();
        let data: Vec<u8> = match cdb[0] {
            0x12 if cdb[1] == 0 => {
                let mut data = b"\0\0\x05\x02\x1f\0\0\x02ANTLER  TEST DISK       0001".to_vec();
                data.resize(36, b' ');
                data
            }
            0x12 => vec![0, cdb[2], 0, 1, 0],
            0x9e => [&2047u64.to_be_bytes()[..], &512u32.to_be_bytes(), &[0; 20]].concat(),
            0x1a => vec![11, 0, 0x10, 0, 8, 10, 4, 0],
            0x88 => vec![0x5a; header.transfer_tag.get() as usize],
            _ => Vec::new(),
        };
        let counters = (
            header.sn.get().wrapping_add(1),
            header.sn.get().wrapping_add(64),
        );
        let residual = header.transfer_tag.get().saturating_sub(data.len() as u32);
        let under = if residual > 0 { flag::UNDERFLOW } else { 0 };
        let mut out = Vec::new();
        if data.is_empty() {
            let response = ScsiResponse {
                opcode: opcode::SCSI_RESPONSE,
                flags: flag::FINAL | under,
                task_tag: header.task_tag,
                stat_sn: U32::new(stat_sn),
                exp_cmd_sn: U32::new(counters.0),
                max_cmd_sn: U32::new(counters.1),
                residual: U32::new(residual),
                ..Default::default()
            };
            out.extend(response.as_bytes());
        } else {
            let pdu = DataIn {
                opcode: opcode::DATA_IN,
                flags: flag::FINAL | flag::STATUS | under,
                data_len: iscsi_initiator::pdu::header::DataLen::new(data.len()),
                task_tag: header.task_tag,
                transfer_tag: U32::new(u32::MAX),
                stat_sn: U32::new(stat_sn),
                exp_cmd_sn: U32::new(counters.0),
                max_cmd_sn: U32::new(counters.1),
                residual: U32::new(residual),
                ..Default::default()
            };
            out.extend(pdu.as_bytes());
            out.extend(&data);
            out.resize(out.len() + padding(data.len()), 0);
        }
        stat_sn += 1;
        wire.to_initiator.push(&out);
    }
    wire.to_initiator.close();
}

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
        opcode: opcode::ASYNC_MESSAGE,
        flags: flag::FINAL,
        task_tag: U32::new(u32::MAX),
        stat_sn: U32::new(wire.counted.get()),
        ..Default::default()
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
