//! The same elements in another shape: `reshape` keeps their number, `broadcast` repeats them.

use super::binary::broadcast_shapes;
use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, required};
use crate::value::{EvalError, Value};
use crate::{Shape, TensorType};
use ndarray::{ArrayD, IxDyn};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = x` in row-major order, as `shape`, which holds as many elements for every value of the symbols.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reshape {
    /// The new shape.
    pub shape: Shape,
}

/// `y = x` repeated to `shape`. Axes align from the last; an axis of length 1, or a missing one, is repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broadcast {
    /// The new shape.
    pub shape: Shape,
}

impl Reshape {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "reshape",
        formula: "y = x in row-major order, as shape",
        slots: &[required("x")],
        variadic: false,
        attributes: &[("shape", "list of dims with the same product")],
        decode: decode::<Self>,
    }];
}

impl Broadcast {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "broadcast",
        formula: "y = x repeated to shape, axes aligned from the last",
        slots: &[required("x")],
        variadic: false,
        attributes: &[("shape", "list of dims")],
        decode: decode::<Self>,
    }];
}

fn result_error(from: &TensorType, to: &Shape, rule: &'static str) -> RuleError {
    RuleError::Result { from: from.clone(), to: to.clone(), rule }
}

impl Operator for Reshape {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        let x = operands.required(0);
        self.shape.check()?;
        if x.shape.elements() != self.shape.elements() {
            return Err(result_error(x, &self.shape, "the number of elements must stay the same"));
        }
        Ok(TensorType::new(x.dtype, self.shape.clone()))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        fn reshape<T: Clone>(x: &ArrayD<T>, shape: &[usize]) -> Result<ArrayD<T>, EvalError> {
            Ok(x.as_standard_layout().into_owned().into_shape_with_order(IxDyn(shape))?)
        }
        Ok(match args.value(0)? {
            Value::Real(x) => reshape(x, args.shape)?.into(),
            Value::Int(x) => reshape(x, args.shape)?.into(),
        })
    }
}

impl Operator for Broadcast {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        let x = operands.required(0);
        self.shape.check()?;
        if broadcast_shapes(&x.shape, &self.shape).as_ref() != Some(&self.shape) {
            return Err(result_error(x, &self.shape, "axes aligned from the last are equal, or 1 in x"));
        }
        Ok(TensorType::new(x.dtype, self.shape.clone()))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        fn broadcast<T: Clone>(x: &ArrayD<T>, shape: &[usize]) -> Result<ArrayD<T>, EvalError> {
            let view = x.broadcast(IxDyn(shape)).ok_or_else(|| EvalError::Layout {
                reason: format!("{:?} does not broadcast to {shape:?}", x.shape()),
            })?;
            Ok(view.to_owned())
        }
        Ok(match args.value(0)? {
            Value::Real(x) => broadcast(x, args.shape)?.into(),
            Value::Int(x) => broadcast(x, args.shape)?.into(),
        })
    }
}
