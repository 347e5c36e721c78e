//! A file's tensors as `f32`, as Hugging Face stores them. Knows nothing about the tokenizer.

use super::blocks::{self, Format};
use super::config::Model;
use super::container::TensorInfo;
use super::error::WeightsError as Error;
use super::names::{Role, role};
use engraft_runtime::{DType, MappedFile, Source, Tensor, Weights};
use std::ops::Range;
use std::sync::Arc;

/// Every parameter of the model.
pub(super) fn read(file: &Arc<MappedFile>, tensors: &[TensorInfo], model: &Model) -> Result<Weights, Error> {
    let mut weights = Weights::new();
    for info in tensors {
        let unknown = || Error::Unknown {
            tensor: info.name.clone(),
            architecture: model.architecture.name(),
            blocks: model.blocks,
        };
        match role(&info.name, model).ok_or_else(unknown)? {
            Role::Config => {}
            Role::Parameter(name) => {
                weights.insert(name, read_tensor(file, info)?);
            }
            Role::Rotated(name, heads) => {
                weights.insert(name, rotated(file, info, heads, model.head_dim)?);
            }
        }
    }
    Ok(weights)
}

/// A tensor as `f32`: where it lies, if it is stored so, or else made when it is needed.
pub(super) fn read_tensor(file: &Arc<MappedFile>, info: &TensorInfo) -> Result<Tensor, Error> {
    if info.format.id == blocks::F32
        && let Some(tensor) = Tensor::mapped(DType::F32, &info.shape, file, info.bytes.clone())
    {
        return Ok(tensor);
    }
    stored(file, info, None)
}

fn stored(file: &Arc<MappedFile>, info: &TensorInfo, head: Option<usize>) -> Result<Tensor, Error> {
    let row = info.shape.last().copied().unwrap_or(1);
    let source = Blocks { file: Arc::clone(file), bytes: info.bytes.clone(), format: info.format, row, head };
    Tensor::stored(&info.shape, source).map_err(|source| Error::Tensor { tensor: info.name.clone(), source })
}

/// The elements of a tensor as blocks of a mapped file.
struct Blocks {
    file: Arc<MappedFile>,
    /// Where they are, within the file.
    bytes: Range<usize>,
    format: &'static Format,
    /// Elements of a row: whole blocks.
    row: usize,
    /// The rows of a head, if they are in another order than Hugging Face's.
    head: Option<usize>,
}

impl Source for Blocks {
    fn read(&self, first: usize, to: &mut [f32]) {
        let Format { elements, bytes, decode, .. } = *self.format;
        let row_bytes = self.row / elements * bytes;
        let tensor = &self.file.bytes()[self.bytes.clone()];
        for (row, to) in (first / self.row..).zip(to.chunks_exact_mut(self.row)) {
            let row = self.head.map_or(row, |head| stored_row(row, head));
            let stored = tensor[row * row_bytes..][..row_bytes].chunks_exact(bytes);
            to.chunks_exact_mut(elements).zip(stored).for_each(|(to, block)| decode(block, to));
        }
    }

    fn release(&self) {
        self.file.release(self.bytes.clone());
    }
}

/// The rows of q or k in the order of Hugging Face, whose rope turns element i of a head with element i + size/2.
fn rotated(file: &Arc<MappedFile>, info: &TensorInfo, heads: u64, size: u64) -> Result<Tensor, Error> {
    if heads.checked_mul(size) != Some(info.shape[0] as u64) {
        let (tensor, found) = (info.name.clone(), info.shape.clone());
        return Err(Error::Heads { tensor, found, heads, size });
    }
    stored(file, info, Some(size as usize))
}

/// Where a row of q or k is that is `row` in the order of Hugging Face, with heads of `size` rows.
///
/// GGUF's Llama turns neighbours, 2i with 2i + 1, so llama.cpp's conversion (`LlamaModel.permute` in
/// `convert_hf_to_gguf.py`) stores row `j size/2 + i` of each head as row `2i + j`, j being 0 or 1.
fn stored_row(row: usize, size: usize) -> usize {
    let (head, within) = (row / size, row % size);
    let (j, i) = (within / (size / 2), within % (size / 2));
    head * size + 2 * i + j
}
