//! Tasks of a session: everything that has an initiator task tag.
//!
//! A tag is generation ‖ slot, so that a late PDU of an old task is never taken for a new one. A
//! slot is reused only after the final answer has arrived or the connection is gone. A task that
//! a task management function concluded leaves its tag behind as *retired*, also when its slot is
//! in use again: what still arrives for it is discarded, while any other unknown tag is a protocol
//! error.

use super::negotiate::Negotiation;
use crate::pdu::BHS_BYTES;
use crate::scsi::cdb::Cdb;
use crate::serial::Serial;
use blockdev::buf::RUN_BYTES_MAX;
use blockdev::{BufMut, Instant, IoVec, Pool};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::IoSliceMut;

const SLOT_BITS: u32 = 12;
/// Most tasks of a session, queued ones included.
pub const TASKS_MAX: usize = 1 << SLOT_BITS;
/// Tags that are remembered as retired: all that one function can end.
const RETIRED_MAX: usize = TASKS_MAX;
/// Most separate ranges that the data of a READ may be received in where they come in any order.
const RANGES_MAX: usize = 4096;
/// Generations end below the tag of the login and never reach ffffffff or 0.
const GENERATION_MAX: u32 = (0x7fff_ffff >> SLOT_BITS) - 1;

/// Initiator task tag.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub(crate) u32);

impl Tag {
    /// Index of the slot: dense, below [`TASKS_MAX`], reused.
    pub fn slot(self) -> usize {
        self.0 as usize & (TASKS_MAX - 1)
    }
}

/// What a task is.
#[derive(Debug)]
pub(super) enum Kind {
    Scsi,
    Tmf {
        function: u8,
        referenced: Option<Tag>,
        /// Its answer ends no other task.
        spares: bool,
    },
    Ping {
        bytes: usize,
    },
    Text(Box<Negotiation>),
    Logout,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Waits for the command window, or for its turn.
    Queued,
    /// Its PDU is built; see [`Task::unasked_left`].
    Staged,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) tag: Tag,
    pub(super) kind: Kind,
    pub(super) lun: [u8; 8],
    pub(super) cdb: Cdb,
    /// Bytes of a long CDB from 16 on; empty for all that a disk needs.
    pub(super) cdb_rest: Box<[u8]>,
    pub(super) attribute: u8,
    pub(super) stage: Stage,
    pub(super) cmd_sn: Serial,
    /// Expected data transfer length, in bytes.
    pub(super) expected: u32,
    pub(super) read: ReadBuffer,
    pub(super) write: IoVec,
    /// Bytes of a write that went, or go, unasked or were asked for by an R2T.
    pub(super) fetched: u32,
    /// Data-In PDUs received.
    pub(super) data_sn: u32,
    /// Bytes received.
    pub(super) received: u32,
    /// Ranges received, or asked for by R2Ts, sorted; used only where they may come in any order.
    pub(super) ranges: Vec<(u32, u32)>,
    pub(super) r2t_sn: u32,
    pub(super) r2ts_open: u32,
    /// FastAbort: a task management function is on its way, no more data are sent.
    pub(super) is_aborting: bool,
    /// PDUs that go without being asked for (command, unsolicited data) and are not wholly in the
    /// socket.
    pub(super) unasked_left: u32,
    /// The command PDU is wholly in the socket: from here on it may be executed.
    pub(super) command_sent: bool,
    /// Some byte is in the socket.
    pub(super) partly: bool,
    pub(super) wholly_since: Option<Instant>,
}

impl Task {
    pub(super) fn new(kind: Kind, lun: [u8; 8]) -> Task {
        Task {
            tag: Tag(0),
            kind,
            lun,
            cdb: [0; 16],
            cdb_rest: Box::default(),
            attribute: 0,
            stage: Stage::Queued,
            cmd_sn: Serial(0),
            expected: 0,
            read: ReadBuffer::default(),
            write: IoVec::new(),
            fetched: 0,
            data_sn: 0,
            received: 0,
            ranges: Vec::new(),
            r2t_sn: 0,
            r2ts_open: 0,
            is_aborting: false,
            unasked_left: 0,
            command_sent: false,
            partly: false,
            wholly_since: None,
        }
    }

    pub(super) fn is_scsi(&self) -> bool {
        matches!(self.kind, Kind::Scsi)
    }

    /// Bytes of the answer that are still to come, if it is GOOD and the rest comes in one PDU.
    pub(super) fn due_bytes(&self) -> usize {
        let data = if self.write.is_empty() {
            (self.expected - self.received) as usize
        } else {
            0
        };
        BHS_BYTES + data
    }

    /// Notes a range of received bytes; `false` if it overlaps an earlier one, or if there are more
    /// than a target can need.
    pub(super) fn note_range(&mut self, from: u32, to: u32) -> bool {
        let at = self.ranges.partition_point(|&(start, _)| start < from);
        let clear_before = at == 0 || self.ranges[at - 1].1 <= from;
        let clear_after = self.ranges.get(at).is_none_or(|&(start, _)| to <= start);
        if !(clear_before && clear_after) {
            return false;
        }
        let joins_next = self.ranges.get(at).is_some_and(|&(start, _)| start == to);
        if at > 0 && self.ranges[at - 1].1 == from {
            self.ranges[at - 1].1 = to;
            if joins_next {
                self.ranges[at - 1].1 = self.ranges.remove(at).1;
            }
        } else if joins_next {
            self.ranges[at].0 = from;
        } else if self.ranges.len() < RANGES_MAX {
            self.ranges.insert(at, (from, to));
        } else {
            return false;
        }
        true
    }
}

/// Where the data of a READ go: page-aligned runs of 128 KiB, the last one shorter.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer {
    runs: SmallVec<[BufMut; 1]>,
    len: usize,
}

impl ReadBuffer {
    pub(super) fn new(pool: &Pool, len: usize) -> ReadBuffer {
        let mut runs = SmallVec::new();
        let mut left = len;
        while left > 0 {
            let take = left.min(RUN_BYTES_MAX);
            runs.push(pool.alloc_now(take));
            left -= take;
        }
        ReadBuffer { runs, len }
    }

    /// The slices of `len` bytes from `offset` on.
    pub(super) fn region(&mut self, offset: usize, len: usize) -> impl Iterator<Item = &mut [u8]> {
        debug_assert!(offset + len <= self.len);
        let end = offset + len;
        self.runs
            .iter_mut()
            .enumerate()
            .filter_map(move |(index, run)| {
                let base = index * RUN_BYTES_MAX;
                let from = offset.max(base);
                let to = end.min(base + run.len());
                (from < to).then(|| &mut run[from - base..to - base])
            })
    }

    /// The same for a vectored read, appended to `space`.
    pub(super) fn io_region<'a>(
        &'a mut self,
        offset: usize,
        len: usize,
        space: &mut SmallVec<[IoSliceMut<'a>; 8]>,
    ) {
        space.extend(self.region(offset, len).map(IoSliceMut::new));
    }

    /// The first `len` bytes, frozen.
    pub(super) fn freeze(self, len: usize) -> IoVec {
        let mut left = len.min(self.len);
        let mut out = IoVec::new();
        for run in self.runs {
            let take = left.min(run.len());
            out.push(run.freeze().slice(..take));
            left -= take;
        }
        out
    }
}

#[derive(Debug, Default)]
struct Slot {
    task: Option<Box<Task>>,
    generation: u32,
}

/// The tasks, by slot.
#[derive(Debug, Default)]
pub(super) struct TaskTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
    /// The last [`RETIRED_MAX`] tags that were retired, oldest first.
    retired: VecDeque<Tag>,
}

impl TaskTable {
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Takes a task in; `None` if all slots are taken.
    pub(super) fn insert(&mut self, mut task: Box<Task>) -> Option<Tag> {
        let slot = match self.free.pop() {
            Some(slot) => slot as usize,
            None if self.slots.len() < TASKS_MAX => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
            None => return None,
        };
        let entry = &mut self.slots[slot];
        entry.generation = entry.generation % GENERATION_MAX + 1;
        task.tag = Tag(entry.generation << SLOT_BITS | slot as u32);
        let tag = task.tag;
        assert!(entry.task.is_none(), "a free slot holds a task");
        entry.task = Some(task);
        self.live += 1;
        Some(tag)
    }

    pub(super) fn get(&self, tag: Tag) -> Option<&Task> {
        self.slots
            .get(tag.slot())?
            .task
            .as_deref()
            .filter(|task| task.tag == tag)
    }

    pub(super) fn get_mut(&mut self, tag: Tag) -> Option<&mut Task> {
        self.slots
            .get_mut(tag.slot())?
            .task
            .as_deref_mut()
            .filter(|task| task.tag == tag)
    }

    /// Ends a task and frees its slot.
    pub(super) fn remove(&mut self, tag: Tag) -> Option<Box<Task>> {
        self.get(tag)?;
        let task = self.slots[tag.slot()].task.take();
        self.free.push(tag.slot() as u32);
        self.live -= 1;
        task
    }

    /// Ends a task that a task management function concluded.
    pub(super) fn retire(&mut self, tag: Tag) -> Option<Box<Task>> {
        let task = self.remove(tag)?;
        if self.retired.len() == RETIRED_MAX {
            self.retired.pop_front();
        }
        self.retired.push_back(tag);
        Some(task)
    }

    /// Whether `tag` was retired, and not so long ago that it is forgotten.
    pub(super) fn is_retired(&self, tag: Tag) -> bool {
        self.retired.contains(&tag)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Task> {
        self.slots.iter().filter_map(|slot| slot.task.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Box<Task> {
        Box::new(Task::new(Kind::Scsi, [0; 8]))
    }

    #[test]
    fn itt_unique_and_never_ffffffff() {
        let mut table = TaskTable::default();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..5000 {
            let tag = table.insert(task()).expect("room");
            assert!(tag.0 != 0 && tag.0 != u32::MAX && seen.insert(tag));
            assert!(table.remove(tag).is_some());
            assert!(table.get(tag).is_none() && table.remove(tag).is_none());
        }
        table.slots[0].generation = GENERATION_MAX;
        let tag = table.insert(task()).expect("room");
        assert_eq!(tag.0, 1 << SLOT_BITS);
    }

    #[test]
    fn table_is_bounded() {
        let mut table = TaskTable::default();
        let tags: Vec<Tag> = std::iter::from_fn(|| table.insert(task())).collect();
        assert_eq!((tags.len(), table.len()), (TASKS_MAX, TASKS_MAX));
        table.retire(tags[7]);
        assert!(table.is_retired(tags[7]) && table.get(tags[7]).is_none());
        let again = table.insert(task()).expect("room again");
        assert_eq!(again.slot(), tags[7].slot());
        assert!(table.is_retired(tags[7]) && !table.is_retired(again));
        table.retire(again);
        for &tag in tags.iter().filter(|&&tag| tag != tags[7]) {
            table.retire(tag);
        }
        assert!(!table.is_retired(tags[7]), "the oldest is forgotten");
        assert!(table.is_retired(again) && table.is_retired(tags[0]));
    }

    #[test]
    fn ranges_in_any_order_without_overlap() {
        let mut task = task();
        assert!(task.note_range(8, 12) && task.note_range(0, 4) && task.note_range(4, 8));
        assert!(!task.note_range(3, 5) && !task.note_range(11, 13) && !task.note_range(0, 4));
        assert!(task.note_range(12, 13));
        assert_eq!(task.ranges, [(0, 13)]);
        // A hole after each byte: what is kept for a task is bounded.
        let taken = (10..)
            .map(|at| 2 * at)
            .take_while(|&at| task.note_range(at, at + 1));
        assert_eq!(taken.count(), RANGES_MAX - 1);
        assert!(task.note_range(13, 14), "no new range");
    }

    #[test]
    fn read_buffers_span_runs() {
        let pool = Pool::new(1 << 20);
        let len = RUN_BYTES_MAX + 5000;
        let mut buffer = ReadBuffer::new(&pool, len);
        let lens: Vec<usize> = buffer
            .region(RUN_BYTES_MAX - 10, 20)
            .map(|part| part.len())
            .collect();
        assert_eq!(lens, [10, 10]);
        buffer.region(0, len).for_each(|part| part.fill(7));
        let frozen = buffer.freeze(len);
        assert_eq!(frozen.len(), len);
        assert!(frozen.segments().flatten().all(|&byte| byte == 7));
    }
}
