//! The pretrained model that a subcommand is about.

use super::adapter_args::{AdapterArgs, AdapterRows, Adapters};
use super::error::CliError;
use super::merge_args::{Calls, MergeArgs};
use clap::Args;
use engraft::ir::Bindings;
use engraft::pretrained::{CompileOptions, CompiledModel, Pretrained};
use engraft::runtime::Rows;
use std::path::PathBuf;

/// A pretrained model, with or without an adapter.
#[derive(Args)]
pub struct PretrainedArgs {
    /// A model's directory as Hugging Face lays it out, or a GGUF file
    model: PathBuf,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    merge: MergeArgs,
}

/// A model that is ready, and the adapters of its rows, if each is to have its own.
pub struct Ready {
    /// The model.
    pub model: CompiledModel,
    rows: Option<AdapterRows>,
}

impl PretrainedArgs {
    /// Opens the model, reads the adapters, and compiles with these options and what the command line says beside, for calls of
    /// about so many rows.
    ///
    /// # Errors
    /// A file cannot be read or is not supported, an adapter does not fit, or the model cannot be compiled; the error names
    /// the file.
    pub fn ready(&self, options: &CompileOptions, call_rows: u64) -> Result<Ready, CliError> {
        let model = Pretrained::open(&self.model)?;
        let adapters = self.adapter.read()?;
        if matches!(adapters, Adapters::None) && self.merge.needs_adapters() {
            return Err(CliError::NothingToMerge);
        }
        let (model, rows) = match adapters {
            Adapters::None => (model, None),
            Adapters::One(path, adapter) => (model.with_adapter(&path, *adapter), None),
            Adapters::Rows(rows) => (model, Some(rows)),
        };
        let adapters = rows.as_ref().map_or(1, AdapterRows::distinct);
        let merge = self.merge.decided(&Calls { rows: call_rows, adapters, dims: Bindings::new() })?;
        let options = CompileOptions { merge, bank: rows.is_some(), ..*options };
        let model = model.compile(options)?;
        if let Some(rows) = &rows {
            rows.load(model.bank()?)?;
        }
        Ok(Ready { model, rows })
    }
}

impl Ready {
    /// Who has which adapter: `expected` rows, which are called `what` in the error; empty if no row has its own.
    ///
    /// # Errors
    /// The file of rows has more lines or fewer.
    pub fn rows(&self, what: &'static str, expected: usize) -> Result<Rows, CliError> {
        let Some(rows) = &self.rows else { return Ok(Rows::default()) };
        rows.expect(what, expected)?;
        Ok(self.model.bank()?.rows(&rows.rows)?)
    }
}
