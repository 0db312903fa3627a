//! MooseFS status codes in use between servers, masters and clients.

/// Done.
pub const OK: u8 = 0;
/// Invalid argument.
pub const INVALID: u8 = 6;
/// No such chunk.
pub const NO_CHUNK: u8 = 13;
/// Not begun, nothing changed.
pub const NOT_DONE: u8 = 16;
/// Held in another version.
pub const WRONG_VERSION: u8 = 19;
/// The chunk exists.
pub const EXISTS: u8 = 20;
/// No space.
pub const NO_SPACE: u8 = 21;
/// I/O error.
pub const IO: u8 = 22;
/// Block number above 1023.
pub const WRONG_BLOCK: u8 = 23;
/// Size too large.
pub const WRONG_SIZE: u8 = 24;
/// Offset and size reach outside.
pub const WRONG_OFFSET: u8 = 25;
/// The next server of the chain cannot be reached.
pub const CANT_CONNECT: u8 = 26;
/// A packet of the session names another chunk.
pub const WRONG_CHUNK: u8 = 27;
/// The next server of the chain is gone.
pub const DISCONNECTED: u8 = 28;
/// Checksum mismatch.
pub const CRC: u8 = 29;
/// Timed out.
pub const TIMED_OUT: u8 = 60;

/// A status for people.
pub fn text(status: u8) -> &'static str {
    match status {
        OK => "ok",
        INVALID => "invalid argument",
        9 => "out of memory",
        NO_CHUNK => "no such chunk",
        NOT_DONE => "not done",
        WRONG_VERSION => "wrong version",
        EXISTS => "chunk exists",
        NO_SPACE => "no space left",
        IO => "I/O error",
        WRONG_BLOCK => "wrong block number",
        WRONG_SIZE => "wrong size",
        WRONG_OFFSET => "wrong offset",
        CANT_CONNECT => "cannot connect to the next server",
        WRONG_CHUNK => "wrong chunk id",
        DISCONNECTED => "the next server is gone",
        CRC => "checksum error",
        TIMED_OUT => "timed out",
        _ => "error",
    }
}
