//! The encoder of BERT (Devlin et al., 2018), which `RoBERTa` (Liu et al., 2019) shares: the fields of its config and its
//! graph. What differs between the two stands in their own files.

use super::blocks::{activation, head_width, layer_norm};
use super::config::{Config, ConfigError};
use engraft_ir::DType::I64;
use engraft_ir::layers::{embedding, linear};
use engraft_ir::ops::{Attention, Unary};
use engraft_ir::{GraphBuilder, Tensor, dims};

/// The fields that change nothing in an encoder, and why.
pub(super) const IGNORED: &[(&str, &str)] = &[
    ("hidden_dropout_prob", "is the identity outside training"),
    ("attention_probs_dropout_prob", "is the identity outside training"),
    ("tie_word_embeddings", "belongs to a head that is no part of the graph"),
    ("directionality", "names what every encoder of this kind is"),
    ("pooler_fc_size", "belongs to the pooler, which is no part of the graph"),
    ("pooler_num_attention_heads", "belongs to the pooler, which is no part of the graph"),
    ("pooler_num_fc_layers", "belongs to the pooler, which is no part of the graph"),
    ("pooler_size_per_head", "belongs to the pooler, which is no part of the graph"),
    ("pooler_type", "belongs to the pooler, which is no part of the graph"),
];

/// The tensors that are no part of the graph: the pooler, the heads of tasks, and a buffer of positions.
pub(super) const LEFT_OUT: &[&str] = &[
    "pooler.",
    "cls.",
    "lm_head.",
    "classifier.",
    "qa_outputs.",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
];

/// How old files call a layer norm's parameters.
pub(super) const RENAMED: &[(&str, &str)] =
    &[("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")];

/// An encoder's sizes and constants.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    /// Rows of the table of positions.
    pub(super) positions: usize,
    pub(super) token_types: usize,
    layers: usize,
    heads: usize,
    head_width: usize,
    intermediate: usize,
    activation: Unary,
    epsilon: f64,
}

impl Encoder {
    pub(super) fn read(config: &Config<'_>) -> Result<Self, ConfigError> {
        match config.text("position_embedding_type")? {
            None | Some("absolute") => {}
            Some(_) => return Err(config.unsupported("position_embedding_type", "supported is \"absolute\"")),
        }
        config.refuse("is_decoder", "the layers attend to what came before only")?;
        let (heads, hidden) = (config.size("num_attention_heads")?, config.size("hidden_size")?);
        Ok(Self {
            vocab: config.size("vocab_size")?,
            hidden,
            positions: config.size("max_position_embeddings")?,
            token_types: config.optional_size("type_vocab_size")?.unwrap_or(2),
            layers: config.layers("num_hidden_layers")?,
            heads,
            head_width: head_width(config, "num_attention_heads", heads, hidden)?,
            intermediate: config.size("intermediate_size")?,
            activation: activation(config, "hidden_act", Unary::Gelu)?,
            epsilon: config.number("layer_norm_eps", 1e-12)?,
        })
    }

    /// Inputs `input_ids`, `token_type_ids`, `position_ids` and `attention_mask` `[batch, seq]`, output
    /// `last_hidden_state` `[batch, seq, hidden]`.
    pub(super) fn build(&self, g: &GraphBuilder) {
        let input = |name| g.input(name, I64, dims!["batch", "seq"]);
        let [ids, types] = [input("input_ids"), input("token_type_ids")];
        let [positions, mask] = [input("position_ids"), input("attention_mask")];
        let mut x = g.block("embeddings", || {
            let words = embedding(ids, "word_embeddings", self.vocab, self.hidden);
            let types = embedding(types, "token_type_embeddings", self.token_types, self.hidden);
            let positions = embedding(positions, "position_embeddings", self.positions, self.hidden);
            layer_norm(words + types + positions, "LayerNorm", self.epsilon)
        });
        for layer in 0..self.layers {
            x = g.block(&format!("encoder.layer.{layer}"), || self.layer(x, mask));
        }
        g.output("last_hidden_state", x);
    }

    fn layer<'g>(&self, x: Tensor<'g>, mask: Tensor<'g>) -> Tensor<'g> {
        let [query, key, value] = ["query", "key", "value"]
            .map(|name| linear(x, &format!("attention.self.{name}"), self.hidden, true));
        let op = Attention {
            heads: self.heads as u64,
            kv_heads: self.heads as u64,
            scale: 1.0 / (self.head_width as f64).sqrt(),
            causal: false,
            window: None,
        };
        let context = query.attention(key, value, Some(mask), op).named("attention.self");
        let context = linear(context, "attention.output.dense", self.hidden, true);
        let x = layer_norm(context + x, "attention.output.LayerNorm", self.epsilon);
        let inner = linear(x, "intermediate.dense", self.intermediate, true).unary(self.activation);
        layer_norm(linear(inner, "output.dense", self.hidden, true) + x, "output.LayerNorm", self.epsilon)
    }
}
