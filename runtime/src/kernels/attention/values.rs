//! Values of a block: tiles of vectors by lanes of columns, added up by weights. Knows nothing about scores.

use super::super::Lanes;
use super::ahead::Ahead;
use super::seen::{Keys, Vectors};
use super::{AttentionBlock, VECTORS};
use crate::panels::LANE;

/// Whether a block's values are the first, so that nothing has been added yet, and whether they are the last.
#[derive(Clone, Copy)]
pub(super) struct Order {
    pub(super) is_first: bool,
    pub(super) is_last: bool,
}

/// Adds the values, by their weights, to what came before, and divides by the sums of the weights in the end.
#[inline(always)]
pub(super) unsafe fn values<L: Lanes>(
    block: &AttentionBlock,
    vectors: &Vectors,
    keys: &Keys,
    ahead: &Ahead,
    weights: *const f32,
    order: Order,
) {
    // A weight of 0 times a value that is no finite number is none: vectors that don't see it then go without.
    // SAFETY: the keys have `e` values.
    let apart = keys.is_ragged() && unsafe { !are_finite::<L>(block, keys) };
    let mut row = 0;
    while row < block.count {
        let mut tile = Values { keys: keys.seen, first: row, column: 0, order };
        // SAFETY: the rows are the block's.
        let rows = unsafe {
            match block.count - row {
                _ if apart => {
                    tile.keys = [-keys.from[row], keys.to[row]].map(|key| key as usize);
                    all_columns::<L, 1>(block, vectors, keys, weights, tile)
                }
                8.. if L::ACCUMULATORS >= 8 => all_columns::<L, 8>(block, vectors, keys, weights, tile),
                4.. if L::ACCUMULATORS >= 4 => all_columns::<L, 4>(block, vectors, keys, weights, tile),
                2.. => all_columns::<L, 2>(block, vectors, keys, weights, tile),
                _ => all_columns::<L, 1>(block, vectors, keys, weights, tile),
            }
        };
        if order.is_first {
            // SAFETY: the caller's instructions.
            unsafe { ahead.fetch_queries::<L>(&vectors.q[row..row + rows]) };
        }
        row += rows;
    }
}

/// Whether all values of the keys that are seen are finite.
#[inline(always)]
unsafe fn are_finite<L: Lanes>(block: &AttentionBlock, keys: &Keys) -> bool {
    // SAFETY: the keys have `e` values.
    unsafe {
        let (zero, mut sum) = (L::splat(0.0), L::splat(0.0));
        for place in keys.seen[0]..keys.seen[1] {
            let v = keys.v(block, place);
            for column in (0..block.e).step_by(LANE) {
                sum = L::load_first(v.add(column), (block.e - column).min(LANE)).mul_add(zero, sum);
            }
        }
        sum.sum() == 0.0
    }
}

/// A tile of y: which keys add to it, its first vector and column, and when.
#[derive(Clone, Copy)]
struct Values {
    keys: [usize; 2],
    first: usize,
    column: usize,
    order: Order,
}

/// `ROWS` vectors; returns `ROWS`.
#[inline(always)]
unsafe fn all_columns<L: Lanes, const ROWS: usize>(
    block: &AttentionBlock,
    vectors: &Vectors,
    keys: &Keys,
    weights: *const f32,
    mut tile: Values,
) -> usize {
    while tile.column < block.e {
        let left = block.e - tile.column;
        // SAFETY: the columns are the block's.
        tile.column += unsafe {
            match left / LANE {
                3.. if L::ACCUMULATORS >= 3 * ROWS => {
                    add::<L, ROWS, 3>(block, vectors, keys, weights, tile, LANE)
                }
                2.. if L::ACCUMULATORS >= 2 * ROWS => {
                    add::<L, ROWS, 2>(block, vectors, keys, weights, tile, LANE)
                }
                1.. => add::<L, ROWS, 1>(block, vectors, keys, weights, tile, LANE),
                _ => add::<L, ROWS, 1>(block, vectors, keys, weights, tile, left),
            }
        };
    }
    ROWS
}

/// One tile: `ROWS` vectors by `WIDTH` lanes of columns, the last lane `last` wide; returns its columns.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn add<L: Lanes, const ROWS: usize, const WIDTH: usize>(
    block: &AttentionBlock,
    vectors: &Vectors,
    keys: &Keys,
    weights: *const f32,
    Values { keys: [from, to], first, column, order }: Values,
    last: usize,
) -> usize {
    let mut widths = [LANE; WIDTH];
    widths[WIDTH - 1] = last;
    // SAFETY: the tile lies inside y, and the values are as wide.
    unsafe {
        let mut sums = [[L::splat(0.0); WIDTH]; ROWS];
        if !order.is_first {
            for r in 0..ROWS {
                let decay = L::splat(vectors.decay[first + r]);
                for v in 0..WIDTH {
                    let y = vectors.y[first + r].add(column + v * LANE);
                    sums[r][v] = L::load_first(y, widths[v]).mul(decay);
                }
            }
        }
        if order.is_first {
            // Stores to lines that are far away would hold up the next tile.
            for r in 0..ROWS {
                for v in 0..WIDTH {
                    L::prefetch(vectors.y[first + r].add(column + v * LANE));
                }
            }
        }
        let mut lanes = [L::splat(0.0); WIDTH];
        for key in from..to {
            let values = keys.v(block, key).add(column);
            for v in 0..WIDTH {
                lanes[v] = L::load_first(values.add(v * LANE), widths[v]);
            }
            let weights = weights.add(key * VECTORS + first);
            for r in 0..ROWS {
                let weight = L::splat(*weights.add(r));
                for v in 0..WIDTH {
                    sums[r][v] = weight.mul_add(lanes[v], sums[r][v]);
                }
            }
        }
        if order.is_last {
            for r in 0..ROWS {
                let share = L::splat(vectors.share[first + r]);
                for v in 0..WIDTH {
                    sums[r][v] = sums[r][v].mul(share);
                }
            }
        }
        for r in 0..ROWS {
            for v in 0..WIDTH {
                sums[r][v].store_first(vectors.y[first + r].add(column + v * LANE), widths[v]);
            }
        }
    }
    (WIDTH - 1) * LANE + last
}
