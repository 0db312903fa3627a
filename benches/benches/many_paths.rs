//! How long does `antler paths` take with 1,000 paths, half of them dead? The whole command: start,
//! question to the running `serve`, the table. Two units of a real tgt with 250 portals that answer and
//! 250 that refuse, each; beside it what `antler --version` takes, which asks nobody. Bar: 50 ms.
//!
//! Needs root for the namespace.

use benches::{sized, Bench};
use harness::antler::{binary, Antler, Device, Spec};
use harness::clock::wait_until;
use harness::net::Net;
use harness::scratch::Scratch;
use harness::tgt::{Tgt, TgtSpec, Unit};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

const TARGET: &str = "iqn.2024-12.example.test:many";
const UNIT_BYTES: u64 = 256 << 20;
const PORT: u16 = 3260;
/// Nobody listens there.
const DEAD_PORT: u16 = 3261;
const MINUTE: Duration = Duration::from_secs(60);

/// Portals of a unit that answer, and as many that do not.
fn portals(unit: u8, half: usize) -> Vec<String> {
    let of = |net: u8, port: u16| {
        (1..=half).map(move |n| SocketAddrV4::new(Ipv4Addr::new(127, net, unit, n as u8), port))
    };
    let all = of(1, PORT).chain(of(2, DEAD_PORT));
    all.map(|portal| portal.to_string()).collect()
}

/// How many paths `antler paths` shows in each state: none before `serve` can be asked.
fn states(antler: &Antler) -> (usize, usize) {
    let shown = antler.run(&["paths"]).stdout;
    let of = |state: &str| shown.lines().filter(|line| line.contains(state)).count();
    (of("- active ready"), of("- failed faulty"))
}

fn run(mut command: Command, count: u64) {
    for _ in 0..count {
        let output = command.output().expect("antler starts");
        assert!(output.status.success(), "{output:?}");
    }
}

fn main() {
    let half = sized(250, 4);
    let scratch = Scratch::exclusive();
    let mut net = Net::new(&scratch);
    net.add_node("cs");
    let mut spec = TgtSpec::single(
        "sto1",
        TARGET,
        &[SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT)],
        UNIT_BYTES,
    );
    spec.units.push(Unit {
        lun: 2,
        serial: "sto1-2".to_owned(),
        ..spec.units[0].clone()
    });
    let _tgt = Tgt::start(&scratch, net.place("cs"), spec);
    let names = [(1, "sto1", "vol1"), (2, "sto2", "vol2")];
    let spec = Spec {
        master: Ipv4Addr::LOCALHOST.to_string(),
        listen: Ipv4Addr::LOCALHOST,
        labels: String::new(),
        auth_code: None,
        devices: names
            .map(|(lun, device, _)| Device::Iscsi {
                name: device.to_owned(),
                portals: portals(lun, half),
                target: TARGET.to_owned(),
                lun: lun.into(),
            })
            .to_vec(),
        volumes: names
            .map(|(_, device, volume)| (volume.to_owned(), vec![device.to_owned()]))
            .to_vec(),
        more: String::new(),
    };
    let mut antler = Antler::install(&scratch, "antler", net.place("cs"), spec);
    antler.create_volume("vol1");
    antler.create_volume("vol2");
    antler.start();
    wait_until("half of the paths", MINUTE, || {
        states(&antler) == (2 * half, 2 * half)
    });
    let version = |count| {
        let mut command = Command::new(binary());
        command.arg("--version");
        run(command, count);
    };
    Bench::new("antler with 1,000 paths, half of them dead (bar: 50 ms)")
        .candidate("--version", 1, version)
        .candidate("paths", 1, |count| run(antler.command(&["paths"]), count))
        .candidate("paths --json", 1, |count| {
            run(antler.command(&["paths", "--json"]), count);
        })
        .run();
    antler.stop();
}
