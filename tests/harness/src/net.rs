//! Network namespaces and links that can be cut without a trace.
//!
//! Each link between two nodes runs through a routing namespace of its own. A *silent cut* adds
//! blackhole routes both ways there: carrier and neighbours stay good, packets vanish, as when a
//! switch beyond the next one dies. Pulling a veth is the *loud* cut: carrier drops at the node.
//!
//! Addresses are /32, one per node and network, present on every interface of the node, with a
//! route per peer; so two storage nodes share a network while each of their links is cut alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;

use nix::sched::{setns, CloneFlags};

use crate::command::{must, require};
use crate::scratch::Scratch;

/// The router's address on each of its interfaces; link-local, since only neighbours use it.
const ROUTER: &str = "169.254.0.1";

/// Where a program runs: a namespace made by the test, or the host's.
#[derive(Clone, Debug)]
pub struct Place {
    namespace: Option<String>,
}

impl Place {
    /// The host's own namespace, where tests may only use 127/8.
    pub fn host() -> Self {
        Self { namespace: None }
    }

    /// `program` (by its name in `PATH`) as a command that will run here. `nsenter --net=` and not
    /// `ip netns exec`: the latter makes a mount namespace too, which hides a mount made inside.
    pub fn command(&self, program: &str) -> Command {
        self.command_path(&require(program))
    }

    /// As [`Place::command`], for a program given by its path.
    pub fn command_path(&self, program: &std::path::Path) -> Command {
        match &self.namespace {
            None => Command::new(program),
            Some(name) => {
                let mut command = Command::new(require("nsenter"));
                command
                    .arg(format!("--net=/run/netns/{name}"))
                    .arg("--")
                    .arg(program);
                command
            }
        }
    }

    /// Runs `work` on a thread that has entered this place; sockets it opens belong here for ever.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                if let Some(name) = &self.namespace {
                    let path = format!("/run/netns/{name}");
                    let file = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
                    setns(file, CloneFlags::CLONE_NEWNET)
                        .unwrap_or_else(|e| panic!("cannot enter {path}: {e}"));
                }
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// One end of a link.
#[derive(Clone, Debug)]
struct End {
    node: String,
    address: Ipv4Addr,
}

#[derive(Clone, Debug)]
struct Link {
    ends: [End; 2],
}

/// The namespaces and links of one test.
#[derive(Debug)]
pub struct Net {
    prefix: String,
    nodes: Vec<String>,
    links: BTreeMap<String, Link>,
}

/// Names of the routing namespace's interfaces, one for each end.
const ROUTER_SIDES: [&str; 2] = ["left", "right"];

impl Net {
    /// An empty network whose namespaces are named after `scratch`.
    pub fn new(scratch: &Scratch) -> Self {
        crate::command::require_root();
        Self {
            prefix: scratch.ns_prefix().to_owned(),
            nodes: Vec::new(),
            links: BTreeMap::new(),
        }
    }

    fn namespace(&self, node: &str) -> String {
        format!("{}{node}", self.prefix)
    }

    fn ip(&self, node: &str, args: &str) {
        must(
            Command::new(require("ip"))
                .args(["-n", &self.namespace(node)])
                .args(args.split_whitespace()),
        );
    }

    /// Makes a node, a namespace of its own.
    pub fn add_node(&mut self, node: &str) {
        must(Command::new(require("ip")).args(["netns", "add", &self.namespace(node)]));
        self.nodes.push(node.to_owned());
        self.ip(node, "link set lo up");
    }

    /// The place of a node.
    pub fn place(&self, node: &str) -> Place {
        assert!(
            self.nodes.iter().any(|known| known == node),
            "no node {node}"
        );
        Place {
            namespace: Some(self.namespace(node)),
        }
    }

    /// Joins two nodes by a link called `name` (≤ 15 bytes: it names the interface on both nodes)
    /// through a routing namespace of its own.
    pub fn add_link(&mut self, name: &str, a: (&str, Ipv4Addr), b: (&str, Ipv4Addr)) {
        let router = format!("r.{name}");
        self.add_node(&router);
        let place = self.place(&router);
        // Debian's kernel routes asymmetrically only without the reverse-path filter.
        must(place.command("sh").args([
            "-c",
            "echo 1 > /proc/sys/net/ipv4/ip_forward; \
             for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done",
        ]));
        let end = |(node, address): (&str, Ipv4Addr)| End {
            node: node.to_owned(),
            address,
        };
        let link = Link {
            ends: [end(a), end(b)],
        };
        for (end, side) in link.ends.iter().zip(ROUTER_SIDES) {
            must(Command::new(require("ip")).args([
                "link",
                "add",
                name,
                "netns",
                &self.namespace(&end.node),
                "type",
                "veth",
                "peer",
                "name",
                side,
                "netns",
                &self.namespace(&router),
            ]));
            self.ip(&router, &format!("addr add {ROUTER}/32 dev {side}"));
            self.ip(
                &end.node,
                &format!("addr add {}/32 dev {name}", end.address),
            );
        }
        self.links.insert(name.to_owned(), link);
        self.wire(name);
    }

    /// Brings both ends up and sets their routes; also what repairs a pulled link.
    fn wire(&self, name: &str) {
        let link = self.link(name);
        let router = format!("r.{name}");
        let [a, b] = &link.ends;
        for (end, peer, side) in [(a, b, ROUTER_SIDES[0]), (b, a, ROUTER_SIDES[1])] {
            self.ip(&router, &format!("link set {side} up"));
            self.ip(&end.node, &format!("link set {name} up"));
            // A metric leaves room for the blackhole (metric 0), which then wins.
            self.ip(
                &router,
                &format!("route replace {}/32 dev {side} metric 100", end.address),
            );
            self.ip(
                &end.node,
                &format!(
                    "route replace {}/32 via {ROUTER} dev {name} onlink src {}",
                    peer.address, end.address
                ),
            );
        }
    }

    fn link(&self, name: &str) -> &Link {
        self.links
            .get(name)
            .unwrap_or_else(|| panic!("no link {name}"))
    }

    /// Cuts a link silently, both ways.
    pub fn cut(&self, name: &str) {
        for end in &self.link(name).ends {
            self.ip(
                &format!("r.{name}"),
                &format!("route replace blackhole {}/32", end.address),
            );
        }
    }

    /// Ends a silent cut; a link that is not cut stays as it is.
    pub fn restore(&self, name: &str) {
        for end in &self.link(name).ends {
            // Fails when the link was not cut, which is fine.
            let _ = Command::new(require("ip"))
                .args(["-n", &self.namespace(&format!("r.{name}"))])
                .args(["route", "del", "blackhole", &format!("{}/32", end.address)])
                .output();
        }
    }

    /// Cuts a link loudly: both nodes lose carrier.
    pub fn unplug(&self, name: &str) {
        for side in ROUTER_SIDES {
            self.ip(&format!("r.{name}"), &format!("link set {side} down"));
        }
    }

    /// Ends a loud cut.
    pub fn plug(&self, name: &str) {
        self.wire(name);
    }

    /// Silently cuts every link of a node.
    pub fn cut_node(&self, node: &str) {
        self.links_of(node).iter().for_each(|link| self.cut(link));
    }

    /// Ends [`Net::cut_node`].
    pub fn restore_node(&self, node: &str) {
        self.links_of(node)
            .iter()
            .for_each(|link| self.restore(link));
    }

    fn links_of(&self, node: &str) -> Vec<String> {
        let ours = |link: &Link| link.ends.iter().any(|end| end.node == node);
        self.links
            .iter()
            .filter(|(_, link)| ours(link))
            .map(|(name, _)| name.clone())
            .collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for node in &self.nodes {
            // Deleting the name frees the namespace once its last process is gone; its veths go with it.
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(node)])
                .output();
        }
    }
}
