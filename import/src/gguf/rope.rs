//! The factors by which Llama 3.1 scales rope, which GGUF stores as a tensor, back to the few numbers that they were made
//! of. Knows nothing about files.

use super::error::MetadataError as Error;
use engraft_runtime::Tensor;
use serde_json::{Value as Json, json};
use std::f32::consts::PI;

/// The numbers of every Llama 3 that scales rope; only the factor differs among them (8 in 3.1, 32 in 3.2).
const LOW_FREQ_FACTOR: f32 = 1.0;
const HIGH_FREQ_FACTOR: f32 = 4.0;
const ORIGINAL_CONTEXT: f32 = 8192.0;

/// How far a stored factor may be from the formula's, relatively: both are computed in `f32` out of a power.
const TOLERANCE: f32 = 1e-4;

/// The scaling that these factors, one for each pair of a head's elements, are made of.
///
/// The formula is that of llama.cpp's conversion, out of transformers' `_compute_llama3_parameters`: a wave of
/// `2 pi / frequency` positions is left alone if the original context holds four of it, stretched by the factor if it
/// doesn't hold one, and in between interpolated. The longest wave's factor is the factor itself.
pub(super) fn llama3(tensor: &Tensor, head_dim: u64, theta: f64) -> Result<Json, Error> {
    if tensor.shape().len() != 1 || tensor.len() as u64 != head_dim / 2 {
        return Err(Error::RopeShape { found: tensor.shape().to_vec(), expected: head_dim / 2 });
    }
    let factors = tensor.as_f32().map_err(|source| Error::RopeRead { source })?;
    let factor = factors.last().copied().unwrap_or(1.0);
    for (index, &found) in factors.iter().enumerate() {
        let frequency = (theta as f32).powf(-(2.0 * index as f32) / head_dim as f32);
        let expected = expected(2.0 * PI / frequency, factor);
        // Written so that no NaN passes.
        let near = (found - expected).abs() <= TOLERANCE * expected.abs();
        if !near || !factor.is_finite() || factor < 1.0 {
            return Err(Error::RopeFactors { index, found, expected, factor });
        }
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW_FREQ_FACTOR,
        "high_freq_factor": HIGH_FREQ_FACTOR,
        "original_max_position_embeddings": ORIGINAL_CONTEXT as u64,
    }))
}

fn expected(wavelength: f32, factor: f32) -> f32 {
    if wavelength < ORIGINAL_CONTEXT / HIGH_FREQ_FACTOR {
        1.0
    } else if wavelength > ORIGINAL_CONTEXT / LOW_FREQ_FACTOR {
        factor
    } else {
        let smooth = (ORIGINAL_CONTEXT / wavelength - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, Json};
    use engraft_runtime::{Source, Tensor};

    fn llama3(factors: &[f32], head_dim: u64, theta: f64) -> Result<Json, Error> {
        super::llama3(&Tensor::f32(&[factors.len()], factors.to_vec()).unwrap(), head_dim, theta)
    }

    /// The factors of Llama 3.1 at a few pairs, computed in f64 apart from this.
    #[test]
    fn the_factors_of_llama_3_1_are_its_scaling() {
        let wavelength = |i: usize| 2.0 * std::f64::consts::PI * 500_000_f64.powf(i as f64 / 64.0);
        let factor = |i: usize| {
            let turns = 8192.0 / wavelength(i);
            let share = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
            (8.0 / (1.0 - share + 8.0 * share)) as f32
        };
        let mut factors: Vec<f32> = (0..64).map(factor).collect();
        let scaling = llama3(&factors, 128, 500_000.0).unwrap();
        assert_eq!((&scaling["factor"], &scaling["rope_type"]), (&8.0.into(), &"llama3".into()));
        assert!(factors.iter().any(|&f| f > 1.1 && f < 7.9), "some are in between");
        factors[30] *= 1.01;
        let message = llama3(&factors, 128, 500_000.0).unwrap_err().to_string();
        assert!(message.contains("`rope_freqs.weight`: factor 30"), "{message}");
        let message = llama3(&factors, 64, 500_000.0).unwrap_err().to_string();
        assert!(message.contains("[64], expected [32]"), "{message}");
        assert!(llama3(&[f32::NAN; 32], 64, 500_000.0).is_err());
    }

    /// More factors than any machine has memory for: the shape is right, so nothing is said of it.
    #[test]
    fn factors_that_there_is_no_memory_for_are_not_of_a_wrong_shape() {
        struct Ones;
        impl Source for Ones {
            fn read(&self, _: usize, to: &mut [f32]) {
                to.fill(1.0);
            }
        }
        const MANY: usize = 1 << 60;
        let tensor = Tensor::stored(&[MANY], Ones).unwrap();
        let message = super::llama3(&tensor, 2 * MANY as u64, 500_000.0).unwrap_err().to_string();
        let expected = "tensor `rope_freqs.weight`: there is no memory for the";
        assert!(message.starts_with(expected), "{message}");
    }
}
