//! GGUF files, llama.cpp's format, as base models: the configuration and the weights as Hugging Face's transformers has
//! them, and the tokenizer. Knows nothing about graphs and adapters.
//!
//! Versions 2 and 3, little-endian; the architectures `llama` and `qwen2`; weights as `F32`, `F16`, `BF16`, `Q8_0`, `Q4_0`,
//! `Q4_1`, `Q5_0`, `Q5_1`, `Q4_K`, `Q5_K` and `Q6_K`, which become `f32`. Whatever else a file holds is refused by name.

mod blocks;
mod config;
mod container;
mod error;
mod metadata;
mod names;
mod pre_tokenizer;
mod rope;
mod tokenizer;
mod value;
mod weights;

pub use error::{ContainerError, GgufError, MetadataError, TokenizerError, WeightsError};
pub use tokenizers::Tokenizer;
pub use value::{Array, Value};

use config::Facts;
use container::{Container, TensorInfo};
use engraft_runtime::{MappedFile, Weights};
use metadata::Metadata;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A GGUF file, open. Opening checks the whole container; what it means is checked by whoever asks for it.
///
/// ```no_run
/// use engraft_import::gguf::Gguf;
/// let file = Gguf::open("SmolLM2-135M-Instruct.Q4_1.gguf")?;
/// assert_eq!(file.config()?["model_type"], "llama");
/// let weights = file.weights()?;
/// assert!(weights.get("model.layers.0.self_attn.q_proj.weight").is_some());
/// let ids = file.tokenizer()?.encode("The capital of France is", true)?;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
pub struct Gguf {
    path: PathBuf,
    file: Arc<MappedFile>,
    container: Container,
}

impl Gguf {
    /// Maps a file into memory and checks its header, metadata and list of tensors.
    ///
    /// The file must not be written into or cut off while this or a tensor of it lives, see [`MappedFile`].
    ///
    /// # Errors
    /// The file cannot be mapped, or is not a whole and sound GGUF file, or a tensor is in a format that is not read.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, GgufError> {
        let path = path.as_ref().to_owned();
        let file = match MappedFile::open(&path) {
            Ok(file) => Arc::new(file),
            Err(source) => return Err(GgufError::Io { path, source }),
        };
        match container::parse(file.bytes()) {
            Ok(container) => Ok(Gguf { path, file, container }),
            Err(source) => Err(GgufError::Container { path, source }),
        }
    }

    /// The metadata of this key.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.container.metadata.get(key)
    }

    /// The model's configuration, with the fields that transformers' `config.json` has for `LlamaForCausalLM` and
    /// `Qwen2ForCausalLM`.
    ///
    /// # Errors
    /// The architecture is another one, something is missing or of another type, or is set that changes the computation
    /// and is not supported.
    pub fn config(&self) -> Result<serde_json::Map<String, serde_json::Value>, GgufError> {
        let facts = self.facts()?;
        config::config(&self.meta(), &facts).map_err(self.metadata_error())
    }

    /// The model's weights in `f32`, with the names, shapes and order of rows that they have in transformers'
    /// `model.safetensors`. Those that the file stores as F32 stay in it, but for q and k of a `llama`; the floats of others are
    /// made when they are needed, see [`Tensor::stored`](engraft_runtime::Tensor::stored).
    ///
    /// # Errors
    /// The architecture is another one, or a tensor is not one of it or is of another shape.
    pub fn weights(&self) -> Result<Weights, GgufError> {
        let model = config::model(&self.meta()).map_err(self.metadata_error())?;
        weights::read(&self.file, &self.container.tensors, &model).map_err(self.weights_error())
    }

    /// The tokenizer. Encoding with special tokens adds those before and after the text that the file asks for.
    ///
    /// # Errors
    /// There is none, or it is of a kind that is not read.
    pub fn tokenizer(&self) -> Result<Tokenizer, GgufError> {
        let tokenizer = tokenizer::tokenizer(&self.meta());
        tokenizer.map_err(|source| GgufError::Tokenizer { path: self.path.clone(), source })
    }

    /// The template, in Jinja, that makes one text of a chat.
    ///
    /// # Errors
    /// It is not a text.
    pub fn chat_template(&self) -> Result<Option<&str>, GgufError> {
        self.meta().string("tokenizer.chat_template").map_err(self.metadata_error())
    }

    fn meta(&self) -> Metadata<'_> {
        Metadata(&self.container.metadata)
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.container.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// What the tensors say of the configuration.
    fn facts(&self) -> Result<Facts, GgufError> {
        Ok(Facts {
            has_output: self.tensor("output.weight").is_some(),
            has_attention_bias: self.tensor("blk.0.attn_q.bias").is_some(),
            embeddings: self
                .tensor("token_embd.weight")
                .and_then(|tensor| tensor.shape.first())
                .map(|&rows| rows as u64),
            rope_factors: match self.tensor(names::ROPE_FACTORS) {
                None => None,
                Some(info) => Some(weights::read_tensor(&self.file, info).map_err(self.weights_error())?),
            },
        })
    }

    fn metadata_error(&self) -> impl FnOnce(MetadataError) -> GgufError {
        |source| GgufError::Metadata { path: self.path.clone(), source }
    }

    fn weights_error(&self) -> impl FnOnce(WeightsError) -> GgufError {
        |source| GgufError::Weights { path: self.path.clone(), source }
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Container { metadata, tensors } = &self.container;
        f.debug_struct("Gguf")
            .field("path", &self.path)
            .field("metadata", &metadata.len())
            .field("tensors", &tensors.len())
            .finish_non_exhaustive()
    }
}
