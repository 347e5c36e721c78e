//! What the metadata say of a model, as the `config.json` that Hugging Face's transformers has for it. Knows nothing about
//! tensors, but for two facts: which there are, and the factors of rope.
//!
//! The keys are those of ggml's `gguf.md` and of llama.cpp's `llama-arch.cpp`. Every key of the architecture must be one
//! that is used here, or have the value at which it does nothing: whatever else stands there might change the computation.

use super::error::MetadataError as Error;
use super::metadata::{Metadata, missing, wrong};
use super::rope;
use super::value::Value;
use engraft_runtime::Tensor;
use serde_json::{Map, Value as Json, json};

/// The architectures that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Llama and models like it. Rows of q and k are stored for rope on neighbours.
    Llama,
    /// Qwen2 and Qwen2.5. Rows are stored as they were trained.
    Qwen2,
}

impl Architecture {
    /// As files call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
        }
    }
}

/// The sizes that both the configuration and the tensors need.
#[derive(Clone, Copy)]
pub(super) struct Model {
    pub architecture: Architecture,
    pub blocks: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
}

/// What the tensors say of the configuration.
pub(super) struct Facts {
    /// Whether the output has a matrix of its own.
    pub has_output: bool,
    /// Whether the first block's q has a bias.
    pub has_attention_bias: bool,
    /// The rows of the embedding, where there is one.
    pub embeddings: Option<u64>,
    /// The factors of `rope_freqs.weight`.
    pub rope_factors: Option<Tensor>,
}

/// Keys that are used, after the architecture's name, or that matter to `yarn` alone, which is refused.
const USED: [&str; 17] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scale_linear",
    "rope.scaling.finetuned",
    "vocab_size",
];

/// Keys that do nothing at this value.
const NEUTRAL: [(&str, f64); 7] = [
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("attention.sliding_window", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("embedding_scale", 1.0),
];

/// What the file is of.
pub(super) fn architecture(metadata: &Metadata<'_>) -> Result<Architecture, Error> {
    let key = "general.architecture";
    let expected = "`llama` or `qwen2`";
    let architecture = match metadata.string(key)? {
        Some("llama") => Architecture::Llama,
        Some("qwen2") => Architecture::Qwen2,
        Some(other) => return Err(wrong(key, &Value::String(other.to_owned()), expected)),
        None => return Err(missing(key, expected)),
    };
    if let Some(kind) = metadata.string("general.type")?.filter(|&kind| kind != "model") {
        return Err(wrong("general.type", &Value::String(kind.to_owned()), "`model`"));
    }
    if let Some(parts) = metadata.integer("split.count")?.filter(|&parts| parts > 1) {
        return Err(wrong("split.count", &Value::Unsigned(parts), "one file that holds everything"));
    }
    check_keys(metadata, architecture)?;
    Ok(architecture)
}

/// Requires that each key of the architecture is known, and used or neutral.
fn check_keys(metadata: &Metadata<'_>, architecture: Architecture) -> Result<(), Error> {
    let prefix = format!("{}.", architecture.name());
    for (key, value) in metadata.iter() {
        let Some(name) = key.strip_prefix(&prefix) else { continue };
        let neutral = NEUTRAL.iter().find(|(neutral, _)| *neutral == name);
        let off = match neutral {
            Some(&(_, off)) => metadata.number(key)? == Some(off),
            None if name == "attention.causal" => metadata.bool(key)? == Some(true),
            None => USED.contains(&name),
        };
        if !off {
            return Err(Error::Unsupported { key: key.to_owned(), found: value.to_string() });
        }
    }
    Ok(())
}

/// The sizes of the model.
pub(super) fn model(metadata: &Metadata<'_>) -> Result<Model, Error> {
    let architecture = architecture(metadata)?;
    let keys = Keys { metadata, architecture };
    let hidden = keys.required("embedding_length")?;
    let heads = keys.required("attention.head_count")?;
    let kv_heads = keys.positive("attention.head_count_kv")?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of the {heads} heads");
        return Err(wrong(&keys.key("attention.head_count_kv"), &Value::Unsigned(kv_heads), &expected));
    }
    let head_dim = match keys.positive("attention.key_length")? {
        Some(size) => size,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let expected = format!("a multiple of the {heads} heads");
            return Err(wrong(&keys.key("embedding_length"), &Value::Unsigned(hidden), &expected));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(wrong(&keys.key("attention.key_length"), &Value::Unsigned(head_dim), "an even number"));
    }
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(size) = keys.positive(key)?.filter(|&size| size != head_dim) {
            let expected = format!("{head_dim}, the size of a head");
            return Err(wrong(&keys.key(key), &Value::Unsigned(size), &expected));
        }
    }
    let blocks = keys.required("block_count")?;
    Ok(Model { architecture, blocks, heads, kv_heads, head_dim })
}

/// The configuration, as transformers' `config.json` has it.
pub(super) fn config(metadata: &Metadata<'_>, facts: &Facts) -> Result<Map<String, Json>, Error> {
    let model = model(metadata)?;
    let keys = Keys { metadata, architecture: model.architecture };
    let theta = keys.above_zero("rope.freq_base")?.unwrap_or(10_000.0);
    let epsilon = keys
        .above_zero("attention.layer_norm_rms_epsilon")?
        .ok_or_else(|| missing(&keys.key("attention.layer_norm_rms_epsilon"), "a positive number"))?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Json| drop(config.insert(key.to_owned(), value));
    set("architectures", json!([model.architecture.class()]));
    set("model_type", json!(model.architecture.name()));
    set("vocab_size", json!(vocab_size(&keys, facts)?));
    set("hidden_size", json!(keys.required("embedding_length")?));
    set("intermediate_size", json!(keys.required("feed_forward_length")?));
    set("num_hidden_layers", json!(model.blocks));
    set("num_attention_heads", json!(model.heads));
    set("num_key_value_heads", json!(model.kv_heads));
    set("head_dim", json!(model.head_dim));
    set("rms_norm_eps", json!(epsilon));
    set("max_position_embeddings", json!(keys.required("context_length")?));
    set("rope_theta", json!(theta));
    if let Some(scaling) = rope_scaling(&keys, &model, theta, facts.rope_factors.as_ref())? {
        set("rope_scaling", scaling);
    }
    set("tie_word_embeddings", json!(!facts.has_output));
    set("hidden_act", json!("silu"));
    match model.architecture {
        Architecture::Llama => {
            set("attention_bias", json!(facts.has_attention_bias));
            set("mlp_bias", json!(false));
        }
        Architecture::Qwen2 => set("use_sliding_window", json!(false)),
    }
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
        if let Some(id) = metadata.integer(&format!("tokenizer.ggml.{key}_token_id"))? {
            set(&format!("{name}_token_id"), json!(id));
        }
    }
    Ok(config)
}

/// The rows of the embedding; what else tells of their number must agree.
fn vocab_size(keys: &Keys<'_>, facts: &Facts) -> Result<u64, Error> {
    let stated = keys.positive("vocab_size")?;
    match (stated, facts.embeddings) {
        (Some(stated), Some(rows)) if stated != rows => {
            let expected = format!("{rows}, the rows of `token_embd.weight`");
            Err(wrong(&keys.key("vocab_size"), &Value::Unsigned(stated), &expected))
        }
        (_, Some(size)) | (Some(size), None) => Ok(size),
        (None, None) => match keys.metadata.strings("tokenizer.ggml.tokens")? {
            Some(tokens) => Ok(tokens.len() as u64),
            None => Err(missing(&keys.key("vocab_size"), "the number of tokens")),
        },
    }
}

/// How rope is scaled, as transformers' `rope_scaling` says it.
fn rope_scaling(
    keys: &Keys<'_>,
    model: &Model,
    theta: f64,
    factors: Option<&Tensor>,
) -> Result<Option<Json>, Error> {
    let kind = keys.metadata.string(&keys.key("rope.scaling.type"))?;
    let legacy = keys.above_zero("rope.scale_linear")?.filter(|&factor| factor != 1.0);
    let factor = keys.above_zero("rope.scaling.factor")?.or(legacy);
    let unsupported = |name: &str, found: String| Error::Unsupported { key: keys.key(name), found };
    if let Some(factors) = factors {
        if let Some(kind) = kind.filter(|&kind| kind != "none") {
            return Err(unsupported("rope.scaling.type", format!("{kind:?} beside `rope_freqs.weight`")));
        }
        return rope::llama3(factors, model.head_dim, theta).map(Some);
    }
    match (kind, factor) {
        (Some(other), _) if !matches!(other, "none" | "linear") => {
            Err(unsupported("rope.scaling.type", format!("{other:?}")))
        }
        (None | Some("none"), None) => Ok(None),
        (Some("none"), Some(factor)) => Err(unsupported("rope.scaling.factor", factor.to_string())),
        (_, Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
        (_, None) => Err(missing(&keys.key("rope.scaling.factor"), "the factor of the scaling")),
    }
}

/// The metadata of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata<'a>,
    architecture: Architecture,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    fn positive(&self, name: &str) -> Result<Option<u64>, Error> {
        self.metadata.positive(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<u64, Error> {
        self.positive(name)?.ok_or_else(|| missing(&self.key(name), "a positive integer"))
    }

    fn above_zero(&self, name: &str) -> Result<Option<f64>, Error> {
        let key = self.key(name);
        match self.metadata.number(&key)? {
            Some(number) if number <= 0.0 => Err(wrong(&key, &Value::F64(number), "a positive number")),
            number => Ok(number),
        }
    }
}
