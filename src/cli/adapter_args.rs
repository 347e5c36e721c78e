//! The adapters that a command line names: one that is attached, or several of which each row has its own.

use super::error::CliError;
use clap::Args;
use engraft::import::peft::PeftAdapter;
use engraft::pretrained::AdapterBank;
use engraft::runtime::{AdapterWeights, in_order};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How a file of rows says that a row has no adapter.
const BASE: &str = "-";

/// What stands between adapters that follow each other.
const AND: char = '+';

/// An adapter, several, or none.
#[derive(Args)]
pub struct AdapterArgs {
    /// A directory that PEFT saved, attached to the modules named in it; with --rows, an adapter that rows may have, again
    /// and again, each with a name
    #[arg(long, value_name = "[NAME=]DIR")]
    adapter: Vec<NamedDirectory>,
    /// Which adapter each row has: a name a line, `-` for the base alone, `a+b` for a and then b
    #[arg(long, value_name = "FILE", requires = "adapter")]
    rows: Option<PathBuf>,
    /// The weights are what the adapter's initialisation (such as PiSSA) left
    ///
    /// Adapters that PiSSA and its like initialised are updates of a changed base, and refused without this.
    #[arg(long, requires = "adapter")]
    residual_base: bool,
}

/// A directory, with a name before a `=` or without.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamedDirectory {
    name: Option<String>,
    path: PathBuf,
}

impl FromStr for NamedDirectory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = text.split_once('=').filter(|(name, _)| !name.contains(['/', '\\']));
        match named {
            None => Ok(Self { name: None, path: text.into() }),
            Some((name, _)) if ["", BASE].contains(&name) || name.contains(AND) => Err(format!(
                "expected NAME=DIR with a name other than `{BASE}` and without `{AND}`, found `{text}`"
            )),
            Some((name, path)) => Ok(Self { name: Some(name.to_owned()), path: path.into() }),
        }
    }
}

/// What a command line says of adapters.
pub enum Adapters {
    /// There is none.
    None,
    /// One for all, and the directory it came from.
    One(PathBuf, Box<PeftAdapter>),
    /// Each row has its own, or none.
    Rows(AdapterRows),
}

/// Adapters by name, and which of them each row has.
pub struct AdapterRows {
    /// Name, directory, adapter.
    pub adapters: Vec<(String, PathBuf, PeftAdapter)>,
    /// The file that says who has which.
    pub path: PathBuf,
    /// The name of each row's adapter; `None` for the base alone.
    pub rows: Vec<Option<String>>,
}

impl AdapterRows {
    /// How many different adapters rows have, at least one.
    pub fn distinct(&self) -> u64 {
        self.rows.iter().flatten().collect::<BTreeSet<_>>().len().max(1) as u64
    }

    /// Hands over everything that a row has: each adapter, and those that follow each other under their joint name.
    /// `weights` says what one of them does to the model.
    ///
    /// # Errors
    /// One does not fit, or they cannot follow each other.
    pub fn each(
        &self,
        weights: impl Fn(&Path, &PeftAdapter) -> Result<AdapterWeights, CliError>,
        mut taken: impl FnMut(&str, AdapterWeights) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let mut each = BTreeMap::new();
        for (name, path, adapter) in &self.adapters {
            each.insert(name.as_str(), weights(path, adapter)?);
        }
        let wanted: BTreeSet<&String> = self.rows.iter().flatten().collect();
        for row in wanted {
            let parts = row.split(AND).filter_map(|name| each.get(name));
            let joint = in_order(parts).map_err(|source| CliError::Order { row: row.clone(), source })?;
            taken(row, joint)?;
        }
        Ok(())
    }

    /// Loads everything that a row has into a bank.
    ///
    /// # Errors
    /// One does not fit, or they cannot follow each other.
    pub fn load(&self, bank: &AdapterBank) -> Result<(), CliError> {
        self.each(
            |path, adapter| Ok(bank.updates(path, adapter)?),
            |name, weights| Ok(bank.load_updates(name, weights)?),
        )
    }

    /// Requires one line for each of so many rows.
    ///
    /// # Errors
    /// There are more or fewer.
    pub fn expect(&self, what: &'static str, expected: usize) -> Result<(), CliError> {
        let found = self.rows.len();
        if found == expected {
            return Ok(());
        }
        Err(CliError::RowCount { path: self.path.clone(), what, expected, found })
    }
}

impl AdapterArgs {
    /// Reads the adapters.
    ///
    /// # Errors
    /// One cannot be read or is not supported, the names are not one for each, or a row names none of them; the error names
    /// the file.
    pub fn read(&self) -> Result<Adapters, CliError> {
        match (&self.rows, self.adapter.as_slice()) {
            (None, []) => Ok(Adapters::None),
            (None, [one]) => Ok(Adapters::One(one.path.clone(), Box::new(self.open(&one.path)?))),
            (None, _) => Err(CliError::NoRows),
            (Some(path), _) => Ok(Adapters::Rows(self.with_rows(path)?)),
        }
    }

    fn open(&self, path: &Path) -> Result<PeftAdapter, CliError> {
        let adapter = PeftAdapter::open(path)?;
        Ok(if self.residual_base { adapter.on_residual_base() } else { adapter })
    }

    fn with_rows(&self, path: &Path) -> Result<AdapterRows, CliError> {
        let mut adapters: Vec<(String, PathBuf, PeftAdapter)> = Vec::new();
        for NamedDirectory { name, path } in &self.adapter {
            let name = name.clone().ok_or_else(|| CliError::NoName { path: path.clone() })?;
            if adapters.iter().any(|(other, ..)| *other == name) {
                return Err(CliError::SameName { name });
            }
            adapters.push((name, path.clone(), self.open(path)?));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| CliError::Read { path: path.to_owned(), source })?;
        let row = |(line, text): (usize, &str)| match text.trim() {
            BASE => Ok(None),
            row => {
                let is_known = |name: &&str| adapters.iter().any(|(known, ..)| known == name);
                let Some(name) = row.split(AND).find(|name| !is_known(name)) else {
                    return Ok(Some(row.to_owned()));
                };
                Err(CliError::UnknownRow {
                    path: path.to_owned(),
                    line: line + 1,
                    name: name.to_owned(),
                    known: adapters.iter().map(|(name, ..)| name.clone()).collect(),
                })
            }
        };
        let rows = text.lines().enumerate().map(row).collect::<Result<_, _>>()?;
        Ok(AdapterRows { adapters, path: path.to_owned(), rows })
    }
}

#[cfg(test)]
mod tests {
    use super::NamedDirectory;

    #[test]
    fn a_name_stands_before_the_first_equals_sign() {
        let read = |text: &str| text.parse::<NamedDirectory>();
        let named = |name: Option<&str>, path: &str| NamedDirectory {
            name: name.map(str::to_owned),
            path: path.into(),
        };
        assert_eq!(read("a=some/dir"), Ok(named(Some("a"), "some/dir")));
        assert_eq!(read("a=b=c"), Ok(named(Some("a"), "b=c")));
        assert_eq!(read("some/dir"), Ok(named(None, "some/dir")));
        assert_eq!(read("some/a=b"), Ok(named(None, "some/a=b")));
        for bad in ["=dir", "-=dir", "a+b=dir"] {
            let message = read(bad).unwrap_err();
            assert_eq!(
                message,
                format!("expected NAME=DIR with a name other than `-` and without `+`, found `{bad}`")
            );
        }
    }
}
