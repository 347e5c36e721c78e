//! `concat`: values one after another along an axis.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, required};
use crate::value::{EvalError, Value};
use crate::{Axis, Dim, Shape, TensorType};
use ndarray::{ArrayD, Axis as NdAxis};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y` is the operands one after another along `axis`; their other dims are equal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concat {
    /// The axis that grows.
    pub axis: usize,
}

impl Concat {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "concat",
        formula: "y is the operands one after another along axis",
        slots: &[required("part")],
        variadic: true,
        attributes: &[("axis", "the axis that grows")],
        decode: decode::<Self>,
    }];
}

impl Operator for Concat {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        let first = operands.required(0);
        let axis = Axis::index(self.axis).resolve(first)?;
        let mut length = Dim::fixed(0);
        for (index, part) in operands.all().enumerate() {
            let fits = part.dtype == first.dtype
                && part.rank() == first.rank()
                && (0..first.rank()).all(|i| i == axis || part.shape[i] == first.shape[i]);
            if !fits {
                return Err(operands.mismatch(0, index, "the type and all dims but the axis are equal"));
            }
            length = length + &part.shape[axis];
        }
        let mut shape = first.shape.to_vec();
        shape[axis] = length;
        Ok(TensorType::new(first.dtype, Shape::new(shape)))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let parts = (0..args.values.len()).map(|i| args.value(i)).collect::<Result<Vec<_>, _>>()?;
        let axis = NdAxis(self.axis);
        if let Some(Value::Int(_)) = parts.first() {
            let parts = parts.iter().map(|p| p.as_int()).collect::<Result<Vec<_>, _>>()?;
            return join(axis, &parts);
        }
        let parts = parts.iter().map(|p| p.as_real()).collect::<Result<Vec<_>, _>>()?;
        join(axis, &parts)
    }
}

fn join<T: Clone>(axis: NdAxis, parts: &[&ArrayD<T>]) -> Result<Value, EvalError>
where
    ArrayD<T>: Into<Value>,
{
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    Ok(ndarray::concatenate(axis, &views)?.into())
}
