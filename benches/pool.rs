//! What it costs to hand a job to two threads: our pool beside rayon's, back to back and after a rest, for jobs of no work
//! and of a few microseconds a thread. What is beyond the work itself is the dispatch.
#![allow(clippy::unwrap_used, reason = "benchmarks may panic")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use engraft::runtime::Workers;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

const THREADS: usize = 2;
/// Enough operations that the pool shares them.
const SHARED: usize = 1 << 20;

fn work(micros: u64) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_micros(micros) {
        std::hint::spin_loop();
    }
}

/// The time of so many dispatches, each after a rest that is not counted.
fn timed(count: u64, rest: Duration, mut dispatch: impl FnMut()) -> Duration {
    let mut total = Duration::ZERO;
    for _ in 0..count {
        if !rest.is_zero() {
            std::thread::sleep(rest);
        }
        let begun = Instant::now();
        dispatch();
        total += begun.elapsed();
    }
    total
}

fn dispatch(criterion: &mut Criterion) {
    let ours = Workers::new(NonZeroUsize::new(THREADS).unwrap()).unwrap();
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build().unwrap();
    for (when, rest) in [("back to back", Duration::ZERO), ("after a rest", Duration::from_millis(1))] {
        let mut group = criterion.benchmark_group(format!("pool, {when}"));
        group
            .sample_size(20)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1));
        for micros in [0, 5, 20, 100] {
            group.bench_function(BenchmarkId::new("ours", micros), |bencher| {
                let mut job = || ours.run(THREADS, SHARED, &|_| work(micros));
                bencher.iter_custom(|count| timed(count, rest, &mut job));
            });
            group.bench_function(BenchmarkId::new("rayon", micros), |bencher| {
                let mut job = || drop(rayon.broadcast(|_| work(micros)));
                bencher.iter_custom(|count| timed(count, rest, &mut job));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
