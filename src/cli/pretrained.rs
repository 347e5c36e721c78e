//! The pretrained model that a subcommand is about.

use super::adapter_args::AdapterArgs;
use super::error::CliError;
use clap::Args;
use engraft::pretrained::Pretrained;
use std::path::PathBuf;

/// A pretrained model, with or without an adapter.
#[derive(Args)]
pub struct PretrainedArgs {
    /// A model's directory as Hugging Face lays it out, or a GGUF file
    model: PathBuf,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// Merge the adapter into the weights when it is loaded
    #[arg(long, requires = "adapter")]
    pub merge: bool,
}

impl PretrainedArgs {
    /// Opens the model and reads the adapter.
    ///
    /// # Errors
    /// A file cannot be read or is not supported; the error names it.
    pub fn open(&self) -> Result<Pretrained, CliError> {
        let model = Pretrained::open(&self.model)?;
        Ok(match self.adapter.read()? {
            Some((path, adapter)) => model.with_adapter(&path, adapter),
            None => model,
        })
    }
}
