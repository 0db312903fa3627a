//! RAID1 over two devices, in md's own format.
//!
//! A leg is a member of an md array with metadata 1.2 and an internal write-intent bitmap, so
//! that people can look at it and rescue data with `mdadm`; records and claims of our own lie in
//! the gap before the data ([`layout`]). [`format::create`] makes a pair, [`assemble::assemble`]
//! reads one, decides whose content counts ([`decide`]) and yields an [`Array`], which is a
//! [`blockdev::Mirror`].
//!
//! What it promises upward: a write is acknowledged when every leg in sync has it, or when a leg
//! that failed or fell silent has first been recorded as out, in the [`witness`] and on the
//! survivor. What it needs from above: which space is used and whose bytes are right
//! ([`blockdev::Allocation`]), and [`blockdev::Mirror::recovered`] before anything is copied.

mod array;
pub mod assemble;
pub mod bitmap;
mod bytes;
pub mod claim;
pub mod decide;
pub mod format;
pub mod grow;
pub mod layout;
mod notify;
pub mod probe;
pub mod record;
mod several;
pub mod superblock;
mod uuid;
mod window;
pub mod witness;

pub use array::{
    Array, ArraySnapshot, ControlError, Fill, LastSync, LegSnapshot, Options, SyncSnapshot, Why,
};
pub use uuid::Uuid;
