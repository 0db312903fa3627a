//! The unit's content: a medium and a volatile cache over it.

use blockdev::path::Command;
use blockdev::{IoVec, Pool, Sector, SECTOR_BYTES};
use std::collections::{BTreeMap, BTreeSet};

const SECTOR: usize = SECTOR_BYTES as usize;
type Bytes = [u8; SECTOR];

pub(crate) struct Unit {
    has_cache: bool,
    cache: BTreeMap<u64, Bytes>,
    media: BTreeMap<u64, Bytes>,
    spoiled: BTreeSet<u64>,
}

impl Unit {
    pub(crate) fn new(has_cache: bool) -> Unit {
        Unit {
            has_cache,
            cache: BTreeMap::new(),
            media: BTreeMap::new(),
            spoiled: BTreeSet::new(),
        }
    }

    pub(crate) fn peek(&self, at: Sector) -> Bytes {
        let cached = self.cache.get(&at.0);
        *cached
            .or_else(|| self.media.get(&at.0))
            .unwrap_or(&[0; SECTOR])
    }

    pub(crate) fn peek_media(&self, at: Sector) -> Bytes {
        *self.media.get(&at.0).unwrap_or(&[0; SECTOR])
    }

    pub(crate) fn spoil(&mut self, at: Sector) {
        self.spoiled.insert(at.0);
    }

    /// The first unreadable sector of a range.
    pub(crate) fn spoiled(&self, at: Sector, sectors: u32) -> Option<u64> {
        let end = at.0 + u64::from(sectors);
        self.spoiled.range(at.0..end).next().copied()
    }

    pub(crate) fn read(&self, pool: &Pool, at: Sector, sectors: u32) -> IoVec {
        let mut bytes = Vec::with_capacity(sectors as usize * SECTOR);
        for n in 0..u64::from(sectors) {
            bytes.extend_from_slice(&self.peek(at + n));
        }
        pool.copy_now(&bytes)
    }

    /// Does a command's work. `keep` says for each sector whether it happens (power cut).
    pub(crate) fn apply(&mut self, command: &Command, mut keep: impl FnMut() -> bool) {
        match command {
            Command::Write { at, data, want } => {
                let through = *want == blockdev::Durability::Fua;
                let bytes = data.to_vec();
                for (n, sector) in bytes.chunks_exact(SECTOR).enumerate() {
                    let mut content = [0; SECTOR];
                    content.copy_from_slice(sector);
                    if keep() {
                        self.put(at.0 + n as u64, content, through);
                    }
                }
            }
            Command::WriteZeroes { at, sectors } | Command::Unmap { at, sectors } => {
                for n in 0..u64::from(*sectors) {
                    if keep() {
                        self.put(at.0 + n, [0; SECTOR], false);
                    }
                }
            }
            Command::SynchronizeCache => {
                for (at, content) in std::mem::take(&mut self.cache) {
                    if keep() {
                        self.media.insert(at, content);
                    } else {
                        self.cache.insert(at, content);
                    }
                }
            }
            Command::Read { .. }
            | Command::TestUnitReady
            | Command::OrderedTestUnitReady
            | Command::ReportTargetPortGroups
            | Command::ReportTargetPortGroupsExtended
            | Command::ReserveIn(_)
            | Command::ReserveOut(_) => {}
        }
    }

    fn put(&mut self, at: u64, content: Bytes, through: bool) {
        self.spoiled.remove(&at);
        if self.has_cache && !through {
            self.cache.insert(at, content);
        } else {
            self.cache.remove(&at);
            self.media.insert(at, content);
        }
    }

    /// Power is lost: of the cache, what `keep` says had reached the medium.
    pub(crate) fn lose_cache(&mut self, mut keep: impl FnMut() -> bool) {
        for (at, content) in std::mem::take(&mut self.cache) {
            if keep() {
                self.media.insert(at, content);
            }
        }
    }
}
