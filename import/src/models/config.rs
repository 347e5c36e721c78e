//! `config.json` of a model, read strictly: a field is used, or known not to change what the model computes, or refused by
//! name. Which field is which stands where an architecture reads it; a field that nobody asked for is refused here.

use crate::json::parse_object;
use serde_json::{Map, Value as Json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use thiserror::Error;

/// The largest size that a config may state: of a vocabulary, a hidden state, a context.
pub(super) const MAX_SIZE: u64 = 1 << 24;

/// The most layers that a config may state.
const MAX_LAYERS: u64 = 1 << 10;

/// Why a config was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It is not a JSON object.
    #[error("the config is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// The architecture is none of those that are supported.
    #[error("`model_type` is {found}, which is not supported; supported are {}", supported.join(", "))]
    Architecture {
        /// The architecture, as JSON.
        found: String,
        /// Those there are.
        supported: Vec<&'static str>,
    },
    /// A field that decides what is computed is absent.
    #[error("`{field}` is missing")]
    Missing {
        /// The field.
        field: String,
    },
    /// A field has a value that it cannot have.
    #[error("`{field}` is {found}, expected {expected}")]
    Value {
        /// The field.
        field: String,
        /// Its value, as JSON.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A field asks for something that is not supported.
    #[error("`{field}` is {found}, which is not supported: {meaning}")]
    Unsupported {
        /// The field.
        field: String,
        /// Its value, as JSON.
        found: String,
        /// What it would mean, or what is supported.
        meaning: String,
    },
    /// A field is none that the architecture is known to have, and its value may matter.
    #[error("`{field}` is {found}, but no such field is known; expected null, false or nothing in it")]
    Unknown {
        /// The field.
        field: String,
        /// Its value, as JSON.
        found: String,
    },
}

/// The fields that change nothing in any architecture, and why.
const IGNORED: &[(&str, &str)] = &[
    ("model_type", "has chosen the architecture"),
    ("architectures", "names a Python class; which tensors there are is found out from the files"),
    ("transformers_version", "says who wrote the config"),
    ("_name_or_path", "says where the model came from"),
    ("_commit_hash", "says where the model came from"),
    ("finetuning_task", "says what the model was trained for"),
    ("problem_type", "belongs to a head that is no part of the graph"),
    ("id2label", "belongs to a head that is no part of the graph"),
    ("label2id", "belongs to a head that is no part of the graph"),
    ("num_labels", "belongs to a head that is no part of the graph"),
    ("classifier_dropout", "belongs to a head that is no part of the graph"),
    ("task_specific_params", "are defaults of generation"),
    ("tokenizer_class", "names a Python class"),
    ("dtype", "is the type in which the weights are stored; the files say it too"),
    ("torch_dtype", "is the type in which the weights are stored; the files say it too"),
    ("use_bfloat16", "is a type of training"),
    ("initializer_range", "initialises what is then trained"),
    ("gradient_checkpointing", "saves memory in training"),
    ("output_hidden_states", "chooses what is returned"),
    ("output_attentions", "chooses what is returned"),
    ("output_past", "chooses what is returned"),
    ("return_dict", "chooses what is returned"),
    ("return_dict_in_generate", "chooses what is returned"),
    ("output_scores", "chooses what is returned"),
    ("use_cache", "saves time; the results are the same"),
    ("chunk_size_feed_forward", "saves memory; the results are the same"),
    ("torchscript", "chooses how PyTorch runs the model"),
    ("tf_legacy_loss", "belongs to training"),
    ("_attn_implementation", "chooses among implementations of one formula"),
    ("_attn_implementation_autoset", "chooses among implementations of one formula"),
    ("attn_implementation", "chooses among implementations of one formula"),
    ("transformers.js_config", "tells another library which files to load"),
    ("bos_token_id", "is the tokenizer's and the generator's business"),
    ("eos_token_id", "is the tokenizer's and the generator's business"),
    ("sep_token_id", "is the tokenizer's and the generator's business"),
    ("unk_token_id", "is the tokenizer's and the generator's business"),
    ("prefix", "is the generator's business"),
    ("max_length", "is the generator's business"),
    ("min_length", "is the generator's business"),
    ("do_sample", "is the generator's business"),
    ("early_stopping", "is the generator's business"),
    ("num_beams", "is the generator's business"),
    ("num_beam_groups", "is the generator's business"),
    ("diversity_penalty", "is the generator's business"),
    ("temperature", "is the generator's business"),
    ("top_k", "is the generator's business"),
    ("top_p", "is the generator's business"),
    ("typical_p", "is the generator's business"),
    ("repetition_penalty", "is the generator's business"),
    ("length_penalty", "is the generator's business"),
    ("no_repeat_ngram_size", "is the generator's business"),
    ("encoder_no_repeat_ngram_size", "is the generator's business"),
    ("bad_words_ids", "is the generator's business"),
    ("num_return_sequences", "is the generator's business"),
    ("forced_bos_token_id", "is the generator's business"),
    ("forced_eos_token_id", "is the generator's business"),
    ("remove_invalid_values", "is the generator's business"),
    ("exponential_decay_length_penalty", "is the generator's business"),
    ("suppress_tokens", "is the generator's business"),
    ("begin_suppress_tokens", "is the generator's business"),
    ("decoder_start_token_id", "is the generator's business"),
];

/// The fields that must be off in every architecture, and what they would mean.
const REFUSED: &[(&str, &str)] = &[
    ("add_cross_attention", "the layers also attend to an encoder's output"),
    ("auto_map", "the model's code is in its repository, so its arithmetic is not known"),
    ("cross_attention_hidden_size", "the layers also attend to an encoder's output"),
    ("is_encoder_decoder", "an encoder and a decoder are one model"),
    ("pruned_heads", "heads are taken out of some layers"),
    ("quantization_config", "the weights are quantised; expected f32, f16 or bf16"),
    ("compression_config", "the weights are compressed; expected f32, f16 or bf16"),
    ("tie_encoder_decoder", "an encoder and a decoder are one model"),
    ("logit_scale", "the logits are scaled"),
    ("logits_scaling", "the logits are scaled"),
    ("final_logit_softcapping", "the logits are capped"),
    ("attn_logit_softcapping", "the attention scores are capped"),
    ("embedding_multiplier", "the embeddings are scaled"),
    ("residual_multiplier", "the residual sums are scaled"),
    ("attention_multiplier", "the attention scores have another scale"),
];

/// An object's fields, and which of them were asked for.
#[derive(Debug)]
pub(super) struct Config<'a> {
    map: &'a Map<String, Json>,
    /// What stands in front of a field's name in errors: empty, or the object's name and a dot.
    path: &'static str,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Config<'a> {
    pub(super) fn new(map: &'a Map<String, Json>, path: &'static str) -> Self {
        Self { map, path, read: RefCell::default() }
    }

    fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// That a field's value is not one of those expected.
    pub(super) fn value(&self, field: &str, expected: impl Into<String>) -> ConfigError {
        let found = self.map.get(field).map_or_else(|| "absent".to_owned(), Json::to_string);
        ConfigError::Value { field: self.name(field), found, expected: expected.into() }
    }

    /// That a field asks for something that is not supported.
    pub(super) fn unsupported(&self, field: &str, meaning: impl Into<String>) -> ConfigError {
        let found = self.map.get(field).map_or_else(|| "absent".to_owned(), Json::to_string);
        ConfigError::Unsupported { field: self.name(field), found, meaning: meaning.into() }
    }

    pub(super) fn missing(&self, field: &str) -> ConfigError {
        ConfigError::Missing { field: self.name(field) }
    }

    /// A field's value, unless it is absent or null. It counts as used.
    pub(super) fn get(&self, field: &'static str) -> Option<&'a Json> {
        self.read.borrow_mut().insert(field);
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Whether a field is there, if only as null.
    pub(super) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    /// Whether a field is there and null.
    pub(super) fn is_null(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(Json::is_null)
    }

    /// Reads a field with `read`; `None` if it is absent or null.
    fn optional<T>(
        &self,
        field: &'static str,
        expected: &str,
        read: impl FnOnce(&'a Json) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.value(field, expected))
    }

    /// A size: an integer from 1 to [`MAX_SIZE`].
    pub(super) fn optional_size(&self, field: &'static str) -> Result<Option<usize>, ConfigError> {
        self.integer(field, 1, MAX_SIZE)
    }

    /// A size that must be there.
    pub(super) fn size(&self, field: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(field)?.ok_or_else(|| self.missing(field))
    }

    /// The number of layers, which must be there.
    pub(super) fn layers(&self, field: &'static str) -> Result<usize, ConfigError> {
        self.integer(field, 1, MAX_LAYERS)?.ok_or_else(|| self.missing(field))
    }

    /// An integer from `least` to `most`; `None` if it is absent.
    pub(super) fn integer(
        &self,
        field: &'static str,
        least: u64,
        most: u64,
    ) -> Result<Option<usize>, ConfigError> {
        let expected = format!("an integer from {least} to {most}");
        let in_range = |value: &Json| value.as_u64().filter(|value| (least..=most).contains(value));
        Ok(self.optional(field, &expected, in_range)?.map(|value| value as usize))
    }

    /// A positive number; `None` if it is absent.
    pub(super) fn optional_number(&self, field: &'static str) -> Result<Option<f64>, ConfigError> {
        let positive = |value: &Json| value.as_f64().filter(|value| value.is_finite() && *value > 0.0);
        self.optional(field, "a positive number", positive)
    }

    /// A positive number; `default` if it is absent.
    pub(super) fn number(&self, field: &'static str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.optional_number(field)?.unwrap_or(default))
    }

    /// True or false; `default` if it is absent.
    pub(super) fn flag(&self, field: &'static str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.optional(field, "true or false", Json::as_bool)?.unwrap_or(default))
    }

    /// A string; `None` if it is absent.
    pub(super) fn text(&self, field: &'static str) -> Result<Option<&'a str>, ConfigError> {
        self.optional(field, "a string", Json::as_str)
    }

    /// An object with fields of its own, whose name followed by a dot is `path`; `None` if it is absent.
    pub(super) fn object(
        &self,
        field: &'static str,
        path: &'static str,
    ) -> Result<Option<Config<'a>>, ConfigError> {
        let map = self.optional(field, "an object", Json::as_object)?;
        Ok(map.map(|map| Config::new(map, path)))
    }

    /// A list of strings; `None` if it is absent.
    pub(super) fn texts(&self, field: &'static str) -> Result<Option<Vec<&'a str>>, ConfigError> {
        let list = |value: &'a Json| value.as_array()?.iter().map(Json::as_str).collect();
        self.optional(field, "a list of strings", list)
    }

    /// Refuses a field that says anything; `meaning` is what it would mean.
    pub(super) fn refuse(&self, field: &'static str, meaning: &str) -> Result<(), ConfigError> {
        match self.get(field) {
            Some(value) if !is_nothing(value) => Err(self.unsupported(field, meaning)),
            _ => Ok(()),
        }
    }

    /// Refuses what is left: fields that were not asked for, are not known to be irrelevant and say anything.
    pub(super) fn finish(&self, ignored: &[(&str, &str)]) -> Result<(), ConfigError> {
        let read = self.read.borrow();
        for (field, value) in self.map.iter().filter(|(field, _)| !read.contains(field.as_str())) {
            if !is_nothing(value) && !ignored.iter().any(|(name, _)| name == field) {
                return Err(ConfigError::Unknown { field: self.name(field), found: value.to_string() });
            }
        }
        Ok(())
    }

    /// [`finish`](Self::finish) of a model's own config: there are also the fields that all architectures have.
    pub(super) fn finish_model(&self, ignored: &[(&str, &str)]) -> Result<(), ConfigError> {
        REFUSED.iter().try_for_each(|&(field, meaning)| self.refuse(field, meaning))?;
        self.finish(&[IGNORED, ignored].concat())
    }
}

/// Whether a value is null, false or empty.
fn is_nothing(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::String(text) => text.is_empty(),
        Json::Array(list) => list.is_empty(),
        Json::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// The text of a `config.json`.
pub(super) fn parse(text: &str) -> Result<Map<String, Json>, ConfigError> {
    Ok(parse_object(text)?)
}
