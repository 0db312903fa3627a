//! Drives a session of writes: client above, storage here, the next server below.
//!
//! Data is received once into pool pages and shared by the store and the server below, to which
//! the packet goes on unchanged. Nothing is taken from the client before the server below is
//! connected, so a chain that cannot be built stores nothing. Keep-alives go both ways while
//! either side waits. What happens to a write is [`super::chain`]'s affair.

use super::chain::Chain;
use super::connection::{ignorable, After, Beat, Connection, SILENCE_S};
use super::next::Stream;
use super::{Complaint, Operation, Server};
use crate::proto::client::{self, Write, WriteDataHead, WriteFinish, WriteStatus};
use crate::proto::field::exactly;
use crate::proto::frame::encode_one;
use crate::proto::{kind, master::NOP, status};
use crate::wire::{Frame, Transport, Wire, WireError};
use blockdev::LocalFuture;
use chunk_api::{ChunkError, Reply};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Bytes queued towards the next server above which nothing more is taken from the client.
const BELOW_QUEUED_BYTES_MAX: usize = 1 << 20;

/// The server below.
enum Below {
    /// There is none: we are the last.
    None,
    /// On the way.
    Connecting(LocalFuture<io::Result<Wire<Stream>>>),
    /// In session.
    Open {
        wire: Box<Wire<Stream>>,
        beat: Box<Beat>,
    },
}

struct Session<'a, S> {
    server: &'a Rc<Server>,
    wire: &'a mut Wire<S>,
    beat: &'a mut Beat,
    write: Write,
    chain: Chain,
    below: Below,
    storing: Vec<(u64, Reply<()>)>,
}

/// Serves one session from its WRITE to its WRITE_FINISH or its error.
pub(super) async fn serve<S: Transport>(
    connection: &mut Connection<S>,
    write: Write,
) -> Result<After, WireError> {
    let Connection { server, wire, beat } = connection;
    beat.restart();
    let next = write.chain.first().copied();
    let mut session = Session {
        chain: Chain::new(write.id, next.is_some()),
        below: Below::None,
        storing: Vec::new(),
        server,
        wire,
        beat,
        write,
    };
    if let Err(e) = session
        .server
        .chunks
        .open(session.write.id, session.write.version)
    {
        session.chain = Chain::new(session.write.id, true);
        session.chain.fail(0, e.status());
    } else if let Some(next) = next {
        session.below = Below::Connecting(session.server.next.open(next));
    }
    let after = poll_fn(|cx| session.poll(cx)).await?;
    if after == After::Idle {
        if let (Below::Open { wire, .. }, Some(next)) = (session.below, next) {
            server.next.put(next, *wire);
        }
    }
    Ok(after)
}

impl<S: Transport> Session<'_, S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<After, WireError>> {
        loop {
            self.poll_below(cx);
            self.poll_storing(cx);
            self.answer();
            let sent = self.wire.poll_flush(cx)?.is_ready();
            if self.chain.is_over() {
                self.server.stats.failed();
                // What is queued is sent while draining.
                return Poll::Ready(Ok(After::Drain));
            }
            if self.chain.is_finished() && sent && self.below_is_flushed() {
                return Poll::Ready(Ok(After::Idle));
            }
            match self.poll_above(cx)? {
                Poll::Ready(None) => return Poll::Ready(Ok(After::Closed)),
                Poll::Ready(Some(())) => continue,
                Poll::Pending => {}
            }
            if self.poll_beats(cx)?.is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn below_is_flushed(&self) -> bool {
        match &self.below {
            Below::Open { wire, .. } => wire.queued() == 0,
            Below::None | Below::Connecting(_) => true,
        }
    }

    fn poll_below(&mut self, cx: &mut Context<'_>) {
        if let Below::Connecting(connecting) = &mut self.below {
            match connecting.as_mut().poll(cx) {
                Poll::Pending => return,
                Poll::Ready(Err(error)) => {
                    let next = self.write.chain.first().map(SocketAddrV4::to_string);
                    let next = next.unwrap_or_default();
                    if let Some(more) = self.server.may_log(Complaint::Unreachable, &next) {
                        let chunk = self.write.id;
                        tracing::info!(%chunk, next, %error, "next server not reached{more}");
                    }
                    return self.chain.fail(0, status::CANT_CONNECT);
                }
                Poll::Ready(Ok(mut wire)) => {
                    let rest = self.write.chain.iter().skip(1).copied().collect();
                    let onward = Write {
                        chain: rest,
                        ..self.write.clone()
                    };
                    wire.queue_head(&onward.encode());
                    self.below = Below::Open {
                        wire: Box::new(wire),
                        beat: Box::new(Beat::new(&self.server.rt)),
                    };
                }
            }
        }
        let Below::Open { wire, .. } = &mut self.below else {
            return;
        };
        loop {
            match wire.poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(frame))) if matches!(ignorable(&frame), Ok(true)) => {}
                Poll::Ready(Ok(Some(frame))) if frame.kind == kind::WRITE_STATUS => {
                    let answer = exactly::<WriteStatus>(frame.kind, &frame.head);
                    if !answer.is_ok_and(|answer| self.chain.handle_below(answer)) {
                        return self.chain.fail(0, status::DISCONNECTED);
                    }
                }
                Poll::Ready(_) => return self.chain.fail(0, status::DISCONNECTED),
            }
        }
        if let Poll::Ready(Err(_)) = wire.poll_flush(cx) {
            self.chain.fail(0, status::DISCONNECTED);
        }
    }

    fn poll_storing(&mut self, cx: &mut Context<'_>) {
        let mut at = 0;
        while let Some((sequence, reply)) = self.storing.get_mut(at) {
            match reply.as_mut().poll(cx) {
                Poll::Pending => at += 1,
                Poll::Ready(result) => {
                    let result = result.map_err(|e: ChunkError| {
                        tracing::debug!(chunk = %self.write.id, error = %e, "write failed");
                        e.status()
                    });
                    self.chain.handle_stored(*sequence, result);
                    drop(self.storing.swap_remove(at));
                }
            }
        }
    }

    fn answer(&mut self) {
        while let Some(answer) = self.chain.poll_answer() {
            self.wire
                .queue_head(&encode_one(kind::WRITE_STATUS, &answer));
        }
        if let Some(first) = self.chain.poll_acked() {
            let now = self.server.rt.now();
            for acked in
                std::iter::once(first).chain(std::iter::from_fn(|| self.chain.poll_acked()))
            {
                let latency = now - acked.since;
                self.server
                    .stats
                    .done(Operation::Write, acked.bytes.into(), latency);
            }
        }
    }

    /// Takes packets of the client while the window is open; `None` when it has closed.
    fn poll_above(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<()>, WireError>> {
        let room = match &self.below {
            Below::None => true,
            Below::Connecting(_) => false,
            Below::Open { wire, .. } => wire.queued() < BELOW_QUEUED_BYTES_MAX,
        };
        if !room || !self.chain.wants_more() {
            return Poll::Pending;
        }
        match self.wire.poll_frame(cx)? {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Ready(Some(frame)) => {
                self.handle_above(frame)?;
                Poll::Ready(Ok(Some(())))
            }
        }
    }

    fn handle_above(&mut self, frame: Frame) -> Result<(), WireError> {
        match frame.kind {
            kind::WRITE_DATA => {
                let head = exactly::<WriteDataHead>(frame.kind, &frame.head)?;
                self.take_data(head, frame);
                Ok(())
            }
            kind::WRITE_FINISH => {
                let finish = exactly::<WriteFinish>(frame.kind, &frame.head)?;
                if self.chain.handle_finish(&finish) {
                    if let Below::Open { wire, .. } = &mut self.below {
                        wire.queue_head(&encode_one(kind::WRITE_FINISH, &finish));
                    }
                    let (finishing, chunk) = (self.server.chunks.finish(finish.id), finish.id);
                    let server = self.server.clone();
                    self.server.rt.spawn(async move {
                        let Err(error) = finishing.await else { return };
                        if let Some(more) = server.may_log(Complaint::Unfinished, "") {
                            tracing::warn!(%chunk, %error, "finish failed{more}");
                        }
                    });
                }
                Ok(())
            }
            _ if ignorable(&frame)? => Ok(()),
            other => Err(WireError::Unexpected(other)),
        }
    }

    fn take_data(&mut self, head: WriteDataHead, frame: Frame) {
        let Some(sequence) = self.chain.handle_data(self.server.rt.now(), &head) else {
            return;
        };
        if let Below::Open { wire, .. } = &mut self.below {
            wire.queue_head(&client::write_data_prefix(&head));
            wire.queue_data(&frame.data);
        }
        if head.size == 0 {
            let result = if head.crc == 0 {
                Ok(())
            } else {
                Err(status::CRC)
            };
            return self.chain.handle_stored(sequence, result);
        }
        let WriteDataHead {
            id,
            block,
            offset,
            crc,
            ..
        } = head;
        let (version, offset) = (self.write.version, offset.into());
        let reply = self
            .server
            .chunks
            .write(id, version, block, offset, frame.data, crc);
        self.storing.push((sequence, reply));
    }

    /// Keep-alives and silence, both ways.
    fn poll_beats(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        let mut beaten = Poll::Pending;
        if let Below::Open { wire, beat } = &mut self.below {
            if let Poll::Ready(quiet) = beat.poll(cx, wire) {
                // One that does not take our bytes but sends NOPs is alive: its disk is slow.
                let owed = self.chain.waits_for_below() || wire.queued() > 0;
                if !owed {
                    beat.excuse_silence();
                }
                if owed && quiet.is_dead() {
                    self.chain.fail(0, status::DISCONNECTED);
                } else if self.write.nops && wire.queued() == 0 && quiet.wants_nop() {
                    wire.queue_head(&NOP);
                }
                beaten = Poll::Ready(Ok(()));
            }
        }
        if let Poll::Ready(quiet) = self.beat.poll(cx, self.wire) {
            // Who waits for our answer may be silent.
            let listening = !self.chain.owes_answers();
            if !listening {
                self.beat.excuse_silence();
            }
            if (listening && quiet.is_dead()) || (self.wire.queued() > 0 && quiet.is_stuck()) {
                return Poll::Ready(Err(WireError::Silent(SILENCE_S)));
            }
            if self.write.nops && self.wire.queued() == 0 && quiet.wants_nop() {
                self.wire.queue_head(&NOP);
            }
            beaten = Poll::Ready(Ok(()));
        }
        beaten
    }
}
