//! What is on a device: a member of an array, something foreign, or nothing known.
//!
//! `volume create` refuses a device that holds anything known and says what it is; assembly reads
//! members. Nothing here writes. The list of signatures follows what `blkid` and `wipefs` look
//! for on disks that turn up in a SAN.

use crate::bitmap::{self, BitmapError, BitmapHeader};
use crate::claim::{read_claim, Claim};
use crate::layout::{NoPlace, Places, CLAIM_SLOTS, SLOT_SECTORS, SUPER_SECTOR};
use crate::record::LegRecord;
use crate::superblock::{self, Superblock, SuperblockError, MAGIC};
use crate::uuid::Uuid;
use blockdev::{BlockDevice, IoCtx, IoError, Op, ReadSectors, Sector};
use thiserror::Error;

/// Everything a leg says of itself.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its superblock.
    pub superblock: Superblock,
    /// Where things lie.
    pub places: Places,
    /// Header of its bitmap.
    pub bitmap: BitmapHeader,
    /// Its bits, one a chunk.
    pub bits: Vec<bool>,
    /// Its newest leg record, if any.
    pub record: Option<LegRecord>,
    /// Its newest claim, if any.
    pub claim: Option<Claim>,
}

/// Why a device is not a member that can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemberError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Its superblock is absent, damaged or not supported.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// Its bitmap is.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// There is no room for our slots.
    #[error(transparent)]
    Place(#[from] NoPlace),
    /// It is smaller than its superblock says.
    #[error("device of {has} sectors, its superblock needs {needs}")]
    TooSmall {
        /// Sectors of the device.
        has: u64,
        /// Sectors that data offset and size call for.
        needs: u64,
    },
}

/// What [`examine`] found.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing known.
    Nothing,
    /// A member of an array.
    Member(Box<Member>),
    /// Something else, named for people.
    Foreign(String),
}

async fn read(device: &dyn BlockDevice, at: Sector, sectors: u64) -> Result<Vec<u8>, IoError> {
    let sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
    let done = device
        .submit(Op::Read { at, sectors }, IoCtx::metadata())
        .await?;
    Ok(done.into_data().to_vec())
}

/// Reads a superblock alone.
pub async fn read_superblock(device: &dyn BlockDevice) -> Result<Superblock, MemberError> {
    if device.geometry().sectors < SUPER_SECTOR + SLOT_SECTORS {
        return Err(SuperblockError::Absent.into());
    }
    let page = read(device, Sector(SUPER_SECTOR), SLOT_SECTORS).await?;
    Ok(Superblock::parse(&page)?)
}

/// Reads the newest leg record that a leg carries.
pub(crate) async fn newest_record(
    device: &dyn BlockDevice,
    places: &Places,
    array: Uuid,
    leg: Uuid,
) -> Result<Option<LegRecord>, IoError> {
    let slots = read(device, places.records, places.record_slots * SLOT_SECTORS).await?;
    Ok(LegRecord::newest(&slots, array, leg))
}

impl Member {
    /// Reads all that a member says.
    pub async fn read(device: &dyn BlockDevice) -> Result<Member, MemberError> {
        let superblock = read_superblock(device).await?;
        let has = device.geometry().sectors;
        let needs = superblock.data_offset.saturating_add(superblock.size);
        if needs > has {
            return Err(MemberError::TooSmall { has, needs });
        }
        // The bitmap's place is needed to know its chunk, and the chunk to know its extent.
        let places = Places::of(&superblock, 1)?;
        let first = read(device, places.bitmap, SLOT_SECTORS).await?;
        let bitmap = BitmapHeader::parse(&first, superblock.array, superblock.size)?;
        let chunks = bitmap.chunks(superblock.size);
        let places = Places::of(&superblock, chunks)?;
        let bytes = read(device, places.bitmap, crate::layout::bitmap_sectors(chunks)).await?;
        let (array, leg) = (superblock.array, superblock.device);
        Ok(Member {
            bits: bitmap::decode(&bytes, chunks),
            record: newest_record(device, &places, array, leg).await?,
            claim: read_claim(device, &places).await?,
            superblock,
            places,
            bitmap,
        })
    }

    /// Slots out of sync, by the fresher of record and superblock, and the event count of that.
    pub fn verdict(&self) -> (u64, u8) {
        match &self.record {
            Some(record) if record.events >= self.superblock.events => {
                (record.events, record.out | record.rebuilding)
            }
            _ => (self.superblock.events, self.superblock.missing_slots()),
        }
    }

    /// Whether bit `n` is set, or its page counts as all set.
    pub fn is_dirty(&self, n: u64) -> bool {
        let by_record = self.record.as_ref().is_some_and(|record| {
            record.events > self.superblock.events
                && (record.all_dirty || record.dirty_pages.contains(&bitmap::page_of_bit(n)))
        });
        by_record
            || !self.bitmap.is_trustworthy()
            || self.bits.get(n as usize).copied().unwrap_or(true)
    }
}

/// The newest claim on a unit of `sectors` sectors, read over one session; `None` if it is no member, or nobody's.
pub async fn claim_over(session: &dyn ReadSectors, sectors: u64) -> Result<Option<Claim>, IoError> {
    let page = |at: Sector, len: u64| {
        let read = session.read(at, u32::try_from(len).unwrap_or(u32::MAX));
        async move { read.await.map(|data| data.to_vec()) }
    };
    if sectors < SUPER_SECTOR + SLOT_SECTORS {
        return Ok(None);
    }
    let Ok(superblock) = Superblock::parse(&page(Sector(SUPER_SECTOR), SLOT_SECTORS).await?) else {
        return Ok(None);
    };
    let end = superblock.data_offset.saturating_add(superblock.size);
    let Some(places) = Places::of(&superblock, 1).ok().filter(|_| end <= sectors) else {
        return Ok(None);
    };
    let header = page(places.bitmap, SLOT_SECTORS).await?;
    let Ok(bitmap) = BitmapHeader::parse(&header, superblock.array, superblock.size) else {
        return Ok(None);
    };
    match Places::of(&superblock, bitmap.chunks(superblock.size)) {
        Ok(places) => {
            let slots = page(places.claims, CLAIM_SLOTS * SLOT_SECTORS).await?;
            Ok(Claim::newest(&slots))
        }
        Err(_) => Ok(None),
    }
}

/// Looks at a device. Errors of the device itself are errors; whatever it holds is an answer.
pub async fn examine(device: &dyn BlockDevice) -> Result<Found, IoError> {
    match Member::read(device).await {
        Ok(member) => return Ok(Found::Member(Box::new(member))),
        Err(MemberError::Io(error)) => return Err(error),
        Err(MemberError::Superblock(SuperblockError::Absent)) => {}
        Err(unusable) => return Ok(Found::Foreign(unusable_member(device, &unusable).await?)),
    }
    let sectors = device.geometry().sectors;
    let head = read(device, Sector(0), sectors.min(136) / 8 * 8).await?;
    if let Some(name) = at_the_head(&head) {
        return Ok(Found::Foreign(name.to_owned()));
    }
    let from = sectors.saturating_sub(256) / 128 * 128;
    let tail = read(device, Sector(from), (sectors - from) / 8 * 8).await?;
    Ok(match at_the_tail(&tail, from, sectors) {
        Some(name) => Found::Foreign(name.to_owned()),
        None => Found::Nothing,
    })
}

/// A member that cannot be used, named by its array if its superblock is whole.
async fn unusable_member(device: &dyn BlockDevice, why: &MemberError) -> Result<String, IoError> {
    use SuperblockError::{Absent, Checksum, Version};
    if let MemberError::Superblock(Absent | Checksum { .. } | Version(_)) = why {
        return Ok(format!("a raid member: {why}"));
    }
    let page = read(device, Sector(SUPER_SECTOR), SLOT_SECTORS).await?;
    let array = superblock::array_named_by(&page);
    Ok(format!("a member of {array}: {why}"))
}

fn holds(bytes: &[u8], at: usize, what: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(what))
}

fn at_the_head(head: &[u8]) -> Option<&'static str> {
    let md = MAGIC.to_le_bytes();
    let signatures: [(usize, &[u8], &str); 22] = [
        (0, &md, "an md member (metadata 1.1)"),
        (0, b"XFSB", "an XFS file system"),
        (0, b"LUKS\xba\xbe", "a LUKS volume"),
        (0, b"bluestore block device", "a Ceph OSD"),
        (0, b"ANTLERSB", "an Antler store without raid"),
        (0x438, &[0x53, 0xef], "an ext2/3/4 file system"),
        (0x10040, b"_BHRfS_M", "a btrfs file system"),
        (0x400, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system"),
        (4086, b"SWAPSPACE2", "swap space"),
        (0x8001, b"CD001", "an ISO 9660 image"),
        (3, b"NTFS    ", "an NTFS file system"),
        (3, b"EXFAT   ", "an exFAT file system"),
        (54, b"FAT1", "a FAT file system"),
        (82, b"FAT32", "a FAT file system"),
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
        (
            4096 + 24,
            &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca],
            "a bcache device",
        ),
        (24, b"LVM2 001", "an LVM physical volume"),
        (512 + 24, b"LVM2 001", "an LVM physical volume"),
        (1024 + 24, b"LVM2 001", "an LVM physical volume"),
        (1536 + 24, b"LVM2 001", "an LVM physical volume"),
        (0x10034, b"ReIsEr", "a ReiserFS file system"),
    ];
    let known = signatures
        .into_iter()
        .find(|(at, what, _)| holds(head, *at, what))
        .map(|(_, _, name)| name);
    known.or_else(|| {
        let table = head.get(446..510)?;
        let is_table = holds(head, 510, &[0x55, 0xaa])
            && table
                .chunks(16)
                .any(|entry| entry.get(4).is_some_and(|&kind| kind != 0));
        is_table.then_some("an MBR partition table")
    })
}

fn at_the_tail(tail: &[u8], from: u64, sectors: u64) -> Option<&'static str> {
    let md = MAGIC.to_le_bytes();
    let at = |sector: u64| (sector.saturating_sub(from) * 512) as usize;
    let md_090 = (sectors / 128 * 128).saturating_sub(128);
    let md_10 = sectors.saturating_sub(16) / 8 * 8;
    if holds(tail, at(md_090), &md) {
        Some("an md member (metadata 0.90)")
    } else if holds(tail, at(md_10), &md) {
        Some("an md member (metadata 1.0)")
    } else if holds(tail, at(sectors.saturating_sub(1)), b"EFI PART") {
        Some("the backup of a GPT partition table")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
    use blockdev::{Geometry, Pool};

    fn found(marks: &[(u64, &[u8])]) -> Found {
        let world = VirtualRt::new(1);
        let pool = Pool::new(1 << 20);
        let geometry = Geometry::plain(1 << 16);
        let device = MemDevice::new(world.rt(), pool, geometry, MemTiming::default());
        for (at, bytes) in marks {
            device.poke(*at, bytes);
        }
        world
            .block_on(async move { examine(&device).await })
            .expect("readable")
    }

    #[test]
    fn a_blank_device_holds_nothing_known() {
        assert!(matches!(found(&[]), Found::Nothing));
    }

    #[test]
    fn foreign_content_is_named() {
        let end = 1u64 << 25;
        let cases: [(u64, &[u8], &str); 7] = [
            (0, b"XFSB", "an XFS file system"),
            (0x438, &[0x53, 0xef], "an ext2/3/4 file system"),
            (0, b"LUKS\xba\xbe", "a LUKS volume"),
            (512 + 24, b"LVM2 001", "an LVM physical volume"),
            (512, b"EFI PART", "a GPT partition table"),
            (
                end - 65_536,
                &MAGIC.to_le_bytes(),
                "an md member (metadata 0.90)",
            ),
            (
                end - 8192,
                &MAGIC.to_le_bytes(),
                "an md member (metadata 1.0)",
            ),
        ];
        for (at, bytes, name) in cases {
            match found(&[(at, bytes)]) {
                Found::Foreign(text) => assert_eq!(text, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_partition_table_needs_an_entry() {
        assert!(matches!(found(&[(510, &[0x55, 0xaa])]), Found::Nothing));
        let with_entry = found(&[(510, &[0x55, 0xaa]), (450, &[0x83])]);
        assert!(matches!(with_entry, Found::Foreign(text) if text == "an MBR partition table"));
    }

    #[test]
    fn a_damaged_member_is_foreign_and_says_why() {
        let text = match found(&[(4096, &MAGIC.to_le_bytes()), (4100, &[9])]) {
            Found::Foreign(text) => text,
            other => panic!("{other:?}"),
        };
        assert!(text.contains("major version 9"), "{text}");
    }
}
