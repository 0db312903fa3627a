//! What `antler check` says.
//!
//! Text: `section.key = value   # origin` a line; warnings and errors go to standard error as
//! `FILE:LINE: …`. JSON: one object with settings, warnings and, when there are any, errors.

use std::fmt::Write as _;

use serde::Serialize;

use super::build::Loaded;
use super::origin::{Problem, Setting};

/// The object of `antler check --json`.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// Whether `serve` would start with it.
    pub ok: bool,
    /// Every effective value.
    pub settings: Vec<SettingJson>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<ProblemJson>,
    /// What must be corrected.
    pub errors: Vec<ProblemJson>,
}

/// A setting in JSON.
#[derive(Debug, Serialize)]
pub struct SettingJson {
    /// `section.key`
    pub key: String,
    /// Numbers and booleans as such; durations and sizes as in the file.
    pub value: serde_json::Value,
    /// `default` or `FILE:LINE`.
    pub origin: String,
}

/// An error or warning in JSON.
#[derive(Debug, Serialize)]
pub struct ProblemJson {
    /// `section.key`, or empty.
    pub key: String,
    /// `default`, `FILE:LINE` or `FILE`.
    pub origin: String,
    /// A sentence.
    pub text: String,
}

impl From<&Problem> for ProblemJson {
    fn from(p: &Problem) -> ProblemJson {
        ProblemJson {
            key: p.key.clone(),
            origin: p.origin.to_string(),
            text: p.text.clone(),
        }
    }
}

impl Loaded {
    /// The report for `--json`.
    pub fn report(&self) -> CheckReport {
        CheckReport {
            ok: self.errors.is_empty(),
            settings: self
                .settings
                .iter()
                .map(|s| SettingJson {
                    key: s.key.clone(),
                    value: s.value.to_json(),
                    origin: s.origin.to_string(),
                })
                .collect(),
            warnings: self.warnings.iter().map(ProblemJson::from).collect(),
            errors: self.errors.iter().map(ProblemJson::from).collect(),
        }
    }

    /// The settings as text, one a line, origins aligned where lines are of usual length.
    pub fn settings_text(&self) -> String {
        /// Longer lines do not push the origins of the others to the right.
        const COLUMN_MAX: usize = 72;
        let lines: Vec<(String, &Setting)> = self
            .settings
            .iter()
            .map(|s| (format!("{} = {}", s.key, s.value), s))
            .collect();
        let width = lines
            .iter()
            .map(|(l, _)| l.chars().count())
            .filter(|w| *w <= COLUMN_MAX)
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for (line, setting) in lines {
            let _ = writeln!(text, "{line:<width$}   # {}", setting.origin);
        }
        text
    }
}
