//! Reductions over axes: `sum`, `mean`, `max`.

use crate::op::{
    Args, AttributeError, OpInfo, Operands, Operator, RuleError, Slot, attribute_error, fields, required,
};
use crate::value::{EvalError, Value};
use crate::{Axis, Dim, Shape, TensorType};
use ndarray::Axis as NdAxis;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// Which reduction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// `Σ x`, 0 over nothing.
    #[default]
    Sum,
    /// `Σ x / n`, NaN over nothing.
    Mean,
    /// `max x`, -∞ over nothing; NaN if any element is.
    Max,
}

/// `y = f(x)` over `axes`, which stay as 1 if `keep_dims`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reduce {
    /// Which reduction; the op's name says it.
    #[serde(skip)]
    pub reduction: Reduction,
    /// The axes, ascending.
    pub axes: Vec<usize>,
    /// Whether the axes stay, with length 1.
    #[serde(default)]
    pub keep_dims: bool,
}

const SLOTS: &[Slot] = &[required("x")];

const fn row(name: &'static str, formula: &'static str) -> OpInfo {
    OpInfo {
        name,
        formula,
        slots: SLOTS,
        variadic: false,
        attributes: &[
            ("axes", "ascending list of axes"),
            ("keep_dims", "whether they stay as 1, default false"),
        ],
        decode: Reduce::decode,
    }
}

impl Reduce {
    pub(super) const INFOS: &'static [OpInfo] = &[
        row("sum", "y = Σ x over axes"),
        row("mean", "y = Σ x / n over axes"),
        row("max", "y = max x over axes"),
    ];

    fn decode(info: &'static OpInfo, map: Map<String, Json>) -> Result<crate::Op, AttributeError> {
        let mut op: Self =
            serde_json::from_value(Json::Object(map)).map_err(|e| attribute_error(info, &e))?;
        op.reduction = match info.name {
            "mean" => Reduction::Mean,
            "max" => Reduction::Max,
            _ => Reduction::Sum,
        };
        Ok(op.into())
    }
}

impl Operator for Reduce {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[self.reduction as usize]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        let dtype = operands.same_float()?;
        let x = operands.required(0);
        for &axis in &self.axes {
            Axis::index(axis).resolve(x)?;
        }
        if self.axes.is_empty() || !self.axes.is_sorted_by(|a, b| a < b) {
            return Err(RuleError::Attribute {
                attribute: "axes",
                found: format!("{:?}", self.axes),
                expected: "at least one axis, ascending, without repeats".to_owned(),
            });
        }
        let shape = x.shape.iter().enumerate().filter_map(|(axis, dim)| {
            match (self.axes.contains(&axis), self.keep_dims) {
                (false, _) => Some(dim.clone()),
                (true, true) => Some(Dim::fixed(1)),
                (true, false) => None,
            }
        });
        Ok(TensorType::new(dtype, shape.collect::<Shape>()))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let x = args.real(0)?;
        let mut y = x.clone();
        let mut count = 1;
        // From the last axis, so that the earlier ones keep their numbers.
        for &axis in self.axes.iter().rev() {
            count *= y.shape()[axis];
            y = match self.reduction {
                Reduction::Sum | Reduction::Mean => y.sum_axis(NdAxis(axis)),
                Reduction::Max => y.fold_axis(NdAxis(axis), f64::NEG_INFINITY, |&best, &x| {
                    if x.is_nan() || x > best { x } else { best }
                }),
            };
            if self.keep_dims {
                y = y.insert_axis(NdAxis(axis));
            }
        }
        if self.reduction == Reduction::Mean {
            y /= count as f64;
        }
        Ok(y.into())
    }
}
