//! The stream decoder: finds PDUs in the bytes of a connection and puts payload where it belongs.
//!
//! A receive goes into a stage, a small buffer that headers and small payloads pass through (one
//! copy, out of a receive that carries many PDUs). The payload of a Data-In goes straight into the
//! pages of its task as soon as its header is known. While large reads are in flight the stage
//! offers little room, so that of each Data-In at most [`STAGE_BESIDE_LARGE`] bytes are copied.
//!
//! Order on the wire: BHS · header digest · data · padding · data digest. Responses carry no AHS.

use super::task::Tag;
use super::{Breach, Session};
use crate::digest::{digest, Crc};
use crate::pdu::{padding, Response, BHS_BYTES, DIGEST_BYTES};
use blockdev::{Instant, PathCause};
use smallvec::SmallVec;
use std::io::IoSliceMut;

/// Bytes of the stage.
const STAGE_BYTES: usize = 128 << 10;
/// Room the stage offers while large reads are in flight: a header with digests, the response
/// before it, and little of the payload.
const STAGE_BESIDE_LARGE: usize = 1024;
/// From this size on a read counts as large, in bytes: its payload must not be copied.
pub(super) const LARGE_READ_BYTES: u32 = 16 << 10;
/// Payload left of this many bytes is received straight into its pages; less goes by the stage.
const DIRECT_MIN_BYTES: usize = 2048;

/// Where the data segment of the PDU being received goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sink {
    /// The read buffer of a task, from this offset on.
    Task(Tag, usize),
    /// Kept beside the header.
    Control,
    /// Nowhere: for a task that is over.
    Discard,
}

#[derive(Debug)]
enum State {
    Header,
    Data {
        pdu: Response,
        sink: Sink,
        done: usize,
        len: usize,
        crc: Crc,
    },
    Trailer {
        pdu: Response,
        sink: Sink,
        len: usize,
        crc: Crc,
    },
}

#[derive(Debug)]
pub(super) struct Receiver {
    stage: Box<[u8]>,
    start: usize,
    end: usize,
    state: State,
    control: Vec<u8>,
    /// Bytes that the last `receive_space` offered in the pages of a task.
    direct: usize,
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
}

impl Receiver {
    pub(super) fn new() -> Receiver {
        Receiver {
            stage: vec![0; STAGE_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            state: State::Header,
            control: Vec::new(),
            direct: 0,
            header_digest: false,
            data_digest: false,
        }
    }

    /// A task ended: what is still to come of its data goes nowhere.
    pub(super) fn forget(&mut self, tag: Tag) {
        if let State::Data { sink, .. } | State::Trailer { sink, .. } = &mut self.state {
            if matches!(sink, Sink::Task(owner, _) if *owner == tag) {
                *sink = Sink::Discard;
            }
        }
    }

    /// The stream is over: nothing is still to come.
    pub(super) fn stop(&mut self) {
        self.state = State::Header;
        self.start = self.end;
    }

    /// Payload of the PDU being received that is still to come.
    pub(super) fn data_left(&self) -> usize {
        match &self.state {
            State::Data { len, done, .. } => len - done,
            _ => 0,
        }
    }

    /// Bytes without which the PDU being received is of no use; 0 between PDUs.
    pub(super) fn rest(&self) -> usize {
        let (State::Data { len, .. } | State::Trailer { len, .. }) = &self.state else {
            return 0;
        };
        let digest = if self.data_digest { DIGEST_BYTES } else { 0 };
        let staged = self.end - self.start;
        (self.data_left() + padding(*len) + digest).saturating_sub(staged)
    }

    fn staged(&self) -> &[u8] {
        &self.stage[self.start..self.end]
    }
}

impl Session {
    /// Where the next bytes of the connection go, in order; never empty. [`Session::received`]
    /// must be told how many came before anything else is asked.
    pub fn receive_space(&mut self) -> SmallVec<[IoSliceMut<'_>; 8]> {
        let mut space = SmallVec::new();
        let rx = &mut self.rx;
        rx.direct = 0;
        if let State::Data {
            sink: Sink::Task(tag, offset),
            done,
            len,
            ..
        } = &rx.state
        {
            if len - done >= DIRECT_MIN_BYTES {
                let task = self.tasks.get_mut(*tag).expect("a sink's task is alive");
                task.read.io_region(offset + done, len - done, &mut space);
                rx.direct = len - done;
            }
        }
        let room = if self.large_reads > 0 {
            STAGE_BESIDE_LARGE
        } else {
            STAGE_BYTES
        };
        let end = (rx.end + room).min(STAGE_BYTES);
        space.push(IoSliceMut::new(&mut rx.stage[rx.end..end]));
        space
    }

    /// `bytes` bytes came into the space offered last. 0 means that the target closed the stream.
    pub fn received(&mut self, now: Instant, bytes: usize) {
        if self.is_closed() {
            return;
        }
        if bytes == 0 {
            return self.close(PathCause::Connection("closed by the target".to_owned()));
        }
        self.last_heard = now;
        let direct = self.rx.direct.min(bytes);
        if direct > 0 {
            self.took_direct(direct);
        }
        self.rx.direct = 0;
        self.rx.end += bytes - direct;
        assert!(
            self.rx.end <= STAGE_BYTES,
            "more bytes received than offered"
        );
        if let Err(breach) = self.decode(now) {
            return self.breach(breach);
        }
        let rx = &mut self.rx;
        rx.stage.copy_within(rx.start..rx.end, 0);
        rx.end -= rx.start;
        rx.start = 0;
    }

    /// Takes `bytes` as if they had been received: for tests and fuzzers.
    pub fn handle_bytes(&mut self, now: Instant, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_closed() {
            let mut taken = 0;
            for mut part in self.receive_space() {
                let len = part.len().min(bytes.len());
                let (now, later) = bytes.split_at(len);
                part[..len].copy_from_slice(now);
                bytes = later;
                taken += len;
            }
            self.received(now, taken);
        }
    }

    fn took_direct(&mut self, bytes: usize) {
        let State::Data {
            sink: Sink::Task(tag, offset),
            done,
            crc,
            ..
        } = &mut self.rx.state
        else {
            unreachable!("direct space is offered for data of a task only");
        };
        if self.rx.data_digest {
            let task = self.tasks.get_mut(*tag).expect("a sink's task is alive");
            task.read
                .region(*offset + *done, bytes)
                .for_each(|part| crc.update(part));
        }
        *done += bytes;
    }

    /// Takes every complete step out of the stage.
    fn decode(&mut self, now: Instant) -> Result<(), Breach> {
        loop {
            let available = self.rx.end - self.rx.start;
            match std::mem::replace(&mut self.rx.state, State::Header) {
                State::Header => {
                    let digest_len = if self.rx.header_digest {
                        DIGEST_BYTES
                    } else {
                        0
                    };
                    if available < BHS_BYTES + digest_len {
                        return Ok(());
                    }
                    let (pdu, sink) = self.take_header()?;
                    self.rx.start += BHS_BYTES + digest_len;
                    let len = pdu.generic().data_len.get();
                    let crc = Crc::default();
                    self.rx.state = match len {
                        0 => State::Trailer {
                            pdu,
                            sink,
                            len,
                            crc,
                        },
                        _ => State::Data {
                            pdu,
                            sink,
                            done: 0,
                            len,
                            crc,
                        },
                    };
                }
                State::Data {
                    pdu,
                    sink,
                    done,
                    len,
                    mut crc,
                } => {
                    let part = available.min(len - done);
                    self.take_staged_data(sink, done, part, &mut crc);
                    let done = done + part;
                    if done < len {
                        self.rx.state = State::Data {
                            pdu,
                            sink,
                            done,
                            len,
                            crc,
                        };
                        return Ok(());
                    }
                    self.rx.state = State::Trailer {
                        pdu,
                        sink,
                        len,
                        crc,
                    };
                }
                State::Trailer {
                    pdu,
                    sink,
                    len,
                    mut crc,
                } => {
                    let with_digest = self.rx.data_digest && len > 0;
                    let pad = padding(len);
                    let need = pad + if with_digest { DIGEST_BYTES } else { 0 };
                    if available < need {
                        self.rx.state = State::Trailer {
                            pdu,
                            sink,
                            len,
                            crc,
                        };
                        return Ok(());
                    }
                    if with_digest {
                        let trailer = &self.rx.staged()[..need];
                        crc.update(&trailer[..pad]);
                        // At level 0 a lost data segment has no cure but a new session.
                        if crc.digest() != trailer[pad..] {
                            return Err(Breach::DataDigest);
                        }
                    }
                    self.rx.start += need;
                    let control = std::mem::take(&mut self.rx.control);
                    self.take_pdu(now, &pdu, sink, &control)?;
                    if self.is_closed() {
                        return Ok(());
                    }
                    self.rx.control = control;
                    self.rx.control.clear();
                }
            }
        }
    }

    fn take_header(&mut self) -> Result<(Response, Sink), Breach> {
        let staged = self.rx.staged();
        let bytes: &[u8; BHS_BYTES] = staged.first_chunk().expect("length was checked");
        if self.rx.header_digest && digest(bytes) != staged[BHS_BYTES..BHS_BYTES + DIGEST_BYTES] {
            return Err(Breach::HeaderDigest);
        }
        let pdu = Response::parse(bytes)?;
        let sink = self.route(&pdu)?;
        Ok((pdu, sink))
    }

    fn take_staged_data(&mut self, sink: Sink, done: usize, part: usize, crc: &mut Crc) {
        let rx = &mut self.rx;
        let bytes = &rx.stage[rx.start..rx.start + part];
        if rx.data_digest {
            crc.update(bytes);
        }
        match sink {
            Sink::Task(tag, offset) => {
                let task = self.tasks.get_mut(tag).expect("a sink's task is alive");
                let mut at = 0;
                for to in task.read.region(offset + done, part) {
                    to.copy_from_slice(&bytes[at..at + to.len()]);
                    at += to.len();
                }
            }
            Sink::Control => rx.control.extend_from_slice(bytes),
            Sink::Discard => {}
        }
        rx.start += part;
    }
}
