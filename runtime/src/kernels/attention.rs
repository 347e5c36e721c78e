//! Attention for a block of query vectors that share a head of k and v: scores, softmax and values in one pass over the
//! keys, in blocks of them, with a running maximum and sum (Milakov and Gimelshein, 2018: <https://arxiv.org/abs/1805.02867>;
//! Dao et al., 2022: <https://arxiv.org/abs/2205.14135>). Scores of one block are all that is ever materialised.
//!
//! The query vectors lie side by side in lanes: q is transposed once, into scratch, while rows of k and v are read where
//! they lie. So maxima and sums of a softmax run down the lanes, each in the order of the keys.
//!
//! Keys that the mask leaves out are skipped, and blocks are counted in keys that are there; keys that only some vectors
//! see weigh exactly 0 with the others, which changes no bit of theirs. So a vector's result depends on the keys it sees
//! and on nothing else: neither on how many queries there are, so that a token comes out the same alone as in a prompt.

mod seen;

use super::Lanes;
use super::exp::of_negative as exp;
use crate::panels::LANE;
use seen::{Keys, Vectors};
use std::mem::MaybeUninit;

/// Query vectors of a block: three lanes, of which eight keys are scored with 24 sums.
pub(crate) const VECTORS: usize = 3 * LANE;
/// Keys of a block: its scores are 12 KiB, its k and v 32 KiB with heads of 64.
const KEYS: usize = 64;
/// Columns of q that are transposed at a time, 24 KiB; wider heads are scored in pieces.
const PIECE: usize = 128;

/// Which keys are there: those whose integer is not 0.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mask {
    None,
    I32(*const i32),
    I64(*const i64),
}

/// Some query vectors: of all that share a head of k and v, `i * group + r` is row i of the r-th query head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionBlock {
    /// The first vector.
    pub(crate) first: usize,
    /// How many, `VECTORS` at most.
    pub(crate) count: usize,
    pub(crate) group: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) d: usize,
    pub(crate) e: usize,
    pub(crate) scale: f32,
    pub(crate) causal: bool,
    pub(crate) window: u64,
    /// `[queries, group * d]` with rows `q_row_stride` apart.
    pub(crate) q: *const f32,
    pub(crate) q_row_stride: usize,
    /// `[keys, d]` with rows `k_row_stride` apart.
    pub(crate) k: *const f32,
    pub(crate) k_row_stride: usize,
    /// `[keys, e]` with rows `v_row_stride` apart.
    pub(crate) v: *const f32,
    pub(crate) v_row_stride: usize,
    /// `[keys]`.
    pub(crate) mask: Mask,
    /// `[queries, group * e]` with rows `y_row_stride` apart.
    pub(crate) y: *mut f32,
    pub(crate) y_row_stride: usize,
}

/// Lanes of scratch, the lanes of a cache line each.
#[repr(align(64))]
struct Scratch {
    /// `[PIECE, VECTORS]`
    q: MaybeUninit<[f32; PIECE * VECTORS]>,
    /// `[KEYS, VECTORS]`
    scores: MaybeUninit<[f32; KEYS * VECTORS]>,
}

/// Where scratch is.
#[derive(Clone, Copy)]
struct Places {
    q: *mut f32,
    scores: *mut f32,
}

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions of `L`, and the block's pointers are valid for the extents and strides it gives.
#[inline(always)]
pub(super) unsafe fn attention<L: Lanes>(block: &AttentionBlock) {
    let mut scratch = Scratch { q: MaybeUninit::uninit(), scores: MaybeUninit::uninit() };
    let places = Places { q: scratch.q.as_mut_ptr().cast(), scores: scratch.scores.as_mut_ptr().cast() };
    let mut vectors = Vectors::of(block);
    let mut keys = Keys::new();
    let (mut next, end) = vectors.range(block);
    let mut is_first = true;
    // SAFETY: the caller's block; scratch lives as long as this call.
    unsafe {
        if block.d <= PIECE {
            transpose(block, &vectors, 0, places.q);
        }
        while keys.find(block, &mut next, end) {
            if !keys.narrow(block.count, &vectors) {
                continue;
            }
            scores::<L>(block, &vectors, &keys, places);
            for lane in 0..block.count.div_ceil(LANE) {
                weights::<L>(&mut vectors, &keys, places.scores.add(lane * LANE), lane * LANE);
            }
            values::<L>(block, &vectors, &keys, places.scores, is_first);
            is_first = false;
        }
        divide::<L>(block, &vectors);
    }
}

/// Lays columns of the vectors side by side, `scale` multiplied in: from `column` on, as many as there are or fit.
///
/// # Safety
/// The vectors are valid, and `to` has room for `[PIECE, VECTORS]`.
#[inline(always)]
unsafe fn transpose(block: &AttentionBlock, vectors: &Vectors, column: usize, to: *mut f32) {
    let (columns, padded) = ((block.d - column).min(PIECE), block.count.next_multiple_of(LANE));
    // SAFETY: columns are the vectors', and vectors beyond the last are the last.
    unsafe {
        for (t, q) in vectors.q[..padded].iter().enumerate() {
            for c in 0..columns {
                *to.add(c * VECTORS + t) = block.scale * *q.add(column + c);
            }
        }
    }
}

/// The scores of the keys that are seen.
#[inline(always)]
unsafe fn scores<L: Lanes>(block: &AttentionBlock, vectors: &Vectors, keys: &Keys, places: Places) {
    // SAFETY: the caller's block and scratch.
    unsafe {
        // Heads without columns have scores, too: 0.
        for piece in 0..block.d.div_ceil(PIECE).max(1) {
            let column = piece * PIECE;
            if block.d > PIECE {
                transpose(block, vectors, column, places.q);
            }
            let columns = [column, (block.d - column).min(PIECE)];
            let mut lane = 0;
            while lane * LANE < block.count {
                let left = (block.count - lane * LANE).div_ceil(LANE);
                lane += match left {
                    3.. if L::ACCUMULATORS >= 24 => all_keys::<L, 3>(keys, places, lane, columns),
                    2.. if L::ACCUMULATORS >= 16 => all_keys::<L, 2>(keys, places, lane, columns),
                    _ => all_keys::<L, 1>(keys, places, lane, columns),
                };
            }
        }
    }
}

/// The scores of `WIDTH` lanes; returns `WIDTH`.
#[inline(always)]
unsafe fn all_keys<L: Lanes, const WIDTH: usize>(
    keys: &Keys,
    places: Places,
    lane: usize,
    columns: [usize; 2],
) -> usize {
    let [mut key, end] = keys.seen;
    let high = L::ACCUMULATORS / WIDTH;
    while key < end {
        // SAFETY: keys stay below the block's.
        key += unsafe {
            match end - key {
                8.. if high >= 8 => score::<L, 8, WIDTH>(keys, key, places, lane, columns),
                4.. if high >= 4 => score::<L, 4, WIDTH>(keys, key, places, lane, columns),
                2.. => score::<L, 2, WIDTH>(keys, key, places, lane, columns),
                _ => score::<L, 1, WIDTH>(keys, key, places, lane, columns),
            }
        };
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

/// Makes one lane's scores weights, `exp(score - max)`, and brings maxima and sums up to date; `first` is its first vector.
#[inline(always)]
unsafe fn weights<L: Lanes>(vectors: &mut Vectors, keys: &Keys, scores: *mut f32, first: usize) {
    let [from, to] = keys.seen;
    // SAFETY: the lane lies inside the scratch and the arrays.
    unsafe {
        let old = L::load(vectors.max.as_ptr().add(first));
        let mut max = old;
        if keys.is_ragged() {
            let (begin, end) = (L::load(keys.from.as_ptr().add(first)), L::load(keys.to.as_ptr().add(first)));
            let infinity = L::splat(f32::INFINITY);
            for key in from..to {
                // Half a key from each end, so never 0: infinity where the vector sees the key, else minus infinity.
                let at = key as f32 + 0.5;
                let after = begin.add(L::splat(at)).mul(infinity);
                let before = end.add(L::splat(-at)).mul(infinity);
                let score = L::load(scores.add(key * VECTORS)).min(after).min(before);
                score.store(scores.add(key * VECTORS));
                max = score.max(max);
            }
        } else {
            for key in from..to {
                max = L::load(scores.add(key * VECTORS)).max(max);
            }
        }
        // Of a vector that has seen nothing yet, every difference is minus infinity still.
        let base = L::splat(f32::MIN).max(max).mul(L::splat(-1.0));
        let decay = exp(old.add(base));
        let mut sum = L::load(vectors.sum.as_ptr().add(first)).mul(decay);
        for key in from..to {
            let weight = exp(L::load(scores.add(key * VECTORS)).add(base));
            weight.store(scores.add(key * VECTORS));
            sum = sum.add(weight);
        }
        max.store(vectors.max.as_mut_ptr().add(first));
        decay.store(vectors.decay.as_mut_ptr().add(first));
        sum.store(vectors.sum.as_mut_ptr().add(first));
    }
}

/// Adds the values, by their weights, to what came before.
#[inline(always)]
unsafe fn values<L: Lanes>(
    block: &AttentionBlock,
    vectors: &Vectors,
    keys: &Keys,
    weights: *const f32,
    is_first: bool,
) {
    // A weight of 0 times a value that is no finite number is none: vectors that don't see it then go without.
    // SAFETY: the keys have `e` values.
    let apart = keys.is_ragged() && unsafe { !are_finite::<L>(keys, block.e) };
    let mut row = 0;
    while row < block.count {
        let mut tile = Values { keys: keys.seen, first: row, column: 0, is_first };
        // SAFETY: the rows are the block's.
        row += unsafe {
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
    }
}

/// Whether all values of the keys that are seen are finite.
#[inline(always)]
unsafe fn are_finite<L: Lanes>(keys: &Keys, e: usize) -> bool {
    // SAFETY: the keys have `e` values.
    unsafe {
        let (zero, mut sum) = (L::splat(0.0), L::splat(0.0));
        for v in &keys.v[keys.seen[0]..keys.seen[1]] {
            for column in (0..e).step_by(LANE) {
                sum = L::load_first(v.add(column), (e - column).min(LANE)).mul_add(zero, sum);
            }
        }
        sum.sum() == 0.0
    }
}

/// A tile of y: which keys add to it, its first vector and column, and whether nothing has been added yet.
#[derive(Clone, Copy)]
struct Values {
    keys: [usize; 2],
    first: usize,
    column: usize,
    is_first: bool,
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
                3.. if L::ACCUMULATORS >= 3 * ROWS => add::<L, ROWS, 3>(vectors, keys, weights, tile, LANE),
                2.. if L::ACCUMULATORS >= 2 * ROWS => add::<L, ROWS, 2>(vectors, keys, weights, tile, LANE),
                1.. => add::<L, ROWS, 1>(vectors, keys, weights, tile, LANE),
                _ => add::<L, ROWS, 1>(vectors, keys, weights, tile, left),
            }
        };
    }
    ROWS
}

/// One tile: `ROWS` vectors by `WIDTH` lanes of columns, the last lane `last` wide; returns its columns.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn add<L: Lanes, const ROWS: usize, const WIDTH: usize>(
    vectors: &Vectors,
    keys: &Keys,
    weights: *const f32,
    Values { keys: [from, to], first, column, is_first }: Values,
    last: usize,
) -> usize {
    let mut widths = [LANE; WIDTH];
    widths[WIDTH - 1] = last;
    // SAFETY: the tile lies inside y, and the values are as wide.
    unsafe {
        let mut sums = [[L::splat(0.0); WIDTH]; ROWS];
        if !is_first {
            for r in 0..ROWS {
                let decay = L::splat(vectors.decay[first + r]);
                for v in 0..WIDTH {
                    let y = vectors.y[first + r].add(column + v * LANE);
                    sums[r][v] = L::load_first(y, widths[v]).mul(decay);
                }
            }
        }
        let mut lanes = [L::splat(0.0); WIDTH];
        for key in from..to {
            let values = keys.v[key].add(column);
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
        for r in 0..ROWS {
            for v in 0..WIDTH {
                sums[r][v].store_first(vectors.y[first + r].add(column + v * LANE), widths[v]);
            }
        }
    }
    (WIDTH - 1) * LANE + last
}

/// Divides by the sums of the weights; 0 where nothing was seen.
#[inline(always)]
unsafe fn divide<L: Lanes>(block: &AttentionBlock, vectors: &Vectors) {
    for (&y, &sum) in vectors.y.iter().zip(&vectors.sum).take(block.count) {
        for column in (0..block.e).step_by(LANE) {
            let width = (block.e - column).min(LANE);
            // SAFETY: the columns are the block's; nothing was written of a vector of the first block that saw no key.
            unsafe {
                let y = y.add(column);
                let values = if sum == 0.0 {
                    L::splat(0.0)
                } else {
                    L::load_first(y, width).mul(L::splat(sum.recip()))
                };
                values.store_first(y, width);
            }
        }
    }
}
