//! Times that are fair to each other. All contenders take turns in one session; a turn is some untimed calls, which wake
//! its threads and bring its weights back into the caches (very long calls need none), then timed ones; and between turns
//! nobody works until the previous contender's threads have stopped spinning. Knows nothing about who contends.

use crate::contender::{Entry, Turn, Who};
use crate::error::Error;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::time::{Duration, Instant};

/// How long the timed calls of a turn take together at least.
const TIMED: Duration = Duration::from_millis(1);
/// How long the untimed calls of a turn take together at least.
const UNTIMED: Duration = Duration::from_micros(500);
/// Rounds at most: more narrow a median no further than the machine's own unrest.
const MAX_ROUNDS: usize = 41;
/// Turns that each contender takes, however slow it is.
const MIN_TURNS: usize = 5;

/// A call as long as this is its own trial.
const LONG: Duration = Duration::from_millis(20);
/// A call as long as this needs no untimed one before it: reading weights back into caches is no hundredth of it.
const LONGER: Duration = Duration::from_millis(500);

/// How often the processor's clock is looked at while waiting for quiet.
const GLANCE: Duration = Duration::from_millis(1);
/// What a process at rest uses in that time at most.
const QUIET: Duration = Duration::from_micros(100);
/// When to give up waiting.
const PATIENCE: Duration = Duration::from_millis(50);

/// Times of one contender.
#[derive(Clone, Debug, Serialize)]
pub struct Times {
    /// Who.
    pub who: Who,
    /// With how many threads.
    pub threads: usize,
    /// The median over turns of a turn's median call, in microseconds.
    pub median: f64,
    /// The quartiles of the same.
    pub quartiles: [f64; 2],
    /// How many turns there were.
    pub turns: usize,
    /// How many timed calls a turn had.
    pub calls: u32,
}

/// What is known of a contender while the rounds go on.
struct Progress {
    turn: Turn,
    /// How many turns it takes.
    wanted: usize,
    medians: Vec<f64>,
}

/// Times everybody. The rounds take about as long as `budget`, if the slowest contenders allow it.
///
/// # Errors
/// A call fails.
pub fn times(entries: &mut [Entry], budget: Duration) -> Result<Vec<Times>, Error> {
    let share = budget / entries.len() as u32;
    let mut all = Vec::with_capacity(entries.len());
    for entry in &mut *entries {
        all.push(Progress::begin(entry, share)?);
    }
    let rounds = all.iter().map(|progress| progress.wanted).max().unwrap_or(0);
    for round in 0..rounds {
        // Everybody is everybody's neighbour some time: each round begins with another contender.
        for place in 0..entries.len() {
            let index = (place + round) % entries.len();
            if all[index].takes_part(round, rounds) {
                let times = entries[index].contender.turn(all[index].turn)?;
                all[index].medians.push(median(times.into_iter().map(|ns| ns as f64 / 1e3).collect()));
                rest();
            }
        }
    }
    Ok(entries.iter().zip(all).map(|(entry, progress)| progress.end(entry)).collect())
}

impl Progress {
    /// Finds out how long a call takes, and so how many make a turn.
    fn begin(entry: &mut Entry, share: Duration) -> Result<Self, Error> {
        let mut times = entry.contender.turn(Turn { untimed: 0, timed: 1 })?;
        if times.iter().all(|&ns| u128::from(ns) < LONG.as_nanos()) {
            times = entry.contender.turn(Turn { untimed: 2, timed: 3 })?;
        }
        rest();
        let call = Duration::from_nanos(times.into_iter().min().unwrap_or(0).max(100));
        let calls = |time: Duration| time.as_nanos().div_ceil(call.as_nanos()) as u32;
        let untimed = if call < LONGER { calls(UNTIMED) } else { 0 };
        let turn = Turn { untimed, timed: calls(TIMED) };
        let cost = call * (turn.untimed + turn.timed) + GLANCE;
        let wanted = (share.as_nanos() / cost.as_nanos()) as usize;
        Ok(Self { turn, wanted: wanted.clamp(MIN_TURNS, MAX_ROUNDS), medians: Vec::new() })
    }

    /// Spreads the wanted turns evenly over the rounds.
    fn takes_part(&self, round: usize, rounds: usize) -> bool {
        (round + 1) * self.wanted / rounds > round * self.wanted / rounds
    }

    fn end(mut self, entry: &Entry) -> Times {
        self.medians.sort_unstable_by(f64::total_cmp);
        let quantile = |part: f64| self.medians[(part * (self.medians.len() - 1) as f64).round() as usize];
        Times {
            who: entry.who,
            threads: entry.threads,
            median: quantile(0.5),
            quartiles: [quantile(0.25), quantile(0.75)],
            turns: self.medians.len(),
            calls: self.turn.timed,
        }
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Waits until this process uses no processor: threads that spin for their next job would take the core of whoever is
/// next. (The Python process does the same before it answers.)
fn rest() {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let before = processor_time();
        std::thread::sleep(GLANCE);
        if processor_time().saturating_sub(before) < QUIET {
            return;
        }
    }
}

/// What all threads of this process have used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
