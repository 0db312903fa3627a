//! A whole site in one thread: storage nodes, networks and hosts under a virtual clock.

pub mod blocks;
pub mod mirror;
pub mod net;
pub mod site;
pub mod stack;
pub mod target;
pub mod unit;
