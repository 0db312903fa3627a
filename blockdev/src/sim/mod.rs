//! Devices and a runtime for tests and simulations: memory, faults, virtual time.
//!
//! Everything here is deterministic: one seed, one thread, no real clock.

mod chance;
mod faulty;
mod host;
mod medium;
mod mem;
mod recording;
mod virtual_rt;

pub use chance::{Chance, Latency, PerMillion};
pub use faulty::{Faults, FaultyDevice, Ghosts, Outage};
pub use host::Host;
pub use medium::Medium;
pub use mem::{MemDevice, MemTiming};
pub use recording::{Digest, Entry, Log, RecordingDevice, What};
pub use virtual_rt::{Handle, VirtualRt};
