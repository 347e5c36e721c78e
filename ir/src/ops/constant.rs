//! Small values written in the graph itself. Anything large belongs in a weights file, as a parameter.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields};
use crate::value::{EvalError, Value};
use crate::{DType, Dim, Shape, TensorType};
use ndarray::{ArrayD, IxDyn};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// The most elements a constant may list.
pub const MAX_CONSTANT: usize = 4096;

/// The elements of a constant, row-major. In JSON `{"f32": [1.0, 2.0]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Elements {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

impl Elements {
    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
            Self::I32(_) => DType::I32,
            Self::I64(_) => DType::I64,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I64(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn all_finite(&self) -> bool {
        match self {
            Self::F32(v) => v.iter().all(|x| x.is_finite()),
            Self::F64(v) => v.iter().all(|x| x.is_finite()),
            Self::I32(_) | Self::I64(_) => true,
        }
    }
}

/// A constant: its elements fill `shape` in row-major order. Every element is finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// The shape; every dim is fixed.
    pub shape: Shape,
    /// The elements, which say the element type.
    pub values: Elements,
}

impl Constant {
    /// A rank-0 constant of this float type.
    pub fn scalar(dtype: DType, value: f64) -> Self {
        let values = match dtype {
            DType::F64 => Elements::F64(vec![value]),
            DType::F32 => Elements::F32(vec![value as f32]),
            DType::I32 => Elements::I32(vec![value as i32]),
            DType::I64 => Elements::I64(vec![value as i64]),
        };
        Self { shape: Shape::default(), values }
    }

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "constant",
        formula: "a value written in the graph",
        slots: &[],
        variadic: false,
        attributes: &[
            ("shape", "list of fixed dims"),
            ("values", "one of {f32: [..]}, {f64: [..]}, {i32: [..]}, {i64: [..]}, finite, row-major"),
        ],
        decode: decode::<Self>,
    }];
}

impl Operator for Constant {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, _: Operands<'_>) -> Result<TensorType, RuleError> {
        self.shape.check()?;
        let count = self.shape.elements().as_fixed();
        let attribute =
            |attribute, found: String, expected: String| RuleError::Attribute { attribute, found, expected };
        if count.is_none() {
            return Err(attribute("shape", self.shape.to_string(), "fixed dims".to_owned()));
        }
        if count != Some(self.values.len() as u64) || self.values.len() > MAX_CONSTANT {
            let expected = format!("as many elements as {} holds, {MAX_CONSTANT} at most", self.shape);
            return Err(attribute("values", format!("{} elements", self.values.len()), expected));
        }
        if !self.values.all_finite() {
            return Err(attribute("values", "an infinity or NaN".to_owned(), "finite numbers".to_owned()));
        }
        Ok(TensorType::new(self.values.dtype(), self.shape.clone()))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let shape = IxDyn(args.shape);
        let real = |v: Vec<f64>| Ok(Value::Real(ArrayD::from_shape_vec(shape.clone(), v)?));
        let int = |v: Vec<i64>| Ok(Value::Int(ArrayD::from_shape_vec(shape.clone(), v)?));
        match &self.values {
            Elements::F32(v) => real(v.iter().map(|&x| f64::from(x)).collect()),
            Elements::F64(v) => real(v.clone()),
            Elements::I32(v) => int(v.iter().map(|&x| i64::from(x)).collect()),
            Elements::I64(v) => int(v.clone()),
        }
    }
}

impl From<&[f32]> for Constant {
    /// A vector.
    fn from(values: &[f32]) -> Self {
        Self { shape: Shape::new(vec![Dim::from(values.len())]), values: Elements::F32(values.to_vec()) }
    }
}
