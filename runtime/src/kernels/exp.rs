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

#[cfg(test)]
mod tests {
    use super::super::{KernelSet, Lanes, portable};
    use super::exp;
    use crate::panels::LANE;

    type Exp = unsafe fn([f32; LANE]) -> [f32; LANE];

    #[inline(always)]
    unsafe fn of<L: Lanes>(mut x: [f32; LANE]) -> [f32; LANE] {
        // SAFETY: the caller's instructions; a lane is as long as the array.
        unsafe { exp(L::load(x.as_ptr())).store(x.as_mut_ptr()) };
        x
    }

    unsafe fn portable(x: [f32; LANE]) -> [f32; LANE] {
        // SAFETY: plain Rust runs on any CPU.
        unsafe { of::<portable::Floats>(x) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(x: [f32; LANE]) -> [f32; LANE] {
        // SAFETY: the instructions are this function's.
        unsafe { of::<super::super::avx2::Ymm>(x) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512(x: [f32; LANE]) -> [f32; LANE] {
        // SAFETY: the instructions are this function's.
        unsafe { of::<super::super::avx512::Zmm>(x) }
    }

    fn runnable() -> impl Iterator<Item = Exp> {
        #[cfg(target_arch = "x86_64")]
        let sets: [(KernelSet, Exp); 3] =
            [(KernelSet::Portable, portable), (KernelSet::Avx2, avx2), (KernelSet::Avx512, avx512)];
        #[cfg(not(target_arch = "x86_64"))]
        let sets: [(KernelSet, Exp); 1] = [(KernelSet::Portable, portable)];
        sets.into_iter().filter(|(set, _)| set.kernels().is_some()).map(|(_, exp)| exp)
    }

    #[test]
    fn it_is_as_exact_as_stated() {
        for exp in runnable() {
            let (mut worst, mut bits) = (0.0_f64, (-0.0_f32).to_bits());
            while f32::from_bits(bits) > -87.0 {
                let x: [f32; LANE] = std::array::from_fn(|i| f32::from_bits(bits + 61 * i as u32));
                // SAFETY: the CPU can run this set.
                for (x, y) in x.into_iter().zip(unsafe { exp(x) }) {
                    let exact = f64::from(x).exp();
                    worst = worst.max((f64::from(y) - exact).abs() / exact);
                }
                bits += 61 * LANE as u32;
            }
            assert!(worst <= 2e-7, "off by {worst:e}");
        }
    }

    #[test]
    fn ends_are_exact() {
        for exp in runnable() {
            let mut x = [0.0; LANE];
            x[1..7].copy_from_slice(&[-0.0, -87.8, -1e30, f32::MIN, f32::NEG_INFINITY, f32::NAN]);
            // SAFETY: the CPU can run this set.
            let y = unsafe { exp(x) };
            assert_eq!(y[..6], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
            assert!(y[6].is_nan());
        }
    }
}
