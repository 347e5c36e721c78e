//! What the architectures have in common, written with the public builder: norms, activations, attention's carried keys
//! and values. Knows nothing about configs but the names of activations.

use super::config::{Config, ConfigError};
use engraft_ir::DType::F32;
use engraft_ir::ops::Unary;
use engraft_ir::{Axis, Tensor, dims};

/// The activations by their names in configs. The variants of one function differ by less than f32 resolves: `gelu_fast`
/// has sqrt(2/π) to ten digits.
const ACTIVATIONS: &[(&str, Unary)] = &[
    ("gelu", Unary::Gelu),
    ("gelu_python", Unary::Gelu),
    ("gelu_new", Unary::GeluTanh),
    ("gelu_pytorch_tanh", Unary::GeluTanh),
    ("gelu_python_tanh", Unary::GeluTanh),
    ("gelu_fast", Unary::GeluTanh),
    ("gelu_accurate", Unary::GeluTanh),
    ("relu", Unary::Relu),
    ("silu", Unary::Silu),
    ("swish", Unary::Silu),
    ("tanh", Unary::Tanh),
    ("sigmoid", Unary::Sigmoid),
];

/// The activation that a field names; `default` if it is absent.
pub(super) fn activation(
    config: &Config<'_>,
    field: &'static str,
    default: Unary,
) -> Result<Unary, ConfigError> {
    let Some(name) = config.text(field)? else { return Ok(default) };
    ACTIVATIONS.iter().find(|(known, _)| *known == name).map(|(_, function)| *function).ok_or_else(|| {
        let known: Vec<_> = ACTIVATIONS.iter().map(|(known, _)| *known).collect();
        config.unsupported(field, format!("supported are {}", known.join(", ")))
    })
}

/// The width of one head; `hidden` must be a multiple of the heads.
pub(super) fn head_width(
    config: &Config<'_>,
    field: &'static str,
    heads: usize,
    hidden: usize,
) -> Result<usize, ConfigError> {
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    Err(config.value(field, format!("a divisor of the hidden size {hidden}")))
}

/// A layer norm: `name.weight` and `name.bias`, as wide as x's last dim; the result is `name`.
pub(super) fn layer_norm<'g>(x: Tensor<'g>, name: &str, epsilon: f64) -> Tensor<'g> {
    let weight = vector(x, &format!("{name}.weight"));
    let bias = vector(x, &format!("{name}.bias"));
    x.layer_norm(Some(weight), Some(bias), epsilon).named(name)
}

/// A norm by root mean square: `name.weight`, as wide as x's last dim; the result is `name`.
pub(super) fn rms_norm<'g>(x: Tensor<'g>, name: &str, epsilon: f64) -> Tensor<'g> {
    let weight = vector(x, &format!("{name}.weight"));
    x.rms_norm(Some(weight), epsilon).named(name)
}

/// A parameter as wide as x's last dim.
fn vector<'g>(x: Tensor<'g>, name: &str) -> Tensor<'g> {
    let width = x.ty().and_then(|ty| Axis::LAST.resolve(&ty).ok().map(|axis| ty.shape[axis].clone()));
    // Without a type x has failed, which is reported; what is built on it is silent.
    match width {
        Some(width) => x.builder().param(name, F32, dims![width]),
        None => x,
    }
}

/// All keys, or values, so far: those of earlier calls and then x's, `[batch, seq, width]` to
/// `[batch, past + seq, width]`. They are carried from call to call under `name`, with `past` in front.
pub(super) fn with_past<'g>(x: Tensor<'g>, name: &str, width: usize) -> Tensor<'g> {
    let g = x.builder();
    let carried = g.carried(name, F32, dims!["past", "batch", width]);
    g.append(carried, x.transpose(&[1, 0, 2])).transpose(&[1, 0, 2])
}
