//! The arithmetic of LoRA and DoRA on one module, written with the public builder. Knows nothing about configs or files.

use super::modules::{Layer, Module};
use engraft_ir::ops::{Adaptable, Dense, Gather, Matmul};
use engraft_ir::{DType::F32, Dim, GraphBuilder, Op, Shape, Tensor};

/// How a module is adapted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kind {
    pub(super) rank: u64,
    pub(super) scale: f64,
    pub(super) dora: bool,
    pub(super) lora_bias: bool,
}

/// One of an adapted module's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// What comes after the module's name and a dot.
    pub(super) name: &'static str,
    /// The same in other versions of PEFT.
    pub(super) other_name: Option<&'static str>,
    /// The label for optimizers.
    group: &'static str,
    pub(super) shape: Vec<u64>,
}

/// The parameters of a module that is adapted like this: A, B, and where they are used m and the bias of B.
pub(super) fn parts(module: &Module, kind: Kind) -> Vec<Part> {
    let part = |name, group, shape: &[u64]| Part { name, other_name: None, group, shape: shape.to_vec() };
    let (inputs, outputs, rank) = (module.inputs, module.outputs, kind.rank);
    let (a, b) = match module.layer {
        Layer::Embedding => ("lora_embedding_A", "lora_embedding_B"),
        Layer::Linear | Layer::Conv1d => ("lora_A.weight", "lora_B.weight"),
    };
    let mut parts = vec![part(a, "lora_A", &[rank, inputs]), part(b, "lora_B", &[outputs, rank])];
    if kind.dora {
        let magnitude = part("lora_magnitude_vector", "lora_magnitude_vector", &[outputs]);
        parts.push(Part { other_name: Some("lora_magnitude_vector.weight"), ..magnitude });
    }
    if kind.lora_bias {
        parts.push(part("lora_B.bias", "lora_B", &[outputs]));
    }
    parts
}

/// Adapts every use of a module. With A `[r, in]`, B `[out, r]` and m `[out]`:
///
/// - LoRA (Hu et al., 2021): `y = x Wᵀ + bias + s (x Aᵀ) Bᵀ`; with a bias b of B, `s ((x Aᵀ) Bᵀ + b)`;
/// - DoRA (Liu et al., 2024, section 4.3): `y = g ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + bias` where `g = m / ‖W + s B A‖` per output.
///   PEFT computes the same as `y₀ + (g - 1) ∘ (y₀ - bias) + g ∘ s (x Aᵀ) Bᵀ` from the layer's own `y₀`;
/// - of an embedding, `x Wᵀ` is `W[ids]` and `x Aᵀ` is `Aᵀ[ids]`; in is vocab, so the norm is over the vocabulary.
///
/// The base's node keeps its name; the adapted value is `<module>.adapted` and takes its place. A biased layer under DoRA
/// gives way to its product `<module>.product`, because the bias comes after the gain.
pub(super) fn adapt(g: &GraphBuilder, module: &Module, kind: Kind) {
    let params = params(g, module, kind);
    let (a, b) = (params[0], params[1]);
    let extra = params.get(2).copied();
    let gain = extra.filter(|_| kind.dora).map(|m| {
        let weight = g.find(&format!("{}.weight", module.name));
        let weight = if module.layer == Layer::Linear { weight } else { weight.t() };
        let norm = (weight + Tensor::lora_delta(a, b, kind.scale)).square().sum(&[1]).sqrt();
        let norm = norm.named(&format!("{}.norm", module.name));
        (m / norm).named(&format!("{}.gain", module.name))
    });
    let bias_of_b = extra.filter(|_| kind.lora_bias);
    for (use_index, node) in module.uses.iter().enumerate() {
        let name = |what: &str| match use_index {
            0 => format!("{}.{what}", module.name),
            later => format!("{}.{what}.{}", module.name, later + 1),
        };
        let node = g.find(node);
        let hidden = match module.layer {
            Layer::Embedding => node.operand(Gather::IDS).map(|ids| a.t().gather(ids)),
            Layer::Linear | Layer::Conv1d => node.operand(INPUT).map(|x| x.dense(a, None)),
        };
        let Some(hidden) = hidden else { continue };
        let update = (hidden.named(&name("lora_A")).dense(b, bias_of_b) * kind.scale).named(&name("lora"));
        let adapted = match gain {
            None => node + update,
            Some(gain) => with_gain(node, update, gain, &name("product")),
        };
        g.replace(node, adapted.named(&name("adapted")));
    }
}

/// The slot of the input, which `dense` and `matmul` share.
const INPUT: usize = Dense::X;
const _: () = assert!(Dense::X == Matmul::A && Dense::X == Adaptable::X && Dense::BIAS == Adaptable::BIAS);

/// `g ∘ (product + update) + bias` for a layer's node `product + bias`.
fn with_gain<'g>(node: Tensor<'g>, update: Tensor<'g>, gain: Tensor<'g>, name: &str) -> Tensor<'g> {
    let dense = node.op().filter(|op| matches!(op, Op::Dense(_) | Op::Adaptable(_)));
    let slot = |slot| dense.as_ref().and_then(|_| node.operand(slot));
    match (slot(Dense::X), slot(Dense::WEIGHT), slot(Dense::BIAS)) {
        (Some(x), Some(weight), Some(bias)) => gain * (x.dense(weight, None).named(name) + update) + bias,
        _ => gain * (node + update),
    }
}

fn params<'g>(g: &'g GraphBuilder, module: &Module, kind: Kind) -> Vec<Tensor<'g>> {
    let param = |part: &Part| {
        let shape: Shape = part.shape.iter().map(|&dim| Dim::fixed(dim)).collect();
        g.param(&format!("{}.{}", module.name, part.name), F32, shape).adapter().group(part.group)
    };
    parts(module, kind).iter().map(param).collect()
}
