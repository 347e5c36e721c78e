//! Choosing the next token from its logits: the best one, or one at random. Knows nothing about models and texts.
//!
//! The order is that of Hugging Face's `generate`: the logits are divided by the temperature, then the smallest set of
//! tokens whose probability reaches `top_p` is kept, and one of them is drawn. The same seed draws the same tokens from
//! the same logits on every machine: the generator and the exponential function are the same everywhere.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use thiserror::Error;

/// Why no token could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum SamplingError {
    /// The temperature divides nothing.
    #[error("the temperature is {found}, expected a finite number above 0")]
    Temperature {
        /// The temperature.
        found: f64,
    },
    /// The probability is none.
    #[error("top_p is {found}, expected more than 0 and at most 1")]
    TopP {
        /// The probability.
        found: f64,
    },
    /// There is nothing to choose from.
    #[error("there are no logits, expected one for each token")]
    Empty,
    /// A logit is infinite or no number.
    #[error("the logit of token {token} is {found}, expected a finite number")]
    NotFinite {
        /// The token's id.
        token: usize,
        /// Its logit.
        found: f32,
    },
}

/// How to draw at random.
struct Draw {
    temperature: f64,
    top_p: f64,
    random: ChaCha8Rng,
}

/// Chooses tokens, one after the other.
///
/// ```
/// use engraft::pretrained::sampling::Sampler;
/// assert_eq!(Sampler::greedy().choose(&[0.5, 2.0, 2.0])?, 1);
/// // Token 0 alone has a probability of 0.6 and more.
/// let mut sampler = Sampler::seeded(1.0, 0.6, 42)?;
/// assert_eq!(sampler.choose(&[1.0, 0.0, -1.0])?, 0);
/// # Ok::<(), engraft::pretrained::sampling::SamplingError>(())
/// ```
pub struct Sampler {
    draw: Option<Draw>,
}

impl Sampler {
    /// Always chooses the token with the largest logit; among equals, the one with the lowest id.
    pub fn greedy() -> Self {
        Self { draw: None }
    }

    /// Draws tokens at random. A temperature below 1 prefers the likely ones more than the model does, one above 1 less.
    /// Of all tokens in order of their probability, and among equals of their ids, only the first ones are kept whose
    /// probabilities together reach `top_p`; 1 keeps all.
    ///
    /// # Errors
    /// The temperature is not finite and above 0, or `top_p` not above 0 and at most 1.
    pub fn seeded(temperature: f64, top_p: f64, seed: u64) -> Result<Self, SamplingError> {
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(SamplingError::Temperature { found: temperature });
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(SamplingError::TopP { found: top_p });
        }
        Ok(Self { draw: Some(Draw { temperature, top_p, random: ChaCha8Rng::seed_from_u64(seed) }) })
    }

    /// The id of the next token; `logits` has one for each id.
    ///
    /// # Errors
    /// There are no logits, or one is not finite.
    pub fn choose(&mut self, logits: &[f32]) -> Result<usize, SamplingError> {
        if let Some((token, &found)) = logits.iter().enumerate().find(|(_, logit)| !logit.is_finite()) {
            return Err(SamplingError::NotFinite { token, found });
        }
        let best = best(logits).ok_or(SamplingError::Empty)?;
        match &mut self.draw {
            None => Ok(best),
            Some(draw) => Ok(draw.choose(logits, best)),
        }
    }
}

/// The token with the largest of the logits, all finite; among equals the lowest id.
fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).reduce(|best, token| if logits[token] > logits[best] { token } else { best })
}

impl Draw {
    fn choose(&mut self, logits: &[f32], best: usize) -> usize {
        // A probability without its denominator: exp((logit - max) / temperature), at most 1.
        let max = f64::from(logits[best]);
        let weight = |&logit: &f32| libm::exp((f64::from(logit) - max) / self.temperature);
        let weights: Vec<f64> = logits.iter().map(weight).collect();
        let mut kept: Vec<usize> = (0..weights.len()).collect();
        if self.top_p < 1.0 {
            kept.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let enough = self.top_p * weights.iter().sum::<f64>();
            let mut reached = 0.0;
            // Kept is what stands behind less than enough, so at least the first.
            let needed = kept.iter().take_while(|&&token| {
                let is_needed = reached < enough;
                reached += weights[token];
                is_needed
            });
            let needed = needed.count();
            kept.truncate(needed);
        }
        let total: f64 = kept.iter().map(|&token| weights[token]).sum();
        let mut left = self.uniform() * total;
        for &token in &kept {
            if left < weights[token] {
                return token;
            }
            left -= weights[token];
        }
        // Rounding can leave a trace; the best token takes it.
        best
    }

    /// A number from 0 to below 1, with all the bits that an f64 has there.
    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
