//! `normalize`: division by the L2 norm along an axis.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, non_negative, required};
use crate::value::{EvalError, Value};
use crate::{Axis, TensorType};
use ndarray::Axis as NdAxis;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// Where a norm's epsilon sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EpsilonAt {
    /// `sqrt(Σ v² + ε)`, as Edifice has it.
    Inside,
    /// `sqrt(Σ v²) + ε`.
    Outside,
    /// `max(sqrt(Σ v²), ε)`, as `torch.nn.functional.normalize` has it.
    Max,
}

/// `y = v / ‖v‖₂` along `axis`; where epsilon is 0 its place does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalize {
    /// The axis the norm sums over.
    pub axis: usize,
    /// ε, 0 for none.
    pub epsilon: f64,
    /// Where ε sits.
    pub epsilon_at: EpsilonAt,
}

impl Normalize {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "normalize",
        formula: "y = v / ‖v‖₂ along axis, with ε inside the root, added outside it, or as a lower bound",
        slots: &[required("v")],
        variadic: false,
        attributes: &[
            ("axis", "the axis the norm sums over"),
            ("epsilon", "finite, 0 or more"),
            ("epsilon_at", "inside, outside or max"),
        ],
        decode: decode::<Self>,
    }];

    /// The denominator from `Σ v²`.
    pub fn denominator(&self, sum_of_squares: f64) -> f64 {
        match self.epsilon_at {
            EpsilonAt::Inside => (sum_of_squares + self.epsilon).sqrt(),
            EpsilonAt::Outside => sum_of_squares.sqrt() + self.epsilon,
            // A NaN stays one, as in PyTorch's `clamp_min`.
            EpsilonAt::Max => {
                let norm = sum_of_squares.sqrt();
                if norm < self.epsilon { self.epsilon } else { norm }
            }
        }
    }
}

impl Operator for Normalize {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        non_negative("epsilon", self.epsilon)?;
        operands.same_float()?;
        Axis::index(self.axis).resolve(operands.required(0))?;
        Ok(operands.required(0).clone())
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let v = args.real(0)?;
        let norm = v.mapv(|v| v * v).sum_axis(NdAxis(self.axis)).mapv(|sum| self.denominator(sum));
        Ok((v / &norm.insert_axis(NdAxis(self.axis))).into())
    }
}
