//! Load generator of the data port: the core of `antler bench chunk`.
//!
//! The chunks are laid end to end into one address space of 64 MiB each. Every unit of queue depth
//! is a connection with one I/O at a time, as a real client's; an I/O of more than 64 KiB is one
//! READ, or several pipelined WRITE_DATA. `verify` writes blocks that carry (seed, address,
//! generation) and reads them back: each connection owns the addresses it alone writes.

use crate::client::{Client, ClientError, WriteSession};
use crate::player::Registered;
use crate::proto::client::ReadRequest;
use crate::serve::Connector;
use crate::wire::Transport;
use blockdev::latency::{Histogram, Latencies};
use blockdev::{Instant, IoVec, Pool, Rt};
use chunk_api::crc::crc32_iovec;
use chunk_api::{ChunkId, ChunkVersion, BLOCK_BYTES, CHUNK_BYTES};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;

/// A server connects, and says its next word, within this.
pub const ANSWER: Duration = Duration::from_secs(5);

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Random, half reads and half writes.
    RandRw,
    /// Random writes that are read back and compared.
    Verify,
}

const MODES: [(Mode, &str); 6] = [
    (Mode::Read, "read"),
    (Mode::Write, "write"),
    (Mode::RandRead, "randread"),
    (Mode::RandWrite, "randwrite"),
    (Mode::RandRw, "randrw"),
    (Mode::Verify, "verify"),
];

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name) = MODES
            .iter()
            .find(|(mode, _)| mode == self)
            .expect("all modes are listed");
        f.write_str(name)
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        let found = MODES.iter().find(|(_, name)| *name == text);
        found
            .map(|(mode, _)| *mode)
            .ok_or_else(|| format!("unknown mode {text:?}"))
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct BenchConfig {
    /// The server.
    pub server: SocketAddrV4,
    /// Chunks that exist there.
    pub chunks: Vec<(ChunkId, ChunkVersion)>,
    /// What to do.
    pub mode: Mode,
    /// Bytes of one I/O: a power of two from 512 to 64 MiB.
    pub block_bytes: u32,
    /// I/Os at a time in each session.
    pub iodepth: u32,
    /// Sessions.
    pub sessions: u32,
    /// Ends after this time.
    pub runtime: Option<Duration>,
    /// Ends after so many bytes.
    pub size_bytes: Option<u64>,
    /// First address used.
    pub offset_bytes: u64,
    /// Bytes used from there; all if not given.
    pub span_bytes: Option<u64>,
    /// Seed of addresses and contents.
    pub seed: u64,
}

/// Why a run could not be made, or came to nothing.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The numbers do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The server could not be reached.
    #[error("{server}: {error}")]
    Unreachable {
        /// Which.
        server: SocketAddrV4,
        /// Why.
        error: io::Error,
    },
    /// The server took a connection and said nothing on it.
    #[error("{server}: {error}")]
    Silent {
        /// Which.
        server: SocketAddrV4,
        /// For how long.
        error: ClientError,
    },
    /// What the server sent is not the protocol of a chunkserver.
    #[error("{server}: not a chunkserver, or a broken one: {error}")]
    Broken {
        /// Which.
        server: SocketAddrV4,
        /// What came.
        error: ClientError,
    },
}

/// One I/O of a trace.
#[derive(Clone, Copy, Debug)]
pub struct Traced {
    /// Microseconds since the beginning.
    pub start_us: u64,
    /// Microseconds it took.
    pub latency_us: u64,
    /// Whether it was a write.
    pub write: bool,
    /// Its address.
    pub offset_bytes: u64,
    /// Its size.
    pub bytes: u32,
    /// Whether it succeeded.
    pub ok: bool,
}

impl fmt::Display for Traced {
    /// `start_us latency_us r|w offset bytes ok|ERROR`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Traced {
            start_us,
            latency_us,
            offset_bytes,
            bytes,
            ..
        } = self;
        let (way, end) = (
            if self.write { 'w' } else { 'r' },
            if self.ok { "ok" } else { "ERROR" },
        );
        write!(
            f,
            "{start_us} {latency_us} {way} {offset_bytes} {bytes} {end}"
        )
    }
}

/// What a run has shown; the fields of the JSON.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct BenchResult {
    pub rw: String,
    pub bs_bytes: u32,
    pub iodepth: u32,
    pub sessions: u32,
    pub elapsed_s: f64,
    pub ios: u64,
    pub bytes: u64,
    pub errors: u64,
    pub verify_errors: u64,
    pub iops: f64,
    pub bytes_per_s: f64,
    pub lat_us: Latencies,
    /// CPU seconds of this process during the run: user, system.
    pub cpu_s: (f64, f64),
    /// The first error, for people.
    pub first_error: Option<String>,
}

/// Is given each I/O as it ends.
pub type Trace = Box<dyn FnMut(Traced)>;

struct Run {
    config: BenchConfig,
    rt: Rt,
    pool: Pool,
    connector: Rc<dyn Connector>,
    started: Instant,
    until: Instant,
    /// I/Os in the span.
    slots: u64,
    next_slot: Cell<u64>,
    bytes_left: Cell<u64>,
    histogram: RefCell<Histogram>,
    ios: Cell<u64>,
    bytes: Cell<u64>,
    errors: Cell<u64>,
    verify_errors: Cell<u64>,
    first_error: RefCell<Option<String>>,
    trace: RefCell<Option<Trace>>,
    /// The peer is none to load: no worker goes on.
    given_up: Cell<bool>,
}

/// Runs a load and tells what it has shown. `Err` if it could not begin, or if the peer fell silent or
/// broke the protocol; refused I/Os and lost connections are counted as errors, and the run goes on.
pub async fn run(
    config: BenchConfig,
    rt: Rt,
    pool: Pool,
    connector: Rc<dyn Connector>,
    trace: Option<Trace>,
) -> Result<BenchResult, BenchError> {
    let slots = check(&config)?;
    let workers = u64::from(config.iodepth) * u64::from(config.sessions);
    let mut connections = Vec::new();
    for _ in 0..workers {
        let unreachable = |error| BenchError::Unreachable {
            server: config.server,
            error,
        };
        let connected = connect(&rt, &pool, &*connector, config.server).await;
        connections.push(connected.map_err(unreachable)?);
    }
    let cpu_before = cpu_s();
    let started = rt.now();
    let run = Rc::new(Run {
        until: config
            .runtime
            .map_or(Instant::FAR, |runtime| started + runtime),
        bytes_left: Cell::new(config.size_bytes.unwrap_or(u64::MAX)),
        config,
        rt: rt.clone(),
        pool,
        connector,
        started,
        slots,
        next_slot: Cell::new(0),
        histogram: RefCell::default(),
        ios: Cell::new(0),
        bytes: Cell::new(0),
        errors: Cell::new(0),
        verify_errors: Cell::new(0),
        first_error: RefCell::default(),
        trace: RefCell::new(trace),
        given_up: Cell::new(false),
    });
    let (done, mut all_done) = mpsc::channel::<BenchError>(1);
    for (index, client) in connections.into_iter().enumerate() {
        let (run, done) = (run.clone(), done.clone());
        rt.spawn(async move {
            let ended = Worker::new(run, index as u64, workers, client).run().await;
            if let Err(error) = ended {
                // The first one counts.
                let _ = done.try_send(error);
            }
        });
    }
    drop(done);
    // Ends with the first failure, or when the last worker has dropped its end.
    match all_done.recv().await {
        None => Ok(run.result(cpu_before)),
        Some(error) => {
            run.given_up.set(true);
            Err(error)
        }
    }
}

async fn connect(
    rt: &Rt,
    pool: &Pool,
    connector: &dyn Connector,
    server: SocketAddrV4,
) -> io::Result<Client<Box<dyn Transport>>> {
    let connected = rt.by(rt.now() + ANSWER, connector.connect(server)).await;
    let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    Ok(Client::new(connected?, pool.clone()).with_patience(rt, ANSWER))
}

fn check(config: &BenchConfig) -> Result<u64, BenchError> {
    let usage = |text: String| Err(BenchError::Usage(text));
    let block = config.block_bytes;
    if !block.is_power_of_two() || !(512..=CHUNK_BYTES).contains(&block) {
        return usage(format!(
            "block size {block} is not a power of two from 512 to 64 MiB"
        ));
    }
    if config.iodepth == 0 || config.sessions == 0 || config.chunks.is_empty() {
        return usage("iodepth, sessions and chunks must be at least 1".into());
    }
    if config.runtime.is_none() && config.size_bytes.is_none() {
        return usage("neither a run time nor a size to end by".into());
    }
    let whole = config.chunks.len() as u64 * u64::from(CHUNK_BYTES);
    let Some(rest) = whole
        .checked_sub(config.offset_bytes)
        .filter(|rest| *rest > 0)
    else {
        return usage(format!("offset beyond the {whole} bytes of the chunks"));
    };
    if config.offset_bytes % u64::from(block) != 0 {
        return usage("offset is not a multiple of the block size".into());
    }
    match config.span_bytes.unwrap_or(rest).min(rest) / u64::from(block) {
        0 => usage("the span holds no block".into()),
        slots => Ok(slots),
    }
}

impl Run {
    fn ended(&self) -> bool {
        self.given_up.get() || self.rt.now() >= self.until || self.bytes_left.get() == 0
    }

    fn record(&self, begun: Instant, address: u64, write: bool, error: Option<String>) {
        let (now, bytes) = (self.rt.now(), self.config.block_bytes);
        self.bytes_left
            .set(self.bytes_left.get().saturating_sub(bytes.into()));
        let ok = error.is_none();
        if ok {
            self.histogram.borrow_mut().record(now - begun);
            self.ios.set(self.ios.get() + 1);
            self.bytes.set(self.bytes.get() + u64::from(bytes));
        } else {
            self.errors.set(self.errors.get() + 1);
            self.first_error
                .borrow_mut()
                .get_or_insert_with(|| error.unwrap_or_default());
        }
        if let Some(trace) = &mut *self.trace.borrow_mut() {
            trace(Traced {
                start_us: (begun - self.started).as_micros() as u64,
                latency_us: (now - begun).as_micros() as u64,
                write,
                offset_bytes: address,
                bytes,
                ok,
            });
        }
    }

    fn result(&self, cpu_before: (f64, f64)) -> BenchResult {
        let elapsed_s = (self.rt.now() - self.started).as_secs_f64().max(1e-9);
        let (user, system) = cpu_s();
        BenchResult {
            rw: self.config.mode.to_string(),
            bs_bytes: self.config.block_bytes,
            iodepth: self.config.iodepth,
            sessions: self.config.sessions,
            elapsed_s,
            ios: self.ios.get(),
            bytes: self.bytes.get(),
            errors: self.errors.get(),
            verify_errors: self.verify_errors.get(),
            iops: self.ios.get() as f64 / elapsed_s,
            bytes_per_s: self.bytes.get() as f64 / elapsed_s,
            lat_us: self.histogram.borrow().summary(),
            cpu_s: (user - cpu_before.0, system - cpu_before.1),
            first_error: self.first_error.borrow().clone(),
        }
    }
}

fn cpu_s() -> (f64, f64) {
    use nix::sys::resource::{getrusage, UsageWho};
    use nix::sys::time::TimeValLike;
    let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
    getrusage(UsageWho::RUSAGE_SELF).map_or((0.0, 0.0), |usage| {
        (seconds(usage.user_time()), seconds(usage.system_time()))
    })
}

/// One connection's stream of I/Os.
struct Worker<S> {
    run: Rc<Run>,
    index: u64,
    workers: u64,
    client: Option<Client<S>>,
    session: Option<(ChunkId, WriteSession)>,
    random: u64,
    /// Generation of each address written, in `verify`.
    written: BTreeMap<u64, u64>,
}

impl Worker<Box<dyn Transport>> {
    fn new(
        run: Rc<Run>,
        index: u64,
        workers: u64,
        client: Client<Box<dyn Transport>>,
    ) -> Worker<Box<dyn Transport>> {
        let seed = run
            .config
            .seed
            .wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let random = seed ^ 0xD1B5_4A32_D192_ED03;
        let random = if random == 0 { 1 } else { random };
        let (client, session) = (Some(client), None);
        Worker {
            run,
            index,
            workers,
            client,
            session,
            random,
            written: BTreeMap::new(),
        }
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    async fn run(mut self) -> Result<(), BenchError> {
        while !self.run.ended() {
            let (slot, write) = match self.run.config.mode {
                mode @ (Mode::Read | Mode::Write) => (self.next_slot(), mode == Mode::Write),
                Mode::RandRead => (self.random() % self.run.slots, false),
                Mode::RandWrite => (self.random() % self.run.slots, true),
                Mode::RandRw => (self.random() % self.run.slots, self.random() >> 20 & 1 == 1),
                Mode::Verify => match self.own_slot() {
                    Some(slot) => {
                        let write =
                            !self.written.contains_key(&slot) || self.random() >> 20 & 1 == 1;
                        (slot, write)
                    }
                    None => return Ok(()),
                },
            };
            self.one(slot, write).await?;
        }
        if self.run.config.mode == Mode::Verify {
            let slots: Vec<u64> = self.written.keys().copied().collect();
            for slot in slots {
                self.one(slot, false).await?;
            }
        }
        if let (Some(client), Some((_, session))) = (&mut self.client, self.session.take()) {
            // The writes are acknowledged; a lost connection changes nothing about them.
            let _ = client.finish(session).await;
        }
        Ok(())
    }

    fn next_slot(&self) -> u64 {
        let slot = self.run.next_slot.get();
        self.run.next_slot.set(slot + 1);
        slot % self.run.slots
    }

    /// A random address that no other connection writes.
    fn own_slot(&mut self) -> Option<u64> {
        let own = (self.run.slots + self.workers - 1 - self.index) / self.workers;
        (own > 0).then(|| self.random() % own * self.workers + self.index)
    }

    async fn one(&mut self, slot: u64, write: bool) -> Result<(), BenchError> {
        let address = self.run.config.offset_bytes + slot * u64::from(self.run.config.block_bytes);
        let begun = self.run.rt.now();
        let done = match self.client {
            Some(_) if write => self.write(address, slot).await,
            Some(_) => self.read(address, slot).await,
            None => Err(ClientError::Closed),
        };
        let server = self.run.config.server;
        let done = match done {
            Err(error @ ClientError::Silent(_)) => {
                return Err(BenchError::Silent { server, error });
            }
            Err(error) if error.breaks_protocol() => {
                return Err(BenchError::Broken { server, error });
            }
            done => done,
        };
        let broken = matches!(&done, Err(e) if !matches!(e, ClientError::Status(_)) || write);
        self.run
            .record(begun, address, write, done.err().map(|e| e.to_string()));
        if broken {
            let Run {
                rt,
                pool,
                connector,
                ..
            } = &*self.run;
            self.session = None;
            rt.sleep(Duration::from_millis(100)).await;
            self.client = connect(rt, pool, &**connector, server).await.ok();
        }
        Ok(())
    }

    fn place(&self, address: u64) -> (ChunkId, ChunkVersion, u32) {
        let index = (address / u64::from(CHUNK_BYTES)) as usize;
        let (id, version) = self.run.config.chunks[index];
        (id, version, (address % u64::from(CHUNK_BYTES)) as u32)
    }

    async fn end_session(&mut self) -> Result<(), ClientError> {
        match (self.session.take(), &mut self.client) {
            (Some((_, session)), Some(client)) => client.finish(session).await,
            _ => Ok(()),
        }
    }

    async fn read(&mut self, address: u64, slot: u64) -> Result<(), ClientError> {
        self.end_session().await?;
        let (id, version, offset) = self.place(address);
        let size = self.run.config.block_bytes;
        let request = ReadRequest {
            id,
            version,
            offset,
            size,
        };
        let Some(client) = &mut self.client else {
            return Err(ClientError::Closed);
        };
        let data = client.read(request).await?;
        if let Some(generation) = self.written.get(&slot) {
            let expected = content(self.run.config.seed, address, *generation, size);
            if data.to_vec() != expected {
                self.run.verify_errors.set(self.run.verify_errors.get() + 1);
            }
        }
        Ok(())
    }

    async fn write(&mut self, address: u64, slot: u64) -> Result<(), ClientError> {
        let (id, version, offset) = self.place(address);
        if self.session.as_ref().is_some_and(|(open, _)| *open != id) {
            self.end_session().await?;
        }
        let Worker {
            client,
            session,
            run,
            written,
            ..
        } = self;
        let Some(client) = client else {
            return Err(ClientError::Closed);
        };
        let (_, session) = match session {
            Some(open) => open,
            None => session.insert((id, client.open_write(id, version, Vec::new()).await?)),
        };
        // Unknown until acknowledged: a failed write must not be taken for the old content.
        let generation = written.remove(&slot).unwrap_or(0) + 1;
        let bytes = content(run.config.seed, address, generation, run.config.block_bytes);
        let data = run.pool.copy_now(&bytes);
        let mut last = 0;
        let mut at = 0;
        while at < data.len() {
            let place = offset + at as u32;
            let (block, inside) = ((place / BLOCK_BYTES) as u16, (place % BLOCK_BYTES) as u16);
            let end = data
                .len()
                .min(at + (BLOCK_BYTES - u32::from(inside)) as usize);
            let piece: IoVec = data.slice(at..end);
            let crc = crc32_iovec(&piece);
            last = client.queue_write(session, block, inside, &piece, crc);
            at = end;
        }
        while client.next_status(session).await? != last {}
        if run.config.mode == Mode::Verify {
            written.insert(slot, generation);
        }
        Ok(())
    }
}

/// A block that tells where and when it was written, in every 32 bytes.
fn content(seed: u64, address: u64, generation: u64, bytes: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes as usize);
    for index in 0..u64::from(bytes) / 32 {
        for word in [
            seed,
            address,
            generation,
            index.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        ] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    }
    out
}

/// Creates `count` chunks at a server that has registered with a played master, under ids it does
/// not hold.
pub async fn create_chunks(
    server: &mut Registered,
    count: u32,
) -> io::Result<Vec<(ChunkId, ChunkVersion)>> {
    // The top byte of an id is no part of the chunk's number.
    const LOW: u64 = (1 << 56) - 1;
    let first = server
        .chunks()
        .iter()
        .map(|chunk| chunk.id.0 & LOW)
        .max()
        .unwrap_or(0)
        + 1;
    let mut chunks = Vec::new();
    for number in 0..u64::from(count) {
        let (id, version) = (ChunkId(first + number), ChunkVersion(1));
        server.create(id, version).await?;
        chunks.push((id, version));
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_names() {
        for (mode, name) in MODES {
            assert_eq!((name.parse(), mode.to_string().as_str()), (Ok(mode), name));
        }
        assert!("sequential".parse::<Mode>().is_err());
    }
}
