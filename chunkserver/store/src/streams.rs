//! Who reads in sequence: after two requests that touch, the next part is read ahead.

use std::collections::BTreeMap;

/// Streams remembered; past that the oldest is forgotten.
const STREAMS_MAX: usize = 1024;

struct Stream {
    end: u64,
    /// Up to here was read ahead.
    ahead: u64,
    age: u64,
}

/// Sequential readers by chunk.
#[derive(Default)]
pub(crate) struct Streams {
    streams: BTreeMap<u64, Stream>,
    by_age: BTreeMap<u64, u64>,
    clock: u64,
}

impl Streams {
    /// A read of `bytes` at `offset` of chunk `id`: the range to read ahead now, if any. It is
    /// asked for once less than half of `span` is left of the last one.
    pub(crate) fn on_read(
        &mut self,
        id: u64,
        (offset, bytes): (u64, u64),
        span: u64,
    ) -> Option<std::ops::Range<u64>> {
        self.clock += 1;
        let end = offset + bytes;
        let old = self.streams.remove(&id);
        if let Some(old) = &old {
            self.by_age.remove(&old.age);
        }
        let follows = old.as_ref().is_some_and(|s| s.end == offset);
        let mut ahead = old.map_or(0, |s| s.ahead);
        let mut range = None;
        if !follows {
            ahead = end;
        } else if span > 0 && ahead.max(end) < end + span / 2 {
            let from = ahead.max(end);
            ahead = end + span;
            range = Some(from..ahead);
        }
        self.streams.insert(
            id,
            Stream {
                end,
                ahead,
                age: self.clock,
            },
        );
        self.by_age.insert(self.clock, id);
        if self.streams.len() > STREAMS_MAX {
            if let Some((_, oldest)) = self.by_age.pop_first() {
                self.streams.remove(&oldest);
            }
        }
        range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ahead_of_adjacent_requests_only() {
        let mut s = Streams::default();
        assert_eq!(s.on_read(1, (0, 100), 1000), None);
        assert_eq!(s.on_read(1, (100, 100), 1000), Some(200..1200));
        assert_eq!(s.on_read(1, (200, 100), 1000), None);
        assert_eq!(s.on_read(1, (300, 500), 1000), Some(1200..1800));
        assert_eq!(s.on_read(1, (5000, 100), 1000), None);
        for id in 0..3000 {
            s.on_read(id, (0, 1), 1000);
        }
        assert!(s.streams.len() <= STREAMS_MAX && s.by_age.len() == s.streams.len());
    }
}
