//! What a core and its memory can do at most, measured in turn with everybody else: a machine that is shared is not
//! equally fast all the time.

use crate::contender::{Call, Entry, Who};
use crate::error::Error;
use crate::results::Bounds;
use crate::rounds::Times;
use engraft::runtime::Context;
use engraft::runtime::measure::{Peak, Stream, Tile};

/// Bytes of a weight of 4096 by 4096 floats, which is out of every cache that one thread has for itself.
pub const FAR: usize = 64 << 20;

/// A step of the machine's own, on one thread.
struct Step<'a, S> {
    state: S,
    run: fn(&mut S, &Context),
    context: &'a Context,
}

impl<S> Call for Step<'_, S> {
    fn call(&mut self) -> Result<(), Error> {
        (self.run)(&mut self.state, self.context);
        Ok(())
    }

    fn output(&self) -> Result<Vec<f32>, Error> {
        Ok(Vec::new())
    }
}

/// Operations of a turn of registers alone: some tens of microseconds.
const PEAK_FLOPS: usize = 4 << 20;

/// What nobody who computes a workload in f32 with its adapter unmerged can do without.
#[derive(Clone, Copy)]
pub struct Least {
    /// A multiplication and an addition for each element of the weights and of the adapter and each row, and those of
    /// attention.
    pub flops: f64,
    /// The weights, in bytes.
    pub bytes: usize,
}

/// What one call of each does.
pub struct Work {
    tile: f64,
    read: f64,
    peak: f64,
    least: Least,
}

/// The tile, a read of so many bytes and arithmetic alone with the first context, and a plain read of the weights with
/// each.
///
/// # Errors
/// There is no memory for them.
pub fn entries<'a>(
    contexts: &[&'a Context],
    read: usize,
    least: Least,
) -> Result<(Work, Vec<Entry<'a>>), Error> {
    let context = contexts[0];
    let (tile, stream, peak) = (Tile::new(context)?, Stream::new(read)?, Peak::new(PEAK_FLOPS));
    let work = Work { tile: tile.flops(), read: stream.bytes() as f64, peak: peak.flops(), least };
    let mut entries = vec![
        entry(Who::Tile, 1, tile, Tile::run, context),
        entry(Who::Read, 1, stream, Stream::read, context),
        entry(Who::Peak, 1, peak, Peak::run, context),
    ];
    for context in contexts {
        let (threads, weights) = (context.workers.threads(), Stream::new(least.bytes)?);
        entries.push(entry(Who::Weights, threads, weights, Stream::read, context));
    }
    Ok((work, entries))
}

fn entry<'a, S: 'a>(
    who: Who,
    threads: usize,
    state: S,
    run: fn(&mut S, &Context),
    context: &'a Context,
) -> Entry<'a> {
    Entry { who, threads, contender: Box::new(Step { state, run, context }) }
}

impl Work {
    /// What that is per second.
    pub fn bounds(&self, times: &[Times]) -> Bounds {
        let rate = |who, amount: f64| {
            let times = times.iter().find(|times| times.who == who);
            times.map_or(f64::NAN, |times| amount / times.median * 1e6)
        };
        let peak = rate(Who::Peak, self.peak);
        let least = |read: &Times| {
            let arithmetic = self.least.flops / peak / read.threads as f64 * 1e6;
            // Whoever was faster than that shows that one can be.
            let fastest =
                times.iter().filter(|times| times.threads == read.threads && times.who.meaning().is_some());
            (
                read.threads,
                fastest.map(|times| times.median).fold(arithmetic.max(read.quartiles[0]), f64::min),
            )
        };
        Bounds {
            flops_per_second: rate(Who::Tile, self.tile),
            bytes_per_second: rate(Who::Read, self.read),
            peak_flops_per_second: peak,
            least: times.iter().filter(|times| times.who == Who::Weights).map(least).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Least, Work};
    use crate::contender::Who;
    use crate::rounds::Times;

    fn times(who: Who, threads: usize, median: f64) -> Times {
        Times { who, threads, median, quartiles: [median - 1.0, median + 1.0], turns: 1, calls: 1 }
    }

    #[test]
    fn nobody_takes_less_than_arithmetic_alone_and_a_plain_read_do() {
        // 2 GFlop a second: 8000 take 4 us.
        let work = Work { tile: 1.0, read: 1.0, peak: 2000.0, least: Least { flops: 8000.0, bytes: 1 } };
        let least = |reads: [f64; 2], ours: f64| {
            let machine = [times(Who::Tile, 1, 1.0), times(Who::Read, 1, 1.0), times(Who::Peak, 1, 1.0)];
            let reads = [times(Who::Weights, 1, reads[0]), times(Who::Weights, 2, reads[1])];
            let times = [&machine[..], &reads, &[times(Who::OpenVino, 1, ours)]].concat();
            let found = work.bounds(&times).least;
            [found[&1], found[&2]]
        };
        assert_eq!(least([4.5, 2.5], 9.0), [4.0, 2.0], "arithmetic, shared by two threads");
        assert_eq!(least([7.0, 5.0], 9.0), [6.0, 4.0], "the faster quarter of reads");
        assert_eq!(least([7.0, 5.0], 5.5), [5.5, 4.0], "somebody was faster");
    }
}
