//! The offline check: references counted anew, sums, directory, maps and alloc map against each
//! other, and with data every granule, every page of metadata, superblocks and journal on every
//! leg. The scrub of a running volume reads the same.

use crate::alloc::Role;
use crate::directory::Kind;
use crate::layout::{Ptr, BLOCK_GRANULES, MAP_PTRS, UNIT_BYTES};
use crate::news::News;
use crate::open::OpenError;
use crate::options::Options;
use crate::store::{Life, Store};
use blockdev::{IoCtx, LegIndex, Mirror, Pool, Rt};
use chunk_api::{ChunkId, ChunkVersion};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What a check does.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Write: close the last run, set counts right, heal granules from the other leg, go on
    /// without lost journal frames.
    pub repair: bool,
    /// Read every granule on every leg.
    pub data: bool,
}

/// What sort of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    /// A granule does not match its sum on a leg.
    Checksum,
    /// A page of metadata is damaged on every leg.
    Metadata,
    /// The alloc map and the maps of the chunks disagree.
    References,
    /// A directory slot and its map disagree.
    Directory,
    /// A durable frame of the journal is lost.
    Journal,
}

impl ProblemKind {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            ProblemKind::Checksum => "checksum",
            ProblemKind::Metadata => "metadata",
            ProblemKind::References => "references",
            ProblemKind::Directory => "directory",
            ProblemKind::Journal => "journal",
        }
    }
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What sort.
    pub kind: ProblemKind,
    /// The chunk concerned, with its version.
    pub chunk: Option<(ChunkId, ChunkVersion)>,
    /// Its 64 KiB block.
    pub block: Option<u16>,
    /// The leg with the wrong bytes; `None`: every leg, or it is not about bytes.
    pub leg: Option<LegIndex>,
    /// Set right by this check.
    pub repaired: bool,
    /// For people.
    pub text: String,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// Nothing is wrong.
    Clean,
    /// Everything that was wrong is right now.
    Repaired,
    /// Damage is left.
    Damaged,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Live chunks.
    pub chunks: u64,
    /// Granules whose bytes were read: 0 without data.
    pub blocks_checked: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl Summary {
    /// How it ended.
    pub fn result(&self) -> CheckResult {
        match (
            self.problems.is_empty(),
            self.problems.iter().all(|p| p.repaired),
        ) {
            (true, _) => CheckResult::Clean,
            (false, true) => CheckResult::Repaired,
            (false, false) => CheckResult::Damaged,
        }
    }
}

/// Checks a volume that is not open. Without `repair` nothing is written, and the journal of an
/// unclean stop is replayed in memory.
pub async fn check(
    mirror: Rc<dyn Mirror>,
    rt: Rt,
    pool: Pool,
    options: CheckOptions,
) -> Result<Summary, OpenError> {
    let settings = Options {
        name: "check".into(),
        ..Options::default()
    };
    let mut summary = Summary::default();
    let store = if options.repair {
        let tried = Store::open_with(
            mirror.clone(),
            rt.clone(),
            pool.clone(),
            settings.clone(),
            false,
        );
        match tried.await {
            Err(OpenError::JournalLost(seq)) => {
                summary.problems.push(lost_frame(seq, true));
                Store::open_with(mirror, rt, pool, settings, true).await?
            }
            other => other?,
        }
    } else {
        let (store, recovered) = Store::load_volume(mirror, rt, pool, settings, true).await?;
        summary
            .problems
            .extend(recovered.lost.map(|seq| lost_frame(seq, false)));
        store
    };
    store.examine(options, &mut summary).await;
    if options.repair {
        let io = |error: chunk_api::ChunkError| OpenError::Io(error.to_string());
        store.stop().await.map_err(io)?;
    }
    Ok(summary)
}

fn lost_frame(seq: u64, repaired: bool) -> Problem {
    Problem {
        kind: ProblemKind::Journal,
        chunk: None,
        block: None,
        leg: None,
        repaired,
        text: format!(
            "journal frame {seq} was durable and is lost on every leg, with all behind it"
        ),
    }
}

/// Counts of references by unit, and sums of units whose alloc entry disagrees.
struct Counts {
    refs: Vec<u16>,
    sums: BTreeMap<u64, u32>,
}

impl Store {
    async fn examine(&self, options: CheckOptions, summary: &mut Summary) {
        let _hold = self.hold();
        let units = self.core.borrow().alloc.units();
        let mut counts = Counts {
            refs: vec![0; units as usize],
            sums: BTreeMap::new(),
        };
        summary.chunks = self.core.borrow().dir.live().chunks;
        let slots = self.core.borrow().dir.slots();
        for number in 0..slots {
            if self.core.borrow().dir.get(number).kind != Kind::Empty {
                self.examine_chunk(number, options, &mut counts, summary)
                    .await;
            }
            self.sweep_if_large();
        }
        let regions = self.core.borrow().alloc.regions();
        let mut bad: BTreeMap<u64, Vec<(Option<LegIndex>, bool)>> = BTreeMap::new();
        for region in 0..regions {
            self.examine_region(region, options, &counts, summary, &mut bad)
                .await;
            self.sweep_if_large();
        }
        if options.repair
            && summary
                .problems
                .iter()
                .any(|p| p.kind == ProblemKind::References)
        {
            self.core.borrow_mut().alloc.recount();
        }
        if options.data {
            self.examine_fixed(options.repair, summary).await;
        }
        if !bad.is_empty() {
            self.name_damage(slots, &bad, summary).await;
        }
    }

    /// Superblocks and journal, on every leg.
    async fn examine_fixed(&self, repair: bool, summary: &mut Summary) {
        let problem = |kind, leg, repaired, text| Problem {
            kind,
            chunk: None,
            block: None,
            leg,
            repaired,
            text,
        };
        let (units, wrong) = match self.verify_fixed().await {
            Ok(found) => found,
            Err(error) => {
                let text = format!("superblocks and journal cannot be read: {error}");
                let told = problem(ProblemKind::Metadata, None, false, text);
                return summary.problems.push(told);
            }
        };
        summary.blocks_checked += units;
        for wrong in wrong {
            for &leg in &wrong.bad {
                let repaired = repair && self.heal_fixed(&wrong, leg).await;
                let text = self.mismatch(&wrong.what, Some(leg.0));
                let told = problem(ProblemKind::Checksum, Some(leg.0), repaired, text);
                summary.problems.push(told);
            }
        }
    }

    fn mismatch(&self, what: &str, leg: Option<LegIndex>) -> String {
        let place = match leg {
            Some(leg) => self.medium.mirror.leg_name(leg),
            None => "every leg".into(),
        };
        format!("{what} does not match its checksum on {place}")
    }

    /// A check walks over everything: it must not keep everything.
    fn sweep_if_large(&self) {
        if self.holding.get() == 1 {
            let mut core = self.core.borrow_mut();
            core.alloc.sweep();
            core.maps.pages.sweep(|_| false);
        }
    }

    pub(crate) async fn present_map(&self, number: u32) -> Result<(), String> {
        loop {
            let missing = {
                let mut core = self.core.borrow_mut();
                let crate::core_state::Core { dir, maps, .. } = &mut *core;
                match maps.need_root(dir, number) {
                    Some(root) => vec![root],
                    None => {
                        let pages = maps.present(dir, number);
                        pages
                            .into_iter()
                            .filter_map(|page| maps.need(dir, number, page))
                            .collect()
                    }
                }
            };
            if missing.is_empty() {
                return Ok(());
            }
            self.load(missing)
                .await
                .map_err(|error| error.to_string())?;
        }
    }

    async fn examine_chunk(
        &self,
        number: u32,
        options: CheckOptions,
        counts: &mut Counts,
        summary: &mut Summary,
    ) {
        let slot = self.core.borrow().dir.get(number);
        let name = Some((ChunkId(slot.id), ChunkVersion(slot.version)));
        let problem = |kind, repaired, text| Problem {
            kind,
            chunk: name,
            block: None,
            leg: None,
            repaired,
            text,
        };
        if let Err(text) = self.present_map(number).await {
            summary
                .problems
                .push(problem(ProblemKind::Metadata, false, text));
            return;
        }
        let (ptrs, pages) = self.pointers(number);
        if options.data {
            summary.blocks_checked += ptrs.len() as u64;
        }
        let repair = options.repair;
        let past = u32::from(slot.blocks) * BLOCK_GRANULES;
        if ptrs.iter().any(|(granule, _)| *granule >= past) {
            let text = format!("granules behind its {} blocks", slot.blocks);
            summary
                .problems
                .push(problem(ProblemKind::Directory, false, text));
        }
        if ptrs.len() != slot.granules as usize {
            let text = format!("{} granules, not {}", ptrs.len(), slot.granules);
            summary
                .problems
                .push(problem(ProblemKind::Directory, repair, text));
            if repair {
                let granules = ptrs.len() as u32;
                self.core
                    .borrow_mut()
                    .dir
                    .update(number, |s| s.granules = granules);
            }
        }
        for ptr in ptrs.into_iter().map(|(_, ptr)| ptr).chain(pages) {
            let role = self.core.borrow().alloc.role(ptr.unit);
            let count = counts.refs.get_mut(ptr.unit as usize);
            let (Some(count), Role::Plain | Role::Pending) = (count, role) else {
                let text = format!("points to unit {}, which is no place for data", ptr.unit);
                summary
                    .problems
                    .push(problem(ProblemKind::Metadata, false, text));
                continue;
            };
            *count = count.saturating_add(1);
            let missing = self.core.borrow_mut().missing_units(vec![ptr.unit]);
            let known = missing.is_empty() || self.load(missing).await.is_ok();
            if known && self.core.borrow().alloc.refs(ptr.unit).1 != ptr.crc {
                counts.sums.insert(ptr.unit, ptr.crc);
            }
        }
    }

    /// Granules of a chunk with their places, and the pages of its map.
    pub(crate) fn pointers(&self, number: u32) -> (Vec<(u32, Ptr)>, Vec<Ptr>) {
        let core = self.core.borrow();
        let mut ptrs = Vec::new();
        for page in core.maps.present(&core.dir, number) {
            let first = u32::from(page) * MAP_PTRS;
            ptrs.extend(
                core.maps
                    .map(number, page)
                    .ptrs()
                    .map(|(at, ptr)| (first + at, ptr)),
            );
        }
        let mut pages: Vec<Ptr> = core.maps.root(number).ptrs().map(|(_, ptr)| ptr).collect();
        if let crate::directory::Form::Root(ptr) = core.dir.get(number).form {
            pages.push(ptr);
        }
        (ptrs, pages)
    }

    async fn examine_region(
        &self,
        region: u32,
        options: CheckOptions,
        counts: &Counts,
        summary: &mut Summary,
        bad: &mut BTreeMap<u64, Vec<(Option<LegIndex>, bool)>>,
    ) {
        let known = self.present(region).await;
        if !known {
            summary.problems.push(Problem {
                kind: ProblemKind::Metadata,
                chunk: None,
                block: None,
                leg: None,
                repaired: false,
                text: format!("allocation page {region} is damaged on every leg"),
            });
        }
        let entries = known.then(|| self.region_entries(region));
        let mut used = Vec::new();
        for (unit, refs, crc) in entries.into_iter().flatten() {
            let counted = counts.refs.get(unit as usize).copied().unwrap_or(0);
            let right_crc = counts.sums.get(&unit).copied().unwrap_or(crc);
            if refs != counted || (refs > 0 && crc != right_crc) {
                summary.problems.push(Problem {
                    kind: ProblemKind::References,
                    chunk: None,
                    block: None,
                    leg: None,
                    repaired: options.repair,
                    text: format!("unit {unit}: {refs} references noted, {counted} counted"),
                });
                if options.repair {
                    let crc = if counted == 0 { 0 } else { right_crc };
                    self.core.borrow_mut().alloc.set(unit, counted, crc);
                }
            }
            if options.data && counted > 0 {
                used.push(Ptr {
                    unit,
                    crc: right_crc,
                });
            }
        }
        if options.data {
            let pages = self.core.borrow().alloc.system_in(region);
            summary.blocks_checked += pages.len() as u64;
            used.extend(pages);
            used.retain(|ptr| !self.is_being_written(ptr.unit));
            used.sort_unstable();
        }
        self.examine_data(&used, options.repair, bad).await;
        if options.repair && known {
            self.core.borrow_mut().alloc.recount_page(region);
        }
    }

    async fn examine_data(
        &self,
        ptrs: &[Ptr],
        repair: bool,
        bad: &mut BTreeMap<u64, Vec<(Option<LegIndex>, bool)>>,
    ) {
        let ctx = IoCtx::background();
        for (ptr, fetched) in self.medium.verify_each_leg(ptrs, ctx).await {
            let told = bad.entry(ptr.unit).or_default();
            let Some(good) = fetched.good else {
                told.push((None, false));
                continue;
            };
            for leg in fetched.bad {
                let repaired = repair && self.heal(ptr, good.clone(), vec![leg]).await == 1;
                told.push((Some(leg.0), repaired));
            }
        }
    }

    /// Finds out which chunks the damaged units belong to.
    async fn name_damage(
        &self,
        slots: u32,
        bad: &BTreeMap<u64, Vec<(Option<LegIndex>, bool)>>,
        summary: &mut Summary,
    ) {
        let mut named = BTreeSet::new();
        for number in 0..slots {
            let slot = self.core.borrow().dir.get(number);
            if slot.kind == Kind::Empty || self.present_map(number).await.is_err() {
                continue;
            }
            let (ptrs, pages) = self.pointers(number);
            let all = ptrs
                .into_iter()
                .map(|(g, ptr)| (Some((g / BLOCK_GRANULES) as u16), ptr));
            for (block, ptr) in all.chain(pages.into_iter().map(|ptr| (None, ptr))) {
                for (leg, repaired) in bad.get(&ptr.unit).into_iter().flatten() {
                    named.insert(ptr.unit);
                    summary.problems.push(Problem {
                        kind: ProblemKind::Checksum,
                        chunk: Some((ChunkId(slot.id), ChunkVersion(slot.version))),
                        block,
                        leg: *leg,
                        repaired: *repaired,
                        text: self.mismatch(&self.core.borrow().name_of(ptr.unit), *leg),
                    });
                }
            }
            self.sweep_if_large();
        }
        // The map that points there could be read before, and not now.
        for (unit, told) in bad.iter().filter(|(unit, _)| !named.contains(unit)) {
            if matches!(self.core.borrow().alloc.role(*unit), Role::Tree(_)) {
                for &(leg, repaired) in told {
                    summary.problems.push(Problem {
                        kind: match leg {
                            Some(_) => ProblemKind::Checksum,
                            None => ProblemKind::Metadata,
                        },
                        chunk: None,
                        block: None,
                        leg,
                        repaired,
                        text: self.mismatch(&self.core.borrow().name_of(*unit), leg),
                    });
                }
                continue;
            }
            summary.problems.push(Problem {
                kind: ProblemKind::Checksum,
                chunk: None,
                block: None,
                leg: None,
                repaired: false,
                text: format!("unit {unit} does not match its checksum; its owner is unknown"),
            });
        }
    }

    /// Reads one region (672 granules) of a running volume on every leg, data and pages of metadata,
    /// and heals. For the scrub, which walks from 0 to [`Store::scrub_regions`].
    pub async fn scrub_region(&self, region: u32) -> ScrubStep {
        let mut step = ScrubStep::default();
        if *self.life.borrow() != Life::Running {
            return step;
        }
        if region == self.core.borrow().alloc.regions() {
            self.scrub_fixed(&mut step).await;
            return step;
        }
        let mut ptrs = Vec::new();
        // A page that no leg has is found where it lies.
        if self.present(region).await {
            let used = self.region_entries(region).into_iter();
            let used = used.filter(|(_, refs, _)| *refs > 0);
            ptrs.extend(used.map(|(unit, _, crc)| Ptr { unit, crc }));
        }
        ptrs.extend(self.core.borrow().alloc.system_in(region));
        ptrs.retain(|ptr| !self.is_being_written(ptr.unit));
        ptrs.sort_unstable();
        step.checked_bytes = ptrs.len() as u64 * UNIT_BYTES as u64;
        let wrong = self.medium.verify_each_leg(&ptrs, IoCtx::background());
        for (ptr, fetched) in wrong.await {
            // Given up or written anew while it was read: not an error.
            if !self.is_settled(ptr).await {
                continue;
            }
            step.errors += fetched.bad.len() as u64;
            match fetched.good {
                Some(good) => step.healed += self.heal(ptr, good, fetched.bad).await as u64,
                None if fetched.unreadable => {}
                None => {
                    self.tell_of_damaged_page(ptr);
                    step.damaged.push(ptr.unit);
                }
            }
        }
        step
    }

    /// The last step of a scrub: superblocks and journal.
    async fn scrub_fixed(&self, step: &mut ScrubStep) {
        let Ok((units, wrong)) = self.verify_fixed().await else {
            step.errors += 1;
            return;
        };
        step.checked_bytes = units * UNIT_BYTES as u64;
        for wrong in wrong {
            for &leg in &wrong.bad {
                step.errors += 1;
                step.healed += u64::from(self.heal_fixed(&wrong, leg).await);
            }
        }
    }

    /// No chunk owns a page of the trees: it is told by name.
    fn tell_of_damaged_page(&self, ptr: Ptr) {
        let core = self.core.borrow();
        if matches!(core.alloc.role(ptr.unit), Role::Tree(_)) {
            let text = format!("{} is damaged on every leg", core.name_of(ptr.unit));
            drop(core);
            self.tell(News::ChunkDamaged, text);
        }
    }

    /// Steps of a scrub: the regions, and what lies in fixed places.
    pub fn scrub_regions(&self) -> u32 {
        self.core.borrow().alloc.regions() + 1
    }

    /// Reports the chunks that own damaged units (from [`ScrubStep::damaged`]) to the master;
    /// returns how many granules of theirs are concerned. Walks over all maps.
    pub async fn report_damaged_units(&self, units: &[u64]) -> u64 {
        let wanted: BTreeSet<u64> = units.iter().copied().collect();
        let mut found = 0;
        let ids = self.core.borrow().dir.live_ids();
        for (id, number) in ids {
            if self.core.borrow().dir.slot_of(id) != Some(number)
                || self.present_map(number).await.is_err()
                || self.core.borrow().dir.slot_of(id) != Some(number)
            {
                continue;
            }
            let (ptrs, pages) = self.pointers(number);
            let hits = ptrs.iter().map(|(_, ptr)| ptr).chain(&pages);
            let hits = hits.filter(|ptr| wanted.contains(&ptr.unit)).count() as u64;
            if hits > 0 {
                self.report_damage(id);
            }
            found += hits;
            self.sweep();
        }
        found
    }
}

/// What one step of a scrub did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Bytes looked at (once, on however many legs).
    pub checked_bytes: u64,
    /// Wrong or unreadable granules, each leg counted.
    pub errors: u64,
    /// Granules rewritten from the other leg.
    pub healed: u64,
    /// Units that no leg has right.
    pub damaged: Vec<u64>,
}
