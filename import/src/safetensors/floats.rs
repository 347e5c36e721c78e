//! The types in which files hold floats: reading them into `f64` and rounding to them. Knows nothing about files.

use engraft_runtime::{Tensor, TensorError};
use safetensors::Dtype;
use std::fmt;
use std::str::FromStr;

/// A type in which a file holds floats.
///
/// ```
/// use engraft_import::safetensors::FloatType;
/// assert_eq!("bf16".parse(), Ok(FloatType::Bf16));
/// // A significand of 8 bits: the neighbours of 1 are 2^-7 and 2^-8 away.
/// assert_eq!(FloatType::Bf16.round(1.0 + 1.0 / 512.0), 1.0);
/// assert_eq!(FloatType::Bf16.unit_roundoff(), 1.0 / 256.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// IEEE's 32-bit float.
    F32,
    /// IEEE's 16-bit float.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
}

impl FloatType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The type that a file calls this; `None` if its elements are no floats, or of a type that is not read.
    pub fn from_stored(dtype: Dtype) -> Option<Self> {
        Self::ALL.into_iter().find(|float| float.stored() == dtype)
    }

    /// What a file calls it.
    pub fn stored(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// As people write it: `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// u: rounding moves a number by at most u times its size, unless the type's range ends there.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::F32 => f64::from(f32::EPSILON) / 2.0,
            Self::F16 => half::f16::EPSILON.to_f64() / 2.0,
            Self::Bf16 => half::bf16::EPSILON.to_f64() / 2.0,
        }
    }

    /// The number that a file of this type holds for `x`: the nearest `f32`, and of that the nearest one of the type.
    pub fn round(self, x: f64) -> f64 {
        let x = x as f32;
        match self {
            Self::F32 => f64::from(x),
            Self::F16 => half::f16::from_f32(x).to_f64(),
            Self::Bf16 => half::bf16::from_f32(x).to_f64(),
        }
    }

    /// Appends the bytes of what [`round`](Self::round) says.
    pub(crate) fn encode(self, numbers: &[f64], bytes: &mut Vec<u8>) {
        for &x in numbers {
            let x = x as f32;
            match self {
                Self::F32 => bytes.extend(x.to_le_bytes()),
                Self::F16 => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
                Self::Bf16 => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
            }
        }
    }

    fn decode(self, bytes: &[u8], numbers: &mut [f64]) {
        match self {
            Self::F32 => each(bytes, numbers, |b| f32::from_le_bytes(b).into()),
            Self::F16 => each(bytes, numbers, |b| half::f16::from_le_bytes(b).to_f64()),
            Self::Bf16 => each(bytes, numbers, |b| half::bf16::from_le_bytes(b).to_f64()),
        }
    }
}

fn each<const N: usize>(bytes: &[u8], numbers: &mut [f64], decode: impl Fn([u8; N]) -> f64) {
    let (chunks, _) = bytes.as_chunks();
    for (number, &chunk) in numbers.iter_mut().zip(chunks) {
        *number = decode(chunk);
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FloatType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|float| float.name() == text);
        found.ok_or_else(|| format!("expected f32, f16 or bf16, found `{text}`"))
    }
}

/// Floats where they lie, to be read as `f64`.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// In memory.
    Values(&'a [f32]),
    /// As a file holds them, little-endian.
    Bytes(FloatType, &'a [u8]),
}

impl<'a> Floats<'a> {
    /// A tensor's floats.
    ///
    /// # Errors
    /// [`TensorError::DType`].
    pub fn of(tensor: &'a Tensor) -> Result<Self, TensorError> {
        tensor.as_f32().map(Self::Values)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Bytes(float, bytes) => bytes.len() / float.bytes(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads as many as `numbers` has room for, from the index `begin`. What is not there leaves `numbers` as it is.
    pub(crate) fn read(&self, begin: usize, numbers: &mut [f64]) {
        match self {
            Self::Values(values) => {
                for (number, &value) in numbers.iter_mut().zip(values.get(begin..).unwrap_or_default()) {
                    *number = value.into();
                }
            }
            Self::Bytes(float, bytes) => {
                float.decode(bytes.get(begin * float.bytes()..).unwrap_or_default(), numbers);
            }
        }
    }
}
