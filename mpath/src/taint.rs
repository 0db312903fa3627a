//! Ranges where an unanswered write may still land.
//!
//! A taint is one attempt of a WRITE, WRITE SAME or UNMAP that has no answer although its request
//! was answered upward (by another attempt, or with an error), or whose session was lost. Until
//! the attempt is answered or fenced, nothing with *other* bytes may be written over it; equal
//! bytes may, for then the late copy changes nothing.
//!
//! The pages of a tainted write stay alive here: they are what "equal" is judged by.

use blockdev::{IoVec, Sector, Seq, SECTOR_BYTES};
use std::collections::BTreeMap;
use std::ops::Range;

/// What an attempt would put into its range.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Data(IoVec),
    Zeroes,
    /// Anything at all.
    Undefined,
}

#[derive(Debug)]
pub(crate) struct Taint {
    pub(crate) range: Range<Sector>,
    pub(crate) content: Content,
    /// Epoch of the session it was sent on.
    pub(crate) epoch: u64,
    /// The operation it belongs to.
    pub(crate) op: Seq,
}

/// Names a taint: ascending in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TaintId(pub(crate) u64);

#[derive(Default)]
pub(crate) struct Taints {
    by_start: BTreeMap<(Sector, u64), Taint>,
    starts: BTreeMap<u64, Sector>,
    next: u64,
    /// Longest range ever seen since the registry was last empty: bounds the search backwards.
    longest: u64,
}

impl Taints {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_start.len()
    }

    pub(crate) fn add(&mut self, taint: Taint) -> TaintId {
        assert!(taint.range.start < taint.range.end, "an empty taint");
        if self.by_start.is_empty() {
            self.longest = 0;
        }
        self.longest = self.longest.max(taint.range.end.0 - taint.range.start.0);
        let id = self.next;
        self.next += 1;
        self.starts.insert(id, taint.range.start);
        self.by_start.insert((taint.range.start, id), taint);
        TaintId(id)
    }

    pub(crate) fn remove(&mut self, id: TaintId) -> Option<Taint> {
        let start = self.starts.remove(&id.0)?;
        self.by_start.remove(&(start, id.0))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TaintId, &Taint)> {
        self.by_start.iter().map(|((_, id), t)| (TaintId(*id), t))
    }

    /// Whether any belongs to an operation before `limit`.
    pub(crate) fn any_before(&self, limit: Seq) -> bool {
        self.by_start.values().any(|t| t.op < limit)
    }

    fn overlapping<'a>(
        &'a self,
        range: &'a Range<Sector>,
    ) -> impl Iterator<Item = (TaintId, &'a Taint)> + 'a {
        let from = Sector(range.start.0.saturating_sub(self.longest));
        self.by_start
            .range((from, 0)..(range.end, 0))
            .filter(move |(_, taint)| taint.range.end > range.start)
            .map(|((_, id), taint)| (TaintId(*id), taint))
    }

    pub(crate) fn touches(&self, range: &Range<Sector>) -> bool {
        self.overlapping(range).next().is_some()
    }

    /// Epochs of the taints that `content` at `range` must not overtake.
    pub(crate) fn conflicts<'a>(
        &'a self,
        range: &'a Range<Sector>,
        content: &'a Content,
    ) -> impl Iterator<Item = u64> + 'a {
        self.overlapping(range)
            .filter(move |(_, taint)| !is_same(taint, range, content))
            .map(|(_, taint)| taint.epoch)
    }
}

fn is_same(taint: &Taint, range: &Range<Sector>, content: &Content) -> bool {
    let from = taint.range.start.max(range.start);
    let to = taint.range.end.min(range.end);
    let part = |whole: &Range<Sector>, data: &IoVec| {
        let begin = ((from.0 - whole.start.0) * SECTOR_BYTES) as usize;
        data.slice(begin..begin + ((to.0 - from.0) * SECTOR_BYTES) as usize)
    };
    match (&taint.content, content) {
        (Content::Data(old), Content::Data(new)) => part(&taint.range, old) == part(range, new),
        (Content::Data(old), Content::Zeroes) => part(&taint.range, old).is_zero(),
        (Content::Zeroes, Content::Data(new)) => part(range, new).is_zero(),
        (Content::Zeroes, Content::Zeroes) => true,
        (Content::Undefined, _) | (_, Content::Undefined) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::Pool;
    use proptest::prelude::*;

    fn data(pool: &Pool, fill: &[u8]) -> Content {
        let bytes: Vec<u8> = fill.iter().flat_map(|&b| [b; 512]).collect();
        Content::Data(pool.copy_now(&bytes))
    }

    fn conflicts(taints: &Taints, at: u64, content: &Content, sectors: u64) -> Vec<u64> {
        taints
            .conflicts(&Sector(at).span(sectors), content)
            .collect()
    }

    #[test]
    fn equal_bytes_pass_and_other_bytes_are_held() {
        let pool = Pool::new(1 << 20);
        let mut taints = Taints::default();
        let id = taints.add(Taint {
            range: Sector(8).span(3),
            content: data(&pool, &[1, 2, 3]),
            epoch: 7,
            op: Seq(1),
        });
        let none: Vec<u64> = vec![];
        assert_eq!(conflicts(&taints, 8, &data(&pool, &[1, 2, 3]), 3), none);
        assert_eq!(conflicts(&taints, 9, &data(&pool, &[2, 3, 9]), 3), none);
        assert_eq!(conflicts(&taints, 10, &data(&pool, &[4]), 1), [7]);
        assert_eq!(conflicts(&taints, 11, &data(&pool, &[4]), 1), none);
        assert_eq!(conflicts(&taints, 0, &Content::Undefined, 9), [7]);
        assert_eq!(conflicts(&taints, 8, &Content::Zeroes, 1), [7]);
        assert!(taints.touches(&Sector(10).span(1)));
        assert!(taints.remove(id).is_some());
        assert!(taints.remove(id).is_none());
        assert!(!taints.touches(&Sector(0).span(100)));
    }

    proptest! {
        #[test]
        fn overlap_agrees_with_a_list(
            ranges in proptest::collection::vec((0u64..64, 1u64..16), 0..20),
            removed in proptest::collection::vec(any::<bool>(), 20),
            at in 0u64..64, len in 1u64..16,
        ) {
            let mut taints = Taints::default();
            let mut kept = Vec::new();
            for (n, (start, length)) in ranges.iter().enumerate() {
                let range = Sector(*start).span(*length);
                let id = taints.add(Taint { range: range.clone(), content: Content::Zeroes, epoch: 0, op: Seq(0) });
                kept.push((n, id, range));
            }
            kept.retain(|(n, id, _)| !removed[*n] || { taints.remove(*id); false });
            let probe = Sector(at).span(len);
            let expected = kept.iter().any(|(_, _, r)| r.start < probe.end && probe.start < r.end);
            prop_assert_eq!(taints.touches(&probe), expected);
            prop_assert_eq!(taints.len(), kept.len());
        }
    }
}
