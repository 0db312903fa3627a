//! What a disk holds, and what of it survives.
//!
//! Each sector of 512 bytes has its durable content and, above it, the versions that were written
//! since and not flushed. A read sees the newest. A flush makes durable what was *answered* before
//! it was asked for, and no more. A power cut leaves for each sector its durable content or any
//! version above it, in any combination and order: writes are atomic per sector and nothing more.
//!
//! Besides, bytes can rot, sectors can become unreadable (until they are written again), and the
//! device above can lose, tear or misdirect what it stores.

use super::chance::Chance;
use crate::buf::{Pool, PAGE_BYTES};
use crate::{IoVec, Sector, SECTOR_BYTES};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

const SECTOR: usize = SECTOR_BYTES as usize;
const SECTORS_IN_PAGE: u64 = PAGE_BYTES as u64 / SECTOR_BYTES;

/// What one disk holds. Cloning shares it: it outlives the devices and runtimes that use it.
#[derive(Clone)]
pub struct Medium {
    state: Rc<State>,
}

struct State {
    sectors: u64,
    durable: RefCell<BTreeMap<u64, Box<[u8]>>>,
    /// Unflushed versions by sector, oldest first.
    above: RefCell<BTreeMap<u64, Vec<Version>>>,
    unreadable: RefCell<BTreeSet<u64>>,
    /// Counts answers and flushes, so that a flush knows which answers came before it.
    clock: Cell<u64>,
    next_write: Cell<u64>,
}

#[derive(Clone)]
struct Version {
    write: Rc<Tag>,
    bytes: Rc<[u8]>,
    offset: usize,
}

/// One write: what all its sectors share.
struct Tag {
    id: u64,
    /// When it was answered; `u64::MAX`: not yet.
    answered: Cell<u64>,
}

/// A write that the medium has taken and not answered yet.
pub(super) struct Taken(Rc<Tag>);

/// A point in the order of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

/// How a power cut treats what was not flushed.
enum Style {
    Nothing,
    Everything,
    /// Whole writes by the toss of a coin.
    Writes,
    /// Sectors by the toss of a coin.
    Sectors,
    /// Writes before this one, and sectors of it.
    Prefix(u64),
}

impl Medium {
    /// A medium of `sectors` sectors, all zeros.
    pub fn new(sectors: u64) -> Medium {
        let state = State {
            sectors,
            durable: RefCell::default(),
            above: RefCell::default(),
            unreadable: RefCell::default(),
            clock: Cell::new(0),
            next_write: Cell::new(0),
        };
        Medium {
            state: Rc::new(state),
        }
    }

    /// Size in sectors.
    pub fn sectors(&self) -> u64 {
        self.state.sectors
    }

    /// What a read of `sectors` sectors would see, damage aside.
    pub fn peek(&self, at: Sector, sectors: u64) -> Vec<u8> {
        let mut out = vec![0; sectors as usize * SECTOR];
        self.copy_out(at, &mut out);
        out
    }

    /// Changes bytes behind everybody's back, at once and durably: bit rot, or an old copy.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            let at = offset + i as u64;
            let sector = at / SECTOR_BYTES;
            let mut content = self.peek(Sector(sector), 1);
            content[(at % SECTOR_BYTES) as usize] = byte;
            self.state.above.borrow_mut().remove(&sector);
            self.state.set_durable(sector, &content);
        }
    }

    /// Flips one bit, drawn from `seed`, of a sector.
    pub fn rot(&self, at: Sector, seed: u64) {
        let chance = Chance::new(seed);
        let offset = at.bytes() + chance.below(SECTOR_BYTES);
        let byte = self.peek(at, 1)[(offset % SECTOR_BYTES) as usize];
        self.poke(offset, &[byte ^ (1 << chance.below(8))]);
    }

    /// Makes a sector unreadable until it is written again.
    pub fn break_sector(&self, at: Sector) {
        self.state.unreadable.borrow_mut().insert(at.0);
    }

    /// The first unreadable sector of a range.
    pub fn first_bad(&self, range: Range<Sector>) -> Option<Sector> {
        let unreadable = self.state.unreadable.borrow();
        unreadable
            .range(range.start.0..range.end.0)
            .next()
            .map(|&s| Sector(s))
    }

    /// Sectors whose newest content a power cut could take.
    pub fn unflushed_sectors(&self) -> usize {
        self.state.above.borrow().len()
    }

    /// Everything was flushed: for setting the stage.
    pub fn settle(&self) {
        let above = std::mem::take(&mut *self.state.above.borrow_mut());
        for (sector, versions) in above {
            if let Some(last) = versions.last() {
                self.state.set_durable(sector, last.sector());
            }
        }
    }

    /// The power fails. What of the unflushed versions remains is drawn from `seed`.
    pub fn power_cut(&self, seed: u64) {
        let chance = Chance::new(seed);
        let above = std::mem::take(&mut *self.state.above.borrow_mut());
        let style = match chance.below(6) {
            0 => Style::Nothing,
            1 => Style::Everything,
            2 | 3 => Style::Writes,
            4 => Style::Sectors,
            _ => {
                let writes: BTreeSet<u64> = above.values().flatten().map(|v| v.write.id).collect();
                let which = chance.below(writes.len() as u64) as usize;
                Style::Prefix(writes.into_iter().nth(which).unwrap_or(0))
            }
        };
        let is_in_order = chance.coin();
        let mut writes: BTreeMap<u64, bool> = BTreeMap::new();
        for (sector, versions) in above {
            let kept: Vec<&Version> = versions
                .iter()
                .filter(|v| match style {
                    Style::Nothing => false,
                    Style::Everything => true,
                    Style::Writes => *writes.entry(v.write.id).or_insert_with(|| chance.coin()),
                    Style::Sectors => chance.coin(),
                    Style::Prefix(cut) if v.write.id == cut => chance.coin(),
                    Style::Prefix(cut) => v.write.id < cut,
                })
                .collect();
            let winner = if is_in_order {
                kept.last()
            } else {
                kept.get(chance.below(kept.len() as u64) as usize)
            };
            if let Some(version) = winner {
                self.state.set_durable(sector, version.sector());
            }
        }
    }

    /// A copy of all that is there, damage and cache included, that goes its own way.
    pub fn fork(&self) -> Medium {
        let copy = Medium::new(self.sectors());
        *copy.state.durable.borrow_mut() = self.state.durable.borrow().clone();
        *copy.state.above.borrow_mut() = self.state.above.borrow().clone();
        *copy.state.unreadable.borrow_mut() = self.state.unreadable.borrow().clone();
        copy.state.clock.set(self.state.clock.get());
        copy.state.next_write.set(self.state.next_write.get());
        copy
    }

    /// The first sector in which two media differ, as read.
    pub fn first_difference(&self, other: &Medium) -> Option<Sector> {
        let pages: BTreeSet<u64> = [self, other]
            .iter()
            .flat_map(|m| {
                let durable = m.state.durable.borrow();
                let above = m.state.above.borrow();
                let pages = durable.keys().copied();
                let pages = pages.chain(above.keys().map(|s| s / SECTORS_IN_PAGE));
                pages.collect::<Vec<u64>>()
            })
            .collect();
        let sectors = pages
            .into_iter()
            .flat_map(|page| page * SECTORS_IN_PAGE..(page + 1) * SECTORS_IN_PAGE)
            .map(Sector);
        sectors
            .into_iter()
            .find(|&at| self.peek(at, 1) != other.peek(at, 1))
    }

    /// Reads into pages of `pool`.
    pub(super) fn read(&self, pool: &Pool, at: Sector, sectors: u32) -> IoVec {
        let mut out = IoVec::new();
        let mut from = at;
        for mut buf in pool.alloc_list_now(sectors as usize * SECTOR) {
            self.copy_out(from, &mut buf);
            from = from + (buf.len() / SECTOR) as u64;
            out.push(buf.freeze());
        }
        out
    }

    /// Takes a write into the cache: only the sectors that `keep` lets through.
    pub(super) fn write(
        &self,
        at: Sector,
        bytes: &Rc<[u8]>,
        mut keep: impl FnMut() -> bool,
    ) -> Taken {
        let id = self.state.next_write.get();
        self.state.next_write.set(id + 1);
        let tag = Rc::new(Tag {
            id,
            answered: Cell::new(u64::MAX),
        });
        let mut above = self.state.above.borrow_mut();
        let mut unreadable = self.state.unreadable.borrow_mut();
        for (i, offset) in (0..bytes.len()).step_by(SECTOR).enumerate() {
            let sector = at.0 + i as u64;
            if sector >= self.state.sectors || !keep() {
                continue;
            }
            unreadable.remove(&sector);
            above.entry(sector).or_default().push(Version {
                write: tag.clone(),
                bytes: bytes.clone(),
                offset,
            });
        }
        Taken(tag)
    }

    /// The write is in the cache, where a flush that comes later finds it.
    pub(super) fn landed(&self, taken: &Taken) {
        taken.0.answered.set(self.tick().0);
    }

    /// The answers before this moment are what a flush that is asked for now covers.
    pub(super) fn tick(&self) -> Moment {
        let now = self.state.clock.get() + 1;
        self.state.clock.set(now);
        Moment(now)
    }

    /// Makes durable what was answered before `asked`.
    pub(super) fn flush(&self, asked: Moment) {
        self.state
            .make_durable(|version| version.write.answered.get() <= asked.0);
    }

    /// Makes one write durable: FUA.
    pub(super) fn force(&self, taken: &Taken) {
        self.state
            .make_durable(|version| Rc::ptr_eq(&version.write, &taken.0));
    }

    fn copy_out(&self, at: Sector, to: &mut [u8]) {
        let durable = self.state.durable.borrow();
        let above = self.state.above.borrow();
        for (i, to) in to.chunks_mut(SECTOR).enumerate() {
            let sector = at.0 + i as u64;
            if let Some(version) = above.get(&sector).and_then(|v| v.last()) {
                to.copy_from_slice(version.sector());
            } else if let Some(page) = durable.get(&(sector / SECTORS_IN_PAGE)) {
                let within = (sector % SECTORS_IN_PAGE) as usize * SECTOR;
                to.copy_from_slice(&page[within..within + SECTOR]);
            } else {
                to.fill(0);
            }
        }
    }
}

impl State {
    fn set_durable(&self, sector: u64, bytes: &[u8]) {
        let mut durable = self.durable.borrow_mut();
        let page = durable
            .entry(sector / SECTORS_IN_PAGE)
            .or_insert_with(|| vec![0; PAGE_BYTES].into_boxed_slice());
        let within = (sector % SECTORS_IN_PAGE) as usize * SECTOR;
        page[within..within + SECTOR].copy_from_slice(bytes);
    }

    /// In each sector, the newest version that `covers` accepts becomes durable, and with it all
    /// that are older are gone.
    fn make_durable(&self, covers: impl Fn(&Version) -> bool) {
        let mut above = self.above.borrow_mut();
        above.retain(|&sector, versions| {
            if let Some(newest) = versions.iter().rposition(&covers) {
                self.set_durable(sector, versions[newest].sector());
                versions.drain(..=newest);
            }
            !versions.is_empty()
        });
    }
}

impl Version {
    fn sector(&self) -> &[u8] {
        &self.bytes[self.offset..self.offset + SECTOR]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(medium: &Medium, at: u64, fill: u8, sectors: usize) -> Taken {
        let bytes: Rc<[u8]> = vec![fill; sectors * SECTOR].into();
        medium.write(Sector(at), &bytes, || true)
    }

    #[test]
    fn a_flush_covers_what_was_answered_before_it_was_asked_for() {
        let medium = Medium::new(64);
        let first = write(&medium, 0, 1, 1);
        medium.landed(&first);
        let second = write(&medium, 1, 2, 1);
        let asked = medium.tick();
        medium.landed(&second);
        medium.flush(asked);
        assert_eq!(medium.unflushed_sectors(), 1);
        assert_eq!(medium.peek(Sector(1), 1), vec![2; SECTOR]);
        for seed in 0..100 {
            let cut = medium.fork();
            cut.power_cut(seed);
            assert_eq!(cut.peek(Sector(0), 1), vec![1; SECTOR]);
        }
    }

    #[test]
    fn a_forced_write_supersedes_older_versions() {
        let medium = Medium::new(64);
        write(&medium, 0, 1, 2);
        let forced = write(&medium, 0, 2, 1);
        medium.force(&forced);
        for seed in 0..100 {
            let cut = medium.fork();
            cut.power_cut(seed);
            assert_eq!(cut.peek(Sector(0), 1), vec![2; SECTOR]);
        }
    }

    #[test]
    fn a_cut_leaves_any_mixture_of_whole_sectors() {
        let medium = Medium::new(64);
        write(&medium, 0, 1, 2);
        medium.settle();
        write(&medium, 0, 2, 2);
        write(&medium, 0, 3, 2);
        let mut seen = BTreeSet::new();
        for seed in 0..500 {
            let cut = medium.fork();
            cut.power_cut(seed);
            let bytes = cut.peek(Sector(0), 2);
            let (first, second) = bytes.split_at(SECTOR);
            assert!(first.iter().all(|b| b == &first[0]), "a sector is atomic");
            assert!(second.iter().all(|b| b == &second[0]), "a sector is atomic");
            seen.insert((first[0], second[0]));
        }
        assert_eq!(seen.len(), 9, "{seen:?}");
    }

    #[test]
    fn rot_changes_one_bit_for_good() {
        let medium = Medium::new(64);
        write(&medium, 5, 0xAA, 1);
        medium.rot(Sector(5), 9);
        let bits: u32 = medium
            .peek(Sector(5), 1)
            .iter()
            .map(|b| (b ^ 0xAA).count_ones())
            .sum();
        assert_eq!(bits, 1);
    }

    #[test]
    fn an_unreadable_sector_is_cured_by_writing() {
        let medium = Medium::new(64);
        medium.break_sector(Sector(3));
        assert_eq!(medium.first_bad(Sector(0)..Sector(8)), Some(Sector(3)));
        write(&medium, 3, 1, 1);
        assert_eq!(medium.first_bad(Sector(0)..Sector(8)), None);
    }

    #[test]
    fn differences_are_found() {
        let (one, other) = (Medium::new(64), Medium::new(64));
        assert_eq!(one.first_difference(&other), None);
        write(&one, 9, 1, 1);
        assert_eq!(one.first_difference(&other), Some(Sector(9)));
        other.poke(9 * SECTOR_BYTES, &[1; SECTOR]);
        assert_eq!(one.first_difference(&other), None);
    }
}
