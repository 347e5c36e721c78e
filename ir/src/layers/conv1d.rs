//! GPT-2's `Conv1D`: a linear layer that stores its weight `[in, out]`.

use super::{Checked, features, positive};
use crate::ops::Init;
use crate::{Shape, Tensor};

/// `y = x W + bias`: x `[.., in]`, `name.weight` `[in, out]` (frozen, normal 0.02), `name.bias` `[out]` (frozen, zeros),
/// y `[.., out]` under `name`. It is a `dense` on the transposed weight, so that adapters wrap it like any other.
#[track_caller]
pub fn conv1d<'g>(x: Tensor<'g>, name: &str, out_features: usize) -> Tensor<'g> {
    match checked(x, name, out_features) {
        Ok(y) | Err(y) => y,
    }
}

#[track_caller]
fn checked<'g>(x: Tensor<'g>, name: &str, out_features: usize) -> Checked<'g, Tensor<'g>> {
    let (dtype, in_features) = features(x)?;
    let g = x.builder();
    positive(g, name, "out_features", out_features)?;
    let shape = Shape::new(vec![in_features, out_features.into()]);
    let weight = g.param(&format!("{name}.weight"), dtype, shape).init(Init::Normal { std: 0.02 });
    let bias =
        g.param(&format!("{name}.bias"), dtype, Shape::new(vec![out_features.into()])).init(Init::Zeros);
    Ok(x.dense(weight.t(), Some(bias)).named(name))
}
