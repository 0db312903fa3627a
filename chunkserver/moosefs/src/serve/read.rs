//! One READ: pieces of blocks from storage to the socket, in order.
//!
//! Each piece lies inside one 64 KiB block and leaves as one READ_DATA packet with the sum storage
//! gives for exactly these bytes; a request of whole blocks, as replications of stock servers make
//! it, is answered in whole blocks. Pieces are asked for ahead, in the order of the request, while
//! no more than [`IN_FLIGHT_BYTES_MAX`] are between disk and socket, so a slow reader holds no more
//! than that. The last data and the status leave together when they are ready together.

use super::connection::{ignorable, After, Connection, SILENCE_S};
use super::Operation;
use crate::proto::client::{self, Read, ReadDataHead, ReadRequest, ReadStatus};
use crate::proto::frame::encode_one;
use crate::proto::{kind, master::NOP, status};
use crate::wire::{Transport, WireError};
use chunk_api::{ChunkError, ReadPiece, Reply, BLOCK_BYTES, CHUNK_BYTES};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

/// Bytes of one read between disk and socket.
pub(crate) const IN_FLIGHT_BYTES_MAX: usize = 512 << 10;

struct Piece {
    head: ReadDataHead,
    reply: Option<Reply<ReadPiece>>,
    result: Option<Result<ReadPiece, ChunkError>>,
}

/// Serves one read; the connection is idle after it, whatever its status.
pub(super) async fn serve<S: Transport>(
    connection: &mut Connection<S>,
    read: Read,
) -> Result<After, WireError> {
    let Connection { server, wire, beat } = connection;
    let started = server.rt.now();
    let ReadRequest {
        id,
        version,
        offset,
        size,
    } = read.request;
    let mut end = check(&read.request).map(|()| (size == 0).then_some(status::OK));
    if matches!(end, Ok(None)) {
        end = server
            .chunks
            .open(id, version)
            .map(|_| None)
            .map_err(|e| e.status());
    }
    let (mut at, mut left) = match end {
        Ok(None) => (offset, size),
        _ => (offset, 0),
    };
    // The status that ends the request, once it is queued.
    let mut ended: Option<u8> = None;
    let mut status = end.map_or_else(Some, |end| end);
    let mut pieces: VecDeque<Piece> = VecDeque::new();
    let mut in_flight = 0;
    beat.restart();

    let after = poll_fn(|cx| loop {
        while left > 0 && in_flight + wire.queued() < IN_FLIGHT_BYTES_MAX {
            let (block, offset) = ((at / BLOCK_BYTES) as u16, at % BLOCK_BYTES);
            let size = left.min(BLOCK_BYTES - offset);
            let head = ReadDataHead {
                id,
                block,
                offset: offset as u16,
                size,
                crc: 0,
            };
            let reply = server.chunks.read(id, version, block, offset, size);
            pieces.push_back(Piece {
                head,
                reply: Some(reply),
                result: None,
            });
            in_flight += size as usize;
            at += size;
            left -= size;
        }
        pieces.iter_mut().for_each(|piece| piece.poll(cx));
        while status.is_none() {
            let Some(result) = pieces.front_mut().and_then(|piece| piece.result.take()) else {
                if pieces.is_empty() && left == 0 {
                    status = Some(status::OK);
                }
                break;
            };
            let head = pieces.pop_front().expect("just seen").head;
            in_flight -= head.size as usize;
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
                    wire.queue_head(&client::read_data_prefix(&head));
                    wire.queue_data(&piece.data);
                }
                Err(e) => {
                    tracing::debug!(chunk = %id, block = head.block, error = %e, "read failed");
                    status = Some(e.status());
                    left = 0;
                    pieces.clear();
                    in_flight = 0;
                }
            }
        }
        if let (Some(status), None) = (status, ended) {
            wire.queue_head(&encode_one(kind::READ_STATUS, &ReadStatus { id, status }));
            ended = Some(status);
        }
        let before = wire.queued();
        match wire.poll_flush(cx) {
            Poll::Ready(Ok(())) if ended.is_some() => return Poll::Ready(Ok(After::Idle)),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(e)) => return Poll::Ready(Err(e.into())),
            Poll::Pending => {}
        }
        // Room was made: more can be asked for.
        if wire.queued() < before && left > 0 {
            continue;
        }
        loop {
            match wire.poll_frame(cx) {
                Poll::Ready(Ok(Some(frame))) if ignorable(&frame)? => {}
                Poll::Ready(Ok(Some(frame))) => {
                    return Poll::Ready(Err(WireError::Unexpected(frame.kind)))
                }
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(After::Closed)),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => break,
            }
        }
        match beat.poll(cx, wire) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(quiet) => {
                // With bytes queued the peer does not take them: that is its silence.
                if wire.queued() > 0 && quiet.is_stuck() {
                    return Poll::Ready(Err(WireError::Silent(SILENCE_S)));
                }
                if read.nops && wire.queued() == 0 && quiet.wants_nop() {
                    wire.queue_head(&NOP);
                }
            }
        }
    })
    .await?;
    match ended {
        Some(status::OK) => {
            let latency = server.rt.now() - started;
            server.stats.done(Operation::Read, size.into(), latency);
        }
        _ => server.stats.failed(),
    }
    Ok(after)
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
