//! The life of one volume: its legs come, an array begins, a store opens, chunks are served.
//!
//! One task a volume ([`VolumeLife::run`]) brings it up and keeps looking: as long as no array can begin the
//! volume waits and says why; once one runs, legs that turn up later are handed to it. A volume that cannot be
//! served never holds up another. Nothing is written before the claim is ours, and nothing of an earlier
//! run can land any more when the store begins to serve (it asks for the fence before its closing).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use blockdev::{BlockDevice, Event, LegIndex};
use chunk_api::Chunks;
use chunk_store::{AdoptError, Store};
use mpath::Role;
use raid::assemble::{assemble, survey, AssembleError, LegInput};
use raid::decide::Decision;
use raid::witness::Witness;
use raid::Array;

use crate::assemble::{Base, Opening};
use crate::config::{Config, Volume, VolumeState};
use crate::data_path::DataPath;
use crate::diagnosis::{not_taken_in, Diagnosis};
use crate::events::{EventKind, EventLog, Level};
use crate::exit::Failure;
use crate::model;
use crate::node::revive::Failures;
use crate::node::scrub::Scrubber;
use crate::node::slot::LegSlot;
use crate::node::survey as translate;
use crate::node::word::Word;
use crate::occupancy::Occupancy;
use crate::ownership;
use crate::volumes::{Service, Volumes};

/// Once one leg is there the other one gets this long before a start without it is considered.
const OTHER_LEG_PATIENCE: Duration = Duration::from_secs(1);
/// How often a volume that waits is looked at again, and legs that are missing are looked for.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Why a volume is not told to a master.
pub(crate) struct NotAdopted {
    /// For people; it names the way out.
    pub(crate) text: String,
    /// It is known to be another file system's; otherwise nobody has said whose it is.
    pub(crate) is_foreign: bool,
}

/// See the module.
pub(crate) struct VolumeLife {
    pub(super) base: Base,
    pub(crate) config: Volume,
    /// What the master is told of it; a reload may change it.
    mark: Cell<VolumeState>,
    pub(super) options: chunk_store::Options,
    window_bytes: u64,
    data_path: Rc<DataPath>,
    /// Who else has it open.
    occupancy: Rc<Occupancy>,
    initiator_name: String,
    witness: Rc<dyn Witness>,
    events: EventLog,
    volumes: Weak<Volumes>,
    /// Legs, then spares.
    pub(crate) legs: Vec<Rc<LegSlot>>,
    /// What the last try to begin saw of the legs.
    pub(super) seen: RefCell<Vec<model::Leg>>,
    pub(crate) array: RefCell<Option<Rc<Array>>>,
    pub(crate) store: RefCell<Option<Rc<Store>>>,
    pub(crate) scrub: Rc<Scrubber>,
    /// Told to the master and to clients.
    served: Cell<bool>,
    /// Why it is not served.
    pub(super) note: RefCell<Option<String>>,
    pub(super) state: Cell<model::VolumeState>,
    /// What an operator said of a volume that waits, and what became of the start by that.
    pub(super) word: RefCell<Option<Word>>,
    pub(super) outcome: RefCell<Option<Result<(), String>>>,
    /// The file system that the master belongs to; `None` before one has accepted us.
    metaid: Rc<Cell<Option<(u64, u16)>>>,
    stopping: Cell<bool>,
    pub(super) failures: Cell<Failures>,
    /// An array began, and its store did not open.
    in_vain: Cell<bool>,
}

/// What every volume of a node shares.
pub(crate) struct Shared {
    pub(crate) base: Base,
    pub(crate) data_path: Rc<DataPath>,
    pub(crate) witness: Rc<dyn Witness>,
    pub(crate) events: EventLog,
    pub(crate) volumes: Rc<Volumes>,
    pub(crate) metaid: Rc<Cell<Option<(u64, u16)>>>,
}

impl VolumeLife {
    /// A volume that is not yet begun.
    pub(crate) fn new(shared: &Shared, config: &Config, volume: &Volume) -> Rc<VolumeLife> {
        let slots = |names: &[String], is_spare| {
            let devices = names.iter().filter_map(|name| config.device(name));
            let slots = devices.map(|device| LegSlot::new(device, is_spare));
            slots.collect::<Vec<_>>()
        };
        let mut legs = slots(&volume.legs, false);
        legs.extend(slots(&volume.spares, true));
        let cache_share = config.chunkserver.cache_bytes / config.volumes.len().max(1) as u64;
        let durability = config.chunkserver.durability;
        let options = chunk_store::Options {
            name: volume.name.clone(),
            durability: match durability {
                crate::config::Durability::Flush => chunk_store::Durability::Flush,
                crate::config::Durability::Fua => chunk_store::Durability::Fua,
                crate::config::Durability::Cache => chunk_store::Durability::Cache,
            },
            cache_bytes: usize::try_from(cache_share).unwrap_or(usize::MAX),
            ..chunk_store::Options::default()
        };
        let window_bytes = match durability {
            // Nothing is promised that a lost cache would break.
            crate::config::Durability::Cache => 0,
            crate::config::Durability::Flush | crate::config::Durability::Fua => 64 << 20,
        };
        Rc::new(VolumeLife {
            base: shared.base.clone(),
            config: volume.clone(),
            mark: Cell::new(volume.state),
            options,
            window_bytes,
            data_path: shared.data_path.clone(),
            occupancy: Occupancy::new(&volume.name, &shared.data_path),
            initiator_name: ownership::initiator_name(config, volume),
            witness: shared.witness.clone(),
            events: shared.events.clone(),
            volumes: Rc::downgrade(&shared.volumes),
            legs,
            seen: RefCell::default(),
            array: RefCell::default(),
            store: RefCell::default(),
            scrub: Scrubber::new(shared.base.rt.clone(), &volume.name),
            served: Cell::new(false),
            note: RefCell::default(),
            state: Cell::new(model::VolumeState::Waiting),
            word: RefCell::default(),
            outcome: RefCell::default(),
            metaid: shared.metaid.clone(),
            stopping: Cell::new(false),
            failures: Cell::default(),
            in_vain: Cell::new(false),
        })
    }

    /// Brings the volume up and looks after its legs, until the node stops.
    pub(crate) async fn run(self: Rc<Self>) {
        self.begin_opening();
        self.wait_for_legs().await;
        while !self.stopping.get() {
            if self.store.borrow().is_none() {
                let by_word = self.word.borrow().is_some();
                let begun = self.begin().await;
                if by_word {
                    let failed = begun.as_ref().err().map(|(_, text)| text.clone());
                    *self.word.borrow_mut() = None;
                    *self.outcome.borrow_mut() = Some(failed.map_or(Ok(()), Err));
                }
                if let Err((state, text)) = begun {
                    self.wait_because(state, text);
                }
                if self.in_vain.take() {
                    self.put_off().await;
                }
            } else {
                self.attach_late_legs().await;
                self.look_after_legs().await;
                self.revive().await;
            }
            self.base.rt.sleep(LOOK_AGAIN).await;
            self.begin_opening();
        }
    }

    pub(super) fn begin_opening(&self) {
        for slot in &self.legs {
            let how = Opening {
                create: false,
                in_mirror: self.legs.len() > 1,
                data_path: Some(self.data_path.clone()),
                occupancy: Some(self.occupancy.clone()),
                ..Opening::default()
            };
            slot.begin_opening(&self.base, &self.config.name, how);
        }
    }

    /// The configured legs, without spares.
    fn own_legs(&self) -> impl Iterator<Item = &Rc<LegSlot>> {
        self.legs.iter().filter(|slot| !slot.is_spare)
    }

    /// Returns when every leg is ready, or one has been for [`OTHER_LEG_PATIENCE`].
    async fn wait_for_legs(&self) {
        let rt = &self.base.rt;
        let mut first: Option<blockdev::Instant> = None;
        loop {
            let ready = self.ready_legs().await;
            if ready == self.own_legs().count() {
                return;
            }
            if ready > 0 {
                let since = *first.get_or_insert(rt.now());
                if rt.now() - since >= OTHER_LEG_PATIENCE {
                    return;
                }
            } else if !self.own_legs().any(|slot| slot.is_opening()) {
                if self.own_legs().all(|slot| slot.leg().is_none()) {
                    return;
                }
                let (state, text) = self.nothing_there().await;
                self.wait_because(state, text);
            }
            rt.sleep(Duration::from_millis(5)).await;
            if self.stopping.get() {
                return;
            }
        }
    }

    pub(super) async fn ready_legs(&self) -> usize {
        let mut ready = 0;
        for slot in self.own_legs() {
            ready += usize::from(slot.is_ready(&self.base.rt).await);
        }
        ready
    }

    /// The state without any leg, and why there is none.
    async fn nothing_there(&self) -> (model::VolumeState, String) {
        if let Some(text) = self.occupancy.in_use() {
            return (model::VolumeState::Failed, text);
        }
        let mut problems = Vec::new();
        for slot in self.own_legs() {
            problems.extend(slot.unready(&self.base.rt).await);
        }
        (model::VolumeState::Absent, problems.join("; "))
    }

    pub(super) fn wait_because(&self, state: model::VolumeState, text: String) {
        self.state.set(state);
        let mut note = self.note.borrow_mut();
        // An age that grows is no news.
        let before = note.as_deref().map(without_numbers);
        if before.as_deref() != Some(&*without_numbers(&text)) {
            match self.served.get() {
                true => tracing::warn!("volume {}: {text}", self.config.name),
                false => tracing::warn!("volume {} is not served: {text}", self.config.name),
            }
        }
        *note = Some(text);
    }

    /// One try to begin: array, claim, store. The error is a state and the reason.
    async fn begin(self: &Rc<Self>) -> Result<(), (model::VolumeState, String)> {
        let (waiting, failed) = (model::VolumeState::Waiting, model::VolumeState::Failed);
        let word = self.word.borrow().clone();
        if let Some(text) = self.occupancy.in_use() {
            return Err((failed, text));
        }
        let (mut inputs, mut problems) = (Vec::new(), BTreeMap::new());
        for slot in &self.legs {
            let device = match slot.unready(&self.base.rt).await {
                None => slot.block(),
                Some(why) => {
                    problems.insert(slot.device.name.clone(), why);
                    None
                }
            };
            let wanted = match &word {
                None => true,
                Some(Word::Alone(name)) => *name == slot.device.name,
                Some(Word::Loses(name)) => *name != slot.device.name,
            };
            inputs.push(LegInput {
                name: slot.device.name.clone(),
                device: device.filter(|_| wanted),
            });
        }
        if inputs.iter().all(|input| input.device.is_none()) {
            return Err(self.nothing_there().await);
        }
        let alone = word.is_some();
        let absent = |name: &str| match problems.get(name) {
            Some(why) => why.clone(),
            None => "it was left out".to_owned(),
        };
        let diagnosis = Diagnosis {
            volume: &self.config,
            legs: &inputs,
            absent: &absent,
            now: self.base.rt.wall(),
        };
        let found = match survey(&inputs, &*self.witness, alone).await {
            Ok(found) => found,
            Err(e) => return Err((state_of(&e), diagnosis.refusal(&e).await)),
        };
        *self.seen.borrow_mut() = translate::histories(&found);
        if let Some(text) = diagnosis.undecided(&found).await {
            let state = match &found.decision {
                Decision::Wait(_) => waiting,
                Decision::Run(_) | Decision::Diverged(_) => failed,
            };
            return Err((state, text));
        }
        // Sessions of the claim's ISIDs are fenced with our own before anything is written.
        let mut slots: [Option<Rc<mpath::MultipathDevice>>; 2] = [None, None];
        for (n, member) in found.members.iter().enumerate() {
            let Some((name, member)) = member else {
                continue;
            };
            let Some(slot) = self.legs.iter().find(|slot| slot.device.name == *name) else {
                continue;
            };
            let Some(leg) = slot.leg() else { continue };
            if let Some(claim) = &member.claim {
                ownership::fence_recorded(&leg, claim);
            }
            slots[n] = slot.unit();
        }
        let array = match assemble(
            self.base.rt.clone(),
            self.base.pool.clone(),
            self.witness.clone(),
            self.array_options(slots),
            inputs.clone(),
            alone,
        )
        .await
        {
            Ok(array) => array,
            Err(e) => return Err((state_of(&e), diagnosis.refusal(&e).await)),
        };
        array
            .begin_claiming()
            .await
            .map_err(|e| (failed, format!("the claim cannot be written: {e}")))?;
        for slot in &self.legs {
            // What is no member is tried again as a leg that comes late, which says what is wrong with it.
            let mut members = found.members.iter().flatten();
            let is_member = members.any(|(name, _)| *name == slot.device.name);
            slot.attached
                .set(is_member && (!slot.is_spare || has_leg(&array, slot)));
        }
        self.follow_events(&array);
        *self.array.borrow_mut() = Some(array.clone());
        let opened = Store::open(
            array.clone(),
            self.base.rt.clone(),
            self.base.pool.clone(),
            self.options.clone(),
        )
        .await;
        let store = match opened {
            Ok(store) => store,
            Err(error) => {
                array.stop().await;
                *self.array.borrow_mut() = None;
                self.in_vain.set(true);
                return Err((failed, error.to_string()));
            }
        };
        self.follow_store(&store);
        *self.store.borrow_mut() = Some(store);
        *self.note.borrow_mut() = None;
        self.state.set(self.state_in_service());
        if let Some((metaid, csid)) = self.metaid.get() {
            // The master knows us already: it is told of these chunks as they are.
            // What stands against it is noted, and said by `status`.
            let _ = self.adopt(metaid, csid).await;
        } else {
            self.serve_unless_foreign();
        }
        if let Some(Word::Loses(name)) = word {
            self.refill(&name).await;
        }
        *self.word.borrow_mut() = None;
        Ok(())
    }

    fn array_options(&self, units: [Option<Rc<mpath::MultipathDevice>>; 2]) -> raid::Options {
        let mut options = raid::Options::new(&self.config.name);
        options.window_bytes = self.window_bytes;
        let legs = self.legs.iter().filter_map(|slot| slot.leg());
        options.owner = Some(ownership::owner(
            self.data_path.node(),
            &self.initiator_name,
            legs,
        ));
        options.on_alone = Some(Rc::new(move |leg: LegIndex, alone| {
            if let Some(Some(unit)) = units.get(usize::from(leg.0)) {
                unit.set_role(if alone { Role::Alone } else { Role::MirrorLeg });
            }
        }));
        options
    }

    /// Copies what array and devices report into the node's events.
    fn follow_events(&self, array: &Rc<Array>) {
        let (array, events) = (Rc::downgrade(array), self.events.clone());
        self.base.rt.spawn(async move {
            loop {
                let next = std::future::poll_fn(|cx| match array.upgrade() {
                    Some(array) => array.poll_event(cx).map(Some),
                    None => std::task::Poll::Ready(None),
                });
                match next.await {
                    None => return,
                    Some(Event::State(change)) => record(&events, &change),
                    Some(Event::Changed(_) | Event::CacheLost | Event::Tainted(_)) => {}
                }
            }
        });
    }

    /// The same for what the store reports.
    fn follow_store(&self, store: &Rc<Store>) {
        let (store, events) = (Rc::downgrade(store), self.events.clone());
        self.base.rt.spawn(async move {
            loop {
                let next = std::future::poll_fn(|cx| match store.upgrade() {
                    Some(store) => store.poll_event(cx).map(Some),
                    None => std::task::Poll::Ready(None),
                });
                match next.await {
                    None => return,
                    Some(change) => record(&events, &change),
                }
            }
        });
    }

    async fn attach_late_legs(&self) {
        let Some(array) = self.array.borrow().clone() else {
            return;
        };
        for slot in &self.legs {
            // A spare is one of the array's only once it has taken a leg's place.
            let is_idle = slot.is_spare && !has_leg(&array, slot);
            if slot.attached.get() || is_idle || !slot.is_ready(&self.base.rt).await {
                continue;
            }
            let Some(device) = slot.block() else { continue };
            let snapshot = array.snapshot();
            let index = snapshot
                .legs
                .iter()
                .find(|l| l.device == slot.device.name || l.device.is_empty())
                .map(|l| LegIndex(l.slot));
            let Some(index) = index else { continue };
            match array.attach(index, &slot.device.name, device.clone()).await {
                Ok(()) => {
                    slot.attached.set(true);
                    *slot.problem.borrow_mut() = None;
                }
                Err(error) => {
                    let (volume, leg) = (&self.config.name, &slot.device.name);
                    let text = not_taken_in(volume, leg, &*device, &error).await;
                    if slot.is_news(&text) {
                        let object = format!("{volume} {leg}");
                        self.events
                            .record(EventKind::LegFailed, &object, text.clone());
                        *slot.problem.borrow_mut() = Some(text);
                    }
                }
            }
        }
    }

    /// Refills the loser of a diverged pair, or any leg named.
    async fn refill(&self, name: &str) {
        let (Some(array), Some(slot)) = (
            self.array.borrow().clone(),
            self.legs.iter().find(|slot| slot.device.name == name),
        ) else {
            return;
        };
        let Some(device) = slot.block() else { return };
        match array.add(name, device, true, true).await {
            Ok(_) => slot.attached.set(true),
            Err(error) => tracing::error!("volume {}: leg {name}: {error}", self.config.name),
        }
    }

    /// Takes the volume into service before any master has spoken, if it is known to be ours: clients
    /// and chains go on without a master.
    fn serve_unless_foreign(&self) {
        let Some(store) = self.store.borrow().clone() else {
            return;
        };
        let chunks = store.stats().chunks;
        if store.metaid() != 0 || chunks == 0 {
            self.put(&store, false);
        } else {
            let text = format!(
                "it holds {chunks} chunks but no metaid: `antler volume claim {} --metaid HEX|any` says whose \
                 they are",
                self.config.name
            );
            self.wait_because(model::VolumeState::Waiting, text);
        }
    }

    fn put(&self, store: &Rc<Store>, announce: bool) {
        if self.served.replace(true) {
            return;
        }
        if let Some(volumes) = self.volumes.upgrade() {
            volumes.put(
                &self.config.name,
                store.clone() as Rc<dyn Chunks>,
                self.service(),
                announce,
            );
        }
    }

    fn service(&self) -> Service {
        match self.mark.get() {
            VolumeState::Active => Service::Active,
            VolumeState::Removing => Service::Removing,
        }
    }

    /// Another mark; the master is told of it with the chunks, if they are in service.
    pub(super) fn set_mark(&self, mark: VolumeState) {
        if self.mark.replace(mark) == mark || !self.served.get() {
            return;
        }
        self.state.set(self.state_in_service());
        if let Some(volumes) = self.volumes.upgrade() {
            volumes.set_service(&self.config.name, self.service());
        }
    }

    /// A master of this file system has accepted us. `Err`: the volume is not its own.
    pub(crate) async fn adopt(&self, metaid: u64, csid: u16) -> Result<(), NotAdopted> {
        let Some(store) = self.store.borrow().clone() else {
            return Ok(());
        };
        match store.adopt_metaid(metaid, csid).await {
            Ok(()) => {
                *self.note.borrow_mut() = None;
                self.state.set(self.state_in_service());
                self.put(&store, self.metaid.get().is_some());
                Ok(())
            }
            Err(error) => {
                let text = error.to_string();
                // What is in service stays there until the owner decides; it is not told to this master.
                let state = match self.served.get() {
                    true => self.state.get(),
                    false => model::VolumeState::Waiting,
                };
                self.wait_because(state, text.clone());
                let is_foreign = !matches!(error, AdoptError::Unclaimed { .. });
                Err(NotAdopted { text, is_foreign })
            }
        }
    }

    /// Takes it out of service, as far as it is.
    pub(crate) fn leave_out(&self) {
        if self.served.replace(false) {
            self.state.set(model::VolumeState::Waiting);
            if let Some(volumes) = self.volumes.upgrade() {
                volumes.hide(&self.config.name);
            }
        }
    }

    /// Takes it out of service for good: the master is told that its chunks are lost.
    pub(super) fn withdraw(&self) {
        if self.served.replace(false) {
            if let Some(volumes) = self.volumes.upgrade() {
                volumes.withdraw(&self.config.name);
            }
        }
    }

    fn state_in_service(&self) -> model::VolumeState {
        match self.mark.get() {
            VolumeState::Active => model::VolumeState::Active,
            VolumeState::Removing => model::VolumeState::Removing,
        }
    }

    /// Flushes, writes a checkpoint, leaves the array clean and logs out.
    pub(crate) async fn stop(&self) {
        self.stopping.set(true);
        self.scrub.stop();
        let store = self.store.borrow_mut().take();
        if let Some(store) = store {
            if let Err(error) = store.stop().await {
                tracing::warn!("volume {}: not stopped cleanly: {error}", self.config.name);
            }
        }
        self.end_array_and_sessions().await;
    }

    /// Whether the node is on its way out.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Leaves the array as clean as it can be, and logs out of its units.
    pub(super) async fn end_array_and_sessions(&self) {
        let array = self.array.borrow_mut().take();
        if let Some(array) = array {
            array.stop().await;
        }
        for slot in &self.legs {
            let leg = slot.leg.borrow_mut().take();
            slot.attached.set(false);
            if let Some((leg, metered)) = leg {
                drop(metered);
                leg.close().await;
            }
        }
    }

    /// The leg of that name, of this volume.
    pub(crate) fn slot(&self, device: &str) -> Result<&LegSlot, Failure> {
        self.legs
            .iter()
            .find(|slot| slot.device.name == device)
            .map(|slot| &**slot)
            .ok_or_else(|| {
                let known: Vec<&str> = self.legs.iter().map(|s| s.device.name.as_str()).collect();
                Failure::problem(format!(
                    "volume {} has no leg or spare {device:?}; there are: {}",
                    self.config.name,
                    known.join(", ")
                ))
            })
    }

    /// Its device as the array wants it.
    pub(crate) fn device_of(&self, slot: &LegSlot) -> Result<Rc<dyn BlockDevice>, Failure> {
        slot.block().ok_or_else(|| {
            let problem = slot
                .problem
                .borrow()
                .clone()
                .unwrap_or_else(|| "it is not there".to_owned());
            Failure::problem(format!("device {}: {problem}", slot.device.name))
        })
    }

    /// The leg was handed to the array by a command.
    pub(crate) fn mark_attached(slot: &LegSlot, attached: bool) {
        slot.attached.set(attached);
    }
}

fn without_numbers(text: &str) -> String {
    text.replace(|c: char| c.is_ascii_digit(), "")
}

/// Whether the array has a leg of that name.
fn has_leg(array: &Array, slot: &LegSlot) -> bool {
    let legs = array.snapshot().legs;
    legs.iter().any(|leg| leg.device == slot.device.name)
}

fn state_of(error: &AssembleError) -> model::VolumeState {
    match error {
        AssembleError::Waiting(_) | AssembleError::Nothing(_) | AssembleError::Io(_) => {
            model::VolumeState::Waiting
        }
        _ => model::VolumeState::Failed,
    }
}

/// One event of a layer.
pub(crate) fn record(events: &EventLog, change: &blockdev::StateChange) {
    let level = if change.warn {
        Level::Warn
    } else {
        Level::Info
    };
    match EventKind::ALL
        .iter()
        .find(|kind| kind.name() == change.event)
    {
        Some(&kind) => {
            events.record_at(level.max(kind.level()), kind, &change.object, &change.text)
        }
        None => tracing::info!("{} {}: {}", change.event, change.object, change.text),
    }
}
