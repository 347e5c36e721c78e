//! Row norms of an adapted weight, `n_j = || W_j + scale * sum_k B_jk A_k ||_2`, for a block of rows.
//!
//! A tile of `W + scale * B A` is formed in registers and squared into sums of 64-bit floats: nothing is materialised,
//! nothing cancels, and no square over- or underflows. The formula is the norm of DoRA's direction, equation 5 of the
//! paper (<https://arxiv.org/abs/2402.09353>), per output row.

use super::Lanes;
use crate::panels::LANE;

/// Rows of a block: W is copied to a tile this high, which reads a `[in, out]` weight by whole cache lines.
pub(crate) const NORM_ROWS: usize = 16;
/// Lanes of a block: the width in inputs of the tile.
const WIDTH: usize = 4;
/// Rows whose sums are in registers together.
const TILE_ROWS: usize = 4;

/// Up to [`NORM_ROWS`] rows of the adapted weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormBlock {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) rank: usize,
    pub(crate) w: *const f32,
    pub(crate) out_stride: usize,
    pub(crate) k_stride: usize,
    /// `[rank, k]`.
    pub(crate) a: *const f32,
    /// `[rows, rank]`.
    pub(crate) b: *const f32,
    pub(crate) scale: f32,
    /// `[rows]`.
    pub(crate) n: *mut f32,
}

/// A tile of W; what lies outside the weight is zero and so adds nothing to a norm.
type WeightTile = [[f32; WIDTH * LANE]; NORM_ROWS];

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions of `L`, and the block's pointers are valid for the extents it gives.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
pub(super) unsafe fn row_norm<L: Lanes>(block: &NormBlock) {
    let mut squares = [[0.0_f64; LANE]; NORM_ROWS];
    for first in (0..block.k).step_by(WIDTH * LANE) {
        let count = (block.k - first).min(WIDTH * LANE);
        let mut weight: WeightTile = [[0.0; WIDTH * LANE]; NORM_ROWS];
        // SAFETY: `first..first + count` are inputs of the block, and rows stay below `block.rows`, since a tile of rows
        // is cut to those that remain.
        unsafe {
            copy(block, first, count, &mut weight);
            for row in (0..block.rows).step_by(TILE_ROWS) {
                if block.rank > 0 {
                    if block.rows - row >= TILE_ROWS {
                        adapt::<L, TILE_ROWS>(block, row, first, count, &mut weight);
                    } else {
                        for row in row..block.rows {
                            adapt::<L, 1>(block, row, first, count, &mut weight);
                        }
                    }
                }
            }
        }
        for row in 0..NORM_ROWS {
            for v in 0..WIDTH {
                for lane in 0..LANE {
                    let value = f64::from(weight[row][v * LANE + lane]);
                    squares[row][lane] += value * value;
                }
            }
        }
    }
    for row in 0..block.rows {
        let norm = squares[row].iter().sum::<f64>().sqrt();
        // SAFETY: `row` is one of the block's rows.
        unsafe { *block.n.add(row) = norm as f32 };
    }
}

/// Copies a tile of W, along whichever of its axes is contiguous.
#[inline(always)]
unsafe fn copy(block: &NormBlock, first: usize, count: usize, tile: &mut WeightTile) {
    // SAFETY: row < rows and first + p < k, so the element is one of W.
    let element =
        |row: usize, p: usize| unsafe { *block.w.add(row * block.out_stride + (first + p) * block.k_stride) };
    if block.k_stride == 1 {
        for (row, tile) in tile.iter_mut().enumerate().take(block.rows) {
            for (p, value) in tile.iter_mut().enumerate().take(count) {
                *value = element(row, p);
            }
        }
    } else {
        for p in 0..count {
            for (row, tile) in tile.iter_mut().enumerate().take(block.rows) {
                tile[p] = element(row, p);
            }
        }
    }
}

/// Adds `scale * B A` to `ROWS` rows of the tile.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn adapt<L: Lanes, const ROWS: usize>(
    block: &NormBlock,
    row: usize,
    first: usize,
    count: usize,
    weight: &mut WeightTile,
) {
    // SAFETY: rows `row..row + ROWS` and inputs `first..first + count` are the block's; a lane of A is cut to the inputs
    // that remain, and the lanes of the tile lie inside it.
    unsafe {
        let mut sums = [[L::splat(0.0); WIDTH]; ROWS];
        for step in 0..block.rank {
            let a = block.a.add(step * block.k + first);
            for v in 0..WIDTH {
                let lane = match count.saturating_sub(v * LANE) {
                    0 => break,
                    rest => L::load_first(a.add(v * LANE), rest.min(LANE)),
                };
                for r in 0..ROWS {
                    let b = L::splat(*block.b.add((row + r) * block.rank + step));
                    sums[r][v] = b.mul_add(lane, sums[r][v]);
                }
            }
        }
        let scale = L::splat(block.scale);
        for r in 0..ROWS {
            for v in 0..WIDTH {
                let at = weight[row + r].as_mut_ptr().add(v * LANE);
                scale.mul_add(sums[r][v], L::load(at)).store(at);
            }
        }
    }
}
