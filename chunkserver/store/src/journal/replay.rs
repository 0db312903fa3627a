//! Finding the journal again: frames as a union of the legs, in order, to the first gap.
//!
//! A prefix suffices, since a frame is acknowledged only after all before it (ARCHITECTURE.md
//! §7.4, R3). A gap at or before a mark seen behind it is damage: such a frame was durable.

use super::frame::{decode, Frame, Identity, SegmentHeader};
use crate::layout::{sector, UNIT_BYTES, UNIT_SECTORS};
use crate::medium::Medium;
use crate::superblock::Superblock;
use blockdev::{Done, IoCtx, IoError, Kind, LegIndex};

/// What was found.
pub(crate) struct Found {
    /// Whole frames without a gap, from the superblock's checkpoint on.
    pub(crate) frames: Vec<Frame>,
    /// Segments that hold them.
    pub(crate) chain: Vec<u64>,
    /// Index of the last one in the chain.
    pub(crate) index: u64,
    /// Every frame up to here was durable.
    pub(crate) mark: u64,
    /// A frame at or before some mark is missing: this one.
    pub(crate) lost: Option<u64>,
}

/// A segment as each leg has it, read when first needed.
struct Images<'a> {
    medium: &'a Medium,
    identity: Identity,
    first: u64,
    units: u64,
    legs: Vec<Option<Vec<u8>>>,
}

impl Images<'_> {
    async fn leg(&mut self, leg: usize) -> Result<&[u8], IoError> {
        if self.legs[leg].is_none() {
            let index = LegIndex(leg as u8);
            let mut bytes = Vec::new();
            if self.medium.mirror.in_sync(index) {
                let sectors = (self.units * UNIT_SECTORS) as u32;
                let ctx = IoCtx::metadata();
                match self
                    .medium
                    .mirror
                    .read_leg(index, sector(self.first), sectors, ctx)
                    .await
                {
                    Ok(Done::Read(data, _)) => bytes = data.to_vec(),
                    Ok(_) => {}
                    // Unreadable sectors: unit by unit, what can be had.
                    Err(IoError {
                        kind: Kind::Medium { .. },
                        ..
                    }) => {
                        for unit in self.first..self.first + self.units {
                            let sectors = UNIT_SECTORS as u32;
                            let read =
                                self.medium
                                    .mirror
                                    .read_leg(index, sector(unit), sectors, ctx);
                            match read.await {
                                Ok(Done::Read(data, _)) => bytes.extend(data.to_vec()),
                                _ => bytes.extend([0; UNIT_BYTES]),
                            }
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            self.legs[leg] = Some(bytes);
        }
        Ok(self.legs[leg].as_deref().unwrap_or_default())
    }

    fn legs(&self) -> usize {
        match blockdev::mutation::off("store.replay-union") {
            true => 1,
            false => self.legs.len(),
        }
    }

    /// The first leg's answer that `judge` accepts for the bytes from `unit` on.
    async fn any<T>(
        &mut self,
        unit: u64,
        judge: impl Fn(&[u8], u64, Identity) -> Option<T>,
    ) -> Result<Option<T>, IoError> {
        let at = (unit - self.first) as usize * UNIT_BYTES;
        let identity = self.identity;
        for leg in 0..self.legs() {
            let bytes = self.leg(leg).await?;
            if let Some(found) = bytes
                .get(at..)
                .and_then(|bytes| judge(bytes, unit, identity))
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// Reads the journal of the superblock's run.
pub(crate) async fn find(medium: &Medium, superblock: &Superblock) -> Result<Found, IoError> {
    let identity = Identity {
        secret: superblock.secret,
        run: superblock.run,
    };
    let units = u64::from(superblock.segment_units);
    let images = |first: u64| Images {
        medium,
        identity,
        first,
        units,
        legs: vec![None; medium.mirror.legs().into()],
    };
    let mut found = Found {
        frames: Vec::new(),
        chain: Vec::new(),
        index: superblock.journal_index,
        mark: superblock.checkpoint_seq,
        lost: None,
    };
    let mut seq = superblock.journal_seq;
    let mut unit = superblock.journal_unit;
    let mut index = superblock.journal_index;
    loop {
        let mut segment = images(unit);
        // A leg that lost its cache may show the segment's earlier use in this very run.
        let is_next = |h: &SegmentHeader| h.index == index && h.first_seq == seq;
        let header = segment
            .any(unit, |bytes, unit, identity| {
                SegmentHeader::decode(bytes, unit, identity).filter(is_next)
            })
            .await?;
        let Some(header) = header else {
            found.lost = lost_in(&mut segment, unit, seq).await?;
            break;
        };
        found.chain.push(unit);
        found.index = index;
        let mut at = unit + 1;
        while at < unit + units {
            let frame = segment
                .any(at, |bytes, unit, identity| {
                    decode(bytes, unit, identity).filter(|frame| frame.seq == seq)
                })
                .await?;
            let Some(frame) = frame else { break };
            at += u64::from(frame.units);
            found.mark = found.mark.max(frame.mark);
            found.frames.push(frame);
            seq += 1;
        }
        found.lost = lost_in(&mut segment, at, seq).await?;
        let known = superblock.segments.contains(&header.next);
        if found.lost.is_some() || !known || found.chain.contains(&header.next) {
            break;
        }
        unit = header.next;
        index += 1;
    }
    Ok(found)
}

/// Whether behind `from` there is a frame that says that `seq`, which is missing, was durable.
async fn lost_in(segment: &mut Images<'_>, from: u64, seq: u64) -> Result<Option<u64>, IoError> {
    for unit in from.max(segment.first + 1)..segment.first + segment.units {
        let proof = segment.any(unit, |bytes, unit, identity| {
            decode(bytes, unit, identity).filter(|f| f.seq > seq && f.mark >= seq)
        });
        if proof.await?.is_some() {
            return Ok(Some(seq));
        }
    }
    Ok(None)
}
