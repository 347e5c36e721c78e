//! The ops, one concern a file, and the table of them all. Adding an op is one new file and one line here; see
//! `docs/add-an-op.md`.

mod adaptable;
mod attention;
mod binary;
mod cast;
mod concat;
mod constant;
mod dense;
mod dora;
mod gather;
mod layer_norm;
mod lora;
mod lora_apply;
mod lora_delta;
mod lora_norm;
mod magnitude;
mod matmul;
mod normalize;
mod output_dora;
mod reduce;
mod reshape;
mod rms_norm;
mod scale;
mod slice;
mod softmax;
mod source;
mod transpose;
mod unary;

pub use adaptable::Adaptable;
pub use attention::Attention;
pub use binary::Binary;
pub use cast::Cast;
pub use concat::Concat;
pub use constant::{Constant, Elements, MAX_CONSTANT};
pub use dense::Dense;
pub use dora::Dora;
pub use gather::Gather;
pub use layer_norm::LayerNorm;
pub use lora::Lora;
pub use lora_apply::LoraApply;
pub use lora_delta::LoraDelta;
pub use lora_norm::LoraNorm;
pub use magnitude::Magnitude;
pub use matmul::Matmul;
pub use normalize::{EpsilonAt, Normalize};
pub use output_dora::OutputDora;
pub use reduce::{Reduce, Reduction};
pub use reshape::{Broadcast, Reshape};
pub use rms_norm::RmsNorm;
pub use scale::Scale;
pub use slice::Slice;
pub use softmax::Softmax;
pub use source::{Init, Input, Param};
pub use transpose::Transpose;
pub use unary::Unary;

use crate::op::{Args, AttributeError, OpInfo, Operands, Operator, RuleError};
use crate::value::{EvalError, Value};
use crate::{Stage, TensorType};
use serde_json::{Map, Value as Json};

/// Declares the enum of all ops and forwards each question to the op's own file.
macro_rules! ops {
    ($($op:ident),* $(,)?) => {
        /// An op with its attributes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($op), "`].")] $op($op),)*
        }

        $(impl From<$op> for Op {
            fn from(op: $op) -> Self {
                Self::$op(op)
            }
        })*

        impl Op {
            fn operator(&self) -> &dyn Operator {
                match self {
                    $(Self::$op(op) => op,)*
                }
            }

            /// The table of all ops, in the order of declaration.
            pub fn table() -> impl Iterator<Item = &'static OpInfo> {
                [$($op::INFOS),*].into_iter().flatten()
            }
        }
    };
}

ops! {
    Input, Param, Constant,
    Dense, Matmul, Adaptable,
    LoraDelta, LoraApply, LoraNorm, Normalize, Magnitude,
    Lora, Dora, OutputDora,
    Binary, Scale, Unary,
    Reduce, Softmax, LayerNorm, RmsNorm,
    Reshape, Broadcast, Transpose, Concat, Slice, Gather,
    Attention, Cast,
}

impl Op {
    /// The op's row in the table.
    pub fn info(&self) -> &'static OpInfo {
        self.operator().info()
    }

    /// The name in text and JSON.
    pub fn name(&self) -> &'static str {
        self.info().name
    }

    /// The op of this name with these attributes.
    ///
    /// # Errors
    /// `Ok(None)` if no op has the name; [`AttributeError`] if the attributes are not the op's.
    pub fn from_attributes(
        name: &str,
        attributes: Map<String, Json>,
    ) -> Result<Option<Self>, AttributeError> {
        Self::table().find(|info| info.name == name).map(|info| (info.decode)(info, attributes)).transpose()
    }

    /// The attributes, as JSON.
    pub fn attributes(&self) -> Map<String, Json> {
        self.operator().attributes()
    }

    /// The result's type from the operands' types.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn infer(&self, operands: &[Option<&TensorType>]) -> Result<TensorType, RuleError> {
        let ty = self.operator().infer(Operands::new(self.info(), operands)?)?;
        ty.shape.check()?;
        Ok(ty)
    }

    /// The stage, given the latest operand's.
    pub fn stage(&self, latest_operand: Stage) -> Stage {
        self.operator().stage(latest_operand)
    }

    /// The reference meaning.
    ///
    /// # Errors
    /// See [`EvalError`].
    pub fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        self.operator().eval(args)
    }
}
