//! Derived initiator session ids.
//!
//! An ISID is part of our identity on the wire: a fence logs in with the ISID of the session it
//! must end, also after a restart that lost every file. So it is never random and never stored:
//! type T=10 ("random", RFC 7143 §11.12.5: no registered number is needed), 40 bits of a hash of
//! everything that makes the path what it is.
//!
//! The hash, fixed for ever: SHA-256 over `antler-isid-1`, then each of initiator name, target
//! name, portal (`address:port`, `[v6]:port`), source address (empty if none) and role (`serve` or
//! `tool`), then the shard and the LUN in decimal (empty for discovery), each followed by one NUL byte; the first five bytes of the
//! result are bytes 1–5 of the ISID, byte 0 is 0x80.

use crate::name::Portal;
use blockdev::path::Isid;
use sha2::{Digest, Sha256};
use std::net::IpAddr;

/// Who logs in. Tools have ISIDs of their own and so never end a session of a running `serve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `serve` and the offline volume commands: their writes are fenced at the next start.
    Serve,
    /// `discover`, `device info`, `bench`.
    Tool,
}

impl Role {
    fn text(self) -> &'static str {
        match self {
            Role::Serve => "serve",
            Role::Tool => "tool",
        }
    }
}

/// What an ISID is derived from.
#[derive(Clone, Copy, Debug)]
pub struct IsidSource<'a> {
    /// Initiator name.
    pub initiator: &'a str,
    /// Target name; empty for a discovery session.
    pub target: &'a str,
    /// Portal connected to.
    pub portal: Portal,
    /// Local address configured for the path.
    pub source: Option<IpAddr>,
    /// Who logs in.
    pub role: Role,
    /// Shard, or the number of a parallel session of a tool.
    pub shard: u32,
    /// Logical unit the session is for; `None` for a discovery session. Two units of one target
    /// through one portal are two sessions, which must not end each other.
    pub lun: Option<u64>,
}

/// The ISID of a path.
pub fn derive(from: &IsidSource<'_>) -> Isid {
    let mut hash = Sha256::new();
    hash.update(b"antler-isid-1\0");
    let portal = from.portal.to_string();
    let source = from
        .source
        .map(|source| source.to_string())
        .unwrap_or_default();
    let shard = from.shard.to_string();
    let lun = from.lun.map(|lun| lun.to_string()).unwrap_or_default();
    for part in [
        from.initiator,
        from.target,
        &portal,
        &source,
        from.role.text(),
        &shard,
        &lun,
    ] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let hash = hash.finalize();
    Isid([0x80, hash[0], hash[1], hash[2], hash[3], hash[4]])
}

/// An ISID of 40 bits of `random`: only for the switched-off rule `iscsi.fixed-isid`.
pub(crate) fn random(random: u64) -> Isid {
    let [_, _, _, a, b, c, d, e] = random.to_be_bytes();
    Isid([0x80, a, b, c, d, e])
}

/// An ISID as people read it: `0x80a1b2c3d4e5`.
pub fn text(isid: Isid) -> String {
    let [a, b, c, d, e, f] = isid.0;
    format!("0x{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> IsidSource<'static> {
        IsidSource {
            initiator: "iqn.2024-12.tp2.b3:data-chunk1:chunk1-initiator",
            target: "iqn.2024-12.tp2.b3:data-chunk1",
            portal: "10.3.1.1:3260".parse().expect("portal"),
            source: None,
            role: Role::Serve,
            shard: 0,
            lun: Some(1),
        }
    }

    /// On-wire identity: these bytes never change, or fences of an older run miss.
    #[test]
    fn golden() {
        assert_eq!(text(derive(&source())), "0x8034f24259b8");
        let other = IsidSource {
            portal: "[fd00::1]:13260".parse().expect("portal"),
            source: Some("fd00::101".parse().expect("address")),
            role: Role::Tool,
            shard: 3,
            ..source()
        };
        assert_eq!(text(derive(&other)), "0x80135ea139c8");
    }

    #[test]
    fn isid_distinct_per_path() {
        let base = source();
        let variants = [
            base,
            IsidSource {
                initiator: "iqn.2024-12.tp2.b3:x",
                ..base
            },
            IsidSource {
                target: "iqn.2024-12.tp2.b3:data-chunk2",
                ..base
            },
            IsidSource {
                portal: "10.3.1.1:3261".parse().expect("portal"),
                ..base
            },
            IsidSource {
                portal: "10.3.1.2:3260".parse().expect("portal"),
                ..base
            },
            IsidSource {
                source: Some("10.3.1.101".parse().expect("address")),
                ..base
            },
            IsidSource {
                role: Role::Tool,
                ..base
            },
            IsidSource { shard: 1, ..base },
        ];
        let mut seen: Vec<Isid> = variants.iter().map(derive).collect();
        assert!(seen.iter().all(|isid| isid.0[0] == 0x80));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), variants.len());
    }
}
