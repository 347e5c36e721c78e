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

mod ahead;
mod scores;
mod seen;
mod values;

use super::Lanes;
use super::exp::powers_of_negative as powers;
use crate::panels::LANE;
use ahead::Ahead;
use scores::{scores, transpose};
use seen::{Keys, Vectors};
use std::mem::MaybeUninit;
use values::{Order, values};

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
    /// How many floats after the rows of q, k and v those of the head lie that comes next.
    pub(crate) next: [usize; 3],
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
    let ahead = Ahead::of(block);
    let (mut next, end) = vectors.range(block);
    let mut order = Order { is_first: true, is_last: false };
    // SAFETY: the caller's block; scratch lives as long as this call.
    unsafe {
        if block.d <= PIECE {
            transpose::<L>(block, &vectors, 0, places.q);
        }
        while keys.find(block, &mut next, end) {
            if !keys.narrow(block, &vectors) {
                continue;
            }
            scores::<L>(block, &mut vectors, &keys, &ahead, places);
            for lane in 0..block.count.div_ceil(LANE) {
                weights::<L>(&mut vectors, &keys, places.scores.add(lane * LANE), lane * LANE);
            }
            // Neighbours' windows overlap: a key that is there between the first that any sees and the end is seen, too.
            order.is_last = Keys::are_last(block, next, end);
            values::<L>(block, &vectors, &keys, &ahead, places.scores, order);
            order.is_first = false;
        }
        if order.is_first {
            nothing::<L>(block, &vectors);
        }
        debug_assert!(order.is_first || order.is_last, "no block divided by the sums");
    }
}

/// Makes one lane's scores weights, 2 to the power of `score - max`, and brings sums up to date; `first` is its first vector.
#[inline(always)]
unsafe fn weights<L: Lanes>(vectors: &mut Vectors, keys: &Keys, scores: *mut f32, first: usize) {
    let [mut key, end] = keys.seen;
    // SAFETY: the lane lies inside the scratch and the arrays.
    unsafe {
        // Of a vector that has seen nothing yet, every difference is minus infinity still.
        let max = L::splat(f32::MIN).max(L::load(vectors.max.as_ptr().add(first)));
        let [decay] = powers([L::load(vectors.base.as_ptr().add(first)).sub(max)]);
        let mut sum = L::load(vectors.sum.as_ptr().add(first)).mul(decay);
        while key < end {
            let scores = scores.add(key * VECTORS);
            key += match end - key {
                4.. if L::ACCUMULATORS >= 24 => some_weights::<L, 4>(scores, max, &mut sum),
                2.. => some_weights::<L, 2>(scores, max, &mut sum),
                _ => some_weights::<L, 1>(scores, max, &mut sum),
            };
        }
        max.store(vectors.base.as_mut_ptr().add(first));
        decay.store(vectors.decay.as_mut_ptr().add(first));
        // Where nothing was seen, 0 remains 0.
        let share = L::splat(f32::MAX).min(L::splat(1.0).div(sum));
        share.store(vectors.share.as_mut_ptr().add(first));
        sum.store(vectors.sum.as_mut_ptr().add(first));
    }
}

/// The weights of `COUNT` keys; returns `COUNT`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn some_weights<L: Lanes, const COUNT: usize>(scores: *mut f32, max: L, sum: &mut L) -> usize {
    // SAFETY: the caller's scores.
    unsafe {
        let mut lanes = [max; COUNT];
        for j in 0..COUNT {
            lanes[j] = L::load(scores.add(j * VECTORS)).sub(max);
        }
        let weights = powers(lanes);
        for j in 0..COUNT {
            weights[j].store(scores.add(j * VECTORS));
            *sum = sum.add(weights[j]);
        }
    }
    COUNT
}

/// What vectors become that see no key: 0.
#[inline(always)]
unsafe fn nothing<L: Lanes>(block: &AttentionBlock, vectors: &Vectors) {
    for &y in &vectors.y[..block.count] {
        for column in (0..block.e).step_by(LANE) {
            // SAFETY: the columns are the block's.
            unsafe { L::splat(0.0).store_first(y.add(column), (block.e - column).min(LANE)) };
        }
    }
}
