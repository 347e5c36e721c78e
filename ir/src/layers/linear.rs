//! The linear layer.

use super::{Checked, features, positive};
use crate::ops::Init;
use crate::{Shape, Tensor};

/// `y = x Wᵀ + bias`: x `[.., in]`, `name.weight` `[out, in]` (frozen, Glorot uniform), `name.bias` `[out]` (frozen,
/// zeros), y `[.., out]` under `name`.
///
/// ```
/// use engraft_ir::{DType::F32, GraphBuilder, dims, layers};
/// let g = GraphBuilder::new("mlp");
/// let x = g.input("x", F32, dims!["batch", 24]);
/// g.output("y", layers::linear(layers::linear(x, "fc1", 40, true).relu(), "fc2", 2, false));
/// assert_eq!(g.finish()?.params().len(), 3);
/// # Ok::<(), engraft_ir::BuildErrors>(())
/// ```
#[track_caller]
pub fn linear<'g>(x: Tensor<'g>, name: &str, out_features: usize, bias: bool) -> Tensor<'g> {
    match checked(x, name, out_features, bias) {
        Ok(y) | Err(y) => y,
    }
}

#[track_caller]
fn checked<'g>(x: Tensor<'g>, name: &str, out_features: usize, bias: bool) -> Checked<'g, Tensor<'g>> {
    let (dtype, in_features) = features(x)?;
    let g = x.builder();
    positive(g, name, "out_features", out_features)?;
    let shape = Shape::new(vec![out_features.into(), in_features]);
    let weight = g.param(&format!("{name}.weight"), dtype, shape).init(Init::GlorotUniform);
    let shape = Shape::new(vec![out_features.into()]);
    let bias =
        if bias { Some(g.param(&format!("{name}.bias"), dtype, shape).init(Init::Zeros)) } else { None };
    Ok(x.dense(weight, bias).named(name))
}
