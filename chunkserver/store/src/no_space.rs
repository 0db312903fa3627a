//! A thin unit without space for a write that was begun.
//!
//! Data that was refused is taken back: the granules are mapped as they were, and whoever wrote hears of it. The
//! store's own writes cannot be given up: they are sent again, and no new ones are accepted meanwhile.

use std::rc::Rc;

use blockdev::IoVec;

use crate::core_state::Core;
use crate::journal::record::Record;
use crate::journal::writer::{DataWrite, Undo};
use crate::layout::Ptr;
use crate::maps::Missing;
use crate::news::News;
use crate::store::{Store, TICK};

impl Store {
    /// A thin unit had no space for a frame: nothing later counts, and no write is accepted, until it
    /// takes the frame.
    pub(crate) fn resend_later(&self, seq: u64, unit: u64, data: IoVec) {
        let me = self.rc();
        self.rt.spawn(async move {
            me.await_space().await;
            me.core.borrow_mut().journal.resend(seq, unit, data);
            me.pump();
        });
    }

    /// A device refused a write that cannot be given up: time passes, with writers refused.
    pub(crate) async fn await_space(&self) {
        self.tell(
            News::SpaceLow,
            "a unit below has no space for the store's own writes".into(),
        );
        self.starved.set(self.starved.get() + 1);
        self.rt.sleep(TICK).await;
        self.starved.set(self.starved.get() - 1);
    }

    /// Whether a device has no space for what the store must write itself.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved.get() > 0
    }

    /// A write was refused for want of space: maps the old granules again.
    pub(crate) async fn undo(self: Rc<Self>, seq: u64, write: DataWrite) {
        loop {
            let record = self.undo_record(&write.undo);
            let Ok(record) = record else {
                let Err(missing) = record else { continue };
                if let Err(error) = self.load(missing).await {
                    return self.fail(&format!("cannot undo a refused write: {error}"));
                }
                continue;
            };
            let missing = match &record {
                Some(record) => self.core.borrow_mut().missing(record),
                None => Vec::new(),
            };
            if !missing.is_empty() {
                if let Err(error) = self.load(missing).await {
                    return self.fail(&format!("cannot undo a refused write: {error}"));
                }
                continue;
            }
            let last = match &record {
                Some(record) => self.append(record, Vec::new()),
                // Everything was overwritten since: what did that must be answered first.
                None => self.core.borrow().journal.last_seq(),
            };
            write.refused.set(true);
            let fresh = write.undo.iter().filter(|u| !u.new.is_hole());
            let last_seq = self.core.borrow().journal.last_seq();
            self.undone
                .borrow_mut()
                .extend(fresh.map(|u| (u.new, (u.old, last_seq))));
            let advanced = self.core.borrow_mut().journal.handle_refused(seq, last);
            if advanced {
                self.on_answered();
            }
            self.pump();
            return;
        }
    }

    /// The record that restores what `undo` says where nobody wrote since, or what is missing to
    /// tell.
    fn undo_record(&self, undo: &[Undo]) -> Result<Option<Record>, Vec<Missing>> {
        let mut core = self.core.borrow_mut();
        let Core { dir, maps, .. } = &mut *core;
        let Some(first) = undo.first() else {
            return Ok(None);
        };
        let (page, _) = crate::maps::locate(first.granule);
        if dir.get(first.slot).kind == crate::directory::Kind::Empty {
            return Ok(None);
        }
        if let Some(missing) = maps.need(dir, first.slot, page) {
            return Err(vec![missing]);
        }
        let is_ours = |u: &Undo| maps.ptr(u.slot, u.granule) == u.new;
        if !undo.iter().any(is_ours) {
            return Ok(None);
        }
        // One block, neighbouring granules: one record. What was overwritten stays as it is.
        let ptrs = undo.iter().map(|u| match is_ours(u) {
            true => self.what_lay_there(u.old),
            false => maps.ptr(u.slot, u.granule),
        });
        Ok(Some(Record::Map {
            slot: first.slot,
            block: (first.granule / 16) as u16,
            first: (first.granule % 16) as u8,
            ptrs: ptrs.collect(),
        }))
    }

    /// `ptr`, or what it replaced if its data was refused, too.
    fn what_lay_there(&self, mut ptr: Ptr) -> Ptr {
        let undone = self.undone.borrow();
        while let Some((old, _)) = undone.get(&ptr) {
            ptr = *old;
        }
        ptr
    }
}
