//! Devices and a runtime for tests and simulations: memory, faults, virtual time.
//!
//! Everything here is deterministic: one seed, one thread, no real clock.

mod mem;
mod virtual_rt;

pub use mem::{MemDevice, MemTiming};
pub use virtual_rt::{Handle, VirtualRt};
