//! Adapters that PEFT saved, by name on one compiled model: loaded, replaced and removed while calls run.

use super::{BankLayers, PretrainedError};
use crate::import::peft::PeftAdapter;
use crate::runtime::{Adapter, AdapterWeights, Bank, Base, Rows};
use engraft_compiler::merging::Decision;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A [`Bank`] that reads directories as PEFT lays them out. Shared by reference: every method may be called from any thread
/// while calls run, and nothing is ever compiled.
pub struct AdapterBank {
    layers: BankLayers,
    bank: Bank,
    /// Held while an adapter is decided of and loaded, where merged weights may take so much memory only.
    deciding: Mutex<()>,
}

impl AdapterBank {
    /// An empty one on a base that was compiled from the graph that the layers are of.
    ///
    /// # Errors
    /// [`PretrainedError::OtherLayers`]: the base has other adaptable layers, so it was compiled from another graph.
    pub fn new(layers: BankLayers, base: Base) -> Result<Self, PretrainedError> {
        let of_base = base.program().spec().adaptable.iter().map(|layer| layer.module.as_str()).collect();
        let of_layers: BTreeSet<&str> = layers.modules().collect();
        if let Some(&module) = of_layers.symmetric_difference(&of_base).next() {
            return Err(PretrainedError::OtherLayers {
                module: module.to_owned(),
                of_base: of_base.contains(module),
            });
        }
        Ok(Self { layers, bank: Bank::new(base), deciding: Mutex::new(()) })
    }

    /// Loads the adapter in a directory under a new name.
    ///
    /// # Errors
    /// The name is taken, or the adapter cannot be read, is not supported or does not fit; the bank is then as it was.
    pub fn load(&self, name: &str, directory: impl AsRef<Path>) -> Result<(), PretrainedError> {
        self.load_updates(name, self.weights(directory)?)
    }

    /// As [`load`](Self::load) for what [`weights`](Self::weights) gave, or [`in_order`](crate::runtime::in_order) made of it.
    /// Which layers are merged is decided here, and the weights' own word on it replaced.
    ///
    /// # Errors
    /// The name is taken, or the adapter does not fit.
    pub fn load_updates(&self, name: &str, mut weights: AdapterWeights) -> Result<(), PretrainedError> {
        let _deciding = self.deciding();
        self.decide(&mut weights, None);
        Ok(self.bank.load(name, &weights)?)
    }

    /// Puts the adapter in a directory in the place of the one of this name. Calls under way go on with the old one.
    ///
    /// # Errors
    /// There is none of this name, or as [`load`](Self::load); the old one is then still there.
    pub fn replace(&self, name: &str, directory: impl AsRef<Path>) -> Result<(), PretrainedError> {
        let mut weights = self.weights(directory)?;
        let _deciding = self.deciding();
        self.decide(&mut weights, Some(name));
        Ok(self.bank.replace(name, &weights)?)
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
        self.layers.updates(path, adapter)
    }

    /// Decides for each layer whether it is merged, as the option [`merge`](super::CompileOptions::merge) says, and says so in the
    /// weights; the memory that merged weights may take is shared by all adapters in the bank but the one that is replaced.
    /// An adapter that was replaced or removed, but that calls or [`Rows`] still have, is not counted, nor is the one that is
    /// about to be replaced. [`load`](Self::load), [`load_updates`](Self::load_updates) and [`replace`](Self::replace) decide
    /// for themselves; this tells beforehand.
    pub fn decide(&self, weights: &mut AdapterWeights, replaced: Option<&str>) -> Vec<Decision> {
        let others = self.bank.list().into_iter().filter(|(name, _)| Some(name.as_str()) != replaced);
        let taken = others.map(|(_, adapter)| adapter.merged_bytes() as u64).sum();
        self.layers.decide(weights, None, taken)
    }

    /// Two that are loaded at once may not both take the same memory.
    fn deciding(&self) -> Option<std::sync::MutexGuard<'_, ()>> {
        self.layers.is_limited().then(|| self.deciding.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The bank itself.
    pub fn runtime(&self) -> &Bank {
        &self.bank
    }
}
