//! `host:port` as users write it.
//!
//! A host is a name, an IPv4 address, or an IPv6 address in brackets (brackets may be left out where no port
//! follows). Names are kept as names: they are resolved when a connection is made, not when the file is read.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::value::clip;

/// A host with a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
}

impl HostPort {
    /// Reads `host`, `host:port`, `v4:port`, `[v6]`, `[v6]:port` or a bare `v6`.
    ///
    /// The error is a sentence that names the text.
    pub fn parse(text: &str, default_port: u16) -> Result<HostPort, String> {
        let bad = || {
            format!(
                "{:?} is no host or host:port (IPv6: [ADDRESS]:PORT)",
                clip(text)
            )
        };
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok(HostPort {
                host: text.to_owned(),
                port: default_port,
            });
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, tail) = rest.split_once(']').ok_or_else(bad)?;
            host.parse::<Ipv6Addr>().map_err(|_| bad())?;
            (host, tail)
        } else {
            match text.find(':') {
                Some(colon) => text.split_at(colon),
                None => (text, ""),
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => default_port,
            None => return Err(bad()),
            Some(digits) => match digits.parse::<u16>() {
                Ok(p) if p > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => p,
                _ => return Err(format!("{:?} has no port from 1 to 65535", clip(text))),
            },
        };
        if !host.contains(':') {
            HostPort::parse_host(host).map_err(|_| bad())?;
        }
        Ok(HostPort {
            host: host.to_owned(),
            port,
        })
    }

    /// Accepts a name or an address without a port.
    pub(crate) fn parse_host(host: &str) -> Result<&str, String> {
        // RFC 1123 §2.1, and `_`, which sites use.
        let name = (1..=253).contains(&host.len())
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            && !host.starts_with(['-', '.']);
        // Digits and dots alone are a mistyped address, never a name.
        let address_like = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if name && (!address_like || host.parse::<IpAddr>().is_ok()) {
            return Ok(host);
        }
        Err(format!(
            "{:?} is neither an address nor a host name",
            clip(host)
        ))
    }

    /// The address, if the host is one and needs no resolver.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        self.host
            .parse::<IpAddr>()
            .ok()
            .map(|ip| SocketAddr::new(ip, self.port))
    }

    /// Whether the host is a loopback address or `localhost`.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints() {
        for (text, want) in [
            ("10.3.1.1", "10.3.1.1:3260"),
            ("10.3.1.2:3261", "10.3.1.2:3261"),
            ("[fd00::1]:3260", "[fd00::1]:3260"),
            ("[fd00::1]", "[fd00::1]:3260"),
            ("fd00::1", "[fd00::1]:3260"),
            ("mfsmaster", "mfsmaster:3260"),
            ("mfsmaster.site.example:9420", "mfsmaster.site.example:9420"),
        ] {
            assert_eq!(
                HostPort::parse(text, 3260).map(|h| h.to_string()),
                Ok(want.to_owned())
            );
        }
        for bad in [
            "",
            ":1",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "[::1",
            "[::1]x",
            "[a]:1",
            "1.2.3",
            "1.2.3.400",
            "a b",
            "-a",
            "10.0.0.1:3260:1",
        ] {
            assert!(HostPort::parse(bad, 1).is_err(), "{bad}");
        }
    }
}
