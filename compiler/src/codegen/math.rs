//! The elementwise functions as code: arithmetic, and exp, tanh, erf as polynomials, for scalars and vectors alike (sine
//! and cosine are in `trig.rs`).
//! Range reductions and minimax coefficients after Moshier's Cephes (single precision); each function's error is
//! measured over its whole range in `tests/math.rs`. Knows no loops.

use super::emit::{Emit, Width};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use engraft_ir::ops::{Binary, Unary};
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LOG2_E};

/// Whether the function's code is long enough to keep a core busy by itself, and to need most of its registers.
pub(super) fn is_long(function: Unary) -> bool {
    matches!(
        function,
        Unary::Exp
            | Unary::Tanh
            | Unary::Sigmoid
            | Unary::Silu
            | Unary::Gelu
            | Unary::GeluTanh
            | Unary::Sin
            | Unary::Cos
    )
}

impl Emit<'_, '_> {
    /// A function of one value.
    pub(super) fn unary(&mut self, function: Unary, width: Width, x: Value) -> Value {
        match function {
            Unary::Neg => self.negate(width, x),
            Unary::Sqrt => self.b.ins().sqrt(x),
            Unary::Rsqrt => {
                let root = self.b.ins().sqrt(x);
                self.reciprocal(width, root)
            }
            Unary::Square => self.mul(x, x),
            Unary::Relu => {
                let zero = self.number(width, 0.0);
                self.choose(FloatCC::LessThan, x, zero, zero, x)
            }
            Unary::Exp => self.exp(width, x),
            Unary::Tanh => self.tanh(width, x),
            Unary::Sigmoid => self.sigmoid(width, x),
            Unary::Silu => {
                let gate = self.sigmoid(width, x);
                self.mul(x, gate)
            }
            Unary::Gelu => {
                let phi = self.normal_cdf(width, x);
                self.mul(x, phi)
            }
            Unary::GeluTanh => self.gelu_tanh(width, x),
            Unary::Sin => self.sine(width, x, 0),
            Unary::Cos => self.sine(width, x, 1),
        }
    }

    /// A function of two values.
    pub(super) fn binary(&mut self, function: Binary, a: Value, b: Value) -> Value {
        match function {
            Binary::Add => self.add(a, b),
            Binary::Sub => self.sub(a, b),
            Binary::Mul => self.mul(a, b),
            Binary::Div => self.div(a, b),
        }
    }

    /// `-x`. Vectors flip the sign with one number from memory; the instruction for it makes that number each time.
    fn negate(&mut self, width: Width, x: Value) -> Value {
        if width == Width::Scalar {
            return self.b.ins().fneg(x);
        }
        let (bits, sign) = (self.as_int(width, x), self.bits(width, i32::MIN));
        let bits = self.b.ins().bxor(bits, sign);
        self.as_float(width, bits)
    }

    /// `|x|`, as [`Self::negate`].
    pub(super) fn magnitude(&mut self, width: Width, x: Value) -> Value {
        if width == Width::Scalar {
            return self.b.ins().fabs(x);
        }
        let (bits, rest) = (self.as_int(width, x), self.bits(width, i32::MAX));
        let bits = self.b.ins().band(bits, rest);
        self.as_float(width, bits)
    }

    pub(super) fn reciprocal(&mut self, width: Width, x: Value) -> Value {
        let one = self.number(width, 1.0);
        self.div(one, x)
    }

    /// `c₀ xⁿ + c₁ xⁿ⁻¹ + .. + cₙ` (Horner).
    pub(super) fn polynomial(&mut self, width: Width, x: Value, coefficients: &[f32]) -> Value {
        let mut sum = self.number(width, coefficients[0]);
        for &coefficient in &coefficients[1..] {
            let c = self.number(width, coefficient);
            sum = self.mul_add(sum, x, c);
        }
        sum
    }

    /// `exp(x)`: `x = n ln 2 + r` with `|r| <= ln 2 / 2`, a polynomial in r, times `2ⁿ` in two factors, so that
    /// results below the normal range and infinity come out right. A NaN stays one.
    fn exp(&mut self, width: Width, x: Value) -> Value {
        // Beyond these the result is 0 or infinity in f32.
        let (least, most) = (self.number(width, -104.0), self.number(width, 89.0));
        let x = self.choose(FloatCC::LessThan, x, least, least, x);
        let x = self.choose(FloatCC::LessThan, most, x, most, x);
        // Adding 1.5 · 2²³ leaves the nearest integer in the low bits; 254 more, the bias of two exponents.
        let (log2_e, magic) = (self.number(width, LOG2_E), self.number(width, 12_582_912.0 + 254.0));
        let shifted = self.mul_add(x, log2_e, magic);
        let n = self.sub(shifted, magic);
        // ln 2 in two parts, the first exact in few bits, so that n times it is exact.
        let (high, low) = (self.number(width, -0.693_359_4), self.number(width, 2.121_944_4e-4));
        let r = self.mul_add(n, high, x);
        let r = self.mul_add(n, low, r);
        let coefficients =
            [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
        let tail = self.polynomial(width, r, &coefficients);
        let square = self.mul(r, r);
        let tail = self.mul_add(tail, square, r);
        let one = self.number(width, 1.0);
        let mantissa = self.add(tail, one);

        // 2ⁿ is 2ᵃ · 2ᵇ with a = ⌊n / 2⌋: the low bits are n + 254, and each half of that is a biased exponent. What
        // stands above them is shifted out.
        let bits = self.as_int(width, shifted);
        let first = self.b.ins().sshr_imm_s(bits, 1);
        let second = self.b.ins().isub(bits, first);
        let factors = [first, second].map(|exponent| {
            let bits = self.b.ins().ishl_imm_s(exponent, 23);
            self.as_float(width, bits)
        });
        let scaled = self.mul(mantissa, factors[0]);
        self.mul(scaled, factors[1])
    }

    /// `1 / (1 + exp(-x))`, for negative x as `exp(x) / (1 + exp(x))`, so that no exponential overflows and results
    /// near 0 are exact.
    fn sigmoid(&mut self, width: Width, x: Value) -> Value {
        let magnitude = self.magnitude(width, x);
        let negative = self.negate(width, magnitude);
        let e = self.exp(width, negative);
        let (zero, one) = (self.number(width, 0.0), self.number(width, 1.0));
        let numerator = self.choose(FloatCC::LessThan, x, zero, e, one);
        let sum = self.add(one, e);
        self.div(numerator, sum)
    }

    /// `tanh(x)`: near 0 an odd polynomial, elsewhere `1 - 2 / (exp(2|x|) + 1)` with the sign of x.
    fn tanh(&mut self, width: Width, x: Value) -> Value {
        let square = self.mul(x, x);
        let coefficients = [-5.704_989e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1];
        let series = self.polynomial(width, square, &coefficients);
        let cube = self.mul(square, x);
        let near = self.mul_add(series, cube, x);

        let magnitude = self.magnitude(width, x);
        let doubled = self.add(magnitude, magnitude);
        let e = self.exp(width, doubled);
        let (one, two) = (self.number(width, 1.0), self.number(width, 2.0));
        let sum = self.add(e, one);
        let fraction = self.div(two, sum);
        let far = self.sub(one, fraction);
        let far = self.with_sign_of(width, far, x);
        let limit = self.number(width, 0.625);
        self.choose(FloatCC::LessThan, magnitude, limit, near, far)
    }

    /// A non-negative value with the sign of another; there is no vector instruction for it.
    fn with_sign_of(&mut self, width: Width, value: Value, sign: Value) -> Value {
        let (value, sign) = (self.as_int(width, value), self.as_int(width, sign));
        let mask = self.bits(width, i32::MIN);
        let sign = self.b.ins().band(sign, mask);
        let bits = self.b.ins().bor(value, sign);
        self.as_float(width, bits)
    }

    /// `Φ(x) = (1 + erf(x / √2)) / 2`, from erfc where that is exact.
    fn normal_cdf(&mut self, width: Width, x: Value) -> Value {
        let root = self.number(width, FRAC_1_SQRT_2);
        let scaled = self.mul(x, root);
        let u = self.magnitude(width, scaled);
        let (half, one) = (self.number(width, 0.5), self.number(width, 1.0));

        // |u| < 1: erf is an odd polynomial.
        let square = self.mul(u, u);
        let coefficients = [
            7.853_861e-5,
            -8.010_194e-4,
            5.188_327_6e-3,
            -2.685_381_2e-2,
            1.128_358_5e-1,
            -3.761_262_6e-1,
            FRAC_2_SQRT_PI,
        ];
        let series = self.polynomial(width, square, &coefficients);
        let erf = self.mul(series, scaled);
        let near = self.mul_add(half, erf, half);

        let tail = self.erfc(width, u);
        let tail = self.mul(half, tail);
        let upper = self.sub(one, tail);
        let zero = self.number(width, 0.0);
        let far = self.choose(FloatCC::LessThan, x, zero, tail, upper);
        self.choose(FloatCC::LessThan, u, one, near, far)
    }

    /// `erfc(u)` for `u >= 1`: `exp(-u²) / u` times a polynomial in `1 / u²`.
    fn erfc(&mut self, width: Width, u: Value) -> Value {
        let square = self.mul(u, u);
        let negative = self.negate(width, square);
        let e = self.exp(width, negative);
        let inverse = self.reciprocal(width, u);
        let y = self.mul(inverse, inverse);
        let below_two = [
            2.326_82e-2,
            -1.387_039_4e-1,
            3.687_424_7e-1,
            -5.824_733e-1,
            6.210_004_6e-1,
            -4.944_515_3e-1,
            3.404_88e-1,
            -2.741_127e-1,
            5.638_259_4e-1,
        ];
        let from_two = [
            -1.047_766_4e1,
            1.297_72e1,
            -7.495_519,
            2.921_019,
            -1.015_265_3,
            4.218_463_4e-1,
            -2.820_767_5e-1,
            5.641_895e-1,
        ];
        let (low, high) = (self.polynomial(width, y, &below_two), self.polynomial(width, y, &from_two));
        let two = self.number(width, 2.0);
        let series = self.choose(FloatCC::LessThan, u, two, low, high);
        let product = self.mul(e, inverse);
        self.mul(product, series)
    }

    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, where `(1 + tanh(u)) / 2` is the sigmoid of `2 u`.
    fn gelu_tanh(&mut self, width: Width, x: Value) -> Value {
        let square = self.mul(x, x);
        let (cubic, one) = (self.number(width, 0.044_715), self.number(width, 1.0));
        let factor = self.mul_add(square, cubic, one);
        let inner = self.mul(factor, x);
        // 2 √(2/π)
        let root = self.number(width, 1.595_769);
        let doubled = self.mul(inner, root);
        let gate = self.sigmoid(width, doubled);
        self.mul(x, gate)
    }
}
