//! Where values come from: a call's inputs, and parameters with the stage that binds them.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields};
use crate::value::{EvalError, Value};
use crate::{DType, Shape, Stage, TensorType};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// A value given with each call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The element type.
    pub dtype: DType,
    /// The shape; symbols in it are bound by each call.
    pub shape: Shape,
    /// The output that this input carries from one call to the next: in a session's first call it is empty along axis
    /// 0, afterwards what that output was. The output appends to it: it is a `concat` along axis 0 that begins with
    /// this input. So a decoder's keys and values are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carries: Option<String>,
}

/// How a parameter that nobody trained starts out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// Normal with mean 0 and this standard deviation.
    Normal {
        /// The standard deviation.
        std: f64,
    },
    /// Uniform in `±sqrt(6 / (fan_in + fan_out))` (Glorot and Bengio, 2010); for matrices.
    GlorotUniform,
    /// The norm that the direction it scales was divided by: where `y = m ∘ (v / ‖v‖)`, m starts as `‖v‖`, so that
    /// the layer starts as if nothing were normalised (Liu et al., 2024, section 4.1); for vectors.
    Norm,
}

impl Init {
    /// Whether a parameter of this type can start out so.
    fn check(self, ty: &TensorType) -> Result<(), RuleError> {
        let (fits, expected) = match self {
            Self::Zeros | Self::Ones => (true, ""),
            Self::Normal { std } => {
                crate::op::non_negative("init", std)?;
                (ty.dtype.is_float(), "zeros or ones for integers")
            }
            Self::GlorotUniform => {
                (ty.dtype.is_float() && ty.rank() == 2, "glorot_uniform for a float matrix only")
            }
            Self::Norm => (ty.dtype.is_float() && ty.rank() == 1, "norm for a float vector only"),
        };
        if fits {
            return Ok(());
        }
        let found = format!("{self:?} for {ty}");
        Err(RuleError::Attribute { attribute: "init", found, expected: expected.to_owned() })
    }
}

/// A named tensor from a weights file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Param {
    /// The element type.
    pub dtype: DType,
    /// The shape, as the file stores it.
    pub shape: Shape,
    /// When it is known: with the base, with the adapter, or (live, as in fine-tuning) with each call.
    #[serde(default)]
    pub binding: Stage,
    /// A label for optimizers, such as LoRA+'s own learning rate for `lora_B`; no part of the arithmetic.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// How it starts out when nobody trained it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
}

impl Input {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "input",
        formula: "a value given with each call",
        slots: &[],
        variadic: false,
        attributes: &[
            ("dtype", "f32, f64, i32 or i64"),
            ("shape", "list of dims"),
            ("carries", "the output, a concat to this input along axis 0, whose last value it is, optional"),
        ],
        decode: decode::<Self>,
    }];
}

impl Operator for Input {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, _: Operands<'_>) -> Result<TensorType, RuleError> {
        Ok(TensorType::new(self.dtype, self.shape.clone()))
    }

    fn stage(&self, _: Stage) -> Stage {
        Stage::Call
    }

    fn eval(&self, _: Args<'_>) -> Result<Value, EvalError> {
        Err(EvalError::Operand { index: 0 })
    }
}

impl Param {
    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "param",
        formula: "a named tensor from a weights file",
        slots: &[],
        variadic: false,
        attributes: &[
            ("dtype", "f32, f64, i32 or i64"),
            ("shape", "list of dims"),
            ("binding", "base (default), adapter or call"),
            ("group", "label for optimizers, optional"),
            ("init", "zeros, ones, {normal: {std}}, glorot_uniform or norm, optional"),
        ],
        decode: decode::<Self>,
    }];
}

impl Operator for Param {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, _: Operands<'_>) -> Result<TensorType, RuleError> {
        if self.binding == Stage::Compile {
            return Err(RuleError::Attribute {
                attribute: "binding",
                found: self.binding.to_string(),
                expected: "base, adapter or call".to_owned(),
            });
        }
        let ty = TensorType::new(self.dtype, self.shape.clone());
        if let Some(init) = self.init {
            init.check(&ty)?;
        }
        Ok(ty)
    }

    fn stage(&self, _: Stage) -> Stage {
        self.binding
    }

    fn eval(&self, _: Args<'_>) -> Result<Value, EvalError> {
        Err(EvalError::Operand { index: 0 })
    }
}
