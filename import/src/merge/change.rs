//! A tensor that changes: its numbers row by row, rounded to the type that is written, and how much of the change is left
//! then. Knows nothing about why it changes.

use super::error::MergeError;
use crate::safetensors::{FloatType, Floats, StoredTensor, Writer};

/// What was done to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It is the weight of an adapted module.
    Adapted,
    /// It is a bias, and an adapter's B has one, too.
    Bias,
    /// An adapter has another in its place.
    Replaced,
}

impl What {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adapted => "adapted",
            Self::Bias => "bias",
            Self::Replaced => "replaced",
        }
    }
}

/// A tensor that was changed.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedTensor {
    /// Its name in the file.
    pub tensor: String,
    /// What was done to it.
    pub what: What,
    /// The type in which it was written.
    pub dtype: FloatType,
    /// ‖W' - W‖ / ‖W‖; `None` if W is zero and W' is not.
    pub change: Option<f64>,
    /// How much of the change survives rounding: `1 - ‖(Q(W') - Q(W)) - (W' - W)‖ / ‖W' - W‖`, at least 0, where Q rounds to
    /// the type that is written. 1 if the change is written as it is, 0 if what rounding does to it is as large as the
    /// change itself: then it is gone, or drowned. 1 if there is no change. `None` of what was unmerged.
    ///
    /// (The share of the change that is left on average, `<Q(W') - Q(W), W' - W> / ‖W' - W‖²`, is not that: it is near 1
    /// also when each element is rounded away or doubled.)
    pub survival: Option<f64>,
}

/// The type of a tensor's floats.
pub(super) fn element_type(tensor: &StoredTensor<'_>) -> Result<FloatType, MergeError> {
    let found = tensor.dtype;
    let not = || MergeError::NotFloats { tensor: tensor.name.to_owned(), found };
    FloatType::from_stored(found).ok_or_else(not)
}

/// What is known of a change so far.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    tensor: String,
    dtype: FloatType,
    /// ‖W‖², ‖W' - W‖², and the square of what rounding does to that.
    base: f64,
    change: f64,
    error: f64,
}

impl Tally {
    pub(super) fn new(tensor: &str, dtype: FloatType) -> Self {
        Self { tensor: tensor.to_owned(), dtype, base: 0.0, change: 0.0, error: 0.0 }
    }

    /// Counts an element, and refuses one that the type cannot hold.
    fn add(&mut self, before: f64, after: f64) -> Result<(), MergeError> {
        let (rounded, dtype) = (self.dtype.round(after), self.dtype);
        if !rounded.is_finite() {
            return Err(MergeError::Range { tensor: self.tensor.clone(), dtype, found: after });
        }
        let change = after - before;
        let error = rounded - dtype.round(before) - change;
        self.base += before * before;
        self.change += change * change;
        self.error += error * error;
        Ok(())
    }

    pub(super) fn finish(self, what: What, is_merged: bool) -> MergedTensor {
        let Self { tensor, dtype, base, change, error } = self;
        let ratio = |part: f64, whole: f64| match (part == 0.0, whole > 0.0) {
            (true, _) => Some(0.0),
            (false, true) => Some((part / whole).sqrt()),
            (false, false) => None,
        };
        let survival = 1.0 - ratio(error, change).unwrap_or(0.0);
        let survival = is_merged.then_some(if change == 0.0 { 1.0 } else { survival.clamp(0.0, 1.0) });
        MergedTensor { tensor, what, dtype, change: ratio(change, base), survival }
    }
}

/// The numbers of a tensor that changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers<'a> {
    pub(super) stored: Floats<'a>,
    /// How many there should be.
    pub(super) expected: usize,
    /// How many are written at once.
    pub(super) width: usize,
}

impl Numbers<'_> {
    /// Writes the numbers, a part at a time, as `change` makes each part of what is stored.
    pub(super) fn write(
        self,
        tally: &mut Tally,
        writer: &mut Writer,
        mut change: impl FnMut(usize, &mut [f64]),
    ) -> Result<(), MergeError> {
        let Self { stored, expected, width } = self;
        let found = stored.len();
        if found != expected {
            return Err(MergeError::Size { tensor: tally.tensor.clone(), found, expected });
        }
        let (mut before, mut after, mut bytes) = (vec![0.0; width], vec![0.0; width], Vec::new());
        for (part, begin) in (0..expected).step_by(width.max(1)).enumerate() {
            let width = width.min(expected - begin);
            let (before, after) = (&mut before[..width], &mut after[..width]);
            stored.read(begin, before);
            after.copy_from_slice(before);
            change(part, after);
            for (&before, &after) in before.iter().zip(after.iter()) {
                tally.add(before, after)?;
            }
            bytes.clear();
            tally.dtype.encode(after, &mut bytes);
            writer.write(&bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Tally, What};
    use crate::safetensors::FloatType;

    /// How much of `change`, in units of bf16's step above 1, survives.
    fn survival(changes: &[f64]) -> f64 {
        let mut tally = Tally::new("w", FloatType::Bf16);
        for change in changes {
            tally.add(1.0, 1.0 + change / 128.0).unwrap();
        }
        tally.finish(What::Adapted, true).survival.unwrap()
    }

    #[test]
    fn what_survives_is_what_rounding_leaves_as_it_was() {
        assert_eq!(survival(&[1.0, -3.0]), survival(&[0.0]));
        assert_eq!(survival(&[2.0]), 1.0);
        // Rounded away.
        assert_eq!(survival(&[0.4, 0.25]), 0.0);
        // 0.6 becomes 1: 0.4 of 0.6 is wrong.
        assert!((survival(&[0.6]) - 1.0 / 3.0).abs() < 1e-12);
        // Half is rounded away and half doubled; on average the change is all there.
        assert!(survival(&[0.5001, 0.4999]) < 0.001);
    }

    #[test]
    fn a_change_is_measured_by_the_base() {
        let change = |before: f64, after: f64| {
            let mut tally = Tally::new("w", FloatType::F32);
            tally.add(before, after).unwrap();
            tally.finish(What::Adapted, true).change
        };
        assert_eq!(change(-2.0, -3.0), Some(0.5));
        assert_eq!(change(0.0, 0.0), Some(0.0));
        assert_eq!(change(0.0, 1.0), None);
        let error = Tally::new("w", FloatType::F16).add(1.0, 70_000.0).unwrap_err();
        assert_eq!(error.to_string(), "tensor `w`: 7e4 is no finite f16");
    }
}
