//! What a store is told when it is formatted or opened.

use std::time::Duration;

/// When a write is acknowledged, and what finishing one means (DESIGN P1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// Acknowledged when answered by every in-sync leg; durable at `finish`, and at least once a
    /// second or per 64 MiB.
    #[default]
    Flush,
    /// Durable before each acknowledgement.
    Fua,
    /// As `Flush`, but `finish` does not wait for the flush.
    Cache,
}

/// How a volume is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name for logs, statistics and the master's list of disks.
    pub name: String,
    /// See [`Durability`].
    pub durability: Durability,
    /// Bytes of verified data kept in memory.
    pub cache_bytes: usize,
    /// Bytes of maps and of alloc pages kept in memory while they are clean, each.
    pub map_cache_bytes: usize,
    /// How long a deleted chunk is held back while there is other space: 9 days, since a stale
    /// master's second wave comes after 7.
    pub purge_after: Duration,
    /// Bytes read ahead of a sequential reader; 0: none.
    pub read_ahead_bytes: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            name: "volume".into(),
            durability: Durability::Flush,
            cache_bytes: 64 << 20,
            map_cache_bytes: 16 << 20,
            purge_after: Duration::from_secs(9 * 86_400),
            read_ahead_bytes: 1 << 20,
        }
    }
}

/// How a volume is laid out.
#[derive(Clone, Debug)]
pub struct FormatParams {
    /// The volume's name, at most 64 bytes.
    pub name: String,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Seeds the checksums of the journal: random, never shown.
    pub secret: [u8; 16],
    /// Units of 4 KiB in a journal segment; `None`: 256 below 16 GiB, 1024 above.
    pub segment_units: Option<u32>,
    /// Journal segments, 8 to 64; `None`: 8 below 1 GiB, 16 above.
    pub segments: Option<u32>,
}

impl FormatParams {
    /// The usual layout.
    pub fn new(name: impl Into<String>, uuid: [u8; 16], secret: [u8; 16]) -> FormatParams {
        FormatParams {
            name: name.into(),
            uuid,
            secret,
            segment_units: None,
            segments: None,
        }
    }
}
