//! The few rtnetlink(7) messages that tell whether a way to an address still stands.
//!
//! Pure functions between bytes and values; the byte order is the host's, as everywhere in netlink(7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// nlmsghdr, netlink(7).
const HEADER_BYTES: usize = 16;
/// ifinfomsg, rtnetlink(7).
const LINK_BYTES: usize = 16;
/// ifaddrmsg, rtnetlink(7).
const ADDRESS_BYTES: usize = 8;
/// rtmsg, rtnetlink(7).
const ROUTE_BYTES: usize = 12;
/// Messages and attributes begin on multiples of this (NLMSG_ALIGNTO, RTA_ALIGNTO).
const ALIGN: usize = 4;
/// IFF_LOWER_UP, netdevice(7): libc has it as a signed flag of another width.
const LOWER_UP: u32 = 1 << 16;
/// IFF_UP, netdevice(7).
const UP: u32 = 1;

/// A message of the kernel, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The state of a link.
    Link(Link),
    /// A link is gone.
    LinkGone(u32),
    /// A local address was taken away.
    AddressGone(IpAddr),
    /// A route was taken away.
    RouteGone,
    /// A route that is there, or the answer to [`route_request`].
    Route(Route),
    /// The answer to a request that failed: the error number; 0 is an acknowledgement.
    Error(i32),
    /// Anything else.
    Other,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    /// `eth0`; empty if it was not told.
    pub(crate) name: String,
    /// Switched on (`ip link set … up`).
    pub(crate) is_on: bool,
    /// Switched on, and the other end of the cable is there.
    pub(crate) has_carrier: bool,
}

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Packets are sent (unicast) or delivered here, not thrown away.
    pub(crate) leads: bool,
    /// The interface they leave by.
    pub(crate) link: Option<u32>,
    /// The local address a new connection would have.
    pub(crate) source: Option<IpAddr>,
}

/// All messages of a datagram; what is malformed ends it.
pub(crate) fn messages(bytes: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while let Some((length, kind)) = u32_at(rest, 0).zip(u16_at(rest, 4)) {
        let length = length as usize;
        if length < HEADER_BYTES || length > rest.len() {
            break;
        }
        let body = rest.get(HEADER_BYTES..length).unwrap_or_default();
        found.push(message(kind, body));
        rest = rest
            .get(length.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
    }
    found
}

fn message(kind: u16, body: &[u8]) -> Message {
    let read = match kind {
        libc::RTM_NEWLINK => link(body).map(Message::Link),
        libc::RTM_DELLINK => u32_at(body, 4).map(Message::LinkGone),
        libc::RTM_DELADDR => gone_address(body).map(Message::AddressGone),
        libc::RTM_NEWROUTE => route(body).map(Message::Route),
        libc::RTM_DELROUTE => Some(Message::RouteGone),
        // nlmsgerr begins with the negated error number.
        k if i32::from(k) == libc::NLMSG_ERROR => {
            u32_at(body, 0).map(|n| Message::Error((n as i32).wrapping_neg()))
        }
        _ => None,
    };
    read.unwrap_or(Message::Other)
}

fn link(body: &[u8]) -> Option<Link> {
    let flags = u32_at(body, 8)?;
    let name = attribute(body.get(LINK_BYTES..)?, libc::IFLA_IFNAME).unwrap_or_default();
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    Some(Link {
        index: u32_at(body, 4)?,
        name: String::from_utf8_lossy(name).into_owned(),
        is_on: flags & UP != 0,
        has_carrier: flags & UP != 0 && flags & LOWER_UP != 0,
    })
}

fn gone_address(body: &[u8]) -> Option<IpAddr> {
    let attributes = body.get(ADDRESS_BYTES..)?;
    // On a point-to-point link IFA_ADDRESS is the peer's.
    let own = attribute(attributes, libc::IFA_LOCAL);
    address(own.or_else(|| attribute(attributes, libc::IFA_ADDRESS))?)
}

fn route(body: &[u8]) -> Option<Route> {
    let kind = *body.get(7)?;
    let attributes = body.get(ROUTE_BYTES..)?;
    Some(Route {
        leads: [libc::RTN_UNICAST, libc::RTN_LOCAL].contains(&kind),
        link: attribute(attributes, libc::RTA_OIF).and_then(|data| u32_at(data, 0)),
        source: attribute(attributes, libc::RTA_PREFSRC).and_then(address),
    })
}

/// The data of the first attribute of that type (rtattr: length, type, data).
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (length, kind) = (usize::from(u16_at(rest, 0)?), u16_at(rest, 2)?);
        let data = rest.get(4..length)?;
        if kind == wanted {
            return Some(data);
        }
        rest = rest.get(length.next_multiple_of(ALIGN)..)?;
    }
}

fn address(data: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(data).map(Ipv4Addr::from);
    let v6 = <[u8; 16]>::try_from(data).map(Ipv6Addr::from);
    v4.map(IpAddr::V4).or(v6.map(IpAddr::V6)).ok()
}

/// RTM_GETLINK of one link.
pub(crate) fn link_request(index: u32) -> Vec<u8> {
    let mut body = [0; LINK_BYTES];
    body[4..8].copy_from_slice(&u32_bytes(index));
    request(libc::RTM_GETLINK, &body)
}

/// RTM_GETROUTE: which way packets from `from` to `to` go now.
pub(crate) fn route_request(to: IpAddr, from: Option<IpAddr>) -> Vec<u8> {
    let (family, bits) = match to {
        IpAddr::V4(_) => (libc::AF_INET, 32),
        IpAddr::V6(_) => (libc::AF_INET6, 128),
    };
    let mut body = vec![0; ROUTE_BYTES];
    body[0] = family as u8;
    body[1] = bits;
    body[2] = if from.is_some() { bits } else { 0 };
    let ways = [(libc::RTA_DST, Some(to)), (libc::RTA_SRC, from)];
    for (kind, address) in ways {
        let data = match address {
            Some(IpAddr::V4(a)) => a.octets().to_vec(),
            Some(IpAddr::V6(a)) => a.octets().to_vec(),
            None => continue,
        };
        body.extend(u16_bytes(4 + data.len() as u16));
        body.extend(u16_bytes(kind));
        body.extend(data);
    }
    request(libc::RTM_GETROUTE, &body)
}

fn request(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(u32_bytes((HEADER_BYTES + body.len()) as u32));
    bytes.extend(u16_bytes(kind));
    bytes.extend(u16_bytes(libc::NLM_F_REQUEST as u16));
    // Sequence number and port: one request at a time, and the kernel fills in the port.
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

#[allow(clippy::host_endian_bytes)] // netlink(7) is in the host's order.
fn u32_bytes(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}

#[allow(clippy::host_endian_bytes)] // netlink(7) is in the host's order.
fn u16_bytes(value: u16) -> [u8; 2] {
    value.to_ne_bytes()
}

#[allow(clippy::host_endian_bytes)] // netlink(7) is in the host's order.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

#[allow(clippy::host_endian_bytes)] // netlink(7) is in the host's order.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute_bytes(kind: u16, data: &[u8]) -> Vec<u8> {
        let mut bytes = u16_bytes(4 + data.len() as u16).to_vec();
        bytes.extend(u16_bytes(kind));
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    fn datagram(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = request(kind, body);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    fn link_bytes(index: u32, flags: u32, name: &str) -> Vec<u8> {
        let mut body = vec![0; LINK_BYTES];
        body[4..8].copy_from_slice(&u32_bytes(index));
        body[8..12].copy_from_slice(&u32_bytes(flags));
        body.extend(attribute_bytes(32, &[1, 2, 3])); // one that says nothing to us
        body.extend(attribute_bytes(
            libc::IFLA_IFNAME,
            format!("{name}\0").as_bytes(),
        ));
        datagram(libc::RTM_NEWLINK, &body)
    }

    #[test]
    fn links_with_and_without_carrier() {
        let mut bytes = link_bytes(7, UP | LOWER_UP, "san0");
        bytes.extend(link_bytes(8, UP, "san1"));
        let link = |index, name: &str, has_carrier| {
            Message::Link(Link {
                index,
                name: name.to_owned(),
                is_on: true,
                has_carrier,
            })
        };
        assert_eq!(
            messages(&bytes),
            [link(7, "san0", true), link(8, "san1", false)]
        );
    }

    #[test]
    fn what_is_taken_away() {
        let mut body = vec![0; ADDRESS_BYTES];
        body.extend(attribute_bytes(libc::IFA_ADDRESS, &[10, 0, 0, 1]));
        body.extend(attribute_bytes(libc::IFA_LOCAL, &[10, 0, 0, 2]));
        assert_eq!(
            messages(&datagram(libc::RTM_DELADDR, &body)),
            [Message::AddressGone("10.0.0.2".parse().unwrap())]
        );
        let body = [0; ROUTE_BYTES];
        assert_eq!(
            messages(&datagram(libc::RTM_DELROUTE, &body)),
            [Message::RouteGone]
        );
    }

    #[test]
    fn answers_to_requests() {
        let mut body = vec![0; ROUTE_BYTES];
        body[7] = libc::RTN_UNICAST;
        body.extend(attribute_bytes(libc::RTA_OIF, &u32_bytes(3)));
        body.extend(attribute_bytes(
            libc::RTA_PREFSRC,
            &Ipv6Addr::LOCALHOST.octets(),
        ));
        let route = Route {
            leads: true,
            link: Some(3),
            source: Some(Ipv6Addr::LOCALHOST.into()),
        };
        assert_eq!(
            messages(&datagram(libc::RTM_NEWROUTE, &body)),
            [Message::Route(route)]
        );
        let refused = u32_bytes((-libc::ENETUNREACH) as u32);
        assert_eq!(
            messages(&datagram(libc::NLMSG_ERROR as u16, &refused)),
            [Message::Error(libc::ENETUNREACH)]
        );
    }

    #[test]
    fn a_request_is_what_rtnetlink_wants() {
        let bytes = route_request("10.3.1.1".parse().unwrap(), "10.3.1.101".parse().ok());
        assert_eq!(bytes.len(), HEADER_BYTES + ROUTE_BYTES + 16);
        assert_eq!(u32_at(&bytes, 0), Some(bytes.len() as u32));
        let attributes = &bytes[HEADER_BYTES + ROUTE_BYTES..];
        assert_eq!(
            attribute(attributes, libc::RTA_DST),
            Some(&[10, 3, 1, 1][..])
        );
        assert_eq!(
            attribute(attributes, libc::RTA_SRC),
            Some(&[10, 3, 1, 101][..])
        );
        assert_eq!(u32_at(&link_request(5), HEADER_BYTES + 4), Some(5));
    }

    proptest! {
        #[test]
        fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = messages(&bytes);
        }

        #[test]
        fn broken_messages_never_panic(
            kind in 2u16..30,
            body in prop::collection::vec(0u8..20, 0..120),
            cut in 0usize..150,
        ) {
            let bytes = datagram(kind, &body);
            let _ = messages(&bytes[..cut.min(bytes.len())]);
            let _ = messages(&bytes);
        }

        #[test]
        fn links_read_back(index in any::<u32>(), flags in any::<u32>(), name in "[a-z0-9.]{1,15}") {
            let want = Message::Link(Link {
                index,
                name: name.clone(),
                is_on: flags & UP != 0,
                has_carrier: flags & UP != 0 && flags & LOWER_UP != 0,
            });
            prop_assert_eq!(messages(&link_bytes(index, flags, &name)), [want]);
        }
    }
}
