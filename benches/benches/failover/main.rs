//! How long does I/O stand still when something goes? The rows of P5 on real tgt with two paths to
//! each unit, defaults, 4 KiB at depth 16, in real time: the longest stall of each fault, its median
//! over all and the worst of them, beside the promise. Parts: `leg` is one unit, `mirror` is two.
//!
//! A silent cut is a pair of blackhole routes in a namespace between initiator and portal; a loud one
//! ends the connections and refuses new ones; a back end hangs in `pread` and `pwrite`; a lost node
//! is cut off on both networks, a frozen one stopped. The machine's own lateness is in the figures:
//! run it on an idle one. The kernel's stack (open-iscsi under dm-multipath) stood still for 15.4 s
//! as usually configured and for 3.1 s at its best, measured elsewhere on the same kind of cut.
//!
//! Beside them stand two bars that need no fault of the unit: how many requests are hedged while all
//! is well, and how often a path that flaps is left and taken again in a minute.
//!
//! Needs root for the namespaces. `BENCH_ROUNDS` sets the number of faults of a row (default 30).

mod bed;
mod storage;

use bed::{Bed, Mode};
use benches::{is_chosen, is_smoke};
use harness::clock::pause;
use harness::holding_proxy::HoldingProxy;
use harness::net::{Net, Place};
use harness::scratch::Scratch;
use harness::site::{one_storage_node, portal, san_link, san_network};
use harness::slow_backend::SlowBackend;
use harness::tgt::{free_ports, Tgt, TgtSpec};
use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;
use storage::{Plan, TARGET};

const UNIT_BYTES: u64 = 256 << 20;
const SECOND: Duration = Duration::from_secs(1);

fn print(name: &str, promise_ms: u64, stalls: &[Duration]) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let median = stalls[stalls.len() / 2];
    let worst = stalls[stalls.len() - 1];
    let promise = match promise_ms {
        0 => String::new(),
        ms => ms.to_string(),
    };
    println!(
        "{name:<38} {:>6} {:>8.1} {:>8.1} {promise:>8}",
        stalls.len(),
        ms(median),
        ms(worst)
    );
}

fn node_name(node: usize) -> String {
    format!("sto{}", node + 1)
}

/// One unit: silent cuts.
fn leg_silent() {
    let scratch = Scratch::exclusive();
    let (net, portals) = one_storage_node(&scratch);
    let spec = TgtSpec::single("sto1", TARGET, &portals, UNIT_BYTES);
    let _tgt = Tgt::start(&scratch, net.place("sto1"), spec);
    let plan = Plan {
        nodes: vec![[portals[0], portals[1]]],
        data_path: scratch.sub("data"),
    };
    let bed = Bed::start(net.place("cs"), plan);
    print(
        "leg: no fault, writes",
        0,
        &bed.row(Mode::Writes, |_| {}, |_| {}),
    );
    for (what, mode, promise_ms) in [
        ("reads", Mode::Reads, 150),
        ("writes", Mode::Writes, 250),
        ("overwrites", Mode::Overwrites, 250),
    ] {
        let link = RefCell::new(String::new());
        let strike = |_| {
            *link.borrow_mut() = format!("san{}", bed.in_use(0));
            net.cut(&link.borrow());
        };
        let stalls = bed.row(mode, strike, |_| net.restore(&link.borrow()));
        print(&format!("leg: silent cut, {what}"), promise_ms, &stalls);
    }
    hedging(&bed);
    flapping(&bed, &net);
}

fn hedging(bed: &Bed) {
    let time = if is_smoke() { SECOND } else { 10 * SECOND };
    for (what, mode) in [("reads", Mode::Reads), ("writes", Mode::Writes)] {
        let (hedges, ios) = bed.hedges_of(mode, time);
        let percent = 100.0 * hedges as f64 / ios.max(1) as f64;
        println!("leg: healthy {what}: {hedges} of {ios} hedged, {percent:.3} % (bar 2 %)");
    }
}

fn flapping(bed: &Bed, net: &Net) {
    let (link, flaps) = (
        format!("san{}", bed.in_use(0)),
        if is_smoke() { 1 } else { 30 },
    );
    let switches = bed.switches_during(Mode::Writes, || {
        for _ in 0..flaps {
            net.cut(&link);
            pause(SECOND);
            net.restore(&link);
            pause(SECOND);
        }
    });
    println!("leg: a path silent 1 s in 2 s for a minute: {switches} switches (bar 2)");
}

/// Proxies to the portals of storage nodes on the host's loopback, two for each node.
fn proxies(scratch: &Scratch, nodes: usize) -> (Vec<Tgt>, Vec<[HoldingProxy; 2]>) {
    let ports = free_ports(2 * nodes);
    (0..nodes)
        .map(|node| {
            let portals =
                [0, 1].map(|n| SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports[2 * node + n]));
            let spec = TgtSpec::single(&node_name(node), TARGET, &portals, UNIT_BYTES);
            let tgt = Tgt::start(scratch, Place::host(), spec);
            (tgt, portals.map(HoldingProxy::start))
        })
        .unzip()
}

/// Loud failures of the path in use, of one unit or of a mirror's units in turn.
fn loud(part: &str, nodes: usize) {
    let scratch = Scratch::shared();
    let (_tgt, ways) = proxies(&scratch, nodes);
    let plan = Plan {
        nodes: ways
            .iter()
            .map(|way| [way[0].address(), way[1].address()])
            .collect(),
        data_path: scratch.sub("data"),
    };
    let bed = Bed::start(Place::host(), plan);
    for (what, mode) in [("reads", Mode::Reads), ("writes", Mode::Writes)] {
        let struck = RefCell::new((0, 0));
        let strike = |round| {
            let node = round % nodes;
            *struck.borrow_mut() = (node, bed.in_use(node));
            ways[node][bed.in_use(node)].fail();
        };
        let mend = |_| {
            let (node, path) = *struck.borrow();
            ways[node][path].reopen();
        };
        let stalls = bed.row(mode, strike, mend);
        print(&format!("{part}: loud, {what}"), 20, &stalls);
    }
}

/// What befalls one of a mirror's storage nodes in namespaces.
#[derive(Clone, Copy)]
enum Fault {
    SilentCut,
    Hang,
    Lost,
    Frozen,
}

/// A mirror's faults in namespaces, of each node in turn.
fn mirror() {
    let scratch = Scratch::exclusive();
    let net = san_network(&scratch);
    let backends = [0, 1].map(|node| {
        let room = scratch.sub(&format!("back-end-{}", node_name(node)));
        SlowBackend::build_in(&room, Duration::ZERO)
    });
    let tgts = [0, 1].map(|node| {
        let number = node as u8 + 1;
        let portals = [portal(number, 1), portal(number, 2)];
        let mut spec = TgtSpec::single(&node_name(node), TARGET, &portals, UNIT_BYTES);
        spec.environment = backends[node].environment();
        Tgt::start(&scratch, net.place(&node_name(node)), spec)
    });
    let plan = Plan {
        nodes: [1, 2].map(|n| [portal(n, 1), portal(n, 2)]).to_vec(),
        data_path: scratch.sub("data"),
    };
    let bed = Bed::start(net.place("cs"), plan);
    let tgts = RefCell::new(tgts);
    let links = |node: usize| [1, 2].map(|network| san_link(node as u8 + 1, network));
    let struck = RefCell::new(String::new());
    print(
        "mirror: no fault, writes",
        0,
        &bed.row(Mode::Writes, |_| {}, |_| {}),
    );
    for (name, fault, mode, promise_ms) in [
        ("silent cut, reads", Fault::SilentCut, Mode::Reads, 150),
        ("silent cut, writes", Fault::SilentCut, Mode::Writes, 250),
        (
            "silent cut, overwrites",
            Fault::SilentCut,
            Mode::Overwrites,
            250,
        ),
        ("back end hung, reads", Fault::Hang, Mode::Reads, 150),
        ("back end hung, writes", Fault::Hang, Mode::Writes, 500),
        ("node lost, reads", Fault::Lost, Mode::Reads, 500),
        ("node lost, writes", Fault::Lost, Mode::Writes, 500),
        ("node frozen, reads", Fault::Frozen, Mode::Reads, 500),
        ("node frozen, writes", Fault::Frozen, Mode::Writes, 500),
    ] {
        let strike = |round: usize| {
            let node = round % 2;
            match fault {
                Fault::SilentCut => {
                    *struck.borrow_mut() = san_link(node as u8 + 1, bed.in_use(node) as u8 + 1);
                    net.cut(&struck.borrow());
                }
                Fault::Hang => backends[node].hold_all(),
                Fault::Lost => links(node).iter().for_each(|link| net.cut(link)),
                Fault::Frozen => tgts.borrow_mut()[node].freeze(),
            }
        };
        let mend = |round: usize| {
            let node = round % 2;
            match fault {
                Fault::SilentCut => net.restore(&struck.borrow()),
                Fault::Hang => backends[node].release(),
                Fault::Lost => links(node).iter().for_each(|link| net.restore(link)),
                Fault::Frozen => tgts.borrow_mut()[node].thaw(),
            }
        };
        let stalls = bed.row(mode, strike, mend);
        print(&format!("mirror: {name}"), promise_ms, &stalls);
    }
}

fn main() {
    println!(
        "{:<38} {:>6} {:>8} {:>8} {:>8}",
        "longest stall of a fault, ms", "faults", "median", "worst", "promise"
    );
    if is_chosen("leg") {
        loud("leg", 1);
        leg_silent();
    }
    if is_chosen("mirror") {
        loud("mirror", 2);
        mirror();
    }
}
