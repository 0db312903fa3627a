//! One connection on the data port: framed reading into pool pages, vectored writing.
//!
//! Generic over the transport, poll-based, with all partial state kept inside, so that whoever
//! drives it may wait for several things at once and drop the waiting at any point.
//!
//! Receiving: headers and small packets come through an 8 KiB buffer. The payload of READ_DATA and
//! WRITE_DATA goes into pool pages at `offset % 4096` of its page; what the buffer already holds
//! of it (less than 8 KiB) is copied once, the rest is read straight into place. After a payload
//! of 16 KiB or more the next header is read alone, so that streams of large packets are not
//! copied at all. An empty pool makes the reader wait, which is the back-pressure of the node.
//!
//! Sending: [`Wire::queue_head`] and [`Wire::queue_data`] append, [`Wire::poll_flush`] writes all
//! that is queued in as few vectored writes as it takes.

use crate::proto::client::{ReadDataHead, WriteDataHead};
use crate::proto::field::{exactly, Field, Malformed};
use crate::proto::frame::{Header, DATA_PORT_PAYLOAD_MAX, HEADER_BYTES};
use crate::proto::kind;
use blockdev::{Buf, BufMut, IoVec, LocalFuture, Pool, PAGE_BYTES};
use chunk_api::BLOCK_BYTES;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{ready, Context, Poll};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Receive buffer for headers and small packets, in bytes.
const RECEIVE_BYTES: usize = 8 << 10;
/// After a payload of this many bytes the next header is read alone.
const LARGE_PAYLOAD_BYTES: usize = 16 << 10;
/// Slices in one vectored write.
const SLICES_MAX: usize = 64;

/// What a byte stream to a peer must be.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Transport for T {}

/// Why a connection ends.
#[derive(Debug, Error)]
pub enum WireError {
    /// The peer broke the protocol.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The socket failed, or was closed inside a frame.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A packet of this type has no place here.
    #[error("packet {0} has no place here")]
    Unexpected(u32),
    /// Nothing came for the time given, or nothing could be sent.
    #[error("silent for {0} s")]
    Silent(u32),
}

/// A packet. Data packets have their bytes apart from their head; others are all head.
#[derive(Debug)]
pub struct Frame {
    /// See [`crate::proto::kind`].
    pub kind: u32,
    /// The payload, or the head of a data packet.
    pub head: SmallVec<[u8; 32]>,
    /// The bytes of a data packet. Empty, and the stream at an unknown place, if the packet names
    /// more than a block: the session ends then.
    pub data: IoVec,
}

enum Receiving {
    /// Between frames, or inside a header.
    Header,
    /// A packet without data, or a data packet's head, is being gathered.
    Head {
        header: Header,
        want: usize,
        head: SmallVec<[u8; 32]>,
    },
    /// Waits for pages.
    Pages {
        kind: u32,
        head: SmallVec<[u8; 32]>,
        gap: usize,
        size: usize,
        wait: LocalFuture<BufMut>,
    },
    /// Data flows into pages.
    Data {
        kind: u32,
        head: SmallVec<[u8; 32]>,
        buf: BufMut,
        filled: usize,
    },
}

enum Segment {
    Head(SmallVec<[u8; 64]>),
    Data(Buf),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Head(bytes) => bytes,
            Segment::Data(buf) => buf,
        }
    }
}

/// See the module.
pub struct Wire<S> {
    io: S,
    pool: Pool,
    buffer: Box<[u8; RECEIVE_BYTES]>,
    start: usize,
    end: usize,
    receiving: Receiving,
    after_large: bool,
    out: VecDeque<Segment>,
    out_done: usize,
    out_bytes: usize,
    received: u64,
    sent: u64,
}

impl<S: Transport> Wire<S> {
    /// Wraps a transport whose payloads go into pages of `pool`.
    pub fn new(io: S, pool: Pool) -> Wire<S> {
        Wire {
            io,
            pool,
            buffer: Box::new([0; RECEIVE_BYTES]),
            start: 0,
            end: 0,
            receiving: Receiving::Header,
            after_large: false,
            out: VecDeque::new(),
            out_done: 0,
            out_bytes: 0,
            received: 0,
            sent: 0,
        }
    }

    /// Bytes received so far; a change is a sign of life.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes queued and not yet sent.
    pub fn queued(&self) -> usize {
        self.out_bytes
    }

    /// Whether it waits for the pool rather than for the peer.
    pub fn waits_for_pages(&self) -> bool {
        matches!(self.receiving, Receiving::Pages { .. })
    }

    /// The next packet; `None` when the peer closed between two packets.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, WireError>> {
        loop {
            match &mut self.receiving {
                Receiving::Header => {
                    if self.end - self.start < HEADER_BYTES {
                        let at_boundary = self.start == self.end;
                        if ready!(self.poll_fill(cx))? == 0 {
                            let eof = io::ErrorKind::UnexpectedEof;
                            return Poll::Ready(if at_boundary {
                                Ok(None)
                            } else {
                                Err(io::Error::from(eof).into())
                            });
                        }
                        continue;
                    }
                    let mut bytes = [0; HEADER_BYTES];
                    bytes.copy_from_slice(&self.buffer[self.start..self.start + HEADER_BYTES]);
                    self.start += HEADER_BYTES;
                    let header = Header::parse(bytes, DATA_PORT_PAYLOAD_MAX)?;
                    let want = head_bytes(header)?;
                    self.after_large &= want < header.len as usize;
                    let head = SmallVec::new();
                    self.receiving = Receiving::Head { header, want, head };
                }
                Receiving::Head { header, want, head } => {
                    let take = (*want - head.len()).min(self.end - self.start);
                    head.extend_from_slice(&self.buffer[self.start..self.start + take]);
                    self.start += take;
                    if head.len() < *want {
                        if ready!(self.poll_fill(cx))? == 0 {
                            return Poll::Ready(Err(cut_short()));
                        }
                        continue;
                    }
                    let (kind, head) = (header.kind, std::mem::take(head));
                    let size = header.len as usize - *want;
                    let Some((gap, declared)) = placement(kind, &head) else {
                        self.receiving = Receiving::Header;
                        return Poll::Ready(Ok(Some(Frame {
                            kind,
                            head,
                            data: IoVec::new(),
                        })));
                    };
                    if declared as usize != size {
                        let (len, what) = (head.len() + size, "length and size differ");
                        return Poll::Ready(Err(Malformed { kind, len, what }.into()));
                    }
                    if size == 0 || size > BLOCK_BYTES as usize {
                        self.receiving = Receiving::Header;
                        return Poll::Ready(Ok(Some(Frame {
                            kind,
                            head,
                            data: IoVec::new(),
                        })));
                    }
                    self.receiving = match self.pool.try_alloc(gap + size) {
                        Some(buf) => Receiving::Data {
                            kind,
                            head,
                            buf: placed(buf, gap, size),
                            filled: 0,
                        },
                        None => {
                            let pool = self.pool.clone();
                            let wait = Box::pin(async move { pool.alloc(gap + size).await });
                            Receiving::Pages {
                                kind,
                                head,
                                gap,
                                size,
                                wait,
                            }
                        }
                    };
                }
                Receiving::Pages {
                    kind,
                    head,
                    gap,
                    size,
                    wait,
                } => {
                    let buf = ready!(wait.as_mut().poll(cx));
                    let (kind, head) = (*kind, std::mem::take(head));
                    let buf = placed(buf, *gap, *size);
                    self.receiving = Receiving::Data {
                        kind,
                        head,
                        buf,
                        filled: 0,
                    };
                }
                Receiving::Data {
                    kind,
                    head,
                    buf,
                    filled,
                } => {
                    let take = (buf.len() - *filled).min(self.end - self.start);
                    buf[*filled..*filled + take]
                        .copy_from_slice(&self.buffer[self.start..self.start + take]);
                    self.start += take;
                    *filled += take;
                    if *filled < buf.len() {
                        let mut into = ReadBuf::new(&mut buf[*filled..]);
                        ready!(Pin::new(&mut self.io).poll_read(cx, &mut into))?;
                        let got = into.filled().len();
                        if got == 0 {
                            return Poll::Ready(Err(cut_short()));
                        }
                        *filled += got;
                        self.received += got as u64;
                        continue;
                    }
                    let (kind, head) = (*kind, std::mem::take(head));
                    self.after_large = buf.len() >= LARGE_PAYLOAD_BYTES;
                    let Receiving::Data { buf, .. } =
                        std::mem::replace(&mut self.receiving, Receiving::Header)
                    else {
                        unreachable!("matched above")
                    };
                    let data = IoVec::from(buf.freeze());
                    return Poll::Ready(Ok(Some(Frame { kind, head, data })));
                }
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let until = match self.after_large {
            true => (self.end + HEADER_BYTES + WriteDataHead::LEN).min(RECEIVE_BYTES),
            false => RECEIVE_BYTES,
        };
        let mut into = ReadBuf::new(&mut self.buffer[self.end..until]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut into))?;
        let got = into.filled().len();
        self.end += got;
        self.received += got as u64;
        Poll::Ready(Ok(got))
    }

    /// Queues a whole small packet, or the head of a data packet.
    pub fn queue_head(&mut self, bytes: &[u8]) {
        self.out_bytes += bytes.len();
        match self.out.back_mut() {
            Some(Segment::Head(last)) if last.len() + bytes.len() <= 512 => {
                last.extend_from_slice(bytes);
            }
            _ => self
                .out
                .push_back(Segment::Head(SmallVec::from_slice(bytes))),
        }
    }

    /// Queues payload, shared.
    pub fn queue_data(&mut self, data: &IoVec) {
        self.out_bytes += data.len();
        self.out
            .extend(data.bufs().iter().map(|buf| Segment::Data(buf.clone())));
    }

    /// Writes what is queued; ready when nothing is left.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = {
                let mut slices: SmallVec<[IoSlice<'_>; SLICES_MAX]> = SmallVec::new();
                for (i, segment) in self.out.iter().take(SLICES_MAX).enumerate() {
                    let skip = if i == 0 { self.out_done } else { 0 };
                    slices.push(IoSlice::new(&segment.bytes()[skip..]));
                }
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.take_written(written);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn take_written(&mut self, written: usize) {
        self.sent += written as u64;
        self.out_bytes -= written;
        self.out_done += written;
        while let Some(first) = self.out.front() {
            let len = first.bytes().len();
            if self.out_done < len {
                break;
            }
            self.out_done -= len;
            self.out.pop_front();
        }
        assert!(
            !self.out.is_empty() || self.out_done == 0,
            "more was written than was queued"
        );
    }

    /// Says that nothing more will be sent.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Reads and throws away; the number of bytes, 0 at the end of the stream.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.start = 0;
        self.end = 0;
        self.after_large = false;
        self.poll_fill(cx)
    }
}

fn cut_short() -> WireError {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed inside a packet").into()
}

/// Bytes of a packet before its data: all of them unless it is a data packet.
fn head_bytes(header: Header) -> Result<usize, Malformed> {
    let want = match header.kind {
        kind::READ_DATA => ReadDataHead::LEN,
        kind::WRITE_DATA => WriteDataHead::LEN,
        _ => return Ok(header.len as usize),
    };
    if (header.len as usize) < want {
        let (kind, len) = (header.kind, header.len as usize);
        return Err(Malformed {
            kind,
            len,
            what: "shorter than its head",
        });
    }
    Ok(want)
}

/// Where in its page a data packet's first byte belongs, and its size; `None` for other packets.
fn placement(kind: u32, head: &[u8]) -> Option<(usize, u32)> {
    let (offset, size) = match kind {
        kind::READ_DATA => {
            let head = exactly::<ReadDataHead>(kind, head).ok()?;
            (head.offset, head.size)
        }
        kind::WRITE_DATA => {
            let head = exactly::<WriteDataHead>(kind, head).ok()?;
            (head.offset, head.size)
        }
        _ => return None,
    };
    Some((usize::from(offset) % PAGE_BYTES, size))
}

fn placed(mut buf: BufMut, gap: usize, size: usize) -> BufMut {
    buf.set_len(size);
    buf.skip(gap);
    buf
}
