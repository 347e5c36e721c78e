//! Row norms of an adapted weight, `n_j = || W_j + sum_k B_jk A_k ||_2`, for one panel of outputs.
//!
//! Each tile of `W + B A` is squared in its registers: nothing is materialised, and nothing cancels. The squares of a few
//! inputs are added up in 32 bits, and these sums in 64. An output whose squares come near the ends of 32 bits is squared in
//! 64 bits instead, so none over- or underflows. The formula is the norm of DoRA's direction, equation 5 of the paper
//! (<https://arxiv.org/abs/2402.09353>), per output row.

use super::Lanes;
use super::adapted::{AdaptedPanel, Tiles, all_tiles};
use crate::panels::{LANE, PANEL};
use std::ops::RangeInclusive;

/// Sums of squares that 32 bits served for: what is lost of smaller squares, at most 2^-126 each, is nothing beside the
/// least of them, and the greatest has room for a group's sum.
const EXACT: RangeInclusive<f64> = 1e-24..=1e30;

/// Inputs whose squares are added up in 32 bits: as many as the lowest tile has of a set that fuses multiply and add, so that
/// these agree to the last bit.
const GROUP: usize = 4;

/// The norms of one panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormBlock {
    pub(crate) panel: AdaptedPanel,
    /// `[columns]`.
    pub(crate) n: *mut f32,
}

/// The sums of squares of a panel's outputs, with `WIDE` in 64 bits throughout.
struct Squares<const WIDE: bool>([[f64; LANE]; PANEL / LANE]);

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions of `L`, and the block's pointers are valid for the extents it gives.
#[inline(always)]
pub(super) unsafe fn row_norm<L: Lanes>(block: &NormBlock) {
    let columns = block.panel.columns;
    // SAFETY: as the caller's.
    let mut squares = unsafe { sums_of_squares::<L, false>(&block.panel) };
    // Also where one is no number.
    if !squares.as_flattened()[..columns].iter().all(|square| EXACT.contains(square)) {
        // SAFETY: as the caller's.
        let wide = unsafe { sums_of_squares::<L, true>(&block.panel) };
        for (square, wide) in squares.as_flattened_mut().iter_mut().zip(wide.as_flattened()) {
            if !EXACT.contains(square) {
                *square = *wide;
            }
        }
    }
    for (column, square) in squares.as_flattened()[..columns].iter().enumerate() {
        // SAFETY: `column` is one of the block's.
        unsafe { *block.n.add(column) = square.sqrt() as f32 };
    }
}

#[inline(always)]
unsafe fn sums_of_squares<L: Lanes, const WIDE: bool>(panel: &AdaptedPanel) -> [[f64; LANE]; PANEL / LANE] {
    let mut squares = Squares::<WIDE>([[0.0; LANE]; PANEL / LANE]);
    // SAFETY: as the caller's.
    unsafe { all_tiles::<L>(panel, &mut squares) };
    squares.0
}

impl<L: Lanes, const WIDE: bool> Tiles<L> for Squares<WIDE> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
    unsafe fn take<const INPUTS: usize, const WIDTH: usize>(
        &mut self,
        tile: &[[L; WIDTH]; INPUTS],
        _input: usize,
        lane: usize,
    ) {
        for v in 0..WIDTH {
            // SAFETY: the instructions are the caller's.
            unsafe {
                let mut wide = L::load_wide(&self.0[lane + v]);
                for group in (0..INPUTS).step_by(GROUP) {
                    let mut sum = L::splat(0.0);
                    for p in group..INPUTS.min(group + GROUP) {
                        if WIDE {
                            wide = L::wide_mul_add(tile[p][v].widen(), tile[p][v].widen(), wide);
                        } else {
                            sum = tile[p][v].mul_add(tile[p][v], sum);
                        }
                    }
                    if !WIDE {
                        wide = L::wide_mul_add(sum.widen(), L::wide(1.0), wide);
                    }
                }
                L::store_wide(wide, &mut self.0[lane + v]);
            }
        }
    }
}
