//! Writing for people: 80 columns, colours only on a terminal, and a reader who goes away is no panic.

use super::error::CliError;
use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use std::fmt;
use std::io::{self, Stdout, Write};

/// The columns that lines are cut to.
pub const WIDTH: usize = 80;

/// A heading.
pub const HEADING: Style = Style::new().bold();
/// What matters less.
pub const FAINT: Style = Style::new().dimmed();
/// What went well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// What went wrong.
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// Standard output.
pub struct Output {
    stream: AutoStream<Stdout>,
}

impl Output {
    /// Standard output, in colour if it is a terminal.
    pub fn stdout() -> Self {
        Self { stream: AutoStream::auto(io::stdout()) }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn line(&mut self, line: impl fmt::Display) -> Result<(), CliError> {
        writeln!(self.stream, "{line}").map_err(CliError::from)
    }

    /// Writes a text that ends its own last line.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn text(&mut self, text: &str) -> Result<(), CliError> {
        self.stream.write_all(text.as_bytes())?;
        Ok(self.stream.flush()?)
    }

    /// Writes facts as JSON on one line.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn json_line(&mut self, facts: &impl Serialize) -> Result<(), CliError> {
        let json = serde_json::to_string(facts).map_err(io::Error::from)?;
        self.line(json)
    }

    /// Writes facts as JSON.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn json(&mut self, facts: &impl Serialize) -> Result<(), CliError> {
        let json = serde_json::to_string_pretty(facts).map_err(io::Error::from)?;
        self.line(json)
    }
}

/// A line broken between words into lines of [`WIDTH`] columns; all but the first are indented by 4 more than it is.
pub fn wrapped(line: &str) -> String {
    let indent = line.len() - line.trim_start().len();
    let (first, rest) = (&line[..indent], " ".repeat(indent + 4));
    let options = textwrap::Options::new(WIDTH)
        .initial_indent(first)
        .subsequent_indent(&rest)
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::fill(&line[indent..], options)
}

#[cfg(test)]
mod tests {
    use super::{WIDTH, wrapped};

    #[test]
    fn long_lines_are_broken_between_words() {
        let exact = format!("  a {}", "ß".repeat(WIDTH - 4));
        assert_eq!(wrapped(&exact), exact);
        assert_eq!(wrapped(&format!("{exact} b-c")), format!("{exact}\n      b-c"));
    }
}
