//! A file's tensors as `f32`, as Hugging Face stores them. Knows nothing about the tokenizer.

use super::blocks;
use super::config::Model;
use super::container::TensorInfo;
use super::error::WeightsError as Error;
use super::names::{Role, role};
use engraft_runtime::{DType, MappedFile, Tensor, Weights};
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
                weights.insert(name, rotate(&read_rows(file, info)?, info, heads, model.head_dim)?);
            }
        }
    }
    Ok(weights)
}

/// A tensor as `f32`: where it lies, if it is stored so, or else a copy.
pub(super) fn read_tensor(file: &Arc<MappedFile>, info: &TensorInfo) -> Result<Tensor, Error> {
    if info.format.id == blocks::F32
        && let Some(tensor) = Tensor::mapped(DType::F32, &info.shape, file, info.bytes.clone())
    {
        return Ok(tensor);
    }
    tensor(info, read_rows(file, info)?)
}

fn tensor(info: &TensorInfo, elements: Vec<f32>) -> Result<Tensor, Error> {
    Tensor::f32(&info.shape, elements).map_err(|source| Error::Tensor { tensor: info.name.clone(), source })
}

/// A copy of the elements; the pages of the file are let go of.
fn read_rows(file: &Arc<MappedFile>, info: &TensorInfo) -> Result<Vec<f32>, Error> {
    let format = info.format;
    let bytes = &file.bytes()[info.bytes.clone()];
    let mut elements = reserve(info, bytes.len() / format.bytes * format.elements)?;
    let mut block = [0.0; 256];
    let block = &mut block[..format.elements];
    for stored in bytes.chunks_exact(format.bytes) {
        (format.decode)(stored, block);
        elements.extend_from_slice(block);
    }
    file.release(info.bytes.clone());
    Ok(elements)
}

fn reserve(info: &TensorInfo, count: usize) -> Result<Vec<f32>, Error> {
    let mut elements = Vec::new();
    elements
        .try_reserve_exact(count)
        .map_err(|_| Error::Memory { tensor: info.name.clone(), bytes: 4 * count as u64 })?;
    Ok(elements)
}

/// The rows of q or k in the order of Hugging Face, whose rope turns element i of a head with element i + size/2.
///
/// GGUF's Llama turns neighbours, 2i with 2i + 1, so llama.cpp's conversion (`LlamaModel.permute` in
/// `convert_hf_to_gguf.py`) stores row `j size/2 + i` of each head as row `2i + j`, j being 0 or 1. This undoes it.
fn rotate(elements: &[f32], info: &TensorInfo, heads: u64, size: u64) -> Result<Tensor, Error> {
    let rows = info.shape[0];
    if heads.checked_mul(size) != Some(rows as u64) {
        let (tensor, found) = (info.name.clone(), info.shape.clone());
        return Err(Error::Heads { tensor, found, heads, size });
    }
    let half = size as usize / 2;
    let width = elements.len() / rows;
    let mut rotated = reserve(info, elements.len())?;
    for row in 0..rows {
        let (head, within) = (row / (2 * half), row % (2 * half));
        let (j, i) = (within / half, within % half);
        let stored = head * 2 * half + 2 * i + j;
        rotated.extend_from_slice(&elements[stored * width..][..width]);
    }
    tensor(info, rotated)
}
