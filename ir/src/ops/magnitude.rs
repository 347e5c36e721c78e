//! `magnitude`: scaling along one axis.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, required};
use crate::value::{EvalError, Value};
use crate::{Axis, TensorType};
use ndarray::{Axis as NdAxis, Ix1};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = m ∘ v` along `axis`: v `[.., d, ..]`, m `[d]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Magnitude {
    /// The axis that m runs along.
    pub axis: usize,
}

impl Magnitude {
    /// The value to scale.
    pub const V: usize = 0;
    /// The magnitudes, `[d]`.
    pub const M: usize = 1;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "magnitude",
        formula: "y = m ∘ v along axis: v [.., d, ..], m [d]",
        slots: &[required("v"), required("m")],
        variadic: false,
        attributes: &[("axis", "the axis that m runs along")],
        decode: decode::<Self>,
    }];
}

impl Operator for Magnitude {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        operands.same_float()?;
        let axis = Axis::index(self.axis).resolve(operands.required(Self::V))?;
        operands.rank(Self::M, 1, "one axis, [d]")?;
        operands.equal_dims((Self::V, axis as i64), (Self::M, 0), "m has the length of v's axis")?;
        Ok(operands.required(Self::V).clone())
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let m = args.real(Self::M)?.view().into_dimensionality::<Ix1>()?;
        let mut y = args.real(Self::V)?.clone();
        for (mut slice, &m) in y.axis_iter_mut(NdAxis(self.axis)).zip(&m) {
            slice.mapv_inplace(|v| m * v);
        }
        Ok(y.into())
    }
}
