//! The unflushed window of one leg (store rule R11).
//!
//! Every block that the leg answered and that no flush has covered since is kept here, in the
//! frozen pages in which it was sent: foreground writes, heals, copies and rewrites alike, newest
//! bytes per block only. When the unit comes back without its cache, these are written again. A
//! flush covers what was answered before it was submitted; its success drops that part.

use blockdev::{IoVec, Sector, SECTOR_BYTES};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a range was last written with.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Data(IoVec),
    Zeros,
}

#[derive(Clone, Debug)]
struct Entry {
    end: u64,
    content: Content,
    epoch: u64,
}

impl Entry {
    /// The part `from..to` of an entry that begins at `start`.
    fn part(&self, start: u64, from: u64, to: u64) -> Entry {
        let content = match &self.content {
            Content::Zeros => Content::Zeros,
            Content::Data(data) => {
                let bytes = |sector: u64| ((sector - start) * SECTOR_BYTES) as usize;
                Content::Data(data.slice(bytes(from)..bytes(to)))
            }
        };
        Entry {
            end: to,
            content,
            epoch: self.epoch,
        }
    }

    fn bytes(&self, start: u64) -> u64 {
        match &self.content {
            Content::Zeros => 0,
            Content::Data(_) => (self.end - start) * SECTOR_BYTES,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Window {
    entries: BTreeMap<u64, Entry>,
    bytes: u64,
    epoch: u64,
}

/// Names what was in the window when a flush was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FlushMark(u64);

impl Window {
    /// Payload bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The leg answered a write of `range`.
    pub(crate) fn insert(&mut self, range: Range<Sector>, content: Content) {
        self.remove(range.clone());
        let epoch = self.epoch;
        let entry = Entry {
            end: range.end.0,
            content,
            epoch,
        };
        self.bytes += entry.bytes(range.start.0);
        self.entries.insert(range.start.0, entry);
    }

    /// What lies in `range` is durable, or no longer of interest.
    pub(crate) fn remove(&mut self, range: Range<Sector>) {
        let (from, to) = (range.start.0, range.end.0);
        let first = self
            .entries
            .range(..from)
            .next_back()
            .filter(|(_, entry)| entry.end > from)
            .map_or(from, |(&start, _)| start);
        let overlapping: Vec<u64> = self.entries.range(first..to).map(|(&s, _)| s).collect();
        for start in overlapping {
            let Some(entry) = self.entries.remove(&start) else {
                continue;
            };
            self.bytes -= entry.bytes(start);
            if start < from {
                self.put(start, entry.part(start, start, from));
            }
            if entry.end > to {
                self.put(to, entry.part(start, to, entry.end));
            }
        }
    }

    fn put(&mut self, start: u64, entry: Entry) {
        self.bytes += entry.bytes(start);
        self.entries.insert(start, entry);
    }

    /// A flush is about to be submitted: it covers all that is here now.
    pub(crate) fn begin_flush(&mut self) -> FlushMark {
        let mark = FlushMark(self.epoch);
        self.epoch += 1;
        mark
    }

    /// That flush succeeded.
    pub(crate) fn flushed(&mut self, mark: FlushMark) {
        let mut bytes = 0;
        self.entries.retain(|&start, entry| {
            let keep = entry.epoch > mark.0;
            if keep {
                bytes += entry.bytes(start);
            }
            keep
        });
        self.bytes = bytes;
    }

    /// Everything in it, to be written again.
    pub(crate) fn all(&self) -> Vec<(Range<Sector>, Content)> {
        self.entries
            .iter()
            .map(|(&start, entry)| (Sector(start)..Sector(entry.end), entry.content.clone()))
            .collect()
    }

    /// Forgets everything: the leg is out.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::Pool;
    use proptest::prelude::*;

    fn data(pool: &Pool, fill: u8, sectors: u64) -> Content {
        Content::Data(pool.copy_now(&vec![fill; (sectors * SECTOR_BYTES) as usize]))
    }

    #[test]
    fn a_flush_covers_what_was_answered_before_it() {
        let pool = Pool::new(1 << 20);
        let mut window = Window::default();
        window.insert(Sector(0)..Sector(8), data(&pool, 1, 8));
        let mark = window.begin_flush();
        window.insert(Sector(4)..Sector(12), data(&pool, 2, 8));
        window.flushed(mark);
        let left = window.all();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].0, Sector(4)..Sector(12));
        assert_eq!(window.bytes(), 8 * 512);
    }

    proptest! {
        #[test]
        fn it_holds_the_newest_bytes_of_each_block(
            writes in prop::collection::vec((0u64..60, 1u64..20, 1u8..255, 0u8..8), 1..60)
        ) {
            let pool = Pool::new(1 << 20);
            let mut window = Window::default();
            let mut model = [None; 80];
            let mut mark = None;
            for (at, sectors, fill, extra) in writes {
                window.insert(Sector(at)..Sector(at + sectors), data(&pool, fill, sectors));
                for slot in &mut model[at as usize..(at + sectors) as usize] {
                    *slot = Some((fill, false));
                }
                if extra == 0 {
                    mark = Some(window.begin_flush());
                    model.iter_mut().flatten().for_each(|slot| slot.1 = true);
                } else if extra == 1 {
                    if let Some(mark) = mark.take() {
                        window.flushed(mark);
                        for slot in &mut model {
                            *slot = slot.filter(|slot| !slot.1);
                        }
                    }
                }
            }
            let mut seen = [None; 80];
            for (range, content) in window.all() {
                let Content::Data(bytes) = content else { panic!("only data was written") };
                let bytes = bytes.to_vec();
                prop_assert_eq!(bytes.len() as u64, (range.end.0 - range.start.0) * 512);
                for (i, sector) in (range.start.0..range.end.0).enumerate() {
                    prop_assert!(seen[sector as usize].is_none());
                    seen[sector as usize] = Some(bytes[i * 512]);
                }
            }
            prop_assert_eq!(seen, model.map(|slot| slot.map(|slot| slot.0)));
            let total = seen.iter().flatten().count() as u64 * 512;
            prop_assert_eq!(window.bytes(), total);
        }
    }
}
