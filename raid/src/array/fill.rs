//! A device becomes a member that is not whole yet.
//!
//! Whatever it was sent before is ended first, then what it held is wiped, a bitmap with every
//! bit set is written, and last a superblock that says from the first moment that nothing is
//! rebuilt. So a crash at any point leaves a foreign device or a leg to be filled from its start.

use super::sync::Resume;
use super::{Array, ControlError, Leg};
use crate::bitmap::BitmapHeader;
use crate::layout::{Places, Plan};
use crate::superblock::{md_time, Superblock, CLEAN, FEATURE_BITMAP, FEATURE_RECOVERY, ROLE_SPARE};
use crate::uuid::Uuid;
use blockdev::{BlockDevice, IoCtx, Op};
use std::rc::Rc;

impl Array {
    /// Puts `device` into the slot of `leg`, which is out, to be filled from the other one.
    pub(super) async fn fill(
        &self,
        leg: &Leg,
        name: &str,
        device: Rc<dyn BlockDevice>,
        full: bool,
    ) -> Result<(), ControlError> {
        let superblock = self.prepare(leg, name, &device, 0).await?;
        self.raid_disks.set(2);
        self.install(leg, name, device, superblock, Resume::From(0), full);
        Ok(())
    }

    /// Makes `device` a member for the slot of `leg`, with `more` features in its superblock.
    pub(super) async fn prepare(
        &self,
        leg: &Leg,
        name: &str,
        device: &Rc<dyn BlockDevice>,
        more: u32,
    ) -> Result<Superblock, ControlError> {
        let superblock = self.newcomer(leg, name, device, more)?;
        let header = BitmapHeader {
            array: self.identity.array,
            events: superblock.events,
            events_cleared: 0,
            sync_size: superblock.size,
            chunk_bytes: self.identity.chunk_bytes,
            state: 0,
        };
        // What an earlier run or an earlier leg of this name was sent must not land later.
        device.submit(Op::Fence, IoCtx::metadata()).await?;
        crate::format::wipe(&**device, superblock.data_offset).await?;
        crate::format::put_bitmap(&**device, &self.pool, &superblock, &header).await?;
        crate::format::put_superblock(&**device, &self.pool, &superblock).await?;
        Ok(superblock)
    }

    fn newcomer(
        &self,
        leg: &Leg,
        name: &str,
        device: &Rc<dyn BlockDevice>,
        more: u32,
    ) -> Result<Superblock, ControlError> {
        let peer = self.peer(leg.index);
        let (has, size) = (device.geometry().sectors, self.identity.size);
        let offset = Plan::for_leg(has).map_or(0, |plan| plan.data_offset);
        // The survivor's offset is taken where it fits: legs that look alike are easier to rescue.
        let like = peer.places().data.0;
        let data_offset = if like + size <= has { like } else { offset };
        let too_small = || ControlError::TooSmall {
            device: name.into(),
            has,
            needs: size + offset,
        };
        if data_offset == 0 || data_offset + size > has {
            return Err(too_small());
        }
        let Some(model) = self.superblock_of(peer) else {
            return Err(ControlError::Last(name.into()));
        };
        let taken: Vec<u32> = self
            .legs
            .iter()
            .filter_map(|leg| leg.superblock.borrow().as_ref().map(|sb| sb.dev_number))
            .collect();
        let mut free = (0..model.roles.len() as u32).filter(|number| !taken.contains(number));
        let dev_number = free.next().ok_or(ControlError::Full)?;
        let mut roles = vec![ROLE_SPARE; model.roles.len()];
        for (number, slot) in [(model.dev_number, peer.index.0), (dev_number, leg.index.0)] {
            if let Some(role) = roles.get_mut(number as usize) {
                *role = u16::from(slot);
            }
        }
        let superblock = Superblock {
            // From the first moment it says that it is not whole.
            features: FEATURE_BITMAP | FEATURE_RECOVERY | more,
            raid_disks: 2,
            data_offset,
            data_size: has - data_offset,
            recovery_offset: 0,
            dev_number,
            corrected_reads: 0,
            device: Uuid::random(&self.rt),
            device_flags: 0,
            utime: md_time(self.rt.wall()),
            resync_offset: CLEAN,
            roles,
            ..model
        };
        let chunks = self.intent.borrow().chunk_count();
        Places::of(&superblock, chunks).map_err(|_| too_small())?;
        Ok(superblock)
    }
}
