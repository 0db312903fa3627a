//! The link to the master: found, registered with, served, and found again for ever.
//!
//! - [`link`]: one connection as a state machine without socket or clock: registration, lists,
//!   space, load, reports, commands and answers.
//! - [`finder`]: which address to try when, likewise without socket or clock.
//! - [`driver`]: both with tokio sockets on the control thread, which never waits for disk I/O.
//! - [`executor`]: on the shard's thread; carries the master's commands out through
//!   [`chunk_api::Chunks`] and sends answers, lists and reports back.
//! - [`state`]: server id and metaid on disk. - [`status`]: what the rest of the node sees.
//!
//! Between the two threads go bounded channels ([`channel`]). A command waits in them, and then in
//! the socket, but is never answered "busy".

pub mod channel;
pub mod driver;
pub mod executor;
pub mod finder;
pub mod link;
pub mod state;
pub mod status;

pub use driver::{Driver, Handle, MasterConfig};
pub use executor::MasterExecutor;
pub use state::{FileState, Identity, NodeState};
pub use status::{MasterEvent, MasterState, MasterStatus};
