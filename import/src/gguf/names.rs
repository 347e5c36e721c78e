//! What Hugging Face calls a GGUF tensor, and what the conversion did to its rows. Knows nothing about elements.
//!
//! The names are those of llama.cpp's `tensor_mapping.py`.

use super::config::{Architecture, Model};

/// What becomes of a tensor.
#[derive(Debug, PartialEq)]
pub(super) enum Role {
    /// It is the parameter of this name.
    Parameter(String),
    /// It is the parameter of this name, with the rows of each of so many heads put in rope's other order.
    Rotated(String, u64),
    /// It is part of the configuration.
    Config,
}

/// The tensor of rope's factors.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The tensors outside of blocks.
const OUTER: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// The tensors of a block, and whether they may have a bias.
const INNER: [(&str, &str, bool); 9] = [
    ("attn_norm", "input_layernorm", false),
    ("attn_q", "self_attn.q_proj", true),
    ("attn_k", "self_attn.k_proj", true),
    ("attn_v", "self_attn.v_proj", true),
    ("attn_output", "self_attn.o_proj", true),
    ("ffn_norm", "post_attention_layernorm", false),
    ("ffn_gate", "mlp.gate_proj", false),
    ("ffn_up", "mlp.up_proj", false),
    ("ffn_down", "mlp.down_proj", false),
];

/// What becomes of the tensor of this name; `None` if the model has none.
pub(super) fn role(name: &str, model: &Model) -> Option<Role> {
    if name == ROPE_FACTORS {
        return (model.architecture == Architecture::Llama).then_some(Role::Config);
    }
    if let Some((_, theirs)) = OUTER.iter().find(|(ours, _)| *ours == name) {
        return Some(Role::Parameter((*theirs).to_owned()));
    }
    let (block, inner) = name.strip_prefix("blk.")?.split_once('.')?;
    let index: u64 = block.parse().ok().filter(|index| *index < model.blocks)?;
    // `blk.01` and `blk.+1` are no other names of block 1.
    (index.to_string() == block).then_some(())?;
    let (part, kind) = inner.split_once('.')?;
    let &(part, theirs, biased) = INNER.iter().find(|(ours, ..)| *ours == part)?;
    (kind == "weight" || (kind == "bias" && biased && has_bias(part, model.architecture))).then_some(())?;
    let parameter = format!("model.layers.{index}.{theirs}.{kind}");
    Some(match (model.architecture, part) {
        (Architecture::Llama, "attn_q") => Role::Rotated(parameter, model.heads),
        (Architecture::Llama, "attn_k") => Role::Rotated(parameter, model.kv_heads),
        _ => Role::Parameter(parameter),
    })
}

/// Qwen2 has biases on q, k and v; Llama, where it has them, on all four.
fn has_bias(part: &str, architecture: Architecture) -> bool {
    architecture == Architecture::Llama || part != "attn_output"
}
