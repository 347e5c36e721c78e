//! The decoder of Llama (Touvron et al., 2023), which Qwen2 shares: the fields of its config and its graph. What differs
//! between the two stands in their own files.

use super::blocks::{activation, head_width, rms_norm, with_past};
use super::config::{Config, ConfigError};
use super::inputs::Positions;
use super::rope::Rope;
use super::tensors::Naming;
use super::{Description, GraphOptions, Kind, Logits};
use engraft_ir::DType::I64;
use engraft_ir::layers::{embedding, linear};
use engraft_ir::ops::{Attention, Unary};
use engraft_ir::{Dim, GraphBuilder, Tensor, dims};

/// The fields that change nothing in a decoder, and why.
pub(super) const IGNORED: &[(&str, &str)] = &[
    ("attention_dropout", "is the identity outside training"),
    ("pad_token_id", "is what the mask says, too"),
    ("pretraining_tp", "splits products into parts; their sum is the same"),
    ("is_llama_config", "says that the model is converted"),
];

/// Which layers have a bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Biases {
    /// Those that make queries, keys and values.
    pub(super) qkv: bool,
    /// The one behind attention.
    pub(super) output: bool,
    pub(super) mlp: bool,
}

/// A decoder's sizes and constants.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    vocab: usize,
    hidden: usize,
    context: usize,
    pub(super) layers: usize,
    heads: usize,
    kv_heads: usize,
    head_width: usize,
    intermediate: usize,
    activation: Unary,
    epsilon: f64,
    rope: Rope,
    biases: Biases,
    /// The window of each layer, if it has one; empty if none has.
    pub(super) windows: Vec<Option<u64>>,
    tied: bool,
}

impl Decoder {
    pub(super) fn read(config: &Config<'_>, biases: Biases) -> Result<Self, ConfigError> {
        require_causal(config)?;
        let (heads, hidden) = (config.size("num_attention_heads")?, config.size("hidden_size")?);
        let kv_heads = config.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(config.value("num_key_value_heads", format!("a divisor of the {heads} heads")));
        }
        let head_width = match config.optional_size("head_dim")? {
            Some(width) => width,
            None => head_width(config, "num_attention_heads", heads, hidden)?,
        };
        let context = config.size("max_position_embeddings")?;
        Ok(Self {
            vocab: config.size("vocab_size")?,
            hidden,
            context,
            layers: config.layers("num_hidden_layers")?,
            heads,
            kv_heads,
            head_width,
            intermediate: config.size("intermediate_size")?,
            activation: activation(config, "hidden_act", Unary::Silu)?,
            epsilon: config.number("rms_norm_eps", 1e-6)?,
            rope: Rope::read(config, head_width, context)?,
            biases,
            windows: Vec::new(),
            tied: config.flag("tie_word_embeddings", false)?,
        })
    }

    pub(super) fn description(&self) -> Description {
        Description {
            kind: Kind::Decoder,
            vocab: self.vocab,
            hidden: self.hidden,
            context: self.context,
            token_types: None,
            positions: Positions::Counted,
            naming: Naming {
                wrapper: "model.",
                prefix: "model.",
                heads: &["lm_head."],
                renamed: &[],
                left_out: &["rotary_emb.inv_freq", "layers.*.self_attn.rotary_emb.inv_freq"],
                tied: self.tied.then_some(("lm_head.weight", "model.embed_tokens.weight")),
            },
        }
    }

    pub(super) fn build(&self, g: &GraphBuilder, options: GraphOptions) {
        let [ids, positions, mask] = inputs(g);
        let angles = self.rope.angles(positions);
        let mut x = embedding(ids, "model.embed_tokens", self.vocab, self.hidden);
        for layer in 0..self.layers {
            x = g.block(&format!("model.layers.{layer}"), || self.layer(layer, x, mask, angles));
        }
        let x = rms_norm(x, "model.norm", self.epsilon);
        logits(x, self.vocab, self.tied.then_some("model.embed_tokens.weight"), options);
    }

    fn layer<'g>(
        &self,
        layer: usize,
        x: Tensor<'g>,
        mask: Tensor<'g>,
        angles: [Tensor<'g>; 2],
    ) -> Tensor<'g> {
        let normed = rms_norm(x, "input_layernorm", self.epsilon);
        let x = x + self.attention(layer, normed, mask, angles);
        let normed = rms_norm(x, "post_attention_layernorm", self.epsilon);
        let gate = linear(normed, "mlp.gate_proj", self.intermediate, self.biases.mlp).unary(self.activation);
        let up = linear(normed, "mlp.up_proj", self.intermediate, self.biases.mlp);
        x + linear(gate * up, "mlp.down_proj", self.hidden, self.biases.mlp)
    }

    fn attention<'g>(
        &self,
        layer: usize,
        x: Tensor<'g>,
        mask: Tensor<'g>,
        angles: [Tensor<'g>; 2],
    ) -> Tensor<'g> {
        let (width, kv_width) = (self.heads * self.head_width, self.kv_heads * self.head_width);
        let project = |name, width| linear(x, &format!("self_attn.{name}"), width, self.biases.qkv);
        let [query, key] = [project("q_proj", width), project("k_proj", kv_width)];
        let value = project("v_proj", kv_width);
        let query = self.rope.rotate(query, angles, self.heads);
        let key = self.rope.rotate(key, angles, self.kv_heads);
        let keys = with_past(key, "self_attn.keys", kv_width);
        let values = with_past(value, "self_attn.values", kv_width);
        let op = Attention {
            heads: self.heads as u64,
            kv_heads: self.kv_heads as u64,
            scale: 1.0 / (self.head_width as f64).sqrt(),
            causal: true,
            window: self.windows.get(layer).copied().flatten(),
        };
        let context = query.attention(keys, values, Some(mask), op).named("self_attn");
        linear(context, "self_attn.o_proj", self.hidden, self.biases.output)
    }
}

/// Requires that a decoder's tokens attend to what came before only. transformers takes `is_causal` from any decoder's config
/// (`create_causal_mask`), where absence is true and null is not.
pub(super) fn require_causal(config: &Config<'_>) -> Result<(), ConfigError> {
    if config.flag("is_causal", true)? && !config.is_null("is_causal") {
        return Ok(());
    }
    Err(config.unsupported("is_causal", "tokens attend to those behind them, too; supported is true"))
}

/// A decoder's inputs: `input_ids` and `position_ids` `[batch, seq]`, `attention_mask` `[batch, past + seq]`.
pub(super) fn inputs(g: &GraphBuilder) -> [Tensor<'_>; 3] {
    [
        g.input("input_ids", I64, dims!["batch", "seq"]),
        g.input("position_ids", I64, dims!["batch", "seq"]),
        g.input("attention_mask", I64, dims!["batch", Dim::symbol("past") + Dim::symbol("seq")]),
    ]
}

/// The logits of the last layer's states, with a weight of their own, `lm_head.weight`, or one they share.
pub(super) fn logits(x: Tensor<'_>, vocab: usize, tied: Option<&str>, options: GraphOptions) {
    let g = x.builder();
    let x = match options.logits {
        Logits::All => x,
        Logits::Last => last(x),
    };
    let logits = match tied {
        Some(weight) => x.dense(g.find(weight), None).named("lm_head"),
        None => linear(x, "lm_head", vocab, false),
    };
    g.output("logits", logits);
}

/// The states of the tokens in `last_tokens`, one of each row: `[batch, seq, hidden]` to `[batch, 1, hidden]`.
fn last(x: Tensor<'_>) -> Tensor<'_> {
    let Some(ty) = x.ty() else { return x };
    let ids = x.builder().input("last_tokens", I64, dims!["batch", 1]);
    let tokens = x.reshape(dims![Dim::symbol("batch") * Dim::symbol("seq"), ty.shape[2].clone()]);
    tokens.gather(ids).named("last_states")
}
