//! The adapter that a command line names.

use super::error::CliError;
use clap::Args;
use engraft::import::peft::PeftAdapter;
use std::path::PathBuf;

/// An adapter, or none.
#[derive(Args)]
pub struct AdapterArgs {
    /// A directory that PEFT saved, attached to the modules named in it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The weights are what the adapter's initialisation (such as PiSSA) left
    ///
    /// Adapters that PiSSA and its like initialised are updates of a changed base, and refused without this.
    #[arg(long, requires = "adapter")]
    residual_base: bool,
}

impl AdapterArgs {
    /// Reads the adapter, if there is one; with the directory it came from.
    ///
    /// # Errors
    /// It cannot be read, or is not supported; the error names the file.
    pub fn read(&self) -> Result<Option<(PathBuf, PeftAdapter)>, CliError> {
        let Some(path) = &self.adapter else { return Ok(None) };
        let adapter = PeftAdapter::open(path)?;
        let adapter = if self.residual_base { adapter.on_residual_base() } else { adapter };
        Ok(Some((path.clone(), adapter)))
    }
}
