//! One panel of an adapted weight, `W_j + sum_i B_ji A_i`, tile by tile: the sums are formed in registers, the outputs in lanes
//! and a few inputs as rows, and W, which is read once, is added to them. Who takes the tiles says what becomes of them.

use super::Lanes;
use super::tile::{Factor, TILE_ROWS, accumulate};
use crate::panels::{LANE, PANEL};

/// How many inputs ahead of its use the panel, which is read once, is fetched; with as many steps as the rank.
const AHEAD: usize = 4 * TILE_ROWS;

/// One panel of the adapted weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdaptedPanel {
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
}

/// Who takes the tiles.
pub(super) trait Tiles<L: Lanes> {
    /// Takes a tile: `INPUTS` inputs from `input` on, `WIDTH` lanes of outputs from `lane` on.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`, and the tile lies inside the panel.
    unsafe fn take<const INPUTS: usize, const WIDTH: usize>(
        &mut self,
        tile: &[[L; WIDTH]; INPUTS],
        input: usize,
        lane: usize,
    );
}

/// Gives all tiles of a panel to whoever takes them, those of a lane in the order of its inputs.
///
/// # Safety
/// The CPU has the instructions of `L`, and the panel's pointers are valid for the extents it gives.
#[inline(always)]
pub(super) unsafe fn all_tiles<L: Lanes>(panel: &AdaptedPanel, to: &mut impl Tiles<L>) {
    // SAFETY: lanes lie inside the panel's width.
    unsafe {
        // Sums that don't fit into registers would be slower than a lane at a time.
        if panel.width == PANEL && L::ACCUMULATORS >= TILE_ROWS * PANEL / LANE {
            all_inputs::<L, { PANEL / LANE }>(panel, 0, to);
        } else {
            for lane in 0..panel.width / LANE {
                all_inputs::<L, 1>(panel, lane, to);
            }
        }
    }
}

/// The inputs in tiles: `WIDTH` lanes from `lane`.
#[inline(always)]
unsafe fn all_inputs<L: Lanes, const WIDTH: usize>(
    panel: &AdaptedPanel,
    lane: usize,
    to: &mut impl Tiles<L>,
) {
    let high = TILE_ROWS.min(L::ACCUMULATORS / WIDTH);
    let mut input = 0;
    while input < panel.k {
        // SAFETY: inputs stay below the panel's k.
        input += unsafe {
            match high.min(panel.k - input) {
                8 => tile::<L, 8, WIDTH>(panel, input, lane, to),
                4.. => tile::<L, 4, WIDTH>(panel, input, lane, to),
                _ => tile::<L, 1, WIDTH>(panel, input, lane, to),
            }
        };
    }
}

/// One tile: `INPUTS` inputs by `WIDTH` lanes of outputs; returns `INPUTS`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn tile<L: Lanes, const INPUTS: usize, const WIDTH: usize>(
    panel: &AdaptedPanel,
    input: usize,
    lane: usize,
    to: &mut impl Tiles<L>,
) -> usize {
    // SAFETY: the tile lies inside the panel.
    unsafe {
        let w = panel.w.add(input * panel.width + lane * LANE);
        let mut sums = [[L::splat(0.0); WIDTH]; INPUTS];
        if panel.rank > 0 {
            let a = Factor { at: panel.a.add(input), row_stride: 1, step_stride: panel.a_stride };
            let b = panel.b.add(lane * LANE);
            accumulate(&mut sums, a, b, panel.width, 0..panel.rank, |i| {
                for v in 0..WIDTH {
                    L::prefetch(w.wrapping_add((AHEAD + i) * panel.width + v * LANE));
                }
            });
        }
        for p in 0..INPUTS {
            for v in 0..WIDTH {
                sums[p][v] = sums[p][v].add(L::load(w.add(p * panel.width + v * LANE)));
            }
        }
        to.take(&sums, input, lane);
    }
    INPUTS
}
