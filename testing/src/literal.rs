//! Values written in tests.

use engraft_ir::value::Value;
use engraft_ir::{Bindings, Symbol};
use ndarray::{ArrayD, IxDyn};

/// Floats in row-major order.
///
/// # Panics
/// If they do not fill the shape.
pub fn real(shape: &[usize], elements: &[f64]) -> Value {
    let array = ArrayD::from_shape_vec(IxDyn(shape), elements.to_vec());
    array.expect("a test's elements fill its shape").into()
}

/// Integers in row-major order.
///
/// # Panics
/// If they do not fill the shape.
pub fn ids(shape: &[usize], elements: &[i64]) -> Value {
    let array = ArrayD::from_shape_vec(IxDyn(shape), elements.to_vec());
    array.expect("a test's elements fill its shape").into()
}

/// Values of symbols: `bindings(&[("batch", 3)])`.
pub fn bindings(values: &[(&str, u64)]) -> Bindings {
    values.iter().map(|&(name, value)| (Symbol::new(name), value)).collect()
}
