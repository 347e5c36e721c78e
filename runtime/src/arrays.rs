//! Tensors from arrays of ndarray, and as views of them. Knows nothing about programs.

use crate::tensor::{Tensor, TensorError};
use ndarray::{Array, ArrayViewD, Dimension, IxDyn};

/// From arrays, whatever their layout, and back as views.
macro_rules! arrays {
    ($($element:ty, $make:ident, $read:ident, $view:ident;)*) => {
        $(impl<D: Dimension> From<Array<$element, D>> for Tensor {
            /// The array's elements in row-major order; nothing is copied where they lie so.
            fn from(array: Array<$element, D>) -> Self {
                let shape = array.shape().to_vec();
                let elements = if array.is_standard_layout() {
                    // What lies in front of the first element, after slicing, or behind the last is no part of it.
                    let (mut elements, offset) = array.into_raw_vec_and_offset();
                    let count = shape.iter().product();
                    elements.drain(..offset.unwrap_or(0));
                    elements.truncate(count);
                    elements
                } else {
                    array.iter().copied().collect()
                };
                Tensor::$make(&shape, elements).expect("an array has as many elements as its shape says")
            }
        }

        impl Tensor {
            #[doc = concat!("The tensor as an array of ", stringify!($element), ".")]
            ///
            /// # Errors
            /// When the elements are of another type.
            pub fn $view(&self) -> Result<ArrayViewD<'_, $element>, TensorError> {
                let view = ArrayViewD::from_shape(IxDyn(self.shape()), self.$read()?);
                Ok(view.expect("a tensor has as many elements as its shape says"))
            }
        })*
    };
}

arrays! {
    f32, f32, as_f32, view_f32;
    i32, i32, as_i32, view_i32;
    i64, i64, as_i64, view_i64;
}

#[cfg(test)]
mod tests {
    use crate::Tensor;
    use ndarray::{Array1, Array2, array, s};

    #[test]
    fn arrays_go_in_and_come_out_row_by_row() {
        let x = array![[1.0_f32, 2.0, 3.0], [4.0, 5.0, 6.0]];
        let tensor = Tensor::from(x.clone());
        assert_eq!(tensor.shape(), [2, 3]);
        assert_eq!(tensor.view_f32().expect("they are f32"), x.clone().into_dyn());
        assert!(tensor.view_i64().is_err());
        let turned = Tensor::from(x.clone().reversed_axes());
        assert_eq!(turned.as_f32().expect("they are f32"), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        // A part of an array, in front of which and behind which there are others.
        let rows = Array2::from_shape_fn((4, 2), |(i, j)| (2 * i + j) as i64).slice_move(s![1..3, ..]);
        assert_eq!(Tensor::from(rows).as_i64().expect("they are i64"), [2, 3, 4, 5]);
        assert!(Tensor::from(Array1::<i32>::zeros(0)).is_empty());
    }
}
