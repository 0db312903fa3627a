//! Checkpoints: the state at one frame, written to fresh units, and a superblock that names it.
//!
//! At the cut everything changed is shared with the checkpoint in one step; later changes copy.
//! Then, in this order (store rule R9): pages written; every frame up to the cut answered; flush;
//! superblock at both ends; flush; only then what the old checkpoint needed is free.

use crate::alloc::Short;
use crate::core_state::Core;
use crate::directory::Form;
use crate::layout::{sector, Page, Ptr, INLINE_PAGES, ROOT_PTRS, SLOTS_PER_END, UNIT_BYTES};
use crate::maps::{root_header, Missing};
use crate::store::{Life, Store};
use crate::superblock::{slot_units, Superblock};
use crate::tree::{Leaf, Plan};
use blockdev::{IoCtx, IoVec, Op};
use chunk_api::ChunkError;
use std::collections::VecDeque;
use std::rc::Rc;

/// Breaks in the order of directory pages before they are rewritten in a row.
const BREAKS_MAX: usize = 256;
/// Units of one write.
const WRITE_UNITS_MAX: usize = 256;
/// Writes under way at once.
const WRITES_MAX: usize = 8;

/// What a checkpoint has to write.
pub(crate) struct Cut {
    /// The last frame it contains.
    seq: u64,
    writes: Vec<(Ptr, Rc<Page>)>,
    directory: crate::superblock::TreeRoot,
    alloc: crate::superblock::TreeRoot,
    chunks: u64,
    owned: u64,
}

/// What stands between now and the cut.
enum Step {
    Cut(Cut),
    Load(Vec<Missing>),
    Full,
}

impl Store {
    /// Ends when a checkpoint that begins after this call is durable.
    pub(crate) async fn checkpoint(&self) -> Result<(), ChunkError> {
        let target = self.checkpoints_begun.get() + 1;
        self.want_checkpoint(target);
        self.checkpoints.wait(target).await
    }

    /// Sees to it that checkpoint number `target` of this run is done.
    pub(crate) fn want_checkpoint(&self, target: u64) {
        let idle = self.checkpoints_wanted.get() <= self.checkpoints.get();
        self.checkpoints_wanted
            .set(self.checkpoints_wanted.get().max(target));
        if !idle {
            return;
        }
        let me = self.rc();
        self.rt.spawn(async move {
            while me.checkpoints.get() < me.checkpoints_wanted.get() {
                if matches!(*me.life.borrow(), Life::Failed(_)) {
                    return;
                }
                let number = me.checkpoints.get() + 1;
                me.checkpoints_begun.set(number);
                if let Err(error) = me.run_checkpoint(false, |_| {}).await {
                    return me.fail(&format!("checkpoint failed: {error}"));
                }
                me.checkpoints.raise(number);
            }
        });
    }

    /// One checkpoint; `change` has the last word on its superblock. With `closing` (store rule R4)
    /// the journal that it replaces is an earlier run's.
    pub(crate) async fn run_checkpoint(
        &self,
        closing: bool,
        change: impl Fn(&mut Superblock),
    ) -> Result<(), ChunkError> {
        let cut = {
            let _hold = self.hold();
            loop {
                match self.step() {
                    Step::Cut(cut) => break cut,
                    Step::Load(missing) => self.load(missing).await?,
                    // What is free may still be written to by an unanswered write.
                    Step::Full if self.is_running() => self.await_space().await,
                    Step::Full => return Err(ChunkError::NoSpace),
                }
            }
        };
        let seq = cut.seq;
        *self.unwritten.borrow_mut() = cut.writes.iter().map(|(ptr, _)| ptr.unit).collect();
        self.until_space(|| self.write_pages(&cut.writes)).await?;
        self.unwritten.take();
        if !closing {
            self.answered.wait(seq).await?;
        }
        if !blockdev::mutation::off("store.flush-order") {
            self.flush().await?;
            self.on_durable(seq);
        }
        let superblock = {
            let core = self.core.borrow();
            let (journal_unit, journal_index) = core.journal.head();
            let mut superblock = Superblock {
                epoch: core.superblock.epoch + 1,
                checkpoint_seq: seq,
                journal_unit,
                journal_seq: seq + 1,
                journal_index,
                directory: cut.directory,
                alloc: cut.alloc,
                chunks: cut.chunks,
                owned: cut.owned,
                written_us: self.rt.wall().0,
                clean: false,
                ..core.superblock.clone()
            };
            change(&mut superblock);
            superblock
        };
        self.until_space(|| self.write_superblock(&superblock))
            .await?;
        self.flush().await?;
        let tainted = self.tainted();
        let mut core = self.core.borrow_mut();
        let highest_id = core.superblock.highest_id;
        core.superblock = Superblock {
            highest_id,
            ..superblock
        };
        core.journal.release(seq);
        core.alloc.release_checkpointed(seq, &tainted);
        Ok(())
    }

    fn is_running(&self) -> bool {
        *self.life.borrow() == Life::Running
    }

    /// The same writes again while a thin unit has no space for them. A start or a stop does not
    /// wait for space.
    async fn until_space<F>(&self, write: impl Fn() -> F) -> Result<(), ChunkError>
    where
        F: std::future::Future<Output = Result<(), ChunkError>>,
    {
        loop {
            match write().await {
                Err(ChunkError::NoSpace) if self.is_running() => self.await_space().await,
                other => return other,
            }
        }
    }

    /// Makes the cut, if nothing is missing for it.
    fn step(&self) -> Step {
        let tainted = self.tainted();
        let mut core = self.core.borrow_mut();
        let missing = core.missing_for_checkpoint();
        if !missing.is_empty() {
            return Step::Load(missing);
        }
        let contiguous = core.dir.page_count() as u64 * 2 + core.reserve();
        if core.dir_tree.breaks() > BREAKS_MAX && core.alloc.free() > contiguous {
            core.dir.dirty_all();
        }
        let units = core.checkpoint_units();
        match core.alloc.prepare(units, &tainted) {
            Ok(()) => {}
            Err(Short::Load(index)) => return Step::Load(vec![Missing::Alloc(index)]),
            Err(Short::Full) => return Step::Full,
        }
        let mut stock = match core.alloc.take(units as usize, &tainted) {
            Ok(units) => units.into_iter().collect::<VecDeque<u64>>(),
            Err(Short::Load(index)) => return Step::Load(vec![Missing::Alloc(index)]),
            Err(Short::Full) => return Step::Full,
        };
        let missing = core.missing_units(stock.iter().copied().collect());
        assert!(
            missing.is_empty(),
            "units come from regions whose pages are here"
        );
        let seq = core.journal.cut();
        let cut = core.cut(seq, &mut stock);
        stock
            .into_iter()
            .for_each(|unit| core.alloc.give_back(unit));
        Step::Cut(cut)
    }

    async fn write_pages(&self, writes: &[(Ptr, Rc<Page>)]) -> Result<(), ChunkError> {
        let mut order: Vec<&(Ptr, Rc<Page>)> = writes.iter().collect();
        order.sort_unstable_by_key(|(ptr, _)| ptr.unit);
        let follows = |a: &&(Ptr, Rc<Page>), b: &&(Ptr, Rc<Page>)| b.0.unit == a.0.unit + 1;
        let mut under_way = VecDeque::new();
        for run in order
            .chunk_by(follows)
            .flat_map(|run| run.chunks(WRITE_UNITS_MAX))
        {
            if under_way.len() >= WRITES_MAX {
                let done: Option<blockdev::Completion> = under_way.pop_front();
                answered(done).await?;
            }
            let mut data = IoVec::new();
            for pages in run.chunks(blockdev::buf::RUN_BYTES_MAX / UNIT_BYTES) {
                let mut buf = self.medium.pool.alloc_now(pages.len() * UNIT_BYTES);
                for (to, (_, page)) in buf.chunks_exact_mut(UNIT_BYTES).zip(pages) {
                    to.copy_from_slice(&page.0);
                }
                data.push(buf.freeze());
            }
            let op = Op::Write {
                at: sector(run[0].0.unit),
                data,
                want: Default::default(),
            };
            under_way.push_back(self.medium.mirror.submit(op, IoCtx::metadata()));
        }
        while !under_way.is_empty() {
            answered(under_way.pop_front()).await?;
        }
        Ok(())
    }

    /// Writes a superblock to the next untainted slot at either end.
    async fn write_superblock(&self, superblock: &Superblock) -> Result<(), ChunkError> {
        let turn = self.superblocks.get().0 + 1;
        self.superblocks.set((turn, true));
        let written = self.write_slots(superblock).await;
        self.superblocks.set((turn, false));
        written
    }

    async fn write_slots(&self, superblock: &Superblock) -> Result<(), ChunkError> {
        let units = superblock.units;
        let mut writes = Vec::new();
        for end in 0..2 {
            let slots = (0..SLOTS_PER_END).map(|i| superblock.epoch + i);
            let free = slots.map(|slot| (slot, slot_units(slot, units)[end]));
            let slot = free
                .into_iter()
                .find(|(_, unit)| !self.medium.tainted(*unit, 1));
            let Some((slot, unit)) = slot else {
                return Err(ChunkError::Io(
                    "every superblock slot may still be overwritten".into(),
                ));
            };
            let page = superblock.encode((slot % SLOTS_PER_END) as u32);
            let data = self.medium.pool.copy_now(&page.0);
            let op = Op::Write {
                at: sector(unit),
                data,
                want: Default::default(),
            };
            writes.push(self.medium.mirror.submit(op, IoCtx::metadata()));
        }
        for write in writes {
            answered(Some(write)).await?;
        }
        Ok(())
    }
}

async fn answered(write: Option<blockdev::Completion>) -> Result<(), ChunkError> {
    match write {
        Some(write) => write.await.map(|_| ()).map_err(|error| match error.kind {
            blockdev::Kind::NoSpace => ChunkError::NoSpace,
            _ => ChunkError::Io(error.to_string()),
        }),
        None => Ok(()),
    }
}

impl Core {
    /// Pages that a cut needs: roots of changed maps, and alloc pages of what they replace.
    fn missing_for_checkpoint(&mut self) -> Vec<Missing> {
        let mut missing = Vec::new();
        let mut units = Vec::new();
        for (number, _) in self.maps.dirty_slots() {
            if let Some(root) = self.maps.need_root(&self.dir, number) {
                missing.push(root);
                continue;
            }
            let form = self.dir.get(number).form;
            if matches!(form, Form::Granules { .. }) {
                // Made up from the slot: never missing.
                missing.extend(self.maps.need(&self.dir, number, 0));
            }
            units.extend(self.maps.root(number).ptrs().map(|(_, ptr)| ptr.unit));
            if let Form::Root(ptr) = form {
                units.push(ptr.unit);
            }
        }
        missing.extend(self.missing_units(units));
        missing
    }

    fn cut(&mut self, seq: u64, stock: &mut VecDeque<u64>) -> Cut {
        let mut writes = Vec::new();
        for (number, pages) in self.maps.dirty_slots() {
            self.cut_map(number, pages, seq, stock, &mut writes);
        }
        let leaves = self.dir.take_dirty().into_iter();
        let leaves = leaves.map(|(index, page)| Leaf {
            index,
            page: Some(page),
            aux: 0,
        });
        let leaves: Vec<Leaf> = leaves.collect();
        let fresh = || {
            stock
                .pop_front()
                .expect("the checkpoint's units were counted")
        };
        let plan = self.dir_tree.plan(leaves, fresh);
        self.adopt_tree_pages(plan, seq, &mut writes);
        let leaves = self.alloc.take_dirty();
        let fresh = || {
            stock
                .pop_front()
                .expect("the checkpoint's units were counted")
        };
        let plan = self.alloc.tree.plan(leaves, fresh);
        self.adopt_tree_pages(plan, seq, &mut writes);
        Cut {
            seq,
            writes,
            directory: self.dir_tree.root(),
            alloc: self.alloc.tree.root(),
            chunks: self.dir.live().chunks,
            owned: self.dir.live().granules,
        }
    }

    fn adopt_tree_pages(&mut self, plan: Plan, seq: u64, writes: &mut Vec<(Ptr, Rc<Page>)>) {
        for (ptr, _) in &plan.writes {
            self.alloc.add_system(*ptr);
        }
        plan.freed
            .into_iter()
            .for_each(|unit| self.alloc.replace_system(unit, seq));
        writes.extend(plan.writes);
    }

    /// Puts a chunk's changed map pages into fresh units and its slot into the form that fits.
    fn cut_map(
        &mut self,
        number: u32,
        mut pages: Vec<u8>,
        seq: u64,
        stock: &mut VecDeque<u64>,
        writes: &mut Vec<(Ptr, Rc<Page>)>,
    ) {
        let slot = self.dir.get(number);
        let old_root = match slot.form {
            Form::Root(ptr) => Some(ptr),
            _ => None,
        };
        let mut fresh = |core: &mut Core, page: Rc<Page>| {
            let unit = stock
                .pop_front()
                .expect("the checkpoint's units were counted");
            let ptr = Ptr {
                unit,
                crc: page.crc(),
            };
            core.alloc.incr(ptr);
            writes.push((ptr, page));
            ptr
        };
        let inline = self.maps.inline_form(number, &slot);
        if matches!(slot.form, Form::Granules { .. }) && inline.is_none() && !pages.contains(&0) {
            pages.push(0);
        }
        let before: Vec<(u32, Ptr)> = self.maps.root(number).ptrs().collect();
        for page in pages {
            let content = self.maps.pages.take_dirty((number, page));
            let content = content.expect("a changed page is in memory");
            let ptr = match inline.is_some() || content.ptrs().next().is_none() {
                true => Ptr::HOLE,
                false => fresh(self, content),
            };
            self.maps.root_mut(number).set_ptr(page.into(), ptr);
        }
        if inline.is_some() {
            (0..ROOT_PTRS).for_each(|i| self.maps.root_mut(number).set_ptr(i, Ptr::HOLE));
        }
        for (at, ptr) in before {
            if self.maps.root(number).ptr(at) != ptr {
                self.alloc.decr(ptr.unit, seq, true);
            }
        }
        let root = self.maps.root(number);
        let form = match inline {
            Some(form) => form,
            None if root.ptrs().all(|(at, _)| at < INLINE_PAGES) => {
                Form::Pages([0, 1, 2, 3].map(|i| root.ptr(i)))
            }
            None => {
                let page = root.clone();
                assert!(page.is(root_header(number, slot.id)));
                Form::Root(fresh(self, Rc::new(page)))
            }
        };
        if let Some(old) = old_root {
            self.alloc.decr(old.unit, seq, true);
        }
        self.maps.clean_root(number);
        self.dir.update(number, |s| s.form = form);
    }
}
