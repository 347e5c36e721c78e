//! GPT-2 (Radford et al., 2019).

use super::blocks::{activation, head_width, layer_norm, with_past};
use super::config::{Config, ConfigError};
use super::decoder::{inputs, logits, require_causal};
use super::inputs::Positions;
use super::tensors::Naming;
use super::{Description, GraphOptions, Kind, Model};
use engraft_ir::layers::{conv1d, embedding};
use engraft_ir::ops::{Attention, Unary};
use engraft_ir::{GraphBuilder, Tensor};

/// The fields that change nothing, and why.
const IGNORED: &[(&str, &str)] = &[
    ("n_ctx", "is `n_positions` by its old name"),
    ("resid_pdrop", "is the identity outside training"),
    ("embd_pdrop", "is the identity outside training"),
    ("attn_pdrop", "is the identity outside training"),
    ("summary_type", "belongs to a head that is no part of the graph"),
    ("summary_use_proj", "belongs to a head that is no part of the graph"),
    ("summary_activation", "belongs to a head that is no part of the graph"),
    ("summary_proj_to_labels", "belongs to a head that is no part of the graph"),
    ("summary_first_dropout", "belongs to a head that is no part of the graph"),
    ("reorder_and_upcast_attn", "is a precision of training; the formula is the same"),
    ("pad_token_id", "is what the mask says, too"),
];

/// Reads the config of a GPT-2.
pub(super) fn read(config: &Config<'_>) -> Result<Box<dyn Model>, ConfigError> {
    require_causal(config)?;
    let (heads, hidden) = (config.size("n_head")?, config.size("n_embd")?);
    let gpt2 = Gpt2 {
        vocab: config.size("vocab_size")?,
        hidden,
        context: config.size("n_positions")?,
        layers: config.layers("n_layer")?,
        heads,
        head_width: head_width(config, "n_head", heads, hidden)?,
        intermediate: config.optional_size("n_inner")?.unwrap_or(4 * hidden),
        activation: activation(config, "activation_function", Unary::GeluTanh)?,
        epsilon: config.number("layer_norm_epsilon", 1e-5)?,
        scaled: config.flag("scale_attn_weights", true)?,
        scaled_by_layer: config.flag("scale_attn_by_inverse_layer_idx", false)?,
        tied: config.flag("tie_word_embeddings", true)?,
    };
    config.finish_model(IGNORED)?;
    Ok(Box::new(gpt2))
}

#[derive(Debug)]
struct Gpt2 {
    vocab: usize,
    hidden: usize,
    context: usize,
    layers: usize,
    heads: usize,
    head_width: usize,
    intermediate: usize,
    activation: Unary,
    epsilon: f64,
    /// Scores are divided by the root of a head's width.
    scaled: bool,
    /// Scores are divided by the layer's number, from 1.
    scaled_by_layer: bool,
    tied: bool,
}

impl Model for Gpt2 {
    fn description(&self) -> Description {
        Description {
            kind: Kind::Decoder,
            vocab: self.vocab,
            hidden: self.hidden,
            context: self.context,
            token_types: None,
            positions: Positions::Counted,
            naming: Naming {
                wrapper: "transformer.",
                prefix: "transformer.",
                heads: &["lm_head."],
                renamed: &[],
                left_out: &["h.*.attn.bias", "h.*.attn.masked_bias"],
                tied: self.tied.then_some(("lm_head.weight", "transformer.wte.weight")),
            },
        }
    }

    fn build(&self, g: &GraphBuilder, options: GraphOptions) {
        let [ids, positions, mask] = inputs(g);
        let tokens = embedding(ids, "transformer.wte", self.vocab, self.hidden);
        let mut x = tokens + embedding(positions, "transformer.wpe", self.context, self.hidden);
        for layer in 0..self.layers {
            x = g.block(&format!("transformer.h.{layer}"), || self.layer(layer, x, mask));
        }
        let x = layer_norm(x, "transformer.ln_f", self.epsilon);
        logits(x, self.vocab, self.tied.then_some("transformer.wte.weight"), options);
    }
}

impl Gpt2 {
    fn layer<'g>(&self, layer: usize, x: Tensor<'g>, mask: Tensor<'g>) -> Tensor<'g> {
        let x = x + self.attention(layer, layer_norm(x, "ln_1", self.epsilon), mask);
        let inner = conv1d(layer_norm(x, "ln_2", self.epsilon), "mlp.c_fc", self.intermediate);
        x + conv1d(inner.unary(self.activation), "mlp.c_proj", self.hidden)
    }

    fn attention<'g>(&self, layer: usize, x: Tensor<'g>, mask: Tensor<'g>) -> Tensor<'g> {
        let joint = conv1d(x, "attn.c_attn", 3 * self.hidden);
        let part = |index: usize| joint.slice(-1, index * self.hidden, self.hidden);
        let keys = with_past(part(1), "attn.keys", self.hidden);
        let values = with_past(part(2), "attn.values", self.hidden);
        let by_width = if self.scaled { 1.0 / (self.head_width as f64).sqrt() } else { 1.0 };
        let by_layer = if self.scaled_by_layer { (layer + 1) as f64 } else { 1.0 };
        let op = Attention {
            heads: self.heads as u64,
            kv_heads: self.heads as u64,
            scale: by_width / by_layer,
            causal: true,
            window: None,
        };
        let context = part(0).attention(keys, values, Some(mask), op).named("attn");
        conv1d(context, "attn.c_proj", self.hidden)
    }
}
