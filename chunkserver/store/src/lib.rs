//! The chunk store on a raw volume: checkpointed index, journal of pointers, copy on write.
//!
//! [`Store`] keeps MooseFS chunks on a [`blockdev::Mirror`] and serves them through
//! [`chunk_api::Chunks`]. Nothing that lives is ever overwritten: a write goes to fresh units of
//! 4 KiB while a record with the new pointers and checksums goes to the journal; checkpoints put
//! the changed part of the index to fresh units and make the journal short again. What lies where,
//! and why no crash at any point loses what was acknowledged, is in ARCHITECTURE.md §7.
//!
//! [`format()`] lays a volume out, [`Store::open`] recovers and serves it, [`check()`] examines it
//! offline, [`info()`] tells what it is. [`SingleLeg`] makes a mirror of one device.
//!
//! One shard, one thread: no call blocks, all time comes from [`blockdev::Rt`].

mod alloc;
mod allocation;
mod cache;
mod check;
mod checkpoint;
mod core_state;
mod crc;
mod directory;
mod fixed;
mod format;
mod gate;
mod info;
mod journal;
mod layout;
mod maps;
mod medium;
mod news;
mod no_space;
mod offline;
mod open;
mod ops;
mod options;
mod order;
mod page_cache;
mod quarantine;
mod read;
mod recheck;
mod replica;
mod single;
mod stale;
mod stats;
mod store;
mod streams;
mod superblock;
mod tree;
mod write;

pub use check::{check, CheckOptions, CheckResult, Problem, ProblemKind, ScrubStep, Summary};
pub use format::{format, FormatError};
pub use info::{info, AdoptError, VolumeInfo, ANY_METAID};
pub use open::OpenError;
pub use options::{Durability, FormatParams, Options};
pub use quarantine::Quarantined;
pub use single::SingleLeg;
pub use stats::Stats;
pub use store::Store;
pub use superblock::{BadSuperblock, FORMAT_VERSION, MAGIC};
