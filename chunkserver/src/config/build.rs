//! From sections to [`Config`]: computed defaults, secrets, and everything that concerns more than one key.
//!
//! Checked here: devices have a way to be reached and volumes have devices that exist, once; CHAP is complete;
//! memory adds up; and what is allowed but probably not meant becomes a warning.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::address::HostPort;
use super::load::{texts, Sections};
use super::memory;
use super::multipath::multipath;
use super::origin::{in_order, Origin, Problem, Setting};
use super::schema::{self, Effect};
use super::secrets::{self, Secret, SecretError};
use super::section::Section;
use super::site_conf::SiteConf;
use super::suggest::nearest;
use super::types::*;
use super::unit_rules::UnitRules;
use super::value::{show_size, Value};
use raid::claim::ISIDS_MAX;

/// iSCSI's port (IANA).
const ISCSI_PORT: u16 = 3260;
/// `cache_size = "auto"` is never less.
const CACHE_BYTES_LEAST: u64 = 64 << 20;
/// Pool, windows and queues, beside the cache, when `memory_limit = "auto"`.
const MEMORY_BESIDE_CACHE_BYTES: u64 = 256 << 20;
/// Less than this beside the cache leaves no room for requests.
const MEMORY_BESIDE_CACHE_BYTES_MIN: u64 = 32 << 20;
/// RFC 7143 §9.2.1: a CHAP secret of less than 96 bits is too weak.
const CHAP_SECRET_BYTES_LEAST: usize = 12;

/// What the configuration takes from the machine it is read on.
#[derive(Debug, Clone)]
pub struct Environment {
    /// RAM or the control group's limit.
    pub memory_bytes: u64,
    /// For the default initiator name.
    pub host_name: String,
    /// `$CREDENTIALS_DIRECTORY`
    pub credentials: Option<PathBuf>,
}

impl Environment {
    /// Of this machine and process.
    pub fn here() -> Environment {
        // proc_sys_kernel(5); the same name gethostname(2) gives.
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned());
        Environment {
            memory_bytes: memory::available_bytes(),
            host_name,
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        }
    }

    fn initiator_name(&self) -> String {
        // RFC 3722: lower case, letters, digits, '-', '.', ':'.
        let host: String = self
            .host_name
            .to_ascii_lowercase()
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '.' {
                    c
                } else {
                    '-'
                }
            })
            .take(64)
            .collect();
        format!("iqn.2024-12.invalid.example:antler:{host}")
    }
}

/// Everything found: the configuration unless there are errors, and what can be shown in either case.
#[derive(Debug)]
pub struct Loaded {
    /// Present exactly if `errors` is empty.
    pub config: Option<Config>,
    /// Effective values, as far as they could be told.
    pub settings: Vec<Setting>,
    /// Warnings, in the order of the file.
    pub warnings: Vec<Problem>,
    /// Errors, in the order of the file.
    pub errors: Vec<Problem>,
}

/// Builds the configuration. `path` is the main file's name, `dir` where relative names begin.
pub(crate) fn build(mut s: Sections, path: &Path, dir: &Path, env: &Environment) -> Loaded {
    s.chunkserver.fill(schema::CHUNKSERVER, |name| {
        panic!("@{name} is not computed here")
    });
    s.admin
        .fill(schema::ADMIN, |name| panic!("@{name} is not computed here"));
    let initiator_given = s.iscsi.is_set("initiator_name");
    s.iscsi.fill(schema::ISCSI, |name| match name {
        "initiator_name" => Value::Text(env.initiator_name()),
        "chap_algorithms" => texts(&["sha3-256", "sha256", "sha1", "md5"]),
        other => panic!("@{other} is not computed here"),
    });
    let site = Arc::new(std::mem::take(&mut s.site));
    let all_units = Arc::new(s.multipath.clone());
    s.multipath = site.beneath(std::mem::take(&mut s.multipath), None);
    let mut b = Builder {
        errors: std::mem::take(&mut s.errors),
        warnings: std::mem::take(&mut s.warnings),
        settings: Vec::new(),
        dir,
        env,
        secrets: BTreeMap::new(),
        site,
        all_units,
    };
    let chunkserver = b.chunkserver(&mut s);
    let admin = b.admin(&s.admin);
    let iscsi = b.iscsi(&s.iscsi);
    let multipath = multipath(&mut s.multipath, false, &mut b.errors, &mut b.warnings);
    for (section, keys) in [
        (&s.chunkserver, schema::CHUNKSERVER),
        (&s.admin, schema::ADMIN),
        (&s.iscsi, schema::ISCSI),
        (&s.multipath, schema::MULTIPATH),
    ] {
        b.show(section, keys);
    }
    b.settings.extend(b.site.settings());
    let (site, all_units) = (b.site.clone(), b.all_units.clone());
    site.judge(&all_units, &mut b.errors, &mut b.warnings);
    let (volumes, volume_settings) = b.volumes(&s.volumes, &s.devices);
    let devices = b.devices(&s, &volumes);
    b.settings.extend(volume_settings);
    if !initiator_given
        && devices
            .iter()
            .any(|d| matches!(d.kind, DeviceKind::Iscsi(_)))
    {
        b.warnings.push(s.iscsi.problem(
            "initiator_name",
            "initiator_name is made from the host name: two hosts of one name would end each other's sessions; set it",
        ));
    }
    in_order(&mut b.errors);
    in_order(&mut b.warnings);
    let config = b.errors.is_empty().then(|| Config {
        path: path.to_owned(),
        chunkserver,
        admin,
        iscsi,
        multipath,
        devices,
        volumes,
        settings: b.settings.clone(),
        warnings: b.warnings.clone(),
    });
    Loaded {
        config,
        settings: b.settings,
        warnings: b.warnings,
        errors: b.errors,
    }
}

struct Builder<'a> {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    settings: Vec<Setting>,
    dir: &'a Path,
    env: &'a Environment,
    /// Files read so far: one shared secret file is judged and blamed once.
    secrets: BTreeMap<String, Option<Secret>>,
    /// `multipath_conf`
    site: Arc<SiteConf>,
    /// `[multipath]`, as it stands in the file.
    all_units: Arc<Section>,
}

impl Builder<'_> {
    /// Shows a section's values, and warns of those that do nothing.
    fn show(&mut self, section: &Section, keys: &'static [schema::Key]) {
        self.settings.extend(
            section
                .settings(keys)
                .into_iter()
                // What does nothing is shown only when somebody set it.
                .filter(|s| s.origin != Origin::Default || takes_effect(keys, &s.key)),
        );
        self.warnings.extend(section.without_effect(keys));
    }

    fn chunkserver(&mut self, s: &mut Sections) -> Chunkserver {
        let auth_code = self.auth_code(s);
        let section = &mut s.chunkserver;
        let (cache_bytes, memory_bytes) = self.memory(section);
        section.resolve("cache_size", Value::Size(cache_bytes));
        section.resolve("memory_limit", Value::Size(memory_bytes));
        let workers = section.some_num("workers").unwrap_or(1);
        section.resolve("workers", Value::Int(workers));
        let section = &*section;
        if workers > 1 {
            let text = "workers: this version runs one shard; more is accepted for later ones";
            self.warnings.push(section.problem("workers", text));
        }
        let port = section.num("master_port");
        let mut master_hosts = Vec::new();
        for text in section.texts("master_host") {
            match HostPort::parse(&text, port) {
                Ok(h) if master_hosts.contains(&h) => self.warnings.push(
                    section.problem("master_host", format!("master_host: {h} is listed twice")),
                ),
                Ok(h) => master_hosts.push(h),
                Err(_) => {} // the schema has refused it
            }
        }
        if master_hosts.is_empty() {
            self.errors
                .push(section.problem("master_host", "master_host: the list is empty"));
        }
        let any = |key: &str| match section.text(key) {
            "*" => None,
            host => Some(host.to_owned()),
        };
        let listen_host = any("csserv_listen_host");
        for (key, loopback) in [
            (
                "master_host",
                master_hosts.iter().any(HostPort::is_loopback),
            ),
            (
                "csserv_listen_host",
                listen_host.as_deref().is_some_and(is_loopback),
            ),
            (
                "bind_host",
                any("bind_host").as_deref().is_some_and(is_loopback),
            ),
        ] {
            if loopback {
                let text = format!(
                    "{key} is a loopback address: a stock mfsmaster refuses chunkservers that connect from 127.0.0.0/8"
                );
                self.warnings.push(section.problem(key, text));
            }
        }
        let mut labels: Vec<char> = section
            .text("labels")
            .chars()
            .filter(char::is_ascii_alphabetic)
            .map(|c| c.to_ascii_uppercase())
            .collect();
        labels.sort_unstable();
        labels.dedup();
        Chunkserver {
            master_hosts,
            master_timeout: match section.num::<u64>("master_timeout") {
                0 => None,
                // Stock's range; below it a master under load would be given up.
                s => Some(Duration::from_secs(s.max(10))),
            },
            listen_host,
            listen_port: section.num("csserv_listen_port"),
            bind_host: any("bind_host"),
            data_path: self.dir.join(section.text("data_path")),
            labels,
            auth_code,
            durability: match section.text("durability") {
                "flush" => Durability::Flush,
                "fua" => Durability::Fua,
                _ => Durability::Cache,
            },
            cache_bytes,
            memory_bytes,
            workers: usize::try_from(workers).unwrap_or(1),
            nice_level: section.num("nice_level"),
            lock_memory: section.flag("lock_memory"),
            disable_oom_killer: section.flag("disable_oom_killer"),
            file_umask: u32::from_str_radix(section.text("file_umask"), 8).unwrap_or(0o027),
        }
    }

    /// Cache and total, with "auto" resolved.
    fn memory(&mut self, section: &Section) -> (u64, u64) {
        const MIB: u64 = 1 << 20;
        // Whole MiB: the figure is shown.
        let quarter = (self.env.memory_bytes / 4 / MIB * MIB).max(CACHE_BYTES_LEAST);
        match (section.size("cache_size"), section.size("memory_limit")) {
            (None, None) => (quarter, quarter + MEMORY_BESIDE_CACHE_BYTES),
            (Some(cache), None) => (cache, cache.saturating_add(MEMORY_BESIDE_CACHE_BYTES)),
            (None, Some(total)) => {
                // The rest gets its due first, but never more than half.
                let beside = MEMORY_BESIDE_CACHE_BYTES.min(total / 2);
                (quarter.min((total - beside) / MIB * MIB), total)
            }
            (Some(cache), Some(total)) => {
                if cache.saturating_add(MEMORY_BESIDE_CACHE_BYTES_MIN) > total {
                    let text = format!(
                        "memory_limit: {} leaves no room beside cache_size {}: at least {} more is needed",
                        show_size(total),
                        show_size(cache),
                        show_size(MEMORY_BESIDE_CACHE_BYTES_MIN)
                    );
                    self.errors.push(section.problem("memory_limit", text));
                }
                (cache, total)
            }
        }
    }

    fn auth_code(&mut self, s: &Sections) -> Option<Secret> {
        let section = &s.chunkserver;
        let name = section.some_text("auth_code_file")?;
        match secrets::read(&name, self.dir, self.env.credentials.as_deref()) {
            Ok(secret) => return Some(secret),
            // The default file need not be there; a named one must.
            Err(SecretError::Missing(_)) if !section.is_set("auth_code_file") => {}
            Err(e) => {
                self.errors
                    .push(section.problem("auth_code_file", format!("auth_code_file: {e}")));
                return None;
            }
        }
        let (code, origin) = s.mfs_auth_code.as_ref()?;
        let Origin::Line { file, .. } = origin else {
            return None;
        };
        match secrets::read(file, self.dir, None) {
            Err(SecretError::Exposed(path, mode)) => {
                self.warnings.push(Problem {
                    key: "chunkserver.auth_code".to_owned(),
                    origin: origin.clone(),
                    text: format!(
                        "AUTH_CODE is not taken: {} may be read by others (mode {mode:04o}); set auth_code_file",
                        path.display()
                    ),
                });
                None
            }
            _ => {
                self.settings.push(Setting {
                    key: "chunkserver.auth_code".to_owned(),
                    value: Value::Text("(not shown)".to_owned()),
                    origin: origin.clone(),
                });
                Some(Secret::new(code.clone()))
            }
        }
    }

    fn admin(&mut self, section: &Section) -> Admin {
        let socket = self.dir.join(section.text("socket"));
        // sockaddr_un (unix(7)): 108 bytes with the final NUL.
        if section.text("socket").is_empty() || socket.as_os_str().len() > 107 {
            let text = format!(
                "socket: {:?} is empty or longer than 107 bytes",
                socket.display()
            );
            self.errors.push(section.problem("socket", text));
        }
        let http: Option<std::net::SocketAddr> = section.text("http").parse().ok();
        if let Some(address) = http.filter(|a| !a.ip().is_loopback()) {
            let text = format!(
                "http: {address} can be reached from other hosts, and nothing asks for a password"
            );
            self.warnings.push(section.problem("http", text));
        }
        Admin { socket, http }
    }

    fn iscsi(&mut self, section: &Section) -> Iscsi {
        let digest = |key: &str| match section.text(key) {
            "crc32c" => Digest::Crc32c,
            "prefer-crc32c" => Digest::PreferCrc32c,
            "prefer-none" => Digest::PreferNone,
            _ => Digest::None,
        };
        let (header_digest, data_digest) = (digest("header_digest"), digest("data_digest"));
        let chap = self.chap(section, "chap_user", "chap_secret_file");
        let target_chap = self.chap(section, "target_chap_user", "target_chap_secret_file");
        if let (None, Some(_)) = (&chap, &target_chap) {
            let text = "target_chap_user: a target proves itself only to an initiator that does: set chap_user";
            self.errors.push(section.problem("target_chap_user", text));
        }
        if let (Some(a), Some(b)) = (&chap, &target_chap) {
            // RFC 7143 §9.2.1: otherwise our own answer could be played back to us.
            if a.secret == b.secret {
                let text = "target_chap_secret_file: the target's secret must differ from ours";
                self.errors
                    .push(section.problem("target_chap_secret_file", text));
            }
        }
        let chap_algorithms: Vec<ChapAlgorithm> = section
            .texts("chap_algorithms")
            .iter()
            .map(|a| match a.as_str() {
                "md5" => ChapAlgorithm::Md5,
                "sha1" => ChapAlgorithm::Sha1,
                "sha256" => ChapAlgorithm::Sha256,
                _ => ChapAlgorithm::Sha3256,
            })
            .collect();
        if chap_algorithms.is_empty() {
            self.errors
                .push(section.problem("chap_algorithms", "chap_algorithms: the list is empty"));
        }
        Iscsi {
            initiator_name: section.text("initiator_name").to_owned(),
            header_digest,
            data_digest,
            chap,
            target_chap,
            chap_algorithms,
            login_timeout: section.always_span("login_timeout"),
        }
    }

    fn chap(&mut self, section: &Section, user_key: &str, file_key: &str) -> Option<ChapUser> {
        match (section.some_text(user_key), section.some_text(file_key)) {
            (None, None) => None,
            (Some(user), Some(file)) => {
                let secret = self.secret(section, file_key, &file)?;
                if secret.expose().len() < CHAP_SECRET_BYTES_LEAST {
                    let text = format!(
                        "{file_key}: the secret is shorter than 12 bytes; some targets refuse it"
                    );
                    self.warnings.push(section.problem(file_key, text));
                }
                Some(ChapUser { user, secret })
            }
            (Some(_), None) => {
                self.errors
                    .push(section.problem(user_key, format!("{user_key} needs {file_key}")));
                None
            }
            (None, Some(_)) => {
                self.errors
                    .push(section.problem(file_key, format!("{file_key} needs {user_key}")));
                None
            }
        }
    }

    fn secret(&mut self, section: &Section, key: &str, file: &str) -> Option<Secret> {
        if let Some(known) = self.secrets.get(file) {
            return known.clone();
        }
        let secret = match secrets::read(file, self.dir, self.env.credentials.as_deref()) {
            Ok(secret) => Some(secret),
            Err(e) => {
                self.errors
                    .push(section.problem(key, format!("{key}: {e}")));
                None
            }
        };
        self.secrets.insert(file.to_owned(), secret.clone());
        secret
    }

    /// Volumes, with every name they use checked, and their settings (shown after those of the devices).
    fn volumes(
        &mut self,
        sections: &[Section],
        devices: &[Section],
    ) -> (Vec<Volume>, Vec<Setting>) {
        let mut settings = Vec::new();
        let device_names: Vec<&str> = devices.iter().filter_map(name_of).collect();
        let mut used: BTreeMap<String, String> = BTreeMap::new();
        let mut volumes: Vec<Volume> = Vec::new();
        for section in sections {
            let mut full = section.clone();
            full.fill_optional(schema::VOLUME, "state");
            full.fill_optional(schema::VOLUME, "spares");
            let Some(name) = name_of(section).map(str::to_owned) else {
                continue;
            };
            if volumes.iter().any(|v| v.name == name) {
                self.errors.push(
                    section.problem("name", format!("a volume named {name:?} exists already")),
                );
                continue;
            }
            if section.is_given("mirror") && section.get("mirror").is_none() {
                continue;
            }
            let (legs, spares) = (section.texts("mirror"), section.texts("spares"));
            if !(1..=2).contains(&legs.len()) {
                let text = format!(
                    "volume {name:?}: mirror names one or two devices, not {}",
                    legs.len()
                );
                let key = if section.get("mirror").is_some() {
                    "mirror"
                } else {
                    "name"
                };
                self.errors.push(section.problem(key, text));
            }
            for (key, device) in legs
                .iter()
                .map(|d| ("mirror", d))
                .chain(spares.iter().map(|d| ("spares", d)))
            {
                if !device_names.contains(&device.as_str()) {
                    let hint = nearest(device, device_names.iter().copied())
                        .map_or(String::new(), |n| format!("; did you mean {n:?}?"));
                    let text =
                        format!("volume {name:?}: there is no [[device]] named {device:?}{hint}");
                    self.errors.push(section.problem(key, text));
                } else if let Some(other) = used.insert(device.clone(), name.clone()) {
                    let text = if other == name {
                        format!("volume {name:?} names device {device:?} twice")
                    } else {
                        format!("device {device:?} is used by volume {other:?} already")
                    };
                    self.errors.push(section.problem(key, text));
                }
            }
            let of_volume = |device: &&Section| {
                let mut all = legs.iter().chain(&spares);
                name_of(device).is_some_and(|name| all.any(|leg| leg == name))
            };
            let own = devices.iter().filter(of_volume);
            let paths: usize = own.map(|device| device.list("portals").len()).sum();
            if paths > ISIDS_MAX {
                let text = format!(
                    "volume {name:?} has {paths} paths; its claim has room for {ISIDS_MAX}: give its devices \
                     fewer portals"
                );
                self.errors.push(section.problem("name", text));
            }
            let state = match full.text("state") {
                "removing" => VolumeState::Removing,
                _ => VolumeState::Active,
            };
            settings.extend(full.settings(schema::VOLUME));
            volumes.push(Volume {
                name,
                legs,
                spares,
                state,
            });
        }
        for name in device_names {
            if !used.contains_key(name) {
                if let Some(section) = devices.iter().find(|d| name_of(d) == Some(name)) {
                    let text = format!("device {name:?} is used by no volume");
                    self.warnings.push(section.problem("name", text));
                }
            }
        }
        if sections.is_empty() {
            self.warnings.push(Problem {
                key: "volume".to_owned(),
                origin: Origin::Default,
                text: "there is no [[volume]]: nothing will be served".to_owned(),
            });
        }
        (volumes, settings)
    }

    fn devices(&mut self, s: &Sections, volumes: &[Volume]) -> Vec<Device> {
        let mut devices: Vec<Device> = Vec::new();
        let mut wwids: BTreeMap<String, (String, bool)> = BTreeMap::new();
        let mut places: BTreeMap<String, String> = BTreeMap::new();
        for section in &s.devices {
            let Some(name) = name_of(section).map(str::to_owned) else {
                continue;
            };
            if devices.iter().any(|d| d.name == name) {
                self.errors.push(
                    section.problem("name", format!("a device named {name:?} exists already")),
                );
                continue;
            }
            let is_local = section.is_given("path");
            let is_iscsi = section.is_given("portals") || section.is_given("target");
            if is_local && section.get("path").is_none() {
                continue;
            }
            let kind = match (is_local, is_iscsi) {
                (true, true) => {
                    let text = format!("device {name:?} has both path and portals or target: it is one or the other");
                    self.errors.push(section.problem("path", text));
                    continue;
                }
                (false, false) => {
                    let text =
                        format!("device {name:?} has neither portals and target, nor a path");
                    self.errors.push(section.problem("name", text));
                    continue;
                }
                (true, false) => self.local(section, &name, &mut places),
                (false, true) => {
                    let single = volumes
                        .iter()
                        .any(|v| v.legs.len() == 1 && v.legs[0] == name);
                    self.remote(s, section, &name, single)
                }
            };
            let mut full = section.clone();
            full.fill_optional(schema::DEVICE, "allow_duplicate_wwid");
            if matches!(kind, DeviceKind::Iscsi(_)) {
                full.fill_optional(schema::DEVICE, "lun");
            }
            let allow = full.flag("allow_duplicate_wwid");
            let wwid = section.some_text("wwid");
            if let Some(w) = &wwid {
                match wwids.insert(w.clone(), (name.clone(), allow)) {
                    Some((other, other_allows)) if !(allow && other_allows) => {
                        let text = format!(
                            "devices {other:?} and {name:?} have one wwid: they are one unit, or the units need \
                             different identities (tgt: scsi_id and scsi_sn); if that is meant, set \
                             allow_duplicate_wwid in both"
                        );
                        self.errors.push(section.problem("wwid", text));
                    }
                    _ => {}
                }
            }
            self.settings.extend(full.settings(schema::DEVICE));
            self.show(section, schema::ISCSI);
            match &kind {
                DeviceKind::Local(_) => self.show(section, schema::MULTIPATH),
                DeviceKind::Iscsi(unit) => self.show_unit(section, unit, &s.multipath),
            }
            devices.push(Device {
                name,
                kind,
                wwid,
                allow_duplicate_wwid: allow,
            });
        }
        devices
    }

    fn local(
        &mut self,
        section: &Section,
        name: &str,
        places: &mut BTreeMap<String, String>,
    ) -> DeviceKind {
        let path = self.dir.join(section.text("path"));
        for key in ["portals", "target", "lun", "wwid"] {
            if section.get(key).is_some() {
                let text = format!("{key}: device {name:?} is local, it has no {key}");
                self.errors.push(section.problem(key, text));
            }
        }
        let overridden = schema::ISCSI
            .iter()
            .chain(schema::MULTIPATH)
            .find(|k| section.get(k.name).is_some());
        if let Some(key) = overridden {
            let text = format!("{}: device {name:?} is local, it has no paths", key.name);
            self.warnings.push(section.problem(key.name, text));
        }
        // The same disk under two names would mirror it with itself.
        let place = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        if let Some(other) = places.insert(place.display().to_string(), name.to_owned()) {
            let text = format!(
                "devices {other:?} and {name:?} are one: {}",
                place.display()
            );
            self.errors.push(section.problem("path", text));
        }
        DeviceKind::Local(LocalDevice {
            path,
            size_bytes: section.size("size"),
        })
    }

    fn remote(&mut self, s: &Sections, section: &Section, name: &str, single: bool) -> DeviceKind {
        let portals = self.portals(section, name);
        if !section.is_given("target") {
            self.errors.push(
                section.problem("name", format!("device {name:?} has portals but no target")),
            );
        }
        if section.get("size").is_some() {
            self.errors.push(section.problem(
                "size",
                "size: only for a local file; a unit has the size it has",
            ));
        }
        let iscsi = self.iscsi(&section.over(&s.iscsi));
        let rules = UnitRules::new(section, &self.all_units, &self.site, single);
        let (multipath, _) = rules.early(&mut self.errors, &mut self.warnings);
        if let Some(why) = rules.early_refusal() {
            let text = format!("device {name:?} will be refused: {why}");
            self.warnings.push(section.problem("name", text));
        }
        DeviceKind::Iscsi(Box::new(IscsiDevice {
            portals,
            target: section.some_text("target").unwrap_or_default(),
            lun: section.some_num("lun").unwrap_or(0),
            iscsi,
            multipath,
            rules,
        }))
    }

    /// What a unit has beside `[multipath]`. Its no_path_retry depends on its place in a volume, so it is
    /// shown even where nobody set it.
    fn show_unit(&mut self, section: &Section, unit: &IscsiDevice, multipath: &Section) {
        self.settings.extend(unit.rules.early_alias());
        let (_, full) = unit.rules.early(&mut Vec::new(), &mut Vec::new());
        let own = full.differing(multipath);
        self.show(&own, schema::MULTIPATH);
        if own.get("no_path_retry").is_some() {
            return;
        }
        self.settings.push(Setting {
            key: format!("{}.no_path_retry", section.name),
            value: match unit.multipath.no_path_retry {
                NoPathRetry::Fail => Value::Text("fail".to_owned()),
                NoPathRetry::Queue => Value::Text("queue".to_owned()),
                NoPathRetry::Times(n) => Value::Int(i64::from(n)),
            },
            origin: multipath.origin("no_path_retry"),
        });
    }

    fn portals(&mut self, section: &Section, name: &str) -> Vec<Portal> {
        let mut portals: Vec<Portal> = Vec::new();
        for value in section.list("portals") {
            let (address, source) = match &value {
                Value::Portal { address, source } => (address, Some(source)),
                Value::Text(address) => (address, None),
                other => panic!("a portal is text or a table: {other:?}"),
            };
            let portal = HostPort::parse(address, ISCSI_PORT).and_then(|address| {
                let source = match source {
                    None => None,
                    Some(s) => Some(
                        s.parse()
                            .map_err(|_| format!("source {s:?} is no IP address"))?,
                    ),
                };
                Ok(Portal { address, source })
            });
            match portal {
                Ok(p) if portals.contains(&p) => self.errors.push(section.problem(
                    "portals",
                    format!("device {name:?} lists portal {} twice", p.address),
                )),
                Ok(p) => portals.push(p),
                Err(e) => self
                    .errors
                    .push(section.problem("portals", format!("portals: {e}"))),
            }
        }
        // What was given and is wrong has been named.
        let none_given = match section.get("portals") {
            Some(value) => *value == Value::List(Vec::new()),
            None => !section.is_given("portals"),
        };
        if none_given {
            let key = if section.get("portals").is_some() {
                "portals"
            } else {
                "target"
            };
            self.errors
                .push(section.problem(key, format!("device {name:?} has no portals")));
        }
        portals
    }
}

fn takes_effect(keys: &'static [schema::Key], setting: &str) -> bool {
    let name = setting.rsplit('.').next().unwrap_or(setting);
    schema::find(keys, name).is_none_or(|k| matches!(k.effect, Effect::Live | Effect::Start))
}

fn name_of(section: &Section) -> Option<&str> {
    match section.get("name") {
        Some(Value::Text(name)) => Some(name),
        _ => None,
    }
}

fn is_loopback(host: &str) -> bool {
    HostPort::parse(host, 1).is_ok_and(|h| h.is_loopback())
}
