//! Where the outside world is let in: real clocks, real tasks, real disks.
//!
//! Everything else in the workspace takes time, tasks and devices as arguments. These modules are
//! the only ones of this crate that name tokio, a kernel interface or a system clock.

#[cfg(feature = "local")]
pub mod local;
mod tokio_rt;

pub use tokio_rt::{run_shard, TokioRt};
