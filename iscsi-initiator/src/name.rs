//! iSCSI names (RFC 7143 §4.2.7) and portals.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use thiserror::Error;

/// The registered port (RFC 7143 §15). 860 is never assumed.
pub const DEFAULT_PORT: u16 = 3260;

/// Longest iSCSI name, in bytes.
pub const NAME_BYTES_MAX: usize = 223;

/// A name or address that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Not `iqn.`, `eui.` or `naa.`, or with characters that names do not have.
    #[error("not an iSCSI name: {0:?}")]
    NotAName(String),
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("iSCSI name of {0} bytes; at most {NAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// Not `address[:port]`.
    #[error("not a portal: {0:?} (address, address:port or [v6]:port)")]
    NotAPortal(String),
}

/// Checks a name as a target or initiator may carry it: type, length, no upper case, no controls.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    let hex = |s: &str| s.bytes().all(|b| b.is_ascii_hexdigit());
    let good = match name.split_at_checked(4) {
        Some(("iqn.", rest)) => {
            !rest.is_empty()
                && !rest
                    .chars()
                    .any(|c| c.is_control() || c.is_whitespace() || c.is_ascii_uppercase())
        }
        Some(("eui.", rest)) => rest.len() == 16 && hex(rest),
        Some(("naa.", rest)) => matches!(rest.len(), 16 | 32) && hex(rest),
        _ => false,
    };
    good.then_some(())
        .ok_or_else(|| NameError::NotAName(name.to_owned()))
}

/// Where a target listens: a numeric address and a port.
///
/// Host names are not resolved here: a path must lead where the config says, not where a name
/// service leads today. A redirect that names a host is refused for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Portal {
    /// Address.
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
}

impl FromStr for Portal {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Portal, NameError> {
        let bad = || NameError::NotAPortal(text.to_owned());
        let port = |text: &str| {
            text.parse()
                .ok()
                .filter(|&port: &u16| port != 0)
                .ok_or_else(bad)
        };
        if let Some(rest) = text.strip_prefix('[') {
            let (address, after) = rest.split_once(']').ok_or_else(bad)?;
            let address = IpAddr::V6(address.parse().map_err(|_| bad())?);
            return match after.strip_prefix(':') {
                Some(text) => Ok(Portal {
                    address,
                    port: port(text)?,
                }),
                None if after.is_empty() => Ok(Portal {
                    address,
                    port: DEFAULT_PORT,
                }),
                None => Err(bad()),
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Portal {
                address,
                port: DEFAULT_PORT,
            });
        }
        let (address, after) = text.rsplit_once(':').ok_or_else(bad)?;
        let address = IpAddr::V4(address.parse().map_err(|_| bad())?);
        Ok(Portal {
            address,
            port: port(after)?,
        })
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{}", self.port),
            IpAddr::V6(address) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_up_to_223_bytes() {
        let long = format!("iqn.2024-12.tp2.b3:{}", "x".repeat(204));
        assert_eq!(long.len(), 223);
        assert_eq!(check_name(&long), Ok(()));
        assert_eq!(
            check_name(&format!("{long}x")),
            Err(NameError::TooLong(224))
        );
        assert!(check_name("eui.02004567a425678d").is_ok());
        assert!(check_name("naa.52004567ba64678d").is_ok());
        for bad in [
            "",
            "iqn",
            "iqn.",
            "iqn.2024-12.B3",
            "eui.02",
            "naa.zz",
            "foo.bar",
            "iqn.a b",
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn default_port_3260_never_860() {
        let portal: Portal = "10.3.1.1".parse().expect("portal");
        assert_eq!(portal.to_string(), "10.3.1.1:3260");
        let portal: Portal = "[fd00::1]".parse().expect("portal");
        assert_eq!(portal.to_string(), "[fd00::1]:3260");
        let portal: Portal = "[fd00::1]:13260".parse().expect("portal");
        assert_eq!(portal.to_string(), "[fd00::1]:13260");
        let portal: Portal = "fd00::1".parse().expect("portal");
        assert_eq!(portal.port, 3260);
        for bad in [
            "",
            "host",
            "10.3.1.1:",
            "10.3.1.1:0",
            "10.3.1.1:99999",
            "[fd00::1",
            "[fd00::1]x",
        ] {
            assert!(bad.parse::<Portal>().is_err(), "{bad}");
        }
    }
}
