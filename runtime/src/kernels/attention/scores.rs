//! Scores of a block: q transposed into scratch, and tiles of keys by lanes of vectors. Knows nothing about softmax.

use super::super::Lanes;
use super::ahead::Ahead;
use super::seen::{Keys, Vectors};
use super::{AttentionBlock, PIECE, Places, VECTORS};
use crate::panels::LANE;
use std::f64::consts::LOG2_E;

/// Lays columns of the vectors side by side, `scale` and log₂ e multiplied in: from `column` on, as many as there are or fit.
///
/// # Safety
/// The vectors are valid, and `to` has room for `[PIECE, VECTORS]`.
#[inline(always)]
pub(super) unsafe fn transpose<L: Lanes>(
    block: &AttentionBlock,
    vectors: &Vectors,
    column: usize,
    to: *mut f32,
) {
    let (columns, padded) = ((block.d - column).min(PIECE), block.count.next_multiple_of(LANE));
    // SAFETY: columns are the vectors', and vectors beyond the last are the last; a lane beyond the columns fits, too.
    unsafe {
        // exp(x) is 2 to the power of x log₂ e.
        let scale = L::splat((f64::from(block.scale) * LOG2_E) as f32);
        for (lane, q) in vectors.q[..padded].chunks_exact(LANE).enumerate() {
            for first in (0..columns).step_by(LANE) {
                let width = (columns - first).min(LANE);
                let mut square = [scale; LANE];
                for (row, q) in square.iter_mut().zip(q) {
                    *row = L::load_first(q.add(column + first), width).mul(scale);
                }
                for (c, row) in transposed(square).into_iter().enumerate() {
                    row.store(to.add((first + c) * VECTORS + lane * LANE));
                }
            }
        }
    }
}

/// Rows become columns. A row's number has four bits, a column's too: each round moves the highest of a row's to the
/// end of the column's.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn transposed<L: Lanes>(mut rows: [L; LANE]) -> [L; LANE] {
    for _ in 0..LANE.ilog2() {
        let before = rows;
        for i in 0..LANE / 2 {
            // SAFETY: the caller's instructions.
            [rows[2 * i], rows[2 * i + 1]] = unsafe { before[i].interleave(before[i + LANE / 2]) };
        }
    }
    rows
}

/// The scores of the keys that are seen.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes>(
    block: &AttentionBlock,
    vectors: &Vectors,
    keys: &Keys,
    ahead: &Ahead,
    places: Places,
) {
    // SAFETY: the caller's block and scratch.
    unsafe {
        // Heads without columns have scores, too: 0.
        for piece in 0..block.d.div_ceil(PIECE).max(1) {
            let column = piece * PIECE;
            if block.d > PIECE {
                transpose::<L>(block, vectors, column, places.q);
            }
            let columns = [column, (block.d - column).min(PIECE)];
            let mut lane = 0;
            while lane * LANE < block.count {
                let left = (block.count - lane * LANE).div_ceil(LANE);
                lane += match left {
                    3.. if L::ACCUMULATORS >= 24 => all_keys::<L, 3>(keys, ahead, places, lane, columns),
                    2.. if L::ACCUMULATORS >= 16 => all_keys::<L, 2>(keys, ahead, places, lane, columns),
                    _ => all_keys::<L, 1>(keys, ahead, places, lane, columns),
                };
            }
        }
    }
}

/// The scores of `WIDTH` lanes; returns `WIDTH`.
#[inline(always)]
unsafe fn all_keys<L: Lanes, const WIDTH: usize>(
    keys: &Keys,
    ahead: &Ahead,
    places: Places,
    lane: usize,
    columns: [usize; 2],
) -> usize {
    let [mut key, end] = keys.seen;
    let high = L::ACCUMULATORS / WIDTH;
    while key < end {
        // SAFETY: keys stay below the block's.
        let count = unsafe {
            match end - key {
                8.. if high >= 8 => score::<L, 8, WIDTH>(keys, key, places, lane, columns),
                4.. if high >= 4 => score::<L, 4, WIDTH>(keys, key, places, lane, columns),
                2.. => score::<L, 2, WIDTH>(keys, key, places, lane, columns),
                _ => score::<L, 1, WIDTH>(keys, key, places, lane, columns),
            }
        };
        if lane == 0 && columns[0] == 0 {
            // SAFETY: the caller's instructions.
            unsafe { ahead.fetch_keys::<L>(keys, key..key + count) };
        }
        key += count;
    }
    WIDTH
}

/// One tile: `COUNT` keys by `WIDTH` lanes of vectors, over columns of which the scratch holds q; returns `COUNT`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn score<L: Lanes, const COUNT: usize, const WIDTH: usize>(
    keys: &Keys,
    key: usize,
    places: Places,
    lane: usize,
    [column, columns]: [usize; 2],
) -> usize {
    // SAFETY: the tile lies inside the scratch; the keys have the columns.
    unsafe {
        let (q, scores) = (places.q.add(lane * LANE), places.scores.add(key * VECTORS + lane * LANE));
        let mut k = [std::ptr::null(); COUNT];
        for j in 0..COUNT {
            k[j] = keys.k[key + j].wrapping_add(column);
        }
        let mut sums = [[L::splat(0.0); WIDTH]; COUNT];
        if column > 0 {
            for j in 0..COUNT {
                for v in 0..WIDTH {
                    sums[j][v] = L::load(scores.add(j * VECTORS + v * LANE));
                }
            }
        }
        let mut lanes = [L::splat(0.0); WIDTH];
        for c in 0..columns {
            for v in 0..WIDTH {
                lanes[v] = L::load(q.add(c * VECTORS + v * LANE));
            }
            for j in 0..COUNT {
                let k = L::splat(*k[j].add(c));
                for v in 0..WIDTH {
                    sums[j][v] = k.mul_add(lanes[v], sums[j][v]);
                }
            }
        }
        for j in 0..COUNT {
            for v in 0..WIDTH {
                sums[j][v].store(scores.add(j * VECTORS + v * LANE));
            }
        }
    }
    COUNT
}
