//! Adapters that PEFT saved, by name on one compiled model: loaded, replaced and removed while calls run.

use super::PretrainedError;
use crate::import::models::Architecture;
use crate::import::peft::{AdaptableLayers, PeftAdapter};
use crate::runtime::{Adapter, AdapterWeights, Bank, Base, Rows};
use engraft_ir::Graph;
use std::path::Path;
use std::sync::Arc;

/// A [`Bank`] that reads directories as PEFT lays them out. Shared by reference: every method may be called from any thread
/// while calls run, and nothing is ever compiled.
pub struct AdapterBank {
    architecture: Architecture,
    layers: AdaptableLayers,
    bank: Bank,
}

impl AdapterBank {
    pub(super) fn new(architecture: Architecture, graph: &Graph, base: Base) -> Self {
        Self { architecture, layers: AdaptableLayers::new(graph), bank: Bank::new(base) }
    }

    /// Loads the adapter in a directory under a new name.
    ///
    /// # Errors
    /// The name is taken, or the adapter cannot be read, is not supported or does not fit; the bank is then as it was.
    pub fn load(&self, name: &str, directory: impl AsRef<Path>) -> Result<(), PretrainedError> {
        Ok(self.bank.load(name, &self.weights(directory)?)?)
    }

    /// Puts the adapter in a directory in the place of the one of this name. Calls under way go on with the old one.
    ///
    /// # Errors
    /// There is none of this name, or as [`load`](Self::load); the old one is then still there.
    pub fn replace(&self, name: &str, directory: impl AsRef<Path>) -> Result<(), PretrainedError> {
        Ok(self.bank.replace(name, &self.weights(directory)?)?)
    }

    /// Takes an adapter out. Calls under way go on with it; its memory is free when the last of them ends.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn remove(&self, name: &str) -> Result<(), PretrainedError> {
        Ok(self.bank.remove(name)?)
    }

    /// The adapters there are, in the order of their names.
    pub fn list(&self) -> Vec<(String, Arc<Adapter>)> {
        self.bank.list()
    }

    /// Who is to have which adapter: one name for each item of a batch, `None` for the base alone.
    ///
    /// # Errors
    /// There is none of a name.
    pub fn rows<N: AsRef<str>>(&self, names: &[Option<N>]) -> Result<Rows, PretrainedError> {
        Ok(self.bank.rows(names)?)
    }

    /// What the adapter in a directory does to each layer, for [`runtime`](Self::runtime), which takes several updates in a
    /// row and those that were made otherwise.
    ///
    /// # Errors
    /// It cannot be read, is not supported or does not fit; the error names the directory.
    pub fn weights(&self, directory: impl AsRef<Path>) -> Result<AdapterWeights, PretrainedError> {
        let path = directory.as_ref();
        self.updates(path, &PeftAdapter::open(path)?)
    }

    /// As [`weights`](Self::weights) for an adapter that was read before; errors call it `path`.
    ///
    /// # Errors
    /// It does not fit.
    pub fn updates(&self, path: &Path, adapter: &PeftAdapter) -> Result<AdapterWeights, PretrainedError> {
        let fitted = self.architecture.fit_adapter(adapter);
        let (adapter, _) =
            fitted.map_err(|source| PretrainedError::Tensors { path: path.to_owned(), source })?;
        self.layers
            .updates(&adapter)
            .map_err(|source| PretrainedError::Attach { path: path.to_owned(), source: Box::new(source) })
    }

    /// The bank itself.
    pub fn runtime(&self) -> &Bank {
        &self.bank
    }
}
