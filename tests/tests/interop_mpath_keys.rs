//! `fence = "pr"` on targets that cannot do it: tgt lacks PREEMPT AND ABORT, istgt's takes away other
//! keys than the one named. Neither may pass for a fence.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use blockdev::driver::run_shard;
use blockdev::path::PathPort;
use blockdev::{BlockDevice, IoCtx, Op, Pool, Rt};
use harness::istgt::Istgt;
use harness::net::Place;
use harness::scratch::Scratch;
use harness::tgt::{free_ports, Tgt, TgtSpec};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::path::{IscsiPort, PortConfig};
use iscsi_initiator::tcp::TcpNet;
use mpath::{Config, FencePolicy, MultipathDevice};

const INITIATOR: &str = "iqn.2024-12.example.test:node1";
const UNIT_BYTES: u64 = 64 << 20;
const MINUTE: Duration = Duration::from_secs(60);

fn free_portal() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_ports(1)[0])
}

/// A device of one path, and why it cannot be opened.
async fn open(
    rt: &Rt,
    portal: SocketAddrV4,
    (target, lun): (String, u64),
    shard: u32,
) -> (Rc<MultipathDevice>, Option<String>) {
    let pool = Pool::new(64 << 20);
    let own = Initiator::new(rt.clone(), Rc::new(TcpNet), pool, INITIATOR);
    let config = PortConfig {
        portal: portal.to_string().parse().unwrap(),
        source: None,
        target,
        lun,
        role: Role::Serve,
        // Part of the ISID.
        shard,
    };
    let port = Rc::new(IscsiPort::new(own, config).unwrap()) as Rc<dyn PathPort>;
    let config = Config {
        fence: FencePolicy::Pr,
        ..Config::new("sto1", INITIATOR)
    };
    let device = Rc::new(MultipathDevice::new(rt.clone(), config, vec![port]));
    let opened = device.opened(rt.now() + MINUTE).await;
    (device, opened.err().map(|e| e.to_string()))
}

fn refusal(portal: SocketAddrV4, unit: (String, u64)) -> String {
    let error = run_shard(|rt| async move { open(&rt, portal, unit, 0).await.1 });
    error.unwrap().expect("a refusal")
}

#[test]
fn tgt_is_refused_at_the_login() {
    let (scratch, portal) = (Scratch::shared(), free_portal());
    let target = "iqn.2024-12.example.test:keys";
    let spec = TgtSpec::single("sto1", target, &[portal], UNIT_BYTES);
    let _tgt = Tgt::start(&scratch, Place::host(), spec);
    let error = refusal(portal, (target.to_owned(), 1));
    let want = "fence = \"pr\", and the unit has no PREEMPT AND ABORT (5/24/00)";
    assert!(error.contains(want), "{error}");
}

#[test]
fn istgt_is_refused_at_the_login_where_it_says_what_it_is() {
    let (scratch, portal) = (Scratch::shared(), free_portal());
    let identity = ["FreeBSD", "iSCSI DISK"];
    let istgt = Istgt::start_as(
        identity,
        &scratch,
        Place::host(),
        "disk1",
        &[portal],
        UNIT_BYTES,
    );
    let error = refusal(portal, (istgt.target(), 0));
    let want = "takes away other keys than the one named";
    assert!(error.contains(want), "{error}");
}

/// Under another name it grants PREEMPT AND ABORT and keeps the key: the answer is not believed.
#[test]
fn a_preempted_key_that_is_still_listed_is_no_fence() {
    let (scratch, portal) = (Scratch::shared(), free_portal());
    let istgt = Istgt::start(&scratch, Place::host(), "disk1", &[portal], UNIT_BYTES);
    let unit = (istgt.target(), 0);
    let error = run_shard(|rt| async move {
        let (earlier, refused) = open(&rt, portal, unit.clone(), 0).await;
        assert_eq!(refused, None);
        // Without an orderly end its key stays.
        drop(earlier);
        let (device, refused) = open(&rt, portal, unit, 1).await;
        assert_eq!(refused, None);
        device.set_role(mpath::Role::MirrorLeg);
        let fence = device.submit(Op::Fence, IoCtx::metadata()).await;
        fence.expect_err("the key is still there").to_string()
    });
    let error = error.unwrap();
    assert!(error.contains("still lists the key 0x4172"), "{error}");
}
