//! `multipath.conf`, read so that a site's file can be carried over.
//!
//! Syntax (multipath.conf(5)): `section {`, one `attribute value` a line, `}`; `#` and `!` begin a comment
//! outside quotes; `""` inside quotes is one quote. Of its sections `defaults`, `overrides` and `multipaths`
//! set options (in this order of rising precedence); the others select devices and hardware, which is what
//! `[[device]]` does here.

use super::raw::{Entry, Raw, SyntaxError};

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct MultipathConf {
    /// `defaults`
    pub(crate) defaults: Vec<Entry>,
    /// `overrides`
    pub(crate) overrides: Vec<Entry>,
    /// `multipaths { multipath { … } }`, one list each.
    pub(crate) multipaths: Vec<Vec<Entry>>,
    /// Sections that are not applied: name and line.
    pub(crate) skipped: Vec<(String, usize)>,
}

/// Parses the text; errors are collected.
pub(crate) fn parse(text: &str) -> (MultipathConf, Vec<SyntaxError>) {
    let mut conf = MultipathConf::default();
    let mut errors = Vec::new();
    // Names of the sections we are in, outermost first, with the lines where they were opened.
    let mut open: Vec<(String, usize)> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line_number = i + 1;
        let mut error = |text: String| {
            errors.push(SyntaxError {
                line: line_number,
                text,
            })
        };
        let words = match words(line) {
            Ok(words) => words,
            Err(text) => {
                error(text.to_owned());
                continue;
            }
        };
        let names: Vec<&str> = words.iter().map(String::as_str).collect();
        match names.as_slice() {
            [] => {}
            ["}"] => {
                if open.pop().is_none() {
                    error("\"}\" closes no section".to_owned());
                }
            }
            [name, "{"] => {
                match (open.len(), *name) {
                    (0, "defaults" | "overrides" | "multipaths") => {}
                    (0, "blacklist" | "blacklist_exceptions" | "devices") => {
                        conf.skipped.push(((*name).to_owned(), line_number));
                    }
                    (0, other) => error(format!("unknown section {other:?}")),
                    (1, "multipath") if open[0].0 == "multipaths" => {
                        conf.multipaths.push(Vec::new())
                    }
                    (1, "protocol") if open[0].0 == "overrides" => {
                        conf.skipped.push(("protocol".to_owned(), line_number));
                    }
                    (1, "device") if open[0].0 != "multipaths" => {}
                    (1, "protocol") if open[0].0.starts_with("blacklist") => {}
                    (_, other) => error(format!("section {other:?} has no place here")),
                }
                open.push(((*name).to_owned(), line_number));
            }
            [name, value] => {
                let entry = Entry {
                    key: (*name).to_owned(),
                    line: line_number,
                    value: Raw::Word((*value).to_owned()),
                };
                match open
                    .iter()
                    .map(|(n, _)| n.as_str())
                    .collect::<Vec<_>>()
                    .as_slice()
                {
                    ["defaults"] => conf.defaults.push(entry),
                    ["overrides"] => conf.overrides.push(entry),
                    ["multipaths", "multipath"] => {
                        if let Some(last) = conf.multipaths.last_mut() {
                            last.push(entry);
                        }
                    }
                    [] => error(format!("{name:?} stands outside any section")),
                    ["multipaths"] => error(format!("{name:?} stands outside a multipath section")),
                    _ => {} // of a section that is not applied
                }
            }
            [one] => error(format!("{one:?} has no value")),
            [name, ..] => error(format!("{name:?} has more than one value: quote it")),
        }
    }
    for (name, line) in open {
        errors.push(SyntaxError {
            line,
            text: format!("section {name:?} is not closed"),
        });
    }
    (conf, errors)
}

/// Splits a line at blanks, honouring quotes and comments.
fn words(line: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            c if c.is_whitespace() => {
                chars.next();
            }
            '#' | '!' => break,
            '"' => {
                chars.next();
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some('"') if chars.peek() == Some(&'"') => {
                            chars.next();
                            word.push('"');
                        }
                        Some('"') => break,
                        Some(c) => word.push(c),
                        None => return Err("a quote is not closed"),
                    }
                }
                words.push(word);
            }
            _ => {
                let mut word = String::new();
                while let Some(&c) = chars.peek() {
                    if c.is_whitespace() || c == '"' || (matches!(c, '#' | '!')) {
                        break;
                    }
                    word.push(c);
                    chars.next();
                }
                words.push(word);
            }
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_precedence() {
        let (conf, errors) = parse(
            "# site\ndefaults {\n  path_grouping_policy failover # all\n  no_path_retry 100\n}\n\
             blacklist {\n devnode \"^sd[a-b]\"\n}\nmultipaths {\n multipath {\n  wwid 36001\n  \
             path_selector \"round-robin 0\"\n }\n}\n",
        );
        assert_eq!(errors, []);
        assert_eq!(conf.defaults.len(), 2);
        assert_eq!(conf.defaults[1].line, 4);
        assert_eq!(
            conf.multipaths[0][1].value,
            Raw::Word("round-robin 0".to_owned())
        );
        assert_eq!(conf.skipped, [("blacklist".to_owned(), 6)]);
    }

    #[test]
    fn broken_files_are_refused_by_line() {
        let (_, errors) = parse("defaults {\n a \"b\n c\n d e f\n");
        assert_eq!(
            errors.iter().map(|e| e.line).collect::<Vec<_>>(),
            [2, 3, 4, 1]
        );
        let (_, errors) = parse("}\npolling_interval 5\nnonsense {\n}\n");
        assert_eq!(errors.iter().map(|e| e.line).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn doubled_quotes() {
        assert_eq!(
            words(r#"a "x ""y"" z" ! rest"#).unwrap(),
            ["a", "x \"y\" z"]
        );
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[a-z{}\"#! \n]{0,120}") {
            let _ = parse(&text);
        }
    }
}
