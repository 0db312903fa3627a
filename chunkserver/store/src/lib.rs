//! Placeholder for crate `chunk-store`.
