//! What is shown of a volume: by `status`, `arrays` and `paths`, and to Prometheus.

use blockdev::BlockDevice;
use raid::ArraySnapshot;

use crate::assemble::Leg;
use crate::control::Metrics;
use crate::model;
use crate::node::survey as translate;
use crate::node::volume::VolumeLife;

impl VolumeLife {
    /// The array as it is now: taken once, and shown by all that follow.
    pub(crate) fn array_snapshot(&self) -> Option<ArraySnapshot> {
        self.array.borrow().as_ref().map(|array| array.snapshot())
    }

    /// What `antler status` shows of the volume.
    pub(crate) fn volume_model(&self, array: Option<&ArraySnapshot>) -> model::Volume {
        let store = self.store.borrow();
        let stats = store.as_ref().map(|s| s.stats()).unwrap_or_default();
        let failure = array.and_then(|array| array.failure.clone());
        let failed = failure.or_else(|| stats.failed.clone());
        let durability = match self.options.durability {
            chunk_store::Durability::Flush => "flush",
            chunk_store::Durability::Fua => "fua",
            chunk_store::Durability::Cache => "cache",
        };
        model::Volume {
            name: self.config.name.clone(),
            state: if failed.is_some() {
                model::VolumeState::Failed
            } else if stats.read_only {
                model::VolumeState::ReadOnly
            } else {
                self.state.get()
            },
            size_bytes: stats.size_bytes,
            used_bytes: stats.used_bytes,
            free_bytes: stats.free_bytes,
            chunks: stats.chunks,
            damaged_chunks: stats.damaged_chunks,
            healed_blocks: stats.healed_blocks,
            quarantined_chunks: stats.quarantined_chunks,
            durability: durability.to_owned(),
            unflushed_bytes: stats.unflushed_bytes,
            unflushed_ms: stats.unflushed_ms,
            open_ms: store.as_ref().map(|_| stats.open_ms),
            note: failed.or_else(|| self.noted()),
        }
    }

    /// Why it is not served, or why it does without a leg.
    fn noted(&self) -> Option<String> {
        let of_legs = || {
            let mut out = self.legs.iter().filter(|slot| !slot.attached.get());
            out.find_map(|slot| slot.problem.borrow().clone())
        };
        self.note.borrow().clone().or_else(of_legs)
    }

    /// What `antler arrays` shows of it.
    pub(crate) fn array_model(&self, array: Option<&ArraySnapshot>) -> model::Array {
        let note = self.noted();
        let mut model = match array {
            Some(array) => translate::array(array, note),
            None => {
                let seen = self.seen.borrow().clone();
                translate::no_array(&self.config.name, &self.config.legs, seen, note)
            }
        };
        let spares = self.spare_models(&model.legs);
        model.legs.extend(spares);
        model
    }

    /// What `antler paths` shows of its legs.
    pub(crate) fn device_models(&self) -> Vec<model::Device> {
        self.legs
            .iter()
            .map(|slot| match slot.leg() {
                Some(Leg::Unit(unit)) => translate::unit(&unit, slot.alias.borrow().1.clone()),
                Some(Leg::Local(local)) => {
                    translate::local(&slot.device.name, Some(local.geometry()))
                }
                None => translate::local(&slot.device.name, None),
            })
            .collect()
    }

    /// Requests of its legs that did not go straight through.
    pub(crate) fn path_events(&self) -> Vec<model::PathEvent> {
        let units = self.legs.iter().filter_map(|slot| slot.unit());
        units
            .flat_map(|unit| {
                let name = unit.name();
                unit.traces()
                    .iter()
                    .map(|t| translate::trace(&name, t))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Adds its counters to the metrics.
    pub(crate) fn measure(&self, array: Option<&ArraySnapshot>, metrics: &mut Metrics) {
        for slot in &self.legs {
            if let Some((_, metered)) = &*slot.leg.borrow() {
                for (operation, histogram) in metered.histograms() {
                    let key = (slot.device.name.clone(), operation);
                    metrics.device_latency.insert(key, histogram);
                }
            }
            let copied = array.map(|array| array.copied_bytes.get(&slot.device.name));
            let copied = slot.copied_in_all(copied.map(|bytes| bytes.copied().unwrap_or(0)));
            let key = (self.config.name.clone(), slot.device.name.clone());
            metrics.sync_copied_bytes.insert(key, copied);
        }
    }
}
