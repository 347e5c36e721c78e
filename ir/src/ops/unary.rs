//! Elementwise functions of one operand: one table row each.

use crate::TensorType;
use crate::op::{Args, AttributeError, OpInfo, Operands, Operator, RuleError, Slot, required};
use crate::value::{EvalError, Value};
use serde_json::{Map, Value as Json};

/// `y = f(x)` elementwise; y has the type of x.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// `-x`
    Neg,
    /// `sqrt(x)`
    Sqrt,
    /// `1 / sqrt(x)`
    Rsqrt,
    /// `x²`
    Square,
    /// `max(x, 0)`
    Relu,
    /// `x (1 + erf(x / √2)) / 2` (Hendrycks and Gimpel, 2016)
    Gelu,
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2` (Hendrycks and Gimpel, 2016)
    GeluTanh,
    /// `x / (1 + exp(-x))`
    Silu,
    /// `tanh(x)`
    Tanh,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `exp(x)`
    Exp,
    /// `sin(x)`, x in radians. Compiled, it is NaN where |x| exceeds 2²⁰, beyond which the quarter turns are not taken
    /// out exactly.
    Sin,
    /// `cos(x)`, x in radians. Compiled, it is NaN where |x| exceeds 2²⁰, as [`Self::Sin`].
    Cos,
}

const SLOTS: &[Slot] = &[required("x")];

const fn row(name: &'static str, formula: &'static str) -> OpInfo {
    OpInfo { name, formula, slots: SLOTS, variadic: false, attributes: &[], decode: Unary::decode }
}

impl Unary {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 13] = [
        Self::Neg,
        Self::Sqrt,
        Self::Rsqrt,
        Self::Square,
        Self::Relu,
        Self::Gelu,
        Self::GeluTanh,
        Self::Silu,
        Self::Tanh,
        Self::Sigmoid,
        Self::Exp,
        Self::Sin,
        Self::Cos,
    ];

    pub(super) const INFOS: &'static [OpInfo] = &[
        row("neg", "y = -x"),
        row("sqrt", "y = sqrt(x)"),
        row("rsqrt", "y = 1 / sqrt(x)"),
        row("square", "y = x²"),
        row("relu", "y = max(x, 0)"),
        row("gelu", "y = x (1 + erf(x / √2)) / 2"),
        row("gelu_tanh", "y = x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2"),
        row("silu", "y = x / (1 + exp(-x))"),
        row("tanh", "y = tanh(x)"),
        row("sigmoid", "y = 1 / (1 + exp(-x))"),
        row("exp", "y = exp(x)"),
        row("sin", "y = sin(x), x in radians"),
        row("cos", "y = cos(x), x in radians"),
    ];

    fn decode(info: &'static OpInfo, map: Map<String, Json>) -> Result<crate::Op, AttributeError> {
        no_attributes(info, map)?;
        Ok(Self::ALL[Self::INFOS.iter().position(|row| row.name == info.name).unwrap_or(0)].into())
    }

    /// The meaning on one element.
    pub fn apply(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Self::Neg => -x,
            Self::Sqrt => x.sqrt(),
            Self::Rsqrt => 1.0 / x.sqrt(),
            Self::Square => x * x,
            // A NaN stays one, as in PyTorch.
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::Silu => x * sigmoid(x),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => sigmoid(x),
            Self::Exp => x.exp(),
            Self::Sin => x.sin(),
            Self::Cos => x.cos(),
        }
    }
}

/// Refuses attributes where an op has none.
pub(super) fn no_attributes(info: &'static OpInfo, map: Map<String, Json>) -> Result<(), AttributeError> {
    match map.into_iter().next() {
        None => Ok(()),
        Some((key, _)) => {
            Err(AttributeError { op: info.name, reason: format!("unknown field `{key}`"), expected: &[] })
        }
    }
}

impl Operator for Unary {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[*self as usize]
    }

    fn attributes(&self) -> Map<String, Json> {
        Map::new()
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        operands.same_float()?;
        Ok(operands.required(0).clone())
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        Ok(args.real(0)?.mapv(|x| self.apply(x)).into())
    }
}
