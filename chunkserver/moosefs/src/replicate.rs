//! `MATOCS_REPLICATE` (150) as the destination: fetches a whole chunk from another server.
//!
//! Asks for the number of blocks (250), then reads them all with one READ of the old form (20
//! bytes, no protocol byte), as the stock server does and expects. Each answer must be exactly one
//! whole block, in order, with a matching sum; anything else gives the replica up. The copy becomes
//! visible, durably, only when it is complete.
//!
//! Stock sources answer 10 s per step at the latest; a whole replication may take 150 s, then the
//! master gets status 60. As a *source* we need nothing of our own: [`crate::serve`] answers a
//! READ of whole blocks in whole blocks.

use crate::proto::client::{Read, ReadDataHead, ReadRequest, ReadStatus};
use crate::proto::field::exactly;
use crate::proto::info::{Blocks, Which};
use crate::proto::{frame::encode_one, kind, status};
use crate::repeats::Repeats;
use crate::serve::Connector;
use crate::wire::{Frame, Transport, Wire, WireError};
use blockdev::{LocalFuture, Pool, Rt};
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkId, ChunkVersion, Chunks, ReplicaToken, BLOCKS_PER_CHUNK, BLOCK_BYTES};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

const STEP: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(3);
const WHOLE: Duration = Duration::from_secs(150);
/// Blocks of one replication being stored at a time.
const STORING_BLOCKS_MAX: usize = 8;

/// See the module.
pub struct Replicator {
    chunks: Rc<dyn Chunks>,
    rt: Rt,
    pool: Pool,
    connector: Rc<dyn Connector>,
    /// A master asks again at once for what was given up.
    given_up: Rc<RefCell<Repeats<(SocketAddrV4, u8)>>>,
}

impl Replicator {
    /// Stores into `chunks` what it fetches through `connector`.
    pub fn new(
        chunks: Rc<dyn Chunks>,
        rt: Rt,
        pool: Pool,
        connector: Rc<dyn Connector>,
    ) -> Rc<Replicator> {
        Rc::new(Replicator {
            chunks,
            rt,
            pool,
            connector,
            given_up: Rc::default(),
        })
    }

    /// Fetches the chunk; `Ok`: it is held here, durably. `Err`: a MooseFS status, and nothing is.
    pub fn replicate(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        source: SocketAddrV4,
    ) -> LocalFuture<Result<(), u8>> {
        let begin = self.chunks.replica_begin(id, version);
        let (rt, pool) = (self.rt.clone(), self.pool.clone());
        let (chunks, connector) = (self.chunks.clone(), self.connector.clone());
        let given_up = self.given_up.clone();
        Box::pin(async move {
            let token = begin.await.map_err(|e| e.status())?;
            let fetch = Fetch {
                chunks: chunks.clone(),
                rt: rt.clone(),
                pool,
                id,
                version,
                token,
            };
            let until = rt.now() + WHOLE;
            let fetched = rt.by(until, fetch.run(&*connector, source)).await;
            let result = match fetched.unwrap_or(Err(status::TIMED_OUT)) {
                Ok(blocks) => chunks
                    .replica_commit(token, blocks)
                    .await
                    .map_err(|e| e.status()),
                Err(status) => Err(status),
            };
            if let Err(status) = result {
                chunks.replica_abort(token);
                let (why, now) = (status::text(status), Duration::from_nanos(rt.now().0));
                if let Some(more) = given_up.borrow_mut().may_log(&(source, status), now) {
                    tracing::info!(chunk = %id, %source, status, why, "replication given up{more}");
                }
            }
            result
        })
    }
}

struct Fetch {
    chunks: Rc<dyn Chunks>,
    rt: Rt,
    pool: Pool,
    id: ChunkId,
    version: ChunkVersion,
    token: ReplicaToken,
}

impl Fetch {
    async fn run(&self, connector: &dyn Connector, source: SocketAddrV4) -> Result<u16, u8> {
        let until = self.rt.now() + CONNECT;
        let stream = self.rt.by(until, connector.connect(source)).await;
        let stream = stream
            .ok()
            .and_then(Result::ok)
            .ok_or(status::CANT_CONNECT)?;
        let mut wire = Wire::new(stream, self.pool.clone());
        let which = Which {
            id: self.id,
            version: self.version,
        };
        wire.queue_head(&encode_one(kind::GET_CHUNK_BLOCKS, &which));
        let frame = self.next(&mut wire).await?;
        if frame.kind != kind::CHUNK_BLOCKS {
            return Err(status::DISCONNECTED);
        }
        let blocks: Blocks = exactly(frame.kind, &frame.head).map_err(|_| status::DISCONNECTED)?;
        if blocks.id != self.id {
            return Err(status::WRONG_CHUNK);
        }
        match blocks.status {
            status::OK if blocks.blocks <= BLOCKS_PER_CHUNK => {}
            status::OK => return Err(status::WRONG_SIZE),
            status => return Err(status),
        }
        if blocks.blocks > 0 {
            self.fetch_blocks(&mut wire, blocks.blocks).await?;
        }
        Ok(blocks.blocks)
    }

    async fn fetch_blocks<S: Transport>(&self, wire: &mut Wire<S>, blocks: u16) -> Result<(), u8> {
        let size = u32::from(blocks) * BLOCK_BYTES;
        let request = ReadRequest {
            id: self.id,
            version: self.version,
            offset: 0,
            size,
        };
        wire.queue_head(
            &Read {
                nops: false,
                request,
            }
            .encode(),
        );
        let mut storing = VecDeque::new();
        for block in 0..blocks {
            let frame = self.next(wire).await?;
            match frame.kind {
                kind::READ_DATA => {}
                kind::READ_STATUS => return Err(self.failed(&frame)),
                _ => return Err(status::DISCONNECTED),
            }
            let head: ReadDataHead =
                exactly(frame.kind, &frame.head).map_err(|_| status::DISCONNECTED)?;
            if head.id != self.id {
                return Err(status::WRONG_CHUNK);
            }
            if head.block != block {
                return Err(status::WRONG_BLOCK);
            }
            if head.offset != 0 || head.size != BLOCK_BYTES {
                return Err(status::WRONG_SIZE);
            }
            if crc32_iovec(&frame.data) != head.crc {
                return Err(status::CRC);
            }
            let reply = self
                .chunks
                .replica_write(self.token, block, frame.data, head.crc);
            storing.push_back(reply);
            if storing.len() >= STORING_BLOCKS_MAX {
                if let Some(oldest) = storing.pop_front() {
                    oldest.await.map_err(|e| e.status())?;
                }
            }
        }
        let end = self.next(wire).await?;
        if end.kind != kind::READ_STATUS {
            return Err(status::DISCONNECTED);
        }
        let end: ReadStatus = exactly(end.kind, &end.head).map_err(|_| status::DISCONNECTED)?;
        if end.status != status::OK {
            return Err(end.status);
        }
        for reply in storing {
            reply.await.map_err(|e| e.status())?;
        }
        Ok(())
    }

    /// The status of an early end; an early "ok" is an error too.
    fn failed(&self, frame: &Frame) -> u8 {
        match exactly::<ReadStatus>(frame.kind, &frame.head) {
            Ok(end) if end.status != status::OK => end.status,
            _ => status::DISCONNECTED,
        }
    }

    /// Sends what is queued and waits for the next packet that is no NOP.
    async fn next<S: Transport>(&self, wire: &mut Wire<S>) -> Result<Frame, u8> {
        let until = self.rt.now() + STEP;
        let step = poll_fn(|cx| {
            if let Poll::Ready(Err(e)) = wire.poll_flush(cx) {
                return Poll::Ready(Err(WireError::from(e)));
            }
            loop {
                match wire.poll_frame(cx) {
                    Poll::Ready(Ok(Some(frame))) if frame.kind == kind::NOP => {}
                    other => return other,
                }
            }
        });
        match self.rt.by(until, step).await {
            Ok(Ok(Some(frame))) => Ok(frame),
            Ok(Ok(None)) | Ok(Err(_)) => Err(status::DISCONNECTED),
            Err(_late) => Err(status::TIMED_OUT),
        }
    }
}
