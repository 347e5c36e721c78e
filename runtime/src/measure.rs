//! What this machine can do at most, measured with the very kernels that products run: how fast a tile is when all it
//! reads is in the first-level cache, and how fast memory can be read. One thread each. It knows nothing about models.
//!
//! [`Machine::measure`] gives both in one go. [`Tile`] and [`Stream`] are single steps for whoever times them in turn with
//! something else.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::kernels::{Block, STREAM_STEP};
use crate::panels::{LANE, PANEL};

/// Rows that any height of a full tile divides.
pub const FULL_ROWS: usize = 24;
/// Bytes that a [`Tile`] reads and writes at most: half of a first-level cache of 48 KiB.
const TILE_BYTES: usize = 24 << 10;
/// Bytes of a weight of 4096 by 4096 floats, which is out of every cache that one thread has for itself.
pub const STREAM_BYTES: usize = 64 << 20;
/// How long each bound is measured.
const SPAN: Duration = Duration::from_millis(80);
/// A turn takes at least about this long: a clock is coarse.
const TURN: Duration = Duration::from_micros(200);

/// The bounds of one thread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Floating-point operations per second of the product's tile running out of the first-level cache; a fused multiply
    /// and add counts as two.
    pub flops_per_second: f64,
    /// Bytes per second of a plain read from memory.
    pub bytes_per_second: f64,
}

impl Machine {
    /// Measures both bounds with the kernels of `context`, on the calling thread: about a quarter of a second. Each is the
    /// fastest of many turns, so what else the machine does meanwhile matters little.
    pub fn measure(context: &Context) -> Machine {
        let mut stream = Stream::new(STREAM_BYTES);
        let read = fastest(|| stream.read(context));
        Machine {
            flops_per_second: ceiling(context, FULL_ROWS),
            bytes_per_second: stream.bytes() as f64 / read.as_secs_f64(),
        }
    }
}

/// Floating-point operations per second of a product of `rows` rows running out of the first-level cache. With
/// [`FULL_ROWS`], all tiles are full.
///
/// # Panics
/// When there are more rows than that cache has room for, see [`Tile::new`].
pub fn ceiling(context: &Context, rows: usize) -> f64 {
    let mut tile = Tile::new(rows);
    let calls = TURN.as_nanos().div_ceil(fastest_of(3, || tile.run(context)).as_nanos().max(1)) as u32;
    let turn = fastest(|| (0..calls).for_each(|_| tile.run(context)));
    f64::from(calls) * tile.flops() / turn.as_secs_f64()
}

/// A product over one panel, small enough to run out of the first-level cache.
#[derive(Debug)]
pub struct Tile {
    rows: usize,
    k: usize,
    x: Floats,
    w: Floats,
    y: Floats,
}

impl Tile {
    /// A product of `rows` rows with a full panel, with as many inputs as there is room for.
    ///
    /// # Panics
    /// When `rows` is 0, or when not even [`LANE`] inputs fit.
    pub fn new(rows: usize) -> Tile {
        let floats = TILE_BYTES / size_of::<f32>();
        let k = floats.saturating_sub(rows * PANEL) / (rows + PANEL) / LANE * LANE;
        assert!(rows > 0 && k > 0, "a tile of {rows} rows does not fit into the first-level cache");
        Tile { rows, k, x: Floats::new(rows * k), w: Floats::new(PANEL * k), y: Floats::new(rows * PANEL) }
    }

    /// Floating-point operations of one run; a fused multiply and add counts as two.
    pub fn flops(&self) -> f64 {
        2.0 * (self.rows * self.k * PANEL) as f64
    }

    /// Computes it once on the calling thread, with the kernels of `context`.
    pub fn run(&mut self, context: &Context) {
        let block = Block {
            rows: self.rows,
            k: self.k,
            rank: 0,
            width: PANEL,
            columns: PANEL,
            x: self.x.as_slice().as_ptr(),
            w: self.w.as_slice().as_ptr(),
            h: std::ptr::null(),
            b: std::ptr::null(),
            gain: std::ptr::null(),
            bias: std::ptr::null(),
            y: self.y.as_mut_slice().as_mut_ptr(),
            y_stride: PANEL,
        };
        // SAFETY: x is `[rows, k]`, w a panel `[k, PANEL]`, y `[rows, PANEL]`; there is no low-rank part, gain or bias; the
        // kernels of a context are ones that this CPU can run.
        unsafe { (context.kernels.product)(black_box(&block)) };
    }
}

/// A buffer to be read from end to end.
#[derive(Debug)]
pub struct Stream {
    floats: Floats,
}

impl Stream {
    /// A buffer of so many bytes, rounded up to whole steps of the read; see [`STREAM_BYTES`].
    pub fn new(bytes: usize) -> Stream {
        let steps = bytes.div_ceil(STREAM_STEP * size_of::<f32>());
        Stream { floats: Floats::new(steps * STREAM_STEP) }
    }

    /// Bytes that one read reads.
    pub fn bytes(&self) -> usize {
        size_of_val(self.floats.as_slice())
    }

    /// Reads the buffer once on the calling thread, with the instructions of `context`'s kernels.
    pub fn read(&mut self, context: &Context) {
        black_box(self.sum(context));
    }

    fn sum(&self, context: &Context) -> f32 {
        let floats = self.floats.as_slice();
        // SAFETY: the floats are borrowed; the kernels of a context are ones that this CPU can run.
        unsafe { (context.kernels.stream)(floats.as_ptr(), floats.len()) }
    }
}

/// Floats from a cache line's start on, each written once: pages that nobody has written are all one page in cache.
#[derive(Debug)]
struct Floats {
    memory: Vec<f32>,
    first: usize,
    count: usize,
}

impl Floats {
    fn new(count: usize) -> Floats {
        let memory = vec![0.5; count + LANE];
        // Where alignment is unknown, an unaligned buffer still serves.
        let first = memory.as_ptr().align_offset(LANE * size_of::<f32>()).min(LANE);
        Floats { memory, first, count }
    }

    fn as_slice(&self) -> &[f32] {
        &self.memory[self.first..self.first + self.count]
    }

    fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.memory[self.first..self.first + self.count]
    }
}

/// The time of the fastest of as many turns as [`SPAN`] takes, at least one after a warm one.
fn fastest(mut turn: impl FnMut()) -> Duration {
    let once = fastest_of(1, &mut turn).max(Duration::from_nanos(1));
    fastest_of(SPAN.as_nanos().div_ceil(once.as_nanos()) as usize, turn)
}

/// The time of the fastest of so many turns.
fn fastest_of(turns: usize, mut turn: impl FnMut()) -> Duration {
    let times = (0..turns).map(|_| {
        let start = Instant::now();
        turn();
        start.elapsed()
    });
    times.min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{FULL_ROWS, PANEL, Stream, TILE_BYTES, Tile};
    use crate::context::{Context, Options};
    use crate::kernels::KernelSet;
    use std::num::NonZeroUsize;

    fn contexts() -> impl Iterator<Item = Context> {
        let runnable = KernelSet::ALL.into_iter().filter(|set| set.kernels().is_some());
        runnable.map(|set| {
            Context::new(Options { threads: Some(NonZeroUsize::MIN), kernels: Some(set) }).unwrap()
        })
    }

    #[test]
    fn a_tile_is_a_product_that_fits_into_the_cache() {
        for context in contexts() {
            let mut tile = Tile::new(FULL_ROWS);
            tile.run(&context);
            assert_eq!(tile.flops(), (2 * FULL_ROWS * PANEL * tile.k) as f64);
            assert!(tile.y.as_slice().iter().all(|&y| y == 0.25 * tile.k as f32));
            let floats = tile.x.count + tile.w.count + tile.y.count;
            assert!(floats * size_of::<f32>() <= TILE_BYTES);
        }
    }

    #[test]
    fn a_stream_reads_every_float_once() {
        for context in contexts() {
            for (bytes, rounded) in [(0, 0), (1, 128), (1280, 1280)] {
                let stream = Stream::new(bytes);
                assert_eq!(stream.bytes(), rounded);
                assert_eq!(stream.sum(&context), rounded as f32 / 8.0);
            }
        }
    }
}
