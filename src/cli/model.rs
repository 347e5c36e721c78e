//! The model that a subcommand is about: a graph from a file, an adapter on it, and weights by name. Knows nothing about
//! what is done with them.

use super::adapter_args::{AdapterArgs, AdapterRows, Adapters};
use super::error::{CliError, Sought};
use super::merge_args::Calls;
use clap::Args;
use engraft::compiler::merging::survey;
use engraft::compiler::{CompileError, CostModel, Decision, Merging};
use engraft::import::models::{Architecture, GraphOptions};
use engraft::import::peft::{AttachError, PeftAdapter, adaptable, attach};
use engraft::import::safetensors::read_weights;
use engraft::ir::ops::Input;
use engraft::ir::{Bindings, Graph, MAX_BYTES, Op, json, text};
use engraft::pretrained::{AdapterBank, Assembled, BankLayers, Pretrained};
use engraft::runtime::{Base, Rows, Weights};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A graph, with or without an adapter.
#[derive(Args)]
pub struct ModelArgs {
    /// A graph as JSON or text, which one is seen from the content; or a pretrained model: a directory as Hugging Face
    /// lays it out, or a GGUF file, with its weights
    model: PathBuf,
    #[command(flatten)]
    adapter: AdapterArgs,
}

/// A graph, and the weights that came with it.
pub struct Model {
    /// The graph, with the adapter.
    pub graph: Graph,
    /// Tensors and where they came from; later ones take the place of earlier ones of the same name.
    tensors: Vec<(PathBuf, Weights)>,
    /// What fills in a pretrained model's inputs.
    architecture: Option<Architecture>,
    /// The adapters that rows have.
    rows: Option<AdapterRows>,
}

impl ModelArgs {
    /// Reads the graph and attaches the adapter.
    ///
    /// # Errors
    /// A file cannot be read, is not what it should be, or does not fit; the error names it.
    pub fn read(&self) -> Result<Model, CliError> {
        let (adapter, rows) = match self.adapter.read()? {
            Adapters::None => (None, None),
            Adapters::One(path, adapter) => (Some((path, *adapter)), None),
            Adapters::Rows(rows) => (None, Some(rows)),
        };
        let model =
            if Pretrained::is_one(&self.model) { self.pretrained(adapter)? } else { self.graph(adapter)? };
        let Some(rows) = rows else { return Ok(model) };
        let graph = adaptable(&model.graph).map_err(|source| self.not_adaptable(source))?;
        Ok(Model { graph, rows: Some(rows), ..model })
    }

    /// As [`read`](Self::read), where rows cannot have their own adapters.
    ///
    /// # Errors
    /// As [`read`](Self::read); also when they are to have some.
    pub fn read_one(&self) -> Result<Model, CliError> {
        let model = self.read()?;
        if model.rows.is_some() { Err(CliError::RowsHere) } else { Ok(model) }
    }

    fn not_adaptable(&self, source: AttachError) -> CliError {
        CliError::Adaptable { path: self.model.clone(), source: Box::new(source) }
    }

    fn graph(&self, adapter: Option<(PathBuf, PeftAdapter)>) -> Result<Model, CliError> {
        let (graph, rows) = (read_graph(&self.model)?, None);
        let Some((path, adapter)) = adapter else {
            return Ok(Model { graph, tensors: Vec::new(), architecture: None, rows });
        };
        let attached = attach(&graph, &adapter)
            .map_err(|source| CliError::Attach { path: path.clone(), source: Box::new(source) })?;
        Ok(Model { graph: attached.graph, tensors: vec![(path, attached.weights)], architecture: None, rows })
    }

    fn pretrained(&self, adapter: Option<(PathBuf, PeftAdapter)>) -> Result<Model, CliError> {
        let mut model = Pretrained::open(&self.model)?;
        let path = adapter.as_ref().map(|(path, _)| path.clone());
        if let Some((path, adapter)) = adapter {
            model = model.with_adapter(&path, adapter);
        }
        let Assembled { graph, base, adapter, .. } = model.assemble(GraphOptions::default())?;
        let mut tensors = vec![(self.model.clone(), base)];
        tensors.extend(path.map(|path| (path, adapter)));
        Ok(Model { graph, tensors, architecture: Some(model.architecture().clone()), rows: None })
    }
}

impl Model {
    /// What a call takes of these tensors: all of them, and what a pretrained model's inputs are if they are not given.
    ///
    /// # Errors
    /// They do not fit the model.
    pub fn inputs(&self, given: Weights) -> Result<Weights, CliError> {
        let Some(architecture) = &self.architecture else { return Ok(given) };
        let input = |name: &str| match self.graph.find(name).map(|id| self.graph.node(id).op()) {
            Some(Op::Input(input)) => Some(input),
            _ => None,
        };
        // Other tensors in the file are ignored, and what is carried only says how long the past is.
        let (mut named, mut past) = (Weights::new(), 0);
        for (name, tensor) in given.iter() {
            match input(name) {
                Some(Input { carries: None, .. }) => drop(named.insert(name, Arc::clone(tensor))),
                Some(_) => past = past.max(tensor.shape().first().copied().unwrap_or(0)),
                None => {}
            }
        }
        let mut inputs = given;
        for (name, tensor) in architecture.fill_inputs(&named, past, GraphOptions::default())? {
            inputs.insert(name, tensor);
        }
        Ok(inputs)
    }

    /// The adapters of the rows, loaded onto the base of this graph and merged as is asked for; empty if rows have none of
    /// their own.
    ///
    /// # Errors
    /// One does not fit.
    pub fn adapters_on(&self, base: &Base, merging: &Merging) -> Result<Rows, CliError> {
        let Some(rows) = &self.rows else { return Ok(Rows::default()) };
        let bank = AdapterBank::new(self.bank_layers(merging)?, base.clone())?;
        rows.load(&bank)?;
        Ok(bank.rows(&rows.rows)?)
    }

    /// The layers that rows have adapters on.
    fn bank_layers(&self, merging: &Merging) -> Result<BankLayers, CliError> {
        Ok(BankLayers::new(&self.graph, self.architecture.clone(), merging.clone())?)
    }

    /// What a call of the model is like, as far as a command line tells, with these extents: layers that rows have adapters on
    /// are taken to have all as many rows as the one that has most.
    pub fn calls(&self, dims: Bindings) -> Calls {
        let rows = |id| {
            let dims_of_rows = self.graph.node(id).shape().split_last().map_or(&[][..], |(_, rows)| rows);
            dims_of_rows.iter().try_fold(1_u64, |rows, dim| Some(rows.saturating_mul(dim.eval(&dims).ok()?)))
        };
        let adaptable = self.graph.order().into_iter();
        let adaptable = adaptable.filter(|&id| matches!(self.graph.node(id).op(), Op::Adaptable(_)));
        let most = adaptable.map(rows).collect::<Option<Vec<_>>>().and_then(|rows| rows.into_iter().max());
        let adapters = self.rows.as_ref().map_or(1, AdapterRows::distinct);
        Calls { rows: most.unwrap_or(32), adapters, dims }
    }

    /// The file that says which adapter each row has, if rows have their own.
    pub fn rows_file(&self) -> Option<&Path> {
        self.rows.as_ref().map(|rows| rows.path.as_path())
    }

    /// What is merged of the graph itself: adapters of rows are not in it.
    pub fn compiled(&self, merging: &Merging) -> Merging {
        if self.rows.is_some() { Merging::NEVER } else { merging.clone() }
    }

    /// What is done with each adapted layer of the `unmerged` graph, or with each of the adapters of rows, and what it costs.
    /// `model` tells that where nothing is decided by it.
    ///
    /// # Errors
    /// There is no such layer, or no model.
    pub fn decisions(
        &self,
        unmerged: &Graph,
        merging: &Merging,
        model: impl Fn() -> Result<CostModel, CliError>,
    ) -> Result<Vec<Decision>, CliError> {
        let is_adapted = |op: &Op| matches!(op, Op::Lora(_) | Op::Dora(_) | Op::OutputDora(_));
        let Some(rows) = &self.rows else {
            if !unmerged.order().into_iter().any(|id| is_adapted(unmerged.node(id).op())) {
                return Ok(Vec::new());
            }
            let model = merging.model().is_none().then(model).transpose()?;
            return Ok(survey(unmerged, merging, model.as_ref()).map_err(CompileError::from)?);
        };
        let layers = self.bank_layers(merging)?;
        let model = merging.model().is_none().then(model).transpose()?;
        let (mut taken, mut all) = (0, Vec::new());
        rows.each(
            |path, adapter| Ok(layers.updates(path, adapter)?),
            |name, mut weights| {
                for decision in layers.decide(&mut weights, model.as_ref(), taken) {
                    let estimate = decision.estimate.filter(|_| decision.merged);
                    taken += estimate.map_or(0, |estimate| estimate.bytes);
                    all.push(Decision { layer: format!("{name}: {}", decision.layer), ..decision });
                }
                Ok(())
            },
        )?;
        Ok(all)
    }

    /// The weights of a file, and those that came with the model, which take the place of the file's of the same name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn weights(&self, file: Option<&Path>) -> Result<Weights, CliError> {
        let mut weights = file.map_or_else(|| Ok(Weights::new()), read_weights)?;
        for (name, tensor) in self.tensors.iter().flat_map(|(_, tensors)| tensors.iter()) {
            weights.insert(name, tensor.clone());
        }
        Ok(weights)
    }

    /// Where [`weights`](Self::weights) looks.
    pub fn sought(&self, file: Option<&Path>) -> Sought {
        let came_with = self.tensors.iter().map(|(path, _)| path.clone());
        let files: Vec<_> = file.map(Path::to_owned).into_iter().chain(came_with).collect();
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
