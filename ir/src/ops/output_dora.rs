//! `output_dora`: DoRA normalised over each output row, as Edifice computes it, fused. Its own meaning: it depends on
//! x per sample, is invariant to the scale of x, and cannot be merged into a weight.

use super::dense::add_bias;
use super::lora::{adapted_product, adapted_type};
use crate::TensorType;
use crate::op::{
    Args, OpInfo, Operands, Operator, RuleError, decode, fields, finite, non_negative, optional, required,
};
use crate::value::{EvalError, Value};
use ndarray::Axis as NdAxis;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `c = x Wᵀ + bias + s (x Aᵀ) Bᵀ`, `y = m ∘ c / sqrt(Σ_last c² + ε)`: x `[.., in]`, W `[out, in]`, A `[r, in]`,
/// B `[out, r]`, m and bias `[out]`, y `[.., out]` (Edifice's `DoRA`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputDora {
    /// s: alpha / r.
    pub scale: f64,
    /// ε, inside the root.
    pub epsilon: f64,
}

impl OutputDora {
    /// The input.
    pub const X: usize = 0;
    /// The weight, `[out, in]`.
    pub const WEIGHT: usize = 1;
    /// A, `[r, in]`.
    pub const A: usize = 2;
    /// B, `[out, r]`.
    pub const B: usize = 3;
    /// The magnitude, `[out]`.
    pub const MAGNITUDE: usize = 4;
    /// The bias, `[out]`, optional; normalised with the rest.
    pub const BIAS: usize = 5;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "output_dora",
        formula: "c = x Wᵀ + bias + s (x Aᵀ) Bᵀ, y = m ∘ c / sqrt(Σ_last c² + ε): x [.., in], weight [out, in], \
                  a [r, in], b [out, r], magnitude [out], bias [out]",
        slots: &[
            required("x"),
            required("weight"),
            required("a"),
            required("b"),
            required("magnitude"),
            optional("bias"),
        ],
        variadic: false,
        attributes: &[("scale", "s, finite"), ("epsilon", "ε, finite, 0 or more")],
        decode: decode::<Self>,
    }];
}

impl Operator for OutputDora {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        finite("scale", self.scale)?;
        non_negative("epsilon", self.epsilon)?;
        let ty = adapted_type(operands, Self::BIAS)?;
        operands.rank(Self::MAGNITUDE, 1, "one axis, [out]")?;
        operands.equal_dims(
            (Self::WEIGHT, 0),
            (Self::MAGNITUDE, 0),
            "weight is [out, in] and magnitude [out]",
        )?;
        Ok(ty)
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let c = add_bias(adapted_product(args, self.scale)?, args.optional_real(Self::BIAS)?);
        let last = NdAxis(c.ndim() - 1);
        let norm = c.mapv(|v| v * v).sum_axis(last).mapv(|sum| (sum + self.epsilon).sqrt());
        Ok((args.real(Self::MAGNITUDE)? * &(c / &norm.insert_axis(last))).into())
    }
}
