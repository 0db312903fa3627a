//! What the commands need of the layers below: the seam between the command line and the assembly.
//!
//! Every method is blocking and makes what it needs (a runtime, sessions, devices) itself. Results are the
//! objects of `--json`; how they look as text is not the implementor's concern. Progress goes to standard
//! error.

use crate::cli::{BenchChunk, BenchDevice, BenchIscsi, Claim, Import};
use crate::config::{Config, HostPort, Iscsi, Problem};
use crate::control::ShardPort;
use crate::exit::Failure;
use crate::report::*;

/// The operations below the command line.
pub trait Ops {
    /// Errors that only the layers can see (two paths whose ISIDs collide).
    fn check(&self, config: &Config) -> Vec<Problem>;

    /// Serves until [`crate::control::Command::Stop`] is received and obeyed. The failure is of the start
    /// (the port is taken, `data_path` is locked).
    fn serve(&self, config: &Config, port: ShardPort) -> Result<(), Failure>;

    /// SendTargets at every portal at once, within `login_timeout` + 1 s. One result a portal, in order.
    fn discover(&self, portals: &[HostPort], iscsi: &Iscsi) -> Vec<Result<Discovery, Failure>>;

    /// Logs in on every path of the device at once, within `login_timeout` + 1 s.
    fn device_info(&self, config: &Config, device: &str) -> Result<DeviceInfo, Failure>;

    /// Formats a volume. Refuses a device that holds something, unless forced.
    fn volume_create(
        &self,
        config: &Config,
        volume: &str,
        force: bool,
        mirror_sync: bool,
    ) -> Result<VolumeCreated, Failure>;

    /// Every volume, or the one named, with its details.
    fn volume_info(
        &self,
        config: &Config,
        volume: Option<&str>,
    ) -> Result<Vec<VolumeInfo>, Failure>;

    /// fsck.
    fn volume_check(
        &self,
        config: &Config,
        volume: &str,
        repair: bool,
        data: bool,
    ) -> Result<VolumeCheck, Failure>;

    /// Writes `.mfs` files.
    fn volume_export(
        &self,
        config: &Config,
        volume: &str,
        dir: &std::path::Path,
        chunk: Option<u64>,
    ) -> Result<Exported, Failure>;

    /// Reads `.mfs` files.
    fn volume_import(&self, config: &Config, import: &Import) -> Result<Imported, Failure>;

    /// Takes ownership, or sets the metaid.
    fn volume_claim(&self, config: &Config, claim: &Claim) -> Result<VolumeChanged, Failure>;

    /// Takes in space that the legs have gained.
    fn volume_grow(&self, config: &Config, volume: &str) -> Result<VolumeChanged, Failure>;

    /// Brings the format up to date.
    fn volume_upgrade(&self, config: &Config, volume: &str) -> Result<VolumeChanged, Failure>;

    /// Loads one path. What `args` leave open is as in `iscsi`.
    fn bench_iscsi(&self, iscsi: &Iscsi, args: &BenchIscsi) -> Result<BenchReport, Failure>;

    /// Loads a device through all its paths.
    fn bench_device(&self, config: &Config, args: &BenchDevice) -> Result<BenchReport, Failure>;

    /// Loads a chunkserver.
    fn bench_chunk(&self, args: &BenchChunk) -> Result<BenchReport, Failure>;
}
