//! A bank: adapters by name on one base, that come and go while calls run. Knows nothing about what an adapter computes or
//! where its tensors come from.
//!
//! The set of adapters is replaced as a whole, never changed: a call works with those that it was given, whatever happens
//! to the bank meanwhile, and an adapter's memory is free when neither the bank nor a call has it.

mod adapter;
mod form;
mod joint;
mod order;
mod rows;

pub use adapter::{Adapter, AdapterError, AdapterWeights};
pub(crate) use form::Form;
pub use form::{FormError, LayerWeights, Update};
pub use order::{OrderError, in_order};
pub(crate) use rows::Piece;
pub use rows::{Rows, Runs};

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::load::Base;

/// Why a bank doesn't do what it is asked to. It stays as it was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BankError {
    /// A name that is taken.
    #[error("there is an adapter `{name}` already; replace or remove it")]
    Taken {
        /// The name.
        name: String,
    },
    /// A name that isn't there.
    #[error("there is no adapter `{name}`; there are {}", listed(.known))]
    Unknown {
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The adapter doesn't fit.
    #[error("adapter `{name}`: {source}")]
    Adapter {
        /// Its name.
        name: String,
        /// Why.
        source: Box<AdapterError>,
    },
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

type Adapters = BTreeMap<String, Arc<Adapter>>;

/// Adapters by name on one base. Every method may be called from any thread while calls run; loading computes on the
/// thread that loads, and whoever asks for [`rows`](Self::rows) meanwhile is not kept waiting.
///
/// Of the adapters of one bank, each may have a kind, ranks and targets of its own; see [`Update`]. Nothing is ever
/// compiled.
#[derive(Debug)]
pub struct Bank {
    base: Base,
    /// Held for the exchange of the set only, never while an adapter is made.
    adapters: RwLock<Arc<Adapters>>,
    /// Held by whoever changes the set, so that two changes follow each other.
    changing: Mutex<()>,
}

impl Bank {
    /// A bank without adapters.
    pub fn new(base: Base) -> Bank {
        Bank { base, adapters: RwLock::default(), changing: Mutex::new(()) }
    }

    /// The base that the adapters are put on.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Adds an adapter under a new name.
    ///
    /// # Errors
    /// The name is taken, or the adapter doesn't fit the base; the bank is then as it was.
    pub fn load(&self, name: &str, weights: &AdapterWeights) -> Result<(), BankError> {
        let free = |set: &Adapters| {
            let taken = BankError::Taken { name: name.to_owned() };
            if set.contains_key(name) { Err(taken) } else { Ok(()) }
        };
        // A name that is taken is told before the work, too.
        free(&self.snapshot())?;
        let adapter = self.make(name, weights)?;
        self.change(|set| {
            free(set)?;
            set.insert(name.to_owned(), adapter);
            Ok(())
        })
    }

    /// Puts an adapter in the place of the one of this name. Calls under way go on with the old one, and if the new one
    /// doesn't fit, so does everybody.
    ///
    /// # Errors
    /// There is none of this name, or the new one doesn't fit the base.
    pub fn replace(&self, name: &str, weights: &AdapterWeights) -> Result<(), BankError> {
        let is_there = |set: &Adapters| if set.contains_key(name) { Ok(()) } else { Err(unknown(set, name)) };
        is_there(&self.snapshot())?;
        let adapter = self.make(name, weights)?;
        self.change(|set| {
            is_there(set)?;
            set.insert(name.to_owned(), adapter);
            Ok(())
        })
    }

    /// Takes an adapter out. Calls under way go on with it; its memory is free when the last of them ends.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn remove(&self, name: &str) -> Result<(), BankError> {
        self.change(|set| set.remove(name).map(|_| ()).ok_or_else(|| unknown(set, name)))
    }

    /// The names and adapters there are, in the order of the names.
    pub fn list(&self) -> Vec<(String, Arc<Adapter>)> {
        self.snapshot().iter().map(|(name, adapter)| (name.clone(), Arc::clone(adapter))).collect()
    }

    /// The adapter of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<Arc<Adapter>, BankError> {
        let set = self.snapshot();
        set.get(name).cloned().ok_or_else(|| unknown(&set, name))
    }

    /// The adapters of a batch's items by name, `None` for the base alone: what a call is given. All are of one moment.
    ///
    /// # Errors
    /// There is none of a name.
    pub fn rows<N: AsRef<str>>(&self, names: &[Option<N>]) -> Result<Rows, BankError> {
        let set = self.snapshot();
        let adapter = |name: &str| set.get(name).cloned().ok_or_else(|| unknown(&set, name));
        let items = names.iter().map(|name| name.as_ref().map(|name| adapter(name.as_ref())).transpose());
        Ok(Rows::new(items.collect::<Result<_, _>>()?))
    }

    fn make(&self, name: &str, weights: &AdapterWeights) -> Result<Arc<Adapter>, BankError> {
        let adapter = Adapter::new(&self.base, weights);
        adapter
            .map(Arc::new)
            .map_err(|source| BankError::Adapter { name: name.to_owned(), source: Box::new(source) })
    }

    fn snapshot(&self) -> Arc<Adapters> {
        // Nothing panics while it holds the lock, and a set is whole at any moment.
        Arc::clone(&self.adapters.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Exchanges the set for a changed copy, unless the change fails.
    fn change(&self, change: impl FnOnce(&mut Adapters) -> Result<(), BankError>) -> Result<(), BankError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut set = Adapters::clone(&self.snapshot());
        change(&mut set)?;
        let old = std::mem::replace(
            &mut *self.adapters.write().unwrap_or_else(PoisonError::into_inner),
            Arc::new(set),
        );
        // What only the old set held is freed with no lock that a call might wait for.
        drop(old);
        Ok(())
    }
}

fn unknown(set: &Adapters, name: &str) -> BankError {
    BankError::Unknown { name: name.to_owned(), known: set.keys().cloned().collect() }
}
