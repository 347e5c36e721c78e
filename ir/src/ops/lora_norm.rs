//! `lora_norm`: the row norms of an updated weight, DoRA's denominator.

use super::lora_delta::factor_ranks;
use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, finite, required};
use crate::value::{EvalError, Value};
use crate::{Shape, TensorType};
use ndarray::{Axis as NdAxis, Ix2};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `n_j = ‖W_j + s (B A)_j‖₂` over `in`, no epsilon: W `[out, in]`, A `[r, in]`, B `[out, r]`, n `[out]`
/// (Liu et al., 2024, eq. 5).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraNorm {
    /// s: alpha / r, or alpha / sqrt(r) for rsLoRA.
    pub scale: f64,
}

impl LoraNorm {
    /// The weight, `[out, in]`.
    pub const WEIGHT: usize = 0;
    /// A, `[r, in]`.
    pub const A: usize = 1;
    /// B, `[out, r]`.
    pub const B: usize = 2;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "lora_norm",
        formula: "n_j = ‖W_j + s (B A)_j‖₂ over in: weight [out, in], a [r, in], b [out, r], n [out]",
        slots: &[required("weight"), required("a"), required("b")],
        variadic: false,
        attributes: &[("scale", "s, finite")],
        decode: decode::<Self>,
    }];
}

impl Operator for LoraNorm {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        finite("scale", self.scale)?;
        let dtype = operands.same_float()?;
        operands.rank(Self::WEIGHT, 2, "two axes, [out, in]")?;
        factor_ranks(operands, Self::A, Self::B)?;
        operands.equal_dims((Self::WEIGHT, 1), (Self::A, 1), "weight is [out, in] and a [r, in]")?;
        operands.equal_dims((Self::WEIGHT, 0), (Self::B, 0), "weight is [out, in] and b [out, r]")?;
        let out = operands.required(Self::WEIGHT).shape[0].clone();
        Ok(TensorType::new(dtype, Shape::new(vec![out])))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let w = args.real(Self::WEIGHT)?.view().into_dimensionality::<Ix2>()?;
        let a = args.real(Self::A)?.view().into_dimensionality::<Ix2>()?;
        let b = args.real(Self::B)?.view().into_dimensionality::<Ix2>()?;
        let adapted = &w + &(b.dot(&a) * self.scale);
        Ok(adapted.mapv(|v| v * v).sum_axis(NdAxis(1)).mapv(f64::sqrt).into_dyn().into())
    }
}
