//! The command line: every command with its flags and help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{self, HostPort};

/// A MooseFS chunkserver that brings its own iSCSI initiator, multipath and mirror.
#[derive(Debug, Parser)]
#[command(
    name = "antler",
    version,
    propagate_version = false,
    after_help = "Exit status: 0 done, 1 a problem, 2 bad usage or configuration, 3 a peer cannot be reached, \
                  4 damage is left.\nLogs go to standard error; ANTLER_LOG filters them (info,mpath=debug)."
)]
pub struct Cli {
    /// Configuration file [default: /etc/antler/antler.toml]
    #[arg(short = 'c', long = "config", global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The configuration file named, or the default one.
    pub fn config_path(&self) -> PathBuf {
        self.config
            .clone()
            .unwrap_or_else(|| PathBuf::from(config::DEFAULT_PATH))
    }
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the chunkserver in the foreground
    Serve,
    /// Validate the configuration and show every value with its origin
    Check,
    /// Ask iSCSI portals which targets they have (SendTargets)
    Discover {
        /// Address of a portal, with or without a port: 10.3.1.1, 10.3.1.1:3260 (IPv6 in brackets)
        #[arg(required = true, value_parser = portal, value_name = "PORTAL")]
        portals: Vec<HostPort>,
    },
    /// Look at a device
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Create, inspect, repair and move volumes that are not being served
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Everything about the running chunkserver on one page
    Status {
        /// Refresh every second until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Devices and their paths, as `multipath -ll` shows them
    Paths {
        /// A line a path, with wildcards of multipathd: "%m %d %t %T"
        #[arg(long, value_name = "F")]
        format: Option<String>,
        /// With --format a line a device instead: "%n %w %N %Q %F"
        #[arg(long, requires = "format")]
        maps: bool,
        /// Requests that needed more than one path, with each try
        #[arg(long, conflicts_with = "format")]
        events: bool,
    },
    /// Take a path out of use, or into use again
    #[command(subcommand)]
    Path(PathCommand),
    /// Mirrors and their legs, as `mdadm --detail` shows them
    Arrays,
    /// Take legs of a mirror out and in
    #[command(subcommand)]
    Leg(LegCommand),
    /// Verify the checksums of a volume on both legs and heal what differs
    Scrub {
        /// Name of the volume
        volume: String,
        /// What to do
        action: ScrubAction,
    },
    /// Deleted chunks that are held back
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Generate load and measure
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// `antler device …`
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Log in on every path and show what the unit says of itself
    Info {
        /// Name of the device
        name: String,
    },
}

/// `antler volume …`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Format the devices of a volume
    Create {
        /// Name of the volume
        name: String,
        /// Also if a device holds something
        #[arg(long)]
        force: bool,
        /// Do not wait until both legs read equal
        #[arg(long)]
        no_mirror_sync: bool,
    },
    /// Every configured volume
    List,
    /// One volume
    Info {
        /// Name of the volume
        name: String,
    },
    /// Check a volume (fsck): 0 clean, 1 repaired, 4 damage left
    Check {
        /// Name of the volume
        name: String,
        /// Repair what can be repaired
        #[arg(long)]
        repair: bool,
        /// Read the data as well, not only metadata
        #[arg(long)]
        data: bool,
    },
    /// Write chunks as .mfs files that stock MooseFS reads
    Export {
        /// Name of the volume
        name: String,
        /// Directory to write to
        dir: PathBuf,
        /// Only this chunk (hex)
        #[arg(long, value_parser = hex_u64, value_name = "ID")]
        chunk: Option<u64>,
    },
    /// Take in .mfs files of stock MooseFS
    Import(Import),
    /// Take over a volume from another node, or set the file system it belongs to
    Claim(Claim),
    /// Use the space that the legs have gained
    Grow {
        /// Name of the volume
        name: String,
    },
    /// Bring the format up to date
    Upgrade {
        /// Name of the volume
        name: String,
    },
}

/// `antler volume import`
#[derive(Debug, Args)]
pub struct Import {
    /// Name of the volume
    pub name: String,
    /// Directory to read from, with its subdirectories
    pub dir: PathBuf,
    /// Id of the file system the chunks belong to [default: from DIR/.metaid]
    #[arg(long, value_parser = real_metaid, value_name = "HEX")]
    pub metaid: Option<u64>,
}

/// `antler volume claim`
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["take", "metaid"])))]
pub struct Claim {
    /// Name of the volume
    pub name: String,
    /// Take the volume over from the node that claims it, and fence that node's writes
    #[arg(long)]
    pub take: bool,
    /// Also if the target refuses the fence
    #[arg(long, requires = "take")]
    pub force: bool,
    /// The file system the volume belongs to, or "any" for the next master that asks
    #[arg(long, value_parser = metaid, value_name = "HEX|any")]
    pub metaid: Option<MetaId>,
}

/// Which file system a volume belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaId {
    /// That of the next master.
    Any,
    /// This one.
    Id(u64),
}

/// `antler path …`
#[derive(Debug, Subcommand)]
pub enum PathCommand {
    /// Take a path out of use until it is reinstated
    Fail(PathArgs),
    /// Take it into use again
    Reinstate(PathArgs),
}

/// A path.
#[derive(Debug, Args)]
pub struct PathArgs {
    /// Name of the device
    pub device: String,
    /// Its portal
    #[arg(value_parser = portal)]
    pub portal: HostPort,
}

/// `antler leg …`
#[derive(Debug, Subcommand)]
pub enum LegCommand {
    /// Take a leg out of the mirror
    Fail(LegArgs),
    /// Forget a leg that is out
    Remove(LegArgs),
    /// Take a leg in: what changed is copied, or all that is used
    Add(LegFillArgs),
    /// Fill a blank or foreign device and make it a leg
    Replace(LegFillArgs),
    /// Serve from one leg although the other may be newer
    Run {
        /// Name of the volume
        volume: String,
        /// Name of the device
        device: String,
        /// Yes, alone: what only the other leg holds is given up
        #[arg(long, required = true)]
        alone: bool,
    },
}

/// A leg.
#[derive(Debug, Args)]
pub struct LegArgs {
    /// Name of the volume
    pub volume: String,
    /// Name of the device
    pub device: String,
}

/// A leg and how to fill it.
#[derive(Debug, Args)]
pub struct LegFillArgs {
    /// Name of the volume
    pub volume: String,
    /// Name of the device
    pub device: String,
    /// Copy free space as well
    #[arg(long)]
    pub full: bool,
    /// Also if the device holds something, or a history of its own
    #[arg(long)]
    pub force: bool,
}

/// `antler scrub VOLUME …`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScrubAction {
    /// Begin to read everything
    Start,
    /// End it
    Stop,
    /// How far it is
    Status,
}

/// `antler quarantine …`
#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// What is held, newest deletion first
    List,
    /// Bring chunks back (all, unless some are named)
    Restore(IdArgs),
    /// Delete chunks for good
    Purge(PurgeArgs),
}

/// Chunks in the quarantine.
#[derive(Debug, Args)]
pub struct IdArgs {
    /// ID or ID:VERSION: the id in hex, the version decimal or as eight hex digits
    pub ids: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
}

/// Chunks to delete: some, or expressly all.
#[derive(Debug, Args)]
pub struct PurgeArgs {
    /// ID or ID:VERSION: the id in hex, the version decimal or as eight hex digits
    #[arg(required_unless_present = "all")]
    pub ids: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
}

/// `antler bench …`
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// One iSCSI path
    Iscsi(Box<BenchIscsi>),
    /// A configured device through all its paths, without the mirror
    Device(Box<BenchDevice>),
    /// A chunkserver, ours or stock
    Chunk(Box<BenchChunk>),
}

/// What to do how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rw {
    /// Read in order
    Read,
    /// Write in order
    Write,
    /// Read anywhere
    Randread,
    /// Write anywhere
    Randwrite,
    /// Both, half and half
    Randrw,
    /// Write marked blocks, read them back and count wrong ones
    Verify,
}

impl Rw {
    /// Whether it writes.
    pub fn writes(self) -> bool {
        !matches!(self, Rw::Read | Rw::Randread)
    }

    /// The word of the command line and of JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Rw::Read => "read",
            Rw::Write => "write",
            Rw::Randread => "randread",
            Rw::Randwrite => "randwrite",
            Rw::Randrw => "randrw",
            Rw::Verify => "verify",
        }
    }
}

/// The load, common to all benches.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// What to do
    #[arg(long, value_enum, default_value = "randread")]
    pub rw: Rw,
    /// Bytes an I/O: 4k, 64KiB (k, m and g are binary here, as with fio)
    #[arg(long, default_value = "4k", value_parser = block_size, value_name = "BYTES")]
    pub bs: u64,
    /// I/Os in flight, a session
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536), value_name = "N")]
    pub iodepth: u32,
    /// End after so many seconds [default: 10, unless --size is given]
    #[arg(long, value_parser = seconds, value_name = "S")]
    pub runtime: Option<f64>,
    /// End after so many bytes
    #[arg(long, value_parser = block_size, value_name = "BYTES")]
    pub size: Option<u64>,
    /// Begin here
    #[arg(long, default_value = "0", value_parser = block_size, value_name = "BYTES")]
    pub offset: u64,
    /// Stay within so many bytes from there [default: to the end]
    #[arg(long, value_parser = block_size, value_name = "BYTES")]
    pub span: Option<u64>,
    /// Of the random offsets and of what verify writes
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    pub sessions: u32,
    /// Write a line an I/O: start_us latency_us r|w offset bytes ok|ERROR
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// Seconds a bench runs when nothing ends it.
pub const BENCH_RUNTIME_S: f64 = 10.0;

impl Load {
    /// When to end by time: as asked, or by default if no size ends it.
    pub fn runtime_s(&self) -> Option<f64> {
        self.runtime
            .or_else(|| self.size.is_none().then_some(BENCH_RUNTIME_S))
    }
}

/// `antler bench iscsi`
#[derive(Debug, Args)]
pub struct BenchIscsi {
    /// The load
    #[command(flatten)]
    pub load: Load,
    /// Where the target listens
    #[arg(long, value_parser = portal, value_name = "IP:PORT")]
    pub portal: HostPort,
    /// Its name
    #[arg(long, value_name = "IQN")]
    pub target: String,
    /// Logical unit
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=16_383), value_name = "N")]
    pub lun: u16,
    /// Our name [default: from the configuration, or from the host name]
    #[arg(long, value_name = "IQN")]
    pub initiator_name: Option<String>,
    /// none, crc32c, prefer-crc32c or prefer-none [default: from the configuration, or none]
    #[arg(long, value_parser = DIGESTS)]
    pub header_digest: Option<String>,
    /// none, crc32c, prefer-crc32c or prefer-none [default: from the configuration, or none]
    #[arg(long, value_parser = DIGESTS)]
    pub data_digest: Option<String>,
    /// CHAP user [default: as the configuration says]
    #[arg(long, requires = "chap_secret_file", value_name = "U")]
    pub chap_user: Option<String>,
    /// File with the secret, mode 0600
    #[arg(long, requires = "chap_user", value_name = "F")]
    pub chap_secret_file: Option<PathBuf>,
    /// The target's user (mutual CHAP)
    #[arg(
        long,
        requires = "target_chap_secret_file",
        requires = "chap_user",
        value_name = "U"
    )]
    pub target_chap_user: Option<String>,
    /// File with the target's secret, mode 0600
    #[arg(long, requires = "target_chap_user", value_name = "F")]
    pub target_chap_secret_file: Option<PathBuf>,
    /// Yes, overwrite what is there (for modes that write)
    #[arg(long)]
    pub destructive: bool,
}

const DIGESTS: [&str; 4] = ["none", "crc32c", "prefer-crc32c", "prefer-none"];

/// `antler bench device`
#[derive(Debug, Args)]
pub struct BenchDevice {
    /// The load
    #[command(flatten)]
    pub load: Load,
    /// Name of the device
    pub name: String,
    /// Yes, overwrite what is there (for modes that write)
    #[arg(long)]
    pub destructive: bool,
}

/// `antler bench chunk`
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("where").required(true).args(["server", "master"])))]
pub struct BenchChunk {
    /// The load
    #[command(flatten)]
    pub load: Load,
    /// A chunkserver that has the chunks
    #[arg(long, value_parser = chunk_server, requires = "chunk", value_name = "IP:PORT")]
    pub server: Option<HostPort>,
    /// Chunks that exist there: ID:VERSION[,ID:VERSION…], the id in hex
    #[arg(long, value_parser = chunk, value_delimiter = ',', conflicts_with = "master", value_name = "ID:VERSION")]
    pub chunk: Vec<(u64, u32)>,
    /// Play a master here, wait for a chunkserver to register, create chunks, delete them after
    #[arg(long, value_parser = master_address, value_name = "IP:PORT")]
    pub master: Option<HostPort>,
    /// How many to create
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000), conflicts_with = "server", value_name = "N")]
    pub chunks: u32,
}

fn portal(text: &str) -> Result<HostPort, String> {
    HostPort::parse(text, 3260)
}

fn chunk_server(text: &str) -> Result<HostPort, String> {
    HostPort::parse(text, 9422)
}

fn master_address(text: &str) -> Result<HostPort, String> {
    HostPort::parse(text, 9420)
}

/// An id: up to 16 hex digits, with or without `0x`.
pub fn hex_u64(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    match u64::from_str_radix(digits, 16) {
        Ok(n) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(n),
        _ => Err("expected up to 16 hex digits".to_owned()),
    }
}

fn metaid(text: &str) -> Result<MetaId, String> {
    match text {
        "any" => Ok(MetaId::Any),
        hex => real_metaid(hex)
            .map(MetaId::Id)
            .map_err(|e| format!("{e}, or \"any\"")),
    }
}

/// 0 and all ones are no file system's.
fn real_metaid(text: &str) -> Result<u64, String> {
    match hex_u64(text)? {
        0 | u64::MAX => Err("expected the id of a MooseFS instance".to_owned()),
        id => Ok(id),
    }
}

fn chunk(text: &str) -> Result<(u64, u32), String> {
    match text.split_once(':') {
        Some((id, version)) => Ok((hex_u64(id)?, chunk_version(version)?)),
        None => Err("expected ID:VERSION".to_owned()),
    }
}

/// A chunk's version: decimal, as in JSON, or the eight hex digits that MooseFS' tools print.
pub fn chunk_version(text: &str) -> Result<u32, String> {
    let radix = if text.len() == 8 { 16 } else { 10 };
    match u32::from_str_radix(text, radix) {
        Ok(n) if text.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(n),
        _ => Err("expected a version: a decimal number, or eight hex digits".to_owned()),
    }
}

/// Sizes of benches follow fio: `4k` is 4096.
fn block_size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let binary = match lower.strip_suffix(['k', 'm', 'g', 't']) {
        Some(_) => format!("{lower}ib"),
        None => lower,
    };
    config::parse_size(&binary).ok_or_else(|| "expected a size such as 4k or 64KiB".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    match config::parse_span(text, true) {
        Some(d) if !d.is_zero() => Ok(d.as_secs_f64()),
        _ => Err("expected a number of seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn clap_finds_no_fault() {
        Cli::command().debug_assert();
        assert_eq!(
            Cli::command().render_version(),
            concat!("antler ", env!("CARGO_PKG_VERSION"), "\n")
        );
    }

    #[test]
    fn every_documented_command_is_accepted() {
        for line in [
            "antler serve -c x.toml",
            "antler -c x.toml check --json",
            "antler discover 10.3.1.1 [fd00::1]:3260 --json",
            "antler device info sto1",
            "antler volume create vol1 --force --no-mirror-sync",
            "antler volume list",
            "antler volume info vol1 --json",
            "antler volume check vol1 --repair --data",
            "antler volume export vol1 /tmp/x --chunk 0000000000000001",
            "antler volume import vol1 /tmp/x --metaid 5f3e",
            "antler volume claim vol1 --take --force",
            "antler volume claim vol1 --metaid any",
            "antler volume claim vol1 --metaid 5F3E",
            "antler volume grow vol1",
            "antler volume upgrade vol1",
            "antler status --watch",
            "antler paths --format %d",
            "antler paths --events --json",
            "antler path fail sto1 10.3.1.1",
            "antler path reinstate sto1 10.3.1.1:3260",
            "antler arrays",
            "antler leg fail vol1 sto1",
            "antler leg remove vol1 sto1",
            "antler leg add vol1 sto1 --full --force",
            "antler leg replace vol1 sto3 --full --force",
            "antler leg run vol1 sto1 --alone",
            "antler scrub vol1 start",
            "antler scrub vol1 status --json",
            "antler quarantine list",
            "antler quarantine restore",
            "antler quarantine restore 01:02 03",
            "antler quarantine purge --all",
            "antler bench iscsi --portal 127.0.0.1:3260 --target iqn.2024-12.a:b --lun 1 --rw write --bs 64k --iodepth 16 --runtime 5 --destructive",
            "antler bench iscsi --portal 127.0.0.1 --target iqn.2024-12.a:b --chap-user u --chap-secret-file f --target-chap-user t --target-chap-secret-file g --header-digest crc32c",
            "antler bench device sto1 --rw verify --size 1g --span 64m --seed 7 --sessions 2 --trace t --destructive",
            "antler bench chunk --server 127.0.0.1:9422 --chunk 01:01,02:01",
            "antler bench chunk --master 127.0.0.1:9420 --chunks 4",
        ] {
            if let Err(e) = parse(line) {
                panic!("{line}: {e}");
            }
        }
    }

    #[test]
    fn misuse_ends_with_2() {
        for line in [
            "antler",
            "antler fly",
            "antler discover",
            "antler discover 10.0.0",
            "antler volume claim vol1",
            "antler volume claim vol1 --take --metaid any",
            "antler leg run vol1 sto1",
            "antler quarantine purge",
            "antler bench chunk --server 127.0.0.1",
            "antler bench chunk --chunk 1:1",
            "antler bench iscsi --portal 127.0.0.1 --target t --chap-user u",
            "antler bench device sto1 --bs 4x",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        for line in [
            "antler --help",
            "antler --version",
            "antler bench iscsi --help",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 0, "{line}");
        }
    }

    #[test]
    fn chunks_by_id_and_version() {
        assert_eq!(chunk("000000000000001C:12"), Ok((0x1c, 12)));
        assert_eq!(chunk("1c:00000012"), Ok((0x1c, 0x12)));
        for bad in [
            "1",
            "1:",
            ":1",
            "x:1",
            "1:+1",
            "1:1a",
            "11111111111111111:1",
        ] {
            assert!(chunk(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_binary_as_with_fio() {
        let cli = parse("antler bench device d --bs 4k --span 1G --offset 512").unwrap();
        let Command::Bench(BenchCommand::Device(d)) = cli.command else {
            panic!()
        };
        assert_eq!(
            (d.load.bs, d.load.span, d.load.offset),
            (4096, Some(1 << 30), 512)
        );
        assert_eq!(
            (
                d.load.runtime_s(),
                Load {
                    size: Some(1),
                    ..d.load
                }
                .runtime_s()
            ),
            (Some(10.0), None)
        );
    }
}
