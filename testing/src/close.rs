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
