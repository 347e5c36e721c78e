//! The exponential of what is not positive, as softmax takes it. Range reduction and minimax coefficients after Moshier's
//! Cephes (single precision).

use super::Lanes;
use std::f32::consts::LOG2_E;

/// 1.5 · 2²³ leaves the nearest integer to what is added in the low bits; 127 more, the bias of an exponent.
const MAGIC: f32 = 12_582_912.0 + 127.0;
/// ln 2 in two parts, the first exact in few bits, so that a small integer times it is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// `(exp(r) - 1 - r) / r²` for `|r| <= ln 2 / 2`, from the highest power down.
const TAIL: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `exp(x)` of each `x <= 0`, within 2e-7 of itself: 1 of 0, 0 below -87.7 and of minus infinity; a NaN stays one.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's instructions.
    unsafe {
        // x = n ln 2 + r; of -88, n is -127, whose biased exponent makes 0.
        let x = L::splat(-88.0).max(x);
        let shifted = x.mul_add(L::splat(LOG2_E), L::splat(MAGIC));
        let n = shifted.add(L::splat(-MAGIC));
        let r = LN_2.iter().fold(x, |r, &part| n.mul_add(L::splat(-part), r));
        let (&first, rest) = TAIL.split_first().unwrap_or((&0.0, &[]));
        let tail = rest.iter().fold(L::splat(first), |tail, &c| tail.mul_add(r, L::splat(c)));
        tail.mul_add(r.mul(r), r).add(L::splat(1.0)).mul(shifted.to_exponent())
    }
}
