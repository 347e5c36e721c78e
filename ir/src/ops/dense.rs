//! `dense`: the linear layer.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, optional, required};
use crate::value::{EvalError, Value};
use crate::{Shape, TensorType};
use ndarray::{Array2, ArrayD, Ix2, IxDyn};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = x Wᵀ + bias`: x `[.., in]`, W `[out, in]`, bias `[out]`, y `[.., out]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dense {}

impl Dense {
    /// The input.
    pub const X: usize = 0;
    /// The weight, `[out, in]`.
    pub const WEIGHT: usize = 1;
    /// The bias, `[out]`, optional.
    pub const BIAS: usize = 2;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "dense",
        formula: "y = x Wᵀ + bias: x [.., in], weight [out, in], bias [out], y [.., out]",
        slots: &[required("x"), required("weight"), optional("bias")],
        variadic: false,
        attributes: &[],
        decode: decode::<Self>,
    }];
}

impl Operator for Dense {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        linear_type(operands, Self::BIAS)
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let y = product(args.real(Self::X)?, args.real(Self::WEIGHT)?)?;
        Ok(add_bias(y, args.optional_real(Self::BIAS)?).into())
    }
}

/// The shape rule that every linear layer shares: x in slot 0, weight `[out, in]` in slot 1, bias `[out]`.
pub(super) fn linear_type(operands: Operands<'_>, bias: usize) -> Result<TensorType, RuleError> {
    let dtype = operands.same_float()?;
    operands.rank_at_least(0, 1, "at least one axis, [.., in]")?;
    operands.rank(1, 2, "two axes, [out, in]")?;
    operands.rank(bias, 1, "one axis, [out]")?;
    operands.equal_dims((0, -1), (1, 1), "x is [.., in] and weight [out, in]")?;
    operands.equal_dims((1, 0), (bias, 0), "weight is [out, in] and bias [out]")?;
    let (x, weight) = (operands.required(0), operands.required(1));
    let mut shape = x.shape.to_vec();
    shape.pop();
    shape.push(weight.shape[0].clone());
    Ok(TensorType::new(dtype, Shape::new(shape)))
}

/// x `[.., k]` times w `[out, k]` transposed: `[.., out]`.
pub(super) fn product(x: &ArrayD<f64>, w: &ArrayD<f64>) -> Result<ArrayD<f64>, EvalError> {
    let (k, out) = (w.shape()[1], w.shape()[0]);
    let mut shape = x.shape().to_vec();
    shape.pop();
    let rows = shape.iter().product();
    shape.push(out);
    let x = Array2::from_shape_vec((rows, k), x.iter().copied().collect())?;
    let y = x.dot(&w.view().into_dimensionality::<Ix2>()?.t());
    Ok(y.as_standard_layout().into_owned().into_shape_with_order(IxDyn(&shape))?)
}

/// Adds a bias `[out]` to `[.., out]`.
pub(super) fn add_bias(y: ArrayD<f64>, bias: Option<&ArrayD<f64>>) -> ArrayD<f64> {
    match bias {
        Some(bias) => y + bias,
        None => y,
    }
}
