//! How fast this machine runs the kernels of an adapted layer: tiles of every height, dot products, merging, and reading a
//! weight from wherever it lies. One thread. It knows nothing about layers, and what follows from the rates is decided
//! elsewhere.

use std::hint::black_box;
use std::time::Duration;

use super::{Floats, MeasureError, TURN, Tile, fastest_of, memory};
use crate::context::Context;
use crate::entry::{BLOCK_ROWS, DOT_ROWS};
use crate::kernels::{AdaptedPanel, Block, DotBlock, Finish, K_BLOCK, MergeBlock};
use crate::panels::{LANE, PANEL, row_stride};

/// Working sets at which reading is measured: from what a second-level cache has room for to what none has.
const WORKING_SETS: [usize; 6] = [512 << 10, 2 << 20, 8 << 20, 16 << 20, 32 << 20, 96 << 20];
/// Bytes of a panel for each input.
const PANEL_ROW: f64 = (PANEL * size_of::<f32>()) as f64;
/// Panels that lie between one and the next where they are apart.
const APART: usize = 5;
/// Inputs of the products that are measured.
const K: usize = 768;
/// Rows of A.
const RANK: usize = 8;
/// Rows of x that dot products are measured with: those of a task of few rows, and of those whose rows have adapters.
const ROWS: usize = DOT_ROWS;
/// How long each rate is measured.
const SPAN: Duration = Duration::from_millis(12);

/// The rates of one thread.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// Outputs of a full panel, which a tile computes.
    pub panel: u64,
    /// Rows of a block, for which a weight is read once.
    pub block: u64,
    /// Inputs of a block at most, which stay near while its rows pass over them.
    pub block_inputs: u64,
    /// Seconds that a tile of 1, 2, ... rows and a full panel takes for each input, with all it reads in the first-level
    /// cache. The last is the highest that there is.
    pub tile: Vec<f64>,
    /// Seconds for each row, input and output of a product with few outputs.
    pub dot: f64,
    /// Seconds for each input, output and rank of merging.
    pub merge: f64,
    /// From wherever a working set lies, the smallest first.
    pub memory: Vec<Level>,
}

/// What reading and taking memory costs, at a size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// The bytes that are used again and again.
    pub bytes: u64,
    /// Bytes per second at which a product of one row reads its weight.
    pub read: f64,
    /// Seconds that a tile of one row takes for each input of a full panel, and the highest tile, if it is alone and no panel
    /// lies beside the one before: nothing has fetched it.
    pub apart: [f64; 2],
    /// The same of the highest tile where others follow it.
    pub first: f64,
    /// Bytes per second at which as much memory is taken from the system, written, and given back.
    pub fresh: f64,
}

impl Rates {
    /// Measures all of them with the kernels of `context`, on the calling thread: about a second. Each is the fastest of
    /// several turns, so what else the machine does meanwhile matters little.
    ///
    /// # Errors
    /// There is no memory to measure with, which is little more than twice the largest working set: 192 MiB.
    pub fn measure(context: &Context) -> Result<Rates, MeasureError> {
        let tile: Vec<_> =
            (1..=context.kernels.tile_rows).map(|rows| tile(context, rows)).collect::<Result<_, _>>()?;
        let largest = WORKING_SETS[WORKING_SETS.len() - 1] / size_of::<f32>();
        let weight = Floats::new("a working set", largest)?;
        let highest = context.kernels.tile_rows;
        let level = |bytes: usize| {
            Ok(Level {
                bytes: bytes as u64,
                read: PANEL_ROW / read(context, &weight, bytes, 1, 1)?,
                apart: [
                    read(context, &weight, bytes, 1, APART)?,
                    read(context, &weight, bytes, highest, APART)?,
                ],
                // Of two tiles the other finds the panel near.
                first: (read(context, &weight, bytes, 2 * highest, APART)? - tile[highest - 1])
                    .max(tile[highest - 1]),
                fresh: bytes as f64 / tried(|| memory("a working set", bytes))?,
            })
        };
        let memory = WORKING_SETS.into_iter().map(level).collect::<Result<_, _>>()?;
        Ok(Rates {
            panel: PANEL as u64,
            block: BLOCK_ROWS as u64,
            block_inputs: K_BLOCK as u64,
            dot: dot(context)?,
            merge: merge(context)?,
            memory,
            tile,
        })
    }
}

/// Seconds that a tile of so many rows takes for each input.
fn tile(context: &Context, rows: usize) -> Result<f64, MeasureError> {
    let mut tile = Tile::of(rows)?;
    Ok(repeated(|| tile.run(context)) / tile.inputs() as f64)
}

/// Seconds for each input of a panel that a product of few rows takes that reads panels of so many bytes together, each so
/// many further than the one before.
fn read(
    context: &Context,
    weight: &Floats,
    bytes: usize,
    rows: usize,
    stride: usize,
) -> Result<f64, MeasureError> {
    let panels = bytes / (K * PANEL * size_of::<f32>());
    let floats = |count| Floats::new("rows", count);
    let (x, mut y) = (floats(rows * K)?, floats(rows * PANEL)?);
    let order = (0..stride).flat_map(|first| (first..panels).step_by(stride));
    let seconds = repeated(|| {
        for panel in order.clone() {
            let finishes = [Finish::nothing(rows)];
            let block = Block {
                rows,
                k: K,
                first_column: 0,
                width: PANEL,
                columns: PANEL,
                x: x.as_slice().as_ptr(),
                w: weight.as_slice()[panel * K * PANEL..].as_ptr(),
                y: y.as_mut_slice().as_mut_ptr(),
                y_stride: PANEL,
                residual: std::ptr::null(),
                first_row: 0,
                finishes: &finishes,
                ahead: &[],
            };
            // SAFETY: x is `[rows, K]`, y `[rows, PANEL]`, and w a panel `[K, PANEL]` of those that the weight has room for; there
            // is nothing else; the kernels of a context are ones that this CPU can run.
            unsafe { (context.kernels.product)(black_box(&block)) };
        }
    });
    Ok(seconds / (panels * K) as f64)
}

/// Seconds for each row, input and output of a product with few outputs.
fn dot(context: &Context) -> Result<f64, MeasureError> {
    let floats = |count| Floats::new("dot products", count);
    let (x, a, mut h) = (floats(ROWS * K)?, floats(RANK * row_stride(K))?, floats(ROWS * RANK)?);
    let block = DotBlock {
        rows: ROWS,
        k: K,
        out: RANK,
        x: x.as_slice().as_ptr(),
        a: a.as_slice().as_ptr(),
        h: h.as_mut_slice().as_mut_ptr(),
        ahead: std::ptr::null(),
    };
    // SAFETY: x is `[ROWS, K]`, a `[RANK, K]` packed as rows, h `[ROWS, RANK]`; the kernels of a context are ones that this
    // CPU can run.
    let seconds = repeated(|| unsafe { (context.kernels.dot)(black_box(&block)) });
    Ok(seconds / (ROWS * K * RANK) as f64)
}

/// Seconds for each input, output and rank of merging, with what it reads and writes near.
fn merge(context: &Context) -> Result<f64, MeasureError> {
    // A rank that is high beside what merging does at any rank, and few inputs, so that it runs out of near caches.
    let (k, rank) = (4 * LANE, 64);
    let floats = |count| Floats::new("merging", count);
    let (w, a, b) = (floats(k * PANEL)?, floats(rank * row_stride(k))?, floats(rank * PANEL)?);
    let mut merged = floats(k * PANEL)?;
    let panel = AdaptedPanel {
        k,
        rank,
        width: PANEL,
        columns: PANEL,
        w: w.as_slice().as_ptr(),
        a: a.as_slice().as_ptr(),
        a_stride: row_stride(k),
        b: b.as_slice().as_ptr(),
    };
    let block = MergeBlock { panel, gain: std::ptr::null(), merged: merged.as_mut_slice().as_mut_ptr() };
    // SAFETY: w and what is merged are panels `[k, PANEL]`, a is `[rank, k]` packed as rows, b a panel `[rank, PANEL]`; the
    // kernels of a context are ones that this CPU can run.
    let seconds = repeated(|| unsafe { (context.kernels.merge)(black_box(&block)) });
    Ok(seconds / (k * rank * PANEL) as f64)
}

/// As [`repeated`], of what takes memory: that there is none is told at once, which is no time of it.
fn tried<T>(mut run: impl FnMut() -> Result<T, MeasureError>) -> Result<f64, MeasureError> {
    let mut all = Ok(());
    let seconds = repeated(|| match run() {
        Ok(made) => drop(black_box(made)),
        Err(error) => all = Err(error),
    });
    all.map(|()| seconds)
}

/// The seconds of the fastest of as many runs as [`SPAN`] takes, several at a turn where one is too short for a clock.
fn repeated(mut run: impl FnMut()) -> f64 {
    let once = fastest_of(3, &mut run).max(Duration::from_nanos(1));
    let each = TURN.as_nanos().div_ceil(once.as_nanos()).max(1) as u32;
    let turns = (SPAN.as_nanos() / (u128::from(each) * once.as_nanos())).clamp(2, 1000) as usize;
    fastest_of(turns, || (0..each).for_each(|_| run())).as_secs_f64() / f64::from(each)
}

#[cfg(test)]
mod tests {
    use super::{Level, MeasureError, Rates, WORKING_SETS, memory, tried};
    use crate::context::{Context, Options};
    use std::num::NonZeroUsize;

    /// That they are what they say is for whoever times; here, that there is one of each, and that all are numbers.
    #[test]
    fn there_is_a_rate_for_each_height_and_working_set() {
        let context = Context::new(Options { threads: Some(NonZeroUsize::MIN), kernels: None }).unwrap();
        let rates = Rates::measure(&context).unwrap();
        assert_eq!(rates.tile.len(), context.kernels.tile_rows);
        assert_eq!(rates.memory.iter().map(|level| level.bytes as usize).collect::<Vec<_>>(), WORKING_SETS);
        let of_level = |level: &Level| [level.read, level.fresh, level.first, level.apart[0], level.apart[1]];
        let memory = rates.memory.iter().flat_map(of_level);
        let all = rates.tile.iter().copied().chain([rates.dot, rates.merge]).chain(memory);
        assert!(all.into_iter().all(|rate| rate.is_finite() && rate > 0.0), "{rates:?}");
    }

    /// More than any machine has.
    #[test]
    fn memory_that_there_is_none_of_is_not_timed() {
        let refused = MeasureError::OutOfMemory { what: "a working set", bytes: 1 << 62 };
        assert_eq!(tried(|| memory("a working set", 1 << 62)), Err(refused));
    }
}
