//! `antler volume grow` and `upgrade`.

use std::rc::Rc;

use blockdev::Mirror;
use chunk_store::Store;
use raid::decide::{Decision, Role};
use raid::grow::{apply, plan, prepare, GrowLeg, Growth};
use raid::Array;

use super::{
    about, enter, file_witness, found, on_shard, open_array, store_options, view_array, Legs,
    Onlooker, Progress,
};
use crate::assemble::Base;
use crate::config::{Config, Volume};
use crate::data_path::DataPath;
use crate::exit::Failure;
use crate::names;
use crate::render::bytes;
use crate::report::VolumeChanged;

/// Sectors at the end of a volume where its superblocks will lie.
const STORE_TAIL_SECTORS: u64 = 64 * 8;

/// See [`crate::ops::Ops::volume_grow`].
pub fn grow(config: &Config, name: &str) -> Result<VolumeChanged, Failure> {
    let volume = names::volume(config, name)?;
    on_shard(|base| async move {
        let data_path = enter(config, &base.rt)?;
        let legs = Legs::open(&base, config, volume, &data_path).await?;
        let grower = Grower {
            base: &base,
            config,
            volume,
            legs: &legs,
            data_path: &data_path,
        };
        let grown = grower.grow().await;
        legs.close().await;
        grown.map(|text| VolumeChanged {
            name: name.to_owned(),
            text,
        })
    })
}

struct Grower<'a> {
    base: &'a Base,
    config: &'a Config,
    volume: &'a Volume,
    legs: &'a Legs,
    data_path: &'a Rc<DataPath>,
}

impl Grower<'_> {
    /// First the array, then the store on it: at no point is there a store that is larger than its array.
    async fn grow(&self) -> Result<String, Failure> {
        self.members().await?;
        // What an unclean stop left is closed first; and from here on the volume is ours.
        let array = self.array().await?;
        let legs = self.members().await?;
        let growth = plan(&legs).map_err(about(self.volume))?;
        let closed = self.close_store(&array).await;
        let prepared = match (&closed, growth.to > growth.from) {
            (Ok(()), true) => self.prepare(&legs, &growth).await,
            _ => Ok(()),
        };
        array.stop().await;
        closed.and(prepared)?;
        if growth.to > growth.from {
            self.enlarge_array().await?;
        }
        let array = self.array().await?;
        let grown = self.enlarge_store(&array).await;
        array.stop().await;
        let (before, after) = grown?;
        Ok(match after > before {
            true => format!("grown from {} to {}", bytes(before), bytes(after)),
            false => format!(
                "nothing to gain: {} is all that the smaller leg has",
                bytes(after)
            ),
        })
    }

    async fn array(&self) -> Result<Rc<Array>, Failure> {
        open_array(
            self.base,
            self.config,
            self.volume,
            self.legs,
            self.data_path,
        )
        .await
    }

    /// The legs as they are on the disk, if all of them are in sync.
    async fn members(&self) -> Result<Vec<GrowLeg>, Failure> {
        let witness = Onlooker(Some(file_witness(self.data_path)?));
        let found = found(self.base, self.volume, self.legs, &witness, false).await?;
        let slots = usize::from(found.raid_disks);
        let whole = match &found.decision {
            Decision::Run(choice) => choice.roles[..slots].iter().all(|r| *r == Role::InSync),
            Decision::Wait(_) | Decision::Diverged(_) => false,
        };
        if !whole {
            return Err(Failure::problem(format!(
                "volume {}: its legs are not all in sync; `antler serve` brings them up to date, then grow it",
                self.volume.name
            )));
        }
        let members = found.members.into_iter().flatten();
        let legs = members.filter_map(|(name, member)| {
            let device = self.legs.named(&name)?.block();
            Some(GrowLeg { device, member })
        });
        Ok(legs.collect())
    }

    async fn close_store(&self, array: &Rc<Array>) -> Result<(), Failure> {
        let store = self.store(array).await?;
        store.stop().await.map_err(about(self.volume))
    }

    async fn store(&self, array: &Rc<Array>) -> Result<Rc<Store>, Failure> {
        let mirror: Rc<dyn Mirror> = array.clone();
        let (rt, pool) = (self.base.rt.clone(), self.base.pool.clone());
        let opened = Store::open(mirror, rt, pool, store_options(self.volume)).await;
        opened.map_err(about(self.volume))
    }

    async fn prepare(&self, legs: &[GrowLeg], growth: &Growth) -> Result<(), Failure> {
        let mut progress = Progress::new(&self.volume.name);
        let show = |done, total| progress.show(done, total);
        let prepared = prepare(legs, growth, STORE_TAIL_SECTORS, show).await;
        progress.end();
        prepared.map_err(about(self.volume))
    }

    /// The array is stopped: its superblocks are written by nobody else now.
    async fn enlarge_array(&self) -> Result<(), Failure> {
        let legs = self.members().await?;
        for leg in &legs {
            let claim = leg.member.claim.as_ref();
            if claim.is_none_or(|claim| claim.owner.node != self.data_path.node()) {
                return Err(Failure::problem(format!(
                    "volume {}: another node has claimed it meanwhile",
                    self.volume.name
                )));
            }
        }
        let growth = plan(&legs).map_err(about(self.volume))?;
        let (rt, pool) = (&self.base.rt, &self.base.pool);
        apply(rt, pool, &legs, &growth)
            .await
            .map_err(about(self.volume))
    }

    /// Bytes of the volume before and after.
    async fn enlarge_store(&self, array: &Rc<Array>) -> Result<(u64, u64), Failure> {
        let store = self.store(array).await?;
        let extent = store.extent();
        store.stop_grown().await.map_err(about(self.volume))?;
        Ok(extent)
    }
}

/// See [`crate::ops::Ops::volume_upgrade`].
pub fn upgrade(config: &Config, name: &str) -> Result<VolumeChanged, Failure> {
    let volume = names::volume(config, name)?;
    on_shard(|base| async move {
        let data_path = enter(config, &base.rt)?;
        let legs = Legs::open(&base, config, volume, &data_path).await?;
        let version = format_version(&base, volume, &legs, &data_path).await;
        legs.close().await;
        let version = version?;
        Ok(VolumeChanged {
            name: name.to_owned(),
            text: format!(
                "format version {version} is the newest, and the only one so far: nothing to do"
            ),
        })
    })
}

async fn format_version(
    base: &Base,
    volume: &Volume,
    legs: &Legs,
    data_path: &Rc<DataPath>,
) -> Result<u32, Failure> {
    let array = view_array(base, volume, legs, data_path).await?;
    let info = chunk_store::info(array, base.pool.clone()).await;
    Ok(info.map_err(about(volume))?.format_version)
}
