//! Placeholder for crate `mpath`.
