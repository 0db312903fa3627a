//! `antler volume check`: the offline check, and with `--repair` the cure.

use std::rc::Rc;

use super::{enter, on_shard, open_array, view_array, Legs};
use crate::assemble::Base;
use crate::config::{Config, Volume};
use crate::data_path::DataPath;
use crate::exit::Failure;
use crate::names;
use crate::report::{CheckResult, VolumeCheck, VolumeProblem};

/// See [`crate::ops::Ops::volume_check`].
pub fn check(
    config: &Config,
    name: &str,
    repair: bool,
    data: bool,
) -> Result<VolumeCheck, Failure> {
    let volume = names::volume(config, name)?;
    on_shard(|base| async move {
        let data_path = enter(config, &base.rt)?;
        let legs = Legs::open(&base, config, volume, &data_path).await?;
        let checked = fsck(&base, config, volume, &legs, repair, data, &data_path).await;
        legs.close().await;
        checked
    })
}

async fn fsck(
    base: &Base,
    config: &Config,
    volume: &Volume,
    legs: &Legs,
    repair: bool,
    data: bool,
    data_path: &Rc<DataPath>,
) -> Result<VolumeCheck, Failure> {
    if repair {
        legs.all(volume)?;
    }
    let array = match repair {
        true => open_array(base, config, volume, legs, data_path).await?,
        false => view_array(base, volume, legs, data_path).await?,
    };
    let mut names = [String::new(), String::new()];
    for leg in array.snapshot().legs {
        names[usize::from(leg.slot)] = leg.device;
    }
    let options = chunk_store::CheckOptions { repair, data };
    let checked =
        chunk_store::check(array.clone(), base.rt.clone(), base.pool.clone(), options).await;
    if repair {
        array.stop().await;
    }
    let summary = checked.map_err(|e| Failure::problem(format!("volume {}: {e}", volume.name)))?;
    let result = match summary.result() {
        chunk_store::CheckResult::Clean => CheckResult::Clean,
        chunk_store::CheckResult::Repaired => CheckResult::Repaired,
        chunk_store::CheckResult::Damaged => CheckResult::Damaged,
    };
    let problems = summary.problems.into_iter().map(|p| VolumeProblem {
        kind: p.kind.as_str().to_owned(),
        chunk: p.chunk.map(|(id, _)| id.to_string()),
        version: p.chunk.map(|(_, version)| version.0),
        block: p.block.map(u32::from),
        leg: p.leg.and_then(|leg| names.get(usize::from(leg.0)).cloned()),
        repaired: p.repaired,
        text: p.text,
    });
    Ok(VolumeCheck {
        name: volume.name.clone(),
        result,
        chunks: summary.chunks,
        blocks_checked: summary.blocks_checked,
        data,
        problems: problems.collect(),
    })
}
