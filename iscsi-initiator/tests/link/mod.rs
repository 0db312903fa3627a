//! A network in memory under a virtual clock, and targets on it: what the whole initiator is tried
//! on without sockets.

// Each test binary uses a part of it.
#![allow(dead_code)]

use blockdev::sim::VirtualRt;
use blockdev::{LocalFuture, Pool, Rt};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::name::Portal;
use iscsi_initiator::net::{Link, Net};
use iscsi_initiator::path::{IscsiPort, PortConfig};
use iscsi_initiator::pdu::header::{
    AsyncMessage, DataIn, DataLen, Generic, LoginRequest, LoginResponse, LogoutResponse, NopIn,
    ScsiResponse,
};
use iscsi_initiator::pdu::{flag, opcode, padding};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// One direction of a connection.
#[derive(Default)]
pub(crate) struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    waker: RefCell<Option<Waker>>,
    is_closed: Cell<bool>,
}

impl Pipe {
    pub(crate) fn push(&self, bytes: &[u8]) {
        self.bytes.borrow_mut().extend(bytes);
        self.wake();
    }

    pub(crate) fn close(&self) {
        self.is_closed.set(true);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    pub(crate) fn poll_take(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<usize> {
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
    pub(crate) async fn take(&self, len: usize) -> Option<Vec<u8>> {
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
pub(crate) struct Wire {
    pub(crate) to_target: Pipe,
    pub(crate) to_initiator: Pipe,
    pub(crate) writes: RefCell<Vec<usize>>,
    /// How often the link was asked for bytes.
    pub(crate) polls: Cell<usize>,
    pub(crate) is_reset: Cell<bool>,
    /// StatSN of the next response.
    pub(crate) counted: Cell<u32>,
    /// Logout requests seen.
    pub(crate) logouts: Cell<u32>,
}

pub(crate) struct MemLink(Rc<Wire>);

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

pub(crate) type Serve = Rc<dyn Fn(Portal, Rc<Wire>) -> LocalFuture<()>>;

/// Connects everything to one scripted target.
pub(crate) struct MemNet {
    pub(crate) rt: Rt,
    serve: Serve,
    pub(crate) wires: Rc<RefCell<Vec<Rc<Wire>>>>,
}

impl Net for MemNet {
    fn connect(&self, to: Portal, _: Option<IpAddr>) -> LocalFuture<io::Result<Box<dyn Link>>> {
        let wire: Rc<Wire> = Rc::default();
        self.wires.borrow_mut().push(wire.clone());
        self.rt.spawn((self.serve)(to, wire.clone()));
        Box::pin(async move { Ok(Box::new(MemLink(wire)) as Box<dyn Link>) })
    }
}

pub(crate) struct World {
    pub(crate) world: VirtualRt,
    pub(crate) rt: Rt,
    pub(crate) port: IscsiPort,
    pub(crate) initiator: Initiator,
    pub(crate) wires: Rc<RefCell<Vec<Rc<Wire>>>>,
}

pub(crate) fn world<F>(serve: impl Fn(Rt, Portal, Rc<Wire>) -> F + 'static) -> World
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
pub(crate) async fn request(wire: &Wire) -> Option<(Generic, Vec<u8>)> {
    let header = wire.to_target.take(48).await?;
    let header = Generic::read_from_bytes(&header).expect("48 bytes");
    let len = header.data_len.get();
    let mut data = wire.to_target.take(len + padding(len)).await?;
    data.truncate(len);
    Some((header, data))
}

pub(crate) fn login_response(request: &Generic, stat_sn: u32) -> LoginResponse {
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

/// One SCSI command, and the answer to it as a test may change it.
pub(crate) struct Turn {
    /// Commands before it on this connection.
    pub(crate) nth: usize,
    pub(crate) cdb: [u8; 16],
    /// Of a request that is no command: ping, text.
    pub(crate) opcode: u8,
    pub(crate) status: u8,
    pub(crate) sense: Vec<u8>,
    pub(crate) data: Vec<u8>,
    /// No answer at all.
    pub(crate) is_dropped: bool,
    /// Sent after the answer.
    pub(crate) message: Option<AsyncMessage>,
}

impl Turn {
    /// CHECK CONDITION with fixed sense of this code (70 or 71), key and ASC/ASCQ.
    pub(crate) fn check(&mut self, code: u8, key: u8, asc: u8, ascq: u8) {
        self.status = 2;
        self.data.clear();
        self.sense = vec![0; 18];
        (self.sense[0], self.sense[2], self.sense[7]) = (code, key, 10);
        (self.sense[12], self.sense[13]) = (asc, ascq);
    }

    pub(crate) fn is_write(&self) -> bool {
        self.cdb[0] == 0x8a
    }
}

/// An async message; its StatSN is filled in when it is sent.
pub(crate) fn message(event: u8) -> AsyncMessage {
    AsyncMessage {
        opcode: opcode::ASYNC_MESSAGE,
        flags: flag::FINAL,
        task_tag: U32::new(u32::MAX),
        event,
        ..Default::default()
    }
}

/// A target with a disk of 1 MiB at any LUN that answers everything at once.
pub(crate) async fn disk(wire: Rc<Wire>) {
    disk_that(wire, |_| {}).await;
}

/// The same, whose answers `script` may change.
pub(crate) async fn disk_that(wire: Rc<Wire>, mut script: impl FnMut(&mut Turn)) {
    let mut stat_sn: u32 = 0;
    let mut nth = 0;
    loop {
        wire.counted.set(stat_sn);
        let Some((header, _)) = request(&wire).await else {
            break;
        };
        let opcode = header.opcode & 0x3f;
        if opcode == opcode::LOGIN_REQUEST {
            wire.to_initiator
                .push(login_response(&header, stat_sn).as_bytes());
            stat_sn += 1;
            continue;
        }
        if opcode == opcode::NOP_OUT {
            if header.task_tag.get() != u32::MAX {
                let pong = NopIn {
                    opcode: opcode::NOP_IN,
                    flags: flag::FINAL,
                    task_tag: header.task_tag,
                    transfer_tag: U32::new(u32::MAX),
                    stat_sn: U32::new(stat_sn),
                    ..Default::default()
                };
                stat_sn += 1;
                wire.to_initiator.push(pong.as_bytes());
            }
            continue;
        }
        if opcode == opcode::LOGOUT_REQUEST {
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
        let mut turn = Turn {
            nth,
            cdb: [header.max_cmd_sn.as_bytes(), &header.tail]
                .concat()
                .try_into()
                .expect("16 bytes"),
            opcode,
            status: 0,
            sense: Vec::new(),
            data: Vec::new(),
            is_dropped: false,
            message: None,
        };
        nth += 1;
        turn.data = match (turn.cdb[0], turn.cdb[1]) {
            (0x12, 0) => {
                let mut data = b"\0\0\x05\x02\x1f\0\0\x02ANTLER  TEST DISK       0001".to_vec();
                data.resize(36, b' ');
                data
            }
            (0x12, _) => page(turn.cdb[2]),
            (0x9e, _) => [&2047u64.to_be_bytes()[..], &512u32.to_be_bytes(), &[0; 20]].concat(),
            (0x1a, _) => vec![11, 0, 0x10, 0, 8, 10, 4, 0],
            (0x88, _) => vec![0x5a; header.transfer_tag.get() as usize],
            _ => Vec::new(),
        };
        script(&mut turn);
        let mut out = Vec::new();
        if !turn.is_dropped {
            answer(&header, &turn, &mut stat_sn, &mut out);
        }
        if let Some(message) = turn.message {
            let stat_sn_of_it = U32::new(stat_sn);
            stat_sn += 1;
            let message = AsyncMessage {
                stat_sn: stat_sn_of_it,
                ..message
            };
            out.extend(message.as_bytes());
        }
        wire.counted.set(stat_sn);
        wire.to_initiator.push(&out);
    }
    wire.to_initiator.close();
}

/// A page of vital product data.
fn page(page: u8) -> Vec<u8> {
    let payload: &[u8] = match page {
        0x00 => &[0x00, 0x80, 0x83],
        0x80 => b"memory",
        _ => &[1, 3, 0, 8, 0x50, 1, 2, 3, 4, 5, 6, 7],
    };
    let mut data = vec![0, page, 0, payload.len() as u8];
    data.extend(payload);
    data
}

fn answer(header: &Generic, turn: &Turn, stat_sn: &mut u32, out: &mut Vec<u8>) {
    let counters = (
        header.sn.get().wrapping_add(1),
        header.sn.get().wrapping_add(1024),
    );
    let expected = if header.flags & flag::READ != 0 {
        header.transfer_tag.get()
    } else {
        0
    };
    let residual = expected.saturating_sub(turn.data.len() as u32);
    let under = if residual > 0 { flag::UNDERFLOW } else { 0 };
    if turn.data.is_empty() {
        let mut data = Vec::new();
        if !turn.sense.is_empty() {
            data.extend((turn.sense.len() as u16).to_be_bytes());
            data.extend(&turn.sense);
        }
        let response = ScsiResponse {
            opcode: opcode::SCSI_RESPONSE,
            flags: flag::FINAL | under,
            status: turn.status,
            data_len: DataLen::new(data.len()),
            task_tag: header.task_tag,
            stat_sn: U32::new(*stat_sn),
            exp_cmd_sn: U32::new(counters.0),
            max_cmd_sn: U32::new(counters.1),
            residual: U32::new(residual),
            ..Default::default()
        };
        out.extend(response.as_bytes());
        out.extend(&data);
        out.resize(out.len() + padding(data.len()), 0);
    } else {
        let pdu = DataIn {
            opcode: opcode::DATA_IN,
            flags: flag::FINAL | flag::STATUS | under,
            data_len: DataLen::new(turn.data.len()),
            task_tag: header.task_tag,
            transfer_tag: U32::new(u32::MAX),
            stat_sn: U32::new(*stat_sn),
            exp_cmd_sn: U32::new(counters.0),
            max_cmd_sn: U32::new(counters.1),
            residual: U32::new(residual),
            ..Default::default()
        };
        out.extend(pdu.as_bytes());
        out.extend(&turn.data);
        out.resize(out.len() + padding(turn.data.len()), 0);
    }
    *stat_sn += 1;
}
