//! The superblock: from where everything else is found.
//!
//! 64 slots of one unit at either end of the volume. Each new superblock (epoch + 1) goes to one
//! slot at each end, so a torn or lost one leaves its predecessors; the valid one with the highest
//! epoch counts. Layout: ARCHITECTURE.md §7.2.

use crate::layout::{Page, Ptr, Reader, SLOTS_PER_END, UNIT_BYTES};
use chunk_api::crc::crc32;
use thiserror::Error;

/// Magic of a volume of this store.
pub const MAGIC: &[u8; 8] = b"ANTLERSB";
/// The format this build writes.
pub const FORMAT_VERSION: u32 = 1;
/// Units of a journal segment: one is read as a whole at the start.
pub(crate) const SEGMENT_UNITS_MIN: u32 = 8;
pub(crate) const SEGMENT_UNITS_MAX: u32 = 65_536;
/// Journal segments: with fewer a checkpoint might find none to go on in.
pub(crate) const SEGMENTS_MIN: usize = 8;
/// Journal segments that a superblock can list.
pub(crate) const SEGMENTS_MAX: usize = 64;

const RO_COMPAT_KNOWN: u64 = 0;
const INCOMPAT_KNOWN: u64 = 0;
const FLAG_CLEAN: u16 = 1;

/// Root of a tree as the superblock holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct TreeRoot {
    pub(crate) ptr: Ptr,
    pub(crate) leaves: u32,
    pub(crate) aux: u16,
}

/// A decoded superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Features that do not concern who does not know them: kept as they are.
    pub(crate) compat: u64,
    pub(crate) ro_compat: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) secret: [u8; 16],
    pub(crate) name: String,
    pub(crate) units: u64,
    pub(crate) epoch: u64,
    pub(crate) run: u64,
    pub(crate) metaid: u64,
    pub(crate) csid: u16,
    pub(crate) zone: u16,
    pub(crate) zones: u16,
    pub(crate) clean: bool,
    /// Last frame that the trees contain.
    pub(crate) checkpoint_seq: u64,
    /// Where the frames behind it begin.
    pub(crate) journal_unit: u64,
    pub(crate) journal_seq: u64,
    pub(crate) journal_index: u64,
    pub(crate) directory: TreeRoot,
    pub(crate) alloc: TreeRoot,
    /// Highest chunk id ever ordered.
    pub(crate) highest_id: u64,
    pub(crate) chunks: u64,
    pub(crate) owned: u64,
    pub(crate) written_us: u64,
    pub(crate) segment_units: u32,
    pub(crate) segments: Vec<u64>,
}

/// Why a unit is not a superblock that this build can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadSuperblock {
    /// No magic or a wrong checksum: not one, or torn.
    #[error("no valid superblock")]
    Invalid,
    /// Written by a newer release.
    #[error(
        "format version {0} is newer than this release (knows 1): use the release that wrote it"
    )]
    Version(u32),
    /// Needs features that this release does not have.
    #[error("unknown incompatible feature bits {0:#x}: use the release that wrote it")]
    Incompat(u64),
}

/// The two units of slot `index`.
pub(crate) fn slot_units(index: u64, units: u64) -> [u64; 2] {
    let index = index % SLOTS_PER_END;
    [index, units - SLOTS_PER_END + index]
}

impl Superblock {
    pub(crate) fn encode(&self, slot: u32) -> Page {
        assert!(self.segments.len() <= SEGMENTS_MAX && self.name.len() <= 64);
        let mut page = Page([0; UNIT_BYTES]);
        page.put(0, *MAGIC);
        page.put(8, FORMAT_VERSION.to_le_bytes());
        page.put(12, slot.to_le_bytes());
        page.put(16, self.compat.to_le_bytes());
        page.put(24, self.ro_compat.to_le_bytes());
        page.put(40, self.uuid);
        page.put(56, self.secret);
        page.0[72..72 + self.name.len()].copy_from_slice(self.name.as_bytes());
        page.put(136, self.units.to_le_bytes());
        page.put(144, self.epoch.to_le_bytes());
        page.put(152, self.run.to_le_bytes());
        page.put(160, self.metaid.to_le_bytes());
        page.put(168, self.csid.to_le_bytes());
        page.put(170, self.zone.to_le_bytes());
        page.put(172, self.zones.to_le_bytes());
        page.put(174, if self.clean { FLAG_CLEAN } else { 0 }.to_le_bytes());
        page.put(176, self.checkpoint_seq.to_le_bytes());
        page.put(184, self.journal_unit.to_le_bytes());
        page.put(192, self.journal_seq.to_le_bytes());
        page.put(200, self.journal_index.to_le_bytes());
        for (at, root) in [(208, self.directory), (232, self.alloc)] {
            page.put(at, root.ptr.unit.to_le_bytes());
            page.put(at + 8, root.ptr.crc.to_le_bytes());
            page.put(at + 12, root.leaves.to_le_bytes());
            page.put(at + 16, root.aux.to_le_bytes());
        }
        page.put(256, self.highest_id.to_le_bytes());
        page.put(264, self.chunks.to_le_bytes());
        page.put(272, self.owned.to_le_bytes());
        page.put(280, self.written_us.to_le_bytes());
        page.put(288, self.segment_units.to_le_bytes());
        page.put(292, (self.segments.len() as u32).to_le_bytes());
        for (i, unit) in self.segments.iter().enumerate() {
            page.put(296 + i * 8, unit.to_le_bytes());
        }
        let crc = crc32(&page.0[..4092]);
        page.put(4092, crc.to_le_bytes());
        page
    }

    pub(crate) fn decode(page: &Page) -> Result<Superblock, BadSuperblock> {
        if page.get(0) != *MAGIC || crc32(&page.0[..4092]) != u32::from_le_bytes(page.get(4092)) {
            return Err(BadSuperblock::Invalid);
        }
        let version = u32::from_le_bytes(page.get(8));
        if version != FORMAT_VERSION {
            return Err(BadSuperblock::Version(version));
        }
        let incompat = u64::from_le_bytes(page.get(32)) & !INCOMPAT_KNOWN;
        if incompat != 0 {
            return Err(BadSuperblock::Incompat(incompat));
        }
        let sb = Self::parse(page).ok_or(BadSuperblock::Invalid)?;
        if !sb.is_sane() {
            return Err(BadSuperblock::Invalid);
        }
        Ok(sb)
    }

    fn parse(page: &Page) -> Option<Superblock> {
        let mut r = Reader(page.0.get(16..4092)?);
        let compat = r.u64()?;
        let ro_compat = r.u64()?;
        let _incompat = r.u64()?;
        let (uuid, secret) = (r.take()?, r.take()?);
        let name: [u8; 64] = r.take()?;
        let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(name.get(..end)?).into_owned();
        let (units, epoch, run, metaid) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let (csid, zone, zones, flags) = (r.u16()?, r.u16()?, r.u16()?, r.u16()?);
        let (checkpoint_seq, journal_unit) = (r.u64()?, r.u64()?);
        let (journal_seq, journal_index) = (r.u64()?, r.u64()?);
        let mut root = || -> Option<TreeRoot> {
            let ptr = Ptr {
                unit: r.u64()?,
                crc: r.u32()?,
            };
            let (leaves, aux) = (r.u32()?, r.u16()?);
            r.take::<6>()?;
            Some(TreeRoot { ptr, leaves, aux })
        };
        let (directory, alloc) = (root()?, root()?);
        let (highest_id, chunks, owned) = (r.u64()?, r.u64()?, r.u64()?);
        let (written_us, segment_units, count) = (r.u64()?, r.u32()?, r.u32()?);
        if count as usize > SEGMENTS_MAX {
            return None;
        }
        let segments = (0..count).map(|_| r.u64()).collect::<Option<Vec<_>>>()?;
        Some(Superblock {
            compat,
            ro_compat,
            uuid,
            secret,
            name,
            units,
            epoch,
            run,
            metaid,
            csid,
            zone,
            zones,
            clean: flags & FLAG_CLEAN != 0,
            checkpoint_seq,
            journal_unit,
            journal_seq,
            journal_index,
            directory,
            alloc,
            highest_id,
            chunks,
            owned,
            written_us,
            segment_units,
            segments,
        })
    }

    fn is_sane(&self) -> bool {
        let data = SLOTS_PER_END..self.units.saturating_sub(SLOTS_PER_END);
        let inside = |unit: u64, units: u64| {
            data.contains(&unit) && unit.checked_add(units).is_some_and(|end| end <= data.end)
        };
        let roots = [self.directory, self.alloc];
        // Counters that go on from here never come round.
        let counters = [
            self.epoch,
            self.run,
            self.checkpoint_seq,
            self.journal_index,
        ];
        self.units < crate::layout::UNITS_MAX
            && counters.iter().all(|&n| n < 1 << 62)
            && (SEGMENT_UNITS_MIN..=SEGMENT_UNITS_MAX).contains(&self.segment_units)
            && self.segments.len() >= SEGMENTS_MIN
            && self
                .segments
                .iter()
                .all(|&s| inside(s, self.segment_units.into()))
            && self.segments_lie_apart()
            && self.segments.contains(&self.journal_unit)
            && roots.iter().all(|r| (r.leaves == 0) == r.ptr.is_hole())
            && roots
                .iter()
                .all(|r| r.ptr.is_hole() || inside(r.ptr.unit, 1))
            && self.journal_seq == self.checkpoint_seq + 1
    }

    fn segments_lie_apart(&self) -> bool {
        let mut sorted = self.segments.clone();
        sorted.sort_unstable();
        let apart = |w: &[u64]| w[1] - w[0] >= self.segment_units.into();
        sorted.windows(2).all(apart)
    }

    /// Features that forbid writing to the volume.
    pub(crate) fn unknown_ro_compat(&self) -> u64 {
        self.ro_compat & !RO_COMPAT_KNOWN
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Superblock {
        Superblock {
            compat: 1 << 40,
            ro_compat: 0,
            uuid: [1; 16],
            secret: [2; 16],
            name: "vol1".into(),
            units: 4096,
            epoch: 9,
            run: 3,
            metaid: 77,
            csid: 5,
            zone: 0,
            zones: 1,
            clean: true,
            checkpoint_seq: 41,
            journal_unit: 128,
            journal_seq: 42,
            journal_index: 6,
            directory: TreeRoot {
                ptr: Ptr { unit: 200, crc: 1 },
                leaves: 2,
                aux: 0,
            },
            alloc: TreeRoot::default(),
            highest_id: 12,
            chunks: 3,
            owned: 4,
            written_us: 5,
            segment_units: 16,
            segments: (0..8).map(|i| 64 + i * 16).collect(),
        }
    }

    #[test]
    fn round_trips() {
        assert_eq!(Superblock::decode(&sample().encode(3)), Ok(sample()));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let mut page = sample().encode(0);
        page.put(32, 4u64.to_le_bytes());
        let crc = crc32(&page.0[..4092]);
        page.put(4092, crc.to_le_bytes());
        assert_eq!(Superblock::decode(&page), Err(BadSuperblock::Incompat(4)));
        page.put(8, 2u32.to_le_bytes());
        let crc = crc32(&page.0[..4092]);
        page.put(4092, crc.to_le_bytes());
        assert_eq!(Superblock::decode(&page), Err(BadSuperblock::Version(2)));
    }

    #[test]
    fn refuses_what_no_release_has_written() {
        let insane: [fn(&mut Superblock); 8] = [
            |sb| sb.segments[3] = sb.segments[2],
            |sb| sb.segments.truncate(7),
            |sb| sb.epoch = u64::MAX,
            |sb| sb.checkpoint_seq = u64::MAX,
            |sb| sb.segment_units = 1 << 20,
            |sb| sb.segments[0] = 5000,
            |sb| sb.directory.ptr.unit = 9,
            |sb| sb.journal_unit = 65,
        ];
        for change in insane {
            let mut sb = sample();
            change(&mut sb);
            assert_eq!(
                Superblock::decode(&sb.encode(0)),
                Err(BadSuperblock::Invalid)
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(at in 0usize..4092, bytes: [u8; 4], resum: bool) {
            let mut page = sample().encode(0);
            page.put(at.min(4088), bytes);
            if resum {
                let crc = crc32(&page.0[..4092]);
                page.put(4092, crc.to_le_bytes());
            }
            let _ = Superblock::decode(&page);
        }
    }
}
