//! What a device is told from outside: that a link is down.

mod common;

use common::{ms, Rig};
use mpath::sim::Link;

/// What the host's network says of a link counts at once, where the path itself would only be silent.
#[test]
fn a_link_told_to_be_down_is_a_loud_failure() {
    let rig = Rig::new();
    let (write, read) = (rig.write(8, 3), rig.read(64));
    rig.san.set_link(0, Link::Silent);
    let path = || rig.device.snapshot().groups[0].paths[0].clone();
    let portal = path().name.portal;
    rig.device
        .link_down(&portal, "eth1 has no carrier")
        .unwrap();
    assert!(!path().is_active);
    let said = path().last_error.unwrap();
    assert_eq!(said, "connection lost: link down: eth1 has no carrier");
    for op in [write, read] {
        let (result, time) = rig.time(op);
        assert!(result.is_ok() && time <= ms(20), "{result:?} {time:?}");
    }
    assert!(rig.news().contains(&"path_failed"));
    assert!(rig.device.link_down("192.0.2.1:3260", "").is_err());
    // A path without a session has nothing to lose.
    rig.device
        .link_down(&portal, "eth1 has no carrier")
        .unwrap();
    assert_eq!(path().counters.failures, 1);
}
