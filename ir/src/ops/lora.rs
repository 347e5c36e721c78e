//! `lora`: a linear layer with its low-rank update, fused.

use super::dense::{add_bias, linear_type, product};
use super::lora_delta::factor_ranks;
use crate::TensorType;
use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, finite, optional, required};
use crate::value::{EvalError, Value};
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = x Wᵀ + s (x Aᵀ) Bᵀ + bias`: x `[.., in]`, W `[out, in]`, A `[r, in]`, B `[out, r]`, bias `[out]`,
/// y `[.., out]` (Hu et al., 2021).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// s: alpha / r, or alpha / sqrt(r) for rsLoRA.
    pub scale: f64,
}

impl Lora {
    /// The input.
    pub const X: usize = 0;
    /// The weight, `[out, in]`.
    pub const WEIGHT: usize = 1;
    /// A, `[r, in]`.
    pub const A: usize = 2;
    /// B, `[out, r]`.
    pub const B: usize = 3;
    /// The bias, `[out]`, optional.
    pub const BIAS: usize = 4;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "lora",
        formula: "y = x Wᵀ + s (x Aᵀ) Bᵀ + bias: x [.., in], weight [out, in], a [r, in], b [out, r], bias [out]",
        slots: &[required("x"), required("weight"), required("a"), required("b"), optional("bias")],
        variadic: false,
        attributes: &[("scale", "s, finite")],
        decode: decode::<Self>,
    }];
}

impl Operator for Lora {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        finite("scale", self.scale)?;
        adapted_type(operands, Self::BIAS)
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        Ok(add_bias(adapted_product(args, self.scale)?, args.optional_real(Self::BIAS)?).into())
    }
}

/// The shape rule that every adapted linear layer shares: x, weight, a, b in slots 0 to 3, and a bias `[out]`.
pub(super) fn adapted_type(operands: Operands<'_>, bias: usize) -> Result<TensorType, RuleError> {
    let ty = linear_type(operands, bias)?;
    factor_ranks(operands, Lora::A, Lora::B)?;
    operands.equal_dims((Lora::WEIGHT, 1), (Lora::A, 1), "weight is [out, in] and a [r, in]")?;
    operands.equal_dims((Lora::WEIGHT, 0), (Lora::B, 0), "weight is [out, in] and b [out, r]")?;
    Ok(ty)
}

/// `x Wᵀ + s (x Aᵀ) Bᵀ` from slots 0 to 3.
pub(super) fn adapted_product(args: Args<'_>, scale: f64) -> Result<ArrayD<f64>, EvalError> {
    let x = args.real(Lora::X)?;
    let base = product(x, args.real(Lora::WEIGHT)?)?;
    let hidden = product(x, args.real(Lora::A)?)?;
    Ok(base + product(&hidden, args.real(Lora::B)?)? * scale)
}
