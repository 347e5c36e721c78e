//! The arrays of a layer, the same for everybody, and what it should compute, in f64. Knows nothing about contenders.

use super::Shape;
use crate::error::Error;
use engraft::import::safetensors;
use engraft::runtime::{Tensor, Weights};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// Rows of an output that are compared with f64, spread over the batch: all of them would take longer than all the rest.
const CHECKED_ROWS: usize = 4;

/// LoRA's alpha; the scale is alpha / r.
pub const ALPHA: f64 = 16.0;

/// A linear layer with a DoRA adapter, and inputs for the largest batch.
pub struct Layer {
    /// Its sizes.
    pub shape: Shape,
    /// `weight` `[out, in]`, `bias` `[out]`, `lora_A` `[r, in]`, `lora_B` `[out, r]`, `magnitude` `[out]`.
    pub weights: Weights,
    /// Rows of x, `[batch, in]`.
    rows: Vec<f32>,
    /// The merged weight, `m (W + s B A) / norm`, `[out, in]`.
    merged: Vec<f64>,
}

impl Layer {
    /// Random values of ordinary sizes, the same in every run.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn new(shape: Shape, batch: usize) -> Result<Self, Error> {
        let Shape { inputs, outputs, rank } = shape;
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut uniform = |count: usize, size: f32| -> Vec<f32> {
            (0..count).map(|_| random.random_range(-size..size)).collect()
        };
        let fan_in = (3.0 / inputs as f32).sqrt();
        let weight = uniform(outputs * inputs, fan_in);
        let (a, b) = (uniform(rank * inputs, fan_in), uniform(outputs * rank, 0.1));
        let (bias, rows) = (uniform(outputs, 0.1), uniform(batch * inputs, 1.0));
        let mut magnitude = uniform(outputs, 0.1);
        for (m, row) in magnitude.iter_mut().zip(weight.chunks_exact(inputs)) {
            let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt();
            *m = norm * (1.0 + *m);
        }
        let merged = merge(shape, &weight, &a, &b, &magnitude);
        let mut weights = Weights::new();
        weights.insert("weight", Tensor::f32(&[outputs, inputs], weight)?);
        weights.insert("bias", Tensor::f32(&[outputs], bias)?);
        weights.insert("lora_A", Tensor::f32(&[rank, inputs], a)?);
        weights.insert("lora_B", Tensor::f32(&[outputs, rank], b)?);
        weights.insert("magnitude", Tensor::f32(&[outputs], magnitude)?);
        Ok(Self { shape, weights, rows, merged })
    }

    /// The first rows of x.
    ///
    /// # Errors
    /// None, for a batch that the layer was made for.
    pub fn input(&self, batch: usize) -> Result<Tensor, Error> {
        first_rows(&self.rows, self.shape.inputs, batch)
    }

    /// Writes what other processes and libraries read: all weights, x as `x`, and the merged weight as `merged`.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let Shape { inputs, outputs, .. } = self.shape;
        let merged = self.merged.iter().map(|&w| w as f32).collect();
        let mut arrays = vec![
            ("merged", Tensor::f32(&[outputs, inputs], merged)?),
            ("x", self.input(self.rows.len() / inputs)?),
        ];
        arrays.extend(self.weights.iter().map(|(name, tensor)| (name, Tensor::clone(tensor))));
        Ok(safetensors::write(path, &arrays)?)
    }

    /// What the checked rows of y should be, with the adapter or by the base alone.
    ///
    /// # Errors
    /// The layer's own arrays are not what they are.
    pub fn expected(&self, is_adapted: bool, batch: usize) -> Result<Vec<f64>, Error> {
        let inputs = self.shape.inputs;
        let (bias, weight) = (self.array("bias")?, self.array("weight")?);
        let mut expected = Vec::with_capacity(CHECKED_ROWS * self.shape.outputs);
        for row in checked_rows(batch) {
            let x = &self.rows[row * inputs..][..inputs];
            for (output, &bias) in bias.iter().enumerate() {
                let range = output * inputs..(output + 1) * inputs;
                let product: f64 = if is_adapted {
                    dot(x, self.merged[range].iter().copied())
                } else {
                    dot(x, weight[range].iter().map(|&w| f64::from(w)))
                };
                expected.push(product + f64::from(bias));
            }
        }
        Ok(expected)
    }

    fn array(&self, name: &str) -> Result<&[f32], Error> {
        let missing = || Error::NoArray { name: name.to_owned(), place: "the layer".to_owned() };
        Ok(self.weights.get(name).ok_or_else(missing)?.as_f32()?)
    }
}

/// The rows of a batch that are compared with f64.
pub fn checked_rows(batch: usize) -> impl Iterator<Item = usize> {
    let count = batch.min(CHECKED_ROWS);
    (0..count).map(move |i| if count == 1 { 0 } else { i * (batch - 1) / (count - 1) })
}

/// The first rows of a matrix of so many columns.
///
/// # Errors
/// None, for a matrix that has as many.
pub fn first_rows(matrix: &[f32], columns: usize, rows: usize) -> Result<Tensor, Error> {
    Ok(Tensor::f32(&[rows, columns], matrix[..rows * columns].to_vec())?)
}

fn dot(x: &[f32], w: impl Iterator<Item = f64>) -> f64 {
    x.iter().zip(w).map(|(&x, w)| f64::from(x) * w).sum()
}

/// Weight DoRA (arXiv 2402.09353, eq. 5), merged: each output's row of `W + s B A`, scaled to the length m.
fn merge(shape: Shape, weight: &[f32], a: &[f32], b: &[f32], magnitude: &[f32]) -> Vec<f64> {
    let Shape { inputs, rank, .. } = shape;
    let scale = ALPHA / rank as f64;
    let mut merged: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
    for ((row, b), &m) in merged.chunks_exact_mut(inputs).zip(b.chunks_exact(rank)).zip(magnitude) {
        for (&b, a) in b.iter().zip(a.chunks_exact(inputs)) {
            row.iter_mut().zip(a).for_each(|(w, &a)| *w += scale * f64::from(b) * f64::from(a));
        }
        let gain = f64::from(m) / row.iter().map(|w| w * w).sum::<f64>().sqrt();
        for w in row {
            *w *= gain;
        }
    }
    merged
}
