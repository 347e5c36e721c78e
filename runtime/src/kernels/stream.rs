//! A plain streaming read: floats are loaded in order and added up, without prefetches. A product of few rows reads its
//! weight just as much, so this is what it is measured by.

use super::Lanes;
use crate::panels::LANE;

/// Lanes that are summed independently: enough that memory and not additions is waited for, and few enough for the
/// registers of every instruction set.
const SUMS: usize = 2;
/// Floats of one step of the read.
pub(crate) const STREAM_STEP: usize = SUMS * LANE;

/// The sum of `count` floats, a multiple of [`STREAM_STEP`].
///
/// # Safety
/// The CPU has the instructions of `L`, and `count` floats can be read from `from`.
#[inline(always)]
pub(super) unsafe fn stream<L: Lanes>(from: *const f32, count: usize) -> f32 {
    // SAFETY: each step reads `STREAM_STEP` floats, which lie below `count`.
    unsafe {
        let mut sums = [L::splat(0.0); SUMS];
        for step in 0..count / STREAM_STEP {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(L::load(from.add((step * SUMS + lane) * LANE)));
            }
        }
        let mut total = [0.0; LANE];
        sums.into_iter().fold(L::splat(0.0), |total, sum| total.add(sum)).store(total.as_mut_ptr());
        total.iter().sum()
    }
}
