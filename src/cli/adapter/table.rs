//! Tables within 80 columns: a name on the left, numbers on the right. Knows nothing about what they are.

use crate::cli::error::CliError;
use crate::cli::output::{FAINT, Output, WIDTH};

/// A table's columns after the name: what each is called, and how wide it is.
pub struct Table {
    columns: Vec<(&'static str, usize)>,
}

impl Table {
    pub fn new(columns: &[(&'static str, usize)]) -> Self {
        Self { columns: columns.to_vec() }
    }

    /// What is left for the name.
    fn name_width(&self) -> usize {
        WIDTH - self.columns.iter().map(|(_, width)| width).sum::<usize>()
    }

    /// Prints the heading.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn heading(&self, output: &mut Output, name: &str) -> Result<(), CliError> {
        let names = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        output.line(format_args!("{FAINT}{}{FAINT:#}", self.join(name, names)))
    }

    /// Prints a line. A name that is too long loses its beginning.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn line(&self, output: &mut Output, name: &str, cells: Vec<String>) -> Result<(), CliError> {
        output.line(self.join(name, cells))
    }

    fn join(&self, name: &str, cells: Vec<String>) -> String {
        let (room, length) = (self.name_width(), name.chars().count());
        let name = if length > room {
            let end: String = name.chars().skip(length + 1 - room).collect();
            format!("…{end}")
        } else {
            format!("{name:room$}")
        };
        let cells = cells.into_iter().zip(&self.columns).map(|(cell, (_, width))| format!("{cell:>width$}"));
        format!("{name}{}", cells.collect::<String>()).trim_end().to_owned()
    }
}

/// A number in about four digits.
pub fn short(x: f64) -> String {
    match x.abs() {
        size if size < 10_000.0 && size.fract() == 0.0 => format!("{x}"),
        0.001..1.0 => format!("{x:.4}"),
        1.0..10.0 => format!("{x:.3}"),
        10.0..100.0 => format!("{x:.2}"),
        100.0..10_000.0 => format!("{x:.0}"),
        _ => format!("{x:.1e}"),
    }
}

/// A number, or a dash where there is none.
pub fn short_or_dash(x: Option<f64>) -> String {
    x.map_or_else(|| "-".to_owned(), short)
}

/// A share in percent.
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.2}%", 100.0 * share))
}

#[cfg(test)]
mod tests {
    use super::{Table, short};

    #[test]
    fn lines_are_as_wide_as_the_page() {
        let table = Table::new(&[("r", 4), ("norm", 6)]);
        let cells = || vec!["8".to_owned(), "1.5".to_owned()];
        for name in ["fc", &"ß".repeat(70), &"x".repeat(90)] {
            let line = table.join(name, cells());
            assert_eq!(line.chars().count(), 80, "{line}");
            assert!(line.ends_with("   8   1.5"), "{line}");
        }
        assert!(table.join(&format!("{}end", "x".repeat(90)), cells()).starts_with("…xxx"));
    }

    #[test]
    fn numbers_are_short() {
        let numbers = [0.0, 16.0, 0.5, -1.25, 31.416, 12_345.6, 0.000_12];
        let shown: Vec<_> = numbers.into_iter().map(short).collect();
        assert_eq!(shown, ["0", "16", "0.5000", "-1.250", "31.42", "1.2e4", "1.2e-4"]);
    }
}
