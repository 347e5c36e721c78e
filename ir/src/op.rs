//! What an op is: the trait each op implements in its own file under `ops/`, and the table of all ops.
//! Knows nothing about particular ops, graphs or names.

use crate::value::{EvalError, Value};
use crate::{Axis, Bindings, DType, DimError, Shape, Stage, TensorType};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};
use thiserror::Error;

/// One operand slot of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The operand's name in errors and documentation.
    pub name: &'static str,
    /// Whether the operand may be left out.
    pub optional: bool,
}

/// A slot that must be filled.
pub(crate) const fn required(name: &'static str) -> Slot {
    Slot { name, optional: false }
}

/// A slot that may stay empty.
pub(crate) const fn optional(name: &'static str) -> Slot {
    Slot { name, optional: true }
}

/// The most operands a variadic op takes.
pub const MAX_OPERANDS: usize = 1024;

/// What the table of ops says about one op.
#[derive(Clone, Copy, Debug)]
pub struct OpInfo {
    /// The name in text and JSON.
    pub name: &'static str,
    /// The formula, with shapes.
    pub formula: &'static str,
    /// The operands, in order. A variadic op repeats its only slot.
    pub slots: &'static [Slot],
    /// Whether the only slot repeats, once or more.
    pub variadic: bool,
    /// The attributes: name and meaning.
    pub attributes: &'static [(&'static str, &'static str)],
    /// Builds the op from its attributes.
    pub(crate) decode: fn(&'static OpInfo, Map<String, Json>) -> Result<crate::Op, AttributeError>,
}

/// Attributes that do not make an op.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("op `{op}`: {reason}; its attributes are {}", expected_attributes(.expected))]
pub struct AttributeError {
    /// The op's name.
    pub op: &'static str,
    /// What the deserializer found.
    pub reason: String,
    /// The op's attributes.
    pub expected: &'static [(&'static str, &'static str)],
}

fn expected_attributes(attributes: &[(&str, &str)]) -> String {
    if attributes.is_empty() {
        return "none".to_owned();
    }
    let list: Vec<_> = attributes.iter().map(|(name, doc)| format!("`{name}` ({doc})")).collect();
    list.join(", ")
}

/// The decoder of an op whose attributes are its fields.
pub(crate) fn decode<T>(info: &'static OpInfo, map: Map<String, Json>) -> Result<crate::Op, AttributeError>
where
    T: DeserializeOwned + Into<crate::Op>,
{
    serde_json::from_value::<T>(Json::Object(map)).map(Into::into).map_err(|e| attribute_error(info, &e))
}

pub(crate) fn attribute_error(info: &'static OpInfo, reason: &serde_json::Error) -> AttributeError {
    AttributeError { op: info.name, reason: reason.to_string(), expected: info.attributes }
}

/// Why operands or attributes break an op's shape rule.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum RuleError {
    /// The number of operands is wrong.
    #[error("takes {expected} operands, found {found}")]
    OperandCount {
        /// What the op takes.
        expected: String,
        /// How many there are.
        found: usize,
    },
    /// A required operand is absent.
    #[error("operand `{operand}` is missing")]
    OperandMissing {
        /// The slot's name.
        operand: &'static str,
    },
    /// An operand has the wrong number of axes.
    #[error("operand `{operand}` must have {expected}, found {found}")]
    Rank {
        /// The slot's name.
        operand: &'static str,
        /// The ranks allowed.
        expected: &'static str,
        /// The operand's type.
        found: TensorType,
    },
    /// An operand has the wrong element type.
    #[error("operand `{operand}` must be {expected}, found {found}")]
    DType {
        /// The slot's name.
        operand: &'static str,
        /// The types allowed.
        expected: String,
        /// The operand's type.
        found: TensorType,
    },
    /// Two operands do not fit together.
    #[error("`{left}` {left_type} and `{right}` {right_type} do not fit: {rule}")]
    Mismatch {
        /// The first operand's slot.
        left: &'static str,
        /// Its type.
        left_type: TensorType,
        /// The second operand's slot.
        right: &'static str,
        /// Its type.
        right_type: TensorType,
        /// The rule that both must satisfy.
        rule: &'static str,
    },
    /// An axis is outside the operand's rank.
    #[error("axis {axis} is outside {found}, which has {} axes", found.rank())]
    Axis {
        /// The axis asked for.
        axis: i64,
        /// The operand's type.
        found: TensorType,
    },
    /// An attribute's value is not allowed.
    #[error("attribute `{attribute}` is {found}, expected {expected}")]
    Attribute {
        /// The attribute's name.
        attribute: &'static str,
        /// Its value, printed.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// The result does not follow from the operand's shape.
    #[error("{from} cannot become {to}: {rule}")]
    Result {
        /// The operand's type.
        from: TensorType,
        /// The shape asked for.
        to: Shape,
        /// The rule.
        rule: &'static str,
    },
    /// A dim is ill-formed or absurd.
    #[error(transparent)]
    Dim(#[from] DimError),
}

/// The operands' types as a shape rule sees them. Required slots are known to be filled.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    info: &'static OpInfo,
    types: &'a [Option<&'a TensorType>],
}

impl<'a> Operands<'a> {
    /// The operands of an op, if their number fits its slots.
    ///
    /// # Errors
    /// [`RuleError::OperandCount`] or [`RuleError::OperandMissing`].
    pub fn new(info: &'static OpInfo, types: &'a [Option<&'a TensorType>]) -> Result<Self, RuleError> {
        let (least, most) = if info.variadic {
            (1, MAX_OPERANDS)
        } else {
            (info.slots.iter().filter(|s| !s.optional).count(), info.slots.len())
        };
        if types.len() < least || types.len() > most {
            let expected = if least == most { least.to_string() } else { format!("{least} to {most}") };
            return Err(RuleError::OperandCount { expected, found: types.len() });
        }
        let operands = Self { info, types };
        let slots = if info.variadic { types.len() } else { info.slots.len() };
        for index in 0..slots {
            let slot = operands.slot(index);
            if !slot.optional && operands.optional(index).is_none() {
                return Err(RuleError::OperandMissing { operand: slot.name });
            }
        }
        Ok(operands)
    }

    fn slot(&self, index: usize) -> &'static Slot {
        &self.info.slots[if self.info.variadic { 0 } else { index }]
    }

    /// The type in a required slot.
    ///
    /// # Panics
    /// If the slot is not one of the op's required ones: those are known to be filled.
    pub fn required(&self, index: usize) -> &'a TensorType {
        self.optional(index).expect("a required slot was checked to be filled")
    }

    /// The type in an optional slot.
    pub fn optional(&self, index: usize) -> Option<&'a TensorType> {
        self.types.get(index).copied().flatten()
    }

    /// All types of a variadic op.
    pub fn all(&self) -> impl Iterator<Item = &'a TensorType> {
        self.types.iter().filter_map(|ty| *ty)
    }

    /// Requires a float in this slot; an empty optional slot is fine.
    ///
    /// # Errors
    /// [`RuleError::DType`].
    pub fn float(&self, index: usize) -> Result<(), RuleError> {
        match self.optional(index) {
            Some(found) if !found.dtype.is_float() => Err(RuleError::DType {
                operand: self.slot(index).name,
                expected: "f32 or f64".to_owned(),
                found: found.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Requires floats of one and the same element type in every filled slot, and returns it.
    ///
    /// # Errors
    /// [`RuleError::DType`].
    pub fn same_float(&self) -> Result<DType, RuleError> {
        let first = self.required(0);
        for index in 0..self.types.len() {
            self.float(index)?;
            if let Some(found) = self.optional(index).filter(|found| found.dtype != first.dtype) {
                return Err(RuleError::DType {
                    operand: self.slot(index).name,
                    expected: format!("{} like `{}`", first.dtype, self.slot(0).name),
                    found: found.clone(),
                });
            }
        }
        Ok(first.dtype)
    }

    /// Requires exactly this rank of a filled slot.
    ///
    /// # Errors
    /// [`RuleError::Rank`].
    pub fn rank(&self, index: usize, rank: usize, expected: &'static str) -> Result<(), RuleError> {
        self.rank_if(index, expected, |found| found == rank)
    }

    /// Requires at least this rank of a filled slot.
    ///
    /// # Errors
    /// [`RuleError::Rank`].
    pub fn rank_at_least(&self, index: usize, rank: usize, expected: &'static str) -> Result<(), RuleError> {
        self.rank_if(index, expected, |found| found >= rank)
    }

    fn rank_if(
        &self,
        index: usize,
        expected: &'static str,
        ok: impl Fn(usize) -> bool,
    ) -> Result<(), RuleError> {
        match self.optional(index) {
            Some(found) if !ok(found.rank()) => {
                Err(RuleError::Rank { operand: self.slot(index).name, expected, found: found.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Requires dim `left.1` of slot `left.0` to equal dim `right.1` of slot `right.0`; negative axes count from the
    /// end. Empty optional slots are fine. Ranks must have been checked.
    ///
    /// # Errors
    /// [`RuleError::Mismatch`], or [`RuleError::Axis`] if a slot has no such axis.
    pub fn equal_dims(
        &self,
        left: (usize, i64),
        right: (usize, i64),
        rule: &'static str,
    ) -> Result<(), RuleError> {
        let (Some(l), Some(r)) = (self.optional(left.0), self.optional(right.0)) else {
            return Ok(());
        };
        let dim = |ty: &'a TensorType, axis: i64| Axis(axis).resolve(ty).map(|axis| &ty.shape[axis]);
        if dim(l, left.1)? == dim(r, right.1)? { Ok(()) } else { Err(self.mismatch(left.0, right.0, rule)) }
    }

    /// The error that two slots do not fit together.
    pub fn mismatch(&self, left: usize, right: usize, rule: &'static str) -> RuleError {
        RuleError::Mismatch {
            left: self.slot(left).name,
            left_type: self.required(left).clone(),
            right: self.slot(right).name,
            right_type: self.required(right).clone(),
            rule,
        }
    }
}

/// Requires a finite attribute.
pub(crate) fn finite(attribute: &'static str, value: f64) -> Result<(), RuleError> {
    if value.is_finite() {
        return Ok(());
    }
    Err(RuleError::Attribute { attribute, found: value.to_string(), expected: "a finite number".to_owned() })
}

/// Requires a finite, non-negative attribute.
pub(crate) fn non_negative(attribute: &'static str, value: f64) -> Result<(), RuleError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(RuleError::Attribute {
        attribute,
        found: value.to_string(),
        expected: "a finite number, 0 or more".to_owned(),
    })
}

/// The operands' values as a reference meaning sees them.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    /// One value per slot.
    pub values: &'a [Option<&'a Value>],
    /// The concrete shape of the result.
    pub shape: &'a [usize],
    /// The values of the symbols.
    pub bindings: &'a Bindings,
}

impl<'a> Args<'a> {
    /// The value in a slot.
    ///
    /// # Errors
    /// [`EvalError::Operand`] if it is absent.
    pub fn value(&self, index: usize) -> Result<&'a Value, EvalError> {
        self.values.get(index).copied().flatten().ok_or(EvalError::Operand { index })
    }

    /// The floats in a slot.
    ///
    /// # Errors
    /// [`EvalError::Operand`] if it is absent, [`EvalError::NotReal`] if it holds integers.
    pub fn real(&self, index: usize) -> Result<&'a ndarray::ArrayD<f64>, EvalError> {
        self.value(index)?.as_real()
    }

    /// The floats in an optional slot.
    ///
    /// # Errors
    /// [`EvalError::NotReal`] if it holds integers.
    pub fn optional_real(&self, index: usize) -> Result<Option<&'a ndarray::ArrayD<f64>>, EvalError> {
        self.values.get(index).copied().flatten().map(Value::as_real).transpose()
    }
}

/// What every op says about itself, in its own file.
pub trait Operator {
    /// The op's row in the table.
    fn info(&self) -> &'static OpInfo;

    /// The attributes, as JSON.
    fn attributes(&self) -> Map<String, Json>;

    /// The shape rule: the result's type from the operands' types.
    ///
    /// # Errors
    /// Which rule is broken, with both sides.
    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError>;

    /// The stage rule: the stage from the latest operand's. Only sources say otherwise.
    fn stage(&self, latest_operand: Stage) -> Stage {
        latest_operand
    }

    /// The reference meaning in f64, as plainly as the formula is written.
    ///
    /// # Errors
    /// A value outside the op's domain, such as an id out of range.
    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError>;
}

/// The fields of a serialisable op, as its attributes.
pub(crate) fn fields<T: serde::Serialize>(op: &T) -> Map<String, Json> {
    match serde_json::to_value(op) {
        Ok(Json::Object(map)) => map,
        // Attribute structs serialise to objects (unit structs to null); their values cannot fail.
        _ => Map::new(),
    }
}
