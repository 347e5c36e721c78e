//! What this machine can do at most: how fast the tile that products run is when all it reads is in the first-level
//! cache, how fast memory can be read plainly, and how fast registers alone are multiplied and added. It knows nothing
//! about models.
//!
//! [`Machine::measure`] gives the first two of one thread in one go. [`Tile`], [`Stream`] and [`Peak`] are single steps for whoever times
//! them in turn with something else. [`Rates`] are those of an adapted layer's kernels.

mod rates;

pub use rates::{Level, Rates};

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::kernels::{Block, Finish, PEAK_STEP, STREAM_STEP};
use crate::memory::Buffer;
use crate::panels::{LANE, PANEL};

/// Bytes that a [`Tile`] reads and writes at most: what a first-level cache of 32 KiB has room for.
const TILE_BYTES: usize = 30 << 10;
/// Bytes of a weight of 4096 by 4096 floats, which is out of every cache that one thread has for itself.
const STREAM_BYTES: usize = 64 << 20;
/// How long each bound is measured.
const SPAN: Duration = Duration::from_millis(80);
/// A turn takes at least about this long: a clock is coarse.
const TURN: Duration = Duration::from_micros(200);

/// Why a machine can't be measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// Memory does not suffice.
    #[error("there is no memory for {what} of {bytes} bytes to measure this machine with")]
    OutOfMemory {
        /// What is measured with it.
        what: &'static str,
        /// How many.
        bytes: u64,
    },
}

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
    ///
    /// # Errors
    /// There is no memory to measure with, which is little more than 64 MiB.
    pub fn measure(context: &Context) -> Result<Machine, MeasureError> {
        let stream = Stream::new(STREAM_BYTES)?;
        let read = fastest(|| {
            black_box(stream.sum(context, 0, 1));
        });
        Ok(Machine {
            flops_per_second: ceiling(context)?,
            bytes_per_second: stream.bytes() as f64 / read.as_secs_f64(),
        })
    }
}

/// Floating-point operations per second of a full tile running out of the first-level cache.
fn ceiling(context: &Context) -> Result<f64, MeasureError> {
    let mut tile = Tile::new(context)?;
    let calls = TURN.as_nanos().div_ceil(fastest_of(3, || tile.run(context)).as_nanos().max(1)) as u32;
    let turn = fastest(|| (0..calls).for_each(|_| tile.run(context)));
    Ok(f64::from(calls) * tile.flops() / turn.as_secs_f64())
}

/// One full tile of a product, small enough to run out of the first-level cache.
#[derive(Debug)]
pub struct Tile {
    rows: usize,
    k: usize,
    x: Floats,
    w: Floats,
    y: Floats,
}

impl Tile {
    /// As many rows as the highest tile of the context's kernels has, a full panel, and as many inputs as there is room
    /// for.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(context: &Context) -> Result<Tile, MeasureError> {
        Tile::of(context.kernels.tile_rows)
    }

    /// As many inputs as there is room for beside so many rows.
    fn of(rows: usize) -> Result<Tile, MeasureError> {
        let floats = TILE_BYTES / size_of::<f32>();
        let k = (floats - rows * PANEL) / (rows + PANEL) / LANE * LANE;
        let floats = |count| Floats::new("a tile", count);
        Ok(Tile { rows, k, x: floats(rows * k)?, w: floats(PANEL * k)?, y: floats(rows * PANEL)? })
    }

    /// Its inputs.
    fn inputs(&self) -> usize {
        self.k
    }

    /// Floating-point operations of one run; a fused multiply and add counts as two.
    pub fn flops(&self) -> f64 {
        2.0 * (self.rows * self.k * PANEL) as f64
    }

    /// Computes it once on the calling thread, with the kernels of `context`.
    pub fn run(&mut self, context: &Context) {
        let finishes = [Finish::nothing(self.rows)];
        let block = Block {
            rows: self.rows,
            k: self.k,
            first_column: 0,
            width: PANEL,
            columns: PANEL,
            x: self.x.as_slice().as_ptr(),
            w: self.w.as_slice().as_ptr(),
            y: self.y.as_mut_slice().as_mut_ptr(),
            y_stride: PANEL,
            residual: std::ptr::null(),
            first_row: 0,
            finishes: &finishes,
            ahead: &[],
        };
        // SAFETY: x is `[rows, k]`, w a panel `[k, PANEL]`, y `[rows, PANEL]`; nothing follows the sums; the
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
    /// A buffer of so many bytes, rounded up to whole steps of the read.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(bytes: usize) -> Result<Stream, MeasureError> {
        let steps = bytes.div_ceil(STREAM_STEP * size_of::<f32>());
        Ok(Stream { floats: Floats::new("a plain read", steps * STREAM_STEP)? })
    }

    /// Bytes that one read reads.
    pub fn bytes(&self) -> usize {
        size_of_val(self.floats.as_slice())
    }

    /// Reads the buffer once with the threads of `context`, each its part, and the instructions of its kernels.
    pub fn read(&mut self, context: &Context) {
        let parts = context.workers.threads();
        context.workers.run(parts, self.floats.count, &|part| {
            black_box(self.sum(context, part, parts));
        });
    }

    /// The sum of one of so many parts.
    fn sum(&self, context: &Context, part: usize, parts: usize) -> f32 {
        let floats = self.floats.as_slice();
        let [first, end] =
            [part, part + 1].map(|part| part * (floats.len() / STREAM_STEP) / parts * STREAM_STEP);
        let floats = &floats[first..end];
        // SAFETY: the floats are borrowed; the kernels of a context are ones that this CPU can run.
        unsafe { (context.kernels.stream)(floats.as_ptr(), floats.len()) }
    }
}

/// Fused multiplications and additions of registers alone: no product can be computed faster.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// How many lanes are added up.
    count: usize,
}

impl Peak {
    /// So many floating-point operations, rounded up to whole steps.
    pub fn new(flops: usize) -> Peak {
        Peak { count: flops.div_ceil(2 * LANE).next_multiple_of(PEAK_STEP) }
    }

    /// Floating-point operations of one run; a fused multiply and add counts as two.
    pub fn flops(&self) -> f64 {
        2.0 * (self.count * LANE) as f64
    }

    /// Computes them once on the calling thread, with the instructions of `context`'s kernels.
    pub fn run(&mut self, context: &Context) {
        black_box(self.sum(context));
    }

    fn sum(self, context: &Context) -> f32 {
        // SAFETY: the kernels of a context are ones that this CPU can run.
        unsafe { (context.kernels.peak)(black_box(self.count)) }
    }
}

/// Floats in memory as weights have it, each written once: pages that nobody has written are all one page in cache.
#[derive(Debug)]
struct Floats {
    memory: Buffer,
    count: usize,
}

impl Floats {
    fn new(what: &'static str, count: usize) -> Result<Floats, MeasureError> {
        let memory = memory(what, count.saturating_mul(size_of::<f32>()))?;
        let mut floats = Floats { memory, count };
        floats.as_mut_slice().fill(0.5);
        Ok(floats)
    }

    fn as_slice(&self) -> &[f32] {
        // SAFETY: the buffer has as many floats, aligned, and all zero or written since.
        unsafe { std::slice::from_raw_parts(self.memory.address().cast(), self.count) }
    }

    fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory.address().cast(), self.count) }
    }
}

/// Memory from the system, written. `what` is measured with it.
fn memory(what: &'static str, bytes: usize) -> Result<Buffer, MeasureError> {
    Buffer::zeroed(bytes).ok_or(MeasureError::OutOfMemory { what, bytes: bytes as u64 })
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
    use super::{LANE, MeasureError, PANEL, PEAK_STEP, Peak, Stream, TILE_BYTES, Tile};
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
            let mut tile = Tile::new(&context).unwrap();
            tile.run(&context);
            assert_eq!(tile.flops(), (2 * tile.rows * PANEL * tile.k) as f64);
            assert!(tile.y.as_slice().iter().all(|&y| y == 0.25 * tile.k as f32));
            let floats = tile.x.count + tile.w.count + tile.y.count;
            assert!(floats * size_of::<f32>() <= TILE_BYTES);
        }
    }

    #[test]
    fn a_stream_reads_every_float_once() {
        for context in contexts() {
            for (bytes, rounded) in [(0, 0), (1, 192), (1344, 1344)] {
                let stream = Stream::new(bytes).unwrap();
                assert_eq!(stream.bytes(), rounded);
                for parts in 1..4 {
                    let sums = (0..parts).map(|part| stream.sum(&context, part, parts));
                    assert_eq!(sums.sum::<f32>(), rounded as f32 / 8.0);
                }
            }
        }
    }

    #[test]
    fn peak_counts_each_product_once() {
        for context in contexts() {
            for flops in [0, 1, 384, 385, 100_000] {
                let peak = Peak::new(flops);
                let step = 2 * LANE * PEAK_STEP;
                assert!(peak.flops() >= flops as f64 && peak.flops() < (flops + step) as f64);
                // The sums begin with 0, 1, ...: what all of them have beyond that is a quarter for each product.
                let begun = Peak::new(0).sum(&context);
                let products = (peak.sum(&context) - begun) / 0.25;
                assert_eq!(products, (peak.count * LANE) as f32, "{}", context.kernels.set());
            }
        }
    }

    /// More than any machine has.
    #[test]
    fn memory_that_there_is_none_of_is_an_error() {
        let refused = |bytes| Stream::new(bytes).map(|stream| stream.bytes()).unwrap_err();
        let bytes = 192 << 54;
        assert_eq!(refused(bytes), MeasureError::OutOfMemory { what: "a plain read", bytes: bytes as u64 });
        assert_eq!(
            refused(usize::MAX).to_string(),
            "there is no memory for a plain read of 18446744073709551615 bytes to measure this machine with"
        );
    }
}
