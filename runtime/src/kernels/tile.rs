//! Products, a tile at a time: `y = gain * (x W^T + h B^T) + bias + shift` for a block of rows and one panel of outputs.
//!
//! A tile of a few rows by a few lanes is summed in registers. The low-rank part is `rank` more steps of the same sum;
//! gain and bias are applied before the tile leaves its registers. K is taken in blocks of [`K_BLOCK`], between which the
//! sums rest in y: the same additions in the same order, but the panel's block stays in cache while all rows pass over
//! it, and while they do, the block that comes next is fetched.
//!
//! Everything here is inlined into one function for each instruction set, which is what lets it use the instructions.

use super::Lanes;
use crate::panels::{LANE, PANEL};

/// Rows of the highest tile. With the three lanes of a panel, 24 of AVX-512's 32 registers are sums.
pub(crate) const TILE_ROWS: usize = 8;
/// Inputs per block: a panel's are 192 KiB, 128 rows of x are 512 KiB, and both stay in a second-level cache of 1 MiB.
pub(crate) const K_BLOCK: usize = 1024;
/// How many steps of k ahead of its use a line of the panel is fetched into the first-level cache.
const PREFETCH_STEPS: usize = 16;

/// Rows of the highest tile of an instruction set.
pub(super) const fn rows(accumulators: usize) -> usize {
    if accumulators < TILE_ROWS { accumulators } else { TILE_ROWS }
}

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
    /// `[columns]` or null.
    pub(crate) shift: *const f32,
    /// Whether y holds the sums `x W^T` already, so that only what follows them is computed.
    pub(crate) resume: bool,
    /// For each row what is read after this block and should be in the second-level cache by then, or null.
    pub(crate) ahead: *const Fetch,
    /// `[rows, columns]` with rows `y_stride` apart.
    pub(crate) y: *mut f32,
    pub(crate) y_stride: usize,
}

/// Floats that lie side by side and are read soon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch {
    pub(crate) from: *const f32,
    pub(crate) floats: usize,
}

/// The steps of k that a pass over the tiles takes.
#[derive(Clone, Copy)]
struct Steps {
    first: usize,
    count: usize,
    /// Whether y holds the sums of the steps before.
    resume: bool,
    /// Whether the low-rank part, gain, bias and shift follow.
    last: bool,
}

/// Where the tile's rows and lanes begin in the block, and what it fetches for later.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    column: usize,
    /// Into the first-level cache: from here on.
    near: *const f32,
    /// Into the second-level cache.
    far: Fetch,
}

/// What to fetch for later at each step.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Into the first-level cache: as many lines as the tile is wide, from here on and then as far apart as steps of w.
    pub(super) near: *const f32,
    /// Into the second-level cache: a line from here on, and `far_stride` floats further with each step.
    pub(super) far: *const f32,
    pub(super) far_stride: usize,
}

impl Ahead {
    /// The same line again and again, and what is at `near`.
    pub(super) const fn only(near: *const f32) -> Ahead {
        Ahead { near, far: near, far_stride: 0 }
    }
}

/// A matrix of which a tile's rows and steps are taken: element `(row, step)` at `at[row * row_stride + step * step_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub(super) at: *const f32,
    pub(super) row_stride: usize,
    pub(super) step_stride: usize,
}

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions of `L`, and the block's pointers are valid for the extents it gives.
#[inline(always)]
pub(super) unsafe fn product<L: Lanes>(block: &Block) {
    let mut first = if block.resume { block.k } else { 0 };
    loop {
        let count = (block.k - first).min(K_BLOCK);
        let resume = block.resume || first > 0;
        let steps = Steps { first, count, resume, last: first + count == block.k };
        // SAFETY: as the caller's.
        unsafe { all_rows::<L>(block, steps) };
        if steps.last {
            return;
        }
        first += count;
    }
}

/// The rows in as few tiles as can hold them, all about as high: a low tile takes hardly less time than a high one.
#[inline(always)]
unsafe fn all_rows<L: Lanes>(block: &Block, steps: Steps) {
    let tiles = block.rows.div_ceil(rows(L::ACCUMULATORS));
    for tile in 0..tiles {
        let (row, end) = (tile * block.rows / tiles, (tile + 1) * block.rows / tiles);
        let far = next_block(block, steps, tile, tiles);
        // SAFETY: rows `row..end` are the block's, and no more of them than a tile is high.
        unsafe {
            match end - row {
                8 => all_lanes::<L, 8>(block, row, steps, far),
                7 => all_lanes::<L, 7>(block, row, steps, far),
                6 => all_lanes::<L, 6>(block, row, steps, far),
                5 => all_lanes::<L, 5>(block, row, steps, far),
                4 => all_lanes::<L, 4>(block, row, steps, far),
                3 => all_lanes::<L, 3>(block, row, steps, far),
                2 => all_lanes::<L, 2>(block, row, steps, far),
                _ => all_lanes::<L, 1>(block, row, steps, far),
            }
        }
    }
}

/// Each tile fetches its share of what follows the panel's block in memory: the next block, or the next panel. Of two
/// tiles each fetches two lines in three: more than one a step costs more than it gains. A single tile fetches nothing;
/// it is as fast as memory already.
#[inline(always)]
fn next_block(block: &Block, steps: Steps, tile: usize, tiles: usize) -> Fetch {
    let (from, floats) = (block.w.wrapping_add(steps.first * block.width), steps.count * block.width);
    if tiles == 1 {
        return Fetch { from, floats: 0 };
    }
    Fetch { from: from.wrapping_add(floats + tile * floats / tiles), floats: floats / tiles }
}

#[inline(always)]
unsafe fn all_lanes<L: Lanes, const ROWS: usize>(block: &Block, row: usize, steps: Steps, far: Fetch) {
    const LANES: usize = PANEL / LANE;
    let near = block.w.wrapping_add((steps.first + PREFETCH_STEPS) * block.width);
    let mut column = 0;
    while column < block.width {
        let lanes = ((block.width - column) / LANE).min((L::ACCUMULATORS / ROWS).clamp(1, LANES));
        let place = Place { row, column, near: near.wrapping_add(column), far };
        // SAFETY: `column` and the lanes of the tile stay within `block.width`.
        unsafe {
            match lanes {
                3 => tile::<L, ROWS, 3>(block, place, steps),
                2 => tile::<L, ROWS, 2>(block, place, steps),
                _ => tile::<L, ROWS, 1>(block, place, steps),
            }
        }
        column += lanes.max(1) * LANE;
    }
}

/// One tile: `ROWS` rows and `WIDTH` lanes.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn tile<L: Lanes, const ROWS: usize, const WIDTH: usize>(block: &Block, place: Place, steps: Steps) {
    let Place { row, column, .. } = place;
    // SAFETY: the tile lies inside the block. Loads and stores of y, gain and bias are of `count` floats, which end at
    // `block.columns`; those of panels are of whole lanes, which panels are padded to.
    unsafe {
        let y = block.y.add(row * block.y_stride + column);
        let counts: [usize; WIDTH] = lane_counts(block.columns - column);
        let mut sums = [[L::splat(0.0); WIDTH]; ROWS];
        if steps.resume {
            for r in 0..ROWS {
                for v in 0..WIDTH {
                    sums[r][v] = L::load_first(y.add(r * block.y_stride + v * LANE), counts[v]);
                }
            }
        }
        let x = Factor { at: block.x.add(row * block.k + steps.first), row_stride: block.k, step_stride: 1 };
        // Of a block that is resumed there are no steps left, and this is beyond the panel.
        let w = block.w.wrapping_add(steps.first * block.width + column);
        let for_rows = !block.ahead.is_null();
        let mut begin = 0;
        for share in 0..if for_rows { 1 + ROWS } else { 1 } {
            let (end, far) = fetched::<ROWS>(block, place, steps, share, for_rows);
            let x = Factor { at: x.at.wrapping_add(begin), ..x };
            let ahead = Ahead {
                near: place.near.wrapping_add(begin * block.width),
                far: far.from,
                far_stride: far.floats / (end - begin).max(1),
            };
            accumulate(
                &mut sums,
                x,
                w.wrapping_add(begin * block.width),
                block.width,
                end - begin,
                Some(ahead),
            );
            begin = end;
        }
        if steps.last {
            if block.rank > 0 {
                let h = Factor { at: block.h.add(row * block.rank), row_stride: block.rank, step_stride: 1 };
                let b = block.b.add(column);
                accumulate(&mut sums, h, b, block.width, block.rank, None);
            }
            if !block.gain.is_null() {
                for v in 0..WIDTH {
                    let gain = L::load_first(block.gain.add(column + v * LANE), counts[v]);
                    for r in 0..ROWS {
                        sums[r][v] = sums[r][v].mul(gain);
                    }
                }
            }
            for added in [block.bias, block.shift] {
                if !added.is_null() {
                    for v in 0..WIDTH {
                        let added = L::load_first(added.add(column + v * LANE), counts[v]);
                        for r in 0..ROWS {
                            sums[r][v] = sums[r][v].add(added);
                        }
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

/// What a share of a tile's steps fetches, and where the share ends. A tile that fetches for its rows has one share for the
/// panel that comes next, a step for each line of it as far as there are, and one for each row, of which it fetches as
/// large a part as its steps are of all: a core waits for few lines at a time.
#[inline(always)]
unsafe fn fetched<const ROWS: usize>(
    block: &Block,
    place: Place,
    Steps { first, count, .. }: Steps,
    share: usize,
    for_rows: bool,
) -> (usize, Fetch) {
    let panels = if for_rows { (place.far.floats / LANE).min(count * 3 / 4) } else { count };
    if share == 0 {
        return (panels, place.far);
    }
    // SAFETY: there is one for each row of the block.
    let all = unsafe { *block.ahead.add(place.row + share - 1) };
    let part = |step: usize| all.floats * step / block.k.max(1);
    let from = all.from.wrapping_add(part(first));
    let fetch = Fetch { from, floats: part(first + count) - part(first) };
    (panels + (count - panels) * share / ROWS, fetch)
}

/// How many of `columns` fall into each lane.
#[inline(always)]
fn lane_counts<const WIDTH: usize>(columns: usize) -> [usize; WIDTH] {
    let mut counts = [LANE; WIDTH];
    // Only the last lane of a panel is ever partial.
    counts[WIDTH - 1] = (columns - (WIDTH - 1) * LANE).min(LANE);
    counts
}

/// `sums[r][v] += x[r, p] * w[p, v]` for each p in turn; steps of w are `w_stride` apart.
///
/// # Safety
/// The CPU has the instructions of `L`; `x` has `ROWS` rows, `w` `WIDTH` lanes, and both so many steps.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
pub(super) unsafe fn accumulate<L: Lanes, const ROWS: usize, const WIDTH: usize>(
    sums: &mut [[L; WIDTH]; ROWS],
    x: Factor,
    w: *const f32,
    w_stride: usize,
    steps: usize,
    ahead: Option<Ahead>,
) {
    // SAFETY: the caller's rows, lanes and steps; a prefetch may be of any address.
    unsafe {
        let mut lanes = [L::splat(0.0); WIDTH];
        for p in 0..steps {
            let w = w.add(p * w_stride);
            for v in 0..WIDTH {
                if let Some(ahead) = ahead {
                    L::prefetch(ahead.near.wrapping_add(p * w_stride + v * LANE));
                }
                lanes[v] = L::load(w.add(v * LANE));
            }
            if let Some(ahead) = ahead {
                L::prefetch_far(ahead.far.wrapping_add(p * ahead.far_stride));
            }
            for r in 0..ROWS {
                let x = L::splat(*x.at.add(r * x.row_stride + p * x.step_stride));
                for v in 0..WIDTH {
                    sums[r][v] = x.mul_add(lanes[v], sums[r][v]);
                }
            }
        }
    }
}
