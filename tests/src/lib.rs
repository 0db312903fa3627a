//! What the simulations and interop tests of the whole stack share.

pub mod sim;
