//! One vector of a sentence's hidden states. Sums are taken in f64. Knows nothing about files.

use engraft_runtime::{DType, Tensor, TensorError};
use thiserror::Error;

/// How one vector is made of the tokens' vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean, over the tokens that the mask leaves.
    Mean,
    /// The first token's that the mask leaves: `[CLS]`.
    Cls,
}

/// Why hidden states could not be pooled.
#[derive(Debug, Error)]
pub enum PoolError {
    /// The hidden states are not one vector a token.
    #[error("the hidden states are {dtype} {shape:?}, expected f32 [batch, seq, dim]")]
    Hidden {
        /// Their element type.
        dtype: DType,
        /// Their shape.
        shape: Vec<usize>,
    },
    /// The mask is not one number a token.
    #[error("the mask is {dtype} {found:?}, expected a number for each token, {expected:?}")]
    Mask {
        /// Its element type.
        dtype: DType,
        /// Its shape.
        found: Vec<usize>,
        /// The first two of the hidden states' shape.
        expected: Vec<usize>,
    },
    /// The mask holds something between.
    #[error("the mask of token {token} in row {row} is {found}, expected 0 or 1")]
    MaskValue {
        /// The row.
        row: usize,
        /// The token.
        token: usize,
        /// What is there.
        found: f64,
    },
    /// The mask leaves no token of a row.
    #[error("the mask leaves no token of row {row}, expected at least one")]
    Empty {
        /// The row.
        row: usize,
    },
    /// What comes out is no vector of numbers.
    #[error("element {element} of row {row} is {found} after pooling, expected a finite number")]
    NotFinite {
        /// The row.
        row: usize,
        /// The element.
        element: usize,
        /// What is there.
        found: f64,
    },
    /// The result is no tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The smallest norm that is divided by, as in `torch.nn.functional.normalize`.
const EPSILON: f64 = 1e-12;

/// Pools hidden states of F32 `[batch, seq, dim]` to `[batch, dim]`, by a mask `[batch, seq]` of zeros and ones of any
/// element type: 1 where there is a token. With `normalize`, each row y becomes y / max(‖y‖₂, 1e-12).
///
/// # Errors
/// Shapes do not fit, the mask is neither 0 nor 1 or leaves nothing of a row, or the result is not finite.
///
/// ```
/// use engraft_import::sentence::{Pooling, pool};
/// use engraft_runtime::Tensor;
/// let hidden = Tensor::f32(&[1, 3, 2], vec![3.0, 0.0, 3.0, 8.0, 99.0, 99.0])?;
/// let mask = Tensor::i64(&[1, 3], vec![1, 1, 0])?;
/// assert_eq!(pool(&hidden, &mask, Pooling::Mean, false)?.as_f32()?, [3.0, 4.0]);
/// assert_eq!(pool(&hidden, &mask, Pooling::Mean, true)?.as_f32()?, [0.6, 0.8]);
/// assert_eq!(pool(&hidden, &mask, Pooling::Cls, false)?.as_f32()?, [3.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pool(hidden: &Tensor, mask: &Tensor, pooling: Pooling, normalize: bool) -> Result<Tensor, PoolError> {
    let bad_hidden = || PoolError::Hidden { dtype: hidden.dtype(), shape: hidden.shape().to_vec() };
    let &[batch, seq, dim] = hidden.shape() else { return Err(bad_hidden()) };
    if hidden.dtype() != DType::F32 {
        return Err(bad_hidden());
    }
    let states = hidden.as_f32()?;
    if mask.shape() != [batch, seq] {
        let (dtype, found) = (mask.dtype(), mask.shape().to_vec());
        return Err(PoolError::Mask { dtype, found, expected: vec![batch, seq] });
    }
    let mask = numbers(mask)?;
    let mut pooled = Vec::with_capacity(batch * dim);
    for row in 0..batch {
        let tokens = kept(row, &mask[row * seq..][..seq])?;
        let state = |&token: &usize| &states[(row * seq + token) * dim..][..dim];
        let used = match pooling {
            Pooling::Mean => &tokens[..],
            Pooling::Cls => &tokens[..1],
        };
        let mut sums = vec![0.0; dim];
        for state in used.iter().map(state) {
            for (sum, &x) in sums.iter_mut().zip(state) {
                *sum += f64::from(x);
            }
        }
        for sum in &mut sums {
            *sum /= used.len() as f64;
        }
        if let Some((element, &found)) = sums.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(PoolError::NotFinite { row, element, found });
        }
        let norm = if normalize { sums.iter().map(|x| x * x).sum::<f64>().sqrt().max(EPSILON) } else { 1.0 };
        pooled.extend(sums.iter().map(|x| (x / norm) as f32));
    }
    Ok(Tensor::f32(&[batch, dim], pooled)?)
}

/// The elements of a tensor of any type.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>, TensorError> {
    Ok(match tensor.dtype() {
        DType::F32 => tensor.as_f32()?.iter().copied().map(f64::from).collect(),
        DType::I32 => tensor.as_i32()?.iter().copied().map(f64::from).collect(),
        DType::I64 => tensor.as_i64()?.iter().map(|&x| x as f64).collect(),
    })
}

/// The tokens that a row's mask leaves, at least one.
fn kept(row: usize, mask: &[f64]) -> Result<Vec<usize>, PoolError> {
    if let Some((token, &found)) = mask.iter().enumerate().find(|(_, x)| ![0.0, 1.0].contains(*x)) {
        return Err(PoolError::MaskValue { row, token, found });
    }
    let tokens: Vec<_> = (0..mask.len()).filter(|&token| mask[token] == 1.0).collect();
    if tokens.is_empty() { Err(PoolError::Empty { row }) } else { Ok(tokens) }
}
