//! `engraft adapter`: what is in an adapter, and what can be made of it. What adapters mean is the import crate's concern.

mod diff;
mod export;
mod inspect;
mod merge;
mod table;

use super::error::CliError;
use super::output::Output;
use clap::{Args, Subcommand};
use engraft::import::peft::PeftAdapter;
use std::path::{Path, PathBuf};

/// Look at adapters, merge them into a model, export and compare them
#[derive(Args)]
pub struct Adapter {
    #[command(subcommand)]
    command: AdapterCommand,
}

#[derive(Subcommand)]
enum AdapterCommand {
    Inspect(inspect::Inspect),
    Merge(merge::Merge),
    Export(export::Export),
    Diff(diff::Diff),
}

impl Adapter {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What it says.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        match &self.command {
            AdapterCommand::Inspect(inspect) => inspect.run(output),
            AdapterCommand::Merge(merge) => merge.run(output),
            AdapterCommand::Export(export) => export.run(output),
            AdapterCommand::Diff(diff) => diff.run(output),
        }
    }
}

/// A base to look at adapters on.
#[derive(Args)]
struct BaseArgs {
    /// The model that the adapter is for: a directory as Hugging Face lays it out, with safetensors
    #[arg(long, value_name = "MODEL_DIR")]
    base: Option<PathBuf>,
    /// The weights are what the adapter's initialisation (such as PiSSA) left
    #[arg(long, requires = "base")]
    residual_base: bool,
}

/// Opens an adapter, and says on which base it is.
fn open(path: &Path, residual_base: bool) -> Result<PeftAdapter, CliError> {
    let adapter = PeftAdapter::open(path)?;
    Ok(if residual_base { adapter.on_residual_base() } else { adapter })
}

/// An error of adapters, with the directory of the one that it is about, from 1, if it is about one alone.
fn in_adapter(number: Option<usize>, error: CliError, adapters: &[&Path]) -> CliError {
    match number.and_then(|number| adapters.get(number.checked_sub(1)?)) {
        Some(path) => error.in_file(path),
        None => error,
    }
}

/// What an adapter is called.
fn kind(is_dora: bool) -> &'static str {
    if is_dora { "DoRA" } else { "LoRA" }
}
