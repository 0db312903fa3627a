//! What a reload (SIGHUP) may change while serving.
//!
//! Compares the effective values of two configurations. Labels, masters, rates, multipath timings, secrets,
//! new devices and new volumes take effect at once; anything else is named as `needs restart: KEY`.

use std::collections::BTreeMap;

use super::origin::Setting;
use super::schema::{self, Effect};
use super::types::Config;

/// One key whose value differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// As in [`Setting::key`].
    pub key: String,
    /// Whether it takes effect at once.
    pub live: bool,
}

/// The differences, in the order of keys. Secrets are compared by content.
pub fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let by_key = |settings: &[Setting]| -> BTreeMap<String, String> {
        settings
            .iter()
            .map(|s| (s.key.clone(), s.value.to_string()))
            .collect()
    };
    let (before, after) = (by_key(&old.settings), by_key(&new.settings));
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut found: Vec<Change> = keys
        .into_iter()
        .filter(|k| before.get(*k) != after.get(*k))
        .map(|k| Change {
            key: k.clone(),
            live: is_live(k, old),
        })
        .collect();
    if old.chunkserver.auth_code != new.chunkserver.auth_code
        && !found.iter().any(|c| c.key == "chunkserver.auth_code_file")
    {
        found.push(Change {
            key: "chunkserver.auth_code_file".to_owned(),
            live: true,
        });
    }
    if (&old.iscsi.chap, &old.iscsi.target_chap) != (&new.iscsi.chap, &new.iscsi.target_chap)
        && !found.iter().any(|c| c.key.contains("chap_"))
    {
        found.push(Change {
            key: "iscsi.chap_secret_file".to_owned(),
            live: true,
        });
    }
    found
}

fn is_live(key: &str, old: &Config) -> bool {
    let (section, name) = key.rsplit_once('.').unwrap_or((key, ""));
    // Of multipath.conf: a unit is judged again at its next login, and its settings at once.
    const OF_UNITS: [&str; 3] = ["blacklist", "devices", "multipaths"];
    let part = section.strip_prefix("multipath.").unwrap_or_default();
    if OF_UNITS.iter().any(|name| part.starts_with(name)) {
        return true;
    }
    // A device or volume that was not there before is taken in whole.
    if let Some(device) = section.strip_prefix("device.") {
        if old.device(device).is_none() {
            return true;
        }
    }
    if let Some(volume) = section.strip_prefix("volume.") {
        if old.volume(volume).is_none() {
            return true;
        }
    }
    let tables: &[&'static [schema::Key]] = match section.split('.').next() {
        Some("device") => &[schema::DEVICE, schema::ISCSI, schema::MULTIPATH],
        Some("volume") => &[schema::VOLUME],
        Some("chunkserver") => &[schema::CHUNKSERVER],
        Some("iscsi") => &[schema::ISCSI],
        Some("multipath") => &[schema::MULTIPATH],
        _ => &[schema::ADMIN],
    };
    tables
        .iter()
        .find_map(|keys| schema::find(keys, name))
        .is_some_and(|k| !matches!(k.effect, Effect::Start))
}
