//! Functions that go from one level to another, and the gates `x g(x)` made of those that go from 0 to 1: tanh, sigmoid, and
//! silu, gelu and gelu's approximation by tanh. Exponentials are kept within the normal numbers by a power of two until the
//! end, and large arguments are known to more than 32 bits, so that the tails are as exact as the rest.

use super::Lanes;
use super::exp::{BELL_STEP, bell, polynomial, scaled, scaled_wide, two_to};
use super::unary::Elementwise;

/// Below this, tanh is a polynomial.
const NEAR: f32 = 0.75;
/// `(tanh(x) - x) / x³` in `x²`, for `|x| < NEAR`: the polynomial that leaves the least relative error in tanh, 8e-9, found by
/// Remez' exchange.
const TANH: [f32; 6] =
    [1.736_937_4e-3, -7.657_258e-3, 2.145_203_6e-2, -5.389_272_4e-2, 1.333_269_5e-1, -3.333_331_6e-1];

/// c of `u = b / (c + b)` with `b = a / BELL_STEP`, where [`TAIL`] comes nearest.
const TAIL_SCALE: f32 = 3.0;
/// `a Φ(-a) / (u bell(a))` in `u - 1/2`, for a up to 14.5: the polynomial of degree 8 whose relative error is least, 4.6e-8, found
/// by linear programs, each coefficient rounded before those of higher powers were. Φ(-a) over [`bell`] falls off like
/// `1 / a`, so that a times it is all but constant for large a, as u is.
const TAIL: [f32; 9] = [
    1.079_809_8e-1,
    3.248_256_7e-1,
    -1.208_234_5e-1,
    -4.691_769_2e-1,
    1.218_524_6,
    -1.665_250_5,
    1.629_245,
    -1.238_135_1,
    7.580_864_4e-1,
];
/// [`TAIL`], negated, and scaled so as to undo [`NORMAL`].
const NEGATIVE_TAIL: [f32; 9] = {
    let (mut scaled, mut power) = (TAIL, 0);
    while power < TAIL.len() {
        scaled[power] *= -two_to(-NORMAL);
        power += 1;
    }
    scaled
};

/// The power of two by which the exponentials of logistic functions are scaled: of up to 110 they are normal numbers.
const LOGISTIC: i32 = -40;
/// The same for [`bell`] in [`Gelu`], of arguments up to 14.5: down to 2⁻¹⁵².
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
            // Beyond 14.5 the tail is 0.
            let a = magnitude(x, 14.5);
            let negative_b = a.mul(L::splat(-1.0 / BELL_STEP));
            let u = negative_b.div(negative_b.sub(L::splat(TAIL_SCALE)));
            let ratio = polynomial(u.sub(L::splat(0.5)), &NEGATIVE_TAIL);
            // x or 0; minus infinity less itself is no number.
            let linear = x.sub(x.min(L::splat(0.0)));
            bell(a, negative_b, NORMAL).mul(u).mul_add(ratio, linear)
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
