//! Several that take turns at being timed. Knows nothing about what they do.

use crate::findings::Times;
use std::time::{Duration, Instant};

/// How long the untimed calls of a turn take together at least, and then the timed ones.
const UNTIMED: Duration = Duration::from_micros(500);
const TIMED: Duration = Duration::from_millis(1);

/// The median over turns of a call's time, in milliseconds, of so many rounds at least and at most. A turn begins with calls
/// that aren't timed, which bring back to the caches what the others have driven out; each round begins with another.
pub fn medians(calls: &mut [Box<dyn FnMut() + '_>], budget: Duration, rounds: [usize; 2]) -> Vec<f64> {
    let turn = |call: &mut dyn FnMut(), count: u32| {
        let begun = Instant::now();
        for _ in 0..count {
            call();
        }
        begun.elapsed() / count
    };
    let counts = |call: &mut Box<dyn FnMut() + '_>| {
        let once = turn(call, 1).as_nanos().max(100);
        [UNTIMED, TIMED].map(|time| time.as_nanos().div_ceil(once) as u32)
    };
    let counts: Vec<_> = calls.iter_mut().map(counts).collect();
    let mut times: Vec<_> = calls.iter().map(|_| Times::default()).collect();
    let (begun, mut round) = (Instant::now(), 0);
    while round < rounds[0] || (round < rounds[1] && begun.elapsed() < budget) {
        for place in 0..calls.len() {
            let index = (place + round) % calls.len();
            let [untimed, timed] = counts[index];
            turn(&mut calls[index], untimed);
            times[index].push(turn(&mut calls[index], timed));
        }
        round += 1;
    }
    times.iter_mut().map(|times| times.quantile(0.5)).collect()
}
