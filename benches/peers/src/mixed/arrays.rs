//! The arrays of a layer with as many adapters as a batch has rows, the same for everybody, and what each row should be, in
//! f64. Knows nothing about contenders.

use crate::contender::Meaning;
use crate::error::Error;
use crate::layers::{ALPHA, Shape, checked_rows, first_rows};
use engraft::import::safetensors;
use engraft::runtime::{Tensor, Weights};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::sync::Arc;

/// How many adapters there are where there are few.
pub const FEW: usize = 8;

/// A linear layer with adapters, and inputs for the largest batch.
pub struct Layer {
    /// Its sizes.
    pub shape: Shape,
    /// `weight` `[out, in]`, `bias` `[out]`.
    pub weights: Weights,
    /// One for each row of the largest batch.
    pub adapters: Vec<Adapter>,
    /// Rows of x, `[batch, in]`.
    rows: Vec<f32>,
}

/// An adapter: LoRA without its magnitude, DoRA with it.
pub struct Adapter {
    /// `[r, in]`
    pub a: Arc<Tensor>,
    /// `[out, r]`
    pub b: Arc<Tensor>,
    /// `[out]`
    pub magnitude: Arc<Tensor>,
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
        let (weight, bias) = (uniform(outputs * inputs, fan_in), uniform(outputs, 0.1));
        let rows = uniform(batch * inputs, 1.0);
        let norms = weight.chunks_exact(inputs).map(|row| row.iter().map(|w| w * w).sum::<f32>().sqrt());
        let norms: Vec<f32> = norms.collect();
        let mut adapters = Vec::with_capacity(batch);
        for _ in 0..batch.max(FEW) {
            let magnitude =
                uniform(outputs, 0.1).iter().zip(&norms).map(|(m, norm)| norm * (1.0 + m)).collect();
            adapters.push(Adapter {
                a: Arc::new(Tensor::f32(&[rank, inputs], uniform(rank * inputs, fan_in))?),
                b: Arc::new(Tensor::f32(&[outputs, rank], uniform(outputs * rank, 0.1))?),
                magnitude: Arc::new(Tensor::f32(&[outputs], magnitude)?),
            });
        }
        let mut weights = Weights::new();
        weights.insert("weight", Tensor::f32(&[outputs, inputs], weight)?);
        weights.insert("bias", Tensor::f32(&[outputs], bias)?);
        Ok(Self { shape, weights, adapters, rows })
    }

    /// LoRA's s.
    pub fn scale(&self) -> f64 {
        ALPHA / self.shape.rank as f64
    }

    /// The first rows of x.
    ///
    /// # Errors
    /// None, for a batch that the layer was made for.
    pub fn input(&self, batch: usize) -> Result<Tensor, Error> {
        first_rows(&self.rows, self.shape.inputs, batch)
    }

    /// Writes what other processes read: the layer, x as `x`, and A and B of the first few adapters as `lora_A.0` and so on.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut arrays = vec![("x".to_owned(), self.input(self.rows.len() / self.shape.inputs)?)];
        arrays.extend(self.weights.iter().map(|(name, tensor)| (name.to_owned(), Tensor::clone(tensor))));
        for (index, adapter) in self.adapters.iter().take(FEW).enumerate() {
            arrays.push((format!("lora_A.{index}"), Tensor::clone(&adapter.a)));
            arrays.push((format!("lora_B.{index}"), Tensor::clone(&adapter.b)));
        }
        let named: Vec<_> = arrays.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        Ok(safetensors::write(path, &named)?)
    }

    /// Which adapter a row has.
    pub fn choice(meaning: Meaning, row: usize) -> Option<usize> {
        match meaning {
            Meaning::Base | Meaning::Adapted => None,
            Meaning::FewDora | Meaning::FewLora => Some(row % FEW),
            Meaning::OwnDora => Some(row),
        }
    }

    /// What the checked rows of y should be.
    ///
    /// # Errors
    /// The layer's own arrays are not what they are.
    pub fn expected(&self, meaning: Meaning, batch: usize) -> Result<Vec<f64>, Error> {
        let mut expected = Vec::new();
        for row in checked_rows(batch) {
            let adapter = Self::choice(meaning, row).map(|index| &self.adapters[index]);
            expected.extend(self.row(row, adapter, meaning != Meaning::FewLora)?);
        }
        Ok(expected)
    }

    /// One row of y: `x (W + s B A)^T`, times `m / ||W + s B A||` if it is DoRA (arXiv 2402.09353, eq. 5), plus the bias.
    fn row(&self, row: usize, adapter: Option<&Adapter>, is_dora: bool) -> Result<Vec<f64>, Error> {
        let Shape { inputs, rank, .. } = self.shape;
        let (weight, bias) = (self.array("weight")?, self.array("bias")?);
        let x = &self.rows[row * inputs..][..inputs];
        let mut adapted = vec![0.0; inputs];
        let mut y = Vec::with_capacity(bias.len());
        for (output, &bias) in bias.iter().enumerate() {
            let w = &weight[output * inputs..][..inputs];
            adapted.iter_mut().zip(w).for_each(|(adapted, &w)| *adapted = f64::from(w));
            let mut gain = 1.0;
            if let Some(adapter) = adapter {
                let b = &adapter.b.as_f32()?[output * rank..][..rank];
                for (&b, a) in b.iter().zip(adapter.a.as_f32()?.chunks_exact(inputs)) {
                    let b = self.scale() * f64::from(b);
                    adapted.iter_mut().zip(a).for_each(|(adapted, &a)| *adapted += b * f64::from(a));
                }
                if is_dora {
                    let norm = adapted.iter().map(|w| w * w).sum::<f64>().sqrt();
                    gain = f64::from(adapter.magnitude.as_f32()?[output]) / norm;
                }
            }
            let product: f64 = x.iter().zip(&adapted).map(|(&x, w)| f64::from(x) * w).sum();
            y.push(gain * product + f64::from(bias));
        }
        Ok(y)
    }

    fn array(&self, name: &str) -> Result<&[f32], Error> {
        let missing = || Error::NoArray { name: name.to_owned(), place: "the layer".to_owned() };
        Ok(self.weights.get(name).ok_or_else(missing)?.as_f32()?)
    }
}
