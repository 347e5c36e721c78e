//! Layer norms and RMS norms of rows that lie one after another. A few rows are taken together: they share what is read of
//! weight and bias, and none waits for another's sum, root or quotient.
//!
//! The mean comes first, then the mean square of what deviates from it: the mean of squares minus the square of the mean
//! would cancel. A row is summed in an order that its length alone decides, so its result is the same in any company.

use super::Lanes;
use crate::abi::{Center, LayerNorm};
use crate::panels::LANE;

/// Rows that are taken together.
const TOGETHER: usize = 4;
/// The longest rows that are taken together: they, and what is written, stay in the first-level cache from one pass to the
/// next.
const SHORT: u64 = 1024;

/// A row's elements less its center, in lanes.
#[derive(Clone, Copy)]
struct Deviations<L> {
    x: *const f32,
    n: usize,
    center: L,
    /// The center where the row's last lane has an element, 0 beyond its end.
    last_center: L,
}

/// How a deviation is added to a sum. A type, so that it is sure to be inlined into the loop over the lanes.
trait Addition {
    /// # Safety
    /// The CPU has the instructions of `L`.
    unsafe fn add<L: Lanes>(deviation: L, sum: L) -> L;
}

struct Plain;

impl Addition for Plain {
    #[inline(always)]
    unsafe fn add<L: Lanes>(deviation: L, sum: L) -> L {
        // SAFETY: the caller's instructions.
        unsafe { deviation.add(sum) }
    }
}

struct Squared;

impl Addition for Squared {
    #[inline(always)]
    unsafe fn add<L: Lanes>(deviation: L, sum: L) -> L {
        // SAFETY: the caller's instructions.
        unsafe { deviation.mul_add(deviation, sum) }
    }
}

/// Computes the norms.
///
/// # Safety
/// The CPU has the instructions of `L`; x and y have the rows, weight and bias a row or are null.
#[inline(always)]
pub(super) unsafe fn layer_norm<L: Lanes>(norm: &LayerNorm) {
    // As many sums of a row as hide the latency of an addition, where the registers have room for them.
    // SAFETY: as the caller's.
    unsafe {
        if L::ACCUMULATORS > 4 {
            all_rows::<L, 4>(norm);
        } else {
            all_rows::<L, 1>(norm);
        }
    }
}

#[inline(always)]
unsafe fn all_rows<L: Lanes, const SUMS: usize>(norm: &LayerNorm) {
    let rows = norm.rows as usize;
    let together = if norm.n <= SHORT { rows / TOGETHER * TOGETHER } else { 0 };
    // SAFETY: these are rows of the caller's.
    unsafe {
        for row in (0..together).step_by(TOGETHER) {
            some_rows::<L, TOGETHER, SUMS>(norm, row);
        }
        for row in together..rows {
            some_rows::<L, 1, SUMS>(norm, row);
        }
    }
}

/// `R` rows from `row` on.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn some_rows<L: Lanes, const R: usize, const SUMS: usize>(norm: &LayerNorm, row: usize) {
    let n = norm.n as usize;
    let (lanes, count) = (n / LANE * LANE, n as f32);
    // SAFETY: as the caller's; the rows lie one after another.
    unsafe {
        let (x, y) = (norm.x.add(row * n), norm.y.add(row * n));
        let zero = L::splat(0.0);
        let mut rows: [_; R] =
            std::array::from_fn(|r| Deviations { x: x.add(r * n), n, center: zero, last_center: zero });
        if norm.center == Center::Mean {
            let ones = [1.0; LANE];
            let last = L::load_first(ones.as_ptr(), n - lanes);
            let mut sums = [zero; R];
            for r in 0..R {
                sums[r] = rows[r].sum::<Plain, SUMS>();
            }
            for r in 0..R {
                rows[r].center = L::splat(sums[r].sum() / count);
                rows[r].last_center = rows[r].center.mul(last);
            }
        }
        let mut factors = [zero; R];
        for r in 0..R {
            factors[r] = rows[r].sum::<Squared, SUMS>();
        }
        for r in 0..R {
            let mean = factors[r].sum() / count;
            factors[r] = L::splat(1.0 / (mean + norm.epsilon).sqrt());
        }
        let mut at = 0;
        while at < lanes {
            let weight = if norm.weight.is_null() { None } else { Some(L::load(norm.weight.add(at))) };
            let bias = if norm.bias.is_null() { None } else { Some(L::load(norm.bias.add(at))) };
            for r in 0..R {
                let deviation = L::load(rows[r].x.add(at)).sub(rows[r].center);
                scaled(deviation.mul(factors[r]), weight, bias).store(y.add(r * n + at));
            }
            at += LANE;
        }
        let rest = n - lanes;
        if rest > 0 {
            let (weight, bias) = (norm.weight.wrapping_add(lanes), norm.bias.wrapping_add(lanes));
            let weight = if norm.weight.is_null() { None } else { Some(L::load_first(weight, rest)) };
            let bias = if norm.bias.is_null() { None } else { Some(L::load_first(bias, rest)) };
            for r in 0..R {
                let deviation = L::load_first(rows[r].x.add(lanes), rest).sub(rows[r].center);
                let y = y.add(r * n + lanes);
                scaled(deviation.mul(factors[r]), weight, bias).store_first(y, rest);
            }
        }
    }
}

/// `value · weight + bias`, as far as there are any.
#[inline(always)]
unsafe fn scaled<L: Lanes>(value: L, weight: Option<L>, bias: Option<L>) -> L {
    // SAFETY: the caller's instructions.
    unsafe {
        match (weight, bias) {
            (Some(weight), Some(bias)) => value.mul_add(weight, bias),
            (Some(weight), None) => value.mul(weight),
            (None, Some(bias)) => value.add(bias),
            (None, None) => value,
        }
    }
}

impl<L: Lanes> Deviations<L> {
    /// The sum that `A` makes of them, lane by lane: several sums, each of every so many lanes, then what is left.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
    unsafe fn sum<A: Addition, const SUMS: usize>(self) -> L {
        let (steps, lanes) = (self.n / (SUMS * LANE) * (SUMS * LANE), self.n / LANE * LANE);
        // SAFETY: the lanes lie in the row; the instructions are the caller's.
        unsafe {
            let mut sums = [L::splat(0.0); SUMS];
            let mut at = 0;
            while at < steps {
                for i in 0..SUMS {
                    sums[i] = A::add(L::load(self.x.add(at + i * LANE)).sub(self.center), sums[i]);
                }
                at += SUMS * LANE;
            }
            let mut sum = sums[0];
            for i in 1..SUMS {
                sum = sum.add(sums[i]);
            }
            while at < lanes {
                sum = A::add(L::load(self.x.add(at)).sub(self.center), sum);
                at += LANE;
            }
            if lanes < self.n {
                // Beyond the end there is nothing to deviate.
                sum = A::add(L::load_first(self.x.add(lanes), self.n - lanes).sub(self.last_center), sum);
            }
            sum
        }
    }
}
