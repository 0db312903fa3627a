//! What a device is told from outside: that a link is down, and what settings suit its unit.

mod common;

use common::{config, ms, options, Rig};
use mpath::sim::{Flavour, Link};
use mpath::{Config, Fitting, Grouping, MultipathDevice, PathReach};
use std::rc::Rc;
use std::time::Duration;

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

/// The login under way hangs in the network that was, and the next one would wait its turn.
#[test]
fn a_link_told_to_be_up_is_logged_in_on_at_once() {
    let rig = Rig::new();
    let path = || rig.device.snapshot().groups[0].paths[0].clone();
    let portal = path().name.portal;
    for outage in [ms(1000), Duration::from_secs(60)] {
        rig.san.set_link(0, Link::Silent);
        rig.device
            .link_down(&portal, "eth1 has no carrier")
            .unwrap();
        rig.run(outage);
        rig.san.set_link(0, Link::Up);
        rig.device.link_up(&portal).unwrap();
        rig.run(ms(20));
        assert!(
            path().is_active,
            "after {outage:?}: {:?}",
            path().last_error
        );
    }
    // Nothing is done to a session that stands, nor to a path that an operator took down.
    let logins = path().counters.logins;
    rig.device.link_up(&portal).unwrap();
    rig.run(ms(20));
    assert_eq!(path().counters.logins, logins);
    rig.device.fail_path(&portal).unwrap();
    rig.run(ms(2000));
    rig.device.link_up(&portal).unwrap();
    rig.run(ms(20));
    assert!(!path().is_active);
}

#[test]
fn a_unit_gets_the_settings_that_suit_it() {
    let together = Config {
        grouping: Grouping::Multibus,
        ..config()
    };
    let fitting = Fitting::new(move |unit| {
        assert!(!unit.vendor.is_empty());
        Ok(together.clone())
    });
    let suited = Config {
        fitting: Some(fitting),
        ..config()
    };
    let rig = Rig::with(options(Flavour::Tgt), suited.clone());
    assert_eq!(rig.device.snapshot().groups.len(), 1);
    assert_eq!(rig.device.config().fitting, suited.fitting);
    // So they do when the settings change while the unit is known.
    rig.device.reconfigure(config());
    assert_eq!(rig.device.snapshot().groups.len(), 2);
    rig.device.reconfigure(suited);
    assert_eq!(rig.device.snapshot().groups.len(), 1);
}

#[test]
fn a_refused_unit_is_not_used() {
    let rig = Rig::new();
    let why = "blacklisted at multipath.conf:7";
    let refusing = Config {
        fitting: Some(Fitting::new(move |_| Err(why.to_owned()))),
        ..config()
    };
    let rt = rig.world.rt();
    let device = MultipathDevice::new(rt.clone(), refusing, vec![rig.san.port(0)]);
    let device = Rc::new(device);
    let (opening, deadline) = (device.clone(), rt.now() + Duration::from_secs(5));
    let opened = rig
        .world
        .block_on(async move { opening.opened(deadline).await });
    let error = opened.unwrap_err();
    assert!(error.to_string().contains(why), "{error}");
    let path = device.snapshot().groups[0].paths[0].clone();
    assert_eq!(path.reach, PathReach::Misconfigured);
    assert!(device.identity().is_none());
}
