//! The directory: a slot of 64 bytes for each chunk, live or held back, and the index by id.
//!
//! Slots live in pages as they lie on the disk (65 bytes of memory a chunk), the index adds a hash
//! entry of 16 bytes and a little. Every change goes through [`Directory::put`], which keeps all
//! sums; a page changed while a checkpoint holds it is copied first.

use crate::layout::{Page, Ptr, DIR_SLOTS, HEADER_BYTES, INLINE_GRANULES, INLINE_PAGES, PTR_BYTES};
use crate::tree::TreeId;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Empty,
    Live,
    Quarantined,
    Replica,
}

/// Where a chunk's map begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Nothing,
    /// Granules of block 0: bit i of the mask says that the next pointer is granule i's.
    Granules {
        mask: u16,
        ptrs: [Ptr; INLINE_GRANULES as usize],
    },
    Pages([Ptr; INLINE_PAGES as usize]),
    Root(Ptr),
}

/// Quarantine flag: deleted by an order for any version.
pub(crate) const FLAG_ANY_VERSION: u8 = 1;
/// Quarantine flag: held until purged by command.
pub(crate) const FLAG_HARD: u8 = 2;

/// A decoded slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) id: u64,
    pub(crate) version: u32,
    pub(crate) blocks: u16,
    pub(crate) kind: Kind,
    pub(crate) form: Form,
    /// Unix seconds.
    pub(crate) deleted_at: u32,
    pub(crate) granules: u32,
    pub(crate) flags: u8,
}

impl Slot {
    pub(crate) const EMPTY: Slot = Slot {
        id: 0,
        version: 0,
        blocks: 0,
        kind: Kind::Empty,
        form: Form::Nothing,
        deleted_at: 0,
        granules: 0,
        flags: 0,
    };

    fn encode(&self) -> [u8; 64] {
        let mut out = [0; 64];
        out[0..8].copy_from_slice(&self.id.to_le_bytes());
        out[8..12].copy_from_slice(&self.version.to_le_bytes());
        out[12..14].copy_from_slice(&self.blocks.to_le_bytes());
        out[14] = self.kind as u8;
        out[16..20].copy_from_slice(&self.deleted_at.to_le_bytes());
        out[20..24].copy_from_slice(&self.granules.to_le_bytes());
        out[63] = self.flags;
        let mut put = |at: usize, ptrs: &[Ptr]| {
            for (i, ptr) in ptrs.iter().enumerate() {
                let at = at + i * PTR_BYTES;
                out[at..at + PTR_BYTES].copy_from_slice(&ptr.encode());
            }
        };
        out[15] = match self.form {
            Form::Nothing => 0,
            Form::Granules { mask, ptrs } => {
                put(26, &ptrs);
                out[24..26].copy_from_slice(&mask.to_le_bytes());
                1
            }
            Form::Pages(ptrs) => {
                put(24, &ptrs);
                2
            }
            Form::Root(ptr) => {
                put(24, &[ptr]);
                3
            }
        };
        out
    }

    /// `None`: not a slot.
    fn decode(bytes: &[u8; 64]) -> Option<Slot> {
        let mut r = crate::layout::Reader(bytes);
        let (id, version, blocks) = (r.u64()?, r.u32()?, r.u16()?);
        let kind = match r.u8()? {
            0 => Kind::Empty,
            1 => Kind::Live,
            2 => Kind::Quarantined,
            3 => Kind::Replica,
            _ => return None,
        };
        let form = r.u8()?;
        let (deleted_at, granules) = (r.u32()?, r.u32()?);
        let mut ptrs = |n: usize| -> Option<[Ptr; 4]> {
            let mut out = [Ptr::HOLE; 4];
            for ptr in out.iter_mut().take(n) {
                *ptr = r.ptr()?;
            }
            Some(out)
        };
        let form = match form {
            0 => Form::Nothing,
            1 => {
                let mask = u16::from_le_bytes([bytes[24], bytes[25]]);
                let mut r = crate::layout::Reader(&bytes[26..62]);
                let mut ptrs = [Ptr::HOLE; 4];
                for ptr in &mut ptrs {
                    *ptr = r.ptr()?;
                }
                if mask.count_ones() > INLINE_GRANULES {
                    return None;
                }
                Form::Granules { mask, ptrs }
            }
            2 => Form::Pages(ptrs(4)?),
            3 => Form::Root(ptrs(1)?[0]),
            _ => return None,
        };
        let flags = bytes[63];
        if u32::from(blocks) > u32::from(chunk_api::BLOCKS_PER_CHUNK) {
            return None;
        }
        Some(Slot {
            id,
            version,
            blocks,
            kind,
            form,
            deleted_at,
            granules,
            flags,
        })
    }
}

/// Multiplicative hashing: ids are dense numbers of the master's; the seed is fixed, so that runs
/// can be replayed.
#[derive(Default, Clone)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        let mixed = (self.0 ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

/// A map by chunk id or unit.
pub(crate) type IdMap<V> = HashMap<u64, V, BuildHasherDefault<IdHasher>>;

/// Sums over slots of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) chunks: u64,
    pub(crate) granules: u64,
}

/// See the module.
pub(crate) struct Directory {
    pages: Vec<Rc<Page>>,
    dirty: BTreeSet<u32>,
    index: IdMap<u32>,
    free: BTreeSet<u32>,
    /// (deleted at, slot), oldest first.
    quarantine: BTreeSet<(u32, u32)>,
    replicas: BTreeSet<u32>,
    live: Sums,
    /// Quarantined, free to be taken when space is needed.
    held: Sums,
    /// Quarantined, to be kept until purged by command.
    held_hard: Sums,
}

impl Directory {
    pub(crate) fn new() -> Directory {
        Directory {
            pages: Vec::new(),
            dirty: BTreeSet::new(),
            index: IdMap::default(),
            free: BTreeSet::new(),
            quarantine: BTreeSet::new(),
            replicas: BTreeSet::new(),
            live: Sums::default(),
            held: Sums::default(),
            held_hard: Sums::default(),
        }
    }

    /// Takes the next page in, in order; false if it is not a directory page or two live chunks
    /// have one id.
    pub(crate) fn load(&mut self, page: Page) -> bool {
        let number = self.pages.len() as u32;
        if !page.is(TreeId::Directory.leaf_header(number)) {
            return false;
        }
        for i in 0..DIR_SLOTS {
            let Some(slot) = Slot::decode(&page.get(HEADER_BYTES + i as usize * 64)) else {
                return false;
            };
            let double = slot.kind == Kind::Live && self.index.contains_key(&slot.id);
            if double {
                return false;
            }
            self.account(number * DIR_SLOTS + i, &slot, true);
        }
        self.pages.push(Rc::new(page));
        true
    }

    /// Makes room in the index for what is about to be loaded.
    pub(crate) fn reserve(&mut self, chunks: usize) {
        self.index.reserve(chunks);
    }

    fn account(&mut self, number: u32, slot: &Slot, add: bool) {
        let sums = match slot.kind {
            Kind::Empty => {
                match add {
                    true => self.free.insert(number),
                    false => self.free.remove(&number),
                };
                return;
            }
            Kind::Live => {
                match add {
                    true => self.index.insert(slot.id, number),
                    false => self.index.remove(&slot.id),
                };
                &mut self.live
            }
            Kind::Replica => {
                match add {
                    true => self.replicas.insert(number),
                    false => self.replicas.remove(&number),
                };
                &mut self.live
            }
            Kind::Quarantined => {
                let key = (slot.deleted_at, number);
                match add {
                    true => self.quarantine.insert(key),
                    false => self.quarantine.remove(&key),
                };
                match slot.flags & FLAG_HARD != 0 {
                    true => &mut self.held_hard,
                    false => &mut self.held,
                }
            }
        };
        let granules = u64::from(slot.granules);
        let count = u64::from(slot.kind != Kind::Replica);
        if add {
            sums.chunks += count;
            sums.granules += granules;
        } else {
            sums.chunks -= count;
            sums.granules -= granules;
        }
    }

    /// Slot `number`; an empty one if there is no such slot.
    pub(crate) fn get(&self, number: u32) -> Slot {
        let Some(page) = self.pages.get((number / DIR_SLOTS) as usize) else {
            return Slot::EMPTY;
        };
        let bytes = page.get(HEADER_BYTES + (number % DIR_SLOTS) as usize * 64);
        Slot::decode(&bytes).expect("slots in memory were checked when they came")
    }

    /// Sets slot `number`, adding pages as needed.
    pub(crate) fn put(&mut self, number: u32, slot: &Slot) {
        while self.pages.len() <= (number / DIR_SLOTS) as usize {
            let index = self.pages.len() as u32;
            self.pages
                .push(Rc::new(Page::new(TreeId::Directory.leaf_header(index))));
            self.free.extend(index * DIR_SLOTS..(index + 1) * DIR_SLOTS);
        }
        let old = self.get(number);
        self.account(number, &old, false);
        self.account(number, slot, true);
        let page = number / DIR_SLOTS;
        self.dirty.insert(page);
        let bytes = Rc::make_mut(&mut self.pages[page as usize]);
        bytes.put(
            HEADER_BYTES + (number % DIR_SLOTS) as usize * 64,
            slot.encode(),
        );
    }

    /// Changes slot `number` in place.
    pub(crate) fn update(&mut self, number: u32, change: impl FnOnce(&mut Slot)) {
        let mut slot = self.get(number);
        change(&mut slot);
        self.put(number, &slot);
    }

    /// The live chunk `id`.
    pub(crate) fn find(&self, id: u64) -> Option<(u32, Slot)> {
        let number = *self.index.get(&id)?;
        Some((number, self.get(number)))
    }

    pub(crate) fn slot_of(&self, id: u64) -> Option<u32> {
        self.index.get(&id).copied()
    }

    /// An empty slot: the lowest.
    pub(crate) fn vacant(&self) -> u32 {
        self.free
            .first()
            .copied()
            .unwrap_or(self.pages.len() as u32 * DIR_SLOTS)
    }

    pub(crate) fn slots(&self) -> u32 {
        self.pages.len() as u32 * DIR_SLOTS
    }

    pub(crate) fn page_count(&self) -> usize {
        self.pages.len()
    }

    pub(crate) fn live(&self) -> Sums {
        self.live
    }

    pub(crate) fn held(&self) -> Sums {
        self.held
    }

    pub(crate) fn held_hard(&self) -> Sums {
        self.held_hard
    }

    /// Slots in the quarantine, oldest deletion first.
    pub(crate) fn quarantine(&self) -> impl DoubleEndedIterator<Item = (u32, u32)> + '_ {
        self.quarantine.iter().copied()
    }

    pub(crate) fn replicas(&self) -> impl Iterator<Item = u32> + '_ {
        self.replicas.iter().copied()
    }

    /// Ids of live chunks with their slots, ascending.
    pub(crate) fn live_ids(&self) -> Vec<(u64, u32)> {
        let mut ids: Vec<_> = self.index.iter().map(|(&id, &slot)| (id, slot)).collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    pub(crate) fn dirty_all(&mut self) {
        self.dirty.extend(0..self.pages.len() as u32);
    }

    /// Takes the changed pages for a checkpoint.
    pub(crate) fn take_dirty(&mut self) -> Vec<(u32, Rc<Page>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|i| (i, self.pages[i as usize].clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ptr(n: u64) -> Ptr {
        Ptr {
            unit: n,
            crc: n as u32 ^ 3,
        }
    }

    #[test]
    fn every_form_round_trips() {
        let forms = [
            Form::Nothing,
            Form::Granules {
                mask: 0b1011,
                ptrs: [ptr(1), ptr(2), ptr(3), Ptr::HOLE],
            },
            Form::Pages([ptr(1), ptr(0), ptr(9), ptr((1 << 40) - 1)]),
            Form::Root(ptr(8)),
        ];
        for form in forms {
            let slot = Slot {
                id: 5,
                version: 6,
                blocks: 1024,
                kind: Kind::Quarantined,
                form,
                deleted_at: 7,
                granules: 3,
                flags: 3,
            };
            assert_eq!(Slot::decode(&slot.encode()), Some(slot));
        }
    }

    #[test]
    fn sums_follow_every_change() {
        let mut dir = Directory::new();
        let live = Slot {
            id: 9,
            kind: Kind::Live,
            granules: 4,
            version: 1,
            ..Slot::EMPTY
        };
        dir.put(70, &live);
        assert_eq!(dir.find(9), Some((70, live)));
        assert_eq!(
            (dir.live().chunks, dir.live().granules, dir.vacant()),
            (1, 4, 0)
        );
        dir.update(70, |s| s.kind = Kind::Quarantined);
        assert_eq!((dir.live(), dir.held().granules), (Sums::default(), 4));
        assert_eq!(dir.find(9), None);
        dir.put(70, &Slot::EMPTY);
        assert_eq!((dir.held(), dir.quarantine().count()), (Sums::default(), 0));
    }

    proptest::proptest! {
        #[test]
        fn any_slot_bytes_are_judged_without_panic(bytes: [u8; 32], more: [u8; 32]) {
            let mut all = [0; 64];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&more);
            all[14] &= 3;
            all[15] &= 3;
            let _ = Slot::decode(&all);
        }
    }
}
