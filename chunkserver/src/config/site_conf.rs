//! What a site's `multipath.conf` says, judged: options by section, hardware, aliases, blacklists.
//!
//! Within a section the later of two equal attributes counts. A section's place among the others is the
//! business of `unit_rules`. What multipathd would ignore is a warning (the file may suit several releases
//! of it), what it would misread is an error; both name the line.

use std::sync::Arc;

use mpath::Ere;

use super::multipath_conf::{self, Block, List};
use super::origin::{Origin, Problem, Setting};
use super::raw::{Entry, Raw, SyntaxError};
use super::schema;
use super::section::Section;
use super::suggest::nearest;
use super::unit_rules::UnitFacts;
use super::value::{clip, Value};

/// The protocol of all our paths, as multipath names it.
const PROTOCOL: &str = "scsi:iscsi";
/// Keys that stand in antler's own file alone.
const OWN_KEYS: [&str; 5] = [
    "multipath_conf",
    "fence",
    "fence_timeout",
    "fence_fail",
    "fence_assume",
];
/// Where multipath.conf(5) takes an option beside `defaults`: in `overrides`, `device` and `multipath`.
const OF_MAPS: [&str; 25] = [
    "path_grouping_policy",
    "path_selector",
    "prio",
    "prio_args",
    "features",
    "failback",
    "rr_weight",
    "no_path_retry",
    "rr_min_io",
    "rr_min_io_rq",
    "flush_on_last_del",
    "user_friendly_names",
    "deferred_remove",
    "san_path_err_threshold",
    "san_path_err_forget_rate",
    "san_path_err_recovery_time",
    "marginal_path_double_failed_time",
    "marginal_path_err_sample_time",
    "marginal_path_err_rate_threshold",
    "marginal_path_err_recheck_gap_time",
    "delay_watch_checks",
    "delay_wait_checks",
    "skip_kpartx",
    "max_sectors_kb",
    "ghost_delay",
];
/// In `overrides` and `device`, for `multipath` knows no hardware.
const OF_HARDWARE: [&str; 19] = [
    "path_checker",
    "alias_prefix",
    "uid_attribute",
    "fast_io_fail_tmo",
    "dev_loss_tmo",
    "eh_deadline",
    "max_retries",
    "retain_attached_hw_handler",
    "detect_prio",
    "detect_checker",
    "detect_pgpolicy",
    "detect_pgpolicy_use_tpg",
    "recheck_wwid",
    "all_tg_pt",
    "purge_disconnected",
    "unpriv_sgio",
    "getuid_callout",
    "pg_timeout",
    "hardware_handler",
];

/// A judged `multipath.conf`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SiteConf {
    pub(crate) defaults: Section,
    pub(crate) overrides: Section,
    /// `overrides { protocol { type "scsi:iscsi" … } }`; the last one wins.
    pub(crate) protocols: Vec<Section>,
    pub(crate) multipaths: Vec<Named>,
    pub(crate) hardware: Vec<Hardware>,
    blacklist: Vec<Rule>,
    exceptions: Vec<Rule>,
}

/// `multipath { wwid … }`
#[derive(Debug, PartialEq)]
pub(crate) struct Named {
    pub(crate) wwid: String,
    wwid_origin: Origin,
    pub(crate) alias: Option<(String, Origin)>,
    pub(crate) options: Section,
}

/// `devices { device { … } }`
#[derive(Debug, PartialEq)]
pub(crate) struct Hardware {
    /// `vendor`, `product` and `revision`, each where given.
    conditions: Vec<(&'static str, Ere, Origin)>,
    pub(crate) options: Section,
}

impl Hardware {
    pub(crate) fn fits(&self, unit: &UnitFacts<'_>) -> bool {
        let fits = |(what, ere, _): &(&str, Ere, Origin)| {
            ere.matches(match *what {
                "vendor" => unit.vendor,
                "product" => unit.product,
                _ => unit.revision,
            })
        };
        self.conditions.iter().all(fits)
    }
}

/// A line, or a `device` section, of a blacklist.
#[derive(Debug, PartialEq)]
struct Rule {
    what: What,
    origin: Origin,
}

#[derive(Debug, PartialEq)]
enum What {
    Wwid(Pattern),
    Protocol(Pattern),
    /// Vendor and product.
    Device(Option<Pattern>, Option<Pattern>),
}

/// A pattern of a blacklist; a leading `!` turns it around.
#[derive(Debug, PartialEq)]
struct Pattern {
    ere: Ere,
    is_inverted: bool,
}

impl Pattern {
    fn new(text: &str) -> Result<Pattern, String> {
        let (text, is_inverted) = match text.strip_prefix('!') {
            Some(rest) => (rest, true),
            None => (
                text.strip_prefix('\\')
                    .filter(|t| t.starts_with('!'))
                    .unwrap_or(text),
                false,
            ),
        };
        let ere = Ere::new(text).map_err(|e| format!("{:?}: {e}", clip(text)))?;
        Ok(Pattern { ere, is_inverted })
    }

    fn matches(&self, text: &str) -> bool {
        self.ere.matches(text) != self.is_inverted
    }

    fn show(&self) -> Value {
        let mark = if self.is_inverted { "!" } else { "" };
        Value::Text(format!("{mark}{}", self.ere))
    }
}

impl Rule {
    fn names_device(&self, unit: &UnitFacts<'_>) -> bool {
        let meets = |p: &Option<Pattern>, text: &str| p.as_ref().is_none_or(|p| p.matches(text));
        matches!(&self.what, What::Device(vendor, product)
            if meets(vendor, unit.vendor) && meets(product, unit.product))
    }

    fn names_wwid(&self, wwid: &str) -> bool {
        matches!(&self.what, What::Wwid(p) if p.matches(wwid))
    }

    fn names_protocol(&self) -> bool {
        matches!(&self.what, What::Protocol(p) if p.matches(PROTOCOL))
    }
}

impl SiteConf {
    /// Why a unit is not to be used: the blacklist's line. In multipathd's order, by device, protocol and
    /// WWID, each with its exceptions.
    pub(crate) fn refusal(&self, unit: &UnitFacts<'_>) -> Option<String> {
        let (vendor, product) = (unit.vendor, unit.product);
        self.listed(|rule| rule.names_device(unit))
            .map(|at| format!("blacklisted at {at}: vendor {vendor:?}, product {product:?}"))
            .or_else(|| self.early_refusal(unit.wwid))
    }

    /// The same for what is known before a login.
    pub(crate) fn early_refusal(&self, wwid: Option<&str>) -> Option<String> {
        if let Some(at) = self.listed(Rule::names_protocol) {
            return Some(format!("blacklisted at {at}: protocol {PROTOCOL:?}"));
        }
        let wwid = wwid?;
        let at = self.listed(|rule| rule.names_wwid(wwid))?;
        Some(format!(
            "blacklisted at {at}: WWID {wwid}; blacklist_exceptions can admit it"
        ))
    }

    /// The line of the blacklist that names it, unless an exception does.
    fn listed(&self, names: impl Fn(&Rule) -> bool) -> Option<&Origin> {
        let rule = self.blacklist.iter().find(|rule| names(rule))?;
        (!self.exceptions.iter().any(names)).then_some(&rule.origin)
    }

    /// The sections of a WWID, the one that counts most first.
    pub(crate) fn named<'a>(&'a self, wwid: &'a str) -> impl Iterator<Item = &'a Named> {
        self.multipaths.iter().rev().filter(move |m| m.wwid == wwid)
    }

    /// Everything in it that waits for a unit to fit, for `antler check`.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        let mut show = |key: String, value: Value, origin: &Origin| {
            settings.push(Setting {
                key,
                value,
                origin: origin.clone(),
            });
        };
        for (name, rules) in [
            ("blacklist", &self.blacklist),
            ("blacklist_exceptions", &self.exceptions),
        ] {
            for (i, rule) in rules.iter().enumerate() {
                let mut line = |what: &str, pattern: &Pattern| {
                    show(
                        format!("multipath.{name}.{}.{what}", i + 1),
                        pattern.show(),
                        &rule.origin,
                    );
                };
                match &rule.what {
                    What::Wwid(p) => line("wwid", p),
                    What::Protocol(p) => line("protocol", p),
                    What::Device(vendor, product) => {
                        for (what, pattern) in [("vendor", vendor), ("product", product)] {
                            if let Some(pattern) = pattern {
                                line(what, pattern);
                            }
                        }
                    }
                }
            }
        }
        for hardware in &self.hardware {
            let name = &hardware.options.name;
            for (what, ere, origin) in &hardware.conditions {
                show(
                    format!("{name}.{what}"),
                    Value::Text(ere.to_string()),
                    origin,
                );
            }
            for s in hardware.options.settings(schema::MULTIPATH) {
                show(s.key, s.value, &s.origin);
            }
        }
        for named in &self.multipaths {
            let name = &named.options.name;
            show(
                format!("{name}.wwid"),
                Value::Text(named.wwid.clone()),
                &named.wwid_origin,
            );
            if let Some((alias, origin)) = &named.alias {
                show(format!("{name}.alias"), Value::Text(alias.clone()), origin);
            }
            for s in named.options.settings(schema::MULTIPATH) {
                show(s.key, s.value, &s.origin);
            }
        }
        settings
    }
}

/// What a key's section is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Defaults,
    Overrides,
    Protocol,
    Devices,
    Multipath,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Scope::Defaults => "defaults",
            Scope::Overrides => "overrides",
            Scope::Protocol => "protocol",
            Scope::Devices => "device",
            Scope::Multipath => "multipath",
        }
    }

    /// Whether multipathd takes the key there.
    fn takes(self, key: &str) -> bool {
        match self {
            Scope::Defaults => true,
            Scope::Multipath => OF_MAPS.contains(&key) || key == "reservation_key",
            Scope::Protocol => ["fast_io_fail_tmo", "dev_loss_tmo", "eh_deadline"].contains(&key),
            Scope::Overrides => {
                (OF_MAPS.contains(&key) || OF_HARDWARE.contains(&key)) && key != "hardware_handler"
            }
            Scope::Devices => OF_MAPS.contains(&key) || OF_HARDWARE.contains(&key),
        }
    }

    /// Keys beside the options.
    fn own_keys(self) -> &'static [&'static str] {
        match self {
            Scope::Protocol => &["type"],
            Scope::Devices => &[
                "vendor",
                "product",
                "revision",
                "product_blacklist",
                "vpd_vendor",
            ],
            Scope::Multipath => &["wwid", "alias"],
            Scope::Defaults | Scope::Overrides => &[],
        }
    }
}

/// A file that is being judged.
struct Reader {
    file: Arc<str>,
    conf: SiteConf,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl SiteConf {
    /// Judges a whole file: what it says, its errors, its warnings.
    pub(crate) fn read(file: &Arc<str>, text: &str) -> (SiteConf, Vec<Problem>, Vec<Problem>) {
        let (parsed, errors, warnings) = multipath_conf::parse(text);
        let mut reader = Reader {
            file: file.clone(),
            conf: SiteConf::default(),
            errors: Vec::new(),
            warnings: Vec::new(),
        };
        reader.errors = errors.into_iter().map(|e| reader.syntax(e)).collect();
        reader.warnings = warnings.into_iter().map(|w| reader.syntax(w)).collect();
        reader.conf.defaults = reader.options("multipath", Scope::Defaults, &parsed.defaults);
        reader.conf.overrides = reader.options("multipath", Scope::Overrides, &parsed.overrides);
        for block in &parsed.protocols {
            reader.protocol(block);
        }
        for block in &parsed.devices {
            reader.hardware(block);
        }
        for block in &parsed.multipaths {
            reader.multipath(block);
        }
        // After the hardware, whose product_blacklist belongs to it.
        let blacklist = reader.list("blacklist", &parsed.blacklist);
        reader.conf.blacklist.extend(blacklist);
        reader.conf.exceptions = reader.list("blacklist_exceptions", &parsed.exceptions);
        (reader.conf, reader.errors, reader.warnings)
    }
}

impl Reader {
    fn syntax(&self, error: SyntaxError) -> Problem {
        Problem {
            key: "multipath.multipath_conf".to_owned(),
            origin: self.at(error.line),
            text: error.text,
        }
    }

    fn at(&self, line: usize) -> Origin {
        Origin::Line {
            file: self.file.clone(),
            line,
        }
    }

    fn problem(&self, key: &str, line: usize, text: String) -> Problem {
        Problem {
            key: format!("multipath.{}", clip(key)),
            origin: self.at(line),
            text,
        }
    }

    fn error(&mut self, key: &str, line: usize, text: String) {
        let problem = self.problem(key, line, text);
        self.errors.push(problem);
    }

    fn warn(&mut self, key: &str, line: usize, text: String) {
        let problem = self.problem(key, line, text);
        self.warnings.push(problem);
    }

    /// The options among the entries of a section.
    fn options(&mut self, name: &str, scope: Scope, entries: &[Entry]) -> Section {
        let mut section = Section::new(name);
        // The last of equals counts, and a section keeps what it is offered first.
        for entry in entries.iter().rev() {
            let key = entry.key.as_str();
            if scope.own_keys().contains(&key) {
                continue;
            }
            let known = schema::find(schema::MULTIPATH, key).filter(|_| !OWN_KEYS.contains(&key));
            let Some(known) = known else {
                self.unknown(scope, entry);
                continue;
            };
            if !scope.takes(key) {
                let text = format!(
                    "{key} has no effect within {}: multipath.conf(5) does not take it there",
                    scope.name()
                );
                self.warn(key, entry.line, text);
                continue;
            }
            let origin = self.at(entry.line);
            if let Err(p) = section.offer(known, &entry.value, origin) {
                self.errors.push(p);
            }
        }
        self.warnings
            .extend(section.without_effect(schema::MULTIPATH));
        section
    }

    fn unknown(&mut self, scope: Scope, entry: &Entry) {
        let options = schema::MULTIPATH.iter().map(|k| k.name);
        let options = options.filter(|name| !OWN_KEYS.contains(name) && scope.takes(name));
        let known = scope.own_keys().iter().copied().chain(options);
        let hint =
            nearest(&entry.key, known).map_or(String::new(), |n| format!("; did you mean {n:?}?"));
        let text = format!("unknown option {:?} is ignored{hint}", clip(&entry.key));
        self.warn(&entry.key, entry.line, text);
    }

    fn protocol(&mut self, block: &Block) {
        let section = self.options("multipath", Scope::Protocol, &block.entries);
        match last(&block.entries, "type") {
            Some((kind, _)) if kind == PROTOCOL => self.conf.protocols.push(section),
            Some(_) => {} // for paths of another kind
            None => {
                let text = "a protocol section without a type applies to nothing".to_owned();
                self.warn("protocol", block.line, text);
            }
        }
    }

    fn hardware(&mut self, block: &Block) {
        let name = format!("multipath.devices.{}", self.conf.hardware.len() + 1);
        let options = self.options(&name, Scope::Devices, &block.entries);
        let mut conditions = Vec::new();
        for what in ["vendor", "product", "revision"] {
            if let Some((text, line)) = last(&block.entries, what) {
                match Ere::new(text) {
                    Ok(ere) => conditions.push((what, ere, self.at(line))),
                    Err(e) => self.error(what, line, format!("{what} {:?}: {e}", clip(text))),
                }
            }
        }
        if !conditions.iter().any(|(what, ..)| *what == "vendor") {
            let text = "a device section without a vendor applies to nothing".to_owned();
            return self.warn("devices", block.line, text);
        }
        if let Some((text, line)) = last(&block.entries, "product_blacklist") {
            let vendor = last(&block.entries, "vendor").map(|(vendor, _)| vendor);
            let vendor = vendor.and_then(|v| self.pattern("vendor", v, line));
            if let Some(product) = self.pattern("product_blacklist", text, line) {
                self.conf.blacklist.push(Rule {
                    what: What::Device(vendor, Some(product)),
                    origin: self.at(line),
                });
            }
        }
        self.conf.hardware.push(Hardware {
            conditions,
            options,
        });
    }

    fn multipath(&mut self, block: &Block) {
        let name = format!("multipath.multipaths.{}", self.conf.multipaths.len() + 1);
        let options = self.options(&name, Scope::Multipath, &block.entries);
        let alias = last(&block.entries, "alias").map(|(a, line)| (a.to_owned(), line));
        if let Some((alias, line)) = &alias {
            if let Err(e) = schema::syntax::name(alias) {
                self.error("alias", *line, format!("alias: {e}"));
            }
        }
        let Some((wwid, line)) = last(&block.entries, "wwid") else {
            let text = "a multipath section without a wwid applies to nothing".to_owned();
            return self.warn("multipaths", block.line, text);
        };
        if let Err(e) = schema::syntax::wwid(wwid) {
            return self.error("wwid", line, format!("wwid: {e}"));
        }
        self.conf.multipaths.push(Named {
            wwid: wwid.to_owned(),
            wwid_origin: self.at(line),
            alias: alias.map(|(alias, line)| (alias, self.at(line))),
            options,
        });
    }

    fn list(&mut self, name: &str, list: &List) -> Vec<Rule> {
        let mut rules = Vec::new();
        for entry in &list.entries {
            let (key, line) = (entry.key.as_str(), entry.line);
            let text = word(entry);
            match key {
                "wwid" => {
                    let what = self.pattern(key, text, line).map(What::Wwid);
                    rules.extend(what.map(|what| self.rule(what, line)));
                }
                "protocol" => {
                    let what = self.pattern(key, text, line).map(What::Protocol);
                    rules.extend(what.map(|what| self.rule(what, line)));
                }
                "devnode" | "property" => {
                    let text = format!(
                        "{key} in {name} has no effect here: paths have neither device nodes nor udev properties"
                    );
                    self.warn(name, line, text);
                }
                _ => {
                    let known = ["wwid", "protocol", "devnode", "property", "device"];
                    let hint = nearest(key, known)
                        .map_or(String::new(), |n| format!("; did you mean {n:?}?"));
                    let text = format!("unknown option {:?} in {name} is ignored{hint}", clip(key));
                    self.warn(name, line, text);
                }
            }
        }
        for block in &list.devices {
            let mut side = |what: &str| {
                let (text, line) = last(&block.entries, what)?;
                self.pattern(what, text, line)
            };
            let (vendor, product) = (side("vendor"), side("product"));
            for entry in &block.entries {
                if !["vendor", "product"].contains(&entry.key.as_str()) {
                    let text =
                        format!("unknown option {:?} in {name} is ignored", clip(&entry.key));
                    self.warn(name, entry.line, text);
                }
            }
            if vendor.is_some() || product.is_some() {
                rules.push(self.rule(What::Device(vendor, product), block.line));
            }
        }
        rules
    }

    fn rule(&self, what: What, line: usize) -> Rule {
        Rule {
            what,
            origin: self.at(line),
        }
    }

    fn pattern(&mut self, key: &str, text: &str, line: usize) -> Option<Pattern> {
        match Pattern::new(text) {
            Ok(pattern) => Some(pattern),
            Err(e) => {
                self.error(key, line, format!("{key} {e}"));
                None
            }
        }
    }
}

/// The last entry of that key: its word and line.
fn last<'a>(entries: &'a [Entry], key: &str) -> Option<(&'a str, usize)> {
    let entry = entries.iter().rev().find(|e| e.key == key)?;
    Some((word(entry), entry.line))
}

fn word(entry: &Entry) -> &str {
    match &entry.value {
        Raw::Word(word) => word,
        other => panic!("multipath.conf has words alone: {other:?}"),
    }
}
