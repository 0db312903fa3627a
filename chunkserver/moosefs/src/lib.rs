//! The MooseFS chunkserver protocol, from the bytes up to whole conversations.
//!
//! - [`proto`]: every packet as a typed struct.
//! - [`master`]: the link to the master, for ever.
//! - [`serve`]: the data port for clients and other servers; [`replicate`]: fetching copies.
//! - [`net`]: sockets for both. - [`wire`]: framing into page-aligned memory.
//! - [`client`], [`player`], [`bench`](mod@bench): the other side (a client, a minimal master, a load generator),
//!   for benches and tests; [`mem`]: chunks in memory, likewise.
//!
//! What a chunk is and how it is kept is behind [`chunk_api::Chunks`].
//!
//! Threads: everything that touches chunks lives on the shard's thread and uses [`blockdev::Rt`] for
//! time and tasks, so it runs under a virtual clock too. The master link's driver lives on the
//! control thread; [`master::channel`] joins them.

pub mod bench;
pub mod client;
pub mod master;
pub mod mem;
pub mod net;
pub mod player;
pub mod proto;
pub mod repeats;
pub mod replicate;
pub mod serve;
pub mod wire;
