//! Times of calls, fair to each other: the contenders take turns, and medians are compared. It knows nothing about what
//! is called.

use super::error::CliError;
use engraft::runtime::{DType, Model, Session, Tensor};
use serde::Serializer;
use std::time::{Duration, Instant};

/// Turns of each contender at most, and at least however long they take.
const ROUNDS: [usize; 2] = [101, 11];

/// Rounds beyond the least are only begun within this.
const BUDGET: Duration = Duration::from_secs(1);

/// Rounds before the clock counts.
const WARM_UP: usize = 3;

/// A turn takes at least about this long, in as many calls as that takes: a clock is coarse.
const TURN: Duration = Duration::from_micros(200);

/// What is timed.
pub trait Contender {
    /// Does once what is timed.
    ///
    /// # Errors
    /// It fails.
    fn call(&mut self) -> Result<(), CliError>;
}

/// A model that is called with the same inputs each time, for one output.
pub struct Caller<'a> {
    session: Session,
    inputs: Vec<&'a Tensor>,
    output: [Tensor; 1],
}

impl<'a> Caller<'a> {
    /// A model and its inputs and live parameters in the program's order.
    pub fn new(model: &Model, inputs: Vec<&'a Tensor>) -> Self {
        Self { session: model.session(), inputs, output: [Tensor::empty(DType::F32)] }
    }

    /// What the latest call gave.
    pub fn output(&self) -> &Tensor {
        &self.output[0]
    }
}

impl Contender for Caller<'_> {
    fn call(&mut self) -> Result<(), CliError> {
        Ok(self.session.run_into(&self.inputs, &mut self.output)?)
    }
}

/// Median times.
pub struct Medians {
    /// The median time of one call of each contender.
    pub times: Vec<Duration>,
    /// Of how many turns they are medians.
    pub rounds: usize,
}

/// Times all contenders, turn by turn. When a turn is of several calls, one more goes before it, which brings back to
/// cache what the others have driven out.
///
/// # Errors
/// A call fails.
pub fn medians(contenders: &mut [&mut dyn Contender]) -> Result<Medians, CliError> {
    let mut calls = Vec::new();
    for contender in &mut *contenders {
        contender.call()?;
        let once = turn(&mut **contender, 1)?.max(Duration::from_nanos(100));
        calls.push(TURN.as_nanos().div_ceil(once.as_nanos()) as u32);
    }
    let mut times: Vec<Vec<Duration>> = vec![Vec::with_capacity(ROUNDS[0]); contenders.len()];
    let (mut begun, mut rounds, mut warm) = (Instant::now(), 0, 0);
    // An odd number of rounds has one in the middle.
    while rounds < ROUNDS[1] || (rounds < ROUNDS[0] && begun.elapsed() < BUDGET) || rounds % 2 == 0 {
        for ((contender, &calls), times) in contenders.iter_mut().zip(&calls).zip(&mut times) {
            let time = turn(&mut **contender, calls)? / calls;
            if warm == WARM_UP {
                times.push(time);
            }
        }
        if warm < WARM_UP {
            (warm, begun) = (warm + 1, Instant::now());
        } else {
            rounds += 1;
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[rounds / 2]
    };
    Ok(Medians { times: times.into_iter().map(median).collect(), rounds })
}

/// The time of so many calls.
fn turn(contender: &mut dyn Contender, calls: u32) -> Result<Duration, CliError> {
    if calls > 1 {
        contender.call()?;
    }
    let start = Instant::now();
    for _ in 0..calls {
        contender.call()?;
    }
    Ok(start.elapsed())
}

/// A time for people.
pub fn shown(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 1000.0 { format!("{micros:.2} µs") } else { format!("{:.2} ms", micros / 1e3) }
}

/// A time for JSON.
///
/// # Errors
/// The serializer's.
pub fn microseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1e6)
}
