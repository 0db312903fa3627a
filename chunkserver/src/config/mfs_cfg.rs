//! MooseFS' own `mfschunkserver.cfg`, read so that a stock server's file can be carried over.
//!
//! Format (mfschunkserver.cfg(5)): `NAME = VALUE` a line, `#` begins a comment, names in upper case. What it
//! sets holds where the main file says nothing. Its DATA_PATH is ignored (two servers must not share one),
//! its AUTH_CODE is taken only from a file that others may not read.

use super::raw::{Entry, Raw};

/// The assignments of the file, names in lower case. A line that is none is left out: stock ignores it too.
pub(crate) fn parse(text: &str) -> Vec<Entry> {
    text.lines()
        .enumerate()
        .filter_map(|(i, line)| {
            let line = line.split('#').next().unwrap_or_default();
            let (name, value) = line.split_once('=')?;
            let name = name.trim();
            let named = !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
            named.then(|| Entry {
                key: name.to_ascii_lowercase(),
                line: i + 1,
                value: Raw::Word(value.trim().to_owned()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments() {
        let got =
            parse("# MASTER_HOST = a\nMASTER_HOST = mfsmaster # here\n\nLABELS=A,B\njunk\n = 1\n");
        let got: Vec<(&str, usize)> = got.iter().map(|e| (e.key.as_str(), e.line)).collect();
        assert_eq!(got, [("master_host", 2), ("labels", 4)]);
    }
}
