//! Sine and cosine. The quarter turns are taken out in 64 bits, where that is exact enough for every argument up to
//! [`LIMIT`]; beyond it the result is NaN rather than wrong. Polynomials after Moshier's Cephes (single precision).

use super::Lanes;
use super::exp::{NEAREST, polynomial};
use super::unary::Elementwise;
use std::f32::consts::FRAC_2_PI;

/// The largest magnitude of an argument: the number of quarter turns is below 2²⁰.
const LIMIT: f32 = 1_048_576.0;
/// The first 33 bits of π/2, which times a number below 2²⁰ is exact in 64 bits, and the rest, to 86 bits in all.
const HALF_PI: [f64; 2] = [1.570_796_326_734_125_6, 6.077_100_506_506_192e-11];
/// `(sin(r) - r) / r³` and `(cos(r) - 1) / r²` in `r²`, for `|r| <= π/4`.
const SINE: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
/// See [`SINE`].
const COSINE: [f32; 4] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2, -0.5];

/// `sin(x)`
pub(super) struct Sin;

impl Elementwise for Sin {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's instructions.
        unsafe { sine(x, 0.0) }
    }
}

/// `cos(x)`
pub(super) struct Cos;

impl Elementwise for Cos {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's instructions.
        unsafe { sine(x, 1.0) }
    }
}

/// `sin(x + turns π/2)`, for turns 0 or 1: `x = n π/2 + r` with `|r|` about π/4 at most, and `n + turns` says which of sin(r)
/// and cos(r) it is, and whether negated.
#[inline(always)]
unsafe fn sine<L: Lanes>(x: L, turns: f32) -> L {
    // SAFETY: the caller's instructions.
    unsafe {
        // The low bits of a number as large as this count in ones.
        let shifted = x.mul_add(L::splat(FRAC_2_PI), L::splat(NEAREST));
        let n = shifted.sub(L::splat(NEAREST)).widen();
        // The first product is exact and so is the first difference: an x with n other than 0 is a multiple of 2⁻²⁴, and
        // the difference is below 1.
        let r = HALF_PI.iter().fold(x.widen(), |r, &part| L::wide_mul_add(n, L::wide(-part), r));
        let r = L::narrow(r);

        let square = r.mul(r);
        let sine = polynomial(square, &SINE).mul_add(square.mul(r), r);
        let cosine = polynomial(square, &COSINE).mul_add(square, L::splat(1.0));
        let turned = shifted.add(L::splat(turns));
        let chosen = turned.shift_left(31).by_sign(cosine, sine).flip_sign(turned.shift_left(30));

        let beyond = L::splat(LIMIT).sub(x.flip_sign(x));
        beyond.by_sign(L::splat(f32::NAN), chosen)
    }
}
