//! Tensors of half-precision floats, which become `f32` when they are needed, exactly. Knows nothing about the file's header.

use engraft_runtime::{MappedFile, Source};
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use std::ops::Range;
use std::sync::Arc;

/// Writes as many elements, each of two bytes, as `f32`.
type Widen = fn(&[[u8; 2]], &mut [f32]);

/// What widens elements of this type, if they are halves.
pub(super) fn widen(dtype: Dtype) -> Option<Widen> {
    match dtype {
        Dtype::F16 => Some(|halves, to| each(halves, to, |half| f16::from_le_bytes(half).to_f32())),
        Dtype::BF16 => Some(|halves, to| each(halves, to, |half| bf16::from_le_bytes(half).to_f32())),
        _ => None,
    }
}

fn each(halves: &[[u8; 2]], to: &mut [f32], widen: impl Fn([u8; 2]) -> f32) {
    for (to, &half) in to.iter_mut().zip(halves) {
        *to = widen(half);
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
        (self.widen)(&halves[first..], to);
    }

    fn release(&self) {
        self.file.release(self.bytes.clone());
    }
}
