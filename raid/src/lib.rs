//! Placeholder for crate `raid`.
