//! `rms_norm` over the last axis.

use super::layer_norm::{norm_type, normalize_last};
use crate::TensorType;
use crate::op::{
    Args, OpInfo, Operands, Operator, RuleError, decode, fields, non_negative, optional, required,
};
use crate::value::{EvalError, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = x / sqrt(mean(x²) + ε) · weight` over the last axis: x `[.., d]`, weight `[d]` (Zhang and Sennrich, 2019).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RmsNorm {
    /// ε.
    pub epsilon: f64,
}

impl RmsNorm {
    /// The input.
    pub const X: usize = 0;
    /// The scale, `[d]`, optional.
    pub const WEIGHT: usize = 1;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "rms_norm",
        formula: "y = x / sqrt(mean(x²) + ε) · weight over the last axis: x [.., d], weight [d]",
        slots: &[required("x"), optional("weight")],
        variadic: false,
        attributes: &[("epsilon", "ε, finite, 0 or more")],
        decode: decode::<Self>,
    }];
}

impl Operator for RmsNorm {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        non_negative("epsilon", self.epsilon)?;
        norm_type(operands, &[Self::WEIGHT])
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let y = normalize_last(args.real(Self::X)?, |lane| {
            let mean_square = lane.iter().map(|x| x * x).sum::<f64>() / lane.len() as f64;
            (0.0, (mean_square + self.epsilon).sqrt())
        });
        Ok(match args.optional_real(Self::WEIGHT)? {
            Some(weight) => y * weight,
            None => y,
        }
        .into())
    }
}
