//! Elementwise arithmetic on two operands, broadcasting as `NumPy` does.

use crate::op::{Args, AttributeError, OpInfo, Operands, Operator, RuleError, Slot, required};
use crate::value::{EvalError, Value};
use crate::{Dim, Shape, TensorType};
use ndarray::IxDyn;
use serde_json::{Map, Value as Json};

/// `y = a ∘ b` elementwise. Axes align from the last; an axis of length 1, or a missing one, is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
}

const SLOTS: &[Slot] = &[required("a"), required("b")];

const fn row(name: &'static str, formula: &'static str) -> OpInfo {
    OpInfo { name, formula, slots: SLOTS, variadic: false, attributes: &[], decode: Binary::decode }
}

impl Binary {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Add, Self::Sub, Self::Mul, Self::Div];

    pub(super) const INFOS: &'static [OpInfo] = &[
        row("add", "y = a + b, broadcasting"),
        row("sub", "y = a - b, broadcasting"),
        row("mul", "y = a * b, broadcasting"),
        row("div", "y = a / b, broadcasting"),
    ];

    fn decode(info: &'static OpInfo, map: Map<String, Json>) -> Result<crate::Op, AttributeError> {
        super::unary::no_attributes(info, map)?;
        Ok(Self::ALL[Self::INFOS.iter().position(|row| row.name == info.name).unwrap_or(0)].into())
    }

    /// The meaning on one pair of elements.
    pub fn apply(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
        }
    }
}

impl Operator for Binary {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[*self as usize]
    }

    fn attributes(&self) -> Map<String, Json> {
        Map::new()
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        let dtype = operands.same_float()?;
        let shape = broadcast_shapes(&operands.required(0).shape, &operands.required(1).shape)
            .ok_or_else(|| operands.mismatch(0, 1, "axes aligned from the last are equal or 1"))?;
        Ok(TensorType::new(dtype, shape))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let shape = IxDyn(args.shape);
        let stretch = |index: usize| -> Result<_, EvalError> {
            let value = args.real(index)?;
            value.broadcast(shape.clone()).ok_or_else(|| EvalError::Layout {
                reason: format!("{:?} does not broadcast to {:?}", value.shape(), args.shape),
            })
        };
        let (a, b) = (stretch(0)?, stretch(1)?);
        Ok(ndarray::Zip::from(&a).and(&b).map_collect(|&a, &b| self.apply(a, b)).into())
    }
}

/// The common shape of two shapes aligned from the last axis, if there is one.
pub(super) fn broadcast_shapes(a: &Shape, b: &Shape) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let one = Dim::fixed(1);
    (0..rank)
        .map(|axis| {
            let dim = |shape: &Shape| (axis + shape.len()).checked_sub(rank).map(|i| shape[i].clone());
            match (dim(a), dim(b)) {
                (Some(x), Some(y)) if x == y || y == one => Some(x),
                (Some(x), Some(y)) if x == one => Some(y),
                (Some(_), Some(_)) => None,
                (x, y) => x.or(y),
            }
        })
        .collect()
}
