//! The bookkeeping of an adapter's tensors: each is taken once, under the name and shape that the graph expects, and none
//! may be left. Knows nothing about graphs or configs.

use engraft_runtime::{DType, Tensor, TensorError, Weights};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// Why an adapter's tensors do not fit.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TensorsError {
    /// There is no such tensor.
    #[error("tensor `{tensor}` is missing, expected f32{expected:?}")]
    Missing {
        /// The name.
        tensor: String,
        /// Its shape.
        expected: Vec<u64>,
    },
    /// There is no such tensor, and its shape is not known.
    #[error("tensor `{tensor}` is missing")]
    Absent {
        /// The name.
        tensor: String,
    },
    /// A tensor has too few dims.
    #[error("tensor `{tensor}` is {found:?}, which has too few dims")]
    Dims {
        /// The name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor has the wrong shape.
    #[error("tensor `{tensor}` is {found:?}, expected {expected:?}{}", note(*.rank))]
    Shape {
        /// The name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The right one.
        expected: Vec<u64>,
        /// r by the config, where it is part of the right one.
        rank: Option<u64>,
    },
    /// A tensor has the wrong element type.
    #[error("tensor `{tensor}` is {found}, expected a float")]
    DType {
        /// The name.
        tensor: String,
        /// Its type.
        found: DType,
    },
    /// Two tensors say different things about one parameter.
    #[error("tensors `{tensor}` and `{other}` are both given for one parameter, and differ")]
    Conflict {
        /// The one.
        tensor: String,
        /// The other.
        other: String,
    },
    /// A tensor cannot be read.
    #[error("tensor `{tensor}`: {source}")]
    Read {
        /// The tensor.
        tensor: String,
        /// Why.
        source: TensorError,
    },
    /// Tensors are left that nothing asked for.
    #[error("nothing uses tensors {}: their modules are not adapted by this config, or not in the graph", quoted(.tensors))]
    Unused {
        /// The names.
        tensors: Vec<String>,
    },
}

fn note(rank: Option<u64>) -> String {
    rank.map_or_else(String::new, |rank| format!(" (r is {rank} by the config)"))
}

/// The names, each in backquotes.
pub(super) fn quoted(names: &[String]) -> String {
    const MOST: usize = 8;
    let listed = names.iter().take(MOST).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > MOST { format!("{listed}, ... ({} in all)", names.len()) } else { listed }
}

/// The tensors of a file that nothing has asked for yet, and those taken, under the parameters' names.
#[derive(Debug)]
pub(super) struct Ledger {
    left: BTreeMap<String, Arc<Tensor>>,
    taken: Weights,
}

impl Ledger {
    pub(super) fn new(tensors: &Weights) -> Self {
        let left = tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
        Self { left, taken: Weights::new() }
    }

    /// Whether a tensor is left.
    pub(super) fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// Whether any tensor is left whose name starts like this.
    pub(super) fn has_any(&self, prefix: &str) -> bool {
        self.left.range(prefix.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// Takes a tensor that is known not to matter.
    pub(super) fn ignore(&mut self, name: &str) {
        self.left.remove(name);
    }

    /// Takes the tensor for a parameter, which may have one of several names in the file, the first being the usual
    /// one. `rank` is for the error.
    pub(super) fn take(
        &mut self,
        parameter: &str,
        names: &[String],
        expected: &[u64],
        rank: Option<u64>,
    ) -> Result<(), TensorsError> {
        let mut found: Option<(&String, Arc<Tensor>)> = None;
        for name in names {
            let Some(tensor) = self.left.remove(name) else { continue };
            check(name, &tensor, expected, rank)?;
            match &found {
                Some((other, earlier)) if differ((other, earlier), (name, &tensor))? => {
                    return Err(TensorsError::Conflict { tensor: name.clone(), other: (*other).clone() });
                }
                Some(_) => {}
                None => found = Some((name, tensor)),
            }
        }
        let usual = names.first().map_or(parameter, String::as_str);
        let missing = || TensorsError::Missing { tensor: usual.to_owned(), expected: expected.to_vec() };
        let (_, tensor) = found.ok_or_else(missing)?;
        self.taken.insert(parameter, tensor);
        Ok(())
    }

    /// Takes a tensor of which the shape is known in part: `expected` completes it from what is found, and gives nothing
    /// if that has too few dims. It may have one of several names, the first being the usual one. `rank` is for the error.
    pub(super) fn take_shaped(
        &mut self,
        names: &[String],
        expected: impl Fn(&[usize]) -> Option<Vec<u64>>,
        rank: u64,
    ) -> Result<Arc<Tensor>, TensorsError> {
        let given = names.iter().find(|name| self.left.contains_key(*name)).or(names.first());
        let usual = given.cloned().unwrap_or_default();
        let Some(tensor) = self.left.get(&usual).cloned() else {
            return Err(TensorsError::Absent { tensor: usual });
        };
        let shape = expected(tensor.shape())
            .ok_or_else(|| TensorsError::Dims { tensor: usual.clone(), found: tensor.shape().to_vec() })?;
        let rank = Some(rank).filter(|_| shape.len() == 2);
        self.take(&usual, names, &shape, rank)?;
        Ok(tensor)
    }

    /// The names of the tensors that nothing has asked for.
    pub(super) fn left(&self) -> impl Iterator<Item = &str> {
        self.left.keys().map(String::as_str)
    }

    /// The tensors taken, if none is left.
    pub(super) fn finish(self) -> Result<Weights, TensorsError> {
        if self.left.is_empty() {
            return Ok(self.taken);
        }
        Err(TensorsError::Unused { tensors: self.left.into_keys().collect() })
    }
}

/// Whether two tensors of floats, each with its name, have different ones.
fn differ((name, tensor): (&str, &Tensor), (other, like): (&str, &Tensor)) -> Result<bool, TensorsError> {
    // Copies, where the floats are still to be made: they go at once.
    let floats = |name: &str, tensor| {
        Tensor::to_floats(tensor).map_err(|source| TensorsError::Read { tensor: name.to_owned(), source })
    };
    Ok(floats(name, tensor)? != floats(other, like)?)
}

fn check(name: &str, tensor: &Tensor, expected: &[u64], rank: Option<u64>) -> Result<(), TensorsError> {
    if tensor.dtype() != DType::F32 {
        return Err(TensorsError::DType { tensor: name.to_owned(), found: tensor.dtype() });
    }
    if tensor.shape().iter().map(|&dim| dim as u64).ne(expected.iter().copied()) {
        return Err(TensorsError::Shape {
            tensor: name.to_owned(),
            found: tensor.shape().to_vec(),
            expected: expected.to_vec(),
            rank,
        });
    }
    Ok(())
}
