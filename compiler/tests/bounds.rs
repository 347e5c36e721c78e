//! Graphs made to be expensive: long chains, nested norms, high powers and extreme numbers compile in bounded time,
//! stack and memory, and still mean the same. A test here that fails does so by not ending.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{agree, program};
use engraft_compiler::pipeline::{Optimized, Options, optimize};
use engraft_compiler::plan::{PlanOptions, plan};
use engraft_ir::DType::F32;
use engraft_ir::ops::EpsilonAt;
use engraft_ir::{Bindings, Graph, GraphBuilder, Tensor, dims};
use engraft_runtime::{Context, Options as ContextOptions, Tensor as RunTensor, Weights};

/// A graph of one expression on an input `[batch, 4]`.
fn graph(body: impl for<'g> Fn(&'g GraphBuilder, Tensor<'g>) -> Tensor<'g>) -> Graph {
    let g = GraphBuilder::new("g");
    let x = g.input("x", F32, dims!["batch", 4]);
    g.output("y", body(&g, x));
    g.finish().unwrap()
}

/// The graph after the pipeline, which means the same.
fn optimized(graph: &Graph) -> Optimized {
    let optimized = optimize(graph, &Options::default()).unwrap();
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
    for scale in [1e25, 1e-25, 1e100, 1e-100] {
        let graph = graph(|g, x| {
            let (w, a, b) = (
                g.param("w", F32, dims![4, 4]),
                g.param("a", F32, dims![2, 4]),
                g.param("b", F32, dims![4, 2]),
            );
            let update = x.scale(scale).lora_apply(a, b, scale);
            x.dense(w, None) + update.scale(1.0 / scale).scale(1.0 / scale)
        });
        let fused = optimized(&graph).graph.op_counts().contains_key("lora");
        assert!(!fused, "a scale that f32 cannot hold");
    }
}

#[test]
fn numbers_beyond_f32_are_refused() {
    type Body = for<'g> fn(&'g GraphBuilder, Tensor<'g>) -> Tensor<'g>;
    let rows: &[(Body, &str)] = &[
        (|_, x| x.scale(1e60), "`x.scale`: its factor is 1e60"),
        (|_, x| x.normalize_with(-1, 1e-60, EpsilonAt::Inside), "`x.normalize`: its epsilon is 1e-60"),
        (
            |g, x| x.lora_apply(g.param("a", F32, dims![2, 4]), g.param("b", F32, dims![4, 2]), -4e38),
            "scale is -4e38",
        ),
    ];
    for (body, expected) in rows {
        let error = plan(&graph(body), PlanOptions::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn tensors_without_elements_take_no_time_whatever_their_other_extents() {
    type Body = for<'g> fn(Tensor<'g>) -> Tensor<'g>;
    let big = 1 << 31;
    let shapes =
        [[big, big, 0, 1], [0, big, big, big], [big, 0, big, big], [big, big, 0, 0], [big, big, big, 0]];
    let bodies: [Body; 7] = [
        |x| x.relu(),
        |x| x.transpose(&[3, 1, 0, 2]),
        |x| x.concat(&[x], 1),
        |x| x.softmax(3),
        |x| x.softmax(1),
        |x| x.sum(&[2]).sum(&[0, 1, 2]),
        |x| x.matmul(x.transpose(&[0, 1, 3, 2])),
    ];
    for body in bodies {
        let g = GraphBuilder::new("g");
        g.output("y", body(g.input("x", F32, dims!["a", "b", "c", "d"])));
        let program = program(&g.finish().unwrap(), true);
        let base =
            program.load_base(&Weights::new(), Context::new(ContextOptions::default()).unwrap()).unwrap();
        let model = base.load_adapter(&Weights::new()).unwrap();
        for shape in shapes {
            // It may need more memory than there is, for all that.
            drop(model.run(&[("x", &RunTensor::f32(&shape, Vec::new()).unwrap())]));
        }
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
