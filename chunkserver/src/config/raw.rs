//! A configuration file as a tree of raw values, each with the line it stands on.
//!
//! Owns the step from text to tree, nothing of what the keys mean: [`Tree::parse`] reads TOML 1.0 and keeps,
//! for every key and value, the 1-based line where it begins, so that every later message can name
//! `FILE:LINE`. The readers of MooseFS' and multipath-tools' own files make the same [`Raw`] values, with
//! [`Raw::Word`] where TOML would need quotes.
//! Errors of syntax are collected, never only the first of them.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// A value as written, before any key has said what it should be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw {
    /// `true` or `false`.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// A floating point number.
    Float(f64),
    /// A quoted string.
    Text(String),
    /// An unquoted word of a file that has no types (`mfschunkserver.cfg`, `multipath.conf`).
    Word(String),
    /// `[ … ]`
    List(Vec<Raw>),
    /// `{ … }` or a `[table]`.
    Table(Vec<Entry>),
    /// Something TOML has and no key here takes (a date).
    Other(&'static str),
}

/// `key = value`, with the line of the key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// The key, unquoted.
    pub(crate) key: String,
    /// 1-based line of the key.
    pub(crate) line: usize,
    /// What it is set to.
    pub(crate) value: Raw,
}

impl Raw {
    /// What this is, for a message ("expected a number, found a string").
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Raw::Bool(_) => "a boolean",
            Raw::Int(_) => "a number",
            Raw::Float(_) => "a fraction",
            Raw::Text(_) => "a string",
            Raw::Word(_) => "a word",
            Raw::List(_) => "a list",
            Raw::Table(_) => "a table",
            Raw::Other(what) => what,
        }
    }
}

/// A syntax error: 1-based line and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// Parses TOML. The entries come in the order of their lines.
///
/// Even with errors the part that could be read is returned, so that mistakes further down are reported in
/// the same run.
pub(crate) fn parse_toml(text: &str) -> (Vec<Entry>, Vec<SyntaxError>) {
    let lines = Lines::of(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut errors: Vec<SyntaxError> = errors
        .iter()
        .map(|e| SyntaxError {
            line: lines.at(e.span().map_or(text.len(), |s| s.start)),
            text: described(e, text),
        })
        .collect();
    errors.sort_by_key(|e| e.line);
    (table(document.get_ref(), &lines), errors)
}

/// The parser's words, and the name where it leaves out which key it means.
fn described(error: &toml::de::Error, text: &str) -> String {
    let words = error.message().lines().collect::<Vec<_>>().join(", ");
    match error.span().and_then(|span| text.get(span)) {
        Some(key) if words == "duplicate key" => format!("{words} {key}"),
        _ => words,
    }
}

fn table(table: &DeTable<'_>, lines: &Lines) -> Vec<Entry> {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            line: lines.at(key.span().start),
            value: convert(value.get_ref(), &value.span(), lines),
        })
        .collect();
    entries.sort_by_key(|e| e.line);
    entries
}

fn convert(value: &DeValue<'_>, span: &Range<usize>, lines: &Lines) -> Raw {
    match value {
        DeValue::Boolean(b) => Raw::Bool(*b),
        DeValue::String(s) => Raw::Text(s.to_string()),
        DeValue::Integer(i) => match i64::from_str_radix(i.as_str(), i.radix()) {
            Ok(n) => Raw::Int(n),
            Err(_) => Raw::Other("a number beyond 64 bits"),
        },
        DeValue::Float(f) => match f.as_str().parse::<f64>() {
            Ok(n) => Raw::Float(n),
            Err(_) => Raw::Other("a malformed fraction"),
        },
        DeValue::Array(items) => Raw::List(
            items
                .iter()
                .map(|i| convert(i.get_ref(), &i.span(), lines))
                .collect(),
        ),
        DeValue::Table(t) => {
            let mut entries = table(t, lines);
            // `[[device]]` has no key of its own; an empty one still needs a line to be blamed on.
            if entries.is_empty() {
                entries.push(Entry {
                    key: String::new(),
                    line: lines.at(span.start),
                    value: Raw::Table(Vec::new()),
                });
            }
            Raw::Table(entries)
        }
        DeValue::Datetime(_) => Raw::Other("a date"),
    }
}

/// Byte offsets of line starts, for turning spans into line numbers.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Lines {
        let ends = text
            .bytes()
            .enumerate()
            .filter(|(_, b)| *b == b'\n')
            .map(|(i, _)| i + 1);
        Lines(std::iter::once(0).chain(ends).collect())
    }

    /// 1-based line of a byte offset.
    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_keys_and_errors() {
        let (entries, errors) =
            parse_toml("\n[a]\nb = 1\nc = [\n 1,\n \"x\" ]\n[[d]]\ne = {f = true}\n");
        assert!(errors.is_empty(), "{errors:?}");
        let Raw::Table(a) = &entries[0].value else {
            panic!("{entries:?}")
        };
        assert_eq!(
            (a[0].key.as_str(), a[0].line, &a[0].value),
            ("b", 3, &Raw::Int(1))
        );
        assert_eq!(a[1].line, 4);
        let Raw::List(d) = &entries[1].value else {
            panic!("{entries:?}")
        };
        let Raw::Table(d) = &d[0] else {
            panic!("{d:?}")
        };
        assert_eq!((d[0].key.as_str(), d[0].line), ("e", 8));

        let (_, errors) = parse_toml("[d]\nname = 1\nname = 2\n[d]\n");
        let told: Vec<_> = errors.iter().map(|e| (e.line, e.text.as_str())).collect();
        assert_eq!(told, [(3, "duplicate key name"), (4, "duplicate key d")]);
        let (_, errors) = parse_toml("a = 1\nb = \n[c\n");
        assert_eq!(
            errors.iter().map(|e| e.line).collect::<Vec<_>>(),
            [2, 3],
            "{errors:?}"
        );
    }

    #[test]
    fn truncated_text_is_an_error_on_its_last_line() {
        let (_, errors) = parse_toml("[chunkserver]\nmaster_host = \"mfs");
        assert_eq!(errors[0].line, 2, "{errors:?}");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC*[\\[\\]={}\"'\n#.,a-z0-9]{0,80}") {
            let _ = parse_toml(&text);
        }
    }
}
