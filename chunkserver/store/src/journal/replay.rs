//! Finding the journal again: frames as a union of the legs, in order, to the first gap.
//!
//! A prefix suffices, since a frame is acknowledged only after all before it (ARCHITECTURE.md
//! §7.4, R3). A gap at or before a mark seen behind it is damage: such a frame was durable.

use super::frame::{decode, Frame, Identity, SegmentHeader};
use crate::layout::UNIT_BYTES;
use crate::medium::{Medium, READ_UNITS_MAX};
use crate::superblock::Superblock;
use blockdev::{IoCtx, IoError, LegIndex, Seq};

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
    /// Frames and headers that not every leg has, if that was asked.
    pub(crate) uneven: Vec<Uneven>,
    /// Units of the segments that were looked at.
    pub(crate) units: u64,
}

/// A frame, or the header of the segment that begins with it, which one leg has and another has not.
pub(crate) struct Uneven {
    pub(crate) seq: u64,
    pub(crate) unit: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) bad: Vec<(LegIndex, Seq)>,
}

/// Which legs are asked for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// One after the other until one has it.
    Any,
    /// All: what they have is compared, and records are not kept.
    Each,
}

/// A segment as each leg has it, read when first needed.
struct Images<'a> {
    medium: &'a Medium,
    identity: Identity,
    first: u64,
    units: u64,
    ctx: IoCtx,
    /// Units of one read.
    step: usize,
    legs: Vec<Option<(Vec<u8>, Seq)>>,
}

impl Images<'_> {
    async fn leg(&mut self, leg: usize) -> Result<&[u8], IoError> {
        if self.legs[leg].is_none() {
            let index = LegIndex(leg as u8);
            let mut image = (Vec::new(), Seq(0));
            if self.medium.mirror.in_sync(index) {
                let end = self.first + self.units;
                for from in (self.first..end).step_by(self.step) {
                    let range = from..end.min(from + self.step as u64);
                    let (units, seq) = self.medium.read_units(index, range, self.ctx).await?;
                    if from == self.first {
                        image.1 = seq;
                    }
                    for unit in units {
                        match unit {
                            Some(buf) => image.0.extend_from_slice(&buf),
                            None => image.0.extend([0; UNIT_BYTES]),
                        }
                    }
                }
            }
            self.legs[leg] = Some(image);
        }
        Ok(self.legs[leg].as_ref().map_or(&[], |(bytes, _)| bytes))
    }

    /// Compares units that one leg has as they should be with those of the others.
    async fn compare(
        &mut self,
        (unit, units): (u64, u32),
        good: usize,
        seq: u64,
    ) -> Result<Option<Uneven>, IoError> {
        let at = (unit - self.first) as usize * UNIT_BYTES;
        let range = at..at + units as usize * UNIT_BYTES;
        let right = self.leg(good).await?.get(range.clone());
        let bytes = right.unwrap_or_default().to_vec();
        let mut bad = Vec::new();
        for leg in 0..self.legs.len() {
            let theirs = self.leg(leg).await?;
            // A leg that is not in sync has no image.
            if !theirs.is_empty() && theirs.get(range.clone()) != Some(&bytes) {
                let since = self.legs[leg].as_ref().map_or(Seq(0), |(_, seq)| *seq);
                bad.push((LegIndex(leg as u8), since));
            }
        }
        Ok((!bad.is_empty()).then_some(Uneven {
            seq,
            unit,
            bytes,
            bad,
        }))
    }

    fn legs(&self) -> usize {
        match blockdev::mutation::off("store.replay-union") {
            true => 1,
            false => self.legs.len(),
        }
    }

    /// The first leg's answer that `judge` accepts for the bytes from `unit` on, and which leg's it
    /// is.
    async fn any<T>(
        &mut self,
        unit: u64,
        judge: impl Fn(&[u8], u64, Identity) -> Option<T>,
    ) -> Result<Option<(T, usize)>, IoError> {
        let at = (unit - self.first) as usize * UNIT_BYTES;
        let identity = self.identity;
        for leg in 0..self.legs() {
            let bytes = self.leg(leg).await?;
            if let Some(found) = bytes
                .get(at..)
                .and_then(|bytes| judge(bytes, unit, identity))
            {
                return Ok(Some((found, leg)));
            }
        }
        Ok(None)
    }
}

/// Reads the journal of the superblock's run.
pub(crate) async fn find(
    medium: &Medium,
    superblock: &Superblock,
    ask: Ask,
) -> Result<Found, IoError> {
    let identity = Identity {
        secret: superblock.secret,
        run: superblock.run,
    };
    let units = u64::from(superblock.segment_units);
    let (ctx, step) = match ask {
        Ask::Any => (IoCtx::metadata(), units as usize),
        Ask::Each => (IoCtx::background(), READ_UNITS_MAX),
    };
    let images = |first: u64| Images {
        medium,
        identity,
        first,
        units,
        ctx,
        step,
        legs: vec![None; medium.mirror.legs().into()],
    };
    let mut found = Found {
        frames: Vec::new(),
        chain: Vec::new(),
        index: superblock.journal_index,
        mark: superblock.checkpoint_seq,
        lost: None,
        uneven: Vec::new(),
        units: 0,
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
        found.units += units;
        let Some((header, leg)) = header else {
            found.lost = lost_in(&mut segment, unit, seq).await?;
            break;
        };
        if ask == Ask::Each {
            let uneven = segment.compare((unit, 1), leg, seq).await?;
            found.uneven.extend(uneven);
        }
        found.chain.push(unit);
        found.index = index;
        let mut at = unit + 1;
        while at < unit + units {
            let frame = segment
                .any(at, |bytes, unit, identity| {
                    decode(bytes, unit, identity).filter(|frame| frame.seq == seq)
                })
                .await?;
            let Some((frame, leg)) = frame else { break };
            if ask == Ask::Each {
                let uneven = segment.compare((at, frame.units), leg, seq).await?;
                found.uneven.extend(uneven);
            }
            at += u64::from(frame.units);
            found.mark = found.mark.max(frame.mark);
            if ask == Ask::Any {
                found.frames.push(frame);
            }
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
