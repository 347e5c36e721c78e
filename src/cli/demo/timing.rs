//! Times of calls, fair to each other: the contenders take turns, and medians are compared. It knows nothing about what
//! is called.

use crate::cli::error::CliError;
use engraft::runtime::{DType, Model, Session, Tensor};
use std::time::{Duration, Instant};

/// Turns of each contender.
pub const ROUNDS: usize = 101;

/// Rounds before the clock counts.
const WARM_UP: usize = 5;

/// A turn takes at least about this long, in as many calls as that takes: a clock is coarse.
const TURN: Duration = Duration::from_micros(200);

/// A model that is called with one input for one output.
pub struct Contender<'a> {
    session: Session,
    input: &'a Tensor,
    output: [Tensor; 1],
}

impl<'a> Contender<'a> {
    /// A model and its input.
    pub fn new(model: &Model, input: &'a Tensor) -> Self {
        Self { session: model.session(), input, output: [Tensor::empty(DType::F32)] }
    }

    /// The time of so many calls.
    fn turn(&mut self, calls: u32) -> Result<Duration, CliError> {
        let start = Instant::now();
        for _ in 0..calls {
            self.session.run_into(&[self.input], &mut self.output)?;
        }
        Ok(start.elapsed())
    }
}

/// The median time of one call of each contender.
///
/// # Errors
/// A call fails.
pub fn medians<const N: usize>(mut contenders: [Contender; N]) -> Result<[Duration; N], CliError> {
    let mut calls = [1; N];
    for (contender, calls) in contenders.iter_mut().zip(&mut calls) {
        contender.turn(1)?;
        let once = contender.turn(1)?.max(Duration::from_nanos(100));
        *calls = TURN.as_nanos().div_ceil(once.as_nanos()) as u32;
    }
    let mut times: [Vec<Duration>; N] = std::array::from_fn(|_| Vec::with_capacity(ROUNDS));
    for round in 0..WARM_UP + ROUNDS {
        for (i, contender) in contenders.iter_mut().enumerate() {
            let time = contender.turn(calls[i])? / calls[i];
            if round >= WARM_UP {
                times[i].push(time);
            }
        }
    }
    Ok(times.map(|mut times| {
        times.sort_unstable();
        times[ROUNDS / 2]
    }))
}
