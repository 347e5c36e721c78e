//! The tensors of a checkpoint under the names of a graph's parameters. It fails closed: each tensor is a parameter, or
//! known to be no part of the graph, or an error; each parameter has its tensor. Knows nothing about files.

use engraft_ir::{BuildErrors, DType, Dim, Graph, TensorType};
use engraft_runtime::{DType as Stored, Tensor, TensorError, Weights};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// How many names a message lists.
const LISTED: usize = 4;

/// Why a checkpoint's tensors are not a model's.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum TensorsError {
    /// A tensor is neither one of the model's nor known to be no part of it.
    #[error("tensor `{tensor}` is none of the model's")]
    Unknown {
        /// The tensor.
        tensor: String,
    },
    /// Tensors are absent.
    #[error("{} of the model's tensors are missing: {}", .tensors.len(), listed(.tensors))]
    Missing {
        /// Their names, as the graph has them.
        tensors: Vec<String>,
    },
    /// Two tensors are one parameter.
    #[error("tensors `{first}` and `{second}` are the same parameter `{param}`")]
    Twice {
        /// A tensor.
        first: String,
        /// Another.
        second: String,
        /// The parameter.
        param: String,
    },
    /// A tensor's type or shape is another than the config says.
    #[error("tensor `{tensor}` is {found}{shape:?}, expected {expected}")]
    Type {
        /// The tensor.
        tensor: String,
        /// Its element type.
        found: Stored,
        /// Its shape.
        shape: Vec<usize>,
        /// The parameter's type.
        expected: TensorType,
    },
    /// The config ties two tensors, and they differ.
    #[error("`{tensor}` differs from `{tied}`, but the config ties them (`tie_word_embeddings`)")]
    Tied {
        /// The tensor.
        tensor: String,
        /// The one it should equal.
        tied: String,
    },
    /// A tensor cannot be read.
    #[error("tensor `{tensor}`: {source}")]
    Read {
        /// The tensor.
        tensor: String,
        /// Why.
        source: TensorError,
    },
    /// The config makes no graph.
    #[error(transparent)]
    Build(#[from] BuildErrors),
}

impl TensorsError {
    /// The tensor of the checkpoint that is wrong, if it is one that is there.
    pub(super) fn tensor(&self) -> Option<&str> {
        match self {
            Self::Unknown { tensor }
            | Self::Type { tensor, .. }
            | Self::Tied { tensor, .. }
            | Self::Read { tensor, .. }
            | Self::Twice { second: tensor, .. } => Some(tensor),
            Self::Missing { .. } | Self::Build(_) => None,
        }
    }
}

fn listed(names: &[String]) -> String {
    let mut text = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        text.push_str(", ...");
    }
    text
}

/// A checkpoint's tensors as a graph's parameters.
#[derive(Clone, Debug)]
pub struct Normalised {
    /// One for each parameter, under its name.
    pub weights: Weights,
    /// The tensors of the checkpoint that are no part of the graph, by their own names: heads, poolers, buffers.
    pub left_out: Vec<String>,
}

/// How an architecture's tensors are called. In patterns `*` stands for a number, and one that ends in a dot for all
/// names that begin with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Naming {
    /// What stands in front of the base model's tensors if a model with a head was saved: `bert.`.
    pub(super) wrapper: &'static str,
    /// What stands in front of them in the graph.
    pub(super) prefix: &'static str,
    /// Patterns of the graph's parameters that are no part of the base model, so have neither in front.
    pub(super) heads: &'static [&'static str],
    /// Ends of names, and what they are in the graph.
    pub(super) renamed: &'static [(&'static str, &'static str)],
    /// Patterns of the tensors that are no part of the graph, without what stands in front.
    pub(super) left_out: &'static [&'static str],
    /// A tensor that the config ties to another, by their names in the graph.
    pub(super) tied: Option<(&'static str, &'static str)>,
}

impl Naming {
    /// The name without what stands in front, and with the endings of today.
    fn base(&self, tensor: &str) -> String {
        let name = tensor.strip_prefix(self.wrapper).unwrap_or(tensor);
        let renamed = self.renamed.iter().find_map(|(old, new)| Some((name.strip_suffix(old)?, new)));
        renamed.map_or_else(|| name.to_owned(), |(stem, new)| format!("{stem}{new}"))
    }

    /// The name in the graph of a tensor of a checkpoint.
    pub(super) fn of(&self, tensor: &str) -> String {
        self.param(&self.base(tensor))
    }

    /// The name in the graph.
    fn param(&self, base: &str) -> String {
        let prefix = if self.heads.iter().any(|head| matches(head, base)) { "" } else { self.prefix };
        format!("{prefix}{base}")
    }
}

/// Whether a name is one of a pattern's; see [`Naming`].
fn matches(pattern: &str, name: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut names = name.split('.');
    let mut parts = pattern.split('.').peekable();
    while let Some(part) = parts.next() {
        let is_open_end = part.is_empty() && parts.peek().is_none();
        match names.next() {
            Some(_) if is_open_end => return true,
            Some(name) if part == name || (part == "*" && is_number(name)) => {}
            _ => return false,
        }
    }
    names.next().is_none()
}

/// The tensors of a checkpoint as the parameters of a graph.
pub(super) fn normalise(
    graph: &Graph,
    naming: &Naming,
    weights: &Weights,
) -> Result<Normalised, TensorsError> {
    let params: BTreeMap<String, TensorType> = graph.params().into_iter().map(|p| (p.name, p.ty)).collect();
    let mut found: BTreeMap<String, (&str, &Arc<Tensor>)> = BTreeMap::new();
    let mut left_out = Vec::new();
    for (tensor, data) in weights.iter() {
        let base = naming.base(tensor);
        let param = naming.param(&base);
        let is_tied = naming.tied.is_some_and(|(tied, _)| tied == param);
        if let Some(expected) = params.get(&param) {
            check_type(tensor, data, expected)?;
        } else if naming.left_out.iter().any(|pattern| matches(pattern, &base)) {
            left_out.push(tensor.to_owned());
            continue;
        } else if !is_tied {
            return Err(TensorsError::Unknown { tensor: tensor.to_owned() });
        }
        if let Some((first, _)) = found.insert(param.clone(), (tensor, data)) {
            return Err(TensorsError::Twice { first: first.to_owned(), second: tensor.to_owned(), param });
        }
    }
    if let Some((tied, to)) = naming.tied
        && let Some((tensor, data)) = found.remove(tied)
    {
        match found.get(to) {
            // Whatever is missing is reported below.
            Some((_, other)) if !same(tensor, data, other)? => {
                return Err(TensorsError::Tied { tensor: tensor.to_owned(), tied: to.to_owned() });
            }
            _ => left_out.push(tensor.to_owned()),
        }
    }
    let tensors: Vec<String> = params.keys().filter(|param| !found.contains_key(*param)).cloned().collect();
    if !tensors.is_empty() {
        return Err(TensorsError::Missing { tensors });
    }
    let weights = found.into_iter().map(|(param, (_, data))| (param, Arc::clone(data))).collect();
    Ok(Normalised { weights, left_out })
}

/// The tensors of an adapter under the names of a graph's modules, and the names of those that adapt no part of it.
pub(super) fn fit_adapter(
    naming: &Naming,
    tensors: &Weights,
) -> Result<(Weights, Vec<String>), TensorsError> {
    let mut found: BTreeMap<String, (&str, &Arc<Tensor>)> = BTreeMap::new();
    let mut left_out = Vec::new();
    for (tensor, data) in tensors.iter() {
        let base = naming.base(tensor);
        if naming.left_out.iter().any(|pattern| matches(pattern, &base)) {
            left_out.push(tensor.to_owned());
            continue;
        }
        let param = naming.param(&base);
        if let Some((first, _)) = found.insert(param.clone(), (tensor, data)) {
            return Err(TensorsError::Twice { first: first.to_owned(), second: tensor.to_owned(), param });
        }
    }
    Ok((found.into_iter().map(|(param, (_, data))| (param, Arc::clone(data))).collect(), left_out))
}

fn check_type(tensor: &str, data: &Tensor, expected: &TensorType) -> Result<(), TensorsError> {
    let shape = data.shape().iter().map(|&dim| Some(dim as u64));
    let fits = (data.dtype(), expected.dtype) == (Stored::F32, DType::F32)
        && shape.eq(expected.shape.iter().map(Dim::as_fixed));
    if fits {
        return Ok(());
    }
    let (found, shape) = (data.dtype(), data.shape().to_vec());
    Err(TensorsError::Type { tensor: tensor.to_owned(), found, shape, expected: expected.clone() })
}

/// Whether two tensors of floats, the first called `tensor`, are the same to the bit.
fn same(tensor: &str, a: &Tensor, b: &Tensor) -> Result<bool, TensorsError> {
    let read = |source| TensorsError::Read { tensor: tensor.to_owned(), source };
    // Copies, where the floats are still to be made: they go at once.
    let (a, b) = (a.to_floats().map_err(read)?, b.to_floats().map_err(read)?);
    let (Ok(x), Ok(y)) = (a.as_f32(), b.as_f32()) else { return Ok(false) };
    Ok(a.shape() == b.shape() && x.iter().map(|x| x.to_bits()).eq(y.iter().map(|y| y.to_bits())))
}
