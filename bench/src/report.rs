//! How results are printed: tables of text that say what was measured and on what, or JSON.

use std::fmt::Write as _;
use std::io::Write as _;

use serde::Serialize;

use crate::BenchError;
use crate::machine::Machine;

/// One table: the first column left, the others right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new<S: Into<String>>(columns: impl IntoIterator<Item = S>) -> Self {
        Self { columns: columns.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row; what is missing at its end stays empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert!(cells.len() <= self.columns.len(), "a row has no more cells than columns");
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
        self
    }

    /// The lines of the table.
    pub fn render(&self) -> String {
        let width = |text: &str| text.chars().count();
        let mut widths: Vec<usize> = self.columns.iter().map(|name| width(name)).collect();
        for row in &self.rows {
            for (wide, cell) in widths.iter_mut().zip(row) {
                *wide = (*wide).max(width(cell));
            }
        }
        let mut text = String::new();
        for row in std::iter::once(&self.columns).chain(&self.rows) {
            let mut line = String::new();
            for (index, (cell, wide)) in row.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(wide - width(cell));
                let gap = if index == 0 { "" } else { "  " };
                let _ = match index {
                    0 => write!(line, "{cell}{padding}"),
                    _ => write!(line, "{gap}{padding}{cell}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// What every report starts with: the verb, the machine, the command that repeats it.
#[derive(Clone, Debug, Serialize)]
pub struct Heading {
    /// What was measured.
    pub measured: String,
    /// On what.
    pub machine: Machine,
    /// The exact command.
    pub command: String,
}

impl Heading {
    /// Looks at the machine now, before the measurement.
    pub fn new(measured: impl Into<String>) -> Self {
        let command = std::env::args_os()
            .map(|argument| quoted(&argument.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(" ");
        Self { measured: measured.into(), machine: Machine::look(), command }
    }

    /// Prints the report: `text` under the heading, or `result` as JSON beside it.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print<R: Serialize>(
        &self,
        json: bool,
        text: &str,
        result: &R,
    ) -> Result<(), BenchError> {
        #[derive(Serialize)]
        struct Envelope<'a, R> {
            #[serde(flatten)]
            heading: &'a Heading,
            result: &'a R,
        }
        let output = if json {
            let envelope = Envelope { heading: self, result };
            let mut json = serde_json::to_string_pretty(&envelope)
                .map_err(|error| BenchError::Protocol(format!("making JSON: {error}")))?;
            json.push('\n');
            json
        } else {
            format!(
                "{}\non      {}\nrepeat  {}\n\n{text}",
                self.measured,
                self.machine.line(),
                self.command
            )
        };
        std::io::stdout().write_all(output.as_bytes()).map_err(BenchError::io("printing"))
    }
}

/// Tells whoever waits what is being done; on standard error, so that results stay clean.
pub fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "… {text}");
}

/// An argument as a shell reads it back.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

/// A number of bytes, with a unit that keeps it short.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value.fract() < 0.05 || value.fract() > 0.95 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A time in microseconds, with a unit that keeps it short.
pub fn micros(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0} µs"),
        us if us < 100_000.0 => format!("{:.2} ms", us / 1e3),
        us if us < 1_000_000.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// A count, with its thousands apart.
pub fn thousands(count: f64) -> String {
    let digits = format!("{:.0}", count.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if count < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_line_ends_in_blanks() {
        let mut table = Table::new(["what", "µs", "n"]);
        table.row(["a longer name", "1"]).row(["b", "22", "333"]);
        let expected = "what           µs    n\na longer name   1\nb              22  333\n";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn a_command_can_be_pasted_back() {
        assert_eq!(quoted("--rate=5"), "--rate=5");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("http://h/?a=1&b=2"), "'http://h/?a=1&b=2'");
    }

    #[test]
    fn numbers_are_short_and_say_their_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(1_610_612_736), "1.5 GiB");
        assert_eq!(micros(12.3), "12 µs");
        assert_eq!(micros(1_234_567.0), "1.23 s");
        assert_eq!(thousands(1_234_567.4), "1,234,567");
        assert_eq!(thousands(999.0), "999");
        assert_eq!(thousands(-1000.0), "-1,000");
    }
}
