//! Products, a tile at a time: `y = gain * (x W^T + h B^T) + bias + shift + residual` for a block of rows and one panel of
//! outputs.
//!
//! A tile of a few rows by a few lanes is summed in registers. The low-rank part is `rank` more steps of the same sum;
//! gain, bias and residual are applied before the tile leaves its registers. Rows of several tiles take K in blocks of
//! [`K_BLOCK`] at most, between which the sums rest in y: the same additions in the same order, but the panel's block stays in
//! cache while all rows pass over it, and while they do, the block that comes next is fetched.
//!
//! Rows may differ in what follows `x W^T`. A tile whose rows do share the sums of W all the same, while each row's B is
//! fetched, and is then finished some rows at a time: again the same additions in the same order.
//!
//! Everything here is inlined into one function for each instruction set, which is what lets it use the instructions.

use std::ops::Range;

use super::stream::STREAM_AHEAD;
use super::{Block, Fetch, Finish, Lanes};
use crate::panels::{LANE, PANEL};

/// Rows of the highest tile. With the three lanes of a panel, 24 of AVX-512's 32 registers are sums.
pub(crate) const TILE_ROWS: usize = 8;
/// Inputs per block at most: a panel's are 192 KiB, 128 rows of x are 512 KiB, and both stay in a second-level cache of 1 MiB.
pub(crate) const K_BLOCK: usize = 1024;
/// How many steps of k ahead of its use a line of a panel that is in the second-level cache is fetched into the first.
const NEAR_STEPS: usize = 16;
/// How many lines of each row of x the next tile finds in the first-level cache: the CPU's prefetchers need some to begin
/// with.
const NEXT_LINES: usize = NEAR_STEPS / TILE_ROWS;
/// Tiles with so many rows at most wait for the panel and not for arithmetic. They fetch one line of each step and leave the
/// others to the CPU's prefetchers, as a plain read does.
const STREAM_ROWS: usize = 4;

/// Rows of the highest tile of an instruction set.
pub(super) const fn rows(accumulators: usize) -> usize {
    if accumulators < TILE_ROWS { accumulators } else { TILE_ROWS }
}

/// The steps of k that a pass over the tiles takes.
#[derive(Clone, Copy)]
struct Steps {
    first: usize,
    count: usize,
    /// Whether y holds the sums of the steps before.
    resume: bool,
}

/// One pass over a tile's rows, in all its lanes.
#[derive(Clone, Copy)]
struct Pass<'a> {
    row: usize,
    end: usize,
    steps: Steps,
    /// What follows the last step.
    finish: Option<&'a Finish>,
    /// Whether the panel comes from farther away than the second-level cache: nobody has fetched it.
    is_stream: bool,
    /// What is fetched into the second-level cache meanwhile.
    far: Fetch,
    /// How much of it in each step, if nothing else is fetched.
    far_stride: usize,
    /// Of each of these, too, but only the part with this number.
    ahead: &'a [Fetch],
    part: usize,
    /// How many equal parts there are: as many as tiles of all rows and steps.
    parts: usize,
    /// Whose B is fetched, too.
    next: &'a [Finish],
}

impl Pass<'_> {
    /// How many things are fetched one after the other.
    #[inline(always)]
    fn shares(&self) -> usize {
        1 + self.ahead.len() + self.next.len()
    }

    #[inline(always)]
    fn share(&self, block: &Block<'_>, share: usize) -> Fetch {
        let Some(share) = share.checked_sub(1) else { return self.far };
        if share < self.ahead.len() {
            return self.ahead[share].part(self.part, self.parts);
        }
        let finish = &self.next[share - self.ahead.len()];
        let from = finish.b.wrapping_add(block.first_column * finish.b_rows);
        Fetch { from, floats: finish.b_rows * block.width }
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
pub(super) unsafe fn product<L: Lanes>(block: &Block<'_>) {
    // As few blocks as can hold the inputs, all about as long: each has the time to fetch the one that follows. A single
    // tile uses nothing twice.
    let is_single = block.rows <= rows(L::ACCUMULATORS);
    let blocks = if is_single { 1 } else { block.k.div_ceil(K_BLOCK).max(1) };
    for index in 0..blocks {
        let (first, end) = (index * block.k / blocks, (index + 1) * block.k / blocks);
        let steps = Steps { first, count: end - first, resume: first > 0 };
        // SAFETY: as the caller's.
        unsafe { all_rows::<L>(block, steps, (index, blocks)) };
    }
}

/// The rows in as few tiles as can hold them, all about as high: a low tile takes hardly less time than a high one.
#[inline(always)]
unsafe fn all_rows<L: Lanes>(block: &Block<'_>, steps: Steps, (index, blocks): (usize, usize)) {
    let tiles = block.rows.div_ceil(rows(L::ACCUMULATORS));
    let is_last = steps.first + steps.count == block.k;
    let mut finishes = block.finishes;
    // The first tiles are a row higher, if they cannot all be alike.
    let (low, higher) = (block.rows / tiles.max(1), block.rows % tiles.max(1));
    let far = next_block(block, steps, tiles);
    // All steps but those in which a high tile fetches what is near.
    let far_steps = steps.count.saturating_sub(TILE_ROWS + NEAR_STEPS).max(1);
    let far_stride = far.floats.div_ceil(far_steps);
    let mut end = 0;
    for tile in 0..tiles {
        let row = end;
        end += low + usize::from(tile < higher);
        let (first, last) = (block.first_row + row, block.first_row + end);
        finishes = &finishes[finishes.partition_point(|finish| finish.end <= first)..];
        let of_tile = &finishes[..finishes.partition_point(|finish| is_last && finish.first < last)];
        let far = Fetch { from: far.from.wrapping_add(tile * far.floats), ..far };
        let (finish, next) = if let [all] = of_tile { (Some(all), &[][..]) } else { (None, of_tile) };
        let (part, parts) = (index * tiles + tile, blocks * tiles);
        let (ahead, is_stream) = (block.ahead, tiles == 1);
        let mut pass = Pass { row, end, steps, finish, is_stream, far, far_stride, ahead, part, parts, next };
        let mut rest = next.iter();
        loop {
            // SAFETY: the pass's rows are the block's, and no more of them than a tile is high.
            unsafe {
                match pass.end - pass.row {
                    8 => all_lanes::<L, 8>(block, &pass),
                    7 => all_lanes::<L, 7>(block, &pass),
                    6 => all_lanes::<L, 6>(block, &pass),
                    5 => all_lanes::<L, 5>(block, &pass),
                    4 => all_lanes::<L, 4>(block, &pass),
                    3 => all_lanes::<L, 3>(block, &pass),
                    2 => all_lanes::<L, 2>(block, &pass),
                    _ => all_lanes::<L, 1>(block, &pass),
                }
            }
            // Rows that differ are finished one after the other.
            let Some(finish) = rest.next() else { break };
            let row = finish.first.max(first) - block.first_row;
            let end = finish.end.min(last) - block.first_row;
            let steps = Steps { first: block.k, count: 0, resume: true };
            let (far, finish) = (Fetch::NOTHING, Some(finish));
            pass = Pass { row, end, steps, finish, far, far_stride: 0, ahead: &[], next: &[], ..pass };
        }
    }
}

/// What follows the panel's block in memory, the next block or the next panel, of which each tile fetches a share: the first
/// one's. A single tile has no time to: it fetches its own lines.
#[inline(always)]
fn next_block(block: &Block<'_>, steps: Steps, tiles: usize) -> Fetch {
    let (from, floats) = (block.w.wrapping_add(steps.first * block.width), steps.count * block.width);
    if tiles < 2 {
        return Fetch { from, floats: 0 };
    }
    Fetch { from: from.wrapping_add(floats), floats: floats.div_ceil(tiles) }
}

#[inline(always)]
unsafe fn all_lanes<L: Lanes, const ROWS: usize>(block: &Block<'_>, pass: &Pass<'_>) {
    const LANES: usize = PANEL / LANE;
    let mut column = 0;
    while column < block.width {
        let lanes = ((block.width - column) / LANE).min((L::ACCUMULATORS / ROWS).clamp(1, LANES));
        // SAFETY: `column` and the lanes of the tile stay within `block.width`.
        unsafe {
            match lanes {
                3 => tile::<L, ROWS, 3>(block, pass, column),
                2 => tile::<L, ROWS, 2>(block, pass, column),
                _ => tile::<L, ROWS, 1>(block, pass, column),
            }
        }
        column += lanes.max(1) * LANE;
    }
}

/// One tile: `ROWS` rows and `WIDTH` lanes.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn tile<L: Lanes, const ROWS: usize, const WIDTH: usize>(
    block: &Block<'_>,
    pass: &Pass<'_>,
    column: usize,
) {
    let Pass { row, steps, .. } = *pass;
    // SAFETY: the tile lies inside the block. Loads and stores of y are of `count` floats, which end at `block.columns`;
    // those of panels are of whole lanes, which panels are padded to.
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
        // Rows that are finished alone have no steps left, and asking what to fetch would take as long as the rest.
        if steps.count > 0 {
            weight(&mut sums, block, pass, column);
        }
        if let Some(finish) = pass.finish {
            finished(&mut sums, block, finish, row, column, counts);
        }
        for r in 0..ROWS {
            for v in 0..WIDTH {
                sums[r][v].store_first(y.add(r * block.y_stride + v * LANE), counts[v]);
            }
        }
    }
}

/// The steps of W, and meanwhile what is read after them is fetched: in the first steps what the tile ends with, in the last ones
/// what the next tile begins with, in those between them what is read later. A single tile has nobody after it, and its few
/// sums are near. Tiles that are narrower than a panel take so little time that a third loop costs more than it gains: they
/// fetch what they end with in the last steps.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn weight<L: Lanes, const ROWS: usize, const WIDTH: usize>(
    sums: &mut [[L; WIDTH]; ROWS],
    block: &Block<'_>,
    pass: &Pass<'_>,
    column: usize,
) {
    let is_wide = L::ACCUMULATORS >= TILE_ROWS * PANEL / LANE;
    let (x, w) = factors(block, pass, column);
    let (count, width) = (pass.steps.count, block.width);
    let opened = if pass.is_stream || !is_wide { 0 } else { ROWS.min(count) };
    let closing = if pass.is_stream { count } else { count.saturating_sub(NEAR_STEPS).max(opened) };
    // SAFETY: the caller's tile has so many steps of x and W.
    unsafe {
        let [y, residual, b] = ends(block, pass, column);
        let end_of_row = |p: usize, row: usize| {
            near::<L, WIDTH>(w.wrapping_add((p + NEAR_STEPS) * width));
            near::<L, WIDTH>(y.wrapping_add(row * block.y_stride));
            near::<L, WIDTH>(residual.wrapping_add(row * block.y_stride));
        };
        accumulate(sums, x, w, width, 0..opened, |p| end_of_row(p, p));
        between(sums, block, pass, column, opened..closing);
        let (next_x, next_w) = next(block, pass, ROWS);
        accumulate(sums, x, w, width, closing..count, |p| {
            let step = p - closing;
            near::<L, WIDTH>(b.wrapping_add(step * width));
            if is_wide {
                near::<L, WIDTH>(next_w.wrapping_add(step * width));
                near::<L, 1>(next_x.wrapping_add(step / NEXT_LINES * block.k + step % NEXT_LINES * LANE));
            } else {
                end_of_row(p, step);
            }
        });
    }
}

/// The tile's rows of x and its lanes of W, from the pass's first step on.
#[inline(always)]
fn factors(block: &Block<'_>, pass: &Pass<'_>, column: usize) -> (Factor, *const f32) {
    let &Pass { row, steps, .. } = pass;
    let x = block.x.wrapping_add(row * block.k + steps.first);
    let w = block.w.wrapping_add(steps.first * block.width + column);
    (Factor { at: x, row_stride: block.k, step_stride: 1 }, w)
}

/// Fetches lanes into the first-level cache.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
unsafe fn near<L: Lanes, const COUNT: usize>(from: *const f32) {
    for v in 0..COUNT {
        // SAFETY: a prefetch may be of any address.
        unsafe { L::prefetch(from.wrapping_add(v * LANE)) };
    }
}

/// Steps of W in which what is read later is fetched: what the pass says and each B that comes next, in as much of the steps
/// as it is of all. A core waits for few lines at a time, so they are spread.
///
/// # Safety
/// As for [`tile`]; the steps are the pass's.
#[inline(always)]
unsafe fn between<L: Lanes, const ROWS: usize, const WIDTH: usize>(
    sums: &mut [[L; WIDTH]; ROWS],
    block: &Block<'_>,
    pass: &Pass<'_>,
    column: usize,
    steps: Range<usize>,
) {
    let (x, w) = factors(block, pass, column);
    let width = block.width;
    // SAFETY: the caller's tile has so many steps of x and W; a prefetch may be of any address.
    unsafe {
        let stream = |p: usize| {
            // Of few rows a step takes longer, the more there are: as far ahead in time.
            let (ahead, lines) =
                if ROWS <= STREAM_ROWS { (STREAM_AHEAD / ROWS, 1) } else { (STREAM_AHEAD, WIDTH) };
            for v in 0..lines {
                L::prefetch_far(w.wrapping_add(p * width + ahead + v * LANE));
            }
        };
        let shares = pass.shares();
        // Mostly nothing else is fetched, and that is worth doing without divisions.
        let all: usize =
            if shares == 1 { 0 } else { (0..shares).map(|share| pass.share(block, share).floats).sum() };
        let (mut begin, mut floats) = (steps.start, 0);
        for share in 0..shares {
            let fetch = pass.share(block, share);
            floats += fetch.floats;
            let is_last = share + 1 == shares;
            let end = if is_last { steps.end } else { steps.start + steps.len() * floats / all.max(1) };
            let stride =
                if shares == 1 { pass.far_stride } else { fetch.floats.div_ceil((end - begin).max(1)) };
            let from = fetch.from.wrapping_sub(begin * stride);
            let later = |p: usize| {
                let at = from.wrapping_add(p * stride);
                L::prefetch_far(at);
                L::prefetch_far(at.wrapping_add(stride / 2));
            };
            match (pass.is_stream, stride) {
                (true, 0) => accumulate(sums, x, w, width, begin..end, stream),
                (true, _) => accumulate(sums, x, w, width, begin..end, |p| {
                    stream(p);
                    later(p);
                }),
                (false, _) => accumulate(sums, x, w, width, begin..end, |p| {
                    near::<L, WIDTH>(w.wrapping_add((p + NEAR_STEPS) * width));
                    later(p);
                }),
            }
            begin = end;
        }
    }
}

/// What a tile meets at its end: its lines of y, which stores would otherwise wait for and hold up the next tile's, and those
/// of the residual, a row apart; and the steps of B. What is pushed out of the first-level cache again is not far. Where one of
/// them is not there, or not met yet, y is fetched once more: addresses that are nowhere would be looked for in the page table
/// each time.
#[inline(always)]
fn ends(block: &Block<'_>, pass: &Pass<'_>, column: usize) -> [*const f32; 3] {
    let y = block.y.wrapping_add(pass.row * block.y_stride + column).cast_const();
    let is_last = pass.steps.first + pass.steps.count == block.k;
    let residual = block.residual_at(pass.row, column);
    let b = pass.finish.filter(|finish| finish.rank > 0);
    [
        y,
        if block.residual.is_null() || !is_last { y } else { residual },
        b.map_or(y, |finish| finish.panel(block).wrapping_add(column)),
    ]
}

/// Where the next tile, one as wide as the panel, begins: x, and W. After the last rows come the first ones, with the next block
/// of inputs or the next panel.
#[inline(always)]
fn next(block: &Block<'_>, pass: &Pass<'_>, rows: usize) -> (*const f32, *const f32) {
    let Steps { first, count, .. } = pass.steps;
    let (row, first) = match pass.row + rows {
        row if row < block.rows => (row, first),
        _ => (0, first + count),
    };
    let x = block.x.wrapping_add(row * block.k + if first < block.k { first } else { 0 });
    (x, block.w.wrapping_add(first * block.width))
}

/// What follows the sums of W: the low-rank part, gain, bias, shift and residual.
///
/// # Safety
/// As for [`tile`]; `finish` is the rows'.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
unsafe fn finished<L: Lanes, const ROWS: usize, const WIDTH: usize>(
    sums: &mut [[L; WIDTH]; ROWS],
    block: &Block<'_>,
    finish: &Finish,
    row: usize,
    column: usize,
    counts: [usize; WIDTH],
) {
    // SAFETY: vectors have as many floats as there are outputs, panels whole lanes.
    unsafe {
        if finish.rank > 0 {
            let skipped = block.first_row + row - finish.first;
            let h = finish.h.add(skipped * finish.rank);
            let h = Factor { at: h, row_stride: finish.rank, step_stride: 1 };
            let b = finish.panel(block).add(column);
            accumulate(sums, h, b, block.width, 0..finish.rank, |_| {});
        }
        if !finish.gain.is_null() {
            let gain = finish.gain.add(block.first_column * finish.gain_stride + column);
            for v in 0..WIDTH {
                let gain = L::load_first(gain.add(v * LANE), counts[v]);
                for r in 0..ROWS {
                    sums[r][v] = sums[r][v].mul(gain);
                }
            }
        }
        for added in [finish.bias, finish.shift] {
            if !added.is_null() {
                for v in 0..WIDTH {
                    let added = L::load_first(added.add(block.first_column + column + v * LANE), counts[v]);
                    for r in 0..ROWS {
                        sums[r][v] = sums[r][v].add(added);
                    }
                }
            }
        }
        if !block.residual.is_null() {
            let residual = block.residual_at(row, column);
            for r in 0..ROWS {
                for v in 0..WIDTH {
                    let added = L::load_first(residual.add(r * block.y_stride + v * LANE), counts[v]);
                    sums[r][v] = sums[r][v].add(added);
                }
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

/// `sums[r][v] += x[r, p] * w[p, v]` for each step p in turn; steps of w are `w_stride` apart. `fetch` is called with each p, to
/// fetch what is read later.
///
/// # Safety
/// The CPU has the instructions of `L`; `x` has `ROWS` rows, `w` `WIDTH` lanes, and both these steps.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain ranges unroll into registers
pub(super) unsafe fn accumulate<L: Lanes, const ROWS: usize, const WIDTH: usize>(
    sums: &mut [[L; WIDTH]; ROWS],
    x: Factor,
    w: *const f32,
    w_stride: usize,
    steps: Range<usize>,
    fetch: impl Fn(usize),
) {
    // SAFETY: the caller's rows, lanes and steps.
    unsafe {
        let mut lanes = [L::splat(0.0); WIDTH];
        for p in steps {
            let w = w.add(p * w_stride);
            for v in 0..WIDTH {
                lanes[v] = L::load(w.add(v * LANE));
            }
            fetch(p);
            for r in 0..ROWS {
                let x = L::splat(*x.at.add(r * x.row_stride + p * x.step_stride));
                for v in 0..WIDTH {
                    sums[r][v] = x.mul_add(lanes[v], sums[r][v]);
                }
            }
        }
    }
}
