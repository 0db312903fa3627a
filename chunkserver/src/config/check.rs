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

#[cfg(test)]
mod tests {
    use crate::config::{parse, Environment};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_in_effect_is_shown_and_no_secret() {
        let dir = std::env::temp_dir().join(format!("antler-check-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let stock = dir.join("mfschunkserver.cfg");
        std::fs::write(&stock, "LABELS = A\nAUTH_CODE = tiger\n").unwrap();
        std::fs::set_permissions(&stock, std::fs::Permissions::from_mode(0o600)).unwrap();
        let text = "[chunkserver]\nmfs_config = \"mfschunkserver.cfg\"\n\
                    [[device]]\nname = \"d1\"\npath = \"d1\"\n\
                    [[volume]]\nname = \"vol1\"\nmirror = [\"d1\"]\n";
        let loaded = parse(
            "antler.toml",
            text,
            &dir.join("antler.toml"),
            &Environment::here(),
        );
        std::fs::remove_dir_all(&dir).unwrap();
        let shown = loaded.settings_text();
        let line = |key: &str| shown.lines().find(|line| line.starts_with(key));
        let code = line("chunkserver.auth_code =").unwrap();
        assert!(code.ends_with("# mfschunkserver.cfg:2"), "{shown}");
        assert!(!shown.contains("tiger"), "{shown}");
        let spares = line("volume.vol1.spares =").unwrap();
        assert!(
            spares.contains("= []") && spares.ends_with("# default"),
            "{shown}"
        );
    }
}
