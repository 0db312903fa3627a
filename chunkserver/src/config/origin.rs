//! Where a value came from, and what is wrong with it.

use std::fmt;
use std::sync::Arc;

use super::value::Value;

/// Where an effective value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of a file.
    Line {
        /// The file's name as given.
        file: Arc<str>,
        /// 1-based.
        line: usize,
    },
    /// A file as a whole (missing, unreadable).
    File(Arc<str>),
}

impl fmt::Display for Origin {
    /// `default`, `FILE:LINE` or `FILE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Line { file, line } => write!(f, "{file}:{line}"),
            Origin::File(file) => f.write_str(file),
        }
    }
}

/// One effective value, as `antler check` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// `section.key`; of a device or volume `device.NAME.key`.
    pub key: String,
    /// The value in effect.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// An error or a warning about the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key concerned, as in [`Setting::key`]; empty for errors of syntax.
    pub key: String,
    /// The line to look at.
    pub origin: Origin,
    /// A sentence without a full stop; it names the thing and the way out.
    pub text: String,
}

impl fmt::Display for Problem {
    /// `FILE:LINE: text`; without a line the key stands for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default if self.key.is_empty() => f.write_str(&self.text),
            Origin::Default => write!(f, "{}: {}", self.key, self.text),
            origin => write!(f, "{origin}: {}", self.text),
        }
    }
}

/// A stable order for people: by line, the files in the order they were read; and what several devices
/// share is named once.
pub(crate) fn in_order(problems: &mut Vec<Problem>) {
    problems.sort_by_key(|p| match &p.origin {
        Origin::Line { line, .. } => *line,
        Origin::File(_) => 0,
        Origin::Default => usize::MAX,
    });
    let mut seen: Vec<(Origin, String)> = Vec::new();
    problems.retain(|p| {
        let this = (p.origin.clone(), p.text.clone());
        let is_new = p.origin == Origin::Default || !seen.contains(&this);
        if is_new {
            seen.push(this);
        }
        is_new
    });
}
