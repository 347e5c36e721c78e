//! Whole layers on one thread: bare, DoRA unmerged and merged, and DoRA whose A, B and m come with each call.
#![allow(clippy::unwrap_used, reason = "benchmarks may panic")]

mod common;

use common::{Factors, LAYERS, calls, dense, dora, model, values};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// Rows of the input.
const BATCHES: [usize; 4] = [1, 8, 32, 128];

fn layers(criterion: &mut Criterion) {
    for sizes @ (inputs, outputs, rank) in LAYERS {
        let mut group = criterion.benchmark_group(format!("layer {inputs}x{outputs}:{rank}"));
        group.sample_size(20).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1));
        let (loaded, live) = (dora(sizes, Factors::Loaded), dora(sizes, Factors::Live));
        let all = values(&loaded, 1);
        for (way, graph, merge) in [
            ("dense", &dense(sizes), false),
            ("unmerged", &loaded, false),
            ("merged", &loaded, true),
            ("live", &live, false),
        ] {
            let model = model(graph, merge, &all);
            for batch in BATCHES {
                let mut given = all.clone();
                let x: Vec<f32> = (0..batch * inputs).map(|i| (i % 13) as f32 / 13.0 - 0.5).collect();
                given.insert("x", engraft::runtime::Tensor::f32(&[batch, inputs], x).unwrap());
                group.throughput(Throughput::Elements((2 * batch * inputs * outputs) as u64));
                group.bench_function(BenchmarkId::new(way, batch), |bencher| {
                    calls(bencher, &model, &given);
                });
            }
        }
    }
}

criterion_group!(benches, layers);
criterion_main!(benches);
