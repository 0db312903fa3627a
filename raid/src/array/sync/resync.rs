//! Resync: equalises legs in sync where the previous run, or a failed write, left them in doubt.
//!
//! Granule by granule the good side wins by its checksum; slot 0 in free space alone (R13).

use super::GRANULE_SECTORS;
use crate::array::snapshot::LastSync;
use crate::array::{Array, Leg, LegState};
use crate::several::Several;
use blockdev::{IoError, IoVec, Kind, Sector, Verdict, SECTOR_BYTES};
use std::ops::Range;

impl Array {
    /// Equalises what the previous run, or a failed write, left in doubt.
    pub(in crate::array) fn spawn_resync(&self) {
        let both_in = self
            .slots()
            .iter()
            .all(|leg| leg.state() == LegState::InSync);
        // A leg that is being filled may have been sent what the other has failed since.
        let is_there = |leg: &&Leg| !matches!(leg.state(), LegState::Absent | LegState::Out);
        let is_lone = self.legs.iter().filter(is_there).count() < 2;
        if is_lone && (self.raid_disks.get() < 2 || self.recorded_out.get() != 0) {
            // One leg alone differs from nobody; the other will be copied under bits that stay.
            self.intent.borrow_mut().trust_all();
        }
        let has_work = both_in && self.intent.borrow().is_doubtful();
        if !has_work || std::mem::replace(&mut self.sync.borrow_mut().resyncing, true) {
            return;
        }
        let me = self.me.clone();
        self.rt.spawn(async move {
            let Some(array) = me.upgrade() else { return };
            array.resync().await;
            array.sync.borrow_mut().resyncing = false;
        });
    }

    async fn resync(&self) {
        let began = self.rt.now();
        let doubtful = self.intent.borrow().doubtful();
        let target = &self.legs[1];
        let ranges: Vec<_> = {
            let intent = self.intent.borrow();
            let with_range = |&(n, doubt)| (n, doubt, intent.range_of(n));
            doubtful.iter().map(with_range).collect()
        };
        let total = ranges
            .iter()
            .map(|(_, _, range)| range.end.0 - range.start.0)
            .sum();
        self.begin_progress("resync", target, total);
        let mut done = true;
        for (n, doubt, range) in ranges {
            match self.equalise(&range).await {
                Ok(()) => self.intent.borrow_mut().trust(n, doubt),
                Err(error) => {
                    tracing::warn!(volume = %self.options.volume, %error, "resync stopped");
                    done = false;
                    break;
                }
            }
            self.advance(target, range.end.0 - range.start.0);
        }
        let copied = self.end_progress(target);
        let last = LastSync {
            kind: "resync",
            leg: target.name(),
            bitmap: true,
            copied_bytes: copied,
            elapsed: self.rt.now().since(began),
            done,
        };
        self.sync.borrow_mut().last = Some(last);
        if done {
            self.report_leg(
                "sync_done",
                target,
                format!("resync: {copied} bytes differed"),
                false,
            );
        }
    }

    async fn equalise(&self, range: &Range<Sector>) -> Result<(), IoError> {
        // A crash in the middle must find the bits set.
        self.set_bits(range.clone()).await?;
        let mut units = Several::new();
        let mut at = range.start.0;
        let mut room = Ok(());
        while room.is_ok() && at < range.end.0 {
            let end = (at + self.unit_sectors()).min(range.end.0);
            units.push(self.paced(self.equalise_unit(Sector(at)..Sector(end))));
            at = end;
            room = units.below(self.units_at_once()).await;
        }
        let rest = units.finish().await;
        room.and(rest)
    }

    async fn equalise_unit(&self, range: Range<Sector>) -> Result<(), IoError> {
        let _lock = self.lock(range.clone()).await;
        let [a, b, _] = &self.legs;
        if a.state() != LegState::InSync || b.state() != LegState::InSync {
            return Err(IoError::not_applied(Kind::Closed));
        }
        self.end_taints(a, &range).await?;
        self.end_taints(b, &range).await?;
        let first = self.readable(a, &range).await?;
        let second = self.readable(b, &range).await?;
        match (&first, &second) {
            (Some(x), Some(y)) if x == y => return Ok(()),
            (None, None) => return Ok(()),
            _ => {}
        }
        for start in (range.start.0..range.end.0).step_by(GRANULE_SECTORS as usize) {
            let part = Sector(start)..Sector((start + GRANULE_SECTORS).min(range.end.0));
            let x = self.readable(a, &part).await?;
            let y = self.readable(b, &part).await?;
            if x == y {
                continue;
            }
            let bytes = (part.end.0 - part.start.0) * SECTOR_BYTES;
            match self.which(part.start, x, y).await {
                Some((0, data)) => self.put_in_sync(b, part, data).await?,
                Some((_, data)) => self.put_in_sync(a, part, data).await?,
                None => continue,
            }
            self.count_copied(b, bytes);
        }
        Ok(())
    }

    /// `None` where the medium does not give it.
    async fn readable(&self, leg: &Leg, range: &Range<Sector>) -> Result<Option<IoVec>, IoError> {
        match self.read_absolute(leg, range).await {
            Ok(data) => Ok(Some(data)),
            Err(error) if matches!(error.kind, Kind::Medium { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whose bytes of a granule win: the good ones; slot 0's where nobody cares.
    async fn which(&self, at: Sector, x: Option<IoVec>, y: Option<IoVec>) -> Option<(u8, IoVec)> {
        let (Some(first), Some(second)) = (x.clone(), y.clone()) else {
            return x.map(|data| (0, data)).or(y.map(|data| (1, data)));
        };
        let good = |verdicts: Vec<Verdict>| verdicts == [Verdict::Good];
        if !good(self.judge(at, &first).await) && good(self.judge(at, &second).await) {
            return Some((1, second));
        }
        Some((0, first))
    }
}
