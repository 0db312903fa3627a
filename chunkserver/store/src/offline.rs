//! A volume in the hands of a command: looked at without a write, or taken to another size.

use crate::layout::{UNITS_MAX, UNIT_BYTES, UNIT_SECTORS};
use crate::open::OpenError;
use crate::options::Options;
use crate::store::{Life, Store};
use blockdev::{Mirror, Pool, Rt};
use chunk_api::ChunkError;
use std::rc::Rc;

impl Store {
    /// A volume to look at, as the next start would find it. Nothing is written; reads are the
    /// only operations that it takes.
    pub async fn view(
        mirror: Rc<dyn Mirror>,
        rt: Rt,
        pool: Pool,
        options: Options,
    ) -> Result<Rc<Store>, OpenError> {
        let (store, _) = Self::load_volume(mirror, rt, pool, options, false).await?;
        Ok(store)
    }

    /// Bytes that the volume uses of the mirror under it, and that the mirror has.
    pub fn extent(&self) -> (u64, u64) {
        let unit = UNIT_BYTES as u64;
        let has = self.mirror_units();
        (self.core.borrow().superblock.units * unit, has * unit)
    }

    fn mirror_units(&self) -> u64 {
        let units = self.medium.mirror.geometry().sectors / UNIT_SECTORS;
        units.min(UNITS_MAX - 1)
    }

    /// Stops like [`Store::stop`], and leaves a volume that uses all of a mirror that has grown.
    ///
    /// Its last superblock is the whole change: the slots of the far end lie at the new end, where
    /// nothing was, and the units of the old ones are free from the next start on, which lays the
    /// allocator out anew. A crash before finds the old size, with every superblock in place.
    pub async fn stop_grown(&self) -> Result<(), ChunkError> {
        let units = self.mirror_units();
        let before = self.core.borrow().superblock.units;
        assert!(
            units >= before,
            "a store on a mirror that has shrunk was opened"
        );
        self.stop_with(|sb| sb.units = units).await?;
        debug_assert!(*self.life.borrow() == Life::Closed);
        Ok(())
    }
}
