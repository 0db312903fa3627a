//! The chunkserver: configuration, commands, control plane, and the assembly of all layers.
//!
//! [`config`] reads the one configuration file. [`cli`] and [`run`] are the commands; what they need of the
//! layers below is the trait [`ops::Ops`], so that everything here compiles and is tested without them.
//! [`daemon`] is the control thread of `antler serve`: it answers the [`admin`] socket and [`http`] from
//! snapshots that the data plane publishes through [`control`], and never waits for disk I/O. [`model`] and
//! [`report`] are the objects of `--json`, [`render`] their text.

pub mod admin;
pub mod antler;
pub mod assemble;
mod bindings;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
mod data_path;
mod diagnosis;
mod dying;
pub mod events;
pub mod exit;
pub mod histogram;
pub mod http;
pub mod load;
mod lock_file;
mod mfs_file;
pub mod model;
mod names;
mod netlink;
pub mod node;
mod occupancy;
pub mod offline;
pub mod ops;
mod ownership;
pub mod probe;
pub mod render;
pub mod report;
pub mod run;
#[cfg(test)]
mod samples;
pub mod system;
pub mod volumes;
