//! What it takes to get to the first call: compiling a layer, and loading its base and an adapter.
#![allow(clippy::unwrap_used, reason = "benchmarks may panic")]

mod common;

use common::{Factors, LAYERS, context, dora, values};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use engraft::Merging;
use engraft::prelude::*;
use std::hint::black_box;
use std::time::Duration;

fn compile_and_load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let sizes = LAYERS[0];
    for (name, factors, merge) in [
        ("unmerged", Factors::Loaded, false),
        ("merged", Factors::Loaded, true),
        ("live", Factors::Live, false),
    ] {
        let graph = dora(sizes, factors);
        let options = Options { merge: Merging::all(merge), ..Options::default() };
        group.bench_function(name, |bencher| bencher.iter(|| compile(black_box(&graph), &options).unwrap()));
    }
    group.finish();

    let mut group = criterion.benchmark_group("load");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let graph = dora(sizes, Factors::Loaded);
    let (values, context) = (values(&graph, 1), context());
    let program = compile(&graph, &Options::default()).unwrap().program;
    group.bench_function("base", |bencher| {
        let load = |context| program.load_base(&values, context).unwrap();
        bencher.iter_batched(|| context.clone(), load, BatchSize::PerIteration);
    });
    let base = program.load_base(&values, context.clone()).unwrap();
    group.bench_function("adapter", |bencher| bencher.iter(|| base.load_adapter(&values).unwrap()));
}

criterion_group!(benches, compile_and_load);
criterion_main!(benches);
