//! Sine and cosine as code, for scalars and vectors alike. The quarter turns are taken out in f64, where that is exact
//! enough for every f32 up to [`LIMIT`]; beyond it the result is NaN rather than wrong. Polynomials after Moshier's
//! Cephes (single precision); the errors are measured in `tests/math.rs`. Knows no loops.

use super::emit::{Emit, Width};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::{F32, F64};
use cranelift_codegen::ir::{InstBuilder, Value};
use std::f32::consts::FRAC_2_PI;

/// The largest magnitude of an argument: the number of quarter turns is below 2²⁰.
pub(super) const LIMIT: f32 = 1_048_576.0;

/// The first 33 bits of π/2: what a number below 2²⁰ times it is exact in f64.
const HALF_PI_HIGH: f64 = 1.570_796_326_734_125_6;

/// The rest of π/2, to 86 bits in all.
const HALF_PI_LOW: f64 = 6.077_100_506_506_192e-11;

impl Emit<'_, '_> {
    /// `sin(x + turns π/2)`, for turns 0 or 1: `x = n π/2 + r` with `|r|` about π/4 at most, and a polynomial of r that
    /// `n + turns` chooses: sin or cos, as it is or negated.
    pub(super) fn sine(&mut self, width: Width, x: Value, turns: i32) -> Value {
        // Adding 1.5 · 2²³ leaves the nearest integer in the low bits.
        let (quarters, magic) = (self.number(width, FRAC_2_PI), self.number(width, 12_582_912.0));
        let shifted = self.mul_add(x, quarters, magic);
        let n = self.sub(shifted, magic);
        let r = self.without_quarters(width, x, n);

        let square = self.mul(r, r);
        let series = self.polynomial(width, square, &[-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1]);
        let cube = self.mul(square, r);
        let sine = self.mul_add(series, cube, r);
        let series = self.polynomial(width, square, &[2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2, -0.5]);
        let one = self.number(width, 1.0);
        let cosine = self.mul_add(series, square, one);

        let (bits, turns) = (self.as_int(width, shifted), self.bits(width, turns));
        let turns = self.b.ins().iadd(bits, turns);
        let odd = self.b.ins().ishl_imm_s(turns, 31);
        let odd = self.b.ins().sshr_imm_s(odd, 31);
        let half = self.bits(width, 2);
        let half = self.b.ins().band(turns, half);
        let sign = self.b.ins().ishl_imm_s(half, 30);
        let (sine, cosine) = (self.as_int(width, sine), self.as_int(width, cosine));
        let both = self.b.ins().bxor(sine, cosine);
        let other = self.b.ins().band(both, odd);
        let chosen = self.b.ins().bxor(sine, other);
        let result = self.b.ins().bxor(chosen, sign);
        let result = self.as_float(width, result);

        let (magnitude, limit) = (self.magnitude(width, x), self.number(width, LIMIT));
        let nan = self.number(width, f32::NAN);
        self.choose(FloatCC::LessThanOrEqual, magnitude, limit, result, nan)
    }

    /// `x - n π/2`, rounded once to f32. In f64, `n` times the high part is exact and so is the first difference: an x
    /// with `n != 0` is a multiple of 2⁻²⁴, and the difference is below 1.
    fn without_quarters(&mut self, width: Width, x: Value, n: Value) -> Value {
        if width == Width::Scalar {
            let [x, n] = [x, n].map(|value| self.b.ins().fpromote(F64, value));
            let r = self.remainder(width, x, n);
            return self.b.ins().fdemote(F32, r);
        }
        let ends = [[x, n], [x, n].map(|value| self.upper_half(value))];
        let [low, high] = ends.map(|pair| {
            let [x, n] = pair.map(|value| self.b.ins().fvpromote_low(value));
            let r = self.remainder(width, x, n);
            self.b.ins().fvdemote(r)
        });
        self.halves(low, high)
    }

    fn remainder(&mut self, width: Width, x: Value, n: Value) -> Value {
        [HALF_PI_HIGH, HALF_PI_LOW].into_iter().fold(x, |rest, part| {
            let part = self.number64(width, part);
            let taken = self.mul(n, part);
            self.sub(rest, taken)
        })
    }
}
