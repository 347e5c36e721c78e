//! Functions that go from one level to another, and the gates `x g(x)` made of those that go from 0 to 1: tanh, sigmoid, and
//! silu, gelu and gelu's approximation by tanh. Exponentials are kept within the normal numbers by a power of two until the
//! end, and large arguments are known to more than 32 bits, so that the tails are as exact as the rest.

use super::Lanes;
use super::exp::{polynomial, scaled, scaled_sum, scaled_wide, two_to};
use super::unary::Elementwise;

/// Below this, tanh is a polynomial.
const NEAR: f32 = 0.75;
/// `(tanh(x) - x) / x³` in `x²`, for `|x| < NEAR`: the polynomial that leaves the least relative error in tanh, 8e-9, found by
/// Remez' exchange.
const TANH: [f32; 6] =
    [1.736_937_4e-3, -7.657_258e-3, 2.145_203_6e-2, -5.389_272_4e-2, 1.333_269_5e-1, -3.333_331_6e-1];

/// p of `u = p a / (1 + p a)`, where [`MILLS`] comes nearest.
const MILLS_SCALE: f32 = 17.0 / 64.0;
/// `exp(a²/2) Φ(-a) / (1 - u)` in `u - 1/2`, for a up to 15: the polynomial of degree 8 whose relative error is least, 4e-8,
/// found by Remez' exchange. Φ(-a) over its exponential falls off like `1 / a`, as 1 - u does.
const MILLS: [f32; 9] = [
    3.045_948_8e-2,
    1.948_627e-2,
    -7.122_850_4e-2,
    6.621_206e-3,
    1.647_850_3e-1,
    -3.263_977e-1,
    3.772_311_5e-1,
    -3.131_313_3e-1,
    1.993_808_9e-1,
];

/// The power of two by which the exponentials of logistic functions are scaled: of up to 110 they are normal numbers.
const LOGISTIC: i32 = -40;
/// The same for the exponentials of [`Gelu`], of down to -112.5.
const NORMAL: i32 = 64;

/// `√(8/π)`, and times 0.044715: twice what `gelu_tanh` takes the tanh of is `x (√(8/π) + 0.044715 √(8/π) x²)`.
const GELU_TANH: [f64; 2] = [1.595_769_121_605_730_8, 0.071_354_816_272_600_25];

/// `|x|`, at most `most`.
#[inline(always)]
unsafe fn magnitude<L: Lanes>(x: L, most: f32) -> L {
    // SAFETY: the caller's instructions.
    unsafe { L::splat(most).min(x.flip_sign(x)) }
}

/// `tanh(x)`: near 0 an odd polynomial, elsewhere `1 - 2 / (exp(2|x|) + 1)` with the sign of x.
pub(super) struct Tanh;

impl Elementwise for Tanh {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's instructions.
        unsafe {
            let square = x.mul(x);
            let near = polynomial(square, &TANH).mul_add(square.mul(x), x);
            // Beyond 10 it is 1 as far as can be told.
            let (a, one) = (magnitude(x, 10.0), L::splat(1.0));
            let fraction = L::splat(2.0).div(scaled(a.add(a), 0).add(one));
            let far = one.sub(fraction).flip_sign(x);
            a.sub(L::splat(NEAR)).by_sign(near, far)
        }
    }
}

/// `1 + e`, both scaled by `2ᵖ` with [`LOGISTIC`] for p.
#[inline(always)]
unsafe fn one_and<L: Lanes>(e: L) -> L {
    // SAFETY: the caller's instructions.
    unsafe { e.add(L::splat(two_to(LOGISTIC))) }
}

/// `1 / (1 + exp(-x))`, which is `s = 1 / (1 + exp(|x|))` or `1 - s`.
pub(super) struct Sigmoid;

impl Elementwise for Sigmoid {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's instructions.
        unsafe {
            // Beyond 110 s is 0.
            let a = magnitude(x, 110.0);
            let s = L::splat(two_to(LOGISTIC)).div(one_and(scaled(a, LOGISTIC)));
            x.by_sign(s, L::splat(1.0).sub(s))
        }
    }
}

/// `x g(x)` of a g that goes from 0 to 1 and is as far from 1 as `g(-x)` is from 0: x or 0, less the tail `a g(-a)` with
/// `a = |x|`. Of minus infinity it is no number.
#[inline(always)]
unsafe fn gate<L: Lanes>(x: L, negative_tail: L) -> L {
    // SAFETY: the caller's instructions.
    unsafe { x.mul_add(x.by_sign(L::splat(0.0), L::splat(1.0)), negative_tail) }
}

/// `-a / (1 + e)`, of an e scaled by `2ᵖ` with [`LOGISTIC`] for p.
#[inline(always)]
unsafe fn negative_logistic_tail<L: Lanes>(a: L, e: L) -> L {
    // SAFETY: the caller's instructions.
    unsafe { a.div(one_and(e)).mul(L::splat(-two_to(LOGISTIC))) }
}

/// `x / (1 + exp(-x))`
pub(super) struct Silu;

impl Elementwise for Silu {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's instructions.
        unsafe {
            // Beyond 110 the tail is 0.
            let a = magnitude(x, 110.0);
            gate(x, negative_logistic_tail(a, scaled(a, LOGISTIC)))
        }
    }
}

/// `x Φ(x)`, Φ the cumulative distribution of the normal one.
pub(super) struct Gelu;

impl Elementwise for Gelu {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's instructions.
        unsafe {
            // Beyond 15 the tail is 0.
            let a = magnitude(x, 15.0);
            let (p, lower) = (MILLS_SCALE, two_to(-NORMAL));
            // 1 - u, which takes the sign and the scale of the tail, and u, which is exact near 0, where the ratio changes
            // most.
            let t = L::splat(-lower).div(a.mul_add(L::splat(p), L::splat(1.0)));
            let centred = a.mul(L::splat(-p / lower)).mul_add(t, L::splat(-0.5));
            let ratio = polynomial(centred, &MILLS).mul(t);
            let e = scaled_sum(a.square().map(|part| part.mul(L::splat(-0.5))), NORMAL);
            gate(x, a.mul(e).mul(ratio))
        }
    }
}

/// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, where `(1 + tanh(u)) / 2` is the sigmoid of `2 u`.
pub(super) struct GeluTanh;

impl Elementwise for GeluTanh {
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's instructions.
        unsafe {
            // Beyond 11 the tail is 0.
            let a = magnitude(x, 11.0);
            let (wide, [linear, cubic]) = (a.widen(), GELU_TANH.map(|c| L::wide(c)));
            let square = L::wide_mul_add(wide, wide, L::wide(0.0));
            let argument = L::wide_mul_add(L::wide_mul_add(square, cubic, linear), wide, L::wide(0.0));
            gate(x, negative_logistic_tail(a, scaled_wide(argument, LOGISTIC)))
        }
    }
}
