//! `layer_norm` over the last axis.

use crate::TensorType;
use crate::op::{
    Args, OpInfo, Operands, Operator, RuleError, decode, fields, non_negative, optional, required,
};
use crate::value::{EvalError, Value};
use ndarray::{ArrayD, Axis as NdAxis};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = (x - mean) / sqrt(var + ε) · weight + bias` over the last axis, var the mean of squared deviations:
/// x `[.., d]`, weight and bias `[d]` (Ba et al., 2016).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerNorm {
    /// ε.
    pub epsilon: f64,
}

impl LayerNorm {
    /// The input.
    pub const X: usize = 0;
    /// The scale, `[d]`, optional.
    pub const WEIGHT: usize = 1;
    /// The shift, `[d]`, optional.
    pub const BIAS: usize = 2;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "layer_norm",
        formula: "y = (x - mean) / sqrt(var + ε) · weight + bias over the last axis: x [.., d], weight [d], bias [d]",
        slots: &[required("x"), optional("weight"), optional("bias")],
        variadic: false,
        attributes: &[("epsilon", "ε, finite, 0 or more")],
        decode: decode::<Self>,
    }];
}

impl Operator for LayerNorm {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        non_negative("epsilon", self.epsilon)?;
        norm_type(operands, &[Self::WEIGHT, Self::BIAS])
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let y = normalize_last(args.real(Self::X)?, |lane| {
            let n = lane.len() as f64;
            let mean = lane.iter().sum::<f64>() / n;
            let variance = lane.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            (mean, (variance + self.epsilon).sqrt())
        });
        let y = match args.optional_real(Self::WEIGHT)? {
            Some(weight) => y * weight,
            None => y,
        };
        Ok(super::dense::add_bias(y, args.optional_real(Self::BIAS)?).into())
    }
}

/// The shape rule of norms over the last axis: x `[.., d]`, the vectors `[d]`.
pub(super) fn norm_type(operands: Operands<'_>, vectors: &[usize]) -> Result<TensorType, RuleError> {
    operands.same_float()?;
    operands.rank_at_least(0, 1, "at least one axis, [.., d]")?;
    for &vector in vectors {
        operands.rank(vector, 1, "one axis, [d]")?;
        operands.equal_dims((0, -1), (vector, 0), "x is [.., d] and the vector [d]")?;
    }
    Ok(operands.required(0).clone())
}

/// `(x - shift) / divisor` in each lane of the last axis.
pub(super) fn normalize_last(x: &ArrayD<f64>, statistics: impl Fn(&[f64]) -> (f64, f64)) -> ArrayD<f64> {
    let mut y = x.clone();
    let last = NdAxis(y.ndim() - 1);
    for mut lane in y.lanes_mut(last) {
        let (shift, divisor) = statistics(&lane.to_vec());
        lane.mapv_inplace(|x| (x - shift) / divisor);
    }
    y
}
