//! Making a pair, or a single leg, from devices.
//!
//! Order: old metadata are wiped, the bitmap is written with every bit set (as mdadm does), the
//! legs are made equal unless that is skipped, and the superblocks come last: a device whose
//! formatting was interrupted is no member. Making equal reads both legs and writes only where
//! they differ, so that thin units stay thin.

use crate::bitmap::{self, BitmapHeader};
use crate::layout::{
    Places, Plan, CLAIM_SLOTS, LEG_SECTORS_MIN, RECORD_SLOTS_MAX, SLOT_SECTORS, SUPER_SECTOR,
};
use crate::superblock::{md_time, Superblock, CLEAN, FEATURE_BITMAP, ROLE_SPARE};
use crate::uuid::Uuid;
use blockdev::{
    BlockDevice, Durability, IoCtx, IoError, IoVec, Kind, Op, Pool, Refusal, Rt, Sector,
};
use std::rc::Rc;
use thiserror::Error;

const MAX_DEV: usize = 128;
const EQUALISE_SECTORS: u64 = 2048;

/// What a new array is like.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Name of the volume; `any:NAME` in the superblock, cut at 32 bytes.
    pub name: String,
    /// Make the legs equal before returning. Without it free space may differ.
    pub equalise: bool,
}

/// Why nothing, or not everything, was formatted.
#[derive(Debug, Error)]
pub enum FormatError {
    /// Not one or two legs.
    #[error("a volume has one or two legs, not {0}")]
    Legs(usize),
    /// A leg is too small.
    #[error("a leg of {has} sectors is too small, at least {LEG_SECTORS_MIN} are needed")]
    TooSmall {
        /// Sectors of the smaller leg.
        has: u64,
    },
    /// A leg failed.
    #[error("leg {leg}: {error}")]
    Io {
        /// Which one.
        leg: usize,
        /// How.
        error: IoError,
    },
}

/// Formats one or two legs as an array, of the smaller one's size. `Ok`: superblocks, bitmaps
/// and (if asked for) equal data are durable on every leg. `progress` is told bytes done and to
/// do of the equalising. What the devices held before is the caller's concern
/// ([`crate::probe::examine`]).
pub async fn create(
    rt: &Rt,
    pool: &Pool,
    legs: &[Rc<dyn BlockDevice>],
    options: &CreateOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<Uuid, FormatError> {
    if !(1..=2).contains(&legs.len()) {
        return Err(FormatError::Legs(legs.len()));
    }
    let sizes = legs.iter().map(|leg| leg.geometry().sectors);
    let smaller = sizes.min().unwrap_or(0);
    let plan = Plan::for_leg(smaller).ok_or(FormatError::TooSmall { has: smaller })?;
    let size = plan.data_size / SLOT_SECTORS * SLOT_SECTORS;
    let array = Uuid::random(rt);
    let model = model(rt, array, options, legs.len(), &plan, size);
    let header = BitmapHeader {
        array,
        events: model.events,
        events_cleared: 0,
        sync_size: size,
        chunk_bytes: plan.bitmap_chunk_bytes as u32,
        state: 0,
    };
    for (n, leg) in legs.iter().enumerate() {
        let prepare = async {
            wipe(&**leg, plan.data_offset).await?;
            put_bitmap(&**leg, pool, &model, &header).await
        };
        prepare
            .await
            .map_err(|error| FormatError::Io { leg: n, error })?;
    }
    if let ([first, second], true) = (legs, options.equalise) {
        let mut at = 0;
        while at < size {
            let sectors = EQUALISE_SECTORS.min(size - at);
            let place = plan.data_offset + at;
            equalise((&**first, place), (&**second, place), sectors)
                .await
                .map_err(|(leg, error)| FormatError::Io { leg, error })?;
            at += sectors;
            progress(at * 512, size * 512);
        }
    }
    for (n, leg) in legs.iter().enumerate() {
        let sb = Superblock {
            dev_number: n as u32,
            device: Uuid::random(rt),
            data_size: leg.geometry().sectors - plan.data_offset,
            ..model.clone()
        };
        let written = put_superblock(&**leg, pool, &sb).await;
        written.map_err(|error| FormatError::Io { leg: n, error })?;
    }
    Ok(array)
}

fn model(
    rt: &Rt,
    array: Uuid,
    options: &CreateOptions,
    legs: usize,
    plan: &Plan,
    size: u64,
) -> Superblock {
    let mut name = [0; 32];
    let text = format!("any:{}", options.name);
    let cut = text.len().min(name.len());
    name[..cut].copy_from_slice(&text.as_bytes()[..cut]);
    let mut roles = vec![ROLE_SPARE; MAX_DEV];
    for (slot, role) in roles.iter_mut().take(legs).enumerate() {
        *role = slot as u16;
    }
    let now = md_time(rt.wall());
    Superblock {
        features: FEATURE_BITMAP,
        array,
        name,
        // mdadm keeps whole seconds there.
        ctime: now & 0xff_ffff_ffff,
        size,
        raid_disks: legs as u32,
        bitmap_offset: 8,
        data_offset: plan.data_offset,
        data_size: plan.data_size,
        super_offset: SUPER_SECTOR,
        recovery_offset: 0,
        dev_number: 0,
        corrected_reads: 0,
        device: Uuid::default(),
        device_flags: 0,
        bblog_shift: 0,
        bblog_size: plan.bblog_sectors() as u16,
        bblog_offset: plan.bblog_offset as i32,
        utime: now,
        events: 1,
        resync_offset: CLEAN,
        roles,
    }
}

pub(crate) async fn write(
    device: &dyn BlockDevice,
    at: u64,
    data: IoVec,
    want: Durability,
) -> Result<(), IoError> {
    let at = Sector(at);
    device
        .submit(Op::Write { at, data, want }, IoCtx::metadata())
        .await
        .map(|_| ())
}

/// Zeroes what earlier owners left before `data_offset`: the first MiB and the slots.
pub(crate) async fn wipe(device: &dyn BlockDevice, data_offset: u64) -> Result<(), IoError> {
    let slots = data_offset.saturating_sub((RECORD_SLOTS_MAX + CLAIM_SLOTS) * SLOT_SECTORS);
    for range in [0..data_offset.min(2048), slots.max(2048)..data_offset] {
        let bytes = (range.end.saturating_sub(range.start) * 512) as usize;
        if bytes > 0 {
            write(device, range.start, IoVec::zeros(bytes), Durability::Cache).await?;
        }
    }
    Ok(())
}

/// Writes a bitmap with every bit set where `sb` says.
pub(crate) async fn put_bitmap(
    device: &dyn BlockDevice,
    pool: &Pool,
    sb: &Superblock,
    header: &BitmapHeader,
) -> Result<(), IoError> {
    let bits = header.chunks(sb.size);
    let places = Places::of(sb, bits);
    let places = places.map_err(|_| IoError::not_applied(Kind::Refused(Refusal::Range)))?;
    for page in 0..bitmap::pages(bits) {
        let bytes = bitmap::encode_page(header, page, bits, |_| true);
        let at = places.bitmap.0 + page as u64 * SLOT_SECTORS;
        write(device, at, pool.copy_now(&bytes[..]), Durability::Cache).await?;
    }
    Ok(())
}

/// Flushes the leg, writes its superblock, flushes again.
pub(crate) async fn put_superblock(
    device: &dyn BlockDevice,
    pool: &Pool,
    sb: &Superblock,
) -> Result<(), IoError> {
    flush(device).await?;
    let page = pool.copy_now(&sb.encode()[..]);
    write(device, SUPER_SECTOR, page, Durability::Cache).await?;
    flush(device).await
}

pub(crate) async fn flush(device: &dyn BlockDevice) -> Result<(), IoError> {
    if !device.geometry().write_cache {
        return Ok(());
    }
    match device.submit(Op::Flush, IoCtx::metadata()).await {
        // Such a unit serves with `durability = "cache"` alone; formatting it is no harm.
        Err(error) if error.kind == Kind::Refused(Refusal::NotSupported) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Gives the second leg what the first one has there. The error says on which leg.
pub(crate) async fn equalise(
    (first, from): (&dyn BlockDevice, u64),
    (second, to): (&dyn BlockDevice, u64),
    sectors: u64,
) -> Result<(), (usize, IoError)> {
    let read = |at: u64| Op::Read {
        at: Sector(at),
        sectors: sectors as u32,
    };
    let reads = crate::notify::both(
        first.submit(read(from), IoCtx::background()),
        second.submit(read(to), IoCtx::background()),
    );
    let (a, b) = reads.await;
    let a = a.map_err(|error| (0, error))?.into_data();
    // What the second leg cannot give is written.
    let same = b.is_ok_and(|b| b.into_data() == a);
    if !same {
        let written = write(second, to, a, Durability::Cache).await;
        written.map_err(|error| (1, error))?;
    }
    Ok(())
}
