//! Tensor types: an element type and a shape. Knows nothing about ops.

use crate::{Bindings, DType, Dim, DimError, MAX_DIM, Symbol};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;
use thiserror::Error;

/// The most axes a tensor may have.
pub const MAX_RANK: usize = 8;

/// The dims of a tensor, outermost first. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(Arc<[Dim]>);

impl Shape {
    /// A shape of these dims.
    pub fn new(dims: Vec<Dim>) -> Self {
        Self(dims.into())
    }

    /// The number of elements, as a dim.
    pub fn elements(&self) -> Dim {
        self.0.iter().fold(Dim::fixed(1), |product, dim| product * dim)
    }

    /// Every symbol in the shape.
    pub fn symbols(&self) -> BTreeSet<Symbol> {
        self.0.iter().flat_map(Dim::symbols).collect()
    }

    /// The concrete dims under these bindings.
    ///
    /// # Errors
    /// As [`Dim::eval`]; also [`DimError::TooLarge`] when the element count is beyond [`MAX_DIM`].
    pub fn eval(&self, bindings: &Bindings) -> Result<Vec<usize>, DimError> {
        let dims = self.0.iter().map(|dim| dim.eval(bindings)).collect::<Result<Vec<_>, _>>()?;
        let count = dims.iter().filter(|&&d| d != 0).try_fold(1u64, |n, &d| n.checked_mul(d));
        if count.is_none_or(|n| n > MAX_DIM) {
            return Err(DimError::TooLarge { dim: self.elements().to_string() });
        }
        Ok(dims.into_iter().map(|d| d as usize).collect())
    }

    /// Whether rank, dims and element count are within bounds.
    ///
    /// # Errors
    /// As [`Dim::check`]; more than [`MAX_RANK`] axes are too large.
    pub fn check(&self) -> Result<(), DimError> {
        if self.0.len() > MAX_RANK {
            return Err(DimError::TooLarge { dim: self.to_string() });
        }
        // Checked factor by factor: the product of many long sums would grow without bound.
        let mut elements = Dim::fixed(1);
        for dim in self.iter() {
            dim.check()?;
            elements = elements * dim;
            elements.check()?;
        }
        Ok(())
    }
}

impl Deref for Shape {
    type Target = [Dim];
    fn deref(&self) -> &[Dim] {
        &self.0
    }
}

impl FromIterator<Dim> for Shape {
    fn from_iter<I: IntoIterator<Item = Dim>>(dims: I) -> Self {
        Self(dims.into_iter().collect())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dim) in self.0.iter().enumerate() {
            let separator = if i > 0 { ", " } else { "" };
            write!(f, "{separator}{dim}")?;
        }
        f.write_str("]")
    }
}

/// The type of a tensor. Prints as `f32[batch, 768]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorType {
    /// The element type.
    pub dtype: DType,
    /// The dims, outermost first.
    pub shape: Shape,
}

impl TensorType {
    /// A type.
    pub fn new(dtype: DType, shape: Shape) -> Self {
        Self { dtype, shape }
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

/// Why a text is not a type.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TypeSyntaxError {
    /// It is not an element type and dims in brackets.
    #[error("`{text}` is not a type: expected f32, f64, i32 or i64 and dims, as in `f32[batch, 24]`")]
    Syntax {
        /// The text found.
        text: String,
    },
    /// A dim is ill-formed or absurd.
    #[error(transparent)]
    Dim(#[from] DimError),
}

impl FromStr for TensorType {
    type Err = TypeSyntaxError;

    /// Reads what [`Display`](fmt::Display) prints: `f32[batch, 768]`.
    fn from_str(text: &str) -> Result<Self, TypeSyntaxError> {
        let syntax = || TypeSyntaxError::Syntax { text: text.chars().take(64).collect() };
        let (dtype, dims) = text.trim().split_once('[').ok_or_else(syntax)?;
        let dtype = DType::from_name(dtype).ok_or_else(syntax)?;
        let dims = dims.strip_suffix(']').ok_or_else(syntax)?.trim();
        if dims.is_empty() {
            return Ok(Self::new(dtype, Shape::default()));
        }
        if dims.split(',').count() > MAX_RANK {
            return Err(syntax());
        }
        let dims = dims.split(',').map(|dim| dim.trim().parse()).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::new(dtype, Shape::new(dims)))
    }
}
