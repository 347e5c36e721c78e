//! `softmax` along an axis.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, required};
use crate::value::{EvalError, Value};
use crate::{Axis, TensorType};
use ndarray::Axis as NdAxis;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = exp(x - max x) / Σ exp(x - max x)` along `axis`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Softmax {
    /// The axis that sums to 1.
    pub axis: usize,
}

impl Softmax {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "softmax",
        formula: "y = exp(x - max x) / Σ exp(x - max x) along axis",
        slots: &[required("x")],
        variadic: false,
        attributes: &[("axis", "the axis that sums to 1")],
        decode: decode::<Self>,
    }];
}

impl Operator for Softmax {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        operands.same_float()?;
        Axis::index(self.axis).resolve(operands.required(0))?;
        Ok(operands.required(0).clone())
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let mut y = args.real(0)?.clone();
        for mut lane in y.lanes_mut(NdAxis(self.axis)) {
            let max = lane.fold(f64::NEG_INFINITY, |best, &x| best.max(x));
            lane.mapv_inplace(|x| (x - max).exp());
            let sum = lane.sum();
            lane.mapv_inplace(|e| e / sum);
        }
        Ok(y.into())
    }
}
