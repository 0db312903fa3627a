//! One READ: pieces of blocks from storage to the socket, in order.
//!
//! Each piece lies inside one 64 KiB block and leaves as one READ_DATA packet with the sum storage
//! gives for exactly these bytes; a request of whole blocks, as replications of stock servers make
//! it, is answered in whole blocks. Pieces are asked for ahead, in the order of the request, while
//! no more than [`IN_FLIGHT_BYTES_MAX`] are between disk and socket, so a slow reader holds no more
//! than that. The last data and the status leave together when they are ready together.

use super::connection::{ignorable, After, Beat, Connection, SILENCE_S};
use super::{Operation, Server};
use crate::proto::client::{self, Read, ReadDataHead, ReadRequest, ReadStatus};
use crate::proto::frame::encode_one;
use crate::proto::{kind, master::NOP, status};
use crate::wire::{Transport, Wire, WireError};
use chunk_api::{ChunkError, ReadPiece, Reply, BLOCK_BYTES, CHUNK_BYTES};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Bytes of one read between disk and socket.
pub(crate) const IN_FLIGHT_BYTES_MAX: usize = 512 << 10;

struct Piece {
    head: ReadDataHead,
    reply: Option<Reply<ReadPiece>>,
    result: Option<Result<ReadPiece, ChunkError>>,
}

struct Run<'a, S> {
    server: &'a Rc<Server>,
    wire: &'a mut Wire<S>,
    beat: &'a mut Beat,
    read: Read,
    /// The next piece begins here.
    at: u32,
    /// Bytes not yet asked of storage.
    left: u32,
    /// Asked of storage, in order.
    pieces: VecDeque<Piece>,
    in_flight: usize,
    /// The status that ended the request; queued.
    ended: Option<u8>,
}

/// Serves one read; the connection is idle after it, whatever its status.
pub(super) async fn serve<S: Transport>(
    connection: &mut Connection<S>,
    read: Read,
) -> Result<After, WireError> {
    let Connection { server, wire, beat } = connection;
    let started = server.rt.now();
    beat.restart();
    let ReadRequest {
        id,
        version,
        offset,
        size,
    } = read.request;
    let pieces = VecDeque::new();
    let mut run = Run {
        server,
        wire,
        beat,
        read,
        at: offset,
        left: size,
        pieces,
        in_flight: 0,
        ended: None,
    };
    if let Err(status) = check(&read.request) {
        run.end(status);
    } else if size > 0 {
        if let Err(e) = server.chunks.open(id, version) {
            run.end(e.status());
        }
    }
    let after = poll_fn(|cx| run.poll(cx)).await?;
    match run.ended {
        Some(status::OK) => {
            let latency = server.rt.now() - started;
            server.stats.done(Operation::Read, size.into(), latency);
        }
        _ => server.stats.failed(),
    }
    Ok(after)
}

impl<S: Transport> Run<'_, S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<After, WireError>> {
        loop {
            self.ask_storage();
            self.pieces.iter_mut().for_each(|piece| piece.poll(cx));
            self.queue_ready();
            let before = self.wire.queued();
            let flushed = self.wire.poll_flush(cx)?.is_ready();
            if flushed && self.ended.is_some() {
                return Poll::Ready(Ok(After::Idle));
            }
            // Room was made: more can be asked for.
            if self.wire.queued() < before && self.left > 0 {
                continue;
            }
            if self.poll_peer(cx)?.is_ready() {
                return Poll::Ready(Ok(After::Closed));
            }
            if self.poll_beat(cx)?.is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Asks for pieces ahead, in order, as far as the bound allows.
    fn ask_storage(&mut self) {
        let ReadRequest { id, version, .. } = self.read.request;
        while self.left > 0 && self.in_flight + self.wire.queued() < IN_FLIGHT_BYTES_MAX {
            let (block, offset) = ((self.at / BLOCK_BYTES) as u16, self.at % BLOCK_BYTES);
            let size = self.left.min(BLOCK_BYTES - offset);
            let head = ReadDataHead {
                id,
                block,
                offset: offset as u16,
                size,
                crc: 0,
            };
            let reply = self.server.chunks.read(id, version, block, offset, size);
            self.pieces.push_back(Piece {
                head,
                reply: Some(reply),
                result: None,
            });
            self.in_flight += size as usize;
            self.at += size;
            self.left -= size;
        }
    }

    /// Queues the pieces that are ready, in order, and the status after the last.
    fn queue_ready(&mut self) {
        while self.ended.is_none() {
            let Some(result) = self
                .pieces
                .front_mut()
                .and_then(|piece| piece.result.take())
            else {
                if self.pieces.is_empty() && self.left == 0 {
                    self.end(status::OK);
                }
                return;
            };
            let head = self.pieces.pop_front().expect("just seen").head;
            self.in_flight -= head.size as usize;
            match result {
                Ok(piece) => {
                    assert_eq!(
                        piece.data.len(),
                        head.size as usize,
                        "storage read another size"
                    );
                    let head = ReadDataHead {
                        crc: piece.crc,
                        ..head
                    };
                    self.wire.queue_head(&client::read_data_prefix(&head));
                    self.wire.queue_data(&piece.data);
                }
                Err(error) => {
                    tracing::debug!(chunk = %head.id, block = head.block, %error, "read failed");
                    self.end(error.status());
                }
            }
        }
    }

    /// Queues the status that ends the request; pieces still on their way are forgotten.
    fn end(&mut self, status: u8) {
        let id = self.read.request.id;
        self.wire
            .queue_head(&encode_one(kind::READ_STATUS, &ReadStatus { id, status }));
        self.ended = Some(status);
        self.left = 0;
        self.pieces.clear();
        self.in_flight = 0;
    }

    /// Only NOPs may come during a read. Ready when the peer has closed.
    fn poll_peer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        loop {
            match self.wire.poll_frame(cx)? {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(frame)) if ignorable(&frame)? => {}
                Poll::Ready(Some(frame)) => {
                    return Poll::Ready(Err(WireError::Unexpected(frame.kind)))
                }
            }
        }
    }

    /// Keep-alives while storage is slow, and the end of a peer that takes nothing.
    fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        self.beat.poll(cx, self.wire).map(|quiet| {
            let queued = self.wire.queued() > 0;
            if queued && quiet.is_stuck() {
                return Err(WireError::Silent(SILENCE_S));
            }
            if self.read.nops && !queued && quiet.wants_nop() {
                self.wire.queue_head(&NOP);
            }
            Ok(())
        })
    }
}

impl Piece {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(reply) = &mut self.reply {
            if let Poll::Ready(result) = reply.as_mut().poll(cx) {
                self.reply = None;
                self.result = Some(result);
            }
        }
    }
}

fn check(request: &ReadRequest) -> Result<(), u8> {
    if request.size > CHUNK_BYTES {
        return Err(status::WRONG_SIZE);
    }
    match request.offset.checked_add(request.size) {
        Some(end) if end <= CHUNK_BYTES => Ok(()),
        _ => Err(status::WRONG_OFFSET),
    }
}
