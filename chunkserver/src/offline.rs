//! Volumes that are not being served: create, info, check.
//!
//! These commands hold the lock of `data_path` while they write, so that they and a running `serve` exclude one
//! another, and they log in with the role `serve`, so that the next start fences their writes as it does its own.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use blockdev::{BlockDevice, Mirror, Pool, Rt};
use raid::assemble::{assemble, survey, LegInput};
use raid::decide::{Decision, Role};
use raid::format::{create as create_array, CreateOptions};
use raid::probe::{examine, Found};
use raid::witness::{FileWitness, NoWitness, Witness, WitnessRecord};
use raid::{Array, Uuid};

use crate::assemble::{Base, Leg, Opening};
use crate::config::{Config, Volume};
use crate::exit::Failure;
use crate::model::LegState;
use crate::node::data_path::DataPath;
use crate::probe;
use crate::report::{
    CheckResult, OfflineLeg, VolumeCheck, VolumeCreated, VolumeDetails, VolumeInfo, VolumeProblem,
};

/// Memory of one command.
const POOL_BYTES: usize = 128 << 20;
/// Devices get so long beyond the login timeout of their own.
const PATIENCE: Duration = Duration::from_secs(5);

fn on_shard<T, F>(main: impl FnOnce(Base) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    probe::on_shard(|rt| {
        main(Base {
            rt,
            pool: Pool::new(POOL_BYTES),
        })
    })
}

fn find<'a>(config: &'a Config, name: &str) -> Result<&'a Volume, Failure> {
    config.volume(name).ok_or_else(|| {
        let known: Vec<&str> = config.volumes.iter().map(|v| v.name.as_str()).collect();
        Failure::usage(format!(
            "no [[volume]] is named {name:?} in {}; there are: {}",
            config.path.display(),
            known.join(", ")
        ))
    })
}

/// A device by its name.
type Named = (String, Rc<dyn BlockDevice>);

/// A volume's devices, open. Whoever opened them closes them.
struct Legs(Vec<(String, Option<Leg>, Option<Failure>)>);

impl Legs {
    /// Opens all of them at once.
    async fn open(base: &Base, config: &Config, volume: &Volume, create: bool) -> Legs {
        let how = Opening {
            create,
            in_mirror: volume.legs.len() > 1,
        };
        let mut begun = Vec::new();
        for name in &volume.legs {
            let opened = match config.device(name) {
                Some(device) => Leg::open(base, device, how).await,
                None => Err(Failure::usage(format!("no [[device]] is named {name:?}"))),
            };
            begun.push((name.clone(), opened));
        }
        let mut legs = Vec::new();
        for (name, opened) in begun {
            legs.push(match opened {
                Err(failure) => (name, None, Some(failure)),
                Ok(leg) => match leg.ready(&base.rt, PATIENCE).await {
                    Ok(()) => (name, Some(leg), None),
                    Err(failure) => {
                        leg.close().await;
                        (name, None, Some(failure))
                    }
                },
            });
        }
        Legs(legs)
    }

    /// All of them, or why one is missing.
    fn all(&self) -> Result<Vec<Named>, Failure> {
        self.0
            .iter()
            .map(|(name, leg, failure)| match (leg, failure) {
                (Some(leg), _) => Ok((name.clone(), leg.block())),
                (None, Some(failure)) => Err(failure.clone()),
                (None, None) => Err(Failure::problem(format!("device {name} is not there"))),
            })
            .collect()
    }

    fn inputs(&self) -> Vec<LegInput> {
        let input = |(name, leg, _): &(String, Option<Leg>, Option<Failure>)| LegInput {
            name: name.clone(),
            device: leg.as_ref().map(Leg::block),
        };
        self.0.iter().map(input).collect()
    }

    async fn close(self) {
        for (_, leg, _) in self.0 {
            if let Some(leg) = leg {
                leg.close().await;
            }
        }
    }
}

/// See [`crate::ops::Ops::volume_create`].
pub fn create(
    config: &Config,
    name: &str,
    force: bool,
    mirror_sync: bool,
) -> Result<VolumeCreated, Failure> {
    let volume = find(config, name)?;
    on_shard(|base| async move {
        let data_path = lock(config, name, &base.rt)?;
        let legs = Legs::open(&base, config, volume, true).await;
        let made = format(&base, config, volume, &legs, force, mirror_sync, &data_path).await;
        legs.close().await;
        made
    })
}

fn lock(config: &Config, volume: &str, rt: &Rt) -> Result<DataPath, Failure> {
    DataPath::lock(&config.chunkserver.data_path, Uuid::random(rt))
        .map_err(|e| Failure::problem(format!("volume {volume}: {e}")))
}

async fn format(
    base: &Base,
    config: &Config,
    volume: &Volume,
    legs: &Legs,
    force: bool,
    mirror_sync: bool,
    data_path: &DataPath,
) -> Result<VolumeCreated, Failure> {
    let devices = legs.all()?;
    distinct_units(config, volume, legs)?;
    for (name, device) in &devices {
        let found = examine(&**device)
            .await
            .map_err(|e| Failure::problem(format!("device {name}: {e}")))?;
        let holds = match found {
            Found::Nothing => continue,
            Found::Member(member) => {
                let whose = String::from_utf8_lossy(&member.superblock.name).into_owned();
                format!(
                    "a leg of md array {} ({})",
                    member.superblock.array,
                    whose.trim_end_matches('\0')
                )
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
    let witness: Rc<dyn Witness> = Rc::new(file_witness(data_path)?);
    let array = begin(base, volume, legs, witness.clone()).await?;
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

fn file_witness(data_path: &DataPath) -> Result<FileWitness, Failure> {
    FileWitness::new(data_path.directory()).map_err(|e| {
        Failure::problem(format!(
            "data_path {}: {e}",
            data_path.directory().display()
        ))
    })
}

async fn begin(
    base: &Base,
    volume: &Volume,
    legs: &Legs,
    witness: Rc<dyn Witness>,
) -> Result<Rc<Array>, Failure> {
    let options = raid::Options::new(&volume.name);
    assemble(
        base.rt.clone(),
        base.pool.clone(),
        witness,
        options,
        legs.inputs(),
        false,
    )
    .await
    .map_err(|e| Failure::problem(format!("volume {}: {e}", volume.name)))
}

/// One line on standard error that grows, for a person; silence for a pipe.
struct Progress {
    name: String,
    shown: Option<u64>,
}

impl Progress {
    fn new(name: &str) -> Progress {
        Progress {
            name: name.to_owned(),
            shown: None,
        }
    }

    fn show(&mut self, done: u64, total: u64) {
        use std::io::IsTerminal;
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        if std::io::stderr().is_terminal() && self.shown != Some(percent) {
            eprint!("\rvolume {}: making the legs equal, {percent} %", self.name);
            self.shown = Some(percent);
        }
    }

    fn end(&self) {
        if self.shown.is_some() {
            eprintln!();
        }
    }
}

/// Reads what the witness knows, and writes nothing: for commands that look.
struct Onlooker(Option<FileWitness>);

impl Witness for Onlooker {
    fn record(
        &self,
        _record: WitnessRecord,
    ) -> blockdev::LocalFuture<Result<(), raid::witness::WitnessError>> {
        Box::pin(async {
            Err(raid::witness::WitnessError(
                "opened to look only".to_owned(),
            ))
        })
    }

    fn read(
        &self,
        array: Uuid,
    ) -> blockdev::LocalFuture<Result<Option<WitnessRecord>, raid::witness::WitnessError>> {
        match &self.0 {
            Some(files) => files.read(array),
            None => NoWitness.read(array),
        }
    }
}

/// See [`crate::ops::Ops::volume_info`].
pub fn info(config: &Config, name: Option<&str>) -> Result<Vec<VolumeInfo>, Failure> {
    let volumes: Vec<&Volume> = match name {
        Some(name) => vec![find(config, name)?],
        None => config.volumes.iter().collect(),
    };
    on_shard(|base| async move {
        let _lock = lock(config, name.unwrap_or("list"), &base.rt)?;
        let mut all = Vec::new();
        for volume in volumes {
            all.push(look(&base, config, volume, name.is_some()).await);
        }
        Ok(all)
    })
}

async fn look(base: &Base, config: &Config, volume: &Volume, details: bool) -> VolumeInfo {
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
    let legs = Legs::open(base, config, volume, false).await;
    if let Err(failure) = look_at(base, config, volume, &legs, details, &mut info).await {
        info.error = Some(failure.text);
    }
    for (name, leg, failure) in &legs.0 {
        if !info.legs.iter().any(|known| known.device == *name) {
            let state = if leg.is_some() {
                LegState::Faulty
            } else {
                LegState::Missing
            };
            info.legs.push(OfflineLeg {
                device: name.clone(),
                slot: None,
                events: None,
                state,
            });
        }
        if let Some(failure) = failure {
            info.error.get_or_insert_with(|| failure.text.clone());
        }
    }
    legs.close().await;
    info
}

async fn look_at(
    base: &Base,
    config: &Config,
    volume: &Volume,
    legs: &Legs,
    details: bool,
    info: &mut VolumeInfo,
) -> Result<(), Failure> {
    let problem =
        |e: &dyn std::fmt::Display| Failure::problem(format!("volume {}: {e}", volume.name));
    let witness = Rc::new(Onlooker(
        FileWitness::new(&config.chunkserver.data_path).ok(),
    ));
    let found = survey(&legs.inputs(), &*witness, false)
        .await
        .map_err(|e| problem(&e))?;
    let roles = match &found.decision {
        Decision::Run(choice) => Some(choice.roles),
        Decision::Wait(text) | Decision::Diverged(text) => {
            info.error = Some(text.replace("VOLUME", &volume.name));
            None
        }
    };
    for (slot, member) in found.members.iter().enumerate() {
        let Some((device, member)) = member else {
            continue;
        };
        info.uuid = Some(member.superblock.array.to_string());
        let in_sync = roles.is_none_or(|roles| roles[slot] == Role::InSync);
        info.legs.push(OfflineLeg {
            device: device.clone(),
            slot: Some(slot as u32),
            events: Some(member.superblock.events),
            state: if in_sync {
                LegState::InSync
            } else {
                LegState::Faulty
            },
        });
        info.clean = Some(
            info.clean.unwrap_or(true)
                && member.superblock.resync_offset == raid::superblock::CLEAN,
        );
        if details {
            info.details = Some(VolumeDetails {
                format_version: 0,
                data_offset_bytes: member.places.data.bytes(),
                largest_chunk_id: None,
            });
        }
    }
    if roles.is_none() {
        return Ok(());
    }
    let options = raid::Options::new(&volume.name);
    let array = assemble(
        base.rt.clone(),
        base.pool.clone(),
        witness,
        options,
        legs.inputs(),
        false,
    )
    .await
    .map_err(|e| problem(&e))?;
    let store = chunk_store::info(array.clone(), base.pool.clone())
        .await
        .map_err(|e| problem(&e))?;
    info.size_bytes = Some(store.size_bytes);
    info.used_bytes = Some(store.used_bytes);
    info.free_bytes = Some(store.size_bytes.saturating_sub(store.used_bytes));
    info.chunks = Some(store.chunks);
    info.clean = Some(info.clean.unwrap_or(true) && store.clean);
    if let Some(details) = &mut info.details {
        details.format_version = store.format_version;
        let id = store.largest_chunk_id;
        details.largest_chunk_id = (id != 0).then(|| format!("{id:016X}"));
    }
    Ok(())
}

/// See [`crate::ops::Ops::volume_check`].
pub fn check(
    config: &Config,
    name: &str,
    repair: bool,
    data: bool,
) -> Result<VolumeCheck, Failure> {
    let volume = find(config, name)?;
    on_shard(|base| async move {
        let data_path = lock(config, name, &base.rt)?;
        let legs = Legs::open(&base, config, volume, false).await;
        let checked = fsck(&base, volume, &legs, repair, data, &data_path).await;
        legs.close().await;
        checked
    })
}

async fn fsck(
    base: &Base,
    volume: &Volume,
    legs: &Legs,
    repair: bool,
    data: bool,
    data_path: &DataPath,
) -> Result<VolumeCheck, Failure> {
    if repair {
        legs.all()?;
    }
    let files = file_witness(data_path)?;
    let witness: Rc<dyn Witness> = if repair {
        Rc::new(files)
    } else {
        Rc::new(Onlooker(Some(files)))
    };
    let array = begin(base, volume, legs, witness).await?;
    let names = RefCell::new([String::new(), String::new()]);
    for leg in array.snapshot().legs {
        names.borrow_mut()[usize::from(leg.slot)] = leg.device;
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
    let names = names.into_inner();
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
        problems: problems.collect(),
    })
}
