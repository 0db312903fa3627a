//! wip
pub mod bench;
pub mod client;
pub mod digest;
pub mod discover;
pub mod establish;
pub mod identify;
pub mod isid;
pub mod login;
pub mod name;
pub mod net;
pub mod path;
pub mod pdu;
pub mod scsi;
pub mod serial;
pub mod session;
pub mod tcp;
pub mod text;
