//! A minimal client of the data port: reads, and sessions of writes through a chain.
//!
//! For the load generator and for tests; a real client also asks a master. Each [`Client`] is one
//! connection, with one request at a time; a session of writes may have several writes unanswered.

use crate::proto::client::{
    write_data_prefix, Read, ReadDataHead, ReadRequest, ReadStatus, Write, WriteDataHead,
    WriteFinish, WriteStatus,
};
use crate::proto::field::exactly;
use crate::proto::{frame::encode_one, kind, status};
use crate::wire::{Frame, Transport, Wire, WireError};
use blockdev::{IoVec, Pool, Rt};
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkId, ChunkVersion, BLOCK_BYTES};
use std::future::{poll_fn, Future};
use std::net::SocketAddrV4;
use std::task::Poll;
use std::time::Duration;
use thiserror::Error;

/// Why a request failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The server answered with a MooseFS status.
    #[error("status {} ({})", .0, status::text(*.0))]
    Status(u8),
    /// The connection failed or the server broke the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// No whole packet came for so long, or no more than NOPs, or nothing could be sent.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// Data came that was not asked for, or with a wrong sum.
    #[error("wrong answer: {0}")]
    Wrong(&'static str),
}

impl From<crate::proto::Malformed> for ClientError {
    fn from(malformed: crate::proto::Malformed) -> ClientError {
        ClientError::Wire(malformed.into())
    }
}

/// A server that waits for its devices keeps the connection alive by NOPs; not for ever.
pub const NOPS_ALONE: u32 = 12;

impl ClientError {
    /// Whether what came was no MooseFS: this peer will not do better on another connection.
    pub fn breaks_protocol(&self) -> bool {
        matches!(
            self,
            ClientError::Wire(WireError::Malformed(_) | WireError::Unexpected(_))
                | ClientError::Wrong(_)
        )
    }
}

/// One connection to a server.
pub struct Client<S> {
    wire: Wire<S>,
    nops: u64,
    patience: Option<(Rt, Duration)>,
}

impl<S: Transport> Client<S> {
    /// On a connection just made; payload goes into pages of `pool`.
    pub fn new(io: S, pool: Pool) -> Client<S> {
        Client {
            wire: Wire::new(io, pool),
            nops: 0,
            patience: None,
        }
    }

    /// The same with a bound on silence: every packet, a NOP too, and every sending comes to its end
    /// within this time, and NOPs alone are believed for [`NOPS_ALONE`] times as long.
    pub fn with_patience(self, rt: &Rt, patience: Duration) -> Client<S> {
        Client {
            patience: Some((rt.clone(), patience)),
            ..self
        }
    }

    /// NOPs received so far.
    pub fn nops(&self) -> u64 {
        self.nops
    }

    /// Queues raw bytes; for tests of what servers do with them.
    pub fn queue_raw(&mut self, bytes: &[u8]) {
        self.wire.queue_head(bytes);
    }

    /// Sends what is queued and waits for the next packet that is no NOP.
    pub async fn next(&mut self) -> Result<Frame, ClientError> {
        let Some((rt, patience)) = self.patience.clone() else {
            return self.next_real().await;
        };
        let longest = patience * NOPS_ALONE;
        match rt.by(rt.now() + longest, self.next_real()).await {
            Ok(frame) => frame,
            Err(_) => Err(ClientError::Silent(longest)),
        }
    }

    async fn next_real(&mut self) -> Result<Frame, ClientError> {
        loop {
            let wire = &mut self.wire;
            let packet = poll_fn(|cx| {
                if let Poll::Ready(Err(e)) = wire.poll_flush(cx) {
                    // What the server still had to say comes first.
                    if !matches!(wire.poll_frame(cx), Poll::Ready(Ok(Some(_)))) {
                        return Poll::Ready(Err(WireError::from(e)));
                    }
                }
                wire.poll_frame(cx)
            });
            match patiently(&self.patience, packet).await? {
                Some(frame) if frame.kind == kind::NOP => self.nops += 1,
                frame => return frame.ok_or(ClientError::Closed),
            }
        }
    }

    /// Asks an information packet and gives the answer's payload; `kind` is the answer's.
    pub async fn ask(&mut self, question: &[u8], kind: u32) -> Result<Vec<u8>, ClientError> {
        self.wire.queue_head(question);
        let frame = self.next().await?;
        if frame.kind != kind {
            return Err(ClientError::Wrong("another packet than asked for"));
        }
        Ok(frame.head.to_vec())
    }

    /// Reads; every piece's sum has been checked. Zero bytes where nothing was written.
    pub async fn read(&mut self, request: ReadRequest) -> Result<IoVec, ClientError> {
        self.read_as(Read {
            nops: true,
            request,
        })
        .await
    }

    /// The same, with or without the protocol byte.
    pub async fn read_as(&mut self, read: Read) -> Result<IoVec, ClientError> {
        let request = read.request;
        self.wire.queue_head(&read.encode());
        let mut data = IoVec::new();
        loop {
            let frame = self.next().await?;
            match frame.kind {
                kind::READ_DATA => {
                    let head: ReadDataHead = exactly(frame.kind, &frame.head)?;
                    let at = u32::from(head.block) * BLOCK_BYTES + u32::from(head.offset);
                    if head.id != request.id
                        || u64::from(at) != u64::from(request.offset) + data.len() as u64
                    {
                        return Err(ClientError::Wrong("data out of place"));
                    }
                    if crc32_iovec(&frame.data) != head.crc {
                        return Err(ClientError::Wrong("checksum"));
                    }
                    data.append(&frame.data);
                }
                kind::READ_STATUS => {
                    let end: ReadStatus = exactly(frame.kind, &frame.head)?;
                    return match end.status {
                        status::OK if data.len() == request.size as usize => Ok(data),
                        status::OK => Err(ClientError::Wrong("fewer bytes than asked for")),
                        status => Err(ClientError::Status(status)),
                    };
                }
                _ => return Err(ClientError::Wrong("a packet that has no place in a read")),
            }
        }
    }

    /// Opens a session of writes; `chain` are the servers behind this one. Ready when the whole
    /// chain has opened the chunk.
    pub async fn open_write(
        &mut self,
        id: ChunkId,
        version: ChunkVersion,
        chain: Vec<SocketAddrV4>,
    ) -> Result<WriteSession, ClientError> {
        self.wire.queue_head(
            &Write {
                nops: true,
                id,
                version,
                chain,
            }
            .encode(),
        );
        let mut session = WriteSession {
            id,
            version,
            next_id: 1,
        };
        match self.next_status(&mut session).await? {
            0 => Ok(session),
            _ => Err(ClientError::Wrong("a write id before the opening")),
        }
    }

    /// Queues one write (1 byte to 64 KiB inside one block); its id.
    pub fn queue_write(
        &mut self,
        session: &mut WriteSession,
        block: u16,
        offset: u16,
        data: &IoVec,
        crc: u32,
    ) -> u32 {
        let (id, write_id) = (session.id, session.next_id);
        session.next_id += 1;
        let head = WriteDataHead {
            id,
            write_id,
            block,
            offset,
            size: data.len() as u32,
            crc,
        };
        self.wire.queue_head(&write_data_prefix(&head));
        self.wire.queue_data(data);
        write_id
    }

    /// Sends what is queued and waits for the next acknowledged write id.
    pub async fn next_status(&mut self, session: &mut WriteSession) -> Result<u32, ClientError> {
        let frame = self.next().await?;
        if frame.kind != kind::WRITE_STATUS {
            return Err(ClientError::Wrong(
                "a packet that has no place among writes",
            ));
        }
        let answer: WriteStatus = exactly(frame.kind, &frame.head)?;
        match answer.status {
            status::OK if answer.id == session.id => Ok(answer.write_id),
            status::OK => Err(ClientError::Wrong("another chunk")),
            status => Err(ClientError::Status(status)),
        }
    }

    /// Writes and waits for the acknowledgement.
    pub async fn write(
        &mut self,
        session: &mut WriteSession,
        block: u16,
        offset: u16,
        data: &IoVec,
    ) -> Result<(), ClientError> {
        let write_id = self.queue_write(session, block, offset, data, crc32_iovec(data));
        match self.next_status(session).await? {
            acked if acked == write_id => Ok(()),
            _ => Err(ClientError::Wrong("another write id")),
        }
    }

    /// Ends a session; the connection is idle again.
    pub async fn finish(&mut self, session: WriteSession) -> Result<(), ClientError> {
        let WriteSession { id, version, .. } = session;
        self.wire.queue_head(&encode_one(
            kind::WRITE_FINISH,
            &WriteFinish { id, version },
        ));
        let wire = &mut self.wire;
        let sent = poll_fn(|cx| wire.poll_flush(cx).map_err(WireError::from));
        patiently(&self.patience, sent).await
    }
}

async fn patiently<T>(
    patience: &Option<(Rt, Duration)>,
    step: impl Future<Output = Result<T, WireError>>,
) -> Result<T, ClientError> {
    match patience {
        None => Ok(step.await?),
        Some((rt, patience)) => match rt.by(rt.now() + *patience, step).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(ClientError::Silent(*patience)),
        },
    }
}

/// An open session of writes.
#[derive(Debug)]
pub struct WriteSession {
    id: ChunkId,
    version: ChunkVersion,
    next_id: u32,
}
