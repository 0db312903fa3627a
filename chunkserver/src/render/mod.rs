//! Text for terminals: tables with aligned columns, in the layouts that users of multipath and mdadm know.
//!
//! Pure functions from the models to text. Text from outside (a unit's vendor, an error) is printed with its
//! control characters replaced, so that no target can write to the terminal.

pub mod arrays;
pub mod offline;
pub mod paths;
pub mod status;
pub mod wildcards;

/// Rows of cells, printed with each column as wide as its widest cell.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
    indent: usize,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Table {
        let rows = if headings.is_empty() {
            Vec::new()
        } else {
            vec![headings.iter().map(|h| (*h).to_owned()).collect()]
        };
        Table {
            rows,
            right: Vec::new(),
            indent: 0,
        }
    }

    /// Aligns these columns (from 0) to the right.
    pub(crate) fn right(mut self, columns: &[usize]) -> Table {
        self.right = columns.to_vec();
        self
    }

    /// Puts so many blanks before each row.
    pub(crate) fn indent(mut self, blanks: usize) -> Table {
        self.indent = blanks;
        self
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|c| clean(&c)).collect());
    }

    /// The text; every row ends in a newline, none in blanks.
    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            self.rows
                .iter()
                .filter_map(|r| r.get(c))
                .map(|s| s.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for (c, cell) in row.iter().enumerate() {
                let width = widths[c];
                if c > 0 {
                    line.push_str("  ");
                }
                if self.right.contains(&c) {
                    line.push_str(&format!("{cell:>width$}"));
                } else {
                    line.push_str(&format!("{cell:<width$}"));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Replaces control characters.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// `1.5 GiB`
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit > 0 && value < 10.0 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// `-` for what is not known.
pub(crate) fn or_dash<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// `3 h 12 min`
pub(crate) fn span(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..=59 => format!("{s} s"),
        60..=3599 => format!("{} min {} s", s / 60, s % 60),
        3600..=86_399 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// `128 µs`, `4.1 ms`
pub(crate) fn micros(us: u64) -> String {
    match us {
        0..=999 => format!("{us} µs"),
        1000..=9_999 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..=999_999 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_escapes() {
        let mut t = Table::new(&["NAME", "SIZE"]).right(&[1]).indent(2);
        t.row(["a".to_owned(), bytes(1 << 30)]);
        t.row(["lo\x1b[31mng".to_owned(), bytes(512)]);
        assert_eq!(
            t.text(),
            "  NAME          SIZE\n  a          1.0 GiB\n  lo\u{fffd}[31mng    512 B\n"
        );
        assert_eq!(
            (span(59.9), span(3700.0)),
            ("59 s".to_owned(), "1 h 1 min".to_owned())
        );
        assert_eq!(
            (micros(999), micros(4096), micros(2_000_000)),
            ("999 µs".into(), "4.1 ms".into(), "2.0 s".into())
        );
    }
}
