//! Random graphs, compiled fused and as they stand, against the reference interpreter. Every plan on the way is checked.
#![allow(clippy::unwrap_used)]

mod common;

use common::agree;
use engraft_ir::DType::F32;
use engraft_ir::ops::{Reduction, Unary};
use engraft_ir::{Graph, GraphBuilder, Shape, dims};
use engraft_testing::arb_graph;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Extents that vectors, lanes and panels do not divide, and those that they do.
const WIDTHS: [u64; 7] = [1, 3, 4, 7, 16, 17, 67];

/// Functions that do not blow errors up.
const SMOOTH: [Unary; WIDTHS.len()] =
    [Unary::Neg, Unary::Relu, Unary::Gelu, Unary::GeluTanh, Unary::Silu, Unary::Tanh, Unary::Sigmoid];

/// What a step does to the value `[batch, n]` so far, and to an earlier one.
#[derive(Clone, Copy, Debug)]
struct Step {
    kind: u8,
    earlier: u16,
    width: usize,
}

fn arb_wide() -> impl Strategy<Value = (Graph, u64)> {
    let step = (0..12_u8, any::<u16>(), 0..WIDTHS.len()).prop_map(|(kind, earlier, width)| Step {
        kind,
        earlier,
        width,
    });
    let steps = prop::collection::vec(step, 1..10);
    (steps, 0..WIDTHS.len(), rows()).prop_map(|(steps, width, batch)| (wide(&steps, WIDTHS[width]), batch))
}

/// Few rows, or more than a product computes at a time.
fn rows() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..6_u64, 1 => 95..200_u64]
}

/// A graph whose matrices are wider than a vector, a lane and a panel.
fn wide(steps: &[Step], width: u64) -> Graph {
    let g = GraphBuilder::new("wide");
    let x = g.input("x", F32, dims!["batch", width]);
    let mut made = vec![(x, width)];
    for (number, &step) in steps.iter().enumerate() {
        let (x, n) = made[made.len() - 1];
        let earlier = made[usize::from(step.earlier) % made.len()];
        let param = |what: &str, shape: Shape| g.param(&format!("{what}{number}"), F32, shape);
        let width = WIDTHS[step.width];
        // Products keep the size of their operands.
        let scaled = x.scale(1.0 / n as f64);
        made.push(match step.kind {
            0 => (scaled.dense(param("w", dims![width, n]), Some(param("b", dims![width]))), width),
            1 => (scaled.matmul(param("w", dims![n, width])).gelu_tanh(), width),
            2 => {
                let (a, b) = (param("a", dims![3, n]).adapter(), param("b", dims![width, 3]).adapter());
                let (w, m) = (param("w", dims![width, n]), param("m", dims![width]).adapter());
                (x.dora(w, a, b, m / (w.lora_norm(a, b, 0.5) + 0.5), None, 0.5).silu(), width)
            }
            3 => (x.unary(SMOOTH[step.width]), n),
            4 if earlier.1 == n => (x.tanh() * earlier.0 + x, n),
            4 | 5 => (x.concat(&[earlier.0], -1), n + earlier.1),
            6 if n > 2 => (x.slice(-1, 1, n - 2), n - 2),
            6 | 7 => (x - x.reduce(Reduction::Mean, &[-1], true), n),
            // Residuals, which products add.
            8 => (scaled.dense(param("w", dims![n, n]), Some(param("b", dims![n]))) + x, n),
            9 => {
                let scaled = earlier.0.scale(1.0 / earlier.1 as f64);
                (x + scaled.dense(param("w", dims![n, earlier.1]), None), n)
            }
            10 => {
                let (a, b) = (param("a", dims![3, n]).adapter(), param("b", dims![n, 3]).adapter());
                let (w, m) = (param("w", dims![n, n]), param("m", dims![n]).adapter());
                (scaled.dora(w, a, b, m / (w.lora_norm(a, b, 0.5) + 0.5), None, 0.5) + x, n)
            }
            _ => (x.t().softmax(0).t() + x.layer_norm(None, None, 1e-3), n),
        });
    }
    for (number, (tensor, _)) in made.iter().rev().take(3).enumerate() {
        g.output(&format!("y{number}"), *tensor);
    }
    g.finish().unwrap_or_else(|e| panic!("{e}"))
}

fn config(cases: u32) -> ProptestConfig {
    // The same graphs every time.
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(7),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn of_every_op(graph in arb_graph(), batch in 0..6_u64, seq in 1..5_u64, seed in 0..100_u64) {
        agree(&graph, &[("batch", batch), ("seq", seq)], seed);
    }
}

proptest! {
    #![proptest_config(config(110))]

    #[test]
    fn of_wide_matrices((graph, batch) in arb_wide(), seed in 0..100_u64) {
        agree(&graph, &[("batch", batch)], seed);
    }
}
