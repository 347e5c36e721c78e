//! Why a subcommand failed. Each variant says what was being done; the crates say what went wrong.

use engraft::compiler::CompileError;
use engraft::compiler::check::CheckError;
use engraft::import::merge::MergeError;
use engraft::import::models::InputError;
use engraft::import::peft::{AdapterError, AttachError, CombineError, ConfigError, FactorsError};
use engraft::import::safetensors::SafetensorsError;
use engraft::ir::json::JsonError;
use engraft::ir::sample::SampleError;
use engraft::ir::text::TextError;
use engraft::ir::value::EvalError;
use engraft::ir::{BuildErrors, DimError, TensorType};
use engraft::pretrained::sampling::SamplingError;
use engraft::pretrained::{GenerateError, PretrainedError};
use engraft::runtime::measure::MeasureError;
use engraft::runtime::{CallError, ContextError, LoadError, OrderError, StateError, TensorError};
use ndarray_npy::WriteNpyError;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a subcommand failed.
#[derive(Debug, Error)]
pub enum CliError {
    /// Standard output cannot be written.
    #[error("cannot write the output: {source}")]
    Output {
        /// Why.
        #[from]
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What a file holds does not fit.
    #[error("{}: {source}", path.display())]
    In {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<CliError>,
    },
    /// A model is neither JSON nor text.
    #[error("{}: expected a graph as JSON or text, found bytes that are not UTF-8 after {valid}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// How many bytes are.
        valid: usize,
    },
    /// A model is not a graph as JSON.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<JsonError>,
    },
    /// A model is not a graph as text.
    #[error("{}: {source}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<TextError>,
    },
    /// Weights cannot be read or written.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// An adapter cannot be read.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An adapter's tensors do not fit together.
    #[error(transparent)]
    Factors(#[from] FactorsError),
    /// Adapters have no weighted combination.
    #[error(transparent)]
    Combine(Box<CombineError>),
    /// Adapters cannot be merged, or taken out again.
    #[error(transparent)]
    Merge(Box<MergeError>),
    /// Something is to be merged, but there is no adapter.
    #[error("there is no adapter that could be merged; --adapter names one")]
    NothingToMerge,
    /// An option that only estimates depend on, where none is made.
    #[error("{option} matters where estimates decide what is merged, with --merge=auto")]
    WithoutEstimate {
        /// The option.
        option: &'static str,
    },
    /// There is something where a directory should be written.
    #[error("{}: there is something already; the output must not exist or be an empty directory", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The demo's own adapter config cannot be read.
    #[error("the demo's adapter: {0}")]
    Config(#[from] ConfigError),
    /// An adapter does not fit the model.
    #[error("{}: {source}", path.display())]
    Attach {
        /// The adapter's directory.
        path: PathBuf,
        /// Why.
        source: Box<AttachError>,
    },
    /// The demo's graph cannot be built.
    #[error(transparent)]
    Build(#[from] BuildErrors),
    /// The model cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A pretrained model cannot be opened, compiled or run.
    #[error(transparent)]
    Pretrained(Box<PretrainedError>),
    /// A text does not go on.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Tokens cannot be drawn so.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The inputs do not fit a pretrained model.
    #[error(transparent)]
    Input(#[from] InputError),
    /// An array cannot be written.
    #[error("{}: {source}", path.display())]
    WriteNpy {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<WriteNpyError>,
    },
    /// Several adapters, and nothing says which row has which.
    #[error("several adapters are given with --adapter; say which row has which with --rows")]
    NoRows,
    /// Rows of their own adapters where there is one model for all.
    #[error("--rows puts another adapter on each row of a call; this command takes one adapter at most")]
    RowsHere,
    /// An adapter that rows cannot refer to.
    #[error("{}: with --rows every adapter has a name, as --adapter NAME=DIR", path.display())]
    NoName {
        /// Its directory.
        path: PathBuf,
    },
    /// Two adapters of one name.
    #[error("two adapters are called `{name}`")]
    SameName {
        /// The name.
        name: String,
    },
    /// A row that names none of the adapters.
    #[error("{}, line {line}: there is no adapter `{name}`; expected `-` for the base or one of: {}", path.display(), known.join(", "))]
    UnknownRow {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What it says.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// Too few rows or too many.
    #[error("{}: {found} lines, expected one for each of the {expected} {what}", path.display())]
    RowCount {
        /// The file.
        path: PathBuf,
        /// What has adapters.
        what: &'static str,
        /// How many there are.
        expected: usize,
        /// How many lines there are.
        found: usize,
    },
    /// Adapters of a row cannot follow each other.
    #[error("row `{row}`: {source}")]
    Order {
        /// The row.
        row: String,
        /// Why.
        source: OrderError,
    },
    /// A graph cannot have adapters put on it.
    #[error("{}: {source}", path.display())]
    Adaptable {
        /// The graph's file.
        path: PathBuf,
        /// Why.
        source: Box<AttachError>,
    },
    /// There are no threads or kernels to run on.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The machine cannot be measured.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The weights do not fit the model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The weights from these files do not fit the model.
    #[error("{source}; {}", found.describe())]
    LoadFrom {
        /// Why.
        source: Box<LoadError>,
        /// Where they came from.
        found: Sought,
    },
    /// The inputs do not fit the model, or it failed on them.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What the model is to carry does not fit it.
    #[error(transparent)]
    State(#[from] StateError),
    /// Values cannot be held.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The reference interpreter cannot run the model.
    #[error("the reference interpreter: {0}")]
    Eval(#[from] EvalError),
    /// What a pass made cannot be compared with what it was given.
    #[error("pass {pass}: {source}")]
    Pass {
        /// The pass.
        pass: &'static str,
        /// What differs.
        source: Box<CheckError>,
    },
    /// There are no random values for the model.
    #[error("there are no random values to run with: {0}")]
    Sample(#[from] SampleError),
    /// The model refused every size.
    #[error("the model runs at no size tried; at {size}: {source}")]
    NoSize {
        /// The last size.
        size: String,
        /// Why it was refused there.
        source: Box<CliError>,
    },
    /// A level cannot be shown like this.
    #[error("the format {format} cannot show the stage {stage}; expected one of: {}", expected.join(", "))]
    Format {
        /// The format asked for.
        format: &'static str,
        /// The level asked for.
        stage: &'static str,
        /// The formats it can be shown in.
        expected: Vec<&'static str>,
    },
    /// Extents were given for a level that has no use for them.
    #[error("--dim is for the bounds of the stage plan, which the stage {stage} does not have")]
    DimStage {
        /// The level asked for.
        stage: &'static str,
    },
    /// An extent was given for no symbol of the model.
    #[error("the model has no dim `{dim}`; its dims are: {}", known.join(", "))]
    UnknownDim {
        /// The name given.
        dim: String,
        /// The symbols there are.
        known: Vec<String>,
    },
    /// A cost is beyond counting.
    #[error("cannot count what a step costs: {0}")]
    Count(#[from] DimError),
    /// A parameter has no value.
    #[error("there is no tensor for the parameter `{param}`, which is {ty}; {}", found.describe())]
    NoWeights {
        /// The parameter.
        param: String,
        /// Its type.
        ty: TensorType,
        /// Where it was looked for.
        found: Sought,
    },
    /// The recorded output is missing from the demo's data.
    #[error("the demo's recording has no `{tensor}`")]
    NoRecording {
        /// The tensor.
        tensor: &'static str,
    },
    /// A layer's values lack one.
    #[error("the layer to be timed has no `{tensor}`")]
    NoValue {
        /// The tensor.
        tensor: &'static str,
    },
    /// Outputs have different names or shapes.
    #[error("output `{output}` is {ours} in the compiled program and {theirs} in the reference")]
    OutputShape {
        /// The output.
        output: String,
        /// Its shape, or that it is missing.
        ours: String,
        /// What was expected.
        theirs: String,
    },
    /// Numbers disagree.
    #[error("{what} differ by more than the tolerance: {worst:.3} times what is allowed")]
    Disagree {
        /// What was compared.
        what: String,
        /// The largest difference, in tolerances.
        worst: f64,
    },
}

impl CliError {
    /// This error, and the file that it is about.
    pub fn in_file(self, path: &Path) -> Self {
        Self::In { path: path.to_owned(), source: Box::new(self) }
    }
}

impl From<CombineError> for CliError {
    fn from(source: CombineError) -> Self {
        Self::Combine(Box::new(source))
    }
}

impl From<MergeError> for CliError {
    fn from(source: MergeError) -> Self {
        Self::Merge(Box::new(source))
    }
}

impl From<PretrainedError> for CliError {
    fn from(source: PretrainedError) -> Self {
        Self::Pretrained(Box::new(source))
    }
}

/// Where a parameter's tensor was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sought {
    /// No file was given.
    Nowhere,
    /// In these files.
    In(Vec<PathBuf>),
}

impl Sought {
    fn describe(&self) -> String {
        match self {
            Self::Nowhere => "give a file of weights with --weights".to_owned(),
            Self::In(files) => {
                let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
                format!("looked in {}", files.join(" and "))
            }
        }
    }
}
