//! The syntax of `multipath.conf`: from text to sections of entries, each with its line.
//!
//! multipath.conf(5): `section {` and `}` on lines of their own, one `attribute value` a line; `#` and `!`
//! begin a comment outside quotes; `""` inside quotes is one quote. What the entries mean is not judged here.

use super::raw::{Entry, Raw, SyntaxError};
use super::suggest::nearest;

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct MultipathConf {
    /// `defaults`
    pub(crate) defaults: Vec<Entry>,
    /// `overrides`
    pub(crate) overrides: Vec<Entry>,
    /// `overrides { protocol { … } }`
    pub(crate) protocols: Vec<Block>,
    /// `devices { device { … } }`
    pub(crate) devices: Vec<Block>,
    /// `multipaths { multipath { … } }`
    pub(crate) multipaths: Vec<Block>,
    /// `blacklist`
    pub(crate) blacklist: List,
    /// `blacklist_exceptions`
    pub(crate) exceptions: List,
}

/// A section that may be repeated.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Block {
    /// Where it is opened, 1-based.
    pub(crate) line: usize,
    pub(crate) entries: Vec<Entry>,
}

/// `blacklist` or `blacklist_exceptions`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct List {
    pub(crate) entries: Vec<Entry>,
    /// `device { vendor … product … }`
    pub(crate) devices: Vec<Block>,
}

/// The section a line stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Defaults,
    Overrides,
    Protocol,
    Devices,
    Device,
    Multipaths,
    Multipath,
    Blacklist,
    Exceptions,
    ListedDevice,
    ExceptedDevice,
    Unknown,
}

impl Place {
    /// The section `name` within `outer`; the error is a sentence.
    fn within(outer: Option<Place>, name: &str) -> Result<Place, String> {
        const TOP: [(&str, Place); 6] = [
            ("defaults", Place::Defaults),
            ("blacklist", Place::Blacklist),
            ("blacklist_exceptions", Place::Exceptions),
            ("devices", Place::Devices),
            ("overrides", Place::Overrides),
            ("multipaths", Place::Multipaths),
        ];
        let known: &[(&str, Place)] = match outer {
            None => &TOP,
            Some(Place::Overrides) => &[("protocol", Place::Protocol)],
            Some(Place::Devices) => &[("device", Place::Device)],
            Some(Place::Multipaths) => &[("multipath", Place::Multipath)],
            Some(Place::Blacklist) => &[("device", Place::ListedDevice)],
            Some(Place::Exceptions) => &[("device", Place::ExceptedDevice)],
            Some(Place::Unknown) => return Ok(Place::Unknown),
            Some(_) => &[],
        };
        if let Some((_, place)) = known.iter().find(|(n, _)| *n == name) {
            return Ok(*place);
        }
        let hint = nearest(name, known.iter().map(|(n, _)| *n))
            .map_or(String::new(), |n| format!("; did you mean {n:?}?"));
        Err(match outer {
            None => format!("unknown section {name:?}{hint}"),
            Some(_) => format!("section {name:?} has no place here{hint}"),
        })
    }
}

impl MultipathConf {
    /// Opens a section that may be repeated.
    fn open(&mut self, place: Place, line: usize) {
        let blocks = match place {
            Place::Protocol => &mut self.protocols,
            Place::Device => &mut self.devices,
            Place::Multipath => &mut self.multipaths,
            Place::ListedDevice => &mut self.blacklist.devices,
            Place::ExceptedDevice => &mut self.exceptions.devices,
            _ => return,
        };
        blocks.push(Block {
            line,
            entries: Vec::new(),
        });
    }

    /// The entries of the section that was opened last; `None` where none belong.
    fn entries(&mut self, place: Place) -> Option<&mut Vec<Entry>> {
        match place {
            Place::Defaults => Some(&mut self.defaults),
            Place::Overrides => Some(&mut self.overrides),
            Place::Blacklist => Some(&mut self.blacklist.entries),
            Place::Exceptions => Some(&mut self.exceptions.entries),
            Place::Protocol => self.protocols.last_mut().map(|b| &mut b.entries),
            Place::Device => self.devices.last_mut().map(|b| &mut b.entries),
            Place::Multipath => self.multipaths.last_mut().map(|b| &mut b.entries),
            Place::ListedDevice => self.blacklist.devices.last_mut().map(|b| &mut b.entries),
            Place::ExceptedDevice => self.exceptions.devices.last_mut().map(|b| &mut b.entries),
            Place::Devices | Place::Multipaths | Place::Unknown => None,
        }
    }
}

/// Parses the text. Errors and warnings are collected.
pub(crate) fn parse(text: &str) -> (MultipathConf, Vec<SyntaxError>, Vec<SyntaxError>) {
    let mut conf = MultipathConf::default();
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    // The sections we are in, outermost first, with their names and the lines where they were opened.
    let mut open: Vec<(Place, String, usize)> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line_number = i + 1;
        let say = |list: &mut Vec<SyntaxError>, text: String| {
            list.push(SyntaxError {
                line: line_number,
                text,
            });
        };
        let words = match words(line) {
            Ok(words) => words,
            Err(text) => {
                say(&mut errors, text.to_owned());
                continue;
            }
        };
        let here = open.last().map(|(place, ..)| *place);
        match words.as_slice() {
            [] => {}
            [Token::Close] => {
                if open.pop().is_none() {
                    say(&mut errors, "\"}\" closes no section".to_owned());
                }
            }
            [Token::Word(name), Token::Open] => {
                let place = Place::within(here, name).unwrap_or_else(|text| {
                    say(&mut errors, text);
                    Place::Unknown
                });
                conf.open(place, line_number);
                open.push((place, name.clone(), line_number));
            }
            [Token::Word(name), Token::Word(value), rest @ ..]
                if rest.iter().all(|t| matches!(t, Token::Word(_))) =>
            {
                if let Some(Token::Word(extra)) = rest.first() {
                    // As multipathd: old files say `path_selector round-robin 0`.
                    let text = format!(
                        "{name}: {extra:?} after {value:?} is ignored: quote the whole value"
                    );
                    say(&mut warnings, text);
                }
                let entry = Entry {
                    key: name.clone(),
                    line: line_number,
                    value: Raw::Word(value.clone()),
                };
                match here {
                    Some(Place::Unknown) => {}
                    None => say(&mut errors, format!("{name:?} stands outside any section")),
                    Some(place) => match conf.entries(place) {
                        Some(entries) => entries.push(entry),
                        None => {
                            let inner = if place == Place::Devices {
                                "device"
                            } else {
                                "multipath"
                            };
                            let text = format!("{name:?} stands outside a {inner} section");
                            say(&mut errors, text);
                        }
                    },
                }
            }
            [Token::Word(one)] => say(&mut errors, format!("{one:?} has no value")),
            _ => {
                let text = "a line is `section {`, `attribute value` or `}`, and nothing more";
                say(&mut errors, text.to_owned());
            }
        }
    }
    for (_, name, line) in open {
        errors.push(SyntaxError {
            line,
            text: format!("section {name:?} is not closed"),
        });
    }
    (conf, errors, warnings)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
}

/// Splits a line at blanks and braces, honouring quotes and comments.
fn words(line: &str) -> Result<Vec<Token>, &'static str> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            c if c.is_whitespace() => {
                chars.next();
            }
            '#' | '!' => break,
            '{' | '}' => {
                chars.next();
                words.push(if c == '{' { Token::Open } else { Token::Close });
            }
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
                words.push(Token::Word(word));
            }
            _ => {
                let mut word = String::new();
                while let Some(&c) = chars.peek() {
                    if c.is_whitespace() || matches!(c, '"' | '#' | '!' | '{' | '}') {
                        break;
                    }
                    word.push(c);
                    chars.next();
                }
                words.push(Token::Word(word));
            }
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_lines() {
        let (conf, errors, warnings) = parse(
            "# site\ndefaults {\n  path_grouping_policy failover # all\n  no_path_retry 100\n}\n\
             blacklist {\n devnode \"^sd[a-b]\"\n device {\n  vendor \"IBM\"\n }\n}\n\
             multipaths {\n multipath {\n  wwid 36001\n  path_selector round-robin 0\n }\n}\n\
             overrides {\n protocol {\n  type \"scsi:iscsi\"\n }\n}\ndevices{\n device{\n  vendor \"A\"\n }\n}\n",
        );
        assert_eq!(errors, []);
        assert_eq!(conf.defaults.len(), 2);
        assert_eq!(conf.defaults[1].line, 4);
        assert_eq!(conf.blacklist.entries[0].line, 7);
        assert_eq!(conf.blacklist.devices[0].line, 8);
        assert_eq!(
            conf.multipaths[0].entries[1].value,
            Raw::Word("round-robin".to_owned())
        );
        assert_eq!(warnings.len(), 1);
        assert_eq!(
            (warnings[0].line, warnings[0].text.as_str()),
            (
                15,
                "path_selector: \"0\" after \"round-robin\" is ignored: quote the whole value"
            )
        );
        assert_eq!(conf.protocols.len(), 1);
        assert_eq!(conf.devices.len(), 1);
    }

    #[test]
    fn broken_files_are_refused_by_line() {
        let (_, errors, _) = parse("defaults {\n a \"b\n c\n d }\n");
        assert_eq!(
            errors.iter().map(|e| e.line).collect::<Vec<_>>(),
            [2, 3, 4, 1]
        );
        let (_, errors, _) = parse("}\npolling_interval 5\ndefualts {\n}\ndevices {\n x 1\n}\n");
        assert_eq!(
            errors
                .iter()
                .map(|e| (e.line, e.text.as_str()))
                .collect::<Vec<_>>(),
            [
                (1, "\"}\" closes no section"),
                (2, "\"polling_interval\" stands outside any section"),
                (
                    3,
                    "unknown section \"defualts\"; did you mean \"defaults\"?"
                ),
                (6, "\"x\" stands outside a device section"),
            ]
        );
    }

    #[test]
    fn doubled_quotes() {
        let word = |w: &str| Token::Word(w.to_owned());
        assert_eq!(
            words(r#"a "x ""y"" {z}" ! rest"#).unwrap(),
            [word("a"), word("x \"y\" {z}")]
        );
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[a-z{}\"#! \n]{0,120}") {
            let _ = parse(&text);
        }
    }
}
