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

/// Some columns of q and k, and the block they are of.
#[derive(Clone, Copy)]
struct Piece<'a> {
    block: &'a AttentionBlock,
    keys: &'a Keys,
    ahead: &'a Ahead,
    places: Places,
    column: usize,
    columns: usize,
    /// Whether its sums are scores that their vectors see.
    is_final: bool,
}

/// The scores of the keys that are seen, minus infinity where a vector does not see one, and maxima brought up to date.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes>(
    block: &AttentionBlock,
    vectors: &mut Vectors,
    keys: &Keys,
    ahead: &Ahead,
    places: Places,
) {
    let is_ragged = keys.is_ragged();
    // Heads without columns have scores, too: 0.
    for piece in 0..block.d.div_ceil(PIECE).max(1) {
        let column = piece * PIECE;
        let is_final = column + PIECE >= block.d && !is_ragged;
        let columns = (block.d - column).min(PIECE);
        let piece = Piece { block, keys, ahead, places, column, columns, is_final };
        // SAFETY: the caller's block and scratch.
        unsafe {
            if block.d > PIECE {
                transpose::<L>(block, vectors, column, places.q);
            }
            let mut lane = 0;
            while lane * LANE < block.count {
                lane += match block.count.div_ceil(LANE) - lane {
                    3.. if L::ACCUMULATORS >= 24 => all_keys::<L, 3>(&piece, vectors, lane),
                    2.. if L::ACCUMULATORS >= 16 => all_keys::<L, 2>(&piece, vectors, lane),
                    _ => all_keys::<L, 1>(&piece, vectors, lane),
                };
            }
        }
    }
    if is_ragged {
        for lane in 0..block.count.div_ceil(LANE) {
            // SAFETY: the lane lies inside the scratch.
            unsafe { hide::<L>(vectors, keys, places.scores.add(lane * LANE), lane * LANE) };
        }
    }
}

/// Of one lane, makes the scores that a vector does not see minus infinity, and finds the maxima; `first` is its first vector.
#[inline(always)]
unsafe fn hide<L: Lanes>(vectors: &mut Vectors, keys: &Keys, scores: *mut f32, first: usize) {
    // SAFETY: the lane lies inside the scratch and the arrays.
    unsafe {
        let max = vectors.max.as_mut_ptr().add(first);
        let mut largest = L::load(max);
        let (begin, end) = (L::load(keys.from.as_ptr().add(first)), L::load(keys.to.as_ptr().add(first)));
        let infinity = L::splat(f32::INFINITY);
        for key in keys.seen[0]..keys.seen[1] {
            // Half a key from each end, so never 0: infinity where the vector sees the key, else minus infinity.
            let at = key as f32 + 0.5;
            let after = begin.add(L::splat(at)).mul(infinity);
            let before = end.add(L::splat(-at)).mul(infinity);
            let score = L::load(scores.add(key * VECTORS)).min(after).min(before);
            score.store(scores.add(key * VECTORS));
            largest = score.max(largest);
        }
        largest.store(max);
    }
}

/// The scores of `WIDTH` lanes; returns `WIDTH`.
#[inline(always)]
unsafe fn all_keys<L: Lanes, const WIDTH: usize>(
    piece: &Piece<'_>,
    vectors: &mut Vectors,
    lane: usize,
) -> usize {
    let [mut key, end] = piece.keys.seen;
    let high = L::ACCUMULATORS / WIDTH;
    while key < end {
        // SAFETY: keys stay below the block's.
        let count = unsafe {
            match end - key {
                8.. if high >= 8 => score::<L, 8, WIDTH>(piece, vectors, key, lane),
                4.. if high >= 4 => score::<L, 4, WIDTH>(piece, vectors, key, lane),
                2.. => score::<L, 2, WIDTH>(piece, vectors, key, lane),
                _ => score::<L, 1, WIDTH>(piece, vectors, key, lane),
            }
        };
        if lane == 0 && piece.column == 0 {
            // SAFETY: the caller's instructions.
            unsafe { piece.ahead.fetch_keys::<L>(piece.block, piece.keys, key..key + count) };
        }
        key += count;
    }
    WIDTH
}

/// One tile: `COUNT` keys by `WIDTH` lanes of vectors, over columns of which the scratch holds q; returns `COUNT`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn score<L: Lanes, const COUNT: usize, const WIDTH: usize>(
    piece: &Piece<'_>,
    vectors: &mut Vectors,
    key: usize,
    lane: usize,
) -> usize {
    let &Piece { block, keys, places, column, columns, .. } = piece;
    // SAFETY: the tile lies inside the scratch; the keys have the columns.
    unsafe {
        let (q, scores) = (places.q.add(lane * LANE), places.scores.add(key * VECTORS + lane * LANE));
        let mut k = [std::ptr::null(); COUNT];
        for j in 0..COUNT {
            k[j] = keys.k(block, key + j).wrapping_add(column);
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
        if piece.is_final {
            for v in 0..WIDTH {
                let max = vectors.max.as_mut_ptr().add((lane + v) * LANE);
                let mut largest = L::load(max);
                for j in 0..COUNT {
                    largest = sums[j][v].max(largest);
                }
                largest.store(max);
            }
        }
    }
    COUNT
}
