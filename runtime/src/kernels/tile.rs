//! Products, a tile at a time: `y = gain * (x W^T + h B^T) + bias` for a block of rows and one panel of outputs.
//!
//! A tile of up to [`TILE_ROWS`] rows by up to four lanes is summed in registers. The low-rank part is `rank` more steps
//! of the same sum; gain and bias are applied before the tile leaves its registers. K is taken in blocks of [`K_BLOCK`],
//! between which the sums rest in y: the same additions in the same order, but the panel's block stays in cache while
//! all rows pass over it.
//!
//! Everything here is inlined into one function for each instruction set, which is what lets it use the instructions.

use super::Lanes;
use crate::panels::LANE;

/// Rows of a full tile: with four lanes of AVX-512, 24 of its 32 registers are sums.
const TILE_ROWS: usize = 6;
/// Inputs per block: 64 outputs by 1024 inputs are 256 KiB, 6 rows of x are 24 KiB.
const K_BLOCK: usize = 1024;
/// How many steps of k ahead of its use a line of the panel is fetched.
const PREFETCH_STEPS: usize = 16;

/// A block of rows of a product, over one panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) rank: usize,
    /// The panel's padded width, a multiple of `LANE` and at most `PANEL`.
    pub(crate) width: usize,
    /// Its outputs, more than `width - LANE`.
    pub(crate) columns: usize,
    /// `[rows, k]`, contiguous.
    pub(crate) x: *const f32,
    /// The panel of W, `[k, width]`.
    pub(crate) w: *const f32,
    /// `[rows, rank]`, contiguous.
    pub(crate) h: *const f32,
    /// The panel of B, `[rank, width]`.
    pub(crate) b: *const f32,
    /// `[columns]` or null.
    pub(crate) gain: *const f32,
    /// `[columns]` or null.
    pub(crate) bias: *const f32,
    /// `[rows, columns]` with rows `y_stride` apart.
    pub(crate) y: *mut f32,
    pub(crate) y_stride: usize,
}

/// The steps of k that a pass over the tiles takes.
#[derive(Clone, Copy)]
struct Steps {
    first: usize,
    count: usize,
    /// Whether the low-rank part, gain and bias follow.
    last: bool,
}

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions of `L`, and the block's pointers are valid for the extents it gives.
#[inline(always)]
pub(super) unsafe fn product<L: Lanes>(block: &Block) {
    let mut first = 0;
    loop {
        let count = (block.k - first).min(K_BLOCK);
        let steps = Steps { first, count, last: first + count == block.k };
        // SAFETY: as the caller's.
        unsafe { all_rows::<L>(block, steps) };
        if steps.last {
            return;
        }
        first += count;
    }
}

#[inline(always)]
unsafe fn all_rows<L: Lanes>(block: &Block, steps: Steps) {
    let mut row = 0;
    // SAFETY: `row` and the rows of the tile stay below `block.rows`.
    unsafe {
        while row + TILE_ROWS <= block.rows {
            all_lanes::<L, TILE_ROWS>(block, row, steps);
            row += TILE_ROWS;
        }
        match block.rows - row {
            5 => all_lanes::<L, 5>(block, row, steps),
            4 => all_lanes::<L, 4>(block, row, steps),
            3 => all_lanes::<L, 3>(block, row, steps),
            2 => all_lanes::<L, 2>(block, row, steps),
            1 => all_lanes::<L, 1>(block, row, steps),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn all_lanes<L: Lanes, const ROWS: usize>(block: &Block, row: usize, steps: Steps) {
    let mut column = 0;
    while column < block.width {
        let lanes = ((block.width - column) / LANE).min(L::tile_lanes(ROWS));
        // SAFETY: `column` and the lanes of the tile stay within `block.width`.
        unsafe {
            match lanes {
                4 => tile::<L, ROWS, 4>(block, row, column, steps),
                3 => tile::<L, ROWS, 3>(block, row, column, steps),
                2 => tile::<L, ROWS, 2>(block, row, column, steps),
                _ => tile::<L, ROWS, 1>(block, row, column, steps),
            }
        }
        column += lanes.max(1) * LANE;
    }
}

/// One tile: `ROWS` rows from `row`, `WIDTH` lanes from `column`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn tile<L: Lanes, const ROWS: usize, const WIDTH: usize>(
    block: &Block,
    row: usize,
    column: usize,
    steps: Steps,
) {
    // SAFETY: the tile lies inside the block. Loads and stores of y, gain and bias are of `count` floats, which end at
    // `block.columns`; those of panels are of whole lanes, which panels are padded to.
    unsafe {
        let y = block.y.add(row * block.y_stride + column);
        let counts: [usize; WIDTH] = lane_counts(block.columns - column);
        let mut sums = [[L::splat(0.0); WIDTH]; ROWS];
        if steps.first > 0 {
            for r in 0..ROWS {
                for v in 0..WIDTH {
                    sums[r][v] = L::load_first(y.add(r * block.y_stride + v * LANE), counts[v]);
                }
            }
        }
        let x = block.x.add(row * block.k + steps.first);
        let w = block.w.add(steps.first * block.width + column);
        accumulate(&mut sums, x, block.k, w, block.width, steps.count);
        if steps.last {
            if block.rank > 0 {
                let h = block.h.add(row * block.rank);
                accumulate(&mut sums, h, block.rank, block.b.add(column), block.width, block.rank);
            }
            if !block.gain.is_null() {
                for v in 0..WIDTH {
                    let gain = L::load_first(block.gain.add(column + v * LANE), counts[v]);
                    for r in 0..ROWS {
                        sums[r][v] = sums[r][v].mul(gain);
                    }
                }
            }
            if !block.bias.is_null() {
                for v in 0..WIDTH {
                    let bias = L::load_first(block.bias.add(column + v * LANE), counts[v]);
                    for r in 0..ROWS {
                        sums[r][v] = sums[r][v].add(bias);
                    }
                }
            }
        }
        for r in 0..ROWS {
            for v in 0..WIDTH {
                sums[r][v].store_first(y.add(r * block.y_stride + v * LANE), counts[v]);
            }
        }
    }
}

/// How many of `columns` fall into each lane.
#[inline(always)]
fn lane_counts<const WIDTH: usize>(columns: usize) -> [usize; WIDTH] {
    let mut counts = [LANE; WIDTH];
    // Only the last lane of a panel is ever partial.
    counts[WIDTH - 1] = (columns - (WIDTH - 1) * LANE).min(LANE);
    counts
}

/// `sums[r][v] += x[r, p] * w[p, v]` for each p in turn: rows of x are `x_stride` apart, steps of w `w_stride`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn accumulate<L: Lanes, const ROWS: usize, const WIDTH: usize>(
    sums: &mut [[L; WIDTH]; ROWS],
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    w_stride: usize,
    steps: usize,
) {
    // SAFETY: the caller's rows, lanes and steps lie inside its block; a prefetch may be of any address.
    unsafe {
        let mut lanes = [L::splat(0.0); WIDTH];
        for p in 0..steps {
            let w = w.add(p * w_stride);
            for v in 0..WIDTH {
                L::prefetch(w.wrapping_add(PREFETCH_STEPS * w_stride + v * LANE));
                lanes[v] = L::load(w.add(v * LANE));
            }
            for r in 0..ROWS {
                let x = L::splat(*x.add(r * x_stride + p));
                for v in 0..WIDTH {
                    sums[r][v] = x.mul_add(lanes[v], sums[r][v]);
                }
            }
        }
    }
}
