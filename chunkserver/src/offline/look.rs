//! `antler volume list` and `info`: what the legs say, without writing to them.

use std::rc::Rc;

use chunk_store::Store;
use raid::assemble::assemble;
use raid::decide::{Decision, Role};
use raid::witness::FileWitness;

use super::{about, enter, found, on_shard, refused, store_options, Legs, Onlooker};
use crate::assemble::Base;
use crate::config::{Config, Volume};
use crate::data_path::DataPath;
use crate::exit::Failure;
use crate::model::LegState;
use crate::names;
use crate::ownership::in_words;
use crate::report::{OfflineLeg, VolumeDetails, VolumeInfo};

/// See [`crate::ops::Ops::volume_info`].
pub fn info(config: &Config, name: Option<&str>) -> Result<Vec<VolumeInfo>, Failure> {
    let volumes: Vec<&Volume> = match name {
        Some(name) => vec![names::volume(config, name)?],
        None => config.volumes.iter().collect(),
    };
    on_shard(|base| async move {
        let data_path = enter(config, &base.rt)?;
        let mut all = Vec::new();
        for volume in volumes {
            all.push(look(&base, config, volume, &data_path, name.is_some()).await);
        }
        Ok(all)
    })
}

async fn look(
    base: &Base,
    config: &Config,
    volume: &Volume,
    data_path: &Rc<DataPath>,
    details: bool,
) -> VolumeInfo {
    let mut info = VolumeInfo {
        name: volume.name.clone(),
        uuid: None,
        size_bytes: None,
        used_bytes: None,
        free_bytes: None,
        chunks: None,
        clean: None,
        legs: Vec::new(),
        error: None,
        details: None,
    };
    let legs = match Legs::open(base, config, volume, data_path).await {
        Ok(legs) => legs,
        Err(failure) => {
            info.error = Some(failure.text);
            return info;
        }
    };
    if let Err(failure) = look_at(base, volume, &legs, data_path, details, &mut info).await {
        info.error = Some(failure.text);
    }
    for (name, leg, failure) in &legs.0 {
        if !info.legs.iter().any(|known| known.device == *name) {
            let state = match leg {
                None => LegState::Missing,
                Some(_) if volume.spares.contains(name) => LegState::Spare,
                Some(_) => LegState::Faulty,
            };
            info.legs.push(OfflineLeg {
                device: name.clone(),
                slot: None,
                events: None,
                state,
            });
        }
        if let Some(failure) = failure.as_ref().filter(|_| volume.legs.contains(name)) {
            info.error.get_or_insert_with(|| failure.text.clone());
        }
    }
    legs.close().await;
    info
}

async fn look_at(
    base: &Base,
    volume: &Volume,
    legs: &Legs,
    data_path: &Rc<DataPath>,
    details: bool,
    info: &mut VolumeInfo,
) -> Result<(), Failure> {
    let witness = Rc::new(Onlooker(FileWitness::new(data_path.directory()).ok()));
    let found = found(base, volume, legs, &*witness, false).await?;
    let (inputs, absent) = (legs.inputs(), legs.absent());
    let diagnosis = legs.diagnosis(base, volume, &inputs, &absent);
    let roles = match &found.decision {
        Decision::Run(choice) => {
            info.error = diagnosis.strangers(&found).await;
            Some(choice.roles)
        }
        Decision::Wait(_) | Decision::Diverged(_) => {
            info.error = diagnosis.undecided(&found).await;
            None
        }
    };
    for (slot, member) in found.members.iter().enumerate() {
        let Some((device, member)) = member else {
            continue;
        };
        info.uuid = Some(member.superblock.array.to_string());
        info.legs.push(OfflineLeg {
            device: device.clone(),
            slot: Some(slot as u32),
            events: Some(member.superblock.events),
            state: match roles.map(|roles| roles[slot]) {
                None | Some(Role::InSync) => LegState::InSync,
                Some(Role::Partly(_)) => LegState::Rebuilding,
                Some(Role::Stale | Role::TooOld | Role::Absent) => LegState::Faulty,
            },
        });
        info.clean = Some(
            info.clean.unwrap_or(true)
                && member.superblock.resync_offset == raid::superblock::CLEAN,
        );
        if details {
            let claim = member.claim.as_ref();
            let claimed_by = claim.map(|claim| match claim.owner.node == data_path.node() {
                true => format!("this node ({})", claim.owner.node),
                false => in_words(claim, base.rt.wall()),
            });
            info.details = Some(VolumeDetails {
                format_version: 0,
                data_offset_bytes: member.places.data.bytes(),
                largest_chunk_id: None,
                metaid: None,
                claimed_by: claimed_by.clone(),
            });
        }
    }
    if roles.is_none() {
        return Ok(());
    }
    let options = raid::Options::new(&volume.name);
    let (rt, pool) = (base.rt.clone(), base.pool.clone());
    let array = match assemble(rt, pool, witness, options, inputs, false).await {
        Ok(array) => array,
        Err(error) => return Err(refused(base, volume, legs, &error).await),
    };
    let store = chunk_store::info(array.clone(), base.pool.clone()).await;
    let store = store.map_err(about(volume))?;
    info.size_bytes = Some(store.size_bytes);
    info.used_bytes = Some(store.used_bytes);
    info.free_bytes = Some(store.size_bytes.saturating_sub(store.used_bytes));
    info.chunks = Some(store.chunks);
    // The superblock counts data as of the last checkpoint; with the journal and the store's own needs it is what
    // a start would tell the master.
    let (rt, pool) = (base.rt.clone(), base.pool.clone());
    if let Ok(view) = Store::view(array, rt, pool, store_options(volume)).await {
        let stats = view.stats();
        info.used_bytes = Some(stats.used_bytes);
        info.free_bytes = Some(stats.free_bytes);
        info.chunks = Some(stats.chunks);
    }
    info.clean = Some(info.clean.unwrap_or(true) && store.clean);
    if let Some(details) = &mut info.details {
        details.format_version = store.format_version;
        let id = store.largest_chunk_id;
        details.metaid = match store.metaid {
            0 => None,
            chunk_store::ANY_METAID => Some("any".to_owned()),
            id => Some(format!("{id:016x}")),
        };
        details.largest_chunk_id = (id != 0).then(|| format!("{id:016X}"));
    }
    Ok(())
}
