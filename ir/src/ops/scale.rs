//! `scale`: multiplication by a number that the graph knows.

use crate::TensorType;
use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, finite, required};
use crate::value::{EvalError, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = factor · x`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The number.
    pub factor: f64,
}

impl Scale {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "scale",
        formula: "y = factor · x",
        slots: &[required("x")],
        variadic: false,
        attributes: &[("factor", "finite")],
        decode: decode::<Self>,
    }];
}

impl Operator for Scale {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        finite("factor", self.factor)?;
        operands.same_float()?;
        Ok(operands.required(0).clone())
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        Ok((args.real(0)? * self.factor).into())
    }
}
