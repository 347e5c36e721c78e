//! `adaptable`: a linear layer on which a bank may put adapters, another for each item of a batch.

use super::dense::{add_bias, linear_type, product};
use crate::TensorType;
use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, optional, required};
use crate::value::{EvalError, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y = x Wᵀ + bias`: x `[items, .., in]`, W `[out, in]`, bias `[out]`, y `[items, .., out]`, as `dense` without an adapter.
///
/// Where a call gives item i of the batch an adapter of `module`, its rows are `g ∘ (x Wᵀ + (x Aᵀ) Bᵀ) + bias` with that
/// adapter's A `[r, in]`, B `[out, r]`, g and bias `[out]`: what the graph with that adapter attached computes. Adapters
/// belong to the call, not to the graph, which therefore says nothing of their ranks and kinds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adaptable {
    /// The name by which adapters refer to the layer; layers of one name share their adapters.
    pub module: String,
}

impl Adaptable {
    /// The input.
    pub const X: usize = 0;
    /// The weight, `[out, in]`.
    pub const WEIGHT: usize = 1;
    /// The bias, `[out]`, optional.
    pub const BIAS: usize = 2;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "adaptable",
        formula: "y = x Wᵀ + bias, or what an adapter on `module` makes of it, item by item: x [items, .., in], \
                  weight [out, in], bias [out], y [items, .., out]",
        slots: &[required("x"), required("weight"), optional("bias")],
        variadic: false,
        attributes: &[("module", "the name by which adapters refer to the layer")],
        decode: decode::<Self>,
    }];
}

impl Operator for Adaptable {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        if self.module.is_empty() {
            return Err(RuleError::Attribute {
                attribute: "module",
                found: "an empty name".to_owned(),
                expected: "a name".to_owned(),
            });
        }
        operands.rank_at_least(Self::X, 2, "two axes at least, [items, .., in]")?;
        linear_type(operands, Self::BIAS)
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let y = product(args.real(Self::X)?, args.real(Self::WEIGHT)?)?;
        Ok(add_bias(y, args.optional_real(Self::BIAS)?).into())
    }
}
