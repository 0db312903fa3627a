//! The chunkserver: configuration, commands, control plane and the assembly of all layers.
pub mod clock;
pub mod config;
pub mod events;
pub mod histogram;
