//! Volumes that are not being served: create, info, check, export, import, claim, grow, upgrade.
//!
//! These commands hold the locks of the volume's paths, so that they and a `serve` that has it open exclude one
//! another, and they log in with the role `serve`, so that the next start fences their writes as it does its own.
//! A volume that another node has open is refused before such a session is made; only `claim --take` goes on. Those
//! that write do so as the volume's owner: what another node claims is left alone (`open_array`). Those that look
//! (`view_array`) write nothing anywhere.

mod claim;
mod create;
mod fsck;
mod grow;
mod look;
mod transfer;

pub use claim::claim;
pub use create::create;
pub use fsck::check;
pub use grow::{grow, upgrade};
pub use look::info;
pub use transfer::{export, import};

use std::future::Future;
use std::rc::Rc;

use blockdev::{BlockDevice, Pool, Rt};
use raid::assemble::{assemble, survey, AssembleError, LegInput, Survey};
use raid::witness::{FileWitness, NoWitness, Witness, WitnessRecord};
use raid::{Array, Uuid};
use tokio::task::spawn_local;

use crate::assemble::{Base, Credentials, Leg, Opening};
use crate::config::{Config, Volume};
use crate::data_path::DataPath;
use crate::diagnosis::Diagnosis;
use crate::exit::Failure;
use crate::names;
use crate::occupancy::Occupancy;
use crate::ownership::{fence_recorded, initiator_name, owner};
use crate::probe;

/// Memory of one command.
const POOL_BYTES: usize = 128 << 20;

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

/// A device by its name.
type Named = (String, Rc<dyn BlockDevice>);

/// A device of a volume, or why it is not there.
type OneLeg = (String, Option<Leg>, Option<Failure>);

/// A volume's devices, open. Whoever opened them closes them.
struct Legs(Vec<OneLeg>);

impl Legs {
    /// Opens those of a volume that nobody else has open.
    async fn open(
        base: &Base,
        config: &Config,
        volume: &Volume,
        data_path: &Rc<DataPath>,
    ) -> Result<Legs, Failure> {
        Legs::unoccupied(base, config, volume, data_path, false).await
    }

    /// The same for a volume that is to be made; files are made, too.
    async fn open_to_create(
        base: &Base,
        config: &Config,
        volume: &Volume,
        data_path: &Rc<DataPath>,
    ) -> Result<Legs, Failure> {
        Legs::unoccupied(base, config, volume, data_path, true).await
    }

    /// Opens them whoever has them: the sessions of a node that uses this one's initiator name end.
    async fn open_to_take(
        base: &Base,
        config: &Config,
        volume: &Volume,
        data_path: &Rc<DataPath>,
    ) -> Legs {
        let how = Opening {
            in_mirror: volume.legs.len() > 1,
            data_path: Some(data_path.clone()),
            ..Opening::default()
        };
        let names = volume.legs.iter().chain(&volume.spares);
        Legs(open_all(base, config, names, &how).await)
    }

    async fn unoccupied(
        base: &Base,
        config: &Config,
        volume: &Volume,
        data_path: &Rc<DataPath>,
        create: bool,
    ) -> Result<Legs, Failure> {
        let occupancy = Occupancy::new(&volume.name, data_path);
        let how = Opening {
            create,
            in_mirror: volume.legs.len() > 1,
            data_path: Some(data_path.clone()),
            occupancy: Some(occupancy.clone()),
            ..Opening::default()
        };
        let mut legs = Legs(open_all(base, config, &volume.legs, &how).await);
        if let Some(text) = occupancy.in_use() {
            legs.close().await;
            return Err(of_volume(volume, &text));
        }
        // A blank spare says of nobody that he has it: the legs had to be asked first. One that has become a leg is
        // needed, and one that is still blank is no member, and is passed over.
        if !create {
            legs.0
                .extend(open_all(base, config, &volume.spares, &how).await);
        }
        Ok(legs)
    }

    /// All of them without spares, or why one is missing.
    fn all(&self, volume: &Volume) -> Result<Vec<Named>, Failure> {
        self.0
            .iter()
            .filter(|(name, ..)| volume.legs.contains(name))
            .map(|(name, leg, failure)| match (leg, failure) {
                (Some(leg), _) => Ok((name.clone(), leg.block())),
                (None, Some(failure)) => Err(failure.clone()),
                (None, None) => Err(Failure::problem(format!("device {name} is not there"))),
            })
            .collect()
    }

    fn present(&self) -> impl Iterator<Item = &Leg> {
        self.0.iter().filter_map(|(_, leg, _)| leg.as_ref())
    }

    fn named(&self, name: &str) -> Option<&Leg> {
        let mut legs = self.0.iter();
        legs.find(|(known, ..)| known == name)?.1.as_ref()
    }

    fn failure(&self, name: &str) -> Option<&Failure> {
        let mut legs = self.0.iter();
        legs.find(|(known, ..)| known == name)?.2.as_ref()
    }

    fn inputs(&self) -> Vec<LegInput> {
        let input = |(name, leg, _): &OneLeg| LegInput {
            name: name.clone(),
            device: leg.as_ref().map(Leg::block),
        };
        self.0.iter().map(input).collect()
    }

    /// Why a device is not there.
    fn absent(&self) -> impl Fn(&str) -> String + '_ {
        |name| match self.failure(name) {
            Some(failure) => failure.text.clone(),
            None => "it was not opened".to_owned(),
        }
    }

    /// What stands against this volume, in words; `inputs` and `absent` are those of these legs.
    fn diagnosis<'a>(
        &self,
        base: &Base,
        volume: &'a Volume,
        inputs: &'a [LegInput],
        absent: &'a dyn Fn(&str) -> String,
    ) -> Diagnosis<'a> {
        Diagnosis {
            volume,
            legs: inputs,
            absent,
            now: base.rt.wall(),
        }
    }

    async fn close(self) {
        for (_, leg, _) in self.0 {
            if let Some(leg) = leg {
                leg.close().await;
            }
        }
    }
}

/// Opens all of them at once: one that does not answer costs its own login timeout, and nobody else's.
async fn open_all(
    base: &Base,
    config: &Config,
    names: impl IntoIterator<Item = &String>,
    how: &Opening,
) -> Vec<OneLeg> {
    let opening: Vec<_> = names
        .into_iter()
        .map(|name| {
            let base = base.clone();
            let how = Opening {
                credentials: Credentials::default(),
                ..how.clone()
            };
            let device = names::device(config, name).cloned();
            let task = spawn_local(async move { Leg::open_ready(&base, &device?, how).await });
            (name.clone(), task)
        })
        .collect();
    let mut legs = Vec::new();
    for (name, task) in opening {
        let opened = task.await;
        legs.push(
            match opened.unwrap_or_else(|e| Err(Failure::problem(e.to_string()))) {
                Ok(leg) => (name, Some(leg), None),
                Err(failure) => (name, None, Some(failure)),
            },
        );
    }
    legs
}

/// Names the volume before what went wrong with it.
fn of_volume(volume: &Volume, what: &dyn std::fmt::Display) -> Failure {
    Failure::problem(format!("volume {}: {what}", volume.name))
}

/// The same for errors of lower layers.
fn about<'a, E: std::fmt::Display>(volume: &'a Volume) -> impl Fn(E) -> Failure + 'a {
    |error| of_volume(volume, &error)
}

/// The array of a volume that this command writes to, and that is ours when it returns.
async fn open_array(
    base: &Base,
    config: &Config,
    volume: &Volume,
    legs: &Legs,
    data_path: &Rc<DataPath>,
) -> Result<Rc<Array>, Failure> {
    let witness: Rc<dyn Witness> = Rc::new(file_witness(data_path)?);
    let found = startable(base, volume, legs, &*witness).await?;
    fence_earlier(legs, &found);
    let mut options = raid::Options::new(&volume.name);
    let name = initiator_name(config, volume);
    options.owner = Some(owner(data_path.node(), &name, legs.present()));
    let (rt, pool) = (base.rt.clone(), base.pool.clone());
    let array = match assemble(rt, pool, witness, options, legs.inputs(), false).await {
        Ok(array) => array,
        Err(error) => return Err(refused(base, volume, legs, &error).await),
    };
    array.begin_claiming().await.map_err(|e| {
        Failure::problem(format!(
            "volume {}: the claim cannot be written: {e}",
            volume.name
        ))
    })?;
    Ok(array)
}

/// The next fence of each leg ends the sessions recorded there, too.
fn fence_earlier(legs: &Legs, found: &Survey) {
    for (name, member) in found.members.iter().flatten() {
        if let (Some(leg), Some(claim)) = (legs.named(name), &member.claim) {
            fence_recorded(leg, claim);
        }
    }
}

/// The array of a volume that is only looked at.
async fn view_array(
    base: &Base,
    volume: &Volume,
    legs: &Legs,
    data_path: &Rc<DataPath>,
) -> Result<Rc<Array>, Failure> {
    let witness = Rc::new(Onlooker(Some(file_witness(data_path)?)));
    startable(base, volume, legs, &*witness).await?;
    let options = raid::Options::new(&volume.name);
    let (rt, pool) = (base.rt.clone(), base.pool.clone());
    match assemble(rt, pool, witness, options, legs.inputs(), false).await {
        Ok(array) => Ok(array),
        Err(error) => Err(refused(base, volume, legs, &error).await),
    }
}

/// What is found of a volume's array, though it may not begin.
async fn found(
    base: &Base,
    volume: &Volume,
    legs: &Legs,
    witness: &dyn Witness,
    alone: bool,
) -> Result<Survey, Failure> {
    let found = survey(&legs.inputs(), witness, alone).await;
    match found {
        Ok(found) => Ok(found),
        Err(error) => Err(refused(base, volume, legs, &error).await),
    }
}

/// The same of one that begins.
async fn startable(
    base: &Base,
    volume: &Volume,
    legs: &Legs,
    witness: &dyn Witness,
) -> Result<Survey, Failure> {
    let found = found(base, volume, legs, witness, false).await?;
    let (inputs, absent) = (legs.inputs(), legs.absent());
    let diagnosis = legs.diagnosis(base, volume, &inputs, &absent);
    match diagnosis.undecided(&found).await {
        None => Ok(found),
        Some(text) => Err(of_volume(volume, &text)),
    }
}

async fn refused(base: &Base, volume: &Volume, legs: &Legs, error: &AssembleError) -> Failure {
    let (inputs, absent) = (legs.inputs(), legs.absent());
    let text = legs
        .diagnosis(base, volume, &inputs, &absent)
        .refusal(error)
        .await;
    of_volume(volume, &text)
}

fn enter(config: &Config, rt: &Rt) -> Result<Rc<DataPath>, Failure> {
    DataPath::enter(&config.chunkserver.data_path, Uuid::random(rt)).map(Rc::new)
}

fn file_witness(data_path: &Rc<DataPath>) -> Result<FileWitness, Failure> {
    FileWitness::new(data_path.directory()).map_err(|e| {
        Failure::problem(format!(
            "data_path {}: {e}",
            data_path.directory().display()
        ))
    })
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

/// How a command opens the store: it needs no large cache, and reads what it means to read.
fn store_options(volume: &Volume) -> chunk_store::Options {
    chunk_store::Options {
        name: volume.name.clone(),
        cache_bytes: 8 << 20,
        read_ahead_bytes: 0,
        ..chunk_store::Options::default()
    }
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
