//! Values of the reference interpreter: f64 reals and i64 ids. Knows nothing about ops.

use ndarray::ArrayD;
use thiserror::Error;

/// The most elements that a value may have (2^31); beyond it is an error, not an attempt.
pub const MAX_ELEMENTS: usize = 1 << 31;

/// A tensor's value in the reference interpreter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Floats, whatever their declared width.
    Real(ArrayD<f64>),
    /// Integers, whatever their declared width.
    Int(ArrayD<i64>),
}

/// Why the reference interpreter could not evaluate.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum EvalError {
    /// An operand is absent.
    #[error("operand {index} is absent")]
    Operand {
        /// The slot.
        index: usize,
    },
    /// Floats were needed.
    #[error("expected floats, found integers")]
    NotReal,
    /// Integers were needed.
    #[error("expected integers, found floats")]
    NotInt,
    /// An input or parameter has no value.
    #[error("`{name}` has no value")]
    Missing {
        /// The node's name.
        name: String,
    },
    /// A value's shape differs from its node's type.
    #[error("`{name}` must be {expected}, found shape {found:?}")]
    Shape {
        /// The node's name.
        name: String,
        /// The type, printed.
        expected: String,
        /// The shape found.
        found: Vec<usize>,
    },
    /// An id is outside its table.
    #[error("id {id} is outside the table of {rows} rows")]
    Id {
        /// The id found.
        id: i64,
        /// The rows there are.
        rows: usize,
    },
    /// Ndarray found the shapes not to fit; the shape rule should have.
    #[error("shapes do not fit: {reason}")]
    Layout {
        /// Ndarray's reason.
        reason: String,
    },
    /// A value would have too many elements.
    #[error("a value of shape {shape:?} is too large: the limit is {MAX_ELEMENTS} elements")]
    TooLarge {
        /// The shape.
        shape: Vec<usize>,
    },
    /// A dim could not be evaluated.
    #[error(transparent)]
    Dim(#[from] crate::DimError),
    /// A node could not be evaluated.
    #[error("`{node}`: {source}")]
    Node {
        /// The node's name.
        node: String,
        /// Why.
        source: Box<EvalError>,
    },
}

impl From<ndarray::ShapeError> for EvalError {
    fn from(error: ndarray::ShapeError) -> Self {
        Self::Layout { reason: error.to_string() }
    }
}

impl Value {
    /// The floats.
    ///
    /// # Errors
    /// [`EvalError::NotReal`].
    pub fn as_real(&self) -> Result<&ArrayD<f64>, EvalError> {
        match self {
            Self::Real(array) => Ok(array),
            Self::Int(_) => Err(EvalError::NotReal),
        }
    }

    /// The integers.
    ///
    /// # Errors
    /// [`EvalError::NotInt`].
    pub fn as_int(&self) -> Result<&ArrayD<i64>, EvalError> {
        match self {
            Self::Int(array) => Ok(array),
            Self::Real(_) => Err(EvalError::NotInt),
        }
    }

    /// The concrete shape.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Real(array) => array.shape(),
            Self::Int(array) => array.shape(),
        }
    }
}

impl From<ArrayD<f64>> for Value {
    fn from(array: ArrayD<f64>) -> Self {
        Self::Real(array)
    }
}

impl From<ArrayD<i64>> for Value {
    fn from(array: ArrayD<i64>) -> Self {
        Self::Int(array)
    }
}
