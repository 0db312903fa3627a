//! One connection's life: idle, a request, idle again; and its beat.
//!
//! The beat comes twice a second and compares byte counters, so that the hot path neither reads
//! the clock nor arms timers for keep-alives. NOPs leave 0.5 to 1 s after the last byte during a
//! request (clients of 3.x give up after 2 s of silence), 1.5 to 2 s when idle. A peer silent for
//! 5 s is closed; a beat that is late itself proves our own stall, and lengthens that time.

use super::{info, read, write, Complaint, Server};
use crate::proto::client::{Read, Write};
use crate::proto::info::Question;
use crate::proto::{kind, master::NOP};
use crate::wire::{Frame, Transport, Wire, WireError};
use blockdev::rt::Sleep;
use blockdev::{Instant, Rt};
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

const BEAT: Duration = Duration::from_millis(500);
const NOP_BUSY: Duration = Duration::from_millis(500);
const NOP_IDLE: Duration = Duration::from_millis(1500);
/// Seconds of silence after which a peer is given up.
pub(super) const SILENCE_S: u32 = 5;
const SILENCE: Duration = Duration::from_secs(SILENCE_S as u64);
/// After an error the peer may still be sending: that much is read and thrown away, so that the
/// status we sent is not lost in a reset.
const DRAIN_BYTES_MAX: usize = 16 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The connection is idle again.
    Idle,
    /// An error was told: nothing more is expected on it.
    Drain,
    /// The peer has closed it.
    Closed,
}

/// What a beat has found, in time since something happened.
pub(super) struct Quiet {
    received: Duration,
    sent: Duration,
}

impl Quiet {
    /// Whether the peer has been silent for too long.
    pub(super) fn is_dead(&self) -> bool {
        self.received >= SILENCE
    }

    /// Whether nothing could be sent for too long.
    pub(super) fn is_stuck(&self) -> bool {
        self.sent >= SILENCE
    }

    /// Whether a NOP is due during a request.
    pub(super) fn wants_nop(&self) -> bool {
        self.sent >= NOP_BUSY
    }
}

/// Watches the byte counters of one wire.
pub(super) struct Beat {
    rt: Rt,
    sleep: Sleep,
    received: (u64, Instant),
    sent: (u64, Instant),
}

impl Beat {
    pub(super) fn new(rt: &Rt) -> Beat {
        let now = rt.now();
        let sleep = rt.sleep_until(now + BEAT);
        Beat {
            rt: rt.clone(),
            sleep,
            received: (0, now),
            sent: (0, now),
        }
    }

    /// Starts the times anew, as when a request begins.
    pub(super) fn restart(&mut self) {
        let now = self.rt.now();
        self.received.1 = now;
        self.sent.1 = now;
    }

    /// The peer had no reason to speak until now.
    pub(super) fn excuse_silence(&mut self) {
        self.received.1 = self.rt.now();
    }

    pub(super) fn poll<S: Transport>(
        &mut self,
        cx: &mut Context<'_>,
        wire: &Wire<S>,
    ) -> Poll<Quiet> {
        let lateness = match Pin::new(&mut self.sleep).poll(cx) {
            Poll::Ready(lateness) => lateness,
            Poll::Pending => return Poll::Pending,
        };
        let now = self.rt.now();
        self.sleep = self.rt.sleep_until(now + BEAT);
        // Armed now, or nobody would wake us again.
        let armed = Pin::new(&mut self.sleep).poll(cx);
        debug_assert!(armed.is_pending());
        if wire.received() != self.received.0 || wire.waits_for_pages() {
            self.received = (wire.received(), now);
        } else if lateness.is_own_stall() {
            self.received.1 = self.received.1 + lateness.0;
        }
        if wire.sent() != self.sent.0 {
            self.sent = (wire.sent(), now);
        }
        Poll::Ready(Quiet {
            received: now.since(self.received.1),
            sent: now.since(self.sent.1),
        })
    }
}

/// A connection between and during requests.
pub(super) struct Connection<S> {
    pub(super) server: Rc<Server>,
    pub(super) wire: Wire<S>,
    pub(super) beat: Beat,
}

/// Serves until the peer closes, breaks the protocol, or the node stops.
pub(super) async fn run<S: Transport>(server: &Rc<Server>, io: S, peer: &str) {
    let wire = Wire::new(io, server.pool.clone());
    let beat = Beat::new(&server.rt);
    let mut connection = Connection {
        server: server.clone(),
        wire,
        beat,
    };
    match connection.serve().await {
        Ok(()) => {}
        Err(error @ (WireError::Malformed(_) | WireError::Unexpected(_))) => {
            server.stats.malformed.set(server.stats.malformed.get() + 1);
            if let Some(more) = server.may_log(Complaint::Malformed, peer) {
                tracing::warn!(peer, %error, "connection closed: the peer broke the protocol{more}");
            }
        }
        Err(error) => tracing::debug!(peer, %error, "connection closed"),
    }
}

impl<S: Transport> Connection<S> {
    async fn serve(&mut self) -> Result<(), WireError> {
        while let Some(frame) = self.next_request().await? {
            match self.request(frame).await? {
                // Whoever waited for us is not to blame for its silence.
                After::Idle => self.beat.restart(),
                After::Drain => return self.drain().await,
                After::Closed => return Ok(()),
            }
        }
        Ok(())
    }

    /// Waits, idle, for the next packet that is no NOP; `None` when the connection is over.
    async fn next_request(&mut self) -> Result<Option<Frame>, WireError> {
        let Connection { server, wire, beat } = self;
        poll_fn(|cx| {
            if let Poll::Ready(Err(e)) = wire.poll_flush(cx) {
                return Poll::Ready(Err(e.into()));
            }
            loop {
                match wire.poll_frame(cx) {
                    Poll::Ready(Ok(Some(frame))) if ignorable(&frame)? => {}
                    Poll::Ready(Ok(Some(_))) if server.stopping.get() => {
                        return Poll::Ready(Ok(None))
                    }
                    Poll::Ready(other) => return Poll::Ready(other),
                    Poll::Pending => break,
                }
            }
            while let Poll::Ready(quiet) = beat.poll(cx, wire) {
                if server.stopping.get() {
                    return Poll::Ready(Ok(None));
                }
                if quiet.is_dead() {
                    return Poll::Ready(Err(WireError::Silent(SILENCE_S)));
                }
                if quiet.sent >= NOP_IDLE && wire.queued() == 0 {
                    wire.queue_head(&NOP);
                    if let Poll::Ready(Err(e)) = wire.poll_flush(cx) {
                        return Poll::Ready(Err(e.into()));
                    }
                }
            }
            Poll::Pending
        })
        .await
    }

    async fn request(&mut self, frame: Frame) -> Result<After, WireError> {
        match frame.kind {
            kind::READ => read::serve(self, Read::parse(&frame.head)?).await,
            kind::WRITE => write::serve(self, Write::parse(&frame.head)?).await,
            other => {
                let question = Question::parse(other, &frame.head)?;
                let question = question.ok_or(WireError::Unexpected(other))?;
                let answer = info::answer(&self.server, &question).await;
                self.wire.queue_head(&answer);
                self.flush().await?;
                Ok(After::Idle)
            }
        }
    }

    async fn flush(&mut self) -> Result<(), WireError> {
        let Connection { wire, beat, .. } = self;
        poll_fn(|cx| {
            if let Poll::Ready(done) = wire.poll_flush(cx) {
                return Poll::Ready(done.map_err(WireError::from));
            }
            while let Poll::Ready(quiet) = beat.poll(cx, wire) {
                if quiet.is_stuck() {
                    return Poll::Ready(Err(WireError::Silent(SILENCE_S)));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Sends what is queued and our end of stream, then reads until the peer has closed too.
    async fn drain(&mut self) -> Result<(), WireError> {
        self.flush().await?;
        let until = self.server.rt.now() + DRAIN_TIME;
        let wire = &mut self.wire;
        let closing = poll_fn(|cx| wire.poll_shutdown(cx));
        let _ = self.server.rt.by(until, closing).await;
        let mut drained = 0;
        while drained < DRAIN_BYTES_MAX {
            let discarding = poll_fn(|cx| wire.poll_discard(cx));
            match self.server.rt.by(until, discarding).await {
                Ok(Ok(bytes @ 1..)) => drained += bytes,
                _ => break,
            }
        }
        Ok(())
    }
}

/// Whether a packet is a keep-alive, or one of the two that are always ignored.
pub(super) fn ignorable(frame: &Frame) -> Result<bool, WireError> {
    match frame.kind {
        kind::NOP if !frame.head.is_empty() => Err(WireError::Unexpected(kind::NOP)),
        kind::NOP | kind::UNKNOWN_COMMAND | kind::BAD_COMMAND_SIZE => Ok(true),
        _ => Ok(false),
    }
}
