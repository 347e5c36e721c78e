//! Comparison within a tolerance: `|ours - theirs| <= atol · max(1, max |theirs|) + rtol · |theirs|`. A NaN agrees with a
//! NaN, an infinity with itself.

use engraft_ir::eval::Values;
use engraft_ir::value::Value;
use std::fmt;

/// The element that is farthest beyond the tolerance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Far {
    /// Its index in row-major order.
    pub index: usize,
    /// Our value.
    pub ours: f64,
    /// Their value.
    pub theirs: f64,
    /// The difference allowed.
    pub allowed: f64,
}

impl fmt::Display for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, ours, theirs, allowed } = self;
        let difference = (ours - theirs).abs();
        write!(
            f,
            "element {index}: found {ours}, expected {theirs}; they differ by {difference:e} of {allowed:e}"
        )
    }
}

/// Compares element by element.
///
/// # Errors
/// The element that is farthest off.
///
/// # Panics
/// If the lengths differ.
pub fn close(ours: &[f64], theirs: &[f64], atol: f64, rtol: f64) -> Result<(), Far> {
    assert_eq!(ours.len(), theirs.len(), "the number of elements");
    let largest = theirs.iter().filter(|x| x.is_finite()).fold(1.0, |max: f64, x| max.max(x.abs()));
    let excess = |far: &Far| match (far.ours - far.theirs).abs() - far.allowed {
        excess if excess.is_nan() => f64::INFINITY,
        excess => excess,
    };
    let elements = ours.iter().zip(theirs).enumerate();
    let far = elements
        .filter(|(_, (ours, theirs))| ours != theirs && !(ours.is_nan() && theirs.is_nan()))
        .map(|(index, (&ours, &theirs))| Far {
            index,
            ours,
            theirs,
            allowed: atol * largest + rtol * theirs.abs(),
        })
        .filter(|far| excess(far) > 0.0)
        .max_by(|a, b| excess(a).total_cmp(&excess(b)));
    far.map_or(Ok(()), Err)
}

/// Compares element by element.
///
/// # Panics
/// If an element is off, or the lengths differ.
#[track_caller]
pub fn assert_close(ours: &[f64], theirs: &[f64], atol: f64, rtol: f64) {
    if let Err(far) = close(ours, theirs, atol, rtol) {
        panic!("{far}");
    }
}

/// Compares named values; integers must be equal.
///
/// # Panics
/// If a name, a shape or an element is off.
#[track_caller]
pub fn assert_values_close(ours: &Values, theirs: &Values, atol: f64, rtol: f64) {
    assert!(ours.keys().eq(theirs.keys()), "the names: {:?} and {:?}", ours.keys(), theirs.keys());
    for (name, ours) in ours {
        let theirs = &theirs[name];
        assert_eq!(ours.shape(), theirs.shape(), "the shape of `{name}`");
        match (ours, theirs) {
            (Value::Real(ours), Value::Real(theirs)) => {
                let (ours, theirs): (Vec<_>, Vec<_>) =
                    (ours.iter().copied().collect(), theirs.iter().copied().collect());
                if let Err(far) = close(&ours, &theirs, atol, rtol) {
                    panic!("`{name}`: {far}");
                }
            }
            _ => assert_eq!(ours, theirs, "`{name}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_found_and_what_is_within_is_not() {
        assert_eq!(close(&[1.0, f64::NAN, f64::INFINITY], &[1.0, f64::NAN, f64::INFINITY], 0.0, 0.0), Ok(()));
        assert_eq!(close(&[100.1], &[100.0], 1e-3, 0.0), Ok(()));
        assert_eq!(close(&[], &[], 0.0, 0.0), Ok(()));
        for (ours, theirs) in
            [(1.0, 1.1), (f64::NAN, 1.0), (1.0, f64::NAN), (f64::INFINITY, 1.0), (1.0, f64::INFINITY)]
        {
            assert!(close(&[ours], &[theirs], 1e-3, 1e-3).is_err(), "{ours} {theirs}");
        }
        let far = close(&[0.0, 0.5, 0.2], &[0.0; 3], 0.1, 0.0).unwrap_err();
        assert_eq!((far.index, far.ours), (1, 0.5));
    }
}
