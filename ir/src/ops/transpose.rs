//! `transpose`: axes in another order.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, required};
use crate::value::{EvalError, Value};
use crate::{Shape, TensorType};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// Axis i of y is axis `permutation[i]` of x.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transpose {
    /// Every axis of x once.
    pub permutation: Vec<usize>,
}

impl Transpose {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "transpose",
        formula: "axis i of y is axis permutation[i] of x",
        slots: &[required("x")],
        variadic: false,
        attributes: &[("permutation", "every axis of x once")],
        decode: decode::<Self>,
    }];
}

impl Operator for Transpose {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        let x = operands.required(0);
        let mut axes = self.permutation.clone();
        axes.sort_unstable();
        if !axes.into_iter().eq(0..x.rank()) {
            return Err(RuleError::Attribute {
                attribute: "permutation",
                found: format!("{:?}", self.permutation),
                expected: format!("every axis of {x} once"),
            });
        }
        let shape = self.permutation.iter().map(|&axis| x.shape[axis].clone());
        Ok(TensorType::new(x.dtype, shape.collect::<Shape>()))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let order = self.permutation.as_slice();
        Ok(match args.value(0)? {
            Value::Real(x) => x.view().permuted_axes(order).as_standard_layout().into_owned().into(),
            Value::Int(x) => x.view().permuted_axes(order).as_standard_layout().into_owned().into(),
        })
    }
}
