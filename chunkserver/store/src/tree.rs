//! An array of one-unit pages under index pages: how the directory and the alloc map are found.
//!
//! The entries of all levels are resident (16 bytes each); index pages are made from them when a
//! checkpoint rewrites the path to a changed leaf. Level 0 describes the leaves; each level above
//! describes the index pages over the one below; the last one has a single entry, the root.

use crate::layout::{Header, Magic, Page, Ptr, HEADER_BYTES, INDEX_ENTRIES, UNITS_MAX};
use crate::superblock::TreeRoot;
use std::collections::BTreeSet;
use std::rc::Rc;

const ENTRY_BYTES: usize = 11;

/// Where a page lies, its sum, and a number kept beside (used units of an alloc leaf).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    pub(crate) ptr: Ptr,
    pub(crate) aux: u16,
}

/// Which tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TreeId {
    Directory,
    Alloc,
}

impl TreeId {
    fn owner(self) -> u64 {
        match self {
            TreeId::Directory => 1,
            TreeId::Alloc => 2,
        }
    }

    /// The header of leaf `index`.
    pub(crate) fn leaf_header(self, index: u32) -> Header {
        let magic = match self {
            TreeId::Directory => Magic::Directory,
            TreeId::Alloc => Magic::Alloc,
        };
        Header {
            magic,
            index,
            owner: self.owner(),
            place: 0,
        }
    }

    fn index_header(self, index: u32, level: u32) -> Header {
        Header {
            magic: Magic::Index,
            index,
            owner: self.owner(),
            place: level,
        }
    }
}

/// A leaf for the checkpoint; `None`: it is empty and needs no page.
pub(crate) struct Leaf {
    pub(crate) index: u32,
    pub(crate) page: Option<Rc<Page>>,
    pub(crate) aux: u16,
}

/// What a checkpoint writes and what it replaces.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) writes: Vec<(Ptr, Rc<Page>)>,
    pub(crate) freed: Vec<u64>,
}

/// See the module.
pub(crate) struct Tree {
    id: TreeId,
    levels: Vec<Vec<Entry>>,
}

fn depth(leaves: usize) -> usize {
    let mut levels = 1;
    let mut n = leaves;
    while n > 1 {
        n = n.div_ceil(INDEX_ENTRIES);
        levels += 1;
    }
    levels
}

impl Tree {
    pub(crate) fn new(id: TreeId, leaves: usize) -> Tree {
        let mut tree = Tree {
            id,
            levels: Vec::new(),
        };
        tree.resize(leaves);
        tree
    }

    /// Grows to `leaves` leaves; new ones are empty.
    pub(crate) fn resize(&mut self, leaves: usize) {
        self.levels
            .resize_with(depth(leaves).max(self.levels.len()), Vec::new);
        let mut n = leaves;
        for level in &mut self.levels {
            level.resize(n.max(level.len()), Entry::default());
            n = n.div_ceil(INDEX_ENTRIES);
        }
    }

    pub(crate) fn leaves(&self) -> usize {
        self.levels[0].len()
    }

    pub(crate) fn leaf(&self, index: u32) -> Entry {
        self.levels[0]
            .get(index as usize)
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn leaf_entries(&self) -> &[Entry] {
        &self.levels[0]
    }

    /// Every page there is.
    pub(crate) fn pages(&self) -> impl Iterator<Item = Ptr> + '_ {
        self.levels
            .iter()
            .flatten()
            .map(|e| e.ptr)
            .filter(|p| !p.is_hole())
    }

    /// Level and index of the page in `unit`, if it is one of this tree.
    pub(crate) fn place_of(&self, unit: u64) -> Option<(usize, usize)> {
        self.levels.iter().enumerate().find_map(|(level, entries)| {
            let index = entries.iter().position(|e| e.ptr.unit == unit)?;
            Some((level, index))
        })
    }

    pub(crate) fn root(&self) -> TreeRoot {
        let root = self.levels.last().and_then(|level| level.first()).copied();
        let root = root.unwrap_or_default();
        match root.ptr.is_hole() {
            true => TreeRoot::default(),
            false => TreeRoot {
                ptr: root.ptr,
                leaves: self.leaves() as u32,
                aux: root.aux,
            },
        }
    }

    /// Units that [`Tree::plan`] needs at most for `dirty` leaves of a tree of `leaves`.
    pub(crate) fn plan_units(&self, dirty: usize, leaves: usize) -> usize {
        let mut units = dirty;
        let mut n = leaves.max(self.leaves());
        while n > 1 {
            n = n.div_ceil(INDEX_ENTRIES);
            units += n.min(dirty);
        }
        units + 1
    }

    /// Puts `leaves` and the index pages above them into fresh units.
    pub(crate) fn plan(&mut self, leaves: Vec<Leaf>, mut fresh: impl FnMut() -> u64) -> Plan {
        let mut plan = Plan::default();
        let mut dirty = BTreeSet::new();
        let height_before = self.levels.len();
        if let Some(last) = leaves.iter().map(|l| l.index as usize).max() {
            self.resize((last + 1).max(self.leaves()));
        }
        for leaf in leaves {
            let entry = match leaf.page {
                Some(page) => {
                    let ptr = Ptr {
                        unit: fresh(),
                        crc: page.crc(),
                    };
                    plan.writes.push((ptr, page));
                    Entry { ptr, aux: leaf.aux }
                }
                None => Entry::default(),
            };
            let old = std::mem::replace(&mut self.levels[0][leaf.index as usize], entry);
            plan.freed
                .extend((!old.ptr.is_hole()).then_some(old.ptr.unit));
            dirty.insert(leaf.index as usize / INDEX_ENTRIES);
        }
        for level in 1..self.levels.len() {
            let mut above = BTreeSet::new();
            if level >= height_before {
                dirty.extend(0..self.levels[level].len());
            }
            for index in dirty {
                let page = self.index_page(level, index);
                let ptr = Ptr {
                    unit: fresh(),
                    crc: page.crc(),
                };
                plan.writes.push((ptr, Rc::new(page)));
                let old = std::mem::replace(&mut self.levels[level][index], Entry { ptr, aux: 0 });
                plan.freed
                    .extend((!old.ptr.is_hole()).then_some(old.ptr.unit));
                above.insert(index / INDEX_ENTRIES);
            }
            dirty = above;
        }
        plan
    }

    fn index_page(&self, level: usize, index: usize) -> Page {
        let mut page = Page::new(self.id.index_header(index as u32, level as u32));
        let below = self.levels[level - 1].iter().skip(index * INDEX_ENTRIES);
        for (i, entry) in below.take(INDEX_ENTRIES).enumerate() {
            let at = HEADER_BYTES + i * ENTRY_BYTES;
            page.put(at, entry.ptr.encode());
            page.put(at + 9, entry.aux.to_le_bytes());
        }
        page
    }

    /// Begins to load a tree: [`Tree::wanted`] and [`Tree::take_index`] alternate until the former
    /// is empty.
    pub(crate) fn from_root(id: TreeId, root: TreeRoot, leaves_max: usize) -> Option<Tree> {
        if root.leaves as usize > leaves_max {
            return None;
        }
        let mut tree = Tree::new(id, root.leaves as usize);
        if let Some(entry) = tree.levels.last_mut().and_then(|level| level.first_mut()) {
            *entry = Entry {
                ptr: root.ptr,
                aux: root.aux,
            };
        }
        Some(tree)
    }

    /// Index pages of `level` (from [`Tree::height`] − 1 down to 1), to be read.
    pub(crate) fn wanted(&self, level: usize) -> Vec<(u32, Ptr)> {
        let entries = self.levels[level].iter().enumerate();
        entries
            .filter(|(_, e)| !e.ptr.is_hole())
            .map(|(i, e)| (i as u32, e.ptr))
            .collect()
    }

    pub(crate) fn height(&self) -> usize {
        self.levels.len()
    }

    /// Takes an index page in; false if it is another page or points outside of `units`.
    pub(crate) fn take_index(&mut self, level: usize, index: u32, page: &Page, units: u64) -> bool {
        if !page.is(self.id.index_header(index, level as u32)) {
            return false;
        }
        let below = self.levels[level - 1]
            .iter_mut()
            .skip(index as usize * INDEX_ENTRIES);
        for (i, entry) in below.take(INDEX_ENTRIES).enumerate() {
            let at = HEADER_BYTES + i * ENTRY_BYTES;
            *entry = Entry {
                ptr: Ptr::decode(page.get(at)),
                aux: u16::from_le_bytes(page.get(at + 9)),
            };
            if entry.ptr.unit >= units.min(UNITS_MAX) {
                return false;
            }
        }
        true
    }

    /// Places where a leaf does not follow its predecessor on the disk.
    pub(crate) fn breaks(&self) -> usize {
        let used: Vec<u64> = self.levels[0]
            .iter()
            .map(|e| e.ptr.unit)
            .filter(|&u| u != 0)
            .collect();
        used.windows(2).filter(|w| w[1] != w[0] + 1).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn leaf(id: TreeId, index: u32, mark: u8) -> Leaf {
        let mut page = Page::new(id.leaf_header(index));
        page.0[100] = mark;
        Leaf {
            index,
            page: Some(Rc::new(page)),
            aux: u16::from(mark),
        }
    }

    proptest::proptest! {
        #[test]
        fn what_was_planned_is_found_again(
            rounds in proptest::collection::vec(
                proptest::collection::vec((0u32..1500, 1u8..250), 1..6), 1..6)
        ) {
            let id = TreeId::Directory;
            let mut disk: BTreeMap<u64, Rc<Page>> = BTreeMap::new();
            let mut next = 1000;
            let mut tree = Tree::new(id, 0);
            let mut model = BTreeMap::new();
            for round in rounds {
                let changes: BTreeMap<u32, u8> = round.into_iter().collect();
                model.extend(changes.clone());
                let count = changes.len();
                let most = changes.keys().max().map_or(0, |m| *m as usize + 1);
                let bound = tree.plan_units(count, most) + 8;
                let leaves = changes.iter().map(|(&i, &m)| leaf(id, i, m)).collect();
                let plan = tree.plan(leaves, || { next += 1; next });
                assert!(plan.writes.len() <= bound, "{} > {bound}", plan.writes.len());
                for unit in plan.freed { assert!(disk.remove(&unit).is_some()); }
                for (ptr, page) in plan.writes {
                    assert_eq!(page.crc(), ptr.crc);
                    disk.insert(ptr.unit, page);
                }
            }
            // Nothing leaked, nothing missing.
            assert_eq!(tree.pages().count(), disk.len());
            let mut loaded = Tree::from_root(id, tree.root(), 2000).expect("sane");
            for level in (1..loaded.height()).rev() {
                for (index, ptr) in loaded.wanted(level) {
                    assert!(loaded.take_index(level, index, &disk[&ptr.unit], 1 << 30));
                }
            }
            for (index, mark) in model {
                let entry = loaded.leaf(index);
                assert_eq!(entry.aux, u16::from(mark));
                assert_eq!(disk[&entry.ptr.unit].0[100], mark);
            }
        }
    }
}
