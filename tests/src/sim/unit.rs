//! The logical unit of a simulated target: SCSI commands on a [`FaultyDevice`].
//!
//! It answers what an initiator asks to identify it, and reads, writes, flushes and discards. What
//! has begun in here is *in the back end*: it takes effect whatever becomes of its session, and
//! LOGICAL UNIT RESET is answered when everything that had begun before is done (as measured on
//! tgt; of two resets under way only the later is ever answered).

use blockdev::sim::FaultyDevice;
use blockdev::{
    BlockDevice, Completion, Done, Durability, IoCtx, IoError, Kind, Op, Pool, Sector, SECTOR_BYTES,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Sense key, additional sense code and qualifier.
pub type Sense = (u8, u8, u8);

/// UNIT ATTENTION, power on or reset occurred.
pub const RESET_OCCURRED: Sense = (0x06, 0x29, 0x00);
const INVALID_OPCODE: Sense = (0x05, 0x20, 0x00);
const INVALID_FIELD: Sense = (0x05, 0x24, 0x00);
const OUT_OF_RANGE: Sense = (0x05, 0x21, 0x00);
const NO_UNIT: Sense = (0x05, 0x25, 0x00);
const UNREADABLE: Sense = (0x03, 0x11, 0x00);
const NO_SPACE: Sense = (0x07, 0x27, 0x07);

/// How a command ends.
pub enum Reply {
    /// GOOD, with data for the initiator.
    Good(Vec<u8>),
    /// CHECK CONDITION, and the sector it is about.
    Check(Sense, Option<u64>),
    /// BUSY.
    Busy,
    /// Nothing is ever said: the node has no power.
    Silence,
}

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct Unit {
    inner: Rc<Inner>,
}

struct Inner {
    device: FaultyDevice,
    pool: Pool,
    serial: String,
    /// Commands in the back end.
    running: RefCell<BTreeSet<u64>>,
    next: Cell<u64>,
    resets: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Unit {
    /// A unit on `device`, known by its serial number.
    pub fn new(device: FaultyDevice, serial: &str) -> Unit {
        let inner = Inner {
            device,
            pool: Pool::new(256 << 20),
            serial: serial.to_owned(),
            running: RefCell::default(),
            next: Cell::new(0),
            resets: Cell::new(0),
            waiting: RefCell::default(),
        };
        Unit {
            inner: Rc::new(inner),
        }
    }

    /// What it stores on.
    pub fn device(&self) -> &FaultyDevice {
        &self.inner.device
    }

    /// Executes a command. Whatever it begins in the back end is begun when this returns, not when
    /// the future is polled.
    pub fn execute(&self, lun: u64, cdb: &[u8; 16], data: &[u8]) -> Execution {
        if lun != 1 && !matches!(cdb[0], 0x12 | 0xa0) {
            return Execution::Done(Reply::Check(NO_UNIT, None));
        }
        let reply = match cdb[0] {
            0x00 => Reply::Good(Vec::new()),
            0x12 => self.inquiry(lun, cdb),
            0x1a => Reply::Good(cut(self.mode(4), u64::from(cdb[4]))),
            0x9e if cdb[1] & 0x1f == 0x10 => {
                Reply::Good(cut(self.capacity(), u64::from(number(cdb, 10))))
            }
            0xa0 => Reply::Good(vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
            0x88 | 0x8a | 0x91 | 0x42 | 0x93 => return self.begin(cdb, data),
            _ => Reply::Check(INVALID_OPCODE, None),
        };
        Execution::Done(reply)
    }

    fn begin(&self, cdb: &[u8; 16], data: &[u8]) -> Execution {
        let at = Sector(long(cdb, 2));
        let sectors = number(cdb, 10);
        let fua = cdb[1] & 0x08 != 0;
        let op = match cdb[0] {
            0x88 => Op::Read { at, sectors },
            0x8a if data.len() as u64 == u64::from(sectors) * SECTOR_BYTES => Op::Write {
                at,
                data: self.inner.pool.copy_now(data),
                want: if fua {
                    Durability::Fua
                } else {
                    Durability::Cache
                },
            },
            0x91 => Op::Flush,
            0x93 if data.iter().all(|&b| b == 0) => Op::WriteZeroes {
                at,
                sectors: u64::from(sectors),
            },
            0x42 if data.len() >= 24 => Op::Discard {
                at: Sector(long(data, 8)),
                sectors: u64::from(number(data, 16)),
            },
            _ => return Execution::Done(Reply::Check(INVALID_FIELD, None)),
        };
        let id = self.inner.next.replace(self.inner.next.get() + 1);
        self.inner.running.borrow_mut().insert(id);
        let completion = self.inner.device.submit(op, IoCtx::foreground());
        Execution::Running(id, completion)
    }

    /// The answer of a command.
    pub async fn reply(&self, execution: Execution) -> Reply {
        let (id, completion) = match execution {
            Execution::Done(reply) => return reply,
            Execution::Running(id, completion) => (id, completion),
        };
        let result = completion.await;
        self.inner.running.borrow_mut().remove(&id);
        let waiting = std::mem::take(&mut *self.inner.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
        match result {
            Ok(Done::Read(data, _)) => Reply::Good(data.to_vec()),
            Ok(_) => Reply::Good(Vec::new()),
            Err(IoError { kind, .. }) => match kind {
                Kind::Medium { first_bad } => Reply::Check(UNREADABLE, Some(first_bad.0)),
                Kind::NoSpace => Reply::Check(NO_SPACE, None),
                Kind::Again { .. } => Reply::Busy,
                Kind::Refused(_) => Reply::Check(OUT_OF_RANGE, None),
                _ => Reply::Silence,
            },
        }
    }

    /// Waits until everything that has begun is done; `false` if a later reset took over.
    pub async fn reset(&self) -> bool {
        let turn = self.inner.resets.get() + 1;
        self.inner.resets.set(turn);
        self.settled().await;
        self.inner.resets.get() == turn
    }

    /// Waits until everything that has begun is done.
    pub async fn settled(&self) {
        let mark = self.inner.next.get();
        poll_fn(|cx| {
            let first = self.inner.running.borrow().first().copied();
            if first.is_none_or(|id| id >= mark) {
                return Poll::Ready(());
            }
            self.inner.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn inquiry(&self, lun: u64, cdb: &[u8; 16]) -> Reply {
        let allocation = u64::from(u16::from_be_bytes([cdb[3], cdb[4]]));
        // LUN 0 is the target's controller, as on tgt; others are not there.
        let kind = match lun {
            1 => 0x00,
            0 => 0x0c,
            _ => 0x7f,
        };
        let page = |code: u8, body: &[u8]| {
            let mut out = vec![kind, code, 0, body.len() as u8];
            out.extend_from_slice(body);
            out
        };
        let serial = self.inner.serial.as_bytes();
        let data = match (cdb[1] & 1, cdb[2]) {
            (0, _) => {
                let mut out = vec![kind, 0, 5, 0x12, 31, 0, 0, 2];
                out.extend_from_slice(b"IET     VIRTUAL-DISK    0001");
                out
            }
            (_, 0x00) => page(0x00, &[0x00, 0x80, 0x83, 0xb2]),
            (_, 0x80) => page(0x80, serial),
            (_, 0x83) => {
                // NAA 6, IEEE registered extended: 16 bytes.
                let mut id = [0; 16];
                id[0] = 0x60;
                for (to, from) in id[1..].iter_mut().zip(serial) {
                    *to = *from;
                }
                let mut body = vec![0x01, 0x03, 0, 16];
                body.extend_from_slice(&id);
                page(0x83, &body)
            }
            (_, 0xb2) => page(0xb2, &[0, 0x80, 0x02, 0]),
            _ => return Reply::Check(INVALID_FIELD, None),
        };
        Reply::Good(cut(data, allocation))
    }

    fn mode(&self, header: usize) -> Vec<u8> {
        let write_cache = self.inner.device.geometry().write_cache;
        let mut out = vec![0; header];
        out[2] = 0x10; // DPOFUA
        out.extend_from_slice(&[0x08, 0x12, if write_cache { 0x04 } else { 0 }]);
        out.resize(header + 20, 0);
        out[0] = (out.len() - 1) as u8;
        out
    }

    fn capacity(&self) -> Vec<u8> {
        let geometry = self.inner.device.geometry();
        let mut out = (geometry.sectors - 1).to_be_bytes().to_vec();
        out.extend_from_slice(&(SECTOR_BYTES as u32).to_be_bytes());
        // 8 logical blocks in a physical one; LBPME if UNMAP works.
        let thin = if geometry.discard { 0x80 } else { 0 };
        out.extend_from_slice(&[0, 3, thin, 0]);
        out.resize(32, 0);
        out
    }
}

/// A command that was begun.
pub enum Execution {
    /// Answered without the back end.
    Done(Reply),
    /// In the back end.
    Running(u64, Completion),
}

fn cut(mut data: Vec<u8>, allocation: u64) -> Vec<u8> {
    data.truncate(allocation as usize);
    data
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let part = bytes.get(at..at + 8).and_then(|b| b.first_chunk());
    part.map_or(0, |b| u64::from_be_bytes(*b))
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let part = bytes.get(at..at + 4).and_then(|b| b.first_chunk());
    part.map_or(0, |b| u32::from_be_bytes(*b))
}
