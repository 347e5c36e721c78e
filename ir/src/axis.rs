//! Axes as people name them: by number, from the end, or by their place in a `[out, in]` weight.

use crate::{RuleError, TensorType};

/// An axis of a tensor; a negative number counts from the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis(pub i64);

impl Axis {
    /// The input axis of a weight `[out, in]`, and the feature axis of an activation `[.., in]`.
    pub const IN: Self = Self(-1);
    /// The output axis of a weight `[out, in]`.
    pub const OUT: Self = Self(0);
    /// The last axis.
    pub const LAST: Self = Self(-1);

    /// The axis of this index from the front, however large.
    pub(crate) fn index(index: usize) -> Self {
        Self(i64::try_from(index).unwrap_or(i64::MAX))
    }

    /// The index from the front.
    ///
    /// # Errors
    /// [`RuleError::Axis`] if the tensor has no such axis.
    pub fn resolve(self, ty: &TensorType) -> Result<usize, RuleError> {
        let rank = ty.rank() as i64;
        let axis = if self.0 < 0 { self.0 + rank } else { self.0 };
        if (0..rank).contains(&axis) {
            Ok(axis as usize)
        } else {
            Err(RuleError::Axis { axis: self.0, found: ty.clone() })
        }
    }
}

impl From<i32> for Axis {
    fn from(axis: i32) -> Self {
        Self(axis.into())
    }
}

impl From<i64> for Axis {
    fn from(axis: i64) -> Self {
        Self(axis)
    }
}
