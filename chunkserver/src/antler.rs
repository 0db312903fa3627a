//! The program: what the command line asks for, done by the layers.

use std::path::Path;

use crate::cli::{BenchChunk, BenchDevice, BenchIscsi, Claim, Import};
use crate::config::{Config, HostPort, Iscsi, Origin, Problem};
use crate::control::ShardPort;
use crate::exit::Failure;
use crate::ops::Ops;
use crate::report::*;
use crate::{assemble, load, node, offline, probe};

/// The real operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Antler;

impl Ops for Antler {
    fn check(&self, config: &Config) -> Vec<Problem> {
        let collisions = assemble::isid_collisions(config).into_iter();
        collisions
            .map(|text| Problem {
                key: "device.portals".to_owned(),
                origin: Origin::Default,
                text,
            })
            .collect()
    }

    fn serve(&self, config: &Config, port: ShardPort) -> Result<(), Failure> {
        node::serve(config, port)
    }

    fn discover(&self, portals: &[HostPort], iscsi: &Iscsi) -> Vec<Result<Discovery, Failure>> {
        probe::discover(portals, iscsi)
    }

    fn device_info(&self, config: &Config, device: &str) -> Result<DeviceInfo, Failure> {
        probe::device_info(config, device)
    }

    fn volume_create(
        &self,
        config: &Config,
        volume: &str,
        force: bool,
        mirror_sync: bool,
    ) -> Result<VolumeCreated, Failure> {
        offline::create(config, volume, force, mirror_sync)
    }

    fn volume_info(
        &self,
        config: &Config,
        volume: Option<&str>,
    ) -> Result<Vec<VolumeInfo>, Failure> {
        offline::info(config, volume)
    }

    fn volume_check(
        &self,
        config: &Config,
        volume: &str,
        repair: bool,
        data: bool,
    ) -> Result<VolumeCheck, Failure> {
        offline::check(config, volume, repair, data)
    }

    fn volume_export(
        &self,
        config: &Config,
        volume: &str,
        dir: &Path,
        chunk: Option<u64>,
    ) -> Result<Exported, Failure> {
        offline::export(config, volume, dir, chunk)
    }

    fn volume_import(&self, config: &Config, import: &Import) -> Result<Imported, Failure> {
        offline::import(config, import)
    }

    fn volume_claim(&self, config: &Config, claim: &Claim) -> Result<VolumeChanged, Failure> {
        offline::claim(config, claim)
    }

    fn volume_grow(&self, config: &Config, volume: &str) -> Result<VolumeChanged, Failure> {
        offline::grow(config, volume)
    }

    fn volume_upgrade(&self, config: &Config, volume: &str) -> Result<VolumeChanged, Failure> {
        offline::upgrade(config, volume)
    }

    fn bench_iscsi(&self, iscsi: &Iscsi, args: &BenchIscsi) -> Result<BenchReport, Failure> {
        load::bench_iscsi(iscsi, args)
    }

    fn bench_device(&self, config: &Config, args: &BenchDevice) -> Result<BenchReport, Failure> {
        load::bench_device(config, args)
    }

    fn bench_chunk(&self, args: &BenchChunk) -> Result<BenchReport, Failure> {
        load::bench_chunk(args)
    }
}
