//! The md superblock, metadata version 1.2.
//!
//! It lies at byte 4096 of each leg, little-endian, 256 bytes and two more for each entry of
//! `roles[]`. [`Superblock::parse`] checks magic, version, checksum and every field that later
//! code relies upon; what it cannot honour it refuses by name (level, unknown feature bits,
//! reshape, clustering). A leg's *slot* is `roles[dev_number]`; `dev_number` is only an index.
//!
//! Event counts: raised by 2 for each change of a leg's state and before bits are cleared, never
//! lowered, equal on both legs; a leg one behind is as fresh (md counts that way between clean and dirty). `resync_offset` is
//! all ones when the array is clean.
//!
//! Source: md(4), and the bytes of pairs made by mdadm 4.2 and written by Linux 6.1.

use crate::bytes::{Fields, Page};
use crate::uuid::Uuid;
use blockdev::rt::Wall;
use thiserror::Error;

/// `a92b4efc`.
pub const MAGIC: u32 = 0xa92b_4efc;
/// An internal bitmap is present.
pub const FEATURE_BITMAP: u32 = 0x1;
/// `recovery_offset` is valid: the leg is being rebuilt.
pub const FEATURE_RECOVERY: u32 = 0x2;
/// The leg is being filled to replace one that is still in its slot.
pub const FEATURE_REPLACEMENT: u32 = 0x10;
/// The recovery goes by the bitmap.
pub const FEATURE_RECOVERY_BITMAP: u32 = 0x80;
/// `resync_offset` of a clean array.
pub const CLEAN: u64 = u64::MAX;
/// Role of an entry that no leg has.
pub const ROLE_SPARE: u16 = 0xffff;
/// Role of a leg that failed.
pub const ROLE_FAULTY: u16 = 0xfffe;
/// Device flag: read it only if there is no other.
pub const FLAG_WRITE_MOSTLY: u8 = 1;
/// Device flag: fail fast.
pub const FLAG_FAILFAST: u8 = 2;

const SUPPORTED: u32 =
    FEATURE_BITMAP | FEATURE_RECOVERY | FEATURE_RECOVERY_BITMAP | FEATURE_REPLACEMENT;
const ROLES_AT: usize = 256;
const ROLES_MAX: usize = (4096 - ROLES_AT) / 2;

/// Names of the feature bits that may be set by others.
const FEATURES: [(u32, &str); 13] = [
    (0x1, "bitmap"),
    (0x2, "recovery"),
    (0x4, "reshape"),
    (0x8, "bad blocks"),
    (0x10, "replacement"),
    (0x20, "backwards reshape"),
    (0x40, "new data offset"),
    (0x80, "recovery by bitmap"),
    (0x100, "clustered"),
    (0x200, "journal"),
    (0x400, "partial parity log"),
    (0x800, "multiple partial parity logs"),
    (0x1000, "raid0 layout"),
];

/// Why bytes are not a superblock that can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SuperblockError {
    /// There is none.
    #[error("no md superblock")]
    Absent,
    /// Another metadata version.
    #[error("md metadata major version {0}, only 1.2 is known")]
    Version(u32),
    /// The bytes are damaged.
    #[error("md superblock with checksum {stored:08x}, computed {computed:08x}")]
    Checksum {
        /// In the superblock.
        stored: u32,
        /// Over its bytes.
        computed: u32,
    },
    /// It uses features that are not honoured here.
    #[error("md features not supported: {0}")]
    Feature(String),
    /// Not RAID1 of one or two legs.
    #[error("md level {level} with {raid_disks} devices, only raid1 with 1 or 2 is supported")]
    Shape {
        /// RAID level.
        level: i32,
        /// Devices configured.
        raid_disks: u32,
    },
    /// A field contradicts the others.
    #[error("md superblock with impossible {0}")]
    Field(&'static str),
}

/// The array that a page of metadata 1.2 names, in words, whether or not the rest can be used.
pub(crate) fn array_named_by(page: &[u8]) -> String {
    let fields = Fields(page);
    array_in_words(Uuid(fields.array(16)), &fields.array(32))
}

fn array_in_words(array: Uuid, name: &[u8; 32]) -> String {
    let name = String::from_utf8_lossy(name);
    match name.trim_end_matches('\0') {
        "" => format!("md array {array}"),
        name => format!("md array {array} ({name})"),
    }
}

/// A superblock, field by field. Offsets and sizes in sectors unless named otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Feature map.
    pub features: u32,
    /// Identity of the array.
    pub array: Uuid,
    /// `homehost:name`, NUL-padded.
    pub name: [u8; 32],
    /// Creation: low 40 bits seconds, high 24 microseconds.
    pub ctime: u64,
    /// Sectors of each leg that the array uses.
    pub size: u64,
    /// Legs configured, 1 or 2.
    pub raid_disks: u32,
    /// Bitmap, counted from the superblock.
    pub bitmap_offset: i32,
    /// Where data begin on the leg.
    pub data_offset: u64,
    /// Sectors there.
    pub data_size: u64,
    /// Where the superblock lies.
    pub super_offset: u64,
    /// With [`FEATURE_RECOVERY`]: rebuilt up to here, in sectors of the array.
    pub recovery_offset: u64,
    /// Index of this leg in `roles`.
    pub dev_number: u32,
    /// Read errors corrected.
    pub corrected_reads: u32,
    /// Identity of the leg.
    pub device: Uuid,
    /// [`FLAG_WRITE_MOSTLY`], [`FLAG_FAILFAST`].
    pub device_flags: u8,
    /// Bad block log: sectors a block, as a shift.
    pub bblog_shift: u8,
    /// Bad block log: sectors.
    pub bblog_size: u16,
    /// Bad block log, counted from the superblock; 0 = none.
    pub bblog_offset: i32,
    /// Last update, as `ctime`.
    pub utime: u64,
    /// Event count.
    pub events: u64,
    /// In sync up to here; [`CLEAN`] for all.
    pub resync_offset: u64,
    /// What each `dev_number` is: a slot, [`ROLE_SPARE`] or [`ROLE_FAULTY`].
    pub roles: Vec<u16>,
}

/// Time as the superblock keeps it.
pub fn md_time(wall: Wall) -> u64 {
    let (seconds, micros) = (wall.0 / 1_000_000, wall.0 % 1_000_000);
    seconds & 0xff_ffff_ffff | micros << 40
}

/// The other way round.
pub fn wall_of(md_time: u64) -> Wall {
    Wall((md_time & 0xff_ffff_ffff) * 1_000_000 + (md_time >> 40).min(999_999))
}

fn checksum(page: &[u8], bytes: usize) -> u32 {
    let fields = Fields(page);
    let mut sum = 0u64;
    let mut at = 0;
    while at + 4 <= bytes {
        if at != 216 {
            sum += u64::from(fields.u32(at));
        }
        at += 4;
    }
    if at < bytes {
        sum += u64::from(fields.u16(at));
    }
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

impl Superblock {
    /// Reads one from the 4 KiB at byte 4096 of a leg.
    pub fn parse(page: &[u8]) -> Result<Superblock, SuperblockError> {
        let fields = Fields(page);
        if page.len() < 4096 || fields.u32(0) != MAGIC {
            return Err(SuperblockError::Absent);
        }
        if fields.u32(4) != 1 {
            return Err(SuperblockError::Version(fields.u32(4)));
        }
        let max_dev = fields.u32(220) as usize;
        if max_dev == 0 || max_dev > ROLES_MAX {
            return Err(SuperblockError::Field("max_dev"));
        }
        let (stored, computed) = (fields.u32(216), checksum(page, ROLES_AT + 2 * max_dev));
        if stored != computed {
            return Err(SuperblockError::Checksum { stored, computed });
        }
        let sb = Superblock {
            features: fields.u32(8),
            array: Uuid(fields.array(16)),
            name: fields.array(32),
            ctime: fields.u64(64),
            size: fields.u64(80),
            raid_disks: fields.u32(92),
            bitmap_offset: fields.i32(96),
            data_offset: fields.u64(128),
            data_size: fields.u64(136),
            super_offset: fields.u64(144),
            recovery_offset: fields.u64(152),
            dev_number: fields.u32(160),
            corrected_reads: fields.u32(164),
            device: Uuid(fields.array(168)),
            device_flags: fields.u8(184),
            bblog_shift: fields.u8(185),
            bblog_size: fields.u16(186),
            bblog_offset: fields.i32(188),
            utime: fields.u64(192),
            events: fields.u64(200),
            resync_offset: fields.u64(208),
            roles: (0..max_dev).map(|i| fields.u16(ROLES_AT + 2 * i)).collect(),
        };
        sb.validate(fields.i32(72))?;
        Ok(sb)
    }

    /// The array in words: `md array UUID (HOST:NAME)`.
    pub fn array_in_words(&self) -> String {
        array_in_words(self.array, &self.name)
    }

    fn validate(&self, level: i32) -> Result<(), SuperblockError> {
        let foreign = self.features & !SUPPORTED;
        if foreign != 0 {
            return Err(SuperblockError::Feature(feature_names(foreign)));
        }
        if level != 1 || !(1..=2).contains(&self.raid_disks) {
            return Err(SuperblockError::Shape {
                level,
                raid_disks: self.raid_disks,
            });
        }
        let field = |ok: bool, name| {
            if ok {
                Ok(())
            } else {
                Err(SuperblockError::Field(name))
            }
        };
        field(self.super_offset == 8, "super_offset")?;
        field(self.size > 0 && self.size <= self.data_size, "size")?;
        field(
            self.data_offset
                .checked_add(self.data_size)
                .is_some_and(|end| end < 1 << 55),
            "data_offset",
        )?;
        field((self.dev_number as usize) < self.roles.len(), "dev_number")?;
        field(self.events < u64::MAX / 2, "events")?;
        field(
            self.roles
                .iter()
                .all(|&role| u32::from(role) < self.raid_disks || role >= 0xff00),
            "role",
        )
    }

    /// The 4 KiB to write at byte 4096.
    ///
    /// # Panics
    /// If a field breaks what `parse` demands: then it must not reach a disk.
    pub fn encode(&self) -> Box<[u8; 4096]> {
        if let Err(error) = self.validate(1) {
            panic!("refusing to write a superblock: {error}");
        }
        assert!(self.roles.len() <= ROLES_MAX, "too many roles");
        let mut page = Page::new();
        page.put(0, &MAGIC.to_le_bytes())
            .put(4, &1u32.to_le_bytes())
            .put(8, &self.features.to_le_bytes())
            .put(16, &self.array.0)
            .put(32, &self.name)
            .put(64, &self.ctime.to_le_bytes())
            .put(72, &1i32.to_le_bytes())
            .put(80, &self.size.to_le_bytes())
            .put(92, &self.raid_disks.to_le_bytes())
            .put(96, &self.bitmap_offset.to_le_bytes())
            .put(128, &self.data_offset.to_le_bytes())
            .put(136, &self.data_size.to_le_bytes())
            .put(144, &self.super_offset.to_le_bytes())
            .put(152, &self.recovery_offset.to_le_bytes())
            .put(160, &self.dev_number.to_le_bytes())
            .put(164, &self.corrected_reads.to_le_bytes())
            .put(168, &self.device.0)
            .put(184, &[self.device_flags, self.bblog_shift])
            .put(186, &self.bblog_size.to_le_bytes())
            .put(188, &self.bblog_offset.to_le_bytes())
            .put(192, &self.utime.to_le_bytes())
            .put(200, &self.events.to_le_bytes())
            .put(208, &self.resync_offset.to_le_bytes())
            .put(220, &(self.roles.len() as u32).to_le_bytes());
        for (i, role) in self.roles.iter().enumerate() {
            page.put(ROLES_AT + 2 * i, &role.to_le_bytes());
        }
        let sum = checksum(&page.0[..], ROLES_AT + 2 * self.roles.len());
        page.put(216, &sum.to_le_bytes());
        page.0
    }

    /// The slot of this leg, if it has one.
    pub fn slot(&self) -> Option<u8> {
        self.roles
            .get(self.dev_number as usize)
            .filter(|&&role| u32::from(role) < self.raid_disks)
            .map(|&role| role as u8)
    }

    /// Slots (as a mask) that no working leg has, by this superblock.
    pub fn missing_slots(&self) -> u8 {
        (0..self.raid_disks as u16)
            .filter(|slot| !self.roles.contains(slot))
            .fold(0, |mask, slot| mask | 1 << slot)
    }

    /// Whether this leg is only partly rebuilt.
    pub fn is_recovering(&self) -> bool {
        self.features & (FEATURE_RECOVERY | FEATURE_RECOVERY_BITMAP) != 0
    }

    /// Whether this leg is to replace the one in its slot: until then it counts for nothing.
    pub fn is_replacement(&self) -> bool {
        self.features & FEATURE_REPLACEMENT != 0
    }

    /// Whether the array was stopped cleanly.
    pub fn is_clean(&self) -> bool {
        self.resync_offset >= self.size
    }

    /// The part of the name behind `homehost:`, as text.
    pub fn display_name(&self) -> String {
        let end = self
            .name
            .iter()
            .position(|&b| b == 0)
            .unwrap_or(self.name.len());
        String::from_utf8_lossy(self.name.get(..end).unwrap_or_default()).into_owned()
    }
}

fn feature_names(bits: u32) -> String {
    let mut names: Vec<String> = FEATURES
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    let known = FEATURES.iter().fold(0, |mask, (bit, _)| mask | bit);
    if bits & !known != 0 {
        names.push(format!("unknown bits {:#x}", bits & !known));
    }
    names.join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample() -> Superblock {
        let mut name = [0; 32];
        name[..9].copy_from_slice(b"any:vol1\0");
        let mut roles = vec![ROLE_SPARE; 128];
        roles[0] = 0;
        roles[1] = 1;
        Superblock {
            features: FEATURE_BITMAP,
            array: Uuid(*b"ABCDEFGHIJKLMNOP"),
            name,
            ctime: 1_767_225_600,
            size: 653_312,
            raid_disks: 2,
            bitmap_offset: 8,
            data_offset: 2048,
            data_size: 653_312,
            super_offset: 8,
            recovery_offset: 0,
            dev_number: 1,
            corrected_reads: 0,
            device: Uuid(*b"0123456789abcdef"),
            device_flags: 0,
            bblog_shift: 0,
            bblog_size: 8,
            bblog_offset: 16,
            utime: 1_767_225_601,
            events: 42,
            resync_offset: CLEAN,
            roles,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let sb = sample();
        assert_eq!(Superblock::parse(&sb.encode()[..]), Ok(sb));
    }

    #[test]
    fn unknown_features_are_refused_by_name() {
        let mut page = sample().encode();
        page[8..12].copy_from_slice(&(1u32 | 0x100 | 0x8000).to_le_bytes());
        let sum = checksum(&page[..], 512);
        page[216..220].copy_from_slice(&sum.to_le_bytes());
        let refused = Superblock::parse(&page[..]).expect_err("clustered");
        assert_eq!(
            refused.to_string(),
            "md features not supported: clustered, unknown bits 0x8000"
        );
    }

    #[test]
    fn the_other_slot_is_missing_when_no_role_names_it() {
        let mut sb = sample();
        assert_eq!((sb.slot(), sb.missing_slots()), (Some(1), 0));
        sb.roles[0] = ROLE_FAULTY;
        assert_eq!(sb.missing_slots(), 1);
    }

    #[test]
    fn times_keep_their_microseconds() {
        let wall = Wall(1_767_225_600_123_456);
        assert_eq!(wall_of(md_time(wall)), wall);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(page in prop::collection::vec(any::<u8>(), 0..5000)) {
            let _ = Superblock::parse(&page);
        }

        #[test]
        fn one_flipped_bit_is_noticed(bit in 0usize..512 * 8) {
            let mut page = sample().encode();
            page[bit / 8] ^= 1 << (bit % 8);
            let parsed = Superblock::parse(&page[..]);
            prop_assert!(parsed.is_err(), "{parsed:?}");
        }

        #[test]
        fn any_state_survives(events in 0u64..1 << 60, resync in any::<u64>(), dev in 0u32..128,
                              recovery in any::<u64>(), flags in 0u8..4) {
            let mut sb = sample();
            (sb.events, sb.resync_offset, sb.dev_number) = (events, resync, dev);
            (sb.recovery_offset, sb.device_flags) = (recovery, flags);
            prop_assert_eq!(Superblock::parse(&sb.encode()[..]), Ok(sb));
        }
    }
}
