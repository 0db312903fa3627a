//! `antler bench`: the load generators with their arguments and results.
//!
//! Sessions use the role `tool`, so that a bench beside a running node ends none of its sessions. What writes is
//! refused while this node or another one has the unit.

use std::io::Write;
use std::net::SocketAddrV4;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use blockdev::{BlockDevice, IoCtx, IoVec, Op, Pool, Rt, Sector};
use chunk_api::{ChunkId, ChunkVersion};
use iscsi_initiator::bench as iscsi;
use iscsi_initiator::isid::Role;
use iscsi_initiator::name::check_name;
use iscsi_initiator::path::{IscsiPort, PortConfig};
use moosefs::bench as chunk;
use moosefs::player::{Player, Script};

use crate::assemble::{self, Base, Leg, Opening, LOOK_SHARD};
use crate::cli::{BenchChunk, BenchDevice, BenchIscsi, Load, Rw};
use crate::config::{self, ChapUser, Config, Digest, HostPort, Iscsi};
use crate::data_path::DataPath;
use crate::exit::Failure;
use crate::names;
use crate::occupancy::{ensure_unclaimed, Occupancy};
use crate::probe::{awaited, login_failure, on_shard};
use crate::report::{BenchReport, CpuSeconds};

/// Memory of a bench beyond what its depth needs.
const POOL_BYTES: usize = 256 << 20;
/// A played master waits so long for a chunkserver.
const REGISTRATION: Duration = Duration::from_secs(60);
/// A bench that ends by size alone ends after this all the same.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

fn base(rt: Rt) -> Base {
    Base {
        rt,
        pool: Pool::new(POOL_BYTES),
    }
}

fn iscsi_config(load: &Load) -> Result<iscsi::BenchConfig, Failure> {
    let mode = match load.rw {
        Rw::Read => iscsi::Mode::Read,
        Rw::Write => iscsi::Mode::Write,
        Rw::Randread => iscsi::Mode::RandRead,
        Rw::Randwrite => iscsi::Mode::RandWrite,
        Rw::Randrw => iscsi::Mode::RandRw,
        Rw::Verify => iscsi::Mode::Verify,
    };
    Ok(iscsi::BenchConfig {
        mode,
        block_bytes: u32::try_from(load.bs)
            .map_err(|_| Failure::usage(format!("--bs {} is too large", load.bs)))?,
        iodepth: load.iodepth as usize,
        runtime: load.runtime_s().map_or(LONGEST, Duration::from_secs_f64),
        size_bytes: load.size,
        offset_bytes: load.offset,
        span_bytes: load.span,
        seed: load.seed,
        trace: load.trace.is_some(),
    })
}

fn iscsi_report(
    report: iscsi::Report,
    bench: &str,
    trace: Option<&Path>,
) -> Result<BenchReport, Failure> {
    if let Some(file) = trace {
        write_trace(file, report.trace.iter())?;
    }
    if let Some(error) = &report.first_error {
        tracing::warn!("first error: {error}");
    }
    Ok(BenchReport {
        bench: bench.to_owned(),
        rw: report.rw.to_owned(),
        bs_bytes: u64::from(report.bs_bytes),
        iodepth: report.iodepth as u32,
        sessions: report.sessions as u32,
        elapsed_s: report.elapsed_s,
        ios: report.ios,
        bytes: report.bytes,
        errors: report.errors,
        verify_errors: report.verify_errors,
        iops: report.iops,
        bytes_per_s: report.bytes_per_s,
        lat_us: report.lat_us.into(),
        cpu_s: CpuSeconds {
            user: report.cpu_s.user,
            system: report.cpu_s.system,
        },
        header_digest: Some(report.header_digest.to_owned()),
        data_digest: Some(report.data_digest.to_owned()),
    })
}

fn write_trace<T: std::fmt::Display>(
    file: &Path,
    lines: impl Iterator<Item = T>,
) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::problem(format!("--trace {}: {e}", file.display()));
    let mut out = std::io::BufWriter::new(std::fs::File::create(file).map_err(failed)?);
    for line in lines {
        writeln!(out, "{line}").map_err(failed)?;
    }
    out.flush().map_err(failed)
}

fn bench_failure(error: iscsi::BenchError) -> Failure {
    match &error {
        iscsi::BenchError::Range(_) => Failure::usage(error.to_string()),
        iscsi::BenchError::Login(login) => login_failure(login, error.to_string()),
    }
}

/// See [`crate::ops::Ops::bench_iscsi`].
pub fn bench_iscsi(defaults: &Iscsi, args: &BenchIscsi) -> Result<BenchReport, Failure> {
    let iscsi = iscsi_settings(defaults, args)?;
    let bench = iscsi_config(&args.load)?;
    on_shard(|rt| async move {
        let base = base(rt);
        let initiator = assemble::initiator(&base, &iscsi)?;
        let port = PortConfig {
            portal: assemble::portal(&args.portal, "--portal")?,
            source: None,
            target: args.target.clone(),
            lun: u64::from(args.lun),
            role: Role::Tool,
            shard: 0,
        };
        if args.load.rw.writes() {
            let look = PortConfig {
                shard: LOOK_SHARD,
                ..port.clone()
            };
            if let Some(look) = IscsiPort::new(initiator.clone(), look) {
                let unit = format!("{} LUN {} at {}", args.target, args.lun, args.portal);
                let deadline = base.rt.now() + iscsi.login_timeout;
                ensure_unclaimed(&base.rt, &look, &unit, deadline).await?;
            }
        }
        let deadline = base.rt.now() + iscsi.login_timeout;
        let run = iscsi::run_iscsi(&initiator, &port, args.load.sessions, bench, deadline);
        let report = awaited(&base.rt, "bench iscsi", run)
            .await
            .map_err(|error| {
                let failure = bench_failure(error);
                let text = format!("{}: {}", args.portal, failure.text);
                Failure { text, ..failure }
            })?;
        iscsi_report(report, "iscsi", args.load.trace.as_deref())
    })
}

/// `[iscsi]` of the configuration, if there is one, with what the command line says instead.
fn iscsi_settings(defaults: &Iscsi, args: &BenchIscsi) -> Result<Iscsi, Failure> {
    let mut iscsi = defaults.clone();
    let checked = |option: &str, name: &str| {
        check_name(name).map_err(|e| Failure::usage(format!("{option}: {e}")))
    };
    checked("--target", &args.target)?;
    if let Some(name) = &args.initiator_name {
        checked("--initiator-name", name)?;
        iscsi.initiator_name.clone_from(name);
    }
    let digest = |word: &str| match word {
        "crc32c" => Digest::Crc32c,
        "prefer-crc32c" => Digest::PreferCrc32c,
        "prefer-none" => Digest::PreferNone,
        _ => Digest::None,
    };
    if let Some(word) = &args.header_digest {
        iscsi.header_digest = digest(word);
    }
    if let Some(word) = &args.data_digest {
        iscsi.data_digest = digest(word);
    }
    let user = |user: &Option<String>, file: &Option<std::path::PathBuf>| match (user, file) {
        (Some(user), Some(file)) => {
            let here = std::env::current_dir().unwrap_or_default();
            let secret = config::read_secret(&file.to_string_lossy(), &here, None)
                .map_err(|e| Failure::usage(e.to_string()))?;
            Ok(Some(ChapUser {
                user: user.clone(),
                secret,
            }))
        }
        _ => Ok(None),
    };
    // Who names a user here means this one, and the target's only with it.
    if args.chap_user.is_some() {
        iscsi.chap = user(&args.chap_user, &args.chap_secret_file)?;
        iscsi.target_chap = user(&args.target_chap_user, &args.target_chap_secret_file)?;
    }
    Ok(iscsi)
}

/// A device under load.
struct DeviceLoad(Rc<dyn BlockDevice>);

impl DeviceLoad {
    async fn submit(&self, op: Op) -> Result<blockdev::Done, iscsi::LoadError> {
        self.0
            .submit(op, IoCtx::foreground())
            .await
            .map_err(|e| iscsi::LoadError {
                is_final: e.kind == blockdev::Kind::Closed,
                text: e.to_string(),
            })
    }
}

impl iscsi::Load for DeviceLoad {
    async fn read(&self, at: Sector, sectors: u32) -> Result<IoVec, iscsi::LoadError> {
        Ok(self.submit(Op::Read { at, sectors }).await?.into_data())
    }

    async fn write(&self, at: Sector, data: IoVec) -> Result<(), iscsi::LoadError> {
        let want = blockdev::Durability::Cache;
        self.submit(Op::Write { at, data, want }).await.map(|_| ())
    }
}

/// See [`crate::ops::Ops::bench_device`].
pub fn bench_device(config: &Config, args: &BenchDevice) -> Result<BenchReport, Failure> {
    let device = names::device(config, &args.name)?;
    let bench = iscsi_config(&args.load)?;
    on_shard(|rt| async move {
        let base = base(rt);
        let mut how = Opening {
            is_tool: true,
            ..Opening::default()
        };
        if args.load.rw.writes() {
            let fresh = raid::Uuid::random(&base.rt);
            let data_path = Rc::new(DataPath::enter(&config.chunkserver.data_path, fresh)?);
            let mut volumes = config.volumes.iter();
            let volume = volumes.find(|v| v.legs.contains(&device.name));
            let volume = volume.map_or("VOLUME", |v| &v.name);
            how.occupancy = Some(Occupancy::new(volume, &data_path));
            how.data_path = Some(data_path);
        }
        let leg = Leg::open_ready(&base, device, how).await?;
        let bytes = leg.block().geometry().bytes();
        let loads = (0..args.load.sessions)
            .map(|_| DeviceLoad(leg.block()))
            .collect();
        let run = iscsi::run(&base.rt, &base.pool, loads, bytes, bench);
        let report = awaited(&base.rt, "bench device", run)
            .await
            .map_err(bench_failure);
        leg.close().await;
        iscsi_report(report?, "device", args.load.trace.as_deref())
    })
}

/// See [`crate::ops::Ops::bench_chunk`].
pub fn bench_chunk(args: &BenchChunk) -> Result<BenchReport, Failure> {
    on_shard(|rt| async move {
        let base = base(rt);
        match (&args.server, &args.master) {
            (Some(server), _) => {
                let chunks = args
                    .chunk
                    .iter()
                    .map(|&(id, v)| (ChunkId(id), ChunkVersion(v)))
                    .collect();
                load_chunks(&base, ipv4(server)?, chunks, args).await
            }
            (None, Some(address)) => as_master(&base, ipv4(address)?, args).await,
            (None, None) => Err(Failure::usage("--server or --master is needed")),
        }
    })
}

fn ipv4(address: &HostPort) -> Result<SocketAddrV4, Failure> {
    let ip = address.host.parse().map_err(|_| {
        Failure::usage(format!(
            "{address}: the MooseFS protocol knows IPv4 addresses only"
        ))
    })?;
    Ok(SocketAddrV4::new(ip, address.port))
}

/// Plays a master: waits for a server, creates chunks, loads them, deletes them.
async fn as_master(
    base: &Base,
    address: SocketAddrV4,
    args: &BenchChunk,
) -> Result<BenchReport, Failure> {
    let io = |e: std::io::Error| {
        let text = format!("master at {address}: {e}");
        match e.kind() {
            std::io::ErrorKind::TimedOut => Failure::unreachable(text),
            _ => Failure::problem(text),
        }
    };
    let player = Player::listen(address.into(), Script::default())
        .await
        .map_err(io)?;
    eprintln!("waiting at {address} for a chunkserver to register");
    let accepted = base
        .rt
        .by(base.rt.now() + REGISTRATION, player.accept())
        .await;
    let mut server = accepted
        .map_err(|_| {
            Failure::unreachable(format!(
                "no chunkserver registered at {address} within {} s: set its master_host to this address",
                REGISTRATION.as_secs()
            ))
        })?
        .map_err(io)?;
    let chunks = chunk::create_chunks(&mut server, args.chunks)
        .await
        .map_err(io)?;
    let data_port = server.data_port();
    let loading = load_chunks(base, data_port, chunks.clone(), args);
    let report = tokio::select! { biased;
        report = loading => report,
        lost = server.keep_alive() => Err(io(lost)),
    };
    for &(id, version) in &chunks {
        server.delete(id, version).await.map_err(io)?;
    }
    report
}

async fn load_chunks(
    base: &Base,
    server: SocketAddrV4,
    chunks: Vec<(ChunkId, ChunkVersion)>,
    args: &BenchChunk,
) -> Result<BenchReport, Failure> {
    let load = &args.load;
    let mode = load.rw.as_str().parse().map_err(Failure::usage)?;
    let config = chunk::BenchConfig {
        server,
        chunks,
        mode,
        block_bytes: u32::try_from(load.bs)
            .map_err(|_| Failure::usage(format!("--bs {} is too large", load.bs)))?,
        iodepth: load.iodepth,
        sessions: load.sessions,
        runtime: load.runtime_s().map(Duration::from_secs_f64),
        size_bytes: load.size,
        offset_bytes: load.offset,
        span_bytes: load.span,
        seed: load.seed,
    };
    let traced: Rc<std::cell::RefCell<Vec<chunk::Traced>>> = Rc::default();
    let trace = load.trace.as_ref().map(|_| {
        let traced = traced.clone();
        Box::new(move |io| traced.borrow_mut().push(io)) as chunk::Trace
    });
    let connector = Rc::new(moosefs::net::TcpConnector);
    let run = chunk::run(config, base.rt.clone(), base.pool.clone(), connector, trace);
    let result = awaited(&base.rt, "bench chunk", run).await;
    let result = result.map_err(|e| match e {
        chunk::BenchError::Usage(text) => Failure::usage(text),
        chunk::BenchError::Broken { .. } => Failure::problem(e.to_string()),
        chunk::BenchError::Unreachable { .. } | chunk::BenchError::Silent { .. } => {
            Failure::unreachable(e.to_string())
        }
    })?;
    if let Some(file) = &load.trace {
        write_trace(file, traced.borrow().iter())?;
    }
    if let Some(error) = &result.first_error {
        tracing::warn!("first error: {error}");
    }
    Ok(BenchReport {
        bench: "chunk".to_owned(),
        rw: result.rw.clone(),
        bs_bytes: u64::from(result.bs_bytes),
        iodepth: result.iodepth,
        sessions: result.sessions,
        elapsed_s: result.elapsed_s,
        ios: result.ios,
        bytes: result.bytes,
        errors: result.errors,
        verify_errors: result.verify_errors,
        iops: result.iops,
        bytes_per_s: result.bytes_per_s as u64,
        lat_us: result.lat_us.into(),
        cpu_s: CpuSeconds {
            user: result.cpu_s.0,
            system: result.cpu_s.1,
        },
        header_digest: None,
        data_digest: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::path::Path;

    fn settings(config: &str, options: &[&str]) -> Result<Iscsi, Failure> {
        let environment = config::Environment::here();
        let loaded = config::parse("test", config, Path::new("test.toml"), &environment);
        let defaults = loaded.config.expect("a good configuration").iscsi;
        let base = [
            "antler",
            "bench",
            "iscsi",
            "--portal",
            "127.0.0.1",
            "--target",
        ];
        let words = base.iter().chain(options);
        let cli = crate::cli::Cli::try_parse_from(words).expect("good usage");
        let crate::cli::Command::Bench(crate::cli::BenchCommand::Iscsi(args)) = cli.command else {
            panic!("another command");
        };
        iscsi_settings(&defaults, &args)
    }

    /// Digests and users of the configuration hold for a bench, unless the command line says otherwise.
    #[test]
    fn bench_iscsi_logs_in_as_the_configuration_says() {
        let target = "iqn.2024-12.example:t";
        let config = "[iscsi]\nheader_digest = \"crc32c\"\ndata_digest = \"prefer-crc32c\"\n";
        let iscsi = settings(config, &[target]).expect("settings");
        assert_eq!(
            (iscsi.header_digest, iscsi.data_digest),
            (Digest::Crc32c, Digest::PreferCrc32c)
        );
        let iscsi = settings(config, &[target, "--header-digest", "none"]).expect("settings");
        assert_eq!(
            (iscsi.header_digest, iscsi.data_digest),
            (Digest::None, Digest::PreferCrc32c)
        );
    }

    #[test]
    fn names_that_no_login_may_carry_are_usage_errors() {
        let long = format!("iqn.2024-12.example:{}", "x".repeat(223));
        for options in [
            vec!["nonsense"],
            vec![long.as_str()],
            vec!["iqn.2024-12.example:t", "--initiator-name", "IQN.upper"],
        ] {
            let failure = settings("", &options).expect_err("a bad name");
            assert_eq!(failure.exit, crate::exit::ExitStatus::Usage, "{failure}");
        }
    }
}
