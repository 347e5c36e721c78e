//! An adapter on one base: the normal form of each layer that it changes. Knows nothing about other adapters.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::form::{Form, FormError, Layer, LayerWeights};
use crate::load::Base;
use crate::memory::Buffer;

/// What an adapter does, by the name of the layer that it does it to.
pub type AdapterWeights = BTreeMap<String, LayerWeights>;

/// Why an adapter doesn't fit a base.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdapterError {
    /// The base has no layer of this name that may be adapted.
    #[error("the base has no adaptable layer `{module}`; it has {}", super::listed(.known))]
    UnknownModule {
        /// The name.
        module: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A tensor doesn't fit the layer.
    #[error("layer `{module}`: {source}")]
    Form {
        /// The layer.
        module: String,
        /// Why.
        source: FormError,
    },
}

/// An adapter that has been loaded onto a base: ready to be given to calls, from any thread.
#[derive(Debug)]
pub struct Adapter {
    base: Base,
    /// For each of the program's adaptable layers.
    forms: Vec<Option<Arc<Form>>>,
}

impl Adapter {
    /// Computes what is known once an adapter is loaded: packed A and B, and `DoRA`'s gains, or merged weights.
    ///
    /// # Errors
    /// A layer isn't there, or a tensor doesn't fit; nothing is kept then.
    pub fn new(base: &Base, weights: &AdapterWeights) -> Result<Adapter, AdapterError> {
        let spec = base.program().spec();
        for module in weights.keys() {
            if !spec.adaptable.iter().any(|layer| layer.module == *module) {
                let mut known: Vec<_> = spec.adaptable.iter().map(|layer| layer.module.clone()).collect();
                known.dedup();
                return Err(AdapterError::UnknownModule { module: module.clone(), known });
            }
        }
        let mut forms: Vec<Option<Arc<Form>>> = Vec::with_capacity(spec.adaptable.len());
        for (index, layer) in spec.adaptable.iter().enumerate() {
            let same = |other: &usize| {
                let other = &spec.adaptable[*other];
                other.module == layer.module
                    && other.weight == layer.weight
                    && other.has_bias == layer.has_bias
            };
            let form = match weights.get(&layer.module) {
                None => None,
                // A layer that is used twice is adapted once.
                Some(weights) => Some(match (0..index).find(same).and_then(|other| forms[other].clone()) {
                    Some(form) => form,
                    None => Arc::new(form(base, index, weights)?),
                }),
            };
            forms.push(form);
        }
        Ok(Adapter { base: base.clone(), forms })
    }

    /// The base that it is for.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.distinct().map(Form::bytes).sum()
    }

    /// The forms, each once.
    fn distinct(&self) -> impl Iterator<Item = &Form> {
        let is_first =
            |index: &usize| !self.forms[..*index].iter().flatten().any(|form| self.is(form, *index));
        (0..self.forms.len()).filter(is_first).filter_map(|index| self.forms[index].as_deref())
    }

    /// The bytes of its merged weights, which [`bytes`](Self::bytes) counts too.
    pub fn merged_bytes(&self) -> usize {
        self.distinct().filter_map(|form| form.weight.as_ref()).map(Buffer::bytes).sum()
    }

    /// The layers that it changes, in the program's order, with the rank of what a call adds to them: 0 if it is merged.
    pub fn layers(&self) -> impl Iterator<Item = (&str, usize)> {
        let layers = self.base.program().spec().adaptable.iter().zip(&self.forms);
        layers.filter_map(|(layer, form)| Some((layer.module.as_str(), form.as_ref()?.rank)))
    }

    fn is(&self, form: &Arc<Form>, index: usize) -> bool {
        self.forms[index].as_ref().is_some_and(|other| Arc::ptr_eq(other, form))
    }

    /// What it does to a layer.
    pub(crate) fn form(&self, layer: usize) -> Option<&Form> {
        self.forms.get(layer)?.as_deref()
    }
}

fn form(base: &Base, index: usize, weights: &LayerWeights) -> Result<Form, AdapterError> {
    let (spec, kernels) = (base.program().spec(), base.context().kernels);
    let described = &spec.adaptable[index];
    let [_, _, k, out] = base.extents(index);
    let layer = Layer {
        out: out as usize,
        k: k as usize,
        weight: base.staged(described.weight).cast_const().cast(),
        has_bias: described.has_bias,
    };
    // SAFETY: the base holds the panels of the layer's weight, as its program says; a context's kernels can be run.
    let form = unsafe { Form::new(layer, weights, kernels) };
    form.map_err(|source| AdapterError::Form { module: described.module.clone(), source })
}
