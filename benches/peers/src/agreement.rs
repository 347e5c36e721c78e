//! How far two outputs are apart, in numbers and in units of what is allowed. Knows nothing about where they come from.

/// How far an output is from what it should be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreement {
    /// The largest difference of two elements.
    pub largest_difference: f64,
    /// The largest difference in units of what is allowed there.
    pub tolerances: f64,
}

/// What is allowed, as people write it.
pub const TOLERANCE: &str = "1e-5 max(1, max|b|) + 1e-4 |b|";

impl Agreement {
    /// Compares element by element. A difference that is no number is infinitely large.
    pub fn of(found: &[f32], expected: &[f64]) -> Self {
        let largest = expected.iter().fold(1.0_f64, |largest, x| largest.max(x.abs()));
        let mut worst = Self::default();
        for (&found, &expected) in found.iter().zip(expected) {
            let difference = (f64::from(found) - expected).abs();
            let difference = if difference.is_nan() { f64::INFINITY } else { difference };
            worst.largest_difference = worst.largest_difference.max(difference);
            worst.tolerances = worst.tolerances.max(difference / (1e-5 * largest + 1e-4 * expected.abs()));
        }
        worst
    }

    /// Whether every difference is allowed.
    pub fn holds(self) -> bool {
        self.tolerances <= 1.0
    }
}
