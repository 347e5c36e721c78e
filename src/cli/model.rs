//! The model that a subcommand is about: a graph from a file, an adapter on it, and weights by name. Knows nothing about
//! what is done with them.

use super::error::{CliError, Sought};
use clap::Args;
use engraft::import::peft::{PeftAdapter, attach};
use engraft::import::safetensors::read_weights;
use engraft::ir::{Graph, MAX_BYTES, json, text};
use engraft::runtime::Weights;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A graph, with or without an adapter.
#[derive(Args)]
pub struct ModelArgs {
    /// A graph, as JSON or text; which one is seen from the content
    model: PathBuf,
    /// A directory that PEFT saved, attached to the modules named in it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The weights are what the adapter's initialisation (such as PiSSA) left
    ///
    /// Adapters that PiSSA and its like initialised are updates of a changed base, and refused without this.
    #[arg(long, requires = "adapter")]
    residual_base: bool,
}

/// A graph, and the weights of its adapter.
pub struct Model {
    /// The graph, with the adapter.
    pub graph: Graph,
    adapter: Option<(PathBuf, Weights)>,
}

impl ModelArgs {
    /// Reads the graph and attaches the adapter.
    ///
    /// # Errors
    /// A file cannot be read, is not what it should be, or does not fit; the error names it.
    pub fn read(&self) -> Result<Model, CliError> {
        let graph = read_graph(&self.model)?;
        let Some(path) = &self.adapter else { return Ok(Model { graph, adapter: None }) };
        let mut adapter = PeftAdapter::open(path)?;
        if self.residual_base {
            adapter = adapter.on_residual_base();
        }
        let attached = attach(&graph, &adapter)
            .map_err(|source| CliError::Attach { path: path.clone(), source: Box::new(source) })?;
        Ok(Model { graph: attached.graph, adapter: Some((path.clone(), attached.weights)) })
    }
}

impl Model {
    /// The weights of a file, and the adapter's, which take the place of the file's of the same name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn weights(&self, file: Option<&Path>) -> Result<Weights, CliError> {
        let mut weights = file.map_or_else(|| Ok(Weights::new()), read_weights)?;
        for (name, tensor) in self.adapter.iter().flat_map(|(_, tensors)| tensors.iter()) {
            weights.insert(name, tensor.clone());
        }
        Ok(weights)
    }

    /// Where [`weights`](Self::weights) looks.
    pub fn sought(&self, file: Option<&Path>) -> Sought {
        let adapter = self.adapter.as_ref().map(|(path, _)| path.clone());
        let files: Vec<_> = file.map(Path::to_owned).into_iter().chain(adapter).collect();
        if files.is_empty() { Sought::Nowhere } else { Sought::In(files) }
    }
}

/// Reads a graph: JSON if the first character that is not white is `{`, text otherwise.
fn read_graph(path: &Path) -> Result<Graph, CliError> {
    let read = |source| CliError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // One byte too many is enough for the reader to refuse the rest.
    File::open(path).map_err(read)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.trim_ascii_start().first() == Some(&b'{') {
        return json::from_slice(&bytes)
            .map_err(|source| CliError::Json { path: path.to_owned(), source: Box::new(source) });
    }
    let content = std::str::from_utf8(&bytes)
        .map_err(|source| CliError::NotText { path: path.to_owned(), valid: source.valid_up_to() })?;
    text::parse(content).map_err(|source| CliError::Text { path: path.to_owned(), source: Box::new(source) })
}
