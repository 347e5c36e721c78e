//! Tensors of half-precision floats, which become `f32` when they are needed, exactly. Knows nothing about the file's header.

use engraft_runtime::{MappedFile, Source};
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use std::ops::Range;
use std::sync::Arc;

/// What the two bytes of an element are.
type Widen = fn([u8; 2]) -> f32;

/// What elements of this type are as `f32`, if they are halves.
pub(super) fn widen(dtype: Dtype) -> Option<Widen> {
    match dtype {
        Dtype::F16 => Some(|bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => Some(|bytes| bf16::from_le_bytes(bytes).to_f32()),
        _ => None,
    }
}

/// Halves in a mapped file.
pub(super) struct Halves {
    pub(super) file: Arc<MappedFile>,
    /// Where they are, two bytes each, within the file.
    pub(super) bytes: Range<usize>,
    pub(super) widen: Widen,
}

impl Source for Halves {
    fn read(&self, first: usize, to: &mut [f32]) {
        let (halves, _) = self.file.bytes()[self.bytes.clone()].as_chunks();
        for (to, &half) in to.iter_mut().zip(&halves[first..]) {
            *to = (self.widen)(half);
        }
    }

    fn release(&self) {
        self.file.release(self.bytes.clone());
    }
}
