//! Where each granule of a chunk lies: root and map pages, loaded when first needed.
//!
//! In memory every chunk that is looked at has a root page and the map pages in question; small
//! chunks, whose pointers fit into their directory slot, get them made up from it. What a slot's
//! [`Form`] says and what the pages say agree at each checkpoint.

use crate::directory::{Directory, Form, Slot};
use crate::layout::{Header, Magic, Page, Ptr, MAP_PTRS, ROOT_PTRS};
use crate::page_cache::PageCache;

/// Key of a root page among a slot's pages.
const ROOT: u8 = u8::MAX;

/// A page that must be read before an operation can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The root page of a slot.
    Root { slot: u32, ptr: Ptr, header: Header },
    /// A map page of a slot.
    Map {
        slot: u32,
        page: u8,
        ptr: Ptr,
        header: Header,
    },
    /// An alloc page.
    Alloc(u32),
}

/// See the module.
pub(crate) struct Maps {
    pub(crate) pages: PageCache<(u32, u8)>,
}

/// Map page of a granule of a chunk, and its place there.
pub(crate) fn locate(granule: u32) -> (u8, u32) {
    ((granule / MAP_PTRS) as u8, granule % MAP_PTRS)
}

pub(crate) fn root_header(slot: u32, id: u64) -> Header {
    Header {
        magic: Magic::Root,
        index: 0,
        owner: id,
        place: slot,
    }
}

pub(crate) fn map_header(slot: u32, id: u64, page: u8) -> Header {
    Header {
        magic: Magic::Map,
        index: page.into(),
        owner: id,
        place: slot,
    }
}

impl Maps {
    pub(crate) fn new(pages: usize) -> Maps {
        Maps {
            pages: PageCache::new(pages),
        }
    }

    /// Makes the root of slot `number` present, or says what to read.
    pub(crate) fn need_root(&mut self, dir: &Directory, number: u32) -> Option<Missing> {
        if self.pages.touch((number, ROOT)).is_some() {
            return None;
        }
        let slot = dir.get(number);
        let header = root_header(number, slot.id);
        let mut root = Page::new(header);
        match slot.form {
            Form::Nothing | Form::Granules { .. } => {}
            Form::Pages(ptrs) => {
                for (i, ptr) in ptrs.into_iter().enumerate() {
                    root.set_ptr(i as u32, ptr);
                }
            }
            Form::Root(ptr) => {
                return Some(Missing::Root {
                    slot: number,
                    ptr,
                    header,
                })
            }
        }
        self.pages.insert((number, ROOT), root);
        None
    }

    /// Makes map page `page` of slot `number` present, or says what to read.
    pub(crate) fn need(&mut self, dir: &Directory, number: u32, page: u8) -> Option<Missing> {
        if self.pages.touch((number, page)).is_some() {
            return None;
        }
        if let Some(missing) = self.need_root(dir, number) {
            return Some(missing);
        }
        let slot = dir.get(number);
        let header = map_header(number, slot.id, page);
        let ptr = self.root(number).ptr(page.into());
        if !ptr.is_hole() {
            return Some(Missing::Map {
                slot: number,
                page,
                ptr,
                header,
            });
        }
        let mut map = Page::new(header);
        if let (Form::Granules { mask, ptrs }, 0) = (slot.form, page) {
            let places = (0..16).filter(|i| mask >> i & 1 == 1);
            for (place, ptr) in places.zip(ptrs) {
                map.set_ptr(place, ptr);
            }
        }
        self.pages.insert((number, page), map);
        None
    }

    /// The map pages of slot `number` that may hold pointers. Its root is present.
    pub(crate) fn present(&self, dir: &Directory, number: u32) -> Vec<u8> {
        let inline = matches!(dir.get(number).form, Form::Granules { .. });
        let root = self.root(number);
        (0..ROOT_PTRS as u8)
            .filter(|&p| {
                !root.ptr(p.into()).is_hole()
                    || self.pages.contains((number, p))
                    || (inline && p == 0)
            })
            .collect()
    }

    /// The root page of slot `number`, which is present.
    pub(crate) fn root(&self, number: u32) -> &Page {
        self.pages
            .get((number, ROOT))
            .expect("the root page was loaded before")
    }

    pub(crate) fn root_mut(&mut self, number: u32) -> &mut Page {
        self.pages.change((number, ROOT))
    }

    pub(crate) fn clean_root(&mut self, number: u32) {
        self.pages.take_dirty((number, ROOT));
    }

    /// A map page of slot `number`, which is present.
    pub(crate) fn map(&self, number: u32, page: u8) -> &Page {
        self.pages
            .get((number, page))
            .expect("the map page was loaded before")
    }

    /// Takes in a page that was read, if it is still what is missing; false if it is another page
    /// than its pointer promised.
    pub(crate) fn take(&mut self, dir: &Directory, missing: Missing, page: Page) -> bool {
        let (now, key, header) = match missing {
            Missing::Root { slot, header, .. } => (self.need_root(dir, slot), (slot, ROOT), header),
            Missing::Map {
                slot, page, header, ..
            } => (self.need(dir, slot, page), (slot, page), header),
            Missing::Alloc(_) => return false,
        };
        // Somebody else was faster, or the chunk has moved on: the caller asks again.
        if now != Some(missing) {
            return true;
        }
        if !page.is(header) {
            return false;
        }
        self.pages.insert(key, page);
        true
    }

    /// Where granule `granule` lies. Its map page is present.
    pub(crate) fn ptr(&self, number: u32, granule: u32) -> Ptr {
        let (page, at) = locate(granule);
        self.map(number, page).ptr(at)
    }

    /// Moves granule `granule` and returns where it lay.
    pub(crate) fn set(&mut self, number: u32, granule: u32, ptr: Ptr) -> Ptr {
        let (page, at) = locate(granule);
        let old = self.ptr(number, granule);
        if old != ptr {
            self.pages.change((number, page)).set_ptr(at, ptr);
        }
        old
    }

    /// Puts a copy of another slot's map page in place.
    pub(crate) fn put_copy(&mut self, number: u32, id: u64, page: u8, mut copy: Page) {
        copy.set_header(map_header(number, id, page));
        self.pages.insert((number, page), copy);
        let _ = self.pages.change((number, page));
    }

    /// Forgets a slot's pages.
    pub(crate) fn forget(&mut self, number: u32) {
        for page in (0..ROOT_PTRS as u8).chain([ROOT]) {
            self.pages.remove((number, page));
        }
    }

    /// Slots with changed pages, each with these pages.
    pub(crate) fn dirty_slots(&self) -> Vec<(u32, Vec<u8>)> {
        let mut out: Vec<(u32, Vec<u8>)> = Vec::new();
        for (slot, page) in self.pages.dirty() {
            match out.last_mut() {
                Some((last, pages)) if *last == slot => pages.push(page),
                _ => out.push((slot, vec![page])),
            }
        }
        out
    }

    /// The form of a chunk that is so small that its slot can hold its map.
    pub(crate) fn inline_form(&self, number: u32, slot: &Slot) -> Option<Form> {
        if slot.granules == 0 {
            return Some(Form::Nothing);
        }
        if slot.granules > 4 || !self.pages.contains((number, 0)) {
            return None;
        }
        let map = self.map(number, 0);
        let first: Vec<(u32, Ptr)> = map.ptrs().filter(|(at, _)| *at < 16).collect();
        if first.len() != slot.granules as usize {
            return None;
        }
        let mut form = (0, [Ptr::HOLE; 4]);
        for (i, (at, ptr)) in first.into_iter().enumerate() {
            form.0 |= 1 << at;
            form.1[i] = ptr;
        }
        Some(Form::Granules {
            mask: form.0,
            ptrs: form.1,
        })
    }
}
