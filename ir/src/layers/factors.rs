//! The low-rank factors that LoRA and DoRA share: their parameters, their scale, and what they may wrap.

use super::{Checked, features, positive};
use crate::ops::{Dense, Init};
use crate::{Cause, DType, Dim, Op, Shape, Tensor};

/// A `[r, in]`, B `[out, r]` and s = alpha / r, with the sizes they are for.
#[derive(Clone)]
pub(super) struct Factors<'g> {
    pub a: Tensor<'g>,
    pub b: Tensor<'g>,
    pub scale: f64,
    pub dtype: DType,
    pub input: Dim,
}

impl<'g> Factors<'g> {
    /// The factors of the layer `name` on x: `name.lora_A` (normal 0.02, group `lora_A`) and `name.lora_B` (zeros, group
    /// `lora_B`), both the adapter's.
    #[track_caller]
    pub fn new(x: Tensor<'g>, output: Dim, rank: usize, alpha: f64, name: &str) -> Checked<'g, Self> {
        let (dtype, input) = features(x)?;
        let g = x.builder();
        positive(g, name, "rank", rank)?;
        positive(g, name, "output_size", output.clone())?;
        if !alpha.is_finite() {
            let (layer, found) = (name.to_owned(), alpha.to_string());
            return Err(g.fail(Cause::LayerOption {
                layer,
                option: "alpha",
                found,
                expected: "a finite number",
            }));
        }
        let a = g.param(&format!("{name}.lora_A"), dtype, Shape::new(vec![rank.into(), input.clone()]));
        let b = g.param(&format!("{name}.lora_B"), dtype, Shape::new(vec![output, rank.into()]));
        Ok(Self {
            a: a.adapter().init(Init::Normal { std: 0.02 }).group("lora_A"),
            b: b.adapter().init(Init::Zeros).group("lora_B"),
            scale: alpha / rank as f64,
            dtype,
            input,
        })
    }

    /// `s (x Aᵀ) Bᵀ`.
    #[track_caller]
    pub fn apply(&self, x: Tensor<'g>) -> Tensor<'g> {
        x.lora_apply(self.a, self.b, self.scale)
    }

    /// `name.weight` `[out, in]`: the frozen base, Glorot uniform.
    #[track_caller]
    pub fn base(&self, name: &str, output: Dim) -> Tensor<'g> {
        let shape = Shape::new(vec![output, self.input.clone()]);
        let weight = self.a.builder().param(&format!("{name}.weight"), self.dtype, shape);
        weight.init(Init::GlorotUniform)
    }
}

/// What a dense layer is made of.
pub(super) struct DenseParts<'g> {
    pub x: Tensor<'g>,
    pub weight: Tensor<'g>,
    pub bias: Option<Tensor<'g>>,
    pub output: Dim,
}

/// Takes a dense layer apart by its result.
#[track_caller]
pub(super) fn dense_parts(dense: Tensor<'_>) -> Checked<'_, DenseParts<'_>> {
    let (_, output) = features(dense)?;
    let op = dense.op();
    if let (Some(Op::Dense(_)), Some(x), Some(weight)) =
        (&op, dense.operand(Dense::X), dense.operand(Dense::WEIGHT))
    {
        return Ok(DenseParts { x, weight, bias: dense.operand(Dense::BIAS), output });
    }
    let (node, found) = (dense.name().unwrap_or_default(), op.as_ref().map_or("nothing", Op::name));
    Err(dense.builder().fail(Cause::NotA { node, found, expected: "the result of `dense`" }))
}
