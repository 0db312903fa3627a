//! The journal: frames of records in a chain of segments.
//!
//! `record` is what happened, `frame` how it lies on the disk, `writer` when it is written and
//! when it counts as answered, `replay` how it is found again after a crash.

pub(crate) mod frame;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod writer;
