//! Tensors, in memory of their own, in mapped files, or stored in another form. Knows nothing about programs or formats of
//! files.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::elements::Elements;
use crate::mapped::{MappedElements, MappedFile};
use crate::stored::{Source, Stored};

/// The element types of tensors that go into and come out of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 32-bit signed integer.
    I32,
    /// 64-bit signed integer.
    I64,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::I64 => 8,
        }
    }

    /// As people write it: `f32`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::I32 => "i32",
            DType::I64 => "i64",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The elements of a tensor, the last axis contiguous.
#[derive(Clone, Debug)]
enum Data {
    F32(Elements<f32>),
    /// Floats that are made when they are needed.
    Stored(Stored),
    I32(Elements<i32>),
    I64(Elements<i64>),
}

/// A dense tensor, row-major: a shape and its elements, which are its own, lie in a [`MappedFile`], or are made when they
/// are needed ([`Tensor::stored`]). Wherever they are, they are read in the same way; a clone of a mapped or stored tensor
/// shares them, and what is to be changed is copied first. Tensors are equal when shape and elements are.
///
/// ```
/// use engraft_runtime::Tensor;
/// let x = Tensor::f32(&[2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// assert_eq!(x.shape(), [2, 3]);
/// assert_eq!(x.as_f32()?[5], 6.0);
/// let message = Tensor::i64(&[2, 3], vec![7]).unwrap_err().to_string();
/// assert_eq!(message, "a tensor of shape [2, 3] has 6 elements, found 1");
/// # Ok::<(), engraft_runtime::TensorError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// A shape and elements that don't fit, or elements of another type than asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// Too few elements or too many.
    #[error("a tensor of shape {shape:?} has {expected} elements, found {found}")]
    Length {
        /// The shape.
        shape: Vec<usize>,
        /// The product of its dims.
        expected: usize,
        /// How many elements were given.
        found: usize,
    },
    /// No memory could hold such a tensor.
    #[error("a tensor of shape {shape:?} has more elements than fit into memory")]
    TooLarge {
        /// The shape.
        shape: Vec<usize>,
    },
    /// There is no memory for the floats of a tensor that is stored in another form.
    #[error("there is no memory for the {bytes} bytes of a tensor of shape {shape:?}")]
    Memory {
        /// The shape.
        shape: Vec<usize>,
        /// Its floats' bytes.
        bytes: usize,
    },
    /// The elements are of another type.
    #[error("the tensor's elements are {found}, expected {expected}")]
    DType {
        /// What was asked for.
        expected: DType,
        /// What the tensor holds.
        found: DType,
    },
}

/// The number of elements of `shape`, if their bytes can be addressed.
pub(crate) fn elements(shape: &[usize], dtype: DType) -> Option<usize> {
    // A zero makes every shape empty, whatever the other dims.
    if shape.contains(&0) {
        return Some(0);
    }
    let elements = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim))?;
    let bytes = elements.checked_mul(dtype.bytes())?;
    isize::try_from(bytes).ok().map(|_| elements)
}

impl Tensor {
    /// A tensor of floats.
    ///
    /// # Errors
    /// When `data` hasn't as many elements as `shape`.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Result<Tensor, TensorError> {
        Tensor::new(shape, DType::F32, data.len(), Data::F32(data.into()))
    }

    /// A tensor of 32-bit integers.
    ///
    /// # Errors
    /// When `data` hasn't as many elements as `shape`.
    pub fn i32(shape: &[usize], data: Vec<i32>) -> Result<Tensor, TensorError> {
        Tensor::new(shape, DType::I32, data.len(), Data::I32(data.into()))
    }

    /// A tensor of 64-bit integers.
    ///
    /// # Errors
    /// When `data` hasn't as many elements as `shape`.
    pub fn i64(shape: &[usize], data: Vec<i64>) -> Result<Tensor, TensorError> {
        Tensor::new(shape, DType::I64, data.len(), Data::I64(data.into()))
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// When no memory could hold it.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, TensorError> {
        let mut tensor = Tensor::empty(dtype);
        if tensor.resize(dtype, shape.iter().copied()) {
            return Ok(tensor);
        }
        Err(TensorError::TooLarge { shape: shape.to_vec() })
    }

    /// A tensor of shape `[0]`, such as an output that a call is yet to fill.
    pub fn empty(dtype: DType) -> Tensor {
        let data = match dtype {
            DType::F32 => Data::F32(Vec::new().into()),
            DType::I32 => Data::I32(Vec::new().into()),
            DType::I64 => Data::I64(Vec::new().into()),
        };
        Tensor { shape: vec![0], data }
    }

    /// A tensor whose elements are these bytes of a file, little-endian; they stay there, see [`MappedFile`] for what
    /// that asks for. `None` when this machine can't read them where they lie, because they aren't aligned or it orders
    /// bytes the other way, or when they aren't as many as the shape has, or not in the file.
    ///
    /// ```
    /// # let file = tempfile::NamedTempFile::new()?;
    /// use engraft_runtime::{DType, MappedFile, Tensor};
    /// std::fs::write(&file, 1.5_f32.to_le_bytes())?;
    /// let file = std::sync::Arc::new(MappedFile::open(&file)?);
    /// let tensor = Tensor::mapped(DType::F32, &[1, 1], &file, 0..4);
    /// assert_eq!(tensor, Some(Tensor::f32(&[1, 1], vec![1.5])?));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn mapped(
        dtype: DType,
        shape: &[usize],
        file: &Arc<MappedFile>,
        bytes: Range<usize>,
    ) -> Option<Tensor> {
        let data = match dtype {
            DType::F32 => Data::F32(Elements::Mapped(MappedElements::new(file, bytes)?)),
            DType::I32 => Data::I32(Elements::Mapped(MappedElements::new(file, bytes)?)),
            DType::I64 => Data::I64(Elements::Mapped(MappedElements::new(file, bytes)?)),
        };
        let tensor = Tensor { shape: shape.to_vec(), data };
        (elements(shape, dtype) == Some(tensor.len())).then_some(tensor)
    }

    /// A tensor of floats that are stored in another form, and made from `source` when they are needed: piece by piece
    /// where a program only packs them when it is loaded, else all at once. Asking for them, with
    /// [`as_f32`](Self::as_f32) for instance, makes them and keeps them as long as the tensor lives.
    ///
    /// ```
    /// use engraft_runtime::{Source, Tensor};
    /// struct Counting;
    /// impl Source for Counting {
    ///     fn read(&self, first: usize, to: &mut [f32]) {
    ///         to.iter_mut().enumerate().for_each(|(i, to)| *to = (first + i) as f32);
    ///     }
    /// }
    /// let tensor = Tensor::stored(&[2, 2], Counting)?;
    /// assert_eq!(tensor.as_f32()?, [0.0, 1.0, 2.0, 3.0]);
    /// # Ok::<(), engraft_runtime::TensorError>(())
    /// ```
    ///
    /// # Errors
    /// When no memory could hold it.
    pub fn stored(shape: &[usize], source: impl Source + 'static) -> Result<Tensor, TensorError> {
        let Some(len) = elements(shape, DType::F32) else {
            return Err(TensorError::TooLarge { shape: shape.to_vec() });
        };
        let row = shape.last().copied().unwrap_or(1);
        Ok(Tensor { shape: shape.to_vec(), data: Data::Stored(Stored::new(Box::new(source), len, row)) })
    }

    fn new(shape: &[usize], dtype: DType, found: usize, data: Data) -> Result<Tensor, TensorError> {
        match elements(shape, dtype) {
            Some(expected) if expected == found => Ok(Tensor { shape: shape.to_vec(), data }),
            Some(expected) => Err(TensorError::Length { shape: shape.to_vec(), expected, found }),
            None => Err(TensorError::TooLarge { shape: shape.to_vec() }),
        }
    }

    /// The dims.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        match self.data {
            Data::F32(_) | Data::Stored(_) => DType::F32,
            Data::I32(_) => DType::I32,
            Data::I64(_) => DType::I64,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match &self.data {
            Data::F32(data) => data.len(),
            Data::Stored(data) => data.len(),
            Data::I32(data) => data.len(),
            Data::I64(data) => data.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The floats of an `f32` tensor.
    ///
    /// # Errors
    /// When it holds something else, or when it is [stored](Self::stored) in another form and memory doesn't suffice.
    pub fn as_f32(&self) -> Result<&[f32], TensorError> {
        match &self.data {
            Data::F32(data) => Ok(data),
            Data::Stored(data) => data.floats().ok_or_else(|| self.no_memory()),
            _ => Err(self.not(DType::F32)),
        }
    }

    /// The floats of an `f32` tensor, to be changed in place, after they are copied from a file if they are in one.
    ///
    /// # Errors
    /// As for [`as_f32`](Self::as_f32).
    pub fn as_f32_mut(&mut self) -> Result<&mut [f32], TensorError> {
        let other = self.not(DType::F32);
        if self.as_stored().is_some() {
            *self = self.to_floats()?.into_owned();
        }
        match &mut self.data {
            Data::F32(data) => Ok(data.owned()),
            _ => Err(other),
        }
    }

    /// The integers of an `i32` tensor.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn as_i32(&self) -> Result<&[i32], TensorError> {
        match &self.data {
            Data::I32(data) => Ok(data),
            _ => Err(self.not(DType::I32)),
        }
    }

    /// The integers of an `i64` tensor.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn as_i64(&self) -> Result<&[i64], TensorError> {
        match &self.data {
            Data::I64(data) => Ok(data),
            _ => Err(self.not(DType::I64)),
        }
    }

    /// This tensor with all its elements in memory, or in a mapped file: where it is [stored](Self::stored) in another
    /// form, a copy, which goes when it is dropped.
    ///
    /// # Errors
    /// When memory doesn't suffice.
    pub fn to_floats(&self) -> Result<Cow<'_, Tensor>, TensorError> {
        let Data::Stored(stored) = &self.data else { return Ok(Cow::Borrowed(self)) };
        let floats = stored.to_vec().ok_or_else(|| self.no_memory())?;
        Ok(Cow::Owned(Tensor::f32(&self.shape, floats)?))
    }

    fn no_memory(&self) -> TensorError {
        TensorError::Memory { shape: self.shape.clone(), bytes: self.len() * DType::F32.bytes() }
    }

    fn not(&self, expected: DType) -> TensorError {
        TensorError::DType { expected, found: self.dtype() }
    }

    /// Makes this a tensor of such elements and shape, keeping its memory where it suffices: its elements are what was
    /// there before (unless that is in a file), and zeros. Says whether there was memory for it; if not, the tensor is empty.
    pub(crate) fn resize(&mut self, dtype: DType, shape: impl Iterator<Item = usize>) -> bool {
        if self.dtype() != dtype || self.as_stored().is_some() {
            *self = Tensor::empty(dtype);
        }
        self.shape.clear();
        self.shape.extend(shape);
        let resized = elements(&self.shape, dtype).is_some_and(|count| match &mut self.data {
            Data::F32(data) => data.resize(count),
            Data::Stored(_) => false,
            Data::I32(data) => data.resize(count),
            Data::I64(data) => data.resize(count),
        });
        if !resized {
            *self = Tensor::empty(dtype);
        }
        resized
    }

    /// Where the elements begin, for reading: dangling but aligned when there are none. `None` when they are still to be
    /// made and there is no memory for them.
    pub(crate) fn address(&self) -> Option<*mut u8> {
        match &self.data {
            Data::Stored(data) => data.floats().map(|floats| floats.as_ptr().cast_mut().cast()),
            _ => Some(self.handle()),
        }
    }

    /// What stands for the tensor while it is loaded: where its elements begin, or if they are still to be made, an address
    /// that no other tensor has and at which there are no elements.
    pub(crate) fn handle(&self) -> *mut u8 {
        match &self.data {
            Data::F32(data) => data.as_ptr().cast_mut().cast(),
            Data::I32(data) => data.as_ptr().cast_mut().cast(),
            Data::I64(data) => data.as_ptr().cast_mut().cast(),
            Data::Stored(data) => data.handle(),
        }
    }

    /// The elements that are made when they are needed, if these are.
    pub(crate) fn as_stored(&self) -> Option<&Stored> {
        match &self.data {
            Data::Stored(data) => Some(data),
            _ => None,
        }
    }

    /// Where the elements begin, for writing: dangling but aligned when there are none. The tensor has been
    /// [resized](Self::resize).
    pub(crate) fn address_mut(&mut self) -> *mut u8 {
        match &mut self.data {
            Data::F32(data) => data.owned().as_mut_ptr().cast(),
            Data::I32(data) => data.owned().as_mut_ptr().cast(),
            Data::I64(data) => data.owned().as_mut_ptr().cast(),
            Data::Stored(_) => unreachable!("resizing gives a tensor elements of its own"),
        }
    }

    /// Lets go of the pages of a file that hold the elements, if they are in one: they come back when they are read.
    pub(crate) fn release(&self) {
        match &self.data {
            Data::F32(data) => data.release(),
            Data::I32(data) => data.release(),
            Data::I64(data) => data.release(),
            Data::Stored(data) => data.release(),
        }
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Tensor) -> bool {
        let is_equal = match (&self.data, &other.data) {
            (Data::I32(data), Data::I32(other)) => data == other,
            (Data::I64(data), Data::I64(other)) => data == other,
            _ => matches!((self.as_f32(), other.as_f32()), (Ok(floats), Ok(other)) if floats == other),
        };
        self.shape == other.shape && is_equal
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, DType, MappedFile, Source, Tensor, TensorError};

    #[test]
    fn shapes_and_elements_must_fit() {
        assert_eq!(
            Tensor::f32(&[2, 2], vec![0.0; 5]),
            Err(TensorError::Length { shape: vec![2, 2], expected: 4, found: 5 })
        );
        let huge = [usize::MAX, 2];
        assert_eq!(Tensor::i32(&huge, vec![]), Err(TensorError::TooLarge { shape: huge.to_vec() }));
        let huge = [isize::MAX as usize / 4 + 1];
        assert_eq!(Tensor::zeros(DType::F32, &huge), Err(TensorError::TooLarge { shape: huge.to_vec() }));
    }

    #[test]
    fn empty_and_scalar_shapes_are_shapes() {
        assert!(Tensor::f32(&[3, 0, usize::MAX], vec![]).unwrap().is_empty());
        assert_eq!(Tensor::i64(&[], vec![7]).unwrap().as_i64(), Ok([7].as_slice()));
    }

    #[test]
    fn elements_are_read_as_what_they_are() {
        let ids = Tensor::i32(&[1], vec![7]).unwrap();
        assert_eq!(ids.as_i32(), Ok([7].as_slice()));
        assert_eq!(ids.as_f32(), Err(TensorError::DType { expected: DType::F32, found: DType::I32 }));
        assert_eq!(ids.as_i64().unwrap_err().to_string(), "the tensor's elements are i32, expected i64");
    }

    #[test]
    fn stored_floats_are_made_when_they_are_asked_for() {
        struct Halves;
        impl Source for Halves {
            fn read(&self, first: usize, to: &mut [f32]) {
                to.iter_mut().enumerate().for_each(|(i, to)| *to = (first + i) as f32 / 2.0);
            }
        }
        let stored = || Tensor::stored(&[2, 2], Halves).unwrap();
        let floats = Tensor::f32(&[2, 2], vec![0.0, 0.5, 1.0, 1.5]).unwrap();
        assert_eq!((stored().dtype(), stored().len(), stored().shape()), (DType::F32, 4, [2, 2].as_slice()));
        assert_eq!(stored(), floats);
        assert_ne!(stored(), Tensor::stored(&[4], Halves).unwrap());
        assert_eq!(*stored().to_floats().unwrap(), floats);
        assert!(stored().to_floats().unwrap().as_stored().is_none());
        let (mut changed, kept) = (stored(), stored());
        changed.as_f32_mut().unwrap()[0] = 7.0;
        assert_eq!(changed.as_f32().unwrap(), [7.0, 0.5, 1.0, 1.5]);
        assert_ne!(kept.handle(), kept.address().unwrap(), "no elements at the handle");
        assert_eq!(kept.address().unwrap().cast_const(), kept.as_f32().unwrap().as_ptr().cast());
        let mut output = stored();
        assert!(output.resize(DType::F32, [1].into_iter()));
        assert_eq!(output, Tensor::f32(&[1], vec![0.0]).unwrap());
        let huge = [usize::MAX, 2];
        assert_eq!(Tensor::stored(&huge, Halves), Err(TensorError::TooLarge { shape: huge.to_vec() }));
        assert!(Tensor::stored(&[3, 0], Halves).unwrap().as_f32().unwrap().is_empty());
    }

    #[test]
    fn a_mapped_tensor_is_one_until_it_is_changed() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, [7_i32, -1].map(i32::to_le_bytes).concat()).unwrap();
        let file = Arc::new(MappedFile::open(&path).unwrap());
        let mapped = |dtype, shape: &[usize]| Tensor::mapped(dtype, shape, &file, 0..8);
        assert_eq!(mapped(DType::I32, &[2, 1]), Some(Tensor::i32(&[2, 1], vec![7, -1]).unwrap()));
        assert_eq!(mapped(DType::I64, &[]), Some(Tensor::i64(&[], vec![7 - (1 << 32)]).unwrap()));
        assert_eq!(mapped(DType::I32, &[3]), None, "another number of elements");
        assert_eq!(mapped(DType::F32, &[usize::MAX, 2]), None);

        let mut floats = mapped(DType::F32, &[2]).unwrap();
        floats.as_f32_mut().unwrap()[0] = 0.5;
        assert_eq!((floats.as_f32().unwrap()[0], file.bytes()[0]), (0.5, 7));
        let mut output = mapped(DType::I32, &[2]).unwrap();
        assert!(output.resize(DType::I32, [1].into_iter()));
        assert_eq!(output, Tensor::i32(&[1], vec![0]).unwrap());
        let mut written = mapped(DType::I32, &[2]).unwrap();
        assert_ne!(written.address_mut().cast_const(), file.bytes().as_ptr());
    }
}
