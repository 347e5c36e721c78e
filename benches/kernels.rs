//! Each kernel on one thread, through the smallest graph whose calls consist of it.
#![allow(clippy::unwrap_used, reason = "benchmarks may panic")]

mod common;

use common::{calls, model, values};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engraft::ir::ops::Attention;
use engraft::prelude::*;
use std::time::Duration;

/// Rows of each input.
const BATCH: usize = 128;
/// Features of each input.
const FEATURES: usize = 768;

/// Writes a graph on x, `[batch, FEATURES]`.
type Write = for<'g> fn(&'g GraphBuilder, Tensor<'g>) -> Tensor<'g>;

/// What each benchmark computes in a call. A live weight is packed there; a norm of live factors is computed there.
const KERNELS: [(&str, Write); 7] = [
    ("linear", |g, x| x.dense(g.param("weight", F32, dims![FEATURES, FEATURES]), None)),
    ("pack and linear", |g, x| x.dense(g.param("weight", F32, dims![FEATURES, FEATURES]).live(), None)),
    ("row norm", |g, x| {
        let w = g.param("weight", F32, dims![FEATURES, FEATURES]);
        let a = g.param("lora_A", F32, dims![8, FEATURES]).live();
        let b = g.param("lora_B", F32, dims![FEATURES, 8]).live();
        x / w.lora_norm(a, b, 2.0)
    }),
    ("loop", |_, x| (x.square() + x).relu()),
    ("exp", |_, x| x.exp()),
    ("gelu", |_, x| x.gelu()),
    ("softmax", |_, x| x.softmax(Axis::LAST)),
];

fn kernels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("kernel {BATCH}x{FEATURES}"));
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for (name, write) in KERNELS {
        let g = GraphBuilder::new("kernel");
        let x = g.input("x", F32, dims!["batch", FEATURES]);
        g.output("y", write(&g, x));
        let graph = g.finish().unwrap();
        let values = values(&graph, BATCH);
        let model = model(&graph, false, &values);
        group.bench_function(name, |bencher| calls(bencher, &model, &values));
    }
}

/// Norms of so many rows and features, and whether they are centred.
const NORMS: [(&str, [usize; 2], bool); 5] = [
    ("layer norm, MiniLM 32x128", [4096, 384], true),
    ("layer norm, MiniLM 8x32", [256, 384], true),
    ("layer norm, BERT 1x16", [16, 768], true),
    ("RMS norm, SmolLM2 prompt of 128", [128, 576], false),
    ("RMS norm, SmolLM2 token", [1, 576], false),
];

fn norms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("norm");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for (name, [rows, features], centred) in NORMS {
        let g = GraphBuilder::new("norm");
        let x = g.input("x", F32, dims!["batch", features]);
        let weight = g.param("weight", F32, dims![features]);
        let y = if centred {
            x.layer_norm(Some(weight), Some(g.param("bias", F32, dims![features])), 1e-5)
        } else {
            x.rms_norm(Some(weight), 1e-5)
        };
        g.output("y", y);
        let graph = g.finish().unwrap();
        let values = values(&graph, rows);
        let model = model(&graph, false, &values);
        group.throughput(Throughput::Elements((rows * features) as u64));
        group.bench_function(name, |bencher| calls(bencher, &model, &values));
    }
}

/// Attention of these shapes: batch, queries, keys, heads, heads of k and v, width of a head.
const ATTENTION: [(&str, [usize; 6]); 5] = [
    ("MiniLM 32x128", [32, 128, 128, 12, 12, 32]),
    ("MiniLM 8x32", [8, 32, 32, 12, 12, 32]),
    ("MiniLM 1x16", [1, 16, 16, 12, 12, 32]),
    ("SmolLM2 prompt of 128", [1, 128, 128, 9, 3, 64]),
    ("SmolLM2 token after 511", [1, 1, 512, 9, 3, 64]),
];

fn attention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for (name, [batch, queries, keys, heads, kv_heads, d]) in ATTENTION {
        let g = GraphBuilder::new("attention");
        let q = g.input("q", F32, dims!["batch", queries, heads * d]);
        let [k, v] = ["k", "v"].map(|name| g.input(name, F32, dims!["batch", keys, kv_heads * d]));
        let (heads, kv_heads) = (heads as u64, kv_heads as u64);
        let scale = (d as f64).sqrt().recip();
        let op = Attention { heads, kv_heads, scale, causal: heads != kv_heads, window: None };
        g.output("y", q.attention(k, v, None, op));
        let graph = g.finish().unwrap();
        let values = values(&graph, batch);
        let model = model(&graph, false, &values);
        // Elements of the scores' and the values' products, as if every key were seen.
        let products = batch * queries * keys * heads as usize * 2 * d;
        group.throughput(Throughput::Elements(2 * products as u64));
        group.bench_function(name, |bencher| calls(bencher, &model, &values));
    }
}

criterion_group!(benches, kernels, norms, attention);
criterion_main!(benches);
