//! `engraft adapter export`: an adapter, or a weighted combination of several, as a directory that PEFT loads.

use super::in_adapter;
use crate::cli::error::CliError;
use crate::cli::output::{HEADING, Output};
use clap::Args;
use engraft::import::peft::{PeftAdapter, combine};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Write an adapter, or a weighted combination of LoRA adapters, as PEFT does
///
/// A combination is exact: the factors of all are put beside each other, so its rank is the sum of theirs. One without an
/// exact meaning, such as of DoRA adapters, is refused.
#[derive(Args)]
pub struct Export {
    /// A directory that PEFT saved, and its weight in the combination, as in `my-lora*0.5`
    #[arg(long, value_name = "DIR[*WEIGHT]", required = true)]
    adapter: Vec<Weighted>,
    /// Where to write; it must not exist, or be an empty directory
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

/// An adapter's directory and its weight, if one is given.
#[derive(Clone, Debug, PartialEq)]
struct Weighted {
    path: PathBuf,
    weight: Option<f64>,
}

impl FromStr for Weighted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((path, weight)) = text.rsplit_once('*') else {
            return Ok(Self { path: text.into(), weight: None });
        };
        let number = weight.parse().ok().filter(|weight: &f64| weight.is_finite());
        let weight = number.ok_or_else(|| format!("expected a number after the `*`, found `{weight}`"))?;
        Ok(Self { path: path.into(), weight: Some(weight) })
    }
}

impl Export {
    /// Writes the directory.
    ///
    /// # Errors
    /// An adapter cannot be read, the combination has no exact meaning, or there is something at the output.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        check_free(&self.output)?;
        let open = |weighted: &Weighted| Ok((weighted.weight, PeftAdapter::open(&weighted.path)?));
        let adapters: Vec<_> = self.adapter.iter().map(open).collect::<Result<_, CliError>>()?;
        let paths: Vec<&Path> = self.adapter.iter().map(|weighted| weighted.path.as_path()).collect();
        let exported = match adapters.as_slice() {
            [(None, alone)] => alone.clone(),
            several => {
                let parts: Vec<_> =
                    several.iter().map(|(weight, adapter)| (weight.unwrap_or(1.0), adapter)).collect();
                combine(&parts).map_err(|error| in_adapter(error.adapter(), error.into(), &paths))?
            }
        };
        // Whatever is wrong with the tensors is told before anything is written. Of a combination nothing is.
        let contents = exported.contents().map_err(|error| in_adapter(Some(1), error.into(), &paths))?;
        let modules = contents.factors.len();
        exported.save(&self.output)?;
        let plural = if modules == 1 { "" } else { "s" };
        let kind = super::kind(exported.config().use_dora);
        let path = self.output.display();
        output.line(format_args!("{HEADING}{kind} on {modules} module{plural}{HEADING:#} in {path}"))
    }
}

/// Refuses an output that is there and not empty.
fn check_free(path: &Path) -> Result<(), CliError> {
    let is_free = match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    };
    if is_free { Ok(()) } else { Err(CliError::OutputExists { path: path.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::Weighted;

    #[test]
    fn a_weight_stands_behind_the_last_star() {
        let read = |text: &str| text.parse::<Weighted>().map(|w| (w.path.display().to_string(), w.weight));
        assert_eq!(read("a/b"), Ok(("a/b".to_owned(), None)));
        assert_eq!(read("a*b*-0.5"), Ok(("a*b".to_owned(), Some(-0.5))));
        for bad in ["a*", "a*x", "a*inf"] {
            assert!(read(bad).unwrap_err().contains("expected a number after the `*`"), "{bad}");
        }
    }
}
