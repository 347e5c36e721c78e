//! What can be wrong with a GGUF file, one enum a concern. Knows nothing about how files are read.

use engraft_runtime::TensorError;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a GGUF file cannot be used. Each names the file, and what it holds says the rest.
#[derive(Debug, Error)]
pub enum GgufError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a whole and sound container.
    #[error("{}: {source}", path.display())]
    Container {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ContainerError,
    },
    /// The metadata do not describe a model that is read.
    #[error("{}: {source}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MetadataError,
    },
    /// A tensor is not one of the model's, or cannot be read.
    #[error("{}: {source}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why.
        source: WeightsError,
    },
    /// The tokenizer is not one that is read.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TokenizerError,
    },
}

/// Why the bytes of a file are not a GGUF container that is read. Offsets are bytes from the file's beginning, except a
/// tensor's, which are from the beginning of the data.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// The file does not begin as GGUF files do.
    #[error("the file begins with the bytes {found:02x?}, expected \"GGUF\"")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The file is of another version.
    #[error("GGUF version {found}, expected 2 or 3")]
    Version {
        /// The version.
        found: u32,
    },
    /// The file is big-endian.
    #[error("GGUF version {version} in big-endian order, expected little-endian")]
    BigEndian {
        /// The version.
        version: u32,
    },
    /// The file ends too early.
    #[error("{reading} needs {needed} bytes at offset {offset}, but the file ends {found} bytes after it")]
    Truncated {
        /// What was being read.
        reading: String,
        /// Where.
        offset: u64,
        /// The bytes it takes.
        needed: u64,
        /// The bytes there are.
        found: u64,
    },
    /// More elements are announced than the rest of the file could hold.
    #[error("{reading} announces {found} elements, but the rest of the file holds {most} at most")]
    Count {
        /// What was being read.
        reading: String,
        /// The number it states.
        found: u64,
        /// The most that fit.
        most: u64,
    },
    /// A text is not UTF-8.
    #[error("{reading} at offset {offset} is not UTF-8 after {valid} bytes")]
    Utf8 {
        /// What was being read.
        reading: String,
        /// Where it begins.
        offset: u64,
        /// How many of its bytes are.
        valid: usize,
    },
    /// A value is of no known type.
    #[error("{reading} is of type {found}, expected 0 to 12")]
    ValueType {
        /// What was being read.
        reading: String,
        /// The type's number.
        found: u32,
    },
    /// A truth value is neither.
    #[error("{reading} holds the byte {found} as a truth value, expected 0 or 1")]
    Bool {
        /// What was being read.
        reading: String,
        /// The byte.
        found: u8,
    },
    /// Arrays are nested without end.
    #[error("{reading} nests arrays deeper than {limit} levels")]
    Depth {
        /// What was being read.
        reading: String,
        /// How deep they may be.
        limit: usize,
    },
    /// Two metadata have the same key.
    #[error("there are two metadata `{key}`")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// Two tensors have the same name.
    #[error("there are two tensors `{tensor}`")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// The alignment is none.
    #[error(
        "metadata `general.alignment` is {found}, expected a power of two from 8 to 1048576 as a 32-bit integer"
    )]
    Alignment {
        /// What it is.
        found: String,
    },
    /// A tensor has too many dims or none.
    #[error("tensor `{tensor}` has {found} dims, expected 1 to 4")]
    Rank {
        /// The tensor.
        tensor: String,
        /// How many there are.
        found: u32,
    },
    /// A tensor's elements are stored in a way that is not read.
    #[error("tensor `{tensor}` is {found}, expected one of {expected}")]
    Format {
        /// The tensor.
        tensor: String,
        /// The name of the format, or its number.
        found: String,
        /// The names of those that are read.
        expected: String,
    },
    /// A row is not a whole number of blocks.
    #[error(
        "tensor `{tensor}` has rows of {found} elements, expected a multiple of {expected}, the block of {format}"
    )]
    Row {
        /// The tensor.
        tensor: String,
        /// Its format.
        format: &'static str,
        /// The elements of a row.
        found: u64,
        /// The elements of a block.
        expected: u64,
    },
    /// A tensor is larger than any memory.
    #[error("tensor `{tensor}` of {format} {shape:?} has more elements than fit into memory")]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Its format.
        format: &'static str,
        /// Its dims.
        shape: Vec<u64>,
    },
    /// Tensors overlap, leave a gap or are not aligned.
    #[error(
        "tensor `{tensor}` starts at byte {found} of the data, expected {expected}, the aligned end of those before it"
    )]
    Offset {
        /// The tensor.
        tensor: String,
        /// Where it starts.
        found: u64,
        /// Where it should.
        expected: u64,
    },
    /// The file ends before a tensor does.
    #[error("tensor `{tensor}` ends at byte {end} of the data, but the file has {found}")]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Where it ends.
        end: u64,
        /// The bytes of data there are.
        found: u64,
    },
    /// The file goes on after the last tensor.
    #[error("the tensors take {expected} bytes with their padding, but the file has {found}")]
    Trailing {
        /// The end of the last tensor.
        expected: u64,
        /// The bytes of data there are.
        found: u64,
    },
}

/// Why the metadata are not those of a model that is read.
#[derive(Debug, Error)]
pub enum MetadataError {
    /// Something is missing.
    #[error("metadata `{key}` is missing, expected {expected}")]
    Missing {
        /// The key.
        key: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A value is of another type or out of range.
    #[error("metadata `{key}` is {found}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The file is of something that is not read.
    #[error("metadata `{key}` is {found}, which changes the computation and isn't supported")]
    Unsupported {
        /// The key.
        key: String,
        /// What it is.
        found: String,
    },
    /// The factors of rope are not those that Llama 3 computes.
    #[error(
        "tensor `rope_freqs.weight`: factor {index} is {found}, expected {expected} as of Llama 3's scaling by {factor}"
    )]
    RopeFactors {
        /// Which.
        index: usize,
        /// What it is.
        found: f32,
        /// What the formula gives.
        expected: f32,
        /// The scaling factor.
        factor: f32,
    },
    /// The factors of rope are not one for each pair of a head's elements.
    #[error("tensor `rope_freqs.weight` has shape {found:?}, expected [{expected}]")]
    RopeShape {
        /// Its shape.
        found: Vec<usize>,
        /// Half of a head's size.
        expected: u64,
    },
    /// The factors of rope cannot be read.
    #[error("tensor `rope_freqs.weight`: {source}")]
    RopeRead {
        /// Why.
        source: TensorError,
    },
}

/// Why a tensor cannot be used.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// The architecture has no such tensor.
    #[error("tensor `{tensor}` is none of the architecture `{architecture}` with {blocks} blocks")]
    Unknown {
        /// The tensor.
        tensor: String,
        /// The architecture.
        architecture: &'static str,
        /// The number of its blocks.
        blocks: u64,
    },
    /// The rows are not those of the heads.
    #[error("tensor `{tensor}` has shape {found:?}, expected {heads} heads of {size} rows")]
    Heads {
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// How many heads there are.
        heads: u64,
        /// The size of a head.
        size: u64,
    },
    /// Elements and shape don't fit.
    #[error("tensor `{tensor}`: {source}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Why.
        source: TensorError,
    },
}

/// Why a tokenizer cannot be used.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// It is of a kind that is not read, or splits text in an unknown way.
    #[error("metadata `{key}` is `{found}`, expected {expected}")]
    Kind {
        /// The key.
        key: &'static str,
        /// What it is.
        found: String,
        /// What is read.
        expected: &'static str,
    },
    /// As many types as tokens are expected.
    #[error(
        "there are {found} elements in `tokenizer.ggml.token_type`, expected {expected}, one for each token"
    )]
    TypeCount {
        /// The types there are.
        found: usize,
        /// The tokens there are.
        expected: usize,
    },
    /// A token is empty or not the only one.
    #[error("token {id} is {found:?}, expected {expected}")]
    Token {
        /// Its id.
        id: usize,
        /// Its text.
        found: String,
        /// What is wrong.
        expected: &'static str,
    },
    /// A token is of no known type.
    #[error("token {id} {token:?} is of type {found}, expected 1 to 6")]
    Type {
        /// Its id.
        id: usize,
        /// Its text.
        token: String,
        /// Its type.
        found: i64,
    },
    /// A merge is not of two tokens, does not make one, or is there twice.
    #[error("merge {index} is {found:?}, expected {expected}")]
    Merge {
        /// Which.
        index: usize,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The id of a token is beyond the vocabulary.
    #[error("metadata `{key}` is {found}, but there are {tokens} tokens")]
    Id {
        /// The key.
        key: &'static str,
        /// The id.
        found: u64,
        /// How many tokens there are.
        tokens: usize,
    },
    /// The tokenizer's crate refused.
    #[error("the tokenizer cannot be made: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The metadata are wrong.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}
