//! When frames are written, and when they count as answered.
//!
//! A record goes into the batch that is open; the batch becomes a frame when fewer than
//! [`FRAMES_IN_FLIGHT`] are on their way. Data that a record points to is submitted at once, beside
//! it. A frame is *answered* when it, its segment's header, the data of its records and everything
//! before it are answered (a prefix, so that store rules R5 and R6 hold by construction).
//!
//! This is a state machine without I/O: [`Journal::poll_transmit`] says what to write,
//! [`Journal::handle_done`] what came of it.

use super::frame::{self, Identity, SegmentHeader, FRAME_UNITS_MAX};
use super::record::Record;
use crate::layout::{Ptr, HEADER_BYTES, UNIT_BYTES};
use blockdev::{IoVec, Pool};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// Frames on their way at most; records that come meanwhile share the next one.
const FRAMES_IN_FLIGHT: usize = 8;
/// Segments kept for the checkpoint's own progress and for undoing refused writes.
const SEGMENTS_RESERVED: usize = 2;

/// Something to write.
pub(crate) struct Transmit {
    pub(crate) unit: u64,
    pub(crate) data: IoVec,
    pub(crate) token: u64,
    /// The frame that needs it.
    pub(crate) seq: u64,
}

/// Data of a record on its way.
pub(crate) struct DataWrite {
    pub(crate) unit: u64,
    pub(crate) data: IoVec,
    /// The granules of the whole operation, in order: what to put back if there is no space.
    pub(crate) undo: Rc<[Undo]>,
    /// Told when that happened.
    pub(crate) refused: Rc<Cell<bool>>,
}

/// A granule that was mapped anew.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undo {
    pub(crate) slot: u32,
    pub(crate) granule: u32,
    pub(crate) old: Ptr,
    pub(crate) new: Ptr,
}

/// What a token stands for.
pub(crate) enum Io {
    /// A frame or a segment's header: of this frame, at this unit.
    Frame(u64, u64, IoVec),
    /// Data beside a record of this frame.
    Data(u64, DataWrite),
}

struct Batch {
    seq: u64,
    /// Data writes, headers and the frame itself that are not answered.
    pending: usize,
    count: u16,
    records: Vec<u8>,
    sent: bool,
    /// A record of a refused write: nothing counts until this frame is answered, too.
    needs: u64,
}

/// See the module.
pub(crate) struct Journal {
    identity: Identity,
    segment_units: u64,
    free: BTreeSet<u64>,
    /// Segments in use since the last durable checkpoint, with the last frame that began when
    /// each was left.
    live: VecDeque<(u64, u64)>,
    here: u64,
    index: u64,
    next: u64,
    /// Next unit of the segment.
    position: u64,
    /// The segment was opened, its header not written.
    header_due: bool,
    next_seq: u64,
    /// Batches not answered, oldest first; the last one may be open.
    batches: VecDeque<Batch>,
    /// Batches before this one do not take records any more.
    sealed_below: u64,
    /// The first frame that must begin in a fresh segment.
    cut_at: Option<u64>,
    head: Option<(u64, u64)>,
    answered: u64,
    mark: u64,
    marked: u64,
    /// The last frame that took a record; marks alone are not worth another mark.
    recorded: u64,
    in_flight: usize,
    data_out: VecDeque<Transmit>,
    ios: BTreeMap<u64, Io>,
    next_token: u64,
    unflushed_bytes: u64,
}

impl Journal {
    /// A journal that begins with frame `first_seq` in segment `here`. Segments in `held` belong
    /// to the run before; the first checkpoint frees them.
    pub(crate) fn new(
        identity: Identity,
        segments: &[u64],
        segment_units: u32,
        (here, next, index): (u64, u64, u64),
        first_seq: u64,
        held: &[u64],
    ) -> Journal {
        let used = |s: &u64| *s == here || *s == next || held.contains(s);
        let free = segments.iter().copied().filter(|s| !used(s)).collect();
        Journal {
            identity,
            segment_units: segment_units.into(),
            free,
            live: held.iter().map(|&s| (s, first_seq - 1)).collect(),
            here,
            index,
            next,
            position: 0,
            header_due: true,
            next_seq: first_seq,
            batches: VecDeque::new(),
            sealed_below: first_seq,
            cut_at: None,
            head: None,
            answered: first_seq - 1,
            mark: first_seq - 1,
            marked: first_seq - 1,
            recorded: first_seq - 1,
            in_flight: 0,
            data_out: VecDeque::new(),
            ios: BTreeMap::new(),
            next_token: 0,
            unflushed_bytes: 0,
        }
    }

    /// The last frame that a record went to.
    pub(crate) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// Every frame up to this one is answered.
    pub(crate) fn answered(&self) -> u64 {
        self.answered
    }

    /// Bytes submitted since the last [`Journal::take_unflushed`].
    pub(crate) fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes
    }

    /// The same, counting anew.
    pub(crate) fn take_unflushed(&mut self) -> u64 {
        std::mem::take(&mut self.unflushed_bytes)
    }

    /// Every frame up to `seq` is durable: the next one says so.
    pub(crate) fn set_mark(&mut self, seq: u64) {
        self.mark = self.mark.max(seq);
    }

    /// Whether a durable record has not been written down as such.
    pub(crate) fn is_mark_due(&self) -> bool {
        self.mark.min(self.recorded) > self.marked && self.batches.is_empty()
    }

    /// Segments in use.
    pub(crate) fn live_segments(&self) -> usize {
        self.live.len() + 1
    }

    /// Segments in all.
    pub(crate) fn segments(&self) -> usize {
        self.live.len() + 2 + self.free.len()
    }

    /// Whether another record may be appended: there is room besides the reserve.
    pub(crate) fn has_room(&self) -> bool {
        let unsent = self.batches.iter().rev().take_while(|b| !b.sent);
        let units: u64 = unsent
            .map(|b| frame::frame_units(b.records.len()) as u64 + 1)
            .sum();
        let segments = units.div_ceil(self.segment_units / 2) as usize;
        self.free.len() > SEGMENTS_RESERVED + segments
    }

    /// Appends a record and the data it points to; returns its frame.
    pub(crate) fn append(&mut self, record: &Record, data: Vec<DataWrite>) -> u64 {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let most = FRAME_UNITS_MAX.min(self.segment_units as usize - 1) * UNIT_BYTES - HEADER_BYTES;
        assert!(bytes.len() <= most, "a record of {} bytes", bytes.len());
        let open = self.batches.back().is_some_and(|b| {
            !b.sent && b.seq >= self.sealed_below && b.records.len() + bytes.len() <= most
        });
        if !open {
            self.open_batch();
        }
        let batch = self.batches.back_mut().expect("just opened");
        batch.records.extend(bytes);
        batch.count += 1;
        batch.pending += data.len();
        let seq = batch.seq;
        self.recorded = seq;
        for write in data {
            let token = self.token();
            self.unflushed_bytes += write.data.len() as u64;
            let (unit, data) = (write.unit, write.data.clone());
            self.data_out.push_back(Transmit {
                unit,
                data,
                token,
                seq,
            });
            self.ios.insert(token, Io::Data(seq, write));
        }
        seq
    }

    /// Appends a frame without records, which carries the mark.
    pub(crate) fn append_mark(&mut self) {
        assert!(self.is_mark_due(), "nothing to mark");
        self.open_batch();
    }

    fn open_batch(&mut self) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let batch = Batch {
            seq,
            pending: 1,
            count: 0,
            records: Vec::new(),
            sent: false,
            needs: seq,
        };
        self.batches.push_back(batch);
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Nothing after the returned frame is part of what is in memory now; the next one begins in
    /// a fresh segment. Returns the frame.
    pub(crate) fn cut(&mut self) -> u64 {
        let last = self.last_seq();
        self.sealed_below = last + 1;
        // A segment that holds nothing yet is fresh enough.
        let untouched = self.header_due && self.batches.iter().all(|b| b.sent);
        self.cut_at = (!untouched).then_some(last + 1);
        self.head = untouched.then_some((self.here, self.index));
        last
    }

    /// Segment and its index where the frame behind the last cut lies or will lie. Everything
    /// before the cut is answered, so nothing can take that segment first.
    pub(crate) fn head(&self) -> (u64, u64) {
        self.head.unwrap_or((self.next, self.index + 1))
    }

    /// The checkpoint at `seq` is durable: earlier segments are free again.
    pub(crate) fn release(&mut self, seq: u64) {
        while self.live.front().is_some_and(|(_, last)| *last <= seq) {
            if let Some((unit, _)) = self.live.pop_front() {
                self.free.insert(unit);
            }
        }
    }

    /// What to write next. `tainted` tells whether an unanswered write may land in a segment.
    pub(crate) fn poll_transmit(
        &mut self,
        pool: &Pool,
        tainted: &dyn Fn(u64, u64) -> bool,
    ) -> Option<Transmit> {
        if let Some(data) = self.data_out.pop_front() {
            return Some(data);
        }
        if self.in_flight >= FRAMES_IN_FLIGHT {
            return None;
        }
        let at = self.batches.iter().position(|b| !b.sent)?;
        let (seq, units) = {
            let batch = &self.batches[at];
            (batch.seq, frame::frame_units(batch.records.len()) as u64)
        };
        let cut = self.cut_at.is_some_and(|cut| seq >= cut);
        if cut || self.position + units > self.segment_units {
            self.open_segment(seq, tainted)?;
            if cut {
                self.cut_at = None;
                self.head = Some((self.here, self.index));
            }
        }
        self.in_flight += 1;
        if self.header_due {
            self.header_due = false;
            self.position = 1;
            let header = SegmentHeader {
                index: self.index,
                unit: self.here,
                first_seq: seq,
                next: self.next,
            };
            self.batches[at].pending += 1;
            self.unflushed_bytes += UNIT_BYTES as u64;
            let data = pool.copy_now(&header.encode(self.identity).0);
            return Some(self.transmit(seq, self.here, data));
        }
        let batch = &mut self.batches[at];
        batch.sent = true;
        let unit = self.here + self.position;
        self.position += units;
        let mut buf = pool.alloc_now(units as usize * UNIT_BYTES);
        buf.fill(0);
        let records = std::mem::take(&mut batch.records);
        let marks = (seq, self.mark);
        frame::encode(
            &mut buf,
            self.identity,
            unit,
            marks,
            (batch.count, &records),
        );
        self.marked = self.mark;
        self.unflushed_bytes += units * UNIT_BYTES as u64;
        Some(self.transmit(seq, unit, buf.freeze().into()))
    }

    fn transmit(&mut self, seq: u64, unit: u64, data: IoVec) -> Transmit {
        let token = self.token();
        self.ios.insert(token, Io::Frame(seq, unit, data.clone()));
        Transmit {
            unit,
            data,
            token,
            seq,
        }
    }

    /// A frame or header that a device had no space for is to be sent again, as it was.
    pub(crate) fn resend(&mut self, seq: u64, unit: u64, data: IoVec) {
        self.in_flight += 1;
        let transmit = self.transmit(seq, unit, data);
        self.data_out.push_back(transmit);
    }

    /// Moves on to the next segment; `None` while there is none to follow it.
    fn open_segment(&mut self, seq: u64, tainted: &dyn Fn(u64, u64) -> bool) -> Option<()> {
        let fits = |&&unit: &&u64| !tainted(unit, self.segment_units);
        let after = *self.free.iter().find(fits)?;
        self.free.remove(&after);
        self.live.push_back((self.here, seq - 1));
        self.here = self.next;
        self.next = after;
        self.index += 1;
        self.position = 1;
        self.header_due = true;
        Some(())
    }

    /// What the token stood for; the caller then says [`Journal::handle_done`] or
    /// [`Journal::handle_refused`].
    pub(crate) fn take_io(&mut self, token: u64) -> Io {
        let io = self.ios.remove(&token).expect("a token is answered once");
        if matches!(io, Io::Frame(..)) {
            self.in_flight -= 1;
        }
        io
    }

    /// Something of frame `seq` is answered. True if more frames count as answered now.
    pub(crate) fn handle_done(&mut self, seq: u64) -> bool {
        let front = self.batches.front().map_or(self.next_seq, |b| b.seq);
        let batch = &mut self.batches[(seq - front) as usize];
        batch.pending -= 1;
        self.advance()
    }

    /// Data of frame `seq` was refused; frame `undo` puts things right. Nothing counts before.
    pub(crate) fn handle_refused(&mut self, seq: u64, undo: u64) -> bool {
        let front = self.batches.front().map_or(self.next_seq, |b| b.seq);
        let batch = &mut self.batches[(seq - front) as usize];
        batch.needs = batch.needs.max(undo);
        self.handle_done(seq)
    }

    fn advance(&mut self) -> bool {
        let mut count = 0;
        let mut needs = 0;
        for (i, batch) in self.batches.iter().enumerate() {
            if batch.pending > 0 {
                break;
            }
            needs = needs.max(batch.needs);
            if needs <= batch.seq {
                count = i + 1;
            }
        }
        for batch in self.batches.drain(..count) {
            self.answered = batch.seq;
        }
        count > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Journal {
        let segments: Vec<u64> = (0..8).map(|i| 64 + i * 4).collect();
        let identity = Identity {
            secret: [1; 16],
            run: 1,
        };
        Journal::new(identity, &segments, 4, (64, 68, 1), 1, &[])
    }

    fn pump(journal: &mut Journal, pool: &Pool) -> Vec<(u64, u64)> {
        let clean = |_: u64, _: u64| false;
        std::iter::from_fn(|| journal.poll_transmit(pool, &clean))
            .map(|t| (t.unit, t.token))
            .collect()
    }

    fn done(journal: &mut Journal, token: u64) -> bool {
        match journal.take_io(token) {
            Io::Frame(seq, ..) | Io::Data(seq, _) => journal.handle_done(seq),
        }
    }

    #[test]
    fn frames_count_in_order_with_their_data_and_header() {
        let pool = Pool::new(1 << 20);
        let mut journal = journal();
        let write = DataWrite {
            unit: 200,
            data: IoVec::zeros(4096),
            undo: Rc::new([]),
            refused: Rc::default(),
        };
        assert_eq!(journal.append(&Record::Purge { slot: 1 }, vec![write]), 1);
        let out = pump(&mut journal, &pool);
        assert_eq!(out.iter().map(|t| t.0).collect::<Vec<_>>(), [200, 64, 65]);
        assert_eq!(journal.append(&Record::Purge { slot: 2 }, vec![]), 2);
        let second = pump(&mut journal, &pool);
        assert!(!done(&mut journal, second[0].1));
        assert!(!done(&mut journal, out[2].1));
        assert!(!done(&mut journal, out[1].1));
        assert!(done(&mut journal, out[0].1));
        assert_eq!(journal.answered(), 2);
    }

    #[test]
    fn a_mark_is_not_marked_again() {
        let pool = Pool::new(1 << 20);
        let mut journal = journal();
        let answer_all = |journal: &mut Journal| {
            for (_, token) in pump(journal, &pool) {
                done(journal, token);
            }
        };
        let recorded = journal.append(&Record::Purge { slot: 1 }, vec![]);
        answer_all(&mut journal);
        journal.set_mark(recorded);
        assert!(journal.is_mark_due());
        journal.append_mark();
        answer_all(&mut journal);
        journal.set_mark(journal.last_seq());
        assert!(
            !journal.is_mark_due(),
            "an idle volume would write for ever"
        );
    }

    #[test]
    fn a_refused_write_holds_everything_behind_it() {
        let pool = Pool::new(1 << 20);
        let mut journal = journal();
        journal.append(&Record::Purge { slot: 1 }, vec![]);
        let first = pump(&mut journal, &pool);
        journal.append(&Record::Purge { slot: 2 }, vec![]);
        let second = pump(&mut journal, &pool);
        assert!(!done(&mut journal, first[0].1));
        journal.take_io(first[1].1);
        assert!(!journal.handle_refused(1, 3));
        assert!(!done(&mut journal, second[0].1));
        assert_eq!(journal.append(&Record::Purge { slot: 3 }, vec![]), 3);
        let third = pump(&mut journal, &pool);
        assert!(third.iter().fold(false, |_, t| done(&mut journal, t.1)));
        assert_eq!(journal.answered(), 3);
    }

    #[test]
    fn a_cut_begins_a_fresh_segment_and_frees_the_old_ones() {
        let pool = Pool::new(1 << 20);
        let mut journal = journal();
        for slot in 0..5 {
            journal.append(&Record::Purge { slot }, vec![]);
            for (_, token) in pump(&mut journal, &pool) {
                done(&mut journal, token);
            }
        }
        let last = journal.cut();
        let (here, _) = journal.head();
        assert_eq!(last, 5);
        journal.append(&Record::Purge { slot: 9 }, vec![]);
        let out = pump(&mut journal, &pool);
        assert_eq!(out[0].0, here);
        let before = journal.free.len();
        journal.release(last);
        assert_eq!(journal.free.len(), before + 2);
    }
}
