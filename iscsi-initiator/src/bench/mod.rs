//! Load generator: what `bench iscsi` and `bench device` run.
//!
//! [`run`] drives any [`Load`] with a fixed number of I/Os in flight and yields a [`Report`] whose
//! fields are those of the printed JSON. Offsets, order and data follow from the seed. The mode
//! `verify` writes blocks that carry (seed, offset, generation), reads them back in between and at
//! the end, and counts those that are wrong.

mod verify;

use crate::establish::Initiator;
use crate::path::{IscsiPort, IscsiSession, PortConfig};
use crate::session::COMMANDS_MAX;
use blockdev::completion::{pair, Abandoned};
use blockdev::latency::{Histogram, Latencies};
use blockdev::path::{Command, CommandError, LoginAs, LoginError, PathSession};
use blockdev::{Durability, Instant, IoCtx, IoVec, PathCause, Pool, Rt, Sector, SECTOR_BYTES};
use nix::sys::resource::{getrusage, UsageWho};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use thiserror::Error;
use verify::Blocks;

/// Something that takes load. One I/O in flight is one future.
pub trait Load: 'static {
    /// Reads `sectors` sectors at `at`.
    fn read(&self, at: Sector, sectors: u32) -> impl Future<Output = Result<IoVec, LoadError>>;

    /// Writes `data` at `at`.
    fn write(&self, at: Sector, data: IoVec) -> impl Future<Output = Result<(), LoadError>>;

    /// What offsets and sizes are multiples of, in bytes.
    fn logical_block_bytes(&self) -> u32 {
        SECTOR_BYTES as u32
    }

    /// An I/O was not answered for [`UNANSWERED_MAX`]: ends all that are in flight with an error.
    /// A load with time limits of its own has nothing to do.
    fn abandon(&self) {}
}

/// A load that has no time limits of its own may leave an I/O unanswered for so long.
pub const UNANSWERED_MAX: Duration = Duration::from_secs(30);
/// How often it is looked for such I/Os.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause of a worker after an I/O that failed: errors that come at once must not keep the sessions
/// from their work, nor fill the trace.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(1);

/// An I/O that failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct LoadError {
    /// What happened.
    pub text: String,
    /// Nothing more will succeed: the worker ends.
    pub is_final: bool,
}

/// Access pattern.
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
    /// Random reads and writes, half each.
    RandRw,
    /// Random writes of marked blocks, read back and compared.
    Verify,
}

impl Mode {
    /// By its name on the command line.
    pub fn from_name(name: &str) -> Option<Mode> {
        Some(match name {
            "read" => Mode::Read,
            "write" => Mode::Write,
            "randread" => Mode::RandRead,
            "randwrite" => Mode::RandWrite,
            "randrw" => Mode::RandRw,
            "verify" => Mode::Verify,
            _ => return None,
        })
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Read => "read",
            Mode::Write => "write",
            Mode::RandRead => "randread",
            Mode::RandWrite => "randwrite",
            Mode::RandRw => "randrw",
            Mode::Verify => "verify",
        }
    }

    /// Whether it changes what is on the device.
    pub fn writes(self) -> bool {
        !matches!(self, Mode::Read | Mode::RandRead)
    }
}

/// What to do.
#[derive(Clone, Debug)]
pub struct BenchConfig {
    /// Access pattern.
    pub mode: Mode,
    /// Bytes of one I/O, a multiple of the logical block.
    pub block_bytes: u32,
    /// I/Os in flight per session.
    pub iodepth: usize,
    /// Ends after this time.
    pub runtime: Duration,
    /// Ends after this many bytes; `None` = by time alone.
    pub size_bytes: Option<u64>,
    /// First byte of the region.
    pub offset_bytes: u64,
    /// Bytes of the region; `None` = to the end of the device.
    pub span_bytes: Option<u64>,
    /// Of offsets, order and data.
    pub seed: u64,
    /// Whether to keep a line for each I/O.
    pub trace: bool,
}

/// One I/O of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceLine {
    /// Since the beginning, in microseconds.
    pub start_us: u64,
    /// In microseconds.
    pub latency_us: u64,
    /// A write.
    pub is_write: bool,
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub bytes: u32,
    /// What went wrong, if anything.
    pub error: Option<String>,
}

impl std::fmt::Display for TraceLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = if self.is_write { 'w' } else { 'r' };
        let result = match &self.error {
            None => "ok".to_owned(),
            Some(text) => text.replace(' ', "_"),
        };
        let TraceLine {
            start_us,
            latency_us,
            offset,
            bytes,
            ..
        } = self;
        write!(
            f,
            "{start_us} {latency_us} {direction} {offset} {bytes} {result}"
        )
    }
}

/// Processor time of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuSeconds {
    /// In user mode.
    pub user: f64,
    /// In the kernel.
    pub system: f64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// `iscsi` or `device`.
    pub bench: &'static str,
    /// Mode.
    pub rw: &'static str,
    /// Bytes of one I/O.
    pub bs_bytes: u32,
    /// I/Os in flight per session.
    pub iodepth: usize,
    /// Sessions.
    pub sessions: usize,
    /// Time taken.
    pub elapsed_s: f64,
    /// I/Os that succeeded.
    pub ios: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// Blocks that read wrong.
    pub verify_errors: u64,
    /// I/Os a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_s: u64,
    /// Latencies.
    pub lat_us: Latencies,
    /// Processor time.
    pub cpu_s: CpuSeconds,
    /// Negotiated header digest.
    pub header_digest: &'static str,
    /// Negotiated data digest.
    pub data_digest: &'static str,
    /// The first error, for people.
    pub first_error: Option<String>,
    /// One line an I/O, if a trace was asked for.
    pub trace: Vec<TraceLine>,
}

/// Why nothing was run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BenchError {
    /// The region is empty, unaligned or outside the device.
    #[error("{0}")]
    Range(String),
    /// No session.
    #[error("{0}")]
    Login(#[from] LoginError),
}

/// xorshift64*: fast, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[derive(Clone, Copy, Debug)]
enum Io {
    Read { block: u64 },
    Write { block: u64 },
}

struct State {
    dice: Dice,
    next_block: u64,
    begun: u64,
    limit: Option<u64>,
    stop_at: Instant,
    verify: Option<Blocks>,
    latencies: Histogram,
    ios: u64,
    errors: u64,
    verify_errors: u64,
    first_error: Option<String>,
    trace: Vec<TraceLine>,
}

struct Run<L> {
    rt: Rt,
    config: BenchConfig,
    loads: Vec<L>,
    blocks: u64,
    fill: IoVec,
    pool: Pool,
    start: Instant,
    state: RefCell<State>,
    /// Of each worker, when the I/O it waits for began.
    begun: Vec<Cell<Option<Instant>>>,
}

struct Ended;

impl Abandoned for Ended {
    fn abandoned() -> Ended {
        Ended
    }
}

/// Runs `config` on `loads` (one a session), a device of `device_bytes` bytes.
///
/// # Errors
/// [`BenchError::Range`] if the region does not fit.
pub async fn run<L: Load>(
    rt: &Rt,
    pool: &Pool,
    loads: Vec<L>,
    device_bytes: u64,
    config: BenchConfig,
) -> Result<Report, BenchError> {
    let logical = loads.iter().map(Load::logical_block_bytes).max();
    let blocks = region(
        &config,
        device_bytes,
        logical.unwrap_or(SECTOR_BYTES as u32),
    )?;
    let start = rt.now();
    let verify = (config.mode == Mode::Verify).then(|| Blocks::new(config.seed, blocks));
    let blocks = verify.as_ref().map_or(blocks, Blocks::len);
    let state = State {
        dice: Dice::new(config.seed),
        next_block: 0,
        begun: 0,
        limit: config
            .size_bytes
            .map(|bytes| bytes.div_ceil(u64::from(config.block_bytes))),
        stop_at: start + config.runtime,
        verify,
        latencies: Histogram::default(),
        ios: 0,
        errors: 0,
        verify_errors: 0,
        first_error: None,
        trace: Vec::new(),
    };
    let mut dice = Dice::new(!config.seed);
    let fill: Vec<u8> = (0..config.block_bytes.div_ceil(8))
        .flat_map(|_| dice.next().to_be_bytes())
        .collect();
    let run = Rc::new(Run {
        rt: rt.clone(),
        fill: pool.copy_now(&fill[..config.block_bytes as usize]),
        pool: pool.clone(),
        blocks,
        start,
        begun: vec![Cell::default(); loads.len() * config.iodepth],
        loads,
        state: RefCell::new(state),
        config,
    });
    let cpu = cpu_now();
    let workers: Vec<_> = (0..run.begun.len())
        .map(|index| {
            let (promise, ended) = pair::<Ended>();
            let run = run.clone();
            rt.spawn(async move {
                run.work(index).await;
                promise.complete(Ended);
            });
            ended
        })
        .collect();
    let all = async {
        for worker in workers {
            worker.await;
        }
        if run.config.mode == Mode::Verify {
            run.read_all_back().await;
        }
    };
    run.watched(all).await;
    Ok(run.report(cpu))
}

/// Blocks of the region.
fn region(
    config: &BenchConfig,
    device_bytes: u64,
    logical_block_bytes: u32,
) -> Result<u64, BenchError> {
    let bs = u64::from(config.block_bytes);
    let logical = u64::from(logical_block_bytes);
    let bad = |text: String| Err(BenchError::Range(text));
    if bs == 0 || bs % logical != 0 || config.offset_bytes % logical != 0 {
        return bad(format!(
            "block size {bs} and offset {} must be multiples of the logical block of {logical} bytes",
            config.offset_bytes
        ));
    }
    if config.iodepth == 0 {
        return bad("iodepth must be at least 1".to_owned());
    }
    let rest = device_bytes.saturating_sub(config.offset_bytes);
    let span = config.span_bytes.unwrap_or(rest);
    if span > rest || span < bs {
        return bad(format!(
            "a region of {span} bytes at {} does not fit the device of {device_bytes} bytes or \
             holds no block of {bs}",
            config.offset_bytes
        ));
    }
    Ok(span / bs)
}

impl<L: Load> Run<L> {
    async fn work(&self, worker: usize) {
        while let Some(io) = self.next() {
            if self.once(worker, io).await {
                return;
            }
        }
    }

    /// Runs `work` to its end, which a target that never answers cannot keep from coming.
    async fn watched(&self, work: impl Future<Output = ()>) {
        let mut work = std::pin::pin!(work);
        loop {
            let look_at = self.rt.now() + LOOK_EVERY;
            if self.rt.by(look_at, work.as_mut()).await.is_ok() {
                return;
            }
            let now = self.rt.now();
            for (worker, begun) in self.begun.iter().enumerate() {
                let begun = begun.get();
                if begun.is_some_and(|begun| begun + UNANSWERED_MAX <= now) {
                    self.load(worker).abandon();
                }
            }
        }
    }

    /// The load of a worker.
    fn load(&self, worker: usize) -> &L {
        &self.loads[worker % self.loads.len()]
    }

    /// The next I/O; `None` when time or size is used up.
    fn next(&self) -> Option<Io> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if self.rt.now() >= state.stop_at || state.limit.is_some_and(|limit| state.begun >= limit) {
            return None;
        }
        state.begun += 1;
        let in_turn = state.next_block;
        let random = state.dice.below(self.blocks);
        state.next_block = (in_turn + 1) % self.blocks;
        Some(match self.config.mode {
            Mode::Read => Io::Read { block: in_turn },
            Mode::Write => Io::Write { block: in_turn },
            Mode::RandRead => Io::Read { block: random },
            Mode::RandWrite => Io::Write { block: random },
            Mode::RandRw if state.dice.next() >> 63 == 0 => Io::Read { block: random },
            Mode::RandRw => Io::Write { block: random },
            Mode::Verify => {
                let is_read = state.dice.next() >> 63 == 0;
                let blocks = state.verify.as_mut().expect("mode verify has blocks");
                match blocks.take(random, is_read)? {
                    (block, true) => Io::Read { block },
                    (block, false) => Io::Write { block },
                }
            }
        })
    }

    fn at(&self, block: u64) -> Sector {
        let offset = self.config.offset_bytes + block * u64::from(self.config.block_bytes);
        Sector::from_bytes(offset)
    }

    /// One I/O; `true` if the worker is to end.
    async fn once(&self, worker: usize, io: Io) -> bool {
        let begun = self.rt.now();
        self.begun[worker].set(Some(begun));
        let (has_failed, ends) = self.try_once(self.load(worker), io, begun).await;
        self.begun[worker].set(None);
        if has_failed && !ends {
            self.rt.sleep(PAUSE_AFTER_ERROR).await;
        }
        ends
    }

    /// One I/O; whether it failed, and whether no other will succeed.
    async fn try_once(&self, load: &L, io: Io, begun: Instant) -> (bool, bool) {
        let bytes = self.config.block_bytes;
        let (block, result) =
            match io {
                Io::Read { block } => (
                    block,
                    load.read(self.at(block), bytes / SECTOR_BYTES as u32)
                        .await
                        .map(Some),
                ),
                Io::Write { block } => {
                    let data =
                        self.state.borrow().verify.as_ref().map(|blocks| {
                            self.pool.copy_now(&blocks.content(block, bytes as usize))
                        });
                    let data = data.unwrap_or_else(|| self.fill.clone());
                    (block, load.write(self.at(block), data).await.map(|()| None))
                }
            };
        let latency = self.rt.now() - begun;
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut error = None;
        let mut ends = false;
        match &result {
            Ok(data) => {
                state.ios += 1;
                state.latencies.record(latency);
                if let Some(blocks) = &mut state.verify {
                    if !blocks.done(block, bytes as usize, data.as_ref()) {
                        state.verify_errors += 1;
                        error = Some("WRONG DATA".to_owned());
                    }
                }
            }
            Err(failure) => {
                state.errors += 1;
                ends = failure.is_final;
                if let Some(blocks) = &mut state.verify {
                    blocks.failed(block, matches!(io, Io::Write { .. }));
                }
                error = Some(failure.text.clone());
            }
        }
        if state.first_error.is_none() {
            state.first_error = error.clone();
        }
        if self.config.trace {
            state.trace.push(TraceLine {
                start_us: (begun - self.start).as_micros() as u64,
                latency_us: latency.as_micros() as u64,
                is_write: matches!(io, Io::Write { .. }),
                offset: self.at(block).bytes(),
                bytes,
                error,
            });
        }
        (result.is_err(), ends)
    }

    /// Reads every block that was written, in order.
    async fn read_all_back(&self) {
        let mut next = 0;
        loop {
            let block = {
                let mut state = self.state.borrow_mut();
                let blocks = state.verify.as_mut().expect("mode verify has blocks");
                blocks.next_written(next)
            };
            let Some(block) = block else { return };
            next = block + 1;
            // Workers have ended; their places are those of the loads.
            let worker = block as usize % self.loads.len();
            if self.once(worker, Io::Read { block }).await {
                return;
            }
        }
    }

    fn report(&self, cpu: CpuSeconds) -> Report {
        let elapsed_s = (self.rt.now() - self.start).as_secs_f64();
        let now = cpu_now();
        let mut state = self.state.borrow_mut();
        let bytes = state.ios * u64::from(self.config.block_bytes);
        Report {
            bench: "device",
            rw: self.config.mode.name(),
            bs_bytes: self.config.block_bytes,
            iodepth: self.config.iodepth,
            sessions: self.loads.len(),
            elapsed_s,
            ios: state.ios,
            bytes,
            errors: state.errors,
            verify_errors: state.verify_errors,
            iops: state.ios as f64 / elapsed_s.max(1e-9),
            bytes_per_s: (bytes as f64 / elapsed_s.max(1e-9)) as u64,
            lat_us: state.latencies.summary(),
            cpu_s: CpuSeconds {
                user: now.user - cpu.user,
                system: now.system - cpu.system,
            },
            header_digest: "none",
            data_digest: "none",
            first_error: state.first_error.take(),
            trace: std::mem::take(&mut state.trace),
        }
    }
}

fn cpu_now() -> CpuSeconds {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return CpuSeconds::default();
    };
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    CpuSeconds {
        user: seconds(usage.user_time()),
        system: seconds(usage.system_time()),
    }
}

impl Load for Rc<IscsiSession> {
    async fn read(&self, at: Sector, sectors: u32) -> Result<IoVec, LoadError> {
        let (_, done) = self.submit(Command::Read { at, sectors }, IoCtx::foreground());
        done.await
            .map(blockdev::Done::into_data)
            .map_err(load_error)
    }

    async fn write(&self, at: Sector, data: IoVec) -> Result<(), LoadError> {
        let write = Command::Write {
            at,
            data,
            want: Durability::Cache,
        };
        let (_, done) = self.submit(write, IoCtx::foreground());
        done.await.map(|_| ()).map_err(load_error)
    }

    fn logical_block_bytes(&self) -> u32 {
        self.identity().geometry.logical_block_bytes
    }

    fn abandon(&self) {
        self.abort(PathCause::Administrative("a command was not answered"));
    }
}

fn load_error(error: CommandError) -> LoadError {
    LoadError {
        is_final: matches!(error, CommandError::Lost { .. } | CommandError::Withdrawn),
        text: error.to_string(),
    }
}

/// Runs `config` over `sessions` sessions to one unit, logged in by `deadline`.
///
/// # Errors
/// If a session cannot be had or the region does not fit.
pub async fn run_iscsi(
    initiator: &Initiator,
    unit: &PortConfig,
    sessions: u32,
    config: BenchConfig,
    deadline: Instant,
) -> Result<Report, BenchError> {
    if config.iodepth > COMMANDS_MAX {
        return Err(BenchError::Range(format!(
            "iodepth {}: a session takes at most {COMMANDS_MAX} commands",
            config.iodepth
        )));
    }
    let initiator = Initiator {
        tasks_in_flight_max: config.iodepth.max(initiator.tasks_in_flight_max),
        ..initiator.clone()
    };
    let mut open = Vec::new();
    for shard in 0..sessions.max(1) {
        let config = PortConfig {
            shard,
            ..unit.clone()
        };
        let port = IscsiPort::new(initiator.clone(), config);
        let port = port.ok_or_else(|| BenchError::Range("LUN above 16383".to_owned()))?;
        open.push(port.open(LoginAs::Own, deadline).await?);
    }
    let facts = open[0].facts();
    let bytes = open[0].identity().geometry.bytes();
    let report = run(&initiator.rt, &initiator.pool, open.clone(), bytes, config).await?;
    for session in open {
        session
            .logout(initiator.rt.now() + Duration::from_secs(1))
            .await;
    }
    Ok(Report {
        bench: "iscsi",
        header_digest: facts.header_digest,
        data_digest: facts.data_digest,
        ..report
    })
}
