//! `lora_delta`: the low-rank update in weight space.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, finite, required};
use crate::value::{EvalError, Value};
use crate::{Shape, TensorType};
use ndarray::Ix2;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `Δ = s B A`: A `[r, in]`, B `[out, r]`, Δ `[out, in]` (Hu et al., 2021).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraDelta {
    /// s: alpha / r, or alpha / sqrt(r) for rsLoRA.
    pub scale: f64,
}

impl LoraDelta {
    /// A, `[r, in]`.
    pub const A: usize = 0;
    /// B, `[out, r]`.
    pub const B: usize = 1;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "lora_delta",
        formula: "Δ = s B A: a [r, in], b [out, r], Δ [out, in]",
        slots: &[required("a"), required("b")],
        variadic: false,
        attributes: &[("scale", "s, finite")],
        decode: decode::<Self>,
    }];
}

impl Operator for LoraDelta {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        finite("scale", self.scale)?;
        let dtype = operands.same_float()?;
        factor_ranks(operands, Self::A, Self::B)?;
        let shape = [&operands.required(Self::B).shape[0], &operands.required(Self::A).shape[1]];
        Ok(TensorType::new(dtype, shape.into_iter().cloned().collect::<Shape>()))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let a = args.real(Self::A)?.view().into_dimensionality::<Ix2>()?;
        let b = args.real(Self::B)?.view().into_dimensionality::<Ix2>()?;
        Ok((b.dot(&a) * self.scale).as_standard_layout().into_owned().into_dyn().into())
    }
}

/// The rule that the low-rank factors share: a `[r, in]`, b `[out, r]`.
pub(super) fn factor_ranks(operands: Operands<'_>, a: usize, b: usize) -> Result<(), RuleError> {
    operands.rank(a, 2, "two axes, [r, in]")?;
    operands.rank(b, 2, "two axes, [out, r]")?;
    operands.equal_dims((a, 0), (b, 1), "a is [r, in] and b [out, r]")
}
