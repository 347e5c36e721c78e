//! Multiplications and additions of registers alone: the most that a core can compute with an instruction set, whatever it
//! reads. Nothing that computes products with it is faster, so it is the bound where arithmetic binds.

use std::hint::black_box;

use super::Lanes;

/// What the number of fused operations is a multiple of: each step is one for every sum.
pub(crate) const PEAK_STEP: usize = 12;
/// How many sums there are where registers have no room for as many.
const SOME_SUMS: usize = 6;
const FEW_SUMS: usize = 3;

/// Adds up `count` products, lane by lane; `count` is a multiple of [`PEAK_STEP`].
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn peak<L: Lanes>(count: usize) -> f32 {
    // SAFETY: the caller's instructions.
    unsafe {
        match L::ACCUMULATORS {
            PEAK_STEP.. => sums::<L, PEAK_STEP>(count),
            SOME_SUMS.. => sums::<L, SOME_SUMS>(count),
            _ => sums::<L, FEW_SUMS>(count),
        }
    }
}

#[inline(always)]
unsafe fn sums<L: Lanes, const SUMS: usize>(count: usize) -> f32 {
    // SAFETY: the caller's instructions.
    unsafe {
        // Known to nobody else: the product is computed each time.
        let factor = L::splat(black_box(0.5));
        // Each begins elsewhere: equal ones would be computed once.
        let mut sums: [L; SUMS] = std::array::from_fn(|index| L::splat(index as f32));
        for _ in 0..count / SUMS {
            for sum in &mut sums {
                *sum = factor.mul_add(factor, *sum);
            }
        }
        sums.into_iter().fold(L::splat(0.0), |total, sum| total.add(sum)).sum()
    }
}
