//! Random numbers that are the same on every platform. Every tensor has a stream of its own, told apart by its name,
//! so that adding one changes no other. Knows nothing about graphs.

use crate::DType;
use crate::value::{MAX_ELEMENTS, Value};
use ndarray::{ArrayD, IxDyn};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::f64::consts::TAU;

/// A stream of random numbers.
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of this name under a seed.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // FNV-1a, 64 bits: any hash that never changes would do.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        rng.set_stream(hash);
        Self(rng)
    }

    /// Uniform in `0 .. 1`, in steps of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller, 1958). From `libm`, since the standard library's differs by platform.
    pub fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.uniform()));
        radius * libm::cos(TAU * self.uniform())
    }

    /// Uniform in `0 .. limit`; 0 if the limit is.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The high half of the product; its bias is below limit / 2^64.
        ((u128::from(self.0.next_u64()) * u128::from(limit)) >> 64) as u64
    }
}

/// An array filled by `element`, or `None` if it does not fit into memory.
fn filled<T>(shape: &[usize], element: impl FnMut() -> T) -> Option<ArrayD<T>> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_ELEMENTS)?;
    let mut elements = Vec::new();
    elements.try_reserve_exact(count).ok()?;
    elements.extend(std::iter::repeat_with(element).take(count));
    ArrayD::from_shape_vec(IxDyn(shape), elements).ok()
}

/// Floats, rounded to what the element type can hold; `None` if they do not fit into memory.
pub(crate) fn reals(dtype: DType, shape: &[usize], mut element: impl FnMut() -> f64) -> Option<Value> {
    let round = |x: f64| if dtype == DType::F32 { f64::from(x as f32) } else { x };
    filled(shape, || round(element())).map(Value::Real)
}

/// Integers; `None` if they do not fit into memory.
pub(crate) fn integers(shape: &[usize], element: impl FnMut() -> i64) -> Option<Value> {
    filled(shape, element).map(Value::Int)
}
