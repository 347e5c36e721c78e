//! How far two sets of numbers are apart, in numbers and in units of the tolerance. Knows nothing about where they come
//! from.

use engraft::ir::value::Value;
use serde::Serialize;

/// How far our outputs are from theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Agreement {
    /// The largest difference of two elements.
    pub largest_difference: f64,
    /// The largest difference in units of what is allowed there, `1e-5 max(1, max |theirs|) + 1e-4 |theirs|`.
    pub tolerances: f64,
}

/// The tolerance, as people write it.
pub const TOLERANCE: &str = "1e-5 max(1, max|theirs|) + 1e-4 |theirs|";

impl Agreement {
    /// Whether every difference is allowed.
    pub fn holds(self) -> bool {
        self.tolerances <= 1.0
    }

    /// The worse of both in each regard.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        Self {
            largest_difference: self.largest_difference.max(other.largest_difference),
            tolerances: self.tolerances.max(other.tolerances),
        }
    }

    /// Compares element by element; `None` if shapes or kinds differ. A NaN agrees with a NaN and an infinity with
    /// itself; integers agree if they are equal.
    pub fn of(ours: &Value, theirs: &Value) -> Option<Self> {
        if ours.shape() != theirs.shape() {
            return None;
        }
        match (ours, theirs) {
            (Value::Int(ours), Value::Int(theirs)) if ours == theirs => Some(Self::default()),
            (Value::Int(_), Value::Int(_)) => Some(Self::NEVER),
            (Value::Real(ours), Value::Real(theirs)) => {
                let finite = theirs.iter().filter(|x| x.is_finite());
                let largest = finite.fold(1.0_f64, |largest, x| largest.max(x.abs()));
                let pairs = ours.iter().zip(theirs);
                let each = pairs.map(|(&ours, &theirs)| element(ours, theirs, largest));
                Some(each.fold(Self::default(), Self::worse))
            }
            _ => None,
        }
    }

    /// What no tolerance allows.
    const NEVER: Self = Self { largest_difference: f64::INFINITY, tolerances: f64::INFINITY };
}

fn element(ours: f64, theirs: f64, largest: f64) -> Agreement {
    if ours == theirs || (ours.is_nan() && theirs.is_nan()) {
        return Agreement::default();
    }
    let difference = (ours - theirs).abs();
    if !difference.is_finite() {
        return Agreement::NEVER;
    }
    let allowed = 1e-5 * largest + 1e-4 * theirs.abs();
    Agreement { largest_difference: difference, tolerances: difference / allowed }
}

#[cfg(test)]
mod tests {
    use super::Agreement;
    use engraft::ir::value::Value;
    use ndarray::ArrayD;

    fn real(elements: &[f64]) -> Value {
        ArrayD::from_shape_vec(vec![elements.len()], elements.to_vec()).unwrap().into()
    }

    #[test]
    fn differences_are_measured_in_tolerances() {
        let theirs = real(&[0.0, 100.0]);
        let agreement = Agreement::of(&real(&[0.001, 100.0]), &theirs).unwrap();
        assert_eq!(agreement.largest_difference, 0.001);
        assert!((agreement.tolerances - 1.0).abs() < 1e-12);
        assert!(!Agreement::of(&real(&[0.0011, 100.0]), &theirs).unwrap().holds());
        assert!(Agreement::of(&real(&[0.0, 100.01]), &theirs).unwrap().holds());
    }

    #[test]
    fn what_is_not_a_number_agrees_with_its_like_only() {
        let strange = real(&[f64::NAN, f64::INFINITY]);
        assert_eq!(Agreement::of(&strange, &strange), Some(Agreement::default()));
        assert!(!Agreement::of(&real(&[0.0, f64::INFINITY]), &strange).unwrap().holds());
        assert!(!Agreement::of(&real(&[f64::NAN, f64::NEG_INFINITY]), &strange).unwrap().holds());
    }

    #[test]
    fn other_shapes_do_not_compare() {
        assert_eq!(Agreement::of(&real(&[1.0]), &real(&[1.0, 2.0])), None);
    }
}
