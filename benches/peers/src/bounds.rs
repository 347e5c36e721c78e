//! What a core and its memory can do at most, measured in turn with everybody else: a machine that is shared is not
//! equally fast all the time.

use crate::contender::{Call, Entry, Who};
use crate::error::Error;
use crate::results::Bounds;
use crate::rounds::Times;
use engraft::runtime::Context;
use engraft::runtime::measure::{Stream, Tile};

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

/// What one call of each does.
pub struct Work {
    flops: f64,
    bytes: f64,
}

/// The tile, and a read of so many bytes.
pub fn entries(context: &Context, bytes: usize) -> (Work, [Entry<'_>; 2]) {
    let (tile, stream) = (Tile::new(context), Stream::new(bytes));
    let work = Work { flops: tile.flops(), bytes: stream.bytes() as f64 };
    let tile = Box::new(Step { state: tile, run: Tile::run, context });
    let read = Box::new(Step { state: stream, run: Stream::read, context });
    let tile = Entry { who: Who::Tile, threads: 1, contender: tile };
    (work, [tile, Entry { who: Who::Read, threads: 1, contender: read }])
}

impl Work {
    /// What that is per second.
    pub fn bounds(&self, times: &[Times]) -> Bounds {
        let rate = |who, amount: f64| {
            let times = times.iter().find(|times| times.who == who);
            times.map_or(f64::NAN, |times| amount / times.median * 1e6)
        };
        Bounds {
            flops_per_second: rate(Who::Tile, self.flops),
            bytes_per_second: rate(Who::Read, self.bytes),
        }
    }
}
