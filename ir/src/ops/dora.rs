//! `dora`: a linear layer with its low-rank update and a gain per output, fused: weight DoRA at call time.

use super::dense::add_bias;
use super::lora::{adapted_product, adapted_type};
use crate::TensorType;
use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, finite, optional, required};
use crate::value::{EvalError, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = g ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + bias`: x `[.., in]`, W `[out, in]`, A `[r, in]`, B `[out, r]`, g and bias `[out]`,
/// y `[.., out]`. The bias is never scaled. DoRA's gain is `g = m / lora_norm(W, A, B)` (Liu et al., 2024, eq. 5),
/// a node of its own, so that it is computed as early as its operands are known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dora {
    /// s: alpha / r, or alpha / sqrt(r) for rsLoRA.
    pub scale: f64,
}

impl Dora {
    /// The input.
    pub const X: usize = 0;
    /// The weight, `[out, in]`.
    pub const WEIGHT: usize = 1;
    /// A, `[r, in]`.
    pub const A: usize = 2;
    /// B, `[out, r]`.
    pub const B: usize = 3;
    /// The gain, `[out]`.
    pub const GAIN: usize = 4;
    /// The bias, `[out]`, optional.
    pub const BIAS: usize = 5;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "dora",
        formula: "y = g ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + bias: x [.., in], weight [out, in], a [r, in], b [out, r], \
                  gain [out], bias [out]",
        slots: &[
            required("x"),
            required("weight"),
            required("a"),
            required("b"),
            required("gain"),
            optional("bias"),
        ],
        variadic: false,
        attributes: &[("scale", "s, finite")],
        decode: decode::<Self>,
    }];
}

impl Operator for Dora {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        finite("scale", self.scale)?;
        let ty = adapted_type(operands, Self::BIAS)?;
        operands.rank(Self::GAIN, 1, "one axis, [out]")?;
        operands.equal_dims((Self::WEIGHT, 0), (Self::GAIN, 0), "weight is [out, in] and gain [out]")?;
        Ok(ty)
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let y = adapted_product(args, self.scale)? * args.real(Self::GAIN)?;
        Ok(add_bias(y, args.optional_real(Self::BIAS)?).into())
    }
}
