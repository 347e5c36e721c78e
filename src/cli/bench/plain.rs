//! The bare layer and DoRA in plain loops, for single rows of the input: what the contenders must agree with before they
//! are timed. It shares no code with what it checks.
//!
//! `y_j = g_j (W_j · x + s B_j · (A x)) + bias_j` with `g_j = m_j / ‖W_j + s B_j A‖`, equation 5 of the DoRA paper
//! (<https://arxiv.org/abs/2402.09353>); the bare layer is `y_j = W_j · x + bias_j`.

use crate::cli::error::CliError;
use crate::cli::layer::{Layer, tensor};
use engraft::runtime::{Tensor, Weights};

/// A layer's values, and its gains.
pub struct Plain<'a> {
    layer: Layer,
    weight: &'a [f32],
    bias: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    gains: Vec<f64>,
}

/// One row of the outputs, `[1, out]`.
pub struct Row {
    /// The bare layer's.
    pub dense: Tensor,
    /// DoRA's.
    pub dora: Tensor,
}

impl<'a> Plain<'a> {
    /// The layer with these values.
    ///
    /// # Errors
    /// A value is missing or is not of floats.
    pub fn new(layer: Layer, weights: &'a Weights) -> Result<Self, CliError> {
        let floats = |name| floats(weights, name);
        let (weight, a, b) = (floats("weight")?, floats("lora_A")?, floats("lora_B")?);
        let mut plain = Self { layer, weight, bias: floats("bias")?, a, b, gains: Vec::new() };
        let magnitude = floats("magnitude")?;
        plain.gains = magnitude.iter().enumerate().map(|(j, &m)| f64::from(m) / plain.norm(j)).collect();
        Ok(plain)
    }

    /// `‖W_j + s B_j A‖`
    fn norm(&self, j: usize) -> f64 {
        let Layer { inputs, rank, .. } = self.layer;
        let mut row: Vec<f64> = self.weight[j * inputs..][..inputs].iter().map(|&w| f64::from(w)).collect();
        for (k, a) in self.a.chunks_exact(inputs).enumerate() {
            let factor = self.layer.scale() * f64::from(self.b[j * rank + k]);
            row.iter_mut().zip(a).for_each(|(w, &a)| *w += factor * f64::from(a));
        }
        row.iter().map(|w| w * w).sum::<f64>().sqrt()
    }

    /// The outputs for one row of the input.
    ///
    /// # Errors
    /// None for a row of the layer's.
    pub fn row(&self, x: &[f32]) -> Result<Row, CliError> {
        let Layer { inputs, rank, .. } = self.layer;
        let low: Vec<f64> =
            self.a.chunks_exact(inputs).map(|a| self.layer.scale() * dot(x.iter().zip(a))).collect();
        let (mut dense, mut dora) = (Vec::new(), Vec::new());
        for (j, w) in self.weight.chunks_exact(inputs).enumerate() {
            let (base, bias) = (dot(x.iter().zip(w)), f64::from(self.bias[j]));
            let b = &self.b[j * rank..][..rank];
            let update: f64 = b.iter().zip(&low).map(|(&b, &h)| f64::from(b) * h).sum();
            dense.push((base + bias) as f32);
            dora.push((self.gains[j] * (base + update) + bias) as f32);
        }
        let row_of = |row| Tensor::f32(&[1, self.layer.outputs], row);
        Ok(Row { dense: row_of(dense)?, dora: row_of(dora)? })
    }
}

fn dot<'a>(pairs: impl Iterator<Item = (&'a f32, &'a f32)>) -> f64 {
    pairs.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum()
}

/// The floats of the tensor `name`.
///
/// # Errors
/// It is missing or is not of floats.
fn floats<'a>(weights: &'a Weights, name: &'static str) -> Result<&'a [f32], CliError> {
    Ok(tensor(weights, name)?.as_f32()?)
}
