//! Loud loss of a link: carrier, address or route taken away ends a path at once, instead of its silence,
//! and what is given back lets it log in at once, instead of at its next turn.
//!
//! The kernel's news (rtnetlink(7): links, addresses, routes) only say that something may have been lost or
//! have come back.
//! What that means is asked afresh for each path: which way its packets go now, and whether that way's link
//! has carrier. So news that were missed or belong to other interfaces do no harm.

mod message;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use blockdev::{Instant, Rt};
use mpath::MultipathDevice;
use nix::errno::Errno;
use nix::sys::socket::{
    bind, recv, send, socket, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol,
    SockType,
};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

use message::{link_request, messages, route_request, Link, Message, Route};

/// A datagram of the kernel is no longer (NLMSG_GOODSIZE is a page).
const DATAGRAM_BYTES: usize = 32 << 10;
/// How often sessions that are new are asked for their local address, which they keep.
const LOOK: Duration = Duration::from_millis(250);
/// Links, and the addresses and routes of both families.
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// Watches the ways to the portals of `units` for ever. Where that is not allowed it says so and returns.
pub(crate) async fn watch(rt: Rt, units: impl Fn() -> Vec<Rc<MultipathDevice>>) {
    let (news, kernel) = match (News::open(), Kernel::open()) {
        (Ok(news), Ok(kernel)) => (news, kernel),
        (Err(e), _) | (_, Err(e)) => {
            tracing::warn!("links are not watched ({e}): a pulled cable is found by its silence");
            return;
        }
    };
    let mut ways = Ways {
        kernel,
        sources: BTreeMap::new(),
        lost: BTreeSet::new(),
    };
    loop {
        let change = tokio::select! { biased;
            change = news.of_change() => match change {
                Ok(change) => change,
                Err(e) => {
                    tracing::warn!("links are watched no more: {e}");
                    return;
                }
            },
            _ = rt.sleep(LOOK) => Change::default(),
        };
        let units = units();
        if change.is_loss {
            ways.judge(&units);
        }
        if change.is_gain {
            ways.welcome(&units);
        }
        ways.note(&units);
    }
}

/// The multicast of the kernel.
struct News(AsyncFd<OwnedFd>);

impl News {
    fn open() -> std::io::Result<News> {
        let socket = route_socket(GROUPS as u32)?;
        // SAFETY: the descriptor is owned by what is registered and never replaced.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(News(socket))
    }

    /// Waits for news and takes all there are; with news that were lost, anything may have changed.
    async fn of_change(&self) -> std::io::Result<Change> {
        let mut guard = self.0.readable().await?;
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let mut change = Change::default();
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    let datagram = buffer.get(..length).unwrap_or_default();
                    messages(datagram).iter().for_each(|m| change.add(m));
                }
                Err(Errno::EAGAIN) => {
                    guard.clear_ready();
                    return Ok(change);
                }
                Err(Errno::EINTR) => {}
                // More than the socket holds: whatever it was, the ways are asked for.
                Err(Errno::ENOBUFS) => {
                    change = Change {
                        is_loss: true,
                        is_gain: true,
                    };
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// What news amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Change {
    /// Something may have been lost.
    is_loss: bool,
    /// Something may have come back.
    is_gain: bool,
}

impl Change {
    fn add(&mut self, message: &Message) {
        let is_gain = match message {
            Message::Link(link) => link.has_carrier,
            Message::Route(route) => route.leads,
            Message::LinkGone(_) | Message::AddressGone(_) | Message::RouteGone => false,
            Message::Error(_) | Message::Other => return,
        };
        self.is_gain |= is_gain;
        self.is_loss |= !is_gain;
    }
}

fn route_socket(groups: u32) -> std::io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkRoute,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Questions to the kernel, which answers them within the call that asks.
struct Kernel(OwnedFd);

impl Kernel {
    fn open() -> std::io::Result<Kernel> {
        route_socket(0).map(Kernel)
    }

    fn ask(&self, request: &[u8]) -> Result<Message, Errno> {
        let fd = self.0.as_raw_fd();
        send(fd, request, MsgFlags::empty())?;
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let length = recv(fd, &mut buffer, MsgFlags::empty())?;
        let answer = messages(buffer.get(..length).unwrap_or_default());
        answer.into_iter().next().ok_or(Errno::EPROTO)
    }

    fn route(&self, to: IpAddr, from: Option<IpAddr>) -> Result<Route, Errno> {
        match self.ask(&route_request(to, from))? {
            Message::Route(route) => Ok(route),
            Message::Error(number) => Err(Errno::from_raw(number)),
            _ => Err(Errno::EPROTO),
        }
    }

    fn link(&self, index: u32) -> Result<Link, Errno> {
        match self.ask(&link_request(index))? {
            Message::Link(link) => Ok(link),
            Message::Error(number) => Err(Errno::from_raw(number)),
            _ => Err(Errno::EPROTO),
        }
    }

    /// Why nothing of a connection from `from` gets to `to`; `None` if it does, or nobody knows.
    fn loss(&self, to: IpAddr, from: Option<IpAddr>) -> Option<String> {
        let route = match self.route(to, from) {
            Ok(route) if route.leads => route,
            // EINVAL: the address is not local (any more), or the route throws packets away.
            Ok(_)
            | Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL) => {
                let from = from.map_or_else(String::new, |from| format!("from {from} "));
                return Some(format!("no route {from}to {to}"));
            }
            Err(_) => return None,
        };
        let link = match self.link(route.link?) {
            Ok(link) => link,
            Err(Errno::ENODEV) => return Some("the interface is gone".to_owned()),
            Err(_) => return None,
        };
        match (link.is_on, link.has_carrier) {
            (_, true) => None,
            (true, false) => Some(format!("{} has no carrier", link.name)),
            (false, _) => Some(format!("{} is switched off", link.name)),
        }
    }
}

/// The paths and the local addresses of their sessions.
struct Ways {
    kernel: Kernel,
    /// By device and portal: since when the session stands, and its local address.
    sources: BTreeMap<(String, String), (Instant, Option<IpAddr>)>,
    /// Devices and portals whose way was lost when it was last asked for.
    lost: BTreeSet<(String, String)>,
}

impl Ways {
    /// Ends the paths whose way is lost.
    fn judge(&mut self, units: &[Rc<MultipathDevice>]) {
        for unit in units {
            for way in ways(unit) {
                let known = self
                    .sources
                    .get(&way.key)
                    .filter(|(since, _)| way.since == Some(*since));
                let from = way.source.or_else(|| known.and_then(|(_, source)| *source));
                if let Some(why) = self.kernel.loss(way.portal.ip(), from) {
                    // Removed meanwhile, or without a session: then there is nothing to end.
                    let _ = unit.link_down(&way.key.1, &why);
                    self.lost.insert(way.key);
                }
            }
        }
    }

    /// Lets the paths log in whose way was lost and is back.
    fn welcome(&mut self, units: &[Rc<MultipathDevice>]) {
        if self.lost.is_empty() {
            return;
        }
        for unit in units {
            for way in ways(unit).filter(|way| way.since.is_none()) {
                let is_back = self.kernel.loss(way.portal.ip(), way.source).is_none();
                if is_back && self.lost.remove(&way.key) {
                    tracing::info!("{} {}: its link is back", way.key.0, way.key.1);
                    let _ = unit.link_up(&way.key.1);
                }
            }
        }
    }

    /// Notes the local address of each new session; forgets those that are gone.
    fn note(&mut self, units: &[Rc<MultipathDevice>]) {
        let mut sources = BTreeMap::new();
        for way in units.iter().flat_map(|unit| ways(unit)) {
            let Some(since) = way.since else { continue };
            self.lost.remove(&way.key);
            let known = self
                .sources
                .get(&way.key)
                .filter(|(before, _)| *before == since);
            let source = match known {
                Some((_, source)) => *source,
                None => way.source.or_else(|| {
                    let route = self.kernel.route(way.portal.ip(), None);
                    route.ok().and_then(|route| route.source)
                }),
            };
            sources.insert(way.key, (since, source));
        }
        self.sources = sources;
    }
}

/// A path.
struct Way {
    /// Device and portal, as people name them.
    key: (String, String),
    portal: SocketAddr,
    /// The configured local address.
    source: Option<IpAddr>,
    /// Since when its session stands, if it has one.
    since: Option<Instant>,
}

fn ways(unit: &MultipathDevice) -> impl Iterator<Item = Way> {
    let name = unit.name();
    let groups = unit.snapshot().groups;
    let paths = groups.into_iter().flat_map(|group| group.paths);
    paths.filter_map(move |path| {
        Some(Way {
            since: path.session.map(|session| session.since),
            portal: path.name.portal.parse().ok()?,
            source: path.name.source.and_then(|source| source.parse().ok()),
            key: (name.clone(), path.name.portal),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loopback is there in every namespace, and nothing else is sure to be.
    #[test]
    fn the_kernel_knows_the_way_to_itself() {
        let kernel = Kernel::open().expect("rtnetlink is there");
        let own: IpAddr = [127, 0, 0, 1].into();
        let route = kernel.route(own, Some(own)).expect("a route to 127.0.0.1");
        assert!(route.leads);
        let link = kernel.link(route.link.expect("lo")).expect("lo");
        assert_eq!(link.name, "lo");
        assert_eq!(kernel.loss(own, Some(own)).is_none(), link.has_carrier);
        // TEST-NET-1 is no address of ours.
        let foreign: IpAddr = [192, 0, 2, 1].into();
        let why = kernel.loss(own, Some(foreign)).expect("no such source");
        assert_eq!(why, "no route from 192.0.2.1 to 127.0.0.1");
    }

    #[test]
    fn what_news_amount_to() {
        let link = |has_carrier| {
            Message::Link(Link {
                index: 2,
                name: "san0".to_owned(),
                is_on: true,
                has_carrier,
            })
        };
        let of = |messages: &[Message]| {
            let mut change = Change::default();
            messages.iter().for_each(|m| change.add(m));
            (change.is_loss, change.is_gain)
        };
        assert_eq!(of(&[Message::Other]), (false, false));
        assert_eq!(of(&[link(true)]), (false, true));
        assert_eq!(of(&[link(false), Message::RouteGone]), (true, false));
        assert_eq!(of(&[link(false), link(true)]), (true, true));
    }
}
