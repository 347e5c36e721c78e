//! Models of Hugging Face: from a directory, or from a config and tensors that came from elsewhere, to a graph, its
//! parameters and its inputs. Knows nothing about tokenizers, pooling and sampling.
//!
//! An architecture is one file and one line in the table below; it says what its config means, which tensors there are,
//! and how the graph is built, with the public builder only.
//!
//! ```no_run
//! use engraft_import::models::{GraphOptions, ModelDirectory};
//! use engraft_runtime::{Tensor, Weights};
//! let model = ModelDirectory::open("all-MiniLM-L6-v2")?;
//! let graph = model.architecture().graph(GraphOptions::default())?;
//! let ids = Tensor::i64(&[1, 4], vec![101, 7592, 2088, 102])?;
//! let given = Weights::from_iter([("input_ids", ids)]);
//! let inputs = model.architecture().fill_inputs(&given, 0, GraphOptions::default())?; // the mask, the positions, the token types
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bert;
mod blocks;
mod config;
mod decoder;
pub(crate) mod directory;
mod encoder;
mod gpt2;
mod inputs;
mod llama;
mod mistral;
mod qwen2;
mod roberta;
mod rope;
mod tensors;

pub use config::ConfigError;
pub use directory::{DirectoryError, ModelDirectory};
pub use inputs::InputError;
pub use tensors::{Normalised, TensorsError};

use crate::peft::PeftAdapter;
use config::Config;
use engraft_ir::{BuildErrors, Graph, GraphBuilder};
use engraft_runtime::{Tensor, Weights};
use inputs::Positions;
use serde_json::{Map, Value as Json};
use std::fmt;
use std::sync::Arc;
use tensors::Naming;

/// What reads the config of one architecture.
type Read = fn(&Config<'_>) -> Result<Box<dyn Model>, ConfigError>;

/// The architectures, by the `model_type` of their configs.
const ARCHITECTURES: &[(&str, Read)] = &[
    ("bert", bert::read),
    ("gpt2", gpt2::read),
    ("llama", llama::read),
    ("mistral", mistral::read),
    ("qwen2", qwen2::read),
    ("roberta", roberta::read),
    ("xlm-roberta", roberta::read),
];

/// A model whose config has been read.
trait Model: fmt::Debug + Send + Sync {
    /// What there is to know of it without its graph.
    fn description(&self) -> Description;

    /// Builds its graph.
    fn build(&self, g: &GraphBuilder, options: GraphOptions);
}

/// What there is to know of a model without its graph.
#[derive(Debug)]
struct Description {
    kind: Kind,
    vocab: usize,
    hidden: usize,
    /// The most tokens of a row.
    context: usize,
    /// How many token types there are, if the model has them.
    token_types: Option<usize>,
    positions: Positions,
    naming: Naming,
}

/// What a model gives for its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A state for each token, which sees all of its row: `last_hidden_state` f32 `[batch, seq, hidden]`.
    Encoder,
    /// Logits of the token after each token, which sees what came before: `logits` f32 `[batch, seq, vocab]`. Keys and
    /// values are carried from call to call.
    Decoder,
}

/// Of which tokens a decoder's graph gives logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Logits {
    /// Of each: `logits` is `[batch, seq, vocab]`.
    #[default]
    All,
    /// Of each row's last visible one, as generation needs: `logits` is `[batch, 1, vocab]`, and there is an input
    /// `last_tokens` i64 `[batch, 1]`, which of all `batch * seq` tokens these are.
    Last,
}

/// How a graph is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphOptions {
    /// Of which tokens it gives logits; nothing to an encoder.
    pub logits: Logits,
}

/// A model of a supported architecture.
///
/// ```
/// use engraft_import::models::{Architecture, Kind};
/// let config = serde_json::json!({
///     "model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
///     "intermediate_size": 1536, "max_position_embeddings": 512,
/// });
/// let bert = Architecture::from_config(config.as_object().expect("it is an object"))?;
/// assert_eq!((bert.kind(), bert.context(), bert.hidden()), (Kind::Encoder, 512, 384));
/// let error = Architecture::parse(r#"{"model_type": "t5"}"#).unwrap_err();
/// assert!(error.to_string().starts_with("`model_type` is \"t5\", which is not supported; supported are bert"));
/// # Ok::<(), engraft_import::models::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Architecture {
    name: &'static str,
    model: Arc<dyn Model>,
}

impl Architecture {
    /// The model that a config describes.
    ///
    /// # Errors
    /// The first thing found wrong or not supported, by the field's name.
    pub fn from_config(config: &Map<String, Json>) -> Result<Self, ConfigError> {
        let config = Config::new(config, "");
        let found = config.get("model_type").ok_or_else(|| config.missing("model_type"))?;
        let (name, read) =
            ARCHITECTURES.iter().find(|(name, _)| found.as_str() == Some(name)).ok_or_else(|| {
                let supported = Self::supported().collect();
                ConfigError::Architecture { found: found.to_string(), supported }
            })?;
        Ok(Self { name, model: Arc::from(read(&config)?) })
    }

    /// The model that the text of a `config.json` describes.
    ///
    /// # Errors
    /// It is no JSON object, or as [`from_config`](Self::from_config).
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::from_config(&config::parse(text)?)
    }

    /// The architectures there are, as `model_type` calls them.
    pub fn supported() -> impl Iterator<Item = &'static str> {
        ARCHITECTURES.iter().map(|(name, _)| *name)
    }

    /// The architecture, as `model_type` calls it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it gives for its tokens.
    pub fn kind(&self) -> Kind {
        self.model.description().kind
    }

    /// The number of token ids.
    pub fn vocab(&self) -> usize {
        self.model.description().vocab
    }

    /// The width of a token's state.
    pub fn hidden(&self) -> usize {
        self.model.description().hidden
    }

    /// The most tokens that a row may have.
    pub fn context(&self) -> usize {
        self.model.description().context
    }

    /// Whether it has token types, and so an input `token_type_ids`.
    pub fn has_token_types(&self) -> bool {
        self.model.description().token_types.is_some()
    }

    /// The graph. Its parameters are called as [`normalise`](Self::normalise) calls the tensors, which is how PEFT saw
    /// them. Inputs, all i64: `input_ids` and `position_ids` `[batch, seq]`; `attention_mask` `[batch, seq]`, of a
    /// decoder `[batch, past + seq]`; `token_type_ids` `[batch, seq]` where the model has them; `last_tokens` with
    /// [`Logits::Last`]. [`Kind`] says what comes out.
    ///
    /// # Errors
    /// The config's sizes make no graph, for instance because it would be too large.
    pub fn graph(&self, options: GraphOptions) -> Result<Graph, BuildErrors> {
        let g = GraphBuilder::new(self.name);
        self.model.build(&g, options);
        g.finish()
    }

    /// The tensors of a checkpoint as the graph's parameters: under their names, complete, in their shapes.
    ///
    /// # Errors
    /// A tensor is unknown, missing, twice there or misshapen, or contradicts the one it is tied to.
    pub fn normalise(&self, weights: &Weights) -> Result<Normalised, TensorsError> {
        let graph = self.graph(GraphOptions::default())?;
        tensors::normalise(&graph, &self.model.description().naming, weights)
    }

    /// The name that a checkpoint's tensor has in the graph, if it is one of the graph's parameters.
    pub fn parameter(&self, tensor: &str) -> String {
        self.model.description().naming.of(tensor)
    }

    /// An adapter as [`attach`](crate::peft::attach) takes it, and the names of its tensors that adapt no part of the
    /// graph, such as a pooler or the head of a task: PEFT adapts those, too, if the model had them when it was trained.
    /// Where PEFT saw the model inside another (`bert.encoder` in `BertForSequenceClassification`), the names are the
    /// model's own.
    ///
    /// # Errors
    /// [`TensorsError::Twice`].
    pub fn fit_adapter(&self, adapter: &PeftAdapter) -> Result<(PeftAdapter, Vec<String>), TensorsError> {
        let (tensors, left_out) = tensors::fit_adapter(&self.model.description().naming, adapter.tensors())?;
        Ok((adapter.with_tensors(tensors), left_out))
    }

    /// All inputs of the graph but the carried ones, from those that are given by name. `input_ids` `[batch, seq]` must
    /// be there; the others have defaults:
    ///
    /// - `attention_mask`: all ones;
    /// - `token_type_ids`: all zeros;
    /// - `position_ids`: a token's index in its row, of which `past` tokens were seen by earlier calls, counted from the
    ///   first one that the mask does not hide; so padding in front changes nothing. `RoBERTa` counts the ids that are
    ///   not padding, from behind the padding's own position;
    /// - `last_tokens`, with [`Logits::Last`]: of each row the last token that the mask does not hide.
    ///
    /// Where the mask hides a token its position does not matter and is kept within the model's.
    ///
    /// # Errors
    /// An input is unknown or of another type or shape, an id or token type or position is out of range, or a row has
    /// more tokens than [`context`](Self::context).
    pub fn fill_inputs(
        &self,
        given: &Weights,
        past: usize,
        options: GraphOptions,
    ) -> Result<Vec<(&'static str, Tensor)>, InputError> {
        inputs::fill(&self.model.description(), given, past, options)
    }
}
