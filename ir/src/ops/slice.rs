//! `slice`: a contiguous range along an axis.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, required};
use crate::value::{EvalError, Value};
use crate::{Axis, Dim, Shape, TensorType};
use ndarray::{Axis as NdAxis, Slice as NdSlice};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = x[.., start .. start + length, ..]` along `axis`, within x for every value of the symbols.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// The axis.
    pub axis: usize,
    /// The first index.
    pub start: Dim,
    /// The number of indices.
    pub length: Dim,
}

impl Slice {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "slice",
        formula: "y = x[.., start .. start + length, ..] along axis",
        slots: &[required("x")],
        variadic: false,
        attributes: &[("axis", "the axis"), ("start", "a dim"), ("length", "a dim")],
        decode: decode::<Self>,
    }];
}

impl Operator for Slice {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        let x = operands.required(0);
        let axis = Axis::index(self.axis).resolve(x)?;
        let end = self.start.clone() + &self.length;
        self.start.check()?;
        self.length.check()?;
        if x.shape[axis].checked_sub(&end).is_none() {
            return Err(RuleError::Attribute {
                attribute: "length",
                found: format!("{} from {}", self.length, self.start),
                expected: format!("a range within axis {axis} of {x} for every value of its symbols"),
            });
        }
        let mut shape = x.shape.to_vec();
        shape[axis] = self.length.clone();
        Ok(TensorType::new(x.dtype, Shape::new(shape)))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let start = self.start.eval(args.bindings)? as isize;
        let end = start + self.length.eval(args.bindings)? as isize;
        let (axis, range) = (NdAxis(self.axis), NdSlice::from(start..end));
        Ok(match args.value(0)? {
            Value::Real(x) => x.slice_axis(axis, range).to_owned().into(),
            Value::Int(x) => x.slice_axis(axis, range).to_owned().into(),
        })
    }
}
