//! What people read: the text of plans and of the code they become. Only the calling convention in a function's
//! signature depends on the machine; it is left out.
#![allow(clippy::unwrap_used)]

mod common;

use engraft_compiler::plan::check::check_all;
use engraft_compiler::plan::kernel::Kernel;
use engraft_compiler::plan::{Plan, PlanOptions, plan};
use engraft_compiler::{Merging, Options, optimize};
use engraft_ir::DType::{F32, I64};
use engraft_ir::ops::Attention;
use engraft_ir::{Axis, Graph, GraphBuilder, Stage, Tensor, dims};

/// A graph of one expression on an input `[batch, 6]`.
fn on_input(name: &str, body: impl for<'g> Fn(&'g GraphBuilder, Tensor<'g>) -> Tensor<'g>) -> Graph {
    let g = GraphBuilder::new(name);
    let x = g.input("x", F32, dims!["batch", 6]);
    g.output("y", body(&g, x));
    g.finish().unwrap()
}

fn planned(graph: &Graph, fuse: bool) -> Plan {
    let plan = plan(graph, PlanOptions { fuse }).unwrap();
    check_all(&plan).unwrap_or_else(|e| panic!("{e}\n{plan}"));
    plan
}

/// W, A, B and m of a layer `[5, 6]` of rank 2.
fn parameters(g: &GraphBuilder) -> [Tensor<'_>; 4] {
    [
        g.param("w", F32, dims![5, 6]),
        g.param("a", F32, dims![2, 6]).adapter(),
        g.param("b", F32, dims![5, 2]).adapter(),
        g.param("m", F32, dims![5]).adapter(),
    ]
}

/// The code of the kernel or epilogue of this name.
fn clif(graph: &Graph, name: &str) -> String {
    let functions = engraft_compiler::listings(&planned(graph, true)).unwrap();
    let names: Vec<_> = functions.iter().map(|f| f.name.as_str()).collect();
    let function = functions.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("{names:?}"));
    ["system_v", "windows_fastcall", "apple_aarch64"]
        .iter()
        .fold(function.clif.clone(), |text, convention| text.replace(&format!(" {convention}"), ""))
}

/// As written, the new weight is an adapter-load value: the call is one product with its panels.
#[test]
fn weight_form_as_written() {
    let graph = on_input("weight_form", |g, x| {
        let [w, a, b, m] = parameters(g);
        let direction = (w + Tensor::lora_delta(a, b, 0.5)).normalize(Axis::IN).named("direction");
        x.dense(direction.magnitude(m, Axis::OUT), None)
    });
    insta::assert_snapshot!(planned(&graph, false));
}

/// Merged, the layer's weight is made from the panels of W that its norm reads, too: W is kept as these and no second time.
#[test]
fn a_merged_layer() {
    let graph = on_input("merged", |g, x| {
        let [w, a, b, m] = parameters(g);
        x.dense((w + Tensor::lora_delta(a, b, 0.5)).normalize(Axis::IN).magnitude(m, Axis::OUT), None)
    });
    let options = Options { merge: Merging::ALWAYS, ..Options::default() };
    let merged = planned(&optimize(&graph, &options).unwrap().graph, true);
    let kept: Vec<_> = merged.staged.iter().map(|&id| merged.buffer(id).stage).collect();
    assert_eq!(kept, [Stage::Base, Stage::Adapter], "{merged}");
    let weight = merged.params.iter().find(|&&id| merged.buffer(id).name == "w").unwrap();
    let readers = merged.steps.iter().filter(|step| step.reads.contains(weight));
    assert!(readers.into_iter().all(|step| step.stage == Stage::Base), "{merged}");
    insta::assert_snapshot!(merged);
}

#[test]
fn dense_with_epilogue() {
    let graph = on_input("dense_relu", |g, x| {
        x.dense(g.param("w", F32, dims![5, 6]), Some(g.param("bias", F32, dims![5]))).relu()
    });
    insta::assert_snapshot!(planned(&graph, true));
}

/// Embeddings that are tied to a layer are kept once, as its panels, unless something else needs them as they are.
#[test]
fn embeddings_tied_to_a_layer() {
    #[derive(Clone, Copy, PartialEq)]
    enum Also {
        Nothing,
        /// Its norms, adapted: they read the panels, too.
        Norms,
        Sums,
    }
    let tied = |also: Also| {
        let g = GraphBuilder::new("tied");
        let table = g.param("table", F32, dims![50, 6]);
        let states = table.gather(g.input("ids", I64, dims!["batch"]));
        match also {
            Also::Nothing => g.output("y", states.dense(table, None)),
            Also::Norms => {
                let factor = |name, shape| g.param(name, F32, shape).adapter();
                let (a, b) = (factor("a", dims![2, 6]), factor("b", dims![50, 2]));
                let gain = factor("m", dims![50]) / table.lora_norm(a, b, 0.5);
                g.output("y", states.dora(table, a, b, gain, None, 0.5));
            }
            Also::Sums => {
                g.output("y", states.dense(table, None));
                g.output("columns", table.sum(&[0]) + states);
            }
        }
        planned(&g.finish().unwrap(), true)
    };
    let rows_kept = |plan: &Plan| {
        plan.steps.iter().any(|step| step.stage == Stage::Call && step.reads.contains(&plan.params[0]))
    };
    let plan = tied(Also::Nothing);
    for plan in [&plan, &tied(Also::Norms)] {
        assert!(!rows_kept(plan), "{plan}");
    }
    assert!(rows_kept(&tied(Also::Sums)));
    insta::assert_snapshot!(plan);
}

/// The norm of W + BA and the gain are adapter-load values; h is the only scratch of a call.
#[test]
fn dora_with_staged_gain() {
    let graph = on_input("dora", |g, x| {
        let [w, a, b, m] = parameters(g);
        let gain = (m / w.lora_norm(a, b, 0.5)).named("gain");
        x.dora(w, a, b, gain, None, 0.5)
    });
    insta::assert_snapshot!(planned(&graph, true));
}

/// Attention of two heads on a hidden size of 6.
const HEADS: Attention = Attention { heads: 2, kv_heads: 2, scale: 0.5, causal: true, window: None };

/// The plan of a graph that moves no data: attention reads everything where it lies.
fn without_copies(graph: &Graph) -> Plan {
    let plan = planned(graph, true);
    assert!(!plan.steps.iter().any(|step| matches!(step.kernel, Kernel::Loop(_))), "{plan}");
    plan
}

/// As BERT has it: q, k and v are layers of their own.
#[test]
fn attention_of_separate_layers() {
    let g = GraphBuilder::new("bert");
    let x = g.input("x", F32, dims!["batch", "seq", 6]);
    let mask = g.input("mask", I64, dims!["batch", "seq"]);
    let [q, k, v] =
        ["q", "k", "v"].map(|name| x.dense(g.param(&format!("w{name}"), F32, dims![6, 6]), None).named(name));
    let mixed = q.attention(k, v, Some(mask), Attention { causal: false, ..HEADS });
    g.output("y", mixed.dense(g.param("wo", F32, dims![6, 6]), None));
    insta::assert_snapshot!(without_copies(&g.finish().unwrap()));
}

/// As GPT-2 has it: q, k and v are parts of one layer's output.
#[test]
fn attention_of_parts_of_a_layer() {
    let g = GraphBuilder::new("gpt2");
    let x = g.input("x", F32, dims!["batch", "seq", 6]);
    let all = x.dense(g.param("c_attn", F32, dims![18, 6]), None).named("qkv");
    let [q, k, v] = [0, 6, 12].map(|start| all.slice(2, start, 6));
    g.output("y", q.attention(k, v, None, HEADS));
    insta::assert_snapshot!(without_copies(&g.finish().unwrap()));
}

/// A cache of keys and values, `[time, batch, width]`: time is its first axis, so that it grows at its end.
#[test]
fn attention_on_a_cache() {
    let g = GraphBuilder::new("cache");
    let q = g.input("q", F32, dims!["batch", 1, 6]);
    let [k, v] = ["k", "v"].map(|name| g.input(name, F32, dims!["time", "batch", 6]).transpose(&[1, 0, 2]));
    g.output("y", q.attention(k, v, None, HEADS));
    insta::assert_snapshot!(without_copies(&g.finish().unwrap()));
}

#[test]
fn code_of_a_fused_loop() {
    let graph = on_input("fused", |g, x| (x + g.param("shift", F32, dims![6])).relu().scale(0.5));
    insta::assert_snapshot!(clif(&graph, "kernel_0_loop"));
}

/// A function of the runtime's between arithmetic: a chunk of arguments, the call, and a chunk of results.
#[test]
fn code_of_a_loop_that_calls() {
    let graph = on_input("gate", |_, x| x.scale(0.5).silu() * x);
    insta::assert_snapshot!(clif(&graph, "kernel_0_loop"));
}

#[test]
fn code_of_an_epilogue() {
    let graph = on_input("epilogue", |g, x| x.dense(g.param("w", F32, dims![6, 6]), None) * x);
    insta::assert_snapshot!(clif(&graph, "epilogue_0"));
}

/// What only adds another value of the output's shape is the product kernel's own; whatever else follows is code.
#[test]
fn a_residual_is_no_code() {
    let has_code = |body: for<'g> fn(Tensor<'g>, Tensor<'g>) -> Tensor<'g>| {
        let graph = on_input("residual", |g, x| body(x.dense(g.param("w", F32, dims![6, 6]), None), x));
        let functions = engraft_compiler::listings(&planned(&graph, true)).unwrap();
        functions.iter().any(|function| function.name == "epilogue_0")
    };
    assert!(!has_code(|y, x| y + x));
    assert!(!has_code(|y, x| x + y));
    assert!(has_code(|y, x| y - x));
    assert!(has_code(|y, x| (y + x).relu()));
    assert!(has_code(|y, x| y + x + x));
    assert!(has_code(|y, x| y + x.slice(1, 0, 1)));
}

#[test]
fn code_of_a_softmax() {
    let graph = on_input("softmax", |_, x| x.softmax(-1));
    insta::assert_snapshot!(clif(&graph, "kernel_0_softmax"));
}

#[test]
fn code_of_a_call() {
    let graph = on_input("call", |g, x| x.dense(g.param("w", F32, dims![5, 6]), None).softmax(-1));
    insta::assert_snapshot!(clif(&graph, "engraft_stage_call"));
}
