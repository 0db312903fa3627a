//! The store's metadata in memory, and what each record does to it.
//!
//! Every change is a [`Record`], applied here at once and replayed from the journal after a crash:
//! one code for both. An operation asks what must be in memory first ([`Core::missing`]); what is
//! missing is read by whoever asked; then the record is applied without waiting.

use crate::alloc::{Allocator, Role};
use crate::directory::{Directory, Form, Kind, Slot};
use crate::journal::record::Record;
use crate::journal::writer::Journal;
use crate::layout::{Ptr, BLOCK_GRANULES, UNIT_BYTES};
use crate::maps::{locate, Maps, Missing};
use crate::superblock::Superblock;
use crate::tree::Tree;
use chunk_api::BLOCK_BYTES;

/// See the module.
pub(crate) struct Core {
    pub(crate) superblock: Superblock,
    pub(crate) dir: Directory,
    pub(crate) dir_tree: Tree,
    pub(crate) alloc: Allocator,
    pub(crate) maps: Maps,
    pub(crate) journal: Journal,
}

/// Units of the reserve that cutting a chunk may use while a volume is full.
const RESERVE_SLACK: u64 = 112;

/// Blocks of `length` bytes.
pub(crate) fn blocks_of(length: u32) -> u16 {
    length.div_ceil(BLOCK_BYTES) as u16
}

/// The granule that `length` cuts through, if it cuts through one.
pub(crate) fn edge_of(length: u32) -> Option<u32> {
    let unit = UNIT_BYTES as u32;
    (length % unit != 0).then_some(length / unit)
}

impl Core {
    /// What must be read before `record` can be applied; empty: nothing.
    pub(crate) fn missing(&mut self, record: &Record) -> Vec<Missing> {
        match record {
            Record::Create { .. }
            | Record::SetVersion { .. }
            | Record::Quarantine { .. }
            | Record::Restore { .. }
            | Record::ReplicaCommit { .. } => Vec::new(),
            Record::Map {
                slot,
                block,
                first,
                ptrs,
            } => {
                let granule = u32::from(*block) * BLOCK_GRANULES + u32::from(*first);
                let (page, _) = locate(granule);
                if let Some(missing) = self.maps.need(&self.dir, *slot, page) {
                    return vec![missing];
                }
                let mut units: Vec<u64> = ptrs.iter().map(|p| p.unit).collect();
                let granules = granule..granule + ptrs.len() as u32;
                units.extend(granules.map(|g| self.maps.ptr(*slot, g).unit));
                self.missing_units(units)
            }
            Record::Truncate {
                slot, length, edge, ..
            } => {
                let cut = *length / UNIT_BYTES as u32;
                let mut missing = self.missing_map(*slot, cut);
                missing.extend(self.missing_units(vec![edge.unit]));
                missing
            }
            Record::Duplicate { old, edge, .. } => {
                let mut missing = self.missing_map(*old, 0);
                missing.extend(self.missing_units(vec![edge.unit]));
                missing
            }
            Record::Purge { slot } => {
                let mut missing = self.missing_map(*slot, 0);
                if missing.is_empty() {
                    let mut units: Vec<u64> =
                        self.maps.root(*slot).ptrs().map(|(_, p)| p.unit).collect();
                    if let Form::Root(ptr) = self.dir.get(*slot).form {
                        units.push(ptr.unit);
                    }
                    missing = self.missing_units(units);
                }
                missing
            }
        }
    }

    /// Map pages of a slot from granule `from` on, and the alloc pages of what they point to.
    pub(crate) fn missing_map(&mut self, slot: u32, from: u32) -> Vec<Missing> {
        if let Some(missing) = self.maps.need_root(&self.dir, slot) {
            return vec![missing];
        }
        let pages: Vec<u8> = self.pages_from(slot, from);
        let mut missing = Vec::new();
        for &page in &pages {
            missing.extend(self.maps.need(&self.dir, slot, page));
        }
        if missing.is_empty() {
            let units = pages
                .iter()
                .flat_map(|&page| self.maps.map(slot, page).ptrs());
            let units = units.map(|(_, ptr)| ptr.unit).collect();
            missing = self.missing_units(units);
        }
        missing
    }

    fn pages_from(&self, slot: u32, from: u32) -> Vec<u8> {
        let present = self.maps.present(&self.dir, slot);
        let first = from / crate::layout::MAP_PTRS;
        present
            .into_iter()
            .filter(|&p| u32::from(p) >= first)
            .collect()
    }

    pub(crate) fn missing_units(&mut self, mut units: Vec<u64>) -> Vec<Missing> {
        units.retain(|&unit| unit != 0);
        let mut pages: Vec<u32> = units
            .iter()
            .filter_map(|&u| self.alloc.missing(u))
            .collect();
        pages.sort_unstable();
        pages.dedup();
        pages.into_iter().map(Missing::Alloc).collect()
    }

    /// Whether a record that was read can be applied to what is here: its pointers lie inside, its
    /// slots are of the right kind. What this process writes always can.
    pub(crate) fn is_sane(&self, record: &Record) -> bool {
        let units = self.superblock.units;
        let kind = |slot: u32| self.dir.get(slot).kind;
        let data = |ptr: &Ptr| {
            ptr.is_hole()
                || (ptr.unit < units
                    && matches!(self.alloc.role(ptr.unit), Role::Plain | Role::Pending))
        };
        // The directory grows page by page: a slot far beyond it is nonsense.
        let near = |slot: u32| slot <= self.dir.slots() + 64;
        record.fresh().iter().all(data)
            && match record {
                Record::Create {
                    slot, id, replica, ..
                } => {
                    near(*slot)
                        && kind(*slot) == Kind::Empty
                        && (*replica || self.dir.find(*id).is_none())
                }
                Record::Map { slot, .. } => kind(*slot) != Kind::Empty,
                Record::SetVersion { slot, .. } | Record::Truncate { slot, .. } => {
                    kind(*slot) == Kind::Live
                }
                // One that is held back may come to be held hard.
                Record::Quarantine { slot, .. } => {
                    matches!(kind(*slot), Kind::Live | Kind::Quarantined)
                }
                Record::Duplicate { new, old, id, .. } => {
                    near(*new)
                        && kind(*new) == Kind::Empty
                        && kind(*old) == Kind::Live
                        && self.dir.find(*id).is_none()
                }
                Record::Restore { slot } => {
                    kind(*slot) == Kind::Quarantined
                        && self.dir.find(self.dir.get(*slot).id).is_none()
                }
                Record::Purge { slot } => kind(*slot) != Kind::Empty,
                Record::ReplicaCommit { slot, blocks } => {
                    kind(*slot) == Kind::Replica
                        && *blocks <= chunk_api::BLOCKS_PER_CHUNK
                        && self.dir.find(self.dir.get(*slot).id).is_none()
                }
            }
    }

    /// Applies a record of frame `seq`; nothing is missing.
    pub(crate) fn apply(&mut self, record: &Record, seq: u64) {
        match *record {
            Record::Create {
                slot,
                id,
                version,
                replica,
            } => {
                let kind = if replica { Kind::Replica } else { Kind::Live };
                self.maps.forget(slot);
                self.dir.put(
                    slot,
                    &Slot {
                        id,
                        version,
                        kind,
                        ..Slot::EMPTY
                    },
                );
                self.order_id(id);
            }
            Record::Map {
                slot,
                block,
                first,
                ref ptrs,
            } => {
                let granule = u32::from(block) * BLOCK_GRANULES + u32::from(first);
                let mut delta = 0;
                for (g, &ptr) in (granule..).zip(ptrs) {
                    delta += self.remap(slot, g, ptr, seq);
                }
                self.dir.update(slot, |s| {
                    s.blocks = s.blocks.max(block + 1);
                    s.granules = s.granules.wrapping_add_signed(delta);
                });
            }
            Record::SetVersion { slot, version } => self.dir.update(slot, |s| s.version = version),
            Record::Truncate {
                slot,
                version,
                length,
                edge,
            } => {
                self.truncate(slot, length, edge, seq);
                self.dir.update(slot, |s| s.version = version);
            }
            Record::Duplicate {
                new,
                old,
                id,
                version,
                length,
                edge,
            } => {
                self.duplicate(new, old, (id, version));
                if let Some(length) = length {
                    self.truncate(new, length, edge, seq);
                }
                self.order_id(id);
            }
            Record::Quarantine { slot, at, flags } => self.dir.update(slot, |s| {
                s.kind = Kind::Quarantined;
                s.deleted_at = at;
                s.flags = flags;
            }),
            Record::Restore { slot } => self.dir.update(slot, |s| {
                s.kind = Kind::Live;
                s.deleted_at = 0;
                s.flags = 0;
            }),
            Record::Purge { slot } => self.purge(slot, seq),
            Record::ReplicaCommit { slot, blocks } => self.dir.update(slot, |s| {
                s.kind = Kind::Live;
                s.blocks = blocks.max(s.blocks);
            }),
        }
    }

    /// A chunk of this id was ordered. MooseFS 4 tells parts of a chunk apart by the top byte;
    /// their ids come in no order.
    fn order_id(&mut self, id: u64) {
        if id >> 56 == 0 {
            self.superblock.highest_id = self.superblock.highest_id.max(id);
        }
    }

    /// Moves a granule; returns by how much the chunk's number of granules changes.
    fn remap(&mut self, slot: u32, granule: u32, ptr: Ptr, seq: u64) -> i32 {
        let old = self.maps.set(slot, granule, ptr);
        if old == ptr {
            return 0;
        }
        if !ptr.is_hole() {
            self.alloc.incr(ptr);
        }
        if !old.is_hole() {
            self.alloc.decr(old.unit, seq, false);
        }
        i32::from(!ptr.is_hole()) - i32::from(!old.is_hole())
    }

    fn truncate(&mut self, slot: u32, length: u32, edge: Ptr, seq: u64) {
        let unit = UNIT_BYTES as u32;
        let keep = length.div_ceil(unit);
        let mut delta = 0;
        for page in self.pages_from(slot, length / unit) {
            let first = u32::from(page) * crate::layout::MAP_PTRS;
            let gone: Vec<u32> = self
                .maps
                .map(slot, page)
                .ptrs()
                .map(|(at, _)| first + at)
                .collect();
            for granule in gone.into_iter().filter(|&g| g >= keep) {
                delta += self.remap(slot, granule, Ptr::HOLE, seq);
            }
        }
        if let Some(granule) = edge_of(length) {
            let (page, _) = locate(granule);
            if self.maps.pages.contains((slot, page)) {
                delta += self.remap(slot, granule, edge, seq);
            }
        }
        self.dir.update(slot, |s| {
            s.blocks = blocks_of(length);
            s.granules = s.granules.wrapping_add_signed(delta);
        });
    }

    fn duplicate(&mut self, new: u32, old: u32, (id, version): (u64, u32)) {
        self.maps.forget(new);
        let source = self.dir.get(old);
        let slot = Slot {
            id,
            version,
            kind: Kind::Live,
            blocks: source.blocks,
            granules: source.granules,
            ..Slot::EMPTY
        };
        self.dir.put(new, &slot);
        let none = self.maps.need_root(&self.dir, new);
        assert!(none.is_none(), "a new chunk's root needs no reading");
        for page in self.maps.present(&self.dir, old) {
            let copy = self.maps.map(old, page).clone();
            let ptrs: Vec<Ptr> = copy.ptrs().map(|(_, ptr)| ptr).collect();
            if ptrs.is_empty() {
                continue;
            }
            ptrs.into_iter().for_each(|ptr| self.alloc.incr(ptr));
            self.maps.put_copy(new, id, page, copy);
        }
    }

    fn purge(&mut self, slot: u32, seq: u64) {
        for page in self.maps.present(&self.dir, slot) {
            let ptrs: Vec<Ptr> = self.maps.map(slot, page).ptrs().map(|(_, p)| p).collect();
            ptrs.into_iter()
                .for_each(|ptr| self.alloc.decr(ptr.unit, seq, false));
        }
        // Replay of this very record reads the pages, so they go with the next checkpoint.
        let pages: Vec<Ptr> = self.maps.root(slot).ptrs().map(|(_, p)| p).collect();
        pages
            .into_iter()
            .for_each(|ptr| self.alloc.decr(ptr.unit, seq, true));
        if let Form::Root(ptr) = self.dir.get(slot).form {
            self.alloc.decr(ptr.unit, seq, true);
        }
        self.maps.forget(slot);
        self.dir.put(slot, &Slot::EMPTY);
    }

    /// Whether every unit of the chunk can take one more reference.
    pub(crate) fn can_share(&self, slot: u32) -> bool {
        self.maps.present(&self.dir, slot).into_iter().all(|page| {
            let mut ptrs = self.maps.map(slot, page).ptrs();
            ptrs.all(|(_, ptr)| self.alloc.refs(ptr.unit).0 < u16::MAX)
        })
    }

    /// Whether the unit still is what the pointer says. Its alloc page is present.
    pub(crate) fn holds(&mut self, ptr: Ptr) -> bool {
        match self.alloc.role(ptr.unit) {
            Role::Tree(crc) => crc == ptr.crc,
            Role::Plain if self.alloc.missing(ptr.unit).is_none() => {
                let (refs, crc) = self.alloc.refs(ptr.unit);
                refs > 0 && crc == ptr.crc
            }
            _ => false,
        }
    }

    /// What lies in a unit, for people.
    pub(crate) fn name_of(&self, unit: u64) -> String {
        let is_page = matches!(self.alloc.role(unit), Role::Tree(_));
        let trees = [
            (&self.dir_tree, "directory"),
            (&self.alloc.tree, "allocation"),
        ];
        let mut trees = trees.into_iter().filter(|_| is_page);
        let found = trees.find_map(|(tree, name)| Some((name, tree.place_of(unit)?)));
        match found {
            Some((name, (0, index))) => format!("{name} page {index} in unit {unit}"),
            Some((name, (_, index))) => {
                format!("index page {index} of the {name} tree in unit {unit}")
            }
            None => format!("unit {unit}"),
        }
    }

    /// Units of both trees if each of their pages is written anew, and a page more.
    fn tree_units(&self) -> u64 {
        let regions = self.alloc.regions() as usize;
        let pages = self.dir.page_count() + 1;
        let trees =
            self.alloc.tree.plan_units(regions, regions) + self.dir_tree.plan_units(pages, pages);
        trees as u64
    }

    /// Units that a checkpoint of what is changed now needs at most. Roots of changed maps are
    /// present.
    pub(crate) fn checkpoint_units(&self) -> u64 {
        let slots = self.maps.dirty_slots();
        let filled = |slot: u32, page: &u8| {
            let map = self.maps.pages.get((slot, *page));
            map.is_some_and(|map| map.ptrs().next().is_some())
        };
        // A root each, and the page that is made when a chunk outgrows its slot.
        let pages: usize = slots
            .iter()
            .map(|(slot, pages)| 2 + pages.iter().filter(|page| filled(*slot, page)).count())
            .sum();
        let replaced: usize = slots.iter().map(|(_, pages)| pages.len() + 1).sum();
        let regions = self.alloc.regions() as usize;
        let alloc = (self.alloc.pages.dirty_len() + pages + replaced).min(regions);
        let dir = (self.dir.dirty_len() + slots.len()).min(self.dir.page_count());
        let trees = self.alloc.tree.plan_units(alloc, regions)
            + self.dir_tree.plan_units(dir, self.dir.page_count());
        (pages + trees) as u64
    }

    /// Units kept from writers, so that a checkpoint, and the closing of the next start, always find
    /// theirs: the trees as a whole, since any delete may change any page of theirs, and what a
    /// changed map may need. What a checkpoint takes it gives back when it is durable, except for
    /// pages that were not there before, and these a writer was charged with when it made them.
    pub(crate) fn reserve(&self) -> u64 {
        self.least_free() + RESERVE_SLACK
    }

    /// The same for operations that come to need less: they may use the slack.
    pub(crate) fn least_free(&self) -> u64 {
        self.tree_units() + 6 * self.maps.pages.dirty_len() as u64 + 16
    }
}
