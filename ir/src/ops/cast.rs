//! `cast`: integers as floats.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, required};
use crate::value::{EvalError, Value};
use crate::{DType, TensorType};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = x`, integers as floats: positions, for instance, to be computed with. In f32 an integer beyond 2²⁴ is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cast {
    /// The float type.
    pub dtype: DType,
}

impl Cast {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "cast",
        formula: "y = x, integers as floats",
        slots: &[required("x")],
        variadic: false,
        attributes: &[("dtype", "f32 or f64")],
        decode: decode::<Self>,
    }];
}

impl Operator for Cast {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        let x = operands.required(0);
        if x.dtype.is_float() {
            let expected = "i32 or i64".to_owned();
            return Err(RuleError::DType { operand: "x", expected, found: x.clone() });
        }
        if !self.dtype.is_float() {
            let expected = "f32 or f64".to_owned();
            return Err(RuleError::Attribute { attribute: "dtype", found: self.dtype.to_string(), expected });
        }
        Ok(TensorType::new(self.dtype, x.shape.clone()))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        Ok(args.value(0)?.as_int()?.mapv(|x| x as f64).into())
    }
}
