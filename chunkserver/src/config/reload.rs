//! What a reload (SIGHUP) takes over while serving.
//!
//! Labels, masters, multipath timings, secrets, a volume's state, and devices and volumes that are new take
//! effect at once; anything else is named as `needs restart: KEY`. What was not taken over is not in the
//! configuration in effect, so that the next reload names it again.

use std::collections::{BTreeMap, BTreeSet};

use super::origin::Setting;
use super::schema::{self, Effect};
use super::types::{Chunkserver, Config, Device, DeviceKind, Fence, Iscsi, Multipath, Volume};
use super::value::Value;

/// What becomes of a key whose value differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It takes effect at once.
    Changed,
    /// A device or volume that was not there before is taken in.
    Added,
    /// It needs a restart; until then the former value holds.
    AtRestart,
}

/// One key whose value differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// As in [`Setting::key`]; of a device or volume that came or went, `device.NAME` or `volume.NAME`.
    pub key: String,
    /// What becomes of it.
    pub fate: Fate,
}

/// What a reload does.
#[derive(Debug)]
pub struct Reload {
    /// The differences, in the order of keys. Secrets are compared by content.
    pub changes: Vec<Change>,
    /// The configuration in effect from then on.
    pub config: Config,
}

impl Reload {
    /// From the configuration in effect to what is in effect once `new` was read.
    pub fn plan(old: &Config, new: Config) -> Reload {
        let plan = Plan::new(old, &new);
        let changes = plan.changes();
        let config = plan.config();
        Reload { changes, config }
    }

    /// One line for people: what changed, what was added, what needs a restart.
    pub fn summary(&self) -> String {
        let parts = [
            ("changed", Fate::Changed),
            ("added", Fate::Added),
            ("needs restart", Fate::AtRestart),
        ];
        let said: Vec<String> = parts
            .iter()
            .filter_map(|(word, fate)| {
                let keys: Vec<&str> = self.keys(*fate).collect();
                (!keys.is_empty()).then(|| format!("{word}: {}", keys.join(", ")))
            })
            .collect();
        match said.as_slice() {
            [] => "nothing changed".to_owned(),
            said => said.join("; "),
        }
    }

    /// The keys that have this fate.
    pub fn keys(&self, fate: Fate) -> impl Iterator<Item = &str> {
        let alike = self.changes.iter().filter(move |c| c.fate == fate);
        alike.map(|c| c.key.as_str())
    }
}

struct Plan<'a> {
    old: &'a Config,
    new: &'a Config,
    /// Names of volumes to begin.
    begun: BTreeSet<&'a str>,
    /// Names of devices that a volume in effect has: they stay where they are.
    held: BTreeSet<&'a str>,
    /// Names of devices that only a restart can give to their volumes.
    refused: BTreeSet<&'a str>,
}

impl<'a> Plan<'a> {
    fn new(old: &'a Config, new: &'a Config) -> Plan<'a> {
        let held: BTreeSet<&str> = old.volumes.iter().flat_map(devices_of).collect();
        // A unit has one user: a volume that was given another name, or a device of it, waits for a restart.
        let places: Vec<&Device> = held.iter().filter_map(|name| old.device(name)).collect();
        let (mut begun, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for volume in &new.volumes {
            let devices = || devices_of(volume).filter_map(|name| new.device(name));
            let is_free = |device: &Device| {
                !held.contains(device.name.as_str())
                    && !places.iter().any(|other| is_same_unit(device, other))
            };
            if old.volume(&volume.name).is_none() && devices().all(is_free) {
                begun.insert(volume.name.as_str());
            } else {
                refused.extend(devices_of(volume).filter(|name| !held.contains(name)));
            }
        }
        Plan {
            old,
            new,
            begun,
            held,
            refused,
        }
    }

    /// Every key that differs, with what becomes of it.
    fn differing(&self) -> Vec<(&'a str, Fate)> {
        let by_key = |settings: &'a [Setting]| -> BTreeMap<&'a str, String> {
            settings
                .iter()
                .map(|s| (s.key.as_str(), s.value.to_string()))
                .collect()
        };
        let (before, after) = (by_key(&self.old.settings), by_key(&self.new.settings));
        let keys: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
        keys.into_iter()
            .filter(|k| before.get(k) != after.get(k))
            .filter_map(|k| Some((k, self.fate(k)?)))
            .collect()
    }

    fn changes(&self) -> Vec<Change> {
        let mut found: Vec<Change> = Vec::new();
        for (key, fate) in self.differing() {
            let key = self.whole(key).unwrap_or(key).to_owned();
            if found.last().is_none_or(|last| last.key != key) {
                found.push(Change { key, fate });
            }
        }
        self.add_secrets(&mut found);
        found
    }

    /// Files of secrets whose contents differ.
    fn add_secrets(&self, found: &mut Vec<Change>) {
        let (old, new) = (self.old, self.new);
        let mut add = |section: &str, word: &str, differs: bool| {
            let is_named = |c: &Change| match c.key.rsplit_once('.') {
                Some((there, name)) => there == section && name.contains(word),
                None => false,
            };
            if differs && !found.iter().any(is_named) {
                found.push(Change {
                    key: format!("{section}.{word}_file"),
                    fate: Fate::Changed,
                });
            }
        };
        let code = |c: &Config| c.chunkserver.auth_code.clone();
        add("chunkserver", "auth_code", code(old) != code(new));
        let is_inherited = differ_in_chap(&old.iscsi, &new.iscsi);
        add("iscsi", "chap_secret", is_inherited);
        for name in &self.held {
            let units = (old.device(name).map(unit_of), new.device(name).map(unit_of));
            if let (Some(Some(before)), Some(Some(after))) = units {
                let differs = !is_inherited && differ_in_chap(before, after);
                add(&format!("device.{name}"), "chap_secret", differs);
            }
        }
    }

    /// The device or volume of a key that is there only before or only after.
    fn whole<'k>(&self, key: &'k str) -> Option<&'k str> {
        let (section, _) = key.rsplit_once('.')?;
        let is_in = |c: &Config| match section.split_once('.')? {
            ("device", name) => Some(c.device(name).is_some()),
            ("volume", name) => Some(c.volume(name).is_some()),
            _ => None,
        };
        (is_in(self.old)? != is_in(self.new)?).then_some(section)
    }

    /// `None` for an option without effect.
    fn fate(&self, key: &str) -> Option<Fate> {
        let (section, name) = key.rsplit_once('.').unwrap_or((key, ""));
        // Of multipath.conf: a unit is judged again at its next login, and its settings at once.
        const OF_UNITS: [&str; 3] = ["blacklist", "devices", "multipaths"];
        let part = section.strip_prefix("multipath.").unwrap_or_default();
        if OF_UNITS.iter().any(|name| part.starts_with(name)) {
            return Some(Fate::Changed);
        }
        let tables: &[&'static [schema::Key]] = match section.split_once('.') {
            Some(("device", device)) => match self.fate_of_device(device) {
                Some(fate) => return Some(fate),
                None => &[schema::DEVICE, schema::ISCSI, schema::MULTIPATH],
            },
            Some(("volume", volume)) => match self.fate_of_volume(volume) {
                Some(fate) => return Some(fate),
                None => &[schema::VOLUME],
            },
            _ => match section.split('.').next() {
                Some("chunkserver") => &[schema::CHUNKSERVER],
                Some("iscsi") => &[schema::ISCSI],
                Some("multipath") => &[schema::MULTIPATH],
                _ => &[schema::ADMIN],
            },
        };
        // Keys are registered at a login or are not, and stay so.
        if name == "fence" && self.says(key, "pr") {
            return Some(Fate::AtRestart);
        }
        let known = tables.iter().find_map(|keys| schema::find(keys, name));
        match known.map(|key| key.effect) {
            Some(Effect::Live) => Some(Fate::Changed),
            Some(Effect::Start) | None => Some(Fate::AtRestart),
            Some(Effect::Nothing(_) | Effect::Deprecated(_)) => None,
        }
    }

    /// Whether the key has that value before or after.
    fn says(&self, key: &str, value: &str) -> bool {
        let settings = self.old.settings.iter().chain(&self.new.settings);
        let mut of_key = settings.filter(|s| s.key == key);
        of_key.any(|s| s.value == Value::Text(value.to_owned()))
    }

    /// `None`: it stays, and each key has its own fate.
    fn fate_of_device(&self, name: &str) -> Option<Fate> {
        let (before, after) = (self.old.device(name), self.new.device(name));
        if self.refused.contains(name) {
            return Some(Fate::AtRestart);
        }
        match (before, after) {
            (None, _) => Some(Fate::Added),
            (Some(_), _) if !self.held.contains(name) => Some(Fate::Changed),
            (Some(before), Some(after)) if is_same_kind(before, after) => None,
            _ => Some(Fate::AtRestart),
        }
    }

    fn fate_of_volume(&self, name: &str) -> Option<Fate> {
        match (self.old.volume(name), self.new.volume(name)) {
            (Some(_), Some(_)) => None,
            _ if self.begun.contains(name) => Some(Fate::Added),
            _ => Some(Fate::AtRestart),
        }
    }

    fn config(&self) -> Config {
        let (old, new) = (self.old, self.new);
        let differing = self.differing();
        let waits = |s: &Setting| {
            let found = differing.binary_search_by_key(&s.key.as_str(), |(key, _)| key);
            found.is_ok_and(|at| differing[at].1 == Fate::AtRestart)
        };
        let later = old.settings.iter().filter(|s| waits(s));
        let now = new.settings.iter().filter(|s| !waits(s));
        Config {
            path: new.path.clone(),
            chunkserver: Chunkserver {
                master_hosts: new.chunkserver.master_hosts.clone(),
                master_timeout: new.chunkserver.master_timeout,
                bind_host: new.chunkserver.bind_host.clone(),
                labels: new.chunkserver.labels.clone(),
                auth_code: new.chunkserver.auth_code.clone(),
                ..old.chunkserver.clone()
            },
            admin: old.admin.clone(),
            iscsi: iscsi(&old.iscsi, &new.iscsi),
            multipath: multipath(&old.multipath, &new.multipath),
            devices: self.devices(),
            volumes: self.volumes(),
            settings: later.chain(now).cloned().collect(),
            warnings: new.warnings.clone(),
        }
    }

    fn devices(&self) -> Vec<Device> {
        let stays = |device: &&Device| {
            let name = device.name.as_str();
            self.held.contains(name) || self.refused.contains(name)
        };
        let stay = self.old.devices.iter().filter(stays);
        let stay = stay.map(|device| match self.new.device(&device.name) {
            Some(after) if self.held.contains(device.name.as_str()) => merged(device, after),
            _ => device.clone(),
        });
        let free = self.new.devices.iter().filter(|device| !stays(device));
        stay.chain(free.cloned()).collect()
    }

    fn volumes(&self) -> Vec<Volume> {
        let stay = self.old.volumes.iter().map(|volume| Volume {
            state: self
                .new
                .volume(&volume.name)
                .map_or(volume.state, |v| v.state),
            ..volume.clone()
        });
        let volumes = self.new.volumes.iter();
        let begun = volumes.filter(|volume| self.begun.contains(volume.name.as_str()));
        stay.chain(begun.cloned()).collect()
    }
}

fn devices_of(volume: &Volume) -> impl Iterator<Item = &str> {
    volume.legs.iter().chain(&volume.spares).map(String::as_str)
}

fn unit_of(device: &Device) -> Option<&Iscsi> {
    match &device.kind {
        DeviceKind::Iscsi(unit) => Some(&unit.iscsi),
        DeviceKind::Local(_) => None,
    }
}

fn differ_in_chap(old: &Iscsi, new: &Iscsi) -> bool {
    (&old.chap, &old.target_chap) != (&new.chap, &new.target_chap)
}

fn is_same_kind(one: &Device, other: &Device) -> bool {
    std::mem::discriminant(&one.kind) == std::mem::discriminant(&other.kind)
}

fn is_same_unit(one: &Device, other: &Device) -> bool {
    match (&one.kind, &other.kind) {
        (DeviceKind::Iscsi(one), DeviceKind::Iscsi(other)) => {
            (&one.target, one.lun) == (&other.target, other.lun)
                && one.portals.iter().any(|portal| {
                    let mut others = other.portals.iter();
                    others.any(|other| portal.address == other.address)
                })
        }
        (DeviceKind::Local(one), DeviceKind::Local(other)) => one.path == other.path,
        _ => false,
    }
}

/// A device in use: where it is stays, how it is used is new.
fn merged(old: &Device, new: &Device) -> Device {
    let mut device = old.clone();
    if let (DeviceKind::Iscsi(unit), DeviceKind::Iscsi(new)) = (&mut device.kind, &new.kind) {
        unit.iscsi = iscsi(&unit.iscsi, &new.iscsi);
        unit.multipath = multipath(&unit.multipath, &new.multipath);
        unit.rules = new.rules.clone();
    }
    device
}

fn iscsi(old: &Iscsi, new: &Iscsi) -> Iscsi {
    Iscsi {
        chap: new.chap.clone(),
        target_chap: new.target_chap.clone(),
        login_timeout: new.login_timeout,
        ..old.clone()
    }
}

fn multipath(old: &Multipath, new: &Multipath) -> Multipath {
    let fence = if (old.fence == Fence::Pr) == (new.fence == Fence::Pr) {
        new.fence
    } else {
        old.fence
    };
    Multipath {
        reservation_key: old.reservation_key,
        fence,
        ..new.clone()
    }
}
