//! The exponential, `exp(x) = exp(r) 2ⁿ` with `x = n ln 2 + r` and `|r| <= ln 2 / 2`, in the forms that the kernels take
//! it in. The range reduction is that of Moshier's Cephes (single precision). And `2ˣ`, whose range
//! reduction is exact, and the bell of the normal distribution, whose is rounded once.

use super::Lanes;
use super::unary::Elementwise;
use std::f32::consts::LOG2_E;
use std::f64::consts::LN_2;

/// 1.5 · 2²³ leaves the nearest integer to what is added in the low bits.
pub(super) const NEAREST: f32 = 12_582_912.0;
/// What makes an exponent of an integer.
const BIAS: i32 = 127;
/// ln 2 in two parts, the first exact in few bits, so that a small integer times it is exact.
const PARTS: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// `(exp(r) - 1 - r) / r²` for `|r| <= ln 2 / 2`, from the highest power down: the polynomial with 1/2 at its end that
/// leaves the least relative error in `exp(r)`, 5e-10, found by Remez' exchange.
const TAIL: [f32; 6] = [1.736_595_3e-4, 1.393_325_7e-3, 8.337_815e-3, 4.166_648e-2, 1.666_664_8e-1, 0.5];

/// `2ʳ` for `|r| <= 1/2`, likewise, the polynomial with 1 at its end. Each coefficient was rounded before those of higher
/// powers were found; the relative error is 9.5e-8.
const POWER: [f32; 6] = [1.323_523_6e-3, 9.671_962e-3, 5.550_808_5e-2, 2.402_223_5e-1, 6.931_469_4e-1, 1.0];

/// 2 ln 2 to so many bits that up to 256 times it is exact; 2e-6 of itself less.
pub(super) const BELL_STEP: f32 = 1.386_291_5;
/// `2⁻ʳ` in `r BELL_STEP` for `|r| <= 1/2`, likewise, with 1 at its end; its relative error is 9.3e-8.
const BELL: [f32; 6] = [-2.591_199_6e-4, 2.618_629_5e-3, -2.083_463_2e-2, 1.249_984e-1, -5.000_009e-1, 1.0];

/// `2ⁿ`, where that is a normal number.
pub(super) const fn two_to(n: i32) -> f32 {
    f32::from_bits(((BIAS + n) as u32) << 23)
}

/// `n`, and a number whose low bits are the exponent of `2ⁿ⁺ᵖ`.
#[inline(always)]
unsafe fn exponent<L: Lanes>(x: L, p: i32) -> (L, L) {
    let magic = NEAREST + (BIAS + p) as f32;
    // SAFETY: the caller's instructions.
    unsafe {
        let shifted = x.mul_add(L::splat(LOG2_E), L::splat(magic));
        (shifted.sub(L::splat(magic)), shifted)
    }
}

/// `exp(r)` for `|r| <= ln 2 / 2`.
#[inline(always)]
unsafe fn near_zero<L: Lanes>(r: L) -> L {
    // SAFETY: the caller's instructions.
    unsafe { polynomial(r, &TAIL).mul_add(r.mul(r), r).add(L::splat(1.0)) }
}

/// `c₀ xⁿ + c₁ xⁿ⁻¹ + .. + cₙ` (Horner).
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn polynomial<L: Lanes>(x: L, coefficients: &[f32]) -> L {
    let (&first, rest) = coefficients.split_first().unwrap_or((&0.0, &[]));
    // SAFETY: the caller's instructions.
    unsafe { rest.iter().fold(L::splat(first), |sum, &c| sum.mul_add(x, L::splat(c))) }
}

/// `exp(x)`, to the ends of the range: numbers below the normal ones, 0 and infinity come out right; a NaN stays one.
pub(super) struct Exp;

impl Elementwise for Exp {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's instructions.
        unsafe {
            // Beyond these the result is 0 or infinity.
            let x = L::splat(89.0).min(L::splat(-104.0).max(x));
            let (n, _) = exponent(x, 0);
            // 2ⁿ is 2ᵃ · 2ᵇ with a about n / 2.
            let magic = L::splat(NEAREST + BIAS as f32);
            let half = n.mul_add(L::splat(0.5), magic);
            let other = n.sub(half.sub(magic)).add(magic);
            let r = PARTS.iter().fold(x, |r, &part| n.mul_add(L::splat(-part), r));
            near_zero(r).mul(half.shift_left(23)).mul(other.shift_left(23))
        }
    }
}

/// `2ˣ` of each `x <= 0`, within 2e-7 of itself: 1 of 0, 0 below -126.5 and of minus infinity; a NaN stays one. Each step
/// waits for the one before, so several lanes take each side by side.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
pub(super) unsafe fn powers_of_negative<L: Lanes, const N: usize>(mut x: [L; N]) -> [L; N] {
    // SAFETY: the caller's instructions.
    unsafe {
        let magic = L::splat(NEAREST + BIAS as f32);
        let (mut shifted, mut sums) = ([magic; N], [L::splat(POWER[0]); N]);
        for i in 0..N {
            // Of -127 the exponent makes 0.
            x[i] = L::splat(-127.0).max(x[i]);
        }
        for i in 0..N {
            shifted[i] = x[i].add(magic);
        }
        for i in 0..N {
            x[i] = x[i].sub(shifted[i].sub(magic));
        }
        for &c in &POWER[1..] {
            for i in 0..N {
                sums[i] = sums[i].mul_add(x[i], L::splat(c));
            }
        }
        for i in 0..N {
            sums[i] = sums[i].mul(shifted[i].shift_left(23));
        }
        sums
    }
}

/// `exp(x) · 2ᵖ`, where that is a normal number. What has to come out below the normal ones in the end is not rounded
/// there before.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn scaled<L: Lanes>(x: L, p: i32) -> L {
    // SAFETY: the caller's instructions.
    unsafe {
        let (n, shifted) = exponent(x, p);
        let r = PARTS.iter().fold(x, |r, &part| n.mul_add(L::splat(-part), r));
        near_zero(r).mul(shifted.shift_left(23))
    }
}

/// `2⁻ᵇᵃ · 2ᵖ` with `b = a / BELL_STEP`, all but `exp(-a²/2)`, where that is a normal number. With `a² = r - n BELL_STEP` all is
/// exact but one rounding of r: so nothing is lost where a² is large.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn bell<L: Lanes>(a: L, negative_b: L, p: i32) -> L {
    let magic = NEAREST + p as f32;
    // SAFETY: the caller's instructions.
    unsafe {
        let shifted = negative_b.mul_add(a, L::splat(magic));
        let n = shifted.sub(L::splat(magic));
        let r = a.square_add(n.mul(L::splat(BELL_STEP)));
        polynomial(r, &BELL).add_bits(shifted.shift_left(23))
    }
}

/// [`scaled`] of numbers of 64 bits.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn scaled_wide<L: Lanes>(x: L::Wide, p: i32) -> L {
    // SAFETY: the caller's instructions.
    unsafe {
        let (n, shifted) = exponent(L::narrow(x), p);
        let r = L::narrow(L::wide_mul_add(n.widen(), L::wide(-LN_2), x));
        near_zero(r).mul(shifted.shift_left(23))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KernelSet, Lanes, portable};
    use super::powers_of_negative;
    use crate::panels::LANE;

    type Power = unsafe fn([f32; LANE]) -> [f32; LANE];

    #[inline(always)]
    unsafe fn of<L: Lanes>(mut x: [f32; LANE]) -> [f32; LANE] {
        // SAFETY: the caller's instructions; a lane is as long as the array.
        unsafe { powers_of_negative([L::load(x.as_ptr())])[0].store(x.as_mut_ptr()) };
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

    fn runnable() -> impl Iterator<Item = Power> {
        #[cfg(target_arch = "x86_64")]
        let sets: [(KernelSet, Power); 3] =
            [(KernelSet::Portable, portable), (KernelSet::Avx2, avx2), (KernelSet::Avx512, avx512)];
        #[cfg(not(target_arch = "x86_64"))]
        let sets: [(KernelSet, Power); 1] = [(KernelSet::Portable, portable)];
        sets.into_iter().filter(|(set, _)| set.kernels().is_some()).map(|(_, power)| power)
    }

    #[test]
    fn it_is_as_exact_as_stated() {
        for power in runnable() {
            let (mut worst, mut bits) = (0.0_f64, (-0.0_f32).to_bits());
            while f32::from_bits(bits) > -126.0 {
                let x: [f32; LANE] = std::array::from_fn(|i| f32::from_bits(bits + 61 * i as u32));
                // SAFETY: the CPU can run this set.
                for (x, y) in x.into_iter().zip(unsafe { power(x) }) {
                    let exact = f64::from(x).exp2();
                    worst = worst.max((f64::from(y) - exact).abs() / exact);
                }
                bits += 61 * LANE as u32;
            }
            assert!(worst <= 2e-7, "off by {worst:e}");
        }
    }

    #[test]
    fn ends_are_exact() {
        for power in runnable() {
            let mut x = [0.0; LANE];
            x[1..7].copy_from_slice(&[-0.0, -126.6, -1e30, f32::MIN, f32::NEG_INFINITY, f32::NAN]);
            // SAFETY: the CPU can run this set.
            let y = unsafe { power(x) };
            assert_eq!(y[..6], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
            assert!(y[6].is_nan());
        }
    }
}
