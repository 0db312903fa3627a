//! The harness against stock daemons only: what its own pieces promise, proved without the binary
//! under test.

use std::time::Duration;

use harness::command::run;
use harness::istgt::Istgt;
use harness::load::Load;
use harness::mfs::{Master, Mount, StockChunkserver};
use harness::net::Place;
use harness::scratch::Scratch;
use harness::shapes;
use harness::site::{self, Storage};
use harness::tgt::{free_ports, Tgt};

/// Whether an iSCSI login through `portal` succeeds from the chunk node, within 2 s.
fn reachable(place: &Place, portal: std::net::SocketAddrV4) -> bool {
    let mut command = place.command("iscsi-ls");
    command.arg("-s").arg(format!("iscsi://{portal}/"));
    let finished = run(&mut command, Duration::from_secs(2));
    finished.stdout.contains("Lun:1")
}

#[test]
fn storage_nodes_are_reached_over_each_link_alone() {
    let scratch = Scratch::exclusive();
    let net = site::network(&scratch, Storage::San);
    let mut nodes = site::storage_nodes(&scratch, &net);
    let here = net.place("cs");
    let seen = || -> Vec<bool> {
        [(1, 1), (1, 2), (2, 1), (2, 2)]
            .into_iter()
            .map(|(node, network)| reachable(&here, site::portal(node, network)))
            .collect()
    };
    assert_eq!(seen(), [true; 4]);
    net.cut(&site::san_link(1, 1));
    assert_eq!(
        seen(),
        [false, true, true, true],
        "a silent cut hits one path alone"
    );
    net.restore(&site::san_link(1, 1));
    net.unplug(&site::san_link(2, 2));
    assert_eq!(
        seen(),
        [true, true, true, false],
        "a loud cut hits one path alone"
    );
    net.plug(&site::san_link(2, 2));
    net.cut_node("sto2");
    assert_eq!(seen(), [true, true, false, false]);
    net.restore_node("sto2");
    assert_eq!(seen(), [true; 4]);
    nodes[0].freeze();
    assert_eq!(
        seen(),
        [false, false, true, true],
        "a frozen node does not answer"
    );
    nodes[0].thaw();
    nodes[0].kill();
    assert_eq!(seen(), [false, false, true, true]);
    nodes[0].restart();
    assert_eq!(seen(), [true; 4]);
}

#[test]
fn stock_moosefs_stores_files_of_every_shape() {
    let scratch = Scratch::exclusive();
    let net = site::network(&scratch, Storage::Local);
    let code = Some("harness-secret");
    let mut master = Master::start(&scratch, "master", net.place("mfs"), site::MASTER, code);
    let server = |name, node, address, labels| {
        StockChunkserver::start(
            &scratch,
            name,
            net.place(node),
            address,
            &master,
            labels,
            code,
        )
    };
    let mut first = server("cs1", "cs", site::CHUNK_NODE, "A");
    let _second = server("cs2", "stock", site::STOCK_NODE, "B");
    master.wait_chunkservers(2, Duration::from_secs(20));
    let mut mount = Mount::start(&scratch, "client", net.place("mfs"), &master);

    let corpus = shapes::write_every_shape(&mount);
    mount.remount();
    corpus.verify();
    corpus.verify_random_reads("two-chunks", 50);

    mount.set_goal(2, shapes::FOLDER);
    for name in ["shapes/two-chunks", "shapes/snap-cut"] {
        shapes::wait_equal_copies(&mount, name, &[site::CHUNK_NODE, site::STOCK_NODE]);
    }

    // A load goes on while its server is away: goal 2 has the other, and the mount retries.
    let load = Load::start(&mount.path().join("load"), 42);
    load.progress(3, Duration::from_secs(60));
    net.cut("mfs-cs");
    master.wait_chunkservers(1, Duration::from_secs(60));
    net.restore("mfs-cs");
    first.kill();
    first.restart();
    master.wait_chunkservers(2, Duration::from_secs(60));
    load.progress(3, Duration::from_secs(120));
    let acknowledged = load.finish();
    mount.remount();
    acknowledged.verify();
    corpus.verify();

    mount.unmount();
    master.kill();
    master.restart();
    master.wait_chunkservers(2, Duration::from_secs(30));
}

#[test]
fn loopback_targets_need_no_namespace() {
    let scratch = Scratch::shared();
    let first = Tgt::on_loopback(&scratch, "one", 2, 64 << 20);
    let second = Tgt::on_loopback(&scratch, "two", 1, 64 << 20);
    for portal in first.spec().portals.iter().chain(&second.spec().portals) {
        assert!(reachable(&Place::host(), *portal), "{portal}");
    }
    let listen = format!("127.0.0.1:{}", free_ports(1)[0]).parse().unwrap();
    let istgt = Istgt::start(&scratch, Place::host(), "disk1", &[listen], 64 << 20);
    // Not `iscsi-ls -s`: that one never ends against istgt.
    let mut command = Place::host().command("iscsi-inq");
    command.arg(format!("iscsi://{listen}/{}/0", istgt.target()));
    let inquiry = run(&mut command, Duration::from_secs(5));
    assert!(
        inquiry.stdout.contains("Product:TESTDISK"),
        "{}",
        inquiry.describe()
    );
}
