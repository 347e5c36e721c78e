//! Why a pretrained model cannot be opened, compiled or run. Each variant says what was being done; the crates say what
//! went wrong.

use crate::CompileError;
use crate::import::gguf::GgufError;
use crate::import::models::{ConfigError, DirectoryError, InputError, Kind, TensorsError};
use crate::import::peft::{AdapterError, AttachError};
use crate::import::sentence::{PoolError, SentenceError};
use crate::import::tokenizer::TokenizerError;
use crate::runtime::{BankError, CallError, ContextError, LoadError, TensorError};
use engraft_ir::BuildErrors;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a pretrained model cannot be opened, compiled or run.
#[derive(Debug, Error)]
pub enum PretrainedError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not JSON.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A field names no tokens.
    #[error("{}: `eos_token_id` is {found}, expected an id or a list of ids", path.display())]
    EndTokens {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// A model directory cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A GGUF file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A configuration says something that is not supported.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What.
        source: ConfigError,
    },
    /// Tensors are not the model's.
    #[error("{}: {source}", path.display())]
    Tensors {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: TensorsError,
    },
    /// An adapter cannot be read.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An adapter does not fit the model.
    #[error("{}: {source}", path.display())]
    Attach {
        /// The adapter's directory.
        path: PathBuf,
        /// Why.
        source: Box<AttachError>,
    },
    /// A model with an adapter attached cannot be a bank's base.
    #[error("{}: attached to the model; a bank is on the base alone: load it into the bank instead", path.display())]
    AttachedInBank {
        /// The adapter's directory.
        path: PathBuf,
    },
    /// The model was compiled without a bank.
    #[error(
        "the model was compiled without a bank, so rows cannot have adapters; ask for one with `CompileOptions::bank`"
    )]
    NoBank,
    /// A bank's layers are of another graph than its base.
    #[error(
        "module `{module}` is adaptable {}, but not {}: a bank's layers are those of the graph that its base was compiled from",
        side(*of_base), side(!of_base)
    )]
    OtherLayers {
        /// The first that differs, in alphabetical order.
        module: String,
        /// Whether the base has it, and not the graph.
        of_base: bool,
    },
    /// Adapters for another number of texts.
    #[error("there are {texts} texts, but adapters are given for {found}")]
    RowCount {
        /// How many texts there are.
        texts: usize,
        /// How many were given an adapter, or none of it.
        found: usize,
    },
    /// The bank does not do what it is asked to.
    #[error(transparent)]
    Bank(#[from] BankError),
    /// A tokenizer cannot be read, or failed on a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The files of sentence-transformers cannot be read.
    #[error(transparent)]
    Sentence(#[from] SentenceError),
    /// Hidden states cannot be pooled.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The configuration makes no graph.
    #[error(transparent)]
    Build(#[from] BuildErrors),
    /// The graph cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// There is no place to run in.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Weights cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Inputs do not fit the model.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A tensor is not of the type or shape that it should have.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The model is of the other kind.
    #[error("{}: a model of type `{architecture}` is {}, expected {}", path.display(), kind(*found), kind(*expected))]
    Kind {
        /// Where the model came from.
        path: PathBuf,
        /// Its type.
        architecture: &'static str,
        /// What it is.
        found: Kind,
        /// What was needed.
        expected: Kind,
    },
    /// The tokenizer has ids that the model has no embedding for.
    #[error("{}: the tokenizer has {tokens} ids, but the model has embeddings for {vocab} only", path.display())]
    Vocabulary {
        /// Where the tokenizer came from.
        path: PathBuf,
        /// The tokenizer's.
        tokens: usize,
        /// The model's.
        vocab: usize,
    },
    /// The files of sentence-transformers give another width than the model has.
    #[error("{}: the pooling is said to give {said} numbers, expected {width}, the width of the model's states", path.display())]
    Width {
        /// The file that says it.
        path: PathBuf,
        /// What it says.
        said: usize,
        /// What the model has.
        width: usize,
    },
    /// The files of sentence-transformers leave no room for text.
    #[error("{}: `max_seq_length` is {length}, expected more than the {special} special tokens of every text", path.display())]
    MaxLength {
        /// The file that says it.
        path: PathBuf,
        /// The length.
        length: usize,
        /// The special tokens that the tokenizer adds.
        special: usize,
    },
}

fn side(of_base: bool) -> &'static str {
    if of_base { "on the base" } else { "in the graph of the layers" }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Encoder => "an encoder, which gives a state for each token",
        Kind::Decoder => "a decoder, which gives the next token's logits",
    }
}
