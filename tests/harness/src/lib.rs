//! Real daemons for tests: storage nodes (tgt, istgt), MooseFS (master, chunkserver, mount, tools)
//! and `antler serve`, each with a state directory of its own, most of them in network namespaces
//! that the test made.
//!
//! Owns: processes ([`daemon`]), namespaces and links ([`net`]), state directories and what earlier
//! runs left behind ([`scratch`]), a file oracle ([`files`]) and the typical site ([`site`]).
//!
//! Rules every module keeps:
//! - everything started is ended by `Drop`, which also runs while a test panics; what a killed run
//!   left behind is ended by the next one, found by the dead run's process id in its names;
//! - every wait is bounded and says what it waited for;
//! - a missing program panics with the command that installs it;
//! - nothing outside 127/8 and the namespaces made here is touched, and no address of the host.
//!
//! Logs of daemons are printed (their ends) when a test fails; `ANTLER_KEEP=1` keeps the directory.

pub mod antler;
pub mod clock;
pub mod command;
pub mod daemon;
pub mod files;
pub mod holding_proxy;
pub mod istgt;
pub mod load;
pub mod md;
pub mod mfs;
pub mod net;
pub mod scratch;
pub mod shapes;
pub mod site;
pub mod slow_backend;
pub mod tgt;
