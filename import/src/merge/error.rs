//! Why a directory is not merged or unmerged.

use crate::models::{DirectoryError, TensorsError};
use crate::peft::{ComposeError, FormError};
use crate::safetensors::{FloatType, SafetensorsError};
use crate::sentence::SentenceError;
use engraft_ir::BuildErrors;
use engraft_runtime::TensorError;
use safetensors::Dtype;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a directory is not merged or unmerged.
#[derive(Debug, Error)]
pub enum MergeError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The base is no directory.
    #[error("{}: expected a model's directory with safetensors; what else holds a model, such as GGUF, is not merged into", path.display())]
    NotADirectory {
        /// What was given.
        path: PathBuf,
    },
    /// There is something where the output should be.
    #[error("{}: there is something already; the output must not exist or be an empty directory", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// There are more files or directories beside the weights than models have.
    #[error("{}: there are more than {limit} files or directories in it, which no model has", path.display())]
    TooManyFiles {
        /// The directory.
        path: PathBuf,
        /// The most there may be.
        limit: usize,
    },
    /// The model cannot be opened.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The files of sentence-transformers cannot be read.
    #[error(transparent)]
    Sentence(#[from] SentenceError),
    /// Weights cannot be read or written.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// The model's config makes no graph.
    #[error(transparent)]
    Build(#[from] BuildErrors),
    /// The names of an adapter's tensors are not the model's.
    #[error("adapter {adapter}: {source}")]
    Names {
        /// Which, from 1.
        adapter: usize,
        /// Why.
        source: TensorsError,
    },
    /// An adapter adapts what is not known.
    #[error(
        "adapter {adapter} has {}, which belong to a part of the model that is not known here (a head or a pooler), so \
         they would be lost", names(.tensors)
    )]
    Outside {
        /// Which, from 1.
        adapter: usize,
        /// Its tensors.
        tensors: Vec<String>,
    },
    /// The adapters do not fit the model or each other.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// There is no merged weight.
    #[error(transparent)]
    Form(#[from] FormError),
    /// A tensor is not of floats.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// What an adapter puts in a tensor's place, or what was kept of one, cannot be read.
    #[error("tensor `{tensor}`: {source}")]
    Read {
        /// The tensor.
        tensor: String,
        /// Why.
        source: TensorError,
    },
    /// A tensor is not of floats that are read.
    #[error("tensor `{tensor}` is {found}, expected F32, F16 or BF16")]
    NotFloats {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: Dtype,
    },
    /// A tensor has another size than the adapter or the model.
    #[error("tensor `{tensor}` has {found} elements, expected {expected}")]
    Size {
        /// The tensor.
        tensor: String,
        /// How many it has.
        found: usize,
        /// How many it should have.
        expected: usize,
    },
    /// The model's files lack a parameter.
    #[error("there is no tensor for `{param}`, which the adapters change")]
    Missing {
        /// The parameter.
        param: String,
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
    /// An adapter's B has a bias and the module has none.
    #[error("an adapter's B has a bias (`lora_bias`), but there is no tensor for `{param}` to add it to")]
    NoBias {
        /// The parameter that is missing.
        param: String,
    },
    /// The weight is used by others that are not adapted.
    #[error("the weight of `{module}` is tied to {}, which the adapters leave as it is: one tensor cannot be both", names(.tied))]
    Tied {
        /// The adapted module.
        module: String,
        /// What its weight is tied to.
        tied: Vec<String>,
    },
    /// A merged weight is beyond the type's range.
    #[error("tensor `{tensor}`: {found:e} is no finite {dtype}")]
    Range {
        /// The tensor.
        tensor: String,
        /// The type.
        dtype: FloatType,
        /// The element.
        found: f64,
    },
    /// Too little of a change survives rounding.
    #[error(
        "rounded to {dtype}, only {:.1}% of what the adapters change in `{tensor}` survives, at least {:.1}% should \
         ({tensors} tensors have less); write f32, or use force", 100.0 * survival, 100.0 * least
    )]
    Lossy {
        /// The tensor of which the least survives.
        tensor: String,
        /// The type it would be written in.
        dtype: FloatType,
        /// How much survives.
        survival: f64,
        /// How much should.
        least: f64,
        /// How many tensors have less than that.
        tensors: usize,
    },
    /// What an adapter put in the place of a parameter cannot be taken back.
    #[error("the adapters replaced {}, and what was there before is not in the merged weights", names(.params))]
    Replaced {
        /// The parameters.
        params: Vec<String>,
    },
    /// Other adapters were merged.
    #[error("{}: other adapters were merged, or in another order", path.display())]
    OtherAdapters {
        /// The record.
        path: PathBuf,
    },
    /// The gains are not known.
    #[error(
        "{}: there is no gain of adapter {adapter} for `{module}`, and DoRA's gain cannot be computed from the merged \
         weight, since it depends on the original", path.display()
    )]
    NoGain {
        /// Where it should be.
        path: PathBuf,
        /// Which adapter, from 1.
        adapter: usize,
        /// The module.
        module: String,
    },
    /// A gain of zero has wiped out a part of the weight.
    #[error("the gain of `{module}` is zero for output {output}, so that part of its weight is lost")]
    Lost {
        /// The module.
        module: String,
        /// The output.
        output: usize,
    },
}

impl MergeError {
    /// Which adapter does not fit, from 1, if it is one alone.
    pub fn adapter(&self) -> Option<usize> {
        match self {
            Self::Names { adapter, .. } | Self::Outside { adapter, .. } => Some(*adapter),
            Self::Compose(error) => error.adapter(),
            _ => None,
        }
    }

    /// The same of an adapter that is another one to the caller.
    pub(super) fn of_adapter(self, number: usize) -> Self {
        match self {
            Self::Names { source, .. } => Self::Names { adapter: number, source },
            Self::Outside { tensors, .. } => Self::Outside { adapter: number, tensors },
            Self::Compose(error) => Self::Compose(error.of_adapter(number)),
            other => other,
        }
    }
}

fn names(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
