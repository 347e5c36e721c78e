//! The builder: errors with their lines, all at once; names that stay; blocks; copies of graphs; editing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft_ir::DType::{F32, I32};
use engraft_ir::ops::{Attention, Constant, EpsilonAt, Reduction, Unary};
use engraft_ir::{Axis, Cause, Dim, Graph, GraphBuilder, GraphError, Node, Op, dims, text};
use std::collections::BTreeSet;

#[test]
fn all_errors_are_reported_at_once_each_with_its_line() {
    let g = GraphBuilder::new("wrong");
    let x = g.input("x", F32, dims!["batch", 3]);
    let w = g.param("w", F32, dims![4, 5]);
    let first = line!() + 1;
    let y = x.dense(w, None).named("fc");
    let z = y.relu() + x; // follows from the first error: silent
    let second = line!() + 1;
    let _ = x.named("w");
    let _ = x.softmax(2);
    let _ = g.find("nowhere");
    let _ = x.adapter();
    let _ = x.reshape(dims!["seq", 3]);
    g.output("z", z);
    let errors = g.finish().unwrap_err();
    let lines: Vec<_> = errors.errors().iter().map(|error| error.location.line()).collect();
    assert_eq!(lines, [first, second, second + 1, second + 2, second + 3, second + 4]);
    assert!(errors.errors().iter().all(|error| error.location.file().ends_with("tests/builder.rs")));
    let messages: Vec<_> = errors.errors().iter().map(|error| error.cause.to_string()).collect();
    let expected = [
        "`x.dense` (dense): `x` f32[batch, 3] and `weight` f32[4, 5] do not fit: x is [.., in] and weight [out, in]",
        "the name `w` is taken by another node (param)",
        "at `x`: axis 2 is outside f32[batch, 3], which has 2 axes",
        "there is no node `nowhere`",
        "`x` is not a parameter, so it has no binding time",
        "`x.reshape` (reshape): f32[batch, 3] cannot become [seq, 3]: the number of elements must stay the same",
    ];
    assert_eq!(messages, expected);
    assert!(errors.to_string().starts_with("graph `wrong` has 6 errors\n  "));
}

#[test]
fn what_the_finished_graph_lacks_is_reported_at_finish() {
    let g = GraphBuilder::new("empty");
    let _ = g.input("x", F32, dims![2]);
    let line = line!() + 1;
    let errors = g.finish().unwrap_err();
    assert_eq!(errors.errors().len(), 1);
    assert_eq!(errors.errors()[0].location.line(), line);
    assert_eq!(errors.errors()[0].cause.to_string(), "the graph has no output");

    let errors = GraphBuilder::new("a name").finish().unwrap_err();
    assert!(
        matches!(&errors.errors()[0].cause, Cause::Graph(GraphError::BadName { name }) if name == "a name")
    );
}

#[test]
fn duplicates_are_refused() {
    let g = GraphBuilder::new("twice");
    let x = g.input("x", F32, dims![2]);
    let _ = g.param("x", F32, dims![2]);
    g.output("y", x);
    g.output("y", x.relu());
    let errors = g.finish().unwrap_err().to_string();
    assert!(errors.contains("the name `x` is taken by another node (input)"), "{errors}");
    assert!(errors.contains("there is an output `y` already"), "{errors}");
}

#[test]
fn tensors_of_another_graph_are_refused_with_the_callers_line() {
    let (g, other) = (GraphBuilder::new("ours"), GraphBuilder::new("theirs"));
    let x = g.input("x", F32, dims![2]);
    let foreign = other.input("their_x", F32, dims![2]);
    let line = line!() + 1;
    g.output("y", x + foreign);
    let errors = g.finish().unwrap_err();
    assert_eq!(errors.errors().len(), 1);
    assert_eq!(errors.errors()[0].cause.to_string(), "`their_x` belongs to another graph");
    assert_eq!(errors.errors()[0].location.line(), line);
}

fn model(with_dropin: bool) -> Graph {
    let g = GraphBuilder::new("model");
    let mut h = g.input("x", F32, dims!["batch", 4]);
    for layer in 0..2 {
        h = g.block(&format!("layer{layer}"), || {
            let w = g.param("fc.weight", F32, dims![4, 4]);
            let mut y = h.dense(w, None).named("fc");
            if with_dropin && layer == 0 {
                y = y.scale(2.0).tanh();
            }
            (y.relu() + h).layer_norm(None, None, 1e-5)
        });
    }
    g.output("y", h);
    g.finish().unwrap()
}

#[test]
fn inserting_a_layer_renames_nothing() {
    let names = |graph: &Graph| graph.nodes().map(|node| node.name().to_owned()).collect::<BTreeSet<_>>();
    let (plain, longer) = (names(&model(false)), names(&model(true)));
    assert!(plain.is_subset(&longer), "{plain:?}\n{longer:?}");
    let new: Vec<_> = longer.difference(&plain).collect();
    assert_eq!(new, ["layer0.fc.scale", "layer0.fc.tanh"]);
    assert!(plain.contains("layer1.fc.weight") && plain.contains("layer1.fc.layer_norm"), "{plain:?}");
}

#[test]
fn a_handle_used_twice_is_one_node() {
    let g = GraphBuilder::new("shared");
    let x = g.input("x", F32, dims![2]);
    let h = x.relu().named("h");
    g.output("y", h * h + h);
    let graph = g.finish().unwrap();
    let h = graph.find("h").unwrap();
    assert_eq!(graph.use_count(h), 3);
    assert_eq!(graph.op_counts()["relu"], 1);
}

#[test]
fn every_method_builds_its_op() {
    let g = GraphBuilder::new("all");
    let x = g.input("x", F32, dims!["batch", 4]);
    let v = g.constant([1.0f32, 2.0, 3.0, 4.0].as_slice()).named("v");
    let tables = [x.gather(g.input("ids", I32, dims!["seq"])), x.concat(&[x], Axis::LAST), x.t()];
    let whole = -x
        .sqrt()
        .rsqrt()
        .square()
        .exp()
        .gelu()
        .gelu_tanh()
        .silu()
        .tanh()
        .sigmoid()
        .sin()
        .cos()
        .unary(Unary::Relu);
    let reduced = [x.sum(&[0, 1]), x.mean(&[-1, 0]), x.max(&[0, 1]), x.reduce(Reduction::Sum, &[1], true)];
    let y = ((whole + v - v) * v / v + 1.0 - 1.0) * 2.0;
    g.output(
        "y",
        y.normalize_with(Axis::LAST, 0.1, EpsilonAt::Max).magnitude(v, 1).softmax(1).slice(1, 1, 2),
    );
    g.output("rms", x.rms_norm(Some(v), 1e-5).broadcast(dims![2, "batch", 4]));
    g.output("scalar", g.constant(Constant::scalar(F32, 2.0)));
    g.output("square", x.matmul(x.t()));
    g.output("adaptable", x.adaptable("fc", v.reshape(dims![1, 4]), None));
    let heads = Attention { heads: 2, kv_heads: 1, scale: 0.5, causal: true, window: Some(3) };
    let past = g.carried("past", F32, dims!["past", 1, 2]);
    let keys = g.append(past, g.input("new", F32, dims!["batch", 1, 2])).transpose(&[1, 0, 2]);
    let mask = g.input("mask", I32, dims![1, Dim::from("past") + Dim::from("batch")]);
    g.output("attended", x.reshape(dims![1, "batch", 4]).attention(keys, keys, Some(mask), heads));
    g.output("cast", mask.cast(F32));
    for (i, tensor) in tables.into_iter().chain(reduced).enumerate() {
        g.output(&format!("t{i}"), tensor);
    }
    let graph = g.finish().unwrap();
    let built: BTreeSet<_> = graph.op_counts().into_keys().collect();
    let elsewhere = [
        "dense",
        "lora",
        "dora",
        "output_dora",
        "lora_delta",
        "lora_apply",
        "lora_norm",
        "param",
        "layer_norm",
        "reshape",
    ];
    let missing: Vec<_> = Op::table()
        .map(|info| info.name)
        .filter(|name| !built.contains(name) && !elsewhere.contains(name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_graph_is_copied_under_a_name_and_may_share_parameters() {
    let inner = {
        let g = GraphBuilder::new("inner");
        let h = g.input("h", F32, dims!["batch", 4]);
        g.output("out", h.dense(g.param("w", F32, dims![4, 4]), None).named("fc").relu());
        g.finish().unwrap()
    };
    let g = GraphBuilder::new("outer");
    let x = g.input("x", F32, dims!["batch", 4]);
    let shared = g.param("shared", F32, dims![4, 4]);
    let first = g.instantiate("first", &inner, &[("h", x), ("w", shared)])["out"];
    let second = g.instantiate("second", &inner, &[("h", first)])["out"];
    g.output("y", second);
    insta::assert_snapshot!(text::print(&g.finish().unwrap()));

    let g = GraphBuilder::new("outer");
    let x = g.input("x", F32, dims!["batch", 5]);
    g.output("y", g.instantiate("copy", &inner, &[("h", x), ("nothing", x)])["out"]);
    let _ = g.instantiate("bare", &inner, &[]);
    let errors = g.finish().unwrap_err().to_string();
    assert!(errors.contains("there is no node `nothing`"), "{errors}");
    assert!(errors.contains("`h` f32[batch, 4] cannot be replaced by `x` f32[batch, 5]"), "{errors}");
    assert!(errors.contains("there is no node `h`"), "{errors}");
}

#[test]
fn a_finished_graph_is_edited_in_place() {
    let g = GraphBuilder::edit(model(false));
    let fc = g.find("layer0.fc");
    g.replace(fc, (fc * 2.0).named("layer0.doubled"));
    let edited = g.finish().unwrap();
    let doubled = edited.find("layer0.doubled").unwrap();
    let users: Vec<_> = edited.users(doubled).into_iter().map(|(user, _)| edited.node(user).name()).collect();
    assert_eq!(users, ["layer0.fc.relu"]);
    assert_eq!(edited.users(edited.find("layer0.fc").unwrap()), [(doubled, 0)]);

    let g = GraphBuilder::edit(model(false));
    g.replace(g.find("layer0.fc"), g.find("layer0.fc.weight"));
    let errors = g.finish().unwrap_err().to_string();
    assert!(
        errors.contains("cannot be replaced by `layer0.fc.weight` f32[4, 4]: the types differ"),
        "{errors}"
    );
}

#[test]
fn what_no_output_needs_is_dropped_but_inputs_stay() {
    let g = GraphBuilder::new("pruned");
    let x = g.input("x", F32, dims![2]);
    let _ = g.input("unused", F32, dims![2]);
    let _ = x.relu().named("dead");
    let _ = g.param("dead_param", F32, dims![2]);
    g.output("y", x.tanh());
    let graph = g.finish().unwrap();
    let names: Vec<_> = graph.nodes().map(Node::name).collect();
    assert_eq!(names, ["x", "unused", "x.tanh"]);
}

#[test]
fn a_layer_of_ones_own_reports_its_errors_as_the_ops_do() {
    let g = GraphBuilder::new("own");
    let x = g.input("x", F32, dims![2]);
    let line = line!() + 1;
    let failed = g.fail(Cause::LayerOption {
        layer: "own".into(),
        option: "p",
        found: "2".into(),
        expected: "0 to 1",
    });
    g.output("y", failed.relu() + x);
    let errors = g.finish().unwrap_err();
    assert_eq!(errors.errors().len(), 1);
    assert_eq!(
        errors.errors()[0].to_string(),
        format!("ir/tests/builder.rs:{line}:20: `own`: p is 2, expected 0 to 1")
    );
}

/// Under a block, too, a carried input carries the output that `append` makes.
#[test]
fn a_carried_input_in_a_block_carries_the_output_of_its_full_name() {
    let g = GraphBuilder::new("g");
    let new = g.input("new", F32, dims!["n", 2]);
    let all = g.block("layer", || g.append(g.carried("keys", F32, dims!["past", 2]), new));
    g.output("sum", all.sum(&[0]));
    let graph = g.finish().unwrap();
    assert_eq!(graph.outputs()[0].name, "layer.keys");
    let keys = graph.node(graph.find("layer.keys").unwrap()).op();
    assert!(matches!(keys, Op::Input(input) if input.carries.as_deref() == Some("layer.keys")));
}
