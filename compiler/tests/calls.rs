//! Loops that call functions of the runtime's, against the reference interpreter, over extents at which their chunks end:
//! arguments and results in every position, written side by side and apart, over more chunks than one, and alike for every
//! number of threads.
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod common;

use common::{agree, program, weights};
use engraft_compiler::values::to_tensor;
use engraft_ir::DType::F32;
use engraft_ir::{Graph, GraphBuilder, Stage, Tensor, dims, sample};
use engraft_runtime::{Context, Options};
use std::num::NonZeroUsize;

/// Around the 256 elements of a chunk, and the 128 and 64 of one that others share the scratch with.
const EXTENTS: [u64; 8] = [1, 63, 127, 129, 255, 256, 257, 700];

/// A graph of one expression on inputs x and z `[batch, n]`, for each of the extents.
fn over_extents(body: impl for<'g> Fn(&'g GraphBuilder, [Tensor<'g>; 2], u64) -> Tensor<'g>) {
    for n in EXTENTS {
        let g = GraphBuilder::new("calls");
        let operands = ["x", "z"].map(|name| g.input(name, F32, dims!["batch", n]));
        g.output("y", body(&g, operands, n));
        let graph = g.finish().unwrap();
        for batch in [0, 1, 3] {
            agree(&graph, &[("batch", batch)], n + batch);
        }
    }
}

#[test]
fn an_argument_that_is_computed() {
    over_extents(|_, [x, z], _| (x * 1.5 + z).gelu());
}

#[test]
fn a_result_that_is_used() {
    over_extents(|_, [x, z], _| x.silu() * z);
}

#[test]
fn an_argument_that_is_used_again() {
    over_extents(|g, [x, z], n| {
        let shifted = x + g.param("shift", F32, dims![n]);
        shifted.silu() * shifted + z
    });
}

#[test]
fn functions_of_functions() {
    over_extents(|_, [x, z], _| (x.sin().exp() * z).tanh().sigmoid());
}

/// Chunks are as short as there are functions to share the scratch.
#[test]
fn many_functions() {
    over_extents(|_, [x, z], _| {
        let waves = (2..=9).fold(x.sin(), |sum, n| sum + (x * f64::from(n)).sin());
        waves * z.cos() + x.gelu_tanh()
    });
}

/// As the first of two columns, so one by one.
#[test]
fn results_that_are_written_apart() {
    for n in EXTENTS {
        let g = GraphBuilder::new("apart");
        let x = g.input("x", F32, dims!["batch", n, 1]);
        g.output("y", (x * 2.0).gelu().concat(&[x], 2));
        agree(&g.finish().unwrap(), &[("batch", 3)], n);
    }
}

/// One call for rows that are read at one stride and written at another.
#[test]
fn rows_of_a_function_alone() {
    over_extents(|_, [x, z], _| x.gelu().concat(&[z, x.silu()], 1));
    for batch in [0, 1, 7, 130, 300] {
        let g = GraphBuilder::new("alone");
        let w = g.param("w", F32, dims![99, 20]);
        g.output("y", g.input("x", F32, dims!["batch", 20]).dense(w, None).gelu());
        agree(&g.finish().unwrap(), &[("batch", batch)], batch);
    }
}

/// Read along columns.
#[test]
fn arguments_that_lie_apart() {
    over_extents(|_, [x, z], _| x.t().tanh() + z.t());
}

#[test]
fn one_argument_for_many_elements() {
    over_extents(|g, [x, _], _| x * g.param("gate", F32, dims![1]).sigmoid());
    over_extents(|g, [x, _], _| (x * 0.0 + g.param("gate", F32, dims![1])).sigmoid());
}

fn layer() -> Graph {
    let g = GraphBuilder::new("epilogue");
    let x = g.input("x", F32, dims!["batch", 20]);
    let [w, v] = ["w", "v"].map(|name| g.param(name, F32, dims![99, 20]));
    let gate = x.dense(v, None).named("gate");
    g.output("y", (x.dense(w, Some(g.param("b", F32, dims![99]))) * 0.5).gelu() * gate.sigmoid());
    g.finish().unwrap()
}

#[test]
fn epilogues() {
    for batch in [0, 1, 7, 130, 300] {
        agree(&layer(), &[("batch", batch)], batch);
    }
}

/// To the last bit, and so for every way in which tiles fall to threads.
#[test]
fn results_do_not_depend_on_threads() {
    let graph = layer();
    let program = program(&graph, true);
    let values = sample::values(&graph, &common::bindings(&[("batch", 300)]), 5).unwrap();
    let of = |threads| {
        let options = Options { threads: NonZeroUsize::new(threads), ..Options::default() };
        let context = Context::new(options).unwrap();
        let base = program.load_base(&weights(&graph, &values, Stage::Base), context).unwrap();
        let model = base.load_adapter(&weights(&graph, &values, Stage::Adapter)).unwrap();
        let x = to_tensor(&values["x"], graph.nodes().find(|node| node.name() == "x").unwrap().ty()).unwrap();
        let outputs = model.session().run(&[("x", &x)]).unwrap();
        outputs[0].1.as_f32().unwrap().iter().map(|y| y.to_bits()).collect::<Vec<_>>()
    };
    let alone = of(1);
    assert!([2, 3, 5].into_iter().all(|threads| of(threads) == alone));
}
