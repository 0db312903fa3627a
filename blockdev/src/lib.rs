//! What the layers of Antler say to each other: the block device traits and everything they carry.
//!
//! Each layer (`iscsi-initiator`, `mpath`, `raid`, the chunk store) depends on this crate alone and
//! is stacked by one file of `chunkserver`. Data flows through [`BlockDevice::submit`]; the store
//! sees a [`Mirror`], `raid` sees [`BlockDevice`] legs, `mpath` sees [`path::PathPort`]s.
//!
//! Conventions that hold everywhere:
//! - One shard is one thread: trait objects are `Rc`, neither `Send` nor `Sync`, and name no
//!   runtime. Time, tasks and chance come from [`rt::Rt`], so the same code runs under a virtual
//!   clock.
//! - Positions are [`Sector`]s of 512 bytes, whatever the unit's logical block is (as in md and the
//!   Linux block layer). Alignment to [`Geometry::logical_block_bytes`] is the caller's duty.
//! - Payload is an [`IoVec`]: frozen, page-aligned, reference-counted. Nobody writes into a frozen
//!   page, so a retry, a second leg or a hedge always sends the same bytes.
//! - There is no barrier: order is made by awaiting.

pub mod alua;
pub mod buf;
pub mod completion;
#[cfg(feature = "tokio")]
pub mod driver;
mod error;
mod geometry;
mod io;
pub mod latency;
pub mod mutation;
pub mod path;
pub mod reserve;
pub mod rt;
#[cfg(feature = "sim")]
pub mod sim;

pub use buf::{Buf, BufMut, IoVec, Pool, PAGE_BYTES};
pub use completion::{Completion, Joiner, Promise};
pub use error::{Applied, IoError, IoResult, Kind, PathCause, Recovery, Refusal};
pub use geometry::{Geometry, Sector, SECTOR_BYTES};
pub use io::{
    Admission, Allocation, BlockDevice, Class, Done, Durability, Event, Hedge, IoCtx, LegIndex,
    LocalFuture, Mirror, Op, ReadSectors, Seq, StateChange, TraceId, Verdict,
};
pub use rt::{Instant, Lateness, Rt};
