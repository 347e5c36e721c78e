//! A plain streaming read: floats are loaded in order and added up. A product of few rows reads its weight just as much, so
//! this is what it is measured by.
//!
//! One line of a step is fetched ahead, and no more: prefetchers of the CPU fetch the others, faster than instructions can ask
//! for them, where they are in a shared cache; but without any such hint they stay too close to what is read from memory.

use super::Lanes;
use crate::panels::{LANE, PANEL};

/// Lanes that are summed independently, as many as a panel has: enough that memory and not additions is waited for, and few
/// enough for the registers of every instruction set.
const SUMS: usize = PANEL / LANE;
/// How many floats ahead of its use a line is fetched into the second-level cache.
pub(super) const STREAM_AHEAD: usize = 3072;
/// Floats of one step of the read.
pub(crate) const STREAM_STEP: usize = SUMS * LANE;

/// The sum of `count` floats, a multiple of [`STREAM_STEP`].
///
/// # Safety
/// The CPU has the instructions of `L`, and `count` floats can be read from `from`.
#[inline(always)]
pub(super) unsafe fn stream<L: Lanes>(from: *const f32, count: usize) -> f32 {
    // SAFETY: each step reads `STREAM_STEP` floats, which lie below `count`; a prefetch may be of any address.
    unsafe {
        let mut sums = [L::splat(0.0); SUMS];
        for step in 0..count / STREAM_STEP {
            let here = from.add(step * STREAM_STEP);
            L::prefetch_far(here.wrapping_add(STREAM_AHEAD));
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(L::load(here.add(lane * LANE)));
            }
        }
        let mut total = [0.0; LANE];
        sums.into_iter().fold(L::splat(0.0), |total, sum| total.add(sum)).store(total.as_mut_ptr());
        total.iter().sum()
    }
}
