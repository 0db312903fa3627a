//! SendTargets discovery (RFC 7143 appendix C): which targets a portal knows, and where.

use crate::client::ConnectError;
use crate::establish::{Destination, Initiator};
use crate::isid::Role;
use crate::name::{Portal, DEFAULT_PORT};
use crate::session::Outcome;
use crate::text::{parse_pairs, TextBuilder};
use blockdev::{Instant, PathCause};
use thiserror::Error;

/// Most records of one answer.
const RECORDS_MAX: usize = 65_536;

/// A target that a portal lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// iSCSI name.
    pub name: String,
    /// Where it can be reached.
    pub portals: Vec<DiscoveredPortal>,
}

/// One address of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredPortal {
    /// `address:port`, `[v6]:port`, or `host:port` where the target gives a name.
    pub address: String,
    /// Target portal group tag.
    pub portal_group: u16,
}

/// Why there is no list.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DiscoverError {
    /// No session.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The session ended, or no answer came in time.
    #[error("{0}")]
    Lost(PathCause),
    /// The answer is not one.
    #[error("SendTargets answer: {0}")]
    Malformed(&'static str),
}

/// Asks one portal for all its targets, by `deadline`.
///
/// # Errors
/// If the portal cannot be reached, refuses, or answers nonsense.
pub async fn discover(
    initiator: &Initiator,
    portal: Portal,
    deadline: Instant,
) -> Result<Vec<DiscoveredTarget>, DiscoverError> {
    let isid = initiator.isid("", portal, None, Role::Tool, 0, None);
    let to = Destination {
        portal,
        source: None,
        target: None,
        isid,
    };
    let session = initiator.establish(&to, deadline).await?;
    let mut text = TextBuilder::default();
    text.push("SendTargets", "All");
    let answer = initiator
        .rt
        .by(deadline, session.client.text(text.into_bytes()))
        .await;
    let list = match answer {
        Ok(Outcome::Text(text)) => parse_targets(&text, session.portal)?,
        Ok(Outcome::Lost { cause, .. }) => return Err(DiscoverError::Lost(cause)),
        Ok(_) => return Err(DiscoverError::Malformed("not a text response")),
        Err(_) => {
            let unanswered = ConnectError::Connect("no answer in time".to_owned());
            return Err(unanswered.into());
        }
    };
    session.client.logout(deadline).await;
    Ok(list)
}

/// Parses a SendTargets answer. A target without an address is at the portal that was asked.
pub fn parse_targets(text: &[u8], asked: Portal) -> Result<Vec<DiscoveredTarget>, DiscoverError> {
    use DiscoverError::Malformed;
    let pairs = parse_pairs(text).map_err(|_| Malformed("malformed text"))?;
    if pairs.len() > RECORDS_MAX {
        return Err(Malformed("too many records"));
    }
    let mut targets: Vec<DiscoveredTarget> = Vec::new();
    for (key, value) in pairs {
        match (key, targets.last_mut()) {
            ("TargetName", _) => {
                targets.push(DiscoveredTarget {
                    name: value.to_owned(),
                    portals: Vec::new(),
                });
            }
            ("TargetAddress", Some(target)) => {
                let (address, group) = value.rsplit_once(',').unwrap_or((value, "1"));
                let portal_group = group.parse().map_err(|_| Malformed("portal group tag"))?;
                target.portals.push(DiscoveredPortal {
                    address: with_port(address),
                    portal_group,
                });
            }
            ("TargetAddress", None) => return Err(Malformed("address without a target")),
            // Nothing else belongs here; a vendor's additions do no harm.
            _ => {}
        }
    }
    for target in targets
        .iter_mut()
        .filter(|target| target.portals.is_empty())
    {
        target.portals.push(DiscoveredPortal {
            address: asked.to_string(),
            portal_group: 1,
        });
    }
    Ok(targets)
}

fn with_port(address: &str) -> String {
    match address.parse::<Portal>() {
        Ok(portal) => portal.to_string(),
        Err(_) if address.contains(':') => address.to_owned(),
        Err(_) => format!("{address}:{DEFAULT_PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Portal {
        "10.3.1.1".parse().expect("portal")
    }

    fn list(text: &[u8]) -> Vec<(String, Vec<(String, u16)>)> {
        let portals = |target: DiscoveredTarget| {
            let portals = target
                .portals
                .into_iter()
                .map(|p| (p.address, p.portal_group));
            (target.name, portals.collect())
        };
        parse_targets(text, asked())
            .expect("answer")
            .into_iter()
            .map(portals)
            .collect()
    }

    #[test]
    fn sendtargets_ipv6() {
        let text = b"TargetName=iqn.a\0TargetAddress=10.3.1.1:3260,1\0TargetAddress=[fd00::1],2\0\
                     TargetAddress=[fd00::2]:13260,2\0TargetName=iqn.b\0\
                     TargetAddress=host.example,3\0";
        let at = |a: &str, g| (a.to_owned(), g);
        let first = vec![
            at("10.3.1.1:3260", 1),
            at("[fd00::1]:3260", 2),
            at("[fd00::2]:13260", 2),
        ];
        let second = vec![at("host.example:3260", 3)];
        let wanted = [("iqn.a".to_owned(), first), ("iqn.b".to_owned(), second)];
        assert_eq!(list(text), wanted);
    }

    /// As it is joined from many responses: every target of it, in order.
    #[test]
    fn sendtargets_long_answer() {
        let text: String = (0..5000)
            .map(|n| {
                format!(
                    "TargetName=iqn.{n}\0TargetAddress=10.3.{}.{},1\0",
                    n / 250,
                    n % 250
                )
            })
            .collect();
        let list = list(text.as_bytes());
        assert_eq!(list.len(), 5000);
        let last = (
            "iqn.4999".to_owned(),
            vec![("10.3.19.249:3260".to_owned(), 1)],
        );
        assert_eq!(list.last(), Some(&last));
        let many = "TargetName=a\0".repeat(RECORDS_MAX + 1);
        assert!(parse_targets(many.as_bytes(), asked()).is_err());
    }

    #[test]
    fn sendtargets_without_address() {
        let wanted = ("iqn.a".to_owned(), vec![("10.3.1.1:3260".to_owned(), 1)]);
        assert_eq!(list(b"TargetName=iqn.a\0"), [wanted]);
        assert!(list(b"").is_empty());
        assert!(parse_targets(b"TargetAddress=10.0.0.1,1\0", asked()).is_err());
        assert!(parse_targets(b"TargetName=a\0TargetAddress=10.0.0.1,x\0", asked()).is_err());
    }
}
