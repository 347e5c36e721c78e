//! The panels of a merged weight, `W'_j = gain_j (W_j + sum_i B_ji A_i)`, for one panel of outputs, from the panels of W and B.
//!
//! A tile of `B A` is summed in registers, the outputs in lanes and a few inputs as its rows; W, which is read once, is
//! added to it and the gain multiplied before it leaves them. The formula is the weight of an adapted layer: LoRA's
//! `W + s B A` (<https://arxiv.org/abs/2106.09685>, equation 3), times the gain of DoRA
//! (<https://arxiv.org/abs/2402.09353>, equation 5).

use super::Lanes;
use super::tile::{Ahead, Factor, TILE_ROWS, accumulate};
use crate::panels::{LANE, PANEL};

/// How many inputs ahead of its use the panel, which is read once, is fetched; with as many steps as the rank.
const AHEAD: usize = 4 * TILE_ROWS;

/// One panel of a merged weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MergeBlock {
    pub(crate) k: usize,
    pub(crate) rank: usize,
    /// The panel's padded width, a multiple of `LANE` and at most `PANEL`.
    pub(crate) width: usize,
    /// Its outputs, more than `width - LANE`.
    pub(crate) columns: usize,
    /// The panel of W, `[k, width]`.
    pub(crate) w: *const f32,
    /// `[rank, k]` with rows `a_stride` apart.
    pub(crate) a: *const f32,
    pub(crate) a_stride: usize,
    /// The panel of B, `[rank, width]`.
    pub(crate) b: *const f32,
    /// `[columns]` or null.
    pub(crate) gain: *const f32,
    /// The panel of W', `[k, width]`.
    pub(crate) merged: *mut f32,
}

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions of `L`, the block's pointers are valid for the extents it gives, and nobody else touches
/// what is written.
#[inline(always)]
pub(super) unsafe fn merge<L: Lanes>(block: &MergeBlock) {
    // SAFETY: lanes lie inside the panel's width.
    unsafe {
        // Sums that don't fit into registers would be slower than a lane at a time.
        if block.width == PANEL && L::ACCUMULATORS >= TILE_ROWS * PANEL / LANE {
            all_inputs::<L, { PANEL / LANE }>(block, 0);
        } else {
            for lane in 0..block.width / LANE {
                all_inputs::<L, 1>(block, lane);
            }
        }
    }
}

/// The inputs in tiles: `WIDTH` lanes from `lane`.
#[inline(always)]
unsafe fn all_inputs<L: Lanes, const WIDTH: usize>(block: &MergeBlock, lane: usize) {
    let high = TILE_ROWS.min(L::ACCUMULATORS / WIDTH);
    let mut input = 0;
    // SAFETY: inputs stay below `block.k`.
    unsafe {
        while input < block.k {
            input += match high.min(block.k - input) {
                8 => tile::<L, 8, WIDTH>(block, input, lane),
                4.. => tile::<L, 4, WIDTH>(block, input, lane),
                _ => tile::<L, 1, WIDTH>(block, input, lane),
            };
        }
    }
}

/// One tile: `INPUTS` inputs by `WIDTH` lanes of outputs; returns `INPUTS`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn tile<L: Lanes, const INPUTS: usize, const WIDTH: usize>(
    block: &MergeBlock,
    input: usize,
    lane: usize,
) -> usize {
    // SAFETY: the tile lies inside the panel; of the gain no more is read than there are outputs, and what pads a panel is
    // 0 times 0.
    unsafe {
        let at = input * block.width + lane * LANE;
        let (w, merged) = (block.w.add(at), block.merged.add(at));
        let mut sums = [[L::splat(0.0); WIDTH]; INPUTS];
        if block.rank > 0 {
            let a = Factor { at: block.a.add(input), row_stride: 1, step_stride: block.a_stride };
            let b = block.b.add(lane * LANE);
            let ahead = Ahead::only(w.wrapping_add(AHEAD * block.width));
            accumulate(&mut sums, a, b, block.width, block.rank, Some(ahead));
        }
        for v in 0..WIDTH {
            let column = (lane + v) * LANE;
            let gain = if block.gain.is_null() {
                L::splat(1.0)
            } else {
                L::load_first(block.gain.add(column), (block.columns - column).min(LANE))
            };
            for p in 0..INPUTS {
                let offset = p * block.width + v * LANE;
                sums[p][v].add(L::load(w.add(offset))).mul(gain).store(merged.add(offset));
            }
        }
    }
    INPUTS
}
