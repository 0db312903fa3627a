//! What a reload takes over, and what it says of it.

use super::tests::judge;
use super::{Config, DeviceKind, Fate, Fence, Reload, VolumeState};

const SITE: &str = r#"
[chunkserver]
master_host = "m1"
labels = "A"

[[device]]
name = "sto1"
portals = ["10.3.1.1"]
target = "iqn.2024-12.tp2.b3:data-chunk1"
polling_interval = 2

[[device]]
name = "disk1"
path = "disk1.img"

[[volume]]
name = "vol1"
mirror = ["sto1", "disk1"]
"#;

const SECOND: &str = r#"
[[device]]
name = "n1"
path = "n1.img"

[[volume]]
name = "vol2"
mirror = "n1"
"#;

fn config(text: &str) -> Config {
    let loaded = judge(text);
    assert!(loaded.errors.is_empty(), "{:#?}", loaded.errors);
    loaded.config.unwrap()
}

/// From one text to another: what is said, and what is in effect.
fn reload(from: &str, to: &str) -> (String, Config) {
    let plan = Reload::plan(&config(from), config(to));
    (plan.summary(), plan.config)
}

fn edit(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?}");
    text.replace(from, to)
}

fn volumes(config: &Config) -> Vec<&str> {
    config.volumes.iter().map(|v| v.name.as_str()).collect()
}

/// Sessions that live on have registered keys, or have not.
#[test]
fn fence_by_keys_begins_and_ends_at_a_restart() {
    let with = |fence: &str| format!("{SITE}\n[multipath]\nfence = {fence:?}\n");
    let fence = |effect: &Config| match &effect.device("sto1").unwrap().kind {
        DeviceKind::Iscsi(unit) => unit.multipath.fence,
        DeviceKind::Local(_) => panic!(),
    };
    for (from, to) in [("auto", "pr"), ("pr", "reinstate")] {
        let (said, effect) = reload(&with(from), &with(to));
        assert_eq!(said, "needs restart: multipath.fence", "{from} {to}");
        assert_eq!(fence(&effect) == Fence::Pr, from == "pr");
    }
    let (said, effect) = reload(&with("auto"), &with("reinstate"));
    assert_eq!(said, "changed: multipath.fence");
    assert_eq!(fence(&effect), Fence::Reinstate);
}

#[test]
fn the_same_file_changes_nothing() {
    let (said, effect) = reload(SITE, SITE);
    assert_eq!(said, "nothing changed");
    assert_eq!(effect.settings, config(SITE).settings);
}

#[test]
fn live_keys_change_and_others_keep_their_value() {
    let to = edit(
        SITE,
        "labels = \"A\"",
        "labels = \"B\"\ncsserv_listen_port = 9522",
    );
    let to = edit(&to, "polling_interval = 2", "polling_interval = 4\nlun = 3");
    let (said, effect) = reload(SITE, &to);
    assert_eq!(
        said,
        "changed: chunkserver.labels, device.sto1.max_polling_interval, device.sto1.polling_interval; \
         needs restart: chunkserver.csserv_listen_port, device.sto1.lun"
    );
    assert_eq!(effect.chunkserver.labels, ['B']);
    assert_eq!(effect.chunkserver.listen_port, 9422);
    let DeviceKind::Iscsi(unit) = &effect.device("sto1").unwrap().kind else {
        panic!("a unit");
    };
    assert_eq!(unit.lun, 0);
    assert_eq!(unit.multipath.polling_interval.as_secs(), 4);
    // What was not taken over is said again by the next reload, and no more once it is taken back.
    let again = Reload::plan(&effect, config(&to));
    assert_eq!(
        again.summary(),
        "needs restart: chunkserver.csserv_listen_port, device.sto1.lun"
    );
    let back = edit(&to, "\ncsserv_listen_port = 9522", "");
    let back = edit(&back, "\nlun = 3", "");
    assert_eq!(
        Reload::plan(&effect, config(&back)).summary(),
        "nothing changed"
    );
}

#[test]
fn a_new_volume_is_begun_with_its_device() {
    let both = [SITE, SECOND].concat();
    let (said, effect) = reload(SITE, &both);
    assert_eq!(said, "added: device.n1, volume.vol2");
    assert_eq!(volumes(&effect), ["vol1", "vol2"]);
    assert!(effect.device("n1").is_some());
    assert_eq!(Reload::plan(&effect, config(&both)).changes, []);
}

#[test]
fn a_volume_that_is_gone_from_the_file_needs_a_restart() {
    let both = [SITE, SECOND].concat();
    let (said, effect) = reload(&both, SITE);
    assert_eq!(said, "needs restart: device.n1, volume.vol2");
    assert_eq!(volumes(&effect), ["vol1", "vol2"]);
    // Written back it is the one that is served.
    assert_eq!(Reload::plan(&effect, config(&both)).changes, []);
}

#[test]
fn the_mark_of_a_volume_is_live_and_its_mirror_is_not() {
    let both = [SITE, SECOND].concat();
    let to = edit(
        &both,
        "mirror = \"n1\"",
        "state = \"removing\"\nmirror = [\"n1\", \"n2\"]",
    );
    let to = [&to, "\n[[device]]\nname = \"n2\"\npath = \"n2.img\"\n"].concat();
    let (said, effect) = reload(&both, &to);
    assert_eq!(
        said,
        "changed: volume.vol2.state; needs restart: device.n2, volume.vol2.mirror"
    );
    let vol2 = effect.volume("vol2").unwrap();
    assert_eq!(vol2.state, VolumeState::Removing);
    assert_eq!(vol2.legs, ["n1"]);
    assert!(effect.device("n2").is_none());
}

#[test]
fn a_unit_in_use_is_not_opened_twice() {
    // Another name of the volume, of its devices, or of one of them: the old one has the unit until it ends.
    let renamed = edit(SITE, "\"vol1\"", "\"vol9\"");
    let (said, effect) = reload(SITE, &renamed);
    assert_eq!(said, "needs restart: volume.vol1, volume.vol9");
    assert_eq!(volumes(&effect), ["vol1"]);
    for (device, other) in [("\"sto1\"", "\"x1\""), ("\"disk1\"", "\"x2\"")] {
        let (said, effect) = reload(SITE, &edit(&renamed, device, other));
        assert!(said.starts_with("needs restart: device."), "{said}");
        assert_eq!(volumes(&effect), ["vol1"]);
    }
}

#[test]
fn a_device_of_another_kind_needs_a_restart() {
    let local = edit(SITE, "portals = [\"10.3.1.1\"]", "path = \"here.img\"");
    let local = edit(&local, "target = \"iqn.2024-12.tp2.b3:data-chunk1\"\n", "");
    let local = edit(&local, "polling_interval = 2\n", "");
    let plan = Reload::plan(&config(SITE), config(&local));
    assert!(plan.keys(Fate::AtRestart).any(|k| k == "device.sto1.path"));
    assert_eq!(plan.keys(Fate::Changed).count(), 0);
    assert!(matches!(
        plan.config.device("sto1").unwrap().kind,
        DeviceKind::Iscsi(_)
    ));
}

#[test]
fn an_option_without_effect_is_not_called_changed() {
    let to = edit(SITE, "labels", "workers_max = 3\nlabels");
    assert_eq!(reload(SITE, &to).0, "nothing changed");
}
