//! Row norms of an adapted weight, `n_j = || W_j + sum_k B_jk A_k ||_2`, for one panel of outputs.
//!
//! A tile of `W + B A` is formed in registers, the outputs in lanes and a few inputs as its rows, and squared: nothing is
//! materialised, and nothing cancels. The squares of a few inputs are added up in 32 bits, and these sums in 64. An output
//! whose squares come near the ends of 32 bits is squared in 64 bits instead, so none over- or underflows.
//! The formula is the norm of DoRA's direction, equation 5 of the paper (<https://arxiv.org/abs/2402.09353>), per output row.

use super::Lanes;
use super::tile::{Ahead, Factor, TILE_ROWS, accumulate};
use crate::panels::{LANE, PANEL};
use std::ops::RangeInclusive;

/// How many inputs ahead of its use the panel, which is read once, is fetched; with as many steps as the rank.
const AHEAD: usize = 4 * TILE_ROWS;

/// Sums of squares that 32 bits served for: what is lost of smaller squares, at most 2^-126 each, is nothing beside the
/// least of them, and the greatest has room for a group's sum.
const EXACT: RangeInclusive<f64> = 1e-24..=1e30;

/// Inputs whose squares are added up in 32 bits: as many as the lowest tile has of a set that fuses multiply and add, so that
/// these agree to the last bit.
const GROUP: usize = 4;

/// One panel of the adapted weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormBlock {
    pub(crate) k: usize,
    pub(crate) rank: usize,
    /// The panel's padded width, a multiple of `LANE` and at most `PANEL`.
    pub(crate) width: usize,
    /// Its outputs, more than `width - LANE`.
    pub(crate) columns: usize,
    /// The panel of W, `[k, width]`.
    pub(crate) w: *const f32,
    /// `[rank, k]` with rows `a_stride` apart.
    pub(crate) a: *const f32,
    pub(crate) a_stride: usize,
    /// The panel of B, `[rank, width]`.
    pub(crate) b: *const f32,
    /// `[columns]`.
    pub(crate) n: *mut f32,
}

/// The sums of squares of a panel's outputs.
type Squares = [[f64; LANE]; PANEL / LANE];

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions of `L`, and the block's pointers are valid for the extents it gives.
#[inline(always)]
pub(super) unsafe fn row_norm<L: Lanes>(block: &NormBlock) {
    // SAFETY: as the caller's.
    let mut squares = unsafe { all_lanes::<L, false>(block) };
    // Also where one is no number.
    if !squares.as_flattened()[..block.columns].iter().all(|square| EXACT.contains(square)) {
        // SAFETY: as the caller's.
        let wide = unsafe { all_lanes::<L, true>(block) };
        for (square, wide) in squares.as_flattened_mut().iter_mut().zip(wide.as_flattened()) {
            if !EXACT.contains(square) {
                *square = *wide;
            }
        }
    }
    for (column, square) in squares.as_flattened()[..block.columns].iter().enumerate() {
        // SAFETY: `column` is one of the block's.
        unsafe { *block.n.add(column) = square.sqrt() as f32 };
    }
}

/// The sums of squares, `WIDE` in 64 bits throughout.
#[inline(always)]
unsafe fn all_lanes<L: Lanes, const WIDE: bool>(block: &NormBlock) -> Squares {
    let mut squares: Squares = [[0.0; LANE]; PANEL / LANE];
    // SAFETY: lanes lie inside the panel's width.
    unsafe {
        // Sums that don't fit into registers would be slower than a lane at a time.
        if block.width == PANEL && L::ACCUMULATORS >= TILE_ROWS * PANEL / LANE {
            all_inputs::<L, { PANEL / LANE }, WIDE>(block, 0, &mut squares);
        } else {
            for lane in 0..block.width / LANE {
                all_inputs::<L, 1, WIDE>(block, lane, &mut squares);
            }
        }
    }
    squares
}

/// The inputs in tiles: `WIDTH` lanes from `lane`.
#[inline(always)]
unsafe fn all_inputs<L: Lanes, const WIDTH: usize, const WIDE: bool>(
    block: &NormBlock,
    lane: usize,
    squares: &mut Squares,
) {
    let high = TILE_ROWS.min(L::ACCUMULATORS / WIDTH);
    let mut input = 0;
    // SAFETY: inputs stay below `block.k`.
    unsafe {
        while input < block.k {
            input += match high.min(block.k - input) {
                8 => tile::<L, 8, WIDTH, WIDE>(block, input, lane, squares),
                4.. => tile::<L, 4, WIDTH, WIDE>(block, input, lane, squares),
                _ => tile::<L, 1, WIDTH, WIDE>(block, input, lane, squares),
            };
        }
    }
}

/// One tile: `INPUTS` inputs by `WIDTH` lanes of outputs; returns `INPUTS`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn tile<L: Lanes, const INPUTS: usize, const WIDTH: usize, const WIDE: bool>(
    block: &NormBlock,
    input: usize,
    lane: usize,
    squares: &mut Squares,
) -> usize {
    // SAFETY: the tile lies inside the panel.
    unsafe {
        let w = block.w.add(input * block.width + lane * LANE);
        let mut sums = [[L::splat(0.0); WIDTH]; INPUTS];
        if block.rank > 0 {
            let a = Factor { at: block.a.add(input), row_stride: 1, step_stride: block.a_stride };
            let b = block.b.add(lane * LANE);
            let ahead = Ahead::only(w.wrapping_add(AHEAD * block.width));
            accumulate(&mut sums, a, b, block.width, block.rank, Some(ahead));
        }
        for v in 0..WIDTH {
            let mut wide = L::load_wide(&squares[lane + v]);
            let adapted = |p: usize| sums[p][v].add(L::load(w.add(p * block.width + v * LANE)));
            for group in (0..INPUTS).step_by(GROUP) {
                let mut sum = L::splat(0.0);
                for p in group..INPUTS.min(group + GROUP) {
                    let adapted = adapted(p);
                    if WIDE {
                        wide = L::wide_mul_add(adapted.widen(), adapted.widen(), wide);
                    } else {
                        sum = adapted.mul_add(adapted, sum);
                    }
                }
                if !WIDE {
                    wide = L::wide_mul_add(sum.widen(), L::wide(1.0), wide);
                }
            }
            L::store_wide(wide, &mut squares[lane + v]);
        }
    }
    INPUTS
}
