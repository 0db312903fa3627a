//! `antler volume claim`: taking a volume over from another node, and saying whose chunks it holds.

use std::cell::RefCell;
use std::rc::Rc;

use blockdev::{IoCtx, IoError, LocalFuture, Op};
use chunk_store::{Store, ANY_METAID};
use raid::assemble::Survey;
use raid::claim::{take_claim, Claim, TakeError};
use raid::probe::Member;

use super::{
    about, enter, file_witness, found, on_shard, open_array, store_options, Legs, Onlooker,
};
use crate::assemble::{Base, Leg};
use crate::cli::{self, MetaId};
use crate::config::{Config, Volume};
use crate::data_path::DataPath;
use crate::exit::Failure;
use crate::names;
use crate::ownership::{fence_recorded, in_words, initiator_name, is_alive, owner};
use crate::report::VolumeChanged;

/// See [`crate::ops::Ops::volume_claim`].
pub fn claim(config: &Config, claim: &cli::Claim) -> Result<VolumeChanged, Failure> {
    let volume = names::volume(config, &claim.name)?;
    on_shard(|base| async move {
        let data_path = enter(config, &base.rt)?;
        let legs = match claim.metaid {
            Some(_) => Legs::open(&base, config, volume, &data_path).await?,
            None => Legs::open_to_take(&base, config, volume, &data_path).await,
        };
        let scene = Scene {
            base: &base,
            config,
            volume,
            legs: &legs,
            data_path: &data_path,
        };
        let done = match claim.metaid {
            Some(metaid) => scene.give_to(metaid).await,
            None => scene.take(claim.force).await,
        };
        legs.close().await;
        Ok(VolumeChanged {
            name: volume.name.clone(),
            text: done?,
        })
    })
}

/// What the command works on.
struct Scene<'a> {
    base: &'a Base,
    config: &'a Config,
    volume: &'a Volume,
    legs: &'a Legs,
    data_path: &'a Rc<DataPath>,
}

impl Scene<'_> {
    /// `--metaid`
    async fn give_to(&self, metaid: MetaId) -> Result<String, Failure> {
        let id = match metaid {
            MetaId::Any => ANY_METAID,
            MetaId::Id(id) => id,
        };
        let (base, volume) = (self.base, self.volume);
        let array = open_array(base, self.config, volume, self.legs, self.data_path).await?;
        let (rt, pool) = (base.rt.clone(), base.pool.clone());
        let opened = Store::open(array.clone(), rt, pool, store_options(volume)).await;
        let result = match opened {
            Ok(store) => match store.claim(id, 0).await {
                Ok(()) => store.stop().await.map_err(about(volume)),
                Err(error) => Err(about(volume)(error)),
            },
            Err(error) => Err(about(volume)(error)),
        };
        array.stop().await;
        result.map(|()| match metaid {
            MetaId::Any => "goes to the next master that asks".to_owned(),
            MetaId::Id(id) => format!("belongs to the MooseFS instance with metaid {id:016x}"),
        })
    }

    /// `--take`
    async fn take(&self, force: bool) -> Result<String, Failure> {
        let witness = Onlooker(Some(file_witness(self.data_path)?));
        let found = found(self.base, self.volume, self.legs, &witness, true).await?;
        self.all_reached(&found, force).await?;
        let mut texts = Vec::new();
        for (name, member) in found.members.iter().flatten() {
            let Some(leg) = self.legs.named(name) else {
                continue;
            };
            texts.push(self.take_leg(name, leg, member, force).await?);
        }
        Ok(texts.join("; "))
    }

    /// All legs that the freshest record calls in sync must be taken: an owner that is cut off from one of them
    /// would go on alone on the other.
    async fn all_reached(&self, found: &Survey, force: bool) -> Result<(), Failure> {
        let members = || found.members.iter().flatten().map(|(_, member)| member);
        let out = members()
            .map(Member::verdict)
            .max()
            .map_or(0, |(_, out)| out);
        let wanted = (0..usize::from(found.raid_disks)).filter(|slot| out >> slot & 1 == 0);
        let missing = wanted.filter(|&slot| found.members[slot].is_none()).count();
        if missing == 0 {
            return Ok(());
        }
        let (inputs, absent) = (self.legs.inputs(), self.legs.absent());
        let told = self
            .legs
            .diagnosis(self.base, self.volume, &inputs, &absent)
            .told(found.others.iter().map(|(name, _)| name.as_str()))
            .await;
        let text = format!(
            "volume {}: a leg that is in sync is not reached ({told}): its owner could go on there",
            self.volume.name
        );
        if force {
            tracing::warn!("{text}");
            return Ok(());
        }
        Err(Failure::problem(format!(
            "{text}; --force takes the volume all the same, if you know that node to be off"
        )))
    }

    /// Claim written, *then* the recorded sessions fenced, *then* the claim read back.
    async fn take_leg(
        &self,
        name: &str,
        leg: &Leg,
        member: &Member,
        force: bool,
    ) -> Result<String, Failure> {
        let device = leg.block();
        let now = self.base.rt.wall();
        let (me, present) = (self.data_path.node(), self.legs.present());
        let own_name = initiator_name(self.config, self.volume);
        let owner = owner(me, &own_name, present);
        let (before, unfenced) = (Rc::new(RefCell::new(None)), Rc::new(RefCell::new(None)));
        let (seen, failed) = (before.clone(), unfenced.clone());
        let (fenced, on) = (leg.clone(), device.clone());
        let fence = move |earlier: Option<Claim>| -> LocalFuture<Result<(), IoError>> {
            if let Some(earlier) = &earlier {
                fence_recorded(&fenced, earlier);
            }
            *seen.borrow_mut() = earlier;
            Box::pin(async move {
                match on.submit(Op::Fence, IoCtx::metadata()).await {
                    Err(error) if force => {
                        *failed.borrow_mut() = Some(error);
                        Ok(())
                    }
                    other => other.map(|_| ()),
                }
            })
        };
        let (array, places) = (member.superblock.array, &member.places);
        let taken = take_claim(&*device, &self.base.pool, places, array, &owner, now, fence).await;
        let before = before.take();
        taken.map_err(|error| self.not_taken(name, &error, before.as_ref()))?;
        if let Some(error) = unfenced.take() {
            tracing::warn!(
                "volume {}: {name}: the former owner is not fenced ({error}): what it has under way may still \
                 land. Be sure that it is off",
                self.volume.name
            );
        }
        Ok(match before {
            None => format!("{name} claimed by this node; nobody claimed it before"),
            Some(claim) if claim.owner.node == me => {
                format!("{name} claimed by this node, as before")
            }
            Some(claim) => {
                if is_alive(&claim, now) {
                    tracing::warn!(
                        "volume {}: the claim on {name} advanced less than 6 s ago: its owner was running, and \
                         stops with an error as soon as it sees this one",
                        self.volume.name
                    );
                }
                format!("{name} taken over from {}", in_words(&claim, now))
            }
        })
    }

    fn not_taken(&self, name: &str, error: &TakeError, before: Option<&Claim>) -> Failure {
        let of = before.map_or_else(String::new, |claim| {
            format!(" from {}", in_words(claim, self.base.rt.wall()))
        });
        let way_out = match error {
            TakeError::Fence(_) => {
                "; --force takes it without a fence, if you know that node to be off"
            }
            TakeError::Lost(_) => "; try again if that node should not have it",
            TakeError::Io(_) => "",
        };
        Failure::problem(format!(
            "volume {}: {name} is not taken over{of}: {error}{way_out}",
            self.volume.name
        ))
    }
}
