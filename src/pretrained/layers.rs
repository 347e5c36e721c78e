//! The layers of a graph that adapters of a bank are put on: what an adapter that PEFT saved does to each, and which are merged
//! there. Knows nothing about which adapters there are, and runs nothing.

use super::PretrainedError;
use crate::import::models::Architecture;
use crate::import::peft::{AdaptableLayers, PeftAdapter};
use crate::runtime::AdapterWeights;
use crate::{CompileError, Merging};
use engraft_compiler::CostModel;
use engraft_compiler::merging::{Decision, parameters};
use engraft_ir::Graph;
use std::path::Path;

/// The [adaptable](crate::import::peft::adaptable()) layers of a graph, and which adapters are merged there.
pub struct BankLayers {
    architecture: Option<Architecture>,
    layers: AdaptableLayers,
    merging: Merging,
    /// The bytes of the base's weights.
    base_bytes: u64,
}

impl BankLayers {
    /// Those of a graph. A pretrained model's `architecture` brings adapters to the graph's names and shapes.
    ///
    /// # Errors
    /// Something is said of the merging of a layer that there is none of.
    pub fn new(
        graph: &Graph,
        architecture: Option<Architecture>,
        merging: Merging,
    ) -> Result<Self, PretrainedError> {
        let layers = AdaptableLayers::new(graph);
        merging.check_names(layers.modules()).map_err(CompileError::from)?;
        Ok(Self { architecture, layers, merging, base_bytes: parameters(graph) })
    }

    /// The names of the modules that they are, in alphabetical order.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.layers.modules()
    }

    /// What an adapter does to each layer; errors call it `path`.
    ///
    /// # Errors
    /// It does not fit.
    pub fn updates(&self, path: &Path, adapter: &PeftAdapter) -> Result<AdapterWeights, PretrainedError> {
        let fitted = self.architecture.as_ref().map(|architecture| architecture.fit_adapter(adapter));
        let fitted = fitted
            .transpose()
            .map_err(|source| PretrainedError::Tensors { path: path.to_owned(), source })?;
        let adapter = fitted.as_ref().map_or(adapter, |(adapter, _)| adapter);
        self.layers
            .updates(adapter)
            .map_err(|source| PretrainedError::Attach { path: path.to_owned(), source: Box::new(source) })
    }

    /// Decides for each layer of an adapter whether it is merged, and says so in its weights. `model` tells what they cost where
    /// nothing is decided by it, and `taken` are the bytes that merged weights of other adapters take already.
    pub fn decide(
        &self,
        weights: &mut AdapterWeights,
        model: Option<&CostModel>,
        taken: u64,
    ) -> Vec<Decision> {
        self.merging.mark(weights, model, self.base_bytes, taken)
    }

    /// Whether merged weights may take so much memory only.
    pub(super) fn is_limited(&self) -> bool {
        self.merging.model().is_some_and(|model| model.workload.memory.is_some())
    }
}
