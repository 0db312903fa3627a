//! The values of one section: read from several files, judged by the schema, filled up with defaults.
//!
//! A section remembers where each value came from. Values of a `[[device]]` fall back to the section they
//! override ([`Section::get`] with a parent). Asking for a key that the schema lacks is a mistake of ours and
//! panics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::origin::{Origin, Problem, Setting};
use super::raw::Raw;
use super::schema::{self, Effect, Key};
use super::value::{Kind, Value};

/// Values by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Section {
    /// `chunkserver`, `device.sto1`.
    pub(crate) name: String,
    values: BTreeMap<&'static str, (Value, Origin)>,
    /// Keys whose value was no good, and was complained of.
    refused: BTreeSet<&'static str>,
}

impl Section {
    pub(crate) fn new(name: &str) -> Section {
        Section {
            name: name.to_owned(),
            values: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    /// Sets a key from a raw value, unless it is set already: what is read first wins.
    pub(crate) fn offer(
        &mut self,
        key: &'static Key,
        raw: &Raw,
        origin: Origin,
    ) -> Result<(), Problem> {
        match key.kind.read(raw) {
            Ok(value) => {
                self.values.entry(key.name).or_insert((value, origin));
                Ok(())
            }
            Err(text) => {
                self.refused.insert(key.name);
                let key_name = format!("{}.{}", self.name, key.name);
                Err(Problem {
                    text: format!("{key_name}: {text}"),
                    key: key_name,
                    origin,
                })
            }
        }
    }

    /// Replaces the value of a key, keeping its origin: for values computed from "auto".
    pub(crate) fn resolve(&mut self, key: &str, value: Value) {
        let slot = self.values.iter_mut().find(|(k, _)| **k == key);
        let (_, slot) = slot.unwrap_or_else(|| panic!("{}.{key} is no key", self.name));
        slot.0 = value;
    }

    /// Gives every key that is not set its default.
    pub(crate) fn fill(&mut self, keys: &'static [Key], computed: impl Fn(&str) -> Value) {
        for key in keys {
            if self.values.contains_key(key.name) || matches!(key.kind, Kind::Secret(_)) {
                continue;
            }
            let value = match key.default.strip_prefix('@') {
                Some(name) => computed(name),
                None => match key.kind.read(&Raw::Word(key.default.to_owned())) {
                    Ok(value) => value,
                    Err(e) => panic!("default of {}: {e}", key.name),
                },
            };
            self.values.insert(key.name, (value, Origin::Default));
        }
    }

    /// Gives one key its default, for sections whose other keys have none.
    pub(crate) fn fill_optional(&mut self, keys: &'static [Key], name: &str) {
        let key = schema::find(keys, name).unwrap_or_else(|| panic!("{name} is no key"));
        if !self.values.contains_key(name) {
            let default = match key.kind {
                Kind::Many(_) if key.default.is_empty() => Raw::List(Vec::new()),
                _ => Raw::Word(key.default.to_owned()),
            };
            match key.kind.read(&default) {
                Ok(value) => self.values.insert(key.name, (value, Origin::Default)),
                Err(e) => panic!("default of {name}: {e}"),
            };
        }
    }

    /// Whether the file (not a default) says something about the key.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.values
            .get(key)
            .is_some_and(|(_, o)| *o != Origin::Default)
    }

    /// Whether the key was given a value, be it a wrong one: a complaint that it is missing would mislead.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        self.values.contains_key(key) || self.refused.contains(key)
    }

    /// The key's value, if any.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).map(|(v, _)| v)
    }

    /// Where the key's value came from.
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.values
            .get(key)
            .map_or(Origin::Default, |(_, o)| o.clone())
    }

    /// Whether a value of the section stands there.
    pub(crate) fn has_line(&self, origin: &Origin) -> bool {
        self.values.values().any(|(_, own)| own == origin)
    }

    /// The same section, with the values of `parent` where it has none.
    pub(crate) fn over(&self, parent: &Section) -> Section {
        let mut both = self.clone();
        for (key, value) in &parent.values {
            both.values.entry(key).or_insert_with(|| value.clone());
        }
        both
    }

    /// What of it has another value or origin than in `base`.
    pub(crate) fn differing(&self, base: &Section) -> Section {
        let mut own = self.clone();
        own.values
            .retain(|key, value| base.values.get(key) != Some(value));
        own
    }

    /// A problem with the key, at its line.
    pub(crate) fn problem(&self, key: &str, text: impl Into<String>) -> Problem {
        Problem {
            key: format!("{}.{key}", self.name),
            origin: self.origin(key),
            text: text.into(),
        }
    }

    /// What was set and does nothing.
    pub(crate) fn without_effect(&self, keys: &'static [Key]) -> Vec<Problem> {
        let mut found = Vec::new();
        for (name, (_, origin)) in &self.values {
            if *origin == Origin::Default {
                continue;
            }
            let text = match schema::find(keys, name).map(|k| k.effect) {
                Some(Effect::Nothing(why)) => format!("{name} has no effect here: {why}"),
                Some(Effect::Deprecated(instead)) => {
                    format!("{name} is deprecated and has no effect; use {instead}")
                }
                _ => continue,
            };
            found.push(self.problem(name, text));
        }
        found
    }

    /// All values in the order of the schema.
    pub(crate) fn settings(&self, keys: &'static [Key]) -> Vec<Setting> {
        keys.iter()
            .filter_map(|key| {
                let (value, origin) = self.values.get(key.name)?;
                Some(Setting {
                    key: format!("{}.{}", self.name, key.name),
                    value: value.clone(),
                    origin: origin.clone(),
                })
            })
            .collect()
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        match self.get(key) {
            Some(Value::Flag(b) | Value::YesNo(b)) => *b,
            Some(Value::Int(n)) => *n != 0,
            v => panic!("{}.{key} is no flag: {v:?}", self.name),
        }
    }

    pub(crate) fn int(&self, key: &str) -> i64 {
        match self.get(key) {
            Some(Value::Int(n)) => *n,
            v => panic!("{}.{key} is no number: {v:?}", self.name),
        }
    }

    /// A number in a range that the schema bounds to the type.
    pub(crate) fn num<T: TryFrom<i64>>(&self, key: &str) -> T {
        T::try_from(self.int(key)).unwrap_or_else(|_| panic!("range of {}.{key}", self.name))
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        match self.get(key) {
            Some(Value::Text(s)) => s,
            v => panic!("{}.{key} is no text: {v:?}", self.name),
        }
    }

    /// Text, or nothing where it is empty.
    pub(crate) fn some_text(&self, key: &str) -> Option<String> {
        match self.get(key) {
            Some(Value::Text(s)) if !s.is_empty() => Some(s.clone()),
            _ => None,
        }
    }

    pub(crate) fn size(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Some(Value::Size(n)) => Some(*n),
            _ => None,
        }
    }

    pub(crate) fn span(&self, key: &str) -> Option<Duration> {
        match self.get(key) {
            Some(Value::Span(d)) => Some(*d),
            _ => None,
        }
    }

    pub(crate) fn always_span(&self, key: &str) -> Duration {
        self.span(key)
            .unwrap_or_else(|| panic!("{}.{key} is no duration", self.name))
    }

    /// A number, or nothing where a word stands in its place.
    pub(crate) fn some_num<T: TryFrom<i64>>(&self, key: &str) -> Option<T> {
        match self.get(key) {
            Some(Value::Int(n)) => T::try_from(*n).ok(),
            _ => None,
        }
    }

    pub(crate) fn list(&self, key: &str) -> Vec<Value> {
        match self.get(key) {
            Some(Value::List(items)) => items.clone(),
            Some(one) => vec![one.clone()],
            None => Vec::new(),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Vec<String> {
        self.list(key)
            .into_iter()
            .filter_map(|v| match v {
                Value::Text(s) => Some(s),
                _ => None,
            })
            .collect()
    }
}
