//! Weights: tensors by name. Knows nothing about programs or formats of files.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::tensor::Tensor;

/// Tensors by name, shared with whatever is loaded from them: a loaded program keeps those that it goes on reading. Once
/// the weights are dropped, the memory of the others is free.
///
/// ```
/// use engraft_runtime::{Tensor, Weights};
/// let mut weights = Weights::new();
/// weights.insert("bias", Tensor::f32(&[2], vec![0.5, -0.5])?);
/// assert_eq!(weights.get("bias").map(|bias| bias.shape()), Some([2].as_slice()));
/// # Ok::<(), engraft_runtime::TensorError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Arc<Tensor>>,
}

impl Weights {
    /// No weights.
    pub fn new() -> Weights {
        Weights::default()
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<Tensor>> {
        self.tensors.get(name)
    }

    /// Adds a tensor and returns the one that had its name before.
    pub fn insert(&mut self, name: impl Into<String>, tensor: impl Into<Arc<Tensor>>) -> Option<Arc<Tensor>> {
        self.tensors.insert(name.into(), tensor.into())
    }

    /// All tensors, by name in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Tensor>)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

impl<N: Into<String>, T: Into<Arc<Tensor>>> FromIterator<(N, T)> for Weights {
    fn from_iter<I: IntoIterator<Item = (N, T)>>(tensors: I) -> Weights {
        Weights { tensors: tensors.into_iter().map(|(name, tensor)| (name.into(), tensor.into())).collect() }
    }
}
