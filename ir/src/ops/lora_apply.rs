//! `lora_apply`: the low-rank update applied to an activation.

use super::dense::product;
use super::lora_delta::factor_ranks;
use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, finite, required};
use crate::value::{EvalError, Value};
use crate::{Shape, TensorType};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `d = s (x Aᵀ) Bᵀ`: x `[.., in]`, A `[r, in]`, B `[out, r]`, d `[.., out]`; the activation form of
/// [`LoraDelta`](super::LoraDelta).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraApply {
    /// s: alpha / r, or alpha / sqrt(r) for rsLoRA.
    pub scale: f64,
}

impl LoraApply {
    /// The input.
    pub const X: usize = 0;
    /// A, `[r, in]`.
    pub const A: usize = 1;
    /// B, `[out, r]`.
    pub const B: usize = 2;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "lora_apply",
        formula: "d = s (x Aᵀ) Bᵀ: x [.., in], a [r, in], b [out, r], d [.., out]",
        slots: &[required("x"), required("a"), required("b")],
        variadic: false,
        attributes: &[("scale", "s, finite")],
        decode: decode::<Self>,
    }];
}

impl Operator for LoraApply {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        finite("scale", self.scale)?;
        let dtype = operands.same_float()?;
        operands.rank_at_least(Self::X, 1, "at least one axis, [.., in]")?;
        factor_ranks(operands, Self::A, Self::B)?;
        operands.equal_dims((Self::X, -1), (Self::A, 1), "x is [.., in] and a [r, in]")?;
        let mut shape = operands.required(Self::X).shape.to_vec();
        shape.pop();
        shape.push(operands.required(Self::B).shape[0].clone());
        Ok(TensorType::new(dtype, Shape::new(shape)))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let hidden = product(args.real(Self::X)?, args.real(Self::A)?)?;
        Ok((product(&hidden, args.real(Self::B)?)? * self.scale).into())
    }
}
