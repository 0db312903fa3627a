//! Values of settings: what a key may hold, how it is read and how it is printed.
//!
//! A [`Kind`] judges a raw value and turns it into a [`Value`]; the message of a refusal says what would have
//! been right. A [`Value`] prints as TOML that reads back to itself, which is what `antler check` shows.
//! Durations are `"250ms"`, `"5s"`, `"2m"`, `"1h"`, `"7d"`, or a plain number of seconds where the option of
//! MooseFS or multipath.conf has one. Sizes are bytes, or `"512MiB"`; `k M G T` alone are decimal with `B`
//! (`"1GB"`), binary with `iB`, as in mfshdd.cfg.

use std::fmt;
use std::time::Duration;

use super::raw::Raw;

/// An effective value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A TOML boolean.
    Flag(bool),
    /// multipath.conf's `yes` or `no`.
    YesNo(bool),
    /// An integer.
    Int(i64),
    /// A fraction.
    Float(f64),
    /// Bytes.
    Size(u64),
    /// A duration.
    Span(Duration),
    /// Text or a word out of a fixed set.
    Text(String),
    /// Several.
    List(Vec<Value>),
    /// `{ address = …, source = … }` of a portal.
    Portal {
        /// `host:port`.
        address: String,
        /// Local address to connect from.
        source: String,
    },
}

/// What a key may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// `true` / `false`.
    Flag,
    /// `yes` / `no` of multipath.conf (also `on`/`off`, `true`/`false`).
    YesNo,
    /// MooseFS' 0 / 1 (also `true`/`false`).
    ZeroOne,
    /// An integer in a range.
    Int(i64, i64),
    /// Bytes, at least so many.
    Size(u64),
    /// A duration in a range of milliseconds; a plain number is seconds.
    Seconds(u64, u64),
    /// A duration in a range of milliseconds, always with its unit.
    Span(u64, u64),
    /// Any text.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of these words, or the other kind.
    WordOr(&'static [&'static str], &'static Kind),
    /// One or a list of them.
    Many(&'static Kind),
    /// Text that a function accepts; the error says what is wrong with it.
    Syntax(fn(&str) -> Result<(), String>),
    /// A portal: text, or a table of `address` and `source`.
    Portal,
    /// Any scalar, kept as text: the option means nothing here.
    Any,
    /// A secret, which has no place in this file; the text names the key to use.
    Secret(&'static str),
}

impl Kind {
    /// Judges a raw value.
    pub(crate) fn read(&self, raw: &Raw) -> Result<Value, String> {
        let word = match raw {
            Raw::Text(s) | Raw::Word(s) => Some(s.as_str()),
            _ => None,
        };
        let wrong = |want: &str| match word {
            Some(w) => Err(format!("expected {want}, found {:?}", clip(w))),
            None => Err(format!("expected {want}, found {}", raw.what())),
        };
        match self {
            Kind::Flag => match raw {
                Raw::Bool(b) => Ok(Value::Flag(*b)),
                // The schema's defaults are words; no file brings one to such a key.
                Raw::Word(w) if w == "true" || w == "false" => Ok(Value::Flag(w == "true")),
                _ => wrong("true or false"),
            },
            Kind::YesNo => truth(raw).map_or_else(|| wrong("\"yes\" or \"no\""), |b| Ok(Value::YesNo(b))),
            Kind::ZeroOne => {
                truth(raw).map_or_else(|| wrong("0 or 1"), |b| Ok(Value::Int(i64::from(b))))
            }
            Kind::Int(min, max) => {
                let n = match raw {
                    Raw::Int(n) => Some(*n),
                    // multipath.conf and mfschunkserver.cfg have no types; a quoted number is no number.
                    Raw::Word(w) => integer(w),
                    _ => None,
                };
                match n {
                    Some(n) if (*min..=*max).contains(&n) => Ok(Value::Int(n)),
                    Some(n) => Err(format!("{n} is outside {min}..{max}")),
                    None => wrong(&format!("a number from {min} to {max}")),
                }
            }
            Kind::Size(min) => {
                let bytes = match raw {
                    Raw::Int(n) if *n < 0 => {
                        return Err(format!("{n} is less than {}", show_size(*min)));
                    }
                    Raw::Int(n) => u64::try_from(*n).ok(),
                    _ => word.and_then(parse_size),
                };
                match bytes {
                    Some(n) if n >= *min => Ok(Value::Size(n)),
                    Some(n) => {
                        Err(format!("{} is less than {}", show_size(n), show_size(*min)))
                    }
                    None => wrong("a size such as \"512MiB\""),
                }
            }
            Kind::Seconds(min, max) | Kind::Span(min, max) => {
                let plain = matches!(self, Kind::Seconds(..));
                let span = match raw {
                    Raw::Int(n) if plain && *n < 0 => {
                        return Err(format!(
                            "{n} is outside {}..{}",
                            show_span(Duration::from_millis(*min)),
                            show_span(Duration::from_millis(*max))
                        ));
                    }
                    Raw::Int(n) if plain => u64::try_from(*n).ok().map(Duration::from_secs),
                    Raw::Float(n) if plain => Duration::try_from_secs_f64(*n).ok(),
                    _ => word.and_then(|w| parse_span(w, plain)),
                };
                match span {
                    Some(d) if (u128::from(*min)..=u128::from(*max)).contains(&d.as_millis()) => {
                        Ok(Value::Span(d))
                    }
                    Some(d) => Err(format!(
                        "{} is outside {}..{}",
                        show_span(d),
                        show_span(Duration::from_millis(*min)),
                        show_span(Duration::from_millis(*max))
                    )),
                    None if plain => wrong("a duration such as \"5s\", or a number of seconds"),
                    None => wrong("a duration such as \"250ms\" or \"5s\""),
                }
            }
            Kind::Text => word.map_or_else(|| wrong("a string"), |w| Ok(Value::Text(w.to_owned()))),
            Kind::Word(words) => match word.and_then(|w| words.iter().find(|k| **k == w)) {
                Some(w) => Ok(Value::Text((*w).to_owned())),
                None => wrong(&listed(words)),
            },
            Kind::WordOr(words, other) => match word.and_then(|w| words.iter().find(|k| **k == w)) {
                Some(w) => Ok(Value::Text((*w).to_owned())),
                None => other.read(raw).map_err(|e| format!("{e} (or {})", listed(words))),
            },
            Kind::Many(one) => match raw {
                Raw::List(items) => {
                    let (mut read, mut wrong) = (Vec::new(), Vec::new());
                    for (item, nth) in items.iter().zip(1..) {
                        match one.read(item) {
                            Ok(value) => read.push(value),
                            Err(e) if items.len() > 1 => wrong.push(format!("entry {nth}: {e}")),
                            Err(e) => wrong.push(e),
                        }
                    }
                    match wrong.is_empty() {
                        true => Ok(Value::List(read)),
                        false => Err(wrong.join("; ")),
                    }
                }
                // Printed as it was written: alone.
                single => one.read(single),
            },
            Kind::Syntax(accept) => match word {
                Some(w) => accept(w).map(|()| Value::Text(w.to_owned())),
                None => wrong("a string"),
            },
            Kind::Portal => read_portal(raw),
            Kind::Any => match raw {
                Raw::Text(s) | Raw::Word(s) => Ok(Value::Text(s.clone())),
                Raw::Int(n) => Ok(Value::Int(*n)),
                Raw::Float(n) => Ok(Value::Float(*n)),
                Raw::Bool(b) => Ok(Value::Flag(*b)),
                _ => wrong("a single value"),
            },
            Kind::Secret(instead) => Err(format!(
                "a secret has no place in this file: put it in a file of mode 0600 and name that with {instead:?}"
            )),
        }
    }
}

fn read_portal(raw: &Raw) -> Result<Value, String> {
    match raw {
        Raw::Text(s) => Ok(Value::Text(s.clone())),
        Raw::Table(entries) => {
            let (mut address, mut source) = (None, None);
            for e in entries.iter().filter(|e| !e.key.is_empty()) {
                let slot = match e.key.as_str() {
                    "address" => &mut address,
                    "source" => &mut source,
                    other => {
                        return Err(format!(
                            "unknown key {:?} in a portal; it has address and source",
                            clip(other)
                        ))
                    }
                };
                match &e.value {
                    Raw::Text(s) => *slot = Some(s.clone()),
                    v => {
                        return Err(format!(
                            "expected a string for {}, found {}",
                            e.key,
                            v.what()
                        ))
                    }
                }
            }
            match (address, source) {
                (Some(address), Some(source)) => Ok(Value::Portal { address, source }),
                (Some(address), None) => Ok(Value::Text(address)),
                (None, _) => Err("a portal needs an address".to_owned()),
            }
        }
        v => Err(format!(
            "expected \"ADDRESS:PORT\" or {{ address, source }}, found {}",
            v.what()
        )),
    }
}

fn truth(raw: &Raw) -> Option<bool> {
    match raw {
        Raw::Bool(b) => Some(*b),
        Raw::Int(0) => Some(false),
        Raw::Int(1) => Some(true),
        Raw::Text(w) | Raw::Word(w) => match w.to_ascii_lowercase().as_str() {
            "yes" | "on" | "true" | "1" => Some(true),
            "no" | "off" | "false" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn integer(word: &str) -> Option<i64> {
    match word.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

/// The words, for a message: `"a", "b" or "c"`.
fn listed(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("{w:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// No more of a foreign text than fits a line.
pub(crate) fn clip(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Reads `"512MiB"`, `"1.5 GB"`, `"4096"`. `None` if it is none or does not fit 64 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "p" | "pb" => 1_000_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        "pi" | "pib" => 1 << 50,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let scaled = number.parse::<f64>().ok()? * factor as f64;
    // 2^63: beyond it a u64 from f64 would saturate silently.
    (scaled.is_finite() && scaled < 9.2e18).then_some(scaled as u64)
}

/// The shortest exact form: the largest binary unit that divides it.
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes % (1 << shift) == 0 {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}")
}

/// Reads `"250ms"`, `"5s"`, `"1.5s"`, `"2m"`, `"1h"`, `"7d"`, `"1w"`, sums such as `"1h30m"`; a plain number of
/// seconds if `plain`.
pub fn parse_span(text: &str, plain: bool) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let split = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(split);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == ' ')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit_us: u64 = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" | "sec" => 1_000_000,
            "" if plain => 1_000_000,
            "m" | "min" => 60_000_000,
            "h" => 3_600_000_000,
            "d" => 86_400_000_000,
            "w" => 604_800_000_000,
            _ => return None,
        };
        let us = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(unit_us)?,
            // 2^63: beyond it a u64 from f64 would saturate silently.
            Err(_) => match number.parse::<f64>().ok()? * unit_us as f64 {
                us if us < 9.2e18 => us.round() as u64,
                _ => return None,
            },
        };
        let part = Duration::from_micros(us);
        total = total.checked_add(part)?;
        rest = tail.trim_start();
    }
    Some(total)
}

/// The shortest exact form down to a microsecond: `7d`, `5s`, `250ms`, `1500us`.
pub fn show_span(span: Duration) -> String {
    const DAY_US: u128 = 86_400_000_000;
    let us = span.as_micros();
    if us > 0 && us % DAY_US == 0 {
        format!("{}d", us / DAY_US)
    } else if us % 1_000_000 == 0 {
        format!("{}s", us / 1_000_000)
    } else if us % 1_000 == 0 {
        format!("{}ms", us / 1_000)
    } else {
        format!("{us}us")
    }
}

impl fmt::Display for Value {
    /// As TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Flag(b) => write!(f, "{b}"),
            Value::YesNo(b) => write!(f, "\"{}\"", if *b { "yes" } else { "no" }),
            Value::Int(n) => write!(f, "{n}"),
            Value::Float(n) => write!(f, "{n:?}"),
            Value::Size(n) => match show_size(*n) {
                plain if plain.bytes().all(|b| b.is_ascii_digit()) => f.write_str(&plain),
                unit => write!(f, "\"{unit}\""),
            },
            Value::Span(d) => write!(f, "\"{}\"", show_span(*d)),
            Value::Text(s) => quote(f, s),
            Value::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{item}")?;
                }
                f.write_str("]")
            }
            Value::Portal { address, source } => {
                f.write_str("{ address = ")?;
                quote(f, address)?;
                f.write_str(", source = ")?;
                quote(f, source)?;
                f.write_str(" }")
            }
        }
    }
}

/// A TOML basic string.
fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c.is_control() => write!(f, "\\u{:04X}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

impl Value {
    /// The same value in JSON: numbers and booleans as such, durations and sizes in the text form of the file.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::{json, Value as J};
        match self {
            Value::Flag(b) => J::from(*b),
            Value::YesNo(b) => J::from(if *b { "yes" } else { "no" }),
            Value::Int(n) => J::from(*n),
            Value::Float(n) => J::from(*n),
            Value::Size(n) => match show_size(*n) {
                plain if plain.bytes().all(|b| b.is_ascii_digit()) => J::from(*n),
                unit => J::from(unit),
            },
            Value::Span(d) => J::from(show_span(*d)),
            Value::Text(s) => J::from(s.as_str()),
            Value::List(items) => J::Array(items.iter().map(Value::to_json).collect()),
            Value::Portal { address, source } => json!({"address": address, "source": source}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(s: &str) -> Raw {
        Raw::Text(s.to_owned())
    }

    #[test]
    fn sizes() {
        for (s, n) in [
            ("0", 0),
            ("4096", 4096),
            ("512MiB", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("1GB", 1_000_000_000),
            ("10 GiB", 10 << 30),
            ("2k", 2000),
        ] {
            assert_eq!(parse_size(s), Some(n), "{s}");
        }
        for s in [
            "",
            "MiB",
            "1XB",
            "-1",
            "1e3",
            "99999999999999999999",
            "20000PiB",
            "1.2.3",
        ] {
            assert_eq!(parse_size(s), None, "{s}");
        }
    }

    #[test]
    fn spans() {
        for (s, plain, ms) in [
            ("250ms", false, Some(250)),
            ("5s", false, Some(5000)),
            ("1.5s", false, Some(1500)),
            ("1h30m", false, Some(5_400_000)),
            ("1d 12h", false, Some(129_600_000)),
            ("7", true, Some(7000)),
            ("7", false, None),
            ("", true, None),
            ("5 parsecs", true, None),
            ("-5s", false, None),
            ("99999999999999999999999h", false, None),
        ] {
            assert_eq!(parse_span(s, plain), ms.map(Duration::from_millis), "{s}");
        }
    }

    #[test]
    fn refusals_say_what_would_be_right() {
        for (kind, raw, message) in [
            (
                Kind::Int(1, 65535),
                Raw::Int(70000),
                "70000 is outside 1..65535",
            ),
            (
                Kind::Int(1, 65535),
                text("9420"),
                "expected a number from 1 to 65535, found \"9420\"",
            ),
            (
                Kind::Flag,
                text("yes"),
                "expected true or false, found \"yes\"",
            ),
            (
                Kind::YesNo,
                text("maybe"),
                "expected \"yes\" or \"no\", found \"maybe\"",
            ),
            (Kind::Size(1 << 20), text("4KiB"), "4KiB is less than 1MiB"),
            (
                Kind::Span(1, 1000),
                Raw::Int(5),
                "expected a duration such as \"250ms\" or \"5s\", found a number",
            ),
            (Kind::Span(1, 1000), text("2s"), "2s is outside 1ms..1s"),
            (
                Kind::Word(&["flush", "fua", "cache"]),
                text("sync"),
                "expected \"flush\", \"fua\" or \"cache\", found \"sync\"",
            ),
            (
                Kind::Text,
                Raw::List(vec![]),
                "expected a string, found a list",
            ),
        ] {
            assert_eq!(kind.read(&raw), Err(message.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn size_and_span_print_what_they_read(n in any::<u64>(), us in 0u64..1 << 50) {
            prop_assert_eq!(parse_size(&show_size(n)), Some(n));
            let d = Duration::from_micros(us);
            prop_assert_eq!(parse_span(&show_span(d), false), Some(d));
        }

        #[test]
        fn readers_never_panic(s in "\\PC{0,40}") {
            let _ = (parse_size(&s), parse_span(&s, true), parse_span(&s, false));
        }

        #[test]
        fn text_prints_as_toml(s in "\\PC{0,20}[\"\\\\\n\t]{0,3}") {
            let line = format!("a = {}", Value::Text(s.clone()));
            let (entries, errors) = crate::config::raw::parse_toml(&line);
            prop_assert!(errors.is_empty());
            prop_assert_eq!(&entries[0].value, &Raw::Text(s));
        }
    }
}
