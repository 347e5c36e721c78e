//! Dot products, for outputs as few as a rank: `h = x A^T` for a block of rows. It reads A by rows, as it lies padded to
//! whole lanes, since panels of so few outputs would be mostly padding.
//!
//! A sum runs in the sixteen interleaved parts of a lane, each in the order of k, which are then added in a fixed order.
//! So it is the same whichever tile computes it.

use super::Lanes;
use crate::panels::LANE;

/// Rows of x in a tile, and rows of A: with AVX-512, 24 sums and three lanes of x are in registers.
const TILE_ROWS: usize = 3;
const TILE_OUT: usize = 8;

/// A block of rows of x, against all rows of A.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DotBlock {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    /// Rows of A.
    pub(crate) out: usize,
    /// `[rows, k]`, contiguous.
    pub(crate) x: *const f32,
    /// `[out, k]` with rows padded to whole lanes with zeros.
    pub(crate) a: *const f32,
    /// `[rows, out]`, contiguous.
    pub(crate) h: *mut f32,
}

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions of `L`, and the block's pointers are valid for the extents it gives.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes>(block: &DotBlock) {
    // A set with few registers takes a row at a time.
    let high = if L::ACCUMULATORS >= TILE_ROWS * TILE_OUT { TILE_ROWS } else { 1 };
    let mut row = 0;
    while row < block.rows {
        let rows = (block.rows - row).min(high);
        // SAFETY: the rows are the block's.
        unsafe {
            match rows {
                3 => all_outputs::<L, 3>(block, row),
                2 => all_outputs::<L, 2>(block, row),
                _ => all_outputs::<L, 1>(block, row),
            }
        }
        row += rows;
    }
}

#[inline(always)]
unsafe fn all_outputs<L: Lanes, const ROWS: usize>(block: &DotBlock, row: usize) {
    let mut output = 0;
    while output < block.out {
        // SAFETY: the rows and outputs are the block's.
        output += unsafe {
            match block.out - output {
                TILE_OUT.. if L::ACCUMULATORS >= ROWS * TILE_OUT => {
                    tile::<L, ROWS, TILE_OUT>(block, row, output)
                }
                4.. => tile::<L, ROWS, 4>(block, row, output),
                _ => tile::<L, ROWS, 1>(block, row, output),
            }
        };
    }
}

/// `ROWS` rows of x by `OUT` rows of A; returns `OUT`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn tile<L: Lanes, const ROWS: usize, const OUT: usize>(
    block: &DotBlock,
    row: usize,
    output: usize,
) -> usize {
    let padded = block.k.next_multiple_of(LANE);
    let (whole, rest) = (block.k / LANE * LANE, block.k % LANE);
    // SAFETY: the tile lies inside the block; a lane of x is cut to what remains of its row, A is padded.
    unsafe {
        let (x, a) = (block.x.add(row * block.k), block.a.add(output * padded));
        let mut sums = [[L::splat(0.0); OUT]; ROWS];
        let mut step = |p: usize, lanes: [L; ROWS]| {
            for j in 0..OUT {
                let a = L::load(a.add(j * padded + p));
                for r in 0..ROWS {
                    sums[r][j] = lanes[r].mul_add(a, sums[r][j]);
                }
            }
        };
        for p in (0..whole).step_by(LANE) {
            step(p, std::array::from_fn(|r| L::load(x.add(r * block.k + p))));
        }
        if rest > 0 {
            step(whole, std::array::from_fn(|r| L::load_first(x.add(r * block.k + whole), rest)));
        }
        for r in 0..ROWS {
            for j in 0..OUT {
                *block.h.add((row + r) * block.out + output + j) = sums[r][j].sum();
            }
        }
    }
    OUT
}
