//! `antler volume create`: from blank devices to an empty volume.

use std::rc::Rc;

use blockdev::{BlockDevice, Mirror};
use raid::format::{create as create_array, CreateOptions};
use raid::probe::{examine, Found, Member};
use raid::Uuid;

use super::{enter, on_shard, open_array, Legs, Progress};
use crate::assemble::{Base, Leg, Opening};
use crate::config::{Config, DeviceKind, Volume};
use crate::data_path::DataPath;
use crate::exit::Failure;
use crate::names;
use crate::ownership::{fence_recorded, in_words};
use crate::report::VolumeCreated;

/// See [`crate::ops::Ops::volume_create`].
pub fn create(
    config: &Config,
    name: &str,
    force: bool,
    mirror_sync: bool,
) -> Result<VolumeCreated, Failure> {
    let volume = names::volume(config, name)?;
    on_shard(|base| async move {
        let data_path = enter(config, &base.rt)?;
        let legs = Legs::open_to_create(&base, config, volume, &data_path).await?;
        let made = match make_spares(&base, config, volume).await {
            Ok(()) => format(&base, config, volume, &legs, force, mirror_sync, &data_path).await,
            Err(failure) => Err(failure),
        };
        legs.close().await;
        made
    })
}

/// Makes the files of spares that are not there yet. They stay blank: what makes a spare a leg is its filling.
async fn make_spares(base: &Base, config: &Config, volume: &Volume) -> Result<(), Failure> {
    for name in &volume.spares {
        let device = names::device(config, name)?;
        let DeviceKind::Local(local) = &device.kind else {
            continue;
        };
        if local.size_bytes.is_some() && !local.path.exists() {
            let how = Opening {
                create: true,
                ..Opening::default()
            };
            Leg::open(base, device, how).await?.close().await;
        }
    }
    Ok(())
}

async fn format(
    base: &Base,
    config: &Config,
    volume: &Volume,
    legs: &Legs,
    force: bool,
    mirror_sync: bool,
    data_path: &Rc<DataPath>,
) -> Result<VolumeCreated, Failure> {
    let devices = legs.all(volume)?;
    distinct_units(config, volume, legs)?;
    for (name, device) in &devices {
        let found = examine(&**device)
            .await
            .map_err(|e| Failure::problem(format!("device {name}: {e}")))?;
        let holds = match found {
            Found::Nothing => continue,
            Found::Member(member) => {
                if let (Some(leg), Some(claim)) = (legs.named(name), &member.claim) {
                    fence_recorded(leg, claim);
                }
                described(&member, &volume.name, data_path, base)
            }
            Found::Foreign(what) => what,
        };
        if !force {
            return Err(Failure::problem(format!(
                "device {name} holds {holds}: `antler volume create {} --force` overwrites it",
                volume.name
            )));
        }
    }
    let fences = devices.iter().map(|(name, device)| async move {
        // What an earlier owner has under way must not land on the new volume.
        device
            .submit(blockdev::Op::Fence, blockdev::IoCtx::metadata())
            .await
            .map_err(|e| Failure::problem(format!("device {name}: {e}")))
    });
    for fence in fences {
        fence.await?;
    }
    let blocks: Vec<Rc<dyn BlockDevice>> = devices.iter().map(|(_, d)| d.clone()).collect();
    let options = CreateOptions {
        name: volume.name.clone(),
        equalise: mirror_sync,
    };
    let mut progress = Progress::new(&volume.name);
    let uuid = create_array(&base.rt, &base.pool, &blocks, &options, |done, total| {
        progress.show(done, total);
    })
    .await
    .map_err(|e| Failure::problem(format!("volume {}: {e}", volume.name)))?;
    progress.end();
    let array = open_array(base, config, volume, legs, data_path).await?;
    let params = chunk_store::FormatParams::new(
        volume.name.clone(),
        Uuid::random(&base.rt).0,
        Uuid::random(&base.rt).0,
    );
    let formatted = chunk_store::format(array.clone(), &base.pool, &params).await;
    let size_bytes = array.geometry().bytes();
    // Nothing of an earlier run can be in doubt: the array may go clean.
    array.recovered();
    array.stop().await;
    formatted.map_err(|e| Failure::problem(format!("volume {}: {e}", volume.name)))?;
    Ok(VolumeCreated {
        name: volume.name.clone(),
        uuid: uuid.to_string(),
        size_bytes,
        synced: mirror_sync,
    })
}

/// What an array's member is, for whoever is about to overwrite it.
fn described(member: &Member, volume: &str, data_path: &Rc<DataPath>, base: &Base) -> String {
    let superblock = &member.superblock;
    let claim = member.claim.as_ref();
    // md names are HOST:NAME.
    let name = String::from_utf8_lossy(&superblock.name);
    let name = name.trim_end_matches('\0').rsplit(':').next();
    let is_ours = claim.is_some_and(|claim| claim.owner.node == data_path.node());
    if name == Some(volume) && is_ours {
        return format!(
            "this volume already (md array {}, made or used by this node)",
            superblock.array
        );
    }
    let mut text = format!("a leg of {}", superblock.array_in_words());
    if let Some(claim) = &member.claim {
        text.push_str(", claimed by ");
        text.push_str(&in_words(claim, base.rt.wall()));
    }
    text
}

/// A mirror of a unit with itself is no mirror.
fn distinct_units(config: &Config, volume: &Volume, legs: &Legs) -> Result<(), Failure> {
    let wwid = |leg: &Option<Leg>| match leg {
        Some(Leg::Unit(unit)) => unit.snapshot().unit.as_ref().and_then(|u| u.wwid.clone()),
        _ => None,
    };
    let allowed = volume.legs.iter().all(|name| {
        config
            .device(name)
            .is_some_and(|device| device.allow_duplicate_wwid)
    });
    if let [(first, a, _), (second, b, _)] = &legs.0[..] {
        if let (Some(a), Some(b)) = (wwid(a), wwid(b)) {
            if a == b && !allowed {
                return Err(Failure::problem(format!(
                    "{first} and {second} both have WWID {a}: they are one unit, or two targets that give \
                     equal identities. Give each LUN its own (tgt: --params scsi_id=…,scsi_sn=…; LIO: another \
                     unit serial), or say allow_duplicate_wwid = true in both devices"
                )));
            }
        }
    }
    Ok(())
}
