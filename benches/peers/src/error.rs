//! What can go wrong, each with its place.

use crate::agreement::Agreement;
use std::io;
use std::path::PathBuf;

/// Why there are no results.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something that the set-up should have put there.
    #[error("{} has no file {pattern}: has the set-up run?", directory.display())]
    NoLibrary {
        /// Where it was looked for.
        directory: PathBuf,
        /// What was looked for.
        pattern: String,
    },
    /// ONNX Runtime.
    #[error("ONNX Runtime: {0}")]
    OnnxRuntime(String),
    /// OpenVINO.
    #[error("OpenVINO: {0}")]
    OpenVino(String),
    /// The Python worker can't be started or spoken to.
    #[error("the Python worker: {0}")]
    Pipe(#[source] io::Error),
    /// The Python worker said what was wrong.
    #[error("the Python worker: {0}")]
    Worker(String),
    /// What was written or read as JSON.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Ours: a graph.
    #[error(transparent)]
    Build(#[from] engraft::ir::BuildErrors),
    /// Ours: compiling.
    #[error(transparent)]
    Compile(#[from] engraft::CompileError),
    /// Ours: loading.
    #[error(transparent)]
    Load(#[from] engraft::runtime::LoadError),
    /// Ours: calling.
    #[error(transparent)]
    Call(#[from] engraft::runtime::CallError),
    /// Ours: adapters by name.
    #[error(transparent)]
    Bank(#[from] engraft::runtime::BankError),
    /// Ours: measuring the machine.
    #[error(transparent)]
    Measure(#[from] engraft::runtime::measure::MeasureError),
    /// Ours: threads and kernels.
    #[error(transparent)]
    Context(#[from] engraft::runtime::ContextError),
    /// Ours: a whole model.
    #[error(transparent)]
    Pretrained(Box<engraft::pretrained::PretrainedError>),
    /// Ours: a model's inputs.
    #[error(transparent)]
    Input(#[from] engraft::import::models::InputError),
    /// Ours: a file of weights in GGUF.
    #[error(transparent)]
    Gguf(#[from] engraft::import::gguf::GgufError),
    /// An extent of a model's plan has no value.
    #[error(transparent)]
    Extent(#[from] engraft::ir::DimError),
    /// Ours: what a session carries.
    #[error(transparent)]
    State(#[from] engraft::runtime::StateError),
    /// Arrays.
    #[error(transparent)]
    Tensor(#[from] engraft::runtime::TensorError),
    /// Files of arrays.
    #[error(transparent)]
    Safetensors(#[from] engraft::import::safetensors::SafetensorsError),
    /// An array that a file or a program lacks.
    #[error("there is no array `{name}` in {place}")]
    NoArray {
        /// The array.
        name: String,
        /// Where it was looked for.
        place: String,
    },
    /// Somebody computes something else.
    #[error(
        "{who} disagrees with {with}: the largest difference is {:.2e}, {:.3} times what is allowed",
        agreement.largest_difference,
        agreement.tolerances
    )]
    Disagree {
        /// Who.
        who: String,
        /// With whom.
        with: &'static str,
        /// By how much.
        agreement: Agreement,
    },
    /// Somebody computes what nobody said.
    #[error("{who} computes what {said_by} does not say")]
    NoTruth {
        /// Who.
        who: String,
        /// Who should say it.
        said_by: &'static str,
    },
    /// An output of another size.
    #[error("{who} gives {found} elements, expected {expected}")]
    OutputSize {
        /// Who.
        who: String,
        /// How many.
        found: usize,
        /// How many it should be.
        expected: usize,
    },
    /// A plot.
    #[error("{}: {message}", path.display())]
    Plot {
        /// Its file.
        path: PathBuf,
        /// What was wrong.
        message: String,
    },
}

impl From<engraft::pretrained::PretrainedError> for Error {
    fn from(error: engraft::pretrained::PretrainedError) -> Self {
        Self::Pretrained(Box::new(error))
    }
}
