//! Graphs made to be expensive: long chains, nested norms, high powers and extreme numbers compile in bounded time,
//! stack and memory, and still mean the same. A test here that fails does so by not ending.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::agree;
use engraft_compiler::pipeline::{Optimized, Options, optimize};
use engraft_ir::DType::F32;
use engraft_ir::{Bindings, Graph, GraphBuilder, Tensor, dims};

/// A graph of one expression on an input `[batch, 4]`.
fn graph(body: impl for<'g> Fn(&'g GraphBuilder, Tensor<'g>) -> Tensor<'g>) -> Graph {
    let g = GraphBuilder::new("g");
    let x = g.input("x", F32, dims!["batch", 4]);
    g.output("y", body(&g, x));
    g.finish().unwrap()
}

/// The graph after the pipeline, which means the same.
fn optimized(graph: &Graph) -> Optimized {
    let optimized = optimize(graph, Options::default()).unwrap();
    let difference = engraft_compiler::check::compare(graph, &optimized.graph, &Bindings::new(), 7).unwrap();
    assert!(difference < 1e-9, "{difference}");
    optimized
}

#[test]
fn norms_of_norms_do_not_double_with_each() {
    optimized(&graph(|_, x| (0..60).fold(x, |y, _| y.normalize(-1))));
    optimized(&graph(|g, x| {
        let m = g.param("m", F32, dims![4]);
        (0..60).fold(x, |y, _| y.normalize(-1).magnitude(m, -1) + m)
    }));
}

#[test]
fn powers_do_not_double_without_end() {
    // v to the 2^40: neither counted in 32 bits nor written out.
    let graph = graph(|g, x| {
        let v = g.param("v", F32, dims![4]);
        let power = (0..40).fold(v, |y, _| y * -y);
        let (a, b) = (g.param("a", F32, dims![2, 4]), g.param("b", F32, dims![4, 2]));
        x.dense(g.param("w", F32, dims![4, 4]), None) + x.lora_apply(a, b, 2.0) + power
    });
    assert_eq!(optimized(&graph).graph.op_counts()["lora"], 1);
}

#[test]
fn scales_that_leave_the_range_of_numbers_are_not_multiplied_out() {
    for scale in [1e100, 1e-100] {
        let graph = graph(|g, x| {
            let (w, a, b) = (
                g.param("w", F32, dims![4, 4]),
                g.param("a", F32, dims![2, 4]),
                g.param("b", F32, dims![4, 2]),
            );
            let update = x.scale(scale).lora_apply(a, b, scale);
            x.dense(w, None) + update.scale(1.0 / scale).scale(1.0 / scale)
        });
        optimized(&graph);
    }
}

#[test]
fn long_chains_of_elementwise_nodes_are_several_loops() {
    // Deeper than a stack, if it were one loop.
    agree(&graph(|_, x| (0..3000).fold(x, |y, _| -y.relu())), &[("batch", 2)], 1);
    // More operands than a function should take, and a product whose epilogue is long.
    agree(
        &graph(|g, x| {
            let y = x.dense(g.param("w", F32, dims![4, 4]), None);
            (0..300).fold(y, |y, i| (y + g.input(&format!("x{i}"), F32, dims!["batch", 4])).relu())
        }),
        &[("batch", 2)],
        1,
    );
    // Movement recurses as well.
    agree(&graph(|_, x| (0..3000).fold(x, |y, _| y.t())), &[("batch", 2)], 1);
    // Both operands of each node.
    agree(
        &graph(|_, x| {
            let mut ys: Vec<_> = (0..512).map(|i| x.scale(f64::from(i) / 512.0)).collect();
            while ys.len() > 1 {
                ys = ys.chunks(2).map(|pair| pair[0] - pair[1]).collect();
            }
            ys[0]
        }),
        &[("batch", 2)],
        1,
    );
}
