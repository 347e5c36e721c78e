//! Between the reference interpreter's values and the runtime's tensors: f64 to f32 and back, ids unchanged.

use engraft_ir::value::Value;
use engraft_ir::{DType, TensorType};
use engraft_runtime::{DType as RunDType, Tensor, TensorError};
use ndarray::{ArrayD, IxDyn};

/// The tensor of this type that holds a value, floats rounded to f32.
///
/// # Errors
/// The value does not fit into memory.
pub fn to_tensor(value: &Value, ty: &TensorType) -> Result<Tensor, TensorError> {
    let shape = value.shape();
    match value {
        Value::Real(array) => Tensor::f32(shape, array.iter().map(|&x| x as f32).collect()),
        Value::Int(array) if ty.dtype == DType::I32 => {
            Tensor::i32(shape, array.iter().map(|&x| x as i32).collect())
        }
        Value::Int(array) => Tensor::i64(shape, array.iter().copied().collect()),
    }
}

/// The value that a tensor holds.
///
/// # Errors
/// None that a well-formed tensor gives rise to.
pub fn to_value(tensor: &Tensor) -> Result<Value, TensorError> {
    fn array<T: Copy, U>(shape: &[usize], elements: &[T], convert: impl Fn(T) -> U) -> ArrayD<U> {
        let elements = elements.iter().map(|&x| convert(x)).collect();
        ArrayD::from_shape_vec(IxDyn(shape), elements)
            .expect("a tensor has as many elements as its shape says")
    }
    Ok(match tensor.dtype() {
        RunDType::F32 => array(tensor.shape(), tensor.as_f32()?, f64::from).into(),
        RunDType::I32 => array(tensor.shape(), tensor.as_i32()?, i64::from).into(),
        RunDType::I64 => array(tensor.shape(), tensor.as_i64()?, |x| x).into(),
    })
}
