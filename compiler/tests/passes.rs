//! What each pass does by itself, beside fusion.

#![allow(clippy::unwrap_used, reason = "a test")]

mod layer;

use engraft_compiler::Merging;
use engraft_compiler::passes::{MergeError, Pass, PassError, canonicalize, constant_fold, cse, stage};
use engraft_compiler::pipeline::{Optimized, Options, PipelineError, optimize, run};
use engraft_compiler::trace::Reason;
use engraft_ir::ops::{Constant, EpsilonAt};
use engraft_ir::{Bindings, DType::F32, Graph, GraphBuilder, Stage, Tensor, dims, text};
use layer::{Layer, SCALE, column, layer, norms, ops, optimized, same, shapes, squares};

/// The graph after one pass, and the ops in it.
fn after(pass: Pass, graph: &Graph) -> Optimized {
    let optimized = run(graph, &[pass]).unwrap();
    let difference = engraft_compiler::check::compare(graph, &optimized.graph, &Bindings::new(), 11).unwrap();
    assert!(difference < 1e-9, "{difference}\n{}", optimized.trace);
    optimized
}

/// What stands right of the output's `=` after canonicalisation, with the rest of the ops counted.
fn canonical(write: layer::Write) -> String {
    let optimized = after(canonicalize::PASS, &layer(shapes()[0].clone(), write));
    let expression = text::expression(&optimized.graph, optimized.graph.outputs()[0].node);
    let more: usize = ops(&optimized.graph).values().sum();
    format!("{expression} of {more}")
}

#[test]
fn canonical_forms() {
    let rows: &[(layer::Write, &str)] = &[
        (|l| -(-l.x), "input() of 0"),
        (|l| -(l.x * 2.0), "scale(x) {factor: -2.0} of 1"),
        (|l| (-l.x) * 2.0, "scale(x) {factor: -2.0} of 1"),
        (|l| l.x * 2.0 * 3.0, "scale(x) {factor: 6.0} of 1"),
        (|l| l.x * 1.0, "input() of 0"),
        (|l| l.x * 2.0 * 0.5, "input() of 0"),
        (|l| l.x * l.one(), "input() of 0"),
        (|l| l.one() * l.x, "input() of 0"),
        (|l| l.x / l.g.constant(Constant::scalar(F32, 2.0)), "scale(x) {factor: 0.5} of 1"),
        (|l| l.x / l.g.constant(Constant::scalar(F32, 0.0)), "div(x, constant) of 1"),
        // Neither infinity nor 0 in f32, though the value that they make may be neither.
        (|l| l.x * 1e30 * 1e30, "scale(x.scale) {factor: 1e+30} of 2"),
        (|l| l.x * 1e-30 * 1e-30, "scale(x.scale) {factor: 1e-30} of 2"),
        (|l| l.x * 1e-200 * 1e-200, "scale(x.scale) {factor: 1e-200} of 2"),
        (|l| l.x / l.g.constant(Constant::scalar(F32, 1e-40)), "div(x, constant) of 1"),
        (|l| l.x.t().t(), "input() of 0"),
        (|l| l.x.t().transpose(&[0, 1]), "transpose(x) {permutation: [1,0]} of 1"),
        (|l| l.w.reshape(dims![36]).reshape(dims![6, 6]), "param() of 0"),
        (|l| l.w.reshape(dims![36]).reshape(dims![4, 9]), "reshape(weight) {shape: [4,9]} of 1"),
        (|l| l.w.broadcast(dims![6, 6]), "param() of 0"),
        (|l| l.x.slice(0, 0, "batch"), "input() of 0"),
        (|l| l.x.slice(1, 0, 5), "slice(x) {axis: 1, length: 5, start: 0} of 1"),
        (|l| l.x * l.x, "square(x) of 1"),
        (|l| l.x.matmul(l.w), "dense(x, x.matmul.weight) of 2"),
        (|l| l.x.matmul(l.w.t()), "dense(x, weight) of 1"),
        (|l| l.w.matmul(l.v), "matmul(weight, other) of 1"),
        (|l| l.bias + l.x.dense(l.w, None), "dense(x, weight, bias) of 1"),
        (|l| l.x.dense(l.w, Some(l.bias)) + l.m, "add(x.dense, magnitude) of 2"),
        (|l| l.x.sum(&[0, 1]) + l.w.sum(&[0, 1]), "add(x.sum, weight.sum) of 3"),
        (|l| l.x * l.m, "magnitude(x, magnitude) {axis: 1} of 1"),
        (|l| l.m * l.x, "magnitude(x, magnitude) {axis: 1} of 1"),
        (|l| l.w * column(l.m), "magnitude(weight, magnitude) {axis: 0} of 1"),
        (|l| l.m * l.bias, "mul(magnitude, bias) of 1"),
        (
            |l| l.w / squares(l.w, 0).sqrt(),
            "normalize(weight) {axis: 0, epsilon: 0.0, epsilon_at: \"inside\"} of 1",
        ),
        (
            |l| l.w / column(norms(l.w)),
            "normalize(weight) {axis: 1, epsilon: 0.0, epsilon_at: \"inside\"} of 1",
        ),
        (
            |l| (squares(l.w, 1) + 0.5).rsqrt() * l.w,
            "normalize(weight) {axis: 1, epsilon: 0.5, epsilon_at: \"inside\"} of 1",
        ),
        (
            |l| l.w / (squares(l.w, 1).sqrt() + 0.5),
            "normalize(weight) {axis: 1, epsilon: 0.5, epsilon_at: \"outside\"} of 1",
        ),
        (|l| l.v / squares(l.w, 1).sqrt(), "div(other, weight.sqrt) of 4"),
    ];
    for (write, expected) in rows {
        // The node that the builder named is the one rewritten, so names show where a new one came from.
        let found = canonical(*write).replace("fc.weight", "x.matmul.weight");
        assert_eq!(found, *expected);
    }
}

/// A dense layer that somebody else uses keeps its value.
#[test]
fn a_bias_is_not_added_to_a_shared_layer() {
    let graph = layer(shapes()[0].clone(), |l| {
        let y = l.x.dense(l.w, None);
        y + l.bias - y.relu()
    });
    assert_eq!(ops(&after(canonicalize::PASS, &graph).graph)["add"], 1);
}

fn constants(write: for<'g> fn(&'g GraphBuilder, Tensor<'g>) -> Tensor<'g>) -> Graph {
    let g = GraphBuilder::new("constants");
    let x = g.input("x", F32, dims!["batch", 2]);
    g.output("y", write(&g, x));
    g.finish().unwrap()
}

#[test]
fn constants_are_folded_and_rounded_once() {
    let graph = constants(|g, x| x * (g.constant(&[0.1f32, 0.2][..]).exp().sqrt() + 1.0));
    let optimized = run(&graph, &[constant_fold::PASS]).unwrap();
    assert_eq!(ops(&optimized.graph), [("mul", 1)].into(), "{}", optimized.trace);
    assert_eq!(optimized.graph.op_counts()["constant"], 1);
    let exact = (f64::from(0.1f32).exp().sqrt() + 1.0) as f32;
    let folded = text::print(&optimized.graph);
    assert!(folded.contains(&format!("[{}", f64::from(exact))), "{folded}");
}

#[test]
fn what_is_not_finite_is_not_folded() {
    let graph = constants(|g, x| x * (g.constant(&[1.0f32, 2.0][..]) * 1e38 * 10.0));
    let optimized = run(&graph, &[constant_fold::PASS]).unwrap();
    let refusals: Vec<_> = optimized.trace.refusals().map(|(_, r)| &r.reason).collect();
    assert_eq!(refusals, [&Reason::NotFinite]);
    assert_eq!(ops(&optimized.graph)["scale"], 1, "what led there is still folded");
}

#[test]
fn what_is_large_is_not_folded() {
    let graph = constants(|g, x| {
        let wide = g.constant(Constant::scalar(F32, 1.0)).broadcast(dims![5000]);
        x + wide.sum(&[0])
    });
    let optimized = run(&graph, &[constant_fold::PASS]).unwrap();
    assert_eq!(ops(&optimized.graph)["broadcast"], 1, "{}", optimized.trace);
}

#[test]
fn equal_expressions_are_one() {
    let graph = layer(shapes()[0].clone(), |l| {
        let twice = (l.x + l.z).relu() * (l.z + l.x).relu();
        twice * l.x.scale(2.0) * l.x.scale(3.0) - (l.x - l.z) * (l.z - l.x)
    });
    let found = ops(&after(cse::PASS, &graph).graph);
    assert_eq!((found["add"], found["relu"], found["scale"]), (1, 1, 2));
    assert_eq!(found["sub"], 3, "a - b is not b - a");
}

#[test]
fn dead_code_is_written_down() {
    let mut graph = layer(shapes()[0].clone(), |l| l.x.relu());
    let x = graph.find("x").unwrap();
    graph.add("dead", engraft_ir::ops::Unary::Tanh, &[Some(x)]).unwrap();
    let optimized = optimized(&graph);
    let (pass, rewrite) = optimized.trace.rewrites().next().unwrap();
    assert_eq!((pass, rewrite.before.as_slice()), ("dead_code", &["dead = tanh(x)".to_owned()][..]));
    assert!(optimized.graph.find("dead").is_none() && optimized.graph.find("z").is_some());
}

#[test]
fn gains_and_biases_meet_before_the_call() {
    let graph = layer(shapes()[0].clone(), |l| {
        (l.x.relu().magnitude(l.m, 1) * 2.0).magnitude(l.bias, 1) + l.m + l.bias
    });
    let optimized = after(stage::PASS, &graph);
    let found = ops(&optimized.graph);
    assert_eq!((found["magnitude"], found["mul"]), (1, 1), "{}", text::print(&optimized.graph));
    let staged: Vec<_> = optimized.trace.staged().map(|s| (s.stage, s.consumer)).collect();
    assert_eq!(staged, [(Stage::Adapter, Stage::Call); 2], "{}", optimized.trace);
}

/// What is only known in the call is left where it is.
#[test]
fn live_gains_stay() {
    let g = GraphBuilder::new("live");
    let x = g.input("x", F32, dims!["batch", 6]);
    let (m, n) = (g.param("m", F32, dims![6]).live(), g.param("n", F32, dims![6]));
    g.output("y", x.magnitude(m, 1).magnitude(n, 1));
    let optimized = after(stage::PASS, &g.finish().unwrap());
    assert_eq!(ops(&optimized.graph), [("magnitude", 2)].into());
}

/// With live parameters the same layer fuses to the same op, and its gain is computed per call.
#[test]
fn live_parameters_fuse_too() {
    let g = GraphBuilder::new("live");
    let x = g.input("x", F32, dims!["batch", 5]);
    let w = g.param("weight", F32, dims![3, 5]);
    let a = g.param("a", F32, dims![1, 5]).live();
    let b = g.param("b", F32, dims![3, 1]).live();
    let m = g.param("m", F32, dims![3]).live();
    let v = w + b.matmul(a) * 0.5;
    g.output("y", x.matmul((v / squares(v, 1).sqrt() * m.reshape(dims![3, 1])).t()).named("y"));
    let optimized = optimized(&g.finish().unwrap());
    assert_eq!(ops(&optimized.graph), [("div", 1), ("dora", 1), ("lora_norm", 1)].into());
    assert_eq!(optimized.trace.staged().count(), 0, "{}", optimized.trace);
    same("live", &optimized);
}

fn dora<'g>(l: &Layer<'g>) -> Tensor<'g> {
    l.x.dense(l.adapted().normalize(1).magnitude(l.m, 0), Some(l.bias))
}

#[test]
fn adapters_are_merged() {
    let rows: [(layer::Write, usize); 2] =
        [(|l| dora(&l), 1), (|l| l.x.lora(l.w, l.a, l.b, Some(l.bias), SCALE), 0)];
    for (write, magnitudes) in rows {
        let optimized =
            optimize(&layer(shapes()[1].clone(), write), &Options { merge: Merging::ALWAYS }).unwrap();
        let found = ops(&optimized.graph);
        assert_eq!((found["dense"], found["lora_delta"], found["add"]), (1, 1, 1));
        assert_eq!(found.get("magnitude").copied().unwrap_or(0), magnitudes);
        let staged: Vec<_> = optimized.trace.staged().map(|s| (s.stage, s.ty.to_string())).collect();
        assert_eq!(staged, [(Stage::Adapter, "f32[6, 6]".to_owned())]);
        same("merged", &optimized);
    }
}

#[test]
fn what_cannot_be_merged_is_an_error() {
    let output = layer(shapes()[0].clone(), |l| {
        let c = l.x.lora(l.w, l.a, l.b, None, SCALE);
        c.normalize_with(-1, 1e-8, EpsilonAt::Inside).magnitude(l.m, -1)
    });
    let live = layer(shapes()[0].clone(), |l| l.x.lora(l.w, l.a.live(), l.b, None, SCALE));
    for (graph, expected) in [
        (output, MergeError::OutputDora { node: "fc".to_owned() }),
        (live, MergeError::Live { node: "fc".to_owned(), operand: "a", name: "lora_A".to_owned() }),
    ] {
        let error = optimize(&graph, &Options { merge: Merging::ALWAYS }).unwrap_err();
        let source = Box::new(PassError::Merge(expected));
        assert_eq!(error, PipelineError::Pass { pass: "merge", source });
    }
}

/// The whole layer's node keeps the name that a person gave; so does a gain that somebody named.
#[test]
fn names_are_kept() {
    let graph = layer(shapes()[0].clone(), |l| {
        let norm = norms(l.adapted()).named("rows");
        (l.x.dense(l.w, None) + l.update()) * (l.m / norm).named("my_gain") + l.bias
    });
    let optimized = optimized(&graph);
    let line = |name| text::expression(&optimized.graph, optimized.graph.find(name).unwrap());
    assert_eq!(line("rows"), "lora_norm(weight, lora_A, lora_B) {scale: 2.0}");
    assert_eq!(line("my_gain"), "div(magnitude, rows)");
    assert_eq!(line("fc"), "dora(x, weight, lora_A, lora_B, my_gain, bias) {scale: 2.0}");
}

/// A bias may be any vector, even one made of the layer's own norm.
#[test]
fn a_bias_may_be_a_gain() {
    let graph = layer(shapes()[0].clone(), |l| l.x.dense(l.w, Some(l.bias)) + l.gain() + l.update());
    same("gain as bias", &optimized(&graph));
}

/// Optimising twice changes nothing more.
#[test]
fn optimising_is_idempotent() {
    let graph = layer(shapes()[1].clone(), |l| dora(&l).relu() + l.x);
    let once = optimized(&graph).graph;
    let twice = optimized(&once);
    assert_eq!(twice.graph, once);
    assert_eq!(twice.trace.rewrites().count(), 0, "{}", twice.trace);
}
