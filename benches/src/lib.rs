//! Placeholder for crate `benches`.
