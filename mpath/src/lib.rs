//! Paths of one logical unit as one block device: failover in milliseconds, never a ghost write.
//!
//! [`MultipathDevice`] sits on [`blockdev::path::PathPort`]s (one per portal, provided by an
//! initiator) and is a [`blockdev::BlockDevice`]. What it adds to a path:
//!
//! - **Failover.** A loud loss moves commands to another path at once; an unanswered read gets a
//!   second attempt after 60 ms, a write after 100 ms, with the same frozen bytes. A path is
//!   failed when nothing is heard on it for 800 ms; a unit that is slow on all paths fails none.
//!   Our own lateness is never taken for a path's.
//! - **Slow paths.** A path that is slower than another by less than that is put aside when the
//!   same reads on both say so, and taken back when it has caught up (module `pace`).
//! - **Taints and holds.** A write that was sent and not answered may land at any later time. Its
//!   range is *tainted*: equal bytes may be written there, other bytes are *held*.
//! - **Fence.** What proves that a tainted write is dead: abortive close, login under the same
//!   ISID, LOGICAL UNIT RESET (module `fence`). Nothing is released by time, except on targets
//!   that can prove nothing.
//! - **The right unit.** The WWID is checked on every login and after each "another unit may
//!   answer here" attention; a path returns only after large frames came through; the owner's gate
//!   is asked before the first write of each session.
//! - **Cache lost.** If no session survived a gap, what the unit had only in its cache may be
//!   gone: [`blockdev::Event::CacheLost`], and no flush asked for before succeeds.
//!
//! Rules and their numbers are those of Antler's failover rules; each rule that a test can switch
//! off is named `mpath.*` in [`blockdev::mutation`].
//!
//! ```
//! # #[cfg(feature = "sim")] {
//! use blockdev::{sim::VirtualRt, BlockDevice, IoCtx, Instant, Op, Pool, Sector};
//! use mpath::{sim::San, Config, MultipathDevice};
//!
//! let world = VirtualRt::new(1);
//! let san = San::new(world.rt(), Pool::new(1 << 20), Default::default());
//! let config = Config::new("sto1", "iqn.2024-12.tp2.b3:initiator");
//! let device = MultipathDevice::new(world.rt(), config, vec![san.port(0), san.port(1)]);
//! world.block_on(async move {
//!     device.opened(Instant::FAR).await.expect("a path is up");
//!     let op = Op::Read { at: Sector(0), sectors: 8 };
//!     let read = device.submit(op, IoCtx::foreground()).await.expect("read");
//!     assert_eq!(read.into_data().len(), 4096);
//! });
//! # }
//! ```

mod access;
mod checker;
mod classify;
mod config;
mod device;
mod ere;
mod fence;
mod grade;
mod group;
mod inner;
mod keeper;
mod marginal;
mod news;
mod outcome;
mod pace;
mod path;
mod prio;
mod request;
mod reserve;
mod selector;
mod signal;
#[cfg(feature = "sim")]
pub mod sim;
mod slab;
mod snapshot;
mod sweep;
mod taint;
mod tally;

pub use classify::{classify, Verdict};
pub use config::{
    Config, Failback, FenceFail, FencePolicy, Fitting, Grouping, MarginalPath, NoPathRetry, Probe,
    Role, SanPathErr, SelectorKind, HEDGE_READ, HEDGE_WRITE, HOLD_BEFORE_FENCE, PROBATION,
    QUEUED_REQUESTS_MAX, QUIET_BEFORE_FENCE, SILENT_MAX,
};
pub use device::{MultipathDevice, NoSuchPath, OpenError};
pub use ere::Ere;
pub use grade::FenceGrade;
pub use news::Trace;
pub use path::{Checker, PathCounters};
pub use prio::{LatencyScale, Prio, Weights};
pub use request::AttemptLog;
pub use selector::{choose, History, Load};
pub use snapshot::{DeviceState, GroupSnapshot, GroupState, PathReach, PathSnapshot, Snapshot};
pub use tally::Outages;
