//! Dot products, for outputs as few as a rank: `h = x A^T` for a block of rows. It reads A by rows, as it lies padded to
//! whole lanes, since panels of so few outputs would be mostly padding.
//!
//! A sum runs in the sixteen interleaved parts of a lane, each in the order of k, which are then added in a fixed order.
//! So it is the same whichever tile computes it.

use super::Lanes;
use crate::panels::{LANE, row_stride};

/// Rows of x in a tile, and rows of A: with AVX-512, 24 sums and six lanes of x are in registers.
const TILE_ROWS: usize = 6;
const TILE_OUT: usize = 4;
/// So few rows take so many rows of A at once: each addition waits for the one before, and four sums of a row would leave the
/// arithmetic idle meanwhile.
const LOW_ROWS: usize = 2;
const LOW_OUT: usize = 8;

/// A block of rows of x, against all rows of A.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DotBlock {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    /// Rows of A.
    pub(crate) out: usize,
    /// `[rows, k]`, contiguous.
    pub(crate) x: *const f32,
    /// `[out, k]`, packed as rows.
    pub(crate) a: *const f32,
    /// `[rows, out]`, contiguous.
    pub(crate) h: *mut f32,
    /// Another A, of which as much as this one is long is fetched into the second-level cache meanwhile, or null.
    pub(crate) ahead: *const f32,
}

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions of `L`, and the block's pointers are valid for the extents it gives.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes>(block: &DotBlock) {
    if L::ACCUMULATORS < TILE_ROWS * TILE_OUT {
        // SAFETY: as the caller's.
        return unsafe { row_by_row::<L>(block) };
    }
    // As few tiles as can hold the rows, all about as high.
    let tiles = block.rows.div_ceil(TILE_ROWS);
    for tile in 0..tiles {
        let (row, end) = (tile * block.rows / tiles, (tile + 1) * block.rows / tiles);
        // SAFETY: the rows are the block's, and no more of them than a tile is high.
        unsafe {
            match end - row {
                6 => all_outputs::<L, 6>(block, row),
                5 => all_outputs::<L, 5>(block, row),
                4 => all_outputs::<L, 4>(block, row),
                3 => all_outputs::<L, 3>(block, row),
                2 => all_outputs::<L, 2>(block, row),
                _ => all_outputs::<L, 1>(block, row),
            }
        }
    }
}

/// For a set with few registers: it takes a row of x at a time, so a few rows of A are read for all rows of x, not all for each.
#[inline(always)]
unsafe fn row_by_row<L: Lanes>(block: &DotBlock) {
    let mut output = 0;
    while output < block.out {
        let is_full = block.out - output >= TILE_OUT;
        for row in 0..block.rows {
            // SAFETY: the rows and outputs are the block's.
            unsafe {
                if is_full {
                    tile::<L, 1, TILE_OUT>(block, row, output);
                } else {
                    tile::<L, 1, 1>(block, row, output);
                }
            }
        }
        output += if is_full { TILE_OUT } else { 1 };
    }
}

#[inline(always)]
unsafe fn all_outputs<L: Lanes, const ROWS: usize>(block: &DotBlock, row: usize) {
    let mut output = 0;
    while output < block.out {
        // SAFETY: the rows and outputs are the block's.
        output += unsafe {
            match block.out - output {
                LOW_OUT.. if ROWS <= LOW_ROWS => tile::<L, ROWS, LOW_OUT>(block, row, output),
                TILE_OUT.. => tile::<L, ROWS, TILE_OUT>(block, row, output),
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
    let a_stride = row_stride(block.k);
    let (whole, rest) = (block.k / LANE * LANE, block.k % LANE);
    // SAFETY: the tile lies inside the block; a lane of x is cut to what remains of its row, A is padded.
    unsafe {
        let (x, a) = (block.x.add(row * block.k), block.a.add(output * a_stride));
        let mut sums = [[L::splat(0.0); OUT]; ROWS];
        let mut lanes = [L::splat(0.0); ROWS];
        let ahead = block.ahead.wrapping_add(output * a_stride);
        // Each tile of these rows fetches its share of those that come next, whole lines in each step, from the first to the
        // last: fetched at once they would wait for each other, and line by line the prefetchers help. A few rows have none
        // that come next.
        let lines = if ROWS > LOW_ROWS { (ROWS * OUT).div_ceil(block.out) } else { 0 };
        let mut next = x.wrapping_add(ROWS * block.k + ROWS * block.k * output / block.out);
        for p in (0..whole).step_by(LANE) {
            for _ in 0..lines {
                L::prefetch_far(next);
                next = next.wrapping_add(LANE);
            }
            if !block.ahead.is_null() {
                for j in 0..OUT {
                    L::prefetch_far(ahead.wrapping_add(p + j * a_stride));
                }
            }
            for r in 0..ROWS {
                lanes[r] = L::load(x.add(r * block.k + p));
            }
            accumulate(&mut sums, &lanes, a.add(p), a_stride);
        }
        if rest > 0 {
            for r in 0..ROWS {
                lanes[r] = L::load_first(x.add(r * block.k + whole), rest);
            }
            accumulate(&mut sums, &lanes, a.add(whole), a_stride);
        }
        for r in 0..ROWS {
            let h = block.h.add((row + r) * block.out + output);
            let (fours, ones) = sums[r].as_chunks();
            for (j, &four) in fours.iter().enumerate() {
                h.add(4 * j).cast::<[f32; 4]>().write(L::sums(four));
            }
            for (j, one) in ones.iter().enumerate() {
                *h.add(4 * fours.len() + j) = one.sum();
            }
        }
    }
    OUT
}

/// `sums[r][j] += x[r] * a[j]`, lane by lane; rows of a are `a_stride` apart.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn accumulate<L: Lanes, const ROWS: usize, const OUT: usize>(
    sums: &mut [[L; OUT]; ROWS],
    x: &[L; ROWS],
    a: *const f32,
    a_stride: usize,
) {
    for j in 0..OUT {
        // SAFETY: the caller's lanes.
        unsafe {
            let a = L::load(a.add(j * a_stride));
            for r in 0..ROWS {
                sums[r][j] = x[r].mul_add(a, sums[r][j]);
            }
        }
    }
}
