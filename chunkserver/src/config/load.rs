//! From files to sections: reads the main file and the two it may name, judges every key, and leaves the
//! cross-checks to the builder.
//!
//! Precedence, high to low: the main file, `multipath_conf` (see `unit_rules`) or `mfs_config`, defaults. Everything wrong is collected; nothing stops the reading but a file that cannot be read.

use std::path::Path;
use std::sync::Arc;

use super::mfs_cfg;
use super::origin::{Origin, Problem};
use super::raw::{self, Entry, Raw};
use super::schema::{self, Key};
use super::section::Section;
use super::site_conf::SiteConf;
use super::suggest::nearest;
use super::value::{clip, Value};

/// No site's file is larger; a bound on what is read from a file named by mistake.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What the files say, judged key by key.
#[derive(Debug, Default)]
pub(crate) struct Sections {
    pub(crate) chunkserver: Section,
    pub(crate) admin: Section,
    pub(crate) iscsi: Section,
    pub(crate) multipath: Section,
    /// Each device's own keys, with the number of its table for messages.
    pub(crate) devices: Vec<Section>,
    pub(crate) volumes: Vec<Section>,
    /// The file that `multipath_conf` names.
    pub(crate) site: SiteConf,
    /// AUTH_CODE of MooseFS' own file, and where it stands.
    pub(crate) mfs_auth_code: Option<(String, Origin)>,
    pub(crate) errors: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

/// Reads a file of bounded size as text. The error is a sentence without the file's name.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => e.to_string(),
    })?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("is larger than 16 MiB, so it is no configuration file".to_owned());
    }
    String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        format!("line {line} is not UTF-8 text")
    })
}

impl Sections {
    /// Judges the text of the main file and reads the files it names. `dir`: where relative names begin.
    pub(crate) fn read(file: &str, text: &str, dir: &Path) -> Sections {
        let mut s = Sections {
            chunkserver: Section::new("chunkserver"),
            admin: Section::new("admin"),
            iscsi: Section::new("iscsi"),
            multipath: Section::new("multipath"),
            ..Sections::default()
        };
        let file: Arc<str> = Arc::from(file);
        let (entries, errors) = raw::parse_toml(text);
        for e in errors {
            s.errors.push(Problem {
                key: String::new(),
                origin: Origin::Line {
                    file: file.clone(),
                    line: e.line,
                },
                text: e.text,
            });
        }
        for entry in &entries {
            s.top(entry, &file);
        }
        s.read_multipath_conf(dir);
        s.read_mfs_config(dir);
        s
    }

    fn error(&mut self, key: &str, origin: Origin, text: String) {
        self.errors.push(Problem {
            key: key.to_owned(),
            origin,
            text,
        });
    }

    fn warn(&mut self, key: &str, origin: Origin, text: String) {
        self.warnings.push(Problem {
            key: key.to_owned(),
            origin,
            text,
        });
    }

    /// An entry of the top level: a section or a list of them.
    fn top(&mut self, entry: &Entry, file: &Arc<str>) {
        let origin = Origin::Line {
            file: file.clone(),
            line: entry.line,
        };
        let name = entry.key.as_str();
        if let Some((name, keys)) = schema::SECTIONS.iter().find(|(n, _)| *n == name) {
            let Raw::Table(entries) = &entry.value else {
                return self.error(name, origin, format!("{name} is a section: write [{name}]"));
            };
            let mut section = Section::new(name);
            for e in entries.iter().filter(|e| !e.key.is_empty()) {
                self.assign(&mut section, &[keys], e, file, &format!("[{name}]"));
            }
            *self.section_mut(name) = section;
            return;
        }
        if schema::LISTS.contains(&name) {
            let tables: Vec<&Vec<Entry>> = match &entry.value {
                Raw::List(items) => items
                    .iter()
                    .filter_map(|i| match i {
                        Raw::Table(t) => Some(t),
                        _ => None,
                    })
                    .collect(),
                _ => Vec::new(),
            };
            if tables.is_empty() {
                return self.error(name, origin, format!("{name} is a list: write [[{name}]]"));
            }
            for table in tables {
                self.listed(name, table, file);
            }
            return;
        }
        let known = schema::SECTIONS
            .iter()
            .map(|(n, _)| *n)
            .chain(schema::LISTS.iter().copied());
        if let Raw::Table(_) | Raw::List(_) = entry.value {
            let hint =
                nearest(name, known).map_or(String::new(), |n| format!("; did you mean [{n}]?"));
            return self.error(
                name,
                origin,
                format!("unknown section [{}]{hint}", clip(name)),
            );
        }
        let home = schema::SECTIONS
            .iter()
            .find(|(_, keys)| schema::find(keys, name).is_some());
        let hint = home.map_or(String::new(), |(n, _)| format!("; it belongs in [{n}]"));
        self.error(
            name,
            origin,
            format!("unknown key {:?} outside any section{hint}", clip(name)),
        );
    }

    fn section_mut(&mut self, name: &str) -> &mut Section {
        match name {
            "chunkserver" => &mut self.chunkserver,
            "admin" => &mut self.admin,
            "iscsi" => &mut self.iscsi,
            "multipath" => &mut self.multipath,
            other => panic!("[{other}] is no section of the schema"),
        }
    }

    /// One `[[device]]` or `[[volume]]`.
    fn listed(&mut self, kind: &str, entries: &[Entry], file: &Arc<str>) {
        let given = entries
            .iter()
            .find(|e| e.key == "name")
            .and_then(|e| match &e.value {
                Raw::Text(s) => Some(clip(s)),
                _ => None,
            });
        let count = if kind == "device" {
            self.devices.len()
        } else {
            self.volumes.len()
        };
        let name = format!(
            "{kind}.{}",
            given.clone().unwrap_or_else(|| format!("#{}", count + 1))
        );
        let mut section = Section::new(&name);
        let keys: &[&'static [Key]] = match kind {
            "device" => &[schema::DEVICE, schema::ISCSI, schema::MULTIPATH],
            _ => &[schema::VOLUME],
        };
        for e in entries.iter().filter(|e| !e.key.is_empty()) {
            self.assign(&mut section, keys, e, file, &format!("[[{kind}]]"));
        }
        if given.is_none() {
            let line = entries.first().map_or(1, |e| e.line);
            let origin = Origin::Line {
                file: file.clone(),
                line,
            };
            self.error(&name, origin, format!("a [[{kind}]] needs a name"));
        }
        match kind {
            "device" => self.devices.push(section),
            _ => self.volumes.push(section),
        }
    }

    /// One `key = value` of a section.
    fn assign(
        &mut self,
        section: &mut Section,
        keys: &[&'static [Key]],
        entry: &Entry,
        file: &Arc<str>,
        title: &str,
    ) {
        let origin = Origin::Line {
            file: file.clone(),
            line: entry.line,
        };
        if let Some(key) = keys.iter().find_map(|k| schema::find(k, &entry.key)) {
            if let Err(p) = section.offer(key, &entry.value, origin) {
                self.errors.push(p);
            }
            return;
        }
        let names = keys.iter().flat_map(|k| k.iter().map(|k| k.name));
        let hint = match nearest(&entry.key, names) {
            Some(n) => format!("; did you mean {n:?}?"),
            None => schema::SECTIONS
                .iter()
                .find(|(_, keys)| schema::find(keys, &entry.key).is_some())
                .map_or(String::new(), |(n, _)| format!("; it belongs in [{n}]")),
        };
        self.error(
            &format!("{}.{}", section.name, clip(&entry.key)),
            origin,
            format!("unknown key {:?} in {title}{hint}", clip(&entry.key)),
        );
    }

    /// Text of a file named by a key, or an error at that key.
    fn named_file(&mut self, section: &str, key: &str, dir: &Path) -> Option<(Arc<str>, String)> {
        let section = self.section_mut(section);
        let name = section.some_text(key)?;
        let problem = match read_text(&dir.join(&name)) {
            Ok(text) => return Some((Arc::from(name), text)),
            Err(e) => section.problem(key, format!("{key}: {name}: {e}")),
        };
        self.errors.push(problem);
        None
    }

    fn read_mfs_config(&mut self, dir: &Path) {
        let Some((file, text)) = self.named_file("chunkserver", "mfs_config", dir) else {
            return;
        };
        let mut section = std::mem::take(&mut self.chunkserver);
        for entry in mfs_cfg::parse(&text) {
            let origin = Origin::Line {
                file: file.clone(),
                line: entry.line,
            };
            let upper = entry.key.to_ascii_uppercase();
            match entry.key.as_str() {
                "data_path" => {
                    let text = format!(
                        "{upper} is ignored: two servers must not share one; set data_path"
                    );
                    self.warn("chunkserver.data_path", origin, text);
                }
                "auth_code" => {
                    if let Raw::Word(code) = entry.value {
                        self.mfs_auth_code = Some((code, origin));
                    }
                }
                name => match schema::find(schema::CHUNKSERVER, name) {
                    // Keys of our own, and of this file itself, have no meaning there.
                    Some(key)
                        if !matches!(name, "mfs_config" | "durability" | "auth_code_file") =>
                    {
                        if let Err(p) = section.offer(key, &entry.value, origin) {
                            self.errors.push(p);
                        }
                    }
                    _ => self.warn(
                        &format!("chunkserver.{}", clip(name)),
                        origin,
                        format!("unknown option {:?} is ignored", clip(&upper)),
                    ),
                },
            }
        }
        self.chunkserver = section;
    }

    fn read_multipath_conf(&mut self, dir: &Path) {
        let Some((file, text)) = self.named_file("multipath", "multipath_conf", dir) else {
            return;
        };
        let (site, errors, warnings) = SiteConf::read(&file, &text);
        self.site = site;
        self.errors.extend(errors);
        self.warnings.extend(warnings);
    }
}

/// A list of texts as a value, for computed defaults.
pub(crate) fn texts(words: &[&str]) -> Value {
    Value::List(words.iter().map(|w| Value::Text((*w).to_owned())).collect())
}
