//! Taking in what both legs of an array that does not run have gained.
//!
//! Three steps, in this order, each safe to interrupt and to repeat: the gained space is made
//! equal on both legs (nothing lies there yet); the bitmaps are written for the new size, with no
//! bit lost; the superblocks say the new size, slot 1 before slot 0. Assembly takes the size from
//! slot 0 while it is in sync, so that a crash between the two leaves the old size, and with slot
//! 0 gone the new one, which is all there on slot 1 by then. Whatever uses the array grows after
//! that. Event counts stay: no leg's content becomes fresher than the other's.

use crate::bitmap::{self, BitmapHeader};
use crate::format::{equalise, flush, put_superblock, write};
use crate::layout::{SLOT_BYTES, SLOT_SECTORS, SUPER_SECTOR};
use crate::probe::Member;
use crate::superblock::{md_time, Superblock};
use blockdev::{BlockDevice, Durability, IoCtx, IoError, IoVec, Op, Pool, Rt, Sector};
use std::rc::Rc;
use thiserror::Error;

const EQUALISE_SECTORS: u64 = 2048;

/// A leg of an array that does not run.
pub struct GrowLeg {
    /// The device.
    pub device: Rc<dyn BlockDevice>,
    /// What it says, read after the array was stopped.
    pub member: Member,
}

/// From which size to which, in sectors of the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// What every leg agrees upon now.
    pub from: u64,
    /// What the smaller leg has room for.
    pub to: u64,
    /// Bytes under one bit of the bitmap afterwards.
    pub bitmap_chunk_bytes: u64,
}

/// Why an array does not grow.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GrowError {
    /// A leg has no room for what it holds.
    #[error("a leg has shrunk: room for {room} sectors of the array's {size}")]
    Shrunk {
        /// Sectors behind the data offset.
        room: u64,
        /// Sectors of the array.
        size: u64,
    },
    /// No bitmap of any chunk size fits.
    #[error("no room for the bitmap of {0} sectors")]
    Bitmap(u64),
    /// A leg failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// What the legs (all of the array) have room for.
pub fn plan(legs: &[GrowLeg]) -> Result<Growth, GrowError> {
    let (mut from, mut to, mut chunk) = (u64::MAX, u64::MAX, 0);
    for leg in legs {
        let sb = &leg.member.superblock;
        let has = leg.device.geometry().sectors;
        let room = has.saturating_sub(sb.data_offset) / SLOT_SECTORS * SLOT_SECTORS;
        if room < sb.size {
            let size = sb.size;
            return Err(GrowError::Shrunk { room, size });
        }
        from = from.min(sb.size);
        to = to.min(room);
        chunk = chunk.max(u64::from(leg.member.bitmap.chunk_bytes));
    }
    let pages = legs.iter().map(|leg| bitmap_pages_max(&leg.member));
    let pages = pages.min().unwrap_or(0);
    while bitmap::pages(to.div_ceil(chunk.max(4096) / 512)) as u64 > pages {
        chunk = chunk.max(4096) * 2;
        if chunk > 1 << 31 {
            return Err(GrowError::Bitmap(to));
        }
    }
    Ok(Growth {
        from,
        to,
        bitmap_chunk_bytes: chunk,
    })
}

/// Pages between the bitmap's first one and whatever lies behind it.
fn bitmap_pages_max(member: &Member) -> u64 {
    let places = &member.places;
    let log = i64::from(member.superblock.bblog_offset) + SUPER_SECTOR as i64;
    let log = u64::try_from(log).unwrap_or(0);
    let is_behind = member.superblock.bblog_offset != 0 && log > places.bitmap.0;
    let end = if is_behind {
        log.min(places.claims.0)
    } else {
        places.claims.0
    };
    (end - places.bitmap.0) / SLOT_SECTORS
}

/// Makes the gained space equal on both legs, and its last `tail` sectors zero, so that nothing
/// that lay there before is taken for a part of the volume. `progress` is told bytes done and to
/// do.
pub async fn prepare(
    legs: &[GrowLeg],
    growth: &Growth,
    tail: u64,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), GrowError> {
    let tail = growth.to.saturating_sub(tail).max(growth.from)..growth.to;
    for leg in legs {
        let data = leg.member.places.data.0;
        let zeros = IoVec::zeros(((tail.end - tail.start) * 512) as usize);
        if !zeros.is_empty() {
            write(&*leg.device, data + tail.start, zeros, Durability::Cache).await?;
        }
    }
    let [first, second] = legs else {
        return Ok(());
    };
    let mut at = growth.from;
    while at < growth.to {
        let sectors = EQUALISE_SECTORS.min(growth.to - at);
        let from = (&*first.device, first.member.places.data.0 + at);
        let to = (&*second.device, second.member.places.data.0 + at);
        equalise(from, to, sectors)
            .await
            .map_err(|(_, error)| error)?;
        at += sectors;
        progress((at - growth.from) * 512, (growth.to - growth.from) * 512);
    }
    Ok(())
}

/// Writes bitmaps and superblocks of the new size. `Ok`: durable on every leg.
pub async fn apply(
    rt: &Rt,
    pool: &Pool,
    legs: &[GrowLeg],
    growth: &Growth,
) -> Result<(), GrowError> {
    for leg in legs {
        put_bitmap(leg, pool, growth).await?;
        flush(&*leg.device).await?;
    }
    let mut order: Vec<&GrowLeg> = legs.iter().collect();
    order.sort_by_key(|leg| std::cmp::Reverse(leg.member.superblock.slot()));
    for leg in order {
        let sb = &leg.member.superblock;
        let grown = Superblock {
            size: growth.to,
            data_size: leg.device.geometry().sectors - sb.data_offset,
            utime: md_time(rt.wall()),
            ..sb.clone()
        };
        put_superblock(&*leg.device, pool, &grown).await?;
    }
    Ok(())
}

async fn put_bitmap(leg: &GrowLeg, pool: &Pool, growth: &Growth) -> Result<(), IoError> {
    let member = &leg.member;
    let header = BitmapHeader {
        sync_size: growth.to,
        chunk_bytes: growth.bitmap_chunk_bytes as u32,
        ..member.bitmap
    };
    let bits = header.chunks(growth.to);
    let ratio = growth.bitmap_chunk_bytes / u64::from(member.bitmap.chunk_bytes);
    let known = member.bits.len() as u64;
    let is_set =
        |bit: u64| (bit * ratio..(bit + 1) * ratio).any(|n| n < known && member.is_dirty(n));
    for page in 0..bitmap::pages(bits) {
        let bytes = bitmap::encode_page(&header, page, bits, is_set);
        let op = Op::Write {
            at: Sector(member.places.bitmap.0 + page as u64 * SLOT_SECTORS),
            data: pool.copy_now(&bytes[..SLOT_BYTES]),
            want: Durability::Cache,
        };
        leg.device.submit(op, IoCtx::metadata()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::{assemble, LegInput};
    use crate::format::{create, CreateOptions};
    use crate::witness::NoWitness;
    use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
    use blockdev::Geometry;

    fn device(rt: &Rt, pool: &Pool, mib: u64) -> MemDevice {
        let geometry = Geometry::plain(mib << 11);
        MemDevice::new(rt.clone(), pool.clone(), geometry, MemTiming::default())
    }

    /// A pair of 64 MiB, copied to devices of other sizes, as legs.
    async fn grown_pair(rt: &Rt, pool: &Pool, mib: [u64; 2]) -> Vec<GrowLeg> {
        let small = [device(rt, pool, 64), device(rt, pool, 64)];
        let as_legs = small.clone().map(|d| Rc::new(d) as Rc<dyn BlockDevice>);
        let options = CreateOptions {
            name: "v".into(),
            equalise: true,
        };
        create(rt, pool, &as_legs, &options, |_, _| {})
            .await
            .expect("created");
        let mut legs = Vec::new();
        for (from, mib) in small.iter().zip(mib) {
            let to = device(rt, pool, mib);
            let mut bytes = vec![0; 64 << 20];
            from.peek(0, &mut bytes);
            to.poke(0, &bytes);
            let member = Member::read(&to).await.expect("a member");
            legs.push(GrowLeg {
                device: Rc::new(to),
                member,
            });
        }
        legs
    }

    async fn read_again(legs: Vec<GrowLeg>) -> Vec<GrowLeg> {
        let mut again = Vec::new();
        for leg in legs {
            let member = Member::read(&*leg.device).await.expect("a member");
            again.push(GrowLeg { member, ..leg });
        }
        again
    }

    #[test]
    fn the_smaller_leg_rules_and_the_pair_still_assembles() {
        let world = VirtualRt::new(1);
        let pool = Pool::new(256 << 20);
        let (rt, p) = (world.rt(), pool.clone());
        world.block_on(async move {
            let legs = grown_pair(&rt, &p, [100, 90]).await;
            let growth = plan(&legs).expect("room");
            assert_eq!(
                growth.to,
                (90 << 11) - legs[0].member.superblock.data_offset
            );
            prepare(&legs, &growth, 512, |_, _| {})
                .await
                .expect("equal");
            apply(&rt, &p, &legs, &growth).await.expect("applied");
            let legs = read_again(legs).await;
            let again = plan(&legs).expect("room");
            assert_eq!((again.from, again.to), (growth.to, growth.to));
            for leg in &legs {
                let sb = &leg.member.superblock;
                assert_eq!(sb.data_size, leg.device.geometry().sectors - sb.data_offset);
                assert_eq!(leg.member.bitmap.sync_size, growth.to);
            }
            let inputs = legs.iter().enumerate().map(|(n, leg)| LegInput {
                name: format!("d{n}"),
                device: Some(leg.device.clone()),
            });
            let options = crate::Options::new("v");
            let witness = Rc::new(NoWitness);
            let array = assemble(rt, p, witness, options, inputs.collect(), false).await;
            assert_eq!(array.expect("assembled").geometry().sectors, growth.to);
        });
    }

    #[test]
    fn a_crash_between_the_superblocks_leaves_the_old_size() {
        let world = VirtualRt::new(1);
        let pool = Pool::new(256 << 20);
        let (rt, p) = (world.rt(), pool.clone());
        world.block_on(async move {
            let legs = grown_pair(&rt, &p, [100, 100]).await;
            let growth = plan(&legs).expect("room");
            prepare(&legs, &growth, 0, |_, _| {}).await.expect("equal");
            for leg in &legs {
                put_bitmap(leg, &p, &growth).await.expect("written");
            }
            apply(&rt, &p, &legs[1..], &growth).await.expect("applied");
            let legs = read_again(legs).await;
            let inputs = legs.iter().enumerate().map(|(n, leg)| LegInput {
                name: format!("d{n}"),
                device: Some(leg.device.clone()),
            });
            let options = crate::Options::new("v");
            let witness = Rc::new(NoWitness);
            let array = assemble(rt, p, witness, options, inputs.collect(), false).await;
            let array = array.expect("assembled");
            assert_eq!(array.geometry().sectors, growth.from);
            assert_eq!(plan(&legs), Ok(growth), "and it can be done again");
        });
    }

    #[test]
    fn a_bitmap_without_room_gets_larger_chunks_and_keeps_its_bits() {
        let world = VirtualRt::new(1);
        let pool = Pool::new(256 << 20);
        let (rt, p) = (world.rt(), pool.clone());
        world.block_on(async move {
            let mut legs = grown_pair(&rt, &p, [100, 100]).await;
            // A bitmap with a bit for each 4 KiB fills its only page at 120 MiB.
            for leg in &mut legs {
                let sb = &leg.member.superblock;
                leg.member.bitmap.chunk_bytes = 4096;
                leg.member.bits = vec![false; sb.size as usize / 8];
                leg.member.bits[5] = true;
            }
            let growth = plan(&legs).expect("room");
            assert_eq!(growth.bitmap_chunk_bytes, 4096, "25 000 bits fit");
            let far = Growth {
                bitmap_chunk_bytes: 16 << 10,
                ..growth
            };
            for leg in &legs {
                put_bitmap(leg, &p, &far).await.expect("written");
            }
            let legs = read_again(legs).await;
            let set: Vec<usize> = (0..legs[0].member.bits.len())
                .filter(|&n| legs[0].member.bits[n])
                .collect();
            assert_eq!(set, [1], "chunk 5 of 4 KiB lies in chunk 1 of 16 KiB");
        });
    }

    #[test]
    fn a_leg_that_has_shrunk_is_refused() {
        let world = VirtualRt::new(1);
        let pool = Pool::new(256 << 20);
        let (rt, p) = (world.rt(), pool.clone());
        world.block_on(async move {
            let mut legs = grown_pair(&rt, &p, [64, 64]).await;
            legs[1].member.superblock.size += 8;
            assert!(matches!(plan(&legs), Err(GrowError::Shrunk { .. })));
        });
    }
}
