//! The panels of a merged weight, `W'_j = gain_j (W_j + sum_i B_ji A_i)`, for one panel of outputs, from the panels of W and B.
//!
//! Each tile of `W + B A` is multiplied by the gain before it leaves its registers. The formula is the weight of an adapted
//! layer: LoRA's `W + s B A` (<https://arxiv.org/abs/2106.09685>, equation 3), times the gain of DoRA
//! (<https://arxiv.org/abs/2402.09353>, equation 5).

use super::Lanes;
use super::adapted::{AdaptedPanel, Tiles, all_tiles};
use crate::panels::LANE;

/// One panel of a merged weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MergeBlock {
    pub(crate) panel: AdaptedPanel,
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
    let mut to = *block;
    // SAFETY: as the caller's.
    unsafe { all_tiles::<L>(&block.panel, &mut to) };
}

impl<L: Lanes> Tiles<L> for MergeBlock {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
    unsafe fn take<const INPUTS: usize, const WIDTH: usize>(
        &mut self,
        tile: &[[L; WIDTH]; INPUTS],
        input: usize,
        lane: usize,
    ) {
        let AdaptedPanel { width, columns, .. } = self.panel;
        for v in 0..WIDTH {
            let column = (lane + v) * LANE;
            // SAFETY: the tile lies inside the panel, and of the gain no more is read than there are outputs. What pads the
            // panel is 0, with a gain of 0 or 1, or NaN where A has an infinity: products never store what comes of it.
            unsafe {
                let gain = if self.gain.is_null() {
                    L::splat(1.0)
                } else {
                    L::load_first(self.gain.add(column), (columns - column).min(LANE))
                };
                for p in 0..INPUTS {
                    tile[p][v].mul(gain).store(self.merged.add((input + p) * width + column));
                }
            }
        }
    }
}
