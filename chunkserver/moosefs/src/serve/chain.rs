//! A session of writes as a state machine, without sockets: what was received, stored, answered
//! by the server below, and may be acknowledged.
//!
//! Rules (MooseFS, exercised on the wire): the last server answers write id 0 when it has opened
//! the chunk, a middle one passes that on; a write is acknowledged when it is stored here *and*
//! acknowledged below, in the order received (a stock server above drops a chain whose answers come
//! out of order); an error is told with its write id, or 0 for the session, and ends the session.

use crate::proto::client::{WriteDataHead, WriteFinish, WriteStatus};
use crate::proto::status;
use blockdev::Instant;
use chunk_api::{ChunkId, BLOCKS_PER_CHUNK, BLOCK_BYTES};
use std::collections::VecDeque;

/// Unanswered writes of one session.
pub(super) const WINDOW_WRITES_MAX: usize = 128;
/// Unanswered bytes of one session; one write more may be taken while below it.
pub(super) const WINDOW_BYTES_MAX: usize = 2 << 20;

#[derive(Debug)]
struct Pending {
    write_id: u32,
    bytes: u32,
    since: Instant,
    stored: bool,
    below: bool,
}

/// An acknowledged write, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acked {
    pub(super) bytes: u32,
    pub(super) since: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Chain {
    id: ChunkId,
    middle: bool,
    opened_below: bool,
    pending: VecDeque<Pending>,
    /// Sequence number of the first pending write.
    first: u64,
    bytes: usize,
    answers: VecDeque<WriteStatus>,
    acked: VecDeque<Acked>,
    finishing: bool,
    over: bool,
}

impl Chain {
    /// The chunk is open here; `middle` if a server follows.
    pub(super) fn new(id: ChunkId, middle: bool) -> Chain {
        let mut chain = Chain {
            id,
            middle,
            opened_below: !middle,
            pending: VecDeque::new(),
            first: 0,
            bytes: 0,
            answers: VecDeque::new(),
            acked: VecDeque::new(),
            finishing: false,
            over: false,
        };
        if !middle {
            chain.answer(0, status::OK);
        }
        chain
    }

    fn answer(&mut self, write_id: u32, status: u8) {
        self.answers.push_back(WriteStatus {
            id: self.id,
            write_id,
            status,
        });
    }

    /// An error ends the session; the first one counts.
    pub(super) fn fail(&mut self, write_id: u32, status: u8) {
        if !self.over {
            self.answer(write_id, status);
            self.over = true;
        }
    }

    /// A write came; `Ok` with its sequence number if it is to be stored and passed on, `None` if
    /// the session is over.
    pub(super) fn handle_data(&mut self, now: Instant, head: &WriteDataHead) -> Option<u64> {
        let end = u64::from(head.offset) + u64::from(head.size);
        let wrong = if head.id != self.id {
            Some(status::WRONG_CHUNK)
        } else if head.block >= BLOCKS_PER_CHUNK {
            Some(status::WRONG_BLOCK)
        } else if head.size > BLOCK_BYTES {
            Some(status::WRONG_SIZE)
        } else if end > u64::from(BLOCK_BYTES) {
            Some(status::WRONG_OFFSET)
        } else {
            None
        };
        if let Some(status) = wrong {
            self.fail(head.write_id, status);
        }
        if self.over {
            return None;
        }
        let (write_id, bytes) = (head.write_id, head.size);
        self.bytes += bytes as usize;
        let below = !self.middle;
        self.pending.push_back(Pending {
            write_id,
            bytes,
            since: now,
            stored: false,
            below,
        });
        Some(self.first + self.pending.len() as u64 - 1)
    }

    /// Storage is through with a write.
    pub(super) fn handle_stored(&mut self, sequence: u64, result: Result<(), u8>) {
        if self.over {
            return;
        }
        let index = sequence
            .checked_sub(self.first)
            .expect("a stored write is still pending");
        let pending = self
            .pending
            .get_mut(index as usize)
            .expect("it was received");
        match result {
            Ok(()) => pending.stored = true,
            Err(status) => {
                let write_id = pending.write_id;
                return self.fail(write_id, status);
            }
        }
        self.acknowledge();
    }

    /// The server below answered; `false` if it answers what it was not asked.
    pub(super) fn handle_below(&mut self, answer: WriteStatus) -> bool {
        if self.over {
            return true;
        }
        if answer.id != self.id {
            return false;
        }
        if answer.status != status::OK {
            self.fail(answer.write_id, answer.status);
            return true;
        }
        if answer.write_id == 0 && !self.opened_below {
            self.opened_below = true;
            self.answer(0, status::OK);
            return true;
        }
        let asked = self
            .pending
            .iter_mut()
            .find(|p| !p.below && p.write_id == answer.write_id);
        let known = asked.map(|pending| pending.below = true).is_some();
        self.acknowledge();
        known
    }

    fn acknowledge(&mut self) {
        while self.opened_below && self.pending.front().is_some_and(|p| p.stored && p.below) {
            let Some(Pending {
                write_id,
                bytes,
                since,
                ..
            }) = self.pending.pop_front()
            else {
                break;
            };
            self.first += 1;
            self.bytes -= bytes as usize;
            self.answer(write_id, status::OK);
            self.acked.push_back(Acked { bytes, since });
        }
    }

    /// The client says that it is through; `false` if it means another chunk.
    pub(super) fn handle_finish(&mut self, finish: &WriteFinish) -> bool {
        if finish.id != self.id {
            self.fail(0, status::WRONG_CHUNK);
            return false;
        }
        self.finishing = true;
        true
    }

    /// Whether another write may be taken from the socket.
    pub(super) fn wants_more(&self) -> bool {
        !self.over
            && !self.finishing
            && self.pending.len() < WINDOW_WRITES_MAX
            && self.bytes < WINDOW_BYTES_MAX
    }

    /// Whether the server below owes an answer.
    pub(super) fn waits_for_below(&self) -> bool {
        !self.opened_below || self.pending.iter().any(|p| !p.below)
    }

    /// Whether the client is waiting for us.
    pub(super) fn owes_answers(&self) -> bool {
        !self.opened_below || !self.pending.is_empty()
    }

    /// Whether it has failed; its answer is the last.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Whether everything is answered after the client's WRITE_FINISH.
    pub(super) fn is_finished(&self) -> bool {
        !self.over && self.finishing && self.opened_below && self.pending.is_empty()
    }

    /// The next status to send upstream.
    pub(super) fn poll_answer(&mut self) -> Option<WriteStatus> {
        self.answers.pop_front()
    }

    /// The next write to count.
    pub(super) fn poll_acked(&mut self) -> Option<Acked> {
        self.acked.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chunk_api::ChunkVersion;
    use proptest::prelude::*;

    const ID: ChunkId = ChunkId(9);
    const NOW: Instant = Instant(1);

    fn data(write_id: u32) -> WriteDataHead {
        WriteDataHead {
            id: ID,
            write_id,
            block: 0,
            offset: 0,
            size: 10,
            crc: 0,
        }
    }

    fn below(write_id: u32, status: u8) -> WriteStatus {
        WriteStatus {
            id: ID,
            write_id,
            status,
        }
    }

    fn answers(chain: &mut Chain) -> Vec<(u32, u8)> {
        std::iter::from_fn(|| chain.poll_answer())
            .map(|a| (a.write_id, a.status))
            .collect()
    }

    #[test]
    fn the_last_server_opens_and_acknowledges_in_order() {
        let mut chain = Chain::new(ID, false);
        assert_eq!(answers(&mut chain), [(0, 0)]);
        let first = chain.handle_data(NOW, &data(1)).unwrap();
        let second = chain.handle_data(NOW, &data(2)).unwrap();
        chain.handle_stored(second, Ok(()));
        assert_eq!(answers(&mut chain), []);
        chain.handle_stored(first, Ok(()));
        assert_eq!(answers(&mut chain), [(1, 0), (2, 0)]);
        assert!(chain.handle_finish(&WriteFinish {
            id: ID,
            version: ChunkVersion(1)
        }));
        assert!(chain.is_finished());
    }

    #[test]
    fn a_middle_server_does_not_invent_the_opening() {
        let mut chain = Chain::new(ID, true);
        let first = chain.handle_data(NOW, &data(1)).unwrap();
        chain.handle_stored(first, Ok(()));
        assert_eq!(answers(&mut chain), []);
        assert!(chain.handle_below(below(0, 0)));
        assert_eq!(answers(&mut chain), [(0, 0)]);
        assert!(chain.handle_below(below(1, 0)));
        assert_eq!(answers(&mut chain), [(1, 0)]);
        assert!(!chain.handle_below(below(5, 0)), "nobody asked");
    }

    #[test]
    fn errors_end_the_session_once() {
        for (head, status) in [
            (
                WriteDataHead {
                    id: ChunkId(1),
                    ..data(1)
                },
                27,
            ),
            (
                WriteDataHead {
                    block: 1024,
                    ..data(1)
                },
                23,
            ),
            (
                WriteDataHead {
                    size: 65_537,
                    ..data(1)
                },
                24,
            ),
            (
                WriteDataHead {
                    offset: 65_535,
                    size: 2,
                    ..data(1)
                },
                25,
            ),
        ] {
            let mut chain = Chain::new(ID, false);
            answers(&mut chain);
            assert_eq!(chain.handle_data(NOW, &head), None);
            chain.fail(0, 28);
            assert_eq!(answers(&mut chain), [(1, status)]);
            assert!(chain.is_over() && !chain.wants_more());
        }
        let mut chain = Chain::new(ID, true);
        let first = chain.handle_data(NOW, &data(1)).unwrap();
        chain.handle_data(NOW, &data(2)).unwrap();
        chain.handle_below(below(2, 29));
        chain.handle_stored(first, Ok(()));
        assert_eq!(answers(&mut chain), [(2, 29)]);
    }

    #[test]
    fn the_window_is_bounded() {
        let mut chain = Chain::new(ID, false);
        let mut taken = 0;
        while chain.wants_more() {
            taken += 1;
            chain
                .handle_data(
                    NOW,
                    &WriteDataHead {
                        size: 65_536,
                        ..data(taken)
                    },
                )
                .unwrap();
        }
        assert_eq!(taken as usize, WINDOW_BYTES_MAX / 65_536);
    }

    proptest! {
        /// Whatever the order of completions, answers come in the order received, each after both
        /// its halves.
        #[test]
        fn answers_come_in_order(order in Just((0..40u32).collect::<Vec<_>>()).prop_shuffle()) {
            let mut chain = Chain::new(ID, true);
            chain.handle_below(below(0, 0));
            for write_id in 1..=20 {
                prop_assert_eq!(chain.handle_data(NOW, &data(write_id)), Some(u64::from(write_id) - 1));
            }
            let (mut stored, mut acked) = ([false; 21], [false; 21]);
            let mut told = 0;
            for event in order {
                let write_id = event / 2 + 1;
                if event % 2 == 0 {
                    chain.handle_stored(u64::from(write_id) - 1, Ok(()));
                    stored[write_id as usize] = true;
                } else {
                    chain.handle_below(below(write_id, 0));
                    acked[write_id as usize] = true;
                }
                for (id, status) in answers(&mut chain).into_iter().filter(|a| a.0 != 0) {
                    prop_assert_eq!((id, status), (told + 1, 0));
                    told = id;
                    prop_assert!(stored[id as usize] && acked[id as usize]);
                }
            }
            prop_assert_eq!(told, 20);
        }
    }
}
