//! Commands of the admin socket that change something, on the shard.

use chunk_api::{ChunkId, ChunkVersion};
use chunk_store::Store;
use std::rc::Rc;

use super::volume::VolumeLife;
use super::Node;
use crate::admin::{Answer, Ids, LegFill, LegName, PathName, Request};
use crate::assemble::Leg;
use crate::cli::{chunk_version, hex_u64};
use crate::clock::Timestamp;
use crate::diagnosis;
use crate::exit::Failure;
use crate::names;
use crate::report::{Hold, Quarantine, QuarantineDone, QuarantinedChunk};

impl Node {
    /// Does what is asked; the answer says what was done.
    pub(super) async fn obey(&self, request: &Request) -> Result<Answer, Failure> {
        match request {
            Request::PathFail(name) => {
                self.unit(name)?.fail_path(&name.portal).map_err(problem)?;
                Ok(Answer::done(format!(
                    "path {} of {} is out of use",
                    name.portal, name.device
                )))
            }
            Request::PathReinstate(name) => {
                self.unit(name)?
                    .reinstate_path(&name.portal)
                    .map_err(problem)?;
                Ok(Answer::done(format!(
                    "path {} of {} is tried again",
                    name.portal, name.device
                )))
            }
            Request::LegFail(name) => {
                let (array, _) = self.array(name)?;
                let failed = array.fail(&name.device).await;
                failed.map_err(refused(&name.volume, &name.device))?;
                Ok(Answer::done(format!(
                    "leg {} of {} is out",
                    name.device, name.volume
                )))
            }
            Request::LegRemove(name) => {
                let (array, volume) = self.array(name)?;
                let removed = array.remove(&name.device).await;
                removed.map_err(refused(&name.volume, &name.device))?;
                VolumeLife::mark_attached(volume.slot(&name.device)?, true);
                Ok(Answer::done(format!(
                    "leg {} of {} is forgotten",
                    name.device, name.volume
                )))
            }
            Request::LegAdd(fill) => self.add(fill).await,
            Request::LegReplace(fill) => self.replace(fill).await,
            Request::LegRun(name) => self
                .volume(&name.volume)?
                .run_alone(&name.device)
                .await
                .map(Answer::done),
            Request::QuarantineList {} => Ok(Answer::Quarantine(self.quarantine())),
            Request::QuarantineRestore(ids) => self.on_quarantined(ids, true).await,
            Request::QuarantinePurge(ids) => self.on_quarantined(ids, false).await,
            Request::ScrubStart(name) => {
                let volume = self.volume(&name.volume)?;
                let store = volume
                    .store
                    .borrow()
                    .clone()
                    .ok_or_else(|| not_open(&volume))?;
                volume.scrub.start(&store).map(Answer::Scrub)
            }
            Request::ScrubStop(name) => Ok(Answer::Scrub(self.volume(&name.volume)?.scrub.stop())),
            Request::ScrubStatus(name) => {
                Ok(Answer::Scrub(self.volume(&name.volume)?.scrub.status()))
            }
            Request::Status {}
            | Request::Paths {}
            | Request::PathEvents {}
            | Request::Arrays {} => Err(Failure::usage("answered from the snapshot")),
        }
    }

    async fn add(&self, fill: &LegFill) -> Result<Answer, Failure> {
        let volume = self.volume(&fill.volume)?;
        let slot = volume.slot(&fill.device)?;
        let array = volume.array.borrow().clone();
        let Some(array) = array else {
            if !fill.force {
                return Err(not_running(&volume));
            }
            return volume.choose_loser(&fill.device).await.map(Answer::done);
        };
        let device = volume.device_of(slot)?;
        let begun = array
            .add(&fill.device, device, fill.full, fill.force)
            .await
            .map_err(refused(&fill.volume, &fill.device))?;
        VolumeLife::mark_attached(slot, true);
        Ok(Answer::done(format!(
            "leg {} of {} is being brought up to date{}",
            fill.device,
            fill.volume,
            already(begun)
        )))
    }

    /// The leg of that name is filled anew; any other device takes the place of the leg that is out.
    async fn replace(&self, fill: &LegFill) -> Result<Answer, Failure> {
        let volume = self.volume(&fill.volume)?;
        let slot = volume.slot(&fill.device)?;
        let device = volume.device_of(slot)?;
        let array = running(&volume)?;
        let legs = array.snapshot().legs;
        let own = legs.iter().find(|leg| leg.device == fill.device);
        let is_out = |leg: &&raid::LegSnapshot| ["faulty", "missing"].contains(&leg.state);
        let Some(old) = own.or_else(|| legs.iter().find(is_out)) else {
            return Err(Failure::problem(format!(
                "volume {}: which leg is {} to replace? Take that one out first: `antler leg fail {} DEVICE`",
                fill.volume, fill.device, fill.volume
            )));
        };
        let begun = array
            .replace(&old.device, &fill.device, device, fill.full, fill.force)
            .await
            .map_err(refused(&fill.volume, &fill.device))?;
        VolumeLife::mark_attached(slot, true);
        Ok(Answer::done(format!(
            "leg {} of {} is being filled{}",
            fill.device,
            fill.volume,
            already(begun)
        )))
    }

    fn volume(&self, name: &str) -> Result<Rc<VolumeLife>, Failure> {
        let found = self.volumes.named(name);
        found.ok_or_else(|| names::no_volume(&self.config.borrow(), name))
    }

    fn array(&self, name: &LegName) -> Result<(Rc<raid::Array>, Rc<VolumeLife>), Failure> {
        let volume = self.volume(&name.volume)?;
        volume.slot(&name.device)?;
        Ok((running(&volume)?, volume))
    }

    fn unit(&self, name: &PathName) -> Result<Rc<mpath::MultipathDevice>, Failure> {
        let slots = self.volumes.slots();
        match slots
            .iter()
            .find(|slot| slot.device.name == name.device)
            .map(|slot| slot.leg())
        {
            Some(Some(Leg::Unit(unit))) => Ok(unit),
            Some(Some(Leg::Local(_))) => Err(Failure::problem(format!(
                "device {} is local: it has no paths",
                name.device
            ))),
            Some(None) => Err(Failure::problem(format!(
                "device {} is not there",
                name.device
            ))),
            None => {
                names::device(&self.config.borrow(), &name.device)?;
                Err(Failure::problem(format!(
                    "device {} belongs to no volume that is served",
                    name.device
                )))
            }
        }
    }

    fn stores(&self) -> Vec<(String, Rc<Store>)> {
        let open = |v: &Rc<VolumeLife>| {
            v.store
                .borrow()
                .clone()
                .map(|store| (v.config.name.clone(), store))
        };
        self.volumes.all().iter().filter_map(open).collect()
    }

    fn quarantine(&self) -> Quarantine {
        let mut chunks = Vec::new();
        for (volume, store) in self.stores() {
            for held in store.quarantined() {
                chunks.push((
                    held.deleted_s,
                    QuarantinedChunk {
                        volume: volume.clone(),
                        chunk: held.id.to_string(),
                        version: held.version.0,
                        deleted: Timestamp::from_secs(u64::from(held.deleted_s)).to_string(),
                        hold: if held.purge_after_s.is_some() {
                            Hold::Time
                        } else {
                            Hold::Hard
                        },
                        bytes: held.bytes,
                        purge_after: held
                            .purge_after_s
                            .map(|s| Timestamp::from_secs(s).to_string()),
                    },
                ));
            }
        }
        chunks.sort_by_key(|(deleted, _)| std::cmp::Reverse(*deleted));
        Quarantine {
            chunks: chunks.into_iter().map(|(_, chunk)| chunk).collect(),
        }
    }

    async fn on_quarantined(&self, ids: &Ids, restore: bool) -> Result<Answer, Failure> {
        let wanted = if ids.ids.is_empty() {
            let all = self.quarantine().chunks.into_iter();
            all.map(|c| format!("{}:{:08X}", c.chunk, c.version))
                .collect()
        } else {
            ids.ids.clone()
        };
        let (mut done, mut skipped) = (0, Vec::new());
        for text in wanted {
            let (id, version) = parse_id(&text)?;
            let mut outcome = Err("it is not in the quarantine".to_owned());
            for (_, store) in self.stores() {
                let result = match restore {
                    true => store.restore(id, version).await,
                    false => store.purge(id, version).await,
                };
                match result {
                    Err(chunk_api::ChunkError::NoChunk) => {}
                    other => {
                        outcome = other.map_err(|e| e.to_string());
                        break;
                    }
                }
            }
            match outcome {
                Ok(()) => done += 1,
                Err(why) => skipped.push(format!("{text}: {why}")),
            }
        }
        Ok(Answer::QuarantineDone(QuarantineDone { done, skipped }))
    }
}

/// `ID` or `ID:VERSION`; without a version any, which is 0 here.
fn parse_id(text: &str) -> Result<(ChunkId, ChunkVersion), Failure> {
    let bad = |why: &str| Failure::usage(format!("{text:?} is no ID or ID:VERSION: {why}"));
    let (id, version) = match text.split_once(':') {
        Some((id, version)) => (id, chunk_version(version).map_err(|e| bad(&e))?),
        None => (text, 0),
    };
    let id = hex_u64(id).map_err(|e| bad(&e))?;
    Ok((ChunkId(id), ChunkVersion(version)))
}

fn running(volume: &Rc<VolumeLife>) -> Result<Rc<raid::Array>, Failure> {
    volume
        .array
        .borrow()
        .clone()
        .ok_or_else(|| not_running(volume))
}

fn not_running(volume: &Rc<VolumeLife>) -> Failure {
    Failure::problem(format!(
        "the array of volume {} does not run: {}",
        volume.config.name,
        reason(volume)
    ))
}

fn not_open(volume: &Rc<VolumeLife>) -> Failure {
    Failure::problem(format!(
        "volume {} is not open: {}",
        volume.config.name,
        reason(volume)
    ))
}

fn reason(volume: &Rc<VolumeLife>) -> String {
    let array = volume.array_snapshot();
    let note = volume.volume_model(array.as_ref()).note;
    note.unwrap_or_else(|| "it is being opened".to_owned())
}

fn already(begun: raid::Fill) -> &'static str {
    match begun {
        raid::Fill::Begun => "",
        raid::Fill::UnderWay => " already",
    }
}

fn refused<'a>(volume: &'a str, device: &'a str) -> impl Fn(raid::ControlError) -> Failure + 'a {
    move |error| Failure::problem(diagnosis::refused_order(volume, device, &error))
}

fn problem(error: impl std::fmt::Display) -> Failure {
    Failure::problem(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_decimal_or_eight_hex_digits() {
        let id = |id: u64, version: u32| Ok((ChunkId(id), ChunkVersion(version)));
        assert_eq!(parse_id("000000000000001C:12"), id(0x1c, 12));
        assert_eq!(parse_id("1c:00000012"), id(0x1c, 0x12));
        assert_eq!(parse_id("1c"), id(0x1c, 0));
        for bad in ["", ":1", "1:", "1:+2", "1:1a", "+1", "g:1", "1:1:1"] {
            let refused = parse_id(bad).unwrap_err();
            assert!(refused.text.contains("ID:VERSION"), "{bad}: {refused}");
        }
    }
}
