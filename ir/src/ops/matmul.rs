//! `matmul`: the batched matrix product.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, required};
use crate::value::{EvalError, Value};
use crate::{Shape, TensorType};
use ndarray::{Array3, Axis as NdAxis, IxDyn};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = a b`: a `[.., m, k]`, b `[.., k, n]` with the same leading dims or `[k, n]`, y `[.., m, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matmul {}

impl Matmul {
    /// The left factor.
    pub const A: usize = 0;
    /// The right factor.
    pub const B: usize = 1;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "matmul",
        formula: "y = a b: a [.., m, k], b [.., k, n] or [k, n], y [.., m, n]",
        slots: &[required("a"), required("b")],
        variadic: false,
        attributes: &[],
        decode: decode::<Self>,
    }];
}

impl Operator for Matmul {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        let dtype = operands.same_float()?;
        operands.rank_at_least(Self::A, 2, "at least two axes, [.., m, k]")?;
        operands.rank_at_least(Self::B, 2, "at least two axes, [.., k, n]")?;
        operands.equal_dims((Self::A, -1), (Self::B, -2), "a is [.., m, k] and b [.., k, n]")?;
        let (a, b) = (operands.required(Self::A), operands.required(Self::B));
        let lead = a.rank() - 2;
        if b.rank() != 2 && b.shape[..b.rank() - 2] != a.shape[..lead] {
            return Err(operands.mismatch(Self::A, Self::B, "b has the leading dims of a, or none"));
        }
        let mut shape = a.shape[..=lead].to_vec();
        shape.push(b.shape[b.rank() - 1].clone());
        Ok(TensorType::new(dtype, Shape::new(shape)))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let (a, b) = (args.real(Self::A)?, args.real(Self::B)?);
        let (m, k) = (a.shape()[a.ndim() - 2], a.shape()[a.ndim() - 1]);
        let n = b.shape()[b.ndim() - 1];
        let batch: usize = a.shape()[..a.ndim() - 2].iter().product();
        let shared = b.ndim() == 2;
        let a = Array3::from_shape_vec((batch, m, k), a.iter().copied().collect())?;
        let b = Array3::from_shape_vec((if shared { 1 } else { batch }, k, n), b.iter().copied().collect())?;
        let mut y = Array3::<f64>::zeros((batch, m, n));
        for i in 0..batch {
            let b = b.index_axis(NdAxis(0), if shared { 0 } else { i });
            y.index_axis_mut(NdAxis(0), i).assign(&a.index_axis(NdAxis(0), i).dot(&b));
        }
        Ok(y.into_shape_with_order(IxDyn(args.shape))?.into())
    }
}
