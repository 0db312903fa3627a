//! What of `multipath.conf` concerns one unit: its settings, its alias, and whether it may be used.
//!
//! Precedence, high to low: the device's own keys, `[multipath]`, then as multipath.conf(5) has it
//! `multipaths`, the protocol's `overrides`, `overrides`, `devices` (a later one first), `defaults`.
//! Sections that ask for a WWID, vendor or product apply once the unit has said them.

use std::sync::Arc;

use super::multipath::multipath;
use super::origin::{Problem, Setting};
use super::schema;
use super::section::Section;
use super::site_conf::{Hardware, SiteConf};
use super::types::Multipath;

/// What a unit says of itself, as far as `multipath.conf` asks.
#[derive(Debug, Clone, Copy)]
pub struct UnitFacts<'a> {
    /// VPD 83h.
    pub wwid: Option<&'a str>,
    /// INQUIRY, trimmed.
    pub vendor: &'a str,
    /// INQUIRY, trimmed.
    pub product: &'a str,
    /// INQUIRY, trimmed.
    pub revision: &'a str,
}

/// What suits a unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// Its settings.
    pub multipath: Multipath,
    /// `alias` of its `multipaths` section.
    pub alias: Option<String>,
    /// What differs from the settings that were shown before the unit was known.
    pub changed: Vec<Setting>,
}

/// The rules of one device.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitRules {
    /// The keys of its `[[device]]`.
    own: Section,
    /// `[multipath]`, as it stands in the file.
    all: Arc<Section>,
    conf: Arc<SiteConf>,
    wwid: Option<String>,
    single: bool,
}

impl UnitRules {
    /// `single`: the device is the only leg of its volume.
    pub(crate) fn new(
        own: &Section,
        all: &Arc<Section>,
        conf: &Arc<SiteConf>,
        single: bool,
    ) -> UnitRules {
        UnitRules {
            own: own.clone(),
            all: all.clone(),
            conf: conf.clone(),
            wwid: own.some_text("wwid"),
            single,
        }
    }

    /// Settings for a unit that says this of itself, or why it may not be used.
    pub fn fit(&self, unit: &UnitFacts<'_>) -> Result<Fitted, String> {
        if let Some(why) = self.conf.refusal(unit) {
            return Err(why);
        }
        let mut full = self.layered(Some(unit));
        // Judged when the file was read, as far as a section stands for itself.
        let (mut errors, mut warnings) = (Vec::new(), Vec::new());
        let settings = multipath(&mut full, self.single, &mut errors, &mut warnings);
        for problem in &errors {
            tracing::warn!("{problem}");
        }
        let mut before = self.layered(None);
        multipath(&mut before, self.single, &mut errors, &mut warnings);
        Ok(Fitted {
            multipath: settings,
            alias: self.alias(unit.wwid),
            changed: full.differing(&before).settings(schema::MULTIPATH),
        })
    }

    /// Settings before the unit is known, and the section that they were made of.
    pub(crate) fn early(
        &self,
        errors: &mut Vec<Problem>,
        warnings: &mut Vec<Problem>,
    ) -> (Multipath, Section) {
        let mut full = self.layered(None);
        let settings = multipath(&mut full, self.single, errors, warnings);
        (settings, full)
    }

    /// Why the unit will not be used, as far as that is known before it is asked.
    pub(crate) fn early_refusal(&self) -> Option<String> {
        self.conf.early_refusal(self.wwid.as_deref())
    }

    /// `alias` for the WWID that the unit says, or that is configured.
    fn alias(&self, wwid: Option<&str>) -> Option<String> {
        let wwid = wwid.or(self.wwid.as_deref())?;
        let found = self.conf.named(wwid).find_map(|m| m.alias.as_ref());
        found.map(|(alias, _)| alias.clone())
    }

    /// The alias as a setting, if the configuration alone decides it.
    pub(crate) fn early_alias(&self) -> Option<Setting> {
        let found = self.conf.named(self.wwid.as_deref()?);
        let (alias, origin) = found.filter_map(|m| m.alias.as_ref()).next()?;
        Some(Setting {
            key: format!("{}.alias", self.own.name),
            value: super::Value::Text(alias.clone()),
            origin: origin.clone(),
        })
    }

    /// Every alias that some section gives, so that no other unit is given it.
    pub fn aliases(&self) -> impl Iterator<Item = &str> {
        let aliases = self.conf.multipaths.iter().filter_map(|m| m.alias.as_ref());
        aliases.map(|(alias, _)| alias.as_str())
    }

    fn layered(&self, unit: Option<&UnitFacts<'_>>) -> Section {
        let mut full = self.own.over(&self.all);
        if let Some(wwid) = unit.and_then(|u| u.wwid).or(self.wwid.as_deref()) {
            for named in self.conf.named(wwid) {
                full = full.over(&named.options);
            }
        }
        self.conf.beneath(full, unit)
    }
}

impl SiteConf {
    /// `top` over the overrides, the hardware that fits, the defaults, and what nobody set.
    pub(crate) fn beneath(&self, top: Section, unit: Option<&UnitFacts<'_>>) -> Section {
        self.beneath_with(top, |hardware| unit.is_some_and(|u| hardware.fits(u)))
    }

    fn beneath_with(&self, top: Section, fits: impl Fn(&Hardware) -> bool) -> Section {
        let mut full = top;
        for protocol in self.protocols.iter().rev() {
            full = full.over(protocol);
        }
        full = full.over(&self.overrides);
        for hardware in self.hardware.iter().rev() {
            if fits(hardware) {
                full = full.over(&hardware.options);
            }
        }
        full = full.over(&self.defaults);
        full.fill(schema::MULTIPATH, |name| {
            panic!("@{name} is not computed here")
        });
        full
    }

    /// Judges the sections that wait for a unit, each as it would act upon a unit that no other section of
    /// its kind fits. `all`: `[multipath]`, as it stands in the file.
    pub(crate) fn judge(
        &self,
        all: &Section,
        errors: &mut Vec<Problem>,
        warnings: &mut Vec<Problem>,
    ) {
        let hardware = self.hardware.iter().map(|one| {
            let full = self.beneath_with(all.clone(), |other| std::ptr::eq(one, other));
            (&one.options, full)
        });
        let named = self.multipaths.iter().map(|one| {
            let full = self.beneath(all.over(&one.options), None);
            (&one.options, full)
        });
        for (own, mut full) in hardware.chain(named) {
            full.name.clone_from(&own.name);
            let (mut wrong, mut vain) = (Vec::new(), Vec::new());
            multipath(&mut full, false, &mut wrong, &mut vain);
            // What other sections said is judged where they stand.
            errors.extend(wrong.into_iter().filter(|p| own.has_line(&p.origin)));
            warnings.extend(vain.into_iter().filter(|p| own.has_line(&p.origin)));
        }
    }
}
