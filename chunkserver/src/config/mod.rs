//! Configuration: one TOML file becomes a valid, typed [`Config`], or a list of everything wrong with it.
//!
//! Text → `raw` tree with lines → `section`s judged key by key against the `schema` → [`Config`]. Each
//! effective value keeps its origin, so that `antler check` can say where it came from. MooseFS' and
//! multipath-tools' own files may be named and are read with the meaning they have there. Unknown keys are
//! errors; all errors are reported, not only the first. No secret is ever printed.

mod address;
mod build;
mod check;
mod load;
mod memory;
mod mfs_cfg;
mod multipath;
mod multipath_conf;
mod origin;
mod raw;
mod reload;
mod schema;
mod secrets;
mod section;
mod site_conf;
mod suggest;
mod types;
mod unit_rules;
mod value;

use std::path::Path;

pub use address::HostPort;
pub use build::{Environment, Loaded};
pub use check::CheckReport;
pub use origin::{Origin, Problem, Setting};
pub use reload::{Change, Fate, Reload};
pub use secrets::{read as read_secret, Secret, SecretError};
pub use types::*;
pub use unit_rules::{Fitted, UnitFacts, UnitRules};
pub use value::{parse_size, parse_span, show_size, show_span, Value};

/// Where the configuration is when no `-c` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/antler/antler.toml";

/// Reads and judges the file. What cannot be read at all is one error in the result.
pub fn load(path: &Path, env: &Environment) -> Loaded {
    let name = path.display().to_string();
    match load::read_text(path) {
        Ok(text) => parse(&name, &text, path, env),
        Err(why) => Loaded {
            config: None,
            settings: Vec::new(),
            warnings: Vec::new(),
            errors: vec![Problem {
                key: String::new(),
                origin: Origin::File(name.as_str().into()),
                text: why,
            }],
        },
    }
}

/// Judges a text as if it stood in the file `path`.
pub fn parse(name: &str, text: &str, path: &Path, env: &Environment) -> Loaded {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let sections = load::Sections::read(name, text, dir);
    build::build(sections, path, dir, env)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_multipath;
#[cfg(test)]
mod tests_reload;
